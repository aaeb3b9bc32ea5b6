"""The products of a group: some rows by some lines of columns, whose sums stay in registers until they are done.

A line is as many columns as fill a line of the cache, whatever the vectors. Matrices are packed by lines, so that a
product reads whole lines of memory, one after the other. With few registers a tile of many rows takes the products of a
group one by one: taller tiles read each weight for more rows, and it is the second cache that bounds their rate. The
sums go through memory to the arithmetic on them; written as functions of their own, the loops have all registers.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from anyrnn.engines.cpu.writer import I64, PTR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llvmlite import ir

    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.engines.cpu.schedule import Group
    from anyrnn.engines.cpu.writer import LoopWriter
    from anyrnn.program import Node

_CHAINS = 8  # sums that keep two multipliers busy: a sum takes four or five cycles until it can be added to
_MOST = 8  # rows of a tile: each has its address in a register

Terms = tuple[tuple[int, int], ...]  # of a product: the operand, and where the address of the weights is in the table


class Products:
    """Writes the functions that compute the products of a group, each for some rows, products and lines.

    Attributes:
        rows: How many rows a tile has at most.
        lines: How many lines a tile of several rows has.
        lines_of_one: How many lines a single row takes at once.
    """

    def __init__(self, writer: LoopWriter, group: Group, name: str) -> None:
        self.e, self.name = writer, name
        self.dots = group.dots
        self.operands = group.operands
        self.vectors = writer.line // writer.lanes  # of a whole line
        self._terms: dict[Node, list[tuple[int, int]]] = {dot: [] for dot in self.dots}
        users = [(dot, o) for o, (_, users) in enumerate(self.operands) for dot, _ in users]
        for number, (dot, o) in enumerate(users):
            self._terms[dot].append((o, number))
        self.weights = len(users)
        lines = -(-group.width // writer.line)
        self.rows, self.lines = _shape(writer.machine, len(self.dots), self.vectors, lines)
        self.lines_of_one = max(1, min(lines, -(-_CHAINS // (self.vectors * len(self.dots)))))
        self._known: dict[object, ir.Function] = {}

    def call(
        self, b: ir.IRBuilder, rows: int, lines: int, vectors: int,
        tables: tuple[ir.Value, ir.Value], sums: ir.Value,
    ) -> None:  # fmt: skip
        """Compute the products of a number of rows.

        Args:
            b: Where to write the calls.
            rows: How many.
            lines: How many lines.
            vectors: How many vectors of each line.
            tables: The addresses of each operand's rows, `self.rows` for each; and those of each term's weights.
            sums: Where the sums go, as `place` says.
        """
        room = _accumulators(self.e.machine) // (rows * vectors * lines)
        for first, last in _chunks(len(self.dots), max(1, room)):
            terms = [self._terms[dot] for dot in self.dots[first:last]]
            base = min(number for each in terms for _, number in each)
            shape = tuple(tuple((o, number - base) for o, number in each) for each in terms)
            kernel = self._kernel(rows, lines, vectors, shape)
            weights = b.gep(tables[1], [I64(base)], source_etype=PTR)
            b.call(kernel, [tables[0], weights, self.e.at(b, sums, self.place(first, lines, 0, 0))])

    def place(self, dot: int, lines: int, vector: int, row: int) -> int:
        """Where a vector of sums is, for a tile of so many lines, in numbers."""
        return ((dot * lines * self.vectors + vector) * self.rows + row) * self.e.lanes

    @property
    def size(self) -> int:
        """How many numbers all sums of a tile are."""
        return self.place(len(self.dots), max(self.lines, self.lines_of_one), 0, 0)

    def _kernel(self, rows: int, lines: int, vectors: int, shape: Sequence[Terms]) -> ir.Function:
        key = (rows, lines, vectors, shape)
        if key not in self._known:
            self._known[key] = self._emit(rows, lines, vectors, shape)
        return self._known[key]

    def _emit(self, rows: int, lines: int, vectors: int, shape: Sequence[Terms]) -> ir.Function:
        e = self.e
        function, b = e.function(f"{self.name}_{len(self._known)}", [PTR] * 3)
        function.linkage = "internal"
        row_table, weight_table, target = function.args
        keys = [
            (d, n, v, r) for d in range(len(shape)) for n in range(lines) for v in range(vectors) for r in range(rows)
        ]
        sums: dict[tuple[int, int, int, int], ir.Value] = dict.fromkeys(keys, e.constant(0.0))
        for o, (operand, _) in enumerate(self.operands):
            terms = [(d, number) for d, each in enumerate(shape) for which, number in each if which == o]
            if not terms:
                continue
            x_rows = [e.address(b, row_table, o * self.rows + r) for r in range(rows)]
            weights = {
                (number, n): e.at(b, e.address(b, weight_table, number), n * operand.width * e.line)
                for _, number in terms for n in range(lines)
            }  # fmt: skip
            # A product that takes a value twice, with different parts of the matrix, has one sum.
            mine = [key for key in keys if key[0] in {d for d, _ in terms}]
            with e.loop(b, I64(0), I64(operand.width), 1, [sums[key] for key in mine]) as k:
                at = b.mul(k.index, I64(e.line))
                now = dict(zip(mine, k.values, strict=True))
                vectors_of = [
                    (d, n, v, e.at(b, weights[number, n], b.add(at, I64(v * e.lanes))))
                    for d, number in terms for n in range(lines) for v in range(vectors)
                ]  # fmt: skip
                # Of rows and vectors of weights, the fewer stay in registers while the others come one by one.
                load_row = functools.cache(lambda r: e.splat(b, b.load(e.at(b, x_rows[r], k.index), typ=e.real)))
                load_weight = functools.cache(lambda place: e.load(b, place, None))
                pairs = [(r, each) for r in range(rows) for each in vectors_of]
                if rows < len(vectors_of):
                    pairs = [(r, each) for each in vectors_of for r in range(rows)]
                for r, (d, n, v, place) in pairs:
                    product = b.fmul(load_row(r), load_weight(place), flags=("contract",))
                    now[d, n, v, r] = b.fadd(now[d, n, v, r], product, flags=("contract",))
                k.values = [now[key] for key in mine]
            sums.update(zip(mine, k.results or [], strict=True))
        for (d, n, v, r), value in sums.items():
            e.store(b, value, e.at(b, target, self.place(d, lines, n * self.vectors + v, r)), None)
        b.ret_void()
        return function


def _accumulators(machine: Machine) -> int:
    """How many sums the registers hold beside weights and a number of a row: 12 of 16, 24 of 32."""
    return machine.registers * 3 // 4


def _shape(machine: Machine, count: int, vectors: int, lines: int) -> tuple[int, int]:
    """Rows and lines of a tile: all products at once if they leave room for four rows, else one by one."""
    room = _accumulators(machine)
    together = count * vectors
    if room // together >= 4:
        rows = min(_MOST, room // together)
        return rows, max(1, min(lines, room // (together * rows)))
    return max(1, min(_MOST, room // vectors)), 1


def _chunks(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges of at most so many, as even as can be."""
    parts = -(-count // most)
    edges = [count * k // parts for k in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))
