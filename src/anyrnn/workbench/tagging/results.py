"""Taggers compared on the same steps: what is shown, and what is saved."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.compare import Entry, Outcome, known_scores
from anyrnn.workbench.doctor import machine
from anyrnn.workbench.lesson import Epoch
from anyrnn.workbench.models import Network, network
from anyrnn.workbench.progress import Progress
from anyrnn.workbench.runs import save_run
from anyrnn.workbench.stored import FORMAT
from anyrnn.workbench.tagging.baselines import baselines
from anyrnn.workbench.tagging.model import TrainedTagger, width
from anyrnn.workbench.tagging.report import Shown, render, typical
from anyrnn.workbench.tagging.steps import Tagging
from anyrnn.workbench.tagging.stored import save_model
from anyrnn.workbench.tagging.train import TagSettings, train
from anyrnn.workbench.tagging.verdict import TagComparison
from anyrnn.workbench.train import Run, using_threads

#: The networks that are compared if nobody says which: with causal answers those that read forwards only.
COMPARED = ("rnn", "lstm", "gru", "bilstm")
CAUSAL = ("rnn", "lstm", "gru", "lstm-2")


@dataclass(frozen=True, repr=False)
class TagResults(Outcome[Tagging, TrainedTagger]):
    """The outcome of a comparison of taggers: see `anyrnn.workbench.compare.Outcome`."""

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

    def save(self, folder: str | Path, *, overwrite: bool = False, numbered: bool = False) -> Path:
        """Write the run folder: results.json, the models, report.html.

        Args:
            folder: Where; made if it is not there.
            overwrite: Replace the folder if it holds a run, and nothing else.
            numbered: Write to the first of FOLDER, FOLDER-2, FOLDER-3, ... that is free.

        Raises:
            AnyRNNError: if something else is there already, or the disk is full or fails.
        """
        results = self.to_dict()
        models = [entry.model for entry in self.entries]
        report = render(results, self.shown())
        return save_run(Path(folder), results, models, report, save_model, overwrite=overwrite, numbered=numbered)

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
        return {
            "format": FORMAT,
            "kind": "tagging",
            "anyrnn": anyrnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": self.settings.threads,
            "machine": machine(),
            "command": self.command,
            "dataset": {
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
            },
            "settings": asdict(self.settings),
            "metric": {
                "name": self.metric,
                "higher_is_better": self._metric.higher_is_better,
                "percent": self._metric.percent,
            },
            "seeds": list(self.seeds),
            "models": [entry.to_dict() for entry in self.entries],
            "causal": [entry.model.network.name for entry in self.entries if entry.model.causal],
            "unfinished": list(self.unfinished),
            "baselines": [
                {"name": b.name, **known_scores({"score": b.score}), "scores": known_scores(b.scores)}
                for b in self.baselines
            ],
            "test_ids": list(test.ids),
            "test_lengths": [len(each) for each in places],
            "test_steps": [t for each in places for t in each] if masked else None,
            "test_targets": test.flat.tolist(),
            "test_groups": None if test.groups is None else list(test.groups),
            "best": self.best.model.network.name,
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
    if not isinstance(seeds, int) or seeds < 1:
        raise AnyRNNError(f"seeds: got {seeds!r}, expected how many runs each network gets, at least 1")
    settings = settings or TagSettings()
    chosen = (CAUSAL if settings.causal else COMPARED) if cells is None else cells
    return _compare(data, chosen, tuple(range(seeds)), settings, command, on_epoch, on_network)


def fit(
    data: Tagging,
    cell: str | None = None,
    *,
    seed: int = 0,
    settings: TagSettings | None = None,
    command: str = "anyrnn.workbench.tagging.fit",
    on_epoch: Callable[[Progress], None] | None = None,
) -> TagResults:
    """Train one network once: "bilstm" if none is named, or "lstm" for causal answers. See `compare`."""
    settings = settings or TagSettings()
    chosen = cell or ("lstm" if settings.causal else "bilstm")
    return _compare(data, [chosen], (seed,), settings, command, on_epoch, None)


def _compare(
    data: Tagging,
    cells: Sequence[str],
    seeds: tuple[int, ...],
    settings: TagSettings,
    command: str,
    on_epoch: Callable[[Progress], None] | None,
    on_network: Callable[[TagResults], None] | None,
) -> TagResults:
    if not cells or len(set(cells)) < len(cells):
        raise AnyRNNError(f"cells: got {', '.join(cells) or 'none'}, expected one or more names, each once")
    networks = [network(name) for name in cells]
    with torch.random.fork_rng(devices=[]):  # a cell that cannot be built is found now, not after the others
        for each in networks:
            settings.tagger(each, data)
    settings = settings.resolved(data)
    beside = baselines(data, settings.metric, causal=settings.causal)
    results = TagResults(data, settings, seeds, (), beside, tuple(cells), command)
    epochs, runs, chosen = settings.epochs_for(len(data.train)), len(networks) * len(seeds), str(settings.metric)
    for each in networks:
        trained: list[tuple[TrainedTagger, Run]] = []
        for seed in seeds:
            run = len(results.entries) * len(seeds) + len(trained) + 1

            def tell(epoch: Epoch, ended: bool, *, seed: int = seed, each: Network = each, run: int = run) -> None:
                if on_epoch is not None:
                    on_epoch(Progress(each, seed, run, runs, epoch, epochs, ended, chosen))

            trained.append(train(each, data, settings, seed, tell))
        with using_threads(settings.thread_count):
            entry = Entry.of(trained, width(data.reader, settings.embedding_size))
        results = results.with_entry(entry)
        if on_network is not None:
            on_network(results)
    return results
