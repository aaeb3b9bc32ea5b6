"""The table of docs/own-cells.md, from what a cell looks like to the line that runs it: each row is run, compiled."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import anyrnn

PAGE = (Path(__file__).parents[1] / "docs" / "own-cells.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("| your step |") : PAGE.index("Further arguments come behind x")]
ROWS = [[column.strip() for column in line.strip("|").split("|")] for line in TABLE.strip().splitlines()[2:]]
I, H = 12, 64


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


class Cell(nn.Module):
    hidden_size = H

    def __init__(self, forward):
        super().__init__()
        self.W, self.U = nn.Linear(I, H), nn.Linear(H, H)
        self.V, self.Q = nn.Linear(5, H), nn.Linear(H, 16)
        type(self).forward = forward


def cell(forward):
    """A cell of a class of its own, with this step."""
    return type("Cell", (Cell,), {})(forward)


def new(m, x, h):
    return torch.tanh(m.W(x) + m.U(h))


def pair(m, x, h, c):
    c = torch.sigmoid(m.W(x)) * c + m.U(h)
    h = torch.tanh(c)
    return h, c


def turned(m, x, h, c):
    c = torch.sigmoid(m.W(x)) * c + m.U(h)
    h = torch.tanh(c)
    return c, h


def with_output(m, x, h, c):
    h, c = pair(m, x, h, c)
    return m.U(h), h, c


def with_dict(m, x, h):
    gate = torch.sigmoid(m.W(x))
    h = gate * h + m.U(h)
    return {"y": m.Q(h), "gate": gate}, h


def named(m, x, state: Pair):
    return Pair(*pair(m, x, state.h, state.c))


def attention(m, x, h, memory):
    weights = torch.softmax((memory @ m.Q(h).unsqueeze(2)).squeeze(2), 1)
    return torch.tanh(m.W(x) + (weights.unsqueeze(2) * memory).sum(1).repeat(1, 4))


def heads(m, x, h):
    return torch.tanh(m.W(x).view(-1, 4, 16) + h * h.amax(2, keepdim=True))


def images(m, x, h):
    return torch.tanh(h + x.flatten(1)[:, :H])


def gated(m, x, h):
    gate = torch.sigmoid(m.W(x))
    return gate * torch.tanh(m.U(h)) + (1 - gate) * h


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(I, H)

    def advance(self, x, h, c):
        return self.cell(x, (h, c))


#: For each row, by the first words of its first column: the step.
STEPS = {
    "`forward(x, h)` returns": new,
    "`forward(x, state)` with": lambda m, x, state: pair(m, x, *state),
    "`forward(x, h, c)` returns `(h, c)`": pair,
    "`forward(x, h, c)` returns `(c, h)`": turned,
    "returns `(output, h)`, or": with_output,
    'returns `({"y": y': with_dict,
    "reads `state.h`": named,
    "is a method": None,
    "`forward(x, h, dt)`": lambda m, x, h, dt: new(m, x, h * torch.exp(-dt)),
    "`forward(x, h, *, mask, delta)`": lambda m, x, h, *, mask, delta: new(m, torch.where(mask, x, delta), h),
    "`forward(x, h, static)`": lambda m, x, h, static: new(m, x, h) * torch.sigmoid(m.V(static)),
    "`forward(x, h, memory)`": attention,
    "`forward(x, h, A)`": lambda m, x, h, A: torch.tanh(m.W(x) + h @ A),
    "its state is (B, 4, 16)": heads,
    "x is (B, 3, 8, 8)": images,
    "reads what a function makes": new,
    "goes on by itself": new,
    "you want its states": new,
    "you want a local variable": gated,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_runs_compiled_and_as_the_plain_loop(row):
    (start,) = [start for start in STEPS if row[0].startswith(start)]
    torch.manual_seed(0)
    T, B = 9, 8
    names = {
        "anyrnn": anyrnn, "torch": torch, "cell": cell(STEPS[start]) if STEPS[start] else None, "model": Model(),
        "x": torch.randn(T, B, I), "dt": torch.rand(T, B, 1), "mask": torch.rand(T, B, I) > 0.5,
        "delta": torch.rand(T, B, 1), "static": torch.randn(B, 5), "memory": torch.randn(B, 7, 16),
        "A": torch.randn(H, H) / 16, "images": torch.randn(T, B, 3, 8, 8), "head": nn.Linear(H, I),
        "forced": torch.rand(T, B) > 0.5,
    }  # fmt: skip
    made, call = (re.fullmatch(r"`(.*)`", column) for column in row[1:])
    layer = names["layer"] = eval(made[1] if made else "anyrnn.Recurrent(cell, input_size=12)", names)
    assert call is not None
    found = {}
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            result = eval(call[1], names)
        found[engine] = result
    torch.testing.assert_close(found["cpu"], found["reference"])
    assert list(layer.state_dict())


def test_every_row_has_a_step_and_every_step_a_row():
    assert len(ROWS) == len(STEPS)
    assert all(sum(row[0].startswith(start) for row in ROWS) == 1 for start in STEPS)
