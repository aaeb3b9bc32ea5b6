"""`anyrnn compare` and `anyrnn fit`: read the data, train, show what came out, and save it."""

import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.options import CONFIGURED, joined
from anyrnn.workbench.cli.output import UNWRITTEN, complain, console, errors, interrupted, say
from anyrnn.workbench.cli.tasks import Kind, Verb, kind_for
from anyrnn.workbench.keeping import keep, undisturbed
from anyrnn.workbench.models import KNOWN
from anyrnn.workbench.processes import world
from anyrnn.workbench.progress import Progress, shown
from anyrnn.workbench.unfinished import UnfinishedRun

#: Trains, and tells of each epoch and of what is finished.
Train = Callable[[Callable[[Progress], None], Callable[[Any], None]], Any]


def run(verb: Verb, given: Given) -> None:
    """Do what a command line asks for."""
    kind = kind_for(verb, given)
    settings, others = kind.settings_of(given), kind.training(verb, given)
    data = kind.read(verb, given)
    say(str(data))
    for note in (f"Split: {data.split}", *data.notes):
        say(note, style="dim")
    trains = kind.trains(verb)
    hears = inspect.signature(trains).parameters
    place = _place(data.name, given)

    def train(tell: Callable[[Progress], None], on_network: Callable[[Any], None]) -> Any:
        asked = {name: value for name, value in others.items() if name not in ("overwrite", "resume")}
        if "on_network" in hears:  # fit has one network
            asked["on_network"] = on_network
        return trains(
            data,
            settings=settings,
            command=command_of(verb, given),
            on_epoch=tell,
            folder=place,
            progress=False,
            **asked,
        )

    _train_and_save(kind, place, train)


def _place(name: str, given: Given) -> UnfinishedRun:
    """Where a run goes."""
    folder, overwrite = given.get("out") or Path("runs", name), given.get("overwrite", False)
    numbered, resume = "out" not in given and not overwrite, given.get("resume", False)
    return UnfinishedRun(folder, resume=resume, overwrite=overwrite, numbered=numbered, say=complain)


def _train_and_save(kind: Kind, place: UnfinishedRun, train: Train) -> None:
    """Train; show what came out, then save it. What was finished outlives whatever comes in between."""
    finished: list[Any] = []
    try:
        with shown(console) as tell:
            finished.append(train(tell, finished.append))
        if not world().first:
            return
        _show(finished[-1])
        kept = keep(finished[-1], place.folder, overwrite=True)
    except KeyboardInterrupt as interrupt:
        with undisturbed():
            interrupted(interrupt, _left(place, finished))
    except BaseException:
        if finished:
            errors.print(_left(place, finished), soft_wrap=True)
        else:
            place.close()
        raise
    if kept.folder is None:
        complain(f"{kept}, but {_to_go_on(place)}" if place.close() else f"{kept}: it is lost")
        raise typer.Exit(UNWRITTEN)
    place.finish(kept.folder)
    say(f"Report: {kept.folder / 'report.html'}")
    own = finished[-1].best.model.network.name
    named = f" --cells {shlex.quote(own)}" if own not in KNOWN else ""
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


def _left(place: UnfinishedRun, finished: Sequence[Any]) -> str:
    """Save the networks that have had all their runs, and say so, and what is there to go on with."""
    if not world().first:
        return "Process 0 keeps what was finished."
    said = _keep(finished[-1], place) if finished else ""
    if not place.close():
        return said or "Nothing was written."
    return f"{said} What was trained is kept: {_to_go_on(place)}.".lstrip()


def _to_go_on(place: UnfinishedRun) -> str:
    return f"the same command with --resume goes on in {_relative(place.folder)}"


def _keep(finished: Any, place: UnfinishedRun) -> str:
    folder = place.folder.absolute()
    if place.replaces:  # a finished run stays there until there is another finished one
        kept = keep(finished, folder.with_name(f"{folder.name}.partial"), numbered=True)
    else:
        kept = keep(finished, folder, overwrite=True)
    names = ", ".join(entry.model.network.title for entry in finished.entries)
    if kept.folder is None:
        return f"The networks that had all their runs ({names}) are not saved: {kept}."
    return f"The networks that had all their runs ({names}) are saved in {_relative(kept.folder)}."


def _relative(folder: Path) -> Path:
    with suppress(ValueError):
        return folder.absolute().relative_to(Path.cwd())
    return folder


def command_of(verb: str, given: Given) -> str:
    """The command line as it was, or, where a file had options, one that has them all: files change."""
    if "config" not in given:
        return shlex.join(["anyrnn", *sys.argv[1:]])
    words = ["anyrnn", verb, given["source"]]
    for option in CONFIGURED[verb]:
        value = given.get(option.name)
        if option.flag and value is not None and value is not False:
            words += [option.flag] if value is True else [option.flag, joined(value) if option.several else f"{value}"]
    return shlex.join(words)
