"""Random numbers in the shape of the state, drawn apart: a pass on the graph of a step, before it is split.

What an operation that draws reads of the state is often its shape alone. Then it can draw without it, as it draws in
the shape of x: in the part `before`. ::

    e = empty_like(h)                       e = new_empty(x, [B, 8])
    m = bernoulli.p(e, 0.5)                 m = bernoulli.p(e, 0.5)
    y = mul(h, m)                           y = mul(h, m)

If it reads a probability, it compares that with a number between 0 and 1. Its gradient is zero, as PyTorch has it. ::

    y = bernoulli(p)                        u = rand_like(new_empty(x, [B, 8]))
                                            y = surrogate(_to_copy(lt(u, p)), p, zeros_like(p))
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

import anyrnn.compiler.surrogate  # noqa: F401 - it registers the operator
from anyrnn.compiler.graph import Graph, Op, Ref

if TYPE_CHECKING:
    from collections.abc import Mapping

_aten = torch.ops.aten

#: Operations that read nothing of their first argument but its shape and type.
_OF_SHAPES = frozenset({"rand_like", "randn_like", "randint_like", "uniform", "normal_functional", "exponential"}) | {
    *("geometric", "cauchy", "log_normal", "random"),
}


def drawn_apart(graph: Graph) -> Graph:
    """Let what draws in the shape of the state draw without it."""
    if not any(torch.Tag.nondeterministic_seeded in op.overload.tags for op in graph.ops):
        return graph
    return _Drawing(graph).result()


class _Drawing:
    """The graph in the making."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._shapes, self._dtypes = dict(graph.shapes), dict(graph.dtypes)
        self._next = 1 + max(graph.shapes)
        self._ops: list[Op] = []
        self._of_state = set(graph.states)

    def result(self) -> Graph:
        for op in self.graph.ops:
            draws = torch.Tag.nondeterministic_seeded in op.overload.tags
            if not draws or self._of_state.isdisjoint(op.inputs):
                self._append(op)
            elif op.short_name in _OF_SHAPES or op.name in ("bernoulli.p", "bernoulli.float"):
                self._append(replace(op, args=(self._blank(op.args[0]), *op.args[1:])))
            elif op.name == "bernoulli.default":
                self._compare(op)
            else:
                self._append(op)
        return replace(self.graph, ops=tuple(self._ops), shapes=self._shapes, dtypes=self._dtypes)

    def _append(self, op: Op) -> None:
        if self._of_state.intersection(op.inputs):
            self._of_state.update(op.outputs)
        self._ops.append(op)

    def _new(
        self, overload: Any, args: tuple[Any, ...], like: Ref, kwargs: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Ref:  # fmt: skip
        """Append an operation, and return its result, of the shape and, if not given, the type of another tensor."""
        ref = Ref(self._next)
        self._next += 1
        self._shapes[ref] = self.graph.shapes[like]
        self._dtypes[ref] = self.graph.dtypes[like] if dtype is None else dtype
        self._append(Op(overload, args, kwargs or {}, (ref,), many=False))
        return ref

    def _blank(self, like: Ref) -> Ref:
        """A tensor of the shape and type of another one, without its numbers."""
        size, dtype = list(self.graph.shapes[like]), self.graph.dtypes[like]
        return self._new(_aten.new_empty.default, (self.graph.x, size), like, {"dtype": dtype})

    def _compare(self, op: Op) -> None:
        """Draw ones with the probabilities that a tensor holds."""
        (chance,) = op.inputs
        below = self._new(_aten.rand_like.default, (self._blank(chance),), chance)
        hit = self._new(_aten.lt.Tensor, (below, chance), chance, dtype=torch.bool)
        value = self._new(_aten._to_copy.default, (hit,), chance, {"dtype": self.graph.dtypes[chance]})
        zero = self._new(_aten.zeros_like.default, (chance,), chance)
        self._append(Op(torch.ops.anyrnn.surrogate.default, (value, chance, zero), {}, op.outputs, many=False))
