"""Files that are whole or not there, whatever happens to the process or the machine while they are written."""

import os
from contextlib import suppress
from pathlib import Path

_PART = ".part"  # the end of the temporary names


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, see that it is on the disk, and rename it over what is there.

    Raises:
        OSError: if the disk is full or fails; then what was there is there still.
    """
    part = path.with_name(f".{path.name}{_PART}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_strays(folder: Path, kept: frozenset[str]) -> None:
    """Remove from a folder the files that are not among these names, such as those of a process that was killed."""
    for path in folder.iterdir():
        if path.name not in kept and path.is_file():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """See that the names in a folder are on the disk, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no such thing
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
