"""How good forecasts are. y and forecasts are (N, h), quantiles (N, h, Q)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anyrnn.workbench.forecast.series import Forecasting, Origins
from anyrnn.workbench.metrics import rms
from anyrnn.workbench.sequences import moments

Array = NDArray[np.float64]

#: Of each metric, what it is.
METRICS = {
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "mase": "mean absolute error, of each series over that of seasonal naive forecasts of one step before its test "
    "part (Hyndman and Koehler, 2006), as in the M4 competition",
    "smape": "200 |y - f| / (|y| + |f|), the mean, in percent, as in the M4 competition; 0 where both are 0",
    "wape": "the sum of absolute errors over the sum of absolute values",
    "rrse": "root mean squared error over the deviation of all values of the test, as LSTNet's tables have it; with "
    "1 forecasts are as good as the mean of the test would be",
    "pinball": "mean quantile loss, twice, so that at the median it is the absolute error",
    "coverage": "the share of values between the lowest and the highest quantile",
}


def point_metrics(y: Array, forecast: Array, scales: Array) -> dict[str, float]:
    """The metrics of forecasts of one number each.

    Args:
        y: What came.
        forecast: What was said.
        scales: What MASE divides by (N,), see `mase_scales`; NaN for series that have none, which are left out.
    """
    error = np.abs(y - forecast)
    both = np.abs(y) + np.abs(forecast)
    total = np.abs(y).sum()
    scaled = error.mean(1) / scales
    return {
        "mae": float(error.mean()),
        "rmse": rms(error),
        "mase": float(scaled[np.isfinite(scaled)].mean()) if np.isfinite(scaled).any() else float("nan"),
        "smape": float(200 * np.divide(error, both, out=np.zeros_like(error), where=both > 0).mean()),
        "wape": float(error.sum() / total) if total else float("nan"),
        "rrse": _rrse(y, forecast),
    }


def by_step(y: Array, forecast: Array) -> dict[str, tuple[float, ...]]:
    """Of each step of the forecast the mean absolute error, and the root relative squared one."""
    return {
        "mae": tuple(np.abs(y - forecast).mean(0).tolist()),
        "rrse": tuple(_rrse(y[:, k], forecast[:, k]) for k in range(y.shape[1])),
    }


def _rrse(y: Array, forecast: Array) -> float:
    return rms(y - forecast) / moments(y.ravel())[1] if y.min() < y.max() else float("nan")


def quantile_metrics(y: Array, quantiles: Array, levels: Sequence[float]) -> dict[str, float]:
    """The metrics of quantiles (N, h, Q) at these levels, which rise."""
    error = y[..., None] - quantiles
    level = np.asarray(levels)
    loss = 2 * np.maximum(level * error, (level - 1) * error)
    inside = (y >= quantiles[..., 0]) & (y <= quantiles[..., -1])
    return {"pinball": float(loss.mean()), "coverage": float(inside.mean())}


def mase_scales(data: Forecasting, origins: Origins) -> Array:
    """For each window the mean absolute change over a season before the test part of its series; NaN if it is 0."""
    scales = []
    for series in data.series:
        y = series.y[: len(series) - data.test_steps]
        change = float(np.abs(y[data.season :] - y[: -data.season]).mean())
        scales.append(change if change > 0 else float("nan"))
    return np.array(scales)[origins.series]
