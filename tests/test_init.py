"""Initial values by gate: in every layer and direction, and not twice where there are two biases."""

import math

import pytest
import torch
from torch import nn

import anyrnn

pytestmark = pytest.mark.usefixtures("plainly")

I, H = 3, 8
LSTMS = [anyrnn.LSTM, anyrnn.PeepholeLSTM]
ALL = [anyrnn.RNN, anyrnn.LSTM, anyrnn.GRU, anyrnn.PeepholeLSTM]
over = pytest.mark.parametrize


def cells(layer):
    return [
        layer.cell(k, reverse) for k in range(layer.num_layers) for reverse in (False, True)[: layer.num_directions]
    ]


def bias_of(cell, gate):
    return sum(cell.block(name, gate) for name in cell.bias_names)


@over("make", LSTMS)
@over("value", [0.0, 1.0, -2.5])
def test_forget_bias_is_the_sum_of_the_biases_in_all_layers_and_directions(make, value):
    layer = make(I, H, 3, bidirectional=True, forget_bias=value)
    assert len(cells(layer)) == 6
    for cell in cells(layer):
        assert (bias_of(cell, "f") == value).all()
        assert (bias_of(cell, "i") != value).all()  # the other gates keep their draw


@over("make", LSTMS)
def test_forget_bias_leaves_every_other_parameter_as_torch_draws_it(make):
    layers = []
    for options in ({}, {"forget_bias": 1.0}):
        torch.manual_seed(4)
        layers.append(make(I, H, 2, **options))
    for plain, changed in zip(cells(layers[0]), cells(layers[1]), strict=True):
        for name in plain._parameters:
            for gate in plain.gates_of(name):
                same = torch.equal(plain.block(name, gate), changed.block(name, gate))
                assert same is not (gate == "f" and name in plain.bias_names)


@over("order", [0, 1])
def test_forget_bias_holds_whatever_init_does(order):
    init = [{"bias_ih": nn.init.zeros_, "bias_hh": nn.init.zeros_}, anyrnn.init.orthogonal][:: 1 if order else -1]
    layer = anyrnn.LSTM(I, H, forget_bias=1.0, init=init)
    assert (bias_of(layer.cell(), "f") == 1).all()
    assert (bias_of(layer.cell(), "o") == 0).all()


@over("make", ALL)
def test_orthogonal_makes_each_gates_recurrent_matrix_orthogonal(make):
    layer = make(I, H, 2, bidirectional=True, init=anyrnn.init.orthogonal)
    blocks = [cell.block("weight_hh", gate) for cell in cells(layer) for gate in cell.gates]
    assert len(blocks) == 4 * len(layer.cell().gates)
    for block in blocks:
        torch.testing.assert_close(block @ block.T, torch.eye(H), rtol=0, atol=1e-5)
    assert len({float(block[0, 0].detach()) for block in blocks}) == len(blocks), "each is a draw of its own"
    assert (layer.weight_ih_l0.abs() <= 1 / math.sqrt(H)).all()


@over("make", LSTMS)
def test_chrono_spreads_the_forget_biases_as_the_log_of_a_uniform_draw(make):
    longest = 200
    layer = make(I, 4000, init=anyrnn.init.chrono(longest))
    forget, into = bias_of(layer.cell(), "f").detach(), bias_of(layer.cell(), "i").detach()
    assert torch.equal(into, -forget)
    steps = forget.exp()  # uniform from 1 to longest - 1
    assert steps.min() >= 1 - 1e-4
    assert steps.max() <= longest - 1 + 1e-2
    # The mean of 4000 uniform draws is within 4 standard errors: 4 * (199 - 1) / sqrt(12 * 4000) = 3.6 steps.
    assert abs(steps.mean() - longest / 2) < 3.6
    share = torch.histc(steps, 4, 1, longest - 1) / 4000
    assert (share - 0.25).abs().max() < 0.03  # 4 standard errors of a share: 4 * sqrt(0.25 * 0.75 / 4000) = 0.027
    for gate in "go":
        assert (bias_of(layer.cell(), gate).abs() <= 2 / math.sqrt(4000)).all()


def test_chrono_acts_in_all_layers_and_directions_with_draws_of_their_own():
    layer = anyrnn.LSTM(I, H, 2, bidirectional=True, init=anyrnn.init.chrono(50))
    biases = [bias_of(cell, "f") for cell in cells(layer)]
    assert all((b >= 0).all() and (b <= math.log(49) + 1e-6).all() for b in biases)
    assert len({float(b[0].detach()) for b in biases}) == 4


def test_functions_fill_parameters_and_gates_by_name():
    layer = anyrnn.GRU(
        I, H, 2, init={"weight_ih": nn.init.ones_, "weight_hh.z": nn.init.zeros_, "bias_hh": nn.init.zeros_}
    )
    for cell in cells(layer):
        assert (cell.weight_ih == 1).all()
        assert (cell.block("weight_hh", "z") == 0).all()
        assert (cell.block("weight_hh", "r") != 0).all()
        assert (cell.bias_hh == 0).all()
    projected = anyrnn.LSTM(I, H, proj_size=2, init={"weight_hr": nn.init.zeros_})
    assert (projected.weight_hr_l0 == 0).all()


def test_schemes_are_applied_in_order_and_again_by_reset_parameters():
    schemes = [anyrnn.init.orthogonal, {"weight_hh.f": nn.init.eye_}, lambda cell: cell.weight_ih.fill_(2.0)]
    layer = anyrnn.LSTM(I, H, init=schemes)
    for _ in range(2):
        assert torch.equal(layer.cell().block("weight_hh", "f"), torch.eye(H))
        assert (layer.weight_ih_l0 == 2).all()
        with torch.no_grad():
            layer.weight_ih_l0.zero_()
            layer.weight_hh_l0.zero_()
        layer.reset_parameters()


def test_a_function_may_look_at_the_values_it_fills():
    def scaled(weight):
        assert weight.shape == (H, H)
        weight.copy_(torch.from_numpy(weight.numpy() / abs(weight).max().item()))

    layer = anyrnn.LSTM(I, H, init={"weight_hh": scaled})
    assert all(layer.cell().block("weight_hh", gate).abs().max() == 1 for gate in "ifgo")


def test_values_are_drawn_only_where_there_are_values():
    layer = anyrnn.LSTM(I, H, init={"weight_hh": lambda w: w.copy_(w * w.sum().item())}, device="meta")
    assert layer.weight_hh_l0.is_meta
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    assert (real.weight_ih_l0.abs() <= 1 / math.sqrt(H)).all()


def test_a_cell_alone_is_initialised_alike():
    torch.manual_seed(2)
    cell = anyrnn.LSTMCell(I, H, forget_bias=1.0, init=anyrnn.init.orthogonal)
    torch.manual_seed(2)
    layer = anyrnn.LSTM(I, H, forget_bias=1.0, init=anyrnn.init.orthogonal)
    for name in cell.state_dict():
        assert torch.equal(getattr(cell, name), getattr(layer, name + "_l0"))
    made = anyrnn.Recurrent(lambda i: anyrnn.LSTMCell(i, H, forget_bias=1.0), I, 2, bidirectional=True)
    assert all((bias_of(c, "f") == 1).all() for c in made.cells)
