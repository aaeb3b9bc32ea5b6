"""The gradients of a loop: its backward program by machine code, and the large products after it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyrnn.engines.cpu.layout import padded_rows
from anyrnn.engines.cpu.memory import empty
from anyrnn.engines.cpu.outer import Rows, add_outer
from anyrnn.program import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.derive import Term
    from anyrnn.engines.cpu.layout import Layout
    from anyrnn.engines.cpu.loop import Loop
    from anyrnn.engines.cpu.machine import Machine

_LARGE = 1 << 21  # multiplications


class Pass:
    """A forward pass: what it was given and what it left."""

    def __init__(
        self,
        loop: Loop,
        layout: Layout,
        machine: Machine,
        tensors: Sequence[Tensor],
        sequences: Sequence[Tensor],
        saved: Sequence[Tensor],
    ) -> None:
        self.loop, self.layout, self.machine = loop, layout, machine
        self.streams, self.states, self.vectors, self.matrices = loop.grouped(tensors)
        self.sequences, self.saved = sequences, saved

    def places(self, stream: int) -> Tensor | None:
        """Where the packed rows are in a stream; None if they are all there is, in this order."""
        return self.layout.packed_index if self.layout.is_ragged and stream in self.loop.padded else None

    def kernel(self, term: Term) -> Tensor:
        """What the gradients of what a product gave are multiplied with: its matrix, transposed (cols, rows)."""
        matrix: Tensor = self.matrices[term.matrix]
        turned = matrix if self.loop.transposed[term.matrix] else matrix.t()
        if turned.shape == (term.cols, term.rows):
            return turned
        return turned[term.col : term.col + term.cols, term.row : term.row + term.rows]


def backward(
    made: Pass, grads: Sequence[Tensor | None], needed: Sequence[bool], from_zero: bool
) -> list[Tensor | None]:
    """Return the gradients of all tensors that the loop was given, from those of its outputs and final states.

    Args:
        made: The forward pass.
        grads: The gradients of the outputs and final states; None where there is none.
        needed: Which gradients are wanted; others may be None.
        from_zero: The initial states are zero.
    """
    loop, layout, streams, states = made.loop, made.layout, made.streams, made.states
    p, d = loop.program, loop.derivative
    like = states[0]
    code = loop.code("backward", like.dtype == torch.float64, made.machine)
    upstream = [
        like.new_zeros(layout.T, layout.B, sum(q.width for q in o)) if g is None else g.contiguous()
        for o, g in zip(p.outputs, grads, strict=False)
    ]
    carries = [
        like.new_zeros(layout.B, w) if g is None else g.clone(memory_format=torch.contiguous_format)
        for w, g in zip(p.states, grads[len(p.outputs) :], strict=True)
    ]
    widths = code.schedule.output_widths
    given = [empty(like, layout.total, width) for width in widths[: d.products]]
    direct = [
        padded_rows(layout, like, width) if number in loop.padded else empty(like, layout.total, width)
        for number, width in zip(d.stream_outputs, widths[d.products :], strict=True)
    ]
    totals = code.run(
        layout, [*streams, *upstream, *made.saved], states, made.sequences, carries, [*given, *direct], made.vectors,
        made.matrices, loop.transposed,
    )  # fmt: skip

    stream_needed, _, vector_needed, matrix_needed = loop.grouped(needed)
    found = dict(zip(d.stream_outputs, direct, strict=True))
    stream_grads = [found.get(number) for number in range(len(streams))]
    matrix_grads: list[Tensor | None] = [None] * len(made.matrices)
    for group in d.terms:
        for term in group:
            if matrix_needed[term.matrix]:
                _add_matrix(made, term, given[term.given], matrix_grads, from_zero)
        array = group[0].array
        if group[0].kind == "stream" and stream_needed[array]:
            stream_grads[array] = _add_stream(made, group, given[group[0].given], stream_grads[array])
    vector_grads = [
        _vector_gradient(totals, ranges, vector.shape) if wanted else None
        for vector, ranges, wanted in zip(made.vectors, d.vector_totals, vector_needed, strict=True)
    ]
    flat = [
        _shaped(g, s.shape) if g is not None else torch.zeros_like(s) if wanted else None
        for g, s, wanted in zip(stream_grads, streams, stream_needed, strict=True)
    ]
    return [*flat, *carries, *vector_grads, *matrix_grads]


def _shaped(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else tensor.view(shape)


def _vector_gradient(totals: Tensor, ranges: Sequence[tuple[int, int]], shape: torch.Size) -> Tensor:
    # A copy even of one piece: two biases may have one total.
    pieces = [totals.narrow_copy(0, start, end - start) for start, end in ranges]
    return _shaped(pieces[0] if len(pieces) == 1 else torch.cat(pieces), shape)


def _add_matrix(made: Pass, term: Term, given: Tensor, totals: list[Tensor | None], from_zero: bool) -> None:
    """Add a product's share to the gradient of its matrix: what it took, times the gradients of what it gave."""
    number = term.matrix
    whole = (term.rows, term.cols) == made.loop.program.matrices[number]
    total = totals[number]
    add = total is not None or not whole
    if total is None:
        make = torch.empty_like if whole else torch.zeros_like
        total = totals[number] = make(made.matrices[number], memory_format=torch.contiguous_format)
    for taken, gradients in _operands(made, term, given, from_zero):
        if made.loop.transposed[number]:
            add_outer(total, term.col, term.row, gradients, taken, add, made.machine)
        else:
            add_outer(total, term.row, term.col, taken, gradients, add, made.machine)
        add = True


def _operands(made: Pass, term: Term, given: Tensor, from_zero: bool) -> list[tuple[Rows, Rows]]:
    """What a product took, and the gradients of what it gave, row by row; in two parts where the state comes in."""
    layout, n = made.layout, len(given)

    def taken(tensor: Tensor, first: int, count: int, order: Tensor | None = None) -> Rows:
        return _rows(tensor, term.start, term.rows, first, count, order)

    def gave(first: int, count: int, order: Tensor | None = None) -> Rows:
        return _rows(given, term.first, term.cols, first, count, order)

    if term.kind != "state":
        if term.kind == "saved":
            return [(taken(made.saved[term.array], 0, n), gave(0, n))]
        return [(taken(made.streams[term.array], 0, n, made.places(term.array)), gave(0, n))]
    sequence, initial, B = made.sequences[term.array], made.states[term.array], layout.B
    if layout.is_ragged:
        (before, after), (initially, first) = layout.neighbours
        old, new = len(before), len(first)
        pairs = [(taken(sequence, 0, old, before), gave(0, old, after))]
        pairs += [(taken(initial, 0, new, initially), gave(0, new, first))]
    elif layout.reverse:
        pairs = [(taken(sequence, B, n - B), gave(0, n - B)), (taken(initial, 0, B), gave(n - B, B))]
    else:
        pairs = [(taken(sequence, 0, n - B), gave(B, n - B)), (taken(initial, 0, B), gave(0, B))]
    return pairs[:1] if from_zero else pairs


def _rows(tensor: Tensor, column: int, width: int, first: int, count: int, order: Tensor | None) -> Rows:
    """Columns of rows of a contiguous tensor, from the first one on or in an order."""
    stride = tensor.shape[-1]
    address = tensor.data_ptr() + (first * stride + column) * tensor.itemsize
    return Rows(address, stride, width, count, order)


def _add_stream(made: Pass, group: Sequence[Term], given: Tensor, total: Tensor | None) -> Tensor:
    """Add products' share to the gradient of a stream."""
    first, last = group[0], group[-1]
    width, places = made.loop.program.streams[first.array], made.places(first.array)
    kernel = made.kernel(first) if first is last else torch.cat([made.kernel(term) for term in group])
    if len(kernel) != given.shape[1]:
        given = given[:, first.first : last.first + last.cols]
    if total is None and places is None and first.rows == width:
        return _product(given, kernel)
    if total is None:
        total = given.new_zeros(made.streams[first.array].shape)
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
    loop: Loop, layout: Layout, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by PyTorch's autograd through the program, step by step: differentiable once more if that is on."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        return _replayed(loop, layout, tensors, grads, needed, again)


def _replayed(
    loop: Loop, layout: Layout, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool],
    again: bool,
) -> list[Tensor | None]:  # fmt: skip
    tensors = [t.view_as(t) for t in tensors]  # a tensor may be here twice: each place has a gradient of its own
    streams, states, vectors, matrices = loop.grouped(tensors)
    turned = [m.t() if transposed else m for m, transposed in zip(matrices, loop.transposed, strict=True)]
    results = replay(loop, layout, streams, states, vectors, turned)
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
    wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
    found = torch.autograd.grad(
        [p[0] for p in pairs], wanted, [p[1] for p in pairs], create_graph=again, allow_unused=True
    )
    remaining = iter(found)
    return [next(remaining) if n else None for n in needed]


def replay(
    loop: Loop, layout: Layout, streams: Sequence[Tensor], states: Sequence[Tensor],
    vectors: Sequence[Tensor], matrices: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Run a program in PyTorch, step by step."""
    program = loop.program
    nodes, order = program.nodes, torch.from_numpy(layout.order)
    streams = [s.reshape(-1, s.shape[-1]) for s in streams]
    state = list(states)
    outputs: list[list[Tensor]] = [[] for _ in program.outputs]
    for n, offset, place in zip(layout.rows.tolist(), layout.offset.tolist(), layout.place.tolist(), strict=True):
        rows = order[:n]
        packed = torch.arange(offset, offset + n, device="cpu")
        known = {}
        for node in nodes:
            if node.is_leaf:
                array, first = node.attr
                columns = slice(first, first + node.width)
                if node.op == "stream":
                    known[node] = streams[array][place + rows if array in loop.padded else packed, columns]
                elif node.op == "vector":
                    known[node] = vectors[array].reshape(-1)[columns].expand(n, -1)
                else:
                    known[node] = state[array][rows, columns]
        evaluate(nodes, known, tuple(matrices))

        def joined(pieces: Sequence[Any], known: dict[Any, Tensor] = known, n: int = n) -> Tensor:
            return torch.cat([known[p].expand(n, p.width) for p in pieces], 1)

        for k, pieces in enumerate(program.outputs):
            output = joined(pieces)
            outputs[k].append(output.new_zeros(layout.B, output.shape[1]).index_copy(0, rows, output))
        new = [joined(pieces) for pieces in program.new_states]
        state = [s.index_copy(0, rows, k) for k, s in zip(new, state, strict=True)]
    stacked = [torch.stack(o[::-1] if layout.reverse else o) for o in outputs]
    return [*(F.pad(o, (0, 0, 0, 0, 0, layout.T - len(o))) for o in stacked), *state]
