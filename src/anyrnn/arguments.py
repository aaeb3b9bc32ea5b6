"""The arguments of a call of a layer: as they are given, and in the inner forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from anyrnn.runtime.call import NO_REQUEST, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from anyrnn.checks import Context, Extras, Lengths, Record
    from anyrnn.protocol import Extra, State


#: A probability, or one for each state.
Rates: TypeAlias = "float | tuple[float, ...]"
#: A probability, or one for each parameter by name.
WeightRates: TypeAlias = "float | Mapping[str, float]"


class RegularisationOptions(TypedDict, total=False):
    """The regularisation that every layer takes: see `anyrnn.Recurrent`."""

    input_dropout: float
    recurrent_dropout: Rates
    zoneout: Rates
    weight_dropout: WeightRates


class LayerOptions(RegularisationOptions, total=False):
    """The keyword-only options that every layer takes: see `anyrnn.Recurrent`."""

    learn_initial_state: bool
    clip: float | None
    clip_gradient: float | None
    clip_gradient_norm: float | None


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
    reset: Tensor | None = None
    reset_to: State | None = None
    checkpoint_every: int | None = None
    probes: Sequence[Sequence[Tensor]] | None = None

    @property
    def asks_nothing(self) -> bool:
        """Whether a call is given x and the state alone; what is `forced` says nothing without feedback."""
        return (
            self.lengths is None
            and self.inputs is None
            and self.context is None
            and self.feedback is None
            and self.reset is None
            and self.reset_to is None
            and self.checkpoint_every is None
            and self.probes is None
            and self.return_states is False
            and self.record == ()
        )

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
        reset: Which rows start anew before which steps, (T, B) true or false; None if no row does.
        fresh: The states from which they start, of each layer and direction; None for zero.
        probes: What is added to the states after each step, (T, B, ...) each, of each layer and direction.
        seed: The seed of the masks of this call, while training with any.
        is_controlled: Something acts on the recurrence in this call.
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
    reset: Tensor | None = None
    fresh: list[tuple[Tensor, ...]] | None = None
    probes: Sequence[Sequence[Tensor]] | None = None
    seed: Tensor | None = None
    is_controlled: bool = False
    finals: list[tuple[Tensor, ...]] = field(default_factory=list)
