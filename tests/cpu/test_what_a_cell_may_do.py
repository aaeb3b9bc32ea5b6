"""The table of docs/own-cells.md, "What a cell may do, and what then happens": each of its rows is run here.

A row is compiled, or runs as the plain loop for the reason that `explain` gives, or is refused with a message; and
values and gradients are those of the engine "reference" in every case. ``python tests/test_docs.py`` puts the table
into the page anew.
"""

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from compare import DOUBLE, H, I, Plain, assert_near
from torch import nn
from torch.nn import functional as F

import anyrnn
from anyrnn.engines.cpu.backend import CpuBound
from zoo import gradients, loss_of

PAGE = Path(__file__).parents[2] / "docs" / "own-cells.md"
BEGIN, END = "<!-- what a cell may do -->\n", "<!-- end -->\n"
SCALE = [0.5]


class Cell(Plain):
    """The cell whose step a row is."""


class Round(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx, v):
        return v.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Clipped(torch.autograd.Function):
    """A function whose gradient is no multiple of the incoming one."""

    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-0.01, 0.01)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        words: What the step does.
        step: The step: of the cell, x and h.
        remark: What the table says where nothing is to be explained.
        change: What becomes of the cell between two calls.
        below: What both calls are below.
        draws: Whether there are random numbers that an engine draws in an order of its own, or what memory happens to
            hold.
    """

    words: str
    step: Callable
    remark: str = ""
    change: Callable = lambda c: None
    below: Callable = contextlib.nullcontext
    draws: bool = False


def leaky(c, x, h):
    return torch.tanh(c.W(x) + c.U(h) * c.alpha)


def doing(effect):
    def step(c, x, h):
        effect(c, x, h)
        return leaky(c, x, h)

    return step


def with_a_buffer(c, x, h):
    c.running.mul_(0.9).add_(0.1)
    return torch.tanh(c.W(x) + h * c.running.clone())


def written(c, x, h):
    out = torch.zeros_like(h)
    for k in range(H):
        out[:, k] = torch.tanh(c.W(x)[:, k] + h[:, k])
    return out


def silent(c, x, h):
    with torch.no_grad():
        scale = h.abs().amax(1, keepdim=True)
    return torch.tanh(c.W(x) + h / (1 + scale))


def clipped(c, x, h):
    a = c.W(x) + c.U(h)
    if a.requires_grad:
        a.register_hook(lambda g: g.clamp(-0.01, 0.01))
    return torch.tanh(a)


def scaled(value):
    def change(c):
        SCALE[0] = value

    return change


TABLE = {
    "Operations": [
        Row("computes with features: arithmetic, activations, `where`, `cat`, `chunk`, `mean(1)`, softmax",
            lambda c, x, h: torch.where(h > 0, h, F.silu(c.W(x))) + torch.cat([h, x], 1).softmax(1).mean(1, True)),
        Row("multiplies with a weight, a part of one, or one that is computed (`A - A.T`)",
            lambda c, x, h: torch.tanh(c.W(x) + h @ (c.U.weight - c.U.weight.T) + c.U.weight[0] * h)),
        Row("views the state in three dimensions, as heads or blocks",
            lambda c, x, h: torch.tanh(c.W(x) + (h.view(-1, 1, H) * c.U.weight).sum(2) + h.unsqueeze(1).mean(1))),
        Row("takes features by number: `h[:, [2, 0, 1]]`, by a mask, in their order (`sort`, `topk`)",
            lambda c, x, h: torch.tanh(c.W(x)[:, [2, 0, 1]] + h.sort(1).values + h[:, [True, False, True]][:, :1])),
        Row("takes them by numbers that may be others in the next call",
            lambda c, x, h: torch.tanh(c.W(x) + h[:, c.order])),
        Row("does with x alone what the loop cannot: a median, a convolution, `x.mean(0)`",
            lambda c, x, h: torch.tanh(c.W(x.median(1, True).values.expand_as(x) - x.mean(0)) + h),
            "by PyTorch, before the loop"),
        Row("does it with the state", lambda c, x, h: torch.tanh(c.W(x) + h.median(1, True).values)),
        Row("lets rows of the batch meet in the state", lambda c, x, h: torch.tanh(c.W(x) + h - h.mean(0))),
        Row("multiplies two values as matrices",
            lambda c, x, h: torch.tanh(c.W(x) + torch.bmm(h.unsqueeze(2), h.unsqueeze(1)).sum(2))),
        Row("uses a `torch.autograd.Function` that has a slope for each number: surrogates, straight-through",
            lambda c, x, h: torch.tanh(c.W(x) + Round.apply(h)), "or `anyrnn.elementwise(f, df)`"),
        Row("uses one with another gradient, such as a clipped one",
            lambda c, x, h: torch.tanh(c.W(x) + Clipped.apply(h))),
    ],
    "Reads of tensors": [
        Row("asks for `dtype`, `device`, `dim()`, the size of features",
            lambda c, x, h: leaky(c, x.to(h.dtype), h) if x.dim() == 2 and x.shape[1] == I else h),
        Row("takes a number out of a tensor: `.item()`, `float(h.max())`, `if h.sum() > 0`",
            lambda c, x, h: leaky(c, x, h) if h.sum() > 0 else c.W(x) + 0 * c.U(h)),
        Row("computes in NumPy", lambda c, x, h: torch.tanh(c.W(x) + h * float(np.mean(x.detach().numpy())))),
        Row("decides by `requires_grad` or `grad_fn`",
            lambda c, x, h: leaky(c, x, h) * (1 if h.requires_grad else 2)),
        Row("decides by `is_contiguous()` or `stride()`", lambda c, x, h: leaky(c, x, h) * (1 + x.is_contiguous())),
        Row("reads memory that nobody has written (`torch.empty`)",
            lambda c, x, h: leaky(c, x, h) + 0 * torch.empty_like(h).fill_(1.0)[:, :1] + 0 * torch.empty_like(h),
            draws=True),
    ],
    "Sizes": [
        Row("makes tensors for the batch: `x.new_zeros(x.shape[0], 3)`",
            lambda c, x, h: leaky(c, x, h) + x.new_ones(x.shape[0], H) * x.new_zeros(len(x), 1)),
        Row("compares the size of the batch",
            lambda c, x, h: leaky(c, x, h) if x.shape[0] > 3 else leaky(c, 2 * x, h)),
        Row("computes with it", lambda c, x, h: torch.tanh(c.W(x) + c.U(h) / x.shape[0])),
    ],
    "Random numbers": [
        Row("draws in the shape of x, as dropout on x does", lambda c, x, h: leaky(c, F.dropout(x, 0.5), h),
            "all steps' numbers at once: others than the plain loop's, of the same distribution", draws=True),
        Row("draws in the shape of the state, as dropout and zoneout do",
            lambda c, x, h: leaky(c, x, F.dropout(h, 0.5)), "likewise", draws=True),
        Row("draws from a distribution whose mean is the state", lambda c, x, h: leaky(c, x, torch.normal(h, 1.0))),
        Row("draws from Python's or NumPy's generators, or from one of its own",
            lambda c, x, h: leaky(c, x, h) if random.random() < 0.5 else c.W(x) + 0 * c.U(h)),
    ],
    "Side effects": [
        Row("stores a tensor in an attribute", doing(lambda c, x, h: setattr(c, "last", h))),
        Row("counts its steps, or fills a list", doing(lambda c, x, h: setattr(c, "count", c.count + 1))),
        Row("changes a buffer", with_a_buffer),
    ],
    "Settings that change between two calls": [
        Row("reads attributes: numbers, lists, objects, closures, partials, as deep as you like",
            lambda c, x, h: leaky(c, x, h) * c.table["alpha"], "seen; a number that changes becomes an input",
            lambda c: c.table.update(alpha=0.75)),
        Row("reads a global variable or an attribute of its class", lambda c, x, h: leaky(c, x, h) * SCALE[0], "seen",
            scaled(0.75)),
        Row("reads what no object holds: a clock, a file, the environment",
            lambda c, x, h: leaky(c, x, h) * (1 + (time.time() > 0))),
        Row("has other weights: changed, replaced, frozen, shared", leaky, "seen",
            lambda c: setattr(c.U, "weight", nn.Parameter(c.U.weight.data * 2))),
        Row("decides by `self.training`", lambda c, x, h: leaky(c, x, h) * (1 if c.training else 2), "seen",
            lambda c: c.eval()),
    ],
    "In place": [
        Row("changes what it has computed: `a.add_(b).tanh_()`", lambda c, x, h: c.W(x).add_(c.U(h)).tanh_()),
        Row("writes into x or its state: `h.mul_(0.9)`", lambda c, x, h: torch.tanh(c.W(x) + c.U(h.mul_(0.9))),
            "they are copies: the caller's stay as they are"),
        Row("writes part after part: `out[:, k] = ...`", written),
    ],
    "Precision": [
        Row("computes with masks: `(h > 0) & ~m`, `mask * h`, `mask.to(h.dtype)`",
            lambda c, x, h: leaky(c, x, h) + ((h > 0) & (h < 1)) * h + (h > 0.1).to(h.dtype)),
        Row("computes with integers, which become numbers of the default type",
            lambda c, x, h: leaky(c, x, h) + (h > 0).long() / 3),
        Row("rounds to another type in the loop: `h.half()`",
            lambda c, x, h: torch.tanh(c.W(x) + c.U(h).half().to(x.dtype))),
    ],
    "Modules inside": [
        Row("calls torch.nn's modules: `Linear`, `GRUCell`, `LayerNorm`, activations",
            lambda c, x, h: F.layer_norm(c.module(c.W(x) + c.U(h)), (H,))),
        Row("calls a layer of this package", lambda c, x, h: torch.tanh(c.W(x) + c.inner(h.unsqueeze(2))[0][..., 0])),
        Row("normalises over the batch, in training", lambda c, x, h: leaky(c, c.norm(x), h)),
        Row("has a module with hooks", leaky, change=lambda c: c.W.register_forward_hook(lambda m, a, out: out / 2)),
        Row("sets a hook on a tensor: clipping by `register_hook`", clipped),
    ],
    "Contexts": [
        Row("is called below `no_grad` or `inference_mode`", leaky, "also where it was first called otherwise",
            below=torch.no_grad),
        Row("is called below autocast, which was not there before", leaky, "its casts do not last",
            below=lambda: torch.autocast("cpu", torch.bfloat16)),
        Row("is called below a default device or type", leaky, "they do not last either",
            below=lambda: torch.device("cpu")),
        Row("enters `torch.no_grad` itself", silent),
        Row("decides by `torch.is_grad_enabled()`",
            lambda c, x, h: leaky(c, x, h) * (1 if torch.is_grad_enabled() else 2)),
    ],
    "Mistakes": [
        Row("returns a state of another size", lambda c, x, h: torch.cat([h, c.W(x)], 1)),
        Row("returns no tensor", lambda c, x, h: None),
    ],
}  # fmt: skip
ROWS = {row.words: row for rows in TABLE.values() for row in rows}


def called(row, engine):
    """Values and gradients of two calls, with the change between them; how often machine code ran; and the reason."""
    torch.manual_seed(1)
    random.seed(1)
    SCALE[0] = 0.5
    cell = Cell(row.step)
    cell.inner = anyrnn.GRU(1, 1, batch_first=True)
    layer, results, ran = anyrnn.Recurrent(cell.double()), [], []
    launch = CpuBound.launch

    def counted(self):
        ran.append(self)
        return launch(self)

    for change in (lambda c: None, row.change):
        change(cell)
        ran.clear()
        x = torch.randn(4, 5, I, dtype=DOUBLE)
        with anyrnn.engine(engine), row.below(), mock.patch.object(CpuBound, "launch", counted):
            output, state = layer(x)
        results += [output.detach(), state.detach()]
        if output.requires_grad:
            results += gradients([p for p in cell.parameters() if p.requires_grad], loss_of(output, state))
    with row.below():
        (part,) = anyrnn.explain(layer, x).parts
    return results, bool(ran) and part.engine == "cpu", part.refused.get("cpu", "")


def outcome(row):
    """What happens with a row, in two words, and why."""
    try:
        want, _, _ = called(row, "reference")
    except anyrnn.AnyRNNError as error:
        with pytest.raises(anyrnn.AnyRNNError):
            called(row, "auto")
        return "refused", str(error).splitlines()[1].strip()
    got, compiled, why = called(row, "auto")
    if not row.draws:
        assert_near(got, want, 1e-10)
    assert compiled or why, f"{row.words}: it runs as the plain loop, and nothing says why"
    return ("**compiled**", row.remark) if compiled else ("plain", why)


def table():
    lines = ["| your step | then | why, as `explain` says, or remark |", "|---|---|---|"]
    for group, rows in TABLE.items():
        lines.append(f"| *{group}* | | |")
        for row in rows:
            then, why = outcome(row)
            lines.append(f"| {row.words} | {then} | {why.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def refreshed():
    """The page with the table as the rows have it now."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def test_the_page_says_what_happens():
    assert refreshed() == PAGE.read_text(encoding="utf-8"), "refresh it: python tests/test_docs.py"
