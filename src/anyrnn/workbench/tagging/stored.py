"""The run folder of taggers: `results.json`, `models/NAME.safetensors` beside `models/NAME.json`, `report.html`.

As in `anyrnn.workbench.stored`, every name and number of a file is checked before it is used: it may come from anyone.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.models import Network, Structure, is_network_name
from anyrnn.workbench.reading import Reading
from anyrnn.workbench.runs import Folder, parts_of
from anyrnn.workbench.sequences import Scaler
from anyrnn.workbench.stored import (
    check_fit,
    check_size,
    field_of,
    is_int,
    is_names,
    is_scale,
    is_scaler,
    is_size,
    is_text_or_none,
    layers_of,
    permitted,
    read_weights,
    write_weights,
)
from anyrnn.workbench.tagging.model import Tagger, TrainedTagger, build
from anyrnn.workbench.tagging.words import Words


def save_model(folder: Path, model: TrainedTagger) -> None:
    """Write the two files of a model."""
    words, scaler = (model.reader, None) if isinstance(model.reader, Words) else (None, model.reader)
    write_weights(
        folder,
        model.network.name,
        model.module,
        {
            "kind": "tagging",
            "layer": repr(model.layer),
            "hidden_size": model.structure.hidden_size,
            "layers": model.structure.layers,
            "bidirectional": model.structure.bidirectional,
            "features": list(model.features),
            "classes": None if model.classes is None else list(model.classes),
            "target": model.target,
            "scaler": None if scaler is None else scaler.to_dict(),
            "pieces": None if words is None else list(words.pieces),
            "embedding_size": model.embedding_size,
            "target_scale": None if model.target_scale is None else list(model.target_scale),
            "seed": model.seed,
            "id_column": model.id_column,
            "time_column": model.time_column,
            "reading": None if model.reading is None else model.reading.to_dict(),
        },
    )


def open_tag_run(folder: str | Path, *, cells: Collection[str] = ()) -> Folder[TrainedTagger]:
    """Open the run folder of taggers. No code of it is run.

    Args:
        folder: What `TagResults.save` wrote.
        cells: The cells of your own, "module:Class", that its models may have.

    Raises:
        AnyRNNError: if it is not there, is damaged, or is no run of taggers.
    """
    return Folder(*parts_of(folder, cells, "tagging"), _load_model)


def _load_model(folder: Path, name: str, cells: Collection[str], run: Path) -> TrainedTagger:
    description, weights, description_path, weights_path = read_weights(folder, name)
    try:
        fields = _fields(description)
        if fields["network"] != name:
            raise AnyRNNError(f"this is the model {fields['network']!r}, expected {name!r}, as the file is named")
        found = permitted(name, cells, run)
        structure: Structure = fields["structure"]
        layers_of(description, weights, weights_path)  # no more than there are weights
        sizes = {"hidden_size": structure.hidden_size}
        if fields["embedding_size"] is not None:
            sizes["embedding_size"] = fields["embedding_size"]
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and then replaced: nobody's seed shall notice
            check_size(found, lambda: _built(found, fields), sizes, weights, weights_path)
            module = _built(found, fields)
        model = TrainedTagger(module=module, **{**fields, "network": found})
    except AnyRNNError as cause:
        place = "" if str(cause).startswith(f"{weights_path}: ") else f"{description_path}: "
        raise AnyRNNError(f"{place}{cause}") from cause
    check_fit(weights, module.state_dict(), found, weights_path)
    module.load_state_dict(dict(weights))
    module.eval()
    return model


def _built(found: Network, fields: Mapping[str, Any]) -> Tagger:
    out_features = 1 if fields["classes"] is None else len(fields["classes"])
    return build(found, fields["reader"], out_features, fields["structure"], embedding_size=fields["embedding_size"])


def _fields(description: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `TrainedTagger` but for its module, each checked; `network` is still a name."""

    def field(name: str, holds: Callable[[Any], bool], expected: str) -> Any:
        return field_of(description, name, holds, expected)

    classes = field("classes", lambda v: v is None or is_names(v), "different names, or null")
    scale = field("target_scale", lambda v: v is None or is_scale(v), "null, or a mean and a deviation above 0")
    scaler = field("scaler", lambda v: v is None or is_scaler(v), "null, or means and deviations of the features")
    pieces = field("pieces", lambda v: v is None or is_names(v), "null, or different pieces of words")
    size = field("embedding_size", lambda v: v is None or is_size(v), "null, or a whole number above 0")
    if (scaler is None) is (pieces is None):
        raise AnyRNNError("expected a scaler or pieces of words, got both or none")
    if (pieces is None) is not (size is None):
        raise AnyRNNError(f"got embedding_size={size}, expected one for words, and for words only")
    return {
        "network": field("network", is_network_name, "the name of a network"),
        "structure": Structure(
            hidden_size=field("hidden_size", is_size, "a whole number above 0"),
            layers=field("layers", is_size, "a whole number above 0"),
            bidirectional=field("bidirectional", lambda v: isinstance(v, bool), "true or false"),
        ),
        "features": tuple(field("features", is_names, "different names")),
        "classes": None if classes is None else tuple(classes),
        "target": field("target", lambda v: isinstance(v, str), "a name"),
        "reader": Words(tuple(pieces)) if scaler is None else Scaler.from_dict(scaler),
        "target_scale": None if scale is None else (float(scale[0]), float(scale[1])),
        "embedding_size": size,
        "seed": field("seed", is_int, "a whole number"),
        "id_column": field("id_column", is_text_or_none, "the name of a column, or null"),
        "time_column": field("time_column", is_text_or_none, "the name of a column, or null"),
        "reading": Reading.from_dict(description.get("reading")),
    }
