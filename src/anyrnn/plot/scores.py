"""How networks compare: their scores and learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anyrnn.errors import AnyRNNError
from anyrnn.plot.style import (
    COLOURS,
    DASHES,
    GREY,
    HALF,
    figure_for,
    label_lines,
    number_steps,
    root_of,
    style_for,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from anyrnn.workbench import Results
    from anyrnn.workbench.verdict import Comparison, Standing


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
    names = [*map(_name, c.models), *(wrapped(name, HALF) for name, _ in c.baselines)]
    rows = len(names) * (0.2 + 0.19 * (1 + max(name.count("\n") for name in names)))
    with style_for(figure):
        figure = figure_for(figure, (6.0, 3.6 + rows))
        scores, curves = figure.subplots(2, 1, height_ratios=(rows + 0.6, 2.6))
        _draw_scores(scores, c, names)
        _draw_curves(curves, c)
    return root_of(figure)


def _scale(c: Comparison) -> tuple[float, str]:
    """By what a score is multiplied, and what to call it with its unit."""
    return (100.0, "test accuracy (%)") if c.metric == "accuracy" else (1.0, f"test {c.metric}")


def _name(model: Standing) -> str:
    """What stands beside the row of a network."""
    lost = sum(not math.isfinite(_number(run["score"])) for run in model.runs)
    return wrapped(model.title, HALF) + (f"\n({lost} of {len(model.runs)} diverged)" if lost else "")


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
            axes.axvline(x, color=GREY, linewidth=1.2, linestyle="--", zorder=1)
            axes.plot([x], [row], "D", color=GREY, markersize=5)
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
                color=GREY,
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
            axes.plot(
                epochs,
                [factor * y for y in mean],
                color=colour,
                linestyle=DASHES[k // len(COLOURS) % len(DASHES)],
                label=wrapped(model.title, 16),
                marker=marker,
            )
            axes.fill_between(epochs, [factor * y for y in low], [factor * y for y in high], color=colour, alpha=0.15)
    number_steps(axes, c.epochs, first=1)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    label_lines(axes)


def _colours(count: int) -> list[str]:
    """A colour for each; after the last one the first again."""
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def _number(value: float | None) -> float:
    """A number that JSON may have as null."""
    return math.nan if value is None else float(value)
