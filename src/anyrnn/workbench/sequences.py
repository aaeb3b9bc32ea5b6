"""Sequences: with and without targets, scaled, and side by side in a batch. Leans on torch and NumPy."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.gaps import COLUMNS, GapFeatures, Gaps
from anyrnn.workbench.ondisk import OnDisk, Steps, lengths_of, pieces, taken

_REACHES = 10.0  # see `bulk`
_FLOATS = (torch.float32, torch.float64)
_MOST_MEASURED = 4_000_000  # steps: more tell a mean no better than to a two-thousandth of a deviation


@dataclass(frozen=True, repr=False)
class Inputs:
    """Sequences to predict for: `x` (T_i, I) each; `y` None, or the targets if the file has them.

    What is read from files is float64: only the scaler may round, after it took the offset off. float32 will do, too.
    """

    x: Steps
    y: Tensor | None
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.x)
        if not count or len(self.ids) != count or (self.y is not None and self.y.shape != (count,)):
            targets = "none" if self.y is None else tuple(self.y.shape)
            raise AnyRNNError(
                f"sequences: got {count} sequences, {len(self.ids)} ids and targets of shape {targets}; expected "
                "at least one sequence, and one id and one target for each"
            )
        if isinstance(self.x, OnDisk | Scaled):  # which were looked at when they were written there
            return
        width = self.x[0].shape[-1]
        for x, id_ in zip(self.x, self.ids, strict=True):
            if x.ndim != 2 or x.dtype not in _FLOATS or not x.shape[0] or x.shape[1] != width or not width:
                raise AnyRNNError(
                    f"sequence {id_!r}: got shape {tuple(x.shape)} and {x.dtype}, expected (steps, features) with "
                    f"at least one step, {width} features as in the first sequence, and torch.float64 or float32"
                )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        """How many there are; the numbers themselves would fill the screen."""
        lengths, features = lengths_of(self.x), self.x[0].shape[1]
        return f"{type(self).__name__}: {len(self)} of {lengths.min()} to {lengths.max()} steps, {features} features"


@dataclass(frozen=True, repr=False)
class Sequences(Inputs):
    """Sequences with their targets.

    Attributes:
        y: (N,) int64 (the index of a class), or float64 or float32 (a number).
        groups: The group of each sequence (its engine, patient or site); None: each is a group of its own.
        weights: (N,): how much each sequence counts in the loss of networks; None: all alike, as in the scaling, the
            scores and the baselines.
    """

    y: Tensor
    groups: tuple[str, ...] | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups is not None and len(self.groups) != len(self.x):
            raise AnyRNNError(
                f"sequences: got {len(self.groups)} groups of {len(self.x)} sequences, expected one for each"
            )
        if self.weights is not None and (self.weights.shape != self.y.shape or not bool((self.weights > 0).all())):
            raise AnyRNNError(
                f"sequences: got weights of shape {tuple(self.weights.shape)}, the lowest {self.weights.min():g}, "
                f"expected one above 0 for each of the {len(self.x)} sequences"
            )
        if self.y.dtype not in {torch.int64, *_FLOATS}:
            raise AnyRNNError(
                f"sequences: got targets of {self.y.dtype}, expected torch.int64 for classes, or torch.float64 or "
                "float32 for numbers"
            )

    def subset(self, indices: Iterable[int]) -> "Sequences":
        """The sequences at these places, in this order."""
        places = list(indices)
        return Sequences(
            taken(self.x, places),
            self.y[places],
            tuple(self.ids[i] for i in places),
            None if self.groups is None else tuple(self.groups[i] for i in places),
            None if self.weights is None else self.weights[places],
        )

    def __add__(self, other: "Sequences") -> "Sequences":
        """These sequences, and then the others."""
        groups = None if self.groups is None or other.groups is None else (*self.groups, *other.groups)
        weights = None if self.weights is None or other.weights is None else torch.cat((self.weights, other.weights))
        both = isinstance(self.x, OnDisk) and isinstance(other.x, OnDisk)
        x = self.x + other.x if both else (*self.x, *other.x)  # type: ignore[operator]
        return Sequences(x, torch.cat((self.y, other.y)), (*self.ids, *other.ids), groups, weights)


@dataclass(frozen=True)
class Scaler:
    """Brings each feature to mean 0 and standard deviation 1 over the steps of the sequences it was fitted on.

    In float64 until it is done, so that a counter or a Unix time keeps its differences; the result is float32.

    A few cells far from all others, such as a -9999 written for "missing", must not decide the scale: mean and
    deviation are those of the cells that `bulk` names. A scaled value beyond `linear_to` grows with its logarithm
    only; this keeps the order, and no value is too large for a network. Without such cells this is standardising.

    A feature that is constant is only shifted (standard deviation 1): it must not divide by zero.

    >>> scaler = Scaler.fit(Inputs((torch.tensor([[1.0, 7.0], [3.0, 7.0]]),), None, ("a",)))
    >>> scaler(torch.tensor([[5.0, 8.0]]))
    tensor([[3., 1.]])

    Args:
        mean: One for each feature.
        std: One for each feature.
        linear_to: In standard deviations.
        missing: The values that stood for "missing" in the training data; None: none may be missing. If not None, NaN
            is filled with the last value of the sequence, or with the mean where there is none yet.
        gaps: The columns that say where values were missing, which stand behind the scaled ones; None: there are none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    linear_to: float = 10.0
    missing: tuple[str, ...] | None = None
    gaps: GapFeatures | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise AnyRNNError(
                f"scaler: got {len(self.mean)} means and {len(self.std)} standard deviations, expected one of each "
                "for every feature"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0 or not self.linear_to > 0:
            raise AnyRNNError(
                "scaler: expected finite means, finite, positive standard deviations and a positive linear_to"
            )

    @property
    def kind(self) -> Gaps:
        """What is told of missing values."""
        return "fill" if self.gaps is None else self.gaps.kind

    @property
    def width(self) -> int:
        """How many columns a scaled sequence has."""
        return len(self.mean) * COLUMNS[self.kind]

    @classmethod
    def fit(
        cls,
        sequences: Inputs,
        missing: tuple[str, ...] | None = None,
        gaps: Gaps = "fill",
        clock: int | None = None,
        unscaled: Collection[int] = (),
    ) -> "Scaler":
        """Measure the features. Give it the training part and nothing else; NaN is not counted.

        Of very many steps a part is measured: see `sample`.

        Args:
            sequences: The training part.
            missing: See the class.
            gaps: What the network is told of missing values beside the filling.
            clock: Which feature is the time since the step before, by which the time since a value is counted.
            unscaled: Features that stay as they are, such as 0 and 1 for a word.

        Raises:
            AnyRNNError: if a feature has no value at all.
        """
        part = sample(sequences.x)
        scales: list[tuple[float, float]] = []
        for k, column in enumerate(rows_of(part).numpy().T):  # column: (sum of T_i,)
            values = column[~np.isnan(column)]
            if not len(values):
                raise AnyRNNError(f"scaler: feature {k + 1} is missing in every step, expected at least one value")
            low, high = bulk(values)
            kept = values[(values >= low) & (values <= high)]
            scales.append((0.0, 1.0) if k in unscaled else moments(kept))
        mean, std = zip(*scales, strict=True)
        told = None if gaps == "fill" else GapFeatures.fit(part, gaps, clock)
        return cls(mean, std, missing=missing, gaps=told)

    def __call__(self, x: Tensor) -> Tensor:
        """Scale `x` (..., T, I) to float32, with the columns for gaps behind it: (..., T, width).

        Raises:
            AnyRNNError: if it has other features, or holds NaN where none may be missing.
        """
        if x.shape[-1:] != (len(self.mean),):
            raise AnyRNNError(
                f"scaler: x has shape {tuple(x.shape)}, expected {len(self.mean)} features in its last dimension, "
                "as in the data it was fitted on"
            )
        x = x.double()
        filled = x
        if x.isnan().any():
            if self.missing is None:
                raise AnyRNNError("scaler: x holds NaN, expected numbers, as in the data it was fitted on")
            filled = _carried_forward(x)
        z = (filled - x.new_tensor(self.mean)) / x.new_tensor(self.std)
        z = z.nan_to_num(nan=0.0)  # NaN: nothing was seen before; an overflow becomes the largest number
        if self.gaps is not None:
            z = torch.cat((z, self.gaps.columns(x)), -1)
        size = z.abs()
        beyond = (size - self.linear_to).clamp(min=0.0)
        return torch.where(beyond > 0, (self.linear_to + beyond.log1p()).copysign(z), z).float()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; exact, since JSON writes floats with all their digits."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "linear_to": None if math.isinf(self.linear_to) else self.linear_to,
            "missing": None if self.missing is None else list(self.missing),
            "gaps": None if self.gaps is None else self.gaps.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Scaler":
        """The scaler that `to_dict` described; one without `linear_to`, of an earlier version, is linear throughout."""
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
            bound, missing = values.get("linear_to"), values.get("missing")
            if not (missing is None or (isinstance(missing, list) and all(isinstance(text, str) for text in missing))):
                raise TypeError
            linear_to = math.inf if bound is None else float(bound)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise AnyRNNError(
                "scaler: expected {'mean': [numbers], 'std': [numbers]}, the file holds something else; "
                "train the model again"
            ) from error
        gaps = GapFeatures.from_dict(values.get("gaps"), len(mean))
        return cls(mean, std, linear_to, None if missing is None else (*missing,), gaps)


def sample(xs: Steps) -> Steps:
    """Sequences of four million steps, drawn evenly, or all where there are not more: what tells the scale."""
    share = _MOST_MEASURED / int(lengths_of(xs).sum())
    if share >= 1:
        return xs
    draw = np.random.default_rng(0)
    return taken(xs, np.sort(draw.permutation(len(xs))[: max(1, int(share * len(xs)))]).tolist())


def rows_of(xs: Steps) -> Tensor:
    """All steps, one behind the other, (sum of T_i, I) float64."""
    return torch.cat([rows.double() for _, rows in pieces(xs)])


@np.errstate(over="ignore")  # the distance of 1e308 and -1e308 is infinite, and that is far enough
def bulk(values: NDArray[np.float64]) -> tuple[float, float]:
    """The smallest and the largest of the values that decide the scale of a feature, (N,) without NaN.

    Two kinds are left out. A value at either end that repeats, further than ten reaches from the median of the
    others, as -9999 for "missing" does, whatever its share up to nine in ten. Then all single values that are that
    far. The reach is the distance from the median within which 95 of 100 values lie, 1.96 standard deviations of a
    normal distribution; so what is left out is some 20 deviations away, and of smooth data nothing is.
    """
    rest = values
    found = True
    while found:
        found = False
        for end in (rest.min(), rest.max()):
            others = rest[rest != end]
            if len(rest) - len(others) > 1 and len(others) * 10 >= len(values):
                centre, reach = _centre_and_reach(others)
                if reach and abs(end - centre) > _REACHES * reach:
                    rest, found = others, True
                    break
    centre, reach = _centre_and_reach(rest)
    rest = rest[np.abs(rest - centre) <= _REACHES * reach]
    return float(rest.min()), float(rest.max())


def _centre_and_reach(values: NDArray[np.float64]) -> tuple[np.float64, np.float64]:
    centre = _ranked(values, 0.5)
    distance = np.abs(values - centre)
    reach = _ranked(distance, 0.95)
    if not reach and distance.any():  # nearly all are the same value: the few others tell what is usual
        reach = _ranked(distance[distance > 0], 0.5)
    return centre, reach


def _ranked(values: NDArray[np.float64], share: float) -> np.float64:
    rank = int(share * (len(values) - 1))
    ranked: np.float64 = np.partition(values, rank)[rank]
    return ranked


def moments(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of (N,) finite numbers; 1 in place of a deviation of 0.

    Scaled by a power of two and shifted by the first value, so that neither 1e300 nor 1e-300 squares to infinity or
    zero, and no digits are lost to an offset.
    """
    if values.min() == values.max():  # the sum of equal numbers is rounded: their deviation would not be 0
        return float(values[0]), 1.0
    exponent = int(np.frexp(np.abs(values).max())[1])
    scaled = np.ldexp(values, -exponent)
    shifted = scaled - scaled[0]
    mean, std = scaled[0] + shifted.mean(), shifted.std()
    return float(np.ldexp(mean, exponent)), float(np.ldexp(std, exponent)) or 1.0


def _carried_forward(x: Tensor) -> Tensor:
    """NaN (..., T, I) replaced by the last number before it in T; NaN stays where there is none."""
    if x.ndim < 2:
        return x
    steps = torch.arange(x.shape[-2]).unsqueeze(1).expand(x.shape[-2:])  # (T, I)
    last = torch.where(x.isnan(), 0, steps).cummax(-2).values
    return x.gather(-2, last)


@dataclass(frozen=True, repr=False, eq=False)
class Scaled(Sequence[Tensor]):
    """Sequences on the disk that are scaled when they are read."""

    x: OnDisk
    scaler: Scaler

    def __len__(self) -> int:
        return len(self.x)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> "Scaled": ...
    def __getitem__(self, place: int | slice) -> "Tensor | Scaled":
        """A sequence (T, width) float32, or some."""
        return Scaled(self.x[place], self.scaler) if isinstance(place, slice) else self.scaler(self.x[place])

    def taken(self, places: Iterable[int]) -> "Scaled":
        """Those at these places."""
        return Scaled(self.x.taken(places), self.scaler)

    def side_by_side(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some of them (T, B, width) float32, padded with 0, and their lengths (B,)."""
        x, lengths = self.x.side_by_side(places)
        z = self.scaler(x).transpose(0, 1).contiguous()
        z[torch.arange(len(z)).unsqueeze(1) >= lengths] = 0.0
        return z, lengths


def scaled(xs: Steps, scaler: Scaler) -> "Scaled | tuple[Tensor, ...]":
    """Sequences as a network reads them."""
    return Scaled(xs, scaler) if isinstance(xs, OnDisk) else tuple(scaler(x) for x in xs)


def steps_of(xs: Sequence[Tensor]) -> NDArray[np.int64]:
    """T of each sequence (N,), scaled or not."""
    return lengths_of(xs.x if isinstance(xs, Scaled) else xs)


def some(xs: Sequence[Tensor], places: Sequence[int]) -> Sequence[Tensor]:
    """The scaled sequences at these places."""
    return xs.taken(places) if isinstance(xs, Scaled) else [xs[k] for k in places]


def side_by_side(xs: Sequence[Tensor], places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some scaled sequences (T, B, I), padded with 0, and their lengths (B,)."""
    if not len(places):  # one without steps, for whoever needs a shape
        return xs[0].new_zeros(1, 1, xs[0].shape[1]), torch.tensor([0])
    if isinstance(xs, Scaled):
        return xs.side_by_side(places)
    chosen = [xs[k] for k in places]
    return pad_sequence(chosen), torch.tensor([len(x) for x in chosen])


@overload
def batch(sequences: Sequences, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def batch(sequences: Inputs, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor | None]: ...
def batch(sequences: Inputs, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Some sequences side by side: x (T, B, I) padded with 0, lengths (B,) int64, y (B,).

    >>> x, lengths, y = batch(Inputs((torch.ones(1, 2), torch.ones(3, 2)), None, ("a", "b")), [0, 1])
    >>> x.shape, lengths
    (torch.Size([3, 2, 2]), tensor([1, 3]))
    """
    places: list[int] = torch.as_tensor(indices).tolist()
    x, lengths = side_by_side(sequences.x, places)
    return x, lengths, None if sequences.y is None else sequences.y[places]
