"""What keeps a training from being lost: signals that end it in order, and other places when one cannot be written."""

import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from anyrnn.errors import AnyRNNError

# Of a time limit or a shutdown, and of a terminal that was closed. Windows has the first one only.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(KeyboardInterrupt):
    """A signal came that asks to end, as Ctrl-C does.

    Attributes:
        name: Of the signal.
        status: What shells give a command that it ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.name = signal.Signals(number).name
        self.status = 128 + number


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Ended` inside a ``with`` block, unless somebody handles or ignores them already."""

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    taken = [each for each in _ENDING if _in_main_thread() and signal.getsignal(each) is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore further such signals inside a ``with`` block: whoever sends one often sends two."""
    before = {each: signal.getsignal(each) for each in _ENDING} if _in_main_thread() else {}
    for each in before:
        signal.signal(each, signal.SIG_IGN)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Saved(Protocol):
    """Results of any kind that can be saved."""

    def save(self, folder: str | Path, *, overwrite: bool = False, numbered: bool = False) -> Path:
        """Write the run folder, and say where it is."""


@dataclass(frozen=True)
class Kept:
    """Where results were saved: `folder`, None if nowhere; `trouble` is why it is not the place that was asked for."""

    folder: Path | None
    trouble: AnyRNNError | None = None

    def __str__(self) -> str:
        """Say what became of it, if it is not where it was to be."""
        if self.folder is None:
            return f"{self.trouble}. Nor could the run be kept anywhere else"
        return f"{self.trouble}. The run is in {self.folder} instead"


def keep(results: Saved, folder: Path, *, overwrite: bool = False, numbered: bool = False) -> Kept:
    """Save results in a folder; if that fails beside it, among the temporary files, or in the home folder."""
    trouble: AnyRNNError | None = None
    try:
        return Kept(results.save(folder, overwrite=overwrite, numbered=numbered))
    except AnyRNNError as error:
        trouble = error
    for place in _elsewhere(folder):
        with suppress(AnyRNNError):
            return Kept(results.save(place, numbered=True), trouble)
    return Kept(None, trouble)


def _elsewhere(folder: Path) -> Iterator[Path]:
    name = folder.absolute().name or "run"
    yield folder.absolute().with_name(f"{name}-2")
    with suppress(OSError):  # full as well
        above = Path(tempfile.mkdtemp(prefix="anyrnn-"))
        yield above / name[:40]
        with suppress(OSError):  # somebody has used it
            above.rmdir()
    with suppress(RuntimeError):  # no home
        yield Path.home() / f"anyrnn-{name[:40]}"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
