"""Cells made of cells: what each wrapper computes, for cells of every kind, compiled, stacked, ragged and exported."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyrnn
from anyrnn import (
    IndependentRecurrence,
    LayerNormed,
    MultiplicativeIntegration,
    Projected,
    Residual,
)
from anyrnn.probing import describe
from zoo import (
    CASES,
    Buffered,
    ConcatGRU,
    ConcatLSTM,
    H,
    I,
    MixedSizes,
    SeparateLSTM,
    ThreeStates,
    close,
    flat,
    gradients,
    layer_state,
    loss_of,
    plain_layer,
    state_of,
    weight_normed,
    x_of,
)

LENGTHS = [4, 0, 2]
CELLS = {case.name: case.make for case in CASES}

#: Wrappers that act on the products of gates, and which of the cells they refuse, with a part of the message.
GATED = {
    "LayerNormed": LayerNormed,
    "IndependentRecurrence": IndependentRecurrence,
    "MultiplicativeIntegration": MultiplicativeIntegration,
}
REFUSED = {
    ("IndependentRecurrence", "IndRNN"): "1 (3 features from the input); expected at least one of the state",
    ("IndependentRecurrence", "MixedSizes"): "all state variables of that size: they are 5, 3",
    ("IndependentRecurrence", "LSTM-projected"): "all state variables of that size: they are 2, 3",
    ("MultiplicativeIntegration", "NormLSTM"): "in the same order, which are added",  # wrap it the other way round
    ("MultiplicativeIntegration", "IndRNN"): "1 (3 features from the input); expected for each gate one",
}
TABLE = [(wrapper, name) for wrapper in GATED for name in CELLS]


def wrapped(wrapper, name, size=I, seed=1):
    torch.manual_seed(seed)
    cell = GATED[wrapper](CELLS[name](size, H).double())
    with torch.no_grad():
        for key, p in cell.named_parameters():  # so that no part of the equations is the identity
            if not key.startswith("cell."):
                p.add_(torch.rand_like(p) * 0.3)
    return cell


def both(layer, x, *arguments, **options):
    """A call's output, states and gradients, by the plain loop and by machine code."""
    results = []
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            inputs = [t.detach().clone().requires_grad_() for t in (x, *flat(arguments))]
            state = (
                () if not arguments else (inputs[1] if isinstance(arguments[0], torch.Tensor) else tuple(inputs[1:]),)
            )
            output, final = layer(inputs[0], *state, **options)
            results.append((output, *flat(final)))
            weights = [p for p in layer.parameters() if p.requires_grad]
            results[-1] += tuple(gradients([*inputs, *weights], loss_of(*results[-1])))
    return results


@pytest.mark.grid(3)
@pytest.mark.parametrize("pair", TABLE, ids="-".join)
def test_every_cell_is_wrapped_and_compiled_or_refused_with_the_reason(pair):
    wrapper, name = pair
    if pair in REFUSED:
        with pytest.raises(anyrnn.AnyRNNError) as caught:
            wrapped(wrapper, name)
        assert REFUSED[pair] in str(caught.value)
        return
    cell = wrapped(wrapper, name)
    layer, x = anyrnn.Recurrent(cell), x_of()
    assert [part.engine for part in anyrnn.explain(layer, x).parts] == ["cpu"]
    fast, slow = both(layer, x, layer_state(layer), lengths=LENGTHS)
    close(fast, slow, atol=1e-9)


@pytest.mark.grid(2)
@pytest.mark.parametrize("pair", [pair for pair in TABLE if pair not in REFUSED], ids="-".join)
def test_every_parameter_of_a_wrapper_matters_and_the_cells_keep_their_names(pair):
    cell = wrapped(*pair)
    inner = CELLS[pair[1]](I, H)
    assert {key.removeprefix("cell.") for key, _ in cell.named_parameters() if key.startswith("cell.")} == {
        key for key, _ in inner.named_parameters()
    }
    output, final = anyrnn.scan(cell, x_of(), state_of(cell))
    own = [p for key, p in cell.named_parameters() if not key.startswith("cell.")]
    assert own
    assert all(g.abs().max() > 1e-8 for g in gradients(own, loss_of(output, *flat(final))))


# ---- Equations, written out ----


def norm(a, gain, shift=0.0):
    """Layer normalisation, from its definition."""
    centred = a - a.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain + shift


def two(make):
    """A cell with x and a state, in float64."""
    torch.manual_seed(0)
    cell = make(I, H).double()
    return cell, x_of()[0]


@pytest.mark.parametrize("make", [nn.LSTMCell, anyrnn.LSTMCell])
def test_a_layer_normed_lstm_is_that_of_the_paper_and_of_haste(make):
    cell, x = two(lambda i, h: LayerNormed(make(i, h)))
    for norms in (cell.input_norms, cell.state_norms, cell.new_state_norms):
        for p in norms.parameters():
            nn.init.uniform_(p, 0.5, 1.5)
    h, c = state_of(cell)
    w = cell.cell
    gates = (
        norm(x @ w.weight_ih.T, cell.input_norms[0].weight)
        + norm(h @ w.weight_hh.T, cell.state_norms[0].weight)
        + w.bias_ih
        + w.bias_hh
    )
    i, f, g, o = gates.chunk(4, dim=1)
    c_new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h_new = o.sigmoid() * norm(c_new, cell.new_state_norms[0].weight, cell.new_state_norms[0].bias).tanh()
    close(cell(x, (h, c)), (h_new, c_new))


@pytest.mark.parametrize("make", [nn.GRUCell, anyrnn.GRUCell])
def test_a_layer_normed_gru_is_that_of_haste(make):
    cell, x = two(lambda i, h: LayerNormed(make(i, h)))
    for p in (*cell.input_norms.parameters(), *cell.state_norms.parameters()):
        nn.init.uniform_(p, 0.5, 1.5)
    assert len(cell.new_state_norms) == 0
    h, w = state_of(cell), cell.cell
    a = norm(x @ w.weight_ih.T, cell.input_norms[0].weight) + w.bias_ih
    b = norm(h @ w.weight_hh.T, cell.state_norms[0].weight) + w.bias_hh
    (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, dim=1), b.chunk(3, dim=1)
    r, z = torch.sigmoid(a_r + b_r), torch.sigmoid(a_z + b_z)
    close([cell(x, h)], [(1 - z) * torch.tanh(a_n + r * b_n) + z * h])


def test_x_and_h_joined_in_one_product_are_normalised_each_apart():
    torch.manual_seed(0)
    joined = ConcatLSTM(I, H).double()
    apart = SeparateLSTM(I, H).double()
    with torch.no_grad():
        names = {"i": joined.input_gate, "f": joined.forget_gate, "o": joined.output_gate, "c": joined.candidate}
        for k, gate in names.items():
            for key, part in (("x", gate.weight[:, :I]), ("h", gate.weight[:, I:])):
                getattr(apart, f"W_{key}{k}").copy_(part.T)
            getattr(apart, f"b_{k}").copy_(gate.bias)
    state, x = state_of(apart), x_of()[0]
    _, new = LayerNormed(joined)(x, state)
    close(new, LayerNormed(apart)(x, state))


def test_a_norm_of_the_new_state_can_be_left_out():
    cell = LayerNormed(nn.LSTMCell(I, H), new_state=False)
    assert not [key for key in cell.state_dict() if key.startswith("new_state")]
    c = torch.rand(2, H) * 9
    h, _ = cell(torch.zeros(2, I), (torch.zeros(2, H), c))
    i, f, g, o = (cell.cell.bias_ih + cell.cell.bias_hh).chunk(4)
    close([h], [o.sigmoid() * (f.sigmoid() * c + i.sigmoid() * g.tanh()).tanh()], atol=1e-5)


def test_output_layers_and_projections_are_no_gates():
    assert [n.weight.shape[0] for n in LayerNormed(ConcatLSTM(I, H)).input_norms] == [H] * 4  # no output_layer
    cell = LayerNormed(anyrnn.LSTMCell(I, H, proj_size=H - 1))
    assert [len(norms) for norms in (cell.input_norms, cell.state_norms)] == [1, 1]


def test_an_independent_rnn_is_that_of_the_paper():
    for make in (
        lambda i, h: nn.RNNCell(i, h, nonlinearity="relu"),
        lambda i, h: anyrnn.RNNCell(i, h, nonlinearity="relu"),
    ):
        cell, x = two(lambda i, h, make=make: IndependentRecurrence(make(i, h)))
        h, w = state_of(cell), cell.cell
        close([cell(x, h)], [F.relu(x @ w.weight_ih.T + w.bias_ih + w.bias_hh + cell.recurrent[0] * h)])


def test_an_independent_lstm_has_a_vector_for_each_gate_and_no_units_that_see_each_other():
    cell, x = two(lambda i, h: IndependentRecurrence(nn.LSTMCell(i, h)))
    h, c = state_of(cell)
    w = cell.cell
    i, f, g, o = (x @ w.weight_ih.T + w.bias_ih + w.bias_hh).chunk(4, dim=1)
    u_i, u_f, u_g, u_o = cell.recurrent[0].chunk(4)
    c_new = torch.sigmoid(f + u_f * h) * c + torch.sigmoid(i + u_i * h) * torch.tanh(g + u_g * h)
    close(cell(x, (h, c)), (torch.sigmoid(o + u_o * h) * c_new.tanh(), c_new))
    jacobian = torch.autograd.functional.jacobian(lambda h: cell(x[:1], (h[None], c[:1]))[0][0], h[0])
    assert torch.equal(jacobian, torch.diag(jacobian.diag()))
    assert (jacobian.diag() != 0).all()


@pytest.mark.parametrize(
    "make", [nn.LSTMCell, lambda i, h: anyrnn.GRUCell(i, h, reset_after=False), ConcatGRU, Buffered]
)
def test_a_recurrent_matrix_that_nothing_reads_any_longer_is_frozen_and_no_other(make):
    cell = IndependentRecurrence(make(I, H))
    frozen = {key for key, p in cell.named_parameters() if not p.requires_grad}
    assert frozen == ({"cell.weight_hh"} if hasattr(cell.cell, "weight_hh") else set())
    output, _ = anyrnn.Recurrent(cell)(torch.randn(3, 2, I))
    output.sum().backward()
    assert all((p.grad is None) is (not p.requires_grad) for p in cell.parameters())


def test_multiplicative_integration_is_that_of_the_paper():
    cell, x = two(lambda i, h: MultiplicativeIntegration(nn.LSTMCell(i, h)))
    for p in (cell.alpha, cell.beta1, cell.beta2):
        nn.init.uniform_(p, 0.5, 1.5)
    h, c = state_of(cell)
    w = cell.cell
    a, b = x @ w.weight_ih.T, h @ w.weight_hh.T
    gates = cell.alpha * a * b + cell.beta1 * b + cell.beta2 * a + w.bias_ih + w.bias_hh
    i, f, g, o = gates.chunk(4, dim=1)
    c_new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    close(cell(x, (h, c)), (o.sigmoid() * c_new.tanh(), c_new))


def test_multiplicative_integration_of_a_gru_that_resets_before_its_product():
    """One product of the input goes with two of the state, the second of which multiplies r * h."""
    cell, x = two(lambda i, h: MultiplicativeIntegration(anyrnn.GRUCell(i, h, bias=False, reset_after=False)))
    for p in (cell.alpha, cell.beta1, cell.beta2):
        nn.init.uniform_(p, 0.5, 1.5)
    h, w = state_of(cell), cell.cell

    def mixed(k, operand):
        rows = slice(k * H, (k + 1) * H)
        a, b = x @ w.weight_ih[rows].T, operand @ w.weight_hh[rows].T
        return cell.alpha[rows] * a * b + cell.beta1[rows] * b + cell.beta2[rows] * a

    r, z = torch.sigmoid(mixed(0, h)), torch.sigmoid(mixed(1, h))
    close([cell(x, h)], [(1 - z) * torch.tanh(mixed(2, r * h)) + z * h])


class StateFirst(nn.Module):
    """U h is computed before W x."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.U, self.W = nn.Linear(hidden_size, hidden_size), nn.Linear(input_size, hidden_size, bias=False)

    def forward(self, x, h):
        return torch.tanh(self.U(h) + self.W(x))


def test_multiplicative_integration_in_either_order():
    cell, x = two(lambda i, h: MultiplicativeIntegration(StateFirst(i, h), alpha=2.0, beta=0.5))
    h = state_of(cell)
    a, b = x @ cell.cell.W.weight.T, h @ cell.cell.U.weight.T
    close([cell(x, h)], [torch.tanh(2 * a * b + 0.5 * a + 0.5 * b + cell.cell.U.bias)])


def test_with_alpha_zero_every_cell_is_what_it_was():
    for name in ("nn.LSTMCell", "GRU", "GRU-reset-before", "ConcatLSTM", "ThreeStates", "SeparateLSTM"):
        torch.manual_seed(0)
        cell = CELLS[name](I, H).double()
        state, x = state_of(cell), x_of()[0]
        close(flat(MultiplicativeIntegration(cell, alpha=0.0)(x, state)), flat(cell(x, state)))


class Crossed(nn.Module):
    """The products of the state come in another order than those of the input."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W_f, self.W_g = nn.Linear(input_size, hidden_size), nn.Linear(input_size, hidden_size)
        self.U_f, self.U_g = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h):
        a, b = self.W_f(x), self.W_g(x)
        d, c = self.U_g(h), self.U_f(h)
        f = torch.sigmoid(a + c)
        return f * h + (1 - f) * torch.tanh(b + d)


class Multiplied(nn.Module):
    """W x and U h are multiplied."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.W(x) * self.U(h))


@pytest.mark.parametrize("make", [Crossed, Multiplied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiplicative_integration_refuses_products_that_are_not_added(make, dtype):
    with pytest.raises(anyrnn.AnyRNNError, match="in the same order, which are added"):
        MultiplicativeIntegration(make(I, H).to(dtype))


class Scaled(nn.Module):
    """The state goes through a gate and a scale on its way to the sum, as in a GRU."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, 2 * hidden_size), nn.Linear(hidden_size, 2 * hidden_size)
        self.scale = nn.Parameter(-3 * torch.rand(hidden_size))

    def forward(self, x, h):
        a_r, a_n = self.W(x).chunk(2, dim=1)
        b_r, b_n = self.U(h).chunk(2, dim=1)
        return torch.tanh(a_n + self.scale * torch.sigmoid(a_r + b_r) * b_n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiplicative_integration_takes_products_that_are_added_through_a_gate(dtype):
    MultiplicativeIntegration(Scaled(I, H).to(dtype))


def test_a_projected_lstm_is_torchs_lstm_with_a_projection():
    torch.manual_seed(0)
    cell = Projected(nn.LSTMCell(I, 5), 3).double()
    theirs = nn.LSTM(I, 5, proj_size=3).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(cell.cell.weight_ih)
        theirs.weight_hh_l0.copy_(cell.cell.weight_hh[:, :3])
        theirs.bias_ih_l0.copy_(cell.cell.bias_ih)
        theirs.bias_hh_l0.copy_(cell.cell.bias_hh)
        theirs.weight_hr_l0.copy_(cell.weight_hr)
    state = torch.randn(1, 3, 3).double(), torch.randn(1, 3, 5).double()
    output, final = anyrnn.Recurrent(cell)(x_of(), state)
    wanted, wanted_final = theirs(x_of(), state)
    close([output, *final], [wanted, *wanted_final])


#: Cells below the wrappers that are plain composition.
COMPOSED = {
    "Residual-GRU": lambda i: Residual(nn.GRUCell(i, i)),
    "Residual-output": lambda i: Residual(ConcatLSTM(i, H, i)),
    "Projected-LSTM": lambda i: Projected(nn.LSTMCell(i, H), 2),
    "Projected-whole": lambda i: Projected(nn.GRUCell(i, H), H),
    "Projected-output": lambda i: Projected(ConcatGRU(i, H), 2),
    "Projected-three": lambda i: Projected(ThreeStates(i, H), 1),
    "Projected-one-in-a-tuple": lambda i: Projected(CELLS["OneTuple"](i, H), 2),
    "Residual-Projected": lambda i: Residual(Projected(nn.LSTMCell(i, H), i)),
    "LayerNormed-Projected": lambda i: LayerNormed(Projected(nn.LSTMCell(i, H), 2)),
    "Projected-LayerNormed": lambda i: Projected(LayerNormed(SeparateLSTM(i, H)), 2),
    "LayerNormed-Multiplicative": lambda i: LayerNormed(MultiplicativeIntegration(nn.LSTMCell(i, H))),
    "Residual-Independent-LayerNormed": lambda i: Residual(IndependentRecurrence(LayerNormed(nn.GRUCell(i, i)))),
    "Multiplicative-weight-normed": lambda i: MultiplicativeIntegration(weight_normed(i, H)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_wrappers_of_wrappers_and_of_any_state_are_compiled(name):
    torch.manual_seed(1)
    layer = anyrnn.Recurrent(COMPOSED[name], I).double()
    assert [part.engine for part in anyrnn.explain(layer, x_of()).parts] == ["cpu"]
    fast, slow = both(layer, x_of(), layer_state(layer), lengths=LENGTHS)
    close(fast, slow, atol=1e-9)


def test_a_residual_cell_adds_x_to_its_output_and_not_to_its_state():
    torch.manual_seed(0)
    inner = nn.GRUCell(H, H).double()
    x, h = x_of(size=H)[0], torch.randn(3, H, dtype=torch.float64)
    y, new = Residual(inner)(x, h)
    close([y, new], [inner(x, h) + x, inner(x, h)])


def test_what_is_inside_of_a_layer_norm_is_integrated():
    """Wrapped twice, the products are first normalised and then multiplied."""
    cell, x = two(lambda i, h: LayerNormed(MultiplicativeIntegration(nn.RNNCell(i, h))))
    h, w = state_of(cell), cell.cell.cell
    a, b = norm(x @ w.weight_ih.T, 1.0), norm(h @ w.weight_hh.T, 1.0)
    close([cell(x, h)], [torch.tanh(a * b + a + b + w.bias_ih + w.bias_hh)])


# ---- As cells of layers ----

MAKERS = {
    "Residual": lambda i: Residual(nn.LSTMCell(i, i)),
    "Projected": lambda i: Projected(nn.LSTMCell(i, H), 2),
    **{key: lambda i, wrap=wrap: wrap(nn.LSTMCell(i, H)) for key, wrap in GATED.items()},
}


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", MAKERS)
def test_stacks_directions_and_ragged_batches(name, engine):
    torch.manual_seed(1)
    # The state of a bridged cell is as wide as its x.
    layer = anyrnn.Recurrent(MAKERS[name], I, 2, bidirectional=name != "Residual").double()
    state = layer_state(layer)
    with anyrnn.engine(engine):
        output, final = layer(x_of(), state, lengths=LENGTHS)
    wanted, wanted_final = plain_layer(layer, x_of(), state, LENGTHS)
    close([output, *flat(final)], [wanted, *wanted_final], atol=1e-9)


@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize("name", MAKERS)
def test_below_torch_compile_and_export(name):
    torch.manual_seed(1)
    layer, x = anyrnn.Recurrent(MAKERS[name], I).double(), x_of()
    wanted, wanted_final = layer(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    output, final = compiled(x)
    close([output, *final], [wanted, *wanted_final], atol=1e-9)
    weights = [p for p in layer.parameters() if p.requires_grad]
    close(gradients(weights, loss_of(output, *final)), gradients(weights, loss_of(wanted, *wanted_final)), atol=1e-9)
    exported = torch.export.export(layer, (x,)).module()
    output, final = exported(x)
    close([output, *final], [wanted, *wanted_final], atol=1e-9)


@pytest.mark.parametrize("name", MAKERS)
def test_copies_and_files(name):
    torch.manual_seed(1)
    layer = anyrnn.Recurrent(MAKERS[name], I).double()
    wanted = layer(x_of())[0]
    close([copy.deepcopy(layer)(x_of())[0]], [wanted])
    torch.manual_seed(2)
    other = anyrnn.Recurrent(MAKERS[name], I).double()
    other.load_state_dict(layer.state_dict())
    close([other(x_of())[0]], [wanted])


def test_a_change_of_a_wrappers_weights_is_seen_and_gradgradcheck_holds():
    layer = anyrnn.Recurrent(LayerNormed(nn.LSTMCell(I, H)).double())
    x = x_of().requires_grad_()
    before = layer(x)[0]
    with torch.no_grad():
        layer.cell().input_norms[0].weight.mul_(2)
    assert not torch.allclose(layer(x)[0], before)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


# ---- Cells with more than x and one state ----


class Timed(nn.Module):
    """Takes the time since the last step and something static beside x, by two products, and returns two outputs."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.V = nn.Linear(4, hidden_size, bias=False)

    def forward(self, x, h, dt, static):
        new = torch.tanh(self.W(x) + self.U(h) + self.V(static))
        h = h + (1 - torch.exp(-dt.abs())) * (new - h)
        return {"h": h, "new": new}, h


@pytest.mark.parametrize(
    "wrap", [LayerNormed, IndependentRecurrence, lambda cell, **options: Projected(cell, 2, **options)]
)
def test_a_cell_with_further_arguments_is_wrapped_with_an_example_of_them(wrap):
    torch.manual_seed(1)
    examples = {"inputs": torch.zeros(1, 1, 1).double(), "context": torch.zeros(1, 4).double()}
    layer = anyrnn.Recurrent(lambda i: wrap(Timed(i, H).double(), **examples), I, bidirectional=True)
    more = {"inputs": torch.rand(4, 3, 1).double(), "context": torch.rand(3, 4).double()}
    assert [part.engine for part in anyrnn.explain(layer, x_of(), **more).parts] == ["cpu", "cpu"]
    results = []
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            output, final = layer(x_of(), lengths=LENGTHS, **more)
        assert [*output] == ["h", "new"]
        results.append([*output.values(), final])
        weights = [p for p in layer.parameters() if p.requires_grad]
        results[-1] += gradients(weights, loss_of(*results[-1]))
    close(*results, atol=1e-9)


def test_what_is_static_is_normalised_as_input_and_does_not_count_as_a_weight():
    cell = LayerNormed(Timed(I, H), inputs=torch.zeros(1, 1, 1), context=torch.zeros(1, 4))
    assert (len(cell.input_norms), len(cell.state_norms)) == (2, 1)


def test_a_cell_that_takes_its_states_apart_is_wrapped():
    class Apart(nn.Module):
        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.hidden_size = hidden_size
            self.cell = nn.LSTMCell(input_size, hidden_size)

        def forward(self, x, h, c):
            return self.cell(x, (h, c))

    torch.manual_seed(1)
    inner = Apart(I, H).double()
    state = torch.rand(3, H).double(), torch.rand(3, H).double()
    close(LayerNormed(inner)(x_of()[0], state), LayerNormed(inner.cell)(x_of()[0], state))
    layer = anyrnn.Recurrent(LayerNormed(inner))
    assert anyrnn.explain(layer, x_of()).parts[0].engine == "cpu"
    close(*both(layer, x_of(), layer_state(layer)), atol=1e-9)


# ---- What a wrapped step may do, which is what any step may do ----


class Batchwise(nn.Module):
    """Decides by the size of the batch, which no compiled step may."""

    def __init__(self):
        super().__init__()
        self.hidden_size, self.input_size = H, I
        self.W, self.U = nn.Linear(I, H), nn.Linear(H, H)

    def forward(self, x, h):
        return torch.tanh(self.W(x) + self.U(h)) * (2 if x.shape[0] > 2 else 1)


def test_questions_of_a_wrapped_step_are_still_the_users():
    layer = anyrnn.Recurrent(LayerNormed(Batchwise()).double())
    (part,) = anyrnn.explain(layer, x_of()).parts
    assert part.engine == "reference"
    assert "by the size of the batch" in part.refused["cpu"]


def test_a_step_that_asks_for_the_batch_to_make_tensors_is_compiled():
    class Making(StateFirst):
        def forward(self, x, h):
            return super().forward(x, h) + x.new_ones(x.shape[0], 1)

    layer = anyrnn.Recurrent(LayerNormed(Making(I, H)).double())
    assert anyrnn.explain(layer, x_of()).parts[0].engine == "cpu"
    fast, slow = both(layer, x_of())
    close(fast, slow, atol=1e-9)


class Switching(StateFirst):
    """Has another product in evaluation."""

    def forward(self, x, h):
        return super().forward(x, h) if self.training else self.U(super().forward(x, h)).tanh()


def test_a_step_with_other_products_than_when_it_was_wrapped_is_refused():
    cell = LayerNormed(Switching(I, H))
    cell(torch.zeros(2, I), torch.zeros(2, H))
    cell.eval()
    with pytest.raises(anyrnn.AnyRNNError, match="Switching: its step has other products than when it was wrapped"):
        cell(torch.zeros(2, I), torch.zeros(2, H))


class Contracted(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, hidden_size), nn.Parameter(torch.randn(hidden_size, hidden_size))

    def forward(self, x, h):
        return torch.tanh(self.W(x) + torch.einsum("bi,ji->bj", h, self.U))


MESSAGES = {
    "no module": (
        lambda: Residual("lstm"),
        "Residual: got 'lstm', expected a cell, an nn.Module; in a function that makes cells: lambda input_size: "
        "Residual(MyCell(input_size, 64))",
    ),
    "widths": (
        lambda: Residual(nn.GRUCell(I, H)),
        "Residual: the output of GRUCell has 3 features and x has 2, expected equal, since they are added; "
        "Projected(cell, 2) makes an output of that width",
    ),
    "projection": (
        lambda: Projected(nn.GRUCell(I, H), 4),
        "Projected: got size=4, expected at most 3, the size of the first state of the cell",
    ),
    "projection to nothing": (
        lambda: Projected(nn.GRUCell(I, H), 0),
        "Projected: got size=0, expected an int of at least 1",
    ),
    "no gates": (
        lambda: LayerNormed(Still()),
        "LayerNormed: got a Still whose gates are these products: none; expected a product of the input or the state "
        "with a matrix, which can be normalised",
    ),
    "einsum": (
        lambda: LayerNormed(Contracted(I, H)),
        "LayerNormed: Contracted cannot be wrapped: its gates are computed by `einsum`, expected products of a row "
        "with a matrix, which can be taken apart: nn.Linear, F.linear(h, W) or h @ W",
    ),
    "no recurrent product": (
        lambda: IndependentRecurrence(CELLS["IndRNN"](I, H)),
        "IndependentRecurrence: got a IndRNN whose gates are these products: 1 (3 features from the input); expected "
        "at least one of the state, each of 3 features and giving whole gates of 3, and all state variables of that "
        "size: they are 3",
    ),
    "nothing to integrate": (
        lambda: MultiplicativeIntegration(Memory()),
        "MultiplicativeIntegration: got a Memory whose gates are these products: 3 (3 features from both, 3 features "
        "from the state, 4 features from the state); expected for each gate one of the input and one of the state, or "
        "one of both joined by torch.cat",
    ),
    "no input_size": (
        lambda: LayerNormed(Elementwise()),
        "LayerNormed: got a Elementwise without `input_size`, and its weights do not tell it; expected input_size=, "
        "the number of features of x",
    ),
    "no sizes": (
        lambda: LayerNormed(nn.Identity()),
        "LayerNormed: got a Identity without `input_size`, and its weights do not tell it; expected input_size=, "
        "the number of features of x, and state_sizes=, the size of its state",
    ),
}


class Still(nn.Module):
    input_size, hidden_size = I, H

    def forward(self, x, h):
        return 0.9 * h + x.sum(1, keepdim=True)


class Elementwise(nn.Module):
    hidden_size = H

    def forward(self, x, h):
        return 0.9 * h + x


class Memory(nn.Module):
    """Reads and writes a memory by products of the state alone."""

    def __init__(self):
        super().__init__()
        self.input_size, self.state_sizes = I, (H, 4)
        self.new, self.read, self.write = nn.Linear(I + H, H), nn.Linear(4, H), nn.Linear(H, 4)

    def forward(self, x, state):
        h, memory = state
        h = torch.tanh(self.new(torch.cat((x, h), dim=1)) + self.read(memory))
        return h, memory + torch.sigmoid(self.write(h)) * (1 - memory)


@pytest.mark.parametrize("name", MESSAGES)
def test_what_does_not_fit_is_refused_with_a_cure(name):
    call, text = MESSAGES[name]
    with pytest.raises(anyrnn.AnyRNNError) as caught:
        call()
    assert str(caught.value) == text


@pytest.mark.parametrize("name", CELLS)
def test_the_input_size_is_found_also_where_the_cell_does_not_say_it(name):
    cell = CELLS[name](7, 5)
    assert LayerNormed(cell).input_size == 7
    assert describe(LayerNormed(cell), 7).state_sizes == describe(cell, 7).state_sizes


def test_a_lazy_cell_is_told_its_input_size():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size = H
            self.W = nn.LazyLinear(H)
            self.U = nn.Linear(H, H)

        def forward(self, x, h):
            return torch.tanh(self.W(x) + self.U(h))

    with pytest.raises(anyrnn.AnyRNNError, match="expected input_size="):
        LayerNormed(Lazy())
    assert LayerNormed(Lazy(), input_size=I).cell.W.weight.shape == (H, I)


def test_wrappers_on_the_meta_device_and_in_other_types():
    for wrap in (*GATED.values(), lambda cell: Projected(cell, 2)):
        cell = wrap(nn.LSTMCell(I, H, device="meta", dtype=torch.float64))
        assert {(p.device.type, p.dtype) for p in cell.parameters()} == {("meta", torch.float64)}


def test_a_wrapper_leaves_random_numbers_gradients_and_buffers_alone():
    cell, before = nn.LSTMCell(I, H), torch.get_rng_state()
    LayerNormed(cell)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in cell.parameters())


def test_mixed_sizes_are_normalised():
    layer = anyrnn.Recurrent(lambda i: LayerNormed(MixedSizes(i, H)), I, 2, bidirectional=True)
    assert layer(torch.zeros(2, 1, I))[0].shape == (2, 1, 2)
