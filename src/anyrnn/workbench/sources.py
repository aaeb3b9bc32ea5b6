"""Where data come from: the shipped ones, a file of any format, a frame; and the test part that comes with them."""

import dataclasses
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.columns import Columns
from anyrnn.workbench.files import JAPANESE_VOWELS, format_of, opened
from anyrnn.workbench.frames import Frame, frame_from
from anyrnn.workbench.ondisk import Steps
from anyrnn.workbench.parsed import Missing, Parsed
from anyrnn.workbench.reading import Reading, columns_kept, quoted
from anyrnn.workbench.streamed import Stream, read_in_pieces, streamed
from anyrnn.workbench.table import read_table
from anyrnn.workbench.ts import parse_ts

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame

Source: TypeAlias = "str | os.PathLike[str] | IntoDataFrame"  # in quotes, since narwhals is loaded for frames only


def source_of(source: Source, columns: Columns) -> str | Frame:
    """The path of a file, or a frame; what these columns name may stand in its index.

    Raises:
        AnyRNNError: if it is neither.
    """
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    frame = frame_from(source, (columns.id, columns.time, columns.target, columns.group))
    if frame is None:
        raise AnyRNNError(
            f"load: got {type(source).__name__}, expected the path of a .ts, .csv, .tsv or .parquet file, "
            f"{JAPANESE_VOWELS!r}, or a data frame with a row for each step; arrays are for from_arrays"
        )
    return frame


def is_ts(source: str | Frame) -> bool:
    """Whether it is a .ts file, which has no columns to name."""
    return isinstance(source, str) and format_of(source) == ".ts"


def parsed_source(
    source: str | Frame,
    columns: Columns,
    *,
    part: str = "TRAIN",
    need_target: bool = True,
    owner: str = "",
    missing: Missing | None = None,
    encoding: str | None = None,
    stream: Stream = "auto",
) -> Parsed:
    """Read one file, whichever format it has; `owner` says whose features it must have, if not its own."""
    if stream == "always" and (isinstance(source, Frame) or is_ts(source) or source == JAPANESE_VOWELS):
        raise AnyRNNError(f"{source}: only Parquet can be read in pieces (stream, --stream)")
    if encoding is not None and (isinstance(source, Frame) or source == JAPANESE_VOWELS):
        raise AnyRNNError(f"{source}: this has no encoding to name; leave out encoding (--encoding)")
    if isinstance(source, Frame):
        return read_table(source, columns, need_target=need_target, owner=owner, missing=missing)
    if source == JAPANESE_VOWELS:
        name = f"JapaneseVowels_{part}.ts"
        content = (files("anyrnn.workbench") / "datasets" / name).read_bytes()
        parsed = parse_ts(content, name, delta_time=columns.delta_time)
        features = tuple(f"LPC cepstrum {i + 1}" for i in range(len(parsed.features)))
        return dataclasses.replace(parsed, features=features, target="speaker", reading=Reading(features))
    try:
        file = opened(Path(source), encoding)
        if file.format == ".ts":
            with file.open() as bytes_:
                return parse_ts(bytes_.read(), str(file), missing, delta_time=columns.delta_time)
        read = streamed if read_in_pieces(file, stream) else read_table
        return read(file, columns, need_target=need_target, owner=owner, missing=missing)
    except OSError as error:
        raise AnyRNNError(f"{source}: this cannot be read: {error.strerror or error}") from error


class _Part(Protocol):
    """Sequences of numbers, with a target each or one in each step."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def x(self) -> Steps:
        """(T, I) each."""


Part = TypeVar("Part", bound=_Part)


def with_words_of(
    train: Part, own: Parsed, given: Parsed | None, validation: Part | None, test: Part
) -> tuple[Parsed, Parsed | None, Part, Part | None, Part]:
    """All parts without the words that the training part has not; they are unknown, as others are later on."""
    if own.reading is None:
        return own, given, train, validation, test
    reading, gone = own.reading.trained_on(train.x)
    if not gone:
        return own, given, train, validation, test
    kept = [k for k, name in enumerate(own.features) if name not in gone]
    note = (
        f"no sequence of the training part has {quoted(gone)}: where others have it, all features of that column are 0"
    )

    def narrow(part: Part) -> Part:
        return dataclasses.replace(part, x=columns_kept(part.x, kept))

    def file(parsed: Parsed, *notes: str) -> Parsed:
        x = columns_kept(parsed.x, kept)
        notes = (*parsed.notes, *notes)
        return dataclasses.replace(parsed, x=x, features=reading.features, reading=reading, notes=notes)

    return (
        file(own, note),
        None if given is None else file(given),
        narrow(train),
        None if validation is None else narrow(validation),
        narrow(test),
    )


def test_beside(path: str) -> Path | None:
    """X_TEST.ts beside X_TRAIN.ts; None if there is none."""
    name = re.fullmatch(r"(.*_)(?:(TRAIN)|(Train)|train)(\.ts(?:\.gz)?)", Path(path).name)
    if name is None:
        return None
    word = "TEST" if name[2] else "Test" if name[3] else "test"
    beside = Path(path).with_name(f"{name[1]}{word}{name[4]}")
    return beside if beside.exists() else None


def given_test_of(
    source: str | Frame,
    test: str | Frame | None,
    own: Parsed,
    columns: Columns,
    missing: Missing | None,
    encoding: str | None = None,
    stream: Stream = "auto",
) -> tuple[Parsed | None, str]:
    """The test part that is not ours to choose, if there is one, and the sentence about it."""
    if test is None and source == JAPANESE_VOWELS:
        return parsed_source(source, columns, part="TEST"), (
            "the data set's own: the same nine speakers, recorded for the test part on other occasions"
        )
    split = f"the test part is {test}, as asked for"
    if test is None:
        beside = None if isinstance(source, Frame) else test_beside(own.path)
        if beside is None:
            return None, ""
        test, split = str(beside), f"the test part is {beside.name}, which lies beside the training file"
    if is_ts(test) != is_ts(own.path):
        raise AnyRNNError(f"{test}: expected a test file of the same format as {own.path}")
    features = own.features if own.reading is None else own.reading.columns
    wanted = dataclasses.replace(columns, features=features, reading=own.reading)
    given = parsed_source(test, wanted, part="TEST", owner=own.path, missing=missing, encoding=encoding, stream=stream)
    if len(given.features) != len(own.features):
        raise AnyRNNError(
            f"{given.path}: got {len(given.features)} channels, expected {len(own.features)} as in {own.path}"
        )
    return given, split
