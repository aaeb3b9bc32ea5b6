"""The gradients of a loop: its backward program by a kernel, and the large products after it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from anyrnn.compiler.node import evaluate
from anyrnn.runtime.kernel import Rows
from anyrnn.runtime.layout import padded_rows
from anyrnn.runtime.memory import empty
from anyrnn.runtime.sums import Product, Sums

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anyrnn.compiler.derive import Term
    from anyrnn.runtime.kernel import Backend
    from anyrnn.runtime.layout import Layout
    from anyrnn.runtime.loop import Loop

_LARGE = 1 << 21  # multiplications


@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass has saved for the backward pass.

    Attributes:
        loop, layout, backend: The loop, the rows of its batch, and what ran it.
        inputs: The streams, rows, initial states, vectors and matrices, by name.
        residuals: The states of all steps and the residuals of the program, by name.
        from_zero: The initial states are zero.
    """

    loop: Loop
    layout: Layout
    backend: Backend
    inputs: Mapping[str, Tensor]
    residuals: Mapping[str, Tensor]
    from_zero: bool

    def row_index(self, stream: str) -> Tensor | None:
        """Where the packed rows are in a stream; None if they are all there is, in this order."""
        padded = self.layout.is_ragged and self.loop.derivative.forward[stream].place == "padded"
        return self.layout.packed_index if padded else None

    def transposed_matrix(self, term: Term) -> Tensor:
        """The part of a matrix that a product reads, transposed (cols, rows)."""
        matrix = self.inputs[term.matrix]
        turned = matrix if term.matrix in self.loop.transposed else matrix.t()
        if turned.shape == (term.cols, term.rows):
            return turned
        return turned[term.col : term.col + term.cols, term.row : term.row + term.rows]


def backward(
    saved: ForwardPass, grads_out: Mapping[str, Tensor], needed: Collection[str], sums: Sums | None = None
) -> dict[str, Tensor]:
    """Return the gradients of the inputs of a loop.

    Args:
        saved: The forward pass.
        grads_out: The gradients of outputs and final states, by name, as far as there are any.
        needed: The inputs whose gradients are wanted; those of others may be missing.
        sums: If this is a piece of a sequence, the sums over those after it; they are updated. What is returned of
            rows, vectors and matrices are then the sums so far, complete with the piece that the sequence begins with.
            If None, they are those of this piece alone.
    """
    is_last = sums is None or not saved.layout.is_continued
    sums = Sums() if sums is None else sums
    loop, layout, derivative = saved.loop, saved.layout, saved.loop.derivative
    like = saved.inputs[loop.states[0]]
    arrays = {**saved.inputs, **saved.residuals}
    for role, name, gradient, width in loop.incoming:
        grad = grads_out.get(name)
        if role == "output":
            arrays[gradient] = like.new_zeros(layout.T, layout.B, width) if grad is None else grad.contiguous()
        else:  # copied: the loop works in place
            arrays[gradient] = like.new_zeros(layout.B, width) if grad is None else _copied(grad)
    for name, width in loop.accumulated:
        known = sums.rows.get(name)
        arrays[name] = sums.rows[name] = like.new_zeros(layout.B, width) if known is None else known
    for name, place, width in loop.outgoing:
        packed = place == "packed"
        arrays[name] = empty(like, layout.total, width) if packed else padded_rows(layout, like, width)
    unwanted = frozenset(gradient for name, gradient in loop.contracted.items() if name not in needed)
    kernel = loop.kernel("backward", like, saved.backend, unwanted)
    bound = kernel.bind(layout, arrays, saved.inputs, loop.transposed, sums.totals)
    totals = bound.launch()
    sums.totals = bound.totals
    grads_in = {
        name: (totals if gradient in totals else arrays)[gradient]
        for name, gradient in derivative.gradients.items()
        if gradient not in unwanted
    }
    for group in derivative.terms:
        grad = arrays[group[0].gradient]
        for term in group:
            if term.matrix in needed:
                _add_weight_gradient(saved, term, grad, sums, is_last)
        operand = group[0].operand
        if operand in needed and derivative.forward[operand].role == "stream":
            grads_in[operand] = _stream_gradient(saved, group, grad, grads_in.get(operand))
    if loop.apart and is_last:
        _add_apart(loop, sums)
    grads_in.update(sums.matrices)
    for name in needed:
        like = saved.inputs[name]
        grads_in[name] = _shaped(grads_in[name], like.shape) if name in grads_in else torch.zeros_like(like)
    return grads_in


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _shaped(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else tensor.view(shape)


def _add_weight_gradient(saved: ForwardPass, term: Term, grad: Tensor, sums: Sums, is_last: bool) -> None:
    """Add a product's share to the gradient of its matrix: its operand, transposed, times the product's gradient."""
    product = sums.products.get(term)
    if product is None:
        product = sums.products[term] = _new_product(saved, term, sums)
    rows, starts = _paired_rows(saved, term, grad)
    if term.matrix in saved.loop.transposed:
        rows, starts = rows[::-1], starts[::-1]
    product.add_rows(rows, is_last)
    if starts:
        product.add_starts(starts, is_last)


def _new_product(saved: ForwardPass, term: Term, sums: Sums) -> Product:
    """The weight-gradient GEMM of a term, into the gradient of its matrix, or into memory of its own."""
    loop, backend = saved.loop, saved.backend
    # In memory the steps go up; the rows that read states in a ragged batch are listed in the order of the steps.
    listed = saved.layout.is_ragged and loop.derivative.forward[term.operand].role not in ("residual", "stream")
    last_first = listed or not saved.layout.reverse
    turned = term.matrix in loop.transposed
    if term in loop.apart:
        shape = (term.cols, term.rows) if turned else (term.rows, term.cols)
        return Product(backend, saved.inputs[term.matrix].new_empty(shape), 0, 0, False, last_first)
    matrix = loop.program[term.matrix]
    whole = (term.rows, term.cols) == (matrix.rows, matrix.width)
    if matrix.name not in sums.matrices:
        make = torch.empty_like if whole else torch.zeros_like
        gradient = make(saved.inputs[matrix.name], memory_format=torch.contiguous_format)
        sums.matrices[matrix.name] = gradient
    row, column = (term.col, term.row) if turned else (term.row, term.col)
    return Product(backend, sums.matrices[matrix.name], row, column, not whole, last_first)


def _add_apart(loop: Loop, sums: Sums) -> None:
    """Add up the terms of a matrix whose gradients were summed up apart."""
    for term, product in sums.products.items():
        if term in loop.apart:
            row, column = (term.col, term.row) if term.matrix in loop.transposed else (term.row, term.col)
            height, width = product.out.shape
            sums.matrices[term.matrix][row : row + height, column : column + width] += product.out


_Pair: TypeAlias = "tuple[Rows, ...]"


def _paired_rows(saved: ForwardPass, term: Term, grad: Tensor) -> tuple[_Pair, _Pair]:
    """The operand of a product and the product's gradient, row by row.

    Of a state, the rows of steps that read what the step before has written; and those that read an initial state,
    unless that is zero.
    """
    layout, n = saved.layout, len(grad)
    array = saved.loop.derivative.forward[term.operand]

    def operand(tensor: Tensor, first: int, count: int, order: Tensor | None = None) -> Rows:
        return Rows(tensor, array.width, term.start, term.rows, first, count, order)

    def gradient(first: int, count: int, order: Tensor | None = None) -> Rows:
        return Rows(grad, grad.shape[1], term.first, term.cols, first, count, order)

    if array.role == "residual":
        return (operand(saved.residuals[array.name], 0, n), gradient(0, n)), ()
    if array.role == "stream":
        return (operand(saved.inputs[array.name], 0, n, saved.row_index(array.name)), gradient(0, n)), ()
    sequence, initial, B = saved.residuals[array.name], saved.inputs[array.name], layout.B
    if layout.is_ragged:
        (before, after), (initially, first) = layout.neighbours
        old, new = len(before), len(first)
        rows = operand(sequence, 0, old, before), gradient(0, old, after)
        starts = operand(initial, 0, new, initially), gradient(0, new, first)
    elif layout.is_continued:  # the state before the piece lies in memory beside the others
        return (operand(sequence, B if layout.reverse else -B, n), gradient(0, n)), ()
    elif layout.reverse:
        rows = operand(sequence, B, n - B), gradient(0, n - B)
        starts = operand(initial, 0, B), gradient(n - B, B)
    else:
        rows = operand(sequence, 0, n - B), gradient(B, n - B)
        starts = operand(initial, 0, B), gradient(0, B)
    return rows, () if saved.from_zero else starts


def _stream_gradient(saved: ForwardPass, group: Sequence[Term], grad: Tensor, total: Tensor | None) -> Tensor:
    """Add products' share to the gradient of a stream that they read: their gradients times transposed matrices."""
    first, last = group[0], group[-1]
    width, index = saved.loop.program[first.operand].width, saved.row_index(first.operand)
    matrix = saved.transposed_matrix(first)
    if first is not last:
        matrix = torch.cat([saved.transposed_matrix(term) for term in group])
    if len(matrix) != grad.shape[1]:
        grad = grad[:, first.first : last.first + last.cols]
    place = _place(saved.layout)
    if total is None and index is None and first.rows == width:
        return _product(grad, matrix, place)
    if total is None:
        total = grad.new_zeros(saved.inputs[first.operand].shape)
    columns = total.view(-1, width)[:, first.start : first.start + first.rows]
    if index is not None:
        columns.index_add_(0, index, _product(grad, matrix, place))
    elif place.is_all:
        columns.addmm_(grad, matrix)
    else:
        columns.copy_(place.cut(place.among_zeros(columns).addmm_(place.among_zeros(grad), matrix)))
    return total


class _Place(NamedTuple):
    """Where rows are multiplied: among so many, from `first` to before `last`; and how many the whole batch has.

    The product behind `@` takes rows in groups, and the last ones, which are no whole group, in another way, by which
    their numbers differ in the last bits. So a piece's rows are put where the whole batch has them, but for some whole
    groups: among zeros.
    """

    first: int
    last: int
    height: int
    whole: int

    @property
    def is_all(self) -> bool:
        """Whether these rows are all there are."""
        return self.last - self.first == self.height

    def among_zeros(self, rows: Tensor) -> Tensor:
        """The rows with the zeros around them."""
        return F.pad(rows, (0, 0, self.first, self.height - self.last))

    def cut(self, rows: Tensor) -> Tensor:
        """The other way round."""
        return rows[self.first : self.last]


_GROUP, _FEWEST = 64, 256  # more rows than any group has; and than are few enough to be taken in other ways


def _place(layout: Layout) -> _Place:
    whole, count, begin = layout.source.total, layout.total, layout.packed_before
    if layout.whole is None:
        return _Place(0, count, count, whole)
    low, high = begin // _GROUP * _GROUP, min(whole, -(-(begin + count) // _GROUP) * _GROUP)
    low = max(0, min(low, (high - _FEWEST) // _GROUP * _GROUP))
    high = max(high, min(whole, low + _FEWEST))
    return _Place(begin - low, begin - low + count, high - low, whole)


def _product(a: Tensor, b: Tensor, place: _Place) -> Tensor:
    """Return a b, by oneDNN where that is faster than the product behind `@` for a whole batch."""
    if not place.is_all:
        every = _Place(0, place.height, place.height, place.whole)
        return place.cut(_product(place.among_zeros(a), b, every)).contiguous()
    if _is_faster_by_onednn(a, b, place.whole):
        return torch.ops.mkldnn._linear_pointwise(a, _without_gaps(b).t(), None, "none", [], "")  # type: ignore[no-any-return]
    return torch.mm(a, b)


def _is_faster_by_onednn(a: Tensor, b: Tensor, count: int) -> bool:
    """Whether oneDNN computes a b faster if a has so many rows.

    As it does for many, by up to a fifth on processors not of Intel's.

    It needs some rows to be worth its preparations, and some columns of `a`, else it is slower by the factor that it is
    faster by elsewhere. What has gaps between its rows, as the columns of a wider weight have, it computes without
    vectors, 50 to 1000 times slower: `b` is copied then, which costs less than a hundredth of so large a product.
    """
    large = b.numel() * count > _LARGE and count >= 256 and len(b) >= 4
    return large and a.dtype == torch.float32 and _has_onednn() and a.is_contiguous()


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _without_gaps(matrix: Tensor) -> Tensor:
    """A matrix whose rows, or else columns, follow each other in memory: a copy if they don't."""
    if matrix.stride(0) == 1:
        return matrix.t().contiguous().t()
    return matrix.contiguous()


def backward_by_autograd(
    loop: Loop, layout: Layout, inputs: Mapping[str, Tensor], grads_out: Mapping[str, Tensor], needed: Collection[str]
) -> dict[str, Tensor | None]:
    """The gradients by PyTorch's autograd through the program, step by step: differentiable once more if that is on."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = {name: t.view_as(t) for name, t in inputs.items()}  # one tensor may be two of them
        results = interpret(loop, layout, inputs)
        pairs = [(results[name], grad) for name, grad in grads_out.items() if results[name].requires_grad]
        grads_in = torch.autograd.grad(
            [r for r, _ in pairs], [inputs[name] for name in needed], [g for _, g in pairs],
            create_graph=again, allow_unused=True,
        )  # fmt: skip
        return dict(zip(needed, grads_in, strict=True))


def interpret(loop: Loop, layout: Layout, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a program in PyTorch, step by step: the outputs and final states, by name."""
    program = loop.program
    order = torch.from_numpy(layout.order)
    matrices = {a.name: inputs[a.name] for a in program.of("matrix")}
    matrices |= {name: matrices[name].t() for name in loop.transposed}
    streams = {a.name: inputs[a.name].reshape(-1, a.width) for a in program.of("stream")}
    state = {name: inputs[name] for name in loop.states}
    outputs: dict[str, list[Tensor]] = {name: [] for name in loop.outputs}
    for n, packed_start, padded_start in zip(
        layout.rows.tolist(), layout.packed.tolist(), layout.padded.tolist(), strict=True
    ):
        rows = order[:n]
        packed = torch.arange(packed_start, packed_start + n, device="cpu")
        values = {}
        for node in (node for node in program.nodes if node.is_leaf):
            name, first = node.attr
            columns = slice(first, first + node.width)
            if node.op == "stream":
                at = padded_start + rows if program[name].place == "padded" else packed
                values[node] = streams[name][at, columns]
            elif node.op == "vector":
                values[node] = inputs[name].reshape(-1)[columns].expand(n, -1)
            else:
                values[node] = (inputs if node.op == "row" else state)[name][rows, columns]
        evaluate(program.nodes, values, matrices)

        def joined(name: str, values: dict[Any, Tensor] = values, n: int = n) -> Tensor:
            return torch.cat([values[p].expand(n, p.width) for p in program.results[name]], 1)

        for name, steps in outputs.items():
            output = joined(name)
            steps.append(output.new_zeros(layout.B, output.shape[1]).index_copy(0, rows, output))
        new = {name: joined(name) for name in state}
        state = {name: s.index_copy(0, rows, new[name]) for name, s in state.items()}
    stacked = {name: torch.stack(steps[::-1] if layout.reverse else steps) for name, steps in outputs.items()}
    return {**{name: F.pad(o, (0, 0, 0, 0, 0, layout.T - len(o))) for name, o in stacked.items()}, **state}
