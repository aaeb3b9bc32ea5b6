"""Missing values: what a network is told of them, by which rule, and that it helps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Settings, fit, from_arrays, load, open_run
from anyrnn.workbench.bench import Setting, bench
from anyrnn.workbench.gaps import GapFeatures, time_since, without_padding
from anyrnn.workbench.gru_d import GRUDCell
from anyrnn.workbench.models import network
from anyrnn.workbench.sequences import Inputs, Scaler
from anyrnn.workbench.train import train
from anyrnn.workbench.ts import parse_ts

NAN = math.nan


def informative(count: int = 120, steps: int = 12, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """A feature whose value never changes in a sequence and says nothing: of one class it is missing more often.

    Filled with the last value it is whole again.
    """
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = draw.normal(size=(count, steps, 2))
    x[..., 0] = x[:, :1, 0]
    x[:, 1:, 0][draw.random((count, steps - 1)) < np.where(y, 0.15, 0.7)[:, None]] = NAN
    return x, ["seldom" if label else "often" for label in y]


def by_the_definition(x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Equation 2 of Che and others (2018), step by step."""
    since = np.zeros_like(x)
    for t in range(1, len(x)):
        for k in range(x.shape[1]):
            since[t, k] = times[t] - times[t - 1] + (since[t - 1, k] if np.isnan(x[t - 1, k]) else 0)
    return since


@pytest.mark.parametrize("clock", [None, 2])
def test_the_time_since_is_that_of_the_paper(clock: int | None) -> None:
    draw = np.random.default_rng(1)
    for _ in range(20):
        x = draw.normal(size=(9, 3))
        x[draw.random((9, 3)) < 0.5] = NAN
        times = np.cumsum(np.ones(9) if clock is None else draw.random(9))
        if clock is not None:
            x[:, clock] = np.diff(times, prepend=times[0])
        got = time_since(torch.from_numpy(x), clock)
        assert np.allclose(got.numpy(), by_the_definition(x, times), atol=1e-12)


@pytest.mark.parametrize(("gaps", "width"), [("fill", 2), ("mask", 4), ("since", 6)])
def test_the_scaler_is_fitted_on_what_was_seen_and_adds_columns(gaps: str, width: int) -> None:
    x = torch.tensor([[1.0, NAN], [NAN, 4.0], [3.0, 8.0]], dtype=torch.float64)
    scaler = Scaler.fit(Inputs((x,), None, ("a",)), ("nan",), gaps)  # type: ignore[arg-type]
    assert (scaler.mean, scaler.std, scaler.width) == ((2.0, 6.0), (1.0, 2.0), width)
    filled = [[-1.0, 0.0], [-1.0, -1.0], [1.0, 1.0]]
    seen = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    since = [[0.0, 0.0], [1 / 1.5, 1 / 1.0], [2 / 1.5, 1 / 1.0]]  # by their means where they are not 0
    expected = [
        a + (b if width > 2 else []) + (c if width > 4 else []) for a, b, c in zip(filled, seen, since, strict=True)
    ]
    assert torch.allclose(scaler(x), torch.tensor(expected))
    assert Scaler.from_dict(json.loads(json.dumps(scaler.to_dict()))) == scaler
    later = torch.full((5, 2), NAN)  # nothing seen at all
    assert scaler(later).isfinite().all()


@pytest.mark.parametrize(
    "told",
    [
        "mask",
        {"kind": "mask"},
        {"kind": "never", "usual": [], "clock": None},
        {"kind": "since", "usual": [1.0], "clock": None},
        {"kind": "since", "usual": [1.0, 0.0], "clock": None},
        {"kind": "since", "usual": [1.0, 1.0], "clock": 2},
        {"kind": "since", "usual": [1.0, 1.0], "clock": True},
        {"kind": "mask", "usual": [1.0, 1.0], "clock": None},
    ],
)
def test_what_a_file_says_of_gaps_is_checked(told: object) -> None:
    with pytest.raises(AnyRNNError, match="gaps"):
        Scaler.from_dict({"mean": [0.0, 0.0], "std": [1.0, 1.0], "missing": ["nan"], "gaps": told})


def test_a_network_that_is_told_of_gaps_beats_one_that_is_not_where_they_say_something() -> None:
    x, y = informative()
    settings = Settings(hidden_size=8, epochs=12, learning_rate=0.03, pool="mean")
    found: dict[str, float] = {}
    for gaps, cell in (("fill", "gru"), ("mask", "gru"), ("since", "gru"), ("since", "gru-d")):
        test = informative(60, seed=1)
        data = from_arrays(x, y, test=test, missing="nan", gaps=gaps, validation=0)  # type: ignore[arg-type]
        found[f"{cell}, {gaps}"] = train(network(cell), data, settings, seed=0)[1].score
    # How often it is missing tells nearly all sequences apart; the values tell none, and so does a filling.
    assert found.pop("gru, fill") < 0.7
    assert min(found.values()) > 0.8, found


def test_gru_d_is_a_gru_where_nothing_is_missing_and_nothing_decays() -> None:
    torch.manual_seed(0)
    cell, steps = GRUDCell(9, 5), torch.randn(7, 4, 3)
    with torch.no_grad():
        cell.decay_h.bias.fill_(-100.0)
        seen = torch.cat((steps, torch.ones_like(steps), torch.rand_like(steps)), -1)
        output, _ = anyrnn.Recurrent(cell, 9)(seen)
        h = torch.zeros(4, 5)
        for x, expected in zip(torch.cat((steps, torch.ones_like(steps)), -1), output, strict=True):
            z, r = torch.sigmoid(cell.gates(torch.cat((x[:, :3], h, x[:, 3:]), 1))).chunk(2, 1)
            h = (1 - z) * h + z * torch.tanh(cell.new(torch.cat((x[:, :3], r * h, x[:, 3:]), 1)))
            assert torch.allclose(h, expected, atol=1e-6)


def test_gru_d_forgets_by_its_decays() -> None:
    """Equations 10 to 12: what is missing goes to the mean, 0, and the state is multiplied by its decay."""
    cell = GRUDCell(3, 1)
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        cell.decay_x.fill_(0.5)
        cell.decay_h.weight.fill_(0.25)
        cell.new.weight[0, 0] = 1.0
        cell.gates.bias[0] = 100.0  # z = 1: the state is the new one
        x, since = 0.8, 2.0
        missing, there = (cell(torch.tensor([[x, seen, since]]), torch.zeros(1, 1)).item() for seen in (0.0, 1.0))
        assert missing == pytest.approx(math.tanh(x * math.exp(-0.5 * since)), abs=1e-6)
        assert there == pytest.approx(math.tanh(x), abs=1e-6)
        cell.gates.bias[0] = -100.0  # z = 0: it is the old one, decayed
        old = cell(torch.tensor([[x, 1.0, since]]), torch.ones(1, 1)).item()
        assert old == pytest.approx(math.exp(-0.25 * since), abs=1e-6)


@pytest.mark.parametrize("gaps", ["fill", "mask"])
def test_gru_d_wants_the_time_since(gaps: str) -> None:
    x, y = informative(20)
    data = from_arrays(x, y, missing="nan", gaps=gaps)  # type: ignore[arg-type]
    with pytest.raises(AnyRNNError, match=r"cell 'gru-d' reads what is said of .* expected gaps='since'"):
        fit(data, "gru-d", settings=Settings(epochs=1, hidden_size=2))
    for options in ({"num_layers": 2}, {"bidirectional": True}):
        with pytest.raises(AnyRNNError, match="one layer and one direction"):
            network("gru-d").layer(9, 4, gaps="since", **options)
    with pytest.raises(AnyRNNError, match="cell 'gru-d' reads what is said of missing values, which there is for"):
        bench(Setting("gru-d", 4, 9, 2, 3, seconds=0.01))


def test_a_run_tells_new_sequences_the_same(tmp_path: Path) -> None:
    rows = ["id,t,a,b,y"]
    for k in range(24):
        rows += [f"s{k},{1.5 * t},{'' if (k + t) % 3 else t},{k % 5},{'uv'[k % 2]}" for t in range(4)]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    data = load(tmp_path / "x.csv", id_column="id", time_column="t", target_column="y", gaps="since", delta_time=True)
    assert (data.missing, data.features) == (("nan",), ("a", "b", "delta time"))
    assert data.scaler.gaps is not None
    assert data.scaler.gaps.clock == 2
    assert any(note.endswith("is told which ones, and how long ago each feature was seen") for note in data.notes)
    results = fit(data, "gru-d", settings=Settings(epochs=1, hidden_size=3))
    run = open_run(results.save(tmp_path / "run"))
    assert run.model().scaler == data.scaler
    told = results.best.model.predict(data.test.x)
    assert torch.equal(run.predict(data.test.x).probabilities, told.probabilities)
    padded = [torch.cat((x, torch.full((3, 3), NAN))) for x in data.test.x]
    assert torch.equal(run.predict(padded).probabilities, told.probabilities)


def test_padding_ends_with_the_last_value_of_any_channel() -> None:
    x = torch.tensor([[NAN, NAN], [1.0, NAN], [NAN, 2.0], [NAN, NAN], [NAN, NAN]])
    assert torch.equal(without_padding(x).nan_to_num(), x[:3].nan_to_num())
    assert len(without_padding(x[3:])) == 1


def test_steps_at_the_end_of_a_ts_sequence_without_a_value_are_padding_and_that_is_said() -> None:
    text = "@dimensions 2\n@equalLength true\n@seriesLength 4\n@classLabel true u v\n@data\n"
    text += "1,2,3,4:5,6,7,8:u\n1,2,?,NaN:3,4,nan,?:v\n1,2,3,?:4,5,6,7:u\n"
    with pytest.raises(AnyRNNError, match=r"x.ts:8: the value of channel 1 at step 4 is missing"):
        parse_ts(text.encode(), "x.ts")
    parsed = parse_ts(text[: text.rindex("1,2,3,?")].encode(), "x.ts")
    assert [x.tolist() for x in parsed.x] == [[[1, 5], [2, 6], [3, 7], [4, 8]], [[1, 3], [2, 4]]]
    assert parsed.notes == (
        "1 of 2 sequences end in steps without any value (2 in all): these are padding, and no part of the sequence",
    )


def test_an_unknown_word_for_gaps_is_named() -> None:
    with pytest.raises(AnyRNNError, match=r"gaps='masks', expected one of fill, mask, since. Did you mean 'mask'"):
        load("japanese-vowels", gaps="masks")  # type: ignore[arg-type]
    with pytest.raises(AnyRNNError, match="gaps"):
        GapFeatures("never")  # type: ignore[arg-type]
