"""What is told of each epoch: the lines of metrics.jsonl, callbacks, and TensorBoard's files."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Sequences, Settings, compare
from anyrnn.workbench.callbacks import MLflow, TensorBoard, WeightsAndBiases, curves
from anyrnn.workbench.metrics_log import MetricsLog


def record(epoch: int, seed: int = 0, **other: Any) -> dict[str, Any]:
    return {
        "model": "cells:Mine", "seed": seed, "epoch": epoch, "epochs": 3, "train_loss": 1 / epoch, "metric": "rmse",
        "validation_loss": None, "validation_score": None, "test_score": 2.0, "learning_rate": 0.1, **other,
    }  # fmt: skip


class Listener:
    def __init__(self) -> None:
        self.heard: list[Mapping[str, Any]] = []
        self.closed = 0

    def __call__(self, line: Mapping[str, Any]) -> None:
        self.heard.append(line)

    def close(self) -> None:
        self.closed += 1


def test_callbacks_hear_what_the_file_has_and_are_closed(tmp_path: Path) -> None:
    x = tuple(torch.randn(4, 2) for _ in range(12))
    part = Sequences(x, torch.arange(12.0), tuple(map(str, range(12))))
    data = Dataset("d", ("a", "b"), None, "y", part, part, "made", validation=part)
    listener, settings = Listener(), Settings(hidden_size=3, epochs=2)
    results = compare(data, ["rnn"], seeds=2, settings=settings, folder=tmp_path / "run", callbacks=[listener])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["model"], line["seed"], line["epoch"], line["ended"]) for line in lines] == [
        ("rnn", 0, 1, False), ("rnn", 0, 2, True), ("rnn", 1, 1, False), ("rnn", 1, 2, True),
    ]  # fmt: skip
    times = {"time"}
    assert [{k: v for k, v in line.items() if k not in times} for line in lines] == [
        {k: v for k, v in line.items() if k not in times} for line in listener.heard
    ]
    run = results.entries[0].runs[1]
    for line, point in zip(lines[2:], run.history, strict=True):
        assert (line["train_loss"], line["validation_loss"]) == (point.train_loss, point.validation_loss)
        assert (line["metric"], line["validation_score"]) == ("rmse", point.validation_score)
        assert line["learning_rate"] > 0
        assert line["sequences_a_second"] > 0
    assert lines[-1]["seconds"] == pytest.approx(run.seconds, abs=1e-5)
    assert listener.closed == 1

    def failing(_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        compare(data, ["rnn"], seeds=1, settings=settings, callbacks=[failing, listener])
    assert listener.closed == 2


def test_epochs_that_are_repeated_replace_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for epoch in (1, 2, 3):
        log(record(epoch))
        log(record(epoch, seed=1))
    with path.open("a") as file:
        file.write('{"model": "cells:Mine", "seed": 1, "ep')  # as a process leaves it that is killed
    again = MetricsLog(path)
    again(record(2, train_loss=float("nan")))
    again(record(3))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["seed"], line["epoch"]) for line in lines] == [(0, 1), (1, 1), (1, 2), (1, 3), (0, 2), (0, 3)]
    assert lines[4]["train_loss"] is None


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    log = MetricsLog(tmp_path / "nowhere/metrics.jsonl", said.append)
    for epoch in (1, 2):
        log(record(epoch))
    assert [line.partition("metrics.jsonl: ")[2] for line in said] == [
        "it cannot be written: No such file or directory; the training goes on"
    ]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
@pytest.mark.filterwarnings("ignore")  # of its packages
def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    board = TensorBoard(tmp_path)
    for epoch in (1, 2, 3):
        board(record(epoch))
    board.close()
    resumed = TensorBoard(tmp_path)
    resumed(record(3, train_loss=7.0))
    resumed(record(1, seed=1))
    resumed.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.Mine-0", "cells.Mine-1"]
    found = EventAccumulator(str(tmp_path / "cells.Mine-0")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train_loss")] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert [e.value for e in found.Scalars("test_rmse")] == [2.0, 2.0, 2.0]
    assert "validation_rmse" not in found.Tags()["scalars"]


def test_mlflow_gets_a_run_for_each_training_run(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    class Client:
        def __init__(self, tracking_uri: str | None) -> None:
            called.append(("client", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            called.append(("find", name))

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment}/{run_name}"))

        def log_param(self, run: str, key: str, value: Any) -> None:
            called.append(("param", run, key, value))

        def log_metric(self, run: str, key: str, value: float, step: int) -> None:
            called.append(("metric", run, key, value, step))

        def set_terminated(self, run: str) -> None:
            called.append(("end", run))

    stand_in = ModuleType("mlflow.tracking")
    stand_in.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", stand_in)
    flow = MLflow("e", "file:///x")
    for line in (record(1), record(2), record(1, seed=1)):
        flow(line)
    flow.close()
    assert called[:2] == [("client", "file:///x"), ("find", "e")]
    assert ("param", "7/cells.Mine-1", "seed", 1) in called
    assert [c[1:] for c in called if c[0] == "metric" and c[2] == "train_loss"] == [
        ("7/cells.Mine-0", "train_loss", 1.0, 1),
        ("7/cells.Mine-0", "train_loss", 0.5, 2),
        ("7/cells.Mine-1", "train_loss", 1.0, 1),
    ]
    assert called[-2:] == [("end", "7/cells.Mine-0"), ("end", "7/cells.Mine-1")]


def test_weights_and_biases_gets_a_run_for_each_training_run(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    def init(**arguments: Any) -> Any:
        called.append(("init", arguments))
        return SimpleNamespace(
            log=lambda values, step: called.append(("log", values, step)), finish=lambda: called.append(("finish",))
        )

    stand_in = ModuleType("wandb")
    stand_in.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    tracker = WeightsAndBiases("p", group="g", options={"mode": "offline"})
    for line in (record(1), record(2), record(1, seed=1)):
        tracker(line)
    tracker.close()
    assert called[0] == (
        "init",
        {
            "name": "cells.Mine-0", "config": {"model": "cells:Mine", "seed": 0, "epochs": 3},
            "project": "p", "group": "g", "mode": "offline",
        },
    )  # fmt: skip
    assert called[1] == ("log", curves(record(1)), 1)
    assert [c[0] for c in called] == ["init", "log", "log", "finish", "init", "log", "finish"]


@pytest.mark.parametrize(
    ("make", "module", "said"),
    [
        (lambda: TensorBoard("x"), "torch.utils.tensorboard", "TensorBoard needs the package tensorboard: pip install"),
        (lambda: MLflow("x"), "mlflow.tracking", "MLflow needs the package mlflow: pip install mlflow"),
        (lambda: WeightsAndBiases("x"), "wandb", "WeightsAndBiases needs the package wandb: pip install wandb"),
    ],
    ids=["tensorboard", "mlflow", "wandb"],
)
def test_a_package_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, make: Any, module: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AnyRNNError, match=said):
        make()
