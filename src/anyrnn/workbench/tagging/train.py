"""Train one tagger once, by the recipe of `anyrnn.workbench.train`: it learns from every step with a target."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.course import Course
from anyrnn.workbench.lesson import Lesson, Tell
from anyrnn.workbench.metrics import Metric, spread
from anyrnn.workbench.models import Network
from anyrnn.workbench.sequences import moments
from anyrnn.workbench.tagging.model import Tagger, TrainedTagger, build, outputs
from anyrnn.workbench.tagging.scores import step_metric
from anyrnn.workbench.tagging.steps import NO_TARGET, Steps, Tagging
from anyrnn.workbench.train import Question, Settings, scored_epochs
from anyrnn.workbench.training import Run, ScoredTraining


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
    on_epoch: Tell | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[TrainedTagger, Run]:
    """Train a tagger on the training part, and score it on the test part: see `anyrnn.workbench.train.train`."""
    return TagLesson(data, settings.resolved(data)).train(network, seed, on_epoch, checkpoints)


@dataclass(frozen=True)
class TagLesson(Lesson[Tagging, TagSettings, TrainedTagger, Run]):
    """A class or a number at each step."""

    @property
    def metric(self) -> str:
        """What chooses epochs and networks."""
        return self.settings.metric_for(self.dataset).name

    def untrained(self, network: Network, seed: int) -> TrainedTagger:
        """The model before training."""
        data, settings = self.dataset, self.settings
        return TrainedTagger(
            network=network,
            structure=settings.structure,
            features=data.features,
            classes=data.classes,
            target=data.target,
            reader=data.reader,
            target_scale=moments(data.train.flat.numpy()) if data.classes is None else None,
            embedding_size=settings.embedding_size if data.has_words else None,
            seed=seed,
            module=settings.tagger(network, data),
            id_column=data.id_column,
            time_column=data.time_column,
        )

    def training(self, network: Network, seed: int) -> "_Training":
        """A training run."""
        return _Training(self, network, seed)


class _Training(ScoredTraining[TrainedTagger]):
    """One training run of a tagger. The outputs of a part are those at its steps that have a target."""

    def __init__(self, lesson: TagLesson, network: Network, seed: int) -> None:
        data, settings, model = lesson.dataset, lesson.settings, lesson.untrained(network, seed)
        self.metric = settings.metric_for(data)
        self.class_weights = settings.class_weights(data.train.flat, data.classes)
        self.parts: dict[str, Steps] = {"train": data.train, "test": data.test}
        if data.validation is not None:
            self.parts["validation"] = data.validation
        self.read = {name: [data.reader(x) for x in part.x] for name, part in self.parts.items()}
        self.scorers = {name: part.scorer(data.classes) for name, part in self.parts.items()}
        self.batch = settings.batch_size
        epochs, optimizer = settings.epochs_for(len(data.train)), settings.optimizer(model.module)
        rate = settings.rate(optimizer, epochs * math.ceil(len(data.train) / self.batch))
        super().__init__(model, settings, seed, optimizer, rate, Course(epochs, settings.patience), len(data.train))
        self.shuffle = torch.Generator().manual_seed(seed)
        steps = [sum(map(len, self.read[name])) for name in ("train", "test")]
        self.tested = scored_epochs(epochs, steps[0], steps[1])

    def learn(self) -> float:
        """One epoch; return the mean loss of the steps that have a target."""
        self.model.module.train()
        total, count = 0.0, 0
        for loss, steps in self.losses():
            self.update(loss)
            total, count = total + loss.item() * steps, count + steps
        return total / count

    def losses(self) -> Iterator[tuple[Tensor, int]]:
        """Of each batch of an epoch the mean loss of the steps that have a target, and how many these are."""
        part, read = self.parts["train"], self.read["train"]
        none = math.nan if self.model.classes is None else NO_TARGET
        for places in torch.randperm(len(part), generator=self.shuffle).split(self.batch):
            chosen = places.tolist()
            x, lengths = pad_sequence([read[k] for k in chosen]), torch.tensor([len(read[k]) for k in chosen])
            y = pad_sequence([part.y[k] for k in chosen], padding_value=none)  # (T, B)
            known = ~y.isnan() if self.model.classes is None else y >= 0  # padding is not
            if known.any():
                answers = self.model.module.answers(x, lengths)
                yield self._loss(answers[known], y[known]), int(known.sum())

    def outputs(self, part: str) -> Tensor | None:
        """What the module says at the steps of a part that have a target (N, out_features)."""
        if part not in self.parts:
            return None
        found = outputs(self.model.module, self.read[part])
        return torch.cat([each[known] for each, known in zip(found, self.parts[part].known, strict=True)])

    def statistic(self, part: str, outputs: Tensor) -> Callable[[Any], float]:
        """The score of a part by the places of its sequences."""
        return self.scorers[part].statistic(self.metric.name, self._said(outputs))

    def validation_loss(self, outputs: Tensor) -> float:
        """The mean loss of the steps of the validation part."""
        return self._loss(outputs, self.parts["validation"].flat).item()

    def luck(self, statistic: Callable[[Any], float]) -> float:
        """The standard error of a statistic of the validation part."""
        part = self.parts["validation"]
        return spread(statistic, len(part), part.groups)

    def answered(self, outputs: Tensor) -> dict[str, Any]:
        """How the test part was answered."""
        said = self._said(outputs)
        return {"predictions": tuple(said.tolist()), "scores": self.scorers["test"].scores(said)}

    def _said(self, outputs: Tensor) -> np.ndarray[Any, Any]:
        return np.array(self.model.said(outputs).values)

    def _loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """The mean loss of the answers at N steps that have a target: (N, out_features) and (N,)."""
        if self.model.target_scale is None:
            return F.cross_entropy(answers, y, weight=self.class_weights)
        mean, std = self.model.target_scale
        return F.mse_loss(answers[:, 0], ((y - mean) / std).to(answers.dtype))
