"""Run a compiled function in parts on torch's own threads.

torch runs its loops on an OpenMP pool, whose idle threads spin for a while. A second pool beside it would have to share
the cores with them, so the regions started here go to the very same library, by the entry that GNU compilers call.

A process that was forked runs everything in one thread: the pool's threads stay behind in the parent, GNU's library
does not notice, and a region in the child waits for them forever. (So does torch: the first large operation in a child
of a process that had used its pool hangs. DataLoader workers set one thread.) The fork is noticed only if this module
was loaded before it, so it is cheap to load, and loads neither LLVM nor any library until it is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anyrnn.engines.cpu import jit
from anyrnn.engines.cpu.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# @region starts a team on the function @member, whose threads take the parts in turn. A team smaller than the number of
# parts, as OpenMP may deliver under a thread limit or inside another region, is therefore as right as a larger one.
_REGION = """
%work = type { ptr, ptr, i64, ptr, ptr }  ; function, argument, parts, omp_get_thread_num, omp_get_num_threads

define internal void @member(ptr %data) {
start:
  %work = load %work, ptr %data
  %function = extractvalue %work %work, 0
  %argument = extractvalue %work %work, 1
  %parts = extractvalue %work %work, 2
  %thread_number = extractvalue %work %work, 3
  %team_size = extractvalue %work %work, 4
  %thread_number.32 = call i32 %thread_number()
  %team_size.32 = call i32 %team_size()
  %first = sext i32 %thread_number.32 to i64
  %step = sext i32 %team_size.32 to i64
  br label %test
test:
  %part = phi i64 [ %first, %start ], [ %next, %run ]
  %more = icmp slt i64 %part, %parts
  br i1 %more, label %run, label %done
run:
  call void %function(ptr %argument, i64 %part, i64 %parts)
  %next = add i64 %part, %step
  br label %test
done:
  ret void
}

define void @region(ptr %function, ptr %argument, i64 %parts, i32 %threads, ptr %parallel, ptr %number, ptr %size) {
  %work.0 = insertvalue %work poison, ptr %function, 0
  %work.1 = insertvalue %work %work.0, ptr %argument, 1
  %work.2 = insertvalue %work %work.1, i64 %parts, 2
  %work.3 = insertvalue %work %work.2, ptr %number, 3
  %work.4 = insertvalue %work %work.3, ptr %size, 4
  %data = alloca %work
  store %work %work.4, ptr %data
  call void %parallel(ptr @member, ptr %data, i32 %threads, i32 0)
  ret void
}
"""

_PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_REGION_CALL = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, *[ctypes.c_void_p] * 3
)


@dataclass(frozen=True)
class _Pool:
    """The three functions of torch's OpenMP library that a region needs."""

    parallel: int
    thread_number: int
    team_size: int


_forked = False


def _after_fork() -> None:
    global _forked  # noqa: PLW0603 (a fact about the process)
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def count() -> int:
    """Count the threads that `parallel` uses now: torch's number for the calling thread, or 1 without its pool."""
    return 1 if _forked or _pool() is None else torch.get_num_threads()


def parallel(address: int, argument: int, parts: int) -> None:
    """Call a compiled function for every part of the work, and return when all are done; the GIL is free meanwhile.

    Args:
        address: A function ``void f(void *argument, int64_t part, int64_t parts)``, which may run in several threads at
            once.
        argument: The address that it is given.
        parts: It is called once for each part in 0 .. parts-1. Which thread runs which part is not said.
    """
    pool = _pool()
    # All of torch's threads are asked for, however few the parts: GNU's library ends the threads that a smaller team
    # leaves over, and starting them again for torch's next operation costs milliseconds.
    threads = count()
    if pool is None or parts == 1 or threads == 1:
        function = _function(address)
        for part in range(parts):
            function(argument, part, parts)
        return
    region, _ = _region()
    region(address, argument, parts, threads, pool.parallel, pool.thread_number, pool.team_size)


def status() -> str:
    """Say in one line which threads the compiled code runs on."""
    if _forked:
        return "one thread: this process was forked, and torch's pool stayed in its parent"
    if _pool() is None:
        return "one thread: torch's OpenMP library was not found in this process"
    return f"torch's OpenMP pool, {count()} threads"


@functools.cache
def _function(address: int) -> Callable[[int, int, int], None]:
    return _PART(address)  # 1 us to make


@functools.cache
def _region() -> tuple[Callable[..., None], jit.Compiled]:
    # With the code, which has to stay as long as its address is known.
    code = jit.load(_REGION, lambda: _REGION, Machine.host())
    return _REGION_CALL(code.address("region")), code


@functools.cache
def _pool() -> _Pool | None:
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    for library in _libraries():
        with contextlib.suppress(AttributeError):  # raised by ctypes for a name that the library lacks
            return _Pool(*(ctypes.cast(library[name], ctypes.c_void_p).value or 0 for name in names))
    return None


def _libraries() -> Iterator[ctypes.CDLL]:
    """List where torch's own references to OpenMP were resolved, in the dynamic linker's order.

    Looking for a file named libgomp would find, say, scikit-learn's copy. LLVM's library has these functions too.
    """
    if sys.platform == "linux":
        yield ctypes.CDLL(None)
    if sys.platform == "win32":
        return
    name = f"libtorch_cpu.{'dylib' if sys.platform == 'darwin' else 'so'}"
    for path in (str(Path(torch.__file__).parent / "lib" / name), name):
        with contextlib.suppress(OSError):  # not loaded, under this name
            yield ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
