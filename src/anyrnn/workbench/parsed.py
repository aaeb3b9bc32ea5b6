"""What the readers of files hand over, before anything is decided about classes, numbers or the split.

Leans on nothing but torch; `ts.py` and `table.py` make a `Parsed`, `data.py` turns it into a `Dataset`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import Tensor

Task = Literal["classification", "regression"]
Value = str | bool | int | float | None  # a target as its file has it; None where it is missing

_MOST_NAMES = 20  # a message that lists more than this is no longer read


@dataclass(frozen=True)
class Parsed:
    """The sequences of one file, each with its place in the file for the messages that name it."""

    path: str
    features: tuple[str, ...]
    x: tuple[Tensor, ...]  # (T, I) each
    ids: tuple[str, ...]
    where: tuple[str, ...]  # "vowels.ts:17" or "train.csv: id 'a'"
    target: str
    targets: tuple[Value, ...] | None  # None: the file has no target at all
    task: Task | None  # None: the file does not say, the values decide
    classes: tuple[str, ...] = ()  # in the order in which the file declares them, if it does
    notes: tuple[str, ...] = ()


def listed(names: Collection[str]) -> str:
    """Names for a message, cut off where a list stops being of use."""
    shown = ", ".join(list(names)[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"


def did_you_mean(got: str, names: Collection[str]) -> str:
    """The end of a message about an unknown name: the likeliest known one, or nothing."""
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(got.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
