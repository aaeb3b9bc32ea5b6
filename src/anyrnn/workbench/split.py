"""Whole sequences into training, validation and test part. scikit-learn draws; this says what belongs together."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.parsed import Parsed
from anyrnn.workbench.sequences import Sequences

_LEAST_SEQUENCES = 100  # of a training part: a fifth of fewer, less than twenty, tell no epoch from another
_LEAST_GROUPS = 10  # likewise: a fifth of fewer is one
_NUMBER = re.compile(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?")


def split(
    whole: Sequences, classes: tuple[str, ...] | None, own: Parsed, test_fraction: float, seed: int
) -> tuple[Sequences, Sequences, str]:
    """A training and a test part, such that training has every class; and a sentence about them.

    Sequences of one group stay in one part, and so do those whose ids differ in spelling only, as p7 and P7: they may
    be pieces of one.
    """
    count = len(whole)
    if classes is not None and len(classes) == count:
        raise AnyRNNError(
            f"{own.path}: target {own.target!r} is different for each of the {count} sequences, expected classes "
            "that some sequences share; is this the column to predict? Numbers are read with task='regression' "
            "(--task regression)"
        )
    pieces = _pieces(whole)
    if len(pieces) < 2 and whole.groups is not None:
        raise AnyRNNError(
            f"{own.path}: all sequences are of one group ({whole.groups[0]!r}), expected at least two groups, to train "
            "on one and test on another"
        )
    if len(pieces) < 2:
        raise AnyRNNError(
            f"{own.path}: all ids differ in spelling only ({whole.ids[0]!r}, {whole.ids[1]!r}), so they may be one "
            "sequence in pieces; expected at least two sequences, to train on one and test on another"
        )
    train, test, how = _drawn(whole, pieces, classes is not None, test_fraction, seed)
    if not len(test):
        apart = "groups" if whole.groups is not None else "ids that differ in spelling only"
        raise AnyRNNError(
            f"{own.path}: no sequence is left for the test part: {apart} stay together, and "
            "training needs every class; write the ids of a sequence one way, or give a test file"
        )
    sentence = f"{_amount(whole, test)}, drawn at random{how} (seed {seed}), are the test part"
    return whole.subset(train), whole.subset(test), sentence


def split_validation(
    train: Sequences, classes: tuple[str, ...] | None, share: float, seed: int, *, least: int = _LEAST_SEQUENCES
) -> tuple[Sequences, Sequences | None, str]:
    """What is left to train on, and the validation part taken from it, if there is enough; and a sentence about it.

    There is enough if there are `least` sequences.
    """
    if share == 0:
        return train, None, "no validation part was asked for: each network is trained for all its epochs"
    pieces, fixed = _pieces(train), "each network is trained for all its epochs"
    few = "are too few for a validation part (fewer than"
    if len(train) < least:
        return train, None, f"{len(train)} sequences to train on {few} {least}): {fixed}"
    if train.groups is not None and len(pieces) < _LEAST_GROUPS:
        return train, None, f"{len(pieces)} groups to train on {few} {_LEAST_GROUPS}): {fixed}"
    rest, validation, how = _drawn(train, pieces, classes is not None, share, seed)
    if not len(validation):
        return train, None, f"training needs every class, and no sequence is left for a validation part: {fixed}"
    amount = f"{_amount(train, validation)} of the training part"
    sentence = f"{amount}, drawn at random{how} (seed {seed}), are the validation part"
    return train.subset(rest), train.subset(validation), sentence


def _amount(whole: Sequences, part: list[int]) -> str:
    if whole.groups is None:
        return f"{len(part)} of {len(whole)} sequences"
    groups = len({spelling(whole.groups[k]) for k in part})
    return (
        f"{groups} of {len({spelling(group) for group in whole.groups})} groups with {len(part)} of {len(whole)} "
        "sequences"
    )


def _pieces(whole: Sequences) -> list[NDArray[np.intp]]:
    """The places of sequences that belong in one part: of one group, or of ids that are spelled alike."""
    above = list(range(len(whole)))  # for each sequence itself or an earlier one of the same piece

    def top(place: int) -> int:
        while above[place] != place:
            place = above[place]
        return place

    first: dict[tuple[str, str], int] = {}  # to have a name
    groups = whole.groups or ()
    for kind, names in (("id", whole.ids), ("group", groups)):
        for place, name in enumerate(names):
            one, other = top(place), top(first.setdefault((kind, spelling(name)), place))
            above[max(one, other)] = min(one, other)
    pieces: dict[int, list[int]] = {}
    for place in range(len(whole)):
        pieces.setdefault(top(place), []).append(place)
    return [np.array(piece) for piece in pieces.values()]


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
    whole: Sequences, pieces: list[NDArray[np.intp]], has_classes: bool, share: float, seed: int
) -> tuple[list[int], list[int], str]:
    """The places of two parts, of which the first has every class; and how they were drawn."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 - it takes a second to load

    count, y = len(pieces), whole.y.numpy()
    size = min(max(1, round(count * share)), count - 1)
    if has_classes:
        usual = np.array([np.bincount(y[piece]).argmax() for piece in pieces])
        first, second, how = _class_split(usual, size, seed)
    else:
        first, second = train_test_split(np.arange(count), test_size=size, random_state=seed)
        how = ""
    train, test = (np.concatenate([np.array([], dtype=int), *(pieces[k] for k in part)]) for part in (first, second))
    if has_classes and count < len(whole):  # a piece may hold the only sequences of a class that is not its usual one
        lacking = np.setdiff1d(y, y[train])
        moved = [pieces[k] for k in second if np.isin(y[pieces[k]], lacking).any()]
        train = np.concatenate([train, *moved])
        test = np.setdiff1d(test, train)
    return sorted(train.tolist()), sorted(test.tolist()), how


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
