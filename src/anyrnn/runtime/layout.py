"""Which rows of a ragged batch are computed at each step, and where they are in memory.

Rows are sorted by length, longest first, so that the rows active at a step are the first ones in this order. Arrays
that come from outside or go there are padded: a step's rows lie as they are in the batch, and are found by the order.
What is kept between passes and parts is packed: the active rows of all steps one after the other, with no room for
padding. A batch without lengths is the case in which both are the same.
"""

from __future__ import annotations

import functools
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from anyrnn.runtime.memory import empty

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

STEP_TABLES = ("rows", "packed", "padded", "continued", "before")


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of a batch, in the order in which a direction runs through them.

    For lengths [1, 3, 2] the order is [1, 2, 0], and the tables of the forward direction are, a column for each step::

        rows       3  2  1    active at the step: the first of the sorted rows
        packed     0  3  5    where they begin in packed arrays
        padded     0  3  6    where the step begins in padded arrays, B = 3 rows a step
        continued  0  2  1    of the active rows, those with a step before; the others begin with the initial state
        before     0  0  3    where that step begins in padded arrays

    Attributes:
        T, B: The size of the batch.
        table: These tables, a line each (`STEP_TABLES`), a column for each step in running order.
        order: Which row of the batch each sorted row is, (B,).
        lengths: The lengths, (B,); None if all are T.
        reverse: Run from each row's last valid step to its first.
        whole: The batch of which this is a piece; None if it is none.
        is_continued: The piece goes on from steps that were run before. States of all steps then have room for one step
            more, in front of the others in running order: `continued_states`.
        packed_before: How many packed rows the whole batch has in memory before those of the piece.
    """

    T: int
    B: int
    table: NDArray[np.int64]
    order: NDArray[np.int64]
    lengths: NDArray[np.int64] | None
    reverse: bool
    whole: Layout | None = None
    is_continued: bool = False
    packed_before: int = 0
    # Tables and their addresses. Filled by `setdefault`: a table whose address another thread was given has to stay.
    _slots: dict[bool, tuple[tuple[int, ...], NDArray[np.int64]]] = field(default_factory=dict)
    _bounds: dict[int, tuple[int, array[int]]] = field(default_factory=dict)

    @property
    def rows(self) -> NDArray[np.int64]:
        """For each step in running order, how many rows are active."""
        rows: NDArray[np.int64] = self.table[0]
        return rows

    @property
    def packed(self) -> NDArray[np.int64]:
        """Where they begin in packed arrays."""
        packed: NDArray[np.int64] = self.table[1]
        return packed

    @property
    def padded(self) -> NDArray[np.int64]:
        """Where the step begins in padded arrays."""
        padded: NDArray[np.int64] = self.table[2]
        return padded

    @property
    def is_ragged(self) -> bool:
        """Whether padded arrays hold rows that are not computed."""
        return self.lengths is not None

    @functools.cached_property
    def total(self) -> int:
        """The number of packed rows."""
        return int(self.rows.sum())

    @property
    def source(self) -> Layout:
        """The batch itself, or the one of which it is a piece: by it work is shared out, so that pieces do the same."""
        return self if self.whole is None else self.whole

    def piece(self, first: int, last: int) -> Layout:
        """The steps from `first` to before `last`, in arrays of their own.

        Rows stay in the order of the whole batch, and those with a step before the piece find it in `continued_states`:
        so every sum over rows and steps is formed as in the whole batch.
        """
        count = self.table.shape[1]
        begin, end = min(first, count), min(last, count)
        columns = slice(count - end, count - begin) if self.reverse else slice(begin, end)
        table = self.table[:, columns].copy()
        _, packed, padded, _, before = table
        packed_before = int(packed.min(initial=self.total))
        packed -= packed_before
        padded -= first * self.B
        before -= first * self.B
        lengths = None if self.lengths is None else np.clip(self.lengths - first, 0, last - first)
        is_continued = columns.start > 0
        return Layout(last - first, self.B, table, self.order, lengths, self.reverse, self, is_continued, packed_before)

    def continued_states(self, initial: Tensor) -> Tensor:
        """Memory for a state after every step of a piece that goes on, zero at padded steps: (T, B, width).

        It lies within memory that holds the state before the first step, in running order, as well.
        """
        memory = empty(initial, self.T + 1, self.B, initial.shape[1])
        if self.is_ragged:
            memory.zero_()
        memory[self.T if self.reverse else 0] = initial
        return memory[:-1] if self.reverse else memory[1:]

    def slots(self, backward: bool) -> tuple[int, ...]:
        """What machine code is given to find rows, in running order or backwards: steps, tables, order."""
        known = self._slots.get(backward)
        if known is None:
            table = np.ascontiguousarray(self.table[:, ::-1]) if backward else self.table
            steps, address = table.shape[1], table.ctypes.data
            lines = range(address, address + table.nbytes, 8 * steps)
            slots = (steps, *lines, self.order.ctypes.data)
            known = self._slots.setdefault(backward, (slots, table))
        return known[0]

    @functools.cached_property
    def packed_index(self) -> Tensor:
        """For each packed row, where it is in padded arrays."""
        index = np.empty(self.total, dtype=np.int64)
        k = np.arange(self._most)
        active = k < self.rows[:, None]
        index[(self.packed[:, None] + k)[active]] = (self.padded[:, None] + self.order[: self._most])[active]
        return torch.from_numpy(index)

    def unpacked(self, rows: Tensor) -> Tensor:
        """Packed rows (N, n) as padded ones (T B, n), zero at padded steps."""
        return rows.new_zeros(self.T * self.B, rows.shape[1]).index_copy_(0, self.packed_index, rows)

    def with_steps(self, rows: Tensor) -> Tensor:
        """The rows of a context (B, ...); those of length 0, which no step reads, are copies of one that has steps.

        What they hold, such as NaN, would come back by the gradients of weights: zero times NaN is NaN.
        """
        if self.lengths is None or self.lengths[self.order[-1]]:
            return rows
        none = torch.from_numpy(self.lengths == 0).reshape(-1, *[1] * (rows.dim() - 1))
        return torch.where(none, rows[int(self.order[0])].detach(), rows)

    def at_every_step(self, rows: Tensor) -> Tensor:
        """The rows of the batch (B, ...) once for every step, packed."""
        if self.lengths is None:
            return rows.expand(self.T, *rows.shape).reshape(-1, *rows.shape[1:])
        return rows.index_select(0, self.packed_index % self.B)

    @functools.cached_property
    def neighbours(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Rows with a step before: (where that is in padded arrays, where they are in packed ones).

        And those without one: (the rows of the batch, where they are in packed arrays).
        """
        _, _, _, continued, before = self.table
        k = np.arange(self._most)
        here, old = self.packed[:, None] + k, k < continued[:, None]
        new = (k < self.rows[:, None]) & ~old
        rows = np.broadcast_to(self.order[: self._most], old.shape)
        found = ((before[:, None] + rows)[old], here[old]), (rows[new], here[new])
        (a, b), (c, d) = (tuple(map(torch.from_numpy, pair)) for pair in found)
        return (a, b), (c, d)

    @property
    def _most(self) -> int:
        return int(self.rows.max(initial=0))

    def final(self, sequence: Tensor, initial: Tensor) -> Tensor:
        """A copy of each row of a state (T, B, size) after its last step in running order."""
        if self.lengths is None:
            return torch.select_copy(sequence, 0, 0 if self.reverse else -1)
        last, none = self._last
        found = sequence.view(-1, sequence.shape[2]).index_select(0, last)
        return found if none is None else torch.where(none, initial, found)

    @functools.cached_property
    def _last(self) -> tuple[Tensor, Tensor | None]:
        """Where each row's last step is in padded arrays; and which rows have none (B, 1), if there are any."""
        assert self.lengths is not None
        steps = 0 if self.reverse else np.maximum(self.lengths, 1) - 1
        none = None if self.lengths[self.order[-1]] else torch.from_numpy(self.lengths == 0).unsqueeze(1)
        return torch.from_numpy(steps * self.B + np.arange(self.B)), none

    def bounds(self, shares: int) -> int:
        """Where the first rows of the threads' shares are written: as even in valid steps as pairs of rows can be."""
        if self.whole is not None:
            return self.whole.bounds(shares)
        known = self._bounds.get(shares)
        if known is None:
            inner: list[int] = []
            if shares > 1:
                work = np.arange(1, self.B + 1) if self.lengths is None else np.cumsum(self.lengths[self.order])
                ends = np.searchsorted(work, work[-1] * np.arange(1, shares) / shares)
                inner = np.maximum.accumulate(np.minimum(self.B, (ends + 1) // 2 * 2)).tolist()
            table = array("q", (0, *inner, self.B))
            known = self._bounds.setdefault(shares, (table.buffer_info()[0], table))
        return known[0]


def layout(T: int, B: int, lengths: Tensor | None, reverse: bool) -> Layout:
    """Lay a batch out."""
    if lengths is None:
        return _full(T, B, reverse)
    numbers = lengths.numpy()
    order = (-numbers).argsort(kind="stable")
    longest = numbers[order[0]]
    rows = B - np.bincount(numbers)[:longest].cumsum()  # less those that are as long as the step's number, or shorter
    return Layout(T, B, _table(rows, B, reverse), order, numbers, reverse)


@functools.lru_cache(maxsize=64)
def _full(T: int, B: int, reverse: bool) -> Layout:
    return Layout(T, B, _table(np.full(T, B), B, reverse), np.arange(B), None, reverse)


def _table(active: NDArray[np.int64], B: int, reverse: bool) -> NDArray[np.int64]:
    table = np.zeros((len(STEP_TABLES), len(active)), dtype=np.int64)
    rows, packed, padded, continued, before = table
    rows[:] = active
    active[:-1].cumsum(out=packed[1:])
    padded[:] = np.arange(0, B * len(active), B)
    if reverse:
        table[:3] = table[:3, ::-1].copy()
    np.minimum(rows[1:], rows[:-1], out=continued[1:])
    before[1:] = padded[:-1]
    return table


def padded_rows(layout: Layout, like: Tensor, width: int) -> Tensor:
    """A padded array (T, B, width) to be written, zero at padded steps."""
    rows = empty(like, layout.T, layout.B, width)
    return rows.zero_() if layout.is_ragged else rows
