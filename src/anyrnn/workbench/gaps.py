"""What a network is told of missing values: a filling alone, a mask, or also the time since each feature was seen.

`sequences.Scaler` fills gaps with the last value before them (or the mean), and asks here for the columns beside it.
Trailing steps in which nothing was seen are no gaps but padding, in formats that pad: `without_padding`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError

Gaps = Literal["fill", "mask", "since"]
GAPS: tuple[Gaps, ...] = get_args(Gaps)

# The columns that a network gets for each feature.
COLUMNS: Mapping[Gaps, int] = {"fill": 1, "mask": 2, "since": 3}


@dataclass(frozen=True)
class GapFeatures:
    """The columns beside the filled values: a mask, and perhaps the time since each feature was last seen.

    The mask is 1 where a value was seen and 0 where it was filled in. The time since is that from the last earlier
    step with a value, be there one now or not, and 0 at the first step; where nothing was seen yet, from the first
    step (Che and others 2018, https://arxiv.org/abs/1606.01865, equation 2). It is counted in steps, or by `clock`.

    >>> x = torch.tensor([[1.0], [torch.nan], [torch.nan], [4.0]], dtype=torch.float64)
    >>> GapFeatures.fit([x], "since").columns(x)
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000],
            [0.0000, 1.0000],
            [1.0000, 1.5000]], dtype=torch.float64)

    Args:
        kind: "mask", or "since" for both.
        usual: By feature, what the time since is divided by; () without one. The time is never negative, and 0 stays 0.
        clock: Which feature says how long the step before it was ago; None: each was one step ago.
    """

    kind: Gaps
    usual: tuple[float, ...] = ()
    clock: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in GAPS:
            raise AnyRNNError(f"gaps: got {self.kind!r}, expected one of {', '.join(GAPS)}")
        if not all(0 < value < float("inf") for value in self.usual):
            raise AnyRNNError("gaps: expected a finite time above 0 for each feature")

    @classmethod
    def fit(cls, sequences: Sequence[Tensor], kind: Gaps, clock: int | None = None) -> "GapFeatures":
        """Measure the usual time since each feature was seen: its mean where it is not 0. Give it the training part."""
        if kind != "since":
            return cls(kind)
        every = torch.cat([time_since(x, clock) for x in sequences])  # (sum of T_i, I)
        later = (every > 0).sum(0)
        usual = torch.where(later > 0, every.sum(0) / later.clamp(min=1), 1.0)  # (I,)
        return cls(kind, tuple(usual.tolist()), clock)

    def columns(self, x: Tensor) -> Tensor:
        """The columns beside the values: (..., T, I) as read, with NaN where one is missing, to I or 2 I features."""
        seen = (~x.isnan()).double()
        if self.kind != "since":
            return seen
        since = time_since(x, self.clock) / x.new_tensor(self.usual, dtype=torch.float64)
        return torch.cat((seen, since), -1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"kind": self.kind, "usual": list(self.usual), "clock": self.clock}

    @classmethod
    def from_dict(cls, values: Any, features: int) -> "GapFeatures | None":
        """What `to_dict` described, checked for a number of features; None for None."""
        if values is None:
            return None
        try:
            kind, clock, usual = values["kind"], values["clock"], tuple(float(each) for each in values["usual"])
            sound = kind in {"mask", "since"} and len(usual) == (features if kind == "since" else 0)
            sound &= clock is None or (type(clock) is int and 0 <= clock < features)
        except (KeyError, OverflowError, TypeError, ValueError):
            sound = False
        if not sound:
            raise AnyRNNError(
                "scaler: expected 'gaps' to be null, or a kind, the usual time since each feature was seen and the "
                "number of the feature that is the clock; the file holds something else; train the model again"
            )
        return cls(kind, usual, clock)


def time_since(x: Tensor, clock: int | None = None) -> Tensor:
    """How long ago each feature of (..., T, I) was last seen before each step, float64, in steps or by a clock."""
    apart = torch.ones_like(x[..., 0]) if clock is None else x[..., clock].nan_to_num(nan=0.0)  # (..., T)
    apart = torch.cat((torch.zeros_like(apart[..., :1]), apart[..., 1:]), -1)
    now = apart.double().cumsum(-1).unsqueeze(-1)  # (..., T, 1)
    last = torch.where(x.isnan(), 0.0, now).cummax(-2).values  # the time of the last value at or before each step
    return now - torch.cat((torch.zeros_like(last[..., :1, :]), last[..., :-1, :]), -2)


def without_padding(x: Tensor) -> Tensor:
    """A sequence (T, I) without its last steps in which every feature is NaN; one step stays."""
    seen = (~x.isnan().all(1)).nonzero()
    return x[: int(seen[-1]) + 1] if len(seen) else x[:1]


def note_on_padding(cut: Sequence[int]) -> Iterator[str]:
    """That sequences were cut, if some were; by how many steps each."""
    some = sum(steps > 0 for steps in cut)
    if some:
        yield (
            f"{some} of {len(cut)} sequences end in steps without any value ({sum(cut)} in all): these are padding, "
            "and no part of the sequence"
        )
