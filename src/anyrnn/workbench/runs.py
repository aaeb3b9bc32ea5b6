"""The run folder: `results.json`, `models/NAME.safetensors` beside `models/NAME.json`, and `report.html`.

While it is trained it has `metrics.jsonl` and what is needed to go on: see `unfinished.py`. Nothing in it is a pickle,
and no code comes with it: a cell of the user's own is imported by its name, if the user says so. Results appear whole
or not at all: they are written under a temporary name and renamed at the end. `stored.py` knows the files.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.models import Model, Predictions
from anyrnn.workbench.names import did_you_mean
from anyrnn.workbench.stored import MADE_BY, file_names, load_model, model_names, read_json, write_json

M = TypeVar("M")  # a trained model

METRICS, TRAINING = "metrics.jsonl", "training"  # the curves as they grow, and what an unfinished run is kept in
TUNING, JOURNAL = "tuning.json", "optuna.log"  # of a search, its trials; while it goes on, in `TRAINING`, Optuna's file
_PARTS = ("models", "report.html", "results.json")  # in the order in which they move in: the last one makes it a run


def check_destination(folder: Path, overwrite: bool) -> None:
    """Refuse a place for a run folder where something would be lost, or that cannot be written.

    An empty folder may be filled; a folder that holds a run, and nothing but that run, may be replaced with
    `overwrite`; nothing else is ever touched.

    Raises:
        AnyRNNError: if the place will not do.
    """
    with disk_trouble(folder):
        _check_destination(folder, overwrite)


def _check_destination(folder: Path, overwrite: bool) -> None:
    if folder.is_dir():
        _check_writable(folder, folder)
        if not any(folder.iterdir()):
            return
        names, unfinished = _run_in(folder), is_unfinished(folder)
        if names is None and not unfinished:
            raise AnyRNNError(
                f"{folder}: this folder is there already and holds no run of anyrnn, so it is left alone, "
                f"whether or not it is to be overwritten; choose another folder"
            )
        if not overwrite and unfinished:
            raise AnyRNNError(
                f"{folder}: a run was begun there and is not finished; go on with it (--resume), choose another "
                "folder, or overwrite it (--overwrite)"
            )
        if not overwrite:
            raise AnyRNNError(f"{folder}: a run is there already; choose another folder, or overwrite it (--overwrite)")
        own = {folder / part for part in (*_PARTS, METRICS, TUNING)}
        own |= {folder / "models" / f for name in names or () for f in file_names(name)}
        if unfinished:
            own |= {folder / TRAINING, *(folder / TRAINING).rglob("*")}
        if names is None:  # the process was killed while the results were moving in
            own |= set((folder / "models").rglob("*"))
        strangers = sorted(set(folder.rglob("*")) - own)
        if strangers:
            raise AnyRNNError(
                f"{folder}: overwriting it would delete {strangers[0]}, which is no part of the run; "
                f"move it away or choose another folder"
            )
        return
    if folder.exists() or folder.is_symlink():
        raise AnyRNNError(f"{folder}: a file of this name is there already; choose another folder")
    _check_writable(folder, next(parent for parent in folder.absolute().parents if parent.exists()))


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun in a folder and is not finished: see `UnfinishedRun`."""
    training = folder / TRAINING
    if (training / "run.json").is_file():
        return True
    # Or it had only just begun, when the process was killed.
    return training.is_dir() and {path.name for path in training.iterdir()} <= {"lock", ".run.json.part"}


def _check_writable(folder: Path, place: Path) -> None:
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise AnyRNNError(f"{folder}: {place} is not a folder that can be written to; choose another folder")


def save_run(
    folder: Path,
    results: Mapping[str, Any],
    models: Sequence[M],
    report: str,
    save: Callable[[Path, M], None],
    *,
    overwrite: bool = False,
    numbered: bool = False,
) -> Path:
    """Write a run folder, whole or not at all.

    Args:
        folder: Where.
        results: The content of results.json.
        models: The trained networks.
        report: The content of report.html.
        save: Writes the files of a model into a folder.
        overwrite: Replace a run, and nothing else.
        numbered: Take the first of FOLDER, FOLDER-2, FOLDER-3, ... that is free at the end; two that save at once
            get two.

    Returns:
        The folder that was written.

    Raises:
        AnyRNNError: if the place will not do (see `check_destination`), or the disk is full or fails.
    """
    if not numbered:
        check_destination(folder, overwrite)
    target = folder.resolve()
    # What is there already is filled, not replaced: it may be a mounted disk, or the current folder.
    fill = not numbered and target.is_dir()
    # A temporary folder on the same disk as the destination, so that moving from one to the other is renaming. What a
    # process leaves there that is killed, goes with the rest of an unfinished run.
    place = target.parent if not fill else target / TRAINING if is_unfinished(target) else target
    with (
        disk_trouble(folder),
        _parents(target),
        tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}.", dir=place, ignore_cleanup_errors=True) as temporary,
    ):
        new = Path(temporary, "new")
        new.mkdir()
        write_json(new / "results.json", results)
        (new / "models").mkdir()
        for model in models:
            save(new / "models", model)
        (new / "report.html").write_text(report, encoding="utf-8", errors="backslashreplace")
        if fill:
            _exchange(new, target, Path(temporary, "old"))
            return folder
        return _claim(new, folder, numbered)


def _claim(new: Path, folder: Path, numbered: bool) -> Path:
    """Give the folder its name, which only one can get."""
    for k in count(1):
        candidate = folder if k == 1 else folder.with_name(f"{folder.name}-{k}")
        if not (candidate.exists() or candidate.is_symlink()):
            try:
                new.rename(candidate.resolve())
            except OSError:
                if not candidate.exists():
                    raise
            else:
                return candidate
        if not numbered:
            break
    raise AnyRNNError(f"{folder}: this has appeared in the meantime; choose another folder")


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Replace the parts of the run that a folder holds, if any, by others; or leave all as it was."""
    old.mkdir()
    try:
        for part in _PARTS[::-1]:
            if (folder / part).exists():
                (folder / part).rename(old / part)
        for part in _PARTS:
            (new / part).rename(folder / part)
    except BaseException:  # also an interrupt between the two
        for part in _PARTS:
            if (old / part).exists():
                shutil.rmtree(folder / part, ignore_errors=True)
                (old / part).replace(folder / part)
            elif not (new / part).exists() and (folder / part).exists():
                (folder / part).rename(new / part)
        raise


@contextmanager
def disk_trouble(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about a folder into one line."""
    try:
        yield
    except OSError as cause:
        raise AnyRNNError(
            f"{folder}: this cannot be written: {cause.strerror or cause}; choose another folder, or make room"
        ) from cause


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders above this one, and take them away again if what needs them fails."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # not there, or not empty: somebody else's by now
                parent.rmdir()
        raise


@dataclass(frozen=True)
class Folder(Generic[M]):
    """A run that was saved: its results, and its models.

    Attributes:
        path: The folder.
        results: The content of `results.json`.
        names: The names of its models.
        cells: The names of the form "module:Class" that may be imported.
        load: Reads a model: from the folder of the models, by its name, with these cells, of the run in a folder.
    """

    path: Path
    results: Mapping[str, Any]
    names: tuple[str, ...]
    cells: tuple[str, ...]
    load: Callable[[Path, str, Collection[str], Path], M]

    def model(self, name: str | None = None) -> M:
        """Load a model; the best one of the run if no name is given.

        Raises:
            AnyRNNError: if there is no such model, if its files are damaged, if its weights do not fit the cell, or
                if it is a cell that may not be imported.
        """
        name = self.results["best"] if name is None else name
        if name not in self.names:
            raise AnyRNNError(
                f"{self.path}: there is no model {name!r}; the models are {', '.join(self.names)}."
                f"{did_you_mean(str(name), self.names)}"
            )
        return self.load(self.path / "models", name, self.cells, self.path)


class RunFolder(Folder[Model]):
    """A run of `compare` or `fit`, ready to predict."""

    def predict(self, sequences: Sequence[Any], model: str | None = None) -> Predictions:
        """Predict the class or number of each sequence, (T, I) as read, with the best model or the one named."""
        return self.model(model).predict(sequences)


#: By the kind of a run, what opens it; one of sequences has none.
_OPENED_BY: Mapping[Any, str] = {
    None: "anyrnn.workbench.open_run",
    "text": "anyrnn.workbench.language.open_text_run",
    "forecast": "anyrnn.workbench.forecast.open_forecast_run",
    "tagging": "anyrnn.workbench.tagging.open_tag_run",
}


def open_run(folder: str | Path, *, cells: Collection[str] = ()) -> RunFolder:
    """Open a run folder. No code of it is run: whoever wrote it cannot make this do anything but predict.

    Args:
        folder: What `anyrnn compare`, `anyrnn fit` or `Results.save` wrote.
        cells: The cells of your own, "module:Class", that its models may have. They are imported from the current
            directory or where Python finds them, but never from the folder; any other one is refused.

    Raises:
        AnyRNNError: if it is not there, is damaged, or is of a format that this version does not read.
    """
    return RunFolder(*parts_of(folder, cells), load_model)


def parts_of(
    folder: str | Path, cells: Collection[str], kind: str | None = None
) -> tuple[Path, Mapping[str, Any], tuple[str, ...], tuple[str, ...]]:
    """What there is to know of the folder of a run of a kind before a model is loaded: see `Folder`.

    Raises:
        AnyRNNError: if it is not there, is damaged, is of another kind, or of a format that this version does not read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise AnyRNNError(f"{path}: there is no such folder; expected {MADE_BY}")
    if is_unfinished(path) and not (path / "results.json").exists():
        raise AnyRNNError(f"{path}: this run is not finished; go on with it first: the same command with --resume")
    results = read_json(path / "results.json")
    names = model_names(results)
    found = results.get("kind")
    if found != kind and isinstance(found, str | None) and found in _OPENED_BY:
        raise AnyRNNError(f"{path}: this is a run of another kind, which {_OPENED_BY[found]} opens")
    if names is None or found != kind:
        raise AnyRNNError(f"{path / 'results.json'}: it does not list its models; expected {MADE_BY}")
    return path, results, names, (cells,) if isinstance(cells, str) else tuple(cells)


def kind_of(folder: str | Path) -> str | None:
    """The kind of the run in a folder: "tagging", "text", "forecast", or None, which is one of sequences.

    Raises:
        AnyRNNError: if it is not there, or damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        raise AnyRNNError(f"{path}: there is no such folder; expected {MADE_BY}")
    found = read_json(path / "results.json").get("kind")
    return found if isinstance(found, str) else None


def _run_in(folder: Path) -> tuple[str, ...] | None:
    """The names of the models of the run in this folder; None if there is none."""
    try:
        return model_names(read_json(folder / "results.json"))
    except AnyRNNError:
        return None
