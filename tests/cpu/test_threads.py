"""Parts of the work on torch's own threads."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.machine import Machine

pooled = pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP pool is sure to be there on Linux only")

# record: argument[part] += parts, and argument[parts + part] = the thread.
# wait: until argument[0] is not 0, at most some seconds; argument[1] = whether it was seen.
IR = """
declare i64 @pthread_self()

define void @record(ptr %argument, i64 %part, i64 %parts) {
  %p = getelementptr i64, ptr %argument, i64 %part
  %old = atomicrmw add ptr %p, i64 %parts seq_cst
  %q = getelementptr i64, ptr %p, i64 %parts
  %thread = call i64 @pthread_self()
  store i64 %thread, ptr %q
  ret void
}

define void @wait(ptr %argument, i64 %part, i64 %parts) {
start:
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %next, %loop ]
  %seen = load volatile i64, ptr %argument
  %next = add i64 %i, 1
  %found = icmp ne i64 %seen, 0
  %over = icmp sgt i64 %i, 20000000000
  %stop = or i1 %found, %over
  br i1 %stop, label %done, label %loop
done:
  %q = getelementptr i64, ptr %argument, i64 1
  store volatile i64 %seen, ptr %q
  ret void
}

define void @nothing(ptr %argument, i64 %part, i64 %parts) { ret void }
"""


@pytest.fixture
def code():
    return jit.load(IR, lambda: IR, Machine.host())


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setenv("ANYRNN_CACHE", "off")  # not the cache of whoever runs the tests
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def record(code: jit.Compiled, parts: int) -> set[int]:
    """Run `parts` parts, check that each ran once, and return the threads that ran them."""
    argument = (ctypes.c_int64 * (2 * parts))()
    threads.parallel(code.address("record"), ctypes.addressof(argument), parts)
    assert argument[:parts] == [parts] * parts
    return set(argument[parts:])


@pooled
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 101])
def test_each_part_runs_once_on_as_many_threads_as_torch_has(code, n, parts):
    torch.set_num_threads(n)
    assert threads.count() == n
    assert len(record(code, parts)) == min(n, parts)
    assert str(n) in threads.status()


def test_no_parts_are_no_calls(code):
    for n in (1, 2):
        torch.set_num_threads(n)
        threads.parallel(code.address("record"), 0, 0)


def tasks() -> set[str]:
    """List the process's threads, by numbers that are not used twice."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


@pooled
def test_the_threads_are_torchs_and_no_others(code):
    import sklearn.cluster  # noqa: F401, PLC0415 (brings a libgomp of its own)

    torch.set_num_threads(3)
    torch.ones(2_000_000).add_(1)
    before = tasks()
    assert len(record(code, 3)) == 3
    assert tasks() == before


@pooled
def test_a_change_of_the_number_counts_at_the_next_call(code):
    for n in (3, 2, 3):
        torch.set_num_threads(n)
        assert len(record(code, 8)) == n


@pooled
def test_few_parts_do_not_end_torchs_threads(code):
    torch.set_num_threads(3)
    torch.ones(2_000_000).add_(1)
    before = tasks()
    assert len(record(code, 2)) == 2
    torch.ones(2_000_000).add_(1)
    assert tasks() == before


@pytest.mark.parametrize("n", [1, 2])
def test_python_goes_on_during_a_call(code, n):
    torch.set_num_threads(n)
    argument = (ctypes.c_int64 * 2)()

    def later() -> None:
        time.sleep(0.05)
        argument[0] = 1

    thread = threading.Thread(target=later)
    thread.start()
    threads.parallel(code.address("wait"), ctypes.addressof(argument), n)
    thread.join()
    assert argument[1] == 1


@pytest.mark.parametrize("n", [1, 2])
def test_several_python_threads_may_call_at_once(code, n):
    torch.set_num_threads(n)
    wrong = []

    def work() -> None:
        try:
            for _ in range(50):
                record(code, 5)
        except BaseException as error:  # noqa: BLE001 (handed to the main thread)
            wrong.append(error)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_without_a_pool_one_thread_does_it_all(code, monkeypatch):
    monkeypatch.setattr(threads, "_libraries", lambda: iter(()))
    threads._pool.cache_clear()
    try:
        torch.set_num_threads(2)
        assert threads.count() == 1
        assert record(code, 5) == {threading.get_ident()}
        assert threads.status().startswith("one thread: torch's OpenMP library was not found")
    finally:
        threads._pool.cache_clear()


@pooled
def test_a_library_without_the_functions_is_passed_over(monkeypatch):
    libraries = (ctypes.CDLL("libm.so.6"), *threads._libraries())
    found = threads._pool()
    monkeypatch.setattr(threads, "_libraries", lambda: iter(libraries))
    threads._pool.cache_clear()
    try:
        assert threads._pool() == found is not None
    finally:
        threads._pool.cache_clear()


@pooled
def test_a_region_costs_little(code):
    torch.set_num_threads(2)
    address = code.address("nothing")
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        threads.parallel(address, 0, 2)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3  # the least: other processes may be using the cores


WORKER = f'''
import os, signal, sys, ctypes, threading
import torch
from torch.utils.data import DataLoader, Dataset
from anyrnn.engines.cpu import jit, threads
from anyrnn.engines.cpu.machine import Machine

IR = """{IR}"""

def record():
    torch.set_num_threads(2)
    code = jit.load(IR, lambda: IR, Machine.host())
    argument = (ctypes.c_int64 * 6)()
    threads.parallel(code.address("record"), ctypes.addressof(argument), 3)
    assert argument[:3] == [3] * 3
    return len(set(argument[3:])), threads.count(), "forked" in threads.status()

class Data(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        signal.alarm(60)
        return torch.tensor(record())

def main():
    torch.set_num_threads(2)
    torch.ones(2_000_000).add_(1)
    print(record(), flush=True)  # what is not written yet is written by the child, too
    if sys.argv[1] == "os.fork":
        child = os.fork()
        if not child:
            signal.alarm(60)
            print(record(), flush=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        for rows in DataLoader(Data(), batch_size=2, num_workers=1, multiprocessing_context=sys.argv[1]):
            for row in rows:
                print(tuple(row.tolist()))
    print(record())

if __name__ == "__main__":
    main()
'''


@pytest.mark.grid(2)
@pooled
@pytest.mark.parametrize(
    "start, workers, expected",
    [("os.fork", 1, "(1, 1, True)"), ("fork", 4, "(1, 1, 1)"), ("spawn", 4, "(2, 2, 0)")],
)
def test_a_worker_process_works_after_the_pool_was_used(start, workers, expected, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    # Python 3.12 warns of forking a process that has threads.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    done = subprocess.run(
        [sys.executable, str(script), start], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    parent = "(2, 2, False)"
    assert done.stdout.splitlines() == [parent, *[expected] * workers, parent]
