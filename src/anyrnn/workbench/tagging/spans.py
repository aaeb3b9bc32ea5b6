"""Spans of BIO tags, counted as the program conlleval of the CoNLL-2000 and CoNLL-2003 shared tasks counts them.

A span is correct if its first step, its last step and its type are right (Tjong Kim Sang and De Meulder 2003). Tags
that break the rules of BIO are read as conlleval reads them: I-x begins a span where no span of type x is open. So
IOB1, in which only a span right behind another of its type begins with B, is read rightly as well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

OUTSIDE = "O"
_INSIDE = re.compile(r"([BI])-(.+)")
_OTHER = re.compile(r"[BIESLU]-.+")  # the letters of schemes that mark ends and single steps, too


def is_bio(tags: Sequence[str]) -> bool:
    """Whether tags are O, B-x and I-x, some of them with a type."""
    return any(_INSIDE.fullmatch(tag) for tag in tags) and all(tag == OUTSIDE or _INSIDE.fullmatch(tag) for tag in tags)


def is_other_scheme(tags: Sequence[str]) -> bool:
    """Whether tags seem to be BIOES, BILOU or another scheme whose spans are not counted here."""
    return not is_bio(tags) and OUTSIDE in tags and all(tag == OUTSIDE or _OTHER.fullmatch(tag) for tag in tags)


@dataclass(frozen=True)
class Scheme:
    """BIO tags: which of them begin, which go on, and with which type.

    Attributes:
        tags: Their names, by number.
    """

    tags: tuple[str, ...]

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The types of spans, by number."""
        return tuple(sorted({match[2] for tag in self.tags if (match := _INSIDE.fullmatch(tag))}))

    @cached_property
    def _type_of(self) -> NDArray[np.int64]:
        """By tag the number of its type; -1 for O."""
        found = [_INSIDE.fullmatch(tag) for tag in self.tags]
        return np.array([self.types.index(match[2]) if match else -1 for match in found])

    @cached_property
    def _begins(self) -> NDArray[np.bool_]:
        return np.array([tag.startswith("B-") for tag in self.tags])

    def spans(self, tags: NDArray[np.int64], first: NDArray[np.bool_]) -> "Spans":
        """Find the spans of sequences one behind the other.

        Args:
            tags: The number of the tag of each step (N,).
            first: Whether a step is the first one of its sequence (N,).
        """
        types = self._type_of[tags]
        before = np.concatenate(([-1], types[:-1]))
        before[first] = -1
        starts = (types >= 0) & (self._begins[tags] | (types != before))
        start = np.flatnonzero(starts)
        # A span ends before the next one begins, before an O, and with its sequence.
        ends = np.flatnonzero(np.concatenate((starts[1:] | (types[1:] < 0) | first[1:], [True])) & (types >= 0))
        return Spans(start, ends, types[start])


@dataclass(frozen=True)
class Spans:
    """Spans in the order of their first steps: the first and the last step and the number of the type of each."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    type: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def in_both(self, other: "Spans") -> NDArray[np.bool_]:
        """Which of these spans the others have, too: with the same first and last step and the same type."""
        there = {*zip(other.start.tolist(), other.end.tolist(), other.type.tolist(), strict=True)}
        own = zip(self.start.tolist(), self.end.tolist(), self.type.tolist(), strict=True)
        return np.array([span in there for span in own], dtype=np.bool_)


def spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The spans of one sequence of BIO tags: type, first step, last step, from 0.

    >>> spans_of(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"])
    [('PER', 0, 1), ('LOC', 3, 3), ('LOC', 4, 4), ('PER', 5, 5)]
    """
    if not tags:
        return []
    names = tuple(dict.fromkeys(tags))
    scheme, first = Scheme(names), np.arange(len(tags)) == 0
    found = scheme.spans(np.array([names.index(tag) for tag in tags]), first)
    return [
        (scheme.types[kind], start, end)
        for start, end, kind in zip(found.start.tolist(), found.end.tolist(), found.type.tolist(), strict=True)
    ]
