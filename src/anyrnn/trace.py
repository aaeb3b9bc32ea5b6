"""A cell's step as a graph of ATen operations, recorded while it runs on tensors without data.

Nothing of the cell is interpreted: its own Python code runs, with a batch size that occurs nowhere else, below a
dispatch mode that writes down every operation. Parameters, buffers and plain tensor attributes become inputs by name,
so that a later call computes with their present values. The run is real, on made up numbers: tensors without data would
cost seconds of imports inside PyTorch. It is done on a copy of the cell (`twin`), whose questions are answered by a
`Witness`, and three times: with other numbers and another batch size, and for one row. A step that
then does something else (it reads numbers, counts steps, divides by the batch size) is not a graph. In the end the
graph itself is run on the numbers of a trace: what does not give what the cell gave (it computed outside of PyTorch)
is none.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from anyrnn.contraction import Contractions
from anyrnn.errors import AnyRNNError
from anyrnn.opaque_function import recorded
from anyrnn.protocol import caching_nothing, placement
from anyrnn.randomness import own_random_numbers
from anyrnn.reach import Reach, Sight, is_standard_file, is_trusted_file
from anyrnn.twin import twin_of
from anyrnn.witness import MOMENTARY, Number, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import CodeType, FrameType

    from anyrnn.protocol import Signature

_OURS = (
    "opaque_function",
    "protocol",
    "randomness",
    "reach",
    "twin",
    "witness",
)  # what runs in a trace and is not the cell's

#: Batch sizes for a trace: the first of these primes that no number of features is a multiple of.
BATCHES = (127, 131, 137, 139, 149, 151)

#: The names of arguments of ATen operations that are shapes, or sizes of the batch.
SHAPE_ARGUMENTS = ("size", "shape", "repeats", "N")


#: The classes of tensors that are nothing but numbers in memory.
PLAIN = (Tensor, nn.Parameter, nn.Buffer)

#: In-place operations that do not read what they change.
_OVERWRITING = frozenset(f"aten::{name}_" for name in ("fill", "zero", "copy", "bernoulli", "uniform", "normal"))


class Ref(int):
    """A tensor in a graph, by number."""


@dataclass(frozen=True)
class Step:
    """One ATen operation: `args` and `kwargs` with a Ref in the place of each tensor, and the tensors it returns."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]
    many: bool

    @property
    def inputs(self) -> Iterator[Ref]:
        """The tensors it reads."""
        for value in pytree.tree_leaves((self.args, dict(self.kwargs))):
            if isinstance(value, Ref):
                yield value

    @property
    def short_name(self) -> str:
        """The operation without its namespace and overload, such as "add"."""
        return self.op._schema.name.removeprefix("aten::")

    @property
    def name(self) -> str:
        """The operation without its namespace, such as "add.Tensor"."""
        return str(self.op).removeprefix("aten.")


@dataclass(frozen=True)
class Graph:
    """A step of a cell.

    Attributes:
        x: The input.
        states: The state variables before the step.
        weights: Parameters, buffers and tensor attributes, by dotted name.
        steps: The operations, in order.
        output: The output of the step; None if it is the first new state.
        new_states: The state variables after the step.
        batch: The batch size of the trace.
        shapes: The shape of every tensor.
        dtypes: The type of every tensor.
        names: The local variables of the cell's code that hold a tensor.
    """

    x: Ref
    states: tuple[Ref, ...]
    weights: Mapping[str, Ref]
    steps: tuple[Step, ...]
    output: Ref | None
    new_states: tuple[Ref, ...]
    batch: int
    shapes: Mapping[Ref, tuple[int, ...]]
    dtypes: Mapping[Ref, torch.dtype]
    names: Mapping[Ref, str]

    def __str__(self) -> str:
        """One operation a line."""

        def show(value: Any) -> str:
            if isinstance(value, Ref):
                return self.names.get(value, f"t{int(value)}")
            if isinstance(value, list | tuple):
                return f"[{', '.join(show(v) for v in value)}]"
            return str(value)

        lines = []
        for step in self.steps:
            shapes = ", ".join(str(self.shapes[r]).replace(str(self.batch), "B") for r in step.outputs)
            args = ", ".join([*map(show, step.args), *(f"{k}={show(v)}" for k, v in step.kwargs.items())])
            lines.append(f"{', '.join(map(show, step.outputs))} = {step.name}({args})  # {shapes}")
        return "\n".join(lines)


class Recorder(TorchDispatchMode):
    """Writes down operations; tensors that come from elsewhere are asked for by `name_of`."""

    def __init__(self, name_of: Callable[[Tensor], str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unwritten: set[int] = set()  # memory that nobody has written to
        self.refs: dict[int, Ref] = {}
        self.shapes: dict[Ref, tuple[int, ...]] = {}
        self.dtypes: dict[Ref, torch.dtype] = {}
        self.steps: list[Step] = []
        self.weights: dict[str, Ref] = {}
        self._name_of = name_of
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._stale: set[int] = set()
        self.varying: set[Ref] = set()  # what depends on the input or the state

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave `__torch_dispatch__` as it is: the usual wrapper imports torch._dynamo, which takes seconds."""
        return False

    def ref(self, tensor: Tensor) -> Ref:
        """Return the number of a tensor, giving it one if it is new."""
        found = self.refs.get(id(tensor))
        if found is None:
            return self._number(tensor)
        if id(tensor) in self._stale:
            msg = "it reads a tensor after a part of it was changed in place"
            raise AnyRNNError(msg)
        return found

    def _number(self, tensor: Tensor) -> Ref:
        ref = self.refs[id(tensor)] = self._fresh(tensor)
        self._kept.append(tensor)
        return ref

    def _fresh(self, tensor: Tensor) -> Ref:
        """A number for what a tensor is before it is detached."""
        ref = Ref(len(self.shapes))
        self.shapes[ref] = tuple(tensor.shape)
        self.dtypes[ref] = tensor.dtype
        return ref

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and write it down."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.lift_fresh.default and args[0].numel() == 1:
            number, func = args[0], torch.ops.aten.full.default  # torch.tensor(0.5) in the cell's code
            args, kwargs = (list(number.shape), number.item()), {"dtype": number.dtype}
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func is torch.ops.aten._linalg_check_errors.default and id(args[0]) in self.refs:
            self._let_check(args[0])
            return func(*args, **kwargs)
        frozen = self._name_of is not None and not torch.is_grad_enabled()
        if frozen and tensors and (func._schema.is_mutable or any(map(self.is_varying, tensors))):
            msg = f"`{func}` runs below torch.no_grad or in an autograd.Function: its gradient is not its own"
            raise AnyRNNError(msg)
        for tensor in tensors:
            if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_meta:
                kind = f"{type(tensor).__name__} of layout {tensor.layout} on {tensor.device}"
                msg = f"`{func}` takes a {kind}, which is no plain array of numbers"
                raise AnyRNNError(msg)
            if id(tensor) not in self.refs:
                self._name(tensor)
        if any(isinstance(v, torch.Generator) for v in kwargs.values()):
            msg = f"`{func}` draws random numbers from a generator of the cell's own"
            raise AnyRNNError(msg)
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs)
        if func is torch.ops.aten.native_batch_norm.default and args[3] is not None and args[5]:
            msg = f"`{func}` changes the running statistics"
            raise AnyRNNError(msg)
        result = func(*args, **kwargs)
        outputs = [r for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
        self._check_read(func, tensors, outputs)
        if not outputs:
            msg = (
                f"`{func}`: a Python number is taken from a tensor (.item(), float(), if): compute with tensors, "
                f"e.g. torch.where"
            )
            raise AnyRNNError(msg)
        recorded = pytree.tree_map_only(Tensor, self.ref, (args, kwargs))
        self._note(func, recorded[0], recorded[1], result, frozen)
        return result

    def _check_read(self, func: Any, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Check that no memory is read that nobody has written to."""
        if "empty" in func._schema.name:
            self._unwritten.update(map(_memory, outputs))
            return
        is_view = self._unwritten.issuperset(map(_memory, outputs))
        if not self._unwritten.isdisjoint(map(_memory, tensors)) and not (outputs and is_view):
            msg = f"`{func}` reads memory that nobody has written to"
            raise AnyRNNError(msg)

    def check_written(self, results: Iterable[Tensor]) -> None:
        """Check that what a step returns was written."""
        if not self._unwritten.isdisjoint(map(_memory, results)):
            msg = "it returns memory that nobody has written to"
            raise AnyRNNError(msg)

    def named(self) -> Iterator[tuple[Ref, Tensor]]:
        """The tensors of the graph."""
        return ((self.refs[id(t)], t) for t in self._kept)

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, frozen: bool = False) -> None:
        """Write a step down; `frozen` ends the path of gradients at what it gives."""
        outputs = [r for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
        if frozen:
            refs = tuple(self._fresh(o) for o in outputs)
            detach = torch.ops.aten.detach.default
            after = [Step(detach, (r,), {}, (self.ref(o),), many=False) for r, o in zip(refs, outputs, strict=True)]
        else:
            refs, after = tuple(self.ref(o) for o in outputs), []
        steps = [Step(func, args, kwargs, refs, isinstance(result, list | tuple)), *after]
        for step in steps:
            if self.varying.intersection(step.inputs):
                self.varying.update(step.outputs)
        self.steps += steps

    def note_function(self, call: Any, args: tuple[Any, ...], result: Any) -> None:
        """Write a call of an autograd.Function down."""
        for tensor in args:
            if isinstance(tensor, Tensor) and id(tensor) not in self.refs:
                self._name(tensor)
        self._note(call, pytree.tree_map_only(Tensor, self.ref, args), {}, result)

    def is_varying(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the input or the state."""
        return self.refs.get(id(tensor)) in self.varying

    def _let_check(self, info: Tensor) -> None:
        """Have an operation of linear algebra check its own result, as its caller just did."""
        ref = self.ref(info)
        for k, step in enumerate(self.steps):
            if ref in step.outputs and any(a.name == "check_errors" for a in step.op._schema.arguments):
                names = [a.name for a in step.op._schema.arguments]
                args = tuple(True if name == "check_errors" else a for name, a in zip(names, step.args, strict=False))
                given = {} if len(args) > names.index("check_errors") else {"check_errors": True}
                self.steps[k] = replace(step, args=args, kwargs={**step.kwargs, **given})

    def _in_place(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Write an operation such as `add_` down as `add`, and let the changed tensor stand for its result."""
        packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
        plain = getattr(packet, func._overloadname, None)
        written = args
        if func is torch.ops.aten.bernoulli_.float:
            plain, written = torch.ops.aten.bernoulli.p, (*args, *([] if kwargs or args[1:] else [0.5]))
        target = args[0] if args else None
        if plain is None or not func._schema.name.endswith("_") or not isinstance(target, Tensor):
            msg = f"`{func}` changes a tensor in place"
            raise AnyRNNError(msg)
        others = [t for t in pytree.tree_leaves((args[1:], dict(kwargs))) if isinstance(t, Tensor)]
        self._check_read(func, others, ())
        storage = _memory(target)
        if storage in self._unwritten:
            whole = target.numel() * target.itemsize == target.untyped_storage().nbytes()
            if func._schema.name not in _OVERWRITING or not whole:
                msg = f"`{func}` reads or keeps memory that nobody has written to"
                raise AnyRNNError(msg)
            self._unwritten.discard(storage)
        views = [t for t in self._kept if _memory(t) == storage]
        if any(self.refs[id(t)] in self.weights.values() for t in views):
            msg = f"`{func}` changes a weight or buffer"
            raise AnyRNNError(msg)
        recorded = pytree.tree_map_only(Tensor, self.ref, (written, dict(kwargs)))
        func(*args, **kwargs)
        self._stale.update(id(t) for t in views if t is not target and not _apart(t, target))
        self._stale.discard(id(target))
        self.steps.append(Step(plain, recorded[0], recorded[1], (self._number(target),), many=False))
        if self.varying.intersection(self.steps[-1].inputs):
            self.varying.update(self.steps[-1].outputs)
        return target

    def _name(self, tensor: Tensor) -> None:
        if self._name_of is None:
            msg = "a tensor turned up that is not part of the graph"
            raise AnyRNNError(msg)
        name = self._name_of(tensor)
        if name in self.weights:  # reached by another way than the attribute, as in a closure
            self.refs[id(tensor)] = self.weights[name]
        else:
            self.weights[name] = self._number(tensor)


def trace(
    cell: nn.Module,
    signature: Signature,
    input_size: int,
    dtype: torch.dtype = torch.float32,
    ran: set[CodeType] | None = None,
    inputs: Iterable[tuple[str, str]] = (),
) -> Graph:
    """Record one step of a cell.

    Args:
        cell: The cell.
        signature: What it takes and returns.
        input_size: The number of features of x.
        dtype: The type of x and the states if the cell has no tensors that say so.
        ran: Takes all code that ran, also where the trace is refused.
        inputs: Numbers, by (module, attribute), to be read when the graph is run, as weights are.

    Raises:
        AnyRNNError: if the step is no graph: it reads numbers out of tensors, changes weights or attributes, decides
            by what differs from call to call, or uses a tensor that is no attribute of the cell. The message is why.
    """
    ran = set() if ran is None else ran
    inputs = tuple(inputs)
    tracer = _Tracer(cell, signature, input_size, dtype, ran, inputs)
    found: list[_Traced] = []
    for batch in BATCHES:
        traced = tracer.run(batch, fill=len(found), before=Reach.of(ran, inputs) if found else None)
        if not traced.has_sizes_of_the_batch():
            found.append(traced)
        if len(found) == 2:  # with other numbers and another number of rows
            _check_questions(ran, tracer.witnessed)
            first, second = found
            _check_same(first.graph, second.graph)
            _check_replay(first.graph, second)
            return first.graph
    raise AnyRNNError(_moved(traced.graph))


def check_one_row(graph: Graph, cell: nn.Module, signature: Signature, inputs: Iterable[tuple[str, str]] = ()) -> None:
    """Check that a step does for one row what it does for many, as some operations (`squeeze`) do not.

    Raises:
        AnyRNNError: if it does not. The message is the reason.
    """
    _, input_size = graph.shapes[graph.x]
    tracer = _Tracer(cell, signature, input_size, graph.dtypes[graph.x], set(), tuple(inputs))
    _check_same(graph, tracer.run(1, fill=2, before=None).graph)


def _moved(graph: Graph) -> str:
    """Say which operation moves the batch, if it is one; else a size happens to be a multiple of each batch tried."""
    weights = set(graph.weights.values())
    for step in graph.steps:
        for ref in step.outputs:
            if ref not in weights and any(size and size % graph.batch == 0 for size in graph.shapes[ref][1:]):
                return (
                    f"`{step.op}` moves the batch (einsum, bmm and transpositions do): the batch is not the first "
                    f"dimension throughout; keep it first, as in h @ W or (a.unsqueeze(-1) * W).sum(1)"
                )
    return f"it has sizes that are multiples of each of {BATCHES[:-1]}: the batch is not the first dimension throughout"


def _check_questions(ran: Iterable[CodeType], witnessed: set[str]) -> None:
    """Check that no code asked for what may be different in the next call, and none decided by it."""
    theirs = [code for code in ran if not is_trusted_file(code.co_filename) and not is_standard_file(code.co_filename)]
    for code in theirs:
        if asked := MOMENTARY.intersection(code.co_names):
            msg = f"it asks `{min(asked)}`, whose answer may be another one in the next call"
            raise AnyRNNError(msg)
    if "len" in witnessed and any(map(_decides, theirs)):
        msg = "it takes the size of the batch by `len`, and may decide something by it; x.shape[0] would be followed"
        raise AnyRNNError(msg)


@functools.cache
def _decides(code: CodeType) -> bool:
    """Whether code compares or branches (beside `for`)."""
    inner = (c for c in code.co_consts if isinstance(c, type(code)))
    decisions = (op.opname in ("COMPARE_OP", "CONTAINS_OP") or "_IF_" in op.opname for op in dis.get_instructions(code))
    return any(decisions) or any(map(_decides, inner))


def _check_same(a: Graph, b: Graph) -> None:
    """Check that two traces are of the same operations, but for the number of rows."""
    why = "by a size of the batch, a number in a tensor, or by chance"
    for first, second in zip(a.steps, b.steps, strict=False):
        shapes = all(tuple(scaled(a.shapes[r], a.batch, b.batch)) == b.shapes.get(r) for r in first.outputs)
        if not shapes or _text(first, a.batch, b.batch) != _text(second, b.batch, b.batch):
            msg = f"`{first.op}` differs between two runs: {why}"
            raise AnyRNNError(msg)
    if len(a.steps) != len(b.steps) or (a.output, a.new_states) != (b.output, b.new_states):
        msg = f"its operations differ between two runs: {why}"
        raise AnyRNNError(msg)


def scaled(value: Any, batch: int, rows: int) -> Any:
    """A shape or a size, with another number of rows in the place of the batch; anything else as it is."""
    if isinstance(value, list | tuple):
        return [scaled(n, batch, rows) for n in value]
    return value // batch * rows if type(value) is int and value % batch == 0 < value else value


def _text(step: Step, batch: int, rows: int) -> str:
    """A step as text, for another number of rows."""
    args = [
        scaled(value, batch, rows) if argument.name in SHAPE_ARGUMENTS and batch != rows else value
        for value, argument in zip(step.args, step.op._schema.arguments, strict=False)
    ]
    return repr((step.op, args, step.kwargs, step.outputs))


def _check_replay(graph: Graph, traced: _Traced) -> None:
    """Check that the graph, run on the numbers of another trace, gives what the cell gave there."""
    if any(torch.Tag.nondeterministic_seeded in step.op.tags for step in graph.steps):
        return
    tensors = dict(traced.given)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        run_steps(graph, tensors, traced.graph.batch)
        for ref, expected in traced.results:
            if not torch.allclose(tensors[ref], expected, rtol=1e-4, atol=1e-5, equal_nan=True):
                msg = "it computes something outside of PyTorch's operations: run again, they give other numbers"
                raise AnyRNNError(msg)


def run_steps(graph: Graph, tensors: dict[Ref, Tensor], rows: int) -> None:
    """Run a whole graph, adding what it computes to `tensors`."""
    for step in graph.steps:
        args = [
            scaled(value, graph.batch, rows) if argument.name in SHAPE_ARGUMENTS else value
            for value, argument in zip(step.args, step.op._schema.arguments, strict=False)
        ]
        args, kwargs = pytree.tree_map_only(Ref, tensors.__getitem__, (args, dict(step.kwargs)))
        result = step.op(*args, **kwargs)
        tensors.update(zip(step.outputs, result if step.many else (result,), strict=True))


@dataclass(frozen=True)
class _Traced:
    """A trace, with the numbers that it was of.

    Attributes:
        graph: The graph.
        given: What the step was given: x, states and weights.
        results: What it returned.
    """

    graph: Graph
    given: Mapping[Ref, Tensor]
    results: Sequence[tuple[Ref, Tensor]]

    def has_sizes_of_the_batch(self) -> bool:
        """Whether a size that is no batch is a multiple of it, so that they cannot be told apart."""
        graph = self.graph
        weights = set(graph.weights.values())
        sizes = (n for ref, shape in graph.shapes.items() for n in (shape if ref in weights else shape[1:]))
        return any(size % graph.batch == 0 for size in sizes if size)


@dataclass(frozen=True)
class _Tracer:
    """Runs a cell's step to record it."""

    cell: nn.Module
    signature: Signature
    input_size: int
    dtype: torch.dtype
    ran: set[CodeType]
    inputs: tuple[tuple[str, str], ...]
    witnessed: set[str] = field(default_factory=set)

    def run(self, batch: int, fill: int, before: Reach | None) -> _Traced:
        """Record a step.

        Args:
            batch: The number of rows.
            fill: Which numbers it is given.
            before: If given, see to it that nothing within this reach is changed by the step.
        """
        signature, twin = self.signature, twin_of(self.cell)
        names = {id(t): name for found in (tensors_of(self.cell), tensors_of(twin)) for name, t in found.items()}

        def name_of(tensor: Tensor) -> str:
            if id(tensor) not in names:
                msg = f"it uses a tensor {tuple(tensor.shape)} that is no attribute of the cell"
                raise AnyRNNError(msg)
            return names[id(tensor)]

        stand_ins = registered_of(twin)
        recorder = Recorder(name_of)
        recorder.weights.update((key, recorder.ref(value)) for key, value in stand_ins.items())
        like = placement(self.cell, torch.empty(0, dtype=self.dtype, device="cpu"))
        x, *states = (
            _numbers(batch, size, fill * (k + 1)).to(like.device, like.dtype)
            for k, size in enumerate((self.input_size, *signature.state_sizes))
        )
        taken = [recorder.ref(t) for t in (x, *states)]
        recorder.varying.update(taken)
        copies = [t.clone() for t in (x, *states)]
        followed = self._follow(twin, recorder, like, fill)
        sight = None if before is None else Sight(twin, before)
        watch = _Frames(recorder, self.ran)
        witness = Witness(batch if batch > 1 else None, self.witnessed)
        try:
            with (
                torch.enable_grad(), torch.autocast("cpu", enabled=False), _no_random_numbers(), caching_nothing(),
                recorded(recorder.note_function, recorder.is_varying), Contractions(), witness, recorder, watch,
            ):  # fmt: skip
                output, new = signature.step(twin, x, tuple(states))
            results = [(recorder.ref(t), t) for t in ((output, *new) if signature.has_output else new)]
            recorder.check_written(t for _, t in results)
        except AnyRNNError:
            raise
        except (MemoryError, OSError):
            raise  # of this moment: no property of the cell
        except Exception as cause:
            first, _, _ = str(cause).partition("\n")
            if "allocate memory" in first:
                raise
            msg = f"its step fails{_told(batch)}: {type(cause).__name__}: {first}"
            raise AnyRNNError(msg) from cause
        if any(value is not stand_ins.get(name) for name, value in registered_of(twin).items()):
            msg = "its step puts another tensor in the place of a weight or buffer"
            raise AnyRNNError(msg)
        if sight is not None and (changed := sight.changed(twin)) is not None:
            msg = f"its step changes {changed}"
            raise AnyRNNError(msg)
        graph = Graph(
            taken[0],
            tuple(taken[1:]),
            dict(recorder.weights),
            tuple(recorder.steps),
            results[0][0] if signature.has_output else None,
            tuple(r for r, _ in results[len(results) - len(new) :]),
            batch,
            dict(recorder.shapes),
            dict(recorder.dtypes),
            {r: n for r, n in watch.locals.items() if r not in taken},
        )
        weights = {ref: tensor for ref, tensor in recorder.named() if ref in graph.weights.values()}
        return _Traced(graph, {**weights, **followed, **dict(zip(taken, copies, strict=True))}, results)

    def _follow(self, twin: nn.Module, recorder: Recorder, like: Tensor, fill: int) -> dict[Ref, Tensor]:
        """Put numbers that are followed in the place of those that are inputs of the graph."""
        found = {}
        for path, name in self.inputs:
            module = twin.get_submodule(path)
            value = getattr(module, name) * (1 + 0.25 * fill)  # another one in each trace
            tensor = torch.tensor(value, dtype=like.dtype, device=like.device)
            ref = recorder.weights[f"{path}.{name}" if path else name] = recorder.ref(tensor)
            vars(module)[name] = Number.of(value, tensor)
            found[ref] = tensor
        return found


def _numbers(rows: int, columns: int, kind: int) -> Tensor:
    """Made up numbers from -1 to 1, of which no two rows are alike; all zero for the kind 0."""
    row, column = np.ogrid[:rows, :columns]
    return torch.from_numpy((row * 37 + column * 17 + kind * 11) % 61 / 30.5 - 1 if kind else np.zeros((rows, columns)))


def _told(batch: int) -> str:
    return " for one row" if batch == 1 else ""


class _Frames:
    """Notes, while it is open, which code returns, and what its local variables are called."""

    def __init__(self, recorder: Recorder, ran: set[CodeType]) -> None:
        self.locals: dict[Ref, str] = {}
        self._recorder, self._ran = recorder, ran
        self._outer: Any = None

    def __enter__(self) -> None:
        self._outer = sys.getprofile()
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._outer if callable(self._outer) else None)
        put_back = getattr(self._outer, "enable", None)  # cProfile's, which only itself can put back
        if put_back is not None:
            put_back()

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event != "return" or file in _MACHINERY:
            return
        self._ran.add(frame.f_code)
        if not file.startswith(("<", _TORCH)):
            for name, value in frame.f_locals.items():
                if isinstance(value, Tensor) and id(value) in self._recorder.refs:
                    self.locals.setdefault(self._recorder.refs[id(value)], name)


_TORCH = str(Path(torch.__file__).parent)
_MACHINERY = frozenset({__file__, *(str(sys.modules[f"anyrnn.{name}"].__file__) for name in _OURS)})


@contextlib.contextmanager
def _no_random_numbers() -> Iterator[None]:
    """Leave the random numbers of the process alone, and refuse a step that draws others than PyTorch's."""
    before = random.getstate(), np.random.get_state()
    with own_random_numbers():
        yield
        after = random.getstate(), np.random.get_state()
        drawn = before[0] != after[0] or any(np.any(a != b) for a, b in zip(before[1], after[1], strict=True))
    if drawn:
        msg = "it draws random numbers of Python's or NumPy's: draw them with torch, in the shape of x"
        raise AnyRNNError(msg)


def registered_of(cell: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a cell, by dotted name."""
    return {**dict(cell.named_parameters()), **dict(cell.named_buffers())}


def tensors_of(cell: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, buffers and plain tensor attributes of a cell and its submodules, by dotted name."""
    found = registered_of(cell)
    for prefix, module in cell.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, Tensor):
                found[f"{prefix}.{key}" if prefix else key] = value
    return found


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _apart(a: Tensor, b: Tensor) -> bool:
    """Whether two views (B, n) of one tensor are different columns of it."""
    if a.dim() != 2 or a.stride() != b.stride() or a.stride(1) != 1:
        return False
    first, second = (t.storage_offset() % t.stride(0) for t in (a, b))
    return first + a.shape[1] <= second or second + b.shape[1] <= first
