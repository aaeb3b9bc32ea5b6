"""People's sequences, read, checked, and split into a training, a validation and a test part.

`load` reads the shipped Japanese Vowels, a .ts file or a long CSV/Parquet table (`ts.py` and `table.py` know the
formats) and decides here what is independent of the format: classes or a number, and which sequence is in which
part. Whole sequences are split, never rows, and nothing that is fitted sees the test part.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.columns import Columns
from anyrnn.workbench.files import JAPANESE_VOWELS, stem_of
from anyrnn.workbench.gaps import GAPS, Gaps
from anyrnn.workbench.names import did_you_mean, listed
from anyrnn.workbench.notes import notes_on_classes, notes_on_sequences
from anyrnn.workbench.ondisk import OnDisk, lengths_of
from anyrnn.workbench.parsed import Missing, Parsed, Task
from anyrnn.workbench.reading import Reading, check_seen, scaler_for
from anyrnn.workbench.sequences import Inputs, Scaler, Sequences, batch
from anyrnn.workbench.sources import Source, given_test_of, is_ts, parsed_source, source_of, with_words_of
from anyrnn.workbench.split import split, split_validation
from anyrnn.workbench.streamed import Stream
from anyrnn.workbench.targets import classes_of, encoded, label_of, task_of
from anyrnn.workbench.unseen import Unseen, unseen

__all__ = ["Dataset", "Inputs", "Scaler", "Sequences", "Task", "batch", "load", "load_for_prediction"]

_ATTRIBUTION = (
    "Japanese Vowels, M. Kudo, J. Toyama and M. Shimbo (1999), UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C5NS47, CC BY 4.0"
)


@dataclass(frozen=True, repr=False)
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
        missing: The values that were read as missing, which are NaN in the sequences; None: none may be missing.
        validation: What chooses the epoch whose weights are kept; nothing is fitted to it. None: the last epoch it is.
        group_column: The column of the table that says which sequences are in one part; None if none does.
        gaps: What a network is told of missing values beside the filling: nothing ("fill"), where they are ("mask"), or
            also the time since each feature was last seen ("since").
        reading: What was made of the columns of the file; None: each is a feature.
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
    missing: tuple[str, ...] | None = None
    validation: Sequences | None = None
    group_column: str | None = None
    gaps: Gaps = "fill"
    reading: Reading | None = None

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.x[0].shape[1] != len(self.features):
                raise AnyRNNError(
                    f"{self.name}: got sequences of {part.x[0].shape[1]} features, expected {len(self.features)}: "
                    f"{listed(self.features)}"
                )
            # What steps on the disk hold was looked at when they were written there.
            for x, id_ in () if isinstance(part.x, OnDisk) else zip(part.x, part.ids, strict=True):
                if not (x.isfinite() if self.missing is None else ~x.isinf()).all():
                    raise AnyRNNError(
                        f"{self.name}: sequence {id_!r} holds NaN or infinity, expected finite numbers: fill or drop "
                        "them first"
                    )
            if part.y.is_floating_point() and not part.y.isfinite().all():
                raise AnyRNNError(f"{self.name}: a target is NaN or infinite, expected finite numbers")
        if self.validation is not None:
            both = set(self.train.groups or ()) & set(self.validation.groups or ())
            if both:
                raise AnyRNNError(
                    f"{self.name}: group {min(both)!r} is in the training and in the validation part, expected each "
                    "group in one part"
                )
        check_seen(self.name, self.features, self.train.x)

    @property
    def parts(self) -> tuple[Sequences, ...]:
        """The training part, the validation part if there is one, and the test part."""
        return (self.train, self.test) if self.validation is None else (self.train, self.validation, self.test)

    @property
    def train_and_validation(self) -> Sequences:
        """All that is not the test part."""
        return self.train if self.validation is None else self.train + self.validation

    def __repr__(self) -> str:
        """What is asked of how many sequences, in a sentence; the numbers themselves would fill the screen."""
        lengths = np.concatenate([lengths_of(part.x) for part in self.parts])
        steps = f"{lengths.min()} to {lengths.max()}" if lengths.min() < lengths.max() else f"{lengths[0]}"
        question = "a number" if self.classes is None else f"{len(self.classes)} classes"
        also = "" if self.validation is None else f", {len(self.validation)} validation"
        features = f"{len(self.features)} feature{'s' if len(self.features) > 1 else ''}"
        return (
            f"{self.name}: {len(self.train)} training{also} and {len(self.test)} test sequences of {steps} steps, "
            f"{features}, target {self.target!r} ({question})"
        )

    @cached_property
    def scaler(self) -> Scaler:
        """Fitted on the training part and nothing else."""
        return scaler_for(self.train, self.missing, self.gaps, self.reading)

    @property
    def task(self) -> Task:
        """Whether classes or a number is predicted."""
        return "regression" if self.classes is None else "classification"


def load(
    source: Source,
    *,
    test: "Source | None" = None,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | None = None,
    feature_columns: Sequence[str] | None = None,
    task: Task | None = None,
    test_fraction: float = 0.3,
    seed: int = 0,
    missing: str | float | Sequence[str | float] | None = None,
    validation: float = 0.2,
    group_column: str | None = None,
    gaps: Gaps = "fill",
    delta_time: bool = False,
    encoding: str | None = None,
    stream: Stream = "auto",
) -> Dataset:
    """Read sequences and what to predict for each, and split them into a training, a validation and a test part.

    >>> data = load("japanese-vowels")
    >>> len(data.train), len(data.validation), len(data.test), len(data.features), data.classes
    (216, 54, 370, 12, ('1', '2', '3', '4', '5', '6', '7', '8', '9'))

    A table has a row for each step of each sequence. Its target, the same in all rows of a sequence, is read as
    classes if it is text, true/false, or whole numbers with few distinct values (at most 20, and at most half as
    many as there are sequences; two are always few), and as a number otherwise; `task` overrules that.

    Args:
        source: "japanese-vowels", the path of a .ts, .csv, .tsv or .parquet file (of text also .gz), or a data frame
            (pandas, Polars, PyArrow and others). Arrays are for `from_arrays`.
        test: A file or frame with the test part. Without it, X_TRAIN.ts takes X_TEST.ts from its folder; anything
            else is split.
        id_column: Tables: the column that says to which sequence a row belongs.
        time_column: Tables: the column that rows are sorted by within a sequence (numbers, dates such as
            2026-01-31 13:45 or 31.01.2026, times of day). Without it they stay in the order of the file.
        target_column: Tables: the column to predict.
        feature_columns: Tables: the columns to predict from. Without it, all other columns.
        task: "classification" or "regression", where the file's own answer is not wanted.
        test_fraction: The share of the sequences in the test part, where we split.
        seed: Which split: the same seed gives the same one.
        missing: The value, or the values, that stand for "missing" in features and target, such as -9999. Given it,
            missing features are NaN in the result, empty cells and NaN among them; a network gets the last value of
            the sequence in their place, or the training mean where there is none yet. Without it they are refused.
        validation: The share of the training part that is set aside to choose the epoch of each network by; 0: none,
            and networks are trained for all their epochs. With fewer than 100 sequences, or 10 groups, there is none.
        group_column: Tables: the column that says what sequences have in common (an engine, a patient, a site). The
            sequences of one group are all in one part, where we split. It is no feature.
        gaps: What a network gets beside the filled values: nothing ("fill"), for each feature a column that is 1 where
            it was seen and 0 where not ("mask"), or also one with the time since it was last seen ("since"): in steps,
            or by the clock with `delta_time`. The last two take empty cells and NaN for missing without `missing`.
        delta_time: The time since the step before is one more feature: in seconds where times are dates.
        encoding: The name of that of a text file, such as "latin-1"; None: UTF-8.
        stream: Whether a Parquet table is read in pieces, and its steps are kept on the disk: "always", "never", or
            "auto", if it would take more than half of the memory. What comes of it is the same.

    Raises:
        AnyRNNError: The data cannot be used as it is. The message names the place and the cure.
    """
    chosen = Choices(task, test_fraction, seed, missing, validation, gaps, stream=stream)
    if isinstance(feature_columns, str):
        raise AnyRNNError(f"load: got feature_columns={feature_columns!r}, expected a list of names")
    columns = Columns(
        id_column,
        time_column,
        target_column,
        None if feature_columns is None else tuple(feature_columns),
        group=group_column,
        delta_time=delta_time,
    )
    read, beside = source_of(source, columns), None if test is None else source_of(test, columns)
    if columns != Columns(delta_time=delta_time) and (read == JAPANESE_VOWELS or is_ts(read)):
        raise AnyRNNError(
            f"{read}: a .ts file has no columns to name; leave out --id, --time, --target, --features and "
            "--group (id_column and the like), which are for tables"
        )
    own = parsed_source(read, columns, missing=chosen.absent, encoding=encoding, stream=stream)
    shipped = read == JAPANESE_VOWELS
    stem = stem_of(read) if isinstance(read, str) else "frame"
    return dataset_of(
        own,
        lambda own: given_test_of(read, beside, own, columns, chosen.absent, encoding, stream),
        chosen,
        name=JAPANESE_VOWELS if shipped else re.sub("_train$", "", stem, flags=re.IGNORECASE),
        attribution=_ATTRIBUTION if shipped else None,
        id_column=id_column,
        time_column=time_column,
        group_column=group_column,
    )


@dataclass(frozen=True)
class Choices:
    """What a caller may decide about any data: see `load`."""

    task: Task | None
    test_fraction: float
    seed: int
    missing: str | float | Sequence[str | float] | None
    validation: float
    gaps: Gaps
    caller: str = "load"
    stream: Stream = "auto"

    def __post_init__(self) -> None:
        if self.task not in {None, *get_args(Task)}:
            raise AnyRNNError(f"{self.caller}: got task={self.task!r}, expected 'classification', 'regression' or None")
        for name, least in (
            ("test_fraction", "between 0 and 1, such as 0.3"),
            ("validation", "from 0 to below 1, such as 0.2"),
        ):
            value = getattr(self, name)
            if not 0 <= value < 1 or (name == "test_fraction" and not value):
                raise AnyRNNError(f"{self.caller}: got {name}={value}, expected a share {least}")
        if not 0 <= self.seed < 1 << 32:
            raise AnyRNNError(f"{self.caller}: got seed={self.seed}, expected a whole number from 0 to 2**32 - 1")
        for name, known in (("gaps", GAPS), ("stream", get_args(Stream))):
            value = getattr(self, name)
            if value not in known:
                raise AnyRNNError(
                    f"{self.caller}: got {name}={value!r}, expected one of {', '.join(known)}."
                    f"{did_you_mean(str(value), known)}"
                )

    @property
    def absent(self) -> Missing | None:
        """What is missing."""
        return Missing.given(self.missing, self.gaps)


def dataset_of(
    own: Parsed,
    given_test: Callable[[Parsed], tuple[Parsed | None, str]],
    chosen: Choices,
    *,
    name: str,
    attribution: str | None = None,
    id_column: str | None = None,
    time_column: str | None = None,
    group_column: str | None = None,
) -> Dataset:
    """Split what was read, and say what there is to say about it.

    Args:
        own: What was read.
        given_test: The test part that is not ours to choose, if there is one, and a sentence about it.
        chosen: What the caller decided.
        name: Of the dataset; this and the others as there.
        attribution: Whom to name.
        id_column: Which named the sequences.
        time_column: Which sorted the steps.
        group_column: Which named the groups.
    """
    if len(own.x) < 2:
        raise AnyRNNError(
            f"{own.path}: there is one sequence only, expected at least two, to train on one and test on another"
            + ("" if id_column is None else f"; does column {id_column!r} say to which sequence a row belongs?")
        )
    own, task, notes = task_of(own, chosen.task)
    classes = classes_of(own) if task == "classification" else None
    train = encoded(own, classes)
    if classes is None and train.y.amin() == train.y.amax():
        apart = len(set(own.targets or ())) > 1
        raise AnyRNNError(
            f"{own.path}: target {own.target!r} is {train.y[0]:.17g} for every sequence"
            + (", as far as float64 can tell: take a constant off it" if apart else ": there is nothing to predict")
        )
    given, how = given_test(own)
    if given is None:
        train, held_out, how = split(train, classes, own, chosen.test_fraction, chosen.seed)
    else:
        held_out = encoded(given, classes, trained_on=own.path)
        _check_overlap(train, held_out, given)
    train, chosen_by, how_validated = split_validation(train, classes, chosen.validation, chosen.seed)
    if own.reading is not None and own.reading.words:
        own, given, train, chosen_by, held_out = with_words_of(train, own, given, chosen_by, held_out)
    absent = chosen.absent
    dataset = Dataset(
        name=name,
        features=own.features,
        classes=classes,
        target=own.target,
        train=train,
        test=held_out,
        split=f"{how}; {how_validated}",
        attribution=attribution,
        id_column=id_column,
        time_column=time_column,
        missing=None if absent is None else absent.texts,
        validation=chosen_by,
        group_column=group_column,
        gaps=chosen.gaps,
        reading=own.reading,
    )
    if classes is not None:
        notes = (*notes, *notes_on_classes(own, classes))
    of_test = () if given is None else tuple(note for note in given.notes if note not in own.notes)
    files = (own,) if given is None else (own, given)
    notes = (*own.notes, *of_test, *notes, *notes_on_sequences(files, train, chosen_by, held_out, dataset.scaler))
    return dataclasses.replace(dataset, notes=notes)


def load_for_prediction(
    source: Source,
    *,
    features: Sequence[str],
    classes: Sequence[str] | None,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | None = None,
    missing: str | float | Sequence[str | float] | None = None,
    trained_time: str | None = None,
    trained_reading: Reading | None = None,
    encoding: str | None = None,
    stream: Stream = "auto",
) -> Unseen:
    """Read sequences for a model that is already trained; they need no target.

    Args:
        source: A path or a frame as for `load`; "japanese-vowels" is its test part.
        features: The model's features: by name in a table, by number in a .ts file, which has no names.
        classes: The model's classes, None if it predicts a number.
        id_column: As for `load`; this and the other columns are not looked at for a .ts file.
        time_column: As for `load`.
        target_column: As for `load`. If the file has it, the result says of which sequences the truth is known, so
            that their predictions can be scored, and why that of others is not.
        missing: As for `load`; for a model, `scaler.missing`.
        trained_time: The column that sorted the rows in training. Without a `time_column` it sorts these as well,
            and it is noted if it is not there.
        trained_reading: What was made of the columns in training: `reading` of a dataset or a model. None: each is a
            feature.
        encoding: As for `load`.
        stream: As for `load`.

    Raises:
        AnyRNNError: The file does not fit the model.
    """
    known = trained_reading or Reading(tuple(features))
    columns = Columns(
        id_column,
        time_column,
        target_column,
        known.columns,
        trained_time,
        reading=known,
        delta_time=known.delta_time,
    )
    parsed = parsed_source(
        source_of(source, columns),
        columns,
        part="TEST",
        need_target=False,
        owner="the model",
        missing=Missing.named(missing),
        encoding=encoding,
        stream=stream,
    )
    if len(parsed.features) != len(features):
        raise AnyRNNError(
            f"{parsed.path}: got {len(parsed.features)} channels, expected {len(features)}, the features of the "
            f"model: {listed(features)}"
        )
    return unseen(parsed, classes, label_of)


def _check_overlap(train: Sequences, test: Sequences, given: Parsed) -> None:
    """A sequence of the same id and values in both parts makes the test score a memory test."""
    known = {id_: k for k, id_ in enumerate(train.ids)}
    for k, (id_, place) in enumerate(zip(test.ids, given.where, strict=True)):
        if id_ in known and torch.equal(test.x[k].nan_to_num(), train.x[known[id_]].nan_to_num()):
            raise AnyRNNError(
                f"{place}: this sequence is in the training file too, with the same id and the same values; "
                "expected a test part that training does not see: take it out of one of the files"
            )
