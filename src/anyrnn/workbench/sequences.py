"""Sequences in memory: with and without targets, scaled, and side by side in a batch. Leans on torch alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyrnn.errors import AnyRNNError


@dataclass(frozen=True)
class Inputs:
    """Sequences to predict for: `x` (T_i, I) float32 each; `y` None, or the targets if the file has them."""

    x: tuple[Tensor, ...]
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
        width = self.x[0].shape[-1]
        for x, id_ in zip(self.x, self.ids, strict=True):
            if x.ndim != 2 or x.dtype != torch.float32 or not x.shape[0] or x.shape[1] != width or not width:
                raise AnyRNNError(
                    f"sequence {id_!r}: got shape {tuple(x.shape)} and {x.dtype}, expected (steps, features) with "
                    f"at least one step, {width} features as in the first sequence, and torch.float32"
                )

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Sequences(Inputs):
    """Sequences with their targets: `y` (N,) is int64 (the index of a class) or float32 (a number)."""

    y: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.y.dtype not in {torch.int64, torch.float32}:
            raise AnyRNNError(
                f"sequences: got targets of {self.y.dtype}, expected torch.int64 for classes or torch.float32 "
                "for numbers"
            )

    def subset(self, indices: Iterable[int]) -> "Sequences":
        """The sequences at these places, in this order."""
        places = list(indices)
        return Sequences(tuple(self.x[i] for i in places), self.y[places], tuple(self.ids[i] for i in places))


@dataclass(frozen=True)
class Scaler:
    """Brings each feature to mean 0 and standard deviation 1 over all steps of the sequences it was fitted on.

    A feature that is constant there is only shifted (standard deviation 1): it must not divide by zero.

    >>> scaler = Scaler.fit(Inputs((torch.tensor([[1.0, 7.0], [3.0, 7.0]]),), None, ("a",)))
    >>> scaler(torch.tensor([[5.0, 8.0]]))
    tensor([[3., 1.]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise AnyRNNError(
                f"scaler: got {len(self.mean)} means and {len(self.std)} standard deviations, expected one of each "
                "for every feature"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise AnyRNNError("scaler: expected finite means and finite, positive standard deviations")

    @classmethod
    def fit(cls, sequences: Inputs) -> "Scaler":
        """Measure the features. Give it the training part and nothing else."""
        steps = torch.cat(sequences.x).double()  # (sum of T_i, I); float64: sums in float32 lose digits
        std = steps.std(0, correction=0)
        return cls(tuple(steps.mean(0).tolist()), tuple(std.masked_fill(std == 0, 1.0).tolist()))

    def __call__(self, x: Tensor) -> Tensor:
        """Scale `x` (..., I)."""
        if x.shape[-1:] != (len(self.mean),):
            raise AnyRNNError(
                f"scaler: x has shape {tuple(x.shape)}, expected {len(self.mean)} features in its last dimension, "
                "as in the data it was fitted on"
            )
        return (x - x.new_tensor(self.mean)) / x.new_tensor(self.std)

    def to_dict(self) -> dict[str, list[float]]:
        """As JSON can hold it; exact, since JSON writes floats with all their digits."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Scaler":
        """The scaler that `to_dict` described."""
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise AnyRNNError(
                "scaler: expected {'mean': [numbers], 'std': [numbers]}, the file holds something else; "
                "train the model again"
            ) from error
        return cls(mean, std)


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
    chosen = [sequences.x[i] for i in places]
    lengths = torch.tensor([len(x) for x in chosen])
    return pad_sequence(chosen), lengths, None if sequences.y is None else sequences.y[places]
