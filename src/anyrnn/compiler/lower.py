"""Lowering: tensors of a cell's step as ranges of nodes of the loop program. The rules of ATen's operations: rules.py.

A tensor of the step, (B, ...) or without a batch, becomes a `Lowered`: an array of codes, one for each number of a row,
which say which node it is in, and where in it. Here node.number, with x[0:4] as node 0 and h[0:4] as node 1:

    z = cat((x, h), 1)           0.0 0.1 0.2 0.3 1.0 1.1 1.2 1.3    layout operations (cat, chunk, view, expand)
    a = z[:, 2:6]                0.2 0.3 1.0 1.1                    move codes about, which numpy does
    tanh(a)                      2.0 2.1 3.0 3.1                    arithmetic: a node for each segment of codes in
                                                                    a row, 2 = tanh(x[2:4]) and 3 = tanh(h[0:2])

Numbers in many segments, as those of a transposed tensor are, are put side by side first (`arrange`): one node again.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anyrnn.compiler.node import HERE, Builder, Node
from anyrnn.compiler.ops import OPERATIONS, REDUCTIONS
from anyrnn.compiler.strided import Axis, arranged, boxes_of, contraction, strides_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

#: What is in more segments is put into one: as many values would be computed from it.
MOST_SEGMENTS = 8

_SHIFT = 32  # a code is the index of a node in `Lowering._nodes`, shifted, plus the number's index in the node


@dataclass(frozen=True)
class Lowered:
    """A tensor of the step, lowered: where its numbers are among the values (nodes) of the program.

    Attributes:
        codes: For each number of a row, or of the whole tensor if it has no batch, its code.
        batched: The tensor has a batch dimension in front of those of `codes`.
    """

    codes: NDArray[np.int64]
    batched: bool


class Lowering:
    """Turns operations on tensors into nodes, for which the rules call it."""

    def __init__(self, builder: Builder, most_segments: int = MOST_SEGMENTS) -> None:
        self.builder, self.most_segments = builder, most_segments
        self._nodes: list[Node] = []
        self._index: dict[Node, int] = {}

    def of_nodes(self, nodes: Sequence[Node], shape: Sequence[int] | None = None, batched: bool = True) -> Lowered:
        """Return the tensor whose numbers are those of nodes side by side, of a shape (without the batch) if given."""
        codes = np.concatenate([self._codes(n, n.width) for n in nodes])
        return Lowered(codes if shape is None else codes.reshape(shape), batched)

    def constant(self, number: float, shape: Sequence[int] = (), batched: bool = False) -> Lowered:
        """Return a tensor full of one number."""
        return Lowered(np.full(tuple(shape), self._code(self.builder.constant(number)), dtype=np.int64), batched)

    def pieces(self, tensor: Lowered) -> tuple[Node, ...]:
        """Return the nodes that make up a tensor, side by side, in the order of its numbers."""
        codes = tensor.codes if self._are_few(tensor.codes) else self._together(tensor.codes)
        return tuple(
            node if node.width == count else self.builder.widened(self._as_numbers(node), count)
            for node, count in self._ranges(codes)
        )

    def piece(self, tensor: Lowered) -> Node:
        """Return the node that is a tensor."""
        pieces = self.pieces(tensor)
        return pieces[0] if len(pieces) == 1 else self._ranges(self._together(tensor.codes))[0][0]

    def is_mask(self, tensor: Lowered) -> bool:
        """Whether a tensor holds true and false."""
        return all(self._nodes[k].is_mask for k in np.unique(tensor.codes >> _SHIFT))

    def pointwise(self, op: str, *operands: Lowered | float) -> Lowered:
        """Apply an elementary operation, with PyTorch's broadcasting."""
        tensors = [o if isinstance(o, Lowered) else self.constant(float(o)) for o in operands]
        return self._broadcast(tensors, lambda nodes: self.builder.pointwise(op, *self._all_cast(op, nodes)))

    def composite(self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Lowered:
        """Apply an operation of PyTorch's on each number, such as "aten.elu.default", as one."""
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Lowered)]
        positional = tuple(HERE if isinstance(a, Lowered) else a for a in args)
        named = tuple((k, HERE if isinstance(a, Lowered) else a) for k, a in kwargs.items())
        return self._broadcast(
            tensors, lambda nodes: self.builder.composite(op, tuple(self._all_cast(op, nodes)), (positional, named))
        )

    def number(self, tensor: Lowered) -> Lowered:
        """Make 1 of true and 0 of false."""
        return self._broadcast([tensor], lambda nodes: self._as_numbers(nodes[0]))

    def mask(self, tensor: Lowered) -> Lowered:
        """Make true of all but 0."""
        return self._broadcast([tensor], lambda nodes: self._as_mask(nodes[0]))

    def _broadcast(self, tensors: Sequence[Lowered], make: Callable[[Sequence[Node]], Node]) -> Lowered:
        """Broadcast tensors as PyTorch does, and make one node for each range that is a segment in all of them."""
        batched = any(v.batched for v in tensors)
        arrays = list(np.broadcast_arrays(*self._aligned(tensors, batched)))
        flats = [a.ravel() if self._are_few(a) else self._together(a).ravel() for a in arrays]
        edges = _edges(flats)
        if len(edges) > self.most_segments + 1:
            flats = [flat if len(_edges([flat])) == 2 else self._together(flat) for flat in flats]
            edges = _edges(flats)
        results = []
        for start, stop in itertools.pairwise(edges):
            width = stop - start
            nodes = [self._node(f[start], width, int(f[start + 1] - f[start]) if width > 1 else 1) for f in flats]
            results.append(self._codes(make(nodes), width))
        codes = np.concatenate(results) if results else flats[0]
        return Lowered(codes.reshape(arrays[0].shape), batched)

    def _are_few(self, codes: NDArray[np.int64]) -> bool:
        """Whether codes are in few segments."""
        steps, most = np.diff(codes.ravel()), self.most_segments
        jumps = np.count_nonzero((steps != 0) & (steps != 1))
        return bool(jumps <= 2 * most) and len(_segments(codes.ravel())) <= most

    def _aligned(self, tensors: Sequence[Lowered], batched: bool) -> list[NDArray[np.int64]]:
        """The codes of tensors, without a dimension for the batch in those that have none, if others are batched."""
        rank = max(v.codes.ndim for v in tensors if v.batched) if batched else 0
        arrays = []
        for v in tensors:
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
        return arrays

    def reduce(self, op: str, tensor: Lowered, axis: int) -> Lowered:
        """Sum or maximise over one of the feature dimensions, which is kept with size one.

        Pairwise, if few numbers are reduced to many outputs: `count` - 1 operations on wide nodes. Else output by
        output, a reduction each. Where that would be too many nodes, together, by loops.
        """
        moved = np.moveaxis(tensor.codes, axis, -1)
        count = moved.shape[-1]
        if count == 0:
            if op != "sum":
                msg = "of no features"
                raise ValueError(msg)
            return self.constant(
                REDUCTIONS[op].empty, (*tensor.codes.shape[:axis], 1, *tensor.codes.shape[axis + 1 :]), tensor.batched
            )
        outputs = moved.size // count
        pairwise = count < outputs and (op == "sum" or count == 2)
        nodes, read_by_one = (count - 1, moved[..., 0]) if pairwise else (outputs, moved[(0,) * (moved.ndim - 1)])
        if count > 1 and not (nodes <= self.most_segments and self._are_few(read_by_one)):
            return self._reduced_together(op, tensor, axis)
        if count == 1 or pairwise:
            total = self.number(Lowered(moved[..., 0], tensor.batched))
            for k in range(1, count):
                total = self.pointwise(REDUCTIONS[op].pairwise, total, Lowered(moved[..., k], tensor.batched))
            return Lowered(np.expand_dims(total.codes, axis), tensor.batched)
        codes = np.empty(moved.shape[:-1], dtype=np.int64)
        for index in np.ndindex(codes.shape):
            codes[index] = self._code(self._reduced(op, moved[index]))
        return Lowered(np.expand_dims(codes, axis), tensor.batched)

    def _reduced(self, op: str, codes: NDArray[np.int64]) -> Node:
        """One number from many: a reduction of the ranges among them, and the constants."""
        ranges: list[Node] = []
        constants: list[Node] = []
        for node, count in self._ranges(codes):
            number = self._as_numbers(node)
            if op == "sum" and node.width == 1 < count:
                number = self.builder.pointwise("mul", number, self.builder.constant(count))
            (constants if number.op == "constant" else ranges).append(number)
        reduction = [self.builder.reduction(op, tuple(ranges))] if ranges else []
        pairwise = functools.partial(self.builder.pointwise, REDUCTIONS[op].pairwise)
        return functools.reduce(pairwise, reduction + constants)

    def _reduced_together(self, op: str, tensor: Lowered, axis: int) -> Lowered:
        """Sum or maximise over a dimension by loops."""
        sizes = tensor.codes.shape
        shape = (*sizes[:axis], 1, *sizes[axis + 1 :])
        if op == "sum":
            letters = [chr(ord("a") + k) for k in range(len(sizes))]
            rest = "".join(letters[:axis] + letters[axis + 1 :])
            return Lowered(self.contract([tensor], ["".join(letters)], rest).codes.reshape(shape), tensor.batched)
        (node,) = self.pieces(Lowered(self._together(tensor.codes), tensor.batched))
        middle = math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :])
        result = self.builder.strided("largest", (node,), middle[0] * middle[2], middle)
        return self.of_nodes([result], shape, tensor.batched)

    def contract(self, tensors: Sequence[Lowered], letters: Sequence[str], result: str) -> Lowered:
        """Sums of products of one tensor or two, as `einsum` has it; the letters are without the batch."""
        sizes: dict[str, int] = {}
        for tensor, each in zip(tensors, letters, strict=True):
            sizes.update(zip(each, tensor.codes.shape, strict=True))
        operands, strides = [], []
        for tensor, each in zip(tensors, letters, strict=True):
            node, first, steps = self._strided(tensor.codes)
            operands.append((node, first))
            strides.append(dict(zip(each, steps, strict=True)))
        axes = {a: Axis(n, tuple(each.get(a, 0) for each in strides)) for a, n in sizes.items()}
        lanes = [a for a in reversed(result) if axes[a].is_lane]
        inner = max(lanes, key=lambda a: axes[a].size, default="")  # along which vectors are read
        order = [a for a in result if a != inner] + [*inner]
        summed = [axis for a, axis in axes.items() if a not in result]
        node = contraction(self.builder, operands, [axes[a] for a in order], summed)
        codes = self._codes(node, node.width).reshape([sizes[a] for a in order])
        return Lowered(codes.transpose([order.index(a) for a in result]), any(v.batched for v in tensors))

    def _strided(self, codes: NDArray[np.int64]) -> tuple[Node, int, tuple[int, ...]]:
        """A node that has all numbers of a tensor, where the first one is, and the strides of its dimensions."""
        strides = strides_of(codes)
        low, high = int(codes.min()), int(codes.max())
        inside = tuple(slice(None) if stride else 0 for stride in strides or ())
        if strides is None or low >> _SHIFT != high >> _SHIFT or len(np.unique(codes[inside])) < codes[inside].size:
            codes = self._together(codes)
            strides = strides_of(codes) or ()
        node, first = self._source(codes)
        return node, int(codes.flat[0]) - first, strides

    def _source(self, codes: NDArray[np.int64]) -> tuple[Node, int]:
        """What to read numbers of a node from, and the code of its first one: their range, or all if it has gaps."""
        low, high = int(codes.min()), int(codes.max())
        whole = self._nodes[low >> _SHIFT]
        if whole.is_strided or len(np.unique(codes)) <= high - low:
            return whole, low >> _SHIFT << _SHIFT
        return self._node(np.int64(low), high - low + 1, 1), low

    def _together(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The codes of the same numbers, moved to where they lie side by side."""
        index = codes >> _SHIFT
        sources = {int(k): self._source(codes[index == k]) for k in np.unique(index)}
        zero = {k for k in sources if self._nodes[k].op == "constant" and self._nodes[k].attr[0] == 0}
        read = [k for k in sources if k not in zero] or [*sources][:1]
        moves = [
            (read.index(code >> _SHIFT), sizes, code - sources[code >> _SHIFT][1], strides, to, to_strides)
            for code, sizes, strides, to, to_strides in boxes_of(codes, _SHIFT) if code >> _SHIFT in read
        ]  # fmt: skip
        node = arranged(self.builder, [sources[k][0] for k in read], moves, codes.size)
        return self._codes(node, codes.size).reshape(codes.shape)

    def terms(self, tensor: Lowered) -> list[tuple[Node, int]]:
        """The values that make up rows (B, rows), which are to be multiplied with a matrix, each with its first row."""
        if tensor.codes.ndim != 1:
            msg = f"a product of {tensor.codes.ndim + 1} dimensions"
            raise ValueError(msg)
        pieces = self.pieces(tensor)
        return list(zip(pieces, itertools.accumulate((p.width for p in pieces), initial=0), strict=False))

    def dot(self, terms: Sequence[tuple[Node, int]], matrix: str, columns: int) -> Lowered:
        """Multiply values side by side, each with the rows from its number on of a matrix of the program."""
        # An operand has a row for each of the batch; what is the same for all is written out for each.
        operands = (
            (self.builder.pointwise("positive", piece) if piece.op in ("vector", "constant") else piece, row)
            for piece, row in terms
        )
        return self.of_nodes([self.builder.dot([(o, (matrix, row, 0, False)) for o, row in operands], columns)])

    def _as_numbers(self, node: Node) -> Node:
        """A node as numbers: 1 and 0 for the true and false of a mask."""
        if not node.is_mask:
            return node
        return self.builder.pointwise("where", node, self.builder.constant(1), self.builder.constant(0))

    def _as_mask(self, node: Node) -> Node:
        """A node as a mask, true for all numbers but 0."""
        return node if node.is_mask else self.builder.pointwise("ne", node, self.builder.constant(0))

    def _all_cast(self, op: str, nodes: Sequence[Node]) -> list[Node]:
        """The arguments of an operation, as a mask where it takes one, else as numbers."""
        masks = OPERATIONS[op].masks if op in OPERATIONS else ()
        return [self._as_mask(node) if k in masks else self._as_numbers(node) for k, node in enumerate(nodes)]

    def _ranges(self, codes: NDArray[np.int64]) -> list[tuple[Node, int]]:
        """The nodes of the segments, and how many numbers each stands for: more than its width if it is repeated."""
        flat = codes.ravel()
        return [(self._node(flat[start], stop - start, step), stop - start) for start, stop, step in _segments(flat)]

    def _node(self, code: np.int64, width: int, step: int) -> Node:
        """The node of a segment, which begins with a code."""
        node = self._nodes[int(code) >> _SHIFT]
        return self.builder.cut(node, int(code) & ((1 << _SHIFT) - 1), width if step == 1 else 1)

    def _codes(self, node: Node, width: int) -> NDArray[np.int64]:
        """The codes of all numbers of a node, or of its only one, repeated."""
        codes = np.arange(width, dtype=np.int64) if node.width > 1 else np.zeros(width, dtype=np.int64)
        return codes + self._code(node)

    def _code(self, node: Node) -> int:
        """The code of the first number of a node."""
        if node not in self._index:
            self._index[node] = len(self._nodes)
            self._nodes.append(node)
        return self._index[node] << _SHIFT


def _edges(flats: Sequence[NDArray[np.int64]]) -> list[int]:
    """Where a segment of any of some codes begins or ends."""
    return sorted({e for flat in flats for start, stop, _ in _segments(flat) for e in (start, stop)})


def _segments(flat: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Split codes into segments (start, stop, step): neighbours in a node (step 1) or one number repeated (step 0)."""
    n = len(flat)
    if n == 0:
        return []
    steps = np.diff(flat)
    segments = []
    start = 0
    while start < n:
        step = int(steps[start]) if start < n - 1 else 1
        if step not in (0, 1):
            segments.append((start, start + 1, 1))
            start += 1
            continue
        breaks = np.flatnonzero(steps[start:] != step)
        stop = start + (int(breaks[0]) if len(breaks) else n - 1 - start) + 1
        segments.append((start, stop, step))
        start = stop
    return segments
