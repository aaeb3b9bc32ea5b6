"""The operators ``anyrnn::clip_gradient(x, bound)`` and ``anyrnn::clip_gradient_norm(x, bound)``: x with less gradient.

Both are x. The gradient that arrives is limited on its way to x: each number of it to [-bound, bound], or the whole of
each row to a norm of at most `bound`, by what it has too much in length. So it can be limited between two steps of a
recurrence, where no hook reaches: a step is recorded with these operators in it, and differentiated as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_LIBRARY = torch.library.Library("anyrnn", "FRAGMENT")


def clip_gradient(x: Tensor, bound: Tensor) -> Tensor:
    """Return x, whose gradient is limited to [-bound, bound]; `bound` is one number."""
    result: Tensor = torch.ops.anyrnn.clip_gradient.default(x, bound)
    return result


def clip_gradient_norm(x: Tensor, bound: Tensor) -> Tensor:
    """Return x (B, n), whose gradient has in each row a norm of at most `bound`, one number above zero."""
    result: Tensor = torch.ops.anyrnn.clip_gradient_norm.default(x, bound)
    return result


def _by_value(grad: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(grad, -bound), bound)


def _by_norm(grad: Tensor, bound: Tensor) -> Tensor:
    norm = (grad * grad).sum(-1, keepdim=True).sqrt()
    return grad * (bound / torch.maximum(norm, bound))


def _define(name: str, operator: Callable[[Tensor, Tensor], Tensor], rule: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Define an operator by how it limits a gradient."""
    _LIBRARY.define(f"{name}(Tensor x, Tensor bound) -> Tensor", tags=(torch.Tag.pointwise,))

    def below_autograd(x: Tensor, bound: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(x, bound)

    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
            ctx.save_for_backward(bound)
            with torch.enable_grad():  # it is no operation without a gradient
                return below_autograd(x, bound)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            (bound,) = ctx.saved_tensors
            return rule(grad, bound), None

    def differentiable(x: Tensor, bound: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = Clip.apply(x, bound)  # type: ignore[no-untyped-call]
            return result
        return below_autograd(x, bound)

    def value(x: Tensor, bound: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    _LIBRARY.impl(name, value, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiable, "Autograd")


_define("clip_gradient", clip_gradient, _by_value)
_define("clip_gradient_norm", clip_gradient_norm, _by_norm)
