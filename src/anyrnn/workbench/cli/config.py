"""Options in a file (--config): read and checked here, and written, with what each is for, by `anyrnn init`.

TOML, since it has comments and types, a number is never taken for a text or the other way round, and Python reads it
without another package. Its keys are the words of the options, without sections.
"""

import textwrap
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.cli.options import CONFIGURED, Option, joined, usual_word
from anyrnn.workbench.names import did_you_mean

_WIDTH = 96  # of a comment in a file that is written


def read_config(path: Path, command: str) -> dict[str, Any]:
    """Read the options of a command from a file: by their names, their values as the command line would have them.

    Raises:
        AnyRNNError: if the file cannot be read, if it has a key that is no option of the command, or a value of
            another type than that of the option.
    """
    options = {option.word: option for option in CONFIGURED[command]}
    found: dict[str, Any] = {}
    for key, value in _toml(path).items():
        option = options.get(usual_word(key))
        if option is None:
            raise AnyRNNError(f"{path}: {_unknown(key, value, command, options)}")
        if option.name in found:
            raise AnyRNNError(f"{path}: {option.word!r} is there twice, as {key!r} and by its other name")
        found[option.name] = _checked(path, key, option, value)
    return found


def _toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnyRNNError(f"{path}: this cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AnyRNNError(f"{path}: this is not TOML: {error}; `anyrnn init` writes an example") from error


def commands_with(word: str) -> str:
    """The commands that have an option, for a message; "" if none has."""
    names = [name for name, options in CONFIGURED.items() if usual_word(word) in {option.word for option in options}]
    return " and ".join(f"anyrnn {name}" for name in names)


def _unknown(key: str, value: object, command: str, words: Collection[str]) -> str:
    if isinstance(value, dict):
        return f"got the section [{key}], expected options without sections, such as hidden = 64"
    others = commands_with(key)
    if others:
        return f"{key!r} is an option of {others}, not of anyrnn {command}"
    return f"{key!r} is no option of anyrnn {command}.{did_you_mean(usual_word(key), words)}"


def _checked(path: Path, key: str, option: Option, value: object) -> Any:
    """A value as the command line would have it."""
    if option.several or (option.or_list and isinstance(value, list)):
        each = value if isinstance(value, list) else [value]
        if all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in each):
            return value if isinstance(value, str) else joined(each)
        raise AnyRNNError(f"{path}: {key} = {_toml_value(value)}, expected a list, such as [{_toml_value('a')}]")
    choices = get_args(option.kind)
    fits, expected = {
        int: (isinstance(value, int) and not isinstance(value, bool), "a whole number"),
        float: (isinstance(value, int | float) and not isinstance(value, bool), "a number"),
        bool: (isinstance(value, bool), "true or false"),
    }.get(option.kind, (isinstance(value, str), 'a text in quotes, such as "a"'))
    if choices:
        fits, expected = value in choices, f"one of {', '.join(map(_toml_value, choices))}"
    if not fits:
        raise AnyRNNError(f"{path}: {key} = {_toml_value(value)}, expected {expected}")
    return value


def template(
    command: str, options: Sequence[Option], values: Mapping[str, Any], defaults: Mapping[str, Any], tasks: str
) -> str:
    """A file of options, each with what it is for.

    Args:
        command: Which command it is for.
        options: Those that it has.
        values: By name, what is set; the others are comments.
        defaults: By name, what a comment says, if not the example of the option.
        tasks: What messages call the tasks that it is for.
    """
    lines = [
        f"# Options of `anyrnn {command} --config FILE`. Those of the command line win over these.",
        "# A line with # in front is off, and says the default, or an example.",
    ]
    section = None
    for option in options:
        if option.section != section:
            section = option.section
            lines += ["", f"# {section}"]
        lines += ["", *(f"# {line}" for line in textwrap.wrap(option.help, _WIDTH))]
        if option.default_of(tasks) is not None:
            lines.append(f"# Default: {option.default_of(tasks)}.")
        value = values.get(option.name, defaults.get(option.name))
        mark = "" if option.name in values else "#"
        lines.append(f"{mark}{option.word} = {_toml_value(option.example if value is None else value)}")
    return "\n".join([*lines, ""])


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        quoted = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return f"{value}"
