"""Sequences in which each step has a target of its own, and the parts that they are split into."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.names import listed
from anyrnn.workbench.reading import Reading, check_seen, scaler_for
from anyrnn.workbench.sequences import Scaler, Sequences
from anyrnn.workbench.tagging.scores import Scorer
from anyrnn.workbench.tagging.words import Words

NO_TARGET = -1  # of a step whose class is not known; of a number it is NaN


@dataclass(frozen=True, repr=False)
class Steps:
    """Sequences with a target in each step, or none where it is not known.

    Attributes:
        x: What there is to read: (T, I) float64 tensors as read, or T words.
        y: The targets (T,) of each: int64, the number of a class, -1 where it is not known; or float64, NaN there.
        ids: Their names.
        groups: The group of each sequence (its engine, patient or site); None: each is a group of its own.
    """

    x: tuple[Any, ...]
    y: tuple[Tensor, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.x or not len(self.x) == len(self.y) == len(self.ids):
            raise AnyRNNError(
                f"steps: got {len(self.x)} sequences, {len(self.y)} of targets and {len(self.ids)} ids, expected at "
                "least one sequence, and the targets and the id of each"
            )
        if self.groups is not None and len(self.groups) != len(self.x):
            raise AnyRNNError(f"steps: got {len(self.groups)} groups of {len(self.x)} sequences, expected one for each")
        for x, y, name in zip(self.x, self.y, self.ids, strict=True):
            if y.shape != (len(x),) or y.dtype not in {torch.int64, torch.float64} or not len(x):
                raise AnyRNNError(
                    f"steps: sequence {name!r} of {len(x)} steps has targets {tuple(y.shape)} of {y.dtype}, expected "
                    "at least one step, and for each a target, int64 (a class) or float64 (a number)"
                )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        """How many there are; the numbers themselves would fill the screen."""
        return f"Steps: {len(self)} sequences of {sum(map(len, self.x)):,} steps, {self.labelled:,} with a target"

    @cached_property
    def known(self) -> tuple[Tensor, ...]:
        """Of each sequence which steps have a target (T,)."""
        return tuple(~y.isnan() if y.is_floating_point() else y >= 0 for y in self.y)

    @property
    def labelled(self) -> int:
        """How many steps have a target."""
        return sum(int(known.sum()) for known in self.known)

    @cached_property
    def flat(self) -> Tensor:
        """The targets of all steps that have one, sequence after sequence (N,)."""
        return torch.cat([y[known] for y, known in zip(self.y, self.known, strict=True)])

    def scorer(self, classes: tuple[str, ...] | None) -> Scorer:
        """What scores the answers of these steps."""
        lengths = np.array([int(known.sum()) for known in self.known])
        return Scorer(self.flat.numpy(), lengths, classes)

    def subset(self, places: Iterable[int]) -> "Steps":
        """The sequences at these places, in this order."""
        chosen = list(places)
        return Steps(
            tuple(self.x[k] for k in chosen),
            tuple(self.y[k] for k in chosen),
            tuple(self.ids[k] for k in chosen),
            None if self.groups is None else tuple(self.groups[k] for k in chosen),
        )

    def __add__(self, other: "Steps") -> "Steps":
        """These sequences, and then the others."""
        groups = None if self.groups is None or other.groups is None else (*self.groups, *other.groups)
        return Steps((*self.x, *other.x), (*self.y, *other.y), (*self.ids, *other.ids), groups)

    def plain(self) -> Sequences:
        """The sequences of a table without their targets: in their place stands where they are in this part."""
        return Sequences(self.x, torch.arange(len(self), dtype=torch.float64), self.ids, self.groups)


@dataclass(frozen=True, repr=False)
class Tagging:
    """A question to a recurrent network: predict `target` for each step.

    Args:
        name: What it is called in tables and reports.
        features: The names of what a step has; ("word",) where it is a word.
        classes: The names of the classes; None if numbers are predicted.
        target: The name of what is predicted.
        train: What may be fitted to.
        test: What is only scored.
        split: A sentence that says where the split came from.
        notes: Decisions that reading took and that the user may want otherwise, a sentence each.
        id_column: The column of the table that names the sequence of a row; None if the file is no table.
        time_column: The column that sorts the rows of a sequence; None if none does.
        missing: The values that were read as missing; None: none may be missing.
        validation: What chooses the epoch whose weights are kept. None: the last epoch it is.
        group_column: The column of the table that says which sequences are in one part; None if none does.
        gaps: What a network is told of missing values beside the filling: see `anyrnn.workbench.Dataset`.
        reading: What was made of the columns of the table; None: each is a feature.
    """

    name: str
    features: tuple[str, ...]
    classes: tuple[str, ...] | None
    target: str
    train: Steps
    test: Steps
    split: str
    notes: tuple[str, ...] = ()
    id_column: str | None = None
    time_column: str | None = None
    missing: tuple[str, ...] | None = None
    validation: Steps | None = None
    group_column: str | None = None
    gaps: Gaps = "fill"
    reading: Reading | None = None

    def __post_init__(self) -> None:
        names = ("training", "test") if self.validation is None else ("training", "validation", "test")
        for name, part in zip(names, self.parts, strict=True):
            if not part.labelled:
                raise AnyRNNError(
                    f"{self.name}: no step of the {name} part has a target {self.target!r}, expected some that have one"
                )
            if self.classes is None and not part.flat.isfinite().all():
                raise AnyRNNError(f"{self.name}: a target of the {name} part is infinite, expected finite numbers")
            for x, id_ in zip(part.x, part.ids, strict=True):
                if not self.has_words and (x.dim() != 2 or x.shape[1] != len(self.features)):
                    raise AnyRNNError(
                        f"{self.name}: sequence {id_!r} has shape {tuple(x.shape)}, expected (T, {len(self.features)}):"
                        f" {listed(self.features)}"
                    )
                if not self.has_words and not (x.isfinite() if self.missing is None else ~x.isinf()).all():
                    raise AnyRNNError(f"{self.name}: sequence {id_!r} holds NaN or infinity, expected finite numbers")
        if not self.has_words:
            check_seen(self.name, self.features, self.train.x)
        if self.classes is None and self.train.flat.amin() == self.train.flat.amax():
            raise AnyRNNError(
                f"{self.name}: target {self.target!r} is {self.train.flat[0]:.17g} in every step of the training part: "
                "there is nothing to predict"
            )

    @property
    def has_words(self) -> bool:
        """Whether a step is a word."""
        return isinstance(self.train.x[0], tuple)

    @property
    def parts(self) -> tuple[Steps, ...]:
        """The training part, the validation part if there is one, and the test part."""
        return (self.train, self.test) if self.validation is None else (self.train, self.validation, self.test)

    @property
    def train_and_validation(self) -> Steps:
        """All that is not the test part."""
        return self.train if self.validation is None else self.train + self.validation

    def __repr__(self) -> str:
        """What is asked of how many sequences, in a sentence; the numbers themselves would fill the screen."""
        lengths = [len(x) for part in self.parts for x in part.x]
        steps = f"{min(lengths)} to {max(lengths):,}" if min(lengths) < max(lengths) else f"{lengths[0]:,}"
        question = "a number" if self.classes is None else f"{len(self.classes)} classes"
        also = "" if self.validation is None else f", {len(self.validation):,} validation"
        count = len(self.features)
        what = "words" if self.has_words else f"{count} feature{'s' if count > 1 else ''}"
        return (
            f"{self.name}: {len(self.train):,} training{also} and {len(self.test):,} test sequences of {steps} steps, "
            f"{what}, target {self.target!r} of each step ({question})"
        )

    @cached_property
    def reader(self) -> Scaler | Words:
        """What makes numbers for a network of the steps, fitted on the training part and nothing else."""
        if self.has_words:
            return Words.fit(self.train.x)
        return scaler_for(self.train.plain(), self.missing, self.gaps, self.reading)
