"""Loops over inner dimensions: how the operations `STRIDED` are made, and their derivatives.

A value of a program is a row of numbers. As a tensor with inner dimensions, (3, 2) say, it is read by strides: number
``first + 2 i + j`` is at (i, j), and with the strides (1, 3) the same numbers are read as a transposed tensor. What a
product of tensors needs of its operands is such a reading, an `Axis` for each dimension::

    einsum("ik,kj->ij", a, b) with a (4, 3) and b (3, 5)

                 size    strides in a, b
    i (result)      4       3, 0
    j (result)      5       0, 1            the innermost one: with strides 0 and 1, whole vectors are read
    k (summed)      3       1, 5
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anyrnn.compiler.node import Builder, Node, contiguous, offsets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

#: The indices of an argument, sizes, first number read, strides, first number written, strides.
Box = tuple[int, tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...]]


@dataclass(frozen=True)
class Axis:
    """A dimension of a loop.

    Attributes:
        size: How often it runs.
        strides: How far it goes in each operand at a time.
    """

    size: int
    strides: tuple[int, ...]

    @property
    def is_lane(self) -> bool:
        """Whether whole vectors can be read along it: a number of an operand after the other, or always the same."""
        return 1 in self.strides and {0, 1}.issuperset(self.strides)

    def before(self, inner: Axis) -> Axis | None:
        """This dimension and one inside of it as one; None if they are not one in every operand."""
        if all(a == b * inner.size for a, b in zip(self.strides, inner.strides, strict=True)):
            return Axis(self.size * inner.size, inner.strides)
        return None


def axes_of(sizes: Sequence[int], *strides: Sequence[int]) -> list[Axis]:
    """Dimensions from their sizes, and for each operand its strides."""
    return [Axis(n, each) for n, each in zip(sizes, zip(*strides, strict=True), strict=True)]


def merged(axes: Iterable[Axis]) -> list[Axis]:
    """The same loops with as few dimensions as can be."""
    result: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        both = result[-1].before(axis) if result else None
        if both is not None:
            result[-1] = both
        else:
            result.append(axis)
    return result


def arranged(builder: Builder, args: Sequence[Node], boxes: Iterable[Box], width: int) -> Node:
    """Numbers of some values moved to where boxes say."""
    used: dict[int, int] = {}  # arguments, in the order in which a text names them
    simple: list[Box] = []
    for which, sizes, first, strides, to, to_strides in boxes:
        k = used.setdefault(which, len(used))
        axes = merged(axes_of(sizes, strides, to_strides))
        read, written = zip(*(a.strides for a in axes), strict=True) if axes else ((), ())
        simple.append((k, tuple(a.size for a in axes), first, tuple(read), to, tuple(written)))
    if len(simple) == 1:
        ((_, sizes, first, strides, _, to_strides),) = simple
        if math.prod(sizes) == width and strides == to_strides == (1,) * (width > 1):
            return builder.part(args[next(iter(used))], first, width)
    return builder.strided("arrange", tuple(args[k] for k in used or [0]), width, tuple(simple))


def contraction(
    builder: Builder, operands: Sequence[tuple[Node, int]], result: Sequence[Axis], summed: Sequence[Axis]
) -> Node:
    """Sums of products of one operand or two, each with the first number of it that is read.

    Args:
        builder: Makes the node.
        operands: The operands.
        result: The dimensions of the result, as they lie in memory.
        summed: The dimensions that are summed.
    """
    result = merged(result)
    summed = merged(sorted(summed, key=lambda axis: -max(map(abs, axis.strides))))
    if not summed and len(operands) == 1:
        ((node, first),) = operands
        sizes, strides = tuple(a.size for a in result), tuple(a.strides[0] for a in result)
        width = math.prod(sizes)
        return arranged(builder, [node], [(0, sizes, first, strides, 0, contiguous(sizes))], width)
    if result and not result[-1].is_lane:
        operands, result, summed = _with_lanes(builder, operands, result, summed)
    reads = tuple(
        (first, tuple(axis.strides[k] for axis in (*result, *summed))) for k, (_, first) in enumerate(operands)
    )
    sizes = tuple(a.size for a in result)
    attr = (sizes, tuple(a.size for a in summed), *reads)
    return builder.strided("contract", tuple(node for node, _ in operands), math.prod(sizes), attr)


def is_fixed(node: Node) -> bool:
    """Whether a value is the same for all rows and steps, and moved about at most: it is arranged once a call."""
    return node.op == "vector" or (node.op == "arrange" and all(map(is_fixed, node.args)))


def _with_lanes(
    builder: Builder, operands: Sequence[tuple[Node, int]], result: list[Axis], summed: list[Axis]
) -> tuple[list[tuple[Node, int]], list[Axis], list[Axis]]:
    """Rearrange operands so that whole vectors are read along the last dimension of the result, if that pays.

    It does for an operand that is fixed, and where no summed dimension could be read so instead.
    """
    operands = list(operands)
    off = [k for k, stride in enumerate(result[-1].strides) if stride not in (0, 1)]
    free = all(is_fixed(operands[k][0]) for k in off)
    if not free and any(axis.is_lane for axis in summed):
        return operands, result, summed
    for k in off:
        node, first = operands[k]
        axes = [axis for axis in (*summed, *result) if axis.strides[k]]
        sizes, strides = tuple(a.size for a in axes), tuple(a.strides[k] for a in axes)
        dense = dict(zip(map(id, axes), contiguous(sizes), strict=True))
        new = arranged(builder, [node], [(0, sizes, first, strides, 0, contiguous(sizes))], math.prod(sizes))
        operands[k] = new, 0

        def moved(axis: Axis, k: int = k, dense: dict[int, int] = dense) -> Axis:
            return Axis(axis.size, (*axis.strides[:k], dense.get(id(axis), 0), *axis.strides[k + 1 :]))

        result, summed = [*map(moved, result)], [*map(moved, summed)]
    return operands, result, summed


# ---- Derivatives -----------------------------------------------------------------------------------------------------


def adjoint(builder: Builder, user: Node, k: int, gradient: Node, args: Sequence[Node]) -> Node:
    """The gradient of the k-th argument of a contraction, given that of its result and all arguments."""
    sizes, summed, *reads = user.attr
    of_gradient = (*contiguous(sizes), *[0] * len(summed))
    others = [n for n in range(len(args)) if n != k]
    columns = [of_gradient, *(reads[n][1] for n in others)]
    first, strides = reads[k]
    axes = axes_of((*sizes, *summed), *columns)
    operands = [(gradient, 0), *((args[n], reads[n][0]) for n in others)]
    return _scattered(builder, operands, axes, first, strides, args[k].width)


def _scattered(
    builder: Builder, operands: list[tuple[Node, int]], axes: list[Axis], first: int, strides: Sequence[int], width: int
) -> Node:
    """A contraction whose result is written by strides into zeros, or added up where these overlap."""
    own = sorted((k for k, s in enumerate(strides) if s), key=lambda k: -abs(strides[k]))
    summed = [axes[k] for k in range(len(axes)) if k not in own]
    sizes, to = tuple(axes[k].size for k in own), tuple(strides[k] for k in own)
    if len(np.unique(offsets(sizes, first, to))) == math.prod(sizes):
        dense = contraction(builder, operands, [axes[k] for k in own], summed)
        return arranged(builder, [dense], [(0, sizes, 0, contiguous(sizes), first, to)], width)
    shortest = min(own, key=lambda k: axes[k].size)  # along which the result is taken apart
    rest = [k for k in range(len(axes)) if k != shortest]
    parts = [
        _scattered(
            builder,
            [(node, at + n * stride) for (node, at), stride in zip(operands, axes[shortest].strides, strict=True)],
            [axes[k] for k in rest], first + n * strides[shortest], [strides[k] for k in rest], width,
        )
        for n in range(axes[shortest].size)
    ]  # fmt: skip
    return _added(builder, parts)


def moved_back(builder: Builder, moves: Iterable[tuple[Node, Box]], width: int) -> Node:
    """The gradient of a value that boxes have read: from the gradient of what each has written."""
    args: dict[Node, int] = {}
    layers: list[tuple[NDArray[np.bool_], list[Box]]] = []  # of boxes that do not overlap
    parts = []
    for gradient, (_, sizes, first, strides, to, to_strides) in moves:
        places = offsets(sizes, first, strides)
        if len(np.unique(places)) < places.size:
            axes = [Axis(n, (stride,)) for n, stride in zip(sizes, to_strides, strict=True)]
            parts.append(_scattered(builder, [(gradient, to)], axes, first, strides, width))
            continue
        layer = next((each for each in layers if not each[0][places].any()), None)
        if layer is None:
            layers.append(layer := (np.zeros(width, dtype=bool), []))
        layer[0][places] = True
        layer[1].append((args.setdefault(gradient, len(args)), sizes, to, to_strides, first, strides))
    parts += [arranged(builder, list(args), boxes, width) for _, boxes in layers]
    return _added(builder, parts)


def _added(builder: Builder, parts: Sequence[Node]) -> Node:
    total = parts[0]
    for part in parts[1:]:
        total = builder.pointwise("add", total, part)
    return total


# ---- From the places of numbers to boxes -----------------------------------------------------------------------------


def strides_of(codes: NDArray[np.int64]) -> tuple[int, ...] | None:
    """The strides of places, which may be of any number of dimensions; None if they are no box of one node."""
    steps = tuple(
        int(codes.take(1, axis).flat[0] - codes.flat[0]) if size > 1 else 0 for axis, size in enumerate(codes.shape)
    )
    if max(map(abs, steps), default=0) >> 31 or not (codes == offsets(codes.shape, int(codes.flat[0]), steps)).all():
        return None
    return steps


def boxes_of(
    codes: NDArray[np.int64], node_of: int, to: int = 0, to_strides: tuple[int, ...] | None = None
) -> list[tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]]:
    """Take codes apart into boxes: first code, sizes, strides, first number of the result and strides there.

    Args:
        codes: Numbers of nodes; those of a node are equal but for the lowest bits.
        node_of: How many these are.
        to: Where the first number goes to.
        to_strides: Where others go to; by default they go side by side.
    """
    to_strides = contiguous(codes.shape) if to_strides is None else to_strides
    strides = strides_of(codes)
    if strides is not None and (codes >> node_of == codes.flat[0] >> node_of).all():
        return [(int(codes.flat[0]), codes.shape, strides, to, to_strides)]
    axis, at, period = _break(codes, node_of)
    step = to_strides[axis]
    if period:
        shape = (*codes.shape[:axis], codes.shape[axis] // at, at, *codes.shape[axis + 1 :])
        steps = (*to_strides[:axis], at * step, step, *to_strides[axis + 1 :])
        return boxes_of(codes.reshape(shape), node_of, to, steps)
    low, high = np.split(codes, [at], axis)
    return boxes_of(low, node_of, to, to_strides) + boxes_of(high, node_of, to + at * step, to_strides)


_TRIED = 8  # ends of segments at which a pattern may begin again


def _break(codes: NDArray[np.int64], node_of: int) -> tuple[int, int, bool]:
    """Where codes are to be taken apart: the axis, the place, and whether what is before it repeats."""
    best: tuple[int, int, int] | None = None
    for axis, size in enumerate(codes.shape):
        if size == 1:
            continue
        rows = np.moveaxis(codes, axis, 0).reshape(size, -1)
        steps = np.diff(rows, axis=0)
        other_node = (np.diff(rows >> node_of, axis=0) != 0).any(1)
        ends = np.flatnonzero(other_node) + 1
        if not len(ends):
            ends = np.flatnonzero((steps[1:] != steps[:-1]).any(1)) + 2
        if not len(ends):
            continue
        for end in map(int, itertools.islice(ends, _TRIED)):
            if size % end == 0 and 1 < end < size:
                again = rows.reshape(size // end, end, -1)
                if size // end == 2 or (np.diff(again, n=2, axis=0) == 0).all():
                    within = (np.diff(again >> node_of, axis=0) == 0).all()
                    if within:
                        return axis, end, True
        if best is None or len(ends) < best[0]:
            best = len(ends), axis, int(ends[0])
    if best is None:  # each dimension is even by itself, but not with the others
        axis = int(np.argmax(codes.shape))
        return axis, codes.shape[axis] // 2, False
    return best[1], best[2], False
