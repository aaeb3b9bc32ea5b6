"""A user's `autograd.Function`, whose forward runs below no_grad and whose backward is the user's.

On weights alone it is recorded as one opaque operation that calls it again: it is in the part `once`, where autograd
calls its backward. On the input or the state, its operations are recorded on the spot, and its backward as the slope of
a `surrogate`, if it is one number for each number of an argument:

    y = Spike.apply(v)          value = forward(v).detach()         slope = backward(1)
                                y = surrogate(value, v, slope)
"""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from anyrnn.compiler.surrogate import Surrogate, methods_of, surrogate
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
    """Record calls, or refuse them, by another `apply` meanwhile, which `autograd.Function.apply` comes to.

    So calls of a method that was bound before, ``spike = Spike.apply``, are seen, too.

    Args:
        record: Records a call, with its arguments and its result.
        is_varying: Whether a tensor depends on the input or the state.
    """
    base: Any = torch.autograd.function._SingleLevelFunction
    before = vars(base).get("apply")

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        call = super(base, cls).apply if before is None else before.__get__(None, cls)
        if cls is Surrogate or getattr(_trace, "record", None) is None:
            return call(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        is_plain = not kwargs and all(isinstance(a, Tensor | _PLAIN) for a in args)
        if any(map(is_varying, tensors)) or not is_plain:
            return _on_the_spot(cls, args)
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

    base.apply = classmethod(apply)
    _trace.record = record
    try:
        yield
    finally:
        _trace.record = None
        if before is None:
            del base.apply
        else:
            base.apply = before


_PLAIN = bool | int | float | str | None


# ---- On the input or the state ---------------------------------------------------------------------------------------


class _Context:
    """What a function's forward and backward call `ctx`, where they run as ordinary code.

    The results of forward have no gradient, and neither has what it computed on the way; its arguments have theirs.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(isinstance(a, Tensor) and a.is_floating_point() for a in args)
        self._saved: tuple[Any, ...] = ()
        self._fixed = False

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self._saved = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self._fixed = True

    def set_materialize_grads(self, value: bool) -> None:
        pass

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return self._saved

    def put(self, place: Callable[[Any], Any]) -> bool:
        """Put other tensors in the places of those that forward has kept; whether any is another one."""
        kept = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        new = {name: place(value) for name, value in kept.items()}
        saved = tuple(map(place, self._saved))
        changed = any(a is not b for a, b in zip((*saved, *new.values()), (*self._saved, *kept.values()), strict=True))
        self._saved = saved
        vars(self).update(new)
        return changed


def _on_the_spot(cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
    """Run a function as ordinary code, and give its result the gradient that its backward has."""
    context = _Context(args)
    try:
        result = _forward(cls, context, args)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            _refuse(cls, "gives other things than one tensor of numbers")
        value = result.detach()
        if context._fixed:
            return value
        context.put(lambda kept: value if kept is result else _cut(kept, args))
        y = _with_slopes(value, args, _slopes(cls, context, args, value))
        if context.put(lambda kept: y if kept is value else kept):  # so that the slope has a derivative, too
            y = _with_slopes(value, args, _slopes(cls, context, args, value))
    except (AttributeError, TypeError, NotImplementedError) as cause:
        _refuse(cls, f"fails as ordinary code ({type(cause).__name__}: {cause})", cause)
    return y


def _refuse(cls: type[torch.autograd.Function], why: str, cause: Exception | None = None) -> NoReturn:
    msg = f"`{cls.__name__}`, an autograd.Function of the input or the state, {why}"
    raise AnyRNNError(msg) from cause


def _cut(kept: Any, args: tuple[Any, ...]) -> Any:
    """A tensor that forward has kept, as it is in backward: only arguments have a gradient."""
    return kept if not isinstance(kept, Tensor) or any(kept is a for a in args) else kept.detach()


def _forward(cls: type[torch.autograd.Function], context: _Context, args: tuple[Any, ...]) -> Any:
    forward, _, setup_context = methods_of(cls)
    if setup_context is torch.autograd.Function.setup_context:
        return forward(context, *args)
    result = forward(*args)
    setup_context(context, args, result)
    return result


def _backward(
    cls: type[torch.autograd.Function], context: _Context, grad: Tensor, count: int
) -> tuple[Tensor | None, ...]:
    _, backward, _ = methods_of(cls)
    found = backward(context, grad)
    grads = found if isinstance(found, tuple | list) else (found,)
    if len(grads) < count:
        _refuse(cls, f"has {len(grads)} gradients for {count} arguments")
    return tuple(grads[:count])


def _slopes(
    cls: type[torch.autograd.Function], context: _Context, args: tuple[Any, ...], value: Tensor
) -> tuple[Tensor | None, ...]:
    """The slope for each argument: what backward makes of ones. It is checked to make as much of other numbers."""
    slopes = _backward(cls, context, torch.ones_like(value), len(args))
    slopes = tuple(s if n else None for s, n in zip(slopes, context.needs_input_grad, strict=True))
    for slope, arg in zip(slopes, args, strict=True):
        if slope is not None and not (slope.shape == arg.shape == value.shape):
            _refuse(cls, f"makes {tuple(value.shape)} of {tuple(arg.shape)}: its gradient is not one for each number")
        if slope is not None and not (slope.dtype == arg.dtype == value.dtype):
            _refuse(cls, f"makes {value.dtype} of {arg.dtype}: use .to(x.dtype)")
    with _disable_current_modes(), _Inside(cls.__name__, lambda tensor: False), torch.no_grad():
        numbers = (torch.arange(value.numel(), device=value.device) % 7 - 3.0).to(value.dtype).view(value.shape)
        for scale in _SCALES:
            found = _backward(cls, context, numbers * scale, len(args))
            for slope, grad in zip(slopes, found, strict=True):
                if slope is not None and not _is_near(grad, numbers * scale * slope):
                    _refuse(cls, "has a gradient that is not the incoming one times a number for each number")
    return slopes


#: Of the gradients with which a backward pass is tried.
_SCALES = (1.0, 1e-3, 1e4)


def _is_near(grad: Tensor | None, expected: Tensor) -> bool:
    if grad is None or grad.shape != expected.shape:
        return False
    size = expected[expected.isfinite()].abs().amax().item() if expected.isfinite().any() else 0.0
    return torch.allclose(grad, expected, rtol=1e-4, atol=1e-6 * size, equal_nan=True)


def _with_slopes(value: Tensor, args: tuple[Any, ...], slopes: tuple[Tensor | None, ...]) -> Tensor:
    for arg, slope in zip(args, slopes, strict=True):
        if slope is not None:
            value = surrogate(value, arg, slope)
    return value
