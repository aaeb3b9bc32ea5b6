"""Training: seeded to the bit, blind to the test part, right for every named network and for cells of one's own."""

import copy
import json
import math
import re
import statistics
import sys
from dataclasses import replace

import pytest
import torch

import anyrnn
from anyrnn.workbench.baselines import MAJORITY, STATISTICS, STEPS, Baseline
from anyrnn.workbench.compare import Results, compare, fit
from anyrnn.workbench.data import Dataset, load
from anyrnn.workbench.inspect import flow, gates
from anyrnn.workbench.models import COMPARED, NETWORKS, network
from anyrnn.workbench.report import render
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings, score, step_microseconds, train

QUICK = Settings(hidden_size=6, epochs=2)

OWN_CELLS = """
import torch
from torch import nn

class Leaky(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        candidate = torch.tanh(self.new(torch.cat((x, h), dim=1)))
        return 0.8 * h + 0.2 * candidate

class Lonely(nn.Module):
    def __init__(self, size):
        super().__init__()

class Explosive(Leaky):
    def forward(self, x, h):
        return 1e30 * (self.new(torch.cat((x, h), dim=1)) + h)

NotAModule = dict
"""


@pytest.fixture(scope="module")
def vowels() -> Dataset:
    return load("japanese-vowels", validation=0)


@pytest.fixture(scope="module")
def few(vowels: Dataset) -> Dataset:
    """Thirty sequences to train on, thirty to test on."""
    return replace(vowels, train=vowels.train.subset(range(0, 270, 9)), test=vowels.test.subset(range(0, 360, 12)))


@pytest.fixture(scope="module")
def numbers() -> Dataset:
    """Sequences of 3 to 12 steps whose target is 1000 + 50 times the mean of their first feature."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int, first: int) -> Sequences:
        x = tuple(torch.randn(3 + k % 10, 2, generator=generator) for k in range(count))
        y = torch.stack([1000 + 50 * each[:, 0].mean() for each in x])
        return Sequences(x, y, tuple(str(first + k) for k in range(count)))

    return Dataset("numbers", ("a", "b"), None, "mean", part(64, 0), part(32, 64), "made for this test")


@pytest.fixture
def own_cells(tmp_path, monkeypatch):
    """A current directory with a module of cells in it."""
    (tmp_path / "own_cells_of_a_user.py").write_text(OWN_CELLS)
    monkeypatch.chdir(tmp_path)
    return "own_cells_of_a_user"


def weights(results: Results) -> dict[str, torch.Tensor]:
    return results.entries[0].model.module.state_dict()


def same_weights(one: Results, other: Results) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


@pytest.mark.grid(2)
@pytest.mark.parametrize("cell", NETWORKS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(few: Dataset, cell: str) -> None:
    one, two, other = (fit(few, cell, seed=seed, settings=QUICK) for seed in (3, 3, 4))
    first, second = one.entries[0].runs[0], two.entries[0].runs[0]
    assert replace(first, seconds=0) == replace(second, seconds=0)
    assert same_weights(one, two)
    assert not same_weights(one, other)


def test_the_random_state_of_the_caller_is_left_alone_and_does_not_matter(few: Dataset) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = compare(few, ["lstm"], seeds=1, settings=QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_weights(one, compare(few, ["lstm"], seeds=1, settings=QUICK))


def test_the_weights_do_not_depend_on_the_test_part(few: Dataset) -> None:
    wild = replace(few.test, x=tuple(100 * x + 7 for x in few.test.x), y=few.test.y.flip(0))
    one, other = (fit(data, "gru", settings=QUICK) for data in (few, replace(few, test=wild)))
    assert same_weights(one, other)
    assert one.entries[0].model.scaler == other.entries[0].model.scaler
    assert one.entries[0].runs[0].predictions != other.entries[0].runs[0].predictions


def test_gradients_are_clipped(few: Dataset) -> None:
    # Adam divides by the gradient's size plus 1e-8, so that gradients cut to 1e-15 move nothing.
    still, clipped, moved = (
        weights(fit(few, "lstm", settings=replace(QUICK, **change)))
        for change in ({"learning_rate": 1e-12}, {"clip_norm": 1e-15}, {})
    )
    for name, tensor in still.items():
        assert torch.allclose(clipped[name], tensor, rtol=0, atol=1e-7)
        assert not torch.allclose(moved[name], tensor, rtol=0, atol=1e-3)


def test_an_lstm_reaches_its_known_accuracy_on_japanese_vowels(vowels: Dataset) -> None:
    results = compare(vowels, ["lstm"], seeds=3)
    assert results.entries[0].score_mean >= 0.965
    rivals = {baseline.name: baseline.score for baseline in results.baselines}
    assert max(rivals[MAJORITY], rivals[STATISTICS], rivals[STEPS]) < results.entries[0].score_mean


def test_a_number_is_learned_in_its_own_units(numbers: Dataset) -> None:
    results = fit(numbers, "gru", settings=Settings(hidden_size=16, epochs=40, batch_size=16))
    run = results.entries[0].runs[0]
    spread = numbers.test.y.std(correction=0).item()
    assert run.score < 0.5 * spread
    errors = [(p - y) ** 2 for p, y in zip(run.predictions, numbers.test.y.tolist(), strict=True)]
    assert math.sqrt(statistics.mean(errors)) == pytest.approx(run.score)
    assert results.metric == "rmse"


def test_the_best_network_is_the_most_accurate_one_or_the_one_with_the_least_error(
    few: Dataset, numbers: Dataset
) -> None:
    for data, pick in ((few, max), (numbers, min)):
        results = compare(data, ["rnn", "lstm", "gru"], seeds=2, settings=QUICK)
        scores = {entry.model.network.name: statistics.mean(r.score for r in entry.runs) for entry in results.entries}
        assert scores[results.best.model.network.name] == pick(scores.values())
        assert results.to_dict()["best"] == results.best.model.network.name


@pytest.mark.parametrize(
    ("right", "rival", "verdict"),
    [
        (9, 1.0, "No network: the baseline “majority class” wins with 100.0 %; the best network, RNN, gets 30.0 % of"),
        (29, 0.93, "RNN gets 96.7 % of 30 test sequences right, but that is a tie with the baseline “majority class”"),
        (29, 0.2, "RNN gets 96.7 % of 30 test sequences right."),
    ],
    ids=["the baseline wins", "a tie", "the network wins"],
)
def test_the_verdict_is_the_sentence_at_the_head_of_the_report(
    few: Dataset, right: int, rival: float, verdict: str
) -> None:
    results = compare(few, ["rnn"], seeds=1, settings=QUICK)
    (entry,), y = results.entries, few.test.y.tolist()
    run = replace(entry.runs[0], score=right / 30, predictions=tuple(y[:right] + [(k + 1) % 9 for k in y[right:]]))
    baselines = tuple(replace(b, score=s) for b, s in zip(results.baselines, (rival, 0, 0, 0, 0), strict=True))
    results = replace(results, entries=(replace(entry, runs=(run,)),), baselines=baselines)
    said = results.verdict.replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith(verdict)
    assert results.verdict in re.sub("</?strong>", "", render(results.to_dict(), None))


def test_no_network_is_recommended_where_the_nearest_neighbour_is_better(few: Dataset) -> None:
    """As on GunPoint: 150 test sequences, a network at 0.81, the nearest neighbour on the steps at 0.91."""
    generator = torch.Generator().manual_seed(0)
    x = tuple(torch.randn(5, 12, generator=generator) for _ in range(150))
    test = Sequences(x, torch.arange(150) % 9, tuple(map(str, range(150))))
    results = compare(replace(few, test=test), ["lstm"], seeds=1, settings=QUICK)
    (entry,), y = results.entries, test.y.tolist()
    right = round(0.81 * 150)
    run = replace(entry.runs[0], score=right / 150, predictions=tuple(y[:right] + [(k + 1) % 9 for k in y[right:]]))
    results = replace(
        results, entries=(replace(entry, runs=(run,)),), baselines=(Baseline(MAJORITY, 0.5), Baseline(STEPS, 0.913))
    )
    said = results.verdict.replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith(
        f"No network: the baseline “{STEPS}” wins with 91.3 %; the best network, LSTM, gets 81.3 % of"
    )
    assert "baseline" in results.table().splitlines()[-1]


def test_the_spread_is_the_sample_standard_deviation_over_the_seeds(few: Dataset) -> None:
    results = compare(few, ["rnn"], seeds=3, settings=QUICK)
    entry = results.to_dict()["models"][0]
    scores = [run["score"] for run in entry["runs"]]
    assert [run["seed"] for run in entry["runs"]] == [0, 1, 2]
    assert entry["score_std"] == pytest.approx(torch.tensor(scores, dtype=torch.float64).std(correction=1).item())
    assert compare(few, ["rnn"], seeds=1, settings=QUICK).to_dict()["models"][0]["score_std"] is None


def test_the_model_that_is_kept_is_the_first_seeds(few: Dataset) -> None:
    entry = compare(few, ["lstm"], seeds=2, settings=QUICK).entries[0]
    assert entry.model.predict(few.test.x).values == entry.runs[0].predictions
    assert entry.runs[0].predictions != entry.runs[1].predictions


def test_a_learning_curve_has_a_point_for_each_epoch_and_ends_with_the_score(few: Dataset) -> None:
    seen = []
    results = compare(few, ["rnn", "gru"], seeds=2, settings=QUICK, on_epoch=seen.append)
    runs = [run for entry in results.entries for run in entry.runs]
    assert [(p.run, p.seed, p.epoch) for p in seen] == [
        (k, run.seed, epoch) for k, run in enumerate(runs, 1) for epoch in run.history
    ]
    for run in runs:
        assert [epoch.epoch for epoch in run.history] == [1, 2]
        assert run.history[-1].test_score == run.score


def test_results_so_far_say_what_is_unfinished(few: Dataset) -> None:
    seen: list[Results] = []
    compare(few, ["rnn", "gru"], seeds=1, settings=QUICK, on_network=seen.append)
    assert [results.unfinished for results in seen] == [("gru",), ()]


def test_results_are_plain_json_with_what_the_report_needs(few: Dataset) -> None:
    results = compare(few, ["rnn"], seeds=1, settings=QUICK, command="anyrnn compare it").to_dict()
    again = json.loads(json.dumps(results, allow_nan=False))
    assert again["settings"] == {
        "hidden_size": 6, "epochs": 2, "batch_size": 32, "learning_rate": 0.005, "clip_norm": 1.0, "pool": "last",
        "threads": 1, "schedule": "one-cycle", "patience": None, "metric": "accuracy", "balanced": False,
        "layers": 1, "bidirectional": False,
        "dropout": 0.0, "recurrent_dropout": 0.0, "weight_decay": 0.0, "clip_gradient": None,
    }  # fmt: skip
    assert again["dataset"]["classes"] == [str(k) for k in range(1, 10)]
    assert again["dataset"]["train"] == again["dataset"]["test"] == 30
    assert again["test_targets"] == few.test.y.tolist()
    assert again["models"][0]["parameters"] == 6 * (12 + 6 + 2) + 9 * (6 + 1)
    assert (again["command"], again["seeds"], again["unfinished"]) == ("anyrnn compare it", [0], [])


@pytest.mark.long
def test_every_network_runs_as_machine_code_unless_told_otherwise(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANYRNN_ENGINE", raising=False)
    results = compare(few, NETWORKS, seeds=1, settings=replace(QUICK, epochs=1))
    assert {entry.engines for entry in results.entries} == {("cpu",)}
    assert all(model["engines"] == ["cpu"] for model in results.to_dict()["models"])
    with anyrnn.engine("reference"):
        (entry,) = compare(few, ["lstm"], seeds=1, settings=replace(QUICK, epochs=1)).entries
    assert entry.engines == ("reference",)


@pytest.mark.parametrize(
    "settings, sequences, epochs",
    [
        (Settings(), 320, 20),  # 10 updates an epoch
        (Settings(), 3200, 20),
        (Settings(), 270, 23),
        (Settings(), 20, 200),
        (Settings(batch_size=5), 20, 50),
        (Settings(epochs=3), 20, 3),
    ],
)
def test_few_sequences_get_more_epochs_unless_told(settings: Settings, sequences: int, epochs: int) -> None:
    assert settings.epochs_for(sequences) == epochs


def test_narrow_networks_get_one_thread_unless_told(few: Dataset) -> None:
    everything = torch.get_num_threads()
    assert Settings(hidden_size=256).thread_count == 1
    assert Settings(hidden_size=257).thread_count == everything
    assert Settings(hidden_size=8, threads=3).thread_count == 3
    seen = []
    results = compare(
        few,
        ["rnn"],
        seeds=1,
        settings=replace(QUICK, threads=2),
        on_epoch=lambda _: seen.append(torch.get_num_threads()),
    )
    assert seen == [2, 2]
    assert results.to_dict()["threads"] == 2
    assert torch.get_num_threads() == everything


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"hidden_size": 0}, "hidden_size=0, expected an int of at least 1"),
        ({"hidden_size": 1.5}, "hidden_size=1.5, expected an int"),
        ({"hidden_size": None}, "hidden_size=None, expected an int"),
        ({"epochs": 0}, "epochs=0, expected an int of at least 1"),
        ({"threads": 0}, "threads=0, expected an int of at least 1"),
        ({"batch_size": -3}, "batch_size=-3, expected an int of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0, expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan, expected a number above 0"),
        ({"clip_norm": math.inf}, "clip_norm=inf, expected a number above 0"),
        ({"pool": "first"}, "pool='first', expected one of last, mean, max"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        Settings(**wrong)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5])
def test_a_seed_that_torch_does_not_take_is_refused(few: Dataset, seed: int) -> None:
    with pytest.raises(anyrnn.AnyRNNError, match=f"seed: got {seed}, expected whole numbers from 0"):
        fit(few, seed=seed, settings=QUICK)


@pytest.mark.parametrize(
    "cells, seeds, message",
    [
        ([], 1, "got none, expected one or more names"),
        (["rnn", "rnn"], 1, "got rnn, rnn, expected one or more names, each once"),
        (["rnn"], 0, "seeds: got 0, expected how many runs"),
        (["rnn", "lstn"], 1, "cell 'lstn' is not known; the names are rnn, .* Did you mean 'lstm'?"),
        (["rnn", "no_such_module:Cell"], 1, "importing no_such_module failed: .*No module named"),
    ],
)
def test_a_comparison_that_cannot_run_is_refused_before_any_training(
    few: Dataset, cells: list[str], seeds: int, message: str
) -> None:
    seen: list[object] = []
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        compare(few, cells, seeds=seeds, settings=QUICK, on_epoch=seen.append)
    assert not seen


def test_a_cell_of_the_users_own_is_found_in_the_current_directory_and_trained(few: Dataset, own_cells: str) -> None:
    results = compare(few, ["rnn", f"{own_cells}:Leaky"], seeds=1, settings=QUICK)
    entry = results.entries[1]
    assert entry.model.network.title == "Leaky"
    assert entry.parameters == 6 * (12 + 6 + 1) + 9 * (6 + 1)
    assert entry.runs[0].history[1].train_loss < entry.runs[0].history[0].train_loss
    inside = gates(entry.model, few.test, 0)
    assert list(inside.matrices) == ["candidate", "h"]
    assert inside.ranges == {"candidate": (-1, 1)}
    assert flow(entry.model, few.test)[0][1] > 0


@pytest.mark.parametrize(
    "name, message",
    [
        ("Leakey", "has no class Leakey that is a torch.nn.Module; those it has: Leaky, .* Did you mean 'Leaky'?"),
        ("NotAModule", "has no class NotAModule that is a torch.nn.Module"),
        ("Lonely", r"Lonely\(12, 6\) failed: .*; expected a class that is called as Class\(input_size, hidden_size\)"),
        ("Explosive", "seed 0: training diverged in epoch 1: .* a lower learning rate than 0.005 may help"),
    ],
)
def test_a_cell_of_the_users_own_that_will_not_do_is_named(
    few: Dataset, own_cells: str, name: str, message: str
) -> None:
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        fit(few, f"{own_cells}:{name}", settings=QUICK)


def test_the_path_of_the_interpreter_is_as_before(own_cells: str) -> None:
    before = list(sys.path)
    network(f"{own_cells}:Leaky")
    assert sys.path == before


def test_a_prediction_does_not_depend_on_the_sequences_beside_it(few: Dataset) -> None:
    model = fit(few, "bilstm", settings=QUICK).entries[0].model
    together = model.predict(few.test.x).probabilities
    alone = torch.cat([model.predict([x]).probabilities for x in few.test.x])
    assert torch.allclose(together, alone, atol=1e-6)  # float32: other batch sizes, other order of sums


@pytest.mark.parametrize("cell", COMPARED)
def test_gates_are_those_that_made_the_output(few: Dataset, cell: str) -> None:
    model = fit(few, cell, settings=QUICK).entries[0].model
    found = gates(model, few.test, 5)
    T, H = len(few.test.x[5]), 6
    assert {tuple(matrix.shape) for matrix in found.matrices.values()} == {(T, H)}
    g = found.matrices
    if "lstm" in cell:
        assert list(g) == ["i", "f", "g", "o", "c", "h"]
        assert torch.allclose(g["h"], g["o"] * g["c"].tanh(), atol=1e-6)
        c = torch.zeros(H)
        for t in range(T):
            c = g["f"][t] * c + g["i"][t] * g["g"][t]
            assert torch.allclose(g["c"][t], c, atol=1e-5)
    elif cell == "gru":
        h = torch.zeros(H)
        for t in range(T):
            h = (1 - g["z"][t]) * g["n"][t] + g["z"][t] * h
            assert torch.allclose(g["h"][t], h, atol=1e-5)
    else:
        assert list(g) == ["h"]
    single = anyrnn.scan(model.layer.cell(0), model.scaler(few.test.x[5]).unsqueeze(1))[0][:, 0]
    assert torch.allclose(g["h"], single, atol=1e-5)
    for name, (low, high) in found.ranges.items():
        assert low <= g[name].min() <= g[name].max() <= high
    assert (found.sequence, found.true) == (few.test.ids[5], few.classes[int(few.test.y[5])])


@pytest.mark.grid(2)
@pytest.mark.parametrize("cell", NETWORKS)
def test_the_gradient_of_the_last_state_is_measured_for_every_network(few: Dataset, cell: str) -> None:
    points = flow(fit(few, cell, settings=QUICK).entries[0].model, few.test)
    assert [lag for lag, *_ in points] == list(range(max(len(x) for x in few.test.x[:32])))
    assert points[0][1] > 0
    assert all(low == mean == high for _, mean, low, high in points)


def test_looking_inside_leaves_the_model_as_it_was(few: Dataset) -> None:
    model = fit(few, "lstm", settings=QUICK).entries[0].model
    before, activations = copy.deepcopy(model.module.state_dict()), dict(model.layer.cell(0).activations)
    predictions = model.predict(few.test.x).probabilities
    gates(model, few.test, 0)
    assert torch.equal(model.predict(few.test.x).probabilities, predictions)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert model.layer.cell(0).activations == activations


def test_scores_are_the_share_of_right_classes_and_the_root_mean_squared_error() -> None:
    assert score([0, 1, 2, 2], torch.tensor([0, 1, 1, 2]), ("a", "b", "c")) == 0.75
    assert score([1.0, 3.0], torch.tensor([1.0, 0.0]), None) == pytest.approx(math.sqrt(4.5))


def test_a_step_of_a_wider_layer_takes_longer() -> None:
    narrow, wide = (step_microseconds(anyrnn.LSTM(2, size), 2) for size in (4, 1024))
    assert 0 < narrow < wide


def test_training_scores_with_dropout_off_and_trains_with_it_on(few: Dataset) -> None:
    dropping = replace(network("lstm"), layer=lambda i, h, **_: anyrnn.LSTM(i, h, num_layers=2, dropout=0.5))
    model, run = train(dropping, few, QUICK, 0)
    plain = replace(network("lstm"), layer=lambda i, h, **_: anyrnn.LSTM(i, h, num_layers=2))
    assert train(plain, few, QUICK, 0)[1].history != run.history
    assert model.predict(few.test.x).values == run.predictions
