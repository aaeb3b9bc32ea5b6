"""The backend of this processor: programs become machine code by LLVM."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from anyrnn.compiler.passes import anonymous
from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.machine import Machine
from anyrnn.engines.cpu.outer import add_outer
from anyrnn.engines.cpu.schedule import Schedule, schedule
from anyrnn.engines.cpu.slots import LINE, Blocking, Packed, packed_of
from anyrnn.runtime.memory import empty

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch import Tensor

    from anyrnn.compiler.node import Node
    from anyrnn.compiler.program import Program
    from anyrnn.engines.cpu.jit import Compiled
    from anyrnn.runtime.kernel import Precision, Rows
    from anyrnn.runtime.layout import Layout

_SMALL = 1 << 19  # multiplications that one more thread is not worth, as in outer.py: some 20 us


@dataclass(frozen=True)
class CpuBackend:
    """Compiles programs for a processor."""

    machine: Machine
    name = "cpu"
    block = Blocking.depth

    @staticmethod
    def host() -> CpuBackend:
        """The backend of this machine, or of the one that ``ANYRNN_CPU`` names."""
        return _of(Machine.host())

    def compile(self, program: Program, precision: Precision) -> CpuKernel:
        """Return a program's machine code. Programs that differ in names only share it."""
        nameless = anonymous(program)
        groups = schedule(nameless, self.machine.lanes(precision.compute))

        def build() -> str:
            from anyrnn.engines.cpu.emit import emit  # noqa: PLC0415 - LLVM's builder is needed on a cache miss only

            return emit(groups, self.machine, precision)

        packed = packed_of(groups)
        uses = [_copy(precision, self.machine)] if packed else []
        code = jit.load(f"{nameless}\n{precision}", build, self.machine, uses=uses)
        return CpuKernel(program, groups, packed, code, self.machine, precision)

    def add_outer(
        self, out: Tensor, row: int, column: int, left: Rows, right: Rows, add: bool, last_first: bool
    ) -> None:
        """Write left^T @ right into a contiguous matrix, or add it: see `anyrnn.runtime.kernel.Backend`."""
        add_outer(out, row, column, left, right, add, self.machine, last_first)


@functools.cache
def _of(machine: Machine) -> CpuBackend:
    return CpuBackend(machine)


@functools.cache
def _copy(precision: Precision, machine: Machine) -> Compiled:
    """The code that copies matrices, for all kernels."""

    def build() -> str:
        from anyrnn.engines.cpu.emit_copy import emit_copy  # noqa: PLC0415 - LLVM's builder is needed on a miss only

        return emit_copy(machine, precision)

    return jit.load(f"copy {precision}", build, machine)


@dataclass(frozen=True)
class CpuKernel:
    """A program's machine code, and what it must be given.

    Attributes:
        program: The program, with the names by which it is given arrays.
        schedule: The schedule of the same program without names.
        packed: The packed matrices that the code reads.
        code: The machine code.
        machine, precision: What it is for.
    """

    program: Program
    schedule: Schedule
    packed: tuple[Packed, ...]
    code: Compiled
    machine: Machine
    precision: Precision

    @property
    def stages(self) -> int:
        """In how many stages a step runs."""
        return 1 + max((g.stage for g in self.schedule.groups), default=0)

    @functools.cached_property
    def source(self) -> str:
        """The LLVM IR."""
        from anyrnn.engines.cpu.emit import emit  # noqa: PLC0415 - LLVM is loaded when it is asked for

        return emit(self.schedule, self.machine, self.precision)

    @functools.cached_property
    def assembly(self) -> str:
        """The machine code, as assembly."""
        return jit.assembly(self.source, self.machine)

    @functools.cached_property
    def packed_offsets(self) -> list[int]:
        """Where each packed matrix begins, in bytes, and where they all end."""
        itemsize = self.precision.itemsize
        sizes = (p.size(LINE // itemsize) for p in self.packed)
        return [itemsize * n for n in itertools.accumulate(sizes, initial=0)]

    @functools.cached_property
    def pack_address(self) -> int:
        """The address of the entry that copies the matrices."""
        return self.code.address("pack")

    @functools.cached_property
    def run_address(self) -> int:
        """The address of the entry that runs the steps."""
        return self.code.address("run")

    @functools.cached_property
    def call_serial(self) -> Callable[[int], None]:
        """Calls the entry that is both in one part, in the calling thread."""
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.code.address("serial"))

    @functools.cached_property
    def call_run(self) -> Callable[..., None]:
        """Calls the entry that runs the steps, in the calling thread; its arguments are objects of `ctypes`.

        The interpreter's lock is free meanwhile, so that streams of several threads run at once: that is some 30 ns of
        the 250 that a call takes from Python (`ctypes.PYFUNCTYPE`, which keeps the lock, was measured beside it).
        """
        return ctypes.CFUNCTYPE(None)(self.run_address)

    @functools.cached_property
    def is_backward(self) -> bool:
        """It runs from the last step to the first."""
        return bool(self.schedule.program.of("history"))

    @functools.cached_property
    def work(self) -> int:
        """What a row takes in a step, in multiplications; the others on a number count as eight."""
        return sum(_work_of(n) for n in self.schedule.program.nodes if not n.is_leaf)

    def shares(self, layout: Layout) -> int:
        """How many parts are worth a thread each: of two rows, which take hardly longer than one, and of some work."""
        return max(1, min(threads.count(), layout.B // 2, layout.source.total * self.work // _SMALL))

    @functools.cached_property
    def arguments(self) -> list[tuple[str, str]]:
        """The arrays in the order of the slots: name and role."""
        return [(a.name, a.role) for a in self.program.arrays if a.role != "sum"]

    @functools.cached_property
    def sums(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """By name of a sum, its ranges among the totals."""
        names = [a.name for a in self.program.of("sum")]
        return dict(zip(names, self.schedule.sums.values(), strict=True))

    @functools.cached_property
    def lanes(self) -> int:
        """The numbers in a vector."""
        return self.machine.lanes(self.precision.compute)

    def bind(
        self,
        layout: Layout,
        arrays: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
        transposed: Collection[str],
        totals: Tensor | None = None,
    ) -> CpuBound:
        """Bind it to arrays; see `anyrnn.runtime.kernel.Kernel`."""
        like = next(iter(arrays.values()))
        shares = self.shares(layout)
        # First the matrices, then room for each row.
        end = self.packed_offsets[-1]
        rows_end = end + layout.B * self.schedule.scratch * self.precision.itemsize
        size = rows_end // self.precision.itemsize + self.schedule.uniform_width + self.lanes
        workspace = empty(like, size)
        if totals is None and self.schedule.total_width:
            totals = like.new_zeros(shares, self.schedule.total_width)
        address = workspace.data_ptr()
        values = [*layout.slots(self.is_backward), layout.bounds(shares), address + end]
        values.append(0 if totals is None else totals.data_ptr())
        for name, role in self.arguments:
            tensor = arrays[name]
            place = tensor.data_ptr()
            if role == "matrix":
                down, along = tensor.stride()
                values += (place, along, down) if name in transposed else (place, down, along)
            elif role == "state":
                values += (initial[name].data_ptr() if name in initial else place, place, place)
            elif role == "history":
                values += (initial[name].data_ptr(), place)
            else:
                values.append(place)
        values += [address + place for place in self.packed_offsets[:-1]]
        if self.schedule.uniform:
            values.append(address + rows_end)
        return CpuBound(self, array("q", values), shares, totals, workspace)

    def repeated(self, layout: Layout, arrays: Mapping[str, Tensor], transposed: Collection[str]) -> CpuRepeated:
        """Bind it to arrays once; see `anyrnn.runtime.kernel.Kernel`."""
        return CpuRepeated(self, layout, arrays, transposed)


def _work_of(node: Node) -> int:
    """What a value takes, in multiplications."""
    if node.op == "dot":
        return sum(a.width for a in node.args) * node.width
    return node.width * (math.prod(node.attr[1]) if node.op == "contract" else 8)


@dataclass(frozen=True)
class CpuBound:
    """Machine code with the addresses that it is given; whoever gave the arrays keeps them there."""

    kernel: CpuKernel
    slots: array[int]
    shares: int
    totals: Tensor | None
    workspace: Tensor

    def launch(self) -> Mapping[str, Tensor]:
        """Run all steps; returns the sums, by name."""
        kernel, pointer = self.kernel, self.slots.buffer_info()[0]
        if self.shares == 1:
            kernel.call_serial(pointer)
        else:
            self.pack()
            threads.parallel(kernel.run_address, pointer, self.shares)
        return {} if self.totals is None else dict(self._sums(self.totals, kernel.sums))

    def pack(self) -> None:
        """Copy the matrices, and arrange what is the same for all rows."""
        if self.kernel.packed or self.kernel.schedule.uniform:
            threads.parallel(self.kernel.pack_address, self.slots.buffer_info()[0], self.shares)

    def _sums(self, totals: Tensor, ranges: Mapping[str, tuple[tuple[int, int], ...]]) -> Iterator[tuple[str, Tensor]]:
        total = totals[0] if self.shares == 1 else totals.sum(0)
        for name, places in ranges.items():
            # A copy even of one piece: two biases may have one sum.
            pieces = [total.narrow_copy(0, start, end - start) for start, end in places]
            yield name, pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class CpuRepeated:
    """Machine code for one step, with the addresses that it is given, always the same ones.

    Attributes:
        launch: Runs a step: no Python code at all, if one thread is enough.
    """

    def __init__(
        self, kernel: CpuKernel, layout: Layout, arrays: Mapping[str, Tensor], transposed: Collection[str]
    ) -> None:
        self._kernel, self._layout = kernel, layout
        bound = kernel.bind(layout, arrays, {}, transposed)
        bound.pack()
        self._slots = bound.slots
        pointer = self._slots.buffer_info()[0]
        launch = (
            functools.partial(kernel.call_run, ctypes.c_void_p(pointer), ctypes.c_int64(0), ctypes.c_int64(1))
            if bound.shares == 1
            else functools.partial(threads.parallel, kernel.run_address, pointer, bound.shares)
        )
        # All whose addresses the code knows lives as long as the function, which may outlive this object.
        self._kept: list[object] = [self._slots, layout, kernel, *self._read(arrays), bound]
        vars(launch)["kept"] = self._kept
        self.launch: Callable[[], object] = launch

    def prepare(self, arrays: Mapping[str, Tensor], transposed: Collection[str]) -> None:
        """Read the matrices anew; see `anyrnn.runtime.kernel.Repeated`."""
        bound = self._kernel.bind(self._layout, arrays, {}, transposed)
        bound.pack()
        self._slots[:] = bound.slots  # which stay where they are: `launch` knows their address
        self._kept[3:] = [*self._read(arrays), bound]

    def _read(self, arrays: Mapping[str, Tensor]) -> list[Tensor]:
        """The arrays that are read or written at every step: all but the matrices, of which there are packed copies."""
        return [arrays[name] for name, role in self._kernel.arguments if role != "matrix"]
