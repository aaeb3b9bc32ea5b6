"""Helpers on top of llvmlite's IRBuilder: arrays, vectors, masks and loops, as LLVM IR."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from llvmlite import ir

from anyrnn.engines.cpu.schedule import SCRATCH
from anyrnn.engines.cpu.slots import LINE, slots_of
from anyrnn.engines.cpu.vectors import Splat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anyrnn.compiler.node import Node
    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.engines.cpu.schedule import ArrayKey, Schedule
    from anyrnn.runtime.kernel import Precision

I64, I32, I1 = ir.IntType(64), ir.IntType(32), ir.IntType(1)
PTR = ir.PointerType()

_FIRST = I32(0)

#: The LLVM type of each dtype.
REALS = {torch.float32: ir.FloatType(), torch.float64: ir.DoubleType()}


@dataclass
class Loop:
    """A loop that is being written: its counter, its carried values (to be set to the next ones), and the last ones."""

    index: ir.Value
    values: list[ir.Value]
    results: list[ir.Value] | None = None


class Writer:
    """Writes vector code for one machine."""

    def __init__(self, machine: Machine, precision: Precision) -> None:
        self.machine = machine
        self.lanes = machine.lanes(precision.compute)
        self.real = REALS[precision.compute]
        self.bytes = precision.itemsize
        self.vector = ir.VectorType(self.real, self.lanes)
        self.line = LINE // self.bytes
        self.module = ir.Module("anyrnn")
        self._undefined = ir.Constant(self.vector, ir.Undefined)
        self._firsts = Splat(ir.VectorType(I32, self.lanes), 0)

    def at(self, b: ir.IRBuilder, base: ir.Value, index: ir.Value | int) -> ir.Value:
        """Return the address of an element of an array."""
        index = I64(index) if isinstance(index, int) else index
        return b.gep(base, [index], source_etype=self.real)

    def element(self, b: ir.IRBuilder, array: ir.Value, index: ir.Value) -> ir.Value:
        """Load an element of a table of integers."""
        return b.load(b.gep(array, [index], source_etype=I64), typ=I64)

    def address(self, b: ir.IRBuilder, table: ir.Value, index: int) -> ir.Value:
        """Load an element of a table of addresses."""
        return b.load(b.gep(table, [I64(index)], source_etype=PTR), typ=PTR)

    def splat(self, b: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
        """Broadcast a number to all lanes."""
        return b.shuffle_vector(b.insert_element(self._undefined, scalar, _FIRST), self._undefined, self._firsts)

    def least(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        """The smaller one of two integers."""
        return b.select(b.icmp_signed("<", x, y), x, y)

    def lanes_combined(
        self, b: ir.IRBuilder, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]
    ) -> ir.Value:
        """One number from the lanes of a vector, combined by halves."""
        width = self.lanes
        while width > 1:
            width //= 2
            order = [k + width if k < width else k for k in range(self.lanes)]
            moved = b.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, self.lanes), order))
            value = combine(value, moved)
        return b.extract_element(value, I32(0))

    def table(self, numbers: Sequence[int]) -> ir.Value:
        """A table of small integers in the code."""
        kind = ir.ArrayType(I32, len(numbers))
        table = ir.GlobalVariable(self.module, kind, f"table{len(self.module.globals)}")
        table.linkage, table.global_constant = "internal", True
        table.initializer = ir.Constant(kind, list(numbers))
        return table

    def constant(self, number: float) -> ir.Value:
        """Return a constant in all lanes."""
        return Splat(self.vector, number)

    def intrinsic(self, name: str, result: ir.Type, args: Sequence[ir.Type]) -> ir.Function:
        """Declare an intrinsic of LLVM's, once."""
        declared = self.module.globals.get(name)
        return declared if declared is not None else ir.Function(self.module, ir.FunctionType(result, args), name)

    def _suffix(self) -> str:
        return f"v{self.lanes}{'f64' if self.bytes == 8 else 'f32'}"

    def load(self, b: ir.IRBuilder, pointer: ir.Value, mask: ir.Value | None) -> ir.Value:
        """Load a vector; lanes outside the mask are zero."""
        if mask is None:
            return b.load(pointer, align=self.bytes, typ=self.vector)
        types = [PTR, I32, mask.type, self.vector]
        function = self.intrinsic(f"llvm.masked.load.{self._suffix()}.p0", self.vector, types)
        return b.call(function, [pointer, I32(self.bytes), mask, self.constant(0.0)])

    def store(self, b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
        """Store a vector; lanes outside the mask stay as they are."""
        if mask is None:
            b.store(value, pointer, align=self.bytes)
            return
        function = self.intrinsic(
            f"llvm.masked.store.{self._suffix()}.p0", ir.VoidType(), [self.vector, PTR, I32, mask.type]
        )
        b.call(function, [value, pointer, I32(self.bytes), mask])

    def mask(self, width: int) -> ir.Value:
        """Return a mask of the first lanes."""
        return ir.Constant(ir.VectorType(I1, self.lanes), [int(k < width) for k in range(self.lanes)])

    @contextmanager
    def loop(
        self, b: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int, carried: Sequence[ir.Value] = ()
    ) -> Iterator[Loop]:
        """``for (i = start; i < stop; i += step)``, with values that are carried from iteration to iteration.

        Nothing asks whether a loop between numbers begins, nor whether it goes on where it runs once: of each question
        there would be one more value for each carried one.
        """
        known = isinstance(start, ir.Constant) and isinstance(stop, ir.Constant) and start.constant < stop.constant
        if known and start.constant + step >= stop.constant:
            loop = Loop(start, list(carried))
            yield loop
            loop.results = list(loop.values)
            return
        before = b.block
        body, after = b.append_basic_block("body"), b.append_basic_block("after")
        if known:
            b.branch(body)
        else:
            b.cbranch(b.icmp_signed("<", start, stop), body, after)
        b.position_at_end(body)
        index = b.phi(I64)
        index.add_incoming(start, before)
        phis = []
        for value in carried:
            phi = b.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        loop = Loop(index, list(phis))
        yield loop
        next_index = b.add(index, I64(step))
        end = b.block
        index.add_incoming(next_index, end)
        for phi, value in zip(phis, loop.values, strict=True):
            phi.add_incoming(value, end)
        b.cbranch(b.icmp_signed("<", next_index, stop), body, after)
        b.position_at_end(after)
        if known:
            loop.results = list(loop.values)
            return
        results = []
        for initial, value in zip(carried, loop.values, strict=True):
            phi = b.phi(value.type)
            phi.add_incoming(initial, before)
            phi.add_incoming(value, end)
            results.append(phi)
        loop.results = results

    def function(self, name: str, args: Sequence[ir.Type]) -> tuple[ir.Function, ir.IRBuilder]:
        """Begin a function without a result."""
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), args), name)
        return function, ir.IRBuilder(function.append_basic_block())


class LoopWriter(Writer):
    """Writes vector code for one scheduled loop program."""

    def __init__(self, schedule: Schedule, machine: Machine, precision: Precision) -> None:
        super().__init__(machine, precision)
        self.schedule = schedule
        self.program = schedule.program
        self.slots = slots_of(schedule)

    def stride(self, array: ArrayKey) -> int:
        """The length of a row of an array."""
        return self.schedule.scratch if array == SCRATCH else self.program[array[1]].width

    def is_padded(self, array: ArrayKey) -> bool:
        """Whether the rows of an array lie as in the batch, not sorted by length."""
        return array != SCRATCH and (array[0] not in ("stream", "output") or self.program[array[1]].place == "padded")

    def array_of(self, node: Node) -> tuple[ArrayKey, int]:
        """The array that a value is read from, by the kind of its address, and its first number there."""
        if node.is_leaf:
            name, first = node.attr
            carried = node.op == "state" and self.program[name].place == "carried"
            return ("carry" if carried else node.op, name), first
        if node.op == "part":
            array, first = self.array_of(node.args[0])
            return array, first + node.attr[0]
        location = self.schedule.locations[node]
        return location.array, location.first

    def slot(self, b: ir.IRBuilder, slots: ir.Value, kind: str, name: str = "") -> ir.Value:
        """Load an argument that is a number."""
        return b.load(b.gep(slots, [I64(self.slots.index(kind, name))], source_etype=I64), typ=I64)

    def pointer(self, b: ir.IRBuilder, slots: ir.Value, kind: str, name: str = "") -> ir.Value:
        """Load an argument that is an address."""
        return b.inttoptr(self.slot(b, slots, kind, name), PTR)
