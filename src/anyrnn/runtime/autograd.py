"""A loop as one differentiable operation."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor

from anyrnn.compiler.graph import PLAIN
from anyrnn.errors import AnyRNNError
from anyrnn.runtime.gradients import ForwardPass, backward, backward_by_autograd
from anyrnn.runtime.loop import Loop, forward

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anyrnn.runtime.kernel import Backend
    from anyrnn.runtime.layout import Layout
    from anyrnn.runtime.sums import Sums


def run_loop(
    loop: Loop, layout: Layout, backend: Backend, inputs: Mapping[str, Tensor], from_zero: bool = False,
    sums: Sums | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Run a loop.

    Args:
        loop: The loop.
        layout: The rows of the batch.
        backend: What compiles and runs it.
        inputs: Its streams (T, B, width), or (N, width) with the active rows only, as the program says; initial
            states (B, width), vectors and matrices; by name.
        from_zero: The initial states are zero.
        sums: If this is a piece of a sequence, where the gradients of rows, vectors and matrices are summed up, which
            autograd is not given then.

    Returns:
        The outputs (T, B, width), zero at padded steps, and the final states (B, width), by name.
    """
    tensors = [inputs[name] for name in loop.inputs]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        results = _LoopFunction.apply(loop, layout, backend, from_zero, sums, *tensors)  # type: ignore[no-untyped-call]
        return dict(zip((*loop.outputs, *loop.states), results, strict=True))
    return forward(loop, layout, backend, inputs, training=False)[0]


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Let products compute in the type of what they are given."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else contextlib.nullcontext()


class _LoopFunction(torch.autograd.Function):
    """The loop with its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, loop: Loop, layout: Layout, backend: Backend, from_zero: bool, sums: Sums | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        results, residuals = forward(loop, layout, backend, dict(zip(loop.inputs, tensors, strict=True)), training=True)
        ctx.loop, ctx.layout, ctx.backend, ctx.from_zero, ctx.sums = loop, layout, backend, from_zero, sums
        ctx.residuals = tuple(residuals)
        saved = (*tensors, *residuals.values())
        ctx.forms = [_form(t) for t in saved] if _is_hooked() else None
        ctx.places = [t.data_ptr() for t in saved]
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        needed = frozenset(itertools.compress(loop.inputs, ctx.needs_input_grad[_OTHERS:]))
        unreached = loop.paths.unreached(needed, len(layout.rows), layout.is_ragged)
        if unreached:
            ctx.mark_non_differentiable(*(results[name] for name in unreached))
        return tuple(results[name] for name in (*loop.outputs, *loop.states))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        loop, layout, names = ctx.loop, ctx.layout, ctx.loop.inputs
        tensors = _saved(ctx)
        inputs = dict(zip(names, tensors, strict=False))
        residuals = dict(zip(ctx.residuals, tensors[len(names) :], strict=True))
        grads_out = {n: g for n, g in zip((*loop.outputs, *loop.states), grads, strict=True) if g is not None}
        reached = loop.paths.reached(grads_out, len(layout.rows), layout.is_ragged)
        needed = [n for n in itertools.compress(names, ctx.needs_input_grad[_OTHERS:]) if n in reached]
        if ctx.sums is not None:
            saved = ForwardPass(loop, layout, ctx.backend, inputs, residuals, ctx.from_zero)
            found = of_piece(saved, grads_out, [*itertools.compress(names, ctx.needs_input_grad[_OTHERS:])], ctx.sums)
            return *(None,) * _OTHERS, *map(found.get, names)
        grads_in: Mapping[str, Tensor | None] = {}
        if needed:
            with without_autocast():
                # Somebody wants the gradient of this gradient, or asks for many at once, in a batch of which only
                # PyTorch knows (`is_grads_batched`, `jacobian(vectorize=True)`).
                if torch.is_grad_enabled() or any(map(is_batched, grads_out.values())):
                    grads_in = backward_by_autograd(loop, layout, inputs, grads_out, needed)
                else:
                    saved = ForwardPass(loop, layout, ctx.backend, inputs, residuals, ctx.from_zero)
                    grads_in = backward(saved, grads_out, needed)
        wanted = frozenset(needed)
        return *(None,) * _OTHERS, *(grads_in[n] if n in wanted else None for n in names)


def of_piece(
    saved: ForwardPass, grads_out: Mapping[str, Tensor], needed: Collection[str], sums: Sums
) -> dict[str, Tensor]:
    """The gradients of streams and states of a piece; those that are summed up over all pieces are among the sums.

    Args:
        saved: Its forward pass.
        grads_out: The gradients of its outputs and final states, as far as there are any.
        needed: Of which inputs the gradients are wanted. Sums have to go on whether or not autograd would reach them
            from this piece.
        sums: Those over the pieces after it.
    """
    loop, layout = saved.loop, saved.layout
    reached = loop.paths.reached(grads_out, len(layout.rows), layout.is_ragged)
    with without_autocast():
        grads_in = backward(saved, grads_out, needed, sums)
    sums.reached.update(reached)
    summed = {a.name for a in loop.program.of("row", "vector", "matrix")}
    sums.found.update((name, grads_in[name]) for name in summed.intersection(needed))
    return {name: grads_in[name] for name in needed if name in reached and name not in summed}


_OTHERS = 5  # arguments of the function before the tensors


def _is_hooked() -> bool:
    """Whether hooks are asked for tensors that are saved now."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _saved(ctx: Any) -> Sequence[Tensor]:
    """The tensors that were saved, as they were: hooks on saved tensors may hand back equal numbers in another form."""
    tensors: Sequence[Tensor] = ctx.saved_tensors
    if ctx.forms is not None:
        return [_as_saved(t, form) for t, form in zip(tensors, ctx.forms, strict=True)]
    if [t.data_ptr() for t in tensors] == ctx.places:
        return tensors
    # Somebody has put hooks on single tensors, later: of these all that is known is that their numbers are equal.
    dtype = tensors[0].dtype
    return [t.to_dense().to(dtype).resolve_neg().contiguous() for t in tensors]


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout


def _as_saved(tensor: Tensor, form: tuple[Any, ...]) -> Tensor:
    """Return a tensor as it was saved."""
    shape, stride, dtype, device, layout = form
    tensor = tensor if tensor.layout is layout else tensor.to_dense()
    if tensor.__class__ in PLAIN and _form(tensor) == form and not tensor.is_neg():
        return tensor
    if tensor.shape != shape:
        msg = f"a tensor {tuple(shape)} was saved for the backward pass, and hooks on saved tensors gave {tensor.shape}"
        raise AnyRNNError(msg)
    tensor = tensor.to(device, dtype)
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(tensor)


def is_batched(grad: Tensor) -> bool:
    """Whether a gradient is many at once, in a batch of which only PyTorch knows."""
    return bool(is_batchedtensor(grad) or is_legacy_batchedtensor(grad))
