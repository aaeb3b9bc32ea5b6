"""What the processor offers to the compiler: its name and features for LLVM, the vector width, the registers.

``ANYRNN_CPU`` replaces the host by one of the names of `named`, for instance ``x86-64-v3`` to run the AVX2 code on a
machine with AVX-512. LLVM is loaded here, at first use.
"""

from __future__ import annotations

import difflib
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyrnn.errors import AnyRNNError
from anyrnn.runtime.lock import LOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

# Features that the tile's arithmetic can use, by x86-64 level (the psABI's), each level holding the ones before it.
_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")

# The names that can be asked for, by architecture, each with the features that it takes for granted. LLVM has hundreds
# of names, and for a wrong one it prints a warning and compiles for the oldest processor; these are checked instead.
_NAMED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86_64": {
        "x86-64": (),
        "x86-64-v2": _V2,
        "x86-64-v3": _V3,
        "x86-64-v4": _V4,
        "haswell": _V3,
        "skylake-avx512": _V4,
    },
    "aarch64": {"generic": ()},  # NEON belongs to the architecture
}


@dataclass(frozen=True)
class Machine:
    """A processor to compile for.

    Attributes:
        cpu: LLVM's name of it.
        features: LLVM's features beside those that the name implies, ``"+avx2,-avx512f"``.
        vector_bytes: The width of a vector register that the code is to use.
        registers: How many vector registers there are.
    """

    cpu: str
    features: str
    vector_bytes: int
    registers: int

    def lanes(self, dtype: torch.dtype) -> int:
        """Count the elements of a type that fill one vector.

        Example:
            >>> import torch
            >>> Machine("haswell", "", vector_bytes=32, registers=16).lanes(torch.float32)
            8
        """
        return self.vector_bytes // dtype.itemsize

    def missing(self) -> tuple[str, ...]:
        """List what a named processor has and this host lacks; code for it runs here if nothing is listed."""
        host = _host_features()
        return tuple(each for each in _names().get(self.cpu, ()) if not host.get(each))

    @staticmethod
    def host() -> Machine:
        """Describe this machine, or the one that ``ANYRNN_CPU`` names.

        Raises:
            AnyRNNError: if ``ANYRNN_CPU`` is unknown, or is a processor whose code cannot run here.
        """
        return _host(os.environ.get("ANYRNN_CPU", "").strip())

    @staticmethod
    def named(name: str) -> Machine:
        """Describe a processor of this machine's architecture by name; it may be another than the host.

        Args:
            name: ``x86-64``, ``x86-64-v2``, ``x86-64-v3``, ``x86-64-v4``, ``haswell`` or ``skylake-avx512``; on 64-bit
                ARM and elsewhere ``generic``.

        Raises:
            AnyRNNError: for another name.
        """
        return _named(name, "Machine.named")


@functools.cache
def llvm() -> Any:
    """Load LLVM, ready to compile for this machine's architecture, and return ``llvmlite.binding``."""
    with LOCK:
        import llvmlite.binding  # noqa: PLC0415 (`import anyrnn` must not pay for loading LLVM)

        llvmlite.binding.initialize_native_target()
        llvmlite.binding.initialize_native_asmprinter()
        return llvmlite.binding


@functools.cache
def _host(override: str) -> Machine:
    if not override:
        features = _host_features()
        return Machine(llvm().get_host_cpu_name(), features.flatten(), *_vectors(_architecture(), features))
    machine = _named(override, "ANYRNN_CPU")
    if missing := machine.missing():
        msg = f"ANYRNN_CPU: {override!r} needs {', '.join(missing)}, which this processor lacks; unset it"
        raise AnyRNNError(msg)
    return machine


def _named(name: str, where: str) -> Machine:
    known = _names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        msg = f"{where}: got {name!r}, expected one of {', '.join(known)}.{hint}"
        raise AnyRNNError(msg)
    return Machine(name, "", *_vectors(_architecture(), dict.fromkeys(known[name], True)))


def _vectors(architecture: str, features: Mapping[str, bool]) -> tuple[int, int]:
    """Find the width in bytes and the number of the vector registers."""
    if architecture == "aarch64":
        return 16, 32
    if features.get("avx512f"):
        # Some AVX-512 processors clock lower under 512-bit work, and LLVM then keeps to 256 bits by itself. That is
        # meant for the odd vector among scalars; a loop of FMAs gains more from the width than it loses in clock. So
        # only a machine that says so explicitly is given narrow vectors.
        return (32, 32 if features.get("avx512vl") else 16) if features.get("prefer-256-bit") else (64, 32)
    return (32, 16) if features.get("avx") else (16, 16)


def _names() -> Mapping[str, tuple[str, ...]]:
    return _NAMED.get(_architecture(), {"generic": ()})


@functools.cache
def _architecture() -> str:
    first = str(llvm().get_process_triple()).partition("-")[0]
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(first, first)


@functools.cache
def _host_features() -> Any:
    return llvm().get_host_cpu_features()
