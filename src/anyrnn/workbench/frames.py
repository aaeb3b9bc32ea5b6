"""Data frames in long form, a row for each step: pandas, Polars, PyArrow and others, by way of narwhals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from anyrnn.errors import AnyRNNError


@dataclass(frozen=True, eq=False)
class Frame:
    """A data frame in the place of a file: see `files.File`."""

    data: pl.DataFrame
    format: str = ""
    separator: str = ","
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "the data frame"


def frame_from(source: Any, columns: tuple[str | None, ...] = ()) -> Frame | None:
    """A frame of any library, if it is one. A level of a pandas index that is one of `columns` becomes a column.

    Raises:
        AnyRNNError: if it cannot be used.
    """
    import narwhals as nw  # noqa: PLC0415 - which only frames need

    if nw.dependencies.is_into_series(source) or nw.dependencies.is_polars_lazyframe(source):
        raise AnyRNNError(
            f"load: got a {type(source).__module__.partition('.')[0]} {type(source).__name__}, expected a data frame "
            "with a row for each step; collect a lazy one first"
        )
    if not nw.dependencies.is_into_dataframe(source):
        return None
    if nw.dependencies.is_pandas_like_dataframe(source):
        source = _with_named_columns(source, columns)
    frame = nw.from_native(source, eager_only=True)
    if isinstance(source, pl.DataFrame):
        return Frame(source)
    return Frame(pl.DataFrame([_column(frame[name]) for name in frame.columns]))


def _with_named_columns(frame: Any, columns: tuple[str | None, ...]) -> Any:
    """A frame of pandas or its like whose columns have texts for names, and levels of the index that are wanted."""
    levels = [name for name in frame.index.names if name in columns and name is not None and name not in frame.columns]
    frame = frame.reset_index(level=levels) if levels else frame
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise AnyRNNError(f"the data frame: two columns have one name, of {', '.join(names)}; rename one of them")
    return frame.set_axis(names, axis=1)


def _column(column: Any) -> pl.Series:
    """One column. Without PyArrow, which polars' own conversion would need."""
    if column.dtype.is_numeric() and not column.is_null().any():
        return pl.Series(column.name, np.array(column.to_numpy()))
    absent = column.is_null().to_list()
    values = [None if none else value for none, value in zip(absent, column.to_list(), strict=True)]
    try:
        found = pl.Series(column.name, values)
        if found.dtype == pl.Object:
            raise TypeError
    except (TypeError, pl.exceptions.PolarsError) as error:
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise AnyRNNError(
            f"the data frame: column {column.name!r} holds {kinds}, expected text, numbers or times; a frame with a "
            "series in each cell is a list of arrays: from_arrays"
        ) from error
    return found
