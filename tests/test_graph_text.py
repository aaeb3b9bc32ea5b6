"""The text of a recorded step is complete: what is read back is the same step."""

import pytest
import torch
from torch import nn

import anyrnn
from anyrnn.compiler.graph_text import parse_graph, written
from anyrnn.compiler.split import split
from anyrnn.compiler.trace import trace
from anyrnn.probing import describe
from zoo import CASES

CELLS = {case.name: case for case in CASES}


def recorded(cell, input_size=3):
    return trace(cell, describe(cell, input_size), input_size, next(cell.parameters()).dtype)


@pytest.mark.parametrize("name", CELLS)
def test_a_step_is_read_back_as_it_was_written(name):
    graph = recorded(CELLS[name].cell(3))
    text = written(graph)
    again = parse_graph(text)
    assert written(again) == text
    assert split(again).program == split(graph).program


class Odd(nn.Module):
    """Weights whose names are no names in Python, arguments of every kind, an output of several."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.layers = nn.ModuleList([nn.Linear(7, 4), nn.Linear(4, 4)])
        self.mask = nn.Parameter(torch.ones(2, 2))

    def forward(self, x, h):
        new = torch.tanh(self.layers[1](self.layers[0](torch.cat((x, h), 1))))
        low, high = new.clamp(-0.5, float("inf")).chunk(2, 1)
        lower = torch.nan_to_num(low, nan=0.0, posinf=1e30) + torch.zeros(2, dtype=torch.float32)
        v0 = torch.nn.functional.gelu(high, approximate="tanh") @ self.mask
        return torch.stack((lower, v0), 1).sum((1,)).repeat(1, 2)


def test_everything_that_an_operation_can_be_given_is_written():
    graph = recorded(Odd())
    text = written(graph)
    for part in (
        "weight layers._0.weight: float32[4, 7] 'layers.0.weight'",
        "[low: float32[127, 2], high: float32[127, 2]] = aten.split.Tensor(",
        "approximate='tanh'", "dtype=torch.float32", "device=device('cpu')", "inf", "v0_: float32",
    ):  # fmt: skip
        assert part in text, text
    assert written(parse_graph(text)) == text
    assert list(parse_graph(text).weights) == [
        n for n in graph.weights if n in text or n.replace(".0.", "._0.") in text
    ]


def test_a_weight_that_a_step_does_not_read_is_not_in_it():
    cell = nn.GRUCell(3, 4)
    cell.other = nn.Parameter(torch.ones(3))
    assert "other" in recorded(cell).weights
    assert "other" not in parse_graph(written(recorded(cell))).weights


GOOD = written(recorded(nn.RNNCell(3, 4)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is no step"),
        ("anyrnn program 1\n", "expected 'anyrnn step 2': it is no step"),
        (GOOD.replace("step 2", "step 1"), "got 'anyrnn step 1', expected version 2"),
        (GOOD.replace("aten.tanh", "aten.tanhh"), "the operation `aten.tanhh.default` is not here; import the package"),
        (GOOD.replace("aten.tanh", "nowhere.tanh"), "the operation `nowhere.tanh.default` is not here"),
        (GOOD.replace("float32[127, 4] = aten.tanh", "float33[127, 4] = aten.tanh"), "float33"),
        (GOOD.replace("state state0", "stat state0"), "line 4 of a step is 'stat state0.*neither a tensor nor an op"),
        (GOOD.replace("batch 127\n", ""), "lacks its batch, its x or a state"),
        (GOOD[: GOOD.rindex("\n")], "lacks its batch, its x or a state"),
        (GOOD + "\nnew nothing", "line .* of a step is 'new nothing'"),
        (GOOD.replace("state state0", "state x"), "`x` is there already"),
        (GOOD.replace("aten.tanh.default(", "(") , "of a step is"),
    ],
)  # fmt: skip
def test_what_is_no_step_is_refused_with_the_line(text, says):
    with pytest.raises(anyrnn.AnyRNNError, match=says):
        parse_graph(text)
