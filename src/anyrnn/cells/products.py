"""The matrix products of a cell's step: seen, told apart by what they multiply, and replaced, whoever wrote the cell.

A step runs below a `TorchFunctionMode` that hands each product to a visitor: ``nn.Linear``, ``F.linear``, ``x @ W``,
``mm`` and ``addmm``. The kernels of torch.nn's cells, which show none, are run by their equations. `structure_of` runs
one step to find out which products make up gates, and what is multiplied: the step's input, its state, or both side by
side. Later steps are followed by order: `Visitor` is called with the products of gates, and with nothing else.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from anyrnn.cells.gru import GRUCell
from anyrnn.cells.lstm import LSTMCell
from anyrnn.cells.rnn import RNNCell
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import caching_nothing, outside_inference_mode, placement, shape_of
from anyrnn.randomness import own_random_numbers
from anyrnn.twin import twin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anyrnn.cells.base import Cell
    from anyrnn.protocol import ExtraForm, Signature, Size

#: The number of rows of the step that shows a cell's structure.
ROWS = 5


@dataclass(frozen=True)
class Product:
    """A matrix product in a step: operand (B, K), weight (R, K) as of `nn.Linear` or else (K, R), and a bias."""

    operand: Tensor
    weight: Tensor
    bias: Tensor | None
    is_linear: bool

    @property
    def sizes(self) -> tuple[int, int]:
        """R and K."""
        first, second = self.weight.shape
        return (first, second) if self.is_linear else (second, first)

    def parts(self, columns: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The operand and the weight, cut along K."""
        if len(columns) == 1:
            return [(self.operand, self.weight)]
        weights = self.weight.split(list(columns), dim=1 if self.is_linear else 0)
        return list(zip(self.operand.split(list(columns), dim=1), weights, strict=True))

    def times(self, operand: Tensor, weight: Tensor) -> Tensor:
        """Multiply a part with its weight: (B, R)."""
        return F.linear(operand, weight) if self.is_linear else operand @ weight

    def with_bias(self, total: Tensor) -> Tensor:
        """Add the bias, if there is one."""
        return total if self.bias is None else total + self.bias


@dataclass(frozen=True)
class Term:
    """What some columns of a gate's weight are multiplied by: the input, or something that depends on the state."""

    is_state: bool
    columns: int


@dataclass(frozen=True)
class Gate:
    """A product that leads to the new state: its terms, which are added, and its width R (maybe of several gates)."""

    terms: tuple[Term, ...]
    rows: int

    @property
    def has_input(self) -> bool:
        """Whether the input is multiplied."""
        return not all(term.is_state for term in self.terms)

    @property
    def has_state(self) -> bool:
        """Whether the state is."""
        return any(term.is_state for term in self.terms)

    def sums(self, product: Product) -> tuple[Tensor | None, Tensor | None]:
        """What the input contributes to a product, W x, and what the state does, U h: (B, R) each, without the bias."""
        sums: list[Tensor | None] = [None, None]
        for term, part in zip(self.terms, product.parts([term.columns for term in self.terms]), strict=True):
            value, known = product.times(*part), sums[term.is_state]
            sums[term.is_state] = value if known is None else known + value
        return sums[0], sums[1]


@dataclass(frozen=True)
class Structure:
    """The products and activations of a step, in order.

    Attributes:
        products: A gate for each product; None for one that is none, such as a product of weights, an output layer or
            a projection.
        arguments: The width of each activation's argument where that is a new state variable, as in tanh(c); else None.
    """

    products: tuple[Gate | None, ...]
    arguments: tuple[int | None, ...]

    @property
    def gates(self) -> list[Gate]:
        """The products that make up gates."""
        return [gate for gate in self.products if gate is not None]

    def __str__(self) -> str:
        """Describe what was found, for messages."""
        names = {(True, False): "the input", (False, True): "the state", (True, True): "both"}
        found = [f"{gate.rows} features from {names[gate.has_input, gate.has_state]}" for gate in self.gates]
        return f"{len(found)} ({', '.join(found)})" if found else "none"


class Visitor:
    """Follows one step of a cell of known structure. Subclasses say what becomes of gates, and of new states."""

    def __init__(self, cell: nn.Module, structure: Structure) -> None:
        self._cell = cell
        self._structure = structure
        self._products: Iterator[Gate | None] = iter(structure.products)
        self._arguments: Iterator[int | None] = iter(structure.arguments)

    def gate(self, gate: Gate, product: Product) -> Tensor:
        """Return what takes the place of a gate's product, its bias included."""
        raise NotImplementedError

    def new_state(self, state: Tensor) -> Tensor:
        """Return what takes the place of a new state where an activation reads it."""
        return state

    def product(self, product: Product, whole: Callable[[], Tensor]) -> Tensor:
        """Visit a product."""
        gate = next(self._products, self)
        if gate is None:
            return whole()
        if isinstance(gate, Gate) and product.sizes == (gate.rows, sum(term.columns for term in gate.terms)):
            return self.gate(gate, product)
        raise AnyRNNError(self._changed())

    def argument(self, value: Tensor) -> Tensor:
        """Visit the argument of an activation."""
        width = next(self._arguments, -1)
        if width is None:
            return value
        if value.shape[1:] != (width,):
            raise AnyRNNError(self._changed())
        return self.new_state(value)

    def finish(self) -> None:
        """Check that the step went all the way."""
        if next(self._products, self) is not self or next(self._arguments, -1) != -1:
            raise AnyRNNError(self._changed())

    def _changed(self) -> str:
        return (
            f"{type(self._cell).__name__}: its step has other products than when it was wrapped, which were "
            f"{self._structure}; expected the same ones in every step: wrap it again after a change"
        )


class Products(TorchFunctionMode):
    """A mode below which a visitor sees the products and activations of a step."""

    def __init__(self, visitor: Any) -> None:
        super().__init__()
        self._visitor = visitor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function, or have the visitor do it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in KERNELS:
            with self:  # which PyTorch has put aside meanwhile
                return step_of(KERNELS[name], *args, **kwargs)
        product = _PRODUCTS[name](*args, **kwargs) if name in _PRODUCTS else None
        if product is not None:
            return self._visitor.product(product, lambda: func(*args, **kwargs))
        if name in _ACTIVATIONS and args and isinstance(args[0], Tensor):
            args = (self._visitor.argument(args[0]), *args[1:])
        return func(*args, **kwargs)


def structure_of(
    cell: nn.Module, signature: Signature, input_size: Size, extras: Sequence[ExtraForm] = ()
) -> Structure:
    """Find the gates of a cell by running one step, on a twin of the cell. Further arguments count as its input."""
    survey = _Survey()
    with probing():
        given = made_up(cell, signature, input_size, extras)
        inputs = [given.x, *(t for _, t in given.extras if t.is_floating_point())]
        for tensor in (*inputs, *given.states):
            tensor.requires_grad_()
        with _Watching(survey):
            _, new = given.step(signature, twin_of(cell, to_probe=True))
        return survey.structure(inputs, given.states, new)


@dataclass(frozen=True)
class Given:
    """The arguments of a step."""

    x: Tensor
    states: tuple[Tensor, ...]
    extras: tuple[tuple[int | str, Tensor], ...]

    def step(self, signature: Signature, cell: nn.Module) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run a step on copies, since it may write into what it is given."""
        extras = [(key, tensor.clone()) for key, tensor in self.extras]
        return signature.step(cell, self.x.clone(), tuple(s.clone() for s in self.states), extras)


def made_up(cell: nn.Module, signature: Signature, input_size: Size, extras: Sequence[ExtraForm]) -> Given:
    """Random numbers from -1 to 1 for some rows, on a cell's device and in its type; ones for what has another type."""
    like = placement(cell)

    def numbers(*shape: int) -> Tensor:
        return torch.rand(shape, device=like.device, dtype=like.dtype) * 2 - 1

    with own_random_numbers():
        x, *states = (numbers(ROWS, *shape_of(size)) for size in (input_size, *signature.state_sizes))
        others = [
            (e.key, numbers(*e.lead(ROWS)) if e.dtype.is_floating_point else like.new_ones(e.lead(ROWS), dtype=e.dtype))
            for e in extras
        ]
        return Given(x, tuple(states), tuple(others))


@contextlib.contextmanager
def probing() -> Iterator[None]:
    """A context for steps that the user did not ask for, with gradients."""
    with outside_inference_mode(), torch.enable_grad(), own_random_numbers(), caching_nothing():
        yield


class _Survey:
    """A visitor that notes what there is."""

    def __init__(self) -> None:
        self.joined: dict[int, Sequence[Tensor]] = {}  # by the id of the result of `cat`
        self.others: list[tuple[str, Tensor]] = []  # results of functions that multiply in another way
        self._products: list[tuple[Product, Tensor, Any]] = []
        self._arguments: list[Tensor] = []
        self.alive: list[Any] = []  # so that no id is used twice

    def product(self, product: Product, whole: Callable[[], Tensor]) -> Tensor:
        result = whole()
        self._products.append((product, result, result.grad_fn))
        return result

    def argument(self, value: Tensor) -> Tensor:
        self._arguments.append(value)
        return value

    def structure(self, inputs: Sequence[Tensor], states: Sequence[Tensor], new: Sequence[Tensor]) -> Structure:
        """The structure, after the step."""
        roots = _Roots(inputs, states)
        reached = _nodes_below(*(s.grad_fn for s in new))
        for name, result in self.others:
            if result.grad_fn in reached and roots.has_state(result):
                msg = (
                    f"its gates are computed by `{name}`, expected products of a row with a matrix, which can be taken "
                    f"apart: nn.Linear, F.linear(h, W) or h @ W"
                )
                raise AnyRNNError(msg)
        products = []
        for product, result, node in self._products:
            is_gate = node in reached and not any(result is s for s in new)
            terms = tuple(self._terms(product.operand, roots)) if is_gate else ()
            depends = roots.has_input(product.operand) or roots.has_state(product.operand)
            is_weight = not (roots.has_input(product.weight) or roots.has_state(product.weight))
            products.append(Gate(terms, product.sizes[0]) if is_gate and depends and is_weight else None)
        arguments = [a.shape[1] if a.dim() == 2 and any(a is s for s in new) else None for a in self._arguments]
        return Structure(tuple(products), tuple(arguments))

    def _terms(self, operand: Tensor, roots: _Roots) -> Iterator[Term]:
        """The terms of a product: one for each tensor that was joined to its operand."""
        if id(operand) in self.joined:
            for part in self.joined[id(operand)]:
                yield from self._terms(part, roots)
        else:
            yield Term(roots.has_state(operand), operand.shape[1])


class _Watching(Products):
    """The mode of a survey, which sees `cat` as well, and products in other forms."""

    _visitor: _Survey

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function."""
        result = super().__torch_function__(func, types, args, kwargs)
        name, survey = getattr(func, "__name__", ""), self._visitor
        if not isinstance(result, Tensor):
            return result
        survey.alive.append(result)
        if name in ("cat", "concat", "concatenate", "hstack") and result.dim() == 2:
            tensors = args[0] if args else (kwargs or {})["tensors"]
            if [t.shape[0] for t in tensors] == [result.shape[0]] * len(tensors):  # side by side
                survey.joined[id(result)] = tensors
        if name in _OTHER_PRODUCTS or (name in _PRODUCTS and _PRODUCTS[name](*args, **(kwargs or {})) is None):
            survey.others.append((name, result))
        return result


class _Roots:
    """The inputs and the states of a step, to ask what depends on them."""

    def __init__(self, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        self._inputs, self._states = (
            {torch.autograd.graph.get_gradient_edge(t).node for t in tensors} for tensors in (inputs, states)
        )

    def has_input(self, tensor: Tensor) -> bool:
        return not _nodes_below(tensor.grad_fn).isdisjoint(self._inputs)

    def has_state(self, tensor: Tensor) -> bool:
        return not _nodes_below(tensor.grad_fn).isdisjoint(self._states)


def _nodes_below(*nodes: Any) -> set[Any]:
    """All nodes of the graph of autograd that lead to some."""
    found: set[Any] = set()
    stack = [node for node in nodes if node is not None]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [inner for inner, _ in node.next_functions if inner is not None]
    return found


# ---- How PyTorch's functions are called ----


def _linear(input: Any, weight: Any, bias: Any = None) -> Product | None:  # noqa: A002 - torch's name
    return _product(input, weight, bias, is_linear=True)


def _matmul(*args: Any, out: Any = None, **others: Any) -> Product | None:
    operands = (*args, *others.values())
    if len(operands) != 2 or out is not None:
        return None
    return _product(operands[0], operands[1], None, is_linear=False)


def _addmm(*args: Any, beta: Any = 1, alpha: Any = 1, out: Any = None, **others: Any) -> Product | None:
    bias, *operands = (*args, *others.values())
    if beta != 1 or alpha != 1 or out is not None or len(operands) != 2:
        return None
    return _product(operands[0], operands[1], bias, is_linear=False)


def _product(operand: Any, weight: Any, bias: Any, *, is_linear: bool) -> Product | None:
    are_matrices = all(isinstance(t, Tensor) and t.dim() == 2 for t in (operand, weight))
    return Product(operand, weight, bias, is_linear) if are_matrices else None


_PRODUCTS: Mapping[str, Callable[..., Product | None]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), _matmul),
    "addmm": _addmm,
}
_OTHER_PRODUCTS = frozenset(
    {"einsum", "bmm", "baddbmm", "addbmm", "tensordot", "bilinear", "mv", "addmv", "inner", "multi_dot", "__rmatmul__"}
)
_ACTIVATIONS = frozenset(
    {"tanh", "sigmoid", "relu", "relu6", "hardtanh", "hardsigmoid", "softsign", "elu", "selu", "celu", "gelu", "silu"}
    | {"leaky_relu", "softplus", "mish", "hardswish", "logsigmoid"}
)

#: For each kernel of a cell of torch.nn, that cell of this package, whose step is the kernel's equations.
KERNELS: Mapping[str, Cell] = {
    "lstm_cell": LSTMCell(1, 1, device="meta"),
    "gru_cell": GRUCell(1, 1, device="meta"),
    "rnn_tanh_cell": RNNCell(1, 1, device="meta"),
    "rnn_relu_cell": RNNCell(1, 1, nonlinearity="relu", device="meta"),
}


def step_of(
    cell: Cell,
    x: Tensor,
    hx: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Any = None,
    b_hh: Any = None,
) -> Any:
    """Compute what a kernel of torch.nn's cells does, by the equations of the cell of this package."""
    weights = {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh}
    return cell.bound(weights).step(x, hx)


def segments(*widths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a range where one of several sequences of widths, which have the same sum, has an end: (first, end) each."""
    ends = {0} | {sum(sequence[: k + 1]) for sequence in widths for k in range(len(sequence))}
    return list(pairwise(sorted(ends)))
