"""What the reader of a table should know about their data before they trust a score, a sentence each."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.parsed import BLANK, Parsed
from anyrnn.workbench.sequences import Inputs, Scaler, Sequences, bulk
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
                f"class {name!r} of {counts[name]} sequences is read as a class; if it means that the class is "
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
    if all(len(x) == 1 for file in files for x in file.x) and own.rows is not None:
        yield (
            "every sequence has 1 step; if each row of the table is a whole sequence, its values must be written below "
            "each other, a row for each step"
        )
    if own.rows is not None:
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
    steps = torch.cat(inputs.x).numpy()  # (sum of T_i, I)
    ends = np.cumsum([len(x) for x in inputs.x])
    absent = int(np.isnan(steps).sum())
    if absent:
        yield f"{absent} of {steps.size} cells are missing: {_FILLED}{_TOLD[scaler.kind]}"
    many = 0
    for name, values, mean, std in zip(features, steps.T, scaler.mean, scaler.std, strict=True):
        with np.errstate(over="ignore"):
            far = np.flatnonzero(np.abs(values - mean) > scaler.linear_to * std)
        many += len(far) > 0
        if len(far) and many <= _MOST_FEATURES:
            i = int(np.searchsorted(ends, far[0], side="right"))
            lies = f"1 of {len(values)} cells lies" if len(far) == 1 else f"{len(far)} of {len(values)} cells lie"
            yield (
                f"feature {name!r}: {lies} more than {scaler.linear_to:g} standard deviations from the mean of the "
                f"training part, {mean:.6g}; the first is {values[far[0]]:.9g}, step "
                f"{far[0] - ends[i] + len(inputs.x[i]) + 1} of {inputs.ids[i]!r}: the network has seen nothing like it"
            )
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
    known = {_digest(x): id_ for x, id_ in zip(train.x, train.ids, strict=True)}
    copies = [(id_, known[_digest(x)]) for x, id_ in zip(test.x, test.ids, strict=True) if _digest(x) in known]
    if copies:
        yield (
            f"{len(copies)} of {len(test)} test sequences have the very values of a training sequence, "
            f"{copies[0][0]!r} those of {copies[0][1]!r} for one: to know them again is no success"
        )


def _digest(x: torch.Tensor) -> bytes:
    values = x.double().nan_to_num(nan=np.pi) + 0.0  # -0.0 is 0.0
    return hashlib.blake2b(values.numpy().tobytes(), digest_size=16).digest()


def _missing(files: Sequence[Parsed], scaler: Scaler) -> Iterator[str]:
    if scaler.missing is None:
        return
    counts = sum(np.isnan(x.numpy()).sum(0) for file in files for x in file.x)  # (I,)
    cells = sum(x.numel() for file in files for x in file.x)
    values = ", ".join(scaler.missing) or "nothing"
    if not np.any(counts):
        yield f"no cell is missing: the features hold no {values}, nothing empty and no NaN"
        return
    order = np.argsort(-np.asarray(counts), kind="stable")
    worst = [f"{files[0].features[k]!r} {np.asarray(counts)[k]}" for k in order[:_MOST_FEATURES] if counts[k]]
    told = _TOLD[scaler.kind] or "; gaps='mask' or 'since' (--gaps) tells it which ones"
    yield f"{int(np.sum(counts))} of {cells} cells are missing ({', '.join(worst)}): {_FILLED}{told}"


def _far_cells(files: Sequence[Parsed], train: Sequences, scaler: Scaler) -> Iterator[str]:
    in_training = set(train.ids)
    steps = [torch.cat(file.x).numpy() for file in files]  # (sum of T_i, I) each
    ends = [np.cumsum([len(x) for x in file.x]) for file in files]
    fitted = np.repeat([id_ in in_training for id_ in files[0].ids], [len(x) for x in files[0].x])
    cells = sum(map(len, steps))
    many = 0
    for k, name in enumerate(files[0].features):
        column = steps[0][fitted, k]
        low, high = bulk(column[~np.isnan(column)])
        far: list[tuple[float, str]] = []
        for number, file in enumerate(files):
            values = steps[number][:, k]
            outside = (values < low) | (values > high)
            # New data may go a little further.
            with np.errstate(over="ignore"):
                further = np.abs(values - scaler.mean[k]) > scaler.linear_to * scaler.std[k]
            outside &= further if number else further | fitted
            for row in np.flatnonzero(outside):
                i = int(np.searchsorted(ends[number], row, side="right"))
                far.append((float(values[row]), file.cell(i, int(row - ends[number][i]) + len(file.x[i]), k)))
        if far:
            many += 1
            if many <= _MOST_FEATURES:
                yield (
                    f"feature {name!r}: {_far(far, cells, 'cell', low, high)}. Such cells do not decide the scale, and "
                    f"are scaled by their logarithm{_if_missing(far)}"
                )
    if many > _MOST_FEATURES:
        yield f"{many - _MOST_FEATURES} more features have cells far from the others"


def _far_targets(files: Sequence[Parsed], train: Sequences, test: Sequences) -> Iterator[str]:
    values = torch.cat((train.y, test.y)).double().numpy()
    known, new = (dict(zip(file.ids, file.where, strict=True)) for file in (files[0], files[-1]))
    places = [*(known[id_] for id_ in train.ids), *(new[id_] for id_ in test.ids)]
    low, high = bulk(values)
    far = [(float(v), place) for v, place in zip(values, places, strict=True) if not low <= v <= high]
    if far:
        yield (
            f"target {files[0].target!r}: {_far(far, len(values), 'sequence', low, high)}. The error is mostly that of "
            f"such sequences{_if_missing(far)}"
        )


def _far(far: list[tuple[float, str]], count: int, what: str, low: float, high: float) -> str:
    value, place = far[0]
    lies = f"1 of {count} {what}s lies" if len(far) == 1 else f"{len(far)} of {count} {what}s lie"
    first = "it is" if len(far) == 1 else "the first is"
    return f"{lies} far from the others ({low:.6g} to {high:.6g}); {first} {value:.9g}, {place}"


def _if_missing(far: list[tuple[float, str]]) -> str:
    value, times = Counter(value for value, _ in far).most_common(1)[0]
    if times < 2 and not (value < 0 and set(f"{value:.9g}".strip("-")) == {"9"}):
        return ""
    return f"; if {value:.9g} means missing, say missing={value:.9g} (--missing {value:.9g})"


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names[:3])) + (" and others" if len(names) > 3 else "")


def _more(count: int, what: str) -> str:
    return "" if not count else f" (and {count} more {what}{'s' if count > 1 else ''})"
