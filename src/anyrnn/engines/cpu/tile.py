"""The epilogue of a group's products: the arithmetic of a step for each row, a vector of units at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anyrnn.compiler.ops import REDUCTIONS
from anyrnn.engines.cpu.math import EMIT
from anyrnn.engines.cpu.schedule import SCRATCH, UNIFORM
from anyrnn.engines.cpu.writer import I32, I64

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llvmlite import ir

    from anyrnn.compiler.node import Node
    from anyrnn.engines.cpu.products import Block, Products
    from anyrnn.engines.cpu.schedule import ArrayKey, Group, Location
    from anyrnn.engines.cpu.writer import LoopWriter


class Tile:
    """Writes the arithmetic of a group, from its products to its stores; it stands at a row and a vector of units."""

    def __init__(self, writer: LoopWriter, group: Group, bases: Mapping[ArrayKey, ir.Value]) -> None:
        self.e, self.group, self.bases = writer, group, bases

    def store_row_addresses(self, b: ir.IRBuilder, products: Products, block: Block) -> None:
        """Put the addresses of the operands' rows into the table that the products read."""
        e = self.e
        with e.loop(b, I64(0), block.height, 1) as r:
            self._go_to(b, b.add(block.row, r.index), I64(0), None)
            for k, (operand, _) in enumerate(self.group.operands):
                array, first = e.array_of(operand)
                products.store_row_address(b, k, r.index, e.at(b, self._row_of(array), first))

    def emit(
        self, b: ir.IRBuilder, block: Block, products: Products | None = None, sums: ir.Value | None = None
    ) -> None:
        """Write the arithmetic of some rows and columns, on their products at `sums`, if the group has any."""
        lanes = self.e.lanes
        whole = block.columns // lanes
        if whole:
            with self.e.loop(b, I64(0), I64(whole), 1) as v:
                self._go_to(b, block.row, b.add(block.column, b.mul(v.index, I64(lanes))), None)
                self._emit_vector(block, products, sums, v.index)
        if block.columns % lanes:
            self._go_to(b, block.row, b.add(block.column, I64(whole * lanes)), self.e.mask(block.columns % lanes))
            self._emit_vector(block, products, sums, I64(whole))

    def _emit_vector(self, block: Block, products: Products | None, sums: ir.Value | None, vector: ir.Value) -> None:
        """Write the arithmetic of a vector of all rows."""
        e, b, group = self.e, self.b, self.group
        with e.loop(b, I64(0), block.height, 1, [e.constant(0.0)] * len(group.totals)) as r:
            self._go_to(b, b.add(block.row, r.index), self.unit, self.mask)
            values = {}
            if products is not None:
                at = e.at(b, sums, b.mul(b.add(b.mul(vector, I64(products.rows)), r.index), I64(e.lanes)))
                for k, dot in enumerate(group.dots):
                    values[dot] = e.load(b, e.at(b, at, products.offset(k, block.lines, 0, 0)), None)
            self._arithmetic(values)
            addends = [self._value(node, values) for node, _ in group.totals]
            r.values = [b.fadd(total, addend) for total, addend in zip(r.values, addends, strict=True)]
        for (_, at), value in zip(group.totals, r.results or [], strict=True):
            pointer = e.at(b, self.bases["total", ""], b.add(self.unit, I64(at)))
            self._store(b.fadd(self._load(pointer), value), pointer)

    def _go_to(self, b: ir.IRBuilder, row: ir.Value, unit: ir.Value, mask: ir.Value | None) -> None:
        """Stand at a row and a vector of units, of which the mask says which there are."""
        self.b, self.unit, self.mask = b, unit, mask
        self.sorted_row = row
        self.batch_row = self.e.element(b, self.bases["order", ""], row)

    def _row_of(self, array: ArrayKey) -> ir.Value:
        """The address of this row of an array."""
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
        stores = [(self._value(n, values), location, n) for n, location in self.group.stores]
        for value, location, node in stores:
            if node.is_mask:
                value = b.select(value, e.constant(1.0), e.constant(0.0))  # noqa: PLW2901
            self._store(value, self._address(location))

    def _load(self, pointer: ir.Value) -> ir.Value:
        if self.group.width == 1:
            return self.e.splat(self.b, self.b.load(pointer, typ=self.e.real))
        return self.e.load(self.b, pointer, self.mask)

    def _store(self, value: ir.Value, pointer: ir.Value) -> None:
        if self.group.width == 1:  # processors are slow to store, and to read again, what is under a mask
            self.b.store(self.b.extract_element(value, I32(0)), pointer)
        else:
            self.e.store(self.b, value, pointer, self.mask)

    def _address(self, location: Location) -> ir.Value:
        return self.e.at(self.b, self._row_of(location.array), self.b.add(self.unit, I64(location.first)))

    def _value(self, node: Node, values: dict[Node, ir.Value]) -> ir.Value:
        """A value at this row and vector of units: computed before, or loaded from its array."""
        if node in values:
            return values[node]
        e, b = self.e, self.b
        if node.op == "constant":
            return e.constant(node.attr[0])
        array, first = e.array_of(node)
        if array[0] == "vector" or array == UNIFORM:
            base = e.at(b, self.bases[array], first)
            if node.width == 1:
                return e.splat(b, b.load(base, typ=e.real))
            return e.load(b, e.at(b, base, self.unit), self.mask)
        row = e.at(b, self._row_of(array), first)
        value = e.splat(b, b.load(row, typ=e.real)) if node.width == 1 else self._load(e.at(b, row, self.unit))
        if node.is_mask:
            value = b.fcmp_unordered("!=", value, e.constant(0.0))
        values[node] = value
        return value

    def _compute(self, node: Node, values: dict[Node, ir.Value]) -> ir.Value:
        if node.op in REDUCTIONS:
            return self._reduce_lanes(node)
        return EMIT[node.op](self.b, *(self._value(a, values) for a in node.args))

    def _add_partial(self, reduction: Node, parts: list[ir.Value], first: bool) -> None:
        """Accumulate values in the lanes of a reduction; the first vector of the first group begins it."""
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
        lanes = e.load(b, pointer, None)
        if first:
            begins = b.icmp_signed("==", self.unit, I64(0))
            lanes = b.select(begins, neutral, lanes)
        e.store(b, combine(lanes, value), pointer, None)

    def _combine(self, reduction: Node) -> Callable[[ir.Value, ir.Value], ir.Value]:
        return partial(EMIT[REDUCTIONS[reduction.op].pairwise], self.b)

    def _reduce_lanes(self, reduction: Node) -> ir.Value:
        """The result of a reduction: its lanes, combined by halves."""
        e, b = self.e, self.b
        row = self._row_of(SCRATCH)
        value = e.load(b, e.at(b, row, e.schedule.partials[reduction]), None)
        return e.splat(b, e.lanes_combined(b, value, self._combine(reduction)))
