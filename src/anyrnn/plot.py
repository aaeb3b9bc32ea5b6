"""Figures: what the gates of a layer do over time, how far back gradients reach, how networks compare.

They lean on matplotlib, ``pip install 'anyrnn[plot]'``. Each function returns a figure that is not one of pyplot's: a
notebook shows it once, as the last expression of a cell, and a script calls its `savefig`.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError

try:
    from matplotlib import colors, rc_context
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] == "anyrnn":
        raise
    message = f"anyrnn.plot: {missing.name} is not installed, expected matplotlib: pip install 'anyrnn[plot]'"
    raise AnyRNNError(message) from missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

    from anyrnn.checks import Lengths
    from anyrnn.layers import Layer
    from anyrnn.workbench import Results
    from anyrnn.workbench.verdict import Comparison, Standing

#: Blue, vermilion and green of Okabe and Ito's palette, a purple and black: told apart by the colour-blind, and each at
#: least 3:1 against white. A sixth line is dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8A2A82", "#1A1A1A")

_DASHES = ("-", "--", ":")  # of the lines after those of all colours

#: For `matplotlib.pyplot.style.use`: what these functions draw with. A figure is 6 inches wide, so that on a telephone,
#: 390 pixels wide, its text has 10 pixels.
STYLE: dict[Any, Any] = {
    "figure.figsize": (6.0, 3.4),
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "svg.hashsalt": "anyrnn",  # the same figure is the same file
    "font.size": 12,
    "font.family": "sans-serif",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler(linestyle={list(_DASHES)}) * cycler(color={list(COLOURS)})",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "legend.frameon": False,
    "image.cmap": "Blues",
}

_LABEL = "anyrnn-label"  # marks the texts of `label_lines`
_GATE, _STATE = "Blues", "RdBu_r"  # low to high; negative, zero, positive
_PADDED, _GREY = "#D9D9D9", "#6E6E6E"
_LINE = 1.25  # the height of a line of text, in font sizes
_WIDE, _HALF = 48, 22  # characters of a title over a panel, and over one of two side by side
_FEW = 12  # as many units are numbered one by one


class _Drawing(Figure):
    """A figure that a notebook shows even if nothing has set up matplotlib for notebooks."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi="figure")
        return buffer.getvalue()


def label_lines(axes: Axes) -> None:
    """Write the label of each line at its right end in its colour, instead of a legend.

    Labels that would overlap are moved apart, and joined to their lines. Call it when all lines are drawn and the
    limits of the axes are set; a second call replaces the labels of the first.

    Args:
        axes: The axes. Lines without a label get none.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from anyrnn import plot
        >>> axes = Figure().add_subplot()
        >>> _ = axes.plot([1, 2, 3], label="LSTM"), axes.plot([1, 2, 2.99], label="GRU")
        >>> plot.label_lines(axes)
        >>> [text.get_text() for text in axes.texts]
        ['GRU', 'LSTM']
    """
    for old in [text for text in axes.texts if text.get_gid() == _LABEL]:
        old.remove()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout gives the axes their height
    ends = sorted(_ends(axes), key=lambda end: end.height)
    size = float(axes.xaxis.label.get_fontsize())
    rows = [size * _LINE * (1 + end.label.count("\n")) for end in ends]
    for end, height in zip(ends, _apart([end.height for end in ends], rows), strict=True):
        moved = height - end.height
        colour = end.line.get_color()
        joint = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(
            end.label, (end.x, end.y), xytext=(14, moved) if abs(moved) > 1 else (6, 0), textcoords="offset points",
            color=colour, size=size, va="center", annotation_clip=False, gid=_LABEL,
            arrowprops=joint if abs(moved) > 1 else None,
        )  # fmt: skip


@dataclass(frozen=True)
class _End:
    """The right end of a line: where its label goes, and how high that is on the page, in points."""

    line: Line2D
    label: str
    x: float
    y: float
    height: float


def _ends(axes: Axes) -> Iterator[_End]:
    left, right = sorted(axes.get_xlim())
    figure = axes.get_figure(root=True)
    assert figure is not None
    for line in axes.lines:
        label = str(line.get_label())
        if label.startswith("_") or not line.get_visible():
            continue
        points = [
            (float(x), float(y))
            for x, y in np.asarray(line.get_xydata(), dtype=float)
            if math.isfinite(x) and math.isfinite(y) and left <= x <= right
        ]
        if points:
            x, y = max(points, key=lambda point: point[0])
            pixel = float(line.get_transform().transform((x, y))[1])
            if math.isfinite(pixel):  # on a logarithmic axis there is no zero
                yield _End(line, label, x, y, pixel * 72 / figure.dpi)


def _apart(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Move ascending places apart so that what has these sizes does not overlap, each as little as possible."""
    groups: list[tuple[list[int], float]] = []  # what touches, and where its middle is
    for k, place in enumerate(wanted):
        members, middle = [k], place
        while groups:
            before, other = groups[-1]
            if middle - other >= (sum(sizes[m] for m in before) + sum(sizes[m] for m in members)) / 2:
                break
            groups.pop()
            members = before + members
            middle = _middle(members, wanted, sizes)
        groups.append((members, middle))
    return [place for members, middle in groups for place in _piled(members, middle, sizes)]


def _middle(members: Sequence[int], wanted: Sequence[float], sizes: Sequence[float]) -> float:
    """Where the middle of a pile is when its members are as near as can be to where they are wanted."""
    offsets = _piled(members, 0.0, sizes)
    return sum(wanted[m] - offset for m, offset in zip(members, offsets, strict=True)) / len(members)


def _piled(members: Sequence[int], middle: float, sizes: Sequence[float]) -> list[float]:
    """The places of what lies one on the other about a middle."""
    low, places = middle - sum(sizes[m] for m in members) / 2, []
    for m in members:
        places.append(low + sizes[m] / 2)
        low += sizes[m]
    return places


def gates(
    record: Mapping[str, Any],
    names: Sequence[str] | str | None = None,
    row: int = 0,
    units: Sequence[int] | slice | None = None,
    lengths: Lengths | None = None,
    *,
    layer: Layer | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Draw what gates and states of a layer do over time for one sequence: heat maps of time and unit.

    What lies between 0 and 1, as gates do, is drawn from white to blue on that scale. Anything else is drawn about 0:
    blue below it, red above, on one scale for all layers. Padded steps are grey and hatched.

    Args:
        record: The records of a call, ``layer(x, record=("f", "c"))[2]``; tensors (T, B, H), or (L*D, T, B, H) and
            tuples of several layers and directions. (T, H) is one sequence.
        names: Which of them; all if None.
        row: Which sequence of the batch.
        units: Which units; all if None.
        lengths: Those of the call, which say what is padding.
        layer: The layer that was called. It names layers and directions, and says of tensors of four dimensions what
            they are, and whether the batch comes first; without it T does.
        figure: Where to draw, in the present style; a new figure in `STYLE` if None.

    Returns:
        The figure.

    Raises:
        AnyRNNError: for no records, an unknown name, tensors of other shapes, and a row, units or lengths that they
            do not have.

    Example:
        >>> import torch, anyrnn
        >>> from anyrnn import plot
        >>> layer = anyrnn.LSTM(3, 8)
        >>> record = layer(torch.randn(20, 2, 3), record=("f", "c"))[2]
        >>> figure = plot.gates(record, units=[0, 3, 5])
        >>> [axes.get_title("left") for axes in figure.axes[:2]]
        ['f', 'c']
    """
    chosen = _chosen(record, names)
    panels = [_panels(name, record[name], row, units, lengths, layer) for name in chosen]
    columns = 2 if all(len(each) % 2 == 0 for each in panels) else 1
    width = _HALF if columns == 2 else _WIDE
    panels = [[replace(panel, title=_wrapped(panel.title, width)) for panel in each] for each in panels]
    heights = [len(each) // columns for each in panels]
    lines = sum(height * (1 + each[0].title.count("\n")) for each, height in zip(panels, heights, strict=True))
    with _style(figure):
        figure = _figure(figure, (6.0, 0.7 + 1.4 * sum(heights) + 0.2 * lines))
        grid = figure.subplots(sum(heights), columns, sharex=True, squeeze=False)
        first = 0
        for each, height in zip(panels, heights, strict=True):
            block = list(grid[first : first + height].flat)
            _draw_block(figure, block, each, columns)
            first += height
        for axes in grid[-1]:
            axes.set_xlabel("step")
    return _root(figure)


@dataclass(frozen=True)
class _Panel:
    """One heat map: what a name holds in a layer and direction, (T, units), for one sequence."""

    title: str
    values: NDArray[np.float64]
    units: Sequence[int]
    length: int


def _chosen(record: Mapping[str, Any], names: Sequence[str] | str | None) -> list[str]:
    """The names of the records to draw."""
    if not isinstance(record, Mapping):
        msg = (
            f"plot.gates: got a {type(record).__name__}, expected records by name: "
            f"output, state, record = layer(x, record=('f',))"
        )
        raise AnyRNNError(msg)
    chosen = list(record) if names is None else [names] if isinstance(names, str) else list(names)
    if not chosen:
        msg = "plot.gates: got no records, expected one or more: record=layer.names of a call lists what there is"
        raise AnyRNNError(msg)
    for name in chosen:
        if name not in record:
            msg = f"plot.gates: got names={name!r}, expected one of {', '.join(map(str, record))}"
            raise AnyRNNError(msg)
    return chosen


def _panels(
    name: str,
    value: object,
    row: int,
    units: Sequence[int] | slice | None,
    lengths: Lengths | None,
    layer: Layer | None,
) -> list[_Panel]:
    """What a name holds, one panel for each layer and direction that has it."""
    places = _places(name, value, layer)
    found = []
    for title, tensor in places:
        steps = _of_row(name, tensor, row, layer is not None and layer.batch_first)  # (T, H)
        numbers = _of_units(name, steps.shape[1], units)
        T = steps.shape[0]
        length = T if lengths is None else _length(lengths, row, T)
        label = name if len(places) == 1 else f"{name}, {title}"
        values = steps[:, numbers].detach().to("cpu", torch.float64).numpy()
        found.append(_Panel(label, values, numbers, length))
    return found


def _places(name: str, value: object, layer: Layer | None) -> list[tuple[str, Tensor]]:
    """The tensors of the layers and directions, with what to call these."""
    count = None if layer is None else layer.num_layers * layer.num_directions
    is_stacked = isinstance(value, Tensor) and (value.dim() == 4 if count is None else count > 1)
    parts: list[Any] = list(value) if isinstance(value, tuple | list) or is_stacked else [value]  # type: ignore[call-overload]
    if count is not None and len(parts) != count:
        msg = f"plot.gates: got {name!r} of {len(parts)} layers and directions, expected the layer's {count}"
        raise AnyRNNError(msg)
    titles = _titles(len(parts), layer)
    there = [(title, part) for title, part in zip(titles, parts, strict=True) if part is not None]
    for _, part in there:
        if not isinstance(part, Tensor) or part.dim() < 2 or (part.dim() > 3 and layer is None) or 0 in part.shape:
            got = f"a tensor {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            msg = (
                f"plot.gates: got {name!r}, {got}, expected a tensor (T, B, H), that of several layers and directions "
                f"(L*D, T, B, H), or a tuple of them, none of them empty; for what has more dimensions pass layer="
            )
            raise AnyRNNError(msg)
    return there


def _titles(count: int, layer: Layer | None) -> list[str]:
    """What to call the layers and directions."""
    if layer is None or not layer.bidirectional:
        return [f"layer {k}" for k in range(count)] if layer is not None else [f"cell {k}" for k in range(count)]
    return [f"layer {k // 2} {('forward', 'backward')[k % 2]}" for k in range(count)]


def _of_row(name: str, tensor: Tensor, row: int, batch_first: bool) -> Tensor:
    """One sequence, (T, features)."""
    if tensor.dim() == 2:
        if row != 0:
            msg = f"plot.gates: got row={row} and {name!r} of one sequence, {tuple(tensor.shape)}, expected row=0"
            raise AnyRNNError(msg)
        return tensor
    batch = 0 if batch_first else 1
    B = tensor.shape[batch]
    if not -B <= row < B:
        msg = f"plot.gates: got row={row} of {name!r}, which has {B} rows, expected one from 0 to {B - 1}"
        raise AnyRNNError(msg)
    return tensor.select(batch, row).flatten(1)


def _of_units(name: str, count: int, units: Sequence[int] | slice | None) -> list[int]:
    """The numbers of the units to draw."""
    if units is None or isinstance(units, slice):
        chosen = list(range(count))[units if units is not None else slice(None)]
    else:
        chosen = [int(unit) for unit in units]
    if not chosen or not all(0 <= unit < count for unit in chosen):
        msg = f"plot.gates: got units={units!r} of {name!r}, expected one or more from 0 to {count - 1}"
        raise AnyRNNError(msg)
    return chosen


def _length(lengths: Lengths, row: int, T: int) -> int:
    """The number of valid steps of a row."""
    counts = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
    if not -len(counts) <= row < len(counts) or not 0 <= counts[row] <= T:
        msg = f"plot.gates: got lengths={counts!r}, expected one from 0 to {T} for each row, and row={row} among them"
        raise AnyRNNError(msg)
    return int(counts[row])


def _draw_block(figure: Figure | SubFigure, block: Sequence[Axes], panels: Sequence[_Panel], columns: int) -> None:
    """Draw what one name holds: the panels on one scale, with its colour bar."""
    valid = [panel.values[: panel.length] for panel in panels]
    finite = [v for values in valid for v in (values[abs(values) < math.inf],) if v.size]
    low, high = (min(map(_least, finite)), max(map(_most, finite))) if finite else (0.0, 1.0)
    is_gate = low >= 0 and high <= 1
    limit = max(abs(low), abs(high)) or 1.0
    scale = colors.Normalize(0, 1) if is_gate else colors.Normalize(-limit, limit)
    for axes, panel in zip(block, panels, strict=True):
        T, count = panel.values.shape
        image = axes.imshow(
            np.ma.masked_invalid(panel.values.T), cmap=_GATE if is_gate else _STATE, norm=scale, aspect="auto",
            extent=(-0.5, T - 0.5, count - 0.5, -0.5),
        )  # fmt: skip
        axes.set_facecolor(_PADDED)  # behind what is no number
        axes.grid(visible=False)
        axes.set_title(panel.title, loc="left")
        _count(axes, T)
        _number_units(axes, panel.units)
        if panel.length < T:
            axes.axvspan(panel.length - 0.5, T - 0.5, facecolor=_PADDED, edgecolor="#A0A0A0", hatch="///", linewidth=0)
    for axes in block[::columns]:
        axes.set_ylabel("unit")
    bar = figure.colorbar(image, ax=block, pad=0.02, fraction=0.06, aspect=12)
    bar.outline.set_visible(False)
    bar.set_label("gate" if is_gate else "value")
    bar.ax.grid(visible=False)


def _wrapped(text: str, width: int) -> str:
    """A text in lines, broken at blanks and behind underscores."""
    return "\n".join(textwrap.wrap(text.replace("_", "_ "), width)).replace("_ ", "_")


def _least(values: NDArray[np.float64]) -> float:
    return float(values.min())


def _most(values: NDArray[np.float64]) -> float:
    return float(values.max())


def _whole(count: int) -> MaxNLocator:
    """At most so many ticks, at whole numbers."""
    return MaxNLocator(count, integer=True, steps=[1, 2, 5, 10])


def _count(axes: Axes, count: int, first: int = 0) -> None:
    """Number so many steps along an axis."""
    if count <= 5:
        axes.set_xticks(range(first, first + count))
    else:
        axes.xaxis.set_major_locator(_whole(6))


def _number_units(axes: Axes, units: Sequence[int]) -> None:
    """Give the rows of a heat map the numbers of the units."""
    count = len(units)
    if count <= _FEW and (count <= 5 or list(units) != list(range(count))):
        axes.set_yticks(range(count), [str(unit) for unit in units])
        return
    axes.yaxis.set_major_locator(_whole(4))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda place, _: str(units[int(place)]) if place == int(place) and 0 <= place < count else "")
    )


def gradient_flow(
    flow: object,
    labels: Sequence[str] | None = None,
    *,
    layer: Layer | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw how far back a gradient reaches: ``|d loss / d h_t|`` by the number of steps to the end, on a logarithmic axis.

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
    with _style(axes):
        axes = _figure(None, (6.0, 3.4)).subplots() if axes is None else axes
        axes.set_yscale("log")
        for name, (_, values) in zip(names, lines, strict=True):
            size = values.detach().to("cpu", torch.float64)
            size = torch.where(size > 0, size, math.nan)
            axes.plot(range(len(size)), size.numpy(), label=name or "_", marker="o" if len(size) == 1 else "")
        axes.set_xlabel("steps before the end")
        axes.set_ylabel("gradient, |dL/dh|")
        _count(axes, max(len(values) for _, values in lines))
        label_lines(axes)
    return _root(axes.get_figure())


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
        titles = _titles(len(flow), layer)
        yield from (((*parts, t) if len(flow) > 1 else parts, each) for t, each in zip(titles, flow, strict=True))
    else:
        got = f"a tensor {tuple(flow.shape)}" if isinstance(flow, Tensor) else f"a {type(flow).__name__}"
        msg = f"plot.gradient_flow: got {got}, expected what anyrnn.gradient_flow returns: (L*D, T), or a tuple of such"
        raise AnyRNNError(msg)


def compare(results: Results | Mapping[str, Any], *, figure: Figure | SubFigure | None = None) -> Figure:
    """Draw how networks compare: the score of each seed with their mean beside the baselines, and learning curves.

    The best one is at the top. A curve is the mean over the seeds, the band around it the lowest and the highest.

    Args:
        results: What `anyrnn.workbench.compare` returns, or the dictionary in the results.json of a run.
        figure: Where to draw, in the present style; a new figure in `STYLE` if None.

    Returns:
        The figure.

    Raises:
        AnyRNNError: for something else, and without the packages of `anyrnn[workbench]`.

    Example:
        >>> from anyrnn import plot, workbench
        >>> quick = workbench.Settings(hidden_size=8, epochs=2)
        >>> results = workbench.compare(workbench.load("japanese-vowels"), ["rnn", "gru"], seeds=2, settings=quick)
        >>> scores, curves = plot.compare(results).axes
        >>> scores.get_xlabel(), curves.get_xlabel()
        ('test accuracy (%)', 'epoch')
    """
    found = results if isinstance(results, Mapping) else getattr(results, "to_dict", dict)()
    if not isinstance(found, Mapping) or not found.get("models"):
        msg = (
            f"plot.compare: got a {type(results).__name__}, expected results of networks: "
            f"what anyrnn.workbench.compare returns, or the dictionary in a results.json"
        )
        raise AnyRNNError(msg)
    try:
        from anyrnn.workbench.verdict import Comparison  # noqa: PLC0415 - its packages are another extra
    except ModuleNotFoundError as missing:
        msg = f"plot.compare: {missing.name} is not installed: pip install 'anyrnn[workbench]'"
        raise AnyRNNError(msg) from missing
    c = Comparison(found)
    names = [*map(_name, c.models), *(_wrapped(name, _HALF) for name, _ in c.baselines)]
    rows = len(names) * (0.2 + 0.19 * (1 + max(name.count("\n") for name in names)))
    with _style(figure):
        figure = _figure(figure, (6.0, 3.6 + rows))
        scores, curves = figure.subplots(2, 1, height_ratios=(rows + 0.6, 2.6))
        _draw_scores(scores, c, names)
        _draw_curves(curves, c)
    return _root(figure)


def _scale(c: Comparison) -> tuple[float, str]:
    """By what a score is multiplied, and what to call it with its unit."""
    return (100.0, "test accuracy (%)") if c.metric == "accuracy" else (1.0, f"test {c.metric}")


def _name(model: Standing) -> str:
    """What stands beside the row of a network."""
    lost = sum(not math.isfinite(_number(run["score"])) for run in model.runs)
    return _wrapped(model.title, _HALF) + (f"\n({lost} of {len(model.runs)} diverged)" if lost else "")


def _draw_scores(axes: Axes, c: Comparison, names: Sequence[str]) -> None:
    """A row for each network, with a dot for each seed and a stroke for their mean; a line for each baseline."""
    factor, label = _scale(c)
    colours = _colours(len(c.models))
    for row, model in enumerate(c.models):
        values = [factor * number for run in model.runs if math.isfinite(number := _number(run["score"]))]
        axes.plot(values, [row] * len(values), "o", color=colours[row], alpha=0.75, linestyle="none")
        if math.isfinite(model.mean):
            axes.plot([factor * model.mean], [row], "|", color=colours[row], markersize=16, markeredgewidth=2.5)
    low, high = _room([factor * x for x in _scores(c)], [factor * score for _, score in c.baselines[:1]])
    axes.set_xlim(low, high)
    for k, (_, score) in enumerate(c.baselines):
        row, x = len(c.models) + k, factor * score
        if low <= x <= high:
            axes.axvline(x, color=_GREY, linewidth=1.2, linestyle="--", zorder=1)
            axes.plot([x], [row], "D", color=_GREY, markersize=5)
        elif math.isfinite(x):  # far off, where it would leave the networks no room
            text, side = (
                (f"\N{BLACK LEFT-POINTING SMALL TRIANGLE} {x:.4g}", 0.01)
                if x < low
                else (f"{x:.4g} \N{BLACK RIGHT-POINTING SMALL TRIANGLE}", 0.99)
            )
            axes.text(
                side,
                row,
                text,
                transform=axes.get_yaxis_transform(),
                color=_GREY,
                va="center",
                ha="left" if x < low else "right",
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)


def _scores(c: Comparison) -> list[float]:
    """The finite scores of all runs."""
    found = (_number(run["score"]) for model in c.models for run in model.runs)
    return [score for score in found if math.isfinite(score)]


def _room(scores: Sequence[float], baselines: Sequence[float]) -> tuple[float, float]:
    """The range of an axis for scores, and for baselines that are not far off."""
    inner = list(scores) or list(baselines) or [0.0]
    width = max(inner) - min(inner) or abs(inner[0]) or 1.0
    near = [b for b in baselines if min(inner) - 2 * width <= b <= max(inner) + 2 * width]
    low, high = min([*inner, *near]), max([*inner, *near])
    pad = 0.08 * ((high - low) or width)
    return low - pad, high + pad


def _draw_curves(axes: Axes, c: Comparison) -> None:
    """The learning curve of each network."""
    factor, label = _scale(c)
    for k, (model, colour) in enumerate(zip(c.models, _colours(len(c.models)), strict=True)):
        points = c.curve(model, "test_score")
        if points:
            epochs, mean, low, high = zip(*points, strict=True)
            marker = "o" if len(points) == 1 else ""
            axes.plot(epochs, [factor * y for y in mean], color=colour, linestyle=_DASHES[k // len(COLOURS) % len(_DASHES)], label=_wrapped(model.title, 16), marker=marker)
            axes.fill_between(epochs, [factor * y for y in low], [factor * y for y in high], color=colour, alpha=0.15)
    _count(axes, c.epochs, first=1)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    label_lines(axes)


def _colours(count: int) -> list[str]:
    """A colour for each; after the last one the first again."""
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def _number(value: float | None) -> float:
    """A number that JSON may have as null."""
    return math.nan if value is None else float(value)


def _style(given: object) -> Any:
    """The style for a figure of our own; what is given has one."""
    return rc_context(STYLE if given is None else {})


def _figure(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    return _Drawing(figsize=size, layout="constrained") if figure is None else figure


def _root(figure: Figure | SubFigure | None) -> Figure:
    while isinstance(figure, SubFigure):
        figure = figure.get_figure(root=True)
    assert figure is not None
    return figure
