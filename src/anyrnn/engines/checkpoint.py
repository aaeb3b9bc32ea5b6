"""A call of any engine in pieces, each of which PyTorch's checkpoints run again within the backward pass.

It is for engines that run a call by PyTorch's own operations. `anyrnn.runtime.pieces` is that of compiled engines.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anyrnn.runtime.call import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyrnn.runtime.call import Call


def run_checkpointed(call: Call, run: Callable[[Call], Result]) -> Result:
    """Run a call in pieces, by a function that runs a call.

    What is kept of a piece is the state before it, and PyTorch's list of its operations, without their tensors. Below
    torch.func everything is kept: PyTorch's checkpoints do not work there.
    """
    T, every = len(call.x), call.checkpoint_every or len(call.x)
    firsts = range(0, _steps(call), every)
    is_kept = not torch.is_grad_enabled() or torch._C._functorch.maybe_current_level() is not None
    if is_kept or len(firsts) < 2:
        return run(call)
    back = None
    if call.lengths is not None:
        call, back = _sorted(call, call.lengths)
    states, pieces = call.states, list[tuple[Tensor, ...]]()
    for first in reversed(firsts) if call.reverse else firsts:
        piece = _piece(call, first, min(first + every, T))
        series, states = _run_again_for_backward(piece, states, run)
        pieces.append(series)
    if call.reverse:
        pieces.reverse()
    joined = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    padded = [F.pad(t, (0, 0) * (t.dim() - 1) + (0, T - len(t))) for t in joined]
    if back is None:
        return Result(padded, states)
    return Result([t.index_select(1, back) for t in padded], tuple(s.index_select(0, back) for s in states))


def _sorted(call: Call, lengths: Tensor) -> tuple[Call, Tensor]:
    """The call with the longest rows first, in which order they are in all pieces; and where each row is then."""
    lengths, order = lengths.sort(descending=True, stable=True)
    there = order.to(call.x.device)
    axes = {"input": 1, "context": 0}
    extras = (e if e.kind == "shared" else e.alike(e.tensor.index_select(axes[e.kind], there)) for e in call.extras)
    states = tuple(s.index_select(0, there) for s in call.states)
    x = call.x.index_select(1, there)
    return replace(call, x=x, states=states, lengths=lengths, extras=tuple(extras), memo={}), there.argsort()


def _steps(call: Call) -> int:
    """The number of steps of the longest row."""
    return len(call.x) if call.lengths is None else int(call.lengths.max())


def _piece(call: Call, first: int, last: int) -> Call:
    """The steps from `first` to before `last`."""
    extras = tuple(e.alike(e.tensor[first:last]) if e.kind == "input" else e for e in call.extras)
    lengths = None if call.lengths is None else (call.lengths - first).clamp(0, last - first)
    return replace(call, x=call.x[first:last], lengths=lengths, extras=extras, from_zero=False, memo={})


def _run_again_for_backward(
    piece: Call, states: tuple[Tensor, ...], run: Callable[[Call], Result]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run a piece from its states on, keeping nothing; PyTorch runs it again when it needs what it has computed."""
    count = len(states)

    def steps(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        extras = tuple(e.alike(t) for e, t in zip(piece.extras, others[count:], strict=True))
        result = run(replace(piece, x=x, states=others[:count], extras=extras))
        return (*result.series, *result.states)

    tensors: Iterator[Tensor] = (e.tensor for e in piece.extras)
    results: tuple[Any, ...] = checkpoint(steps, piece.x, *states, *tensors, use_reentrant=False)
    return results[:-count], results[-count:]
