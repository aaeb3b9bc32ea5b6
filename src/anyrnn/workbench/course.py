"""The course of a training run over its epochs, the same for every task: which one was best, and when it ends."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

P = TypeVar("P")  # a point of a learning curve


@dataclass
class Course(Generic[P]):
    """How far a training run is.

    Attributes:
        epochs: The most it has.
        patience: After how many epochs without a better one it ends; None: never.
        history: A point for each epoch so far.
        best: The best epoch so far, counted from 1; 0 while there is none.
        rank: What was higher then than after any other epoch.
        weights: Those after the best epoch.
    """

    epochs: int
    patience: int | None = None
    history: list[P] = field(default_factory=list)
    best: int = 0
    rank: tuple[float, ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def next(self) -> int:
        """The epoch that comes now, counted from 1."""
        return len(self.history) + 1

    @property
    def ended(self) -> bool:
        """Whether there is none to come."""
        done = len(self.history)
        waited = self.patience is not None and self.best > 0 and done - self.best >= self.patience
        return waited or done >= self.epochs

    def add(self, point: P, rank: tuple[float, ...] | None, module: nn.Module) -> None:
        """Take note of an epoch.

        Args:
            point: Of the learning curve.
            rank: Is higher for a better epoch; of equals the first is kept. None: nothing chooses between epochs.
            module: What was trained in it.
        """
        self.history.append(point)
        if rank is not None and (not self.best or rank > self.rank):
            weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
            self.best, self.rank, self.weights = len(self.history), rank, weights

    def take_best(self, module: nn.Module) -> int:
        """Give a module the weights of the best epoch, if one was chosen; return the epoch whose weights it has."""
        if self.best:
            module.load_state_dict(dict(self.weights))
        return self.best or len(self.history)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        points: list[Any] = self.history
        history = [asdict(point) for point in points]
        return {"history": history, "best": self.best, "rank": self.rank, "weights": self.weights}

    def restore(self, state: Mapping[str, Any], point: type[P]) -> None:
        """Go on where `state` was taken."""
        self.history = [point(**each) for each in state["history"]]
        self.best, self.rank, self.weights = state["best"], state["rank"], state["weights"]
