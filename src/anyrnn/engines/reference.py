"""The reference implementation of a recurrence: a plain loop over the unchanged cell, which defines every result.

The other engines are checked against it, so no part of the compiler is in it. It differentiates through PyTorch's
autograd and therefore does whatever the cell can do: any dtype and device, second derivatives, `vmap`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from anyrnn.records import locals_of, recorded_of
from anyrnn.runtime.call import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from anyrnn.runtime.call import Call


class ReferenceEngine:
    """Runs any cell, step by step."""

    name = "reference"

    def refusal(self, call: Call) -> None:
        """Never refuse."""

    def anatomy(self, call: Call) -> None:
        """Take the cell as it is."""

    def run(self, call: Call) -> Result:
        """Run the call, step by step."""
        return _run_full(call) if call.lengths is None else _run_ragged(call, call.lengths)


def _run_full(call: Call) -> Result:
    """Run all rows at every step.

    A step may write into its x and state: they are copies, not the caller's tensors, nor outputs. The state is copied
    for a step only after another was seen to write into it: autograd may have saved the tensor that is written into.
    """
    records: list[list[Tensor]] = []
    step, cell, states = _stepper(call, records), call.cell, tuple(s.clone() for s in call.states)
    copies = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()  # where writes cannot be seen
    outputs: list[Tensor] = []
    for x in _steps(call.x, call.reverse):
        if copies:
            output, new = step(cell, x, tuple(s.clone() for s in states))
        else:
            versions = [s._version for s in states]
            output, new = step(cell, x, states)
            copies = versions != [s._version for s in states]
        states = _keep_dtype(new, states)
        outputs.append(output.clone())
    if not outputs:
        return _without_steps(call)
    # A cell may have passed a state through, or returned it twice.
    stacked = (_stacked(call, steps) for steps in zip(*records, strict=True))
    recorded = dict(zip(call.request.record, stacked, strict=True))
    return Result(_stacked(call, outputs), tuple(s.clone() for s in states), recorded)


def _stacked(call: Call, steps: Sequence[Tensor]) -> Tensor:
    return torch.stack([*reversed(steps)] if call.reverse else [*steps])


def _stepper(call: Call, records: list[list[Tensor]]) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """A step; it adds the local variables to be recorded, if any, to `records`."""
    step, names = call.signature.step, call.request.record
    if not names:
        return step

    def watched(cell: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        with locals_of(cell) as variables:
            output, new = step(cell, x, states)
        records.append([t.clone() for t in recorded_of(type(cell).__name__, variables, names, len(x))])
        return output, new

    return watched


def _without_steps(call: Call) -> Result:
    """The result where no row has a step; a step on zeros shows the shapes of the records."""
    if not call.request.record:
        return call.without_steps()
    x = call.x
    with torch.no_grad():
        zeros = tuple(s.new_zeros(1, s.shape[1]) for s in call.states)
        records: list[list[Tensor]] = []
        _stepper(call, records)(call.cell, x.new_zeros(1, x.shape[2]), zeros)
    pairs = zip(call.request.record, records[0], strict=True)
    return call.without_steps({name: t.new_zeros(*x.shape[:2], *t.shape[1:]) for name, t in pairs})


def _steps(x: Tensor, reverse: bool) -> Sequence[Tensor]:
    """The x (B, I) of each step, in the order of the steps: copies, so that a cell may write into them."""
    if torch.is_grad_enabled():
        # Not x[t]: the gradient of each would be as large as x, and to write into one is to write into all.
        rows = [row.clone() for row in x.unbind(0)] if len(x) else []
    else:
        x = x.clone()
        rows = [x[t] for t in range(len(x))]
    return rows[::-1] if reverse else rows


def _run_ragged(call: Call, lengths: Tensor) -> Result:
    """Run only the rows that are valid at each step, so that a cell never sees padding.

    With the rows sorted by length, longest first, the rows valid at step t are the first n. Downwards in t, too:
    a row then joins at its own last valid step.
    """
    T, B, _ = call.x.shape
    lengths, order = lengths.cpu().sort(descending=True, stable=True)
    back = order.argsort().to(call.x.device)
    order = order.to(call.x.device)
    inputs = call.x.index_select(1, order).unbind(0) if T else ()
    states = tuple(s.index_select(0, order) for s in call.states)
    active = (lengths > torch.arange(T, device="cpu").unsqueeze(1)).sum(1).tolist()
    records: list[list[Tensor]] = []
    step = _stepper(call, records)
    outputs: list[Tensor] = []
    for t in reversed(range(T)) if call.reverse else range(T):
        n = active[t]
        if n == 0:
            continue
        output, new = step(call.cell, inputs[t][:n].clone(), tuple(s[:n] for s in states))
        new = _keep_dtype(new, states)
        states = tuple(torch.cat([k, s[n:]]) for k, s in zip(new, states, strict=True))
        outputs.append(_padded(output, B))
    if not outputs:
        return _without_steps(call)

    def whole(steps: Sequence[Tensor]) -> Tensor:
        stacked = _stacked(call, steps)
        return _padded(stacked, T).index_select(1, back)

    padded = ([_padded(t, B) for t in locals_] for locals_ in records)
    recorded = dict(zip(call.request.record, map(whole, zip(*padded, strict=True)), strict=True))
    return Result(whole(outputs), tuple(s.index_select(0, back) for s in states), recorded)


def _padded(rows: Tensor, count: int) -> Tensor:
    """The rows, padded with zeros to be so many."""
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, count - len(rows)))


def _keep_dtype(new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cast the new state to the dtype of the old one, which a step under autocast may have lowered."""
    for n, o in zip(new, old, strict=True):
        if n.dtype is not o.dtype:
            return tuple(n.to(o.dtype) for n, o in zip(new, old, strict=True))
    return new
