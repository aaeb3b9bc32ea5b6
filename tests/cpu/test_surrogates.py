"""Functions with a gradient of their own on the input and the state: the compiled loop has it, everywhere and twice."""

import math

import pytest
import torch
from compare import CALL, CALLS, DOUBLE, SINGLE, H, I, assert_exact, assert_near, outcome, plain
from torch.autograd import Function

import anyrnn
from anyrnn.compiler.graph_text import parse_graph, written
from anyrnn.compiler.split import split
from anyrnn.compiler.trace import trace
from anyrnn.runtime.loop import Loop

pytestmark = pytest.mark.usefixtures("runs")

STEEPNESS = 10.0


class FastSigmoid(Function):
    """Saves its argument, and keeps a number."""

    @staticmethod
    def forward(ctx, v, slope=25.0):
        ctx.save_for_backward(v)
        ctx.slope = slope
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return grad.clone() / (ctx.slope * torch.abs(v) + 1.0) ** 2, None


class Arctan(Function):
    """Changes in place what it computes."""

    @staticmethod
    def forward(ctx, v, alpha):
        ctx.save_for_backward(v)
        ctx.alpha = alpha
        return torch.heaviside(v, torch.ones_like(v))

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return ctx.alpha / 2 / (1 + (math.pi / 2 * ctx.alpha * v).pow_(2)) * grad, None


class Sigmoid(Function):
    """Saves what it computes on the way; written in two parts."""

    @staticmethod
    def forward(v, alpha):
        return (v >= 0).to(v)

    @staticmethod
    def setup_context(ctx, inputs, output):
        v, alpha = inputs
        ctx.save_for_backward(torch.sigmoid(alpha * v))
        ctx.alpha = alpha

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * ctx.alpha * y * (1 - y), None


class Round(Function):
    """Straight through."""

    @staticmethod
    def forward(ctx, v):
        return v.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Reversed(Function):
    @staticmethod
    def forward(ctx, v, scale):
        ctx.scale = scale
        return v.view_as(v)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.scale * grad, None


class Squashed(Function):
    """Its gradient is the true one, by its result."""

    @staticmethod
    def forward(ctx, v):
        y = torch.tanh(v)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class Product(Function):
    """Of two arguments, with gradients that are not the product's; and a third without one."""

    @staticmethod
    def forward(ctx, a, b, mask):
        ctx.a, ctx.b = a, b
        ctx.mark_non_differentiable(mask)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.cos(ctx.b), grad * ctx.a.abs(), None


class Scaled(Function):
    """Reads a global variable in its backward."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return torch.sign(v)

    @staticmethod
    def backward(ctx, grad):
        return grad / (1 + STEEPNESS * ctx.saved_tensors[0].abs())


spike = anyrnn.elementwise(lambda v: v > 0, lambda v: 1 / (1 + 10 * v.abs()) ** 2)
bound = FastSigmoid.apply


def two(a, b):
    class Two(Product):
        @staticmethod
        def forward(ctx, a, b):
            ctx.a, ctx.b = a, b
            return a * b

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.cos(ctx.b), grad * ctx.a.abs()

    return Two.apply(a, b)


STEPS = {
    "a fast sigmoid": lambda c, x, h: c.W(x) + c.U(h) * FastSigmoid.apply(h - 0.1),
    "with a number": lambda c, x, h: c.W(x) + c.U(h) * FastSigmoid.apply(h, 5.0),
    "with a number of the cell's": lambda c, x, h: c.W(x) + c.U(h) * Arctan.apply(h - c.v, c.alpha),
    "in two parts": lambda c, x, h: torch.tanh(c.W(x) + c.U(Sigmoid.apply(h, 4.0))),
    "straight through": lambda c, x, h: torch.tanh(c.W(x) + 0.3 * Round.apply(c.U(h) * 3)),
    "a gradient reversed": lambda c, x, h: torch.tanh(c.W(x) + Reversed.apply(c.U(h), 0.5)),
    "by its result": lambda c, x, h: Squashed.apply(c.W(x) + c.U(h)),
    "of two arguments": lambda c, x, h: torch.tanh(c.W(x) + two(c.U(h), h)),
    "of one argument twice": lambda c, x, h: torch.tanh(c.W(x) + two(h, h)),
    "of the input": lambda c, x, h: torch.tanh(c.U(h) + c.W(FastSigmoid.apply(x, 2.0))),
    "of the input and the state": lambda c, x, h: torch.tanh(two(c.W(x), c.U(h))),
    "of the output alone": lambda c, x, h: (FastSigmoid.apply(c.U(h) + x[:, :1], 2.0), torch.tanh(c.W(x) + c.U(h))),
    "of weights, with functions": lambda c, x, h: torch.tanh(c.W(x) + h * spike(c.v)),
    "bound before": lambda c, x, h: c.W(x) + c.U(h) * bound(h),
    "elementwise": lambda c, x, h: c.W(x) + c.U(h) * spike(h - 0.1),
    "one within another": lambda c, x, h: c.W(x) + c.U(h) * spike(FastSigmoid.apply(h, 3.0) - 0.5),
    "in three dimensions": lambda c, x, h: c.W(x) + c.U(h) * spike(h.view(-1, 1, H)).flatten(1),
}  # fmt: skip


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", STEPS)
def test_a_gradient_is_the_functions_own(name, runs):
    for call in CALLS:
        assert_exact(plain(STEPS[name]), call, DOUBLE)
    assert_exact(plain(STEPS[name]), CALL, SINGLE)
    assert runs


class Spiking(torch.nn.Module):
    """Leaky neurons that integrate, fire and are reset, with recurrence."""

    def __init__(self, spike):
        super().__init__()
        self.spike, self.beta, self.state_sizes = spike, 0.9, (H, H)
        self.W, self.U = torch.nn.Linear(I, H), torch.nn.Linear(H, H, bias=False)

    def forward(self, x, state):
        v, s = state
        v = self.beta * v * (1 - s.detach()) + self.W(x) + self.U(s)
        return self.spike(v - 0.5), (v, self.spike(v - 0.5))


def spiking(spike):
    torch.manual_seed(1)
    return Spiking(spike).to(DOUBLE)


SPIKES = {"a function": lambda v: FastSigmoid.apply(v, 5.0), "elementwise": spike, "bound": bound}


@pytest.mark.parametrize("name", SPIKES)
def test_spiking_neurons(name, runs):
    for call in CALLS:
        assert_exact(spiking(SPIKES[name]), call, DOUBLE)
    assert runs


def test_a_slope_costs_nothing_where_there_is_no_gradient():
    cell = spiking(spike)
    graph = trace(cell, anyrnn.probing.describe(cell, I), I, DOUBLE)
    loop = Loop(split(graph).program)
    assert "surrogate(" in str(loop.program)
    inference = {node.op for node in loop.settled("inference").nodes}
    assert inference.isdisjoint({"surrogate", "abs", "div", "reciprocal"})
    assert {node.op for node in loop.derivative.backward.nodes}.isdisjoint({"surrogate"})


@pytest.mark.parametrize("name", STEPS)
def test_a_step_can_be_written_down(name):
    cell = plain(STEPS[name])
    graph = trace(cell, anyrnn.probing.describe(cell, I), I, DOUBLE)
    text = written(graph)
    assert "anyrnn.surrogate.default(" in text
    assert written(parse_graph(text)) == text


@pytest.mark.parametrize("name", ["by its result", "elementwise", "in two parts", "straight through"])
def test_a_second_derivative_is_that_of_the_backward_pass(name):
    found = []
    for engine in ("reference", "cpu"):
        torch.manual_seed(3)
        cell, x = plain(STEPS[name]), torch.randn(4, 3, I, dtype=DOUBLE, requires_grad=True)
        with anyrnn.engine(engine):
            output, _ = anyrnn.scan(cell, x)
            grads = torch.autograd.grad(output.sin().sum(), [x, cell.U.weight], create_graph=True)
        found.append([*grads, *torch.autograd.grad(sum(g.cos().sum() for g in grads), [x, cell.U.weight])])
    assert_near(*found[::-1], 1e-10)


def test_what_a_backward_pass_reads_is_seen_when_it_changes(monkeypatch):
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h) * Scaled.apply(h)))
    before = outcome("cpu", cell, CALL, DOUBLE)
    monkeypatch.setitem(globals(), "STEEPNESS", 1.0)
    after = outcome("cpu", cell, CALL, DOUBLE)
    assert_near(after, outcome("reference", cell, CALL, DOUBLE), 1e-10)
    assert not all(map(torch.equal, before, after))


def test_what_elementwise_is_given_is_seen_when_it_changes():
    numbers = {"k": 10.0}
    f = anyrnn.elementwise(torch.sign, lambda v: 1 / (1 + numbers["k"] * v.abs()))
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h) * f(h)))
    before = outcome("cpu", cell, CALL, DOUBLE)
    numbers["k"] = 1.0
    after = outcome("cpu", cell, CALL, DOUBLE)
    assert_near(after, outcome("reference", cell, CALL, DOUBLE), 1e-10)
    assert not all(map(torch.equal, before, after))


def test_elementwise_without_a_cell():
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=DOUBLE, requires_grad=True)
    y = anyrnn.elementwise(lambda v: v > 0, lambda v: v * v + 1)(x)
    assert y.tolist() == [0, 0, 1]
    assert y.dtype == DOUBLE
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert grad.tolist() == [2, 1, 5]
    assert torch.autograd.grad(grad.sum(), x)[0].tolist() == [-2, 0, 4]
    square = anyrnn.elementwise(lambda v: v * v, lambda v: 2 * v)
    assert torch.autograd.gradcheck(square, x)
    assert torch.autograd.gradgradcheck(square, x)
    with torch.no_grad():
        assert not square(x).requires_grad


class Clipped(Round):
    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-1, 1)


class Meeting(Round):
    @staticmethod
    def backward(ctx, grad):
        return grad - grad.mean()


class Sum(Round):
    @staticmethod
    def forward(ctx, v):
        return v.sum(1, keepdim=True)

    @staticmethod
    def backward(ctx, grad):
        return grad.expand(-1, H)


class Both(Round):
    @staticmethod
    def forward(ctx, v):
        return v + 1, v + 2

    @staticmethod
    def backward(ctx, first, second):
        return first + second


class Single(Round):
    @staticmethod
    def forward(ctx, v):
        return (v > 0).float()


class Noisy(Round):
    @staticmethod
    def backward(ctx, grad):
        return grad * torch.rand_like(grad)


class Changing(Round):
    @staticmethod
    def forward(ctx, v):
        ctx.mark_dirty(v)
        return v.mul_(2)


class Silent(Round):
    @staticmethod
    def backward(ctx, grad):
        with torch.no_grad():
            return grad * 2


REFUSED = {
    Clipped: "has a gradient that is not the incoming one times a number for each number",
    Meeting: "has a gradient that is not the incoming one times a number for each number",
    Sum: r"makes \(\d+, 1\) of \(\d+, 3\)",
    Both: "gives other things than one tensor",
    Single: "makes torch.float32 of torch.float64",
    Noisy: "random",
    Changing: "fails as ordinary code",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_another_gradient_is_refused_and_runs_plain(function, runs):
    def step(c, x, h):
        made = function.apply(c.U(h))
        return torch.tanh(c.W(x) + (made[0] + made[1] if isinstance(made, tuple) else made).to(h.dtype))

    want = outcome("reference", plain(step), CALL, DOUBLE)
    with pytest.raises(anyrnn.AnyRNNError, match=f"`{function.__name__}`.*{REFUSED[function]}"):
        outcome("cpu", plain(step), CALL, DOUBLE)
    got = outcome("auto", plain(step), CALL, DOUBLE)
    assert not runs
    if function is not Noisy:
        assert_near(got, want, 1e-10)
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)
