"""The arguments of a call of a layer: as they are given, and in the inner forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyrnn.runtime.call import NO_REQUEST, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from anyrnn.checks import Context, Extras, Lengths, Record
    from anyrnn.protocol import Extra


@dataclass(slots=True)  # made in every call: to freeze it would take microseconds
class Options:
    """What a call of a layer may be given beside x and the state; see `anyrnn.Recurrent`."""

    lengths: Lengths | None = None
    record: Record = ()
    return_states: bool = False
    inputs: Extras | None = None
    context: Context | None = None
    feedback: Callable[[Any], Tensor] | None = None
    forced: Tensor | int | None = None
    checkpoint_every: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that are given, told by their classes: what `torch.fx` traces is neither true nor false."""
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            k: v for k, v in options.items() if v is not None and v is not False and not (type(v) is tuple and not v)
        }


NO_OPTIONS = Options()


@dataclass(slots=True)
class Arguments:
    """The arguments of a call in the inner forms.

    Attributes:
        x: (T, B, ...).
        states: The initial states of each layer and direction.
        lengths: (B,) or None.
        batched: There was a batch.
        extras: The further arguments of the cells.
        from_zero: The initial states are zero.
        request: What is asked for beyond outputs and final states.
        checkpoint_every: Of how many steps the pieces are whose states are kept for the backward pass; None if all are.
        finals: The final states of each layer and direction, as far as they have run.
    """

    x: Tensor
    states: list[tuple[Tensor, ...]]
    lengths: Tensor | None
    batched: bool
    extras: tuple[Extra, ...] = ()
    from_zero: bool = False
    request: Request = NO_REQUEST
    checkpoint_every: int | None = None
    finals: list[tuple[Tensor, ...]] = field(default_factory=list)
