"""Predictions for every step of a file: as CSV, and scored as far as the file has the truth."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.columns import Columns
from anyrnn.workbench.names import listed
from anyrnn.workbench.notes import notes_on_unseen
from anyrnn.workbench.parsed import Missing, Value, number
from anyrnn.workbench.reading import Reading
from anyrnn.workbench.sequences import Inputs, Scaler
from anyrnn.workbench.tagging.load import Read, encoded, is_table, read_steps
from anyrnn.workbench.tagging.model import StepPredictions, TrainedTagger
from anyrnn.workbench.tagging.steps import Steps
from anyrnn.workbench.tagging.words import Words
from anyrnn.workbench.targets import label_of


@dataclass(frozen=True)
class Predicted:
    """What a tagger says about the steps of a file.

    Attributes:
        read: What the file holds.
        said: The predictions for each sequence.
        scores: By all metrics, over the steps whose truth is known; empty if that is none.
        scored: How many these are.
        steps: How many steps there are.
        notes: What reading took for granted, and what the network has not seen in training.
    """

    read: Read
    said: tuple[StepPredictions, ...]
    scores: dict[str, float]
    scored: int
    steps: int
    notes: tuple[str, ...]
    classes: tuple[str, ...] | None

    def csv(self) -> str:
        """As CSV, a line for each step.

        Its sequence, its row (or line) in the file, the word if it is one, the prediction, for classes its
        probability, the truth if the file has some, and the probability of each class, p(NAME).
        """
        words, truths = self.read.table is None, self.read.targets or ()
        has_truth = any(value is not None for values in truths for value in values)
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            (
                *(("sentence", "line", "word") if words else ("id", "row")),
                *("prediction", *(() if self.classes is None else ("probability",))),
                *(("truth",) if has_truth else ()),
                *(f"p({name})" for name in self.classes or ()),
            )
        )
        for k, (name, rows, x, said) in enumerate(
            zip(self.read.ids, self.read.rows, self.read.x, self.said, strict=True)
        ):
            columns: list[Sequence[Any]] = [(name,) * len(rows), rows, *([x] if words else []), said.texts]
            if said.probabilities is not None:
                columns.append([f"{value:.4f}" for value in said.probabilities.amax(1).tolist()])
            if has_truth:
                columns.append(["" if value is None else label_of(value) for value in truths[k]])
            if said.probabilities is not None:
                columns += [[f"{value:.4f}" for value in each] for each in said.probabilities.T.tolist()]
            writer.writerows(zip(*columns, strict=True))
        return file.getvalue()

    @property
    def verdict(self) -> str:
        """The scores in a line; "" if no truth is known."""
        if not self.scores:
            return ""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items() if math.isfinite(value))
        of_all = "" if self.scored == self.steps else f" of {self.steps:,}"
        return f"{numbers} on {self.scored:,}{of_all} step{'s' if self.steps > 1 else ''}"


def predict(
    model: TrainedTagger,
    source: str | Path,
    *,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | None = None,
    encoding: str | None = None,
) -> Predicted:
    """Predict every step of a file, and score the steps whose truth it has.

    Args:
        model: From a run folder, or from the results of training.
        source: A table if the model was trained on one, else a text of tokens, with tags or without.
        id_column: As in training if None.
        time_column: As in training if None, if it is there.
        target_column: The column with the truth; as in training if None, if it is there.
        encoding: The name of that of a text file; None: UTF-8.

    Raises:
        AnyRNNError: The file does not fit the model.
    """
    has_words = isinstance(model.reader, Words)
    if is_table(source, named=not has_words) is has_words:
        expected = "a text of tokens" if has_words else "a .csv, .tsv or .parquet table"
        raise AnyRNNError(f"{source}: expected {expected}, as the model was trained on")
    if has_words and (id_column or time_column or target_column):
        raise AnyRNNError(
            f"{source}: a text of tokens and tags has no columns to name; leave out --id, --time and --target"
        )
    reading = model.reading or Reading(model.features)
    columns = Columns(
        None if has_words else id_column or model.id_column,
        time_column,
        target_column or model.target,
        reading.columns,
        model.time_column,
        reading=None if has_words else reading,
        delta_time=reading.delta_time,
    )
    read = read_steps(source, columns, Missing.named(model.missing), trained=True, encoding=encoding)
    said = tuple(model.predict(read.x))
    known, notes = _truth(read, model.classes)
    steps = sum(map(len, read.x))
    scores: dict[str, float] = {}
    scored = 0 if known is None else known.labelled
    if known is not None and scored:
        pairs = zip(said, known.known, strict=True)
        answers = np.concatenate([np.array(each.values)[where.numpy()] for each, where in pairs])
        scores = known.scorer(model.classes).scores(answers)
        if scored < steps:
            notes.append(
                f"{steps - scored:,} of {steps:,} steps have no truth that is known: predicted, but not scored"
            )
    notes = [*read.notes, *notes, *_strange(model, read)]
    return Predicted(read, said, scores, scored, steps, tuple(notes), model.classes)


def _truth(read: Read, classes: Sequence[str] | None) -> tuple[Steps | None, list[str]]:
    """The targets that the model could predict; and a note on those that it cannot."""
    if read.targets is None:
        return None, []
    index = {name: k for k, name in enumerate(classes or ())}
    strange: dict[str, None] = {}
    found: list[list[Value]] = []
    numbers: list[float] = []
    for values in read.targets:
        kept: list[Value] = []
        for value in values:
            number_ = None if value is None else _number(value) if classes is None else index.get(label_of(value))
            if value is not None and number_ is None:
                strange[label_of(value)] = None
            if number_ is not None:
                numbers.append(number_)
            kept.append(number_)
        found.append(kept)
    notes = []
    if strange:
        expected = "numbers" if classes is None else f"one of {listed(tuple(index))}"
        notes.append(
            f"{read.path}: targets {listed(tuple(map(repr, strange)))} are none that the model can predict, expected "
            f"{expected}: steps of them are not scored"
        )
    y = encoded(found, numbers, classes=classes is not None, like=read.x)
    return Steps(tuple(read.x), y, read.ids), notes


def _number(value: Value) -> float | None:
    found = number(value) if isinstance(value, str) else None if value is None else float(value)
    return found if found is not None and math.isfinite(found) else None


def _strange(model: TrainedTagger, read: Read) -> list[str]:
    """What the network has not seen in training: words that are not known, numbers far from those of training."""
    reader: Any = model.reader
    if isinstance(reader, Scaler):
        x = tuple(torch.as_tensor(each) for each in read.x)
        return list(notes_on_unseen(Inputs(x, None, read.ids), model.features, reader))
    words = [word for sentence in read.x for word in sentence]
    unknown = sum(not reader.knows(word) for word in words)
    if not unknown:
        return []
    return [
        f"{unknown:,} of {len(words):,} words ({unknown / len(words):.1%}) are none that the network knows: it goes by "
        "their ends, their shape, and what stands around them"
    ]
