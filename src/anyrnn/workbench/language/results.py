"""Language models compared on one text, beside counts of a few tokens: what is shown, and what is saved."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from anyrnn.workbench.language.generate import generate
from anyrnn.workbench.language.model import TrainedText, surprise
from anyrnn.workbench.language.ngrams import NGrams
from anyrnn.workbench.language.report import overfitting, render
from anyrnn.workbench.language.stored import save_model
from anyrnn.workbench.language.text import Text
from anyrnn.workbench.language.train import BITS, TextLesson, TextRun, TextSettings
from anyrnn.workbench.loop import Callback, seeds_up_to, train_all
from anyrnn.workbench.outcome import Entry, Outcome
from anyrnn.workbench.progress import Progress
from anyrnn.workbench.unfinished import UnfinishedRun

_ORDER = {"character": 5, "word": 3}  # of the longest groups of tokens that are counted
_TEMPERATURES = (0.5, 0.8, 1.0)
_SAMPLE = {"character": 400, "word": 90}  # tokens
_SHOWN = {"character": 900, "word": 200}  # tokens of the test part whose surprise the report shows


@dataclass(frozen=True)
class TextBaseline:
    """A name, and the bits a character that it has on the test part."""

    name: str
    score: float


TextEntry = Entry[TrainedText, TextRun]


@dataclass(frozen=True, repr=False)
class TextResults(Outcome):
    """The outcome of a comparison of language models: see `anyrnn.workbench.outcome.Outcome`."""

    dataset: Text
    settings: TextSettings
    entries: tuple[TextEntry, ...]
    baselines: tuple[TextBaseline, ...]

    @property
    def input_size(self) -> int:
        """The features of a token."""
        return self.settings.embedding_size

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
        return tuple(overfitting([entry.to_dict() for entry in self.entries]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("network", overflow="fold")
        for title in ("bits a character", "nats", "parameters", "epoch", "training"):
            table.add_column(title, justify="right", no_wrap=True)
        best = self.best.model.network.name
        for entry in self.entries:
            bits = f"{entry.score_mean:.3f}" + ("" if entry.score_std is None else f" ± {entry.score_std:.3f}")
            style = "bold green" if entry.model.network.name == best and len(self.entries) > 1 else ""
            nats = f"{entry.score_mean * math.log(2):.3f}"
            cells = (
                entry.model.network.title,
                bits,
                nats,
                f"{entry.parameters:,}",
                entry.epochs,
                f"{entry.train_seconds:.1f} s",
            )
            table.add_row(*cells, style=style)
        for baseline in self.baselines:
            nats = f"{baseline.score * math.log(2):.3f}"
            table.add_row(baseline.name, f"{baseline.score:.3f}", nats, "", "", "", style="dim")
        yield table

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them."""
        text = self.dataset
        described = {
            "name": text.name,
            "level": text.vocabulary.level,
            "tokens": len(text.vocabulary),
            "train": len(text.train.text),
            "validation": len(text.validation.text),
            "test": len(text.test.text),
            "split": text.split,
            "notes": list(text.notes),
        }
        return self.written("text", described, {"name": BITS, "higher_is_better": False})

    def report(self, results: Mapping[str, Any]) -> str:
        """The report: see `Outcome.report`."""
        model, level = self.best.model, self.dataset.vocabulary.level
        tokens = self.dataset.test.tokens[: _SHOWN[level]]
        nats = surprise(model.module, tokens).tolist()
        shown = list(zip((self.dataset.vocabulary.tokens[t] for t in tokens.tolist()), [None, *nats], strict=True))
        samples = {
            temperature: "".join(generate(model, _SAMPLE[level], temperature=temperature, seed=0))
            for temperature in _TEMPERATURES
        }
        return render(results, self.verdict, shown, samples)

    def write_model(self, folder: Path, model: Any) -> None:
        """Write a model: see `Outcome.write_model`."""
        save_model(folder, model)


def compare(
    text: Text,
    cells: Sequence[str] = ("lstm",),
    *,
    seeds: int = 1,
    settings: TextSettings | None = None,
    command: str = "anyrnn.workbench.language.compare",
    on_epoch: Callable[[Progress], None] | None = None,
    on_network: Callable[[TextResults], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    workers: int = 1,
    scheduler: str | None = None,
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
        progress: This and the others are those of `anyrnn.workbench.compare`: the same words for every task.
        folder: Where the run is kept as it goes, and saved at the end; None: nowhere.
        resume: Go on with what was begun in `folder`, to the same numbers; begin it, if nothing was.
        overwrite: Replace a run in `folder`.
        callbacks: Each is called after each epoch with what a line of `metrics.jsonl` has.
        workers: How many training runs go on at once, each in a process of its own.
        scheduler: The address of a Dask scheduler, whose workers do the training runs: see `anyrnn.workbench.compare`.

    Raises:
        AnyRNNError: for an unknown or bidirectional cell, a cell given twice, no seeds; if a training run diverges.
    """
    return _train_all(
        text,
        cells,
        seeds_up_to(seeds),
        settings or TextSettings(),
        command,
        on_epoch=on_epoch,
        on_network=on_network,
        progress=progress,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        workers=workers,
        scheduler=scheduler,
    )


def fit(
    text: Text,
    cell: str = "lstm",
    *,
    seed: int = 0,
    settings: TextSettings | None = None,
    command: str = "anyrnn.workbench.language.fit",
    on_epoch: Callable[[Progress], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    scheduler: str | None = None,
) -> TextResults:
    """Train one network once. The results are those of a comparison of one: see `compare` for the arguments."""
    return _train_all(
        text,
        [cell],
        (seed,),
        settings or TextSettings(),
        command,
        on_epoch=on_epoch,
        progress=progress,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        scheduler=scheduler,
    )


def _train_all(
    text: Text, cells: Sequence[str], seeds: tuple[int, ...], settings: TextSettings, command: str, **how: Any
) -> TextResults:
    settings = settings.resolved(text)

    def nothing() -> TextResults:
        return TextResults(text, settings, seeds, (), _baselines(text), tuple(cells), command)

    results: TextResults = train_all(TextLesson(text, settings), cells, seeds, nothing, **how)
    return results


def _baselines(text: Text) -> tuple[TextBaseline, ...]:
    level, test = text.vocabulary.level, text.test
    first = len(text.vocabulary.tokens[int(test.tokens[0])])
    found = []
    for order, name in ((1, f"frequencies of {level}s"), (_ORDER[level], f"counts of up to {_ORDER[level]} {level}s")):
        nats = NGrams(text.train.tokens.tolist(), order, len(text.vocabulary)).nats(test.tokens.tolist())
        found.append(TextBaseline(name, float(nats.sum()) / (len(test.text) - first) / math.log(2)))
    return tuple(found)
