"""How the learning rate goes over a training run, by name, on torch's schedulers."""

import math
from typing import Any, Literal, Self, get_args

import torch
from torch.optim import lr_scheduler

Schedule = Literal["one-cycle", "cosine", "plateau", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
ENDLESS: frozenset[Schedule] = frozenset({"plateau", "constant"})  # those that do not fall to nothing by plan


class Rate:
    """The learning rate of an optimizer, told of each update and each epoch.

    Args:
        optimizer: Its rate is the highest one.
        schedule: Which.
        updates: How many the training has at most.
        patience: For "plateau": epochs without a lower validation loss after which the rate is halved.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule, updates: int, patience: int) -> None:
        highest = optimizer.param_groups[0]["lr"]
        self._by_update: lr_scheduler.LRScheduler | None = None
        self._by_loss: lr_scheduler.ReduceLROnPlateau | None = None
        if schedule == "one-cycle":
            self._by_update = lr_scheduler.OneCycleLR(optimizer, highest, total_steps=updates)
        elif schedule == "cosine":
            self._by_update = lr_scheduler.CosineAnnealingLR(optimizer, updates)
        elif schedule == "plateau":
            self._by_loss = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)

    @classmethod
    def warm(cls, optimizer: torch.optim.Optimizer, updates: int, warm: int) -> Self:
        """A rate that rises over the first updates, and falls to nothing as a cosine does over all of them."""
        rate = cls(optimizer, "constant", updates, 0)
        rate._by_update = lr_scheduler.LambdaLR(
            optimizer, lambda k: min(1, (k + 1) / warm) * (1 + math.cos(math.pi * min(1, k / updates))) / 2
        )
        return rate

    def after_update(self) -> None:
        """Go on by one update of the weights."""
        if self._by_update is not None:
            self._by_update.step()

    def after_epoch(self, validation_loss: float) -> None:
        """Go on by one epoch."""
        if self._by_loss is not None:
            self._by_loss.step(validation_loss)

    def state_dict(self) -> dict[str, Any]:
        """How far it is."""
        scheduler = self._by_update or self._by_loss
        return {} if scheduler is None else scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        scheduler = self._by_update or self._by_loss
        if scheduler is not None:
            scheduler.load_state_dict(state)
