"""Guards: whether a step still reads what it read when its plan was made, as torch.compile's guards tell of its code.

A step reads more than its arguments: attributes of the cell, however deep, globals, closures, class attributes. `Reach`
is the set of names by which the code that ran in a trace can read such things. `Sight` is a cell seen through a reach:
one walk over all objects that the code can get to gives a cache key (`Sight.key`: equal for cells whose steps do the
same), and guards that every call checks (`Sight.is_same`): lists of object ids, compared in microseconds. An object
whose content the walk does not understand is guarded by its identity; one that changes by being used, as an iterator
does, is refused.
"""

from __future__ import annotations

import collections
import dis
import enum
import functools
import importlib.util
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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from anyrnn.cells.base import ORIGIN
from anyrnn.compiler.guarded import (
    WRAPPERS,
    Attributes,
    ClassParts,
    Globals,
    Kept,
    ModuleParts,
    Names,
    arguments_of,
    function_parts,
    items_of,
    kept_by,
    label_of,
)
from anyrnn.errors import AnyRNNError
from anyrnn.twin import TRUSTED, is_trusted, module_name, slot_names

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

#: As many objects as a call can guard in a millisecond.
MOST_OBJECTS = 20_000

#: Names by which code reads attributes that it does not name.
_INDIRECT = frozenset(
    {"getattr", "vars", "dir", "__dict__", "attrgetter", "methodcaller", "eval", "exec", "globals", "locals"}
    | {"__getattribute__", "getattr_static", "getmembers", "modules", "named_modules", "children", "named_children"}
)

#: Attributes of a module that are not guarded: PyTorch's own, and what differs from call to call in a layer's cells.
_UNGUARDED = ({ORIGIN, "_non_persistent_buffers_set"} | set(vars(nn.Module()))) - {"training"}  # with all hooks

#: Functions of a class that Python calls elsewhere: to make an object, and (since 3.14) to see the annotations.
_NOT_IN_A_STEP = frozenset({"__init__", "__annotate__", "__annotate_func__"})

_ATOMS = (bool, int, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range)
_NUMBERS_AND_TEXTS = (int, float, complex, str, bytes)  # of which users make classes of their own
_CONSTANTS = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
#: Guarded by identity: they have no content to read, or one that does not change.
_IDENTITIES = (
    *(types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, slice),
    *(types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType, types.ClassMethodDescriptorType),
    *(types.GenericAlias, types.UnionType, types.CodeType, type, re.Pattern, torch.Generator),
    *(logging.Logger, logging.Handler, io.IOBase, type(threading.Lock()), type(threading.RLock())),
    type(vars(collections.namedtuple("_", "field"))["field"]),  # of which the class is compared
)
_IMMUTABLE = frozenset({"datetime", "decimal", "fractions", "uuid", "pathlib", "zoneinfo", "typing"})  # modules
_HEAP = 1 << 9  # the flag of classes that are no part of an interpreter or extension
_LOOSE = "loose"  # the kind of a tensor that is no attribute of a module

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
    """What the code that ran in a trace can read: attributes and globals of some names.

    Attributes:
        codes: The code that ran.
        names: The names in it.
        indirect: It may read attributes that it does not name, as `getattr` does.
        inputs: Numbers, by (module, attribute), that are inputs of the graph: their values are not guarded.
    """

    codes: frozenset[types.CodeType]
    names: frozenset[str]
    indirect: bool
    inputs: frozenset[tuple[str, str]] = frozenset()

    @staticmethod
    def of(codes: Iterable[types.CodeType], inputs: Iterable[tuple[str, str]] = ()) -> Reach:
        """Return the reach of code that ran, with the functions written within it."""
        ran = frozenset(codes)
        names = [_names_of(code) for code in ran]
        indirect = any(
            not _INDIRECT.isdisjoint(names_of_code)
            and not is_trusted_file(code.co_filename)
            and code.co_name != "update_wrapper"
            for code, names_of_code in zip(ran, names, strict=True)
        )
        return Reach(ran, frozenset().union(*names), indirect, frozenset(inputs))

    def has(self, name: str) -> bool:
        """Whether the code can read an attribute of this name."""
        return self.indirect or name in self.names


@functools.lru_cache(maxsize=4096)
def _names_of(code: types.CodeType) -> frozenset[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*map(_names_of, inner))


@functools.lru_cache(maxsize=4096)
def _imports_of(code: types.CodeType) -> frozenset[tuple[int, str]]:
    """The modules that code imports where it runs, each with how many folders up it is looked for."""
    lines = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
    found = ((k, i.argval) for k, i in enumerate(lines) if i.opname == "IMPORT_NAME")
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset((lines[k - 2].argval, name) for k, name in found).union(*map(_imports_of, inner))


@functools.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> frozenset[str]:
    """The globals that code, and functions within it, read by name: of `A.T` the global `A`, not one called T."""
    names = (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(names).union(*map(_globals_of, inner))


class _Guard(NamedTuple):
    """An object is unchanged if its parts are the same objects."""

    parts: Callable[[Any], Iterable[object]]  # lists the parts
    object_of: Callable[[], Any] | None  # finds the object; None for the cell itself
    ids: list[int]  # of the parts
    where: str  # the path from the cell to the object, for messages


class Sight:
    """All that code of some reach can read of a cell: a key to compare cells by, and guards to check one cell by.

    Attributes:
        key: Equal for cells with which that code does the same.
        forms: The shapes, strides and types of its tensors, as `tensors` gives them.
        numbers: The floating-point attributes of modules that the code names, by (module, attribute).
        is_circular: The guards hold strong references to an object that holds the cell: they would keep it alive.
    """

    def __init__(self, cell: nn.Module, reach: Reach) -> None:
        """Walk over a cell.

        Raises:
            AnyRNNError: if something within reach cannot be guarded. The message is the reason.
        """
        self.numbers: dict[tuple[str, str], float] = {}
        self.is_circular = False
        self.reach = reach
        self._alive = [True]  # whether all guarded objects are
        self._guards: list[_Guard] = []
        self._contents: list[tuple[Callable[[], Any], bytes]] = []  # arrays of other libraries, and their numbers
        self._tensors: list[tuple[Callable[[], Any] | None, str, str]] = []  # module, "_parameters" or so, name
        self._held: list[object] = []  # so that no other object gets the id of a part
        walked = _Walk(self, cell).key(cell, "")
        self.forms = self.tensors(cell)
        self.key: Hashable = (reach.inputs, walked, self.forms)
        self._plain_ids = [*map(id, self._plain_tensors(cell))]

    def is_same(self, cell: nn.Module) -> bool:
        """Whether the cell, or one that is bound to other tensors, passes all guards, which are not about tensors."""
        if not self._alive[0]:
            return False
        for parts, object_of, ids, _ in self._guards:
            if [*map(id, parts(cell if object_of is None else object_of()))] != ids:
                return False
        return all(_content(object_of()) == content for object_of, content in self._contents)

    def changed(self, cell: nn.Module) -> str | None:
        """What is not as it was, in words; None if nothing."""
        for parts, object_of, ids, where in self._guards:
            thing = cell if object_of is None else object_of()
            if [*map(id, parts(thing))] != ids:
                name = parts.label(thing, ids) if isinstance(parts, ModuleParts | Attributes) else ""
                return f"the attribute `{'.'.join(filter(None, (where, name)))}` of {type(cell).__name__}"
        plain = self._plain_tensors(cell)
        if [*map(id, plain)] != self._plain_ids:
            names = [name for _, kind, name in self._tensors if not kind]
            return f"the attribute `{label_of(names, plain, self._plain_ids)}` of {type(cell).__name__}"
        return None if self.is_same(cell) else "the numbers of an array"

    def changed_numbers(self, cell: nn.Module) -> frozenset[tuple[str, str]]:
        """The numbers among a cell's attributes that are others now, beside those that are inputs already."""
        now = Sight(cell, self.reach).numbers
        return self.reach.inputs | {at for at, number in now.items() if self.numbers.get(at, number) != number}

    def _plain_tensors(self, cell: nn.Module) -> list[object]:
        """The tensors that are plain attributes of modules."""
        return [(cell if of is None else of()).__dict__.get(name) for of, kind, name in self._tensors if not kind]

    def tensors(self, cell: nn.Module) -> Hashable:
        """The forms of the tensors, and which are the same one."""
        tensors: list[Tensor | None] = []
        for module_of, kind, name in self._tensors:
            owner: Any = cell if module_of is None else module_of()
            if kind == _LOOSE:
                tensors.append(owner)
                continue
            attributes = owner.__dict__
            tensors.append((attributes[kind] if kind else attributes).get(name))
        ids = [*map(id, tensors)]
        return tuple(map(ids.index, ids)) if len(set(ids)) < len(ids) else None, tuple(map(_form, tensors))

    def guard(self, parts: Callable[[Any], Iterable[object]], value: object, root: nn.Module, where: str) -> None:
        """Have the parts of an object compared by identity in every call."""
        now = [*parts(value)]
        for part in now:
            if part is not root:
                self._held.append(part if part.__class__ in _ATOMS else self._reference(part))
        self._guards.append(_Guard(parts, None if value is root else self._reference(value), [*map(id, now)], where))

    def guard_content(self, array: object, content: bytes) -> None:
        """Have the numbers of an array compared in every call."""
        self._contents.append((self._reference(array), content))

    def guard_tensors(self, module: nn.Module, root: nn.Module) -> tuple[Hashable, ...]:
        """Have the forms of a module's tensors compared; returns their names."""
        module_of, attributes = None if module is root else self._reference(module), module.__dict__
        names = [(kind, name) for kind in ("_parameters", "_buffers") for name in attributes[kind]]
        names += [("", name) for name, value in attributes.items() if isinstance(value, Tensor)]
        self._tensors += ((module_of, kind, name) for kind, name in names)
        return tuple(names)

    def guard_loose(self, tensor: Tensor) -> None:
        """Have a tensor that is no attribute of a module compared: its form, and whether it is one of a module's."""
        self._tensors.append((self._reference(tensor), _LOOSE, ""))

    def _reference(self, value: Any) -> Callable[[], Any]:
        """A reference to an object: a weak one, where its class allows that."""
        alive = self._alive

        def note(_: object) -> None:
            alive[0] = False

        try:
            return weakref.ref(value, note)
        except TypeError:
            return lambda: value


class _Walk:
    """A walk over all objects within reach: builds the key of a sight, and its guards."""

    def __init__(self, sight: Sight, root: nn.Module) -> None:
        self.sight = sight
        self.reach = sight.reach
        self.root = root
        self._visited: dict[int, int] = {}  # by id, in the order of the walk
        self._paths = {id(m): name for name, m in root.named_modules()}
        self._strong = 0  # how many objects on the way here have no weak references, so that the guards hold them

    def key(self, value: Any, where: str) -> Hashable:
        """The key of an object: equal for objects with which the code does the same."""
        kind = value.__class__
        if kind in _ATOMS or isinstance(value, _CONSTANTS):
            return kind, value
        if kind is float or kind is complex:
            return kind, repr(value)  # -0.0 is not 0.0, and NaN is NaN
        if value is self.root and self._visited and self._strong:
            self.sight.is_circular = True
        if id(value) in self._visited:
            return "again", self._visited[id(value)]
        self._visited[id(value)] = len(self._visited)
        if len(self._visited) > MOST_OBJECTS:
            msg = f"its code can reach more than {MOST_OBJECTS:,} objects, too many to compare in every call"
            raise AnyRNNError(msg)
        rule = next((rule for kinds, rule in _RULES if isinstance(value, kinds)), _Walk._object)
        return rule(self, value, where)

    def _parts(self, parts: Callable[[Any], Iterable[object]], value: object, where: str) -> tuple[Hashable, ...]:
        self.sight.guard(parts, value, self.root, where)
        is_strong = isinstance(value, dict | list | tuple)
        self._strong += is_strong
        keys = tuple(self.key(part, where) for part in parts(value))
        self._strong -= is_strong
        return keys

    def _module(self, module: nn.Module, where: str) -> Hashable:
        if isinstance(module, torch.jit.ScriptModule):
            msg = "it is TorchScript, which cannot be looked into"
            raise AnyRNNError(msg)
        attributes, path = module.__dict__, f"{where}." if where else ""
        is_read = (lambda _: True) if is_trusted(module_name(type(module))) else self.reach.has
        names = [n for n, v in attributes.items() if n not in _UNGUARDED and is_read(n) and not isinstance(v, Tensor)]
        inputs = {n for at, n in self.reach.inputs if at == where}
        if self._paths.get(id(module)) == where:
            self.sight.numbers |= {(where, n): attributes[n] for n in names if attributes[n].__class__ is float}
        guarded = tuple(n for n in names if n not in inputs)
        self.sight.guard(ModuleParts(guarded, tuple(inputs)), module, self.root, where)
        keys = tuple((n, attributes[n].__class__ if n in inputs else self.key(attributes[n], path + n)) for n in names)
        children = tuple((n, self.key(m, path + n)) for n, m in attributes["_modules"].items())
        tensors = (t for kind in ("_parameters", "_buffers") for t in attributes[kind].values())
        marks = tuple(self._attributes(t, where) for t in tensors if t is not None and vars(t))
        return self._class_key(type(module), where), keys, self.sight.guard_tensors(module, self.root), children, marks

    def _container(self, value: Any, where: str) -> Hashable:
        parts = items_of if isinstance(value, dict | types.MappingProxyType) else iter
        return value.__class__, self._parts(parts, value, where), self._attributes(value, where)

    def _wrapper(self, value: Any, where: str) -> Hashable:
        """An object that calls, or leads to, others."""
        parts = next(parts for kind, parts in WRAPPERS.items() if isinstance(value, kind))
        return value.__class__, self._parts(parts, value, where), self._attributes(value, where)

    def _function(self, function: types.FunctionType, where: str) -> Hashable:
        code = function.__code__
        if is_trusted(module_name(function)):
            return _Identity(function)
        inside = self._parts(function_parts, function, where), self._attributes(function, where)
        if code not in self.reach.codes:
            return code, inside
        names = tuple(sorted(_globals_of(code)))
        self.sight.guard(Globals(names), function, self.root, f"a global of {function.__qualname__}")
        namespace = function.__globals__
        imported = (_imported(level, name, namespace) for level, name in sorted(_imports_of(code)))
        modules = tuple((m.__name__, self._global(m, m.__name__)) for m in imported if m is not None)
        return code, inside, tuple((n, self._global(namespace[n], n)) for n in names if n in namespace), modules

    def _global(self, value: Any, name: str) -> Hashable:
        """A global, or an attribute of a module of the user's."""
        if not isinstance(value, types.ModuleType):
            return self.key(value, f"the global `{name}`")
        if id(value) in self._visited or not _is_users_module(value):
            return _Identity(value)
        self._visited[id(value)] = len(self._visited)
        names = tuple(sorted(self.reach.names.intersection(vars(value))))
        self.sight.guard(Names(names), value, self.root, name)
        return _Identity(value), tuple((n, self._global(vars(value)[n], n)) for n in names)

    def _class(self, cls: type, where: str) -> Hashable:
        if not _is_users_class(cls):
            return _Identity(cls)
        names = tuple(n for n in vars(cls) if self._is_read(cls, n))
        self.sight.guard(ClassParts(names), cls, self.root, cls.__name__)
        keys = tuple((n, self.key(vars(cls)[n], f"{cls.__name__}.{n}")) for n in names)
        return _Identity(cls), keys, self._class_key(type(cls), where)

    def _is_read(self, cls: type, name: str) -> bool:
        if name.startswith("__") and name.endswith("__"):  # called by Python itself, as `__getattr__` is
            return isinstance(vars(cls)[name], types.FunctionType) and name not in _NOT_IN_A_STEP
        return self.reach.has(name)

    def _class_key(self, kind: type, where: str) -> Hashable:
        return _Identity(kind), tuple(self.key(c, where) for c in kind.__mro__ if _is_users_class(c))

    def _tensor(self, tensor: Tensor, where: str) -> Hashable:
        self.sight.guard_loose(tensor)
        return _Identity(tensor)

    def _identity(self, value: Any, where: str) -> Hashable:
        return _Identity(value)

    def _enum(self, member: enum.Enum, where: str) -> Hashable:
        """A member of an enumeration: it is compared by identity, and what it holds may change."""
        return _Identity(member), self._class_key(type(member), where), self._attributes(member, where)

    def _cached(self, function: Any, where: str) -> Hashable:
        """A function that hands out what it has kept, such as the settings, which its code does not make again."""
        if is_trusted(module_name(function)) or _is_standard(module_name(function)):
            return _Identity(function)
        parts = Kept(kept_by(function))
        return _Identity(function), self._parts(parts, function, where)

    def _object(self, value: Any, where: str) -> Hashable:
        kind = value.__class__
        content = _content(value)
        if content is not None:
            self.sight.guard_content(value, content)
            return kind, content
        place = f" in `{where}`" if where else ""
        if isinstance(value, random.Random):
            msg = (
                f"it draws random numbers from a generator of Python's{place}: draw them with torch, in the shape of x"
            )
            raise AnyRNNError(msg)
        if hasattr(kind, "__next__") and kind.__module__ in ("builtins", "itertools"):
            msg = f"it holds{place} a {kind.__name__}, an iterator, which goes on whenever it is asked"
            raise AnyRNNError(msg)
        if kind.__module__ in _IMMUTABLE or (callable(value) and not kind.__flags__ & _HEAP):
            return _Identity(value)
        if not hasattr(value, "__dict__") and not slot_names(kind) and not is_trusted(module_name(kind)):
            msg = f"it holds{place} a {module_name(kind)}.{kind.__qualname__}, whose content cannot be compared"
            raise AnyRNNError(msg)
        base = _builtin_base(kind)
        if base in _NUMBERS_AND_TEXTS:
            held: Hashable = base.__repr__(value)
        elif isinstance(value, BaseException):
            held = self._parts(arguments_of, value, where)
        else:
            held = None if base in (object, types.SimpleNamespace) else _Identity(value)
        return self._class_key(kind, where), self._attributes(value, where), held

    def _attributes(self, value: Any, where: str) -> Hashable:
        """The attributes of an object that the code names."""
        names = (*getattr(value, "__dict__", ()), *slot_names(value.__class__))
        read = tuple(n for n in names if self.reach.has(n))
        parts = Attributes(read, hasattr(value, "__dict__"))
        if not names and not parts.has_dict:
            return ()
        self.sight.guard(parts, value, self.root, where)  # if it has none yet, of those that it may get
        return tuple((n, self.key(getattr(value, n, None), f"{where}.{n}")) for n in read)


def _imported(level: int, name: str, namespace: dict[str, Any]) -> types.ModuleType | None:
    """The module that an import within a function finds, if it has been imported before."""
    package = namespace.get("__package__") or ""
    if level and not package:  # such an import fails, on whatever way through the code it is
        return None
    return sys.modules.get(importlib.util.resolve_name("." * level + name, package) if level else name)


def _builtin_base(kind: type) -> type:
    """The class in C that an object of a class is one of: `int` of an IntEnum, `object` of most."""
    return next(cls for cls in kind.__mro__ if not cls.__flags__ & _HEAP)


def _content(value: Any) -> bytes | None:
    """The numbers of an array of any library; None if it is none."""
    if isinstance(value, bytearray):
        return bytes(value)
    if hasattr(value, "tobytes"):
        return None if "O" in getattr(getattr(value, "dtype", None), "char", "") else bytes(value.tobytes())
    if module_name(value.__class__).startswith(("_ctypes", "ctypes")) or hasattr(value, "_type_"):
        try:
            return bytes(memoryview(value).cast("B"))
        except (TypeError, ValueError):
            return None
    return None


def _form(tensor: Tensor | None) -> Hashable:
    """What machine code depends on in a tensor, but for its numbers."""
    if tensor is None:
        return None
    strides = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return tensor.__class__, tensor.shape, tensor.dtype, tensor.device, strides


def _is_users_class(cls: type) -> bool:
    """Whether a class is the user's, who may change it while it is in use."""
    is_users = not is_trusted(module_name(cls)) or "<locals>" in cls.__qualname__
    return bool(cls.__flags__ & _HEAP) and is_users and not _is_standard(module_name(cls))


def _is_users_module(module: types.ModuleType) -> bool:
    return not is_trusted(module.__name__) and not _is_standard(module.__name__)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


class _Identity:
    """The key of an object that is equal to itself only; it does not keep it alive, where its class allows that."""

    __slots__ = ("_id", "_object_of")

    def __init__(self, value: Any) -> None:
        self._id = id(value)
        try:
            self._object_of: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self._object_of = lambda: value

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity) or self._id != other._id:
            return False
        value = self._object_of()
        return value is not None and value is other._object_of()


_RULES: tuple[tuple[tuple[type, ...], Callable[[_Walk, Any, str], Hashable]], ...] = (
    ((nn.Module,), _Walk._module),
    ((Tensor,), _Walk._tensor),  # one that is no attribute of a module
    ((types.FunctionType,), _Walk._function),
    (tuple(WRAPPERS), _Walk._wrapper),
    ((enum.Enum,), _Walk._enum),
    ((type(functools.cache(len)),), _Walk._cached),
    ((dict, types.MappingProxyType, list, tuple, set, frozenset, deque), _Walk._container),
    ((type,), _Walk._class),
    (_IDENTITIES, _Walk._identity),
)
