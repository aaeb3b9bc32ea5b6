"""Files as people have them: found, unpacked, decoded, and with the separator of their columns."""

import csv
import gzip
import io
import os
import zlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.names import did_you_mean

JAPANESE_VOWELS = "japanese-vowels"
_TEXTS = (".ts", ".csv", ".tsv")
_FORMATS = (*_TEXTS, ".parquet")
_EXPECTED = f"expected a .ts, .csv, .tsv or .parquet file, or {JAPANESE_VOWELS!r}"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class File:
    """A file to read. In a message it is its path.

    Attributes:
        path: Where it is.
        content: What it holds, in UTF-8, if that is not what is on the disk.
        separator: Of the columns of a table in text.
    """

    path: Path
    content: bytes | None = None
    separator: str = ","

    def __str__(self) -> str:
        return str(self.path)

    @property
    def format(self) -> str:
        """The suffix that says what it is, such as ".csv"."""
        return format_of(self.path)

    def open(self) -> IO[bytes]:
        """Its bytes; of a text in UTF-8."""
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)

    @property
    def source(self) -> Path | bytes:
        """What polars is to read."""
        return self.path if self.content is None else self.content

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for granted."""
        if self.format not in {".csv", ".tsv"} or self.separator == _usual(self):
            return ()
        return (f"the columns are separated by {_SEPARATORS[self.separator]}",)


def format_of(path: str | os.PathLike[str]) -> str:
    """The suffix that says what a file is, in lower case: that of x.csv.gz is ".csv"."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def stem_of(path: str | os.PathLike[str]) -> str:
    """The name of a file without the suffixes that say what it is."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).stem


def opened(path: Path, encoding: str | None = None) -> File:
    """Find a file, unpack it if it is compressed, and decode it if it is not in UTF-8.

    Args:
        path: Where it is.
        encoding: The name of that of the text; None: UTF-8.

    Raises:
        AnyRNNError: if it is not there, or is not what it seems.
    """
    path = existing(path)
    packed = path.suffix.lower() == ".gz"
    if format_of(path) not in _TEXTS:
        if packed or encoding is not None:
            raise AnyRNNError(f"{path}: Parquet is compressed within and has no encoding to name; leave both out")
        return File(path)
    content = None
    if packed:
        try:
            content = gzip.decompress(path.read_bytes())
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise AnyRNNError(
                f"{path}: this cannot be unpacked: {error}; expected a file that gzip has written, complete"
            ) from error
    if encoding is not None:
        content = decoded(path, path.read_bytes() if content is None else content, encoding)
    return File(path, content)


def decoded(path: Path, content: bytes, encoding: str) -> bytes:
    """The bytes of a text in another encoding, in UTF-8.

    Raises:
        AnyRNNError: if they are none, or there is no such encoding.
    """
    try:
        return content.decode(encoding).encode()
    except UnicodeError as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise AnyRNNError(
            f"{path}: this is not text in {encoding}{where}; name another encoding (encoding, --encoding)"
        ) from error
    except (LookupError, ValueError):
        raise AnyRNNError(
            f"encoding: got {encoding!r}, which is not known; expected a name such as latin-1, cp1252 or utf-16"
        ) from None


def existing(path: Path) -> Path:
    """A path of a file that can be read; a user's home in it is found."""
    if not path.exists() and path.parts[:1] and path.parts[0].startswith("~"):
        with suppress(RuntimeError):  # nobody's home
            path = path.expanduser()
    if path.is_dir():
        inside = sorted(path.glob("*_TRAIN.ts"))
        cure = f" Did you mean '{inside[0]}'?" if inside else ""
        raise AnyRNNError(f"{path}: this is a folder; {_EXPECTED}.{cure}")
    if not path.exists():
        folder = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [file.name for file in folder if format_of(file) in _FORMATS]
        raise AnyRNNError(
            f"{path}: there is no such file; {_EXPECTED}.{did_you_mean(path.name, [*names, JAPANESE_VOWELS])}"
        )
    if format_of(path) not in _FORMATS:
        raise AnyRNNError(f"{path}: its name ends in {path.suffix or path.name!r}; {_EXPECTED}")
    if not path.stat().st_size:
        raise AnyRNNError(f"{path}: the file is empty; {_EXPECTED}")
    return path


def separated(file: File, wanted: Collection[str]) -> File:
    """The file with the separator by which its first line has all the wanted columns; of several, the usual one.

    If there is none, it is the one that makes the most columns where the usual one makes a single one.
    """
    if file.format not in {".csv", ".tsv"}:
        return file
    with file.open() as opened_file:
        first = opened_file.readline(1 << 20).decode("utf-8-sig", errors="replace")
    usual = _usual(file)
    names: dict[str, list[str]] = {}
    for separator in (usual, *_SEPARATORS):
        with suppress(csv.Error):
            names[separator] = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    for separator, found in names.items():
        if wanted and set(wanted) <= set(found):
            return replace(file, separator=separator)
    most = max(names, key=lambda each: len(names[each]), default=usual)
    return replace(file, separator=most if len(names.get(usual, "")) == 1 else usual)


def _usual(file: File) -> str:
    return "\t" if file.format == ".tsv" else ","
