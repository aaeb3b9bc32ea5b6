"""Parquet tables that would not fit into memory: read a million rows at a time, their steps kept in a flat file.

What comes out is a `Parsed` as `table.py` makes it, of the same sequences in the same order; only its `x` is `OnDisk`.
Each piece holds whole sequences and is read by `table.py`. Where the rows of a sequence do not stand together, they are
first brought together on the disk: rows go to one of several files by their id.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.columns import BLANKS, FAILURES, ROW, Columns, Roles, column_names, roles_of, unreadable
from anyrnn.workbench.files import File, separated
from anyrnn.workbench.memory import memory
from anyrnn.workbench.ondisk import FlatFileWriter, OnDisk, digest, no_room, temporary_folder
from anyrnn.workbench.parsed import Missing, Parsed, Value
from anyrnn.workbench.reading import Reading, note_on_words, words_of
from anyrnn.workbench.table import Table, arranged, text_of, unsorted

Stream = Literal["auto", "always", "never"]

ROWS = 1 << 20  # of a piece: some 100 MB of ten columns
# What a table takes while it is read (measured: 28 bytes a number, 2.8 a byte of CSV), and learned from.
_BYTES = 40  # a number
_BYTES_OF_TEXT = 4  # a byte of CSV
_BUCKET = "\0bucket"  # a column of ours
_MOST_BUCKETS = 256  # each piece of the file writes to all of them
_SHARE = 0.5  # of the memory, which a table may take
_EXACT_IN_FLOAT32 = (pl.Float32, pl.Int8, pl.UInt8, pl.Int16, pl.UInt16, pl.Boolean, pl.Null)


def read_in_pieces(file: File, stream: Stream) -> bool:
    """Whether a table is to be read in pieces: if it is asked for, or if it would take more than half of the memory.

    Raises:
        AnyRNNError: if it would, and cannot be read in pieces since it is text.
    """
    if file.format != ".parquet":
        size = file.path.stat().st_size if file.content is None else len(file.content)
        cure = f"make Parquet of it, which is read in pieces: {_conversion(separated(file, ()))}"
        if stream == "always":
            raise AnyRNNError(f"{file}: only Parquet can be read in pieces (stream, --stream); {cure}")
        if stream == "auto" and size * _BYTES_OF_TEXT > memory():
            raise AnyRNNError(
                f"{file}: {_gigabytes(size)} of text would not fit into the memory of {_gigabytes(memory())}; {cure}; "
                "stream='never' (--stream never) reads it all the same"
            )
        return False
    if stream != "auto":
        return stream == "always"
    return _needed(file) > _SHARE * memory()


def _needed(file: File) -> int:
    """The bytes that a table takes while it is read at once, about."""
    names = column_names(file)  # refuses what is no Parquet file
    try:
        return int(_scan(file).select(pl.len()).collect().item()) * len(names) * _BYTES
    except FAILURES as error:
        raise unreadable(file, error) from error


def _conversion(file: File) -> str:
    target = file.path.with_name(file.path.name.split(".")[0] + ".parquet")
    option = "" if file.separator == "," else f", separator={file.separator!r}"
    return f"""python -c "import polars; polars.scan_csv('{file.path}'{option}).sink_parquet('{target}')\""""


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _scan(file: File) -> pl.LazyFrame:
    return pl.scan_parquet(file.path, glob=False, hive_partitioning=False)


def streamed(
    file: File,
    columns: Columns,
    *,
    need_target: bool = True,
    owner: str = "",
    missing: Missing | None = None,
) -> Parsed:
    """Read a Parquet file in pieces: see `anyrnn.workbench.table.read_table` for the arguments.

    Args:
        file: The file.
        columns: Which column is what.
        need_target: Whether it has to have a target.
        owner: Whose features these are.
        missing: What stands for a missing value.
    """
    roles = roles_of(file, column_names(file), columns, need_target=need_target, owner=owner)
    source = _Source(file, roles, missing)
    try:
        reading, notes = (columns.reading, ()) if columns.reading is not None else source.words()
        found, more = _all(source, replace(columns, reading=reading), trained=not need_target)
    except FAILURES as error:
        raise unreadable(file, error) from error
    size = found.x.file.path.stat().st_size
    notes = (
        "the table is read in pieces (stream, --stream), with the same results: its steps are in "
        f"{found.x.file.path.parent} while this runs, {_gigabytes(size)}",
        *(() if roles.time else (unsorted(columns),)),
        *notes,
        *more,
        *found.notes,
    )
    return Parsed(
        path=str(file),
        features=found.features,
        x=found.x,
        ids=found.ids,
        where=_Places(str(file), found.ids),
        target=roles.target or "target",
        targets=found.targets,
        task=None,
        notes=notes,
        groups=found.groups,
        reading=found.reading,
    )


def _all(source: "_Source", columns: Columns, *, trained: bool) -> tuple["_Collected", tuple[str, ...]]:
    """Read all pieces; and say if they had to be brought together first."""
    try:
        return _collected(source, columns, source.in_order(ROWS), trained=trained), ()
    except _Scattered:
        note = "the rows of a sequence do not stand together in the file: they were brought together on disk"
    with ExitStack() as stack:
        return _collected(source, columns, source.by_buckets(ROWS, stack), trained=trained), (note,)


class _Scattered(Exception):  # noqa: N818 - a finding
    """An id was met again behind those of other sequences."""


@dataclass(frozen=True)
class _Places(Sequence[str]):
    """Where each sequence is, for messages."""

    path: str
    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: Any) -> Any:
        return f"{self.path}: id {self.ids[place]!r}"


@dataclass(frozen=True)
class _Source:
    """A file, and what is what in it."""

    file: File
    roles: Roles
    missing: Missing | None

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        roles = self.roles
        several = (roles.id, roles.time, roles.target, roles.group, *roles.features)
        return [name for name in dict.fromkeys(several) if name is not None]

    def words(self) -> tuple[Reading, tuple[str, ...]]:
        """What becomes of the columns, from the words of the whole file; and notes about them."""
        scan = _scan(self.file)
        schema = scan.collect_schema()
        words: dict[str, tuple[str, ...]] = {}
        for name in self.roles.features:
            if schema[name] in (pl.String, pl.Categorical, pl.Enum):
                different = scan.select(pl.col(name).cast(pl.String).unique()).collect()[name]
                found = words_of(text_of(different, self.missing), f"{self.file}: feature {name!r}")
                if found is not None:
                    words[name] = found
        return Reading(self.roles.features, words), tuple(note_on_words(*each) for each in words.items())

    def dtype(self, reading: Reading) -> Any:
        """float32 if it holds all features exactly."""
        schema = _scan(self.file).collect_schema()
        numbers = (schema[name] in _EXACT_IN_FLOAT32 for name in self.roles.features if name not in reading.words)
        return np.float32 if all(numbers) and not reading.delta_time else np.float64

    def in_order(self, size: int) -> Iterator[pl.DataFrame]:
        """Whole sequences, some `size` rows of them, of a file in which their rows stand together."""
        scan = _scan(self.file).select(self.names)
        total, start = int(scan.select(pl.len()).collect().item()), 0
        if not total:
            raise AnyRNNError(
                f"{self.file}: there is no row below the header, expected one for each step of each sequence"
            )
        while start < total:
            piece = scan.slice(start, size).collect()
            if start + len(piece) < total:
                last = piece[self.roles.id].rle().struct.field("len")[-1]
                if last == len(piece):
                    size *= 2
                    continue
                piece = piece.head(len(piece) - last)
            yield piece.with_columns(pl.int_range(start + 1, start + len(piece) + 1).alias(ROW))
            start += len(piece)

    def by_buckets(self, size: int, stack: ExitStack) -> Iterator[pl.DataFrame]:
        """Whole sequences of a file in any order; the rows lie in files meanwhile, which go with the stack."""
        scan = _scan(self.file).select(self.names)
        total = int(scan.select(pl.len()).collect().item())
        count = min(-(-total // size), _MOST_BUCKETS)
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anyrnn-", dir=temporary_folder())))
            bucket = pl.col(self.roles.id).cast(pl.String).str.strip_chars(BLANKS).hash() % count
            for start in range(0, total, size):
                piece = scan.slice(start, size).collect()
                piece = piece.with_columns(pl.int_range(start + 1, start + len(piece) + 1).alias(ROW))
                sorted_out = piece.with_columns(bucket.alias(_BUCKET)).partition_by(
                    _BUCKET, include_key=False, as_dict=True
                )
                for (number,), part in sorted_out.items():
                    inside = folder / f"{number}"
                    inside.mkdir(exist_ok=True)
                    part.write_parquet(inside / f"{start:012}.parquet")
        except OSError as error:
            raise no_room(temporary_folder(), error) from error
        for inside in sorted(folder.iterdir()):
            yield pl.concat([pl.read_parquet(part, glob=False) for part in sorted(inside.iterdir())])


@dataclass
class _Found:
    """What was read so far."""

    ids: list[str] = field(default_factory=list)
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    firsts: list[NDArray[np.int64]] = field(default_factory=list)  # the first row of the file of each sequence
    digests: list[bytes] = field(default_factory=list)
    missing: list[NDArray[np.int64]] = field(default_factory=list)
    targets: list[Value] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    heads: list[pl.DataFrame] = field(default_factory=list)  # the first row of each sequence
    notes: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def note(self, notes: Sequence[str]) -> None:
        """Keep the first note of each kind: those of other pieces differ in names and numbers only."""
        for note in notes:
            kind = re.sub(r"'[^']*'|\d+", "", note)
            self.kinds[kind] += 1
            if self.kinds[kind] == 1:
                self.notes.append(note)
            elif self.kinds[kind] == 2:
                self.notes.append(f"likewise in other pieces of the file: {note}")


@dataclass(frozen=True)
class _Collected:
    """All sequences of a file, in the order of their first rows."""

    x: OnDisk
    ids: tuple[str, ...]
    targets: tuple[Value, ...] | None
    groups: tuple[str, ...] | None
    features: tuple[str, ...]
    reading: Reading
    notes: tuple[str, ...]


def _collected(source: _Source, columns: Columns, pieces: Iterator[pl.DataFrame], *, trained: bool) -> _Collected:
    """Write the steps of all pieces, and keep the rest in memory."""
    reading = replace(columns.reading or Reading(source.roles.features), delta_time=columns.delta_time)
    writer = FlatFileWriter(source.dtype(reading), len(reading.features))
    try:
        found = _read(source, columns, pieces, writer, trained=trained)
    except BaseException:
        writer.discard()
        raise
    firsts, lengths = np.concatenate(found.firsts), np.concatenate(found.lengths)
    order = np.argsort(firsts, kind="stable")
    missing = np.concatenate(found.missing)
    whole = OnDisk(
        writer.done(),
        np.cumsum(lengths) - lengths,
        lengths,
        np.frombuffer(b"".join(found.digests), np.uint8).reshape(-1, 16),
        missing if missing.any() else None,
    )
    return _Collected(
        whole.taken(order.tolist()),
        tuple(found.ids[k] for k in order),
        _targets(source, found, order, trained=trained) if source.roles.target else None,
        tuple(found.groups[k] for k in order) if source.roles.group else None,
        reading.features,
        reading,
        tuple(found.notes),
    )


def _read(
    source: _Source, columns: Columns, pieces: Iterator[pl.DataFrame], writer: FlatFileWriter, *, trained: bool
) -> _Found:
    roles, found, known = source.roles, _Found(), set[str]()
    for piece in pieces:
        frame = piece.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))  # blank lines
        if frame.is_empty():
            continue
        table = Table(source.file, roles, frame, source.missing, trained=trained)
        part = arranged(table, columns)
        if not known.isdisjoint(part.ids):
            raise _Scattered
        known.update(part.ids)
        ends = part.ends.astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        starts = ends - lengths
        rows = frame[ROW].to_numpy()[part.rows]
        found.ids += part.ids
        found.lengths.append(lengths)
        found.firsts.append(np.minimum.reduceat(rows, starts))
        found.digests += [digest(torch.from_numpy(x)) for x in np.split(part.matrix, ends[:-1])]
        found.missing.append(np.add.reduceat(np.isnan(part.matrix), starts, dtype=np.int64))
        if roles.target:
            found.targets += table.targets(part.first_rows)
            found.heads.append(frame[part.first_rows].select(roles.id, roles.target, ROW))
        if roles.group:
            found.groups += table.groups(part.first_rows)
        found.note(table.notes)
        writer.write(part.matrix)
    if not found.ids:
        raise AnyRNNError(
            f"{source.file}: there is no row below the header, expected one for each step of each sequence"
        )
    return found


def _targets(source: _Source, found: _Found, order: NDArray[Any], *, trained: bool) -> tuple[Value, ...]:
    """The target of each sequence: what its texts mean, all of them tell together."""
    roles = replace(source.roles, time=None, features=(), group=None)
    heads = Table(source.file, roles, pl.concat(found.heads), source.missing, trained=trained)
    values = heads.targets(list(range(len(heads.ids))))
    return tuple(None if found.targets[k] is None else values[k] for k in order)
