"""What a file really is, before a reader makes its own sense of it: whole, and of the format that its name says."""

import codecs
import csv
import io
from pathlib import Path

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.files import File

_UNPACK = "unpack it first"
# By their first bytes: what it is, and what to do.
_KINDS = {
    b"PAR1": ("Parquet", "rename it to .parquet"),
    b"\x1f\x8b": ("compressed (gzip)", f"{_UNPACK}, or let its name end in .gz"),
    b"BZh": ("compressed (bzip2)", _UNPACK),
    b"\xfd7zXZ": ("compressed (xz)", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed (zstd)", _UNPACK),
    b"PK\x03\x04": ("a zip archive, as an Excel workbook is one", "unpack it, or save the table as CSV in UTF-8"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the table as CSV in UTF-8"),
    b"\xff\xfe": ("text in UTF-16", "say so (encoding='utf-16', --encoding utf-16), or save it in UTF-8"),
    b"\xfe\xff": ("text in UTF-16", "say so (encoding='utf-16', --encoding utf-16), or save it in UTF-8"),
    b"ARROW1": ("an Arrow or Feather file", "write the table as Parquet"),
    b"\x89HDF": ("an HDF5 file", "write the table as Parquet"),
    b"\x93NUMPY": ("a NumPy array", "write a table with a row for each step"),
}

_THE = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def check_kind(start: bytes, path: str, expected: str) -> None:
    """Refuse what the first bytes of a file tell to be something else than `expected`."""
    for magic, (kind, cure) in _KINDS.items():
        if start.startswith(magic) and kind != expected:
            raise AnyRNNError(f"{path}: this is {kind}, expected {expected}: {cure}")


def check_parquet(path: Path) -> None:
    """Refuse what is no Parquet, and a file that was cut off: polars goes by what it says at its end."""
    with path.open("rb") as file:
        start = file.read(16)
        check_kind(start, str(path), "Parquet")
        file.seek(max(0, path.stat().st_size - 8))
        end = file.read()
    footer = int.from_bytes(end[:4], "little")
    if not (start.startswith(b"PAR1") and end.endswith(b"PAR1") and footer + 12 <= path.stat().st_size):
        raise AnyRNNError(
            f"{path}: this cannot be read as Parquet: it does not begin and end as Parquet does; check that the file "
            "is complete"
        )


def check_csv(path: File) -> None:
    """Refuse what is no text in UTF-8, with the first line that is none, and lines that end in CR alone."""
    line_feeds = carriage_returns = 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open() as file:
        check_kind(file.read(16), str(path), "CSV")
        file.seek(0)
        while block := file.read(1 << 20):
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                raise _not_text(path)
            line_feeds += block.count(b"\n")
            carriage_returns += block.count(b"\r")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise _not_text(path) from None
    if carriage_returns and not line_feeds:
        raise AnyRNNError(
            f"{path}: its lines end in a carriage return (CR) alone, as on old Macintoshes; expected LF or CR LF: "
            "save the table as CSV with the line ends of today"
        )


def _not_text(path: File) -> AnyRNNError:
    cure = "save the table as CSV in UTF-8"
    other = f"name its encoding (encoding, --encoding), such as latin-1 or cp1252, or {cure}"
    with path.open() as file:
        for count, line in enumerate(file, start=1):
            try:
                at = line.decode().find("\0")
            except UnicodeDecodeError as error:
                at, cure = error.start, other
            if at >= 0:
                near = line[max(0, at - 12) : at + 4].rstrip(b"\r\n")
                return AnyRNNError(f"{path}: line {count}: this is not text in UTF-8: {near!r}; {cure}")
    return AnyRNNError(f"{path}: this is not text in UTF-8; {other}")


def ragged_row(path: File, *, shorter: bool) -> str | None:
    """The first row of a CSV file with more fields than the header (or fewer, if `shorter`), as a message; or None."""
    csv.field_size_limit(1 << 30)
    width, line, data_row = 0, 1, 0
    with path.open() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True, delimiter=path.separator)
        try:
            for data_row, fields in enumerate(rows):
                width = width or len(fields)
                if len(fields) > width or (shorter and 0 < len(fields) < width):
                    return (
                        f"{path}: data row {data_row} (line {line}) has {len(fields)} fields, expected {width} as in "
                        f"the header; quote a field that has {_THE[path.separator]} in it, or write as many fields as "
                        "there are columns"
                    )
                line = rows.line_num + 1
        except csv.Error as error:
            return f"{path}: line {line}: a quotation mark is not closed, or followed by text ({error}); close it"
    return None


def odd_quotes(path: File) -> str | None:
    """The first line with a quotation mark that stands alone, as a message; or None."""
    with path.open() as file:
        for line, content in enumerate(file, start=1):
            if content.count(b'"') % 2:
                return (
                    f"{path}: line {line}: a quotation mark has no partner there; expected a field in quotation marks, "
                    "or none; write two for one within a quoted field"
                )
    return None


def first_line_hint(names: list[str]) -> str:
    """What may be wrong with the first line of a table of which a wanted column is not there; or nothing."""
    first = names[0] if names else ""
    if first.lower().startswith("sep="):
        return f" The first line is {first!r}, which Excel understands: delete it."
    if first.startswith(("#", "%", "//")):
        return f" The first line starts with {first[:12]!r}: if it is a comment, delete it."
    numbers = sum(name.replace(".", "", 1).lstrip("+-").isdigit() for name in names)
    if numbers * 2 >= len(names):
        return " The first line looks like values, not like names: write a header line above it."
    return ""
