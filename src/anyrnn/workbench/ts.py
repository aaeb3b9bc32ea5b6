"""The .ts format of the UCR/UEA time series archives, read into `Parsed`.

A parser of our own, because aeon and sktime, which also read it, bring numba, scipy and pandas with them.

The format, as the documentation and the loaders of both describe it: lines that start with ``#`` or ``%`` are
comments; a header of ``@tag value`` lines, tags in any case and order, ends with ``@data``; then one sequence a line,
channels separated by ``:``, steps by ``,``, and the class or the number to predict after the last ``:`` if the header
says ``@classLabel true a b c`` or ``@targetlabel true``. Tags that do not change how a line is read (``@problemName``,
``@missing``, ...) are skipped.

A label is the class that the header names even if it is written in other case, or as 0.0 in place of 0; aeon's
loader lowers the case of all. Classes may be listed with commas. A length of 0 means an unknown one.

With ``@timeStamps true`` a step is ``(time,value)``: see `stamps.py`. Steps at the end of a sequence in which every
channel is ``?`` or ``NaN`` are padding, as aeon and tslearn write sequences of unequal length.

Not supported, each with an error that names the line: missing values (``?`` or ``NaN``) before that, or channels of
different times, unless the caller says so; and channels of different length within one sequence.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.gaps import note_on_padding
from anyrnn.workbench.names import did_you_mean, listed
from anyrnn.workbench.parsed import Missing, Parsed, Task, number
from anyrnn.workbench.reading import Reading
from anyrnn.workbench.stamps import on_one_axis, split_channels
from anyrnn.workbench.text import check_kind

_PADDING = frozenset({"?", "nan"})
_ENCODED = (b"classlabel", b"data")  # the header lines whose letters matter; in others any encoding will do


@dataclass(frozen=True)
class _Header:
    task: Task | None = None
    classes: tuple[str, ...] = ()
    channels: int | None = None  # None: the first sequence decides
    equal_length: bool = False
    steps: int | None = None  # of every sequence, where they are of equal length; None: the first decides
    time_stamps: bool = False


def parse_ts(content: bytes, path: str, missing: Missing | None = None, *, delta_time: bool = False) -> Parsed:
    """Read the bytes of a .ts file.

    Args:
        content: All of it.
        path: Only the name that ids and messages use.
        missing: What stands for a missing value and becomes NaN. None: a missing value is refused.
        delta_time: One more feature: the time since the step before.
    """
    check_kind(content, path, "a .ts file of the UCR/UEA archives")
    lines = _lines(content, path)
    header = _header(lines, path)
    if delta_time and not header.time_stamps:
        raise AnyRNNError(
            f"{path}: the header does not say '@timeStamps true', so it is not known how far apart steps are; leave "
            "out delta_time (--delta-time)"
        )
    arrays: list[NDArray[np.float64]] = []
    apart: list[NDArray[np.float64]] = []  # of each step, since the one before
    padding: list[int] = []  # the steps cut off each sequence
    labels: list[str] = []
    where: list[str] = []
    for count, line in lines:
        place = f"{path}:{count}"
        if line.startswith("(") and not header.time_stamps:
            raise AnyRNNError(
                f"{place}: got {_shortened(line)}, but the header does not say that steps have time stamps; write "
                "'@timeStamps true' there"
            )
        parts = split_channels(line) if header.time_stamps else line.split(":")
        got = len(parts)
        if header.task is not None:
            labels.append(parts.pop().strip())
        channels = header.channels or (arrays[0].shape[1] if arrays else max(1, len(parts)))
        if len(parts) != channels:
            last = "" if header.task is None else " and the value to predict"
            raise AnyRNNError(
                f"{place}: got {got} parts separated by ':', expected {got - len(parts) + channels}: "
                f"{channels} channels{last}"
            )
        if header.time_stamps:
            parts, times = on_one_axis(parts, place, gaps=missing is not None)
            apart.append(times)
        parts, cut = _without_padding(parts)
        array = np.stack(_channels(parts, place, missing), axis=1)  # (T, I)
        padding.append(cut)
        if header.equal_length:
            steps = header.steps or (len(arrays[0]) + padding[0] if arrays else len(array) + cut)
            if len(array) + cut != steps:
                raise AnyRNNError(
                    f"{place}: got {len(array) + cut} steps, expected {steps} as the header says @equalLength true; "
                    "complete the line or write '@equalLength false'"
                )
        arrays.append(array)
        where.append(place)
    if not arrays:
        raise AnyRNNError(f"{path}: there is nothing after @data, expected one sequence a line")

    reading = Reading(tuple(f"channel {i + 1}" for i in range(arrays[0].shape[1])), delta_time=delta_time)
    if delta_time:
        arrays = [np.column_stack((x, times[: len(x)])) for x, times in zip(arrays, apart, strict=True)]
    return Parsed(
        path=path,
        features=reading.features,
        x=tuple(torch.from_numpy(array) for array in arrays),
        ids=tuple(f"{PurePath(path).stem} #{i + 1}" for i in range(len(arrays))),
        where=tuple(where),
        target="target" if header.task == "regression" else "class",
        targets=_targets(labels, where, header, missing) if header.task else None,
        task=header.task,
        classes=_declared(labels, header),
        notes=tuple(note_on_padding(padding)),
        reading=reading,
    )


def _without_padding(parts: list[str]) -> tuple[list[str], int]:
    """The channels without the steps at the end in which all are "?" or "NaN", and how many these are; one stays."""
    if not all(part.rpartition(",")[2].strip().lower() in _PADDING for part in parts):
        return parts, 0
    texts = [part.split(",") for part in parts]
    steps = whole = len(texts[0])
    if any(len(channel) != whole for channel in texts):  # which is refused
        return parts, 0
    while steps > 1 and all(channel[steps - 1].strip().lower() in _PADDING for channel in texts):
        steps -= 1
    return [",".join(channel[:steps]) for channel in texts], whole - steps


def _lines(content: bytes, path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without blanks and comments; archives hold other encodings in comments and names of problems."""
    for count, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        stripped = raw.strip()
        if stripped and not stripped.startswith((b"#", b"%")):
            is_name = stripped.startswith(b"@") and not stripped[1:].lower().startswith(_ENCODED)
            try:
                line = stripped.decode(errors="replace" if is_name else "strict")
            except UnicodeDecodeError:
                line = "\0"
            if "\0" in line:
                raise AnyRNNError(
                    f"{path}:{count}: this is not text in UTF-8: {stripped[:16]!r}; expected a .ts file of the "
                    "UCR/UEA archives"
                )
            yield count, line


def _header(lines: Iterator[tuple[int, str]], path: str) -> _Header:
    tags: dict[str, tuple[str, list[str]]] = {}
    for count, line in lines:
        if not line.startswith("@"):
            raise AnyRNNError(
                f"{path}:{count}: got {_shortened(line)}, expected a header line such as '@classLabel true a b'; "
                "a .ts file starts with @ lines, the last of which is @data"
            )
        tag, *values = line[1:].split() or [""]
        if tag.lower() == "data":
            break
        tags[tag.lower()] = f"{path}:{count}: @{tag}", values
    else:
        raise AnyRNNError(
            f"{path}: there is no @data line, so this is not a .ts file of the UCR/UEA archives; "
            "expected header lines that start with @, @data, then one sequence a line"
        )

    classification, regression = _flag(tags, "classlabel"), _flag(tags, "targetlabel")
    if classification and regression:
        raise AnyRNNError(
            f"{tags['targetlabel'][0]} true: the header says '@classLabel true' as well; "
            "expected classes or a number to predict, not both"
        )
    channels = _count(tags, "dimensions") or _count(tags, "dimension")
    if _flag(tags, "univariate"):
        if channels not in {None, 1}:
            raise AnyRNNError(
                f"{tags['univariate'][0]} true: the header says {channels} dimensions as well; correct one of the two"
            )
        channels = 1
    return _Header(
        task="classification" if classification else "regression" if regression else None,
        classes=tuple(dict.fromkeys(tags["classlabel"][1][1:])) if classification else (),
        channels=channels,
        equal_length=_flag(tags, "equallength"),
        steps=_count(tags, "serieslength", least=0) or None,
        time_stamps=_flag(tags, "timestamps"),
    )


def _flag(tags: dict[str, tuple[str, list[str]]], tag: str) -> bool:
    place, values = tags.get(tag, ("", ["false"]))
    if not values or values[0].lower() not in {"true", "false"}:
        raise AnyRNNError(f"{place}: got {' '.join(values) or 'nothing'}, expected true or false")
    return values[0].lower() == "true"


def _count(tags: dict[str, tuple[str, list[str]]], tag: str, least: int = 1) -> int | None:
    if tag not in tags:
        return None
    place, values = tags[tag]
    digits = values[0] if len(values) == 1 and values[0].isascii() and values[0].isdecimal() else ""
    if not 0 < len(digits) < 10 or int(digits) < least:
        raise AnyRNNError(f"{place}: got {' '.join(values) or 'nothing'}, expected a whole number from {least}")
    return int(digits)


def _channels(parts: list[str], place: str, missing: Missing | None) -> list[NDArray[np.float64]]:
    channels: list[NDArray[np.float64]] = []
    for i, part in enumerate(parts, start=1):
        texts = part.split(",")
        try:
            # float() takes 1_000 and the digits of other scripts, which nobody means
            values = [float(text) for text in texts] if part.isascii() and "_" not in part else []
        except ValueError:
            values = []
        if missing is not None:
            values = [math.nan if missing.has(text) else _value(text) for text in texts]
        array = np.array(values, dtype=np.float64)
        if not values or not (np.isfinite(array) | (np.isnan(array) & (missing is not None))).all():
            step, text = next(
                (s, text.strip())
                for s, text in enumerate(texts, start=1)
                if not math.isfinite(_value(text)) and not (missing is not None and missing.has(text))
            )
            if text.lower() in {"?", "nan", ""}:
                problem = (
                    f"is missing ({text!r}); fill it in, or leave the sequence out; missing='nan' (--missing nan) has "
                    "missing values filled"
                )
            else:
                problem = f"is {_shortened(text)}, expected a finite number"
            raise AnyRNNError(f"{place}: the value of channel {i} at step {step} {problem}")
        if channels and len(array) != len(channels[0]):
            raise AnyRNNError(
                f"{place}: channel {i} has {len(array)} steps, expected {len(channels[0])} as in channel 1; "
                "resample the channels to a common rate first"
            )
        channels.append(array)
    return channels


def _value(text: str) -> float:
    """A number; infinity, which is refused, for what is none."""
    value = number(text)
    return math.inf if value is None else value


def _declared(labels: list[str], header: _Header) -> tuple[str, ...]:
    """The classes that the header names: "a,b" are two, unless some label says otherwise."""
    if any("," in name for name in header.classes) and not set(header.classes) & {x for x in labels if "," in x}:
        return tuple(dict.fromkeys(name for each in header.classes for name in each.split(",") if name))
    return header.classes


def _targets(
    labels: list[str], where: list[str], header: _Header, missing: Missing | None
) -> tuple[str | float | None, ...]:
    classes = _declared(labels, header)
    targets: list[str | float | None] = []
    for label, place in zip(labels, where, strict=True):
        if label.lower() in {"?", "nan", ""} or (missing is not None and missing.names(label)):
            targets.append(None)
        elif header.task == "regression":
            if not math.isfinite(_value(label)):
                raise AnyRNNError(
                    f"{place}: the value to predict is {_shortened(label)}, expected a finite number "
                    "as the header says @targetlabel true"
                )
            targets.append(float(label))
        else:
            targets.append(_class(label, classes, place) if classes else label)
    return tuple(targets)


def _class(label: str, classes: tuple[str, ...], place: str) -> str:
    """The class that the header names, as it names it."""
    if label in classes:
        return label
    value = number(label)
    alike = [name for name in classes if name.casefold() == label.casefold()]
    alike += [name for name in classes if value is not None and number(name) == value]
    if len(alike) == 1:
        return alike[0]
    raise AnyRNNError(
        f"{place}: got class {label!r}, expected one of those that @classLabel names: "
        f"{listed(classes)}.{did_you_mean(label, classes)}"
    )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
