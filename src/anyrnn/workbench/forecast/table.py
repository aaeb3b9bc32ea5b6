"""Tables of series: a long one, a row for each step of each series, or a wide one, a column for each series.

Leans on `anyrnn.workbench.table`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.columns import ROW, Roles, column_names, frame_of, likely
from anyrnn.workbench.files import opened, separated, stem_of
from anyrnn.workbench.names import listed
from anyrnn.workbench.parsed import Missing
from anyrnn.workbench.table import Table


@dataclass(frozen=True)
class SeriesColumns:
    """What the caller says about the columns of a table of series; without an id there is one series.

    Several targets are those of a wide table: each is a series, which has the name of its column.
    """

    id: str | None
    time: str | None
    target: str | tuple[str, ...]
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    static: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeriesRows:
    """The rows of one series, in order.

    Attributes:
        id: Its name.
        y: The target (T,).
        past, future: The covariates (T or more, features); the rows behind T have no target yet.
        static: (features,).
        times: The time of each row.
    """

    id: str
    y: NDArray[np.float64]
    past: NDArray[np.float64]
    future: NDArray[np.float64]
    static: NDArray[np.float64]
    times: pl.Series


@dataclass(frozen=True)
class SeriesTable:
    """The series of a file, in the order in which they appear; and what reading took for granted."""

    series: tuple[SeriesRows, ...]
    notes: tuple[str, ...]


def read_series(path: Path, columns: SeriesColumns, encoding: str | None = None) -> SeriesTable:
    """Read series from a .csv or .parquet file.

    The target may be missing in the last rows of a series: what is known there is known ahead.

    Raises:
        AnyRNNError: if a value is missing anywhere else, and for all that `read_table` refuses.
    """
    if isinstance(columns.target, str):
        return _read_long(path, columns, columns.target, encoding)
    if columns.id is not None:
        raise AnyRNNError(
            f"{path}: got several targets, {listed(columns.target)}, and the id column {columns.id!r}; expected one "
            "target with an id, or a target for each series without"
        )
    tables = {name: _read_long(path, columns, name, encoding) for name in columns.target}
    series = tuple(replace(one, id=name) for name, table in tables.items() for one in table.series)
    return SeriesTable(series, tuple(dict.fromkeys(note for table in tables.values() for note in table.notes)))


def _read_long(path: Path, columns: SeriesColumns, target: str, encoding: str | None) -> SeriesTable:
    """Read the series of a long table, or one of those of a wide one."""
    asked = [columns.id, columns.time, target, *columns.past, *columns.future, *columns.static]
    named = [name for name in asked if name is not None]
    try:
        file = separated(opened(path, encoding), named)
        names = column_names(file)
    except OSError as error:
        raise AnyRNNError(f"{path}: this cannot be read: {error.strerror or error}") from error
    for name in named:
        if name not in names:
            raise AnyRNNError(
                f"{path}: column {name!r} is not there; the columns are {listed(names)}.{likely(name, names)}"
            )
        if named.count(name) > 1:
            raise AnyRNNError(
                f"{path}: column {name!r} is named twice; a column is one of id, time, target, past, future and static"
            )
    features = (target, *columns.past, *columns.future, *columns.static)
    roles = Roles(columns.id or ROW, columns.time, None, features, None)
    called = {**dict.fromkeys(features, "covariate"), target: "target"}
    table = Table(file, roles, frame_of(file, roles), Missing(()), called=called)
    if columns.id is None:
        table.ids = pl.Series([stem_of(file.path)] * len(table.ids))
    rows, lengths = table.order()
    values = {name: table.feature(name)[rows] for name in features}
    times = table.times.gather(rows)
    found: list[SeriesRows] = []
    for end, length in zip(np.cumsum(lengths).tolist(), lengths.tolist(), strict=True):
        part = slice(end - length, end)
        found.append(_series(table, columns, target, {k: v[part] for k, v in values.items()}, rows[part], times[part]))
    notes = () if columns.time else ("no time column was named: steps are in the order of the rows",)
    return SeriesTable(tuple(found), (*file.notes, *notes, *table.notes, *_uneven(table, found, columns.time)))


def _series(
    table: Table,
    columns: SeriesColumns,
    target: str,
    values: dict[str, NDArray[np.float64]],
    rows: NDArray[Any],
    times: pl.Series,
) -> SeriesRows:
    """One series of a table; `rows` are where its steps stand."""
    known = ~np.isnan(values[target])
    count = int(known.nonzero()[0][-1]) + 1 if known.any() else 0
    # The target may be missing behind its end, and so may what is known up to the origin only.
    ends = {target: count, **dict.fromkeys(columns.past, count)}
    for name, column in values.items():
        absent = np.isnan(column[: ends.get(name, len(column))])
        if absent.any():
            row = int(rows[int(absent.argmax())])
            what = "target" if name == target else "covariate"
            raise AnyRNNError(
                f"{table.place(row)}: {what} {name!r} is missing; expected a number: fill it in, or leave the column "
                "or the series out (a target may be missing in the last rows of a series only)"
            )
    if not count:
        raise AnyRNNError(f"{table.place(int(rows[0]))}: the target {target!r} is missing in the whole series")
    for name in columns.static:
        other = (values[name] != values[name][0]).nonzero()[0]
        if len(other):
            row = int(rows[int(other[0])])
            raise AnyRNNError(
                f"{table.place(row)}: static covariate {name!r} is {values[name][other[0]]:g}, but "
                f"{values[name][0]:g} in the first row of this series; expected one value in all of its rows"
            )

    def matrix(names: tuple[str, ...], length: int) -> NDArray[np.float64]:
        columns = [values[name][:length] for name in names]
        return np.stack(columns, axis=1) if columns else np.empty((length, 0))

    static = np.array([values[name][0] for name in columns.static], dtype=np.float64)
    future = matrix(columns.future, len(known))
    return SeriesRows(
        str(table.ids[int(rows[0])]), values[target][:count], matrix(columns.past, count), future, static, times
    )


def _uneven(table: Table, series: list[SeriesRows], time: str | None) -> tuple[str, ...]:
    """A note that steps are not evenly spaced, if they are not: each row counts as one step all the same."""
    if time is None:
        return ()
    gaps = [
        np.diff(
            each.times.cast(pl.Float64).to_numpy()
            if each.times.dtype.is_numeric()
            else each.times.to_numpy().astype("datetime64[us]").astype(np.float64)
        )
        for each in series
    ]
    every = np.concatenate(gaps)
    if not len(every):
        return ()
    usual = float(np.median(every))
    odd = int((np.abs(every - usual) > 0.5 * usual).sum())
    if not odd:
        return ()
    worst = max(range(len(gaps)), key=lambda k: gaps[k].max(initial=0))
    step = int(gaps[worst].argmax())
    return (
        f"steps are not evenly spaced: {odd} of {len(every)} are not within half of the usual one, and the longest is "
        f"{gaps[worst].max() / usual:.3g} times as long, before {time} {series[worst].times[step + 1]} of series "
        f"{series[worst].id!r}; each row counts as one step",
    )
