"""Gates and states over time, as heat maps of step and unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colors
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.plot.style import (
    HALF,
    PADDED,
    WIDE,
    figure_for,
    number_steps,
    root_of,
    style_for,
    titles_of,
    whole_numbers,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from anyrnn.checks import Lengths
    from anyrnn.layers import Layer

_GATE, _STATE = "Blues", "RdBu_r"  # low to high; negative, zero, positive
_FEW = 12  # as many units are numbered one by one


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
    width = HALF if columns == 2 else WIDE
    panels = [[replace(panel, title=wrapped(panel.title, width)) for panel in each] for each in panels]
    heights = [len(each) // columns for each in panels]
    lines = sum(height * (1 + each[0].title.count("\n")) for each, height in zip(panels, heights, strict=True))
    with style_for(figure):
        figure = figure_for(figure, (6.0, 0.7 + 1.4 * sum(heights) + 0.2 * lines))
        grid = figure.subplots(sum(heights), columns, sharex=True, squeeze=False)
        first = 0
        for each, height in zip(panels, heights, strict=True):
            block = list(grid[first : first + height].flat)
            _draw_block(figure, block, each, columns)
            first += height
        for axes in grid[-1]:
            axes.set_xlabel("step")
    return root_of(figure)


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
    titles = titles_of(len(parts), layer)
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
        axes.set_facecolor(PADDED)  # behind what is no number
        axes.grid(visible=False)
        axes.set_title(panel.title, loc="left")
        number_steps(axes, T)
        _number_units(axes, panel.units)
        if panel.length < T:
            axes.axvspan(panel.length - 0.5, T - 0.5, facecolor=PADDED, edgecolor="#A0A0A0", hatch="///", linewidth=0)
    for axes in block[::columns]:
        axes.set_ylabel("unit")
    bar = figure.colorbar(image, ax=block, pad=0.02, fraction=0.06, aspect=12)
    bar.outline.set_visible(False)
    bar.set_label("gate" if is_gate else "value")
    bar.ax.grid(visible=False)


def _least(values: NDArray[np.float64]) -> float:
    return float(values.min())


def _most(values: NDArray[np.float64]) -> float:
    return float(values.max())


def _number_units(axes: Axes, units: Sequence[int]) -> None:
    """Give the rows of a heat map the numbers of the units."""
    count = len(units)
    if count <= _FEW and (count <= 5 or list(units) != list(range(count))):
        axes.set_yticks(range(count), [str(unit) for unit in units])
        return
    axes.yaxis.set_major_locator(whole_numbers(4))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda place, _: str(units[int(place)]) if place == int(place) and 0 <= place < count else "")
    )
