"""What every engine reads: one layer in one direction, in canonical form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from anyrnn.protocol import Extra, ExtraForm, Signature


@dataclass(frozen=True)
class Request:
    """What is asked of a call beyond outputs and final states; part of what a plan is made for.

    Attributes:
        record: Local variables of the cell's step, by name, whose values at every step are wanted.
        states: The states after every step are wanted.
    """

    record: tuple[str, ...] = ()
    states: bool = False


NO_REQUEST = Request()


@dataclass(slots=True)
class Result:
    """What a call gives.

    Attributes:
        series: What there is for every step, (T, B, ...) each, zero at padded steps: the outputs of the cell, then what
            was asked to be recorded, then the states if they were asked for.
        states: The final state variables (B, ...).
    """

    series: Sequence[Tensor]
    states: tuple[Tensor, ...]


@dataclass(slots=True)
class Call:
    """A cell to be run along a sequence.

    Attributes:
        cell: The cell, one step.
        signature: What it takes and returns.
        x: The input (T, B, ...).
        states: The initial state variables, each (B, ...).
        lengths: The number of valid steps of each row, int64 (B,) on the CPU; None if all are T.
        reverse: Run from each row's last valid step to its first.
        from_zero: The initial state is zero.
        request: What is asked of it beyond outputs and states.
        extras: Further arguments of the step.
        checkpoint_every: Keep for the backward pass the states between pieces of so many steps, and run each piece
            again; None if everything is kept.
        memo: What an engine found out while it decided whether it can run the call, by the engine's name.
    """

    cell: nn.Module
    signature: Signature
    x: Tensor
    states: tuple[Tensor, ...]
    lengths: Tensor | None
    reverse: bool
    from_zero: bool = False
    request: Request = NO_REQUEST
    extras: tuple[Extra, ...] = ()
    checkpoint_every: int | None = None
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def form(self) -> CallForm:
        """What a plan for the call is made for, beside the cell and what surrounds the call."""
        extras = tuple([e.form for e in self.extras]) if self.extras else ()
        return CallForm(self.signature, tuple(self.x.shape[2:]), self.x.dtype, extras, self.request)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """x, the initial states and the further arguments."""
        extras = [e.tensor for e in self.extras] if self.extras else ()
        return (self.x, *self.states, *extras)

    def in_type_of_x(self, tensor: Tensor) -> Tensor:
        """A result, in the type of x if autocast on the CPU has lowered it: some engines compute in full precision."""
        low = torch.get_autocast_dtype("cpu") if self.x.is_cpu and torch.is_autocast_enabled("cpu") else None
        return tensor.to(self.x.dtype) if low is not None and tensor.dtype in (low, torch.float32) else tensor

    def without_steps(self, forms: Sequence[SeriesForm]) -> Result:
        """The result where no row has a step: zeros (T, B, ...), and copies of the initial states.

        They hang on everything that a step would read, with gradients of zero: a process that gets such a batch has to
        take its part in the backward pass as all others do.
        """
        T, B = self.x.shape[:2]
        series = [self.x.new_zeros(T, B, *shape, dtype=dtype) for shape, dtype in forms]
        states = tuple(s.clone() for s in self.states)
        if not torch.is_grad_enabled():
            return Result(series, states)
        read = [t for t in (*self.tensors, *self.cell.parameters()) if t.requires_grad]
        nothing = [t.reshape(-1)[:0].sum() for t in read]  # zero, whatever is in them
        for zero in nothing:
            series = [t + zero.to(t.dtype) if t.is_floating_point() else t for t in series]
            states = tuple(s + zero.to(s.dtype) for s in states)
        return Result(series, states)


class SeriesForm(NamedTuple):
    """The shape (without T and B) and type of what there is for every step."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class CallForm(NamedTuple):
    """What a plan is made for, beside the cell.

    Attributes:
        signature: What the cell takes and returns.
        x_shape: The shape of x, without T and B.
        dtype: The type of x.
        extras: The forms of further arguments.
        request: What is asked of the call beyond outputs and states.
    """

    signature: Signature
    x_shape: tuple[int, ...]
    dtype: torch.dtype
    extras: tuple[ExtraForm, ...] = ()
    request: Request = NO_REQUEST
