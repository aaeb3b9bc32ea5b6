"""A run that was cut off goes on to the same numbers, bit for bit, and with nothing but what it was begun with."""

import errno
import json
import linecache
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Sequences, Settings, compare, fit, open_run
from anyrnn.workbench import checkpoint as checkpoint_module
from anyrnn.workbench import durable as durable_module
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.cli import app
from anyrnn.workbench.lesson import EpochEnd
from anyrnn.workbench.models import NETWORKS
from anyrnn.workbench.train import train
from anyrnn.workbench.training import Run

#: Everything that draws random numbers is on, and the best epoch is not the last one.
SETTINGS = Settings(hidden_size=5, epochs=6, batch_size=8, dropout=0.2, recurrent_dropout=0.2, learning_rate=0.02)
KILLS = int(os.environ.get("ANYRNN_KILLS", "1"))  # processes that are killed, unless they are done before


def made(classes: int = 2) -> Dataset:
    """Sequences of 3 to 9 steps: is the sum of the first feature large?"""
    draw = torch.Generator().manual_seed(3)

    def part(count: int, name: str) -> Sequences:
        x = tuple(torch.randn(3 + k % 7, 2, generator=draw) for k in range(count))
        sums = torch.stack([each[:, 0].sum() for each in x])
        y = (sums > 0).long() if classes else sums.double()
        return Sequences(x, y, tuple(f"{name}{k}" for k in range(count)))

    names = tuple("abcdefg"[:classes]) or None
    return Dataset("sums", ("u", "v"), names, "y", part(40, "t"), part(16, "e"), "made", validation=part(20, "v"))


def numbers(value: Any) -> Any:
    """Results without what differs from one time to the next: how long it took."""
    if isinstance(value, dict):
        times = {"seconds", "loading", "train_seconds", "step_microseconds", "machine", "command"}
        return {key: numbers(each) for key, each in value.items() if key not in times}
    return [numbers(each) for each in value] if isinstance(value, list) else value


def content(folder: Path) -> tuple[Any, dict[str, bytes]]:
    """The numbers of a run folder, and its weights."""
    weights = {path.name: path.read_bytes() for path in (folder / "models").glob("*.safetensors")}
    return numbers(json.loads((folder / "results.json").read_text())), weights


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Killed at any moment


def run_slowly(folder: Path, training: Any, dies_in_saving: bool) -> None:
    """What the killed processes do: the pause makes them meet their end in the middle of training."""

    def pause(_: object) -> None:
        training.set()
        time.sleep(0.03)

    if dies_in_saving:  # when the models have moved in, and the results have not
        rename = Path.rename

        def last_rename(self: Path, target: Path) -> Path:
            if self.name == "report.html":
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        Path.rename = last_rename  # type: ignore[method-assign]
    compare(made(), ["gru"], seeds=2, settings=SETTINGS, folder=folder, resume=True, callbacks=[pause])


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    compare(made(), ["gru"], seeds=2, settings=SETTINGS, folder=tmp_path / "whole")
    processes = multiprocessing.get_context("forkserver")
    # What a training imports on its way: once, not in each process.
    processes.set_forkserver_preload(["anyrnn.workbench", "sklearn.linear_model", "sklearn.metrics", "torch._dynamo"])
    seed = random.randrange(10**6)
    draw, killed, folder = random.Random(seed), 0, tmp_path / "cut"
    while True:
        training = processes.Event()
        process = processes.Process(target=run_slowly, args=(folder, training, killed == KILLS))
        process.start()
        if killed < KILLS:
            training.wait(100)
            process.join(draw.uniform(0.0, 0.5))
            process.kill()
        process.join(100)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if killed == KILLS:
            assert (folder / "models/gru.json").exists() > (folder / "results.json").exists()
        killed += 1
    note = f"seed {seed}, killed {killed} times"
    assert killed, note
    assert content(folder) == content(tmp_path / "whole"), note
    whole, cut = (
        [numbers(line) | {"time": 0, "sequences_a_second": 0} for line in lines(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert cut == whole, note
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "models", "report.html", "results.json"]


class CutError(Exception):
    """The end of a process, played."""


def cut_after(epoch: int) -> Callable[[EpochEnd], None]:
    def stop(end: EpochEnd) -> None:
        if end.epoch.epoch > epoch:
            raise CutError

    return stop


def plain(run: Run) -> Run:
    return replace(run, seconds=0.0)


@pytest.mark.parametrize(
    ("cell", "changed"),
    [
        ("lstm", {"schedule": "one-cycle"}),
        ("rnn", {"schedule": "cosine", "weight_decay": 0.1}),
        ("rnn", {"schedule": "plateau", "patience": 3, "epochs": 12}),
        ("lstm", {"schedule": "constant", "patience": 4, "epochs": 12, "balanced": True}),
        ("rnn", {"metric": "auc"}),
        ("lstm", {"metric": "rmse"}),
    ],
)  # fmt: skip
def test_a_training_goes_on_from_any_epoch_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, changed: dict[str, Any]
) -> None:
    monkeypatch.setattr(checkpoint_module, "_SHARE", float("inf"))  # a checkpoint after each epoch
    data = made(0 if changed.get("metric") == "rmse" else 2)
    settings = replace(SETTINGS, **changed)
    model, run = train(NETWORKS[cell], data, settings, 1)
    for epoch in (1, 4) if changed.get("schedule") == "one-cycle" else (3,):
        folder, seen = tmp_path / str(epoch), list[int]()
        with pytest.raises(CutError):
            train(NETWORKS[cell], data, settings, 1, cut_after(epoch), Checkpoints(folder, {}))
        torch.manual_seed(epoch)  # whatever the process was doing before
        checkpoints = Checkpoints(folder, {})
        again, found = train(
            NETWORKS[cell], data, settings, 1, lambda end, seen=seen: seen.append(end.epoch.epoch), checkpoints
        )
        assert seen == list(range(epoch + 1, len(run.history) + 1))
        assert plain(found) == plain(run)
        assert found.seconds > 0
        there, here = model.module.state_dict(), again.module.state_dict()
        assert all(torch.equal(there[name], here[name]) for name in there | here)
        assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


def test_what_had_ended_is_not_trained_again_and_is_the_same(tmp_path: Path) -> None:
    first = train(NETWORKS["lstm"], made(), SETTINGS, 0, None, Checkpoints(tmp_path, {}))
    seen: list[EpochEnd] = []
    model, run = train(NETWORKS["lstm"], made(), SETTINGS, 0, seen.append, Checkpoints(tmp_path, {}))
    assert not seen
    assert run == first[1]
    assert repr(model.layer) == repr(first[0].layer)
    assert model.predict(made().test.x).values == run.predictions


# With nothing else


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of which the first network is finished and the second has begun."""
    folder = tmp_path_factory.mktemp("begun") / "run"

    def stop(record: Mapping[str, Any]) -> None:
        if record["model"] == "lstm" and record["epoch"] == 2:
            raise CutError

    with pytest.raises(CutError):
        compare(made(), ["rnn", "lstm"], seeds=1, settings=SETTINGS, folder=folder, callbacks=[stop])
    return folder


@pytest.fixture
def begun(unfinished: Path, tmp_path: Path) -> Path:
    """That comparison, in a folder of its own."""
    return Path(shutil.copytree(unfinished, tmp_path / "run"))


def other_data() -> Dataset:
    data = made()
    x = (data.train.x[0] + torch.tensor(2.0**-20), *data.train.x[1:])
    return replace(data, train=replace(data.train, x=x))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": replace(SETTINGS, learning_rate=0.1)}, r"settings\.learning_rate: 0.02 there, 0.1 here"),
        ({"settings": replace(SETTINGS, epochs=7)}, r"settings\.epochs: 6 there, 7 here"),
        ({"cells": ["rnn", "gru"]}, r'networks: \["rnn", "lstm"\] there, \["rnn", "gru"\] here'),
        ({"seeds": 2}, r"seeds: \[0\] there, \[0, 1\] here"),
        ({"dataset": other_data()}, r"data\.train\.values: \w{64} there, \w{64} here".replace("{64}", r"+(\.\.\.)?")),
        ({"dataset": replace(made(), target="z")}, "data.target: y there, z here"),
        ({"dataset": replace(made(), test=made().test.subset(range(8)))}, "data.test.sequences: 16 there, 8 here"),
    ],
)  # fmt: skip
def test_other_data_or_settings_are_refused_by_name(begun: Path, changed: dict[str, Any], said: str) -> None:
    before = sorted(begun.rglob("*"))
    arguments: dict[str, Any] = {"dataset": made(), "cells": ["rnn", "lstm"], "seeds": 1, "settings": SETTINGS}
    with pytest.raises(AnyRNNError, match=f"run: the run that was begun there differs .* in {said}; .*--overwrite"):
        compare(**{**arguments, **changed}, folder=begun, resume=True)
    assert sorted(begun.rglob("*")) == before


def test_a_finished_network_is_not_trained_again(begun: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    results = compare(
        made(), ["rnn", "lstm"], seeds=1, settings=SETTINGS, folder=begun, resume=True, callbacks=[seen.append]
    )
    assert {record["model"] for record in seen} == {"lstm"}
    whole = compare(made(), ["rnn", "lstm"], seeds=1, settings=SETTINGS)
    assert numbers(results.to_dict()) == numbers(whole.to_dict())


def test_a_cell_whose_code_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = Path("cell_that_changes.py")
    code.write_text(
        "import torch\nclass Mine(torch.nn.RNNCell):\n    pass\n",
    )
    stop = iter([False, True]).__next__

    def stopping(_: object) -> None:
        if stop():
            raise CutError

    arguments: dict[str, Any] = {"cell": "cell_that_changes:Mine", "settings": SETTINGS, "folder": "run"}
    with pytest.raises(CutError):
        fit(made(), **arguments, callbacks=[stopping])
    code.write_text(code.read_text().replace("pass", "bias = 1"))
    linecache.checkcache()
    with pytest.raises(AnyRNNError, match=r"code\.cell_that_changes:Mine"):
        fit(made(), **arguments, resume=True)


def test_a_run_that_was_begun_is_neither_opened_nor_replaced_by_mistake(begun: Path) -> None:
    folder = begun
    with pytest.raises(AnyRNNError, match=r"this run is not finished; go on with it first: .*--resume"):
        open_run(folder)
    with pytest.raises(AnyRNNError, match=r"a run was begun there .*\(--resume\)"):
        fit(made(), settings=SETTINGS, folder=folder)
    fit(made(), "rnn", settings=SETTINGS, folder=folder, overwrite=True)
    assert open_run(folder).names == ("rnn",)
    with pytest.raises(AnyRNNError, match="the run there is finished, there is nothing to resume"):
        fit(made(), "rnn", settings=SETTINGS, folder=folder, resume=True)


@pytest.mark.parametrize("arguments", [{"resume": True}, {"overwrite": True}])
def test_without_a_folder_there_is_nothing_to_resume(arguments: dict[str, bool]) -> None:
    with pytest.raises(AnyRNNError, match="expected folder="):
        fit(made(), settings=SETTINGS, **arguments)
    with pytest.raises(AnyRNNError, match="expected one of the two"):
        fit(made(), settings=SETTINGS, folder="x", resume=True, overwrite=True)


def test_a_damaged_checkpoint_is_said(begun: Path) -> None:
    (path,) = begun.glob("training/rnn-0/*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AnyRNNError, match=r"rnn-0.checkpoint\.json: this checkpoint is damaged .*checksum"):
        compare(made(), ["rnn", "lstm"], seeds=1, settings=SETTINGS, folder=begun, resume=True)


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def second(_: object) -> None:
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(AnyRNNError, match="another process is training this run"):
                fit(made(), "rnn", settings=short, folder=folder, **how)

    short = replace(SETTINGS, epochs=1)
    fit(made(), "rnn", settings=short, folder=folder, callbacks=[second])


# Disks


def test_a_disk_that_is_full_on_the_way_costs_the_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "_SHARE", float("inf"))
    written, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) in range(6, 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    whole = fit(made(), settings=SETTINGS)
    monkeypatch.setattr(durable_module.os, "fsync", full)
    with pytest.warns(UserWarning, match="checkpoints cannot be written: No space left .*the training goes on") as said:
        results = fit(made(), settings=SETTINGS, folder=tmp_path / "run")
    assert len(said) == 1
    assert numbers(results.to_dict()) == numbers(whole.to_dict())
    assert open_run(tmp_path / "run").model()
    assert len(lines(tmp_path / "run")) == SETTINGS.epochs


# On the command line


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        f"{k},{t},{(7 * k + 3 * t) % 11 - 5},{'up' if k % 2 else 'down'}" for k in range(24) for t in range(3 + k % 4)
    ]
    (tmp_path / "d.csv").write_text("\n".join(["id,t,a,y", *rows, ""]))
    return tmp_path


COMPARE = ("compare", "d.csv", "--id", "id", "--time", "t", "--target", "y", "--hidden", "4", "--epochs", "3",
           "--cells", "rnn,gru", "--seeds", "1")  # fmt: skip


def test_ctrl_c_saves_what_was_finished_and_says_how_to_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --out: the number of the folder is found again."""
    invoke(*COMPARE)  # runs/d is finished
    fails = iter([False] * 4 + [True]).__next__
    record = checkpoint_module.Checkpoints.save

    def interrupted(self: Checkpoints, *arguments: Any, **options: Any) -> None:
        record(self, *arguments, **options)
        if fails():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "_SHARE", float("inf"))
        patched.setattr(Checkpoints, "save", interrupted)
        result = invoke(*COMPARE)
    assert result.exit_code == 130
    assert result.stderr == (
        "Interrupted. The networks that had all their runs (RNN) are saved in runs/d-2. What was trained is kept: the "
        "same command with --resume goes on in runs/d-2.\n"
    )
    assert open_run("runs/d-2").results["unfinished"] == ["gru"]
    refused = invoke(*COMPARE, "--resume", "--learning-rate", "0.1")
    assert (refused.exit_code, "differs from this one in settings.learning_rate" in refused.stderr) == (2, True)
    result = invoke(*COMPARE, "--resume")
    assert result.exit_code == 0, result.output
    assert "Report: runs/d-2/report.html" in result.stdout
    assert content(here / "runs/d-2") == content(here / "runs/d")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["d", "d-2"]


def test_an_interrupted_overwriting_leaves_the_finished_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke(*COMPARE, "--cells", "rnn", "--out", "run")
    before, log = content(here / "run"), (here / "run/metrics.jsonl").read_text()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_write", interrupted)
        result = invoke(*COMPARE, "--cells", "rnn", "--out", "run", "--overwrite")
    assert (result.exit_code, result.stderr) == (130, "Interrupted. Nothing was written.\n")
    assert (content(here / "run"), (here / "run/metrics.jsonl").read_text()) == (before, log)
    assert not (here / "run/training").exists()
