"""Batches of sequences, gathered in a thread of their own while the network learns, if they are on the disk.

A training takes them by `gathered`, in its own order. A loop of one's own takes them by `batches`, in batches of like
length, which have little padding: anyrnn's layers skip it, others compute it.
"""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.ondisk import lengths_of
from anyrnn.workbench.sequences import Scaled, Scaler, Sequences, scaled, side_by_side

T = TypeVar("T")

_AHEAD = 4  # batches that wait for the network
_POOL = 64  # batches that are sorted by length together: little padding, and still shuffled


def gathered(xs: Sequence[Tensor], places: Iterable[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Scaled sequences side by side (T, B, I), and their lengths (B,): a pair for each list of places."""
    found = (side_by_side(xs, each) for each in places)
    return ahead(found) if isinstance(xs, Scaled) else found


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, of which the next ones are made while one is used. The thread ends with the iteration."""
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(_AHEAD)
    ended = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not ended.is_set():
            with suppress(queue.Full):
                waiting.put((item, error), timeout=0.1)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:  # noqa: BLE001 - raised again where the items are used
            put(None, error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc] # without an error there is an item
    finally:
        ended.set()
        thread.join()


class Waiting(Iterator[T]):
    """The same items, inside a ``with`` block that ends their making, too.

    Attributes:
        seconds: How long was waited for them so far.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self.seconds = 0.0

    def __next__(self) -> T:
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        close = getattr(self._items, "close", None)  # of a generator
        if close is not None:
            close()


def batches(
    part: Sequences, scaler: Scaler, size: int, *, seed: int | None = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All sequences of a part once, in batches of like length: x (T, B, I), lengths (B,), y (B,).

    >>> from anyrnn.workbench import load
    >>> data = load("japanese-vowels")
    >>> x, lengths, y = next(batches(data.train, data.scaler, 32))
    >>> x.shape[1:], len(lengths), len(y)
    (torch.Size([32, 12]), 32, 32)

    Args:
        part: Such as the training part of a dataset, in memory or on the disk.
        scaler: That of the dataset.
        size: Sequences a batch.
        seed: Of the shuffling, another one for each epoch; None: in order of their length.
    """
    if size < 1:
        raise AnyRNNError(f"batches: got size={size}, expected at least 1")
    places = list(_by_length(lengths_of(part.x), size, seed))
    with Waiting(gathered(scaled(part.x, scaler), [each.tolist() for each in places])) as found:
        for each, (x, lengths) in zip(places, found, strict=True):
            yield x, lengths, part.y[each]


def _by_length(lengths: NDArray[np.int64], size: int, seed: int | None) -> Iterator[NDArray[np.int64]]:
    """Batches of places: shuffled, sorted by length within pools, and the batches of a pool shuffled again."""
    draw = None if seed is None else np.random.default_rng(seed)
    count = len(lengths)
    shuffled = np.arange(count) if draw is None else draw.permutation(count)
    pool = count if draw is None else size * _POOL
    for start in range(0, count, max(pool, 1)):
        part = shuffled[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        firsts = np.arange(0, len(part), size)
        for first in firsts if draw is None else draw.permutation(firsts):
            yield part[first : first + size]
