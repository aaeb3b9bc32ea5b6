"""What may be wrong with a file is mended where it is certain, and said where it is not."""

import bz2
import gzip
import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import load, load_for_prediction
from anyrnn.workbench.cli import app
from anyrnn.workbench.notes import notes_on_unseen
from anyrnn.workbench.sequences import Inputs, Scaler
from anyrnn.workbench.split import spelling

ROLES: dict[str, Any] = {"id_column": "id", "time_column": "t", "target_column": "y"}
HEADER = "id,t,a,y\n"


def rows(cell: Callable[[int, int], str], *, sequences: int = 12, steps: int = 2) -> str:
    return HEADER + "".join(cell(i, t) + "\n" for i in range(sequences) for t in range(steps))


PLAIN = rows(lambda i, t: f"p{i},{t},{i + t / 4},{'uv'[i % 2]}")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def csv(text: str, name: str = "x.csv", **options: Any) -> Any:
    Path(name).write_text(text, encoding="utf-8")
    return load(name, **{**ROLES, **options})


def parquet(text: str) -> Any:
    """The same table, its ids and targets as text."""
    types = {"id": pl.String, "y": pl.String}
    pl.read_csv(io.StringIO(text), schema_overrides=types).write_parquet("x.parquet")
    return load("x.parquet", **ROLES)


# Ids and classes


@pytest.mark.parametrize("read", [csv, parquet])
@pytest.mark.parametrize("blank", [" ", "\t", "\xa0", "\u3000", "\u200b", "\ufeff"])
def test_blanks_at_the_ends_of_ids_and_classes_do_not_count(read: Any, blank: str) -> None:
    data = read(rows(lambda i, t: f"{blank if t else ''}7{i}{blank},{t},{i},{'uv'[i % 2]}{blank * t}"))
    assert sorted((*data.train.ids, *data.test.ids)) == sorted(f"7{i}" for i in range(12))
    assert data.classes == ("u", "v")
    assert sum("blanks at the ends do not count" in note for note in data.notes) == 2
    assert f"id {'70' + blank!r} of data row 1 is read as '70': blanks at the ends do not count (24 rows)" in data.notes


def test_ids_that_differ_in_spelling_stay_in_one_part_and_are_named() -> None:
    spellings = [
        ("p{}", "P{}"),
        ("{}", "00{}"),
        ("{}", "{}.0"),
        ("é{}", "e\u0301{}"),
        ("a {}", "A  {}"),
        ("ß{}", "SS{}"),
    ]
    for one, other in spellings:
        for seed in range(5):
            data = csv(rows(lambda i, t: f"{(other if t else one).format(i)},{t},{i + t},{'uv'[i % 2]}"), seed=seed)  # noqa: B023
            train, test = ({spelling(id_) for id_ in part.ids} for part in (data.train, data.test))
            assert len(data.train) + len(data.test) == 24
            assert not train & test
            (note,) = [note for note in data.notes if note.startswith("ids ")]
            assert f"{one.format(0)!r} and {other.format(0)!r} differ in case or spelling only (and 11 more" in note


def test_other_ids_are_no_other_spelling() -> None:
    names = [
        "1",
        "-1",
        "1.5",
        "15",
        "1e5",
        "a",
        "ab",
        "a-b",
        "10000000000000000000001",
        "10000000000000000000002",
        "nan1",
    ]
    assert len({spelling(name) for name in names}) == len(names)


def test_pieces_of_several_classes_cannot_take_a_class_out_of_training() -> None:
    for seed in range(20):
        text = rows(lambda i, t: f"{'pP'[t]}{i},{t},{i + t},{'uv'[t] if i else 'uw'[t]}")
        data = csv(text, seed=seed)
        assert set(data.train.y.tolist()) == {0, 1, 2}
        assert not {id_.lower() for id_ in data.train.ids} & {id_.lower() for id_ in data.test.ids}
    with pytest.raises(AnyRNNError, match="all ids differ in spelling only"):
        csv(HEADER + "p,0,1,u\nP,0,2,v\nＰ,1,3,v\n")


@pytest.mark.parametrize(("one", "other"), [("ill", "Ill"), ("ILL", "ill"), ("1.0x", "1.0X"), ("ＡＢ", "ab")])
def test_classes_that_differ_in_case_are_named(one: str, other: str) -> None:
    data = csv(rows(lambda i, t: f"p{i},{t},{i + t},{(one, other, 'well')[i % 3]}"))
    assert len(data.classes) == 3
    (note,) = [note for note in data.notes if note.startswith("classes ")]
    assert repr(one) in note
    assert repr(other) in note


@pytest.mark.parametrize("read", [csv, parquet])
@pytest.mark.parametrize("word", ["None", "null", "NA", "N/A", "?", "none", "Null"])
def test_a_class_that_may_mean_missing_is_named(read: Any, word: str) -> None:
    data = read(rows(lambda i, t: f"p{i},{t},{i + t},{(word, 'u', 'v')[i % 3]}"))
    assert word in data.classes
    assert any(note.startswith(f"class {word!r} of 4 sequences is read as a class; ") for note in data.notes)


@pytest.mark.parametrize("read", [csv, parquet])
@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "NaT", " nan "])
def test_what_pandas_writes_for_missing_is_no_class_and_no_id(read: Any, word: str) -> None:
    with pytest.raises(AnyRNNError, match=r"id 'p0': target 'y' is missing here, and in 3 more sequences"):
        read(rows(lambda i, t: f"p{i},{t},{i + t},{(word, 'u', 'v')[i % 3]}"))
    with pytest.raises(AnyRNNError, match=r"data row 7: the id 'id' is missing \(" + repr(word)):
        read(rows(lambda i, t: f"{word if i == 3 else i},{t},{i + t},{'uv'[i % 2]}"))


def test_an_id_that_may_mean_missing_is_named_and_nan_is_none() -> None:
    data = csv(rows(lambda i, t: f"{'None' if i == 3 else i},{t},{i + t},{'uv'[i % 2]}"))
    assert any(note.startswith("id 'None' of 2 rows is read as the name of a sequence; ") for note in data.notes)
    frame = pl.DataFrame(
        {"id": [1.0, 1.0, np.nan, 2.0], "t": [0, 1, 0, 0], "a": [1, 2, 3, 4], "y": ["u", "u", "v", "v"]}
    )
    frame.write_parquet("x.parquet")
    with pytest.raises(AnyRNNError, match=r"data row 3: the id 'id' is missing \('NaN'\)"):
        load("x.parquet", **ROLES)


@pytest.mark.parametrize("read", [csv, parquet])
def test_decimal_commas_are_numbers_where_that_is_certain(read: Any) -> None:
    data = read(rows(lambda i, t: f'p{i},{t},{i + t},"{i % 3},5"'))
    assert data.task == "regression"
    assert set(data.train.y.tolist()) <= {0.5, 1.5, 2.5}
    assert any("is written with decimal commas: read as numbers" in note for note in data.notes)
    with pytest.raises(AnyRNNError, match=r"is '1,500', whose comma may set off the thousands or the decimals"):
        read(rows(lambda i, t: f'p{i},{t},{i + t},"{i % 3 + 1},500"'))
    assert csv(rows(lambda i, t: f'p{i},{t},{i + t},"{i % 3},5"'), task="classification").classes == (
        "0,5",
        "1,5",
        "2,5",
    )
    assert csv(rows(lambda i, t: f'p{i},{t},{i + t},"{"x," * (i % 3)}5"')).classes == ("5", "x,5", "x,x,5")
    data = read(rows(lambda i, t: f'p{i},{t},"{i},5",{"uv"[i % 2]}'))
    assert "feature 'a' is written with decimal commas: read as numbers" in data.notes
    assert {x[0, 0].item() % 1 for x in data.train.x} == {0.5}
    with pytest.raises(AnyRNNError, match="feature 'a' is '1,500', expected a number; write a decimal point"):
        read(rows(lambda i, t: f'p{i},{t},"{i + 1},500",{"uv"[i % 2]}'))


def test_a_test_file_may_have_decimal_commas_as_well() -> None:
    Path("new.csv").write_text(HEADER + 'q,0,1,"3,25"\n')
    assert csv(rows(lambda i, t: f'p{i},{t},{i + t},"{i},5"'), test="new.csv").test.y.tolist() == [3.25]


def test_blanks_and_signs_make_no_text_of_numbers() -> None:
    text = rows(lambda i, t: f"p{i},{t},{i + t},+{i}.5").replace(",", ", ")
    data = csv(text)
    assert (data.task, data.features) == ("regression", ("a",))
    digits = "1" * 45  # more than a whole number of 128 bits holds
    data = csv(rows(lambda i, t: f"p{i},{t},{digits if i % 2 else i},{'uv'[i % 2]}"))
    assert {x[0, 0].item() for x in data.train.x} >= {float(digits)}


def test_whole_numbers_written_as_decimals_are_named() -> None:
    notes = csv(rows(lambda i, t: f"p{i},{t},{i + t},{float(i % 2)}")).notes
    assert any("2 distinct whole numbers, written as decimals such as 0.0: read as a number; task=" in n for n in notes)


# Copies


def test_copies_in_both_parts_are_counted() -> None:
    notes = csv(rows(lambda i, t: f"p{i},{t},{t},{'uv'[i % 2]}")).notes
    assert any(n.startswith("4 of 4 test sequences have the very values of a training sequence, 'p") for n in notes)
    assert not any("very values" in n for n in csv(PLAIN).notes)
    lines = ["@classLabel true a b", "@data"]
    Path("x_TRAIN.ts").write_text("\n".join([*lines, "1,2:a", "3,4:b", "5,6:b"]))
    Path("x_TEST.ts").write_text("\n".join([*lines, "1,2:b", "3,5:a"]))
    (note,) = load("x_TRAIN.ts").notes
    assert note.startswith("1 of 2 test sequences have the very values of a training sequence, 'x_TEST #1' those of ")


def test_ids_that_are_in_both_files_are_counted() -> None:
    Path("new.csv").write_text(HEADER + "P3,0,100,u\np4,0,200,u\nq,0,300,v\n")
    notes = csv(PLAIN, test="new.csv").notes
    assert any(
        n.startswith("id 'P3' of the test file is in the training file, too (as 'p3') (and 1 more such id)")
        for n in notes
    )


def test_a_table_of_one_row_a_sequence_is_named() -> None:
    assert any(
        n.startswith("every sequence has 1 step; if each row")
        for n in csv(rows(lambda i, t: PLAIN.split()[1 + 2 * i], steps=1)).notes
    )
    assert csv(PLAIN).notes == ()


# Files that are something else


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.csv", content)
    return file.getvalue()


BYTES = PLAIN.encode()
WRONG = {
    "late latin-1": (BYTES * 1 + b"q,0,1,\xe9\n", "x.csv: line 26: this is not text in UTF-8: b'q,0,1,\\xe9'; name"),
    "very late latin-1": (
        BYTES + b"\n" * 2_000_000 + b"q,0,1,\xe9\n",
        "x.csv: line 2000026: this is not text in UTF-8",
    ),
    "half a letter": (BYTES + b"q,0,1,\xc3", "x.csv: line 26: this is not text in UTF-8: b'q,0,1,\\xc3'; name"),
    "a zero byte": (BYTES + b"q,0,\0,u", "x.csv: line 26: this is not text in UTF-8: b'q,0,\\x00,u'; save"),
    "a field too many": (
        BYTES + b"q,0,1,u,2\n",
        "x.csv: data row 25 (line 26) has 5 fields, expected 4 as in the header;",
    ),
    "an unquoted comma": (BYTES + b"q,0,1,u, v\n", "x.csv: data row 25 (line 26) has 5 fields, expected 4 as in the"),
    "an open quote": (BYTES + b'q,0,"1,u\n', "x.csv: line 26: a quotation mark is not closed, or followed by text"),
    "a lone quote": (BYTES + b'q,0,1"2,u\n', "x.csv: line 26: a quotation mark has no partner there;"),
    "CR alone": (BYTES.replace(b"\n", b"\r"), "x.csv: its lines end in a carriage return (CR) alone, as on old"),
    "no header": (
        BYTES[9:],
        "x.csv: column 'id' is not there; the columns are p0, 0, 0.0, u. The first line looks like",
    ),
    "no header, numbers twice": (
        b"0,0,1,u\n0,1,2,u\n",
        "x.csv: the header names column '0' twice; give each column its own",
    ),
    "sep=": (
        b"sep=,\n" + BYTES,
        "x.csv: column 'id' is not there; the columns are sep=, . The first line is 'sep=', which",
    ),
    "comment": (
        b"# by me\n" + BYTES,
        "x.csv: column 'id' is not there; the columns are # by me. The first line starts",
    ),
    "gzip": (gzip.compress(BYTES), "x.csv: this is compressed (gzip), expected CSV: unpack it first"),
    "bzip2": (bz2.compress(BYTES), "x.csv: this is compressed (bzip2), expected CSV: unpack it first"),
    "zip": (
        zipped(BYTES),
        "x.csv: this is a zip archive, as an Excel workbook is one, expected CSV: unpack it, or save",
    ),
    "UTF-16": (PLAIN.encode("utf-16"), "x.csv: this is text in UTF-16, expected CSV: say so"),
    "NumPy": (b"\x93NUMPY\1\0", "x.csv: this is a NumPy array, expected CSV: write a table with a row for each step"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_named_with_its_line(folder: Path, case: str) -> None:
    content, expected = WRONG[case]
    (folder / "x.csv").write_bytes(content)
    with pytest.raises(AnyRNNError) as caught:
        load("x.csv", **ROLES)
    assert str(caught.value).startswith(expected)


def test_a_file_of_another_format_is_named_in_parquet_and_ts(folder: Path) -> None:
    for name in ("x.parquet", "x.ts"):
        (folder / name).write_bytes(gzip.compress(BYTES))
        with pytest.raises(AnyRNNError, match=r"this is compressed \(gzip\), expected .*: unpack it first"):
            load(name, **(ROLES if name == "x.parquet" else {}))
    pl.read_csv(io.BytesIO(BYTES)).write_parquet(folder / "x.parquet")
    whole = (folder / "x.parquet").read_bytes()
    for part in (whole[:-1], whole[:-9], whole[: len(whole) // 2], whole[:5]):
        (folder / "x.parquet").write_bytes(part)
        with pytest.raises(
            AnyRNNError, match="it does not begin and end as Parquet does; check that the file is complete"
        ):
            load("x.parquet", **ROLES)


def test_names_of_columns_with_a_comma_can_be_said(folder: Path) -> None:
    (folder / "x.csv").write_text(PLAIN.replace("id,t,a,y", 'id,t,"flow, m3/s",y'))
    with pytest.raises(AnyRNNError, match=r"put in quotes: --features '\"flow, m3/s\"'\.$"):
        load("x.csv", **ROLES, feature_columns=["flow", "m3/s"])
    common = ["x.csv", "--id", "id", "--time", "t", "--target", "y", "--epochs", "1", "--hidden", "2", "--cell", "rnn"]
    for features in ('"flow, m3/s"', ' "flow, m3/s" '):
        result = CliRunner().invoke(app, ["fit", *common, "--features", features])
        assert result.exit_code == 0, result.output


def test_missing_values_can_be_said_on_the_command_line(folder: Path) -> None:
    (folder / "x.csv").write_text(PLAIN.replace("p3,1,3.25", "p3,1,-9999").replace("p4,1,4.25", "p4,1,NA"))
    common = ["x.csv", "--id", "id", "--time", "t", "--target", "y", "--epochs", "1", "--hidden", "2", "--cell", "rnn"]
    result = CliRunner().invoke(app, ["fit", *common, "--missing", "-9999,NA", "--out", "run"])
    assert result.exit_code == 0, result.output
    assert "2 of 24 cells are missing ('a' 2)" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["predict", "run", "x.csv", "--id", "id", "--time", "t"])
    assert result.exit_code == 0, result.output


def test_the_home_folder_may_be_written_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "x.csv").write_text(PLAIN)
    (folder / "new.csv").write_text(HEADER + "q,0,1,u\n")
    assert load("~/x.csv", **ROLES).name == "x"
    assert load("~/x.csv", test="~/new.csv", **ROLES).test.ids == ("q",)
    assert load(Path("~/x.csv"), **ROLES).name == "x"


@pytest.mark.parametrize("source", [np.zeros((3, 2)), pl.Series([1]), None, 3, [1.0]])
def test_what_is_no_path_is_refused_with_what_to_do(source: Any) -> None:
    for options in ({"source": source}, {"source": "japanese-vowels", "test": source}):
        if options["source"] is source or source is not None:
            with pytest.raises(AnyRNNError, match=f"got (a polars )?{type(source).__name__}, expected .* data frame"):
                load(**options)


def test_the_names_of_features_are_a_list() -> None:
    with pytest.raises(AnyRNNError, match="load: got feature_columns='ab', expected a list of names"):
        csv(PLAIN, feature_columns="ab")


# The .ts files of other loaders


@pytest.mark.parametrize(
    ("header", "labels", "classes"),
    [
        ("%# a cut down version\n% of a problem\n%\n@classLabel true a b\n", "abba", "ab"),
        ("@classLabel true A b\n", "abBA", "Ab"),
        ("@classLabel true a,b\n", "abba", "ab"),
        ("@classLabel true a,b c\n", "abca", "abc"),
        ("@equalLength false\n@seriesLength 0\n@classLabel true a b\n", "abba", "ab"),
        ("@seriesLength 0\n@equalLength true\n@classLabel true a b\n", "abba", "ab"),
        ("@problemName caf\xe9\n@classLabel true a b\n", "abba", "ab"),
        ("@classLabel true 0 1\n", ["0.0", "1.0", "1", "0"], "01"),
        ("@classLabel true 0.0 1.0\n", "0110", ["0.0", "1.0"]),
        ("@classLabel true A a\n", "aAaA", "Aa"),
    ],
)
def test_ts_files_that_other_loaders_read_are_read(header: str, labels: Any, classes: Any) -> None:
    lines = "".join(f"{i},{i + 1}:{label}\n" for i, label in enumerate(labels))
    Path("x.ts").write_bytes(header.encode("latin-1") + b"@data\n" + lines.encode())
    Path("new.ts").write_text("@classLabel true " + " ".join(classes) + f"\n@data\n9,9:{classes[0]}\n")
    data = load("x.ts", test="new.ts")
    assert data.classes == tuple(classes)
    assert len(data.train) == 4


def test_a_label_that_may_be_two_classes_is_refused() -> None:
    Path("x.ts").write_text("@classLabel true Ab aB\n@data\n1:Ab\n2:aB\n3:ab\n")
    with pytest.raises(AnyRNNError, match=r"x.ts:5: got class 'ab', expected one of those"):
        load("x.ts")


# Sequences to predict for


def test_cells_unlike_those_of_the_training_are_said_when_predicting() -> None:
    scaler = Scaler((80.0, 0.0), (2.0, 1.0), missing=("-9999",))
    x = (torch.tensor([[80.0, 0.0], [math.nan, 1.0]]), torch.tensor([[100.0, 0.0], [100.125, -1.0], [1e6, 9.9]]))
    assert list(notes_on_unseen(Inputs(x, None, ("p", "q")), ("a", "b"), scaler)) == [
        "1 of 10 cells are missing: a network gets the last value of the sequence before them, or the training mean "
        "where there is none",
        "feature 'a': 2 of 5 cells lie more than 10 standard deviations from the mean of the training part, 80; the "
        "first is 100.125, step 2 of 'q': the network has seen nothing like it",
    ]
    linear = replace(scaler, linear_to=math.inf)  # of an earlier version
    assert len(list(notes_on_unseen(Inputs(x, None, ("p", "q")), ("a", "b"), linear))) == 1


@pytest.mark.parametrize(
    ("targets", "truth"),
    [
        (("1,5", "-2,25", "3"), [1.5, -2.25, 3.0]),
        (("1,5", "1,500", "low"), [1.5, 1.5]),  # one comma that can only be that of decimals decides for all
        (("1,500", "2,000", "7"), [7.0]),  # 1.5 or 1500: nobody knows
        (("1_000", "2", "3"), [2.0, 3.0]),
    ],
)
def test_decimal_commas_of_the_truth_are_read_as_in_training(
    folder: Path, targets: tuple[str, ...], truth: list[float]
) -> None:
    rows = [f'{id_},{t},1,2,"{y}"' for id_, y in zip("pqr", targets, strict=True) for t in range(2)]
    (folder / "x.csv").write_text("\n".join(["id,t,a,b,y", *rows, ""]))
    options = {"id_column": "id", "time_column": "t", "target_column": "y"}
    found = load_for_prediction("x.csv", features=("a", "b"), classes=None, **options)
    assert found.truth is not None
    assert found.truth.tolist() == truth
    said = [note for note in found.notes if "decimal commas" in note or "not scored" in note]
    assert len(said) == ("1,5" in targets) + (len(truth) < 3)
