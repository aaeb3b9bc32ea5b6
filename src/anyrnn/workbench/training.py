"""A training run, whatever is learned: epochs, each scored, with a checkpoint after each that is due.

It goes on from a checkpoint to the same weights, bit for bit. Each task says what an epoch is, and what comes of it.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic

import torch
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.course import Course
from anyrnn.workbench.lesson import Epoch, EpochEnd, M, R, Recipe, Tell
from anyrnn.workbench.metrics import Metric
from anyrnn.workbench.processes import world
from anyrnn.workbench.schedules import Rate
from anyrnn.workbench.stored import finite


@dataclass(frozen=True)
class Run:
    """What one training run gave, on the test part.

    Attributes:
        seed: Of the initial weights and of the shuffling.
        score: By the metric, such as the accuracy; NaN without a test part.
        seconds: Spent on training; reading, scoring and timing are not in it.
        history: The learning curve; the test score of the epoch that was chosen is `score`.
        predictions: The index of the class, or the number, for each test sequence.
        epoch: Whose weights were kept: the best one by the validation part, or the last one if there is none.
        decline: By how much the validation score was better then than after the last epoch; None without one.
        decline_luck: How much of that may be luck: twice its standard error over the validation sequences.
        scores: By every metric, NaN where one is not defined.
        probabilities: Of the classes, for each test sequence; None unless the metric needs them.
        loading: Of the seconds, those in which the network waited for sequences, where that is measured.
    """

    seed: int
    score: float
    seconds: float
    history: tuple[Epoch, ...]
    predictions: tuple[int, ...] | tuple[float, ...]
    epoch: int = 0
    decline: float | None = None
    decline_luck: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    probabilities: tuple[tuple[float, ...], ...] | None = None
    loading: float = field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""
        return {**asdict(self), "scores": finite(self.scores)}


class Training(ABC, Generic[M, R]):
    """One training run.

    Attributes:
        model: What is trained.
        settings: How.
        seed: Of all that is drawn.
        optimizer: Updates its weights.
        rate: That of the optimizer.
        course: How far it is.
        amount: How many sequences, or whatever is learned from, an epoch has.
        seconds: Spent on training so far.
        loading: Of these, spent on waiting for sequences.
        world: The processes that train together.
    """

    def __init__(
        self,
        model: M,
        settings: Recipe,
        seed: int,
        optimizer: torch.optim.Optimizer,
        rate: Rate,
        course: Course[Epoch],
        amount: int,
    ) -> None:
        self.model, self.settings, self.seed = model, settings, seed
        self.optimizer, self.rate, self.course, self.amount = optimizer, rate, course, amount
        self.world, self.seconds, self.loading = world(), 0.0, 0.0
        self._before = 0.0  # the seconds that were spent when this epoch began
        self._since = 0.0  # the time up to which they are counted
        self._place: Mapping[str, Any] | None = None
        self._checkpoints: Checkpoints | None = None

    @abstractmethod
    def learn(self) -> float:
        """Learn for one epoch; return the mean loss."""

    @abstractmethod
    def scored(self, epoch: int, loss: float) -> tuple[Epoch, tuple[float, ...] | None]:
        """The point of the learning curve after an epoch, and what is higher for a better one; None: nothing chooses.

        Raises:
            AnyRNNError: if a loss, or an answer, is not finite: see `refuse_divergence`.
        """

    @abstractmethod
    def outcome(self, epoch: int) -> R:
        """What came of it, now that the model has the weights of this epoch."""

    @abstractmethod
    def outcome_from(self, kept: Mapping[str, Any]) -> R:
        """What came of it, from the fields of that dataclass; its history is one of epochs again."""

    def drawn(self) -> dict[str, Any]:
        """The states of the generators of random numbers beside PyTorch's own."""
        return {}

    def draw_from(self, drawn: Mapping[str, Any]) -> None:
        """Go on drawing where `drawn` was taken."""

    def run(self, tell: Tell, checkpoints: Checkpoints | None) -> tuple[M, R]:
        """Train to the end of the epochs, or of the patience; the model gets the weights of the best epoch."""
        module = self.model.module
        kept, self._checkpoints = None if checkpoints is None else self.world.of_first(checkpoints.load), checkpoints
        if kept is not None and "run" in kept:
            module.load_state_dict(kept["weights"])
            module.eval()
            history = tuple(Epoch(**each) for each in kept["run"]["history"])
            return self.model, self.outcome_from({**kept["run"], "history": history})
        if kept is not None:
            self._restore(kept)
        while not self.course.ended:
            self._epoch()
            point, ended = self.course.history[-1], self.course.ended
            pace = self.amount / max(self.seconds - self._before, 1e-9)
            self._before = self.seconds
            tell(EpochEnd(point, ended, self.optimizer.param_groups[0]["lr"], self.seconds, pace))
            if not ended:
                self.keep()
        run: Any = self.outcome(self.course.take_best(module))
        module.eval()
        if checkpoints is not None and self.world.first:
            checkpoints.save({"run": asdict(run), "weights": module.state_dict()})
        return self.model, run

    def update(self, loss: Tensor) -> None:
        """Update the weights by the gradient of a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.rate.after_update()

    def refuse_divergence(self, epoch: int, loss: float, *others: Tensor | float | None) -> None:
        """Raise an `AnyRNNError` if a loss, or something else, is not finite."""
        found = (torch.as_tensor(each) for each in (loss, *others) if each is not None)
        if not all(each.isfinite().all() for each in found):
            raise AnyRNNError(
                f"{self.model.network.name}, seed {self.seed}: training diverged in epoch {epoch}: the mean loss is "
                f"{loss}; expected finite numbers; a lower learning rate than {self.settings.learning_rate} may help"
            )

    def keep(self, place: Mapping[str, Any] | None = None) -> None:
        """Keep a checkpoint, if it is time to: each process has a part of it, and the first one writes.

        Args:
            place: Within an epoch, how far that is: `learn` finds it by `place` if the training goes on from here.
        """
        checkpoints = self._checkpoints
        if checkpoints is None or not self.world.of_first(lambda: checkpoints.due):
            return
        if place is not None:
            self._spend()
        state = self._state(place)
        if self.world.first:
            checkpoints.save(state)
        self._since = time.perf_counter()  # keeping is no training

    def place(self) -> Mapping[str, Any] | None:
        """How far the epoch was when the training was cut off; None: it begins."""
        place, self._place = self._place, None
        return place

    def _epoch(self) -> None:
        epoch, self._since = self.course.next, time.perf_counter()
        loss = self.learn()
        self._spend()
        point, rank = self.scored(epoch, loss)
        self.course.add(point, rank, self.model.module)
        if point.validation_loss is not None:
            self.rate.after_epoch(point.validation_loss)

    def _spend(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _state(self, place: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All that the coming updates depend on."""
        return {
            "weights": self.model.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "drawn": self.drawn(),
            "random": self.world.each(torch.get_rng_state()),
            "seconds": self.seconds,
            "loading": self.loading,
            "before": self._before,
            "place": place,
            "course": self.course.state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.module.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.draw_from(state["drawn"])
        torch.set_rng_state(state["random"][self.world.rank].clone())
        self.seconds, self._before, self._place = state["seconds"], state["before"], state["place"]
        self.loading = state["loading"]
        self.course.restore(state["course"], Epoch)


class ScoredTraining(Training[M, Run]):
    """One of sequences with targets, each epoch of which a metric scores, on the validation and the test part.

    Attributes:
        metric: Which.
        shuffle: What the order of the training sequences is drawn from.
        tested: After which epochs the test part is scored; none without one.
    """

    metric: Metric
    shuffle: torch.Generator
    tested: frozenset[int]
    _last: Tensor | None = None  # what the module said of the validation part after the last epoch

    @abstractmethod
    def outputs(self, part: str) -> Tensor | None:
        """What the module says of the "validation" or the "test" part (N, out_features); None if there is none."""

    @abstractmethod
    def statistic(self, part: str, outputs: Tensor) -> Callable[[Any], float]:
        """The score of a part by the places of its sequences, some of them more than once; None: all of them."""

    @abstractmethod
    def validation_loss(self, outputs: Tensor) -> float:
        """The mean loss of the validation part."""

    @abstractmethod
    def luck(self, statistic: Callable[[Any], float]) -> float:
        """The standard error of a statistic over the sequences of the validation part."""

    @abstractmethod
    def answered(self, outputs: Tensor) -> dict[str, Any]:
        """The fields of a `Run` that say how the test part was answered: `predictions`, `scores` and the rest."""

    def scored(self, epoch: int, loss: float) -> tuple[Epoch, tuple[float, ...] | None]:
        """The point of the learning curve after an epoch: the validation score ranks it, of equals the loss."""
        on_test = self.outputs("test") if epoch in self.tested else None
        self._last = self.outputs("validation")
        self.refuse_divergence(epoch, loss, on_test, self._last)
        point = Epoch(epoch, loss, None if on_test is None else self.statistic("test", on_test)(None))
        if self._last is None:
            return point, None
        score, validation_loss = self.statistic("validation", self._last)(None), self.validation_loss(self._last)
        rank = self.metric.sign * score if math.isfinite(score) else -math.inf
        return replace(point, validation_loss=validation_loss, validation_score=score), (rank, -validation_loss)

    def outcome(self, epoch: int) -> Run:
        """What came of it: the model, whose weights are now those of this epoch, on the test part."""
        decline, luck = self._decline()
        run = Run(self.seed, math.nan, self.seconds, tuple(self.course.history), (), epoch, decline, luck)
        outputs = self.outputs("test")
        if outputs is None:
            return run
        answered = self.answered(outputs)
        score, history = answered["scores"][self.metric.name], list(run.history)
        history[epoch - 1] = replace(history[epoch - 1], test_score=score)
        return replace(run, score=score, history=tuple(history), loading=self.loading, **answered)

    def outcome_from(self, kept: Mapping[str, Any]) -> Run:
        """What came of it, from its fields."""
        return Run(**kept)

    def drawn(self) -> dict[str, Any]:
        """The state of the generator that shuffles."""
        return {"shuffle": self.shuffle.get_state()}

    def draw_from(self, drawn: Mapping[str, Any]) -> None:
        """Go on shuffling where it was taken."""
        self.shuffle.set_state(drawn["shuffle"])

    def _decline(self) -> tuple[float | None, float | None]:
        """By how much the validation score fell after the best epoch, and twice the standard error of that."""
        best = self.outputs("validation")
        if best is None or self._last is None:
            return None, None
        before, after = self.statistic("validation", best), self.statistic("validation", self._last)

        def fall(places: Any) -> float:
            return self.metric.sign * (before(places) - after(places))

        return fall(None), 2 * self.luck(fall)
