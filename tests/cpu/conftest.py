"""What the tests of the cpu engine share."""

import sys
import threading

import pytest
import torch
from fences import assert_whole, fenced, within

from anyrnn.engines.cpu import backend
from anyrnn.engines.cpu.backend import CpuKernel


@pytest.fixture(autouse=True)
def threads_for_little_work(monkeypatch):
    """Let small tests run on several threads too."""
    monkeypatch.setattr(backend, "_SMALL", 1)


@pytest.fixture
def runs(monkeypatch):
    """Which machine code ran. Its buffers are filled with NaN and fenced in, and what it reads lies between fences."""
    own, counted = threading.local(), []  # several threads may run at once, each with its own buffers
    bind = CpuKernel.bind

    def fence(name, filled):
        plain = getattr(torch.Tensor, name)

        def make(like, *size, **options):
            tensor = plain(like, *size, **options)
            if not sys._getframe(1).f_globals["__name__"].startswith(("anyrnn.engines.cpu", "anyrnn.runtime")):
                return tensor
            if tensor.dtype not in (torch.float32, torch.float64):
                return tensor
            buffer = fenced(tensor.numel(), tensor.dtype).view(tensor.shape)
            vars(own).setdefault("made", []).append(buffer)
            return buffer.copy_(tensor) if filled else buffer

        monkeypatch.setattr(torch.Tensor, name, make)

    def fenced_bind(kernel, layout, arrays, initial, transposed, totals=None):
        program = kernel.program
        read = [a.name for a in program.of("stream", "vector", "matrix", "history")]
        carried = {a.name: arrays[a.name] for a in program.of("state") if a.place == "carried"}
        own.given = {**arrays, **{name: within(arrays[name]) for name in (*read, *carried)}}
        own.initial = {name: within(t) for name, t in initial.items()}
        written = [own.given[a.name] for a in program.of("output", "residual")]
        written += [own.given[a.name] for a in program.of("state") if a.place == "kept"]
        bound = bind(kernel, layout, own.given, own.initial, transposed, totals)

        class Fenced:
            totals = bound.totals

            def launch(self):
                sums = bound.launch()
                made = vars(own).pop("made", [])
                assert {t.data_ptr() for t in written} <= {t.data_ptr() for t in made}, "a result without a fence"
                for buffer in (*made, *(own.given[name] for name in carried)):
                    assert_whole(buffer)
                for name, carry in carried.items():
                    carry.copy_(own.given[name])
                counted.append(kernel)
                return sums

        return Fenced()

    monkeypatch.setattr(CpuKernel, "bind", fenced_bind)
    for name, filled in (("new_empty", False), ("new_zeros", True), ("clone", True)):
        fence(name, filled)
    return counted
