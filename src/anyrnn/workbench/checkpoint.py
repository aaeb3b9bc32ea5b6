"""The state of a training run on the disk, from which it goes on to the same numbers: `Checkpoints`.

`checkpoint.json` names the file with the tensors that belongs to it, and its checksum; it is the last thing that is
written, so that whenever the process ends there is a whole checkpoint, the new one or the one before. Nothing is a
pickle.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.durable import remove_strays, write_whole

DESCRIPTION = "checkpoint.json"
# Of the time of a training run: a checkpoint is due once the time since the last one pays for it.
_SHARE = 0.02


def warn(trouble: str) -> None:
    """Say what went wrong, if nobody else takes care of it."""
    warnings.warn(trouble, stacklevel=3)


@dataclass(frozen=True)
class Packed:
    """A state as it is kept or sent.

    Attributes:
        state: What JSON has of it.
        tensors: The bytes of a safetensors file.
    """

    state: Any
    tensors: bytes

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Pack numbers, texts, tensors, arrays, and lists, tuples and dicts of them."""
        tensors: dict[str, Tensor] = {}
        packed = _packed(state, tensors)
        return cls(packed, safetensors.torch.save(tensors))

    def unpacked(self) -> dict[str, Any]:
        """The state, with tensors of its own."""
        return dict(_unpacked(self.state, safetensors.torch.load(self.tensors)))


class Checkpoints:
    """Those of one training run, in a folder of its own.

    Args:
        folder: Where; made at the first one.
        identity: What is trained, on what and how, as JSON has it: a checkpoint of anything else is refused.
        say: Is told once if they cannot be written; the training goes on without.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], say: Callable[[str], None] = warn) -> None:
        self.folder, self.identity, self._say = folder, identity, say
        self._written, self._cost, self._failed, self._count = -float("inf"), 0.0, False, 0

    def load(self) -> dict[str, Any] | None:
        """The last state that was kept; None if there is none.

        Raises:
            AnyRNNError: if it is of something else, or damaged.
        """
        packed = self.packed()
        if packed is None:
            return None
        with self._undamaged():
            return packed.unpacked()

    def packed(self) -> Packed | None:
        """The last state that was kept, as `load` unpacks it."""
        path = self.folder / DESCRIPTION
        if not path.exists():
            return None
        with self._undamaged():
            description = json.loads(path.read_bytes())
            identity = description["identity"]
            data = (self.folder / description["tensors"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != description["sha256"]:
                raise ValueError("the checksum of its tensors differs")
            self._count = int(description["count"])
            packed = Packed(description["state"], data)
        refuse_other_run(self.folder, identity, self.identity)
        remove_strays(self.folder, frozenset({DESCRIPTION, description["tensors"]}))
        return packed

    @property
    def due(self) -> bool:
        """Whether so much time has gone by that a checkpoint takes no more than a fiftieth of it."""
        return time.perf_counter() - self._written >= self._cost / _SHARE

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state: what `Packed.of` takes."""
        start = time.perf_counter()
        packed = Packed.of(state)
        self.store(packed, packing=time.perf_counter() - start)

    def store(self, packed: Packed, *, packing: float = 0.0) -> None:
        """Keep a state that is packed already, which took so many seconds here."""
        start = time.perf_counter()
        try:
            self._write(packed)
        except OSError as cause:
            if not self._failed:
                self._say(
                    f"{self.folder}: checkpoints cannot be written: {cause.strerror or cause}; the training goes on, "
                    "but from an earlier one if it is cut off; make room"
                )
            self._failed = True
        self._written = time.perf_counter()
        self._cost = self._written - start + packing

    def _write(self, packed: Packed) -> None:
        name = f"checkpoint-{self._count + 1}.safetensors"
        description = {
            "identity": self.identity,
            "count": self._count + 1,
            "tensors": name,
            "sha256": hashlib.sha256(packed.tensors).hexdigest(),
            "state": packed.state,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / name, packed.tensors)
        write_whole(self.folder / DESCRIPTION, json.dumps(description).encode())
        self._count += 1
        remove_strays(self.folder, frozenset({DESCRIPTION, name}))

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as cause:
            what = f"{type(cause).__name__}: {cause}"
            raise AnyRNNError(
                f"{self.folder / DESCRIPTION}: this checkpoint is damaged ({what}); begin the run anew (--overwrite)"
            ) from cause


def refuse_difference(what: str, before: Any, now: Any, cure: str) -> None:
    """Refuse to go on with something else than there was before.

    Args:
        what: Differs, in words.
        before: A value of JSON.
        now: What should be the same.
        cure: What to do.

    Raises:
        AnyRNNError: naming the first thing that differs.
    """
    found = _difference(json.loads(json.dumps(before)), json.loads(json.dumps(now)), ())
    if found is not None:
        name, there, here = found
        raise AnyRNNError(f"{what} in {name}: {_short(there)} there, {_short(here)} here; {cure}")


def refuse_other_run(where: Path, begun: Any, now: Any) -> None:
    """Refuse to go on with a run that was begun with something else; raises an `AnyRNNError`."""
    refuse_difference(
        f"{where}: the run that was begun there differs from this one",
        begun,
        now,
        "go on with the same data and options, begin it anew (--overwrite), or choose another folder",
    )


def _difference(before: Any, now: Any, path: tuple[str, ...]) -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            found = _difference(before.get(key, "nothing"), now.get(key, "nothing"), (*path, key))
            if found is not None:
                return found
        return None
    return None if before == now else (".".join(path), before, now)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:50]}..."


# A state as JSON has it, with the tensors apart


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()  # cloned: safetensors takes none that share memory
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": _packed(torch.from_numpy(value), tensors)}
    if isinstance(value, Mapping):
        return {"items": [[_packed(key, tensors), _packed(each, tensors)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_packed(each, tensors) for each in value]}
    if isinstance(value, list):
        return [_packed(each, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].clone(memory_format=torch.contiguous_format)  # aligned as all others are
    if "array" in value:
        return _unpacked(value["array"], tensors).numpy()
    if "tuple" in value:
        return tuple(_unpacked(each, tensors) for each in value["tuple"])
    return {_unpacked(key, tensors): _unpacked(each, tensors) for key, each in value["items"]}
