"""Types of numbers in the loop: what PyTorch's would make of it, or refused by the name of operation and type."""

import pytest
import torch
from compare import CALL, DOUBLE, SINGLE, H, assert_near, outcome, plain

import anyrnn

pytestmark = pytest.mark.usefixtures("runs")


def added(f):
    """A step that adds something of x and h."""
    return lambda c, x, h: torch.tanh(c.W(x) + f(c, x, h))


def number(f):
    """A step that adds something of the state that is no number of its type."""
    return lambda c, x, h: torch.tanh(c.W(x) + f(c, x, h).to(h.dtype) * 0.1 + 0.5 * h)


# What is compiled, in both types of numbers.
STEPS = {
    "true plus true": number(lambda c, x, h: (h > 0) + (h > -0.5)),
    "true plus true, summed": number(lambda c, x, h: ((h > 0) + (h > -0.5)).sum(1, keepdim=True)),
    "true plus True": number(lambda c, x, h: (h > 0) + True),
    "true times true": number(lambda c, x, h: (h > 0) * (h < 0.5)),
    "masks chosen by a mask, added": number(lambda c, x, h: torch.where(h > 0, h > 0.5, h < -0.5) + (h > 0.1)),
    "the larger one of masks, added": number(lambda c, x, h: torch.maximum(h > 0, h < -0.5) + (h > 0.1)),
    "masks side by side": number(lambda c, x, h: torch.cat([h > 0, h[:, :1] < 0.2], 1).sum(1, keepdim=True)),
    "a mask made of a number": number(lambda c, x, h: torch.full((H,), True) + (h > 0)),
    "a mask of nothing": lambda c, x, h: torch.where(torch.zeros_like(h > 0) | (h > 0), c.W(x), torch.tanh(h)),
    "masks that differ": lambda c, x, h: torch.where((h > 0) ^ (h < 0.3), c.W(x), torch.tanh(h)),
    "any of a mask": lambda c, x, h: torch.where((h > 0).any(1, keepdim=True), c.W(x), torch.tanh(h)),
    "a number as a mask": number(lambda c, x, h: h.bool()),
    "small integers": number(lambda c, x, h: (h > 0).long() * 3 - 1),
    "integers negated": number(lambda c, x, h: -(h > 0).long()),
    "integers without a sign": number(lambda c, x, h: (h > 0).to(torch.uint8) * 200),
    "integers counted": lambda c, x, h: torch.where((h > 0).sum(1, keepdim=True) > 1, c.W(x), torch.tanh(h)),
    "no integer": number(lambda c, x, h: torch.logical_not((h > 0).long())),
    "integers of a weight": added(lambda c, x, h: h * (c.order + 16777217) * 1e-8),
    "integers of x": added(lambda c, x, h: h * (x[:, :1] * 100).long() * 0.01),
    "integers made": added(lambda c, x, h: h * torch.full((H,), 3)),
    "a half that is a whole number": number(lambda c, x, h: (h > 0).half()),
    "a mask as a factor": added(lambda c, x, h: (h > 0).to(h.dtype) @ c.U.weight),
    "a number for the rest": added(lambda c, x, h: torch.where(h > 0, h, 1)),
    "a number of lower precision": added(lambda c, x, h: h * torch.full((), 0.1, dtype=torch.float32)),
    "numbers of lower precision": added(lambda c, x, h: h * torch.full((H,), 0.1, dtype=torch.float32)),
    "constants that round": added(lambda c, x, h: h * 1e6 * (h.new_ones(1) / 3 * 3 - 1 + h.new_ones(1) * 0.1 - 0.1)),
    "constants that round by a factor": added(lambda c, x, h: h * (torch.full_like(h, 0.1) * 3 - 0.3) * 1e7),
    "a lower bound above the upper one": added(lambda c, x, h: (h * 3).clamp(0.5, -0.5) * h),
    "tensors for bounds": added(lambda c, x, h: h.clamp(c.v, -c.v)),
    "minus zero plus zero": added(lambda c, x, h: torch.where(1 / (-h.abs() * 0 + 0) > 0, h, 1.0)),
    "minus zero minus zero": added(lambda c, x, h: torch.where(1 / (-h.abs() * 0 - 0.0) > 0, h, 1.0)),
    "two zeros": added(
        lambda c, x, h: (1 / h.new_full((H,), 0.0) > 0).to(h.dtype) * h + (1 / h.new_full((H,), -0.0) < 0).to(h.dtype)
    ),
    "not a number": added(lambda c, x, h: torch.where(torch.maximum(h * 0 / 0, h) == h, 1.0, h)),
    "a power of what is negative": added(lambda c, x, h: torch.where(h.detach() ** 0.37 >= 0, h, 1.0)),
    "nothing to the power of nothing": added(lambda c, x, h: (h * 0) ** 0 + (h.detach() * 0) ** (h.detach() * 0)),
    "a position": added(lambda c, x, h: h.argmax(1, keepdim=True) * 2 - (-h).argmin(1, keepdim=True)),
    "a position that comes with a value": added(lambda c, x, h: sum(h.max(1, keepdim=True)) - sum(h.min(1, True))),
    "a position times as much as is exact": number(lambda c, x, h: h.argmax(1, True) * 8388608 > 16777215),
    "a position compared": added(lambda c, x, h: torch.where(h.min(1, True).indices == h.argmax(1, True), 1, h)),
    "positions of positions": added(lambda c, x, h: torch.stack([h, c.W(x)], 2).argmax(2) * h),
    "half to even": added(lambda c, x, h: torch.round(h * 0 + 2.5) + torch.round(h * 0 - 0.5) + h),
}

UINT8, INT8 = torch.uint8, torch.int8

# What is not, and the operation and the type that the reason names.
REFUSED = {
    "integers without a sign below zero": (number(lambda c, x, h: (h > 0).to(UINT8) - 1), "sub.*uint8"),
    "integers that wrap around": (number(lambda c, x, h: (h > 0).to(UINT8) * 200 + 100), "add.*uint8"),
    "integers with a sign that wrap around": (number(lambda c, x, h: (h > 0).to(INT8) * 127 + (h > 0)), "add.*int8"),
    "integers without a sign negated": (number(lambda c, x, h: -(h > 0).to(UINT8)), "neg.*uint8"),
    "too large integers": (number(lambda c, x, h: (h > 0).long() * 16777217 - 16777216), "mul.*int64"),
    "too large integers compared": (number(lambda c, x, h: (h > 0).long() + 16777216 == 16777216), "add.*int64"),
    "integers divided": (number(lambda c, x, h: (h > 0).long() * -7 // 2), "floor_divide"),
    "integers divided and cut": (
        number(lambda c, x, h: torch.div((h > 0).long() * -7, 2, rounding_mode="trunc")),
        "div.*int64",
    ),
    "a power of integers": (number(lambda c, x, h: ((h > 0).long() * 3) ** 2), "pow.*int64"),
    "bits of integers": (number(lambda c, x, h: (h > 0).long() & (h < 0.3).long()), "bitwise_and.*int64"),
    "all bits of integers": (number(lambda c, x, h: ~(h > 0).long()), "bitwise_not.*int64"),
    "integers of a weight compared": (number(lambda c, x, h: (h > 0).sum(1, keepdim=True) > c.order), "gt.*int64"),
    "integers of a weight chosen": (
        number(lambda c, x, h: torch.where(h > 0, c.order + 16777216, 0) == 16777217),
        "eq.*int64",
    ),
    "integers of x added": (
        number(lambda c, x, h: (h > 0).to(UINT8) + (x[:, :1] * 100).long().to(UINT8)),
        "add.*uint8",
    ),
    "numbers cut to integers": (number(lambda c, x, h: (h * 3).int()), "_to_copy.*int32"),
    "half precision for a moment": (added(lambda c, x, h: h.half().to(h.dtype)), "_to_copy.*float16"),
    "bfloat16 for a moment": (added(lambda c, x, h: h.bfloat16().to(h.dtype)), "_to_copy.*bfloat16"),
    "the largest integer": (number(lambda c, x, h: (h > 0).long().max(1, keepdim=True).values), "max.*int64"),
    "a position times too much": (number(lambda c, x, h: h.argmax(1, True) * 8388609), "mul.*int64"),
}

# What is refused in one of the two types: PyTorch computes it in the other.
OTHER = {
    "double precision for a moment": (
        SINGLE,
        added(lambda c, x, h: (h.double() * 0.1).to(h.dtype)),
        "_to_copy.*float64",
    ),
    "single precision for a moment": (
        DOUBLE,
        added(lambda c, x, h: (h.float() * 0.1).to(h.dtype)),
        "_to_copy.*float32",
    ),
    "compared in double precision": (
        SINGLE,
        lambda c, x, h: torch.where(h > c.tensor, c.W(x), torch.tanh(h)),
        "gt.*float64",
    ),
    "a mask times a number": (DOUBLE, number(lambda c, x, h: (h > 0) * 0.3), "mul.*float32"),
    "integers divided": (DOUBLE, number(lambda c, x, h: (h > 0).long() * 7 / 3), "div.*float32"),
}


def assert_same(step, dtype, engine):
    want = outcome("reference", plain(step, dtype), CALL, dtype)
    assert_near(outcome(engine, plain(step, dtype), CALL, dtype), want, 1e-10 if dtype == DOUBLE else 2e-6)


@pytest.mark.grid(2)
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=["single", "double"])
@pytest.mark.parametrize("name", STEPS)
def test_a_type_is_computed_as_pytorch_does(name, dtype, runs):
    assert_same(STEPS[name], dtype, "cpu")
    assert runs


def assert_refused(step, dtype, reason, runs):
    with pytest.raises(anyrnn.AnyRNNError, match=reason):
        outcome("cpu", plain(step, dtype), CALL, dtype)
    assert_same(step, dtype, "auto")
    assert not runs


@pytest.mark.grid(2)
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=["single", "double"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_makes_a_difference_is_refused(name, dtype, runs):
    step, reason = REFUSED[name]
    assert_refused(step, dtype, reason, runs)


@pytest.mark.parametrize("name", OTHER)
def test_a_type_that_is_not_the_loops_is_refused(name, runs):
    dtype, step, reason = OTHER[name]
    assert_refused(step, dtype, reason, runs)
    other = DOUBLE if dtype == SINGLE else SINGLE
    assert_same(step, other, "cpu")
    assert runs
