"""The cell protocol: how one step is called, how its result is read, and what size its state has.

A cell is an ``nn.Module`` with ``forward(x, state)``: ``x (B, I)``, and ``state`` one tensor ``(B, size)`` or a
tuple of them. It returns the new state in the same structure, or ``(output, new_state)``. Inside anyrnn states
are always tuples; this file is the only place that knows the two outer forms.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

State: TypeAlias = Tensor | tuple[Tensor, ...]

# A batch size that no tuple of states has as its length, so that `h, c = state` on a bare tensor fails.
_PROBE_BATCH = 7


@dataclass(frozen=True)
class Signature:
    """What a cell takes and returns, found once and then relied on.

    Attributes:
        state_sizes: The size of each state variable.
        bare: The state is one tensor, not a tuple.
        output_size: The size of the output of a step.
        has_output: A step returns ``(output, new_state)``; otherwise its output is the first state variable.
    """

    state_sizes: tuple[int, ...]
    bare: bool
    output_size: int
    has_output: bool

    def wrap(self, states: tuple[Tensor, ...]) -> State:
        """Give the states the structure that the cell uses."""
        return states[0] if self.bare else states

    def step(self, cell: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run ``cell`` for one step: ``x (B, I)`` and states ``(B, size)`` to output ``(B, O)`` and new states."""
        result = cell(x, states[0] if self.bare else states)
        if self.has_output:
            output, new = result
            return output, (new,) if self.bare else tuple(new)
        if self.bare:
            return result, (result,)
        return result[0], tuple(result)


def describe(cell: nn.Module, input_size: int, state_sizes: int | Sequence[int] | None = None) -> Signature:
    """Find the signature of a cell.

    The sizes of the state are ``state_sizes`` if given, else ``cell.state_sizes``, else ``cell.hidden_size`` for
    each of one to four state variables, whichever makes a step work. The cell is run for one step on a few rows
    of zeros. The step is real, not on fake tensors: those take two seconds to import, and refuse cells that keep
    plain tensors as attributes. It leaves no gradient, the random state is put back, and buffers that the cell
    updates are copies; hooks and counters of the cell's own see it.

    Raises:
        AnyRNNError: if no sizes are known, or a step fails or returns something that fits neither form.
    """
    name = type(cell).__name__
    if not isinstance(cell, nn.Module):
        msg = f"a cell is an nn.Module with forward(x, state); got {cell!r}"
        raise AnyRNNError(msg)
    failures: dict[str, Exception] = {}
    for sizes, bare in _candidates(cell, name, state_sizes):
        try:
            return _probe(cell, input_size, sizes, bare)
        except Exception as cause:  # noqa: BLE001 - a cell may raise anything when its state has another form
            failures[f"{'one tensor' if bare else 'a tuple'} {', '.join(f'(B, {size})' for size in sizes)}"] = cause
    raise AnyRNNError(_failed(cell, input_size, failures))


def _failed(cell: nn.Module, input_size: int, failures: Mapping[str, Exception]) -> str:
    """Say why no form of state worked, each cause once; where a step ran to its end, only what it returned counts."""
    returned = {form: cause for form, cause in failures.items() if isinstance(cause, AnyRNNError)}
    forms: dict[str, list[str]] = {}
    for form, cause in (returned or failures).items():
        forms.setdefault(str(cause) if returned else f"{type(cause).__name__}: {cause}", []).append(form)
    told = "".join(
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
        f"{type(cell).__name__}: a step with x (B, {input_size}), tried with B={_PROBE_BATCH}, failed{told}\n"
        f"Expected forward(x, state) to return the new state, or (output, new_state), each (B, size). {cure}."
    )


def _candidates(
    cell: nn.Module, name: str, state_sizes: int | Sequence[int] | None
) -> Iterator[tuple[tuple[int, ...], bool]]:
    sizes = getattr(cell, "state_sizes", None) if state_sizes is None else state_sizes
    if sizes is not None:
        yield ((sizes,), True) if isinstance(sizes, int) else (tuple(sizes), False)
        return
    size = getattr(cell, "hidden_size", None)
    if not isinstance(size, int):
        msg = (
            f"{name}: the size of its state is not known, since it has neither `state_sizes` nor `hidden_size`; "
            f"give state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)."
        )
        raise AnyRNNError(msg)
    # The pair comes first: a cell that indexes its state would take the rows of a bare tensor for its states.
    yield (size, size), False
    yield (size,), True
    yield (size,) * 3, False
    yield (size,) * 4, False
    yield (size,), False


def _probe(cell: nn.Module, input_size: int, sizes: tuple[int, ...], bare: bool) -> Signature:
    like = placement(cell)
    x = like.new_zeros(_PROBE_BATCH, input_size)
    states = tuple(like.new_zeros(_PROBE_BATCH, size) for size in sizes)
    devices = [like.device] if like.device.type == "cuda" else []
    buffers = {key: value.clone() for key, value in cell.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=devices), caching_nothing():
        arguments = (x, states[0] if bare else states)
        # A cell without buffers may be a script module, which functional_call refuses.
        result = torch.func.functional_call(cell, buffers, arguments) if buffers else cell(*arguments)
    output, new = _read(result, len(sizes), bare)
    for k, (value, size) in enumerate(zip(new, sizes, strict=True)):
        if value.shape != (_PROBE_BATCH, size):
            msg = f"returned state {k} of shape {_shape(value)}, expected (B, {size})"
            raise AnyRNNError(msg)
    if output is None:
        return Signature(sizes, bare, sizes[0], has_output=False)
    if output.dim() != 2 or len(output) != _PROBE_BATCH:
        msg = f"returned an output of shape {_shape(output)}, expected (B, size)"
        raise AnyRNNError(msg)
    return Signature(sizes, bare, output.shape[1], has_output=True)


@contextlib.contextmanager
def caching_nothing() -> Iterator[None]:
    """Leave nothing behind in the cache of parametrizations, for a step that is not the user's own.

    Below `torch.nn.utils.parametrize.cached` the first step computes the weights for all later ones: computed without
    gradients, or for a copy of a module whose place in memory the next copy takes, they would be wrong for those.
    """
    before = set(parametrize._cache)
    try:
        yield
    finally:  # one by one, since other threads may be using the cache, too
        for key in parametrize._cache.keys() - before:
            parametrize._cache.pop(key, None)


def _read(result: object, count: int, bare: bool) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Tell the two return forms apart by structure: (output or None, states)."""
    states = _as_states(result, count, bare)
    if states is not None:
        return None, states
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor):
        states = _as_states(result[1], count, bare)
        if states is not None:
            return result[0], states
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
    found = next(chain(_floating(module, "_parameters"), _floating(module, "_buffers")), None)
    if found is not None:
        return found
    return x if x is not None and x.is_floating_point() else torch.empty(0)


def _floating(module: nn.Module, kind: str) -> Iterator[Tensor]:
    """The tensors of a module and what is in it, in order; torch's iterators are slow."""
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
