"""What a program's machine code is given: numbers and addresses in a fixed order, and packed matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyrnn.engines.cpu.layout import STEP_TABLES

if TYPE_CHECKING:
    from anyrnn.engines.cpu.schedule import Schedule


@dataclass(frozen=True)
class Slots:
    """The order of the numbers and addresses that the machine code is given.

    Attributes:
        names: ("steps", 0), then for each step the tables of a `Layout`; ("order", 0) its order; ("bounds", 0) the
            first row of each part; then the arrays.
    """

    names: tuple[tuple[str, int], ...]

    def index(self, kind: str, number: int = 0) -> int:
        """Return where a number or address is."""
        return self.names.index((kind, number))


@dataclass(frozen=True)
class Packed:
    """A matrix in the order in which a group reads it: [block of units][row of the matrix][product][lane].

    Attributes:
        sources: For each product: matrix, first row, first column, transposed.
        rows: The number of rows.
        width: The number of columns that are used.
    """

    sources: tuple[tuple[int, int, int, bool], ...]
    rows: int
    width: int

    def size(self, lanes: int) -> int:
        """Return how many numbers it takes."""
        return -(-self.width // lanes) * self.rows * len(self.sources) * lanes


def packed_of(schedule: Schedule) -> tuple[Packed, ...]:
    """Return the packed matrices that a schedule reads, in order."""
    found = []
    for group in schedule.groups:
        for operand, users in group.operands:
            found.append(Packed(tuple(dot.attr[k] for dot, k in users), operand.width, group.width))
    return tuple(found)


def slots_of(schedule: Schedule) -> Slots:
    """Return the slots of a schedule."""
    program = schedule.program
    names = [(kind, 0) for kind in ("steps", *STEP_TABLES, "order", "bounds", "scratch", "total")]
    names += [("stream", k) for k in range(len(program.streams))]
    names += [(kind, k) for k in range(len(program.states)) for kind in ("initial", "sequence", "carry")]
    names += [("output", k) for k in range(len(program.outputs))]
    names += [("vector", k) for k in range(len(program.vectors))]
    names += [(kind, k) for k in range(len(program.matrices)) for kind in ("matrix", "row_stride", "column_stride")]
    names += [("packed", k) for k in range(len(packed_of(schedule)))]
    return Slots(tuple(names))
