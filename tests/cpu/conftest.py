"""What the tests of the cpu engine share."""

import inspect
import sys
import threading

import pytest
import torch
from fences import assert_whole, fenced, within

from anyrnn.engines.cpu import loop
from anyrnn.engines.cpu.loop import Loaded


@pytest.fixture(autouse=True)
def threads_for_little_work(monkeypatch):
    """Let small tests run on several threads too."""
    monkeypatch.setattr(loop, "_SMALL", 1)


@pytest.fixture
def runs(monkeypatch):
    """Which machine code ran. Its buffers are filled with NaN and fenced in, and what it reads lies between fences."""
    own, counted = threading.local(), []  # several threads may run at once, each with its own buffers
    run = Loaded.run

    def fence(name, filled):
        plain = getattr(torch.Tensor, name)

        def make(like, *size, **options):
            tensor = plain(like, *size, **options)
            if not sys._getframe(1).f_globals["__name__"].startswith("anyrnn.engines.cpu"):
                return tensor
            if tensor.dtype not in (torch.float32, torch.float64):
                return tensor
            buffer = fenced(tensor.numel(), tensor.dtype).view(tensor.shape)
            vars(own).setdefault("made", []).append(buffer)
            return buffer.copy_(tensor) if filled else buffer

        monkeypatch.setattr(torch.Tensor, name, make)

    def fenced_run(self, *args, **options):
        given = inspect.signature(run).bind(self, *args, **options).arguments
        for name in ("streams", "states", "vectors", "matrices"):
            given[name] = [within(t) for t in given[name]]
        carries = given["carries"]
        in_place = carries is not given["sequences"]
        if in_place:
            given["carries"] = [within(t) for t in carries]
        totals = run(**given)
        made = vars(own).pop("made", [])
        written = [*given["outputs"], *(() if in_place else given["sequences"])]
        assert {t.data_ptr() for t in written} <= {t.data_ptr() for t in made}, "a result without a fence"
        for buffer in (*made, *(given["carries"] if in_place else ())):
            assert_whole(buffer)
        if in_place:
            for carry, result in zip(carries, given["carries"], strict=True):
                carry.copy_(result)
        counted.append(self)
        return totals

    monkeypatch.setattr(Loaded, "run", fenced_run)
    for name, filled in (("new_empty", False), ("new_zeros", True), ("clone", True)):
        fence(name, filled)
    return counted
