"""Train several networks over several seeds on one dataset of whole sequences, beside baselines: the results.

Everything shown or saved later, by the table, the report and the run folder, is read from `Results.to_dict()`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anyrnn.workbench.baselines import baselines
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.inspect import flow, gates
from anyrnn.workbench.loop import Callback, seeds_up_to, train_all
from anyrnn.workbench.models import COMPARED, Model
from anyrnn.workbench.ondisk import lengths_of
from anyrnn.workbench.outcome import Entry, Scored
from anyrnn.workbench.overview import described
from anyrnn.workbench.processes import world
from anyrnn.workbench.progress import Progress
from anyrnn.workbench.report import render
from anyrnn.workbench.stored import save_model
from anyrnn.workbench.train import SequenceLesson, Settings
from anyrnn.workbench.training import Run
from anyrnn.workbench.unfinished import UnfinishedRun


class Results(Scored[Dataset, Model]):
    """The outcome of a comparison on whole sequences: see `anyrnn.workbench.outcome.Outcome`."""

    @property
    def input_size(self) -> int:
        """The features of a step, with what is said of missing values."""
        return self.dataset.scaler.width

    @property
    def conditions(self) -> str:
        """Under which the scores were reached, in a line."""
        data, settings = self.dataset, self.settings
        return (
            f"{data.name}: {len(data.train)} training and {len(data.test)} test sequences, {len(self.seeds)} "
            f"seed{'s' if len(self.seeds) > 1 else ''}, {settings.epochs} epochs, hidden size {settings.hidden_size}"
        )

    def report(self, results: Mapping[str, Any]) -> str:
        """The report: see `Outcome.report`."""
        test = self.dataset.test
        longest = int(lengths_of(test.x).argmax())  # the one with most to see
        flows = {entry.model.network.name: flow(entry.model, test) for entry in self.entries}
        return render(results, gates(self.best.model, test, longest), flows)

    def write_model(self, folder: Path, model: Any) -> None:
        """Write a model: see `Outcome.write_model`."""
        save_model(folder, model)

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them, the one source of the table and the report."""
        data = self.dataset
        steps = np.concatenate([lengths_of(part.x) for part in data.parts])
        described_data = {
            "name": data.name,
            "task": data.task,
            "target": data.target,
            "features": list(data.features),
            "classes": None if data.classes is None else list(data.classes),
            "train": len(data.train),
            "validation": 0 if data.validation is None else len(data.validation),
            "test": len(data.test),
            "shortest": int(steps.min()),
            "longest": int(steps.max()),
            "split": data.split,
            "attribution": data.attribution,
            "id_column": data.id_column,
            "time_column": data.time_column,
            "group_column": data.group_column,
            "gaps": data.gaps,
            "notes": list(data.notes),
            "overview": described(data),
        }
        found = self.written(None, described_data, self.written_metric)
        y = data.test.y.tolist()
        for entry, model in zip(self.entries, found["models"], strict=True):
            model["per_class"] = None if data.classes is None else _per_class(entry, data.classes, y)
        return {
            **found,
            "test_ids": list(data.test.ids),
            "test_targets": y,
            "test_groups": None if data.test.groups is None else list(data.test.groups),
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
        scheduler: The address of a Dask scheduler, such as ``tcp://host:8786``, whose workers do the training runs, one
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
    return _train_all(
        dataset,
        cells,
        seeds_up_to(seeds),
        settings or Settings(),
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
    return _train_all(
        dataset,
        [cell],
        (seed,),
        settings or Settings(),
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
    dataset: Dataset, cells: Sequence[str], seeds: tuple[int, ...], settings: Settings, command: str, **how: Any
) -> Results:
    settings = settings.resolved(dataset)

    def nothing() -> Results:
        beside = world().of_first(lambda: baselines(dataset, settings.metric))
        return Results(dataset, settings, seeds, (), beside, tuple(cells), command)

    results: Results = train_all(SequenceLesson(dataset, settings), cells, seeds, nothing, **how)
    return results


def _per_class(entry: Entry[Model, Run], classes: Sequence[str], y: Sequence[int]) -> list[dict[str, Any]]:
    """Of each class how many test sequences there are, and the share of them that is recognised, over the runs."""
    total = Counter(y)
    pairs = Counter(true for run in entry.runs for true, got in zip(y, run.predictions, strict=True) if true == got)
    recall = [pairs[k] / (total[k] * len(entry.runs)) if total[k] else None for k in range(len(classes))]
    return [{"class": name, "total": total[k], "recall": recall[k]} for k, name in enumerate(classes)]
