"""The progress of a comparison: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.table import Column

from anyrnn.workbench.compare import Progress


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show the progress of a comparison: a bar on a terminal, elsewhere a line for each training run."""
    scores: dict[int, str] = {}  # the last one of each run: not every epoch has one

    def text(now: Progress) -> str:
        if now.epoch.validation_score is not None:
            scores[now.run] = f": validation {now.metric} {now.epoch.validation_score:.4g}"
        elif now.epoch.test_score is not None:
            scores[now.run] = f": {now.metric} {now.epoch.test_score:.4g}"
        return f"{now.network.title}, seed {now.seed}{scores.get(now.run, '')}"

    if console.is_terminal and not console.is_dumb_terminal:
        columns = (
            progress.TextColumn("{task.description}", table_column=Column(min_width=min(40, console.width // 2))),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("training", total=None)

            def tell(now: Progress) -> None:
                done = (now.run - 1) * now.epochs + (now.epochs if now.ended else now.epoch.epoch)
                bar.update(task, description=text(now), completed=done, total=now.runs * now.epochs)

            yield tell
        return
    start = time.monotonic()

    def line(now: Progress) -> None:
        if now.ended:
            left = (time.monotonic() - start) / now.run * (now.runs - now.run)
            console.print(f"[{now.run}/{now.runs}] {text(now)}, about {left:.0f} s left", soft_wrap=True)

    yield line
