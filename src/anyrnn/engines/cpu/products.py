"""The products of a group: some rows by some lines of columns, whose sums stay in registers until they are done.

A line is as many columns as fill a line of the cache, whatever the vectors. Matrices are packed by lines, so that a
product reads whole lines of memory, one after the other. With few registers a tile of many rows takes the products of a
group one by one: taller tiles read each weight for more rows, and it is the second cache that bounds their rate. The
sums go through memory to the arithmetic on them; written as functions of their own, the loops have all registers.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn.engines.cpu.slots import LINE
from anyrnn.engines.cpu.writer import I32, I64, PTR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.compiler.node import Node
    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.engines.cpu.schedule import Group
    from anyrnn.engines.cpu.writer import LoopWriter

_CHAINS = 8  # sums that keep two multipliers busy: a sum takes four or five cycles until it can be added to
_MOST = 8  # rows of a tile: each has its address in a register
_TALL = 4  # rows of a tile that computes for longer than its weights take to come

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
        self.e, self.group, self.name = writer, group, name
        self.dots = group.dots
        self.operands = group.operands
        self._terms: dict[Node, list[tuple[int, int]]] = {dot: [] for dot in self.dots}
        users = [(dot, o) for o, (_, users) in enumerate(self.operands) for dot, _ in users]
        for number, (dot, o) in enumerate(users):
            self._terms[dot].append((o, number))
        self._vectors = writer.line // writer.lanes  # of a whole line
        lines = -(-group.width // writer.line)
        self.rows, self.lines = _shape(writer, len(self.dots), lines)
        self.lines_of_one = max(1, min(lines, -(-_CHAINS // (self._vectors * len(self.dots)))))
        size = self.place(len(self.dots), max(self.lines, self.lines_of_one), 0, 0)
        self.sums = b.alloca(writer.vector, size // writer.lanes)
        self.sums.align = LINE
        # The addresses of each operand's rows, `rows` for each; and those of each term's weights.
        self._rows_of, self._weights_of = (b.alloca(PTR, n) for n in (self.rows * len(self.operands), len(users)))
        self._known: dict[object, ir.Function] = {}

    def find_weights(self, b: ir.IRBuilder, packed: Sequence[ir.Value], line: ir.Value) -> None:
        """Write down where the weights of a line are."""
        number = 0
        for base, (operand, users) in zip(packed, self.operands, strict=True):
            apart, _, between = strides_of(self.e, self.group, operand.width, len(users))
            start = self.e.at(b, base, b.mul(line, I64(apart)))
            for k in range(len(users)):
                b.store(self.e.at(b, start, k * between), b.gep(self._weights_of, [I64(number)], source_etype=PTR))
                number += 1

    def find_row(self, b: ir.IRBuilder, operand: int, row: ir.Value, address: ir.Value) -> None:
        """Write down where a row of an operand is, which is some row of the tile."""
        place = b.add(I64(operand * self.rows), row)
        b.store(address, b.gep(self._rows_of, [place], source_etype=PTR))

    def emit(self, b: ir.IRBuilder, most: int, tile: ir.Value, tiles: ir.Value, height: ir.Value, lines: int,
             columns: int) -> None:  # fmt: skip
        """Compute the products of a tile of some rows.

        Args:
            b: Where to write.
            most: How many rows it has at most.
            tile: Its number.
            tiles: How many tiles of several rows there are.
            height: How many rows it has.
            lines: Of how many lines it is.
            columns: How many columns of each line there are.
        """
        vectors = -(-columns // self.e.lanes)
        if most == 1:
            self._call(b, 1, lines, vectors, [])
            return
        share = b.add(b.sdiv(I64(LINE), tiles), I64(1))  # of each line of the weights that come next, in bytes
        done = b.append_basic_block("done")
        cases = {rows: b.append_basic_block(f"rows{rows}") for rows in (1, *range(2, most + 1, 2))}
        choice = b.switch(height, cases[most])
        for rows, block in cases.items():
            if rows < most:
                choice.add_case(I64(rows), block)
            b.position_at_end(block)
            self._call(b, rows, lines, vectors, [tile, share] if rows >= _TALL else [])
            b.branch(done)
        b.position_at_end(done)

    def _call(self, b: ir.IRBuilder, rows: int, lines: int, vectors: int, ahead: Sequence[ir.Value]) -> None:
        room = _accumulators(self.e.machine) // (rows * vectors * lines)
        for first, last in _chunks(len(self.dots), max(1, room)):
            terms = [self._terms[dot] for dot in self.dots[first:last]]
            base = min(number for each in terms for _, number in each)
            shape = tuple(tuple((o, number - base) for o, number in each) for each in terms)
            key = rows, lines, vectors, shape
            if key not in self._known:
                self._known[key] = self._function(*key)
            weights = b.gep(self._weights_of, [I64(base)], source_etype=PTR)
            sums = self.e.at(b, self.sums, self.place(first, lines, 0, 0))
            b.call(self._known[key], [self._rows_of, weights, sums, *ahead])

    def place(self, dot: int, lines: int, vector: int, row: int) -> int:
        """Where a vector of sums is, for a tile of so many lines, in numbers."""
        return ((dot * lines * self._vectors + vector) * self.rows + row) * self.e.lanes

    def _function(self, rows: int, lines: int, vectors: int, shape: Sequence[Terms]) -> ir.Function:
        e = self.e
        types = [PTR] * 3 + [I64] * (2 if rows >= _TALL else 0)
        function, b = e.function(f"{self.name}_{len(self._known)}", types)
        function.linkage = "internal"
        row_table, weight_table, target, *ahead = function.args
        keys = [
            (d, n, v, r) for d in range(len(shape)) for n in range(lines) for v in range(vectors) for r in range(rows)
        ]
        sums: dict[tuple[int, int, int, int], ir.Value] = dict.fromkeys(keys, e.constant(0.0))
        for o, (operand, users) in enumerate(self.operands):
            apart, step, _ = strides_of(e, self.group, operand.width, len(users))
            terms = [(d, number) for d, each in enumerate(shape) for which, number in each if which == o]
            if not terms:
                continue
            x_rows = [e.address(b, row_table, o * self.rows + r) for r in range(rows)]
            weights = {
                (number, n): e.at(b, e.address(b, weight_table, number), n * apart)
                for _, number in terms for n in range(lines)
            }  # fmt: skip
            # A product that takes a value twice, with different parts of the matrix, has one sum.
            mine = [key for key in keys if key[0] in {d for d, _ in terms}]
            columns = [
                (d, n, v, weights[number, n]) for d, number in terms for n in range(lines) for v in range(vectors)
            ]
            with e.loop(b, I64(0), I64(operand.width), 1, [sums[key] for key in mine]) as k:
                now = dict(zip(mine, k.values, strict=True))
                at = b.mul(k.index, I64(step))
                if ahead:
                    self._prefetch(b, columns[0][3], operand.width, k.index, lines, (apart, step), ahead)

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

    def _prefetch(
        self, b: ir.IRBuilder, weights: ir.Value, depth: int, k: ir.Value, lines: int, strides: tuple[int, int],
        ahead: Sequence[ir.Value],
    ) -> None:  # fmt: skip
        """Ask for the weights of the next lines, evenly: each tile asks for its share while it computes with these.

        They come from memory or the third cache, to which the second cache would else turn in the first tile only.
        """
        tile, share = ahead
        apart, step = strides
        numbers = b.mul(b.add(b.mul(tile, I64(depth)), k), b.mul(share, I64(lines * step // self.e.line)))
        place = b.gep(weights, [b.add(numbers, I64(lines * apart * self.e.bytes))], source_etype=ir.IntType(8))
        prefetch = self.e.intrinsic("llvm.prefetch.p0", ir.VoidType(), [PTR, I32, I32, I32])
        b.call(prefetch, [place, I32(0), I32(2), I32(1)])  # to be read, into the second cache, data


def _accumulators(machine: Machine) -> int:
    """How many sums the registers hold beside weights and a number of a row: 12 of 16, 24 of 32."""
    return machine.registers * 3 // 4


def strides_of(writer: LoopWriter, group: Group, rows: int, count: int) -> tuple[int, int, int]:
    """How far the packed weights of products of a value lie apart: from line to line, row to row, product to product.

    All products at once, if that leaves room for four rows, read one sequence of weights; else each one reads its own.
    Either way the weights of a line are side by side: whole matrices one after the other, often of sizes that are
    powers of two, would fall on the same places of the second cache.
    """
    line = count * rows * writer.line
    if _are_together(writer, len(group.dots)):
        return line, count * writer.line, writer.line
    return line, writer.line, rows * writer.line


def _are_together(writer: LoopWriter, count: int) -> bool:
    return _accumulators(writer.machine) // (count * writer.line // writer.lanes) >= 4


def _shape(writer: LoopWriter, count: int, lines: int) -> tuple[int, int]:
    """Rows and lines of a tile."""
    vectors = writer.line // writer.lanes
    at_once = vectors * count if _are_together(writer, count) else vectors
    room = _accumulators(writer.machine) // at_once
    rows = max(2, min(_MOST, room // 2 * 2))
    return rows, max(1, min(lines, room // rows)) if _are_together(writer, count) else 1


def _chunks(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges of at most so many, as even as can be."""
    parts = -(-count // most)
    edges = [count * k // parts for k in range(parts + 1)]
    return list(itertools.pairwise(edges))
