"""A user's `autograd.Function`, whose forward runs below no_grad and whose backward is the user's.

On weights alone it is recorded as one opaque operation that calls it again: it is in the part `once`, where autograd
calls its backward. On the input or the state, its operations are recorded on the spot, and its backward as the slope of
a `surrogate`, if it is one number for each number of an argument:

    y = Spike.apply(v)          value = forward(v).detach()         slope = backward(1)
                                y = surrogate(value, v, slope)
"""

from __future__ import annotations

import contextlib
import functools
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import FunctionMeta
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
    """Record calls of this thread, or refuse them.

    PyTorch's `apply` is code in C, which a cell may have bound long before: ``spike = Spike.apply``. But it reads
    ``_backward_cls``, then ``forward`` of the class that it is called on, and finds what reading of its attributes is
    made to find meanwhile. What a cell's own code reads of the class, it finds as ever.

    Args:
        record: Records a call, with its arguments and its result.
        is_varying: Whether a tensor depends on the input or the state.
    """
    _trace.calls = _Calls(record, is_varying)
    FunctionMeta.__getattribute__ = _attribute  # type: ignore[method-assign]
    try:
        yield
    finally:
        del FunctionMeta.__getattribute__
        _trace.calls = None


def _attribute(cls: Any, name: str) -> Any:
    calls = getattr(_trace, "calls", None)
    found = type.__getattribute__(cls, name)
    return found if calls is None or name not in _READ or cls is Surrogate else calls.read(cls, name, found)


_READ = ("_backward_cls", "forward", "setup_context")


class _Calls:
    """What `apply` finds in a function's class while a step is recorded."""

    def __init__(
        self, record: Callable[[FunctionCall, tuple[Any, ...], Any], None], is_varying: Callable[[Tensor], bool]
    ) -> None:
        self._record, self._is_varying = record, is_varying
        self._begun: Any = None  # the class whose `_backward_cls` was read last, and whether there were gradients then
        self._recorded: Any = None  # the class whose call was recorded just now, and that has a context to set up

    def read(self, cls: Any, name: str, found: Any) -> Any:
        """What is found in a class."""
        if name == "setup_context":
            done, self._recorded = self._recorded, None
            return _nothing_to_set_up if done is cls else found
        begun, self._begun = self._begun, None
        if name == "_backward_cls":
            self._begun = cls, torch.is_grad_enabled()
        elif begun is not None and begun[0] is cls:
            return functools.partial(self._forward, cls, begun[1])
        return found

    def _forward(self, cls: Any, with_grad: bool, *args: Any) -> Any:
        """Take the place of a function's forward. What autograd, which waits outside, makes of it is never asked."""
        has_context = cls.setup_context is torch.autograd.Function.setup_context
        with torch.set_grad_enabled(with_grad):
            result = self._called(cls, args[1:] if has_context else args)
        self._recorded = None if has_context else cls
        return result

    def _called(self, cls: Any, args: tuple[Any, ...]) -> Any:
        tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        if any(map(self._is_varying, tensors)) or not all(isinstance(a, Tensor | _PLAIN) for a in args):
            return _on_the_spot(cls, args)
        versions = [t._version for t in tensors]
        _trace.calls = None
        try:
            with _disable_current_modes(), _Inside(cls.__name__, self._is_varying):
                result = cls.apply(*args)
        finally:
            _trace.calls = self
        parts = result if isinstance(result, tuple) else (result,)
        if versions != [t._version for t in tensors] or not all(isinstance(r, Tensor) for r in parts):
            msg = (
                f"`{cls.__name__}`, an autograd.Function, changes what it is given, or gives other things than tensors"
            )
            raise AnyRNNError(msg)
        self._record(FunctionCall(cls, len(args)), args, result)
        return result


def _nothing_to_set_up(ctx: Any, inputs: Any, output: Any) -> None:
    pass


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
