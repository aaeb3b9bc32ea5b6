"""The command line: `anyrnn compare`, `fit`, `predict`, `bench` and `doctor`.

Each command reads its arguments, calls the functions that Python users call, and shows what they return. An
`AnyRNNError` becomes one line on stderr and exit status 2, an interrupt one sentence and exit status 130 (143 for
SIGTERM); 1 says that something could not be written where it was to go.
"""

import csv
import errno
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.bench import PEERS, Setting, bench
from anyrnn.workbench.compare import Results, compare, fit
from anyrnn.workbench.data import Dataset, load, load_for_prediction
from anyrnn.workbench.doctor import diagnose
from anyrnn.workbench.gaps import Gaps
from anyrnn.workbench.keeping import Ended, ending_in_order, keep, undisturbed
from anyrnn.workbench.metrics import CLASS_METRICS, NUMBER_METRICS
from anyrnn.workbench.models import COMPARED, KNOWN, NETWORKS, Pool
from anyrnn.workbench.notes import notes_on_unseen
from anyrnn.workbench.parsed import Task
from anyrnn.workbench.progress import Progress, shown
from anyrnn.workbench.runs import check_destination, open_run
from anyrnn.workbench.schedules import Schedule
from anyrnn.workbench.terminal import Output, outlive
from anyrnn.workbench.train import LEAST_EPOCHS, Settings, score
from anyrnn.workbench.written import check_file, csv_text, write_file

INTERRUPTED = 130  # 128 + SIGINT, what shells give a command that Ctrl-C ended
UNWRITTEN = 1

out_stream, error_stream = Output("stdout"), Output("stderr")
console = Console(file=cast("IO[str]", out_stream), highlight=False, markup=False)
errors = Console(file=cast("IO[str]", error_stream), highlight=False, markup=False)


class _Group(TyperGroup):
    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, whatever stdout and stderr are."""
        out_stream.failed = error_stream.failed = None
        with outlive(UNWRITTEN):
            return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and turn what the user can put right into one line."""
        try:
            with ending_in_order():
                result = super().invoke(ctx)
        except AnyRNNError as error:
            _complain(error)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            _interrupted(interrupt, "Nothing was written.")
        out_stream.flush()
        if out_stream.failed is not None:
            if out_stream.failed.errno != errno.EPIPE:  # whose reader has seen enough
                _complain(f"stdout: not all could be written: {out_stream.reason}")
            raise typer.Exit(UNWRITTEN)
        return result


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help keeps the examples in their lines and fits 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="japanese-vowels (comes with anyrnn), a UCR/UEA .ts file, or a long .csv, .tsv or .parquet table with "
        "one row for each step of each sequence; .gz of text.",
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        help="The file with the test part. Without it X_TRAIN.ts takes X_TEST.ts from its folder, and anything "
        "else is split by sequence, 30% for the test."
    ),
]
IdColumn = Annotated[str | None, typer.Option("--id", help="Tables: the column that names the sequence of a row.")]
TimeColumn = Annotated[
    str | None, typer.Option("--time", help="Tables: the column that orders the rows of a sequence.")
]
Target = Annotated[str | None, typer.Option(help="Tables: the column to predict.")]
Features = Annotated[
    str | None,
    typer.Option(
        help="Tables: the columns to predict from, with commas, a name that has one in quotes: "
        "'\"flow, m3/s\",pulse'. Without it: all others."
    ),
]
MissingOption = Annotated[
    str | None,
    typer.Option(
        "--missing",
        help="Values that mean missing, with commas, such as -9999,NA. They, and empty cells, are filled with the last "
        "value of the sequence, or the training mean. Without it a missing value is refused.",
    ),
]
GapsOption = Annotated[
    Gaps,
    typer.Option(
        "--gaps",
        help="What a network gets for missing values: a filling; a mask beside it; or also the time since each feature "
        "was seen (in steps, or by --delta-time). The last two take empty cells for missing.",
    ),
]
DeltaTime = Annotated[
    bool, typer.Option("--delta-time", help="The time since the step before is one more feature; --time names it.")
]
EncodingOption = Annotated[
    str | None,
    typer.Option("--encoding", help="Of a text file that is not in UTF-8, such as latin-1 or cp1252."),
]
TaskOption = Annotated[
    Task | None, typer.Option(help="Predict classes or a number, where the file's own answer is not wanted.")
]
Epochs = Annotated[
    int | None,
    typer.Option(help=f"Passes over the training part.  [default: {LEAST_EPOCHS}, more if the sequences are few]"),
]
Hidden = Annotated[int, typer.Option(help="Units of each layer and direction.")]
BatchSize = Annotated[int, typer.Option(help="Sequences an update.")]
LearningRate = Annotated[float, typer.Option(help="Adam's, the highest of the schedule.")]
ScheduleOption = Annotated[
    Schedule,
    typer.Option(
        help="Of the learning rate: up and down to nothing, or down, over all epochs; halved where the validation "
        "loss falls no more; the same throughout."
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="End after so many epochs without a better validation score.  [default: 10 for plateau and constant]"
    ),
]
Validation = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Of the training part, set aside to choose the epoch by; 0: none, and the last epoch it is.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"What chooses epochs and networks. For classes: {', '.join(CLASS_METRICS)}; for a number: "
        f"{', '.join(NUMBER_METRICS)}.  [default: the first]",
    ),
]
Balanced = Annotated[
    bool, typer.Option("--balanced", help="Weigh classes by the inverse of their frequency: rare ones count as much.")
]
Layers = Annotated[int, typer.Option(help="One upon the other, of networks that do not say so themselves.")]
Bidirectional = Annotated[
    bool, typer.Option("--bidirectional", help="A second direction, from the end, in each layer.")
]
Dropout = Annotated[float, typer.Option(help="Share of features dropped between layers and before the classifier.")]
RecurrentDropout = Annotated[
    float, typer.Option(help="Share of the state dropped where a product takes it, the same at all steps.")
]
WeightDecay = Annotated[float, typer.Option(help="Of AdamW, on matrices.")]
ClipNorm = Annotated[float, typer.Option(help="The norm that the gradient of an update is cut to.")]
ClipGradient = Annotated[
    float | None,
    typer.Option(help="Limit of the gradient of the state between two steps.  [default: none]", show_default=False),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--group",
        help="Tables: the column with the engine, patient or site of a sequence, whose sequences stay in one part.",
    ),
]
PoolOption = Annotated[
    Pool, typer.Option(help="What the classifier sees of a sequence: the last output, or the mean or max of all.")
]
Threads = Annotated[
    int | None,
    typer.Option(help="CPU threads.  [default: 1 up to 256 units, where more do not pay; else all]"),
]
Out = Annotated[
    Path | None,
    typer.Option(help="The run folder to write.  [default: runs/NAME, numbered if it is there]", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it holds a run, and nothing else.")]

_AS_TRAINED = "  [default: as in training]"
_DEFAULT = Settings()
_BENCH = Setting()


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"anyrnn {anyrnn.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Which recurrent network should I use on my sequences?

    \b
    Start with:
      anyrnn compare japanese-vowels
      anyrnn compare --help
    """  # noqa: D301 - \b keeps the lines of the examples


@app.command("compare")
def compare_command(
    data: Data,
    test: Test = None,
    cells: Annotated[
        str,
        typer.Option(
            help=f"Networks, with commas, of {', '.join(KNOWN)}. module:Class is a cell of your own, called as "
            "Class(input_size, hidden_size), in a module that is installed or in the current directory."
        ),
    ] = ",".join(COMPARED),
    seeds: Annotated[int, typer.Option(help="Training runs of each network, for the spread.")] = 3,
    epochs: Epochs = None,
    hidden: Hidden = _DEFAULT.hidden_size,
    batch_size: BatchSize = _DEFAULT.batch_size,
    learning_rate: LearningRate = _DEFAULT.learning_rate,
    pool: PoolOption = _DEFAULT.pool,
    threads: Threads = None,
    id_column: IdColumn = None,
    time_column: TimeColumn = None,
    target: Target = None,
    features: Features = None,
    task: TaskOption = None,
    missing: MissingOption = None,
    gaps: GapsOption = "fill",
    delta_time: DeltaTime = False,
    encoding: EncodingOption = None,
    group: GroupOption = None,
    validation: Validation = 0.2,
    schedule: ScheduleOption = _DEFAULT.schedule,
    patience: Patience = None,
    metric: MetricOption = None,
    balanced: Balanced = False,
    layers: Layers = _DEFAULT.layers,
    bidirectional: Bidirectional = False,
    dropout: Dropout = _DEFAULT.dropout,
    recurrent_dropout: RecurrentDropout = _DEFAULT.recurrent_dropout,
    weight_decay: WeightDecay = _DEFAULT.weight_decay,
    clip_norm: ClipNorm = _DEFAULT.clip_norm,
    clip_gradient: ClipGradient = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Train several networks alike and show which one wins.

    All learn from the same split with the same budget, over several seeds. Beside them stand baselines that any
    network has to beat. Nothing is chosen by looking at the test part.

    \b
    Examples:
      anyrnn compare japanese-vowels
      anyrnn compare Heartbeat_TRAIN.ts --cells lstm,my_cells:Leaky --seeds 5
      anyrnn compare steps.csv --id patient --time hour --target outcome
    """  # noqa: D301 - \b keeps the lines of the examples
    dataset = _dataset(
        data,
        test,
        id_column,
        time_column,
        target,
        features,
        task,
        missing,
        group,
        validation,
        gaps,
        delta_time,
        encoding,
    )
    settings = Settings(
        hidden,
        epochs,
        batch_size,
        learning_rate,
        pool=pool,
        threads=threads,
        schedule=schedule,
        patience=patience,
        metric=metric,
        balanced=balanced,
        layers=layers,
        bidirectional=bidirectional,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        clip_gradient=clip_gradient,
    )

    def train(tell: Callable[[Progress], None], on_network: Callable[[Results], None]) -> Results:
        return compare(
            dataset,
            _listed(cells),
            seeds=seeds,
            settings=settings,
            command=_command(),
            on_epoch=tell,
            on_network=on_network,
        )

    _train_and_save(dataset, train, out, overwrite)


@app.command("fit")
def fit_command(
    data: Data,
    cell: Annotated[str, typer.Option(help=f"One of {', '.join(KNOWN)}, or module:Class.")] = "lstm",
    test: Test = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the shuffling.")] = 0,
    epochs: Epochs = None,
    hidden: Hidden = _DEFAULT.hidden_size,
    batch_size: BatchSize = _DEFAULT.batch_size,
    learning_rate: LearningRate = _DEFAULT.learning_rate,
    pool: PoolOption = _DEFAULT.pool,
    threads: Threads = None,
    id_column: IdColumn = None,
    time_column: TimeColumn = None,
    target: Target = None,
    features: Features = None,
    task: TaskOption = None,
    missing: MissingOption = None,
    gaps: GapsOption = "fill",
    delta_time: DeltaTime = False,
    encoding: EncodingOption = None,
    group: GroupOption = None,
    validation: Validation = 0.2,
    schedule: ScheduleOption = _DEFAULT.schedule,
    patience: Patience = None,
    metric: MetricOption = None,
    balanced: Balanced = False,
    layers: Layers = _DEFAULT.layers,
    bidirectional: Bidirectional = False,
    dropout: Dropout = _DEFAULT.dropout,
    recurrent_dropout: RecurrentDropout = _DEFAULT.recurrent_dropout,
    weight_decay: WeightDecay = _DEFAULT.weight_decay,
    clip_norm: ClipNorm = _DEFAULT.clip_norm,
    clip_gradient: ClipGradient = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Train one network, and keep it for `anyrnn predict`.

    \b
    Examples:
      anyrnn fit japanese-vowels --cell gru --out runs/vowels
      anyrnn fit steps.csv --id patient --time hour --target outcome
    """  # noqa: D301 - \b keeps the lines of the examples
    dataset = _dataset(
        data,
        test,
        id_column,
        time_column,
        target,
        features,
        task,
        missing,
        group,
        validation,
        gaps,
        delta_time,
        encoding,
    )
    settings = Settings(
        hidden,
        epochs,
        batch_size,
        learning_rate,
        pool=pool,
        threads=threads,
        schedule=schedule,
        patience=patience,
        metric=metric,
        balanced=balanced,
        layers=layers,
        bidirectional=bidirectional,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        clip_gradient=clip_gradient,
    )

    def train(tell: Callable[[Progress], None], _: Callable[[Results], None]) -> Results:
        return fit(dataset, cell, seed=seed, settings=settings, command=_command(), on_epoch=tell)

    _train_and_save(dataset, train, out, overwrite)


@app.command("predict")
def predict_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that compare or fit wrote.")],
    data: Data,
    model: Annotated[
        str | None, typer.Option(help="Which network of a comparison.  [default: the best]", show_default=False)
    ] = None,
    cells: Annotated[
        str | None,
        typer.Option(
            help="Cells of your own, module:Class with commas, that the models may have. Without it no code but "
            "anyrnn's is run, whatever DIR says."
        ),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help=f"Tables: the column that names the sequence of a row.{_AS_TRAINED}")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option("--time", help=f"Tables: the column that orders the rows of a sequence.{_AS_TRAINED}")
    ] = None,
    target: Annotated[str | None, typer.Option(help=f"Tables: the column with the truth.{_AS_TRAINED}")] = None,
    encoding: EncodingOption = None,
    out: Annotated[Path | None, typer.Option(help="A .csv file to write; without it, stdout.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Predict for new sequences with a trained network.

    The output is CSV in UTF-8: id, prediction and, for classes, its probability, then that of each class. If the
    file has true answers, they stand beside, and the score of the sequences that have one is shown on stderr.

    \b
    Examples:
      anyrnn predict runs/vowels new.ts > predictions.csv
      anyrnn predict runs/steps tomorrow.csv --out predictions.csv
    """  # noqa: D301 - \b keeps the lines of the examples
    if out is not None:
        check_file(out, overwrite)
    _keep_off_path(folder)
    own = [*([] if cells is None else _listed(cells)), *([] if model is None else [model])]  # what this line names
    trained = open_run(folder, cells=own).model(model)
    inputs = load_for_prediction(
        data,
        features=trained.features,
        classes=trained.classes,
        id_column=id_column or trained.id_column,
        time_column=time_column,
        target_column=target or trained.target,
        missing=trained.scaler.missing,
        trained_time=trained.time_column,
        trained_reading=trained.reading,
        encoding=encoding,
    )
    predictions = trained.predict(inputs.x)
    text = csv_text(inputs, predictions, trained.classes)
    if out is not None:
        write_file(out, text, overwrite)
    elif out_stream.isatty():
        out_stream.write(text)
    else:
        out_stream.write_bytes(text.encode("utf-8", "backslashreplace"))
    for note in (*inputs.notes, *notes_on_unseen(inputs, trained.features, trained.scaler)):
        errors.print(note, soft_wrap=True)
    if inputs.truth is not None:
        name = "rmse" if trained.classes is None else "accuracy"
        value = score([predictions.values[k] for k in inputs.known], inputs.truth, trained.classes)
        of_all = "" if len(inputs.known) == len(inputs) else f" of {len(inputs)}"
        errors.print(f"{name} {value:.4g} on {len(inputs.known)}{of_all} sequences", soft_wrap=True)


@app.command("bench")
def bench_command(
    cell: Annotated[str, typer.Option(help=f"One of {', '.join(NETWORKS)}, or module:Class.")] = _BENCH.cell,
    hidden: Annotated[int, typer.Option(help="Units.")] = _BENCH.hidden_size,
    input_size: Annotated[int, typer.Option("--input", help="Features.")] = _BENCH.input_size,
    batch: Annotated[int, typer.Option(help="Sequences a call.")] = _BENCH.batch_size,
    steps: Annotated[int, typer.Option(help="Steps of each sequence.")] = _BENCH.steps,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Lengths from 1 to the number of steps, in place of all the same.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads, the same for all.  [default: as many as PyTorch takes]")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(PEERS)}, with commas.  [default: those installed, but compile: it is slow]"),
    ] = None,
    seconds: Annotated[float, typer.Option(help="To spend on each time, about.")] = _BENCH.seconds,
) -> None:
    """Measure a layer on this machine, beside other ways to compute it.

    All get the same weights and input, have to give the same results, and are timed in turns. `pip install
    'anyrnn[bench]'` adds ONNX Runtime and XLA (JAX).

    \b
    Examples:
      anyrnn bench --cell gru --hidden 128
      anyrnn bench --cell my_cells:Leaky --batch 1 --threads 1
      anyrnn bench --ragged --peers torch.nn
    """  # noqa: D301 - \b keeps the lines of the examples
    wanted = None if peers is None else tuple(_listed(peers))
    setting = Setting(cell, hidden, input_size, batch, steps, ragged, threads, wanted, seconds)
    with console.status("measuring, which takes some seconds for each peer"):
        found = bench(setting)
    _say(str(found))


@app.command("doctor")
def doctor_command() -> None:
    """Show versions, threads, engines, and where things are kept.

    \b
    Example:
      anyrnn doctor
    """  # noqa: D301 - \b keeps the lines of the examples
    section = ""
    for finding in diagnose():
        if finding.section != section:
            section = finding.section
            console.print(section, style="bold")
        console.print(f"  {finding.subject:<14} {finding.found}", soft_wrap=True)


def _say(text: str, style: str | None = None) -> None:
    """Print a line, broken between words on a terminal and not at all elsewhere."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def _dataset(
    data: str,
    test: str | None,
    id_column: str | None,
    time_column: str | None,
    target: str | None,
    features: str | None,
    task: Task | None,
    missing: str | None,
    group: str | None,
    validation: float,
    gaps: Gaps,
    delta_time: bool,
    encoding: str | None,
) -> Dataset:
    dataset = load(
        data,
        test=test,
        id_column=id_column,
        time_column=time_column,
        target_column=target,
        feature_columns=None if features is None else _listed(features),
        task=task,
        missing=None if missing is None else _listed(missing),
        validation=validation,
        group_column=group,
        gaps=gaps,
        delta_time=delta_time,
        encoding=encoding,
    )
    _say(str(dataset))
    for note in (f"Split: {dataset.split}", *dataset.notes):
        _say(note, style="dim")
    return dataset


def _train_and_save(
    dataset: Dataset,
    train: Callable[[Callable[[Progress], None], Callable[[Results], None]], Results],
    out: Path | None,
    overwrite: bool,
) -> None:
    """Train; show what came out, then save it. What was finished outlives whatever comes in between."""
    folder, numbered = out or Path("runs", dataset.name), out is None and not overwrite
    check_destination(folder.with_name(f"{folder.name}-2") if numbered and folder.exists() else folder, overwrite)
    finished: list[Results] = []
    try:
        with shown(console) as tell:
            finished.append(train(tell, finished.append))
        _show(finished[-1])
        kept = keep(finished[-1], folder, overwrite=overwrite, numbered=numbered)
    except KeyboardInterrupt as interrupt:
        if not finished:
            raise
        with undisturbed():
            _interrupted(interrupt, _keep(finished[-1], folder))
    except BaseException:
        if finished:
            errors.print(_keep(finished[-1], folder), soft_wrap=True)
        raise
    if kept.folder is not None:
        _say(f"Report: {kept.folder / 'report.html'}")
        own = finished[-1].best.model.network.name
        named = f" --cells {shlex.quote(own)}" if own not in KNOWN else ""
        _say(f"Predict with the best one: anyrnn predict {shlex.quote(str(kept.folder))} DATA{named}")
    if kept.trouble is not None:
        _complain(kept)
        raise typer.Exit(UNWRITTEN)


def _show(results: Results) -> None:
    console.print()
    if console.is_terminal:
        console.print(results)
    else:
        _say(results.table())
    console.print()
    for sentence in (results.verdict, *results.remarks):
        _say(sentence)


def _keep(finished: Results, folder: Path) -> str:
    """Save the networks that have had all their runs beside the place of the whole run, and say so."""
    kept = keep(finished, folder.absolute().with_name(f"{folder.absolute().name}.partial"), numbered=True)
    names = ", ".join(entry.model.network.title for entry in finished.entries)
    if kept.folder is None:
        return f"The networks that had all their runs ({names}) are lost: {kept}"
    with suppress(ValueError):
        kept = replace(kept, folder=kept.folder.relative_to(Path.cwd()))
    return f"The networks that had all their runs ({names}) are kept in {kept.folder}; nothing else was written."


def _interrupted(interrupt: KeyboardInterrupt, kept: str) -> NoReturn:
    what, status = ("Interrupted", INTERRUPTED)
    if isinstance(interrupt, Ended):
        what, status = f"Ended by {interrupt.name}", interrupt.status
    errors.print(f"{what}. {kept}", soft_wrap=True)
    raise typer.Exit(status)


def _complain(error: object) -> None:
    message = " ".join(line.strip() for line in str(error).splitlines())
    errors.print(f"anyrnn: {message}", soft_wrap=True)


def _command() -> str:
    return shlex.join(["anyrnn", *sys.argv[1:]])


def _listed(names: str) -> list[str]:
    """Names between commas; one that has a comma itself is put in quotes: '"flow, m3/s",pressure'."""
    return [name.strip() for name in next(csv.reader([names], skipinitialspace=True), []) or [""]]


def _keep_off_path(folder: Path) -> None:
    """Import nothing from a run folder from now on, though someone stands in it: `python -m` has put it first."""
    within = folder.resolve()
    sys.path[:] = [place for place in sys.path if not Path(place or ".").resolve().is_relative_to(within)]
