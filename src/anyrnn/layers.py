"""Layers: stacks and directions of cells, in the shapes of torch.nn.

Inside, x is (T, B, I) with lengths or without, and every layer and direction has its own tuple of states. The outer
forms (batch first, unbatched, packed, states stacked over layers) are taken off at the entrance and put back at the
exit of `Layer._apply_layer`, once.
"""

from __future__ import annotations

import operator
import sys
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from anyrnn.checks import (
    check_flags,
    check_input,
    check_lengths,
    check_probability,
    check_sizes,
    check_state,
    check_x,
    checked_names,
)
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import Form, Signature, State, form_of, placement, stated_sizes, untold
from anyrnn.runtime.call import NO_REQUEST, Call, Request
from anyrnn.traced import choose, described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anyrnn.checks import Lengths, Record
    from anyrnn.engines.select import Choice


class Layer(nn.Module):
    """The base of all layers: a stack of cells in one or two directions. Subclasses say where the cells live."""

    def __init__(
        self, input_size: int | None, num_layers: int, batch_first: bool, dropout: float, bidirectional: bool
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_sizes(name, num_layers=num_layers)
        check_probability(name, dropout=dropout)
        check_flags(name, batch_first=batch_first, bidirectional=bidirectional)
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

    @property
    def num_directions(self) -> int:
        """1, or 2 for a bidirectional layer."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The number of features of the output: the directions side by side."""
        self._settle(None)
        return self.num_directions * self._signature(self.num_layers - 1).output_size

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

    def _settle(self, state: State | None) -> None:
        """Update the signatures, if the cells have changed; `state` is the initial state of the call, if any."""

    def _apply_layer(
        self, x: Tensor | PackedSequence, state: State | None, lengths: Lengths | None, record: Record = ()
    ) -> Any:
        if not isinstance(x, Tensor | PackedSequence) and is_proxy(x):
            return node_of(self, x, state, lengths=lengths, record=record)
        request = self._request(record) if record else NO_REQUEST
        packed = x if isinstance(x, PackedSequence) else None
        x, states, lengths, batched = self._canonical(x, state, lengths)
        from_zero = state is None
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs = []
            for choice, call in self._calls(layer, x, states, lengths, from_zero, request):
                result = choice.engine.run(call)
                outputs.append(result.output)
                finals.append(result.states)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)  # (T, B, D*O)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        results = self._outer(x, packed, batched), self._stack(finals, batched, state)
        if not request.record:
            return results
        return *results, {name: self._outer(t, None, batched) for name, t in result.records.items()}

    def _request(self, record: Record) -> Request:
        """The request of a call that names local variables to be recorded."""
        if self.num_layers * self.num_directions > 1:
            msg = (
                f"{type(self).__name__}: got record={record!r} for {self.num_layers} layers in {self.num_directions} "
                f"directions; expected one layer in one direction: anyrnn.scan(layer.cell(0), ...) records one of them"
            )
            raise AnyRNNError(msg)
        return Request(checked_names(type(self).__name__, record))

    def _calls(
        self,
        layer: int,
        x: Tensor,
        states: Sequence[tuple[Tensor, ...]],
        lengths: Tensor | None,
        from_zero: bool,
        request: Request = NO_REQUEST,
    ) -> Iterator[tuple[Choice, Call]]:
        """The calls of a layer, one for each direction, each with its engine."""
        for direction in range(self.num_directions):
            reverse = direction == 1
            state = states[layer * self.num_directions + direction]
            cell, signature = self._cell(layer, reverse), self._signature(layer, reverse)
            if not signature.settled:
                raise AnyRNNError(untold(cell, signature))
            call = Call(cell, signature, x, state, lengths, reverse, from_zero, request)
            yield choose(call), call

    def _canonical(
        self, x: Tensor | PackedSequence, state: State | None, lengths: Lengths | None
    ) -> tuple[Tensor, list[tuple[Tensor, ...]], Tensor | None, bool]:
        """Convert arguments to the inner forms: x (T, B, I), states for each layer and direction, lengths or None."""
        name = type(self).__name__
        if isinstance(x, PackedSequence):
            if lengths is not None:
                msg = f"{name}: got lengths beside a PackedSequence, which has its own; expected only one of them"
                raise AnyRNNError(msg)
            x, lengths = pad_packed_sequence(x)  # (T, B, I)
            batched, batch_first = True, False
        else:
            check_x(name, x, {3: "(B, T, I)" if self.batch_first else "(T, B, I)", 2: "(T, I)"})
            batched, batch_first = x.dim() == 3, self.batch_first
        if self.input_size is None:
            self._set_input_size(x.shape[-1], state)
        self._settle(state)
        like = placement(self, x)
        check_input(name, x, self.input_size, like)
        if not batched:
            x = x.unsqueeze(1)
        elif batch_first:
            x = x.transpose(0, 1)
        T, B, _ = x.shape
        if not batched and isinstance(lengths, int | Tensor):
            lengths = lengths.reshape(-1) if isinstance(lengths, Tensor) else [lengths]
        return (
            x,
            self._initial(state, B, batched, x, like.dtype),
            check_lengths(name, lengths, T, B),
            batched,
        )

    def _initial(
        self, state: State | None, B: int, batched: bool, x: Tensor, dtype: torch.dtype
    ) -> list[tuple[Tensor, ...]]:
        """The initial states of each layer and direction."""
        signature = self._signature(0)
        count = self.num_layers * self.num_directions
        if state is None:
            zeros = tuple(x.new_zeros(B, size, dtype=dtype) for size in signature.state_sizes)
            return [zeros] * count
        lead = (count, B) if batched else (count,)
        stacked = check_state(type(self).__name__, state, signature, lead, x.device, dtype)
        if not batched:
            stacked = tuple(s.unsqueeze(1) for s in stacked)
        return list(zip(*(s.unbind(0) for s in stacked), strict=True))

    def _stack(self, finals: list[tuple[Tensor, ...]], batched: bool, initial: State | None) -> State:
        """The final states as one tensor for each state variable, in the structure of the initial ones."""
        if len(finals) == 1:
            stacked = tuple(final.unsqueeze(0) for final in finals[0])
        else:
            stacked = tuple(torch.stack(variable) for variable in zip(*finals, strict=True))  # (L*D, B, size) each
        return self._signature(0).wrap(stacked if batched else tuple(s.squeeze(1) for s in stacked), initial)

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

    def _set_input_size(self, input_size: int, state: State | None) -> None:
        self.input_size = input_size

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
        )
        shown = [f"{key}={getattr(self, key)}" for key, default in options if getattr(self, key, default) != default]
        return ", ".join([*self._sizes_repr(), *shown])

    def _sizes_repr(self) -> list[str]:
        return [] if self.input_size is None else [str(self.input_size)]


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
    # Told by their classes, since a proxy is neither true nor false.
    options = {k: v for k, v in options.items() if v is not None and not (type(v) is tuple and not v)}
    return x.tracer.create_proxy("call_module", path, (x, state), options)


class Recurrent(Layer):
    """A recurrent layer made from any cell: stacked, bidirectional, for ragged batches, with a state.

    Called as ``layer(x, state=None, lengths=None, record=())``, with the shapes of torch.nn.

    Args:
        cell: One cell, for one layer in one direction; or a function from an input size to a new cell, called once
            for each layer and direction. A cell is any `nn.Module` with ``forward(x, state)`` for one step, x
            (B, I): it returns the new state, or ``(output, new_state)``. A state is one tensor (B, size) or a tuple.
        input_size: I, the number of features of x. For a single cell it may be left out: it is then the cell's own
            `input_size`, or that of the first x.
        num_layers: The number of layers; each takes the output of the one before.
        batch_first: x and the output are (B, T, I) rather than (T, B, I). The state stays as it is, as in torch.nn.
        dropout: The probability of dropping a feature between two layers while training.
        bidirectional: A second cell in each layer runs from the last valid step to the first; outputs side by side.
        state_sizes: The size of the state, an int for one tensor or a tuple, where the cell has neither
            `state_sizes` nor a `hidden_size` from which one step tells it.

    Raises:
        AnyRNNError: for a cell outside the protocol; in a call, for an x, state or lengths of another form.

    Shapes, D being 2 if bidirectional and L the number of layers:
        x (T, B, I), or (B, T, I) with batch_first, or (T, I) unbatched, or a `PackedSequence`;
        state: a tensor (L*D, B, size), or a tuple of them, without B if unbatched;
        lengths: (B,) integers from 0 to T, in any order;
        record: names of local variables of the cell's `forward`, or of its methods that this calls;
        output (T, B, D*O), zero at padded steps; the state after each row's last valid step. With `record`, then a
        dict of what these variables hold when their method returns, (T, B, ...) each, zero at padded steps; for one
        layer in one direction. Gradients pass through them.

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
        cell: nn.Module | Callable[[int], nn.Module],
        input_size: int | None = None,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        state_sizes: int | tuple[int, ...] | None = None,
    ) -> None:
        single = isinstance(cell, nn.Module)
        if single and input_size is None:
            declared = getattr(cell, "input_size", None)
            input_size = declared if isinstance(declared, int) else None
        super().__init__(input_size, num_layers, batch_first, dropout, bidirectional)
        if single and (num_layers > 1 or bidirectional):
            msg = (
                f"Recurrent: got one {type(cell).__name__} for {num_layers} layers, bidirectional={bidirectional}; "
                f"expected a function that makes one each: lambda input_size: {type(cell).__name__}(input_size, ...)"
            )
            raise AnyRNNError(msg)
        if not callable(cell):
            msg = f"Recurrent: got {cell!r}, expected a cell (an nn.Module) or a function from an input size to a cell"
            raise AnyRNNError(msg)
        if not single and input_size is None:
            msg = "Recurrent: got a function that makes cells and no input_size; expected the number of features of x"
            raise AnyRNNError(msg)
        self._state_sizes = tuple(state_sizes) if isinstance(state_sizes, list) else state_sizes
        self._described: list[_DescribedCell] = []
        self.cells = nn.ModuleList()
        for _ in range(num_layers):
            for _ in range(self.num_directions):
                self.cells.append(cell if isinstance(cell, nn.Module) else _new_cell(cell, input_size))
                if input_size is not None:
                    self._described.append(_describe(self.cells[-1], input_size, self._state_sizes, None))
            if input_size is not None:
                input_size = self.num_directions * self._described[-1].signature.output_size
        self._check_alike()

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: State | None = None,
        *,
        lengths: Lengths | None = None,
        record: Record = (),
    ) -> Any:
        """Run the layer; see the class for shapes. Returns the output and the final state, and what is recorded."""
        return self._apply_layer(x, state, lengths, record)

    def cell(self, layer: int = 0, reverse: bool = False) -> nn.Module:
        """Return the cell of a layer (0 is the first) and direction."""
        self._check_place(layer, reverse)
        return self.cells[layer * self.num_directions + reverse]

    def _signature(self, layer: int, reverse: bool = False) -> Signature:
        if not self._described:
            msg = "Recurrent: the size of its input is not known before the first call; pass input_size="
            raise AnyRNNError(msg)
        return self._described[layer * self.num_directions + reverse].signature

    def _set_input_size(self, input_size: int, state: State | None) -> None:
        self._described = [_describe(self.cells[0], input_size, self._state_sizes, form_of(state))]
        super()._set_input_size(input_size, state)

    def _settle(self, state: State | None) -> None:
        """Infer signatures again: of cells that were replaced or resized, or whose state's structure is not known."""
        if not self._described:
            return
        if len(self.cells) != len(self._described):
            msg = (
                f"Recurrent: it has {len(self.cells)} cells, expected {len(self._described)}, one for each of "
                f"{self.num_layers} layers and {self.num_directions} directions; for more, make a new layer"
            )
            raise AnyRNNError(msg)
        input_size, changed = self.input_size, False
        for k, cell in enumerate(self.cells):
            known = self._described[k]
            if not known.signature.settled or not known.is_current(cell, input_size):
                size = operator.index(input_size)  # type: ignore[arg-type]
                self._described[k], changed = _describe(cell, size, self._state_sizes, form_of(state)), True
            if (k + 1) % self.num_directions == 0:
                input_size = self.num_directions * self._described[k].signature.output_size
        if changed:
            self._check_alike()

    def _check_alike(self) -> None:
        signatures = [each.signature for each in self._described]
        forms = [(s.state_sizes, s.bare) for s in signatures]
        if any(form != forms[0] for form in forms):
            msg = f"Recurrent: the layers' states have sizes {[s.state_sizes for s in signatures]}, expected equal"
            raise AnyRNNError(msg)


@dataclass(frozen=True)
class _DescribedCell:
    """A cell with its signature, and the sizes from which that was inferred."""

    cell: nn.Module
    sizes: int | tuple[int, ...] | None
    input_size: int
    signature: Signature

    def is_current(self, cell: nn.Module, input_size: int | None) -> bool:
        """Whether this is the same cell, with the same sizes of x and state."""
        return cell is self.cell and self.input_size == input_size and self.sizes == stated_sizes(cell)


def _describe(
    cell: nn.Module, input_size: int, state_sizes: int | tuple[int, ...] | None, form: Form | None
) -> _DescribedCell:
    return _DescribedCell(cell, stated_sizes(cell), input_size, described(cell, input_size, state_sizes, form))


def _new_cell(factory: Callable[[int], nn.Module], input_size: int | None) -> nn.Module:
    cell = factory(input_size)  # type: ignore[arg-type]  # checked above
    if not isinstance(cell, nn.Module):
        msg = f"Recurrent: the function returned a {type(cell).__name__}, expected a cell, an nn.Module"
        raise AnyRNNError(msg)
    return cell
