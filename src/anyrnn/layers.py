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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from anyrnn.adapters import Stepped
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
from anyrnn.protocol import (
    Extra,
    ExtraForm,
    Form,
    Signature,
    Size,
    Sizes,
    State,
    WrongOrderError,
    form_of,
    names_of,
    placement,
    shape_of,
    size_of,
    stated_sizes,
    takes,
    untold,
)
from anyrnn.regularisation import OPTIONS, Draws, Regularised, regularised, zoneout_of
from anyrnn.runtime.call import NO_REQUEST, Call, Request
from anyrnn.stacks import PLAIN, Wiring, parts_of
from anyrnn.stream import Stream, stream_of
from anyrnn.traced import choose, described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from anyrnn.arguments import LayerOptions, RegularisationOptions
    from anyrnn.checks import Context, Extras, Lengths, Record
    from anyrnn.engines.select import Choice


Maker: TypeAlias = "nn.Module | Callable[[Any], nn.Module]"  # a cell, or a function from an input size to one


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
        size = size_of([operator.index(n) for n in shape_of(self._input_width(layer))])
        return names_of(self._cell(layer, reverse), self._signature(layer, reverse), size, self._forms_of(layer))

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


class Recurrent(Layer):
    """A recurrent layer made from any cell: stacked, bidirectional, for ragged batches, with a state.

    Called as ``layer(x, state=None, lengths=None)``, with the shapes of torch.nn, and further options.

    Args:
        cell: One cell, for one layer in one direction; or a function from an input size to a new cell, called once
            for each layer and direction. A cell is any `nn.Module` with ``forward(x, state, *extras)`` for one step,
            x (B, ...): it returns the new state, or ``(output, new_state)``. A state is one tensor (B, ...) or a tuple,
            an output one tensor (B, ...), a tuple or a dict. One with ``forward(x, *state, *extras)`` will do, too.
            Or a list of these, one for each layer: the layers may then have other cells, and other sizes.
        input_size: I, the number of features of x, or its shape behind T and B. For a single cell it may be left out:
            it is then the cell's own `input_size`, or the number of features of the first x.
        num_layers: The number of layers; each takes the output of the one before. That of the list, if there is one.
        batch_first: x and the output are (B, T, I) rather than (T, B, I). The state stays as it is, as in torch.nn.
        dropout: The probability of dropping a feature between two layers while training.
        bidirectional: A second cell in each layer runs from the last valid step to the first; outputs side by side.
        state_sizes: The size of the state, an int for one tensor or a tuple, where the cell has neither
            `state_sizes` nor a `hidden_size` from which one step tells it. In the place of an int may be a shape:
            ``((4, 16), 64)`` for two tensors (B, 4, 16) and (B, 64), ``torch.Size([4, 16])`` for one tensor.
        step: A function ``step(module, x, state, *extras)`` that computes a step, where `cell` is a module with another
            way to do so: ``Recurrent(model, step=lambda m, x, s: m.advance(x, *s), state_sizes=(64, 64))``.
        merge: The output of a bidirectional layer from those of its directions: "concat" puts them side by side, "sum"
            adds them, "mean" averages them.
        connect: What is between the layers. "plain": each reads the output of the one before. "residual": and adds
            what it reads to its output (each but the first, whose x is not of the same kind: see `anyrnn.Residual`);
            their widths have to be equal. "dense": each reads x and the outputs of all layers before, side by side.
            Dropout acts on each layer's output, once, whoever reads it.
        learn_initial_state: The state from which a call without one starts is learned: parameters `initial_state_l0`
            (of a tuple `initial_state0_l0`, `initial_state1_l0`) of each layer and direction, zero at first.
        clip: Every new state is limited to [-clip, clip], and so is an output that is a state.
        clip_gradient: Between two steps, each number of the gradient of the state is limited to [-clip_gradient,
            clip_gradient]; what a sequence's gradient can grow by is limited so, not what its steps add up to.
        clip_gradient_norm: Between two steps, the gradient of each state variable has in each row at most this norm.
        input_dropout: The probability of dropping a feature of what a layer reads, of each layer, while training: the
            same features at all steps of a row (Gal and Ghahramani 2016, arXiv:1512.05287, in its tied form: one mask
            for all gates). What is not dropped is divided by 1 - p, here and below.
        recurrent_dropout: The probability of dropping a feature of the state where a matrix product takes it, the same
            at all steps of a row (the same paper). A number is for the first state, h; a tuple has one for each.
        zoneout: The probability of keeping a feature of the state as it was, drawn anew for each step (Krueger et al.
            2017, arXiv:1606.01305); when evaluated, that share of the old state is in the new one. A number is for all
            states, a tuple has one for each.
        weight_dropout: The probability of dropping a weight that multiplies the state, the same for all rows and steps
            of a call: DropConnect (Merity et al. 2018, arXiv:1708.02182). Or a dict of probabilities by name of the
            cell's parameters, of which all is then meant.

    Raises:
        AnyRNNError: for a cell outside the protocol, and for widths that cannot be added; in a call, for an x, state
            or lengths of another form.

    Shapes, D being 2 if bidirectional and L the number of layers:
        x (T, B, I), or (B, T, I) with batch_first, or (T, I) unbatched, or a `PackedSequence`;
        state: a tensor (L*D, B, size), or a tuple of them, without B if unbatched; where the layers' states differ in
        size or number, a tuple of L states, each as that of one layer, (D, B, size) or a tuple of them;
        lengths: (B,) integers from 0 to T, in any order;
        inputs: what else the cells get at each step, (T, B, ...): one tensor, several in a tuple, or in a dict by the
        names of arguments of the cell's `forward`; in the order of x, (B, T, ...) with batch_first;
        context: what they get that is the same at every step, (B, ...), likewise; ``anyrnn.shared(A)`` for a tensor
        that has no batch. All cells of a stack get the same, behind x and the state: first inputs, then context;
        feedback: a function, or a module, that makes the x (B, ...) of the next step of an output (B, ...);
        forced: with feedback, the steps that read x nevertheless: (T, B) true or false, or the number of first steps;
        reset: (T, B) true or false, (B, T) with batch_first: before a step at which it is true, the row's state becomes
        the initial one of this call, and no gradient passes; as if the pieces were run apart. A second direction has
        the same pieces;
        reset_to: the state that it becomes instead, of the form of `state`: ``layer.initial_state(B)`` where the call
        goes on from a state of other sequences;
        record: names of local variables of the cell's `forward`, or of its methods that this calls: see `names`;
        output (T, B, D*O), or (T, B, O) if directions are added, zero at padded steps, in the structure in which the
        cell returns it; the state after each row's last valid step. With `record`, then a dict of what these variables
        hold when their method returns, zero at padded steps: (T, B, ...) for one layer in one direction, else
        (L*D, T, B, ...), or a tuple of L*D where the layers differ. With `return_states=True`, then the states after
        every step, (L*D, T, B, size), (L*D, B, T, size) if batch_first.
        Gradients pass through all of them;
        checkpoint_every: with k, the layer keeps the states between pieces of k steps only, and the backward pass runs
        each piece again: long sequences in little memory, the same results, about a third more time.

    Example:
        >>> import torch, anyrnn
        >>> class Leaky(torch.nn.Module):  # your own cell
        ...     def __init__(self, input_size, hidden_size):
        ...         super().__init__()
        ...         self.hidden_size = hidden_size
        ...         self.new = torch.nn.Linear(input_size + hidden_size, hidden_size)
        ...     def forward(self, x, h):
        ...         return 0.9 * h + 0.1 * torch.tanh(self.new(torch.cat((x, h), dim=1)))
        >>> layer = anyrnn.Recurrent(lambda size: Leaky(size, 64), input_size=12, num_layers=2, bidirectional=True)
        >>> output, state = layer(torch.randn(50, 8, 12), lengths=[50, 3, 0, 7, 20, 20, 1, 49])
        >>> output.shape, state.shape
        (torch.Size([50, 8, 128]), torch.Size([4, 8, 64]))
    """

    def __init__(
        self,
        cell: Maker | Sequence[Maker],
        input_size: Size | None = None,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        state_sizes: Sizes | None = None,
        step: Callable[..., Any] | None = None,
        merge: str = "concat",
        connect: str = "plain",
        **options: Unpack[LayerOptions],
    ) -> None:
        makers = _makers(cell, num_layers)
        if input_size is None and isinstance(makers[0], nn.Module):
            declared = getattr(makers[0], "input_size", None)
            input_size = declared if isinstance(declared, int | tuple) else None
        input_size = size_of(input_size) if isinstance(input_size, tuple | list) else input_size
        super().__init__(input_size, len(makers), batch_first, dropout, bidirectional, **options)
        self._wiring = Wiring(merge, connect)
        self._wiring.check("Recurrent")
        for maker in makers:
            _check_maker(maker, input_size, num_layers if maker is cell else 1, bidirectional)
        self._state_sizes = tuple(state_sizes) if isinstance(state_sizes, list) else state_sizes
        self._step = step
        self._stepped: list[Stepped] = []
        self._described: list[_DescribedCell] = []
        self.cells = nn.ModuleList()
        for layer, maker in enumerate(makers):
            size = None if input_size is None else self._input_width(layer)
            for direction in range(self.num_directions):
                self.cells.append(maker if isinstance(maker, nn.Module) else _new_cell(maker, size))
                if size is not None:
                    self._described.append(self._describe_first(layer, direction == 1, size))
        self._check_widths()
        if self.learn_initial_state:
            self._learn_initial_states()

    @property
    def merge(self) -> str:
        """How the outputs of the directions become one."""
        return self._wiring.merge

    @property
    def connect(self) -> str:
        """What is between the layers."""
        return self._wiring.connect

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: State | None = None,
        *,
        lengths: Lengths | None = None,
        inputs: Extras | None = None,
        context: Context | None = None,
        feedback: Callable[[Any], Tensor] | None = None,
        forced: Tensor | int | None = None,
        reset: Tensor | None = None,
        reset_to: State | None = None,
        record: Record = (),
        return_states: bool = False,
        checkpoint_every: int | None = None,
    ) -> Any:
        """Run the layer; see the class for shapes. Returns the output, the final state, and what else is asked for."""
        options = Options(
            lengths, record, return_states, inputs, context, feedback, forced, reset, reset_to, checkpoint_every
        )
        return self._apply_layer(x, state, options)

    def _is_mixed(self) -> bool:
        return len({type(cell) for cell in self.cells}) > 1

    def _forms_of(self, layer: int) -> tuple[ExtraForm, ...]:
        return self._described[layer * self.num_directions].extras

    def cell(self, layer: int = 0, reverse: bool = False) -> nn.Module:
        """Return the cell of a layer (0 is the first) and direction."""
        self._check_place(layer, reverse)
        return self.cells[layer * self.num_directions + reverse]

    def _cell(self, layer: int, reverse: bool) -> nn.Module:
        """The cell; with a `step` of its own, the module that runs it."""
        module = self._itself(layer * self.num_directions + reverse)
        if self._step is None:
            return module
        known = next((s for s in self._stepped if s.module is module), None)
        if known is None:
            known = Stepped(module, self._step)
            self._stepped = [s for s in self._stepped if any(s.module is cell for cell in self.cells)] + [known]
        known.training = module.training
        return known

    def _itself(self, number: int) -> nn.Module:
        """A cell by its number; where torch.export runs stand-ins for modules that have two names, what they stand for.

        A stand-in has the very attributes of its module, but is another one at every access.
        """
        if not torch.compiler.is_exporting() or torch.compiler.is_dynamo_compiling():
            return self.cells[number]
        cells = vars(self)["_modules"]["cells"]
        module: nn.Module = [*vars(cells)["_modules"].values()][number]
        return module

    def _signature(self, layer: int, reverse: bool = False) -> Signature:
        if not self._described:
            msg = "Recurrent: the size of its input is not known before the first call; pass input_size="
            raise AnyRNNError(msg)
        return self._described[layer * self.num_directions + reverse].signature

    def _set_input_size(self, input_size: Size, state: State | None, extras: Sequence[Extra], rows: int) -> None:
        super()._set_input_size(input_size, state, extras, rows)
        try:
            for layer in range(len(self.cells)):  # single cells, so in one direction
                cell, size = self._cell(layer, False), self._input_width(layer)
                self._described.append(self._describe(cell, size, self._form_of(state, layer), extras, rows))
            self._check_widths()
        except AnyRNNError:
            self.input_size, self._described = None, []
            raise

    def _describe_first(self, layer: int, reverse: bool, input_size: Size) -> _DescribedCell:
        """Describe a new cell; one that wants further arguments is run when it gets them."""
        cell = self._cell(layer, reverse)
        try:
            return self._describe(cell, input_size, forms=getattr(cell, "extra_forms", ()))
        except AnyRNNError as cause:
            signature = _awaited(cell, self._state_sizes)
            if signature is None or isinstance(cause, WrongOrderError):
                raise
        return _DescribedCell(cell, stated_sizes(cell), input_size, (), signature, awaits=True)

    def _describe(
        self,
        cell: nn.Module,
        input_size: Size,
        form: Form | None = None,
        extras: Sequence[Extra] = (),
        rows: int | None = None,
        forms: tuple[ExtraForm, ...] = (),
    ) -> _DescribedCell:
        forms = tuple([e.form for e in extras]) or forms
        signature = described(cell, input_size, self._state_sizes, form, forms, rows)
        return _DescribedCell(cell, stated_sizes(cell), input_size, forms, signature)

    def _settle(self, state: State | None, extras: Sequence[Extra] = (), rows: int | None = None) -> None:
        """Infer signatures again: of cells that were replaced or resized, or whose state's structure is not known."""
        if not self._described:
            return
        if len(self.cells) != len(self._described):
            msg = (
                f"Recurrent: it has {len(self.cells)} cells, expected {len(self._described)}, one for each of "
                f"{self.num_layers} layers and {self.num_directions} directions; for more, make a new layer"
            )
            raise AnyRNNError(msg)
        assert self.input_size is not None
        forms = tuple([e.form for e in extras]) if extras else ()
        if self._is_settled(forms):
            return
        input_size, sizes, changed = self.input_size, [self.input_size], False
        for k in range(len(self.cells)):
            layer, known = k // self.num_directions, self._described[k]
            cell = self._cell(layer, k % self.num_directions == 1)
            if rows is None:  # no call, which would say what it is given
                forms = known.extras
            is_known = known.signature.settled and known.is_current(cell, input_size, forms)
            if not is_known and (rows is not None or not (known.extras or known.awaits)):
                size, form = size_of([operator.index(n) for n in shape_of(input_size)]), self._form_of(state, layer)
                self._described[k], changed = self._describe(cell, size, form, extras, rows), True
            if (k + 1) % self.num_directions == 0:
                sizes.append(self._width(layer))
                input_size = self._wiring.joined_size(sizes)
        if changed:
            self._check_widths()

    def _is_settled(self, forms: tuple[ExtraForm, ...]) -> bool:
        """Whether all cells are those that are known, and take such arguments: what they read is as it was, then."""
        cells: Iterable[nn.Module] = self.cells
        if self._step is not None or torch.compiler.is_exporting():
            cells = [self._cell(k // self.num_directions, k % self.num_directions == 1) for k in range(len(self.cells))]
        if self._described[0].input_size != self.input_size:
            return False
        for cell, known in zip(cells, self._described, strict=True):
            if not known.signature.settled or not known.is_current(cell, known.input_size, forms):
                return False
        return True

    def _form_of(self, state: State | None, layer: int) -> Form | None:
        """The structure of the initial state of a layer."""
        has_parts = isinstance(state, tuple | list) and len(state) == self.num_layers
        return form_of(state[layer] if has_parts and not self._is_alike else state)  # type: ignore[index]

    def _check_widths(self) -> None:
        """Check that directions have states of one form, and that widths of what is added are equal."""
        if not self._described:
            return
        forms = [(each.signature.state_sizes, each.signature.bare) for each in self._described]
        self._is_alike = all(form == forms[0] for form in forms)
        for layer in range(self.num_layers):
            pair = [self._signature(layer, reverse) for reverse in (False, True)[: self.num_directions]]
            if any((s.state_sizes, s.bare) != (pair[0].state_sizes, pair[0].bare) for s in pair):
                msg = (
                    f"Recurrent: the states of the directions of layer {layer} have sizes "
                    f"{[s.state_sizes for s in pair]}, expected equal"
                )
                raise AnyRNNError(msg)
            self._wiring.check_bridge("Recurrent", layer, self._input_width(layer), self._width(layer))


@dataclass(frozen=True)
class _DescribedCell:
    """A cell with its signature, and the sizes from which that was inferred.

    One that `awaits` further arguments has not run yet.
    """

    cell: nn.Module
    sizes: Sizes | None
    input_size: Size
    extras: tuple[ExtraForm, ...]
    signature: Signature
    awaits: bool = False

    def is_current(self, cell: nn.Module, input_size: Size | None, extras: tuple[ExtraForm, ...]) -> bool:
        """Whether this is the same cell, with the same sizes of x, state and further arguments."""
        same = cell is self.cell and self.input_size == input_size and self.sizes == stated_sizes(cell)
        return same and self.extras == extras


def _awaited(cell: nn.Module, state_sizes: Sizes | None) -> Signature | None:
    """The signature that a cell may have which wants further arguments than x and the state; None if it does not.

    What it is will be seen when it gets them. Until then its output is taken to be its first state.
    """
    sizes = stated_sizes(cell) if state_sizes is None else state_sizes
    if sizes is None or takes(cell, 2) is not False or takes(cell, 1) is not False:
        return None
    bare = isinstance(sizes, int | torch.Size)
    each: tuple[Size, ...] = (size_of(shape_of(sizes)),) if bare else tuple(size_of(shape_of(s)) for s in sizes)  # type: ignore[arg-type, union-attr]
    return Signature(each, bare, each[:1], has_output=False, settled=False)


def _new_cell(factory: Callable[[Any], nn.Module], input_size: Size | None) -> nn.Module:
    cell = factory(input_size)
    if not isinstance(cell, nn.Module):
        msg = f"Recurrent: the function returned a {type(cell).__name__}, expected a cell, an nn.Module"
        raise AnyRNNError(msg)
    return cell


def _makers(cell: Maker | Sequence[Maker], num_layers: int) -> list[Maker]:
    """What makes the cells of each layer."""
    if not isinstance(cell, list | tuple):
        check_sizes("Recurrent", num_layers=num_layers)
        return [cell] * num_layers  # type: ignore[list-item]
    if not cell or num_layers not in (1, len(cell)):
        msg = (
            f"Recurrent: got a list of {len(cell)} cells with num_layers={num_layers}, expected one cell or function "
            f"for each layer, and num_layers left out"
        )
        raise AnyRNNError(msg)
    return [*cell]


def _check_maker(maker: Maker, input_size: Size | None, num_layers: int, bidirectional: bool) -> None:
    """Check a cell, or a function that makes cells."""
    single = isinstance(maker, nn.Module)
    if single and (num_layers > 1 or bidirectional):
        msg = (
            f"Recurrent: got one {type(maker).__name__} for {num_layers} layers, bidirectional={bidirectional}; "
            f"expected a function that makes one each: lambda input_size: {type(maker).__name__}(input_size, ...)"
        )
        raise AnyRNNError(msg)
    if not callable(maker):
        msg = f"Recurrent: got {maker!r}, expected a cell (an nn.Module) or a function from an input size to a cell"
        raise AnyRNNError(msg)
    if not single and input_size is None:
        msg = "Recurrent: got a function that makes cells and no input_size; expected the number of features of x"
        raise AnyRNNError(msg)
