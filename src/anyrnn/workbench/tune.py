"""A search: which network, and of how many units, does best on the validation part. It needs the extra `anyrnn[tune]`.

Optuna proposes what to try (by its tree-structured Parzen estimator, after some at random) and says which trials to end
early: those whose validation score after an epoch is worse than the median of the trials before. The test part has no
say: no trial is chosen by it, and the best one alone is shown with its test score.
"""

import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.compare import Results, fit
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.durable import write_whole
from anyrnn.workbench.fingerprint import identity
from anyrnn.workbench.lesson import EpochEnd
from anyrnn.workbench.models import COMPARED, network
from anyrnn.workbench.runs import JOURNAL, TRAINING, TUNING
from anyrnn.workbench.stored import finite
from anyrnn.workbench.train import Settings, train
from anyrnn.workbench.unfinished import UnfinishedRun

SIZES = (16, 256)  # units: where networks of a few thousand sequences do best
TRIALS = 30

_AT_RANDOM = 5  # trials before medians mean something; Optuna's own number
_WHY = "why"  # what a trial that failed by itself, and was not cut off, has a note of


@dataclass(frozen=True)
class Trial:
    """A training run of a search.

    Attributes:
        number: Counted from 1.
        cell: The network.
        hidden_size: Its units.
        state: "finished", "pruned" (ended early, since others did better), or "failed" (its training diverged).
        epochs: That it was trained for.
        score: Its best validation score; None if it failed.
    """

    number: int
    cell: str
    hidden_size: int
    state: Literal["finished", "pruned", "failed"]
    epochs: int
    score: float | None

    def __str__(self) -> str:
        score = "" if self.score is None else f", {self.score:.4g}"
        return f"{self.cell}, {self.hidden_size} units: {self.state} after {self.epochs} epochs{score}"


@dataclass(frozen=True, repr=False)
class Tuned:
    """What came out of a search.

    Attributes:
        metric: What the validation scores are.
        trials: All of them, in order.
        best: The one with the best validation score.
        results: The best one trained again, to the same weights: `results.save` writes its run folder.
    """

    metric: str
    trials: tuple[Trial, ...]
    best: Trial
    results: Results

    def table(self) -> str:
        """The trials as text, the best one first."""
        console = Console(file=StringIO(), width=100)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def __repr__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("trial", "cell", "units", "epochs", f"validation {self.metric}", ""):
            table.add_column(title, justify="left" if title in {"cell", ""} else "right")
        for trial in sorted(self.trials, key=lambda each: (each != self.best, each.state != "finished")):
            score = "–" if trial.score is None else f"{trial.score:.4g}"
            mark = "best" if trial == self.best else "" if trial.state == "finished" else trial.state
            table.add_row(str(trial.number), trial.cell, str(trial.hidden_size), str(trial.epochs), score, mark)
        yield table

    def to_dict(self) -> dict[str, Any]:
        """What `tuning.json` has."""
        return {
            "metric": self.metric,
            "best": self.best.number,
            "trials": [asdict(trial) for trial in self.trials],
        }


def tune(
    dataset: Dataset,
    cells: Sequence[str] = COMPARED,
    *,
    folder: str | Path | UnfinishedRun,
    sizes: Sequence[int] = SIZES,
    trials: int = TRIALS,
    seed: int = 0,
    settings: Settings | None = None,
    command: str = "anyrnn.workbench.tune",
    on_trial: Callable[[Trial], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Tuned:
    """Search for the network, and the number of its units, with the best validation score.

    Args:
        dataset: From `load`, with a validation part.
        cells: Names of networks, or "module:Class" for cells of one's own.
        folder: The run folder, where the best one is saved in the end, with `tuning.json`, the list of the trials.
        sizes: The fewest and the most units.
        trials: How many networks to try.
        seed: Of all training runs, and of what is tried.
        settings: Everything else; its `hidden_size` has no say.
        command: What the results name as the command that made them.
        on_trial: Called after each trial.
        resume: If a search was begun in `folder` and cut off, go on with it, with as many trials as are missing; else
            begin it. Its `trials` may have become more.
        overwrite: Replace a run in `folder`.

    Raises:
        AnyRNNError: without the package optuna; for data without a validation part, an unknown cell, or sizes and
            numbers that make no sense; if no trial was finished.
    """
    if isinstance(folder, UnfinishedRun):
        return _Search(dataset, tuple(cells), _range(sizes), trials, seed, settings or Settings()).run(
            folder, command, on_trial
        )
    with UnfinishedRun(Path(folder), resume=resume, overwrite=overwrite) as run:
        found = tune(
            dataset,
            cells,
            folder=run,
            sizes=sizes,
            trials=trials,
            seed=seed,
            settings=settings,
            command=command,
            on_trial=on_trial,
        )
        save(found, run)
        return found


def save(found: Tuned, run: UnfinishedRun) -> None:
    """Write the run folder of the best one, with the list of the trials; the search is then finished."""
    folder = found.results.save(run.folder, overwrite=True)
    text = json.dumps(finite(found.to_dict()), indent=1, ensure_ascii=False)
    write_whole(folder / TUNING, text.encode("utf-8", "surrogatepass"))
    run.finish()


def _range(sizes: Sequence[int]) -> tuple[int, int]:
    if len(sizes) != 2 or not all(isinstance(size, int) for size in sizes) or not 1 <= sizes[0] <= sizes[1]:
        raise AnyRNNError(f"sizes: got {tuple(sizes)}, expected two numbers, the fewest and the most units: {SIZES}")
    return sizes[0], sizes[1]


def _optuna() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as cause:
        raise AnyRNNError(f"a search needs the package optuna: pip install 'anyrnn[tune]' ({cause})") from cause
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class _Pruned(Exception):  # noqa: N818 - no error: the trial ends early
    """A trial that the others have done better than."""


@dataclass(frozen=True)
class _Search:
    """What is searched for, and how."""

    dataset: Dataset
    cells: tuple[str, ...]
    sizes: tuple[int, int]
    trials: int
    seed: int
    settings: Settings

    def __post_init__(self) -> None:
        if self.dataset.validation is None:
            raise AnyRNNError(
                f"{self.dataset.name}: a search needs a validation part to choose by, and the data have none: "
                f"{self.dataset.split}"
            )
        if not isinstance(self.trials, int) or self.trials < 1:
            raise AnyRNNError(f"trials: got {self.trials!r}, expected how many networks to try, at least 1")
        if not self.cells or len(set(self.cells)) < len(self.cells):
            raise AnyRNNError(f"cells: got {', '.join(self.cells) or 'none'}, expected one or more names, each once")
        with torch.random.fork_rng(devices=[]):  # a cell that cannot be built is found now, not after the others
            for cell in self.cells:
                each = network(cell)
                self.settings.build(each, each.input_size(self.dataset.scaler), 1)

    def run(self, run: UnfinishedRun, command: str, on_trial: Callable[[Trial], None] | None) -> Tuned:
        """Search, and train the best one."""
        optuna = _optuna()
        metric = self.settings.metric_for(self.dataset)
        what = identity(self.dataset, replace(self.settings, hidden_size=self.sizes[0]), metric.name, self.cells)
        run.begin({**what, "networks": list(self.cells), "sizes": list(self.sizes), "seed": self.seed})
        study = self._study(optuna, run.folder / TRAINING / JOURNAL, metric.higher_is_better)
        while len(found := self._found(study)) < self.trials:
            # A sampler of its own for each: what is tried next depends on the trials before, not on how often the
            # search was cut off.
            study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(found))
            self._try(optuna, study, metric.sign)
            if on_trial is not None:
                on_trial(self._found(study)[-1])
        finished = [trial for trial in found if trial.state == "finished" and trial.score is not None]
        if not finished:
            raise AnyRNNError(
                f"{self.dataset.name}: the training of all {len(found)} trials diverged; a lower learning rate than "
                f"{self.settings.learning_rate} may help"
            )
        best = max(finished, key=lambda trial: metric.sign * (trial.score or 0.0))
        settings = replace(self.settings, hidden_size=best.hidden_size)
        results = fit(self.dataset, best.cell, seed=self.seed, settings=settings, command=command)
        return Tuned(metric.name, tuple(found), best, results)

    def _study(self, optuna: Any, journal: Path, rises: bool) -> Any:
        """The trials so far; what was being tried when the search was cut off is tried again."""
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="anyrnn",
            direction="maximize" if rises else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_AT_RANDOM),
            load_if_exists=True,
        )
        for cut in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(cut.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(cut.params)
        return study

    def _try(self, optuna: Any, study: Any, sign: float) -> None:
        states = optuna.trial.TrialState
        trial = study.ask()
        cell = network(trial.suggest_categorical("cell", list(self.cells)))
        size = trial.suggest_int("hidden_size", *self.sizes, log=True)
        settings = replace(self.settings, hidden_size=size)

        def report(end: EpochEnd) -> None:
            score = end.epoch.validation_score
            trial.report(math.nan if score is None else score, end.epoch.epoch)
            if not end.ended and trial.should_prune():
                raise _Pruned

        try:
            _, run = train(cell, self.dataset, settings, self.seed, report)
        except _Pruned:
            study.tell(trial, state=states.PRUNED)
            return
        except AnyRNNError as error:
            trial.set_user_attr(_WHY, str(error))
            study.tell(trial, state=states.FAIL)
            return
        score = run.history[run.epoch - 1].validation_score
        if score is None or not math.isfinite(score):
            trial.set_user_attr(_WHY, f"its validation score is {score}")
            study.tell(trial, state=states.FAIL)
            return
        study.tell(trial, score)

    def _found(self, study: Any) -> list[Trial]:
        """The trials that have ended by themselves."""
        found: list[Trial] = []
        names = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        for each in study.get_trials():
            state: Any = names.get(each.state.name)
            if state is None or (state == "failed" and _WHY not in each.user_attrs):
                continue
            scores = [score for score in each.intermediate_values.values() if math.isfinite(score)]
            score = each.value if state == "finished" else None
            if state == "pruned" and scores:
                score = max(scores) if study.direction.name == "MAXIMIZE" else min(scores)
            epochs = len(each.intermediate_values)
            found.append(Trial(len(found) + 1, each.params["cell"], each.params["hidden_size"], state, epochs, score))
        return found
