"""From a cell to its plan: taken apart and compiled once for all cells of equal code, attributes and sizes.

A cell may change between two calls, by anything that Python can do to an object. So every call looks at everything that
a trace depends on: whether it is the very same objects as at the last call, which is told in microseconds; if not,
whether it is equal to what another plan was made for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from operator import is_, or_
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anyrnn.engines.cpu.loop import Loop
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import outside_inference_mode
from anyrnn.split import Split, Steps, split
from anyrnn.trace import trace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from anyrnn.protocol import Signature

_PLANS = 256  # remembered

#: What a module keeps for itself, and what differs from call to call in a layer's cells.
_OWN = frozenset({"_parameters", "_buffers", "_modules", "_origin", "_non_persistent_buffers_set"})
_TORCHS = (_OWN | set(vars(nn.Module()))) - {"training"}  # with all kinds of hooks
_ATOMS = frozenset({bool, int, float, str, bytes, type, type(None), BuiltinFunctionType, FunctionType})
_HOOKED = "the cell has hooks, which machine code would not call"


class Plan:
    """A cell taken apart and compiled.

    Attributes:
        split: The four parts.
        loop: The loop, ready to run.
        weights: Of each tensor of the cell that is used: the path of its module, its name there, and its number.
        matrices: Where the loop's matrices are, and whether it reads them transposed.
        once, before, after: What PyTorch runs.
        reads_x: Whether PyTorch reads the input.
        result: The output.
        direct: Which of the loop's outputs it is, if the loop is all there is; else None.
    """

    def __init__(self, parts: Split) -> None:
        self.split = parts
        graph = parts.graph
        self.weights = tuple((*_path(name), ref) for name, ref in graph.weights.items())
        # A weight that is only transposed, as in every linear layer, is read where it is.
        turned = {s.outputs[0]: s for s in parts.once if s.name == "t.default" and s.outputs[0] in parts.matrices}
        self.matrices = tuple((turned[r].args[0], True) if r in turned else (r, False) for r in parts.matrices)
        needed = {r for s in (*parts.once, *parts.before, *parts.after) for r in s.inputs} | {
            *parts.streams,
            *parts.vectors,
        }
        once = [s for s in parts.once if s.outputs[0] not in turned or s.outputs[0] in needed]
        self.once, self.before, self.after = (Steps(s, graph) for s in (once, parts.before, parts.after))
        padded = [k for k, r in enumerate(parts.streams) if r == graph.x]
        self.loop = Loop(parts.program, [transposed for _, transposed in self.matrices], padded)
        self.result = graph.output if graph.output is not None else graph.new_states[0]
        self.reads_x = any(graph.x in s.inputs for s in (*parts.before, *parts.after)) or self.result == graph.x
        bare = not parts.before and not parts.after and self.result in parts.outputs
        self.direct = parts.outputs.index(self.result) if bare and graph.dtypes[self.result].is_floating_point else None


def _path(name: str) -> tuple[tuple[str, ...], str]:
    *path, attribute = name.split(".")
    return tuple(path), attribute


# ---- Plans, remembered ----

_lock = threading.RLock()  # a trace swaps a cell's tensors for a moment, which one thread at a time may do
_plans: OrderedDict[object, tuple[Plan | str, Sequence[object]]] = OrderedDict()
_recent: WeakKeyDictionary[nn.Module, tuple[Watch, object, Plan | str]] = WeakKeyDictionary()


def plan_of(cell: nn.Module, signature: Signature, input_size: int, dtype: torch.dtype) -> Plan | str:
    """Take a cell apart, or say why not. Cells of equal code, attributes and sizes share a plan."""
    origin = cell.__dict__.get("_origin", cell)
    recent = _recent.get(origin)
    if recent is not None:
        watch, form, plan = recent
        if watch.is_same(cell) and form == (input_size, dtype, signature, watch.tensors(cell)):
            return _HOOKED if any(watch.hooks) else plan
    if any(any(_hooks(m)) for m in cell.modules()):
        return _HOOKED
    keeps: list[object] = []
    key = (_structure(cell, keeps), signature, input_size, dtype)
    found = _plans.get(key)
    if found is None:
        with _lock:
            found = _plans.get(key)
            if found is None:
                found = _plans[key] = _made(cell, signature, input_size, dtype), keeps
            if len(_plans) > _PLANS:
                _plans.popitem(last=False)
    watch = Watch(cell)
    _recent[origin] = watch, (input_size, dtype, signature, watch.tensors(cell)), found[0]
    return found[0]


def _made(cell: nn.Module, signature: Signature, input_size: int, dtype: torch.dtype) -> Plan | str:
    try:
        # A plan made in inference mode serves training as well.
        with outside_inference_mode(), torch.enable_grad():
            parts = split(trace(cell, signature, input_size, dtype))
            plan = Plan(parts)
            _ = plan.loop.derivative
    except AnyRNNError as reason:
        return str(reason)
    return plan


class Watch:
    """What a cell was when its plan was made. Every call compares all of it, so it is laid out for C to compare.

    Attributes:
        hooks: The hooks of all modules.
    """

    def __init__(self, cell: nn.Module) -> None:
        inner = list(cell.modules())[1:]
        self._inner = tuple(inner)
        self._classes = tuple(m.__class__ for m in (cell, *inner))
        self._methods: list[tuple[Mapping[str, object], int, tuple[str, ...], tuple[object, ...]]] = []
        for cls in _written(self._classes):
            names, methods = zip(*_methods(cls), strict=True)
            self._methods.append((vars(cls), len(vars(cls)), names, methods))
        self._keys = tuple(cell.__dict__)
        self._free = tuple(key in _OWN for key in self._keys)  # not compared
        self._values = tuple(None if key in _OWN else value for key, value in cell.__dict__.items())
        self._dicts: list[tuple[Mapping[Any, object], tuple[object, ...], tuple[object, ...]]] = []
        self._lists: list[tuple[Collection[object], tuple[object, ...]]] = []
        self._arrays: list[tuple[Any, bytes]] = []
        for module in (cell, *inner):
            self._remember(module._modules)
            for key, value in module.__dict__.items():
                if key not in _TORCHS and value.__class__ not in _ATOMS:
                    for part in (value, *_inside(value)):
                        self._remember(part)
        for module in inner:
            self._remember(module.__dict__)
        self.hooks = [h for m in (cell, *inner) for h in _hooks(m)]

    def _remember(self, value: object) -> None:
        kind, found = _content(value)
        if kind == "numbers":
            self._arrays.append((value, found))
        elif kind == "items":
            self._lists.append((found, tuple(found)))
        elif kind == "names":
            self._dicts.append((found, tuple(found), tuple(found.values())))
            if isinstance(value, nn.Module):
                self._remember(value._modules)

    def is_same(self, cell: nn.Module) -> bool:
        """Whether nothing about the cell is another object, beside the tensors that are its weights."""
        own, classes = cell.__dict__, self._classes
        return (
            cell.__class__ is classes[0]
            and len(own) == len(self._keys)
            and all(map(is_, own, self._keys))
            and all(map(or_, self._free, map(is_, own.values(), self._values)))
            and all(m.__class__ is c for m, c in zip(self._inner, classes[1:], strict=True))
            and all(len(d) == n and all(map(is_, map(d.get, names), found)) for d, n, names, found in self._methods)
            and all(
                len(d) == len(keys) and all(map(is_, d, keys)) and all(map(is_, d.values(), values))
                for d, keys, values in self._dicts
            )
            and all(len(c) == len(items) and all(map(is_, c, items)) for c, items in self._lists)
            and all(a.tobytes() == content for a, content in self._arrays)
        )

    def tensors(self, cell: nn.Module) -> object:
        """The forms of the weights, and which are the same one."""
        found = [t for m in (cell, *self._inner) for d in (m._parameters, m._buffers) for t in d.values()]
        forms = [None if t is None else (t.shape, t.dtype, t.stride()) for t in found]
        ids = [id(t) for t in found if t is not None]
        return forms, ids if self._inner or len(set(ids)) < len(ids) else None


def _hooks(m: nn.Module) -> tuple[Mapping[int, object], ...]:
    return m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks


def _content(value: object) -> tuple[str, Any]:
    """What there is to see in a thing that can change: "items", "names" of things, or "numbers"; else "nothing"."""
    if value.__class__ in _ATOMS or isinstance(value, Tensor):
        return "nothing", ()
    if isinstance(value, dict):
        return "names", value
    if isinstance(value, list | tuple | set | deque):
        return "items", value
    if hasattr(value, "tobytes"):  # a NumPy array
        return "numbers", value.tobytes()
    return "names", getattr(value, "__dict__", {})


def _inside(value: object, depth: int = 4) -> Iterator[object]:
    """What a container or an object of settings holds, down to things that cannot change."""
    kind, found = _content(value)
    if kind == "nothing" or not depth:
        return
    if isinstance(value, nn.Module):  # not registered: an activation in a list
        parts: Iterable[object] = (*(v for k, v in found.items() if k not in _TORCHS), *value._modules.values())
    elif kind == "names":
        parts = (*found, *found.values())
    else:
        parts = found if kind == "items" else (found,)
    for part in parts:
        yield part
        yield from _inside(part, depth - 1)


def _written(classes: Iterable[type]) -> list[type]:
    """The classes that somebody wrote, with methods: not PyTorch's, nor ours, which nobody changes while they run."""
    found = dict.fromkeys(c for each in classes for c in each.__mro__)
    return [c for c in found if c.__module__.partition(".")[0] not in ("torch", "anyrnn", "builtins") and _methods(c)]


def _methods(cls: type) -> list[tuple[str, object]]:
    kinds = (FunctionType, property, staticmethod, classmethod)
    return [(name, value) for name, value in vars(cls).items() if isinstance(value, kinds)]


def _structure(cell: nn.Module, keeps: list[object]) -> object:
    """Everything about a cell that its trace depends on, beside the values of its tensors: equal for equal cells."""
    modules: list[object] = [tuple(m for c in _written(map(type, cell.modules())) for m in _methods(c))]
    for name, module in cell.named_modules():
        attributes = tuple(
            (key, *(_plain(part, keeps) for part in (value, *_inside(value))))
            for key, value in module.__dict__.items()
            if key not in _TORCHS
        )
        modules.append((name, type(module), attributes))
    named = [*cell.named_parameters(remove_duplicate=False), *cell.named_buffers(remove_duplicate=False)]
    inner = [*cell.named_modules()]
    named += [(f"{path}.{key}", t) for path, m in inner for key, t in vars(m).items() if isinstance(t, Tensor)]
    first = {id(t): name for name, t in reversed(named)}
    return tuple(modules), tuple((name, first[id(t)], t.shape, t.dtype, t.stride()) for name, t in named)


def _plain(value: object, keeps: list[object]) -> object:
    """Turn a part of a cell into what is equal for equal parts, or into its identity."""
    if isinstance(value, list | tuple | set | deque | dict):
        return type(value), len(value)  # what is inside follows
    if value.__class__ in _ATOMS or isinstance(value, torch.dtype | torch.Size | bytes):
        return type(value), value
    if isinstance(value, Tensor):
        return "tensor", value.shape, value.dtype
    keeps.append(value)
    return id(value)
