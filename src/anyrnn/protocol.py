"""The cell protocol: how one step is called, how its result is read, and what size its state has.

A cell is an ``nn.Module`` with ``forward(x, state)``: ``x (B, I)``, and ``state`` one tensor ``(B, size)`` or a
tuple of them. It returns the new state in the same structure, or ``(output, new_state)``. Inside anyrnn states
are always tuples; this file is the only place that knows the two outer forms.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import typing
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize

from anyrnn.errors import AnyRNNError
from anyrnn.randomness import own_random_numbers
from anyrnn.twin import twin_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

State: TypeAlias = Tensor | tuple[Tensor, ...]

# A batch size that no tuple of states has as its length, so that `h, c = state` on a bare tensor fails.
_PROBE_BATCH = 7


@dataclass(frozen=True)
class Signature:
    """The signature of a cell's step: the sizes and the structure of its state and output. See `describe`.

    Attributes:
        state_sizes: The size of each state variable.
        bare: The state is one tensor, not a tuple.
        output_size: The size of the output of a step.
        has_output: A step returns ``(output, new_state)``; otherwise its output is the first state variable.
        kind: The class of the tuple: `tuple`, or a named tuple of the user's.
        settled: A step has shown which structure the state has. A step that returns its state untouched shows nothing,
            and another step has to be probed.
    """

    state_sizes: tuple[int, ...]
    bare: bool
    output_size: int
    has_output: bool
    kind: type[tuple[Any, ...]] = tuple
    settled: bool = True

    def wrap(self, states: tuple[Tensor, ...], like: object = None) -> State:
        """Give the states the structure that the cell uses, or, if `like` is a named tuple, that of `like`."""
        if self.bare:
            return states[0]
        kind: type[Any] = type(like) if self.kind is tuple and _is_named(type(like)) else self.kind
        return states if kind is tuple else kind(*states)

    def step(self, cell: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run ``cell`` for one step: ``x (B, I)`` and states ``(B, size)`` to output ``(B, O)`` and new states.

        Raises:
            AnyRNNError: if the new states have another form than the old ones.
        """
        result = cell(x, states[0] if self.bare else self.wrap(states))
        if self.has_output:
            output, new_state = result
            new = (new_state,) if self.bare else tuple(new_state)
        else:
            new = (result,) if self.bare else tuple(result)
            output = new[0]
        # A list, since a generator takes as long as a small operation.
        if len(new) != len(states) or any([n.shape != s.shape for n, s in zip(new, states, strict=True)]):  # noqa: C419
            got = ", ".join(str(tuple(n.shape)) if isinstance(n, Tensor) else type(n).__name__ for n in new)
            msg = (
                f"{type(cell).__name__}: a step returned the state {got}, expected "
                f"{', '.join(str(tuple(s.shape)) for s in states)}, as it was given. If the cell was changed after its "
                f"layer was made, change its `hidden_size` or `state_sizes` along, or make a new layer"
            )
            raise AnyRNNError(msg)
        return output, new


#: The structure of a state: the class of the tuple and the number of tensors in it; (Tensor, 1) for a tensor.
Form: TypeAlias = "tuple[type, int]"

_kinds: WeakKeyDictionary[nn.Module, type[tuple[Any, ...]]] = WeakKeyDictionary()


def describe(
    cell: nn.Module, input_size: int, state_sizes: int | Sequence[int] | None = None, form: Form | None = None
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

    Raises:
        AnyRNNError: if no sizes are known, or a step fails or returns something that fits neither form.
    """
    name = type(cell).__name__
    if not isinstance(cell, nn.Module):
        msg = f"a cell is an nn.Module with forward(x, state); got {cell!r}"
        raise AnyRNNError(msg)
    failures: dict[str, Exception] = {}
    ambiguous: list[tuple[_Candidate, Signature]] = []
    for candidate in _candidates(cell, name, state_sizes, form):
        try:
            signature, is_shown = _probe(cell, input_size, candidate, fill=0.0)
        except Exception as cause:  # noqa: BLE001 - a cell may raise anything when its state has another form
            failures[str(candidate)] = cause
            continue
        if is_shown:
            return _adopted(cell, input_size, candidate, signature)
        ambiguous.append((candidate, signature))
    if not ambiguous:
        raise AnyRNNError(_failure_message(cell, input_size, failures))
    for candidate, _ in ambiguous if len(ambiguous) > 1 else ():
        with contextlib.suppress(Exception):
            signature, is_shown = _probe(cell, input_size, candidate, fill=0.5)
            if is_shown:
                return _adopted(cell, input_size, candidate, signature)
    fitting = [pair for pair in ambiguous if form == pair[0].form] or ambiguous
    candidate, signature = fitting[0]
    return _adopted(cell, input_size, candidate, replace(signature, settled=len(fitting) == 1))


def untold(cell: nn.Module, signature: Signature) -> str:
    """The message that the structure of a cell's state is not known."""
    size = signature.state_sizes[0]
    return (
        f"{type(cell).__name__}: a step returned the state that it was given, so that it does not tell whether that is "
        f"one tensor or a tuple; expected state_sizes={size} (one tensor) or state_sizes={(size, size)} (a tuple), or "
        f"an initial state"
    )


def stated_sizes(cell: nn.Module) -> int | tuple[int, ...] | None:
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
        return (type(state) if _is_named(type(state)) else tuple), len(state)
    return None


def kind_of(cell: nn.Module) -> type[tuple[Any, ...]]:
    """The class of the tuple of states of a cell, which a signature that was written down as text does not hold."""
    return _kinds.get(cell) or _declared_kind(cell) or tuple


def _adopted(cell: nn.Module, input_size: int, candidate: _Candidate, signature: Signature) -> Signature:
    """The signature, once the cell has its parameters and the class of its states is noted."""
    if _is_lazy(cell):
        _materialize(cell, input_size, candidate)
    if signature.kind is not tuple:
        _kinds[cell] = signature.kind
    return signature


def _failure_message(cell: nn.Module, input_size: int, failures: Mapping[str, Exception]) -> str:
    """Why no structure of the state works, each cause once; where a step ran to its end, only its result counts."""
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
    elif any("positional argument" in cause for cause in forms):
        cure = "Wrap a cell that takes x, h, c: forward(self, x, state) with h, c = state, which returns (h, c)"
    else:
        cure = "If the sizes are not these, give state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)"
    return (
        f"{type(cell).__name__}: a step with x (B, {input_size}), tried with B={_PROBE_BATCH}, failed{causes}\n"
        f"Expected forward(x, state) to return the new state, or (output, new_state), each (B, size). {cure}."
    )


@dataclass(frozen=True)
class _Candidate:
    """A structure, with sizes, that the state of a cell may have."""

    sizes: tuple[int, ...]
    bare: bool
    kind: type[tuple[Any, ...]] = tuple

    @property
    def form(self) -> Form:
        return (Tensor, 1) if self.bare else (self.kind, len(self.sizes))

    def __str__(self) -> str:
        named = "one tensor" if self.bare else "a tuple" if self.kind is tuple else f"a {self.kind.__name__}"
        return f"{named} {', '.join(f'(B, {size})' for size in self.sizes)}"


def _candidates(
    cell: nn.Module, name: str, state_sizes: int | Sequence[int] | None, form: Form | None
) -> Iterator[_Candidate]:
    sizes = getattr(cell, "state_sizes", None) if state_sizes is None else state_sizes
    named = next((k for k in (type(sizes), form and form[0], _declared_kind(cell)) if k and _is_named(k)), None)
    if sizes is not None:
        yield _Candidate((sizes,), True) if isinstance(sizes, int) else _Candidate(tuple(sizes), False, named or tuple)
        return
    size = getattr(cell, "hidden_size", None)
    if not isinstance(size, int):
        msg = (
            f"{name}: the size of its state is not known, since it has neither `state_sizes` nor `hidden_size`; "
            f"give state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)."
        )
        raise AnyRNNError(msg)
    if named is not None:
        yield _Candidate((size,) * len(named._fields), False, named)  # type: ignore[attr-defined]
        return
    # The pair comes first: a cell that indexes its state would take the rows of a bare tensor for its states.
    yield _Candidate((size, size), False)
    yield _Candidate((size,), True)
    yield _Candidate((size,) * 3, False)
    yield _Candidate((size,) * 4, False)
    yield _Candidate((size,), False)


def _is_named(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _declared_kind(cell: nn.Module) -> type[tuple[Any, ...]] | None:
    """The named tuple that is the annotation of `state` in ``forward(self, x: Tensor, state: LSTMState)``, if any."""
    try:
        _, state, *_ = inspect.signature(cell.forward).parameters
        kind = typing.get_type_hints(cell.forward).get(state)
    except Exception:  # noqa: BLE001 - annotations may name what is not there, and script modules have none
        return None
    return kind if isinstance(kind, type) and _is_named(kind) else None


def _probe(cell: nn.Module, input_size: int, candidate: _Candidate, fill: float) -> tuple[Signature, bool]:
    """Run a step: the signature that its result has, and whether the result shows the structure of the state."""
    subject = _copy_of(cell) if _is_lazy(cell) else cell
    state, result = _one_step(subject, input_size, candidate, fill)
    output, new, new_state = _output_and_states(result, len(candidate.sizes), candidate.bare)
    for k, (value, size) in enumerate(zip(new, candidate.sizes, strict=True)):
        if value.shape != (_PROBE_BATCH, size):
            msg = f"returned state {k} of shape {_shape(value)}, expected (B, {size})"
            raise AnyRNNError(msg)
    kind = candidate.kind
    if kind is tuple and _is_named(type(new_state)):
        kind = type(new_state)  # type: ignore[assignment]
    is_shown = new_state is not state
    if output is None:
        return Signature(candidate.sizes, candidate.bare, candidate.sizes[0], has_output=False, kind=kind), is_shown
    if output.dim() != 2 or len(output) != _PROBE_BATCH:
        msg = f"returned an output of shape {_shape(output)}, expected (B, size)"
        raise AnyRNNError(msg)
    return Signature(candidate.sizes, candidate.bare, output.shape[1], has_output=True, kind=kind), is_shown


def _one_step(cell: nn.Module, input_size: int, candidate: _Candidate, fill: float) -> tuple[object, object]:
    """Run a step on a twin of the cell, on made up numbers: its state and its result."""
    like, sizes = placement(cell), candidate.sizes
    weights = [t for t in (*cell.parameters(), *cell.buffers()) if not _is_uninitialized(t)]
    with (
        torch.inference_mode(False),
        # With gradients, since a step may ask for some; a cell made in inference mode can have none.
        torch.set_grad_enabled(not any(t.is_inference() for t in weights)),
        own_random_numbers(),
        caching_nothing(),
        # Hooks of the caller's see nothing of this graph; and detached it does not hold on to itself.
        torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda t: t),
    ):
        x = like.new_full((_PROBE_BATCH, input_size), fill)
        states = tuple(like.new_full((_PROBE_BATCH, size), fill) for size in sizes)
        state = states[0] if candidate.bare else states if candidate.kind is tuple else candidate.kind(*states)
        is_scripted = any(isinstance(m, torch.jit.ScriptModule) for m in cell.modules())
        return state, (cell if is_scripted else twin_of(cell, to_probe=True))(x, state)


# ---- Lazy modules, which get their parameters when they see their first input ----


def _is_uninitialized(tensor: Tensor) -> bool:
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer)


def _is_lazy(cell: nn.Module) -> bool:
    return any(_is_uninitialized(t) for t in chain(cell.parameters(), cell.buffers()))


def _copy_of(cell: nn.Module) -> nn.Module:
    """A deep copy of a cell with lazy modules; new buffers, since uninitialized ones cannot be copied."""
    lazy = [b for b in cell.buffers() if _is_uninitialized(b)]
    new_buffer: Any = UninitializedBuffer
    return copy.deepcopy(cell, {id(b): new_buffer(device=b.device, dtype=b.dtype) for b in lazy})


def _is_lazy_itself(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and any(
        t is not None and _is_uninitialized(t) for t in chain(module._parameters.values(), module._buffers.values())
    )


def _materialize(cell: nn.Module, input_size: int, candidate: _Candidate) -> None:
    """Initialise the lazy modules of a cell, as a first step would.

    A copy of the cell runs the step and shows the arguments of each of them; the cell itself is not called.
    """
    probed = _copy_of(cell)
    modules: dict[str, Any] = dict(cell.named_modules())
    calls: list[tuple[str, Any, Any]] = []
    for name, module in probed.named_modules():
        if _is_lazy_itself(module):
            module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: calls.append((name, args, kwargs)), with_kwargs=True
            )
    _one_step(probed, input_size, candidate, 0.0)
    for name, args, kwargs in calls:
        module = modules[name]
        if _is_lazy_itself(module):
            module._infer_parameters(module, args, kwargs)


@contextlib.contextmanager
def caching_nothing() -> Iterator[None]:
    """Leave nothing behind in the cache of parametrizations, for a step that the user did not ask for.

    Below `torch.nn.utils.parametrize.cached` the first step computes the weights for all later ones: computed without
    gradients, or for a copy of a module whose place in memory the next copy takes, they would be wrong for those.
    """
    before = set(parametrize._cache)
    try:
        yield
    finally:  # one by one, since other threads may be using the cache, too
        for key in parametrize._cache.keys() - before:
            parametrize._cache.pop(key, None)


def outside_inference_mode() -> contextlib.AbstractContextManager[Any]:
    """Leave inference mode, so that tensors made meanwhile can be trained with as well.

    The mode is left only where it is on: since Python 3.12 a profiler (cProfile) loses count of the calls around any
    `with torch.inference_mode(...)`, whose methods report a return without a call.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()


def _output_and_states(result: object, count: int, bare: bool) -> tuple[Tensor | None, tuple[Tensor, ...], object]:
    """Tell the two return forms apart by structure: (output or None, new states, these as the step returned them)."""
    states = _as_states(result, count, bare)
    if states is not None:
        return None, states, result
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor):
        states = _as_states(result[1], count, bare)
        if states is not None:
            return result[0], states, result[1]
    msg = f"returned {_structure(result)}"
    raise AnyRNNError(msg)


def _as_states(value: object, count: int, bare: bool) -> tuple[Tensor, ...] | None:
    if bare:
        return (value,) if isinstance(value, Tensor) else None
    if isinstance(value, tuple | list) and len(value) == count and all(isinstance(v, Tensor) for v in value):
        return tuple(value)
    return None


def placement(module: nn.Module, x: Tensor | None = None) -> Tensor:
    """Return a tensor with the dtype and device of a module: those of its parameters, else buffers, else `x`."""
    first = next(chain(_floating(module, "_parameters"), _floating(module, "_buffers")), None)
    if first is not None:
        # A lazy parameter has a dtype and a device, and nothing else.
        return torch.empty(0, dtype=first.dtype, device=first.device) if _is_uninitialized(first) else first
    return x if x is not None and x.is_floating_point() else torch.empty(0)


def _floating(module: nn.Module, kind: str) -> Iterator[Tensor]:
    """The floating-point tensors of a module and its submodules, in order; torch's iterators are slow."""
    for tensor in getattr(module, kind).values():
        if tensor is not None and tensor.is_floating_point():
            yield tensor
    for child in module._modules.values():
        if child is not None:
            yield from _floating(child, kind)


def _shape(tensor: Tensor) -> str:
    sizes = [str(n) for n in tensor.shape]
    if sizes and tensor.shape[0] == _PROBE_BATCH:
        sizes[0] = "B"
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _structure(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {_shape(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} ({', '.join(_structure(v) for v in value)})"
    return f"a {type(value).__name__}"
