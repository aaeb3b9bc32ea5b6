"""Bad input gives one message each: where, what was got, what was expected, and the cure. The tables pin the text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.data import load, load_for_prediction

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
FORMATS = "expected a .ts, .csv, .tsv or .parquet file, or 'japanese-vowels'"
OTHER = "name its encoding (encoding, --encoding), such as latin-1 or cp1252, or save the table as CSV in UTF-8"
LEAVE_OUT = "name the features without it (feature_columns, --features)"

ROLES = {"id_column": "id", "time_column": "t", "target_column": "y"}
TABLE = "id,t,a,b,y\np,0,1,2,u\np,1,1,2,u\nq,0,3,4,v\nq,1,3,4,v\nr,0,1,1,u\ns,0,1,1,v\n"
COLUMNS = "the columns are id, t, a, b, y"

TS = "@univariate false\n@dimensions 2\n@classLabel true a b\n@data\n1,2:3,4:a\n1,2:3,4:b\n"  # the next line is 7
ONE = "@classLabel true a b\n@data\n"  # one channel; the next line is 3
STAMPED = "@timestamps TRUE\n" + ONE  # the next line is 4


def message(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(AnyRNNError) as caught:
        call(*args, **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Messages hold the path as it was given; here it is a bare name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = {
    "missing": ("trian.csv", None, f"there is no such file; {FORMATS}. Did you mean 'train.csv'?"),
    "missing, and its folder too": ("no/x.ts", None, f"there is no such file; {FORMATS}."),
    "a name close to ours": (
        "japanese_vowels",
        None,
        f"there is no such file; {FORMATS}. Did you mean 'japanese-vowels'?",
    ),
    "a folder": ("data", None, f"this is a folder; {FORMATS}."),
    "an archive's folder": ("archive", None, f"this is a folder; {FORMATS}. Did you mean 'archive/X_TRAIN.ts'?"),
    "empty .csv": ("x.csv", b"", f"the file is empty; {FORMATS}"),
    "empty .ts": ("x.ts", b"", f"the file is empty; {FORMATS}"),
    "empty .parquet": ("x.parquet", b"", f"the file is empty; {FORMATS}"),
    "another suffix": ("x.xlsx", b"PK", f"its name ends in '.xlsx'; {FORMATS}"),
    "no suffix": ("x", b"1", f"its name ends in 'x'; {FORMATS}"),
    "a picture as .csv": (
        "x.csv",
        PNG,
        f"line 1: this is not text in UTF-8: b'\\x89PNG'; {OTHER}",
    ),
    "latin-1 as .csv": (
        "x.csv",
        "id,t,a,y\np,0,1,é\n".encode("latin-1"),
        f"line 2: this is not text in UTF-8: b'p,0,1,\\xe9'; {OTHER}",
    ),
    "Parquet as .csv": (
        "x.csv",
        b"PAR1\x15\x04\x15\0PAR1",
        "this is Parquet, expected CSV: rename it to .parquet",
    ),
    "a picture as .parquet": (
        "x.parquet",
        PNG,
        "this cannot be read as Parquet: ",  # polars says the rest
    ),
    "a picture as .ts": (
        "x.ts",
        PNG,
        ":1: this is not text in UTF-8: b'\\x89PNG'; expected a .ts file of the UCR/UEA archives",
    ),
    "TypeScript": (
        "x.ts",
        b"export const a = 1;\n",
        ":1: got 'export const a = 1;', expected a header line such as '@classLabel true a b'; "
        "a .ts file starts with @ lines, the last of which is @data",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_what_we_read(folder: Path, case: str) -> None:
    name, content, expected = FILES[case]
    (folder / "train.csv").write_text(TABLE)
    (folder / "data").mkdir()
    (folder / "archive").mkdir()
    (folder / "archive" / "X_TRAIN.ts").write_text(TS)
    if content is not None:
        (folder / name).write_bytes(content)
    roles = ROLES if name.endswith((".csv", ".parquet")) else {}
    separator = "" if expected.startswith(":") else ": "
    assert message(load, name, **roles).startswith(f"{name}{separator}{expected}")


# Lines that follow TS or ONE, or a whole file; the message without the file's name.
TS_FILES = {
    "no @data": ("@classLabel true a\n", ": there is no @data line, so this is not a .ts file of the UCR/UEA archives"),
    "nothing after @data": (ONE, ": there is nothing after @data, expected one sequence a line"),
    "neither class nor number": (
        "@data\n1\n2\n",
        ": the header says neither '@classLabel true a b c' nor '@targetlabel true', so there is nothing to learn",
    ),
    "class and number": ("@targetlabel true\n" + ONE, ":1: @targetlabel true: the header says '@classLabel true' as"),
    "a flag that is none": ("@equalLength yes\n" + ONE, ":1: @equalLength: got yes, expected true or false"),
    "a flag without value": ("@timeStamps\n" + ONE, ":1: @timeStamps: got nothing, expected true or false"),
    "dimensions in words": ("@dimensions two\n" + ONE, ":1: @dimensions: got two, expected a whole number from 1"),
    "no dimensions": ("@dimensions 0\n" + ONE, ":1: @dimensions: got 0, expected a whole number from 1"),
    "univariate of 3 dimensions": (
        "@univariate true\n@dimensions 3\n" + ONE,
        ":1: @univariate true: the header says 3 dimensions as well; correct one of the two",
    ),
    "time stamps not announced": (
        ONE + "(0,1.5),(1,2.5):a\n",
        ":3: got '(0,1.5),(1,2.5):a', but the header does not say that steps have time stamps; write",
    ),
    "values without their time stamps": (
        STAMPED + "1.5,2.5:a\n",
        ":4: channel 1: got '1.5,2.5', expected steps such as (2026-01-31 13:45:00,1.5), with commas between them",
    ),
    "a time twice": (STAMPED + "(0,1),(0,2):a\n", ":4: channel 1 has two values at '0'; keep one of them"),
    "a time twice, in two ways": (
        STAMPED + "(2026-01-01,1),(01.01.2026,2):a\n",
        ":4: channel 1 has two values at one time; keep one of them",
    ),
    "channels of different times": (
        STAMPED + "(0,1),(1,2):(0,1),(2,2):a\n",
        ":4: the channels have different time stamps; missing='nan' (--missing nan) takes all of them, with gaps where",
    ),
    "a time that is none": (
        STAMPED + "(noon,1):a\n",
        ":4: time stamp 'noon': the time is 'noon', expected a number, a date and time in ISO 8601",
    ),
    "nothing but padding": (ONE + "?,NaN:a\n", ":3: the value of channel 1 at step 1 is missing ('?'); fill it in"),
    "a channel missing": (
        TS + "1,2:a\n",
        ":7: got 2 parts separated by ':', expected 3: 2 channels and the value to predict",
    ),
    "fewer channels than announced": (
        "@dimensions 2\n" + ONE + "1:a\n",
        ":4: got 2 parts separated by ':', expected 3: 2 channels and the value to predict",
    ),
    "the class missing": (
        TS + "1,2:3,4\n",
        ":7: got 2 parts separated by ':', expected 3: 2 channels and the value to predict",
    ),
    "a channel too many": (
        "@targetlabel true\n@data\n1:2:3\n\n# remark\n1:2:3:4\n",
        ":6: got 4 parts separated by ':', expected 3: 2 channels and the value to predict",
    ),
    "channels of unequal length": (
        TS + "1,2:3,4,5:a\n",
        ":7: channel 2 has 3 steps, expected 2 as in channel 1; resample the channels to a common rate first",
    ),
    "not of the announced length": (
        "@equalLength true\n@seriesLength 3\n" + ONE + "1,2:a\n",
        ":5: got 2 steps, expected 3 as the header says @equalLength true; "
        "complete the line or write '@equalLength false'",
    ),
    "not of equal length": (
        "@equalLength true\n" + ONE + "1,2:a\n1:b\n",
        ":5: got 1 steps, expected 2 as the header says @equalLength true; "
        "complete the line or write '@equalLength false'",
    ),
    "a question mark": (
        TS + "1,2:?,4:a\n",
        ":7: the value of channel 2 at step 1 is missing ('?'); fill it in, or leave the sequence out",
    ),
    "NaN": (
        TS + "1,nan:3,4:a\n",
        ":7: the value of channel 1 at step 2 is missing ('nan'); fill it in, or leave the sequence out",
    ),
    "a comma too many": (
        TS + "1,2,:3,4:a\n",
        ":7: the value of channel 1 at step 3 is missing (''); fill it in, or leave the sequence out",
    ),
    "an empty channel": (
        TS + "1,2::a\n",
        ":7: the value of channel 2 at step 1 is missing (''); fill it in, or leave the sequence out",
    ),
    "text": (TS + "1,2:3,x:a\n", ":7: the value of channel 2 at step 2 is 'x', expected a finite number"),
    "infinity": (TS + "1,2:3,inf:a\n", ":7: the value of channel 2 at step 2 is 'inf', expected a finite number"),
    "too large for float64": (
        TS + "1,2:3,1e309:a\n",
        ":7: the value of channel 2 at step 2 is '1e309', expected a finite number",
    ),
    "thousands set off": (
        TS + "1,2:3,1_000:a\n",
        ":7: the value of channel 2 at step 2 is '1_000', expected a finite number",
    ),
    "not UTF-8": (TS.encode() + b"1,2:3,4:\xe9\n", ":7: this is not text in UTF-8: b'1,2:3,4:\\xe9'"),
    "an undeclared class": (
        TS + "1,2:3,4:ax\n",
        ":7: got class 'ax', expected one of those that @classLabel names: a, b. Did you mean 'a'?",
    ),
    "a class missing": (
        TS + "1,2:3,4:?\n",
        ":7: target 'class' is missing here; expected one for each sequence: fill it in, or leave the sequence out",
    ),
    "numbers missing": (
        "@targetlabel true\n@data\n1:?\n1:NaN\n1:2\n",
        ":3: target 'target' is missing here, and in 1 more sequences; expected one for each sequence",
    ),
    "text for a number": (
        "@targetlabel true\n@data\n1:x\n",
        ":3: the value to predict is 'x', expected a finite number as the header says @targetlabel true",
    ),
    "one sequence": (
        ONE + "1:a\n",
        ": there is one sequence only, expected at least two, to train on one and test on another",
    ),
    "one class": (
        ONE + "1:a\n2:a\n",
        ": target 'class' is 'a' for every sequence, expected at least two classes to tell apart",
    ),
    "one number": (
        "@targetlabel true\n@data\n1:2.5\n2:2.5\n",
        ": target 'target' is 2.5 for every sequence: there is nothing to predict",
    ),
}


@pytest.mark.parametrize("case", TS_FILES)
def test_a_bad_ts_file_is_named_with_its_line(folder: Path, case: str) -> None:
    content, expected = TS_FILES[case]
    (folder / "x.ts").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message(load, "x.ts").startswith(f"x.ts{expected}")


# A whole CSV file, or rows that follow TABLE; the message without "x.csv: ".
TABLES = {
    "header alone": ("id,t,a,y\n", "there is no row below the header, expected one for each step of each sequence"),
    "commas alone": ("id,t,a,y\n,,,\n", "there is no row below the header, expected one for each step of each"),
    "blank lines alone": ("\n\n", "this cannot be read as CSV: "),
    "semicolons": ("id;t;a;z\n1;2;3;4\n", "column 'y' is not there; the columns are id, t, a, z."),
    "text that begins with digits": (
        "id,t,a,y\np,0,3rd,u\nq,0,2nd,v\n",
        f"data row 1 (id 'p', t 0): feature 'a' is '3rd', expected a number; write a number, or {LEAVE_OUT}",
    ),
    "a currency": (
        "id,t,a,y\np,0,$3.5,u\nq,0,2nd,v\n",
        f"data row 1 (id 'p', t 0): feature 'a' is '$3.5', expected a number; write a number, or {LEAVE_OUT}",
    ),
    "a loss in brackets": (
        "id,t,a,y\np,0,(3),u\nq,0,2nd,v\n",
        f"data row 1 (id 'p', t 0): feature 'a' is '(3)', expected a number; write a number, or {LEAVE_OUT}",
    ),
    "a true minus sign": (
        "id,t,a,y\np,0,−3,u\nq,0,2nd,v\n",
        f"data row 1 (id 'p', t 0): feature 'a' is '−3', expected a number; write a number, or {LEAVE_OUT}",
    ),
    "dates as a feature": (
        "id,t,a,y\np,0,2026-01-31,u\nq,0,2026-01-31,v\n",
        "data row 1 (id 'p', t 0): feature 'a' is '2026-01-31', expected a number",
    ),
    "a word is missing": (
        "id,t,a,y\np,0,low,u\nq,0,,v\n",
        f"data row 2 (id 'q', t 0): feature 'a' is missing; fill it in, drop the row, or {LEAVE_OUT}; missing='nan'",
    ),
    "sentences": (
        "id,t,a,y\n" + "".join(f"{k},0,text {k},u\n" for k in range(60)),
        "feature 'a' holds 60 different texts, such as 'text 0' and 'text 1'; expected numbers, or at most 50 words",
    ),
    "a word that makes the name of another column": (
        "id,t,a,a=low,y\np,0,low,1,u\nq,0,high,1,v\n",
        "two features would have one name, of 'a=high', 'a=low', 'a=low'; rename a column such as 'delta time'",
    ),
    "times of day, and a date": (
        "id,t,a,y\np,10:00,1,u\np,2026-01-31 10:00,2,u\n",
        "data row 2 (id 'p', t 2026-01-31 10:00): some times have a date and some have none; write all of them one way",
    ),
    "no such day": (
        "id,t,a,y\np,30.02.2026,1,u\n",
        "data row 1 (id 'p', t 30.02.2026): the time is '30.02.2026', expected a number, a date and time in ISO 8601",
    ),
    "more fields than the header": (
        "id,t,a,y\n1,2,3,4\n\n1,2,3,4,5\n",
        "data row 3 (line 4) has 5 fields, expected 4 as in the header; quote a field that has a comma in it",
    ),
    "two columns of one name": (
        "id,t,a,a,y\n1,2,3,4,5\n",
        "the header names column 'a' twice; give each column its own name",
    ),
    "a separator at the end of the lines": (
        "id,t,a,y,\n1,2,3,4,\n",
        "the header ends in a separator, and so in a column",
    ),
    "pandas' row numbers": (",id,t,a,y\n0,1,2,3,4\n", "column '' looks like the row numbers that pandas writes"),
    "id missing": (TABLE + ",1,1,1,v\n", "data row 7: the id 'id' is missing; every row needs the id of its sequence"),
    "time missing": (TABLE + "s,,1,1,v\n", "data row 7 (id 's'): the time is missing; every row needs one"),
    "time NaN": (
        "id,t,a,y\np,1,1,u\np,nan,1,u\nq,1,2,v\n",
        "data row 2 (id 'p', t nan): the time is missing; every row needs one",
    ),
    "a time twice": (
        TABLE + "p,1,1,1,u\n",
        "data row 7 (id 'p', t 1): this id has the same time in data row 2; keep one row for each id and time",
    ),
    "a moment twice, in two time zones": (
        "id,t,a,y\np,2026-01-31T12:00+05:00,1,u\np,2026-01-31T07:00Z,1,u\n",
        "data row 2 (id 'p', t 2026-01-31T07:00Z): this id has the same time in data row 1",
    ),
    "a time among numbers": (
        TABLE + "s,1 h,1,1,v\n",
        "data row 7 (id 's', t 1 h): the time is '1 h', expected a number as in other rows",
    ),
    "a date of no country": (
        "id,t,a,y\np,2026-01-31,1,u\np,01/02/2026,2,u\n",
        "data row 2 (id 'p', t 01/02/2026): the time is '01/02/2026', expected a number, a date and time in "
        "ISO 8601 such as 2026-01-31 13:45:00 or with dots such as 31.01.2026 13:45, or a time of day such as 13:45",
    ),
    "times with and without zone": (
        "id,t,a,y\np,2026-01-01,1,u\np,2026-01-02T00:00Z,1,u\n",
        "data row 2 (id 'p', t 2026-01-02T00:00Z): some times have a time zone and some have none",
    ),
    "true and false as times": (
        "id,t,a,y\np,true,1,u\np,false,1,u\n",
        "time column 't' holds Boolean, expected numbers, dates or times",
    ),
    "text": (
        TABLE + "s,2,1,1,v\ns,1,x,1,v\n",
        f"data row 8 (id 's', t 1): feature 'a' is 'x', expected a number; write a number, or {LEAVE_OUT}",
    ),
    "NA": (
        TABLE + "s,1,NA,1,v\n",
        f"data row 7 (id 's', t 1): feature 'a' is missing (NA); fill it in, drop the row, or {LEAVE_OUT}",
    ),
    "NaN": (
        "id,t,a,y\np,0,1.5,u\n\nq,0,nan,v\n",
        f"data row 3 (id 'q', t 0): feature 'a' is missing (nan); fill it in, drop the row, or {LEAVE_OUT}",
    ),
    "nothing": (
        TABLE + "s,1,,1,v\n",
        f"data row 7 (id 's', t 1): feature 'a' is missing; fill it in, drop the row, or {LEAVE_OUT}",
    ),
    "a row cut short": (TABLE + "s,1\n", "data row 7 (id 's', t 1): feature 'a' is missing; fill it in"),
    "infinity": (TABLE + "s,1,-inf,1.5,v\n", "data row 7 (id 's', t 1): feature 'a' is -inf, expected a finite number"),
    "too large for float64": (
        TABLE + "s,1,1e309,1.5,v\n",
        "data row 7 (id 's', t 1): feature 'a' is inf, expected a finite number",
    ),
    "target differs within an id": (
        TABLE + "s,1,1,1,u\n",
        "data row 7 (id 's', t 1): target 'y' is 'u', but 'v' in the first row of this id; "
        "a sequence has one target, repeated on each of its rows",
    ),
    "target missing in some rows of an id": (
        TABLE + "s,1,1,1,\n",
        "data row 7 (id 's', t 1): target 'y' is missing, but 'v' in the first row of this id",
    ),
    "target missing for some ids": (
        TABLE + "w,1,1,1,\nz,0,1,1,\n",
        "id 'w': target 'y' is missing here, and in 1 more sequences; expected one for each sequence",
    ),
    "target NA among numbers": ("id,t,a,y\np,0,1,2.5\nq,0,1,NA\nr,0,1,3\n", "id 'q': target 'y' is missing here;"),
    "target NA alone": ("id,t,a,y\np,0,1,NA\nq,0,1,NA\n", "id 'p': target 'y' is missing here, and in 1 more"),
    "target NaN": ("id,t,a,y\np,0,1,2.5\nq,0,1,nan\nr,0,1,3\n", "id 'q': target 'y' is missing here;"),
    "target infinite": (
        "id,t,a,y\np,0,1,2.5\nq,0,1,inf\nr,0,1,3\n",
        "id 'q': target 'y' is inf, expected a finite number",
    ),
    "one sequence": (
        "id,t,a,y\np,0,1,u\np,1,1,u\n",
        "there is one sequence only, expected at least two, to train on one and test on another; "
        "does column 'id' say to which sequence a row belongs?",
    ),
    "one class": (
        "id,t,a,y\np,0,1,u\nq,0,1,u\n",
        "target 'y' is 'u' for every sequence, expected at least two classes to tell apart",
    ),
    "one number": (
        "id,t,a,y\np,0,1,0.5\nq,0,1,0.5\n",
        "target 'y' is 0.5 for every sequence: there is nothing to predict",
    ),
    "a class for each": (
        "id,t,a,y\np,0,1,u\nq,0,1,v\nr,0,1,w\n",
        "target 'y' is different for each of the 3 sequences, expected classes that some sequences share",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table_is_named_with_its_row_or_id(folder: Path, case: str) -> None:
    content, expected = TABLES[case]
    (folder / "x.csv").write_text(content)
    assert message(load, "x.csv", **ROLES).startswith(f"x.csv: {expected}")


OPTIONS = {
    "no columns named": (
        {},
        "say which column names the sequence of a row (id_column, --id) and which column is to be predicted "
        f"(target_column, --target); {COLUMNS}",
    ),
    "no id": (
        {"target_column": "y"},
        f"say which column names the sequence of a row (id_column, --id); {COLUMNS}",
    ),
    "no target": ({"id_column": "id"}, f"say which column is to be predicted (target_column, --target); {COLUMNS}"),
    "unknown id": ({**ROLES, "id_column": "ID"}, f"column 'ID' is not there; {COLUMNS}. Did you mean 'id'?"),
    "unknown time": ({**ROLES, "time_column": "when"}, f"column 'when' is not there; {COLUMNS}."),
    "unknown target": ({**ROLES, "target_column": "yy"}, f"column 'yy' is not there; {COLUMNS}. Did you mean 'y'?"),
    "unknown feature": (
        {**ROLES, "feature_columns": ["a", "bb"]},
        f"column 'bb' is not there; {COLUMNS}. Did you mean 'b'?",
    ),
    "no feature": (
        {**ROLES, "feature_columns": []},
        "there is no feature beside id, t, y; expected at least one column",
    ),
    "a feature twice": (
        {**ROLES, "feature_columns": ["a", "a"]},
        "feature 'a' is named twice; name each feature once",
    ),
    "the target as feature": (
        {**ROLES, "feature_columns": ["a", "y"]},
        "column 'y' is what is to be predicted; it cannot be a feature as well",
    ),
    "the id as feature": (
        {**ROLES, "feature_columns": ["id"]},
        "column 'id' names the sequence; it cannot be a feature as well",
    ),
    "one column for two": (
        {**ROLES, "time_column": "id"},
        "id, time and target must be different columns, got id, id, y",
    ),
    "text forced to be a number": (
        {**ROLES, "task": "regression"},
        "id 'p': target 'y' is 'u', expected a finite number; "
        "correct it, or read the target as classes: task='classification' (--task classification)",
    ),
    "a class in test that training lacks": (
        {**ROLES, "test": "new.csv"},
        "new.csv: id 'z': class 'w' is not among the classes of x.csv: u, v; no network can predict a class that it "
        "was not trained on: leave the sequence out, or add some of its class to the training part",
    ),
    "the training file as test file": (
        {**ROLES, "test": "x.csv"},
        "id 'p': this sequence is in the training file too, with the same id and the same values; "
        "expected a test part that training does not see: take it out of one of the files",
    ),
    "a test file without a feature": (
        {**ROLES, "test": "narrow.csv"},
        "narrow.csv: column 'b', a feature of x.csv, is not there; the columns are id, t, B, a, y. Did you mean 'B'?",
    ),
    "a test file of another format": (
        {**ROLES, "test": "y.ts"},
        "y.ts: expected a test file of the same format as x.csv",
    ),
    "no test file": (
        {**ROLES, "test": "gone.csv"},
        f"gone.csv: there is no such file; {FORMATS}. Did you mean 'new.csv'?",
    ),
    "an unknown task": (
        {**ROLES, "task": "regresion"},
        "load: got task='regresion', expected 'classification', 'regression' or None",
    ),
    "everything for the test": (
        {**ROLES, "test_fraction": 1.0},
        "load: got test_fraction=1.0, expected a share between 0 and 1, such as 0.3",
    ),
    "a negative seed": ({**ROLES, "seed": -1}, "load: got seed=-1, expected a whole number from 0 to 2**32 - 1"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_does_not_fit_the_table(folder: Path, case: str) -> None:
    options, expected = OPTIONS[case]
    (folder / "x.csv").write_text(TABLE)
    (folder / "new.csv").write_text("id,t,a,b,y\nz,0,1,2,w\n")
    (folder / "narrow.csv").write_text("id,t,B,a,y\nz,0,1,2,u\n")
    (folder / "y.ts").write_text(TS)
    named = expected.startswith(("new.csv", "narrow.csv", "y.ts", "gone.csv", "load"))
    assert message(load, "x.csv", **options) == (expected if named else f"x.csv: {expected}")


@pytest.mark.parametrize("source", ["japanese-vowels", "x.ts"])
def test_columns_cannot_be_named_where_there_are_none(folder: Path, source: str) -> None:
    (folder / "x.ts").write_text(TS)
    assert message(load, source, time_column="t") == (
        f"{source}: a .ts file has no columns to name; leave out --id, --time, --target, --features and "
        "--group (id_column and the like), which are for tables"
    )


def test_a_ts_test_file_has_to_fit_its_training_file(folder: Path) -> None:
    (folder / "x_TRAIN.ts").write_text(ONE + "1:a\n2:a\n3:b\n")
    (folder / "x_TEST.ts").write_text("@classLabel true a b c\n@data\n1:a\n1:c\n")
    assert message(load, "x_TRAIN.ts").startswith("x_TEST.ts:4: class 'c' is not among the classes of x_TRAIN.ts: a, b")
    (folder / "x_TEST.ts").write_text(ONE + "1:2:a\n")
    assert message(load, "x_TRAIN.ts") == "x_TEST.ts: got 2 channels, expected 1 as in x_TRAIN.ts"


PREDICTIONS = {
    "a feature is missing": (
        "x.csv",
        {"features": ["a", "c"], "classes": ["u", "v"], **ROLES},
        f"x.csv: column 'c', a feature of the model, is not there; {COLUMNS}.",
    ),
    "no id": (
        "x.csv",
        {"features": ["a", "b"], "classes": ["u", "v"]},
        f"x.csv: say which column names the sequence of a row (id_column, --id); {COLUMNS}",
    ),
    "channels are missing": (
        "x.ts",
        {"features": ["a", "b", "c"], "classes": ["a", "b"]},
        "x.ts: got 2 channels, expected 3, the features of the model: a, b, c",
    ),
    "a feature is no number": (
        "text.csv",
        {"features": ["a", "b"], "classes": ["u", "v"], **ROLES},
        "text.csv: data row 1 (id 'z', t 0): feature 'b' is 'low', expected a number; write a number: the model needs "
        "it",
    ),
    "a value is missing": (
        "gap.csv",
        {"features": ["a", "b"], "classes": ["u", "v"], **ROLES},
        "gap.csv: data row 1 (id 'z', t 0): feature 'b' is missing; fill it in or drop the row: the model needs it",
    ),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_data_that_does_not_fit_the_model(folder: Path, case: str) -> None:
    name, options, expected = PREDICTIONS[case]
    (folder / "x.csv").write_text(TABLE)
    (folder / "text.csv").write_text(TABLE.splitlines()[0] + "\nz,0,1,low,u\n")
    (folder / "gap.csv").write_text(TABLE.splitlines()[0] + "\nz,0,1,,u\n")
    (folder / "x.ts").write_text(TS)
    assert message(load_for_prediction, name, **options) == expected


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("a", [[1.0], [2.0]], "x.parquet: feature 'a' holds List(Float64), expected numbers;"),
        ("y", [[1.0], [2.0]], "x.parquet: target 'y' holds List(Float64), expected classes (text) or numbers"),
        ("id", [[1.0], [2.0]], "x.parquet: id column 'id' holds List(Float64), expected text or numbers"),
        ("a", [None, None], "x.parquet: data row 1 (id '0', t 0): feature 'a' is missing;"),
    ],
)
def test_parquet_columns_of_types_that_are_no_values(
    folder: Path, column: str, values: list[Any], expected: str
) -> None:
    columns = {"id": [0, 1], "t": [0, 1], "a": [1, 2], "y": ["u", "v"], column: values}
    pl.DataFrame(columns).write_parquet(folder / "x.parquet")
    assert message(load, "x.parquet", **ROLES).startswith(expected)
