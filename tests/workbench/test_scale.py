"""Neither an offset, a unit nor a few wild cells decide what a network or a baseline can see."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Settings, compare, fit, load, open_run
from anyrnn.workbench.baselines import baselines
from anyrnn.workbench.data import load_for_prediction
from anyrnn.workbench.sequences import Inputs, Scaler, Sequences, bulk, moments

ROLES: dict[str, Any] = {"id_column": "id", "time_column": "t", "target_column": "y"}
SMALL = Settings(hidden_size=16)
QUICK = Settings(hidden_size=8, epochs=20)
NEIGHBOUR = "1-nearest neighbour on summary statistics"
OFFSETS = [0, 1767225600, 2**24 + 1, 1_700_000_000_000, 1_700_000_000_000_000]
FORMATS = ["csv", "parquet", "ts", "Python"]


def dataset(folder: Path, form: str, x: list[list[float]], y: list[Any], **options: Any) -> Dataset:
    """The same sequences of one feature through each way into the workbench."""
    if form == "Python":
        classes = None if isinstance(y[0], float) else tuple(sorted(set(y)))
        targets = (
            torch.tensor(y, dtype=torch.float64) if classes is None else torch.tensor([classes.index(v) for v in y])
        )
        whole = Sequences(
            tuple(torch.tensor(steps, dtype=torch.float64).unsqueeze(1) for steps in x),
            targets,
            tuple(map(str, range(len(x)))),
        )
        odd, even = (whole.subset(k for k in range(len(x)) if k % 3 in part) for part in ((0,), (1, 2)))
        return Dataset("x", ("a",), classes, "y", even, odd, "made up")
    path = folder / f"x.{form}"
    if form == "ts":
        tag = "@targetlabel true" if isinstance(y[0], float) else "@classLabel true " + " ".join(sorted(set(y)))
        lines = [",".join(map(repr, steps)) + f":{label}" for steps, label in zip(x, y, strict=True)]
        path.write_text("\n".join([tag, "@data", *lines]))
        return load(path, **options)
    rows = [(str(i), t, value, y[i]) for i, steps in enumerate(x) for t, value in enumerate(steps)]
    frame = pl.DataFrame(rows, schema=["id", "t", "a", "y"], orient="row", strict=False)
    frame.write_csv(path) if form == "csv" else frame.write_parquet(path)
    return load(path, **ROLES, **options)


def slopes(offset: int) -> tuple[list[list[float]], list[str]]:
    """Counters that go up by one or by three a step, from `offset` on."""
    counters = [[offset + i + (1 if i % 2 else 3) * t for t in range(8)] for i in range(80)]
    return counters, ["slow" if i % 2 else "fast" for i in range(80)]  # type: ignore[return-value]


@pytest.mark.grid(2)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_an_offset_takes_nothing_from_what_is_seen(tmp_path: Path, form: str, offset: int) -> None:
    plain, shifted = (dataset(tmp_path, form, *slopes(start)) for start in (0, offset))
    for part in ("train", "test"):
        for one, other in zip(getattr(plain, part).x, getattr(shifted, part).x, strict=True):
            assert torch.allclose(plain.scaler(one), shifted.scaler(other), atol=1e-4 if offset < 1e12 else 1e-2)
    assert [b.score for b in baselines(plain)] == [b.score for b in baselines(shifted)]


def test_a_network_and_its_saved_model_tell_unix_times_apart(tmp_path: Path) -> None:
    data = dataset(tmp_path, "csv", *slopes(1767225600))
    results = fit(data, "gru", settings=SMALL)
    assert results.best.score_mean >= 0.9
    predictions = open_run(results.save(tmp_path / "run")).predict(data.test.x)
    new = load_for_prediction(tmp_path / "x.csv", features=("a",), classes=data.classes, **ROLES)
    again = open_run(tmp_path / "run").predict(new.x)
    assert predictions.values == results.entries[0].runs[0].predictions
    by_id = dict(zip(new.ids, again.values, strict=True))
    assert tuple(by_id[id_] for id_ in data.test.ids) == predictions.values


UNITS = [(0.0, 1.0), (1767225600.5, 1.0), (0.0, 1e30), (0.0, 1e-30), (0.0, 1e200), (0.0, 1e-200), (1e12, 1.0)]


@pytest.mark.grid(2)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("offset", "unit"), UNITS)
def test_targets_may_have_any_unit(tmp_path: Path, form: str, offset: float, unit: float) -> None:
    rng = random.Random(0)
    x = [[i / 10 + rng.random() / 100 for _ in range(4)] for i in range(45)]
    plain, other = (
        compare(
            dataset(tmp_path, form, x, [start + scale * (i + 0.25) for i in range(45)]),
            ["rnn"],
            seeds=1,
            settings=QUICK,
        )
        if form == "csv"
        else dataset(tmp_path, form, x, [start + scale * (i + 0.25) for i in range(45)])
        for start, scale in ((0.0, 1.0), (offset, unit))
    )
    if isinstance(plain, Dataset) or isinstance(other, Dataset):
        expected, got = ([b.score for b in baselines(each)] for each in (plain, other))  # type: ignore[arg-type]
    else:
        expected, got = ([*(b.score for b in each.baselines), each.best.score_mean] for each in (plain, other))
        assert ("does not beat" in plain.verdict) == ("does not beat" in other.verdict)
        other.save(tmp_path / "run")
    # Ridge errs by so little that the rounding of targets of 1e12 to float64 is seen.
    assert got == pytest.approx([score * unit for score in expected], rel=1e-3, abs=math.ulp(offset))


def test_targets_are_refused_as_constant_only_if_they_are(tmp_path: Path) -> None:
    x = [[float(i)] for i in range(20)]
    assert dataset(tmp_path, "csv", x, [1767225600.5 + i for i in range(20)]).task == "regression"
    with pytest.raises(AnyRNNError, match=r"is 1767225600.5 for every sequence: there is nothing to predict"):
        dataset(tmp_path, "csv", x, [1767225600.5] * 20)
    with pytest.raises(AnyRNNError, match="as far as float64 can tell: take a constant off it"):
        dataset(tmp_path, "parquet", x, [2**60 + i for i in range(20)], task="regression")


def test_whole_numbers_that_float64_rounds_are_named(tmp_path: Path) -> None:
    rows = {"id": range(8), "t": [0] * 8, "a": [2**60 + i for i in range(8)], "y": ["u", "v"] * 4}
    pl.DataFrame(rows).write_parquet(tmp_path / "x.parquet")
    notes = load(tmp_path / "x.parquet", **ROLES).notes
    assert any("beyond 2**53, which are rounded: 1152921504606846977 in data row 2" in note for note in notes)


# Wild cells


def noisy(count: int = 100) -> tuple[list[list[float]], list[str]]:
    rng = random.Random(1)
    return [[rng.gauss(i % 2, 1) for _ in range(8)] for i in range(count)], [f"c{i % 2}" for i in range(count)]


def spoilt(x: list[list[float]], value: float, share: float) -> list[list[float]]:
    rng = random.Random(3)
    return [[value if rng.random() < share else v for v in steps] for steps in x]


@pytest.mark.parametrize("value", [-9999.0, 1e9, 1e30, -1e300])
@pytest.mark.parametrize("share", [0.001, 0.006, 0.04, 0.3, 0.6])
def test_the_scale_withstands_cells_far_from_the_others(value: float, share: float) -> None:
    clean = Sequences(
        tuple(torch.tensor(s, dtype=torch.float64).unsqueeze(1) for s in noisy()[0]), torch.arange(100), ("a",) * 100
    )
    x = spoilt(noisy()[0], value, share)
    steps = Sequences(
        tuple(torch.tensor(s, dtype=torch.float64).unsqueeze(1) for s in x), torch.arange(100), ("a",) * 100
    )
    one, other = Scaler.fit(clean), Scaler.fit(steps)
    assert other.mean[0] == pytest.approx(one.mean[0], abs=0.1)
    assert other.std[0] == pytest.approx(one.std[0], rel=0.1)
    assert other(torch.tensor([[value]])).abs().item() < 1000


@pytest.mark.parametrize(("value", "share"), [(-9999.0, 0.006), (1e9, 0.006), (-9999.0, 0.2)])
def test_wild_cells_take_little_from_the_score(tmp_path: Path, value: float, share: float) -> None:
    x, y = noisy()
    clean = fit(dataset(tmp_path, "csv", x, y), "gru", settings=SMALL)
    wild = fit(dataset(tmp_path, "csv", spoilt(x, value, share), y), "gru", settings=SMALL)
    assert clean.best.score_mean >= 0.85
    assert wild.best.score_mean >= clean.best.score_mean - 0.2  # it was 0.5: the class of a coin


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=1000),
        np.random.default_rng(0).uniform(-1, 1, size=1000),
        np.random.default_rng(0).exponential(size=1000),
        np.array([0.0] * 990 + [1.0] * 10),
        np.array([0.0, 1.0]),
        np.array([-1.0] * 3 + [5.0] * 2),
        np.array([7.0] * 9),
        np.arange(2000.0) + 1.7e9,
        np.array([0.0] * 960 + list(np.random.default_rng(0).gamma(2, 5, size=40))),
        np.random.default_rng(0).choice([-100.0, 100.0], size=500) + np.random.default_rng(1).normal(size=500),
        np.array([5.0] * 100 + [-9999.0] * 5),
        np.array([1e-300, -1e308, 1e308]),
    ],
    ids=[
        "normal", "uniform", "exponential", "rare event", "two", "two groups", "constant", "counter", "rain", "modes",
        "constant and a mark", "extreme",
    ],
)  # fmt: skip
def test_what_is_no_outlier_is_scaled_as_ever(values: np.ndarray) -> None:
    assert bulk(values) == (values.min(), values.max())


@settings(deadline=None, max_examples=200)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30), other=st.floats())
def test_a_scaled_value_is_finite_and_keeps_its_order(values: list[float], other: float) -> None:
    scaler = Scaler.fit(Inputs((torch.tensor(values, dtype=torch.float64).unsqueeze(1),), None, ("a",)))
    new = sorted([*values, *([other] if math.isfinite(other) else [])])
    z = scaler(torch.tensor(new, dtype=torch.float64).unsqueeze(1))[:, 0]
    assert z.isfinite().all()
    assert z.abs().max() < 1000
    assert (z.diff() >= 0).all()


@settings(deadline=None, max_examples=200)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), power=st.integers(-900, 900))
def test_moments_know_no_unit(values: list[float], power: int) -> None:
    x = np.round(np.array(values), 3)
    mean, std = moments(x)
    scaled = moments(np.ldexp(x, power))
    assert scaled[0] == pytest.approx(math.ldexp(mean, power), rel=1e-9, abs=0)
    if x.min() < x.max():
        assert mean == pytest.approx(x.mean(), abs=1e-9 * np.abs(x).max())
        assert std == pytest.approx(x.std(), rel=1e-6)
        assert scaled[1] == pytest.approx(math.ldexp(std, power), rel=1e-9, abs=0)


def test_which_cells_lie_far_is_said(tmp_path: Path) -> None:
    x, y = noisy()
    x[30][2] = x[41][0] = -9999.0
    x[50][5] = 1e9
    (note,) = dataset(tmp_path, "csv", x, y).notes
    assert note.startswith("feature 'a': 3 of 800 cells lie far from the others (-")
    assert f"the first is -9999, {tmp_path / 'x.csv'}: data row 243 (id '30')." in note
    assert note.endswith("if -9999 means missing, say missing=-9999 (--missing -9999)")
    (note,) = dataset(tmp_path, "ts", x, y).notes
    assert f"the first is -9999, {tmp_path / 'x.ts'}:33, step 3 of channel 1." in note
    x[50][5] = x[30][2] = x[41][0] = 0.5
    assert dataset(tmp_path, "csv", x, y).notes == ()


def test_which_target_lies_far_is_said(tmp_path: Path) -> None:
    x = [[float(i), i + 1.5] for i in range(40)]
    notes = dataset(tmp_path, "csv", x, [-9999.0 if i == 7 else i + 0.5 for i in range(40)]).notes
    assert any(n.startswith("target 'y': 1 of 40 sequences lies far") and "id '7'" in n for n in notes)


# Missing values


@pytest.mark.parametrize("form", ["csv", "parquet", "ts"])
@pytest.mark.parametrize("missing", [-9999, "-9999.0", [-9999, "NA"], (-1, -9999)])
def test_named_values_are_missing_and_filled(tmp_path: Path, form: str, missing: Any) -> None:
    x, y = noisy(60)
    x[0][0] = x[0][1] = x[1][4] = x[2][7] = -9999.0
    data = dataset(tmp_path, form, x, y, missing=missing)
    parts = (*zip(data.train.ids, data.train.x, strict=True), *zip(data.test.ids, data.test.x, strict=True))
    by_place = {int(id_.split("#")[-1]) - (form == "ts"): steps for id_, steps in parts}
    assert by_place[0][:, 0].isnan().tolist() == [True, True, *[False] * 6]
    scaled = data.scaler(by_place[0])[:, 0]
    assert scaled[:2].tolist() == [0.0, 0.0]  # the mean: nothing was seen yet
    assert scaled[2:].tolist() == data.scaler(by_place[0][2:])[:, 0].tolist()
    scaled = data.scaler(by_place[1])[:, 0]
    assert scaled[4] == scaled[3]
    assert any(note.startswith("4 of 480 cells are missing") for note in data.notes)
    assert not any("far from the others" in note for note in data.notes)


def test_what_was_missing_in_training_is_missing_in_new_data(tmp_path: Path) -> None:
    x, y = noisy(40)
    x[0][3] = -9999.0
    data = dataset(tmp_path, "csv", x, y, missing=-9999)
    results = fit(data, "rnn", settings=Settings(hidden_size=4, epochs=1))
    assert all(math.isfinite(b.score) for b in results.baselines)
    model = open_run(results.save(tmp_path / "run")).model()
    assert model.scaler == data.scaler
    new = load_for_prediction(
        tmp_path / "x.csv", features=("a",), classes=data.classes, missing=model.scaler.missing, **ROLES
    )
    assert new.x[0].isnan().sum() == 1
    filled = new.x[0].clone()
    filled[3] = filled[2]
    assert torch.equal(model.predict([new.x[0]]).probabilities, model.predict([filled]).probabilities)  # type: ignore[arg-type]
    with pytest.raises(AnyRNNError, match="NaN or infinity"):
        model.predict([filled * math.inf])
    plain = fit(dataset(tmp_path, "csv", *noisy(40)), "rnn", settings=Settings(hidden_size=4, epochs=1)).best.model
    with pytest.raises(AnyRNNError, match="NaN or infinity"):
        plain.predict([new.x[0]])


def test_empty_cells_are_missing_only_if_some_value_is_said_to_be(tmp_path: Path) -> None:
    text = "id,t,a,y\n" + "".join(
        f"p{i},{t},{['', 'NA', 'nan'][t] if i == t else i + t},{'uv'[i % 2]}\n" for i in range(8) for t in range(3)
    )
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(
        AnyRNNError, match=r"data row 1 .*'a' is missing; .* \(--missing nan\) has missing values filled"
    ):
        load(tmp_path / "x.csv", **ROLES)
    for missing in ([], "nan", -9999):
        data = load(tmp_path / "x.csv", **ROLES, missing=missing)
        assert sum(int(x.isnan().sum()) for x in (*data.train.x, *data.test.x)) == 3
    (tmp_path / "x.csv").write_text(text + "q,0\n")  # a file that was cut off
    with pytest.raises(AnyRNNError, match=r"data row 25 \(line 26\) has 2 fields, expected 4"):
        load(tmp_path / "x.csv", **ROLES, missing=-9999)


def test_a_missing_target_is_refused_whatever_it_is_written_as(tmp_path: Path) -> None:
    x = [[float(i)] for i in range(12)]
    with pytest.raises(AnyRNNError, match=r"id '3': target 'y' is missing here"):
        dataset(tmp_path, "csv", x, [-9999.0 if i == 3 else i + 0.5 for i in range(12)], missing=-9999)
    with pytest.raises(AnyRNNError, match=r"id '3': target 'y' is missing here"):
        dataset(tmp_path, "csv", x, ["None" if i == 3 else f"c{i % 2}" for i in range(12)], missing="None")
    assert "None" in (dataset(tmp_path, "csv", x, [["None", "v"][i % 2] for i in range(12)], missing=-9).classes or ())


def test_a_dataset_of_ones_own_may_not_hide_nan() -> None:
    x = torch.tensor([[1.0], [math.nan]])
    part = Sequences((x, x), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(AnyRNNError, match="sequence 'a' holds NaN or infinity"):
        Dataset("x", ("f",), ("u", "v"), "y", part, part, "made up")
    data = Dataset("x", ("f",), ("u", "v"), "y", part, part, "made up", missing=())
    assert data.scaler(x).tolist() == [[0.0], [0.0]]
    never = Sequences((x[1:], x[1:]), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(AnyRNNError, match="feature 'f' is missing in every step of the training part"):
        Dataset("x", ("f",), ("u", "v"), "y", never, part, "made up", missing=())


@pytest.mark.parametrize("scaler", [Scaler((1.0,), (2.0,), missing=("-9999", "NA")), Scaler((1.0,), (2.0,), math.inf)])
def test_a_scaler_survives_json(scaler: Scaler) -> None:
    assert Scaler.from_dict(json.loads(json.dumps(scaler.to_dict(), allow_nan=False))) == scaler


def test_a_scaler_of_an_earlier_version_is_linear_throughout() -> None:
    assert Scaler.from_dict({"mean": [1.0], "std": [2.0]})(torch.tensor([[2001.0]])).tolist() == [[1000.0]]
