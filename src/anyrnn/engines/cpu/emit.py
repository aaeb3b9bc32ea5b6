"""Code generation: from a schedule to LLVM IR, the loop over time and in it those over groups, columns and rows.

The machine code has two entries ``void f(int64_t* slots, int64_t part, int64_t parts)``: `pack` copies the matrices
into the order in which the tiles read them, `run` computes all steps for the rows of its part. A third one,
``void serial(int64_t* slots)``, is both in one part. `slots` holds numbers and addresses, in the order of `Slots`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyrnn.compiler.ops import REDUCTIONS
from anyrnn.engines.cpu.emit_copy import declared_copy
from anyrnn.engines.cpu.loops import StridedLoops
from anyrnn.engines.cpu.products import Block, Products, strides_of
from anyrnn.engines.cpu.schedule import SCRATCH, UNIFORM, Group
from anyrnn.engines.cpu.slots import STATE_SLOTS, packed_of
from anyrnn.engines.cpu.tile import Tile
from anyrnn.engines.cpu.writer import I64, PTR, LoopWriter
from anyrnn.runtime.layout import STEP_TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llvmlite import ir

    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.engines.cpu.schedule import ArrayKey, Schedule
    from anyrnn.runtime.kernel import Precision

_SECOND_CACHE = 1 << 19  # bytes of it that the values of some rows may take
_FEW = 8  # rows for which groups without products are computed one after the other: values stay in the first cache


def emit(schedule: Schedule, machine: Machine, precision: Precision) -> str:
    """Return the IR of a schedule for a machine."""
    return str(_Emitter(schedule, machine, precision).module)


#: The slots from which `run` has the address of an array of a kind (`ArrayKey`); else one that is called as the kind.
_SLOTS_OF: Mapping[str, tuple[str, ...]] = {
    "state": STATE_SLOTS, "previous": STATE_SLOTS, "current": ("sequence",), "total": ()
}  # fmt: skip


@dataclass(frozen=True)
class _Addresses:
    """What the entry `run` has read from its slots: the address of each array, and of each packed matrix."""

    arrays: dict[ArrayKey, ir.Value]
    packed: list[ir.Value]


class _Emitter(LoopWriter):
    def __init__(self, schedule: Schedule, machine: Machine, precision: Precision) -> None:
        super().__init__(schedule, machine, precision)
        self.packed = packed_of(schedule)
        self._emit_pack()
        self.groups = [self._emit_group(k, g) for k, g in enumerate(schedule.groups)]  # functions and their arrays
        self.copies = self._emit_copies() if schedule.copies else None
        self._emit_run()
        self._emit_serial()

    def _arrays_of(self, group: Group) -> list[ArrayKey]:
        """The arrays that a group reads or writes."""
        inside = set(group.nodes)
        args = [a for n in group.nodes if n.op not in REDUCTIONS for a in n.args]
        read = [a for a in args if a.is_leaf or (a.op != "constant" and a not in inside)]
        arrays = dict.fromkeys(self.array_of(a)[0] for a in read)
        used = [s[0] for s in group.stores] + [a for p in group.partial for a in p[1]] + [t[0] for t in group.totals]
        arrays |= dict.fromkeys(self.array_of(n)[0] for n in used if n.op != "constant" and n not in inside)
        arrays |= dict.fromkeys(location.array for _, location in group.stores)
        arrays |= dict.fromkeys(self.array_of(a)[0] for a, _ in group.operands)
        if group.partial or any(n.op in REDUCTIONS for n in group.nodes):
            arrays[SCRATCH] = None
        if group.totals:
            arrays["total", ""] = None
        return list(arrays)

    # ---- Entry: pack ----

    def _emit_pack(self) -> None:
        """Copy each product's columns of each matrix; of a transposed matrix, squares of numbers at a time."""
        function, b = self.function("pack", [PTR, I64, I64])
        slots, part, parts = function.args
        groups = [group for group in self.schedule.groups for _ in group.operands]
        copy = declared_copy(self.module) if groups else None
        for number, (packed, group) in enumerate(zip(self.packed, groups, strict=True)):
            target = self.pointer(b, slots, "packed", str(number))
            lines = -(-packed.width // self.line)
            share = [b.sdiv(b.mul(p, I64(lines)), parts) for p in (part, b.add(part, I64(1)))]
            per_line, per_row, per_product = strides_of(self, group, packed.rows, len(packed.sources))
            for k, (matrix, row, col, transposed) in enumerate(packed.sources):
                strides = [self.slot(b, slots, f"{kind}_stride", matrix) for kind in ("row", "column")]
                down, along = reversed(strides) if transposed else strides
                start = b.add(b.mul(I64(row), down), b.mul(I64(col), along))
                base = self.at(b, self.pointer(b, slots, "matrix", matrix), start)
                sizes = [I64(n) for n in (packed.rows, packed.width, per_line, per_row)]
                b.call(copy, [base, self.at(b, target, k * per_product), down, along, *sizes, *share])
        if self.schedule.uniform:
            with b.if_then(b.icmp_signed("==", part, I64(0))):
                self._emit_uniform(b, slots)
        b.ret_void()

    def _emit_uniform(self, b: ir.IRBuilder, slots: ir.Value) -> None:
        """Arrange what is the same for all rows."""
        bases = {UNIFORM: self.pointer(b, slots, *UNIFORM)}
        for node in self.schedule.uniform:
            arrays = [self.array_of(arg)[0] for arg in node.args]
            bases |= {array: self.pointer(b, slots, *array) for array in arrays if array not in bases}
            group = Group(0, node.width, strided=node)
            StridedLoops(self, group, bases).emit_once(b, self.schedule.locations[node].first)

    # ---- Entry: run ----

    def _emit_run(self) -> None:
        """The loop over time, for the rows of a part: those that have a step before, then those that begin."""
        function, b = self.function("run", [PTR, I64, I64])
        slots, part, _ = function.args
        bounds = self.pointer(b, slots, "bounds")
        low, high = self.element(b, bounds, part), self.element(b, bounds, b.add(part, I64(1)))
        tables = {kind: self.pointer(b, slots, kind) for kind in STEP_TABLES}
        total = self.at(b, self.pointer(b, slots, "total"), b.mul(part, I64(self.schedule.total_width)))
        arrays: dict[ArrayKey, ir.Value] = {("total", ""): total, ("order", ""): self.pointer(b, slots, "order")}
        for kind, name in (array for _, arguments in self.groups for array in arguments):
            for each in _SLOTS_OF.get(kind, (kind,)):
                arrays[each, name] = self.pointer(b, slots, each, name)
        packed = [self.pointer(b, slots, "packed", str(k)) for k in range(len(self.packed))]
        addresses = _Addresses(arrays, packed)
        with self.loop(b, I64(0), self.slot(b, slots, "steps"), 1) as step:
            at = {kind: self.element(b, table, step.index) for kind, table in tables.items()}
            stop = self.least(b, high, at["rows"])
            old_stop = self.least(b, stop, at["continued"])
            new_start = b.select(b.icmp_signed(">", low, at["continued"]), low, at["continued"])
            for start, end, begins in ((low, old_stop, False), (new_start, stop, True)):
                with b.if_then(b.icmp_signed("<", start, end)):
                    self._call_groups(b, addresses, at, start, end, begins)
        b.ret_void()

    def _emit_serial(self) -> None:
        """Everything in one part: a single thread needs a single call."""
        function, b = self.function("serial", [PTR])
        for name in ("pack", "run"):
            b.call(self.module.get_global(name), [function.args[0], I64(0), I64(1)])
        b.ret_void()

    def _call_groups(
        self, b: ir.IRBuilder, addresses: _Addresses, at: Mapping[str, ir.Value], start: ir.Value, end: ir.Value,
        begins: bool,
    ) -> None:  # fmt: skip
        """Call the functions of all groups for some rows of a step.

        `at` holds the step's entries of the tables of a `Layout`; rows that begin read the initial states.
        """

        def base(array: ArrayKey) -> ir.Value:
            kind, name = array
            if kind in ("state", "previous"):
                if begins:
                    return addresses.arrays["initial", name]
                return self.at(b, addresses.arrays["sequence", name], b.mul(at["before"], I64(self.stride(array))))
            if kind == "current":
                array = ("sequence", name)
            if kind in ("stream", "output", "sequence", "current"):
                first = at["padded" if self.is_padded(array) else "packed"]
                return self.at(b, addresses.arrays[array], b.mul(first, I64(self.stride(array))))
            return addresses.arrays[array]

        order, packed = addresses.arrays["order", ""], iter(addresses.packed)
        pairs = zip(self.groups, self.schedule.groups, strict=True)
        for with_products, neighbours in itertools.groupby(pairs, lambda pair: bool(pair[1].dots)):
            groups = []
            calls = []
            for (function, arrays), group in neighbours:
                groups.append(group)
                calls.append((function, [order, *itertools.islice(packed, len(group.operands)), *map(base, arrays)]))
            if with_products or len(calls) == 1:
                for function, args in calls:
                    b.call(function, [start, end, *args])
                continue
            few = self._rows_at_once(groups)
            with self.loop(b, start, end, few) as rows:
                stop = self.least(b, b.add(rows.index, I64(few)), end)
                for function, args in calls:
                    b.call(function, [rows.index, stop, *args])
        if self.copies is not None:
            states = [addresses.arrays.get(("carry", name)) for name, _ in self.schedule.copies]
            b.call(self.copies, [start, end, order, addresses.arrays[SCRATCH], *states])

    def _rows_at_once(self, groups: Sequence[Group]) -> int:
        """For how many rows groups are computed before the next rows: fewer, where these are long."""
        if all(group.strided is None for group in groups):
            return _FEW
        row = sum(n.width for group in groups for n in group.nodes) * self.bytes
        return max(1, min(_FEW, _SECOND_CACHE // row))

    def _emit_copies(self) -> ir.Function:
        """A function that copies new states from scratch, which could not be written at once."""
        function, b = self.function("copies", [I64, I64, PTR, PTR, *[PTR] * len(self.schedule.copies)])
        function.linkage = "internal"
        start, end, order, scratch, *states = function.args
        with self.loop(b, start, end, 1) as row:
            for (name, first), state in zip(self.schedule.copies, states, strict=True):
                width = self.program[name].width
                source = self.at(b, scratch, b.add(b.mul(row.index, I64(self.schedule.scratch)), I64(first)))
                target = self.at(b, state, b.mul(self.element(b, order, row.index), I64(width)))
                with self.loop(b, I64(0), I64(width), 1) as i:
                    b.store(b.load(self.at(b, source, i.index), typ=self.real), self.at(b, target, i.index))
        b.ret_void()
        return function

    # ---- Groups ----

    def _emit_group(self, number: int, group: Group) -> tuple[ir.Function, list[ArrayKey]]:
        """The function of a group for some rows, and the arrays that are its arguments."""
        arrays = self._arrays_of(group)
        count = len(group.operands)
        types = [I64, I64, *[PTR] * (1 + count + len(arrays))]
        function, b = self.function(f"group{number}", types)
        function.linkage = "internal"
        for arg in function.args[2:]:
            arg.add_attribute("noalias")
        start, end, order, *pointers = function.args
        bases = dict(zip(arrays, pointers[count:], strict=True)) | {("order", ""): order}
        if group.strided is not None:
            StridedLoops(self, group, bases).emit(b, start, end)
            b.ret_void()
            return function, arrays
        if group.dots:
            self._product_tiles(b, number, group, bases, (start, b.sub(end, start)), pointers[:count])
        else:
            Tile(self, group, bases).emit(b, Block(start, b.sub(end, start), I64(0), group.width))
        b.ret_void()
        return function, arrays

    def _product_tiles(
        self, b: ir.IRBuilder, number: int, group: Group, bases: Mapping[ArrayKey, ir.Value],
        rows: tuple[ir.Value, ir.Value], packed: list[ir.Value],
    ) -> None:  # fmt: skip
        """The loops over lines of columns, several at once, and over rows: tiles of pairs, then a last row."""
        start, count = rows
        products = Products(self, b, group, f"group{number}_products")
        rows_of = Tile(self, group, bases)
        epilogues: dict[tuple[int, int], ir.Function] = {}  # by columns and lines
        shapes = (1, products.lines_of_one), (products.rows, products.lines)
        pairs = b.sdiv(count, I64(2))
        with b.if_else(b.icmp_signed("==", count, I64(1))) as branches:
            for branch, (most, lines) in zip(branches, shapes, strict=True):
                with branch:
                    per_tile = max(1, most // 2)
                    tiles = b.sdiv(b.add(pairs, I64(per_tile - 1)), I64(per_tile))  # of nearly equal heights
                    several = I64(1) if most == 1 else b.add(tiles, b.srem(count, I64(2)))
                    for first, last, at_once, columns in self._edges(group.width, lines):
                        with self.loop(b, I64(first), I64(last), at_once) as line:
                            products.store_weight_addresses(b, packed, line.index)
                            column = b.mul(line.index, I64(self.line))
                            with self.loop(b, I64(0), several, 1) as t:
                                row, height = start, I64(1)
                                if most > 1:
                                    low = self._edge(b, t.index, tiles, pairs, count)
                                    high = self._edge(b, b.add(t.index, I64(1)), tiles, pairs, count)
                                    row, height = b.add(start, low), b.sub(high, low)
                                block = Block(row, height, column, at_once * columns, at_once)
                                rows_of.store_row_addresses(b, products, block)
                                products.emit(b, block, most, t.index, tiles)
                                key = block.columns, block.lines
                                if key not in epilogues:
                                    name = f"group{number}_epilogue_{len(epilogues)}"
                                    epilogues[key] = self._epilogue(name, group, bases, products, *key)
                                b.call(epilogues[key], [row, height, column, products.sums, *bases.values()])

    def _epilogue(
        self, name: str, group: Group, bases: Mapping[ArrayKey, ir.Value], products: Products, columns: int, lines: int
    ) -> ir.Function:
        """The arithmetic on the products of a tile: one function for all tiles of so many columns, of any height."""
        function, b = self.function(name, [I64, I64, I64, PTR, *[PTR] * len(bases)])
        function.linkage = "internal"
        for arg in function.args[3:]:
            arg.add_attribute("noalias")
        row, height, column, sums, *pointers = function.args
        tile = Tile(self, group, dict(zip(bases, pointers, strict=True)))
        tile.emit(b, Block(row, height, column, columns, lines), products, sums)
        b.ret_void()
        return function

    def _edge(self, b: ir.IRBuilder, t: ir.Value, tiles: ir.Value, pairs: ir.Value, count: ir.Value) -> ir.Value:
        """The first row of a tile: the tiles before it have their shares of the pairs; the last row is by itself."""
        inside = b.mul(b.sdiv(b.mul(t, pairs), tiles), I64(2))
        return b.select(b.icmp_signed(">", t, tiles), count, inside)

    def _edges(self, width: int, at_once: int) -> list[tuple[int, int, int, int]]:
        """Ranges of lines: first, last, how many at once, and the columns of each."""
        whole = width // self.line
        several = whole - whole % at_once
        edges = [(0, several, at_once, self.line), (several, whole, 1, self.line)]
        edges += [(whole, whole + 1, 1, width % self.line)] if width % self.line else []
        return [edge for edge in edges if edge[0] < edge[1]]
