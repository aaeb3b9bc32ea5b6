"""report.html of forecasts: which network forecasts best, how far ahead, and what its forecasts look like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from anyrnn.workbench import charts
from anyrnn.workbench.downloads import curves, with_downloads
from anyrnn.workbench.forecast.metrics import METRICS
from anyrnn.workbench.report import page

Array = NDArray[np.float64]

_WIDTH, _HEIGHT = 520, 220


@dataclass(frozen=True)
class Example:
    """A forecast to look at.

    Attributes:
        title: What it is.
        first: The first step that is shown.
        origin: Where the forecast starts.
        y: The values from `first` to the end of the forecast.
        said: The forecast (h,).
        low, high: Its lowest and highest quantile (h,).
    """

    title: str
    first: int
    origin: int
    y: Array
    said: Array
    low: Array
    high: Array


def render(
    results: Mapping[str, Any], answer: str, examples: Sequence[Example], hardest: Sequence[tuple[str, float, float]]
) -> str:
    """Write the report as one self-contained HTML page.

    Args:
        results: The dictionary of results.json.
        answer: The answer in a sentence.
        examples: Forecasts of the best network.
        hardest: Of the series that it forecasts worst the id, its mean absolute error, and that of the first baseline.
    """
    models = sorted(results["models"], key=lambda model: model["score_mean"])
    metric = results["metric"]["name"]
    known = [metric, *(name for name in METRICS if name != metric and name in models[0]["runs"][0]["scores"])]
    levels = results["settings"]["quantiles"]
    return page("forecast_report.html.j2").render(
        results=results,
        answer=answer,
        models=models,
        metrics=known,
        meanings=METRICS,
        steps=_steps(models, results["baselines"]),
        train=_curves(models, "train_loss", "Training loss by epoch, a line for each network"),
        validation=_curves(models, "validation_loss", "Validation loss by epoch, a line for each network"),
        examples=[(each.title, _taken(each, f"forecast-{k}")) for k, each in enumerate(examples, 1)],
        band=f"{levels[0]:g} to {levels[-1]:g}" if len(levels) > 1 else "",
        hardest=hardest,
        palettes={"seq": charts.SEQUENTIAL, "div": charts.DIVERGING},
    )


def _steps(models: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> Markup:
    """The mean absolute error of each step of the forecast."""
    lines = []
    for colour, model in enumerate(models):
        runs = np.array([run["by_step"]["mae"] for run in model["runs"]])  # (seeds, h)
        parts = zip(runs.mean(0).tolist(), runs.min(0).tolist(), runs.max(0).tolist(), strict=True)
        points = tuple((k + 1, *each) for k, each in enumerate(parts))
        lines.append(charts.Line(model["title"], colour, points))
    worst = max(point[1] for line in lines for point in line.points)
    for k, each in enumerate(baselines):
        if min(each["by_step"]["mae"]) < 3 * worst:  # one far off would squeeze the others together
            points = tuple((step + 1, value, value, value) for step, value in enumerate(each["by_step"]["mae"]))
            lines.append(charts.Line(each["name"], len(models) + k, points))
    return curves(lines, "Mean absolute error of each step of the forecast", "error-by-step", "steps ahead")


def _curves(models: Sequence[Mapping[str, Any]], key: str, label: str) -> Markup:
    lines = []
    for colour, model in enumerate(models):
        by_epoch: dict[int, list[float]] = {}
        for run in model["runs"]:
            for point in run["history"]:
                by_epoch.setdefault(point["epoch"], []).append(point[key])
        points = tuple((e, sum(v) / len(v), min(v), max(v)) for e, v in sorted(by_epoch.items()))
        lines.append(charts.Line(model["title"], colour, points))
    return curves(lines, label, key.replace("_", "-"), "epochs")


def _taken(example: Example, name: str) -> Markup:
    """A drawing of a forecast with its numbers to take away."""
    missing = [("", "", "")] * (len(example.y) - len(example.said))
    said = missing + np.stack([example.said, example.low, example.high], axis=1).tolist()
    pairs = enumerate(zip(example.y.tolist(), said, strict=True))
    rows = [(example.first + k, y, *row) for k, (y, row) in pairs]
    return with_downloads(_fan(example), name, ("step", "value", "forecast", "lowest", "highest"), rows)


def _fan(example: Example) -> Markup:
    """Draw a forecast: what was known and what came as a line, what was said as another, its quantiles as a band."""
    left, right, top, bottom = 56, _WIDTH - 8, 10, _HEIGHT - 40
    every = np.concatenate([example.y, example.said, example.low, example.high])
    y = charts.Axis(*charts.span(every.tolist(), 0.06), bottom, top)
    last = example.first + len(example.y) - 1
    x = charts.Axis(example.first, max(last, example.first + 1), left, right)
    ahead = range(example.origin, example.origin + len(example.said))

    def path(steps: Sequence[int], values: Array) -> list[tuple[float, float]]:
        return [(x(step), y(value)) for step, value in zip(steps, values.tolist(), strict=True)]

    def line(points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)

    band = line([*path(ahead, example.high), *reversed(path(ahead, example.low))])
    tick = Markup('<path class="gridline" d="M{} {:.1f}H{}"/><text class="t end" x="{}" y="{:.1f}">{}</text>')
    parts = [tick.format(left, y(value), right, left - 6, y(value) + 4, name) for value, name in y.ticks(4)]
    below = Markup('<text class="t mid" x="{:.1f}" y="{}">{}</text>')
    parts += [below.format(x(v), bottom + 18, f"{v:,.0f}") for v, _ in x.ticks(5) if float(v).is_integer()]
    parts.append(below.format((left + right) / 2, bottom + 36, "step"))
    parts.append(Markup('<path class="base" d="M{0:.1f} {1}V{2}"/>').format(x(example.origin - 0.5), top, bottom))
    parts.append(Markup('<path class="s1 band" style="fill-opacity:.25" d="{}Z"/>').format(band))
    known = range(example.first, last + 1)
    parts.append(Markup('<path class="s5 line" d="{}"/>').format(line(path(known, example.y))))
    parts.append(Markup('<path class="s1 line" d="{}"/>').format(line(path(ahead, example.said))))
    return charts.svg(_WIDTH, _HEIGHT, f"{example.title}: known values, and the forecast beside what came", parts)
