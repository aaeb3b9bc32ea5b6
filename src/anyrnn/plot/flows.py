"""How far back gradients reach, as lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.plot.style import figure_for, label_lines, number_steps, root_of, style_for, titles_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from anyrnn.layers import Layer


def gradient_flow(
    flow: object,
    labels: Sequence[str] | None = None,
    *,
    layer: Layer | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw how far back a gradient reaches: ``|d loss / d h_t|`` by steps before the end, on a logarithmic axis.

    Args:
        flow: What `anyrnn.gradient_flow` returns: a tensor (L*D, T), or a tuple of them for several state variables or
            layers; or a dictionary of several of these by name, to compare networks. A single line (T,) will do.
        labels: A label for each line: network by network, variable by variable, layer by layer, direction by direction.
            If None, the names in the dictionary, and numbers for the rest.
        layer: The layer whose flow it is; it names layers and directions.
        axes: Where to draw, in the present style; a new figure in `STYLE` if None.

    Returns:
        The figure.

    Raises:
        AnyRNNError: for something else than such tensors, and for another number of labels than of lines.

    Example:
        >>> import torch, anyrnn
        >>> from anyrnn import plot
        >>> x = torch.randn(50, 8, 3)
        >>> layers = {"RNN": anyrnn.RNN(3, 16), "GRU": anyrnn.GRU(3, 16)}
        >>> figure = plot.gradient_flow({name: anyrnn.gradient_flow(layer, x) for name, layer in layers.items()})
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['RNN', 'GRU']
    """
    lines = list(_flows(flow, (), layer))
    if not lines:
        msg = "plot.gradient_flow: got nothing to draw, expected what anyrnn.gradient_flow returns"
        raise AnyRNNError(msg)
    if labels is not None and len(labels) != len(lines):
        msg = f"plot.gradient_flow: got {len(labels)} labels, expected {len(lines)}, one for each line"
        raise AnyRNNError(msg)
    names = [", ".join(parts) for parts, _ in lines] if labels is None else [str(label) for label in labels]
    with style_for(axes):
        axes = figure_for(None, (6.0, 3.4)).subplots() if axes is None else axes
        axes.set_yscale("log")
        for name, (_, values) in zip(names, lines, strict=True):
            size = values.detach().to("cpu", torch.float64)
            size = torch.where(size > 0, size, math.nan)
            axes.plot(range(len(size)), size.numpy(), label=name or "_", marker="o" if len(size) == 1 else "")
        axes.set_xlabel("steps before the end")
        axes.set_ylabel("gradient, |dL/dh|")
        number_steps(axes, max(len(values) for _, values in lines))
        label_lines(axes)
    return root_of(axes.get_figure())


def _flows(flow: object, parts: tuple[str, ...], layer: Layer | None) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The lines of a flow, each with the parts of its label."""
    if isinstance(flow, Mapping):
        for name, each in flow.items():
            yield from _flows(each, (*parts, str(name)), layer)
    elif isinstance(flow, tuple | list):
        for k, each in enumerate(flow):
            yield from _flows(each, (*parts, f"state {k}") if len(flow) > 1 else parts, layer)
    elif isinstance(flow, Tensor) and flow.dim() == 1 and len(flow):
        yield parts, flow
    elif isinstance(flow, Tensor) and flow.dim() == 2 and flow.numel():
        titles = titles_of(len(flow), layer)
        yield from (((*parts, t) if len(flow) > 1 else parts, each) for t, each in zip(titles, flow, strict=True))
    else:
        got = f"a tensor {tuple(flow.shape)}" if isinstance(flow, Tensor) else f"a {type(flow).__name__}"
        msg = f"plot.gradient_flow: got {got}, expected what anyrnn.gradient_flow returns: (L*D, T), or a tuple of such"
        raise AnyRNNError(msg)
