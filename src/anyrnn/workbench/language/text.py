"""A text as numbers: its vocabulary, and the parts for training, validation and test.

A model reads tokens: characters, or words. What is split into words can be put together again, so that the loss of
either can be stated for each character of the text, and compared.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError

Level = Literal["character", "word"]
LEVELS: tuple[Level, ...] = get_args(Level)

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # a character that the training part does not have
_SHORTEST = 1000  # characters: below that there is nothing to learn from, and no part to test on
# A word takes the blank before it along, as does a sign; what white space is left stands for itself.
_WORD = re.compile(r" ?\w+(?:['\u2019]\w+)?| ?[^\w\s]|\s")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows, and their numbers: their places in `tokens`.

    A word that is not among them is read character by character; so is every character that training has seen.
    """

    tokens: tuple[str, ...]
    level: Level = "character"

    def __post_init__(self) -> None:
        if len(set(self.tokens)) < len(self.tokens) or UNKNOWN not in self.tokens:
            raise AnyRNNError(f"vocabulary: expected different tokens, {UNKNOWN!r} among them")

    @classmethod
    def of(cls, text: str, level: Level = "character", least: int = 2) -> "Vocabulary":
        """The vocabulary of a training text: its characters and, of a word model, the words that occur often enough.

        Args:
            text: The training part, and nothing else.
            level: "character" or "word".
            least: How often a word has to occur. A rarer one is spelled.
        """
        characters = sorted({*text, UNKNOWN})
        if level == "character":
            return cls(tuple(characters))
        counts = Counter(_WORD.findall(text))
        words = (word for word, count in counts.most_common() if count >= least and len(word) > 1)
        return cls((*characters, *words), level)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """By token, its number."""
        return {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> Tensor:
        """A text as numbers: (T,), int64. A character that training has not seen becomes `UNKNOWN`."""
        numbers, unknown = self.numbers, self.numbers[UNKNOWN]
        pieces: Iterable[str] = text if self.level == "character" else _WORD.findall(text)
        found: list[int] = []
        for piece in pieces:
            number = numbers.get(piece)
            if number is not None:
                found.append(number)
            else:
                found += [numbers.get(character, unknown) for character in piece]
        return torch.tensor(found, dtype=torch.int64)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of these tokens; of what `encode` gives, the text itself, but for unknown characters."""
        return "".join(self.tokens[number] for number in numbers)


@dataclass(frozen=True)
class Part:
    """A part of a text.

    Attributes:
        text: Its characters.
        tokens: Their tokens (T,), int64.
    """

    text: str
    tokens: Tensor


@dataclass(frozen=True, repr=False)
class Text:
    """A question to a language model: how surprising is each token, given those before it?

    Attributes:
        name: What it is called in tables and reports.
        vocabulary: That of the training part.
        train: What is learned from.
        validation: What decides after which epoch training has been best.
        test: What is only scored.
        split: A sentence that says where the parts come from.
        notes: What reading took for granted, a sentence each.
    """

    name: str
    vocabulary: Vocabulary
    train: Part
    validation: Part
    test: Part
    split: str
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        train, validation, test = (f"{len(part.text):,}" for part in (self.train, self.validation, self.test))
        words = sum(len(token) > 1 for token in self.vocabulary.tokens)
        characters = len(self.vocabulary) - words - 1  # but for the one that stands for unknown ones
        also = f" and {words:,} words" if words else ""
        return (
            f"{self.name}: {train} training, {validation} validation and {test} test characters, {characters} "
            f"different ones{also}"
        )


def is_text(source: object) -> bool:
    """Whether this is the name of a text file."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in {".txt", ".md", ".text"}


def load_text(
    source: str | os.PathLike[str],
    *,
    level: Level = "character",
    test: str | os.PathLike[str] | None = None,
    validation: float = 0.05,
    test_fraction: float = 0.05,
    least: int = 2,
    encoding: str = "utf-8",
) -> Text:
    """Read a text and cut it into three parts, in the order of the file: training, validation, test.

    Args:
        source: The path of a text file.
        level: Whether a model reads characters, or words and, where they are rare, characters.
        test: A file with the test part; without it, the end of the text is.
        validation: The share of the text in the validation part.
        test_fraction: The share in the test part, where it is the end of the text.
        least: Word models: how often a word has to occur in training to be a token.
        encoding: That of the files.

    Raises:
        AnyRNNError: The text cannot be used as it is. The message names the place and the cure.
    """
    if level not in LEVELS:
        raise AnyRNNError(f"load_text: got level={level!r}, expected 'character' or 'word'")
    for name, share in (("validation", validation), ("test_fraction", test_fraction)):
        if not 0 < share < 0.5:
            raise AnyRNNError(f"load_text: got {name}={share}, expected a share above 0 and below 0.5, such as 0.05")
    if not isinstance(least, int) or least < 1:
        raise AnyRNNError(f"load_text: got least={least!r}, expected a whole number of at least 1")
    path = Path(source)
    whole = _read(path, encoding)
    if len(whole) < _SHORTEST:
        raise AnyRNNError(f"{path}: got a text of {len(whole)} characters, expected at least {_SHORTEST:,}")
    if len(set(whole)) < 2:
        raise AnyRNNError(f"{path}: the text has {whole[0]!r} only, expected something to predict")
    end = len(whole) if test is None else len(whole) + 1
    if test is None:
        end = len(whole) - max(2, round(len(whole) * test_fraction))
        tested, place = whole[end:], f"the last {test_fraction:.0%}"
    else:
        tested, place = _read(Path(test), encoding), f"{Path(test)}, as asked for"
        if len(tested) < 2:
            raise AnyRNNError(f"{test}: got a text of {len(tested)} characters, expected at least 2")
    start = min(end, len(whole)) - max(2, round(len(whole) * validation))
    texts = (whole[:start], whole[start:end], tested)
    vocabulary = Vocabulary.of(texts[0], level, least)
    train, chosen_by, last = (Part(text, vocabulary.encode(text)) for text in texts)
    split = (
        f"in the order of the text: {start:,} characters to train on, then {len(texts[1]):,} for validation; the test "
        f"part is {place}: {len(tested):,} characters"
    )
    return Text(path.stem, vocabulary, train, chosen_by, last, split, _notes(texts, vocabulary))


def _read(path: Path, encoding: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnyRNNError(f"{path}: this cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode(encoding)
    except LookupError as error:
        raise AnyRNNError(
            f"{path}: encoding {encoding!r} is not known; expected one such as utf-8 or latin-1"
        ) from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AnyRNNError(
            f"{path}: line {line}: byte {data[error.start]:#04x} is not {encoding}; name the encoding of the file "
            "(encoding, --encoding), such as latin-1 or cp1252"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _notes(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[str, ...]:
    notes: list[str] = []
    strange = [character for text in texts[1:] for character in text if character not in vocabulary.numbers]
    if strange:
        kinds = sorted(set(strange))
        shown = ", ".join(map(repr, kinds[:5])) + (", ..." if len(kinds) > 5 else "")
        notes.append(
            f"{len(strange)} characters of the validation and test parts are not in the training part ({shown}): "
            "no model can expect them"
        )
    if "\0" in texts[0]:
        notes.append("the text holds zero bytes; is it a text file?")
    return tuple(notes)
