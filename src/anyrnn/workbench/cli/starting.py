"""`anyrnn init`: a file of options to begin with."""

from pathlib import Path
from typing import Any

from anyrnn.workbench.cli.config import template
from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.options import CONFIGURED
from anyrnn.workbench.cli.output import say
from anyrnn.workbench.cli.tasks import BY_TASK, SEQUENCES, Verb
from anyrnn.workbench.written import write_file

_SEQUENCES = {"source": "steps.csv", "id_column": "patient", "time_column": "hour", "target_column": "outcome"}
#: By the kind of task, what is set in its file.
_SET: dict[str, dict[str, Any]] = {
    "sequences": _SEQUENCES,
    "forecast": {
        "source": "sold.csv", "id_column": "shop", "time_column": "day", "target_column": "sold", "horizon": 7,
        "season": 7,
    },
    "text": {"source": "book.txt"},
    "tagging": {"source": "rivers.csv", "id_column": "river", "time_column": "day", "target_column": "discharge"},
}  # fmt: skip


def init(given: Given) -> None:
    """Write a file of options for a task."""
    path, verb = given.get("out", Path("run.toml")), given.get("command", "fit")
    write_file(path, text_for(given.get("task"), verb), given.get("overwrite", False))
    say(f"{path} is written. Name your data in it, then: anyrnn {verb} --config {path}")


def text_for(task: str | None, verb: Verb) -> str:
    """The content of the file for a task, as --task names it."""
    kind = BY_TASK.get(task or "", SEQUENCES)
    options = [option for option in CONFIGURED[verb] if option.name in kind.words(verb)]
    values = {**_SET[kind.name], **({} if task is None else {"task": task})}
    defaults = {option.name: False if option.kind is bool else kind.default(verb, option.name) for option in options}
    shown = {name: value for name, value in defaults.items() if value not in {None, ()}}
    return template(verb, options, values, shown, kind.plural)
