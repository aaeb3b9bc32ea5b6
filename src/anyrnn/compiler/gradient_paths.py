"""Which tensors of a loop have a gradient at all.

PyTorch tells zero from none: an optimiser with weight decay moves a weight whose gradient is zero, and leaves one alone
that has none. A value reaches another one in the graph of autograd unless there are only comparisons, or a `detach`,
between them; and how many steps back it does so depends on the cell, and on which results are differentiated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyrnn.compiler.ops import STAND_INS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from anyrnn.compiler.node import Node
    from anyrnn.compiler.program import Program


_REMEMBERED = 1024  # answers, for as many numbers of steps


class GradientPaths:
    """What the results of a program's step depend on, as autograd has it."""

    def __init__(self, program: Program) -> None:
        self._reached = {name: _arrays(pieces) for name, pieces in program.results.items()}
        self._states = frozenset(a.name for a in program.of("state"))
        self._results = tuple(a.name for a in program.of("output", "state"))
        self._all = frozenset(a.name for a in program.of("stream", "row", "state", "vector", "matrix"))
        self._is_complete = False
        alone = (self.reached({name}, steps=1, ragged=False) for name in self._results)
        self._is_complete = all(found == self._all for found in alone)  # within a step, as in most cells
        self._known: dict[tuple[Iterable[str], int, bool], frozenset[str]] = {}

    def unreached(self, needed: frozenset[str], steps: int, ragged: bool) -> frozenset[str]:
        """Which of the outputs and final states no tensor reaches whose gradient is needed."""
        if self._is_complete and needed:
            return frozenset()
        key = needed, steps, ragged
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = frozenset(
                name for name in self._results if self.reached({name}, steps, ragged).isdisjoint(needed)
            )
        return self._known[key]

    def reached(self, results: Collection[str], steps: int, ragged: bool) -> frozenset[str]:
        """The streams, initial states, vectors and matrices that have a gradient.

        Args:
            results: Which outputs and final states have one.
            steps: How many steps were run.
            ragged: Rows end at different steps: a state that a step does not read goes on for the other rows.
        """
        if self._is_complete and results and steps:
            return self._all
        every = frozenset[str]().union(*(self._reached[name] for name in results if name not in self._states))
        live = self._states.intersection(results)  # the states before whose gradient goes further back
        found: set[str] = set()
        seen: dict[frozenset[str], int] = {}
        step = 0
        while step < steps:
            if live in seen:  # states may change places for ever: what follows is known
                steps = step + (steps - step) % (step - seen[live])
                seen = {}
                continue
            seen[live] = step
            here = every.union(*(self._reached[name] for name in live))
            found |= here
            live = (here & self._states) | (live if ragged else frozenset())
            step += 1
        return (frozenset(found) - self._states) | live


def _arrays(roots: Iterable[Node]) -> frozenset[str]:
    found: set[str] = set()
    seen: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node in seen or node.is_mask or node.op == "detach":
            continue
        seen.add(node)
        if node.is_leaf:
            found.add(node.attr[0])
        elif node.op == "dot":
            found.update(at[0] for at in node.attr)
        waiting += node.args[: STAND_INS.get(node.op)]  # a slope, or a limit, is read and has no gradient
    return frozenset(found)
