"""Predictions as a file: CSV in UTF-8, whole or not there."""

import csv
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.models import Predictions
from anyrnn.workbench.unseen import Unseen


def csv_text(inputs: Unseen, predictions: Predictions, classes: Sequence[str] | None) -> str:
    """The predictions as CSV.

    The id, the prediction, for classes its probability, the truth if the file has some, and the
    probability of each class, p(NAME).
    """
    columns: dict[str, Sequence[str]] = {"id": inputs.ids, "prediction": predictions.texts}
    probabilities = predictions.probabilities
    if probabilities is not None:
        columns["probability"] = [f"{value:.4f}" for value in probabilities.amax(1).tolist()]
    if any(truth is not None for truth in inputs.truths):
        columns["truth"] = ["" if truth is None else truth for truth in inputs.truths]
    if probabilities is not None:
        for name, of_class in zip(classes or (), probabilities.T.tolist(), strict=True):
            columns[f"p({name})"] = [f"{value:.4f}" for value in of_class]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse a place for a file where something would be lost, or that is not there.

    Raises:
        AnyRNNError: if the place will not do.
    """
    with _writing(path):
        if path.exists() and not path.is_file():
            raise AnyRNNError(f"{path}: this is no file, but a folder or a device; name a file to be written")
        if path.exists() and not overwrite:
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
