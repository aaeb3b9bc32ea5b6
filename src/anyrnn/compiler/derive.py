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

from anyrnn.compiler.graph import Ref
from anyrnn.compiler.lower import Lowering, Value
from anyrnn.compiler.node import Builder, Node, evaluate, ordered
from anyrnn.compiler.ops import OPERATIONS, REDUCTIONS
from anyrnn.compiler.passes import elementary, expand, merge_products, refine
from anyrnn.compiler.program import Array, Program, free_name
from anyrnn.compiler.recorder import Recorder
from anyrnn.compiler.rules import lower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


@dataclass(frozen=True)
class Term:
    """A product's share in gradients: matrix[row : row + rows, col : col + cols] += operand^T @ grads[:, first : ...].

    Attributes:
        operand: The array of the forward program that the operand is in: a stream, a residual, or a state, which is
            meant before the step.
        start: The first number of the operand in that array.
        matrix: The name of the matrix.
        row, col: Where the part of the matrix begins.
        rows, cols: Its size.
        given: The output of the backward program that has the gradients of what the product gives.
        first: Where they begin there.
    """

    operand: str
    start: int
    matrix: str
    row: int
    col: int
    rows: int
    cols: int
    given: str
    first: int


@dataclass(frozen=True)
class Derivative:
    """A program and its backward program.

    Attributes:
        forward: The program in elementary operations; if the backward one reads anything again, with a residual.
        backward: Reads the arrays of the program, its states as histories, what is saved, and the gradients of its
            outputs. Its states are gradients of the states, its sums those of vectors, its outputs those of all
            products and of streams.
        gradients: By the name of a stream, state, vector or output, what the backward program calls its gradient.
            What products add to a stream's is not in it; a stream that has no more is not here.
        terms: What the products add to the gradients of matrices and streams. Those in a group have the same operand,
            and the gradients of what they give lie side by side: one large product for all that add to a stream's.
    """

    forward: Program
    backward: Program
    gradients: Mapping[str, str]
    terms: tuple[tuple[Term, ...], ...]


def derive(program: Program) -> Derivative:
    """Derive the backward program."""
    return _Derivation(program).result()


class _Derivation:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = program.nodes
        self.names = {a.name for a in program.arrays}
        self.gradient_of = {
            a.name: self._new(f"grad_{a.name}") for a in program.of("stream", "state", "vector", "output")
        }
        self.residual = self._new("saved")
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

    def _new(self, name: str) -> str:
        """A name that no array has."""
        self.names.add(found := free_name(name, self.names))
        return found

    # ---- Step 1: the gradients of all leaves and products, with the products cut off ----

    def _cotangents(self) -> dict[Node, list[Node]]:
        """What the gradient of each value that leaves the step is: a leaf of the backward program."""
        found: dict[Node, list[Node]] = {}
        for array in self.program.of("state", "output"):
            op = "state" if array.role == "state" else "stream"
            for piece, first in _placed(self.program.results[array.name]):
                leaf = self.builder.node(op, (), piece.width, (self.gradient_of[array.name], first))
                found.setdefault(piece, []).append(leaf)
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
        states = [a.name for a in self.program.of("state")]
        current = {p: (name, first) for name in states for p, first in _placed(self.program.results[name])}
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
            return self.builder.node("stream", (), node.width, (self.residual, self._place_of(node)))

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

    def _total(self, array: Array) -> list[Node]:
        """The gradient of an array, side by side."""
        leaves = [n for n in self.nodes if n.is_leaf and n.attr[0] == array.name]
        parts = [(n.attr[1], g) for n in leaves if (g := self._gradient(n))]
        edges = sorted({0, array.width, *(e for first, g in parts for e in (first, first + g.width))})
        found = []
        for a, b in itertools.pairwise(edges):
            total: Node | None = None
            for first, gradient in parts:
                if first <= a and b <= first + gradient.width:
                    piece = self.builder.cut(gradient, a - first, b - a)
                    total = piece if total is None else self.builder.pointwise("add", total, piece)
            found.append(total if total is not None else self._zero(b - a))
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
        made = {self.gradient_of[a.name]: self._total(a) for a in program.of("state", "vector", "stream")}
        for stream in program.of("stream"):
            if all(g.op == "constant" for g in made[self.gradient_of[stream.name]]):
                del made[self.gradient_of.pop(stream.name)]
        products = {self._new(f"grad_product{k}"): dots for k, dots in enumerate(self._together())}
        for name, dots in products.items():
            made[name] = [self._gradient(dot) or self._zero(dot.width) for dot in dots]
        flat = iter(self._resolve([g for pieces in made.values() for g in pieces]))
        results = {name: tuple(itertools.islice(flat, len(pieces))) for name, pieces in made.items()}
        for operand in self.operands:  # matrices' gradients need what the products took
            if not operand.is_leaf and operand not in self.saved:
                self.saved.append(operand)
        saved: dict[str, tuple[Node, ...]] = {self.residual: tuple(self.saved)} if self.saved else {}
        residual = tuple(Array(name, "residual", _width(p), place="packed") for name, p in saved.items())
        forward = Program((*program.arrays, *residual), {**program.results, **saved}, program.names)
        arrays = tuple(self._backward_arrays(results, residual))
        backward = refine(merge_products(elementary(Program(arrays, results))))
        return Derivative(elementary(forward), backward, self.gradient_of, self._terms(products))

    def _backward_arrays(self, results: Mapping[str, tuple[Node, ...]], residual: tuple[Array, ...]) -> Iterator[Array]:
        """The arrays of the backward program: those of the program, then gradients."""
        names = {gradient: name for name, gradient in self.gradient_of.items()}
        for a in self.program.of("stream", "state", "vector", "matrix"):
            yield replace(a, role="history", place="padded") if a.role == "state" else a
        for a in residual:
            yield replace(a, role="stream")
        for a in self.program.of("output"):
            yield Array(self.gradient_of[a.name], "stream", a.width, place="padded")
        roles = {"state": "state", "vector": "sum", "stream": "output"}
        for name, pieces in results.items():
            of = self.program[names[name]] if name in names else None
            role, place = ("output", "packed") if of is None else (roles[of.role], of.place)
            yield Array(name, role, _width(pieces), place="carried" if role == "state" else place)

    def _together(self) -> list[list[Node]]:
        """The products in runs that take the same streams: their gradients are one large product's whole operand."""
        runs = itertools.groupby(self.dots, lambda dot: [a for a in dot.args if a.op == "stream"])
        return [list(run) for _, run in runs]

    def _terms(self, products: Mapping[str, list[Node]]) -> tuple[tuple[Term, ...], ...]:
        groups: list[list[Term]] = []
        for given, dots in products.items():
            for dot, first in _placed(tuple(dots)):
                for arg, (matrix, row, col, _) in zip(dot.args, dot.attr, strict=True):
                    operand, start = arg.attr if arg.is_leaf else (self.residual, self._place_of(arg))
                    term = Term(operand, start, matrix, row, col, arg.width, dot.width, given, first)
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
    return (a.operand, a.start, a.rows, end) == (b.operand, b.start, b.rows, (b.given, b.first))


def _continues(a: Term, b: Term) -> bool:
    """Whether b, beside a, also takes the columns of the same matrix that follow."""
    return (a.matrix, a.row, a.col + a.cols) == (b.matrix, b.row, b.col)


def _width(pieces: Iterable[Node]) -> int:
    return sum(p.width for p in pieces)


def _placed(pieces: tuple[Node, ...]) -> list[tuple[Node, int]]:
    placed, first = [], 0
    for piece in pieces:
        placed.append((piece, first))
        first += piece.width
    return placed
