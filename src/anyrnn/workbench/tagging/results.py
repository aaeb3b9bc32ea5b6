"""Taggers compared on the same steps: what is shown, and what is saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from anyrnn.workbench.loop import Callback, seeds_up_to, train_all
from anyrnn.workbench.outcome import Scored
from anyrnn.workbench.progress import Progress
from anyrnn.workbench.tagging.baselines import baselines
from anyrnn.workbench.tagging.model import TrainedTagger, width
from anyrnn.workbench.tagging.report import Shown, render, typical
from anyrnn.workbench.tagging.steps import Tagging
from anyrnn.workbench.tagging.stored import save_model
from anyrnn.workbench.tagging.train import TagLesson, TagSettings
from anyrnn.workbench.tagging.verdict import TagComparison
from anyrnn.workbench.unfinished import UnfinishedRun

#: The networks that are compared if nobody says which: with causal answers those that read forwards only.
COMPARED = ("rnn", "lstm", "gru", "bilstm")
CAUSAL = ("rnn", "lstm", "gru", "lstm-2")


@dataclass(frozen=True, repr=False)
class TagResults(Scored[Tagging, TrainedTagger]):
    """The outcome of a comparison of taggers: see `anyrnn.workbench.outcome.Outcome`."""

    settings: TagSettings

    @property
    def input_size(self) -> int:
        """What a step is made of: numbers, or the vector of a word."""
        return width(self.dataset.reader, self.settings.embedding_size)

    @property
    def conditions(self) -> str:
        """Under which the scores were reached, in a line."""
        settings = self.settings
        return (
            f"{self.dataset!r}, {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}, {settings.epochs} epochs, "
            f"hidden size {settings.hidden_size}"
        )

    @cached_property
    def _comparison(self) -> TagComparison:
        return TagComparison(self.to_dict())

    def report(self, results: Mapping[str, Any]) -> str:
        """The report: see `Outcome.report`."""
        return render(results, self.shown())

    def write_model(self, folder: Path, model: Any) -> None:
        """Write a model: see `Outcome.write_model`."""
        save_model(folder, model)

    def shown(self) -> list[tuple[str, Shown]]:
        """Sequences of the test part to look at, as the first run of the best network answers them."""
        data, scorer = self.dataset, self._comparison.scorer
        said = np.array(self.best.runs[0].predictions)
        pieces = np.split(said, np.cumsum(scorer.lengths)[:-1])
        return [
            (
                why,
                Shown(
                    data.test.ids[k],
                    data.test.x[k] if data.has_words else None,
                    data.test.y[k].numpy(),
                    pieces[k],
                ),
            )
            for why, k in typical(scorer, said)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them, the one source of the table and the report."""
        data, test = self.dataset, self.dataset.test
        steps = [len(x) for part in data.parts for x in part.x]
        masked = any(not known.all() for known in test.known)
        places = [(known.nonzero().flatten() + 1).tolist() for known in test.known]
        described = {
            "name": data.name,
            "target": data.target,
            "features": list(data.features),
            "words": data.has_words,
            "classes": None if data.classes is None else list(data.classes),
            "train": len(data.train),
            "validation": 0 if data.validation is None else len(data.validation),
            "test": len(data.test),
            "shortest": min(steps),
            "longest": max(steps),
            "split": data.split,
            "notes": list(data.notes),
            "attribution": None,
            "id_column": data.id_column,
            "time_column": data.time_column,
            "group_column": data.group_column,
            "gaps": data.gaps,
        }
        return {
            **self.written("tagging", described, self.written_metric),
            "causal": [entry.model.network.name for entry in self.entries if entry.model.causal],
            "test_ids": list(test.ids),
            "test_lengths": [len(each) for each in places],
            "test_steps": [t for each in places for t in each] if masked else None,
            "test_targets": test.flat.tolist(),
            "test_groups": None if test.groups is None else list(test.groups),
        }


def compare(
    data: Tagging,
    cells: Sequence[str] | None = None,
    *,
    seeds: int = 3,
    settings: TagSettings | None = None,
    command: str = "anyrnn.workbench.tagging.compare",
    on_epoch: Callable[[Progress], None] | None = None,
    on_network: Callable[[TagResults], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    workers: int = 1,
    scheduler: str | None = None,
) -> TagResults:
    """Train each network with each seed, all on the same split with the same budget.

    Args:
        data: From `load_tagged`.
        cells: Names of networks, or "module:Class" for cells of one's own. None: `COMPARED`, or `CAUSAL`.
        seeds: How many training runs a network gets, with the seeds 0, 1, ...
        settings: The budget; the defaults if None.
        command: What the results name as the command that made them.
        on_epoch: Called after each epoch.
        on_network: Called with the results so far when a network has had all its runs.
        progress: This and the others are those of `anyrnn.workbench.compare`: the same words for every task.
        folder: Where the run is kept as it goes, and saved at the end; None: nowhere.
        resume: Go on with what was begun in `folder`, to the same numbers; begin it, if nothing was.
        overwrite: Replace a run in `folder`.
        callbacks: Each is called after each epoch with what a line of `metrics.jsonl` has.
        workers: How many training runs go on at once, each in a process of its own.
        scheduler: The address of a Dask scheduler, whose workers do the training runs: see `anyrnn.workbench.compare`.

    Raises:
        AnyRNNError: for an unknown cell, no cell, a cell given twice, no seeds, a bidirectional network where causal
            answers are asked for; and if a training run diverges.

    Example:
        >>> import torch
        >>> from anyrnn.workbench.tagging import Steps, Tagging, TagSettings, compare
        >>> x = [torch.randn(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(8)]
        >>> steps = Steps(tuple(x), tuple((each.cumsum(0) > 0).long()[:, 0] for each in x), tuple("abcdefgh"))
        >>> parts = {"train": steps.subset(range(6)), "test": steps.subset((6, 7))}
        >>> data = Tagging("sums", ("x",), ("below", "above"), "sign", split="the last two", **parts)
        >>> quick = TagSettings(hidden_size=4, epochs=1, causal=True)
        >>> [entry.model.network.title for entry in compare(data, ["gru"], seeds=1, settings=quick).entries]
        ['GRU']
    """
    settings = settings or TagSettings()
    chosen = (CAUSAL if settings.causal else COMPARED) if cells is None else cells
    return _train_all(
        data,
        chosen,
        seeds_up_to(seeds),
        settings,
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
    data: Tagging,
    cell: str | None = None,
    *,
    seed: int = 0,
    settings: TagSettings | None = None,
    command: str = "anyrnn.workbench.tagging.fit",
    on_epoch: Callable[[Progress], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    scheduler: str | None = None,
) -> TagResults:
    """Train one network once: "bilstm" if none is named, or "lstm" for causal answers. See `compare`."""
    settings = settings or TagSettings()
    chosen = cell or ("lstm" if settings.causal else "bilstm")
    return _train_all(
        data,
        [chosen],
        (seed,),
        settings,
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
    data: Tagging, cells: Sequence[str], seeds: tuple[int, ...], settings: TagSettings, command: str, **how: Any
) -> TagResults:
    settings = settings.resolved(data)

    def nothing() -> TagResults:
        beside = baselines(data, settings.metric, causal=settings.causal)
        return TagResults(data, settings, seeds, (), beside, tuple(cells), command)

    results: TagResults = train_all(TagLesson(data, settings), cells, seeds, nothing, **how)
    return results
