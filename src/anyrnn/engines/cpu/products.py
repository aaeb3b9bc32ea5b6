"""The products of a group: some rows by some lines of columns, whose sums stay in registers until they are done.

A line is as many columns as fill a line of the cache, whatever the vectors. Matrices are packed by lines, so that a
product reads whole lines of memory, one after the other. With few registers a tile of many rows takes the products of a
group one by one: taller tiles read each weight for more rows, and it is the second cache that bounds their rate. The
sums go through memory to the arithmetic on them; written as functions of their own, the loops have all registers.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from anyrnn.engines.cpu.slots import LINE
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
    """Writes the products of a group into its function, and the functions that compute them for rows and lines.

    Attributes:
        rows: How many rows a tile has at most.
        lines: How many lines a tile of several rows has.
        lines_of_one: How many lines a single row takes at once.
        sums: Where the sums of a tile are; `place` says which where.
    """

    def __init__(self, writer: LoopWriter, b: ir.IRBuilder, group: Group, name: str) -> None:
        self.e, self.name = writer, name
        self.dots = group.dots
        self.operands = group.operands
        self._terms: dict[Node, list[tuple[int, int]]] = {dot: [] for dot in self.dots}
        users = [(dot, o) for o, (_, users) in enumerate(self.operands) for dot, _ in users]
        for number, (dot, o) in enumerate(users):
            self._terms[dot].append((o, number))
        self._vectors = writer.line // writer.lanes  # of a whole line
        lines = -(-group.width // writer.line)
        self.rows, self.lines = _shape(writer.machine, len(self.dots), self._vectors, lines)
        self.lines_of_one = max(1, min(lines, -(-_CHAINS // (self._vectors * len(self.dots)))))
        size = self.place(len(self.dots), max(self.lines, self.lines_of_one), 0, 0)
        self.sums = b.alloca(writer.vector, size // writer.lanes)
        self.sums.align = LINE
        # The addresses of each operand's rows, `rows` for each; and those of each term's weights.
        self._rows_of, self._weights_of = (b.alloca(PTR, n) for n in (self.rows * len(self.operands), len(users)))
        self._known: dict[object, ir.Function] = {}

    def find_weights(self, b: ir.IRBuilder, packed: Sequence[ir.Value], line: ir.Value) -> None:
        """Write down where the weights of a line are."""
        widths = [operand.width for operand, users in self.operands for _ in users]
        for k, (base, width) in enumerate(zip(packed, widths, strict=True)):
            here = self.e.at(b, base, b.mul(line, I64(width * self.e.line)))
            b.store(here, b.gep(self._weights_of, [I64(k)], source_etype=PTR))

    def find_row(self, b: ir.IRBuilder, operand: int, row: ir.Value, address: ir.Value) -> None:
        """Write down where a row of an operand is, which is some row of the tile."""
        place = b.add(I64(operand * self.rows), row)
        b.store(address, b.gep(self._rows_of, [place], source_etype=PTR))

    def emit(self, b: ir.IRBuilder, most: int, height: ir.Value, lines: int, columns: int) -> None:
        """Compute the products of a tile of some rows.

        Args:
            b: Where to write.
            most: How many rows it has at most.
            height: How many it has.
            lines: Of how many lines it is.
            columns: How many columns of each line there are.
        """
        vectors = -(-columns // self.e.lanes)
        if most == 1:
            self._call(b, 1, lines, vectors)
            return
        done = b.append_basic_block("done")
        cases = {rows: b.append_basic_block(f"rows{rows}") for rows in (1, *range(2, most + 1, 2))}
        choice = b.switch(height, cases[most])
        for rows, block in cases.items():
            if rows < most:
                choice.add_case(I64(rows), block)
            b.position_at_end(block)
            self._call(b, rows, lines, vectors)
            b.branch(done)
        b.position_at_end(done)

    def _call(self, b: ir.IRBuilder, rows: int, lines: int, vectors: int) -> None:
        room = _accumulators(self.e.machine) // (rows * vectors * lines)
        for first, last in _chunks(len(self.dots), max(1, room)):
            terms = [self._terms[dot] for dot in self.dots[first:last]]
            base = min(number for each in terms for _, number in each)
            shape = tuple(tuple((o, number - base) for o, number in each) for each in terms)
            key = rows, lines, vectors, shape
            if key not in self._known:
                self._known[key] = self._function(*key)
            weights = b.gep(self._weights_of, [I64(base)], source_etype=PTR)
            b.call(self._known[key], [self._rows_of, weights, self.e.at(b, self.sums, self.place(first, lines, 0, 0))])

    def place(self, dot: int, lines: int, vector: int, row: int) -> int:
        """Where a vector of sums is, for a tile of so many lines, in numbers."""
        return ((dot * lines * self._vectors + vector) * self.rows + row) * self.e.lanes

    def _function(self, rows: int, lines: int, vectors: int, shape: Sequence[Terms]) -> ir.Function:
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
            columns = [
                (d, n, v, weights[number, n]) for d, number in terms for n in range(lines) for v in range(vectors)
            ]
            with e.loop(b, I64(0), I64(operand.width), 1, [sums[key] for key in mine]) as k:
                now = dict(zip(mine, k.values, strict=True))
                at = b.mul(k.index, I64(e.line))

                def number_of(row: ir.Value, index: ir.Value = k.index) -> ir.Value:
                    return e.splat(b, b.load(e.at(b, row, index), typ=e.real))

                def weights_of(column: tuple[int, int, int, ir.Value], at: ir.Value = at) -> ir.Value:
                    return e.load(b, e.at(b, column[3], b.add(at, I64(column[2] * e.lanes))), None)

                # Of rows and vectors of weights, the fewer stay in registers while the others come one by one.
                if rows < len(columns):
                    numbers = [number_of(row) for row in x_rows]
                    pairs = [(r, x, c, w) for c in columns for w in [weights_of(c)] for r, x in enumerate(numbers)]
                else:
                    loaded = [weights_of(c) for c in columns]
                    pairs = [
                        (r, x, c, w) for r, row in enumerate(x_rows) for x in [number_of(row)]
                        for c, w in zip(columns, loaded, strict=True)
                    ]  # fmt: skip
                for r, x, (d, n, v, _), w in pairs:
                    product = b.fmul(x, w, flags=("contract",))
                    now[d, n, v, r] = b.fadd(now[d, n, v, r], product, flags=("contract",))
                k.values = [now[key] for key in mine]
            sums.update(zip(mine, k.results or [], strict=True))
        for (d, n, v, r), value in sums.items():
            e.store(b, value, e.at(b, target, self.place(d, lines, n * self._vectors + v, r)), None)
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
        rows = min(_MOST, room // together // 2 * 2)
        return rows, max(1, min(lines, room // (together * rows)))
    return max(2, min(_MOST, room // vectors // 2 * 2)), 1


def _chunks(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges of at most so many, as even as can be."""
    parts = -(-count // most)
    edges = [count * k // parts for k in range(parts + 1)]
    return list(itertools.pairwise(edges))
