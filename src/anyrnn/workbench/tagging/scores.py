"""Scores of what is said of each step. Steps without a target take no part, and padding never gets here.

So the steps on either side of one without a target are side by side in the eyes of spans, as the pieces of a word are
of which only the first one has a tag.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.metrics import CLASS_METRICS, NUMBER_METRICS, Metric
from anyrnn.workbench.names import did_you_mean
from anyrnn.workbench.tagging.spans import SCHEMES, Scheme, Spans, has_spans

SPAN_METRICS = ("span-f1", "span-precision", "span-recall")
_CLASSES = ("macro-f1", "accuracy", "balanced-accuracy")
_NUMBERS = ("rmse", "mae", "r2", "nse", "kge")
_BY_SEQUENCE = ("nse", "kge")  # each sequence has its own, as each river has: the median is the score
_KNOWN = {**CLASS_METRICS, **NUMBER_METRICS}

Places = NDArray[Any] | None  # of sequences, some of them several times; None: all, once
Statistic = Callable[[Places], float]


def _never(*_: object) -> float:
    raise NotImplementedError  # a score of steps needs to know their sequences: `Scorer` computes it


def metric_names(classes: Sequence[str] | None) -> tuple[str, ...]:
    """The scores that there are for these classes, or for numbers (None): the usual one first."""
    if classes is None:
        return _NUMBERS
    return (*SPAN_METRICS, *_CLASSES) if has_spans(classes) else _CLASSES


def step_metric(name: str | None, classes: Sequence[str] | None) -> Metric:
    """Find a metric by name; the usual one if there is no name.

    For tags of spans that is the F1 of spans, for other classes the mean F1 of the classes: most steps are often of one
    class, and who says that class always has a high accuracy. For numbers it is the root mean squared error.

    Raises:
        AnyRNNError: if there is none of this name for these classes, or for numbers.
    """
    known = metric_names(classes)
    if name is None:
        name = known[0]
    if name not in known:
        what = "numbers are predicted" if classes is None else "classes are predicted"
        if name in SPAN_METRICS and classes is not None:
            what = f"the classes are no tags of spans ({', '.join(SCHEMES)}: O, B-x, I-x and others)"
        raise AnyRNNError(
            f"metric: got {name!r}, expected one of {', '.join(known)}, since {what}.{did_you_mean(name, known)}"
        )
    return Metric(name, True, True, _never) if name in SPAN_METRICS else replace(_KNOWN[name], shown=True)


@dataclass(frozen=True)
class Scorer:
    """What the true targets of a part are, to score what is said of them.

    Attributes:
        y: The targets of all steps that have one, sequence after sequence (N,): numbers of classes, or numbers.
        lengths: How many there are of each sequence.
        classes: The names of the classes; None for numbers.
    """

    y: NDArray[Any]
    lengths: NDArray[np.int64]
    classes: tuple[str, ...] | None

    @cached_property
    def sequence(self) -> NDArray[np.int64]:
        """The number of the sequence of each step (N,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def scheme(self) -> Scheme | None:
        """The scheme of the spans, if there are any."""
        return Scheme(self.classes) if self.classes is not None and has_spans(self.classes) else None

    @cached_property
    def _first(self) -> NDArray[np.bool_]:
        return np.diff(self.sequence, prepend=-1) > 0

    def spans(self, tags: NDArray[Any]) -> Spans:
        """The spans of these tags."""
        return (self.scheme or Scheme(())).spans(tags.astype(np.int64), self._first)

    @cached_property
    def _true_spans(self) -> Spans:
        return self.spans(self.y)

    def scores(self, said: NDArray[Any]) -> dict[str, float]:
        """Every score of what was said of the steps (N,); NaN where one is not defined."""
        return {name: self.statistic(name, said)(None) for name in metric_names(self.classes)}

    def statistic(self, name: str, said: NDArray[Any]) -> Statistic:
        """A score as a function of which sequences count, so that one can draw from them."""
        if name in SPAN_METRICS:
            return self._span_statistic(name, said)
        if self.classes is not None:
            return partial(self._class_score, name, said.astype(np.int64))
        if name in _BY_SEQUENCE:
            each = self._by_sequence(name, said)
            return lambda places: _median(each if places is None else each[places])
        compute = NUMBER_METRICS[name].compute
        return lambda places: compute(self._steps(self.y, places), self._steps(said, places), None)

    def confusion(self, said: NDArray[Any], places: Places = None) -> NDArray[np.int64]:
        """How often a class (rows) was taken for a class (columns)."""
        K = len(self.classes or ())
        pairs = self.y.astype(np.int64) * K + said.astype(np.int64)
        weights = None if places is None else self._weights(places)[self.sequence]
        return np.bincount(pairs, weights, minlength=K * K).reshape(K, K).astype(np.int64)

    def span_counts(self, said: NDArray[Any]) -> NDArray[np.int64]:
        """Of each type of spans how many there are, how many were said, and how many of these are right: (types, 3)."""
        true, got, count = self._true_spans, self.spans(said), len((self.scheme or Scheme(())).types)
        kinds = (true.type, got.type, true.type[true.in_both(got)])
        return np.stack([np.bincount(each, minlength=count) for each in kinds], axis=1)

    def _class_score(self, name: str, said: NDArray[np.int64], places: Places) -> float:
        counts = self.confusion(said, places)
        total, got, right = counts.sum(1), counts.sum(0), counts.diagonal()
        if not total.sum():
            return math.nan
        if name == "accuracy":
            return float(right.sum() / total.sum())
        if name == "balanced-accuracy":
            return float((right[total > 0] / total[total > 0]).mean())
        occurs = total + got > 0
        return float((2 * right[occurs] / (total + got)[occurs]).mean())

    def _span_statistic(self, name: str, said: NDArray[Any]) -> Statistic:
        true, got = self._true_spans, self.spans(said)
        count = len(self.lengths)
        by_sequence = [
            np.bincount(self.sequence[start], minlength=count)
            for start in (true.start, got.start, true.start[true.in_both(got)])
        ]

        def score(places: Places) -> float:
            there, found, right = (int(each.sum() if places is None else each[places].sum()) for each in by_sequence)
            return dict(zip(SPAN_METRICS, f1_precision_recall(there, found, right), strict=True))[name]

        return score

    def _by_sequence(self, name: str, said: NDArray[Any]) -> NDArray[np.float64]:
        ends = np.cumsum(self.lengths)[:-1]
        pairs = zip(np.split(self.y, ends), np.split(said, ends), strict=True)
        compute = NUMBER_METRICS[name].compute
        return np.array([compute(y, got, None) if len(y) else math.nan for y, got in pairs])

    def _steps(self, values: NDArray[Any], places: Places) -> NDArray[Any]:
        if places is None:
            return values
        pieces = np.split(values, np.cumsum(self.lengths)[:-1])
        return np.concatenate([pieces[k] for k in places])

    def _weights(self, places: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(places, minlength=len(self.lengths))


def f1_precision_recall(there: int, found: int, right: int) -> tuple[float, float, float]:
    """F1, precision and recall from counts; 0 where nothing was found, or nothing is there, as conlleval has it."""
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    return 2 * right / (there + found) if there + found else 0.0, precision, recall


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
