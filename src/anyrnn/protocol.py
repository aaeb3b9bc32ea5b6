"""The cell protocol: how one step is called, how its result is read, and what size its state has.

A cell is an ``nn.Module`` with ``forward(x, state)``: ``x (B, I)``, and ``state`` one tensor ``(B, size)`` or a
tuple of them. It returns the new state in the same structure, or ``(output, new_state)``. Inside anyrnn states
are always tuples; this file is the only place that knows the two outer forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        result = cell(x, self.wrap(states))
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
    plain tensors as attributes. It leaves no trace: no gradient, the random state is put back, and buffers that
    the cell updates are copies.

    Raises:
        AnyRNNError: if no sizes are known, or a step fails or returns something that fits neither form.
    """
    name = type(cell).__name__
    if not isinstance(cell, nn.Module):
        msg = f"a cell is an nn.Module with forward(x, state); got {cell!r}"
        raise AnyRNNError(msg)
    failures = []
    for sizes, bare in _candidates(cell, name, state_sizes):
        try:
            return _probe(cell, input_size, sizes, bare)
        except Exception as cause:  # noqa: BLE001 - a cell may raise anything when its state has another form
            form = f"one tensor of size {sizes[0]}" if bare else f"a tuple of sizes {sizes}"
            failures.append(f"\n  with {form}: {type(cause).__name__}: {cause}")
    msg = (
        f"{name}: one step with x of {input_size} features failed for every form of state tried; "
        f"expected forward(x, state) to return the new state, or (output, new_state), each of shape (B, size)."
        f"{''.join(failures)}\n"
        f"If the sizes are not these, pass state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)."
    )
    raise AnyRNNError(msg)


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
            f"{name}: the size of its state is not known, since it has neither `state_sizes` nor `hidden_size`. "
            f"Pass state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)."
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
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        result = torch.func.functional_call(cell, buffers, (x, states[0] if bare else states))
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


def _read(result: object, count: int, bare: bool) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Tell the two return forms apart by structure: (output or None, states)."""
    states = _as_states(result, count, bare)
    if states is not None:
        return None, states
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor):
        states = _as_states(result[1], count, bare)
        if states is not None:
            return result[0], states
    expected = "a tensor" if bare else f"a tuple of {count} tensors"
    msg = f"returned {_structure(result)}, expected {expected} (the new state) or (output, new_state)"
    raise AnyRNNError(msg)


def _as_states(value: object, count: int, bare: bool) -> tuple[Tensor, ...] | None:
    if bare:
        return (value,) if isinstance(value, Tensor) else None
    if isinstance(value, tuple | list) and len(value) == count and all(isinstance(v, Tensor) for v in value):
        return tuple(value)
    return None


def placement(module: nn.Module) -> Tensor:
    """Return an empty tensor with the dtype and device of the module's parameters (torch's defaults if none)."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.new_empty(0)
    return torch.empty(0)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape)).replace(str(_PROBE_BATCH), "B", 1)


def _structure(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {_shape(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} ({', '.join(_structure(v) for v in value)})"
    return f"a {type(value).__name__}"
