"""Dropout within the recurrence, zoneout and DropConnect against loops written out row by row, given the same masks.

The loops are this file's own: a row at a time, a step at a time, each cell's equations with the masks where the papers
have them. Gal and Ghahramani (arXiv:1512.05287): one mask a sequence on x and on h where they are multiplied;
Krueger et al. (arXiv:1606.01305): d * old + (1 - d) * new with d drawn at each step, its mean when evaluated;
Merity et al. (arXiv:1708.02182): a mask on the recurrent weights, drawn once for all steps.
"""

import copy
import pickle
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import anyrnn
from anyrnn import masks
from anyrnn.state_products import Region, recurrent_weights
from zoo import ConcatGRU, ConcatLSTM, IndRNN, LowRank, SeparateLSTM, ThreeStates, close

T, B, I, H = 5, 3, 2, 3
LENGTHS = [5, 0, 3]


class Rates(nn.Module):
    """A continuous-time network: the weights multiply the rates tanh(h), and h leaks."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.W = nn.Linear(hidden_size, hidden_size, bias=False)
        self.U = nn.Linear(input_size, hidden_size)

    def forward(self, x, h):
        return h + 0.2 * (self.U(x) + self.W(torch.tanh(h)) - h)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- One step of each cell by its equations, with a mask m on what the weights multiply of h ----


def lstm(w, x, states, m):
    (h, c), b = states, w["bias_ih"] + w["bias_hh"]
    i, f, g, o = (x @ w["weight_ih"].T + (m * h) @ w["weight_hh"].T + b).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return None, (torch.sigmoid(o) * torch.tanh(c), c)


def gru(w, x, states, m):
    (h,) = states
    xs, hs = x @ w["weight_ih"].T + w["bias_ih"], (m * h) @ w["weight_hh"].T + w["bias_hh"]
    (xr, xz, xn), (hr, hz, hn) = xs.chunk(3), hs.chunk(3)
    z, n = torch.sigmoid(xz + hz), torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return None, ((1 - z) * n + z * h,)


def concat_lstm(w, x, states, m):
    h, c = states
    both = torch.cat((x, m * h))
    i, f, g, o = (
        both @ w[f"{k}.weight"].T + w[f"{k}.bias"] for k in ("input_gate", "forget_gate", "candidate", "output_gate")
    )
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h @ w["output_layer.weight"].T + w["output_layer.bias"], (h, c)


def concat_gru(w, x, states, m):
    (h,) = states
    r, z = (torch.sigmoid(torch.cat((x, m * h)) @ w[f"{k}.weight"].T + w[f"{k}.bias"]) for k in ("reset", "update"))
    n = torch.tanh(torch.cat((x, r * m * h)) @ w["candidate.weight"].T + w["candidate.bias"])
    h = (1 - z) * h + z * n
    return h @ w["output_layer.weight"].T + w["output_layer.bias"], (h,)


def rates(w, x, states, m):
    (h,) = states
    return None, (h + 0.2 * (x @ w["U.weight"].T + w["U.bias"] + (m * torch.tanh(h)) @ w["W.weight"].T - h),)


@dataclass(frozen=True)
class Case:
    """A cell: its layer, its step, its number of states, and the weights of h, of which the first columns are x's."""

    layer: object
    step: object
    states: int
    recurrent: tuple[str, ...]
    of_x: int = 0  # columns
    own: dict = field(default_factory=dict)


def foreign(cell):
    return lambda **options: anyrnn.Recurrent(lambda n: cell(n, H), I, **options)


GATES = tuple(f"{k}.weight" for k in ("input_gate", "forget_gate", "candidate", "output_gate"))
CASES = {
    "LSTM": Case(lambda **options: anyrnn.LSTM(I, H, **options), lstm, 2, ("weight_hh",)),
    "GRU": Case(lambda **options: anyrnn.GRU(I, H, **options), gru, 1, ("weight_hh",)),
    "nn.GRUCell": Case(foreign(nn.GRUCell), gru, 1, ("weight_hh",)),
    "ConcatLSTM": Case(foreign(ConcatLSTM), concat_lstm, 2, GATES, I),
    "ConcatGRU": Case(foreign(ConcatGRU), concat_gru, 1, ("reset.weight", "update.weight", "candidate.weight"), I),
    "Rates": Case(foreign(Rates), rates, 1, ("W.weight",)),
}
OPTIONS = {
    "input": {"input_dropout": 0.3},
    "recurrent": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": 0.3},
    "weights": {"weight_dropout": 0.3},
    "all": {"input_dropout": 0.2, "recurrent_dropout": 0.3, "zoneout": 0.2, "weight_dropout": 0.2},
}


class Masks:
    """The masks of a call of a layer in place, as `anyrnn.regularisation` says."""

    KINDS = ("input_dropout", "recurrent_dropout", "zoneout", "weight_dropout")

    def __init__(self, seed, place, options):
        self.seed, self.place, self.options = seed, place, options

    def __call__(self, kind, k, *sizes, scaled=True):
        p = self.options.get(kind, 0.0)
        stream = (self.place * 4 + self.KINDS.index(kind)) * 65536 + k
        return masks.mask(self.seed, stream, sizes, p, torch.float64, scaled)


def row_by_row(case, cells, x, lengths, seed, options, directions):
    """Run layers in directions on x (T, B, I) as the papers say; `seed` is None when evaluated."""
    training = seed is not None
    for layer in range(len(cells) // directions):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            w = dict(cells[place])
            draw = Masks(seed, place, options)
            if training:
                for k, name in enumerate(case.recurrent):
                    width = w[name].shape[1] - (x.shape[2] if case.of_x else 0)
                    drawn = draw("weight_dropout", k, 1, w[name].shape[0], width)[0]
                    beside = torch.ones(len(drawn), w[name].shape[1] - width)
                    w[name] = w[name] * torch.cat((beside, drawn), 1)
            rows = []
            for b, length in enumerate(lengths):
                states = (torch.zeros(H),) * case.states
                steps = {}
                for t in range(length)[:: -1 if direction else 1]:
                    x_t, m = x[t, b], torch.ones(H)
                    if training:
                        x_t = x_t * draw("input_dropout", 0, 1, B, x.shape[2])[0, b]
                        m = draw("recurrent_dropout", 0, 1, B, H)[0, b]
                    out, new = case.step(w, x_t, states, m)
                    p = options.get("zoneout", 0.0)
                    if training:
                        taken = [draw("zoneout", k, T, B, H, scaled=False)[t, b] for k in range(case.states)]
                        states = tuple(d * n + (1 - d) * s for d, n, s in zip(taken, new, states, strict=True))
                    else:
                        states = tuple(p * s + (1 - p) * n for n, s in zip(new, states, strict=True))
                    steps[t] = states[0] if out is None else out
                like = torch.zeros(next(iter(steps.values())).shape if steps else ())
                rows.append([steps.get(t, like) for t in range(T)])
            width = max(r.shape for row in rows for r in row)
            outputs.append(torch.stack([torch.stack([r.expand(width) for r in row]) for row in rows], 1))
        x = torch.cat(outputs, 2)
    return x


def parameters_of(layer, place):
    cell = layer.cell(place // layer.num_directions, place % layer.num_directions == 1)
    return dict(cell.named_parameters())


def compared(case, layer, options, seed, lengths):
    """Outputs and gradients of a layer and of the loop, from equal seeds."""
    x = torch.randn(T, B, I, requires_grad=True)
    D = layer.num_directions
    cells = [parameters_of(layer, place) for place in range(layer.num_layers * D)]
    torch.manual_seed(seed)
    output, _ = layer(x, lengths=lengths)
    torch.manual_seed(seed)
    drawn = masks.seed_for(x) if layer.training else None
    expected = row_by_row(case, cells, x, lengths or [T] * B, drawn, options, D)
    weight = torch.randn_like(output)
    wanted = [x, *layer.parameters()]
    gradients = torch.autograd.grad((weight * output).sum(), wanted)
    return [output, *gradients], [expected, *torch.autograd.grad((weight * expected).sum(), wanted)]


@pytest.mark.grid(3)
@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("option", OPTIONS)
def test_values_and_gradients_are_those_of_the_loop(engine, name, option):
    case, options = CASES[name], OPTIONS[option]
    layer = case.layer(num_layers=2, bidirectional=True, **options)
    with anyrnn.engine(engine):
        close(*compared(case, layer, options, 7, LENGTHS))
        close(*compared(case, layer, options, 8, None))


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_drawn_when_evaluated_and_zoneout_gives_its_mean(engine, name):
    """No mask at inference (a mistake of published code): the layer without options, but for the mean of zoneout."""
    case, options = CASES[name], OPTIONS["all"]
    layer = case.layer(num_layers=2, bidirectional=True, **options).eval()
    before = torch.get_rng_state()
    with anyrnn.engine(engine):
        close(*compared(case, layer, options, 7, LENGTHS))
        layer.zoneout = 0.0
        plain = case.layer(num_layers=2, bidirectional=True).eval()
        plain.load_state_dict(layer.state_dict())
        x = torch.randn(T, B, I)
        torch.set_rng_state(before)
        assert torch.equal(layer(x)[0], plain(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["LSTM", "ConcatGRU"])
def test_gradients_are_those_of_differences(name):
    layer = CASES[name].layer(**OPTIONS["all"])
    names, tensors = zip(*layer.named_parameters(), strict=True)

    def run(x, *weights):
        torch.manual_seed(4)
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    x = torch.randn(3, 2, I, requires_grad=True)
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(run, (x, *leaves))
    assert torch.autograd.gradgradcheck(run, (x, *leaves))


def test_one_mask_a_sequence_not_one_a_step():
    """Dropout called "variational" that draws anew at each step is a mistake of published code."""
    layer = anyrnn.Recurrent(Rates(I, H), I, recurrent_dropout=0.5)
    cell = layer.cell()
    with torch.no_grad():
        cell.W.weight.copy_(torch.eye(H))
        cell.U.weight.zero_(), cell.U.bias.zero_()
    h = torch.rand(1, 64, H) + 0.5
    _, _, states = layer(torch.zeros(30, 64, I), h, return_states=True)
    states = torch.cat([h, states[0]])
    driven = (states[1:] - 0.8 * states[:-1]).abs() > 1e-12  # what came through the weights at each step
    assert (driven == driven[0]).all()
    assert 0.3 < driven[0].double().mean() < 0.7


def test_zoneout_draws_each_step_anew_and_holds_exactly():
    layer = anyrnn.LSTM(I, 16, zoneout=(0.5, 0.0))
    output, _, (h, c) = layer(torch.randn(40, B, I), return_states=True)
    held = h[0, 1:] == h[0, :-1]
    assert 0.45 < held.double().mean() < 0.55
    assert (held.any(0) & ~held.all(0)).all()
    assert (c[0, 1:] != c[0, :-1]).all()  # the other state has its own probability
    assert torch.equal(output, h[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_the_same_seed_gives_the_same_masks_in_every_engine_and_number_of_threads(option):
    layer = anyrnn.LSTM(I, 32, num_layers=2, bidirectional=True, **OPTIONS[option])
    x, outputs = torch.randn(30, 16, I), []
    for engine, threads in (("cpu", 1), ("cpu", 2), ("reference", 1), ("cpu", 1)):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        with anyrnn.engine(engine):
            outputs.append(layer(x)[0])
    close(outputs[:3], outputs[1:])
    with anyrnn.engine("cpu"):
        assert not torch.allclose(layer(x)[0], outputs[0])  # the next call draws anew


@pytest.mark.parametrize("option", ["input", "recurrent", "zoneout", "weights"])
def test_rows_do_not_depend_on_their_batch_mates(option):
    layer = anyrnn.GRU(I, H, **OPTIONS[option])
    x = torch.randn(T, B, I)
    padded = x.clone()
    padded[3:, 2] = torch.nan
    for given, lengths, rows in ((x[:, :2], None, 2), (padded, [5, 5, 3], 3)):
        torch.manual_seed(5)
        expected = layer(x)[0]
        torch.manual_seed(5)
        output = layer(given, lengths=lengths)[0]
        close(output[:3], expected[:3, :rows])


@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize(
    ("name", "backend"), [("LSTM", "aot_eager"), pytest.param("ConcatGRU", "inductor", marks=pytest.mark.long)]
)
def test_below_torch_compile_masks_are_those_of_an_ordinary_call(name, backend):
    layer = CASES[name].layer(num_layers=2, **OPTIONS["all"])
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(T, B, I)
    results = []
    for call in (layer, compiled, compiled):
        torch.manual_seed(5)
        output = call(x)[0]
        results.append([output, *torch.autograd.grad(output.square().sum(), [*layer.parameters()])])
    close(results[1], results[0])
    close(results[2], results[0])
    assert not torch.allclose(compiled(x)[0], output)


@pytest.mark.usefixtures("_compiled_anew")
def test_below_torch_compile_two_calls_draw_apart():
    """PyTorch takes equal operations for one, also such as draw."""
    layer = anyrnn.Recurrent(Rates(H, H), H, recurrent_dropout=0.5, zoneout=0.2)
    twice = torch.compile(lambda x: (layer(x)[0], layer(x)[0]), fullgraph=True, backend="aot_eager")
    x = torch.randn(T, B, H)
    torch.manual_seed(5)
    first, second = twice(x)
    torch.manual_seed(5)
    close([first, second], [layer(x)[0], layer(x)[0]])
    assert not torch.allclose(first, second)


@pytest.mark.usefixtures("_compiled_anew")
def test_export_in_evaluation_mode_holds_the_mean_of_zoneout():
    layer = anyrnn.LSTM(I, H, num_layers=2, **OPTIONS["all"]).eval()
    x = torch.randn(T, B, I)
    expected = layer(x)[0]
    program = torch.export.export(layer, (x,))
    assert not any("mask" in str(node.target) for node in program.graph.nodes)
    close(program.module()(x)[0], expected)


@pytest.mark.usefixtures("_compiled_anew")
def test_export_while_training_draws_in_each_call():
    layer, x = anyrnn.LSTM(I, H, **OPTIONS["all"]), torch.randn(T, B, I)
    run = torch.export.export(layer, (x,)).module()
    torch.manual_seed(5)
    output = run(x)[0]
    torch.manual_seed(5)
    close(output, layer(x)[0])
    assert not torch.allclose(run(x)[0], output)


def test_ensembles_by_vmap_draw_as_they_are_told():
    layer, x = anyrnn.GRU(I, H, **OPTIONS["all"]), torch.randn(T, B, I)
    stacked = {name: p.detach().expand(2, *p.shape) for name, p in layer.named_parameters()}

    def run(randomness):
        torch.manual_seed(5)
        call = lambda p: torch.func.functional_call(layer, p, (x,))[0]  # noqa: E731
        return torch.func.vmap(call, randomness=randomness)(stacked)

    same, different = run("same"), run("different")
    torch.manual_seed(5)
    close(same, [layer(x)[0]] * 2)
    assert not torch.allclose(*different)
    with pytest.raises(RuntimeError, match="randomness"):
        run("error")


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_computed_again_has_the_same_masks(every):
    layer, x = anyrnn.LSTM(I, H, **OPTIONS["all"]), torch.randn(T, B, I)
    found = []
    for options in ({}, {"checkpoint_every": every}):
        torch.manual_seed(5)
        output, _ = layer(x, **options)
        found.append([output, *torch.autograd.grad(output.square().sum(), [*layer.parameters()])])
    close(*found)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_resets_keep_the_masks_of_the_sequence(engine):
    """Equal to the pieces run apart with the same masks, which a second call cannot draw: so against the loop."""
    options = {"recurrent_dropout": 0.4, "zoneout": 0.3}
    layer = anyrnn.GRU(I, H, **options)
    x, reset = torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    reset[3, 0] = reset[1, 1] = True
    torch.manual_seed(5)
    with anyrnn.engine(engine):
        output, _ = layer(x, reset=reset)
    torch.manual_seed(5)
    draw, w = Masks(masks.seed_for(x), 0, options), parameters_of(layer, 0)
    for b in range(B):
        h = torch.zeros(H)
        for t in range(T):
            h = torch.zeros(H) if reset[t, b] else h
            _, (new,) = gru(w, x[t, b], (h,), draw("recurrent_dropout", 0, 1, B, H)[0, b])
            d = draw("zoneout", 0, T, B, H, scaled=False)[t, b]
            h = d * new + (1 - d) * h
            close(output[t, b], h)


def test_records_are_of_the_step_with_masks():
    layer = anyrnn.Recurrent(ConcatLSTM(I, H), I, **OPTIONS["all"])
    x, found = torch.randn(T, B, I), []
    for engine in ("reference", "cpu"):
        torch.manual_seed(5)
        with anyrnn.engine(engine):
            found.append(layer(x, record=("kept", "h"))[2])
    close(found[0]["kept"], found[1]["kept"])
    close(found[0]["h"], found[1]["h"])


# ---- Which weights multiply the state ----


def regions(cell, I=I, states=1):
    layer = anyrnn.Recurrent(cell, I)
    state = layer._initial(None, B, True, torch.zeros(T, B, I), torch.float64)[0]
    call = anyrnn.runtime.call.Call(cell, layer._signature(0), torch.zeros(T, B, I), state, None, False)
    return set(recurrent_weights(call))


class Blocks(nn.Module):
    """One matrix for both: the first rows for x, the others for h; and a vector, which is no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.both = nn.Parameter(torch.randn(I + H, 2 * H))
        self.u = nn.Parameter(torch.randn(H))

    def forward(self, x, h):
        a, b = (x @ self.both[:I] + h @ self.both[I:]).chunk(2, 1)
        return torch.sigmoid(a) * h + torch.tanh(b + self.u * h)


class Around(nn.Module):
    """A state on both sides of x, and one that no product takes; a readout of the new state."""

    def __init__(self) -> None:
        super().__init__()
        self.state_sizes = (H, H)
        self.gate, self.readout = nn.Linear(I + 2 * H, H), nn.Linear(H, 4)

    def forward(self, x, state):
        h, c = state
        c = 0.5 * c + torch.tanh(self.gate(torch.cat((h[:, :1], x, h[:, 1:], h), 1)))
        return self.readout(c), (c.tanh(), c)


class Image(nn.Module):
    """A convolution of x and h as channels of images."""

    def __init__(self) -> None:
        super().__init__()
        self.state_sizes = torch.Size((2, 4, 4))
        self.both = nn.Conv2d(1 + 2, 2, 3, padding=1)

    def forward(self, x, h):
        return torch.tanh(self.both(torch.cat((x, h), 1)))


def test_the_weights_that_multiply_the_state_are_found():
    assert regions(nn.LSTMCell(I, H)) == {Region("weight_hh")}
    assert regions(anyrnn.GRUCell(I, H, reset_after=False)) == {Region("weight_hh")}
    assert regions(ConcatLSTM(I, H)) == {Region(name, 1, ((I, I + H),)) for name in GATES}
    assert regions(SeparateLSTM(I, H)) == {Region(f"W_h{k}") for k in "ifoc"}
    assert regions(ThreeStates(I, H)) == {Region("gates.weight", 1, ((I, I + 2 * H),))}
    assert regions(LowRank(I, H)) == {Region("left"), Region("right")}
    assert regions(Blocks()) == {Region("both", 0, ((I, I + H),))}
    assert regions(Around()) == {Region("gate.weight", 1, ((0, 1), (I + 1, I + 2 * H)))}
    assert regions(IndRNN(I, H)) == set()


def test_weights_that_are_computed_are_found_by_what_they_are_computed_from():
    cell = Rates(I, H)
    nn.utils.parametrizations.weight_norm(cell.W)
    assert regions(cell) == {Region("W.parametrizations.weight.original1")}


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_pieces_of_weights_are_dropped_where_the_state_is(engine):
    layer = anyrnn.Recurrent(Around(), I, weight_dropout=1.0)
    x = torch.randn(T, B, I)
    with anyrnn.engine(engine):
        output, _ = layer(x)
    with torch.no_grad():
        weight = layer.cell().gate.weight
        weight[:, :1] = 0
        weight[:, I + 1 :] = 0
    layer.weight_dropout = 0.0
    close(output, layer(x)[0])


def test_convolutions_have_their_channels_dropped():
    layer = anyrnn.Recurrent(Image(), (1, 4, 4), weight_dropout=1.0, recurrent_dropout=0.5)
    x = torch.randn(T, B, 1, 4, 4)
    output, _ = layer(x)
    with torch.no_grad():
        layer.cell().both.weight[:, 1:] = 0
    close(output, layer.eval()(x)[0])


def test_weights_can_be_named():
    layer = anyrnn.Recurrent(IndRNN(I, H), I, weight_dropout={"u": 1.0})
    x = torch.randn(T, B, I)
    close(layer(x)[0], torch.tanh(layer.cell().input(x)))
    layer.weight_dropout = {"v": 0.5}
    with pytest.raises(anyrnn.AnyRNNError, match=r"for 'v', expected parameters of a cell: u, input\.weight"):
        layer(x)


class Model(nn.Module):
    """A module with another way to compute a step than `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(H, H), nn.Linear(I, H)

    def advance(self, x, h):
        return torch.tanh(self.U(x) + self.W(h))


@pytest.mark.parametrize("rate", [1.0, {"W.weight": 1.0}], ids=["found", "named"])
def test_weights_of_a_step_that_is_a_function(rate):
    model, x = Model(), torch.randn(T, B, I)
    layer = anyrnn.Recurrent(model, I, step=lambda m, x, h: m.advance(x, h), state_sizes=H, weight_dropout=rate)
    close(layer(x)[0], torch.tanh(model.U(x) + model.W.bias))
    layer.weight_dropout = {"W": 0.5}
    with pytest.raises(anyrnn.AnyRNNError, match=r"for 'W', expected parameters of a cell: W\.weight, W\.bias, U"):
        layer(x)


class Reading(nn.Module):
    """It decides by a number, so its step is no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.W, self.U = nn.Linear(H, H), nn.Linear(I, H)

    def forward(self, x, h):
        return torch.tanh(self.U(x) + self.W(h)) if float(h.detach().sum()) < 100 else h


def test_a_cell_that_cannot_be_recorded_has_all_of_it_but_names_its_weights():
    layer = anyrnn.Recurrent(Reading(), I, recurrent_dropout=0.3, zoneout=0.3, input_dropout=0.2)
    x = torch.randn(T, B, I)
    assert layer(x)[0].shape == (T, B, H)
    layer.weight_dropout = 0.5
    with pytest.raises(anyrnn.AnyRNNError, match=r"cannot be seen .*expected their names: weight_dropout=\{"):
        layer(x)
    layer.weight_dropout = {"W.weight": 1.0}
    layer.recurrent_dropout = layer.zoneout = layer.input_dropout = 0.0
    close(layer(x)[0], torch.tanh(layer.cell().U(x) + layer.cell().W.bias))


# ---- What surrounds it ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recurrent_dropout": 1.5}, "got recurrent_dropout=1.5, expected a probability from 0 to 1"),
        ({"zoneout": (0.1, -1)}, r"got zoneout\[1\]=-1, expected a probability"),
        ({"input_dropout": True}, "got input_dropout=True, expected a probability"),
        ({"weight_dropout": {"weight_hh": 2}}, r"got weight_dropout\['weight_hh'\]=2, expected a probability"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        anyrnn.LSTM(I, H, **options)
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        anyrnn.Recurrent(ConcatLSTM(I, H), I, **options)


def test_a_tuple_has_one_for_each_state():
    layer = anyrnn.GRU(I, H, zoneout=(0.1, 0.2))
    with pytest.raises(anyrnn.AnyRNNError, match=r"zoneout=\(0.1, 0.2\) for a cell of 1 states, expected a number"):
        layer(torch.randn(T, B, I))
    layer.zoneout = 0.0
    layer.recurrent_dropout = [0.5]
    layer(torch.randn(T, B, I))


def test_options_that_do_nothing_warn_once():
    x = torch.randn(T, B, I)
    layer = anyrnn.Recurrent(IndRNN(I, H), I, recurrent_dropout=0.3)
    with pytest.warns(UserWarning, match=r"Recurrent: recurrent_dropout=0.3 does nothing to its state: no product"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    layer = anyrnn.LSTM(I, H, recurrent_dropout=(0.3, 0.2))
    with pytest.warns(UserWarning, match=r"does nothing to state 1: no product takes it"):
        layer(x)
    layer = anyrnn.Recurrent(IndRNN(I, H), I, weight_dropout=0.3)
    with pytest.warns(UserWarning, match="weight_dropout=0.3 does nothing: no product takes the state and a weight"):
        layer(x)


def test_what_is_saved_and_copied_is_the_layer():
    layer = anyrnn.LSTM(I, H, num_layers=2, **OPTIONS["all"])
    plain = anyrnn.LSTM(I, H, num_layers=2)
    x = torch.randn(T, B, I)
    layer(x)
    assert [*layer.state_dict()] == [*plain.state_dict()]
    assert repr(plain) == "LSTM(2, 3, num_layers=2)"
    assert repr(layer) == (
        "LSTM(2, 3, num_layers=2, input_dropout=0.2, recurrent_dropout=0.3, zoneout=0.2, weight_dropout=0.2)"
    )
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(5)
        expected = layer(x)[0]
        torch.manual_seed(5)
        assert torch.equal(other(x)[0], expected)


def test_explain_names_the_cell_inside():
    layer = anyrnn.LSTM(I, H, **OPTIONS["all"])
    assert "layer 0 forward: LSTMCell on engine 'cpu'" in str(anyrnn.explain(layer, torch.randn(T, B, I)))


def test_options_may_change_between_calls():
    layer, x = anyrnn.LSTM(I, H), torch.randn(T, B, I)
    plain = layer(x)[0]
    layer.zoneout = 0.5
    assert not torch.equal(layer(x)[0], plain)
    layer.zoneout = 0.0
    assert torch.equal(layer(x)[0], plain)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_call_of_one_step_is_regularised_too(mode):
    """For so few steps a layer may take PyTorch's kernel, which knows nothing of it."""
    torch.set_default_dtype(torch.float32)
    layer = anyrnn.LSTM(I, H, zoneout=1.0).train(mode == "train")
    state = torch.randn(1, B, H), torch.randn(1, B, H)
    output, new = layer(torch.randn(1, B, I), state)
    close(new, state, 1e-6)
    close(output, state[0], 1e-6)


def test_feedback_has_the_mean_of_zoneout_and_refuses_masks():
    layer, head = anyrnn.LSTM(I, H, num_layers=2, zoneout=0.3), nn.Linear(H, I)
    first = torch.randn(B, I)
    with pytest.raises(anyrnn.AnyRNNError, match="got feedback while it trains with zoneout, expected only one of"):
        layer.generate(steps=3, first=first, feed=head)
    output, _ = layer.eval().generate(steps=3, first=first, feed=head)
    x, state, expected = first, None, []
    for _ in range(3):
        out, state = layer(x[None], state)
        expected.append(out[0])
        x = head(out[0])
    close(output, torch.stack(expected))


def test_nothing_outside_of_the_layer_is_drawn_by_looking_at_its_cell():
    """What finds the weights of the state runs steps, which may not take numbers from PyTorch's generator."""
    seeds = []
    for cell in (nn.GRUCell(I, H), Rates(I, H)):
        torch.manual_seed(5)
        anyrnn.Recurrent(cell, I, **OPTIONS["all"])(torch.zeros(T, B, I))
        seeds.append(torch.get_rng_state())
    torch.manual_seed(5)
    masks.seed_for(torch.zeros(1))
    assert all(torch.equal(state, torch.get_rng_state()) for state in seeds)


def test_state_products_follow_the_state_through_a_step() -> None:
    """Parts, gates, activations, in-place changes: the mask is where a product takes the state, and nowhere else."""

    class Winding(nn.Module):
        hidden_size = H

        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(H, H))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            a, b = h.split([1, H - 1], dim=1)
            whole = torch.cat(tensors=(a, b), dim=1).unsqueeze(1).expand(-1, 2, -1)[:, 1]
            gated = torch.sigmoid(x) * whole
            gated *= 2.0
            other = h.clone()
            other += 1.0  # no longer the state
            return h + torch.einsum("bi,ij->bj", gated, self.W) + other @ self.W

    cell = Winding()
    layer = anyrnn.Recurrent(cell, H, recurrent_dropout=0.5)
    x, h = torch.randn(1, B, H), torch.randn(1, B, H)
    for engine in ("reference", "cpu"):
        torch.manual_seed(5)
        with anyrnn.engine(engine):
            output, _ = layer(x, h)
        torch.manual_seed(5)
        m = Masks(masks.seed_for(x), 0, {"recurrent_dropout": 0.5})("recurrent_dropout", 0, 1, B, H)[0]
        expected = h[0] + (2 * torch.sigmoid(x[0]) * m * h[0]) @ cell.W + (h[0] + 1) @ cell.W
        close(output[0], expected)
