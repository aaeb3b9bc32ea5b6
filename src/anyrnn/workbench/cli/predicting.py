"""`anyrnn predict` and `anyrnn generate`: what a trained network says, or writes."""

import sys
from contextlib import suppress
from pathlib import Path

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import forecast, language, tagging
from anyrnn.workbench.cli.declare import Given
from anyrnn.workbench.cli.idle import refuse_idle
from anyrnn.workbench.cli.options import PREDICT
from anyrnn.workbench.cli.output import errors, out_stream
from anyrnn.workbench.cli.tasks import series_target
from anyrnn.workbench.data import load_for_prediction
from anyrnn.workbench.forecast.table import SeriesColumns
from anyrnn.workbench.notes import notes_on_unseen
from anyrnn.workbench.runs import kind_of, open_run
from anyrnn.workbench.train import score
from anyrnn.workbench.written import check_file, csv_text, write_file


def predict(given: Given) -> None:
    """Predict for sequences or each of their steps, or forecast series, by the kind of the run."""
    folder, out = given["folder"], given.get("out")
    if out is not None:
        check_file(out, given.get("overwrite", False))
    _keep_off_path(folder)
    refuse_idle("predict", PREDICT, given)
    kind = kind_of(folder)
    if kind == "text":
        raise AnyRNNError(f"{folder}: this is a run of a text, which goes on with `anyrnn generate {folder}`")
    if kind is not None and "stream" in given:
        raise AnyRNNError(f"--stream is for runs of sequences, and {folder} is another one ({kind}); leave it out")
    if kind == "forecast":
        _forecast(given)
    elif kind == "tagging":
        _tag(given)
    else:
        _predict(given)


def generate(given: Given) -> None:
    """Have a language model write to stdout, and to nothing else."""
    folder = given["folder"]
    _keep_off_path(folder)
    kind = kind_of(folder)
    if kind != "text":
        what = {"forecast": "forecasts", "tagging": "taggers"}.get(kind or "", "sequences")
        raise AnyRNNError(
            f"{folder}: this is a run of {what}, which `anyrnn predict {folder} DATA` uses; expected a run of a text"
        )
    model = language.open_text_run(folder, cells=_own_cells(given)).model(given.get("model"))
    asked = {name: given[name] for name in ("length", "prompt", "temperature", "seed") if name in given}
    for token in language.generate(model, **asked):
        if out_stream.isatty():
            out_stream.write(token)
            out_stream.flush()
        else:
            with suppress(AnyRNNError):  # it is said at the end, as of every command
                out_stream.write_bytes(token.encode("utf-8", "backslashreplace"))
        if out_stream.failed is not None:
            return
    if out_stream.isatty():
        out_stream.write("\n")


def _predict(given: Given) -> None:
    trained = open_run(given["folder"], cells=_own_cells(given)).model(given.get("model"))
    inputs = load_for_prediction(
        given["source"],
        features=trained.features,
        classes=trained.classes,
        id_column=given.get("id_column", trained.id_column),
        time_column=given.get("time_column"),
        target_column=given.get("target_column", trained.target),
        missing=trained.scaler.missing,
        trained_time=trained.time_column,
        trained_reading=trained.reading,
        encoding=given.get("encoding"),
        stream=given.get("stream", "auto"),
    )
    _need_truth(given, is_there=bool(inputs.truths))
    predictions = trained.predict(inputs.x)
    _write(csv_text(inputs, predictions, trained.classes), given)
    for note in (*inputs.notes, *notes_on_unseen(inputs, trained.features, trained.scaler)):
        errors.print(note, soft_wrap=True)
    if inputs.truth is not None:
        name = "rmse" if trained.classes is None else "accuracy"
        value = score([predictions.values[k] for k in inputs.known], inputs.truth, trained.classes)
        of_all = "" if len(inputs.known) == len(inputs) else f" of {len(inputs)}"
        errors.print(f"{name} {value:.4g} on {len(inputs.known)}{of_all} sequences", soft_wrap=True)


def _tag(given: Given) -> None:
    model = tagging.open_tag_run(given["folder"], cells=_own_cells(given)).model(given.get("model"))
    asked = ("id_column", "time_column", "target_column", "encoding")
    found = tagging.predict(model, given["source"], **{name: given[name] for name in asked if name in given})
    _need_truth(given, is_there=found.read.targets is not None)
    _write(found.csv(), given)
    for note in (*found.notes, *filter(None, [found.verdict])):
        errors.print(note, soft_wrap=True)


def _forecast(given: Given) -> None:
    model = forecast.open_forecast_run(given["folder"], cells=_own_cells(given)).model(given.get("model"))
    columns = SeriesColumns(
        given.get("id_column", model.id_column),
        given.get("time_column", model.time_column),
        series_target(given["target_column"]) if "target_column" in given else model.target_columns or model.target,
        *model.names,
    )
    ahead = forecast.predict(model, given["source"], columns, encoding=given.get("encoding"))
    _write(ahead.csv(), given)
    for note in ahead.notes:
        errors.print(note, soft_wrap=True)


def _need_truth(given: Given, *, is_there: bool) -> None:
    """A column with the truth that is named has to be there; that of the training need not."""
    if "target_column" in given and not is_there:
        raise AnyRNNError(
            f"{given['source']}: column {given['target_column']!r}, the truth (--target), is not there; leave it "
            "out if there is none"
        )


def _write(text: str, given: Given) -> None:
    """Write CSV to a file, or to stdout: in UTF-8, but for a terminal."""
    if "out" in given:
        write_file(given["out"], text, given.get("overwrite", False))
    elif out_stream.isatty():
        out_stream.write(text)
    else:
        out_stream.write_bytes(text.encode("utf-8", "backslashreplace"))


def _own_cells(given: Given) -> list[str]:
    """The cells that a command line names, which may be imported."""
    return [*given.get("cells", ()), *([given["model"]] if "model" in given else [])]


def _keep_off_path(folder: Path) -> None:
    """Import nothing from a run folder from now on, though someone stands in it: `python -m` has put it first."""
    within = folder.resolve()
    sys.path[:] = [place for place in sys.path if not Path(place or ".").resolve().is_relative_to(within)]
