"""The straight path of a call: one layer in one direction, plain tensors, nothing asked but output and final state.

For a few steps the time of a call is that of what leads to the kernel. Here is what `Layer._apply_layer`, the choice of
an engine and `CompiledEngine.run` come to in the most common case (for a cell that was refused before: the plain loop,
and a look at the cell only now and then), without the values that they hand to each other. Whatever is not plainly that
case is left to them, errors included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from anyrnn.engines import short
from anyrnn.engines.cpu.backend import CpuBackend
from anyrnn.engines.select import ENGINES, wanted_name
from anyrnn.engines.vendor import kernel_of
from anyrnn.protocol import placement
from anyrnn.runtime.call import Call, CallForm
from anyrnn.runtime.layout import layout
from anyrnn.runtime.parts import run_parts
from anyrnn.runtime.plans import is_at_rest, last_plan_of, let_rest, plan_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.protocol import Extra, Signature, Size, State


class Straight(Protocol):
    """What is read of a layer."""

    input_size: Size | None
    num_layers: int
    bidirectional: bool
    batch_first: bool
    learn_initial_state: bool

    def _cell(self, layer: int, reverse: bool) -> nn.Module: ...

    def _signature(self, layer: int, reverse: bool = False) -> Signature: ...

    def _settle(self, state: State | None, extras: Sequence[Extra] = (), rows: int | None = None) -> None: ...

    def _has_controls(self) -> bool: ...


_TYPES = frozenset({torch.float32, torch.float64})


def run(layer: Straight, x: object, state: State | None) -> tuple[Tensor, State] | None:
    """Run a call of a layer: output and final state, as `Layer._apply_layer` returns them; None where it is to run it.

    Args:
        layer: The layer; it is not called below torch.compile.
        x: The input of the call.
        state: The initial state of the call; None for zeros.
    """
    if layer.num_layers != 1 or layer.bidirectional or not short.is_plain(x, _TYPES) or x.dim() != 3:  # type: ignore[attr-defined]
        return None
    assert isinstance(x, Tensor)
    first, second, features = x.shape
    if layer.input_size != features or not (first and second) or not short.is_plain_context():
        return None
    wanted = wanted_name()
    if wanted not in ("auto", "cpu") or layer.learn_initial_state or layer._has_controls():
        return None
    T, B = (second, first) if layer.batch_first else (first, second)
    layer._settle(state, (), B)
    cell, signature = layer._cell(0, False), layer._signature(0)
    like = placement(layer)  # type: ignore[arg-type]
    if like.dtype is not x.dtype or not like.is_cpu or not signature.settled or signature.names is not None:
        return None
    if wanted == "auto" and signature.kind is tuple:
        done = short.run_cell(cell, x, state, layer.batch_first)
        if done is not None:
            return done
    last = last_plan_of(cell)  # to look at a cell takes as long as all else here, and is not done twice in vain
    if isinstance(last, str):
        if wanted != "auto" or kernel_of(cell) is not None:
            return None
    elif last is not None and last.direct is None:
        return None
    states = _states(signature, state, x, B)
    if states is None:
        return None
    form = CallForm(signature, (features,), x.dtype)
    refusal = last if isinstance(last, str) and is_at_rest(cell, form, T) else None
    plan = plan_of(cell, form) if refusal is None else refusal
    if layer.batch_first:
        x = x.transpose(0, 1)
    if isinstance(last, str) and isinstance(plan, str):
        if refusal is None:
            let_rest(cell, form)
        result = ENGINES["reference"].run(Call(cell, signature, x, tuple(states), None, False, state is None))
        (output,), finals = result.series, list(result.states)
    elif isinstance(plan, str) or plan.direct is None:
        return None
    else:
        batch = layout(T, B, None, False)
        (output,), finals = run_parts(plan, CpuBackend.host(), cell, batch, x, states, (), state is None)
    new = tuple([f.unsqueeze(0) for f in finals])
    return output.transpose(0, 1) if layer.batch_first else output, new[0] if signature.bare else new


def _states(signature: Signature, state: State | None, x: Tensor, B: int) -> list[Tensor] | None:
    """The initial states (B, ...); None if they are not plainly of the form of a call's."""
    shapes = [(B, s) if isinstance(s, int) else (B, *s) for s in signature.state_sizes]
    if any([0 in shape for shape in shapes]):  # noqa: C419 - a generator takes longer
        return None
    if state is None:
        return [x.new_zeros(shape) for shape in shapes] if signature.kind is tuple else None
    given: Any = (state,) if signature.bare else state
    if type(given) is not tuple or signature.kind is not tuple or len(given) != len(shapes):
        return None
    for tensor, shape in zip(given, shapes, strict=True):
        if not short.is_plain(tensor, _TYPES) or tensor.dtype is not x.dtype or tensor.shape != (1, *shape):
            return None
    return [tensor.unbind(0)[0] for tensor in given]
