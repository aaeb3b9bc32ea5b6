"""What is learned, of whatever kind: a `Lesson` knows how to train a network with a seed, and tells of each epoch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from anyrnn.layers import Layer
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.models import Network


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve.

    Attributes:
        epoch: Counted from 1.
        train_loss: Its mean over what was learned from, while it was.
        test_score: On the whole test part; None after an epoch in which it was not scored.
        validation_loss: After the epoch; None without a validation part.
        validation_score: Likewise; None, too, where the loss is what chooses the epoch.
    """

    epoch: int
    train_loss: float
    test_score: float | None = None
    validation_loss: float | None = None
    validation_score: float | None = None


@dataclass(frozen=True)
class EpochEnd:
    """What is told after an epoch.

    Attributes:
        epoch: Its point of the learning curve.
        ended: Whether it was the last one.
        learning_rate: Of the next update.
        seconds: Spent on training so far, in this run.
        pace: How many sequences, or whatever is learned from, a second of training in this epoch.
    """

    epoch: Epoch
    ended: bool
    learning_rate: float
    seconds: float
    pace: float


Tell = Callable[[EpochEnd], None]


class Trained(Protocol):
    """What a model of any task has."""

    @property
    def network(self) -> Network:
        """Which one."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    @property
    def layer(self) -> Layer:
        """Its recurrent layer."""


class Recipe(Protocol):
    """What the settings of any task have."""

    @property
    def epochs(self) -> int | None:
        """The most epochs; None: the data decide."""

    @property
    def learning_rate(self) -> float:
        """The highest of the schedule."""

    @property
    def clip_norm(self) -> float:
        """The norm that gradients are cut to."""

    @property
    def thread_count(self) -> int:
        """The number of threads on this machine."""


D = TypeVar("D")
S = TypeVar("S", bound=Recipe)
M = TypeVar("M", bound=Trained)
R = TypeVar("R")
Made_co = TypeVar("Made_co", covariant=True)


class Runs(Protocol[Made_co]):
    """A training run that has not begun."""

    def run(self, tell: Tell, checkpoints: Checkpoints | None) -> Made_co:
        """Train."""


@dataclass(frozen=True)
class Lesson(ABC, Generic[D, S, M, R]):
    """What all training runs of a comparison have in common. It can be pickled.

    A training run is a network and a seed; it depends on nothing that another one does.

    Attributes:
        dataset: What is learned.
        settings: How, with nothing left open.
        plural: What an epoch is counted in.
        is_shared: Whether several processes of torchrun can train one network together.
    """

    dataset: D
    settings: S
    plural: ClassVar[str] = "sequences"
    is_shared: ClassVar[bool] = False

    @property
    @abstractmethod
    def metric(self) -> str:
        """The name of the score of a training run."""

    @abstractmethod
    def untrained(self, network: Network, seed: int) -> M:
        """The model before training. Its weights are drawn from PyTorch's own random state."""

    @abstractmethod
    def training(self, network: Network, seed: int) -> Runs[tuple[M, R]]:
        """A training run."""

    def train(
        self, network: Network, seed: int, tell: Tell | None = None, checkpoints: Checkpoints | None = None
    ) -> tuple[M, R]:
        """Train a network once.

        The same seed, thread count and machine give the same weights, bit for bit. The caller's random state and
        number of threads are left as they were.

        Args:
            network: Which.
            seed: Of all that is drawn.
            tell: Called after each epoch.
            checkpoints: Where its state is kept as it goes. A training that was cut off goes on from the last one, to
                the same weights, bit for bit; one that had ended is not repeated.

        Returns:
            The model, with a `module`, and what came of it: dataclasses of numbers, which can be pickled.

        Raises:
            AnyRNNError: if the loss stops being a finite number, or a checkpoint is of another training.
        """
        with seeded(seed), using_threads(self.settings.thread_count):
            return self.training(network, seed).run(tell or (lambda _: None), checkpoints)

    def rebuilt(self, network: Network, seed: int, weights: Mapping[str, Tensor]) -> M:
        """The model that `train` made in another process, from the weights of its module."""
        with seeded(seed):
            model = self.untrained(network, seed)
        model.module.load_state_dict(weights)
        model.module.eval()
        return model


AnyLesson = Lesson[Any, Any, Any, Any]


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
