"""How much memory this process may use."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def memory() -> int:
    """Bytes: those of the machine, or of the container if it has fewer."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found, default=16 << 30)
