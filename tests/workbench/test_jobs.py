"""Several training runs at once, in processes: what is sent, and what goes wrong. Their numbers: see test_loop.py."""

import json
import multiprocessing
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Sequences, Settings, compare, jobs, load
from anyrnn.workbench.fingerprint import identity
from anyrnn.workbench.lesson import EpochEnd
from anyrnn.workbench.models import KNOWN
from anyrnn.workbench.train import SequenceLesson
from anyrnn.workbench.work import Job, Order, Work, done, pickled

#: Everything that draws random numbers is on.
SETTINGS = Settings(hidden_size=4, epochs=4, batch_size=8, dropout=0.2, recurrent_dropout=0.2)
TIMES = {"time", "seconds", "loading", "train_seconds", "step_microseconds", "command"}


def sums() -> Dataset:
    """Sequences that are rows of one tensor: is the sum of the first feature positive?"""
    rows = torch.randn(76, 6, 2, generator=torch.Generator().manual_seed(3))

    def part(first: int, last: int) -> Sequences:
        x = tuple(rows[k, : 3 + k % 4] for k in range(first, last))
        y = torch.stack([each[:, 0].sum() > 0 for each in x]).long()
        return Sequences(x, y, tuple(f"s{k}" for k in range(first, last)))

    return Dataset("sums", ("u", "v"), ("no", "yes"), "y", part(0, 40), part(60, 76), "made", validation=part(40, 60))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return sums()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        left = {key: each for key, each in value.items() if key not in TIMES and not key.endswith("_a_second")}
        return {key: without_times(each) for key, each in left.items()}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def content(folder: Path) -> tuple[Any, list[Any], dict[str, bytes]]:
    """The results of a run, its lines of metrics, sorted, and the weights."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: (line["model"], line["seed"]))  # of a run, they have to be in order
    weights = {path.name: path.read_bytes() for path in (folder / "models").glob("*.safetensors")}
    return without_times(json.loads((folder / "results.json").read_text())), without_times(lines), weights


def test_data_arrive_as_they_are_and_take_no_more_room_than_they_need(data: Dataset) -> None:
    table = load("japanese-vowels")
    for each in (data, table):
        sent = pickled(each)
        assert identity(pickle.loads(sent), SETTINGS, "", []) == identity(each, SETTINGS, "", [])
    numbers = sum(x.numel() for part in data.parts for x in part.x)
    assert len(pickled(data)) < 4 * numbers + 300 * 76  # each row with its own numbers, not with all of them


# What goes wrong


@pytest.fixture
def processes(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes of which none is started; `said` has what they say."""
    said: list[str] = []
    found = jobs._Processes(2, SequenceLesson(data, SETTINGS), lambda job, end: None, said.append)
    monkeypatch.setattr(found, "_start", lambda count: None)
    return SimpleNamespace(jobs=found, said=said)


def lost(ready: bool) -> Any:
    job = Job(KNOWN["gru"], 1, 2, None)
    return SimpleNamespace(connection=0, ready=ready, job=job, end=lambda patience: "was killed (SIGKILL)")


def test_a_job_whose_process_dies_again_and_again_is_given_up(processes: Any) -> None:
    for tries in (1, 2):
        worker = processes.jobs._workers[0] = lost(ready=True)
        processes.jobs._lost(worker)
        assert len(processes.said) == tries
        assert processes.jobs._waiting.popleft() == worker.job
    worker = processes.jobs._workers[0] = lost(ready=True)
    with pytest.raises(AnyRNNError, match=r"gru, seed 1: its worker process was killed \(SIGKILL\), 3 times"):
        processes.jobs._lost(worker)


def test_a_process_that_cannot_begin_is_no_job_that_died(processes: Any) -> None:
    worker = processes.jobs._workers[0] = lost(ready=False)
    with pytest.raises(AnyRNNError, match=r'before it could begin; in a script, .* `if __name__ == "__main__":`'):
        processes.jobs._lost(worker)


def test_a_script_without_a_guard_does_not_begin_again_in_each_worker(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit):
        compare(data, ["gru"], settings=SETTINGS, workers=2)


def test_ctrl_c_while_processes_start_comes_a_moment_later() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts a process may have it ignored
    reached = False
    with pytest.raises(KeyboardInterrupt), jobs._no_interrupts():  # noqa: PT012 - when it comes is the point
        signal.raise_signal(signal.SIGINT)
        reached = True
    signal.signal(signal.SIGINT, before)
    assert reached


def test_what_a_job_raises_is_raised_here(data: Dataset, processes: Any) -> None:
    work = Work.of(SequenceLesson(data, SETTINGS))

    def gone(_: EpochEnd) -> None:
        raise BrokenPipeError  # as if nobody heard of its epochs any more

    refused = done(work, Order("grü", 0, None, {}), gone, None)
    with pytest.raises(AnyRNNError, match="cell 'grü' is not known"):
        processes.jobs._heard(lost(ready=True), refused)
    failed = done(work, Order("gru", 0, None, {}), gone, None)
    with pytest.raises(RuntimeError, match=r"(?s)gru, seed 1: a worker process failed:.*BrokenPipeError"):
        processes.jobs._heard(lost(ready=True), failed)


def test_the_number_of_workers_is_checked(data: Dataset) -> None:
    with pytest.raises(AnyRNNError, match="workers: got 0, expected how many training runs go on at once, at least 1"):
        compare(data, ["gru"], settings=SETTINGS, workers=0)
