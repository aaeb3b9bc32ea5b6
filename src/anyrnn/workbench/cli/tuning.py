"""`anyrnn tune`: search for the best network and its size, show the trials, and save the best one."""

import shlex
from pathlib import Path

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.options import Option
from anyrnn.workbench.cli.output import complain, console, interrupted, say
from anyrnn.workbench.cli.tasks import SEQUENCES, kind_for, written
from anyrnn.workbench.cli.training import command_of
from anyrnn.workbench.keeping import undisturbed
from anyrnn.workbench.models import COMPARED
from anyrnn.workbench.tune import SIZES, TRIALS, Trial, save, tune
from anyrnn.workbench.unfinished import UnfinishedRun


def run(given: Given) -> None:
    """Do what a command line asks for."""
    kind = kind_for("compare", given)
    if kind is not SEQUENCES:
        raise AnyRNNError(
            f"anyrnn tune is for sequences to a class or a number, and the task here is {kind.plural}; try cells and "
            "sizes with anyrnn compare"
        )
    settings, data = kind.settings_of(given), kind.read("compare", given)
    trials = given.get("trials", TRIALS)
    say(str(data))
    for note in (f"Split: {data.split}", *data.notes):
        say(note, style="dim")

    def tell(trial: Trial) -> None:
        say(f"[{trial.number}/{trials}] {trial}")

    place = _place(data.name, given)
    try:
        found = tune(
            data,
            given.get("cells", COMPARED),
            folder=place,
            sizes=given.get("sizes", SIZES),
            trials=trials,
            settings=settings,
            command=command_of("tune", given),
            on_trial=tell,
        )
        say("")
        console.print(found)
        say("")
        say(f"Best by the validation part: {found.best}. On the test part: {found.results.verdict}")
        save(found, place)
    except KeyboardInterrupt as interrupt:
        with undisturbed():
            left = place.close()
            interrupted(interrupt, "The same command with --resume goes on." if left else "Nothing was written.")
    finally:
        place.close()
    folder = shlex.quote(str(place.folder))
    say(f"Report: {place.folder / 'report.html'}")
    say(f"Predict with the best one: anyrnn predict {folder} DATA")


def _place(name: str, given: Given) -> UnfinishedRun:
    folder, overwrite, resume = Path("runs", f"{name}-tuned"), given.get("overwrite", False), given.get("resume", False)
    numbered = "out" not in given and not overwrite
    return UnfinishedRun(given.get("out", folder), resume=resume, overwrite=overwrite, numbered=numbered, say=complain)


def described(option: Option) -> str:
    """What the help says of an option in brackets: its default."""
    default = option.default or written(SEQUENCES.default("compare", option.name))
    return f"default: {default}" if default else ""
