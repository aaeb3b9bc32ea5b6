"""The backward program of a loop program: its vector-Jacobian product, by PyTorch's own autograd.

The step is evaluated in PyTorch with every product cut out: its result is a leaf, its operands are outputs; so are
contractions, and what moves numbers. What is left is arithmetic on each number and reductions. Autograd differentiates
that, and each operation it runs is recorded and lowered as the cell's own were; the derivative of an activation is
PyTorch's own backward operation. The products are put back by the chain rule: the gradient of an operand is that of the
result times the transposed matrix. Gradients of matrices are left for weight-gradient GEMMs after the loop, over all
steps at once (`Term`). What is read by strides has the derivatives of `strided.py`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

from anyrnn.compiler.graph import Ref
from anyrnn.compiler.lower import Lowered, Lowering
from anyrnn.compiler.node import Builder, Node, evaluate, ordered
from anyrnn.compiler.ops import OPERATIONS, REDUCTIONS
from anyrnn.compiler.passes import elementary, expand, merge_products, refine
from anyrnn.compiler.program import Array, Program, free_name
from anyrnn.compiler.recorder import Recorder
from anyrnn.compiler.rules import lower
from anyrnn.compiler.strided import Box, adjoint, moved_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from anyrnn.compiler.graph import Op


@dataclass(frozen=True)
class Term:
    """A weight-gradient GEMM: grad_matrix[row : row + rows, col : col + cols] += operand.T @ grad[:, first : ...].

    Attributes:
        operand: The array of the forward program that has the operand of the product: a stream, a residual, or a state
            as it was before the step.
        start: The first number of the operand in that array.
        matrix: The name of the matrix.
        row, col: Where the part of the matrix begins.
        rows, cols: Its size.
        gradient: The output of the backward program that has the gradient of the product's result.
        first: The first number of that gradient there.
    """

    operand: str
    start: int
    matrix: str
    row: int
    col: int
    rows: int
    cols: int
    gradient: str
    first: int

    def overlaps(self, other: Term) -> bool:
        """Whether both are gradients of the same numbers of a matrix."""
        across = self.row < other.row + other.rows and other.row < self.row + self.rows
        along = self.col < other.col + other.cols and other.col < self.col + self.cols
        return self.matrix == other.matrix and across and along


@dataclass(frozen=True)
class Derivative:
    """A program and its backward program.

    Attributes:
        forward: The program in elementary operations; with a residual, if the backward program needs one.
        backward: Reads the arrays of the program, its states as histories, the residual, and the gradients of the
            outputs. Its states are gradients of the states and of rows, its sums those of vectors, its outputs those
            of all products and of streams.
        gradients: The name of the gradient of a stream, row, state, vector or output in the backward program. A
            stream's is without what its products add; a stream that only products read is not here.
        terms: The weight-gradient GEMMs. Those of a group have the same operand, and gradients that lie side by side:
            if the operand is a stream, its gradient is one product of these with the matrices side by side.
    """

    forward: Program
    backward: Program
    gradients: Mapping[str, str]
    terms: tuple[tuple[Term, ...], ...]


def derive(program: Program) -> Derivative:
    """Differentiate a program."""
    return _Derivation(program).result()


class _Derivation:
    """The gradients of a program's values, as nodes.

    A gradient is built with placeholders in it, which `_resolved` replaces: a node "forward" (k, first) is a range of
    the k-th value of the program, a node "operand" (k, first) a range of the gradient of the k-th operand.

    Attributes:
        dots: The products, and `readers` the other values that are cut out (`_is_reader`).
        operands: What these read, as far as its gradient is computed within the step.
        gradients: The gradients of all leaves, products and readers, with placeholders (step 1).
        new_states: The values that are written to a state: its name, and where in it.
        in_memory: The values that the backward program reads from memory; all others it computes again.
        saved: Those of them that are no state, as they turn up: they lie side by side in the array `residual`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = program.nodes
        self.names = {a.name for a in program.arrays}
        self.gradient_names = {
            a.name: self._new_name(f"grad_{a.name}") for a in program.of("stream", "row", "state", "vector", "output")
        }
        self.residual = self._new_name("saved")
        self.dots = sorted((n for n in self.nodes if n.op == "dot"), key=lambda n: (n.attr[0][0], n.attr[0][2]))
        self.builder = Builder.of(self.nodes)
        self.lowering = Lowering(self.builder)
        self.saved: list[Node] = []
        self.readers = [n for n in self.nodes if _is_reader(n)]
        # Not streams: the gradient that they have from products is left for after the loop.
        of_dots = [a for dot in self.dots for a in dot.args if a.op != "stream"]
        self.operands = list(dict.fromkeys([*of_dots, *(a for reader in self.readers for a in reader.args)]))
        states = [(a.name, program.results[a.name]) for a in program.of("state")]
        self.new_states = {piece: (name, offset) for name, pieces in states for piece, offset in _with_offsets(pieces)}
        self.in_memory = self._expensive().union(of_dots, self.new_states)
        self._multiplied = [a for a in dict.fromkeys(of_dots) if not a.is_leaf]
        self._rematerialized_nodes: dict[Node, Node] = {}
        self._resolved_nodes: dict[Node, Node] = {}
        self.gradients = self._differentiate()

    def _expensive(self) -> set[Node]:
        """The values that are saved for the backward pass rather than computed again."""
        expanded = expand(self.nodes)

        def is_expensive(node: Node) -> bool:
            args = {expanded[a] for a in node.args}
            parts = (n.op for n in ordered([expanded[node]], is_input=args.__contains__) if n not in args)
            expensive = any(op in OPERATIONS and OPERATIONS[op].expensive for op in parts)
            return expensive or node.op in ("dot", "contract", "largest") or node.op in REDUCTIONS

        return {node for node in self.nodes if is_expensive(node)}

    def _new_name(self, wanted: str) -> str:
        """A name that no array has."""
        self.names.add(name := free_name(wanted, self.names))
        return name

    # ---- Step 1: autograd, with the products cut out ----

    def _differentiate(self) -> dict[Node, Lowered]:
        """The gradients of all leaves and products: autograd's backward pass through the step, recorded and lowered."""
        recorder, cotangents, batch = Recorder(), self._cotangents(), 2
        inputs = [n for n in self.nodes if n.is_leaf or n.op == "dot" or _is_reader(n)]
        if not inputs:
            return {}  # everything is a constant
        tensors = {n: torch.ones(batch, n.width, dtype=torch.float64, requires_grad=True) for n in inputs}
        grads_out = [torch.ones(batch, node.width, dtype=torch.float64) for node, _ in cotangents]
        for tensor in (*grads_out, *tensors.values()):
            recorder.ref(tensor)
        with torch.enable_grad(), recorder:
            evaluate(self.nodes, tensors)
            pairs = [(tensors[n], g) for (n, _), g in zip(cotangents, grads_out, strict=True)]
            pairs = [(x.expand_as(g), g) for x, g in pairs if x.requires_grad]
            if not pairs:
                return {}
            # What torch.autograd.grad calls: that one loads a package for symbolic mathematics first, in 0.3 s.
            grads_in = torch.autograd.Variable._execution_engine.run_backward(
                *zip(*pairs, strict=True), False, False, tuple(map(tensors.__getitem__, inputs)),
                allow_unreachable=True, accumulate_grad=False,
            )  # fmt: skip
        lowered = {
            recorder.ref(g): self.lowering.of_nodes([leaf]) for g, (_, leaf) in zip(grads_out, cotangents, strict=True)
        }
        lowered |= {recorder.ref(tensors[node]): self._forward_value(k) for k, node in enumerate(self.nodes)}
        for op in recorder.ops:  # a maximum over a dimension has another shape than the value that it is
            if op.short_name == "view" and op.outputs[0] in lowered and op.args[0] not in lowered:
                codes = lowered[op.outputs[0]].codes.reshape(recorder.shapes[op.args[0]][1:])
                lowered[op.args[0]] = Lowered(codes, batched=True)
        self._lower(recorder.ops, lowered)
        return {n: lowered[recorder.ref(g)] for n, g in zip(inputs, grads_in, strict=True) if g is not None}

    def _cotangents(self) -> list[tuple[Node, Node]]:
        """The values that leave the step, cut as it is, each with the node that stands for its gradient."""
        cotangents: dict[Node, list[Node]] = {}
        for array in self.program.of("state", "output"):
            op = "state" if array.role == "state" else "stream"
            for piece, offset in _with_offsets(self.program.results[array.name]):
                leaf = self.builder.node(op, (), piece.width, (self.gradient_names[array.name], offset))
                cotangents.setdefault(piece, []).append(leaf)
        for k, operand in enumerate(self.operands):
            cotangents.setdefault(operand, []).append(self.builder.node("operand", (), operand.width, (k, 0)))
        return [(node, leaf) for node, leaves in cotangents.items() for leaf in leaves]

    def _forward_value(self, k: int) -> Lowered:
        if self.nodes[k].op == "constant":
            return self.lowering.constant(self.nodes[k].attr[0])
        return self.lowering.of_nodes([self.builder.node("forward", (), self.nodes[k].width, (k, 0))])

    def _lower(self, steps: Iterable[Op], lowered: dict[Ref, Lowered]) -> None:
        """Lower autograd's operations; those of the evaluation are known already."""
        for op in steps:
            if op.short_name == "detach":  # autograd's, of what it saved
                lowered.setdefault(op.outputs[0], lowered[op.args[0]])
            elif any(ref not in lowered for ref in op.outputs):
                args, kwargs = pytree.tree_map_only(Ref, lowered.__getitem__, (op.args, dict(op.kwargs)))
                results = lower(self.lowering, op, args, kwargs, composite=False)
                for ref, tensor in zip(op.outputs, results, strict=False):
                    lowered.setdefault(ref, tensor)

    # ---- Step 2: the products put back, and forward values read from memory ----

    def _resolved(self, root: Node) -> Node:
        """Replace the placeholders in a gradient by what the backward program can compute.

        Of h_new = tanh(h @ U), with g the gradient of h_new, step 1 gives the gradients

            product: mul(g, sub(1, mul(forward(h_new), forward(h_new))))        h: operand(h)

        where forward(h_new) becomes `current(h)`, since it is a state, and operand(h) `dot(mul(g, ...) @ U.T)`.
        """
        for node in ordered([root]):
            if node not in self._resolved_nodes:
                if node.op == "forward":
                    new = self.builder.cut(self._rematerialized(self.nodes[node.attr[0]]), node.attr[1], node.width)
                elif node.op == "operand":
                    new = self.builder.cut(self._operand_gradient(node.attr[0]), node.attr[1], node.width)
                elif node.args:
                    new = self.builder.alike(node, tuple(self._resolved_nodes[a] for a in node.args))
                else:
                    new = node
                self._resolved_nodes[node] = new
        return self._resolved_nodes[root]

    def _rematerialized(self, root: Node) -> Node:
        """A forward value in the backward program: read from an array, or computed again from values that are."""
        for node in ordered([root], is_input=lambda n: n in self.in_memory or not n.args):
            if node not in self._rematerialized_nodes:
                self._rematerialized_nodes[node] = self._rematerialized_node(node)
        return self._rematerialized_nodes[root]

    def _rematerialized_node(self, node: Node) -> Node:
        if node.op == "state":
            return self.builder.node("previous", (), node.width, node.attr)
        if not node.args:
            return node
        if node in self.new_states:
            return self.builder.node("current", (), node.width, self.new_states[node])
        if node not in self.in_memory:
            return self.builder.alike(node, tuple(self._rematerialized_nodes[a] for a in node.args))
        if node not in self.saved:
            self.saved.append(node)
        return self.builder.node("stream", (), node.width, (self.residual, self._residual_offset(node)))

    def _operand_gradient(self, k: int) -> Node:
        """The gradient of an operand: those of its products times the transposed matrices."""
        operand = self.operands[k]
        terms = []
        for dot in self.dots if operand.op != "stream" else ():
            gradient = self._gradient(dot)
            for arg, (matrix, row, col, _) in zip(dot.args, dot.attr, strict=True):
                if arg is operand and gradient is not None:
                    resolved = self._resolved(gradient)
                    if resolved.op != "constant":  # that is zero
                        terms.append((resolved, (matrix, col, row, True)))
        parts = [self.builder.dot(terms, operand.width)] if terms else []
        parts += self._gradients_of_readers(operand)
        total = parts[0] if parts else self._zero(operand.width)
        for part in parts[1:]:
            total = self.builder.pointwise("add", total, part)
        return total

    def _gradients_of_readers(self, operand: Node) -> list[Node]:
        """The gradient that a value has from what reads it by strides: by contractions, and by all the others."""
        parts: list[Node] = []
        moves: list[tuple[Node, Box]] = []
        for reader in self.readers:
            given = self._gradient(reader) if operand in reader.args else None
            gradient = None if given is None else self._resolved(given)
            if gradient is None or gradient.op == "constant":  # that is zero
                continue
            for k in (k for k, arg in enumerate(reader.args) if arg is operand):
                if reader.op == "contract":
                    args = [a if n == k else self._rematerialized(a) for n, a in enumerate(reader.args)]
                    parts.append(adjoint(self.builder, reader, k, gradient, args))
                elif reader.op == "part":
                    moves.append((gradient, (0, (reader.width,), reader.attr[0], (1,), 0, (1,))))
                else:
                    moves += [(gradient, box) for box in reader.attr if box[0] == k]
        return [*parts, *([moved_back(self.builder, moves, operand.width)] if moves else [])]

    def _gradient(self, node: Node) -> Node | None:
        """The gradient of a leaf or product, with placeholders; None if it has none."""
        if node not in self.gradients:
            return None
        return self.lowering.piece(self.gradients[node])

    def _array_gradient(self, array: Array) -> list[Node]:
        """The gradient of an array in pieces side by side: the sum over the leaves that read it, which may overlap."""
        leaves = [n for n in self.nodes if n.is_leaf and n.attr[0] == array.name]
        parts = [(n.attr[1], g) for n in leaves if (g := self._gradient(n))]
        edges = sorted({0, array.width, *(e for first, g in parts for e in (first, first + g.width))})
        pieces = []
        for start, end in itertools.pairwise(edges):
            total: Node | None = None
            for first, gradient in parts:
                if first <= start and end <= first + gradient.width:
                    piece = self.builder.cut(gradient, start - first, end - start)
                    total = piece if total is None else self.builder.pointwise("add", total, piece)
            pieces.append(total if total is not None else self._zero(end - start))
        return pieces

    def _added_up(self, name: str, gradient: Node, first: int) -> Node:
        """The gradient of a row, which is summed over the steps: a state of the backward program."""
        before = self.builder.node("state", (), gradient.width, (name, first))
        return before if gradient.op == "constant" else self.builder.pointwise("add", before, gradient)

    def _residual_offset(self, node: Node) -> int:
        """The first number of a saved value in the residual."""
        return sum(s.width for s in self.saved[: self.saved.index(node)])

    def _zero(self, width: int) -> Node:
        return self.builder.node("constant", (), width, (0.0,))

    # ---- Step 3: the programs ----

    def result(self) -> Derivative:
        """Put the backward program together."""
        program = self.program
        arrays = program.of("state", "vector", "stream", "row")
        grads = {self.gradient_names[a.name]: self._array_gradient(a) for a in arrays}
        for array in program.of("stream", "row"):
            if all(g.op == "constant" for g in grads[self.gradient_names[array.name]]):
                del grads[self.gradient_names.pop(array.name)]
            elif array.role == "row":
                name = self.gradient_names[array.name]
                grads[name] = [self._added_up(name, piece, first) for piece, first in _with_offsets(tuple(grads[name]))]
        products = {self._new_name(f"grad_product{k}"): dots for k, dots in enumerate(self._products_by_streams())}
        for name, dots in products.items():
            grads[name] = [self._gradient(dot) or self._zero(dot.width) for dot in dots]
        results = {name: tuple(map(self._resolved, pieces)) for name, pieces in grads.items()}
        for operand in self._multiplied:  # the weight-gradient GEMMs read them
            if operand not in self.saved:
                self.saved.append(operand)
        saved: dict[str, tuple[Node, ...]] = {self.residual: tuple(self.saved)} if self.saved else {}
        residual = tuple(Array(name, "residual", _width(p), place="packed") for name, p in saved.items())
        forward = Program((*program.arrays, *residual), {**program.results, **saved}, program.names)
        arrays = tuple(self._backward_arrays(results, residual))
        backward = refine(merge_products(elementary(Program(arrays, results))))
        return Derivative(elementary(forward), backward, self.gradient_names, self._terms(products))

    def _backward_arrays(self, results: Mapping[str, tuple[Node, ...]], residual: tuple[Array, ...]) -> Iterator[Array]:
        """The arrays of the backward program: those of the program, then gradients."""
        arrays = {gradient: self.program[name] for name, gradient in self.gradient_names.items()}
        for a in self.program.of("stream", "row", "state", "vector", "matrix"):
            yield replace(a, role="history", place="padded") if a.role == "state" else a
        for a in residual:
            yield replace(a, role="stream")
        for a in self.program.of("output"):
            yield Array(self.gradient_names[a.name], "stream", a.width, place="padded")
        roles = {"state": "state", "row": "state", "vector": "sum", "stream": "output"}
        for name, pieces in results.items():
            of = arrays.get(name)
            role, place = ("output", "packed") if of is None else (roles[of.role], of.place)
            yield Array(name, role, _width(pieces), place="carried" if role == "state" else place)

    def _products_by_streams(self) -> list[list[Node]]:
        """The products, those together that read the same streams: their gradients are one array, and one operand."""
        groups = itertools.groupby(self.dots, lambda dot: [a for a in dot.args if a.op == "stream"])
        return [list(group) for _, group in groups]

    def _terms(self, products: Mapping[str, list[Node]]) -> tuple[tuple[Term, ...], ...]:
        groups: list[list[Term]] = []
        for grad, dots in products.items():
            for dot, first in _with_offsets(tuple(dots)):
                for arg, (matrix, row, col, _) in zip(dot.args, dot.attr, strict=True):
                    operand, start = arg.attr if arg.is_leaf else (self.residual, self._residual_offset(arg))
                    term = Term(operand, start, matrix, row, col, arg.width, dot.width, grad, first)
                    group = next((g for g in groups if _is_beside(g[-1], term)), None)
                    if group is None:
                        groups.append([term])
                    elif _continues(group[-1], term):
                        group[-1] = replace(group[-1], cols=group[-1].cols + term.cols)
                    else:
                        group.append(term)
        return tuple(map(tuple, groups))


def _is_reader(node: Node) -> bool:
    """Whether a value is cut out as a product is, since its derivative is not autograd's but that of `strided.py`.

    (A maximum over a dimension, `largest`, is one that autograd differentiates.)
    """
    return node.op in ("contract", "arrange", "part")


def _is_beside(a: Term, b: Term) -> bool:
    """Whether b has the operand of a, and a gradient that follows a's."""
    end = a.gradient, a.first + a.cols
    return (a.operand, a.start, a.rows, end) == (b.operand, b.start, b.rows, (b.gradient, b.first))


def _continues(a: Term, b: Term) -> bool:
    """Whether b, beside a, has the columns of the same matrix that follow a's."""
    return (a.matrix, a.row, a.col + a.cols) == (b.matrix, b.row, b.col)


def _width(pieces: Iterable[Node]) -> int:
    return sum(p.width for p in pieces)


def _with_offsets(pieces: tuple[Node, ...]) -> list[tuple[Node, int]]:
    """Pieces that lie side by side, each with its first number."""
    offsets = itertools.accumulate((p.width for p in pieces), initial=0)
    return list(zip(pieces, offsets, strict=False))
