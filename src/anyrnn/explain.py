"""What runs where, and why."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyrnn.arguments import Options
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.protocol import shape_of
from anyrnn.records import innermost
from anyrnn.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

    from anyrnn.checks import Context, Extras, Lengths
    from anyrnn.protocol import State
    from anyrnn.runtime.anatomy import Anatomy

_SHOWN = ("graph", "program", "passes", "backward", "ir", "asm")


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
        anatomy: What the engine made of the cell: its four parts, the cost of a step, the program, the IR; None for
            an engine that takes a cell as it is.
    """

    layer: int
    direction: str
    cell: str
    engine: str
    reason: str
    refused: Mapping[str, str]
    anatomy: Anatomy | None

    def __str__(self) -> str:
        head = f"layer {self.layer} {self.direction}: {self.cell} on engine '{self.engine}': {self.reason}"
        return head if self.anatomy is None else f"{head}\n{textwrap.indent(str(self.anatomy), '  ')}"


@dataclass(frozen=True)
class Explanation:
    """How a call of a layer would run: one part for each layer and direction.

    Attributes:
        layer: The class of the layer.
        parts: The parts, in the order of the rows of the state.
        show: Which product of the compiler the text is to hold; None for the summary.
    """

    layer: str
    parts: tuple[Part, ...]
    show: str | None = None

    def __str__(self) -> str:
        if self.show is None:
            return "\n".join([self.layer, *(textwrap.indent(str(part), "  ") for part in self.parts)])
        shown = []
        for part in self.parts:
            text = "(nothing is compiled)" if part.anatomy is None else str(getattr(part.anatomy, self.show))
            shown.append(f"# layer {part.layer} {part.direction}: {part.cell}, {self.show}\n{text}")
        return "\n\n".join(shown)


def explain(
    layer: Layer | Stream,
    x: Tensor | PackedSequence | None = None,
    state: State | None = None,
    lengths: Lengths | None = None,
    *,
    inputs: Extras | None = None,
    context: Context | None = None,
    show: str | None = None,
) -> Explanation:
    """Say which engine would run each layer and direction of a call, why, and what it made of the cell.

    Args:
        layer: A layer of this package; or a stream, without further arguments but `show`.
        x: The input, as for the call.
        state: The initial state, as for the call.
        lengths: The lengths, as for the call.
        inputs: Further arguments of the cells, as for the call.
        context: Further arguments of the cells, as for the call.
        show: Print one product of the compiler: "graph" (the recorded step), "program" (the loop, with the cell's own
            names), "passes" (the loop after each pass), "backward" (the loop of the backward pass), "ir" (LLVM's) or
            "asm" (for this processor).

    Returns:
        A value object; printing it gives the text.

    Raises:
        AnyRNNError: for arguments that the call itself would refuse, for an unknown `show`, for something that is
            not a layer of this package, and if an engine asked for by name cannot run the call.

    Example:
        >>> import torch, anyrnn
        >>> print(anyrnn.explain(anyrnn.LSTM(3, 5), torch.randn(100, 2, 3)))
        LSTM
          layer 0 forward: LSTMCell on engine 'cpu': the fastest engine here that can run it
            once    t, t
            before  -
            loop    4 products with a matrix, 9 add, 3 sigmoid, 3 mul, 2 tanh; 1 stage
            after   -
            a step  405 operations and 92 bytes a row, 640 bytes of weights
    """
    if show is not None and show not in _SHOWN:
        msg = f"explain: got show={show!r}, expected one of {', '.join(_SHOWN)}"
        raise AnyRNNError(msg)
    if isinstance(layer, Stream):
        anatomy, name = layer.anatomy(), layer.cell_name
        part = Part(0, "forward", name, layer.engine, layer.reason, layer.refused, anatomy)
        return Explanation(repr(layer), (part,), show)
    if not isinstance(layer, Layer):
        msg = f"explain: got a {type(layer).__name__}, expected a layer of anyrnn, such as anyrnn.Recurrent(cell)"
        raise AnyRNNError(msg)
    if x is None:
        msg = f"explain: got no x for a {type(layer).__name__}, expected the input of a call"
        raise AnyRNNError(msg)
    parts = []
    given = layer._canonical(x, state, Options(lengths, inputs=inputs, context=context))
    inner = given.x
    for k in range(layer.num_layers):
        for choice, call in layer._calls(k, inner, given):
            direction = "backward" if call.reverse else "forward"
            cell = type(innermost(call.cell)).__name__
            engine = choice.engine
            parts.append(Part(k, direction, cell, engine.name, choice.reason, choice.refused, engine.anatomy(call)))
        if k + 1 < layer.num_layers:  # only its shape matters from here on
            shape = shape_of(layer._input_width(k + 1))
            inner = inner.new_empty(()).expand(*inner.shape[:2], *shape)
    return Explanation(type(layer).__name__, tuple(parts), show)
