"""Training runs on a Dask cluster of processes: the bits of one process, whatever happens to workers.

`make test-estimators` runs it, where distributed is installed.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

distributed = pytest.importorskip("distributed", reason="distributed is not installed: make test-estimators")

from dying import MARK  # noqa: E402
from test_jobs import SETTINGS, content, sums  # noqa: E402

import anyrnn  # noqa: E402 - where distributed is
from anyrnn.errors import AnyRNNError  # noqa: E402
from anyrnn.workbench import Dataset, Settings, cluster, compare, fit  # noqa: E402

CELLS = ["gru", "rnn"]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return sums()


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two processes, one of which `dying` kills."""
    mark = tmp_path_factory.mktemp("dying") / "mark"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", path)
        patched.setenv(MARK, str(mark))
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as found:
            patched.delenv(MARK)  # here nothing dies
            yield found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch for each epoch."""
    monkeypatch.setattr(cluster, "_LEAST_STRETCH", 0.0)
    monkeypatch.setattr(cluster, "_STRETCH_A_WORKER", 0.0)
    monkeypatch.setattr(cluster, "_SHARE", float("inf"))


def test_a_cluster_gives_the_bits_of_one_process(data: Dataset, dask: Any, tmp_path: Path) -> None:
    compare(data, CELLS, seeds=2, settings=SETTINGS, folder=tmp_path / "here")
    networks: list[str] = []
    compare(
        data,
        CELLS,
        seeds=2,
        settings=SETTINGS,
        folder=tmp_path / "there",
        scheduler=dask.scheduler_address,
        on_network=lambda results: networks.append(results.entries[-1].model.network.name),
    )
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert networks == CELLS


@pytest.mark.usefixtures("short")
def test_a_worker_that_is_killed_in_the_middle_of_an_epoch_costs_its_job(
    data: Dataset, dask: Any, tmp_path: Path
) -> None:
    cells = ["dying:Dying", "rnn"]
    with anyrnn.engine("reference"):  # every step is one in Python
        compare(data, cells, seeds=2, settings=SETTINGS, folder=tmp_path / "here")
        with pytest.warns(UserWarning, match="its worker was lost") as warned:
            compare(
                data, cells, seeds=2, settings=SETTINGS, folder=tmp_path / "there", scheduler=dask.scheduler_address
            )
    (said,) = (str(each.message) for each in warned)
    assert re.fullmatch(
        r"dying:Dying, seed \d: its worker was lost \(tcp://127\.0\.0\.1:\d+\); this training run is tried again", said
    )
    assert content(tmp_path / "there") == content(tmp_path / "here")


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("first", ["there", "here"])
def test_a_run_that_was_cut_off_goes_on_at_the_other_place(
    data: Dataset, dask: Any, tmp_path: Path, first: str
) -> None:
    fit(data, "gru", settings=SETTINGS, folder=tmp_path / "whole")
    addresses = [dask.scheduler_address, None]
    if first == "here":
        addresses.reverse()

    def stop(progress: Any) -> None:
        if progress.epoch.epoch == 3:
            raise KeyboardInterrupt

    where = {"settings": SETTINGS, "folder": tmp_path / "cut"}
    with pytest.raises(KeyboardInterrupt):
        fit(data, "gru", **where, on_epoch=stop, scheduler=addresses[0])
    seen: list[int] = []
    fit(
        data,
        "gru",
        **where,
        resume=True,
        callbacks=[lambda record: seen.append(record["epoch"])],
        scheduler=addresses[1],
    )
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert seen == list(range(seen[0], 5))
    assert seen[0] > 1
    assert tasks_left(dask) == 0


def tasks_left(dask: Any) -> int:
    """How many tasks the scheduler still has, once it has had time to forget them."""
    end = time.monotonic() + 20
    while dask.scheduler.tasks and time.monotonic() < end:
        time.sleep(0.05)
    return len(dask.scheduler.tasks)


def test_threads_give_the_same_bits_in_a_worker(data: Dataset, dask: Any) -> None:
    settings = Settings(hidden_size=300, epochs=2, batch_size=40, threads=2)
    here = fit(data, "lstm", settings=settings).best.model.module.state_dict()
    there = fit(data, "lstm", settings=settings, scheduler=dask.scheduler_address).best.model.module.state_dict()
    assert all(torch.equal(there[name], weight) for name, weight in here.items())


def test_it_waits_for_a_worker_and_says_so(data: Dataset) -> None:
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as empty:
        later = threading.Timer(1.5, empty.scale, [1])
        later.start()
        with pytest.warns(UserWarning, match="tcp://.*: no worker is there; waiting for one") as warned:
            results = fit(data, "rnn", settings=Settings(hidden_size=2, epochs=1), scheduler=empty.scheduler_address)
        later.join()
    assert len(warned) == 1
    assert results.best.runs[0].epoch == 1


# Refusals


@pytest.mark.parametrize(
    "address, message",
    [
        ("tcp://127.0.0.1:9", r"nothing answers at tcp://127\.0\.0\.1:9 \(.*start one by `dask scheduler`"),
        ("nowhere", r"got 'nowhere', expected an address such as tcp://host:8786"),
    ],
)
def test_no_scheduler_is_said(data: Dataset, address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    with pytest.raises(AnyRNNError, match=message):
        fit(data, scheduler=address)


def test_workers_with_something_else_are_refused(
    data: Dataset, dask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "0.1")
        with pytest.raises(AnyRNNError, match=r"torch: 2\.\S+ there, 0\.1 here") as refused:
            fit(data, "rnn", settings=SETTINGS, scheduler=dask.scheduler_address)
    assert str(refused.value).count("has something else than this machine") == 2
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "only_here.py").write_text((Path(__file__).parent / "dying.py").read_text())
    with pytest.raises(AnyRNNError, match=r"the worker tcp://\S+ cannot do it: AnyRNNError: .*only_here"):
        fit(data, "only_here:Dying", settings=SETTINGS, scheduler=dask.scheduler_address)


def test_a_scheduler_that_goes_away_is_said(data: Dataset) -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as short_lived:

        def end(_: Any) -> None:
            short_lived.close()

        with pytest.raises(AnyRNNError, match=r"the scheduler cannot be reached any more .* go on with --resume"):
            fit(
                data,
                "rnn",
                settings=replace(SETTINGS, epochs=1_000_000),
                on_epoch=end,
                scheduler=short_lived.scheduler_address,
            )
