"""From a list of options and a function to a command as Typer takes it, with a help of several sections."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.cli.config import read_config
from anyrnn.workbench.cli.options import CONFIGURED, Option, listed

#: What was given to a command, and nothing else: by the name of the option, its value.
Given = Mapping[str, Any]

_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def takes(name: str, options: Sequence[Option], described: Callable[[Option], str]) -> Callable[..., Any]:
    """Make a function of what was given a command that has these options, on its line or in a file (--config).

    Args:
        name: Of the command.
        options: In the order of the help.
        described: What the help says of an option in brackets: its default.
    """
    parameters = [_parameter(option, described(option)) for option in options]
    if name in CONFIGURED:
        parameters.append(_config(name))

    def decorate(command: Callable[[Given], None]) -> Callable[..., None]:
        def called(**values: Any) -> None:
            given = {option.name: _read(option, values[option.name]) for option in options}
            if values.get("config") is not None:
                given["config"] = values["config"]
            command({name: value for name, value in given.items() if value is not None})

        called.__doc__ = command.__doc__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


def _read(option: Option, value: Any) -> Any:
    """A value as the Python API takes it; None: it was not given."""
    if value is None or not option.several:
        return value
    if option.kind is str:
        return tuple(listed(value))
    try:
        return tuple(option.kind(each) for each in listed(value) if value.strip())
    except ValueError:
        raise AnyRNNError(f"{option.flag}: got {value!r}, expected numbers with commas between them") from None


def _parameter(option: Option, described: str) -> inspect.Parameter:
    """An option as Typer takes it; that of a value that was not given is None."""
    if not option.flag:
        argument = typer.Argument(metavar=option.metavar, help=option.help)
        return inspect.Parameter(option.name, _KEYWORD, annotation=_annotated(option.kind, argument))
    info = typer.Option(
        option.flag,
        help=f"{option.help}  [{described}]" if described else option.help,
        metavar=option.metavar,
        show_default=False,
        rich_help_panel=option.section,
        autocompletion=_completed(option.values) if option.values else None,
    )
    kind = str if option.several else option.kind
    return inspect.Parameter(option.name, _KEYWORD, default=None, annotation=_annotated(kind | None, info))


def _annotated(kind: Any, info: Any) -> Any:
    return Annotated[kind, info]


def _completed(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Complete the last of the names between commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in dict.fromkeys(values) if value.startswith(begun)]

    return complete


def _config(name: str) -> inspect.Parameter:
    """The option that names a file of options. It is read before the others, which win."""

    def read(ctx: typer.Context, path: Path | None) -> Path | None:
        if path is not None and not ctx.resilient_parsing:
            ctx.default_map = {**(ctx.default_map or {}), **read_config(path, name)}
        return path

    info = typer.Option(
        "--config",
        help="A TOML file of these options, such as `anyrnn init` writes. Those of the command line win.",
        metavar="FILE",
        show_default=False,
        is_eager=True,
        callback=read,
        rich_help_panel="Other",
    )
    return inspect.Parameter("config", _KEYWORD, default=None, annotation=_annotated(Path | None, info))


class Command(TyperCommand):
    """A command whose help lists its options by section."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a list of options for each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                section = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Other"
                sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)
