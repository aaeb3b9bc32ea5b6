"""Cells of all kinds on the cpu engine: right, or refused with the reason; and what changes between calls is seen."""

import math

import numpy as np
import pytest
import torch
from compare import CALL, DOUBLE, SINGLE, H, I, assert_exact, assert_near, outcome, plain
from torch import nn
from torch.nn import functional as F

import anyrnn
from zoo import gradients, loss_of

pytestmark = pytest.mark.usefixtures("runs")

# ---- Cells of all kinds: right by name, or refused with the reason and right by falling back -------------------------


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
    "batch norm that is fixed": lambda c, x, h: torch.tanh(
        c.W(F.batch_norm(x, c.norm.running_mean, c.norm.running_var)) + h
    ),
    "batch norm that is fixed by the step": lambda c, x, h: torch.tanh(c.W(c.norm.eval()(x)) + h),
    "a buffer that says how often": lambda c, x, h: torch.tanh(c.W(x).repeat_interleave(c.order, 1) + h),
    "a group norm in the loop": lambda c, x, h: torch.tanh(F.group_norm(c.W(x) + h, 1)),
    "a group norm before a product": lambda c, x, h: torch.tanh(c.W(F.group_norm(x, 1)) + h),
    "rows that meet in the input": lambda c, x, h: torch.tanh(c.W(x - x.mean(0)) + h),
    "rows that meet in a batch norm": lambda c, x, h: torch.tanh(c.W(x - F.instance_norm(x.T.unsqueeze(0))[0].T) + h),
    "a number of a tensor": lambda c, x, h: torch.tanh(c.W(x) + h * h.sum().item()),
    "control flow by a tensor": lambda c, x, h: torch.tanh(c.W(x) + h) if h.sum() > 0 else c.W(x),
    "a number by way of NumPy": lambda c, x, h: torch.tanh(c.W(x) + h * float(h.detach().numpy().mean())),
    "the number of rows as a number": lambda c, x, h: torch.tanh(c.W(x) + h / x.size(0)),
    "rows that meet": lambda c, x, h: torch.tanh(c.W(x) + h - h.mean(0)),
    "another operation": lambda c, x, h: torch.tanh(c.W(x) + h.median(1, keepdim=True).values),
    "features in order": lambda c, x, h: torch.tanh(c.W(x) + h.sort(1).values * c.v + h.argsort(1)[:, :1]),
    "the largest ones": lambda c, x, h: torch.tanh(c.W(x) + h * (h >= h.topk(2).values[:, -1:]) + h.topk(1).values),
    "which are the largest": lambda c, x, h: torch.tanh(c.W(x) + h.topk(1).indices),
    "features by number": lambda c, x, h: torch.tanh(c.W(x)[:, [2, 0, 1]] + h[:, [1, 1, 0]] * h[:, [0]]),
    "features by an array": lambda c, x, h: torch.tanh(c.W(x) + h[:, np.array([2, 0, 1])]),
    "features by a tensor made in the step": lambda c, x, h: torch.tanh(c.W(x) + h[:, torch.tensor([2, 0, 1])]),
    "features by a mask": lambda c, x, h: torch.tanh(c.W(x) + h[:, [True, False, True]].sum(1, keepdim=True)),
    "features by numbers made in the step": lambda c, x, h: torch.tanh(
        c.W(x) + h.index_select(1, torch.arange(H).flip(0))
    ),
    "features along the rows": lambda c, x, h: torch.tanh(
        c.W(x) + h.gather(1, torch.tensor([[2, 2, 0]]).expand(len(h), -1))
    ),
    "features along one row": lambda c, x, h: torch.tanh(c.W(x) + h.gather(1, torch.tensor([[2, 2, 0]]))),
    "features by a buffer": lambda c, x, h: torch.tanh(c.W(x) + h[:, c.order]),
    "features by the state": lambda c, x, h: torch.tanh(c.W(x) + h.gather(1, h.argmax(1, keepdim=True))),
    "a product of features": lambda c, x, h: torch.tanh(c.W(x) + h.prod(1, keepdim=True) + h.cumprod(1)),
    "other norms": lambda c, x, h: torch.tanh(
        c.W(x) + F.normalize(h, p=1, dim=1) + h.norm(math.inf, dim=1, keepdim=True) + h.norm(3, dim=1, keepdim=True)
    ),
    "hyperbolic functions": lambda c, x, h: torch.tanh(
        c.W(x) + h.sinh() * 0.3 + h.cosh() * 0.3 + h.asinh() + (1.5 + h * h).acosh() + (h / 8).atanh() + (h / 8).asin()
    ),
    "features beside numbers": lambda c, x, h: torch.tanh(c.W(x) + F.pad(h[:, 1:], (1, 0), value=0.5)),
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
    "a number of a tensor": "a Python number is taken from a tensor",
    "control flow by a tensor": "a Python number is taken from a tensor",
    "a number by way of NumPy": "uses `Tensor.numpy`",
    "the number of rows as a number": "differs? between two runs",
    "rows that meet": "`aten.mean` in the loop",
    "another operation": "`aten.median` in the loop",
    "which are the largest": "`aten.topk.default` in the loop, which of equal numbers gives any",
    "features along one row": r"`aten.gather.default` in the loop in this form, with a result \(1, 3\)",
    "features by a buffer": "in the loop takes features by numbers of `order`, which may be others in the next call",
    "features by the state": "in the loop takes features by numbers of x or the state",
    "a matrix that depends on the state": "the batch is not the first dimension",
    "below no_grad": "no_grad",
    "an attribute stored": "changes the attribute `last`",
    "steps counted": "changes the attribute `count`",
    "a list that grows": "changes the attribute `numbers`",
    "a buffer replaced": "in the place of a weight or buffer",
    "a buffer changed in place": "changes a weight or buffer",
    "a view of a buffer changed": "changes a weight or buffer",
    "batch norm that is fixed by the step": "changes the attribute `norm.training`",
    "batch norm in training": "changes the running statistics",
}


@pytest.mark.grid(2)
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


def test_a_method_of_its_class_that_is_replaced_is_seen(monkeypatch):
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + h))
    before = outcome("cpu", cell, CALL, DOUBLE)
    monkeypatch.setattr(type(cell), "forward", lambda self, x, h: torch.sigmoid(self.W(x) - h))
    after = outcome("cpu", cell, CALL, DOUBLE)
    assert_near(after, outcome("reference", cell, CALL, DOUBLE), 1e-10)
    monkeypatch.undo()
    assert_near(outcome("cpu", cell, CALL, DOUBLE), before, 0)
    assert not torch.equal(before[0], after[0])


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
