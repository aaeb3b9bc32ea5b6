"""Train one network once: one seed, the same recipe for every network.

The recipe: Adam with a schedule of its rate, gradients clipped, mini-batches shuffled by a generator of their own,
cross entropy for classes and the mean squared error of the standardised target for numbers. With a validation part
the weights are those of the epoch that is best on it, else those of the last one. The test part is scored on the way
for the learning curve, and decides nothing.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyrnn.errors import AnyRNNError
from anyrnn.heads import ManyToOne
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.course import Course
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.large import Waiting, gathered
from anyrnn.workbench.lesson import Lesson, Tell
from anyrnn.workbench.metrics import Metric, metric, scores, spread
from anyrnn.workbench.models import POOLS, Model, Network, Pool, Structure, build, outputs
from anyrnn.workbench.processes import world
from anyrnn.workbench.schedules import ENDLESS, SCHEDULES, Rate, Schedule
from anyrnn.workbench.sequences import Scaler, Sequences, moments, scaled, some, steps_of
from anyrnn.workbench.training import Run, ScoredTraining

# On five folds of the training part of japanese-vowels RNN, LSTM and GRU reach 0.96-0.97 with 20 epochs as with 30,
# and 0.93-0.95 with 10; a peak of 0.005 does as well as 0.01, and better than 0.003 and below.
LEAST_EPOCHS = 20
# Where the rate does not fall by plan, patience ends the training, not the budget.
_MORE_EPOCHS = 5
_PATIENCE = 10
_LEAST_UPDATES = 200  # what 20 epochs are there: a few dozen sequences would leave a network untrained
# Sharing the work of a small step costs more than it saves, and ten times the time where cores are busy otherwise.
_ONE_THREAD_UP_TO = 256  # units
_APART = 0x9E3779B97F4A7C15  # between the seeds of two processes: far from any that somebody gives
_TIMED_STEPS = 100  # T of the call that is timed: long enough for the call itself to weigh little
_TIMING_SECONDS = 0.25


class Question(Protocol):
    """What a dataset decides of the settings."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes; None if numbers are predicted."""

    @property
    def train(self) -> Sized:
        """The training part."""

    @property
    def validation(self) -> Sized | None:
        """The validation part."""

    @property
    def split(self) -> str:
        """A sentence about the parts."""


@dataclass(frozen=True)
class Settings:
    """The recipe of a training run, the same for every network of a comparison.

    Attributes:
        hidden_size: H, the units of each layer and direction.
        epochs: Passes over the training sequences, at most. None: 20, or as many as make 200 updates if that is more;
            five times as many where patience ends the training.
        batch_size: Sequences an update, of each process: see `processes.py`.
        learning_rate: The highest of the schedule.
        clip_norm: The norm that gradients are cut to.
        pool: How the head summarises the steps: "last", "mean" or "max".
        threads: CPU threads. None: 1 up to 256 units, where more do not pay, else as many as PyTorch would take.
        schedule: Of the learning rate. "one-cycle" rises to it and falls to nothing, "cosine" falls to nothing, both
            over all epochs; "plateau" halves it when the validation loss has not fallen for a third of the patience;
            "constant" keeps it.
        patience: Epochs without a better validation score after which training ends. None: 10 for "plateau" and
            "constant"; never for the others, whose last epochs, with their small rates, gain most. Either way the
            weights are those of the best epoch, and without a validation part those of the last one.
        metric: The name of the score that chooses epochs and networks. None: "accuracy" for classes; others are
            "balanced-accuracy", "macro-f1", "auc" and "log-loss". "rmse" for a number; others are "mae", "r2", "mape",
            "nse" and "kge".
        balanced: Classes weigh in the loss by the inverse of their frequency, so that rare ones count as much.
        layers: One upon the other, of each network that does not say so itself, as "lstm-2" does.
        bidirectional: Each layer has a second direction, that reads from the end.
        dropout: The probability of dropping a feature between two layers, and before the linear layer.
        recurrent_dropout: The probability of dropping a feature of the state, the same at all steps of a sequence.
        weight_decay: Of AdamW, on matrices only: what learning rate x weight decay is taken off with each update.
        clip_gradient: The limit of each number of the gradient of the state between two steps. None: there is none.

    Raises:
        AnyRNNError: for a size below one, a rate that is not above zero, or an unknown pool.
    """

    hidden_size: int = 100
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float = 0.005
    clip_norm: float = 1.0
    pool: Pool = "last"
    threads: int | None = None
    schedule: Schedule = "one-cycle"
    patience: int | None = None
    metric: str | None = None
    balanced: bool = False
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_decay: float = 0.0
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "epochs", "batch_size", "threads", "patience", "layers"):
            value = getattr(self, name)
            may_be_none = name in ("epochs", "threads", "patience")
            if (not isinstance(value, int) or value < 1) and not (may_be_none and value is None):
                raise AnyRNNError(f"settings: got {name}={value!r}, expected an int of at least 1")
        for name in ("learning_rate", "clip_norm", "clip_gradient"):
            value = getattr(self, name)
            may_be_none = name == "clip_gradient"
            if not (may_be_none and value is None) and (not isinstance(value, int | float) or not 0 < value < math.inf):
                raise AnyRNNError(f"settings: got {name}={value!r}, expected a number above 0")
        for name, below in (("dropout", 1.0), ("recurrent_dropout", 1.0), ("weight_decay", math.inf)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < below:
                end = " and below 1" if below == 1 else ""
                raise AnyRNNError(f"settings: got {name}={value!r}, expected a number of at least 0{end}")
        if self.pool not in POOLS:
            raise AnyRNNError(f"settings: got pool={self.pool!r}, expected one of {', '.join(POOLS)}")
        if self.schedule not in SCHEDULES:
            raise AnyRNNError(f"settings: got schedule={self.schedule!r}, expected one of {', '.join(SCHEDULES)}")

    def resolved(self, dataset: Question) -> Self:
        """These settings for a dataset, with nothing left open that it decides.

        Raises:
            AnyRNNError: if they need a validation part or classes, and it has none, or if the metric is not for it.
        """
        if self.balanced and dataset.classes is None:
            raise AnyRNNError("settings: balanced weighs classes, but a number is predicted")
        validated = dataset.validation is not None
        for what, asked in ((f"schedule={self.schedule!r}", self.schedule == "plateau"), ("patience", self.patience)):
            if asked and not validated:
                raise AnyRNNError(f"settings: {what} needs a validation part, and the data have none: {dataset.split}")
        patience = self.patience or (_PATIENCE if validated and self._has_no_end else None)
        epochs = self.epochs_for(len(dataset.train), validated=validated)
        chosen = self.metric_for(dataset).name
        return replace(self, epochs=epochs, patience=patience, threads=self.thread_count, metric=chosen)

    def metric_for(self, dataset: Question) -> Metric:
        """What chooses epochs and networks on a dataset."""
        return metric(self.metric, classes=dataset.classes is not None)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """What updates the weights of a module."""
        return _optimizer(module, self)

    def rate(self, optimizer: torch.optim.Optimizer, updates: int) -> Rate:
        """How its learning rate goes over so many updates at most."""
        return Rate(optimizer, self.schedule, updates, (self.patience or _PATIENCE) // 3)

    def class_weights(self, y: Tensor, classes: Sequence[str] | None) -> Tensor | None:
        """How much each class counts in the loss; None: as much as every other."""
        return _class_weights(y, len(classes)) if classes and self.balanced else None

    def epochs_for(self, sequences: int, *, validated: bool = False) -> int:
        """The number of epochs for so many training sequences, with a validation part or without."""
        updates = math.ceil(sequences / (self.batch_size * world().size))
        usual = max(LEAST_EPOCHS, math.ceil(_LEAST_UPDATES / updates))
        return self.epochs or usual * (_MORE_EPOCHS if validated and self._has_no_end else 1)

    @property
    def _has_no_end(self) -> bool:
        return self.schedule in ENDLESS

    @property
    def structure(self) -> Structure:
        """What each network is made of beside its cell."""
        return Structure(self.hidden_size, self.pool, self.layers, self.bidirectional)

    def build(self, network: Network, input_size: int, out_features: int) -> ManyToOne:
        """Make an untrained network."""
        return build(
            network,
            input_size,
            out_features,
            self.structure,
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
            clip_gradient=self.clip_gradient,
        )

    @property
    def thread_count(self) -> int:
        """The number of threads on this machine."""
        return self.threads or (1 if self.hidden_size <= _ONE_THREAD_UP_TO else torch.get_num_threads())


@dataclass(frozen=True)
class Untested:
    """A `Dataset` without a test part, for whoever scores elsewhere what was trained."""

    features: tuple[str, ...]
    classes: tuple[str, ...] | None
    train: Sequences
    validation: Sequences | None
    split: str
    missing: tuple[str, ...] | None = None
    gaps: Gaps = "fill"
    target: str = "y"
    test: None = None
    reading: None = None
    id_column: None = None
    time_column: None = None

    @cached_property
    def scaler(self) -> Scaler:
        """Fitted on the training part and nothing else."""
        return Scaler.fit(self.train, self.missing, self.gaps)


def train(
    network: Network,
    dataset: Dataset | Untested,
    settings: Settings,
    seed: int,
    on_epoch: Tell | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Model, Run]:
    """Train a network on the training part of a dataset and score it on the test part, if there is one.

    The same seed, thread count and machine give the same weights, bit for bit. The caller's random state and number
    of threads are left as they were.

    Args:
        network: Which one.
        dataset: What to learn.
        settings: How.
        seed: Of the initial weights and of the shuffling.
        on_epoch: Called after each epoch.
        checkpoints: Where its state is kept as it goes. A training that was cut off goes on from the last one, to the
            same weights, bit for bit; one that had ended is not repeated.

    Raises:
        AnyRNNError: if the loss stops being a finite number, or a checkpoint is of another training.
    """
    return SequenceLesson(dataset, settings.resolved(dataset)).train(network, seed, on_epoch, checkpoints)


@dataclass(frozen=True)
class SequenceLesson(Lesson[Dataset | Untested, Settings, Model, Run]):
    """A class or a number of each sequence."""

    is_shared = True

    @property
    def metric(self) -> str:
        """What chooses epochs and networks."""
        return self.settings.metric_for(self.dataset).name

    def untrained(self, network: Network, seed: int) -> Model:
        """The model before training."""
        dataset, settings = self.dataset, self.settings
        classes, scaler = dataset.classes, dataset.scaler
        return Model(
            network=network,
            structure=settings.structure,
            features=dataset.features,
            classes=classes,
            target=dataset.target,
            scaler=scaler,
            target_scale=moments(dataset.train.y.double().numpy()) if classes is None else None,
            seed=seed,
            module=settings.build(network, network.input_size(scaler), len(classes or (0,))),
            id_column=dataset.id_column,
            time_column=dataset.time_column,
            reading=dataset.reading,
        )

    def training(self, network: Network, seed: int) -> "_Training":
        """A training run."""
        return _Training(self, network, seed)


class _Training(ScoredTraining[Model]):
    """One training run."""

    def __init__(self, lesson: SequenceLesson, network: Network, seed: int) -> None:
        dataset, settings, model = lesson.dataset, lesson.settings, lesson.untrained(network, seed)
        module, scaler, classes = model.module, dataset.scaler, dataset.classes
        self.dataset, self.metric = dataset, settings.metric_for(dataset)
        self.class_weights = _class_weights(dataset.train.y, len(classes)) if classes and settings.balanced else None
        self.part = replace(dataset.train, x=scaled(dataset.train.x, scaler))
        self.lengths = steps_of(self.part.x)
        self.validation = scaled(dataset.validation.x, scaler) if dataset.validation is not None else ()
        self.weights = _weights(dataset.train)
        self.test = scaled(dataset.test.x, scaler) if dataset.test is not None else ()
        epochs = settings.epochs_for(len(self.part))
        self.batch = settings.batch_size * world().size
        optimizer = settings.optimizer(module)
        rate = settings.rate(optimizer, epochs * math.ceil(len(self.part) / self.batch))
        super().__init__(model, settings, seed, optimizer, rate, Course(epochs, settings.patience), len(self.part))
        self.shuffle = torch.Generator().manual_seed(seed)
        steps = int(self.lengths.sum()), int(steps_of(self.test).sum())
        self.tested = frozenset[int]() if dataset.test is None else scored_epochs(epochs, *steps)
        self.spread = self.world.spread(module, lambda: module(self.part.x[0].unsqueeze(1))[0])
        if not self.world.first:  # weights are drawn alike, dropout is not
            torch.default_generator.manual_seed((seed + self.world.rank * _APART) % 2**63)

    def outputs(self, part: str) -> Tensor | None:
        """What the network says of a part."""
        sequences = self.test if part == "test" else self.validation
        return self._outputs(sequences) if sequences else None

    def statistic(self, part: str, outputs: Tensor) -> Callable[[Any], float]:
        """The score of a part by the places of its sequences."""
        answers, y = self.model.read(outputs), self._part(part).y.double().numpy()
        got, shares = np.array(answers.values), answers.probabilities
        probabilities = None if shares is None else shares.double().numpy()

        def score(places: Any) -> float:
            at = slice(None) if places is None else places
            return self.metric.compute(y[at], got[at], None if probabilities is None else probabilities[at])

        return score

    def validation_loss(self, outputs: Tensor) -> float:
        """The mean loss of the validation part."""
        part = self._part("validation")
        return self._loss(outputs, part.y, _weights(part)).item()

    def luck(self, statistic: Callable[[Any], float]) -> float:
        """The standard error of a statistic of the validation part."""
        part = self._part("validation")
        return spread(statistic, len(part), part.groups)

    def answered(self, outputs: Tensor) -> dict[str, Any]:
        """How the test part was answered."""
        answers, classes = self.model.read(outputs), self.dataset.classes is not None
        shares = answers.probabilities
        found = scores(self._part("test").y, answers.values, shares, classes=classes, chosen=self.metric.name)
        kept = self.metric.of_probabilities and shares is not None
        probabilities = tuple(map(tuple, shares.tolist())) if kept and shares is not None else None
        return {"predictions": answers.values, "scores": found, "probabilities": probabilities}

    def _part(self, name: str) -> Sequences:
        part = self.dataset.test if name == "test" else self.dataset.validation
        if part is None:
            raise ValueError(name)
        return part

    def learn(self) -> float:
        """One epoch; return the mean loss."""
        count = len(self.part)
        self.spread.train()
        total = 0.0
        order = torch.randperm(count, generator=self.shuffle)
        updates = [order[first : first + self.batch] for first in range(0, count, self.batch)]
        shares = [places[self.world.share(self.lengths[places.numpy()].tolist())] for places in updates]
        with Waiting(gathered(self.part.x, [share.tolist() for share in shares])) as gathering:
            for places, share, (x, lengths) in zip(updates, shares, gathering, strict=True):
                loss = self._loss_of(share, x, lengths)
                if self.world.size > 1:  # so that the mean over the processes is the mean of the batch
                    loss = loss * (self.world.size * self._weight(share) / self._weight(places))
                self.update(loss)
                total += loss.item() * len(places)
        self.loading += gathering.seconds
        return self.world.total(torch.tensor(total, dtype=torch.float64)).item() / self.world.size / count

    def _loss_of(self, places: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """The mean loss of some training sequences; without any, 0, of which a process has a gradient to add."""
        outputs = self.spread(x, lengths=lengths)[0]
        if not len(places):
            return 0 * cast("Tensor", outputs).sum()
        weights = None if self.weights is None else self.weights[places]
        return self._loss(outputs, self.part.y[places], weights)

    def _weight(self, places: Tensor) -> float:
        """How much these training sequences count in a mean loss."""
        if self.class_weights is None or self.weights is not None:
            return float(len(places))
        return float(self.class_weights[self.part.y[places]].sum())

    def _outputs(self, sequences: Sequence[Tensor]) -> Tensor:
        """What the network says of sequences, each process of a share of them."""
        if self.world.size == 1:
            return outputs(self.model.module, sequences)
        share = self.world.share(steps_of(sequences).tolist())
        found = outputs(self.model.module, some(sequences, share))
        every = found.new_zeros(len(sequences), found.shape[1])
        every[share] = found
        return self.world.total(every)

    def _loss(self, outputs: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
        how = "mean" if weights is None else "none"
        if self.model.target_scale is None:
            loss = F.cross_entropy(outputs, y, weight=self.class_weights, reduction=how)
        else:
            mean, std = self.model.target_scale
            loss = F.mse_loss(outputs[:, 0], ((y.double() - mean) / std).to(outputs.dtype), reduction=how)
        return loss if weights is None else (loss * weights).mean()


def scored_epochs(epochs: int, train_steps: int, test_steps: int) -> frozenset[int]:
    """After which epochs the test part is scored: the first, the last, and as many evenly between as cost little.

    All of them where the test part is the smaller one; else so many that no more steps are scored than are learned
    from, which takes a third of the time, and three at least, to see whether the score rises and falls.
    """
    points = min(epochs, max(3, epochs * train_steps // test_steps))
    return frozenset(epochs - k * (epochs - 1) // max(points - 1, 1) for k in range(points))


def score(predictions: Sequence[float], y: Tensor, classes: Sequence[str] | None) -> float:
    """Score predictions: the accuracy for classes, or the root mean squared error of numbers (classes None)."""
    usual = metric(None, classes=classes is not None)
    return usual.compute(y.double().numpy(), np.array(predictions, dtype=np.float64), None)


def step_microseconds(layer: nn.Module, input_size: int) -> float:
    """Time a step of a layer at batch size 1: the median over calls of 100 steps, without gradients."""
    x = torch.zeros(_TIMED_STEPS, 1, input_size)
    seconds: list[float] = []
    with torch.no_grad():
        layer(x)  # the first call may prepare things that later ones reuse
        end = time.perf_counter() + _TIMING_SECONDS
        while not seconds or time.perf_counter() < end:
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / _TIMED_STEPS * 1e6


def _optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Adam; with weight decay AdamW, of which biases and other vectors are exempt."""
    if not settings.weight_decay:
        return torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _weights(part: Sequences) -> Tensor | None:
    """How much each sequence counts (N,), with a mean of 1: so a weight scales a gradient, not the learning rate."""
    return None if part.weights is None else (part.weights.double() / part.weights.double().mean()).float()


def _class_weights(y: Tensor, count: int) -> Tensor:
    """The inverse of the frequency of each class (K,), as scikit-learn's "balanced" has it: 1 where all are alike."""
    return len(y) / (count * torch.bincount(y, minlength=count).clamp(min=1).float())
