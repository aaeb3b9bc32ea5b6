"""What a backend is: it makes kernels of programs, to be bound to arrays and launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import Tensor

    from anyrnn.compiler.program import Program
    from anyrnn.runtime.layout import Layout


@dataclass(frozen=True)
class Precision:
    """In which types a kernel works.

    Attributes:
        storage: The type of the arrays.
        compute: The type of the arithmetic and of the sums in products.
    """

    storage: torch.dtype
    compute: torch.dtype

    @staticmethod
    def of(dtype: torch.dtype) -> Precision:
        """The precision of arrays of a type: float32 or float64 throughout."""
        return _PRECISIONS[dtype]

    @property
    def itemsize(self) -> int:
        """The bytes of a number of an array."""
        return self.storage.itemsize


_PRECISIONS = {dtype: Precision(dtype, dtype) for dtype in (torch.float32, torch.float64)}


class Rows(NamedTuple):
    """Rows of numbers of a tensor; the numbers of a row are side by side.

    Attributes:
        tensor: The tensor.
        stride: From a row to the next one, in numbers.
        column: The first number of a row that is meant.
        width: How many numbers of a row are meant.
        first: The first row.
        height: How many rows.
        which: Which rows these are (int64), counted from the first one; None if one after the other.
    """

    tensor: Tensor
    stride: int
    column: int
    width: int
    first: int
    height: int
    which: Tensor | None = None

    def part(self, first: int, height: int) -> Rows:
        """Some of these rows, one after the other."""
        if self.which is None:
            return self._replace(first=self.first + first, height=height)
        return self._replace(which=self.which[first : first + height], height=height)

    def copied(self) -> Tensor:
        """A copy (height, width)."""
        tensor, stride = self.tensor, self.stride
        before, offset = divmod(int(tensor.storage_offset()), stride)  # rows in memory in front of the tensor's own
        at = before + self.first
        if self.which is None:
            return tensor.as_strided((self.height, self.width), (stride, 1), at * stride + offset + self.column).clone()
        rows = (tensor.untyped_storage().nbytes() // tensor.itemsize - offset) // stride
        return tensor.as_strided((rows, self.width), (stride, 1), offset + self.column)[at + self.which]


class Bound(Protocol):
    """A kernel with the arrays that it reads and writes."""

    @property
    def totals(self) -> Tensor | None:
        """What its sums are added up in; None if it has none."""

    def launch(self) -> Mapping[str, Tensor]:
        """Run all steps; returns the sums, by name. It may be launched once."""


class Repeated(Protocol):
    """A kernel of one step, bound to arrays that stay where they are."""

    launch: Callable[[], object]

    def prepare(self, arrays: Mapping[str, Tensor], transposed: Collection[str]) -> None:
        """Read the matrices and whatever else is the same at every step; `launch` goes on with these."""


class Kernel(Protocol):
    """A program, compiled."""

    @property
    def stages(self) -> int:
        """In how many stages a step runs: each begins when all units of the one before are computed."""

    def bind(
        self,
        layout: Layout,
        arrays: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
        transposed: Collection[str],
        totals: Tensor | None = None,
    ) -> Bound:
        """Bind it to arrays.

        Args:
            layout: The rows of the batch; a backward program runs through them from the last step to the first.
            arrays: By name, contiguous but for matrices. A kept state or a history has memory for all steps (T, B,
                width); a carried one (B, width) begins as the initial state and ends as the final one.
            initial: The initial states (B, width), by name, at least of those that have memory for all steps.
            transposed: The matrices whose memory holds (columns, rows). This is about what is handed over; that a
                product reads a matrix transposed (``U.T`` in the text) is part of the program.
            totals: Those of the piece of the sequence that it was launched for before: the sums go on from there, added
                up as they would be in one run.
        """

    def repeated(self, layout: Layout, arrays: Mapping[str, Tensor], transposed: Collection[str]) -> Repeated:
        """Bind it to arrays once, to be launched for one step after the other; all its states are carried.

        Args:
            layout: The rows of the batch, one step.
            arrays: As for `bind`; all but the matrices are read at every launch.
            transposed: As for `bind`.
        """

    @property
    def source(self) -> str:
        """What the backend's compiler was given."""

    @property
    def assembly(self) -> str:
        """What it made."""


class Backend(Protocol):
    """Compiles programs for one kind of processor."""

    name: str

    @property
    def block(self) -> int:
        """The rows of which `add_outer` forms a sum of its own."""

    def compile(self, program: Program, precision: Precision) -> Kernel:
        """Compile a program whose arrays all have a place."""

    def add_outer(
        self, out: Tensor, row: int, column: int, left: Rows, right: Rows, add: bool, last_first: bool
    ) -> None:
        """Write left^T @ right into a contiguous matrix, from a row and column on, or add it to what is there.

        The sums of blocks of rows are added one after the other, from the first rows on, or from the last ones: so
        rows that come in several calls, of whole blocks each but the last call, give the same bits as in one.
        """
