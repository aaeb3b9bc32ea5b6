"""The run folder of forecasts: `results.json`, `models/NAME.safetensors` beside `models/NAME.json`, `report.html`.

As in `anyrnn.workbench.stored`, every name and number of a file is checked before it is used: it may come from anyone.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.forecast.model import HEADS, Form, TrainedForecaster, build, check_levels
from anyrnn.workbench.models import is_network_name
from anyrnn.workbench.runs import Folder, parts_of
from anyrnn.workbench.stored import (
    check_fit,
    check_size,
    field_of,
    is_int,
    layers_of,
    permitted,
    read_weights,
    write_weights,
)

MADE_BY = "a folder that `ForecastResults.save` wrote"


def save_model(folder: Path, model: TrainedForecaster) -> None:
    """Write the two files of a model."""
    form = asdict(model.module.form)
    write_weights(
        folder,
        model.network.name,
        model.module,
        {
            "kind": "forecast",
            "layer": repr(model.module.layer),
            "layers": model.module.layer.num_layers,
            "hidden_size": model.hidden_size,
            "context": model.context,
            "form": {**form, "levels": list(model.module.form.levels)},
            "target": model.target,
            "names": [list(names) for names in model.names],
            "scale": [list(row) for row in model.scale],
            "seed": model.seed,
            "id_column": model.id_column,
            "time_column": model.time_column,
        },
    )


def open_forecast_run(folder: str | Path, *, cells: Collection[str] = ()) -> Folder[TrainedForecaster]:
    """Open the run folder of forecasts. No code of it is run.

    Args:
        folder: What `ForecastResults.save` wrote.
        cells: The cells of your own, "module:Class", that its models may have.

    Raises:
        AnyRNNError: if it is not there, is damaged, or is no run of forecasts.
    """
    return Folder(*parts_of(folder, cells, "forecast"), _load_model)


def _load_model(folder: Path, name: str, cells: Collection[str], run: Path) -> TrainedForecaster:
    description, weights, description_path, weights_path = read_weights(folder, name)
    try:
        fields = _fields(description)
        if fields.pop("network") != name:
            raise AnyRNNError(f"this is the model {description['network']!r}, expected {name!r}, as the file is named")
        found, form = permitted(name, cells, run), fields.pop("form")
        layers = layers_of(description, weights, weights_path)
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and then replaced: nobody's seed shall notice
            sizes = {"hidden_size": fields["hidden_size"]}
            check_size(
                found, lambda: build(found, form, fields["hidden_size"], layers=layers), sizes, weights, weights_path
            )
            module = build(found, form, fields["hidden_size"], layers=layers)
    except AnyRNNError as cause:
        place = "" if str(cause).startswith(f"{weights_path}: ") else f"{description_path}: "
        raise AnyRNNError(f"{place}{cause}") from cause
    check_fit(weights, module.state_dict(), found, weights_path)
    module.load_state_dict(dict(weights))
    return TrainedForecaster(network=found, module=module.eval(), **fields)


_MOST = 100_000  # steps of a horizon, of a context, or covariates: more than anybody has, less than memory


def _fields(description: Mapping[str, Any]) -> dict[str, Any]:
    def size(value: Any) -> bool:
        return is_int(value) and 0 < value <= _MOST

    def names(value: Any) -> bool:
        lists = isinstance(value, list) and len(value) == 3 and all(isinstance(each, list) for each in value)
        return lists and all(isinstance(name, str) for each in value for name in each)

    given = field_of(description, "form", lambda value: isinstance(value, dict), "what the forecaster reads and says")
    form = _form(given)
    called = field_of(description, "names", names, "three lists of names")
    if [len(each) for each in called] != [form.past, form.future, form.static]:
        raise AnyRNNError(f"got names of {[len(each) for each in called]} covariates, expected {MADE_BY}")
    count = form.past + form.future + form.static

    def scale(value: Any) -> bool:
        rows = isinstance(value, list) and len(value) == 2 and all(isinstance(row, list) for row in value)
        fine = rows and all(isinstance(v, int | float) and math.isfinite(v) for row in value for v in row)
        return fine and [len(row) for row in value] == [count, count] and all(v > 0 for v in value[1])

    def column(value: Any) -> bool:
        return isinstance(value, str | None)

    mean, std = field_of(description, "scale", scale, f"{count} means and positive deviations")
    return {
        "network": field_of(description, "network", is_network_name, "the name of a network"),
        "form": form,
        "hidden_size": field_of(description, "hidden_size", size, "a whole number above 0"),
        "context": field_of(description, "context", size, "a whole number above 0"),
        "target": field_of(description, "target", lambda value: isinstance(value, str), "a name"),
        "names": tuple(tuple(each) for each in called),
        "scale": (tuple(map(float, mean)), tuple(map(float, std))),
        "seed": field_of(description, "seed", is_int, "a whole number"),
        **{  # which the first files did not have
            name: field_of({name: None, **description}, name, column, "the name of a column, or null")
            for name in ("id_column", "time_column")
        },
    }


def _form(given: Mapping[str, Any]) -> Form:
    def count(value: Any) -> bool:
        return is_int(value) and 0 <= value <= _MOST

    def levels(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(each, int | float) for each in value)

    horizon = field_of(given, "horizon", lambda value: count(value) and value > 0, "a whole number above 0")
    numbers = {name: field_of(given, name, count, "a whole number") for name in ("past", "future", "static", "season")}
    found = tuple(map(float, field_of(given, "levels", levels, "the levels of quantiles")))
    check_levels(found)
    head = field_of(given, "head", lambda value: isinstance(value, str) and value in HEADS, f"one of {HEADS}")
    return Form(horizon=horizon, levels=found, head=head, **numbers)
