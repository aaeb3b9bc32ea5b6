"""`metrics.jsonl`: a JSON object on a line of its own for each epoch, written as it goes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anyrnn.workbench.checkpoint import warn
from anyrnn.workbench.durable import write_whole
from anyrnn.workbench.stored import finite


class MetricsLog:
    """A file that grows by a line with each epoch of each training run.

    A run that goes on from a checkpoint repeats the epochs that came after it: their lines are replaced.

    Args:
        path: Of the file.
        say: Is told once if it cannot be written; the training goes on.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = warn) -> None:
        self.path, self._say, self._failed = path, say, False
        self._begun: set[tuple[Any, Any]] = set()

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write a line; records have a `model`, a `seed` and an `epoch`."""
        try:
            self._write(record)
        except OSError as cause:
            if not self._failed:
                self._say(f"{self.path}: it cannot be written: {cause.strerror or cause}; the training goes on")
            self._failed = True

    def _write(self, record: Mapping[str, Any]) -> None:
        run = record["model"], record["seed"]
        if run not in self._begun:
            self._begun.add(run)
            self._drop(run, record["epoch"])
        with self.path.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write(json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n")

    def _drop(self, run: tuple[Any, Any], first: int) -> None:
        """Take away the lines of a training run from this epoch on, and what a killed process left of a line."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        kept = b"".join(line for line in data.splitlines(keepends=True) if not _is_of(line, run, first))
        if kept != data:
            write_whole(self.path, kept)


def _is_of(line: bytes, run: tuple[Any, Any], first: int) -> bool:
    try:
        record = json.loads(line)
        return not line.endswith(b"\n") or ((record["model"], record["seed"]) == run and record["epoch"] >= first)
    except (ValueError, KeyError, TypeError):
        return True
