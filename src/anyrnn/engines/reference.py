"""The reference implementation of a recurrence: a plain loop over the unchanged cell, which defines every result.

The other engines are checked against it, so no part of the compiler is in it. It differentiates through PyTorch's
autograd and therefore does whatever the cell can do: any dtype and device, second derivatives, `vmap`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.nn import functional as F

from anyrnn.engines.checkpoint import run_checkpointed
from anyrnn.engines.unrolled import loop_of
from anyrnn.protocol import outside_inference_mode, shape_of
from anyrnn.randomness import own_random_numbers
from anyrnn.records import innermost, locals_of, recorded_of
from anyrnn.runtime.call import NO_REQUEST, Result, SeriesForm
from anyrnn.twin import with_own_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from anyrnn.runtime.call import Call
    from anyrnn.runtime.stepping import Steps


class ReferenceEngine:
    """Runs any cell, step by step."""

    name = "reference"

    def refusal(self, call: Call) -> None:
        """Never refuse."""

    def anatomy(self, call: Call) -> None:
        """Take the cell as it is."""

    def steps(self, call: Call, before: Steps | None = None) -> Steps:
        """Prepare to run a call of one step again and again."""
        return _PlainSteps(call, before)

    def run(self, call: Call) -> Result:
        """Run the call, step by step."""
        return _run(call) if call.checkpoint_every is None else run_checkpointed(call, _run)


def _run(call: Call) -> Result:
    return _run_full(call) if call.lengths is None else _run_ragged(call, call.lengths)


class _PlainSteps:
    """The steps of a cell as it is, on buffers; see `anyrnn.runtime.stepping.Steps`.

    Its weights and contexts are those of the moment at which this is made.
    """

    def __init__(self, call: Call, before: Steps | None) -> None:
        with outside_inference_mode(), torch.no_grad():
            self.states = [s.clone(memory_format=torch.contiguous_format) for s in call.states]
            extras = (e.alike(e.tensor[0] if e.kind == "input" else e.tensor.clone()) for e in call.extras)
            self._extras = [(e.key, e.tensor) for e in extras]
            self._x, self._cell, self._signature = call.x[0], with_own_weights(call.cell), call.signature
            self.outputs = self._new_outputs() if before is None else before.outputs

    def _new_outputs(self) -> list[Tensor]:
        """Memory for what a step gives, of the types that a step on zeros shows."""
        with own_random_numbers():
            zeros = tuple(torch.zeros_like(s) for s in self.states)
            extras = [(key, torch.zeros_like(t)) for key, t in self._extras]
            outputs, _ = self._signature.step(with_own_weights(self._cell), torch.zeros_like(self._x), zeros, extras)
            return [torch.zeros_like(o, memory_format=torch.contiguous_format) for o in outputs]

    def anatomy(self) -> None:
        """Nothing is compiled."""

    def launch(self) -> None:
        """Run a step, on copies: a cell may write into what it is given."""
        with torch.no_grad():
            extras = [(key, t.clone()) for key, t in self._extras]
            states = tuple([s.clone() for s in self.states])
            outputs, new = self._signature.step(self._cell, self._x.clone(), states, extras)
            for buffer, value in zip((*self.outputs, *self.states), (*outputs, *new), strict=True):
                buffer.copy_(value)


def _run_full(call: Call) -> Result:
    """Run all rows at every step.

    A step may write into what it is given: these are copies, not the caller's tensors, nor outputs. The state is copied
    for a step only after another was seen to write into it: autograd may have saved the tensor that is written into.
    """
    step, states = _Stepper(call), tuple(s.clone() for s in call.states)
    copies, steps = _hides_writes(), iter(step.inputs())
    loop = None if copies or call.extras or call.request != NO_REQUEST else loop_of(call.signature)
    if loop is not None:
        states, copies = loop(call.cell, steps, states, step.series.append, call.signature)
    for x, inputs in steps:
        extras = [*inputs, *step.context()] if call.extras else []
        if copies:
            new = step(x, tuple(s.clone() for s in states), extras)
        else:
            # A step may have made them in inference mode, where what is written is not counted.
            states = tuple([s.clone() if s.is_inference() else s for s in states])
            versions = [s._version for s in states]
            new = step(x, states, extras)
            for s, version in zip(states, versions, strict=True):
                copies |= s._version != version
        states = _keep_dtype(new, states)
    if not step.series:
        return _without_steps(call)
    stacked = [_stacked(call, steps) for steps in zip(*step.series, strict=True)]
    return Result(stacked, tuple(s.clone() for s in states))


def _hides_writes() -> bool:
    """Whether it cannot be seen that a step has written into a tensor."""
    return torch.compiler.is_compiling() or torch.is_inference_mode_enabled()


def _stacked(call: Call, steps: Sequence[Tensor]) -> Tensor:
    return call.in_type_of_x(torch.stack([*reversed(steps)] if call.reverse else [*steps]))


Arguments: TypeAlias = "list[tuple[int | str, Tensor]]"


class _Stepper:
    """Runs single steps of a call.

    Attributes:
        series: For each step so far, what there is for every step: outputs, records and states.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.series: list[list[Tensor]] = []
        self._context: Arguments | None = None

    def __call__(self, x: Tensor, states: tuple[Tensor, ...], extras: Arguments) -> tuple[Tensor, ...]:
        """Run a step: the new states."""
        call = self.call
        if call.request.record:
            variables: dict[str, Any] = {}
            with locals_of(call.cell, variables):
                outputs, new = call.signature.step(call.cell, x, states, extras)
            names = call.request.record
            outputs = (*outputs, *recorded_of(type(innermost(call.cell)).__name__, variables, names, len(x)))
        else:
            outputs, new = call.signature.step(call.cell, x, states, extras)
        if call.request.states:
            outputs = (*outputs, *new)
        # Copies: a cell may have passed a state through, returned it twice, or may write into it at the next step.
        self.series.append([*map(torch.clone, outputs)])
        return new

    def context(self, order: Tensor | None = None) -> Arguments:
        """What is the same at every step, the rows in an order: copies, since a cell may write into them."""
        is_seen = self._context is not None and (not self._context or not _hides_writes())
        if is_seen and not any(tensor._version for _, tensor in self._context or ()):
            return self._context or []
        extras = [e for e in self.call.extras if e.kind != "input"]
        sort = [order is not None and e.kind == "context" for e in extras]
        self._context = [
            (e.key, e.tensor.index_select(0, order) if s else e.tensor.clone())  # type: ignore[arg-type]
            for e, s in zip(extras, sort, strict=True)
        ]
        return self._context

    def inputs(self) -> Iterator[tuple[Tensor, Arguments]]:
        """The x of each step and the further arguments that have one for each step, in the order of the steps."""
        keys = [e.key for e in self.call.extras if e.kind == "input"]
        tensors = [self.call.x, *(e.tensor for e in self.call.extras if e.kind == "input")]
        rows = [_steps(t, self.call.reverse) for t in tensors]
        if not keys:
            return zip(rows[0], itertools.repeat([]))
        return ((x, list(zip(keys, extras, strict=True))) for x, *extras in zip(*rows, strict=True))


def _without_steps(call: Call) -> Result:
    """The result where no row has a step; a step on zeros shows the forms of what there would be for every step."""
    signature, dtype = call.signature, call.x.dtype
    if call.request == NO_REQUEST:
        return call.without_steps([SeriesForm(shape_of(size), dtype) for size in signature.output_sizes])
    rows = 1
    with torch.no_grad():
        step = _Stepper(call)
        zeros = tuple(s.new_zeros(rows, *s.shape[1:]) for s in call.states)
        extras = [(e.key, e.tensor.new_zeros(e.form.lead(rows))) for e in call.extras]
        step(call.x.new_zeros(rows, *call.x.shape[2:]), zeros, extras)
    return call.without_steps([SeriesForm(tuple(t.shape[1:]), t.dtype) for t in step.series[0]])


def _steps(sequence: Tensor, reverse: bool) -> Sequence[Tensor]:
    """The (B, ...) of each step, in the order of the steps: copies, so that a cell may write into them."""
    if torch.is_grad_enabled():
        # Not x[t]: the gradient of each would be as large as x, and to write into one is to write into all.
        rows = [row.clone() for row in sequence.unbind(0)] if len(sequence) else []
    else:
        sequence = sequence.clone()
        rows = [sequence[t] for t in range(len(sequence))]
    return rows[::-1] if reverse else rows


def _run_ragged(call: Call, lengths: Tensor) -> Result:
    """Run only the rows that are valid at each step, so that a cell never sees padding.

    With the rows sorted by length, longest first, the rows valid at step t are the first n. Downwards in t, too:
    a row then joins at its own last valid step.
    """
    T, B = call.x.shape[:2]
    lengths, order = lengths.cpu().sort(descending=True, stable=True)
    back = order.argsort().to(call.x.device)
    order = order.to(call.x.device)
    states = tuple(s.index_select(0, order) for s in call.states)
    active = (lengths > torch.arange(T, device="cpu").unsqueeze(1)).sum(1).tolist()
    step = _Stepper(call)
    by_row = {e.key for e in call.extras if e.kind != "shared"}
    for t, (x, inputs) in zip(reversed(range(T)) if call.reverse else range(T), step.inputs(), strict=True):
        n = active[t]
        if n == 0:
            continue
        rows = order[:n]
        sorted_inputs = [(key, tensor.index_select(0, rows)) for key, tensor in inputs]
        extras = [*sorted_inputs, *((key, c[:n] if key in by_row else c) for key, c in step.context(order))]
        new = step(x.index_select(0, rows), tuple(s[:n] for s in states), extras)
        new = _keep_dtype(new, states)
        states = tuple(torch.cat([k, s[n:]]) for k, s in zip(new, states, strict=True))
    if not step.series:
        return _without_steps(call)
    padded = ([_padded(t, B) for t in steps] for steps in zip(*step.series, strict=True))
    series = [_padded(_stacked(call, steps), T).index_select(1, back) for steps in padded]
    return Result(series, tuple(s.index_select(0, back) for s in states))


def _padded(rows: Tensor, count: int) -> Tensor:
    """The rows, padded with zeros to be so many."""
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, count - len(rows)))


def _keep_dtype(new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cast the new state to the dtype of the old one, which a step under autocast may have lowered."""
    for n, o in zip(new, old, strict=True):
        if n.dtype is not o.dtype:
            return tuple(n.to(o.dtype) for n, o in zip(new, old, strict=True))
    return new
