"""The run folder: `results.json`, `models/NAME.safetensors` beside `models/NAME.json`, and `report.html`.

Nothing in it is a pickle, and no code comes with it: a cell of the user's own is imported by its name. A folder
appears whole or not at all: it is written under a temporary name next to its place and renamed at the end.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.models import Model, Pool, Predictions, build, network
from anyrnn.workbench.parsed import did_you_mean
from anyrnn.workbench.sequences import Scaler

FORMAT = 1  # of results.json and of models/*.json; raised when an older anyrnn could not read what we write

_MADE_BY = "a folder that `anyrnn compare` or `anyrnn fit` wrote"


def check_destination(folder: Path, overwrite: bool) -> None:
    """Refuse a place for a run folder where something would be lost, or that cannot be written.

    An empty folder may be filled; a folder that holds a run, and nothing but that run, may be replaced with
    `overwrite`; nothing else is ever touched.

    Raises:
        AnyRNNError: if the place will not do.
    """
    if folder.is_dir():
        if not any(folder.iterdir()):
            return
        if not _holds_run(folder):
            raise AnyRNNError(
                f"{folder}: this folder is there already and holds no run of anyrnn, so it is left alone, "
                f"whether or not it is to be overwritten; choose another folder"
            )
        if not overwrite:
            raise AnyRNNError(f"{folder}: a run is there already; choose another folder, or overwrite it (--overwrite)")
        strangers = _strangers(folder)
        if strangers:
            raise AnyRNNError(
                f"{folder}: overwriting it would delete {strangers[0]}, which is no part of the run; "
                f"move it away or choose another folder"
            )
        return
    if folder.exists() or folder.is_symlink():
        raise AnyRNNError(f"{folder}: a file of this name is there already; choose another folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise AnyRNNError(f"{folder}: {above} is not a folder that can be written to; choose another folder")


def save_run(
    folder: Path, results: Mapping[str, Any], models: Sequence[Model], report: str, *, overwrite: bool = False
) -> None:
    """Write a run folder, whole or not at all.

    Raises:
        AnyRNNError: if the place will not do; see `check_destination`.
    """
    check_destination(folder, overwrite)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One temporary folder beside the destination, so that each rename stays within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        _write_json(new / "results.json", results)
        (new / "models").mkdir()
        for model in models:
            _save_model(new / "models", model)
        (new / "report.html").write_text(report, encoding="utf-8")
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:  # also an interrupt between the two
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise


@dataclass(frozen=True)
class RunFolder:
    """A run that was saved: its results, and its models ready to predict.

    Attributes:
        path: The folder.
        results: The content of `results.json`.
    """

    path: Path
    results: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its models."""
        return tuple(entry["name"] for entry in self.results["models"])

    def model(self, name: str | None = None) -> Model:
        """Load a model; the best one of the run if no name is given.

        Raises:
            AnyRNNError: if there is no such model, if its files are damaged, or if its weights do not fit the cell.
        """
        name = self.results["best"] if name is None else name
        if name not in self.names:
            raise AnyRNNError(
                f"{self.path}: there is no model {name!r}; the models are {', '.join(self.names)}."
                f"{did_you_mean(str(name), self.names)}"
            )
        return _load_model(self.path / "models" / _file_name(name))

    def predict(self, sequences: Sequence[Tensor], model: str | None = None) -> Predictions:
        """Predict the class or number of each sequence, (T, I) as read, with the best model or the one named."""
        return self.model(model).predict(sequences)


def open_run(folder: str | Path) -> RunFolder:
    """Open a run folder.

    Args:
        folder: What `anyrnn compare`, `anyrnn fit` or `Results.save` wrote.

    Raises:
        AnyRNNError: if it is not there, is damaged, or is of a format that this version does not read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise AnyRNNError(f"{path}: there is no such folder; expected {_MADE_BY}")
    results = _read_json(path / "results.json")
    try:
        names = [entry["name"] for entry in results["models"]]
        damaged = results["best"] not in names
    except (KeyError, TypeError):
        damaged = True
    if damaged:
        raise AnyRNNError(f"{path / 'results.json'}: it does not list its models; expected {_MADE_BY}")
    return RunFolder(path, results)


def _save_model(folder: Path, model: Model) -> None:
    # Cloned: safetensors refuses tensors that share memory, which a cell with tied weights has.
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in model.module.state_dict().items()}
    data = safetensors.torch.save(weights)
    path = folder / _file_name(model.network.name)
    _with_suffix(path, ".safetensors").write_bytes(data)
    description = {
        "format": FORMAT,
        "anyrnn": anyrnn.__version__,
        "torch": torch.__version__,
        "network": model.network.name,
        "layer": repr(model.layer),
        "hidden_size": model.hidden_size,
        "pool": model.pool,
        "features": list(model.features),
        "classes": None if model.classes is None else list(model.classes),
        "target": model.target,
        "scaler": model.scaler.to_dict(),
        "target_scale": None if model.target_scale is None else list(model.target_scale),
        "seed": model.seed,
        "weights": {name: list(tensor.shape) for name, tensor in weights.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    _write_json(_with_suffix(path, ".json"), description)


def _load_model(path: Path) -> Model:
    description_path, weights_path = _with_suffix(path, ".json"), _with_suffix(path, ".safetensors")
    description = _read_json(description_path)
    try:
        data = weights_path.read_bytes()
    except OSError as cause:
        raise AnyRNNError(
            f"{weights_path}: the weights cannot be read ({cause.strerror}); expected {_MADE_BY}"
        ) from cause
    if hashlib.sha256(data).hexdigest() != description.get("sha256"):
        raise AnyRNNError(
            f"{weights_path}: these are not the weights that {description_path.name} belongs to (its checksum "
            f"differs): one of the two files was changed or cut off; copy the folder again, or train again"
        )
    try:
        model = _described(description)
        weights = safetensors.torch.load(data)
    except AnyRNNError as cause:
        raise AnyRNNError(f"{description_path}: {cause}") from cause
    except (KeyError, TypeError, ValueError, SafetensorError) as cause:
        raise AnyRNNError(
            f"{description_path}: its content is damaged ({type(cause).__name__}: {cause}); expected {_MADE_BY}"
        ) from cause
    misfit = _misfit(weights, model.module.state_dict())
    if misfit:
        raise AnyRNNError(
            f"{weights_path}: the weights are of another cell than {model.network.name!r} is here: {misfit}; "
            f"use the version of the cell that was trained, or train again"
        )
    model.module.load_state_dict(weights)
    model.module.eval()
    return model


def _described(description: Mapping[str, Any]) -> Model:
    """Rebuild a model from its description, with weights that are still to be loaded."""
    features, classes = tuple(description["features"]), description["classes"]
    found, hidden_size, pool = (
        network(description["network"]),
        description["hidden_size"],
        cast("Pool", description["pool"]),
    )
    target_scale = description["target_scale"]
    return Model(
        network=found,
        hidden_size=hidden_size,
        pool=pool,
        features=features,
        classes=None if classes is None else tuple(classes),
        target=description["target"],
        scaler=Scaler.from_dict(description["scaler"]),
        target_scale=None if target_scale is None else (float(target_scale[0]), float(target_scale[1])),
        seed=description["seed"],
        module=build(found, len(features), hidden_size, 1 if classes is None else len(classes), pool),
    )


def _misfit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Name the first weight that differs in name, shape or dtype; None if all fit."""
    for name in [*expected, *weights]:
        here = f"{tuple(expected[name].shape)} {expected[name].dtype}" if name in expected else "absent"
        there = f"{tuple(weights[name].shape)} {weights[name].dtype}" if name in weights else "absent"
        if here != there:
            return f"{name} is {there} in the file, expected {here}"
    return None


def _file_name(name: str) -> str:
    return name.replace(":", ".")  # "module:Class": no file can have a colon in its name on Windows


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _holds_run(folder: Path) -> bool:
    try:
        results = json.loads((folder / "results.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and {"format", "anyrnn", "models", "best"} <= results.keys()


def _strangers(folder: Path) -> list[Path]:
    """The files of a run folder that are no part of the run."""
    names = [entry["name"] for entry in json.loads((folder / "results.json").read_bytes())["models"]]
    files = [f"models/{_file_name(name)}{suffix}" for name in names for suffix in (".json", ".safetensors")]
    own = {folder / name for name in ("results.json", "report.html", "models", *files)}
    return sorted(set(folder.rglob("*")) - own)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as cause:
        raise AnyRNNError(f"{path}: it cannot be read ({cause.strerror}); expected {_MADE_BY}") from cause
    except ValueError as cause:
        raise AnyRNNError(f"{path}: it is not JSON ({cause}); expected {_MADE_BY}") from cause
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise AnyRNNError(
            f"{path}: its format is {found!r}, but anyrnn {anyrnn.__version__} reads format {FORMAT}; "
            f"use the version of anyrnn that wrote it, or train again"
        )
    return cast("dict[str, Any]", content)
