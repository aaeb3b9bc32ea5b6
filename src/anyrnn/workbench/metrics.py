"""Scores of predictions by name, how good a score is, and how much of it is luck. scikit-learn computes what it has."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.names import did_you_mean

_DRAWS = 200  # of a bootstrap: its standard deviation is right to one in twenty


@dataclass(frozen=True)
class Metric:
    """One way to score.

    Attributes:
        name: As given to `--metric`.
        higher_is_better: Or lower.
        percent: Whether it is a share that is written in percent.
        compute: From the true targets (N,), the predicted ones (N,) and, for classes, their probabilities (N, K).
        of_probabilities: Whether it needs them.
        shown: Whether it is computed where it was not asked for.
    """

    name: str
    higher_is_better: bool
    percent: bool
    compute: Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], float]
    of_probabilities: bool = False
    shown: bool = True

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return 1 if self.higher_is_better else -1


def metric(name: str | None, *, classes: bool) -> Metric:
    """Find a metric by name; the usual one if there is no name.

    Raises:
        AnyRNNError: if there is none of this name for classes, or for numbers.
    """
    known = CLASS_METRICS if classes else NUMBER_METRICS
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        what = "classes are predicted" if classes else "a number is predicted"
        raise AnyRNNError(
            f"metric: got {name!r}, expected one of {', '.join(known)}, since {what}.{did_you_mean(name, known)}"
        )
    return known[name]


def scores(
    y: Tensor, predictions: Sequence[float], probabilities: Tensor | None, *, classes: bool, chosen: str
) -> dict[str, float]:
    """Score predictions in every way that is shown, and in the chosen one; NaN where one is not defined.

    Args:
        y: The truth (N,): the index of a class, or a number.
        predictions: What was predicted, likewise.
        probabilities: Of the classes (N, K); None if they are not known, or numbers are predicted.
        classes: Whether classes are predicted.
        chosen: The name of a metric.
    """
    truth, got = y.double().numpy(), np.asarray(predictions, dtype=np.float64)
    shares = None if probabilities is None else probabilities.double().numpy()
    known = CLASS_METRICS if classes else NUMBER_METRICS
    return {
        name: each.compute(truth, got, shares) if shares is not None or not each.of_probabilities else math.nan
        for name, each in known.items()
        if each.shown or name == chosen
    }


def spread(statistic: Callable[[NDArray[Any]], float], count: int, groups: Sequence[str] | None = None) -> float:
    """The standard deviation of a score over the choice of sequences, by the bootstrap.

    Args:
        statistic: The score of the sequences at some places.
        count: How many sequences there are.
        groups: The group of each: groups are drawn whole then, since their sequences err alike.
    """
    generator = np.random.default_rng(0)
    names = np.unique(np.asarray(groups), return_inverse=True)[1] if groups is not None else np.arange(count)
    places = np.split(np.argsort(names, kind="stable"), np.cumsum(np.bincount(names))[:-1])
    if len(places) < 2:
        return math.nan
    drawn: list[float] = []
    for _ in range(_DRAWS):
        chosen = generator.integers(len(places), size=len(places))
        drawn.append(statistic(np.concatenate([places[k] for k in chosen])))
    finite = np.array([value for value in drawn if math.isfinite(value)])
    return float(finite.std()) if len(finite) > _DRAWS // 2 else math.nan


def _accuracy(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    return float((y == got).mean())


def _balanced_accuracy(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    from sklearn.metrics import recall_score  # noqa: PLC0415 - it takes a second to load, here and below

    return float(recall_score(y, got, labels=np.unique(y), average="macro", zero_division=0))


def _macro_f1(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    from sklearn.metrics import f1_score  # noqa: PLC0415

    return float(f1_score(y, got, average="macro", zero_division=0))


def _auc(y: NDArray[Any], _: object, shares: NDArray[Any] | None) -> float:
    """One class against the rest, the mean over the classes that occur in y, and are not all of it."""
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415

    if shares is None or not np.isfinite(shares).all() or len(np.unique(y)) < 2:
        return math.nan
    return float(np.mean([roc_auc_score(y == k, shares[:, int(k)]) for k in np.unique(y)]))


def _log_loss(y: NDArray[Any], _: object, shares: NDArray[Any] | None) -> float:
    from sklearn.metrics import log_loss  # noqa: PLC0415

    if shares is None or not np.isfinite(shares).all():
        return math.nan
    exact = shares / shares.sum(1, keepdims=True)  # float32 adds up to 1 not quite
    return float(log_loss(y, exact, labels=np.arange(shares.shape[1])))


def rms(errors: NDArray[Any]) -> float:
    """The root of their mean square; no square of 1e200 or 1e-200."""
    return math.hypot(*errors.ravel().tolist()) / math.sqrt(errors.size)


def _rmse(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    return rms(got - y)


def _mae(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    return float((np.abs(got - y) / len(y)).sum())  # no sum of 1e308


def _r2(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    """1 - squared error / variance of y; it is the efficiency of Nash and Sutcliffe (1970) as well."""
    from sklearn.metrics import r2_score  # noqa: PLC0415

    if not np.isfinite(got).all() or y.min() == y.max():
        return math.nan
    size = np.abs(np.concatenate((y, got))).max()
    return float(r2_score(y / size, got / size))


def _mape(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    """The mean of |error / truth|; not defined where a truth is 0."""
    return float(np.mean(np.abs((got - y) / y))) if y.all() else math.nan


def _kge(y: NDArray[Any], got: NDArray[Any], _: object) -> float:
    """The efficiency of Kling and Gupta: 1 - the distance of (r, alpha, beta) from (1, 1, 1).

    r is the correlation, alpha the ratio of the standard deviations, beta that of the means, predicted over true
    (Gupta, Kling, Yilmaz and Martinez 2009, J. Hydrology 377, 80-91).
    """
    if y.min() == y.max() or not y.mean() or not np.isfinite(got).all():
        return math.nan
    alpha, beta = got.std() / y.std(), got.mean() / y.mean()
    r = np.corrcoef(y, got)[0, 1] if got.min() < got.max() else 0.0
    return 1 - math.sqrt((r - 1) ** 2 + (alpha - 1) ** 2 + (beta - 1) ** 2)


def _by_name(*metrics: Metric) -> Mapping[str, Metric]:
    return {each.name: each for each in metrics}


#: The first is the usual one, here and below.
CLASS_METRICS = _by_name(
    Metric("accuracy", True, True, _accuracy),
    Metric("balanced-accuracy", True, True, _balanced_accuracy),
    Metric("macro-f1", True, True, _macro_f1),
    Metric("auc", True, False, _auc, of_probabilities=True),
    Metric("log-loss", False, False, _log_loss, of_probabilities=True),
)
NUMBER_METRICS = _by_name(
    Metric("rmse", False, False, _rmse),
    Metric("mae", False, False, _mae),
    Metric("r2", True, False, _r2),
    Metric("mape", False, True, _mape),
    Metric("nse", True, False, _r2, shown=False),
    Metric("kge", True, False, _kge, shown=False),
)
