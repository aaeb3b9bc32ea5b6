"""Train one language model once: truncated backpropagation over the text, with the state carried on.

The recipe: the training part is cut into as many rows as a batch has, which are read side by side in chunks of some
steps; a chunk begins with the states that the last one ended with, and the gradient ends there (Williams and Peng,
1990, with k1 = k2). Adam, whose learning rate rises over the first updates and falls to zero as a cosine does;
gradients are clipped. After every epoch the validation part is scored in one pass, and training ends once that has not
become better for some epochs; the weights are those of the best one. The test part decides nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch.nn import functional as F

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.course import Course
from anyrnn.workbench.language.model import TrainedText, build, surprise
from anyrnn.workbench.language.text import Text
from anyrnn.workbench.lesson import Epoch, Lesson, Tell
from anyrnn.workbench.models import Network
from anyrnn.workbench.schedules import Rate
from anyrnn.workbench.training import Training

LEAST_EPOCHS = 10
BITS = "bits a character"  # the score
_LEAST_UPDATES = 2000  # what 4 epochs are on a million characters: less leaves a model of a short text untrained
_WARM = 100  # updates over which the learning rate rises


@dataclass(frozen=True)
class TextSettings:
    """The budget of a training run, the same for every network of a comparison.

    Attributes:
        hidden_size: H, the units of the recurrent layer.
        embedding_size: The features of a token.
        steps: The tokens of a chunk, through which gradients go back.
        batch_size: Rows that are read side by side; fewer where the text is too short for so many.
        epochs: Passes over the training part, at most. None: 10, or as many as make 2,000 updates if that is more.
        patience: After how many epochs without a better validation score training ends.
        learning_rate: Its peak.
        clip_norm: The norm that gradients are cut to.
        dropout: In front of the recurrent layer and behind it.
        threads: CPU threads. None: as many as PyTorch would take.
        layers: One upon the other, of each network that does not say so itself, as "lstm-2" does.

    Raises:
        AnyRNNError: for a size below one, a rate that is not above zero, or a share that is none.
    """

    hidden_size: int = 256
    embedding_size: int = 64
    steps: int = 64
    batch_size: int = 32
    epochs: int | None = None
    patience: int = 3
    learning_rate: float = 0.003
    clip_norm: float = 1.0
    dropout: float = 0.2
    threads: int | None = None
    layers: int = 1

    def __post_init__(self) -> None:
        for name in ("hidden_size", "embedding_size", "steps", "batch_size", "epochs", "patience", "threads", "layers"):
            value = getattr(self, name)
            may_be_none = name in ("epochs", "threads")
            if (not isinstance(value, int) or value < 1) and not (may_be_none and value is None):
                raise AnyRNNError(f"settings: got {name}={value!r}, expected an int of at least 1")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise AnyRNNError(f"settings: got {name}={value!r}, expected a number above 0")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise AnyRNNError(f"settings: got dropout={self.dropout!r}, expected a share from 0 to below 1")

    def rows_for(self, tokens: int) -> int:
        """How many rows a training part of so many tokens is read in: each has four chunks at least."""
        return max(1, min(self.batch_size, tokens // (4 * self.steps)))

    def epochs_for(self, tokens: int) -> int:
        """The most epochs over so many tokens."""
        rows = self.rows_for(tokens)
        updates = math.ceil((tokens // rows - 1) / self.steps)
        return self.epochs or max(LEAST_EPOCHS, math.ceil(_LEAST_UPDATES / updates))

    def resolved(self, text: Text) -> Self:
        """These settings for a text, with nothing left open that it decides."""
        return replace(self, epochs=self.epochs_for(len(text.train.tokens)), threads=self.thread_count)

    @property
    def thread_count(self) -> int:
        """The number of threads on this machine."""
        return self.threads or torch.get_num_threads()


@dataclass(frozen=True)
class TextRun:
    """What one training run gave.

    Attributes:
        seed: Of the initial weights and dropout.
        epoch: The one whose weights were kept: that with the best validation loss.
        nats: The loss of the test part, summed over its tokens but for the first.
        tokens: How many these are.
        characters: How many characters these are.
        seconds: Spent on training; scoring is not in it.
        tokens_a_second: In training.
        history: The learning curve, in nats a token: of training while the weights were changing, with dropout.
    """

    seed: int
    epoch: int
    nats: float
    tokens: int
    characters: int
    seconds: float
    tokens_a_second: float
    history: tuple[Epoch, ...]

    @property
    def score(self) -> float:
        """Bits a character: what characters and words can be compared by."""
        return self.nats / self.characters / math.log(2)

    @property
    def scores(self) -> dict[str, float]:
        """That score by its name."""
        return {BITS: self.score}

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""
        return {**asdict(self), "score": self.score}


def train(
    network: Network,
    text: Text,
    settings: TextSettings,
    seed: int,
    on_epoch: Tell | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[TrainedText, TextRun]:
    """Train a network on the training part of a text, and score it on the test part.

    See `anyrnn.workbench.lesson.Lesson.train`.
    """
    return TextLesson(text, settings.resolved(text)).train(network, seed, on_epoch, checkpoints)


@dataclass(frozen=True)
class TextLesson(Lesson[Text, TextSettings, TrainedText, TextRun]):
    """How surprising each token of a text is."""

    plural = "tokens"

    @property
    def metric(self) -> str:
        """What networks are compared by."""
        return BITS

    def untrained(self, network: Network, seed: int) -> TrainedText:
        """The model before training."""
        text, settings = self.dataset, self.settings
        size = len(text.vocabulary)
        counts = torch.bincount(text.train.tokens, minlength=size).double()
        return TrainedText(
            network=network,
            vocabulary=text.vocabulary,
            hidden_size=settings.hidden_size,
            embedding_size=settings.embedding_size,
            seed=seed,
            module=build(
                network, size, settings.hidden_size, settings.embedding_size, settings.dropout, settings.layers
            ),
            unigrams=(counts / counts.sum()).tolist(),
        )

    def training(self, network: Network, seed: int) -> "_Training":
        """A training run."""
        return _Training(self, network, seed)


class _Training(Training[TrainedText, TextRun]):
    """A training run."""

    def __init__(self, lesson: TextLesson, network: Network, seed: int) -> None:
        settings, model, tokens = lesson.settings, lesson.untrained(network, seed), lesson.dataset.train.tokens
        self.text, self.steps = lesson.dataset, settings.steps
        count = settings.rows_for(len(tokens))
        rows = tokens[: len(tokens) // count * count].view(count, -1)
        self.rows = [(row[:-1], row[1:]) for row in rows]
        epochs, amount = settings.epochs_for(len(tokens)), count * (rows.shape[1] - 1)
        updates = epochs * math.ceil((rows.shape[1] - 1) / settings.steps)
        optimizer = torch.optim.Adam(model.module.parameters(), lr=settings.learning_rate)
        rate = Rate.warm(optimizer, updates, min(_WARM, updates // 10 + 1))
        super().__init__(model, settings, seed, optimizer, rate, Course(epochs, settings.patience), amount)

    def learn(self) -> float:
        """Read the training part once: its mean loss."""
        module = self.model.module
        module.train()
        total, state = 0.0, None
        for chunk in anyrnn.chunks(self.rows, self.steps, batch=len(self.rows)):
            tokens, target = chunk.data
            logits, state = module.logits(tokens, anyrnn.detach(state))
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
            self.update(loss)
            total += loss.item() * target.numel()
        return total / self.amount

    def scored(self, epoch: int, loss: float) -> tuple[Epoch, tuple[float, ...] | None]:
        """The point of the learning curve after an epoch: the loss of the validation part ranks it."""
        found = float(surprise(self.model.module, self.text.validation.tokens).double().mean())
        self.refuse_divergence(epoch, loss, found)
        return Epoch(epoch, loss, validation_loss=found), (-found,)

    def outcome(self, epoch: int) -> TextRun:
        """What came of it, on the test part."""
        test, history = self.text.test, tuple(self.course.history)
        nats = float(surprise(self.model.module, test.tokens).double().sum())
        first = len(self.text.vocabulary.tokens[int(test.tokens[0])])
        return TextRun(
            self.seed, epoch, nats, len(test.tokens) - 1, len(test.text) - first, self.seconds,
            len(history) * self.amount / max(self.seconds, 1e-9), history,
        )  # fmt: skip

    def outcome_from(self, kept: Mapping[str, Any]) -> TextRun:
        """What came of it, from its fields."""
        return TextRun(**kept)
