"""In which order a loop program is computed: groups of values that share one pass over rows and units.

A group computes values of one width, block by block of units. First come its products, accumulated in registers; then
the arithmetic on them. A value waits for a later stage where it needs a product or a reduction of values computed
before, since these need all units of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from anyrnn.program import REDUCTIONS, Node, Program


@dataclass(frozen=True)
class Place:
    """Where a value is in memory: `array` is a name such as ("stream", 0), `first` its first number in a row."""

    array: tuple[str, int]
    first: int


@dataclass
class Group:
    """Values of one width and stage.

    Attributes:
        stage: When, after all groups of lower stages.
        width: The width of the values.
        nodes: The values, arguments first; products come first of all.
        stores: Which values are written where.
        partial: Which reductions each value adds to, and whether this group is the first to add to it.
        totals: Which values are summed over rows and steps, and where.
    """

    stage: int
    width: int
    nodes: list[Node] = field(default_factory=list)
    stores: list[tuple[Node, Place]] = field(default_factory=list)
    partial: list[tuple[Node, list[Node], bool]] = field(default_factory=list)
    totals: list[tuple[Node, int]] = field(default_factory=list)

    @property
    def dots(self) -> list[Node]:
        """The products of the group."""
        return [n for n in self.nodes if n.op == "dot"]

    @property
    def operands(self) -> list[tuple[Node, list[tuple[Node, int]]]]:
        """The values that the products take, and the products (with the number of the term) that take each."""
        found: dict[Node, list[tuple[Node, int]]] = {}
        for dot in self.dots:
            for k, arg in enumerate(dot.args):
                found.setdefault(arg, []).append((dot, k))
        return list(found.items())


@dataclass(frozen=True)
class Schedule:
    """The groups of a program in order, and where every value that is read from memory is.

    Attributes:
        program: The program.
        groups: The groups.
        places: Where the values are that another group, or a product, reads.
        scratch: How many numbers a row needs for values that are kept for the length of a step.
        copies: States whose new value must not be written before the step ends: they go through scratch.
        total_width: How many numbers the totals are.
    """

    program: Program
    groups: tuple[Group, ...]
    places: dict[Node, Place]
    scratch: int
    copies: tuple[tuple[int, int], ...]
    total_width: int


def schedule(program: Program, in_place: bool, lanes: int) -> Schedule:
    """Order a program.

    Args:
        program: The program.
        in_place: New states take the memory of the old ones, as in a backward pass.
        lanes: The numbers in a vector, which a reduction needs for each row.
    """
    nodes = program.nodes
    stage: dict[Node, int] = {}
    for node in nodes:
        behind = 1 if node.op in REDUCTIONS else 0
        if node.op == "dot":
            stage[node] = max((0 if a.is_leaf else stage[a] + 1 for a in node.args), default=0)
        else:
            stage[node] = max((stage[a] for a in node.args), default=0) + behind
    groups: dict[tuple[int, int], Group] = {}
    home: dict[Node, Group] = {}
    # Stored leaves and constants are copied by a group of their width.
    stored = _stored(program, in_place)
    for node in nodes:
        if (node.is_leaf or node.op == "constant") and node not in dict(stored):
            continue
        width = node.width
        group = groups.setdefault((stage[node], width), Group(stage[node], width))
        group.nodes.append(node)
        home[node] = group
    ordered = sorted(groups.values(), key=lambda g: (g.stage, g.width != 1, g.width))
    for group in ordered:
        group.nodes.sort(key=lambda n: n.op != "dot")  # stable: arguments stay before users

    scratch = 0
    places: dict[Node, Place] = {}
    late: list[tuple[int, int]] = []
    for node, place in stored:
        if place.array[0] == "carry" and not _may_overwrite(program, node, place, home, ordered):
            late.append((place.array[1], scratch))
            k = place.array[1]
            place = Place(("scratch", 0), scratch + place.first)  # noqa: PLW2901
            if not any(n is not node and p.array == ("carry", k) and (k, scratch) in late for n, p in stored):
                pass
        home[node].stores.append((node, place))
        places.setdefault(node, place)
    copies = []
    if late:
        # All pieces of a late state go to one run of scratch.
        for group in ordered:
            group.stores = [s for s in group.stores if s[1].array != ("scratch", 0)]
        places = {n: p for n, p in places.items() if p.array != ("scratch", 0)}
        for k in sorted({k for k, _ in late}):
            for node, place in stored:
                if place.array == ("carry", k):
                    group = home[node]
                    group.stores = [s for s in group.stores if not (s[0] is node and s[1] == place)]
                    moved = Place(("scratch", 0), scratch + place.first)
                    group.stores.append((node, moved))
                    if places.get(node) in (None, place):
                        places[node] = moved
            copies.append((k, scratch))
            scratch += program.states[k]

    def keep(node: Node) -> None:
        nonlocal scratch
        if node not in places and not node.is_leaf and node.op != "constant":
            places[node] = Place(("scratch", 0), scratch)
            scratch += lanes if node.op in REDUCTIONS else node.width
            if node.op not in REDUCTIONS:
                home[node].stores.append((node, places[node]))

    started: set[Node] = set()
    reductions = [n for n in nodes if n.op in REDUCTIONS]
    partials: dict[Node, Place] = {}
    for node in reductions:
        partials[node] = Place(("scratch", 0), scratch)
        scratch += lanes
    for group in ordered:
        for node in reductions:
            here = [a for a in node.args if home.get(a, _group_for(a, stage, groups, node, home)) is group]
            if here:
                group.partial.append((node, here, node not in started))
                started.add(node)
    for group in ordered:
        for node in group.nodes:
            if node.op in REDUCTIONS:
                continue
            for arg in node.args:
                if node.op == "dot" or home.get(arg) not in (group, None):
                    keep(arg)
        for _, parts, _ in group.partial:
            for part in parts:
                if home.get(part) not in (group, None):
                    keep(part)
    first = 0
    total_at: dict[Node, int] = {}
    for node in program.totals:
        total_at[node] = first
        first += node.width
    for node, at in total_at.items():
        group = home.get(node) or groups.setdefault((stage[node], node.width), Group(stage[node], node.width))
        if node not in home:
            home[node] = group
            group.nodes.append(node)
            if group not in ordered:
                ordered.append(group)
        group.totals.append((node, at))
    for node, place in partials.items():
        places[node] = places.get(node, place)
    return Schedule(program, tuple(ordered), places | {("partial", n): p for n, p in partials.items()}, scratch, tuple(copies), first)  # type: ignore[dict-item]
