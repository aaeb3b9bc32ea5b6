"""The .ts format of the UCR/UEA time series archives, read into `Parsed`.

A parser of our own, because aeon and sktime, which also read it, bring numba, scipy and pandas with them.

The format, as the documentation and the loaders of both describe it: lines that start with ``#`` are comments; a
header of ``@tag value`` lines, tags in any case and order, ends with ``@data``; then one sequence a line, channels
separated by ``:``, steps by ``,``, and the class or the number to predict after the last ``:`` if the header says
``@classLabel true a b c`` or ``@targetlabel true``. Tags that do not change how a line is read (``@problemName``,
``@missing``, ...) are skipped.

Not supported, each with an error that names the line: values with time stamps, missing values (``?`` or ``NaN``),
and channels of different length within one sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.parsed import Parsed, Task, did_you_mean, listed

_NO_TIME_STAMPS = (
    "values with time stamps are not supported; write the values alone, or make a CSV table with a time column"
)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Header:
    task: Task | None = None
    classes: tuple[str, ...] = ()
    channels: int | None = None  # None: the first sequence decides
    equal_length: bool = False
    steps: int | None = None  # of every sequence, where they are of equal length; None: the first decides


def parse_ts(content: bytes, path: str) -> Parsed:
    """Read the bytes of a .ts file; `path` is only the name that ids and messages use."""
    lines = _lines(content, path)
    header = _header(lines, path)
    arrays: list[np.ndarray] = []
    labels: list[str] = []
    where: list[str] = []
    for number, line in lines:
        place = f"{path}:{number}"
        if line.startswith("("):
            raise AnyRNNError(f"{place}: got {_shortened(line)}; {_NO_TIME_STAMPS}")
        parts = line.split(":")
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
        array = np.stack(_channels(parts, place), axis=1)  # (T, I)
        if header.equal_length:
            steps = header.steps or (arrays[0] if arrays else array).shape[0]
            if array.shape[0] != steps:
                raise AnyRNNError(
                    f"{place}: got {array.shape[0]} steps, expected {steps} as the header says @equalLength true; "
                    "complete the line or write '@equalLength false'"
                )
        arrays.append(array)
        where.append(place)
    if not arrays:
        raise AnyRNNError(f"{path}: there is nothing after @data, expected one sequence a line")

    return Parsed(
        path=path,
        features=tuple(f"channel {i + 1}" for i in range(arrays[0].shape[1])),
        x=tuple(torch.from_numpy(array) for array in arrays),
        ids=tuple(f"{PurePath(path).stem} #{i + 1}" for i in range(len(arrays))),
        where=tuple(where),
        target="target" if header.task == "regression" else "class",
        targets=_targets(labels, where, header) if header.task else None,
        task=header.task,
        classes=header.classes,
    )


def _lines(content: bytes, path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without blanks and comments (which are the one place where archives hold other encodings)."""
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        stripped = raw.strip()
        if stripped and not stripped.startswith(b"#"):
            try:
                line = stripped.decode()
            except UnicodeDecodeError:
                line = "\0"
            if "\0" in line:
                raise AnyRNNError(
                    f"{path}:{number}: this is not text in UTF-8: {stripped[:16]!r}; expected a .ts file of the "
                    "UCR/UEA archives"
                )
            yield number, line


def _header(lines: Iterator[tuple[int, str]], path: str) -> _Header:
    tags: dict[str, tuple[str, list[str]]] = {}
    for number, line in lines:
        if not line.startswith("@"):
            raise AnyRNNError(
                f"{path}:{number}: got {_shortened(line)}, expected a header line such as '@classLabel true a b'; "
                "a .ts file starts with @ lines, the last of which is @data"
            )
        tag, *values = line[1:].split() or [""]
        if tag.lower() == "data":
            break
        tags[tag.lower()] = f"{path}:{number}: @{tag}", values
    else:
        raise AnyRNNError(
            f"{path}: there is no @data line, so this is not a .ts file of the UCR/UEA archives; "
            "expected header lines that start with @, @data, then one sequence a line"
        )

    if _flag(tags, "timestamps"):
        raise AnyRNNError(f"{tags['timestamps'][0]} true: {_NO_TIME_STAMPS}")
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
        steps=_count(tags, "serieslength"),
    )


def _flag(tags: dict[str, tuple[str, list[str]]], tag: str) -> bool:
    place, values = tags.get(tag, ("", ["false"]))
    if not values or values[0].lower() not in {"true", "false"}:
        raise AnyRNNError(f"{place}: got {' '.join(values) or 'nothing'}, expected true or false")
    return values[0].lower() == "true"


def _count(tags: dict[str, tuple[str, list[str]]], tag: str) -> int | None:
    if tag not in tags:
        return None
    place, values = tags[tag]
    if len(values) != 1 or not values[0].isdecimal() or int(values[0]) < 1:
        raise AnyRNNError(f"{place}: got {' '.join(values) or 'nothing'}, expected a whole number from 1")
    return int(values[0])


def _channels(parts: list[str], place: str) -> list[np.ndarray]:
    channels: list[np.ndarray] = []
    for i, part in enumerate(parts, start=1):
        texts = part.split(",")
        try:
            values = [float(text) for text in texts]
        except ValueError:
            values = []
        with np.errstate(over="ignore"):  # a value too large for float32 becomes inf and is reported below
            array = np.array(values, dtype=np.float32)
        if not values or not np.isfinite(array).all():
            step, text = next((s, text.strip()) for s, text in enumerate(texts, start=1) if not _is_finite(text))
            if text.lower() in {"?", "nan", ""}:
                problem = f"is missing ({text!r}); fill it in, or leave the sequence out"
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


def _is_finite(text: str) -> bool:
    try:
        return abs(float(text)) <= _LARGEST  # false for NaN too
    except ValueError:
        return False


def _targets(labels: list[str], where: list[str], header: _Header) -> tuple[str | float | None, ...]:
    targets: list[str | float | None] = []
    for label, place in zip(labels, where, strict=True):
        if label.lower() in {"?", "nan", ""}:
            targets.append(None)
        elif header.task == "regression":
            if not _is_finite(label):
                raise AnyRNNError(
                    f"{place}: the value to predict is {_shortened(label)}, expected a finite number "
                    "as the header says @targetlabel true"
                )
            targets.append(float(label))
        elif header.classes and label not in header.classes:
            raise AnyRNNError(
                f"{place}: got class {label!r}, expected one of those that @classLabel names: "
                f"{listed(header.classes)}.{did_you_mean(label, header.classes)}"
            )
        else:
            targets.append(label)
    return tuple(targets)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
