"""Sequences of a .ts file whose steps have time stamps, `(time,value),(time,value)`, brought to one time axis."""

import re

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.clock import read_times, since_the_last

_STEP = re.compile(r"\s*\(([^()]*),([^(),]*)\)\s*(,|$)")
_BETWEEN_CHANNELS = re.compile(r":(?![^()]*\))")  # a time has colons, too


def split_channels(line: str) -> list[str]:
    """The parts of a line."""
    return _BETWEEN_CHANNELS.split(line)


def on_one_axis(channels: list[str], place: str, *, gaps: bool) -> tuple[list[str], NDArray[np.float64]]:
    """The values of each channel between commas, sorted by time, and the time since the step before, (T,).

    Args:
        channels: As written.
        place: Where, for messages.
        gaps: Whether a channel may have no value at a time that another one has; a "?" then.

    Raises:
        AnyRNNError: if something else is written there, a time stands twice, or the times of two channels differ.
    """
    found = [_steps(channel, f"{place}: channel {k}") for k, channel in enumerate(channels, start=1)]
    texts = [text for steps in found for text in steps]
    times, _ = read_times(pl.Series(texts, dtype=pl.String), lambda row: f"{place}: time stamp {texts[row]!r}")
    if times.is_null().any():
        raise AnyRNNError(f"{place}: a time is missing; every step needs one")
    axis = pl.DataFrame({"text": texts, "time": times}).unique("time").sort("time")
    at = dict(zip(texts, times.to_list(), strict=True))
    values: list[list[str]] = []
    for k, steps in enumerate(found, start=1):
        by_time = {at[text]: value for text, value in steps.items()}
        if len(by_time) < len(steps):
            raise AnyRNNError(f"{place}: channel {k} has two values at one time; keep one of them")
        if len(by_time) < len(axis) and not gaps:
            raise AnyRNNError(
                f"{place}: the channels have different time stamps; missing='nan' (--missing nan) takes all of them, "
                "with gaps where a channel has no value"
            )
        values.append([by_time.get(time, "?") for time in axis["time"]])
    return [",".join(each) for each in values], since_the_last(axis["time"])


def _steps(channel: str, place: str) -> dict[str, str]:
    """The value at each time, both as texts."""
    steps: dict[str, str] = {}
    end = 0
    while end < len(channel):
        match = _STEP.match(channel, end)
        if match is None:
            raise AnyRNNError(
                f"{place}: got {channel[end : end + 40]!r}, expected steps such as (2026-01-31 13:45:00,1.5), with "
                "commas between them, as the header says @timeStamps true"
            )
        if match[1].strip() in steps:
            raise AnyRNNError(f"{place} has two values at {match[1].strip()!r}; keep one of them")
        steps[match[1].strip()] = match[2]
        end = match.end()
    if not steps:
        raise AnyRNNError(f"{place} has no step, expected at least one")
    return steps
