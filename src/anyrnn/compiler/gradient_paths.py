"""Which inputs of a loop have a gradient, and which have None, as in autograd's graph.

PyTorch tells zero from None: an optimiser with weight decay moves a weight whose gradient is zero, and leaves one alone
whose gradient is None. A gradient reaches an input unless only comparisons, or a `detach`, lead from it to the results;
and how many steps back it does so depends on the cell, and on which results are differentiated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyrnn.compiler.node import Node, ordered

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from anyrnn.compiler.program import Program


class GradientPaths:
    """For each result of a step of a program, the arrays that its gradient reaches."""

    def __init__(self, program: Program) -> None:
        self._arrays_of = {name: _arrays(pieces) for name, pieces in program.results.items()}
        self._states = frozenset(a.name for a in program.of("state"))
        self._results = tuple(a.name for a in program.of("output", "state"))
        self._all = frozenset(a.name for a in program.of("stream", "state", "vector", "matrix"))
        self._is_dense = False
        alone = (self.reached({name}, steps=1, ragged=False) for name in self._results)
        self._is_dense = all(arrays == self._all for arrays in alone)  # within a step, as in most cells
        self._unreached: dict[tuple[Iterable[str], int, bool], frozenset[str]] = {}

    def unreached(self, needed: frozenset[str], steps: int, ragged: bool) -> frozenset[str]:
        """The outputs and final states whose gradients reach none of the inputs whose gradients are needed."""
        if self._is_dense and needed:
            return frozenset()
        key = needed, min(steps, len(self._states) + 1), ragged  # that many steps back, nothing new is reached
        if key not in self._unreached:
            self._unreached[key] = frozenset(
                name for name in self._results if self.reached({name}, key[1], ragged).isdisjoint(needed)
            )
        return self._unreached[key]

    def reached(self, results: Collection[str], steps: int, ragged: bool) -> frozenset[str]:
        """The streams, initial states, vectors and matrices that have a gradient.

        Args:
            results: Which outputs and final states have one.
            steps: The number of steps of the loop.
            ragged: Rows end at different steps: a state that a step does not read goes on for the other rows.
        """
        if self._is_dense and results and steps:
            return self._all
        of_outputs = frozenset[str]().union(*(self._arrays_of[name] for name in results if name not in self._states))
        live = self._states.intersection(results)  # the states after the step whose gradients are carried to it
        reached: set[str] = set()
        for _ in range(steps):
            in_step = of_outputs.union(*(self._arrays_of[name] for name in live))
            before = (in_step & self._states) | (live if ragged else frozenset())
            reached |= in_step
            if before == live:
                break
            live = before
        return (frozenset(reached) - self._states) | live


def _arrays(roots: Iterable[Node]) -> frozenset[str]:
    """The arrays that the gradients of some values reach within a step."""

    def stops(node: Node) -> bool:
        return node.is_mask or node.op == "detach"

    arrays: set[str] = set()
    for node in ordered(roots, is_input=stops):
        if node.is_leaf:
            arrays.add(node.attr[0])
        elif node.op == "dot":
            arrays.update(at[0] for at in node.attr)
    return frozenset(arrays)
