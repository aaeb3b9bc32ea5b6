"""The loop over networks and seeds, for every task: kept as it goes, gone on with to the same bits, done elsewhere."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_jobs import SETTINGS, content, sums, without_times

from anyrnn import workbench
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import checkpoint as checkpoint_module
from anyrnn.workbench import forecast, jobs, language, loop, tagging
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.forecast.train import ForecastLesson
from anyrnn.workbench.language.text import Part, Text, Vocabulary
from anyrnn.workbench.language.train import TextLesson
from anyrnn.workbench.lesson import EpochEnd
from anyrnn.workbench.models import network
from anyrnn.workbench.processes import World
from anyrnn.workbench.tagging.train import TagLesson
from anyrnn.workbench.train import SequenceLesson
from anyrnn.workbench.training import Training
from anyrnn.workbench.unfinished import UnfinishedRun
from anyrnn.workbench.work import Done, Job, Order, Work, done, outcome, pickled


def steps() -> tagging.Tagging:
    """Is the sum of all steps so far above 0?"""
    draw = torch.Generator().manual_seed(0)
    x = [torch.randn(4 + k % 3, 2, dtype=torch.float64, generator=draw) for k in range(24)]
    y = [(each.sum(1).cumsum(0) > 0).long() for each in x]
    whole = tagging.Steps(tuple(x), tuple(y), tuple(map(str, range(24))))
    train, chosen_by, test = (whole.subset(range(first, first + 8)) for first in (0, 8, 16))
    return tagging.Tagging("sums", ("a", "b"), ("no", "yes"), "y", train, test, "in order", validation=chosen_by)


def waves() -> forecast.Forecasting:
    """Two series with a covariate that is known ahead."""
    t, draw = np.arange(90), np.random.default_rng(0)
    none = np.empty((90, 0))
    series = [
        forecast.Series(f"s{k}", np.sin(t / 2 + k) + draw.normal(0, 0.1, 90), none, np.cos(t[:, None]), np.empty(0))
        for k in range(2)
    ]
    return forecast.Forecasting("waves", "y", tuple(series), 3, 1, 9, 9, future_names=("x",))


def verse() -> Text:
    """A text with some words that come again."""
    texts = [("the cat sat on the mat; the rat ran to the cat. " * count)[:-1] for count in (12, 2, 2)]
    vocabulary = Vocabulary.of(texts[0])
    return Text("verse", vocabulary, *(Part(each, vocabulary.encode(each)) for each in texts), "in order")


@dataclass(frozen=True)
class Task:
    """A task: its module, its data, and settings with which everything that draws random numbers is on."""

    module: ModuleType
    data: Any
    settings: Any
    lesson: type


TASKS = {
    "tagging": Task(tagging, steps, tagging.TagSettings(
        hidden_size=4, epochs=4, batch_size=4, learning_rate=0.02, dropout=0.2, recurrent_dropout=0.2
    ), TagLesson),
    "forecast": Task(forecast, waves, forecast.ForecastSettings(
        hidden_size=4, epochs=4, context=8, batch_size=8, dropout=0.2
    ), ForecastLesson),
    "text": Task(language, verse, language.TextSettings(
        hidden_size=4, embedding_size=3, epochs=4, batch_size=4, steps=16, dropout=0.2, threads=1
    ), TextLesson),
}  # fmt: skip


class CutError(Exception):
    """The end of a process, played."""


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]


@dataclass(frozen=True)
class Whole:
    """A comparison that nothing happened to."""

    results: Any
    lines: list[Mapping[str, Any]]
    told: list[Any]


@pytest.fixture(scope="module")
def whole(task: Task) -> Whole:
    lines: list[Mapping[str, Any]] = []
    told: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ANYRNN_ENGINE", "reference")  # as `plainly` does
        results = task.module.compare(
            task.data(), ["rnn", "gru"], seeds=1, settings=task.settings, callbacks=[lines.append], on_epoch=told.append
        )
    return Whole(results, lines, told)


# Gone on with


@pytest.mark.usefixtures("plainly")
def test_a_run_of_any_task_goes_on_to_the_same_bits(
    task: Task, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first network is finished, the second is cut off after a checkpoint."""
    monkeypatch.setattr(checkpoint_module, "_SHARE", float("inf"))  # one after each epoch
    heard: list[Mapping[str, Any]] = []

    def stop(record: Mapping[str, Any]) -> None:
        if (record["model"], record["epoch"]) == ("gru", 3):
            raise CutError

    def numbers(results: Any) -> Any:
        weights = [entry.model.module.state_dict() for entry in results.entries]
        return without_times(results.to_dict()), [{name: w.tolist() for name, w in each.items()} for each in weights]

    arguments: dict[str, Any] = {"cells": ["rnn", "gru"], "seeds": 1, "settings": task.settings}
    with pytest.raises(CutError):
        task.module.compare(task.data(), **arguments, folder=tmp_path / "run", callbacks=[stop])
    torch.manual_seed(5)  # whatever the process was doing before
    other = {**arguments, "settings": replace(task.settings, learning_rate=0.5)}
    with pytest.raises(AnyRNNError, match=r"differs from this one in settings\.learning_rate: .* there, 0\.5 here"):
        task.module.compare(task.data(), **other, folder=tmp_path / "run", resume=True)
    with UnfinishedRun(tmp_path / "run", resume=True) as run:  # which the caller saves: it takes time
        again = task.module.compare(task.data(), **arguments, folder=run, callbacks=[heard.append])
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(record["model"], record["epoch"]) for record in heard] == [("gru", 3), ("gru", 4)]
    assert without_times(lines) == without_times(whole.lines)
    assert numbers(again) == numbers(whole.results)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_text_goes_on_within_an_epoch_with_the_state_that_was_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str
) -> None:
    monkeypatch.setattr(checkpoint_module, "_SHARE", float("inf"))  # one after each update
    task, updates = TASKS["text"], []
    lesson = TextLesson(verse(), replace(task.settings, epochs=2).resolved(verse()))
    model, run = lesson.train(network(cell), 1)
    update = Training.update

    def counted(self: Any, loss: torch.Tensor) -> None:
        updates.append(self.course.next)
        if len(updates) == 15:
            raise CutError
        update(self, loss)

    monkeypatch.setattr(Training, "update", counted)
    with pytest.raises(CutError):
        lesson.train(network(cell), 1, None, Checkpoints(tmp_path, {}))
    assert updates[-6:] == [2] * 6  # the sixth update of the second epoch failed
    again, found = lesson.train(network(cell), 1, None, Checkpoints(tmp_path, {}))
    assert updates[15:] == [2] * 4  # of nine, five were kept
    assert without_times(found.to_dict()) == without_times(run.to_dict())
    there, here = model.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(there[name], here[name]) for name in there | here)


def test_other_data_are_refused_by_name(tmp_path: Path) -> None:
    """Also where they are arrays of thousands of numbers that differ in one."""

    def stop(record: Mapping[str, Any]) -> None:
        if record["epoch"] == 2:
            raise CutError

    task, data = TASKS["forecast"], waves()
    with pytest.raises(CutError):
        task.module.fit(data, "rnn", settings=task.settings, folder=tmp_path / "run", callbacks=[stop])
    y = data.series[1].y.copy()
    y[50] += 1e-9
    other = replace(data, series=(data.series[0], replace(data.series[1], y=y)))
    with pytest.raises(AnyRNNError, match=r"differs from this one in data\.series: "):
        task.module.fit(other, "rnn", settings=task.settings, folder=tmp_path / "run", resume=True)


CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_loop import TASKS
from anyrnn.workbench import checkpoint
checkpoint._SHARE = float("inf")
task, killed = TASKS[sys.argv[2]], sys.argv[4] == "killed"
save = checkpoint.Checkpoints.save
def last(self, state):
    save(self, state)
    if killed and self.folder.name == "gru-1" and "run" not in state:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = last
task.module.compare(task.data(), ["gru"], seeds=2, settings=task.settings, folder=sys.argv[3], resume=True)
"""


@pytest.mark.long
def test_a_process_that_is_killed_ends_with_the_same_bits(task: Task, tmp_path: Path) -> None:
    name = next(name for name, each in TASKS.items() if each is task)
    for folder, how, status in (("whole", "", 0), ("cut", "killed", -signal.SIGKILL), ("cut", "", 0)):
        arguments = [str(Path(__file__).parent), name, str(tmp_path / folder), how]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run([sys.executable, "-c", CHILD, *arguments], env=environment, check=False, timeout=300)
        assert ended.returncode == status
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


# Done elsewhere


@pytest.mark.usefixtures("plainly")
def test_what_is_done_elsewhere_comes_back_as_if_it_were_done_here(task: Task) -> None:
    """All that goes to a worker and comes back is pickled; the training is the same."""
    data = task.data()
    lesson = task.lesson(data, replace(task.settings, epochs=2).resolved(data))
    model, run = lesson.train(network("rnn"), 3)
    job, told = Job(network("rnn"), 3, 1, None), []
    sent = pickle.loads(pickled((Work.of(lesson), Order.of(job))))
    answer = pickle.loads(pickled(done(*sent, told.append, None)))
    assert isinstance(answer, Done), answer
    again, found = outcome(lesson, job, answer)
    assert [end.epoch for end in told] == list(run.history) == list(found.history)
    assert without_times(found.to_dict()) == without_times(run.to_dict())
    there, here = model.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    assert again.layer.training is model.layer.training is False


@pytest.mark.long
@pytest.mark.parametrize("name", ["text", "sequences", "tagging", "forecast"])
def test_workers_give_the_bits_of_one_process_and_one_that_is_killed_costs_its_job(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {**TASKS, "sequences": Task(workbench, sums, SETTINGS, SequenceLesson)}[name]
    arguments: dict[str, Any] = {"cells": ["gru", "rnn"], "seeds": 2, "settings": task.settings}
    task.module.compare(task.data(), **arguments, folder=tmp_path / "one")
    heard, killed = jobs._Processes._heard, []

    def kill_first(self: Any, worker: Any, message: Any) -> Any:
        if isinstance(message, EpochEnd) and message.epoch.epoch == 3 and not killed:
            killed.append(str(worker.job))
            worker._process.kill()
        return heard(self, worker, message)

    monkeypatch.setattr(jobs._Processes, "_heard", kill_first)
    shares, networks = [], []
    with pytest.warns(UserWarning, match="its worker process was killed") as warned:
        task.module.compare(
            task.data(),
            **arguments,
            folder=tmp_path / "two",
            workers=2,
            on_epoch=lambda now: shares.append((now.share_before, now.share)),
            on_network=lambda results: networks.append(results.entries[-1].model.network.name),
        )
    (said,) = (str(each.message) for each in warned)
    assert said == f"{killed[0]}: its worker process was killed (SIGKILL); this training run is tried again"
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert networks == ["gru", "rnn"]
    assert [after for _, after in shares] == [pytest.approx(k / 16) for k in range(1, 17)]
    assert [before for before, _ in shares] == [pytest.approx(k / 16) for k in range(16)]
    assert not multiprocessing.active_children()


# What is told, and what is refused


def test_what_is_told_of_an_epoch_has_the_words_of_the_task(task: Task, whole: Whole) -> None:
    metric, pace = {
        tagging: ("macro-f1", "sequences_a_second"),
        forecast: ("mase", "windows_a_second"),
        language: ("bits a character", "tokens_a_second"),
    }[task.module]
    assert {line["metric"] for line in whole.lines} == {metric} == {whole.results.to_dict()["metric"]["name"]}
    assert all(line[pace] > 0 for line in whole.lines)
    assert all(line["validation_loss"] > 0 for line in whole.lines)
    assert [now.share for now in whole.told] == [k / 8 for k in range(1, 9)]
    assert whole.told[-1].score.startswith("validation ")


def test_several_processes_train_together_on_whole_sequences_only(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "world", lambda: World(0, 2))
    with pytest.raises(AnyRNNError, match=r"torchrun has started 2 processes, which .* on whole sequences only; start"):
        task.module.fit(task.data(), "rnn", settings=task.settings)
