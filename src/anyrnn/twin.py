"""A copy of a cell to run a step on that is not the user's own: the same tensors, other containers and settings.

What a step writes down on its way (a counter, a log, a cache) then stays with the copy, however deep it is.
"""

from __future__ import annotations

import contextlib
import copy
import random
import types
from collections import OrderedDict, defaultdict, deque
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Iterator

_COPIED = (bytearray, random.Random, torch.Generator)  # copied whole, by their own means


TRUSTED = ("torch", "anyrnn")


def is_trusted(module: str | None) -> bool:
    """Whether code comes from PyTorch or from this package: nobody changes it while it runs."""
    return (module or "").partition(".")[0] in TRUSTED


def slots_of(kind: type) -> tuple[str, ...]:
    """The names of a class's slots, as attributes."""
    found: list[str] = []
    for cls in kind.__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                found.append(f"_{cls.__name__.lstrip('_')}{name}" if hidden else name)
    return tuple(found)


def twin_of(cell: nn.Module, *, to_probe: bool = False) -> nn.Module:
    """Return a cell of the same class with copies of all that a step could change, and its tensors without a graph.

    Args:
        cell: The cell.
        to_probe: For a step like any other: parameters may have gradients, buffers are copies, and an iterator among
            the attributes, which cannot be copied, is shared.

    Raises:
        AnyRNNError: for TorchScript, and for such an iterator.
    """
    if any(isinstance(m, torch.jit.ScriptModule) for m in cell.modules()):
        msg = "it is TorchScript, which cannot be looked into"
        raise AnyRNNError(msg)
    twin = _Twins(to_probe).of(cell)
    assert isinstance(twin, nn.Module)
    return twin


class _Twins:
    """The copies made so far, so that what is shared stays shared."""

    def __init__(self, to_probe: bool) -> None:
        self._to_probe = to_probe
        self._known: dict[int, Any] = {}
        self._tensors: dict[int, Tensor] = {}
        self._cells: dict[int, types.CellType] = {}
        self._alive: list[object] = []  # so that no id is used twice

    def of(self, value: Any) -> Any:
        if id(value) in self._known:
            return self._known[id(value)]
        made = self._made(value)
        self._known.setdefault(id(value), made)
        self._alive.append(value)
        return made

    def _made(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, nn.Module):
            return self._module(value)
        if kind in (list, set, deque, dict, OrderedDict, defaultdict):
            return self._container(value)
        if kind in (tuple, frozenset) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            parts = [self.of(v) for v in value]
            if all(a is b for a, b in zip(parts, value, strict=True)):
                return value
            return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
        if kind is types.MethodType:
            owner = self.of(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if kind is types.FunctionType:
            return self._function(value)
        if kind is partial:
            return partial(self.of(value.func), *map(self.of, value.args), **self._items(value.keywords))
        if kind is types.MappingProxyType:
            return types.MappingProxyType(self.of(dict(value)))
        if isinstance(value, _COPIED) or kind.__module__.partition(".")[0] == "numpy":
            return _copied(value)
        if kind.__module__ in ("itertools", "builtins") and hasattr(kind, "__next__"):
            if self._to_probe:
                return value
            msg = f"it holds a {kind.__name__}, an iterator, which goes on whenever it is asked"
            raise AnyRNNError(msg)
        return self._object(value)

    def _items(self, mapping: dict[Any, Any]) -> dict[Any, Any]:
        return {key: self.of(item) for key, item in mapping.items()}

    def _container(self, value: Any) -> Any:
        made = self._known[id(value)] = copy.copy(value)  # known before its parts, which may hold it
        parts = [self.of(v) for v in (value.values() if isinstance(value, dict) else value)]
        if isinstance(value, dict):
            made.update(zip(value, parts, strict=True))
        elif isinstance(value, set):
            made.clear()
            made.update(parts)
        else:
            for k, part in enumerate(parts):
                made[k] = part
        return made

    def _module(self, module: nn.Module) -> nn.Module:
        made = self._known[id(module)] = object.__new__(type(module))
        own = vars(made)
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                own[key] = {k: self._tensor(t) for k, t in value.items()}
            else:
                own[key] = {k: self.of(m) for k, m in value.items()} if key == "_modules" else self.of(value)
        return made

    def _tensor(self, tensor: Tensor | None) -> Tensor | None:
        plain = tensor is not None and type(tensor) in (nn.Parameter, Tensor) and not tensor.is_inference()
        if tensor is None or (self._to_probe and not plain):
            return tensor
        if id(tensor) not in self._tensors:
            made = tensor.detach()
            if self._to_probe:
                made = nn.Parameter(made, tensor.requires_grad) if type(tensor) is nn.Parameter else made.clone()
            self._tensors[id(tensor)] = made
        return self._tensors[id(tensor)]

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A function that remembers (a closure) gets a memory of its own."""
        if not function.__closure__ or is_trusted(function.__module__):
            return function
        closure = tuple(self._cells.setdefault(id(c), types.CellType()) for c in function.__closure__)
        code, name = function.__code__, function.__name__
        made = types.FunctionType(code, function.__globals__, name, function.__defaults__, closure)
        self._known[id(function)] = made  # known before its parts, which may be itself
        made.__kwdefaults__ = function.__kwdefaults__
        vars(made).update(vars(function))
        for new, old in zip(closure, function.__closure__, strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                new.cell_contents = self.of(old.cell_contents)
        return made

    def _object(self, value: Any) -> Any:
        """An object of a class written in Python, with its attributes; anything else is shared."""
        kind = type(value)
        names = list(slots_of(kind))
        if kind is types.SimpleNamespace:
            space = self._known[id(value)] = types.SimpleNamespace()
            vars(space).update(self._items(vars(value)))
            return space
        if isinstance(value, type | types.ModuleType) or any("__new__" in vars(c) for c in kind.__mro__[:-1]):
            return value
        if not (hasattr(value, "__dict__") or names) or kind.__module__ in ("logging", "threading", "_thread"):
            return value
        try:
            made = self._known[id(value)] = object.__new__(kind)
            vars_of = getattr(value, "__dict__", None)
            if vars_of is not None:
                object.__getattribute__(made, "__dict__").update(self._items(dict(vars_of)))
            for name, part in _slots(value, names):
                object.__setattr__(made, name, self.of(part))
        except (TypeError, AttributeError):  # of a class that makes its objects in another way
            self._known[id(value)] = value
        return self._known[id(value)]


def _slots(value: Any, names: list[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if hasattr(value, name):
            yield name, getattr(value, name)


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - any class may refuse to be copied, in any way
        return value
