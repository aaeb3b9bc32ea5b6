"""Train one tagger once, by the recipe of `anyrnn.workbench.train`: it learns from every step with a target."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.course import Course
from anyrnn.workbench.lesson import Epoch
from anyrnn.workbench.metrics import Metric, spread
from anyrnn.workbench.models import Network
from anyrnn.workbench.sequences import moments
from anyrnn.workbench.tagging.model import Tagger, TrainedTagger, build, outputs
from anyrnn.workbench.tagging.scores import step_metric
from anyrnn.workbench.tagging.steps import NO_TARGET, Steps, Tagging
from anyrnn.workbench.train import Question, Run, Settings, scored_epochs, seeded, using_threads


@dataclass(frozen=True)
class TagSettings(Settings):
    """The recipe of a training run: as for whole sequences, see `Settings`, and what taggers have beside.

    Attributes:
        causal: The answer at a step may depend on nothing that comes after it; bidirectional networks are refused.
        embedding_size: The features of the vectors of words.
        word_dropout: The share of words that are taken for unknown ones in training, so that a network learns to go
            by their spelling and by what stands around them.
    """

    causal: bool = False
    embedding_size: int = 100
    word_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.embedding_size, int) or self.embedding_size < 1:
            raise AnyRNNError(f"settings: got embedding_size={self.embedding_size!r}, expected an int of at least 1")
        if not isinstance(self.word_dropout, int | float) or not 0 <= self.word_dropout < 1:
            raise AnyRNNError(f"settings: got word_dropout={self.word_dropout!r}, expected a share from 0 to below 1")
        if self.pool != "last":
            raise AnyRNNError(
                f"settings: got pool={self.pool!r}, but each step has an answer of its own: nothing is pooled; leave "
                "it out (--pool)"
            )
        if self.causal and self.bidirectional:
            raise AnyRNNError(
                "settings: got bidirectional and causal, but a second direction reads what comes after a step; leave "
                "one of them out (--bidirectional, --causal)"
            )

    def metric_for(self, dataset: Question) -> Metric:
        """What chooses epochs and networks on a dataset."""
        return step_metric(self.metric, dataset.classes)

    def tagger(self, network: Network, data: Tagging) -> Tagger:
        """Make an untrained network."""
        return build(
            network,
            data.reader,
            1 if data.classes is None else len(data.classes),
            self.structure,
            embedding_size=self.embedding_size if data.has_words else None,
            causal=self.causal,
            dropout=self.dropout,
            word_dropout=self.word_dropout,
            recurrent_dropout=self.recurrent_dropout,
            clip_gradient=self.clip_gradient,
        )


def train(
    network: Network,
    data: Tagging,
    settings: TagSettings,
    seed: int,
    on_epoch: Callable[[Epoch, bool], None] | None = None,
) -> tuple[TrainedTagger, Run]:
    """Train a tagger on the training part, and score it on the test part: see `anyrnn.workbench.train.train`."""
    settings = settings.resolved(data)
    with seeded(seed), using_threads(settings.thread_count):
        return _Training(network, data, settings, seed).run(on_epoch or (lambda *_: None))


class _Training:
    """One training run of a tagger. The outputs of a part are those at its steps that have a target."""

    def __init__(self, network: Network, data: Tagging, settings: TagSettings, seed: int) -> None:
        classes, reader = data.classes, data.reader
        module = settings.tagger(network, data)
        self.model = TrainedTagger(
            network=network,
            structure=settings.structure,
            features=data.features,
            classes=classes,
            target=data.target,
            reader=reader,
            target_scale=moments(data.train.flat.numpy()) if classes is None else None,
            embedding_size=settings.embedding_size if data.has_words else None,
            seed=seed,
            module=module,
            id_column=data.id_column,
            time_column=data.time_column,
        )
        self.settings, self.seed, self.metric = settings, seed, settings.metric_for(data)
        self.class_weights = settings.class_weights(data.train.flat, classes)
        self.parts: dict[str, Steps] = {"train": data.train, "test": data.test}
        if data.validation is not None:
            self.parts["validation"] = data.validation
        self.read = {name: [reader(x) for x in part.x] for name, part in self.parts.items()}
        self.scorers = {name: part.scorer(classes) for name, part in self.parts.items()}
        epochs = settings.epochs_for(len(data.train))
        self.optimizer = settings.optimizer(module)
        self.rate = settings.rate(self.optimizer, epochs * math.ceil(len(data.train) / settings.batch_size))
        self.shuffle = torch.Generator().manual_seed(seed)
        steps = [sum(map(len, self.read[name])) for name in ("train", "test")]
        self.scored = scored_epochs(epochs, steps[0], steps[1])
        self.course: Course[Epoch] = Course(epochs, settings.patience)
        self.seconds = 0.0

    def run(self, on_epoch: Callable[[Epoch, bool], None]) -> tuple[TrainedTagger, Run]:
        """Train to the end of the epochs, or of the patience; the model gets the weights of the best epoch."""
        on_validation: Tensor | None = None
        while not self.course.ended:
            on_validation = self._epoch()
            on_epoch(self.course.history[-1], self.course.ended)
        epoch = self.course.take_best(self.model.module)
        said, history = self._said(self._outputs("test")), list(self.course.history)
        scores = self.scorers["test"].scores(said)
        score = scores[self.metric.name]
        history[epoch - 1] = replace(history[epoch - 1], test_score=score)
        decline, luck = (None, None) if on_validation is None else self._decline(on_validation)
        return self.model, Run(
            self.seed, score, self.seconds, tuple(history), tuple(said.tolist()), epoch, decline, luck, scores
        )

    def _epoch(self) -> Tensor | None:
        """Learn from the training part once, score what came of it; return the outputs for the validation part."""
        epoch, start = self.course.next, time.perf_counter()
        loss = self._learn()
        self.seconds += time.perf_counter() - start
        on_test = self._outputs("test") if epoch in self.scored else None
        on_validation = self._outputs("validation") if "validation" in self.parts else None
        if not (math.isfinite(loss) and all(y is None or y.isfinite().all() for y in (on_test, on_validation))):
            raise AnyRNNError(
                f"{self.model.network.name}, seed {self.seed}: training diverged in epoch {epoch}: the mean loss is "
                f"{loss}; expected finite numbers; a lower learning rate than {self.settings.learning_rate} may help"
            )
        point = Epoch(epoch, loss, None if on_test is None else self._score("test", on_test))
        if on_validation is None:
            self.course.add(point, None, self.model.module)
            return None
        score = self._score("validation", on_validation)
        validation_loss = self._loss(on_validation, self.parts["validation"].flat).item()
        point = replace(point, validation_loss=validation_loss, validation_score=score)
        rank = self.metric.sign * score if math.isfinite(score) else -math.inf
        self.course.add(point, (rank, -validation_loss), self.model.module)
        self.rate.after_epoch(validation_loss)
        return on_validation

    def _learn(self) -> float:
        """One epoch; return the mean loss of the steps that have a target."""
        module, total, count = self.model.module, 0.0, 0
        module.train()
        for loss, steps in self.losses():
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.rate.after_update()
            total, count = total + loss.item() * steps, count + steps
        return total / count

    def losses(self) -> Iterator[tuple[Tensor, int]]:
        """Of each batch of an epoch the mean loss of the steps that have a target, and how many these are."""
        part, read, size = self.parts["train"], self.read["train"], self.settings.batch_size
        none = math.nan if self.model.classes is None else NO_TARGET
        for places in torch.randperm(len(part), generator=self.shuffle).split(size):
            chosen = places.tolist()
            x, lengths = pad_sequence([read[k] for k in chosen]), torch.tensor([len(read[k]) for k in chosen])
            y = pad_sequence([part.y[k] for k in chosen], padding_value=none)  # (T, B)
            known = ~y.isnan() if self.model.classes is None else y >= 0  # padding is not
            if known.any():
                answers = self.model.module.answers(x, lengths)
                yield self._loss(answers[known], y[known]), int(known.sum())

    def _outputs(self, part: str) -> Tensor:
        """What the module says at the steps of a part that have a target (N, out_features)."""
        found = outputs(self.model.module, self.read[part])
        return torch.cat([each[known] for each, known in zip(found, self.parts[part].known, strict=True)])

    def _score(self, part: str, outputs: Tensor) -> float:
        return self.scorers[part].statistic(self.metric.name, self._said(outputs))(None)

    def _decline(self, last: Tensor) -> tuple[float, float]:
        """By how much the validation score fell after the best epoch, and twice the standard error of that."""
        scorer, part = self.scorers["validation"], self.parts["validation"]
        best = self._outputs("validation")
        before, after = (scorer.statistic(self.metric.name, self._said(each)) for each in (best, last))

        def fall(places: Any) -> float:
            return self.metric.sign * (before(places) - after(places))

        return fall(None), 2 * spread(fall, len(part), part.groups)

    def _said(self, outputs: Tensor) -> np.ndarray[Any, Any]:
        return np.array(self.model.said(outputs).values)

    def _loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """The mean loss of the answers at N steps that have a target: (N, out_features) and (N,)."""
        if self.model.target_scale is None:
            return F.cross_entropy(answers, y, weight=self.class_weights)
        mean, std = self.model.target_scale
        return F.mse_loss(answers[:, 0], ((y - mean) / std).to(answers.dtype))
