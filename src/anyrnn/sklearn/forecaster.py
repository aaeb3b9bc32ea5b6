"""How series go on: scikit-learn's interface around the workbench's forecasters."""

from dataclasses import asdict, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from anyrnn.errors import AnyRNNError
from anyrnn.sklearn.estimators import ONE_AT_A_TIME, Cell, network_of, plain, seed_of, threads_of
from anyrnn.workbench.forecast.metrics import point_metrics
from anyrnn.workbench.forecast.model import Head
from anyrnn.workbench.forecast.predict import forecast_ahead
from anyrnn.workbench.forecast.series import Forecasting, Series
from anyrnn.workbench.forecast.train import ForecastSettings, train
from anyrnn.workbench.lesson import using_threads
from anyrnn.workbench.plain import as_numpy

Array = NDArray[np.float64]

_FORMS = "an array (T,) of one series, an array (n, T) with a series in each row, or a list of n arrays (T_i,)"


class RecurrentForecaster(BaseEstimator):
    """A recurrent network that says how series go on: the next `horizon` values of each.

    A forecast has no table X and target y apart: `fit`, `predict` and `score` take series, an array (T,), an array
    (n, T) with a series in each row, or a list of n arrays (T_i,) for series of their own lengths. In this form
    ``cross_val_score`` and ``GridSearchCV`` work with ``TimeSeriesSplit`` on one series, and with ``KFold`` on several.
    One network learns from all series, and forecasts others, too. Series with covariates: `anyrnn.workbench.forecast`.

    Args:
        cell: The name of a network that reads in one direction, or the class of a cell of your own, or a function:
            see `RecurrentClassifier`.
        horizon: h, how many steps to forecast.
        season: m, the steps of a season, such as 24 for hours; 1 if there is none. Forecasts are learned as what is to
            be added to the last season, or to the last value, whichever is the better naive forecast.
        validation_steps: The steps at the end of each series that are not trained on, and choose the epoch. None: a
            fifth of the shortest series, and one forecast at least.
        hidden_size: H, the units of the recurrent layer.
        context: L, the steps that are read before a forecast. None: two seasons or two horizons, whichever is more, 48
            at least, as far as the series go.
        head: "direct" forecasts all steps at once, "recursive" one after the other, reading its own answers.
        quantiles: The levels that `predict_quantiles` gives, 0.5 among them, which is what `predict` gives; ()
            forecasts the mean.
        epochs: The most epochs, each of 20 to 200 updates.
        patience: Epochs without a better validation loss after which training ends.
        batch_size: Windows an update.
        learning_rate: Its peak.
        clip_norm: The norm that gradients are cut to.
        dropout: Between the layer and the head.
        n_jobs: CPU threads. None: 1, since the steps are small; -1: all.
        random_state: Of the initial weights and the windows: see `RecurrentClassifier`.

    Attributes:
        n_iter_: The epochs of training.
        best_epoch_: The one whose weights were kept.
        history_: For each epoch a dict: "epoch", "train_loss" and "validation_loss", of scaled values.
        model_: The trained forecaster of the workbench; ``model_.module`` is the torch module.

    Example:
        >>> import numpy as np
        >>> from anyrnn.sklearn import RecurrentForecaster
        >>> y = np.sin(np.arange(200) * 2 * np.pi / 12)
        >>> model = RecurrentForecaster("gru", horizon=6, season=12, hidden_size=8, epochs=2, random_state=0).fit(y)
        >>> model.predict().shape, model.predict_quantiles().shape
        ((6,), (6, 3))
    """

    def __init__(
        self,
        cell: Cell = "lstm",
        *,
        horizon: int = 1,
        season: int = 1,
        validation_steps: int | None = None,
        hidden_size: int = 64,
        context: int | None = None,
        head: Head = "direct",
        quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
        epochs: int = 30,
        patience: int = 5,
        batch_size: int = 64,
        learning_rate: float = 0.003,
        clip_norm: float = 1.0,
        dropout: float = 0.0,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.cell = cell
        self.horizon = horizon
        self.season = season
        self.validation_steps = validation_steps
        self.hidden_size = hidden_size
        self.context = context
        self.head = head
        self.quantiles = quantiles
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.dropout = dropout
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Train on series.

        Args:
            X: The series: see above.
            y: Has to be None; it stands here since scikit-learn's own functions name it.

        Raises:
            ValueError: for series that are too short, hold NaN, or cannot be used otherwise; the message says why.
        """
        if y is not None:
            raise AnyRNNError("RecurrentForecaster: got a y, expected the series as X, and nothing else: fit(series)")
        if not isinstance(self.quantiles, tuple | list | np.ndarray):
            raise AnyRNNError(
                f"RecurrentForecaster: got quantiles={self.quantiles!r}, expected a tuple of levels, or ()"
            )
        given = {
            field.name: getattr(self, field.name) for field in fields(ForecastSettings) if hasattr(self, field.name)
        }
        values = {name: plain(value) for name, value in given.items()} | {"quantiles": tuple(self.quantiles)}
        settings = ForecastSettings(**values, threads=threads_of(self.n_jobs))
        known, self._one_series = _read(X)
        horizon, season, shortest = plain(self.horizon), plain(self.season), min(map(len, known))
        for name, value in (("horizon", horizon), ("season", season)):
            if not isinstance(value, int) or value < 1:
                raise AnyRNNError(f"RecurrentForecaster: got {name}={value!r}, expected an int of at least 1")
        fifth = max(1, horizon, min(shortest // 5, shortest - horizon - max(season + 1, 2)))
        validation = fifth if self.validation_steps is None else plain(self.validation_steps)
        series = tuple(_series(each, k, 0) for k, each in enumerate(known))
        data = Forecasting("RecurrentForecaster", "y", series, horizon, season, 0, validation)
        with ONE_AT_A_TIME:
            seed = seed_of(self.random_state)
            self.model_, run = train(network_of(self.cell, type(self).__name__), data, settings, seed)
        self.history_ = [
            {key: value for key, value in asdict(epoch).items() if value is not None} for epoch in run.history
        ]
        self.n_iter_, self.best_epoch_ = len(run.history), run.epoch
        self._known, self._season = known, season
        return self

    def predict(self, X: Any = None) -> Array:
        """The next `horizon` values: (h,) of one series, (n, h) of several.

        Args:
            X: The series to go on with; those of `fit` if None.
        """
        values = self.predict_quantiles(X)
        levels = self.model_.module.form.levels
        middle: Array = values[..., levels.index(0.5) if levels else 0]
        return middle

    def predict_quantiles(self, X: Any = None) -> Array:
        """The quantiles of the next values, rising: (h, Q) of one series, (n, h, Q) of several; the mean without any.

        Args:
            X: The series to go on with; those of `fit` if None.
        """
        check_is_fitted(self)
        known, one = (self._known, self._one_series) if X is None else _read(X)
        values = self._ahead(known)
        return values[0] if one else values

    def score(self, X: Any, y: None = None) -> float:
        """How good forecasts of the last `horizon` values of each series are, from those before them.

        Returns:
            The MASE with its sign turned, so that more is better: the mean absolute error over that of seasonal naive
            forecasts of one step within the values before. Above -1 is better than those.
        """
        check_is_fitted(self)
        horizon, season = self.model_.module.form.horizon, self._season
        whole, _ = _read(X)
        least = horizon + season + 1
        short = next((k for k, each in enumerate(whole) if len(each) < least), None)
        if short is not None:
            raise AnyRNNError(
                f"RecurrentForecaster: series {short} has {len(whole[short])} steps, expected at least {least} to "
                f"score: horizon={horizon} to forecast, and a season and one step before"
            )
        known = [each[:-horizon] for each in whole]
        changes = np.array([np.abs(each[season:] - each[:-season]).mean() for each in known])
        scales = np.where(changes > 0, changes, np.nan)
        levels = self.model_.module.form.levels
        said = self._ahead(known)[..., levels.index(0.5) if levels else 0]
        return -point_metrics(np.stack([each[-horizon:] for each in whole]), said, scales)["mase"]

    def _ahead(self, known: list[Array]) -> Array:
        horizon = self.model_.module.form.horizon
        series = [_series(each, k, horizon) for k, each in enumerate(known)]
        with ONE_AT_A_TIME, using_threads(threads_of(self.n_jobs) or 1):
            return forecast_ahead(self.model_, series)


def _series(y: Array, number: int, ahead: int) -> Series:
    """A series without covariates, as many steps of which are known ahead."""
    return Series(str(number), y, np.empty((len(y), 0)), np.empty((len(y) + ahead, 0)), np.empty(0))


def _read(X: Any) -> tuple[list[Array], bool]:
    """The series of X as arrays (T_i,), and whether it is one series and not a list of one."""
    if hasattr(X, "columns"):
        raise AnyRNNError(
            "RecurrentForecaster: got a frame, whose columns may be series or something else; expected an array: "
            "frame['y'].to_numpy() for one series, frame.to_numpy().T for one in each column"
        )
    rows = X if isinstance(X, list | tuple) else as_numpy("X", X)
    one = len(rows) > 0 and np.ndim(rows[0]) == 0
    found = [_row(row, k) for k, row in enumerate([rows] if one else rows)]
    if not found:
        raise AnyRNNError(f"RecurrentForecaster: got no series, expected {_FORMS}")
    return found, one


def _row(row: Any, number: int) -> Array:
    try:
        values = np.asarray(as_numpy("X", row), dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise AnyRNNError(
            f"RecurrentForecaster: series {number} is no array of numbers: {cause}; expected {_FORMS}"
        ) from cause
    if values.ndim != 1 or len(values) < 2:
        hint = "; a series of shape (T, 1) is given as (T,)" if values.shape == (1,) or values.ndim == 2 else ""
        raise AnyRNNError(
            f"RecurrentForecaster: series {number} has shape {values.shape}, expected (T,) of at least two steps: "
            f"{_FORMS}{hint}"
        )
    if not np.isfinite(values).all():
        step = int(np.argmin(np.isfinite(values)))
        raise AnyRNNError(
            f"RecurrentForecaster: series {number} holds NaN or infinity, first at step {step}; expected finite "
            "numbers: fill or drop them first"
        )
    return values
