"""What the reader of a table should know about their data before they trust a score, a sentence each."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.ondisk import Steps, digests_of, lengths_of, missing_of, pieces
from anyrnn.workbench.parsed import BLANK, Parsed
from anyrnn.workbench.sequences import Inputs, Scaler, Sequences, bulk, rows_of, sample
from anyrnn.workbench.split import alike, spelling

_FILLED = "a network gets the last value of the sequence before them, or the training mean where there is none"
_TOLD: Mapping[Gaps, str] = {
    "fill": "",
    "mask": ", and is told which ones",
    "since": ", and is told which ones, and how long ago each feature was seen",
}
_PIECE = re.compile(r"(.*\w)[ _./:#-]+(\d{1,9})")  # 12_1, anna-03
_NEARLY_ALL = 0.9
_MOST_FEATURES = 5  # a note each; that there are more is said in one


def notes_on_classes(own: Parsed, classes: Collection[str]) -> Iterator[str]:
    """Classes that may be one, and classes that may mean "missing"."""
    for names in alike(classes).values():
        yield (
            f"classes {_quoted(names)} differ in case or spelling only: they are different classes; write them one "
            "way if they are one"
        )
    counts = Counter(str(value) for value in own.targets or ())
    for name in classes:
        if name.lower() in BLANK:
            yield (
                f"class {name!r} of {counts[name]} {own.unit}s is read as a class; if it means that the class is "
                f"missing, say missing={name!r} (--missing {name})"
            )


def notes_on_sequences(
    files: Sequence[Parsed],
    train: Sequences,
    validation: Sequences | None,
    test: Sequences,
    scaler: Scaler,
    *,
    of_targets: bool = True,
) -> Iterator[str]:
    """Lengths, ids, groups, missing values, copies, and cells far from all others.

    Args:
        files: The file that was split, or the training and the test file.
        train: The training part.
        validation: The validation part, if there is one.
        test: The test part.
        scaler: Fitted on the training part.
        of_targets: Look at the targets, too.
    """
    own = files[0]
    if own.is_table and all((lengths_of(file.x) == 1).all() for file in files):
        yield (
            "every sequence has 1 step; if each row of the table is a whole sequence, its values must be written below "
            "each other, a row for each step"
        )
    if own.is_table:
        yield from _ids(files)
        yield from _groups(files)
    seen = train if validation is None else train + validation
    yield from _copies(seen, test)
    yield from _missing(files, scaler)
    yield from _far_cells(files, train, scaler)
    if of_targets and train.y.is_floating_point():
        yield from _far_targets(files, seen, test)


def notes_on_unseen(inputs: Inputs, features: Sequence[str], scaler: Scaler) -> Iterator[str]:
    """Cells of sequences to predict for that are missing, or far from what the network was trained on.

    Args:
        inputs: The sequences, as read.
        features: Their features.
        scaler: Of the trained network.
    """
    cells, absent = int(lengths_of(inputs.x).sum()) * len(features), int(missing_of(inputs.x).sum())
    if absent:
        yield f"{absent} of {cells} cells are missing: {_FILLED}{_TOLD[scaler.kind]}"
    steps = cells // len(features)
    far = [_Far() for _ in features]
    for place, values in _located(inputs.x):
        for k, (mean, std) in enumerate(zip(scaler.mean, scaler.std, strict=True)):
            with np.errstate(over="ignore"):
                rows = np.flatnonzero(np.abs(values[:, k] - mean) > scaler.linear_to * std)
            if len(rows):
                far[k].add(values[rows, k], place(rows[0]))
    for name, each, mean in [(features[k], far[k], scaler.mean[k]) for k in _worth_a_note(far)]:
        lies = f"1 of {steps} cells lies" if each.count == 1 else f"{each.count} of {steps} cells lie"
        sequence, step = each.place
        yield (
            f"feature {name!r}: {lies} more than {scaler.linear_to:g} standard deviations from the mean of the "
            f"training part, {mean:.6g}; the first is {each.value:.9g}, step {step + 1} of {inputs.ids[sequence]!r}: "
            "the network has seen nothing like it"
        )
    many = sum(each.count > 0 for each in far)
    if many > _MOST_FEATURES:
        yield f"{many - _MOST_FEATURES} more features have cells far from those of the training part"


def _ids(files: Sequence[Parsed]) -> Iterator[str]:
    pairs = [names for file in files for names in alike(file.ids).values()]
    if pairs:
        together = " and stay in one part" if len(files) == 1 else ""
        yield (
            f"ids {_quoted(pairs[0])} differ in case or spelling only{_more(len(pairs) - 1, 'such id')}: they are read "
            f"as different sequences{together}; write them one way if they are one"
        )
    if len(files) > 1:
        known = {spelling(id_): id_ for id_ in files[0].ids}
        both = [(known[spelling(id_)], id_) for id_ in files[1].ids if spelling(id_) in known]
        if both:
            there, here = both[0]
            yield (
                f"id {here!r} of the test file is in the training file, too"
                + (f" (as {there!r})" if here != there else "")
                + f"{_more(len(both) - 1, 'such id')}; if they are pieces of the same sequences, the test part is not "
                "new to the network"
            )


def _groups(files: Sequence[Parsed]) -> Iterator[str]:
    own = files[0]
    if own.groups is None:
        pieces = _running_numbers(own.ids)
        if pieces:
            yield (
                f"{_quoted(pieces)} look like pieces of one engine, patient or recording, and so do the other ids: if "
                "they are, pieces of one are in several parts, and the score flatters; name the column that says which "
                "one a piece is of (group_column, --group)"
            )
    elif len(files) > 1 and files[1].groups is not None:
        known = set(map(spelling, own.groups))
        both = [group for group in dict.fromkeys(files[1].groups) if spelling(group) in known]
        if both:
            yield (
                f"group {both[0]!r} of the test file is in the training file, too{_more(len(both) - 1, 'such group')}: "
                "the score says nothing about groups that the network has not seen"
            )


def _running_numbers(ids: Sequence[str]) -> tuple[str, ...]:
    """Two ids that seem to be pieces of one thing, if nearly all do: several names, several numbers in a row each."""
    numbers: dict[str, list[int]] = {}
    names: dict[str, list[str]] = {}
    for match in filter(None, map(_PIECE.fullmatch, ids)):
        numbers.setdefault(match[1], []).append(int(match[2]))
        names.setdefault(match[1], []).append(match[0])
    runs = [name for name, found in numbers.items() if len(found) > 1 and max(found) - min(found) < len(found)]
    if len(runs) < 2 or sum(len(names[name]) for name in runs) < _NEARLY_ALL * len(ids):
        return ()
    return tuple(names[runs[0]][:2])


def _copies(train: Sequences, test: Sequences) -> Iterator[str]:
    known = dict(zip(digests_of(train.x), train.ids, strict=True))
    copies = [(id_, known[x]) for x, id_ in zip(digests_of(test.x), test.ids, strict=True) if x in known]
    if copies:
        yield (
            f"{len(copies)} of {len(test)} test sequences have the very values of a training sequence, "
            f"{copies[0][0]!r} those of {copies[0][1]!r} for one: to know them again is no success"
        )


def _missing(files: Sequence[Parsed], scaler: Scaler) -> Iterator[str]:
    if scaler.missing is None:
        return
    counts = np.sum([missing_of(file.x) for file in files], axis=0)  # (I,)
    cells = sum(int(lengths_of(file.x).sum()) for file in files) * len(counts)
    values = ", ".join(scaler.missing) or "nothing"
    if not np.any(counts):
        yield f"no cell is missing: the features hold no {values}, nothing empty and no NaN"
        return
    order = np.argsort(-counts, kind="stable")
    worst = [f"{files[0].features[k]!r} {counts[k]}" for k in order[:_MOST_FEATURES] if counts[k]]
    told = _TOLD[scaler.kind] or "; gaps='mask' or 'since' (--gaps) tells it which ones"
    yield f"{int(np.sum(counts))} of {cells} cells are missing ({', '.join(worst)}): {_FILLED}{told}"


class _Far:
    """The cells of a feature, or targets, that are far from the others.

    Attributes:
        count: How many.
        value: The first one.
        place: Where that is.
        values: How often there is which.
    """

    def __init__(self) -> None:
        self.count, self.value, self.values = 0, math.nan, Counter[float]()
        self.place: Any = None

    def add(self, values: NDArray[Any], place: Any) -> None:
        """More of them, and where the first of these is."""
        if not self.count:
            self.value, self.place = float(values[0]), place
        self.count += len(values)
        self.values.update(values.tolist())


def _worth_a_note(far: Sequence[_Far]) -> list[int]:
    """The features that get a note of their own."""
    return [k for k, each in enumerate(far) if each.count][:_MOST_FEATURES]


def _located(xs: Steps) -> Iterator[tuple[Callable[[int], tuple[int, int]], NDArray[Any]]]:
    """Pieces of the steps (rows, I), each behind what says of a row which sequence and which of its steps it is."""
    ends = np.cumsum(lengths_of(xs))
    for first, rows in pieces(xs):
        before = int(ends[first - 1]) if first else 0

        def at(row: int, before: int = before) -> tuple[int, int]:
            sequence = int(np.searchsorted(ends, before + row, side="right"))
            return sequence, int(before + row - (ends[sequence - 1] if sequence else 0))

        yield at, rows.numpy()


def _far_cells(files: Sequence[Parsed], train: Sequences, scaler: Scaler) -> Iterator[str]:
    own, in_training = files[0], set(train.ids)
    measured = sample(train.x)
    limits = [bulk(column[~np.isnan(column)]) for column in rows_of(measured).numpy().T]
    fitted = np.repeat([id_ in in_training for id_ in own.ids], lengths_of(own.x))
    far = [_Far() for _ in own.features]
    for number, file in enumerate(files):
        before = 0
        for place, values in _located(file.x):
            for k, (low, high) in enumerate(limits):
                outside = (values[:, k] < low) | (values[:, k] > high)
                # New data may go a little further, and what was not measured, too.
                with np.errstate(over="ignore"):
                    further = np.abs(values[:, k] - scaler.mean[k]) > scaler.linear_to * scaler.std[k]
                if not number and measured is train.x:
                    further |= fitted[before : before + len(values)]
                rows = np.flatnonzero(outside & further)
                if len(rows):
                    far[k].add(values[rows, k], file.cell(*place(rows[0]), k))
            before += len(values)
    cells = sum(int(lengths_of(file.x).sum()) for file in files)
    for k in _worth_a_note(far):
        yield (
            f"feature {own.features[k]!r}: {_said(far[k], cells, 'cell', *limits[k])}. Such cells do not decide the "
            f"scale, and are scaled by their logarithm{_if_missing(far[k])}"
        )
    many = sum(each.count > 0 for each in far)
    if many > _MOST_FEATURES:
        yield f"{many - _MOST_FEATURES} more features have cells far from the others"


def _far_targets(files: Sequence[Parsed], train: Sequences, test: Sequences) -> Iterator[str]:
    values = torch.cat((train.y, test.y)).double().numpy()
    low, high = bulk(values)
    rows = np.flatnonzero((values < low) | (values > high))
    if len(rows):
        file, id_ = (files[0] if rows[0] < len(train) else files[-1]), (*train.ids, *test.ids)[rows[0]]
        far = _Far()
        far.add(values[rows], file.where[file.ids.index(id_)])
        yield (
            f"target {files[0].target!r}: {_said(far, len(values), 'sequence', low, high)}. The error is mostly that "
            f"of such sequences{_if_missing(far)}"
        )


def _said(far: _Far, count: int, what: str, low: float, high: float) -> str:
    lies = f"1 of {count} {what}s lies" if far.count == 1 else f"{far.count} of {count} {what}s lie"
    first = "it is" if far.count == 1 else "the first is"
    return f"{lies} far from the others ({low:.6g} to {high:.6g}); {first} {far.value:.9g}, {far.place}"


def _if_missing(far: _Far) -> str:
    value, times = far.values.most_common(1)[0]
    if times < 2 and not (value < 0 and set(f"{value:.9g}".strip("-")) == {"9"}):
        return ""
    return f"; if {value:.9g} means missing, say missing={value:.9g} (--missing {value:.9g})"


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names[:3])) + (" and others" if len(names) > 3 else "")


def _more(count: int, what: str) -> str:
    return "" if not count else f" (and {count} more {what}{'s' if count > 1 else ''})"
