"""The columns and rows of a table in a file (CSV, Parquet): which column is what, and the rows as polars reads them."""

import re
from dataclasses import dataclass

import polars as pl

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.files import File
from anyrnn.workbench.frames import Frame
from anyrnn.workbench.names import did_you_mean, listed
from anyrnn.workbench.reading import Reading
from anyrnn.workbench.text import check_csv, check_parquet, first_line_hint, odd_quotes, ragged_row

ROW = "\0row"  # our own column beside the file's: no text file can hold this name
# What polars takes off by default, and marks that no eye can see.
BLANKS = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\u200b\u2060\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)
FAILURES = (pl.exceptions.PolarsError, pl.exceptions.PanicException)  # a panic of Rust code is no Exception
_NAMELESS = {"", "Unnamed: 0", "__index_level_0__"}  # how pandas writes its row numbers


@dataclass(frozen=True)
class Columns:
    """What the caller says about the columns; None: not said. Without features, all columns left over are.

    `usual_time` is that of another file: it is the time if it is there and no time was named. `group` names what
    several sequences may share (an engine, a patient, a site). `per_step`: each row has its own target. `reading` is
    that of the training; without it, text is read as the words that the file has. With `delta_time` the time since the
    step before is a feature.
    """

    id: str | None = None
    time: str | None = None
    target: str | None = None
    features: tuple[str, ...] | None = None
    usual_time: str | None = None
    group: str | None = None
    per_step: bool = False
    reading: Reading | None = None
    delta_time: bool = False


@dataclass(frozen=True)
class Roles:
    """Which column is what."""

    id: str
    time: str | None
    target: str | None
    features: tuple[str, ...]
    group: str | None


def column_names(path: File) -> list[str]:
    """The names of the columns of a file, without blanks around them."""
    try:
        if path.format == ".parquet":
            check_parquet(path.path)
            return pl.scan_parquet(path.path, glob=False, hive_partitioning=False).collect_schema().names()
        check_csv(path)
        names = pl.read_csv(path.source, n_rows=0, glob=False, separator=path.separator).columns
    except FAILURES as error:
        raise unreadable(path, error) from error
    for name in names:  # polars renames the second 'a' to 'a_duplicated_0'
        twin = re.fullmatch(r"(.*)_duplicated_\d+", name)
        if twin and twin[1] in names:
            raise AnyRNNError(
                f"{path}: the header names column {twin[1]!r} twice; give each column its own name."
                f"{first_line_hint(names)}"
            )
    return _without_blanks(names)


def unreadable(path: File, error: BaseException) -> AnyRNNError:
    """What polars could not do with a file."""
    reason = str(error).strip().split("\n", maxsplit=1)[0]
    if path.format == ".parquet":
        return AnyRNNError(f"{path}: this cannot be read as Parquet: {reason}; check that the file is complete")
    problem = ragged_row(path, shorter=False) or odd_quotes(path)
    if problem is not None:
        return AnyRNNError(problem)
    return AnyRNNError(
        f"{path}: this cannot be read as CSV: {reason}; "
        "expected a header, and as many fields in each row as in the header"
    )


def roles_of(path: File | Frame, names: list[str], columns: Columns, *, need_target: bool, owner: str) -> Roles:
    """Find out which column is what, and refuse what cannot be.

    Args:
        path: The file.
        names: Its columns.
        columns: What the caller says.
        need_target: Whether it has to have a target.
        owner: Whose features `columns.features` are.
    """
    unsaid = []
    if columns.id is None:
        unsaid.append("which column names the sequence of a row (id_column, --id)")
    if columns.target is None and need_target:
        unsaid.append("which column is to be predicted (target_column, --target)")
    if columns.id is None or unsaid:
        hint = first_line_hint(names).lstrip()
        raise AnyRNNError(f"{path}: say {' and '.join(unsaid)}; the columns are {listed(names)}{hint and '. ' + hint}")
    target = columns.target if need_target or columns.target in names else None
    usual = columns.usual_time if columns.usual_time in names and columns.usual_time != columns.id else None
    time = columns.time or usual
    group = None if owner and columns.group not in names else columns.group  # a test file may do without
    for name in (columns.id, time, target, group, *(columns.features or ())):
        if name is not None and name not in names:
            whose = f", a feature of {owner}," if owner and name in (columns.features or ()) else ""
            if name == columns.id and not need_target:  # that of the training, unless the user said another
                whose = ", the id (id_column, --id),"
            raise AnyRNNError(
                f"{path}: column {name!r}{whose} is not there; the columns are {listed(names)}.{likely(name, names)}"
            )
    taken = [name for name in (columns.id, time, target, group) if name is not None]
    if len(set(taken)) < len(taken):
        what = "id, time and target" if group is None else "id, time, target and group"
        raise AnyRNNError(f"{path}: {what} must be different columns, got {listed(taken)}")
    features = columns.features
    if features is None:
        features = tuple(name for name in names if name not in taken)
        numbering = next((name for name in features if name in _NAMELESS), None)
        if numbering == "" == names[-1]:
            raise AnyRNNError(
                f"{path}: the header ends in a separator, and so in a column without a name; take it off the end of "
                "each line, or name the features (feature_columns, --features)"
            )
        if numbering is not None:
            raise AnyRNNError(
                f"{path}: column {numbering!r} looks like the row numbers that pandas writes, which say where a "
                "sequence stood in the file; write the table with index=False, or name the features "
                "(feature_columns, --features)"
            )
    if not features:
        raise AnyRNNError(f"{path}: there is no feature beside {listed(taken)}; expected at least one column")
    for name in features:
        if features.count(name) > 1:
            raise AnyRNNError(f"{path}: feature {name!r} is named twice; name each feature once")
        if name in {columns.id, target, group}:
            parts = {columns.id: "names the sequence", target: "is what is to be predicted", group: "names the group"}
            part = parts[name]
            raise AnyRNNError(f"{path}: column {name!r} {part}; it cannot be a feature as well")
    return Roles(columns.id, time, target, features, group)


def likely(name: str, names: list[str]) -> str:
    """The end of the message that a column is not there."""
    split = next((each for each in names if "," in each and name in map(str.strip, each.split(","))), None)
    if split is not None:
        return f""" On the command line a name with a comma is put in quotes: --features '"{split}"'."""
    return did_you_mean(name, names) or first_line_hint(names)


def frame_of(path: File, roles: Roles) -> pl.DataFrame:
    """The rows of a file that are not blank, with their numbers beside them."""
    try:
        if path.format == ".parquet":
            frame = pl.read_parquet(path.path, glob=False, hive_partitioning=False)
        else:
            frame = _csv(path, None if roles.id == ROW else roles.id)
    except FAILURES as error:
        raise unreadable(path, error) from error
    return numbered(frame, path)


def numbered(frame: pl.DataFrame, path: object) -> pl.DataFrame:
    """The rows that are not blank, with their numbers beside them."""
    frame = frame.with_columns(pl.int_range(1, pl.len() + 1).alias(ROW))
    frame = frame.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))  # blank lines
    if frame.is_empty():
        raise AnyRNNError(f"{path}: there is no row below the header, expected one for each step of each sequence")
    return frame


def _csv(path: File, id_column: str | None) -> pl.DataFrame:
    """The whole file decides a column's type, and ids stay as they are written: 007 is not 7."""
    written = pl.read_csv(path.source, glob=False, n_rows=0, separator=path.separator).columns
    names = _without_blanks(written)
    as_text = {} if id_column is None else {written[names.index(id_column)]: pl.String}
    while True:
        try:
            frame = pl.read_csv(
                path.source, glob=False, infer_schema_length=None, schema_overrides=as_text, separator=path.separator
            )
        except pl.exceptions.ComputeError as error:
            # 46 digits, or those of other scripts, are a whole number to polars, which it then cannot read.
            column = re.search(r"as dtype `i\d+` at column '(.*)' \(column number", str(error))
            if column is None or column[1] in as_text or column[1] not in written:
                raise
            as_text[column[1]] = pl.String
        else:
            return frame.rename(dict(zip(written, names, strict=True)))


def _without_blanks(names: list[str]) -> list[str]:
    """Names of columns without the blank that follows a comma, if they are still different ones then."""
    stripped = [name.strip(BLANKS) for name in names]
    return stripped if len(set(stripped)) == len(names) else names
