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
import gc
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from anyrnn.compiler.contraction import Contractions
from anyrnn.compiler.graph import SHAPE_ARGUMENTS, Graph, Ref, Step, run_steps, scaled
from anyrnn.compiler.opaque_function import recorded
from anyrnn.compiler.reach import Reach, Sight, is_standard_file, is_trusted_file
from anyrnn.compiler.recorder import Recorder
from anyrnn.compiler.witness import MOMENTARY, Number, Witness
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import caching_nothing, placement
from anyrnn.randomness import own_random_numbers
from anyrnn.records import is_method_of
from anyrnn.twin import twin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import CodeType, FrameType

    from anyrnn.protocol import Signature

#: The package's own code that runs in a trace and is not the cell's.
_COMPILER = ("contraction", "opaque_function", "reach", "recorder", "witness")
_OURS = ("protocol", "randomness", "twin", *(f"compiler.{name}" for name in _COMPILER))

#: Batch sizes for a trace: the first of these primes that no number of features is a multiple of.
BATCHES = (127, 131, 137, 139, 149, 151)


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
        watch = _Frames(recorder, self.ran, twin)
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
            watch.own,
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

    def __init__(self, recorder: Recorder, ran: set[CodeType], cell: nn.Module) -> None:
        self.locals: dict[Ref, str] = {}
        self.own: dict[str, Ref] = {}  # those of the cell's methods; of equal names, those that return last
        self._recorder, self._ran, self._cell = recorder, ran, cell
        self._outer: Any = None

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

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event != "return" or file in _MACHINERY:
            return
        self._ran.add(frame.f_code)
        theirs, own = not file.startswith(("<", _TORCH)), is_method_of(frame, self._cell)
        if theirs or own:
            tensors = ((name, value) for name, value in frame.f_locals.items() if isinstance(value, Tensor))
            found = {name: ref for name, t in tensors if (ref := self._recorder.known(t)) is not None}
            if own:
                self.own |= found
            for name, ref in found.items() if theirs else ():
                self.locals.setdefault(ref, name)


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
