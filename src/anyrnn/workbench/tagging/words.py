"""Words as a network reads them: each as a few pieces, so that a word that training has not seen is not nothing.

A word has eight pieces: itself, in lower case and with 0 for every digit; its shape (Berlin is Xx, iOS xX, U.S. X.X.,
2017 d); and its first and its last one, two and three characters. Each piece that training has twice or more has a
vector, and a word's vector is the sum of those of its pieces. The word itself, where it is not known, has a vector of
its own, that of words that training has once.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError

LEAST = 2  # times that training has a piece which has a vector
PIECES = 8
ABSENT, UNKNOWN = 0, 1  # no such piece, the zero vector; and a word that is not known
_DIGIT = re.compile(r"\d")


def pieces(word: str) -> tuple[str, ...]:
    """The pieces of a word, each with what it is; shorter words have fewer.

    >>> pieces("U2")
    ('=u0', '~Xd', '<u', '<u0', '>0', '>u0')
    """
    plain = _DIGIT.sub("0", word.lower())
    ends = [(f"<{plain[:k]}", f">{plain[-k:]}") for k in (1, 2, 3) if len(plain) >= k]
    return (f"={plain}", f"~{_shape(word)}", *(a for a, _ in ends), *(b for _, b in ends))


def _shape(word: str) -> str:
    """Upper and lower case, digits and the rest, each run of one kind once."""
    kinds = ("X" if c.isupper() else "x" if c.isalpha() else "d" if c.isdigit() else c for c in word)
    return "".join(kind for kind, _ in itertools.groupby(kinds))[:10]


@dataclass(frozen=True)
class Words:
    """The pieces of words that have vectors.

    Attributes:
        pieces: Their texts; their numbers are the places behind those of `ABSENT` and `UNKNOWN`.
    """

    pieces: tuple[str, ...]

    @classmethod
    def fit(cls, sequences: Iterable[Sequence[str]]) -> "Words":
        """Those that the words of sequences have twice or more, the frequent ones first."""
        counts = Counter(itertools.chain.from_iterable(pieces(word) for words in sequences for word in words))
        return cls(tuple(piece for piece, count in counts.most_common() if count >= LEAST))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """By piece its number."""
        return {piece: k + 2 for k, piece in enumerate(self.pieces)}

    @property
    def size(self) -> int:
        """How many vectors there are."""
        return len(self.pieces) + 2

    def knows(self, word: str) -> bool:
        """Whether the word itself has a vector."""
        return pieces(word)[0] in self.numbers

    def __call__(self, words: Sequence[str]) -> Tensor:
        """The numbers of the pieces of words (T, 8); the first one is the word itself."""
        rows = [self._row(word) for word in words]
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), PIECES)

    def _row(self, word: str) -> list[int]:
        if not isinstance(word, str) or not word:
            raise AnyRNNError(f"words: got {word!r}, expected a text that is not empty")
        itself, *others = pieces(word)
        found = [self.numbers.get(itself, UNKNOWN), *(self.numbers.get(piece, ABSENT) for piece in others)]
        return found + [ABSENT] * (PIECES - len(found))
