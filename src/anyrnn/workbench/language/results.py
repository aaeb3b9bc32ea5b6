"""Language models compared on one text, beside counts of a few tokens: what is shown, and what is saved."""

import math
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.explain import explain
from anyrnn.workbench.doctor import machine
from anyrnn.workbench.language.generate import generate
from anyrnn.workbench.language.model import TrainedText, build, surprise
from anyrnn.workbench.language.ngrams import NGrams
from anyrnn.workbench.language.report import overfitting, render
from anyrnn.workbench.language.stored import save_model
from anyrnn.workbench.language.text import Text
from anyrnn.workbench.language.train import TextEpoch, TextRun, TextSettings, train
from anyrnn.workbench.models import Network, network
from anyrnn.workbench.progress import Told
from anyrnn.workbench.runs import save_run
from anyrnn.workbench.stored import FORMAT
from anyrnn.workbench.train import using_threads

_ORDER = {"character": 5, "word": 3}  # of the longest groups of tokens that are counted
_TEMPERATURES = (0.5, 0.8, 1.0)
_SAMPLE = {"character": 400, "word": 90}  # tokens
_SHOWN = {"character": 900, "word": 200}  # tokens of the test part whose surprise the report shows


@dataclass(frozen=True)
class TextBaseline:
    """A name, and the bits a character that it has on the test part."""

    name: str
    score: float


@dataclass(frozen=True)
class TextEntry:
    """One network, over all seeds; the model is that of the first one."""

    model: TrainedText
    parameters: int
    engines: tuple[str, ...]
    runs: tuple[TextRun, ...]

    @property
    def score_mean(self) -> float:
        """Bits a character, the mean over the seeds."""
        return statistics.mean(run.score for run in self.runs)

    @property
    def score_std(self) -> float | None:
        """The sample standard deviation over the seeds; None with one seed."""
        return statistics.stdev(run.score for run in self.runs) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class TextProgress(Told):
    """How far a comparison is, told after each epoch."""

    network: Network
    seed: int
    run: int
    runs: int
    epoch: TextEpoch
    epochs: int
    ended: bool


@dataclass(frozen=True)
class TextResults:
    """The outcome: `print` shows the table, `save` writes the run folder.

    Attributes:
        text: What was learned.
        settings: With which budget; nothing in it is None.
        seeds: The seeds of the runs.
        entries: One for each network, in the order asked for.
        baselines: What to beat.
        command: What was run.
        unfinished: The names of the networks that were asked for and are not there: () unless interrupted.
    """

    text: Text
    settings: TextSettings
    seeds: tuple[int, ...]
    entries: tuple[TextEntry, ...]
    baselines: tuple[TextBaseline, ...]
    command: str
    unfinished: tuple[str, ...] = ()

    @property
    def best(self) -> TextEntry:
        """The network with the fewest bits a character; of equals, the first."""
        return min(self.entries, key=lambda entry: entry.score_mean)

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        best = self.best
        title, bits = best.model.network.title, best.score_mean
        spread = "" if best.score_std is None else f" ± {best.score_std:.3f}"
        says = f"{title} needs {bits:.3f}{spread} bits a character ({bits * math.log(2):.3f} nats)"
        counts = min(self.baselines, key=lambda baseline: baseline.score)
        if counts.score <= bits:
            return f"No network: the baseline “{counts.name}” has {counts.score:.3f}; {says}."
        others = sorted((e.score_mean, e.model.network.title) for e in self.entries if e is not best)
        luck = 2 * max((e.score_std or 0.0) for e in self.entries)
        if not others:
            tail = f"; the baseline “{counts.name}” has {counts.score:.3f}"
        elif others[0][0] - bits <= luck:
            tail = f", but {others[0][1]} is within the spread ({others[0][0]:.3f})"
        elif len(self.seeds) == 1:
            tail = f"; {others[0][1]} follows with {others[0][0]:.3f}, from one run each"
        else:
            tail = f"; {others[0][1]} follows with {others[0][0]:.3f}, more than the spread"
        return f"{says}{tail}."

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else the curves say, a sentence each: which networks are overfitting."""
        return tuple(overfitting([_entry_dict(entry) for entry in self.entries]))

    def table(self) -> str:
        """The table of the results as text."""
        console = Console(file=StringIO(), width=120)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("network", overflow="fold")
        for title in ("bits a character", "nats", "parameters", "epoch", "training"):
            table.add_column(title, justify="right", no_wrap=True)
        best = self.best.model.network.name
        for entry in self.entries:
            bits = f"{entry.score_mean:.3f}" + ("" if entry.score_std is None else f" ± {entry.score_std:.3f}")
            epochs = sorted({run.epoch for run in entry.runs})
            kept = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]}-{epochs[-1]}"
            seconds = statistics.mean(run.seconds for run in entry.runs)
            style = "bold green" if entry.model.network.name == best and len(self.entries) > 1 else ""
            nats = f"{entry.score_mean * math.log(2):.3f}"
            cells = (entry.model.network.title, bits, nats, f"{entry.parameters:,}", kept, f"{seconds:.1f} s")
            table.add_row(*cells, style=style)
        for baseline in self.baselines:
            nats = f"{baseline.score * math.log(2):.3f}"
            table.add_row(baseline.name, f"{baseline.score:.3f}", nats, "", "", "", style="dim")
        yield table

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them."""
        text = self.text
        return {
            "format": FORMAT,
            "kind": "text",
            "anyrnn": anyrnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": self.settings.threads,
            "machine": machine(),
            "command": self.command,
            "dataset": {
                "name": text.name,
                "level": text.vocabulary.level,
                "tokens": len(text.vocabulary),
                "train": len(text.train.text),
                "validation": len(text.validation.text),
                "test": len(text.test.text),
                "split": text.split,
                "notes": list(text.notes),
            },
            "settings": asdict(self.settings),
            "metric": {"name": "bits a character", "higher_is_better": False},
            "seeds": list(self.seeds),
            "models": [_entry_dict(entry) for entry in self.entries],
            "baselines": [asdict(baseline) for baseline in self.baselines],
            "best": self.best.model.network.name,
            "unfinished": list(self.unfinished),
        }

    def save(self, folder: str | Path, *, overwrite: bool = False, numbered: bool = False) -> Path:
        """Write the run folder: results.json, the models, report.html.

        Args:
            folder: Where; made if it is not there.
            overwrite: Replace the folder if it holds a run, and nothing else.
            numbered: Write to the first of FOLDER, FOLDER-2, FOLDER-3, ... that is free.

        Raises:
            AnyRNNError: if something else is there already, or the disk is full or fails.
        """
        model, level = self.best.model, self.text.vocabulary.level
        tokens = self.text.test.tokens[: _SHOWN[level]]
        nats = surprise(model.module, tokens).tolist()
        shown = list(zip((self.text.vocabulary.tokens[t] for t in tokens.tolist()), [None, *nats], strict=True))
        samples = {
            temperature: "".join(generate(model, _SAMPLE[level], temperature=temperature, seed=0))
            for temperature in _TEMPERATURES
        }
        results = self.to_dict()
        report = render(results, self.verdict, shown, samples)
        models = [entry.model for entry in self.entries]
        return save_run(Path(folder), results, models, report, save_model, overwrite=overwrite, numbered=numbered)


def compare(
    text: Text,
    cells: Sequence[str] = ("lstm",),
    *,
    seeds: int = 1,
    settings: TextSettings | None = None,
    command: str = "anyrnn.workbench.language.compare",
    on_epoch: Callable[[TextProgress], None] | None = None,
    on_network: Callable[[TextResults], None] | None = None,
) -> TextResults:
    """Train each network with each seed on a text, all with the same budget.

    Args:
        text: From `load_text`.
        cells: Names of networks that read in one direction, or "module:Class" for cells of one's own.
        seeds: How many training runs a network gets, with the seeds 0, 1, ...
        settings: The budget; the defaults if None.
        command: What the results name as the command that made them.
        on_epoch: Called after each epoch.
        on_network: Called when a network has had all its runs, with the results so far.

    Raises:
        AnyRNNError: for an unknown or bidirectional cell, a cell given twice, no seeds; if a training run diverges.
    """
    if not isinstance(seeds, int) or seeds < 1:
        raise AnyRNNError(f"seeds: got {seeds!r}, expected how many runs each network gets, at least 1")
    return _compare(text, cells, tuple(range(seeds)), settings or TextSettings(), command, on_epoch, on_network)


def fit(
    text: Text,
    cell: str = "lstm",
    *,
    seed: int = 0,
    settings: TextSettings | None = None,
    command: str = "anyrnn.workbench.language.fit",
    on_epoch: Callable[[TextProgress], None] | None = None,
) -> TextResults:
    """Train one network once. The results are those of a comparison of one: see `compare` for the arguments."""
    return _compare(text, [cell], (seed,), settings or TextSettings(), command, on_epoch)


def _compare(
    text: Text,
    cells: Sequence[str],
    seeds: tuple[int, ...],
    settings: TextSettings,
    command: str,
    on_epoch: Callable[[TextProgress], None] | None,
    on_network: Callable[[TextResults], None] | None = None,
) -> TextResults:
    if not cells or len(set(cells)) < len(cells):
        raise AnyRNNError(f"cells: got {', '.join(cells) or 'none'}, expected one or more names, each once")
    networks = [network(name) for name in cells]
    size = len(text.vocabulary)
    with torch.random.fork_rng(devices=[]):  # a cell that cannot be built is found now, not after the others
        for each in networks:
            build(each, size, settings.hidden_size, settings.embedding_size, settings.dropout, settings.layers)
    epochs = settings.epochs_for(len(text.train.tokens))
    settings = replace(settings, epochs=epochs, threads=settings.thread_count)
    entries: list[TextEntry] = []
    beside = _baselines(text)
    for k, each in enumerate(networks):
        trained: list[tuple[TrainedText, TextRun]] = []
        for seed in seeds:
            number = k * len(seeds) + len(trained) + 1

            def tell(
                epoch: TextEpoch, ended: bool, *, each: Network = each, seed: int = seed, number: int = number
            ) -> None:
                if on_epoch is not None:
                    on_epoch(TextProgress(each, seed, number, len(networks) * len(seeds), epoch, epochs, ended))

            trained.append(train(each, text, settings, seed, tell))
        with using_threads(settings.thread_count):
            entries.append(_entry(trained, settings.embedding_size))
        missing = tuple(other.name for other in networks[k + 1 :])
        results = TextResults(text, settings, seeds, tuple(entries), beside, command, missing)
        if on_network is not None:
            on_network(results)
    return results


def _baselines(text: Text) -> tuple[TextBaseline, ...]:
    level, test = text.vocabulary.level, text.test
    first = len(text.vocabulary.tokens[int(test.tokens[0])])
    found = []
    for order, name in ((1, f"frequencies of {level}s"), (_ORDER[level], f"counts of up to {_ORDER[level]} {level}s")):
        nats = NGrams(text.train.tokens.tolist(), order, len(text.vocabulary)).nats(test.tokens.tolist())
        found.append(TextBaseline(name, float(nats.sum()) / (len(test.text) - first) / math.log(2)))
    return tuple(found)


def _entry(trained: Sequence[tuple[TrainedText, TextRun]], embedding_size: int) -> TextEntry:
    model = trained[0][0]
    explained = explain(model.module.layer, torch.zeros(2, 2, embedding_size))
    return TextEntry(
        model=model,
        parameters=sum(p.numel() for p in model.module.parameters() if p.requires_grad),
        engines=tuple(dict.fromkeys(part.engine for part in explained.parts)),
        runs=tuple(run for _, run in trained),
    )


def _entry_dict(entry: TextEntry) -> dict[str, Any]:
    return {
        "name": entry.model.network.name,
        "title": entry.model.network.title,
        "layer": repr(entry.model.module.layer),
        "parameters": entry.parameters,
        "engines": list(entry.engines),
        "score_mean": entry.score_mean,
        "score_std": entry.score_std,
        "runs": [{**asdict(run), "score": run.score} for run in entry.runs],
    }
