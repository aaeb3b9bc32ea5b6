"""`Recurrent`: a layer made from any cell, from a function that makes cells, or from a list with one for each layer.

What a cell takes and returns is found out when the layer is made, and again where the cell was changed or replaced.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from anyrnn.adapters import Stepped
from anyrnn.arguments import Options
from anyrnn.checks import check_sizes
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.probing import WrongOrderError, form_of, stated_sizes, takes
from anyrnn.protocol import Extra, ExtraForm, Form, Signature, Size, Sizes, State, shape_of, size_of
from anyrnn.stacks import Wiring
from anyrnn.traced import described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.nn.utils.rnn import PackedSequence

    from anyrnn.arguments import LayerOptions
    from anyrnn.checks import Context, Extras, Lengths, Record


Maker: TypeAlias = "nn.Module | Callable[[Any], nn.Module]"  # a cell, or a function from an input size to one


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

    * x (T, B, I), or (B, T, I) with batch_first, or (T, I) unbatched, or a `PackedSequence`;
    * state: a tensor (L*D, B, size), or a tuple of them, without B if unbatched; where the layers' states differ in
      size or number, a tuple of L states, each as that of one layer, (D, B, size) or a tuple of them;
    * lengths: (B,) integers from 0 to T, in any order;
    * inputs: what else the cells get at each step, (T, B, ...): one tensor, several in a tuple, or in a dict by the
      names of arguments of the cell's `forward`; in the order of x, (B, T, ...) with batch_first;
    * context: what they get that is the same at every step, (B, ...), likewise; ``anyrnn.shared(A)`` for a tensor that
      has no batch. All cells of a stack get the same, behind x and the state: first inputs, then context;
    * feedback: a function, or a module, that makes the x (B, ...) of the next step of an output (B, ...);
    * forced: with feedback, the steps that read x nevertheless: (T, B) true or false, or the number of first steps;
    * reset: (T, B) true or false, (B, T) with batch_first: before a step at which it is true, the row's state becomes
      the initial one of this call, and no gradient passes; as if the pieces were run apart. A second direction has the
      same pieces;
    * reset_to: the state that it becomes instead, of the form of `state`: ``layer.initial_state(B)`` where the call
      goes on from a state of other sequences;
    * record: names of local variables of the cell's `forward`, or of its methods that this calls, of `Recurrent.names`;
    * checkpoint_every: with k, the layer keeps the states between pieces of k steps only, and the backward pass runs
      each piece again: long sequences in little memory, the same results. It takes the forward pass once more, and a
      millisecond or two a piece;
    * output (T, B, D*O), or (T, B, O) if directions are added, zero at padded steps, in the structure in which the cell
      returns it; the state after each row's last valid step. With `record`, then a dict of what these variables hold
      when their method returns, zero at padded steps: (T, B, ...) for one layer in one direction, else (L*D, T, B,
      ...), or a tuple of L*D where the layers differ. With `return_states=True`, then the states after every step,
      (L*D, T, B, size), (L*D, B, T, size) if batch_first. Gradients pass through all of them.

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
