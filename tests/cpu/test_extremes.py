"""Functions and activations at extreme arguments: value and gradient as the reference has them, NaN where it has NaN.

A formula may overflow in the branch that is not taken, or round away what is small. So the arguments are large, tiny,
subnormal, both zeros, at the kinks of each activation and at the ends of the exponential function.
"""

import inspect
import math
import warnings

import pytest
import torch
from compare import DOUBLE, SINGLE
from torch import nn
from torch.nn import functional as F

import anyrnn
from anyrnn.compiler.split import split
from anyrnn.compiler.trace import trace
from anyrnn.errors import AnyRNNError

pytestmark = pytest.mark.usefixtures("runs")

I = 4
#: In float64, and what of it float32 can hold in float32.
POINTS = [0.0, 1e-30, 1e-40, 0.044, 0.1, 0.5, 0.7, 1.0, 1.7, 2.4, 2.999, 3.0, 6.0, 9.3, 15.2, 20.0, 20.1, 30.0]
POINTS += [80.0, 88.0, 88.7, 88.8, 100.0, 104.5, 1e4, 1e19, 1e30, math.inf, math.nan]
POINTS += [700.0, 709.7, 710.0, 746.0, 1e154, 1e300, 1e-300, 5e-324]
POINTS += [-p for p in POINTS]

#: What is no function of x alone.
RANDOM = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "alpha_dropout", "gumbel_softmax"}
RANDOM |= {"feature_dropout", "rrelu"}


def activations():
    """Every function of torch.nn.functional that makes numbers (B, I) of numbers (B, I)."""
    found = {}
    x = torch.randn(3, I)
    for name in sorted(set(dir(F)) - RANDOM):
        function = getattr(F, name)
        if name.startswith("_") or name.endswith("_") or not callable(function) or inspect.isclass(function):
            continue
        options = {"dim": 1} if name in ("softmax", "log_softmax", "softmin") else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                y = function(x, **options)
        except Exception:  # noqa: BLE001 - it wants other arguments, and is no activation
            continue
        if isinstance(y, torch.Tensor) and y.shape == x.shape and y.is_floating_point():
            found[name] = lambda x, f=function, o=options: f(x, **o)
    return found


def with_settings():
    """Those with other settings, and those that want more than one argument."""
    return {
        "elu 0.3": lambda x: F.elu(x, 0.3),
        "celu 0.3": lambda x: F.celu(x, 0.3),
        "softplus, steep and late": lambda x: F.softplus(x, 2, 1000),
        "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
        "hardtanh -2 3": lambda x: F.hardtanh(x, -2, 3),
        "threshold": lambda x: F.threshold(x, 0.5, -2),
        "prelu": lambda x: F.prelu(x, x.new_full((1,), 0.25)),
        "glu": lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1),
        "clamp": lambda x: x.clamp(-1, 1),
        "clamp, bounds turned": lambda x: x.clamp(1, -1),
        "clamp by tensors": lambda x: torch.clamp(x, x.flip(1), x * 2),
        "the larger one": lambda x: torch.maximum(x, x.flip(1)),
        "the smaller one": lambda x: torch.minimum(x, x * 2),
        "clamp_min": lambda x: x.clamp(min=0.5),
        "clamp_max": lambda x: x.clamp(max=0.5),
        "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
        "lerp to the middle": lambda x: torch.lerp(x, x.flip(1), 0.5),
        "lerp by a tensor": lambda x: torch.lerp(x, torch.ones_like(x), x.sigmoid()),
        "one less": lambda x: 1 - x,
        "divided by nothing": lambda x: x / 0.0,
        "nothing divided": lambda x: 0.0 / x,
        "one over one more than nothing": lambda x: 1 / (x + 0),
        "one over one less than nothing": lambda x: 1 / (x - 0.0),
        "exp where small": lambda x: torch.where(x > 88, x, torch.exp(x)),
        "atan2": lambda x: torch.atan2(x, x.flip(1)),
        "atan2 of a number": lambda x: torch.atan2(x, torch.full_like(x, -1.0)),
        "addcmul": lambda x: torch.addcmul(x, x, x, value=1e-30),
        "amax": lambda x: x + x.amax(1, keepdim=True),
        "mean": lambda x: x + x.mean(1, keepdim=True),
    } | {f"power {p}": (lambda x, p=p: x**p) for p in (0, 1, 2, 3, 4, 5, 0.5, -0.5, -1, -2, -3, 1.5, 2.5, -1.7)}


def elementary():
    names = "abs exp exp2 expm1 log log2 log1p tanh sigmoid sqrt rsqrt reciprocal sin cos tan atan erf"
    names += " floor ceil round trunc sign sgn neg square"
    return {name: getattr(torch, name) for name in names.split()}


class Side(nn.Module):
    """Functions side by side, each of x and of its own part of the state."""

    def __init__(self, functions):
        super().__init__()
        self.hidden_size, self.functions = I * len(functions), functions

    def forward(self, x, h):
        parts = h.split(I, 1)
        return torch.cat([f(x + part) for f, part in zip(self.functions, parts, strict=True)], 1)


def outcome(engine, functions, x):
    """What the functions give, and their gradients, each by the number of the function."""
    x = x.unsqueeze(0).requires_grad_()
    h = torch.zeros(x.shape[1], I * len(functions), dtype=x.dtype, requires_grad=True)
    with anyrnn.engine(engine):
        y, _ = anyrnn.scan(Side(functions), x, h * 1)
    grad = torch.linspace(-1.5, 1.3, y.numel(), dtype=y.dtype).view_as(y)
    (dh,) = torch.autograd.grad(y, h, grad)
    return [[t[..., I * k : I * (k + 1)] for t in (y.detach()[0], dh)] for k in range(len(functions))]


def is_compiled(function):
    cell = Side([function])
    try:
        split(trace(cell, anyrnn.probing.describe(cell, I), I))
    except AnyRNNError:
        return False
    return True


ALL = activations() | with_settings() | elementary()
GROUP = 6
GROUPS = [list(ALL)[k : k + GROUP] for k in range(0, len(ALL), GROUP)]


def test_no_activation_is_missing():
    wanted = "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish normalize"
    wanted += " relu relu6 selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink"
    assert set(wanted.split()) <= set(activations())
    assert [name for name in ALL if not is_compiled(ALL[name])] == []


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=["single", "double"])
@pytest.mark.parametrize("names", GROUPS, ids=" ".join)
def test_a_function_is_right_at_extreme_arguments(names, dtype, runs):
    points = torch.tensor(POINTS, dtype=DOUBLE).to(dtype)
    x = torch.cat([points[:, None].expand(-1, I), torch.stack([points.roll(k) for k in (0, 3, 11, 29)], 1)])
    functions = [ALL[name] for name in names]
    got, want = outcome("cpu", functions, x), outcome("reference", functions, x)
    assert runs
    for name, results, expected in zip(names, got, want, strict=True):
        # PyTorch's own gradient of it uses a sixth in float32, even in float64.
        tolerance = 1e-5 if dtype == SINGLE else 1e-7 if name == "hardsigmoid" else 1e-12
        known = comparable(name, x)
        for kind, a, b in zip(("value", "gradient"), results, expected, strict=True):
            # At NaN, PyTorch's gradients depend on whether its kernel takes numbers one by one or as vectors.
            here = known & ~x.isnan() if kind == "gradient" else known
            torch.testing.assert_close(
                a[here], b[here], rtol=tolerance, atol=tolerance, equal_nan=True,
                msg=lambda text, name=name, kind=kind: f"{kind} of {name}: {text}",
            )  # fmt: skip


def comparable(name, x):
    """Where a result is known."""
    if name in ("sin", "cos", "tan"):  # to 1.6e6
        return x.abs() < 1e6
    if name == "gelu":  # of infinity it depends on the processor
        return x.isfinite()
    if name == "glu":  # one less the gate has lost its digits, and is multiplied
        return (x.abs() < 10).all(1, keepdim=True).expand_as(x)
    return torch.ones_like(x) > 0
