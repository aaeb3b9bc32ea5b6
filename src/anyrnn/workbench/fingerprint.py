"""What a run is of, as JSON: a run that was cut off goes on only if all of it is the same."""

import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

import anyrnn
from anyrnn.workbench.checkpoint import refuse_difference
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.processes import world
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings

_SAID_ONLY = frozenset({"name", "split", "notes", "attribution"})  # what of a dataset decides no number


def identity(dataset: Dataset, settings: Settings, cells: Iterable[str]) -> dict[str, Any]:
    """All that the numbers of a training run depend on, but for its network and its seed.

    Args:
        dataset: What is learned: of its sequences, checksums.
        settings: How, with nothing left open.
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
        "processes": world().size,
        "code": {cell: _module_checksum(cell.partition(":")[0]) for cell in own},
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
    if not isinstance(value, Sequences):
        return value
    return {"sequences": len(value), "steps": sum(map(len, value.x)), "values": _checksum(value)}


def _checksum(part: Sequences) -> str:
    sha = hashlib.sha256(repr((part.ids, part.groups, part.y.dtype)).encode("utf-8", "surrogatepass"))
    for tensor in (part.y, *part.x):
        sha.update(repr(tuple(tensor.shape)).encode())
        sha.update(tensor.contiguous().numpy().data)
    return sha.hexdigest()


def _module_checksum(name: str) -> str | None:
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[name]).encode()).hexdigest()
    except (KeyError, OSError, TypeError):  # no Python source, as in a notebook
        return None
