"""Read sequences with a target in each step: long tables, and text files of tokens and tags."""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.columns import Columns
from anyrnn.workbench.data import Choices
from anyrnn.workbench.files import format_of, opened, stem_of
from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.names import listed
from anyrnn.workbench.notes import notes_on_classes, notes_on_sequences
from anyrnn.workbench.parsed import Missing, Parsed, Task, Value
from anyrnn.workbench.reading import Reading
from anyrnn.workbench.sequences import Scaler, Sequences
from anyrnn.workbench.sources import with_words_of
from anyrnn.workbench.split import split, split_validation
from anyrnn.workbench.table import read_table
from anyrnn.workbench.tagging.conll import SUFFIXES, Sentences, read_conll
from anyrnn.workbench.tagging.spans import note_on_scheme
from anyrnn.workbench.tagging.steps import NO_TARGET, Steps, Tagging
from anyrnn.workbench.targets import classes_of, label_of, numbers_of, task_of

_TABLES = frozenset({".csv", ".parquet"})
_TASKS: Mapping[str, Task] = {"classes": "classification", "numbers": "regression"}
_LEAST = 10  # sequences to have a validation part: each has many steps that tell
_LONG = 5000  # steps: through more of them a gradient goes back slowly, and in vain

Source = str | os.PathLike[str]
Answers = Literal["classes", "numbers"]


@dataclass(frozen=True)
class Read:
    """The sequences of one file, as tables and texts have them alike.

    Attributes:
        path: The file.
        features: What a step has.
        target: What is predicted of it.
        x: (T, I) float64 each, or T words.
        ids: The names of the sequences.
        rows: The row of the table, or the line of the text, of each step.
        targets: As they stand there, None where one is missing; None if the file has none.
        groups: The group of each sequence, if a column names it.
        table: What was read of a table; None for a text.
        notes: What reading took for granted.
        where: Names the place of a step: of sequence k, step t.
    """

    path: str
    features: tuple[str, ...]
    target: str
    x: tuple[Any, ...]
    ids: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[Value, ...], ...] | None
    groups: tuple[str, ...] | None
    table: Parsed | None
    notes: tuple[str, ...]
    where: Callable[[int, int], str]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def reading(self) -> Reading | None:
        """What was made of the columns of a table."""
        return None if self.table is None else self.table.reading

    def of(self, table: Parsed) -> "Read":
        """This, with other features."""
        return dataclasses.replace(self, features=table.features, x=tuple(table.x), table=table, notes=table.notes)


def is_table(source: Source, *, named: bool) -> bool:
    """Whether a file is a table by its name; else it is a text of tokens and tags.

    Args:
        source: The file.
        named: Whether columns are named: a .tsv file may be either.
    """
    kind = format_of(source)
    return kind in _TABLES or (kind == ".tsv" and named)


def is_tagged_text(source: Source) -> bool:
    """Whether a file is a text of tokens and tags by its name alone."""
    return Path(source).suffix.lower() in SUFFIXES


def read_steps(
    source: Source, columns: Columns, missing: Missing | None, *, trained: bool = False, encoding: str | None = None
) -> Read:
    """Read one file.

    Args:
        source: A table, or a text of tokens and tags: see `is_table`.
        columns: Of a table.
        missing: What stands for a missing value in a table.
        trained: It is for a trained model, which needs no target.
        encoding: The name of that of a text; None: UTF-8.
    """
    if not is_table(source, named=columns.id is not None or columns.reading is not None):
        found = read_conll(_there(Path(source)), need_tags=not trained, encoding=encoding)
        return _text(found, columns.target or "tag")
    path = Path(source)
    try:
        parsed = read_table(
            opened(path, encoding),
            dataclasses.replace(columns, per_step=True),
            need_target=not trained,
            owner="the model" if trained else "",
            missing=missing,
        )
    except OSError as error:
        raise AnyRNNError(f"{path}: this cannot be read: {error.strerror or error}") from error
    rows = tuple(tuple(each.tolist()) for each in parsed.rows or ())
    return Read(
        parsed.path, parsed.features, parsed.target, tuple(parsed.x), parsed.ids, rows, parsed.step_targets,
        parsed.groups, parsed, parsed.notes,
        lambda k, t: f"{parsed.path}: data row {rows[k][t]} (id {parsed.ids[k]!r})",
    )  # fmt: skip


def _there(path: Path) -> Path:
    if format_of(path) == ".ts":
        raise AnyRNNError(f"{path}: a .ts file has one target for each sequence, expected one for each step")
    if path.is_dir() or not path.exists():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        raise AnyRNNError(f"{path}: {what}; expected a .csv or .parquet table, or a text of tokens and tags")
    return path


def _text(found: Sentences, target: str) -> Read:
    ids = tuple(str(k + 1) for k in range(len(found.words)))
    return Read(
        found.path, ("word",), target, found.words, ids, found.lines, found.tags, None, None, found.notes,
        lambda k, t: f"{found.path}: line {found.lines[k][t]} ({found.words[k][t]!r})",
    )  # fmt: skip


def load_tagged(
    source: Source,
    *,
    test: Source | None = None,
    validation_file: Source | None = None,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | None = None,
    feature_columns: Sequence[str] | None = None,
    answers: Answers | None = None,
    test_fraction: float = 0.3,
    seed: int = 0,
    missing: str | float | Sequence[str | float] | None = None,
    validation: float = 0.2,
    group_column: str | None = None,
    gaps: Gaps = "fill",
    delta_time: bool = False,
    encoding: str | None = None,
) -> Tagging:
    """Read sequences with a target in each step, and split them into a training, a validation and a test part.

    A table is as for `workbench.load`, but that each row has its own target. An empty target is that of a step which
    takes no part in training and scores; `missing` names other marks for it. A file of any other name than .csv,
    .parquet and, with an id column, .tsv is read as text: a token and its tag in a line, and a blank line between
    sentences.

    Args:
        source: The path of the file.
        test: A file with the test part. Without it whole sequences are drawn.
        validation_file: A file with the validation part. Without it, see `validation`.
        id_column: Tables: the column that says to which sequence a row belongs.
        time_column: Tables: the column that rows are sorted by within a sequence.
        target_column: Tables: the column to predict.
        feature_columns: Tables: the columns to predict from. Without it, all other columns.
        answers: What is predicted, "classes" or "numbers", where the file's own answer is not wanted.
        test_fraction: The share of the sequences in the test part, where we split.
        seed: Which split: the same seed gives the same one.
        missing: Tables: the value, or the values, that stand for "missing" in features and target. Features are filled
            as for `workbench.load`, from what comes before a step.
        validation: The share of the training part that is set aside to choose the epoch of each network by; 0: none.
        group_column: Tables: the column that says which sequences are in one part. It is no feature.
        gaps: Tables: what a network gets beside the filled values: see `workbench.load`.
        delta_time: Tables: the time since the step before is one more feature.
        encoding: The name of that of text files, such as "latin-1"; None: UTF-8.

    Raises:
        AnyRNNError: The data cannot be used as it is. The message names the place and the cure.
    """
    if answers not in {None, *_TASKS}:
        raise AnyRNNError(f"load_tagged: got answers={answers!r}, expected 'classes', 'numbers' or None")
    task = None if answers is None else _TASKS[answers]
    choices = Choices(task, test_fraction, seed, missing, validation, gaps, caller="load_tagged")
    if isinstance(feature_columns, str):
        raise AnyRNNError(f"load_tagged: got feature_columns={feature_columns!r}, expected a list of names")
    features = None if feature_columns is None else tuple(feature_columns)
    columns = Columns(id_column, time_column, target_column, features, group=group_column, delta_time=delta_time)
    absent = choices.absent
    if not is_table(source, named=id_column is not None):
        _refuse_columns(source, asked=columns != Columns() or absent is not None or answers is not None)
    own = read_steps(source, columns, absent, encoding=encoding)
    wanted = columns
    if own.reading is not None:
        wanted = dataclasses.replace(columns, features=own.reading.columns, reading=own.reading)
    given = [None if each is None else _beside(each, own, wanted, absent, encoding) for each in (test, validation_file)]
    files = [own, *(each for each in given if each is not None)]
    classes, notes = _classes(files, task)
    parts = [None if each is None else _steps(each, classes) for each in (own, *given)]
    train, held_out, chosen_by = parts
    assert train is not None
    if held_out is None:
        train, held_out, how = _drawn(own, train, test_fraction, seed)
    else:
        how = f"the test part is {test}, as asked for"
    if chosen_by is None:
        train, chosen_by, how_validated = _validation(train, validation, seed)
    else:
        how_validated = f"the validation part is {validation_file}, as asked for"
    tested = given[0]
    if own.table is not None:
        table = None if tested is None else tested.table
        own_table, table, train, chosen_by, held_out = with_words_of(train, own.table, table, chosen_by, held_out)
        own = own.of(own_table)
        tested = None if tested is None or table is None else tested.of(table)
    data = Tagging(
        name=re.sub("[_.-]?train$", "", stem_of(source), flags=re.IGNORECASE) or stem_of(source),
        features=own.features,
        classes=classes,
        target=own.target,
        train=train,
        test=held_out,
        split=f"{how}; {how_validated}",
        id_column=id_column,
        time_column=time_column,
        missing=None if absent is None else absent.texts,
        validation=chosen_by,
        group_column=group_column,
        gaps=gaps,
        reading=own.reading,
    )
    of_files = dict.fromkeys(note for each in (own, *files) for note in each.notes)
    return dataclasses.replace(data, notes=(*of_files, *notes, *_notes(data, [own, tested])))


def _refuse_columns(source: Source, *, asked: bool) -> None:
    if asked:
        also = "; with --id it is read as a table" if format_of(source) == ".tsv" else ""
        raise AnyRNNError(
            f"{source}: this is read as a text of tokens and tags, which has no columns to name, and classes only; "
            "leave out --id, --time, --target, --features, --group, --missing, --gaps, --delta-time and --answers, "
            f"which are for tables (.csv, .parquet){also}"
        )


def _beside(source: Source, own: Read, columns: Columns, missing: Missing | None, encoding: str | None) -> Read:
    """The file of another part."""
    if is_table(source, named=columns.id is not None) != (own.table is not None):
        raise AnyRNNError(f"{source}: expected a file of the same format as {own.path}")
    return read_steps(source, columns, missing, encoding=encoding)


def _classes(files: Sequence[Read], asked: Task | None) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The names of the classes, None for numbers; and notes where we had to decide."""
    own = files[0]
    flat = _flat(own)
    if not flat.targets:
        raise AnyRNNError(f"{own.path}: no row has a target {own.target!r}, expected some that have one")
    task: Task = "classification"
    notes: tuple[str, ...] = ()
    if own.table is not None:
        flat, task, notes = task_of(flat, asked)
    if task == "regression":
        return None, notes
    classes = classes_of(flat)
    for each in files[1:]:  # what training never has cannot be learned: it has a place, so that it counts as an error
        news = {label_of(value) for values in each.targets or () for value in values if value is not None}
        news -= set(classes)
        if news:
            notes = (
                *notes,
                f"classes {listed(sorted(news))} of {each.path} are not in {own.path}: no network can learn them, and "
                "steps of them count as errors",
            )
            classes = (*classes, *sorted(news))
    return classes, (*notes, *note_on_scheme(classes), *notes_on_classes(flat, classes))


class _Places(Sequence[str]):
    """Where the targets of a file stand that are not missing, each named when it is asked for."""

    def __init__(self, read: Read) -> None:
        pairs = [(k, t) for k, values in enumerate(read.targets or ()) for t, v in enumerate(values) if v is not None]
        self._read, self._pairs = read, pairs

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self._read.where(*pair) for pair in self._pairs[place]]
        return self._read.where(*self._pairs[place])


def _flat(read: Read) -> Parsed:
    """All targets of a file that are not missing, one after the other."""
    values = tuple(value for each in read.targets or () for value in each if value is not None)
    return Parsed(
        read.path, read.features, (), (), _Places(read), read.target, values, None, unit="step"
    )  # fmt: skip


def encoded(
    targets: Sequence[Sequence[Value]], numbers: Sequence[float], *, classes: bool, like: Sequence[object]
) -> tuple[Tensor, ...]:
    """Targets of sequences (T,) each, as `Steps` has them.

    Args:
        targets: As read, None where one is missing.
        numbers: What stands for those that are not, one after the other.
        classes: Whether these count classes.
        like: As many things as there are sequences, of the lengths of these, for those without any targets.
    """
    kind, none = (torch.int64, NO_TARGET) if classes else (torch.float64, math.nan)
    rest = iter(numbers)
    if not targets:
        return tuple(torch.full((len(each),), none, dtype=kind) for each in like)  # type: ignore[arg-type]
    return tuple(
        torch.tensor([none if value is None else next(rest) for value in values], dtype=kind) for values in targets
    )


def _steps(read: Read, classes: tuple[str, ...] | None) -> Steps:
    flat = _flat(read)
    values = list(flat.targets or ())
    if classes is None:
        numbers: Sequence[float] = numbers_of(flat, values)  # type: ignore[arg-type]
    else:
        index = {label: k for k, label in enumerate(classes)}
        numbers = [index[label_of(value)] for value in values]
    y = encoded(read.targets or (), numbers, classes=classes is not None, like=read.x)
    return Steps(tuple(read.x), y, read.ids, read.groups)


def _drawn(own: Read, whole: Steps, test_fraction: float, seed: int) -> tuple[Steps, Steps, str]:
    if len(whole) < 2:
        raise AnyRNNError(
            f"{own.path}: there is one sequence only, expected at least two, to train on one and test on another; give "
            "a file with the test part (test, --test), or cut it into pieces, by year say, with an id each"
            + ("; if it is a table, name its --id" if own.table is None and format_of(own.path) == ".tsv" else "")
        )
    # Which sequences are in one part is decided by their names and groups, as for whole sequences.
    train, test, how = split(_named(whole), None, _flat(own), test_fraction, seed)
    return whole.subset(map(int, train.y)), whole.subset(map(int, test.y)), how


def _validation(train: Steps, share: float, seed: int) -> tuple[Steps, Steps | None, str]:
    rest, chosen_by, how = split_validation(_named(train), None, share, seed, least=_LEAST)
    part = None if chosen_by is None else train.subset(map(int, chosen_by.y))
    return train.subset(map(int, rest.y)), part, how


def _named(whole: Steps) -> Sequences:
    """Sequences of one step that have the names and groups of these; for a target, the places where they stand."""
    step = (torch.zeros(1, 1, dtype=torch.float64),) * len(whole)
    return Sequences(step, torch.arange(len(whole), dtype=torch.float64), whole.ids, whole.groups)


def _notes(data: Tagging, files: Sequence[Read | None]) -> list[str]:
    """What a reader of the scores should know. The files are the one that was split, and that of the test part."""
    notes = []
    steps = sum(len(x) for part in data.parts for x in part.x)
    masked = steps - sum(part.labelled for part in data.parts)
    if masked:
        notes.append(
            f"{masked:,} of {steps:,} steps have no target {data.target!r}: they are read, and take no part in the "
            "loss and in the scores"
        )
    longest = max(len(x) for x in data.train.x)
    if longest > _LONG:
        notes.append(
            f"the longest sequence has {longest:,} steps, through all of which the gradient goes back: pieces of some "
            "hundred steps, with an id each, are learned faster"
        )
    if not isinstance(data.reader, Scaler):
        return [*notes, *_notes_on_words(data)]
    parsed = [each.table for each in files if each is not None and each.table is not None]
    parts = (data.train.plain(), None if data.validation is None else data.validation.plain(), data.test.plain())
    return [*notes, *notes_on_sequences(parsed, *parts, data.reader, of_targets=False)]


def _notes_on_words(data: Tagging) -> Iterator[str]:
    """Words of the test part that nobody has seen, and sentences that somebody has."""
    seen = set(itertools.chain.from_iterable(data.train.x))
    words = list(itertools.chain.from_iterable(data.test.x))
    strange = sum(word not in seen for word in words)
    if strange:
        share = f"{strange:,} of {len(words):,} words of the test part ({strange / len(words):.1%})"
        yield f"{share} are not in the training part"
    known = set(data.train_and_validation.x)
    copies = sum(sentence in known for sentence in data.test.x)
    if copies:
        yield (
            f"{copies:,} of {len(data.test):,} sentences of the test part are in the training part word by word: to "
            "know them again is no success"
        )
