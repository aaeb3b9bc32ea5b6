"""What a reader should know of the data before the scores: how many, how long, which classes, what is missing.

`described` counts it, for results.json; `overview` writes it, for the report.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyrnn.workbench.data import Dataset
from anyrnn.workbench.ondisk import lengths_of, missing_of

_NBSP = "\N{NO-BREAK SPACE}"
_QUARTILES = (0, 25, 50, 75, 100)
_FOLDED = 20  # rows from which on a table is folded
_NAMED = 12  # classes in a sentence


def described(data: Dataset) -> dict[str, Any]:
    """Count what the parts of a dataset hold, as JSON has it."""
    names = ("training", "test") if data.validation is None else ("training", "validation", "test")
    steps = [lengths_of(part.x) for part in data.parts]
    targets = [part.y.numpy() for part in data.parts]
    found: dict[str, Any] = {
        "parts": list(names),
        "sequences": [len(part) for part in data.parts],
        "steps": [int(lengths.sum()) for lengths in steps],
        "lengths": [_quartiles(lengths) for lengths in steps],
        "classes": None,
        "targets": None,
        "missing": None,
    }
    if data.classes is None:
        found["targets"] = [_quartiles(y) for y in targets]
    else:
        counts = [np.bincount(y, minlength=len(data.classes)) for y in targets]
        found["classes"] = np.stack(counts, 1).tolist()
    if data.missing is not None:
        found["missing"] = np.sum([missing_of(part.x) for part in data.parts], axis=0).tolist()
    return found


def _quartiles(values: NDArray[Any]) -> list[float]:
    return [float(v) for v in np.percentile(values, _QUARTILES)]


def overview(results: Mapping[str, Any]) -> dict[str, object] | None:
    """Write it as tables and sentences; None of an older run, which did not count."""
    data = results["dataset"]
    found = data.get("overview")
    if not found:
        return None
    return {
        "notes": data["notes"],
        "parts": found["parts"],
        "lengths": _part_rows(found, "lengths", ",.6g"),
        "targets": _part_rows(found, "targets", ".5g") if found["targets"] else [],
        "untrained": _untrained(data["classes"], found["classes"]),
        "classes": _class_rows(data["classes"], found["classes"]),
        "missing": _missing_rows(data["features"], found),
        "folded": _FOLDED,
    }


def _part_rows(found: Mapping[str, Any], key: str, form: str) -> list[tuple[str, list[str]]]:
    """Of each part its name, its number of sequences, and the quartiles of their lengths, or targets."""
    return [
        (name, [f"{count:,}", *(format(value, form) for value in values)])
        for name, count, values in zip(found["parts"], found["sequences"], found[key], strict=True)
    ]


def _class_rows(names: Sequence[str] | None, counts: Sequence[Sequence[int]] | None) -> list[tuple[str, list[str]]]:
    """Of each class how many sequences each part has, and the share of the training part; the most frequent first."""
    if names is None or counts is None:
        return []
    total = max(sum(row[0] for row in counts), 1)
    order = sorted(range(len(names)), key=lambda k: (-counts[k][0], k))
    return [(names[k], [*(f"{n:,}" for n in counts[k]), _percent(counts[k][0] / total)]) for k in order]


def _untrained(names: Sequence[str] | None, counts: Sequence[Sequence[int]] | None) -> str:
    """Name the classes that no network can have learned."""
    absent = [name for name, row in zip(names or (), counts or (), strict=True) if not row[0]]
    if not absent:
        return ""
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    return f"Not in the training part, so no network can know it: {', '.join(absent[:_NAMED])}{more}."


def _missing_rows(features: Sequence[str], found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Of each feature with missing values their number and share, the most first."""
    steps = sum(found["steps"])
    counted = sorted(zip(found["missing"] or (), features, strict=False), key=lambda each: -each[0])
    return [(name, f"{count:,}", _percent(count / steps)) for count, name in counted if count]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}{_NBSP}%"
