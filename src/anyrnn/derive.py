"""The backward program of a loop program, by PyTorch's own autograd.

The step is evaluated in PyTorch with every product cut off: what a product gives is a leaf, what it takes is an output.
What is left is arithmetic on each number and reductions, whose gradient autograd computes while every operation it runs
is recorded and lowered as the cell's own were; that of an activation is PyTorch's own backward operation. The products
are put back by the chain rule: the gradient of what a product takes is the gradient of what it gives times the
transposed matrix. Gradients of matrices are left for one large product after the loop.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from anyrnn.graph import Ref
from anyrnn.lower import Lowering, Value
from anyrnn.ops import OPERATIONS, REDUCTIONS
from anyrnn.program import Builder, Node, Program, evaluate, ordered
from anyrnn.recorder import Recorder
from anyrnn.rules import elementary, expand, lower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True)
class Term:
    """A product's share in gradients: matrix[row : row + rows, col : col + cols] += operand^T @ grads[:, first : ...].

    Attributes:
        kind: What the operand is: "stream", "state" (before the step) or "saved".
        array: Which one.
        start: The first number of the operand in that array.
        matrix: Which matrix.
        row, col: Where the part of the matrix begins.
        rows, cols: Its size.
        given: Which output of the backward program has the gradients of what the product gives.
        first: Where they begin there.
    """

    kind: str
    array: int
    start: int
    matrix: int
    row: int
    col: int
    rows: int
    cols: int
    given: int
    first: int


@dataclass(frozen=True)
class Derivative:
    """A program and its backward program.

    Attributes:
        forward: The program in elementary operations, with one output more if the backward one reads anything again:
            what is saved for it.
        backward: Its states are gradients of the states. Its streams are those of the program, the gradients of its
            outputs, and the saved values. Its outputs are the gradients of all products, in `products` arrays, then
            those of the streams in `stream_outputs`. Its totals are gradients of vectors.
        terms: What the products add to the gradients of matrices and streams. Those in a group have the same operand,
            and the gradients of what they give lie side by side: one large product for all that add to a stream's.
        products: How many arrays the gradients of products are in: what adds to the same streams is together.
        stream_outputs: Which streams have a gradient in the backward outputs that follow.
        vector_totals: For each vector, the ranges (start, end) of the totals that side by side are its gradient.
    """

    forward: Program
    backward: Program
    terms: tuple[tuple[Term, ...], ...]
    products: int
    stream_outputs: tuple[int, ...]
    vector_totals: tuple[tuple[tuple[int, int], ...], ...]


def derive(program: Program) -> Derivative:
    """Derive the backward program."""
    return _Derivation(program).result()


class _Derivation:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = program.nodes
        self.dots = sorted((n for n in self.nodes if n.op == "dot"), key=lambda n: (n.attr[0][0], n.attr[0][2]))
        self.builder = Builder.of(self.nodes)
        self.lowering = Lowering(self.builder)
        self.saved: list[Node] = []
        # Streams are not among them: what products add to their gradients is left for after the loop.
        self.operands = list(dict.fromkeys(a for dot in self.dots for a in dot.args if a.op != "stream"))
        self.dear = self._dear()
        self.gradients = self._gradients()

    def _dear(self) -> set[Node]:
        """What takes long enough to compute to be kept."""
        made = expand(self.nodes)

        def is_dear(node: Node) -> bool:
            args = {made[a] for a in node.args}
            parts = ordered([made[node]], given=args.__contains__)
            if node.op == "dot" or node.op in REDUCTIONS:
                return True
            return any(n.op in OPERATIONS and OPERATIONS[n.op].dear for n in parts if n not in args)

        return {node for node in self.nodes if is_dear(node)}

    # ---- Step 1: the gradients of all leaves and products, with the products cut off ----

    def _cotangents(self) -> dict[Node, list[Node]]:
        """What the gradient of each value that leaves the step is: a leaf of the backward program."""
        found: dict[Node, list[Node]] = {}
        groups = [("state", k, pieces) for k, pieces in enumerate(self.program.new_states)]
        groups += [("stream", len(self.program.streams) + k, p) for k, p in enumerate(self.program.outputs)]
        for op, array, pieces in groups:
            first = 0
            for piece in pieces:
                found.setdefault(piece, []).append(self.builder.node(op, (), piece.width, (array, first)))
                first += piece.width
        for k, operand in enumerate(self.operands):
            found.setdefault(operand, []).append(self.builder.node("operand", (), operand.width, (k, 0)))
        return found

    def _gradients(self) -> dict[Node, Value]:
        recorder = Recorder()
        batch = 2
        known: dict[Node, Tensor] = {}
        for node in self.nodes:
            if node.is_leaf or node.op == "dot":
                known[node] = torch.ones(batch, node.width, dtype=torch.float64, requires_grad=True)
        cotangents = [(node, leaf) for node, leaves in self._cotangents().items() for leaf in leaves]
        grads = [torch.ones(batch, node.width, dtype=torch.float64) for node, _ in cotangents]
        values: dict[Ref, Value] = {
            recorder.ref(g): self.lowering.value([c]) for g, (_, c) in zip(grads, cotangents, strict=True)
        }
        for tensor in known.values():
            recorder.ref(tensor)
        leaves = list(known)
        if not leaves:
            return {}  # everything is a constant
        with torch.enable_grad(), recorder:
            evaluate(self.nodes, known)
            pairs = [(known[n], g) for (n, _), g in zip(cotangents, grads, strict=True) if known[n].requires_grad]
            if not pairs:
                return {}
            outputs, given = zip(*((x.expand_as(g), g) for x, g in pairs), strict=True)
            inputs = tuple(known[n] for n in leaves)
            # What torch.autograd.grad calls: that one loads a package for symbolic mathematics first, in 0.3 s.
            found = torch.autograd.Variable._execution_engine.run_backward(
                outputs, given, False, False, inputs, allow_unreachable=True, accumulate_grad=False
            )
        for k, node in enumerate(self.nodes):
            values[recorder.ref(known[node])] = (
                self.lowering.constant(node.attr[0])
                if node.op == "constant"
                else self.lowering.value([self.builder.node("forward", (), node.width, (k, 0))])
            )
        for step in recorder.steps:
            if step.short_name == "detach":  # autograd's, of what it saved
                values.setdefault(step.outputs[0], values[step.args[0]])
            elif any(ref not in values for ref in step.outputs):
                args, kwargs = pytree.tree_map_only(Ref, values.__getitem__, (step.args, dict(step.kwargs)))
                for ref, value in zip(
                    step.outputs, lower(self.lowering, step, args, kwargs, whole=False), strict=False
                ):
                    values.setdefault(ref, value)
        return {n: values[recorder.ref(g)] for n, g in zip(leaves, found, strict=True) if g is not None}

    # ---- Step 2: the products put back, and what is read again taken from where it is kept ----

    def _resolve(self, roots: list[Node]) -> list[Node]:
        """Replace the gradients of operands by products, and forward values by saved ones or their formulas."""
        current = {p: (k, first) for k, ps in enumerate(self.program.new_states) for p, first in _placed(ps)}
        operands = set(self.operands)  # kept for the gradients of matrices anyway
        read: dict[Node, Node] = {}
        done: dict[Node, Node] = {}

        def in_memory(node: Node) -> bool:
            return node in self.dear or node in operands or not node.args or node in current

        def forward(root: Node) -> Node:
            for node in ordered([root], given=in_memory):
                if node not in read:
                    read[node] = recalled(node)
            return read[root]

        def recalled(node: Node) -> Node:
            if node.op == "state":
                return self.builder.node("previous", (), node.width, node.attr)
            if not node.args:
                return node
            if node in current:
                return self.builder.node("current", (), node.width, current[node])
            if not in_memory(node):
                return self.builder.alike(node, tuple(read[a] for a in node.args))
            if node not in self.saved:
                self.saved.append(node)
            array = len(self.program.streams) + len(self.program.outputs)
            return self.builder.node("stream", (), node.width, (array, self._place_of(node)))

        def resolved(root: Node) -> Node:
            for node in ordered([root]):
                if node not in done:
                    done[node] = one(node)
            return done[root]

        def one(node: Node) -> Node:
            if node.op == "forward":
                return self.builder.cut(forward(self.nodes[node.attr[0]]), node.attr[1], node.width)
            if node.op == "operand":
                return self.builder.cut(self._product_of(node.attr[0], resolved), node.attr[1], node.width)
            if not node.args:
                return node
            return self.builder.alike(node, tuple(done[a] for a in node.args))

        return [resolved(root) for root in roots]

    def _product_of(self, operand: int, resolved: Callable[[Node], Node]) -> Node:
        """The gradient of what products take: the gradients of what they give, times the transposed matrices."""
        node = self.operands[operand]
        terms = []
        for dot in self.dots:
            gradient = self._gradient(dot)
            for arg, (matrix, row, col, _) in zip(dot.args, dot.attr, strict=True):
                if arg is node and gradient is not None:
                    given = resolved(gradient)
                    if given.op != "constant":  # that is zero
                        terms.append((given, (matrix, col, row, True)))
        return self.builder.dot(terms, node.width) if terms else self._zero(node.width)

    def _gradient(self, node: Node) -> Node | None:
        if node not in self.gradients:
            return None
        (gradient,) = self.lowering.pieces(self.gradients[node])  # computed from values of the same width
        return gradient

    def _total(self, op: str, sizes: tuple[int, ...]) -> list[list[tuple[int, Node]]]:
        """For each array of leaves, the gradient of its ranges: (first, value), not overlapping."""
        found: list[list[tuple[int, Node]]] = []
        for array, width in enumerate(sizes):
            parts = [
                (n.attr[1], g) for n in self.nodes if n.op == op and n.attr[0] == array and (g := self._gradient(n))
            ]
            edges = sorted({0, width, *(e for first, g in parts for e in (first, first + g.width))})
            ranges = []
            for a, b in itertools.pairwise(edges):
                total: Node | None = None
                for first, gradient in parts:
                    if first <= a and b <= first + gradient.width:
                        piece = self.builder.cut(gradient, a - first, b - a)
                        total = piece if total is None else self.builder.pointwise("add", total, piece)
                ranges.append((a, total if total is not None else self._zero(b - a)))
            found.append(ranges)
        return found

    def _place_of(self, node: Node) -> int:
        """Where a saved value is among the others."""
        return sum(s.width for s in self.saved[: self.saved.index(node)])

    def _zero(self, width: int) -> Node:
        return self.builder.node("constant", (), width, (0.0,))

    # ---- Step 3: the program ----

    def result(self) -> Derivative:
        """Put the backward program together."""
        program = self.program
        states = self._total("state", program.states)
        vectors = self._total("vector", program.vectors)
        streams = self._total("stream", program.streams)
        with_gradient = tuple(k for k, parts in enumerate(streams) if any(g.op != "constant" for _, g in parts))
        products = self._together()
        groups = [
            *([g for _, g in parts] for parts in states),
            *([self._gradient(dot) or self._zero(dot.width) for dot in dots] for dots in products),
            *([g for _, g in streams[k]] for k in with_gradient),
            [g for parts in vectors for _, g in parts],
        ]
        roots = self._resolve([g for group in groups for g in group])
        made = expand(roots, self.builder)
        flat = self.builder.merge_products([made[r] for r in roots])
        for operand in self.operands:  # matrices' gradients need what the products took
            if not operand.is_leaf and operand not in self.saved:
                self.saved.append(operand)
        flat = self.builder.refine(flat)
        parts = []
        for group in groups:
            parts.append(tuple(flat[: len(group)]))
            flat = flat[len(group) :]
        n_states = len(program.states)
        totals = tuple(dict.fromkeys(parts[-1]))
        resolved = iter(parts[-1])
        starts = dict(_placed(totals))
        vector_totals = tuple(
            _joined((starts[g], g.width) for g in itertools.islice(resolved, len(v))) for v in vectors
        )
        saved = (tuple(self.saved),) if self.saved else ()  # side by side in one array
        out_widths = tuple(sum(p.width for p in o) for o in program.outputs)
        outputs = tuple(parts[n_states:-1])
        backward = Program(
            (*program.streams, *out_widths, *(sum(s.width for s in pieces) for pieces in saved)),
            program.states,
            program.vectors,
            program.matrices,
            tuple(parts[:n_states]),
            outputs,
            totals,
        )
        forward = Program(
            program.streams, program.states, program.vectors, program.matrices, program.new_states,
            (*program.outputs, *saved), names=program.names,
        )  # fmt: skip
        return Derivative(elementary(forward), backward, self._terms(), len(products), with_gradient, vector_totals)

    def _together(self) -> list[list[Node]]:
        """The products in runs that take the same streams: their gradients are one large product's whole operand."""
        runs = itertools.groupby(self.dots, lambda dot: [a for a in dot.args if a.op == "stream"])
        return [list(run) for _, run in runs]

    def _terms(self) -> tuple[tuple[Term, ...], ...]:
        groups: list[list[Term]] = []
        for given, dots in enumerate(self._together()):
            for dot, first in _placed(tuple(dots)):
                for arg, (matrix, row, col, _) in zip(dot.args, dot.attr, strict=True):
                    kind, array, start = (arg.op, *arg.attr) if arg.is_leaf else ("saved", 0, self._place_of(arg))
                    term = Term(kind, array, start, matrix, row, col, arg.width, dot.width, given, first)
                    group = next((g for g in groups if _is_beside(g[-1], term)), None)
                    if group is None:
                        groups.append([term])
                    elif _continues(group[-1], term):
                        group[-1] = replace(group[-1], cols=group[-1].cols + term.cols)
                    else:
                        group.append(term)
        return tuple(map(tuple, groups))


def _is_beside(a: Term, b: Term) -> bool:
    """Whether b has the same operand, and what it gives follows what a gives."""
    end = a.given, a.first + a.cols
    return (a.kind, a.array, a.start, a.rows, end) == (b.kind, b.array, b.start, b.rows, (b.given, b.first))


def _continues(a: Term, b: Term) -> bool:
    """Whether b, beside a, also takes the columns of the same matrix that follow."""
    return (a.matrix, a.row, a.col + a.cols) == (b.matrix, b.row, b.col)


def _joined(places: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """From (start, width) to ranges (start, end), those joined that follow each other."""
    ranges: list[tuple[int, int]] = []
    for start, width in places:
        first = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
        ranges.append((first, start + width))
    return tuple(ranges)


def _placed(pieces: tuple[Node, ...]) -> list[tuple[Node, int]]:
    placed, first = [], 0
    for piece in pieces:
        placed.append((piece, first))
        first += piece.width
    return placed
