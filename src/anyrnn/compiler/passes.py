"""Passes: functions from program to program, most of which do not change what it computes.

Each shows in its docstring what it does to the text of a program.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from anyrnn.compiler.lower import Lowered, Lowering
from anyrnn.compiler.node import Builder, Node, count_uses, filled, ordered
from anyrnn.compiler.ops import REDUCTIONS, STAND_INS
from anyrnn.compiler.program import Program
from anyrnn.compiler.rules import RULES
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


def elementary(program: Program) -> Program:
    """Decompose PyTorch's own operations into elementary ones, and leave out what only a gradient needs.

    ::

        v0 = aten.hardtanh.default(x[0:4], -1.0, 1.0)       v0 = maximum(x[0:4], -1.0)
                                                            v1 = minimum(v0, 1.0)
    """
    return program.with_results(expand(program.nodes))


def expand(roots: Iterable[Node], builder: Builder | None = None) -> dict[Node, Node]:
    """Decompose graphs of nodes: the new node of each old one."""
    lowering = Lowering(builder or Builder())

    def expanded(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op in STAND_INS:  # differentiated, it is its value
            return args[0] if args[0].width == node.width else lowering.builder.widened(args[0], node.width)
        if not node.is_composite:
            return None
        values = [lowering.of_nodes([a], () if a.width == 1 else None, a.width > 1) for a in args]
        positional, named = filled(node.attr, values)
        rule = RULES.get(node.op.split(".")[1])
        if rule is None:
            msg = f"`{node.op}` is not an operation of the loop program"
            raise AnyRNNError(msg)
        result = rule(lowering, *positional, **named)
        (piece,) = lowering.pieces(result if isinstance(result, Lowered) else result[0])
        return piece

    return lowering.builder.rebuild(roots, expanded)


def merge_products(program: Program) -> Program:
    """Fuse a sum of products that nothing else uses into one product, which is accumulated in registers.

    ::

        v0 = dot(x[0:4] @ W[0:4, 0:8])                      v0 = dot(h[0:8] @ U[0:8, 0:8], x[0:4] @ W[0:4, 0:8])
        v1 = add(v0, b[0:8])                                v1 = add(v0, b[0:8])
        v2 = dot(h[0:8] @ U[0:8, 0:8])
        v3 = add(v1, v2)
    """
    builder, uses = Builder.of(program.nodes), count_uses(program.roots)

    def addends(node: Node) -> Iterator[Node]:
        """The values that are added up, through all additions that nothing else uses."""
        for arg in node.args:
            if arg.op == "add" and uses[arg] == 1 and arg.width == node.width:
                yield from addends(arg)
            else:
                yield arg

    rebuilt: dict[Node, Node] = {}

    def merged(node: Node) -> Node | None:
        if node.op != "add":
            return None
        values = list(addends(node))
        dots = [v for v in values if v.op == "dot" and uses[v] == 1 and v.width == node.width]
        if len(dots) < 2:
            return None
        terms = ((rebuilt[a], at) for dot in dots for a, at in zip(dot.args, dot.attr, strict=True))
        total = builder.dot(terms, node.width)
        for value in values:
            if value not in dots:
                total = builder.pointwise("add", total, rebuilt[value])
        return total

    for node in program.nodes:
        new = merged(node)
        rebuilt[node] = builder.alike(node, tuple(rebuilt[a] for a in node.args)) if new is None else new
    return program.with_results(rebuilt)


def refine(program: Program) -> Program:
    """Split the operands of reductions where others split the same product, so that no column is computed twice.

    Below, columns 0:4 are in v0 and in v2. Sums of reductions become one reduction. ::

        v0 = dot(h[0:8] @ U[0:8, 0:8])                      v0 = dot(h[0:8] @ U[0:8, 0:4])
        v1 = sum(v0)                                        v1 = dot(h[0:8] @ U[0:8, 4:8])
        v2 = dot(h[0:8] @ U[0:8, 0:4])                      v2 = sum(v0, v1)
        v3 = tanh(v2)                                       v3 = tanh(v0)
    """
    builder, uses = Builder.of(program.nodes), count_uses(program.roots)
    ends: dict[object, set[int]] = {}  # the columns at which products of the same rows and matrix begin and end

    def rows_of(dot: Node) -> object:
        return dot.args, tuple((matrix, row, transposed) for matrix, row, _, transposed in dot.attr)

    for node in program.nodes:
        if node.op == "dot":
            ends.setdefault(rows_of(node), set()).update((node.attr[0][2], node.attr[0][2] + node.width))

    def edges(node: Node) -> list[int]:
        """Where a value is to be split."""
        dots = (
            n
            for n in ordered([node], is_input=lambda n: n.is_strided or n.op == "part")
            if n.op == "dot" and n.width == node.width
        )
        inner = {end - dot.attr[0][2] for dot in dots for end in ends[rows_of(dot)]}
        return sorted({0, node.width} | {e for e in inner if 0 < e < node.width})

    def refined(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op == "add" and all(a.op == "sum" for a in args) and all(uses[a] == 1 for a in node.args):
            return builder.reduction("sum", (*args[0].args, *args[1].args))
        if node.op not in REDUCTIONS:
            return None
        # Where to split is known of the old values: a product below may have an operand that is rebuilt.
        pairs = ((a, edges(old)) for old, a in zip(node.args, args, strict=True))
        pieces = [builder.cut(a, i, j - i) for a, e in pairs for i, j in itertools.pairwise(e)]
        return builder.reduction(node.op, tuple(pieces))

    return program.with_results(builder.rebuild(program.roots, refined))


#: What a loop goes through as it is lowered, in order.
PASSES: tuple[Callable[[Program], Program], ...] = (merge_products, refine)


def placed(program: Program, places: Mapping[str, str]) -> Program:
    """Set the places of arrays: how they lie in memory.

    ::

        state h[8]                                          state h[8] kept
    """
    return replace(program, arrays=tuple(replace(a, place=places.get(a.name, a.place)) for a in program.arrays))


def without(program: Program, names: Iterable[str]) -> Program:
    """Remove outputs, and the values that only they need.

    ::

        output y[8]                                         state h[8]
        state h[8]
    """
    removed = set(names)
    arrays = tuple(a for a in program.arrays if a.name not in removed)
    return replace(program, arrays=arrays, results={k: v for k, v in program.results.items() if k not in removed})


def anonymous(program: Program) -> Program:
    """Rename arrays by role and number, values by number: programs of equal machine code become equal.

    ::

        matrix cell.weight_hh[8, 8]                         matrix matrix0[8, 8]
        c = tanh(v0)                                        v1 = tanh(v0)
    """
    numbers: dict[str, int] = {}
    new: dict[str, str] = {}
    for array in program.arrays:
        k = numbers[array.role] = numbers.get(array.role, -1) + 1
        new[array.name] = f"{array.role}{k}"
    builder = Builder()

    def renamed(node: Node, args: tuple[Node, ...]) -> Node:
        if node.is_leaf:
            return builder.node(node.op, args, node.width, (new[node.attr[0]], *node.attr[1:]))
        if node.op == "dot":
            return builder.node("dot", args, node.width, tuple((new[m], *at) for m, *at in node.attr))
        return builder.node(node.op, args, node.width, node.attr)

    rebuilt = builder.rebuild(program.roots, renamed)
    return Program(
        tuple(replace(a, name=new[a.name]) for a in program.arrays),
        {new[name]: tuple(rebuilt[p] for p in pieces) for name, pieces in program.results.items()},
    )
