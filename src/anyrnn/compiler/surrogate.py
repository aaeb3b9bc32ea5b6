"""The operator ``anyrnn::surrogate(value, x, slope)``: a value with a gradient of its own.

It is ``value``, and its derivatives are those of ``value + slope * x``, the slope held fixed. So a function whose
gradient is not its own, such as the step of a spiking neuron, is operations of PyTorch's and this one: they can be
recorded, written down, and lowered. Differentiated twice, the slope is what it was computed from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_LIBRARY = torch.library.Library("anyrnn", "FRAGMENT")
_LIBRARY.define("surrogate(Tensor value, Tensor x, Tensor slope) -> Tensor", tags=(torch.Tag.pointwise,))


def surrogate(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """Return the value, with the gradient of ``value + slope * x``."""
    result: Tensor = torch.ops.anyrnn.surrogate.default(value, x, slope)
    return result


def methods_of(cls: Any) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return what a function's class is made of; its names, read here in a trace, are guarded like those of a cell."""
    return cls.forward, cls.backward, cls.setup_context


class Surrogate(torch.autograd.Function):
    """The operator below autograd, and its derivative."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        """Compute it, as one operation of those that a dispatch mode sees."""
        ctx.save_for_backward(slope)
        ctx.set_materialize_grads(False)
        ctx.shapes = value.shape, x.shape
        with torch.enable_grad():  # it is no operation without a gradient
            return _below_autograd(value, x, slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of value and x."""
        if grad is None:  # it is in a slope, and slopes are held fixed
            return None, None, None
        (slope,) = ctx.saved_tensors
        of_value, of_x = ctx.shapes
        return (
            _summed_to(grad, of_value) if ctx.needs_input_grad[0] else None,
            _summed_to(grad * slope, of_x) if ctx.needs_input_grad[1] else None,
            None,
        )


def _summed_to(grad: Tensor, shape: torch.Size) -> Tensor:
    return grad if grad.shape == shape else grad.sum_to_size(shape)


def _below_autograd(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return surrogate(value, x, slope)


def _differentiable(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (value.requires_grad or x.requires_grad):
        result: Tensor = Surrogate.apply(value, x, slope)  # type: ignore[no-untyped-call]
        return result
    return _below_autograd(value, x, slope)


def _value(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    # Not broadcast_shapes, which loads a package for symbolic mathematics.
    first: Tensor = torch.broadcast_tensors(value, x, slope)[0]
    return first.clone(memory_format=torch.contiguous_format)


_LIBRARY.impl("surrogate", _value, "CompositeExplicitAutograd")
_LIBRARY.impl("surrogate", _differentiable, "Autograd")
