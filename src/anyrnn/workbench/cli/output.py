"""What a command shows, and how it ends: the two streams as consoles, and the exit statuses.

0: done. 1: something could not be written where it was to go. 2: the input is not as expected. 128 and more: a signal
ended it, 130 for Ctrl-C.
"""

from typing import IO, NoReturn, cast

import typer
from rich.console import Console

from anyrnn.workbench.keeping import Ended
from anyrnn.workbench.terminal import Output

UNWRITTEN = 1
REFUSED = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells give a command that Ctrl-C ended

out_stream, error_stream = Output("stdout"), Output("stderr")
console = Console(file=cast("IO[str]", out_stream), highlight=False, markup=False)
errors = Console(file=cast("IO[str]", error_stream), highlight=False, markup=False)


def say(text: str, style: str | None = None) -> None:
    """Print a line, broken between words on a terminal and not at all elsewhere."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def complain(error: object) -> None:
    """Print what is wrong, in one line on stderr."""
    message = " ".join(line.strip() for line in str(error).splitlines())
    errors.print(f"anyrnn: {message}", soft_wrap=True)


def interrupted(interrupt: KeyboardInterrupt, kept: str) -> NoReturn:
    """Say what was kept, and end with the status of the signal."""
    what, status = ("Interrupted", INTERRUPTED)
    if isinstance(interrupt, Ended):
        what, status = f"Ended by {interrupt.name}", interrupt.status
    errors.print(f"{what}. {kept}", soft_wrap=True)
    raise typer.Exit(status)
