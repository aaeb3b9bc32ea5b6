"""The style of the figures, labels on lines, and what all of them need of matplotlib."""

from __future__ import annotations

import io
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from anyrnn.layers import Layer

#: Blue, vermilion and green of Okabe and Ito's palette, a purple and black: told apart by the colour-blind, and each at
#: least 3:1 against white. A sixth line is dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8A2A82", "#1A1A1A")

DASHES = ("-", "--", ":")  # of the lines after those of all colours

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
    "axes.prop_cycle": f"cycler(linestyle={list(DASHES)}) * cycler(color={list(COLOURS)})",
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
PADDED, GREY = "#D9D9D9", "#6E6E6E"
_LINE = 1.25  # the height of a line of text, in font sizes
WIDE, HALF = 48, 22  # characters of a title over a panel, and over one of two side by side


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
    figure = root_of(axes.get_figure())
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
    figure = root_of(axes.get_figure())
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


def whole_numbers(count: int) -> MaxNLocator:
    """At most so many ticks, at whole numbers."""
    return MaxNLocator(count, integer=True, steps=[1, 2, 5, 10])


def number_steps(axes: Axes, count: int, first: int = 0) -> None:
    """Number so many steps along an axis."""
    if count <= 5:
        axes.set_xticks(range(first, first + count))
    else:
        axes.xaxis.set_major_locator(whole_numbers(6))


def titles_of(count: int, layer: Layer | None) -> list[str]:
    """What to call the layers and directions."""
    if layer is None or not layer.bidirectional:
        return [f"layer {k}" for k in range(count)] if layer is not None else [f"cell {k}" for k in range(count)]
    return [f"layer {k // 2} {('forward', 'backward')[k % 2]}" for k in range(count)]


def wrapped(text: str, width: int) -> str:
    """A text in lines, broken at blanks and behind underscores."""
    return "\n".join(textwrap.wrap(text.replace("_", "_ "), width)).replace("_ ", "_")


def style_for(given: object) -> Any:
    """The style for a figure of our own; what is given has one."""
    return rc_context(STYLE if given is None else {})


def figure_for(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    """The figure that is given, or a new one of this size."""
    return _Drawing(figsize=size, layout="constrained") if figure is None else figure


def root_of(figure: Figure | SubFigure | None) -> Figure:
    """The whole figure that something is part of."""
    while isinstance(figure, SubFigure):
        figure = figure.figure  # get_figure(root=True), from matplotlib 3.10 on
    assert figure is not None
    return figure
