"""Train one tagger once, by the recipe of `anyrnn.workbench.train`: it learns from every step with a target."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.metrics import Metric, spread
from anyrnn.workbench.models import Network
from anyrnn.workbench.sequences import moments
from anyrnn.workbench.tagging.model import Tagger, TrainedTagger, build, outputs
from anyrnn.workbench.tagging.scores import step_metric
from anyrnn.workbench.tagging.steps import NO_TARGET, Steps, Tagging
from anyrnn.workbench.tagging.words import Words
from anyrnn.workbench.train import Epoch, Learner, Question, Run, Settings, class_weights, seeded, using_threads


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
        reader = data.reader
        words = reader.size if isinstance(reader, Words) else None
        return build(
            network,
            len(data.features) if words is None else self.embedding_size,
            1 if data.classes is None else len(data.classes),
            self.structure,
            words=words,
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


class _Training(Learner[TrainedTagger]):
    """One training run of a tagger. The outputs of a part are those of its steps that have a target."""

    def __init__(self, network: Network, data: Tagging, settings: TagSettings, seed: int) -> None:
        classes, reader = data.classes, data.reader
        model = TrainedTagger(
            network=network,
            structure=settings.structure,
            features=data.features,
            classes=classes,
            target=data.target,
            reader=reader,
            target_scale=moments(data.train.flat.numpy()) if classes is None else None,
            embedding_size=settings.embedding_size if data.has_words else None,
            seed=seed,
            module=settings.tagger(network, data),
            id_column=data.id_column,
            time_column=data.time_column,
        )
        self.weights = class_weights(data.train.flat, len(classes)) if classes and settings.balanced else None
        self.parts: dict[str, Steps] = {"train": data.train, "test": data.test}
        if data.validation is not None:
            self.parts["validation"] = data.validation
        self.read = {name: [reader(x) for x in part.x] for name, part in self.parts.items()}
        self.scorers = {name: part.scorer(classes) for name, part in self.parts.items()}
        steps = [sum(map(len, self.read[name])) for name in ("train", "test")]
        super().__init__(
            model,
            settings,
            seed,
            settings.metric_for(data),
            sequences=len(data.train),
            steps=(steps[0], steps[1]),
            validated=data.validation is not None,
        )

    def losses(self) -> Iterator[tuple[Tensor, int]]:
        part, read, size = self.parts["train"], self.read["train"], self.settings.batch_size
        none = float("nan") if self.model.classes is None else NO_TARGET
        for places in torch.randperm(len(part), generator=self.shuffle).split(size):
            chosen = places.tolist()
            x, lengths = pad_sequence([read[k] for k in chosen]), torch.tensor([len(read[k]) for k in chosen])
            y = pad_sequence([part.y[k] for k in chosen], padding_value=none)  # (T, B)
            known = ~y.isnan() if self.model.classes is None else y >= 0  # padding is not
            if known.any():
                answers = self.model.module.answers(x, lengths)
                yield self._loss(answers[known], y[known]), int(known.sum())

    def outputs(self, part: str) -> Tensor:
        found = outputs(self.model.module, self.read[part])
        return torch.cat([each[known] for each, known in zip(found, self.parts[part].known, strict=True)])

    def score(self, part: str, outputs: Tensor) -> float:
        return self.scorers[part].statistic(self.metric.name, self._said(outputs))(None)

    def validation_loss(self, outputs: Tensor) -> float:
        return self._loss(outputs, self.parts["validation"].flat).item()

    def decline(self, best: Tensor, last: Tensor) -> tuple[float, float]:
        scorer, part = self.scorers["validation"], self.parts["validation"]
        before, after = (scorer.statistic(self.metric.name, self._said(each)) for each in (best, last))

        def fall(places: Any) -> float:
            return self.metric.sign * (before(places) - after(places))

        return fall(None), 2 * spread(fall, len(part), part.groups)

    def results(self, outputs: Tensor) -> dict[str, Any]:
        said = self._said(outputs)
        return {"scores": self.scorers["test"].scores(said), "predictions": tuple(said.tolist())}

    def _said(self, outputs: Tensor) -> np.ndarray[Any, Any]:
        return np.array(self.model.said(outputs).values)

    def _loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """The mean loss of the answers at N steps that have a target: (N, out_features) and (N,)."""
        if self.model.target_scale is None:
            return F.cross_entropy(answers, y, weight=self.weights)
        mean, std = self.model.target_scale
        return F.mse_loss(answers[:, 0], ((y - mean) / std).to(answers.dtype))
