"""The kinds of tasks: what reads their data, what trains for them, and which options they therefore have."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, Literal

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import forecast, language, tagging
from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.idle import refuse_idle
from anyrnn.workbench.cli.options import CONFIGURED, Option, listed
from anyrnn.workbench.compare import compare, fit
from anyrnn.workbench.data import load
from anyrnn.workbench.language.text import is_text
from anyrnn.workbench.tagging.load import is_tagged_text
from anyrnn.workbench.train import Settings

Verb = Literal["fit", "compare"]

_OF_ANY = frozenset({"source", "task", "out", "overwrite", "config"})  # options that are for every kind of task


@dataclass(frozen=True)
class Kind:
    """A kind of task, by the functions of the Python API that it is done with.

    Attributes:
        name: As a run folder has it.
        plural: What messages call such tasks.
        asked: How to ask for one whatever the data are; "": by the data alone.
        load: Reads the data.
        settings: What training is told; each of its fields is an option.
        fit: Trains one network.
        compare: Trains several.
        then: The command that a trained network is for, with the run folder to be filled in.
        unread: Words of the settings that it has from those of whole sequences, and does not read.
    """

    name: str
    plural: str
    asked: str
    load: Callable[..., Any]
    settings: type
    fit: Callable[..., Any]
    compare: Callable[..., Any]
    then: str
    unread: frozenset[str] = frozenset()

    def trains(self, verb: Verb) -> Callable[..., Any]:
        """The function of a command."""
        return self.fit if verb == "fit" else self.compare

    def words(self, verb: Verb) -> frozenset[str]:
        """The names of the options that it has."""
        settings = (field.name for field in fields(self.settings))
        return _OF_ANY.union(settings, _arguments(self.load), _arguments(self.trains(verb))) - self.unread

    def default(self, verb: Verb, name: str) -> Any:
        """The default of an option in the Python API; None if it has none that says what happens."""
        for function in (self.settings, self.trains(verb), self.load):
            argument = _arguments(function).get(name)
            if argument is not None and argument.default is not argument.empty:
                return argument.default
        return None

    def training(self, verb: Verb, given: Given) -> dict[str, Any]:
        """What goes to the function that trains: cells, seeds. A seed is that of the training, not of the split."""
        return _of(given, _arguments(self.trains(verb)))

    def settings_of(self, given: Given) -> Any:
        """The settings."""
        return self.settings(**_of(given, [field.name for field in fields(self.settings)]))

    def read(self, verb: Verb, given: Given) -> Any:
        """Read the data, by what is for neither.

        Raises:
            AnyRNNError: if something is not given that has to be, or what `load` raises.
        """
        others = given.keys() - self.training(verb, given).keys()
        if given.get("task") == self.name:
            others -= {"task"}
        arguments = _arguments(self.load)
        for name, argument in arguments.items():
            if argument.default is argument.empty and name not in given:
                option = next(each for each in CONFIGURED[verb] if each.name == name)
                what = option.help.partition(".")[0]
                raise AnyRNNError(f"{self.plural} need {option.flag}: {what[0].lower()}{what[1:]}")
        return self.load(**_of(given, others & arguments.keys()))


def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _of(given: Given, names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}


SEQUENCES = Kind(
    "sequences", "sequences", "", load, Settings, fit, compare,
    "Predict with the best one: anyrnn predict {} DATA",
)  # fmt: skip


@wraps(forecast.load_series)
def _load_series(source: str, *, target_column: str, **others: Any) -> forecast.Forecasting:
    return forecast.load_series(source, target_column=series_target(target_column), **others)


def series_target(text: str) -> str | tuple[str, ...]:
    """The target of a long table of series, or those of a wide one, between commas."""
    names = listed(text)
    return names[0] if len(names) == 1 else tuple(names)


FORECAST = Kind(
    "forecast", "forecasts", "--task forecast --horizon STEPS", _load_series, forecast.ForecastSettings, forecast.fit,
    forecast.compare, "Forecast with the best one: anyrnn predict {} DATA",
)  # fmt: skip
TEXT = Kind(
    "text", "texts", "--task text", language.load_text, language.TextSettings, language.fit, language.compare,
    "Let the best one write: anyrnn generate {} --prompt TEXT",
)  # fmt: skip
TAGGING = Kind(
    "tagging", "tagging", "--task tagging", tagging.load_tagged, tagging.TagSettings, tagging.fit, tagging.compare,
    "Predict each step with the best one: anyrnn predict {} DATA", frozenset({"pool"}),
)  # fmt: skip
KINDS = (SEQUENCES, TAGGING, FORECAST, TEXT)
#: By what --task says, the kind; all others are of sequences.
BY_TASK = {kind.name: kind for kind in (TAGGING, FORECAST, TEXT)}


def kind_for(verb: Verb, given: Given) -> Kind:
    """Find out what kind of task a command line asks for, and refuse options that are for others.

    Raises:
        AnyRNNError: for an option that is not for this kind of task.
    """
    task, source = given.get("task"), given["source"]
    if task is not None:
        kind, why = BY_TASK.get(task, SEQUENCES), f"--task {task}"
    elif is_tagged_text(source):
        kind, why = TAGGING, source
    elif is_text(source):
        kind, why = TEXT, source
    elif "horizon" in given:
        kind, why = FORECAST, "--horizon"
    else:
        kind, why = SEQUENCES, source
    for option in CONFIGURED[verb]:
        if option.name in given and option.name not in kind.words(verb):
            others = [each for each in KINDS if option.name in each.words(verb)]
            *first, last = (each.plural for each in others)
            meant = f"{', '.join(first)} or {last}" if first else last
            asking = "".join(f", or ask for {each.plural} ({each.asked})" for each in others if each.asked)
            raise AnyRNNError(
                f"{option.flag} is for {meant}, and the task here is {kind.plural} ({why}); leave it out{asking}"
            )
    refuse_idle(kind.name, CONFIGURED[verb], given)
    return kind


def described(option: Option, verb: Verb) -> str:
    """What the help of a command says of an option in brackets: for which tasks it is, and its default there."""
    kinds = [kind for kind in KINDS if option.name in kind.words(verb)]
    tasks = f"for {' and '.join(kind.plural for kind in kinds)}" if len(kinds) < len(KINDS) else ""
    found = {kind.plural: option.default_of(kind.plural) or written(kind.default(verb, option.name)) for kind in kinds}
    defaults = {plural: said for plural, said in found.items() if said}
    first = next(iter(defaults.values()), "")
    others: dict[str, list[str]] = {}
    for plural, said in defaults.items():
        if said != first:
            others.setdefault(said, []).append(plural)
    default = "; ".join([first, *(f"{', '.join(plurals)}: {said}" for said, plurals in others.items())])
    return "; ".join(filter(None, (tasks, default and f"default: {default}")))


def written(default: Any) -> str:
    """A default as the help says it; nothing for a flag, which is off, and for one that words have to say."""
    if isinstance(default, tuple):
        return ",".join(map(written, default))
    if isinstance(default, bool) or not isinstance(default, int | float | str):
        return ""
    return f"{default:g}" if isinstance(default, float) else f"{default}"
