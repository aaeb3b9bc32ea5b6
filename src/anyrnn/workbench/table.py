"""Long tables (CSV, Parquet) read through polars into `Parsed`: one row is one step of one sequence.

Rows are gathered by the id column, in order of first appearance, and sorted by the time column within an id.
All checks that need rows and columns are here; what the targets mean is decided in `data.py`.
"""

import codecs
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.parsed import Parsed, Value, did_you_mean, listed

_MISSING = ("na", "n/a", "nan", "null", "?", "")  # ways to write "missing" that make text of a column of numbers
_TEXT = (pl.String, pl.Categorical, pl.Enum)
_AS_NUMBERS = (pl.Boolean, pl.Null)  # beside the numeric types
_ROW = "\0row"  # our own column beside the file's: no text file can hold this name
_NAMELESS = {"", "Unnamed: 0", "__index_level_0__"}  # how pandas writes its row numbers


@dataclass(frozen=True)
class Columns:
    """What the caller says about the columns; None: not said. Without features, all columns left over are.

    `usual_time` is that of another file: it is the time if it is there and no time was named.
    """

    id: str | None = None
    time: str | None = None
    target: str | None = None
    features: tuple[str, ...] | None = None
    usual_time: str | None = None


@dataclass(frozen=True)
class _Roles:
    id: str
    time: str | None
    target: str | None
    features: tuple[str, ...]


def read_table(path: Path, columns: Columns, *, need_target: bool = True, owner: str = "") -> Parsed:
    """Read a .csv or .parquet file.

    Args:
        path: The file; its suffix says which format.
        columns: Which column is what.
        need_target: If false, `columns.target` may be None or absent from the file: no targets then.
        owner: Whose features `columns.features` are, for the message that one of them is not there.
    """
    roles = _roles(path, _column_names(path), columns, need_target=need_target, owner=owner)
    table = _Table(path, roles, _frame(path, roles), trained=not need_target)
    rows, lengths = table.order()
    matrix = np.stack([table.feature(name) for name in roles.features], axis=1)[rows]  # (rows, I)
    ends = np.cumsum(lengths)
    first_rows = rows[ends - lengths].tolist()
    ids = tuple(table.ids[row] for row in first_rows)
    targets = table.targets(first_rows) if roles.target else None
    return Parsed(
        path=str(path),
        features=roles.features,
        x=tuple(torch.from_numpy(steps) for steps in np.split(matrix, ends[:-1])),
        ids=ids,
        where=tuple(f"{path}: id {id_!r}" for id_ in ids),
        target=roles.target or "target",
        targets=targets,
        task=None,
        notes=(*(() if roles.time else (_unsorted(columns),)), *table.notes),
    )


def _unsorted(columns: Columns) -> str:
    if columns.usual_time is None:
        return "no time column was named: steps are in the order of the rows"
    return (
        f"column {columns.usual_time!r}, by which the steps were sorted in training, is not there: they are in the "
        "order of the rows; --time names another (time_column)"
    )


def _column_names(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".parquet":
            return pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema().names()
        _check_text(path)
        names = pl.read_csv(path, n_rows=0, glob=False).columns
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from error
    for name in names:  # polars renames the second 'a' to 'a_duplicated_0'
        twin = re.fullmatch(r"(.*)_duplicated_\d+", name)
        if twin and twin[1] in names:
            raise AnyRNNError(f"{path}: the header names column {twin[1]!r} twice; give each column its own name")
    for character, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if len(names) == 1 and character in names[0]:
            raise AnyRNNError(f"{path}: the columns seem to be separated by {word}; expected commas")
    return names


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(1 << 16)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        cure = "rename it to .parquet" if start.startswith(b"PAR1") else "save the table as CSV in UTF-8"
        raise AnyRNNError(f"{path}: this is not text in UTF-8, it starts with {start[:8]!r}; expected CSV: {cure}")


def _unreadable(path: Path, error: pl.exceptions.PolarsError) -> AnyRNNError:
    reason = str(error).strip().split("\n", maxsplit=1)[0]
    if path.suffix.lower() == ".parquet":
        return AnyRNNError(f"{path}: this cannot be read as Parquet: {reason}; check that the file is complete")
    return AnyRNNError(
        f"{path}: this cannot be read as CSV: {reason}; "
        "expected a header, and as many fields in each row as in the header"
    )


def _roles(path: Path, names: list[str], columns: Columns, *, need_target: bool, owner: str) -> _Roles:
    unsaid = []
    if columns.id is None:
        unsaid.append("which column names the sequence of a row (id_column, --id)")
    if columns.target is None and need_target:
        unsaid.append("which column is to be predicted (target_column, --target)")
    if columns.id is None or unsaid:
        raise AnyRNNError(f"{path}: say {' and '.join(unsaid)}; the columns are {listed(names)}")
    target = columns.target if need_target or columns.target in names else None
    usual = columns.usual_time if columns.usual_time in names and columns.usual_time != columns.id else None
    time = columns.time or usual
    for name in (columns.id, time, target, *(columns.features or ())):
        if name is not None and name not in names:
            whose = f", a feature of {owner}," if owner and name in (columns.features or ()) else ""
            if name == columns.id:
                whose = ", the id (id_column, --id),"
            raise AnyRNNError(
                f"{path}: column {name!r}{whose} is not there; the columns are {listed(names)}."
                f"{did_you_mean(name, names)}"
            )
    taken = [name for name in (columns.id, time, target) if name is not None]
    if len(set(taken)) < len(taken):
        raise AnyRNNError(f"{path}: id, time and target must be different columns, got {listed(taken)}")
    features = columns.features
    if features is None:
        features = tuple(name for name in names if name not in taken)
        numbering = next((name for name in features if name in _NAMELESS), None)
        if numbering is not None:
            raise AnyRNNError(
                f"{path}: column {numbering!r} looks like the row numbers that pandas writes, which say where a "
                "sequence stood in the file; write the table with index=False, or name the features "
                "(feature_columns, --features)"
            )
    if not features:
        raise AnyRNNError(f"{path}: there is no feature beside {listed(taken)}; expected at least one column")
    for name in features:
        if features.count(name) > 1:
            raise AnyRNNError(f"{path}: feature {name!r} is named twice; name each feature once")
        if name in {columns.id, target}:
            part = "names the sequence" if name == columns.id else "is what is to be predicted"
            raise AnyRNNError(f"{path}: column {name!r} {part}; it cannot be a feature as well")
    return _Roles(columns.id, time, target, features)


def _frame(path: Path, roles: _Roles) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            frame = pl.read_parquet(path, glob=False, hive_partitioning=False)
        else:
            # The whole file decides a column's type, and ids stay as they are written: 007 is not 7.
            frame = pl.read_csv(path, glob=False, infer_schema_length=None, schema_overrides={roles.id: pl.String})
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from error
    frame = frame.with_columns(pl.int_range(1, pl.len() + 1).alias(_ROW))
    frame = frame.filter(~pl.all_horizontal(pl.exclude(_ROW).is_null()))  # blank lines
    if frame.is_empty():
        raise AnyRNNError(f"{path}: there is no row below the header, expected one for each step of each sequence")
    return frame


class _Table:
    """The rows of one file, with what a message needs to name a place in it.

    `trained` is whether it is for a trained model, which needs all of its features, and no target.
    """

    def __init__(self, path: Path, roles: _Roles, frame: pl.DataFrame, *, trained: bool = False) -> None:
        self.path = path
        self.roles = roles
        self.frame = frame
        self.trained = trained
        self.notes: list[str] = []
        self.ids = self._ids()
        self.times = self._times()

    def place(self, row: int) -> str:
        """Where a message points: "train.csv: data row 17 (id 'a', t 3)"; the header is no data row."""
        time = self.frame[self.roles.time][row] if self.roles.time else None
        when = "" if time is None else f", {self.roles.time} {time}"
        return f"{self.path}: data row {self.frame[_ROW][row]} (id {self.ids[row]!r}{when})"

    def _ids(self) -> pl.Series:
        column = self.frame[self.roles.id]
        if column.dtype.is_nested() or column.dtype == pl.Binary:
            raise AnyRNNError(f"{self.path}: id column {column.name!r} holds {column.dtype}, expected text or numbers")
        missing = _first(column.is_null())
        if missing is not None:
            raise AnyRNNError(
                f"{self.path}: data row {self.frame[_ROW][missing]}: the id {column.name!r} is missing; "
                "every row needs the id of its sequence"
            )
        return column.cast(pl.String)

    def _times(self) -> pl.Series:
        if self.roles.time is None:
            return self.frame[_ROW]
        column = self.frame[self.roles.time]
        if column.dtype == pl.String:
            column = self._read_times(column)
        elif not (column.dtype.is_numeric() or column.dtype.is_temporal()):
            raise AnyRNNError(
                f"{self.path}: time column {column.name!r} holds {column.dtype}, expected numbers, dates or times"
            )
        missing = _first(column.is_null() | (column.is_nan() if column.dtype.is_float() else False))
        if missing is not None:
            raise AnyRNNError(f"{self.place(missing)}: the time is missing; every row needs one")
        return column

    def _read_times(self, column: pl.Series) -> pl.Series:
        """Text as numbers or as moments. Only ISO 8601: what 01/02/2026 means depends on the country."""
        numbers = column.str.strip_chars().cast(pl.Float64, strict=False)
        if numbers.is_not_null().any():
            odd = _first(numbers.is_null() & column.is_not_null())
            if odd is not None:
                raise AnyRNNError(f"{self.place(odd)}: the time is {column[odd]!r}, expected a number as in other rows")
            return numbers
        moments: list[datetime | None] = []
        zoned: bool | None = None
        for row, text in enumerate(column):
            try:
                moment = None if text is None else datetime.fromisoformat(text.strip())
            except ValueError:
                raise AnyRNNError(
                    f"{self.place(row)}: the time is {text!r}, expected a number or a date and time in ISO 8601 "
                    "such as 2026-01-31 13:45:00"
                ) from None
            if moment is not None:
                if zoned not in {None, moment.tzinfo is not None}:
                    raise AnyRNNError(
                        f"{self.place(row)}: some times have a time zone and some have none, so they have no order; "
                        "write all of them one way"
                    )
                zoned = moment.tzinfo is not None
                moment = moment.astimezone(UTC).replace(tzinfo=None) if zoned else moment
            moments.append(moment)
        return pl.Series(moments, dtype=pl.Datetime)

    def order(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows in order of id (first appearance), then time; and the number of rows of each id."""
        rows = pl.int_range(len(self.ids), eager=True)
        frame = pl.DataFrame({"id": self.ids, "time": self.times, "row": rows})
        frame = frame.with_columns(first=pl.col("row").min().over("id")).sort("first", "time", "row")
        twice = _first((frame["first"] == frame["first"].shift()) & (frame["time"] == frame["time"].shift()))
        if twice is not None:
            earlier = self.frame[_ROW][frame["row"][twice - 1]]
            raise AnyRNNError(
                f"{self.place(frame['row'][twice])}: this id has the same time in data row {earlier}; "
                "keep one row for each id and time"
            )
        return frame["row"].to_numpy(), frame["first"].rle().struct.field("len").to_numpy()

    def feature(self, name: str) -> NDArray[Any]:
        """One feature's values, float32, in the order of the file."""
        column = self.frame[name]
        if column.dtype in _TEXT:
            text = column.cast(pl.String).str.strip_chars()
            numbers = text.cast(pl.Float64, strict=False)
            row = _first(numbers.is_null() & text.is_not_null() & ~text.str.to_lowercase().is_in(_MISSING))
            if row is not None:
                raise AnyRNNError(
                    f"{self.place(row)}: feature {name!r} is {text[row]!r}, expected a number; "
                    f"{self._cure('write a number')}"
                )
        elif column.dtype.is_numeric() or column.dtype in _AS_NUMBERS:
            numbers = column.cast(pl.Float64)
        else:
            raise AnyRNNError(
                f"{self.path}: feature {name!r} holds {column.dtype}, expected numbers; {self._cure('convert it')}"
            )
        row = _first(numbers.is_null() | numbers.is_nan())
        if row is not None:
            written = "" if column[row] is None else f" ({column[row]})"
            raise AnyRNNError(
                f"{self.place(row)}: feature {name!r} is missing{written}; {self._cure('fill it in, drop the row')}"
            )
        values = numbers.cast(pl.Float32)
        row = _first(values.is_infinite())
        if row is not None:
            raise AnyRNNError(f"{self.place(row)}: feature {name!r} is {numbers[row]}, expected a finite number")
        return values.to_numpy()

    def _cure(self, cure: str) -> str:
        """What to do about a feature."""
        if self.trained:
            return f"{cure.replace(', ', ' or ')}: the model needs it"
        return f"{cure}, or name the features without it (feature_columns, --features)"

    def targets(self, first_rows: list[int]) -> tuple[Value, ...]:
        """The target of each id, after checking that all of its rows agree; for a trained model None where not."""
        column = self.frame[self.roles.target or ""]
        if column.dtype in _TEXT:
            column = _without_markers(column.cast(pl.String))
        elif column.dtype.is_decimal():
            column = column.cast(pl.Float64)
        elif not (column.dtype.is_numeric() or column.dtype in _AS_NUMBERS):
            wrong = f"target {column.name!r} holds {column.dtype}, expected classes (text) or numbers"
            if self.trained:
                self.notes.append(f"{wrong}: nothing is scored")
                return (None,) * len(first_rows)
            raise AnyRNNError(f"{self.path}: {wrong}")
        if column.dtype.is_float():
            column = column.fill_nan(None)
        pairs = pl.DataFrame({"id": self.ids, "target": column})
        pairs = pairs.with_columns(expected=pl.col("target").first().over("id"))
        varies = pairs["target"].ne_missing(pairs["expected"])
        row = _first(varies)
        values = column.gather(first_rows).to_list()
        if row is None:
            return tuple(values)
        got, expected = ("missing" if value is None else repr(value) for value in pairs.row(row)[1:])
        wrong = f"{self.place(row)}: target {column.name!r} is {got}, but {expected} in the first row of this id"
        if not self.trained:
            raise AnyRNNError(f"{wrong}; a sequence has one target, repeated on each of its rows")
        doubtful = set(self.ids.filter(varies))
        self.notes.append(f"{wrong}: it counts as missing, as in all sequences in which it varies ({len(doubtful)})")
        return tuple(
            None if self.ids[row] in doubtful else value for row, value in zip(first_rows, values, strict=True)
        )


def _without_markers(column: pl.Series) -> pl.Series:
    """A text target with blanks made null; and "NA" and the like too where all other values are numbers."""
    text = column.str.strip_chars().str.to_lowercase()
    marker = text.is_in(_MISSING)
    number = text.cast(pl.Float64, strict=False).is_not_null() & ~marker
    missing = marker if (number | marker | text.is_null()).all() else text == ""
    return column.zip_with(~missing, pl.Series([None], dtype=pl.String))


def _first(mask: pl.Series) -> int | None:
    rows = mask.arg_true()
    return int(rows[0]) if len(rows) else None
