"""A loop program with the machine code of its passes, and the forward pass."""

from __future__ import annotations

import ctypes
import functools
import itertools
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyrnn.derive import Derivative, derive
from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.layout import padded_rows
from anyrnn.engines.cpu.memory import empty
from anyrnn.engines.cpu.schedule import Schedule, Storage, schedule
from anyrnn.engines.cpu.slots import LINE, Packed, packed_of
from anyrnn.gradient_paths import GradientPaths
from anyrnn.program import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyrnn.engines.cpu.jit import Compiled
    from anyrnn.engines.cpu.layout import Layout
    from anyrnn.engines.cpu.machine import Machine

_SMALL = 1 << 19  # multiplications that one more thread is not worth, as in outer.py: some 20 us


@dataclass(frozen=True)
class Loaded:
    """A program's machine code, and what it must be given."""

    schedule: Schedule
    packed: tuple[Packed, ...]
    code: Compiled
    lanes: int
    itemsize: int
    backward: bool

    @functools.cached_property
    def places(self) -> list[int]:
        """Where each packed matrix begins, in bytes, and where they all end."""
        sizes = (p.size(LINE // self.itemsize) for p in self.packed)
        return [self.itemsize * n for n in itertools.accumulate(sizes, initial=0)]

    @functools.cached_property
    def pack(self) -> int:
        """The entry that copies the matrices."""
        return self.code.address("pack")

    @functools.cached_property
    def main(self) -> int:
        """The entry that runs the steps."""
        return self.code.address("run")

    @functools.cached_property
    def whole(self) -> Callable[[int], None]:
        """Both, in the calling thread."""
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.code.address("whole"))

    def _parts(self, layout: Layout) -> int:
        """How many threads pay: each for two rows, which take hardly longer than one, and for enough work."""
        return max(1, min(threads.count(), layout.B // 2, layout.total * self.work // _SMALL))

    @functools.cached_property
    def work(self) -> int:
        """What a row takes in a step, in multiplications; the others on a number count as eight."""
        nodes = [n for n in self.schedule.program.nodes if not n.is_leaf]
        return sum(sum(a.width for a in n.args) * n.width if n.op == "dot" else 8 * n.width for n in nodes)

    def run(
        self,
        layout: Layout,
        streams: Sequence[Tensor],
        states: Sequence[Tensor],
        sequences: Sequence[Tensor],
        carries: Sequence[Tensor],
        outputs: Sequence[Tensor],
        vectors: Sequence[Tensor],
        matrices: Sequence[Tensor],
        transposed: Sequence[bool],
    ) -> Tensor:
        """Run all steps, from the last one if backward, and return the totals.

        Written are `outputs`, the `carries` of states in place, which begin as these, and the `sequences` of others.
        """
        like = states[0]
        parts = self._parts(layout)
        total = self.schedule.total_width
        # First the matrices, then room for each row.
        *packed, end = self.places
        workspace = empty(like, end // self.itemsize + layout.B * self.schedule.scratch + self.lanes)
        totals = like.new_zeros(parts, total)
        address = workspace.data_ptr()
        values = [*layout.slots(self.backward), layout.bounds(parts), address + end, totals.data_ptr()]
        values += [s.data_ptr() for s in streams]
        for initial, sequence, carry in zip(states, sequences, carries, strict=True):
            values += (initial.data_ptr(), sequence.data_ptr(), carry.data_ptr())
        values += [o.data_ptr() for o in (*outputs, *vectors)]
        for matrix, turned in zip(matrices, transposed, strict=True):
            down, along = matrix.stride()
            values += (matrix.data_ptr(), along, down) if turned else (matrix.data_ptr(), down, along)
        values += [address + place for place in packed]
        slots = array("q", values)
        pointer = slots.buffer_info()[0]
        if parts == 1:
            self.whole(pointer)
            return totals.view(-1)
        if packed:
            threads.parallel(self.pack, pointer, parts)
        threads.parallel(self.main, pointer, parts)
        return totals.sum(0) if total else totals[0]


def load(program: Program, storage: Storage, backward: bool, double: bool, machine: Machine) -> Loaded:
    """Return a program's machine code."""
    lanes = machine.vector_bytes // (8 if double else 4)
    order = schedule(program, storage, lanes)

    def build() -> str:
        from anyrnn.engines.cpu.emit import emit  # noqa: PLC0415 - LLVM's builder is needed on a cache miss only

        return emit(order, machine, double)

    code = jit.load(f"{program.text}\n{storage} double {double}", build, machine)
    return Loaded(order, packed_of(order), code, lanes, 8 if double else 4, backward)


class Loop:
    """A loop program, ready to run.

    Attributes:
        program: The program.
        transposed: Of which matrices it is given the transposed ones.
        padded: Which streams are padded, (T, B, width); of the others it is given packed rows (N, width).
    """

    def __init__(self, program: Program, transposed: Sequence[bool], padded: Sequence[int] = ()) -> None:
        self.program = program
        self.transposed = transposed
        self.padded = frozenset(padded)
        self._code: dict[tuple[str, bool, Machine], Loaded] = {}
        counts = len(program.streams), len(program.states), len(program.vectors)
        self._ends = counts[0], counts[0] + counts[1], sum(counts)
        # An output that is a state after the step needs no array of its own.
        states = {pieces: k for k, pieces in reversed(list(enumerate(program.new_states)))}
        self.aliases = tuple(states.get(pieces) for pieces in program.outputs)

    @functools.cached_property
    def derivative(self) -> Derivative:
        """The backward program and what it needs."""
        return derive(self.program)

    @functools.cached_property
    def paths(self) -> GradientPaths:
        """Which of its tensors have a gradient."""
        return GradientPaths(self.program)

    def stored(self, training: bool) -> Program:
        """The program with the outputs that have arrays: those that are no state, then what a backward pass reads."""
        p = self.derivative.forward
        outputs = [o for o, alias in zip(p.outputs, self.aliases, strict=False) if alias is None]
        if training:
            outputs += p.outputs[len(self.aliases) :]
        return Program(p.streams, p.states, p.vectors, p.matrices, p.new_states, tuple(outputs), names=p.names)

    def storage(self, kind: str) -> Storage:
        """How the arrays of a pass lie in memory: padded where they come from outside or go there, else packed."""
        p = self.program
        padded = [("stream", k) for k in sorted(self.padded)]
        if kind == "backward":
            padded += [("stream", len(p.streams) + k) for k in range(len(p.outputs))]
            d = self.derivative
            padded += [("output", d.products + k) for k, n in enumerate(d.stream_outputs) if n in self.padded]
            return Storage((True,) * len(p.states), tuple(padded))
        inference = kind == "inference"
        padded += [("output", k) for k in range(self.aliases.count(None))]
        return Storage(tuple(inference and k not in self.aliases for k in range(len(p.states))), tuple(padded))

    def code(self, kind: str, double: bool, machine: Machine) -> Loaded:
        """The machine code of a pass: "inference", "training" or "backward"."""
        key = kind, double, machine
        found = self._code.get(key)
        if found is None:
            backward = kind == "backward"
            program = self.derivative.backward if backward else self.stored(kind == "training")
            found = self._code[key] = load(program, self.storage(kind), backward, double, machine)
        return found

    def grouped(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Split a flat list into what concerns streams, states, vectors and matrices."""
        a, b, c = self._ends
        return tensors[:a], tensors[a:b], tensors[b:c], tensors[c:]


def forward(
    loop: Loop, layout: Layout, machine: Machine, tensors: Sequence[Tensor], training: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return (outputs and final states), the sequences of states, and the saved values."""
    streams, states, vectors, matrices = loop.grouped(tensors)
    like = states[0]
    code = loop.code("training" if training else "inference", like.dtype == torch.float64, machine)
    in_place = code.schedule.storage.in_place
    kept = []
    for k, (state, carried) in enumerate(zip(states, in_place, strict=True)):
        if carried:
            kept.append(state.clone(memory_format=torch.contiguous_format))
        elif k in loop.aliases:
            kept.append(padded_rows(layout, like, state.shape[1]))
        else:
            kept.append(empty(like, layout.T, layout.B, state.shape[1]))
    widths, count = code.schedule.output_widths, loop.aliases.count(None)
    made = [padded_rows(layout, like, width) for width in widths[:count]]
    saved = [empty(like, layout.total, width) for width in widths[count:]]
    code.run(layout, streams, states, kept, kept, [*made, *saved], vectors, matrices, loop.transposed)
    own = iter(made)
    outputs = [next(own) if alias is None else kept[alias] for alias in loop.aliases]
    finals = [k if c else layout.final(k, s) for k, s, c in zip(kept, states, in_place, strict=True)]
    return [*outputs, *finals], kept, saved
