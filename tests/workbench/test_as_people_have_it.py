"""Files, frames and arrays as people have them give the data of a clean table, and what was done to them is said."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Settings, fit, from_arrays, load, load_for_prediction
from anyrnn.workbench.cli import app
from anyrnn.workbench.stored import load_model, save_model
from anyrnn.workbench.ts import parse_ts

ROLES = {"id_column": "id", "time_column": "t", "target_column": "y"}


def rows(count: int = 12) -> list[list[Any]]:
    """Id, time, two features and a class."""
    return [[f"s{k}", t, k + t / 4, t % 2, "uv"[k % 2]] for k in range(count) for t in range(1 + k % 3)]


def written(separator: str = ",", decimal: str = ".", names: str = "id t a b y") -> str:
    lines = [names.split(), *rows()]
    return "\n".join(separator.join(str(cell).replace(".", decimal) for cell in line) for line in lines) + "\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plain(folder: Path) -> Dataset:
    (folder / "plain.csv").write_text(written())
    return load("plain.csv", **ROLES)


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert found.features == expected.features
    for ours, theirs in zip(found.parts, expected.parts, strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.y, theirs.y)
        assert all(torch.equal(x, z) for x, z in zip(ours.x, theirs.x, strict=True))


# Files


@pytest.mark.parametrize(
    ("name", "separator", "note"),
    [
        ("x.csv", ";", "the columns are separated by semicolons"),
        ("x.csv", "\t", "the columns are separated by tabs"),
        ("x.csv", "|", "the columns are separated by vertical bars"),
        ("x.tsv", "\t", None),
        ("x.tsv", ",", "the columns are separated by commas"),
        ("x.CSV", ",", None),
    ],
)
def test_columns_have_any_of_the_usual_separators(plain: Dataset, name: str, separator: str, note: str | None) -> None:
    Path(name).write_text(written(separator))
    data = load(name, **ROLES)
    assert_same(data, plain)
    assert data.notes == ((note, *plain.notes) if note else plain.notes)


def test_decimal_commas_between_semicolons_are_numbers_whatever_their_digits(plain: Dataset) -> None:
    Path("x.csv").write_text(written(";", ","))
    data = load("x.csv", **ROLES)
    assert_same(data, plain)
    assert "feature 'a' is written with decimal commas: read as numbers" in data.notes
    assert "time 't' is written with decimal commas: read as numbers" not in data.notes
    lines = [f"s{k};{t},5;{t};{'uv'[k % 2]}" for k in range(4) for t in (10, 9)]
    Path("x.csv").write_text("\n".join(["id;t;a;y", *lines]))
    data = load("x.csv", **ROLES, delta_time=True)
    assert "time 't' is written with decimal commas: read as numbers" in data.notes
    assert data.train.x[0].tolist() == [[9, 0], [10, 1]]
    Path("x.csv").write_text("id;t;a;y\n" + "".join(f"s{k};0;{k + 1},125;{'uv'[k % 2]}\n" for k in range(4)))
    assert sorted(x.item() for part in load("x.csv", **ROLES).parts for x in part.x) == [1.125, 2.125, 3.125, 4.125]


@pytest.mark.parametrize("name", ["x.csv.gz", "x.tsv.gz", "x_TRAIN.ts.gz"])
def test_a_file_may_be_compressed(plain: Dataset, name: str) -> None:
    text = written("\t" if "tsv" in name else ",")
    if ".ts." in name:
        text = "@classLabel true u v\n@data\n" + "".join(f"{k},{k + 1}:{'uv'[k % 2]}\n" for k in range(6))
        Path("x_TEST.ts.gz").write_bytes(gzip.compress(text.replace("1,", "7,").encode()))
    Path(name).write_bytes(gzip.compress(text.encode()))
    data = load(name, **({} if ".ts." in name else ROLES))
    assert data.name == "x"
    if ".ts." in name:
        assert data.split.startswith("the test part is x_TEST.ts.gz, which lies beside")
    else:
        assert_same(data, plain)
    Path(name).write_bytes(gzip.compress(text.encode())[:-12])
    with pytest.raises(
        AnyRNNError, match=r"this cannot be unpacked: .*; expected a file that gzip has written, complete"
    ):
        load(name, **({} if ".ts." in name else ROLES))


def test_a_named_encoding_is_read() -> None:
    text = "id,größe,y\n" + "".join(f"é{k},{k},{['über', 'unter'][k % 2]}\n" for k in range(4))
    named = {"id_column": "id", "target_column": "y"}
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-8"):
        Path("x.csv").write_bytes(text.encode(encoding))
        data = load("x.csv", **named, encoding=encoding)
        assert (data.features, data.classes) == (("größe",), ("unter", "über"))
        assert sorted(data.train.ids + data.test.ids) == ["é0", "é1", "é2", "é3"]
    Path("x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(AnyRNNError, match="encoding: got 'latin-17', which is not known; expected a name such as"):
        load("x.csv", **named, encoding="latin-17")
    with pytest.raises(AnyRNNError, match=r"x.csv: this is not text in ascii at byte 5; name another encoding"):
        load("x.csv", **named, encoding="ascii")
    pl.DataFrame({"id": [1, 2], "a": [1, 2], "y": [0, 1]}).write_parquet("x.parquet")
    with pytest.raises(AnyRNNError, match="Parquet is compressed within and has no encoding to name"):
        load("x.parquet", **named, encoding="latin-1")


def test_a_name_with_a_comma_or_semicolons_beside_it_is_found() -> None:
    Path("x.csv").write_text("id;flow, m3/s;a;y\ns;1,5;2;u\nr;2,5;3;v\nq;2,5;3;v\n")
    data = load("x.csv", id_column="id", target_column="y", feature_columns=["flow, m3/s"])
    assert data.features == ("flow, m3/s",)
    Path("y.csv").write_text('id,"flow, m3/s",y\ns,1.5,u\nr,2.5,v\nq,2.5,v\n')
    assert load("y.csv", id_column="id", target_column="y").features == ("flow, m3/s",)


# Times


TIMES = {
    "numbers": ["0", "1.5", "4"],
    "dates": ["2026-01-30", "2026-01-31", "2026-02-02"],
    "dates with dots": ["30.1.2026", "31.01.2026", "02.02.2026"],
    "moments with dots": ["31.01.2026 22:30", "01.02.2026 0:15:30.5", "01.02.2026 07:00"],
    "times of day": ["7:05", "07:06:30", "13:00"],
    "zones": ["2026-01-31T23:00:00Z", "2026-02-01T01:00:00+01:00", "2026-02-01T03:00:00Z"],
}
APART = {
    "numbers": [0, 1.5, 2.5],
    "dates": [0, 86400, 172800],
    "dates with dots": [0, 86400, 172800],
    "moments with dots": [0, 6330.5, 24269.5],
    "times of day": [0, 90, 21210],
    "zones": [0, 3600, 10800],
}


@pytest.mark.parametrize("kind", TIMES)
def test_the_time_since_the_last_step_is_a_feature(kind: str) -> None:
    lines = [f"s{k},{time},{k},{'uv'[k % 2]}" for k in range(6) for time in reversed(TIMES[kind])]
    Path("x.csv").write_text("\n".join(["id,t,a,y", *lines]))
    data = load("x.csv", **ROLES, delta_time=True)
    assert data.features == ("a", "delta time")
    for part in data.parts:
        for x in part.x:
            assert x[:, 1].tolist() == APART[kind]
    told = any("are read with the day first" in note for note in data.notes)
    assert told == ("dots" in kind)
    assert (data.scaler.mean[1], data.scaler.std[1]) != (0.0, 1.0)


def test_counters_keep_their_differences_however_large() -> None:
    pl.DataFrame(
        {"id": [*"ppqqrr"], "t": [2**63, 2**63 + 3] * 3, "a": [1, 2, 3, 4, 5, 6], "y": [*"uuvvvv"]},
        schema_overrides={"t": pl.UInt64},
    ).write_parquet("x.parquet")
    data = load("x.parquet", **ROLES, delta_time=True)
    assert data.train.x[0][:, 1].tolist() == [0, 3]


def test_a_clock_that_goes_back_half_a_day_is_said() -> None:
    lines = [f"s{k},{time},{k},{'uv'[k % 2]}" for k in range(4) for time in ("23:50", "0:10")]
    Path("x.csv").write_text("\n".join(["id,t,a,y", *lines]))
    (note,) = [note for note in load("x.csv", **ROLES).notes if "later time of day" in note]
    assert note.startswith("x.csv: data row 2 (id 's0', t 0:10): the row above has a later time of day; without a date")


def test_time_as_a_feature_takes_times(plain: Dataset) -> None:
    named = {"id_column": "id", "target_column": "y"}
    with pytest.raises(AnyRNNError, match=r"the time since the last step is a feature .*takes the column that orders"):
        load("plain.csv", **named, delta_time=True)
    Path("x.ts").write_text("@classLabel true u v\n@data\n1:u\n2:v\n")
    with pytest.raises(AnyRNNError, match=r"x.ts: the header does not say '@timeStamps true'"):
        load("x.ts", delta_time=True)
    with pytest.raises(AnyRNNError, match="the header does not say '@timeStamps true'"):
        load("japanese-vowels", delta_time=True)
    with pytest.raises(AnyRNNError, match="the data frame: this has no encoding to name"):
        load(pl.read_csv("plain.csv"), **ROLES, encoding="latin-1")
    data = load("plain.csv", **ROLES, delta_time=True)
    Path("new.csv").write_text("id,a,b\nn,1,2\n")
    with pytest.raises(AnyRNNError, match=r"new.csv: the time since .*'t', that of the training, is not there"):
        load_for_prediction(
            "new.csv",
            features=data.features,
            classes=data.classes,
            id_column="id",
            trained_time="t",
            trained_reading=data.reading,
        )


STAMPED = "@timeStamps true\n@dimensions 2\n@classLabel true u v\n@data\n"


def test_time_stamps_of_a_ts_file_sort_its_steps_and_may_be_a_feature() -> None:
    text = (
        STAMPED + "(2026-01-01 10:00:00,1),(2026-01-01 09:00:00,0):(2026-01-01 09:00:00,5),(2026-01-01 10:00:00,6):u\n"
    )
    text += "(3,1) , (5.5,2):(3,7),(5.5,NaN):v\n"
    parsed = parse_ts(text.replace("NaN", "8").encode(), "x.ts", delta_time=True)
    assert parsed.features == ("channel 1", "channel 2", "delta time")
    assert [x.tolist() for x in parsed.x] == [[[0, 5, 0], [1, 6, 3600]], [[1, 7, 0], [2, 8, 2.5]]]
    assert parsed.targets == ("u", "v")
    assert [x.shape for x in parse_ts(text.replace("NaN", "8").encode(), "x.ts").x] == [(2, 2), (2, 2)]


def test_channels_of_different_times_are_gaps_where_they_may_be() -> None:
    Path("x.ts").write_text(STAMPED + "(0,1),(2,3):(0,4),(1,5):u\n(0,1):(0,2):v\n(0,2):(0,2):v\n")
    data = load("x.ts", missing="nan", validation=0)
    x = next(x for part in data.parts for x in part.x if len(x) == 3)
    assert x.nan_to_num(nan=-1).tolist() == [[1, 4], [-1, 5], [3, -1]]


# Words


def words(count: int = 40) -> str:
    lines = [f"s{k},{t},{k},{['ICU', 'ER', 'ward'][k % 3]},{'uv'[k % 2]}" for k in range(count) for t in range(2)]
    return "\n".join(["id,t,a,unit,y", *lines]) + "\n"


def test_text_becomes_a_feature_for_each_word() -> None:
    Path("x.csv").write_text(words())
    data = load("x.csv", **ROLES)
    assert data.features == ("a", "unit=ER", "unit=ICU", "unit=ward")
    assert "feature 'unit' holds text: read as 3 features that are 0 or 1, for 'ER', 'ICU', 'ward'" in data.notes
    for part in data.parts:
        for x, id_ in zip(part.x, part.ids, strict=True):
            assert x[0, 1:].tolist() == [
                float(["ICU", "ER", "ward"][int(id_[1:]) % 3] == w) for w in ("ER", "ICU", "ward")
            ]
    assert data.scaler.mean[1:] == (0.0, 0.0, 0.0)
    assert data.scaler.std[1:] == (1.0, 1.0, 1.0)


def test_an_unknown_word_at_predict_time_is_said_and_is_all_zeros(folder: Path) -> None:
    Path("x.csv").write_text(words())
    data = load("x.csv", **ROLES, delta_time=True)
    results = fit(data, "gru", settings=Settings(epochs=1, hidden_size=3))
    save_model(folder, results.best.model)
    model = load_model(folder, "gru", (), folder)
    assert model.reading == data.reading
    Path("new.csv").write_text("id,t,unit,a\nn,0,ER,1\nn,1,lab,2\nm,0,gym,2\nm,1,lab,2\n")
    new = load_for_prediction(
        "new.csv",
        features=model.features,
        classes=model.classes,
        id_column="id",
        time_column="t",
        trained_reading=model.reading,
    )
    assert [x.tolist() for x in new.x] == [[[1, 1, 0, 0, 0], [2, 0, 0, 0, 1]], [[2, 0, 0, 0, 0], [2, 0, 0, 0, 1]]]
    assert new.notes[0] == (
        "new.csv: data row 2 (id 'n', t 1): feature 'unit' is 'lab', which is none of the words of the training, 'ER', "
        "'ICU', 'ward': its features are 0 there (3 rows: 'gym', 'lab')"
    )
    assert len(model.predict(new.x).values) == 2


def test_a_word_of_the_test_part_alone_is_unknown() -> None:
    Path("x.csv").write_text(words().replace("s0,0,0,ICU", "s0,0,0,roof"))
    for seed in range(20):
        data = load("x.csv", **ROLES, seed=seed)
        known = "s0" in data.train.ids
        assert ("unit=roof" in data.features) == known
        assert any("no sequence of the training part has 'unit=roof'" in note for note in data.notes) != known
        for part in data.parts:
            assert part.x[0].shape[1] == len(data.features)
            if "s0" in part.ids and not known:
                assert part.x[part.ids.index("s0")][0].tolist() == [0, 0, 0, 0]
    Path("train.csv").write_text(words())
    Path("test.csv").write_text("id,t,a,unit,y\nn,0,1,roof,u\nm,0,2,ER,v\n")
    data = load("train.csv", **ROLES, test="test.csv")
    assert [x.tolist() for x in data.test.x] == [[[1, 0, 0, 0]], [[2, 1, 0, 0]]]
    assert any("feature 'unit' is 'roof', which is none of the words" in note for note in data.notes)


def test_a_word_that_is_missing_is_missing_in_all_its_features() -> None:
    Path("x.csv").write_text(words().replace("s1,1,1,ER", "s1,1,1,"))
    data = load("x.csv", **ROLES, gaps="mask")
    x = next(x for part in data.parts for x, id_ in zip(part.x, part.ids, strict=True) if id_ == "s1")
    assert x.isnan().tolist() == [[False] * 4, [False, True, True, True]]
    assert data.scaler(x)[1, 1:4].tolist() == [1, 0, 0]  # filled with the word before
    Path("x.csv").write_text("id,t,a,y,unit\nr,0,1,u,ER\nr,1,1,u\ns,0,2,v,ER\nq,0,2,v,ER\n")
    with pytest.raises(AnyRNNError, match=r"data row 2 \(line 3\) has 4 fields, expected 5 as in the header"):
        load("x.csv", **ROLES, missing="nan")


# Frames and arrays


def test_a_frame_is_a_table(plain: Dataset) -> None:
    frame = pl.DataFrame(rows(), schema=["id", "t", "a", "b", "y"], orient="row")
    data = load(frame, **ROLES)
    assert_same(data, plain)
    assert data.name == "frame"
    train, test = frame.filter(pl.col("id") != "s3"), frame.filter(pl.col("id") == "s3")
    assert load(train, **ROLES, test=test).test.ids == ("s3",)
    with pytest.raises(AnyRNNError, match="the data frame: expected a test file of the same format as Japanese"):
        load("japanese-vowels", test=test)
    new = load_for_prediction(test, features=data.features, classes=data.classes, **ROLES)
    assert (new.ids, new.truths) == (("s3",), ("v",))


def test_a_pyarrow_table_is_a_table(plain: Dataset) -> None:
    pytest.importorskip("pyarrow")
    assert_same(load(pl.DataFrame(rows(), schema=["id", "t", "a", "b", "y"], orient="row").to_arrow(), **ROLES), plain)


def test_a_pandas_frame_is_a_table_and_its_index_may_name_the_sequences(plain: Dataset) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(rows(), columns=["id", "t", "a", "b", "y"])
    assert_same(load(frame, **ROLES), plain)
    assert_same(load(frame.set_index(["id", "t"]), **ROLES), plain)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pl.DataFrame({"a": [1]}).lazy(), "got a polars LazyFrame, expected a data frame .* collect a lazy one first"),
        (pl.Series([1]), "got a polars Series, expected a data frame"),
        (np.zeros((2, 3)), "got ndarray, expected the path .* or a data frame .* arrays are for from_arrays"),
        (7, "got int, expected the path"),
    ],
)
def test_what_is_no_table_is_named(source: object, message: str) -> None:
    with pytest.raises(AnyRNNError, match=message):
        load(source)  # type: ignore[arg-type]


class Pairs(TorchDataset[Any]):
    """Sequences of lengths of their own, as PyTorch has them."""

    def __init__(self, x: list[np.ndarray], y: list[int]) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.x[k]), torch.tensor(self.y[k])


def test_arrays_lists_tensors_and_datasets_are_the_same_data() -> None:
    draw = np.random.default_rng(0)
    ragged = [draw.normal(size=(2 + k % 4, 3)) for k in range(12)]
    padded = np.full((12, 5, 3), np.nan)
    for k, x in enumerate(ragged):
        padded[k, : len(x)] = x
    y = [k % 2 for k in range(12)]
    expected = from_arrays(ragged, y)
    assert expected.classes == ("0", "1")
    assert expected.features == ("channel 1", "channel 2", "channel 3")
    of_dataset = from_arrays(Pairs(ragged, y))
    for found in (of_dataset, from_arrays(padded, np.array(y)), from_arrays(torch.from_numpy(padded), torch.tensor(y))):
        assert_same(found, expected)
    assert_same(from_arrays(padded.transpose(0, 2, 1), y, channels_first=True), expected)
    assert_same(from_arrays([x.T for x in ragged], y, channels_first=True), expected)
    assert_same(from_arrays(TensorDataset(torch.from_numpy(padded), torch.tensor(y))), expected)
    assert from_arrays(padded, y).notes[0].startswith("9 of 12 sequences end in steps without any value (18 in all)")
    objects = np.empty(12, dtype=object)
    objects[:] = ragged
    assert_same(from_arrays(objects, y), expected)
    flat = from_arrays(padded[:, :2, 0], y)
    assert flat.train.x[0].shape == (2, 1)
    single = from_arrays(padded[:, :2].astype(np.float32), y)
    assert single.train.x[0].dtype == torch.float32


def test_arrays_take_what_tables_take() -> None:
    x, y = np.arange(240.0).reshape(12, 10, 2), [f"{k % 2}" for k in range(12)]
    data = from_arrays(
        x,
        y,
        test=(x[:3] + 0.5, y[:3]),
        ids=[f"p{k}" for k in range(12)],
        groups=[k // 2 for k in range(12)],
        feature_names=["a", "b"],
        target="side",
        task="regression",
        missing=[4, "nan"],
    )
    assert (data.features, data.target, data.classes, data.missing) == (("a", "b"), "side", None, ("4", "nan"))
    assert (data.train.ids[0], data.train.groups[:3], data.test.ids) == (
        "p0",
        ("0", "0", "1"),
        ("test 0", "test 1", "test 2"),
    )
    assert data.train.x[0].isnan().nonzero().tolist() == [[2, 0]]
    assert fit(data, "gru", settings=Settings(epochs=1, hidden_size=2)).best.parameters > 0


GOOD = np.ones((4, 3, 2))
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "a gap": (
        (np.where(np.arange(6).reshape(3, 2) == 2, np.nan, GOOD), [0, 1] * 2),
        {},
        r"x\[0\]: 'channel 1' is NaN at",
    ),
    "infinity": (
        (GOOD * np.inf, [0, 1] * 2),
        {"missing": "nan"},
        "is inf at step 0, expected a fin",
    ),
    "no targets": ((GOOD,), {}, "there are no targets; expected y"),
    "too few targets": ((GOOD, [1]), {}, "got 4 sequences and 1 targets"),
    "one-hot targets": ((GOOD, np.eye(4)), {}, r"y has shape \(4, 4\), expected .* take y.argmax\(1\)"),
    "targets of another kind": ((GOOD, [{}, 1, 2, 3]), {}, r"y\[0\] is a dict, expected a class"),
    "four dimensions": ((np.ones((2, 2, 2, 2)), [0, 1]), {}, "got an array of shape"),
    "text": (([["a"]], ["u"]), {}, r"x\[0\]: this is no array of numbers"),
    "complex": ((GOOD * 1j, [0, 1] * 2), {}, "it holds complex128"),
    "an empty sequence": (([np.ones((0, 2)), np.ones((1, 2))], [0, 1]), {}, r"x\[0\]: got shape \(0, 2\)"),
    "other channels": (
        ([np.ones((3, 2)), np.ones((2, 3))], [0, 1]),
        {},
        r"x\[1\]: got 3 channels, expected 2 as in x\[0\]",
    ),
    "a frame": ((pl.DataFrame({"a": [1]}), [1]), {}, "got DataFrame, expected an array .* goes to load"),
    "too few names": ((GOOD, [0, 1] * 2), {"feature_names": ["a"]}, "got 2 channels and the feature names a, expected"),
    "too few ids": ((GOOD, [0, 1] * 2), {"ids": ["a"]}, "ids: got 1 for 4 sequences"),
    "one id twice": ((GOOD, [0, 1] * 2), {"ids": ["a", "b", "c", "a"]}, "ids: two sequences have one name"),
    "a share": ((GOOD, [0, 1] * 2), {"test_fraction": 2}, "from_arrays: got test_fraction=2, expected a share between"),
    "a dataset and y": ((TensorDataset(torch.ones(2, 1, 1), torch.ones(2)), [1, 2]), {}, "gives the targets itself"),
    "no pairs": ((TensorDataset(torch.ones(2, 1, 1)),), {}, r"x\[0\]: the PyTorch dataset gives tuple, expected pairs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_will_not_do_are_named(case: str) -> None:
    arguments, options, message = WRONG[case]
    with pytest.raises(AnyRNNError, match=message):
        from_arrays(*arguments, **options)


# From the command line


def test_from_the_command_line(folder: Path) -> None:
    lines = ["Patient;Uhr;Größe;Station;Ausgang"]
    for k in range(12):
        lines += [f"p{k};01.02.2026 {7 + t}:30;{k},{t};{['Süd', 'Nord'][k % 2]};{'uv'[k % 2]}" for t in range(3)]
    lines[2] = lines[2].replace("0,1", "")
    Path("x.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode("latin-1")))
    columns = ["--id", "Patient", "--time", "Uhr", "--target", "Ausgang", "--encoding", "latin-1"]
    told = ["--gaps", "since", "--delta-time", "--cell", "gru-d", "--hidden", "2", "--epochs", "1", "--out", "run"]
    result = CliRunner().invoke(app, ["fit", "x.csv.gz", *columns, *told])
    assert result.exit_code == 0, result.output
    Path("new.csv").write_text("\n".join(lines[:4]).replace("Süd", "Ost").replace(";u", ";"))
    result = CliRunner().invoke(app, ["predict", "run", "new.csv"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "id,prediction,probability,p(u),p(v)"
    assert "'Ost', which is none of the words of the training, 'Nord', 'Süd'" in result.stderr
    assert "1 of 12 cells are missing" in result.stderr
