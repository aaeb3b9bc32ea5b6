"""From a cell to its plan: taken apart and compiled once for all cells of equal code, attributes and sizes.

A cell may change between two calls, by anything that Python can do to an object. So every call looks at everything that
the code of its step could read (`reach`): whether it is the very same objects as at the last call, which is told in
microseconds; if not, whether it is equal to what another plan was made for. A number that changes becomes an input.
A cell that was refused runs as it is, which is right whatever has become of it: it need not be looked at so often.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from anyrnn.cells.base import origin_of
from anyrnn.compiler.lower import MOST_SEGMENTS
from anyrnn.compiler.node import TooManyValuesError
from anyrnn.compiler.reach import Reach, Sight
from anyrnn.compiler.split import Split, split
from anyrnn.compiler.torch_ops import Ops
from anyrnn.compiler.trace import check_one_row, trace
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import outside_inference_mode
from anyrnn.runtime.call import CallForm, SeriesForm
from anyrnn.runtime.lock import LOCK, collector_off
from anyrnn.runtime.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import CodeType

    from anyrnn.compiler.graph import Graph


_PLANS = 256  # remembered
_MOST_CHANGES = 16  # of one cell, before it is left to the reference: each has cost a trace
_REST = 128  # steps of a refused cell between two looks at it, each of which takes as long as half a step
_HOOKS = "forward", "forward_pre", "backward", "backward_pre"
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global_{kind}_hooks") for kind in _HOOKS)
HOOKED = "hooks are called when its modules are, which machine code would not do"


class Plan:
    """A cell taken apart and compiled.

    Attributes:
        split: The four parts.
        loop: The loop, ready to run.
        weights: Of each tensor of the cell that is used: the path of its module, its name there, and its number.
        arrays: Of each array that the loop is given: its name, the number of its tensor, and its role. Of a matrix that
            is a transposed weight the tensor is the weight (`Loop.transposed`).
        once, rows, before, after: What PyTorch runs: for weights, and for the rows of a call, of all steps, and of all
            steps after the loop.
        inputs_read, rows_read: Which tensors with one for each step, and which with one for each row, `before` and
            `after` read, or the call returns.
        has_flat_states: All state variables are (B, size).
        series: What is returned for every step.
        direct: The name of the loop's output that is returned as it is, if the loop is all there is; else None.
    """

    def __init__(self, parts: Split) -> None:
        self.split, self.series = parts, parts.series
        graph, program, tensors = parts.graph, parts.program, parts.tensors
        matrices = {tensors[a.name] for a in program.of("matrix")}
        # A matrix that is a weight, transposed, as in every linear layer, is not computed: the loop is given the weight
        # itself, and told that it is the transposed one. `turned` has the weight by its transposed one.
        turned = {
            op.outputs[0]: op.args[0] for op in parts.once if op.name == "t.default" and op.outputs[0] in matrices
        }
        read = [(a.name, tensors[a.name], a.role) for a in program.of("stream", "row", "vector", "matrix")]
        self.arrays = tuple((n, turned.get(ref, ref) if role == "matrix" else ref, role) for n, ref, role in read)
        self.loop = Loop(program, [n for n, ref, role in read if role == "matrix" and ref in turned])
        # What PyTorch has to compute, which is not the transposed one unless something else reads that, too.
        outside = (*parts.once, *parts.rows, *parts.before, *parts.after)
        needed = {r for op in outside for r in op.inputs} | {ref for _, ref, role in read if role != "matrix"}
        once = [op for op in parts.once if op.outputs[0] not in turned or op.outputs[0] in needed]
        ops = (once, parts.rows, parts.before, parts.after)
        self.once, self.rows, self.before, self.after = (Ops(part, graph) for part in ops)
        used = needed | {ref for _, ref, _ in self.arrays}
        self.weights = tuple((*_path(name), ref) for name, ref in graph.weights.items() if ref in used)
        # What PyTorch reads of the tensors that have one for each step, or for each row: these are spread over steps.
        read_outside = {r for op in (*parts.before, *parts.after) for r in op.inputs}.union(self.series)
        self.inputs_read = tuple(r for r in graph.inputs if r in read_outside)
        self.rows_read = tuple(r for r in parts.of_rows if r in read_outside)
        self.has_flat_states = all(len(graph.shapes[r]) == 2 for r in graph.states)
        # Where one output of the loop is all that is returned, nothing has to be packed and unpacked around it.
        (first, *others) = self.series
        found = [name for name in self.loop.outputs if tensors[name] == first]
        bare = not (parts.before or parts.after or others) and found and graph.dtypes[first].is_floating_point
        self.direct = found[0] if bare else None

    @functools.cached_property
    def as_step(self) -> Plan:
        """A plan of the same step to be run one at a time: if it can be, all of it is in the loop."""
        with LOCK, torch._C.DisableTorchFunction():
            for most_segments in (MOST_SEGMENTS, 1):
                try:
                    return Plan(split(self.split.graph, most_segments, as_step=True))
                except TooManyValuesError:
                    continue
                except AnyRNNError:
                    break
            return self

    def forms(self, dtype: torch.dtype) -> list[SeriesForm]:
        """The forms of what is returned for every step, where x is of a type."""
        graph = self.split.graph
        types = [graph.dtypes[ref] for ref in self.series]
        types = [dtype if t.is_floating_point else t for t in types]
        return [SeriesForm(graph.shapes[ref][1:], t) for ref, t in zip(self.series, types, strict=True)]


def planned(graph: Graph) -> Plan:
    """Take a step apart, and derive its backward pass.

    Features far apart are computed piece by piece as long as these are few; where that makes too many values, they are
    moved together before anything is computed from them.
    """
    with collector_off():
        try:
            plan = Plan(split(graph))
            _ = plan.loop.derivative
        except TooManyValuesError:
            plan = Plan(split(graph, most_segments=1))
            _ = plan.loop.derivative
    return plan


def _path(name: str) -> tuple[tuple[str, ...], str]:
    *path, attribute = name.split(".")
    return tuple(path), attribute


# ---- Plans, remembered ----


@dataclass(frozen=True)
class _Recent:
    """What a cell was at its last call, and what was found for it.

    Attributes:
        form: The form of the call, with the default type and device of the moment.
        sight: What the cell looked like.
        plan: Its plan, or why there is none.
        changes: How often it looked as no cell did before, and was traced anew.
    """

    form: Hashable
    sight: Sight
    plan: Plan | str
    changes: int


@dataclass
class _Rest:
    """For how many steps more a refused cell is not looked at, in calls of a form, and in training or not."""

    form: Hashable
    training: bool
    left: int


# A Reach says where code that ran could look; a Sight is what it finds there: a key, and guards of all that it met.
#: By the form of a call and the key of a cell: its plan, or why it has none. The oldest ones are dropped.
_plans: OrderedDict[Hashable, Plan | str] = OrderedDict()
#: By class and form: where the code of cells of that class has looked so far. They go with the class.
_reaches: WeakKeyDictionary[type, dict[Hashable, list[Reach]]] = WeakKeyDictionary()
#: By cell: what it was at its last call.
_recent: WeakKeyDictionary[nn.Module, _Recent] = WeakKeyDictionary()
#: By cell that cannot be looked at: its form and attributes then, and the reason.
_refused: WeakKeyDictionary[nn.Module, tuple[Hashable, str]] = WeakKeyDictionary()
#: By refused cell: until when it is not looked at.
_rests: WeakKeyDictionary[nn.Module, _Rest] = WeakKeyDictionary()


def plan_of(cell: nn.Module, call_form: CallForm) -> Plan | str:
    """Take a cell apart, or say why not. Cells of equal code, attributes and sizes share a plan."""
    if has_hooks(cell):
        return HOOKED
    origin, form = origin_of(cell), _with_defaults(call_form)
    recent = _recent.get(origin)
    if recent is not None and recent.form == form:
        sight = recent.sight
        if sight.is_same(cell) and sight.tensors(cell) == sight.forms:
            return recent.plan
    refused = _refused.get(origin)
    if refused is not None and refused[0] == (form, _surface(cell)):
        return refused[1]
    with LOCK:
        return _looked_up(cell, origin, form, recent if recent is not None and recent.form == form else None)


def _with_defaults(form: CallForm) -> tuple[CallForm, torch.dtype, torch.device | None]:
    """The form of a call, with the type and device of the moment, which what a step makes anew has."""
    return form, torch.get_default_dtype(), torch.get_default_device() if torch._C._len_torch_function_stack() else None


def is_at_rest(cell: nn.Module, form: CallForm, steps: int) -> bool:
    """Whether a cell whose last plan is a refusal need not be looked at for a call of so many steps."""
    rest = _rests.get(origin_of(cell))
    if rest is None or rest.left < steps or rest.form != _with_defaults(form) or rest.training != cell.training:
        return False
    rest.left -= steps
    return True


def let_rest(cell: nn.Module, form: CallForm) -> None:
    """Note that a cell was looked at for a call of a form, and refused."""
    _rests[origin_of(cell)] = _Rest(_with_defaults(form), cell.training, _REST)


def last_plan_of(cell: nn.Module) -> Plan | str | None:
    """The plan of a cell at its last call, or why it had none; None if that is not remembered."""
    origin = origin_of(cell)
    recent = _recent.get(origin)
    if recent is not None:
        return recent.plan
    refused = _refused.get(origin)
    return None if refused is None else refused[1]


def _looked_up(cell: nn.Module, origin: nn.Module, form: tuple[Any, ...], recent: _Recent | None) -> Plan | str:
    """Find the plan of a cell that looks the same as another one, or make one."""
    changes = 0 if recent is None else recent.changes
    reaches = _reaches.setdefault(type(origin), {}).setdefault(form, [])
    try:
        for reach in reaches:
            sight = Sight(cell, reach)
            if (plan := _plans.get((form, sight.key))) is not None:
                _plans.move_to_end((form, sight.key))
                return _remembered(origin, _Recent(form, sight, plan, changes))
        if recent is not None and changes >= _MOST_CHANGES:
            why = f"what it reads differs at every call: {recent.sight.changed(cell) or 'the forms of its tensors'}"
            return _remembered(origin, _Recent(form, Sight(cell, recent.sight.reach), why, changes))
        changes += recent is not None
        plan, reach = _new_plan(cell, form, _changed_numbers(cell, recent))
        if reach not in reaches:
            reaches.append(reach)
        sight = Sight(cell, reach)
    except AnyRNNError as reason:
        _refused[origin] = (form, _surface(cell)), str(reason)
        return str(reason)
    except (MemoryError, OSError, RuntimeError) as cause:
        if not isinstance(cause, MemoryError | OSError) and "allocate memory" not in str(cause):
            raise
        return f"its step could not be looked at just now: {type(cause).__name__}: {cause}"  # not remembered
    _plans[form, sight.key] = plan
    if len(_plans) > _PLANS:
        _plans.popitem(last=False)
    return _remembered(origin, _Recent(form, sight, plan, changes))


def _remembered(origin: nn.Module, recent: _Recent) -> Plan | str:
    if recent.sight.is_circular:  # to remember it would be to keep the cell for ever
        _recent.pop(origin, None)
    else:
        _recent[origin] = recent
    return recent.plan


def _surface(cell: nn.Module) -> Hashable:
    """Which objects a cell's attributes are."""
    return tuple(cell.__dict__), tuple(map(id, cell.__dict__.values()))


def _changed_numbers(cell: nn.Module, recent: _Recent | None) -> frozenset[tuple[str, str]]:
    """The numbers among a cell's attributes that were others at its last call: they are inputs from now on."""
    if recent is None:
        return frozenset()
    return recent.sight.changed_numbers(cell)


def _new_plan(cell: nn.Module, form: tuple[Any, ...], inputs: frozenset[tuple[str, str]]) -> tuple[Plan | str, Reach]:
    """Trace a cell and make its plan, or say why not; and where the code that ran could look.

    `inputs` are numbers, by (module, attribute), that the plan reads anew in each call.
    """
    call: CallForm = form[0]
    ran: set[CodeType] = set()
    try:
        # A plan made in inference mode serves training as well.
        with outside_inference_mode(), torch.enable_grad():
            graph = trace(cell, call.signature, call.x_shape, call.dtype, ran, inputs, call.extras)
            with torch._C.DisableTorchFunction():  # such as a default device's: these tensors are our own
                plan = planned(graph.asked(call.request.record, call.request.states))
            check_one_row(graph, cell, call.signature, inputs, call.extras)
    except RecursionError:
        return "its step is too long a chain of operations", Reach.of(ran)
    except AnyRNNError as reason:
        if inputs:  # it does more with them than to compute
            return _new_plan(cell, form, frozenset())
        # Before anything ran, the reason may lie in any attribute.
        return str(reason), Reach.of(ran) if ran else Reach(frozenset(), frozenset(), indirect=True)
    return plan, Reach.of(ran, inputs)


def has_hooks(cell: nn.Module) -> bool:
    """Whether anybody is called when a module of the cell is."""
    if any(_GLOBAL_HOOKS):
        return True
    if not cell._modules:  # to list the modules takes as long as all else here
        return bool(cell._forward_hooks or cell._forward_pre_hooks or cell._backward_hooks or cell._backward_pre_hooks)
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in cell.modules()
    )
