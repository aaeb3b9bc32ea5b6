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
from anyrnn.errors import AnyRNNError
from anyrnn.graph import PLAIN

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

    Streams, which may have any shape in the cell, are matrices from here on: a row of numbers for each row and step.
    Returns the outputs (T, B, width), zero at padded steps, and the final states (B, size).
    """
    rows = [s if s.dim() == 2 or k in loop.padded else s.reshape(len(s), -1) for k, s in enumerate(streams)]
    tensors = [*rows, *states, *vectors, *matrices]
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
        ctx.forms = [_form(t) for t in (*tensors, *sequences, *saved)]
        ctx.save_for_backward(*tensors, *sequences, *saved)
        ctx.set_materialize_grads(False)
        unreached = loop.paths.unreached(ctx.needs_input_grad[3:], len(layout.rows), layout.is_ragged)
        ctx.mark_non_differentiable(*(results[k] for k in unreached))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        loop, layout, needed = ctx.loop, ctx.layout, ctx.needs_input_grad[3:]
        kept = [_as_saved(t, form) for t, form in zip(ctx.saved_tensors, ctx.forms, strict=True)]
        states, count, outputs = len(loop.program.states), len(needed), len(loop.program.outputs)
        has = [g is not None for g in grads]
        reached = loop.paths.flags(has[:outputs], has[outputs:], len(layout.rows), layout.is_ragged)
        needed = [n and r for n, r in zip(needed, reached, strict=True)]
        if not any(needed):
            return (None,) * (3 + count)
        with without_autocast():
            # Somebody wants the gradient of this gradient, or asks for many at once, in a batch of which only PyTorch
            # knows (`is_grads_batched`, `jacobian(vectorize=True)`).
            if torch.is_grad_enabled() or any(map(_is_batched, grads)):
                found = replayed(loop, layout, kept[:count], grads, needed)
            else:
                made = Pass(
                    loop, layout, ctx.machine, kept[:count], kept[count : count + states], kept[count + states :]
                )
                found = backward(made, grads, needed, ctx.from_zero)
        return None, None, None, *(g if n else None for g, n in zip(found, needed, strict=True))


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout


def _as_saved(tensor: Tensor, form: tuple[Any, ...]) -> Tensor:
    """Return a tensor as it was saved: hooks on saved tensors may hand back equal numbers in another form."""
    shape, stride, dtype, device, layout = form
    tensor = tensor if tensor.layout is layout else tensor.to_dense()
    if tensor.__class__ in PLAIN and _form(tensor) == form and not tensor.is_neg():
        return tensor
    if tensor.shape != shape:
        msg = f"a tensor {tuple(shape)} was saved for the backward pass, and hooks on saved tensors gave {tensor.shape}"
        raise AnyRNNError(msg)
    tensor = tensor.to(device, dtype)
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(tensor)


def _is_batched(grad: Tensor | None) -> bool:
    return grad is not None and (is_batchedtensor(grad) or is_legacy_batchedtensor(grad))
