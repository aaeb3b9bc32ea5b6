"""The gradient of a matrix: left^T @ right, the sum of the outer products of what a product took and gave.

Both are tall, some thousand packed rows, and their results small, a shape for which libraries of matrix products are
not made: PyTorch's reaches 80 to 95 % of the rate of this one, which also reads rows in any order, for ragged batches.

Blocks of rows are copied into the order in which they are read, then small tiles of the result are summed up in
registers, as Goto and van de Geijn describe in "Anatomy of High-Performance Matrix Multiplication" (2008).
"""

from __future__ import annotations

import functools
from array import array
from typing import TYPE_CHECKING

from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.slots import Blocking
from anyrnn.runtime.kernel import Precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from anyrnn.engines.cpu.machine import Machine
    from anyrnn.runtime.kernel import Rows

_SMALL = 1 << 19  # multiplications that more than one thread is not worth


def add_outer(
    out: Tensor, row: int, column: int, left: Rows, right: Rows, add: bool, machine: Machine, last_first: bool = False
) -> None:
    """Write left^T @ right into the contiguous matrix `out`, from a row and column on, or add it to what is there.

    Each block of `Blocking.depth` rows is summed up for itself, and the sums are added one after the other: from the
    first rows on, or from the last ones.
    """
    rows, n, m, stride = left.height, left.width, right.width, out.shape[1]
    blocking, code = _code(out.dtype, machine)
    parts = 1 if rows * n * m < _SMALL else threads.count()
    left_size, right_size = blocking.sizes(n, m)
    room = left_size + right_size
    scratch = out.new_empty(parts * room)
    at = out.data_ptr() + (row * stride + column) * out.itemsize
    where = (at, stride, add, scratch.data_ptr(), left_size, room)
    slots = array("q", (rows, n, m, *_slots(left), *_slots(right), last_first, *where))
    threads.parallel(code.address("outer"), slots.buffer_info()[0], parts)


def _slots(rows: Rows) -> tuple[int, int, int]:
    address = rows.tensor.data_ptr() + (rows.first * rows.stride + rows.column) * rows.tensor.itemsize
    return address, rows.stride, 0 if rows.which is None else rows.which.data_ptr()


@functools.cache
def _code(dtype: torch.dtype, machine: Machine) -> tuple[Blocking, jit.Compiled]:
    blocking = Blocking(min(8, (machine.registers - 4) // 2), 2 * machine.lanes(dtype))

    def build() -> str:
        from anyrnn.engines.cpu.emit_outer import emit_outer  # noqa: PLC0415 - LLVM's builder is needed on a miss only

        return emit_outer(blocking, machine, Precision.of(dtype))

    return blocking, jit.load(f"outer {dtype}", build, machine)
