"""Long tables (CSV, Parquet) read through polars into `Parsed`: one row is one step of one sequence.

Rows are gathered by the id column, in order of first appearance, and sorted by the time column within an id.
All checks that need rows are here; `columns.py` says which column is what, `targets.py` what the targets mean.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.clock import over_midnight, read_times, since_the_last
from anyrnn.workbench.columns import BLANKS, ROW, Columns, Roles, column_names, frame_of, numbered, roles_of
from anyrnn.workbench.files import File, opened, separated
from anyrnn.workbench.frames import Frame
from anyrnn.workbench.parsed import (
    BLANK,
    DECIMAL_COMMA,
    NOT_A_NAME,
    THOUSANDS_COMMA,
    Missing,
    Parsed,
    Value,
)
from anyrnn.workbench.plain import EXACT
from anyrnn.workbench.reading import DELTA_TIME, Reading, note_on_words, one_hot, quoted, unknown, words_of
from anyrnn.workbench.text import ragged_row

_TEXT = (pl.String, pl.Categorical, pl.Enum)
_AS_NUMBERS = (pl.Boolean, pl.Null)  # beside the numeric types


def read_table(
    file: File | Frame | Path,
    columns: Columns,
    *,
    need_target: bool = True,
    owner: str = "",
    missing: Missing | None = None,
) -> Parsed:
    """Read a .csv, .tsv or .parquet file.

    Args:
        file: The file, whose suffix says which format; or a data frame.
        columns: Which column is what.
        need_target: If false, `columns.target` may be None or absent from the file: no targets then.
        owner: Whose features `columns.features` are, for the message that one of them is not there.
        missing: What stands for a missing value and becomes NaN. None: a missing feature is refused.
    """
    named = (columns.id, columns.time, columns.target if need_target else None, columns.group)
    file = opened(file) if isinstance(file, Path) else file
    if isinstance(file, Frame):
        roles = roles_of(file, file.data.columns, columns, need_target=need_target, owner=owner)
        frame = numbered(file.data, file)
    else:
        file = separated(file, [name for name in (*named, *(columns.features or ())) if name is not None])
        roles = roles_of(file, column_names(file), columns, need_target=need_target, owner=owner)
        frame = frame_of(file, roles)
    return parsed_table(Table(file, roles, frame, missing, trained=not need_target), columns)


@dataclass(frozen=True)
class Arranged:
    """The sequences of a table, one behind the other.

    Attributes:
        reading: What was made of the columns.
        matrix: The features of all steps (sum of T_i, I).
        rows: Which row of the table each step is.
        ends: Where each sequence ends (N,).
        first_rows: The row of the table that is the first step of each.
        ids: Their names.
    """

    reading: Reading
    matrix: NDArray[np.float64]
    rows: NDArray[Any]
    ends: NDArray[Any]
    first_rows: list[int]
    ids: tuple[str, ...]


def arranged(table: "Table", columns: Columns) -> Arranged:
    """Read the features of a table, and bring its rows into order."""
    path, roles = table.path, table.roles
    rows, lengths = table.order()
    ends = np.cumsum(lengths)
    reading, matrix = table.features(columns.reading)  # (rows, I), in the order of the file
    matrix = matrix[rows]
    if columns.delta_time:
        if roles.time is None:
            gone = "" if columns.usual_time is None else f"; {columns.usual_time!r}, that of the training, is not there"
            raise AnyRNNError(
                f"{path}: the time since the last step is a feature (delta_time, --delta-time), which takes the column "
                f"that orders the rows (time_column, --time){gone}"
            )
        apart = since_the_last(table.times.gather(rows))
        apart[ends - lengths] = 0.0
        matrix = np.column_stack((matrix, apart))
        reading = Reading(reading.columns, reading.words, delta_time=True)
    if len(set(reading.features)) < len(reading.features):
        raise AnyRNNError(
            f"{path}: two features would have one name, of {quoted(reading.features)}; rename a column such as "
            f"{DELTA_TIME!r}"
        )
    first_rows = rows[ends - lengths].tolist()
    return Arranged(reading, matrix, rows, ends, first_rows, tuple(table.ids.gather(first_rows)))


def parsed_table(table: "Table", columns: Columns) -> Parsed:
    """The sequences of a table."""
    path, roles, found = table.path, table.roles, arranged(table, columns)
    rows, ends, first_rows, ids = found.rows, found.ends, found.first_rows, found.ids
    targets = table.targets(first_rows) if roles.target and not columns.per_step else None
    of_steps = table.step_targets(rows, ends) if roles.target and columns.per_step else None
    return Parsed(
        path=str(path),
        features=found.reading.features,
        x=tuple(torch.from_numpy(steps) for steps in np.split(found.matrix, ends[:-1])),
        ids=ids,
        where=tuple(f"{path}: id {id_!r}" for id_ in ids),
        target=roles.target or "target",
        targets=targets,
        task=None,
        notes=(*path.notes, *(() if roles.time else (unsorted(columns),)), *table.notes),
        rows=tuple(np.split(table.frame[ROW].to_numpy()[rows], ends[:-1])),
        groups=table.groups(first_rows) if roles.group else None,
        step_targets=of_steps,
        reading=found.reading,
    )


def unsorted(columns: Columns) -> str:
    """What there is to say where no column orders the rows of a sequence."""
    if columns.usual_time is None:
        return "no time column was named: steps are in the order of the rows"
    return (
        f"column {columns.usual_time!r}, by which the steps were sorted in training, is not there: they are in the "
        "order of the rows; --time names another (time_column)"
    )


def text_of(column: pl.Series, missing: Missing | None) -> pl.Series:
    """A column as text without the blanks around it, null where it is missing."""
    text = column.cast(pl.String).str.strip_chars(BLANKS)
    words = BLANK if missing is None else missing.words
    return text.zip_with(~text.str.to_lowercase().is_in(words), pl.Series([None], dtype=pl.String))


class Table:
    """The rows of one file, with what a message needs to name a place in it.

    `trained`: for a trained model, which needs all of its features, and no target. `called`: what a feature is called.
    """

    def __init__(
        self,
        path: File | Frame,
        roles: Roles,
        frame: pl.DataFrame,
        missing: Missing | None,
        *,
        trained: bool = False,
        called: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.roles = roles
        self.frame = frame
        self.missing = missing
        self.trained = trained
        self.called = called or {}
        self.notes: list[str] = []
        self.ids = self._ids()
        self.times = self._times()

    def place(self, row: int) -> str:
        """Where a message points: "train.csv: data row 17 (id 'a', t 3)"; the header is no data row."""
        time = self.frame[self.roles.time][row] if self.roles.time else None
        when = "" if time is None else f", {self.roles.time} {time}"
        return f"{self.path}: data row {self.frame[ROW][row]} (id {self.ids[row]!r}{when})"

    def _ids(self) -> pl.Series:
        column = self.frame[self.roles.id]
        text = self._names(column, "id")
        ids = text.str.strip_chars(BLANKS)
        missing = _first(ids.is_null() | ids.is_in(NOT_A_NAME))
        if missing is not None:
            written = f" ({text[missing]!r})" if text[missing] else ""
            raise AnyRNNError(
                f"{self.path}: data row {self.frame[ROW][missing]}: the id {column.name!r} is missing{written}; "
                "every row needs the id of its sequence"
            )
        self._note_blanks("id", text, ids)
        doubtful = ids.filter(ids.str.to_lowercase().is_in(BLANK))
        if len(doubtful):
            self.notes.append(
                f"id {doubtful[0]!r} of {(ids == doubtful[0]).sum()} rows is read as the name of a sequence; if it "
                "means that the id is missing, leave these rows out"
            )
        return ids

    def _names(self, column: pl.Series, what: str) -> pl.Series:
        """A column of names, such as ids, as text."""
        try:
            text = column.cast(pl.String)
            is_name = not (column.dtype.is_nested() or column.dtype == pl.Binary)
        except pl.exceptions.PolarsError:  # a duration, and whatever else has no name
            is_name = False
        if not is_name:
            raise AnyRNNError(
                f"{self.path}: {what} column {column.name!r} holds {column.dtype}, expected text or numbers"
            )
        return text

    def groups(self, first_rows: list[int]) -> tuple[str, ...]:
        """The group of each id, after checking that all of its rows are of one."""
        column = self.frame[self.roles.group or ""]
        names = self._names(column, "group").str.strip_chars(BLANKS)
        missing = _first(names.is_null() | names.is_in(NOT_A_NAME))
        if missing is not None:
            raise AnyRNNError(f"{self.place(missing)}: the group {column.name!r} is missing; every row needs one")
        pairs = pl.DataFrame({"id": self.ids, "group": names})
        pairs = pairs.with_columns(expected=pl.col("group").first().over("id"))
        row = _first(pairs["group"] != pairs["expected"])
        if row is not None:
            got, expected = pairs.row(row)[1:]
            raise AnyRNNError(
                f"{self.place(row)}: group {column.name!r} is {got!r}, but {expected!r} in the first row of this id; a "
                "sequence is of one group: give the pieces different ids"
            )
        return tuple(names.gather(first_rows))

    def _note_blanks(self, what: str, before: pl.Series, after: pl.Series) -> None:
        row = _first(before != after)
        if row is not None:
            count = (before != after).sum()
            self.notes.append(
                f"{what} {before[row]!r} of data row {self.frame[ROW][row]} is read as {after[row]!r}: blanks at the "
                f"ends do not count ({count} row{'s' if count > 1 else ''})"
            )

    def _times(self) -> pl.Series:
        if self.roles.time is None:
            return self.frame[ROW]
        column = self.frame[self.roles.time]
        if column.dtype == pl.String:
            column = self._decimal_commas(f"time {column.name!r}", column.str.strip_chars(BLANKS))
            column, notes = read_times(column, self.place)
            self.notes += notes
        elif not (column.dtype.is_numeric() or column.dtype.is_temporal()):
            raise AnyRNNError(
                f"{self.path}: time column {column.name!r} holds {column.dtype}, expected numbers, dates or times"
            )
        missing = _first(column.is_null() | (column.is_nan() if column.dtype.is_float() else False))
        if missing is not None:
            raise AnyRNNError(f"{self.place(missing)}: the time is missing; every row needs one")
        row = over_midnight(self.ids, column)
        if row is not None:
            self.notes.append(
                f"{self.place(row)}: the row above has a later time of day; without a date this row comes first, so "
                "write the date as well if it is after midnight"
            )
        return column

    def order(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows in order of id (first appearance), then time; and the number of rows of each id."""
        rows = pl.int_range(len(self.ids), eager=True)
        frame = pl.DataFrame({"id": self.ids, "time": self.times, "row": rows})
        frame = frame.with_columns(first=pl.col("row").min().over("id")).sort("first", "time", "row")
        twice = _first((frame["first"] == frame["first"].shift()) & (frame["time"] == frame["time"].shift()))
        if twice is not None:
            earlier = self.frame[ROW][frame["row"][twice - 1]]
            raise AnyRNNError(
                f"{self.place(frame['row'][twice])}: this id has the same time in data row {earlier}; "
                "keep one row for each id and time"
            )
        return frame["row"].to_numpy(), frame["first"].rle().struct.field("len").to_numpy()

    def features(self, known: Reading | None) -> tuple[Reading, NDArray[np.float64]]:
        """All features in the order of the file, (rows, I), and what was made of the columns.

        Args:
            known: What was made of them in training; None: text may be words.
        """
        words: dict[str, tuple[str, ...]] = {}
        parts: list[NDArray[np.float64]] = []
        for name in self.roles.features:
            found = self._words(name) if known is None else known.words.get(name)
            if found is None:
                parts.append(self.feature(name)[:, np.newaxis])
            else:
                words[name] = found
                parts.append(self._one_hot(name, found, known is not None))
        return Reading(self.roles.features, words), np.concatenate(parts, axis=1)

    def _words(self, name: str) -> tuple[str, ...] | None:
        """The words of a column, if it holds words."""
        if self.frame[name].dtype not in _TEXT:
            return None
        return words_of(self._text(name), f"{self.path}: feature {name!r}")

    def _text(self, name: str) -> pl.Series:
        """A column as text without the blanks around it, null where it is missing."""
        return text_of(self.frame[name], self.missing)

    def _one_hot(self, name: str, words: tuple[str, ...], trained: bool) -> NDArray[np.float64]:
        text = self._text(name)
        row = _first(text.is_null())
        if row is not None:
            if self.missing is None:
                raise AnyRNNError(self._is_missing(name, row))
            self._refuse_short_rows()
        if not trained:
            self.notes.append(note_on_words(name, words))
        strange = unknown(text, words)
        row = _first(strange)
        if row is not None:
            self.notes.append(
                f"{self.place(row)}: feature {name!r} is {text[row]!r}, which is none of the words of the training, "
                f"{quoted(words)}: its features are 0 there ({strange.sum()} row{'s' if strange.sum() > 1 else ''}: "
                f"{quoted(text.filter(strange).unique().sort().to_list())})"
            )
        return one_hot(text, words)

    def _is_missing(self, name: str, row: int) -> str:
        value = self.frame[name][row]
        written = "" if value is None else f" ({value})"
        return (
            f"{self.place(row)}: feature {name!r} is missing{written}; {self._cure('fill it in, drop the row', name)}"
            + ("" if self.trained else "; missing='nan' (--missing nan) has missing values filled")
        )

    def _decimal_commas(self, what: str, text: pl.Series) -> pl.Series:
        """Text with decimal points where all numbers of the column are written so that the comma may be one.

        If each comma may as well set off the thousands, only semicolons between the columns tell: there is no other
        reason for them.
        """
        present = text.drop_nulls()
        with_comma = present.filter(present.str.contains(",", literal=True))
        if not len(with_comma) or not present.str.contains(f"^({DECIMAL_COMMA})$").all():
            return text
        if self.path.separator != ";" and with_comma.str.contains(f"^({THOUSANDS_COMMA})$").all():
            return text
        self.notes.append(f"{what} is written with decimal commas: read as numbers")
        return text.str.replace(",", ".", literal=True)

    def feature(self, name: str) -> NDArray[Any]:
        """One feature's values, float64, in the order of the file; NaN where one is missing and may be."""
        column = self.frame[name]
        if column.dtype in _TEXT:
            text = self._decimal_commas(self._name_of(name), self._text(name))
            numbers = text.cast(pl.Float64, strict=False)
            row = _first(numbers.is_null() & text.is_not_null())
            if row is not None:
                cure = "write a decimal point" if re.fullmatch(r"[+-]?\d+,\d+", text[row]) else "write a number"
                raise AnyRNNError(
                    f"{self.place(row)}: {self._name_of(name)} is {text[row]!r}, expected a number; "
                    f"{self._cure(cure, name)}"
                )
        elif column.dtype.is_numeric() or column.dtype in _AS_NUMBERS:
            numbers = column.cast(pl.Float64)
            self._note_rounding(column, numbers)
        else:
            raise AnyRNNError(
                f"{self.path}: {self._name_of(name)} holds {column.dtype}, expected numbers; "
                f"{self._cure('convert it', name)}"
            )
        values = numbers.fill_null(math.nan).to_numpy()
        absent = np.isnan(values)
        if self.missing is not None:
            if absent.any():
                self._refuse_short_rows()
            values = np.where(self.missing.mask(values), math.nan, values)
        elif absent.any():
            raise AnyRNNError(self._is_missing(name, int(absent.argmax())))
        row = _first(pl.Series(np.isinf(values)))
        if row is not None:
            raise AnyRNNError(f"{self.place(row)}: {self._name_of(name)} is {column[row]}, expected a finite number")
        return values

    def _note_rounding(self, column: pl.Series, numbers: pl.Series) -> None:
        if column.dtype.is_integer() and (numbers.abs() > EXACT).any():
            row = _first(numbers.cast(pl.Int128, strict=False).ne_missing(column.cast(pl.Int128)))
            if row is not None:
                self.notes.append(
                    f"{self._name_of(column.name)} holds whole numbers beyond 2**53, which are rounded: {column[row]} "
                    f"in data row {self.frame[ROW][row]} is read as {int(numbers[row])}; take a constant off them if "
                    "the last digits matter"
                )

    def _refuse_short_rows(self) -> None:
        """A row that ends early is a damaged file, and no missing value; polars tells them not apart."""
        if isinstance(self.path, Frame) or self.path.format == ".parquet":
            return
        row = ragged_row(self.path, shorter=True)
        if row is not None:
            raise AnyRNNError(row)

    def _name_of(self, column: str) -> str:
        return f"{self.called.get(column, 'feature')} {column!r}"

    def _cure(self, cure: str, column: str) -> str:
        """What to do about a feature."""
        if column in self.called:
            return cure
        if self.trained:
            return f"{cure.replace(', ', ' or ')}: the model needs it"
        return f"{cure}, or name the features without it (feature_columns, --features)"

    def _targets(self) -> pl.Series | None:
        """The target of each row, null where it is missing; None if a trained model cannot have such targets."""
        column = self.frame[self.roles.target or ""]
        if column.dtype in _TEXT:
            text = column.cast(pl.String)
            stripped = text.str.strip_chars(BLANKS)
            self._note_blanks(f"target {column.name!r}:", text, stripped)
            column = _without_markers(stripped)
            if self.path.format in {".csv", ".tsv"}:  # in CSV " 1" and +1 made text of numbers; in Parquet, a person
                column = _as_numbers(column)
        elif column.dtype.is_decimal():
            column = column.cast(pl.Float64)
        elif not (column.dtype.is_numeric() or column.dtype in _AS_NUMBERS):
            wrong = f"target {column.name!r} holds {column.dtype}, expected classes (text) or numbers"
            if self.trained:
                self.notes.append(f"{wrong}: nothing is scored")
                return None
            raise AnyRNNError(f"{self.path}: {wrong}")
        if column.dtype.is_float():
            column = column.fill_nan(None)
        if self.missing is not None:
            absent = [value is not None and self.missing.names(str(value)) for value in column]
            column = column.zip_with(~pl.Series(absent, dtype=pl.Boolean), pl.Series([None], dtype=column.dtype))
        return column

    def step_targets(self, rows: NDArray[Any], ends: NDArray[Any]) -> tuple[tuple[Value, ...], ...]:
        """The target of each row, in the order of these rows, by sequence; None where one is missing."""
        column = self._targets()
        values = [None] * len(rows) if column is None else column.gather(rows).to_list()
        return tuple(tuple(values[a:b]) for a, b in pairwise([0, *ends.tolist()]))

    def targets(self, first_rows: list[int]) -> tuple[Value, ...]:
        """The target of each id, after checking that all of its rows agree; for a trained model None where not."""
        column = self._targets()
        if column is None:
            return (None,) * len(first_rows)
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
            raise AnyRNNError(
                f"{wrong}; a sequence has one target, repeated on each of its rows, unless each row has one of its "
                "own, to be predicted step by step: --task tagging (workbench.tagging)"
            )
        doubtful = set(self.ids.filter(varies))
        self.notes.append(f"{wrong}: it counts as missing, as in all sequences in which it varies ({len(doubtful)})")
        return tuple(
            None if self.ids[row] in doubtful else value for row, value in zip(first_rows, values, strict=True)
        )


def _without_markers(text: pl.Series) -> pl.Series:
    """A text target with null for what is certainly no class; and for "NA" and the like where all others are numbers.

    Other words, such as "None", may well be classes: `targets.py` says so.
    """
    marker = text.str.to_lowercase().is_in(BLANK)
    number = text.cast(pl.Float64, strict=False).is_not_null() & ~marker
    missing = marker if (number | marker | text.is_null()).all() else text.is_in(NOT_A_NAME)
    return text.zip_with(~missing, pl.Series([None], dtype=pl.String))


def _as_numbers(text: pl.Series) -> pl.Series:
    """A text target as numbers, if all of it is."""
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() > text.null_count() or text.null_count() == len(text):
        return text
    whole = text.str.contains(r"^[+-]?\d{1,18}$").all()
    return text.str.strip_prefix("+").cast(pl.Int64) if whole else numbers


def _first(mask: pl.Series) -> int | None:
    rows = mask.arg_true()
    return int(rows[0]) if len(rows) else None
