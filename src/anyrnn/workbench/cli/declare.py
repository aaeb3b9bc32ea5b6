"""From a list of options and a function to a command as Typer takes it, with a help of several sections."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from anyrnn.workbench.cli.options import Option, listed

#: What was given to a command, and nothing else: by the name of the option, its value.
Given = Mapping[str, Any]

_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def takes(*options: Option, defaults: Mapping[str, str] | None = None) -> Callable[..., Callable[..., None]]:
    """Make a function of what was given a command that has these options.

    Args:
        options: In the order of the help.
        defaults: What the help says of defaults, by the name of the option.
    """
    parameters = [_parameter(option, option.default or (defaults or {}).get(option.name, "")) for option in options]

    def decorate(command: Callable[[Given], None]) -> Callable[..., None]:
        def called(**values: Any) -> None:
            command(
                {
                    option.name: tuple(listed(values[option.name])) if option.several else values[option.name]
                    for option in options
                    if values[option.name] is not None
                }
            )

        called.__doc__ = command.__doc__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


def _parameter(option: Option, default: str) -> inspect.Parameter:
    """An option as Typer takes it; that of a value that was not given is None."""
    if not option.flag:
        argument = typer.Argument(metavar=option.metavar, help=option.help)
        return inspect.Parameter(option.name, _KEYWORD, annotation=_annotated(option.kind, argument))
    described = f"{option.help}  [default: {default}]" if default else option.help
    info = typer.Option(
        option.flag, help=described, metavar=option.metavar, show_default=False, rich_help_panel=option.section
    )
    annotation = _annotated(option.kind | None, info)
    return inspect.Parameter(option.name, _KEYWORD, default=None, annotation=annotation)


def _annotated(kind: Any, info: Any) -> Any:
    return Annotated[kind, info]


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
