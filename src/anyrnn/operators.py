"""The operators whose argument is a text: pure functions of a recorded step or a loop program, and of arrays.

``anyrnn::scan(step, x, states, extras, lengths, weights, ...)`` is what PyTorch writes down when it traces a layer. It
is no kernel: whoever opens it (torch.compile, `run_decompositions`, or a plain call) finds ``once``, ``before`` and
``after`` as PyTorch's operations around the leaf ``anyrnn::loop(program, arrays, ...)``, which has a fake
implementation and a backward pass that is an operator too. Both texts hold everything: a process that has imported this
package parses, splits and compiles them.

A step with operations that the loop program lacks, or in which rows meet or chance decides, is a leaf of another kind:
``anyrnn::steps`` runs the recorded operations one step after the other, and its backward pass runs them again.

In a ragged batch the leaf packs the rows itself, and what it keeps for the backward pass has room for all. Around it
padding is computed along, as copies of a valid row, so that nothing is infinite or NaN there that is not so elsewhere:
a gradient of zero times that would be NaN, and end in a weight.

PyTorch keeps compiled code on disk and finds it by these texts, and programs are saved. So whoever changes what an
operator takes, gives or does has to give the texts another version.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from anyrnn.checks import valid_lengths
from anyrnn.compiler.graph import run_ops
from anyrnn.compiler.graph_text import parse_graph
from anyrnn.compiler.program import parse
from anyrnn.engines.cpu.backend import CpuBackend
from anyrnn.engines.reference import ReferenceEngine
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import Extra, Signature, outside_inference_mode, size_of
from anyrnn.randomness import random_from, random_size, random_state
from anyrnn.runtime.autograd import without_autocast
from anyrnn.runtime.call import Call
from anyrnn.runtime.gradients import ForwardPass, backward
from anyrnn.runtime.layout import layout
from anyrnn.runtime.loop import Loop, forward
from anyrnn.runtime.parts import as_array, as_matrix, as_precise
from anyrnn.runtime.plans import Plan, planned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anyrnn.compiler.graph import Graph, Ref
    from anyrnn.protocol import Size
    from anyrnn.runtime.layout import Layout

_TEXTS = 256  # remembered, as plans are

_LIBRARY = torch.library.Library("anyrnn", "FRAGMENT")
_SCAN = (
    "str step, Tensor x, Tensor[] states, Tensor[] extras, Tensor? lengths, Tensor[] weights, bool reverse, "
    "ScalarType? autocast"
)


# ---- anyrnn::scan: the four parts, in the caller's graph ----


class Recipe(NamedTuple):
    """What becomes of a recorded step.

    Attributes:
        graph: The step.
        plan: Its four parts; None if it runs step by step.
        program: The text of its loop.
        reason: Why it runs step by step.
    """

    graph: Graph
    plan: Plan | None
    program: str = ""
    reason: str = ""


@functools.lru_cache(maxsize=_TEXTS)
def parsed(step: str) -> Graph:
    """Read a recorded step."""
    with _unseen():
        return parse_graph(step)


@functools.lru_cache(maxsize=_TEXTS)
def recipe(step: str) -> Recipe:
    """Take a recorded step apart."""
    graph = parsed(step)
    try:
        with _unseen(), torch.enable_grad():
            plan = planned(graph)
    except AnyRNNError as reason:
        return Recipe(graph, None, reason=str(reason))
    if plan.before.mixing or plan.after.mixing:
        return Recipe(graph, None, reason="rows meet, or chance decides, in what is computed before or after the loop")
    return Recipe(graph, plan, str(plan.split.program))


def _scan(
    step: str, x: Tensor, states: Sequence[Tensor], extras: Sequence[Tensor], lengths: Tensor | None,
    weights: Sequence[Tensor], reverse: bool, autocast: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Return what there is for every step, (T, B, ...) each, zero at padded steps, and the final states (B, ...)."""
    graph, plan, program, _ = recipe(step)
    if len(weights) != len(graph.weights):
        msg = f"anyrnn::scan: got {len(weights)} weights, expected {len(graph.weights)}: {', '.join(graph.weights)}"
        raise AnyRNNError(msg)
    if plan is None or x.device.type != "cpu" or x.shape[0] == 0 or x.shape[1] == 0:
        results: list[Tensor] = torch.ops.anyrnn.steps(step, x, states, extras, lengths, weights, reverse, autocast)
        return results[:-1]
    # As in the cpu engine: lower precision is converted at the edge, and autocast changes nothing within.
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with without_autocast():
        converted = [s.to(dtype) for s in states]
        others = [as_precise(e, dtype) for e in extras]
        series, finals = _parts(plan, program, x.to(dtype), converted, others, lengths, weights, reverse)
        finals = [f.to(s.dtype) for f, s in zip(finals, states, strict=True)]
        return [*(t.to(x.dtype) if t.dtype == dtype else t for t in series), *finals]


def _parts(
    plan: Plan, program: str, x: Tensor, states: Sequence[Tensor], extras: Sequence[Tensor], lengths: Tensor | None,
    weights: Sequence[Tensor], reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Run the four parts of a cell, for padded rows throughout."""
    graph, loop, (T, B) = plan.split.graph, plan.loop, x.shape[:2]
    padded_rows = _PaddedRows(lengths, T, B)
    tensors: dict[Ref, Tensor] = {
        ref: as_precise(w, x.dtype) for ref, w in zip(graph.weights.values(), weights, strict=True)
    }
    padded: dict[Ref, Tensor] = {graph.x: x}
    rows: dict[Ref, Tensor] = {}
    for extra, tensor in zip(graph.extras, extras, strict=True):
        if extra.kind == "context":
            rows[extra.ref] = padded_rows.with_steps(tensor)
        else:
            (padded if extra.kind == "input" else tensors)[extra.ref] = tensor
    plan.once.run(tensors, T * B)
    if rows:
        rows.update(tensors)
        plan.rows.run(rows, B)
    for ref in plan.inputs_read:
        tensors[ref] = padded_rows.filled(padded[ref].flatten(0, 1))
    for ref in plan.rows_read:
        tensors[ref] = padded_rows.filled(rows[ref].expand(T, *rows[ref].shape).flatten(0, 1))
    plan.before.run(tensors, T * B)
    inputs = {name: s.reshape(B, -1) for name, s in zip(loop.states, states, strict=True)}
    for name, ref, role in plan.arrays:
        tensor = (rows[ref] if role == "row" else padded[ref] if ref in padded else tensors[ref]).to(x.dtype)
        if role == "matrix":
            inputs[name] = tensor.t() if name in loop.transposed else tensor
        else:
            inputs[name] = tensor.reshape({"stream": (T, B, -1), "row": (B, -1)}.get(role, (-1,)))
    arrays = [inputs[name] for name in loop.inputs]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in arrays)
    results = torch.ops.anyrnn.loop(program, arrays, T, lengths, reverse, training)
    series = _series(loop)
    found = dict(zip(series, results, strict=False))
    finals = results[len(series) : len(series) + len(loop.states)]
    direct: dict[Ref, Tensor] = {}
    for name in loop.outputs:
        ref = plan.split.tensors[name]
        dtype, shape = graph.dtypes[ref], graph.shapes[ref][1:]
        sequence = found[loop.aliases.get(name, name)]
        if dtype.is_floating_point and ref in plan.series:
            direct[ref] = sequence.reshape(T, B, *shape)
        if plan.after.ops or ref not in direct:
            shaped = padded_rows.filled(sequence.reshape(T * B, *shape))
            tensors[ref] = shaped if dtype.is_floating_point else shaped.to(dtype)
    plan.after.run(tensors, T * B)
    given: list[Tensor] = []
    for ref in plan.series:
        # Each is a tensor of its own: the first may be what the loop has returned.
        found_directly = direct.pop(ref, None) if plan.series.count(ref) == 1 else direct.get(ref)
        if found_directly is None:
            given.append(padded_rows.zeroed(tensors[ref]).reshape(T, B, *graph.shapes[ref][1:]))
        else:
            given.append(found_directly if plan.series.count(ref) == 1 else found_directly.clone())
    return given, [f.reshape(s.shape) for f, s in zip(finals, states, strict=True)]


class _PaddedRows:
    """The rows (T B, ...) of a batch, with what stands in for padding."""

    def __init__(self, lengths: Tensor | None, T: int, B: int) -> None:
        self._lengths, self._sizes = lengths, (T, B)

    @functools.cached_property
    def _valid(self) -> Tensor:
        """Which rows are no padding, (T B, 1)."""
        assert self._lengths is not None
        T, B = self._sizes
        return (torch.arange(T, device="cpu").unsqueeze(1) < self._lengths.to("cpu")).reshape(T * B, 1)

    def filled(self, rows: Tensor) -> Tensor:
        """The rows with a copy of the first valid one in the place of padding; with zeros if there is none."""
        return rows if self._lengths is None else _filled(rows, self._valid)

    def with_steps(self, context: Tensor) -> Tensor:
        """A tensor (B, ...) with a copy of the first row that has steps in the place of those without."""
        return context if self._lengths is None else _filled(context, self._lengths.to("cpu").reshape(-1, 1) > 0)

    def zeroed(self, rows: Tensor) -> Tensor:
        """The rows with zeros in the place of padding: a tensor that shares no memory with what it is made of."""
        if self._lengths is None:
            return rows.clone(memory_format=torch.contiguous_format)
        return torch.where(_broadcast(self._valid, rows), rows, torch.zeros((), dtype=rows.dtype, device="cpu"))


def _broadcast(valid: Tensor, rows: Tensor) -> Tensor:
    """Which rows are valid (N, 1), with as many dimensions as the rows."""
    return valid.reshape(-1, *[1] * (rows.dim() - 1))


def _filled(rows: Tensor, valid: Tensor) -> Tensor:
    row = rows.detach().index_select(0, valid.to(torch.int64).argmax(0))  # (1, ...)
    row = torch.where(valid.any(), row, torch.zeros_like(row))
    return torch.where(_broadcast(valid, rows), rows, row)


_LIBRARY.define(f"scan({_SCAN}=None) -> Tensor[]")
_LIBRARY.impl("scan", _scan, "CompositeImplicitAutograd")


# ---- anyrnn::loop: a loop program along a sequence ----

_LOOP = "str program, Tensor[] arrays, SymInt T, Tensor? lengths, bool reverse"


@functools.lru_cache(maxsize=_TEXTS)
def _read(program: str) -> Loop:
    with _unseen(), torch.enable_grad():
        loop = Loop(parse(program))
        _ = loop.derivative
        return loop


def _series(loop: Loop) -> dict[str, str]:
    """What is returned for all steps: the outputs, but one for those that are the same state; by the array's name."""
    return {loop.aliases.get(name, name): name for name in reversed(loop.outputs)}


def _residuals(loop: Loop) -> tuple[tuple[str, str, int], ...]:
    """What a backward pass reads, as in `Loop.writes`: states of all steps and residuals."""
    return tuple(array for array in loop.writes["training"] if array[0] not in loop.outputs)


def _others(loop: Loop) -> tuple[tuple[str, str, int], ...]:
    """Those of them that are no series."""
    series = _series(loop)
    return tuple(array for array in _residuals(loop) if array[0] not in series)


@torch.library.custom_op(
    "anyrnn::loop", mutates_args=(), schema=f"({_LOOP}, bool training) -> Tensor[]", device_types="cpu"
)
def _loop(
    program: str, arrays: list[Tensor], T: int, lengths: Tensor | None, reverse: bool, training: bool
) -> list[Tensor]:
    """Run a loop program.

    Args:
        program: The program, as text.
        arrays: Its streams (T, B, width), rows and initial states (B, width), vectors (width) and matrices, in its own
            order.
        T: The number of steps.
        lengths: The number of valid steps of each row, (B,).
        reverse: Run from each row's last valid step to its first.
        training: Keep what the backward pass needs.

    Returns:
        Each series of outputs (T, B, width), zero at padded steps; the final states (B, width); and, for training, the
        other states of all steps, and residuals with room for T B rows.
    """
    loop = _read(program)
    inputs, batch = _laid_out(loop, arrays, T, lengths, reverse)
    if batch.total == 0:
        finals = [inputs[name].clone(memory_format=torch.contiguous_format) for name in loop.states]
        nothing, unused = _empty(loop, inputs[loop.states[0]], T, training)
        return [*(t.zero_() for t in nothing), *finals, *(t.zero_() for t in unused)]
    results, residuals = forward(loop, batch, CpuBackend.host(), inputs, training, roomy=True)
    series = [results[name] for name in _series(loop).values()]
    others = [residuals[name] for name, *_ in _others(loop)] if training else []
    return [*series, *(results[name] for name in loop.states), *others]


def _laid_out(
    loop: Loop, arrays: Sequence[Tensor], T: int, lengths: Tensor | None, reverse: bool
) -> tuple[dict[str, Tensor], Layout]:
    """The arrays by name, as machine code reads them, and the rows of the batch."""
    inputs = dict(zip(loop.inputs, arrays, strict=True))
    numbers = None if lengths is None else valid_lengths("anyrnn::loop", lengths, T)
    batch = layout(T, len(inputs[loop.states[0]]), numbers, reverse)
    for array in loop.program.of("stream", "row", "state", "vector", "matrix"):
        tensor = inputs[array.name]
        if array.role == "stream":
            tensor = tensor.reshape(-1, array.width)
            if batch.is_ragged and array.place == "packed":
                tensor = tensor.index_select(0, batch.packed_index)
        inputs[array.name] = (
            as_matrix(tensor, tensor.dtype) if array.role == "matrix" else as_array(tensor, tensor.dtype)
        )
    return inputs, batch


def _empty(loop: Loop, like: Tensor, T: int, training: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Memory for each series, and for what else a backward pass reads."""
    B = like.shape[0]
    series = [like.new_empty(T, B, loop.program[name].width) for name in _series(loop)]
    others = _others(loop) if training else ()
    return series, [like.new_empty(T * B, n) if at == "packed" else like.new_empty(T, B, n) for _, at, n in others]


@_loop.register_fake
def _(
    program: str, arrays: list[Tensor], T: int, lengths: Tensor | None, reverse: bool, training: bool
) -> list[Tensor]:
    loop = _read(program)
    inputs = dict(zip(loop.inputs, arrays, strict=True))
    series, others = _empty(loop, inputs[loop.states[0]], T, training)
    return [*series, *(inputs[name].new_empty(inputs[name].shape) for name in loop.states), *others]


@torch.library.custom_op(
    "anyrnn::loop_backward",
    mutates_args=(),
    schema=f"({_LOOP}, Tensor[] residuals, Tensor?[] grads, bool[] needed) -> Tensor[]",
    device_types="cpu",
)
def _loop_backward(
    program: str, arrays: list[Tensor], T: int, lengths: Tensor | None, reverse: bool,
    residuals: list[Tensor], grads: list[Tensor | None], needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of those arrays that need one.

    Args:
        program: As it went to ``anyrnn::loop``, like arrays, T, lengths and reverse.
        arrays: See there.
        T: See there.
        lengths: See there.
        reverse: See there.
        residuals: What it returned that a backward pass reads.
        grads: The gradients of each series and of the final states, as far as there are any.
        needed: Of which arrays the gradient is wanted.
    """
    loop, by_name = _read(program), dict(zip(_read(program).inputs, arrays, strict=True))
    inputs, batch = _laid_out(loop, arrays, T, lengths, reverse)
    names = [name for name, wanted in zip(loop.inputs, needed, strict=True) if wanted]
    series = _series(loop)
    of_series = {name: g for name, g in zip(series.values(), grads, strict=False) if g is not None}
    of_states = {n: g for n, g in zip(loop.states, grads[len(series) :], strict=True) if g is not None}
    if batch.total == 0:  # the final states are the initial ones
        found = {name: of_states[name] if name in of_states else torch.zeros_like(by_name[name]) for name in names}
    else:
        saved = {name: t for (name, *_), t in zip(_residuals(loop), residuals, strict=True)}
        forward_pass = ForwardPass(loop, batch, CpuBackend.host(), inputs, saved, from_zero=False)
        with without_autocast():
            found = backward(forward_pass, {**of_series, **of_states}, names)
        if batch.is_ragged:
            packed = {a.name for a in loop.program.of("stream") if a.place == "packed"}
            found.update((name, batch.unpacked(found[name])) for name in names if name in packed)
    return own((found[name].reshape(by_name[name].shape) for name in names), [*arrays, *residuals, *_present(grads)])


def _present(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None]


@_loop_backward.register_fake
def _(
    program: str, arrays: list[Tensor], T: int, lengths: Tensor | None, reverse: bool,
    residuals: list[Tensor], grads: list[Tensor | None], needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    return [t.new_empty(t.shape) for t, wanted in zip(arrays, needed, strict=True) if wanted]


def _loop_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.program, arrays, ctx.T, lengths, ctx.reverse, ctx.training = inputs
    loop = _read(ctx.program)
    series, others = [*_series(loop)], [name for name, *_ in _others(loop)]
    found = dict(zip(series, output, strict=False))
    found.update(zip(others, output[len(series) + len(loop.states) :], strict=False))
    ctx.save_for_backward(lengths, *arrays, *(found[name] for name, *_ in _residuals(loop) if ctx.training))
    ctx.arrays, ctx.results = len(arrays), len(series) + len(loop.states)
    ctx.set_materialize_grads(False)


def _loop_gradients(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    if not ctx.training:
        msg = "anyrnn::loop: got training=False and is asked for gradients; expected training=True"
        raise AnyRNNError(msg)
    lengths, *rest = ctx.saved_tensors
    arrays, residuals = rest[: ctx.arrays], rest[ctx.arrays :]
    needed = list(ctx.needs_input_grad[1])
    found = iter(
        torch.ops.anyrnn.loop_backward(
            ctx.program, arrays, ctx.T, lengths, ctx.reverse, residuals, grads[: ctx.results], needed
        )
    )
    return None, [next(found) if wanted else None for wanted in needed], None, None, None, None


_loop.register_autograd(_loop_gradients, setup_context=_loop_context)


# ---- anyrnn::steps: any recorded step, one after the other ----


class _Recorded(nn.Module):
    """A cell that does what was recorded."""

    def __init__(self, graph: Graph, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.weights = dict(zip(graph.weights.values(), weights, strict=True))

    def forward(
        self, x: Tensor, states: tuple[Tensor, ...], *extras: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run the recorded operations."""
        graph = self.graph
        tensors = {**self.weights, graph.x: x, **dict(zip(graph.states, states, strict=True))}
        tensors.update(zip((e.ref for e in graph.extras), extras, strict=True))
        run_ops(graph, tensors, len(x))
        return tuple(tensors[r] for r in graph.series), tuple(tensors[r] for r in graph.new_states)


def _sizes(graph: Graph, refs: Iterable[Ref]) -> tuple[Size, ...]:
    """The sizes of tensors with a row for each of the batch."""
    return tuple(size_of(graph.shapes[r][1:]) for r in refs)


def _run(
    step: str, x: Tensor, states: Sequence[Tensor], extras: Sequence[Tensor], lengths: Tensor | None,
    weights: Sequence[Tensor], reverse: bool, autocast: torch.dtype | None,
) -> list[Tensor]:  # fmt: skip
    """Run a recorded step along a sequence: what there is for every step, and the final states."""
    graph = parsed(step)
    if lengths is not None:
        lengths = valid_lengths("anyrnn::steps", lengths, len(x))
    signature = Signature.of_tuples(_sizes(graph, graph.states), _sizes(graph, graph.series))
    arguments = tuple(Extra(k, e.kind, t) for k, (e, t) in enumerate(zip(graph.extras, extras, strict=True)))
    with _lowered(x.device.type, autocast):
        call = Call(_Recorded(graph, weights), signature, x, tuple(states), lengths, reverse, extras=arguments)
        result = ReferenceEngine().run(call)
    return [*(as_precise(t, x.dtype) for t in result.series), *result.states]


def _is_random(graph: Graph) -> bool:
    return any(torch.Tag.nondeterministic_seeded in s.overload.tags for s in graph.ops)


@torch.library.custom_op(
    "anyrnn::steps",
    mutates_args=(),
    schema=f"({_SCAN}) -> Tensor[]",
    tags=(torch.Tag.nondeterministic_seeded,),  # a step may draw random numbers
)
def _steps(
    step: str, x: Tensor, states: list[Tensor], extras: list[Tensor], lengths: Tensor | None,
    weights: list[Tensor], reverse: bool, autocast: torch.dtype | None,
) -> list[Tensor]:  # fmt: skip
    """Return what there is for every step, the final states, and the random numbers' state before any are drawn."""
    with _dispatched_anew():
        random = random_state(x.device) if _is_random(parsed(step)) else torch.empty(0, dtype=torch.uint8)
        results = _run(step, x, states, extras, lengths, weights, reverse, autocast)
        return [*own(results, [x, *states, *extras, *weights]), random]


@_steps.register_fake
def _(
    step: str, x: Tensor, states: list[Tensor], extras: list[Tensor], lengths: Tensor | None,
    weights: list[Tensor], reverse: bool, autocast: torch.dtype | None,
) -> list[Tensor]:  # fmt: skip
    graph = parsed(step)
    size = random_size(x.device) if _is_random(graph) else 0
    random = torch.empty(size, dtype=torch.uint8, device="cpu")
    types = [graph.dtypes[r] for r in graph.series]
    types = [x.dtype if t.is_floating_point and t != torch.float64 else t for t in types]
    shapes = [(*x.shape[:2], *graph.shapes[r][1:]) for r in graph.series]
    series = [x.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True)]
    return [*series, *(s.new_empty(s.shape) for s in states), random]


@torch.library.custom_op(
    "anyrnn::steps_backward",
    mutates_args=(),
    schema=f"({_SCAN}, Tensor random, Tensor?[] grads, bool[] needed) -> Tensor[]",
)
def _steps_backward(
    step: str, x: Tensor, states: list[Tensor], extras: list[Tensor], lengths: Tensor | None,
    weights: list[Tensor], reverse: bool, autocast: torch.dtype | None, random: Tensor,
    grads: list[Tensor | None], needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Run the steps again, and return the gradients of those of x, states, extras and weights that need one."""
    inputs, ends = [x, *states, *extras, *weights], (1, 1 + len(states), 1 + len(states) + len(extras))
    with _dispatched_anew(), random_from(random, x.device):
        leaves = [t.detach().requires_grad_(n) for t, n in zip(inputs, needed, strict=True)]
        with torch.enable_grad():
            of_states, of_extras = (leaves[a:b] for a, b in itertools.pairwise(ends))
            results = _run(step, leaves[0], of_states, of_extras, lengths, leaves[ends[-1] :], reverse, autocast)
        pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = torch.autograd.grad(
            [r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True, materialize_grads=True
        )
        return own(found, [*inputs, *_present(grads)])


@_steps_backward.register_fake
def _(
    step: str, x: Tensor, states: list[Tensor], extras: list[Tensor], lengths: Tensor | None,
    weights: list[Tensor], reverse: bool, autocast: torch.dtype | None, random: Tensor,
    grads: list[Tensor | None], needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    return [t.new_empty(t.shape) for t, n in zip((x, *states, *extras, *weights), needed, strict=True) if n]


def _steps_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.step, x, states, extras, lengths, weights, ctx.reverse, ctx.autocast = inputs
    ctx.save_for_backward(lengths, output[-1], x, *states, *extras, *weights)
    ctx.counts = len(states), len(extras)
    ctx.set_materialize_grads(False)


def _steps_gradients(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    lengths, random, x, *rest = ctx.saved_tensors
    states, extras, weights = _groups(rest, ctx.counts)
    _, x_needed, states_needed, extras_needed, _, weights_needed, *_ = ctx.needs_input_grad
    needed = [x_needed, *states_needed, *extras_needed, *weights_needed]
    found = iter(
        torch.ops.anyrnn.steps_backward(
            ctx.step, x, states, extras, lengths, weights, ctx.reverse, ctx.autocast, random, grads[:-1], needed
        )
    )
    x_grad, *others = [next(found) if n else None for n in needed]
    of_states, of_extras, of_weights = _groups(others, ctx.counts)
    return None, x_grad, of_states, of_extras, None, of_weights, None, None


def _groups(values: Sequence[Any], counts: tuple[int, int]) -> tuple[list[Any], list[Any], list[Any]]:
    """What belongs to the states, to further arguments and to the weights."""
    states, extras = counts
    return list(values[:states]), list(values[states : states + extras]), list(values[states + extras :])


_steps.register_autograd(_steps_gradients, setup_context=_steps_context)


# ---- What surrounds an operator ----

# Which parts of PyTorch's dispatcher are left out outside of any operator.
_LEFT_OUT = torch._C._dispatch_tls_local_exclude_set()


@contextlib.contextmanager
def _dispatched_anew() -> Iterator[None]:
    """Let operations be dispatched as outside of an operator: within one, autograd and the like are left out."""
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, _LEFT_OUT), outside_inference_mode(), torch.no_grad():
        yield


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Let operations be run on tensors of our own, whatever traces the operations around."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), _dispatched_anew():
        yield


def _lowered(device: str, autocast: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Compute in the precision of the call's place in the program: compiled code itself runs outside of autocast."""
    if autocast is None and not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, autocast, enabled=autocast is not None)


def own(results: Iterable[Tensor], inputs: Iterable[Tensor]) -> list[Tensor]:
    """Make results contiguous, and copy those that share memory with the inputs or with each other.

    And those that begin within their memory: the operators promise tensors that begin where theirs does.
    """
    taken = {t.untyped_storage()._cdata for t in inputs}
    owned = []
    for result in results:
        tensor = result.contiguous()
        if tensor.storage_offset() or tensor.untyped_storage()._cdata in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage()._cdata)
        owned.append(tensor)
    return owned
