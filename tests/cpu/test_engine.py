"""The cpu engine gives what the reference gives, for every cell of the table, over shapes, lengths and processors.

In all tests here the engine's buffers are filled with NaN and fenced in, and what it reads lies between NaN: what is
not written, or is written or read outside, shows.
"""

import copy
import gc
import inspect
import pickle
import sys
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
            if not sys._getframe(1).f_globals["__name__"].startswith("anyrnn.engines.cpu"):
                return tensor
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


def assert_exact(cell, call, dtype):
    """In float64 as the reference, to 1e-10; in float32 as near to the truth as the reference in float32.

    Both round at every operation, in another order, so either may be the better one by luck: 20 times the reference's
    own error, and at least 80 units in the last place of the largest number, is where an error stops being rounding.
    """
    want = outcome("reference", cell.double(), call, DOUBLE)
    got = outcome("cpu", cell.to(dtype), call, dtype)
    if dtype == DOUBLE:
        assert_near(got, want, 1e-10)
        return
    for a, b, c in zip(got, outcome("reference", cell, call, dtype), want, strict=True):
        error = (b - c).abs().max().item() / max(1.0, c.abs().max().item())
        assert_near([a], [c], 20 * error + 1e-5)


def made(case, size, dtype, input_size=I):
    torch.manual_seed(1)
    cell = case.make(input_size, size).to(dtype)
    if size > 16:  # as initialisers do: else a large cell is chaotic, and a rounding error grows to anything
        with torch.no_grad():
            for tensor in (*cell.parameters(), *cell.buffers()):
                tensor.mul_(3 / size**0.5)
    return cell


# A projection needs two units; the norm of a single number divides a rounding error by the root of 1e-5.
UNFIT = (("LSTM-projected", 1), ("NormLSTM", 1))

# Each cell meets two sizes in float64 and one in float32; a size is met by a third of the cells in float64.
GRID = [
    (case, SIZES[(k + step) % len(SIZES)], dtype)
    for k, case in enumerate(CASES)
    for step, dtype in ((0, DOUBLE), (3, DOUBLE), (1 + k % 5, SINGLE))
    if (case.name, SIZES[(k + step) % len(SIZES)]) not in UNFIT
]


@pytest.mark.parametrize("case, size, dtype", GRID, ids=ids(GRID))
def test_every_cell_is_what_the_reference_says(case, size, dtype, runs):
    cell = made(case, size, dtype)
    for call in CALLS:
        assert_exact(cell, call, dtype)
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
    for size, dtype in ((17, SINGLE), (5, DOUBLE), (64, SINGLE)):
        cell = made(case, size, dtype)
        for call in CALLS:
            assert_exact(cell, call, dtype)
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


# ---- Cells of all kinds: right by name, or refused with the reason and right by falling back -------------------------


class Plain(nn.Module):
    """A cell whose step is a function of it, x and h, with weights to choose from."""

    def __init__(self, step):
        super().__init__()
        self.hidden_size, self.step = H, step
        self.W, self.U = nn.Linear(I, H), nn.Linear(H, H)
        self.v, self.s = nn.Parameter(torch.randn(H)), nn.Parameter(torch.tensor(0.3))
        self.wide = nn.Parameter(torch.randn(H + 1, H) / 2)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("order", torch.arange(H))
        self.register_buffer("running", torch.zeros(H))
        self.alpha, self.flag, self.act, self.count = 0.5, True, torch.tanh, 0
        self.settings = types.SimpleNamespace(alpha=0.5, names=["a"])
        self.table = {"alpha": 0.5}
        self.numbers = [0.5, 0.25]
        self.module = nn.Tanh()
        self.tensor = torch.randn(H, dtype=DOUBLE)
        self.norm = nn.BatchNorm1d(I)

    def forward(self, x, h):
        return self.step(self, x, h)


def plain(step, dtype=DOUBLE):
    torch.manual_seed(1)
    return Plain(step).to(dtype)


CALL = (4, 5, (4, 0, 1, 3, 2), False, True)


def straight_through(v):
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.round()

        @staticmethod
        def backward(ctx, grad):
            return grad

    return Round.apply(v)


def below_no_grad(v):
    with torch.no_grad():
        return v * 2


def in_place(v, *changes):
    v = v.clone()
    for change in changes:
        change(v)
    return v


def written(c, x, h):
    """A column after another is written into a tensor of zeros."""
    out = torch.zeros_like(h)
    for k in range(H):
        out[:, k] = torch.tanh(c.W(x)[:, k] + h[:, k])
    return out


def stored(c, x, h):
    c.last = torch.tanh(c.W(x) + h)
    return c.last


def counted(c, x, h):
    c.count += 1
    return torch.tanh(c.W(x) + h / c.count)


def collected(c, x, h):
    c.numbers.append(0.5)
    return torch.tanh(c.W(x) + h * len(c.numbers))


def normed(c, x, h):
    c.running = 0.9 * c.running + 0.1
    return torch.tanh(c.W(x) + h * c.running)


STEPS = {
    "a parameter spread over the rows": lambda c, x, h: torch.tanh(h + c.v.expand(len(x), -1) * c.W(x)),
    "a parameter repeated for the rows": lambda c, x, h: torch.tanh(h + c.v.unsqueeze(0).repeat(x.size(0), 1) * c.W(x)),
    "a parameter as the new state": lambda c, x, h: c.v.expand(x.shape[0], -1),
    "zeros as the new state": lambda c, x, h: h.new_zeros(x.shape[0], H),
    "a mean as the new state": lambda c, x, h: torch.tanh(h.mean(1, keepdim=True)).expand(-1, H),
    "a sum that is all of the state": lambda c, x, h: torch.tanh(h.sum(1, keepdim=True) + c.W(x)),
    "the input alone": lambda c, x, h: torch.tanh(c.W(x)),
    "a column of ones": lambda c, x, h: torch.tanh(c.W(x) + torch.cat([h, h.new_ones(len(h), 1)], 1) @ c.wide),
    "a column of a parameter": lambda c, x, h: torch.tanh(c.W(x) + torch.cat([c.s.expand(len(h), 1), h], 1) @ c.wide),
    "a product that takes a value twice": lambda c, x, h: torch.tanh(c.W(x) + torch.cat([h, h[:, :1]], 1) @ c.wide),
    "two products of one value": lambda c, x, h: torch.tanh(c.W(x) + c.U(h) + h @ c.wide[1:]),
    "the state whole and in part": lambda c, x, h: torch.tanh(h * c.v) * torch.cat([h[:, :2] * 2, c.W(x)[:, :1]], 1),
    "a mask of the input": lambda c, x, h: torch.where(x[:, :1] > 0, torch.tanh(h), c.W(x)),
    "a mask buffer": lambda c, x, h: torch.where(c.mask, torch.tanh(h), c.W(x)),
    "a mask made of a buffer": lambda c, x, h: torch.where(~c.mask, torch.tanh(h), c.W(x)),
    "integers": lambda c, x, h: torch.tanh(h * (c.order + 1) * 0.3 + c.W(x)),
    "a mask times a number": lambda c, x, h: torch.tanh(c.W(x) + (h > 0.1) * h),
    "a mask as a number": lambda c, x, h: torch.tanh(c.W(x) + (h > 0.1).to(x.dtype) + (h < -0.1).sum(1, keepdim=True)),
    "a number as a mask": lambda c, x, h: torch.where((h > 0.1).long().bool() & ~(h > 1), c.W(x), torch.tanh(h)),
    "a detached state": lambda c, x, h: torch.tanh(c.W(x) + c.U(h.detach()) * h),
    "a detached value": lambda c, x, h: torch.tanh(c.W(x) + c.U(h)).detach() * h,
    "detached weights": lambda c, x, h: torch.tanh(c.W(x) + h @ c.U.weight.detach() + h * c.v.data),
    "a state detached wholly": lambda c, x, h: torch.tanh(c.W(x) + h.detach()),
    "a plain tensor": lambda c, x, h: torch.tanh(c.W(x) + h * c.tensor),
    "a number made in the step": lambda c, x, h: torch.tanh(c.W(x) + h * torch.tensor(0.3, dtype=x.dtype)),
    "an operation in place": lambda c, x, h: c.W(x).add_(c.U(h)).tanh_(),
    "x changed in place": lambda c, x, h: torch.tanh(c.W(x.clone().mul_(2)) + h),
    "a part changed in place, then read": lambda c, x, h: in_place(c.W(x), lambda v: v[:, :1].mul_(2)).tanh() + 0 * h,
    "columns written": written,
    "dropout of nothing": lambda c, x, h: torch.tanh(c.W(F.dropout(x, 0.0)) + h),
    "batch norm that is fixed": lambda c, x, h: torch.tanh(c.W(c.norm.eval()(x)) + h),
    "rows that meet in the input": lambda c, x, h: torch.tanh(c.W(x - x.mean(0)) + h),
    "rows that meet in a batch norm": lambda c, x, h: torch.tanh(c.W(x - F.instance_norm(x.T.unsqueeze(0))[0].T) + h),
    "a number of a tensor": lambda c, x, h: torch.tanh(c.W(x) + h * h.sum().item()),
    "control flow by a tensor": lambda c, x, h: torch.tanh(c.W(x) + h) if h.sum() > 0 else c.W(x),
    "a number by way of NumPy": lambda c, x, h: torch.tanh(c.W(x) + h * float(h.detach().numpy().mean())),
    "the number of rows as a number": lambda c, x, h: torch.tanh(c.W(x) + h / x.size(0)),
    "rows that meet": lambda c, x, h: torch.tanh(c.W(x) + h - h.mean(0)),
    "another operation": lambda c, x, h: torch.tanh(c.W(x) + h.sort(1).values),
    "a tensor made in the step": lambda c, x, h: torch.tanh(c.W(x) + h * torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)),
    "a matrix that depends on the state": lambda c, x, h: torch.tanh(c.W(x) + (h.T @ h).sum() * h),
    "below no_grad": lambda c, x, h: torch.tanh(c.W(x) + below_no_grad(h)),
    "a function with its own gradient": lambda c, x, h: torch.tanh(c.W(x) + straight_through(h * 3)),
    "an attribute stored": stored,
    "steps counted": counted,
    "a list that grows": collected,
    "a buffer replaced": normed,
    "a buffer changed in place": lambda c, x, h: torch.tanh(c.W(x) + h * c.running.add_(0.1).clone()),
    "a view of a buffer changed": lambda c, x, h: torch.tanh(c.W(x) + h) + 0 * c.running[:1].add_(0.1),
    "batch norm in training": lambda c, x, h: torch.tanh(
        c.W(F.batch_norm(x, c.norm.running_mean, c.norm.running_var, training=True)) + h
    ),
}

#: Steps that machine code cannot run, and what the reason says.
REFUSED = {
    "a part changed in place, then read": "after a part of it was changed in place",
    "columns written": "after a part of it was changed in place",
    "rows that meet in a batch norm": "the batch is not the first dimension",
    "a number of a tensor": "reads a number out of a tensor",
    "control flow by a tensor": "reads a number out of a tensor",
    "a number by way of NumPy": "differs? between two runs",
    "the number of rows as a number": "differs? between two runs",
    "rows that meet": "`aten.mean` in the loop",
    "another operation": "`aten.sort` in the loop",
    "a tensor made in the step": "no attribute of the cell",
    "a matrix that depends on the state": "the batch is not the first dimension",
    "below no_grad": "no_grad",
    "a function with its own gradient": "autograd.Function",
    "an attribute stored": "changes the attribute `last`",
    "steps counted": "changes the attribute `count`",
    "a list that grows": "changes the attribute `numbers`",
    "a buffer replaced": "in the place of a weight or buffer",
    "a buffer changed in place": "changes a weight or buffer",
    "a view of a buffer changed": "changes a weight or buffer",
    "batch norm in training": "changes the running statistics",
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_right_or_refused(name, runs):
    full = (*CALL[:2], None, *CALL[3:])
    for call in (CALL, full) if "batch norm" not in name else (full,):  # a norm of one row raises an error
        twins = [plain(STEPS[name]) for _ in range(3)]
        want = outcome("reference", twins[0], call, DOUBLE)
        if name not in REFUSED:
            got = outcome("cpu", twins[1], call, DOUBLE)
            assert runs
        else:
            with pytest.raises(anyrnn.AnyRNNError, match=REFUSED[name]) as caught:
                outcome("cpu", twins[2], call, DOUBLE)
            assert "asked for by name" in str(caught.value)
            layer = anyrnn.Recurrent(twins[2])
            (part,) = anyrnn.explain(layer, torch.zeros(4, 5, I, dtype=DOUBLE)).parts
            assert part.engine == "reference"
            assert part.refused["cpu"] in str(caught.value)
            got = outcome("auto", twins[1], call, DOUBLE)
            assert not runs
        assert_near(got, want, 1e-10)
        for a, b in zip(twins[0].state_dict().values(), twins[1].state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# ---- What changes between two calls is seen --------------------------------------------------------------------------


def wrap(c):
    c.act = lambda v: torch.tanh(v) * 0.5


CHANGES = {
    "a weight, in place": lambda c: c.U.weight.data.mul_(2),
    "a weight, replaced": lambda c: setattr(c, "v", nn.Parameter(torch.ones(H, dtype=DOUBLE))),
    "a weight, otherwise laid out": lambda c: setattr(c.U, "weight", nn.Parameter(c.U.weight.data.T)),
    "a state dict": lambda c: c.load_state_dict({k: v * 2 for k, v in c.state_dict().items()}),
    "a float": lambda c: setattr(c, "alpha", 0.75),
    "a float to an equal int": lambda c: setattr(c, "alpha", 1),
    "a flag": lambda c: setattr(c, "flag", False),
    "the mode": lambda c: c.eval(),
    "a function": lambda c: setattr(c, "act", torch.sigmoid),
    "a function of one's own": wrap,
    "a setting": lambda c: setattr(c.settings, "alpha", 0.75),
    "a list in a setting": lambda c: c.settings.names.append("b"),
    "an entry": lambda c: c.table.update(alpha=0.75),
    "an item": lambda c: c.numbers.__setitem__(1, 0.75),
    "a submodule": lambda c: setattr(c, "module", nn.Sigmoid()),
    "a plain tensor": lambda c: c.tensor.mul_(2),
    "a plain tensor, replaced": lambda c: setattr(c, "tensor", torch.ones(1, dtype=DOUBLE)),
    "a buffer": lambda c: c.mask.logical_not_(),
    "a buffer of another type": lambda c: setattr(c, "mask", torch.tensor([0.2, 0.3, 0.4], dtype=DOUBLE)),
    "weights that are shared": lambda c: setattr(c.U, "weight", c.Q.weight),
    "weights no longer shared": lambda c: setattr(c.R, "weight", nn.Parameter(c.R.weight.data * 2)),
    "the method": lambda c: setattr(c, "step", lambda c, x, h: everything(c, x, h) * 0.5),
    "weights frozen": lambda c: c.U.weight.requires_grad_(False),
}


def everything(c, x, h):
    a = c.act(c.W(x) + c.U(h) + c.Q(h) + c.R(h) * c.alpha) + c.module(h) * c.tensor + h * c.mask
    a = a * c.settings.alpha * len(c.settings.names) + h * c.table["alpha"] * c.numbers[1]
    return (a * c.s if c.flag else a) + (c.v if c.training else h)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_calls_is_seen(name):
    cell = plain(everything)
    cell.Q, cell.R = nn.Linear(H, H).double(), nn.Linear(H, H).double()
    cell.R.weight = cell.Q.weight
    layer = anyrnn.Recurrent(cell)
    x = torch.randn(4, 3, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"):
        layer(x)
    before = outcome("cpu", cell, CALL, DOUBLE)
    CHANGES[name](cell)
    parameters = [p for p in cell.parameters() if p.requires_grad]
    results = []
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            output, state = layer(x)
        results.append([output, state, *gradients(parameters, loss_of(output, state))])
    assert_near(results[1], results[0], 1e-10)
    assert name == "weights frozen" or not torch.equal(before[0], outcome("cpu", cell, CALL, DOUBLE)[0])


def test_a_converted_cell_is_taken_apart_anew():
    cell = plain(
        lambda c, x, h: torch.tanh(c.W(x) + h + torch.zeros(H, dtype=c.v.dtype) + x.new_full((1,), 0.1)), SINGLE
    )
    for dtype, tolerance in ((SINGLE, 1e-5), (DOUBLE, 1e-10), (SINGLE, 1e-5)):
        cell.to(dtype)
        assert_near(outcome("cpu", cell, CALL, dtype), outcome("reference", cell, CALL, dtype), tolerance)


def test_a_cell_without_weights_computes_in_the_type_of_x():
    class Bare(nn.Module):
        hidden_size = I

        def forward(self, x, h):
            turn = torch.eye(I, dtype=x.dtype) * 0.7 + 0.1
            return torch.where(x > 0, torch.tanh(x + h @ turn), 0.1)

    for dtype in (DOUBLE, SINGLE, DOUBLE):
        assert_exact(Bare(), CALL, dtype)


# ---- Gradients beyond the first, and what a backward pass leaves behind ----------------------------------------------

TWICE = [case for case in CASES if case.twice]


@pytest.mark.parametrize("case", TWICE, ids=lambda case: case.name)
def test_second_derivatives_are_those_of_the_reference(case):
    cell = case.cell()
    x = torch.randn(3, 2, I, dtype=DOUBLE, requires_grad=True)
    results = []
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            output, state = anyrnn.scan(cell, x, lengths=[3, 2])
        leaves = [x, *cell.parameters()]
        first = torch.autograd.grad(loss_of(output.sin(), *flat(state)), leaves, create_graph=True, allow_unused=True)
        assert all(g is None or g.requires_grad for g in first) or case.name == "RNN-relu"
        results.append(gradients(leaves, loss_of(*(g for g in first if g is not None and g.requires_grad))))
    assert_near(results[1], results[0], 1e-10)


def test_what_a_backward_pass_reads_is_freed_by_it(monkeypatch):
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(3, 2, I, dtype=DOUBLE)
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(weakref.ref(t)) or t, lambda t: t)
    with anyrnn.engine("cpu"), keep:
        output, state = anyrnn.scan(cell, x)
    loss = loss_of(output, *state)
    weights = {id(p) for p in cell.parameters()}
    before = [r() for r in kept if r() is not None and id(r()) not in weights]
    assert len(before) >= 5, "the gates are kept"
    before.clear()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in cell.parameters()]
    loss.backward()
    close([p.grad for p in cell.parameters()], [2 * g for g in first])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    gc.collect()
    left = [t for t in (r() for r in kept) if t is not None and id(t) not in weights]
    shared = {t.untyped_storage().data_ptr() for t in (output, *state, x)}
    assert all(t.untyped_storage().data_ptr() in shared for t in left)


def test_only_what_needs_a_gradient_gets_one():
    cell = made(CASES[2], 5, DOUBLE)
    x, h, c = (torch.randn(n, dtype=DOUBLE) for n in ((3, 2, I), (2, 5), (2, 5)))
    for frozen in (["weight_hh"], ["weight_ih", "bias_ih"], [n for n, _ in cell.named_parameters()]):
        for leaf in (x, h, None):
            results = []
            for engine in ("reference", "cpu"):
                for name, p in cell.named_parameters():
                    p.requires_grad_(name not in frozen)
                leaves = [p for p in cell.parameters() if p.requires_grad]
                if leaf is not None:
                    leaves.append(leaf.detach_().requires_grad_())
                with anyrnn.engine(engine):
                    output, (final, _) = anyrnn.scan(cell, x, (h, c), lengths=[3, 1])
                assert output.requires_grad == bool(leaves)
                results.append(gradients(leaves, loss_of(output, final)) if leaves else [output])
            assert_near(results[1], results[0], 1e-10)
            if leaf is not None:
                leaf.requires_grad_(False)


def test_gradients_that_nobody_sends_count_as_zero():
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(4, 3, I, dtype=DOUBLE, requires_grad=True)
    for part in (
        lambda o, s: o[1:2, :1],
        lambda o, s: s[0],
        lambda o, s: s[1][:1],
        lambda o, s: o.sum(2, keepdim=True).expand(-1, -1, 9),
    ):
        for lengths in (None, [4, 0, 2]):
            results = []
            for engine in ("reference", "cpu"):
                with anyrnn.engine(engine):
                    loss = loss_of(part(*anyrnn.scan(cell, x, lengths=lengths)))
                results.append(gradients([x, *cell.parameters()], loss))
            assert_near(results[1], results[0], 1e-10)


# ---- Inside the rest of PyTorch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(4, 3, I, dtype=DOUBLE, requires_grad=True)

    def run(x):
        output, state = anyrnn.scan(cell, x, lengths=[4, 0, 2])
        return output, *state

    leaves = [x, *cell.parameters()]
    with anyrnn.engine("reference"):
        want = gradients(leaves, loss_of(*run(x)))
    with anyrnn.engine("cpu"):
        loss = loss_of(*checkpoint(run, x, use_reentrant=reentrant))
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
    assert_near([leaf.grad for leaf in leaves], want, 1e-10)


def test_below_autocast_it_computes_in_float32(runs):
    cell, x = made(CASES[2], 17, SINGLE), torch.randn(4, 3, I)
    with anyrnn.engine("cpu"):
        want, want_state = anyrnn.scan(cell, x)
        with torch.autocast("cpu", torch.bfloat16):
            output, state = anyrnn.scan(cell, x)
            low, _ = anyrnn.scan(cell, x.bfloat16())
            grads = torch.autograd.grad(loss_of(output.float()), list(cell.parameters()))
    assert torch.equal(output, want)
    assert all(torch.equal(a, b) for a, b in zip(state, want_state, strict=True))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), want, rtol=0, atol=2e-2)
    assert_near(grads, torch.autograd.grad(loss_of(want), list(cell.parameters())), 1e-6)
    assert len(runs) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_converted_at_the_edge(dtype):
    """The only roundings to the lower type are those of the results, half a unit of about 1."""
    cell = made(CASES[2], 17, SINGLE).to(dtype)
    x = torch.randn(6, 3, I).to(dtype)
    with anyrnn.engine("cpu"):
        output, state = anyrnn.scan(cell, x)
        loss_of(output.float()).backward()
    assert {output.dtype, *(s.dtype for s in state), *(p.grad.dtype for p in cell.parameters())} == {dtype}
    low = [output, *state, *(p.grad for p in cell.parameters())]
    cell.zero_grad()
    with anyrnn.engine("reference"):
        wide, state = anyrnn.scan(cell.float(), x.float())
    want = [wide, *state, *gradients(cell.parameters(), loss_of(wide))]
    assert_near(low, want, torch.finfo(dtype).eps)


def test_copies_and_pickles_of_a_layer_that_has_run(runs):
    layer = anyrnn.PeepholeLSTM(I, 5, 2)
    layer, x = layer.double(), torch.randn(3, 2, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"):
        want, _ = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x)[0], want)
            loss_of(twin(x)[0]).backward()
            assert all(p.grad is None for p in layer.parameters())
            with torch.no_grad():
                next(twin.parameters()).mul_(2)
            assert not torch.equal(twin(x)[0], want)
        assert torch.equal(layer(x)[0], want)


PARAMETRIZED = {
    "weight_norm": lambda cell: parametrizations.weight_norm(cell, "weight_hh"),
    "orthogonal": lambda cell: parametrizations.orthogonal(cell, "weight_hh"),
    "of one's own": lambda cell: parametrize.register_parametrization(cell, "weight_hh", Skew()),
}


class Skew(nn.Module):
    def forward(self, W):
        return W - W.T


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrizations_come_and_go(name):
    torch.manual_seed(1)
    cell = nn.RNNCell(I, 4).double()
    for _ in range(2):
        assert_near(outcome("cpu", cell, CALL, DOUBLE), outcome("reference", cell, CALL, DOUBLE), 1e-10)
        PARAMETRIZED[name](cell)
        assert_near(outcome("cpu", cell, CALL, DOUBLE), outcome("reference", cell, CALL, DOUBLE), 1e-10)
        parametrize.remove_parametrizations(cell, "weight_hh")


def test_tensors_of_any_layout():
    cell = made(CASES[2], 5, DOUBLE)
    cell.weight_hh = nn.Parameter(torch.randn(5, 20, dtype=DOUBLE).T)
    cell.weight_ih = nn.Parameter(torch.randn(40, 2 * I, dtype=DOUBLE)[::2, ::2])
    forms = {
        "batch first": torch.randn(3, 4, I, dtype=DOUBLE).transpose(0, 1),
        "strided": torch.randn(4, 3, 3 * I, dtype=DOUBLE)[..., ::3],
        "one row for all": torch.randn(4, 1, I, dtype=DOUBLE).expand(-1, 3, -1),
        "one step for all": torch.randn(1, 3, I, dtype=DOUBLE).expand(4, -1, -1),
        "part of more": torch.randn(9, 9, I, dtype=DOUBLE)[2:6, 3:6],
    }
    state = torch.randn(1, 5, dtype=DOUBLE).expand(3, -1), torch.randn(5, 3, dtype=DOUBLE).T
    for x in forms.values():
        for lengths in (None, [2, 4, 0]):
            results = []
            for engine in ("reference", "cpu"):
                with anyrnn.engine(engine):
                    output, final = anyrnn.scan(cell, x, state, lengths=lengths)
                results.append([output, *final, *gradients(cell.parameters(), loss_of(output, *final))])
            assert_near(results[1], results[0], 1e-10)


def test_results_may_be_changed_in_place_where_no_gradient_needs_them():
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(4, 3, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"), torch.no_grad():
        first, (h, c) = anyrnn.scan(cell, x)
        kept = [t.clone() for t in (first, h, c)]
        again, state = anyrnn.scan(cell, x, (h, c))
        for t in (again, *state):
            t.zero_()
        close([first, h, c], kept)
    with anyrnn.engine("cpu"):
        output, _ = anyrnn.scan(cell, x)
        with pytest.raises(RuntimeError, match="inplace"):
            output.mul_(2).sum().backward()


def test_a_plan_made_without_gradients_serves_training(runs):
    for mode in (torch.inference_mode, torch.no_grad):
        cell = made(CASES[2], 5 + (mode is torch.no_grad), DOUBLE)
        x = torch.randn(4, 3, I, dtype=DOUBLE)
        with anyrnn.engine("cpu"), mode():
            output, _ = anyrnn.scan(cell, x)
            assert not output.requires_grad
        assert_near(outcome("cpu", cell, CALL, DOUBLE), outcome("reference", cell, CALL, DOUBLE), 1e-10)


def test_random_numbers_of_the_input_are_drawn_anew_at_each_step():
    cell = plain(lambda c, x, h: F.dropout(x[:, :1].expand(-1, H), 0.5, c.training) + 0 * h)
    x = torch.ones(200, 50, I, dtype=DOUBLE)
    for lengths in (None, [200] * 49 + [7]):
        with anyrnn.engine("cpu"):
            torch.manual_seed(5)
            output, _ = anyrnn.scan(cell.train(), x, lengths=lengths)
            torch.manual_seed(5)
            again, _ = anyrnn.scan(cell, x, lengths=lengths)
            still, _ = anyrnn.scan(cell.eval(), x, lengths=lengths)
        assert torch.equal(output, again)
        assert (still[:, :49] == 1).all()
        assert set(output[:, :49].unique().tolist()) == {0.0, 2.0}
        assert abs(output[:, :49].mean().item() - 1) < 0.05  # 29,400 draws: 8 standard errors
        assert not torch.equal(output[0], output[1])


def test_random_numbers_in_the_loop_are_refused_with_the_cure():
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + F.dropout(h, 0.5, c.training)))
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="move dropout out of the cell"):
        anyrnn.scan(cell, torch.zeros(2, 2, I, dtype=DOUBLE))
    outcome("cpu", cell.eval(), CALL, DOUBLE)


def test_hooks_and_scripts_are_refused():
    hooked = plain(lambda c, x, h: torch.tanh(c.U(h) + c.W(x)))
    seen = []
    handle = hooked.U.register_forward_hook(lambda *_: seen.append(1))
    x = torch.zeros(2, 2, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="hooks"):
        anyrnn.scan(hooked, x)
    seen.clear()
    anyrnn.scan(hooked, x)
    assert len(seen) == 2
    handle.remove()
    with anyrnn.engine("cpu"):
        anyrnn.scan(hooked, x)


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
