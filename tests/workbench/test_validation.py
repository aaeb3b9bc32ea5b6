"""The validation part: whole groups, nothing fitted to it, and the epoch that it chooses."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.compare import compare, fit
from anyrnn.workbench.data import Dataset, load
from anyrnn.workbench.lesson import Epoch
from anyrnn.workbench.metrics import spread
from anyrnn.workbench.models import network
from anyrnn.workbench.report import render
from anyrnn.workbench.schedules import Rate
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings, train
from anyrnn.workbench.verdict import Comparison, overfitting

ROLES = {"id_column": "id", "time_column": "t", "target_column": "y"}
QUICK = Settings(hidden_size=4, epochs=3, batch_size=16)


def table(path: Path, groups: int, pieces: int, first: int = 0, header: str = "id,t,a,b,engine,y") -> Path:
    """Windows of 3 steps, named group_piece; classes u and v in turns."""
    rows = [
        f"g{g}_{k},{t},{(7 * g + 3 * k + t) % 11 + g},{t},{g},{'uv'[(g + k) % 2]}"
        for g in range(first, first + groups)
        for k in range(pieces)
        for t in range(3)
    ]
    path.write_text("\n".join([header, *rows, ""]))
    return path


def noise(train: int, validation: int, test: int = 20) -> Dataset:
    """Numbers that nothing in the sequences tells: whoever learns them learns them by heart."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int, name: str) -> Sequences:
        x = tuple(torch.randn(6, 2, generator=generator) for _ in range(count))
        return Sequences(x, torch.randn(count, generator=generator), tuple(f"{name}{k}" for k in range(count)))

    parts = part(train, "a"), part(test, "c")
    return Dataset("noise", ("a", "b"), None, "y", *parts, "made here", validation=part(validation, "b"))


# Which sequences are in it


@pytest.mark.parametrize("share, size", [(0.2, 28), (0.5, 70), (0.01, 1)])
def test_a_share_of_the_training_part_is_set_aside(tmp_path: Path, share: float, size: int) -> None:
    data = load(table(tmp_path / "d.csv", 200, 1), validation=share, **ROLES)
    assert [len(part) for part in data.parts] == [140 - size, size, 60]


def test_the_parts_share_no_sequence_and_lose_none(tmp_path: Path) -> None:
    data = load(table(tmp_path / "d.csv", 10, 20), **ROLES)
    assert data.validation is not None
    ids = [id_ for part in (data.train, data.validation, data.test) for id_ in part.ids]
    assert sorted(ids) == sorted(f"g{g}_{k}" for g in range(10) for k in range(20))
    assert [len(part) for part in data.parts] == [112, 28, 60]
    assert torch.bincount(data.validation.y).tolist() == [14, 14]
    assert "28 of 140 sequences of the training part, drawn at random in the proportions of the classes (seed 0)" in (
        data.split
    )


def test_no_group_is_in_two_parts(tmp_path: Path) -> None:
    data = load(table(tmp_path / "d.csv", 20, 10), group_column="engine", **ROLES)
    assert data.validation is not None
    groups = [set(part.groups or ()) for part in data.parts]
    assert [len(each) for each in groups] == [11, 3, 6]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert data.features == ("a", "b")
    assert "6 groups with 60 of 200 sequences, drawn at random" in data.split.replace("6 of 20 groups", "6 groups")
    assert "3 of 14 groups with 30 of 140 sequences of the training part" in data.split


def test_a_group_holds_together_ids_and_ids_hold_together_groups(tmp_path: Path) -> None:
    # "P1" and "p1" are spelled alike: their groups, and all that is in them, are one piece.
    rows = [f"{name},0,{k},{group},{'uv'[k % 2]}" for k, (name, group) in enumerate(
        [("p1", "a"), ("P1", "b"), ("q", "a"), ("r", "b"), *((f"s{k}", f"c{k}") for k in range(6))]
    )]  # fmt: skip
    (tmp_path / "d.csv").write_text("\n".join(["id,t,a,engine,y", *rows, ""]))
    for seed in range(8):
        data = load(tmp_path / "d.csv", group_column="engine", seed=seed, **ROLES)
        together = [part for part in data.parts if set(part.ids) & {"p1", "P1", "q", "r"}]
        assert len(together) == 1


@pytest.mark.parametrize(
    "groups, pieces, options, sentence",
    [
        (
            60,
            1,
            {},
            "42 sequences to train on are too few for a validation part (fewer than 100): each network is",
        ),
        (
            12,
            20,
            {"group_column": "engine"},
            "8 groups to train on are too few for a validation part (fewer than 10): each",
        ),
        (100, 1, {"validation": 0}, "no validation part was asked for: each network is trained for all its epochs"),
    ],
)
def test_without_enough_sequences_or_groups_there_is_none_and_the_split_says_so(
    tmp_path: Path, groups: int, pieces: int, options: dict[str, object], sentence: str
) -> None:
    data = load(table(tmp_path / "d.csv", groups, pieces), **{**ROLES, "feature_columns": ["a", "b"]}, **options)
    assert data.validation is None
    assert sentence in data.split


def test_nothing_is_fitted_to_it(tmp_path: Path) -> None:
    data = noise(40, 20)
    assert data.validation is not None
    wild = replace(data.validation, x=tuple(1000 + 50 * x for x in data.validation.x), y=data.validation.y * 50)
    other = replace(data, validation=wild)
    assert other.scaler == data.scaler
    one, two = (train(network("gru"), each, QUICK, 0) for each in (data, other))
    assert one[0].target_scale == two[0].target_scale
    assert [point.train_loss for point in one[1].history] == [point.train_loss for point in two[1].history]


def test_a_test_file_that_shares_groups_is_said(tmp_path: Path) -> None:
    own, other = table(tmp_path / "d.csv", 10, 10), table(tmp_path / "t.csv", 3, 5, first=9)
    other.write_text(other.read_text().replace("g9_", "new_g9_"))
    data = load(own, test=other, group_column="engine", **ROLES)
    note = next(note for note in data.notes if "of the test file" in note and note.startswith("group"))
    assert note.startswith("group '9' of the test file is in the training file, too: the score says nothing about")
    alone = load(own, test=table(tmp_path / "u.csv", 3, 5, first=10), group_column="engine", **ROLES)
    assert not any(note.startswith("group") for note in alone.notes)


def test_ids_that_look_like_pieces_are_said_where_no_group_was_named(tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv", 20, 5)
    note = next(note for note in load(path, **ROLES).notes if "look like pieces" in note)
    assert note.startswith("'g0_0' and 'g0_1' look like pieces of one engine")
    assert not any("look like pieces" in note for note in load(path, group_column="engine", **ROLES).notes)


@pytest.mark.parametrize("ids", ["patient_{k}", "p{k}", "{k}", "s{k}_1", "{k}_{k}"])
def test_other_ids_look_like_no_pieces(tmp_path: Path, ids: str) -> None:
    rows = [f"{ids.format(k=k)},0,{k % 7},{'uv'[k % 2]}" for k in range(40)]
    (tmp_path / "d.csv").write_text("\n".join(["id,t,a,y", *rows, ""]))
    assert not any("look like pieces" in note for note in load(tmp_path / "d.csv", **ROLES).notes)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda s: s, {"group_column": "engin"}, "column 'engin' is not there; .* Did you mean 'engine'?"),
        (lambda s: s, {"group_column": "y"}, "id, time, target and group must be different columns"),
        (lambda s: s, {"feature_columns": ["a", "engine"]}, "column 'engine' names the group; it cannot be a feature"),
        (lambda s: s.replace("g0_1,1,4,1,0", "g0_1,1,4,1,5"), {}, r"group 'engine' is '5', but '0' in the first row"),
        (lambda s: s.replace("g0_1,1,4,1,0", "g0_1,1,4,1,"), {}, r"data row 5 .*: the group 'engine' is missing"),
        (lambda s: s, {"validation": 1.0}, "got validation=1.0, expected a share from 0 to below 1"),
    ],
)
def test_groups_that_will_not_do_are_refused(tmp_path: Path, change, options: dict[str, object], message: str) -> None:
    path = table(tmp_path / "d.csv", 20, 10)
    path.write_text(change(path.read_text()))
    with pytest.raises(AnyRNNError, match=message):
        load(path, **{**ROLES, "group_column": "engine", **options})


def test_one_group_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(AnyRNNError, match=r"all sequences are of one group \('0'\), expected at least two groups"):
        load(table(tmp_path / "d.csv", 1, 10), group_column="engine", **ROLES)


def test_a_dataset_made_by_hand_may_not_share_groups() -> None:
    data = noise(10, 10)
    groups = tuple("ab" * 5)
    train, validation = (replace(part, groups=groups) for part in (data.train, data.validation))
    with pytest.raises(AnyRNNError, match="group 'a' is in the training and in the validation part"):
        replace(data, train=train, validation=validation)


# Which epoch it chooses


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "plateau", "constant"])
def test_the_weights_are_those_of_the_best_epoch_by_the_validation_part(schedule: str) -> None:
    data = noise(40, 20)
    model, run = train(
        network("gru"), data, Settings(hidden_size=32, epochs=40, learning_rate=0.03, schedule=schedule), 0
    )
    scores = [point.validation_score for point in run.history]
    assert run.epoch == 1 + scores.index(min(scores))
    assert run.epoch < len(run.history)  # noise is learned by heart: the last epoch is not the best one
    predictions = model.predict(data.validation.x).values
    errors = [(p - y) ** 2 for p, y in zip(predictions, data.validation.y.tolist(), strict=True)]
    assert math.sqrt(sum(errors) / len(errors)) == pytest.approx(min(scores))
    assert run.history[run.epoch - 1].test_score == run.score
    assert run.predictions == model.predict(data.test.x).values


def test_the_test_part_does_not_choose() -> None:
    data = noise(40, 20)
    other = replace(data, test=replace(data.test, y=-data.test.y * 3))
    settings = replace(QUICK, epochs=8, learning_rate=0.03)
    one, two = (train(network("gru"), each, settings, 0) for each in (data, other))
    assert one[1].epoch == two[1].epoch
    assert one[1].score != two[1].score
    pairs = zip(one[0].module.parameters(), two[0].module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_of_equal_scores_the_lower_loss_is_chosen() -> None:
    vowels = load("japanese-vowels")
    few = replace(
        vowels, train=vowels.train.subset(range(60)), validation=vowels.validation.subset(range(4)),
        test=vowels.test.subset(range(0, 360, 12)),
    )  # fmt: skip
    _, run = train(network("gru"), few, Settings(hidden_size=8, epochs=15), 0)
    ranks = [(point.validation_score, -point.validation_loss) for point in run.history]
    assert run.epoch == 1 + ranks.index(max(ranks))
    assert [score for score, _ in ranks].count(max(ranks)[0]) > 1


@pytest.mark.parametrize(
    "settings, ends",
    [
        (Settings(schedule="constant"), (10, 500)),  # 40 sequences are 2 updates: 100 epochs, and five times as many
        (Settings(schedule="plateau"), (10, 500)),
        (Settings(schedule="plateau", patience=4), (4, 500)),
        (Settings(schedule="one-cycle"), (None, 100)),
        (Settings(schedule="cosine"), (None, 100)),
        (Settings(patience=3), (3, 100)),
        (Settings(schedule="constant", epochs=7), (10, 7)),
    ],
)
def test_patience_ends_schedules_that_have_no_end(settings: Settings, ends: tuple[int | None, int]) -> None:
    resolved = settings.resolved(noise(40, 20))
    assert (resolved.patience, resolved.epochs) == ends


def test_training_ends_when_patience_does() -> None:
    data, told = noise(40, 20), []
    settings = replace(QUICK, epochs=200, learning_rate=0.03, schedule="constant", patience=3)
    _, run = train(network("gru"), data, settings, 0, lambda end: told.append((end.epoch.epoch, end.ended)))
    assert len(run.history) == run.epoch + 3 < 200
    assert told == [(k + 1, k + 1 == len(run.history)) for k in range(len(run.history))]
    progress = []
    compare(data, ["rnn", "gru"], seeds=2, settings=settings, on_epoch=progress.append)
    assert [(now.run, now.ended) for now in progress if now.ended] == [(k, True) for k in (1, 2, 3, 4)]


@pytest.mark.parametrize("options", [{"schedule": "plateau"}, {"patience": 3}])
def test_what_needs_a_validation_part_is_refused_without_one(options: dict[str, object]) -> None:
    data = replace(noise(40, 20), validation=None)
    with pytest.raises(
        AnyRNNError, match=f"{next(iter(options))}.* needs a validation part, and the data have none: made"
    ):
        fit(data, settings=replace(QUICK, **options))


def test_a_plateau_halves_the_rate() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rate, seen = Rate(optimizer, "plateau", 100, patience=2), []
    for loss in (3.0, 2.0, 2.0, 2.0, 2.0, 1.0):
        optimizer.step()
        rate.after_update()
        rate.after_epoch(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1, 1, 1, 1, 0.5, 0.5]


# What is said about it


def test_overfitting_is_said_where_the_validation_score_falls_behind_by_more_than_luck() -> None:
    data = noise(30, 60)
    heart = fit(data, "gru", settings=Settings(hidden_size=32, epochs=40, learning_rate=0.03))
    (run,) = heart.entries[0].runs
    assert run.decline > run.decline_luck > 0
    assert run.decline == pytest.approx(run.history[-1].validation_score - run.history[run.epoch - 1].validation_score)
    (said,) = heart.remarks
    assert said.startswith(f"GRU is overfitting after epoch {run.epoch} (of 40): by the end its validation score is")
    assert said in render(heart.to_dict(), None)
    calm = fit(data, "gru", settings=Settings(hidden_size=4, epochs=2, learning_rate=1e-6))
    assert not calm.remarks
    assert "is overfitting after" not in render(calm.to_dict(), None)


def test_the_report_has_all_three_curves_whole_and_marks_the_chosen_epochs() -> None:
    results = compare(
        noise(40, 20), ["rnn", "gru"], seeds=2, settings=Settings(hidden_size=8, epochs=9, learning_rate=0.03)
    )
    page = render(results.to_dict(), None)
    for title in ("Training and validation loss", "Validation rmse while training", "Test rmse while training"):
        assert title in page
    for entry in results.entries:
        for run in entry.runs:
            assert page.count(f"{entry.model.network.title}, seed {run.seed}: epoch {run.epoch}<") >= 2
    assert "at most 9 epochs each" in page
    assert "20 to choose the epoch by" in page


def test_the_table_shows_the_chosen_epochs() -> None:
    results = compare(noise(40, 20), ["rnn"], seeds=3, settings=replace(QUICK, epochs=6, learning_rate=0.03))
    epochs = [run.epoch for run in results.entries[0].runs]
    shown = str(epochs[0]) if len(set(epochs)) == 1 else ", ".join(map(str, epochs))
    header, row = results.table().splitlines()[:2]
    assert "epoch" in header
    assert f" {shown} " in row


def test_results_of_a_run_without_a_validation_part_still_make_a_report() -> None:
    content = fit(noise(40, 20), "rnn", settings=QUICK).to_dict()
    older = json.loads(json.dumps(content))
    del older["dataset"]["validation"], older["dataset"]["group_column"], older["test_groups"]
    for run in older["models"][0]["runs"]:
        for key in ("epoch", "decline", "decline_luck"):
            del run[key]
        for point in run["history"]:
            del point["validation_loss"], point["validation_score"]
    assert "Validation" not in render(older, None)
    assert not overfitting(Comparison(older))


def test_a_spread_by_groups_is_wider_where_sequences_of_a_group_err_alike() -> None:
    errors = torch.repeat_interleave(torch.randn(20, generator=torch.Generator().manual_seed(0)), 30).numpy()
    groups = [str(k // 30) for k in range(600)]
    alone, together = (spread(lambda places: float(errors[places].mean()), 600, each) for each in (None, groups))
    assert alone == pytest.approx(errors.std() / math.sqrt(600), rel=0.2)
    assert together == pytest.approx(errors.std() / math.sqrt(20), rel=0.3)
    assert math.isnan(spread(lambda _: 0.0, 600, ["one"] * 600))


def test_an_epoch_without_a_validation_part_has_no_score_of_it() -> None:
    run = fit(replace(noise(40, 20), validation=None), "rnn", settings=QUICK).entries[0].runs[0]
    assert isinstance(run.history[0], Epoch)
    assert {point.validation_score for point in run.history} == {None}
    assert (run.epoch, run.decline, run.decline_luck) == (3, None, None)
