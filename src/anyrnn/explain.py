"""What runs where, and why."""

from __future__ import annotations

import functools
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from anyrnn import markup
from anyrnn.arguments import Options
from anyrnn.compiler.trace import trace
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.protocol import outside_inference_mode, shape_of
from anyrnn.records import innermost
from anyrnn.runtime.lock import LOCK
from anyrnn.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn
    from torch.nn.utils.rnn import PackedSequence

    from anyrnn.checks import Context, Extras, Lengths
    from anyrnn.compiler.graph import Graph
    from anyrnn.compiler.latex import Equations
    from anyrnn.protocol import State
    from anyrnn.runtime.anatomy import Anatomy
    from anyrnn.runtime.call import CallForm

_SHOWN = ("equations", "graph", "program", "passes", "backward", "ir", "asm")


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
        step: Records the step of the cell.
    """

    layer: int
    direction: str
    cell: str
    engine: str
    reason: str
    refused: Mapping[str, str]
    anatomy: Anatomy | None
    step: Callable[[], Graph] = field(repr=False, compare=False)

    @property
    def place(self) -> str:
        """The number of the layer, and its direction."""
        return f"layer {self.layer} {self.direction}"

    @functools.cached_property
    def equations(self) -> Equations | None:
        """The equations of a step, as LaTeX, with the cell's own names; None if it cannot be recorded."""
        from anyrnn.compiler.latex import equations  # noqa: PLC0415 - for which `import anyrnn` need not wait

        try:
            return equations(self.step())
        except AnyRNNError:
            return None

    def __str__(self) -> str:
        head = f"{self.place}: {self.cell} on engine '{self.engine}': {self.reason}"
        return head if self.anatomy is None else f"{head}\n{textwrap.indent(str(self.anatomy), '  ')}"


@dataclass(frozen=True, repr=False)
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
        return "\n\n".join(f"# {part.place}: {part.cell}, {self.show}\n{self._shown(part)}" for part in self.parts)

    def __repr__(self) -> str:
        """The text, too: that of the fields would hold every product of the compiler."""
        return str(self)

    def _shown(self, part: Part) -> str:
        """What `show` asks for, of a part."""
        if self.show == "equations":
            return str(part.equations or "(its step cannot be recorded)")
        return "(nothing is compiled)" if part.anatomy is None else str(getattr(part.anatomy, str(self.show)))

    def _repr_html_(self) -> str:
        """What a notebook shows: a table, the equations by MathJax, and what the compiler made, folded."""
        if self.show not in (None, "equations"):
            return markup.page(
                *(
                    markup.folded(f"{p.place}: {p.cell}, {self.show}", markup.code(self._shown(p)), True)
                    for p in self.parts
                )
            )
        if self.show == "equations":
            return markup.page(*self._equations())
        rows = [(part.place, part.cell, part.engine, part.reason) for part in self.parts]
        blocks = [
            markup.line("", self.layer),
            markup.table(("layer", "cell", "engine", "why"), rows),
            *self._equations(),
        ]
        for part in self.parts:
            if part.anatomy is not None:
                blocks.append(markup.folded(f"{part.place}: what runs when, and the loop", _folded(part.anatomy)))
            if part.refused:
                refused = markup.table(("engine", "why not"), list(part.refused.items()))
                blocks.append(markup.folded(f"{part.place}: engines that cannot", refused))
        return markup.page(*blocks)

    def _equations(self) -> Iterator[str]:
        """The equations of the parts; once for those that have the same."""
        same: dict[tuple[str, tuple[str, ...] | None], list[Part]] = {}
        for part in self.parts:
            lines = None if part.equations is None else part.equations.lines
            same.setdefault((part.cell, lines), []).append(part)
        for (cell, lines), parts in same.items():
            head = f"{', '.join(part.place for part in parts)}: {cell}"
            if lines is None:
                yield markup.line(f"{head}: its step cannot be recorded, so there are no equations")
            else:
                yield markup.folded(head, markup.display(lines) + "".join(map(_symbols, parts)), is_open=True)


def _symbols(part: Part) -> str:
    """What the symbols in the equations of a part stand for."""
    if part.equations is None or not part.equations.symbols:
        return ""
    return markup.folded(f"{part.place}: the parameters", markup.meanings(part.equations.symbols))


def _folded(anatomy: Anatomy) -> str:
    """The parts of a cell, and its program."""
    return markup.code(str(anatomy)) + markup.folded("the loop program", markup.code(anatomy.program))


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
        show: Print one thing only: "equations" (of a step, as LaTeX), or a product of the compiler: "graph" (the
            recorded step), "program" (the loop, with the cell's own names), "passes" (the loop after each pass),
            "backward" (the loop of the backward pass), "ir" (LLVM's) or "asm" (for this processor).

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
        record = functools.partial(_recorded, *layer.recorded())
        part = Part(0, "forward", name, layer.engine, layer.reason, layer.refused, anatomy, record)
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
            record = functools.partial(_recorded, call.cell, call.form)
            parts.append(
                Part(k, direction, cell, engine.name, choice.reason, choice.refused, engine.anatomy(call), record)
            )
        if k + 1 < layer.num_layers:  # only its shape matters from here on
            shape = shape_of(layer._input_width(k + 1))
            inner = inner.new_empty(()).expand(*inner.shape[:2], *shape)
    return Explanation(type(layer).__name__, tuple(parts), show)


def _recorded(cell: nn.Module, form: CallForm) -> Graph:
    """Record the step of a cell for calls of a form."""
    with LOCK, outside_inference_mode(), torch.enable_grad():
        return trace(cell, form.signature, form.x_shape, form.dtype, extras=form.extras)
