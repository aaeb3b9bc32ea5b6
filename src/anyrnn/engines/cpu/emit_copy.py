"""Code generation: the copy of a matrix into the order in which tiles read it, one piece of code for all kernels.

It depends on the machine and the type of the numbers only, and squares of numbers that are transposed in registers take
LLVM as long as a third of a kernel. So kernels are linked with it instead of having one each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn.engines.cpu.writer import I32, I64, PTR, Writer

if TYPE_CHECKING:
    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.runtime.kernel import Precision

#: Its name, which nothing else that a process has loaded should have.
COPY = "anyrnn_copy"
_ARGUMENTS = [PTR, PTR, *[I64] * 8]


def declared_copy(module: ir.Module) -> ir.Function:
    """Declare the function in the module of a kernel."""
    return ir.Function(module, ir.FunctionType(ir.VoidType(), _ARGUMENTS), COPY)


def emit_copy(machine: Machine, precision: Precision) -> str:
    """Return the IR of a function that copies lines of columns: (row, column) to [line][row][column of the line].

    Its arguments: a matrix and where to copy it; `down` and `along`, the strides of the matrix from row to row and from
    column to column; its rows and width; `per_line` and `per_row`, strides of the copy; the first line and the last.
    """
    return _Emitter(machine, precision).text()


class _Emitter(Writer):
    def text(self) -> str:
        """The IR."""
        function, b = self.function(COPY, _ARGUMENTS)
        base, target, down, along, rows, width, per_line, per_row, first, last = function.args
        n, size = self.lanes, self.line
        with self.loop(b, first, last, 1) as line, self.loop(b, I64(0), I64(size), n) as vector:
            column = b.add(b.mul(line.index, I64(size)), vector.index)
            source = self.at(b, base, b.mul(column, along))
            sink = self.at(b, target, b.add(b.mul(line.index, per_line), vector.index))
            inside = b.sub(width, column)
            whole = b.icmp_signed(">=", inside, I64(n))
            vectors = b.and_(whole, b.icmp_signed("==", along, I64(1)))
            squares = b.and_(whole, b.icmp_signed("==", down, I64(1)))
            with b.if_else(vectors) as (near, far):
                with near, self.loop(b, I64(0), rows, 1) as row:
                    value = self.load(b, self.at(b, source, b.mul(row.index, down)), None)
                    self.store(b, value, self.at(b, sink, b.mul(row.index, per_row)), None)
                with far:
                    done = b.select(squares, b.sub(rows, b.srem(rows, I64(n))), I64(0))
                    with self.loop(b, I64(0), done, n) as row:
                        lines = [self.at(b, source, b.add(row.index, b.mul(I64(k), along))) for k in range(n)]
                        for k, value in enumerate(self._transposed(b, [self.load(b, x, None) for x in lines])):
                            at = b.mul(b.add(row.index, I64(k)), per_row)
                            self.store(b, value, self.at(b, sink, at), None)
                    with self.loop(b, done, rows, 1) as row, self.loop(b, I64(0), I64(n), 1) as lane:
                        exists = b.icmp_signed("<", lane.index, inside)
                        at = b.add(b.mul(row.index, down), b.mul(b.select(exists, lane.index, I64(0)), along))
                        # Where there is no column any more, not even the first one of the line may be read.
                        at = b.select(exists, at, I64(0))
                        place = b.select(exists, source, base)
                        value = b.load(self.at(b, place, at), typ=self.real)
                        value = b.select(exists, value, ir.Constant(self.real, 0.0))
                        b.store(value, self.at(b, sink, b.add(b.mul(row.index, per_row), lane.index)))
        b.ret_void()
        return str(self.module)

    def _transposed(self, b: ir.IRBuilder, lines: list[ir.Value]) -> list[ir.Value]:
        """Transpose a square of numbers in registers, swapping quarters of halves of halves."""
        n = self.lanes
        half = 1
        while half < n:
            for k in range(n):
                if not k & half:
                    low = [p if not p & half else n + p - half for p in range(n)]
                    high = [p + half if not p & half else n + p for p in range(n)]
                    pair = lines[k], lines[k + half]
                    for at, order in ((k, low), (k + half, high)):
                        lines[at] = b.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, n), order))
            half *= 2
        return lines
