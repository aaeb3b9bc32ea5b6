"""The package's named layers: each is the layer made from its cell, with torch.nn's constructor and parameter names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from anyrnn import cells
from anyrnn.arguments import LayerOptions, Options
from anyrnn.cells.base import CellOptions
from anyrnn.dropin import TorchLSTMNames, TorchNames
from anyrnn.engines import short
from anyrnn.engines.select import wanted_name
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.protocol import Signature, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.nn.utils.rnn import PackedSequence

    from anyrnn.checks import Lengths, Record


class NamedOptions(CellOptions, LayerOptions, total=False):
    """The keyword-only options of the named layers: those of their cells, and those of every layer."""


class CellLayer(Layer):
    """The base of the package's named layers: their parameters carry torch.nn's names, such as `weight_ih_l0_reverse`.

    The parameters live on the layer. A cell without parameters of its own computes with them (`Cell.bound`), so
    that there is no second copy to keep in step when weights are loaded, moved, shared or parametrized.
    """

    cell_type: ClassVar[type[cells.Cell]]
    _templates: tuple[cells.Cell, ...]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **cell_options: Any,
    ) -> None:
        own: Any = {key: cell_options.pop(key) for key in LayerOptions.__annotations__ if key in cell_options}
        super().__init__(input_size, num_layers, batch_first, dropout, bidirectional, **own)
        self.hidden_size = hidden_size
        if not isinstance(bias, bool):
            msg = f"{type(self).__name__}: got bias={bias!r}, expected True or False"
            raise AnyRNNError(msg)
        self.bias = bias
        templates: list[cells.Cell] = []
        self._shapes: dict[str, torch.Size] = {}
        for layer in range(num_layers):
            size = self.num_directions * templates[0].output_size if templates else input_size
            template = self.cell_type(size, hidden_size, bias, device="meta", dtype=dtype, **cell_options)
            self._refuse_parametric(template)
            templates.append(template)
            for direction in range(self.num_directions):
                for key, value in template.named_parameters():
                    parameter = nn.Parameter(torch.empty(value.shape, device=device, dtype=value.dtype))
                    self.register_parameter(_named(key, layer, direction == 1), parameter)
                    self._shapes[_named(key, layer, direction == 1)] = value.shape
        # Not registered as submodules: they own no parameters, and would show in repr and state_dict. What they hold
        # is: an activation that is a module follows the layer to another device and into evaluation mode.
        object.__setattr__(self, "_templates", tuple(templates))
        self._signatures = tuple(map(_signature_of, templates))
        self._bound: dict[tuple[int, bool], cells.Cell] = {}
        for key, module in templates[0].named_children():
            self.add_module(key, module)
        if self.learn_initial_state:
            self._learn_initial_states()
        self.reset_parameters()

    def _is_plain(self) -> bool:
        """Whether nothing acts on the recurrence that torch.nn does not have."""
        return not self.learn_initial_state and not self._has_controls()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in torch.nn's order; see the cell's `init` and `forget_bias`."""
        for layer in range(self.num_layers):
            for direction in range(self.num_directions):
                self.cell(layer, direction == 1).reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("initial_state"):
                nn.init.zeros_(parameter)

    def cell(self, layer: int = 0, reverse: bool = False) -> cells.Cell:
        """Return the cell of a layer (0 is the first) and direction, computing with the layer's own tensors."""
        self._check_place(layer, reverse)
        template, suffix = self._templates[layer], _suffix(layer, reverse)
        found = {key: getattr(self, key + suffix) for key in template._parameters}
        for key, weight in found.items():
            want = self._shapes.get(key + suffix)
            if want is not None and weight.shape != want:
                msg = (
                    f"{type(self).__name__}: {key + suffix} has shape {tuple(weight.shape)}, expected "
                    f"{tuple(want)}; for other sizes make a new layer"
                )
                raise AnyRNNError(msg)
        cell = template.bound(found)
        cell.training = self.training
        return cell

    def _cell(self, layer: int, reverse: bool) -> cells.Cell:
        """The cell of the last call, if its parameters are still the layer's: it is known by its engine already."""
        if torch.compiler.is_compiling():
            return self.cell(layer, reverse)
        known = self._bound.get((layer, reverse))
        if known is not None:
            own, suffix = self._parameters, _suffix(layer, reverse)
            same = all(own.get(key + suffix) is parameter for key, parameter in known._parameters.items())
            if same and known.training is self.training:
                return known
        cell = self.cell(layer, reverse)
        # Others, as under `torch.func.functional_call` or parametrizations, are another set in every call.
        if all(isinstance(p, nn.Parameter) for p in cell._parameters.values()):
            self._bound[layer, reverse] = cell
        return cell

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what a layer only remembers."""
        return {**super().__getstate__(), "_bound": {}}

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flat copy of the weights. Kept for code written for torch.nn."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, as in torch.nn."""
        pairs = [(layer, d == 1) for layer in range(self.num_layers) for d in range(self.num_directions)]
        return [[getattr(self, _named(key, *pair)) for key in self._templates[pair[0]]._parameters] for pair in pairs]

    def _signature(self, layer: int, reverse: bool = False) -> Signature:
        return self._signatures[layer]

    def _refuse_parametric(self, template: cells.Cell) -> None:
        own = set(template._parameters)
        others = sorted({key.partition(".")[0] for key, _ in template.named_parameters()} - own)
        if others:
            msg = (
                f"{type(self).__name__}: {', '.join(others)} has parameters of its own, which each layer and direction "
                f"needs separately: use Recurrent(lambda size: {self.cell_type.__name__}(size, ...), input_size=...)"
            )
            raise AnyRNNError(msg)

    def _sizes_repr(self) -> list[str]:
        return [self._templates[0].extra_repr().replace(", bias=False", "")]


def _named(key: str, layer: int, reverse: bool) -> str:
    return key + _suffix(layer, reverse)


def _suffix(layer: int, reverse: bool) -> str:
    return f"_l{layer}_reverse" if reverse else f"_l{layer}"


def _signature_of(cell: cells.Cell) -> Signature:
    sizes = cell.state_sizes
    bare = isinstance(sizes, int)
    return Signature((sizes,) if isinstance(sizes, int) else sizes, bare, (cell.output_size,), has_output=False)


class _DropIn(TorchNames, CellLayer):
    """A layer called with torch.nn's argument names."""

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - torch.nn's name
        hx: State | None = None,
        *,
        lengths: Lengths | None = None,
        feedback: Callable[[Any], Tensor] | None = None,
        forced: Tensor | int | None = None,
        reset: Tensor | None = None,
        reset_to: State | None = None,
        record: Record = (),
        return_states: bool = False,
        checkpoint_every: int | None = None,
    ) -> Any:
        """Run the layer; see `Recurrent` for shapes. Returns the output, the final state, and what is asked for."""
        is_bare = lengths is None and not record and not return_states and feedback is None
        if is_bare and reset is None and reset_to is None and checkpoint_every is None:
            if not torch.compiler.is_compiling() and type(self).cell is CellLayer.cell and self._is_plain():
                done = short.run(self, input, hx) if wanted_name() == "auto" else None
                if done is not None:
                    return done
            return self._apply_layer(input, hx)
        options = Options(
            lengths, record, return_states, None, None, feedback, forced, reset, reset_to, checkpoint_every
        )
        return self._apply_layer(input, hx, options)


class RNN(_DropIn):
    """A simple recurrent network (Elman RNN) with tanh or ReLU: a drop-in `torch.nn.RNN`.

    Constructor, parameter names and shapes, initial values under the same seed, `state_dict`, `repr`, call and
    results are torch.nn's. In addition: ``layer(x, lengths=lengths)`` for ragged batches, rows of length 0, and the
    keyword-only options below. The equations are those of `RNNCell`; shapes are those of `Recurrent`.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        num_layers: The number of layers.
        nonlinearity: "tanh" or "relu".
        bias: Without it there are no biases.
        batch_first: x and the output are (B, T, I) rather than (T, B, I).
        dropout: The probability of dropping a feature between two layers while training.
        bidirectional: Run a second cell backwards; outputs side by side.
        device: Where the parameters are made.
        dtype: Their type.
        **options: `activations` (key "h") and `init`, see `anyrnn.cells.Cell`;
            and those of every layer, see `Recurrent`.

    Raises:
        AnyRNNError: for values out of range; in a call, for an x, state or lengths of another form.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.RNN(10, 20, num_layers=2)
        >>> output, h = layer(torch.randn(5, 3, 10))
        >>> output.shape, h.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    cell_type = cells.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[NamedOptions],
    ) -> None:
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype,
            nonlinearity=nonlinearity, **options,
        )  # fmt: skip

    def _sizes_repr(self) -> list[str]:
        return [f"{self.input_size}, {self.hidden_size}"]  # torch.nn.RNN does not show its nonlinearity


class LSTM(TorchLSTMNames, _DropIn):
    """Long short-term memory (LSTM), optionally with a projection: a drop-in `torch.nn.LSTM`.

    Constructor, parameter names and shapes, initial values under the same seed, `state_dict`, `repr`, call and
    results are torch.nn's. In addition: ``layer(x, lengths=lengths)`` for ragged batches, rows of length 0, and the
    keyword-only options below. The equations are those of `LSTMCell`, gates in the order i, f, g, o; shapes are
    those of `Recurrent`, the state being the tuple (h, c).

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        num_layers: The number of layers.
        bias: Without it there are no biases.
        batch_first: x and the output are (B, T, I) rather than (T, B, I).
        dropout: The probability of dropping a feature between two layers while training.
        bidirectional: Run a second cell backwards; outputs side by side.
        proj_size: P, the size of the projection of h; 0 for none.
        device: Where the parameters are made.
        dtype: Their type.
        **options: `activations` (keys "i", "f", "g", "o", "h"), `init` and `forget_bias`, see `anyrnn.cells.Cell`;
            and those of every layer, see `Recurrent`.

    Raises:
        AnyRNNError: for values out of range; in a call, for an x, state or lengths of another form.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.LSTM(10, 20, bidirectional=True, forget_bias=1.0)
        >>> output, (h, c) = layer(torch.randn(5, 3, 10), lengths=[5, 0, 2])
        >>> output.shape, c.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    cell_type = cells.LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[NamedOptions],
    ) -> None:
        self.proj_size = proj_size
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype,
            proj_size=proj_size, **options,
        )  # fmt: skip


class GRU(_DropIn):
    """Gated recurrent unit (GRU): a drop-in `torch.nn.GRU`, also in the paper's form.

    Constructor, parameter names and shapes, initial values under the same seed, `state_dict`, `repr`, call and
    results are torch.nn's. In addition: ``layer(x, lengths=lengths)`` for ragged batches, rows of length 0, and the
    keyword-only options below. The equations are those of `GRUCell`, gates in the order r, z, n; shapes are those of
    `Recurrent`.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        num_layers: The number of layers.
        bias: Without it there are no biases.
        batch_first: x and the output are (B, T, I) rather than (T, B, I).
        dropout: The probability of dropping a feature between two layers while training.
        bidirectional: Run a second cell backwards; outputs side by side.
        device: Where the parameters are made.
        dtype: Their type.
        reset_after: True is torch.nn's form; False resets before the matrix product, as in the paper.
        **options: `activations` (keys "r", "z", "n") and `init`, see `anyrnn.cells.Cell`;
            and those of every layer, see `Recurrent`.

    Raises:
        AnyRNNError: for values out of range; in a call, for an x, state or lengths of another form.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.GRU(10, 20, batch_first=True, reset_after=False)
        >>> output, h = layer(torch.randn(3, 5, 10))
        >>> output.shape, h.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
    """

    cell_type = cells.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        **options: Unpack[NamedOptions],
    ) -> None:
        self.reset_after = reset_after
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype,
            reset_after=reset_after, **options,
        )  # fmt: skip


class PeepholeLSTM(CellLayer):
    """LSTM with peephole connections, whose gates also see the cell state, as a layer shaped like `torch.nn.LSTM`.

    The equations are those of `PeepholeLSTMCell`, gates in the order i, f, g, o, one bias a gate; shapes are those of
    `Recurrent`, the state being the tuple (h, c). Parameters are named as in torch.nn, with `weight_ch_l0` for the
    peepholes. A `torch.nn.LSTM` maps to it by ``bias_ih_l0 = bias_ih_l0 + bias_hh_l0`` and ``weight_ch_l0 = 0``.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        num_layers: The number of layers.
        bias: Without it there are no biases.
        batch_first: x and the output are (B, T, I) rather than (T, B, I).
        dropout: The probability of dropping a feature between two layers while training.
        bidirectional: Run a second cell backwards; outputs side by side.
        device: Where the parameters are made.
        dtype: Their type.
        output_sees_new_cell: True is the papers' equation; False is the tutorials' variant, in which the output gate
            sees the old cell state.
        **options: `activations` (keys "i", "f", "g", "o", "h"), `init` and `forget_bias`, see `anyrnn.cells.Cell`;
            and those of every layer, see `Recurrent`.

    Raises:
        AnyRNNError: for values out of range; in a call, for an x, state or lengths of another form.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.PeepholeLSTM(10, 20, bidirectional=True)
        >>> output, (h, c) = layer(torch.randn(5, 3, 10), lengths=[5, 0, 2])
        >>> output.shape, c.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    cell_type = cells.PeepholeLSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        output_sees_new_cell: bool = True,
        **options: Unpack[NamedOptions],
    ) -> None:
        self.output_sees_new_cell = output_sees_new_cell
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype,
            output_sees_new_cell=output_sees_new_cell, **options,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: State | None = None,
        *,
        lengths: Lengths | None = None,
        feedback: Callable[[Any], Tensor] | None = None,
        forced: Tensor | int | None = None,
        reset: Tensor | None = None,
        reset_to: State | None = None,
        record: Record = (),
        return_states: bool = False,
        checkpoint_every: int | None = None,
    ) -> Any:
        """Run the layer; see `Recurrent` for shapes. Returns the output, the final state, and what is asked for."""
        options = Options(
            lengths, record, return_states, None, None, feedback, forced, reset, reset_to, checkpoint_every
        )
        return self._apply_layer(x, state, options)
