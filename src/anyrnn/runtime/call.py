"""What every engine reads: one layer in one direction, in canonical form."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from anyrnn.protocol import Signature


_NONE: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Request:
    """What is asked of a call beyond outputs and states; part of what a plan is made for.

    Attributes:
        record: Local variables of the cell's step, by name, whose values at every step are wanted.
    """

    record: tuple[str, ...] = ()


NO_REQUEST = Request()


@dataclass(slots=True)
class Result:
    """What a call gives.

    Attributes:
        output: The output (T, B, O), zero at padded steps.
        states: The final state variables (B, size).
        records: What was asked to be recorded, by name: (T, B, ...), zero at padded steps.
    """

    output: Tensor
    states: tuple[Tensor, ...]
    records: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """A cell to be run along a sequence.

    Attributes:
        cell: The cell, one step.
        signature: What it takes and returns.
        x: The input (T, B, I).
        states: The initial state variables, each (B, size).
        lengths: The number of valid steps of each row, int64 (B,) on the CPU; None if all are T.
        reverse: Run from each row's last valid step to its first.
        from_zero: The initial state is zero.
        request: What is asked of it beyond outputs and states.
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
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def without_steps(self, records: Mapping[str, Tensor] = _NONE) -> Result:
        """The result where no row has a step: zeros (T, B, O), and copies of the initial states.

        They hang on everything that a step would read, with gradients of zero: a process that gets such a batch has to
        take its part in the backward pass as all others do.
        """
        T, B, _ = self.x.shape
        output = self.x.new_zeros(T, B, self.signature.output_size)
        states = tuple(s.clone() for s in self.states)
        if not torch.is_grad_enabled():
            return Result(output, states, records)
        read = [t for t in (self.x, *self.states, *self.cell.parameters()) if t.requires_grad]
        nothing = [t.reshape(-1)[:0].sum() for t in read]  # zero, whatever is in them
        for zero in nothing:
            output = output + zero.to(output.dtype)
            states = tuple(s + zero.to(s.dtype) for s in states)
        return Result(output, states, records)
