"""report.html: the page a person opens after `anyrnn compare` to choose a recurrent network.

It reads results.json's dictionary, draws with charts.py and fills report.html.j2. The page holds everything it
shows: no script, no font, nothing from a network, and a policy in its head that forbids all three.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup
from torch import Tensor

from anyrnn.workbench import charts
from anyrnn.workbench.downloads import with_downloads
from anyrnn.workbench.next_steps import next_steps
from anyrnn.workbench.overview import overview
from anyrnn.workbench.residuals import residuals
from anyrnn.workbench.verdict import Comparison, answer, number, overfitting

_NBSP = "\N{NO-BREAK SPACE}"
_LISTED = 10  # entries of the list beside the confusion matrix
_MATRIX = 50  # classes of a confusion matrix whose cells are still large enough to be told apart
_CONFUSIONS = 50  # listed where there is no matrix
_NAMED = 12  # classes in a sentence

# What the letters of the equations stand for, and what to look for. Other names are shown as they are.
_GATES = {
    "i": ("input gate i", "near 1 it lets the candidate into the memory"),
    "f": ("forget gate f", "near 1 the memory is kept, near 0 it is dropped"),
    "g": ("candidate g", "what would be written into the memory"),
    "o": ("output gate o", "near 1 the memory is shown to the other units"),
    "c": ("cell state c", "the memory"),
    "r": ("reset gate r", "near 0 the candidate ignores the past"),
    "z": ("update gate z", "near 1 the unit stays as it is, near 0 it takes the candidate"),
    "n": ("candidate n", "what the unit would change to"),
    "h": ("output h", "what the unit tells the others and the next layer"),
}


@dataclass(frozen=True)
class Gates:
    """What the best model does over one sequence of the test part.

    Attributes:
        title: The model's title.
        sequence: The sequence's id.
        true: Its label, as text.
        predicted: The model's answer, as text.
        matrices: By name, what the units of the first layer do in the forward direction: (T, H) as a tensor or
            nested tuples, all of the same T. The letters of the cells' equations are explained on the page.
        ranges: By the same names, the lowest and highest possible value: (0, 1) for a sigmoid, (-1, 1) for tanh.
            A matrix that is not named here gets a range symmetric about 0 that holds its values.
        inputs: The sequence itself (T, I), drawn before the gates; None leaves it out.
    """

    title: str
    sequence: str
    true: str
    predicted: str
    matrices: Mapping[str, Tensor | Sequence[Sequence[float]]]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    inputs: Tensor | Sequence[Sequence[float]] | None = None

    @property
    def steps(self) -> int:
        """T, the length of the sequence."""
        return len(next(iter(self.matrices.values())))


def render(
    results: Mapping[str, Any], gates: Gates | None, flows: Mapping[str, Sequence[charts.Point]] | None = None
) -> str:
    """Write the report of a comparison as one self-contained HTML page.

    Args:
        results: The dictionary of results.json. A score or loss that is None or NaN is that of a diverged run.
        gates: What the best model does over one sequence; None leaves it out.
        flows: For each model by name, the size of the gradient of its last state at the state so many steps before.

    Returns:
        The page; the same results give the same text.
    """
    comparison = Comparison(results)
    return page("report.html.j2").render(
        **context(results, comparison),
        recalls=_recalls(comparison),
        unrecognised=_unrecognised(comparison),
        gates=gates,
        flow=_flow(comparison, flows or {}),
        panels=_panels(gates, comparison.features) if gates else (),
    )


def context(results: Mapping[str, Any], comparison: Comparison) -> dict[str, object]:
    """What the pages of all tasks that networks are compared on show: the answer, the table, curves, mistakes."""
    rows, scale = _rows(comparison)
    return {
        "results": results,
        "comparison": comparison,
        "answer": answer(comparison),
        "notes": _notes(comparison),
        "steps": next_steps(results, comparison),
        "rows": rows,
        "scale": scale,
        "tie": _tie(comparison),
        "loss": _curves(comparison, "train_loss"),
        "validation": _curves(comparison, "validation_score") if comparison.validated else None,
        "score": _curves(comparison, "test_score"),
        "scored": _scored(comparison),
        "mistakes": _mistakes(comparison),
        "metrics": _metrics(results, comparison),
        "overview": overview(results),
        "diverged": any(m.diverged for m in comparison.models),
        "palettes": {"seq": charts.SEQUENTIAL, "div": charts.DIVERGING},
    }


def page(name: str) -> Template:
    """The template of a page: a file of this package."""
    loader = FunctionLoader(lambda file: (resources.files("anyrnn.workbench") / file).read_text(encoding="utf-8"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def _notes(c: Comparison) -> list[str]:
    """Say what stands behind the answer: the baselines, and what went wrong."""
    notes = []
    if c.baselines:
        name, score = c.baselines[0]
        if not c.lead(c.best.mean, score) <= c.luck:  # true for NaN; else the answer has said it
            notes.append(f"The best baseline, {name}, reaches {c.score(score)}.")
    if len(c.seeds) == 1:
        notes.append("Each network was trained once, so how much its score varies with the seed is not known.")
    notes += overfitting(c)
    late = [(m, *c.peak(m)) for m in c.models if not c.validated]
    late = [(m, epoch, lead) for m, epoch, lead in late if lead > c.luck]
    if late:
        model, epoch, lead = max(late, key=lambda peak: peak[2])
        notes.append(
            f"{model.title} was {c.score.gap(lead)} better after epoch {epoch} than at the end, which points to "
            "overfitting: fewer epochs may do better. To know, try it on sequences that are not in this test part."
        )
    if c.unfinished:
        notes.append(f"The comparison was interrupted before {', '.join(c.unfinished)} had all runs.")
    for model in c.models:
        if model.diverged:
            runs = f"{len(model.diverged)} of {len(model.runs)} runs" if len(model.runs) > 1 else "its only run"
            where = ", ".join(
                f"seed {seed} in epoch {epoch}" if epoch else f"seed {seed}" for seed, epoch in model.diverged.items()
            )
            notes.append(f"{model.title} diverged in {runs} ({where}): try a smaller learning rate.")
    return notes


def _tie(c: Comparison) -> str:
    """Say what counts as a tie."""
    if not math.isfinite(c.luck):
        return ""
    if c.luck_seeds > c.luck_test:
        why = "standard deviation over the seeds, the median over the networks"
    else:
        why = f"standard error of the best score over {c.drawn}"
    return (
        f"Shaded: a tie, or within the spread, for a gap of up to {c.score.gap(c.luck)} may be luck (twice the {why})."
    )


def _rows(c: Comparison) -> tuple[list[dict[str, object]], Markup]:
    """Give the table, best first, baselines among the models, and the scale under its strips of dots."""
    scores = [number(run["score"]) for m in c.models for run in m.runs]
    lines = [score for _, score in c.baselines if math.isfinite(score)]
    x = charts.strip_axis([s for s in scores if math.isfinite(s)], lines, percent=c.score.percent)
    worst = c.best.mean - c.sign * c.luck
    back = charts.strip_background(x, (c.best.mean, worst) if math.isfinite(worst) else (x.low, x.low), lines)
    rows: list[tuple[float, dict[str, object]]] = []
    for m in c.models:
        dots = [(f"seed {run['seed']}: {c.score(number(run['score']))}", number(run["score"])) for run in m.runs]
        row = {
            "epochs": ", ".join(str(run["epoch"]) for run in m.runs) if c.validated else "",
            "title": m.title,
            "layer": m.layer,
            "colour": m.colour,
            "mark": c.mark(m.name),
            "diverged": f"{len(m.diverged)} of {len(m.runs)} diverged" if m.diverged else "",
            "score": c.score(m.mean),
            "spread": c.score.spread(m.std) if math.isfinite(m.std) else "",
            "strip": charts.strip(back, x, m.colour, dots, m.mean, f"{m.title}, " + ", ".join(t for t, _ in dots)),
            "parameters": f"{m.parameters:,}",
            "seconds": _cost(m.seconds),
            "step": _cost(m.step),
        }
        rows.append((m.mean, row))
    for name, score in c.baselines:
        label = f"{name}: {c.score(score)}"
        strip = charts.strip(back, x, None, [(label, score)], math.nan, label)
        rows.append((score, {"title": name, "colour": None, "score": c.score(score), "strip": strip}))
    return [row for _, row in sorted(rows, key=lambda row: c.rank(row[0]))], charts.strip_ticks(x)


def _curves(c: Comparison, key: str) -> Markup:
    """Draw a learning curve of every model: over its runs whose value is finite, their mean and range."""
    lines = [
        charts.Line(m.title, m.colour, c.curve(m, key), c.chosen(m, key), is_cut=bool(m.diverged)) for m in c.models
    ]
    if key == "train_loss":
        beside = [charts.Line(m.title, m.colour, c.curve(m, "validation_loss"), is_beside=True) for m in c.models]
        chart = charts.curves([*lines, *beside], "Loss by epoch, a line for each model", log=True)
        parts = {"training": lines, "validation": beside}
    else:
        part = "test" if key == "test_score" else "validation"
        label = f"Score on the {part} part by epoch, a line for each model"
        chart = charts.curves(lines, label, best=max if c.sign > 0 else min, percent=c.score.percent)
        parts = {part: lines}
    rows = [(line.title, part, *point) for part, drawn in parts.items() for line in drawn for point in line.points]
    header = ("network", "part", "epoch", "mean", "lowest", "highest")
    return with_downloads(chart, key.replace("_", "-"), header, rows)


def _flow(c: Comparison, flows: Mapping[str, Sequence[charts.Point]]) -> dict[str, object] | None:
    """Draw how far back the gradient reaches, and say after how many steps a thousandth is left."""
    found = [(m, tuple(flows[m.name])) for m in c.models if len(flows.get(m.name, ())) > 1]
    if not found:
        return None
    lines = [charts.Line(m.title, m.colour, points) for m, points in found]
    lost = []
    for model, points in found:
        small = next((lag for lag, value, *_ in points if value < points[0][1] / 1000), None)
        lost.append(f"{model.title}: {'not within these steps' if small is None else small}")
    label = "Size of the gradient by the number of steps before the last one, a line for each model"
    chart = charts.curves(lines, label, log=True, along="steps before the last")
    rows = [(line.title, *point) for line in lines for point in line.points]
    header = ("network", "steps before the last", "mean", "lowest", "highest")
    return {"chart": with_downloads(chart, "gradient", header, rows), "lost": "; ".join(lost)}


def _scored(c: Comparison) -> int:
    """After how many epochs the test part was scored; 0 if after each."""
    run = c.best.runs[0]["history"]
    scored = sum(point["test_score"] is not None for point in run)
    return scored if 0 < scored < len(run) else 0


def _metrics(results: Mapping[str, Any], c: Comparison) -> dict[str, object] | None:
    """Give every score of every network and baseline, as a table; nothing of an older run, which had one."""
    found = {each["name"]: each.get("scores") or {} for each in (*results["models"], *results["baselines"])}
    names = list(found[c.best.name])
    if len(names) < 2:
        return None
    rows = [(m.title, found[m.name]) for m in c.models] + [(name, found[name]) for name, _ in c.baselines]
    cells = [(title, [_any_score(c, name, number(own.get(name))) for name in names]) for title, own in rows]
    return {"names": names, "rows": cells}


def _any_score(c: Comparison, name: str, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}{_NBSP}%" if c.in_percent(name) else f"{value:.4g}"


def _right(c: Comparison) -> list[tuple[float, int, int]]:
    """Give of each class of the test part the share that the best network recognises, its size, its place.

    Worst first, and of classes that are as bad the largest. Nothing if every network diverged.
    """
    if c.classes is None or not math.isfinite(c.best.mean):
        return []
    total, right = Counter(c.targets), Counter[float]()
    for run in c.best.runs:
        right.update(true for true, got in zip(c.targets, run["predictions"], strict=True) if true == got)
    shares = [(right[k] / (total[k] * len(c.best.runs)), total[k], k) for k in range(len(c.classes)) if total[k]]
    return sorted(shares, key=lambda each: (each[0], -each[1], each[2]))


def _recalls(c: Comparison) -> list[tuple[str, int, str, bool]]:
    """Give of each class its number of test sequences, the share recognised, and whether that is none; worst first."""
    names = c.classes or ()
    return [(names[k], total, f"{100 * share:.1f}{_NBSP}%", not share) for share, total, k in _right(c)]


def _unrecognised(c: Comparison) -> list[str]:
    """Say which classes the best network never recognises, and of which nothing is known."""
    found, names = _right(c), c.classes or ()
    if not found:
        return []
    runs = f"in any of the {len(c.best.runs)} runs" if len(c.best.runs) > 1 else "in its run"
    said = []
    never = [names[k] for share, _, k in found if not share]
    if never:
        said.append(f"Never recognised {runs}: {_named(never)} ({len(never)} of {len(found)} classes).")
    known = {k for *_, k in found}
    absent = [name for k, name in enumerate(names) if k not in known]
    if absent:
        said.append(f"Not in the test part, so nothing is known of how it does on: {_named(absent)}.")
    return said


def _named(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _mistakes(c: Comparison) -> dict[str, object] | None:
    if not math.isfinite(c.best.mean):
        return None
    return _confusion(c, c.classes) if c.classes else residuals(c)


def _confusion(c: Comparison, names: Sequence[str]) -> dict[str, object]:
    """Give the confusion matrix of the best model over all its runs, and its most frequent confusions.

    More classes than the cells of a matrix have room for get a longer list in its place.
    """
    runs = c.best.runs
    pairs = Counter((int(true), int(p)) for run in runs for true, p in zip(c.targets, run["predictions"], strict=True))
    wrong = sorted((-n, true, p) for (true, p), n in pairs.items() if true != p)
    is_drawn = len(names) <= _MATRIX
    counts = [[pairs[row, column] for column in range(len(names))] for row in range(len(names))] if is_drawn else []
    return {
        "chart": with_downloads(
            charts.confusion(counts, names),
            "confusion",
            ("true \\ predicted", *names),
            [(name, *row) for name, row in zip(names, counts, strict=True)],
        )
        if is_drawn
        else None,
        "wide": len(names) > 20,
        "wrong": -sum(n for n, _, _ in wrong),
        "total": len(runs) * len(c.targets),
        "kinds": len(wrong),
        "list": [(names[true], names[p], -n) for n, true, p in wrong[: _LISTED if is_drawn else _CONFUSIONS]],
    }


def _panels(gates: Gates, features: Sequence[str]) -> list[dict[str, object]]:
    """Give a heat map for the sequence and for each gate; a row is the same unit in all of them."""
    panels = []
    if gates.inputs is not None:
        values = torch.as_tensor(gates.inputs).detach().cpu()
        hint = f"its {values.shape[1]} feature{'s' if values.shape[1] > 1 else ''}, scaled"
        panels.append(_panel("the sequence", hint, values, None, features))
    matrices = {name: torch.as_tensor(m).detach().cpu() for name, m in gates.matrices.items()}
    # An LSTM with a projection has outputs of another width: they are other units, in an order of their own.
    widths = {m.shape[1] for m in matrices.values()}
    alike = {H: charts.order([m for m in matrices.values() if m.shape[1] == H]) for H in widths}
    for name, values in matrices.items():
        title, hint = _GATES.get(name, (name, ""))
        panels.append(_panel(title, hint, values[:, alike[values.shape[1]]], gates.ranges.get(name)))
    return panels


def _panel(
    title: str, hint: str, values: Tensor, limits: tuple[float, float] | None, rows: Sequence[str] = ()
) -> dict[str, object]:
    finite = values[values.isfinite()]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    low, high = limits or (-largest or -1.0, largest or 1.0)
    chart = with_downloads(
        charts.heat_map(values, low, high, f"{title}: value of every row at each step", rows),
        re.sub(r"\W+", "-", title).strip("-") or "gate",
    )
    return {
        "title": title,
        "hint": hint,
        "chart": chart,
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "palette": "div" if low else "seq",
    }


def _cost(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
