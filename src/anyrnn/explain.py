"""What runs where, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

    from anyrnn.protocol import State
    from anyrnn.scan import Lengths


@dataclass(frozen=True)
class Part:
    """One layer in one direction.

    Attributes:
        layer: The number of the layer, from 0.
        direction: "forward" or "backward".
        cell: The class of the cell.
        engine: The name of the engine that runs it.
        reason: Why it is this engine.
        refused: Why the engines tried before cannot, by name.
    """

    layer: int
    direction: str
    cell: str
    engine: str
    reason: str
    refused: Mapping[str, str]

    def __str__(self) -> str:
        return f"layer {self.layer} {self.direction}: {self.cell} on engine '{self.engine}': {self.reason}"


@dataclass(frozen=True)
class Explanation:
    """How a call of a layer would run: one part for each layer and direction.

    Attributes:
        layer: The class of the layer.
        parts: The parts, in the order of the rows of the state.
    """

    layer: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return "\n".join([self.layer, *(f"  {part}" for part in self.parts)])


def explain(
    layer: Layer, x: Tensor | PackedSequence, state: State | None = None, lengths: Lengths | None = None
) -> Explanation:
    """Say which engine would run each layer and direction of a call, and why, without running it.

    Args:
        layer: A layer of this package.
        x: The input, as for the call.
        state: The initial state, as for the call.
        lengths: The lengths, as for the call.

    Returns:
        A value object; printing it gives the text.

    Raises:
        AnyRNNError: for arguments that the call itself would refuse, for something that is not a layer of this
            package, and if an engine asked for by name cannot run the call.

    Example:
        >>> import torch, anyrnn
        >>> print(anyrnn.explain(anyrnn.LSTM(3, 5), torch.randn(10, 2, 3)))
        LSTM
          layer 0 forward: LSTMCell on engine 'torch': the fastest engine here that can run it
    """
    if not isinstance(layer, Layer):
        msg = f"explain: got a {type(layer).__name__}, expected a layer of anyrnn, such as anyrnn.Recurrent(cell)"
        raise AnyRNNError(msg)
    parts = []
    inner, states, valid, _ = layer._canonical(x, state, lengths)
    for k in range(layer.num_layers):
        for choice, call in layer._calls(k, inner, states, valid):
            direction = "backward" if call.reverse else "forward"
            cell = type(call.cell).__name__
            parts.append(Part(k, direction, cell, choice.engine.name, choice.reason, choice.refused))
        width = layer.num_directions * layer._signature(k).output_size
        inner = inner.new_empty(()).expand(*inner.shape[:2], width)  # only its shape matters from here on
    return Explanation(type(layer).__name__, tuple(parts))
