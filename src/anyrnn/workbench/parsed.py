"""What the readers of files hand over, before anything is decided about classes, numbers or the split.

Leans on next to nothing; `ts.py` and `table.py` make a `Parsed`, `data.py` turns it into a `Dataset`.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from anyrnn.workbench.ondisk import OnDisk, Steps

if TYPE_CHECKING:
    from anyrnn.workbench.reading import Reading

Task = Literal["classification", "regression"]
Value = str | bool | int | float | None  # a target as its file has it; None where it is missing

BLANK = frozenset({"", "?", "nan", "na", "n/a", "null", "none", "<na>", "nat"})  # ways to write "missing", lower case
# What pandas and NumPy write for a missing value, in their spelling: nothing that anybody would choose as a name.
NOT_A_NAME = frozenset({"", "nan", "NaN", "<NA>", "NaT"})
# A number as half of the world writes it, whole or not, and one whose comma may set off the thousands instead.
DECIMAL_COMMA = r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?"
THOUSANDS_COMMA = r"[+-]?[1-9]\d{0,2},\d{3}"


@dataclass(frozen=True)
class Parsed:
    """The sequences of one file, each with its place in the file for the messages that name it."""

    path: str
    features: tuple[str, ...]
    x: Steps  # (T, I) float64 each; NaN where a value is missing and may be
    ids: tuple[str, ...]
    where: Sequence[str]  # "vowels.ts:17" or "train.csv: id 'a'"
    target: str
    targets: tuple[Value, ...] | None  # None: the file has no target at all
    task: Task | None  # None: the file does not say, the values decide
    classes: tuple[str, ...] = ()  # in the order in which the file declares them, if it does
    notes: tuple[str, ...] = ()
    rows: tuple[NDArray[np.int64], ...] | None = None  # of a table: the data row of each step
    step_targets: tuple[tuple[Value, ...], ...] | None = None  # of each step, where each has its own
    unit: str = "sequence"  # what has a target
    reading: "Reading | None" = None  # how the features were made of what the file has; None: each is as it stands
    groups: tuple[str, ...] | None = None  # of a table in which a column names the group of each sequence

    @property
    def is_table(self) -> bool:
        """Whether it was read from a table, in which a column has the ids."""
        return self.rows is not None or isinstance(self.x, OnDisk)

    def asking(self, task: Task) -> str:
        """How to have its targets read as classes, or as numbers: in Python, and on the command line."""
        if self.unit == "sequence":
            return f"task={task!r} (--task {task})"
        answers = "classes" if task == "classification" else "numbers"
        return f"answers={answers!r} (--answers {answers})"

    def cell(self, sequence: int, step: int, feature: int) -> str:
        """Where a note points: "x.csv: data row 17 (id 'a')" or "x.ts:17, step 3 of channel 2"."""
        if self.rows is None:
            return f"{self.where[sequence]}, step {step + 1} of {self.features[feature]}"
        return f"{self.path}: data row {self.rows[sequence][step]} (id {self.ids[sequence]!r})"


@dataclass(frozen=True)
class Missing:
    """The values that the user says stand for "missing"; what is empty or NaN does so as well then.

    Attributes:
        texts: As they were named.
    """

    texts: tuple[str, ...]

    @classmethod
    def named(cls, values: "str | float | Sequence[str | float] | None") -> "Missing | None":
        """From one value or several; None: nothing may be missing."""
        if values is None:
            return None
        several = [values] if isinstance(values, str | int | float) else values
        return cls(tuple(str(value).strip() for value in several))

    @classmethod
    def given(cls, values: "str | float | Sequence[str | float] | None", gaps: str) -> "Missing | None":
        """The same; but whoever wants to be told of gaps has some."""
        return cls.named("nan" if values is None and gaps != "fill" else values)

    @cached_property
    def words(self) -> frozenset[str]:
        """In lower case, with the usual ones."""
        return BLANK | self._named

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """Those that are numbers, each also as a column of float32 holds it."""
        found: list[float] = []
        for text in self.texts:
            value = number(text)
            if value is not None and math.isfinite(value):
                found += [value, *([_float32(value)] if abs(value) < 1e38 else [])]
        return tuple(dict.fromkeys(found))

    def mask(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the values are missing."""
        return np.isnan(values) | np.isin(values, self.numbers)

    def names(self, text: str) -> bool:
        """Whether a text is one of them, written one way or another: -9999 is -9999.0."""
        value = number(text)
        return text.strip().lower() in self._named or (value is not None and value in self.numbers)

    def has(self, text: str) -> bool:
        """The same, or one of the usual ones."""
        return text.strip().lower() in BLANK or self.names(text)

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset(text.lower() for text in self.texts)


def number(text: str) -> float | None:
    """A number as files have it. Python's own reading takes 1_000 and digits of other scripts as well."""
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
