"""Random masks by machine code: what ``anyrnn::mask`` (`anyrnn.masks`) is on this processor."""

from __future__ import annotations

import functools
import struct
from array import array

import torch
from torch import Tensor

from anyrnn import masks
from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.machine import Machine
from anyrnn.runtime.kernel import Precision

_SMALL = 1 << 16  # numbers that more than one thread is not worth: some 20 us


def _mask(
    seed: Tensor, stream: int, steps: int, rows: int, width: int, p: float, value: float, dtype: torch.dtype
) -> Tensor:
    """Draw a mask; see `anyrnn.masks`."""
    made = torch.empty(steps, rows, width, dtype=dtype, device="cpu")
    count = made.numel()
    if count:
        bits = struct.unpack("<q", struct.pack("<d", value))[0]
        sizes = (steps, rows, width)
        slots = array("q", (made.data_ptr(), *sizes, int(seed.item()), stream, masks.threshold_of(p), bits))
        parts = 1 if count < _SMALL else threads.count()
        threads.parallel(_code(dtype, Machine.host()).address("mask"), slots.buffer_info()[0], parts)
    return made


@functools.cache
def _code(dtype: torch.dtype, machine: Machine) -> jit.Compiled:
    def build() -> str:
        from anyrnn.engines.cpu.emit_mask import emit_mask  # noqa: PLC0415 - LLVM's builder is needed on a miss only

        return emit_mask(machine, Precision.of(dtype))

    numbers = masks.ROTATIONS, masks.ROUNDS, masks.PARITY, masks.STEPS
    return jit.load(f"mask {dtype} {numbers}", build, machine)


_LIBRARY = torch.library.Library("anyrnn", "FRAGMENT")
_LIBRARY.impl("mask", _mask, "CPU")
