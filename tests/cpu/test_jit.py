"""Machine code: compiled once, kept on disk, and never run unless every byte of it is what was stored."""

import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from anyrnn.engines.cpu import jit, machine
from anyrnn.engines.cpu.machine import Machine
from anyrnn.errors import AnyRNNError

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and the folders of Linux")
HEADER = 16 + 32 + 32  # magic, key, digest: what comes before the names and the object code


class Program:
    """A function that returns a number, and how often it had to be built."""

    def __init__(self, answer: int, text: str | None = None) -> None:
        self.answer = answer
        self.text = text or f"program {answer}"
        self.builds = 0

    def build(self) -> str:
        self.builds += 1
        return f"define i64 @answer() {{ ret i64 {self.answer} }}"

    def run(self, target: Machine | None = None, settings: jit.Settings | None = None) -> int:
        """Load as a process does that knows nothing yet."""
        jit._compiled.clear()
        compiled = jit.load(self.text, self.build, target or Machine.host(), settings or jit.Settings())
        return call(compiled)


def call(compiled: jit.Compiled) -> int:
    return ctypes.CFUNCTYPE(ctypes.c_int64)(compiled.address("answer"))()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no code in memory."""
    monkeypatch.setenv("ANYRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_compiled", {})
    return tmp_path / "cache"


def entry(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )


SCRIPT = """
import ctypes
from anyrnn.engines.cpu import jit
from anyrnn.engines.cpu.machine import Machine
def build():
    print("built")
    return "define i64 @answer() { ret i64 7 }"
code = jit.load("seven", build, Machine.host())
print(ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("answer"))())
"""


# Code


def test_only_external_functions_are_entry_points_and_they_run():
    ir = """
    define internal i64 @inner(i64 %x) noinline { %y = mul i64 %x, 3
      ret i64 %y }
    define i64 @one(i64 %x) { %y = call i64 @inner(i64 %x)
      ret i64 %y }
    define i64 @two(i64 %x) { %y = add i64 %x, 2
      ret i64 %y }"""
    compiled = jit.load("two functions", lambda: ir, Machine.host())
    assert set(compiled.addresses) == {"one", "two"}
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    assert (function(compiled.address("one"))(5), function(compiled.address("two"))(5)) == (15, 7)
    with pytest.raises(KeyError):
        compiled.address("inner")


def test_constants_and_the_c_library_are_reached():
    ir = """
    declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
    define void @fill(ptr %p, i64 %n) {
      call void @llvm.memset.p0.i64(ptr %p, i8 0, i64 %n, i1 false)
      store <4 x float> <float 1.5, float -2.0, float 3.25, float 4.0>, ptr %p, align 4
      ret void
    }"""
    compiled = jit.load("memset", lambda: ir, Machine.host())
    numbers = (ctypes.c_float * 1000)(*[9.0] * 1000)
    fill = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(compiled.address("fill"))
    fill(ctypes.addressof(numbers), 4 * 999)
    assert list(numbers) == [1.5, -2.0, 3.25, 4.0, *[0.0] * 995, 9.0]


def test_code_calls_other_code_which_lives_as_long_also_when_it_comes_from_the_cache():
    text = "declare i64 @answer() define i64 @twice() { %x = call i64 @answer() %y = shl i64 %x, 1 ret i64 %y }"
    for answer in (21, 4):  # the second time from the disk, linked with what is there now
        program = Program(answer)
        used = jit.load(program.text, program.build, Machine.host())
        used_until = weakref.ref(used)
        code = jit.load("twice", lambda: text, Machine.host(), uses=[used])
        jit._compiled.clear()
        del used
        gc.collect()
        assert used_until() is not None
        assert ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("twice"))() == 2 * answer
        del code
        gc.collect()
        assert used_until() is None


@linux
def test_code_is_executable_and_not_writable():
    compiled = jit.load("answer", Program(1).build, Machine.host())
    address = compiled.address("answer")
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last, rights = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
        if int(first, 16) <= address < int(last, 16):
            assert rights.startswith("r-x")
            return
    pytest.fail("the code is in no mapping")


@pytest.mark.parametrize("passes", ["O1", "O2", "O3", "always_inliner instruction_combine"])
@pytest.mark.parametrize("unroll", [True, False])
def test_every_setting_compiles_to_the_same_result(passes, unroll):
    ir = """
    define internal i64 @square(i64 %x) alwaysinline { %y = mul i64 %x, %x
      ret i64 %y }
    define i64 @answer() {
    start:
      br label %loop
    loop:
      %i = phi i64 [ 0, %start ], [ %next, %loop ]
      %sum = phi i64 [ 0, %start ], [ %more, %loop ]
      %s = call i64 @square(i64 %i)
      %more = add i64 %sum, %s
      %next = add i64 %i, 1
      %again = icmp slt i64 %next, 10
      br i1 %again, label %loop, label %done
    done:
      ret i64 %more
    }"""
    settings = jit.Settings(passes, unroll)
    assert call(jit.load("squares", lambda: ir, Machine.host(), settings)) == 285
    assert "@square" not in jit.optimised_ir(ir, Machine.host(), settings).replace("define internal i64 @square", "")


def test_optimised_ir_and_assembly_are_text_for_the_machine_asked_for():
    ir = "define i64 @f(i64 %x) { %y = add i64 %x, 1\n %z = add i64 %y, 1\n ret i64 %z }"
    assert "add i64 %x, 2" in jit.optimised_ir(ir, Machine.host())
    assert "f:" in jit.assembly(ir, Machine.host())


def test_ir_that_is_wrong_is_refused_and_nothing_is_kept(cache):
    with pytest.raises(RuntimeError, match="expected"):
        jit.load("wrong", lambda: "define nonsense", Machine.host())
    assert not cache.exists() or not list(cache.iterdir())
    assert Program(5, "wrong").run() == 5


def test_code_for_a_processor_that_the_host_is_not_is_never_run(monkeypatch):
    names = {"wonder": ("warp",)}
    monkeypatch.setattr(machine, "_names", lambda: names)
    with pytest.raises(AnyRNNError, match="code for 'wonder' needs warp, which this processor lacks"):
        Program(1).run(Machine("wonder", "", 16, 16))


# Memory and disk


def test_the_same_program_is_built_once_in_a_process_and_once_on_a_disk(cache):
    program = Program(42)
    first = jit.load(program.text, program.build, Machine.host())
    assert jit.load(program.text, program.build, Machine.host()) is first
    assert program.run() == 42
    assert program.builds == 1
    assert entry(cache).stat().st_mode & 0o777 == 0o600


def test_whatever_the_code_depends_on_makes_another_entry(cache, monkeypatch):
    base = Machine.host()
    program = Program(1)
    assert program.run() == 1
    other = Program(2, program.text)  # the same text: only a miss builds it
    narrow = Machine(base.cpu, base.features, 16, base.registers)
    assert other.run(narrow) == 2
    assert other.run(settings=jit.Settings(unroll=True)) == 2
    assert other.run(settings=jit.Settings("O1")) == 2
    with monkeypatch.context() as newer:
        newer.setattr(jit, "_versions", lambda: ("newer sources", "1", "2", "3"))
        assert other.run() == 2
    assert other.builds == len(list(cache.iterdir())) - 1 == 4
    assert program.run() == 1
    assert program.builds == 1


def test_the_key_holds_the_compilers_own_sources_and_versions():
    sources, llvmlite, version, triple = jit._versions()
    assert re.fullmatch("[0-9a-f]{64}", sources)
    assert re.match(r"\d+\.\d+", llvmlite)
    assert re.match(r"\d+\.\d+", version)
    assert "-" in triple


DAMAGE = {
    "empty": lambda b: b"",
    "header only": lambda b: b[:HEADER],
    "cut inside the header": lambda b: b[:50],
    "cut in half": lambda b: b[: len(b) // 2],
    "last byte missing": lambda b: b[:-1],
    "a byte added": lambda b: b + b"\0",
    "zeros": lambda b: bytes(len(b)),
    "text": lambda b: b"not machine code\n" * 100,
    "another version": lambda b: b.replace(b"anyrnn code 1", b"anyrnn code 0"),
    "not executable code, well formed": lambda b: b[:HEADER] + b"answer\0" + b"\xcc" * (len(b) - HEADER - 7),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_rebuilt_replaced_and_not_run(cache, damage):
    check_damage(cache, damage)


def flip(place: float | int):
    def damage(b: bytes) -> bytes:
        i = place if isinstance(place, int) else int(place * len(b))
        return b[:i] + bytes([b[i] ^ 0x10]) + b[i + 1 :]

    return damage


@pytest.mark.parametrize("place", [0, 15, 16, 47, 48, 79, 80, 86, 87, 100, 0.3, 0.5, 0.7, 0.9, -1])
def test_one_wrong_bit_anywhere_is_found(cache, place):
    check_damage(cache, (lambda b: b[:-1] + bytes([b[-1] ^ 1])) if place == -1 else flip(place))


def check_damage(cache, damage):
    program = Program(1234567)
    assert program.run() == 1234567
    whole = entry(cache).read_bytes()
    entry(cache).write_bytes(damage(whole))
    assert entry(cache).read_bytes() != whole
    assert program.run() == 1234567
    assert program.builds == 2
    assert entry(cache).read_bytes()[:HEADER] == whole[:HEADER]
    assert program.run() == 1234567
    assert program.builds == 2


def test_an_entry_in_the_place_of_another_is_not_run(cache):
    one, two = Program(1), Program(2)
    assert one.run() == 1
    first = entry(cache)
    stolen = first.read_bytes()
    first.unlink()
    assert two.run() == 2
    entry(cache).write_bytes(stolen)
    assert two.run() == 2
    assert two.builds == 2


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="names of x86-64 processors")
def test_an_entry_for_another_processor_in_the_place_of_this_ones_is_not_run(cache):
    program = Program(1)
    program.run(Machine.named("x86-64"))
    foreign = entry(cache)
    stolen = foreign.read_bytes()
    foreign.unlink()
    assert (program.run(), program.builds) == (1, 2)
    assert entry(cache).name != foreign.name
    entry(cache).write_bytes(stolen)
    assert (program.run(), program.builds) == (1, 3)


def test_code_stays_as_long_as_anything_may_call_it():
    code = """
import gc, torch, anyrnn
from anyrnn.engines.cpu import jit
torch.set_num_threads(2)
layer, x = anyrnn.LSTM(30, 40), torch.randn(50, 32, 30)
def gradient():
    layer(x)[0].sum().backward()
    found, layer.weight_hh_l0.grad = layer.weight_hh_l0.grad, None
    return found
with anyrnn.engine("cpu"):
    first = gradient()
    jit._compiled.clear()
    gc.collect()
    print(torch.equal(first, gradient()))
"""
    assert python(code).communicate(timeout=100)[0] == "True\n"


def test_threads_that_ask_at_once_share_one_build(monkeypatch):
    monkeypatch.setenv("ANYRNN_CACHE", "off")
    program = Program(11)
    build = program.build
    program.build = lambda: time.sleep(0.05) or build()
    start = threading.Barrier(8)
    found = []

    def ask() -> None:
        start.wait()
        found.append(jit.load(program.text, program.build, Machine.host()))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert program.builds == 1
    assert len(found) == 8
    assert {call(each) for each in found} == {11}


@pytest.mark.long
def test_processes_that_ask_at_once_agree_and_the_next_one_builds_nothing(cache):
    both = [python(SCRIPT), python(SCRIPT)]
    for process in both:
        assert process.communicate(timeout=100)[0].splitlines()[-1] == "7"
    assert entry(cache).suffix == ".code"
    assert python(SCRIPT).communicate(timeout=100)[0] == "7\n"


def test_looking_at_the_threads_module_loads_no_llvm():
    code = "import sys, anyrnn.engines.cpu.threads; print('llvmlite.binding' in sys.modules)"
    assert python(code).communicate(timeout=100)[0] == "False\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_runs_the_parents_code_and_compiles_more_even_while_the_parent_compiles():
    code = (
        SCRIPT
        + """
import os, signal, threading, time
started = threading.Event()
def slow():
    started.set()
    time.sleep(0.3)
    return "define i64 @answer() { ret i64 8 }"
thread = threading.Thread(target=lambda: jit.load("eight", slow, Machine.host()))
thread.start()
started.wait()
child = os.fork()
if not child:
    signal.alarm(30)
    more = jit.load("nine", lambda: "define i64 @answer() { ret i64 9 }", Machine.host())
    answers = [ctypes.CFUNCTYPE(ctypes.c_int64)(c.address("answer"))() for c in (code, more)]
    os._exit(0 if answers == [7, 9] else 1)
thread.join()
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    process = python(code, PYTHONWARNINGS="ignore::DeprecationWarning")  # of forking with threads: the point here
    assert process.communicate(timeout=100)[0].splitlines()[-1] == "child 0"


# The place


def test_the_folder_is_made_for_the_user_alone(cache):
    Program(1).run()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert jit.cache_status().startswith(f"{cache}: 1 entries, 0.0 of 256 MiB")


@pytest.mark.parametrize("value", ["", "off", "OFF"])
def test_the_cache_can_be_switched_off(value, monkeypatch, tmp_path):
    monkeypatch.setenv("ANYRNN_CACHE", value)
    monkeypatch.chdir(tmp_path)
    program = Program(3)
    assert (program.run(), program.run(), program.builds) == (3, 3, 2)
    assert jit.cache_status() == f"off: ANYRNN_CACHE={value}"
    assert not list(tmp_path.rglob("*.code"))


@linux
@pytest.mark.parametrize(
    "xdg, expected",
    [("{tmp}/xdg", "xdg/anyrnn"), ("relative", "home/.cache/anyrnn"), (None, "home/.cache/anyrnn")],
)
def test_without_a_wish_the_users_cache_folder_is_used(xdg, expected, monkeypatch, tmp_path):
    monkeypatch.delenv("ANYRNN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg.format(tmp=tmp_path))
    Program(1).run()
    assert entry(tmp_path / expected).suffix == ".code"


def without_home(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ANYRNN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


def below_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANYRNN_CACHE", str(tmp_path / "file" / "cache"))


def a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANYRNN_CACHE", str(tmp_path / "file"))


@pytest.mark.parametrize("situation", [without_home, below_a_file, a_file])
def test_without_a_place_everything_works_and_the_status_says_why(situation, monkeypatch, tmp_path):
    situation(monkeypatch, tmp_path)
    program = Program(4)
    assert (program.run(), program.run(), program.builds) == (4, 4, 2)
    assert jit.cache_status().startswith("not used: ")


@linux
def test_a_read_only_folder_is_read_and_not_written(monkeypatch, tmp_path, cache):
    monkeypatch.setenv("ANYRNN_CACHE", "/proc/self")  # read-only even for root
    program = Program(5)
    assert (program.run(), program.run(), program.builds) == (5, 5, 2)


def test_the_entries_of_a_folder_that_became_read_only_are_used(cache, monkeypatch):
    program, later = Program(6), Program(7)
    assert program.run() == 6

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(jit.tempfile, "NamedTemporaryFile", denied)
    monkeypatch.setattr(jit.os, "utime", denied)
    assert (program.run(), later.run(), later.run()) == (6, 7, 7)
    assert (program.builds, later.builds) == (1, 2)


def test_a_full_disk_leaves_nothing_half_written(cache, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert Program(8).run() == 8
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(mode, cache):
    cache.mkdir()
    cache.chmod(mode)
    program = Program(9)
    assert (program.run(), program.run(), program.builds) == (9, 9, 2)
    assert list(cache.iterdir()) == []
    assert jit.cache_status() == f"not used: {cache} can be written by others (mode {mode:04o})"


@pytest.mark.skipif(sys.platform == "win32", reason="no owners")
def test_a_folder_of_somebody_else_is_not_used(cache, monkeypatch):
    program = Program(10)
    assert program.run() == 10
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert (program.run(), program.builds) == (10, 2)
    assert jit.cache_status() == f"not used: {cache} belongs to user {owner}, not to you"


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
def test_an_entry_that_others_can_write_is_not_used_but_replaced(cache):
    program = Program(12)
    assert program.run() == 12
    entry(cache).chmod(0o666)
    assert (program.run(), program.builds) == (12, 2)
    assert entry(cache).stat().st_mode & 0o777 == 0o600


def test_the_least_recently_used_entries_go_when_the_cache_is_full(cache, monkeypatch):
    programs = [Program(i) for i in range(4)]
    for age, program in enumerate(programs):
        before = set(cache.iterdir()) if cache.exists() else set()
        program.run()
        (new,) = set(cache.iterdir()) - before
        os.utime(new, (1000 + age, 1000 + age))
    leftover = cache / "tmp_of_a_killed_process.code"
    leftover.write_bytes(b"half")
    os.utime(leftover, (500, 500))
    stranger = cache / "notes.txt"
    stranger.touch()
    assert programs[0].run() == 0  # used again: now the most recent
    size = max(path.stat().st_size for path in cache.iterdir())
    monkeypatch.setattr(jit, "CACHE_BYTES", 3 * size + size // 2)
    assert Program(4).run() == 4
    assert not leftover.exists()
    assert stranger.exists()
    assert len(list(cache.glob("*.code"))) == 3
    assert [programs[i].run() for i in (0, 3, 1)] == [0, 3, 1]
    assert [programs[i].builds for i in (0, 3, 1)] == [1, 1, 2]


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_waits_while_code_is_written_and_is_left_as_it_was(is_on):
    def build():
        seen.append(gc.isenabled())
        raise MemoryError

    seen, program = [], Program(13)
    before = gc.isenabled()
    (gc.enable if is_on else gc.disable)()
    try:
        with pytest.raises(MemoryError):
            jit.load("a program that is not written", build, Machine.host())
        assert gc.isenabled() == is_on
        assert program.run() == 13
        assert gc.isenabled() == is_on
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False]


def test_a_process_seldom_looks_how_full_the_cache_is(cache, monkeypatch):
    looks, trim = [], jit._trim

    def looked(place):
        looks.append(place)
        trim(place)

    monkeypatch.setattr(jit, "_trim", looked)
    for number in range(8):
        assert Program(20 + number).run() == 20 + number
    assert looks == [cache], "at its first entry only, as long as it writes little"
    size = max(path.stat().st_size for path in cache.iterdir())
    monkeypatch.setattr(jit, "CACHE_BYTES", 16 * 3 * size)
    for number in range(8):
        assert Program(30 + number).run() == 30 + number
    assert 3 <= len(looks) <= 5, "then whenever it has written a sixteenth of what the cache may hold"
