"""The cpu engine: a cell's loop as machine code, and PyTorch for what is around it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anyrnn.engines.cpu.anatomy import Anatomy, anatomy_of
from anyrnn.engines.cpu.layout import Layout, layout
from anyrnn.engines.cpu.loop import Loop, without_autocast
from anyrnn.errors import AnyRNNError
from anyrnn.split import Split, Steps, split
from anyrnn.trace import Ref, trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anyrnn.engines.call import Call
    from anyrnn.protocol import Signature

_PLANS = 256  # cells remembered

#: What a module keeps for itself, and what differs from call to call in a layer's cells.
_OWN = frozenset({"_parameters", "_buffers", "_modules", "_origin", "_non_persistent_buffers_set"})
_ATOMS = frozenset({bool, int, float, str, bytes, type, type(None), BuiltinFunctionType, FunctionType, OrderedDict})


class Plan:
    """A cell taken apart and compiled.

    Attributes:
        split: The four parts.
        loop: The loop, ready to run.
    """

    def __init__(self, parts: Split) -> None:
        self.split = parts
        # A weight that is only transposed, as in every linear layer, is read where it is.
        turned = {s.outputs[0]: s for s in parts.once if s.name == "t.default" and s.outputs[0] in parts.matrices}
        self.matrices = tuple((turned[r].args[0], True) if r in turned else (r, False) for r in parts.matrices)
        needed = {r for s in (*parts.once, *parts.before, *parts.after) for r in s.inputs} | {
            *parts.streams,
            *parts.vectors,
        }
        once = [s for s in parts.once if s.outputs[0] not in turned or s.outputs[0] in needed]
        self.once, self.before, self.after = (Steps(s, parts.graph) for s in (once, parts.before, parts.after))
        self.loop = Loop(parts.program, [transposed for _, transposed in self.matrices])
        self.result = parts.graph.output if parts.graph.output is not None else parts.graph.new_states[0]


_lock = threading.RLock()  # a trace swaps a cell's tensors for a moment, which one thread at a time may do
_plans: OrderedDict[object, tuple[Plan | str, Sequence[object]]] = OrderedDict()
_recent: WeakKeyDictionary[nn.Module, tuple[list[object], list[object], Plan | str]] = WeakKeyDictionary()


class CpuEngine:
    """Runs any cell whose loop the loop program can hold, compiled for this processor.

    It computes in float64 if x is float64, else in float32: lower precision, also under autocast, is converted at the
    edge, and the output has the type of x.
    """

    name = "cpu"

    def refusal(self, call: Call) -> str | None:
        """Say why machine code cannot run the call; None if it can."""
        x = call.x
        if x.device.type != "cpu":
            return f"x is on {x.device}"
        if 0 in x.shape or 0 in (s.numel() for s in call.states):
            return "there is nothing to compute"
        if torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0:
            return "torch.func transforms and forward-mode derivatives go through PyTorch"
        modules = call.cell.modules() if call.cell._modules else (call.cell,)
        if any(m._forward_hooks or m._forward_pre_hooks for m in modules):
            return "the cell has hooks, which machine code would not call"
        plan = call.memo["cpu"] = _plan(call)
        return plan if isinstance(plan, str) else None

    def anatomy(self, call: Call) -> Anatomy:
        """Show the four parts, the cost of a step, and the products of the compiler."""
        plan = _plan(call)
        assert isinstance(plan, Plan)  # else it was refused
        return anatomy_of(plan, call.x.dtype == torch.float64)

    def run(self, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output (T, B, O) and the final state variables (B, size)."""
        plan = call.memo.get("cpu") or _plan(call)
        assert isinstance(plan, Plan)  # else it was refused
        T, B, _ = call.x.shape
        if call.lengths is not None and int(call.lengths.max()) == 0:
            return call.x.new_zeros(T, B, call.signature.output_size), call.states
        order = layout(T, B, call.lengths, call.reverse)
        dtype = torch.float64 if call.x.dtype == torch.float64 else torch.float32
        rows, states = call.x.reshape(T * B, -1), call.states
        if call.x.dtype != dtype or states[0].dtype != dtype:
            rows, states = rows.to(dtype), tuple(s.to(dtype) for s in states)
        if order.lengths is not None:
            assert order.order is not None
            rows = rows.index_select(0, order.packed_index)
            states = tuple(s.index_select(0, order.order) for s in states)
        with without_autocast():
            output, finals = _run(plan, call.cell, order, rows, states)
        if order.lengths is not None and order.order is not None:
            whole = output.new_zeros(T * B, output.shape[1])
            output = whole.index_copy(0, order.packed_index, output)
            back = order.order.argsort()
            finals = [f.index_select(0, back) for f in finals]
        finals = [f.to(s.dtype) for f, s in zip(finals, call.states, strict=True)]
        return output.view(T, B, -1).to(call.x.dtype), tuple(finals)


def _run(
    plan: Plan, cell: nn.Module, order: Layout, rows: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    part, graph, total = plan.split, plan.split.graph, len(rows)
    tensors: dict[Ref, Tensor] = {graph.x: rows}
    for name, ref in graph.weights.items():
        weight = _weight(cell, name)
        tensors[ref] = weight if weight.dtype == rows.dtype or not weight.is_floating_point() else weight.to(rows.dtype)
    plan.once.run(tensors, total)
    _run_rows(plan.before, tensors, order)
    outputs, finals = plan.loop(
        order,
        [tensors[r].reshape(total, -1).to(rows.dtype).contiguous() for r in part.streams],
        [s.contiguous() for s in states],
        [tensors[r].reshape(-1).to(rows.dtype).contiguous() for r in part.vectors],
        [tensors[r].to(rows.dtype) for r, _ in plan.matrices],
    )
    for ref, output in zip(part.outputs, outputs, strict=True):
        shaped = output.view(total, *graph.shapes[ref][1:])
        tensors[ref] = shaped if graph.dtypes[ref].is_floating_point else shaped.to(graph.dtypes[ref])
    _run_rows(plan.after, tensors, order)
    return tensors[plan.result], finals


def _weight(cell: nn.Module, name: str) -> Tensor:
    """The present tensor of a name: a parameter, a buffer or another attribute."""
    path, _, attribute = name.rpartition(".")
    module = cell.get_submodule(path) if path else cell
    found = module._parameters.get(attribute)
    return found if found is not None else getattr(module, attribute)


def _run_rows(steps: Steps, tensors: dict[Ref, Tensor], order: Layout) -> None:
    """Run operations for the rows of all time steps at once; one step after the other if rows meet in them."""
    if not steps.mixing:
        steps.run(tensors, order.total)
        return
    shapes, batch = steps.graph.shapes, steps.graph.batch
    batched = {r for r in tensors if shapes[r] and shapes[r][0] == batch}
    made: dict[Ref, list[Tensor]] = {}
    for first, n in sorted(zip(order.offset.tolist(), order.rows.tolist(), strict=True)):
        here = {r: t[first : first + n] if r in batched else t for r, t in tensors.items()}
        steps.run(here, n)
        for ref in (r for s in steps.steps for r in s.outputs):
            made.setdefault(ref, []).append(here[ref])
    for ref, parts in made.items():
        tensors[ref] = torch.cat(parts) if shapes[ref] and shapes[ref][0] == batch else parts[-1]


# ---- From a cell to its plan, remembered ----


def _plan(call: Call) -> Plan | str:
    return plan_of(call.cell, call.signature, call.x.shape[2], call.x.dtype)


def plan_of(cell: nn.Module, signature: Signature, input_size: int, dtype: torch.dtype) -> Plan | str:
    """Take a cell apart, or say why not. Cells of equal code, attributes and sizes share a plan."""
    origin = cell.__dict__.get("_origin", cell)
    objects, values = _snapshot(cell)
    seen = [input_size, dtype, signature, values, *map(id, objects)]
    recent = _recent.get(origin)
    if recent is not None and recent[0] == seen:
        return recent[2]
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
    _recent[origin] = (seen, objects, found[0])  # the objects are kept, so that none takes another's identity
    return found[0]


def _made(cell: nn.Module, signature: Signature, input_size: int, dtype: torch.dtype) -> Plan | str:
    try:
        # A plan made in inference mode serves training as well.
        with torch.inference_mode(False), torch.enable_grad():
            parts = split(trace(cell, signature, input_size, dtype))
            plan = Plan(parts)
            _ = plan.loop.derivative
    except AnyRNNError as reason:
        return str(reason)
    return plan


def _snapshot(cell: nn.Module) -> tuple[list[object], list[object]]:
    """What a cell's trace depends on, cheaply: objects that must be the same ones, and values that must be equal."""
    objects: list[object] = []
    values: list[object] = []
    for module in cell.modules() if cell._modules else (cell,):
        objects.append(module.__class__)
        for key, value in module.__dict__.items():
            if key not in _OWN:
                objects.append(value)
                if value.__class__ not in _ATOMS:
                    objects.extend(_inside(value))
        objects.extend(module._modules.values())
        tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        values.append([(t.shape, t.dtype, t.stride()) for t in tensors])
        if cell._modules:
            values.append([id(t) for t in tensors])  # which are shared
    return objects, values


def _inside(value: object, depth: int = 4) -> Iterator[object]:
    """What a container or an object of settings holds, down to things that cannot change."""
    if value.__class__ in _ATOMS or isinstance(value, nn.Module | Tensor) or not depth:
        return
    if isinstance(value, dict):
        parts: Iterable[object] = (*value.keys(), *value.values())
    elif isinstance(value, list | tuple | set):
        parts = value
    elif hasattr(value, "tobytes"):  # a NumPy array: its numbers, as one thing that can be compared
        parts = (value.tobytes(),)
    else:
        parts = getattr(value, "__dict__", {}).values()
    for part in parts:
        yield part
        yield from _inside(part, depth - 1)


def _structure(cell: nn.Module, keeps: list[object]) -> object:
    """Everything about a cell that its trace depends on, beside the values of its tensors: equal for equal cells."""
    modules = []
    for name, module in cell.named_modules():
        attributes = tuple(
            (key, *(_plain(part, keeps) for part in (value, *_inside(value))))
            for key, value in module.__dict__.items()
            if key not in _OWN and not key.endswith("_hooks")
        )
        modules.append((name, type(module), attributes))
    named = [*cell.named_parameters(remove_duplicate=False), *cell.named_buffers(remove_duplicate=False)]
    first = {id(t): name for name, t in reversed(named)}
    return tuple(modules), tuple((name, first[id(t)], t.shape, t.dtype, t.stride()) for name, t in named)


def _plain(value: object, keeps: list[object]) -> object:
    """Turn a part of a cell into what is equal for equal parts, or into its identity."""
    if isinstance(value, list | tuple | set | dict):
        return type(value), len(value)  # what is inside follows
    if value.__class__ in _ATOMS or isinstance(value, torch.dtype | torch.Size | bytes):
        return type(value), value
    if isinstance(value, Tensor):
        return "tensor", value.shape, value.dtype
    keeps.append(value)
    return id(value)
