"""Options that would do nothing beside others, or for such data: refused, since whoever gives one expects an effect.

That an option is for another kind of task is found by the words of the Python API, in `tasks.py`. What is here no
signature says. A new option that others can make idle gets its line in `_IDLE`.
"""

from collections.abc import Callable, Collection

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.options import Option
from anyrnn.workbench.files import JAPANESE_VOWELS, format_of
from anyrnn.workbench.sources import test_beside
from anyrnn.workbench.tagging.load import is_table

Reason = Callable[[Given], str | None]  # why an option does nothing; None: it does something


def refuse_idle(kind: str, options: Collection[Option], given: Given) -> None:
    """Refuse options that do nothing.

    Args:
        kind: The name of the kind of the task, or "predict".
        options: Those of the command.
        given: What was given.

    Raises:
        AnyRNNError: for the first one that does nothing; it says why.
    """
    for name, kinds, reason in _IDLE:
        why = reason(given) if name in given and kind in kinds else None
        if why is not None:
            flag = next(option.flag for option in options if option.name == name)
            raise AnyRNNError(f"{flag} would do nothing here: {why}; leave it out")


def _has_test_part(given: Given) -> str | None:
    source = given["source"]
    if "test" in given:
        return "--test names the test part"
    if source == JAPANESE_VOWELS:
        return f"{source} has a test part of its own"
    beside = test_beside(source)
    return None if beside is None else f"{beside.name}, which lies beside {source}, is the test part"


def _of_words(given: Given) -> str | None:
    return "a step of a table is numbers, not a word" if is_table(given["source"], named="id_column" in given) else None


def _layers(given: Given) -> str | None:
    cells = given.get("cells") or (given.get("cell"),)
    return "lstm-2 has two layers whatever is asked for" if set(cells) == {"lstm-2"} else None


def _characters(given: Given) -> str | None:
    return None if given.get("level") == "word" else "no word is a token unless --level word"


def _columns(given: Given) -> str | None:
    has_none = given["source"] == JAPANESE_VOWELS or format_of(given["source"]) == ".ts"
    return f"{given['source']} has no columns to name" if has_none else None


def _beside(other: str, why: str) -> Reason:
    return lambda given: why if other in given else None


_TRAINED = ("sequences", "tagging", "forecast", "text")
_IDLE: tuple[tuple[str, Collection[str], Reason], ...] = (
    ("test_fraction", ("sequences",), _has_test_part),
    ("test_fraction", ("tagging", "text"), _beside("test", "--test names the test part")),
    ("validation", ("tagging",), _beside("validation_file", "--validation-file names the validation part")),
    ("embedding_size", ("tagging",), _of_words),
    ("word_dropout", ("tagging",), _of_words),
    ("least", ("text",), _characters),
    ("layers", _TRAINED, _layers),
    ("id_column", ("predict",), _columns),
    ("time_column", ("predict",), _columns),
    ("target_column", ("predict",), _columns),
    ("overwrite", ("predict",), lambda given: None if "out" in given else "there is no --out to replace"),
)
