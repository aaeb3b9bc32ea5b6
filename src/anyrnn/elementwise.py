"""Functions of one's own on each number, with a derivative of one's own: `elementwise`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Elementwise:
    """A function on each number of a tensor, and its derivative; see `elementwise`."""

    f: Callable[[Tensor], Tensor]
    df: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Return f(x), whose derivative is df(x)."""
        result: Tensor = _WithDerivative.apply(x, self.f, self.df)  # type: ignore[no-untyped-call]
        return result


def elementwise(f: Callable[[Tensor], Tensor], df: Callable[[Tensor], Tensor]) -> Elementwise:
    """Return a function of one tensor whose value is f(x) and whose derivative is df(x), whatever that of f is.

    A spiking neuron fires where its voltage is above zero, and is trained by the derivative of a smooth function, its
    surrogate (Neftci, Mostafa and Zenke, arXiv:1901.09948). Both functions are PyTorch on each number. What f gives is
    converted to the type of x. Within a cell it is compiled.

    Args:
        f: The function.
        df: Its derivative, or what is to be taken for it.

    Raises:
        AnyRNNError: if one of them is no function.

    Example:
        >>> import torch, anyrnn
        >>> spike = anyrnn.elementwise(lambda v: v > 0, lambda v: 1 / (1 + 10 * v.abs()) ** 2)
        >>> v = torch.tensor([-0.1, 0.1], requires_grad=True)
        >>> spike(v).sum().backward()
        >>> v.grad
        tensor([0.2500, 0.2500])
    """
    if not callable(f) or not callable(df):
        msg = f"elementwise: got {f!r} and {df!r}, expected two functions of a tensor"
        raise AnyRNNError(msg)
    return Elementwise(f, df)


class _WithDerivative(torch.autograd.Function):
    """It gives f(x), and df(x) times the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], df: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.df = df
        return f(x).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.df(*ctx.saved_tensors), None, None
