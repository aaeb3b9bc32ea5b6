"""The kinds of tasks: what reads their data, what trains for them, and which options they therefore have."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.compare import compare, fit
from anyrnn.workbench.data import load
from anyrnn.workbench.train import Settings

Verb = Literal["fit", "compare"]


@dataclass(frozen=True)
class Kind:
    """A kind of task, by the functions of the Python API that it is done with.

    Attributes:
        load: Reads the data.
        settings: What training is told; each of its fields is an option.
        fit: Trains one network.
        compare: Trains several.
    """

    load: Callable[..., Any]
    settings: type
    fit: Callable[..., Any]
    compare: Callable[..., Any]

    def trains(self, verb: Verb) -> Callable[..., Any]:
        """The function of a command."""
        return self.fit if verb == "fit" else self.compare

    def training(self, verb: Verb, given: Given) -> dict[str, Any]:
        """What goes to the function that trains: cells, seeds. A seed is that of the training, not of the split."""
        return _of(given, inspect.signature(self.trains(verb)).parameters)

    def settings_of(self, given: Given) -> Any:
        """The settings."""
        return self.settings(**_of(given, [field.name for field in fields(self.settings)]))

    def read(self, verb: Verb, given: Given) -> Any:
        """Read the data, by what is for neither."""
        others = given.keys() - self.training(verb, given).keys()
        return self.load(**_of(given, others & inspect.signature(self.load).parameters.keys()))

    def defaults(self, verb: Verb) -> Mapping[str, str]:
        """What the help says of the defaults of the options, by name."""
        functions = (inspect.signature(function) for function in (self.load, self.trains(verb)))
        values = {p.name: p.default for function in functions for p in function.parameters.values()}
        return defaults_of(self.settings) | {name: said for name, value in values.items() if (said := _said(value))}


def defaults_of(settings: type) -> dict[str, str]:
    """What the help says of the defaults of settings, by name."""
    return {field.name: said for field in fields(settings) if (said := _said(field.default))}


def _said(default: Any) -> str:
    if isinstance(default, bool) or not isinstance(default, int | float | str):
        return ""  # a flag is off, and what is None is said in words
    return f"{default:g}" if isinstance(default, float) else f"{default}"


def _of(given: Given, names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}


SEQUENCES = Kind(load, Settings, fit, compare)
