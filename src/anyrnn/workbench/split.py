"""Whole sequences into a training and a test part. scikit-learn draws; this says what belongs together."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.parsed import Parsed
from anyrnn.workbench.sequences import Sequences

_NUMBER = re.compile(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?")


def split(
    whole: Sequences, classes: tuple[str, ...] | None, own: Parsed, test_fraction: float, seed: int
) -> tuple[Sequences, Sequences, str]:
    """Two parts, such that training has every class; and a sentence about them.

    Sequences whose ids differ in spelling only, as p7 and P7, may be pieces of one: they stay in one part.
    """
    count = len(whole)
    if classes is not None and len(classes) == count:
        raise AnyRNNError(
            f"{own.path}: target {own.target!r} is different for each of the {count} sequences, expected classes "
            "that some sequences share; is this the column to predict? Numbers are read with task='regression' "
            "(--task regression)"
        )
    places: dict[str, list[int]] = {}
    for place, id_ in enumerate(whole.ids):
        places.setdefault(spelling(id_), []).append(place)
    groups = [np.array(group) for group in places.values()]
    if len(groups) < 2:
        raise AnyRNNError(
            f"{own.path}: all ids differ in spelling only ({whole.ids[0]!r}, {whole.ids[1]!r}), so they may be one "
            "sequence in pieces; expected at least two sequences, to train on one and test on another"
        )
    first = np.array([group[0] for group in groups])
    y = None if classes is None else whole.y.numpy()
    train, test, how = _drawn(len(groups), None if y is None else y[first], test_fraction, seed)
    train, test = (np.concatenate([np.array([], dtype=int), *(groups[k] for k in part)]) for part in (train, test))
    if y is not None and len(groups) < count:  # the other pieces of a group may be of a class that training lacks
        lacking = np.setdiff1d(y, y[train])
        moved = [group for group in groups if group[0] in test and np.isin(y[group], lacking).any()]
        train = np.concatenate([train, *moved])
        test = np.setdiff1d(test, train)
    if not len(test):
        raise AnyRNNError(
            f"{own.path}: no sequence is left for the test part: ids that differ in spelling only stay together, and "
            "training needs every class; write the ids of a sequence one way, or give a test file"
        )
    sentence = f"{len(test)} of {count} sequences, drawn at random{how} (seed {seed}), are the test part"
    return whole.subset(sorted(train.tolist())), whole.subset(sorted(test.tolist())), sentence


def spelling(text: str) -> str:
    """What two names share that differ in case, blanks, the width or composition of letters, or as 7 and 007.0 do."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    number = _NUMBER.fullmatch(text)
    return text if number is None else f"{number[1].replace('+', '')}{number[2]}.{number[3] or ''}"


def alike(names: Iterable[str]) -> Mapping[str, list[str]]:
    """The different names that share a spelling, by it."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        found.setdefault(spelling(name), []).append(name)
    return {key: several for key, several in found.items() if len(several) > 1}


def _drawn(
    count: int, y: NDArray[Any] | None, test_fraction: float, seed: int
) -> tuple[NDArray[Any], NDArray[Any], str]:
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 - it takes a second to load

    size = min(max(1, round(count * test_fraction)), count - 1)
    if y is not None:
        return _class_split(y, size, seed)
    train, test = train_test_split(np.arange(count), test_size=size, random_state=seed)
    return train, test, ""


def _class_split(y: NDArray[Any], size: int, seed: int) -> tuple[NDArray[Any], NDArray[Any], str]:
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 - as above

    alone = np.bincount(y)[y] == 1  # the only one of its class: it has to be in training
    rest = np.flatnonzero(~alone)
    kinds = len(np.unique(y[rest]))
    size = min(size, len(rest) - kinds)
    if size < 1:
        return np.arange(len(y)), np.array([], dtype=int), ""
    if kinds <= size <= len(rest) - kinds:
        train, test = train_test_split(rest, test_size=size, random_state=seed, stratify=y[rest])
        if len(np.unique(y[train])) == kinds:
            return np.concatenate([train, np.flatnonzero(alone)]), test, " in the proportions of the classes"
    shuffled = np.random.default_rng(seed).permutation(len(y))
    first = np.unique(y[shuffled], return_index=True)[1]  # one of each class, which stays in training
    test = np.delete(shuffled, first)[:size]
    return np.setdiff1d(shuffled, test), test, " from too few to keep the proportions of the classes"
