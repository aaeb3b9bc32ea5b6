"""Tracing: a cell's step becomes a graph of ATen operations, recorded while its own Python code runs.

The step runs below a dispatch mode that records every operation (`recorder`), with a batch size that occurs nowhere
else. Parameters, buffers and plain tensor attributes become inputs by name, so that a later call computes with their
present values. The tensors are real, with made up numbers: fake tensors would cost seconds of imports inside PyTorch.
It is a copy of the cell that runs (`twin`), and what it asks of tensors beside computing with them is answered or
refused by a mode (`witness`). It is traced three times: with other numbers and another batch size, and for one row. A
step that then does something else (it reads numbers, counts steps, divides by the batch size) is no graph. Nor is one
whose graph, run on the numbers of a trace, gives other results than the cell (it computed outside of PyTorch).
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import importlib
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from anyrnn.compiler.contraction import Contractions
from anyrnn.compiler.graph import SHAPE_ARGUMENTS, Graph, GraphExtra, Op, Ref, run_ops, scaled
from anyrnn.compiler.indexing import Indexing
from anyrnn.compiler.opaque_function import recorded
from anyrnn.compiler.reach import Reach, Sight, is_standard_file, is_trusted_file
from anyrnn.compiler.recorder import Recorder
from anyrnn.compiler.witness import MOMENTARY, Number, Witness, is_momentary
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import caching_nothing, placement, shape_of, size_of
from anyrnn.randomness import own_random_numbers
from anyrnn.records import innermost, is_method_of
from anyrnn.twin import twin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import CodeType, FrameType

    from anyrnn.protocol import ExtraForm, Signature, Size

#: The package's modules whose code runs in a trace and is not the cell's.
_COMPILER = ("contraction", "graph", "guarded", "indexing", "opaque_function", "reach", "recorder", "witness")
_OURS = ("cells.products", "protocol", "randomness", "twin", *(f"compiler.{name}" for name in _COMPILER))

#: Batch sizes for a trace: the first two of these primes that no number of features is a multiple of.
BATCHES = (127, 131, 137, 139, 149, 151)


def trace(
    cell: nn.Module,
    signature: Signature,
    input_size: Size,
    dtype: torch.dtype = torch.float32,
    ran: set[CodeType] | None = None,
    numbers: Iterable[tuple[str, str]] = (),
    extras: Sequence[ExtraForm] = (),
) -> Graph:
    """Record one step of a cell.

    Args:
        cell: The cell.
        signature: Its arguments and results.
        input_size: The size of x.
        dtype: The type of x and the states if the cell has no tensors that say so.
        ran: A set to which all code that ran is added, also where the trace is refused.
        numbers: Numbers, by (module, attribute), to be read when the graph is run, as weights are.
        extras: The forms of further arguments.

    Raises:
        AnyRNNError: if the step is no graph: it reads numbers out of tensors, changes weights or attributes, decides
            by what differs from call to call, or uses a tensor that is no attribute of the cell. The message is why.
    """
    ran = set() if ran is None else ran
    numbers = tuple(numbers)
    tracer = _Tracer(cell, signature, input_size, dtype, ran, numbers, tuple(extras))
    traces: list[_Trace] = []
    for batch in BATCHES:
        latest = tracer.trace(batch, fill=len(traces), guarded=Reach.of(ran, numbers) if traces else None)
        if not latest.has_sizes_of_the_batch():
            traces.append(latest)
        if len(traces) == 2:  # with other numbers and another number of rows
            _check_questions(ran, tracer.questions)
            first, second = traces
            _check_same(first.graph, second.graph)
            _check_results(first.graph, second)
            return first.graph
    raise AnyRNNError(_why_moved(latest.graph))


def check_one_row(
    graph: Graph,
    cell: nn.Module,
    signature: Signature,
    numbers: Iterable[tuple[str, str]] = (),
    extras: Sequence[ExtraForm] = (),
) -> None:
    """Check that a step does for one row what it does for many, as some operations (`squeeze`) do not.

    The arguments are those of `trace`, and its graph.

    Raises:
        AnyRNNError: if it does not. The message is the reason.
    """
    input_size, dtype = size_of(graph.shapes[graph.x][1:]), graph.dtypes[graph.x]
    tracer = _Tracer(cell, signature, input_size, dtype, set(), tuple(numbers), tuple(extras))
    _check_same(graph, tracer.trace(1, fill=2, guarded=None).graph)


def _why_moved(graph: Graph) -> str:
    """Say which operation moves the batch, if it is one; else a size happens to be a multiple of each batch tried."""
    weights = set(graph.weights.values())
    for op in graph.ops:
        for ref in op.outputs:
            if ref not in weights and any(size and size % graph.batch == 0 for size in graph.shapes[ref][1:]):
                return (
                    f"`{op.overload}` moves the batch (einsum, bmm and transpositions do): the batch is not the first "
                    f"dimension throughout; keep it first, as in h @ W or (a.unsqueeze(-1) * W).sum(1)"
                )
    return f"it has sizes that are multiples of each of {BATCHES[:-1]}: the batch is not the first dimension throughout"


def _check_questions(ran: Iterable[CodeType], questions: set[str]) -> None:
    """Check that no code of the user's asks for what may differ in the next call, nor decides by the batch size."""
    users = [*filter(_is_users, ran)]
    if any({"sys", "modules"} <= {*code.co_names} for code in users):
        questions = {*questions, "sys.modules"}
    if asked := MOMENTARY.intersection(n for code in users for n in code.co_names) | (questions - {"len"}):
        msg = f"it asks `{min(asked)}`, whose answer may be another one in the next call"
        raise AnyRNNError(msg)
    if "len" in questions and any(map(_decides, users)):
        msg = "it takes the size of the batch by `len`, and may decide something by it; x.shape[0] would be followed"
        raise AnyRNNError(msg)


def _is_users(code: CodeType) -> bool:
    return not is_trusted_file(code.co_filename) and not is_standard_file(code.co_filename)


@functools.cache
def _decides(code: CodeType) -> bool:
    """Whether code compares or branches (beside `for`)."""
    inner = (c for c in code.co_consts if isinstance(c, type(code)))
    decisions = (op.opname in ("COMPARE_OP", "CONTAINS_OP") or "_IF_" in op.opname for op in dis.get_instructions(code))
    return any(decisions) or any(map(_decides, inner))


def _check_same(a: Graph, b: Graph) -> None:
    """Check that two traces are of the same operations, but for the number of rows."""
    why = "by a size of the batch, a number in a tensor, or by chance"
    for first, second in zip(a.ops, b.ops, strict=False):
        shapes = all(tuple(scaled(a.shapes[r], a.batch, b.batch)) == b.shapes.get(r) for r in first.outputs)
        if not shapes or _text(first, a.batch, b.batch) != _text(second, b.batch, b.batch):
            msg = f"`{first.overload}` differs between two runs: {why}"
            raise AnyRNNError(msg)
    if len(a.ops) != len(b.ops) or (a.outputs, a.new_states) != (b.outputs, b.new_states):
        msg = f"its operations differ between two runs: {why}"
        raise AnyRNNError(msg)


def _text(op: Op, batch: int, rows: int) -> str:
    """A step as text, for another number of rows."""
    args = [
        scaled(value, batch, rows) if argument.name in SHAPE_ARGUMENTS and batch != rows else value
        for value, argument in zip(op.args, op.overload._schema.arguments, strict=False)
    ]
    return repr((op.overload, args, op.kwargs, op.outputs))


def _check_results(graph: Graph, other: _Trace) -> None:
    """Check that the graph, run on the numbers of another trace, gives the results of the cell there."""
    if any(torch.Tag.nondeterministic_seeded in op.overload.tags for op in graph.ops):
        return
    tensors = dict(other.inputs)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        run_ops(graph, tensors, other.graph.batch)
        for ref, expected in other.results:
            if not torch.allclose(tensors[ref], expected, rtol=1e-4, atol=1e-5, equal_nan=True):
                msg = "it computes something outside of PyTorch's operations: run again, they give other numbers"
                raise AnyRNNError(msg)


@dataclass(frozen=True)
class _Trace:
    """One trace of a step: its graph, and the numbers of its inputs and results.

    Attributes:
        graph: The graph.
        inputs: x, states, further arguments and weights.
        results: What the step returned.
    """

    graph: Graph
    inputs: Mapping[Ref, Tensor]
    results: Sequence[tuple[Ref, Tensor]]

    def has_sizes_of_the_batch(self) -> bool:
        """Whether a size that is no batch is a multiple of it, so that they cannot be told apart."""
        graph = self.graph
        weights = {*graph.weights.values(), *graph.extras_of("shared")}
        sizes = (n for ref, shape in graph.shapes.items() for n in (shape if ref in weights else shape[1:]))
        return any(size % graph.batch == 0 for size in sizes if size)


@dataclass(frozen=True)
class _Tracer:
    """Traces a cell's step; the attributes are `trace`'s arguments, and the questions that could not be followed."""

    cell: nn.Module
    signature: Signature
    input_size: Size
    dtype: torch.dtype
    ran: set[CodeType]
    numbers: tuple[tuple[str, str], ...]
    extras: tuple[ExtraForm, ...]
    questions: set[str] = field(default_factory=set)

    def trace(self, batch: int, fill: int, guarded: Reach | None) -> _Trace:
        """Record a step: see `_trace`.

        Where random numbers of Python's or NumPy's were drawn, it may have been another thread: a server draws some now
        and then. A cell that draws them does so each time, for each time it is another copy of it.
        """
        for _ in range(_TRIES - 1):
            with contextlib.suppress(_DrawnError):
                return self._trace(batch, fill, guarded)
        return self._trace(batch, fill, guarded)

    def _trace(self, batch: int, fill: int, guarded: Reach | None) -> _Trace:
        """Record a step.

        Args:
            batch: The number of rows.
            fill: Which numbers x and the states hold; see `_numbers`.
            guarded: If given, the step is refused if it changes anything within this reach.
        """
        twin, arguments = twin_of(self.cell), self._arguments(batch, fill)
        recorder = Recorder(_namer(self.cell, twin))
        weights = registered_of(twin)
        recorder.weights.update((name, recorder.ref(tensor)) for name, tensor in weights.items())
        refs = [recorder.ref(t) for t in arguments]
        count = 1 + len(self.signature.state_sizes)
        extras = tuple(GraphExtra(ref, e.kind) for ref, e in zip(refs[count:], self.extras, strict=True))
        recorder.varying.update(refs[:count], (e.ref for e in extras if e.kind != "shared"))
        recorder.stateful.update(refs[1:count])
        recorder.rooted.update(refs, recorder.weights.values())
        inputs = dict(zip(refs, [t.clone() for t in arguments], strict=True))
        inputs |= self._follow_numbers(twin, recorder, arguments[0], fill)
        sight = None if guarded is None else Sight(twin, guarded)
        frames, contractions = _Frames(recorder, self.ran, twin, self.questions), Contractions(recorder)
        outputs, new = self._step(twin, arguments, recorder, frames, contractions)
        if any(tensor is not weights.get(name) for name, tensor in registered_of(twin).items()):
            msg = "its step puts another tensor in the place of a weight or buffer"
            raise AnyRNNError(msg)
        if sight is not None and (changed := sight.changed(twin)) is not None:
            msg = f"its step changes {changed}"
            raise AnyRNNError(msg)
        ops, gone = _without(recorder.ops, contractions.moved, {recorder.ref(t) for t in (*outputs, *new)})
        graph = Graph(
            refs[0],
            tuple(refs[1:count]),
            extras,
            dict(recorder.weights),
            ops,
            tuple(map(recorder.ref, outputs)),
            tuple(map(recorder.ref, new)),
            batch,
            {r: shape for r, shape in recorder.shapes.items() if r not in gone},
            dict(recorder.dtypes),
            {r: n for r, n in frames.locals.items() if r not in refs and r not in gone},
            {n: r for n, r in frames.of_methods.items() if r not in gone},
        )
        tensors = {ref: tensor for ref, tensor in recorder.named() if ref in graph.weights.values()}
        return _Trace(graph, {**tensors, **inputs}, [(recorder.ref(t), t) for t in (*outputs, *new)])

    def _arguments(self, batch: int, fill: int) -> list[Tensor]:
        """Made up x, states and further arguments."""
        like = placement(self.cell, torch.empty(0, dtype=self.dtype, device="cpu"))
        sizes = (self.input_size, *self.signature.state_sizes)
        shapes = [(batch, *shape_of(size)) for size in sizes] + [e.lead(batch) for e in self.extras]
        types = [like.dtype if self.dtype.is_floating_point else self.dtype] + [like.dtype] * (len(sizes) - 1)
        types += [like.dtype if e.dtype.is_floating_point else e.dtype for e in self.extras]
        return [
            _numbers(shape, fill * (k + 1), dtype).to(like.device)
            for k, (shape, dtype) in enumerate(zip(shapes, types, strict=True))
        ]

    def _step(
        self,
        twin: nn.Module,
        arguments: Sequence[Tensor],
        recorder: Recorder,
        frames: _Frames,
        contractions: Contractions,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run the step below all modes: its outputs, if it has any beside the states, and the new states."""
        x, *others = arguments
        states = others[: len(self.signature.state_sizes)]
        extras = list(zip([e.key for e in self.extras], others[len(states) :], strict=True))
        witness = Witness(len(x) if len(x) > 1 else None, self.questions)
        try:
            with (
                torch.enable_grad(), torch.autocast("cpu", enabled=False), _no_random_numbers(), caching_nothing(),
                recorded(recorder.record_function, recorder.is_varying), contractions, Indexing(), witness,
                recorder, frames,
            ):  # fmt: skip
                outputs, new = self.signature.step(twin, x, tuple(states), extras)
            results = (*outputs, *new) if self.signature.has_output else new
            recorder.check_results(results)
        except AnyRNNError:
            raise
        except (MemoryError, OSError):
            raise  # of this moment: no property of the cell
        except Exception as cause:
            first, _, _ = str(cause).partition("\n")
            if "allocate memory" in first:
                raise
            rows = "one row" if len(x) == 1 else f"{len(x)} rows, with which it is looked at"
            written = len(x) > 1 and str(len(x)) in first
            cure = "; a number of rows that stands in the step is to be x.shape[0]" if written else ""
            msg = f"its step fails for {rows}: {type(cause).__name__}: {first}{cure}"
            raise AnyRNNError(msg) from cause
        return outputs if self.signature.has_output else (), new

    def _follow_numbers(self, twin: nn.Module, recorder: Recorder, like: Tensor, fill: int) -> dict[Ref, Tensor]:
        """Make attributes that are inputs of the graph numbers that are followed; returns their tensors."""
        tensors = {}
        for path, name in self.numbers:
            module = twin.get_submodule(path)
            value = getattr(module, name) * (1 + 0.25 * fill)  # another one in each trace
            tensor = torch.tensor(value, dtype=like.dtype, device=like.device)
            ref = recorder.weights[f"{path}.{name}" if path else name] = recorder.ref(tensor)
            vars(module)[name] = Number.of(value, tensor)
            tensors[ref] = tensor
        return tensors


def _without(ops: Sequence[Op], moved: set[Ref], results: set[Ref]) -> tuple[tuple[Op, ...], set[Ref]]:
    """Leave out transpositions of the batch that nothing needs any more; returns what is left, and what is gone."""
    needed = results.union(*(op.inputs for op in ops))
    gone = moved - needed
    return tuple(op for op in ops if gone.isdisjoint(op.outputs)), gone


def _namer(*cells: nn.Module) -> Callable[[Tensor], str]:
    """A function that names the tensors of cells by their attributes, and refuses others."""
    names: dict[int, str] = {}
    for cell in cells:
        for name, tensor in tensors_of(cell).items():
            names.setdefault(id(tensor), name)

    def name_of(tensor: Tensor) -> str:
        if id(tensor) not in names:
            msg = f"it uses a tensor {tuple(tensor.shape)} that is no attribute of the cell"
            raise AnyRNNError(msg)
        return names[id(tensor)]

    return name_of


def _numbers(shape: tuple[int, ...], fill: int, dtype: torch.dtype) -> Tensor:
    """Made up numbers from -1 to 1, of which no two rows are alike; all zero for the fill 0, and if they are whole."""
    if not fill or not (dtype.is_floating_point or dtype == torch.bool):
        return torch.zeros(shape, dtype=dtype, device="cpu")
    rows = shape[0] if shape else 1
    row, column = np.ogrid[:rows, : torch.Size(shape[1:]).numel()]
    numbers = torch.from_numpy((row * 37 + column * 17 + fill * 11) % _MOST_ROWS / (_MOST_ROWS / 2) - 1)
    return (numbers > 0 if dtype == torch.bool else numbers.to(dtype)).reshape(shape)


_MOST_ROWS = 157  # a prime above all `BATCHES`


class _Frames:
    """A profile function: notes, while it is set, which code returns, and which tensors its local variables hold."""

    def __init__(self, recorder: Recorder, ran: set[CodeType], cell: nn.Module, questions: set[str]) -> None:
        self.locals: dict[Ref, str] = {}
        self.of_methods: dict[str, Ref] = {}  # of the cell's methods; of equal names, those that return last
        self._recorder, self._ran, self._cell, self._questions = recorder, ran, innermost(cell), questions
        self._outer: Any = None
        self._passed: dict[int, CodeType] = {}  # by id: code that has nothing more to tell, which most returns are of
        self._imports = 0  # that have begun: PyTorch imports modules on the way

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()  # what a collection calls back has nothing to do with the step
        self._outer = sys.getprofile()
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        if self._collects:
            gc.enable()
        sys.setprofile(self._outer if callable(self._outer) else None)
        put_back = getattr(self._outer, "enable", None)  # cProfile's, which only itself can put back
        if put_back is not None:
            put_back()

    def _note(self, frame: FrameType, event: str, called: Any) -> None:
        code = frame.f_code
        if code is _IMPORTING:
            self._imports += {"call": 1, "return": -1}.get(event, 0)
        if self._imports:  # what looks for a module, and the code in it, is no part of a step
            return
        if event == "c_call" and is_momentary(called, code.co_filename):
            self._questions.add(called.__qualname__)
        if event != "return" or id(code) in self._passed:
            return
        file = code.co_filename
        if file in _MACHINERY:
            self._passed[id(code)] = code
            return
        self._ran.add(code)
        if file.startswith(_TORCH) and code.co_varnames[: min(1, code.co_argcount)] != ("self",):  # no method
            self._passed[id(code)] = code
            return
        is_users, is_method = not file.startswith(("<", _TORCH)), is_method_of(frame, self._cell)
        if is_users or is_method:
            tensors = ((name, value) for name, value in frame.f_locals.items() if isinstance(value, Tensor))
            refs = {name: ref for name, t in tensors if (ref := self._recorder.known(t)) is not None}
            if is_method:
                self.of_methods |= refs
            for name, ref in refs.items() if is_users else ():
                self.locals.setdefault(ref, name)


_IMPORTING = importlib._bootstrap._find_and_load.__code__  # type: ignore[attr-defined]
_TORCH = str(Path(torch.__file__).parent)
_MACHINERY = frozenset({__file__, *(str(sys.modules[f"anyrnn.{name}"].__file__) for name in _OURS)})


class _DrawnError(AnyRNNError):
    """Random numbers of Python's or NumPy's were drawn."""


_TRIES = 5


@contextlib.contextmanager
def _no_random_numbers() -> Iterator[None]:
    """Leave the random state of the process alone, and refuse a step that draws from Python's or NumPy's."""
    before = random.getstate(), np.random.get_state()
    with own_random_numbers():
        yield
        after = random.getstate(), np.random.get_state()
        drawn = before[0] != after[0] or any(np.any(a != b) for a, b in zip(before[1], after[1], strict=True))
    if drawn:
        msg = "it draws random numbers of Python's or NumPy's: draw them with torch, in the shape of x"
        raise _DrawnError(msg)


def registered_of(cell: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a cell, by dotted name."""
    return {**dict(cell.named_parameters()), **dict(cell.named_buffers())}


def tensors_of(cell: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, buffers and other tensors of a cell and its submodules, by dotted name.

    The others are attributes, or in lists, tuples and dicts that are (`settings.alpha`, `weights.0`). A tensor that is
    a parameter, too, comes first under the name of that.
    """
    tensors = registered_of(cell)
    within: dict[str, Tensor] = {}
    for prefix, module in cell.named_modules():
        for key, value in module.__dict__.items():
            if key in _OF_MODULES:
                continue
            name = f"{prefix}.{key}" if prefix else key
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, _CONTAINERS):
                within.update(_tensors_within(value, name))
    return tensors | within


_OF_MODULES = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, list, tuple)
_DEEPEST = 3  # of containers in containers, in which tensors are looked for


def _tensors_within(value: Any, name: str, depth: int = 1) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a container, each with the path that `member_of` follows."""
    if isinstance(value, dict):
        parts = [(k, v) for k, v in value.items() if isinstance(k, str) and "." not in k]
    else:
        parts = [*zip(getattr(value, "_fields", map(str, range(len(value)))), value, strict=True)]
    for key, part in parts:
        if isinstance(part, Tensor):
            yield f"{name}.{key}", part
        elif isinstance(part, _CONTAINERS) and depth < _DEEPEST:
            yield from _tensors_within(part, f"{name}.{key}", depth + 1)


def member_of(whole: Any, name: str) -> Any:
    """What one part of a dotted name stands for: an attribute of a module or named tuple, or an item of a container."""
    if isinstance(whole, dict):
        return whole[name]
    if isinstance(whole, list | tuple) and name.isdigit():
        return whole[int(name)]
    return getattr(whole, name)
