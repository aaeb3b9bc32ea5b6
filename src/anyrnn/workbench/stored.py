"""The files of one trained model: `NAME.safetensors` holds its weights, `NAME.json` all else that predicting takes.

They may come from anyone. So every name and number is checked before it is used: nothing is imported but what the
caller names, nothing is joined to a path but the name of a network, and nothing is allocated that the weights on the
disk do not fill.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.models import KNOWN, POOLS, Model, Network, Structure, build, is_network_name, network
from anyrnn.workbench.reading import Reading
from anyrnn.workbench.sequences import Scaler

# Of results.json and of models/*.json; raised when an older anyrnn could not read what we write.
# 2: networks may have layers, directions and cells that a format of 1 has no place for.
FORMAT = 2
_READ = (1, 2)
MADE_BY = "a folder that `anyrnn compare` or `anyrnn fit` wrote"


def file_names(name: str) -> tuple[str, str]:
    """Return the two file names of a network's model: its description and its weights."""
    stem = name.replace(":", ".")  # "module:Class": no file can have a colon in its name on Windows
    return f"{stem}.json", f"{stem}.safetensors"


def save_model(folder: Path, model: Model) -> None:
    """Write the two files of a model."""
    description = {
        "layer": repr(model.layer),
        **asdict(model.structure),
        "id_column": model.id_column,
        "time_column": model.time_column,
        "features": list(model.features),
        "reading": None if model.reading is None else model.reading.to_dict(),
        "classes": None if model.classes is None else list(model.classes),
        "target": model.target,
        "scaler": model.scaler.to_dict(),
        "target_scale": None if model.target_scale is None else list(model.target_scale),
        "seed": model.seed,
    }
    write_weights(folder, model.network.name, model.module, description)


def write_weights(folder: Path, name: str, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the weights of a network's model, and beside them its description."""
    # Cloned: safetensors refuses tensors that share memory, which a cell with tied weights has.
    weights = {key: tensor.detach().clone().contiguous() for key, tensor in module.state_dict().items()}
    data = safetensors.torch.save(weights)
    description_name, weights_name = file_names(name)
    (folder / weights_name).write_bytes(data)
    about = {"format": FORMAT, "anyrnn": anyrnn.__version__, "torch": torch.__version__, "network": name}
    shapes = {key: list(tensor.shape) for key, tensor in weights.items()}
    checksum = hashlib.sha256(data).hexdigest()
    write_json(folder / description_name, {**about, **description, "weights": shapes, "sha256": checksum})


def load_model(folder: Path, name: str, cells: Collection[str], run: Path) -> Model:
    """Read the two files of a model.

    Args:
        folder: Where they are.
        name: The model's name: that of its network.
        cells: The networks of the form "module:Class" that may be imported.
        run: The folder that nothing may be imported from.

    Raises:
        AnyRNNError: if the files are damaged or do not belong together, if the weights do not fit the network, or if
            the network is not one of ours and not in `cells`.
    """
    description, weights, description_path, weights_path = read_weights(folder, name)
    try:
        fields = _fields(description)
        if fields["network"] != name:
            raise AnyRNNError(f"this is the model {fields['network']!r}, expected {name!r}, as the file is named")
        found = permitted(name, cells, run)
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and then replaced: nobody's seed shall notice
            structure: Structure = fields["structure"]
            if structure.layers > len(weights):
                raise AnyRNNError(
                    f"got layers={structure.layers}, but {weights_path.name} has {len(weights)} weights only; expected "
                    f"{MADE_BY}"
                )
            sizes = {"hidden_size": structure.hidden_size}
            check_size(found, lambda: _built(found, fields), sizes, weights, weights_path)
            module = _built(found, fields)
        model = Model(module=module, **{**fields, "network": found})
    except AnyRNNError as cause:
        place = "" if str(cause).startswith(f"{weights_path}: ") else f"{description_path}: "
        raise AnyRNNError(f"{place}{cause}") from cause
    check_fit(weights, module.state_dict(), found, weights_path)
    module.load_state_dict(weights)
    module.eval()
    return model


def read_weights(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor], Path, Path]:
    """Read the two files of a network's model: its description, its weights, and the paths of both.

    Raises:
        AnyRNNError: if they are damaged or do not belong together, or if a weight is not finite.
    """
    description_path, weights_path = (folder / each for each in file_names(name))
    description = read_json(description_path)
    data = _read(weights_path, "the weights cannot be read")
    if hashlib.sha256(data).hexdigest() != description.get("sha256"):
        raise AnyRNNError(
            f"{weights_path}: these are not the weights that {description_path.name} belongs to (its checksum "
            f"differs): one of the two files was changed or cut off; copy the folder again, or train again"
        )
    try:
        weights = safetensors.torch.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as cause:
        raise AnyRNNError(
            f"{weights_path}: its content is damaged ({type(cause).__name__}: {cause}); expected {MADE_BY}"
        ) from cause
    broken = next((each for each, tensor in weights.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise AnyRNNError(f"{weights_path}: {broken} holds NaN or infinity, expected finite weights; train again")
    return description, weights, description_path, weights_path


def permitted(name: str, cells: Collection[str], run: Path) -> Network:
    """Find the network, importing it only if the caller has named it, and never from the folder of the run."""
    if name in KNOWN:
        return KNOWN[name]
    if name not in cells:
        raise AnyRNNError(
            f"the model is a cell that is not anyrnn's: Python code, {name!r}, which loading it would run; if you "
            f"trust it, name it: --cells {name}, or open_run(folder, cells=[{name!r}])"
        )
    return network(name, never_from=run)


def _built(found: Network, fields: Mapping[str, Any]) -> anyrnn.ManyToOne:
    classes = fields["classes"]
    scaler: Scaler = fields["scaler"]
    if len(scaler.mean) != len(fields["features"]):
        raise AnyRNNError(
            f"{found.name}: the scaler has {len(scaler.mean)} features, expected {len(fields['features'])}"
        )
    size = found.input_size(scaler)
    return build(found, size, 1 if classes is None else len(classes), fields["structure"])


def check_size(
    found: Network, make: Callable[[], nn.Module], sizes: Mapping[str, int], weights: Mapping[str, Tensor], path: Path
) -> None:
    """Refuse a network that is larger than its weights before any memory is taken for it.

    Args:
        found: The network.
        make: Makes the module that has these weights.
        sizes: Numbers of a description by name, none of which can be larger than the largest weight is long.
        weights: Those of the file.
        path: The file.
    """
    largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    for name, size in sizes.items():
        if size > largest:
            raise AnyRNNError(
                f"got {name}={size}, but no weight of {path.name} has more than {largest} rows or columns; expected "
                f"{MADE_BY}"
            )
    try:
        with torch.device("meta"):  # sizes without memory
            expected = make().state_dict()
    except Exception:
        if found.name in KNOWN:
            raise
        return  # a cell of someone's own may look at its numbers, which "meta" has not
    check_fit(weights, expected, found, path)


def layers_of(description: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> int:
    """The number of layers that a description names, 1 if it does not: at most as many as there are weights."""
    layers: int = field_of({"layers": 1, **description}, "layers", is_size, "a whole number above 0")
    if layers > len(weights):
        raise AnyRNNError(f"got layers={layers}, but {path.name} has {len(weights)} weights only; expected {MADE_BY}")
    return layers


def check_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], found: Network, path: Path) -> None:
    """Name the first weight that differs in name, shape or dtype."""
    for name in [*expected, *weights]:
        here = f"{tuple(expected[name].shape)} {expected[name].dtype}" if name in expected else "absent"
        there = f"{tuple(weights[name].shape)} {weights[name].dtype}" if name in weights else "absent"
        if here != there:
            raise AnyRNNError(
                f"{path}: the weights are of another cell than {found.name!r} is here: {name} is {there} in the "
                f"file, expected {here}; use the version of the cell that was trained, or train again"
            )


# What a description holds


def _fields(description: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Model` but for its module, each checked; `network` is still a name."""

    def field(name: str, holds: Callable[[Any], bool], expected: str) -> Any:
        return field_of(description, name, holds, expected)

    def optional(name: str) -> Any:  # which a run of an older anyrnn did not note
        return None if name not in description else field(name, is_text_or_none, "the name of a column, or null")

    classes = field("classes", lambda v: v is None or is_names(v), "different names, or null")
    scale = field("target_scale", lambda v: v is None or is_scale(v), "null, or a mean and a deviation above 0")
    return {
        "network": field("network", is_network_name, "the name of a network"),
        "structure": Structure(
            hidden_size=field("hidden_size", is_size, "a whole number above 0"),
            pool=field("pool", lambda v: isinstance(v, str) and v in POOLS, f"one of {', '.join(POOLS)}"),
            # An older run had one layer and one direction, unless its network said otherwise.
            layers=field("layers", is_size, "a whole number above 0") if "layers" in description else 1,
            bidirectional="bidirectional" in description
            and field("bidirectional", lambda v: isinstance(v, bool), "true or false"),
        ),
        "features": tuple(field("features", is_names, "different names")),
        "classes": None if classes is None else tuple(classes),
        "target": field("target", lambda v: isinstance(v, str), "a name"),
        "scaler": Scaler.from_dict(field("scaler", is_scaler, "means and deviations of the features")),
        "target_scale": None if scale is None else (float(scale[0]), float(scale[1])),
        "seed": field("seed", is_int, "a whole number"),
        "id_column": optional("id_column"),
        "time_column": optional("time_column"),
        "reading": Reading.from_dict(description.get("reading")),
    }


def field_of(description: Mapping[str, Any], name: str, holds: Callable[[Any], bool], expected: str) -> Any:
    """A field of a description.

    Raises:
        AnyRNNError: if it is not there, or does not hold what is expected.
    """
    if name not in description:
        raise AnyRNNError(f"it has no {name!r}; expected {expected}, as in {MADE_BY}")
    value = description[name]
    if not holds(value):
        raise AnyRNNError(f"got {name}={_short(value)}, expected {expected}")
    return value


def is_int(value: Any) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_size(value: Any) -> bool:
    """Whether a value of JSON is a whole number above 0, and no larger than a size can be."""
    return is_int(value) and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text_or_none(value: Any) -> bool:
    """Whether a value of JSON is a text or null."""
    return value is None or isinstance(value, str)


def is_names(value: Any) -> bool:
    """Whether a value of JSON is a list of different texts, and there are some."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def is_scale(value: Any) -> bool:
    """Whether a value of JSON is a mean and a deviation above 0."""
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))):
        return False
    try:
        mean, std = map(float, value)
    except OverflowError:
        return False
    return math.isfinite(mean) and math.isfinite(std) and std > 0


def is_scaler(value: Any) -> bool:
    """Whether a value of JSON has the lists of numbers of a scaler."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) and all(map(_is_number, value[key])) for key in ("mean", "std")
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


# JSON, as the files of a run folder hold it


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; a number that is not finite, which JSON cannot hold, becomes null."""
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def finite(value: Any) -> Any:
    """A value as JSON can hold it: a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(each) for each in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of this format.

    Raises:
        AnyRNNError: if it is not there, no JSON, or of another format.
    """
    data = _read(path, "it cannot be read")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise AnyRNNError(f"{path}: it is not JSON ({cause}); expected {MADE_BY}") from cause
    found = content.get("format") if isinstance(content, dict) else None
    if not is_int(found) or found not in _READ or not isinstance(content, dict):
        raise AnyRNNError(
            f"{path}: its format is {_short(found)}, but anyrnn {anyrnn.__version__} reads formats 1 to {FORMAT}; "
            f"use the version of anyrnn that wrote it, or train again"
        )
    return content


def _read(path: Path, failure: str) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise AnyRNNError(f"{path}: {failure} (it is not a file); expected {MADE_BY}")
        return path.read_bytes()
    except OSError as cause:
        raise AnyRNNError(f"{path}: {failure} ({cause.strerror or cause}); expected {MADE_BY}") from cause


def model_names(results: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the models in the content of a results.json; None if it does not list them, or its best one."""
    entries = results.get("models")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    names = tuple(entry.get("name") for entry in entries)
    if not names or not all(map(is_network_name, names)) or len(set(names)) < len(names):
        return None
    return names if results.get("best") in names else None
