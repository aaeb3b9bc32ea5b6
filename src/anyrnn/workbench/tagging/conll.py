"""Text files in which a line is a token with its tag and a blank line ends a sentence, as in the CoNLL shared tasks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.files import decoded

SUFFIXES = frozenset({".conll", ".iob", ".iob2", ".bio"})  # that say what a file is
_START = "-DOCSTART-"
_NO_TAG = "_"  # of a token that has none, in the files of CoNLL


@dataclass(frozen=True)
class Sentences:
    """The sentences of a file.

    Attributes:
        path: The file.
        words: Of each sentence the tokens.
        tags: The tags of these, None where one is missing; None if the file has tokens only.
        lines: The line of each token.
        notes: What was left out.
    """

    path: str
    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[str | None, ...], ...] | None
    lines: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()


def read_conll(path: Path, *, need_tags: bool = True, encoding: str | None = None) -> Sentences:
    """Read a file of tokens and tags: of each line the first column is the token, and the last one the tag.

    Columns are separated by tabs if there is one in the first line, else by blanks. Lines that begin with -DOCSTART-
    are left out, and so are comments: lines that begin with # and have no tab where the others have.

    Args:
        path: The file.
        need_tags: If false, a line may be a token alone.
        encoding: The name of that of the file; None: UTF-8.

    Raises:
        AnyRNNError: if it cannot be read, or if a line has no tag.
    """
    lines = _lines(path, encoding)
    first = next((line for _, line in lines if line.strip()), None)
    if first is None:
        raise AnyRNNError(f"{path}: there is no token in it; expected a line for each, with its tag behind it")
    tabs = any("\t" in line.strip() for _, line in lines)
    kept = [(number, line) for number, line in lines if not _is_left_out(line, tabs)]
    rows = [
        (number, [cell.strip(" \r") for cell in line.split("\t")] if tabs else line.split()) for number, line in kept
    ]
    widths = {len(row) for _, row in rows if any(row)}
    tagged = max(widths, default=0) > 1
    if not widths:
        raise AnyRNNError(f"{path}: there is no token in it but {_START} and comments")
    if need_tags and not tagged:
        raise AnyRNNError(
            f"{path}: a line is one column, {first.strip()!r}, expected a token and its tag, with a tab or a blank "
            "between them"
        )
    found = list(_sentences(path, rows, tagged))
    notes = []
    left_out = len(lines) - len(kept)
    if left_out:
        notes.append(f"{path}: {left_out} line{'s' if left_out > 1 else ''} of {_START} or comments left out")
    if max(widths) > 2:
        notes.append(f"{path}: of {max(widths)} columns the first one is read as the token, the last one as its tag")
    return Sentences(
        str(path),
        tuple(tuple(token for _, token, _ in sentence) for sentence in found),
        tuple(tuple(tag for _, _, tag in sentence) for sentence in found) if tagged else None,
        tuple(tuple(number for number, _, _ in sentence) for sentence in found),
        tuple(notes),
    )


def _lines(path: Path, encoding: str | None) -> list[tuple[int, str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AnyRNNError(f"{path}: this cannot be read: {error.strerror or error}") from error
    if encoding is not None:
        content = decoded(path, content, encoding)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AnyRNNError(
            f"{path}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8, expected a text in "
            "UTF-8, or the name of its encoding (encoding, --encoding)"
        ) from error
    return list(enumerate(text.replace("\r\n", "\n").split("\n"), 1))


def _is_left_out(line: str, tabs: bool) -> bool:
    return line.startswith(_START) or (tabs and line.startswith("#") and "\t" not in line)


def _sentences(
    path: Path, rows: list[tuple[int, list[str]]], tagged: bool
) -> Iterator[list[tuple[int, str, str | None]]]:
    """Of each sentence the line, the token and the tag of each step."""
    sentence: list[tuple[int, str, str | None]] = []
    width = 0
    for number, row in rows:
        if not any(row):
            if sentence:
                yield sentence
            sentence = []
            continue
        width = width or len(row)
        if not row[0] or len(row) != width:
            columns = "1 column" if len(row) == 1 else f"{len(row)} columns"
            raise AnyRNNError(
                f"{path}: line {number} has {columns} ({' | '.join(row)[:60]!r}), expected {width} as in the first "
                "line: a token, and its tag as the last one"
            )
        tag = None if not tagged or row[-1] in {"", _NO_TAG} else row[-1]
        sentence.append((number, row[0], tag))
    if sentence:
        yield sentence
