"""What a trace does not see: each cell gives what the plain loop gives, and no cell is taken for another one."""

import collections
import contextlib
import copy
import ctypes
import dataclasses
import datetime
import enum
import functools
import gc
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import DOUBLE, H, I, Plain, assert_near, plain
from torch import nn
from torch.utils._pytree import tree_map

import anyrnn
from anyrnn.compiler.trace import trace
from anyrnn.engines.cpu import jit
from anyrnn.probing import describe
from anyrnn.runtime import plans
from anyrnn.runtime.autograd import _as_saved, _form
from zoo import gradients, loss_of

T, B = 5, 4
SCALE = [2.0]  # a global that steps read


def engine_of(layer, x, **options):
    return anyrnn.explain(layer, x, **options).parts[0].engine


def why(layer, x):
    return anyrnn.explain(layer, x).parts[0].refused.get("cpu", "")


def outcome(engine, layer, x, **options):
    """Output, state and gradients of a layer; without gradients where none are asked for."""
    with anyrnn.engine(engine):
        output, state = layer(x, **options)
    if not output.requires_grad:
        return [output, state]
    return [output.detach(), state.detach(), *gradients(list(layer.parameters()), loss_of(output, state))]


def assert_like_the_loop(layer, x, tolerance=1e-10, **options):
    want = outcome("reference", layer, x, **options)
    assert_near(outcome("auto", layer, x, **options), want, tolerance)


def draw(*sizes):
    return torch.randn(*(sizes or (T, B, I)), dtype=DOUBLE)


# ---- Steps that do what no operation shows ---------------------------------------------------------------------------


def clipped(c, x, h):
    a = c.W(x) + c.U(h)
    if a.requires_grad:
        a.register_hook(lambda g: g.clamp(-0.01, 0.01))
    return torch.tanh(a)


def hooked(c, x, h):
    a = c.W(x) + c.U(h)
    torch.autograd.graph.register_multi_grad_hook([a], lambda grads: None)
    return torch.tanh(a)


def foreign(c, x, h):
    a = (c.W(x) + c.U(h)).detach()
    out = torch.empty_like(a)
    np.tanh(a.numpy(), out=out.numpy())
    return out + 0 * c.W(x)


def threshold(c, x, h):
    a = c.W(x) + c.U(h)
    return torch.tanh(a * 0.01 if a.detach().numpy().max() > 1 else a)


def written_behind(c, x, h):
    a = torch.tanh(c.W(x) + c.U(h))
    ctypes.memset(a.data_ptr(), 0, 8)
    return a


def halved_alone(c, x, h):
    a = c.W(x) + c.U(h)
    return torch.tanh(a) if torch.is_grad_enabled() else torch.tanh(a) / 2


class Tagged(torch.Tensor):
    """A tensor of a class of its own."""


def marked(c, x, h):
    a = torch.tanh(c.W(x) + (2 if hasattr(h, "seen") else 1) * c.U(h))
    a.seen = True
    return a


def inferred(c, x, h):
    with torch.inference_mode():
        return torch.tanh(c.W(x) + c.U(h))


now = time.time  # a name that does not tell

#: Steps, and what the reason says. What they do is seen, and left to the plain loop.
SEEN = {
    "a hook on a tensor": (clipped, "requires_grad"),
    "a hook on several": (hooked, "grad_fn"),
    "a gradient kept": (lambda c, x, h: (c.W(x) + h).retain_grad() or torch.tanh(c.W(x) + h), "retain_grad"),
    "NumPy writes": (foreign, "numpy"),
    "a threshold by NumPy": (threshold, "numpy"),
    "memory written by its address": (written_behind, "data_ptr"),
    "a list of numbers": (lambda c, x, h: torch.tanh(c.W(x) + h * len(h.tolist()[0])), "tolist"),
    "an array by protocol": (lambda c, x, h: torch.tanh(c.W(x) * float(np.asarray(x.detach()).max()) + h), "__array__"),
    "a branch on requires_grad": (
        lambda c, x, h: torch.tanh(c.W(x) + (h if h.requires_grad else 2 * h)),
        "requires_grad",
    ),
    "a branch on a graph": (lambda c, x, h: torch.tanh(c.W(x) + (2 * h if h.grad_fn is None else h)), "grad_fn"),
    "a branch on contiguity": (lambda c, x, h: torch.tanh(c.W(x) * (1 + x.is_contiguous()) + h), "is_contiguous"),
    "a branch on strides": (lambda c, x, h: torch.tanh(c.W(x) * x.stride(0) + h), "stride"),
    "a branch on grad mode": (halved_alone, "is_grad_enabled"),
    "a branch on autocast": (
        lambda c, x, h: torch.tanh(c.W(x) * (1 + torch.is_autocast_enabled("cpu")) + h),
        "is_autocast_enabled",
    ),
    "a branch on inference": (
        lambda c, x, h: torch.tanh(c.W(x) * (1 + torch.is_inference_mode_enabled()) + h),
        "is_inference_mode_enabled",
    ),
    "a branch on one row": (lambda c, x, h: torch.tanh(c.W(x) * (2 if len(x) > 1 else 1) + h), "len"),
    "a branch on a size": (lambda c, x, h: torch.tanh(c.W(x) * (2 if x.shape[0] == 4 else 1) + h), "size of the batch"),
    "a branch on many rows": (
        lambda c, x, h: torch.tanh(c.W(x) * (2 if x.size(0) > 3 else 1) + h),
        "size of the batch",
    ),
    "a table by size": (lambda c, x, h: torch.tanh(c.W(x) * {4: 2.0}.get(x.shape[0], 1.0) + h), "size of the batch"),
    "an even batch": (lambda c, x, h: torch.tanh(c.W(x) * (1 + x.shape[0] % 2) + h), "size of the batch"),
    "a share of the batch": (lambda c, x, h: torch.tanh(c.W(x) / x.shape[0] + h), "size of the batch"),
    "a dimension that one row loses": (
        lambda c, x, h: torch.tanh((c.W(x).unsqueeze(1) + h.unsqueeze(1)).squeeze()),
        ".",
    ),
    "memory that nobody wrote": (
        lambda c, x, h: torch.tanh(c.W(x) + torch.where(h > 9, torch.empty_like(h), h)),  # zero times it may be NaN
        "nobody has written",
    ),
    "a tensor's attribute": (marked, "`seen`"),
    "a tensor of another class": (lambda c, x, h: torch.tanh(c.W(x) + c.U(h)).as_subclass(Tagged), "Tagged"),
    "a step in inference mode": (inferred, "no_grad"),
    "a clock": (lambda c, x, h: torch.tanh(c.W(x) * (1 + (now() > 0)) + h), "`time`"),
    "a date": (lambda c, x, h: torch.tanh(c.W(x) * datetime.datetime.now().year + h), "`datetime.now`"),
    "a file": (lambda c, x, h: torch.tanh(c.W(x) * len(Path(__file__).read_text()) + h), "`open`"),
    "a global by name": (lambda c, x, h: torch.tanh(c.W(x) + globals()["SCALE"][0] * h), "`globals`"),
    "a module by name": (
        lambda c, x, h: torch.tanh(c.W(x) + sys.modules[__name__].SCALE[0] * h),
        "`sys.modules`",
    ),
    "chance of the machine": (
        lambda c, x, h: torch.tanh(c.W(x) * (1 + (random.SystemRandom().random() < 2)) + h),
        "`urandom`",
    ),
    "a part of memory written": (
        lambda c, x, h: torch.tanh(c.W(x) + h + 0 * torch.empty_like(h)[:, :1].fill_(1.0)),
        "nobody has written",
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_no_operation_shows_is_left_to_the_loop(name):
    step, reason = SEEN[name]
    layer = anyrnn.Recurrent(plain(step))
    for x, options in ((draw(), {}), (draw(T, 1, I), {}), (draw(), {"lengths": [5, 3, 1, 0]})):
        if "one row loses" in name and (x.shape[1] == 1 or options):
            continue  # it fails in the plain loop, too
        assert_like_the_loop(layer, x, **options)
        with torch.no_grad():
            if name not in ("a gradient kept", "a hook on several"):  # they fail in the plain loop, too
                assert_like_the_loop(layer, x, **options)
    part = anyrnn.explain(layer, draw()).parts[0]
    assert part.engine == "reference"
    assert reason in part.refused["cpu"]


#: Steps that look at sizes, and are the same for all.
HARMLESS = {
    "zeros as many as rows": lambda c, x, h: torch.tanh(c.W(x) + h + x.new_zeros(x.shape[0], H)),
    "zeros by len": lambda c, x, h: torch.tanh(c.W(x) + h + x.new_zeros(len(x), H)),
    "a shape passed on": lambda c, x, h: torch.tanh(c.W(x) + c.U(h.reshape(x.shape[0], 1, -1).view(h.shape))),
    "a check of shapes": lambda c, x, h: torch.tanh(c.W(x) + h) if x.shape[0] == h.shape[0] and x.size(0) > 0 else h,
    "a check of features": lambda c, x, h: torch.tanh(c.W(x) + h) if x.shape[1:] == (I,) and x.dim() == 2 else h,
    "twice the batch": lambda c, x, h: torch.tanh(
        c.W(x) + h.repeat_interleave(2, 1).view(x.shape[0] * 2, -1).view(-1, 2 * H)[:, ::2]
    ),
    "written memory": lambda c, x, h: torch.tanh(c.W(x) + torch.empty_like(h).copy_(h)),
    "x copied to other memory": lambda c, x, h: torch.tanh(c.W(torch.empty_like(x).copy_(x * 2)) + h),
    "a parameter copied to all rows": lambda c, x, h: torch.tanh(x.new_zeros(x.shape[0], H).copy_(c.v) * c.W(x) + h),
    "a product zeroed": lambda c, x, h: torch.tanh(c.W(x) + c.W(x).clone().zero_() + h),
    "filled memory": lambda c, x, h: torch.tanh(c.W(x) + h + torch.empty_like(h).fill_(0.5)),
    "a type asked for": lambda c, x, h: torch.tanh(c.W(x) + h.to(x.dtype)) if x.is_floating_point() else h,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_sizes_may_be_asked_for(name):
    layer = anyrnn.Recurrent(plain(HARMLESS[name]))
    for x, options in ((draw(), {}), (draw(T, 1, I), {}), (draw(), {"lengths": [5, 3, 1, 0]})):
        assert_like_the_loop(layer, x, **options)
    assert engine_of(layer, draw()) == "cpu", why(layer, draw())


# ---- Random numbers, side effects ------------------------------------------------------------------------------------

RANDOM = {
    "Python's": lambda c, x, h: torch.tanh(c.W(x) + c.U(h)) if random.random() < 0.5 else h.clone() + 0 * c.W(x),
    "NumPy's": lambda c, x, h: torch.tanh(c.W(x) + c.U(h)) if np.random.rand() < 0.5 else h.clone() + 0 * c.W(x),
    "a generator's": lambda c, x, h: torch.tanh(c.W(x) + h) * (1.0 if c.rng.random() < 0.5 else 2.0),
    "a NumPy generator's": lambda c, x, h: torch.tanh(c.W(x) + h) * float(c.numpy_rng.random()),
    "torch's, of a generator": lambda c, x, h: (
        torch.tanh(c.W(x) + h) * torch.rand(x.shape[0], 1, generator=c.torch_rng, dtype=x.dtype)
    ),
}


def seeded(c):
    random.seed(3)
    np.random.seed(3)
    c.rng, c.numpy_rng, c.torch_rng = random.Random(3), np.random.default_rng(3), torch.Generator().manual_seed(3)


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_drawn_as_by_the_loop(name):
    layer, x, results = (
        anyrnn.Recurrent(plain(RANDOM[name]) if name in ("Python's", "NumPy's") else Seeded(RANDOM[name])),
        draw(),
        [],
    )
    for engine in ("reference", "auto", "auto"):
        seeded(layer.cell())
        results.append(outcome(engine, layer, x))
        results.append(outcome(engine, layer, x))
    assert_near([t for r in results[2:4] for t in r], [t for r in results[:2] for t in r], 1e-12)
    assert_near([t for r in results[4:] for t in r], [t for r in results[:2] for t in r], 1e-12)


class Seeded(Plain):
    def __init__(self, step):
        torch.manual_seed(1)
        super().__init__(step)
        seeded(self)
        self.double()


def test_a_first_call_draws_none_of_the_process_s_random_numbers():
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h) * 0.321))), draw()
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()]
    layer(x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


LOG = []


def counted_in(place):
    def step(c, x, h):
        place(c)
        return torch.tanh(c.W(x) + c.U(h))

    return step


def nonlocal_counter():
    n = 0

    def count():
        nonlocal n
        n += 1
        return n

    return count


class Slots:
    __slots__ = ("t",)

    def __init__(self):
        self.t = 0


EFFECTS = {
    "a namespace": (lambda c: setattr(c.box, "t", c.box.t + 1), lambda c: c.box.t),
    "a dict of lists": (lambda c: c.log["n"].append(1), lambda c: len(c.log["n"])),
    "slots": (lambda c: setattr(c.slots, "t", c.slots.t + 1), lambda c: c.slots.t),
    "a closure": (lambda c: c.count(), lambda c: c.count.__closure__[0].cell_contents),
    "an array": (lambda c: c.array.__setitem__(0, c.array[0] + 1), lambda c: int(c.array[0])),
    "a deque": (lambda c: c.deque.append(1), lambda c: len(c.deque)),
    "a module's attribute": (
        lambda c: setattr(c.W, "calls", getattr(c.W, "calls", 0) + 1),
        lambda c: getattr(c.W, "calls", 0),
    ),
    "a global": (lambda c: LOG.append(1), lambda c: len(LOG)),
    "an iterator": (lambda c: next(c.ticks), lambda c: int(repr(c.ticks)[6:-1])),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_side_effect_happens_at_every_step(name):
    effect, read = EFFECTS[name]
    cell = plain(counted_in(effect))
    cell.box, cell.log, cell.slots = types.SimpleNamespace(t=0), {"n": []}, Slots()
    cell.count, cell.array, cell.deque = nonlocal_counter(), np.zeros(1), collections.deque()
    cell.ticks = itertools.count()
    layer, x = anyrnn.Recurrent(cell), draw()
    for _ in range(2):
        before = read(cell)
        layer(x)
        traced = 3 if name in ("a global", "an iterator") else 0  # they cannot be copied, and see probes and traces
        assert T <= read(cell) - before <= T + traced
    before = read(cell)
    layer(x)
    assert read(cell) - before == T
    assert engine_of(layer, x) == "reference"


def test_what_is_refused_before_anything_ran_is_no_reason_for_other_cells():
    class Ticking(Plain):
        pass

    refused, fine = (Ticking(lambda c, x, h: torch.tanh(c.W(x) + c.U(h))).double() for _ in range(2))
    refused.ticks = itertools.count()
    x = draw()
    assert [engine_of(anyrnn.Recurrent(cell), x) for cell in (refused, fine)] == ["reference", "cpu"]
    del refused.ticks
    assert engine_of(anyrnn.Recurrent(refused), x) == "cpu"


# ---- What changes between calls, of every kind of Python's ----------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Settings:
    alpha: float = 0.5


class Act:
    slope = 1.0

    def __call__(self, v):
        return torch.tanh(v) * self.slope

    def run(self, v):
        return torch.tanh(v) * self.slope


class Rate(enum.Enum):
    """Members that hold what can change."""

    LOW = (0.5,)
    HIGH = (0.75,)

    def __init__(self, *numbers):
        self.numbers = [*numbers]


def rate(value):
    Rate.LOW.numbers[0] = 0.5
    return Rate.LOW if value == 0.5 else Rate.HIGH


class Level(float):
    """A number of a class of its own."""


class Half:
    """An object whose attribute is that of its class, until it gets one."""

    alpha = 0.5

    def __init__(self, alpha):
        if alpha != 0.5:
            self.alpha = alpha


def weight_with(alpha):
    weight = nn.Parameter(torch.zeros(1))
    weight.alpha = alpha
    return weight


def function_with(alpha):
    def act(v):
        return torch.tanh(v)

    if alpha != 0.5:
        act.alpha = alpha
    return act


class Shared(Plain):
    scale = 1.0

    def forward(self, x, h):
        return torch.tanh(self.W(x) + self.scale * self.U(h))


def closure(value):
    def act(v):
        return torch.tanh(v) * value

    return act


def squashed(value):
    def act(v):
        return torch.sigmoid(v) * value

    return act


def defaulted(alpha):
    def act(v, scale=alpha):
        return torch.tanh(v) * scale

    return act


def keyword(v, alpha):
    return torch.tanh(v) * alpha


def change_closure(c):
    c.thing.__closure__[0].cell_contents = 0.75


def act_object(slope):
    act = Act()
    act.slope = slope
    return act


def set_scale(value):
    SCALE[0] = value


class Nested:
    def __init__(self, depth, alpha):
        self.inner = Nested(depth - 1, alpha) if depth else None
        self.alpha = alpha

    @property
    def deepest(self):
        return self.inner.deepest if self.inner else self.alpha


by_call = lambda c, x, h: c.thing(c.W(x) + c.U(h))  # noqa: E731
by_alpha = lambda c, x, h: torch.tanh(c.W(x) + c.thing.alpha * c.U(h))  # noqa: E731
by_item = lambda c, x, h: torch.tanh(c.W(x) + float(c.thing[0]) * c.U(h))  # noqa: E731

#: A step, what it reads for one number, and how that becomes another one in place.
KINDS = {
    "slots": (by_alpha, Settings, lambda c: setattr(c.thing, "alpha", 0.75)),
    "a namespace": (by_alpha, lambda a: types.SimpleNamespace(alpha=a), lambda c: setattr(c.thing, "alpha", 0.75)),
    "a bound method's object": (
        by_call,
        lambda a: act_object(a).run,
        lambda c: setattr(c.thing.__self__, "slope", 0.75),
    ),
    "a callable object": (by_call, act_object, lambda c: setattr(c.thing, "slope", 0.75)),
    "a closure": (by_call, closure, change_closure),
    "a default": (by_call, defaulted, lambda c: setattr(c.thing, "__defaults__", (0.75,))),
    "a partial's keyword": (
        by_call,
        lambda a: functools.partial(keyword, alpha=a),
        lambda c: c.thing.keywords.update(alpha=0.75),
    ),
    "a function's code": (
        by_call,
        closure,
        lambda c: setattr(c.thing, "__code__", squashed(0).__code__),
    ),
    "a dict seven deep": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing["a"]["b"]["c"]["d"]["e"]["f"]["alpha"] * c.U(h)),
        lambda a: {"a": {"b": {"c": {"d": {"e": {"f": {"alpha": a}}}}}}},
        lambda c: c.thing["a"]["b"]["c"]["d"]["e"]["f"].update(alpha=0.75),
    ),
    "objects seven deep": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing.deepest * c.U(h)),
        lambda a: Nested(7, a),
        lambda c: setattr(c.thing.inner.inner.inner.inner.inner.inner.inner, "alpha", 0.75),
    ),
    "a mapping proxy": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing["alpha"] * c.U(h)),
        lambda a: types.MappingProxyType({"alpha": a}),
        lambda c: gc.get_referents(c.thing)[0].update(alpha=0.75),
    ),
    "a list in a tuple": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing[0][0] * c.U(h)),
        lambda a: ([a],),
        lambda c: c.thing[0].__setitem__(0, 0.75),
    ),
    "a bytearray": (by_item, lambda a: bytearray([int(a * 4)]), lambda c: c.thing.__setitem__(0, 3)),
    "an array of NumPy's": (by_item, lambda a: np.array([a]), lambda c: c.thing.__setitem__(0, 0.75)),
    "a number of C": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing.value * c.U(h)),
        ctypes.c_double,
        lambda c: setattr(c.thing, "value", 0.75),
    ),
    "a deque": (by_item, lambda a: collections.deque([a]), lambda c: c.thing.__setitem__(0, 0.75)),
    "a default dict": (by_item, lambda a: collections.defaultdict(float, {0: a}), lambda c: c.thing.update({0: 0.75})),
    "a sign of zero": (
        lambda c, x, h: torch.tanh(c.W(x) + c.U(h)) + torch.tanh(torch.full_like(h, c.thing).reciprocal()),
        lambda a: 0.0,
        lambda c: setattr(c, "thing", -0.0),
    ),
    "a global": (
        lambda c, x, h: torch.tanh(c.W(x) + SCALE[0] * c.U(h)),
        set_scale,
        lambda c: set_scale(0.75),
    ),
    "a value of the class": (
        lambda c, x, h: torch.tanh(c.W(x) + type(c).scale * c.U(h)),
        lambda a: setattr(Shared, "scale", a),
        lambda c: setattr(Shared, "scale", 0.75),
    ),
    "a weak reference's object": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing().alpha * c.U(h)),
        lambda a: weakref.ref(kept(Nested(0, a))),
        lambda c: setattr(c.thing(), "alpha", 0.75),
    ),
    "a name found by getattr": (
        lambda c, x, h: torch.tanh(c.W(x) + getattr(c.thing, "al" + "pha") * c.U(h)),
        Settings,
        lambda c: setattr(c.thing, "alpha", 0.75),
    ),
    "an enumeration's list": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing.numbers[0] * c.U(h)),
        rate,
        lambda c: c.thing.numbers.__setitem__(0, 0.75),
    ),
    "a number of a class of its own": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing * c.U(h)),
        Level,
        lambda c: setattr(c, "thing", Level(0.75)),
    ),
    "an error's argument": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing.args[0] * c.U(h)),
        ValueError,
        lambda c: setattr(c.thing, "args", (0.75,)),
    ),
    "an object's first attribute": (by_alpha, Half, lambda c: setattr(c.thing, "alpha", 0.75)),
    "a function's first attribute": (
        lambda c, x, h: torch.tanh(c.W(x) + getattr(c.thing, "alpha", 0.5) * c.U(h)),
        function_with,
        lambda c: setattr(c.thing, "alpha", 0.75),
    ),
    "a weight's attribute": (by_alpha, weight_with, lambda c: setattr(c.thing, "alpha", 0.75)),
    "what a cached function kept": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing()[0] * c.U(h)),
        lambda a: functools.cache(lambda: [a]),
        lambda c: c.thing().__setitem__(0, 0.75),
    ),
    "what one with a bound kept": (
        lambda c, x, h: torch.tanh(c.W(x) + c.thing(3)["alpha"] * c.U(h)),
        lambda a: functools.lru_cache(lambda n: {"alpha": a}),
        lambda c: c.thing(3).update(alpha=0.75),
    ),
    "a module in a list": (
        lambda c, x, h: c.thing[0](c.W(x) + c.U(h)),
        lambda a: [nn.LeakyReLU(a)],
        lambda c: setattr(c.thing[0], "negative_slope", 0.75),
    ),
}

_kept = []


def kept(value):
    _kept.append(value)
    return value


def with_thing(name, value):
    step, make, _ = KINDS[name]
    torch.manual_seed(1)
    cell = (Shared if name == "a value of the class" else Plain)(step)
    if name == "a value of the class":
        cell.forward = types.MethodType(step, cell)
    cell.thing = make(value)
    return cell.double()


@pytest.mark.parametrize("name", KINDS)
def test_a_change_of_any_kind_of_attribute_is_seen(name):
    layer, x = anyrnn.Recurrent(with_thing(name, 0.5)), draw()
    assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "cpu", why(layer, x)
    first = layer(x)[0]
    KINDS[name][2](layer.cell())
    assert_like_the_loop(layer, x)
    assert not torch.equal(layer(x)[0], first), "the change changes nothing: the test shows nothing"


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("a global", "a value of the class", "a sign of zero")])
def test_cells_that_differ_in_any_kind_of_attribute_share_no_plan(name):
    x = draw()
    first, second = (anyrnn.Recurrent(with_thing(name, value)) for value in (0.5, 0.75))
    first(x)
    assert_like_the_loop(second, x)
    assert not torch.equal(first(x)[0], second(x)[0])


ALONE = {"a weak reference's object", "a number of C", "a mapping proxy"} | {n for n in KINDS if "kept" in n}


def test_what_looks_for_a_module_on_the_way_is_no_part_of_a_step(monkeypatch):
    """As pytest's, and those of type checkers: code of others runs where a module is imported in a step."""
    elsewhere = {}
    exec(compile("def look(name):\n    return name if len(name) > 3 else None", "elsewhere.py", "exec"), elsewhere)
    finder = types.SimpleNamespace(find_spec=lambda name, *_: elsewhere["look"](name) and None)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])

    def step(c, x, h):
        import colorsys  # noqa: PLC0415

        return torch.tanh(c.W(x) + c.U(h) + x.new_full((len(x), 1), colorsys.ONE_THIRD))

    cell = plain(step)
    signature = describe(cell, I)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert trace(cell, signature, I, DOUBLE).ops


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ALONE])
def test_equal_cells_share_their_plan(name):
    x = draw()
    first, second = (anyrnn.Recurrent(with_thing(name, 0.5)) for _ in range(2))
    first(x)
    count = len(plans._plans)
    second(x)
    assert len(plans._plans) == count


def test_what_a_cached_function_keeps_beside_is_no_change():
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + c.thing(2) * c.U(h)))
    cell.thing = functools.cache(lambda n: n / 4)
    layer, x = anyrnn.Recurrent(cell), draw()
    layer(x)
    count = len(plans._plans)
    cell.thing(3)
    assert_like_the_loop(layer, x)
    assert len(plans._plans) == count
    assert engine_of(layer, x) == "cpu"


def test_a_value_that_the_class_of_the_class_holds_is_seen():
    class Meta(type):
        held = 0.5

        @property
        def scale(cls):
            return Meta.held

    class Own(Plain, metaclass=Meta):
        pass

    layer, x = anyrnn.Recurrent(Own(lambda c, x, h: torch.tanh(c.W(x) + type(c).scale * c.U(h))).double()), draw()
    for Meta.held in (0.5, 0.75):
        assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "cpu"


def test_a_module_that_a_step_imports_is_looked_at(monkeypatch):
    settings = types.ModuleType("settings_of_a_test")
    monkeypatch.setitem(sys.modules, "settings_of_a_test", settings)

    def step(c, x, h):
        from settings_of_a_test import scale  # noqa: PLC0415

        return torch.tanh(c.W(x) + scale * c.U(h))

    settings.scale = 0.5
    layer, x = anyrnn.Recurrent(plain(step)), draw()
    for settings.scale in (0.5, 0.75):
        assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "cpu", why(layer, x)


def test_a_function_of_cython_may_be_an_attribute():
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + (c.thing is not None) * c.U(h)))
    cell.thing = np.random.default_rng
    layer, x = anyrnn.Recurrent(cell), draw()
    assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "cpu", why(layer, x)


def test_what_the_code_does_not_name_is_not_looked_at():
    cell, x = plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h))), draw()
    cell.ticks, cell.writer = (n for n in range(3)), sys.stdout
    cell.file, cell.loss = iter([1]), 0.0
    layer = anyrnn.Recurrent(cell)
    with pytest.raises(AssertionError):
        assert engine_of(layer, x) == "cpu"  # an iterator cannot be copied for a trace
    del cell.ticks, cell.file
    layer(x)
    made = len(plans._plans)
    for k in range(3):
        cell.loss = float(k)
        assert_like_the_loop(layer, x)
    assert len(plans._plans) == made
    assert engine_of(layer, x) == "cpu"


# ---- Numbers that change from call to call --------------------------------------------------------------------------


def test_a_number_that_changes_becomes_an_input():
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) * (1 - c.alpha) + c.alpha * c.U(h)))), draw()
    layer(x)
    layer.cell().alpha = 0.6
    outcome("auto", layer, x)
    made, compiled = len(plans._plans), len(jit._compiled)
    for k in range(30):
        layer.cell().alpha = k / 30
        assert_like_the_loop(layer, x)
    assert (len(plans._plans), len(jit._compiled)) == (made, compiled)
    assert engine_of(layer, x) == "cpu"


def test_a_number_that_is_looked_at_makes_plans_up_to_a_limit():
    step = lambda c, x, h: torch.tanh(c.W(x) * (2 if c.alpha > 0.5 else 1) + c.alpha * c.U(h))  # noqa: E731
    layer, x = anyrnn.Recurrent(plain(step)), draw(2, 2, I)
    for k in range(22):
        layer.cell().alpha = k / 22
        assert_like_the_loop(layer, x)
    assert "differs at every call: the attribute `alpha`" in why(layer, x)


alpha_of_something_else = iter([1, 2])


def test_a_global_that_has_the_name_of_an_attribute_is_not_read():
    step = lambda c, x, h: torch.tanh(c.W(x) + c.U(h) * c.alpha_of_something_else)  # noqa: E731
    layer, x = anyrnn.Recurrent(plain(step)), draw()
    layer.cell().alpha_of_something_else = 0.5
    assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "cpu", why(layer, x)
    layer.cell().alpha_of_something_else = 0.75
    assert_like_the_loop(layer, x)


def test_a_refused_cell_that_is_mended_is_compiled_after_some_steps_and_at_once_where_somebody_asks():
    """Until then its loop runs it, as it is now."""
    mix = nn.Conv1d(1, 1, 3, padding=1, dtype=DOUBLE)
    step = lambda c, x, h: torch.tanh(c.W(x) + (mix(c.U(h)[:, None])[:, 0] if c.mixes else c.U(h)))  # noqa: E731

    def refused():
        cell = plain(step)
        cell.mixes = True
        layer, x = anyrnn.Recurrent(cell), draw()
        for _ in range(3):
            layer(x)
        assert isinstance(plans.last_plan_of(cell), str)
        cell.mixes = False
        return layer, x

    layer, x = refused()
    assert_like_the_loop(layer, x)
    assert isinstance(plans.last_plan_of(layer.cell()), str)
    for _ in range(128 // len(x)):
        assert_like_the_loop(layer, x)
    assert isinstance(plans.last_plan_of(layer.cell()), plans.Plan)
    layer, x = refused()
    assert engine_of(layer, x) == "cpu"
    layer, x = refused()
    assert layer.stream().engine == "cpu"
    layer, x = refused()
    layer.eval()(x)
    assert isinstance(plans.last_plan_of(layer.cell()), plans.Plan)


def test_going_back_and_forth_between_known_plans_is_no_change():
    step = lambda c, x, h: torch.tanh(c.W(x) * (2 if c.alpha > 0.5 else 1) + c.alpha * c.U(h))  # noqa: E731
    layer, x = anyrnn.Recurrent(plain(step)), draw(2, 2, I)
    for k in range(40):
        layer.cell().alpha = k % 2
        assert_like_the_loop(layer, x)
        layer.train(k % 3 == 0)
    layer.cell().alpha = 3
    assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "cpu", why(layer, x)


# ---- Hooks, contexts, foreign tracers --------------------------------------------------------------------------------


def test_global_module_hooks_are_called():
    layer, x, seen = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h)))), draw(), []
    layer(x)
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    layer(x)
    handle.remove()
    assert seen.count(layer.cell()) == T
    assert engine_of(layer, x) == "cpu"


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "a default device": lambda: torch.device("cpu"),
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_context_of_the_first_call_does_not_last(name):
    class Own(Plain):
        """A class of its own, for which there is no plan."""

    torch.manual_seed(1)
    layer, x = anyrnn.Recurrent(Own(lambda c, x, h: torch.tanh(c.U(h) + torch.relu(c.W(x)))).float()), draw().float()
    want = outcome("reference", layer, x)
    with warnings_as_they_come(), CONTEXTS[name]():
        layer(x)
    assert_near(outcome("cpu", layer, x), want, 1e-5)


@contextlib.contextmanager
def warnings_as_they_come():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_default_dtype_does_not_last():
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h) * (torch.ones(1) / 3)))), draw()
    want = outcome("reference", layer, x)
    torch.set_default_dtype(torch.float64)
    try:
        assert_like_the_loop(layer, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_near(outcome("auto", layer, x), want, 1e-12)


def fake(layer, x):
    from torch._subclasses import FakeTensorMode  # noqa: PLC0415 - it takes seconds

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return layer(mode.from_tensor(x))[0]


def proxied(layer, x):
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415 - it takes seconds

    return make_fx(lambda v: layer(v)[0])(x)(x)


def jit_traced(layer, x):
    return torch.jit.trace(layer, x)(x)[0]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("tracer", [fake, proxied, jit_traced])
def test_foreign_tracers_see_the_plain_loop(tracer, warm):
    layer, x = anyrnn.LSTM(I, 3), draw().float()
    want = layer(x)[0].detach() if warm else None
    with torch.no_grad(), warnings_as_they_come():
        got = tracer(layer, x)
    want = layer(x)[0].detach() if want is None else want
    assert got.shape == want.shape
    if tracer is not fake:
        torch.testing.assert_close(got, want)
    with anyrnn.engine("cpu"):  # nothing broken was remembered
        torch.testing.assert_close(layer(x)[0], want)


class Packed(torch.Tensor):
    """A tensor without memory of its own, as quantised and distributed ones are."""

    @staticmethod
    def __new__(cls, w):
        return torch.Tensor._make_wrapper_subclass(cls, w.shape, dtype=w.dtype)

    def __init__(self, w):
        self.w = w

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        if f is torch.ops.aten.detach.default:
            return cls(args[0].w)
        return f(*tree_map(lambda v: v.w if isinstance(v, cls) else v, args), **(kwargs or {}))


def packed(c):
    c.U.weight = nn.Parameter(Packed(c.U.weight.data), requires_grad=False)


def sparse(c):
    c.register_buffer("R", torch.eye(H, dtype=DOUBLE).to_sparse_csr())
    c.step = lambda c, x, h: torch.tanh(c.W(x) + (c.R @ h.T).T)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("change", [packed, sparse])
@pytest.mark.parametrize("warm", [False, True])
def test_tensors_without_plain_memory_are_left_to_pytorch(change, warm):
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h)))), draw()
    with torch.no_grad():
        if warm:
            layer(x)
        change(layer.cell())
        with anyrnn.engine("reference"):
            want = layer(x)[0]
        torch.testing.assert_close(layer(x)[0], want)
    assert engine_of(layer, x) == "reference"


def test_a_weight_moved_to_another_device_is_seen():
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h)))), draw()
    layer(x)
    layer.cell().U.weight = nn.Parameter(layer.cell().U.weight.to("meta"))
    with anyrnn.engine("reference"):
        want = layer(x)[0]
    assert layer(x)[0].device == want.device  # to PyTorch, numbers and no numbers make no numbers


def test_a_negative_view_is_read_with_its_sign():
    layer = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h))))
    x = torch.view_as_complex(draw(T, B, I, 2)).conj().imag
    assert x.is_neg()
    assert_like_the_loop(layer, x)


#: What hooks on saved tensors may hand back: equal numbers in another form.
SAVED = {
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t,
    "expanded": lambda t: torch.stack([t, t])[1] if t.dim() else t,
    "with gaps": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "in float32": lambda t: t.float(),
    "negated twice": lambda t: torch.view_as_complex(torch.stack([t, -t], -1)).conj().imag,
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("lengths", [None, [5, 3, 1, 0]])
def test_what_hooks_on_saved_tensors_hand_back_is_checked(name, lengths):
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h) * c.v))), draw()
    want = outcome("cpu", layer, x, lengths=lengths)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, SAVED[name]):
        got = outcome("cpu", layer, x, lengths=lengths)
    assert_near(got, want, 1e-4 if name == "in float32" else 1e-12)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("form", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_mkldnn])
def test_a_saved_tensor_that_comes_back_in_another_layout_is_made_dense(form):
    saved = torch.randn(3, 4).t()
    got = _as_saved(form(saved), _form(saved))
    assert torch.equal(got, saved)
    assert got.stride() == saved.stride()


def test_saved_tensors_of_another_shape_are_an_error():
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.U(h)))), draw()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[:1] if t.dim() == 3 else t):
        output, _ = layer(x)
        with pytest.raises(anyrnn.AnyRNNError, match="saved for the backward pass"):
            output.sum().backward()


# ---- What is remembered, and for how long ----------------------------------------------------------------------------


def refers_by_method(c):
    c.act = c.forward


def refers_by_list(c):
    c.me = [c]


def refers_by_closure(c):
    c.act = lambda v: torch.tanh(v) + 0 * c.alpha


@pytest.mark.parametrize("refer", [refers_by_method, refers_by_list, refers_by_closure])
def test_a_cell_that_refers_to_itself_is_freed(refer):
    layer, x = (
        anyrnn.Recurrent(plain(lambda c, x, h: c.act(c.W(x) + c.U(h)) * (2 if c.me else 1))),
        draw(),
    )
    layer.cell().me = None
    refer(layer.cell())
    if refer is refers_by_method:
        layer.cell().act = types.MethodType(lambda self, v: torch.tanh(v), layer.cell())
    assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "cpu", why(layer, x)
    gone = weakref.ref(layer.cell())
    del layer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("error", [MemoryError("now"), OSError("now"), RuntimeError("can't allocate memory: now")])
def test_an_error_of_the_moment_is_not_remembered(error):
    failing = [error]

    def step(c, x, h):
        if failing and sys.getprofile() is not None:
            raise failing[0]
        return torch.tanh(c.W(x) + c.U(h) * 0.123)

    layer, x = anyrnn.Recurrent(plain(step)), draw()
    assert_like_the_loop(layer, x)
    assert engine_of(layer, x) == "reference"
    failing.clear()
    step.__defaults__ = None
    assert_like_the_loop(layer, x)


_FORK = """
import os, threading, time, torch, anyrnn
from torch import nn
class Slow(nn.Module):
    hidden_size = 3
    def __init__(self): super().__init__(); self.a = nn.Linear(2, 3)
    def forward(self, x, h):
        started.set(); time.sleep(0.3); return torch.tanh(self.a(x) + h)
started = threading.Event()
layer = anyrnn.Recurrent(Slow(), 2)
with anyrnn.engine("cpu"):  # all modules are loaded: a fork leaves behind the locks of imports, too, which are Python's
    anyrnn.LSTM(2, 3)(torch.zeros(1, 1, 2))
started.clear()
thread = threading.Thread(target=layer, args=(torch.zeros(1, 1, 2),))
thread.start(); started.wait()
child = os.fork()
if not child:
    with anyrnn.engine("cpu"):
        anyrnn.GRU(2, 3)(torch.zeros(1, 1, 2))
    os._exit(0)
thread.join()
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_forks_during_a_trace_leaves_no_lock_behind():
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # GNU's OpenMP hangs in a child of a process that used its pool
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK],
        env=alone,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.strip() == "0"


def test_other_threads_draw_their_random_numbers_while_a_cell_is_traced():
    torch.manual_seed(5)
    want = [torch.rand(1).item() for _ in range(3)]
    go, drawn = threading.Event(), []

    def step(c, x, h):
        if sys.getprofile() is not None and not go.is_set():
            go.set()
            thread.join()
        return torch.tanh(c.W(x) + h * 0.777)

    def draws():
        go.wait(20)
        drawn.extend(torch.rand(1).item() for _ in range(3))

    thread = threading.Thread(target=draws)
    cell = plain(step)
    torch.manual_seed(5)
    thread.start()
    anyrnn.Recurrent(cell)(torch.zeros(2, 2, I, dtype=DOUBLE))
    go.set()
    thread.join()
    assert drawn == want
    assert torch.rand(1).item() not in want


def test_a_copy_of_a_layer_has_a_plan_of_its_own():
    layer, x = anyrnn.Recurrent(plain(lambda c, x, h: torch.tanh(c.W(x) + c.alpha * c.U(h)))), draw()
    layer(x)
    other = copy.deepcopy(layer)
    other.cell().alpha = 0.9
    assert_like_the_loop(other, x)
    assert_like_the_loop(layer, x)
