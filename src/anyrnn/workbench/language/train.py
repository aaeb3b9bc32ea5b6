"""Train one language model once: truncated backpropagation over the text, with the state carried on.

The recipe: the training part is cut into as many rows as a batch has, which are read side by side in chunks of some
steps; a chunk begins with the states that the last one ended with, and the gradient ends there (Williams and Peng,
1990, with k1 = k2). Adam, whose learning rate rises over the first updates and falls to zero as a cosine does;
gradients are clipped. After every epoch the validation part is scored in one pass, and training ends once that has not
become better for some epochs; the weights are those of the best one. The test part decides nothing.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.course import Course
from anyrnn.workbench.language.model import LanguageModel, TrainedText, build, surprise
from anyrnn.workbench.language.text import Text
from anyrnn.workbench.models import Network
from anyrnn.workbench.train import seeded, using_threads

LEAST_EPOCHS = 10
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

    @property
    def thread_count(self) -> int:
        """The number of threads on this machine."""
        return self.threads or torch.get_num_threads()


@dataclass(frozen=True)
class TextEpoch:
    """One point of a learning curve, in nats a token.

    Attributes:
        epoch: Counted from 1.
        train_loss: Its mean over the tokens, while the weights were changing, with dropout.
        validation_loss: Of the weights after the epoch, without.
    """

    epoch: int
    train_loss: float
    validation_loss: float


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
        history: The learning curve.
    """

    seed: int
    epoch: int
    nats: float
    tokens: int
    characters: int
    seconds: float
    tokens_a_second: float
    history: tuple[TextEpoch, ...]

    @property
    def score(self) -> float:
        """Bits a character: what characters and words can be compared by."""
        return self.nats / self.characters / math.log(2)


def train(
    network: Network,
    text: Text,
    settings: TextSettings,
    seed: int,
    on_epoch: Callable[[TextEpoch, bool], None] | None = None,
) -> tuple[TrainedText, TextRun]:
    """Train a network on the training part of a text, and score it on the test part.

    The same seed, thread count and machine give the same weights, bit for bit. The caller's random state and number
    of threads are left as they were. `on_epoch` hears of each epoch, and whether the run ends with it.

    Raises:
        AnyRNNError: if the loss stops being a finite number.
    """
    with seeded(seed), using_threads(settings.thread_count):
        return _train(network, text, settings, seed, on_epoch or (lambda epoch, ended: None))


def _train(
    network: Network, text: Text, settings: TextSettings, seed: int, on_epoch: Callable[[TextEpoch, bool], None]
) -> tuple[TrainedText, TextRun]:
    size = len(text.vocabulary)
    module = build(network, size, settings.hidden_size, settings.embedding_size, settings.dropout, settings.layers)
    training = _Training(module, text.train.tokens, settings)
    course: Course[TextEpoch] = Course(settings.epochs_for(len(text.train.tokens)), settings.patience)
    while not course.ended:
        loss = training.epoch()
        validation = float(surprise(module, text.validation.tokens).double().mean())
        if not (math.isfinite(loss) and math.isfinite(validation)):
            raise AnyRNNError(
                f"{network.name}, seed {seed}: training diverged in epoch {course.next}: the mean loss is {loss}; "
                f"expected finite numbers; a lower learning rate than {settings.learning_rate} may help"
            )
        course.add(TextEpoch(course.next, loss, validation), (-validation,), module)
        on_epoch(course.history[-1], course.ended)
    kept, history = course.take_best(module), course.history
    module.eval()
    test = text.test
    nats = float(surprise(module, test.tokens).double().sum())
    first = len(text.vocabulary.tokens[int(test.tokens[0])])
    run = TextRun(
        seed, kept, nats, len(test.tokens) - 1, len(test.text) - first, training.seconds,
        len(history) * training.tokens / max(training.seconds, 1e-9), tuple(history),
    )  # fmt: skip
    counts = torch.bincount(text.train.tokens, minlength=size).double()
    shares = (counts / counts.sum()).tolist()
    model = TrainedText(network, text.vocabulary, settings.hidden_size, settings.embedding_size, seed, module, shares)
    return model, run


class _Training:
    """A training run: what it updates, and how far it is.

    Attributes:
        tokens: How many an epoch predicts.
        seconds: Spent so far.
    """

    def __init__(self, model: LanguageModel, tokens: Tensor, settings: TextSettings) -> None:
        self.model, self.settings, self.seconds = model, settings, 0.0
        count = settings.rows_for(len(tokens))
        rows = tokens[: len(tokens) // count * count].view(count, -1)
        self.rows = [(row[:-1], row[1:]) for row in rows]
        self.tokens = count * (rows.shape[1] - 1)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        updates = settings.epochs_for(len(tokens)) * math.ceil((rows.shape[1] - 1) / settings.steps)
        warm = min(_WARM, updates // 10 + 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda k: min(1, (k + 1) / warm) * (1 + math.cos(math.pi * min(1, k / updates))) / 2
        )

    def epoch(self) -> float:
        """Read the training part once: its mean loss."""
        settings, model = self.settings, self.model
        start = time.perf_counter()
        model.train()
        total, state = 0.0, None
        for chunk in anyrnn.chunks(self.rows, settings.steps, batch=len(self.rows)):
            tokens, target = chunk.data
            logits, state = model.logits(tokens, anyrnn.detach(state))
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            total += loss.item() * target.numel()
        self.seconds += time.perf_counter() - start
        return total / self.tokens
