"""The times of steps as people write them: numbers, dates, clock times; and how far apart two steps are."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError

# 01.02.2026, with a time or without. With dots the day comes first wherever people write so; with slashes it depends.
_DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:[ T]+(\S+))?")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,6}))?)?")
_NO_DATE = date(1970, 1, 1)
_HALF_A_DAY = 12 * 3600 * 1_000_000  # in microseconds


def read_times(column: pl.Series, place: Callable[[int], str]) -> tuple[pl.Series, tuple[str, ...]]:
    """Text as numbers or as moments (without a time zone, or all in UTC), and what was taken for granted.

    Numbers, ISO 8601, dates with dots (the day first), and times of day such as 7:05, which have the date 1970-01-01
    then. What 01/02/2026 means depends on the country: it is refused.

    Args:
        column: The texts.
        place: Says where a row stands, for messages.

    Raises:
        AnyRNNError: if a text is none of these, or of another kind than the others.
    """
    numbers = column.str.strip_chars().cast(pl.Float64, strict=False)
    if numbers.is_not_null().any():
        odd = (numbers.is_null() & column.is_not_null()).arg_true()
        if len(odd):
            raise AnyRNNError(f"{place(odd[0])}: the time is {column[odd[0]]!r}, expected a number as in other rows")
        # Nanoseconds since 1970 are beyond the whole numbers that float64 tells apart.
        whole = column.str.strip_chars().str.strip_prefix("+").cast(pl.Int64, strict=False)
        return (whole if whole.null_count() == column.null_count() else numbers), ()
    moments: list[datetime | None] = []
    kinds: dict[str, int] = {}  # the first row of each
    for row, text in enumerate(column):
        if text is None:
            moments.append(None)
            continue
        kind, moment = _moment(text.strip())
        if moment is None:
            raise AnyRNNError(
                f"{place(row)}: the time is {text!r}, expected a number, a date and time in ISO 8601 such as "
                "2026-01-31 13:45:00 or with dots such as 31.01.2026 13:45, or a time of day such as 13:45"
            )
        kinds.setdefault(kind, row)
        if len({each == "a time of day" for each in kinds}) > 1:
            raise AnyRNNError(f"{place(row)}: some times have a date and some have none; write all of them one way")
        if "with a zone" in kinds and len(kinds) > 1:
            raise AnyRNNError(
                f"{place(row)}: some times have a time zone and some have none, so they have no order; "
                "write all of them one way"
            )
        moments.append(moment)
    notes: tuple[str, ...] = ()
    if "day first" in kinds:
        notes = (f"times such as {column[kinds['day first']]!r} are read with the day first, then the month",)
    return pl.Series(moments, dtype=pl.Datetime("us")), notes


def _moment(text: str) -> tuple[str, datetime | None]:
    """What kind of time a text is, and which moment; None if it is none."""
    try:
        clock = _CLOCK.fullmatch(text)
        if clock is not None:
            return "a time of day", datetime.combine(_NO_DATE, _time(clock))
        dotted = _DAY_FIRST.fullmatch(text)
        if dotted is not None:
            clock = _CLOCK.fullmatch(dotted[4]) if dotted[4] else None
            if dotted[4] and clock is None:
                return "day first", None
            day = date(int(dotted[3]), int(dotted[2]), int(dotted[1]))
            return "day first", datetime.combine(day, time() if clock is None else _time(clock))
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return "ISO 8601", moment
        return "with a zone", moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return "none", None


def _time(clock: re.Match[str]) -> time:
    return time(int(clock[1]), int(clock[2]), int(clock[3] or 0), int((clock[4] or "").ljust(6, "0")))


def over_midnight(ids: pl.Series, times: pl.Series) -> int | None:
    """The first row whose time of day lies half a day or more before that of the row above, of the same sequence."""
    if times.dtype != pl.Datetime or (times.dt.date() != _NO_DATE).any():
        return None
    back = times.dt.timestamp("us").diff() <= -_HALF_A_DAY
    rows = (back & (ids == ids.shift())).arg_true()
    return int(rows[0]) if len(rows) else None


def since_the_last(times: pl.Series) -> NDArray[np.float64]:
    """How far each time lies behind the one above it: in seconds, or the difference of numbers; 0 for the first."""
    if times.dtype.is_temporal():
        if times.dtype == pl.Date:
            times = times.cast(pl.Datetime("us"))
        unit = 1e-9 if times.dtype == pl.Time else _SECONDS[getattr(times.dtype, "time_unit", None) or "us"]
        times = times.to_physical()
    else:
        unit = 1.0
    if times.dtype.is_integer():
        times = times.cast(pl.Int128)  # whose difference is exact
    apart = times.diff().cast(pl.Float64).fill_null(0.0).to_numpy() * unit
    return np.asarray(apart, dtype=np.float64)


_SECONDS = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}
