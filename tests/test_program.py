"""Programs have names and a text, which is complete: read back it is the same program, of the same machine code.

The texts of some cells are in `programs.txt`; after a change that is meant to change them, this file, run as a script,
writes them anew.
"""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyrnn
from anyrnn.compiler.derive import derive
from anyrnn.compiler.node import Builder, evaluate
from anyrnn.compiler.passes import anonymous, elementary, merge_products, placed, refine, without
from anyrnn.compiler.program import Array, Program, parse
from anyrnn.compiler.split import split
from anyrnn.compiler.trace import trace
from anyrnn.probing import describe
from zoo import CASES, I


def program_of(cell, size=I):
    return split(trace(cell, describe(cell, size), size)).program


class Odd(nn.Module):
    """A cell with all that a text has to write: names, numbers, activations with arguments, masks, reductions."""

    def __init__(self):
        super().__init__()
        self.hidden_size = 4
        self.layers = nn.Sequential(nn.Linear(I, 4), nn.Linear(4, 4))
        self.T = nn.Linear(4, 4)
        self.register_parameter("lambda", nn.Parameter(torch.randn(4)))
        self.v1 = nn.Parameter(torch.randn(4))

    def forward(self, x, h):
        v0 = F.elu(self.layers[0](x) + self.T(h), 0.25) * getattr(self, "lambda")
        v1 = F.gelu(v0 * self.v1, approximate="tanh").clamp(-1e-5, float("inf"))
        inf = torch.where(v1 > 0.5, v1, -v1 / 3e30) + v1.sum(-1, keepdim=True)
        return torch.tanh(inf - h.amax(-1, keepdim=True)) + torch.zeros_like(h)


class Inner(nn.Module):
    """A cell with all that reads by strides: heads, a graph, attention, transposed and spread numbers, maxima."""

    def __init__(self):
        super().__init__()
        self.hidden_size = 12
        self.heads, self.graph = nn.Parameter(torch.randn(2, 6, 12)), nn.Parameter(torch.randn(3, 3))
        self.last, self.pairs = nn.Linear(4, 4), nn.Parameter(torch.randn(12, 12))

    def forward(self, x, h):
        z, g = torch.einsum("bhd,hde->bhe", h.view(-1, 2, 6), self.heads).chunk(2, 2)
        nodes = self.graph @ self.last((torch.sigmoid(z) * g).reshape(-1, 3, 4))  # (B, 3, 4)
        weights = torch.softmax(nodes @ nodes.transpose(1, 2), 2)  # (B, 3, 3)
        new = (weights @ nodes).transpose(1, 2).flatten(1)
        active = torch.sigmoid(new.unsqueeze(2) - self.pairs)  # (B, 12, 12)
        return torch.tanh(x.repeat(1, 12 // I) + active.sum(1) - active.amax(2))


CELLS = {case.name: case.cell for case in CASES} | {"odd names": Odd, "inner dimensions": Inner}


@pytest.mark.parametrize("name", CELLS)
def test_the_text_of_a_program_and_of_its_derivative_is_read_back(name):
    program = program_of(CELLS[name]())
    derivative = derive(program)
    for each in (program, derivative.forward, derivative.backward, anonymous(derivative.backward)):
        text = str(each)
        again = parse(text)
        assert str(again) == text
        assert again == each
        assert again.arrays == each.arrays
        assert [n.op for n in again.nodes] == [n.op for n in each.nodes]


GOLDEN = Path(__file__).with_name("programs.txt")


def golden_texts():
    """The programs of some cells, forward and backward."""
    for name in ("GRU", "Peephole", "GRU-reset-before", "NormLSTM", "odd names", "inner dimensions"):
        torch.manual_seed(0)
        derivative = derive(program_of(CELLS[name]()))
        yield f"# {name}: forward\n{derivative.forward}\n"
        yield f"# {name}: backward\n{derivative.backward}\n"


def test_the_programs_of_some_cells_are_the_ones_that_were_looked_at():
    if torch.__version__.startswith("2.13"):  # its backward formulas
        assert "\n".join(golden_texts()) == GOLDEN.read_text()


def test_explain_shows_the_program_after_each_pass():
    layer = anyrnn.Recurrent(Odd(), input_size=I)
    shown = str(anyrnn.explain(layer, torch.randn(50, 2, I), show="passes"))
    titles = [line for line in shown.split("\n") if line.startswith("# ")][1:]
    assert titles[:3] == ["# lowered", "# after merge_products", "# after refine"]
    texts = [text.partition("\n")[2].strip() for text in shown.split("\n# ")[1:]]
    programs = [parse(text) for text in texts]
    assert merge_products(programs[0]) == programs[1]
    assert refine(programs[1]) == programs[2]
    assert len(programs) == 5


def test_what_is_read_back_computes_the_same():
    program = program_of(Odd())
    again = parse(str(program))
    torch.manual_seed(0)
    arrays = {a.name: torch.randn(2, a.width) for a in program.of("stream", "state")}
    arrays |= {a.name: torch.randn(a.width).expand(2, -1) for a in program.of("vector")}
    matrices = {a.name: torch.randn(a.rows, a.width) for a in program.of("matrix")}
    found = []
    for each in (program, again):
        known = {n: arrays[n.attr[0]][:, n.attr[1] : n.attr[1] + n.width] for n in each.nodes if n.is_leaf}
        evaluate(each.nodes, known, matrices)
        found.append([known[p] for name in each.results for p in each.results[name]])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_programs_are_equal_if_their_texts_are_and_anonymous_ones_if_they_differ_in_names_only():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size = 4
            self.inner, self.outer = nn.Linear(I, 4), nn.Linear(4, 4)

        def forward(self, entry, memory):
            return torch.tanh(self.inner(entry) + self.outer(memory))

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size = 4
            self.W, self.U = nn.Linear(I, 4), nn.Linear(4, 4)

        def forward(self, x, h):
            a = self.W(x) + self.U(h)
            return torch.tanh(a)

    one, same, other = program_of(One()), program_of(One()), program_of(Other())
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert anonymous(one) == anonymous(other)
    assert one != "a text"


def test_arrays_are_known_by_name_and_say_where_they_are():
    program = program_of(Odd())
    assert program["x"] == Array("x", "stream", I, place="padded")
    assert program["layers._0.weight_t"] == Array("layers._0.weight_t", "matrix", 4, I)
    assert {a.name for a in program.of("vector")} == {"layers._0.bias", "T_.bias", "lambda_", "v1_"}
    assert [a.role for a in derive(program).backward.of("history", "sum")] == ["history", *["sum"] * 4]


# Each with a part of what is said of it.
BROKEN = {
    "": "begins with ''",
    "def f(): pass": "it is no program",
    "anyrnn program 2\nstate h[1]\nh <- h[0:1]": "expected version 1",
    "anyrnn program 1\nstate h[1]\nstate h[1]\nh <- h[0:1]": "line 3 .* taken",
    "anyrnn program 1\nstate h[1]\nv0 = tanh(y[0:1])\nh <- v0": "line 3 .*'y'",
    "anyrnn program 1\nstate h[1]\nv0 = v1\nh <- v0": "no operation",
    "anyrnn program 1\nstate h[1]\nnonsense": "line 3 .*neither",
    "anyrnn program 1\nstate h[1]\nv0 = tanh(h[0:1]\nh <- v0": "line 3",
    "anyrnn program 1\nstate h[2]\nv0 = tanh(h[0:1])\nh <- v0": "do not fit",
    "anyrnn program 1\nstate h[2]\nv0 = wonder(h[0:2])\nh <- v0": "do not fit",
    "anyrnn program 1\nstate h[1]\nv0 = dot(h[0:1])\nh <- v0": "a product is written",
    "anyrnn program 1\nstate h[2]\nh <- h[-1:1]": "do not fit",
    "anyrnn program 1\nstate h[2]\nmatrix W[2, 2]\nv0 = dot(h[0:2] @ W[0:2, -1:1])\nh <- v0": "do not fit",
    "anyrnn program 1\nstate h[2]\nmatrix W[2, 2]\nv0 = dot(h[0:2] @ W[1:3, 0:2])\nh <- v0": "do not fit",
    "anyrnn program 1\nstate h[2]\nv0 = dot(h[0:2] @ h[0:2, 0:2])\nh <- v0": "do not fit",
    "anyrnn program 1\nstate h[2]\nv0 = add(h[0:2], h[0:1], 3.0)\nh <- v0": "do not fit",
    "anyrnn program 1\nstate h[2]\nv0 = tanh()\nh <- v0": "line 3",
    "anyrnn program 1\nstate h[1]\nwonder y[1]\nh <- h[0:1]": "do not fit",
    "anyrnn program 1\nstate h[1]\n__import__('os').system('true')": "line 3 .*neither",
    "anyrnn program 1\nstate h[1]\nv0 = __import__('os')\nh <- v0": "line 3",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_text_that_is_no_program_is_refused_with_the_line(text):
    with pytest.raises(anyrnn.AnyRNNError, match=BROKEN[text]):
        parse(text)


def test_passes_do_to_texts_what_their_docstrings_show():
    text = (
        "anyrnn program 1\nstream x[4] packed\nstate h[8]\nvector b[8]\nmatrix W[4, 8]\nmatrix U[8, 8]\noutput y[8]\n"
    )
    apart = parse(
        text + "v0 = dot(x[0:4] @ W[0:4, 0:8])\nv1 = add(v0, b[0:8])\nv2 = dot(h[0:8] @ U[0:8, 0:8])\n"
        "v3 = add(v1, v2)\nh <- v3\ny <- v3"
    )
    merged = str(merge_products(apart)).split("\n")
    assert merged[-4:-2] == ["v0 = dot(h[0:8] @ U[0:8, 0:8], x[0:4] @ W[0:4, 0:8])", "v1 = add(v0, b[0:8])"]
    cut = parse(
        text + "v0 = dot(h[0:8] @ U[0:8, 0:8])\nv1 = sum(v0)\nv2 = dot(h[0:8] @ U[0:8, 0:4])\nv3 = tanh(v2)\n"
        "h <- v3, v3\ny <- full(0.0, 7), v1"
    )
    assert {
        "v0 = dot(h[0:8] @ U[0:8, 0:4])",
        "v1 = tanh(v0)",
        "v2 = dot(h[0:8] @ U[0:8, 4:8])",
        "v3 = sum(v0, v2)",
    } <= {*str(refine(cut)).split("\n")}
    whole = parse(text + "v0 = aten.hardtanh.default(h[0:8], -1.0, 1.0)\nh <- v0\ny <- v0")
    assert str(elementary(whole)).split("\n")[-4:-2] == ["v0 = maximum(h[0:8], -1.0)", "v1 = minimum(v0, 1.0)"]
    assert "state h[8] kept" in str(placed(whole, {"h": "kept"}))
    assert "output y" not in str(without(whole, ["y"]))
    assert "y <-" not in str(without(whole, ["y"]))


def test_a_program_that_does_not_fit_its_arrays_is_none():
    leaf = Builder().node("state", (), 4, ("h", 0))
    with pytest.raises(anyrnn.AnyRNNError, match="do not fit"):
        Program((Array("h", "state", 3),), {"h": (leaf,)})
    with pytest.raises(anyrnn.AnyRNNError, match="do not fit"):
        Program((Array("h", "state", 4),), {})


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(golden_texts()))
