"""The gradients of a loop: its backward program by a kernel, and the large products after it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyrnn.node import evaluate
from anyrnn.runtime.kernel import Rows
from anyrnn.runtime.layout import padded_rows
from anyrnn.runtime.memory import empty

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anyrnn.derive import Term
    from anyrnn.runtime.kernel import Backend
    from anyrnn.runtime.layout import Layout
    from anyrnn.runtime.loop import Loop

_LARGE = 1 << 21  # multiplications


@dataclass(frozen=True)
class Pass:
    """A forward pass: what it was given and what it left.

    Attributes:
        given: The streams, initial states, vectors and matrices, by name.
        kept: The states of all steps and the residuals, by name.
        from_zero: The initial states are zero.
    """

    loop: Loop
    layout: Layout
    backend: Backend
    given: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    from_zero: bool

    def places(self, array: str) -> Tensor | None:
        """Where the packed rows are in a stream; None if they are all there is, in this order."""
        padded = self.layout.is_ragged and self.loop.derivative.forward[array].place == "padded"
        return self.layout.packed_index if padded else None

    def kernel(self, term: Term) -> Tensor:
        """What the gradients of what a product gave are multiplied with: its matrix, transposed (cols, rows)."""
        matrix = self.given[term.matrix]
        turned = matrix if term.matrix in self.loop.transposed else matrix.t()
        if turned.shape == (term.cols, term.rows):
            return turned
        return turned[term.col : term.col + term.cols, term.row : term.row + term.rows]


def backward(made: Pass, grads: Mapping[str, Tensor], needed: Collection[str]) -> dict[str, Tensor]:
    """Return the gradients of what a loop was given, from those of its outputs and final states.

    Args:
        made: The forward pass.
        grads: The gradients of outputs and final states, by name, as far as there are any.
        needed: Of what gradients are wanted; others may be missing.
    """
    loop, layout, d = made.loop, made.layout, made.loop.derivative
    like = made.given[loop.states[0]]
    arrays = {**made.given, **made.kept}
    for role, name, gradient, width in loop.incoming:
        grad = grads.get(name)
        if role == "output":
            arrays[gradient] = like.new_zeros(layout.T, layout.B, width) if grad is None else grad.contiguous()
        else:  # copied: the loop works in place
            arrays[gradient] = like.new_zeros(layout.B, width) if grad is None else _copied(grad)
    for name, place, width in loop.outgoing:
        packed = place == "packed"
        arrays[name] = empty(like, layout.total, width) if packed else padded_rows(layout, like, width)
    kernel = loop.kernel("backward", like, made.backend)
    sums = kernel.bind(layout, arrays, made.given, loop.transposed).launch()
    found = {name: (sums if gradient in sums else arrays)[gradient] for name, gradient in d.gradients.items()}
    for group in d.terms:
        given = arrays[group[0].given]
        for term in group:
            if term.matrix in needed:
                _add_matrix(made, term, given, found)
        operand = group[0].operand
        if operand in needed and d.forward[operand].role == "stream":
            found[operand] = _add_stream(made, group, given, found.get(operand))
    for name in needed:
        like = made.given[name]
        found[name] = _shaped(found[name], like.shape) if name in found else torch.zeros_like(like)
    return found


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _shaped(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else tensor.view(shape)


def _add_matrix(made: Pass, term: Term, given: Tensor, found: dict[str, Tensor]) -> None:
    """Add a product's share to the gradient of its matrix: what it took, times the gradients of what it gave."""
    matrix = made.loop.program[term.matrix]
    whole = (term.rows, term.cols) == (matrix.rows, matrix.width)
    total = found.get(matrix.name)
    add = total is not None or not whole
    if total is None:
        make = torch.empty_like if whole else torch.zeros_like
        total = found[matrix.name] = make(made.given[matrix.name], memory_format=torch.contiguous_format)
    for taken, gradients in _operands(made, term, given):
        if matrix.name in made.loop.transposed:
            made.backend.add_outer(total, term.col, term.row, gradients, taken, add)
        else:
            made.backend.add_outer(total, term.row, term.col, taken, gradients, add)
        add = True


def _operands(made: Pass, term: Term, given: Tensor) -> list[tuple[Rows, Rows]]:
    """What a product took, and the gradients of what it gave, row by row; in two parts where the state comes in."""
    layout, n = made.layout, len(given)
    array = made.loop.derivative.forward[term.operand]

    def taken(tensor: Tensor, first: int, count: int, order: Tensor | None = None) -> Rows:
        return Rows(tensor, array.width, term.start, term.rows, first, count, order)

    def gave(first: int, count: int, order: Tensor | None = None) -> Rows:
        return Rows(given, given.shape[1], term.first, term.cols, first, count, order)

    if array.role == "residual":
        return [(taken(made.kept[array.name], 0, n), gave(0, n))]
    if array.role == "stream":
        return [(taken(made.given[array.name], 0, n, made.places(array.name)), gave(0, n))]
    sequence, initial, B = made.kept[array.name], made.given[array.name], layout.B
    if layout.is_ragged:
        (before, after), (initially, first) = layout.neighbours
        old, new = len(before), len(first)
        pairs = [(taken(sequence, 0, old, before), gave(0, old, after))]
        pairs += [(taken(initial, 0, new, initially), gave(0, new, first))]
    elif layout.reverse:
        pairs = [(taken(sequence, B, n - B), gave(0, n - B)), (taken(initial, 0, B), gave(n - B, B))]
    else:
        pairs = [(taken(sequence, 0, n - B), gave(B, n - B)), (taken(initial, 0, B), gave(0, B))]
    return pairs[:1] if made.from_zero else pairs


def _add_stream(made: Pass, group: Sequence[Term], given: Tensor, total: Tensor | None) -> Tensor:
    """Add products' share to the gradient of a stream."""
    first, last = group[0], group[-1]
    width, places = made.loop.program[first.operand].width, made.places(first.operand)
    kernel = made.kernel(first) if first is last else torch.cat([made.kernel(term) for term in group])
    if len(kernel) != given.shape[1]:
        given = given[:, first.first : last.first + last.cols]
    if total is None and places is None and first.rows == width:
        return _product(given, kernel)
    if total is None:
        total = given.new_zeros(made.given[first.operand].shape)
    columns = total.view(-1, width)[:, first.start : first.start + first.rows]
    if places is None:
        columns.addmm_(given, kernel)
    else:
        columns.index_add_(0, places, _product(given, kernel))
    return total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b, by oneDNN where that is faster than the product behind `@`."""
    if _is_faster_by_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, _without_gaps(b).t(), None, "none", [], "")  # type: ignore[no-any-return]
    return torch.mm(a, b)


def _is_faster_by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN computes a b faster, as it does for many rows, by up to a fifth on processors not of Intel's.

    It needs some rows to be worth its preparations, and some columns of `a`, else it is slower by the factor that it is
    faster by elsewhere. What has gaps between its rows, as the columns of a wider weight have, it computes without
    vectors, 50 to 1000 times slower: `b` is copied then, which costs less than a hundredth of so large a product.
    """
    large = b.numel() * len(a) > _LARGE and len(a) >= 256 and len(b) >= 4
    return large and a.dtype == torch.float32 and _has_onednn() and a.is_contiguous()


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _without_gaps(matrix: Tensor) -> Tensor:
    """A matrix whose rows, or else columns, follow each other in memory: a copy if they don't."""
    if matrix.stride(0) == 1:
        return matrix.t().contiguous().t()
    return matrix.contiguous()


def replayed(
    loop: Loop, layout: Layout, given: Mapping[str, Tensor], grads: Mapping[str, Tensor], needed: Collection[str]
) -> dict[str, Tensor | None]:
    """The gradients by PyTorch's autograd through the program, step by step: differentiable once more if that is on."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        given = {name: t.view_as(t) for name, t in given.items()}  # one tensor may be two of them
        results = replay(loop, layout, given)
        pairs = [(results[name], g) for name, g in grads.items() if results[name].requires_grad]
        wanted = [given[name] for name in needed]
        found = torch.autograd.grad(
            [r for r, _ in pairs], wanted, [g for _, g in pairs], create_graph=again, allow_unused=True
        )
        return dict(zip(needed, found, strict=True))


def replay(loop: Loop, layout: Layout, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a program in PyTorch, step by step: the outputs and final states, by name."""
    program = loop.program
    order = torch.from_numpy(layout.order)
    matrices = {a.name: given[a.name] for a in program.of("matrix")}
    matrices |= {name: matrices[name].t() for name in loop.transposed}
    streams = {a.name: given[a.name].reshape(-1, a.width) for a in program.of("stream")}
    state = {name: given[name] for name in loop.states}
    outputs: dict[str, list[Tensor]] = {name: [] for name in loop.outputs}
    for n, offset, place in zip(layout.rows.tolist(), layout.offset.tolist(), layout.place.tolist(), strict=True):
        rows = order[:n]
        packed = torch.arange(offset, offset + n, device="cpu")
        known = {}
        for node in (node for node in program.nodes if node.is_leaf):
            name, first = node.attr
            columns = slice(first, first + node.width)
            if node.op == "stream":
                at = place + rows if program[name].place == "padded" else packed
                known[node] = streams[name][at, columns]
            elif node.op == "vector":
                known[node] = given[name].reshape(-1)[columns].expand(n, -1)
            else:
                known[node] = state[name][rows, columns]
        evaluate(program.nodes, known, matrices)

        def joined(name: str, known: dict[Any, Tensor] = known, n: int = n) -> Tensor:
            return torch.cat([known[p].expand(n, p.width) for p in program.results[name]], 1)

        for name, steps in outputs.items():
            output = joined(name)
            steps.append(output.new_zeros(layout.B, output.shape[1]).index_copy(0, rows, output))
        new = {name: joined(name) for name in state}
        state = {name: s.index_copy(0, rows, new[name]) for name, s in state.items()}
    stacked = {name: torch.stack(steps[::-1] if layout.reverse else steps) for name, steps in outputs.items()}
    return {**{name: F.pad(o, (0, 0, 0, 0, 0, layout.T - len(o))) for name, o in stacked.items()}, **state}
