"""Loops over inner dimensions, row by row: contractions, maxima and moved numbers (`STRIDED` in compiler/node.py).

A contraction runs in tiles of its result, accumulated in registers while the summed dimensions run: some numbers along
one dimension by some vectors along another one. Vectors are read either along the last dimension of the result, or, if
numbers lie side by side only along a summed one, along that; then a vector's lanes are added up in the end::

    A h     A (N, N), h (N, F)      result[n, f..] += A[n, m] h[m, f..]         n by vectors of f, while m runs
    M q     M (S, K), q (K)         result[s]      += M[s, k..] q[k..]          s, while vectors of k run

The gradient of a weight is summed over the rows of the batch as well: they are one more summed dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from anyrnn.compiler.node import contiguous, offsets
from anyrnn.compiler.ops import REDUCTIONS
from anyrnn.compiler.strided import Axis, axes_of, merged
from anyrnn.engines.cpu.math import EMIT
from anyrnn.engines.cpu.schedule import UNIFORM
from anyrnn.engines.cpu.writer import I32, I64

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyrnn.compiler.node import Node
    from anyrnn.engines.cpu.schedule import ArrayKey, Group
    from anyrnn.engines.cpu.writer import LoopWriter

_TALL = 8  # numbers of a tile along a dimension: each has an address
_MOST_BOXES = 16  # that are written as loops; of more, each number's place is in a table

_LAST, _SUMMED, _NONE = "along the result", "along a summed dimension", "none"


@dataclass(frozen=True)
class _Nest:
    """The loops of a contraction.

    Attributes:
        operands: What is read, each with its first number.
        outer: The dimensions of the result around the tiles; with the stride in the result as the last of the strides.
        tall, wide: Those of a tile.
        summed: The dimensions that are summed; if vectors are read along one, it is the last.
        lanes: Along what vectors are read.
        op: The reduction: "sum" or "max".
    """

    operands: Sequence[tuple[Node, int]]
    outer: Sequence[Axis]
    tall: Axis
    wide: Axis
    summed: Sequence[Axis]
    lanes: str
    op: str


class StridedLoops:
    """Writes the function of a group whose value is computed by loops."""

    def __init__(self, writer: LoopWriter, group: Group, bases: dict[ArrayKey, ir.Value]) -> None:
        self.e, self.group, self.bases = writer, group, bases
        assert group.strided is not None
        self.node: Node = group.strided

    def emit(self, b: ir.IRBuilder, start: ir.Value, end: ir.Value) -> None:
        """Write the loops for some rows: the value is stored where it belongs, and added to totals."""
        node, stores = self.node, [location for _, location in self.group.stores]
        nest = None if node.op == "arrange" else _nest_of(node, self.e.lanes)
        if stores:
            with self.e.loop(b, start, end, 1) as row:
                targets = [self._address(b, s.array, s.first, row.index) for s in stores]
                if nest is None:
                    self._arrange(b, targets[0], row.index)
                else:
                    self._sums(b, nest, targets[0], (row.index, None), add=False)
                for target in targets[1:]:
                    self._copy(b, targets[0], target, node.width)
        for _, at in self.group.totals:
            target = self.e.at(b, self.bases["total", ""], at)
            if nest is not None and nest.op == "sum":
                self._sums(b, nest, target, (start, end), add=True)
                continue
            with self.e.loop(b, start, end, 1) as row:
                source = self._address(b, stores[0].array, stores[0].first, row.index)
                self._copy(b, source, target, node.width, add=True)

    def emit_once(self, b: ir.IRBuilder, first: int) -> None:
        """Write the loops for numbers that are the same for all rows."""
        self._arrange(b, self.e.at(b, self.bases[UNIFORM], first), I64(0))

    def _address(self, b: ir.IRBuilder, array: ArrayKey, first: int, row: ir.Value) -> ir.Value:
        """The address of a number of a row of an array."""
        if array[0] == "vector" or array == UNIFORM:
            return self.e.at(b, self.bases[array], first)
        if self.e.is_padded(array):
            row = self.e.element(b, self.bases["order", ""], row)
        return self.e.at(b, self.bases[array], b.add(b.mul(row, I64(self.e.stride(array))), I64(first)))

    # ---- Contractions ----

    def _sums(
        self, b: ir.IRBuilder, nest: _Nest, target: ir.Value, rows: tuple[ir.Value, ir.Value | None], add: bool
    ) -> None:
        """Write a contraction for a row, or summed over a range of rows."""

        def around(axes: Sequence[Axis], at: list[ir.Value]) -> None:
            if axes:
                with self.e.loop(b, I64(0), I64(axes[0].size), 1) as i:
                    around(axes[1:], _moved(b, at, axes[0], i.index))
                return
            for low, high, tall in self._tiles(nest.tall.size, self._tall(nest)):
                with self.e.loop(b, I64(low), I64(high), tall) as i:
                    there = _moved(b, at, nest.tall, i.index)
                    for left, right, wide in self._tiles(nest.wide.size, self._wide(nest)):
                        with self.e.loop(b, I64(left), I64(right), wide) as j:
                            self._tile(b, nest, _moved(b, there, nest.wide, j.index), (tall, wide), rows, target, add)

        around(nest.outer, [*(I64(first) for _, first in nest.operands), I64(0)])

    def _wide(self, nest: _Nest) -> int:
        """How many numbers a tile has along its second dimension."""
        if nest.lanes != _LAST:
            return min(4, nest.wide.size)
        most = 2 if nest.tall.size > 1 else 4
        return min(most, max(1, nest.wide.size // self.e.lanes)) * self.e.lanes

    def _tall(self, nest: _Nest) -> int:
        """How many numbers a tile has along its first dimension, so that all tiles are about equal."""
        wide = -(-self._wide(nest) // self.e.lanes) if nest.lanes == _LAST else self._wide(nest)
        most = max(1, min(_TALL, self.e.machine.registers * 3 // 4 // wide))
        return -(-nest.tall.size // -(-nest.tall.size // most))

    def _tiles(self, size: int, at_once: int) -> list[tuple[int, int, int]]:
        """Ranges of a dimension: first, last, and how many numbers at once."""
        whole = size - size % at_once
        return [each for each in ((0, whole, at_once), (whole, size, size - whole)) if each[0] < each[1]]

    def _tile(
        self, b: ir.IRBuilder, nest: _Nest, at: list[ir.Value], shape: tuple[int, int],
        rows: tuple[ir.Value, ir.Value | None], target: ir.Value, add: bool,
    ) -> None:  # fmt: skip
        """Write a tile: the places `at` are those of its first number in each operand, and in the result."""
        e, (tall, wide) = self.e, shape
        columns: list[tuple[int, ir.Value | None]]  # the first number of each, and the mask of a vector
        if nest.lanes == _LAST:
            columns = [(v, None if v + e.lanes <= wide else e.mask(wide - v)) for v in range(0, wide, e.lanes)]
        else:
            columns = [(v, None) for v in range(wide)]
        keys = [(i, v) for i in range(tall) for v, _ in columns]
        kind = e.real if nest.lanes == _NONE else e.vector
        empty = e.constant(REDUCTIONS[nest.op].empty) if kind is e.vector else ir.Constant(kind, 0.0)
        masks = dict(columns)
        alone = not nest.summed and rows[1] is None  # nothing is summed

        def inside(
            axes: Sequence[Axis], bases: list[ir.Value], at: list[ir.Value], sums: list[ir.Value]
        ) -> list[ir.Value]:
            if not axes:
                return self._products(b, nest, (bases, at), (keys, masks, None), None if alone else sums)
            axis, size = axes[0], axes[0].size
            if nest.lanes != _SUMMED or len(axes) > 1:
                with e.loop(b, I64(0), I64(size), 1, sums) as k:
                    k.values = inside(axes[1:], bases, _moved(b, at, axis, k.index), k.values)
                return k.results or []
            rest = size % e.lanes
            with e.loop(b, I64(0), I64(size - rest), e.lanes, sums) as k:
                moved = _moved(b, at, axis, k.index)
                k.values = self._products(b, nest, (bases, moved), (keys, masks, None), k.values)
            sums = k.results or []
            if rest:
                moved = _moved(b, at, axis, I64(size - rest))
                sums = self._products(b, nest, (bases, moved), (keys, masks, e.mask(rest)), sums)
            return sums

        def of_row(row: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            arrays = [(node, *e.array_of(node)) for node, _ in nest.operands]
            bases = [self._address(b, array, first, row) for _, array, first in arrays]
            return inside(nest.summed, bases, at, sums)

        first, last = rows
        if last is None:
            sums = of_row(first, [empty] * len(keys))
        else:
            with e.loop(b, first, last, 1, [empty] * len(keys)) as row:
                row.values = of_row(row.index, row.values)
            sums = row.results or []
        for (i, v), value in zip(keys, sums, strict=True):
            place = b.add(at[-1], I64(i * nest.tall.strides[-1] + v * nest.wide.strides[-1]))
            self._put(b, nest, value, e.at(b, target, place), masks[v], add)

    def _products(
        self, b: ir.IRBuilder, nest: _Nest, places: tuple[list[ir.Value], list[ir.Value]],
        tile: tuple[list[tuple[int, int]], dict[int, ir.Value | None], ir.Value | None], sums: list[ir.Value] | None,
    ) -> list[ir.Value]:  # fmt: skip
        """The products of a tile at one place of the summed dimensions, added to the sums if there are any."""
        e, (keys, masks, rest) = self.e, tile
        loaded: dict[tuple[int, int, int], ir.Value] = {}
        lane = nest.wide if nest.lanes == _LAST else nest.summed[-1] if nest.lanes == _SUMMED else None

        def number(p: int, i: int, v: int) -> ir.Value:
            down, along = nest.tall.strides[p], nest.wide.strides[p]
            key = p, i if down else 0, v if along else 0
            if key not in loaded:
                place = e.at(b, places[0][p], b.add(places[1][p], I64(i * down + v * along)))
                if lane is not None and lane.strides[p] == 1:
                    loaded[key] = e.load(b, place, rest if nest.lanes == _SUMMED else masks[v])
                else:
                    one = b.load(place, typ=e.real)
                    loaded[key] = one if lane is None else e.splat(b, one)
            return loaded[key]

        results = []
        combine = self._combine(nest, b)
        for n, (i, v) in enumerate(keys):
            value, *others = (number(p, i, v) for p in range(len(nest.operands)))
            for other in others:
                value = b.fmul(value, other, flags=("contract",))
            if rest is not None:
                value = b.select(rest, value, e.constant(REDUCTIONS[nest.op].empty))
            results.append(value if sums is None else combine(sums[n], value))
        return results

    def _combine(self, nest: _Nest, b: ir.IRBuilder) -> Callable[[ir.Value, ir.Value], ir.Value]:
        if nest.op == "sum":
            return lambda x, y: b.fadd(x, y, flags=("contract",))
        return partial(EMIT[REDUCTIONS[nest.op].pairwise], b)

    def _put(
        self, b: ir.IRBuilder, nest: _Nest, value: ir.Value, place: ir.Value, mask: ir.Value | None, add: bool
    ) -> None:
        """Store a result of a tile, or add it to what is there."""
        e = self.e
        if nest.lanes == _LAST:
            e.store(b, b.fadd(e.load(b, place, mask), value) if add else value, place, mask)
            return
        if nest.lanes == _SUMMED:
            value = e.lanes_combined(b, value, self._combine(nest, b))
        b.store(b.fadd(b.load(place, typ=e.real), value) if add else value, place)

    # ---- Numbers that are moved ----

    def _arrange(self, b: ir.IRBuilder, target: ir.Value, row: ir.Value) -> None:
        """Write the moves of a row's numbers."""
        node = self.node
        sources = [self._address(b, *self.e.array_of(arg), row) for arg in node.args]
        if sum(math.prod(sizes) for _, sizes, *_ in node.attr) < node.width:
            self._fill(b, target, node.width)
        if len(node.attr) > _MOST_BOXES:
            self._by_table(b, sources, target)
            return
        for k, sizes, first, strides, to, to_strides in node.attr:
            axes = axes_of(sizes, strides, to_strides)
            axes.sort(key=lambda axis: (axis.strides[1] == 1, -abs(axis.strides[1])))
            self._move(b, axes, [I64(first), I64(to)], sources[k], target)

    def _move(
        self, b: ir.IRBuilder, axes: Sequence[Axis], at: list[ir.Value], source: ir.Value, target: ir.Value
    ) -> None:
        e = self.e
        if not axes:
            b.store(b.load(e.at(b, source, at[0]), typ=e.real), e.at(b, target, at[1]))
            return
        axis = axes[0]
        if len(axes) > 1 or axis.strides not in ((1, 1), (0, 1)):
            with e.loop(b, I64(0), I64(axis.size), 1) as i:
                self._move(b, axes[1:], _moved(b, at, axis, i.index), source, target)
        elif axis.strides == (1, 1):
            self._copy(b, e.at(b, source, at[0]), e.at(b, target, at[1]), axis.size)
        else:
            self._fill(b, e.at(b, target, at[1]), axis.size, b.load(e.at(b, source, at[0]), typ=e.real))

    def _by_table(self, b: ir.IRBuilder, sources: list[ir.Value], target: ir.Value) -> None:
        """Write moves of which each number's places are in a table."""
        e = self.e
        for k, source in enumerate(sources):
            boxes = [box for which, *box in self.node.attr if which == k]
            read, written = (
                np.concatenate([offsets(sizes, *place).ravel() for sizes, *place in each])
                for each in (
                    [(sizes, first, strides) for sizes, first, strides, _, _ in boxes],
                    [(sizes, to, to_strides) for sizes, _, _, to, to_strides in boxes],
                )
            )
            tables = [e.table(each.tolist()) for each in (read, written)]
            with e.loop(b, I64(0), I64(len(read)), 1) as i:
                places = [b.sext(b.load(b.gep(t, [i.index], source_etype=I32), typ=I32), I64) for t in tables]
                b.store(b.load(e.at(b, source, places[0]), typ=e.real), e.at(b, target, places[1]))

    def _fill(self, b: ir.IRBuilder, target: ir.Value, count: int, number: ir.Value | None = None) -> None:
        """Write a number, or zero, so many times."""
        value = self.e.constant(0.0) if number is None else self.e.splat(b, number)
        self._vectors(b, count, lambda at, mask: self.e.store(b, value, self.e.at(b, target, at), mask))

    def _copy(self, b: ir.IRBuilder, source: ir.Value, target: ir.Value, count: int, add: bool = False) -> None:
        """Copy numbers that lie side by side, or add them to others."""
        e = self.e

        def vector(at: ir.Value, mask: ir.Value | None) -> None:
            value, place = e.load(b, e.at(b, source, at), mask), e.at(b, target, at)
            e.store(b, b.fadd(e.load(b, place, mask), value) if add else value, place, mask)

        self._vectors(b, count, vector)

    def _vectors(self, b: ir.IRBuilder, count: int, write: Callable[[ir.Value, ir.Value | None], None]) -> None:
        whole = count - count % self.e.lanes
        if whole:
            with self.e.loop(b, I64(0), I64(whole), self.e.lanes) as i:
                write(i.index, None)
        if count % self.e.lanes:
            write(I64(whole), self.e.mask(count % self.e.lanes))


def _moved(b: ir.IRBuilder, at: Sequence[ir.Value], axis: Axis, index: ir.Value) -> list[ir.Value]:
    """Places further along a dimension."""
    return [b.add(place, b.mul(index, I64(stride))) if stride else place
            for place, stride in zip(at, axis.strides, strict=True)]  # fmt: skip


def _nest_of(node: Node, lanes: int) -> _Nest:
    """How a contraction is to run."""
    if node.op == "largest":
        (outer, middle, inner), reads = node.attr, [(0, (node.attr[1] * node.attr[2], 1, node.attr[2]))]
        sizes, sums, op = (outer, inner), (middle,), "max"
    else:
        (sizes, sums, *reads), op = node.attr, "sum"
    operands = [(arg, first) for arg, (first, _) in zip(node.args, reads, strict=True)]
    columns: list[Any] = [*(strides for _, strides in reads), (*contiguous(sizes), *[0] * len(sums))]
    axes = axes_of((*sizes, *sums), *columns)
    result, summed = merged(axes[: len(sizes)]), [a for a in axes[len(sizes) :] if a.size > 1]
    inputs = [Axis(a.size, a.strides[:-1]) for a in result]
    along = [k for k, a in enumerate(summed) if Axis(a.size, a.strides[:-1]).is_lane]
    best = max(along, key=lambda k: summed[k].size, default=None)
    last = bool(inputs) and inputs[-1].is_lane
    if last and (best is None or min(result[-1].size, lanes) >= min(summed[best].size, lanes)):
        kind, wide, rest = _LAST, result[-1], result[:-1]
    else:
        kind = _NONE if best is None else _SUMMED
        if best is not None:
            summed = [a for a in summed if a is not summed[best]] + [summed[best]]
        wide, rest = _taken(result, len(columns))
    tall, rest = _taken(rest, len(columns))
    return _Nest(operands, rest, tall, wide, summed, kind, op)


def _taken(axes: list[Axis], count: int) -> tuple[Axis, list[Axis]]:
    """The dimension along which a tile reads operands the least often, and the others."""
    if not axes:
        return Axis(1, (0,) * count), []
    best = max(axes, key=lambda axis: (0 in axis.strides[:-1], axis.size))
    return best, [axis for axis in axes if axis is not best]
