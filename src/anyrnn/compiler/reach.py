"""What a step can read beside its arguments, looked at: the cell's attributes, however deep, and what its code names.

One walk gives both what a plan is filed under (`Sight.key`: equal for cells whose steps do the same) and what every
call compares (`Sight.is_same`). It looks where the code that ran in a trace could look (`Reach`): at attributes by the
names in that code, at the globals and closures of its functions, at what somebody wrote into their classes. What it
does not understand is the same only if it is the same object; what changes by being used, as an iterator does, is
refused.
"""

from __future__ import annotations

import enum
import functools
import io
import logging
import random
import re
import sys
import sysconfig
import threading
import types
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyrnn.cells.base import ORIGIN
from anyrnn.errors import AnyRNNError
from anyrnn.twin import TRUSTED, is_trusted, slots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

#: As many objects as a call can compare in a millisecond.
MOST_OBJECTS = 20_000

#: Names by which code finds attributes that it does not name.
_INDIRECT = frozenset(
    {"getattr", "vars", "dir", "__dict__", "attrgetter", "methodcaller", "eval", "exec", "globals", "locals"}
    | {"__getattribute__", "getattr_static", "getmembers", "modules", "named_modules", "children", "named_children"}
)

#: What a module keeps for itself, and what differs from call to call in a layer's cells.
_TORCHS = ({ORIGIN, "_non_persistent_buffers_set"} | set(vars(nn.Module()))) - {"training"}  # with all hooks

_ATOMS = (bool, int, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range)
_CONSTANTS = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
#: The same if they are the same object: they have no numbers to read, or keep them for ever.
_IDENTITIES = (
    *(types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, slice),
    *(types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType, types.ClassMethodDescriptorType),
    *(types.GenericAlias, types.UnionType, types.CodeType, type, enum.Enum, re.Pattern, torch.Generator),
    *(logging.Logger, logging.Handler, io.IOBase, type(threading.Lock()), type(threading.RLock())),
)
_IMMUTABLE = frozenset({"datetime", "decimal", "fractions", "uuid", "pathlib", "zoneinfo", "typing"})  # modules
_HEAP = 1 << 9  # the flag of classes that are no part of an interpreter or extension
_MISSING = object()

_STANDARD = sysconfig.get_paths()["stdlib"], "<frozen "
_FOLDERS = tuple(str(sys.modules[name].__file__).removesuffix("__init__.py") for name in TRUSTED)


def is_trusted_file(name: str) -> bool:
    """Whether code comes from PyTorch or from this package, by the name of its file."""
    return name.startswith(_FOLDERS)


def is_standard_file(name: str) -> bool:
    """Whether code comes from Python's own library."""
    return name.startswith(_STANDARD) and "site-packages" not in name


@dataclass(frozen=True)
class Reach:
    """Where the code that ran in a trace could look.

    Attributes:
        codes: The code that ran.
        names: The names in it.
        indirect: It may have found attributes that it does not name.
        inputs: Numbers, by (module, attribute), that a step takes as they are when it is called: not compared.
    """

    codes: frozenset[types.CodeType]
    names: frozenset[str]
    indirect: bool
    inputs: frozenset[tuple[str, str]] = frozenset()

    @staticmethod
    def of(codes: Iterable[types.CodeType], inputs: Iterable[tuple[str, str]] = ()) -> Reach:
        """Return the reach of code that ran, with the functions written within it."""
        ran = frozenset(codes)
        found = [_names_of(code) for code in ran]
        indirect = any(
            not _INDIRECT.isdisjoint(names)
            and not is_trusted_file(code.co_filename)
            and code.co_name != "update_wrapper"
            for code, names in zip(ran, found, strict=True)
        )
        return Reach(ran, frozenset().union(*found), indirect, frozenset(inputs))

    def has(self, name: str) -> bool:
        """Whether the code can read an attribute of this name."""
        return self.indirect or name in self.names


@functools.lru_cache(maxsize=4096)
def _names_of(code: types.CodeType) -> frozenset[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*map(_names_of, inner))


class Sight:
    """What a cell looked like to code of some reach.

    Attributes:
        key: Equal for cells to which that code does the same.
        forms: The forms of its tensors then, as `tensors` gives them.
        numbers: The floating-point attributes of modules that the code names, by (module, attribute).
        is_circular: To compare the cell would take to hold on to something that holds on to the cell.
    """

    def __init__(self, cell: nn.Module, reach: Reach) -> None:
        """Look at a cell.

        Raises:
            AnyRNNError: if something within reach cannot be watched. The message is the reason.
        """
        self.numbers: dict[tuple[str, str], float] = {}
        self.is_circular = False
        self.reach = reach
        self._alive = [True]
        # What to compare: how to find the parts of a thing, the thing (None: the cell itself), and the parts' ids.
        self._watched: list[tuple[Callable[[Any], Iterable[object]], Callable[[], Any] | None, list[int]]] = []
        self._places: list[str] = []  # what these are called
        self._numbers: list[tuple[Callable[[], Any], bytes]] = []
        self._tensors: list[tuple[Callable[[], Any] | None, str, str]] = []
        self._held: list[object] = []  # so that no other thing gets the id of a part
        walk = _Walk(self, cell)
        walked = walk.of(cell, "")
        self.forms = self.tensors(cell)
        self.key: Hashable = (reach.inputs, walked, self.forms)
        self._ids = [*map(id, self._plain(cell))]

    def is_same(self, cell: nn.Module) -> bool:
        """Whether the cell, or one that is bound to other tensors, looks as it did, but for its tensors."""
        if not self._alive[0]:
            return False
        for parts, owner, expected in self._watched:
            if [*map(id, parts(cell if owner is None else owner()))] != expected:
                return False
        return all(_content(owner()) == content for owner, content in self._numbers)

    def changed(self, cell: nn.Module) -> str | None:
        """Where the cell looks another way than it did; None if nowhere."""
        for (parts, owner, expected), place in zip(self._watched, self._places, strict=True):
            thing = cell if owner is None else owner()
            now = [*map(id, parts(thing))]
            if now != expected:
                name = parts.label(thing, expected) if isinstance(parts, _ModuleParts | _Attributes) else ""
                return f"the attribute `{'.'.join(filter(None, (place, name)))}` of {type(cell).__name__}"
        if [*map(id, self._plain(cell))] != self._ids:
            names = [name for _, place, name in self._tensors if not place]
            return f"the attribute `{_label(names, self._plain(cell), self._ids)}` of {type(cell).__name__}"
        return None if self.is_same(cell) else "the numbers of an array"

    def changed_numbers(self, cell: nn.Module) -> frozenset[tuple[str, str]]:
        """The numbers among a cell's attributes that are others now, beside those that are inputs already."""
        now = Sight(cell, self.reach).numbers
        return self.reach.inputs | {at for at, number in now.items() if self.numbers.get(at, number) != number}

    def _plain(self, cell: nn.Module) -> list[object]:
        """The tensors that are plain attributes of modules."""
        return [(cell if o is None else o()).__dict__.get(name) for o, place, name in self._tensors if not place]

    def tensors(self, cell: nn.Module) -> Hashable:
        """The forms of the tensors, and which are the same one."""
        found = []
        for owner, place, name in self._tensors:
            attributes = (cell if owner is None else owner()).__dict__
            found.append((attributes[place] if place else attributes).get(name))
        ids = [*map(id, found)]
        return tuple(map(ids.index, ids)) if len(set(ids)) < len(ids) else None, tuple(map(_form, found))

    def watch(self, parts: Callable[[Any], Iterable[object]], value: object, root: nn.Module, place: str) -> None:
        """Have the parts of a thing compared in every call."""
        found = [*parts(value)]
        for part in found:
            if part is not root:
                self._held.append(part if part.__class__ in _ATOMS else self._reference(part))
        self._watched.append((parts, None if value is root else self._reference(value), [*map(id, found)]))
        self._places.append(place)

    def watch_numbers(self, value: object, content: bytes) -> None:
        """Have the numbers of an array compared in every call."""
        self._numbers.append((self._reference(value), content))

    def watch_tensors(self, module: nn.Module, root: nn.Module) -> tuple[Hashable, ...]:
        """Have the forms of a module's tensors compared; returns their names."""
        owner, own = None if module is root else self._reference(module), module.__dict__
        found = [(place, name) for place in ("_parameters", "_buffers") for name in own[place]]
        found += [("", name) for name, value in own.items() if isinstance(value, Tensor)]
        self._tensors += ((owner, place, name) for place, name in found)
        return tuple(found)

    def _reference(self, value: Any) -> Callable[[], Any]:
        """A way to a thing that does not keep it alive, where its class allows that."""
        alive = self._alive

        def note(_: object) -> None:
            alive[0] = False

        try:
            return weakref.ref(value, note)
        except TypeError:
            return lambda: value


class _Walk:
    """One way through all that is within reach: makes a key, and has what it meets watched."""

    def __init__(self, sight: Sight, root: nn.Module) -> None:
        self.sight = sight
        self.reach = sight.reach
        self.root = root
        self._seen: dict[int, int] = {}
        self._paths = {id(m): name for name, m in root.named_modules()}
        self._solid = 0  # how many things that have to be held on to lie on the way here

    def of(self, value: Any, where: str) -> Hashable:
        """The key of a thing."""
        kind = value.__class__
        if kind in _ATOMS or isinstance(value, _CONSTANTS):
            return kind, value
        if kind is float or kind is complex:
            return kind, repr(value)  # -0.0 is not 0.0, and NaN is NaN
        if value is self.root and self._seen and self._solid:
            self.sight.is_circular = True
        if id(value) in self._seen:
            return "again", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        if len(self._seen) > MOST_OBJECTS:
            msg = f"its code can reach more than {MOST_OBJECTS:,} objects, too many to compare in every call"
            raise AnyRNNError(msg)
        rule = next((rule for kinds, rule in _RULES if isinstance(value, kinds)), _Walk._object)
        return rule(self, value, where)

    def _parts(self, parts: Callable[[Any], Iterable[object]], value: object, where: str) -> tuple[Hashable, ...]:
        self.sight.watch(parts, value, self.root, where)
        solid = isinstance(value, dict | list | tuple)
        self._solid += solid
        found = tuple(self.of(part, where) for part in parts(value))
        self._solid -= solid
        return found

    def _module(self, module: nn.Module, where: str) -> Hashable:
        if isinstance(module, torch.jit.ScriptModule):
            msg = "it is TorchScript, which cannot be looked into"
            raise AnyRNNError(msg)
        own, path = module.__dict__, f"{where}." if where else ""
        keep = (lambda _: True) if is_trusted(type(module).__module__) else self.reach.has
        names = [n for n, v in own.items() if n not in _TORCHS and keep(n) and not isinstance(v, Tensor)]
        inputs = {n for at, n in self.reach.inputs if at == where}
        if self._paths.get(id(module)) == where:
            self.sight.numbers |= {(where, n): own[n] for n in names if own[n].__class__ is float}
        watched = tuple(n for n in names if n not in inputs)
        self.sight.watch(_ModuleParts(watched, tuple(inputs)), module, self.root, where)
        content = tuple((n, own[n].__class__ if n in inputs else self.of(own[n], path + n)) for n in names)
        children = tuple((n, self.of(m, path + n)) for n, m in own["_modules"].items())
        return self._kind(type(module), where), content, self.sight.watch_tensors(module, self.root), children

    def _container(self, value: Any, where: str) -> Hashable:
        parts = _items if isinstance(value, dict | types.MappingProxyType) else iter
        return value.__class__, self._parts(parts, value, where), self._attributes(value, where)

    def _wrapper(self, value: Any, where: str) -> Hashable:
        """A thing that calls, or leads to, other things."""
        parts = next(parts for kind, parts in _WRAPPERS.items() if isinstance(value, kind))
        return value.__class__, self._parts(parts, value, where), self._attributes(value, where)

    def _function(self, function: types.FunctionType, where: str) -> Hashable:
        code = function.__code__
        if is_trusted(function.__module__):
            return _Same(function)
        inside = self._parts(_function_parts, function, where), self._attributes(function, where)
        if code not in self.reach.codes:
            return code, inside
        names = tuple(sorted(_names_of(code)))
        self.sight.watch(_Globals(names), function, self.root, f"a global of {function.__qualname__}")
        space = function.__globals__
        return code, inside, tuple((n, self._named(space[n], n)) for n in names if n in space)

    def _named(self, value: Any, name: str) -> Hashable:
        """A global, or an attribute of a module of somebody's."""
        if not isinstance(value, types.ModuleType):
            return self.of(value, f"the global `{name}`")
        if id(value) in self._seen or not _is_somebodys(value):
            return _Same(value)
        self._seen[id(value)] = len(self._seen)
        names = tuple(sorted(self.reach.names.intersection(vars(value))))
        self.sight.watch(_Names(names), value, self.root, name)
        return _Same(value), tuple((n, self._named(vars(value)[n], n)) for n in names)

    def _class(self, cls: type, where: str) -> Hashable:
        if not _is_written(cls):
            return _Same(cls)
        names = tuple(n for n in vars(cls) if self._is_read(cls, n))
        self.sight.watch(_ClassParts(names), cls, self.root, cls.__name__)
        return _Same(cls), tuple((n, self.of(vars(cls)[n], f"{cls.__name__}.{n}")) for n in names)

    def _is_read(self, cls: type, name: str) -> bool:
        if name.startswith("__") and name.endswith("__"):  # called by Python itself, as `__getattr__` is
            return isinstance(vars(cls)[name], types.FunctionType) and name != "__init__"
        return self.reach.has(name)

    def _kind(self, kind: type, where: str) -> Hashable:
        return _Same(kind), tuple(self.of(c, where) for c in kind.__mro__ if _is_written(c))

    def _identity(self, value: Any, where: str) -> Hashable:
        return _Same(value)

    def _object(self, value: Any, where: str) -> Hashable:
        kind = value.__class__
        content = _content(value)
        if content is not None:
            self.sight.watch_numbers(value, content)
            return kind, content
        named = f" in `{where}`" if where else ""
        if isinstance(value, random.Random):
            msg = (
                f"it draws random numbers from a generator of Python's{named}: draw them with torch, in the shape of x"
            )
            raise AnyRNNError(msg)
        if hasattr(kind, "__next__") and kind.__module__ in ("builtins", "itertools"):
            msg = f"it holds{named} a {kind.__name__}, an iterator, which goes on whenever it is asked"
            raise AnyRNNError(msg)
        if kind.__module__ in _IMMUTABLE or (callable(value) and not kind.__flags__ & _HEAP):
            return _Same(value)
        if not hasattr(value, "__dict__") and not slots_of(kind) and not is_trusted(kind.__module__):
            msg = f"it holds{named} a {kind.__module__}.{kind.__qualname__}, whose content cannot be compared"
            raise AnyRNNError(msg)
        return self._kind(kind, where), self._attributes(value, where)

    def _attributes(self, value: Any, where: str) -> Hashable:
        """The attributes of an object that the code names."""
        names = (*getattr(value, "__dict__", ()), *slots_of(value.__class__))
        read = tuple(n for n in names if self.reach.has(n))
        parts = _Attributes(read, hasattr(value, "__dict__"))
        if not names:
            return ()
        self.sight.watch(parts, value, self.root, where)
        return tuple((n, self.of(getattr(value, n, None), f"{where}.{n}")) for n in read)


# ---- The parts of things, by which they are compared ----


def _items(mapping: Any) -> list[object]:
    return [*mapping, *mapping.values()]


def _function_parts(function: Any) -> list[object]:
    cells = [_contents(c) for c in function.__closure__ or ()]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, *cells]


def _contents(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


#: For each kind of thing that calls, or leads to, others: where these are.
_WRAPPERS: dict[type, Callable[[Any], Sequence[object]]] = {
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
class _ModuleParts:
    """The names of a module's attributes and the values of some; its submodules; its class; the kinds of its inputs."""

    names: tuple[str, ...]
    inputs: tuple[str, ...]

    def __call__(self, module: nn.Module) -> list[object]:
        own = module.__dict__
        inner = own["_modules"]
        values, kinds = map(own.get, self.names), (own.get(n).__class__ for n in self.inputs)
        return [*own, *values, *inner, *inner.values(), *own["_parameters"], *own["_buffers"], module.__class__, *kinds]

    def label(self, module: nn.Module, before: list[int]) -> str:
        """Which attribute is another one, or new."""
        return _label([*module.__dict__, *self.names], self(module), before)


@dataclass(frozen=True, slots=True)
class _Attributes:
    """The names of an object's attributes, and the values of some; its class."""

    names: tuple[str, ...]
    has_dict: bool

    def __call__(self, value: Any) -> list[object]:
        return [*(value.__dict__ if self.has_dict else ()), *(getattr(value, n, _MISSING) for n in self.names),
                value.__class__]  # fmt: skip

    def label(self, value: Any, before: list[int]) -> str:
        """Which attribute is another one, or new."""
        return _label([*(value.__dict__ if self.has_dict else ()), *self.names], self(value), before)


def _label(labels: Sequence[str], parts: Sequence[object], before: Sequence[int]) -> str:
    pairs = zip(labels, parts, before, strict=False)
    return next((label for label, part, expected in pairs if id(part) != expected), "")


@dataclass(frozen=True, slots=True)
class _ClassParts:
    """The values of some attributes of a class, and how many it has."""

    names: tuple[str, ...]

    def __call__(self, cls: type) -> list[object]:
        own = cls.__dict__
        return [*map(own.get, self.names), *own]


@dataclass(frozen=True, slots=True)
class _Globals:
    """What the names in a function's code are, among the globals."""

    names: tuple[str, ...]

    def __call__(self, function: types.FunctionType) -> list[object]:
        return [*map(function.__globals__.get, self.names)]


@dataclass(frozen=True, slots=True)
class _Names:
    """The values of some attributes of a Python module."""

    names: tuple[str, ...]

    def __call__(self, module: types.ModuleType) -> list[object]:
        return [*map(vars(module).get, self.names)]


def _content(value: Any) -> bytes | None:
    """The numbers of an array of any library; None if it is none."""
    if isinstance(value, bytearray):
        return bytes(value)
    if hasattr(value, "tobytes"):
        return None if "O" in getattr(getattr(value, "dtype", None), "char", "") else bytes(value.tobytes())
    if value.__class__.__module__.startswith(("_ctypes", "ctypes")) or hasattr(value, "_type_"):
        try:
            return bytes(memoryview(value).cast("B"))
        except (TypeError, ValueError):
            return None
    return None


def _form(tensor: Tensor | None) -> Hashable:
    """What machine code depends on beside a tensor's numbers."""
    if tensor is None:
        return None
    strides = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return tensor.__class__, tensor.shape, tensor.dtype, tensor.device, strides


def _is_written(cls: type) -> bool:
    """Whether somebody wrote a class who may change it while it is in use."""
    mine = not is_trusted(cls.__module__) or "<locals>" in cls.__qualname__
    return bool(cls.__flags__ & _HEAP) and mine and not _is_standard(cls.__module__)


def _is_somebodys(module: types.ModuleType) -> bool:
    return not is_trusted(module.__name__) and not _is_standard(module.__name__)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


class _Same:
    """A thing that is equal to itself only; it is not kept alive, where its class allows that."""

    __slots__ = ("_find", "_id")

    def __init__(self, value: Any) -> None:
        self._id = id(value)
        try:
            self._find: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self._find = lambda: value

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or self._id != other._id:
            return False
        mine = self._find()
        return mine is not None and mine is other._find()


_RULES: tuple[tuple[tuple[type, ...], Callable[[_Walk, Any, str], Hashable]], ...] = (
    ((nn.Module,), _Walk._module),
    ((Tensor,), _Walk._identity),  # one that is no attribute: a step that reads it is refused
    ((types.FunctionType,), _Walk._function),
    (tuple(_WRAPPERS), _Walk._wrapper),
    ((dict, types.MappingProxyType, list, tuple, set, frozenset, deque), _Walk._container),
    ((type,), _Walk._class),
    (_IDENTITIES, _Walk._identity),
)
