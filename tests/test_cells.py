"""The cells' equations, each written out again in numpy, gate by gate and row by row, from the paper or torch.nn."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyrnn
from zoo import B, ConcatGRU, H, I, close, flat

pytestmark = pytest.mark.usefixtures("plainly")


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def rows(cell, name, gate):
    """The rows of a gate in a parameter, counted by hand from the documented order."""
    order = {"GRU": "rzn", "LST": "ifgo", "Pee": "ifo" if name == "weight_ch" else "ifgo"}[type(cell).__name__[:3]]
    k = order.index(gate)
    return getattr(cell, name).detach().numpy()[k * H : (k + 1) * H]


def affine(cell, gate, x, h):
    """W x + U h and the biases there are, without the library's help."""
    a = rows(cell, "weight_ih", gate) @ x + rows(cell, "weight_hh", gate) @ h
    return a + sum(rows(cell, name, gate) for name in ("bias_ih", "bias_hh") if getattr(cell, name, None) is not None)


def lstm(cell, x, h, c):
    i, f, o = (sigmoid(affine(cell, gate, x, h)) for gate in "ifo")
    c = f * c + i * np.tanh(affine(cell, "g", x, h))
    h = o * np.tanh(c)
    return (cell.weight_hr.detach().numpy() @ h if cell.proj_size else h), c


def peephole(cell, x, h, c):
    p = {gate: rows(cell, "weight_ch", gate) for gate in "ifo"}
    i, f = (sigmoid(affine(cell, gate, x, h) + p[gate] * c) for gate in "if")
    new = f * c + i * np.tanh(affine(cell, "g", x, h))
    o = sigmoid(affine(cell, "o", x, h) + p["o"] * (new if cell.output_sees_new_cell else c))
    return o * np.tanh(new), new


def gru(cell, x, h):
    r, z = (sigmoid(affine(cell, gate, x, h)) for gate in "rz")
    W, U = rows(cell, "weight_ih", "n"), rows(cell, "weight_hh", "n")
    b_W, b_U = (rows(cell, name, "n") if cell.bias else 0.0 for name in ("bias_ih", "bias_hh"))
    inside = r * (U @ h + b_U) if cell.reset_after else U @ (r * h) + b_U
    return (1 - z) * np.tanh(W @ x + b_W + inside) + z * h


def rnn(cell, x, h):
    a = cell.weight_ih.detach().numpy() @ x + cell.weight_hh.detach().numpy() @ h
    a = a + sum(p.detach().numpy() for p in (cell.bias_ih, cell.bias_hh)) if cell.bias else a
    return np.tanh(a) if cell.nonlinearity == "tanh" else np.maximum(a, 0)


EQUATIONS = [
    (anyrnn.RNNCell, rnn, {}),
    (anyrnn.RNNCell, rnn, {"nonlinearity": "relu"}),
    (anyrnn.LSTMCell, lstm, {}),
    (anyrnn.LSTMCell, lstm, {"proj_size": 2}),
    (anyrnn.GRUCell, gru, {}),
    (anyrnn.GRUCell, gru, {"reset_after": False}),
    (anyrnn.PeepholeLSTMCell, peephole, {}),
    (anyrnn.PeepholeLSTMCell, peephole, {"output_sees_new_cell": False}),
]


@pytest.mark.parametrize(("kind", "equations", "options"), EQUATIONS, ids=lambda p: getattr(p, "__name__", str(p)))
@pytest.mark.parametrize("bias", [True, False])
def test_one_step_is_its_equations(kind, equations, options, bias):
    cell = kind(I, H, bias=bias, dtype=torch.float64, **options)
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(torch.randn_like(p))
    sizes = cell.state_sizes
    state = [torch.randn(B, n, dtype=torch.float64) for n in ((sizes,) if isinstance(sizes, int) else sizes)]
    x = torch.randn(B, I, dtype=torch.float64)
    got = flat(cell(x, state[0] if isinstance(sizes, int) else tuple(state)))
    for row in range(B):
        want = equations(cell, x[row].numpy(), *(s[row].numpy() for s in state))
        for a, b in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
            np.testing.assert_allclose(a[row].detach().numpy(), b, rtol=0, atol=1e-12)
    unbatched = flat(cell(x[0], state[0][0] if isinstance(sizes, int) else tuple(s[0] for s in state)))
    close(unbatched, [s[0] for s in got], atol=1e-14)
    zero = [torch.zeros_like(s) for s in state]
    close(flat(cell(x)), flat(cell(x, zero[0] if isinstance(sizes, int) else tuple(zero))), atol=0)


def test_the_two_forms_of_peephole_differ_in_the_output_gate_only():
    papers = anyrnn.PeepholeLSTMCell(I, H)
    tutorials = anyrnn.PeepholeLSTMCell(I, H, output_sees_new_cell=False)
    tutorials.load_state_dict(papers.state_dict())
    x, state = torch.randn(B, I), (torch.randn(B, H), torch.randn(B, H))
    (h, c), (h_old, c_old) = papers(x, state), tutorials(x, state)
    assert torch.equal(c, c_old)
    assert (h - h_old).abs().min() > 0


def test_a_torch_lstm_maps_to_the_peephole_lstm_as_documented():
    theirs, ours = nn.LSTM(I, H, 2, bidirectional=True), anyrnn.PeepholeLSTM(I, H, 2, bidirectional=True)
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("bias_hh")}
    for key, value in theirs.state_dict().items():
        if key.startswith("bias_hh"):
            weights[key.replace("hh", "ih")] = weights[key.replace("hh", "ih")] + value
            weights[key.replace("bias_hh", "weight_ch")] = torch.zeros(3 * H)
    ours.load_state_dict(weights)
    x = torch.randn(5, B, I)
    close([ours(x)[0]], [theirs(x)[0]], atol=1e-6)


def test_an_lstm_of_the_package_is_a_peephole_lstm_without_peepholes_and_back():
    peephole, plain = anyrnn.PeepholeLSTMCell(I, H), anyrnn.LSTMCell(I, H)
    with torch.no_grad():
        peephole.weight_ch.zero_()
        for name in ("weight_ih", "weight_hh", "bias_ih"):
            getattr(plain, name).copy_(getattr(peephole, name))
        plain.bias_hh.zero_()
    x, state = torch.randn(B, I), (torch.randn(B, H), torch.randn(B, H))
    close(peephole(x, state), plain(x, state), atol=1e-6)


def test_the_notebooks_gru_is_the_one_that_resets_before_with_its_update_gate_turned():
    """Notebook 000 (and Chung et al.) let z weigh the new value; Cho et al., and torch.nn, the old one."""
    theirs, ours = ConcatGRU(I, H).double(), anyrnn.GRUCell(I, H, reset_after=False, dtype=torch.float64)
    with torch.no_grad():
        for k, (linear, sign) in enumerate(((theirs.reset, 1), (theirs.update, -1), (theirs.candidate, 1))):
            block = slice(k * H, (k + 1) * H)
            ours.weight_ih[block] = sign * linear.weight[:, :I]
            ours.weight_hh[block] = sign * linear.weight[:, I:]
            ours.bias_ih[block] = sign * linear.bias
            ours.bias_hh[block] = 0
    x, h = torch.randn(B, I).double(), torch.randn(B, H).double()
    close([ours(x, h)], [theirs(x, h)[1]])


def test_where_the_reset_comes_and_which_bias_it_scales_makes_a_difference():
    after, before = anyrnn.GRUCell(I, H), anyrnn.GRUCell(I, H, reset_after=False)
    before.load_state_dict(after.state_dict())
    x, h = torch.randn(B, I), torch.randn(B, H)
    assert (after(x, h) - before(x, h)).abs().max() > 1e-4
    # With a state of zero they differ by the bias inside r * (...) alone.
    assert not torch.allclose(after(x), before(x), atol=1e-6)
    with torch.no_grad():
        after.bias_hh.zero_()
        before.bias_hh.zero_()
    close([after(x)], [before(x)], atol=1e-6)


def test_gates_are_found_by_name():
    cell = anyrnn.LSTMCell(I, H)
    assert torch.equal(cell.block("weight_hh", "f"), cell.weight_hh[H : 2 * H])
    assert torch.equal(cell.block("bias_ih", "o"), cell.bias_ih[3 * H :])
    gru = anyrnn.GRUCell(I, H)
    assert torch.equal(gru.block("weight_ih", "n"), gru.weight_ih[2 * H :])
    assert gru.block("weight_ih", "n").data_ptr() == gru.weight_ih[2 * H :].data_ptr()
    peephole = anyrnn.PeepholeLSTMCell(I, H)
    assert torch.equal(peephole.block("weight_ch", "o"), peephole.weight_ch[2 * H :])
    assert peephole.gates_of("weight_ch") == ("i", "f", "o")


ACTIVATIONS = [
    (anyrnn.RNN, "h"),
    *((anyrnn.LSTM, gate) for gate in "ifgoh"),
    *((anyrnn.GRU, gate) for gate in "rzn"),
    *((anyrnn.PeepholeLSTM, gate) for gate in "ifgoh"),
]


@pytest.mark.parametrize(("make", "gate"), ACTIVATIONS, ids=lambda p: getattr(p, "__name__", p))
def test_an_activation_by_gate_is_used_at_that_gate_in_every_layer_and_direction(make, gate):
    default = {"h": torch.tanh, "g": torch.tanh, "n": torch.tanh}.get(gate, torch.sigmoid)
    calls = []

    def counted(a):
        calls.append(tuple(a.shape))
        return default(a)

    torch.manual_seed(1)
    layer = make(I, H, 2, bidirectional=True, activations={gate: counted})
    torch.manual_seed(1)
    plain = make(I, H, 2, bidirectional=True)
    x = torch.randn(5, B, I)
    with anyrnn.engine("reference"):
        close([layer(x)[0]], [plain(x)[0]], atol=1e-6)
    assert calls == [(B, H)] * (5 * 4)
    other = make(I, H, 2, bidirectional=True, activations={gate: F.hardsigmoid})
    other.load_state_dict(plain.state_dict())
    assert not torch.allclose(other(x)[0], plain(x)[0], atol=1e-4)
    assert other.cell().activations[gate] is F.hardsigmoid
    with anyrnn.engine("torch"), pytest.raises(anyrnn.AnyRNNError, match="RNN, LSTM and GRU only"):
        other(x)


def test_an_activation_with_parameters_is_trained_with_the_cell():
    cell = anyrnn.LSTMCell(I, H, activations={"g": nn.PReLU()})
    assert "activation_g.weight" in cell.state_dict()
    layer = anyrnn.Recurrent(lambda i: anyrnn.LSTMCell(i, H, activations={"g": nn.PReLU()}), I, 2, bidirectional=True)
    layer(torch.randn(5, B, I))[0].sum().backward()
    slopes = [cell.activations["g"].weight for cell in layer.cells]
    assert len({id(slope) for slope in slopes}) == 4
    assert all(slope.grad is not None for slope in slopes)


def test_the_identity_in_the_last_equation_gives_gers_form():
    cell = anyrnn.PeepholeLSTMCell(I, H, activations={"h": nn.Identity()})
    x, state = torch.randn(B, I), (torch.randn(B, H), torch.randn(B, H))
    (h, c) = cell(x, state)
    a = F.linear(x, cell.block("weight_ih", "o")) + F.linear(state[0], cell.block("weight_hh", "o"))
    o = torch.sigmoid(a + cell.block("bias_ih", "o") + cell.block("weight_ch", "o") * c)
    close([h], [o * c], atol=1e-6)
