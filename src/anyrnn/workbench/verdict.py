"""Which network won, and whether that is more than luck: the one answer that the terminal and the report give.

It is read from the dictionary of results.json. A network is tied with the best, and the best with a baseline, where
the gap between them may come from the seeds or from the choice of the test sequences.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anyrnn.workbench.metrics import metric, spread

_NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Score:
    """Writes a score: accuracies in percent, other metrics with decimals that suit the smallest of them.

    Decimals of None are four digits, wherever they stand: for errors of 1e-30 or 1e30.
    """

    percent: bool
    decimals: int | None

    def __call__(self, value: float) -> str:
        """Write a score; a dash where there is none."""
        if not math.isfinite(value):
            return "–"
        return f"{self._digits(value)}{_NBSP}%" if self.percent else self._digits(value)

    def gap(self, value: float) -> str:
        """Write the difference of two scores."""
        return f"{self._digits(value)} points" if self.percent else self._digits(value)

    def spread(self, value: float) -> str:
        """Write what stands behind the ± of a score."""
        return self._digits(value)

    def _digits(self, value: float) -> str:
        if self.decimals is None:
            return f"{value:.4g}"
        return f"{100 * value:.{self.decimals}f}" if self.percent else f"{value:,.{self.decimals}f}"


@dataclass(frozen=True)
class Standing:
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
            bad = [p["epoch"] for p in run["history"] if not math.isfinite(number(p["train_loss"]))]
            if bad or not math.isfinite(number(run["score"])):
                found[run["seed"]] = min(bad, default=0)
        return found


class Comparison:
    """results.json's dictionary, read once: the models from best to worst, and who is tied with the best.

    Attributes:
        unit: What is scored.
        is_kept: Whether a run that was cut off can be resumed.
    """

    unit = "test sequences"
    is_kept = True

    def __init__(self, results: Mapping[str, Any]) -> None:
        dataset = results["dataset"]
        self.test_ids: list[str] = results["test_ids"]
        self.targets: list[float] = results["test_targets"]
        self.classes: list[str] | None = dataset["classes"]
        self.features: list[str] = dataset["features"]
        self.seeds: list[int] = results["seeds"]
        self.unfinished: list[str] = results.get("unfinished", [])
        self.validated = bool(dataset.get("validation"))  # which an older run had not
        self.sign = 1 if results["metric"]["higher_is_better"] else -1
        self.metric: str = results["metric"]["name"]
        self.percent: bool = results["metric"].get("percent", self.metric == "accuracy")  # as an older run had it
        self.test_groups: list[str] | None = results.get("test_groups")
        self.models = sorted(
            (self._model(k, model) for k, model in enumerate(results["models"])), key=lambda m: self.rank(m.mean)
        )
        self.baselines = sorted(
            ((b["name"], number(b["score"])) for b in results["baselines"]), key=lambda b: self.rank(b[1])
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

    @property
    def drawn(self) -> str:
        """Of what the test part might have been another choice."""
        return f"{len(self.targets):,} test sequences"

    def in_percent(self, name: str) -> bool:
        """Whether a metric is a share that is written in percent."""
        return metric(name, classes=self.classes is not None).percent

    def curve(self, model: Standing, key: str) -> tuple[tuple[int, float, float, float], ...]:
        """Give the learning curve of a model: epoch; mean, lowest and highest of its runs whose value is finite."""
        by_epoch: dict[int, list[float]] = {}
        for run in model.runs:
            for point in run["history"]:
                by_epoch.setdefault(point["epoch"], []).append(number(point.get(key)))
        return tuple(
            (epoch, statistics.fmean(finite), min(finite), max(finite))
            for epoch, values in sorted(by_epoch.items())
            if (finite := [v for v in values if math.isfinite(v)])
        )

    def chosen(self, model: Standing, key: str) -> tuple[tuple[int, float, str], ...]:
        """Give of each run the epoch that the validation part chose, the value of its curve there, and its seed."""
        if not self.validated:
            return ()
        points = [(run, point) for run in model.runs for point in run["history"] if point["epoch"] == run["epoch"]]
        return tuple(
            (run["epoch"], value, f"seed {run['seed']}")
            for run, point in points
            if math.isfinite(value := number(point.get(key)))
        )

    def decline(self, model: Standing) -> tuple[float, float]:
        """Give by how much the validation score fell after the chosen epoch, and how much of it may be luck.

        The mean over the runs, of both: the runs have the same validation part, so its luck is theirs together.
        """
        found = [(number(run.get("decline")), number(run.get("decline_luck"))) for run in model.runs]
        fell, luck = (statistics.fmean(values) for values in zip(*found, strict=True))
        return fell, luck

    def peak(self, model: Standing) -> tuple[int, float]:
        """Give the epoch after which a model's mean score was best, and by how much it led that of the last epoch."""
        points = self.curve(model, "test_score")
        if not points or model.diverged:
            return 0, math.nan
        epoch, best, *_ = max(points, key=lambda point: self.sign * point[1])
        return epoch, self.lead(best, points[-1][1])

    def _luck(self) -> tuple[float, float]:
        """Give the gap to the best that chance alone may make, by the seeds and by the choice of test sequences.

        One width for all, so that no network is tied while a better one is not: twice the standard deviation over
        the runs (the median over the networks, since that of two or three runs says little), and twice the standard
        error of the best network's score over the test sequences.
        """
        stds = [m.std for m in self.models if math.isfinite(m.std)]
        seeds = 2 * statistics.median(stds) if stds else 0.0
        if len(self.targets) < 2 or not math.isfinite(self.best.mean):
            return seeds, math.inf
        return seeds, self._luck_of_test(self.best.mean)

    def _luck_of_test(self, score: float) -> float:
        N = len(self.targets)
        if self.test_groups is not None or self.metric not in {"accuracy", "rmse"}:
            return self._twice(self._drawn_error())
        if self.metric == "accuracy":
            # Agresti and Coull's two more right and two more wrong: all of 20 sequences right is not without error.
            share = (score * N + 2) / (N + 4)
            return 2 * math.sqrt(share * (1 - share) / (N + 4))
        true = torch.tensor(self.targets, dtype=torch.float64)
        predicted = torch.tensor([run["predictions"] for run in self.best.runs], dtype=torch.float64)
        error = float((predicted - true).square().mean(0).std()) / math.sqrt(N)  # of the mean squared error
        return error / score if score else 0.0  # its root has an error of 1 / (2 rmse) of that; twice

    @staticmethod
    def _twice(error: float) -> float:
        return 2 * error if math.isfinite(error) else math.inf

    def _drawn_error(self) -> float:
        """Give the standard error of the best network's score over the test sequences, or groups, by the bootstrap."""
        computed = metric(self.metric, classes=self.classes is not None)
        y = np.array(self.targets, dtype=np.float64)
        answers = [
            (
                np.array(run["predictions"], dtype=np.float64),
                np.array(run["probabilities"], dtype=np.float64) if run.get("probabilities") else None,
            )
            for run in self.best.runs
        ]

        def mean(places: NDArray[Any]) -> float:
            parts = [(y[places], got[places], None if p is None else p[places]) for got, p in answers]
            return statistics.fmean(computed.compute(*part) for part in parts)

        return spread(mean, len(y), self.test_groups)

    def mark(self, name: str) -> str:
        """Give what stands beside a network in a table: "best", "tie" or nothing; nothing too if it is alone."""
        if len(self.models) < 2 or not math.isfinite(self.best.mean):
            return ""
        return "best" if name == self.best.name else "tie" if any(m.name == name for m in self.ties) else ""

    def lead(self, a: float, b: float) -> float:
        """Give how much better the score a is than b."""
        return self.sign * (a - b)

    def rank(self, score: float) -> tuple[bool, float]:
        """Give the key that sorts scores from best to worst, what is not known last."""
        return (not math.isfinite(score), -self.sign * score)

    def _score(self) -> Score:
        if self.percent:
            return Score(percent=True, decimals=1 if len(self.targets) < 2000 else 2)
        sizes = [
            abs(s) for s in (*(m.mean for m in self.models), *(s for _, s in self.baselines)) if math.isfinite(s) and s
        ]
        digits = 2 - math.floor(math.log10(min(sizes))) if sizes else 2
        return Score(percent=False, decimals=max(digits, 0) if digits <= 9 and max(sizes, default=0) < 1e9 else None)

    def _model(self, colour: int, model: Mapping[str, Any]) -> Standing:
        runs = model["runs"]
        return Standing(
            name=model["name"],
            title=model["title"],
            layer=model["layer"],
            engines=tuple(model.get("engines", ())),  # which an older run did not note
            colour=colour,
            parameters=model["parameters"],
            mean=number(model["score_mean"]),
            std=number(model["score_std"]),
            seconds=number(model["train_seconds"]),
            step=number(model["step_microseconds"]),
            runs=tuple(runs),
        )


@dataclass(frozen=True)
class Answer:
    """The answer to "which network?" in one sentence that the numbers bear: its subject, and the rest."""

    subject: str
    rest: str

    def __str__(self) -> str:
        return f"{self.subject}{self.rest}"


def answer(c: Comparison) -> Answer:
    """Answer the question."""
    best = c.best
    if not math.isfinite(best.mean):
        return Answer("No network", " can be recommended: every one of them diverged.")
    score = c.score(best.mean) + (f"{_NBSP}±{_NBSP}{c.score.spread(best.std)}" if math.isfinite(best.std) else "")
    if c.metric == "accuracy":
        score = f"gets {score} of {len(c.targets):,} {c.unit} right"
    else:
        article = "an" if c.metric in {"accuracy", "auc", "rmse", "mae", "r2", "nse"} else "a"
        score = f"predicts {len(c.targets):,} {c.unit} with {article} {c.metric} of {score}"
    if c.baselines:
        name, baseline = c.baselines[0]
        lead = c.lead(best.mean, baseline)
        if lead < -c.luck:
            wins = f"the baseline “{name}” wins with {c.score(baseline)}"
            return Answer("No network:", f" {wins}; the best network, {best.title}, {score}.")
        if lead <= c.luck:
            return Answer(best.title, f" {score}, but that is a tie with the baseline “{name}” ({c.score(baseline)}).")
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
    return Answer(best.title, f" {score}{tail}.")


def overfitting(c: Comparison) -> list[str]:
    """Say of which networks the validation score fell after the chosen epoch by more than luck, a sentence each."""
    said = []
    for model in c.models:
        fell, luck = c.decline(model)
        if fell > luck:  # false for NaN
            epochs = sorted({run["epoch"] for run in model.runs})
            after = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
            last = max(len(run["history"]) for run in model.runs)
            said.append(
                f"{model.title} is overfitting after epoch {after} (of {last}): by the end its validation score is "
                f"{c.score.gap(fell)} worse, more than luck. The weights of the best epoch are the ones that count."
            )
    return said


def _listing(c: Comparison) -> str:
    names = [m.title for m in c.ties]
    if len(names) == len(c.models) - 1 and len(names) > 2:
        return f"all {len(c.models)} networks are"
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more are"
    return f"{' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)} {'are' if names[1:] else 'is'}"


def _cheaper(c: Comparison) -> str:
    """Name the tied model that saves most, in the first of: time a step, training time, parameters."""
    for cost, saving in (("step", "faster at batch 1"), ("seconds", "faster to train"), ("parameters", "smaller")):
        cheap = min(c.ties, key=lambda m: getattr(m, cost) if math.isfinite(getattr(m, cost)) else math.inf)
        ratio = getattr(c.best, cost) / getattr(cheap, cost) if getattr(cheap, cost) else math.nan
        if ratio >= 1.2:
            it = cheap.title if len(c.ties) > 1 else "it"
            return f", and {it} is {ratio:.1f}× {saving}"
    return ""


def number(value: float | None) -> float:
    """Read a number that JSON may have as null."""
    return math.nan if value is None else float(value)
