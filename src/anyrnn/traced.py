"""Layers where PyTorch traces (torch.compile, torch.export): a call becomes an operator with the cell's step as text.

Traced step by step, a loop would be as long as the sequence. So `choose` returns an engine that records one step of the
cell, by the tracer that every cell goes through, and leaves ``anyrnn::scan`` with its text in the graph (`operators`).

The text is a constant of the graph, so the graph holds as long as the cell is what it was: torch.compile is given a
`_Watch` to guard on, by which it sees at each call everything that an ordinary call would see. After a change, it
compiles anew. A step that cannot be recorded is traced step by step in a short sequence; else the graph breaks there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, finalize, ref

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._library.opaque_object import register_opaque_type
from torch.utils._python_dispatch import _disable_current_modes

from anyrnn import operators
from anyrnn.cells.base import origin_of
from anyrnn.compiler.graph import PLAIN
from anyrnn.compiler.graph_text import written
from anyrnn.compiler.reach import Reach, Sight
from anyrnn.compiler.trace import check_one_row, member_of, tensors_of, trace
from anyrnn.engines import select
from anyrnn.errors import AnyRNNError
from anyrnn.probing import describe, kinds_of, stated_sizes, untold
from anyrnn.protocol import ExtraForm, Form, Signature, Size, Sizes, outside_inference_mode
from anyrnn.runtime.call import CallForm, Request, Result
from anyrnn.runtime.lock import LOCK
from anyrnn.runtime.plans import HOOKED, has_hooks

try:
    from torch._custom_class_base import CustomClassBase  # type: ignore[import-not-found]
except ImportError:  # before PyTorch 2.14, which warns where the former name is imported
    from torch._opaque_base import OpaqueBase as CustomClassBase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import CodeType

    from anyrnn.compiler.graph import Graph
    from anyrnn.runtime.call import Call

P = ParamSpec("P")
R = TypeVar("R")

#: Up to how many steps a cell that cannot be recorded is traced step by step.
SHORT = 16


def constant_to_dynamo(function: Callable[P, R]) -> Callable[P, R]:
    """Do what `torch.compiler.assume_constant_result` does, without its import of torch._dynamo: that takes seconds."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class _Made:
    """Modules that were made while torch.compile ran, each an attribute: it has to be found by a name."""

    def add(self, module: nn.Module, owner: object) -> str:
        """Take a module, for as long as its owner is there, and return its name."""
        name = f"made{id(module)}"
        if not hasattr(self, name):
            setattr(self, name, module)
            finalize(owner, self._forget, name).atexit = False
        return name

    def _forget(self, name: str) -> None:
        if hasattr(self, name):
            delattr(self, name)


MADE = _Made()


class OperatorEngine:
    """Writes a call down as an operator."""

    name = "operator"

    def refusal(self, call: Call) -> None:
        """Never refuse: what cannot be an operator is run in another way."""

    def anatomy(self, call: Call) -> None:
        """Take the cell as it is."""

    def run(self, call: Call) -> Result:
        """Put the operator into the graph that is traced."""
        cell, signature, x = call.cell, call.signature, call.x
        registered = {**dict(cell.named_parameters()), **dict(cell.named_buffers())}
        forms = tuple([(name, tuple(t.shape), t.dtype) for name, t in registered.items()])
        text, names, watch, reason, short = _recorded(
            origin_of(cell), cell.training, forms, _fixed(x.shape[2:]), x.dtype, fields_of(signature),
            tuple([(e.key, e.kind, _fixed(e.form.shape), e.tensor.dtype) for e in call.extras]),
            call.request.record, call.request.states,
        )  # fmt: skip
        if text is None:
            return _without_operator(call, reason, short)
        if watch is not None:
            _guard_by(getattr(_WATCHES, watch))
        device = x.device.type
        results = torch.ops.anyrnn.scan(
            text,
            x,
            list(call.states),
            [e.tensor for e in call.extras],
            call.lengths,
            [_weight(cell, registered, name, x) for name in names],
            call.reverse,
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        )
        count = len(results) - len(call.states)
        return Result(results[:count], tuple(results[count:]))


def _fixed(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape of ints, not symbols: only T and B differ from call to call."""
    return tuple([operator.index(n) for n in shape])


def fields_of(signature: Signature) -> tuple[Any, ...]:
    """The fields of a signature that a constant of a program can be: not the classes of its tuples."""
    return (
        signature.state_sizes, signature.bare, signature.output_sizes, signature.has_output, signature.names,
        signature.spread, signature.flat,
    )  # fmt: skip


def _weight(cell: nn.Module, registered: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A weight by its dotted name: a parameter, a buffer or another attribute, which may be a number."""
    if name in registered:
        return registered[name]
    found: Any = cell
    for part in name.split("."):
        found = member_of(found, part)
    # The product lets torch.compile take a number that changes for an input.
    return found if isinstance(found, Tensor) else torch.ones((), dtype=x.dtype, device=x.device) * found


class ApartEngine:
    """Leaves the graph for a call that runs pieces of it again: what is kept within the graph, its compiler decides."""

    name = "apart"

    def refusal(self, call: Call) -> None:
        """Never refuse here: `run` does, where the graph has to be whole."""

    def anatomy(self, call: Call) -> None:
        """Take the cell as it is."""

    def run(self, call: Call) -> Result:
        """Run the call as ever, between two graphs."""
        msg = (
            f"{type(call.cell).__name__}: got checkpoint_every={call.checkpoint_every} in a graph of torch.compile or "
            f"torch.export, which decides by itself what is kept for the backward pass; expected none, or the layer "
            f"below torch.compiler.disable"
        )
        if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting():
            raise AnyRNNError(msg)
        if _prepared():
            torch._dynamo.graph_break(msg=msg)
        return _WATCHES.eagerly(call)


_OPERATOR = select.Choice(OperatorEngine(), "PyTorch traces this call", {})
_APART = select.Choice(ApartEngine(), "PyTorch traces around this call", {})
_STEP_BY_STEP = select.Choice(select.ENGINES["reference"], "PyTorch traces this call step by step", {})


def choose(call: Call) -> select.Choice:
    """Choose the engine for a call: as `anyrnn.engines.select` does, but where PyTorch traces, an operator."""
    if not torch.compiler.is_compiling():
        return select.choose(call)
    if call.checkpoint_every is not None:
        return _APART
    if not _step_by_step():
        return _OPERATOR
    if call.lengths is not None:
        raise AnyRNNError(_data_dependent(call))
    if call.request.record:
        raise AnyRNNError(_unseen_variables(call, "each step is traced"))
    return _STEP_BY_STEP


def _data_dependent(call: Call) -> str:
    return (
        f"{type(call.cell).__name__}: got lengths where each step is traced (torch.func below torch.compile, or "
        f"torch.export with the engine 'reference'); expected none, since the number of steps depends on them"
    )


def _unseen_variables(call: Call, reason: str) -> str:
    return (
        f"{type(call.cell).__name__}: got record={call.request.record} below torch.compile or torch.export, where its "
        f"step cannot be written down ({reason}), and a graph of steps holds no local variables; expected the call "
        f"outside, or the layer below torch.compiler.disable"
    )


@constant_to_dynamo
def _step_by_step() -> bool:
    """Whether each step is traced: for torch.func, which has no rules for the operator, or since an export asks for it.

    An export with the engine "reference" gives a program that runs without this package.
    """
    if torch._C._functorch.maybe_current_level() is not None:
        return True
    return torch.compiler.is_exporting() and select._wanted.get() == "reference"


# ---- The step of a cell, as text ----


class _Recording(NamedTuple):
    """What was made of a cell's step.

    Attributes:
        text: The step; None if it cannot be recorded.
        names: The names of its weights, in order.
        watch: The name of what torch.compile guards on, among `_WATCHES`.
        reason: Why there is no text.
        short: Whether the steps of a short sequence may be traced instead.
    """

    text: str | None
    names: tuple[str, ...] = ()
    watch: str | None = None
    reason: str = ""
    short: bool = True


Forms: TypeAlias = "tuple[tuple[str, tuple[int, ...], torch.dtype], ...]"


@constant_to_dynamo
def _recorded(
    origin: nn.Module, training: bool, forms: Forms, x_shape: tuple[int, ...], dtype: torch.dtype,
    signature: tuple[Any, ...], extras: tuple[tuple[Any, ...], ...], record: tuple[str, ...], states: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """Record a cell's step: the fields of a `_Recording`.

    Args:
        origin: The cell; or what it is a copy of, with other weights.
        training: Whether the cell is in training mode.
        forms: The names, shapes and types of its weights.
        x_shape: The shape of x, without T and B.
        dtype: The type of x.
        signature: The fields of its signature but for the classes of its tuples.
        extras: The fields of the forms of further arguments.
        record: The local variables that are wanted.
        states: Whether the states of all steps are.
    """
    _prepare()
    fields = (*signature, *kinds_of(origin))
    form = CallForm(
        Signature(*fields), x_shape, dtype,
        tuple(ExtraForm(*e) for e in extras), Request(record, states),
    )  # fmt: skip
    with LOCK:
        return tuple(_found(origin, training, forms, form))


def _found(origin: nn.Module, training: bool, forms: Forms, form: CallForm) -> _Recording:
    """Record a cell's step, or say why not."""
    wanted = select.wanted_name()
    if wanted in ("reference", "torch"):
        return _Recording(None, reason=f"the engine {wanted!r} was asked for", short=wanted == "reference")
    try:
        if has_hooks(origin):
            raise AnyRNNError(HOOKED)
        with _disable_current_modes(), _without_function_modes(), outside_inference_mode(), torch.enable_grad():
            found = _record(origin, training, forms, form)
    except AnyRNNError as reason:
        return _Recording(None, reason=str(reason), short=wanted == "auto")
    if wanted == "cpu" and (recipe := operators.recipe(str(found.text))).plan is None:
        return _Recording(None, reason=recipe.reason, short=False)
    return found


def _record(origin: nn.Module, training: bool, forms: Forms, form: CallForm) -> _Recording:
    cell = with_numbers(origin, forms, training)
    if torch.compiler.is_exporting():  # the cell as it is now, whatever becomes of it
        graph, _ = _graph_and_reach(cell, form)
        return _recording(graph, None)
    key = training, forms, form, torch.get_default_dtype()
    last = _last.get(origin)
    if last is not None and last.key == key and last.watch.is_unchanged(origin):
        return last.recording
    inputs = frozenset[tuple[str, str]]() if last is None else last.watch.sight.changed_numbers(origin)
    try:
        graph, reach = _graph_and_reach(cell, form, inputs)
    except AnyRNNError:
        if not inputs:
            raise
        graph, reach = _graph_and_reach(cell, form)  # it does more with these numbers than to compute
    watch = _Watch(origin, Sight(origin, reach))
    recording = _recording(graph, _WATCHES.add(watch, origin))
    _last[origin] = _Last(key, watch, recording)
    return recording


def _recording(graph: Graph, watch: str | None) -> _Recording:
    text = written(graph)
    return _Recording(text, tuple(operators.parsed(text).weights), watch)


def _graph_and_reach(cell: nn.Module, form: CallForm, numbers: Iterable[tuple[str, str]] = ()) -> tuple[Graph, Reach]:
    ran: set[CodeType] = set()
    graph = trace(cell, form.signature, form.x_shape, form.dtype, ran, numbers, form.extras)
    check_one_row(graph, cell, form.signature, numbers, form.extras)
    return graph.asked(form.request.record, form.request.states), Reach.of(ran, numbers)


@contextlib.contextmanager
def _without_function_modes() -> Iterator[None]:
    """Put the modes aside by which somebody sees the functions that are called, as torch.export does."""
    modes = []
    while torch._C._len_torch_function_stack():
        modes.append(torch._C._pop_torch_function_stack())
    try:
        yield
    finally:
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)


def with_numbers(cell: nn.Module, forms: Forms, training: bool) -> nn.Module:
    """The cell, or if its weights have no numbers here, a copy of it whose weights have some.

    They have none where PyTorch exports, in a cell whose weights are a layer's, and below torch.func.
    """
    tensors = tensors_of(cell)
    if all(type(t) in PLAIN and not t.is_meta and not is_functorch_wrapped_tensor(t) for t in tensors.values()):
        return cell
    known = {name: (shape, dtype) for name, shape, dtype in forms}
    own = {name: known.get(name, (tuple(t.shape), t.dtype)) for name, t in tensors.items()}
    new: dict[int, object] = {id(t): _made_up(*own[name]) for name, t in tensors.items()}
    modules = [*cell.modules()]
    copies = {id(m): object.__new__(type(m)) for m in modules}
    new.update(copies)
    for module in modules:
        vars(copies[id(module)]).update((key, _replaced(value, new)) for key, value in vars(module).items())
    copies[id(cell)].training = training
    return copies[id(cell)]


def _made_up(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter | Tensor:
    """Numbers that most operations on weights can take: positive, and a matrix that has an inverse."""
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    count = torch.Size(shape).numel()
    numbers = (torch.arange(count, device="cpu") * 17 % 61 / 61).reshape(shape)
    numbers = 0.01 * numbers + torch.eye(*shape, device="cpu") if len(shape) == 2 else 0.5 + 0.1 * numbers
    return nn.Parameter(numbers.to(dtype))


def _replaced(value: Any, new: Mapping[int, Any], depth: int = 4) -> Any:
    """Put new tensors and modules for old ones: for the value itself, or within dicts, lists and tuples."""
    if id(value) in new or not depth:
        return new.get(id(value), value)
    if type(value) in (dict, OrderedDict):
        return type(value)((k, _replaced(v, new, depth - 1)) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(_replaced(v, new, depth - 1) for v in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_replaced(v, new, depth - 1) for v in value))
    return value


# ---- What torch.compile guards on ----


class _Watch(CustomClassBase):  # type: ignore[misc]
    """A cell, and what it looked like when its step was recorded."""

    def __init__(self, cell: nn.Module, sight: Sight) -> None:
        self._cell, self.sight = ref(cell), sight

    def state(self) -> list[object]:
        """What has to be as it was: compared at each call of the compiled code."""
        cell = self._cell()
        if cell is None:
            return [False]
        return [self.sight.is_same(cell), has_hooks(cell), select._wanted.get(), os.environ.get("ANYRNN_ENGINE")]

    def is_unchanged(self, cell: nn.Module) -> bool:
        """Whether the cell looks as it did, its tensors' forms included."""
        return self.sight.is_same(cell) and self.sight.tensors(cell) == self.sight.forms


class _Watches:
    """All of them, each an attribute: what torch.compile guards on has to be found by a name."""

    eagerly: Callable[[Call], Result]

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def add(self, watch: _Watch, cell: nn.Module) -> str:
        """Take a watch, for as long as the cell is there."""
        name = f"watch{next(self._numbers)}"
        setattr(self, name, watch)
        finalize(cell, delattr, self, name).atexit = False
        return name


_WATCHES = _Watches()


class _Last(NamedTuple):
    """The last recording of a cell, and for what it was made."""

    key: tuple[object, ...]
    watch: _Watch
    recording: _Recording


_last: WeakKeyDictionary[nn.Module, _Last] = WeakKeyDictionary()


def _guard_by(watch: object) -> None:
    """Have torch.compile look at a watch, which is to say guard on its state."""
    assert isinstance(watch, _Watch)


@functools.cache
def _prepare() -> None:
    """Tell PyTorch of what it meets in here, when it does: this loads torch._dynamo, which takes seconds."""
    register_opaque_type(_Watch, typ="reference", guard_fn=_Watch.state)
    _WATCHES.eagerly = torch.compiler.disable(_eagerly)


@constant_to_dynamo
def _prepared() -> bool:
    _prepare()
    return True


# ---- A cell that cannot be recorded ----


def _without_operator(call: Call, reason: str, short: bool) -> Result:
    """Trace the steps of a short sequence; leave the graph for a long one."""
    if call.request.record:
        raise AnyRNNError(_unseen_variables(call, reason))
    if short and call.lengths is None and call.x.shape[0] <= SHORT:
        return _STEP_BY_STEP.engine.run(call)
    msg = (
        f"{type(call.cell).__name__}: its step is no operator, and is traced step by step only without lengths and up "
        f"to {SHORT} steps: {reason}"
    )
    if not torch.compiler.is_dynamo_compiling():
        raise AnyRNNError(msg)
    torch._dynamo.graph_break(msg=msg)
    return _WATCHES.eagerly(call)


def _eagerly(call: Call) -> Result:
    """Run a call as ever."""
    return select.choose(call).engine.run(call)


# ---- The signature of a cell ----


#: What `anyrnn.scan` has found out about cells, by the size of the input and what the sizes of the state hang on.
signatures: WeakKeyDictionary[nn.Module, dict[object, Signature]] = WeakKeyDictionary()


def signature_key(
    cell: nn.Module, input_size: Size, state_sizes: Sizes | None, form: Form | None, extras: Sequence[ExtraForm] = ()
) -> object:
    """By what `anyrnn.scan` knows the signature of a cell: a cell that has grown has another."""
    named = form is not None and form[0] not in (tuple, Tensor)
    sizes = stated_sizes(cell) if state_sizes is None else state_sizes
    return input_size, sizes, type(sizes), form if named else None, tuple(extras)


def described(
    cell: nn.Module,
    input_size: Size,
    state_sizes: Sizes | None,
    form: Form | None = None,
    extras: Sequence[ExtraForm] = (),
    rows: int | None = None,
) -> Signature:
    """Find the signature of a cell with `describe`, whose steps are run, not traced, where PyTorch traces."""
    if torch.compiler.is_compiling():
        known = [(e.key, e.kind, _fixed(e.shape), e.dtype) for e in extras]
        return Signature(*_signature_fields(cell, input_size, state_sizes, form, tuple(known)))
    return describe(cell, input_size, state_sizes, form, extras, rows)


@constant_to_dynamo
def _signature_fields(
    cell: nn.Module, input_size: Size, state_sizes: Sizes | None, form: Form | None, extras: tuple[tuple[Any, ...], ...]
) -> tuple[Any, ...]:
    """The fields of a signature, but for the class of a named tuple, which a constant of a program cannot be."""
    forms = [ExtraForm(*e) for e in extras]
    known = signatures.get(cell, {}).get(signature_key(cell, input_size, state_sizes, form, forms))
    if known is not None:
        return fields_of(known)
    if nn.Module.__call__ is not nn.Module._wrapped_call_impl:
        # torch.export watches every call of a module, and loses count of those that fail, as some may here.
        msg = f"{type(cell).__name__}: what a step returns is not known; expected an ordinary call before torch.export"
        raise AnyRNNError(msg)
    found = describe(cell, input_size, state_sizes, form, forms)
    if not found.settled:
        raise AnyRNNError(untold(cell, found))
    return fields_of(found)
