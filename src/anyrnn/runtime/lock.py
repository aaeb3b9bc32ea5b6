"""The lock of all that is made once, and what else is held back while it is made."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Held while a plan is made and while LLVM works, so that nothing is done twice; and while the process forks, so that
#: no child inherits it, LLVM's own lock, or that of a module's import, taken by a thread that the child lacks.
LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's garbage collector off while very many objects are made, which all stay for the moment.

    It would look through them, and through all that PyTorch has made, again and again: half of the time in which the IR
    of a program is written. What is garbage by then is collected afterwards.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
