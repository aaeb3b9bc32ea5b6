"""What depends on weights alone may be any operation of PyTorch's, and any function with its own gradient."""

import pytest
import torch
from compare import CALL, CALLS, DOUBLE, H, I, assert_near, outcome, plain

import anyrnn

pytestmark = pytest.mark.usefixtures("runs")


class Exponential(torch.autograd.Function):
    """With twice its gradient, so that it shows whose it is."""

    @staticmethod
    def forward(ctx, a, scale):
        result = torch.matrix_exp(a) * scale
        ctx.save_for_backward(result)
        return result, result.sum()

    @staticmethod
    def backward(ctx, grad, grad_sum):
        (result,) = ctx.saved_tensors
        return 2 * grad * result + grad_sum, None


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        v.mul_(0.5)
        return v.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Drawn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        return v + torch.rand_like(v)

    @staticmethod
    def backward(ctx, grad):
        return grad


def straightened(c):
    """A matrix that is regular."""
    return c.U.weight + 3 * torch.eye(H, dtype=c.U.weight.dtype)


def unit(v):
    with torch.no_grad():
        return v / v.norm()


STEPS = {
    "a solution": lambda c, x, h: h @ torch.linalg.solve(straightened(c), c.U.weight),
    "an inverse": lambda c, x, h: h @ torch.linalg.inv(straightened(c)),
    "a factor": lambda c, x, h: h @ torch.linalg.cholesky(straightened(c) @ straightened(c).T),
    "an orthogonal matrix": lambda c, x, h: h @ torch.linalg.qr(c.U.weight)[0],
    "eigenvalues": lambda c, x, h: h * torch.linalg.eigvalsh(c.U.weight @ c.U.weight.T),
    "an exponential map": lambda c, x, h: h @ torch.matrix_exp(c.U.weight - c.U.weight.T),
    "a function with its own gradient": lambda c, x, h: h @ Exponential.apply(c.U.weight, 0.5)[0],
    "both of its results": lambda c, x, h: h @ (e := Exponential.apply(c.U.weight, 0.5))[0] + 0.01 * e[1] * c.v,
    "a function of what is computed": lambda c, x, h: h @ Exponential.apply(c.U.weight - c.U.weight.T, 0.25)[0].tanh(),
    "below no_grad": lambda c, x, h: h * unit(c.v) + c.v,
}


@pytest.mark.parametrize("name", STEPS)
def test_any_operation_on_weights(name, runs):
    def step(c, x, h):
        return torch.tanh(c.W(x) + STEPS[name](c, x, h))

    for call in CALLS[2:4]:
        want = outcome("reference", plain(step), call, DOUBLE)
        assert_near(outcome("cpu", plain(step), call, DOUBLE), want, 1e-10)
    assert runs


def test_a_matrix_that_has_no_inverse_is_told():
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + h @ torch.linalg.inv(c.U.weight)))
    layer, x = anyrnn.Recurrent(cell, input_size=I), torch.randn(3, 2, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"):
        layer(x)
    torch.nn.init.zeros_(cell.U.weight)
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine), pytest.raises(torch.linalg.LinAlgError, match=r"inv.*: .* is singular"):
            layer(x)


REFUSED = {
    "of the state": (
        lambda c, x, h: h @ c.U.weight + Exponential.apply(h.T @ h, 0.1)[0].sum(),
        "`Exponential`.*gives other things than one tensor",
    ),
    "that changes a weight": (lambda c, x, h: h * Halved.apply(c.running), "`Halved`.* changes"),
    "that draws": (lambda c, x, h: h * Drawn.apply(c.v), "`Drawn`.* random"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_is_refused(name):
    step, reason = REFUSED[name]
    with pytest.raises(anyrnn.AnyRNNError, match=reason):
        outcome("cpu", plain(step), CALL, DOUBLE)
    assert "__getattribute__" not in vars(type(torch.autograd.Function))
