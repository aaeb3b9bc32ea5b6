"""Every option of the command line, declared once: its word in Python, its word here, its type, its help.

The name of an option is its word in the Python API: a field of the settings of a task, or an argument of its `load`,
`fit` or `compare`. By that name `tasks.py` finds out for which tasks it is, and what its default is. Its flag is the
name without _size, _column or _columns; the whole name is understood, too.

To add an option, add it to the Python API, declare it here under the same name, and put it into a list at the end.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from anyrnn.workbench.bench import PEERS
from anyrnn.workbench.forecast.model import Head
from anyrnn.workbench.forecast.results import CHOICES
from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.language.text import Level
from anyrnn.workbench.metrics import CLASS_METRICS, NUMBER_METRICS
from anyrnn.workbench.models import COMPARED, KNOWN, Pool
from anyrnn.workbench.parsed import Task
from anyrnn.workbench.schedules import Schedule
from anyrnn.workbench.streamed import Stream
from anyrnn.workbench.tagging.load import Answers
from anyrnn.workbench.tagging.results import COMPARED as TAGGERS
from anyrnn.workbench.tagging.scores import SPAN_METRICS
from anyrnn.workbench.train import LEAST_EPOCHS
from anyrnn.workbench.tune import SIZES as SIZES_TRIED
from anyrnn.workbench.tune import TRIALS as TRIALS_DONE

#: What `--task` says. Those beside `Task` have functions of their own in Python.
AnyTask = Literal[Task, "forecast", "text", "tagging"]


@dataclass(frozen=True)
class Option:
    """An option, or an argument, of some commands.

    Attributes:
        name: Its word in Python.
        flag: Its word on the command line; "" of an argument.
        kind: The type of its value; of one of them, if it takes several.
        section: The part of the help that lists it.
        help: What it is for.
        example: A value, for the files that `anyrnn init` writes; None: its default is one.
        metavar: What stands for its value in the help, if not its type.
        several: Whether its value is a list, with commas.
        or_list: Whether it is a text in which some tasks read a list.
        default: What the help says of its default, where the Python API does not say it in one value.
        elsewhere: By what messages call tasks of another kind, the default there, where it is another one.
        values: What the shell completes.
    """

    name: str
    flag: str
    kind: Any
    section: str
    help: str
    example: Any = None
    metavar: str | None = None
    several: bool = False
    or_list: bool = False
    default: str | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    values: tuple[str, ...] = ()

    def default_of(self, tasks: str) -> str | None:
        """The default for tasks of one kind."""
        return self.elsewhere.get(tasks, self.default)

    @property
    def word(self) -> str:
        """How configuration files name it."""
        return self.flag.removeprefix("--") or (self.metavar or self.name).lower()


def listed(names: str) -> list[str]:
    """Names between commas; one that has a comma itself is put in quotes: '"flow, m3/s",pressure'."""
    return [name.strip() for name in next(csv.reader([names], skipinitialspace=True), []) or [""]]


def joined(names: Iterable[object]) -> str:
    """The other way round."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


_SECTIONS = ("Data", "Tables", "Tagging", "Forecasts", "Texts", "Network", "Training", "Run")
_DATA, _TABLES, _TAGGING, _FORECASTS, _TEXTS, _NETWORK, _TRAINING, _RUN = _SECTIONS

DATA = Option(
    "source", "", str, _DATA,
    "japanese-vowels (comes with anyrnn), a UCR/UEA .ts file, a long .csv, .tsv or .parquet table with one row for "
    "each step of each sequence (.gz of what is text), a text (.txt, .md), or tagged words (.conll, .iob, .bio).",
    metavar="DATA", example="steps.csv",
)  # fmt: skip
TASK = Option(
    "task", "--task", AnyTask, _DATA,
    "What to learn, where DATA does not say it: classes or a number of each sequence; with tagging of each step, from "
    "a table with a target in every row, or a text with a word and its tag in a line; how series go on (--horizon says "
    "so, too); a text, whatever the name of its file.",
    example="classification",
)  # fmt: skip
ENCODING = Option(
    "encoding", "--encoding", str, _DATA, "That of a file of text that is not in UTF-8, such as latin-1 or cp1252.",
    example="latin-1",
)  # fmt: skip
TEST = Option(
    "test", "--test", str, _DATA,
    "The file with the test part. Without it X_TRAIN.ts takes X_TEST.ts from its folder, and of anything else a part "
    "is set aside: whole sequences, or the end of a text.",
    example="test.csv",
)  # fmt: skip
TEST_FRACTION = Option("test_fraction", "--test-fraction", float, _DATA, "The share of that part.", metavar="SHARE")
VALIDATION = Option(
    "validation", "--validation", float, _DATA,
    "Of the training part, set aside to choose the epoch by. Of sequences 0 means none, and the last epoch it is.",
    metavar="SHARE",
)  # fmt: skip

ID = Option(
    "id_column", "--id", str, _TABLES, "The column that names the sequence, or the series, of a row.",
    example="patient",
)  # fmt: skip
TIME = Option("time_column", "--time", str, _TABLES, "The column that orders the rows of a sequence.", example="hour")
TARGET = Option(
    "target_column", "--target", str, _TABLES,
    "The column to predict. Of a table with a column for each series, all of these, with commas.",
    example="outcome", or_list=True,
)  # fmt: skip
FEATURES = Option(
    "feature_columns", "--features", str, _TABLES,
    "The columns to predict from, with commas, a name that has one in quotes: '\"flow, m3/s\",pulse'. Without it: all "
    "others.",
    several=True, example=["pulse", "pressure"],
)  # fmt: skip
MISSING = Option(
    "missing", "--missing", str, _TABLES,
    "Values that mean missing, with commas, such as -9999,NA. They, and empty cells, are filled with the last value of "
    "the sequence, or the training mean. Without it a missing value is refused.",
    several=True, example=[-9999, "NA"],
)  # fmt: skip
GAPS = Option(
    "gaps", "--gaps", Gaps, _TABLES,
    "What a network gets for missing values: a filling; a mask beside it; or also the time since each feature was seen "
    "(in steps, or by --delta-time). The last two take empty cells for missing.",
)  # fmt: skip
DELTA_TIME = Option(
    "delta_time", "--delta-time", bool, _TABLES,
    "The time since the step before is one more feature; --time names it.",
)  # fmt: skip
STREAM = Option(
    "stream", "--stream", Stream, _TABLES,
    "Read a .parquet table in pieces and keep its steps on the disk (in TMPDIR, or /var/tmp), with the same results: "
    "always, never, or if it would take more than half of the memory.",
)  # fmt: skip
GROUP = Option(
    "group_column", "--group", str, _TABLES,
    "The column with the engine, patient or site of a sequence, whose sequences stay in one part.",
    example="site",
)  # fmt: skip

ANSWERS = Option(
    "answers", "--answers", Answers, _TAGGING,
    "Predict classes or numbers at each step, where the file's own answer is not wanted.",
    example="numbers",
)  # fmt: skip
CAUSAL = Option(
    "causal", "--causal", bool, _TAGGING,
    "The answer at a step may depend on nothing that comes after it; bidirectional networks are refused.",
)  # fmt: skip
VALIDATION_FILE = Option(
    "validation_file", "--validation-file", str, _TAGGING,
    "The file with the validation part, in place of a share.",
    example="dev.conll",
)  # fmt: skip
WORD_DROPOUT = Option(
    "word_dropout", "--word-dropout", float, _TAGGING, "Share of words that are taken for unknown ones in training."
)

HORIZON = Option(
    "horizon", "--horizon", int, _FORECASTS, "How many steps of each series to forecast.", metavar="STEPS", example=24
)
SEASON = Option(
    "season", "--season", int, _FORECASTS,
    "The steps of a season, such as 24 for hours: what the seasonal naive forecast repeats.",
    metavar="STEPS",
)  # fmt: skip
PAST = Option(
    "past_columns", "--past", str, _FORECASTS,
    "Columns that are known up to the origin of a forecast only, with commas.",
    several=True, example=["price"],
)  # fmt: skip
FUTURE = Option(
    "future_columns", "--future", str, _FORECASTS,
    "Columns that are known ahead, as a calendar is, with commas.",
    several=True, example=["holiday"],
)  # fmt: skip
STATIC = Option(
    "static_columns", "--static", str, _FORECASTS,
    "Columns that are the same in all rows of a series, with commas.",
    several=True, example=["size"],
)  # fmt: skip
TEST_STEPS = Option(
    "test_steps", "--test-steps", int, _FORECASTS, "The steps at the end of each series for the test.",
    metavar="STEPS", default="a fifth of the shortest series", example=48,
)  # fmt: skip
VALIDATION_STEPS = Option(
    "validation_steps", "--validation-steps", int, _FORECASTS, "Those before them that choose the epoch.",
    metavar="STEPS", default="likewise", example=48,
)  # fmt: skip
CONTEXT = Option(
    "context", "--context", int, _FORECASTS, "The steps that are read before a forecast.",
    metavar="STEPS", default="two seasons or horizons, 48 at least", example=48,
)  # fmt: skip
HEAD = Option(
    "head", "--head", Head, _FORECASTS,
    "All steps of a forecast at once, or one by one, each read as the next value.",
)  # fmt: skip
QUANTILES = Option(
    "quantiles", "--quantiles", float, _FORECASTS,
    "The quantiles to forecast, with commas, 0.5 among them; '' for the mean.",
    several=True,
)  # fmt: skip

LEVEL = Option("level", "--level", Level, _TEXTS, "What is read at a step. A rare word is spelled.")
LEAST = Option("least", "--least", int, _TEXTS, "How often a word has to occur in training not to be spelled.")
EMBEDDING = Option("embedding_size", "--embedding", int, _TEXTS, "Features of a token, or of a word.")
STEPS = Option("steps", "--steps", int, _TEXTS, "The tokens of a chunk, through which gradients go back.")

CELL = Option(
    "cell", "--cell", str, _NETWORK,
    f"One of {', '.join(KNOWN)}, or module:Class, a cell of your own.",
    values=tuple(KNOWN), default="lstm", elsewhere={"tagging": "bilstm, or lstm with --causal"},
    example="lstm",
)  # fmt: skip
CELLS = Option(
    "cells", "--cells", str, _NETWORK,
    f"Networks, with commas, of {', '.join(KNOWN)}. module:Class is a cell of your own, called as Class(input_size, "
    "hidden_size), in a module that is installed or in the current directory.",
    several=True, values=tuple(KNOWN),
    default=",".join(COMPARED), elsewhere={"tagging": ",".join(TAGGERS), "forecasts": "lstm", "texts": "lstm"},
    example=["lstm", "gru"],
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
WORKERS = Option(
    "workers", "--workers", int, _TRAINING,
    "Training runs at once, each in a process of its own, with its own THREADS and the data in memory. The scores are "
    "the same.",
)  # fmt: skip
SCHEDULER = Option(
    "scheduler", "--scheduler", str, _TRAINING,
    "A Dask scheduler, whose workers do the training runs, one each at a time: pip install 'anyrnn[dask]'. The scores "
    "are the same.",
    metavar="ADDRESS", example="tcp://host:8786",
)  # fmt: skip
EPOCHS = Option(
    "epochs", "--epochs", int, _TRAINING, "Passes over the training part, at most.",
    default=f"{LEAST_EPOCHS}, more if the sequences are few",
    elsewhere={"forecasts": "30", "texts": "10, more if short"},
    example=20,
)  # fmt: skip
BATCH_SIZE = Option(
    "batch_size", "--batch-size", int, _TRAINING, "Sequences, windows of series or rows of text an update."
)
LEARNING_RATE = Option("learning_rate", "--learning-rate", float, _TRAINING, "Adam's, the highest of the schedule.")
SCHEDULE = Option(
    "schedule", "--schedule", Schedule, _TRAINING,
    "Of the learning rate: up and down to nothing, or down, over all epochs; halved where the validation loss falls no "
    "more; the same throughout.",
)  # fmt: skip
PATIENCE = Option(
    "patience", "--patience", int, _TRAINING,
    "End after so many epochs without a better validation score.",
    default="10 for plateau and constant", elsewhere={"forecasts": "5", "texts": "3"}, example=10,
)  # fmt: skip
METRIC = Option(
    "metric", "--metric", str, _TRAINING,
    f"What chooses epochs and networks. For classes: {', '.join(CLASS_METRICS)}; for a number: "
    f"{', '.join(NUMBER_METRICS)}; for tags of spans (BIO, BIOES): {', '.join(SPAN_METRICS)}; for "
    f"forecasts, networks alone: {', '.join(CHOICES)}.",
    metavar="NAME", default="the first", example="accuracy",
    elsewhere={"tagging": "span-f1, macro-f1 or rmse", "forecasts": "mase"},
    values=(*CLASS_METRICS, *NUMBER_METRICS, *SPAN_METRICS, *CHOICES),
)  # fmt: skip
BALANCED = Option(
    "balanced", "--balanced", bool, _TRAINING,
    "Weigh classes by the inverse of their frequency: rare ones count as much.",
)  # fmt: skip
DROPOUT = Option(
    "dropout", "--dropout", float, _TRAINING,
    "Share of features dropped between layers and before the linear one on top."
)  # fmt: skip
RECURRENT_DROPOUT = Option(
    "recurrent_dropout", "--recurrent-dropout", float, _TRAINING,
    "Share of the state dropped where a product takes it, the same at all steps.",
)  # fmt: skip
WEIGHT_DECAY = Option("weight_decay", "--weight-decay", float, _TRAINING, "Of AdamW, on matrices.")
CLIP_NORM = Option("clip_norm", "--clip-norm", float, _TRAINING, "The norm that the gradient of an update is cut to.")
CLIP_GRADIENT = Option(
    "clip_gradient", "--clip-gradient", float, _TRAINING, "Limit of the gradient of the state between two steps.",
    default="none", example=1.0,
)  # fmt: skip
THREADS = Option(
    "threads", "--threads", int, _TRAINING, "CPU threads.",
    default="1 up to 256 units, where more do not pay, else all",
    elsewhere={"forecasts": "1", "texts": "all"}, example=1,
)  # fmt: skip

OUT = Option(
    "out", "--out", Path, _RUN, "The run folder to write.", default="runs/NAME, numbered if it is there",
    example="runs/mine",
)  # fmt: skip
OVERWRITE = Option("overwrite", "--overwrite", bool, _RUN, "Replace OUT if it holds a run, and nothing else.")
RESUME = Option(
    "resume", "--resume", bool, _RUN,
    "Go on with this run in OUT where it was cut off, to the same numbers; begin it, if it was not yet.",
)  # fmt: skip

#: What `fit` and `compare` have in common.
_TRAINED = (
    DATA, TASK, ENCODING, TEST, TEST_FRACTION, VALIDATION,
    ID, TIME, TARGET, FEATURES, MISSING, GAPS, DELTA_TIME, GROUP, STREAM,
    ANSWERS, CAUSAL, VALIDATION_FILE, WORD_DROPOUT,
    HORIZON, SEASON, PAST, FUTURE, STATIC, TEST_STEPS, VALIDATION_STEPS, CONTEXT, HEAD, QUANTILES,
    LEVEL, LEAST, EMBEDDING, STEPS,
    HIDDEN, LAYERS, BIDIRECTIONAL, POOL,
    EPOCHS, BATCH_SIZE, LEARNING_RATE, SCHEDULE, PATIENCE, METRIC, BALANCED, DROPOUT, RECURRENT_DROPOUT, WEIGHT_DECAY,
    CLIP_NORM, CLIP_GRADIENT, THREADS,
    OUT, OVERWRITE, RESUME,
)  # fmt: skip


def _in_order(*options: Option) -> tuple[Option, ...]:
    return tuple(sorted(options, key=lambda option: _SECTIONS.index(option.section)))


SIZES = Option(
    "sizes", "--sizes", int, _NETWORK, "The fewest and the most units of a layer, with a comma.", metavar="FEW,MANY",
    several=True, default=f"{SIZES_TRIED[0]},{SIZES_TRIED[1]}", example=list(SIZES_TRIED),
)  # fmt: skip
TRIALS = Option(
    "trials", "--trials", int, _TRAINING, "How many networks to try.", default=f"{TRIALS_DONE}", example=TRIALS_DONE
)

FIT = _in_order(CELL, SEED, SCHEDULER, *_TRAINED)
COMPARE = _in_order(CELLS, SEEDS, WORKERS, SCHEDULER, *_TRAINED)
_OF_SEQUENCES = [each for each in _TRAINED if each.section not in {_TAGGING, _FORECASTS, _TEXTS}]
#: What `tune` says of options that are for other tasks as well elsewhere.
_TUNED = {
    "source": replace(
        DATA,
        help="japanese-vowels (comes with anyrnn), a UCR/UEA .ts file, or a long .csv, .tsv or .parquet table with one "
        "row for each step of each sequence (.gz of what is text).",
    ),
    "task": replace(
        TASK, help="A class or a number of each sequence, where DATA does not say it.",
        metavar="classification|regression",
    ),
    "test": replace(
        TEST,
        help="The file with the test part. Without it X_TRAIN.ts takes X_TEST.ts from its folder, and of anything else "
        "whole sequences are set aside.",
    ),
    "validation": replace(VALIDATION, help="Of the training part, set aside to choose trials and epochs by."),
    "id_column": replace(ID, help="The column that names the sequence of a row."),
    "target_column": replace(TARGET, help="The column to predict."),
    "batch_size": replace(BATCH_SIZE, help="Sequences an update."),
    "metric": replace(
        METRIC,
        help=f"What chooses trials and epochs. For classes: {', '.join(CLASS_METRICS)}; for a number: "
        f"{', '.join(NUMBER_METRICS)}.",
        values=(*CLASS_METRICS, *NUMBER_METRICS),
    ),
    "out": replace(OUT, default="runs/NAME-tuned, numbered if it is there"),
}  # fmt: skip
TUNE = _in_order(CELLS, SIZES, TRIALS, *(_TUNED.get(each.name, each) for each in _OF_SEQUENCES if each is not HIDDEN))

_AS_TRAINED = "as in training"
RUN = Option("folder", "", Path, _RUN, "A folder that compare or fit wrote.", metavar="RUN", example="runs/steps")
MODEL = Option(
    "model", "--model", str, _RUN, "Which network of a comparison.", default="the best", example="lstm",
    values=tuple(KNOWN),
)  # fmt: skip
OWN_CELLS = replace(
    CELLS,
    section=_RUN,
    help="Cells of your own, module:Class with commas, that the models may have. Without it no code but anyrnn's is "
    "run, whatever RUN says.",
    default=None,
    elsewhere={},
    values=(),
)
PREDICT = (
    RUN,
    replace(DATA, help="New data, of the kind that RUN was trained on."),
    replace(ID, default=_AS_TRAINED),
    replace(TIME, default=_AS_TRAINED),
    replace(TARGET, help="The column with the truth, or with the values so far.", default=_AS_TRAINED),
    ENCODING,
    replace(STREAM, default="auto"),
    MODEL, OWN_CELLS,
    replace(OUT, help="A .csv file to write; without it, stdout.", default=None),
    replace(OVERWRITE, help="Replace OUT if it is there."),
)  # fmt: skip

_WRITING = "Writing"
GENERATE = (
    replace(RUN, help="A folder that compare or fit wrote for a text."),
    Option("prompt", "--prompt", str, _WRITING, "What the text goes on from; it is not written again."),
    Option("length", "--length", int, _WRITING, "How many characters, or words, to write."),
    Option(
        "temperature", "--temperature", float, _WRITING,
        "How daring the network is: 0 takes the likeliest character always, above 1 it dares more than it learned.",
    ),
    replace(
        SEED, section=_WRITING, help="The same seed gives the same text.", default="another text every time",
        example=0,
    ),
    MODEL, OWN_CELLS,
)  # fmt: skip

_LAYER, _TIMING = "Layer", "Timing"
BENCH = (
    replace(CELL, section=_LAYER, elsewhere={}),
    replace(HIDDEN, section=_LAYER, help="Units."),
    Option("input_size", "--input", int, _LAYER, "Features."),
    replace(BATCH_SIZE, section=_LAYER, help="Sequences a call."),
    replace(STEPS, section=_LAYER, help="Steps of each sequence."),
    Option("ragged", "--ragged", bool, _LAYER, "Lengths from 1 to the number of steps, in place of all the same."),
    replace(
        THREADS, section=_TIMING, help="CPU threads, the same for all.", default="as many as PyTorch takes",
        elsewhere={},
    ),
    Option(
        "peers", "--peers", str, _TIMING, f"Of {', '.join(PEERS)}, with commas.", several=True,
        default="those installed, but compile: it is slow", values=PEERS,
    ),
    Option("seconds", "--seconds", float, _TIMING, "To spend on each time, about."),
)  # fmt: skip

INIT = (
    replace(TASK, section=_RUN, help="What is to be learned.", default="classification"),
    Option(
        "command", "--command", Literal["fit", "compare"], _RUN, "Which command the file is for.", default="fit"
    ),
    replace(OUT, help="The file to write.", default="run.toml"),
    replace(OVERWRITE, help="Replace OUT if it is there."),
)  # fmt: skip

#: By the command, what may stand in its configuration file.
CONFIGURED = {"compare": COMPARE, "fit": FIT, "tune": TUNE, "predict": PREDICT, "generate": GENERATE, "bench": BENCH}

#: By another way to write a word, the word: the `hidden_size` of Python is --hidden, and --batch is --batch-size.
_OTHER_WORDS = {
    option.name.replace("_", "-"): option.word for options in CONFIGURED.values() for option in options if option.flag
} | {"batch": "batch-size"}


def usual_word(word: str) -> str:
    """The word of an option, however it was written: `hidden` for hidden_size."""
    dashed = word.replace("_", "-")
    return _OTHER_WORDS.get(dashed, dashed)
