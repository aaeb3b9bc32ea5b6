"""The gradients of a loop: its backward program by machine code, and the large products after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyrnn.engines.cpu.layout import padded_rows
from anyrnn.engines.cpu.machine import Machine
from anyrnn.engines.cpu.outer import Rows, add_outer
from anyrnn.program import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.derive import Term
    from anyrnn.engines.cpu.layout import Layout
    from anyrnn.engines.cpu.loop import Loop

_LARGE = 1 << 21  # multiplications


class Pass:
    """A forward pass: what it was given and what it left."""

    def __init__(
        self,
        loop: Loop,
        layout: Layout,
        tensors: Sequence[Tensor],
        sequences: Sequence[Tensor],
        saved: Sequence[Tensor],
    ) -> None:
        self.loop, self.layout = loop, layout
        self.streams, self.states, self.vectors, self.matrices = loop.grouped(tensors)
        self.sequences, self.saved = sequences, saved

    def rows(self, tensor: Tensor, term: Term) -> Tensor:
        """An operand of a product, row by row."""
        rows = tensor.view(-1, tensor.shape[-1])
        return rows if rows.shape[1] == term.rows else rows[:, term.start : term.start + term.rows]

    def places(self, stream: int) -> Tensor | None:
        """Where the packed rows are in a stream; None if they are all there is, in this order."""
        return self.layout.packed_index if self.layout.is_ragged and stream in self.loop.padded else None

    def region(self, term: Term, matrix: Tensor) -> Tensor:
        """The part of a matrix that a product reads."""
        turned = matrix.t() if self.loop.transposed[term.matrix] else matrix
        if turned.shape == (term.rows, term.cols):
            return turned
        return turned[term.row : term.row + term.rows, term.col : term.col + term.cols]


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
    code = loop.code("backward", like.dtype == torch.float64, Machine.host())
    upstream = [
        like.new_zeros(layout.T, layout.B, sum(q.width for q in o)) if g is None else g.contiguous()
        for o, g in zip(p.outputs, grads, strict=False)
    ]
    carries = [
        like.new_zeros(layout.B, w) if g is None else g.clone(memory_format=torch.contiguous_format)
        for w, g in zip(p.states, grads[len(p.outputs) :], strict=True)
    ]
    given, *direct = code.schedule.output_widths
    outputs = [like.new_empty(layout.total, given)]
    for number, width in zip(d.stream_outputs, direct, strict=True):
        padded = number in loop.padded
        outputs.append(padded_rows(layout, like, width) if padded else like.new_empty(layout.total, width))
    totals = code.run(
        layout, [*streams, *upstream, *made.saved], states, made.sequences, carries, outputs, made.vectors,
        made.matrices, loop.transposed,
    )  # fmt: skip

    stream_needed, _, vector_needed, matrix_needed = loop.grouped(needed)
    stream_grads: list[Tensor | None] = [None] * len(streams)
    for k, number in enumerate(d.stream_outputs):
        stream_grads[number] = outputs[1 + k].view(-1, streams[number].shape[-1])
    matrix_grads: list[Tensor | None] = [None] * len(made.matrices)
    for group in d.terms:
        first, end = group[0].first, group[-1].first + group[-1].cols
        for term in group:
            if matrix_needed[term.matrix]:
                _add_matrix(made, term, outputs[0][:, term.first : term.first + term.cols], matrix_grads, from_zero)
        array = group[0].array
        if group[0].kind == "stream" and stream_needed[array]:
            stream_grads[array] = _add_stream(made, group, outputs[0][:, first:end], stream_grads[array])
    stream_grads = [g if g is None else g.view(s.shape) for g, s in zip(stream_grads, streams, strict=True)]
    vector_grads = [
        _vector_gradient(totals, ranges).view(vector.shape) if wanted else None
        for vector, ranges, wanted in zip(made.vectors, d.vector_totals, vector_needed, strict=True)
    ]
    return [*stream_grads, *carries, *vector_grads, *matrix_grads]


def _vector_gradient(totals: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    pieces = [totals[start:end] for start, end in ranges]
    return pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces)  # two biases may have one total


def _add_matrix(made: Pass, term: Term, given: Tensor, totals: list[Tensor | None], from_zero: bool) -> None:
    """Add a product's share to the gradient of its matrix: what it took, times the gradients of what it gave."""
    number = term.matrix
    whole = (term.rows, term.cols) == made.loop.program.matrices[number]
    total = totals[number]
    add = total is not None or not whole
    if total is None:
        matrix = made.matrices[number]
        total = totals[number] = matrix.new_empty(matrix.shape) if whole else matrix.new_zeros(matrix.shape)
    turned = made.loop.transposed[number]
    part = made.region(term, total)
    if turned:
        part = part.t()
    for taken, gradients in _operands(made, term, given, from_zero):
        add_outer(part, *((gradients, taken) if turned else (taken, gradients)), add)
        add = True


def _operands(made: Pass, term: Term, given: Tensor, from_zero: bool) -> list[tuple[Rows, Rows]]:
    """What a product took, and the gradients of what it gave, row by row; in two parts where the state comes in."""
    if term.kind == "stream":
        return [(Rows(made.rows(made.streams[term.array], term), made.places(term.array)), Rows(given))]
    if term.kind == "saved":
        return [(Rows(made.rows(made.saved[term.array], term)), Rows(given))]
    layout = made.layout
    sequence = made.rows(made.sequences[term.array], term)
    initial = made.states[term.array][:, term.start : term.start + term.rows]
    n, B = len(sequence), layout.B
    if layout.is_ragged:
        (before, after), (initially, first) = layout.neighbours
        pairs = [(Rows(sequence, before), Rows(given, after)), (Rows(initial, initially), Rows(given, first))]
    elif layout.reverse:
        pairs = [(Rows(sequence[B:]), Rows(given[: n - B])), (Rows(initial), Rows(given[n - B :]))]
    else:
        pairs = [(Rows(sequence[: n - B]), Rows(given[B:])), (Rows(initial), Rows(given[:B]))]
    return pairs[:1] if from_zero else pairs


def _add_stream(made: Pass, group: Sequence[Term], given: Tensor, total: Tensor | None) -> Tensor:
    """Add products' share to the gradient of a stream."""
    parts = [made.region(term, made.matrices[term.matrix]) for term in group]
    part = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    first, width = group[0], made.loop.program.streams[group[0].array]
    places = made.places(first.array)
    if total is None and places is None and first.rows == width:
        return _product(given, part)
    if total is None:
        total = given.new_zeros(made.streams[first.array].shape).view(-1, width)
    columns = total[:, first.start : first.start + first.rows]
    if places is None:
        columns.addmm_(given, part.t())
    else:
        columns.index_add_(0, places, _product(given, part))
    return total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b^T."""
    if _is_faster_by_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")  # type: ignore[no-any-return]
    return a @ b.t()


def _is_faster_by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN's product a b^T is up to twice as fast as the one behind `@`, as on processors not of Intel's.

    What is not contiguous it computes without any vectors.
    """
    large = b.numel() * len(a) > _LARGE
    return large and a.dtype == torch.float32 and a.is_contiguous() and torch.backends.mkldnn.is_available()


def replayed(
    loop: Loop, layout: Layout, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by PyTorch's autograd through the program, step by step: differentiable once more."""
    tensors = [t.view_as(t) for t in tensors]  # a tensor may be here twice: each place has a gradient of its own
    streams, states, vectors, matrices = loop.grouped(tensors)
    turned = [m.t() if transposed else m for m, transposed in zip(matrices, loop.transposed, strict=True)]
    results = replay(loop, layout, streams, states, vectors, turned)
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
    wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
    found = torch.autograd.grad(
        [p[0] for p in pairs], wanted, [p[1] for p in pairs], create_graph=True, allow_unused=True
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
        packed = torch.arange(offset, offset + n)
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
