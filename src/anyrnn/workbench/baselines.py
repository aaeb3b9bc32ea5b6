"""What a recurrent network has to beat: answers without recurrence, from scikit-learn.

All learn from the training and the validation part, since they choose no epoch, and all are bounded in time: of large
data the slow ones take a part, and their name says so.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from anyrnn.workbench.convolutions import KERNELS, Convolutions
from anyrnn.workbench.data import Dataset, Inputs
from anyrnn.workbench.metrics import metric, scores
from anyrnn.workbench.sequences import moments, scaled, steps_of

MAJORITY, MEAN = "majority class", "mean"
STATISTICS = "1-nearest neighbour on summary statistics"
STEPS = "1-nearest neighbour on the steps"
RIDGE = "ridge on the flattened steps"
CONVOLUTIONS = "ridge on random convolutions"

_MOST_NUMBERS = 4000  # of a flattened sequence: longer ones are interpolated to fewer steps
_MOST_SEQUENCES = 20_000  # that ridge learns from
_MOST_DISTANCES = 5e10  # numbers that are compared with each other: some ten seconds
_MOST_PRODUCTS = 5e10  # likewise, of the convolutions
_FAR_TOO_MANY = 4 * _MOST_PRODUCTS  # of a test part alone
_FEWEST = 1000  # sequences to learn from: fewer of many are no rival
_AT_ONCE = 4096  # sequences of the test part: bounds the memory
_ALPHAS = np.logspace(-3, 4, 8)  # of ridge, which chooses by leaving out one sequence at a time


@dataclass(frozen=True)
class Baseline:
    """A name and its scores on the test part.

    Attributes:
        name: What it is.
        score: By the metric that was chosen.
        scores: By all of them; NaN where one is not defined, or needs probabilities that it has not.
    """

    name: str
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """What a baseline learns from, numbers (N, D) and targets (N,), and what it predicts for, in chunks."""

    seen: NDArray[Any]
    unseen: Callable[[], Iterator[NDArray[Any]]]
    y: NDArray[Any]


def baselines(dataset: Dataset, chosen: str | None = None) -> tuple[Baseline, ...]:
    """Score the simplest answers on the test part, fitted on all that is not the test part.

    The majority class (or the mean target) says what knowing nothing about a sequence gives. The nearest neighbour
    on summary statistics (per feature: mean, standard deviation, minimum, maximum, first and last value; and the
    length; all standardised) says how far one comes without the order of the steps. The nearest neighbour on the steps
    (scaled, padded with the mean), ridge regression on them (interpolated to one length), and ridge on random
    convolutions say how far one comes with it, but without recurrence.

    Args:
        dataset: What to learn.
        chosen: The name of the metric; None: the usual one.
    """
    name = metric(chosen, classes=dataset.classes is not None).name
    return tuple(_scored(dataset, name, *each) for each in _fitted(dataset))


def _fitted(dataset: Dataset) -> Iterator[tuple[str, Any, _Part | None]]:
    """The name of each baseline, its model, and what it sees; None where that would take too long."""
    # scikit-learn takes a second to load, which `anyrnn --help` shall not wait for.
    from sklearn.dummy import DummyClassifier, DummyRegressor  # noqa: PLC0415
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV  # noqa: PLC0415
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # noqa: PLC0415

    classes = dataset.classes is not None
    neighbour: Callable[..., Any] = KNeighborsClassifier if classes else KNeighborsRegressor
    ridge: Callable[..., Any] = RidgeClassifierCV if classes else RidgeCV
    # What the networks get: with the offset of a Unix time left in, its deviation would be lost in the squares.
    scaler, fitted = dataset.scaler, dataset.train_and_validation
    train, test = (scaled(part.x, scaler) for part in (fitted, dataset.test))
    y = fitted.y.numpy()

    def chunks() -> Iterator[Sequence[Tensor]]:
        return (list(test[first : first + _AT_ONCE]) for first in range(0, len(test), _AT_ONCE))

    def part(features: Callable[[Sequence[Tensor]], NDArray[Any]], most: float) -> _Part | None:
        """Of as many sequences at most; None if that is too few to be worth a word."""
        if most < min(_FEWEST, len(train)):
            return None
        places = sorted(np.random.default_rng(0).permutation(len(train))[: int(most)].tolist())
        return _Part(features([train[k] for k in places]), lambda: map(features, chunks()), y[places])

    lengths, tested = steps_of(train), steps_of(test)
    longest, width = int(max(lengths.max(), tested.max())), train[0].shape[1]
    nothing = DummyClassifier(strategy="most_frequent") if classes else DummyRegressor()
    nought = _Part(np.zeros((len(train), 1)), lambda: (np.zeros((len(xs), 1)) for xs in chunks()), y)
    yield (MAJORITY if classes else MEAN), nothing, nought

    summaries = part(_summarised, _MOST_DISTANCES / (len(test) * (6 * width + 1)))
    yield STATISTICS, neighbour(n_neighbors=1), summaries

    steps = min(longest, max(1, _MOST_NUMBERS // width))
    raw = (lambda xs: _padded(xs, longest)) if steps == longest else (lambda xs: _interpolated(xs, steps))
    yield STEPS, neighbour(n_neighbors=1, algorithm="brute"), part(raw, _MOST_DISTANCES / (len(test) * steps * width))

    same = min(steps, int(np.median(lengths)))
    count = min(_MOST_SEQUENCES, _MOST_PRODUCTS / (same * width) ** 2)  # what its matrix of D x D costs
    yield RIDGE, ridge(_ALPHAS), part(lambda xs: _with_lengths(_interpolated(xs, same), xs), count)
    convolve = Convolutions(same, width)

    def convolved(xs: Sequence[Tensor]) -> NDArray[Any]:
        shaped = torch.from_numpy(_interpolated(xs, same)).view(len(xs), same, width)
        return _with_lengths(convolve(shaped).numpy(), xs)

    each = KERNELS * width * 9 * same
    count = min(_MOST_SEQUENCES, max(_MOST_PRODUCTS / each - len(test), _FEWEST))
    yield CONVOLUTIONS, ridge(_ALPHAS), part(convolved, count if len(test) * each < _FAR_TOO_MANY else 0)


def _scored(dataset: Dataset, chosen: str, name: str, model: Any, part: _Part | None) -> Baseline:
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415 - as above
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    classes, total = dataset.classes, len(dataset.train) + len(dataset.validation or ())
    if part is None:
        return Baseline(f"{name}: left out, too slow", math.nan)
    mean, std = (0.0, 1.0) if classes is not None else moments(part.y.astype(np.float64))
    y = part.y if classes is not None else (part.y.astype(np.float64) - mean) / std
    shares = ranks = None
    if classes is not None and len(np.unique(y)) == 1:  # of those that were taken: nothing can be told apart
        predicted = np.full(len(dataset.test), y[0])
    else:
        whole = model if name == STEPS else make_pipeline(StandardScaler(), model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ill-conditioned matrices: a poor rival is still one
            whole.fit(part.seen, y)
            answers = [_answers(whole, unseen, len(classes or ())) for unseen in part.unseen()]
        predicted, shares, ranks = (_joined(each) for each in zip(*answers, strict=True))
    found = scores(
        dataset.test.y,
        (predicted * std + mean).tolist(),
        None if shares is None else torch.from_numpy(shares),
        classes=classes is not None,
        chosen=chosen,
    )
    if ranks is not None and shares is None:  # which is all that it takes
        found["auc"] = metric("auc", classes=True).compute(dataset.test.y.numpy(), predicted, ranks)
    taken = f", of {len(part.y):,} sequences" if len(part.y) < total else ""
    return Baseline(f"{name}{taken}", found[chosen], found)


def _answers(
    model: Any, unseen: NDArray[Any], classes: int
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """What a model predicts, and of classes the probabilities, and what sorts by them, if it gives such."""
    if not classes:
        return model.predict(unseen), None, None
    return model.predict(unseen), _shares(model, unseen, classes), _ranks(model, unseen, classes)


def _joined(parts: Sequence[Any]) -> Any:
    return None if parts[0] is None else np.concatenate(parts)


def _shares(model: Any, unseen: NDArray[Any], count: int) -> NDArray[Any] | None:
    """The probabilities of all classes (N, count), if the model gives any."""
    if not hasattr(model, "predict_proba"):
        return None
    shares = np.zeros((len(unseen), count))
    shares[:, model.classes_.astype(int)] = model.predict_proba(unseen)
    return shares


def _ranks(model: Any, unseen: NDArray[Any], count: int) -> NDArray[Any] | None:
    """What sorts sequences by how likely they are of each class (N, count), if the model gives it."""
    if not hasattr(model, "decision_function"):
        return None
    found = model.decision_function(unseen)
    ranks = np.full((len(unseen), count), -np.inf)
    ranks[:, model.classes_.astype(int)] = np.column_stack((-found, found)) if found.ndim == 1 else found
    finite: NDArray[Any] = np.nan_to_num(ranks)
    return finite


def _padded(xs: Sequence[Tensor], steps: int) -> NDArray[Any]:
    """Sequences side by side, (N, T I), shorter ones padded with 0, which is the mean."""
    padded = pad_sequence([*xs, xs[0].new_zeros(steps, xs[0].shape[1])], batch_first=True)
    return padded[:-1].flatten(1).numpy()


def _interpolated(xs: Sequence[Tensor], steps: int) -> NDArray[Any]:
    """Sequences brought to one length, (N, T I)."""
    rows = [
        x if len(x) == steps else interpolate(x.T[None], size=steps, mode="linear", align_corners=True)[0].T for x in xs
    ]
    return torch.stack(rows).flatten(1).numpy()


def _with_lengths(features: NDArray[Any], xs: Sequence[Tensor]) -> NDArray[Any]:
    """What interpolation has lost, as one more number."""
    return np.column_stack((features, [float(len(x)) for x in xs])).astype(np.float64)


def _summarised(xs: Sequence[Tensor]) -> NDArray[np.float64]:
    return summary_statistics(Inputs(tuple(xs), None, ("",) * len(xs)))


def summary_statistics(sequences: Inputs) -> NDArray[np.float64]:
    """A row of 6 I + 1 numbers for each sequence, whatever its length: (N, 6 I + 1)."""
    rows = []
    for x in sequences.x:
        steps = x.double()  # (T, I)
        std = steps.std(0, correction=0)
        parts = (steps.mean(0), std, steps.amin(0), steps.amax(0), steps[0], steps[-1])
        rows.append(torch.cat([*parts, torch.tensor([float(len(steps))])]))
    return torch.stack(rows).numpy()
