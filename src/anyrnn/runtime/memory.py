"""Memory for the arrays of a pass."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_LARGE = 4 << 20  # bytes: two huge pages and what is cut off at both ends


def empty(like: Tensor, *shape: int) -> Tensor:
    """A tensor that is not yet written, like another one but for its shape.

    For a large one the system is asked for huge pages (2 MiB). Such memory is mostly fresh, and the system clears it
    page by page when it is first written: 43 MiB took 20 ms in pages of 4 KiB, 5 ms in huge ones, 2 ms if not fresh.
    """
    tensor = like.new_empty(shape)
    advise = _advise()
    if tensor.nbytes >= _LARGE and advise is not None:
        start, page = tensor.data_ptr(), mmap.PAGESIZE
        first = -(-start // page) * page
        advise(first, (start + tensor.nbytes - first) // page * page)
    return tensor


@functools.cache
def _advise() -> Callable[[int, int], object] | None:
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return lambda address, size: madvise(address, size, mmap.MADV_HUGEPAGE)
