"""LLVM IR -> optimised IR -> object code -> addresses of functions; the object code is kept on disk.

Asked for with a text that determines the IR (the loop program), so that a hit builds no IR at all. The functions that
the IR leaves external are its entry points; everything else in it should be ``internal``.

The cache is a folder of the user's: ``$ANYRNN_CACHE``, else ``anyrnn`` in the system's cache folder; ``ANYRNN_CACHE=``
or ``ANYRNN_CACHE=off`` switches it off. An entry is one file, named by the SHA-256 of everything that the object code
depends on, and is checked as a whole before anything in it is run. Nothing here fails because of the cache: without
one, compiling just happens once a process. `cache_status` says how things stand.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import stat
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyrnn.engines.cpu.machine import llvm
from anyrnn.errors import AnyRNNError
from anyrnn.runtime.lock import LOCK, collector_off

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyrnn.engines.cpu.machine import Machine

#: The size that the cache is brought back to: thousands of programs, of some 50 kB each.
CACHE_BYTES = 256 * 2**20
#: Of that, what a process writes before it looks again: to look at thousands of files takes as long as to compile one.
_UNSEEN = 1 / 16

_MAGIC = b"anyrnn code 1\n\0\0"  # the layout of an entry: magic, key, SHA-256 of the rest, entry points, object code
_HEADER = len(_MAGIC) + 32 + 32


@dataclass(frozen=True)
class Settings:
    """How LLVM optimises.

    Attributes:
        passes: LLVM's pipeline of that level, "O1" to "O3"; or the names of single passes, as llvmlite spells them
            between ``add_`` and ``_pass``, separated by spaces.
        unroll: Whether the pipeline unrolls loops.
    """

    passes: str = "always_inliner global_dead_code_eliminate instruction_combine simplify_cfg"
    unroll: bool = False


@dataclass(frozen=True)
class Compiled:
    """Machine code in memory, which stays there as long as this does.

    Attributes:
        addresses: The entry points, by name.
    """

    addresses: Mapping[str, int]
    _keep: object  # LLVM's tracker, which frees the code when it is collected, and all code that this one calls

    def address(self, name: str) -> int:
        """Return where an entry point is, for instance for a ctypes function type.

        Raises:
            KeyError: if the code has no such entry point.
        """
        return self.addresses[name]


_compiled: dict[str, Compiled] = {}  # never emptied: an address that was handed out stays good
_library_numbers = itertools.count()


def load(
    key_text: str, build: Callable[[], str], machine: Machine, settings: Settings = Settings(),
    uses: Sequence[Compiled] = (),
) -> Compiled:  # fmt: skip
    """Return machine code: from this process's memory, from the disk cache, or by compiling, in this order.

    Args:
        key_text: A text on which the IR depends, beside the machine and anyrnn's own sources, and on nothing else.
        build: Makes the IR; called only when the code is found nowhere.
        machine: What to compile for.
        settings: How to optimise.
        uses: Code whose entry points it may call; what they do is part of anyrnn's sources, or of the text.

    Raises:
        AnyRNNError: if this processor cannot run code for `machine`.
    """
    key = _key(key_text, machine, settings)
    if (found := _compiled.get(key)) is not None:
        return found
    if missing := machine.missing():
        msg = f"code for {machine.cpu!r} needs {', '.join(missing)}, which this processor lacks; use Machine.host()"
        raise AnyRNNError(msg)
    with LOCK:
        if key not in _compiled:
            payload = _fetch(key)
            if payload is None:
                with collector_off():
                    text = build()
                payload = _compile(text, machine, settings)
                _store(key, payload)
            _compiled[key] = _link(payload, uses)
        return _compiled[key]


def optimised_ir(ir_text: str, machine: Machine, settings: Settings = Settings()) -> str:
    """Show the IR as LLVM's optimiser leaves it."""
    with LOCK:
        return str(_optimised(ir_text, _target(machine), settings))


def assembly(ir_text: str, machine: Machine, settings: Settings = Settings()) -> str:
    """Show the machine code as assembler text; the machine may be another than the host."""
    with LOCK:
        target = _target(machine)
        return str(target.emit_assembly(_optimised(ir_text, target, settings)))


def _compile(ir_text: str, machine: Machine, settings: Settings) -> bytes:
    """Compile to the names of the entry points, a zero, and object code."""
    target = _target(machine)
    module = _optimised(ir_text, target, settings)
    names = [f.name for f in module.functions if not f.is_declaration and f.linkage.name == "external"]
    return "\n".join(names).encode() + b"\0" + bytes(target.emit_object(module))


def _optimised(ir_text: str, target: Any, settings: Settings) -> Any:
    binding = llvm()
    # A context of its own, so that the types and constants of a module go when the module goes.
    module = binding.parse_assembly(ir_text, context=binding.create_context())
    module.triple = target.triple
    module.data_layout = str(target.target_data)
    module.verify()
    levels = {"O1": 1, "O2": 2, "O3": 3}
    tuning = binding.create_pipeline_tuning_options(speed_level=levels.get(settings.passes, 2))
    # The IR is vector code already; LLVM's vectorisers would only add variants for cases that do not occur.
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_interleaving = False
    tuning.loop_unrolling = settings.unroll
    builder = binding.create_pass_builder(target, tuning)
    if settings.passes in levels:
        passes = builder.getModulePassManager()
    else:
        passes = binding.create_new_module_pass_manager()
        for name in settings.passes.split():
            getattr(passes, f"add_{name}_pass")()
    passes.run(module, builder)
    return module


def _target(machine: Machine) -> Any:
    binding = llvm()
    # On Windows too the code is linked in memory from ELF, whose relocations need no image base.
    triple = binding.get_process_triple() + ("-elf" if sys.platform == "win32" else "")
    # Position-independent code of the small model reaches its constants by 32-bit distances, which the linker below
    # guarantees, and everything else through a table of full addresses: right anywhere in a large address space.
    return binding.Target.from_triple(triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=3, reloc="pic", codemodel="small", jit=True
    )


def _link(payload: bytes, uses: Sequence[Compiled]) -> Compiled:
    names, _, code = payload.partition(b"\0")
    library = llvm().JITLibraryBuilder().add_object_img(code)
    library.add_current_process()  # LLVM may turn a loop of stores into a call of memset
    for code_used in uses:
        for name, address in code_used.addresses.items():
            library.import_symbol(name, address)
    entry_points = names.decode().split("\n")
    for name in entry_points:
        library.export_symbol(name)
    tracker = library.link(_linker(), f"anyrnn {next(_library_numbers)}")
    return Compiled({name: tracker[name] for name in entry_points}, (tracker, *uses))


@functools.cache
def _linker() -> Any:
    # JITLink puts the code and the constants of an object into one block of memory, and write-protects the block
    # before it becomes executable. The older linker allocates section by section, at any distance.
    return llvm().create_lljit_compiler(use_jit_link=True)


def _key(key_text: str, machine: Machine, settings: Settings) -> str:
    parts = (_versions(), astuple(machine), astuple(settings), key_text)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    """List what the code depends on beside the program: LLVM, the system, and anyrnn's sources themselves.

    The sources, and not a version number that somebody has to remember to raise when the compiler changes.
    """
    with LOCK:
        from llvmlite import __version__ as llvmlite  # noqa: PLC0415 (`import anyrnn` must not load it)

    here = Path(__file__).parent
    sources = hashlib.sha256()
    folders = here, here.parents[1] / "compiler", here.parents[1] / "runtime"  # where the compiler's own sources are
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        sources.update(hashlib.sha256(path.read_bytes()).digest())
    version = ".".join(map(str, llvm().llvm_version_info))
    return sources.hexdigest(), str(llvmlite), version, str(llvm().get_process_triple())


# The disk cache


def cache_status() -> str:
    """Say in one line where the disk cache is and what it holds, or why it is not used."""
    place = _place()
    if isinstance(place, str):
        return place
    try:
        sizes = [path.stat().st_size for path in place.glob("*.code")]
    except OSError as error:
        return f"not used: {error}"
    only = "" if os.access(place, os.W_OK) else ", read-only"
    return f"{place}: {len(sizes)} entries, {sum(sizes) / 2**20:.1f} of {CACHE_BYTES // 2**20} MiB{only}"


def _place() -> Path | str:
    """Find the cache's folder, or the reason why there is none."""
    wanted = os.environ.get("ANYRNN_CACHE")
    if wanted is not None and wanted.strip().lower() in {"", "off"}:
        return f"off: ANYRNN_CACHE={wanted}"
    try:
        place = Path(wanted).expanduser() if wanted else _user_cache() / "anyrnn"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        fault = _distrusted(place.stat())
    except (OSError, RuntimeError) as error:  # RuntimeError: pathlib finds no home
        return f"not used: {error}"
    return f"not used: {place} {fault}" if fault else place


def _user_cache() -> Path:
    # Ten lines of platformdirs would be used, which is not worth a dependency of every installation.
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"  # its specification: ignore relative ones


def _distrusted(status: os.stat_result) -> str | None:
    """Say why a file or folder might hold machine code that somebody else wrote."""
    if sys.platform == "win32":
        return None  # no modes there; the folder lies in the user's profile, under its access list
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to you"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _fetch(key: str) -> bytes | None:
    """Read an entry; None if there is none that can be trusted to the last byte."""
    place = _place()
    if isinstance(place, str):
        return None
    path = place / f"{key}.code"
    try:
        with path.open("rb") as file:
            if _distrusted(os.fstat(file.fileno())):
                return None
            entry = file.read()
    except OSError:
        return None
    payload = entry[_HEADER:]
    if entry[:_HEADER] != _header(key, payload):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: `_trim` removes the entries whose turn was longest ago
    return payload


#: By folder: how many bytes this process has written there since it last looked how full it is.
_written: dict[Path, int] = {}


def _store(key: str, payload: bytes) -> None:
    place = _place()
    if isinstance(place, str):
        return
    part: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=place, suffix=".code", delete=False) as file:
            part = Path(file.name)
            file.write(_header(key, payload) + payload)
        part.replace(place / f"{key}.code")
        _written[place] = _written.get(place, CACHE_BYTES) + len(payload)
        if _written[place] > CACHE_BYTES * _UNSEEN:
            _written[place] = 0
            _trim(place)
    except OSError:  # read-only, full, or vanished: the code is in memory, and `cache_status` tells what can be told
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()


def _header(key: str, payload: bytes) -> bytes:
    return _MAGIC + bytes.fromhex(key) + hashlib.sha256(payload).digest()


def _trim(place: Path) -> None:
    """Remove the least recently used entries beyond the limit; among them, one day, what a killed process left."""
    entries = []
    with os.scandir(place) as found:
        for entry in found:
            if entry.name.endswith(".code"):
                with contextlib.suppress(OSError):  # another process may be removing entries too
                    status = entry.stat()
                    entries.append((status.st_mtime, status.st_size, entry.path))
    excess = sum(size for _, size, _ in entries) - CACHE_BYTES
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            Path(path).unlink()
        excess -= size
