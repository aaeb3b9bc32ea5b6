"""The cpu engine gives what the reference gives, for every cell of the table, over shapes, lengths and processors.

In all tests here the engine's buffers are filled with NaN and fenced in, and what it reads lies between NaN: what is
not written, or is written or read outside, shows.
"""

import copy
import gc
import inspect
import pickle
import threading
import types
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import anyrnn
from anyrnn.engines import select
from anyrnn.engines.cpu.loop import Loaded
from anyrnn.engines.cpu.machine import Machine
from zoo import CASES, close, flat, gradients, ids, loss_of

DOUBLE, SINGLE = torch.float64, torch.float32
I, H = 2, 3
FENCE = 256  # numbers on either side of a buffer: more than a tile of vectors
POST = 0x7FF8ABCD  # what a fence is made of: in every float type a NaN, and one that no arithmetic makes


# ---- Fences ----------------------------------------------------------------------------------------------------------


def fenced(n: int, dtype: torch.dtype, fill: float = float("nan")) -> torch.Tensor:
    """Numbers between fences."""
    whole = torch.empty(n + 2 * FENCE, dtype=dtype)
    whole.view(torch.int32).fill_(POST)
    return whole[FENCE : FENCE + n].fill_(fill)


def within(tensor: torch.Tensor) -> torch.Tensor:
    """A copy between fences, with the same strides."""
    n = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    middle = fenced(n if tensor.numel() else 0, tensor.dtype)
    copied = middle.as_strided(tensor.shape, tensor.stride(), middle.storage_offset())
    return copied.copy_(tensor.detach()) if 0 not in tensor.stride() else tensor


def assert_whole(tensor: torch.Tensor) -> None:
    """Nothing was written outside of a fenced tensor."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).view(torch.int32)
    edge = FENCE * tensor.dtype.itemsize // 4
    assert (whole[:edge] == POST).all(), "written in front of a buffer"
    assert (whole[-edge:] == POST).all(), "written behind a buffer"


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """How often machine code ran; around it, all is fenced."""
    made, counted = [], []
    run, new_empty, new_zeros = Loaded.run, torch.Tensor.new_empty, torch.Tensor.new_zeros

    def new(plain, fill):
        def make(like, *size, **options):
            tensor = plain(like, *size, **options)
            if tensor.dtype not in (SINGLE, DOUBLE):
                return tensor
            made.append(fenced(tensor.numel(), tensor.dtype, fill).view(tensor.shape))
            return made[-1]

        return make

    def fenced_run(self, *args, **options):
        given = inspect.signature(run).bind(self, *args, **options).arguments
        for name in ("streams", "states", "vectors", "matrices"):
            given[name] = [within(t) for t in given[name]]
        carries = given["carries"]
        in_place = carries is not given["sequences"]
        if in_place:
            given["carries"] = [within(t) for t in carries]
        totals = run(**given)
        for buffer in (*made, *(given["carries"] if in_place else ())):
            assert_whole(buffer)
        if in_place:
            for carry, result in zip(carries, given["carries"], strict=True):
                carry.copy_(result)
        made.clear()
        counted.append(self)
        return totals

    monkeypatch.setattr(Loaded, "run", fenced_run)
    monkeypatch.setattr(torch.Tensor, "new_empty", new(new_empty, float("nan")))
    monkeypatch.setattr(torch.Tensor, "new_zeros", new(new_zeros, 0.0))
    return counted


def test_a_fence_shows_what_is_written_over_it():
    buffer = fenced(5, SINGLE)
    assert_whole(buffer)
    whole = torch.empty(0).set_(buffer.untyped_storage())
    for place, message in ((FENCE - 1, "in front of"), (FENCE + 5, "behind")):
        kept = whole[place].clone()
        whole[place] = 1.0
        with pytest.raises(AssertionError, match=message):
            assert_whole(buffer)
        whole.view(torch.int32)[place] = kept.view(torch.int32)
    assert_whole(within(torch.randn(4, 3).t()))


# ---- Every cell, over shapes -----------------------------------------------------------------------------------------

#: (T, B, lengths, reverse, with a state)
CALLS = (
    (50, 1, None, False, True),
    (1, 2, None, True, False),
    (2, 5, (2, 0, 1, 2, 1), False, True),
    (50, 6, (50, 3, 49, 1, 0, 17), True, True),
    (2, 7, None, True, True),
    (2, 33, tuple(n % 3 for n in range(33)), False, True),
)
SIZES = (1, 3, 16, 17, 64, 130)


def outcome(engine, cell, call, dtype, input_size=I):
    """Output, final states, and the gradients of x, the states and the parameters."""
    T, B, lengths, reverse, with_state = call
    generator = torch.Generator().manual_seed(7)
    signature = anyrnn.protocol.describe(cell, input_size)

    def drawn(*size):
        return torch.randn(size, generator=generator, dtype=DOUBLE).to(dtype).requires_grad_()

    x, states = drawn(T, B, input_size), [drawn(B, n) for n in signature.state_sizes]
    state = signature.wrap(tuple(states)) if with_state else None
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, state, lengths=lengths, reverse=reverse)
    values = [output, *flat(final)]
    return [v.detach() for v in values] + gradients([x, *states, *cell.parameters()], loss_of(*values))


def assert_near(got, want, tolerance):
    """Each tensor to a tolerance, relative to its largest number where that is above one."""
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(
            a.to(b.dtype), b, rtol=0, atol=tolerance * scale, msg=lambda text, k=k: f"{k}: {text}"
        )


def made(case, size, dtype, input_size=I):
    torch.manual_seed(1)
    cell = case.make(input_size, size).to(dtype)
    if size > 16:  # as initialisers do: else a large cell is chaotic, and a rounding error grows to anything
        with torch.no_grad():
            for tensor in (*cell.parameters(), *cell.buffers()):
                tensor.mul_(3 / size**0.5)
    return cell


# Each cell meets two sizes in float64 and one in float32; a size is met by a third of the cells in float64.
GRID = [
    (case, SIZES[(k + step) % len(SIZES)], dtype)
    for k, case in enumerate(CASES)
    for step, dtype in ((0, DOUBLE), (3, DOUBLE), (1 + k % 5, SINGLE))
    if not (case.name == "LSTM-projected" and SIZES[(k + step) % len(SIZES)] == 1)
]


@pytest.mark.parametrize("case, size, dtype", GRID, ids=ids(GRID))
def test_every_cell_is_what_the_reference_says(case, size, dtype, runs):
    """In float64 to 1e-10. In float32 to 2e-5 of the largest number: some 170 units in the last place.

    A gradient of a weight is a sum over up to 162 rows and steps, of terms that have gone through up to 50 steps.
    """
    cell = made(case, size, dtype)
    for call in CALLS:
        want = outcome("reference", cell.double(), call, DOUBLE)
        close_enough = 1e-10 if dtype == DOUBLE else 2e-5
        assert_near(outcome("cpu", cell.to(dtype), call, dtype), want, close_enough)
    assert len(runs) == 2 * len(CALLS)


PROCESSORS = [
    (name, case)
    for name in ("x86-64", "haswell")
    for case in CASES
    if case.name in ("LSTM", "ConcatGRU", "NormLSTM", "ThreeStates")
]


@pytest.mark.parametrize("name, case", PROCESSORS, ids=ids(PROCESSORS))
def test_older_processors_compute_the_same(name, case, monkeypatch, runs):
    monkeypatch.setenv("ANYRNN_CPU", name)
    try:
        machine = Machine.host()
    except anyrnn.AnyRNNError as reason:
        pytest.skip(str(reason))
    assert machine.cpu == name
    assert machine.vector_bytes == {"x86-64": 16, "haswell": 32}[name]
    for size, dtype, tolerance in ((17, SINGLE, 2e-5), (5, DOUBLE, 1e-10), (64, SINGLE, 2e-5)):
        cell = made(case, size, dtype)
        for call in CALLS:
            want = outcome("reference", cell.double(), call, DOUBLE)
            assert_near(outcome("cpu", cell.to(dtype), call, dtype), want, tolerance)
    assert len({code.lanes for code in runs}) == 2


def test_many_rows_and_many_steps():
    cell = made(CASES[2], 3, DOUBLE)
    for call in ((3, 3001, None, False, True), (2, 2000, tuple(n % 3 for n in range(2000)), True, True)):
        assert_near(outcome("cpu", cell, call, DOUBLE), outcome("reference", cell, call, DOUBLE), 1e-10)
    for call in ((5000, 2, None, False, True), (5000, 3, (5000, 1, 4999), True, True)):
        assert_near(outcome("cpu", cell, call, DOUBLE), outcome("reference", cell, call, DOUBLE), 1e-10)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("LSTM", "NormLSTM", "IndRNN")], ids=lambda case: case.name
)
def test_two_threads_compute_the_same_and_repeat_bit_by_bit(case):
    cell, calls = made(case, 17, SINGLE), (CALLS[0], CALLS[3], CALLS[5])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        first, again = ([outcome("cpu", cell, call, SINGLE) for call in calls] for _ in range(2))
        for a, b in zip(first, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        if threads == 1:
            one = first
    for a, b in zip(first, one, strict=True):
        assert_near(a, b, 2e-5)


def test_python_threads_do_not_meet():
    cells = [made(case, 5, DOUBLE) for case in CASES if case.name in ("LSTM", "GRU", "ConcatGRU")]
    want = [outcome("reference", cell, CALLS[3], DOUBLE) for cell in cells]
    wrong, ready = [], threading.Barrier(4)

    def work(offset):
        ready.wait()
        for k in range(offset, offset + 12):
            try:
                with torch.no_grad() if k % 4 == 3 else torch.enable_grad():
                    if k % 4 != 3:
                        assert_near(outcome("cpu", cells[k % 3], CALLS[3], DOUBLE), want[k % 3], 1e-10)
            except BaseException as error:  # noqa: BLE001 - the test fails below, in its own thread
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
