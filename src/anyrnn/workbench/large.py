"""Tables that are larger than memory: read in pieces, scaled, kept on the disk, and served in batches of like length.

`spool` reads a Parquet file a million rows at a time and writes its scaled steps to one flat file, which is mapped into
memory; `Spooled.batches` gathers batches from there, in a thread of its own, while the network learns.
"""

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.files import opened
from anyrnn.workbench.parsed import Missing, did_you_mean, listed
from anyrnn.workbench.sequences import Inputs, Scaler

ROWS = 1 << 20  # read at once: some 100 MB of ten columns
_SAMPLES, _SAMPLE_ROWS = 16, 1 << 16  # what the scaler is fitted on, evenly from the whole file
_AHEAD = 4  # batches that wait for the network
_POOL = 64  # batches that are sorted by length together: little padding, and still shuffled
_MOST_CLASSES = 20  # as in `data.py`

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, repr=False)
class Spooled:
    """Sequences on the disk, scaled.

    Attributes:
        steps: The rows of all sequences, one behind the other (sum of T_i, width) float32, mapped into memory.
        ends: Where each sequence ends (N,).
        y: The class of each (N,) int64, or its number, float64.
        ids: Their names.
        classes: The names of the classes; None if `y` holds numbers.
        features: The names of the features.
        scaler: What scaled them; fitted on a sample of the rows, and needed for new sequences.
    """

    steps: NDArray[np.float32]
    ends: NDArray[np.int64]
    y: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...] | None
    features: tuple[str, ...]
    scaler: Scaler

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        """How many there are."""
        return f"Spooled: {len(self):,} sequences of {self.lengths.min()} to {self.lengths.max()} steps on the disk"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """T of each sequence (N,)."""
        return np.diff(self.ends, prepend=0)

    def batch(self, places: NDArray[np.int64]) -> Batch:
        """Sequences side by side: x (T, B, width) padded with 0, lengths (B,), y (B,)."""
        lengths = self.lengths_of(places)
        starts, longest = self.ends[places] - lengths, int(lengths.max())
        rows = starts + np.minimum(np.arange(longest)[:, np.newaxis], lengths - 1)  # (T, B)
        x = torch.from_numpy(self.steps[rows.ravel()]).view(longest, len(places), -1)
        if lengths.min() < longest:
            x[torch.from_numpy(np.arange(longest)[:, np.newaxis] >= lengths)] = 0.0
        return x, torch.from_numpy(lengths), self.y[places]

    def lengths_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """T of some sequences."""
        before = np.where(places > 0, self.ends[places - 1], 0)
        return self.ends[places] - before

    def batches(
        self, size: int, *, places: Sequence[int] | NDArray[np.int64] | None = None, seed: int | None = 0
    ) -> Iterator[Batch]:
        """All sequences once, in batches of like length; the next ones are gathered while one is used.

        Args:
            size: Sequences a batch.
            places: Which sequences; None: all.
            seed: Of the shuffling, another one for each epoch; None: in order of their length.
        """
        chosen = np.arange(len(self)) if places is None else np.asarray(places, dtype=np.int64)
        waiting: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
        ended = threading.Event()

        def put(item: Batch | BaseException | None) -> bool:
            while not ended.is_set():
                with suppress(queue.Full):
                    waiting.put(item, timeout=0.1)
                    return True
            return False

        def gather() -> None:
            try:
                for each in self._order(chosen, size, seed):
                    if not put(self.batch(each)):
                        return
                put(None)
            except BaseException as error:  # noqa: BLE001 - raised again where the batches are used
                put(error)

        thread = threading.Thread(target=gather, daemon=True)
        thread.start()
        try:
            while (item := waiting.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()
            thread.join()

    def _order(self, places: NDArray[np.int64], size: int, seed: int | None) -> Iterator[NDArray[np.int64]]:
        """Batches of places: shuffled, sorted by length within pools, and the batches of a pool shuffled again."""
        if size < 1:
            raise AnyRNNError(f"batches: got size={size}, expected at least 1")
        draw = None if seed is None else np.random.default_rng(seed)
        shuffled = places if draw is None else draw.permutation(places)
        pool = len(places) if draw is None else size * _POOL
        for start in range(0, len(places), max(pool, 1)):
            part = shuffled[start : start + pool]
            part = part[np.argsort(self.lengths_of(part), kind="stable")]
            firsts = np.arange(0, len(part), size)
            for first in firsts if draw is None else draw.permutation(firsts):
                yield part[first : first + size]


def spool(
    path: str | Path,
    folder: str | Path,
    *,
    id_column: str,
    target_column: str,
    feature_columns: Sequence[str] | None = None,
    missing: str | float | Sequence[str | float] | None = None,
    rows: int = ROWS,
) -> Spooled:
    """Read a Parquet table in pieces, and write its scaled steps to `folder`, as one flat file.

    The rows of a sequence stand together and in order in the file, as in one that was sorted by id and time; features
    are numbers. The scaler is fitted on a million rows from all over the file.

    Args:
        path: A .parquet file with a row for each step of each sequence.
        folder: Where the flat file goes: four bytes a number. It has to stay there while the result is used.
        id_column: The column that says to which sequence a row belongs.
        target_column: The class (text, true/false, few whole numbers) or the number of a sequence, in each of its rows.
        feature_columns: The columns to learn from; None: all others.
        missing: What stands for a missing value, as for `load`.
        rows: Read at once.

    Raises:
        AnyRNNError: if the file cannot be used as it is.
    """
    file = opened(Path(path))
    if file.format != ".parquet":
        raise AnyRNNError(f"{file}: this is no Parquet file, which can be read in pieces; write the table as Parquet")
    scan = pl.scan_parquet(file.path, glob=False, hive_partitioning=False)
    schema = scan.collect_schema()
    features = tuple(feature_columns or (name for name in schema.names() if name not in {id_column, target_column}))
    for name in (id_column, target_column, *features):
        if name not in schema:
            raise AnyRNNError(
                f"{file}: column {name!r} is not there; the columns are {listed(schema.names())}."
                f"{did_you_mean(name, schema.names())}"
            )
        if name in features and not (schema[name].is_numeric() or schema[name] == pl.Boolean):
            raise AnyRNNError(f"{file}: feature {name!r} holds {schema[name]}, expected numbers; name the features")
    total = scan.select(pl.len()).collect().item()
    if not total:
        raise AnyRNNError(f"{file}: there is no row, expected one for each step of each sequence")
    table = _Table(str(file), scan, id_column, target_column, features, Missing.named(missing), total)
    scaler = table.scaler()
    target = Path(folder) / "steps.npy"
    steps = np.lib.format.open_memmap(target, "w+", np.float32, (total, scaler.width))
    ids: list[str] = []
    ends: list[int] = []
    targets: list[pl.Series] = []
    for start, piece in table.pieces(rows):
        names, lengths = table.sequences(piece)
        last = np.cumsum(lengths)
        steps[start : start + len(piece)] = _scaled(scaler, table.values(piece), last)
        ids += names
        ends += (start + last).tolist()
        targets.append(table.targets(piece, last - lengths, lengths))
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise AnyRNNError(
            f"{file}: the rows of id {twice!r} do not stand together; sort the file by id and time, and write it again"
        )
    steps.flush()
    y, classes = _encoded(str(file), pl.concat(targets))
    mapped = np.load(target, mmap_mode="c")  # pages that nobody writes to can be dropped and read again
    return Spooled(mapped, np.array(ends, dtype=np.int64), y, tuple(ids), classes, features, scaler)


@dataclass(frozen=True)
class _Table:
    """A file that is read in pieces, and what is what in it."""

    path: str
    scan: pl.LazyFrame
    id: str
    target: str
    features: tuple[str, ...]
    missing: Missing | None
    rows: int

    def pieces(self, size: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """Whole sequences, at most `size` rows of them unless one alone is longer; and the row that they start at."""
        start = 0
        while start < self.rows:
            piece = self.scan.slice(start, size).select(self.id, self.target, *self.features).collect()
            if start + len(piece) < self.rows:
                last = piece[self.id].rle().struct.field("len")[-1]
                if last == len(piece):
                    size *= 2
                    continue
                piece = piece.head(len(piece) - last)
            yield start, piece
            start += len(piece)

    def scaler(self) -> Scaler:
        """Fitted on rows from all over the file."""
        parts = min(_SAMPLES, 1 + self.rows // _SAMPLE_ROWS)
        starts = np.linspace(0, max(0, self.rows - _SAMPLE_ROWS), parts).astype(int).tolist()
        sample = [self.scan.slice(start, _SAMPLE_ROWS).select(self.features).collect() for start in starts]
        values = torch.from_numpy(self.values(pl.concat(sample)))
        return Scaler.fit(Inputs((values,), None, ("",)), None if self.missing is None else self.missing.texts)

    def sequences(self, piece: pl.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
        """The names and lengths of the sequences of a piece."""
        if piece[self.id].has_nulls():
            raise AnyRNNError(f"{self.path}: an id is missing; every row needs the id of its sequence")
        runs = piece[self.id].rle()
        return runs.struct.field("value").cast(pl.String).to_list(), runs.struct.field("len").to_numpy().astype(
            np.int64
        )

    def values(self, piece: pl.DataFrame) -> NDArray[np.float64]:
        """The features (rows, I), NaN where one is missing and may be."""
        values = piece.select(pl.col(self.features).cast(pl.Float64).fill_null(float("nan"))).to_numpy()
        if self.missing is not None:
            values = np.where(self.missing.mask(values), np.nan, values)
        wrong = np.isinf(values) if self.missing is not None else ~np.isfinite(values)
        if wrong.any():
            row, k = np.argwhere(wrong)[0].tolist()
            where = f" of id {piece[self.id][row]!r}" if self.id in piece.columns else ""
            raise AnyRNNError(
                f"{self.path}: feature {self.features[k]!r}{where} is {values[row, k]}, expected a finite number; "
                "fill it in, leave the feature out, or say what is missing (missing='nan' for empty cells)"
            )
        return np.asarray(values, dtype=np.float64)

    def targets(self, piece: pl.DataFrame, firsts: NDArray[np.int64], lengths: NDArray[np.int64]) -> pl.Series:
        """The target of each sequence of a piece."""
        column = piece[self.target]
        first = column.gather(firsts)
        of_rows = first.gather(np.repeat(np.arange(len(first)), lengths))
        wrong = (column.ne_missing(of_rows) | column.is_null()).arg_true()
        if len(wrong):
            raise AnyRNNError(
                f"{self.path}: target {self.target!r} of id {piece[self.id][wrong[0]]!r} is missing or not the same in "
                "all of its rows; a sequence has one target, repeated on each of its rows"
            )
        return first


def _scaled(scaler: Scaler, values: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float32]:
    """The rows of whole sequences, scaled; one by one where a value is missing, since that before it is looked for."""
    x = torch.from_numpy(values)
    if not x.isnan().any():
        return scaler(x).numpy()
    return torch.cat([scaler(each) for each in x.tensor_split(torch.from_numpy(ends[:-1]))]).numpy()


def _encoded(path: str, targets: pl.Series) -> tuple[Tensor, tuple[str, ...] | None]:
    """Classes by number, or numbers."""
    few = targets.dtype.is_integer() and targets.n_unique() <= _MOST_CLASSES
    if not few and targets.dtype.is_numeric():
        y = torch.from_numpy(targets.cast(pl.Float64).to_numpy().copy())
        if not y.isfinite().all():
            raise AnyRNNError(f"{path}: a target is NaN or infinite, expected finite numbers")
        return y, None
    found = targets.unique().sort()
    text = targets.cast(pl.String)
    names = tuple(found.cast(pl.String).to_list())
    codes = text.replace_strict(dict(zip(names, range(len(names)), strict=True)), return_dtype=pl.Int64)
    return torch.from_numpy(codes.to_numpy().copy()), names
