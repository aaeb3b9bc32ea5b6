"""Random cells: whatever graph of operations a step is, the cpu engine gives what the reference gives.

A cell is drawn as data (`Recipe`): a list of operations on the values so far, which any list is, so that hypothesis can
shrink one to the few operations that matter. ``ANYRNN_EXAMPLES=5000`` runs that many examples instead of a few, and
other ones each time, as ``make test-all`` does. Recipes that once failed stay in FOUND.
"""

import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn
from torch.nn import functional as F

import anyrnn
from anyrnn.engines.cpu.machine import Machine
from zoo import flat, gradients, loss_of

EXAMPLES = os.environ.get("ANYRNN_EXAMPLES")
random = settings(
    max_examples=int(EXAMPLES or 10),
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


# ---- The operations --------------------------------------------------------------------------------------------------


def fit(v: Tensor, width: int) -> Tensor:
    """Bring a value to a width: cut, spread or repeated."""
    if v.shape[1] == 1 < width:
        return v.expand(-1, width)
    if v.shape[1] < width:
        v = torch.cat([v] * -(-width // v.shape[1]), 1)
    return v if v.shape[1] == width else v[:, :width]


def meet(f: Callable[[Tensor, Tensor], Tensor]) -> "Op":
    """An operation of two values, the wider one cut to the other unless that is one number wide."""

    def op(cell, n, a, b, k):
        width = min(a.shape[1], b.shape[1])
        return f(a, b) if width == 1 else f(fit(a, width), fit(b, width))

    return op


def one(f: Callable[[Tensor], Tensor]) -> "Op":
    return lambda cell, n, a, b, k: f(a)


def number(k: int) -> float:
    return (0.5, 1.0, -1.5, 2.0, 0.1, 3.0)[k]


def compare(a: Tensor, b: Tensor, k: int) -> Tensor:
    b = b + OFF
    return (a > b, a >= b, a < b, a <= b, a.ne(b), a.eq(b))[k]


def logical(cell, n, a, b, k):
    first, second = a > OFF, b > -OFF
    if a.shape[1] != b.shape[1] and 1 not in (a.shape[1], b.shape[1]):
        second = first
    mask = (
        first & second, first | second, ~first, torch.logical_and(first, second), torch.logical_or(first, second),
        torch.logical_not(second),
    )[k]  # fmt: skip
    return torch.where(mask, a if a.shape == mask.shape else fit(a, mask.shape[1]), 0.5)


def mask_forms(cell, n, a, b, k):
    mask = a > OFF
    return (
        lambda: mask.to(a.dtype), lambda: mask * a, lambda: a.masked_fill(mask, 0.3),
        lambda: a * mask.double().to(a.dtype),
        lambda: torch.where(mask, 1.0, a), lambda: a.masked_fill(~mask, -0.5),
    )[k]()  # fmt: skip


def powers(cell, n, a, b, k):
    return (a**2, a**3, a**4, (a * a + 0.3) ** -0.7, a**1, (a * a + 0.3) ** -2)[k]


def scalar_arithmetic(cell, n, a, b, k):
    c = number(k)
    return (a + c, c - a, a * c, a / c, torch.add(a, b.mean(1, keepdim=True), alpha=c), torch.rsub(a, c))[k]


def halves(cell, n, a, b, k):
    """Parts of a value: chunk, split, slice, unbind, select."""
    width = a.shape[1]
    if width == 1:
        return a
    first = (width + 1) // 2
    return (
        lambda: a.chunk(2, 1)[1],
        lambda: a.split([first, width - first], 1)[0],
        lambda: a[:, ::2],
        lambda: a[:, -1].unsqueeze(1),
        lambda: torch.stack(a.unbind(1)[:2], 1),
        lambda: a[:, first:],
    )[k]()


def columns(cell, n, a, b, k):
    """Three dimensions in between: view, transpose, stack, expand."""
    width = a.shape[1]
    if k < 3 and width % 2 == 0:
        two = a.view(-1, 2, width // 2)
        return (two.sum(1), two.transpose(1, 2).reshape(a.shape[0], width), (two * two[:, :1]).mean(2))[k]
    if k < 3:
        return a.unsqueeze(1).expand(-1, 3, -1).mean(1)
    b = fit(b, width)
    return (torch.stack([a, b], 1).amax(1), torch.stack((a, b), 2).flatten(1), torch.stack([a, b], -1).sum(-1))[k - 3]


def reductions(cell, n, a, b, k):
    if k in (2, 3) and a.shape[1] == 1:
        k = 0
    return (
        lambda: a.sum(1, keepdim=True),
        lambda: a.mean(-1).unsqueeze(-1),
        lambda: a.var(1, keepdim=True),
        lambda: torch.std(torch.cat([a, a[:, :1] + 1], 1), dim=1, keepdim=True),
        lambda: torch.var_mean(a, 1, correction=0, keepdim=True)[0] + a,
        lambda: (torch.cat([a, b], 1) + 0.1).norm(dim=1, keepdim=True),
    )[k]()


def norms(cell, n, a, b, k):
    width = a.shape[1]
    if k < 2:
        return F.layer_norm(a, (width,), cell.weight(f"scale{n}", width), cell.weight(f"shift{n}", width), 0.1)
    if k == 2:
        return F.layer_norm(a, (width,), None, None, 0.1)
    return (torch.softmax(a, 1), torch.softmax(torch.cat([a, b], 1), -1), a / (a.abs().sum(1, keepdim=True) + 1))[k - 3]


def per_unit(cell, n, a, b, k):
    width = a.shape[1]
    if k == 3:
        return a * cell.weight(f"scalar{n}")
    if k == 4:
        return a + cell.weight(f"scalar{n}", 1)
    if k == 5:
        return cell.fixed(f"fixed{n}", width) * a
    v = cell.weight(f"vector{n}", width)
    return (v * a, a + v, a * torch.softmax(v, 0) * v[:1])[k]


def products(cell, n, a, b, k):
    width = a.shape[1]
    out = (3, 1, 4, width, 5, 2)[k]
    return (
        lambda: F.linear(a, cell.weight(f"W{n}", out, width), cell.weight(f"b{n}", out)),
        lambda: a @ cell.weight(f"W{n}", width, out),
        lambda: torch.addmm(cell.weight(f"b{n}", out), a, cell.weight(f"W{n}", width, out)),
        lambda: a @ (cell.weight(f"A{n}", width, width) - cell.weight(f"A{n}", width, width).T - 0.1 * cell.eye(width)),
        lambda: F.linear(a, cell.weight(f"W{n}", out + 2, width + 1)[1 : out + 1, 1:]),
        lambda: a @ cell.weight(f"L{n}", width, 2) @ cell.weight(f"R{n}", 2, out) if n % 2 else
        F.linear(a, cell.fixed(f"buffer{n}", out, width)),
    )[k]()  # fmt: skip


def gates(cell, n, a, b, k):
    """Products of values side by side, in parts; the same matrix for two values; two products of two stages."""
    both = torch.cat([a, b], 1)
    width = both.shape[1]
    if k < 2:
        i, g, o = F.linear(both, cell.weight(f"W{n}", 9, width), cell.weight(f"b{n}", 9)).chunk(3, 1)
        return torch.sigmoid(i) * g + o if k else torch.tanh(g * i)
    if k < 4:
        W = cell.weight(f"W{n}", a.shape[1], 4)
        return (
            a @ W + torch.tanh(fit(b, a.shape[1])) @ W
            if k == 2
            else (a @ W).tanh() * (fit(b, a.shape[1]) @ W + a[:, :1])
        )
    if k == 4:
        once = torch.tanh(both @ cell.weight(f"W{n}", width, 3))
        return once + once @ cell.weight(f"U{n}", 3, 3) + a[:, :1]
    return both @ cell.weight(f"W{n}", width, 2) - a @ cell.weight(f"U{n}", a.shape[1], 2) * 0.5


def foreign(cell, n, a, b, k):
    """From the input alone, by operations that the loop program lacks."""
    x = cell.x
    return (
        lambda: torch.asinh(x),
        lambda: torch.cumsum(x, 1),
        lambda: x.sort(1).values,
        lambda: torch.asinh(x) @ cell.weight(f"W{n}", x.shape[1], 3),
        lambda: torch.where(x[:, :1] > OFF, a, 0.2),
        lambda: F.linear(x, cell.weight(f"W{n}", 3, x.shape[1])).sinh(),
    )[k]()


def joined(cell, n, a, b, k):
    """Numbers of other origin beside a value, also as what a product takes."""
    count = a.shape[0]
    beside = (
        lambda: b,
        lambda: a.new_ones(count, 1),
        lambda: cell.weight(f"v{n}", 2).expand(count, -1),
        lambda: torch.zeros_like(b),
        lambda: cell.weight(f"v{n}", 2).unsqueeze(0).repeat(count, 1),
        lambda: b[:, :1].expand(-1, 2),
    )[k]()
    both = torch.cat([a, beside], 1)
    return both if n % 2 else both @ cell.weight(f"W{n}", both.shape[1], 3)


def in_place(cell, n, a, b, k):
    c = a.clone()
    if k < 2:
        c += number(k)
    elif k < 4:
        c.mul_(fit(b, a.shape[1]))
    else:
        c.sigmoid_()
    return c


Op = Callable[..., Tensor]
SINE = anyrnn.elementwise(torch.sin, torch.tanh)
SPIKE = anyrnn.elementwise(lambda v: v > 0, lambda v: 1 / (1 + 10 * v.abs()) ** 2)
OFF = 0.137  # where kinks and jumps are: nothing lands there by construction, to be decided by the last bit

SMOOTH: dict[str, Op] = {
    **{f.__name__: one(f) for f in (torch.neg, torch.tanh, torch.sigmoid, torch.sin, torch.cos, torch.erf, torch.atan)},
    **{f.__name__: one(lambda a, f=f: f(torch.tanh(a))) for f in (torch.exp, torch.exp2, torch.expm1)},
    **{f.__name__: one(lambda a, f=f: f(a * a + 0.3)) for f in (torch.log, torch.log2, torch.sqrt, torch.rsqrt)},
    **{f.__name__: one(lambda a, f=f: f(a * a + 0.3)) for f in (torch.log1p, torch.reciprocal, torch.square)},
    **{f.__name__: one(f) for f in (F.softplus, F.logsigmoid, F.softsign, F.gelu, F.elu, F.silu)},
    "softplus of beta": one(lambda a: F.softplus(a, 2.0, 3.0)),
    "gelu by tanh": one(lambda a: F.gelu(a, approximate="tanh")),
    "pow of numbers": powers,
    "pow of values": meet(lambda a, b: (a * a + 0.3) ** torch.tanh(b)),
    "power of two": one(lambda a: 2 ** torch.tanh(a)),
    **{f.__name__: meet(f) for f in (torch.add, torch.sub, torch.mul)},
    "div": meet(lambda a, b: a / (b * b + 0.4)),
    "cumsum": lambda cell, n, a, b, k: a[:, :3].cumsum(1),
    **{f.__name__: one(lambda a, f=f: f(torch.tanh(a) / 2)) for f in (torch.sinh, torch.cosh, torch.atanh, torch.asin)},
    "asinh": one(torch.asinh),
    "acosh": one(lambda a: torch.acosh(a * a + 1.3)),
    "logaddexp": meet(torch.logaddexp),
    "prod": lambda cell, n, a, b, k: a[:, :3].prod(1, keepdim=True) + a[:, :2].cumprod(1),
    "features by number": lambda cell, n, a, b, k: a[:, [-1, 0, -1][: k + 1]],
    "pad": lambda cell, n, a, b, k: F.pad(a[:, :4], (k % 2, 1), value=0.3),
    "a gradient of its own": one(SINE),
    "atan2": meet(lambda a, b: torch.atan2(a, b * b + 0.4)),
    "addcmul": meet(lambda a, b: torch.addcmul(a, b, b, value=0.5)),
    "addcdiv": meet(lambda a, b: torch.addcdiv(a, a, b * b + 0.4, value=-0.5)),
    "lerp": meet(lambda a, b: torch.lerp(a, b, torch.sigmoid(a))),
    "lerp by a number": meet(lambda a, b: torch.lerp(a, b, 0.3)),
    "numbers": scalar_arithmetic,
    **{f.__name__: f for f in (halves, reductions, norms, per_unit, products, gates, joined, in_place)},
    "products too": products,
    "gates too": gates,
    "cat": lambda cell, n, a, b, k: torch.cat([a, b], 1),
}

KINKED: dict[str, Op] = {
    "abs": one(lambda a: (a - OFF).abs()),
    **{f.__name__: one(lambda a, f=f: f(a + OFF)) for f in (F.relu, F.leaky_relu, F.hardtanh, F.hardswish)},
    **{f.__name__: one(lambda a, f=f: f(a + OFF)) for f in (F.relu6, F.selu)},
    **{f.__name__: one(lambda a, f=f: f(3 * a + OFF)) for f in (torch.floor, torch.ceil, torch.round, torch.trunc)},
    **{f.__name__: one(lambda a, f=f: f(a + OFF) + a) for f in (torch.sign, torch.sgn)},
    "maximum": meet(lambda a, b: torch.maximum(a, b + OFF)),
    "minimum": meet(lambda a, b: torch.minimum(a, b + OFF)),
    "clamp": one(lambda a: a.clamp(-0.4 - OFF, OFF)),
    "clamp from one side": lambda cell, n, a, b, k: a.clamp(min=OFF) if k % 2 else a.clamp(max=OFF),
    "threshold": one(lambda a: F.threshold(a, OFF, -0.2)),
    "floor of a quotient": meet(lambda a, b: torch.div(3 * a + OFF, b * b + 0.4, rounding_mode="floor") + a),
    "where": lambda cell, n, a, b, k: torch.where(compare(a, fit(b, a.shape[1]), k), a, 0.2),
    "where of values": lambda cell, n, a, b, k: torch.where(compare(a[:, :1], b[:, :1], k), a, fit(b, a.shape[1])),
    "norms": lambda cell, n, a, b, k: (
        (torch.cat([a, b], 1) + OFF).norm((1, math.inf, 3)[k % 3], dim=1, keepdim=True) + a
    ),
    "sort": lambda cell, n, a, b, k: torch.cat([a[:, :2], b[:, :2] + OFF], 1).sort(1, descending=k > 2).values,
    "spikes": one(lambda a: SPIKE(a + OFF) * a),
    "detach": meet(lambda a, b: a * torch.tanh(b).detach()),
    "amax": lambda cell, n, a, b, k: torch.cat([a, b + OFF], 1).amax(1, keepdim=True),
    "max": lambda cell, n, a, b, k: torch.cat([a, b + OFF], 1).max(1, keepdim=True).values,
    "min": lambda cell, n, a, b, k: a - torch.stack([a, fit(b, a.shape[1]) + OFF], 1).min(1).values,
    **{f.__name__: f for f in (logical, mask_forms, columns, foreign)},
}

OPERATIONS = {**SMOOTH, **KINKED}

AFTER: dict[str, Callable[["Step", Tensor], Tensor]] = {
    "linear": lambda cell, y: F.linear(y, cell.weight("after", 3, y.shape[1]), cell.weight("after bias", 3)),
    "atan": lambda cell, y: torch.atan(y),
    "cumsum": lambda cell, y: torch.cumsum(y, 1),
    "softmax": lambda cell, y: torch.softmax(y, 1),
    "with x": lambda cell, y: y * torch.atan(cell.x[:, :1]),
    "with the old state": lambda cell, y: torch.cat([y, cell.first_state], 1).sinh(),
    "with a parameter": lambda cell, y: torch.atan(y) * cell.weight("after scale", y.shape[1]),
    "three dimensions": lambda cell, y: torch.atan(y.unsqueeze(1) * y.unsqueeze(2)).flatten(1),
}


# ---- The cells -------------------------------------------------------------------------------------------------------

NEW_STATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": lambda v, h: torch.tanh(fit(v, h.shape[1])),
    "mixed": lambda v, h: 0.7 * h + 0.3 * torch.sin(fit(v, h.shape[1])),
    "bare": lambda v, h: fit(v, h.shape[1]),
    "unchanged": lambda v, h: h,
    "zero": lambda v, h: torch.zeros_like(h),
    "spread": lambda v, h: torch.tanh(v[:, :1]).expand(-1, h.shape[1]),
}


@dataclass(frozen=True)
class Recipe:
    """A cell as data. Values are counted back from the latest one, beginning with x and the states.

    Attributes:
        input_size: The size of x.
        states: The sizes of the state variables.
        steps: Operations: (name, value, another value, variant).
        new: For each state the value that it becomes, and how.
        output: The value that the output begins with, if there is an output, and the operations on it.
    """

    input_size: int
    states: tuple[int, ...]
    steps: tuple[tuple[str, int, int, int], ...]
    new: tuple[tuple[int, str], ...]
    output: tuple[int, tuple[str, ...]] | None = None


class Drawn(nn.Module):
    """The cell of a recipe; its weights are made when its step first runs."""

    def __init__(self, recipe: Recipe, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.recipe = recipe
        self.state_sizes = recipe.states
        self.dtype = dtype
        self.generator: torch.Generator | None = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            x, *states = (torch.full((2, n), 0.1, dtype=dtype) for n in (recipe.input_size, *recipe.states))
            self(x, states)
        self.generator = None

    def forward(self, x, states):
        step = Step(self, x, states[0])
        values = [x, *states]
        pick = lambda i: values[-1 - i % len(values)]  # noqa: E731
        for n, (name, a, b, k) in enumerate(self.recipe.steps):
            values.append(OPERATIONS[name](step, n, pick(a), pick(b), k))
        new = tuple(NEW_STATES[how](pick(i), h) for (i, how), h in zip(self.recipe.new, states, strict=True))
        if self.recipe.output is None:
            return new
        value, after = self.recipe.output
        y = pick(value)
        for name in after:
            y = AFTER[name](step, y)
        return y, new


@dataclass(frozen=True)
class Step:
    """What an operation may ask for beside its operands."""

    cell: Drawn
    x: Tensor
    first_state: Tensor

    def weight(self, name: str, *shape: int) -> Tensor:
        """A parameter, made at the first call."""
        return self._tensor(name, shape, lambda name, value: self.cell.register_parameter(name, nn.Parameter(value)))

    def fixed(self, name: str, *shape: int) -> Tensor:
        """A buffer."""
        return self._tensor(name, shape, self.cell.register_buffer)

    def eye(self, n: int) -> Tensor:
        return torch.eye(n, dtype=self.cell.dtype)

    def _tensor(self, name: str, shape: tuple[int, ...], register: Callable[[str, Tensor], None]) -> Tensor:
        cell, name = self.cell, name.replace(" ", "_")
        if cell.generator is not None and not hasattr(cell, name):
            value = torch.randn(shape, generator=cell.generator, dtype=torch.float64) / (
                shape[0] ** 0.5 if shape else 2
            )
            register(name, value.to(cell.dtype))
        return getattr(cell, name)


# ---- The draw and the comparison -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How a cell is called, what is differentiated (the output, the final states or both), and on which processor."""

    T: int
    B: int
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    state: bool = True
    loss: str = "both"
    seed: int = 0
    threads: int = 1
    cpu: str = ""


@st.composite
def recipes(draw, smooth: bool):
    names = [*SMOOTH] if smooth else [*SMOOTH, *KINKED]
    recent = st.sampled_from((0, 0, 0, 1, 2, 3, 4, 5, 6))
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(names), recent, st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=8
        )
    )
    states = draw(st.lists(st.sampled_from((3, 1, 2, 4, 5, 8, 16, 17, 20)), min_size=1, max_size=3))
    hows = st.sampled_from(("tanh", "mixed", "mixed", "bare", "tanh", "unchanged", "zero", "spread"))
    new = [(draw(recent), draw(hows)) for _ in states]
    output = draw(
        st.none() | st.tuples(recent, st.lists(st.sampled_from(list(AFTER)), max_size=2, unique=True).map(tuple))
    )
    return Recipe(draw(st.integers(1, 4)), tuple(states), tuple(steps), tuple(new), output)


def other_processors() -> list[str]:
    """Those whose code runs here, with other vectors than the host's or the same."""
    names = ("x86-64", "haswell") if platform.machine().lower() in ("x86_64", "amd64") else ()
    return [name for name in names if not Machine.named(name).missing()]


processors = st.sampled_from(["", "", *other_processors()])


@st.composite
def shapes(draw):
    T, B = draw(st.sampled_from((2, 1, 7))), draw(st.sampled_from((1, 2, 5, 6, 7, 33)))
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B).map(tuple))
    loss = draw(st.sampled_from(("both", "output", "states")))
    flags = draw(st.booleans()), draw(st.booleans())
    return Shape(T, B, lengths, *flags, loss, draw(st.integers(0, 99)), draw(st.integers(1, 2)), draw(processors))


#: How the engine says that a cell has more of something than a loop program holds.
TOO_LARGE = ("falls into more than", "which are taken one by one: 32 at most")


def results(engine: str, recipe: Recipe, shape: Shape, dtype: torch.dtype, grad: bool = True) -> list[Tensor]:
    """Output, final states, and the gradients of x, the states and all parameters."""
    cell = Drawn(recipe, shape.seed, dtype)
    generator = torch.Generator().manual_seed(shape.seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)

    x = drawn(shape.T, shape.B, recipe.input_size)
    states = tuple(drawn(shape.B, n) for n in recipe.states) if shape.state else None
    with pytest.MonkeyPatch.context() as patch, anyrnn.engine(engine), torch.set_grad_enabled(grad):
        patch.setenv("ANYRNN_CPU", shape.cpu)
        torch.set_num_threads(shape.threads)
        try:
            output, final = anyrnn.scan(cell, x, states, lengths=shape.lengths, reverse=shape.reverse)
        except anyrnn.AnyRNNError as error:
            assume(not any(words in str(error) for words in TOO_LARGE))  # to be compiled, and refused
            raise
        values = [output, *flat(final)]
        if not grad:
            return values
        loss = loss_of(*{"both": values, "output": values[:1], "states": values[1:]}[shape.loss])
        return [v.detach() for v in values] + gradients([x, *(states or ()), *cell.parameters()], loss)


def scale(tensor: Tensor) -> float:
    return max(1.0, tensor.abs().max().item()) if tensor.numel() else 1.0


def check(recipe: Recipe, shape: Shape, require: Callable[[bool], object] = assume) -> None:
    """In float64 the engines agree to rounding, with gradients and without."""
    want = results("reference", recipe, shape, torch.float64)
    require(all(t.isfinite().all() and scale(t) < 1e6 for t in want))
    got = results("cpu", recipe, shape, torch.float64)
    inferred = results("cpu", recipe, shape, torch.float64, grad=False)
    for k, (a, b) in enumerate(zip([*got, *inferred], [*want, *want[: len(inferred)]], strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * scale(b), msg=lambda text, k=k: f"tensor {k}: {text}")


def check_single(recipe: Recipe, shape: Shape) -> None:
    """In float32 the engine is as near to the truth as PyTorch is.

    Both round at every operation, in another order, so either may be the better one by luck: 20 times PyTorch's own
    error, and at least 100 units in the last place of the largest number, is where an error stops being rounding.
    """
    truth = results("reference", recipe, shape, torch.float64)
    assume(all(t.isfinite().all() and scale(t) < 1e4 for t in truth))
    want = results("reference", recipe, shape, torch.float32)
    got = results("cpu", recipe, shape, torch.float32)
    for k, (a, b, c) in enumerate(zip(got, want, truth, strict=True)):
        error = (b - c).abs().max().item()
        torch.testing.assert_close(
            a.double(), c, rtol=0, atol=20 * error + 1e-5 * scale(c), msg=lambda text, k=k: f"tensor {k}: {text}"
        )


#: What once failed, as small as hypothesis made it.
FOUND = {
    "a state that is zero": (Recipe(1, (3,), (("neg", 0, 0, 0),), ((0, "zero"),)), Shape(2, 1)),
    "nothing but constants": (
        Recipe(4, (1,), (("neg", 5, 5, 5),), ((1, "zero"),)),
        Shape(7, 2, (2, 5), True, True, "states"),
    ),
    "an output of x alone": (Recipe(1, (3,), (("sign", 3, 3, 3),), ((6, "zero"),), (0, ())), Shape(1, 1)),
    "a product that takes a value twice": (Recipe(1, (3,), (("gates", 0, 3, 1),) * 2, ((0, "tanh"),)), Shape(7, 6)),
    "a number in a cell without weights": (Recipe(1, (3,), (("where", 0, 0, 0),), ((0, "tanh"),)), Shape(2, 1)),
    "a maximum with constants": (
        Recipe(1, (5,), (("neg", 0, 0, 0), ("joined", 0, 0, 1), ("amax", 0, 0, 0)), ((0, "tanh"),)),
        Shape(2, 3),
    ),
    "a product of products that leads nowhere": (
        Recipe(1, (3,), (("gates too", 6, 2, 1), ("products", 0, 3, 5), ("round", 0, 3, 4)), ((0, "mixed"),)),
        Shape(2, 1),
    ),
    "states read whole and in part": (
        Recipe(2, (5, 2), (("per_unit", 1, 0, 0), ("sin", 1, 0, 0)), ((1, "tanh"), (2, "mixed"))),
        Shape(2, 3),
    ),
    "states that change places": (Recipe(2, (3, 5), (("neg", 0, 0, 0),), ((1, "bare"), (2, "bare"))), Shape(7, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_a_cell_that_once_failed(name):
    def require(condition):
        assert condition

    check(*FOUND[name], require)


@random
@given(recipe=recipes(smooth=False), shape=shapes())
def test_a_random_cell_is_what_the_reference_says(recipe, shape):
    check(recipe, shape)


@settings(random, max_examples=max(1, random.max_examples // 3))
@given(recipe=recipes(smooth=True), shape=shapes())
def test_a_random_cell_in_float32_is_as_exact_as_pytorch(recipe, shape):
    check_single(recipe, shape)
