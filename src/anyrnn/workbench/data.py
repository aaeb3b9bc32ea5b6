"""People's sequences, read, checked, and split into a training and a test part.

`load` reads the shipped Japanese Vowels, a .ts file or a long CSV/Parquet table (`ts.py` and `table.py` know the
formats) and decides here what is independent of the format: classes or a number, and which sequence is in which
part. Whole sequences are split, never rows, and nothing that is fitted sees the test part.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.parsed import Parsed, Task, Value, did_you_mean, listed
from anyrnn.workbench.sequences import Inputs, Scaler, Sequences, batch
from anyrnn.workbench.table import Columns, read_table
from anyrnn.workbench.ts import parse_ts
from anyrnn.workbench.unseen import Unseen, unseen

__all__ = ["Dataset", "Inputs", "Scaler", "Sequences", "Task", "batch", "load", "load_for_prediction"]

JAPANESE_VOWELS = "japanese-vowels"
_ATTRIBUTION = (
    "Japanese Vowels, M. Kudo, J. Toyama and M. Shimbo (1999), UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C5NS47, CC BY 4.0"
)
_FORMATS = {".ts", ".csv", ".parquet"}
_MOST_CLASSES = 20  # whole numbers with more distinct values than this are read as a number, not as classes

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Dataset:
    """A question to a recurrent network: predict `target` from `features`.

    Args:
        name: What it is called in tables and reports.
        features: The names of the I features.
        classes: The names of the classes that `y` counts; None if a number is predicted.
        target: The name of what is predicted.
        train: What may be fitted to.
        test: What is only scored.
        split: A sentence that says where the split came from.
        notes: Decisions that reading took and that the user may want otherwise, a sentence each.
        attribution: Whom to name when the data or results from it are shown.
        id_column: The column of the table that names the sequence of a row; None if the file is no table.
        time_column: The column that sorts the rows of a sequence; None if none does.
    """

    name: str
    features: tuple[str, ...]
    classes: tuple[str, ...] | None
    target: str
    train: Sequences
    test: Sequences
    split: str
    notes: tuple[str, ...] = ()
    attribution: str | None = None
    id_column: str | None = None
    time_column: str | None = None

    def __post_init__(self) -> None:
        for part in (self.train, self.test):
            if part.x[0].shape[1] != len(self.features):
                raise AnyRNNError(
                    f"{self.name}: got sequences of {part.x[0].shape[1]} features, expected {len(self.features)}: "
                    f"{listed(self.features)}"
                )

    @property
    def task(self) -> Task:
        """Whether classes or a number is predicted."""
        return "regression" if self.classes is None else "classification"


def load(
    source: Source,
    *,
    test: Source | None = None,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | None = None,
    feature_columns: Sequence[str] | None = None,
    task: Task | None = None,
    test_fraction: float = 0.3,
    seed: int = 0,
) -> Dataset:
    """Read sequences and what to predict for each, and split them into a training and a test part.

    >>> data = load("japanese-vowels")
    >>> len(data.train), len(data.test), len(data.features), data.classes
    (270, 370, 12, ('1', '2', '3', '4', '5', '6', '7', '8', '9'))

    A table has a row for each step of each sequence. Its target, the same in all rows of a sequence, is read as
    classes if it is text, true/false, or whole numbers with few distinct values (at most 20, and at most half as
    many as there are sequences; two are always few), and as a number otherwise; `task` overrules that.

    Args:
        source: "japanese-vowels", or the path of a .ts, .csv or .parquet file.
        test: A file with the test part. Without it, X_TRAIN.ts takes X_TEST.ts from its folder; anything else is
            split.
        id_column: Tables: the column that says to which sequence a row belongs.
        time_column: Tables: the column that rows are sorted by within a sequence (numbers, dates, or ISO 8601
            text). Without it they stay in the order of the file.
        target_column: Tables: the column to predict.
        feature_columns: Tables: the columns to predict from. Without it, all other columns.
        task: "classification" or "regression", where the file's own answer is not wanted.
        test_fraction: The share of the sequences in the test part, where we split.
        seed: Which split: the same seed gives the same one.

    Raises:
        AnyRNNError: The data cannot be used as it is. The message names the place and the cure.
    """
    if task not in {None, *get_args(Task)}:
        raise AnyRNNError(f"load: got task={task!r}, expected 'classification', 'regression' or None")
    if not 0 < test_fraction < 1:
        raise AnyRNNError(f"load: got test_fraction={test_fraction}, expected a share between 0 and 1, such as 0.3")
    if not 0 <= seed < 1 << 32:
        raise AnyRNNError(f"load: got seed={seed}, expected a whole number from 0 to 2**32 - 1")
    source = os.fspath(source)
    columns = Columns(
        id_column, time_column, target_column, None if feature_columns is None else tuple(feature_columns)
    )
    if columns != Columns() and (source == JAPANESE_VOWELS or Path(source).suffix.lower() == ".ts"):
        raise AnyRNNError(
            f"{source}: a .ts file has no columns to name; leave out --id, --time, --target and --features "
            "(id_column and the like), which are for tables"
        )
    own = _parsed(source, columns)
    if len(own.x) < 2:
        raise AnyRNNError(
            f"{own.path}: there is one sequence only, expected at least two, to train on one and test on another"
            + ("" if id_column is None else f"; does column {id_column!r} say to which sequence a row belongs?")
        )
    task, notes = _task(own, task)
    classes = _classes(own) if task == "classification" else None
    train = _encoded(own, classes)
    if classes is None and train.y.amin() == train.y.amax():
        raise AnyRNNError(
            f"{own.path}: target {own.target!r} is {train.y[0]:g} for every sequence: there is nothing to predict"
        )
    given, split = _given_test(source, test, own, columns)
    if given is None:
        train, held_out, split = _split(train, classes, own, test_fraction, seed)
    else:
        held_out = _encoded(given, classes, trained_on=own.path)
        _check_overlap(train, held_out, given)
    shipped = source == JAPANESE_VOWELS
    return Dataset(
        name=JAPANESE_VOWELS if shipped else re.sub("_train$", "", Path(source).stem, flags=re.IGNORECASE),
        features=own.features,
        classes=classes,
        target=own.target,
        train=train,
        test=held_out,
        split=split,
        notes=(*own.notes, *notes),
        attribution=_ATTRIBUTION if shipped else None,
        id_column=id_column,
        time_column=time_column,
    )


def load_for_prediction(
    source: Source,
    *,
    features: Sequence[str],
    classes: Sequence[str] | None,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | None = None,
    trained_time: str | None = None,
) -> Unseen:
    """Read sequences for a model that is already trained; they need no target.

    Args:
        source: A path as for `load`; "japanese-vowels" is its test part.
        features: The model's features: by name in a table, by number in a .ts file, which has no names.
        classes: The model's classes, None if it predicts a number.
        id_column: As for `load`; this and the other columns are not looked at for a .ts file.
        time_column: As for `load`.
        target_column: As for `load`. If the file has it, the result says of which sequences the truth is known, so
            that their predictions can be scored, and why that of others is not.
        trained_time: The column that sorted the rows in training. Without a `time_column` it sorts these as well,
            and it is noted if it is not there.

    Raises:
        AnyRNNError: The file does not fit the model.
    """
    columns = Columns(id_column, time_column, target_column, tuple(features), trained_time)
    source = os.fspath(source)
    parsed = _parsed(source, columns, part="TEST", need_target=False, owner="the model")
    if len(parsed.features) != len(features):
        raise AnyRNNError(
            f"{parsed.path}: got {len(parsed.features)} channels, expected {len(features)}, the features of the "
            f"model: {listed(features)}"
        )
    return unseen(parsed, classes, _label)


def _parsed(source: str, columns: Columns, *, part: str = "TRAIN", need_target: bool = True, owner: str = "") -> Parsed:
    """Read one file, whichever format it has; `owner` says whose features it must have, if not its own."""
    if source == JAPANESE_VOWELS:
        name = f"JapaneseVowels_{part}.ts"
        parsed = parse_ts((files("anyrnn.workbench") / "datasets" / name).read_bytes(), name)
        features = tuple(f"LPC cepstrum {i + 1}" for i in range(len(parsed.features)))
        return dataclasses.replace(parsed, features=features, target="speaker")
    path = _existing(Path(source))
    try:
        if path.suffix.lower() == ".ts":
            return parse_ts(path.read_bytes(), str(path))
        return read_table(path, columns, need_target=need_target, owner=owner)
    except OSError as error:
        raise AnyRNNError(f"{path}: this cannot be read: {error.strerror or error}") from error


def _existing(path: Path) -> Path:
    formats = f"expected a .ts, .csv or .parquet file, or {JAPANESE_VOWELS!r}"
    if path.is_dir():
        inside = sorted(path.glob("*_TRAIN.ts"))
        cure = f" Did you mean '{inside[0]}'?" if inside else ""
        raise AnyRNNError(f"{path}: this is a folder; {formats}.{cure}")
    if not path.exists():
        folder = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [file.name for file in folder if file.suffix.lower() in _FORMATS]
        raise AnyRNNError(
            f"{path}: there is no such file; {formats}.{did_you_mean(path.name, [*names, JAPANESE_VOWELS])}"
        )
    if path.suffix.lower() not in _FORMATS:
        raise AnyRNNError(f"{path}: its name ends in {path.suffix or path.name!r}; {formats}")
    if not path.stat().st_size:
        raise AnyRNNError(f"{path}: the file is empty; {formats}")
    return path


def _given_test(source: str, test: Source | None, own: Parsed, columns: Columns) -> tuple[Parsed | None, str]:
    """The test part that is not ours to choose, if there is one, and the sentence about it."""
    if test is None and source == JAPANESE_VOWELS:
        return _parsed(source, columns, part="TEST"), (
            "the data set's own: the same nine speakers, recorded for the test part on other occasions"
        )
    split = f"the test part is {test}, as asked for"
    if test is None:
        name = re.fullmatch(r"(.*_)(?:(TRAIN)|(Train)|train)\.ts", Path(source).name)
        if name is None:
            return None, ""
        word = "TEST" if name[2] else "Test" if name[3] else "test"
        test = Path(source).with_name(f"{name[1]}{word}.ts")
        if not test.exists():
            return None, ""
        split = f"the test part is {test.name}, which lies beside the training file"
    if (Path(test).suffix.lower() == ".ts") != (Path(own.path).suffix.lower() == ".ts"):
        raise AnyRNNError(f"{test}: expected a test file of the same format as {own.path}")
    given = _parsed(os.fspath(test), dataclasses.replace(columns, features=own.features), part="TEST", owner=own.path)
    if len(given.features) != len(own.features):
        raise AnyRNNError(
            f"{given.path}: got {len(given.features)} channels, expected {len(own.features)} as in {own.path}"
        )
    return given, split


def _targets(parsed: Parsed) -> list[str | bool | int | float]:
    """The targets, after checking that each sequence has one."""
    if parsed.targets is None:
        raise AnyRNNError(
            f"{parsed.path}: the header says neither '@classLabel true a b c' nor '@targetlabel true', so there is "
            "nothing to learn; expected one of them, and the class or number at the end of each line"
        )
    present = [value for value in parsed.targets if value is not None]
    missing = len(parsed.targets) - len(present)
    if missing:
        place = parsed.where[parsed.targets.index(None)]
        also = f", and in {missing - 1} more sequences" if missing > 1 else ""
        raise AnyRNNError(
            f"{place}: target {parsed.target!r} is missing here{also}; expected one for each sequence: fill it in, or "
            "leave the sequence out"
        )
    return present


def _task(parsed: Parsed, asked: Task | None) -> tuple[Task, tuple[str, ...]]:
    """Classes or a number, and a note where we had to decide."""
    values = _targets(parsed)
    told = asked or parsed.task
    if told:
        return told, ()
    if any(isinstance(value, float) for value in values):
        return "regression", ()
    if any(isinstance(value, str | bool) for value in values):
        return "classification", ()
    distinct = len(set(values))
    few = max(2, min(_MOST_CLASSES, len(values) // 2))
    task: Task = "classification" if distinct <= few else "regression"
    meaning, other = ("classes", "regression") if distinct <= few else ("a number", "classification")
    note = (
        f"target {parsed.target!r} holds whole numbers, {distinct} distinct ones in {len(values)} sequences: read as "
        f"{meaning}; task={other!r} (--task {other}) reads them the other way"
    )
    return task, (note,)


def _label(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a class 1 that one of two files writes as 1.0
    return str(value)


def _classes(parsed: Parsed) -> tuple[str, ...]:
    """The classes that occur: in the order that the file declares, or by number, or by alphabet."""
    labels = {_label(value) for value in _targets(parsed)}
    if len(labels) < 2:
        raise AnyRNNError(
            f"{parsed.path}: target {parsed.target!r} is {labels.pop()!r} for every sequence, expected at least two "
            "classes to tell apart"
        )
    if parsed.classes:
        return tuple(label for label in parsed.classes if label in labels)
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return tuple(sorted(labels))


def _encoded(parsed: Parsed, classes: tuple[str, ...] | None, *, trained_on: str = "") -> Sequences:
    """Targets as torch wants them. `trained_on` is whose the classes are, where that is not this file."""
    values = _targets(parsed)
    if classes is None:
        return Sequences(parsed.x, torch.tensor(_numbers(parsed, values), dtype=torch.float32), parsed.ids)
    index = {label: i for i, label in enumerate(classes)}
    for value, place in zip(values, parsed.where, strict=True):
        if _label(value) not in index:
            raise AnyRNNError(
                f"{place}: class {_label(value)!r} is not among the classes of {trained_on}: {listed(classes)}; "
                "no network can predict a class that it was not trained on: leave the sequence out, or add some of "
                "its class to the training part"
            )
    return Sequences(parsed.x, torch.tensor([index[_label(value)] for value in values]), parsed.ids)


def _numbers(parsed: Parsed, values: list[str | bool | int | float]) -> list[float]:
    numbers: list[float] = []
    for value, place in zip(values, parsed.where, strict=True):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not abs(number) <= torch.finfo(torch.float32).max:
            raise AnyRNNError(
                f"{place}: target {parsed.target!r} is {value!r}, expected a finite number; "
                "correct it, or read the target as classes: task='classification' (--task classification)"
            )
        numbers.append(number)
    return numbers


def _check_overlap(train: Sequences, test: Sequences, given: Parsed) -> None:
    """A sequence of the same id and values in both parts makes the test score a memory test."""
    known = dict(zip(train.ids, train.x, strict=True))
    for x, id_, place in zip(test.x, test.ids, given.where, strict=True):
        if id_ in known and torch.equal(x, known[id_]):
            raise AnyRNNError(
                f"{place}: this sequence is in the training file too, with the same id and the same values; "
                "expected a test part that training does not see: take it out of one of the files"
            )


def _split(
    whole: Sequences, classes: tuple[str, ...] | None, own: Parsed, test_fraction: float, seed: int
) -> tuple[Sequences, Sequences, str]:
    """Whole sequences into two parts, such that training has every class."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 - it takes a second to load

    count = len(whole)
    size = min(max(1, round(count * test_fraction)), count - 1)
    if classes is None:
        parts, how = train_test_split(np.arange(count), test_size=size, random_state=seed), ""
    else:
        if len(classes) == count:
            raise AnyRNNError(
                f"{own.path}: target {own.target!r} is different for each of the {count} sequences, expected classes "
                "that some sequences share; is this the column to predict? Numbers are read with task='regression' "
                "(--task regression)"
            )
        parts, how = _class_split(whole.y.numpy(), size, seed)
    train, test = (whole.subset(sorted(part.tolist())) for part in parts)
    return train, test, f"{len(test)} of {count} sequences, drawn at random{how} (seed {seed}), are the test part"


def _class_split(y: NDArray[Any], size: int, seed: int) -> tuple[list[NDArray[Any]], str]:
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 - as above

    alone = np.bincount(y)[y] == 1  # the only one of its class: it has to be in training
    rest = np.flatnonzero(~alone)
    kinds = len(np.unique(y[rest]))
    size = min(size, len(rest) - kinds)
    if kinds <= size <= len(rest) - kinds:
        train, test = train_test_split(rest, test_size=size, random_state=seed, stratify=y[rest])
        if len(np.unique(y[train])) == kinds:
            return [np.concatenate([train, np.flatnonzero(alone)]), test], " in the proportions of the classes"
    shuffled = np.random.default_rng(seed).permutation(len(y))
    first = np.unique(y[shuffled], return_index=True)[1]  # one of each class, which stays in training
    test = np.delete(shuffled, first)[:size]
    return [np.setdiff1d(shuffled, test), test], " from too few to keep the proportions of the classes"
