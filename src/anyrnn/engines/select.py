"""The choice of an engine for a call: by name with `engine(...)`, or the first that can run it; and the reason."""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyrnn.engines import short
from anyrnn.engines.cpu.backend import CpuBackend
from anyrnn.engines.reference import ReferenceEngine
from anyrnn.engines.vendor import TorchEngine, kernel_of
from anyrnn.errors import AnyRNNError
from anyrnn.runtime.engine import CompiledEngine, Engine, Stepper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anyrnn.runtime.call import Call

_CPU, _REFERENCE = CompiledEngine("cpu", CpuBackend.host), ReferenceEngine()
_ALL: tuple[Engine, ...] = _CPU, TorchEngine(), _REFERENCE

#: The engines in the order in which "auto" tries them. The last one never refuses.
ENGINES: Mapping[str, Engine] = {e.name: e for e in _ALL}

#: Engines that the design names and this version lacks.
PLANNED = ("triton",)

_wanted: ContextVar[str | None] = ContextVar("anyrnn_engine", default=None)


@dataclass(frozen=True)
class Choice:
    """The engine that runs a call.

    Attributes:
        engine: The engine.
        reason: Why it was chosen: why no faster one was, unless nobody could change that.
        refused: Why each engine tried before it cannot run the call, by name.
    """

    engine: Engine
    reason: str
    refused: Mapping[str, str]


@dataclass(frozen=True)
class StepChoice:
    """The engine that runs single steps; the attributes are those of a `Choice`."""

    engine: Stepper
    reason: str
    refused: Mapping[str, str]


_FIRST = Choice(next(iter(ENGINES.values())), "the fastest engine here that can run it", {})


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Choose the engine for the calls inside a ``with`` block, in this thread.

    Args:
        name: "auto" (the default: the fastest that can run the call), "cpu" (any cell, as machine code for this
            processor), "torch" (PyTorch's own kernels for RNN, LSTM and GRU) or "reference" (the plain Python loop
            that defines every result). Outside a block, the environment variable ``ANYRNN_ENGINE`` is read, then
            "auto" applies.

    Raises:
        AnyRNNError: for an unknown name; and inside the block, by a layer that the engine asked for cannot run.
            Only "auto" falls back.

    Example:
        >>> import torch, anyrnn
        >>> layer, x = anyrnn.LSTM(3, 5), torch.randn(10, 2, 3)
        >>> with anyrnn.engine("reference"):
        ...     output, state = layer(x)
        >>> torch.allclose(output, layer(x)[0], atol=1e-5)
        True
    """
    token = _wanted.set(_known(name, "engine"))
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted_name() -> str:
    """The name that the present context or the environment asks for: "auto" or a name in `ENGINES`.

    Raises:
        AnyRNNError: for an unknown name in the environment.
    """
    return _wanted.get() or _known(os.environ.get("ANYRNN_ENGINE") or "auto", "ANYRNN_ENGINE")


def choose(call: Call) -> Choice:
    """Choose the engine for a call.

    Raises:
        AnyRNNError: if an engine was asked for by name and cannot run the call.
    """
    wanted = wanted_name()
    if wanted != "auto":
        chosen = ENGINES[wanted]
        refusal = chosen.refusal(call)
        if refusal is None:
            return Choice(chosen, "asked for by name", {})
        msg = f"engine {wanted!r} was asked for by name and cannot run this call: {refusal}. 'auto' falls back."
        raise AnyRNNError(msg)
    preference = short.preference(call)
    if preference is not None:
        return Choice(ENGINES["torch"], preference, {})
    refused: dict[str, str] = {}
    for each in ENGINES.values():
        refusal = each.refusal(call)
        if refusal is None:
            if not refused:
                return _FIRST
            # That a cell is none of torch.nn's three is no news to its author, and nothing he could change.
            reasons = [why for name, why in refused.items() if name != "torch" or kernel_of(call.cell) is not None]
            return Choice(each, "; ".join(reasons) or _FIRST.reason, refused)
        refused[each.name] = refusal
    raise AssertionError  # the reference engine never refuses


def choose_for_steps(call: Call) -> StepChoice:
    """Choose the engine for a call of one step that is to be repeated: a stream.

    Raises:
        AnyRNNError: if an engine was asked for by name and cannot run it.
    """
    wanted = wanted_name()
    if wanted == "torch":
        msg = "engine 'torch' was asked for by name, and its kernels run whole sequences, not the steps of a stream"
        raise AnyRNNError(msg)
    if wanted == "reference":
        return StepChoice(_REFERENCE, "asked for by name", {})
    refusal = _CPU.refusal(call)
    if refusal is None:
        return StepChoice(_CPU, _FIRST.reason if wanted == "auto" else "asked for by name", {})
    if wanted != "auto":
        msg = f"engine {wanted!r} was asked for by name and cannot run this stream: {refusal}. 'auto' falls back."
        raise AnyRNNError(msg)
    return StepChoice(_REFERENCE, refusal, {_CPU.name: refusal})


def _known(name: str, where: str) -> str:
    if name in ENGINES or name == "auto":
        return name
    missing = " (planned, not in this version)" if name in PLANNED else ""
    msg = f"{where}: got {name!r}{missing}, expected one of auto, {', '.join(ENGINES)}"
    raise AnyRNNError(msg)
