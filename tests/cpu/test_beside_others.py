"""Layers on machine code beside other threads and processes: workers, a lock that is free, a cache that is not."""

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time

import pytest
import torch

import anyrnn
from anyrnn.compiler import trace
from anyrnn.randomness import own_random_numbers

# What the processes run: a layer that the parent used, too, and one that is compiled here.
COMMON = """
import os, sys
import torch
import anyrnn

def distance(layer, x):
    '''Between machine code and the reference, in results and gradients.'''
    found = []
    for engine in ("cpu", "reference"):
        with anyrnn.engine(engine):
            output, state = layer(x, lengths=[len(x)] * (x.shape[1] - 1) + [1])
        loss = output.sin().sum() + sum(s.cos().sum() for s in state)
        found.append([output, *state, *torch.autograd.grad(loss, list(layer.parameters()))])
    return max((a - b).abs().max().item() for a, b in zip(*found))

def made(layer):
    torch.manual_seed(1)
    return layer(4, 8, bidirectional=True).double()

def drawn():
    return torch.randn(30, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
"""

WORKERS = (
    COMMON
    + """
from torch.utils.data import DataLoader, Dataset

class Data(Dataset):
    def __init__(self, layer):
        self.layer = layer
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return distance(self.layer, drawn()), distance(made(anyrnn.PeepholeLSTM), drawn())

def main():
    torch.set_num_threads(2)
    layer = made(anyrnn.LSTM)
    assert distance(layer, drawn()) < 1e-10
    loader = DataLoader(Data(layer), batch_size=2, num_workers=2, multiprocessing_context=sys.argv[1], timeout=150)
    for rows in loader:
        assert all((row < 1e-10).all() for row in rows), rows
    assert distance(layer, drawn()) < 1e-10
    print("done")

if __name__ == "__main__":
    main()
"""
)

ONE = (
    COMMON
    + """
assert distance(made(anyrnn.LSTM), drawn()) < 1e-10
print("done")
"""
)


def run(tmp_path, code, *arguments, **environment):
    """Run a program that is to end with "done", where every warning is an error, but for one of Python 3.12's."""
    script = tmp_path / "script.py"
    script.write_text(code)
    changed = {**os.environ, "PYTHONWARNINGS": "error,ignore::DeprecationWarning", **environment}
    kept = {key: value for key, value in changed.items() if value is not None}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="fork and spawn as on Linux")
@pytest.mark.long
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_run_the_parents_layer_and_compile_others(start, tmp_path):
    run(tmp_path, WORKERS, start)


@pytest.mark.long
def test_a_layer_is_right_whatever_becomes_of_the_cache(tmp_path):
    """A new folder where ANYRNN_CACHE says; one whose entries are cut off; and no folder, nor a home to make it in."""
    folder = tmp_path / "moved"
    run(tmp_path, ONE, ANYRNN_CACHE=str(folder))
    whole = {entry: entry.read_bytes() for entry in folder.glob("*.code")}
    assert len(whole) >= 2, "forward and backward"
    for entry, content in whole.items():
        entry.write_bytes(content[: len(content) // 2])
    run(tmp_path, ONE, ANYRNN_CACHE=str(folder))
    assert {entry: len(entry.read_bytes()) for entry in whole} == {e: len(content) for e, content in whole.items()}
    nowhere = str(tmp_path / "script.py" / "home")  # below a file, where nobody can make a folder, root neither
    run(tmp_path, ONE, HOME=nowhere, ANYRNN_CACHE=None, XDG_CACHE_HOME=None)


@pytest.mark.parametrize("threads", [1, 2])
def test_other_threads_go_on_while_a_layer_runs(threads):
    """No thread has to wait for a call's end: the longest that one waited is a part of it."""
    torch.set_num_threads(threads)
    layer, x, ticks, over = anyrnn.LSTM(64, 256), torch.randn(15_000, threads, 64), [], threading.Event()

    def tick():
        while not over.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    with anyrnn.engine("cpu"), torch.no_grad():
        layer(x[:2])  # compiles
        other = threading.Thread(target=tick)
        other.start()
        start = time.perf_counter()
        layer(x)
        end = time.perf_counter()
        over.set()
        other.join()
    within = [start, *(t for t in ticks if start < t < end), end]
    longest = max(b - a for a, b in itertools.pairwise(within))
    assert longest < 0.5 * (end - start), f"{longest:.3f} of {end - start:.3f} s"


def test_a_thread_that_draws_random_numbers_meanwhile_changes_no_engine(monkeypatch):
    """As Dask's do: what draws is not the step, so it is looked at once more."""
    threads = [threading.Thread(target=random.random)]

    @contextlib.contextmanager
    def beside_another_thread():
        with own_random_numbers():
            while threads:
                threads[-1].start()
                threads.pop().join()
            yield

    monkeypatch.setattr(trace, "own_random_numbers", beside_another_thread)
    layer, x = anyrnn.Recurrent(anyrnn.GRUCell(3, 5)), torch.randn(30, 2, 3)
    assert [part.engine for part in anyrnn.explain(layer, x).parts] == ["cpu"]
    assert not threads
