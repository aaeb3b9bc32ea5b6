"""From a schedule to LLVM IR: the loop over time, the loops over units and rows, and the tile in registers.

The machine code has three entries, each ``void f(int64_t* slots, int64_t part, int64_t parts)``: `pack` copies the
matrices into the order in which the tiles read them, `run` computes all steps for the rows of its part. `slots` holds
numbers and addresses, in the order of `Slots`. Letters: R rows of a tile, U blocks of units of a tile.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn.engines.cpu.math import FUNCTIONS
from anyrnn.engines.cpu.slots import Packed, Slots, packed_of, slots_of
from anyrnn.program import MASKS, REDUCTIONS, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.engines.cpu.schedule import Group, Place, Schedule

I64, I32, I1 = ir.IntType(64), ir.IntType(32), ir.IntType(1)
PTR = ir.PointerType()

_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


@dataclass(frozen=True)
class Kernel:
    """The IR of a program and what its caller must provide."""

    ir: str
    slots: Slots
    packed: tuple[Packed, ...]
    schedule: Schedule


def emit(schedule: Schedule, machine: Machine, double: bool) -> Kernel:
    """Emit a schedule for a machine, in double or single precision."""
    return _Emitter(schedule, machine, double).kernel()


class _Emitter:
    def __init__(self, schedule: Schedule, machine: Machine, double: bool) -> None:
        self.schedule = schedule
        self.program = schedule.program
        self.machine = machine
        self.lanes = machine.vector_bytes // (8 if double else 4)
        self.real = ir.DoubleType() if double else ir.FloatType()
        self.bytes = 8 if double else 4
        self.vector = ir.VectorType(self.real, self.lanes)
        self.slots = slots_of(schedule)
        self.packed = packed_of(schedule)
        self.module = ir.Module("anyrnn")

    def kernel(self) -> Kernel:
        self._emit_pack()
        groups = [self._emit_group(k, g) for k, g in enumerate(self.schedule.groups)]
        copies = self._emit_copies() if self.schedule.copies else None
        self._emit_run(groups, copies)
        return Kernel(str(self.module), self.slots, self.packed, self.schedule)

    # ---- Arrays ----

    def _stride(self, array: tuple[str, int]) -> int:
        """How many numbers a row of an array has."""
        kind, k = array
        if kind in ("initial", "sequence", "carry", "state", "previous", "current"):
            return self.program.states[k]
        if kind == "scratch":
            return self.schedule.scratch
        return {"stream": self.program.streams, "output": self.schedule.output_widths, "vector": self.program.vectors}[
            kind
        ][k]

    def _array_of(self, node: Node) -> tuple[tuple[str, int], int]:
        """The array in which a leaf is, by the name of its base pointer, and its first number."""
        if node.is_leaf:
            kind = "carry" if node.op == "state" and self.schedule.in_place else node.op
            return (kind, node.attr[0]), node.attr[1]
        place = self.schedule.places[node]
        return place.array, place.first

    def _arrays_of(self, group: Group) -> list[tuple[str, int]]:
        """The arrays that a group reads or writes."""
        inside = set(group.nodes)
        args = [a for n in group.nodes if n.op not in REDUCTIONS for a in n.args]
        read = [a for a in args if a.is_leaf or (a.op != "constant" and a not in inside)]
        found = dict.fromkeys(self._array_of(a)[0] for a in read)
        used = [s[0] for s in group.stores] + [a for p in group.partial for a in p[1]] + [t[0] for t in group.totals]
        found |= dict.fromkeys(self._array_of(n)[0] for n in used if n.is_leaf)
        found |= dict.fromkeys(place.array for _, place in group.stores)
        found |= dict.fromkeys(self._array_of(a)[0] for a, _ in group.operands)
        if group.partial or any(n.op in REDUCTIONS for n in group.nodes):
            found[("scratch", 0)] = None
        if group.totals:
            found[("total", 0)] = None
        return list(found)

    # ---- Small things ----

    def _at(self, b: ir.IRBuilder, base: ir.Value, index: ir.Value | int) -> ir.Value:
        index = I64(index) if isinstance(index, int) else index
        return b.gep(base, [index], source_etype=self.real)

    def _slot(self, b: ir.IRBuilder, slots: ir.Value, kind: str, number: int = 0) -> ir.Value:
        return b.load(b.gep(slots, [I64(self.slots.index(kind, number))], source_etype=I64), typ=I64)

    def _pointer(self, b: ir.IRBuilder, slots: ir.Value, kind: str, number: int = 0) -> ir.Value:
        return b.inttoptr(self._slot(b, slots, kind, number), PTR)

    def _element(self, b: ir.IRBuilder, array: ir.Value, index: ir.Value) -> ir.Value:
        return b.load(b.gep(array, [index], source_etype=I64), typ=I64)

    def _splat(self, b: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
        one = b.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return b.shuffle_vector(one, ir.Constant(self.vector, ir.Undefined), zeros)

    def _constant(self, number: float) -> ir.Value:
        return ir.Constant(self.vector, [number] * self.lanes)

    def _intrinsic(self, name: str, result: ir.Type, args: Sequence[ir.Type]) -> ir.Function:
        known = self.module.globals.get(name)
        return known if known is not None else ir.Function(self.module, ir.FunctionType(result, args), name)

    def _suffix(self) -> str:
        return f"v{self.lanes}{'f64' if self.bytes == 8 else 'f32'}"

    def _load(self, b: ir.IRBuilder, pointer: ir.Value, mask: ir.Value | None) -> ir.Value:
        if mask is None:
            return b.load(pointer, align=self.bytes, typ=self.vector)
        types = [PTR, I32, mask.type, self.vector]
        function = self._intrinsic(f"llvm.masked.load.{self._suffix()}.p0", self.vector, types)
        return b.call(function, [pointer, I32(self.bytes), mask, self._constant(0.0)])

    def _store(self, b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
        if mask is None:
            b.store(value, pointer, align=self.bytes)
            return
        function = self._intrinsic(
            f"llvm.masked.store.{self._suffix()}.p0", ir.VoidType(), [self.vector, PTR, I32, mask.type]
        )
        b.call(function, [value, pointer, I32(self.bytes), mask])

    def _mask(self, width: int) -> ir.Value:
        return ir.Constant(ir.VectorType(I1, self.lanes), [int(k < width) for k in range(self.lanes)])

    @contextmanager
    def _loop(
        self, b: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int, carried: Sequence[ir.Value] = ()
    ) -> Iterator[_Loop]:
        """``for (i = start; i < stop; i += step)``, with values that change from turn to turn."""
        before = b.block
        body, after = b.append_basic_block("body"), b.append_basic_block("after")
        b.cbranch(b.icmp_signed("<", start, stop), body, after)
        b.position_at_end(body)
        index = b.phi(I64)
        index.add_incoming(start, before)
        phis = []
        for value in carried:
            phi = b.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        loop = _Loop(index, list(phis))
        yield loop
        following = b.add(index, I64(step))
        end = b.block
        index.add_incoming(following, end)
        for phi, value in zip(phis, loop.values, strict=True):
            phi.add_incoming(value, end)
        b.cbranch(b.icmp_signed("<", following, stop), body, after)
        b.position_at_end(after)
        results = []
        for first, value in zip(carried, loop.values, strict=True):
            phi = b.phi(value.type)
            phi.add_incoming(first, before)
            phi.add_incoming(value, end)
            results.append(phi)
        loop.results = results

    def _function(self, name: str, args: Sequence[ir.Type]) -> tuple[ir.Function, ir.IRBuilder]:
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), args), name)
        return function, ir.IRBuilder(function.append_basic_block())

    # ---- Entry: pack ----

    def _emit_pack(self) -> None:
        """Copy each product's columns of each matrix; of a transposed matrix, squares of numbers at a time."""
        copy = self._emit_copy()
        function, b = self._function("pack", [PTR, I64, I64])
        slots, part, parts = function.args
        for number, packed in enumerate(self.packed):
            target = self._pointer(b, slots, "packed", number)
            blocks = -(-packed.width // self.lanes)
            share = [b.sdiv(b.mul(p, I64(blocks)), parts) for p in (part, b.add(part, I64(1)))]
            for k, (matrix, row, col, transposed) in enumerate(packed.sources):
                strides = [self._slot(b, slots, f"{kind}_stride", matrix) for kind in ("row", "column")]
                down, along = reversed(strides) if transposed else strides
                start = b.add(b.mul(I64(row), down), b.mul(I64(col), along))
                base = self._at(b, self._pointer(b, slots, "matrix", matrix), start)
                first = self._at(b, target, k * self.lanes)
                sizes = [I64(packed.rows), I64(packed.width), I64(len(packed.sources) * self.lanes)]
                b.call(copy, [base, first, down, along, *sizes, *share])
        b.ret_void()

    def _emit_copy(self) -> ir.Function:
        """A function that copies blocks of columns of a matrix: (row, column) to [block][row][lane]."""
        function, b = self._function("copy", [PTR, PTR, *[I64] * 7])
        function.linkage = "internal"
        base, target, down, along, rows, width, step, first, last = function.args
        n = self.lanes
        with self._loop(b, first, last, 1) as block:
            column = b.mul(block.index, I64(n))
            source = self._at(b, base, b.mul(column, along))
            sink = self._at(b, target, b.mul(b.mul(block.index, rows), step))
            inside = b.sub(width, column)
            whole = b.icmp_signed(">=", inside, I64(n))
            vectors = b.and_(whole, b.icmp_signed("==", along, I64(1)))
            squares = b.and_(whole, b.icmp_signed("==", down, I64(1)))
            with b.if_else(vectors) as (near, far):
                with near, self._loop(b, I64(0), rows, 1) as row:
                    value = self._load(b, self._at(b, source, b.mul(row.index, down)), None)
                    self._store(b, value, self._at(b, sink, b.mul(row.index, step)), None)
                with far:
                    done = b.select(squares, b.sub(rows, b.srem(rows, I64(n))), I64(0))
                    with self._loop(b, I64(0), done, n) as row:
                        lines = [self._at(b, source, b.add(row.index, b.mul(I64(k), along))) for k in range(n)]
                        for k, value in enumerate(self._transposed(b, [self._load(b, x, None) for x in lines])):
                            self._store(b, value, self._at(b, sink, b.mul(b.add(row.index, I64(k)), step)), None)
                    with self._loop(b, done, rows, 1) as row, self._loop(b, I64(0), I64(n), 1) as lane:
                        there = b.icmp_signed("<", lane.index, inside)
                        at = b.add(b.mul(row.index, down), b.mul(b.select(there, lane.index, I64(0)), along))
                        value = b.select(
                            there, b.load(self._at(b, source, at), typ=self.real), ir.Constant(self.real, 0.0)
                        )
                        b.store(value, self._at(b, sink, b.add(b.mul(row.index, step), lane.index)))
        b.ret_void()
        return function

    def _transposed(self, b: ir.IRBuilder, lines: list[ir.Value]) -> list[ir.Value]:
        """Transpose a square of numbers in registers, swapping quarters of halves of halves."""
        n = self.lanes
        half = 1
        while half < n:
            for k in range(n):
                if not k & half:
                    low = [p if not p & half else n + p - half for p in range(n)]
                    high = [p + half if not p & half else n + p for p in range(n)]
                    pair = lines[k], lines[k + half]
                    for at, order in ((k, low), (k + half, high)):
                        lines[at] = b.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, n), order))
            half *= 2
        return lines

    # ---- Entry: run ----

    def _emit_run(self, groups: list[tuple[ir.Function, list[tuple[str, int]]]], copies: ir.Function | None) -> None:
        function, b = self._function("run", [PTR, I64, I64])
        slots, part, _ = function.args
        bounds = self._pointer(b, slots, "bounds")
        low, high = self._element(b, bounds, part), self._element(b, bounds, b.add(part, I64(1)))
        tables = {kind: self._pointer(b, slots, kind) for kind in ("rows", "offset", "joined", "before")}
        total = self._at(b, self._pointer(b, slots, "total"), b.mul(part, I64(self.schedule.total_width)))
        fixed: dict[tuple[str, int], ir.Value] = {("total", 0): total}
        for _, arrays in groups:
            for kind, k in arrays:
                if kind in ("state", "previous"):
                    fixed["initial", k] = self._pointer(b, slots, "initial", k)
                    fixed["sequence", k] = self._pointer(b, slots, "sequence", k)
                elif kind != "total":
                    kind = "sequence" if kind == "current" else kind  # noqa: PLW2901
                    fixed[kind, k] = self._pointer(b, slots, kind, k)
        packed = [self._pointer(b, slots, "packed", k) for k in range(len(self.packed))]
        with self._loop(b, I64(0), self._slot(b, slots, "steps"), 1) as step:
            at = {kind: self._element(b, table, step.index) for kind, table in tables.items()}
            stop = self._least(b, high, at["rows"])
            old_stop = self._least(b, stop, at["joined"])
            new_start = b.select(b.icmp_signed(">", low, at["joined"]), low, at["joined"])
            for start, end, fresh in ((low, old_stop, False), (new_start, stop, True)):
                with b.if_then(b.icmp_signed("<", start, end)):
                    self._call_groups(b, groups, copies, fixed, packed, at, start, end, fresh)
        b.ret_void()

    def _call_groups(
        self, b: ir.IRBuilder, groups: list[tuple[ir.Function, list[tuple[str, int]]]], copies: ir.Function | None,
        fixed: dict[tuple[str, int], ir.Value], packed: list[ir.Value], at: dict[str, ir.Value],
        start: ir.Value, end: ir.Value, fresh: bool,
    ) -> None:  # fmt: skip
        def base(array: tuple[str, int]) -> ir.Value:
            kind, k = array
            if kind in ("state", "previous"):
                if fresh:
                    return fixed["initial", k]
                return self._at(b, fixed["sequence", k], b.mul(at["before"], I64(self._stride(array))))
            if kind == "current":
                array = ("sequence", k)
            if kind in ("stream", "output", "sequence", "current"):
                return self._at(b, fixed[array], b.mul(at["offset"], I64(self._stride(array))))
            return fixed[array]

        number = 0
        for (function, arrays), group in zip(groups, self.schedule.groups, strict=True):
            count = len(group.operands)
            b.call(function, [start, end, *packed[number : number + count], *map(base, arrays)])
            number += count
        if copies is not None:
            states = [fixed.get(("carry", k)) for k, _ in self.schedule.copies]
            b.call(copies, [start, end, fixed["scratch", 0], *states])

    def _least(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        return b.select(b.icmp_signed("<", x, y), x, y)

    def _emit_copies(self) -> ir.Function:
        """New states that could not be written at once."""
        function, b = self._function("copies", [I64, I64, PTR, *[PTR] * len(self.schedule.copies)])
        function.linkage = "internal"
        start, end, scratch, *states = function.args
        with self._loop(b, start, end, 1) as row:
            for (k, first), state in zip(self.schedule.copies, states, strict=True):
                width = self.program.states[k]
                source = self._at(b, scratch, b.add(b.mul(row.index, I64(self.schedule.scratch)), I64(first)))
                target = self._at(b, state, b.mul(row.index, I64(width)))
                with self._loop(b, I64(0), I64(width), 1) as i:
                    b.store(b.load(self._at(b, source, i.index), typ=self.real), self._at(b, target, i.index))
        b.ret_void()
        return function

    # ---- Groups ----

    def _tile(self, group: Group) -> tuple[int, int]:
        """Rows and blocks of a tile: as many accumulators as the registers hold beside weights and a broadcast."""
        count = len(group.dots)
        if count == 0:
            return 1, 1
        free = self.machine.registers - 2
        blocks = max(1, min((free // 8) // count, -(-group.width // self.lanes)))
        rows = max(1, min(8, (free - count * blocks) // (count * blocks)))
        return rows, blocks

    def _emit_group(self, number: int, group: Group) -> tuple[ir.Function, list[tuple[str, int]]]:
        arrays = self._arrays_of(group)
        operands = group.operands
        types = [I64, I64, *[PTR] * (len(operands) + len(arrays))]
        function, b = self._function(f"group{number}", types)
        function.linkage = "internal"
        for arg in function.args[2:]:
            arg.add_attribute("noalias")
        start, end, *pointers = function.args
        packed = dict(zip((o for o, _ in operands), pointers[: len(operands)], strict=True))
        bases = dict(zip(arrays, pointers[len(operands) :], strict=True))
        rows, blocks = self._tile(group)
        single = max(blocks, -(-8 // max(len(group.dots), 1))) if group.dots else 1
        few = b.icmp_signed("==", b.sub(end, start), I64(1))
        if group.dots and single > blocks:
            with b.if_else(few) as (one, many):
                with one:
                    self._blocks(b, group, single, [1], start, end, packed, bases)
                with many:
                    self._blocks(b, group, blocks, _row_counts(rows), start, end, packed, bases)
        else:
            self._blocks(b, group, blocks, _row_counts(rows), start, end, packed, bases)
        b.ret_void()
        return function, arrays

    def _blocks(
        self, b: ir.IRBuilder, group: Group, at_once: int, row_counts: list[int], start: ir.Value, end: ir.Value,
        packed: dict[Node, ir.Value], bases: dict[tuple[str, int], ir.Value],
    ) -> None:  # fmt: skip
        """Run over the blocks of units, several at once, then one by one, then the last one under a mask."""
        whole = group.width // self.lanes
        at_once = max(1, min(at_once, whole))
        edges = [(0, whole - whole % at_once, at_once), (whole - whole % at_once, whole, 1)]
        for first, last, count in edges:
            if first < last:
                with self._loop(b, I64(first), I64(last), count) as block:
                    self._rows(b, group, block.index, count, None, row_counts, start, end, packed, bases)
        if group.width % self.lanes:
            mask = self._mask(group.width % self.lanes)
            self._rows(b, group, I64(whole), 1, mask, row_counts, start, end, packed, bases)

    def _rows(
        self, b: ir.IRBuilder, group: Group, block: ir.Value, blocks: int, mask: ir.Value | None,
        row_counts: list[int], start: ir.Value, end: ir.Value,
        packed: dict[Node, ir.Value], bases: dict[tuple[str, int], ir.Value],
    ) -> None:  # fmt: skip
        """Run over the rows, as many at once as there are left for."""
        row = start
        for rows in row_counts:
            left = b.sub(end, row)
            stop = b.add(row, b.sub(left, b.srem(left, I64(rows)))) if rows > 1 else end
            with self._loop(b, row, stop, rows) as loop:
                _Tile(self, b, group, loop.index, rows, block, blocks, mask, packed, bases).emit()
            row = stop


@dataclass
class _Loop:
    index: ir.Value
    values: list[ir.Value]
    results: list[ir.Value] | None = None


def _row_counts(rows: int) -> list[int]:
    """How many rows at once: whole tiles, then pairs (two rows still keep the multipliers busy), then the last."""
    return [rows, 2, 1] if rows > 2 else [2, 1] if rows == 2 else [1]


class _Tile:
    """R rows by U blocks of units: products in registers, then the arithmetic on them, then the stores."""

    def __init__(
        self, emitter: _Emitter, b: ir.IRBuilder, group: Group, row: ir.Value, rows: int, block: ir.Value, blocks: int,
        mask: ir.Value | None, packed: dict[Node, ir.Value], bases: dict[tuple[str, int], ir.Value],
    ) -> None:  # fmt: skip
        self.e, self.b, self.group = emitter, b, group
        self.row, self.rows, self.block, self.blocks = row, rows, block, blocks
        self.mask, self.packed, self.bases = mask, packed, bases
        self.shared: dict[tuple[Node, int], ir.Value] = {}

    def emit(self) -> None:
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
            pointer = self.e._at(self.b, self.bases["total", 0], self.b.add(self._unit(u), I64(at)))
            self.e._store(self.b, self.b.fadd(self.e._load(self.b, pointer, self.mask), value), pointer, self.mask)

    def _products(self) -> dict[tuple[Node, int, int], ir.Value]:
        e, b = self.e, self.b
        keys = [(dot, r, u) for dot in self.group.dots for r in range(self.rows) for u in range(self.blocks)]
        sums: dict[tuple[Node, int, int], ir.Value] = dict.fromkeys(keys, e._constant(0.0))
        for operand, users in self.group.operands:
            array, first = e._array_of(operand)
            stride = e._stride(array)
            rows = [e._at(b, self._row_of(array, r, stride), first) for r in range(self.rows)]
            size = operand.width * len(users) * e.lanes  # numbers of a block
            starts = [
                e._at(b, self.packed[operand], b.mul(b.add(self.block, I64(u)), I64(size))) for u in range(self.blocks)
            ]
            # A product that takes a value twice, with different parts of the matrix, has one sum.
            dots = dict.fromkeys(dot for dot, _ in users)
            mine = [(dot, r, u) for dot in dots for r in range(self.rows) for u in range(self.blocks)]
            with e._loop(b, I64(0), I64(operand.width), 1, [sums[key] for key in mine]) as k:
                at = b.mul(k.index, I64(len(users) * e.lanes))
                now = dict(zip(mine, k.values, strict=True))
                weights = {
                    (n, u): e._load(b, e._at(b, starts[u], b.add(at, I64(n * e.lanes))), None)
                    for n in range(len(users)) for u in range(self.blocks)
                }  # fmt: skip
                for r in range(self.rows):
                    x = e._splat(b, b.load(e._at(b, rows[r], k.index), typ=e.real))
                    for n, (dot, _) in enumerate(users):
                        for u in range(self.blocks):
                            product = b.fmul(x, weights[n, u], flags=("contract",))
                            now[dot, r, u] = b.fadd(now[dot, r, u], product, flags=("contract",))
                k.values = [now[key] for key in mine]
            sums.update(zip(mine, k.results or [], strict=True))
        return sums

    def _row_of(self, array: tuple[str, int], r: int, stride: int) -> ir.Value:
        return self.e._at(self.b, self.bases[array], self.b.mul(self.b.add(self.row, I64(r)), I64(stride)))

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
                value = b.select(value, e._constant(1.0), e._constant(0.0))  # noqa: PLW2901
            e._store(b, value, self._address(place, r, u), self.mask)

    def _address(self, place: Place, r: int, u: int) -> ir.Value:
        row = self._row_of(place.array, r, self.e._stride(place.array))
        return self.e._at(self.b, row, self.b.add(self._unit(u), I64(place.first)))

    def _value(self, node: Node, values: dict[Node, ir.Value], inside: set[Node], r: int, u: int) -> ir.Value:
        """A value of this tile: computed here, or read from memory."""
        if node in values:
            return values[node]
        e, b = self.e, self.b
        if node.op == "constant":
            return e._constant(node.attr[0])
        if node.op == "vector":
            key = (node, u)
            if key not in self.shared:
                base = e._at(b, self.bases["vector", node.attr[0]], node.attr[1])
                if node.width == 1:
                    self.shared[key] = e._splat(b, b.load(base, typ=e.real))
                else:
                    self.shared[key] = e._load(b, e._at(b, base, self._unit(u)), self.mask)
            return self.shared[key]
        array, first = e._array_of(node)
        row = e._at(b, self._row_of(array, r, e._stride(array)), first)
        if node.width == 1 and self.group.width != 1:
            value = e._splat(b, b.load(row, typ=e.real))
        else:
            value = e._load(b, e._at(b, row, self._unit(u)), self.mask)
        if node.op in MASKS:
            value = b.fcmp_unordered("!=", value, e._constant(0.0))
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
        neutral = e._constant(0.0 if reduction.op == "sum" else float("-inf"))
        value = parts[0]
        for part in parts[1:]:
            value = combine(value, part)
        if self.mask is not None:
            value = b.select(self.mask, value, neutral)
        row = self._row_of(("scratch", 0), r, e.schedule.scratch)
        pointer = e._at(b, row, e.schedule.partials[reduction])
        old = e._load(b, pointer, None)
        if first:
            begins = b.icmp_signed("==", b.add(self.block, I64(u)), I64(0))
            old = b.select(begins, neutral, old)
        e._store(b, combine(old, value), pointer, None)

    def _combine(self, reduction: Node) -> Callable[[ir.Value, ir.Value], ir.Value]:
        if reduction.op == "sum":
            return lambda x, y: self.b.fadd(x, y)
        return lambda x, y: FUNCTIONS["maximum"](self.b, x, y)

    def _finish(self, reduction: Node, r: int) -> ir.Value:
        e, b = self.e, self.b
        row = self._row_of(("scratch", 0), r, e.schedule.scratch)
        value = e._load(b, e._at(b, row, e.schedule.partials[reduction]), None)
        width = e.lanes
        while width > 1:  # halves onto each other
            width //= 2
            order = [k + width if k < width else k for k in range(e.lanes)]
            moved = b.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, e.lanes), order))
            value = self._combine(reduction)(value, moved)
        return e._splat(b, b.extract_element(value, I32(0)))
