"""Resets: a row that starts anew is as if its pieces were run apart, values and gradients."""

import copy
import gc
import itertools
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import anyrnn
from zoo import ConcatLSTM, MixedSizes, close

T, B, I, H = 7, 4, 3, 5
LENGTHS = {"full": None, "ragged": [7, 0, 3, 5]}
ENGINES = ("reference", "cpu")
SHAPES = {"one": (1, False), "two layers": (2, False), "two directions": (1, True), "both": (2, True)}


class Heads(nn.Module):
    """A state of two dimensions, and one of one."""

    def __init__(self, size):
        super().__init__()
        self.state_sizes = ((2, 3), 4)
        self.W, self.U = nn.Linear(size, 6), nn.Linear(4, 6)
        self.V = nn.Linear(size + 4, 4)

    def forward(self, x, state):
        A, h = state
        A = 0.5 * A + torch.tanh(self.W(x) + self.U(h)).unflatten(1, (2, 3))
        h = torch.tanh(self.V(torch.cat([x, h], 1))) + A.sum((1, 2)).unsqueeze(1)
        return h, (A, h)


MAKERS = {
    "LSTM": lambda **options: anyrnn.LSTM(I, H, **options),
    "GRU": lambda **options: anyrnn.GRU(I, H, **options),
    "ConcatLSTM": lambda **options: anyrnn.Recurrent(lambda size: ConcatLSTM(size, H), I, **options),
    "MixedSizes": lambda **options: anyrnn.Recurrent(lambda size: MixedSizes(size, H), I, **options),
    "Heads": lambda **options: anyrnn.Recurrent(Heads, I, **options),
}


def make(name, **options):
    torch.manual_seed(3)
    return MAKERS[name](**options).double()


def inputs(share=0.3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, I, dtype=torch.float64, generator=generator).requires_grad_()
    return x, torch.rand(T, B, generator=generator) < share


def random_state(layer, seed):
    generator = torch.Generator().manual_seed(seed)
    return pytree.tree_map(
        lambda s: torch.randn(s.shape, dtype=s.dtype, generator=generator).requires_grad_(), layer.initial_state(B)
    )


def row_of(state, b):
    return pytree.tree_map(lambda s: s[:, b : b + 1], state)


def by_direction(forward, backward, D):
    """The states of each layer's directions, of two runs."""
    return pytree.tree_map(lambda f, g: torch.stack([(f, g)[d % D][d] for d in range(len(f))]), forward, backward)


def apart(layer, x, reset, state, fresh, lengths):
    """Run every row's pieces by themselves on the reference: the outputs, and the final states."""
    D, rows, finals = layer.num_directions, [], []
    for b in range(B):
        n = T if lengths is None else lengths[b]
        cuts = [0, *[t for t in range(1, n) if reset[t, b]], n]
        pieces = [*itertools.pairwise(cuts)] if n else []
        # The first piece of the second direction begins at the end of the row.
        starts = [fresh if n and reset[0, b] else state] + [fresh] * (len(pieces) - 1)
        ends = [fresh] * (len(pieces) - 1) + [state]
        runs = []
        for (i, j), start, end in zip(pieces, starts, ends, strict=False):
            runs.append(layer(x[i:j, b : b + 1], by_direction(row_of(start, b), row_of(end, b), D)))
        rows.append(torch.cat([*(output for output, _ in runs), x.new_zeros(T - n, 1, layer.output_size)]))
        finals.append(by_direction(runs[-1][1], runs[0][1], D) if n else row_of(state, b))
    return torch.cat(rows, 1), pytree.tree_map(lambda *s: torch.cat(s, 1), *finals)


def loss_of(output, state):
    leaves = [output, *pytree.tree_leaves(state)]
    return sum((leaf * torch.linspace(0.5, 2, leaf.numel(), dtype=leaf.dtype).view_as(leaf)).sum() for leaf in leaves)


@pytest.mark.grid(3)
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("start", ["zero", "given", "other"])
def test_rows_that_start_anew_are_pieces_run_apart(name, shape, lengths, start):
    layers, two = SHAPES[shape]
    layer, (x, reset), n = make(name, num_layers=layers, bidirectional=two), inputs(), LENGTHS[lengths]
    state = layer.initial_state(B) if start == "zero" else random_state(layer, 5)
    fresh = random_state(layer, 6) if start == "other" else state
    options = {"reset_to": fresh} if start == "other" else {}
    leaves = [x, *(s for s in pytree.tree_leaves((state, fresh)) if s.requires_grad), *layer.parameters()]
    with anyrnn.engine("reference"):
        want = apart(layer, x, reset, state, fresh, n)
        gradients = torch.autograd.grad(loss_of(*want), leaves)
    dirty = x.detach().clone()
    for b in range(B):
        dirty[T if n is None else n[b] :, b] = torch.nan
    for engine in ENGINES:
        given = dirty.clone().requires_grad_()
        with anyrnn.engine(engine):
            got = layer(given, None if start == "zero" else state, lengths=n, reset=reset, **options)
        close(got, want)
        mine = [given, *leaves[1:]]
        close(torch.autograd.grad(loss_of(*got), mine), gradients)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_a_rows_padding_resets_nothing(engine, reverse):
    layer, (x, _) = make("GRU"), inputs()
    lengths = [7, 0, 3, 5]
    reset = torch.arange(T).unsqueeze(1) >= torch.tensor(lengths)
    state = random_state(layer, 2)
    with anyrnn.engine(engine):
        got = anyrnn.scan(layer.cell(), x, state[0], lengths, reverse, reset=reset, reset_to=torch.zeros(B, H).double())
        want = anyrnn.scan(layer.cell(), x, state[0], lengths, reverse)
    close(got, want)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_gradient_passes_a_reset(engine):
    layer, (x, _) = make("LSTM"), inputs()
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3, 1] = True
    with anyrnn.engine(engine):
        output, _ = layer(x, reset=reset)
    (gradient,) = torch.autograd.grad(output[3:, 1].sum(), x)
    assert not gradient[:3].any()
    assert gradient[3:, 1].all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_takes_resets_in_its_own_forms(engine):
    layer, (x, reset) = make("LSTM"), inputs()
    first = make("LSTM", batch_first=True)
    with anyrnn.engine(engine):
        want, _ = layer(x, reset=reset)
        close(first(x.transpose(0, 1), reset=reset.T)[0].transpose(0, 1), want)
        close(layer(x[:, 0], reset=reset[:, 0])[0], want[:, 0])
        packed = pack_padded_sequence(x, [3, 7, 1, 5], enforce_sorted=False)
        got, _ = pad_packed_sequence(layer(packed, reset=reset)[0])
        close(got, layer(x, lengths=[3, 7, 1, 5], reset=reset)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_records_and_states_of_all_steps_are_there_with_resets(engine):
    layer, (x, reset) = make("LSTM", num_layers=2, bidirectional=True), inputs()
    with anyrnn.engine(engine):
        output, _, record, (h, c) = layer(x, reset=reset, record="c", return_states=True)
    close(record["c"], c)
    close(torch.cat([h[2], h[3]], -1), output)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_learned_is_where_rows_start(engine):
    layer, (x, reset) = make("LSTM", num_layers=2, bidirectional=True, learn_initial_state=True), inputs()
    names = [name for name, _ in layer.named_parameters() if name.startswith("initial_state")]
    places = ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
    assert names == [f"initial_state{k}{place}" for place in places for k in (0, 1)]
    assert not any(getattr(layer, name).any() for name in names)
    with torch.no_grad():
        for name in names:
            getattr(layer, name).normal_()
    own = [getattr(layer, name) for name in names]
    stacked = tuple(torch.stack([getattr(layer, f"initial_state{k}{p}") for p in places]) for k in (0, 1))
    given = tuple(s.unsqueeze(1).expand(4, B, H) for s in stacked)
    close(layer.initial_state(B), given)
    close(layer.initial_state(), stacked)
    with anyrnn.engine("reference"):
        want = layer(x, given, reset=reset)
        gradients = torch.autograd.grad(loss_of(*want), own)
    with anyrnn.engine(engine):
        got = layer(x, reset=reset)
        close(got, want)
        close(torch.autograd.grad(loss_of(*got), own), gradients)
        carried = random_state(layer, 3)
        close(
            layer(x, carried, reset=reset, reset_to=layer.initial_state(B)),
            layer(x, carried, reset=reset, reset_to=given),
        )


def test_a_learned_initial_state_is_a_parameter_like_others():
    layer = anyrnn.GRU(I, H, learn_initial_state=True)
    assert "learn_initial_state=True" in repr(layer)
    assert layer.initial_state_l0.shape == (H,)
    plain = anyrnn.GRU(I, H)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "initial" not in k})
    x = torch.randn(2, B, I)
    close(layer(x), plain(x))  # for so few steps, too, which PyTorch's own kernel would run
    with torch.no_grad():
        layer.initial_state_l0.fill_(0.5)
    close(layer(x), plain(x, torch.full((1, B, H), 0.5)))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        close(other(x), layer(x))
    layer.reset_parameters()
    assert not layer.initial_state_l0.any()
    own = anyrnn.Recurrent(Heads, I, learn_initial_state=True)
    assert own.initial_state0_l0.shape == (2, 3)
    with pytest.raises(anyrnn.AnyRNNError, match="size of its input"):
        anyrnn.Recurrent(Heads(I), learn_initial_state=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cell_of_a_layer_and_alone_has_no_trace_of_its_resets(engine):
    cell, (x, reset) = nn.GRUCell(I, H).double(), inputs()
    names = list(cell.state_dict())
    with anyrnn.engine(engine):
        want = anyrnn.scan(cell, x, reset=reset)
        other = pickle.loads(pickle.dumps(copy.deepcopy(cell)))
        close(anyrnn.scan(other, x, reset=reset), want)
        with torch.no_grad():
            cell.weight_hh.mul_(2)
        assert not torch.equal(anyrnn.scan(cell, x, reset=reset)[0], want[0])
    assert list(cell.state_dict()) == names
    assert [*cell.modules()] == [cell]
    assert vars(cell).keys() == vars(nn.GRUCell(I, H)).keys()
    gone = weakref.ref(cell)
    del cell, other
    gc.collect()
    assert gone() is None


def test_weights_that_are_put_in_for_a_call_are_used():
    layer, (x, reset) = make("LSTM"), inputs()
    other = make("LSTM")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    weights = dict(other.named_parameters())
    close(torch.func.functional_call(layer, weights, (x,), {"reset": reset}), other(x, reset=reset))


@pytest.mark.grid(2)
@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize("name", ["LSTM", "ConcatLSTM"])
def test_resets_below_torch_compile(name):
    layer, (x, reset) = make(name, num_layers=2, bidirectional=True), inputs()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    lengths = torch.tensor([7, 0, 3, 5])
    for n in (None, lengths):
        want, got = layer(x, lengths=n, reset=reset), compiled(x, lengths=n, reset=reset)
        close(got, want)
        leaves = [x, *layer.parameters()]
        close(torch.autograd.grad(loss_of(*got), leaves), torch.autograd.grad(loss_of(*want), leaves))


def test_a_saved_program_has_the_resets(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make("GRU")

        def forward(self, x, reset):
            return self.layer(x, reset=reset)

    (x, reset), model = inputs(), Model()
    sizes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    program = torch.export.export(model, (x.detach(), reset), dynamic_shapes={"x": sizes, "reset": sizes})
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    longer, mask = torch.cat([x, x])[:, :3].detach(), torch.cat([reset, reset])[:, :3]
    close(loaded(longer, mask), model(longer, mask))


def test_resets_that_do_not_fit_are_told():
    layer, (x, reset) = make("GRU"), inputs()
    for wrong, words in [
        (reset.float(), r"torch.float32 \(7, 4\), expected true or false, .*: reset.bool\(\)"),
        (reset.T, r"torch.bool \(4, 7\), expected .*\(T, B\) with T, B = \(7, 4\)"),
        ([1, 2], "a list, expected"),
    ]:
        with pytest.raises(anyrnn.AnyRNNError, match=words):
            layer(x, reset=wrong)
    with pytest.raises(anyrnn.AnyRNNError, match="reset_to without reset"):
        layer(x, reset_to=layer.initial_state(B))
    with pytest.raises(anyrnn.AnyRNNError, match="state has shape"):
        layer(x, reset=reset, reset_to=torch.zeros(1, B, H + 1).double())
    with pytest.raises(anyrnn.AnyRNNError, match="reset with feedback"):
        layer(x, reset=reset, feedback=nn.Linear(H, I).double())
