"""A user's `autograd.Function` on weights alone, recorded as one opaque operation that calls it again.

Its forward runs below no_grad and its backward is the user's, so a trace must not record the operations inside. It need
not, if the function depends on weights only: it is in the part `once`, where autograd calls its backward.
"""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_trace = threading.local()  # that of this thread; other threads may call such functions meanwhile


class FunctionCall:
    """An autograd.Function in the place of an ATen operation in a graph."""

    tags = ()

    def __init__(self, function: type[torch.autograd.Function], count: int) -> None:
        self.function = function
        self._schema = SimpleNamespace(name=function.__name__, arguments=[SimpleNamespace(name="")] * count)

    def __call__(self, *args: Any) -> Any:
        """Call it, below autograd."""
        return self.function.apply(*args)

    def __str__(self) -> str:
        return self.function.__name__

    def __repr__(self) -> str:
        return f"{self.function.__qualname__} at {id(self.function)}"


class _Inside(TorchDispatchMode):
    """Checks that a function does not read the input or the state, and draws no random numbers."""

    def __init__(self, name: str, is_varying: Callable[[Tensor], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.is_varying = name, is_varying

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(map(self.is_varying, tensors)) or torch.Tag.nondeterministic_seeded in func.tags:
            msg = f"`{self.name}`, an autograd.Function, reads the input or the state, or random numbers"
            raise AnyRNNError(msg)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def recorded(
    record: Callable[[FunctionCall, tuple[Any, ...], Any], None], is_varying: Callable[[Tensor], bool]
) -> Iterator[None]:
    """Record calls on weights alone, and refuse others, by another `autograd.Function.apply` meanwhile.

    Args:
        record: Records a call, with its arguments and its result.
        is_varying: Whether a tensor depends on the input or the state.
    """
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        call = original.__get__(None, cls)
        if getattr(_trace, "record", None) is None:
            return call(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(map(is_varying, tensors)):
            msg = f"`{cls.__name__}` is an autograd.Function of the input or the state: its gradient is its own"
            raise AnyRNNError(msg)
        if kwargs or not all(isinstance(a, Tensor | _PLAIN) for a in args):
            msg = f"`{cls.__name__}`, an autograd.Function, takes other things than tensors and numbers"
            raise AnyRNNError(msg)
        versions = [t._version for t in tensors]
        with _disable_current_modes(), _Inside(cls.__name__, is_varying):
            result = call(*args)
        parts = result if isinstance(result, tuple) else (result,)
        if versions != [t._version for t in tensors] or not all(isinstance(r, Tensor) for r in parts):
            msg = (
                f"`{cls.__name__}`, an autograd.Function, changes what it is given, or gives other things than tensors"
            )
            raise AnyRNNError(msg)
        _trace.record(FunctionCall(cls, len(args)), args, result)
        return result

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    _trace.record = record
    try:
        yield
    finally:
        _trace.record = None
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


_PLAIN = bool | int | float | str | None
