"""report.html of a text: which network reads it best, what surprises it, and what it writes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from anyrnn.workbench import charts
from anyrnn.workbench.downloads import curves
from anyrnn.workbench.report import page

_LISTED = 12
_SHADES = 6  # of surprise


def render(
    results: Mapping[str, Any],
    answer: str,
    passage: Sequence[tuple[str, float | None]],
    samples: Mapping[float, str],
) -> str:
    """Write the report as one self-contained HTML page.

    Args:
        results: The dictionary of results.json.
        answer: The answer in a sentence.
        passage: The beginning of the test part, token by token, and how surprising each is to the best network, in
            nats; None for the first.
        samples: What the best network writes, by temperature.
    """
    models = sorted(results["models"], key=lambda model: model["score_mean"])
    baselines = sorted(results["baselines"], key=lambda baseline: baseline["score"])
    return page("text_report.html.j2").render(
        results=results,
        answer=answer,
        best=models[0],
        models=models,
        colours={model["name"]: k for k, model in enumerate(models)},
        baselines=baselines,
        train=_curves(models, "train_loss", "Training loss by epoch, a line for each network"),
        validation=_curves(models, "validation_loss", "Validation loss by epoch, a line for each network"),
        overfits=overfitting(models),
        passage=[(token, nats, _shade(nats)) for token, nats in passage],
        hardest=_hardest(passage),
        shades=range(_SHADES),
        samples=samples,
        nats=math.log(2),
        palettes={"seq": charts.SEQUENTIAL, "div": charts.DIVERGING},
    )


def _curves(models: Sequence[Mapping[str, Any]], key: str, label: str) -> Markup:
    """Learning curves in bits a token: of each epoch the mean over the runs that have it, and their range."""
    lines = []
    for colour, model in enumerate(models):
        by_epoch: dict[int, list[float]] = {}
        for run in model["runs"]:
            for point in run["history"]:
                by_epoch.setdefault(point["epoch"], []).append(point[key] / math.log(2))
        points = tuple((e, sum(v) / len(v), min(v), max(v)) for e, v in sorted(by_epoch.items()))
        lines.append(charts.Line(model["title"], colour, points))
    return curves(lines, label, key.replace("_", "-"), "epochs")


def overfitting(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of which networks the validation loss rose again while the training loss fell."""
    said = []
    for model in models:
        for run in model["runs"]:
            best, last = run["history"][run["epoch"] - 1], run["history"][-1]
            rise = (last["validation_loss"] - best["validation_loss"]) / math.log(2)
            if last["epoch"] > best["epoch"] and rise > 0.01 and last["train_loss"] < best["train_loss"]:
                said.append(
                    f"{model['title']} (seed {run['seed']}) overfits from epoch {run['epoch']} on: its validation loss "
                    f"rose by {rise:.2f} bits while the training loss fell. The weights are those of epoch "
                    f"{run['epoch']}; more text or more dropout may do better."
                )
                break
    return said


def _shade(nats: float | None) -> int:
    """How dark a token is drawn: a step for each bit, and the last one for all beyond."""
    return 0 if nats is None else min(_SHADES - 1, int(nats / math.log(2)))


def _hardest(passage: Sequence[tuple[str, float | None]]) -> list[tuple[str, str, str]]:
    """The most surprising tokens of a passage: what stood before, the token, its bits."""
    places = sorted((k for k, (_, nats) in enumerate(passage) if nats is not None), key=lambda k: -(passage[k][1] or 0))
    found = []
    for k in places[:_LISTED]:
        before = "".join(token for token, _ in passage[max(0, k - 30) : k])[-30:]
        found.append((_visible(before), _visible(passage[k][0]), f"{(passage[k][1] or 0) / math.log(2):.1f}"))
    return found


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace("\t", "→")
