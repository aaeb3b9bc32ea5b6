"""Probing: what a cell's step takes and returns, found out by running it on made-up numbers.

A cell says little of itself. One step on a few rows of zeros shows the structure of its state and of its output, and
whether it is called as ``forward(x, state)`` or ``forward(x, *state)``: its `Signature`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import typing
import warnings
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer

from anyrnn.errors import AnyRNNError
from anyrnn.protocol import (
    PROBE_ROWS,
    ExtraForm,
    Form,
    Names,
    Signature,
    Size,
    Sizes,
    caching_nothing,
    is_named,
    is_uninitialized,
    outside_inference_mode,
    placement,
    run_step,
    shape_of,
    shape_text,
    size_of,
    structure_of,
)
from anyrnn.randomness import own_random_numbers
from anyrnn.records import locals_of
from anyrnn.twin import twin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


class WrongOrderError(AnyRNNError):
    """A step returns its states in another order than that in which it takes them."""


class _OtherStructureError(AnyRNNError):
    """What a step returns has not the structure of the state that it was given."""


_kinds: WeakKeyDictionary[nn.Module, tuple[type[tuple[Any, ...]], type[tuple[Any, ...]]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Probe:
    """A cell whose step is to be run on made up numbers.

    Attributes:
        cell: The cell.
        input_size: The size of x.
        extras: The forms of its further arguments.
        rows: The rows of the batch.
    """

    cell: nn.Module
    input_size: Size
    extras: tuple[ExtraForm, ...]
    rows: int = PROBE_ROWS


def describe(
    cell: nn.Module,
    input_size: Size,
    state_sizes: Sizes | None = None,
    form: Form | None = None,
    extras: Sequence[ExtraForm] = (),
    rows: int | None = None,
) -> Signature:
    """Infer the signature of a cell by running a step.

    The sizes of the state are ``state_sizes`` if given, else ``cell.state_sizes``, else ``cell.hidden_size`` for
    each of one to four state variables, whichever makes a step work. The cell is run for one step on a few rows
    of zeros. The tensors are real, not fake: those take two seconds to import, and refuse cells with plain tensors as
    attributes. It leaves no gradient and the random state as it was, and what the cell updates (buffers, counters,
    logs) are copies; hooks see it. Lazy modules in the cell get their parameters.

    A step that returns its state untouched does not show the state's structure. Then another is run, on other numbers,
    and if that does not either, `form`, the structure of the initial state of a call, decides. Without one the
    signature is not `settled`.

    Args:
        cell: The cell.
        input_size: The size of x.
        state_sizes: The sizes of the state.
        form: The structure of the initial state.
        extras: The forms of further arguments.
        rows: The rows of the batch of a call, on which it is run again if a step fails on the usual number: a cell may
            hold something for each of them.

    Raises:
        AnyRNNError: if no sizes are known, or a step fails or returns something that fits neither form.
    """
    if not isinstance(cell, nn.Module):
        msg = f"a cell is an nn.Module with forward(x, state); got {cell!r}"
        raise AnyRNNError(msg)
    probe = _Probe(cell, input_size, tuple(extras))
    try:
        return _described(probe, state_sizes, form)
    except AnyRNNError:
        if rows and rows != probe.rows:
            with contextlib.suppress(AnyRNNError):
                return _described(replace(probe, rows=rows), state_sizes, form)
        raise


def _described(probe: _Probe, state_sizes: Sizes | None, form: Form | None) -> Signature:
    """Infer a signature from steps on one number of rows."""
    failures: dict[str, Exception] = {}
    ambiguous: list[tuple[_Candidate, Signature]] = []
    for candidate in _candidates(probe, state_sizes, form):
        try:
            signature, is_shown = _probed(probe, candidate, fill=0.0)
        except Exception as cause:  # noqa: BLE001 - a cell may raise anything when its state has another form
            failures[str(candidate)] = cause
            continue
        if is_shown:
            return _adopted(probe, candidate, signature)
        ambiguous.append((candidate, signature))
    if not ambiguous:
        kind = WrongOrderError if any(isinstance(f, WrongOrderError) for f in failures.values()) else AnyRNNError
        raise kind(_misfit(probe, failures, state_sizes, form) or _failure_message(probe, failures))
    for candidate, _ in ambiguous if len(ambiguous) > 1 else ():
        with contextlib.suppress(Exception):
            signature, is_shown = _probed(probe, candidate, fill=0.5)
            if is_shown:
                return _adopted(probe, candidate, signature)
    fitting = [pair for pair in ambiguous if form == pair[0].form] or ambiguous
    candidate, signature = fitting[0]
    return _adopted(probe, candidate, replace(signature, settled=len(fitting) == 1))


def takes(cell: nn.Module, count: int, keywords: Iterable[str] = ()) -> bool | None:
    """Whether a step can be called with so many arguments by position and these keywords; None if it does not tell."""
    try:
        _called(cell).bind(*range(count), **dict.fromkeys(keywords))
    except TypeError:
        return False
    except Exception:  # noqa: BLE001 - what is no Python function has no signature
        return None
    return True


def _called(cell: nn.Module) -> inspect.Signature:
    """The arguments that a step takes: those of `forward`, but for a module that says which (`adapters.Stepped`)."""
    return inspect.signature(cell if hasattr(type(cell), "__signature__") else cell.forward)


def untold(cell: nn.Module, signature: Signature) -> str:
    """The message that the structure of a cell's state is not known."""
    size = signature.state_sizes[0]
    return (
        f"{type(cell).__name__}: a step returned the state that it was given, so that it does not tell whether that is "
        f"one tensor or a tuple; expected state_sizes={size} (one tensor) or state_sizes={(size, size)} (a tuple), or "
        f"an initial state"
    )


def stated_sizes(cell: nn.Module) -> Sizes | None:
    """The sizes of the state that a cell declares; when they change, its signature has to be inferred again."""
    sizes = getattr(cell, "state_sizes", None)
    if sizes is None:
        sizes = getattr(cell, "hidden_size", None)
    return tuple(sizes) if isinstance(sizes, list) else sizes


def form_of(state: object) -> Form | None:
    """The structure of a state; None if it is no state."""
    if isinstance(state, Tensor):
        return Tensor, 1
    if isinstance(state, tuple | list):
        return (type(state) if is_named(type(state)) else tuple), len(state)
    return None


def kinds_of(cell: nn.Module) -> tuple[type[tuple[Any, ...]], type[tuple[Any, ...]]]:
    """The classes of the tuples of states and of outputs, which are no constants of a program that PyTorch traces."""
    return _kinds.get(cell) or (_declared_kind(cell) or tuple, tuple)


def _adopted(probe: _Probe, candidate: _Candidate, signature: Signature) -> Signature:
    """The signature, once the cell has its parameters and the class of its states is noted."""
    if _is_lazy(probe.cell):
        _materialize(probe, candidate)
    if signature.kind is not tuple or signature.output_kind is not tuple:
        _kinds[probe.cell] = signature.kind, signature.output_kind
    if candidate.spread and not candidate.stated and not signature.has_output and len(candidate.sizes) > 1:
        _warn_of_guess(probe, candidate)
    return signature


def _warn_of_guess(probe: _Probe, candidate: _Candidate) -> None:
    """Warn where ``forward(x, h, dt)``, which returns an output and h, is taken for ``forward(x, h, c)``.

    Each returns as many tensors as it takes behind x. Only names tell them apart: what is returned as c is called like
    it (c_new, cy, new_c), if it has a name.
    """
    _, result, variables = _one_step(probe, candidate, 0.0)
    states = _parts_of(result, len(candidate.sizes), candidate.bare).states
    _, *names = parameters = [*_called(probe.cell).parameters]
    pairs = zip(names, states, strict=False)
    called = [(name, [k for k, v in variables.items() if v is value]) for name, value in pairs]
    if not any(others for _, others in called) or any(_is_alike(name, k) for name, others in called for k in others):
        return
    size = candidate.sizes[0]
    warnings.warn(
        f"{type(probe.cell).__name__}: forward takes ({', '.join(parameters)}) and returned {len(states)} tensors, "
        f"which are taken for the states {', '.join(f'`{n}`' for n in names[: len(states)])}. If that is right, say "
        f"state_sizes={candidate.sizes}; if it is an output and the state `{names[0]}`, say state_sizes={size} and "
        f"give what else it takes {_BY_EXTRAS}",
        stacklevel=2,
    )


def _is_alike(name: str, other: str) -> bool:
    """Whether two names are those of one variable before and after a step: c and c_new, cx and cy, prev_h and h."""
    return name[0] == other[0] or not set(name.split("_")).isdisjoint(other.split("_"))


def _failure_message(probe: _Probe, failures: Mapping[str, Exception]) -> str:
    """Why no structure of the state works, each cause once; where a step ran to its end, only its result counts."""
    cell, x = probe.cell, ", ".join(map(str, shape_of(probe.input_size)))
    parameters = _parameters(cell)
    returned = {form: cause for form, cause in failures.items() if isinstance(cause, AnyRNNError)}
    forms: dict[str, list[str]] = {}
    for form, cause in (returned or failures).items():
        forms.setdefault(str(cause) if returned else f"{type(cause).__name__}: {cause}", []).append(form)
    causes = "".join(
        f"\n  with {'every form of state' if len(tried) == len(failures) > 1 else ' or '.join(tried)}: {cause}"
        for cause, tried in forms.items()
    )
    if isinstance(cell, nn.RNNBase) or hasattr(cell, "num_layers"):
        cure = "This looks like a whole layer, which is used as it is; its cell is one step, as nn.LSTMCell is"
    else:
        cure = "If the sizes are not these, give state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)"
        if not _has_fitted(failures) and (parameters is None or len(parameters) - len(probe.extras) > 2):
            names = "..." if parameters is None else ", ".join(p.name for p in parameters)
            cure += f". Its forward takes ({names}): what is neither x nor a state is given {_BY_EXTRAS}"
    return (
        f"{type(cell).__name__}: a step with x (B, {x}), tried with B={probe.rows}, failed{causes}\n"
        f"Expected forward(x, state) to return the new state, or (output, new_state), each (B, size). {cure}."
    )


_BY_EXTRAS = "by inputs=, one for each step, or context=, one for each sequence"


def _misfit(
    probe: _Probe, failures: Mapping[str, Exception], state_sizes: Sizes | None, form: Form | None
) -> str | None:
    """The message that a step was given other arguments beside x and the state than it takes; None if it was not."""
    parameters = _parameters(probe.cell)
    if parameters is None or _has_fitted(failures):
        return None
    keys = [e.key for e in probe.extras]
    further = _further(probe, parameters, state_sizes, form)
    if further is None:
        if any(takes(probe.cell, *_count(keys, before)) for before in range(2, len(parameters) + 1)):
            return None
        expected = f"what else it takes {_BY_EXTRAS}" if len(parameters) > 2 else "nothing"
    elif _fit(keys, further):
        return None
    else:
        expected = f"{' and '.join(f'`{p.name}`' for p in further)} {_BY_EXTRAS}"
    by_position, keywords = _count(keys)
    got = [f"{by_position} by position"] * (by_position > 0) + [f"`{key}`" for key in keywords]
    is_step = hasattr(type(probe.cell), "__signature__")
    return (
        f"{type(probe.cell).__name__}: its {'step' if is_step else 'forward'} takes "
        f"({', '.join(p.name for p in parameters)}), and got "
        f"{' and '.join(got) or 'nothing'} beside x and the state; expected {expected}"
    )


def _has_fitted(failures: Mapping[str, Exception]) -> bool:
    """Whether a step has run to its end and returned as many states as it was given, if of other sizes."""
    return any(isinstance(f, AnyRNNError) and not isinstance(f, _OtherStructureError) for f in failures.values())


def _further(
    probe: _Probe, parameters: Sequence[inspect.Parameter], state_sizes: Sizes | None, form: Form | None
) -> Sequence[inspect.Parameter] | None:
    """Which arguments of a step are neither x nor states, where it runs with one number a row for each of them."""
    for candidate in _structures(probe.cell, state_sizes, form):
        for spread in (False, True):
            further = parameters[1 + (len(candidate.sizes) if spread else 1) :]
            extras = tuple(ExtraForm(p.name, "context", (1,), torch.float32) for p in further)
            if further:
                with contextlib.suppress(Exception):
                    _probed(replace(probe, extras=extras), replace(candidate, spread=spread), fill=0.0)
                    return further
    return None


def _fit(keys: Sequence[int | str], further: Sequence[inspect.Parameter]) -> bool:
    """Whether arguments by position and keyword are those that a step takes beside x and the state."""
    try:
        inspect.Signature(further).bind(*(k for k in keys if isinstance(k, int)), **dict.fromkeys(_count(keys)[1]))
    except TypeError:
        return False
    return True


def _count(keys: Iterable[int | str], before: int = 0) -> tuple[int, list[str]]:
    """The number of arguments by position, with so many before them (x and those of the state), and the keywords."""
    keys = list(keys)
    keywords = [k for k in keys if isinstance(k, str)]
    return before + len(keys) - len(keywords), keywords


def _parameters(cell: nn.Module) -> list[inspect.Parameter] | None:
    """The arguments that a step takes; None if it does not tell, or takes any."""
    try:
        parameters = [*_called(cell).parameters.values()]
    except (TypeError, ValueError):
        return None
    open_ended = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return None if any(p.kind in open_ended for p in parameters) else parameters


@dataclass(frozen=True)
class _Candidate:
    """A structure, with sizes, that the state of a cell may have.

    Attributes:
        sizes: The size of each state variable.
        bare: It is one tensor, not a tuple.
        kind: The class of the tuple.
        spread: Each variable is an argument of its own.
        stated: The cell or its user has said how many variables there are; otherwise it is tried.
    """

    sizes: tuple[Size, ...]
    bare: bool
    kind: type[tuple[Any, ...]] = tuple
    spread: bool = False
    stated: bool = True

    @property
    def form(self) -> Form:
        return (Tensor, 1) if self.bare else (self.kind, len(self.sizes))

    def __str__(self) -> str:
        named = "one tensor" if self.bare else "a tuple" if self.kind is tuple else f"a {self.kind.__name__}"
        sizes = (", ".join(map(str, ("B", *shape_of(size)))) for size in self.sizes)
        return f"{named} {', '.join(f'({each})' for each in sizes)}"


def _candidates(probe: _Probe, state_sizes: Sizes | None, form: Form | None) -> Iterator[_Candidate]:
    """The structures that a cell's state may have, each with the way to call the cell that fits its arguments."""
    others, keywords = _count(e.key for e in probe.extras)
    for candidate in _structures(probe.cell, state_sizes, form):
        count = len(candidate.sizes)
        spread = takes(probe.cell, 2 + others, keywords) is False and takes(probe.cell, 1 + count + others, keywords)
        yield replace(candidate, spread=True) if spread else candidate


def _structures(cell: nn.Module, state_sizes: Sizes | None, form: Form | None) -> Iterator[_Candidate]:
    sizes = getattr(cell, "state_sizes", None) if state_sizes is None else state_sizes
    named = next((k for k in (type(sizes), form and form[0], _declared_kind(cell)) if k and is_named(k)), None)
    if sizes is not None:
        if isinstance(sizes, int | torch.Size):
            yield _Candidate((size_of(shape_of(sizes)),), True)
        else:
            yield _Candidate(tuple(size_of(shape_of(s)) for s in sizes), False, named or tuple)
        return
    size = getattr(cell, "hidden_size", None)
    if not isinstance(size, int):
        msg = (
            f"{type(cell).__name__}: the size of its state is not known, since it has neither `state_sizes` nor "
            f"`hidden_size`; give state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)."
        )
        raise AnyRNNError(msg)
    if named is not None:
        yield _Candidate((size,) * len(named._fields), False, named)  # type: ignore[attr-defined]
        return
    # The pair comes first: a cell that indexes its state would take the rows of a bare tensor for its states.
    yield _Candidate((size, size), False, stated=False)
    yield _Candidate((size,), True, stated=False)
    yield _Candidate((size,) * 3, False, stated=False)
    yield _Candidate((size,) * 4, False, stated=False)
    yield _Candidate((size,), False, stated=False)


def _declared_kind(cell: nn.Module) -> type[tuple[Any, ...]] | None:
    """The named tuple that is the annotation of `state` in ``forward(self, x: Tensor, state: LSTMState)``, if any."""
    try:
        _, state, *_ = inspect.signature(cell.forward).parameters
        kind = typing.get_type_hints(cell.forward).get(state)
    except Exception:  # noqa: BLE001 - annotations may name what is not there, and script modules have none
        return None
    return kind if isinstance(kind, type) and is_named(kind) else None


def _probed(probe: _Probe, candidate: _Candidate, fill: float) -> tuple[Signature, bool]:
    """Run a step: the signature that its result has, and whether the result shows the structure of the state."""
    subject = replace(probe, cell=_copy_of(probe.cell)) if _is_lazy(probe.cell) else probe
    state, result, variables = _one_step(subject, candidate, fill)
    parts = _parts_of(result, len(candidate.sizes), candidate.bare)
    if candidate.spread:
        _check_order(probe.cell, parts.states, variables)
    for k, (value, size) in enumerate(zip(parts.states, candidate.sizes, strict=True)):
        if value.shape != (probe.rows, *shape_of(size)):
            msg = f"returned state {k} of shape {shape_text(value, probe.rows)}, expected ({_lead(size)})"
            raise AnyRNNError(msg)
    kind = candidate.kind
    if kind is tuple and is_named(type(parts.state)):
        kind = type(parts.state)  # type: ignore[assignment]
    for output in parts.outputs:
        if output.dim() < 1 or len(output) != probe.rows:
            msg = f"returned an output of shape {shape_text(output, probe.rows)}, expected (B, ...)"
            raise AnyRNNError(msg)
    sizes = tuple(size_of(o.shape[1:]) for o in parts.outputs) or candidate.sizes[:1]
    signature = Signature(
        candidate.sizes, candidate.bare, sizes, bool(parts.outputs), parts.names, candidate.spread, parts.flat, kind,
        parts.output_kind,
    )  # fmt: skip
    return signature, parts.state is not state


def _check_order(cell: nn.Module, states: Sequence[Tensor], variables: Mapping[str, Any]) -> None:
    """Check that a step returns its states in the order in which it takes them, as far as its variables tell.

    One that takes h and c, and returns c and h, would go on with each in the place of the other.
    """
    _, *names = _called(cell).parameters
    names = names[: len(states)]
    # For each state that is returned, as which it is taken: what another name holds.
    taken = [next((n for n in names if variables.get(n) is value), None) for value in states]
    for k, (name, other) in enumerate(zip(names, taken, strict=False)):
        if other is None or variables.get(name) is states[k]:
            continue
        if taken[0] is None:  # an output and a state, it seems, of a step that takes further arguments
            msg = f"returned `{other}` as state {k}, which it takes as `{name}`"
            raise _OtherStructureError(msg)
        msg = (
            f"returned `{other}` as state {k}, which it takes as `{name}`; expected the order "
            f"({', '.join(names)}): change it in forward, or by step=lambda m, x, s: ..."
        )
        raise WrongOrderError(msg)


def _lead(size: Size) -> str:
    return ", ".join(map(str, ("B", *shape_of(size))))


def _one_step(
    probe: _Probe, candidate: _Candidate, fill: float, *, watched: bool = False
) -> tuple[object, object, dict[str, Any]]:
    """Run a step on a twin of the cell, on made up numbers: its state, its result, and its local variables."""
    cell, rows = probe.cell, probe.rows
    like = placement(cell)
    weights = [t for t in (*cell.parameters(), *cell.buffers()) if not is_uninitialized(t)]
    with (
        outside_inference_mode(),
        # With gradients, since a step may ask for some; a cell made in inference mode can have none.
        torch.set_grad_enabled(not any(t.is_inference() for t in weights)),
        own_random_numbers(),
        caching_nothing(),
        # Hooks of the caller's see nothing of this graph; and detached it does not hold on to itself.
        torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda t: t),
    ):
        x = like.new_full((rows, *shape_of(probe.input_size)), fill)
        states = tuple(like.new_full((rows, *shape_of(size)), fill) for size in candidate.sizes)
        state = states[0] if candidate.bare else states if candidate.kind is tuple else candidate.kind(*states)
        is_scripted = any(isinstance(m, torch.jit.ScriptModule) for m in cell.modules())
        subject = cell if is_scripted else twin_of(cell, to_probe=True)
        extras = [(e.key, _made_up(e, rows, like)) for e in probe.extras]
        variables: dict[str, Any] = {}
        with locals_of(subject, variables) if candidate.spread or watched else contextlib.nullcontext():
            result = run_step(subject, x, states if candidate.spread else (state,), extras)
        return state, result, variables


def names_of(
    cell: nn.Module, signature: Signature, input_size: Size, extras: Sequence[ExtraForm] = ()
) -> tuple[str, ...]:
    """The local variables of a cell's step that hold a tensor with a row for each of the batch, by name."""
    candidate = _Candidate(signature.state_sizes, signature.bare, signature.kind, signature.spread)
    probe = _Probe(cell, input_size, tuple(extras))
    _, _, variables = _one_step(probe, candidate, 0.0, watched=True)
    return tuple(k for k, v in variables.items() if isinstance(v, Tensor) and v.shape[:1] == (probe.rows,))


def _made_up(form: ExtraForm, rows: int, like: Tensor) -> Tensor:
    """A further argument: zeros, or for a square matrix of all rows one that has an inverse."""
    shape = form.lead(rows)
    dtype = like.dtype if form.dtype.is_floating_point else form.dtype
    if form.kind == "shared" and len(shape) == 2 and shape[0] == shape[1] and dtype.is_floating_point:
        return torch.eye(shape[0], dtype=dtype, device=like.device)
    return like.new_zeros(shape, dtype=dtype)


def _is_lazy(cell: nn.Module) -> bool:
    return any(is_uninitialized(t) for t in chain(cell.parameters(), cell.buffers()))


def _copy_of(cell: nn.Module) -> nn.Module:
    """A deep copy of a cell with lazy modules; new buffers, since uninitialized ones cannot be copied."""
    lazy = [b for b in cell.buffers() if is_uninitialized(b)]
    new_buffer: Any = UninitializedBuffer
    return copy.deepcopy(cell, {id(b): new_buffer(device=b.device, dtype=b.dtype) for b in lazy})


def _is_lazy_itself(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and any(
        t is not None and is_uninitialized(t) for t in chain(module._parameters.values(), module._buffers.values())
    )


def _materialize(probe: _Probe, candidate: _Candidate) -> None:
    """Initialise the lazy modules of a cell, as a first step would.

    A copy of the cell runs the step and shows the arguments of each of them; the cell itself is not called.
    """
    probed = _copy_of(probe.cell)
    modules: dict[str, Any] = dict(probe.cell.named_modules())
    calls: list[tuple[str, Any, Any]] = []
    for name, module in probed.named_modules():
        if _is_lazy_itself(module):
            module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: calls.append((name, args, kwargs)), with_kwargs=True
            )
    _one_step(replace(probe, cell=probed), candidate, 0.0)
    for name, args, kwargs in calls:
        module = modules[name]
        if _is_lazy_itself(module):
            module._infer_parameters(module, args, kwargs)


class _Parts(NamedTuple):
    """The parts of what a step returned.

    Attributes:
        outputs: The outputs; none if the output is the first state.
        states: The new states.
        state: These as the step returned them.
        names: The structure of the outputs.
        output_kind: The class of the tuple of outputs.
        flat: The step returned ``(output, *states)``.
    """

    outputs: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    state: object
    names: Names = None
    output_kind: type[tuple[Any, ...]] = tuple
    flat: bool = False


def _parts_of(result: object, count: int, bare: bool) -> _Parts:
    """Tell the forms apart in which a step may return outputs and states, by structure."""
    states = _as_states(result, count, bare)
    if states is not None:
        return _Parts((), states, result)
    if isinstance(result, tuple | list) and len(result) == 2:
        output, state = result
        states = _as_states(state, count, bare)
        if states is not None:
            if isinstance(output, Tensor):
                return _Parts((output,), states, state)
            if isinstance(output, dict) and output and _are_named_tensors(output):
                return _Parts(tuple(output.values()), states, state, tuple(output))
            outputs = _as_states(output, len(output), False) if isinstance(output, tuple | list) else None
            if outputs:
                kind = type(output) if is_named(type(output)) else tuple
                return _Parts(outputs, states, state, len(outputs), kind)
    if isinstance(result, tuple | list) and len(result) == count + 1 and not bare:
        found = _as_states(result, count + 1, False)
        if found is not None:
            return _Parts(found[:1], found[1:], result, flat=True)
    msg = f"returned {structure_of(result)}"
    raise _OtherStructureError(msg)


def _are_named_tensors(values: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in values.items())


def _as_states(value: object, count: int, bare: bool) -> tuple[Tensor, ...] | None:
    if bare:
        return (value,) if isinstance(value, Tensor) else None
    if isinstance(value, tuple | list) and len(value) == count and all(isinstance(v, Tensor) for v in value):
        return tuple(value)
    return None
