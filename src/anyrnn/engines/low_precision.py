"""Whether PyTorch's kernels for a whole sequence work here in low precision: found out by a call of the kernel.

oneDNN has an LSTM in bfloat16 only for processors with AVX-512, in float16 for fewer still, and below autocast PyTorch
calls it all the same ("could not create a primitive descriptor"). What decides is spread over autocast, PyTorch's own
choice of a kernel and oneDNN's, so the kernel is tried once on the smallest call of the same types.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

_GATES = {"lstm": 4, "gru": 3}


@dataclass(frozen=True)
class LowPrecision:
    """All dtypes and modes, but no sizes, by which PyTorch chooses an implementation of a kernel on the CPU.

    Attributes:
        kernel: Its name in `torch._VF`.
        x: The type of the input.
        states: The types of the states.
        weights: The names and types of the weights, in the kernel's order.
        autocast: The type that autocast computes in; None outside of it.
        trained: Autograd is on, so that a backward pass may follow.
        onednn: The switch `torch.backends.mkldnn.enabled`.
    """

    kernel: str
    x: torch.dtype
    states: tuple[torch.dtype, ...]
    weights: tuple[tuple[str, torch.dtype], ...]
    autocast: torch.dtype | None
    trained: bool
    onednn: bool

    @classmethod
    def of(cls, kernel: str, x: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]) -> LowPrecision:
        """The precision of a call in the present modes."""
        return cls(
            kernel,
            x.dtype,
            tuple(s.dtype for s in states),
            tuple((name, w.dtype) for name, w in weights.items()),
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
            torch.is_grad_enabled(),
            torch._C._get_mkldnn_enabled(),
        )


@functools.cache
def failure(precision: LowPrecision) -> str | None:
    """Return PyTorch's message if its kernel does not work in these types on this machine; None if it does."""
    messages: list[str] = []

    def attempt() -> None:
        try:
            _call(precision)
        except RuntimeError as cause:
            messages.append(str(cause).partition(". ")[0])

    # A new thread has no modes, hooks, transforms, autocast or default device: the call depends on the types only, and
    # the caller's hooks and modes do not see it.
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return messages[0] if messages else None


def _call(precision: LowPrecision) -> None:
    """Call the kernel on the smallest inputs of these types, with a backward pass if there may be one."""
    names = [name for name, _ in precision.weights]
    gates, size = _GATES.get(precision.kernel, 1), 2
    out = 1 if "weight_hr" in names else size
    shapes = {"weight_ih": (gates * size, 1), "weight_hh": (gates * size, out), "weight_hr": (out, size)}
    weights = [
        torch.zeros(shapes.get(name, (gates * size,)), dtype=dtype, requires_grad=precision.trained)
        for name, dtype in precision.weights
    ]
    hx = [torch.zeros(1, 1, n, dtype=d) for n, d in zip((out, size), precision.states, strict=False)]
    x = torch.zeros(1, 1, 1, dtype=precision.x)
    options = ("bias_ih" in names, 1, 0.0, True, False, False)
    autocast = torch.autocast("cpu", precision.autocast, enabled=precision.autocast is not None)
    with torch.set_grad_enabled(precision.trained), autocast:
        output, *_ = getattr(torch._VF, precision.kernel)(
            x, hx if precision.kernel == "lstm" else hx[0], weights, *options
        )
    if precision.trained:
        torch.autograd.grad(output.sum(), weights)
