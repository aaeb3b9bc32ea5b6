"""A compiled call in pieces of some steps: states are kept at their borders, and the backward pass runs each again.

A call keeps the states and residuals of all its steps for the backward pass. In pieces, it keeps those of one piece at
a time: the forward pass drops them, but for the state that each piece begins with, and the backward pass runs the
pieces once more, the last one first, each followed by its own backward pass. Every step is the same kernel on the same
numbers as in the call as a whole, and `Sums` go on from piece to piece: so values and gradients have the same bits. The
weights of what PyTorch runs around the loop (`before`, `after`) are the exception: their gradients are a sum of those
of the pieces.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anyrnn.randomness import random_from, random_state
from anyrnn.runtime import autograd
from anyrnn.runtime.autograd import of_piece
from anyrnn.runtime.gradients import ForwardPass
from anyrnn.runtime.loop import forward
from anyrnn.runtime.memory import empty
from anyrnn.runtime.parts import Given, prepare, run_steps
from anyrnn.runtime.sums import Sums

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from anyrnn.compiler.graph import Op, Ref
    from anyrnn.runtime.kernel import Backend
    from anyrnn.runtime.layout import Layout
    from anyrnn.runtime.plans import Plan

_CPU = torch.device("cpu")


def run(
    plan: Plan, backend: Backend, cell: nn.Module, batch: Layout, x: Tensor, states: Sequence[Tensor],
    extras: Sequence[Tensor], from_zero: bool, every: int,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Run the four parts of a cell, `every` so many steps a piece: as `parts.run_parts`, which see."""
    pieces = [*_pieces(batch, every)]
    given = prepare(plan, cell, batch, x, extras, max(piece.layout.total for piece in pieces))
    fields = _Fields(tuple(given.inputs), len(states), tuple(given.constants), tuple(given.tensors), tuple(given.rows))
    work = _Work(plan, backend, batch, pieces, from_zero, fields)
    tensors = fields.joined(given, states)
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return work.run(tensors, batch)  # nothing is kept
    results = _Pieces.apply(work, *tensors)  # type: ignore[no-untyped-call]
    count = len(plan.series)
    return list(results[:count]), list(results[count:])


class Piece(NamedTuple):
    """The steps from `first` to before `last`."""

    first: int
    last: int
    layout: Layout


def _pieces(batch: Layout, every: int) -> Iterator[Piece]:
    """The pieces of a batch in running order, without those in which no row has a step."""
    firsts = range(0, len(batch.rows), every)
    for first in reversed(firsts) if batch.reverse else firsts:
        last = min(first + every, batch.T)
        yield Piece(first, last, batch.piece(first, last))


@dataclass(frozen=True)
class _Fields:
    """Which tensors a call has, in what order."""

    inputs: tuple[Ref, ...]
    states: int
    constants: tuple[str, ...]
    tensors: tuple[Ref, ...]
    rows: tuple[Ref, ...]

    def joined(self, given: Given, states: Sequence[Tensor]) -> list[Tensor]:
        """All of them."""
        others = (given.constants, given.tensors, given.rows)
        return [*given.inputs.values(), *states, *(t for each in others for t in each.values())]

    def split(self, tensors: Sequence[Tensor]) -> tuple[Given, list[Tensor]]:
        """The other way round."""
        rest = iter(tensors)
        inputs = dict(zip(self.inputs, rest, strict=False))
        states = [*itertools.islice(rest, self.states)]
        constants = dict(zip(self.constants, rest, strict=False))
        weights = dict(zip(self.tensors, rest, strict=False))
        return Given(inputs, constants, weights, dict(zip(self.rows, rest, strict=True))), states

    @property
    def of_states(self) -> slice:
        """Where the states are."""
        return slice(len(self.inputs), len(self.inputs) + self.states)

    @property
    def of_constants(self) -> slice:
        """Where the constants are."""
        end = self.of_states.stop
        return slice(end, end + len(self.constants))


@dataclass(frozen=True)
class _Work:
    """A call, but for its tensors."""

    plan: Plan
    backend: Backend
    batch: Layout
    pieces: list[Piece]
    from_zero: bool
    fields: _Fields

    @property
    def draws(self) -> bool:
        """Whether PyTorch draws random numbers around the loop."""
        ops: tuple[Op, ...] = (*self.plan.before.ops, *self.plan.after.ops)
        return any(torch.Tag.nondeterministic_seeded in op.overload.tags for op in ops)

    def of_piece(self, tensors: Sequence[Tensor], piece: Piece, states: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of a piece, which begins with these states."""
        count = len(self.fields.inputs)
        return [
            *(t[piece.first : piece.last] for t in tensors[:count]),
            *states,
            *tensors[self.fields.of_states.stop :],
        ]

    def run(
        self, tensors: Sequence[Tensor], batch: Layout, sums: Sums | None = None, training: bool | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run steps with all that they read: by autograd, unless it is said whether the loop is to be trained."""
        plan, (given, states) = self.plan, self.fields.split(tensors)
        shapes, count = plan.split.graph.shapes, batch.total
        spread = {r for r in given.tensors if shapes[r][:1] == (plan.split.graph.batch,)}  # equal rows
        own = {r: _rows(t, count) if r in spread else t for r, t in given.tensors.items()}
        from_zero = self.from_zero

        def run_loop(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if training is None:
                return autograd.run_loop(plan.loop, batch, self.backend, inputs, from_zero, sums)
            return forward(plan.loop, batch, self.backend, inputs, training)[0]

        return run_steps(plan, Given(given.inputs, given.constants, own, given.rows), batch, states, run_loop)

    def is_trained(self, needed: Sequence[bool]) -> bool:
        """Whether the loop reads anything that has a gradient."""
        fields, plan = self.fields, self.plan
        names = (*fields.inputs, *(None,) * fields.states, *fields.constants, *fields.tensors, *fields.rows)
        around = {r for op in plan.before.ops for r in op.inputs} | {
            r for _, r, role in plan.arrays if role == "stream"
        }
        read = {None, *fields.constants, *around}
        return any(need and name in read for name, need in zip(names, needed, strict=True))


def _rows(tensor: Tensor, count: int) -> Tensor:
    return tensor[:count] if len(tensor) >= count else tensor[:1].expand(count, *tensor.shape[1:])


class _Pieces(torch.autograd.Function):
    """A call in pieces."""

    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor) -> tuple[Tensor, ...]:
        states, draws = list(tensors[work.fields.of_states]), work.draws
        needed = ctx.needs_input_grad[1:]
        training = work.is_trained(needed)
        ctx.work, ctx.begins, ctx.random = work, [], []
        series: list[Tensor] = []
        for piece in work.pieces:
            ctx.begins.append(states)
            ctx.random.append(random_state(_CPU) if draws else torch.empty(0, dtype=torch.uint8, device="cpu"))
            own = work.of_piece(tensors, piece, states)
            if not series:  # with autograd, to see which of the results have a gradient
                with _no_hooks(), torch.enable_grad():
                    found, states = work.run(_leaves(own, needed), piece.layout)
                differentiable = [t.requires_grad for t in (*found, *states)]
                states = [s.detach() for s in states]
                series = [_whole(t, work.batch) for t in found]
            else:
                found, states = work.run(own, piece.layout, training=training)
            for whole, part in zip(series, found, strict=True):
                whole[piece.first : piece.last] = part.detach()
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        results = (*series, *states)
        ctx.mark_non_differentiable(*(t for t, has in zip(results, differentiable, strict=True) if not has))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or any(autograd.is_batched(g) for g in grads if g is not None):
            return None, *_at_once(ctx, ctx.saved_tensors, needed, grads)
        return None, *_by_pieces(ctx, ctx.saved_tensors, needed, grads)


def _by_pieces(
    ctx: Any, tensors: Sequence[Tensor], needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of all tensors, from the last piece to the first."""
    work: _Work = ctx.work
    fields, count = work.fields, len(work.plan.series)
    of_series, of_states = grads[:count], list(grads[count:])
    totals: list[Tensor | None] = [None] * len(tensors)
    sums = Sums()
    for piece, states, random in zip(reversed(work.pieces), ctx.begins[::-1], ctx.random[::-1], strict=True):
        wanted = list(needed)
        if piece.layout.is_continued:
            wanted[fields.of_states] = [True] * fields.states
        own = work.of_piece(tensors, piece, states)
        parts = [None if g is None else g[piece.first : piece.last] for g in of_series]
        if work.plan.direct is not None and work.plan.has_flat_states:
            found = _of_loop(work, piece, own, wanted, [*parts, *of_states], sums)
        else:
            leaves = _leaves(own, wanted)
            with random_from(random, _CPU), _no_hooks(), torch.enable_grad():
                series, finals = work.run(leaves, piece.layout, sums)
            found = _gradients([*series, *finals], [*parts, *of_states], leaves, again=False)
        of_states = found[fields.of_states]
        for k, gradient in enumerate(found):
            if gradient is None:
                continue
            total = totals[k]
            if k >= len(fields.inputs):
                totals[k] = gradient if total is None else total + gradient
                continue
            if total is None:
                total = totals[k] = torch.zeros_like(tensors[k], memory_format=torch.contiguous_format)
            total[piece.first : piece.last] = gradient
    totals[fields.of_states] = of_states
    totals[fields.of_constants] = [sums.found.get(n) if n in sums.reached else None for n in fields.constants]
    return totals


def _of_loop(
    work: _Work, piece: Piece, tensors: Sequence[Tensor], needed: Sequence[bool], grads: Sequence[Tensor | None],
    sums: Sums,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of a piece that is a loop and nothing else: without autograd, which takes its time."""
    plan, loop, fields = work.plan, work.plan.loop, work.fields
    saved: list[ForwardPass] = []

    def run_loop(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results, residuals = forward(loop, piece.layout, work.backend, inputs, training=True)
        saved.append(ForwardPass(loop, piece.layout, work.backend, inputs, residuals, work.from_zero))
        return results

    given, states = fields.split(tensors)
    run_steps(plan, given, piece.layout, states, run_loop)
    streams = {ref: name for name, ref, role in plan.arrays if role == "stream"}
    names = (*map(streams.get, fields.inputs), *loop.states, *fields.constants)
    wanted = {name for name, need in zip(names, needed, strict=False) if need and name is not None}
    results = zip((plan.direct, *loop.states), grads, strict=True)
    grads_out = {name: g for name, g in results if name is not None and g is not None}
    if not grads_out or not wanted:
        return [None] * len(tensors)
    found = of_piece(saved[0], grads_out, wanted, sums)
    return [None if name is None else found.get(name) for name in (*names, *(None,) * (len(tensors) - len(names)))]


def _at_once(
    ctx: Any, tensors: Sequence[Tensor], needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of all tensors by PyTorch's autograd through all pieces, for whoever differentiates them again."""
    work: _Work = ctx.work
    count, again = len(work.plan.series), torch.is_grad_enabled()
    results: list[Tensor] = []
    grads_out: list[Tensor | None] = []
    with _no_hooks(), torch.enable_grad():
        inputs = [t.view_as(t) for t in tensors]  # one tensor may be two of them
        states = inputs[work.fields.of_states]
        for piece, random in zip(work.pieces, ctx.random, strict=True):
            with random_from(random, _CPU):
                series, states = work.run(work.of_piece(inputs, piece, states), piece.layout)
            results += series
            grads_out += [None if g is None else g[piece.first : piece.last] for g in grads[:count]]
        wanted = [t if need else t.detach() for t, need in zip(inputs, needed, strict=True)]
        return _gradients([*results, *states], [*grads_out, *grads[count:]], wanted, again)


def _leaves(tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """The same numbers, with or without a gradient of their own."""
    return [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]


def _gradients(
    results: Sequence[Tensor], grads: Sequence[Tensor | None], tensors: Sequence[Tensor], again: bool
) -> list[Tensor | None]:
    """The gradient of each tensor, None of those without."""
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
    wanted = [t for t in tensors if t.requires_grad]
    if not pairs or not wanted:
        return [None] * len(tensors)
    outputs, grads_out = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, grads_out, create_graph=again, allow_unused=True))
    return [next(found) if t.requires_grad else None for t in tensors]


def _no_hooks() -> contextlib.AbstractContextManager[None]:
    """Save tensors as they are: a piece is gone in a moment, and a kernel reads memory in front of some of them."""
    return torch.autograd.graph.saved_tensors_hooks(_same, _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _whole(part: Tensor, batch: Layout) -> Tensor:
    """Memory for all steps of what is a part of them, zero at padded steps."""
    whole = empty(part, batch.T, batch.B, *part.shape[2:])
    return whole.zero_() if batch.is_ragged else whole
