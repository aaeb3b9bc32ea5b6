"""What every test starts from: one thread, one seed, no engine asked for by the environment, no cache of the user's.

A test marked ``grid(n)`` is one of a large grid of cases, of which every n-th is run, the same ones each time; one
marked ``long`` is not run. All are with ``--all``, as in `make test-all`, and so is one that is asked for by its name.
"""

import gc
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # PyTorch says this once a process, of torch.nn.LSTM too: its own kernel is another one with a projection.
    config.addinivalue_line("filterwarnings", "ignore:LSTM with projections is not supported with oneDNN:UserWarning")
    # And this of its own: torch.func calls TorchScript at its first use, a few tests hand us a module of TorchScript.
    # The category depends on the version of PyTorch, the words on that of Python.
    says = r"ignore:`torch\.jit\.[a-z_]+` is (deprecated|not supported in Python 3\.14\+)"
    config.addinivalue_line("filterwarnings", says)
    if not hasattr(config, "workerinput"):  # the processes of pytest-xdist share their parent's
        os.environ["ANYRNN_CACHE"] = tempfile.mkdtemp(prefix="anyrnn-tests-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run every case of the large grids, and what takes long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    named = {argument.rpartition("::")[2] for argument in config.args if "::" in argument}
    kept, left, seen = [], [], set[str]()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if item.name in named or getattr(item, "originalname", "") in named:
            chosen = True
        elif grid := item.get_closest_marker("grid"):  # of each function at least one case
            chosen = function not in seen or zlib.crc32(item.nodeid.encode()) % grid.args[0] == 0
        else:
            chosen = True
        chosen &= item.get_closest_marker("long") is None or item.name in named
        seen.add(function)
        (kept if chosen else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop("ANYRNN_CACHE"))


def pytest_collection_finish() -> None:
    # What is imported stays, and so do the tests: the garbage collector need not look through them again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _start(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes 0.5 ms to note who asked, for devices not here
    monkeypatch.delenv("ANYRNN_ENGINE", raising=False)


@pytest.fixture
def plainly(_start: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the reference: for tests of what lies around the engines, which then compile nothing."""
    monkeypatch.setenv("ANYRNN_ENGINE", "reference")


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    """Leave nothing compiled behind, of which PyTorch keeps so many for a function."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
