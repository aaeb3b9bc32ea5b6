"""Forecasts of what has not come yet: from the end of each series of a file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.forecast.model import TrainedForecaster, forecast
from anyrnn.workbench.forecast.series import Series
from anyrnn.workbench.forecast.table import SeriesColumns, SeriesRows, read_series
from anyrnn.workbench.forecast.train import Scaled


@dataclass(frozen=True)
class Ahead:
    """Forecasts behind the ends of series.

    Attributes:
        ids: The series.
        times: Of each series the times of the steps, as far as they are known (else "").
        values: (N, h, outputs), rising: the quantiles, or the mean.
        levels: The levels of the quantiles; () for the mean.
        notes: What reading took for granted.
    """

    ids: tuple[str, ...]
    times: tuple[tuple[str, ...], ...]
    values: NDArray[np.float64]
    levels: tuple[float, ...]
    notes: tuple[str, ...]

    def csv(self) -> str:
        """As CSV: id, step, time, forecast, and a column for each quantile."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        others = [f"q{level:g}" for level in self.levels] if len(self.levels) > 1 else []
        middle = self.levels.index(0.5) if self.levels else 0
        writer.writerow(("id", "step", "time", "forecast", *others))
        for name, times, steps in zip(self.ids, self.times, self.values, strict=True):
            for k, (time, numbers) in enumerate(zip(times, steps.tolist(), strict=True)):
                written = [f"{value:.9g}" for value in numbers]
                writer.writerow((name, k + 1, time, written[middle], *(written if others else ())))
        return file.getvalue()


def predict(
    model: TrainedForecaster,
    source: str | Path,
    columns: SeriesColumns | None = None,
    *,
    encoding: str | None = None,
) -> Ahead:
    """Forecast from the end of each series of a file.

    Args:
        model: A trained forecaster.
        source: The path of a .csv or .parquet file.
        columns: Its columns; None: those of the table that the model was trained on.
        encoding: The name of that of a text file; None: UTF-8.

    Raises:
        AnyRNNError: if the file does not fit the model, or lacks the rows that say what is known ahead.
    """
    if columns is None:
        target = model.target_columns or model.target
        columns = SeriesColumns(model.id_column, model.time_column, target, *model.names)
    table = read_series(Path(source), columns, encoding)
    h, F = model.module.form.horizon, len(columns.future)
    for each in table.series:
        if F and len(each.future) < len(each.y) + h:
            rows = len(each.future) - len(each.y)
            raise AnyRNNError(
                f"{source}: series {each.id!r} has {rows} rows behind its last value, expected {h}, the horizon, which "
                f"say what {', '.join(columns.future)} will be"
            )
    if not F:  # nothing is known ahead, and nothing is asked for: steps without features
        future = [np.empty((len(each.y) + h, 0)) for each in table.series]
    else:
        future = [each.future for each in table.series]
    series = [
        Series(each.id, each.y, each.past, ahead, each.static) for each, ahead in zip(table.series, future, strict=True)
    ]
    values = forecast_ahead(model, series)
    times = tuple(_times(each, h, columns.time) for each in table.series)
    return Ahead(tuple(each.id for each in series), times, values, model.module.form.levels, table.notes)


def forecast_ahead(model: TrainedForecaster, series: Sequence[Series]) -> NDArray[np.float64]:
    """Forecast from the end of series: (N, h, outputs), rising. Their `future` reaches h steps beyond it.

    A series is scaled by the mean and deviation of all its values. One shorter than the context is read as it is.
    """
    scaled = Scaled(series, [len(each) for each in series], model.scale)
    said = torch.cat([_one(model, scaled, k, len(each)) for k, each in enumerate(series)])
    return scaled.unscaled(said.sort(dim=-1).values, np.arange(len(series)))


@torch.no_grad()
def _one(model: TrainedForecaster, scaled: Scaled, k: int, length: int) -> torch.Tensor:
    """The forecast of one series, which may be shorter than the context."""
    windows = scaled.windows([(k, length)], min(model.context, length), model.module.form.horizon)
    return forecast(model.module.eval(), windows)


def _times(rows: SeriesRows, h: int, time: str | None) -> tuple[str, ...]:
    """The times of the next steps: those of the rows that are there already, else as far apart as the steps so far."""
    count = len(rows.y)
    written = [_text(value) for value in rows.times[count : count + h]] if time else []
    known: list[Any] = rows.times.to_list()
    if time and len(written) < h and len(known) > 1:
        gaps = {b - a for a, b in pairwise(known)}
        if len(gaps) == 1:
            (gap,) = gaps
            written += [_text(known[-1] + gap * k) for k in range(1, h - len(written) + 1)]
    return tuple(written + [""] * (h - len(written)))


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return f"{value:g}" if isinstance(value, float) else str(value)
