"""Series to be forecast: values in time with what is known about them, and the origins that forecasts start from.

Position t of a series is the t-th step, from 0. A forecast with origin o knows the steps before o and says what the
steps o, o + 1, ..., o + horizon - 1 will be: the first one that it does not know comes first.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.forecast.table import SeriesColumns, read_series
from anyrnn.workbench.names import listed
from anyrnn.workbench.plain import EXACT
from anyrnn.workbench.sequences import bulk

_MOST_WINDOWS = 20_000  # that a part is scored on: with more of them, origins are taken farther apart


@dataclass(frozen=True)
class Series:
    """One series.

    Attributes:
        id: Its name.
        y: What is forecast (T,), float64.
        past: Covariates that are known up to the origin (T, P).
        future: Covariates that are known for the steps of the forecast, too (T or more, F): a calendar, a plan.
        static: What is the same at all steps (S,).
    """

    id: str
    y: NDArray[np.float64]
    past: NDArray[np.float64]
    future: NDArray[np.float64]
    static: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Origins:
    """From where forecasts start: for each of N windows the number of its series, and the origin in it."""

    series: NDArray[np.int64]
    origin: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.origin)


@dataclass(frozen=True, repr=False)
class Forecasting:
    """A question: what are the next values of each series?

    Each series is cut in time: its last steps are for the test, those before for validation, and what is before them
    for training. Whatever is fitted, scales among it, is fitted to steps of training. A forecast of the test may know
    all steps before its origin, those of validation and test among them, as it would on the day.

    Args:
        name: What it is called in tables and reports.
        target: The name of what is forecast.
        series: The series.
        horizon: h, the steps of a forecast.
        season: m, the steps of a season, for seasonal naive forecasts and MASE; 1 if there is none.
        test_steps: The steps at the end of each series that the test forecasts; 0: there is no test part.
        validation_steps: The steps before them that validation forecasts.
        past_names: The names of the covariates of the past.
        future_names: Those that are known ahead.
        static_names: Those that are the same at all steps.
        notes: What reading took for granted, a sentence each.
        id_column: The column that named the series of the table, if one did.
        time_column: The column that sorted the steps, if one did.
        target_columns: Of a wide table the column of each series; () of a long one.
    """

    name: str
    target: str
    series: tuple[Series, ...]
    horizon: int
    season: int
    test_steps: int
    validation_steps: int
    past_names: tuple[str, ...] = ()
    future_names: tuple[str, ...] = ()
    static_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    id_column: str | None = None
    time_column: str | None = None
    target_columns: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lengths = sorted(map(len, self.series))
        steps = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
        season = f", season {self.season}" if self.season > 1 else ""
        named = (("past", self.past_names), ("future", self.future_names), ("static", self.static_names))
        known = "".join(f", {kind} {listed(names)}" for kind, names in named if names)
        return (
            f"{self.name}: {len(self.series)} series of {steps} steps, target {self.target!r}, {self.horizon} steps "
            f"ahead{season}{known}"
        )

    @property
    def split(self) -> str:
        """Where the parts come from, in a sentence."""
        return (
            f"in time: of each series the last {self.test_steps} steps are the test part, the {self.validation_steps} "
            "before them choose the epoch, and what is before these is trained on"
        )

    def __post_init__(self) -> None:
        for name in ("horizon", "season", "test_steps", "validation_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or (value < 1 and (name != "test_steps" or value)):
                raise AnyRNNError(f"forecasting: got {name}={value!r}, expected an int of at least 1")
        for name in ("test_steps", "validation_steps"):
            if getattr(self, name) < self.horizon and (name != "test_steps" or self.test_steps):
                raise AnyRNNError(
                    f"forecasting: got {name}={getattr(self, name)}, expected at least horizon={self.horizon}, the "
                    "steps of one forecast"
                )
        if not self.series:
            raise AnyRNNError("forecasting: got no series, expected at least one")
        least = self.least_length
        for each in self.series:
            if len(each) < least:
                raise AnyRNNError(
                    f"{self.name}: series {each.id!r} has {len(each)} steps, expected at least {least}: "
                    f"{self.test_steps} for the test, {self.validation_steps} for validation, and "
                    f"{least - self.test_steps - self.validation_steps} to train on; leave it out, or ask for less "
                    "(horizon, season, test_steps, validation_steps)"
                )
            shapes = (each.past.shape, each.future.shape[1:], each.static.shape)
            names = (self.past_names, self.future_names, self.static_names)
            expected = ((len(each), len(names[0])), (len(names[1]),), (len(names[2]),))
            if shapes != expected or len(each.future) < len(each):
                raise AnyRNNError(
                    f"{self.name}: series {each.id!r} has covariates of shapes {each.past.shape}, "
                    f"{each.future.shape} and {each.static.shape}, expected ({len(each)}, {len(names[0])}), "
                    f"({len(each)} or more, {len(names[1])}) and ({len(names[2])},)"
                )
            for values in (each.y, each.past, each.future[: len(each)], each.static):
                if not np.isfinite(values).all():
                    raise AnyRNNError(f"{self.name}: series {each.id!r} holds NaN or infinity, expected finite numbers")
        if all(np.ptp(each.y[: self.train_end(each)]) == 0 for each in self.series):
            rounded = max(float(np.abs(each.y).max()) for each in self.series) > EXACT
            raise AnyRNNError(
                f"{self.name}: {self.target!r} never changes in training: there is nothing to forecast"
                + ("; if it does, but float64 rounds it away, take a constant off it" if rounded else "")
            )

    @property
    def least_length(self) -> int:
        """The fewest steps of a series: in training one forecast is to be learned, and one season to be seen."""
        return self.test_steps + self.validation_steps + max(self.season + 1, 2) + self.horizon

    def train_end(self, series: Series) -> int:
        """The number of a series' steps that are for training."""
        return len(series) - self.test_steps - self.validation_steps

    def origins(self, part: str) -> Origins:
        """The origins of a part, "validation" or "test": every one whose forecast ends within the part.

        Of very many, each k-th one, counted from the last, which every series has.
        """
        ends = [len(each) - (0 if part == "test" else self.test_steps) for each in self.series]
        steps = self.test_steps if part == "test" else self.validation_steps
        count = steps - self.horizon + 1
        stride = math.ceil(count * len(ends) / _MOST_WINDOWS)
        offsets = np.arange(0, count, stride)[::-1]
        origin = np.concatenate([end - self.horizon - offsets for end in ends])
        return Origins(np.repeat(np.arange(len(ends)), len(offsets)), origin)

    def truth(self, origins: Origins) -> NDArray[np.float64]:
        """What came: (N, h)."""
        return np.stack([self.series[k].y[o : o + self.horizon] for k, o in self.pairs(origins)])

    @staticmethod
    def pairs(origins: Origins) -> Iterator[tuple[int, int]]:
        """The series and the origin of each window."""
        return zip(origins.series.tolist(), origins.origin.tolist(), strict=True)


def load_series(
    source: str | os.PathLike[str],
    *,
    horizon: int,
    target_column: str | Sequence[str],
    time_column: str | None = None,
    id_column: str | None = None,
    past_columns: Sequence[str] = (),
    future_columns: Sequence[str] = (),
    static_columns: Sequence[str] = (),
    season: int = 1,
    test_steps: int | None = None,
    validation_steps: int | None = None,
    encoding: str | None = None,
) -> Forecasting:
    """Read series from a long table, a row for each step of each series, or from a wide one, a column for each.

    Args:
        source: The path of a .csv or .parquet file.
        horizon: h, how many steps to forecast.
        target_column: What to forecast. Several columns are the series of a wide table, named after them.
        time_column: The column that sorts the steps, which have to be evenly spaced. Without it they are in the order
            of the file.
        id_column: The column that says to which series a row belongs; without it there is one series.
        past_columns: Columns that are known up to the origin of a forecast only.
        future_columns: Columns that are known ahead. Rows at the end of a series whose target is missing say what
            they will be.
        static_columns: Columns that are the same in all rows of a series.
        season: m, the steps of a season, such as 24 for hours: what seasonal naive forecasts repeat.
        test_steps: The steps at the end of each series for the test; if None, a fifth of the shortest series, but one
            forecast at least.
        validation_steps: Those before them, likewise.
        encoding: The name of that of a text file, such as "latin-1"; None: UTF-8.

    Raises:
        AnyRNNError: The data cannot be used as it is. The message names the place and the cure.
    """
    for name, value in (("horizon", horizon), ("season", season)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AnyRNNError(f"load_series: got {name}={value!r}, expected an int of at least 1")
    target = target_column if isinstance(target_column, str) else tuple(target_column)
    if not target:
        raise AnyRNNError("load_series: got no target_column, expected the name of a column, or several")
    columns = SeriesColumns(
        id_column, time_column, target, tuple(past_columns), tuple(future_columns), tuple(static_columns)
    )
    path = Path(source)
    read = read_series(path, columns, encoding)
    series = tuple(Series(each.id, each.y, each.past[: len(each.y)], each.future, each.static) for each in read.series)
    shortest = min(map(len, series))
    fifth = max(horizon, min(shortest // 5, shortest - 2 * horizon - max(season + 1, 2)))
    test = fifth if test_steps is None else test_steps
    validation = fifth if validation_steps is None else validation_steps
    return Forecasting(
        path.stem, target if isinstance(target, str) else listed(target), series, horizon, season, test, validation,
        columns.past, columns.future, columns.static, (*read.notes, *_far(series, path)), id_column, time_column,
        () if isinstance(target, str) else target,
    )  # fmt: skip


def _far(series: Sequence[Series], path: Path) -> Iterator[str]:
    """Which values lie far from all others of their series, as a -9999 that stands for a missing one does."""
    wild = []
    for each in series:
        low, high = bulk(each.y)
        steps = np.flatnonzero((each.y < low) | (each.y > high))
        wild += [(each, low, high, steps)] if len(steps) else []
    if wild:
        each, low, high, steps = wild[0]
        count = sum(len(found) for *_, found in wild)
        lie = "1 value lies" if count == 1 else f"{count} values lie"
        yield (
            f"{lie} far from the others of the series; the first is {each.y[steps[0]]:.9g}, in step {steps[0] + 1} of "
            f"series {each.id!r} in {path.name}, whose others are {low:.6g} to {high:.6g}. Such values decide the "
            "scale of a series: put others in the place of those that mean missing"
        )
