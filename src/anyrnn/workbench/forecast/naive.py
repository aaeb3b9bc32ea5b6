"""Forecasts that any network has to beat: they repeat, or go on as on average."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from anyrnn.workbench.forecast.series import Forecasting, Origins

Array = NDArray[np.float64]


def naive(data: Forecasting, origins: Origins) -> Array:
    """The last value again and again: (N, h)."""
    last = np.array([data.series[k].y[o - 1] for k, o in data.pairs(origins)])
    return np.repeat(last[:, None], data.horizon, axis=1)


def seasonal_naive(data: Forecasting, origins: Origins) -> Array:
    """The values of the last season again and again: (N, h). Step k of a forecast is y[o - m + k mod m]."""
    steps = np.arange(data.horizon) % data.season - data.season
    return np.stack([data.series[k].y[o + steps] for k, o in data.pairs(origins)])


def drift(data: Forecasting, origins: Origins) -> Array:
    """On along the line through the first value and the last one: (N, h)."""
    ahead = np.arange(1, data.horizon + 1)
    known = [data.series[k].y[:o] for k, o in data.pairs(origins)]
    return np.stack([y[-1] + ahead * (y[-1] - y[0]) / (len(y) - 1) for y in known])


def mean(data: Forecasting, origins: Origins) -> Array:
    """The mean of a series' training part: (N, h)."""
    means = np.array([series.y[: data.train_end(series)].mean() for series in data.series])
    return np.repeat(means[origins.series][:, None], data.horizon, axis=1)


def baselines(season: int) -> Mapping[str, Callable[[Forecasting, Origins], Array]]:
    """By name, the baselines; a seasonal one where there is a season."""
    found = {"naive": naive, "drift": drift, "training mean": mean}
    return {f"seasonal naive ({season})": seasonal_naive, **found} if season > 1 else found
