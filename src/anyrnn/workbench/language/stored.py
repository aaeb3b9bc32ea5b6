"""The run folder of a text: `results.json`, `models/NAME.safetensors` beside `models/NAME.json`, and `report.html`.

As in `anyrnn.workbench.stored`, every name and number of a file is checked before it is used: it may come from anyone.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.language.model import LanguageModel, TrainedText, build
from anyrnn.workbench.language.text import LEVELS, Vocabulary
from anyrnn.workbench.models import Network, is_network_name
from anyrnn.workbench.runs import Folder, parts_of
from anyrnn.workbench.stored import (
    check_fit,
    check_size,
    field_of,
    is_int,
    is_names,
    layers_of,
    permitted,
    read_weights,
    write_weights,
)

MADE_BY = "a folder that `TextResults.save` wrote"


def save_model(folder: Path, model: TrainedText) -> None:
    """Write the two files of a model."""
    write_weights(
        folder,
        model.network.name,
        model.module,
        {
            "kind": "text",
            "layer": repr(model.module.layer),
            "layers": model.module.layer.num_layers,
            "hidden_size": model.hidden_size,
            "embedding_size": model.embedding_size,
            "level": model.vocabulary.level,
            "tokens": list(model.vocabulary.tokens),
            "unigrams": list(model.unigrams),
            "seed": model.seed,
        },
    )


def open_text_run(folder: str | Path, *, cells: Collection[str] = ()) -> Folder[TrainedText]:
    """Open the run folder of a text. No code of it is run.

    Args:
        folder: What `TextResults.save` wrote.
        cells: The cells of your own, "module:Class", that its models may have.

    Raises:
        AnyRNNError: if it is not there, is damaged, or is no run of a text.
    """
    return Folder(*parts_of(folder, cells, "text"), _load_model)


def _load_model(folder: Path, name: str, cells: Collection[str], run: Path) -> TrainedText:
    description, weights, description_path, weights_path = read_weights(folder, name)
    try:
        fields = _fields(description)
        if fields["network"] != name:
            raise AnyRNNError(f"this is the model {fields['network']!r}, expected {name!r}, as the file is named")
        found = permitted(name, cells, run)
        layers = layers_of(description, weights, weights_path)
        sizes = {name: fields[name] for name in ("hidden_size", "embedding_size")}
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and then replaced: nobody's seed shall notice
            check_size(found, lambda: _built(found, fields, layers), sizes, weights, weights_path)
            module = _built(found, fields, layers)
    except AnyRNNError as cause:
        place = "" if str(cause).startswith(f"{weights_path}: ") else f"{description_path}: "
        raise AnyRNNError(f"{place}{cause}") from cause
    check_fit(weights, module.state_dict(), found, weights_path)
    module.load_state_dict(dict(weights))
    module.eval()
    return TrainedText(
        found, fields["vocabulary"], fields["hidden_size"], fields["embedding_size"], fields["seed"], module,
        fields["unigrams"],
    )  # fmt: skip


def _built(found: Network, fields: Mapping[str, Any], layers: int) -> LanguageModel:
    return build(found, len(fields["vocabulary"]), fields["hidden_size"], fields["embedding_size"], 0.0, layers)


def _fields(description: Mapping[str, Any]) -> dict[str, Any]:
    def size(value: Any) -> bool:
        return is_int(value) and 0 < value < 2**31

    tokens = field_of(description, "tokens", is_names, "different tokens")
    level = field_of(description, "level", lambda v: isinstance(v, str) and v in LEVELS, f"one of {', '.join(LEVELS)}")

    def shares(value: Any) -> bool:
        numbers = isinstance(value, list) and all(isinstance(v, int | float) and 0 <= v <= 1 for v in value)
        return numbers and len(value) == len(tokens)

    return {
        "network": field_of(description, "network", is_network_name, "the name of a network"),
        "hidden_size": field_of(description, "hidden_size", size, "a whole number above 0"),
        "embedding_size": field_of(description, "embedding_size", size, "a whole number above 0"),
        "vocabulary": Vocabulary(tuple(tokens), level),
        "unigrams": tuple(field_of(description, "unigrams", shares, "a share for each token")),
        "seed": field_of(description, "seed", is_int, "a whole number"),
    }
