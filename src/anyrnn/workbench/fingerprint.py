"""What a run is of, as JSON: a run that was cut off goes on only if all of it is the same."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anyrnn
from anyrnn.workbench.checkpoint import refuse_difference
from anyrnn.workbench.ondisk import digests_of, lengths_of
from anyrnn.workbench.processes import world
from anyrnn.workbench.sequences import Inputs, Sequences

_SAID_ONLY = frozenset({"name", "split", "notes", "attribution"})  # what of a dataset decides no number


def identity(dataset: Any, settings: Any, metric: str, cells: Iterable[str]) -> dict[str, Any]:
    """All that the numbers of a training run depend on, but for its network and its seed.

    Args:
        dataset: What is learned, a dataclass: of its sequences, checksums.
        settings: How, likewise, with nothing left open.
        metric: What its runs are scored by.
        cells: The names of the networks; of those that are not anyrnn's, checksums of their modules.
    """
    own = sorted(cell for cell in cells if ":" in cell)
    return {
        "anyrnn": anyrnn.__version__,
        "torch": torch.__version__,
        "data": {
            field.name: _described(getattr(dataset, field.name))
            for field in fields(dataset)
            if field.name not in _SAID_ONLY
        },
        "settings": asdict(settings),
        "metric": metric,
        "processes": world().size,
        "code": {cell: checksum_of_module(cell.partition(":")[0]) for cell in own},
    }


def check_same(found: Mapping[str, Any]) -> None:
    """Refuse to train together where another process has read other data, or has other versions or code.

    Raises:
        AnyRNNError: in each process that differs from the first.
    """
    first = world().of_first(lambda: found)
    what = f"process {world().rank} differs from process 0"
    refuse_difference(what, first, found, "start all processes on the same data, code and options")


def _described(value: Any) -> Any:
    """A value as a run names it: as it is if JSON has it, else a checksum; of sequences, how many there are as well."""
    if isinstance(value, Sequences):
        return {"sequences": len(value), "steps": int(lengths_of(value.x).sum()), "values": _checksum(value)}
    if isinstance(value, tuple | list):
        return [_described(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else _checksum(value)


def _checksum(value: Any) -> str:
    sha = hashlib.sha256()
    _feed(sha.update, value)
    return sha.hexdigest()


def _feed(update: Callable[[Any], None], value: Any) -> None:
    """Give all that a value holds to a checksum, each with its kind and its length."""
    if isinstance(value, torch.Tensor):
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(value.contiguous().numpy().data)
    elif isinstance(value, np.ndarray):
        update(f"{value.dtype}{value.shape}".encode())
        update(np.ascontiguousarray(value).data)
    elif isinstance(value, Inputs):  # the same in memory and on the disk
        own = [(field.name, getattr(value, field.name)) for field in fields(value) if field.name != "x"]
        _feed(update, (own, b"".join(digests_of(value.x)), lengths_of(value.x)))
    elif is_dataclass(value):
        _feed(update, [(field.name, getattr(value, field.name)) for field in fields(value)])
    elif isinstance(value, tuple | list):
        update(f"{len(value)}[".encode())
        for each in value:
            _feed(update, each)
    else:
        text = repr(value).encode("utf-8", "surrogatepass")
        update(f"{len(text)}:".encode() + text)


def checksum_of_module(name: str) -> str | None:
    """The checksum of the source of a module that is loaded; None if it has none, as in a notebook."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[name]).encode()).hexdigest()
    except (KeyError, OSError, TypeError):
        return None


def checksum_of_sources(folder: Path) -> str:
    """The checksum of all Python sources below a folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()
