"""Tensors of a cell's step as values of the loop program; what each ATen operation does to them is in rules.py.

A tensor of the cell's step, (B, ...) or without a batch, is here an array of codes, one for each number of a row: which
number of which value it is. Layout operations (cat, chunk, view, expand) only move codes about, which numpy does.
Arithmetic finds the runs of neighbouring numbers in its operands and makes one value of each.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anyrnn.compiler.node import HERE, Builder, Node
from anyrnn.compiler.ops import OPERATIONS, REDUCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

_SHIFT = 32  # a code is the number of a value, shifted, plus the position in it


@dataclass(frozen=True)
class Value:
    """A tensor of the step.

    Attributes:
        codes: For each number of a row, or of the whole tensor if it has no batch, which number of which node it is.
        batched: The tensor has a batch dimension in front of those of `codes`.
    """

    codes: NDArray[np.int64]
    batched: bool


class Lowering:
    """Turns operations into nodes; knows nothing of where the leaves come from."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._nodes: list[Node] = []
        self._numbers: dict[Node, int] = {}

    def value(self, nodes: Sequence[Node], shape: Sequence[int] | None = None, batched: bool = True) -> Value:
        """Return nodes side by side as a tensor, of a shape (without the batch) if given."""
        parts = [np.arange(n.width, dtype=np.int64) + (self._number(n) << _SHIFT) for n in nodes]
        codes = np.concatenate(parts)
        return Value(codes if shape is None else codes.reshape(shape), batched)

    def constant(self, number: float, shape: Sequence[int] = (), batched: bool = False) -> Value:
        """Return a tensor full of one number."""
        code = self._number(self.builder.constant(number)) << _SHIFT
        return Value(np.full(tuple(shape), code, dtype=np.int64), batched)

    def pieces(self, value: Value) -> tuple[Node, ...]:
        """Return the nodes that make up a tensor, side by side, in the order of its numbers."""
        return tuple(
            node if node.width == count else self.builder.widened(self._typed("mul", 0, node), count)
            for node, count in self._parts(value.codes)
        )

    def is_mask(self, value: Value) -> bool:
        """Whether a tensor holds true and false."""
        return all(node.is_mask for node, _ in self._parts(value.codes))

    def pointwise(self, op: str, *operands: Value | float) -> Value:
        """Apply an elementary operation, with PyTorch's broadcasting."""
        values = [o if isinstance(o, Value) else self.constant(float(o)) for o in operands]
        return self._broadcast(values, lambda nodes: self.builder.pointwise(op, *self._all_typed(op, nodes)))

    def whole(self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        """Apply an operation of PyTorch's on each number, such as "aten.elu.default", as one."""
        values = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
        given = tuple(HERE if isinstance(a, Value) else a for a in args)
        named = tuple((k, HERE if isinstance(a, Value) else a) for k, a in kwargs.items())
        return self._broadcast(
            values, lambda nodes: self.builder.whole(op, tuple(self._all_typed(op, nodes)), (given, named))
        )

    def number(self, value: Value) -> Value:
        """Make 1 of true and 0 of false."""
        return self._broadcast([value], lambda nodes: self._typed("positive", 0, nodes[0]))

    def mask(self, value: Value) -> Value:
        """Make true of all but 0."""
        return self._broadcast([value], lambda nodes: self._typed("logical_not", 0, nodes[0]))

    def _broadcast(self, values: Sequence[Value], make: Callable[[Sequence[Node]], Node]) -> Value:
        """Broadcast tensors as PyTorch does, and make one node of each run of neighbouring numbers in all of them."""
        batched = any(v.batched for v in values)
        rank = max(v.codes.ndim for v in values if v.batched) if batched else 0
        arrays = []
        for v in values:
            codes = v.codes
            if batched and not v.batched and codes.ndim > rank:
                if codes.shape[0] != 1 or codes.ndim != rank + 1:
                    msg = "a tensor without a batch is broadcast along the batch"
                    raise ValueError(msg)
                codes = codes[0]
            if v.batched and codes.ndim != rank:
                msg = "the batch dimensions do not meet"
                raise ValueError(msg)
            arrays.append(codes)
        arrays = list(np.broadcast_arrays(*arrays))
        flats = [a.ravel() for a in arrays]
        edges = sorted({e for flat in flats for a, b, _ in _runs(flat) for e in (a, b)})
        made = []
        for a, b in itertools.pairwise(edges):
            nodes = [self._node(f[a], b - a, int(f[a + 1] - f[a]) if b - a > 1 else 1) for f in flats]
            node = make(nodes)
            codes = np.arange(b - a, dtype=np.int64) if node.width > 1 else np.zeros(b - a, dtype=np.int64)
            made.append(codes + (self._number(node) << _SHIFT))
        codes = np.concatenate(made) if made else flats[0]
        return Value(codes.reshape(arrays[0].shape), batched)

    def reduce(self, op: str, value: Value, axis: int) -> Value:
        """Sum or maximise over one of the feature dimensions, which is kept with size one."""
        moved = np.moveaxis(value.codes, axis, -1)
        both = REDUCTIONS[op].pairwise
        count = moved.shape[-1]
        if count == 1 or (count < moved.size // count and (op == "sum" or count == 2)):  # a few values, wide ones
            total = self.number(Value(moved[..., 0], value.batched))
            for k in range(1, count):
                total = self.pointwise(both, total, Value(moved[..., k], value.batched))
            return Value(np.expand_dims(total.codes, axis), value.batched)
        out = np.empty(moved.shape[:-1], dtype=np.int64)
        for index in np.ndindex(out.shape):
            parts: list[Node] = []
            numbers: list[Node] = []
            for node, repeated in self._parts(moved[index]):
                number = self._typed(op, 0, node)
                if op == "sum" and node.width == 1 < repeated:
                    number = self.builder.pointwise("mul", number, self.builder.constant(repeated))
                (numbers if number.op == "constant" else parts).append(number)
            made = [self.builder.reduction(op, tuple(parts))] if parts else []
            result = functools.reduce(functools.partial(self.builder.pointwise, both), made + numbers)
            out[index] = self._number(result) << _SHIFT
        return Value(np.expand_dims(out, axis), value.batched)

    def product(self, value: Value, matrix: str, shape: tuple[int, int]) -> Value:
        """Multiply rows (B, rows) with a matrix of the program (rows, columns)."""
        if value.codes.ndim != 1:
            msg = f"a product of {value.codes.ndim + 1} dimensions"
            raise ValueError(msg)
        terms = []
        row = 0
        for piece in self.pieces(value):
            # What a product takes differs by row; what does not is written out for each.
            taken = self.builder.pointwise("positive", piece) if piece.op in ("vector", "constant") else piece
            terms.append((taken, (matrix, row, 0, False)))
            row += piece.width
        return self.value([self.builder.dot(terms, shape[1])])

    def _typed(self, op: str, position: int, node: Node) -> Node:
        """Make a mask of a number or a number of a mask, as the operation wants its argument."""
        wants_mask = op in OPERATIONS and position in OPERATIONS[op].masks
        if wants_mask == node.is_mask:
            return node
        one, zero = self.builder.constant(1), self.builder.constant(0)
        return self.builder.pointwise(*(("ne", node, zero) if wants_mask else ("where", node, one, zero)))

    def _all_typed(self, op: str, nodes: Sequence[Node]) -> list[Node]:
        return [self._typed(op, k, node) for k, node in enumerate(nodes)]

    def _parts(self, codes: NDArray[np.int64]) -> list[tuple[Node, int]]:
        """The nodes of neighbouring numbers, and how many numbers each is: more than its width if it is repeated."""
        flat = codes.ravel()
        return [(self._node(flat[a], b - a, step), b - a) for a, b, step in _runs(flat)]

    def _number(self, node: Node) -> int:
        if node not in self._numbers:
            self._numbers[node] = len(self._nodes)
            self._nodes.append(node)
        return self._numbers[node]

    def _node(self, code: np.int64, width: int, step: int) -> Node:
        node = self._nodes[int(code) >> _SHIFT]
        return self.builder.cut(node, int(code) & ((1 << _SHIFT) - 1), width if step == 1 else 1)


def _runs(flat: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Split codes into runs (start, stop, step): neighbours (step 1) or one number repeated (step 0)."""
    n = len(flat)
    if n == 0:
        return []
    steps = np.diff(flat)
    runs = []
    start = 0
    while start < n:
        step = int(steps[start]) if start < n - 1 else 1
        if step not in (0, 1):
            runs.append((start, start + 1, 1))
            start += 1
            continue
        breaks = np.flatnonzero(steps[start:] != step)
        stop = start + (int(breaks[0]) if len(breaks) else n - 1 - start) + 1
        runs.append((start, stop, step))
        start = stop
    return runs
