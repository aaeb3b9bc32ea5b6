"""A tensor has no gradient exactly where PyTorch's autograd finds none; a zero is a gradient."""

import copy

import pytest
import torch
from compare import DOUBLE, H, I, Plain, assert_near, plain
from torch import nn

import anyrnn
from zoo import flat

pytestmark = pytest.mark.usefixtures("runs")


def swapped(c, x, state):
    a, b = state
    return b, (torch.tanh(c.U(b) + c.W(x)), a * c.s)


STEPS = {
    "a comparison alone": lambda c, x, h: torch.where(c.U(h) > 0, c.W(x), torch.tanh(h)),
    "a comparison with x": lambda c, x, h: torch.where(c.W(x) > 0, c.U(h), torch.tanh(h)),
    "a comparison with a vector": lambda c, x, h: torch.tanh(torch.where(h > c.v, c.U(h), h)),
    "a comparison of what is made of a vector": lambda c, x, h: torch.tanh(h * (h > torch.sigmoid(c.v)).to(h.dtype)),
    "some paths lead through a comparison": lambda c, x, h: torch.where(c.U(h) > 0, c.W(x), torch.tanh(c.U(h) * c.v)),
    "comparisons joined": lambda c, x, h: torch.where((h > c.v) & (x.sum(1, keepdim=True) < c.s), c.U(h), h),
    "a detached product": lambda c, x, h: torch.tanh(c.U(h).detach() + c.W(x) + h),
    "a detached state": lambda c, x, h: torch.tanh(c.U(h.detach()) + c.W(x)),
    "rounded": lambda c, x, h: torch.tanh(c.U(h)) + torch.round(c.W(x)) + torch.sign(h) * 0.1,
    "only rounded": lambda c, x, h: torch.floor(c.U(h) * 3) + torch.ceil(x.sum(1, keepdim=True)),
    "times nothing": lambda c, x, h: torch.tanh(c.U(h)) + 0 * c.W(x) + c.v**0,
    "the state not read": lambda c, x, h: torch.tanh(c.W(x)) + c.v,
    "the state counted": lambda c, x, h: torch.tanh(c.W(x)) * (h > 0).sum(1, keepdim=True),
    "an output of its own": lambda c, x, h: (c.W(x) * h, torch.tanh(c.U(h))),
    "an output that the state does not need": lambda c, x, h: ((h > 0).to(h.dtype) * c.W(x), torch.tanh(c.U(h))),
    "two states that change places": swapped,
    "a state that is passed on": lambda c, x, h: (torch.tanh(c.U(h) + c.W(x)), h),
    "only the bound of a clamp": lambda c, x, h: torch.clamp(c.W(x).detach(), -c.v.abs() - 1, c.v.abs()) + 0.1 * h,
}
LOSSES = {
    "the output": lambda output, finals: output.sin().sum(),
    "the final state": lambda output, finals: finals[-1].sin().sum(),
    "the first state": lambda output, finals: finals[0].sin().sum(),
    "both": lambda output, finals: output.sin().sum() + sum(f.cos().sum() for f in finals),
}


def found(engine, cell, loss, T, lengths, create_graph):
    generator = torch.Generator().manual_seed(3)
    signature = anyrnn.probing.describe(cell, I)
    x = torch.randn(T, 3, I, generator=generator, dtype=DOUBLE).requires_grad_()
    states = [torch.randn(3, H, generator=generator, dtype=DOUBLE).requires_grad_() for _ in signature.state_sizes]
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, signature.wrap(tuple(states)), lengths=lengths)
    value = loss(output, flat(final))
    leaves = [x, *states, *cell.parameters()]
    if not value.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(value, leaves, allow_unused=True, create_graph=create_graph)


@pytest.mark.grid(2)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", STEPS)
def test_there_is_a_gradient_where_pytorch_has_one(name, loss, runs):
    cell = plain(STEPS[name])
    for T, lengths in ((1, None), (2, None), (5, None), (5, (5, 2, 0)), (2, (1, 1, 1))):
        for create_graph in (False, True):
            want = found("reference", cell, LOSSES[loss], T, lengths, create_graph)
            got = found("cpu", cell, LOSSES[loss], T, lengths, create_graph)
            assert [g is None for g in got] == [g is None for g in want], (T, lengths, create_graph)
            assert_near([g for g in got if g is not None], [g for g in want if g is not None], 1e-10)
    assert runs


@pytest.mark.parametrize("T", [1, 2, 3, 4, 7, 8])
def test_a_final_state_asks_for_a_gradient_where_pytorchs_does(T):
    """States that change places: which initial state a final one hangs on goes with the parity of T."""
    cell = plain(swapped)
    signature = anyrnn.probing.describe(cell, I)
    x = torch.randn(T, 3, I, dtype=DOUBLE)
    for parameter in cell.parameters():
        parameter.requires_grad_(False)
    for leaf in range(len(signature.state_sizes)):
        asks = []
        for engine in ("reference", "cpu"):
            states = [torch.randn(3, H, dtype=DOUBLE) for _ in signature.state_sizes]
            states[leaf].requires_grad_()
            with anyrnn.engine(engine):
                output, final = anyrnn.scan(cell, x, signature.wrap(tuple(states)))
            asks.append([t.requires_grad for t in (output, *flat(final))])
        assert asks[0] == asks[1]


def test_weight_decay_leaves_a_weight_alone_that_has_no_gradient():
    torch.manual_seed(1)
    cell = Plain(STEPS["a comparison alone"]).double()
    x = torch.randn(4, 3, I, dtype=DOUBLE)
    moved = []
    for engine in ("reference", "cpu"):
        layer = anyrnn.Recurrent(copy.deepcopy(cell), input_size=I)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
        with anyrnn.engine(engine):
            layer(x)[0].sum().backward()
        optimizer.step()
        moved.append([p.detach() for p in layer.parameters()])
        assert torch.equal(layer.cell().U.weight, cell.U.weight)
        assert not torch.equal(layer.cell().W.weight, cell.W.weight)
    assert_near(moved[1], moved[0], 1e-10)


def test_where_nothing_that_is_asked_for_has_a_gradient_there_is_none():
    cell = plain(lambda c, x, h: torch.where(h > c.v, torch.tanh(c.W(x)), h))
    nn.Module.requires_grad_(cell, False)
    cell.v.requires_grad_(True)
    x = torch.randn(3, 2, I, dtype=DOUBLE)
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            output, _ = anyrnn.scan(cell, x)
        assert not output.requires_grad


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", [*STEPS, "a state that comparisons alone lead to"])
def test_a_result_has_a_graph_where_the_loops_has_one(name, steps):
    step = STEPS.get(name, lambda c, x, h: (torch.tanh(h) > 0).any(1, keepdim=True).expand(-1, H).to(h.dtype))
    cell, x = plain(step), torch.randn(steps, 2, I, dtype=DOUBLE)
    cell.state_sizes = (H, H) if step is swapped else H
    graphs = []
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            output, final = anyrnn.scan(cell, x.clone().requires_grad_(steps == 3))
        graphs.append([t.requires_grad for t in (output, *flat(final))])
    assert graphs[1] == graphs[0]
