"""A cell run by an engine, and how near two outcomes have to be."""

import types
import weakref

import torch
from torch import nn

import anyrnn
from zoo import flat, gradients, loss_of

DOUBLE, SINGLE = torch.float64, torch.float32
I, H = 2, 3

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
    values, leaves = results(engine, cell, call, dtype, input_size)
    return [v.detach() for v in values] + gradients([*leaves, *cell.parameters()], loss_of(*values))


def signature_of(cell, input_size):
    """The signature of a cell, found once: every engine runs it."""
    known = _signatures.setdefault(cell, {})
    if input_size not in known:
        known[input_size] = anyrnn.probing.describe(cell, input_size)
    return known[input_size]


_signatures = weakref.WeakKeyDictionary()


def results(engine, cell, call, dtype, input_size=I):
    """Output and final states; and x and the states that it began with."""
    T, B, lengths, reverse, with_state = call
    generator = torch.Generator().manual_seed(7)
    signature = signature_of(cell, input_size)

    def drawn(*size):
        return torch.randn(size, generator=generator, dtype=DOUBLE).to(dtype).requires_grad_()

    x, states = drawn(T, B, input_size), [drawn(B, n) for n in signature.state_sizes]
    state = signature.wrap(tuple(states)) if with_state else None
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, state, lengths=lengths, reverse=reverse)
    return [output, *flat(final)], [x, *states]


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


#: A call of a small cell that tests share.
CALL = (4, 5, (4, 0, 1, 3, 2), False, True)


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
