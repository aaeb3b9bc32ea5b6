"""Layers: stacks and directions of cells, in the shapes of torch.nn.

Inside, x is (T, B, ...) with lengths or without, and every layer and direction has its own tuple of states. The outer
forms (batch first, unbatched, packed, states stacked over layers) are taken off at the entrance and put back at the
exit of `Layer._apply_layer`, once.
"""

from __future__ import annotations

import operator
import sys
import warnings
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from anyrnn.arguments import NO_OPTIONS, Arguments, Options
from anyrnn.checks import (
    check_flags,
    check_input,
    check_lengths,
    check_limits,
    check_probability,
    check_sizes,
    check_state,
    check_x,
    checked_extras,
    checked_interval,
    checked_names,
    checked_reset,
)
from anyrnn.controls import NO_CONTROL, Control, controlled, resetting
from anyrnn.engines import straight
from anyrnn.errors import AnyRNNError
from anyrnn.feedback import run_fed
from anyrnn.masks import seed_for
from anyrnn.probing import names_of, untold
from anyrnn.protocol import Extra, ExtraForm, Signature, Size, State, placement, shape_of, size_of
from anyrnn.regularisation import OPTIONS, Draws, Regularised, regularised, zoneout_of
from anyrnn.runtime.call import NO_REQUEST, Call, Request
from anyrnn.stacks import PLAIN, Wiring, parts_of
from anyrnn.stream import Stream, stream_of
from anyrnn.traced import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anyrnn.arguments import RegularisationOptions
    from anyrnn.checks import Context, Extras
    from anyrnn.engines.select import Choice


class Layer(Regularised):
    """The base of all layers: a stack of cells in one or two directions. Subclasses say where the cells live."""

    _wiring: Wiring = PLAIN
    _is_alike = True  # the states of all layers are of one form, so that they can be stacked

    def __init__(
        self,
        input_size: Size | None,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        *,
        learn_initial_state: bool = False,
        clip: float | None = None,
        clip_gradient: float | None = None,
        clip_gradient_norm: float | None = None,
        **regularisation: Unpack[RegularisationOptions],
    ) -> None:
        super().__init__()
        self._regularise(regularisation)
        name = type(self).__name__
        check_sizes(name, num_layers=num_layers)
        check_probability(name, dropout=dropout)
        check_flags(name, batch_first=batch_first, bidirectional=bidirectional, learn_initial_state=learn_initial_state)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"{name}: dropout={dropout} acts between layers and does nothing with num_layers=1",
                stacklevel=3,
            )
        self.input_size = input_size
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.learn_initial_state = learn_initial_state
        check_limits(name, clip=clip, clip_gradient=clip_gradient, clip_gradient_norm=clip_gradient_norm)
        self.clip = clip
        self.clip_gradient = clip_gradient
        self.clip_gradient_norm = clip_gradient_norm

    @property
    def num_directions(self) -> int:
        """1, or 2 for a bidirectional layer."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> Size:
        """The number of features of the output, or its shape behind T and B: of all directions side by side, if so."""
        self._settle(None)
        return self._width(self.num_layers - 1)

    def _width(self, layer: int) -> Size:
        """The size of the output of a layer."""
        directions = (False, True)[: self.num_directions]
        sizes = [self._signature(layer, reverse).output_size for reverse in directions]
        return self._wiring.merged_size(type(self).__name__, layer, sizes)

    def _input_width(self, layer: int) -> Size:
        """The size of what a layer reads."""
        assert self.input_size is not None
        return self._wiring.joined_size([self.input_size, *map(self._width, range(layer))])

    @abstractmethod
    def cell(self, layer: int = 0, reverse: bool = False) -> nn.Module:
        """Return the cell of a layer (0 is the first) and direction, with its present weights."""

    def _check_place(self, layer: int, reverse: bool) -> None:
        if not 0 <= layer < self.num_layers or (reverse and not self.bidirectional):
            msg = (
                f"{type(self).__name__}: got layer={layer} and reverse={reverse}, "
                f"expected 0 to {self.num_layers - 1}, and True only if bidirectional"
            )
            raise AnyRNNError(msg)

    def _cell(self, layer: int, reverse: bool) -> nn.Module:
        """As `cell`, for this package's own calls: it may be a cell that an earlier one has bound to its weights."""
        return self.cell(layer, reverse)

    @abstractmethod
    def _signature(self, layer: int, reverse: bool = False) -> Signature:
        """The signature of the cell of a layer and direction."""

    def _settle(self, state: State | None, extras: Sequence[Extra] = (), rows: int | None = None) -> None:
        """Update the signatures, if the cells have changed, for a call with these arguments."""

    def _apply_layer(self, x: Tensor | PackedSequence, state: State | None, options: Options = NO_OPTIONS) -> Any:
        if not isinstance(x, Tensor | PackedSequence) and is_proxy(x):
            return node_of(self, x, state, **options.given())
        if (options is NO_OPTIONS or options.asks_nothing) and not torch.compiler.is_compiling():
            done = straight.run(self, x, state)
            if done is not None:
                return done
        packed = x if isinstance(x, PackedSequence) else None
        given = self._canonical(x, state, options)
        series = (
            self._run(given) if options.feedback is None else run_fed(self, given, options.feedback, options.forced)
        )
        signature = self._signature(self.num_layers - 1)
        if given.request is NO_REQUEST and signature.names is None:
            return self._outer(series[0][0], packed, given.batched), self._stack(given.finals, given.batched, state)
        count, names = len(signature.output_sizes), given.request.record
        outputs = [self._outer(t, packed, given.batched) for t in series[0][:count]]
        results = [signature.wrap_outputs(outputs), self._stack(given.finals, given.batched, state)]
        if names:
            results.append(self._records(series, names, given.batched))
        if given.request.states:
            results.append(self._stacked_series(series, given.batched, state))
        return tuple(results)

    def _run(self, given: Arguments) -> list[Sequence[Tensor]]:
        """Run all layers and directions, and note their final states.

        Returns:
            What there is for every step, of each layer and direction; of the first one, the layer's own outputs first.
        """
        wiring, inputs = self._wiring, [given.x]
        found: list[Sequence[Tensor]] = []
        if self.num_layers == 1 and not self.bidirectional:  # nothing to join: the shortest way
            call = self._call(0, False, given.x, given)
            result = choose(call).engine.run(call)
            given.finals.append(result.states)
            return [result.series]
        for layer in range(self.num_layers):
            x, count = wiring.joined(inputs), len(self._signature(layer).output_sizes)
            results = []
            for choice, call in self._calls(layer, x, given):
                result = choice.engine.run(call)
                results.append(result.series)
                given.finals.append(result.states)
            outputs = [wiring.merged(each) for each in zip(*(r[:count] for r in results), strict=True)]
            outputs[0] = wiring.bridged(layer, x, outputs[0])
            found += results
            if layer < self.num_layers - 1:
                self._check_single(layer)
                if self.dropout:
                    outputs[0] = F.dropout(outputs[0], self.dropout, self.training)
            inputs.append(outputs[0])
        first = len(self._signature(0).output_sizes)
        return [[*outputs, *found[0][first:]], *found[1:]]

    def _check_single(self, layer: int) -> None:
        names = self._signature(layer).names
        if names is not None:
            msg = (
                f"{type(self).__name__}: layer {layer} of {self.num_layers} has the outputs {names}, and the next one "
                f"reads one tensor; expected several outputs of the last layer only"
            )
            raise AnyRNNError(msg)

    def _request(self, options: Options) -> Request:
        """What is asked of a call beyond outputs and final states."""
        record = options.record
        if not record and not options.return_states:
            return NO_REQUEST
        check_flags(type(self).__name__, return_states=options.return_states)
        return Request(checked_names(type(self).__name__, record), options.return_states)

    def _request_of(self, request: Request, layer: int, reverse: bool) -> Request:
        """What is asked of one of several cells: of what is to be recorded, that which it has, if others differ."""
        if not request.record or not self._is_mixed():
            return request
        own = self._names_of(layer, reverse)
        return replace(request, record=tuple([name for name in request.record if name in own]))

    def _is_mixed(self) -> bool:
        """Whether the layers have cells of several kinds."""
        return False

    @property
    def names(self) -> tuple[str, ...]:
        """What ``record=`` may ask for: the local variables of the cells' steps that have a row for each of the batch.

        Where the layers have cells of several kinds, those of all. Found by running a step on made-up numbers.
        """
        self._settle(None)
        places = [(k, d == 1) for k in range(self.num_layers) for d in range(self.num_directions)]
        found = [name for place in (places if self._is_mixed() else places[:1]) for name in self._names_of(*place)]
        return tuple(dict.fromkeys(found))

    def _names_of(self, layer: int, reverse: bool) -> tuple[str, ...]:
        signature = self._signature(layer, reverse)
        size = size_of([operator.index(n) for n in shape_of(self._input_width(layer))])
        return names_of(self._cell(layer, reverse), signature, size, self._forms_of(layer))

    def _forms_of(self, layer: int) -> tuple[ExtraForm, ...]:
        """The forms of further arguments of a cell, as far as they are known."""
        return ()

    def _records(self, series: Sequence[Sequence[Tensor]], names: Sequence[str], batched: bool) -> dict[str, Any]:
        """What was recorded, by name: of one cell (T, B, ...); of several (L*D, T, B, ...), or a tuple if they differ.

        In such a tuple there is None for a cell that has no such variable.
        """
        found: dict[str, list[Tensor | None]] = {name: [] for name in names}
        for k, each in enumerate(series):
            layer, reverse = divmod(k, self.num_directions)
            count = len(self._signature(self.num_layers - 1 if k == 0 else layer).output_sizes)
            own = self._request_of(Request(tuple(names)), layer, reverse == 1).record
            values = dict(zip(own, each[count : count + len(own)], strict=True))
            for name in names:
                value = values.get(name)
                found[name].append(None if value is None else self._outer(value, None, batched))  # type: ignore[arg-type]
        for name, found_there in found.items():
            if all(value is None for value in found_there):
                msg = f"{type(self).__name__}: got record={name!r}, expected one of {', '.join(self.names)}"
                raise AnyRNNError(msg)
        return {name: _side_by_side(values) for name, values in found.items()}

    def _calls(self, layer: int, x: Tensor, given: Arguments) -> Iterator[tuple[Choice, Call]]:
        """The calls of a layer on its input x, one for each direction, each with its engine."""
        for reverse in (False, True)[: self.num_directions]:
            call = self._call(layer, reverse, x, given)
            yield choose(call), call

    def _call(self, layer: int, reverse: bool, x: Tensor, given: Arguments) -> Call:
        """The call of a layer in a direction on its input x."""
        state = given.states[layer * self.num_directions + reverse]
        cell, signature = self._cell(layer, reverse), self._signature(layer, reverse)
        if not signature.settled:
            raise AnyRNNError(untold(cell, signature))
        request = given.request if self.num_layers == 1 else self._request_of(given.request, layer, reverse)
        call = Call(
            cell, signature, x, state, given.lengths, reverse, given.from_zero, request, given.extras,
            given.checkpoint_every,
        )  # fmt: skip
        return self._controlled(call, layer, given) if given.is_controlled else call

    def _has_controls(self) -> bool:
        """Whether something acts on the recurrence in every call."""
        limited = self.clip is not None or self.clip_gradient is not None or self.clip_gradient_norm is not None
        return limited or self._is_regularised()

    def _standing(self, signature: Signature, training: bool | None = None) -> Control:
        """What acts on a cell in every call, and needs no tensors; in the present mode, if not in a given one."""
        training = self.training if training is None else training
        mixed = () if training or not self.zoneout else zoneout_of(self, len(signature.state_sizes))
        return Control(
            mixed=mixed, clip=self.clip, clip_gradient=self.clip_gradient, clip_gradient_norm=self.clip_gradient_norm
        )

    def _controlled(self, call: Call, layer: int, given: Arguments) -> Call:
        """The call with what acts on the recurrence."""
        control, place = self._standing(call.signature), layer * self.num_directions + call.reverse
        tensors: list[Extra] = []
        if given.reset is not None:
            fresh = None if given.fresh is None else given.fresh[place]
            control = control._replace(resets=True, fresh=fresh is not None)
            tensors = resetting(call, given.reset, fresh)
        if given.seed is not None:
            control, tensors = regularised(self, call, Draws(given.seed, place), control, tensors)
        if given.probes is not None:
            control = control._replace(probes=True)
            tensors += [Extra(k, "input", probe) for k, probe in enumerate(given.probes[place], len(tensors))]
        return call if control == NO_CONTROL else controlled(call, control, tensors, self)

    def _canonical(self, x: Tensor | PackedSequence, state: State | None, options: Options) -> Arguments:
        """Convert the arguments of a call to the inner forms."""
        name, lengths = type(self).__name__, options.lengths
        if isinstance(x, PackedSequence):
            if lengths is not None:
                msg = f"{name}: got lengths beside a PackedSequence, which has its own; expected only one of them"
                raise AnyRNNError(msg)
            x, lengths = pad_packed_sequence(x)  # (T, B, I)
            batched, batch_first = True, False
        else:
            dims = len(self.input_size) if isinstance(self.input_size, tuple) else 1
            if not isinstance(x, Tensor) or not dims < x.dim() < dims + 3:
                tail = ", ".join(map(str, self.input_size)) if isinstance(self.input_size, tuple) else "I"
                check_x(
                    name, x, {dims + 2: f"({'B, T' if self.batch_first else 'T, B'}, {tail})", dims + 1: f"(T, {tail})"}
                )
            batched, batch_first = x.dim() == dims + 2, self.batch_first
        like = placement(self, x)
        if self.input_size is not None:
            check_input(name, x, self.input_size, like)
        if not batched:
            x = x.unsqueeze(1)
        elif batch_first:
            x = x.transpose(0, 1)
        T, B = x.shape[:2]
        is_more = options.inputs is not None or options.context is not None
        extras = self._extras(options, batched, batch_first, (T, B), x) if is_more else ()
        if self.input_size is None:
            self._set_input_size(x.shape[-1], state, extras, B)
            check_input(name, x, self.input_size, like)
        self._settle(state, extras, B)
        if not batched and isinstance(lengths, int | Tensor):
            lengths = lengths.reshape(-1) if isinstance(lengths, Tensor) else [lengths]
        given = Arguments(
            x,
            self._initial(state, B, batched, x, like.dtype),
            check_lengths(name, lengths, T, B),
            batched,
            extras,
            state is None and not self.learn_initial_state,
            NO_REQUEST if options is NO_OPTIONS else self._request(options),
            checked_interval(name, options.checkpoint_every),
        )
        if options.reset is not None or options.reset_to is not None:
            self._set_reset(given, options, batch_first, like)
        given.probes = options.probes
        is_controlled = self._has_controls()
        given.is_controlled = is_controlled or given.reset is not None or given.probes is not None
        if is_controlled and self.training and self._is_regularised():
            given.seed = seed_for(x)
        return given

    def _set_reset(self, given: Arguments, options: Options, batch_first: bool, like: Tensor) -> None:
        """Convert which rows start anew, and from what, to the inner forms."""
        name, (T, B) = type(self).__name__, given.x.shape[:2]
        if options.reset is None or options.feedback is not None:
            got = "reset_to without reset" if options.reset is None else "reset with feedback"
            msg = f"{name}: got {got}, expected {'both' if options.reset is None else 'one of them'}"
            raise AnyRNNError(msg)
        if not given.batched:
            given.reset = checked_reset(name, options.reset, (T,), given.x, "T").unsqueeze(1)
        elif batch_first:
            given.reset = checked_reset(name, options.reset, (B, T), given.x, "B, T").transpose(0, 1)
        else:
            given.reset = checked_reset(name, options.reset, (T, B), given.x)
        if options.reset_to is not None:
            given.fresh = self._initial(options.reset_to, B, given.batched, given.x, like.dtype)
        elif not given.from_zero:
            given.fresh = given.states

    def _extras(
        self, options: Options, batched: bool, batch_first: bool, lead: tuple[int, int], x: Tensor
    ) -> tuple[Extra, ...]:
        """The further arguments of the cells in the inner forms."""

        def inner(value: Any, kind: str) -> Any:
            if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
                return tuple(inner(v, kind) for v in value)
            if isinstance(value, dict):
                return {k: inner(v, kind) for k, v in value.items()}
            if not isinstance(value, Tensor):
                return value
            if not batched and value.dim() >= (kind == "input"):
                return value.unsqueeze(1 if kind == "input" else 0)
            return value.transpose(0, 1) if kind == "input" and batch_first and batched and value.dim() > 1 else value

        inputs, context = inner(options.inputs, "input"), inner(options.context, "context")
        return checked_extras(type(self).__name__, inputs, context, lead, x)

    def _initial(
        self, state: State | None, B: int, batched: bool, x: Tensor, dtype: torch.dtype
    ) -> list[tuple[Tensor, ...]]:
        """The initial states of each layer and direction."""
        if self._is_alike:
            return self._initial_of(range(self.num_layers), state, B, batched, x, dtype)
        parts = [None] * self.num_layers if state is None else parts_of(type(self).__name__, state, self.num_layers)
        groups = (self._initial_of([k], part, B, batched, x, dtype) for k, part in enumerate(parts))
        return [states for group in groups for states in group]

    def _initial_of(
        self, layers: Sequence[int], state: State | None, B: int, batched: bool, x: Tensor, dtype: torch.dtype
    ) -> list[tuple[Tensor, ...]]:
        """The initial states of each direction of layers whose states are of one form, from their stack."""
        signature = self._signature(layers[0])
        count = len(layers) * self.num_directions
        if state is None:
            if self.learn_initial_state:
                return [s for layer in layers for s in self._learned(layer, B, dtype)]
            sizes = [(B, s) if isinstance(s, int) else (B, *s) for s in signature.state_sizes]
            return [tuple([x.new_zeros(size, dtype=dtype) for size in sizes])] * count
        lead = (count, B) if batched else (count,)
        stacked = check_state(type(self).__name__, state, signature, lead, x.device, dtype)
        if not batched:
            stacked = tuple(s.unsqueeze(1) for s in stacked)
        return list(zip(*(s.unbind(0) for s in stacked), strict=True))

    def _learn_initial_states(self) -> None:
        """Make the parameters of the initial states, where they are learned: zero at first."""
        like = placement(self)
        for layer in range(self.num_layers):
            for reverse in (False, True)[: self.num_directions]:
                signature = self._signature(layer, reverse)
                for name, size in zip(_initial_names(signature, layer, reverse), signature.state_sizes, strict=True):
                    self.register_parameter(name, nn.Parameter(like.new_zeros(shape_of(size))))

    def _learned(self, layer: int, B: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
        """The learned initial states of each direction of a layer, for all rows."""
        for reverse in (False, True)[: self.num_directions]:
            names = _initial_names(self._signature(layer, reverse), layer, reverse)
            learned = [getattr(self, name) for name in names]
            yield tuple([s.to(dtype).expand(B, *s.shape) for s in learned])

    def initial_state(self, batch_size: int | None = None) -> State:
        """The state from which a call without one starts: zero, or what was learned.

        Args:
            batch_size: B; without it, the state of an unbatched call.

        Returns:
            The state in the form of those that a call returns, with gradients if it is learned.

        Raises:
            AnyRNNError: if the sizes of the state are not known yet.

        Example:
            >>> import torch, anyrnn
            >>> layer = anyrnn.LSTM(3, 5, learn_initial_state=True)
            >>> h, c = layer.initial_state(batch_size=4)
            >>> h.shape, h.requires_grad
            (torch.Size([1, 4, 5]), True)
        """
        if batch_size is not None:
            check_sizes(type(self).__name__, batch_size=batch_size)
        self._settle(None)
        like, B = placement(self), 1 if batch_size is None else batch_size
        states = self._initial(None, B, True, like, like.dtype)
        return self._stack(states, batch_size is not None, None)

    def _stack(self, finals: list[tuple[Tensor, ...]], batched: bool, initial: State | None) -> State:
        """The final states in the structure of the initial ones: stacked, or if they differ, a tuple by layer."""
        if self._is_alike:
            return self._stack_of(0, finals, batched, initial)
        D, count = self.num_directions, self.num_layers
        parts: Any = [None] * count if initial is None else initial
        stacks: Any = (self._stack_of(k, finals[k * D : (k + 1) * D], batched, parts[k]) for k in range(count))
        return tuple(stacks)

    def _stack_of(self, layer: int, finals: list[tuple[Tensor, ...]], batched: bool, initial: State | None) -> State:
        """Final states of one form, that of a layer, as one tensor for each state variable."""
        if len(finals) == 1:
            stacked = tuple(final.unsqueeze(0) for final in finals[0])
        else:
            stacked = tuple(torch.stack(variable) for variable in zip(*finals, strict=True))  # (L*D, B, size) each
        return self._signature(layer).wrap(stacked if batched else tuple(s.squeeze(1) for s in stacked), initial)

    def _stacked_series(self, series: Sequence[Sequence[Tensor]], batched: bool, initial: State | None) -> State:
        """The states of all steps (L*D, T, B, ...), in the structure of the initial ones."""
        states = []
        for k, each in enumerate(series):
            count = len(self._signature(k // self.num_directions).state_sizes)
            states.append(tuple(self._outer(t, None, batched) for t in each[-count:]))
        return self._stack(states, True, initial)  # type: ignore[arg-type]

    def _outer(self, output: Tensor, packed: PackedSequence | None, batched: bool) -> Tensor | PackedSequence:
        """Convert an output (T, B, O) to the outer form of the input."""
        if packed is not None:
            # As the input was packed, so that its indices hold for the output.
            if packed.sorted_indices is not None:
                output = output.index_select(1, packed.sorted_indices)
            lengths = (packed.batch_sizes.unsqueeze(1) > torch.arange(output.shape[1], device="cpu")).sum(0)
            return packed._replace(data=pack_padded_sequence(output, lengths).data)
        if not batched:
            return output.squeeze(1)
        return output.transpose(0, 1) if self.batch_first else output

    def _set_input_size(self, input_size: Size, state: State | None, extras: Sequence[Extra], rows: int) -> None:
        self.input_size = input_size

    def generate(
        self,
        state: State | None = None,
        steps: int = 1,
        *,
        first: Tensor,
        feed: Callable[[Any], Tensor],
        context: Context | None = None,
        inputs: Extras | None = None,
    ) -> tuple[Any, State]:
        """Run on the layer's own outputs: a decoder, a forecast that goes on, a model of characters.

        Args:
            state: The initial state, such as a call on what is known has returned; zero if None.
            steps: T, the number of steps.
            first: The input of the first step, (B, ...), or (...) unbatched.
            feed: What makes the next input (B, ...) of an output (B, ...); a function or a module. What it computes may
                be anything that a cell may, and gradients pass through it.
            context: As for a call.
            inputs: As for a call: T steps.

        Returns:
            The outputs (T, B, ...) of all steps, batch first if the layer is, and the state after the last one.

        Raises:
            AnyRNNError: for a bidirectional layer, and as a call.

        Example:
            >>> import torch, anyrnn
            >>> layer, head = anyrnn.LSTM(3, 16), torch.nn.Linear(16, 3)
            >>> _, state = layer(torch.randn(20, 2, 3))
            >>> output, state = layer.generate(state, steps=5, first=torch.zeros(2, 3), feed=head)
            >>> output.shape
            torch.Size([5, 2, 16])
        """
        check_sizes(type(self).__name__, steps=steps)
        if not isinstance(first, Tensor) or first.dim() < 1:
            msg = f"{type(self).__name__}: got first={first!r}, expected the input of the first step, (B, ...)"
            raise AnyRNNError(msg)
        dims = len(shape_of(self.input_size)) if self.input_size is not None else 1
        time = 1 if self.batch_first and first.dim() > dims else 0
        x = torch.cat([first.unsqueeze(time), first.new_zeros(first.shape).unsqueeze(time).expand(
            *first.shape[:time], steps - 1, *first.shape[time:])], time)  # fmt: skip
        options = Options(inputs=inputs, context=context, feedback=feed, forced=1)
        output, state = self._apply_layer(x, state, options)
        return output, state

    def stream(
        self,
        batch: int = 1,
        *,
        state: State | None = None,
        inputs: Extras | None = None,
        context: Context | None = None,
    ) -> Stream:
        """Make a stream: the layer one step at a time, with little cost beside its arithmetic.

        It computes as in evaluation mode, and without autograd. Weights are read now; later changes are seen after
        ``stream.refresh()``.

        Args:
            batch: B, the number of rows.
            state: The initial state, in the form of a call's; the layer's own if None, which is zero.
            inputs: What else the cells get at each step, (B, ...), in the structure of a call's: what the first step
                gets. The stream has buffers of this structure, `stream.inputs`.
            context: What they get that is the same at every step, as for a call.

        Returns:
            A `Stream`: write ``stream.x`` (B, ...), call ``stream.step()``, read ``stream.y`` (B, ...).

        Raises:
            AnyRNNError: for a bidirectional layer, whose output at a step depends on later x; before the size of the
                input is known; and for arguments that do not fit.

        Example:
            >>> import torch, anyrnn
            >>> layer, x = anyrnn.LSTM(3, 5), torch.randn(10, 1, 3)
            >>> stream = layer.stream()
            >>> outputs = []
            >>> for row in x:
            ...     stream.x[:] = row
            ...     stream.step()
            ...     outputs.append(stream.y.clone())
            >>> torch.allclose(torch.stack(outputs), layer(x)[0], atol=1e-6)
            True
        """
        return stream_of(self, batch, state, inputs, context)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies and files what a layer only remembers."""
        return {k: v for k, v in self.__dict__.items() if k != "_fed"}

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse TorchScript, which calls this before it compiles a module."""
        msg = (
            f"{type(self).__name__}: got torch.jit.script, which would compile the code of every step and cannot; "
            f"expected torch.compile or torch.export. Or load the state_dict into torch.nn's layer, and script that"
        )
        raise AnyRNNError(msg)

    def extra_repr(self) -> str:
        """Show the options that differ from their defaults, as torch.nn does."""
        options = (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
            ("merge", "concat"),
            ("connect", "plain"),
            ("learn_initial_state", False),
            *((key, 0.0) for key in OPTIONS),
            *((name, None) for name in ("clip", "clip_gradient", "clip_gradient_norm")),
        )
        shown = [f"{key}={getattr(self, key)}" for key, default in options if getattr(self, key, default) != default]
        return ", ".join([*self._sizes_repr(), *shown])

    def _sizes_repr(self) -> list[str]:
        return [] if self.input_size is None else [str(self.input_size)]


def _initial_names(signature: Signature, layer: int, reverse: bool) -> list[str]:
    """The names of the parameters that are the initial state of a layer in a direction."""
    place = f"_l{layer}" + ("_reverse" if reverse else "")
    if signature.bare:
        return ["initial_state" + place]
    return [f"initial_state{k}{place}" for k in range(len(signature.state_sizes))]


def _side_by_side(values: list[Tensor | None]) -> Tensor | tuple[Tensor | None, ...]:
    """What was recorded of several cells, as one tensor if their shapes are equal."""
    if len(values) == 1:
        assert values[0] is not None
        return values[0]
    there = [value for value in values if value is not None]
    alike = len(there) == len(values) and all(v.shape == there[0].shape for v in there)
    return torch.stack(there) if alike else tuple(values)


def is_proxy(x: object) -> bool:
    """Whether x is a proxy of `torch.fx`, which traces a model."""
    fx = sys.modules.get("torch.fx")  # imported by whoever traces
    return fx is not None and isinstance(x, fx.Proxy)


def node_of(module: nn.Module, x: Any, state: Any, **options: Any) -> Any:
    """Put a call of a layer into a graph of `torch.fx` as one node, as it does with the layers of torch.nn."""
    path = x.tracer.path_of_module(module)
    package = type(module).forward.__module__.partition(".")[0]
    is_foreign = "forward" in vars(module) or package != __name__.partition(".")[0]
    if is_foreign or not path:
        got = "a layer whose `forward` is not this package's own" if is_foreign else "the layer itself"
        msg = (
            f"{type(module).__name__}: got torch.fx.symbolic_trace of {got}, expected that of a model in whose graph "
            f"the layer is one node: a torch.fx.Tracer whose is_leaf_module says so of it, or for the layer alone "
            f"torch.fx.symbolic_trace(torch.nn.Sequential(layer))"
        )
        raise AnyRNNError(msg)
    options = {k: v for k, v in options.items() if v is not None}
    return x.tracer.create_proxy("call_module", path, (x, state), options)
