"""Where training runs are done: what makes no sense is refused; and a training run in stretches, as clusters do it."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_jobs import SETTINGS, sums
from typer.testing import CliRunner

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import cluster, compare
from anyrnn.workbench.cli import app
from anyrnn.workbench.models import KNOWN
from anyrnn.workbench.ondisk import FlatFile
from anyrnn.workbench.train import SequenceLesson
from anyrnn.workbench.work import Done, Failed, Order, Work, pickled

ADDRESS = "tcp://127.0.0.1:8786"


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"workers": 0}, "workers: got 0, expected how many training runs go on at once, at least 1"),
        (
            {"workers": 2, "scheduler": ADDRESS},
            "got workers=2 and scheduler='tcp://127.0.0.1:8786', but workers are processes on this machine",
        ),
        ({"scheduler": ADDRESS}, r"a scheduler needs the package distributed: pip install 'anyrnn\[dask\]'"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    with pytest.raises(AnyRNNError, match=message):
        compare(sums(), ["gru"], settings=SETTINGS, **asked)


def test_a_search_has_no_scheduler() -> None:
    refused = CliRunner().invoke(app, ["tune", "steps.csv", "--scheduler", ADDRESS])
    assert refused.exit_code == 2
    assert "--scheduler" in refused.stderr


@pytest.fixture
def plain() -> Iterator[None]:
    """Nothing is compiled."""
    with anyrnn.engine("reference"):
        yield


@pytest.mark.usefixtures("plain")
def test_stretches_of_an_epoch_each_are_the_whole_training_run() -> None:
    lesson = SequenceLesson(sums(), SETTINGS.resolved(sums()))
    model, run = lesson.train(KNOWN["gru"], 1)
    told: list[Any] = []
    last, sent = None, pickle.loads(pickle.dumps(cluster.Sent(pickled(Work.of(lesson)))))
    for _ in range(SETTINGS.epochs):
        found = cluster.stretch(sent, Order("gru", 1, None, {}), last, 0.0)
        told += found.epochs
        last = found.kept
    assert isinstance(found.answer, Done)
    assert [end.epoch for end in told] == list(run.history)
    assert all(torch.equal(found.answer.weights[name], each) for name, each in model.module.state_dict().items())
    assert found.answer.run.predictions == run.predictions
    again = cluster.stretch(sent, Order("gru", 1, None, {}), last, 0.0)  # it had ended
    assert (again.epochs, again.kept) == ((), None)
    assert isinstance(again.answer, Done)
    failed = cluster.stretch(sent, Order("grü", 1, None, {}), None, 0.0)
    assert isinstance(failed.answer, Failed)
    assert failed.answer.refused
    assert pickle.loads(pickle.dumps(sent)).work.lesson.settings == lesson.settings  # it may be moved


def test_data_that_are_in_a_file_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "steps").write_bytes(b"12345678")
    sent = cluster.Sent(pickle.dumps(FlatFile(tmp_path / "steps", "float64", 1)))
    (tmp_path / "steps").unlink()
    found = cluster.stretch(sent, Order("gru", 1, None, {}), None, 0.0)
    assert isinstance(found.answer, Failed)
    assert "a process on another machine needs the data in memory" in found.answer.text


def test_what_differs_on_a_worker_is_named() -> None:
    here = cluster.installation([])
    there = {**here, "process": "other 1"}
    assert not cluster._trouble(there, here)
    assert cluster._trouble({**there, "torch": "2.0"}, here) == (
        f"has something else than this machine (torch: 2.0 there, {torch.__version__} here): install the same"
    )
    assert "LocalCluster(processes=True)" in cluster._trouble(here, here)
    assert cluster._trouble(ModuleNotFoundError("No module named 'anyrnn'"), here) == (
        "cannot do it: ModuleNotFoundError: No module named 'anyrnn'; install there what is installed here"
    )
