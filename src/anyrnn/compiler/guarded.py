"""The parts of objects that guards compare by identity: of a module, a class, a function, an object; see `reach`."""

from __future__ import annotations

import functools
import gc
import types
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

_MISSING = object()


def items_of(mapping: Any) -> list[object]:
    """The keys and values of a dict."""
    return [*mapping, *mapping.values()]


def arguments_of(error: BaseException) -> list[object]:
    """What an error was made with."""
    return [*error.args]


def function_parts(function: Any) -> list[object]:
    """The code of a function, its defaults, and the variables that it closes over."""
    cells = [_contents(c) for c in function.__closure__ or ()]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, *cells]


def _contents(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


#: For each class of objects that call, or lead to, others: these.
WRAPPERS: dict[type, Callable[[Any], Sequence[object]]] = {
    types.MethodType: lambda m: (m.__func__, m.__self__),
    functools.partial: lambda p: (p.func, *p.args, *p.keywords, *p.keywords.values()),
    functools.partialmethod: lambda p: (p.func, *p.args, *p.keywords, *p.keywords.values()),
    staticmethod: lambda s: (s.__func__,),
    classmethod: lambda c: (c.__func__,),
    property: lambda p: (p.fget, p.fset, p.fdel),
    functools.cached_property: lambda p: (p.func,),
    weakref.ref: lambda r: (r(),),
}


@dataclass(frozen=True, slots=True)
class ModuleParts:
    """The names of a module's attributes and the values of some; its submodules; its class; the kinds of its inputs."""

    names: tuple[str, ...]
    inputs: tuple[str, ...]

    def __call__(self, module: nn.Module) -> list[object]:
        """List them."""
        names = module.__dict__
        children = names["_modules"]
        values, kinds = map(names.get, self.names), (names.get(n).__class__ for n in self.inputs)
        tensors = *names["_parameters"], *names["_buffers"]
        return [*names, *values, *children, *children.values(), *tensors, module.__class__, *kinds]

    def label(self, module: nn.Module, before: list[int]) -> str:
        """Which attribute is another one, or new."""
        return label_of([*module.__dict__, *self.names], self(module), before)


@dataclass(frozen=True, slots=True)
class Attributes:
    """The names of an object's attributes, and the values of some; its class."""

    names: tuple[str, ...]
    has_dict: bool

    def __call__(self, value: Any) -> list[object]:
        """List them."""
        return [*(value.__dict__ if self.has_dict else ()), *(getattr(value, n, _MISSING) for n in self.names),
                value.__class__]  # fmt: skip

    def label(self, value: Any, before: list[int]) -> str:
        """Which attribute is another one, or new."""
        return label_of([*(value.__dict__ if self.has_dict else ()), *self.names], self(value), before)


def label_of(labels: Sequence[str], parts: Sequence[object], before: Sequence[int]) -> str:
    """The label of the first part that is another object than before."""
    pairs = zip(labels, parts, before, strict=False)
    return next((label for label, part, expected in pairs if id(part) != expected), "")


@dataclass(frozen=True, slots=True)
class ClassParts:
    """The values of some attributes of a class, and how many it has."""

    names: tuple[str, ...]

    def __call__(self, cls: type) -> list[object]:
        """List them."""
        attributes = cls.__dict__
        return [*map(attributes.get, self.names), *attributes]


@dataclass(frozen=True, slots=True)
class Globals:
    """What the names in a function's code are, among the globals."""

    names: tuple[str, ...]

    def __call__(self, function: types.FunctionType) -> list[object]:
        """List them."""
        return [*map(function.__globals__.get, self.names)]


def kept_by(function: Any) -> list[object]:
    """The function that a cached one wraps, and its results, with what it knows them by, as far as Python shows it."""
    parts = [part for part in gc.get_referents(function) if part is not vars(function)]
    if function.cache_parameters()["maxsize"] is None:  # the results are in a dict; else they are parts themselves
        parts = [p for part in parts for p in (part.values() if part.__class__ is dict else (part,))]
    return [part for part in parts if part.__class__ not in (type, object) and not _is_index(part)]


def _is_index(part: object) -> bool:
    """Whether a dict is the one by which a cached function finds its results."""
    return isinstance(part, dict) and any(v.__class__.__name__ == "_lru_list_elem" for v in part.values())


@dataclass(frozen=True, slots=True)
class Kept:
    """What a cached function kept at some time, as far as it still does. What it has kept since is no matter."""

    kept: list[object]

    def __call__(self, function: object) -> list[object]:
        """List them."""
        still = {*map(id, kept_by(function))}
        return [part if id(part) in still else _MISSING for part in self.kept]


@dataclass(frozen=True, slots=True)
class Names:
    """The values of some attributes of a Python module."""

    names: tuple[str, ...]

    def __call__(self, module: types.ModuleType) -> list[object]:
        """List them."""
        return [*map(vars(module).get, self.names)]
