"""The calling convention of the machine code: arguments in a fixed order (slots), packed matrices, cache blocking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyrnn.engines.cpu.schedule import UNIFORM
from anyrnn.runtime.layout import STEP_TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyrnn.engines.cpu.schedule import Schedule


@dataclass(frozen=True)
class Slots:
    """The order of the arguments of the machine code: one number or address each, in an array of integers.

    Attributes:
        names: ("steps", ""), then for each step the tables of a `Layout`; ("order", "") its order; ("bounds", "")
            the first row of each part; ("scratch", "") and ("total", ""); then those of each array of the program
            (`ARRAY_SLOTS`), such as ("carry", "h"), the packed matrices, and ("uniform", "") if there is such an
            array. `CpuKernel.bind` gives them in this order.
    """

    names: tuple[tuple[str, str], ...]

    def index(self, kind: str, name: str = "") -> int:
        """Return the index of an argument."""
        return self.names.index((kind, name))


#: The bytes of a line of the cache, of which packed matrices consist.
LINE = 64


@dataclass(frozen=True)
class Packed:
    """Parts of matrices, packed in the order in which the products of one operand read them: by lines of columns.

    [line][row][product][column of the line] for products that are computed at once, else [line][product][row][column].

    Attributes:
        sources: For each product: matrix, first row, first column, transposed.
        rows: The number of rows.
        width: The number of columns; the last line is filled up with zeros.
    """

    sources: tuple[tuple[str, int, int, bool], ...]
    rows: int
    width: int

    def size(self, line: int) -> int:
        """Return how many numbers it has, if a line has so many."""
        return len(self.sources) * -(-self.width // line) * self.rows * line


def packed_of(schedule: Schedule) -> tuple[Packed, ...]:
    """Return the packed matrices that a schedule reads, in order."""
    return tuple(
        Packed(tuple(dot.attr[k] for dot, k in users), operand.width, group.width)
        for group in schedule.groups
        for operand, users in group.operands
    )


#: The arguments for a state that has memory for all steps: the states before the first one, and those after each.
STATE_SLOTS = "initial", "sequence"
#: The arguments for an array of each role. Of a state also "carry": where it is, if it is carried.
ARRAY_SLOTS: Mapping[str, tuple[str, ...]] = {
    **{
        "stream": ("stream",),
        "row": ("row",),
        "vector": ("vector",),
        "output": ("output",),
        "residual": ("output",),
        "sum": (),
    },
    **{"history": STATE_SLOTS, "state": (*STATE_SLOTS, "carry"), "matrix": ("matrix", "row_stride", "column_stride")},
}


def slots_of(schedule: Schedule) -> Slots:
    """Return the slots of a schedule."""
    names = [(kind, "") for kind in ("steps", *STEP_TABLES, "order", "bounds", "scratch", "total")]
    names += [(kind, array.name) for array in schedule.program.arrays for kind in ARRAY_SLOTS[array.role]]
    names += [("packed", str(k)) for k in range(len(packed_of(schedule)))]
    return Slots((*names, *([UNIFORM] if schedule.uniform else [])))


#: The arguments of the code of outer.py, in order.
OUTER_SLOTS = (
    *("rows", "left_width", "right_width", "left", "left_stride", "left_index", "right", "right_stride"),
    *("right_index", "last_first", "out", "out_stride", "add", "scratch", "scratch_left", "scratch_stride"),
)


@dataclass(frozen=True)
class Blocking:
    """The cache blocking of the weight-gradient GEMM in outer.py.

    Attributes:
        tall, wide: The size of a tile of the result: what the registers hold, with a vector of the right operand.
        depth: The rows of a block.
        side: The columns of a block; a block of each operand fit into the second cache together.
    """

    tall: int
    wide: int
    depth: int = 304
    side: int = 256

    def sizes(self, left_width: int, right_width: int) -> tuple[int, int]:
        """How many numbers a block of either operand has."""
        widths = (left_width, self.tall), (right_width, self.wide)
        left, right = (-(-min(width, self.side) // tile) * tile * self.depth for width, tile in widths)
        return left, right
