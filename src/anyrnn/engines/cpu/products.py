"""The GEMM microkernels of a group's products: some rows by some lines of columns, accumulated in registers.

A line is as many columns as fill a line of the cache, whatever the vectors. Matrices are packed by lines, so that a
product reads whole lines of memory, one after the other. With few registers a tile of many rows computes the products
of a group one by one: taller tiles read each weight for more rows, and it is the second cache that bounds their rate.
Sums go through memory to the epilogue (`tile.py`), so these loops, functions of their own, have all registers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
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

_CHAINS = 8  # accumulators that keep two multipliers busy: one takes four or five cycles until it can be added to
_MOST = 8  # rows of a tile: each has its address in a register
_TALL = 4  # rows of a tile that computes for longer than its weights take to come

Terms = tuple[tuple[int, int], ...]  # of a product: index of the operand, index of the weights' address in the table


@dataclass(frozen=True)
class Block:
    """Some rows and some columns of a group, computed at once.

    Attributes:
        row, height: The first row, and how many.
        column, columns: The first column, and how many.
        lines: How many lines of columns the products compute at once; 0 if the group has none.
    """

    row: ir.Value
    height: ir.Value
    column: ir.Value
    columns: int
    lines: int = 0


class Products:
    """Writes the products of a group into its function, and the microkernels that compute them.

    Attributes:
        rows: How many rows a tile has at most.
        lines: How many lines a tile of several rows computes at once.
        lines_of_one: How many lines a single row computes at once.
        sums: The accumulators of a tile, in memory; `offset` says which is where.
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
        size = self.offset(len(self.dots), max(self.lines, self.lines_of_one), 0, 0)
        self.sums = b.alloca(writer.vector, size // writer.lanes)
        self.sums.align = LINE
        # The addresses of each operand's rows, `rows` for each; and those of each term's weights.
        self._rows_of, self._weights_of = (b.alloca(PTR, n) for n in (self.rows * len(self.operands), len(users)))
        self._functions: dict[object, ir.Function] = {}

    def store_weight_addresses(self, b: ir.IRBuilder, packed: Sequence[ir.Value], line: ir.Value) -> None:
        """Put the addresses of the weights of a line into the table."""
        number = 0
        for base, (operand, users) in zip(packed, self.operands, strict=True):
            per_line, _, per_product = strides_of(self.e, self.group, operand.width, len(users))
            start = self.e.at(b, base, b.mul(line, I64(per_line)))
            for k in range(len(users)):
                b.store(self.e.at(b, start, k * per_product), b.gep(self._weights_of, [I64(number)], source_etype=PTR))
                number += 1

    def store_row_address(self, b: ir.IRBuilder, operand: int, row: ir.Value, address: ir.Value) -> None:
        """Put the address of an operand's row into the table; `row` counts within the tile."""
        place = b.add(I64(operand * self.rows), row)
        b.store(address, b.gep(self._rows_of, [place], source_etype=PTR))

    def emit(self, b: ir.IRBuilder, block: Block, most: int, tile: ir.Value, tiles: ir.Value) -> None:
        """Compute the products of a tile.

        Args:
            b: Where to write.
            block: Its rows and columns.
            most: How many rows it has at most.
            tile: Its number.
            tiles: How many tiles of several rows there are.
        """
        lines = block.lines
        vectors = -(-(block.columns // lines) // self.e.lanes)
        if most == 1:
            self._call(b, 1, lines, vectors, [])
            return
        share = b.add(b.sdiv(I64(LINE), tiles), I64(1))  # of each line of the weights that come next, in bytes
        done = b.append_basic_block("done")
        cases = {rows: b.append_basic_block(f"rows{rows}") for rows in (1, *range(2, most + 1, 2))}
        choice = b.switch(block.height, cases[most])
        for rows, case in cases.items():
            if rows < most:
                choice.add_case(I64(rows), case)
            b.position_at_end(case)
            self._call(b, rows, lines, vectors, [tile, share] if rows >= _TALL else [])
            b.branch(done)
        b.position_at_end(done)

    def _call(self, b: ir.IRBuilder, rows: int, lines: int, vectors: int, ahead: Sequence[ir.Value]) -> None:
        """Call the microkernel of a size, for as many products at once as the registers hold the accumulators of."""
        at_once = _accumulators(self.e.machine) // (rows * vectors * lines)
        for first, last in _even_ranges(len(self.dots), max(1, at_once)):
            terms = [self._terms[dot] for dot in self.dots[first:last]]
            base = min(number for each in terms for _, number in each)
            shape = tuple(tuple((o, number - base) for o, number in each) for each in terms)
            key = rows, lines, vectors, shape
            if key not in self._functions:
                self._functions[key] = self._microkernel(*key)
            weights = b.gep(self._weights_of, [I64(base)], source_etype=PTR)
            sums = self.e.at(b, self.sums, self.offset(first, lines, 0, 0))
            b.call(self._functions[key], [self._rows_of, weights, sums, *ahead])

    def offset(self, dot: int, lines: int, vector: int, row: int) -> int:
        """Where a vector of accumulators is, for a tile of so many lines, in numbers."""
        return ((dot * lines * self._vectors + vector) * self.rows + row) * self.e.lanes

    def _microkernel(self, rows: int, lines: int, vectors: int, shape: Sequence[Terms]) -> ir.Function:
        """A function that computes some products; an accumulator is known by product, line, vector of it, and row."""
        e = self.e
        types = [PTR] * 3 + [I64] * (2 if rows >= _TALL else 0)
        function, b = e.function(f"{self.name}_{len(self._functions)}", types)
        function.linkage = "internal"
        row_table, weight_table, target, *ahead = function.args
        keys = [
            (d, n, v, r) for d in range(len(shape)) for n in range(lines) for v in range(vectors) for r in range(rows)
        ]
        sums: dict[tuple[int, int, int, int], ir.Value] = dict.fromkeys(keys, e.constant(0.0))
        for o, (operand, users) in enumerate(self.operands):
            per_line, per_row, _ = strides_of(e, self.group, operand.width, len(users))
            terms = [(d, number) for d, each in enumerate(shape) for which, number in each if which == o]
            if not terms:
                continue
            x_rows = [e.address(b, row_table, o * self.rows + r) for r in range(rows)]
            weights = {
                (number, n): e.at(b, e.address(b, weight_table, number), n * per_line)
                for _, number in terms for n in range(lines)
            }  # fmt: skip
            # A product that reads a value twice, with different parts of the matrix, has one accumulator.
            changed = [key for key in keys if key[0] in {d for d, _ in terms}]
            columns = [
                (d, n, v, weights[number, n]) for d, number in terms for n in range(lines) for v in range(vectors)
            ]
            with e.loop(b, I64(0), I64(operand.width), 1, [sums[key] for key in changed]) as k:
                now = dict(zip(changed, k.values, strict=True))
                at = b.mul(k.index, I64(per_row))
                if ahead:
                    self._prefetch(b, columns[0][3], operand.width, k.index, lines, (per_line, per_row), ahead)

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
                k.values = [now[key] for key in changed]
            sums.update(zip(changed, k.results or [], strict=True))
        for (d, n, v, r), value in sums.items():
            e.store(b, value, e.at(b, target, self.offset(d, lines, n * self._vectors + v, r)), None)
        b.ret_void()
        return function

    def _prefetch(
        self, b: ir.IRBuilder, weights: ir.Value, depth: int, k: ir.Value, lines: int, strides: tuple[int, int],
        ahead: Sequence[ir.Value],
    ) -> None:  # fmt: skip
        """Prefetch the weights of the next lines, evenly: each tile its share while it computes with these.

        They come from memory or the third cache, from which else the first tile alone would have to load them.
        """
        tile, share = ahead
        per_line, per_row = strides
        offset = b.mul(b.add(b.mul(tile, I64(depth)), k), b.mul(share, I64(lines * per_row // self.e.line)))
        place = b.gep(weights, [b.add(offset, I64(lines * per_line * self.e.bytes))], source_etype=ir.IntType(8))
        prefetch = self.e.intrinsic("llvm.prefetch.p0", ir.VoidType(), [PTR, I32, I32, I32])
        b.call(prefetch, [place, I32(0), I32(2), I32(1)])  # to be read, into the second cache, data


def _accumulators(machine: Machine) -> int:
    """How many accumulators the registers hold beside weights and a number of a row: 12 of 16, 24 of 32."""
    return machine.registers * 3 // 4


def strides_of(writer: LoopWriter, group: Group, rows: int, count: int) -> tuple[int, int, int]:
    """The strides of the packed weights of products of one operand: from line to line, row to row, product to product.

    If all products are computed at once, they read one sequence of weights; else each reads its own.
    Either way the weights of a line are side by side: whole matrices one after the other, often of sizes that are
    powers of two, would fall on the same places of the second cache.
    """
    line = count * rows * writer.line
    if _are_together(writer, len(group.dots)):
        return line, count * writer.line, writer.line
    return line, writer.line, rows * writer.line


def _are_together(writer: LoopWriter, count: int) -> bool:
    """Whether so many products are computed at once: if the registers hold the accumulators of four rows."""
    return _accumulators(writer.machine) // (count * writer.line // writer.lanes) >= 4


def _shape(writer: LoopWriter, count: int, lines: int) -> tuple[int, int]:
    """Rows and lines of a tile."""
    vectors = writer.line // writer.lanes
    per_row = vectors * count if _are_together(writer, count) else vectors
    most = _accumulators(writer.machine) // per_row
    rows = max(2, min(_MOST, most // 2 * 2))
    return rows, max(1, min(lines, most // rows)) if _are_together(writer, count) else 1


def _even_ranges(count: int, most: int) -> list[tuple[int, int]]:
    """Split a range into ranges of at most so many, as even as can be."""
    parts = -(-count // most)
    edges = [count * k // parts for k in range(parts + 1)]
    return list(itertools.pairwise(edges))
