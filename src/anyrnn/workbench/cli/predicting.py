"""`anyrnn predict`: what a trained network says about new data."""

import sys
from pathlib import Path

from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.output import errors, out_stream
from anyrnn.workbench.data import load_for_prediction
from anyrnn.workbench.notes import notes_on_unseen
from anyrnn.workbench.runs import open_run
from anyrnn.workbench.train import score
from anyrnn.workbench.written import check_file, csv_text, write_file


def run(given: Given) -> None:
    """Do what a command line asks for."""
    folder, out, overwrite = given["folder"], given.get("out"), given.get("overwrite", False)
    if out is not None:
        check_file(out, overwrite)
    keep_off_path(folder)
    trained = open_run(folder, cells=own_cells(given)).model(given.get("model"))
    inputs = load_for_prediction(
        given["source"],
        features=trained.features,
        classes=trained.classes,
        id_column=given.get("id_column", trained.id_column),
        time_column=given.get("time_column"),
        target_column=given.get("target_column", trained.target),
        missing=trained.scaler.missing,
        trained_time=trained.time_column,
    )
    predictions = trained.predict(inputs.x)
    write(csv_text(inputs, predictions), out, overwrite)
    for note in (*inputs.notes, *notes_on_unseen(inputs, trained.features, trained.scaler)):
        errors.print(note, soft_wrap=True)
    if inputs.truth is not None:
        name = "rmse" if trained.classes is None else "accuracy"
        value = score([predictions.values[k] for k in inputs.known], inputs.truth, trained.classes)
        of_all = "" if len(inputs.known) == len(inputs) else f" of {len(inputs)}"
        errors.print(f"{name} {value:.4g} on {len(inputs.known)}{of_all} sequences", soft_wrap=True)


def write(text: str, out: Path | None, overwrite: bool) -> None:
    """Write CSV to a file, or to stdout: in UTF-8, but for a terminal."""
    if out is not None:
        write_file(out, text, overwrite)
    elif out_stream.isatty():
        out_stream.write(text)
    else:
        out_stream.write_bytes(text.encode("utf-8", "backslashreplace"))


def own_cells(given: Given) -> list[str]:
    """The cells that a command line names, which may be imported."""
    return [*given.get("cells", ()), *([given["model"]] if "model" in given else [])]


def keep_off_path(folder: Path) -> None:
    """Import nothing from a run folder from now on, though someone stands in it: `python -m` has put it first."""
    within = folder.resolve()
    sys.path[:] = [place for place in sys.path if not Path(place or ".").resolve().is_relative_to(within)]
