"""One model over several processes: the numbers of one process with a batch as large as theirs together."""

import itertools
import json
import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Sequences, Settings, fit
from anyrnn.workbench.fingerprint import check_same
from anyrnn.workbench.processes import World, together, world

#: Of 33 sequences, batches of 16 leave one: the other process has none in the last update of an epoch.
DATA = {"hidden_size": 5, "epochs": 3, "learning_rate": 0.02, "balanced": True, "clip_norm": 0.5}


def made() -> Dataset:
    draw = torch.Generator().manual_seed(5)

    def part(count: int, name: str) -> Sequences:
        x = tuple(torch.randn(2 + k % 9, 2, generator=draw) for k in range(count))
        y = torch.stack([each[:, 0].sum() for each in x]).gt(0.5).long()
        return Sequences(x, y, tuple(f"{name}{k}" for k in range(count)))

    return Dataset("sums", ("u", "v"), ("a", "b"), "y", part(33, "t"), part(7, "e"), "made", validation=part(9, "v"))


def process(rank: int, folder: Path) -> None:
    """What each of two processes does."""
    where = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", where, timedelta(seconds=100), world_size=2, rank=rank)
    with together():
        assert (world().rank, world().size) == (rank, 2)
        cut = folder / "cut"

        def stop(progress: Any) -> None:
            if progress.epoch.epoch == 3:
                raise InterruptedError

        heard: list[Any] = []

        fit(made(), "gru", settings=Settings(batch_size=8, **DATA), folder=folder / "two")
        noisy = Settings(batch_size=8, dropout=0.3, **DATA)  # each process draws numbers of its own
        (whole,) = fit(made(), "gru", settings=noisy).entries
        with pytest.raises(InterruptedError):
            fit(made(), "gru", settings=noisy, folder=cut, on_epoch=stop, callbacks=[heard.append])
        (again,) = fit(made(), "gru", settings=noisy, folder=cut, resume=True).entries
        assert [record["epoch"] for record in heard] == ([] if rank else [1, 2, 3])
        assert again.runs[0].history == whole.runs[0].history
        assert again.runs[0].predictions == whole.runs[0].predictions
        try:
            check_same({"data": rank})
        except AnyRNNError as refused:
            (folder / "refused").write_text(str(refused))
    with_no_steps(rank, folder)
    distributed.destroy_process_group()


def with_no_steps(rank: int, folder: Path) -> None:
    """PyTorch's own wrapper around a layer of ours, in a process all of whose rows have length 0."""
    torch.manual_seed(0)
    model = anyrnn.ManyToOne(anyrnn.LSTM(2, 3, num_layers=2, bidirectional=True), 2)
    spread = nn.parallel.DistributedDataParallel(model)
    for _ in range(3):
        x = torch.randn(4, 2, 2)
        spread(x, lengths=[0, 0] if rank else [4, 2])[0].square().sum().backward()
    if rank:
        torch.save({name: p.grad for name, p in model.named_parameters()}, folder / "gradients.pt")


def numbers(folder: Path) -> Any:
    run = json.loads((folder / "results.json").read_text())["models"][0]["runs"][0]
    weights = anyrnn.workbench.open_run(folder).model().module.state_dict()
    return run, weights


def test_two_processes_are_one_with_the_double_batch(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anyrnn.workbench", "sklearn.linear_model", "sklearn.metrics", "torch._dynamo"])
    processes = [context.Process(target=process, args=(rank, tmp_path)) for rank in (0, 1)]
    for each in processes:
        each.start()
    fit(made(), "gru", settings=Settings(batch_size=16, **DATA), folder=tmp_path / "one")
    for each in processes:
        each.join(200)
        assert each.exitcode == 0
    one, weights_of_one = numbers(tmp_path / "one")
    two, weights_of_two = numbers(tmp_path / "two")
    for there, here in zip(one["history"], two["history"], strict=True):
        assert here == pytest.approx(there, abs=1e-6)
    assert two["scores"] == pytest.approx(one["scores"], abs=1e-6)
    assert [two[name] for name in ("epoch", "predictions")] == [one[name] for name in ("epoch", "predictions")]
    for name, weight in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], weight, rtol=0, atol=1e-6)
    assert len((tmp_path / "two/metrics.jsonl").read_text().splitlines()) == DATA["epochs"], "one of the two writes"
    assert "process 1 differs from process 0 in data: 0 there, 1 here" in (tmp_path / "refused").read_text()
    gradients = torch.load(tmp_path / "gradients.pt")
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


def test_shares_have_about_as_many_steps_and_every_sequence_once() -> None:
    lengths = [9, 1, 1, 1, 1, 1, 1, 2, 30, 5, 5, 4]
    shares = World(0, 3).shares(lengths)
    assert sorted(itertools.chain(*shares)) == list(range(len(lengths)))
    assert [sum(lengths[k] for k in share) for share in shares] == [30, 16, 15]
    assert World(1, 3).share(lengths) == shares[1]
    assert World(2, 3).shares([4]) == [[0], [], []]
    assert World(0, 2).shares([0, 0, 0, 0]) == [[0, 2], [1, 3]]
