"""Every option of the command line, declared once: its word in Python, its word here, its type, its help.

The name of an option is its word in the Python API: a field of the settings of a task, or an argument of its `load`,
`fit` or `compare`. By that name `tasks.py` finds out for which tasks it is, and what its default is. Its flag is the
name without _size, _column or _columns; the whole name is understood, too.

To add an option, add it to the Python API, declare it here under the same name, and put it into a list at the end.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyrnn.workbench.bench import PEERS
from anyrnn.workbench.metrics import CLASS_METRICS, NUMBER_METRICS
from anyrnn.workbench.models import COMPARED, NETWORKS, Pool
from anyrnn.workbench.parsed import Task
from anyrnn.workbench.schedules import Schedule
from anyrnn.workbench.train import LEAST_EPOCHS


@dataclass(frozen=True)
class Option:
    """An option, or an argument, of some commands.

    Attributes:
        name: Its word in Python.
        flag: Its word on the command line; "" of an argument.
        kind: The type of its value.
        section: The part of the help that lists it.
        help: What it is for.
        metavar: What stands for its value in the help, if not its type.
        several: Whether its value is a list, with commas.
        default: What the help says of its default, where the Python API does not say it in one value.
    """

    name: str
    flag: str
    kind: Any
    section: str
    help: str
    metavar: str | None = None
    several: bool = False
    default: str | None = None

    @property
    def word(self) -> str:
        """How messages and configuration files name it."""
        return self.flag.removeprefix("--") or self.name


def listed(names: str) -> list[str]:
    """Names between commas; one that has a comma itself is put in quotes: '"flow, m3/s",pressure'."""
    return [name.strip() for name in next(csv.reader([names], skipinitialspace=True), []) or [""]]


def joined(names: Iterable[object]) -> str:
    """The other way round."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


_DATA, _TABLES, _NETWORK, _TRAINING, _RUN = _SECTIONS = ("Data", "Tables", "Network", "Training", "Run")

DATA = Option(
    "source", "", str, _DATA,
    "japanese-vowels (comes with anyrnn), a UCR/UEA .ts file, or a long .csv or .parquet table with one row for each "
    "step of each sequence.",
    metavar="DATA",
)  # fmt: skip
TEST = Option(
    "test", "--test", str, _DATA,
    "The file with the test part. Without it X_TRAIN.ts takes X_TEST.ts from its folder, and anything else is split "
    "by sequence, 30% for the test.",
)  # fmt: skip
TASK = Option(
    "task", "--task", Task, _DATA, "Predict classes or a number, where the file's own answer is not wanted."
)  # fmt: skip
VALIDATION = Option(
    "validation", "--validation", float, _DATA,
    "Of the training part, set aside to choose the epoch by; 0: none, and the last epoch it is.",
    metavar="SHARE",
)  # fmt: skip

ID = Option("id_column", "--id", str, _TABLES, "The column that names the sequence of a row.")
TIME = Option("time_column", "--time", str, _TABLES, "The column that orders the rows of a sequence.")
TARGET = Option("target_column", "--target", str, _TABLES, "The column to predict.")
FEATURES = Option(
    "feature_columns", "--features", str, _TABLES,
    "The columns to predict from, with commas, a name that has one in quotes: '\"flow, m3/s\",pulse'. Without it: all "
    "others.",
    several=True,
)  # fmt: skip
MISSING = Option(
    "missing", "--missing", str, _TABLES,
    "Values that mean missing, with commas, such as -9999,NA. They, and empty cells, are filled with the last value of "
    "the sequence, or the training mean. Without it a missing value is refused.",
    several=True,
)  # fmt: skip
GROUP = Option(
    "group_column", "--group", str, _TABLES,
    "The column with the engine, patient or site of a sequence, whose sequences stay in one part.",
)  # fmt: skip

CELL = Option("cell", "--cell", str, _NETWORK, f"One of {', '.join(NETWORKS)}, or module:Class.")
CELLS = Option(
    "cells", "--cells", str, _NETWORK,
    f"Networks, with commas, of {', '.join(NETWORKS)}. module:Class is a cell of your own, called as Class(input_size, "
    "hidden_size), in a module that is installed or in the current directory.",
    several=True,
    default=",".join(COMPARED),
)  # fmt: skip
HIDDEN = Option("hidden_size", "--hidden", int, _NETWORK, "Units of each layer and direction.")
LAYERS = Option("layers", "--layers", int, _NETWORK, "One upon the other, of networks that do not say so themselves.")
BIDIRECTIONAL = Option(
    "bidirectional", "--bidirectional", bool, _NETWORK, "A second direction, from the end, in each layer."
)
POOL = Option(
    "pool", "--pool", Pool, _NETWORK,
    "What the classifier sees of a sequence: the last output, or the mean or max of all.",
)  # fmt: skip

SEED = Option("seed", "--seed", int, _TRAINING, "Of the initial weights and the shuffling.")
SEEDS = Option("seeds", "--seeds", int, _TRAINING, "Training runs of each network, for the spread.")
EPOCHS = Option(
    "epochs", "--epochs", int, _TRAINING, "Passes over the training part.",
    default=f"{LEAST_EPOCHS}, more if the sequences are few",
)  # fmt: skip
BATCH_SIZE = Option("batch_size", "--batch-size", int, _TRAINING, "Sequences an update.")
LEARNING_RATE = Option("learning_rate", "--learning-rate", float, _TRAINING, "Adam's, the highest of the schedule.")
SCHEDULE = Option(
    "schedule", "--schedule", Schedule, _TRAINING,
    "Of the learning rate: up and down to nothing, or down, over all epochs; halved where the validation loss falls no "
    "more; the same throughout.",
)  # fmt: skip
PATIENCE = Option(
    "patience", "--patience", int, _TRAINING,
    "End after so many epochs without a better validation score.",
    default="10 for plateau and constant",
)  # fmt: skip
METRIC = Option(
    "metric", "--metric", str, _TRAINING,
    f"What chooses epochs and networks. For classes: {', '.join(CLASS_METRICS)}; for a number: "
    f"{', '.join(NUMBER_METRICS)}.",
    metavar="NAME",
    default="the first",
)  # fmt: skip
BALANCED = Option(
    "balanced", "--balanced", bool, _TRAINING,
    "Weigh classes by the inverse of their frequency: rare ones count as much.",
)  # fmt: skip
DROPOUT = Option(
    "dropout", "--dropout", float, _TRAINING, "Share of features dropped between layers and before the classifier."
)
RECURRENT_DROPOUT = Option(
    "recurrent_dropout", "--recurrent-dropout", float, _TRAINING,
    "Share of the state dropped where a product takes it, the same at all steps.",
)  # fmt: skip
WEIGHT_DECAY = Option("weight_decay", "--weight-decay", float, _TRAINING, "Of AdamW, on matrices.")
CLIP_NORM = Option(
    "clip_norm", "--clip-norm", float, _TRAINING, "The norm that the gradient of an update is cut to."
)  # fmt: skip
CLIP_GRADIENT = Option(
    "clip_gradient", "--clip-gradient", float, _TRAINING, "Limit of the gradient of the state between two steps.",
    default="none",
)  # fmt: skip
THREADS = Option(
    "threads", "--threads", int, _TRAINING, "CPU threads.",
    default="1 up to 256 units, where more do not pay; else all",
)  # fmt: skip

OUT = Option(
    "out", "--out", Path, _RUN, "The run folder to write.", default="runs/NAME, numbered if it is there"
)  # fmt: skip
OVERWRITE = Option("overwrite", "--overwrite", bool, _RUN, "Replace OUT if it holds a run, and nothing else.")

#: What `fit` and `compare` have in common, in the order of their help.
TRAINING = (
    DATA, TEST, TASK, VALIDATION,
    ID, TIME, TARGET, FEATURES, MISSING, GROUP,
    HIDDEN, LAYERS, BIDIRECTIONAL, POOL,
    EPOCHS, BATCH_SIZE, LEARNING_RATE, SCHEDULE, PATIENCE, METRIC, BALANCED, DROPOUT, RECURRENT_DROPOUT, WEIGHT_DECAY,
    CLIP_NORM, CLIP_GRADIENT, THREADS,
    OUT, OVERWRITE,
)  # fmt: skip
FIT = tuple(sorted((CELL, SEED, *TRAINING), key=lambda option: _SECTIONS.index(option.section)))
COMPARE = tuple(sorted((CELLS, SEEDS, *TRAINING), key=lambda option: _SECTIONS.index(option.section)))

_AS_TRAINED = "as in training"
RUN = Option("folder", "", Path, _RUN, "A folder that compare or fit wrote.", metavar="DIR")
MODEL = Option("model", "--model", str, _RUN, "Which network of a comparison.", default="the best")
OWN_CELLS = replace(
    CELLS,
    section=_RUN,
    help="Cells of your own, module:Class with commas, that the models may have. Without it no code but anyrnn's is "
    "run, whatever DIR says.",
    default=None,
)
PREDICT = (
    RUN, DATA,
    replace(ID, default=_AS_TRAINED),
    replace(TIME, default=_AS_TRAINED),
    replace(TARGET, help="The column with the truth.", default=_AS_TRAINED),
    MODEL, OWN_CELLS,
    replace(OUT, help="A .csv file to write; without it, stdout.", default=None),
    replace(OVERWRITE, help="Replace OUT if it is there."),
)  # fmt: skip

_LAYER, _TIMING = "Layer", "Timing"
BENCH = (
    replace(CELL, section=_LAYER),
    replace(HIDDEN, section=_LAYER, help="Units."),
    Option("input_size", "--input", int, _LAYER, "Features."),
    replace(BATCH_SIZE, section=_LAYER, help="Sequences a call."),
    Option("steps", "--steps", int, _LAYER, "Steps of each sequence."),
    Option(
        "ragged", "--ragged", bool, _LAYER, "Lengths from 1 to the number of steps, in place of all the same."
    ),
    replace(
        THREADS, section=_TIMING, help="CPU threads, the same for all.", default="as many as PyTorch takes"
    ),
    Option(
        "peers", "--peers", str, _TIMING, f"Of {', '.join(PEERS)}, with commas.", several=True,
        default="those installed, but compile: it is slow",
    ),
    Option("seconds", "--seconds", float, _TIMING, "To spend on each time, about."),
)  # fmt: skip

#: By another way to write a word, the word: what is in Python `hidden_size`, and in older scripts `--batch`.
OTHER_WORDS = {
    option.name.replace("_", "-"): option.word for option in (*FIT, *COMPARE, *BENCH) if option.flag
} | {"batch": "batch-size"}  # fmt: skip


def usual_word(word: str) -> str:
    """The word of an option however it was written: `hidden` for hidden_size."""
    dashed = word.replace("_", "-")
    return OTHER_WORDS.get(dashed, dashed)
