"""A twin: a copy of a cell for steps that the user did not ask for, so that these have no side effects on the cell.

A deep copy that shares tensors, detached, and whatever a step cannot change. What a step writes into attributes (a
counter, a log, a cache), however deep they are, stays with the copy.
"""

from __future__ import annotations

import contextlib
import copy
import random
import types
from collections import OrderedDict, defaultdict, deque
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError

_COPIED = (bytearray, random.Random, torch.Generator)  # by `copy.deepcopy`


TRUSTED = ("torch", "anyrnn")


def is_trusted(module: str | None) -> bool:
    """Whether a module is PyTorch's or this package's, by its name: nobody changes its code while it runs."""
    return (module or "").partition(".")[0] in TRUSTED


def module_name(thing: Any) -> str:
    """The name of the module that a function or class is from; of functions of Cython, their class has no such name."""
    name = getattr(thing, "__module__", None)
    return name if isinstance(name, str) else ""


def slot_names(kind: type) -> tuple[str, ...]:
    """The names of a class's slots, as attributes."""
    names: list[str] = []
    for cls in kind.__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                is_mangled = name.startswith("__") and not name.endswith("__")
                names.append(f"_{cls.__name__.lstrip('_')}{name}" if is_mangled else name)
    return tuple(names)


def twin_of(cell: nn.Module, *, to_probe: bool = False) -> nn.Module:
    """Return a cell of the same class with copies of all that a step could change, and the same tensors, detached.

    Args:
        cell: The cell.
        to_probe: For one ordinary step, not for a trace: parameters may have gradients, buffers are copies, and an
            iterator among the attributes, which cannot be copied, is shared.

    Raises:
        AnyRNNError: for TorchScript, and for such an iterator.
    """
    if any(isinstance(m, torch.jit.ScriptModule) for m in cell.modules()):
        msg = "it is TorchScript, which cannot be looked into"
        raise AnyRNNError(msg)
    twin = _Copier(to_probe).copy(cell)
    assert isinstance(twin, nn.Module)
    return twin


def in_evaluation(cell: nn.Module) -> nn.Module:
    """A twin in evaluation mode, whatever the mode of the cell; the cell itself if it is TorchScript."""
    try:
        twin = twin_of(cell, to_probe=True)
    except AnyRNNError:
        return cell
    for module in twin.modules():
        vars(module)["training"] = False
    return twin


def with_own_weights(cell: nn.Module) -> nn.Module:
    """A twin whose parameters and buffers are copies, without gradients; TorchScript is copied as a whole."""
    try:
        twin = twin_of(cell, to_probe=True)
    except AnyRNNError:
        return copy.deepcopy(cell)
    copies: dict[int, Tensor] = {}
    for module in twin.modules():
        registered: tuple[dict[str, Any], ...] = module._parameters, module._buffers
        for tensors in registered:
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in copies:
                        own = tensor.detach().clone()
                        copies[id(tensor)] = nn.Parameter(own, False) if tensors is module._parameters else own
                    tensors[name] = copies[id(tensor)]
    return twin


class _Copier:
    """Copies objects, each once, so that what is shared stays shared: `_copies` is the memo, as in `copy.deepcopy`."""

    def __init__(self, to_probe: bool) -> None:
        self._to_probe = to_probe
        self._copies: dict[int, Any] = {}
        self._tensors: dict[int, Tensor] = {}
        self._cells: dict[int, types.CellType] = {}
        self._alive: list[object] = []  # so that no id is used twice

    def copy(self, value: Any) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)]
        new = self._new(value)
        self._copies.setdefault(id(value), new)
        self._alive.append(value)
        return new

    def _new(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, nn.Module):
            return self._module(value)
        if kind in (list, set, deque, dict, OrderedDict, defaultdict):
            return self._container(value)
        if kind in (tuple, frozenset) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            parts = [self.copy(v) for v in value]
            if all(a is b for a, b in zip(parts, value, strict=True)):
                return value
            return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
        if kind is types.MethodType:
            owner = self.copy(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if kind is types.FunctionType:
            return self._function(value)
        if kind is partial:
            return partial(self.copy(value.func), *map(self.copy, value.args), **self._items(value.keywords))
        if kind is types.MappingProxyType:
            return types.MappingProxyType(self.copy(dict(value)))
        if isinstance(value, _COPIED) or module_name(kind).partition(".")[0] == "numpy":
            return _deep_copy(value)
        if kind.__module__ in ("itertools", "builtins") and hasattr(kind, "__next__"):
            if self._to_probe:
                return value
            msg = f"it holds a {kind.__name__}, an iterator, which goes on whenever it is asked"
            raise AnyRNNError(msg)
        return self._object(value)

    def _items(self, mapping: dict[Any, Any]) -> dict[Any, Any]:
        return {key: self.copy(item) for key, item in mapping.items()}

    def _container(self, value: Any) -> Any:
        new = self._copies[id(value)] = copy.copy(value)  # noted before its parts, which may hold it
        parts = [self.copy(v) for v in (value.values() if isinstance(value, dict) else value)]
        if isinstance(value, dict):
            new.update(zip(value, parts, strict=True))
        elif isinstance(value, set):
            new.clear()
            new.update(parts)
        else:
            for k, part in enumerate(parts):
                new[k] = part
        return new

    def _module(self, module: nn.Module) -> nn.Module:
        new = self._copies[id(module)] = object.__new__(type(module))
        attributes = vars(new)
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                attributes[key] = {k: self._tensor(t) for k, t in value.items()}
            else:
                attributes[key] = self._items(value) if key == "_modules" else self.copy(value)
        return new

    def _tensor(self, tensor: Tensor | None) -> Tensor | None:
        plain = tensor is not None and type(tensor) in (nn.Parameter, Tensor) and not tensor.is_inference()
        if tensor is None or (self._to_probe and not plain):
            return tensor
        if id(tensor) not in self._tensors:
            new = tensor.detach()
            if type(tensor) is nn.Parameter:  # its class may be asked for
                new = nn.Parameter(new, self._to_probe and tensor.requires_grad)
            elif self._to_probe:
                new = new.clone()
            vars(new).update(vars(tensor))
            self._tensors[id(tensor)] = new
        return self._tensors[id(tensor)]

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A closure with copies of the variables that it closes over; any other function is shared."""
        if not function.__closure__ or is_trusted(module_name(function)):
            return function
        closure = tuple(self._cells.setdefault(id(c), types.CellType()) for c in function.__closure__)
        code, name = function.__code__, function.__name__
        new = types.FunctionType(code, function.__globals__, name, function.__defaults__, closure)
        self._copies[id(function)] = new  # noted before its parts, which may be itself
        new.__kwdefaults__ = function.__kwdefaults__
        vars(new).update(vars(function))
        for new_cell, cell in zip(closure, function.__closure__, strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                new_cell.cell_contents = self.copy(cell.cell_contents)
        return new

    def _object(self, value: Any) -> Any:
        """An object of a class written in Python, with its attributes; anything else is shared."""
        kind = type(value)
        slots = slot_names(kind)
        if kind is types.SimpleNamespace:
            namespace = self._copies[id(value)] = types.SimpleNamespace()
            vars(namespace).update(self._items(vars(value)))
            return namespace
        if isinstance(value, type | types.ModuleType) or any("__new__" in vars(c) for c in kind.__mro__[:-1]):
            return value
        if not (hasattr(value, "__dict__") or slots) or kind.__module__ in ("logging", "threading", "_thread"):
            return value
        try:
            new = self._copies[id(value)] = object.__new__(kind)
            attributes = getattr(value, "__dict__", None)
            if attributes is not None:
                object.__getattribute__(new, "__dict__").update(self._items(dict(attributes)))
            for name in slots:
                if hasattr(value, name):
                    object.__setattr__(new, name, self.copy(getattr(value, name)))
        except (TypeError, AttributeError):  # of a class that makes its objects in another way
            self._copies[id(value)] = value
        return self._copies[id(value)]


def _deep_copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - any class may refuse to be copied, in any way
        return value
