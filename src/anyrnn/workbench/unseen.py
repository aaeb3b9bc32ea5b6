"""New sequences for a trained model, with whatever truth their file has: all are predicted, what can be is scored."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyrnn.workbench.names import listed
from anyrnn.workbench.parsed import DECIMAL_COMMA, THOUSANDS_COMMA, Parsed, Value, number
from anyrnn.workbench.sequences import Inputs


@dataclass(frozen=True, repr=False)
class Unseen(Inputs):
    """Sequences to predict for, some of which may have a truth.

    Attributes:
        x: The sequences (T, I), each as read.
        y: The truth of all of them (N,); None if one of them has none.
        ids: Their names.
        known: Which of them have a truth that the model could predict.
        truth: That truth, (len(known),): the index of a class, or a number.
        truths: What the file has as the truth of each sequence; None where it is missing; () if it has no target.
        notes: Why others have none, and the decisions that reading took; a sentence each.
    """

    known: tuple[int, ...] = ()
    truth: Tensor | None = None
    truths: tuple[str | None, ...] = ()
    notes: tuple[str, ...] = ()


def unseen(parsed: Parsed, classes: Sequence[str] | None, label: Callable[[Value], str]) -> Unseen:
    """Sort out which sequences have a truth, and why others have none.

    Args:
        parsed: What was read.
        classes: The model's; None if it predicts a number.
        label: Names the class that a target is.
    """
    values = parsed.targets or ()
    notes = list(parsed.notes)
    commas = [v for v in values if isinstance(v, str) and "," in v and re.fullmatch(DECIMAL_COMMA, v)]
    decimal = classes is None and not all(re.fullmatch(THOUSANDS_COMMA, value) for value in commas)
    if decimal:
        notes.append(f"target {parsed.target!r} is written with decimal commas: read as numbers")
    index = {name: k for k, name in enumerate(classes or ())}
    known: list[int] = []
    truths: list[float] = []
    absent: list[int] = []
    strange: list[int] = []
    for k, value in enumerate(values):
        found = _number(value, decimal) if classes is None else index.get(label(value), math.nan)
        if value is None:
            absent.append(k)
        elif math.isfinite(found):
            known.append(k)
            truths.append(found)
        else:
            strange.append(k)
    if absent and (known or strange):
        notes.append(f"{_some(absent, parsed)} no target {parsed.target!r}: predicted, but not scored")
    if strange:
        got = listed(tuple(dict.fromkeys(repr(values[k]) for k in strange)))
        expected = "a number" if classes is None else f"one of {listed(tuple(classes))}"
        notes.append(
            f"{_some(strange, parsed)} a target {parsed.target!r} that the model cannot predict: {got}, expected "
            f"{expected}: predicted, but not scored"
        )
    truth = torch.tensor(truths, dtype=torch.float64 if classes is None else torch.int64) if known else None
    return Unseen(
        x=parsed.x,
        y=truth if len(known) == len(parsed.x) else None,
        ids=parsed.ids,
        known=tuple(known),
        truth=truth,
        truths=tuple(None if value is None else label(value) for value in values),
        notes=tuple(notes),
    )


def _some(places: Sequence[int], parsed: Parsed) -> str:
    if len(places) == 1:
        return f"{parsed.where[places[0]]}: this sequence has"
    return f"{len(places)} of {len(parsed.x)} sequences, the first at {parsed.where[places[0]]}, have"


def _number(value: Value, decimal_commas: bool) -> float:
    if isinstance(value, str):
        with_point = decimal_commas and re.fullmatch(DECIMAL_COMMA, value)
        value = number(value.replace(",", ".") if with_point else value)
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
