"""Which rows of a ragged batch are computed at each step, and where they are in memory.

Rows are sorted by length, longest first, so that the rows active at a step are the first ones in this order. Arrays
that come from outside or go there are padded: a step's rows lie as they are in the batch, and are found by the order.
What is kept between passes and parts is packed: the active rows of all steps one after the other, with no room for
padding. A batch without lengths is the case in which both are the same.
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

STEP_TABLES = ("rows", "offset", "place", "joined", "before")


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of a batch, in the order in which a direction runs through them.

    Attributes:
        T, B: The size of the batch.
        rows: For each step in running order, how many rows are active.
        offset: Where they begin in packed arrays.
        place: Where the step begins in padded arrays.
        joined: How many of the rows were active in the step before.
        before: Where that step begins in padded arrays.
        order: Which row of the batch each sorted row is, (B,).
        lengths: The lengths, (B,); None if all are T.
    """

    T: int
    B: int
    rows: NDArray[np.int64]
    offset: NDArray[np.int64]
    place: NDArray[np.int64]
    joined: NDArray[np.int64]
    before: NDArray[np.int64]
    order: NDArray[np.int64]
    lengths: Tensor | None
    reverse: bool
    _bounds: dict[int, tuple[NDArray[np.int64], int]] = field(default_factory=dict)

    @property
    def is_ragged(self) -> bool:
        """Whether padded arrays hold rows that are not computed."""
        return self.lengths is not None

    @functools.cached_property
    def total(self) -> int:
        """The number of packed rows."""
        return int(self.rows.sum())

    @functools.cached_property
    def _tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        table = np.stack([getattr(self, name) for name in STEP_TABLES])
        return table, np.ascontiguousarray(table[:, ::-1])

    @functools.cached_property
    def slots(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What machine code is given to find rows, in running order and backwards: steps, tables, order."""
        steps, order = len(self.rows), self.order.ctypes.data
        forward, backward = (
            (steps, *(table.ctypes.data + 8 * steps * k for k in range(len(STEP_TABLES))), order)
            for table in self._tables
        )
        return forward, backward

    @functools.cached_property
    def packed_index(self) -> Tensor:
        """For each packed row, where it is in padded arrays."""
        index = np.empty(self.total, dtype=np.int64)
        k = np.arange(self._most)
        active = k < self.rows[:, None]
        index[(self.offset[:, None] + k)[active]] = (self.place[:, None] + self.order[: self._most])[active]
        return torch.from_numpy(index)

    @functools.cached_property
    def neighbours(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Rows with a step before: (where that is in padded arrays, where they are in packed ones).

        And those without one: (the rows of the batch, where they are in packed arrays).
        """
        k = np.arange(self._most)
        here, old = self.offset[:, None] + k, k < self.joined[:, None]
        new = (k < self.rows[:, None]) & ~old
        rows = np.broadcast_to(self.order[: self._most], old.shape)
        found = ((self.before[:, None] + rows)[old], here[old]), (rows[new], here[new])
        (a, b), (c, d) = (tuple(map(torch.from_numpy, pair)) for pair in found)
        return (a, b), (c, d)

    @property
    def _most(self) -> int:
        return int(self.rows.max(initial=0))

    def final(self, sequence: Tensor, initial: Tensor) -> Tensor:
        """A copy of each row of a state (T, B, size) after its last step in running order."""
        if self.lengths is None:
            return sequence[0 if self.reverse else -1].clone()
        last = self.lengths.clamp(min=1) - 1
        found = sequence[0].clone() if self.reverse else sequence[last, torch.arange(self.B)]
        return torch.where(self.lengths.unsqueeze(1) > 0, found, initial)

    def bounds(self, parts: int) -> int:
        """Where the first rows of the threads' parts are written: as even in valid steps as pairs of rows can be."""
        if parts not in self._bounds:
            work = np.arange(1, self.B + 1)
            if self.lengths is not None:
                work = np.cumsum(self.lengths.numpy()[self.order])
            ends = np.searchsorted(work, work[-1] * np.arange(1, parts) / parts)
            even = np.maximum.accumulate(np.minimum(self.B, (ends + 1) // 2 * 2))
            table = np.concatenate(([0], even, [self.B])).astype(np.int64)
            self._bounds[parts] = table, table.ctypes.data
        return self._bounds[parts][1]


def layout(T: int, B: int, lengths: Tensor | None, reverse: bool) -> Layout:
    """Lay a batch out."""
    if lengths is None:
        return _full(T, B, reverse)
    order = np.argsort(-lengths.numpy(), kind="stable")
    falling = -lengths.numpy()[order]
    steps = np.arange(-falling[0])
    rows = np.searchsorted(falling, -steps, side="left").astype(np.int64)
    offset, place = np.concatenate(([0], np.cumsum(rows)[:-1])), steps * B
    if reverse:
        rows, offset, place = (a[::-1].copy() for a in (rows, offset, place))
    joined = np.concatenate(([0], np.minimum(rows[1:], rows[:-1])))
    return Layout(T, B, rows, offset, place, joined, _before(place), order, lengths, reverse)


@functools.lru_cache(maxsize=64)
def _full(T: int, B: int, reverse: bool) -> Layout:
    rows = np.full(T, B, dtype=np.int64)
    place = np.arange(T, dtype=np.int64) * B
    if reverse:
        place = place[::-1].copy()
    joined = rows.copy()
    joined[:1] = 0
    return Layout(T, B, rows, place, place, joined, _before(place), np.arange(B), None, reverse)


def _before(place: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], place[:-1])) if len(place) else place


def padded_rows(layout: Layout, like: Tensor, width: int) -> Tensor:
    """A padded array (T, B, width) to be written, zero at padded steps."""
    make = like.new_zeros if layout.is_ragged else like.new_empty
    return make(layout.T, layout.B, width)
