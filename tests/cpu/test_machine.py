"""What the host is, and what it is taken for when asked."""

import platform

import pytest
import torch

from anyrnn.engines.cpu import jit, machine
from anyrnn.engines.cpu.machine import Machine
from anyrnn.errors import AnyRNNError

x86 = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="names of x86-64 processors")


def test_the_host_can_run_its_own_code():
    host = Machine.host()
    assert host.missing() == ()
    assert (host.vector_bytes, host.registers) in {(64, 32), (32, 32), (32, 16), (16, 32), (16, 16)}
    assert Machine.host() is host  # LLVM is asked once


@x86
@pytest.mark.parametrize(
    "name, vector_bytes, registers",
    [
        ("x86-64", 16, 16),
        ("x86-64-v2", 16, 16),
        ("x86-64-v3", 32, 16),
        ("haswell", 32, 16),
        ("x86-64-v4", 64, 32),
        ("skylake-avx512", 64, 32),
    ],
)
@pytest.mark.parametrize("dtype, kind", [(torch.float32, "float"), (torch.float64, "double")])
def test_llvm_adds_a_full_vector_of_a_named_processor_in_one_instruction(name, vector_bytes, registers, dtype, kind):
    target = Machine.named(name)
    assert (target.vector_bytes, target.registers) == (vector_bytes, registers)
    lanes = target.lanes(dtype)
    assert lanes == vector_bytes // dtype.itemsize

    def additions(n: int) -> int:
        vector = f"<{n} x {kind}>"
        ir = f"define {vector} @f({vector} %a, {vector} %b) {{ %c = fadd {vector} %a, %b\n ret {vector} %c }}"
        return jit.assembly(ir, target).count("addp")

    assert additions(lanes) == 1
    assert additions(2 * lanes) == 2


@pytest.mark.parametrize(
    "architecture, features, expected",
    [
        ("aarch64", {"neon": True}, (16, 32)),
        ("riscv64", {}, (16, 16)),
        ("x86_64", {"sse2": True, "avx": False, "avx512f": False}, (16, 16)),
        ("x86_64", {"avx": True, "avx512f": False}, (32, 16)),
        ("x86_64", {"avx": True, "avx512f": True, "avx512vl": True}, (64, 32)),
        ("x86_64", {"avx": True, "avx512f": True, "avx512vl": True, "prefer-256-bit": True}, (32, 32)),
        ("x86_64", {"avx": True, "avx512f": True, "prefer-256-bit": True}, (32, 16)),
    ],
)
def test_width_and_number_of_vector_registers_follow_from_the_features(architecture, features, expected):
    assert machine._vectors(architecture, features) == expected


@x86
def test_the_environment_replaces_the_host(monkeypatch):
    monkeypatch.setenv("ANYRNN_CPU", "x86-64")
    assert Machine.host() == Machine.named("x86-64")
    monkeypatch.setenv("ANYRNN_CPU", "")
    assert Machine.host().cpu == machine.llvm().get_host_cpu_name()


@x86
def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("ANYRNN_CPU", "haswel")
    with pytest.raises(
        AnyRNNError, match=r"^ANYRNN_CPU: got 'haswel', expected one of x86-64, .*Did you mean 'haswell'"
    ):
        Machine.host()
    with pytest.raises(AnyRNNError, match=r"^Machine.named: got 'z80', expected one of [^?]*$"):
        Machine.named("z80")


@x86
def test_a_processor_whose_code_cannot_run_here_is_refused_as_host_but_can_be_looked_at(monkeypatch):
    weak = {**machine._host_features(), "avx512f": False, "fma": False}
    monkeypatch.setattr(machine, "_host_features", lambda: weak)
    machine._host.cache_clear()
    try:
        monkeypatch.setenv("ANYRNN_CPU", "haswell")
        with pytest.raises(AnyRNNError, match=r"'haswell' needs .*fma.*which this processor lacks"):
            Machine.host()
    finally:
        machine._host.cache_clear()
    strong = Machine.named("skylake-avx512")
    assert "avx512f" in strong.missing()
    assert "ret" in jit.assembly("define void @f() { ret void }", strong)
