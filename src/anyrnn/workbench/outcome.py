"""What comes out of training networks with seeds, of whatever kind the task: entries, a table, what is written."""

import math
import platform
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

import anyrnn
from anyrnn import markup
from anyrnn.explain import explain
from anyrnn.workbench.baselines import Baseline
from anyrnn.workbench.doctor import machine
from anyrnn.workbench.lesson import M, using_threads
from anyrnn.workbench.metrics import Metric
from anyrnn.workbench.runs import save_run
from anyrnn.workbench.stored import FORMAT, finite
from anyrnn.workbench.train import Question, Settings, step_microseconds
from anyrnn.workbench.training import Run
from anyrnn.workbench.verdict import Comparison, answer, overfitting

_COSTS = ("epoch", "parameters", "training", "µs a step")  # a narrow terminal loses the first ones first
_LISTED = 3  # epochs in a cell of the table
_LEAST_NAME = 12  # characters of a name in a line; below that it takes a line of its own


class Scores(Protocol):
    """What came of a training run of any task."""

    @property
    def seed(self) -> int:
        """Its seed."""

    @property
    def score(self) -> float:
        """What networks are compared by."""

    @property
    def scores(self) -> Mapping[str, float]:
        """All that was measured on the test part, by name."""

    @property
    def seconds(self) -> float:
        """Spent on training."""

    @property
    def epoch(self) -> int:
        """Whose weights were kept."""

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""


D = TypeVar("D", bound=Question)
R = TypeVar("R", bound=Scores)


@dataclass(frozen=True)
class Entry(Generic[M, R]):
    """One network of a comparison, over all seeds.

    Attributes:
        model: The trained network of the first seed, which is the one that is saved. It is not the best seed: that
            would be a choice made by looking at the test part.
        parameters: The number of trained parameters, the head's among them.
        engines: Which engines run its layers.
        step_microseconds: For one step of the layer at batch size 1; None: not measured.
        runs: One for each seed.
    """

    model: M
    parameters: int
    engines: tuple[str, ...]
    step_microseconds: float | None
    runs: tuple[R, ...]

    @property
    def score_mean(self) -> float:
        """The mean score over the seeds."""
        return statistics.mean(run.score for run in self.runs)

    @property
    def score_std(self) -> float | None:
        """The sample standard deviation over the seeds; None with one seed."""
        return statistics.stdev(run.score for run in self.runs) if len(self.runs) > 1 else None

    def mean(self, name: str) -> float:
        """The mean of one of the scores over the seeds."""
        return statistics.fmean(run.scores[name] for run in self.runs)

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
            "scores": finite({name: self.mean(name) for name in self.runs[0].scores}),
            "runs": [run.to_dict() for run in self.runs],
        }


@dataclass(frozen=True, repr=False)
class Outcome(ABC):
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

    dataset: Any
    settings: Any
    seeds: tuple[int, ...]
    entries: tuple[Entry[Any, Any], ...]
    baselines: tuple[Any, ...]
    unfinished: tuple[str, ...]
    command: str

    #: Whether sequences have different lengths, and whether a single step is timed.
    is_ragged: ClassVar[bool] = False
    is_timed: ClassVar[bool] = False
    #: The width of its table as text.
    columns: ClassVar[int] = 120

    @property
    @abstractmethod
    def input_size(self) -> int:
        """The features of a step as the recurrent layer reads it."""

    @property
    @abstractmethod
    def best(self) -> Entry[Any, Any]:
        """The network with the best mean score; of equals, the first."""

    @property
    @abstractmethod
    def verdict(self) -> str:
        """The answer in a sentence."""

    @property
    @abstractmethod
    def remarks(self) -> tuple[str, ...]:
        """What else there is to say, a sentence each."""

    @abstractmethod
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them, the one source of the table and the report."""

    @abstractmethod
    def report(self, results: Mapping[str, Any]) -> str:
        """The report as one HTML page, from what `to_dict` gives."""

    @abstractmethod
    def write_model(self, folder: Path, model: Any) -> None:
        """Write the files of one of the models into a folder."""

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
        models, report = [entry.model for entry in self.entries], self.report(results)
        write = self.write_model
        return save_run(Path(folder), results, models, report, write, overwrite=overwrite, numbered=numbered)

    def with_trained(self, trained: Sequence[tuple[Any, Any]]) -> Self:
        """These results and those of the next network, whose runs are these."""
        model, size = trained[0][0], self.input_size
        with using_threads(self.settings.thread_count):
            explained = explain(model.layer, torch.zeros(2, 2, size), lengths=[2, 1] if self.is_ragged else None)
            entry: Entry[Any, Any] = Entry(
                model=model,
                parameters=sum(p.numel() for p in model.module.parameters() if p.requires_grad),
                engines=tuple(dict.fromkeys(part.engine for part in explained.parts)),
                step_microseconds=step_microseconds(model.layer, size) if self.is_timed else None,
                runs=tuple(run for _, run in trained),
            )
        return replace(self, entries=(*self.entries, entry), unfinished=self.unfinished[1:])

    def table(self) -> str:
        """The table of the results as text."""
        console = Console(file=StringIO(), width=self.columns)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        """The table, too: that of the fields would hold the whole dataset."""
        return self.table()

    def written(self, kind: str | None, dataset: Mapping[str, Any], metric: Mapping[str, Any]) -> dict[str, Any]:
        """What `results.json` has of every task.

        Args:
            kind: Of the run; None: of whole sequences.
            dataset: What there is to know of what was learned.
            metric: Likewise of the score.
        """
        return {
            "format": FORMAT,
            **({} if kind is None else {"kind": kind}),
            "anyrnn": anyrnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": self.settings.threads,
            "machine": machine(),
            "command": self.command,
            "dataset": dataset,
            "settings": asdict(self.settings),
            "metric": metric,
            "seeds": list(self.seeds),
            "models": [entry.to_dict() for entry in self.entries],
            "unfinished": list(self.unfinished),
            "baselines": [finite(asdict(each)) for each in self.baselines],
            "best": self.best.model.network.name,
        }


@dataclass(frozen=True, repr=False)
class Scored(Outcome, Generic[D, M]):
    """What came out where a metric scores classes or numbers, of sequences or of their steps."""

    dataset: D
    settings: Settings
    entries: tuple[Entry[M, Run], ...]
    baselines: tuple[Baseline, ...]

    is_ragged = True
    is_timed = True

    @property
    @abstractmethod
    def conditions(self) -> str:
        """Under which the scores were reached, in a line."""

    @property
    def written_metric(self) -> dict[str, Any]:
        """What `results.json` has of the metric."""
        found = self._metric
        return {"name": found.name, "higher_is_better": found.higher_is_better, "percent": found.percent}

    @property
    def metric(self) -> str:
        """What is scored, such as "accuracy" or "rmse"."""
        return self._metric.name

    @property
    def _metric(self) -> Metric:
        return self.settings.metric_for(self.dataset)

    @property
    def best(self) -> Entry[M, Run]:
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


def _width(rows: Sequence[tuple[tuple[str, ...], str]], first: int) -> int:
    """Of the table from this column of costs on: each column as wide as its widest cell, and two blanks between.

    The rows are those of the networks; the long names of baselines may take several lines.
    """
    cells = [("network", "test accuracy", "baseline", *_COSTS), *(row for row, _ in rows)]
    return sum(max(len(row[k]) for row in cells) + 2 for k in (0, 1, 2, *range(3 + first, 3 + len(_COSTS))))
