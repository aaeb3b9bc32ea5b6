"""A language model: tokens in, the probabilities of the next one out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.workbench.language.text import Vocabulary
from anyrnn.workbench.models import Network, stacked

_PIECE = 1000  # tokens a call when a text is scored: bounds the memory, changes no result


class LanguageModel(nn.Sequential):
    """An embedding, a recurrent layer, and a linear layer, with dropout between them.

    A sequence of modules, so that `anyrnn.stepwise` makes one step of it.

    Args:
        layer: The recurrent layer, in one direction: a model that reads what comes next has nothing to predict.
        size: The number of tokens.
        embedding_size: The features of a token.
        dropout: The share of features dropped in front of the layer and behind it, in training.
    """

    def __init__(self, layer: Layer, size: int, embedding_size: int, dropout: float) -> None:
        if layer.bidirectional:
            raise AnyRNNError(
                f"{type(layer).__name__}: a bidirectional layer reads the token that it is to predict; expected one "
                "direction"
            )
        if not isinstance(layer.output_size, int):
            raise AnyRNNError(f"{type(layer).__name__}: got outputs {layer.output_size}, expected (B, features)")
        readout = nn.Linear(layer.output_size, size)
        super().__init__(nn.Embedding(size, embedding_size), nn.Dropout(dropout), layer, nn.Dropout(dropout), readout)

    @property
    def layer(self) -> Layer:
        """The recurrent layer."""
        layer: Any = self[2]
        return layer  # type: ignore[no-any-return]

    def logits(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The logits of the next tokens (T, B, size) behind each of these (T, B), and the state; unbatched likewise."""
        embedding, dropout, layer, again, readout = self
        output, state = layer(dropout(embedding(tokens)), state)
        return readout(again(output)), state


def build(
    network: Network, size: int, hidden_size: int, embedding_size: int, dropout: float, layers: int = 1
) -> LanguageModel:
    """Make the untrained model.

    Raises:
        AnyRNNError: if the network reads in both directions.
    """
    return LanguageModel(stacked(network, embedding_size, hidden_size, layers), size, embedding_size, dropout)


@torch.no_grad()
def surprise(model: LanguageModel, tokens: Tensor) -> Tensor:
    """How surprising each token of a text is but for the first, given all before it, in nats: (T - 1,)."""
    was_training = model.training
    model.eval()
    found, state = [torch.empty(0)], None
    for x, target in zip(tokens[:-1].split(_PIECE), tokens[1:].split(_PIECE), strict=True):
        logits, state = model.logits(x, state)
        found.append(F.cross_entropy(logits, target, reduction="none"))
    model.train(was_training)
    return torch.cat(found)


@dataclass(frozen=True)
class TrainedText:
    """A trained language model with all that it takes to read a text and to write one.

    Attributes:
        network: Which one.
        vocabulary: The tokens.
        hidden_size: H.
        embedding_size: The features of a token.
        seed: That of the training run.
        module: The trained model.
        unigrams: How often each token occurs in the training part, as shares: what a text may begin with.
    """

    network: Network
    vocabulary: Vocabulary
    hidden_size: int
    embedding_size: int
    seed: int
    module: LanguageModel
    unigrams: Sequence[float]

    @property
    def layer(self) -> Layer:
        """The recurrent layer."""
        return self.module.layer
