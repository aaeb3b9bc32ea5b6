"""Train several networks over several seeds on one dataset, beside baselines, and hold the results.

Everything shown or saved later, by the table, the report and the run folder, is read from `Results.to_dict()`.
"""

import math
import platform
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch import nn

import anyrnn
from anyrnn import markup
from anyrnn.errors import AnyRNNError
from anyrnn.explain import explain
from anyrnn.layers import Layer
from anyrnn.workbench.baselines import Baseline, baselines
from anyrnn.workbench.checkpoint import warn
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.doctor import machine
from anyrnn.workbench.fingerprint import check_same, identity
from anyrnn.workbench.inspect import flow, gates
from anyrnn.workbench.lesson import EpochEnd
from anyrnn.workbench.metrics import Metric
from anyrnn.workbench.metrics_log import MetricsLog
from anyrnn.workbench.models import COMPARED, Model, Network, network
from anyrnn.workbench.overview import described
from anyrnn.workbench.places import HERE, Place, place
from anyrnn.workbench.processes import world
from anyrnn.workbench.progress import Progress, notebook_display, shown
from anyrnn.workbench.report import render
from anyrnn.workbench.runs import save_run
from anyrnn.workbench.stored import FORMAT, save_model
from anyrnn.workbench.train import Question, Run, SequenceLesson, Settings, step_microseconds, using_threads
from anyrnn.workbench.unfinished import UnfinishedRun
from anyrnn.workbench.verdict import Comparison, answer, overfitting
from anyrnn.workbench.work import Job

Callback = Callable[[Mapping[str, Any]], object]  # is called with what a line of metrics.jsonl has

_SEEDS = 2**63  # what torch takes
_COSTS = ("epoch", "parameters", "training", "µs a step")  # a narrow terminal loses the first ones first
_LISTED = 3  # epochs in a cell of the table
_LEAST_NAME = 12  # characters of a name in a line; below that it takes a line of its own


class Trained(Protocol):
    """What a model of any task has."""

    @property
    def network(self) -> Network:
        """Which one."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    @property
    def layer(self) -> Layer:
        """Its recurrent layer."""


D = TypeVar("D", bound=Question)
M = TypeVar("M", bound=Trained)


@dataclass(frozen=True)
class Entry(Generic[M]):
    """One network of a comparison, over all seeds.

    Attributes:
        model: The trained network of the first seed, which is the one that is saved. It is not the best seed: that
            would be a choice made by looking at the test part.
        parameters: The number of trained parameters, the head's among them.
        engines: Which engines run its layers.
        step_microseconds: For one step of the layer at batch size 1.
        runs: One for each seed.
    """

    model: M
    parameters: int
    engines: tuple[str, ...]
    step_microseconds: float
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, trained: Sequence[tuple[M, Run]], input_size: int) -> Self:
        """What is known of a network after all its runs."""
        model = trained[0][0]
        explained = explain(model.layer, torch.zeros(2, 2, input_size), lengths=[2, 1])
        return cls(
            model=model,
            parameters=sum(p.numel() for p in model.module.parameters() if p.requires_grad),
            engines=tuple(dict.fromkeys(part.engine for part in explained.parts)),
            step_microseconds=step_microseconds(model.layer, input_size),
            runs=tuple(run for _, run in trained),
        )

    @property
    def score_mean(self) -> float:
        """The mean score over the seeds."""
        return statistics.mean(run.score for run in self.runs)

    @property
    def score_std(self) -> float | None:
        """The sample standard deviation over the seeds; None with one seed."""
        return statistics.stdev(run.score for run in self.runs) if len(self.runs) > 1 else None

    @property
    def epochs(self) -> str:
        """The epochs whose weights were kept, of the runs from the first to the last."""
        found = [run.epoch for run in self.runs]
        if len(set(found)) == 1:
            return str(found[0])
        return ", ".join(map(str, found)) if len(found) <= _LISTED else f"{min(found)} to {max(found)}"

    @property
    def train_seconds(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(run.seconds for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""
        names = self.runs[0].scores
        means = {name: statistics.fmean(run.scores[name] for run in self.runs) for name in names}
        return {
            "name": self.model.network.name,
            "title": self.model.network.title,
            "layer": repr(self.model.layer),
            "parameters": self.parameters,
            "engines": list(self.engines),
            "score_mean": self.score_mean,
            "score_std": self.score_std,
            "train_seconds": self.train_seconds,
            "step_microseconds": self.step_microseconds,
            "scores": known_scores(means),
            "runs": [{**asdict(run), "scores": known_scores(run.scores)} for run in self.runs],
        }


@dataclass(frozen=True, repr=False)
class Outcome(ABC, Generic[D, M]):
    """What came out of training networks for any task: `print` shows the table, `save` writes the run folder.

    Attributes:
        dataset: What was learned.
        settings: With which recipe; nothing in it is left open.
        seeds: The seeds of the runs.
        entries: One for each network that was finished, in the order asked for.
        baselines: What to beat.
        unfinished: The names of the networks that were asked for and are not there: () unless interrupted.
        command: What was run.
    """

    dataset: D
    settings: Settings
    seeds: tuple[int, ...]
    entries: tuple[Entry[M], ...]
    baselines: tuple[Baseline, ...]
    unfinished: tuple[str, ...]
    command: str

    @abstractmethod
    def save(self, folder: str | Path, *, overwrite: bool = False, numbered: bool = False) -> Path:
        """Write the run folder."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them."""

    @property
    @abstractmethod
    def conditions(self) -> str:
        """Under which the scores were reached, in a line."""

    def with_entry(self, entry: Entry[M]) -> Self:
        """These results and those of the next network."""
        return replace(self, entries=(*self.entries, entry), unfinished=self.unfinished[1:])

    @property
    def metric(self) -> str:
        """What is scored, such as "accuracy" or "rmse"."""
        return self._metric.name

    @property
    def _metric(self) -> Metric:
        return self.settings.metric_for(self.dataset)

    @property
    def best(self) -> Entry[M]:
        """The network with the best mean score; of equals, the first."""
        sign = self._metric.sign
        return max(self.entries, key=lambda e: sign * e.score_mean if math.isfinite(e.score_mean) else -math.inf)

    @property
    def verdict(self) -> str:
        """The answer in a sentence: the one at the head of the report."""
        return str(answer(self._comparison))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else the curves say, a sentence each: which networks are overfitting."""
        return tuple(overfitting(self._comparison))

    @cached_property
    def _comparison(self) -> Comparison:
        return Comparison(self.to_dict())

    def table(self) -> str:
        """The table of the results as text."""
        console = Console(file=StringIO(), width=120)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        """The table, too: that of the fields would hold the whole dataset."""
        return self.table()

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer, the table, and under which conditions."""
        rows = [(name, value, *costs, mark) for (name, value, mark, *costs), _ in self._rows()]
        best = [style.startswith("bold") for _, style in self._rows()]
        return markup.page(
            markup.line(self.verdict),
            markup.table(("network", f"test {self.metric}", *_COSTS, ""), rows, best),
            markup.line(self.conditions),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table; on a narrow terminal with fewer columns, but never without the names and the scores."""
        rows = self._rows()
        first = 0  # of the costs that have room
        while first < len(_COSTS) and _width(rows[: len(self.entries)], first) > options.max_width:
            first += 1
        score = max(len(row[1]) for row, _ in rows)
        if options.max_width < _LEAST_NAME + score + max(len(row[2]) for row, _ in rows) + 4:
            for (name, value, mark, *_), style in rows:  # a name above its score
                yield Text(f"{name}\n  {value} {mark}".rstrip(), style=style, overflow="fold")
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("network", overflow="fold")
        table.add_column(f"test {self.metric}", justify="right", min_width=score, overflow="fold")
        for title in _COSTS[first:]:
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for (name, value, mark, *cells), style in rows:
            table.add_row(name, value, *cells[first:], mark, style=style)
        yield table

    def _rows(self) -> list[tuple[tuple[str, ...], str]]:
        """Of each row of the table the name, the score, the mark and the costs; and its style."""
        comparison = self._comparison
        rows: list[tuple[tuple[str, ...], str]] = []
        for entry in self.entries:
            mark = comparison.mark(entry.model.network.name)
            score = self._text(entry.score_mean, entry.score_std)
            costs = (
                entry.epochs,
                f"{entry.parameters:,}",
                f"{entry.train_seconds:.1f} s",
                f"{entry.step_microseconds:.1f}",
            )
            style = "bold green" if mark == "best" else ""
            rows.append(((entry.model.network.title, score, mark, *costs), style))
        none = ("",) * len(_COSTS)
        return rows + [((b.name, self._text(b.score), "baseline", *none), "dim") for b in self.baselines]

    def _text(self, mean: float, std: float | None = None) -> str:
        if not math.isfinite(mean):
            return "–"
        form = ".3f" if self._metric.percent and self.dataset.classes is not None else ".4g"
        return f"{mean:{form}}" + ("" if std is None else f" ± {std:{form}}")


class Results(Outcome[Dataset, Model]):
    """The outcome of a comparison on whole sequences: see `Outcome`."""

    @property
    def conditions(self) -> str:
        """Under which the scores were reached, in a line."""
        data, settings = self.dataset, self.settings
        return (
            f"{data.name}: {len(data.train)} training and {len(data.test)} test sequences, {len(self.seeds)} "
            f"seed{'s' if len(self.seeds) > 1 else ''}, {settings.epochs} epochs, hidden size {settings.hidden_size}"
        )

    def save(self, folder: str | Path, *, overwrite: bool = False, numbered: bool = False) -> Path:
        """Write the run folder: results.json, the models, report.html.

        Args:
            folder: Where; made if it is not there.
            overwrite: Replace the folder if it holds a run, and nothing else.
            numbered: Write to the first of FOLDER, FOLDER-2, FOLDER-3, ... that is free.

        Returns:
            The folder.

        Raises:
            AnyRNNError: if something else is there already, or the disk is full or fails.
        """
        results = self.to_dict()
        test = self.dataset.test
        longest = max(range(len(test)), key=lambda k: len(test.x[k]))  # the one with most to see
        models = [entry.model for entry in self.entries]
        flows = {model.network.name: flow(model, test) for model in models}
        report = render(results, gates(self.best.model, test, longest), flows)
        return save_run(Path(folder), results, models, report, save_model, overwrite=overwrite, numbered=numbered)

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them, the one source of the table and the report."""
        data = self.dataset
        steps = [len(x) for part in data.parts for x in part.x]
        return {
            "format": FORMAT,
            "anyrnn": anyrnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": self.settings.threads,
            "machine": machine(),
            "command": self.command,
            "dataset": {
                "name": data.name,
                "task": data.task,
                "target": data.target,
                "features": list(data.features),
                "classes": None if data.classes is None else list(data.classes),
                "train": len(data.train),
                "validation": 0 if data.validation is None else len(data.validation),
                "test": len(data.test),
                "shortest": min(steps),
                "longest": max(steps),
                "split": data.split,
                "attribution": data.attribution,
                "id_column": data.id_column,
                "time_column": data.time_column,
                "group_column": data.group_column,
                "gaps": data.gaps,
                "notes": list(data.notes),
                "overview": described(data),
            },
            "settings": asdict(self.settings),
            "metric": {
                "name": self.metric,
                "higher_is_better": self._metric.higher_is_better,
                "percent": self._metric.percent,
            },
            "seeds": list(self.seeds),
            "models": [_entry_dict(entry, data) for entry in self.entries],
            "unfinished": list(self.unfinished),
            "baselines": [
                {"name": b.name, **known_scores({"score": b.score}), "scores": known_scores(b.scores)}
                for b in self.baselines
            ],
            "test_ids": list(data.test.ids),
            "test_targets": data.test.y.tolist(),
            "test_groups": None if data.test.groups is None else list(data.test.groups),
            "best": self.best.model.network.name,
        }


def compare(
    dataset: Dataset,
    cells: Sequence[str] = COMPARED,
    *,
    seeds: int = 3,
    settings: Settings | None = None,
    command: str = "anyrnn.workbench.compare",
    on_epoch: Callable[[Progress], None] | None = None,
    on_network: Callable[[Results], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    workers: int = 1,
    scheduler: str | None = None,
) -> Results:
    """Train each network with each seed, all on the same split with the same budget.

    Args:
        dataset: From `load`.
        cells: Names of networks, or "module:Class" for cells of one's own.
        seeds: How many training runs a network gets, with the seeds 0, 1, ...
        settings: The budget; the defaults if None.
        command: What the results name as the command that made them.
        on_epoch: Called after each epoch.
        on_network: Called with the results so far when a network has had all its runs.
        progress: Whether to show how far it is: a bar that is updated in place in a notebook or on a terminal,
            elsewhere a line for each run on the standard output. If None, in a notebook only.
        folder: Where the run is kept as it goes, and saved at the end; None: nowhere. (An `UnfinishedRun` is saved and
            finished by the caller.)
        resume: If the run was begun in `folder` and cut off, go on with it, to the same numbers, bit for bit, and train
            nothing again that was finished; else begin it.
        overwrite: Replace a run in `folder`.
        callbacks: Each is called after each epoch with what a line of `metrics.jsonl` has; at the end its `close`, if
            it has one. See `anyrnn.workbench.callbacks`. (Of several processes, those of the first one.)
        workers: How many training runs go on at once, each in a process of its own with the threads of the settings
            and the data in its memory. The results are the same, bit for bit; what is told comes as it happens, of
            several runs in turns. A script needs ``if __name__ == "__main__":`` around what it does, since each
            process imports it.
        scheduler: The address of a Dask scheduler, such as "tcp://host:8786", whose workers do the training runs, one
            each at a time, to the same results; the run folder stays here. It needs ``pip install 'anyrnn[dask]'``.

    Raises:
        AnyRNNError: for an unknown cell, no cell, a cell given twice, no seeds; if a training run diverges; if
            `folder` holds something else than this run; if the process of a training run dies again and again; if no
            scheduler answers, or its workers have other versions.

    Example:
        >>> from anyrnn import workbench
        >>> data = workbench.load("japanese-vowels")
        >>> quick = workbench.Settings(hidden_size=8, epochs=1)
        >>> results = workbench.compare(data, ["rnn", "lstm"], seeds=1, settings=quick)
        >>> [entry.model.network.title for entry in results.entries]
        ['RNN', 'LSTM']
    """
    if not isinstance(seeds, int) or seeds < 1:
        raise AnyRNNError(f"seeds: got {seeds!r}, expected how many runs each network gets, at least 1")
    with place(workers, scheduler) as where, _told(progress, on_epoch, callbacks) as tell:
        plan = _Plan(dataset, tuple(cells), tuple(range(seeds)), settings or Settings(), command, where)
        return _kept(plan, tell, on_network, folder, resume, overwrite)


def fit(
    dataset: Dataset,
    cell: str = "lstm",
    *,
    seed: int = 0,
    settings: Settings | None = None,
    command: str = "anyrnn.workbench.fit",
    on_epoch: Callable[[Progress], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    scheduler: str | None = None,
) -> Results:
    """Train one network once. The results are those of a comparison of one: see `compare` for the arguments."""
    with place(1, scheduler) as where, _told(progress, on_epoch, callbacks) as tell:
        plan = _Plan(dataset, (cell,), (seed,), settings or Settings(), command, where)
        return _kept(plan, tell, None, folder, resume, overwrite)


@contextmanager
def _told(
    progress: bool | None, on_epoch: Callable[[Progress], None] | None, callbacks: Sequence[Callback]
) -> Iterator[Callable[[Progress], None]]:
    """What is told after each epoch: who looks on, the callbacks, and the caller. Of several processes one tells."""
    with ExitStack() as stack:
        tellers: list[Callable[[Progress], None]] = []
        if not world().first:
            progress, callbacks = False, ()
        if progress or (progress is None and notebook_display() is not None):
            tellers.append(stack.enter_context(shown(Console())))
        if callbacks:
            for callback in callbacks:
                stack.callback(getattr(callback, "close", _nothing))

            def record(now: Progress) -> None:
                line = now.record
                for callback in callbacks:
                    callback(line)

            tellers.append(record)
        if on_epoch is not None:
            tellers.append(on_epoch)

        def tell(now: Progress) -> None:
            for each in tellers:
                each(now)

        yield tell


def _nothing() -> None:
    """The end of a callback that has none."""


@dataclass(frozen=True)
class _Plan:
    """What a comparison is of."""

    dataset: Dataset
    cells: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Settings
    command: str
    place: Place = HERE


def _kept(
    plan: _Plan,
    on_epoch: Callable[[Progress], None],
    on_network: Callable[[Results], None] | None,
    folder: str | Path | UnfinishedRun | None,
    resume: bool,
    overwrite: bool,
) -> Results:
    """Compare, and keep it where the caller says."""
    if folder is None:
        if resume or overwrite:
            raise AnyRNNError("resume and overwrite are about a run folder: expected folder=, too")
        return _compare(plan, on_epoch, on_network, None)
    if isinstance(folder, UnfinishedRun):
        return _compare(plan, on_epoch, on_network, folder)
    with UnfinishedRun(Path(folder), resume=resume, overwrite=overwrite) as run:
        results = _compare(plan, on_epoch, on_network, run)
        if world().first:
            results.save(run.folder, overwrite=True)
            run.finish()
        return results


def _compare(
    plan: _Plan,
    on_epoch: Callable[[Progress], None],
    on_network: Callable[[Results], None] | None,
    kept: UnfinishedRun | None,
) -> Results:
    dataset, cells, seeds, settings = plan.dataset, plan.cells, plan.seeds, plan.settings
    if not cells or len(set(cells)) < len(cells):
        raise AnyRNNError(f"cells: got {', '.join(cells) or 'none'}, expected one or more names, each once")
    if not all(isinstance(seed, int) and 0 <= seed < _SEEDS for seed in seeds):
        raise AnyRNNError(f"seed: got {', '.join(map(str, seeds))}, expected whole numbers from 0 to {_SEEDS - 1}")
    networks = [network(name) for name in cells]
    with torch.random.fork_rng(devices=[]):  # a cell that cannot be built is found now, not after the others
        for each in networks:
            settings.build(each, each.input_size(dataset.scaler), 1)
    settings = settings.resolved(dataset)
    what: Mapping[str, Any] = {}
    log: Callable[[Mapping[str, Any]], None] | None = None
    if kept is not None or world().size > 1:
        what = identity(dataset, settings, cells)
        check_same(what)
    if kept is not None:
        world().of_first(lambda: kept.begin({**what, "networks": list(cells), "seeds": list(seeds)}))
        log = MetricsLog(kept.metrics, kept.say) if world().first else None
    epochs, runs, chosen = settings.epochs_for(len(dataset.train)), len(networks) * len(seeds), str(settings.metric)
    beside = world().of_first(lambda: baselines(dataset, settings.metric))
    results = Results(dataset, settings, seeds, (), beside, cells, plan.command)
    shares: dict[int, float] = {}  # how much of each run is done

    def tell(job: Job, end: EpochEnd) -> None:
        others = sum(share for run, share in shares.items() if run != job.run)
        shares[job.run] = 1.0 if end.ended else end.epoch.epoch / epochs
        pace = end.learning_rate, end.seconds, end.pace
        now = Progress(job.network, job.seed, job.run, runs, end.epoch, epochs, end.ended, chosen, *pace, others)
        if log is not None:
            log(now.record)
        on_epoch(now)

    trained: dict[int, tuple[Model, Run]] = {}
    with plan.place.jobs(SequenceLesson(dataset, settings), tell, warn if kept is None else kept.say) as jobs:
        for run, (each, seed) in enumerate(product(networks, seeds), 1):
            jobs.submit(Job(each, seed, run, None if kept is None else kept.checkpoints(each.name, seed, what)))
        for job, outcome in jobs.as_completed():
            shares[job.run] = 1.0
            trained[job.run] = outcome
            for more in _with_finished(results, trained):
                results = more
                if on_network is not None:
                    on_network(results)
    return results


def _with_finished(results: Results, trained: dict[int, tuple[Model, Run]]) -> Iterator[Results]:
    """The results with one more network each, as long as the next one has had all its runs, which are taken out."""
    seeds = len(results.seeds)
    while results.unfinished:
        first = len(results.entries) * seeds + 1
        runs = range(first, first + seeds)
        if not trained.keys() >= set(runs):
            return
        with using_threads(results.settings.thread_count):
            entry = Entry.of([trained.pop(run) for run in runs], results.dataset.scaler.width)
        results = results.with_entry(entry)
        yield results


def _entry_dict(entry: Entry[Model], data: Dataset) -> dict[str, Any]:
    per_class = None if data.classes is None else _per_class(entry, data.classes, data.test.y.tolist())
    return {**entry.to_dict(), "per_class": per_class}


def _per_class(entry: Entry[Model], classes: Sequence[str], y: Sequence[int]) -> list[dict[str, Any]]:
    """Of each class how many test sequences there are, and the share of them that is recognised, over the runs."""
    total = Counter(y)
    pairs = Counter(true for run in entry.runs for true, got in zip(y, run.predictions, strict=True) if true == got)
    recall = [pairs[k] / (total[k] * len(entry.runs)) if total[k] else None for k in range(len(classes))]
    return [{"class": name, "total": total[k], "recall": recall[k]} for k, name in enumerate(classes)]


def known_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores as JSON has them: null where one is not defined."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _width(rows: Sequence[tuple[tuple[str, ...], str]], first: int) -> int:
    """Of the table from this column of costs on: each column as wide as its widest cell, and two blanks between.

    The rows are those of the networks; the long names of baselines may take several lines.
    """
    cells = [("network", "test accuracy", "baseline", *_COSTS), *(row for row, _ in rows)]
    return sum(max(len(row[k]) for row in cells) + 2 for k in (0, 1, 2, *range(3 + first, 3 + len(_COSTS))))
