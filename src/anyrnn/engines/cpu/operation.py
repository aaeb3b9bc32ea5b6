"""A loop as one differentiable operation."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor

from anyrnn.engines.cpu.gradients import Pass, backward, replayed
from anyrnn.engines.cpu.loop import Loop, forward
from anyrnn.engines.cpu.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.engines.cpu.layout import Layout


def run(
    loop: Loop,
    layout: Layout,
    streams: Sequence[Tensor],
    states: Sequence[Tensor],
    vectors: Sequence[Tensor],
    matrices: Sequence[Tensor],
    from_zero: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a loop. `from_zero` says that the states are zero.

    Returns the outputs (T, B, width), zero at padded steps, and the final states (B, size).
    """
    tensors = [*streams, *states, *vectors, *matrices]
    count = len(loop.program.outputs)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        results = _LoopFunction.apply(loop, layout, from_zero, *tensors)  # type: ignore[no-untyped-call]
    else:
        results = forward(loop, layout, Machine.host(), tensors, training=False)[0]
    return list(results[:count]), list(results[count:])


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Let products compute in the type of what they are given."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else contextlib.nullcontext()


class _LoopFunction(torch.autograd.Function):
    """The loop with its backward pass."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, layout: Layout, from_zero: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        machine = Machine.host()
        results, sequences, saved = forward(loop, layout, machine, tensors, training=True)
        ctx.loop, ctx.layout, ctx.machine, ctx.from_zero = loop, layout, machine, from_zero
        ctx.save_for_backward(*tensors, *sequences, *saved)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        loop, layout, needed = ctx.loop, ctx.layout, ctx.needs_input_grad[3:]
        kept = ctx.saved_tensors
        states, count = len(loop.program.states), len(needed)
        with without_autocast():
            # Somebody wants the gradient of this gradient, or asks for many at once, in a batch of which only PyTorch
            # knows (`is_grads_batched`, `jacobian(vectorize=True)`).
            if torch.is_grad_enabled() or any(map(_is_batched, grads)):
                return None, None, None, *replayed(loop, layout, kept[:count], grads, needed)
            made = Pass(loop, layout, ctx.machine, kept[:count], kept[count : count + states], kept[count + states :])
            return None, None, None, *backward(made, grads, needed, ctx.from_zero)


def _is_batched(grad: Tensor | None) -> bool:
    return grad is not None and (is_batchedtensor(grad) or is_legacy_batchedtensor(grad))
