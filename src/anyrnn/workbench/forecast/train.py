"""Train one forecaster once, and forecast from the origins of a part.

The recipe: windows are drawn from the training parts, all equally likely; from the middle of a window on, the steps
after every position are forecast (Wen et al., 2017: forking sequences). Adam, whose learning rate rises over the first
updates and falls to zero as a cosine does; gradients are clipped. After every epoch forecasts from the origins of the
validation part are scored, and training ends once they have not become better for some epochs; the weights are those
of the best one. The test part decides nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import Checkpoints
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
from anyrnn.workbench.lesson import Epoch, Lesson, Tell
from anyrnn.workbench.models import Network
from anyrnn.workbench.schedules import Rate
from anyrnn.workbench.sequences import moments
from anyrnn.workbench.training import Training

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

    def resolved(self, data: Forecasting) -> Self:
        """These settings for some series, with nothing left open that these decide."""
        return replace(self, context=self.context_for(data), threads=self.thread_count)

    @property
    def thread_count(self) -> int:
        """The number of threads."""
        return self.threads or 1

    def context_for(self, data: Forecasting) -> int:
        """L for these series."""
        least = min(map(data.train_end, data.series))
        longest = least - (data.horizon if self.head == "direct" else 1)
        if self.context is not None and self.context > longest > 0:
            raise AnyRNNError(
                f"settings: got context={self.context}, expected at most {longest}: the shortest training part has "
                f"{least} steps"
            )
        wanted = self.context or max(2 * data.season, 2 * data.horizon, _LEAST_CONTEXT)
        return max(1, min(wanted, longest))


@dataclass(frozen=True)
class ForecastRun:
    """What one training run gave.

    Attributes:
        seed: Of the initial weights and the windows.
        epoch: The one whose weights were kept: that with the best validation loss.
        base: What forecasts are differences from: "naive" or "seasonal naive", the better one on validation.
        score: What networks are compared by, on the test part; NaN without one.
        scores: All that is measured there, by name.
        by_step: Of each step of the forecast the errors, by name: see `metrics.by_step`.
        seconds: Spent on training; scoring is not in it.
        history: The learning curve.
        forecasts: The forecasts of the test part (N, h), and its quantiles (N, h, Q), as read, not scaled.
    """

    seed: int
    epoch: int
    base: str
    score: float
    scores: dict[str, float]
    by_step: Mapping[str, tuple[float, ...]]
    seconds: float
    history: tuple[Epoch, ...]
    forecasts: Array
    quantiles: Array

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it: without the forecasts."""
        return {name: value for name, value in asdict(self).items() if name not in ("forecasts", "quantiles")}


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
        self.mean, deviation = np.array([moments(y) for y in known]).T
        # A series that is constant in training has no scale: that of its size keeps what comes in bounds.
        varies = np.array([y.min() < y.max() for y in known])
        self.std = np.where(varies, deviation, np.maximum(np.abs(self.mean), 1.0))
        if scale is None:
            rows = [(s.past[:end], s.future[:end]) for s, end in zip(series, ends, strict=True)]
            columns = (
                np.concatenate([past for past, _ in rows]),
                np.concatenate([future for _, future in rows]),
                np.stack([s.static for s in series]),
            )
            measured = [moments(column) for each in columns for column in each.T]
            scale = tuple(mean for mean, _ in measured), tuple(deviation for _, deviation in measured)
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
    on_epoch: Tell | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[TrainedForecaster, ForecastRun]:
    """Train a network on the training parts of series, and score it on their test parts, if they have some.

    See `anyrnn.workbench.lesson.Lesson.train`.
    """
    return ForecastLesson(data, settings.resolved(data)).train(network, seed, on_epoch, checkpoints)


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


@dataclass(frozen=True)
class ForecastLesson(Lesson[Forecasting, ForecastSettings, TrainedForecaster, ForecastRun]):
    """How series go on.

    Attributes:
        score: The name of what networks are compared by.
    """

    score: str = "mase"
    plural = "windows"

    @property
    def metric(self) -> str:
        """The name of what networks are compared by."""
        return self.score

    @cached_property
    def form(self) -> tuple[Form, str]:
        """What a forecaster reads and says, and the name of the base of its forecasts."""
        return form_of(self.dataset, self.settings)

    @cached_property
    def scaled(self) -> "Scaled":
        """The series as a network reads them."""
        return Scaled(self.dataset.series, [self.dataset.train_end(series) for series in self.dataset.series])

    def untrained(self, network: Network, seed: int) -> TrainedForecaster:
        """The model before training."""
        data, settings = self.dataset, self.settings
        return TrainedForecaster(
            network=network,
            hidden_size=settings.hidden_size,
            context=settings.context_for(data),
            module=build(network, self.form[0], settings.hidden_size, settings.dropout, settings.layers),
            target=data.target,
            names=(data.past_names, data.future_names, data.static_names),
            scale=self.scaled.scale,
            seed=seed,
            id_column=data.id_column,
            time_column=data.time_column,
            target_columns=data.target_columns,
        )

    def training(self, network: Network, seed: int) -> "_Training":
        """A training run."""
        return _Training(self, network, seed)


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


class _Training(Training[TrainedForecaster, ForecastRun]):
    """A training run."""

    def __init__(self, lesson: ForecastLesson, network: Network, seed: int) -> None:
        settings, model = lesson.settings, lesson.untrained(network, seed)
        self.lesson, self.data, self.scaled, self.context = lesson, lesson.dataset, lesson.scaled, model.context
        self.validation = self.data.origins("validation")
        self.truth = _scaled_truth(self.data, self.scaled, self.validation)
        ends = [self.data.train_end(series) for series in self.data.series]
        self.steps = model.module.form.steps
        self.length = min(2 * self.context, min(ends) - self.steps)
        self.first = min(self.context, self.length) - 1
        self.ends, self.draws = np.array(ends), np.random.default_rng(seed)
        self.places = np.cumsum(self.ends - self.steps - self.length + 1)  # where each series' windows end in a list
        forks = int(self.places[-1]) / max(1, settings.batch_size * (self.length - self.first))
        self.updates, self.batch = min(_UPDATES[1], max(_UPDATES[0], math.ceil(forks))), settings.batch_size
        optimizer = torch.optim.Adam(model.module.parameters(), lr=settings.learning_rate)
        rate = Rate.warm(optimizer, settings.epochs * self.updates, min(50, self.updates))
        course: Course[Epoch] = Course(settings.epochs, settings.patience)
        super().__init__(model, settings, seed, optimizer, rate, course, self.updates * self.batch)

    def learn(self) -> float:
        """Draw windows and learn from them: the mean loss."""
        module, total = self.model.module, 0.0
        module.train()
        for pairs in self._drawn():
            windows = self.scaled.windows(pairs, self.length, module.form.horizon)
            later = torch.stack([self.scaled.y[k][o : o + self.steps] for k, o in pairs], dim=1)
            loss = losses(module, windows, later, self.first)
            self.update(loss)
            total += loss.item()
        return total / self.updates

    def scored(self, epoch: int, loss: float) -> tuple[Epoch, tuple[float, ...] | None]:
        """The point of the learning curve after an epoch: the loss of the forecasts of validation ranks it."""
        found = _loss(self.model.module.form, self._forecasts(self.validation), self.truth)
        self.refuse_divergence(epoch, loss, found)
        return Epoch(epoch, loss, validation_loss=found), (-found,)

    def outcome(self, epoch: int) -> ForecastRun:
        """What came of it, on the test part if there is one."""
        data, levels, base = self.data, self.model.module.form.levels, self.lesson.form[1]
        run = ForecastRun(
            self.seed, epoch, base, math.nan, {}, {}, self.seconds, tuple(self.course.history), np.empty(0), np.empty(0)
        )
        if not data.test_steps:
            return run
        test = data.origins("test")
        values = self.scaled.unscaled(self._forecasts(test), test.series)
        point, y = values[..., levels.index(0.5) if levels else 0], data.truth(test)
        found = point_metrics(y, point, mase_scales(data, test))
        if len(levels) > 1:
            found |= quantile_metrics(y, values, levels)
        score = found[self.lesson.score]
        return replace(run, score=score, scores=found, by_step=by_step(y, point), forecasts=point, quantiles=values)

    def outcome_from(self, kept: Mapping[str, Any]) -> ForecastRun:
        """What came of it, from its fields."""
        return ForecastRun(**kept)

    def drawn(self) -> dict[str, Any]:
        """The state of the generator that draws windows."""
        return {"windows": self.draws.bit_generator.state}

    def draw_from(self, drawn: Mapping[str, Any]) -> None:
        """Go on drawing windows where it was taken."""
        self.draws.bit_generator.state = drawn["windows"]

    def _forecasts(self, origins: Origins) -> Tensor:
        return forecasts(self.model.module, self.scaled, origins, self.context)

    def _drawn(self) -> Iterator[list[tuple[int, int]]]:
        """For each update the series of its windows, and where they end."""
        for _ in range(self.updates):
            places = self.draws.integers(0, self.places[-1], self.batch)
            series = np.searchsorted(self.places, places, side="right")
            start = places - (self.places[series] - (self.ends[series] - self.steps - self.length + 1))
            yield list(zip(series.tolist(), (start + self.length).tolist(), strict=True))
