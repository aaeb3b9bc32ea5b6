"""What is installed, what runs which network and why, and where things are kept: the content of `anyrnn doctor`."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import anyrnn
from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.select import ENGINES, PLANNED
from anyrnn.workbench.models import NETWORKS


@dataclass(frozen=True)
class Finding:
    """One line of what was found: where it belongs, what it is about, and what there is to say."""

    section: str
    subject: str
    found: str


def diagnose() -> tuple[Finding, ...]:
    """Look at this installation; nothing is changed, nothing is asked of a network.

    Example:
        >>> [finding.found for finding in diagnose() if finding.subject == "anyrnn"] == [anyrnn.__version__]
        True
    """
    return tuple(
        Finding(section, subject, found)
        for section, lines in (
            ("versions", _versions()),
            ("machine", _machine()),
            ("engines", _engines()),
            ("networks", _networks()),
            ("places", _places()),
        )
        for subject, found in lines
    )


def machine() -> str:
    """Name the processor, its cores that may be used, and the operating system."""
    return f"{_processor()}, {_cores()} cores, {platform.system()} {platform.machine()}"


def _versions() -> Iterator[tuple[str, str]]:
    yield "anyrnn", anyrnn.__version__
    yield "Python", platform.python_version()
    for requirement in importlib.metadata.requires("anyrnn") or ():
        wanted, _, condition = requirement.partition(";")
        if not condition or "workbench" in condition:
            package = re.split(r"[^\w.-]", wanted)[0]
            try:
                found = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found = "not installed"
            yield package, f"{found}, needed: {wanted.strip()}"


def _machine() -> Iterator[tuple[str, str]]:
    yield "processor", machine()
    yield "threads", f"{torch.get_num_threads()} for wide layers, 1 up to 256 units, or what --threads says"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that this build of torch can use"
    yield "GPU", f"{gpu}; the command line trains on the CPU"


def _engines() -> Iterator[tuple[str, str]]:
    for name in ENGINES:
        yield name, f"available; {threads.status()}" if name == "cpu" else "available"
    for name in PLANNED:
        yield name, f"not available: anyrnn {anyrnn.__version__} does not have it yet"
    if "ANYRNN_ENGINE" in os.environ:
        yield "ANYRNN_ENGINE", f"{os.environ['ANYRNN_ENGINE']!r} is asked for in the environment"


def _networks() -> Iterator[tuple[str, str]]:
    x = torch.zeros(2, 1, 1)
    for network in NETWORKS.values():
        parts = anyrnn.explain(network.layer(1, 1), x).parts
        yield network.name, "; ".join(dict.fromkeys(f"engine {part.engine!r}: {part.reason}" for part in parts))


def _places() -> Iterator[tuple[str, str]]:
    yield "package", str(Path(anyrnn.__file__).parent)
    yield "runs", f"{Path.cwd() / 'runs'}, or where --out says"
    yield "machine code", jit.cache_status()


def _cores() -> int:
    # Not all of the machine's, where a container or taskset grants fewer.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() knows no more than "x86_64" on Linux
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
