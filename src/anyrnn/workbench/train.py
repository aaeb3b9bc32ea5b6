"""Train one network once: one seed, a fixed budget, the same recipe for every network.

The recipe: Adam with a one-cycle learning rate, gradients clipped, mini-batches shuffled by a generator of their
own, cross entropy for classes and the mean squared error of the standardised target for numbers. The weights are
those after the last epoch; the test part is scored on the way for the learning curve, and decides nothing.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.models import POOLS, Model, Network, Pool, build, outputs
from anyrnn.workbench.sequences import Sequences, batch, moments

# On five folds of the training part of japanese-vowels RNN, LSTM and GRU reach 0.96-0.97 with 20 epochs as with 30,
# and 0.93-0.95 with 10; a peak of 0.005 does as well as 0.01, and better than 0.003 and below.
LEAST_EPOCHS = 20
_LEAST_UPDATES = 200  # what 20 epochs are there: a few dozen sequences would leave a network untrained
# Sharing the work of a small step costs more than it saves, and ten times the time where cores are busy otherwise.
_ONE_THREAD_UP_TO = 256  # units
_TIMED_STEPS = 100  # T of the call that is timed: long enough for the call itself to weigh little
_TIMING_SECONDS = 0.25


@dataclass(frozen=True)
class Settings:
    """The budget of a training run, the same for every network of a comparison.

    Attributes:
        hidden_size: H, the units of each layer and direction.
        epochs: Passes over the training sequences. None: 20, or as many as make 200 updates if that is more.
        batch_size: Sequences an update.
        learning_rate: The peak of the one-cycle schedule.
        clip_norm: The norm that gradients are cut to.
        pool: How the head summarises the steps: "last", "mean" or "max".
        threads: CPU threads. None: 1 up to 256 units, where more do not pay, else as many as PyTorch would take.

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

    def __post_init__(self) -> None:
        for name in ("hidden_size", "epochs", "batch_size", "threads"):
            value = getattr(self, name)
            may_be_none = name in ("epochs", "threads")
            if (not isinstance(value, int) or value < 1) and not (may_be_none and value is None):
                raise AnyRNNError(f"settings: got {name}={value!r}, expected an int of at least 1")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise AnyRNNError(f"settings: got {name}={value!r}, expected a number above 0")
        if self.pool not in POOLS:
            raise AnyRNNError(f"settings: got pool={self.pool!r}, expected one of {', '.join(POOLS)}")

    def epochs_for(self, sequences: int) -> int:
        """The number of epochs for so many training sequences."""
        updates = math.ceil(sequences / self.batch_size)
        return self.epochs or max(LEAST_EPOCHS, math.ceil(_LEAST_UPDATES / updates))

    @property
    def thread_count(self) -> int:
        """The number of threads on this machine."""
        return self.threads or (1 if self.hidden_size <= _ONE_THREAD_UP_TO else torch.get_num_threads())


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve.

    Attributes:
        epoch: Counted from 1.
        train_loss: Its mean over the sequences.
        test_score: On the whole test part; None after an epoch in which it was not scored, see `scored_epochs`.
    """

    epoch: int
    train_loss: float
    test_score: float | None


@dataclass(frozen=True)
class Run:
    """What one training run gave, on the test part.

    Attributes:
        seed: Of the initial weights and of the shuffling.
        score: The accuracy, or the root mean squared error where a number is predicted.
        seconds: Spent on training; reading, scoring and timing are not in it.
        history: The learning curve; the test score of its last point is `score`.
        predictions: The index of the class, or the number, for each test sequence.
    """

    seed: int
    score: float
    seconds: float
    history: tuple[Epoch, ...]
    predictions: tuple[int, ...] | tuple[float, ...]


def train(
    network: Network,
    dataset: Dataset,
    settings: Settings,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[Model, Run]:
    """Train a network on the training part of a dataset and score it on the test part.

    The same seed, thread count and machine give the same weights, bit for bit. The caller's random state and number
    of threads are left as they were.

    Raises:
        AnyRNNError: if the loss stops being a finite number.
    """
    with seeded(seed), using_threads(settings.thread_count):
        return _train(network, dataset, settings, seed, on_epoch or (lambda _: None))


def _train(
    network: Network, dataset: Dataset, settings: Settings, seed: int, on_epoch: Callable[[Epoch], None]
) -> tuple[Model, Run]:
    classes, scaler = dataset.classes, dataset.scaler
    module = build(network, len(dataset.features), settings.hidden_size, len(classes or (0,)), settings.pool)
    model = Model(
        network=network,
        hidden_size=settings.hidden_size,
        pool=settings.pool,
        features=dataset.features,
        classes=classes,
        target=dataset.target,
        scaler=scaler,
        target_scale=moments(dataset.train.y.double().numpy()) if classes is None else None,
        seed=seed,
        module=module,
        id_column=dataset.id_column,
        time_column=dataset.time_column,
    )
    part = replace(dataset.train, x=tuple(scaler(x) for x in dataset.train.x))
    test = [scaler(x) for x in dataset.test.x]
    epochs, count = settings.epochs_for(len(part)), len(part)
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
    updates = epochs * math.ceil(count / settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=updates)
    shuffle = torch.Generator().manual_seed(seed)
    history: list[Epoch] = []
    seconds = 0.0
    scored = scored_epochs(epochs, sum(map(len, part.x)), sum(map(len, test)))
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        module.train()
        total = 0.0
        order = torch.randperm(count, generator=shuffle)
        for first in range(0, count, settings.batch_size):
            indices = order[first : first + settings.batch_size]
            loss = _loss(model, part, indices)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(indices)
        seconds += time.perf_counter() - start
        on_test = outputs(module, test) if epoch in scored else None
        if not (math.isfinite(total) and (on_test is None or on_test.isfinite().all())):
            raise AnyRNNError(
                f"{network.name}, seed {seed}: training diverged in epoch {epoch}: the mean loss is {total / count}; "
                f"expected finite numbers; a lower learning rate than {settings.learning_rate} may help"
            )
        found = None
        if on_test is not None:
            predictions = model.read(on_test).values
            found = score(predictions, dataset.test.y, classes)
        history.append(Epoch(epoch, total / count, found))
        on_epoch(history[-1])
    module.eval()
    return model, Run(seed, score(predictions, dataset.test.y, classes), seconds, tuple(history), predictions)


def scored_epochs(epochs: int, train_steps: int, test_steps: int) -> frozenset[int]:
    """After which epochs the test part is scored: the first, the last, and as many evenly between as cost little.

    All of them where the test part is the smaller one; else so many that no more steps are scored than are learned
    from, which takes a third of the time, and three at least, to see whether the score rises and falls.
    """
    points = min(epochs, max(3, epochs * train_steps // test_steps))
    return frozenset(epochs - k * (epochs - 1) // max(points - 1, 1) for k in range(points))


def score(predictions: Sequence[float], y: Tensor, classes: Sequence[str] | None) -> float:
    """Score predictions: the accuracy for classes, or the root mean squared error of numbers (classes None)."""
    got, expected = torch.tensor(predictions, dtype=torch.float64), y.double()
    if classes is not None:
        return (got == expected).double().mean().item()
    return math.hypot(*(got - expected).tolist()) / math.sqrt(len(got))  # no square of 1e200 or 1e-200


def step_microseconds(layer: nn.Module, input_size: int) -> float:
    """Time a step of a layer at batch size 1: the median over calls of 100 steps, in inference mode."""
    x = torch.zeros(_TIMED_STEPS, 1, input_size)
    seconds: list[float] = []
    with torch.inference_mode():
        layer(x)  # the first call may prepare things that later ones reuse
        end = time.perf_counter() + _TIMING_SECONDS
        while not seconds or time.perf_counter() < end:
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / _TIMED_STEPS * 1e6


def _loss(model: Model, part: Sequences, indices: Tensor) -> Tensor:
    x, lengths, y = batch(part, indices)
    outputs, _ = model.module(x, lengths=lengths)
    if model.target_scale is None:
        return F.cross_entropy(outputs, y)
    mean, std = model.target_scale
    return F.mse_loss(outputs[:, 0], ((y.double() - mean) / std).to(outputs.dtype))


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let PyTorch use this many threads inside a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside a ``with`` block; what was drawn from outside goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
