"""How the columns of a file become the numbers that a network reads: text as words, and time as a feature."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.names import listed
from anyrnn.workbench.ondisk import OnDisk, Steps, lengths_of, missing_of, pieces
from anyrnn.workbench.sequences import Inputs, Scaler

DELTA_TIME = "delta time"  # the name of the feature
_BEFORE_DIGITS = "+-.,($€£¥\N{MINUS SIGN}"  # of a number, as people write it
_MOST_WORDS = 50  # a column with more different texts holds names or sentences, and no kinds


@dataclass(frozen=True)
class Reading:
    """What becomes of the columns of a file: a number stays one, a word is one of several features that are 0 or 1.

    >>> Reading(("pulse", "ward"), {"ward": ("A", "B")}, delta_time=True).features
    ('pulse', 'ward=A', 'ward=B', 'delta time')

    Attributes:
        columns: The columns that are read, or the channels.
        words: Of a column of text the words that the training part has.
        delta_time: Whether there is one more feature: the time since the step before, in seconds where times are dates.
    """

    columns: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    delta_time: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features."""
        names: list[str] = []
        for column in self.columns:
            names += [f"{column}={word}" for word in self.words[column]] if column in self.words else [column]
        return (*names, DELTA_TIME) if self.delta_time else tuple(names)

    @property
    def clock(self) -> int | None:
        """Which feature is the time since the step before."""
        return len(self.features) - 1 if self.delta_time else None

    @property
    def of_words(self) -> tuple[int, ...]:
        """Which features are words."""
        names = {f"{column}={word}" for column, words in self.words.items() for word in words}
        return tuple(k for k, name in enumerate(self.features) if name in names)

    def trained_on(self, xs: Steps) -> tuple["Reading", tuple[str, ...]]:
        """Without the words that no step of the training part has, and the names of their features.

        The weight of a word that is never learned from would be a random one.
        """
        absent = ~torch.stack([(x == 1).any(0) for _, x in pieces(xs)]).any(0)
        gone = {self.features[k] for k in self.of_words if absent[k]}
        kept = {c: tuple(word for word in words if f"{c}={word}" not in gone) for c, words in self.words.items()}
        if not all(kept.values()):  # a column that is missing throughout is refused elsewhere
            return self, ()
        return replace(self, words=kept), tuple(name for name in self.features if name in gone)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        words = {column: list(words) for column, words in self.words.items()}
        return {"columns": list(self.columns), "words": words, "delta_time": self.delta_time}

    @classmethod
    def from_dict(cls, values: Any) -> "Reading | None":
        """What `to_dict` described; None for None."""
        if values is None:
            return None
        try:
            columns, words, delta_time = values["columns"], values["words"], values["delta_time"]
            sound = _are_names(columns) and isinstance(delta_time, bool) and isinstance(words, dict)
            sound = sound and all(column in columns and _are_names(each) for column, each in words.items())
        except (KeyError, TypeError):
            sound = False
        if not sound:
            raise AnyRNNError("got a reading that is none; expected columns, the words of some, and delta_time")
        return cls(tuple(columns), {column: tuple(each) for column, each in words.items()}, delta_time)


def scaler_for(train: Inputs, missing: tuple[str, ...] | None, gaps: Gaps, reading: Reading | None) -> Scaler:
    """What scales the features, fitted on the training part: words stay as they are, and time may be the clock."""
    if reading is None:
        return Scaler.fit(train, missing, gaps)
    return Scaler.fit(train, missing, gaps, reading.clock, reading.of_words)


def check_seen(owner: str, features: tuple[str, ...], train: Steps) -> None:
    """Refuse a feature that has no value in the training part."""
    never = missing_of(train) == lengths_of(train).sum()
    if never.any():
        raise AnyRNNError(
            f"{owner}: feature {features[int(never.argmax())]!r} is missing in every step of the training part; name "
            "the features without it (feature_columns, --features)"
        )


def check_reading(owner: str, reading: Reading | None, features: tuple[str, ...]) -> None:
    """Refuse a reading that does not make these features."""
    if reading is not None and reading.features != features:
        raise AnyRNNError(f"{owner}: the reading gives {', '.join(reading.features)}, expected the features")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


def words_of(text: pl.Series, place: str) -> tuple[str, ...] | None:
    """The different words of a column of text, null where one is missing; None if it seems to be meant as numbers.

    What begins with a digit, a sign or a currency and a digit is a number with something wrong about it, or a date.

    Raises:
        AnyRNNError: if there are too many.
    """
    words = sorted(text.drop_nulls().unique().to_list())
    if not words or any(word.lstrip(_BEFORE_DIGITS)[:1].isdecimal() or word in {"", "inf", "-inf"} for word in words):
        return None
    if len(words) > _MOST_WORDS:
        raise AnyRNNError(
            f"{place} holds {len(words)} different texts, such as {words[0]!r} and {words[1]!r}; expected numbers, or "
            f"at most {_MOST_WORDS} words"
        )
    return tuple(words)


def one_hot(text: pl.Series, words: tuple[str, ...]) -> NDArray[np.float64]:
    """For each word a column that is 1 where it stands, (rows, words); NaN where the text is missing."""
    columns = [(text == word).cast(pl.Float64).fill_null(float("nan")).to_numpy() for word in words]
    return np.stack(columns, axis=1)


def unknown(text: pl.Series, words: tuple[str, ...]) -> pl.Series:
    """Where a text is none of these words."""
    return (~text.is_in(words)).fill_null(value=False)


def note_on_words(column: str, words: tuple[str, ...]) -> str:
    """What was made of a column of text."""
    return f"feature {column!r} holds text: read as {len(words)} features that are 0 or 1, for {quoted(words)}"


def quoted(words: Collection[str]) -> str:
    """Words for a message, in which a word may be a blank or the end of a line."""
    return listed([repr(word) for word in words])


def columns_kept(x: Steps, kept: list[int]) -> Steps:
    """Sequences with these features only."""
    if isinstance(x, OnDisk):
        return x.with_columns(kept)
    places = torch.tensor(kept)
    return tuple(each.index_select(1, places) for each in x)
