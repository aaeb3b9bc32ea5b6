"""Gradients that are summed over the rows of all steps, of a sequence that the backward pass may go through in pieces.

Whatever the pieces, the same numbers are added in the same order, so that a gradient has the same bits: the kernel goes
on with its sums where it left off (`Kernel.bind`), and weight-gradient GEMMs are formed of the same blocks of rows.
These are counted in the order of the backward pass; rows that are no whole block yet wait for those of the next piece.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from anyrnn.runtime.kernel import Rows

if TYPE_CHECKING:
    from torch import Tensor

    from anyrnn.compiler.derive import Term
    from anyrnn.runtime.kernel import Backend


class Sums:
    """The sums so far.

    Attributes:
        totals: What the backward kernel adds up the gradients of vectors in.
        rows: The gradients of arrays with one row for each of the batch.
        products: The weight-gradient GEMM of each term.
        matrices: The gradients of matrices.
        found: Those of rows, vectors and matrices that are wanted, by the names of the inputs.
        reached: Which of them autograd would have found, in any piece: PyTorch tells zero from none.
    """

    def __init__(self) -> None:
        self.totals: Tensor | None = None
        self.rows: dict[str, Tensor] = {}
        self.products: dict[Term, Product] = {}
        self.matrices: dict[str, Tensor] = {}
        self.found: dict[str, Tensor] = {}
        self.reached: set[str] = set()


@dataclass
class Product:
    """left^T @ right, of rows that come piece by piece.

    Attributes:
        backend: What multiplies.
        out: The matrix that it is written into, or added to.
        row, column: Where in the matrix.
        add: Whether there is something to be added to.
        last_first: Whether the backward pass goes from the last of the rows to the first.
    """

    backend: Backend
    out: Tensor
    row: int
    column: int
    add: bool
    last_first: bool
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _starts: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add_rows(self, rows: tuple[Rows, ...], is_last: bool) -> None:
        """Add the rows of a piece, of the left and the right operand; after the last piece none waits."""
        left, right = rows
        if is_last and not self._waiting:  # as in a sequence of one piece
            self._multiply(left, right)
            return
        height, block = left.height, self.backend.block
        first = min(height, block - self._waiting_rows()) if self._waiting else 0
        rest = height - first
        whole = rest if is_last else rest - rest % block
        if first:
            self._wait(left, right, 0, first)
        if is_last or self._waiting_rows() == block:
            self._multiply_waiting()
        if whole:
            self._multiply(*self._next(left, right, first, whole))
        if whole < rest:
            self._wait(left, right, first + whole, rest - whole)

    def add_starts(self, rows: tuple[Rows, ...], is_last: bool) -> None:
        """Add those rows of a piece that read an initial state: they come after all others."""
        left, right = rows
        if self._starts or not is_last:
            self._starts.insert(0 if self.last_first else len(self._starts), (left.copied(), right.copied()))
        if is_last:
            self._multiply(*(_joined(self._starts) if self._starts else (left, right)))

    def _next(self, left: Rows, right: Rows, taken: int, count: int) -> tuple[Rows, Rows]:
        """The rows that come after those that were taken, in the order of the backward pass."""
        first = left.height - taken - count if self.last_first else taken
        return left.part(first, count), right.part(first, count)

    def _waiting_rows(self) -> int:
        return sum(len(left) for left, _ in self._waiting)

    def _wait(self, left: Rows, right: Rows, taken: int, count: int) -> None:
        left, right = self._next(left, right, taken, count)
        self._waiting.insert(0 if self.last_first else len(self._waiting), (left.copied(), right.copied()))

    def _multiply_waiting(self) -> None:
        if self._waiting:
            self._multiply(*_joined(self._waiting))
            self._waiting.clear()

    def _multiply(self, left: Rows, right: Rows) -> None:
        self.backend.add_outer(self.out, self.row, self.column, left, right, self.add, self.last_first)
        self.add = True


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Rows, Rows]:
    """The rows of several tensors one after the other."""
    left, right = (tensors[0] if len(tensors) == 1 else torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return tuple(Rows(t, t.shape[1], 0, t.shape[1], 0, len(t)) for t in (left, right))  # type: ignore[return-value]
