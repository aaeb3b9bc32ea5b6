"""Values of a step with inner dimensions, (B, heads, d) and (B, N, N), compile to loops: as the plain loop has them."""

import pytest
import torch
from compare import DOUBLE, SINGLE, I, assert_exact, assert_near, outcome
from compare import results as run_by
from numpy_backend import ENGINE
from torch import nn
from torch.nn import functional as F

import anyrnn
from anyrnn.compiler.derive import derive
from anyrnn.compiler.program import parse
from anyrnn.compiler.split import split
from anyrnn.compiler.trace import trace
from anyrnn.engines import select
from anyrnn.probing import describe

#: (T, B, lengths, reverse, with a state)
CALLS = (
    (5, 1, None, False, True),
    (3, 7, (3, 0, 2, 3, 1, 3, 2), False, True),
    (4, 7, None, True, False),
    (4, 6, (4, 1, 0, 2, 4, 3), True, True),
)


class Inner(nn.Module):
    """A cell whose state (B, n m) a step sees as (B, n, m), with weights to choose from."""

    def __init__(self, step, n=3, m=4):
        super().__init__()
        self.step, self.n, self.m, self.hidden_size = step, n, m, n * m
        self.W = nn.Linear(I, n * m)
        self.heads, self.turned = nn.Parameter(torch.randn(n, m, m) / 2), nn.Parameter(torch.randn(n, m, m) / 2)
        self.gates = nn.Parameter(torch.randn(n, m, 4 * m) / 2)
        self.last, self.wide = nn.Linear(m, m), nn.Linear(m, 2 * m + 1)
        self.mix = nn.Parameter(torch.randn(n, n) / 2)
        self.register_buffer("graph", torch.softmax(torch.randn(n, n), 1))
        self.pairs, self.widths = nn.Parameter(torch.randn(n, n)), nn.Parameter(torch.rand(n, n) + 0.5)
        self.query, self.score = nn.Linear(I, m), nn.Parameter(torch.randn(m))
        self.bilinear, self.norm = nn.Bilinear(n * m, I, n * m), nn.LayerNorm(m)
        self.squares = nn.Parameter(torch.randn(n * m, n, n) / 2)

    def forward(self, x, h):
        v, u = self.W(x).view(-1, self.n, self.m), h.view(-1, self.n, self.m)
        new = self.step(self, x, u, v)
        return torch.tanh(new.reshape(x.shape[0], -1)) + 0.5 * h


def lstm_of_heads(c, x, h, v):
    i, f, o, z = torch.einsum("bhd,hde->bhe", h, c.gates).chunk(4, 2)
    return torch.sigmoid(f) * h + torch.sigmoid(i) * torch.tanh(z + v) * torch.sigmoid(o)


def attention(c, x, h, v):
    """Additive attention over what the state remembers."""
    scores = torch.tanh(c.last(h) + c.query(x).unsqueeze(1)) @ c.score
    return v + torch.bmm(torch.softmax(scores, 1).unsqueeze(1), h)


def dot_product_attention(c, x, h, v):
    q, k = c.last(h), F.linear(h, c.last.weight)
    return torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ h + v


def liquid(c, x, h, v):
    """The synapses of a liquid time-constant cell: (B, n, n)."""
    potential = h[:, :, 0]
    active = torch.sigmoid(c.widths * (potential.unsqueeze(2) - c.pairs)) * c.mix
    return (active.sum(1) / (1 + active.abs().sum(2))).unsqueeze(2) + v


def mass_conserving(c, x, h, v):
    mass = h[:, :, 1]
    R = torch.softmax(F.relu(torch.einsum("bi,inm->bnm", h.flatten(1), c.squares)), -1)
    return torch.matmul(mass.unsqueeze(1), R).squeeze(1).unsqueeze(-1) + v


def gated_graph(c, x, h, v):
    r, z = torch.sigmoid(c.wide(c.graph @ h)[..., : 2 * c.m] + torch.cat([v, v], -1)).chunk(2, -1)
    return z * h + (1 - z) * torch.tanh(c.last(c.graph @ (r * h)) + v)


STEPS = {
    # Heads
    "einsum of heads": lambda c, x, h, v: torch.einsum("bhd,hde->bhe", h, c.heads) + v,
    "einsum of heads, transposed": lambda c, x, h, v: torch.einsum("bhd,hed->bhe", h, c.heads) + v,
    "einsum of heads in another order": lambda c, x, h, v: torch.einsum("hde,bhd->beh", c.heads, h).mT + v,
    "bmm of heads": lambda c, x, h, v: torch.bmm(h.transpose(0, 1), c.heads).transpose(0, 1) + v,
    "baddbmm of heads": lambda c, x, h, v: torch.baddbmm(
        v.transpose(0, 1), h.permute(1, 0, 2), c.heads, beta=0.5, alpha=2
    ).movedim(0, 1),
    "matmul of heads": lambda c, x, h, v: (h.unsqueeze(2) @ c.heads).squeeze(2) + v,
    "an LSTM of heads": lstm_of_heads,
    "all features by all": lambda c, x, h, v: torch.einsum("bhd,hdk->bk", h, c.gates).unsqueeze(1)[:, :, : c.m] + v,
    # Linear layers of the last dimension
    "Linear of the last dimension": lambda c, x, h, v: c.last(h) + v,
    "two Linears of the last dimension": lambda c, x, h, v: c.last(torch.tanh(c.wide(h)[..., 1 : c.m + 1])) + v,
    "matmul of the last dimension": lambda c, x, h, v: h @ c.turned[0] + v @ c.turned[1],
    "a Linear of four dimensions": lambda c, x, h, v: c.last(torch.stack([h, v], 1)).sum(1),
    "a LayerNorm of the last dimension": lambda c, x, h, v: c.norm(c.last(h) + v),
    # A matrix on the left
    "a graph": lambda c, x, h, v: c.graph @ h + v,
    "a graph that is learnt": lambda c, x, h, v: torch.matmul(c.mix, h) + v,
    "einsum of a graph": lambda c, x, h, v: torch.einsum("nm,bmf->bnf", c.mix, h) + v,
    "a graph on both sides": lambda c, x, h, v: c.mix @ (h @ c.turned[0]) @ c.turned[1] + v,
    "a gated graph": gated_graph,
    # Products of two values
    "weights times a memory": lambda c, x, h, v: torch.bmm(torch.softmax(h[:, :, 0], 1).unsqueeze(1), h) + v,
    "a memory times a query": lambda c, x, h, v: h @ c.query(x).unsqueeze(2) + v * h[:, :, :1],
    "einsum of rows": lambda c, x, h, v: torch.einsum("bsk,bk->bs", h, torch.tanh(h[:, 0])).unsqueeze(2) + v,
    "einsum of columns": lambda c, x, h, v: torch.einsum("bs,bsk->bk", torch.tanh(h[:, :, 0]), h).unsqueeze(1) + v,
    "an outer product": lambda c, x, h, v: torch.einsum("bs,bk->bsk", torch.tanh(h[:, :, 0]), h[:, 0]) + v,
    "a square of itself": lambda c, x, h, v: torch.softmax(h @ h.transpose(1, 2), 2) @ h + v,
    "three operands": lambda c, x, h, v: torch.einsum("bsk,bk,st->btk", h, torch.tanh(v[:, 0]), c.mix) + v,
    "baddbmm of values": lambda c, x, h, v: torch.baddbmm(v, torch.tanh(h @ h.mT), h, alpha=0.3),
    "a bilinear layer": lambda c, x, h, v: c.bilinear(h.flatten(1), x).view_as(h) + v,
    "attention": attention,
    "dot-product attention": dot_product_attention,
    "a mass-conserving step": mass_conserving,
    # Arithmetic
    "synapses": liquid,
    "a softmax of the middle dimension": lambda c, x, h, v: torch.softmax(h * 2, 1) + v,
    "the largest of the middle dimension": lambda c, x, h, v: h - h.amax(1, keepdim=True) * torch.sigmoid(v),
    "a norm of the middle dimension": lambda c, x, h, v: F.normalize(h + v, dim=1),
    "a logsumexp": lambda c, x, h, v: torch.logsumexp(h, 1, keepdim=True) * v,
    "a mask of pairs": lambda c, x, h, v: (
        torch.where(h[:, :, :1] > h[:, :, 1:2].mT, c.pairs, c.mix).sum(2, keepdim=True) + v
    ),
    "a mask transposed": lambda c, x, h, v: torch.where((h > 0).mT, h.mT, v.mT * 2).mT,
    # Moved numbers
    "transposed": lambda c, x, h, v: torch.tanh(h.transpose(1, 2) * 2).transpose(1, 2) + v,
    "transposed by the step": lambda c, x, h, v: h.transpose(1, 2).reshape(h.shape) + v,
    "every second": lambda c, x, h, v: torch.cat([h[:, :, ::2], h[:, :, 1::2]], 2) * h.flip(2) + v,
    "side by side": lambda c, x, h, v: torch.cat([h, v], 2)[:, :, 2 : c.m + 2] * torch.stack([h, v], 3)[..., 1],
    "taken apart and put together": lambda c, x, h, v: torch.stack([a * k for k, a in enumerate(h.unbind(2))], 2) + v,
    "windows": lambda c, x, h, v: (h.flatten(1)[:, 1:-1] + h.flatten(1)[:, :-2])[:, :1].unsqueeze(1) + v + h.roll(1, 2),
    "a transposed product": lambda c, x, h, v: (h.mT @ c.mix).mT * c.last(h.mT.reshape(h.shape)) + v,
}
#: Of which sizes: small ones with tails of vectors, and as many values as would have been refused.
SIZES = {"small": (3, 4), "odd": (10, 17), "large": (40, 40)}
#: What holds squares of squares is not made so large.
SMALL_ONLY = frozenset({"a mass-conserving step", "a bilinear layer", "taken apart and put together", "windows"})


def made(name, size="small", dtype=DOUBLE):
    torch.manual_seed(0)
    n, m = SIZES[size]
    cell = Inner(STEPS[name], n, m)
    if size != "small":
        with torch.no_grad():
            for weight in cell.parameters():
                weight.mul_(2 / m**0.5)
    return cell.to(dtype)


@pytest.mark.grid(2)
@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("name", STEPS)
def test_it_compiles_and_is_as_the_plain_loop(name, runs):
    for k, call in enumerate(CALLS):
        want = outcome("reference", made(name), call, DOUBLE)
        got = outcome("cpu", made(name), call, DOUBLE)
        assert runs
        assert_near(got, want, 1e-9)
        if k < 2:
            assert_exact(made(name), call, SINGLE)


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", [n for n in STEPS if n not in SMALL_ONLY])
def test_however_large_they_are_the_number_of_values_is_bounded(name):
    for size in ("odd", "large"):
        cell = made(name, size)
        derivative = derive(split(trace(cell, describe(cell, I), I)).program)
        most = 300 if size == "odd" and "heads" in name else 120  # 10 heads have a product each, 40 have one
        assert len(derivative.forward.nodes) + len(derivative.backward.nodes) < most


LARGE = [(name, "odd") for name in STEPS if name not in SMALL_ONLY and "heads" not in name] + [
    *((name, "large") for name in ("einsum of heads", "an LSTM of heads", "a gated graph", "dot-product attention")),
    *((name, "large") for name in ("attention", "synapses", "a logsumexp", "a transposed product", "three operands")),
]


@pytest.mark.grid(3)
@pytest.mark.parametrize(("name", "size"), LARGE)
def test_larger_ones_are_as_the_plain_loop(name, size):
    call = (3, 4, (3, 1, 2, 3), False, True)
    want = outcome("reference", made(name, size), call, DOUBLE)
    assert_near(outcome("cpu", made(name, size), call, DOUBLE), want, 1e-9)


@pytest.mark.parametrize("name", STEPS)
def test_the_text_is_read_back_and_another_backend_runs_it(name, monkeypatch):
    monkeypatch.setitem(select.ENGINES, "numpy", ENGINE)
    cell = made(name)
    derivative = derive(split(trace(cell, describe(cell, I), I)).program)
    for program in (derivative.forward, derivative.backward):
        assert str(parse(str(program))) == str(program)
    want = outcome("reference", made(name), CALLS[3], DOUBLE)
    assert_near(outcome("numpy", made(name), CALLS[3], DOUBLE), want, 1e-9)


@pytest.mark.parametrize("name", ["attention", "a gated graph", "synapses", "an LSTM of heads", "windows"])
def test_second_derivatives_are_those_of_the_plain_loop(name):
    results = []
    for engine in ("reference", "cpu"):
        values, leaves = run_by(engine, made(name), CALLS[1], DOUBLE)
        first = torch.autograd.grad(values[0].square().sum(), leaves, create_graph=True)
        results.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    assert_near(*results, 1e-9)


def test_a_gradient_that_nobody_wants_is_left_out():
    cell = made("a graph that is learnt")
    cell.mix.requires_grad_(False)
    twin = made("a graph that is learnt")
    twin.mix.requires_grad_(False)
    for _ in range(2):
        got = outcome_of_weights("cpu", cell)
        assert_near(got, outcome_of_weights("reference", twin), 1e-9)
        for each in (cell, twin):
            each.mix.requires_grad_(True)


def outcome_of_weights(engine, cell):
    values, leaves = run_by(engine, cell, CALLS[1], DOUBLE)
    weights = [p for p in cell.parameters() if p.requires_grad]
    return [
        g
        for g in torch.autograd.grad(values[0].square().sum(), [*leaves, *weights], allow_unused=True)
        if g is not None
    ]


def test_threads_share_the_rows():
    threads = torch.get_num_threads()
    try:
        for name in ("synapses", "attention", "a gated graph", "a graph that is learnt"):
            results = []
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(outcome("cpu", made(name, "large"), (20, 16, None, False, True), DOUBLE))
            assert_near(*results, 1e-9)
    finally:
        torch.set_num_threads(threads)


class Synapses(nn.Module):
    """Every neuron sees every other one, several times a step: of few neurons, many small pieces."""

    def __init__(self, neurons, unfolds):
        super().__init__()
        self.hidden_size, self.unfolds = neurons, unfolds
        self.mu, self.sigma = nn.Parameter(torch.rand(neurons, neurons)), nn.Parameter(torch.rand(neurons, neurons))
        self.W = nn.Linear(I, neurons)

    def forward(self, x, v):
        for _ in range(self.unfolds):
            open_ = torch.sigmoid(self.sigma * (v.unsqueeze(2) - self.mu))
            v = (self.W(x) + (open_ * self.mu).sum(1)) / (1.5 + open_.sum(1))
        return v


@pytest.mark.parametrize("neurons", [3, 5, 8, 9, 24])
def test_pieces_that_would_be_too_many_are_moved_together(neurons):
    torch.manual_seed(0)
    cell, call = Synapses(neurons, 6).double(), CALLS[3]
    layer = anyrnn.Recurrent(cell, I)
    assert anyrnn.explain(layer, torch.zeros(2, 3, I, dtype=DOUBLE)).parts[0].engine == "cpu"
    assert_near(outcome("cpu", cell, call, DOUBLE), outcome("reference", cell, call, DOUBLE), 1e-9)
