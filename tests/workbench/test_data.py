"""What comes out of people's files: the values in them, in the right order, in the right part."""

import itertools
import json
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.columns import Columns
from anyrnn.workbench.data import Inputs, Scaler, Sequences, batch, load, load_for_prediction
from anyrnn.workbench.table import read_table
from anyrnn.workbench.ts import parse_ts

VOWELS = load("japanese-vowels", validation=0)
ROLES = {"id_column": "id", "time_column": "t", "target_column": "y"}
unhurried = settings(deadline=None, max_examples=50)  # a busy machine is no failure
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def write_csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


def two_classes(path: Path, per_class: int = 10) -> Path:
    """A table of 2 * per_class sequences of 1 to 3 steps, class u or v."""
    rows = [
        f"{label}{i},{t},{i + t},{t % 2},{label}" for label in "uv" for i in range(per_class) for t in range(1 + i % 3)
    ]
    return write_csv(path, "id,t,a,b,y", *rows)


# The shipped data


def test_japanese_vowels_is_what_its_archive_describes() -> None:
    lengths = [len(x) for x in (*VOWELS.train.x, *VOWELS.test.x)]
    assert (len(VOWELS.train), len(VOWELS.test), min(lengths), max(lengths)) == (270, 370, 7, 29)
    assert torch.bincount(VOWELS.train.y).tolist() == [30] * 9
    assert torch.bincount(VOWELS.test.y).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert VOWELS.classes == tuple("123456789")
    assert VOWELS.features == tuple(f"LPC cepstrum {i}" for i in range(1, 13))
    assert (VOWELS.name, VOWELS.target, VOWELS.task) == ("japanese-vowels", "speaker", "classification")
    assert VOWELS.attribution is not None
    assert "CC BY 4.0" in VOWELS.attribution
    assert VOWELS.train.x[0][:2, :2].tolist() == [[1.860936, -0.207383], [1.891651, -0.193249]]


def test_the_shipped_data_can_be_predicted_for() -> None:
    part = load_for_prediction("japanese-vowels", features=VOWELS.features, classes=VOWELS.classes)
    assert part.ids == VOWELS.test.ids
    assert part.y is not None
    assert torch.equal(part.y, VOWELS.test.y)


# Leakage


def test_changing_test_sequences_changes_neither_scaler_nor_training_part(tmp_path: Path) -> None:
    path = two_classes(tmp_path / "x.csv")
    before = load(path, **ROLES)
    frame = pl.read_csv(path)
    spoilt = pl.when(pl.col("id").is_in(before.test.ids)).then(pl.col("a") * 1000 + 7).otherwise(pl.col("a"))
    frame.with_columns(spoilt.alias("a")).write_csv(path)
    after = load(path, **ROLES)

    assert after.train.ids == before.train.ids
    assert all(torch.equal(x, z) for x, z in zip(after.train.x, before.train.x, strict=True))
    assert Scaler.fit(after.train) == Scaler.fit(before.train)
    assert not torch.equal(torch.cat(after.test.x), torch.cat(before.test.x))
    assert Scaler.fit(after.test) != Scaler.fit(before.test)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("seed", range(5))
def test_a_split_loses_no_sequence_and_shares_none(tmp_path: Path, task: str, fraction: float, seed: int) -> None:
    sizes = {"a": 20, "b": 7, "c": 2, "d": 1}
    targets = [label for label, size in sizes.items() for _ in range(size)]
    if task == "regression":
        targets = [f"{i}.5" for i in range(len(targets))]
    rows = [f"{i},{t},{i}.{t},{y}" for i, y in enumerate(targets) for t in range(2)]
    data = load(write_csv(tmp_path / "x.csv", "id,t,a,y", *rows), **ROLES, test_fraction=fraction, seed=seed)

    assert not set(data.train.ids) & set(data.test.ids)
    assert sorted(map(int, data.train.ids + data.test.ids)) == list(range(30))
    assert list(map(int, data.train.ids)) == sorted(map(int, data.train.ids))
    for part in (data.train, data.test):
        for x, id_ in zip(part.x, part.ids, strict=True):
            assert x.flatten().tolist() == [float(f"{id_}.0"), float(f"{id_}.1")]
    if task == "classification":
        assert set(data.train.y.tolist()) == {0, 1, 2, 3}
        assert 3 not in data.test.y.tolist()  # the only sequence of its class is needed for training
    if fraction in {0.3, 0.5}:
        assert len(data.test) == 30 * fraction


def test_a_split_keeps_the_proportions_of_the_classes(tmp_path: Path) -> None:
    rows = [f"{i},{i},{'often' if i % 4 else 'rare'}" for i in range(80)]
    path = write_csv(tmp_path / "x.csv", "id,a,y", *rows)
    for seed in range(5):
        data = load(path, id_column="id", target_column="y", seed=seed, test_fraction=0.25)
        assert data.classes == ("often", "rare")
        assert torch.bincount(data.test.y).tolist() == [15, 5]


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    path = two_classes(tmp_path / "x.csv")
    first, same, other = (load(path, **ROLES, seed=seed) for seed in (3, 3, 4))
    assert first.test.ids == same.test.ids != other.test.ids
    assert first.split.split(";")[0] == (
        "6 of 20 sequences, drawn at random in the proportions of the classes (seed 3), are the test part"
    )


# The .ts format


def ts_text(x: list[np.ndarray], labels: list[str] | None, header: str) -> str:
    lines = [":".join(",".join(repr(float(v)) for v in channel) for channel in sequence.T) for sequence in x]
    if labels is not None:
        lines = [f"{line}:{label}" for line, label in zip(lines, labels, strict=True)]
    return "\n".join([header, "@data", *lines])


@st.composite
def ragged(draw: st.DrawFn) -> list[np.ndarray]:
    """Up to five sequences (T, I) of one width."""
    width = draw(st.integers(1, 3))
    row = st.lists(FLOATS, min_size=width, max_size=width)
    sequences = draw(st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=5))
    return [np.array(sequence, dtype=np.float32) for sequence in sequences]


@unhurried
@given(x=ragged(), data=st.data())
def test_ts_round_trip_of_classes(x: list[np.ndarray], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.sampled_from(["a", "Bé", "3"]), min_size=len(x), max_size=len(x)))
    parsed = parse_ts(ts_text(x, labels, "@classLabel true Bé 3 a").encode(), "x.ts")
    assert parsed.targets == tuple(labels)
    assert (parsed.task, parsed.classes) == ("classification", ("Bé", "3", "a"))
    assert parsed.features == tuple(f"channel {i + 1}" for i in range(x[0].shape[1]))
    assert all(np.array_equal(got.numpy(), sent) for got, sent in zip(parsed.x, x, strict=True))


@unhurried
@given(x=ragged(), data=st.data())
def test_ts_round_trip_of_numbers(x: list[np.ndarray], data: st.DataObject) -> None:
    numbers = data.draw(st.lists(FLOATS, min_size=len(x), max_size=len(x)))
    parsed = parse_ts(ts_text(x, [repr(n) for n in numbers], "@targetlabel true").encode(), "x.ts")
    assert (parsed.targets, parsed.task) == (tuple(numbers), "regression")
    assert all(np.array_equal(got.numpy(), sent) for got, sent in zip(parsed.x, x, strict=True))


TS = """#About {word}
@problemName Toy
@TIMESTAMPS False
@missing false
@Univariate false
@dimension 2
@equalLength FALSE
@CLASSLABEL TRUE  b\ta

@DATA
# a remark
1,2 : 3 , 4 : b

5:6:a
7:7:a
"""


@pytest.mark.parametrize(
    "content",
    [
        TS.format(word="commas").encode(),
        TS.format(word="commas").replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + TS.format(word="é").encode(),
        TS.format(word="é").encode("latin-1"),
        TS.replace("@dimension 2", "@dimensions 2").encode(),
        TS.replace("@dimension 2\n", "").encode(),
        TS.replace("@Univariate false\n", "").encode(),
    ],
    ids=["as written", "crlf", "byte order mark", "latin-1 in a comment", "dimensions", "no dimensions", "fewer tags"],
)
def test_ts_files_may_differ_in_what_does_not_matter(content: bytes) -> None:
    parsed = parse_ts(content, "toy.ts")
    assert [x.tolist() for x in parsed.x] == [[[1, 3], [2, 4]], [[5, 6]], [[7, 7]]]
    assert parsed.targets == ("b", "a", "a")
    assert parsed.classes == ("b", "a")
    assert parsed.ids == ("toy #1", "toy #2", "toy #3")


@pytest.mark.parametrize(
    "header", ["@data", "@classLabel false\n@data", "@targetLabel false\n@classlabel false\n@data"]
)
def test_ts_without_a_target_can_be_predicted_for(tmp_path: Path, header: str) -> None:
    path = tmp_path / "new.ts"
    path.write_text(f"{header}\n1,2:3,4\n5:6\n")
    part = load_for_prediction(path, features=("u", "v"), classes=("a", "b"))
    assert (part.y, part.ids) == (None, ("new #1", "new #2"))


def test_ts_classes_that_are_not_listed_are_those_that_occur(tmp_path: Path) -> None:
    (tmp_path / "x.ts").write_text("@classLabel true\n@data\n" + "1:10\n2:9\n" * 4)
    assert load(tmp_path / "x.ts").classes == ("9", "10")


def test_ts_equal_length_and_univariate_are_accepted_where_they_are_true() -> None:
    parsed = parse_ts(b"@univariate true\n@equalLength true\n@seriesLength 3\n@data\n1,2,3\n4,5,6\n", "x.ts")
    assert [x.flatten().tolist() for x in parsed.x] == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(("train", "test"), [("X_TRAIN.ts", "X_TEST.ts"), ("x_train.ts", "x_test.ts")])
def test_the_test_file_beside_a_training_file_is_respected(tmp_path: Path, train: str, test: str) -> None:
    header = "@classLabel true a b c\n@data\n"
    (tmp_path / train).write_text(header + "1:c\n2:a\n3:c\n")
    (tmp_path / test).write_text(header + "4:c\n")
    data = load(tmp_path / train)
    assert data.classes == ("a", "c")  # b is declared, but nobody has seen one
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([1, 0, 1], [1])
    assert data.split.split(";")[0] == f"the test part is {test}, which lies beside the training file"


def test_a_ts_file_alone_is_split(tmp_path: Path) -> None:
    path = tmp_path / "X_TRAIN.ts"
    path.write_text("@targetlabel true\n@data\n" + "".join(f"{i}:{i}.5\n" for i in range(10)))
    data = load(path)
    assert (data.name, data.task, data.target, len(data.train), len(data.test)) == ("X", "regression", "target", 7, 3)
    assert data.test.y.tolist() == [x.item() + 0.5 for x in data.test.x]


# Tables


@unhurried
@given(x=ragged(), suffix=st.sampled_from([".csv", ".parquet"]), random=st.randoms(use_true_random=False))
def test_table_round_trip_whatever_the_order_of_its_rows(
    tmp_path_factory: pytest.TempPathFactory, x: list[np.ndarray], suffix: str, random: object
) -> None:
    rows = [(f"s{i}", t, *map(float, step)) for i, sequence in enumerate(x) for t, step in enumerate(sequence)]
    random.shuffle(rows)  # type: ignore[attr-defined]
    names = ["id", "t", *string.ascii_lowercase[: x[0].shape[1]]]
    path = tmp_path_factory.mktemp("table") / f"x{suffix}"
    frame = pl.DataFrame(rows, schema=names, orient="row")
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)

    parsed = read_table(path, Columns(id="id", time="t"), need_target=False)
    assert list(parsed.ids) == list(dict.fromkeys(row[0] for row in rows))
    assert parsed.features == tuple(names[2:])
    for got, id_ in zip(parsed.x, parsed.ids, strict=True):
        assert np.array_equal(got.numpy(), x[int(id_[1:])])


def test_csv_and_parquet_give_the_same(tmp_path: Path) -> None:
    path = two_classes(tmp_path / "x.csv")
    pl.read_csv(path).write_parquet(tmp_path / "x.parquet")
    csv, parquet = load(path, **ROLES), load(tmp_path / "x.parquet", **ROLES)
    assert (csv.train.ids, csv.test.ids, csv.classes) == (parquet.train.ids, parquet.test.ids, parquet.classes)
    assert torch.equal(torch.cat(csv.train.x), torch.cat(parquet.train.x))


def read(path: Path, **columns: object) -> tuple[tuple[str, ...], list[list[float]]]:
    parsed = read_table(path, Columns(id="id", **columns), need_target=False)  # type: ignore[arg-type]
    return parsed.ids, [x.flatten().tolist() for x in parsed.x]


def test_rows_keep_their_order_without_a_time_column_and_that_is_said(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", "id,t,a,y", "q,9,1,u", "p,9,2,v", "q,1,3,u", "r,1,5,v", "s,1,6,u")
    assert read(path, features=("a",)) == (("q", "p", "r", "s"), [[1, 3], [2], [5], [6]])
    assert read(path, features=("a",), time="t") == (("q", "p", "r", "s"), [[3, 1], [2], [5], [6]])
    notes = load(path, id_column="id", target_column="y", feature_columns=["a"]).notes
    assert notes == ("no time column was named: steps are in the order of the rows",)


@pytest.mark.parametrize(
    "times",
    [
        ["3", "10", "200"],
        ["-1.5", "0.25", "1e3"],
        ['" 1785542400000000001"', "+1785542400000000002", "1785542400000000003"],
        ["2026-01-31", "2026-02-01", "2026-11-01"],
        ["2026-01-31 09:00", "2026-01-31 10:00:00.5", "2026-02-01"],
        ["2026-01-31T12:00+05:00", "2026-01-31T09:00Z", "2026-01-31T09:00-01:00"],
    ],
    ids=["whole numbers", "numbers", "nanoseconds in text", "dates", "moments", "moments in time zones"],
)
def test_times_are_sorted_by_what_they_mean(tmp_path: Path, times: list[str]) -> None:
    for order in itertools.permutations(range(3)):
        path = write_csv(tmp_path / "x.csv", "id,t,a", *(f"p,{times[i]},{i}" for i in order))
        assert read(path, time="t") == (("p",), [[0, 1, 2]])


def test_times_of_a_parquet_file_may_be_moments(tmp_path: Path) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = [start + timedelta(hours=h) for h in (2, 0, 1)]
    pl.DataFrame({"id": [7, 7, 7], "t": times, "a": [2, 0, 1]}).write_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", time="t") == (("7",), [[0, 1, 2]])


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["true", "false"], [1, 0]),
        (["True", "False"], [1, 0]),
        (["1", "0"], [1, 0]),
        (["1.5", "-2e-3"], [1.5, -2e-3]),
        (['"1.5"', '" 2"'], [1.5, 2]),
    ],
)
def test_booleans_and_numbers_are_features(tmp_path: Path, cells: list[str], values: list[float]) -> None:
    path = write_csv(tmp_path / "x.csv", "id,a", *(f"p,{cell}" for cell in cells))
    assert read(path)[1] == [values]


def test_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", "id,a", "007,1", "7,2", "7.0,3")
    assert read(path) == (("007", "7", "7.0"), [[1], [2], [3]])
    path = write_csv(tmp_path / "x.csv", "id,a", "NA,1", "Nan,2")
    assert read(path) == (("NA", "Nan"), [[1], [2]])


def test_a_column_named_twice_is_not_confused_with_a_name_that_polars_could_give(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", "id,a_duplicated_0", "p,1")
    assert read(path) == (("p",), [[1]])


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfid,a\r\n\r\np,1\r\n\r\np,2\r\n\r\n")
    assert read(path) == (("p",), [[1, 2]])


def test_a_path_is_a_path_and_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "y=3" / "[ab]*"
    folder.mkdir(parents=True)
    two_classes(folder / "x.csv")
    pl.read_csv(folder / "x.csv", glob=False).write_parquet(folder / "x.parquet")
    for name in ("x.csv", "x.parquet"):
        assert load(folder / name, **ROLES).features == ("a", "b")


COUNT = 60


@pytest.mark.parametrize(
    ("targets", "task", "classes"),
    [
        ([f"c{i % 3}" for i in range(COUNT)], None, ("c0", "c1", "c2")),
        ([str(i % 2 == 0).lower() for i in range(COUNT)], None, ("false", "true")),
        ([str(i % 20) for i in range(COUNT)], None, tuple(map(str, range(20)))),
        ([str(i % 21) for i in range(COUNT)], None, None),
        ([str(i % 21) for i in range(COUNT)], "classification", tuple(map(str, range(21)))),
        ([str(i % 2) for i in range(COUNT)], "regression", None),
        ([f"{i % 2}.0" for i in range(COUNT)], None, None),
        ([f"{i % 2}.0" for i in range(COUNT)], "classification", ("0", "1")),
        (["1", "0", "0"], None, ("0", "1")),
        (["1", "2", "3", "3"], None, None),
        (["10", "9", "9", "10", "x", "x"], None, ("10", "9", "x")),
    ],
    ids=[
        "text",
        "true/false",
        "20 whole numbers",
        "21 whole numbers",
        "forced classes",
        "forced number",
        "decimals",
        "decimals forced",
        "two are always few",
        "more than half as many as sequences",
        "text and numbers",
    ],
)
def test_the_targets_decide_between_classes_and_a_number(
    tmp_path: Path, targets: list[str], task: str | None, classes: tuple[str, ...] | None
) -> None:
    path = write_csv(tmp_path / "x.csv", "id,a,y", *(f"{i},{i},{y}" for i, y in enumerate(targets)))
    data = load(path, id_column="id", target_column="y", task=task)  # type: ignore[arg-type]
    assert data.classes == classes
    for part in (data.train, data.test):
        values = [targets[int(id_)] for id_ in part.ids]
        expected = [float(v) for v in values] if classes is None else [classes.index(v.split(".")[0]) for v in values]
        assert part.y.tolist() == expected
    decided = task is None and all(y.replace(".0", "").isdecimal() for y in targets)
    assert any("whole numbers" in note for note in data.notes) == decided


def test_a_categorical_column_of_a_parquet_file_is_a_target(tmp_path: Path) -> None:
    values = ["u", "v"] * 4
    for dtype in (pl.Categorical, pl.Enum(["v", "u"])):
        frame = pl.DataFrame({"id": range(8), "a": range(8), "y": pl.Series(values, dtype=dtype)})
        frame.write_parquet(tmp_path / "x.parquet")
        assert load(tmp_path / "x.parquet", id_column="id", target_column="y").classes == ("u", "v")


def test_a_given_test_file_is_respected(tmp_path: Path) -> None:
    train = two_classes(tmp_path / "train.csv")
    test = write_csv(tmp_path / "test.csv", "b,y,extra,a,t,id", "0,v,1,5,1,k", "1,v,1,4,0,k")
    data = load(train, test=test, **ROLES)
    assert (len(data.train), data.test.ids, data.test.y.tolist()) == (20, ("k",), [1])
    assert data.test.x[0].tolist() == [[4, 1], [5, 0]]
    assert data.split.split(";")[0] == f"the test part is {test}, as asked for"


@pytest.mark.parametrize(
    ("header", "row", "target"),
    [("b,id,t,a", "2,k,0,1", None), ("b,id,t,y,a", "2,k,0,,1", None), ("b,id,t,y,a", "2,k,0,v,1", [1])],
    ids=["no target column", "an empty target column", "a target"],
)
def test_tables_to_predict_for_need_the_features_and_no_target(
    tmp_path: Path, header: str, row: str, target: list[int] | None
) -> None:
    path = write_csv(tmp_path / "new.csv", header, row)
    part = load_for_prediction(path, features=("a", "b"), classes=("u", "v"), **ROLES)
    assert part.ids == ("k",)
    assert part.x[0].tolist() == [[1, 2]]
    assert (None if part.y is None else part.y.tolist()) == target


# In memory


def test_the_scaler_standardises_the_steps_that_it_was_fitted_on() -> None:
    scaler = Scaler.fit(VOWELS.train)
    steps = scaler(torch.cat(VOWELS.train.x)).double()
    assert torch.allclose(steps.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(steps.std(0, correction=0), torch.ones(12, dtype=torch.float64), atol=1e-6)
    in_float64 = torch.cat(VOWELS.train.x).numpy().astype(np.float64)
    assert scaler.mean == pytest.approx(in_float64.mean(0), rel=1e-12)
    assert scaler.std == pytest.approx(in_float64.std(0), rel=1e-12)
    assert Scaler.from_dict(json.loads(json.dumps(scaler.to_dict()))) == scaler


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8, -3e-30])
def test_a_constant_feature_is_shifted_and_not_blown_up(value: float) -> None:
    x = torch.full((1001, 1), value)
    scaler = Scaler.fit(Inputs((x,), None, ("a",)))
    assert scaler.std == (1.0,)
    assert not scaler(x).any()


def test_a_batch_is_padded_with_zeros() -> None:
    part = Sequences((torch.ones(1, 2), torch.ones(3, 2), torch.ones(2, 2)), torch.tensor([5, 6, 7]), ("a", "b", "c"))
    for indices in ([2, 1], torch.tensor([2, 1])):
        x, lengths, y = batch(part, indices)
        assert (tuple(x.shape), lengths.tolist(), y.tolist()) == ((3, 2, 2), [2, 3], [7, 6])
        assert lengths.dtype == torch.int64
        assert x[..., 0].T.tolist() == [[1, 1, 0], [1, 1, 1]]
    part = part.subset([2, 0])
    assert (part.ids, part.y.tolist(), [len(x) for x in part.x]) == (("c", "a"), [7, 5], [2, 1])


def test_what_is_no_set_of_sequences_is_refused() -> None:
    x, y = torch.ones(2, 3), torch.tensor([0])
    cases = [
        ((), y, (), "at least one sequence"),
        ((x,), y, ("a", "b"), "2 ids"),
        ((x, x), y, ("a", "b"), r"targets of shape \(1,\)"),
        ((torch.ones(0, 3),), y, ("a",), "at least one step"),
        ((x, torch.ones(2, 4)), torch.tensor([0, 1]), ("a", "b"), "sequence 'b'.*3 features"),
        ((x.half(),), y, ("a",), "float16.*expected.*torch.float64 or float32"),
        ((x,), y.int(), ("a",), "targets of torch.int32"),
    ]
    for sequences, targets, ids, message in cases:
        with pytest.raises(AnyRNNError, match=message):
            Sequences(sequences, targets, ids)


def test_what_is_no_scaler_is_refused() -> None:
    scaler = Scaler((0.0, 1.0), (1.0, 2.0))
    with pytest.raises(AnyRNNError, match=r"x has shape \(5, 3\), expected 2 features"):
        scaler(torch.ones(5, 3))
    for values in ({}, {"mean": 3, "std": 4}, {"mean": ["a"], "std": [1]}, {"mean": [1], "std": []}):
        with pytest.raises(AnyRNNError, match="scaler: "):
            Scaler.from_dict(values)
    for std in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AnyRNNError, match="finite, positive"):
            Scaler((0.0,), (std,))
