"""Code generation for random masks: a vector of columns at a time, eight steps of a row from each block of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn import masks
from anyrnn.engines.cpu.vectors import Vector, select
from anyrnn.engines.cpu.writer import I32, I64, PTR, Writer

if TYPE_CHECKING:
    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.runtime.kernel import Precision

#: The arguments, in order. The value is given by its bits as a double.
SLOTS = "out", "steps", "rows", "width", "seed", "stream", "threshold", "value"


def emit_mask(machine: Machine, precision: Precision) -> str:
    """Return the IR of ``void mask(int64_t* slots, int64_t part, int64_t parts)``."""
    return _Emitter(machine, precision).text()


class _Emitter(Writer):
    def text(self) -> str:
        """The IR."""
        function, b = self.function("mask", [PTR, I64, I64])
        slots, part, parts = function.args
        s = {name: b.load(b.gep(slots, [I64(k)], source_etype=I64), typ=I64) for k, name in enumerate(SLOTS)}
        out, (rows, width, steps) = b.inttoptr(s["out"], PTR), (s["rows"], s["width"], s["steps"])
        low, high = (self._words(b, b.trunc(w, I32)) for w in (s["seed"], b.lshr(s["seed"], I64(32))))
        key = [low, high, low.like(0), low.like(0)]
        stream, threshold = (self._words(b, b.trunc(s[name], I32)) for name in ("stream", "threshold"))
        double = b.bitcast(s["value"], ir.DoubleType())
        value = Vector(b, self.splat(b, double if self.bytes == 8 else b.fptrunc(double, self.real)))
        lane = Vector(b, ir.Constant(ir.VectorType(I32, self.lanes), list(range(self.lanes))))
        # A block of steps of a row is the unit of work; the parts take ranges of them.
        blocks = b.sdiv(b.add(steps, I64(masks.STEPS - 1)), I64(masks.STEPS))
        first, last = (b.sdiv(b.mul(p, b.mul(blocks, rows)), parts) for p in (part, b.add(part, I64(1))))
        with self.loop(b, first, last, 1) as unit:
            block, row = b.sdiv(unit.index, rows), b.srem(unit.index, rows)
            step = b.mul(block, I64(masks.STEPS))
            left = b.sub(steps, step)
            line = self.at(b, out, b.mul(b.add(b.mul(step, rows), row), width))
            with self.loop(b, I64(0), width, self.lanes) as column:
                columns = self._words(b, b.trunc(column.index, I32)) + lane
                of_row, of_block = (self._words(b, b.trunc(i, I32)) for i in (row, block))
                words = self._threefry([columns, of_row, of_block, stream], key)
                there = lane < self._words(b, b.trunc(b.sub(width, column.index), I32))
                for k in range(masks.STEPS):
                    word = words[k // 2]
                    draw = word >> 16 if k % 2 else word & (masks.DRAWS - 1)
                    kept = select(draw < threshold, 0.0, value)
                    with b.if_then(b.icmp_signed("<", I64(k), left)):
                        at = b.add(b.mul(b.mul(rows, width), I64(k)), column.index)
                        self.store(b, kept.value, self.at(b, line, at), there.value)
        b.ret_void()
        return str(self.module)

    def _words(self, b: ir.IRBuilder, word: ir.Value) -> Vector:
        """A word in all lanes."""
        kind = ir.VectorType(I32, self.lanes)
        one = b.insert_element(ir.Constant(kind, ir.Undefined), word, I32(0))
        return Vector(b, b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * self.lanes)))

    def _threefry(self, counter: list[Vector], key: list[Vector]) -> list[Vector]:
        """Threefry-4x32-20, as `anyrnn.masks.threefry` defines it."""
        schedule = [*key, key[0] ^ key[1] ^ key[2] ^ key[3] ^ key[0].like(masks.PARITY)]
        words = [c + k for c, k in zip(counter, key, strict=True)]
        for r in range(masks.ROUNDS):
            for (a, b), bits in zip(masks.pairs(r), masks.ROTATIONS[r % 8], strict=True):
                words[a] = words[a] + words[b]
                words[b] = self._rotated(words[b], bits) ^ words[a]
            if r % 4 == 3:
                turn = r // 4 + 1
                words = [w + schedule[(turn + k) % 5] for k, w in enumerate(words)]
                words[3] = words[3] + turn
        return words

    def _rotated(self, words: Vector, bits: int) -> Vector:
        return Vector(words.builder, words.builder.or_((words << bits).value, (words >> (32 - bits)).value))
