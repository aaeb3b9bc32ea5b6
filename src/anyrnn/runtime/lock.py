"""The lock of all that is made once."""

from __future__ import annotations

import os
import threading

#: Held while a plan is made and while LLVM works, so that nothing is done twice; and while the process forks, so that
#: no child inherits it, LLVM's own lock, or that of a module's import, taken by a thread that the child lacks.
LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
