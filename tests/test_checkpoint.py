"""checkpoint_every: the values and gradients of the call without it, to the bit, in less memory."""

from weakref import finalize

import pytest
import torch
from torch import nn

import anyrnn
from anyrnn.compiler.derive import Term
from anyrnn.engines.cpu import backend
from anyrnn.runtime import gradients, layout, loop, pieces
from anyrnn.runtime.kernel import Rows
from anyrnn.runtime.memory import empty
from anyrnn.runtime.sums import Product


class Leaky(nn.Module):
    """Two products of one operand with one matrix; an input per step, and one per sequence."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.of_context = nn.Linear(3, hidden_size)

    def forward(self, x, h, dt, context):
        new = torch.tanh(self.new(torch.cat((x, h), 1)) + self.of_context(context))
        return h + dt * (new - h)


class Twice(nn.Module):
    """One matrix multiplied with two operands: its gradient is a sum of two products."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size)

    def forward(self, x, h):
        first = torch.tanh(self.W(x) + h @ self.U)
        return torch.tanh(first @ self.U + h)


class Encoded(nn.Module):
    """A cell with parts before and after the loop."""

    def __init__(self, input_size, hidden_size, draws=False):
        super().__init__()
        self.hidden_size, self.draws = hidden_size, draws
        self.encoder, self.U = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.A = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size)
        self.readout = nn.Linear(hidden_size, 2)

    def forward(self, x, h):
        e = torch.relu(self.encoder(x))
        if self.draws:
            e = nn.functional.dropout(e, 0.5)
        zeros = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype)
        h = torch.tanh(e + self.U(h) + h @ (self.A - self.A.T) + zeros)
        return self.readout(h), h


class Uncompilable(nn.Module):
    """What the loop program lacks."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.W(x) + self.U(torch.cumsum(h, 1)))


def layer_of(cell, **options):
    return anyrnn.Recurrent(lambda n: cell(n, 16), input_size=5, **options)


#: Layers, and whether all has the same bits: PyTorch's products around a loop take rows in groups, and the gradients of
#: their weights are sums of those of pieces.
LAYERS = {
    "LSTM": (lambda: anyrnn.LSTM(5, 16), True),
    "GRU, two layers, two directions": (lambda: anyrnn.GRU(5, 16, 2, bidirectional=True), True),
    "peephole LSTM, backward too": (lambda: anyrnn.PeepholeLSTM(5, 16, bidirectional=True), True),
    "twice": (lambda: layer_of(Twice), True),
    "encoded": (lambda: layer_of(Encoded, bidirectional=True), False),
}


def results_of(layer, x, every, weights=None, **options):
    """Output, states, and the gradients of x and all parameters."""
    output, state = layer(x, checkpoint_every=every, **options)
    states = state if isinstance(state, tuple) else (state,)
    torch.manual_seed(7)
    loss = sum((t * torch.randn_like(t)).sum() for t in (output, *states))
    tensors = [x, *layer.parameters(), *(weights or ())]
    return [output, *states, *torch.autograd.grad(loss, tensors, allow_unused=True)]


def assert_equal(found, expected, exactly):
    for a, b in zip(found, expected, strict=True):
        if exactly:
            assert torch.equal(a, b), (a - b).abs().max()
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9 if a.dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lengths", [None, [103, 0, 60, 17, 100]], ids=["full", "ragged"])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_have_the_same_bits(name, lengths, dtype):
    make, exactly = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().to(dtype), torch.randn(103, 5, 5, dtype=dtype, requires_grad=True)
    with anyrnn.engine("cpu"):
        expected = results_of(layer, x, None, lengths=lengths)
        for every in (64, 7):
            found = results_of(layer, x, every, lengths=lengths)
            assert_equal(found, expected, exactly)


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_in_several_threads_and_with_products_by_onednn(threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer, x = anyrnn.LSTM(30, 100), torch.randn(150, 16, 30, requires_grad=True)
    state = torch.randn(1, 16, 100, requires_grad=True), torch.randn(1, 16, 100, requires_grad=True)
    with anyrnn.engine("cpu"):
        expected = results_of(layer, x, None, state, hx=state)
        for every in (1, 50, 149):
            assert_equal(results_of(layer, x, every, state, hx=state), expected, True)


@pytest.mark.parametrize("lengths", [None, [43, 0, 12, 17]], ids=["full", "ragged"])
@pytest.mark.parametrize("name", ["LSTM", "GRU, two layers, two directions", "encoded"])
def test_the_plain_loop_in_pieces(name, lengths):
    torch.manual_seed(0)
    layer, x = LAYERS[name][0]().double(), torch.randn(43, 4, 5, dtype=torch.float64, requires_grad=True)
    with anyrnn.engine("reference"):
        expected = results_of(layer, x, None, lengths=lengths)
        for every in (10, 43):
            assert_equal(results_of(layer, x, every, lengths=lengths), expected, True)
    with anyrnn.engine("cpu"):
        assert_equal(results_of(layer, x, 10, lengths=lengths), expected, False)


def test_a_cell_that_cannot_be_compiled_in_pieces():
    torch.manual_seed(0)
    layer, x = layer_of(Uncompilable).double(), torch.randn(33, 4, 5, dtype=torch.float64, requires_grad=True)
    assert_equal(results_of(layer, x, 10), results_of(layer, x, None), True)


@pytest.mark.parametrize("lengths", [None, [3, 60, 0, 44]], ids=["full", "ragged"])
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_further_arguments(engine, lengths):
    torch.manual_seed(0)
    layer = layer_of(Leaky, bidirectional=True).double()
    x, dt = torch.randn(60, 4, 5, dtype=torch.float64, requires_grad=True), torch.randn(60, 4, 1, dtype=torch.float64)
    context = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    options = {"inputs": dt.requires_grad_(), "context": context, "lengths": lengths}
    with anyrnn.engine(engine):
        expected = results_of(layer, x, None, [dt, context], **options)
        found = results_of(layer, x, 13, [dt, context], **options)
    # The plain loop copies the context for each piece, so that its gradient is a sum of those of pieces.
    exact = len(found) - 1 if engine == "cpu" else 0
    assert_equal(found[:exact], expected[:exact], True)
    assert_equal(found, expected, False)


def test_records_and_states_of_all_steps():
    torch.manual_seed(0)
    layer, x = layer_of(Encoded), torch.randn(50, 3, 5, requires_grad=True)
    found, expected = (layer(x, record="e", return_states=True, checkpoint_every=every) for every in (20, None))
    assert_equal([found[0], found[2]["e"], found[3]], [expected[0], expected[2]["e"], expected[3]], True)
    gradients = [torch.autograd.grad(r[2]["e"].sum() + r[3].square().sum(), x)[0] for r in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_random_numbers_are_drawn_again(engine):
    """By finite differences: of one seed, a step in the direction of the gradient changes the loss as it says."""
    torch.manual_seed(0)
    layer = anyrnn.Recurrent(lambda n: Encoded(n, 16, draws=True), input_size=5).double()
    x, direction = torch.randn(2, 40, 3, 5, dtype=torch.float64)

    def loss(x):
        torch.manual_seed(3)
        return layer(x, checkpoint_every=9)[0].sin().sum()

    with anyrnn.engine(engine):
        x = x.requires_grad_()
        value = loss(x)
        before = torch.get_rng_state()
        (gradient,) = torch.autograd.grad(value, x)
        assert torch.equal(torch.get_rng_state(), before)
        with torch.no_grad():
            slope = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
        assert abs(slope - (gradient * direction).sum()) < 1e-6
        assert (gradient == 0).any() or engine == "cpu"


@pytest.mark.parametrize("name", ["LSTM", "encoded"])
def test_second_derivatives(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name][0]().double(), torch.randn(11, 2, 5, dtype=torch.float64, requires_grad=True)

    def second(every):
        (first,) = torch.autograd.grad(layer(x, checkpoint_every=every)[0].sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *layer.parameters()], allow_unused=True)

    for a, b in zip(second(4), second(None), strict=True):
        assert (a is None) is (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-9)


def test_many_gradients_at_once_and_torch_func():
    torch.manual_seed(0)
    layer, x = anyrnn.GRU(5, 8).double(), torch.randn(9, 2, 5, dtype=torch.float64)

    def function(x, every):
        return layer(x, checkpoint_every=every)[0][-1].sum(0)

    expected = torch.autograd.functional.jacobian(lambda x: function(x, None), x)
    for vectorize in (False, True):
        found = torch.autograd.functional.jacobian(lambda x: function(x, 4), x, vectorize=vectorize)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.func.jacrev(lambda x: function(x, 4))(x), expected, atol=1e-9, rtol=0)


def test_what_has_no_gradient_has_none():
    layer, x = anyrnn.LSTM(5, 8), torch.randn(20, 2, 5)
    layer.bias_ih_l0.requires_grad_(False)
    output, _ = layer(x, checkpoint_every=6)
    output.sum().backward()
    assert layer.bias_ih_l0.grad is None
    assert layer.weight_hh_l0.grad is not None
    with torch.no_grad():
        assert not layer(x, checkpoint_every=6)[0].requires_grad


def test_hooks_on_saved_tensors_of_the_call_are_kept():
    layer, x = anyrnn.LSTM(5, 8), torch.randn(20, 2, 5, requires_grad=True)
    expected = results_of(layer, x, None)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
        assert_equal(results_of(layer, x, 6), expected, True)


def test_a_weight_changed_in_between_is_noticed():
    layer, x = anyrnn.LSTM(5, 8), torch.randn(20, 2, 5)
    output, _ = layer(x, checkpoint_every=6)
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_feedback_in_pieces():
    torch.manual_seed(0)
    layer, head, x = anyrnn.GRU(3, 8), nn.Linear(8, 3), torch.randn(30, 2, 3, requires_grad=True)
    expected = results_of(layer, x, None, head.parameters(), feedback=head, forced=10)
    found = results_of(layer, x, 7, head.parameters(), feedback=head, forced=10)
    assert_equal(found, expected, False)


def test_scan_takes_it():
    cell, x = nn.GRUCell(3, 5), torch.randn(30, 2, 3, requires_grad=True)
    pairs = [anyrnn.scan(cell, x, checkpoint_every=every, reverse=True) for every in (8, None)]
    gradients = [torch.autograd.grad(y.square().sum(), [x, *cell.parameters()]) for y, _ in pairs]
    assert_equal(gradients[0], gradients[1], True)


@pytest.mark.parametrize("every", [0, -3, 2.5, "all"])
def test_what_is_no_number_of_steps_is_refused(every):
    with pytest.raises(anyrnn.AnyRNNError, match=r"LSTM: got checkpoint_every=.*, expected an int of at least 1"):
        anyrnn.LSTM(3, 5)(torch.randn(9, 2, 3), checkpoint_every=every)


# PyTorch says this of itself, where it goes on behind a break of the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_below_torch_compile():
    torch._dynamo.reset()
    layer, x = anyrnn.GRU(3, 5), torch.randn(20, 2, 3, requires_grad=True)

    def model(x):
        return layer(x, checkpoint_every=6)[0].sin().sum()

    (expected,) = torch.autograd.grad(model(x), x)
    (found,) = torch.autograd.grad(torch.compile(model, backend="aot_eager")(x), x)
    torch.testing.assert_close(found, expected)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="checkpoint_every=6 in a graph"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(x)


def test_memory_is_that_of_a_piece(monkeypatch):
    """The most that is in use at a time of what the passes allocate, beside the output."""
    layer, x = anyrnn.LSTM(4, 32), torch.randn(4000, 2, 4, requires_grad=True)
    live, most = 0, 0

    def counted(like, *shape):
        nonlocal live, most
        tensor = empty(like, *shape)
        live += tensor.nbytes
        most = max(most, live)
        finalize(tensor, freed, tensor.nbytes)
        return tensor

    def freed(size):
        nonlocal live
        live -= size

    for module in (backend, gradients, layout, loop, pieces):
        monkeypatch.setattr(module, "empty", counted)

    def peak(every):
        nonlocal live, most
        live = most = 0
        with anyrnn.engine("cpu"):
            output, _ = layer(x, checkpoint_every=every)
        torch.autograd.grad(output, [x, *layer.parameters()], torch.ones_like(output))
        return most - output.nbytes

    assert 10 * peak(40) < peak(None)


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("cuts", [[1000], [400, 600], [7, 303, 1, 689], [100] * 10, [304, 304, 392]])
def test_products_in_pieces_are_formed_of_the_same_blocks(cuts, last_first):
    """The sum of blocks, as a backend forms them, does not depend on where the pieces end."""
    torch.manual_seed(0)
    left, right = torch.randn(1000, 9), torch.randn(1000, 21)
    cpu, expected = backend.CpuBackend.host(), torch.empty(9, 21)
    rows = [Rows(t, t.shape[1], 0, t.shape[1], 0, 1000) for t in (left, right)]
    cpu.add_outer(expected, 0, 0, *rows, False, last_first)
    out = torch.empty(9, 21)
    product, at = Product(cpu, out, 0, 0, False, last_first), 0
    for k, count in enumerate(cuts):
        first = 1000 - at - count if last_first else at
        product.add_rows(tuple(r.part(first, count) for r in rows), k == len(cuts) - 1)
        at += count
    assert torch.equal(out, expected)
    torch.testing.assert_close(out, left.t() @ right, rtol=1e-4, atol=1e-4)


def test_terms_of_one_matrix_are_told_apart():
    def term(row, rows, col=0, cols=4, matrix="U"):
        return Term("h", 0, matrix, row, col, rows, cols, "grad", 0)

    assert term(0, 4).overlaps(term(3, 4))
    assert not term(0, 4).overlaps(term(4, 4))
    assert not term(0, 4).overlaps(term(0, 4, col=4))
    assert not term(0, 4).overlaps(term(0, 4, matrix="V"))
