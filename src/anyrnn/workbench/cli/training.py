"""`anyrnn compare` and `anyrnn fit`: read the data, train, show what came out, and save it."""

import inspect
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.options import CONFIGURED, joined
from anyrnn.workbench.cli.output import UNWRITTEN, complain, console, errors, interrupted, say
from anyrnn.workbench.cli.tasks import Kind, Verb, kind_for
from anyrnn.workbench.keeping import keep, undisturbed
from anyrnn.workbench.models import NETWORKS
from anyrnn.workbench.progress import Told, shown
from anyrnn.workbench.runs import check_destination

#: Trains, and tells of each epoch and of what is finished.
Train = Callable[[Callable[[Told], None], Callable[[Any], None]], Any]


def run(verb: Verb, given: Given) -> None:
    """Do what a command line asks for."""
    kind = kind_for(verb, given)
    settings, others = kind.settings_of(given), kind.training(verb, given)
    data = kind.read(verb, given)
    say(str(data))
    for note in (f"Split: {data.split}", *data.notes):
        say(note, style="dim")
    trains = kind.trains(verb)

    def train(tell: Callable[[Told], None], on_network: Callable[[Any], None]) -> Any:
        hears = {"on_network": on_network} if "on_network" in inspect.signature(trains).parameters else {}
        return trains(data, settings=settings, command=_command(verb, given), on_epoch=tell, **hears, **others)

    _train_and_save(kind, data.name, train, given.get("out"), given.get("overwrite", False))


def _train_and_save(kind: Kind, name: str, train: Train, out: Path | None, overwrite: bool) -> None:
    """Train; show what came out, then save it. What was finished outlives whatever comes in between."""
    folder, numbered = out or Path("runs", name), out is None and not overwrite
    check_destination(folder.with_name(f"{folder.name}-2") if numbered and folder.exists() else folder, overwrite)
    finished: list[Any] = []
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
        say(f"{kind.then.format(shlex.quote(str(kept.folder)))}{named}")
    if kept.trouble is not None:
        complain(kept)
        raise typer.Exit(UNWRITTEN)


def _show(results: Any) -> None:
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


def _command(verb: Verb, given: Given) -> str:
    """The command line as it was, or, where a file had options, one that has them all: files change."""
    if "config" not in given:
        return shlex.join(["anyrnn", *sys.argv[1:]])
    words = ["anyrnn", verb, given["source"]]
    for option in CONFIGURED[verb]:
        value = given.get(option.name)
        if option.flag and value is not None and value is not False:
            words += [option.flag] if value is True else [option.flag, joined(value) if option.several else f"{value}"]
    return shlex.join(words)
