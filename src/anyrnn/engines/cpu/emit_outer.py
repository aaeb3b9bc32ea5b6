"""Code generation for the weight-gradient GEMM of outer.py: packed blocks, and tiles accumulated in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn.engines.cpu.slots import OUTER_SLOTS, Blocking
from anyrnn.engines.cpu.writer import I1, I32, I64, PTR, Writer

if TYPE_CHECKING:
    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.runtime.kernel import Precision


def emit_outer(blocking: Blocking, machine: Machine, precision: Precision) -> str:
    """Return the IR of ``void outer(int64_t* slots, int64_t part, int64_t parts)``."""
    return _Emitter(blocking, machine, precision).text()


class _Emitter(Writer):
    def __init__(self, blocking: Blocking, machine: Machine, precision: Precision) -> None:
        super().__init__(machine, precision)
        self.depth, self.side, self.tall, self.wide = blocking.depth, blocking.side, blocking.tall, blocking.wide

    def text(self) -> str:
        """The IR."""
        depth, side = I64(self.depth), I64(self.side)
        copy_left, copy_right = self._emit_copy("left", self.tall), self._emit_copy("right", self.wide)
        narrow, full = self._emit_tile(1), self._emit_tile(self.wide // self.lanes)
        function, b = self.function("outer", [PTR, I64, I64])
        slots, part, parts = function.args
        s = {name: b.load(b.gep(slots, [I64(k)], source_etype=I64), typ=I64) for k, name in enumerate(OUTER_SLOTS)}
        left, right, out, scratch = (b.inttoptr(s[name], PTR) for name in ("left", "right", "out", "scratch"))
        lefts = self.at(b, scratch, b.mul(part, s["scratch_stride"]))
        rights = self.at(b, lefts, s["scratch_left"])
        (top, bottom), (start, stop) = self._shares(b, s["left_width"], s["right_width"], part, parts)
        some = b.select(b.icmp_signed(">", s["rows"], I64(1)), s["rows"], I64(1))  # the sum of none is zero
        with self.loop(b, I64(0), some, self.depth) as block, self.loop(b, top, bottom, self.side) as down:
            rows = self.least(b, depth, b.sub(s["rows"], block.index))
            height = self.least(b, side, b.sub(bottom, down.index))
            old = b.or_(b.icmp_signed("!=", s["add"], I64(0)), b.icmp_signed(">", block.index, I64(0)))
            low = b.sub(s["rows"], b.add(block.index, rows))
            low = b.select(b.icmp_signed("!=", s["last_first"], I64(0)), low, block.index)
            here = [s["left_index"], s["left_stride"], low, rows]
            b.call(copy_left, [left, down.index, height, *here, lefts])
            with self.loop(b, start, stop, self.side) as across:
                width = self.least(b, side, b.sub(stop, across.index))
                here = [s["right_index"], s["right_stride"], low, rows]
                b.call(copy_right, [right, across.index, width, *here, rights])
                with self.loop(b, I64(0), width, self.wide) as column, self.loop(b, I64(0), height, self.tall) as row:
                    left_tile = self.at(b, lefts, b.mul(row.index, depth))
                    right_tile = self.at(b, rights, b.mul(column.index, depth))
                    at = b.mul(b.add(down.index, row.index), s["out_stride"])
                    target = self.at(b, out, b.add(at, b.add(across.index, column.index)))
                    more = b.sub(width, column.index)
                    args = [left_tile, right_tile, rows, target, s["out_stride"], b.sub(height, row.index), more, old]
                    with b.if_else(b.icmp_signed("<=", more, I64(self.lanes))) as (one, several):
                        with one:
                            b.call(narrow, args)
                        with several:
                            b.call(full, args)
        b.ret_void()
        return str(self.module)

    def _shares(
        self, b: ir.IRBuilder, n: ir.Value, m: ir.Value, part: ir.Value, parts: ir.Value
    ) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
        """The rows and the columns of the result that a part computes: a share of those that are more tiles."""
        high, wide = b.sdiv(n, I64(self.tall)), b.sdiv(m, I64(self.wide))
        by_row = b.icmp_signed(">", high, wide)

        def share(size: ir.Value, tile: int, split: ir.Value) -> tuple[ir.Value, ir.Value]:
            tiles = b.sdiv(b.add(size, I64(tile - 1)), I64(tile))
            edges = [b.mul(b.sdiv(b.mul(p, tiles), parts), I64(tile)) for p in (part, b.add(part, I64(1)))]
            low, high = b.select(split, edges[0], I64(0)), b.select(split, edges[1], size)
            return low, self.least(b, high, size)

        return share(n, self.tall, by_row), share(m, self.wide, b.not_(by_row))

    def _emit_copy(self, name: str, count: int) -> ir.Function:
        """Copy columns of a block of rows, `count` of all rows, then the next ones; zeros where there are none."""
        function, b = self.function(f"copy_{name}", [PTR, I64, I64, I64, I64, I64, I64, PTR])
        function.linkage = "internal"
        source, first, width, table, stride, start, depth, target = function.args
        by_table = b.icmp_signed("!=", table, I64(0))
        vector = ir.VectorType(self.real, count)
        whole = b.sub(width, b.srem(width, I64(count)))
        with self.loop(b, I64(0), depth, 1) as k:
            number = b.add(start, k.index)
            before = b.block
            with b.if_then(by_table):
                indexed, inside = self.element(b, b.inttoptr(table, PTR), number), b.block
            row = b.phi(I64)
            row.add_incoming(number, before)
            row.add_incoming(indexed, inside)
            line = self.at(b, source, b.add(b.mul(row, stride), first))
            sink = self.at(b, target, b.mul(k.index, I64(count)))
            with self.loop(b, I64(0), whole, count) as i:
                value = b.load(self.at(b, line, i.index), align=self.bytes, typ=vector)
                b.store(value, self.at(b, sink, b.mul(i.index, I64(self.depth))), align=self.bytes)
            with b.if_then(b.icmp_signed("<", whole, width)), self.loop(b, I64(0), I64(count), 1) as i:
                at = b.add(whole, i.index)
                there = b.icmp_signed("<", at, width)
                value = b.load(self.at(b, line, b.select(there, at, I64(0))), typ=self.real)
                last = self.at(b, sink, b.add(b.mul(whole, I64(self.depth)), i.index))
                b.store(b.select(there, value, ir.Constant(self.real, 0.0)), last)
        b.ret_void()
        return function

    def _emit_tile(self, blocks: int) -> ir.Function:
        """Sum up a tile of the result in registers and add it to what is there."""
        function, b = self.function(f"tile{blocks}", [PTR, PTR, I64, PTR, I64, I64, I64, I1])
        function.linkage = "internal"
        left, right, depth, out, stride, height, width, old = function.args
        lanes, keys = self.lanes, [(r, u) for r in range(self.tall) for u in range(blocks)]
        with self.loop(b, I64(0), depth, 1, [self.constant(0.0)] * len(keys)) as k:
            line = self.at(b, right, b.mul(k.index, I64(self.wide)))
            vectors = [self.load(b, self.at(b, line, u * lanes), None) for u in range(blocks)]
            left_row = self.at(b, left, b.mul(k.index, I64(self.tall)))
            values = []
            for (r, u), total in zip(keys, k.values, strict=True):
                if u == 0:
                    x = self.splat(b, b.load(self.at(b, left_row, r), typ=self.real))
                values.append(b.fadd(total, b.fmul(x, vectors[u], flags=("contract",)), flags=("contract",)))
            k.values = values
        sums = dict(zip(keys, k.results or [], strict=True))
        numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        inside = b.insert_element(ir.Constant(numbers.type, ir.Undefined), b.trunc(width, I32), I32(0))
        inside = b.shuffle_vector(inside, inside, ir.Constant(numbers.type, [0] * lanes))
        masks = [
            b.icmp_signed("<", b.add(numbers, ir.Constant(numbers.type, [u * lanes] * lanes)), inside)
            for u in range(blocks)
        ]
        for r in range(self.tall):
            with b.if_then(b.icmp_signed("<", I64(r), height)):
                line = self.at(b, out, b.mul(I64(r), stride))
                for u, mask in enumerate(masks):
                    pointer = self.at(b, line, u * lanes)
                    before = b.select(old, self.load(b, pointer, mask), self.constant(0.0))
                    self.store(b, b.fadd(before, sums[r, u]), pointer, mask)
        b.ret_void()
        return function
