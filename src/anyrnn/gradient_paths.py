"""Which tensors of a loop have a gradient at all.

PyTorch tells zero from none: an optimiser with weight decay moves a weight whose gradient is zero, and leaves one alone
that has none. A value reaches another one in the graph of autograd unless there are only comparisons, or a `detach`,
between them; and how many steps back it does so depends on the cell, and on which results are differentiated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyrnn.program import Node, Program, ordered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: A tensor of a loop: "stream", "state", "vector" or "matrix", and its number.
Place = tuple[str, int]


class GradientPaths:
    """What the results of a program's step depend on, as autograd has it."""

    def __init__(self, program: Program) -> None:
        self._outputs = [_places(pieces) for pieces in program.outputs]
        self._states = [_places(pieces) for pieces in program.new_states]
        counts = (program.streams, program.states, program.vectors, program.matrices)
        kinds = ("stream", "state", "vector", "matrix")
        self._all = [(kind, k) for kind, arrays in zip(kinds, counts, strict=True) for k in range(len(arrays))]
        alone = (self.flags(*self._only(k), steps=1, ragged=False) for k in range(len(self._outputs + self._states)))
        self._is_whole = all(map(all, alone))  # everything reaches every result within a step, as in most cells
        self._known: dict[tuple[Sequence[bool], int, bool], tuple[int, ...]] = {}

    def _only(self, result: int) -> tuple[list[bool], list[bool]]:
        """One of the outputs and final states, and none of the others."""
        has = [k == result for k in range(len(self._outputs + self._states))]
        return has[: len(self._outputs)], has[len(self._outputs) :]

    def unreached(self, needed: Sequence[bool], steps: int, ragged: bool) -> tuple[int, ...]:
        """Which of the outputs and final states no tensor reaches whose gradient is needed."""
        if self._is_whole and any(needed):
            return ()
        key = needed, min(steps, len(self._states) + 1), ragged  # that many steps back, nothing new is reached
        if key not in self._known:
            reached = (self.flags(*self._only(k), key[1], ragged) for k in range(len(self._outputs + self._states)))
            pairs = [zip(flags, needed, strict=True) for flags in reached]
            self._known[key] = tuple(k for k, pair in enumerate(pairs) if not any(f and n for f, n in pair))
        return self._known[key]

    def flags(self, outputs: Sequence[bool], states: Sequence[bool], steps: int, ragged: bool) -> list[bool]:
        """Say of each stream, initial state, vector and matrix whether it has a gradient.

        Args:
            outputs: Which outputs have one.
            states: Which final states have one.
            steps: How many steps were run.
            ragged: Rows end at different steps: a state that a step does not read goes on for the other rows.
        """
        every = frozenset[Place]().union(*(places for places, k in zip(self._outputs, outputs, strict=True) if k))
        live = frozenset(k for k, has in enumerate(states) if has)
        found: set[Place] = set()
        for _ in range(steps):
            here = every.union(*(self._states[k] for k in live))
            before = frozenset(k for kind, k in here if kind == "state") | (live if ragged else frozenset())
            found |= here
            if before == live:
                break
            live = before
        return [k in live if kind == "state" else (kind, k) in found for kind, k in self._all]


def _places(roots: Iterable[Node]) -> frozenset[Place]:
    def ends(node: Node) -> bool:
        return node.is_mask or node.op == "detach"

    found: set[Place] = set()
    for node in ordered(roots, given=ends):
        if node.is_leaf:
            found.add((node.op, node.attr[0]))
        elif node.op == "dot":
            found.update(("matrix", at[0]) for at in node.attr)
    return frozenset(found)
