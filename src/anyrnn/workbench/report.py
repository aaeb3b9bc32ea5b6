"""report.html: the page a person opens after `anyrnn compare` to choose a recurrent network.

It reads results.json's dictionary, draws with charts.py and fills report.html.j2. The page holds everything it
shows: no script, no font, nothing from a network, and a policy in its head that forbids all three.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from anyrnn.workbench import charts

_NBSP = "\N{NO-BREAK SPACE}"
_DOTS = 1500  # more dots than this hide each other, and each costs 150 bytes
_LISTED = 10  # entries of the list beside the confusion matrix or the scatter

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
    "tanh(c)": ("tanh(c)", "the memory, squashed to between -1 and 1"),
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


def render(results: Mapping[str, object], gates: Gates | None) -> str:
    """Write the report of a comparison as one self-contained HTML page.

    Args:
        results: The dictionary of results.json. A score or loss that is None or NaN is that of a diverged run.
        gates: The gates of the best model over one sequence; None for a cell that does not name its gates.

    Returns:
        The page; the same results give the same text.
    """
    comparison = _Comparison(results)
    rows, scale = _rows(comparison)
    template = resources.files("anyrnn.workbench").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        results=results,
        comparison=comparison,
        answer=_answer(comparison),
        notes=_notes(comparison),
        rows=rows,
        scale=scale,
        tie=_tie(comparison),
        loss=_curves(comparison, "train_loss"),
        score=_curves(comparison, "test_score"),
        mistakes=_mistakes(comparison),
        diverged=any(m.diverged for m in comparison.models),
        gates=gates,
        panels=_panels(gates, comparison.features) if gates else (),
        palettes={"seq": charts.SEQUENTIAL, "div": charts.DIVERGING},
    )


@dataclass(frozen=True)
class _Score:
    """Writes a score: accuracies in percent, other metrics with decimals that suit the smallest of them."""

    percent: bool
    decimals: int

    def __call__(self, value: float) -> str:
        if not math.isfinite(value):
            return "–"
        return f"{100 * value:.{self.decimals}f}{_NBSP}%" if self.percent else f"{value:,.{self.decimals}f}"

    def gap(self, value: float) -> str:
        return f"{100 * value:.{self.decimals}f} points" if self.percent else f"{value:,.{self.decimals}f}"

    def spread(self, value: float) -> str:
        return f"{100 * value if self.percent else value:,.{self.decimals}f}"


@dataclass(frozen=True)
class _Model:
    """One entry of results["models"], with every number that is not known as NaN."""

    name: str
    title: str
    layer: str
    engines: tuple[str, ...]
    colour: int
    parameters: int
    mean: float
    std: float
    seconds: float
    step: float
    runs: tuple[Mapping[str, Any], ...]

    @property
    def diverged(self) -> dict[int, int]:
        """By seed, the first epoch whose training loss is not finite, 0 if only the score is not."""
        found = {}
        for run in self.runs:
            bad = [p["epoch"] for p in run["history"] if not math.isfinite(_number(p["train_loss"]))]
            if bad or not math.isfinite(_number(run["score"])):
                found[run["seed"]] = min(bad, default=0)
        return found


class _Comparison:
    """results.json's dictionary, read once: the models from best to worst, and who is tied with the best."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        dataset = results["dataset"]
        self.test_ids: list[str] = results["test_ids"]
        self.targets: list[float] = results["test_targets"]
        self.classes: list[str] | None = dataset["classes"]
        self.features: list[str] = dataset["features"]
        self.seeds: list[int] = results["seeds"]
        self.unfinished: list[str] = results.get("unfinished", [])
        self.sign = 1 if results["metric"]["higher_is_better"] else -1
        self.metric: str = results["metric"]["name"]
        self.models = sorted(
            (self._model(k, model) for k, model in enumerate(results["models"])), key=lambda m: self.rank(m.mean)
        )
        self.baselines = sorted(
            ((b["name"], _number(b["score"])) for b in results["baselines"]), key=lambda b: self.rank(b[1])
        )
        self.epochs = max(len(run["history"]) for m in self.models for run in m.runs)
        self.best = next(m for m in self.models if m.name == results["best"])
        self.luck_seeds, self.luck_test = self._luck()
        self.luck = max(self.luck_seeds, self.luck_test)
        self.ties = [
            m
            for m in self.models
            if m is not self.best and self.lead(self.best.mean, m.mean) <= self.luck  # false for NaN
        ]
        self.score = self._score()

    def _luck(self) -> tuple[float, float]:
        """Give the gap to the best that chance alone may make, by the seeds and by the choice of test sequences.

        One width for all, so that no network is tied while a better one is not: twice the standard deviation over
        the runs (the median over the networks, since that of two or three runs says little), and twice the standard
        error of the best network's score over the test sequences.
        """
        stds = [m.std for m in self.models if math.isfinite(m.std)]
        seeds = 2 * statistics.median(stds) if stds else 0.0
        N, score = len(self.targets), self.best.mean
        if N < 2 or not math.isfinite(score):
            return seeds, math.inf
        if self.metric == "accuracy":
            # Agresti and Coull's two more right and two more wrong: all of 20 sequences right is not without error.
            share = (score * N + 2) / (N + 4)
            return seeds, 2 * math.sqrt(share * (1 - share) / (N + 4))
        true = torch.tensor(self.targets, dtype=torch.float64)
        predicted = torch.tensor([run["predictions"] for run in self.best.runs], dtype=torch.float64)
        error = float((predicted - true).square().mean(0).std()) / math.sqrt(N)  # of the mean squared error
        return seeds, error / score if score else 0.0  # its root has an error of 1 / (2 rmse) of that; twice

    def lead(self, a: float, b: float) -> float:
        """Give how much better the score a is than b."""
        return self.sign * (a - b)

    def rank(self, score: float) -> tuple[bool, float]:
        """Give the key that sorts scores from best to worst, what is not known last."""
        return (not math.isfinite(score), -self.sign * score)

    def _score(self) -> _Score:
        if self.metric == "accuracy":
            return _Score(percent=True, decimals=1 if len(self.targets) < 2000 else 2)
        sizes = [
            abs(s) for s in (*(m.mean for m in self.models), *(s for _, s in self.baselines)) if math.isfinite(s) and s
        ]
        digits = 2 - math.floor(math.log10(min(sizes))) if sizes else 2
        return _Score(percent=False, decimals=min(max(digits, 0), 9))

    def _model(self, colour: int, model: Mapping[str, Any]) -> _Model:
        runs = model["runs"]
        return _Model(
            name=model["name"],
            title=model["title"],
            layer=model["layer"],
            engines=tuple(model.get("engines", ())),  # which an older run did not note
            colour=colour,
            parameters=model["parameters"],
            mean=_number(model["score_mean"]),
            std=_number(model["score_std"]),
            seconds=_number(model["train_seconds"]),
            step=_number(model["step_microseconds"]),
            runs=tuple(runs),
        )


def _answer(c: _Comparison) -> Markup:
    """Answer the question in one sentence that the numbers bear."""
    best = c.best
    if not math.isfinite(best.mean):
        return Markup("<strong>No network</strong> can be recommended: every one of them diverged.")
    score = c.score(best.mean) + (f"{_NBSP}±{_NBSP}{c.score.spread(best.std)}" if math.isfinite(best.std) else "")
    if c.metric == "accuracy":
        score = f"gets {score} of {len(c.targets):,} test sequences right"
    else:
        score = f"predicts {len(c.targets):,} test sequences with an {c.metric} of {score}"
    if c.baselines:
        name, baseline = c.baselines[0]
        lead = c.lead(best.mean, baseline)
        if lead < -c.luck:
            text = Markup("<strong>No network:</strong> the baseline “{}” wins with {}; the best network, {}, {}.")
            return text.format(name, c.score(baseline), best.title, score)
        if lead <= c.luck:
            text = Markup("<strong>{}</strong> {}, but that is a tie with the baseline “{}” ({}).")
            return text.format(best.title, score, name, c.score(baseline))
    others = [m for m in c.models if m is not best]
    if c.ties:
        tail = f", but {_listing(c)} within the spread{_cheaper(c)}"
    elif not others:
        tail = ""
    elif math.isfinite(others[0].mean):
        gap = c.score.gap(c.lead(best.mean, others[0].mean))
        tail = f"; {others[0].title} follows {gap} behind, more than the spread"
    else:
        tail = "; every other network had a run that diverged"
    return Markup("<strong>{}</strong> {}{}.").format(best.title, score, tail)


def _listing(c: _Comparison) -> str:
    names = [m.title for m in c.ties]
    if len(names) == len(c.models) - 1 and len(names) > 2:
        return f"all {len(c.models)} networks are"
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more are"
    return f"{' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)} {'are' if names[1:] else 'is'}"


def _cheaper(c: _Comparison) -> str:
    """Name the tied model that saves most, in the first of: time a step, training time, parameters."""
    for cost, saving in (("step", "faster at batch 1"), ("seconds", "faster to train"), ("parameters", "smaller")):
        cheap = min(c.ties, key=lambda m: getattr(m, cost) if math.isfinite(getattr(m, cost)) else math.inf)
        ratio = getattr(c.best, cost) / getattr(cheap, cost) if getattr(cheap, cost) else math.nan
        if ratio >= 1.2:
            it = cheap.title if len(c.ties) > 1 else "it"
            return f", and {it} is {ratio:.1f}× {saving}"
    return ""


def _notes(c: _Comparison) -> list[str]:
    """Say what stands behind the answer: the baselines, and what went wrong."""
    notes = []
    if c.baselines:
        name, score = c.baselines[0]
        if not c.lead(c.best.mean, score) <= c.luck:  # true for NaN; else the answer has said it
            notes.append(f"The best baseline, {name}, reaches {c.score(score)}.")
    if len(c.seeds) == 1:
        notes.append("Each network was trained once, so how much its score varies with the seed is not known.")
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


def _tie(c: _Comparison) -> str:
    """Say what counts as a tie."""
    if not math.isfinite(c.luck):
        return ""
    if c.luck_seeds > c.luck_test:
        why = "standard deviation over the seeds, the median over the networks"
    else:
        why = f"standard error of the best score over {len(c.targets):,} test sequences"
    return (
        f"Shaded: a tie, or within the spread, for a gap of up to {c.score.gap(c.luck)} may be luck (twice the {why})."
    )


def _rows(c: _Comparison) -> tuple[list[dict[str, object]], Markup]:
    """Give the table, best first, baselines among the models, and the scale under its strips of dots."""
    scores = [_number(run["score"]) for m in c.models for run in m.runs]
    lines = [score for _, score in c.baselines if math.isfinite(score)]
    x = charts.strip_axis([s for s in scores if math.isfinite(s)], lines, percent=c.score.percent)
    worst = c.best.mean - c.sign * c.luck
    back = charts.strip_background(x, (c.best.mean, worst) if math.isfinite(worst) else (x.low, x.low), lines)
    best = c.best if math.isfinite(c.best.mean) and len(c.models) > 1 else None
    rows: list[tuple[float, dict[str, object]]] = []
    for m in c.models:
        dots = [(f"seed {run['seed']}: {c.score(_number(run['score']))}", _number(run["score"])) for run in m.runs]
        row = {
            "title": m.title,
            "layer": m.layer,
            "colour": m.colour,
            "mark": "best" if m is best else "tie" if m in c.ties else "",
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


def _curves(c: _Comparison, key: str) -> Markup:
    """Draw a learning curve of every model: over its runs whose value is finite, their mean and range."""
    lines = []
    for m in c.models:
        by_epoch: dict[int, list[float]] = {}
        for run in m.runs:
            for point in run["history"]:
                by_epoch.setdefault(point["epoch"], []).append(_number(point[key]))
        points = [
            (epoch, statistics.fmean(finite), min(finite), max(finite))
            for epoch, values in sorted(by_epoch.items())
            if (finite := [v for v in values if math.isfinite(v)])
        ]
        lines.append(charts.Line(m.title, m.colour, tuple(points)))
    if key == "train_loss":
        return charts.curves(lines, "Training loss by epoch, a line for each model", log=True)
    label = "Score on the test part by epoch, a line for each model"
    return charts.curves(lines, label, zoom=True, percent=c.score.percent)


def _mistakes(c: _Comparison) -> dict[str, object] | None:
    if not math.isfinite(c.best.mean):
        return None
    return _confusion(c, c.classes) if c.classes else _scatter(c)


def _confusion(c: _Comparison, names: Sequence[str]) -> dict[str, object]:
    """Give the confusion matrix of the best model over all its runs, and its most frequent confusions."""
    runs = c.best.runs
    pairs = Counter((int(true), int(p)) for run in runs for true, p in zip(c.targets, run["predictions"], strict=True))
    counts = [[pairs[row, column] for column in range(len(names))] for row in range(len(names))]
    wrong = sorted((-n, true, p) for (true, p), n in pairs.items() if true != p)
    return {
        "chart": charts.confusion(counts, names),
        "wide": len(names) > 20,
        "wrong": -sum(n for n, _, _ in wrong),
        "total": len(runs) * len(c.targets),
        "list": [(names[true], names[p], -n) for n, true, p in wrong[:_LISTED]],
    }


def _scatter(c: _Comparison) -> dict[str, object]:
    """Give predicted against true of the best model's first run that did not diverge, and its largest errors."""
    run = next((r for r in c.best.runs if all(math.isfinite(_number(p)) for p in r["predictions"])), c.best.runs[0])
    points = [(i, t, _number(p)) for i, t, p in zip(c.test_ids, c.targets, run["predictions"], strict=True)]
    shown = points[:: math.ceil(len(points) / _DOTS)]
    worst = sorted((p for p in points if math.isfinite(p[2])), key=lambda p: -abs(p[2] - p[1]))[:_LISTED]
    return {
        "chart": charts.scatter(shown, c.score),
        "wide": False,
        "seed": run["seed"],
        "shown": len(shown),
        "list": [(i, c.score(t), c.score(p)) for i, t, p in worst],
    }


def _panels(gates: Gates, features: Sequence[str]) -> list[dict[str, object]]:
    """Give a heat map for the sequence and for each gate; a row is the same unit in all of them."""
    panels = []
    if gates.inputs is not None:
        values = torch.as_tensor(gates.inputs).detach().cpu()
        panels.append(_panel("the sequence", f"its {values.shape[1]} features, scaled", values, None, features))
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
    chart = charts.heat_map(values, low, high, f"{title}: value of every row at each step", rows)
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


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
