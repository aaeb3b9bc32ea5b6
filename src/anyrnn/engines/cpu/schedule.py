"""Scheduling and loop fusion: the groups of a program's values that are computed in one loop over rows and units.

A group computes values of one width, block by block of units: first its products, accumulated in registers, then the
arithmetic on them, their epilogue. A product or a reduction of computed values is in a later stage than these, since it
needs all units of a row. So does what reads values by strides (`STRIDED`), each a group by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from anyrnn.compiler.node import count_uses
from anyrnn.compiler.ops import REDUCTIONS
from anyrnn.compiler.strided import is_fixed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anyrnn.compiler.node import Node
    from anyrnn.compiler.program import Program

#: An array as the code of a group reads or writes it: a kind, and the name of an array of the program (or "").
#: "stream", "row", "vector": as its role.
#: "state", "previous": a kept state before the step, of the forward program and of a history; "current": that after it.
#: "sequence": a kept state, where it is written; "carry": a carried one, where it is read and written.
#: "output": outputs and residuals. "total": what is summed over rows and steps. "order": that of the rows.
#: "scratch" and "uniform" are memory of the kernel's own.
ArrayKey: TypeAlias = tuple[str, str]

#: The array that has, for each row, the values that later groups of the same step read.
SCRATCH: ArrayKey = ("scratch", "")

#: The array that has what is arranged of weights alone, the same for all rows and steps: computed once a call.
UNIFORM: ArrayKey = ("uniform", "")


@dataclass(frozen=True)
class Location:
    """Where a value is in memory: the array, such as ("output", "y"), and the first number in a row of it."""

    array: ArrayKey
    first: int


@dataclass
class Group:
    """Values of one width and stage, computed in one loop.

    Attributes:
        stage: Groups of lower stages are computed before.
        width: The width of the values.
        nodes: The values to compute: products first, then arguments before users.
        stores: The values that are written, and where.
        partial: Reductions, the values here that each accumulates, and whether it is the first group to do so.
        totals: Values that are summed over rows and steps, and the first number of the sum among the totals.
        strided: The value, if it is a single one of `STRIDED`, which is computed by loops over inner dimensions.
    """

    stage: int
    width: int
    nodes: list[Node] = field(default_factory=list)
    stores: list[tuple[Node, Location]] = field(default_factory=list)
    partial: list[tuple[Node, list[Node], bool]] = field(default_factory=list)
    totals: list[tuple[Node, int]] = field(default_factory=list)
    strided: Node | None = None

    @property
    def dots(self) -> list[Node]:
        """The products of the group."""
        return [n for n in self.nodes if n.op == "dot"]

    @property
    def operands(self) -> list[tuple[Node, list[tuple[Node, int]]]]:
        """The operands of the products, each with its users: a product and the index of the term in it."""
        users: dict[Node, list[tuple[Node, int]]] = {}
        for dot in self.dots:
            for k, arg in enumerate(dot.args):
                users.setdefault(arg, []).append((dot, k))
        return list(users.items())


@dataclass(frozen=True)
class Schedule:
    """The groups of a program in order, and the locations of all values that are read from memory.

    Attributes:
        program: The program.
        groups: The groups.
        locations: The locations of the values that another group, or a product, reads.
        partials: The first number in scratch of the lanes in which each reduction is accumulated.
        scratch: How many numbers a row of scratch has.
        copies: States, with their first numbers in scratch, that are copied to their arrays at the end of a step.
        sums: The ranges (start, end) of the totals that side by side are each sum.
        total_width: How many numbers the totals are.
        uniform: The values that are the same for all rows and steps, in order.
        uniform_width: How many numbers they are.
    """

    program: Program
    groups: tuple[Group, ...]
    locations: dict[Node, Location]
    partials: dict[Node, int]
    scratch: int
    copies: tuple[tuple[str, int], ...]
    sums: Mapping[str, tuple[tuple[int, int], ...]]
    total_width: int
    uniform: tuple[Node, ...]
    uniform_width: int


def schedule(program: Program, lanes: int) -> Schedule:
    """Schedule a program.

    Args:
        program: The program; all its arrays have their places.
        lanes: The numbers in a vector, as many as a reduction keeps for each row.
    """
    return _Scheduler(program, lanes).result()


class _Scheduler:
    """A schedule in the making.

    Attributes:
        stage: The stage that computes each value.
        groups: By stage, width, and the value if it is one of `STRIDED`.
        home: The group of each value: see `_home_of`.
        addends: Of what is summed over rows and steps, the values whose sums are added up to it.
        order: The groups in the order in which they run.
    """

    def __init__(self, program: Program, lanes: int) -> None:
        self.program = program
        self.lanes = lanes
        self.scratch = 0
        self.locations: dict[Node, Location] = {}
        self.stage: dict[Node, int] = {}
        self.groups: dict[tuple[int, int, Node | None], Group] = {}
        self.home: dict[Node, Group] = {}
        self.uniform: list[Node] = []
        self.uniform_width = 0
        self.addends = self._addends_of_sums()
        added_later = {n for n in self.addends if self.addends[n] != [n]}
        for node in program.nodes:
            if node not in added_later:
                self._assign(node)
        self.order = sorted(self.groups.values(), key=lambda g: (g.stage, g.width != 1, g.width))

    def result(self) -> Schedule:
        for group in self.order:
            group.nodes.sort(key=lambda n: n.op != "dot")  # stable: arguments stay before users
        partials = {n: self._scratch(self.lanes) for n in self.program.nodes if n.op in REDUCTIONS}
        copies = self._store_results()
        self._assign_partials()
        self._store_what_others_read()
        first, sums = 0, {a.name: self.program.results[a.name] for a in self.program.of("sum")}
        starts: dict[Node, int] = {}
        for node in dict.fromkeys(p for pieces in sums.values() for p in pieces):  # two biases may have one sum
            for addend in self.addends[node]:
                home = self._home_of(addend)
                home.totals.append((addend, first))
                if home.strided is not None and addend.op != "contract" and not home.stores:
                    home.stores.append((addend, Location(SCRATCH, self._scratch(addend.width))))  # added from there
            starts[node] = first
            first += node.width
        ranges = {name: _joined((starts[p], p.width) for p in pieces) for name, pieces in sums.items()}
        return Schedule(
            self.program, tuple(self.order), self.locations, partials, self.scratch, tuple(copies), ranges, first,
            tuple(self.uniform), self.uniform_width,
        )  # fmt: skip

    def _addends_of_sums(self) -> dict[Node, list[Node]]:
        """What is summed over rows and steps; of a sum of contractions each by itself, as rows are summed by them."""
        uses = count_uses(self.program.roots)
        addends = {}
        for node in (p for a in self.program.of("sum") for p in self.program.results[a.name]):
            whole = uses[node] == 1 and node.op == "add" and node.width == node.args[0].width == node.args[1].width
            parts = whole and all(a.op == "contract" for a in node.args)
            addends[node] = list(node.args) if parts else [node]
        return addends

    def _assign(self, node: Node) -> None:
        """Assign a value to a stage and a group."""
        args = [self._stage_of_numbers(a) for a in node.args]
        if node.is_strided and is_fixed(node):
            self.stage[node] = 0
            self.uniform.append(node)
            self.locations[node] = Location(UNIFORM, self.uniform_width)
            self.uniform_width += node.width
        elif node.op in REDUCTIONS:
            self.stage[node] = max(args) + 1
            for arg in node.args:
                self._reader_of(arg)
        elif node.op in ("dot", "part") or node.is_strided:
            self.stage[node] = max(map(self._stage_of_whole, node.args), default=0)
        else:
            self.stage[node] = max(args, default=0)
        if not self._is_in_memory(node) and node.op not in ("constant", "part"):
            self._home_of(node).nodes.append(node)
        elif node in self.program.roots:
            self._home_of(node)

    def _is_in_memory(self, node: Node) -> bool:
        """Whether a value is in memory already when a step begins."""
        return node.is_leaf or (node.is_strided and is_fixed(node))

    def _stage_of_numbers(self, node: Node) -> int:
        """The first stage that can read a value number by number, each where it computes its own."""
        return self.stage[node] + (node.is_strided and not self._is_in_memory(node))

    def _stage_of_whole(self, node: Node) -> int:
        """The first stage in which all of a value is in memory."""
        return 0 if self._is_in_memory(node) else self.stage[node] + (node.op != "part")

    def _home_of(self, node: Node) -> Group:
        """The group that computes a value; for one that comes from memory, the first of its width that can read it."""
        if node not in self.home:
            strided = node if node.is_strided and not self._is_in_memory(node) else None
            key = (self.stage[node], node.width, strided)
            self.home[node] = self.groups.setdefault(key, Group(*key[:2], strided=strided))
        return self.home[node]

    def _reader_of(self, node: Node) -> Group:
        """The group in which a reduction reads a value."""
        if not node.is_strided or self._is_in_memory(node):
            return self._home_of(node)
        key = (self._stage_of_numbers(node), node.width, None)
        return self.groups.setdefault(key, Group(*key[:2]))

    def _scratch(self, width: int) -> int:
        """Reserve numbers in scratch: the first of them."""
        self.scratch += width
        return self.scratch - width

    def _store_results(self) -> list[tuple[str, int]]:
        """Store states, outputs and residuals; returns the copies of the schedule."""
        copies = []
        for state in self.program.of("state"):
            pieces, array, first = self.program.results[state.name], ("sequence", state.name), 0
            if state.place == "carried":
                array = ("carry", state.name)
                if not self._may_overwrite(state.name, pieces):
                    first, array = self._scratch(state.width), SCRATCH
                    copies.append((state.name, first))
            self._store(pieces, array, first)
        for output in self.program.of("output", "residual"):
            self._store(self.program.results[output.name], ("output", output.name), 0)
        return copies

    def _store(self, pieces: tuple[Node, ...], array: ArrayKey, first: int) -> None:
        for piece in pieces:
            location = Location(array, first)
            self._home_of(piece).stores.append((piece, location))
            if not self._is_in_memory(piece) and piece.op not in ("constant", "part"):
                self.locations.setdefault(piece, location)
            first += piece.width

    def _may_overwrite(self, name: str, pieces: tuple[Node, ...]) -> bool:
        """Whether a state may be updated in place: nothing reads the old one later, or at other units of a group."""
        first = 0
        for piece in pieces:
            writer = self.order.index(self._home_of(piece))
            for user, leaf in self._readers(name):
                reader = self.order.index(user)
                aligned = leaf is not None and leaf.attr[1] == first and leaf.width == piece.width
                if reader > writer or (reader == writer and not aligned):
                    return False
            first += piece.width
        return True

    def _readers(self, name: str) -> list[tuple[Group, Node | None]]:
        """The groups that read a state, and the range they read block by block; None for whole rows."""
        readers: list[tuple[Group, Node | None]] = []
        for node in self.program.nodes:
            for arg in node.args:
                if arg.op == "state" and arg.attr[0] == name:
                    group = self._home_of(arg) if node.op in REDUCTIONS else self.home[node]
                    whole = node.op == "dot" or node.is_strided or arg.width != node.width
                    readers.append((group, None if whole else arg))
        readers += [(self.home[n], n) for n in self.program.roots if n.op == "state" and n.attr[0] == name]
        return readers

    def _assign_partials(self) -> None:
        started: set[Node] = set()
        reductions = [n for n in self.program.nodes if n.op in REDUCTIONS]
        for group in self.order:
            for node in reductions:
                here = [a for a in node.args if self._reader_of(a) is group]
                if here:
                    group.partial.append((node, here, node not in started))
                    started.add(node)

    def _store_what_others_read(self) -> None:
        """Store every value that a product or another group reads."""
        for group in self.order:
            read = [
                a
                for n in group.nodes
                if n.op not in REDUCTIONS
                for a in n.args
                if n.op == "dot" or n.is_strided or self.home.get(a) is not group
            ]
            self._store_all(read)
        reduced = [a for n in self.program.nodes if n.op in REDUCTIONS for a in n.args]
        self._store_all(n for n in (*reduced, *self.program.roots) if n.op == "part")
        self._store_all(a for a in reduced if a.is_strided)

    def _store_all(self, values: Iterable[Node]) -> None:
        """Store values, and what others are parts of, if they are not in memory yet."""
        for node in (n.args[0] if n.op == "part" else n for n in values):
            if node not in self.locations and not node.is_leaf and node.op != "constant":
                self.locations[node] = Location(SCRATCH, self._scratch(node.width))
                self.home[node].stores.append((node, self.locations[node]))


def _joined(pieces: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """From (start, width) to ranges (start, end); those that follow each other become one."""
    ranges: list[tuple[int, int]] = []
    for start, width in pieces:
        first = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
        ranges.append((first, start + width))
    return tuple(ranges)
