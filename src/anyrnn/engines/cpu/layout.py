"""Where the valid steps of a ragged batch are in memory: packed, with no room for padding.

Rows are sorted by length, longest first, so that the rows active at a step are the first ones, and the arrays of all
steps lie one after the other. A batch without lengths is the case in which nothing has to move.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The packed rows of a batch, in the order in which a direction runs through them.

    Attributes:
        T, B: The size of the batch.
        rows: For each step in running order, how many rows are active.
        offset: Where their packed rows begin.
        joined: How many of them were active in the step before.
        before: Where that step's packed rows begin.
        lengths: The sorted lengths, (B,); None if all are T.
        order: Which row of the batch each sorted row is, (B,); None likewise.
    """

    T: int
    B: int
    rows: NDArray[np.int64]
    offset: NDArray[np.int64]
    joined: NDArray[np.int64]
    before: NDArray[np.int64]
    lengths: Tensor | None
    order: Tensor | None
    reverse: bool
    _bounds: dict[int, tuple[NDArray[np.int64], int]] = field(default_factory=dict)

    @functools.cached_property
    def total(self) -> int:
        """The number of packed rows."""
        return int(self.rows.sum())

    @functools.cached_property
    def lead(self) -> tuple[int, ...]:
        """The shape of an array of all steps, before the features."""
        return (self.T, self.B) if self.lengths is None else (self.total,)

    @functools.cached_property
    def tables(self) -> tuple[tuple[NDArray[np.int64], int], tuple[NDArray[np.int64], int]]:
        """The steps as machine code reads them: rows, offset, joined, before; in running order, and backwards."""
        table = np.stack([self.rows, self.offset, self.joined, self.before])
        both = np.ascontiguousarray(table), np.ascontiguousarray(table[:, ::-1])
        return (both[0], both[0].ctypes.data), (both[1], both[1].ctypes.data)

    @functools.cached_property
    def packed_index(self) -> Tensor:
        """For each packed row, its place in (T*B) rows."""
        assert self.order is not None
        steps = np.arange(len(self.rows))[:: -1 if self.reverse else 1, None]
        return self._by_row(steps * self.B + self.order.numpy()[: self._most])

    @functools.cached_property
    def neighbours(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Packed rows with a step before: (that step's, theirs); and those without one: (sorted rows, theirs)."""
        k = np.arange(self._most)
        here, old = self.offset[:, None] + k, k < self.joined[:, None]
        new = (k < self.rows[:, None]) & ~old
        before, rows = self.before[:, None] + k, np.broadcast_to(k, old.shape)
        pairs = ((before[old], here[old]), (rows[new], here[new]))
        (a, b), (c, d) = ((torch.from_numpy(np.ascontiguousarray(i)) for i in pair) for pair in pairs)
        return (a, b), (c, d)

    @property
    def _most(self) -> int:
        return int(self.rows.max(initial=0))

    def _by_row(self, table: NDArray[np.int64]) -> Tensor:
        """From numbers for each step in running order and sorted row to one for each packed row."""
        k = np.arange(self._most)
        active = k < self.rows[:, None]
        index = np.empty(self.total, dtype=np.int64)
        index[(self.offset[:, None] + k)[active]] = table[active]
        return torch.from_numpy(index)

    @functools.cached_property
    def last_index(self) -> Tensor:
        """For each sorted row with steps, the packed row of its last one in running order."""
        assert self.lengths is not None
        lengths = self.lengths.numpy()[: self._most]
        last = np.zeros_like(lengths) if self.reverse else lengths - 1
        by_time = self.offset[::-1] if self.reverse else self.offset
        return torch.from_numpy(by_time[last] + np.arange(len(lengths)))

    def bounds(self, parts: int) -> int:
        """Where the first rows of the threads' parts are written: as even in valid steps as pairs of rows can be."""
        if parts not in self._bounds:
            work = np.arange(1, self.B + 1) if self.lengths is None else np.cumsum(self.lengths.numpy())
            ends = np.searchsorted(work, work[-1] * np.arange(1, parts) / parts)
            even = np.maximum.accumulate(np.minimum(self.B, (ends + 1) // 2 * 2))
            table = np.concatenate(([0], even, [self.B])).astype(np.int64)
            self._bounds[parts] = table, table.ctypes.data
        return self._bounds[parts][1]


def layout(T: int, B: int, lengths: Tensor | None, reverse: bool) -> Layout:
    """Lay a batch out."""
    if lengths is None:
        return _full(T, B, reverse)
    lengths, order = lengths.sort(descending=True, stable=True)
    longest = int(lengths[0])
    rows = np.searchsorted(-lengths.numpy(), -np.arange(longest), side="left").astype(np.int64)
    offset = np.concatenate(([0], np.cumsum(rows)[:-1])).astype(np.int64)
    if reverse:
        rows, offset = rows[::-1].copy(), offset[::-1].copy()
    joined = np.concatenate(([0], np.minimum(rows[1:], rows[:-1])))
    before = np.concatenate(([0], offset[:-1]))
    return Layout(T, B, rows, offset, joined, before, lengths, order, reverse)


@functools.lru_cache(maxsize=64)
def _full(T: int, B: int, reverse: bool) -> Layout:
    rows = np.full(T, B, dtype=np.int64)
    offset = np.arange(T, dtype=np.int64) * B
    if reverse:
        offset = offset[::-1].copy()
    joined = rows.copy()
    joined[:1] = 0
    before = np.concatenate(([0], offset[:-1])) if T else offset
    return Layout(T, B, rows, offset, joined, before, None, None, reverse)
