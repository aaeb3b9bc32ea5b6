"""Train one forecaster once, and forecast from the origins of a part.

The recipe: windows are drawn from the training parts, all equally likely; from the middle of a window on, the steps
after every position are forecast (Wen et al., 2017: forking sequences). Adam, whose learning rate rises over the first
updates and falls to zero as a cosine does; gradients are clipped. After every epoch forecasts from the origins of the
validation part are scored, and training ends once they have not become better for some epochs; the weights are those
of the best one. The test part decides nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.course import Course
from anyrnn.workbench.forecast.metrics import by_step, mase_scales, point_metrics, quantile_metrics
from anyrnn.workbench.forecast.model import (
    HEADS,
    Forecaster,
    Form,
    Head,
    TrainedForecaster,
    Windows,
    build,
    check_levels,
    forecast,
    losses,
)
from anyrnn.workbench.forecast.naive import naive, seasonal_naive
from anyrnn.workbench.forecast.series import Forecasting, Origins, Series
from anyrnn.workbench.models import Network
from anyrnn.workbench.train import seeded, using_threads

Array = NDArray[np.float64]

_CHUNK = 512  # windows a call when forecasting: bounds the memory, changes no result
_UPDATES = (20, 200)  # of an epoch: the fewest and the most
_LEAST_CONTEXT = 48  # steps, where the series have so many


@dataclass(frozen=True)
class ForecastSettings:
    """The budget of a training run, the same for every network of a comparison.

    Attributes:
        hidden_size: H, the units of the recurrent layer.
        context: L, the steps that are read before a forecast. None: two seasons or two horizons, whichever is more, 48
            at least, as far as the series go.
        head: "direct" or "recursive": see `Form`.
        quantiles: The levels of the quantiles that are forecast, 0.5 among them; () trains the mean by squared errors.
        epochs: The most epochs, each of 20 to 200 updates.
        patience: After how many epochs without a better validation score training ends.
        batch_size: Windows an update.
        learning_rate: Its peak.
        clip_norm: The norm that gradients are cut to.
        dropout: Between the layer and the head.
        threads: CPU threads. None: 1, since the steps of a forecaster are small.
        layers: One upon the other, of each network that does not say so itself, as "lstm-2" does.

    Raises:
        AnyRNNError: for a value that is none of these.
    """

    hidden_size: int = 64
    context: int | None = None
    head: Head = "direct"
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    epochs: int = 30
    patience: int = 5
    batch_size: int = 64
    learning_rate: float = 0.003
    clip_norm: float = 1.0
    dropout: float = 0.0
    threads: int | None = None
    layers: int = 1

    def __post_init__(self) -> None:
        for name in ("hidden_size", "context", "epochs", "patience", "batch_size", "threads", "layers"):
            value = getattr(self, name)
            if (not isinstance(value, int) or value < 1) and not (name in ("context", "threads") and value is None):
                raise AnyRNNError(f"settings: got {name}={value!r}, expected an int of at least 1")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise AnyRNNError(f"settings: got {name}={value!r}, expected a number above 0")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise AnyRNNError(f"settings: got dropout={self.dropout!r}, expected a share from 0 to below 1")
        if self.head not in HEADS:
            raise AnyRNNError(f"settings: got head={self.head!r}, expected one of {', '.join(HEADS)}")
        check_levels(self.quantiles)

    def context_for(self, data: Forecasting) -> int:
        """L for these series."""
        least = min(map(data.train_end, data.series))
        longest = least - (data.horizon if self.head == "direct" else 1)
        wanted = self.context or max(2 * data.season, 2 * data.horizon, _LEAST_CONTEXT)
        return max(1, min(wanted, longest))


@dataclass(frozen=True)
class ForecastEpoch:
    """One point of a learning curve: mean losses of scaled values, counted from epoch 1."""

    epoch: int
    train_loss: float
    validation_loss: float


@dataclass(frozen=True)
class ForecastRun:
    """What one training run gave.

    Attributes:
        seed: Of the initial weights and the windows.
        epoch: The one whose weights were kept: that with the best validation loss.
        base: What forecasts are differences from: "naive" or "seasonal naive", the better one on validation.
        metrics: On the test part, by name.
        by_step: Of each step of the forecast the errors, by name: see `metrics.by_step`.
        seconds: Spent on training; scoring is not in it.
        history: The learning curve.
        forecasts: The forecasts of the test part (N, h), and its quantiles (N, h, Q), as read, not scaled.
    """

    seed: int
    epoch: int
    base: str
    metrics: dict[str, float]
    by_step: Mapping[str, tuple[float, ...]]
    seconds: float
    history: tuple[ForecastEpoch, ...]
    forecasts: Array
    quantiles: Array


class Scaled:
    """Series as a network reads them, and back.

    Args:
        series: The series.
        ends: How many steps of each its scale is fitted to: those of training.
        scale: Mean and deviation of the covariates; None: measured on the same steps.
    """

    def __init__(
        self,
        series: Sequence[Series],
        ends: Sequence[int],
        scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        known = [each.y[:end] for each, end in zip(series, ends, strict=True)]
        self.mean = np.array([y.mean() for y in known])
        deviation = np.array([y.std() for y in known])
        # A series that is constant in training has no scale: that of its size keeps what comes in bounds.
        self.std = np.where(deviation > 0, deviation, np.maximum(np.abs(self.mean), 1.0))
        if scale is None:
            rows = [(s.past[:end], s.future[:end]) for s, end in zip(series, ends, strict=True)]
            columns = (
                np.concatenate([past for past, _ in rows]),
                np.concatenate([future for _, future in rows]),
                np.stack([s.static for s in series]),
            )
            means = np.concatenate([c.mean(0) for c in columns])
            stds = np.concatenate([c.std(0) for c in columns])
            scale = tuple(means.tolist()), tuple(np.where(stds > 0, stds, 1.0).tolist())
        self.scale = scale
        mean, std = map(np.array, scale)
        self.y = [_tensor((s.y - m) / d) for s, m, d in zip(series, self.mean, self.std, strict=True)]
        P, F = series[0].past.shape[1], series[0].future.shape[1]
        cuts = slice(0, P), slice(P, P + F), slice(P + F, None)
        parts = [(s.past, s.future, s.static) for s in series]
        self.past, self.future, self.static = (
            [_tensor((each[k] - mean[cut]) / std[cut]) for each in parts] for k, cut in enumerate(cuts)
        )

    def windows(self, pairs: Sequence[tuple[int, int]], context: int, horizon: int) -> Windows:
        """The windows that end before an origin, each of `context` steps, and what is known ahead."""
        return Windows(
            y=torch.stack([self.y[k][o - context : o] for k, o in pairs], dim=1),
            past=torch.stack([self.past[k][o - context : o] for k, o in pairs], dim=1),
            future=torch.stack([self.future[k][o - context : o + horizon] for k, o in pairs], dim=1),
            static=torch.stack([self.static[k] for k, _ in pairs]),
        )

    def unscaled(self, said: Tensor, series: NDArray[np.int64]) -> Array:
        """Forecasts (N, h, outputs) of windows of these series, as their values were read."""
        values: Array = said.double().numpy() * self.std[series][:, None, None] + self.mean[series][:, None, None]
        return values


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


@torch.no_grad()
def forecasts(model: Forecaster, scaled: Scaled, origins: Origins, context: int) -> Tensor:
    """Forecast from origins, scaled: (N, h, outputs). Quantiles are put in order (Chernozhukov et al., 2010)."""
    was_training = model.training
    model.eval()
    pairs = list(Forecasting.pairs(origins))
    found = [
        forecast(model, scaled.windows(pairs[first : first + _CHUNK], context, model.form.horizon))
        for first in range(0, len(pairs), _CHUNK)
    ]
    model.train(was_training)
    return torch.cat(found).sort(dim=-1).values


def train(
    network: Network,
    data: Forecasting,
    settings: ForecastSettings,
    seed: int,
    on_epoch: Callable[[ForecastEpoch, bool], None] | None = None,
) -> tuple[TrainedForecaster, ForecastRun]:
    """Train a network on the training parts of series, and score it on their test parts, if they have some.

    The same seed, thread count and machine give the same weights, bit for bit. The caller's random state and number
    of threads are left as they were. `on_epoch` hears of each epoch, and whether the run ends with it.

    Raises:
        AnyRNNError: if the loss stops being a finite number.
    """
    with seeded(seed), using_threads(settings.threads or 1):
        return _train(network, data, settings, seed, on_epoch or (lambda epoch, ended: None))


def form_of(data: Forecasting, settings: ForecastSettings) -> tuple[Form, str]:
    """What a forecaster of these series reads and says, and the name of the base of its forecasts."""
    validation = data.origins("validation")
    truth = data.truth(validation)
    base, name = 1, "naive"
    if data.season > 1 and settings.context_for(data) >= data.season:
        errors = [np.abs(truth - guess(data, validation)).mean() for guess in (naive, seasonal_naive)]
        if errors[1] < errors[0]:
            base, name = data.season, "seasonal naive"
    covariates = (len(data.past_names), len(data.future_names), len(data.static_names))
    return Form(data.horizon, *covariates, settings.quantiles, settings.head, base), name


def _train(
    network: Network,
    data: Forecasting,
    settings: ForecastSettings,
    seed: int,
    on_epoch: Callable[[ForecastEpoch, bool], None],
) -> tuple[TrainedForecaster, ForecastRun]:
    form, base = form_of(data, settings)
    module = build(network, form, settings.hidden_size, settings.dropout, settings.layers)
    context = settings.context_for(data)
    ends = [data.train_end(series) for series in data.series]
    scaled = Scaled(data.series, ends)
    validation = data.origins("validation")
    truth = _scaled_truth(data, scaled, validation)
    training = _Training(module, scaled, ends, context, settings, seed)
    course: Course[ForecastEpoch] = Course(settings.epochs, settings.patience)
    while not course.ended:
        loss = training.epoch()
        score = _loss(form, forecasts(module, scaled, validation, context), truth)
        if not (math.isfinite(loss) and math.isfinite(score)):
            raise AnyRNNError(
                f"{network.name}, seed {seed}: training diverged in epoch {course.next}: the mean loss is {loss}; "
                f"expected finite numbers; a lower learning rate than {settings.learning_rate} may help"
            )
        course.add(ForecastEpoch(course.next, loss, score), (-score,), module)
        on_epoch(course.history[-1], course.ended)
    kept, history = course.take_best(module), course.history
    module.eval()
    names = (data.past_names, data.future_names, data.static_names)
    model = TrainedForecaster(
        network, settings.hidden_size, context, module, data.target, names, scaled.scale, seed, data.id_column,
        data.time_column, data.target_columns,
    )  # fmt: skip
    run = ForecastRun(seed, kept, base, {}, {}, training.seconds, tuple(history), np.empty(0), np.empty(0))
    if not data.test_steps:
        return model, run
    test = data.origins("test")
    values = scaled.unscaled(forecasts(module, scaled, test, context), test.series)
    middle = settings.quantiles.index(0.5) if settings.quantiles else 0
    point, y = values[..., middle], data.truth(test)
    metrics = point_metrics(y, point, mase_scales(data, test))
    if len(settings.quantiles) > 1:
        metrics |= quantile_metrics(y, values, settings.quantiles)
    return model, replace(run, metrics=metrics, by_step=by_step(y, point), forecasts=point, quantiles=values)


def _scaled_truth(data: Forecasting, scaled: Scaled, origins: Origins) -> Tensor:
    values = (data.truth(origins) - scaled.mean[origins.series][:, None]) / scaled.std[origins.series][:, None]
    return _tensor(values)


def _loss(form: Form, said: Tensor, truth: Tensor) -> float:
    """The loss of forecasts (N, h, outputs)."""
    error = (truth.unsqueeze(-1) - said).double()
    if not form.levels:
        return float(error.square().mean())
    level = error.new_tensor(form.levels)
    return float(2 * torch.maximum(level * error, (level - 1) * error).mean())


class _Training:
    """A training run: what it updates, and how far it is.

    Attributes:
        seconds: Spent so far.
    """

    def __init__(
        self,
        model: Forecaster,
        scaled: Scaled,
        ends: Sequence[int],
        context: int,
        settings: ForecastSettings,
        seed: int,
    ) -> None:
        self.model, self.scaled, self.settings, self.seconds = model, scaled, settings, 0.0
        self.steps = model.form.steps
        self.length = min(2 * context, min(ends) - self.steps)
        self.first = min(context, self.length) - 1
        self.ends, self.draws = np.array(ends), np.random.default_rng(seed)
        self.places = np.cumsum(self.ends - self.steps - self.length + 1)  # where each series' windows end in a list
        forks = int(self.places[-1]) / max(1, settings.batch_size * (self.length - self.first))
        self.updates = min(_UPDATES[1], max(_UPDATES[0], math.ceil(forks)))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        every, warm = settings.epochs * self.updates, min(50, self.updates)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda k: min(1, (k + 1) / warm) * (1 + math.cos(math.pi * min(1, k / every))) / 2
        )

    def epoch(self) -> float:
        """Draw windows and learn from them: the mean loss."""
        model, start, total = self.model, time.perf_counter(), 0.0
        model.train()
        for pairs in self._drawn():
            windows = self.scaled.windows(pairs, self.length, model.form.horizon)
            later = torch.stack([self.scaled.y[k][o : o + self.steps] for k, o in pairs], dim=1)
            loss = losses(model, windows, later, self.first)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            total += loss.item()
        self.seconds += time.perf_counter() - start
        return total / self.updates

    def _drawn(self) -> Iterator[list[tuple[int, int]]]:
        """For each update the series of its windows, and where they end."""
        for _ in range(self.updates):
            places = self.draws.integers(0, self.places[-1], self.settings.batch_size)
            series = np.searchsorted(self.places, places, side="right")
            start = places - (self.places[series] - (self.ends[series] - self.steps - self.length + 1))
            yield list(zip(series.tolist(), (start + self.length).tolist(), strict=True))
