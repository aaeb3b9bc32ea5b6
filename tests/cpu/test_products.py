"""Products in other words: what is a product with a matrix is one, and what is not is named with its cure."""

import pytest
import torch
from compare import CALL, CALLS, DOUBLE, SINGLE, assert_near, outcome, plain
from torch.nn import functional as F

import anyrnn
from anyrnn.runtime.gradients import _Place, _product

pytestmark = pytest.mark.usefixtures("runs")


def attention(c, x, h):
    """Over two parts of x, by a query of the state."""
    keys = c.W(torch.stack([x, 2 * x], 1))
    scores = torch.softmax((torch.tanh(c.U(h).unsqueeze(1) + keys) * c.v).sum(2), 1)
    return torch.tanh((scores.unsqueeze(2) * keys).sum(1) + h)


def both(c):
    return torch.cat([c.W.weight, c.U.weight], 1)


STEPS = {
    "einsum": lambda c, x, h: c.W(x) + torch.einsum("bi,ij->bj", h, c.U.weight),
    "einsum, transposed": lambda c, x, h: c.W(x) + torch.einsum("bi,ji->bj", h, c.U.weight),
    "einsum, the matrix first": lambda c, x, h: c.W(x) + torch.einsum("ji, bi -> bj", c.U.weight, h),
    "einsum with dots": lambda c, x, h: c.W(x) + torch.einsum("...i,ij->...j", h, c.U.weight),
    "einsum of x": lambda c, x, h: torch.einsum("bi,ji->bj", x, c.W.weight) + h,
    "einsum of both": lambda c, x, h: torch.einsum("bi,ji->bj", torch.cat([x, h], 1), both(c)),
    "sums of numbers and of products, added": lambda c, x, h: torch.tanh(
        c.W(x) + (torch.tanh(c.U(h)).sum(1, keepdim=True) + (h * h).sum(1, keepdim=True))
    ),
    "einsum number by number": lambda c, x, h: c.W(x) + torch.einsum("bi,i->bi", h, c.v),
    "a Linear on parts of x": attention,
    "einsum of parts": lambda c, x, h: torch.einsum(
        "bki,kio->bko", torch.stack([h, h], 1), torch.stack([c.U.weight] * 2)
    ).sum(1),
    "einsum of two values": lambda c, x, h: h * torch.einsum("bi,bi->b", h, h)[:, None],
    "bmm": lambda c, x, h: torch.bmm(h.unsqueeze(1), (h.unsqueeze(1) * h.unsqueeze(2))).squeeze(1),
    "a Linear on parts of the state": lambda c, x, h: c.U(torch.stack([h, h * 2], 1)).sum(1),
    "a matrix and a vector": lambda c, x, h: h * (h @ c.v).unsqueeze(1) + c.W(x) * torch.mv(h, c.v)[:, None],
}

REFUSED = {
    "a convolution": (
        lambda c, x, h: F.conv1d(h.unsqueeze(1), c.U.weight.unsqueeze(1), padding=1).sum(1),
        r"`aten.convolution` in the loop; convolve x before the loop, or write it as a product",
    ),
    "a product of rows by rows": (lambda c, x, h: (h @ h.T) @ h, "moves the batch .* keep it first"),
}


@pytest.mark.grid(2)
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=["double", "single"])
@pytest.mark.parametrize("name", STEPS)
def test_a_product_is_one(name, dtype, runs):
    def step(c, x, h):
        return torch.tanh(STEPS[name](c, x, h))

    for call in (CALL, CALLS[4]):
        want = outcome("reference", plain(step, dtype), call, dtype)
        assert_near(outcome("cpu", plain(step, dtype), call, dtype), want, 1e-10 if dtype == DOUBLE else 1e-5)
    assert runs


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_product_with_a_matrix_is_named(name, runs):
    step, reason = REFUSED[name]
    with pytest.raises(anyrnn.AnyRNNError, match=reason):
        outcome("cpu", plain(step), CALL, DOUBLE)
    want = outcome("reference", plain(step), CALL, DOUBLE)
    assert_near(outcome("auto", plain(step), CALL, DOUBLE), want, 1e-10)
    assert not runs


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=["single", "double"])
def test_a_product_that_is_large_enough_for_onednn_is_right_in_either_type(dtype):
    a, b = torch.randn(512, 64, dtype=dtype), torch.randn(64, 128, dtype=dtype)
    place = _Place(0, len(a), len(a), len(a))
    torch.testing.assert_close(_product(a, b, place), a @ b, rtol=1e-4, atol=1e-4)
