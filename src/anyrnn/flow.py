"""How far back a gradient reaches: its size at each state of a sequence, by the number of steps to the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from anyrnn.arguments import Options
from anyrnn.checks import check_lengths
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import placement, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyrnn.checks import Context, Extras, Lengths
    from anyrnn.layers import Layer
    from anyrnn.protocol import State


def gradient_flow(
    layer: Layer,
    x: Tensor,
    state: State | None = None,
    *,
    lengths: Lengths | None = None,
    inputs: Extras | None = None,
    context: Context | None = None,
    loss: Callable[[Any, State], Tensor] | None = None,
) -> State:
    """Measure the gradient of a loss with respect to the states that lie ever farther from it: ``|d loss / d h_t|``.

    Where it falls by a factor each step, the layer cannot learn what is more than some steps apart; where it grows, the
    training diverges (Bengio, Simard and Frasconi, 1994, doi:10.1109/72.279181; Pascanu, Mikolov and Bengio, 2013,
    arXiv:1211.5063). What the layer limits or drops of a gradient is limited and dropped here.

    Args:
        layer: A layer of this package.
        x: The input, as for a call of the layer; not packed.
        state: The initial state, likewise.
        lengths: The number of valid steps of each row, likewise.
        inputs: Further arguments of the cells at each step, likewise.
        context: Those that are the same at every step, likewise.
        loss: A function of the output and the final state to a number. If None, the sum of the last layer's final
            state, of its first variable if there are several.

    Returns:
        The norm over the features of the gradient at the state after the step that lies so many steps before the end,
        0 the last one: (L*D, T), the mean over the rows that have such a step; NaN where none has. A tuple of these
        for a cell with several state variables. The backward direction ends at the first step. No parameter gets a
        gradient.

    Raises:
        AnyRNNError: for arguments that do not fit, and for a loss that is not one number or has no gradient.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.RNN(3, 16)
        >>> flow = anyrnn.gradient_flow(layer, torch.randn(50, 8, 3))
        >>> flow.shape
        torch.Size([1, 50])
        >>> bool(flow[0, 40] < 0.01 * flow[0, 0])  # vanished
        True
    """
    name = f"gradient_flow of {type(layer).__name__}"
    if isinstance(x, PackedSequence):
        msg = f"{name}: got a PackedSequence, expected x (T, B, ...) and lengths"
        raise AnyRNNError(msg)
    layer._settle(None)
    dims = 1 if layer.input_size is None else len(shape_of(layer.input_size))
    if x.dim() == dims + 1:  # one row
        T, B = x.shape[0], 1
    else:
        T, B = (x.shape[1], x.shape[0]) if layer.batch_first else (x.shape[0], x.shape[1])
    if T == 0 or B == 0:
        msg = f"{name}: got x of shape {tuple(x.shape)}, expected at least one step and one row"
        raise AnyRNNError(msg)
    places = [(k, d == 1) for k in range(layer.num_layers) for d in range(layer.num_directions)]
    like = placement(layer, x)
    probes = [
        tuple(like.new_zeros(T, B, *shape_of(size)).requires_grad_() for size in layer._signature(*place).state_sizes)
        for place in places
    ]
    with torch.enable_grad():
        output, final = layer._apply_layer(
            x.detach(), state, Options(lengths, inputs=inputs, context=context, probes=probes)
        )[:2]
        value = _last_of(layer, final).sum() if loss is None else loss(output, final)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            msg = f"{name}: the loss is {value!r}, expected one number with a gradient"
            raise AnyRNNError(msg)
        leaves = [probe for each in probes for probe in each]
        found = iter(torch.autograd.grad(value.sum(), leaves, materialize_grads=True))
    counts = check_lengths(name, lengths, T, B) if lengths is not None else None
    counts = torch.full((B,), T) if counts is None else counts
    by_place = [
        [_by_lag(next(found), counts, reverse) for _ in each] for each, (_, reverse) in zip(probes, places, strict=True)
    ]
    return layer._stack([tuple(flows) for flows in by_place], True, None)


def _last_of(layer: Layer, final: Any) -> Tensor:
    """The final state of the last layer, its first variable."""
    part = final if layer._is_alike else final[-1]
    first: Tensor = part if isinstance(part, Tensor) else part[0]
    return first[-layer.num_directions :]


def _by_lag(gradient: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
    """The mean norm (T,) of the gradients (T, B, ...) of states so many steps before each row's end."""
    T, B = gradient.shape[:2]
    norms = gradient.flatten(2).norm(dim=2)
    lags = torch.arange(T, device=norms.device).unsqueeze(1).expand(T, B)
    lengths = lengths.to(norms.device)
    steps = lags if reverse else (lengths - 1 - lags).clamp_min(0)
    there = lags < lengths
    return torch.where(there, norms.gather(0, steps), 0).sum(1) / there.sum(1)
