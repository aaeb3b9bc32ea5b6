"""Passes: functions from a program to a program.

Each shows in its docstring what it does to the text of a program.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from anyrnn.compiler.lower import Lowering, Value
from anyrnn.compiler.node import Builder, Node, count_uses, filled, ordered
from anyrnn.compiler.ops import REDUCTIONS
from anyrnn.compiler.program import Program
from anyrnn.compiler.rules import RULES
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


def elementary(program: Program) -> Program:
    """Put elementary operations in the place of PyTorch's own.

    ::

        v0 = aten.hardtanh.default(x[0:4], -1.0, 1.0)       v0 = maximum(x[0:4], -1.0)
                                                            v1 = minimum(v0, 1.0)
    """
    return program.with_results(expand(program.nodes))


def expand(roots: Iterable[Node], builder: Builder | None = None) -> dict[Node, Node]:
    """What each value that the roots need is in elementary operations."""
    lowering = Lowering(builder or Builder())

    def expanded(node: Node, args: tuple[Node, ...]) -> Node | None:
        if not node.is_whole:
            return None
        values = [lowering.value([a], () if a.width == 1 else None, a.width > 1) for a in args]
        given, named = filled(node.attr, values)
        rule = RULES.get(node.op.split(".")[1])
        if rule is None:
            msg = f"`{node.op}` is not an operation of the loop program"
            raise AnyRNNError(msg)
        result = rule(lowering, *given, **named)
        (piece,) = lowering.pieces(result if isinstance(result, Value) else result[0])
        return piece

    return lowering.builder.rebuild(roots, expanded)


def merge_products(program: Program) -> Program:
    """Turn sums of products into one product, where they are used once.

    ::

        v0 = dot(x[0:4] @ W[0:4, 0:8])                      v0 = dot(h[0:8] @ U[0:8, 0:8], x[0:4] @ W[0:4, 0:8])
        v1 = add(v0, b[0:8])                                v1 = add(v0, b[0:8])
        v2 = dot(h[0:8] @ U[0:8, 0:8])
        v3 = add(v1, v2)
    """
    builder, uses = Builder.of(program.nodes), count_uses(program.roots)

    def addends(node: Node) -> Iterator[Node]:
        for arg in node.args:
            if arg.op == "add" and uses[arg] == 1 and arg.width == node.width:
                yield from addends(arg)
            else:
                yield arg

    done: dict[Node, Node] = {}

    def merged(node: Node) -> Node | None:
        if node.op != "add":
            return None
        parts = list(addends(node))
        dots = [p for p in parts if p.op == "dot" and uses[p] == 1 and p.width == node.width]
        if len(dots) < 2:
            return None
        total = builder.dot(((done[a], at) for d in dots for a, at in zip(d.args, d.attr, strict=True)), node.width)
        for part in parts:
            if part not in dots:
                total = builder.pointwise("add", total, done[part])
        return total

    for node in program.nodes:
        new = merged(node)
        done[node] = builder.alike(node, tuple(done[a] for a in node.args)) if new is None else new
    return program.with_results(done)


def refine(program: Program) -> Program:
    """Cut what is reduced where other values cut the same products, so that none is computed twice.

    Sums of reductions become one reduction. ::

        v0 = dot(h[0:8] @ U[0:8, 0:8])                      v0 = dot(h[0:8] @ U[0:8, 0:4])
        v1 = sum(v0)                                        v1 = dot(h[0:8] @ U[0:8, 4:8])
        v2 = dot(h[0:8] @ U[0:8, 0:4])                      v2 = sum(v0, v1)
        v3 = tanh(v2)                                       v3 = tanh(v0)
    """
    builder, uses = Builder.of(program.nodes), count_uses(program.roots)
    families: dict[object, set[int]] = {}

    def family(dot: Node) -> object:
        return dot.args, tuple((m, row, tr) for m, row, _, tr in dot.attr)

    for node in program.nodes:
        if node.op == "dot":
            families.setdefault(family(node), set()).update((node.attr[0][2], node.attr[0][2] + node.width))

    def edges(node: Node) -> list[int]:
        inner = (n for n in ordered([node]) if n.op == "dot" and n.width == node.width)
        found = {edge - dot.attr[0][2] for dot in inner for edge in families[family(dot)]}
        return sorted({0, node.width} | {e for e in found if 0 < e < node.width})

    def refined(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op == "add" and all(a.op == "sum" for a in args) and all(uses[a] == 1 for a in node.args):
            return builder.reduction("sum", (*args[0].args, *args[1].args))
        if node.op not in REDUCTIONS:
            return None
        pieces = [builder.cut(a, i, j - i) for a in args for e in [edges(a)] for i, j in itertools.pairwise(e)]
        return builder.reduction(node.op, tuple(pieces))

    return program.with_results(builder.rebuild(program.roots, refined))


#: What a loop goes through as it is lowered, in order.
PASSES: tuple[Callable[[Program], Program], ...] = (merge_products, refine)


def placed(program: Program, places: Mapping[str, str]) -> Program:
    """Say how arrays lie in memory.

    ::

        state h[8]                                          state h[8] kept
    """
    return replace(program, arrays=tuple(replace(a, place=places.get(a.name, a.place)) for a in program.arrays))


def without(program: Program, names: Iterable[str]) -> Program:
    """Leave outputs out, and what only they need.

    ::

        output y[8]                                         state h[8]
        state h[8]
    """
    left = set(names)
    arrays = tuple(a for a in program.arrays if a.name not in left)
    return replace(program, arrays=arrays, results={k: v for k, v in program.results.items() if k not in left})


def anonymous(program: Program) -> Program:
    """Call arrays by role and number, and values by number: what programs of equal machine code have in common.

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

    made = builder.rebuild(program.roots, renamed)
    return Program(
        tuple(replace(a, name=new[a.name]) for a in program.arrays),
        {new[name]: tuple(made[p] for p in pieces) for name, pieces in program.results.items()},
    )
