"""The tile: some rows by some blocks of units, whose products stay in registers until they are done."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn.engines.cpu.math import FUNCTIONS
from anyrnn.engines.cpu.writer import I32, I64
from anyrnn.program import MASKS, REDUCTIONS, Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyrnn.engines.cpu.schedule import Group, Place
    from anyrnn.engines.cpu.writer import LoopWriter

_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


class Tile:
    """R rows by U blocks of units: products in registers, then the arithmetic on them, then the stores."""

    def __init__(
        self, writer: LoopWriter, b: ir.IRBuilder, group: Group, row: ir.Value, rows: int, block: ir.Value, blocks: int,
        mask: ir.Value | None, packed: dict[Node, ir.Value], bases: dict[tuple[str, int], ir.Value],
    ) -> None:  # fmt: skip
        self.e, self.b, self.group = writer, b, group
        self.rows, self.block, self.blocks = rows, block, blocks
        self.mask, self.packed, self.bases = mask, packed, bases
        self.shared: dict[tuple[Node, int], ir.Value] = {}
        self.sorted_rows = [b.add(row, I64(r)) for r in range(rows)]
        self.batch_rows = [writer.element(b, bases["order", 0], r) for r in self.sorted_rows]

    def emit(self) -> None:
        """Write the tile."""
        sums = self._products()
        inside = set(self.group.nodes)
        totals: dict[tuple[int, int], ir.Value] = {}
        for u in range(self.blocks):
            for r in range(self.rows):
                values = {dot: sums[dot, r, u] for dot in self.group.dots}
                self._arithmetic(values, inside, r, u)
                for node, at in self.group.totals:
                    value = self._value(node, values, inside, r, u)
                    known = totals.get((at, u))
                    totals[at, u] = value if known is None else self.b.fadd(known, value)
        for (at, u), value in totals.items():
            pointer = self.e.at(self.b, self.bases["total", 0], self.b.add(self._unit(u), I64(at)))
            self._store(self.b.fadd(self._load(pointer), value), pointer)

    def _products(self) -> dict[tuple[Node, int, int], ir.Value]:
        e, b = self.e, self.b
        keys = [(dot, r, u) for dot in self.group.dots for r in range(self.rows) for u in range(self.blocks)]
        sums: dict[tuple[Node, int, int], ir.Value] = dict.fromkeys(keys, e.constant(0.0))
        for operand, users in self.group.operands:
            array, first = e.array_of(operand)
            stride = e.stride(array)
            rows = [e.at(b, self._row_of(array, r, stride), first) for r in range(self.rows)]
            size = operand.width * len(users) * e.lanes  # numbers of a block
            starts = [
                e.at(b, self.packed[operand], b.mul(b.add(self.block, I64(u)), I64(size))) for u in range(self.blocks)
            ]
            # A product that takes a value twice, with different parts of the matrix, has one sum.
            dots = dict.fromkeys(dot for dot, _ in users)
            mine = [(dot, r, u) for dot in dots for r in range(self.rows) for u in range(self.blocks)]
            with e.loop(b, I64(0), I64(operand.width), 1, [sums[key] for key in mine]) as k:
                at = b.mul(k.index, I64(len(users) * e.lanes))
                now = dict(zip(mine, k.values, strict=True))
                weights = {
                    (n, u): e.load(b, e.at(b, starts[u], b.add(at, I64(n * e.lanes))), None)
                    for n in range(len(users)) for u in range(self.blocks)
                }  # fmt: skip
                for r in range(self.rows):
                    x = e.splat(b, b.load(e.at(b, rows[r], k.index), typ=e.real))
                    for n, (dot, _) in enumerate(users):
                        for u in range(self.blocks):
                            product = b.fmul(x, weights[n, u], flags=("contract",))
                            now[dot, r, u] = b.fadd(now[dot, r, u], product, flags=("contract",))
                k.values = [now[key] for key in mine]
            sums.update(zip(mine, k.results or [], strict=True))
        return sums

    def _row_of(self, array: tuple[str, int], r: int, stride: int) -> ir.Value:
        rows = self.batch_rows if self.e.is_padded(array) else self.sorted_rows
        return self.e.at(self.b, self.bases[array], self.b.mul(rows[r], I64(stride)))

    def _unit(self, u: int) -> ir.Value:
        return self.b.mul(self.b.add(self.block, I64(u)), I64(self.e.lanes))

    def _arithmetic(self, values: dict[Node, ir.Value], inside: set[Node], r: int, u: int) -> None:
        e, b = self.e, self.b
        for node in self.group.nodes:
            if node not in values:
                values[node] = self._compute(node, values, inside, r, u)
        for reduction, parts, first in self.group.partial:
            self._add_partial(reduction, [self._value(p, values, inside, r, u) for p in parts], first, r, u)
        for node, _ in self.group.totals:
            self._value(node, values, inside, r, u)  # read before a new state is written over it
        stored = [(self._value(n, values, inside, r, u), place, n) for n, place in self.group.stores]
        for value, place, node in stored:
            if node.op in MASKS:
                value = b.select(value, e.constant(1.0), e.constant(0.0))  # noqa: PLW2901
            self._store(value, self._address(place, r, u))

    def _load(self, pointer: ir.Value) -> ir.Value:
        if self.group.width == 1:
            return self.e.splat(self.b, self.b.load(pointer, typ=self.e.real))
        return self.e.load(self.b, pointer, self.mask)

    def _store(self, value: ir.Value, pointer: ir.Value) -> None:
        if self.group.width == 1:  # processors are slow to store, and to read again, what is under a mask
            self.b.store(self.b.extract_element(value, I32(0)), pointer)
        else:
            self.e.store(self.b, value, pointer, self.mask)

    def _address(self, place: Place, r: int, u: int) -> ir.Value:
        row = self._row_of(place.array, r, self.e.stride(place.array))
        return self.e.at(self.b, row, self.b.add(self._unit(u), I64(place.first)))

    def _value(self, node: Node, values: dict[Node, ir.Value], inside: set[Node], r: int, u: int) -> ir.Value:
        """A value of this tile: computed here, or read from memory."""
        if node in values:
            return values[node]
        e, b = self.e, self.b
        if node.op == "constant":
            return e.constant(node.attr[0])
        if node.op == "vector":
            key = (node, u)
            if key not in self.shared:
                base = e.at(b, self.bases["vector", node.attr[0]], node.attr[1])
                if node.width == 1:
                    self.shared[key] = e.splat(b, b.load(base, typ=e.real))
                else:
                    self.shared[key] = e.load(b, e.at(b, base, self._unit(u)), self.mask)
            return self.shared[key]
        array, first = e.array_of(node)
        row = e.at(b, self._row_of(array, r, e.stride(array)), first)
        value = e.splat(b, b.load(row, typ=e.real)) if node.width == 1 else self._load(e.at(b, row, self._unit(u)))
        if node.op in MASKS:
            value = b.fcmp_unordered("!=", value, e.constant(0.0))
        values[node] = value
        return value

    def _compute(self, node: Node, values: dict[Node, ir.Value], inside: set[Node], r: int, u: int) -> ir.Value:
        _e, b = self.e, self.b
        if node.op in REDUCTIONS:
            return self._finish(node, r)
        args = [self._value(a, values, inside, r, u) for a in node.args]
        if node.op in _ARITHMETIC:
            return getattr(b, _ARITHMETIC[node.op])(*args, flags=("contract",))
        if node.op in _COMPARE:
            return b.fcmp_ordered(_COMPARE[node.op], *args)
        if node.op == "ne":
            return b.fcmp_unordered("!=", *args)
        if node.op in ("logical_and", "logical_or"):
            return (b.and_ if node.op == "logical_and" else b.or_)(*args)
        if node.op == "logical_not":
            return b.not_(args[0])
        if node.op == "where":
            return b.select(*args)
        if node.op in ("positive", "detach"):
            return args[0]
        return FUNCTIONS[node.op](b, *args)

    def _add_partial(self, reduction: Node, parts: list[ir.Value], first: bool, r: int, u: int) -> None:
        """Add to the lanes of a reduction; the first block of the first group begins it."""
        e, b = self.e, self.b
        combine = self._combine(reduction)
        neutral = e.constant(0.0 if reduction.op == "sum" else float("-inf"))
        value = parts[0]
        for part in parts[1:]:
            value = combine(value, part)
        if self.mask is not None:
            value = b.select(self.mask, value, neutral)
        row = self._row_of(("scratch", 0), r, e.schedule.scratch)
        pointer = e.at(b, row, e.schedule.partials[reduction])
        old = e.load(b, pointer, None)
        if first:
            begins = b.icmp_signed("==", b.add(self.block, I64(u)), I64(0))
            old = b.select(begins, neutral, old)
        e.store(b, combine(old, value), pointer, None)

    def _combine(self, reduction: Node) -> Callable[[ir.Value, ir.Value], ir.Value]:
        if reduction.op == "sum":
            return partial(self.b.fadd)
        return partial(FUNCTIONS["maximum"], self.b)

    def _finish(self, reduction: Node, r: int) -> ir.Value:
        e, b = self.e, self.b
        row = self._row_of(("scratch", 0), r, e.schedule.scratch)
        value = e.load(b, e.at(b, row, e.schedule.partials[reduction]), None)
        width = e.lanes
        while width > 1:  # halves onto each other
            width //= 2
            order = [k + width if k < width else k for k in range(e.lanes)]
            moved = b.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, e.lanes), order))
            value = self._combine(reduction)(value, moved)
        return e.splat(b, b.extract_element(value, I32(0)))
