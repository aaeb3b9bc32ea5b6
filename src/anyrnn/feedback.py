"""Layers that read their own output: a stack with its feedback is one cell (`adapters.Fed`), and runs as any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from anyrnn.adapters import Fed, Stacked, stacked_signature
from anyrnn.controls import resting
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import Extra, Signature
from anyrnn.regularisation import OPTIONS
from anyrnn.runtime.call import Call
from anyrnn.traced import MADE, choose, constant_to_dynamo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from anyrnn.arguments import Arguments
    from anyrnn.controls import Control
    from anyrnn.stacks import Wiring


class Feedable(Protocol):
    """What is read of a layer here."""

    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float
    training: bool
    _wiring: Wiring

    def _is_regularised(self) -> bool: ...

    def _standing(self, signature: Signature, training: bool | None = None) -> Control: ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Its parameters."""

    def _cell(self, layer: int, reverse: bool) -> nn.Module: ...

    def _signature(self, layer: int, reverse: bool = False) -> Signature: ...


_REMEMBERED = 4  # cells with feedback, of a layer


@dataclass(frozen=True)
class _Remembered:
    """A cell with feedback, and what it was made of."""

    cells: tuple[nn.Module, ...]
    signatures: tuple[Signature, ...]
    controls: tuple[Control, ...]
    feedback: Callable[[Any], Tensor]
    fed: Fed


def run_fed(
    layer: Feedable, given: Arguments, feedback: Callable[[Any], Tensor], forced: Tensor | int | None
) -> list[Sequence[Tensor]]:
    """Run a layer whose x is made of its output where it is not forced, and note its final states.

    Returns:
        As `Layer._run`.
    """
    name = type(layer).__name__
    if layer.bidirectional:
        msg = (
            f"{name}: got feedback for a bidirectional layer, whose output at a step depends on later x; expected one "
            f"direction"
        )
        raise AnyRNNError(msg)
    if not callable(feedback):
        msg = f"{name}: got feedback={feedback!r}, expected a function from an output (B, ...) to the next x (B, ...)"
        raise AnyRNNError(msg)
    if layer.training and layer._is_regularised():
        msg = (
            f"{name}: got feedback while it trains with {', '.join(k for k in OPTIONS if getattr(layer, k))}, expected "
            f"only one of them, or layer.eval()"
        )
        raise AnyRNNError(msg)
    if given.request.record:
        msg = f"{name}: got record with feedback, expected only one of them"
        raise AnyRNNError(msg)
    signatures = tuple([layer._signature(k) for k in range(layer.num_layers)])
    if torch.compiler.is_dynamo_compiling():  # which cannot make a module on the way
        fed = getattr(MADE, _made_apart(layer, feedback))
        for weight in layer.parameters():  # seen twice, so that a weight in the place of another one is noticed
            assert weight.dim() >= 0
    else:
        fed = _cell_of(layer, signatures, feedback)
    x, (T, B) = given.x, given.x.shape[:2]
    following = x.new_zeros(B, *x.shape[2:], dtype=given.states[0][0].dtype)
    states = (*(s for each in given.states for s in each), following)
    mask = _forced(name, forced, T, B, x.device, layer.batch_first)
    order = [e.key + 1 if isinstance(e.key, int) else e.key for e in given.extras]
    extras = [Extra(0, "input", mask), *(Extra(k, e.kind, e.tensor) for k, e in zip(order, given.extras, strict=True))]
    shape = tuple([int(n) for n in x.shape[2:]])
    call = Call(
        fed, fed.described(shape), x, states, given.lengths, False, given.from_zero, given.request, tuple(extras),
        given.checkpoint_every,
    )  # fmt: skip
    result = choose(call).engine.run(call)
    *finals, _ = result.states
    outputs = len(signatures[-1].output_sizes)
    of_states = list(result.series[outputs:])
    found: list[Sequence[Tensor]] = []
    for signature in signatures:
        size = len(signature.state_sizes)
        given.finals.append(tuple(finals[:size]))
        found.append(of_states[:size])
        finals, of_states = finals[size:], of_states[size:]
    return [[*result.series[:outputs], *found[0]], *found[1:]]


@constant_to_dynamo
def _made_apart(layer: Feedable, feedback: Callable[[Any], Tensor]) -> str:
    """Make the cell of a layer with feedback, and return its name among `MADE`; it goes with the layer."""
    fed = _cell_of(layer, tuple([layer._signature(k) for k in range(layer.num_layers)]), feedback)
    return MADE.add(fed, layer)


def _cell_of(layer: Feedable, signatures: tuple[Signature, ...], feedback: Callable[[Any], Tensor]) -> Fed:
    """The layer's cells with feedback as one cell: that of an earlier call, if they are the same."""
    cells = tuple([layer._cell(k, False) for k in range(layer.num_layers)])
    controls = tuple(map(layer._standing, signatures))
    known: list[_Remembered] = layer.__dict__.setdefault("_fed", [])
    for each in known:
        same = all(a is b for a, b in zip(each.cells, cells, strict=True)) and each.signatures == signatures
        same = same and each.controls == controls
        if same and each.feedback is feedback and each.fed.training == layer.training:
            return each.fed
    parts, inner_signatures = resting(cells, signatures, controls)
    if len(parts) == 1:
        inner, signature = parts[0], inner_signatures[0]
    else:
        inner = Stacked(parts, inner_signatures, layer._wiring, layer.dropout)
        signature = stacked_signature(inner_signatures)
    fed = Fed(inner, signature, signatures[-1], feedback)
    _set_training(fed, layer.training)
    known.append(_Remembered(cells, signatures, controls, feedback, fed))
    del known[:-_REMEMBERED]
    return fed


def _set_training(fed: Fed, training: bool) -> None:
    """Put the modules that were made here, not those of the user, into a mode."""
    fed.training = training
    if isinstance(fed.cell, Stacked):
        fed.cell.training = training


def _forced(name: str, forced: Tensor | int | None, T: int, B: int, device: torch.device, batch_first: bool) -> Tensor:
    """Which steps read x, (T, B); the first one does, if nothing else is said."""
    if forced is None or (isinstance(forced, int) and not isinstance(forced, bool)):
        return (torch.arange(T, device=device) < (1 if forced is None else forced)).unsqueeze(1).expand(T, B)
    if isinstance(forced, Tensor) and forced.dtype == torch.bool:
        if forced.shape == (T,):
            return forced.unsqueeze(1).expand(T, B)
        mask = forced.transpose(0, 1) if batch_first and forced.dim() == 2 else forced
        if mask.shape == (T, B):
            return mask
    got = f"{forced.dtype} {tuple(forced.shape)}" if isinstance(forced, Tensor) else repr(forced)
    shape = "(B, T)" if batch_first else "(T, B)"
    msg = f"{name}: got forced {got}, expected true or false {shape} with T={T} and B={B}, or a number of first steps"
    raise AnyRNNError(msg)
