"""A language model writes: a stream of the whole model reads each token that was drawn from what it gave before."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.language.model import TrainedText
from anyrnn.workbench.language.text import UNKNOWN


def generate(
    model: TrainedText, length: int = 500, *, prompt: str = "", temperature: float = 1.0, seed: int | None = None
) -> Iterator[str]:
    """Write a text, token by token.

    Args:
        model: A trained language model.
        length: How many tokens to write.
        prompt: What they go on from; it is not part of what is written. Without one the first token is drawn as the
            training part has them.
        temperature: What logits are divided by: below 1 a model dares less, and at 0 it takes the likeliest token
            always; above 1 it dares more.
        seed: Of what is drawn; None: another text every time. PyTorch's own random state is left alone.

    Yields:
        The text of each token.

    Raises:
        AnyRNNError: for a negative length or temperature, and for a prompt with a character that training has not
            seen.
    """
    if not isinstance(length, int) or length < 0:
        raise AnyRNNError(f"generate: got length={length!r}, expected a whole number of at least 0")
    if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise AnyRNNError(f"generate: got temperature={temperature!r}, expected a number of at least 0, such as 0.8")
    strange = sorted({character for character in prompt if character not in model.vocabulary.numbers})
    if strange:
        raise AnyRNNError(
            f"generate: the prompt has {', '.join(map(repr, strange))}, which the text that the model was trained on "
            "has not; expected its characters only"
        )
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    return _written(model, length, model.vocabulary.encode(prompt).tolist(), temperature, generator)


def _written(
    model: TrainedText, length: int, prompt: list[int], temperature: float, generator: torch.Generator
) -> Iterator[str]:
    tokens, unknown = model.vocabulary.tokens, model.vocabulary.numbers[UNKNOWN]
    stream = anyrnn.stepwise(model.module.eval()).stream()
    for token in prompt:
        stream.x[:] = token
        stream.step()
    logits = stream.y if prompt else torch.tensor([model.unigrams]).log()
    for _ in range(length):
        token = _drawn(logits, temperature, unknown, generator)
        yield tokens[token]
        stream.x[:] = token
        stream.step()
        logits = stream.y


def _drawn(logits: Tensor, temperature: float, unknown: int, generator: torch.Generator) -> int:
    """Draw a token, but never the one that stands for those that nobody knows."""
    scores = logits[0].double().clone()
    scores[unknown] = -math.inf
    if temperature == 0:
        return int(scores.argmax())
    return int(torch.softmax((scores - scores.amax()) / temperature, 0).multinomial(1, generator=generator))
