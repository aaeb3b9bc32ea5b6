"""What machine code is given: numbers and addresses in a fixed order, packed matrices, blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyrnn.runtime.layout import STEP_TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyrnn.engines.cpu.schedule import Schedule


@dataclass(frozen=True)
class Slots:
    """The order of the numbers and addresses that the machine code is given.

    Attributes:
        names: ("steps", ""), then for each step the tables of a `Layout`; ("order", "") its order; ("bounds", "")
            the first row of each part; ("scratch", "") and ("total", ""); then what each array of the program takes
            (`TAKEN`), such as ("carry", "h"), and the packed matrices. `CpuKernel.bind` gives them in this order.
    """

    names: tuple[tuple[str, str], ...]

    def index(self, kind: str, name: str = "") -> int:
        """Return where a number or address is."""
        return self.names.index((kind, name))


#: The bytes of a line of the cache, which is what packed matrices are made of.
LINE = 64


@dataclass(frozen=True)
class Packed:
    """Parts of matrices in the order in which the products of a value read them, by lines of columns.

    Of products that are computed together each row is side by side, [line][row][product][column of the line]; of others
    each line, [line][product][row][column of the line].

    Attributes:
        sources: For each product: matrix, first row, first column, transposed.
        rows: The number of rows.
        width: The number of columns; the last line is filled up with zeros.
    """

    sources: tuple[tuple[str, int, int, bool], ...]
    rows: int
    width: int

    def size(self, line: int) -> int:
        """Return how many numbers it takes, of which a line has so many."""
        return len(self.sources) * -(-self.width // line) * self.rows * line


def packed_of(schedule: Schedule) -> tuple[Packed, ...]:
    """Return the packed matrices that a schedule reads, in order."""
    found = []
    for group in schedule.groups:
        for operand, users in group.operands:
            found.append(Packed(tuple(dot.attr[k] for dot, k in users), operand.width, group.width))
    return tuple(found)


#: What machine code is given of an array: one number or address each. Of a state, where it begins and where its steps
#: are, or where it is carried; of a matrix, how far its rows and columns lie apart.
_STATE = "initial", "sequence"
TAKEN: Mapping[str, tuple[str, ...]] = {
    **{"stream": ("stream",), "vector": ("vector",), "output": ("output",), "residual": ("output",), "sum": ()},
    **{"history": _STATE, "state": (*_STATE, "carry"), "matrix": ("matrix", "row_stride", "column_stride")},
}


def slots_of(schedule: Schedule) -> Slots:
    """Return the slots of a schedule."""
    names = [(kind, "") for kind in ("steps", *STEP_TABLES, "order", "bounds", "scratch", "total")]
    names += [(kind, array.name) for array in schedule.program.arrays for kind in TAKEN[array.role]]
    names += [("packed", str(k)) for k in range(len(packed_of(schedule)))]
    return Slots(tuple(names))


#: What the code of outer.py is given, in order.
OUTER_SLOTS = (
    *("rows", "left_width", "right_width", "left", "left_stride", "left_index", "right", "right_stride"),
    *("right_index", "out", "out_stride", "add", "scratch", "scratch_left", "scratch_stride"),
)


@dataclass(frozen=True)
class Blocking:
    """How much the code of outer.py computes at once.

    Attributes:
        tall, wide: The size of a tile of the result: what the registers hold, with a vector of the right operand.
        depth: The rows of a block.
        side: How many numbers a block has of each row: one of each operand fit into the second cache.
    """

    tall: int
    wide: int
    depth: int = 304
    side: int = 256

    def sizes(self, left_width: int, right_width: int) -> tuple[int, int]:
        """How many numbers a block of either operand is."""
        widths = (left_width, self.tall), (right_width, self.wide)
        left, right = (-(-min(width, self.side) // tile) * tile * self.depth for width, tile in widths)
        return left, right
