"""The operators ``anyrnn::clip_gradient(x, bound)`` and ``anyrnn::clip_gradient_norm(x, bound)``: x with less gradient.

Both are x. The gradient that arrives is limited on its way to x: each number of it to [-bound, bound], or the whole of
each row to a norm of at most `bound`, by what it has too much in length. So it can be limited between two steps of a
recurrence, where no hook reaches: a step is recorded with these operators in it, and differentiated as it is.

A gradient of such a gradient would be limited, too, where it passes the forward pass, and so be the derivative of
nothing. It is refused. Forward mode passes unlimited: what it carries is no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable

_LIBRARY = torch.library.Library("anyrnn", "FRAGMENT")


def clip_gradient(x: Tensor, bound: Tensor) -> Tensor:
    """Return x, whose gradient is limited to [-bound, bound]; `bound` is one number."""
    return _limited("clip_gradient", x, bound)


def clip_gradient_norm(x: Tensor, bound: Tensor) -> Tensor:
    """Return x (B, n), whose gradient has in each row a norm of at most `bound`, one number above zero."""
    return _limited("clip_gradient_norm", x, bound)


def _limited(name: str, x: Tensor, bound: Tensor) -> Tensor:
    # torch.func does not look below an operator.
    if not torch.compiler.is_compiling() and _functorch.maybe_current_level() is not None:
        result: Tensor = _FUNCTIONS[name].apply(x, bound, _differentiated_level(x))  # type: ignore[no-untyped-call]
        return result
    operator: Callable[..., Tensor] = getattr(torch.ops.anyrnn, name).default
    return operator(x, bound)


def _differentiated_level(x: Tensor) -> int:
    """The innermost level of torch.func at which x has a gradient; -1 for none of them, where autograd's own is."""
    while (level := _functorch.maybe_get_level(x)) >= 0:
        if _functorch.is_gradtrackingtensor(x) and x.requires_grad:
            return level
        x = _functorch.get_unwrapped(x)
    return -1


def _by_value(grad: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(grad, -bound), bound)


def _by_norm(grad: Tensor, bound: Tensor) -> Tensor:
    norm = (grad * grad).sum(-1, keepdim=True).sqrt()
    return grad * (bound / torch.maximum(norm, bound))


class _Clip(torch.autograd.Function):
    """Limits a gradient; `level` is the level of torch.func that asks for it, others would ask for gradients of it."""

    generate_vmap_rule = False

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, bound, level = inputs
        ctx.save_for_backward(bound)
        ctx.is_of_autograd = level < 0
        ctx.is_outer = _functorch.maybe_get_level(x) < level

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> Tensor:
        return x.view_as(x)


def _define(name: str, rule: Callable[[Tensor, Tensor], Tensor]) -> type[_Clip]:
    """Define an operator by how it limits a gradient."""
    _LIBRARY.define(f"{name}(Tensor x, Tensor bound) -> Tensor", tags=(torch.Tag.pointwise,))

    def below_autograd(x: Tensor, bound: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = getattr(torch.ops.anyrnn, name).default(x, bound)
            return result

    class Clip(_Clip):
        @staticmethod
        def forward(x: Tensor, bound: Tensor, level: int) -> Tensor:
            with torch.enable_grad():  # it is no operation without a gradient
                return below_autograd(x, bound)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            (bound,) = ctx.saved_tensors
            if ctx.is_outer or (ctx.is_of_autograd and torch.is_grad_enabled()):
                msg = (
                    f"{name}: got a gradient that is to be differentiated once more (create_graph=True, or torch.func "
                    f"within autograd), which a limited one cannot be; expected {name}=None for second derivatives"
                )
                raise AnyRNNError(msg)
            return rule(grad, bound), None, None

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, bound: Tensor, level: int) -> tuple[Tensor, int]:
            x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
            bound = bound if in_dims[1] is None else bound.select(in_dims[1], 0)  # equal ones
            result: Tensor = Clip.apply(x, bound, level)  # type: ignore[no-untyped-call]
            return result, 0

    def differentiable(x: Tensor, bound: Tensor) -> Tensor:
        if (torch.is_grad_enabled() and x.requires_grad) or forward_ad.unpack_dual(x).tangent is not None:
            result: Tensor = Clip.apply(x, bound, -1)  # type: ignore[no-untyped-call]
            return result
        return below_autograd(x, bound)

    def value(x: Tensor, bound: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    _LIBRARY.impl(name, value, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiable, "Autograd")
    return Clip


_FUNCTIONS = {
    "clip_gradient": _define("clip_gradient", _by_value),
    "clip_gradient_norm": _define("clip_gradient_norm", _by_norm),
}
