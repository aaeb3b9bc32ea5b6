"""The loop over networks and seeds, the same for every task: told of, kept, gone on with, done in several places."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import warn
from anyrnn.workbench.fingerprint import check_same, identity
from anyrnn.workbench.jobs import end_a_second_run
from anyrnn.workbench.lesson import AnyLesson, EpochEnd
from anyrnn.workbench.metrics_log import MetricsLog
from anyrnn.workbench.models import network
from anyrnn.workbench.ondisk import OnDisk
from anyrnn.workbench.outcome import Outcome
from anyrnn.workbench.places import Place, place
from anyrnn.workbench.processes import world
from anyrnn.workbench.progress import Progress, notebook_display, shown
from anyrnn.workbench.unfinished import UnfinishedRun
from anyrnn.workbench.work import Job

Callback = Callable[[Mapping[str, Any]], object]  # is called with what a line of metrics.jsonl has
O = TypeVar("O", bound=Outcome)  # noqa: E741 - what comes out

_SEEDS = 2**63  # what torch takes


def seeds_up_to(count: int) -> tuple[int, ...]:
    """The seeds of so many training runs of a network.

    Raises:
        AnyRNNError: if that is no number of runs.
    """
    if not isinstance(count, int) or count < 1:
        raise AnyRNNError(f"seeds: got {count!r}, expected how many runs each network gets, at least 1")
    return tuple(range(count))


def train_all(
    lesson: AnyLesson,
    cells: Sequence[str],
    seeds: tuple[int, ...],
    nothing: Callable[[], O],
    *,
    on_epoch: Callable[[Progress], None] | None,
    on_network: Callable[[O], None] | None = None,
    progress: bool | None,
    folder: str | Path | UnfinishedRun | None,
    resume: bool,
    overwrite: bool,
    callbacks: Sequence[Callback],
    workers: int = 1,
    scheduler: str | None = None,
) -> O:
    """Train each network with each seed.

    Args:
        lesson: What, and how.
        cells: Their names.
        seeds: Of the training runs of each.
        nothing: Makes the results that have no network yet, but baselines.
        on_epoch: This and the others are what `anyrnn.workbench.compare.compare` says.
        on_network: Likewise.
        progress: Likewise.
        folder: Likewise.
        resume: Likewise.
        overwrite: Likewise.
        callbacks: Likewise.
        workers: Likewise.
        scheduler: Likewise.

    Raises:
        AnyRNNError: as there.
    """
    if workers != 1:
        end_a_second_run()
    _check(lesson, cells, seeds, scheduler)
    with place(workers, scheduler) as where, _told(progress, on_epoch, callbacks) as tell:
        if folder is None:
            if resume or overwrite:
                raise AnyRNNError("resume and overwrite are about a run folder: expected folder=, too")
            return _trained(lesson, cells, seeds, nothing, tell, on_network, where, None)
        if isinstance(folder, UnfinishedRun):
            return _trained(lesson, cells, seeds, nothing, tell, on_network, where, folder)
        with UnfinishedRun(Path(folder), resume=resume, overwrite=overwrite) as run:
            results = _trained(lesson, cells, seeds, nothing, tell, on_network, where, run)
            if world().first:
                results.save(run.folder, overwrite=True)
                run.finish()
            return results


def _check(lesson: AnyLesson, cells: Sequence[str], seeds: tuple[int, ...], scheduler: str | None) -> None:
    if scheduler is not None and isinstance(getattr(lesson.dataset.train, "x", None), OnDisk):
        raise AnyRNNError(
            f"scheduler: got {scheduler!r}, but the steps of {lesson.dataset.name} are read in pieces, from the disk "
            "of this machine; expected data in memory (stream='never', --stream never), or workers here (workers, "
            "--workers)"
        )
    if world().size > 1 and not lesson.is_shared:
        raise AnyRNNError(
            f"{lesson.dataset.name}: torchrun has started {world().size} processes, which can train one network "
            "together on whole sequences only; start one process, which may have several workers (workers, --workers)"
        )
    if not cells or len(set(cells)) < len(cells):
        raise AnyRNNError(f"cells: got {', '.join(cells) or 'none'}, expected one or more names, each once")
    if not all(isinstance(seed, int) and 0 <= seed < _SEEDS for seed in seeds):
        raise AnyRNNError(f"seed: got {', '.join(map(str, seeds))}, expected whole numbers from 0 to {_SEEDS - 1}")


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


def _trained(
    lesson: AnyLesson,
    cells: Sequence[str],
    seeds: tuple[int, ...],
    nothing: Callable[[], O],
    on_epoch: Callable[[Progress], None],
    on_network: Callable[[O], None] | None,
    where: Place,
    kept: UnfinishedRun | None,
) -> O:
    networks = [network(name) for name in cells]
    with torch.random.fork_rng(devices=[]):  # a cell that cannot be built is found now, not after the others
        for each in networks:
            lesson.untrained(each, 0)
    what: Mapping[str, Any] = {}
    log: Callable[[Mapping[str, Any]], None] | None = None
    if kept is not None or world().size > 1:
        what = identity(lesson.dataset, lesson.settings, lesson.metric, cells)
        check_same(what)
    if kept is not None:
        world().of_first(lambda: kept.begin({**what, "networks": list(cells), "seeds": list(seeds)}))
        log = MetricsLog(kept.metrics, kept.say) if world().first else None
    results, epochs, runs = nothing(), lesson.settings.epochs, len(networks) * len(seeds)
    shares: dict[int, float] = {}  # how much of each run is done

    def tell(job: Job, end: EpochEnd) -> None:
        others = sum(share for run, share in shares.items() if run != job.run)
        shares[job.run] = 1.0 if end.ended else end.epoch.epoch / epochs
        now = Progress(
            job.network, job.seed, job.run, runs, end.epoch, epochs, end.ended, lesson.metric, lesson.plural,
            end.learning_rate, end.seconds, end.pace, others,
        )  # fmt: skip
        if log is not None:
            log(now.record)
        on_epoch(now)

    trained: dict[int, tuple[Any, Any]] = {}
    with where.jobs(lesson, tell, warn if kept is None else kept.say) as jobs:
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


def _with_finished(results: O, trained: dict[int, tuple[Any, Any]]) -> Iterator[O]:
    """The results with one more network each, as long as the next one has had all its runs, which are taken out."""
    seeds = len(results.seeds)
    while results.unfinished:
        first = len(results.entries) * seeds + 1
        runs = range(first, first + seeds)
        if not trained.keys() >= set(runs):
            return
        results = results.with_trained([trained.pop(run) for run in runs])
        yield results
