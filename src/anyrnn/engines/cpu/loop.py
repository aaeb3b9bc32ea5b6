"""A loop program run by its machine code, forward and backward, as one differentiable operation."""

from __future__ import annotations

import contextlib
import functools
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anyrnn.derive import Derivative, Term, derive
from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.machine import Machine
from anyrnn.engines.cpu.schedule import Schedule, schedule
from anyrnn.engines.cpu.slots import Packed, packed_of
from anyrnn.program import Program, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.engines.cpu.emit import Kernel
    from anyrnn.engines.cpu.jit import Compiled
    from anyrnn.engines.cpu.layout import Layout


_LARGE = 1 << 21  # multiplications


@dataclass(frozen=True)
class Loaded:
    """A program's machine code, and what it must be given."""

    schedule: Schedule
    packed: tuple[Packed, ...]
    code: Compiled
    lanes: int

    @functools.cached_property
    def sizes(self) -> list[int]:
        """How many numbers each packed matrix takes."""
        return [p.size(self.lanes) for p in self.packed]

    @functools.cached_property
    def pack(self) -> int:
        """The entry that copies the matrices."""
        return self.code.address("pack")

    @functools.cached_property
    def main(self) -> int:
        """The entry that runs the steps."""
        return self.code.address("run")

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
        """Run all steps, writing `outputs`, and `sequences` or, backward, `carries`; returns the totals."""
        like = states[0]
        parts = max(1, min(threads.count(), layout.B))
        workspace = like.new_empty(sum(self.sizes) + layout.B * self.schedule.scratch + self.lanes)
        totals = like.new_zeros(parts, max(self.schedule.total_width, 1))
        at, length = layout.tables[self.schedule.in_place][1], len(layout.rows) * 8
        address = workspace.data_ptr()
        packed = []
        for size in self.sizes:
            packed.append(address)
            address += size * like.element_size()
        values = [length // 8, at, at + length, at + 2 * length, at + 3 * length, layout.bounds(parts)]
        values += [address, totals.data_ptr(), *(s.data_ptr() for s in streams)]
        for initial, sequence, carry in zip(states, sequences, carries, strict=True):
            values += [initial.data_ptr(), sequence.data_ptr(), carry.data_ptr()]
        values += [o.data_ptr() for o in (*outputs, *vectors)]
        for matrix, turned in zip(matrices, transposed, strict=True):
            down, along = matrix.stride()
            values += (matrix.data_ptr(), along, down) if turned else (matrix.data_ptr(), down, along)
        slots = array("q", values + packed)
        pointer = slots.buffer_info()[0]
        if packed:
            threads.parallel(self.pack, pointer, parts)
        threads.parallel(self.main, pointer, parts)
        return totals[0] if parts == 1 else totals.sum(0)


def load(program: Program, in_place: bool, double: bool, machine: Machine) -> Loaded:
    """Return a program's machine code."""
    lanes = machine.vector_bytes // (8 if double else 4)
    order = schedule(program, in_place, lanes)

    def build() -> Kernel:
        from anyrnn.engines.cpu.emit import emit  # noqa: PLC0415 - LLVM's builder is needed on a cache miss only

        return emit(order, machine, double)

    key = f"{program.text}\nin_place {in_place} double {double}"
    code = jit.load(key, lambda: build().ir, machine)
    return Loaded(order, packed_of(order), code, lanes)


class Loop:
    """A loop program, ready to run. Of matrices marked in `transposed`, it is given the transposed ones."""

    def __init__(self, program: Program, transposed: Sequence[bool]) -> None:
        self.program = program
        self.transposed = transposed
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

    def stored(self, training: bool) -> Program:
        """The program with the outputs that have arrays: those that are no state, then what a backward pass reads."""
        outputs = [o for o, alias in zip(self.program.outputs, self.aliases, strict=True) if alias is None]
        if training:
            outputs += self.derivative.forward.outputs[self.derivative.first_saved :]
        p = self.program
        return Program(p.streams, p.states, p.vectors, p.matrices, p.new_states, tuple(outputs), names=p.names)

    def code(self, kind: str, double: bool, machine: Machine) -> Loaded:
        """The machine code of a pass: "inference", "training" or "backward"."""
        key = kind, double, machine
        found = self._code.get(key)
        if found is None:
            backward = kind == "backward"
            program = self.derivative.backward if backward else self.stored(kind == "training")
            found = self._code[key] = load(program, in_place=backward, double=double, machine=machine)
        return found

    def __call__(
        self,
        layout: Layout,
        streams: Sequence[Tensor],
        states: Sequence[Tensor],
        vectors: Sequence[Tensor],
        matrices: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the loop: packed outputs (N, width) and final states (B, size), sorted as the layout is."""
        tensors = [*streams, *states, *vectors, *matrices]
        count = len(self.program.outputs)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            results = _LoopFunction.apply(self, layout, *tensors)  # type: ignore[no-untyped-call]
        else:
            results = _forward(self, layout, tensors, training=False)[0]
        return list(results[:count]), list(results[count:])

    def grouped(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Split a flat list into what concerns streams, states, vectors and matrices."""
        a, b, c = self._ends
        return tensors[:a], tensors[a:b], tensors[b:c], tensors[c:]


def _forward(
    loop: Loop, layout: Layout, tensors: Sequence[Tensor], training: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return (outputs and final states), the sequences of states, and the saved values."""
    streams, states, vectors, matrices = loop.grouped(tensors)
    like = states[0]
    total = layout.total
    code = loop.code("training" if training else "inference", like.dtype == torch.float64, Machine.host())
    sequences = [like.new_empty(total, width) for width in loop.program.states]
    made = [like.new_empty(total, width) for width in code.schedule.output_widths]
    code.run(layout, streams, states, sequences, sequences, made, vectors, matrices, loop.transposed)
    own = iter(made)
    outputs = [next(own) if alias is None else sequences[alias] for alias in loop.aliases]
    return [*outputs, *(_final(layout, s, i) for s, i in zip(sequences, states, strict=True))], sequences, list(own)


def _final(layout: Layout, sequence: Tensor, initial: Tensor) -> Tensor:
    if layout.lengths is None:
        last = int(layout.offset[-1])
        return sequence[last : last + layout.B].clone()
    index = layout.last_index
    return torch.cat([sequence[index], initial[len(index) :]])


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Let products compute in the type of what they are given."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else contextlib.nullcontext()


class _LoopFunction(torch.autograd.Function):
    """The loop with its backward pass."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, layout: Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        results, sequences, saved = _forward(loop, layout, tensors, training=True)
        ctx.loop, ctx.layout = loop, layout
        ctx.save_for_backward(*tensors, *sequences, *saved)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        loop, layout = ctx.loop, ctx.layout
        kept = ctx.saved_tensors
        p = loop.program
        count = len(p.streams) + len(p.states) + len(p.vectors) + len(p.matrices)
        tensors, sequences, saved = kept[:count], kept[count : count + len(p.states)], kept[count + len(p.states) :]
        with without_autocast():
            if torch.is_grad_enabled():  # somebody wants the gradient of this gradient
                return None, None, *_replayed(loop, layout, tensors, grads, ctx.needs_input_grad[2:])
            return None, None, *_backward(loop, layout, tensors, sequences, saved, grads, ctx.needs_input_grad[2:])


def _backward(
    loop: Loop, layout: Layout, tensors: Sequence[Tensor], sequences: Sequence[Tensor], saved: Sequence[Tensor],
    grads: Sequence[Tensor | None], needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    streams, states, vectors, matrices = loop.grouped(tensors)
    p, d = loop.program, loop.derivative
    like, total = states[0], layout.total
    code = loop.code("backward", like.dtype == torch.float64, Machine.host())
    upstream = [
        like.new_zeros(total, sum(q.width for q in o)) if g is None else g.contiguous()
        for o, g in zip(p.outputs, grads, strict=False)
    ]
    carries = [
        like.new_zeros(layout.B, w) if g is None else g.clone(memory_format=torch.contiguous_format)
        for w, g in zip(p.states, grads[len(p.outputs) :], strict=True)
    ]
    outputs = [like.new_empty(total, width) for width in code.schedule.output_widths]
    totals = code.run(
        layout, [*streams, *upstream, *saved], states, sequences, carries, outputs, vectors, matrices, loop.transposed
    )  # fmt: skip

    stream_needed, _, vector_needed, matrix_needed = loop.grouped(needed)
    stream_grads: list[Tensor | None] = [None] * len(streams)
    for k, number in enumerate(d.stream_outputs):
        stream_grads[number] = outputs[1 + k]
    matrix_grads: list[Tensor | None] = [None] * len(matrices)
    for term in d.terms:
        given = outputs[0][:, term.first : term.first + term.cols]
        if matrix_needed[term.matrix]:
            pairs = _operands(layout, term, given, streams, states, sequences, saved)
            matrix_grads[term.matrix] = _add_matrix(loop, term, pairs, matrix_grads[term.matrix], matrices)
        if term.kind == "stream" and stream_needed[term.array]:
            part = _region(loop, term, matrices[term.matrix])
            stream_grads[term.array] = _add_stream(term, given, part, stream_grads[term.array], streams)
    vector_grads: list[Tensor | None] = []
    starts = np.cumsum([0, *(n.width for n in d.backward.totals)])
    for vector, ranges, wanted in zip(vectors, d.vector_totals, vector_needed, strict=True):
        pieces = [totals[starts[t] : starts[t] + width] for _, width, t in ranges]
        vector_grads.append(torch.cat(pieces).reshape(vector.shape) if wanted else None)
    return [*stream_grads, *carries, *vector_grads, *matrix_grads]


def _operands(
    layout: Layout, term: Term, given: Tensor, streams: Sequence[Tensor], states: Sequence[Tensor],
    sequences: Sequence[Tensor], saved: Sequence[Tensor],
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """What a product took, and the gradients of what it gave, row by row; in two parts where the state comes in."""
    columns = slice(term.start, term.start + term.rows)
    if term.kind == "stream":
        return [(streams[term.array][:, columns], given)]
    if term.kind == "saved":
        return [(saved[term.array][:, columns], given)]
    sequence, initial = sequences[term.array][:, columns], states[term.array][:, columns]
    if layout.lengths is not None:
        return [(torch.cat([sequence, initial])[layout.previous_index], given)]
    n, B = len(sequence), layout.B
    if layout.reverse:
        return [(sequence[B:], given[: n - B]), (initial, given[n - B :])]
    return [(sequence[: n - B], given[B:]), (initial, given[:B])]


def _region(loop: Loop, term: Term, matrix: Tensor) -> Tensor:
    """The part of a matrix that a product reads."""
    turned = matrix.t() if loop.transposed[term.matrix] else matrix
    return turned[term.row : term.row + term.rows, term.col : term.col + term.cols]


def _add_matrix(
    loop: Loop, term: Term, pairs: list[tuple[Tensor, Tensor]], total: Tensor | None, matrices: Sequence[Tensor]
) -> Tensor:
    """Add a product's share to the gradient of a matrix, in the order in which the matrix was given."""
    if total is None and (term.rows, term.cols) == loop.program.matrices[term.matrix]:
        (rows, grads), *others = pairs
        first, second = (grads, rows) if loop.transposed[term.matrix] else (rows, grads)
        total, pairs = first.t() @ second, others
    elif total is None:
        total = torch.zeros_like(matrices[term.matrix])
    region = _region(loop, term, total)
    for rows, grads in pairs:
        region.addmm_(rows.t(), grads)
    return total


def _add_stream(term: Term, given: Tensor, part: Tensor, total: Tensor | None, streams: Sequence[Tensor]) -> Tensor:
    """Add a product's share to the gradient of a stream."""
    if total is None and term.rows == streams[term.array].shape[1]:
        if given.dtype == torch.float32 and part.numel() * len(given) > _LARGE and torch.backends.mkldnn.is_available():
            # oneDNN's product: up to twice as fast as the one behind `@` on processors that are not Intel's.
            return torch.ops.mkldnn._linear_pointwise(given, part, None, "none", [], "")  # type: ignore[no-any-return]
        return given @ part.t()
    if total is None:
        total = torch.zeros_like(streams[term.array])
    total[:, term.start : term.start + term.rows].addmm_(given, part.t())
    return total


def _replayed(
    loop: Loop, layout: Layout, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by PyTorch's autograd through the program, step by step: differentiable once more."""
    streams, states, vectors, matrices = loop.grouped(tensors)
    turned = [m.t() if transposed else m for m, transposed in zip(matrices, loop.transposed, strict=True)]
    results = replay(loop.program, layout, streams, states, vectors, turned)
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
    wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
    found = torch.autograd.grad(
        [p[0] for p in pairs], wanted, [p[1] for p in pairs], create_graph=True, allow_unused=True
    )
    remaining = iter(found)
    return [next(remaining) if n else None for n in needed]


def replay(
    program: Program, layout: Layout, streams: Sequence[Tensor], states: Sequence[Tensor],
    vectors: Sequence[Tensor], matrices: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Run a program in PyTorch, step by step."""
    nodes = program.nodes
    state = list(states)
    outputs: list[list[Tensor]] = [[] for _ in program.outputs]
    for n, offset in zip(layout.rows.tolist(), layout.offset.tolist(), strict=True):
        known = {}
        for node in nodes:
            if node.is_leaf:
                array, first = node.attr
                columns = slice(first, first + node.width)
                if node.op == "stream":
                    known[node] = streams[array][offset : offset + n, columns]
                elif node.op == "vector":
                    known[node] = vectors[array].reshape(-1)[columns].expand(n, -1)
                else:
                    known[node] = state[array][:n, columns]
        evaluate(nodes, known, tuple(matrices))

        def joined(pieces: Sequence[Any], known: dict[Any, Tensor] = known, n: int = n) -> Tensor:
            return torch.cat([known[p].expand(n, p.width) for p in pieces], 1)

        for k, pieces in enumerate(program.outputs):
            outputs[k].append(joined(pieces))
        new = [joined(pieces) for pieces in program.new_states]
        state = [torch.cat([k, s[n:]]) for k, s in zip(new, state, strict=True)]
    if layout.reverse:
        outputs = [o[::-1] for o in outputs]
    return [*(torch.cat(o) for o in outputs), *state]
