"""Spans of tags, counted as the program conlleval of the CoNLL-2000 and CoNLL-2003 shared tasks counts them.

A span is correct if its first step, its last step and its type are right (Tjong Kim Sang and De Meulder 2003). Tags
that break the rules of their scheme are read as conlleval reads them: I-x begins a span where no span of type x is
open. So IOB1, in which only a span right behind another of its type begins with B, is read rightly as well.

Schemes that mark the last step of a span and spans of one step are read by the same rule, as conlleval.py (Pyysalo) and
seqeval in its default mode do: B and S begin a span whatever stands before, E and S end it, and what is none of these
goes on, or begins one where none of its type is open.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anyrnn.workbench.names import listed

OUTSIDE = "O"
#: By the name of a scheme, the letters of the first step of a span, of those within, of the last, and of an only one.
SCHEMES: Mapping[str, str] = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES", "BMEWO": "BMEW"}
_BEGINS, _ENDS = frozenset("BSUW"), frozenset("ESLUW")
_LIKE_A_TAG = re.compile(r"[A-Z]-.+")
_TAG = re.compile(r"([BIESLUMW])-(.+)")


def scheme_of(tags: Sequence[str]) -> str | None:
    """The name of the scheme of these tags, O and B-x and others with a type; None if they are of none.

    >>> scheme_of(["O", "B-LOC", "L-LOC", "U-PER"])
    'BILOU'
    """
    found = {tag: _TAG.fullmatch(tag) for tag in tags if tag != OUTSIDE}
    letters = {None if match is None else match[1] for match in found.values()}
    if not letters or (OUTSIDE not in tags and not letters <= {"B", "I"}):
        return None  # classes such as M-1 and S-2 are tags only where others stand outside
    return next((name for name, known in SCHEMES.items() if letters <= set(known)), None)


def has_spans(tags: Sequence[str]) -> bool:
    """Whether spans can be counted."""
    return scheme_of(tags) is not None


def note_on_scheme(tags: Sequence[str]) -> Iterator[str]:
    """How spans are counted, or that they are not, though these look like tags of spans."""
    name = scheme_of(tags)
    if name is not None:
        yield f"the tags are {name}: their spans are counted"
    elif OUTSIDE in tags and len(tags) > 1 and all(tag == OUTSIDE or _LIKE_A_TAG.fullmatch(tag) for tag in tags):
        yield (
            f"tags {listed(tags)} look like those of spans, but are of none of the schemes {', '.join(SCHEMES)}: spans "
            "are not counted"
        )


@dataclass(frozen=True)
class Scheme:
    """Tags of spans: which of them begin one, which end one, and of which type.

    Attributes:
        tags: Their names, by number.
    """

    tags: tuple[str, ...]

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The types of spans, by number."""
        return tuple(sorted({match[2] for tag in self.tags if (match := _TAG.fullmatch(tag))}))

    @cached_property
    def _type_of(self) -> NDArray[np.int64]:
        """By tag the number of its type; -1 for O."""
        found = [_TAG.fullmatch(tag) for tag in self.tags]
        return np.array([self.types.index(match[2]) if match else -1 for match in found])

    def _are(self, letters: frozenset[str]) -> NDArray[np.bool_]:
        """By tag whether it has one of these letters."""
        return np.array([tag != OUTSIDE and tag[0] in letters for tag in self.tags])

    def spans(self, tags: NDArray[np.int64], first: NDArray[np.bool_]) -> "Spans":
        """Find the spans of sequences one behind the other.

        Args:
            tags: The number of the tag of each step (N,).
            first: Whether a step is the first one of its sequence (N,).
        """
        types, ended = self._type_of[tags], self._are(_ENDS)[tags]
        before = np.concatenate(([-1], np.where(ended, -1, types)[:-1]))  # the type of the span that is open, if one is
        before[first] = -1
        starts = (types >= 0) & (self._are(_BEGINS)[tags] | (types != before))
        start = np.flatnonzero(starts)
        # A span ends with its last step, before the next one begins, before an O, and with its sequence.
        next_is_none = np.concatenate((starts[1:] | (types[1:] < 0) | first[1:], [True]))
        ends = np.flatnonzero((ended | next_is_none) & (types >= 0))
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
    """The spans of one sequence of tags: type, first step, last step, from 0.

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
