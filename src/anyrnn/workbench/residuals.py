"""What the report shows of predicted numbers: their errors as a picture, as scores, and the largest with their ids."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anyrnn.workbench import charts
from anyrnn.workbench.downloads import with_downloads
from anyrnn.workbench.metrics import NUMBER_METRICS
from anyrnn.workbench.verdict import Comparison, Score, number

_DOTS = 1500  # more dots than this hide each other, and each costs 150 bytes
_LISTED = 10
_DECIMALS = 9  # more are written as powers of ten


def residuals(c: Comparison) -> dict[str, object] | None:
    """Give the pictures of the best network's first run that did not diverge, and what all such runs say together."""
    runs = _finite_runs(c)
    if not runs:
        return None
    seed, predictions = runs[0]
    form = _form(c, [predicted for _, predicted in runs])
    points = list(zip(c.test_ids, c.targets, predictions, strict=True))
    shown = points[:: math.ceil(len(points) / _DOTS)]
    return {
        "chart": with_downloads(charts.scatter(shown, form), "predicted", ("id", "true", "predicted"), shown),
        "residuals": with_downloads(
            charts.residuals(shown, form),
            "errors",
            ("id", "predicted", "predicted - true"),
            [(id_, predicted, predicted - true) for id_, true, predicted in shown],
        ),
        "wide": False,
        "seed": seed,
        "shown": len(shown),
        "runs": len(runs),
        "scores": _scores(c, [predicted for _, predicted in runs], form),
        "list": _largest(c, [predicted for _, predicted in runs], form),
    }


def _finite_runs(c: Comparison) -> list[tuple[int, list[float]]]:
    """Of the best network the seed and the predictions of each run that did not diverge."""
    found = [(run["seed"], [number(p) for p in run["predictions"]]) for run in c.best.runs]
    return [(seed, predicted) for seed, predicted in found if all(map(math.isfinite, predicted))]


def _form(c: Comparison, runs: Sequence[Sequence[float]]) -> Score:
    """Writes targets and errors: as the score is written if it is one, else with decimals that suit the error."""
    if c.metric in ("rmse", "mae"):
        return c.score
    error = statistics.fmean(abs(p - t) for predicted in runs for p, t in zip(predicted, c.targets, strict=True))
    digits = 2 - math.floor(math.log10(error)) if error and math.isfinite(error) else 2
    return Score(percent=False, decimals=max(digits, 0) if abs(digits) <= _DECIMALS else None)


def _scores(c: Comparison, runs: Sequence[Sequence[float]], form: Score) -> list[tuple[str, str]]:
    """MAE and R2, and the bias, which tells whether all is predicted too high: means over the runs."""
    y = np.array(c.targets, dtype=np.float64)
    got = [np.array(predicted, dtype=np.float64) for predicted in runs]
    mae = statistics.fmean(NUMBER_METRICS["mae"].compute(y, p, None) for p in got)
    r2 = statistics.fmean(NUMBER_METRICS["r2"].compute(y, p, None) for p in got)
    bias = statistics.fmean(float(((p - y) / len(y)).sum()) for p in got)
    found = [("mean absolute error (mae)", form(mae)), ("mean error", f"{'+' if bias > 0 else ''}{form(bias)}")]
    return [*found, ("R²", f"{r2:.3f}")] if math.isfinite(r2) else found  # all truths the same: there is none


def _largest(c: Comparison, runs: Sequence[Sequence[float]], form: Score) -> list[Mapping[str, Any]]:
    """The test sequences whose error is largest over the runs: of one run it may be the luck of its seed."""
    found = [
        (statistics.fmean(abs(p - true) for p in predicted), id_, true, predicted)
        for id_, true, *predicted in zip(c.test_ids, c.targets, *runs, strict=True)
    ]
    found.sort(key=lambda each: -each[0])
    return [
        {
            "id": id_,
            "true": form(true),
            "predicted": form(statistics.fmean(predicted)),
            "range": f"{form(min(predicted))} to {form(max(predicted))}",
            "error": form(error),
        }
        for error, id_, true, predicted in found[:_LISTED]
    ]
