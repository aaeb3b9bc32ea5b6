"""A tagger: an answer at each step, from a recurrent layer and one linear layer on all of its outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.workbench.models import Network, Structure, layer_of, read
from anyrnn.workbench.reading import Reading, check_reading
from anyrnn.workbench.sequences import Scaler
from anyrnn.workbench.tagging.words import PIECES, UNKNOWN, Words

_MOST_STEPS = 50_000  # a call when predicting, padding among them: bounds the memory, changes no result


class Sum(nn.Module):
    """The sum of the vectors of a word's pieces: (..., P, E) to (..., E)."""

    def forward(self, x: Tensor) -> Tensor:
        """Add them."""
        return x.sum(-2)


class Tagger(nn.Sequential):
    """For words their vectors, then dropout; a recurrent layer, dropout, and a linear layer.

    A sequence of modules, so that `anyrnn.stepwise` makes one step of it, if it reads in one direction.

    Args:
        layer: The recurrent layer.
        out_features: The number of classes, or 1 for a number.
        words: The number of pieces of words that have vectors; None if a step is numbers.
        dropout: The share of features dropped in front of the linear layer, and behind the vectors, in training.
        word_dropout: The share of words that are taken for unknown ones in training.
    """

    def __init__(self, layer: Layer, out_features: int, words: int | None, dropout: float, word_dropout: float) -> None:
        if not isinstance(layer.output_size, int):
            raise AnyRNNError(f"{type(layer).__name__}: got outputs {layer.output_size}, expected (T, B, features)")
        front: list[nn.Module] = []
        if words is not None:
            embedding = nn.Embedding(words, _input_size(layer), padding_idx=0)
            nn.init.normal_(embedding.weight[1:], std=PIECES**-0.5)  # so that a sum of them has variance 1
            front = [embedding, Sum(), nn.Dropout(dropout)]
        linear = nn.Linear(layer.output_size, out_features)
        super().__init__(*front, layer, nn.Dropout(dropout), linear)
        self.word_dropout = word_dropout

    @property
    def layer(self) -> Layer:
        """The recurrent layer."""
        layer: Any = self[-3]
        return layer  # type: ignore[no-any-return]

    @property
    def reads_words(self) -> bool:
        """Whether a step is a word."""
        return len(self) > 3

    def answers(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The answer at each step (T, B, out_features), from numbers (T, B, I), or pieces of words (T, B, P)."""
        if self.reads_words and self.training and self.word_dropout:
            lost = torch.rand(x.shape[:-1]) < self.word_dropout
            x = torch.cat((x[..., :1].masked_fill(lost.unsqueeze(-1), UNKNOWN), x[..., 1:]), -1)
        for module in [*self.children()][:-3]:  # none, if a step is numbers
            x = module(x)
        output, _ = self.layer(x, lengths=lengths)
        return self[-1](self[-2](output))  # type: ignore[no-any-return]


def _input_size(layer: Layer) -> int:
    return int(layer.input_size)  # type: ignore[arg-type]


def width(reader: Scaler | Words, embedding_size: int | None) -> int:
    """The features of a step as the recurrent layer reads it: what the scaler makes, or the vectors of words."""
    return reader.width if isinstance(reader, Scaler) else embedding_size or 0


def _input_columns(network: Network, reader: Scaler | Words, embedding_size: int | None) -> int:
    """The same, if the network takes them."""
    if isinstance(reader, Scaler):
        return network.input_size(reader)
    if network.gaps is not None:
        raise AnyRNNError(f"cell {network.name!r} reads what is said of missing values, and words have none")
    return width(reader, embedding_size)


def build(
    network: Network,
    reader: Scaler | Words,
    out_features: int,
    structure: Structure,
    *,
    embedding_size: int | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    word_dropout: float = 0.0,
    **options: Any,
) -> Tagger:
    """Make the untrained module.

    Args:
        network: Which.
        reader: What it reads.
        out_features: The number of classes, or 1.
        structure: Of what; its pool is not used.
        embedding_size: The features of the vectors of words; None if a step is numbers.
        causal: Refuse a network that reads what comes after a step.
        dropout: Behind the vectors of words, between layers and before the linear layer.
        word_dropout: Of words in training.
        **options: `recurrent_dropout` and `clip_gradient`.
    """
    layer = layer_of(network, _input_columns(network, reader, embedding_size), structure, **options)
    if causal and layer.bidirectional:
        raise AnyRNNError(
            f"{network.title}: a bidirectional network reads what comes after a step; expected one that reads forwards "
            "only, since causal answers are asked for (causal, --causal)"
        )
    if dropout and layer.num_layers > 1:
        layer.dropout = dropout
    words = reader.size if isinstance(reader, Words) else None
    return Tagger(layer, out_features, words, dropout, word_dropout)


def batches(sequences: Sequence[Tensor], most: int = _MOST_STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences side by side, (T, B, ...) padded with 0, and their lengths: as many as make so many steps."""
    chosen: list[Tensor] = []
    for x in [*sequences, None]:
        longest = max([len(each) for each in chosen] + ([] if x is None else [len(x)]), default=0)
        if chosen and (x is None or longest * (len(chosen) + 1) > most):
            yield pad_sequence(chosen), torch.tensor([len(each) for each in chosen])
            chosen = []
        if x is not None:
            chosen.append(x)


def outputs(module: Tagger, sequences: Sequence[Tensor]) -> list[Tensor]:
    """What the module says at each step of sequences as it reads them: (T, out_features) each, without dropout."""
    module.eval()
    found: list[Tensor] = []
    with torch.no_grad():
        for x, lengths in batches(sequences):
            answers = module.answers(x, lengths)
            found += [answers[:length, k].clone() for k, length in enumerate(lengths.tolist())]
    return found


@dataclass(frozen=True)
class StepPredictions:
    """What a tagger says about the steps of one sequence.

    Attributes:
        values: (T,): the index of the class, or the number.
        labels: The names of the classes; None where numbers are predicted.
        probabilities: Of all classes (T, K); None where numbers are predicted.
    """

    values: tuple[int, ...] | tuple[float, ...]
    labels: tuple[str, ...] | None
    probabilities: Tensor | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The labels, or the numbers as text."""
        return self.labels or tuple(f"{value:.9g}" for value in self.values)


@dataclass(frozen=True)
class TrainedTagger:
    """A trained tagger with all that it takes to go from sequences as read to predictions.

    Attributes:
        network: Which one.
        structure: Of what it is made.
        features: The names of what a step has.
        classes: The names of the classes; None if numbers are predicted.
        target: The name of what is predicted.
        reader: What makes numbers for the network of what is read.
        target_scale: Mean and standard deviation of the training targets where numbers are predicted.
        embedding_size: The features of the vectors of words; None if a step is numbers.
        seed: The seed of the training run.
        module: The trained module.
        id_column: The column that named the sequences of the table it was trained on; None if that was no table.
        time_column: The column that sorted their steps; None if none did.
        reading: What was made of the columns of that table; None: each is a feature.
    """

    network: Network
    structure: Structure
    features: tuple[str, ...]
    classes: tuple[str, ...] | None
    target: str
    reader: Scaler | Words
    target_scale: tuple[float, float] | None
    embedding_size: int | None
    seed: int
    module: Tagger
    id_column: str | None = None
    time_column: str | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        if (self.classes is None) is (self.target_scale is None):
            raise AnyRNNError(f"{self.network.name}: expected either classes or a target scale, got both or none")
        if isinstance(self.reader, Words) is (self.embedding_size is None):
            raise AnyRNNError(f"{self.network.name}: expected an embedding size for words, and for words only")
        if isinstance(self.reader, Scaler) and len(self.reader.mean) != len(self.features):
            raise AnyRNNError(
                f"{self.network.name}: the scaler has {len(self.reader.mean)} features, expected {len(self.features)}"
            )
        check_reading(self.network.name, self.reading, self.features)

    @property
    def layer(self) -> Layer:
        """The recurrent layer."""
        return self.module.layer

    @property
    def causal(self) -> bool:
        """Whether the answer at a step depends on nothing that comes after it: such a model can be streamed."""
        return not self.layer.bidirectional

    @cached_property
    def missing(self) -> tuple[str, ...] | None:
        """What was read as missing in training."""
        return self.reader.missing if isinstance(self.reader, Scaler) else None

    def predict(self, sequences: Sequence[Any]) -> list[StepPredictions]:
        """Predict the class or the number of each step of each sequence.

        Args:
            sequences: (T, I) tensors or arrays as read, not scaled, with the features in the order of `features`; or
                sequences of T words.

        Raises:
            AnyRNNError: for a sequence of another form, or one that is not all finite, or so far from those of the
                training that the answer is not. NaN is taken as missing where values could be missing in training, too.
        """
        read = [self._read(k, each) for k, each in enumerate(sequences)]
        answers = outputs(self.module, read)
        wild = next((k for k, each in enumerate(answers) if not each.isfinite().all()), None)
        if wild is not None:
            raise AnyRNNError(
                f"{self.network.name}: an answer for sequence {wild} is not finite; expected sequences like those that "
                "the network was trained on"
            )
        return [self.said(each) for each in answers]

    def said(self, answers: Tensor) -> StepPredictions:
        """Turn what the module says of steps (T, out_features) into predictions."""
        if self.target_scale is not None:
            mean, std = self.target_scale
            return StepPredictions(tuple((answers[:, 0].double() * std + mean).tolist()), None, None)
        classes, indices = self.classes or (), answers.argmax(1).tolist()
        return StepPredictions(tuple(indices), tuple(classes[k] for k in indices), answers.softmax(1))

    def _read(self, k: int, given: Any) -> Tensor:
        if isinstance(self.reader, Words):
            if isinstance(given, str) or not len(given):
                raise AnyRNNError(
                    f"{self.network.name}: sequence {k} is {given!r}, expected at least one word in a list"
                )
            return self.reader(given)
        return read(self.network.name, k, given, self.features, self.reader)
