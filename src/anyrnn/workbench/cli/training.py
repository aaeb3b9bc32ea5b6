"""`anyrnn compare` and `anyrnn fit`: read the data, train, show what came out, and save it."""

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.output import UNWRITTEN, complain, console, errors, interrupted, say
from anyrnn.workbench.cli.tasks import SEQUENCES, Verb
from anyrnn.workbench.compare import Results
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.keeping import keep, undisturbed
from anyrnn.workbench.models import NETWORKS
from anyrnn.workbench.progress import Progress, shown
from anyrnn.workbench.runs import check_destination


def run(verb: Verb, given: Given) -> None:
    """Do what a command line asks for."""
    kind = SEQUENCES
    data = kind.read(verb, given)
    say(str(data))
    for note in (f"Split: {data.split}", *data.notes):
        say(note, style="dim")
    settings, others = kind.settings_of(given), kind.training(verb, given)

    def train(tell: Callable[[Progress], None], on_network: Callable[[Results], None]) -> Results:
        if verb == "compare":
            others["on_network"] = on_network
        results: Results = kind.trains(verb)(data, settings=settings, command=_command(), on_epoch=tell, **others)
        return results

    _train_and_save(data, train, given.get("out"), given.get("overwrite", False))


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
            interrupted(interrupt, _keep(finished[-1], folder))
    except BaseException:
        if finished:
            errors.print(_keep(finished[-1], folder), soft_wrap=True)
        raise
    if kept.folder is not None:
        say(f"Report: {kept.folder / 'report.html'}")
        own = finished[-1].best.model.network.name
        named = f" --cells {shlex.quote(own)}" if own not in NETWORKS else ""
        say(f"Predict with the best one: anyrnn predict {shlex.quote(str(kept.folder))} DATA{named}")
    if kept.trouble is not None:
        complain(kept)
        raise typer.Exit(UNWRITTEN)


def _show(results: Results) -> None:
    console.print()
    if console.is_terminal:
        console.print(results)
    else:
        say(results.table())
    console.print()
    for sentence in (results.verdict, *results.remarks):
        say(sentence)


def _keep(finished: Any, folder: Path) -> str:
    """Save the networks that have had all their runs beside the place of the whole run, and say so."""
    kept = keep(finished, folder.absolute().with_name(f"{folder.absolute().name}.partial"), numbered=True)
    names = ", ".join(entry.model.network.title for entry in finished.entries)
    if kept.folder is None:
        return f"The networks that had all their runs ({names}) are lost: {kept}"
    with suppress(ValueError):
        kept = replace(kept, folder=kept.folder.relative_to(Path.cwd()))
    return f"The networks that had all their runs ({names}) are kept in {kept.folder}; nothing else was written."


def _command() -> str:
    return shlex.join(["anyrnn", *sys.argv[1:]])
