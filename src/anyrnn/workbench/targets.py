"""What is predicted: classes or a number, decided by the values of a file where it does not say so itself.

Leans on torch; `data.py` and the readers of tagged steps ask here.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.names import listed
from anyrnn.workbench.parsed import DECIMAL_COMMA, THOUSANDS_COMMA, Parsed, Task, Value
from anyrnn.workbench.sequences import Sequences

_OTHER: Mapping[Task, Task] = {"classification": "regression", "regression": "classification"}
_MOST_CLASSES = 20  # whole numbers with more distinct values than this are read as a number, not as classes


def _targets(parsed: Parsed) -> list[str | bool | int | float]:
    """The targets, after checking that each sequence has one."""
    if parsed.targets is None:
        raise AnyRNNError(
            f"{parsed.path}: the header says neither '@classLabel true a b c' nor '@targetlabel true', so there is "
            "nothing to learn; expected one of them, and the class or number at the end of each line"
        )
    present = [value for value in parsed.targets if value is not None]
    missing = len(parsed.targets) - len(present)
    if missing:
        place = parsed.where[parsed.targets.index(None)]
        also = f", and in {missing - 1} more sequences" if missing > 1 else ""
        raise AnyRNNError(
            f"{place}: target {parsed.target!r} is missing here{also}; expected one for each sequence: fill it in, or "
            "leave the sequence out"
        )
    return present


def task_of(parsed: Parsed, asked: Task | None) -> tuple[Parsed, Task, tuple[str, ...]]:
    """Classes or a number, and a note where we had to decide; numbers with decimal commas become numbers."""
    values = _targets(parsed)
    told = asked or parsed.task
    notes: tuple[str, ...] = ()
    if told != "classification" and any(isinstance(value, str) for value in values):
        numbers = _with_decimal_commas(parsed, values)
        if numbers is not None:
            parsed, values = dataclasses.replace(parsed, targets=tuple(numbers)), numbers
            notes = (
                f"target {parsed.target!r} is written with decimal commas: read as numbers; "
                f"{parsed.asking('classification')} reads it as classes",
            )
    if told or notes:
        return parsed, told or "regression", notes
    if any(isinstance(value, str | bool) for value in values):
        return parsed, "classification", ()
    distinct = len(set(values))
    few = max(2, min(_MOST_CLASSES, len(values) // 2))
    if any(isinstance(value, float) for value in values):
        if distinct > few or not all(float(value).is_integer() for value in values):
            return parsed, "regression", ()
        note = (
            f"target {parsed.target!r} holds {distinct} distinct whole numbers, written as decimals such as "
            f"{values[0]}: read as a number; {parsed.asking('classification')} reads them as classes"
        )
        return parsed, "regression", (note,)
    task: Task = "classification" if distinct <= few else "regression"
    meaning, other = "classes" if task == "classification" else "a number", _OTHER[task]
    note = (
        f"target {parsed.target!r} holds whole numbers, {distinct} distinct ones in {len(values)} {parsed.unit}s: read "
        f"as {meaning}; {parsed.asking(other)} reads them the other way"
    )
    return parsed, task, (note,)


def _with_decimal_commas(
    parsed: Parsed, values: list[str | bool | int | float]
) -> list[str | bool | int | float] | None:
    """The targets as numbers if all of them are written so and some have a comma; None if they are not."""
    texts = [str(value) for value in values]
    with_comma = [text for text in texts if "," in text]
    if not with_comma or not all(re.fullmatch(DECIMAL_COMMA, text) for text in texts):
        return None
    if all(re.fullmatch(THOUSANDS_COMMA, text) for text in with_comma):
        place = parsed.where[texts.index(with_comma[0])]
        raise AnyRNNError(
            f"{place}: target {parsed.target!r} is {with_comma[0]!r}, whose comma may set off the thousands or the "
            "decimals; write a number without thousands separators and with a decimal point, or read the target as "
            f"classes: {parsed.asking('classification')}"
        )
    return [float(text.replace(",", ".")) for text in texts]


def label_of(value: Value) -> str:
    """The name of the class that a target is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a class 1 that one of two files writes as 1.0
    return str(value)


def classes_of(parsed: Parsed) -> tuple[str, ...]:
    """The classes that occur: in the order that the file declares, or by number, or by alphabet."""
    labels = {label_of(value) for value in _targets(parsed)}
    if len(labels) < 2:
        raise AnyRNNError(
            f"{parsed.path}: target {parsed.target!r} is {labels.pop()!r} for every {parsed.unit}, expected at least "
            "two classes to tell apart"
        )
    if parsed.classes:
        return tuple(label for label in parsed.classes if label in labels)
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return tuple(sorted(labels))


def encoded(parsed: Parsed, classes: tuple[str, ...] | None, *, trained_on: str = "") -> Sequences:
    """Targets as torch wants them. `trained_on` is whose the classes are, where that is not this file."""
    values = _targets(parsed)
    if classes is None:
        numbers = torch.tensor(numbers_of(parsed, values), dtype=torch.float64)
        return Sequences(parsed.x, numbers, parsed.ids, parsed.groups)
    index = {label: i for i, label in enumerate(classes)}
    for value, place in zip(values, parsed.where, strict=True):
        if label_of(value) not in index:
            raise AnyRNNError(
                f"{place}: class {label_of(value)!r} is not among the classes of {trained_on}: {listed(classes)}; "
                "no network can predict a class that it was not trained on: leave the sequence out, or add some of "
                "its class to the training part"
            )
    return Sequences(parsed.x, torch.tensor([index[label_of(value)] for value in values]), parsed.ids, parsed.groups)


def numbers_of(parsed: Parsed, values: list[str | bool | int | float]) -> list[float]:
    """The targets as numbers, which have to be finite."""
    numbers: list[float] = []
    values = _with_decimal_commas(parsed, values) or values  # of a test file: those of training are numbers by now
    for value, place in zip(values, parsed.where, strict=True):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise AnyRNNError(
                f"{place}: target {parsed.target!r} is {value!r}, expected a finite number; "
                f"correct it, or read the target as classes: {parsed.asking('classification')}"
            )
        numbers.append(number)
    return numbers
