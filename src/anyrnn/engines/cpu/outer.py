"""The gradient of a matrix: left^T @ right, the sum of the outer products of what a product took and gave.

Both are tall, some thousand packed rows, and their results small, a shape for which libraries of matrix products are
not made: PyTorch's reaches 80 to 95 % of the rate of this one, which also reads rows in any order, for ragged batches.

Blocks of rows are copied into the order in which they are read, then small tiles of the result are summed up in
registers, as Goto and van de Geijn describe in "Anatomy of High-Performance Matrix Multiplication" (2008).
"""

from __future__ import annotations

import functools
from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.machine import Machine
from anyrnn.engines.cpu.slots import Blocking

_SMALL = 1 << 19  # multiplications that more than one thread is not worth


class Rows(NamedTuple):
    """Rows of a tensor (rows, width): all of them, or those that `order` (int64) names, in its order.

    The numbers of a row are side by side.
    """

    tensor: Tensor
    order: Tensor | None = None


def add_outer(out: Tensor, left: Rows, right: Rows, add: bool) -> None:
    """Write left^T @ right to `out` (width of left, width of right), or add it to what is there."""
    rows = len(left.tensor if left.order is None else left.order)
    n, m = out.shape
    blocking, code = _code(out.dtype, Machine.host())
    parts = 1 if rows * n * m < _SMALL else threads.count()
    left_size, right_size = blocking.sizes(n, m)
    room = left_size + right_size
    scratch = out.new_empty(parts * room)
    given = (rows, n, m, *_slots(*left), *_slots(*right), out.data_ptr(), out.stride(0), add)
    slots = array("q", (*given, scratch.data_ptr(), left_size, room))
    threads.parallel(code.address("outer"), slots.buffer_info()[0], parts)


def _slots(tensor: Tensor, order: Tensor | None) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), 0 if order is None else order.data_ptr()


@functools.cache
def _code(dtype: torch.dtype, machine: Machine) -> tuple[Blocking, jit.Compiled]:
    blocking = Blocking(min(8, (machine.registers - 4) // 2), 2 * machine.lanes(dtype))

    def build() -> str:
        from anyrnn.engines.cpu.emit_outer import emit_outer  # noqa: PLC0415 - LLVM's builder is needed on a miss only

        return emit_outer(blocking, machine, dtype == torch.float64)

    return blocking, jit.load(f"outer {dtype}", build, machine)
