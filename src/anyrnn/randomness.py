"""Run somebody's code without touching anybody's random numbers.

To put the state of the process's generator back afterwards would be wrong where other threads draw from it meanwhile:
they would get the same numbers twice. So PyTorch's draws are redirected, one by one, to generators of this call.
"""

from __future__ import annotations

import contextlib
import random
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SEED = 0


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Leave the random numbers of PyTorch, of Python and of NumPy as they are, whatever is drawn inside.

    Generators that are given by name, such as ``torch.rand(3, generator=g)``, are left alone, too. Python's and NumPy's
    numbers cannot be redirected: their states are put back, if something was drawn.
    """
    numpy = sys.modules.get("numpy")
    before = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with _Redirected():
            yield
    finally:
        if random.getstate() != before[0]:
            random.setstate(before[0])
        if numpy is not None and _differ(numpy.random.get_state(), before[1]):
            numpy.random.set_state(before[1])


def _differ(a: Any, b: Any) -> bool:
    """Compare two states of NumPy's generator: name, key, position, and the pair of normal numbers."""
    return bool(a[2:] != b[2:] or a[1].tobytes() != b[1].tobytes())


class _Redirected(TorchDispatchMode):
    """Gives every operation that draws a generator of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators: dict[str, torch.Generator] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave `__torch_dispatch__` as it is: the usual wrapper imports torch._dynamo, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, with another generator if it draws."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        device = _device_of(args, kwargs)
        if device.type == "meta":
            return func(*args, **kwargs)  # draws nothing
        with_generator = _with_generator(func)
        if with_generator is None:
            return _put_back(device, func, args, kwargs)
        names = [a.name for a in with_generator._schema.arguments]
        positional = dict(zip([a.name for a in func._schema.arguments], args, strict=False))
        named = {**positional, **kwargs, "generator": self._generator(device)}
        return with_generator(**{name: named[name] for name in names if name in named})

    def _generator(self, device: torch.device) -> torch.Generator:
        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(_SEED)
        return self._generators[key]


def _device_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device)
    tensors = (t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor))
    return next((t.device for t in tensors), torch.device("cpu"))


def _with_generator(func: Any) -> Any:
    """The overload of an operation that takes a generator; None if there is none."""
    names = [a.name for a in func._schema.arguments]
    if "generator" in names:
        return func
    for overload in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, overload)
        types = {a.name: str(a.type) for a in other._schema.arguments}
        if types.pop("generator", None) and types == {a.name: str(a.type) for a in func._schema.arguments}:
            return other
    return None


def _put_back(device: torch.device, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation that takes no generator; other threads' draws may be lost in this moment only."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return func(*args, **kwargs)


# ---- A backward pass that runs steps again has to draw what the forward pass has drawn ----

_CPU_SIZE = torch.get_rng_state().numel()
_CUDA_SIZE = 16


def random_size(device: torch.device) -> int:
    """The length of `random_state`."""
    return _CPU_SIZE + (_CUDA_SIZE if device.type == "cuda" else 0)


def random_state(device: torch.device) -> Tensor:
    """The state of the generators from which a step on a device may draw, as bytes."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


@contextlib.contextmanager
def random_from(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a state on, if there is one, and put the present state back at the end."""
    if not len(state):
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Cloned, since PyTorch reads from the start of a tensor's memory, wherever in it the tensor begins.
        torch.set_rng_state(state[:_CPU_SIZE].clone())
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[_CPU_SIZE:].clone(), device)
        yield
