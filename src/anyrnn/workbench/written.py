"""Predictions as a file: CSV in UTF-8, whole or not there."""

import csv
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.models import Predictions
from anyrnn.workbench.sequences import Inputs


def csv_text(inputs: Inputs, predictions: Predictions) -> str:
    """The predictions as CSV: id, prediction and, for classes, the probability that the network gives it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if predictions.probabilities is None:
        writer.writerow(("id", "prediction"))
        writer.writerows(zip(inputs.ids, predictions.texts, strict=True))
    else:
        writer.writerow(("id", "prediction", "probability"))
        highest = (f"{value:.4f}" for value in predictions.probabilities.amax(1).tolist())
        writer.writerows(zip(inputs.ids, predictions.texts, highest, strict=True))
    return file.getvalue()


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse a place for a file where something would be lost, or that is not there.

    Raises:
        AnyRNNError: if the place will not do.
    """
    with _writing(path):
        if path.exists() and not (overwrite and path.is_file()):
            raise AnyRNNError(f"{path}: this is there already; choose another name, or overwrite it (--overwrite)")
        if not path.parent.is_dir():
            raise AnyRNNError(f"{path}: there is no folder {path.parent}; make it first")


def write_file(path: Path, text: str, overwrite: bool) -> None:
    """Write a text file that appears under its name whole, at the end, or not at all.

    Raises:
        AnyRNNError: if the place will not do, or the disk is full or fails.
    """
    check_file(path, overwrite)
    with (
        _writing(path),
        tempfile.TemporaryDirectory(prefix=".anyrnn-", dir=path.parent, ignore_cleanup_errors=True) as temporary,
    ):
        part = Path(temporary, "new.csv")
        part.write_text(text, encoding="utf-8", newline="", errors="backslashreplace")
        part.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise AnyRNNError(
            f"{path}: this cannot be written: {cause.strerror or cause}; choose another place, or make room"
        ) from cause
