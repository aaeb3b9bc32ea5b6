"""The scores: their values on known answers, where they are not defined, and what the chosen one decides."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.compare import Results, compare, fit
from anyrnn.workbench.data import Dataset, load
from anyrnn.workbench.metrics import CLASS_METRICS, NUMBER_METRICS, metric, scores
from anyrnn.workbench.models import network
from anyrnn.workbench.report import render
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings, train
from anyrnn.workbench.verdict import Comparison

QUICK = Settings(hidden_size=4, epochs=2)
DRAW = np.random.default_rng(0)
Y = DRAW.integers(3, size=60)
SHARES = DRAW.dirichlet((1, 1, 1), size=60) * 0.5 + 0.5 * np.eye(3)[DRAW.integers(3, size=60)]
GOT = SHARES.argmax(1)
TRUE, FOUND = DRAW.normal(5, 2, size=50), DRAW.normal(5, 2, size=50)


def unbalanced(test: int = 60) -> Dataset:
    """One class in ten is rare; nothing tells it, so that a network says the frequent one."""
    draw = torch.Generator().manual_seed(0)

    def part(count: int, name: str) -> Sequences:
        x = tuple(torch.randn(4, 1, generator=draw) for _ in range(count))
        return Sequences(x, (torch.arange(count) % 10 == 0).long(), tuple(f"{name}{k}" for k in range(count)))

    return Dataset("rare", ("a",), ("often", "rare"), "y", part(100, "a"), part(test, "b"), "made here")


def numbers() -> Dataset:
    draw = torch.Generator().manual_seed(0)

    def part(count: int, name: str) -> Sequences:
        x = tuple(torch.randn(5, 1, generator=draw) for _ in range(count))
        return Sequences(x, torch.stack([each.mean() + 3 for each in x]), tuple(f"{name}{k}" for k in range(count)))

    parts = part(60, "a"), part(30, "c")
    return Dataset("numbers", ("a",), None, "y", *parts, "made here", validation=part(20, "b"))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("accuracy", sk.accuracy_score(Y, GOT)),
        ("balanced-accuracy", sk.balanced_accuracy_score(Y, GOT)),
        ("macro-f1", sk.f1_score(Y, GOT, average="macro")),
        ("auc", sk.roc_auc_score(Y, SHARES, multi_class="ovr", average="macro")),
        ("log-loss", -np.log(SHARES[np.arange(60), Y]).mean()),
    ],
)
def test_scores_of_classes(name: str, expected: float) -> None:
    assert CLASS_METRICS[name].compute(Y, GOT, SHARES) == pytest.approx(expected)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("rmse", math.sqrt(((TRUE - FOUND) ** 2).mean())),
        ("mae", np.abs(TRUE - FOUND).mean()),
        ("r2", 1 - ((TRUE - FOUND) ** 2).sum() / ((TRUE - TRUE.mean()) ** 2).sum()),
        ("nse", sk.r2_score(TRUE, FOUND)),
        ("mape", np.abs((TRUE - FOUND) / TRUE).mean()),
        (
            "kge",
            1
            - math.dist(
                (1, 1, 1),
                (
                    ((TRUE - TRUE.mean()) * (FOUND - FOUND.mean())).mean() / TRUE.std() / FOUND.std(),
                    FOUND.std() / TRUE.std(),
                    FOUND.mean() / TRUE.mean(),
                ),
            ),
        ),
    ],
)
def test_scores_of_numbers(name: str, expected: float) -> None:
    assert NUMBER_METRICS[name].compute(TRUE, FOUND, None) == pytest.approx(expected)
    perfect = NUMBER_METRICS[name].compute(TRUE, TRUE, None)
    assert perfect == pytest.approx(1 if NUMBER_METRICS[name].higher_is_better else 0)


@pytest.mark.parametrize(
    "name, y", [("r2", [2.0, 2.0]), ("kge", [2.0, 2.0]), ("kge", [-1.0, 1.0]), ("mape", [0.0, 1.0])]
)
def test_a_score_that_is_not_defined_is_nan(name: str, y: list[float]) -> None:
    assert math.isnan(NUMBER_METRICS[name].compute(np.array(y), np.array([1.0, 3.0]), None))


def test_a_class_that_the_test_part_lacks_takes_no_part() -> None:
    y, got, shares = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), np.eye(3)[[0, 2, 1, 1]] * 0.8 + 0.2 / 3
    assert CLASS_METRICS["balanced-accuracy"].compute(y, got, shares) == 0.75
    assert CLASS_METRICS["auc"].compute(y, got, shares) == pytest.approx((0.75 + 1) / 2)
    assert math.isfinite(CLASS_METRICS["log-loss"].compute(y, got, shares))
    assert math.isnan(CLASS_METRICS["auc"].compute(np.zeros(4), got, shares))


def test_scores_of_huge_and_tiny_numbers_are_finite() -> None:
    for size in (1e200, 1e-200):
        found = scores(
            torch.tensor([1.0, 3.0]).double() * size, [2.0 * size, 2.5 * size], None, classes=False, chosen="rmse"
        )
        assert found["rmse"] == pytest.approx(math.sqrt(0.625) * size)
        assert found["mae"] == pytest.approx(0.75 * size)
        assert found["r2"] == pytest.approx(1 - 1.25 / 2)


def test_nse_and_kge_are_scored_where_they_are_asked_for() -> None:
    y = torch.tensor([1.0, 2.0])
    assert set(scores(y, [1.0, 2.0], None, classes=False, chosen="rmse")) == {"rmse", "mae", "r2", "mape"}
    assert set(scores(y, [1.0, 2.0], None, classes=False, chosen="kge")) == {"rmse", "mae", "r2", "mape", "kge"}


@pytest.mark.parametrize(
    "name, classes, message",
    [
        ("rmse", True, "got 'rmse', expected one of accuracy, .*, since classes are predicted"),
        ("acuracy", True, "Did you mean 'accuracy'?"),
        ("auc", False, "got 'auc', expected one of rmse, mae, r2, mape, nse, kge, since a number is predicted"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(name: str, classes: bool, message: str) -> None:
    with pytest.raises(AnyRNNError, match=message):
        metric(name, classes=classes)
    with pytest.raises(AnyRNNError, match="metric: got"):
        fit(unbalanced() if classes else numbers(), settings=replace(QUICK, metric=name))


# What it decides


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", CLASS_METRICS)
def test_the_metric_is_the_score_of_runs_networks_and_baselines(name: str) -> None:
    results = compare(unbalanced(), ["rnn", "gru"], seeds=2, settings=replace(QUICK, metric=name))
    content = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert content["metric"]["name"] == results.metric == name
    for entry in results.entries:
        for run in entry.runs:
            assert run.score == run.scores[name] == run.history[-1].test_score
            assert (run.probabilities is not None) is CLASS_METRICS[name].of_probabilities
    ranked = sorted(results.entries, key=lambda e: -CLASS_METRICS[name].sign * e.score_mean)
    assert results.best.score_mean == ranked[0].score_mean
    assert all(set(model["scores"]) == set(CLASS_METRICS) for model in content["models"])
    page = render(results.to_dict(), None)
    assert f"Test {name} while training" in page
    assert results.verdict in page.replace("<strong>", "").replace("</strong>", "")
    assert f"test {name}" in results.table()


@pytest.mark.parametrize("name", NUMBER_METRICS)
def test_the_metric_chooses_the_epoch(name: str) -> None:
    settings = Settings(hidden_size=8, epochs=12, learning_rate=0.05, metric=name)
    model, run = train(network("gru"), numbers(), settings, 0)
    validation, sign = numbers().validation, NUMBER_METRICS[name].sign
    seen = [sign * point.validation_score for point in run.history]
    assert run.epoch == 1 + seen.index(max(seen))
    got = np.array(model.predict(validation.x).values)
    assert NUMBER_METRICS[name].compute(validation.y.double().numpy(), got, None) == pytest.approx(sign * max(seen))
    assert run.score == run.scores[name]


def made(results: Results, right: list[list[bool]], **changes: object) -> Results:
    """The same results with networks that are right where it says so."""
    y = results.dataset.test.y.tolist()
    entries = []
    for entry, marks in zip(results.entries, right, strict=True):
        predictions = tuple(t if ok else 1 - t for t, ok in zip(y, marks, strict=True))
        found = scores(results.dataset.test.y, predictions, None, classes=True, chosen=results.metric)
        run = replace(entry.runs[0], predictions=predictions, score=found[results.metric], scores=found)
        entries.append(replace(entry, runs=(run,)))
    return replace(results, entries=tuple(entries), **changes)


def test_luck_of_a_metric_without_a_formula_is_drawn() -> None:
    results = compare(unbalanced(200), ["rnn", "gru"], seeds=1, settings=replace(QUICK, metric="balanced-accuracy"))
    y = results.dataset.test.y.tolist()
    # All of the frequent class are right, and of the 20 rare ones 16: the mean of 1 and 0.8, whose error is half of
    # that of a share of 20.
    results = made(results, [[t == 0 or k % 50 for k, t in enumerate(y)]] * 2, baselines=())
    comparison = Comparison(results.to_dict())
    assert results.best.score_mean == pytest.approx(0.9)
    assert comparison.luck == pytest.approx(2 * math.sqrt(0.8 * 0.2 / 20) / 2, rel=0.2)
    assert "predicts 200 test sequences with a balanced-accuracy of 90.0" in results.verdict
    assert "within the spread" in results.verdict


def test_luck_over_groups_is_that_of_groups() -> None:
    results = compare(unbalanced(200), ["rnn"], seeds=1, settings=QUICK)
    right = [k % 40 >= 8 for k in range(200)]
    alone = Comparison(made(results, [right]).to_dict())
    test = replace(results.dataset.test, groups=tuple(str(k // 8) for k in range(200)))  # each is right, or wrong
    grouped = Comparison(made(results, [right], dataset=replace(results.dataset, test=test)).to_dict())
    assert grouped.luck / alone.luck == pytest.approx(math.sqrt(8), rel=0.25)


def test_recall_of_each_class_is_in_the_results_and_the_report_the_worst_first() -> None:
    results = compare(unbalanced(), ["rnn"], seeds=1, settings=QUICK)
    results = made(results, [[t == 0 for t in results.dataset.test.y.tolist()]])
    assert results.to_dict()["models"][0]["per_class"] == [
        {"class": "often", "total": 54, "recall": 1.0}, {"class": "rare", "total": 6, "recall": 0.0},
    ]  # fmt: skip
    page = render(results.to_dict(), None)
    rare, often = "never recognised</span></td><td>6</td><td>0.0", "<td>often</td><td>54</td><td>100.0"
    assert page.index(rare) < page.index(often)
    assert "Other scores" in page


def test_balanced_weighs_rare_classes() -> None:
    plain, even = (
        fit(unbalanced(), "rnn", settings=Settings(hidden_size=4, epochs=30, balanced=balanced)).entries[0].runs[0]
        for balanced in (False, True)
    )
    assert plain.predictions == (0,) * 60  # the rare class is never worth it
    assert 0.2 < statistics.fmean(even.predictions) < 0.8
    with pytest.raises(AnyRNNError, match="balanced weighs classes, but a number is predicted"):
        fit(numbers(), settings=replace(QUICK, balanced=True))


def test_equal_frequencies_make_balanced_no_difference() -> None:
    vowels = load("japanese-vowels", validation=0)
    few = replace(vowels, train=vowels.train.subset(range(0, 270, 9)), test=vowels.test.subset(range(0, 360, 12)))
    counts = torch.bincount(few.train.y, minlength=9)
    even = replace(
        few, train=few.train.subset([k for c in range(9) for k in (few.train.y == c).nonzero()[:3, 0].tolist()])
    )
    assert counts.min() >= 3
    one, two = (fit(even, "rnn", settings=replace(QUICK, balanced=b)).entries[0].runs[0] for b in (False, True))
    assert [p.train_loss for p in one.history] == pytest.approx([p.train_loss for p in two.history], rel=1e-5)
