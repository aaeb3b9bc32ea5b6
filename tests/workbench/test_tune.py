"""A search: it goes on where it was cut off, ends what does badly, and saves what does best."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Sequences, Settings, open_run, tune
from anyrnn.workbench.cli import app
from anyrnn.workbench.lesson import Epoch, EpochEnd

#: The module; in the package, its function of the same name hides it.
SEARCH = importlib.import_module("anyrnn.workbench.tune")

QUICK = Settings(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Is the sum of a sequence positive?"""
    draw = torch.Generator().manual_seed(3)

    def part(count: int, name: str) -> Sequences:
        x = tuple(torch.randn(3 + k % 4, 1, generator=draw) for k in range(count))
        y = torch.stack([each.sum() > 0 for each in x]).long()
        return Sequences(x, y, tuple(f"{name}{k}" for k in range(count)))

    return Dataset("sums", ("u",), ("no", "yes"), "y", part(40, "t"), part(16, "e"), "made", validation=part(24, "v"))


def search(data: Dataset, folder: Path, trials: int = 4, **others: Any) -> Any:
    return tune(data, ["rnn", "gru"], sizes=(2, 6), trials=trials, settings=QUICK, folder=folder, **others)


def test_a_search_that_is_cut_off_tries_the_same_as_one_that_is_not(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    whole = search(data, tmp_path / "whole")
    train, called = SEARCH.train, []

    def cut_off(*arguments: Any) -> Any:
        called.append(arguments)
        if len(called) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(SEARCH, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        search(data, tmp_path / "cut")
    with pytest.raises(AnyRNNError, match="a run was begun there and is not finished; go on with it"):
        search(data, tmp_path / "cut")
    seen: list[Any] = []
    again = search(data, tmp_path / "cut", resume=True, on_trial=seen.append)
    assert len(called) == 5, "two before, the one that was cut off, and two again"
    assert again.trials == whole.trials
    assert [trial.number for trial in seen] == [3, 4]
    assert again.table() == whole.table()
    for found, folder in ((whole, tmp_path / "whole"), (again, tmp_path / "cut")):
        assert open_run(folder).names == (found.best.cell,)
        assert json.loads((folder / "tuning.json").read_text()) == found.to_dict()
        (run,) = json.loads((folder / "results.json").read_text())["models"][0]["runs"]
        assert run["history"][run["epoch"] - 1]["validation_score"] == found.best.score
        assert found.best.score == max(trial.score for trial in found.trials)
        assert not (folder / "training").exists()
    search(data, tmp_path / "cut", trials=1, overwrite=True)
    assert len(json.loads((tmp_path / "cut/tuning.json").read_text())["trials"]) == 1


def scored(score: Callable[[int], float]) -> Any:
    """Training as it would be if the scores of the trials were these."""
    count = iter(range(100))

    def train(network: Any, data: Any, settings: Settings, seed: int, on_epoch: Any) -> Any:
        value = score(next(count))
        history = [Epoch(epoch, 1.0, None, 1.0, value) for epoch in (1, 2)]
        for point in history:
            on_epoch(EpochEnd(point, point.epoch == 2, 0.1, 1.0, 1.0))
        return None, SimpleNamespace(history=history, epoch=2)

    return train


def test_trials_that_do_worse_than_most_end_early(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(SEARCH, "train", scored(lambda k: 0.5 + 0.01 * k if k < 5 else 0.3 if k == 5 else 0.9))
    found = search(data, tmp_path / "run", trials=7)
    assert [trial.state for trial in found.trials] == ["finished"] * 5 + ["pruned", "finished"]
    assert [trial.epochs for trial in found.trials] == [2] * 5 + [1, 2]
    assert found.best.number == 7
    assert found.table().splitlines()[1].endswith("0.9  best")
    assert found.table().splitlines()[-1].endswith("0.3  pruned")


def test_trials_that_diverge_are_counted_and_not_chosen(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    train = scored(lambda k: 0.5)

    def diverging(network: Any, *others: Any) -> Any:
        if network.name == "gru":
            raise AnyRNNError("training diverged")
        return train(network, *others)

    monkeypatch.setattr(SEARCH, "train", diverging)
    found = search(data, tmp_path / "run")
    assert {(trial.cell, trial.state, trial.score) for trial in found.trials} == {
        ("gru", "failed", None),
        ("rnn", "finished", 0.5),
    }
    assert found.best.cell == "rnn"
    with pytest.raises(AnyRNNError, match=r"the training of all 2 trials diverged; a lower learning rate than 0.005"):
        tune(data, ["gru"], sizes=(2, 2), trials=2, settings=QUICK, folder=tmp_path / "none")


def test_the_command_shows_the_trials_and_saves_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    rows = [f"s{k},{(7 * k + 3 * t) % 11 - 5},{'up' if k % 3 else 'down'}" for k in range(160) for t in range(3)]
    Path("d.csv").write_text("\n".join(["id,a,y", *rows, ""]))
    words = ["tune", "d.csv", "--id", "id", "--target", "y", "--cells", "rnn", "--epochs", "1", "--trials", "2"]
    done = CliRunner().invoke(app, [*words, "--sizes", "2,3"])
    assert done.exit_code == 0, done.output
    assert "[2/2] rnn, " in done.stdout
    assert "validation accuracy" in done.stdout
    assert "anyrnn predict runs/d-tuned DATA" in done.stdout
    assert open_run("runs/d-tuned").names == ("rnn",)


# What is refused, with optuna and without


def test_what_makes_no_search_is_refused(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"sizes": (8,)}, r"sizes: got \(8,\), expected two numbers, the fewest and the most units"),
        ({"sizes": (8, 4)}, r"sizes: got \(8, 4\)"),
        ({"trials": 0}, "trials: got 0, expected how many networks to try, at least 1"),
        ({"cells": ()}, "cells: got none, expected one or more names"),
        ({"cells": ["grü"]}, "cell 'grü' is not known"),
    ):
        with pytest.raises(AnyRNNError, match=message):
            tune(data, **{"folder": tmp_path / "run", "settings": QUICK, **options})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(AnyRNNError, match=r"needs the package optuna: pip install 'anyrnn\[tune\]'"):
        search(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    refused = CliRunner().invoke(app, ["tune", "book.txt"])
    assert refused.exit_code == 2
    assert "anyrnn tune is for sequences to a class or a number, and the task here is texts" in refused.stderr
