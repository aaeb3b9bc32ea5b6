"""What a training run is, whatever is learned: a `Lesson` knows how to train, and tells of each epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

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


class Lesson(Protocol):
    """What is learned, and how, with nothing left open: all that training runs of one comparison have in common.

    It can be pickled. A training run is a network and a seed; it depends on nothing that another one does.
    """

    def train(self, network: Network, seed: int, tell: Tell, checkpoints: Checkpoints | None) -> tuple[Any, Any]:
        """Train a network once.

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

    def rebuilt(self, network: Network, seed: int, weights: Mapping[str, Tensor]) -> Any:
        """The model that `train` made in another process, from the weights of its module."""
