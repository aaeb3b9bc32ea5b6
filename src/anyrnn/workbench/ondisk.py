"""Sequences whose steps are in a file and not in memory; and what can be asked of sequences wherever they are.

`OnDisk` is a sequence of tensors (T_i, I), as a tuple of them is: each is read when it is asked for. What asks for all
of them asks by `pieces`, for some of them by `taken`, for their lengths by `lengths_of`, which take tuples, too. Leans
on NumPy and torch. The steps are read, not mapped: a disk that fails is an error then, and no signal.
"""

import hashlib
import os
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyrnn.errors import AnyRNNError

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves behind stays
    fcntl = None  # type: ignore[assignment]

Steps = Sequence[Tensor]  # sequences (T_i, I): a tuple in memory, or `OnDisk`

_PREFIX, _SUFFIX = "anyrnn-steps-", ".bin"
_PIECE = 1 << 20  # rows read at once: 80 MB of ten columns in float64
_YOUNG = 60.0  # seconds: a file that may not be locked yet


class FlatFile:
    """A file of rows of numbers of one width. It goes with the last object of the process that made it.

    Args:
        path: Where it is.
        dtype: float32 or float64.
        width: Numbers a row.
    """

    def __init__(self, path: Path, dtype: Any, width: int) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise AnyRNNError(
                f"{path}: the steps of the sequences are there, and cannot be read here: {error.strerror or error}; a "
                "process on another machine needs the data in memory (stream='never', --stream never)"
            ) from error
        self.path, self.dtype, self.width = path, np.dtype(dtype), width
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it by its name."""
        return FlatFile, (self.path, self.dtype, self.width)

    def read(self, first: int, into: NDArray[Any]) -> None:
        """Read as many rows as `into` (rows, width) has, from this one on."""
        view = memoryview(into.data).cast("B")
        place = first * self.width * self.dtype.itemsize
        while len(view):
            count = os.preadv(self._descriptor, [view], place)
            if not count:
                raise AnyRNNError(f"{self.path}: this file of ours was cut off or removed; start again")
            view, place = view[count:], place + count


class FlatFileWriter:
    """A new flat file in the temporary folder for large files: TMPDIR, or /var/tmp, which is seldom kept in memory.

    Files of processes that were killed are removed first: whoever uses one holds a lock on it.

    Args:
        dtype: float32 or float64.
        width: Numbers a row.
    """

    def __init__(self, dtype: Any, width: int) -> None:
        folder = temporary_folder()
        _remove_left_over(folder)
        self._dtype, self._width = np.dtype(dtype), width
        descriptor, name = tempfile.mkstemp(_SUFFIX, _PREFIX, folder)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._file = os.fdopen(descriptor, "wb")
        self.path = Path(name)

    def write(self, rows: NDArray[Any]) -> None:
        """Add rows (n, width)."""
        try:
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        except OSError as error:
            self.discard()
            raise no_room(self.path, error) from error

    def done(self) -> FlatFile:
        """The file, whole. It is removed when this object, or the process, ends."""
        try:
            self._file.flush()
        except OSError as error:
            self.discard()
            raise no_room(self.path, error) from error
        written = FlatFile(self.path, self._dtype, self._width)
        weakref.finalize(written, _remove, self.path, self._file)
        return written

    def discard(self) -> None:
        """Remove it."""
        _remove(self.path, self._file)


def no_room(path: Path, error: OSError) -> AnyRNNError:
    """What a full disk means for a temporary file."""
    return AnyRNNError(
        f"{path}: the steps of the sequences cannot be kept there: {error.strerror or error}; make room, or name a "
        "folder on another disk: TMPDIR=/data/tmp anyrnn ..."
    )


def _remove(path: Path, file: Any) -> None:
    path.unlink(missing_ok=True)
    with suppress(OSError):  # of a full disk, which was said before
        file.close()


def temporary_folder() -> Path:
    """Where large temporary files go."""
    usual = Path("/var/tmp")  # noqa: S108 - files of random names, which nobody else may read
    if "TMPDIR" not in os.environ and os.access(usual, os.W_OK):
        return usual
    return Path(tempfile.gettempdir())


def _remove_left_over(folder: Path) -> None:
    if fcntl is None:
        return
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # somebody else's, or gone, or locked
            if path.stat().st_mtime < time.time() - _YOUNG:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


@dataclass(frozen=True, repr=False, eq=False)
class OnDisk(Sequence[Tensor]):
    """Sequences (T_i, I), as read, whose steps are in a file.

    Attributes:
        file: Holds them.
        starts: The row of the file at which each begins (N,).
        lengths: How many rows each has (N,).
        digests: The `digest` of each (N, 16) uint8.
        missing: How many values are missing, by sequence and feature (N, I); None: none.
        columns: Which numbers of a row are features; None: all.
    """

    file: FlatFile
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    digests: NDArray[np.uint8]
    missing: NDArray[np.int64] | None = None
    columns: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def width(self) -> int:
        """I."""
        return self.file.width if self.columns is None else len(self.columns)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> "OnDisk": ...
    def __getitem__(self, place: int | slice) -> "Tensor | OnDisk":
        """A sequence, or some."""
        if isinstance(place, slice):
            return self.taken(range(len(self))[place])
        rows = np.empty((int(self.lengths[place]), self.file.width), self.file.dtype)
        self.file.read(int(self.starts[place]), rows)
        return torch.from_numpy(self._features(rows)).double()

    def taken(self, places: Iterable[int]) -> "OnDisk":
        """Those at these places."""
        index = np.fromiter(places, np.int64)
        missing = None if self.missing is None else self.missing[index]
        return replace(
            self, starts=self.starts[index], lengths=self.lengths[index], digests=self.digests[index], missing=missing
        )

    def __add__(self, other: "OnDisk") -> "OnDisk":
        """These, and then those of another part of the same file."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("starts", "lengths", "digests"))
        starts, lengths, digests = (np.concatenate(pair) for pair in pairs)
        missing = (
            None if self.missing is None or other.missing is None else np.concatenate((self.missing, other.missing))
        )
        return replace(self, starts=starts, lengths=lengths, digests=digests, missing=missing)

    def with_columns(self, kept: Sequence[int]) -> "OnDisk":
        """With these features only."""
        own = tuple(range(self.file.width)) if self.columns is None else self.columns
        missing = None if self.missing is None else self.missing[:, kept]
        return replace(self, columns=tuple(own[k] for k in kept), missing=missing)

    def side_by_side(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some of them (B, T, I) float64, padded with 0, and their lengths (B,)."""
        lengths = self.lengths[places]
        rows = np.zeros((len(places), int(lengths.max()), self.file.width), self.file.dtype)
        for row, place, length in zip(rows, places, lengths.tolist(), strict=True):
            self.file.read(int(self.starts[place]), row[:length])
        return torch.from_numpy(self._features(rows)).double(), torch.from_numpy(lengths)

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """The number of a sequence, and the steps of it and of those behind it: (sum of T_i, I) float64."""
        first = 0
        ends = np.cumsum(self.lengths)
        while first < len(self):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _PIECE, side="right")))
            yield first, self._rows(slice(first, last))
            first = last

    def _rows(self, places: slice) -> Tensor:
        """The steps of some neighbours, one behind the other; what is so in the file, too, is read at once."""
        lengths, starts = self.lengths[places], self.starts[places]
        rows = np.empty((int(lengths.sum()), self.file.width), self.file.dtype)
        breaks = np.flatnonzero(starts[1:] != starts[:-1] + lengths[:-1]) + 1
        ends = np.cumsum(lengths)
        for a, b in zip([0, *breaks.tolist()], [*breaks.tolist(), len(starts)], strict=True):
            self.file.read(int(starts[a]), rows[int(ends[a] - lengths[a]) : int(ends[b - 1])])
        return torch.from_numpy(self._features(rows)).double()

    def _features(self, rows: NDArray[Any]) -> NDArray[Any]:
        return rows if self.columns is None else rows[..., self.columns]


def digest(x: Tensor) -> bytes:
    """What sequences of the same values, missing ones among them, have in common."""
    values = x.double().nan_to_num(nan=np.pi) + 0.0  # -0.0 is 0.0
    return hashlib.blake2b(values.numpy().tobytes(), digest_size=16).digest()


def digests_of(xs: Steps) -> list[bytes]:
    """The digest of each sequence."""
    return [each.tobytes() for each in xs.digests] if isinstance(xs, OnDisk) else [digest(x) for x in xs]


def lengths_of(xs: Steps) -> NDArray[np.int64]:
    """T of each sequence (N,)."""
    return xs.lengths if isinstance(xs, OnDisk) else np.array([len(x) for x in xs], dtype=np.int64)


def taken(xs: Steps, places: Iterable[int]) -> Steps:
    """The sequences at these places."""
    return xs.taken(places) if isinstance(xs, OnDisk) else tuple(xs[k] for k in places)


def pieces(xs: Steps) -> Iterator[tuple[int, Tensor]]:
    """The number of a sequence, and the steps of it and of those behind it, (sum of T_i, I); again for those behind."""
    if isinstance(xs, OnDisk):
        yield from xs.pieces()
    else:
        yield 0, torch.cat(tuple(xs))


def missing_of(xs: Steps) -> NDArray[np.int64]:
    """How many values of each feature are missing (I,)."""
    if not isinstance(xs, OnDisk):
        return np.asarray(torch.cat(tuple(xs)).isnan().sum(0).numpy(), dtype=np.int64)
    return np.zeros(xs.width, np.int64) if xs.missing is None else xs.missing.sum(0)
