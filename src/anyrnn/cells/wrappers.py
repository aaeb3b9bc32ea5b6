"""Cells made of cells: normalised, projected, bridged, or with another way from the state to the gates.

A wrapper holds any cell as `cell`, whose parameters keep their names below ``cell.``, and is a cell itself: it can be
wrapped again, stacked, and run by every engine. What a wrapper does with a gate it does with every product of the
input or the state that leads to the new state, whoever wrote the cell (`products`).
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves

from anyrnn.cells.products import Gate, Product, Products, Visitor, made_up, probing, segments, structure_of
from anyrnn.checks import check_sizes, checked_extras
from anyrnn.errors import AnyRNNError
from anyrnn.probing import describe, stated_sizes, untold
from anyrnn.protocol import Size, Sizes, State, placement, shape_of, size_of
from anyrnn.randomness import own_random_numbers
from anyrnn.twin import twin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyrnn.checks import Context, Extras
    from anyrnn.protocol import ExtraForm


class Options(TypedDict, total=False):
    """What a wrapper may have to be told of its cell.

    Attributes:
        state_sizes: The size of the state, where the cell has neither `state_sizes` nor `hidden_size`.
        inputs: For a cell with further arguments that differ from step to step, an example of them as for the call of a
            layer, (T, B, ...); their shapes count, and T and B may be 1.
        context: The same for those that are one for a sequence, (B, ...), or `anyrnn.shared`.
    """

    state_sizes: Sizes | None
    inputs: Extras | None
    context: Context | None


class Wrapper(nn.Module):
    """The base of the wrappers: a cell, and the sizes that it and the wrapper have.

    Args:
        cell: Any cell: an `nn.Module` with ``forward(x, state)`` for one step.
        input_size: The number of features of x. It may be left out for a cell that has an `input_size`, or whose
            weights fit only one.
        **options: See `Options`.

    Attributes:
        extra_forms: The forms of further arguments.
    """

    def __init__(self, cell: nn.Module, input_size: Size | None = None, **options: Unpack[Options]) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(cell, nn.Module):
            cure = f"lambda input_size: {name}(MyCell(input_size, 64))"
            msg = f"{name}: got {cell!r}, expected a cell, an nn.Module; in a function that makes cells: {cure}"
            raise AnyRNNError(msg)
        self.cell = cell
        self.extra_forms = _forms(name, cell, options.get("inputs"), options.get("context"))
        state_sizes = options.get("state_sizes")
        self.input_size = _input_size(name, cell, input_size, state_sizes, self.extra_forms)
        self._signature = describe(cell, self.input_size, state_sizes, extras=self.extra_forms)
        if not self._signature.settled:
            raise AnyRNNError(untold(cell, self._signature))
        self.state_sizes = self._sizes(self._signature.state_sizes)
        self.output_size = self._signature.output_size

    def _sizes(self, sizes: tuple[Size, ...]) -> Any:
        """The sizes of state variables in the structure of the cell's state: one, or a tuple, named or not."""
        kind: Any = self._signature.kind
        if self._signature.bare:
            return sizes[0] if isinstance(sizes[0], int) else torch.Size(sizes[0])
        return sizes if kind is tuple else kind(*sizes)

    def _states(self, state: State) -> tuple[Tensor, ...]:
        return (state,) if isinstance(state, Tensor) else tuple(state)

    def _step(
        self, x: Tensor, states: tuple[Tensor, ...], extras: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run a step of the cell, however it is called: its outputs and its new states."""
        return self._signature.step(self.cell, x, states, [*enumerate(extras), *named.items()])


class Residual(Wrapper):
    r"""A cell whose output is bridged: :math:`y_t = \mathrm{cell}(x_t, s_{t-1}) + x_t`. The state stays the cell's own.

    Source: K. He et al., arXiv:1512.03385, for recurrent layers Y. Wu et al., arXiv:1609.08144, section 3.1. Between
    the layers of a stack, `Recurrent` does the same with ``connect="residual"``.

    Args:
        cell: Any cell, whose output has as many features as x.
        input_size: I, the number of features of x; see `anyrnn.cells.Wrapper` for when it may be left out.
        **options: `state_sizes`, `inputs` and `context`, of the cell, see `anyrnn.cells.wrappers.Options`.

    Raises:
        AnyRNNError: for a cell outside the protocol, and if the widths of x and the output differ.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.Recurrent(anyrnn.Residual(torch.nn.GRUCell(8, 8)))
        >>> output, h = layer(torch.zeros(5, 2, 8))
        >>> bool((output[-1] == h[0]).all())  # since x is zero
        True
    """

    def __init__(self, cell: nn.Module, input_size: Size | None = None, **options: Unpack[Options]) -> None:
        super().__init__(cell, input_size, **options)
        if self.output_size != self.input_size:
            msg = (
                f"Residual: the output of {type(cell).__name__} has {self.output_size} features and x has "
                f"{self.input_size}, expected equal, since they are added; Projected(cell, {self.input_size}) makes "
                f"an output of that width"
            )
            raise AnyRNNError(msg)

    def forward(self, x: Tensor, state: State, *extras: Tensor, **named: Tensor) -> tuple[Any, State]:
        """Compute one step: the output plus x, and the new state."""
        (output, *others), new = self._step(x, self._states(state), extras, named)
        return self._signature.wrap_outputs((output + x, *others)), self._signature.wrap(new)


class Projected(Wrapper):
    r"""A cell whose first state variable is projected after each step, as in an LSTM with a projection (LSTMP).

    .. math:: m_t, \ldots = \mathrm{cell}(x_t, (r_{t-1}, \ldots)) \qquad r_t = R\, m_t

    The state holds :math:`r` (B, P) in the place of the first variable (B, H). The next step reads it there, in the
    first P of the H columns, with zeros in the others: of a recurrent matrix, the first P columns count. For an LSTM
    this is `torch.nn.LSTM(..., proj_size=P)` with ``weight_hh = cell.weight_hh[:, :P]``. The output is :math:`r` where
    it was the first state variable, else what it was.

    Source: H. Sak, A. Senior and F. Beaufays, Interspeech 2014, without their peepholes and their second, non-recurrent
    projection.

    Parameters: `weight_hr` (P, H) is :math:`R`, named as in torch.nn; it starts in U(-1/sqrt(H), 1/sqrt(H)), as there.

    Args:
        cell: Any cell.
        size: P, at most H.
        input_size: I, the number of features of x; see `anyrnn.cells.Wrapper` for when it may be left out.
        **options: `state_sizes`, `inputs` and `context`, of the cell, see `anyrnn.cells.wrappers.Options`.

    Raises:
        AnyRNNError: for a cell outside the protocol, and a size that is not from 1 to H.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.Recurrent(anyrnn.Projected(torch.nn.LSTMCell(3, 8), 4))
        >>> output, (r, c) = layer(torch.randn(5, 2, 3))
        >>> output.shape, r.shape, c.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]), torch.Size([1, 2, 8]))
    """

    def __init__(
        self,
        cell: nn.Module,
        size: int,
        input_size: Size | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(cell, input_size, **options)
        check_sizes("Projected", size=size)
        H, *others = self._signature.state_sizes
        if not isinstance(H, int) or size > H:
            msg = f"Projected: got size={size}, expected at most {H}, the size of the first state of the cell"
            raise AnyRNNError(msg)
        like = placement(cell)
        self.weight_hr = nn.Parameter(torch.empty(size, H, device=like.device, dtype=like.dtype))
        self.state_sizes = self._sizes((size, *others))
        self._missing = H - size
        if not self._signature.has_output:
            self.output_size = size
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projection anew; the cell stays as it is."""
        bound = 1 / math.sqrt(self.weight_hr.shape[1])
        nn.init.uniform_(self.weight_hr, -bound, bound)

    def forward(self, x: Tensor, state: State, *extras: Tensor, **named: Tensor) -> State | tuple[Any, State]:
        """Compute one step."""
        r, *others = self._states(state)
        whole = torch.cat((r, r.new_zeros(r.shape[0], self._missing)), dim=1)  # (B, H)
        with Products(_Reading(r, whole)):
            outputs, (m, *others) = self._step(x, (whole, *others), extras, named)
        new = self._signature.wrap((F.linear(m, self.weight_hr), *others))
        return (self._signature.wrap_outputs(outputs), new) if self._signature.has_output else new

    def extra_repr(self) -> str:
        """Show the size."""
        return f"size={self.weight_hr.shape[0]}"


class _Reading:
    """A visitor that leaves the zeros beside r out of products with a matrix."""

    def __init__(self, r: Tensor, whole: Tensor) -> None:
        self._r, self._whole = r, whole

    def product(self, product: Product, whole: Callable[[], Tensor]) -> Tensor:
        """Multiply r with the columns that it meets."""
        if product.operand is not self._whole:
            return whole()
        size = self._r.shape[1]
        (_, weight), _ = product.parts([size, self._whole.shape[1] - size])
        return product.with_bias(product.times(self._r, weight))

    def argument(self, value: Tensor) -> Tensor:
        """Leave an activation as it is."""
        return value


class GateWrapper(Wrapper):
    """The base of wrappers that act on the products of which a cell's gates are made."""

    def __init__(self, cell: nn.Module, input_size: Size | None = None, **options: Unpack[Options]) -> None:
        super().__init__(cell, input_size, **options)
        try:
            self._structure = structure_of(cell, self._signature, self.input_size, self.extra_forms)
        except AnyRNNError as cause:
            msg = f"{type(self).__name__}: {type(cell).__name__} cannot be wrapped: {cause}"
            raise AnyRNNError(msg) from cause

    def forward(self, x: Tensor, state: State, *extras: Tensor, **named: Tensor) -> State | tuple[Any, State]:
        """Compute one step of the cell, with other products: returns its output, if it has one, and the new state."""
        visitor = self._visitor()
        with Products(visitor):
            outputs, new = self._step(x, self._states(state), extras, named)
        visitor.finish()
        wrapped = self._signature.wrap(new)
        return (self._signature.wrap_outputs(outputs), wrapped) if self._signature.has_output else wrapped

    @abstractmethod
    def _visitor(self) -> Visitor:
        """What replaces the products of one step."""

    def _refuse(self, expected: str) -> None:
        msg = (
            f"{type(self).__name__}: got a {type(self.cell).__name__} whose gates are these products: "
            f"{self._structure}; expected {expected}"
        )
        raise AnyRNNError(msg)


class LayerNormed(GateWrapper):
    r"""A cell with layer normalisation of its gates: what the input and the state contribute is normalised, each apart.

    In every gate, or gates computed side by side by one product, with the bias b of that product,

    .. math:: W x_t + U h_{t-1} + b \quad\text{becomes}\quad LN(W x_t; \alpha) + LN(U h_{t-1}; \beta) + b

    and a new state variable that an activation reads is normalised for it, as the cell state of an LSTM is:

    .. math:: h_t = o_t \circ \tanh(LN(c_t; \gamma, \delta))

    For an `LSTMCell` and a `GRUCell` these are the equations of haste's `LayerNormLSTM` and `LayerNormGRU`, with the
    gates of torch.nn's order: one mean and one variance over all gates side by side. In a cell with a product for each
    gate, each is normalised by itself.

    Source: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450, eqs. 20-22 (LSTM) and
    23-26 (GRU). Deviations: no shift but the cell's own bias, which is added after the normalisation, as in haste. A
    projection of the state or an output layer is no gate, and stays as it is.

    Parameters: `input_norms.0.weight`, ... and `state_norms.0.weight`, ..., the gains of the products in the order of
    the step, as wide as these; `new_state_norms.0.weight` and `.bias` for new states that activations read. Gains
    start at 1 and shifts at 0.

    Args:
        cell: Any cell whose gates are products of the input and the state with matrices.
        input_size: I, the number of features of x; see `anyrnn.cells.Wrapper` for when it may be left out.
        eps: Added to the variance, as in `torch.nn.LayerNorm`.
        new_state: Normalise new states for activations, too.
        **options: `state_sizes`, `inputs` and `context`, of the cell, see `anyrnn.cells.wrappers.Options`.

    Raises:
        AnyRNNError: for a cell outside the protocol, or one without such a product; in a step, if its products differ
            from those when it was wrapped.

    Example:
        >>> import torch, anyrnn
        >>> cell = anyrnn.LayerNormed(torch.nn.LSTMCell(3, 5))
        >>> for name in ("input_norms", "state_norms", "new_state_norms"):
        ...     print([(key, *p.shape) for key, p in cell.named_parameters() if key.startswith(name)])
        [('input_norms.0.weight', 20)]
        [('state_norms.0.weight', 20)]
        [('new_state_norms.0.weight', 5), ('new_state_norms.0.bias', 5)]
    """

    def __init__(
        self,
        cell: nn.Module,
        input_size: Size | None = None,
        *,
        eps: float = 1e-5,
        new_state: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(cell, input_size, **options)
        gates = self._structure.gates
        if not gates:
            self._refuse("a product of the input or the state with a matrix, which can be normalised")
        like = placement(cell)
        kind: Any = {"eps": eps, "device": like.device, "dtype": like.dtype}
        self.input_norms = nn.ModuleList(nn.LayerNorm(g.rows, bias=False, **kind) for g in gates if g.has_input)
        self.state_norms = nn.ModuleList(nn.LayerNorm(g.rows, bias=False, **kind) for g in gates if g.has_state)
        widths = [width for width in self._structure.arguments if width is not None] if new_state else []
        self.new_state_norms = nn.ModuleList(nn.LayerNorm(width, **kind) for width in widths)

    def reset_parameters(self) -> None:
        """Set gains to 1 and shifts to 0; the cell stays as it is."""
        for norm in (*self.input_norms, *self.state_norms, *self.new_state_norms):
            norm.reset_parameters()

    def _visitor(self) -> Visitor:
        return _Normalising(self)


class _Normalising(Visitor):
    """Normalises the products of a step."""

    def __init__(self, wrapper: LayerNormed) -> None:
        super().__init__(wrapper.cell, wrapper._structure)
        self._norms: tuple[Iterator[Any], ...] = iter(wrapper.input_norms), iter(wrapper.state_norms)
        self._new_state_norms: Iterator[Any] = iter(wrapper.new_state_norms)

    def gate(self, gate: Gate, product: Product) -> Tensor:
        """Normalise what the input and the state contribute, each apart, and add them and the bias."""
        pairs = zip(self._norms, gate.sums(product), strict=True)
        first, *others = [next(norms)(value) for norms, value in pairs if value is not None]
        return product.with_bias(first + others[0] if others else first)

    def new_state(self, state: Tensor) -> Tensor:
        """Normalise a new state for the activation that reads it."""
        norm = next(self._new_state_norms, None)
        return state if norm is None else norm(state)


class IndependentRecurrence(GateWrapper):
    r"""A cell whose units do not see each other's states: a vector in the place of each recurrent matrix (IndRNN).

    .. math:: U h_{t-1} \quad\text{becomes}\quad u \circ h_{t-1}

    with a vector for each gate, so that a unit's gates see that unit's state and nothing of its neighbours. What sees
    them all is the next layer's input. Applied to an `RNNCell` this is the IndRNN.

    Source: S. Li, W. Li, C. Cook, C. Zhu and Y. Gao, "Independently recurrent neural network (IndRNN)",
    arXiv:1803.04831, eq. 2, for any cell. :math:`u` starts in U(-1, 1); the paper bounds it by a root of the length of
    the sequences, which is left to you: ``layer.cell().recurrent[0].data.clamp_(-bound, bound)``.

    Parameters: `recurrent.0`, ... (R,): :math:`u` for each product with the state, in the order of the step, as wide as
    the product: the gates side by side. A recurrent matrix that nothing reads any longer stays where it was, below
    ``cell.``, and is frozen (``requires_grad=False``).

    Args:
        cell: Any cell whose gates are products of the state with matrices, and whose state variables and gates are of
            one size.
        input_size: I, the number of features of x; see `anyrnn.cells.Wrapper` for when it may be left out.
        **options: `state_sizes`, `inputs` and `context`, of the cell, see `anyrnn.cells.wrappers.Options`.

    Raises:
        AnyRNNError: for a cell outside the protocol, or one without such a product; in a step, if its products differ
            from those when it was wrapped.

    Example:
        >>> import torch, anyrnn
        >>> cell = anyrnn.IndependentRecurrence(torch.nn.RNNCell(3, 5, nonlinearity="relu"))
        >>> x, h = torch.randn(2, 3), torch.randn(2, 5)
        >>> wx = torch.nn.functional.linear(x, cell.cell.weight_ih, cell.cell.bias_ih + cell.cell.bias_hh)
        >>> torch.allclose(cell(x, h), torch.relu(wx + cell.recurrent[0] * h), atol=1e-6)
        True
    """

    def __init__(self, cell: nn.Module, input_size: Size | None = None, **options: Unpack[Options]) -> None:
        super().__init__(cell, input_size, **options)
        sizes, gates = self._signature.state_sizes, self._structure.gates
        terms = [(gate, term) for gate in gates for term in gate.terms if term.is_state]
        size = sizes[0] if isinstance(sizes[0], int) else 0
        are_equal = size and all(other == size for other in sizes)
        if not are_equal or not terms or any(gate.rows % size or term.columns != size for gate, term in terms):
            self._refuse(
                f"at least one of the state, each of {size} features and giving whole gates of {size}, and all state "
                f"variables of that size: they are {', '.join(map(str, sizes))}"
            )
        like = placement(cell)
        self.recurrent = nn.ParameterList(
            nn.Parameter(torch.empty(gate.rows, device=like.device, dtype=like.dtype)) for gate, _ in terms
        )
        self.reset_parameters()
        for parameter in _unread(self):
            parameter.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Draw the vectors anew, from U(-1, 1); the cell stays as it is."""
        for u in self.recurrent:
            nn.init.uniform_(u, -1.0, 1.0)

    def _visitor(self) -> Visitor:
        return _Separating(self)


class _Separating(Visitor):
    """Multiplies the state by vectors."""

    def __init__(self, wrapper: IndependentRecurrence) -> None:
        super().__init__(wrapper.cell, wrapper._structure)
        self._vectors = iter(wrapper.recurrent)

    def gate(self, gate: Gate, product: Product) -> Tensor:
        """Put u * h, for all gates side by side, in the place of U h."""
        total: Tensor | None = None
        for term, (operand, weight) in zip(
            gate.terms, product.parts([term.columns for term in gate.terms]), strict=True
        ):
            if term.is_state:
                count = gate.rows // term.columns
                value = next(self._vectors) * (torch.cat([operand] * count, dim=1) if count > 1 else operand)
            else:
                value = product.times(operand, weight)
            total = value if total is None else total + value
        assert total is not None
        return product.with_bias(total)


class MultiplicativeIntegration(GateWrapper):
    r"""A cell whose gates multiply what the input and the state contribute, beside adding them.

    .. math::
        W x_t + U h_{t-1} + b \quad\text{becomes}\quad
        \alpha \circ W x_t \circ U h_{t-1} + \beta_1 \circ U h_{t-1} + \beta_2 \circ W x_t + b

    Source: Y. Wu, S. Zhang, Y. Zhang, Y. Bengio and R. Salakhutdinov, "On multiplicative integration with recurrent
    neural networks", arXiv:1606.06630, eq. 4, in every gate. Where a gate multiplies :math:`U h` by another gate first,
    as a GRU does that resets after the product, the products are of W x and that.

    Parameters: `alpha`, `beta1`, `beta2` (G,), G being the width of all gates side by side, in the order of the step:
    first those with the input and the state joined in one product, then the others. They start at `alpha` and `beta`;
    the paper has other numbers for each task. With ``alpha=0`` the cell starts as it was.

    Args:
        cell: Any cell whose gates are sums of a product of the input and one of the state, or products of both joined.
        input_size: I, the number of features of x; see `anyrnn.cells.Wrapper` for when it may be left out.
        alpha: The initial value of :math:`\alpha`.
        beta: The initial value of :math:`\beta_1` and :math:`\beta_2`.
        **options: `state_sizes`, `inputs` and `context`, of the cell, see `anyrnn.cells.wrappers.Options`.

    Raises:
        AnyRNNError: for a cell outside the protocol, or one whose gates are no such sums; in a step, if its products
            differ from those when it was wrapped.

    Example:
        >>> import torch, anyrnn
        >>> cell = anyrnn.MultiplicativeIntegration(torch.nn.RNNCell(3, 5, bias=False), beta=0.5)
        >>> x, h = torch.randn(2, 3), torch.randn(2, 5)
        >>> a, b = x @ cell.cell.weight_ih.T, h @ cell.cell.weight_hh.T
        >>> torch.allclose(cell(x, h), torch.tanh(a * b + 0.5 * b + 0.5 * a), atol=1e-6)
        True
    """

    def __init__(
        self,
        cell: nn.Module,
        input_size: Size | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(cell, input_size, **options)
        gates = self._structure.gates
        joined = [g.rows for g in gates if g.has_input and g.has_state]
        of_input = [g.rows for g in gates if not g.has_state]
        of_state = [g.rows for g in gates if not g.has_input]
        if not gates or sum(of_input) != sum(of_state):
            self._refuse("for each gate one of the input and one of the state, or one of both joined by torch.cat")
        self._joined = sum(joined)
        self._segments = segments(of_input, of_state)
        self._initial = float(alpha), float(beta)
        like = placement(cell)
        self.alpha, self.beta1, self.beta2 = (
            nn.Parameter(torch.empty(self._joined + sum(of_input), device=like.device, dtype=like.dtype))
            for _ in range(3)
        )
        self.reset_parameters()
        if of_input and not like.is_meta:
            self._check_sums()

    def reset_parameters(self) -> None:
        """Set the vectors to their initial values; the cell stays as it is."""
        alpha, beta = self._initial
        for vector, number in ((self.alpha, alpha), (self.beta1, beta), (self.beta2, beta)):
            nn.init.constant_(vector, number)

    def _visitor(self) -> Visitor:
        return _Multiplying(self)

    def _check_sums(self) -> None:
        """Check that the products that are taken together are added in the step, maybe one of them through a gate.

        Then what one of them gains and the other loses, divided by that gate, changes nothing.
        """
        with probing():
            given = made_up(self.cell, self._signature, self.input_size, self.extra_forms)
            given.x.requires_grad_()
            for state in given.states:
                state.requires_grad_()
            twin = twin_of(self.cell, to_probe=True)

            def step(visitor: _Shifting) -> tuple[Tensor, ...]:
                with own_random_numbers(), Products(visitor):  # the same numbers in each run
                    return given.step(self._signature, twin)[1]

            plain = _Shifting(self)
            new = step(plain)
            pairs = plain.pairs()
            total = sum((s * torch.linspace(1, 2, s.shape[-1]).to(s)).sum() for s in new)
            gradients = torch.autograd.grad(total, [v for pair in pairs for v in pair], allow_unused=True)  # type: ignore[arg-type]
            shifts = [_opposite(*gradients[k : k + 2]) for k in range(0, len(gradients), 2)]
            shifted = step(_Shifting(self, shifts))
            tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(given.x.dtype, 0.1)
            if not all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(new, shifted, strict=True)):
                self._refuse("for each gate one of the input and one of the state, in the same order, which are added")


class _Paired(Visitor):
    """Follows which products of the input and the state belong together: joined in one, or in the same order."""

    def __init__(self, wrapper: MultiplicativeIntegration) -> None:
        super().__init__(wrapper.cell, wrapper._structure)
        self._wrapper = wrapper
        self._joined = 0  # how many features of joined products have been seen
        self._apart = [0, 0]  # how many of products of the input, and of the state

    def gate(self, gate: Gate, product: Product) -> Tensor:
        """Put the value of `both` or, of its pieces, of `piece` in the place of a product."""
        of_input, of_state = gate.sums(product)
        if of_input is not None and of_state is not None:
            first, self._joined = self._joined, self._joined + gate.rows
            return product.with_bias(self.both((first, self._joined), of_input, of_state))
        value, is_state = (of_input, False) if of_state is None else (of_state, True)
        assert value is not None
        first, end = self._apart[is_state], self._apart[is_state] + gate.rows
        self._apart[is_state] = end
        places = [place for place in self._wrapper._segments if first <= place[0] < end]
        values = value.split([high - low for low, high in places], dim=1) if len(places) > 1 else (value,)
        pieces = [self.piece(place, is_state, v) for place, v in zip(places, values, strict=True)]
        return product.with_bias(torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0])

    @abstractmethod
    def both(self, place: tuple[int, int], of_input: Tensor, of_state: Tensor) -> Tensor:
        """Integrate W x and U h of a joined product."""

    @abstractmethod
    def piece(self, place: tuple[int, int], is_state: bool, value: Tensor) -> Tensor:
        """Return what takes the place of W x or U h; the results for the two are added by the cell."""


class _Multiplying(_Paired):
    """Multiplies the products of the input and the state."""

    def __init__(self, wrapper: MultiplicativeIntegration) -> None:
        super().__init__(wrapper)
        self._first: dict[tuple[int, int], Tensor] = {}  # of each pair, the one that was computed first

    def both(self, place: tuple[int, int], of_input: Tensor, of_state: Tensor) -> Tensor:
        """Compute α a b + β₁ b + β₂ a."""
        alpha, beta1, beta2 = (self._vector(name, place) for name in ("alpha", "beta1", "beta2"))
        return (alpha * of_input + beta1) * of_state + beta2 * of_input

    def piece(self, place: tuple[int, int], is_state: bool, value: Tensor) -> Tensor:
        """Compute β a for the first of a pair, and (α a + β) b for the second."""
        place = place[0] + self._wrapper._joined, place[1] + self._wrapper._joined
        beta = self._vector("beta1" if is_state else "beta2", place)
        first = self._first.pop(place, None)
        if first is None:
            self._first[place] = value
            return beta * value
        return (self._vector("alpha", place) * first + beta) * value

    def _vector(self, name: str, place: tuple[int, int]) -> Tensor:
        vector: Tensor = getattr(self._wrapper, name)
        return vector if place == (0, len(vector)) else vector[place[0] : place[1]]


class _Shifting(_Paired):
    """Leaves the products as they are, or adds to those that are apart."""

    def __init__(self, wrapper: MultiplicativeIntegration, shifts: list[tuple[Tensor, Tensor]] | None = None) -> None:
        super().__init__(wrapper)
        self._values: dict[tuple[tuple[int, int], bool], Tensor] = {}
        self._shifts = dict(zip(wrapper._segments, shifts or (), strict=False))

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """What the input and the state contributed, in the order of `segments`."""
        return [(self._values[place, False], self._values[place, True]) for place in self._wrapper._segments]

    def both(self, place: tuple[int, int], of_input: Tensor, of_state: Tensor) -> Tensor:
        """Add."""
        return of_input + of_state

    def piece(self, place: tuple[int, int], is_state: bool, value: Tensor) -> Tensor:
        """Note a value, and shift it."""
        self._values[place, is_state] = value
        return value + self._shifts[place][is_state] if place in self._shifts else value


def _opposite(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Shifts of two values that leave their weighted sum as it is; the arguments are a result's gradients by them."""
    if a is None or b is None:
        return torch.zeros(()), torch.zeros(())
    shift = torch.where((a != 0) & (b != 0), 0.1, 0.0).to(a.dtype)
    return shift, torch.where(shift != 0, -shift * a / b, 0.0)


# ---- Sizes, and parameters that nothing reads ----


def _forms(name: str, cell: nn.Module, inputs: Extras | None, context: Context | None) -> tuple[ExtraForm, ...]:
    """The forms of further arguments, from examples."""
    firsts = [next((t for t in tree_leaves(each) if isinstance(t, Tensor)), None) for each in (inputs, context)]
    of_input, of_context = (() if t is None else tuple(t.shape) for t in firsts)
    T, B = of_input[:2] if len(of_input) > 1 else (1, *of_context[:1]) if of_context else (1, 1)
    return tuple(e.form for e in checked_extras(name, inputs, context, (T, B), placement(cell)))


def _input_size(
    name: str, cell: nn.Module, given: Size | None, state_sizes: Sizes | None, extras: tuple[ExtraForm, ...]
) -> Size:
    """The number of features of x, or its shape: given, the cell's own, or the only one that its weights fit."""
    if given is not None:
        for size in shape_of(given):
            check_sizes(name, input_size=size)
        return size_of(shape_of(given))
    declared = getattr(cell, "input_size", None)
    if isinstance(declared, int | tuple):
        return size_of(shape_of(declared))
    sizes = stated_sizes(cell) if state_sizes is None else state_sizes
    lazy = any(isinstance(p, UninitializedParameter) for p in cell.parameters())
    fitting = [] if lazy or sizes is None else [n for n in _widths(cell, sizes) if _fits(cell, n, state_sizes, extras)]
    if len(fitting) != 1:
        fits = f"{' and '.join(map(str, fitting))} features fit it" if fitting else "its weights do not tell it"
        msg = (
            f"{name}: got a {type(cell).__name__} without `input_size`, and {fits}; expected input_size=, the number "
            f"of features of x" + ("" if sizes is not None else ", and state_sizes=, the size of its state")
        )
        raise AnyRNNError(msg)
    return fitting[0]


def _widths(cell: nn.Module, sizes: Sizes) -> list[int]:
    """The numbers of features that may be those of x: sizes of the weights, less those of states beside x."""
    states = (sizes,) * 4 if isinstance(sizes, int) else [n for size in sizes for n in shape_of(size)]
    beside = {0, *states, *itertools.accumulate(states)}
    of_weights = {size for weight in cell.parameters() if weight.dim() == 2 for size in weight.shape}
    return sorted({width - other for width in of_weights for other in beside if width > other})


def _fits(cell: nn.Module, input_size: int, state_sizes: Sizes | None, extras: tuple[ExtraForm, ...]) -> bool:
    try:
        describe(cell, input_size, state_sizes, extras=extras)
    except AnyRNNError:
        return False
    return True


def _unread(wrapper: IndependentRecurrence) -> list[nn.Parameter]:
    """The parameters of a cell that its step read, and does not any longer."""
    names = _read(wrapper.cell, wrapper) - {name.removeprefix("cell.") for name in _read(wrapper, wrapper)}
    return [parameter for name, parameter in wrapper.cell.named_parameters() if name in names]


def _read(cell: nn.Module, wrapper: Wrapper) -> set[str]:
    """The names of the parameters on which the result of a step depends, of those that have a gradient."""
    with probing():
        twin = twin_of(cell, to_probe=True)
        given = made_up(cell, wrapper._signature, wrapper.input_size, wrapper.extra_forms)
        outputs, new = given.step(wrapper._signature, twin)
        parameters = {name: p for name, p in twin.named_parameters() if p.requires_grad}
        total = torch.stack([result.sum() for result in (*outputs, *new)]).sum()
        if not parameters or not total.requires_grad:
            return set()
        gradients = torch.autograd.grad(total, [*parameters.values()], allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
