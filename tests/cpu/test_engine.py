"""The cpu engine gives what the reference gives, for every cell of the table, over shapes, lengths and processors."""

import itertools
import threading

import pytest
import torch
from compare import CALLS, DOUBLE, SINGLE, SIZES, I, assert_exact, assert_near, made, outcome, results
from fences import FENCE, assert_whole, fenced, within

import anyrnn
from anyrnn.compiler.node import Builder, evaluate
from anyrnn.compiler.ops import OPERATIONS, REDUCTIONS
from anyrnn.compiler.program import Array, Program
from anyrnn.engines import select
from anyrnn.engines.cpu import backend, threads
from anyrnn.engines.cpu.backend import CpuBackend
from anyrnn.engines.cpu.machine import Machine
from anyrnn.runtime.autograd import run_loop
from anyrnn.runtime.layout import layout
from anyrnn.runtime.loop import Loop
from zoo import CASES, close, ids

pytestmark = pytest.mark.usefixtures("runs")


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


def places(kernel):
    """How the states of a kernel lie in memory."""
    return [a.place for a in kernel.program.of("state")]


def test_what_machine_code_does_not_write_shows_as_nan(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "parallel", lambda *_: None)
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(3, 4, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"):
        output, state = anyrnn.scan(cell, x)
    assert all(t.isnan().all() for t in (output, *state))


# ---- Every cell, over shapes -----------------------------------------------------------------------------------------

# A projection needs two units; the norm of a single number divides a rounding error by the root of 1e-5.
UNFIT = (("LSTM-projected", 1), ("NormLSTM", 1))

# Each cell meets two sizes in float64 and one in float32; a size is met by a third of the cells in float64.
GRID = [
    (case, SIZES[(k + step) % len(SIZES)], dtype)
    for k, case in enumerate(CASES)
    for step, dtype in ((0, DOUBLE), (3, DOUBLE), (1 + k % 5, SINGLE))
    if (case.name, SIZES[(k + step) % len(SIZES)]) not in UNFIT
]

FIRST = [
    (case, next(size for other, size, dtype in GRID if other is case and dtype == DOUBLE and size >= 3))
    for case in CASES
]


@pytest.mark.grid(2)
@pytest.mark.parametrize("case, size, dtype", GRID, ids=ids(GRID))
def test_every_cell_is_what_the_reference_says(case, size, dtype, runs):
    cell = made(case, size, dtype)
    for call in CALLS:
        assert_exact(cell, call, dtype)
    assert len(runs) == 2 * len(CALLS)


# The sizes are those of the test above, whose code is there.
@pytest.mark.grid(2)
@pytest.mark.parametrize("case, size", FIRST, ids=ids(FIRST))
def test_without_gradients_the_same_comes_out_and_less_is_kept(case, size, runs):
    cell = made(case, size, DOUBLE)
    for call in CALLS:
        trained, _ = results("cpu", cell, call, DOUBLE)
        with torch.no_grad():
            inferred, _ = results("cpu", cell, call, DOUBLE)
        assert_near(inferred, trained, 1e-14)
    assert set(places(runs[0])) == {"kept"}, "a backward pass reads the states of all steps"
    if case.name in ("LSTM", "Peephole"):  # whose output is h
        assert places(runs[1]) == ["kept", "carried"]


PROCESSORS = [
    (name, case)
    for name in ("x86-64", "haswell")
    for case in CASES
    if case.name in ("LSTM", "ConcatGRU", "NormLSTM", "ThreeStates")
]


@pytest.mark.grid(2)
@pytest.mark.parametrize("name, case", PROCESSORS, ids=ids(PROCESSORS))
def test_older_processors_compute_the_same(name, case, monkeypatch, runs):
    monkeypatch.setenv("ANYRNN_CPU", name)
    try:
        machine = Machine.host()
    except anyrnn.AnyRNNError as reason:
        pytest.skip(str(reason))
    assert machine.cpu == name
    assert machine.vector_bytes == {"x86-64": 16, "haswell": 32}[name]
    for size, dtype in ((17, SINGLE), (5, DOUBLE), (64, SINGLE)):
        cell = made(case, size, dtype)
        for call in CALLS:
            assert_exact(cell, call, dtype)
    assert len({code.lanes for code in runs}) == 2


@pytest.mark.long
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
    for count in (1, 2):
        torch.set_num_threads(count)
        first, again = ([outcome("cpu", cell, call, SINGLE) for call in calls] for _ in range(2))
        for a, b in zip(first, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        if count == 1:
            one = first
    for a, b in zip(first, one, strict=True):
        assert_near(a, b, 2e-5)


@pytest.mark.parametrize(
    ("T", "B", "most"),
    [(900, 1, 1), (900, 2, 1), (900, 3, 1), (900, 4, 2), (900, 7, 2), (1, 16, 1), (4, 16, 1), (40, 16, 2)],
)
def test_threads_run_where_they_have_two_rows_and_enough_work_each(T, B, most, monkeypatch):
    monkeypatch.setattr(backend, "_SMALL", 1 << 19)
    torch.set_num_threads(2)
    parallel, parts = threads.parallel, [1]
    monkeypatch.setattr(threads, "parallel", lambda code, data, n: (parts.append(n), parallel(code, data, n)))
    with anyrnn.engine("cpu"), torch.no_grad():
        anyrnn.LSTM(16, 16)(torch.randn(T, B, 16))
    assert max(parts) == most


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

    callers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong, wrong[0]


# ---- Every operation, and the rest ----


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("width", [1, 6])
def test_every_operation_of_a_program_is_emitted(width, dtype):
    """On numbers where operations have edges, with NaN and infinities, as program.evaluate computes them."""
    numbers = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, torch.inf, -torch.inf, torch.nan, 1e-3, 30.0], dtype=dtype
    )
    builder = Builder()
    leaves = [builder.node("stream", (), width, (name, 0)) for name in "ab"]
    mask = builder.pointwise("gt", leaves[0], builder.constant(0))
    numbered, masked = [], []
    for op, operation in OPERATIONS.items():
        masks, numbers_left = iter((mask, builder.pointwise("le", *leaves))), itertools.cycle(leaves)
        args = [next(masks if k in operation.masks else numbers_left) for k in range(operation.arity)]
        (masked if operation.gives_mask else numbered).append(builder.pointwise(op, *args))
    every = [*numbered, *masked, *(builder.reduction(op, tuple(leaves)) for op in REDUCTIONS)]
    arrays = [Array("a", "stream", width, place="packed"), Array("b", "stream", width, place="packed")]
    arrays += [Array("h", "state", 1), *(Array(f"y{k}", "output", n.width) for k, n in enumerate(every))]
    results = {"h": (builder.node("state", (), 1, ("h", 0)),), **{f"y{k}": (n,) for k, n in enumerate(every)}}
    program = Program(tuple(arrays), results)
    rows = len(numbers) ** 2
    streams = [t.reshape(-1, 1).repeat(1, width).contiguous() for t in torch.meshgrid(numbers, numbers, indexing="ij")]
    given = dict(zip("abh", [*streams, torch.zeros(rows, 1, dtype=dtype)], strict=True))
    got = run_loop(Loop(program), layout(1, rows, None, False), CpuBackend.host(), given)
    known = dict(zip(leaves, streams, strict=True))
    evaluate([n for n in program.nodes if not n.is_leaf], known)
    for k, node in enumerate(every):
        torch.testing.assert_close(
            got[f"y{k}"].view(rows, -1),
            known[node].to(dtype),
            rtol=8 * torch.finfo(dtype).eps,
            atol=0,
            equal_nan=True,
            msg=lambda text, node=node: f"{node.op}: {text}",
        )


def test_empty_input_is_refused_by_name_and_right_otherwise():
    cell = made(CASES[2], 5, DOUBLE)
    for x in (torch.zeros(0, 3, I, dtype=DOUBLE), torch.zeros(3, 0, I, dtype=DOUBLE)):
        with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="nothing to compute"):
            anyrnn.scan(cell, x)
        assert anyrnn.scan(cell, x)[0].shape == (*x.shape[:2], 5)
    with anyrnn.engine("cpu"):
        output, state = anyrnn.scan(cell, torch.full((3, 2, I), torch.nan, dtype=DOUBLE), lengths=[0, 0])
    close([output, *state], [torch.zeros(3, 2, 5, dtype=DOUBLE)] + [torch.zeros(2, 5, dtype=DOUBLE)] * 2)


def test_it_is_the_engine_that_runs(runs, monkeypatch):
    cell, x = made(CASES[2], 5, SINGLE), torch.randn(3, 2, I)
    ran = []
    for name, engine in select.ENGINES.items():
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda call, name=name, run=run: (ran.append(name), run(call))[1])
    with anyrnn.engine("cpu"), torch.no_grad():
        anyrnn.scan(cell, x)
    assert (ran, len(runs)) == (["cpu"], 1)
