"""The arithmetic of a group on its products: what a step computes for each row, a vector of units at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn.compiler.ops import REDUCTIONS
from anyrnn.engines.cpu.math import EMIT
from anyrnn.engines.cpu.schedule import SCRATCH
from anyrnn.engines.cpu.writer import I32, I64

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyrnn.compiler.node import Node
    from anyrnn.engines.cpu.products import Products
    from anyrnn.engines.cpu.schedule import Group, Place
    from anyrnn.engines.cpu.writer import LoopWriter


class Tile:
    """The arithmetic of a group: a vector of units of one row at a time, from its products to what is stored."""

    def __init__(self, writer: LoopWriter, group: Group, bases: dict[tuple[str, str], ir.Value]) -> None:
        self.e, self.group, self.bases = writer, group, bases

    def find_rows(self, b: ir.IRBuilder, products: Products, row: ir.Value, height: ir.Value) -> None:
        """Tell where the rows of each operand are that a tile multiplies."""
        e = self.e
        with e.loop(b, I64(0), height, 1) as r:
            self._go_to(b, b.add(row, r.index), I64(0), None)
            for k, (operand, _) in enumerate(self.group.operands):
                array, first = e.array_of(operand)
                products.find_row(b, k, r.index, e.at(b, self._row_of(array), first))

    def emit(
        self, b: ir.IRBuilder, unit: ir.Value, columns: int, row: ir.Value, height: ir.Value,
        products: Products | None = None, lines: int = 0,
    ) -> None:  # fmt: skip
        """Write the arithmetic of some rows and columns.

        Args:
            b: Where to write.
            unit: The first column.
            columns: How many.
            row: The first row.
            height: How many.
            products: The products, if the group has any.
            lines: Of how many lines they are.
        """
        lanes = self.e.lanes
        whole = columns // lanes
        with self.e.loop(b, I64(0), I64(whole), 1) as v:
            self._go_to(b, row, b.add(unit, b.mul(v.index, I64(lanes))), None)
            self._emit_vector(row, height, products, lines, v.index)
        if columns % lanes:
            self._go_to(b, row, b.add(unit, I64(whole * lanes)), self.e.mask(columns % lanes))
            self._emit_vector(row, height, products, lines, I64(whole))

    def _emit_vector(
        self, row: ir.Value, height: ir.Value, products: Products | None, lines: int, vector: ir.Value
    ) -> None:
        """Write the arithmetic of a vector of all rows."""
        e, b, group = self.e, self.b, self.group
        with e.loop(b, I64(0), height, 1, [e.constant(0.0)] * len(group.totals)) as r:
            self._go_to(b, b.add(row, r.index), self.unit, self.mask)
            values = {}
            if products is not None:
                at = e.at(b, products.sums, b.mul(b.add(b.mul(vector, I64(products.rows)), r.index), I64(e.lanes)))
                for k, dot in enumerate(group.dots):
                    values[dot] = e.load(b, e.at(b, at, products.place(k, lines, 0, 0)), None)
            self._arithmetic(values)
            added = [self._value(node, values) for node, _ in group.totals]
            r.values = [b.fadd(total, value) for total, value in zip(r.values, added, strict=True)]
        for (_, at), value in zip(group.totals, r.results or [], strict=True):
            pointer = e.at(b, self.bases["total", ""], b.add(self.unit, I64(at)))
            self._store(b.fadd(self._load(pointer), value), pointer)

    def _go_to(self, b: ir.IRBuilder, row: ir.Value, unit: ir.Value, mask: ir.Value | None) -> None:
        self.b, self.unit, self.mask = b, unit, mask
        self.sorted_row = row
        self.batch_row = self.e.element(b, self.bases["order", ""], row)

    def _row_of(self, array: tuple[str, str]) -> ir.Value:
        row = self.batch_row if self.e.is_padded(array) else self.sorted_row
        return self.e.at(self.b, self.bases[array], self.b.mul(row, I64(self.e.stride(array))))

    def _arithmetic(self, values: dict[Node, ir.Value]) -> None:
        e, b = self.e, self.b
        for node in self.group.nodes:
            if node not in values:
                values[node] = self._compute(node, values)
        for reduction, parts, first in self.group.partial:
            self._add_partial(reduction, [self._value(p, values) for p in parts], first)
        for node, _ in self.group.totals:
            self._value(node, values)  # read before a new state is written over it
        stored = [(self._value(n, values), place, n) for n, place in self.group.stores]
        for value, place, node in stored:
            if node.is_mask:
                value = b.select(value, e.constant(1.0), e.constant(0.0))  # noqa: PLW2901
            self._store(value, self._address(place))

    def _load(self, pointer: ir.Value) -> ir.Value:
        if self.group.width == 1:
            return self.e.splat(self.b, self.b.load(pointer, typ=self.e.real))
        return self.e.load(self.b, pointer, self.mask)

    def _store(self, value: ir.Value, pointer: ir.Value) -> None:
        if self.group.width == 1:  # processors are slow to store, and to read again, what is under a mask
            self.b.store(self.b.extract_element(value, I32(0)), pointer)
        else:
            self.e.store(self.b, value, pointer, self.mask)

    def _address(self, place: Place) -> ir.Value:
        return self.e.at(self.b, self._row_of(place.array), self.b.add(self.unit, I64(place.first)))

    def _value(self, node: Node, values: dict[Node, ir.Value]) -> ir.Value:
        """A value of this tile: computed here, or read from memory."""
        if node in values:
            return values[node]
        e, b = self.e, self.b
        if node.op == "constant":
            return e.constant(node.attr[0])
        if node.op == "vector":
            base = e.at(b, self.bases["vector", node.attr[0]], node.attr[1])
            if node.width == 1:
                return e.splat(b, b.load(base, typ=e.real))
            return e.load(b, e.at(b, base, self.unit), self.mask)
        array, first = e.array_of(node)
        row = e.at(b, self._row_of(array), first)
        value = e.splat(b, b.load(row, typ=e.real)) if node.width == 1 else self._load(e.at(b, row, self.unit))
        if node.is_mask:
            value = b.fcmp_unordered("!=", value, e.constant(0.0))
        values[node] = value
        return value

    def _compute(self, node: Node, values: dict[Node, ir.Value]) -> ir.Value:
        if node.op in REDUCTIONS:
            return self._finish(node)
        return EMIT[node.op](self.b, *(self._value(a, values) for a in node.args))

    def _add_partial(self, reduction: Node, parts: list[ir.Value], first: bool) -> None:
        """Add to the lanes of a reduction; the first block of the first group begins it."""
        e, b = self.e, self.b
        combine = self._combine(reduction)
        neutral = e.constant(REDUCTIONS[reduction.op].empty)
        value = parts[0]
        for part in parts[1:]:
            value = combine(value, part)
        if self.mask is not None:
            value = b.select(self.mask, value, neutral)
        row = self._row_of(SCRATCH)
        pointer = e.at(b, row, e.schedule.partials[reduction])
        old = e.load(b, pointer, None)
        if first:
            begins = b.icmp_signed("==", self.unit, I64(0))
            old = b.select(begins, neutral, old)
        e.store(b, combine(old, value), pointer, None)

    def _combine(self, reduction: Node) -> Callable[[ir.Value, ir.Value], ir.Value]:
        return partial(EMIT[REDUCTIONS[reduction.op].pairwise], self.b)

    def _finish(self, reduction: Node) -> ir.Value:
        e, b = self.e, self.b
        row = self._row_of(SCRATCH)
        value = e.load(b, e.at(b, row, e.schedule.partials[reduction]), None)
        width = e.lanes
        while width > 1:  # halves onto each other
            width //= 2
            order = [k + width if k < width else k for k in range(e.lanes)]
            moved = b.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, e.lanes), order))
            value = self._combine(reduction)(value, moved)
        return e.splat(b, b.extract_element(value, I32(0)))
