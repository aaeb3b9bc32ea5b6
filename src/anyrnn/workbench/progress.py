"""The progress of a comparison: one bar on a terminal and in a notebook, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Column

from anyrnn.workbench.lesson import Epoch
from anyrnn.workbench.models import Network

_PAUSE = 0.2  # seconds between two updates of a bar in a notebook, each of which is a message to the browser


@dataclass(frozen=True)
class Progress:
    """How far a comparison is, told after each epoch.

    Attributes:
        network: The network in training.
        seed: The seed of this training run.
        run: Which of all the training runs this is, from 1.
        runs: How many there are.
        epoch: The epoch just ended.
        epochs: How many a training run has at most.
        ended: Whether the run ended with it.
        metric: What its scores are.
        plural: What is learned from, such as "sequences".
        learning_rate: Of the next update.
        seconds: Spent on training so far, in this run.
        pace: How many of them a second of training in this epoch; 0: not known.
        others: How much of the other runs is done, counted in runs, where several go on at once; None: all of those
            before this one, and nothing of those after it.
    """

    network: Network
    seed: int
    run: int
    runs: int
    epoch: Epoch
    epochs: int
    ended: bool
    metric: str = "score"
    plural: str = "sequences"
    learning_rate: float = 0.0
    seconds: float = 0.0
    pace: float = 0.0
    others: float | None = None

    @property
    def share(self) -> float:
        """How much of all epochs of all runs is done."""
        return float(self._others + (1 if self.ended else self.epoch.epoch / self.epochs)) / self.runs

    @property
    def share_before(self) -> float:
        """How much was done before the epoch just ended."""
        return float(self._others + (self.epoch.epoch - 1) / self.epochs) / self.runs

    @property
    def _others(self) -> float:
        return self.run - 1 if self.others is None else self.others

    @property
    def score(self) -> str | None:
        """The validation score, that of the test part, or the validation loss; None where the epoch has none."""
        point = self.epoch
        if point.validation_score is not None:
            return f"validation {self.metric} {point.validation_score:.4g}"
        if point.test_score is not None:
            return f"{self.metric} {point.test_score:.4g}"
        return None if point.validation_loss is None else f"validation loss {point.validation_loss:.4g}"

    @property
    def record(self) -> dict[str, Any]:
        """What `metrics.jsonl` and callbacks get of it."""
        point = self.epoch
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "model": self.network.name,
            "seed": self.seed,
            "epoch": point.epoch,
            "epochs": self.epochs,
            "ended": self.ended,
            "train_loss": point.train_loss,
            "validation_loss": point.validation_loss,
            "metric": self.metric,
            "validation_score": point.validation_score,
            "test_score": point.test_score,
            "learning_rate": self.learning_rate,
            "seconds": round(self.seconds, 6),
            f"{self.plural}_a_second": round(self.pace, 3),
        }


class _Clock:
    """How long it takes. A run that goes on from a checkpoint has done a share before it starts."""

    def __init__(self) -> None:
        self.start, self._first = time.monotonic(), 1.0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def left(self, now: Progress) -> float:
        """The seconds that are left, about."""
        self._first = min(self._first, now.share_before)
        return self.seconds * (1 - now.share) / (now.share - self._first)


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show the progress of a comparison: a bar in a notebook or on a terminal, elsewhere a line for each run."""
    display = notebook_display()
    scores: dict[int, str] = {}  # the last one of each run: not every epoch has one

    def text(now: Progress) -> str:
        if now.score is not None:
            scores[now.run] = f": {now.score}"
        pace = f", {now.pace:,.0f} {now.plural}/s" if now.pace else ""
        return f"{now.network.title}, seed {now.seed}{scores.get(now.run, '')}{pace}"

    if display is not None:
        with _in_notebook(display, text) as tell:
            yield tell
    elif console.is_terminal and not console.is_dumb_terminal:
        with _on_terminal(console, text) as tell:
            yield tell
    else:
        yield _lines(console, text)


def notebook_display() -> Callable[..., Any] | None:
    """What shows a value below a cell, where this runs in a notebook: Jupyter's, Colab's, VS Code's; else None."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or getattr(shell, "kernel", None) is None:  # IPython on a terminal has none
        return None
    display: Callable[..., Any] = sys.modules["IPython.display"].display
    return display


@dataclass(frozen=True)
class _Bar:
    """A bar and a text, as a notebook shows them."""

    share: float
    text: str

    def __repr__(self) -> str:
        return f"{self.share:4.0%} {self.text}"

    def _repr_html_(self) -> str:
        style = "width: 20em; max-width: 100%; vertical-align: middle"
        bar = f'<progress value="{self.share:.3f}" max="1" style="{style}" aria-label="training"></progress>'
        return f"<div>{bar} {self.share:.0%} {escape(self.text)}</div>"


@contextmanager
def _in_notebook(display: Callable[..., Any], text: Callable[[Progress], str]) -> Iterator[Callable[[Progress], None]]:
    """One output of the cell, updated in place; at the end it says how long it took."""
    clock = _Clock()
    last = clock.start
    handle = display(_Bar(0.0, "training"), display_id=True)
    now: Progress | None = None

    def tell(progress: Progress) -> None:
        nonlocal last, now
        now = progress
        moment, left = time.monotonic(), clock.left(now)
        if moment - last >= _PAUSE:
            last = moment
            handle.update(_Bar(now.share, f"[{now.run}/{now.runs}] {text(now)}, about {left:.0f} s left"))
        else:
            text(now)

    try:
        yield tell
    finally:
        if now is not None:
            done = f"trained {now.runs}" if now.share == 1 else f"stopped in {now.run}"
            handle.update(_Bar(now.share, f"{done} of {now.runs} runs, {clock.seconds:.0f} s"))


@contextmanager
def _on_terminal(console: Console, text: Callable[[Progress], str]) -> Iterator[Callable[[Progress], None]]:
    """A bar that is gone at the end."""
    columns = (
        progress.TextColumn("{task.description}", table_column=Column(min_width=min(40, console.width // 2))),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=None)
        begun = False

        def tell(now: Progress) -> None:
            nonlocal begun
            if not begun:  # what was done before counts for nothing in the speed
                bar.reset(task, total=1.0, completed=now.share_before)  # type: ignore[arg-type] # floats will do
                begun = True
            bar.update(task, description=text(now), completed=now.share, total=1.0)

        yield tell


def _lines(console: Console, text: Callable[[Progress], str]) -> Callable[[Progress], None]:
    """A line for each training run."""
    clock = _Clock()

    def line(now: Progress) -> None:
        left = clock.left(now)
        if now.ended:
            console.print(f"[{now.run}/{now.runs}] {text(now)}, about {left:.0f} s left", soft_wrap=True)

    return line
