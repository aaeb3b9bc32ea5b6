"""The living definition of what running a cell along a sequence means: a plain loop over the unchanged cell.

Everything else is checked against it, so it shares no code with anything else. It differentiates through PyTorch's
autograd and therefore does whatever the cell can do: any dtype and device, second derivatives, `vmap`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from anyrnn.engines.call import Call


class ReferenceEngine:
    """Runs any cell, step by step."""

    name = "reference"

    def refusal(self, call: Call) -> None:
        """Never refuse."""

    def anatomy(self, call: Call) -> None:
        """Take the cell as it is."""

    def run(self, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output (T, B, O) and the final state variables (B, size)."""
        return _run_full(call) if call.lengths is None else _run_ragged(call, call.lengths)


def _run_full(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run all rows at every step.

    A step may do to its x and state what it likes: they are its own, neither the caller's nor an output. The state is
    copied for a step only from where one was seen to write into it: autograd may have kept what is written into.
    """
    step, cell, states = call.signature.step, call.cell, tuple(s.clone() for s in call.states)
    copies = torch.is_inference_mode_enabled() or torch.compiler.is_compiling()  # where writes cannot be seen
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
        return call.without_steps()
    # A cell may have passed a state through, or returned it twice.
    return torch.stack(outputs[::-1] if call.reverse else outputs), tuple(s.clone() for s in states)


def _steps(x: Tensor, reverse: bool) -> Sequence[Tensor]:
    """The rows (B, I) of each step, in running order: copies, so that a cell may write to what it is given."""
    if torch.is_grad_enabled():
        # Not x[t]: the gradient of each would be as large as x, and to write into one is to write into all.
        rows = [row.clone() for row in x.unbind(0)] if len(x) else []
    else:
        x = x.clone()
        rows = [x[t] for t in range(len(x))]
    return rows[::-1] if reverse else rows


def _run_ragged(call: Call, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
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
    outputs: list[Tensor] = []
    for t in reversed(range(T)) if call.reverse else range(T):
        n = active[t]
        if n == 0:
            continue
        output, new = call.signature.step(call.cell, inputs[t][:n].clone(), tuple(s[:n] for s in states))
        new = _keep_dtype(new, states)
        states = tuple(torch.cat([k, s[n:]]) for k, s in zip(new, states, strict=True))
        outputs.append(F.pad(output, (0, 0, 0, B - n)))
    if not outputs:
        return call.without_steps()
    output = torch.stack(outputs[::-1] if call.reverse else outputs)
    output = F.pad(output, (0, 0, 0, 0, 0, T - len(outputs)))
    return output.index_select(1, back), tuple(s.index_select(0, back) for s in states)


def _keep_dtype(new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Keep the state in its own precision where a step, under autocast, returns a lower one."""
    for n, o in zip(new, old, strict=True):
        if n.dtype is not o.dtype:
            return tuple(n.to(o.dtype) for n, o in zip(new, old, strict=True))
    return new
