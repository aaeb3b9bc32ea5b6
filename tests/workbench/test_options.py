"""The options of training: each does what it says, is off by default, and a saved network needs none of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.compare import Results, fit
from anyrnn.workbench.data import Dataset, load
from anyrnn.workbench.inspect import gates
from anyrnn.workbench.models import COMPARED, NETWORKS, Structure, build, network
from anyrnn.workbench.runs import open_run
from anyrnn.workbench.train import Settings

QUICK = Settings(hidden_size=5, epochs=2)

OWN_CELL = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.new(torch.cat((x, h), dim=1)))
"""


@pytest.fixture(scope="module")
def few() -> Dataset:
    vowels = load("japanese-vowels", validation=0)
    return replace(vowels, train=vowels.train.subset(range(0, 270, 9)), test=vowels.test.subset(range(0, 360, 12)))


def losses(results: Results) -> list[float]:
    return [point.train_loss for point in results.entries[0].runs[0].history]


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "option",
    [
        {"dropout": 0.5},
        {"recurrent_dropout": 0.5},
        {"weight_decay": 10.0},
        {"clip_norm": 1e-3},
        {"clip_gradient": 1e-4},
        {"schedule": "cosine"},
        {"layers": 2},
        {"bidirectional": True},
    ],
)
def test_each_option_changes_the_training_and_is_off_by_default(few: Dataset, option: dict[str, object]) -> None:
    assert losses(fit(few, "gru", settings=replace(QUICK, **option))) != losses(fit(few, "gru", settings=QUICK))
    assert not {"dropout", "recurrent_dropout", "weight_decay"} & {k for k, v in vars(Settings()).items() if v}


@pytest.mark.parametrize("cell", NETWORKS)
def test_layers_and_directions_are_those_asked_for_unless_the_network_says_so_itself(cell: str) -> None:
    module = build(network(cell), 3, 2, Structure(4, "last", layers=3, bidirectional=True), dropout=0.25)
    assert module.layer.num_layers == (2 if cell == "lstm-2" else 3)
    assert module.layer.bidirectional
    assert module.layer.dropout == 0.25
    assert module.linear.in_features == 8
    plain = build(network(cell), 3, 2, Structure(4))
    assert plain.layer.num_layers == (2 if cell == "lstm-2" else 1)
    assert plain.layer.bidirectional is (cell == "bilstm")
    assert plain.layer.dropout == 0


def test_dropout_before_the_linear_layer_acts_in_training_only() -> None:
    module = build(network("rnn"), 3, 2, Structure(64), dropout=0.5)
    x = torch.randn(5, 4, 3)
    module.train()
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    plain = build(network("rnn"), 3, 2, Structure(64))
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(x)[0], plain(x)[0])


def test_options_reach_the_layer() -> None:
    layer = build(network("lstm"), 3, 2, Structure(4), recurrent_dropout=0.3, clip_gradient=0.7).layer
    assert layer.clip_gradient == 0.7
    assert "recurrent_dropout=0.3" in repr(layer)


def test_weight_decay_is_of_matrices_only(few: Dataset) -> None:
    # With a rate of 0.005 at its peak and a decay of 1000, a matrix would have grown to nothing, and no vector.
    settings = replace(QUICK, epochs=1, learning_rate=1e-6, weight_decay=1e6, schedule="constant")
    before = fit(few, "lstm", settings=replace(settings, weight_decay=0.0)).entries[0].model.module.state_dict()
    after = fit(few, "lstm", settings=settings).entries[0].model.module.state_dict()
    for name, tensor in after.items():
        if tensor.dim() > 1:
            assert tensor.abs().max() < 1e-5
        else:
            assert torch.allclose(tensor, before[name], atol=1e-5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"layers": 0}, "layers=0, expected an int of at least 1"),
        ({"dropout": 1.0}, "dropout=1.0, expected a number of at least 0 and below 1"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout=-0.1, expected a number of at least 0 and below 1"),
        ({"weight_decay": math.nan}, "weight_decay=nan, expected a number of at least 0"),
        ({"clip_gradient": 0.0}, "clip_gradient=0.0, expected a number above 0"),
        ({"schedule": "linear"}, "schedule='linear', expected one of one-cycle, cosine, plateau, constant"),
        ({"patience": 0}, "patience=0, expected an int of at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(AnyRNNError, match=message):
        Settings(**wrong)


@pytest.mark.grid(2)
@pytest.mark.parametrize("cell", ["lstm", "bilstm", "lstm-2", "indrnn", "own_cell_of_options:Own"])
def test_a_network_of_several_layers_and_directions_is_opened_again(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str
) -> None:
    (tmp_path / "own_cell_of_options.py").write_text(OWN_CELL)
    monkeypatch.chdir(tmp_path)
    settings = replace(QUICK, layers=2, bidirectional=True, dropout=0.2, clip_gradient=1.0)
    if cell != "indrnn":  # which has no product that takes its state
        settings = replace(settings, recurrent_dropout=0.2)
    results = fit(few, cell, settings=settings)
    results.save("run")
    assert open_run("run", cells=[cell]).predict(few.test.x).values == results.entries[0].runs[0].predictions


@pytest.mark.parametrize("cell", sorted(set(NETWORKS) - set(COMPARED)))
def test_cells_of_cells_are_trained_and_looked_into(few: Dataset, cell: str) -> None:
    results = fit(few, cell, settings=replace(QUICK, epochs=6, learning_rate=0.02))
    assert losses(results)[-1] < losses(results)[0]
    assert results.entries[0].engines == ("cpu",)
    assert gates(results.entries[0].model, few.test, 0).matrices["h"].shape[1] == 5


def test_a_run_of_the_first_format_is_opened(few: Dataset, tmp_path: Path) -> None:
    results = fit(few, "lstm", settings=QUICK)
    folder = results.save(tmp_path / "run")
    for name in ("results.json", "models/lstm.json"):
        content = json.loads((folder / name).read_text())
        content["format"] = 1
        for key in ("layers", "bidirectional"):
            content.pop(key, None)
        (folder / name).write_text(json.dumps(content))
    assert open_run(folder).predict(few.test.x).values == results.entries[0].runs[0].predictions


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": 2**30}, "got layers=1073741824, but lstm.safetensors has 6 weights only"),
        ({"layers": 2}, r"layer.weight_ih_l1 is absent in the file"),
        ({"layers": 0}, "got layers=0, expected a whole number above 0"),
        ({"bidirectional": 1}, "got bidirectional=1, expected true or false"),
    ],
)
def test_a_description_of_other_layers_is_refused(few: Dataset, tmp_path: Path, change: dict, message: str) -> None:
    folder = fit(few, "lstm", settings=QUICK).save(tmp_path / "run")
    path = folder / "models/lstm.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        open_run(folder).model()
