"""The equations that `anyrnn.explain` shows are those of the cell, in the words of its author."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import anyrnn
from anyrnn.compiler.latex import equations
from anyrnn.compiler.ops import OPERATIONS
from anyrnn.compiler.trace import trace
from anyrnn.probing import describe
from cpu.test_random_cells import Drawn, recipes
from zoo import CASES, I


def written(cell: nn.Module, input_size: int = 3):
    return equations(trace(cell, describe(cell, input_size), input_size))


def is_balanced(text: str) -> bool:
    """Whether braces, and the parentheses that grow with their content, come in pairs."""
    depth, bare = 0, re.sub(r"\\[{}\\]", "", text)
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    pairs = ((r"\left", r"\right"), (r"\begin", r"\end"))
    return depth == 0 and "\0" not in text and all(text.count(a) == text.count(b) for a, b in pairs)


def check(found) -> None:
    assert all(map(is_balanced, found.lines)), found
    assert all(is_balanced(symbol) for symbol, _ in found.symbols), found
    assert not any(re.search(r"\^(\w|\\top|\{[^{}]*\})\^|'\^", line) for line in found.lines), "two exponents"
    lefts = [line.partition(" = ")[0] for line in found.lines]
    assert len(set(lefts)) == len(lefts), "each symbol is defined once"


class Leaky(nn.Module):
    """As in the README."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        pull = torch.sigmoid(self.new(torch.cat((x, h), dim=1)))
        return (1 - pull) * h + pull * torch.tanh(x.sum(1, keepdim=True))


class Attending(nn.Module):
    """Reductions, a softmax, a condition, a scalar with a Greek name, boxes of features."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, 2 * hidden_size), nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.alpha = nn.Parameter(torch.rand(()))

    def forward(self, x, h_prev):
        a, b = (self.W(x) + self.U(h_prev)).view(-1, 2, self.hidden_size).unbind(1)
        w = torch.softmax(a, dim=1)
        return torch.where(b > 0.5, self.alpha * w / b.abs().amax(1, keepdim=True), h_prev**2)


KNOWN = {
    "RNN": (lambda: anyrnn.RNNCell(3, 5), r"""
h_t = \tanh(W_{ih} x_t + W_{hh} h_{t-1} + b_{ih} + b_{hh})"""),
    "LSTM": (lambda: anyrnn.LSTMCell(3, 5), r"""
i_t = \sigma(W_{ih,i} x_t + W_{hh,i} h_{t-1} + b_{ih,i} + b_{hh,i})
f_t = \sigma(W_{ih,f} x_t + W_{hh,f} h_{t-1} + b_{ih,f} + b_{hh,f})
g_t = \tanh(W_{ih,g} x_t + W_{hh,g} h_{t-1} + b_{ih,g} + b_{hh,g})
o_t = \sigma(W_{ih,o} x_t + W_{hh,o} h_{t-1} + b_{ih,o} + b_{hh,o})
c_t = f_t \circ c_{t-1} + i_t \circ g_t
h_t = o_t \circ \tanh(c_t)"""),
    "LSTM, projected": (lambda: anyrnn.LSTMCell(3, 5, bias=False, proj_size=2), r"""
i_t = \sigma(W_{ih,i} x_t + W_{hh,i} h_{t-1})
f_t = \sigma(W_{ih,f} x_t + W_{hh,f} h_{t-1})
g_t = \tanh(W_{ih,g} x_t + W_{hh,g} h_{t-1})
o_t = \sigma(W_{ih,o} x_t + W_{hh,o} h_{t-1})
c_t = f_t \circ c_{t-1} + i_t \circ g_t
h'_t = o_t \circ \tanh(c_t)
h_t = W_{hr} h'_t"""),
    "GRU": (lambda: anyrnn.GRUCell(3, 5), r"""
r_t = \sigma(W_{ih,r} x_t + W_{hh,r} h_{t-1} + b_{ih,r} + b_{hh,r})
z_t = \sigma(W_{ih,z} x_t + W_{hh,z} h_{t-1} + b_{ih,z} + b_{hh,z})
n_t = \tanh(W_{ih,n} x_t + r_t \circ (W_{hh,n} h_{t-1} + b_{hh,n}) + b_{ih,n})
h_t = (1 - z_t) \circ n_t + z_t \circ h_{t-1}"""),
    "GRU, reset before": (lambda: anyrnn.GRUCell(3, 5, reset_after=False), r"""
r_t = \sigma(W_{ih,r} x_t + W_{hh,r} h_{t-1} + b_{ih,r} + b_{hh,r})
z_t = \sigma(W_{ih,z} x_t + W_{hh,z} h_{t-1} + b_{ih,z} + b_{hh,z})
n_t = \tanh(W_{ih,n} x_t + U_n (r_t \circ h_{t-1}) + b_{ih,n} + b_n)
h_t = (1 - z_t) \circ n_t + z_t \circ h_{t-1}"""),
    "peephole LSTM": (lambda: anyrnn.PeepholeLSTMCell(3, 5), r"""
i_t = \sigma(W_{ih,i} x_t + W_{hh,i} h_{t-1} + p_i \circ c_{t-1} + b_{ih,i})
f_t = \sigma(W_{ih,f} x_t + W_{hh,f} h_{t-1} + p_f \circ c_{t-1} + b_{ih,f})
g_t = \tanh(W_{ih,g} x_t + W_{hh,g} h_{t-1} + b_{ih,g})
c_t = f_t \circ c_{t-1} + i_t \circ g_t
o_t = \sigma(W_{ih,o} x_t + W_{hh,o} h_{t-1} + p_o \circ c_t + b_{ih,o})
h_t = o_t \circ \tanh(c_t)"""),
    "torch's LSTM cell, whose gates have no names": (lambda: nn.LSTMCell(3, 5), r"""
v_{1,t} = \sigma(W_{hh,0:5} h_{t-1} + W_{ih,0:5} x_t + b_{hh,0:5} + b_{ih,0:5})
v_{2,t} = \sigma(W_{hh,5:10} h_{t-1} + W_{ih,5:10} x_t + b_{hh,5:10} + b_{ih,5:10})
v_{3,t} = \tanh(W_{hh,10:15} h_{t-1} + W_{ih,10:15} x_t + b_{hh,10:15} + b_{ih,10:15})
v_{4,t} = \sigma(W_{hh,15:20} h_{t-1} + W_{ih,15:20} x_t + b_{hh,15:20} + b_{ih,15:20})
c_t = v_{2,t} \circ c_{t-1} + v_{1,t} \circ v_{3,t}
h_t = v_{4,t} \circ \tanh(c_t)"""),
    "the README's": (lambda: Leaky(3, 5), r"""
\mathrm{pull}_t = \sigma(W_{\mathrm{new}} [x_t; h_{t-1}] + b_{\mathrm{new}})
h_t = (1 - \mathrm{pull}_t) \circ h_{t-1} + \mathrm{pull}_t \circ \tanh(\operatorname{sum}(x_t))"""),
    "reductions": (lambda: Attending(3, 4), r"""
b_t = W_b x_t + U_b h_{t-1} + b_{W,b}
w_t = \operatorname{softmax}(W_w x_t + U_w h_{t-1} + b_{W,w})
h_t = \begin{cases} \frac{\alpha\, w_t}{\operatorname{amax}(\left|b_t\right|)} & \text{if } b_t > 0.5 \\ h_{t-1}^{2} """
    r"& \text{otherwise} \end{cases}"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_the_equations_of_known_cells(name):
    make, wanted = KNOWN[name]
    found = written(make())
    assert str(found) == wanted.strip()
    check(found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_cell_of_the_zoo_is_written(case):
    check(written(case.cell(), I))


def test_the_symbols_say_which_rows_of_which_parameter_they_are():
    symbols = dict(written(anyrnn.GRUCell(3, 5, reset_after=False)).symbols)
    assert symbols == {
        r"W_{ih,r},\ W_{ih,z},\ W_{ih,n}": "rows 0:5, 5:10, 10:15 of weight_ih, 15 × 3",
        r"W_{hh,r},\ W_{hh,z},\ U_n": "rows 0:5, 5:10, 10:15 of weight_hh, 15 × 5",
        r"b_{ih,r},\ b_{ih,z},\ b_{ih,n}": "numbers 0:5, 5:10, 10:15 of bias_ih, 15",
        r"b_{hh,r},\ b_{hh,z},\ b_n": "numbers 0:5, 5:10, 10:15 of bias_hh, 15",
    }


class Applying(nn.Module):
    """One operation of the loop program, on the state and what goes with it."""

    hidden_size = 4

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x, h):
        count, masks = self.operation.arity, len(self.operation.masks)
        truth = (h > 0, h + x > 0)[:masks]
        return self.operation.function(*truth, *(h, h + x, h - x)[masks:count]).to(h.dtype)


CALLED = {
    **{name: rf"\operatorname{{{name}}}" for name in ("sign", "round", "trunc", "exp2", "expm1", "log2", "log1p")},
    **{name: rf"\operatorname{{{name}}}" for name in ("asinh", "acosh", "atanh", "erf")},
    **{name: rf"\{name}" for name in ("exp", "log", "sinh", "cosh", "tanh", "sin", "cos")},
    **{"sigmoid": r"\sigma", "atan": r"\arctan"},
}
CALLED_WITH_TWO = {"fmod": r"\operatorname{fmod}", "remainder": r"\operatorname{remainder}"} | {
    **{"atan2": r"\operatorname{atan2}", "maximum": r"\max", "minimum": r"\min"}
}
BETWEEN = {"lt": "<", "le": r"\le", "gt": ">", "ge": r"\ge", "eq": "=", "ne": r"\ne"}
FORMS = {
    **{name: f"{sign}(h_{{t-1}})" for name, sign in CALLED.items()},
    **{name: f"{sign}(h_{{t-1}}, h_{{t-1}} + x_t)" for name, sign in CALLED_WITH_TWO.items()},
    **{name: f"(h_{{t-1}} {sign} h_{{t-1}} + x_t)" for name, sign in BETWEEN.items()},
    **dict.fromkeys(("positive", "detach", "surrogate", "clip_gradient", "clip_gradient_norm"), "h_{t-1}"),
    "neg": "-h_{t-1}",
    "abs": r"\left|h_{t-1}\right|",
    "floor": r"\lfloor h_{t-1} \rfloor",
    "ceil": r"\lceil h_{t-1} \rceil",
    "sqrt": r"\sqrt{h_{t-1}}",
    "rsqrt": r"\frac{1}{\sqrt{h_{t-1}}}",
    "reciprocal": r"\frac{1}{h_{t-1}}",
    "add": "h_{t-1} + h_{t-1} + x_t",
    "sub": "h_{t-1} - h_{t-1} - x_t",
    "mul": r"h_{t-1} \circ (h_{t-1} + x_t)",
    "div": r"\frac{h_{t-1}}{h_{t-1} + x_t}",
    "pow": "h_{t-1}^{h_{t-1} + x_t}",
    "logical_not": r"\lnot(h_{t-1} > 0)",
    "logical_and": r"((h_{t-1} > 0) \land (h_{t-1} + x_t > 0))",
    "logical_or": r"((h_{t-1} > 0) \lor (h_{t-1} + x_t > 0))",
    "where": r"\begin{cases} h_{t-1} + x_t & \text{if } h_{t-1} > 0 \\ h_{t-1} - x_t & \text{otherwise} \end{cases}",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_form(name):
    found = written(Applying(OPERATIONS[name]), 4)
    assert found.lines == (f"h_t = {FORMS[name]}",)
    check(found)


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(smooth=False))
def test_random_cells_are_written(recipe):
    cell = Drawn(recipe, 0, torch.float64)
    signature = describe(cell, recipe.input_size, recipe.states)
    check(equations(trace(cell, signature, recipe.input_size, torch.float64)))


def test_explain_shows_them_for_every_engine_and_for_a_stream():
    layer, x = anyrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    shown = set()
    for name in ("torch", "cpu", "reference"):
        with anyrnn.engine(name):
            shown.add(str(anyrnn.explain(layer, x, show="equations")))
    assert shown == {f"# layer 0 forward: LSTMCell, equations{KNOWN['LSTM'][1]}"}
    assert str(anyrnn.explain(layer.stream(), show="equations")).endswith(KNOWN["LSTM"][1])


class Reading(Leaky):
    def forward(self, x, h):
        return super().forward(x, h) if float(h.sum()) < 1e9 else h


def test_a_step_that_cannot_be_recorded_has_none():
    told = anyrnn.explain(anyrnn.Recurrent(Reading(3, 5)), torch.randn(4, 2, 3), show="equations")
    assert told.parts[0].equations is None
    assert str(told) == "# layer 0 forward: Reading, equations\n(its step cannot be recorded)"
