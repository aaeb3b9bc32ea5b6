"""Streams: a layer one step at a time, in buffers of its own, at little more than the cost of the machine code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from anyrnn.adapters import Stacked, stacked_signature
from anyrnn.arguments import Options
from anyrnn.checks import check_sizes
from anyrnn.controls import resting
from anyrnn.engines.select import choose_for_steps
from anyrnn.errors import AnyRNNError
from anyrnn.probing import untold
from anyrnn.protocol import Shared, outside_inference_mode, placement, shape_of
from anyrnn.runtime.call import Call
from anyrnn.twin import in_evaluation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from anyrnn.arguments import Arguments
    from anyrnn.checks import Context, Extras
    from anyrnn.controls import Control
    from anyrnn.protocol import Extra, Signature, Size, State
    from anyrnn.runtime.anatomy import Anatomy
    from anyrnn.runtime.call import CallForm
    from anyrnn.stacks import Wiring

#: Rows of a batch: their numbers, or true or false for each.
Rows: TypeAlias = "int | Sequence[int] | Sequence[bool] | Tensor"


@dataclass(frozen=True)
class Source:
    """What a stream is made of.

    Attributes:
        name: The name for messages.
        cell: Gives the cell of a step with its present weights, its signature, and one whose structure of outputs is
            shown.
        initial: Gives the initial state variables (B, ...), from a state in the outer form, or None.
        wrap: Gives the outer form of state variables.
        x: The buffer of the input (B, ...).
        dtype: The type of states and outputs.
        extras: Further arguments of a step; those for each step are buffers, (1, B, ...).
        inputs: These buffers in the structure in which they were given.
    """

    name: str
    cell: Callable[[], tuple[nn.Module, Signature, Signature]]
    initial: Callable[[State | None], Sequence[Tensor]]
    wrap: Callable[[Sequence[Tensor]], State]
    x: Tensor
    dtype: torch.dtype
    extras: tuple[Extra, ...] = ()
    inputs: Any = None


class Stream:
    """A layer one step at a time: write `x`, call `step()`, read `y`.

    Made by `layer.stream()`. It computes what the layer computes in evaluation mode, without autograd: as many steps
    give what one call with as many steps gives. A step allocates nothing and holds no lock while it computes, so that
    streams of several threads run at once, each in buffers of its own; one stream belongs to one thread at a time.

    Weights are read, and packed for the machine code, when the stream is made. One that changes later is not seen
    before `refresh()`.

    Attributes:
        x: The input of the next step (B, ...), to be written: ``stream.x[:] = ...``; zero at first. What
            ``stream.x.numpy()`` gives is the same memory. It stays where it is, as do all buffers.
        y: The output of the last step (B, ...), in the structure in which the cell returns it. It is the stream's own:
            the next step overwrites it.
        inputs: What else there is for each step, (B, ...), to be written, in the structure that was given; or None.
        step: Runs a step: ``stream.step()``, which returns nothing.
        engine: What runs it: "cpu", or "reference" where something in the step cannot be compiled; then `reason` says
            what, and a step is that of the cell itself, without autograd.
        reason: Why it is this engine.
        refused: Why another engine cannot, by name.
    """

    step: Callable[[], object]

    def __init__(self, source: Source, state: State | None = None) -> None:
        self._source = source
        with outside_inference_mode(), torch.no_grad():
            self._given = None if state is None else [s.clone() for s in source.initial(state)]
            self._initial = self._initial_states()
        self.x, self.inputs = source.x, source.inputs
        cell, self._signature, shown = source.cell()
        self.cell_name = type(cell).__name__
        self._choose(cell)
        self.y = shown.wrap_outputs(self._steps.outputs)

    def reset(self, rows: Rows | None = None) -> None:
        """Go back to the initial state: the one given, or the layer's own, which is zero.

        Args:
            rows: Which rows of the batch: a number, several, or true or false for each (B,); all if None.

        Raises:
            AnyRNNError: if these are no rows of the batch.
        """
        if rows is None:
            for state, initial in zip(self._steps.states, self._initial, strict=True):
                state.copy_(initial)
            return
        index = self._index(rows)
        for state, initial in zip(self._steps.states, self._initial, strict=True):
            state[index] = initial[index].to(state.dtype)

    @property
    def state(self) -> State:
        """The state, a copy in the form in which the layer returns it: (L, B, size), or a tuple. It can be set."""
        return self._source.wrap([s.to(self._source.dtype, copy=True) for s in self._steps.states])

    @state.setter
    def state(self, state: State) -> None:
        with torch.no_grad():
            for own, new in zip(self._steps.states, self._source.initial(state), strict=True):
                own.copy_(new)

    def refresh(self) -> None:
        """Read the weights of the layer anew, its initial state, and contexts. The state stays.

        Raises:
            AnyRNNError: if the cell has another form of state or output than before.
        """
        cell, signature, _ = self._source.cell()
        if signature != self._signature:
            msg = (
                f"{self._source.name}: its states or outputs have another form than when this was made: make a new one"
            )
            raise AnyRNNError(msg)
        with outside_inference_mode(), torch.no_grad():
            self._initial = self._initial_states()
        self._choose(cell)

    def anatomy(self) -> Anatomy | None:
        """Show what was made of the step, as `anyrnn.explain` does; None if it runs as it is."""
        return self._steps.anatomy()

    def recorded(self) -> tuple[nn.Module, CallForm]:
        """The cell whose step this runs, and the form of its calls: what records the step."""
        cell, signature, _ = self._source.cell()
        x = self.x.unsqueeze(0)
        return cell, Call(cell, signature, x, tuple(self._initial), None, False, extras=self._source.extras).form

    def __repr__(self) -> str:
        B = len(self.x)
        return f"Stream({self._source.name}, batch={B}, engine={self.engine!r})"

    def __reduce__(self) -> Any:
        """Refuse to be copied or written to a file: it holds addresses."""
        msg = f"{self._source.name}: got a stream to be copied or pickled, which is bound to memory; expected its layer"
        raise AnyRNNError(msg)

    def _initial_states(self) -> list[Tensor]:
        found = self._source.initial(None) if self._given is None else self._given
        return [s.detach().clone() for s in found]

    def _choose(self, cell: nn.Module) -> None:
        """Choose what runs the steps of a cell, and prepare it, on the buffers that there are."""
        known = getattr(self, "_steps", None)
        states = self._initial if known is None else [s.to(self._source.dtype) for s in known.states]
        call = Call(
            in_evaluation(cell), self._signature, self.x.unsqueeze(0), tuple(states), None, False,
            extras=self._source.extras,
        )  # fmt: skip
        choice = choose_for_steps(call)
        self._steps = choice.engine.steps(call, known)
        self.engine, self.reason, self.refused = choice.engine.name, choice.reason, choice.refused
        self.step = self._steps.launch

    def _index(self, rows: Rows) -> Tensor:
        B = len(self.x)
        index = torch.as_tensor(rows, device=self.x.device)
        if index.dtype == torch.bool and index.shape == (B,):
            return index
        if index.dtype == torch.bool or index.is_floating_point() or index.dim() > 1 or index.is_complex():
            valid = False
        else:
            valid = bool(((index >= 0) & (index < B)).all())
        if not valid and index.numel():
            msg = (
                f"{self._source.name}: got rows={rows!r}, expected numbers of rows from 0 to {B - 1}, or true or false "
                f"for each of {B}"
            )
            raise AnyRNNError(msg)
        return index.long().reshape(-1)


class Streamed(Protocol):
    """What is read of a layer here."""

    input_size: Size | None
    num_layers: int
    bidirectional: bool
    batch_first: bool
    _wiring: Wiring

    def _canonical(self, x: Tensor, state: State | None, options: Options) -> Arguments: ...

    def _cell(self, layer: int, reverse: bool) -> nn.Module: ...

    def _signature(self, layer: int, reverse: bool = False) -> Signature: ...

    def _stack(self, finals: list[tuple[Tensor, ...]], batched: bool, initial: State | None) -> State: ...

    def _initial(
        self, state: State | None, B: int, batched: bool, x: Tensor, dtype: torch.dtype
    ) -> list[tuple[Tensor, ...]]: ...

    def _standing(self, signature: Signature, training: bool | None = None) -> Control: ...

    def _settle(self, state: State | None, extras: Sequence[Extra] = (), rows: int | None = None) -> None: ...

    def _check_single(self, layer: int) -> None: ...


def check_streamed(name: str, batch: int, bidirectional: bool) -> None:
    """Check that a layer can be streamed."""
    if torch.compiler.is_compiling():
        msg = f"{name}: got stream() below torch.compile or torch.export, expected it outside"
        raise AnyRNNError(msg)
    check_sizes(name, batch=batch)
    if bidirectional:
        msg = (
            f"{name}: got stream() for a bidirectional layer, whose output at a step depends on later x; expected one "
            f"direction"
        )
        raise AnyRNNError(msg)


def stream_of(
    layer: Streamed,
    batch: int = 1,
    state: State | None = None,
    inputs: Extras | None = None,
    context: Context | None = None,
) -> Stream:
    """Make a stream of a layer; see `Layer.stream`."""
    name, time = type(layer).__name__, int(layer.batch_first)
    check_streamed(name, batch, layer.bidirectional)
    if layer.input_size is None:
        msg = f"{name}: got stream() before the size of its input is known; expected input_size=, or a call before"
        raise AnyRNNError(msg)
    with outside_inference_mode(), torch.no_grad():
        like = placement(layer)  # type: ignore[arg-type]
        x = like.new_zeros(batch, *shape_of(layer.input_size))
        buffers = _mapped(_buffer, inputs)
        options = Options(inputs=_mapped(lambda t: t.unsqueeze(time), buffers), context=context)
        given = layer._canonical(x.unsqueeze(time), None, options)
    extras = tuple(e.alike(e.tensor.detach()) for e in given.extras)
    source = Source(
        name,
        lambda: _as_one_cell(layer, extras, batch),
        lambda state: _variables(layer._initial(state, batch, True, x.unsqueeze(0), x.dtype)),
        lambda variables: layer._stack(grouped(layer, variables), True, None),
        x,
        x.dtype,
        extras,
        buffers,
    )
    return Stream(source, state)


def _as_one_cell(layer: Streamed, extras: Sequence[Extra], batch: int) -> tuple[nn.Module, Signature, Signature]:
    """The cells of a layer as one cell, between which nothing is dropped; its signature, and that of the last cell."""
    layer._settle(None, extras, batch)
    cells = [layer._cell(k, False) for k in range(layer.num_layers)]
    signatures = [layer._signature(k) for k in range(layer.num_layers)]
    for cell, signature in zip(cells, signatures, strict=True):
        if not signature.settled:
            raise AnyRNNError(untold(cell, signature))
    parts, inner = resting(cells, signatures, [layer._standing(s, training=False) for s in signatures])
    if len(parts) == 1:
        return parts[0], inner[0], signatures[0]
    for k in range(len(parts) - 1):
        layer._check_single(k)
    return Stacked(parts, inner, layer._wiring, dropout=0.0), stacked_signature(inner), signatures[-1]


def _variables(states: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    return [s for each in states for s in each]


def grouped(layer: Streamed, variables: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """State variables by layer."""
    groups, first = [], 0
    for k in range(layer.num_layers):
        count = len(layer._signature(k).state_sizes)
        groups.append(tuple(variables[first : first + count]))
        first += count
    return groups


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors of a structure; what is no tensor is left for the checks of a call."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list) and not isinstance(value, Shared):
        return tuple(_mapped(function, v) for v in value)
    if isinstance(value, dict):
        return {k: _mapped(function, v) for k, v in value.items()}
    return value


def _buffer(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
