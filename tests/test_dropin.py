"""RNN, LSTM, GRU and their cells are torch.nn's: the same names, values, results and gradients, and more options."""

import copy
import inspect
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import anyrnn
from zoo import close, flat, gradients, loss_of

pytestmark = pytest.mark.usefixtures("plainly")

T, B, I, H = 5, 3, 4, 6

LAYERS = {
    "RNN": (anyrnn.RNN, nn.RNN, {}),
    "RNN-relu": (anyrnn.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "LSTM": (anyrnn.LSTM, nn.LSTM, {}),
    "LSTM-projected": (anyrnn.LSTM, nn.LSTM, {"proj_size": 2}),
    "GRU": (anyrnn.GRU, nn.GRU, {}),
}
CELLS = {
    "RNNCell": (anyrnn.RNNCell, nn.RNNCell, {}),
    "RNNCell-relu": (anyrnn.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
    "LSTMCell": (anyrnn.LSTMCell, nn.LSTMCell, {}),
    "GRUCell": (anyrnn.GRUCell, nn.GRUCell, {}),
}
SHAPES = [
    {"num_layers": n, "bidirectional": b, "bias": bias, "batch_first": first}
    for n, b, bias, first in itertools.product((1, 2), (False, True), (True, False), (False, True))
]
SHAPE_IDS = ["-".join(f"{k}={v}" for k, v in s.items()) for s in SHAPES]

# batch_first says nothing about a packed sequence: it need not go with everything else.
PACKED = [shape for shape in SHAPES if shape["batch_first"] is shape["bias"]]
PACKED_IDS = [name for name, shape in zip(SHAPE_IDS, SHAPES, strict=True) if shape in PACKED]
every_layer = pytest.mark.parametrize("kind", LAYERS)
every_cell = pytest.mark.parametrize("kind", CELLS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
both_engines = pytest.mark.parametrize("engine", ["reference", "torch"])


def pair(kind: str, **options):
    """Ours and torch's, made from the same seed, in float64."""
    ours, theirs, extra = (LAYERS | CELLS)[kind]
    made = []
    for make in (ours, theirs):
        torch.manual_seed(7)
        made.append(make(I, H, dtype=torch.float64, **extra, **options))
    return made


def states_for(layer, batch=None):
    """A state that is not zero: h, or (h, c)."""
    count = layer.num_layers * (1 + layer.bidirectional)
    lead = (count,) if batch is None else (count, batch)
    h = torch.randn(*lead, getattr(layer, "proj_size", 0) or H, dtype=torch.float64)
    return (h, torch.randn(*lead, H, dtype=torch.float64)) if type(layer).__name__ == "LSTM" else h


def results(layer, x, state):
    """Output, state and the gradients of everything: of x, of the state, of each parameter."""
    packed = isinstance(x, PackedSequence)
    leaf = (x.data if packed else x).detach().clone().requires_grad_()
    states = [] if state is None else [s.detach().clone().requires_grad_() for s in flat(state)]
    given = None if state is None else states[0] if isinstance(state, torch.Tensor) else tuple(states)
    output, final = layer(x._replace(data=leaf) if packed else leaf, given)
    parts = (output.data, output.batch_sizes, output.sorted_indices) if packed else (output,)
    loss = loss_of(parts[0], *flat(final))
    found = gradients([leaf, *states, *layer.parameters()], loss)
    return [p for p in parts if p is not None] + [*flat(final), *found]


@every_layer
@every_shape
def test_same_seed_same_parameters_names_and_repr(kind, shape):
    ours, theirs = pair(kind, **shape)
    mine, yours = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(yours)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert all(torch.equal(mine[key], yours[key]) for key in mine)
    assert repr(ours) == repr(theirs)
    assert [[p.shape for p in ps] for ps in ours.all_weights] == [[p.shape for p in ps] for ps in theirs.all_weights]


@every_layer
def test_construction_leaves_the_random_state_where_torch_leaves_it(kind):
    ours, theirs, extra = LAYERS[kind]
    drawn = []
    for make in (ours, theirs):
        torch.manual_seed(7)
        make(I, H, 2, **extra)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@every_layer
@every_shape
def test_state_dict_loads_both_ways(kind, shape):
    ours, theirs = pair(kind, **shape)
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(1.5)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.25)
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    x = torch.randn(T, B, I, dtype=torch.float64)
    close(results(ours, x, None), results(theirs, x, None))
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ours.load_state_dict(theirs.state_dict() | {"weight_xx_l0": torch.zeros(1)})


@every_layer
@every_shape
@both_engines
@pytest.mark.parametrize("given", [False, True], ids=["zero state", "state given"])
def test_output_states_and_gradients_are_torchs(kind, shape, engine, given):
    ours, theirs = pair(kind, **shape)
    x = torch.randn(*((B, T) if shape["batch_first"] else (T, B)), I, dtype=torch.float64)
    state = states_for(theirs, B) if given else None
    want = results(theirs, x, state)
    with anyrnn.engine(engine):
        close(results(ours, x, state), want)
    one = x[0] if shape["batch_first"] else x[:, 0]  # unbatched (T, I)
    state = states_for(theirs) if given else None
    want = results(theirs, one, state)
    with anyrnn.engine(engine):
        close(results(ours, one, state), want)


@every_layer
@pytest.mark.parametrize("shape", PACKED, ids=PACKED_IDS)
@both_engines
@pytest.mark.parametrize("given", [False, True], ids=["zero state", "state given"])
def test_packed_sequences_give_torchs_results(kind, shape, engine, given):
    ours, theirs = pair(kind, **shape)
    state = states_for(theirs, B) if given else None
    x = torch.randn(T, B, I, dtype=torch.float64)
    for lengths, sort in (([5, 3, 2], True), ([2, 4, 1], False), ([3, 3, 3], False)):
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
        want = results(theirs, packed, state)
        with anyrnn.engine(engine):
            close(results(ours, packed, state), want)


@every_layer
def test_the_engine_chosen_by_itself_gives_torchs_results_too(kind):
    ours, theirs = pair(kind, num_layers=2, bidirectional=True)
    x, state = torch.randn(T, B, I, dtype=torch.float64), states_for(theirs, B)
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 1]), enforce_sorted=False)
    with anyrnn.engine("auto"):
        close(results(ours, x, state), results(theirs, x, state))
        close(results(ours, packed, state), results(theirs, packed, state))


@every_layer
def test_dropout_draws_what_torch_draws(kind):
    ours, theirs = pair(kind, num_layers=3, bidirectional=True, dropout=0.4)
    x = torch.randn(T, B, I, dtype=torch.float64)
    found = []
    for layer in (ours, theirs):
        torch.manual_seed(8)
        found.append(results(layer, x, None))
    close(*found)
    ours.eval()
    theirs.eval()
    close(results(ours, x, None), results(theirs, x, None))
    assert repr(ours) == repr(theirs)


@every_cell
@pytest.mark.parametrize("bias", [True, False])
def test_cells_are_torchs(kind, bias):
    ours, theirs = pair(kind, bias=bias)
    assert repr(ours) == repr(theirs)
    mine, yours = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(yours)
    assert all(torch.equal(mine[key], yours[key]) for key in mine)
    for lead in ((B,), ()):
        x = torch.randn(*lead, I, dtype=torch.float64, requires_grad=True)
        h, c = (torch.randn(*lead, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
        for given in (None, (h, c) if "LSTM" in kind else h):
            found = []
            for cell in (ours, theirs):
                new = cell(x, given)
                assert isinstance(new, tuple) is ("LSTM" in kind)
                found.append([*flat(new), *gradients([x, h, c, *cell.parameters()], loss_of(*flat(new)))])
            close(*found)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_constructor_arguments_have_torchs_names_order_and_defaults(kind):
    ours, theirs, _ = (LAYERS | CELLS)[kind]
    if kind in CELLS:
        expected = list(inspect.signature(theirs).parameters.values())
    else:  # torch.nn's layers take *args; RNNBase has them all
        base = [p for p in inspect.signature(nn.RNNBase).parameters.values() if p.name not in ("mode", "proj_size")]
        extra = [p for p in inspect.signature(nn.RNNBase).parameters.values() if p.name == "proj_size"]
        nonlinearity = [inspect.Parameter("nonlinearity", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="tanh")]
        expected = base[:3] + (nonlinearity if ours is anyrnn.RNN else []) + base[3:7]
        expected += (extra if ours is anyrnn.LSTM else []) + base[7:]
    got = [p for p in inspect.signature(ours).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]
    call = [p.name for p in inspect.signature(ours.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert call == ["self", "input", "hx"]


@pytest.mark.parametrize("kind", LAYERS)
def test_training_takes_the_same_path_as_torchs(kind):
    ours, theirs = pair(kind, num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    target = torch.randn(T, B, 2 if "projected" in kind else H, dtype=torch.float64)
    losses = []
    for layer in (ours, theirs):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            loss = (layer(x)[0] - target).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    close([losses[0], *ours.parameters()], [losses[1], *theirs.parameters()], atol=1e-8)
    assert losses[0] < (pair(kind, num_layers=2)[0](x)[0] - target).square().mean()


def test_code_written_for_torch_nn_runs():
    layer = copy.deepcopy(anyrnn.LSTM(I, H, 2, True, True, 0.0, True))
    layer.flatten_parameters()
    output, (h, c) = layer(input=torch.randn(B, T, I), hx=None)
    assert output.shape == (B, T, 2 * H)
    assert h.shape == c.shape == (4, B, H)
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.bias) == (I, H, 2, True)
    assert (layer.batch_first, layer.dropout, layer.bidirectional, layer.proj_size) == (True, 0.0, True, 0)
    assert isinstance(layer.weight_hh_l1_reverse, nn.Parameter)
    bound = 1 / H**0.5
    assert all((-bound <= p).all() and (p <= bound).all() for p in layer.parameters())
    assert anyrnn.RNN(I, H, 1, "relu", False).nonlinearity == "relu"
    with pytest.warns(UserWarning, match="dropout=0.3 acts between layers and does nothing with num_layers=1"):
        anyrnn.GRU(I, H, dropout=0.3)
