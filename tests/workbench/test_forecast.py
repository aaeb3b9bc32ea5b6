"""Forecasts: what is known at an origin, metrics by their definitions, networks that learn, are kept, and shown."""

import base64
import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_pinball_loss

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.forecast import (
    Forecasting,
    ForecastSettings,
    Series,
    compare,
    fit,
    load_series,
    open_forecast_run,
)
from anyrnn.workbench.forecast.metrics import by_step, mase_scales, point_metrics, quantile_metrics
from anyrnn.workbench.forecast.model import Form, Windows, build, forecast, losses
from anyrnn.workbench.forecast.naive import drift, mean, naive, seasonal_naive
from anyrnn.workbench.forecast.predict import predict
from anyrnn.workbench.forecast.series import Origins
from anyrnn.workbench.forecast.table import SeriesColumns
from anyrnn.workbench.forecast.train import Scaled, forecasts, train
from anyrnn.workbench.models import network
from anyrnn.workbench.runs import open_run

QUICK = ForecastSettings(hidden_size=8, context=12, epochs=2, batch_size=16)


def series(y, name="a", past=0, future=0, static=0, seed=0) -> Series:
    draws = np.random.default_rng(seed)
    T = len(y)
    parts = draws.normal(size=(T, past)), draws.normal(size=(T, future)), draws.normal(size=static)
    return Series(name, np.asarray(y, dtype=np.float64), *parts)


def waves(count=3, T=200, **covariates) -> Forecasting:
    """Waves whose period is none of the season's, with other phases and sizes."""
    t = np.arange(T)
    draws = np.random.default_rng(1)
    made = [
        series(10 * k + (k + 1) * np.sin(t / 1.17 + k) + draws.normal(0, 0.05, T), f"s{k}", **covariates)
        for k in range(count)
    ]
    names = {f"{kind}_names": tuple(f"{kind}{j}" for j in range(n)) for kind, n in covariates.items()}
    return Forecasting("waves", "y", tuple(made), 5, 4, 40, 30, **names)


@pytest.fixture(scope="module")
def results():
    return compare(waves(), ["gru", "rnn"], seeds=2, settings=QUICK)


# What is known, and what is not


def test_origins_are_all_those_whose_forecasts_end_in_the_part():
    data = Forecasting("d", "y", (series(range(50)), series(range(60), "b")), 5, 1, 12, 8)
    test, validation = data.origins("test"), data.origins("validation")
    assert test.origin[test.series == 0].tolist() == list(range(38, 46))
    assert test.origin[test.series == 1].tolist() == list(range(48, 56))
    assert validation.origin[validation.series == 0].tolist() == [30, 31, 32, 33]
    assert data.train_end(data.series[0]) == 30
    assert data.truth(test)[-1].tolist() == [55, 56, 57, 58, 59]


def test_of_very_many_origins_every_kth_is_taken_with_the_last_one(monkeypatch):
    monkeypatch.setattr("anyrnn.workbench.forecast.series._MOST_WINDOWS", 4)
    data = Forecasting("d", "y", (series(range(50)),), 5, 1, 14, 8)
    assert data.origins("test").origin.tolist() == [36, 39, 42, 45]


@pytest.mark.parametrize("head", ["direct", "recursive"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_a_forecast_knows_the_step_before_its_origin_and_none_after(name, head):
    torch.manual_seed(0)
    data = waves(1, past=1, future=2, static=1)
    form = Form(5, 1, 2, 1, (0.1, 0.5, 0.9), head, 1)
    model = build(network(name), form, 6)
    torch.nn.init.normal_(model.head.weight)
    o, at = 150, Origins(np.array([0]), np.array([150]))

    def said(change: int, kind: str):
        one = data.series[0]
        parts = {"y": one.y.copy(), "past": one.past.copy(), "future": one.future.copy()}
        parts[kind][change] += 1.0
        changed = replace(data, series=(replace(one, **parts),))
        return forecasts(model, Scaled(changed.series, [100]), at, 12)

    plain = forecasts(model, Scaled(data.series, [100]), at, 12)
    assert plain.shape == (1, 5, 3)
    for kind in ("y", "past"):
        assert not torch.equal(said(o - 1, kind), plain), f"the last known {kind} is not read"
        assert torch.equal(said(o, kind), plain), f"a {kind} that is not known is read"
    assert not torch.equal(said(o, "future"), plain)
    assert not torch.equal(said(o + 4, "future"), plain)
    assert torch.equal(said(o + 5, "future"), plain)
    assert torch.equal(said(o - 14, "y"), plain), "more than the context is read"


@pytest.mark.parametrize("part", ["test", "validation"])
def test_what_comes_after_training_changes_no_weight_and_no_scale(part):
    data = waves()
    changed = []
    for one in data.series:
        y = one.y.copy()
        y[-40 if part == "test" else -70 :] *= 1.5
        changed.append(replace(one, y=y))
    other = replace(data, series=tuple(changed))
    settings = replace(QUICK, epochs=1)
    before, after = (train(network("rnn"), each, settings, 0)[0] for each in (data, other))
    states = zip(before.module.state_dict().values(), after.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    ends = [data.train_end(one) for one in data.series]
    assert Scaled(data.series, ends).std.tolist() == Scaled(other.series, ends).std.tolist()


def test_a_recursive_forecast_is_scored_as_it_runs_freely():
    data = waves(1)
    model, run = train(network("gru"), data, replace(QUICK, head="recursive", quantiles=(0.5,)), 0)
    scaled, origins = Scaled(data.series, [data.train_end(data.series[0])]), data.origins("test")
    o = int(origins.origin[7])
    known, said = scaled.y[0][o - 12 : o], []
    for _ in range(5):  # each time from the beginning of the context
        steps = known.view(-1, 1, 1)
        output, _ = model.module.read(steps)
        said.append(model.module.say(output[-1], torch.empty(1, 1, 0))[0, 0, 0] + known[-model.module.form.season])
        known = torch.cat((known, said[-1].detach().view(1)))
    expected = torch.stack(said).detach().double().numpy() * scaled.std[0] + scaled.mean[0]
    np.testing.assert_allclose(run.forecasts[7], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("head", "season", "levels"), [("direct", 1, (0.5,)), ("direct", 3, ()), ("recursive", 3, ())])
def test_what_is_learned_stands_behind_the_position_that_was_read(head, season, levels):
    torch.manual_seed(0)
    L, h, B, first = 9, 4, 2, 5
    form = Form(h, 0, 1, 0, levels, head, season)
    model = build(network("rnn"), form, 5)
    torch.nn.init.normal_(model.head.weight)
    y, known = torch.randn(L + h, B), torch.randn(L + h, B, 1)
    windows = Windows(y[:L], torch.empty(L, B, 0), known, torch.empty(B, 0))
    total, count = 0.0, 0
    for position in range(first, L):  # a forecast from each of them, made as forecasts are made
        end = position + 1
        shorter = Windows(y[:end], torch.empty(end, B, 0), known[: end + h], torch.empty(B, 0))
        with torch.no_grad():
            said = forecast(model, shorter)[:, : form.steps, 0]
        error = y[end : end + form.steps].t() - said
        total += float((error.abs() if levels else error.square()).sum())
        count += error.numel()
    found = losses(model, windows, y[L : L + form.steps], first)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_an_untrained_network_forecasts_as_its_base():
    data = waves(2)
    origins = data.origins("test")
    for season, guess in ((1, naive), (4, seasonal_naive)):
        model = build(network("lstm"), Form(5, 0, 0, 0, (0.1, 0.5, 0.9), "direct", season), 4)
        scaled = Scaled(data.series, [data.train_end(one) for one in data.series])
        said = scaled.unscaled(forecasts(model, scaled, origins, 12), origins.series)
        np.testing.assert_allclose(said[..., 1], guess(data, origins), rtol=1e-4, atol=1e-4)


# Naive forecasts and metrics


def test_naive_forecasts_are_what_they_are_called():
    data = Forecasting("d", "y", (series([*range(20), 5, 7, 9, 11, 13, 15, 17, 19]),), 3, 2, 6, 3)
    at = Origins(np.array([0]), np.array([24]))
    assert naive(data, at).tolist() == [[11, 11, 11]]
    assert seasonal_naive(data, at).tolist() == [[9, 11, 9]]
    assert drift(data, at)[0].tolist() == pytest.approx([11 + k * 11 / 23 for k in (1, 2, 3)])
    assert mean(data, at).tolist() == [[9, 9, 9]]


@pytest.mark.parametrize("unit", [2.0**900, 2.0**-900])
def test_the_unit_of_a_series_changes_nothing_but_the_unit(unit):
    def found(unit):
        covariate = np.sin(np.arange(80.0))[:, None] * unit
        made = Series(
            "a", unit * (np.arange(80) % 4 + np.cos(np.arange(80))), covariate, np.empty((80, 0)), np.empty(0)
        )
        data = Forecasting("d", "y", (made,), 3, 4, 12, 12, past_names=("p",))
        return train(network("rnn"), data, replace(QUICK, epochs=1), 0)[1]

    usual, other = found(1.0), found(unit)
    assert other.history[0].validation_loss == usual.history[0].validation_loss
    for name in ("mae", "rmse", "pinball"):
        assert other.scores[name] == pytest.approx(usual.scores[name] * unit, rel=1e-12)
    for name in ("mase", "smape", "wape", "rrse", "coverage"):
        assert other.scores[name] == pytest.approx(usual.scores[name], rel=1e-12)


def test_a_series_that_is_constant_in_training_has_no_deviation_of_rounded_sums():
    constant = series([0.1] * 19 + [0.2] * 10)
    assert np.full(19, 0.1).std() > 0
    assert Scaled([constant], [19]).std.tolist() == [1.0]
    assert math.isnan(point_metrics(np.full((3, 1), 0.1), np.zeros((3, 1)), np.ones(3))["rrse"])


def test_without_a_metric_that_is_defined_there_is_no_verdict():
    made = fit(
        Forecasting("d", "y", (series(np.arange(60) % 4),), 3, 4, 8, 8), "rnn", settings=replace(QUICK, epochs=1)
    )
    assert made.verdict.startswith("No verdict: MASE is not defined here, since seasonal naive forecasts of what is")
    assert "such as mae." in made.verdict


def test_metrics_are_those_of_their_definitions():
    y, said = np.array([[1.0, 2.0], [0.0, -4.0]]), np.array([[2.0, 2.0], [0.0, 4.0]])
    found = point_metrics(y, said, np.array([2.0, 8.0]))
    assert found["mae"] == 9 / 4
    assert found["rmse"] == math.sqrt(65 / 4)
    assert found["smape"] == pytest.approx((200 / 3 + 0 + 0 + 200) / 4)  # 0 beside 0 is no error
    assert found["wape"] == 9 / 7
    assert found["mase"] == pytest.approx((0.5 / 2 + 4 / 8) / 2)
    assert found["rrse"] == pytest.approx(math.sqrt(65) / math.sqrt(np.square(y - y.mean()).sum()))
    steps = by_step(y, said)
    assert steps["mae"] == (0.5, 4.0)
    assert steps["rrse"] == pytest.approx((math.sqrt(1 / 0.5), math.sqrt(64 / 18)))


def test_quantiles_are_scored_as_scikit_learn_does():
    draws = np.random.default_rng(0)
    y, q = draws.normal(size=(30, 4)), np.sort(draws.normal(size=(30, 4, 3)))
    levels = (0.1, 0.5, 0.8)
    expected = [2 * mean_pinball_loss(y.ravel(), q[..., k].ravel(), alpha=level) for k, level in enumerate(levels)]
    found = quantile_metrics(y, q, levels)
    assert found["pinball"] == pytest.approx(np.mean(expected))
    assert found["coverage"] == np.mean((q[..., 0] <= y) & (y <= q[..., 2]))


def test_the_scale_of_mase_is_the_seasonal_change_before_the_test_and_constant_series_have_none():
    data = Forecasting("d", "y", (series([0, 2, 1, 5] * 10), series([3.0] * 40, "b")), 3, 3, 9, 9)
    scales = mase_scales(data, Origins(np.array([0, 1]), np.array([35, 35])))
    y = data.series[0].y[:31]
    assert scales[0] == np.abs(y[3:] - y[:-3]).mean()
    assert np.isnan(scales[1])


# Training


@pytest.mark.parametrize("head", ["direct", "recursive"])
def test_a_wave_is_learned_that_no_naive_forecast_knows(head):
    settings = ForecastSettings(
        hidden_size=16, context=16, epochs=6, batch_size=32, learning_rate=0.02, head=head, quantiles=(0.1, 0.5, 0.9)
    )
    found = fit(waves(), "gru", settings=settings)
    assert found.best.mean("mase") < 0.5 * found.naive.scores["mase"]
    assert "the best naive forecast" in found.verdict


def test_what_is_known_ahead_is_used():
    draws = np.random.default_rng(0)
    plan = draws.normal(size=(300, 1))
    one = Series("a", 3 * plan[:, 0], np.empty((300, 0)), plan, np.empty(0))
    data = Forecasting("d", "y", (one,), 4, 1, 40, 40, future_names=("plan",))
    found = fit(data, "rnn", settings=ForecastSettings(16, context=8, epochs=8, batch_size=32, learning_rate=0.02))
    assert found.best.mean("mae") < 0.2 * found.naive.scores["mae"]


def test_the_same_seed_gives_the_same_weights_and_leaves_other_random_numbers_alone():
    data, before = waves(), torch.get_rng_state()
    runs = [train(network("rnn"), data, QUICK, seed)[0].module.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_are_those_of_the_best_epoch():
    settings = ForecastSettings(hidden_size=4, context=8, epochs=20, patience=2, learning_rate=0.5, batch_size=8)
    _, run = train(network("rnn"), waves(), settings, 0)
    found = [epoch.validation_loss for epoch in run.history]
    assert run.epoch == found.index(min(found)) + 1
    assert len(found) == 20 or len(found) == run.epoch + 2


def test_quantiles_rise():
    _, run = train(network("rnn"), waves(), QUICK, 0)
    assert (np.diff(run.quantiles, axis=-1) >= 0).all()
    assert np.array_equal(run.quantiles[..., 1], run.forecasts)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "both"}, "got head='both', expected one of direct, recursive"),
        ({"quantiles": (0.9, 0.1)}, r"got \[0.9, 0.1\], expected rising numbers between 0 and 1, 0.5 among them"),
        ({"quantiles": (0.1, 0.9)}, "0.5 among them"),
        ({"context": 0}, "got context=0, expected an int of at least 1"),
        ({"dropout": -0.1}, "got dropout=-0.1, expected a share"),
        ({"learning_rate": 0}, "got learning_rate=0, expected a number above 0"),
    ],
)
def test_wrong_settings_are_refused(options, says):
    with pytest.raises(AnyRNNError, match=says):
        ForecastSettings(**options)


def test_wrong_questions_are_refused():
    with pytest.raises(AnyRNNError, match="a bidirectional layer reads what it is to forecast"):
        fit(waves(), "bilstm", settings=QUICK)
    with pytest.raises(AnyRNNError, match="got 'accuracy', expected one of mae, rmse, mase"):
        fit(waves(), metric="accuracy", settings=QUICK)
    with pytest.raises(AnyRNNError, match="pinball with several quantiles only"):
        fit(waves(), metric="pinball", settings=replace(QUICK, quantiles=()))
    with pytest.raises(AnyRNNError, match="series 'a' has 20 steps, expected at least 24: 9 for the test, 8 for"):
        Forecasting("d", "y", (series(range(20)),), 5, 1, 9, 8)
    with pytest.raises(AnyRNNError, match="got test_steps=3, expected at least horizon=5"):
        Forecasting("d", "y", (series(range(50)),), 5, 1, 3, 8)
    with pytest.raises(AnyRNNError, match="'y' never changes in training"):
        Forecasting("d", "y", (series([1] * 30),), 5, 1, 9, 8)


# Tables


def write(path: Path, rows) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def table(path: Path, change=None, ahead=0) -> Path:
    """Two series of 60 days, with a covariate of the past, one that is known ahead, and one for each series."""
    rows = [["shop", "day", "sold", "rain", "open", "size"]]
    for shop in "AB":
        for t in range(60 + ahead):
            sold, rain = (f"{t % 7 + 0.5}", f"{t % 3}") if t < 60 else ("", "")
            rows.append(
                [shop, f"2026-{t // 28 + 1:02}-{t % 28 + 1:02}", sold, rain, f"{t % 7 != 6:d}", "AB".index(shop)]
            )
    if change:
        rows[change[0]][change[1]] = change[2]
    return write(path, rows)


COLUMNS = {
    "id_column": "shop",
    "time_column": "day",
    "target_column": "sold",
    "past_columns": ["rain"],
    "future_columns": ["open"],
    "static_columns": ["size"],
}


def test_a_table_is_read_with_what_is_known_ahead(tmp_path):
    data = load_series(table(tmp_path / "t.csv", ahead=5), horizon=5, season=7, **COLUMNS)
    assert [one.id for one in data.series] == ["A", "B"]
    assert [len(one) for one in data.series] == [60, 60]
    assert data.series[0].future.shape == (65, 1)
    assert data.series[1].static.tolist() == [1]
    assert data.series[0].y[:3].tolist() == [0.5, 1.5, 2.5]
    assert (data.test_steps, data.validation_steps) == (12, 12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((10, 2, ""), r"data row 10 \(id 'A', day .*\): target 'sold' is missing; expected a number"),
        ((10, 4, ""), "covariate 'open' is missing"),
        ((10, 5, "7"), "static covariate 'size' is 7, but 0 in the first row of this series"),
        ((10, 3, "wet"), "covariate 'rain' is 'wet', expected a number; write a number$"),
        ((10, 2, "inf"), "target 'sold' is inf, expected a finite number"),
        ((10, 1, "2026-01-09"), "this id has the same time"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, says):
    with pytest.raises(AnyRNNError, match=says):
        load_series(table(tmp_path / "t.csv", change), horizon=5, **COLUMNS)


def test_wrong_columns_are_named(tmp_path):
    path = table(tmp_path / "t.csv")
    with pytest.raises(AnyRNNError, match=r"column 'sould' is not there; the columns are shop, day, .* mean 'sold'"):
        load_series(path, horizon=5, **{**COLUMNS, "target_column": "sould"})
    with pytest.raises(AnyRNNError, match="column 'rain' is named twice"):
        load_series(path, horizon=5, **{**COLUMNS, "future_columns": ["rain"]})
    with pytest.raises(AnyRNNError, match="got horizon=0, expected an int of at least 1"):
        load_series(path, horizon=0, **COLUMNS)
    with pytest.raises(AnyRNNError, match="there is no such file"):
        load_series(tmp_path / "none.csv", horizon=5, **COLUMNS)


def test_a_value_far_from_its_series_is_said_and_one_that_float64_rounds(tmp_path):
    def read(values):
        path = tmp_path / "t.csv"
        path.write_text("y\n" + "\n".join(map(str, values)) + "\n")
        return load_series(path, horizon=2, target_column="y")

    wild = [k % 5 for k in range(40)]
    assert not any("far from" in note for note in read(wild).notes)
    wild[6] = -9999
    said = next(note for note in read(wild).notes if "far from" in note)
    assert "the first is -9999, in step 7 of series 't' in t.csv, whose others are 0 to 4" in said
    with pytest.raises(
        AnyRNNError, match=r"'y' never changes in training: .*float64 rounds it away, take a constant off"
    ):
        read([2**60 + k for k in range(40)])


def test_steps_that_are_not_evenly_spaced_are_said(tmp_path):
    rows = [["t", "y"], *([t if t < 30 else t + 5, t % 4] for t in range(60))]
    data = load_series(write(tmp_path / "t.csv", rows), horizon=3, target_column="y", time_column="t")
    assert data.series[0].id == "t"
    assert data.notes == (
        "steps are not evenly spaced: 1 of 59 are not within half of the usual one, and the longest is 6 times as "
        "long, before t 35 of series 't'; each row counts as one step",
    )


# Kept


def test_a_model_that_was_kept_forecasts_as_before(tmp_path):
    data = load_series(table(tmp_path / "t.csv"), horizon=5, season=7, **COLUMNS)
    found = fit(data, "gru", settings=QUICK)
    folder = found.save(tmp_path / "run")
    model = open_forecast_run(folder).model()
    assert model.context == 12
    columns = SeriesColumns("shop", "day", "sold", ("rain",), ("open",), ("size",))
    later = table(tmp_path / "later.csv", ahead=5)
    said, before = predict(model, later, columns), predict(found.best.model, later, columns)
    assert np.array_equal(said.values, before.values)
    assert said.values.shape == (2, 5, 3)
    assert said.times[0][0] == "2026-03-05 00:00:00"
    lines = said.csv().splitlines()
    assert lines[0] == "id,step,time,forecast,q0.1,q0.5,q0.9"
    assert lines[1].startswith("A,1,2026-03-05 00:00:00,")
    assert len(lines) == 11
    with pytest.raises(AnyRNNError, match="series 'A' has 0 rows behind its last value, expected 5, the horizon"):
        predict(model, table(tmp_path / "t.csv"), columns)


def test_times_go_on_as_far_apart_as_before_and_a_short_series_is_read_as_it_is(results, tmp_path):
    rows = [["t", "y"], *([2.5 * t, t % 4] for t in range(7))]
    said = predict(results.best.model, write(tmp_path / "t.csv", rows), SeriesColumns(None, "t", "y"))
    assert said.times == (("17.5", "20", "22.5", "25", "27.5"),)
    assert said.ids == ("t",)


def test_runs_of_different_kinds_are_told_apart(results, tmp_path):
    folder = results.save(tmp_path / "run")
    with pytest.raises(AnyRNNError, match=r"another kind, which anyrnn.workbench.forecast.open_forecast_run opens"):
        open_run(folder)
    kept = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**kept, "kind": "text"}))
    with pytest.raises(AnyRNNError, match=r"another kind, which anyrnn.workbench.language.open_text_run opens"):
        open_forecast_run(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 10**5}, "got hidden_size=100000, but no weight of"),
        ({"context": 10**9}, "got context=1000000000, expected a whole number"),
        ({"form": None}, "got form=None"),
        ({"form": {"horizon": 10**5}}, "it has no 'past'"),
        ({"names": [["a"], [], []]}, r"got names of \[1, 0, 0\] covariates"),
        ({"scale": [[1], [0]]}, "0 means and positive deviations"),
        ({"network": "../x"}, "expected the name of a network"),
        ({"layers": 99}, "got layers=99, but gru.safetensors has 6 weights only"),
        ({"layers": 2}, "weight_ih_l1 is absent in the file"),
        ({"time_column": 3}, "got time_column=3, expected the name of a column, or null"),
        ({"target_columns": "y"}, "got target_columns='y', expected a list of names"),
    ],
)
def test_a_damaged_description_is_refused(results, tmp_path, change, says):
    folder = results.save(tmp_path / "run")
    path = folder / "models" / "gru.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AnyRNNError, match=says):
        open_forecast_run(folder).model("gru")


def test_a_run_without_the_names_of_columns_is_opened(results, tmp_path):
    folder = results.save(tmp_path / "run")
    path = folder / "models" / "gru.json"
    new = ("layers", "id_column", "time_column", "target_columns")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in new}))
    model = open_forecast_run(folder).model("gru")
    assert (model.id_column, model.time_column, model.target_columns) == (None, None, ())


def test_a_form_that_is_larger_than_the_weights_takes_no_memory(results, tmp_path):
    folder = results.save(tmp_path / "run")
    path = folder / "models" / "gru.json"
    kept = json.loads(path.read_text())
    kept["form"] |= {"horizon": 10**5, "future": 10**5}
    kept["names"][1], kept["scale"] = [f"f{k}" for k in range(10**5)], [[0.0] * 10**5, [1.0] * 10**5]
    path.write_text(json.dumps(kept))
    with pytest.raises(AnyRNNError, match="the weights are of another cell than 'gru' is here"):
        open_forecast_run(folder).model("gru")


# Shown


def test_a_naive_forecast_that_is_better_is_said_first(results):
    weak = replace(results, entries=(replace(results.entries[0]),))
    other = results.naive
    strong = replace(other, name="oracle", scores=dict.fromkeys(other.scores, 0.0))
    assert replace(weak, baselines=(strong,)).verdict.startswith("No network: the forecast “oracle” has a MASE of 0;")


def test_only_the_spread_of_the_best_network_makes_a_tie_with_a_naive_forecast(results):
    def scored(entry, *scores):
        return replace(entry, runs=tuple(replace(entry.runs[0], score=s, scores={"mase": s}) for s in scores))

    steady, wild = scored(results.entries[0], 0.79, 0.81), scored(results.entries[1], 0.7, 1.3)
    beside = (replace(results.naive, scores={"mase": 0.9}),)
    found = replace(results, entries=(steady, wild), baselines=beside).verdict
    assert "has a MASE of 0.8 ± 0.014; the best naive forecast" in found
    assert "is within the spread (1)" in found
    assert "that is a tie with" in replace(results, entries=(scored(steady, 0.7, 0.9), wild), baselines=beside).verdict


def test_a_network_that_is_not_better_than_the_seasonal_naive_forecast_is_named(results):
    score = {entry.model.network.name: entry.mean("mase") for entry in results.entries}
    worse, better = max(score, key=score.get), min(score, key=score.get)
    seasonal = results.baselines[0]
    assert seasonal.name == "seasonal naive (4)"

    def beside(mase: float) -> tuple[str, ...]:
        return replace(results, baselines=(replace(seasonal, scores={"mase": mase}),)).remarks

    title = {entry.model.network.name: entry.model.network.title for entry in results.entries}
    least = score[worse]
    assert beside(least) == (
        f"Not better than the forecast “seasonal naive (4)” (MASE {least:.4g}): {title[worse]} ({least:.4g}).",
    )
    assert title[better] in beside(0.0)[0]
    assert beside(least * 2) == ()
    assert replace(results, baselines=results.baselines[1:]).remarks[0].startswith("No season was named")


def test_the_report_needs_nothing_from_elsewhere_and_shows_every_number(results, tmp_path):
    page = (results.save(tmp_path / "run") / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert f"{results.best.mean('mase'):.4g}" in page
    assert page.count("band</h2>") == 0
    assert "seasonal naive (4)" in page
    assert page.count("Orange: the forecast") == 3
    assert "coverage" in results.table()
    files = dict(re.findall(r'download="([\w-]+)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page))
    assert set(files) == {"error-by-step", "train-loss", "validation-loss", "forecast-1", "forecast-2", "forecast-3"}
    _, *rows = csv.reader(base64.b64decode(files["forecast-1"]).decode().splitlines())
    example = results.examples()[0]
    assert [float(row[1]) for row in rows] == example.y.tolist()
    assert [float(row[2]) for row in rows if row[2]] == example.said.tolist()
    assert page.count('<div class="scroll"><svg') == 6  # on a telephone a figure scrolls, and its text keeps its size
