"""A stream of single steps is the layer: for every cell, with every argument, and nothing is left behind by a step."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import anyrnn
from anyrnn.errors import AnyRNNError
from strangers import STRANGERS
from test_strangers import Case as Stranger
from zoo import CASES, H, I, state_of

T = 7


@pytest.fixture
def _double():
    """Numbers that a project keeps as tensors are then float64, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def streamed(layer, x, state=None, inputs=None, context=None):
    """Output and state of a call with x (T, B, ...), one step after the other; and the stream."""
    first = pytree.tree_map_only(torch.Tensor, lambda t: t[0], inputs)
    stream = layer.stream(x.shape[1], state=state, inputs=first, context=context)
    outputs = []
    for t, row in enumerate(x):
        stream.x[:] = row
        for buffer, given in zip(leaves(stream.inputs), leaves(inputs), strict=True):
            buffer[:] = given[t]
        stream.step()
        outputs.append(pytree.tree_map(torch.clone, stream.y))
    return pytree.tree_map(lambda *ts: torch.stack(ts), *outputs), stream.state, stream


def leaves(value):
    return [] if value is None else pytree.tree_leaves(value)


def whole(layer, x, state=None, **options):
    with torch.no_grad(), anyrnn.engine("reference"):
        return layer(x, state, **options)


def assert_equal(got, want, tolerance):
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.grid(2)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_streamed_is_chunked_is_whole_for_every_cell(case):
    torch.manual_seed(0)
    layer = anyrnn.Recurrent(case.make(I, H).double(), I)
    for B in (1, 3):
        x = torch.randn(T, B, I, dtype=torch.float64)
        initial = state_of(layer.cell(), B)
        state = pytree.tree_map(lambda s: s.unsqueeze(0), initial)
        want = whole(layer, x, state)
        with torch.no_grad():
            first, middle = layer(x[:3], state)
            second, final = layer(x[3:], middle)
        with anyrnn.engine("cpu"):
            output, last, stream = streamed(layer, x, state)
        assert stream.engine == "cpu"
        assert_equal((torch.cat([first, second]), final), want, 1e-11)
        assert_equal((output, last), want, 1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_float32_it_is_the_layer_but_for_rounding(case):
    torch.manual_seed(0)
    layer = anyrnn.Recurrent(case.make(I, H).float(), I)
    x = torch.randn(T, 2, I)
    output, last, stream = streamed(layer, x)
    assert stream.x.dtype == stream.y.dtype == torch.float32
    assert_equal((output, last), whole(layer, x), 2e-6)


@pytest.mark.grid(2)
@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_stream_with_their_inputs_and_contexts(name):
    case = Stranger(name)
    x = case.given(case.model).detach()
    options = {"inputs": case.inputs or None, "context": case.context or None}
    want = whole(case.layer, x, **options)
    output, last, stream = streamed(case.layer, x, **pytree.tree_map(
        lambda t: t.detach() if isinstance(t, torch.Tensor) else t, options))  # fmt: skip
    assert stream.engine == case.stranger.engine, stream.reason
    assert_equal((output, last), want, 1e-9)


class Around(nn.Module):
    """Has something before the loop, something after it, and a product in both."""

    def __init__(self, size):
        super().__init__()
        self.hidden_size = 4
        self.encoder, self.W, self.readout = nn.Linear(size, 6), nn.Linear(6 + 4, 4), nn.Linear(4, 5)

    def forward(self, x, h):
        e = torch.relu(self.encoder(x))
        h = torch.tanh(self.W(torch.cat([e, h], 1)))
        return torch.softmax(self.readout(h), 1), h


class Uncompiled(Around):
    """What is before and after the loop holds operations that no loop program has, and what it gives are integers."""

    def forward(self, x, h):
        e = torch.special.i0(self.encoder(x))
        h = torch.tanh(self.W(torch.cat([e, h], 1)))
        y = torch.special.i0(self.readout(h))
        return (y, y.argmax(1), x[:, :2] > 0, self.encoder.bias.expand(x.shape[0], 6)), h


def test_what_is_before_and_after_the_loop_is_in_one_program():
    layer = anyrnn.Recurrent(Around, 3, num_layers=2)
    x = torch.randn(T, 2, 3)
    output, last, stream = streamed(layer, x)
    assert_equal((output, last), whole(layer, x), 2e-6)
    anatomy = stream.anatomy()
    assert anatomy.before == anatomy.after == ()
    assert anatomy.products == 6
    assert "tanh" in anatomy.program
    text = str(anyrnn.explain(stream))
    assert "Stacked on engine 'cpu'" in text
    assert "softmax" not in text.partition("loop")[0]
    assert "steps" not in stream.reason


def test_what_cannot_be_in_the_loop_runs_around_it():
    layer = anyrnn.Recurrent(Uncompiled, 3).double()
    x = torch.randn(T, 2, 3, dtype=torch.float64)
    output, last, stream = streamed(layer, x)
    want = whole(layer, x)
    assert [t.dtype for t in output] == [torch.float64, torch.int64, torch.bool, torch.float64]
    assert_equal((output, last), want, 1e-12)
    assert stream.engine == "cpu"
    assert "e = i0" in stream.anatomy().before
    assert stream.anatomy().after == ("y = i0", "argmax")


class Mixing(Around):
    """Rows of the batch meet before the loop and after it, which a loop program cannot do."""

    def forward(self, x, h):
        e = self.encoder(x - x.mean(0, keepdim=True))
        h = torch.tanh(self.W(torch.cat([e, h], 1)))
        return torch.softmax(self.readout(h), 0), h


def test_rows_may_meet_around_the_loop():
    layer = anyrnn.Recurrent(Mixing, 3).double()
    x = torch.randn(T, 4, 3, dtype=torch.float64)
    output, last, stream = streamed(layer, x)
    assert_equal((output, last), whole(layer, x), 1e-12)
    assert stream.engine == "cpu"
    assert stream.anatomy().before
    assert stream.anatomy().after


class Convolved(nn.Module):
    """A convolution in the loop, which is not compiled; it writes into what it is given."""

    state_sizes = torch.Size([2, 5])

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x, h):
        h.mul_(0.5)
        return torch.tanh(self.conv(h) + x.unsqueeze(1))


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so():
    layer = anyrnn.Recurrent(Convolved(), 5)
    x = torch.randn(T, 2, 5)
    output, last, stream = streamed(layer, x)
    assert_equal((output, last), whole(layer, x), 1e-6)
    assert stream.engine == "reference"
    assert "convolution" in stream.reason
    assert "convolution" in str(anyrnn.explain(stream))
    assert torch.equal(stream.x, x[-1])
    with (
        pytest.raises(AnyRNNError, match=r"asked for by name and cannot run this stream: .*convolution"),
        anyrnn.engine("cpu"),
    ):
        layer.stream()
    with pytest.raises(AnyRNNError, match="run whole sequences"), anyrnn.engine("torch"):
        layer.stream()


def test_a_stream_of_a_cell_that_counts_its_steps_counts_by_itself():
    class Counting(nn.Module):
        hidden_size, steps = 4, 0

        def forward(self, x, h):
            self.steps += 1
            return torch.tanh(x + h / self.steps)

    layer, x = anyrnn.Recurrent(Counting(), 4), torch.randn(T, 1, 4)
    layer.cell().steps = 0  # in the place of what the class says
    output, _, stream = streamed(layer, x)
    assert layer.cell().steps == 0
    assert "changes the attribute `steps`" in stream.reason
    assert_equal(output, whole(layer, x)[0], 1e-6)


def test_the_reference_streams_every_layer():
    layer = anyrnn.LSTM(3, 4, num_layers=2).double()
    x = torch.randn(T, 2, 3, dtype=torch.float64)
    with anyrnn.engine("reference"):
        output, last, stream = streamed(layer, x)
        assert stream.engine == "reference"
    assert_equal((output, last), whole(layer, x), 1e-12)


LAYERS = {
    "stack": lambda: anyrnn.GRU(3, 4, num_layers=3),
    "batch first": lambda: anyrnn.LSTM(3, 4, num_layers=2, batch_first=True),
    "projection": lambda: anyrnn.LSTM(3, 6, num_layers=2, proj_size=4),
    "peephole": lambda: anyrnn.PeepholeLSTM(3, 4, num_layers=2),
    "dense": lambda: anyrnn.Recurrent([lambda n: nn.GRUCell(n, 4), lambda n: nn.LSTMCell(n, 5)], 3, connect="dense"),
    "residual": lambda: anyrnn.Recurrent(lambda n: nn.GRUCell(n, 3), 3, num_layers=3, connect="residual"),
    "mixed": lambda: anyrnn.Recurrent([lambda n: nn.RNNCell(n, 4), Around], 3),
    "dropout": lambda: anyrnn.LSTM(3, 4, num_layers=2, dropout=0.5).eval(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_stacks_are_one_program(name):
    layer = LAYERS[name]().double()
    x = torch.randn(T, 3, 3, dtype=torch.float64)
    output, last, stream = streamed(layer, x)
    assert stream.engine == "cpu"
    want, state = whole(layer, x.transpose(0, 1) if name == "batch first" else x)
    assert_equal((output, last), (want.transpose(0, 1) if name == "batch first" else want, state), 1e-12)


@pytest.mark.parametrize("B", [1, 2, 5, 33])
def test_batches_on_several_threads_give_the_same(B):
    layer = anyrnn.LSTM(16, 64).double()
    x = torch.randn(T, B, 16, dtype=torch.float64)
    want = whole(layer, x)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output, last, _ = streamed(layer, x)
        assert_equal((output, last), want, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_computed_in_float32(dtype):
    layer = anyrnn.GRU(3, 8, num_layers=2).to(dtype)
    x = torch.randn(T, 2, 3, dtype=dtype)
    output, last, stream = streamed(layer, x)
    assert stream.engine == "cpu"
    assert stream.x.dtype == output.dtype == last.dtype == dtype
    exact, _ = whole(copy.deepcopy(layer).float(), x.float())
    error = (output.float() - exact).abs().max()
    assert error < torch.finfo(dtype).eps  # of numbers below one: that of writing them down


def test_it_computes_as_in_evaluation_mode():
    class Noisy(Around):
        def forward(self, x, h):
            h = torch.tanh(self.W(torch.cat([self.encoder(x), h], 1)))
            return nn.functional.dropout(h, 0.5, self.training)

    layer = anyrnn.Recurrent(Noisy, 3, num_layers=2, dropout=0.5)
    x = torch.randn(T, 2, 3)
    output, last, _ = streamed(layer, x)
    assert layer.training
    assert_equal((output, last), whole(layer.eval(), x), 2e-6)


def test_random_numbers_are_drawn_anew_at_every_step():
    class Random(nn.Module):
        hidden_size = 4

        def forward(self, x, h):
            return h + x + torch.rand_like(h)

    layer = anyrnn.Recurrent(Random(), 4)
    stream = layer.stream()
    increments = []
    for _ in range(4):
        before = stream.state
        stream.step()
        increments.append((stream.state - before).flatten())
    drawn = torch.cat(increments)
    assert stream.engine == "cpu"
    assert drawn.unique().numel() == drawn.numel()
    assert 0 <= drawn.min() < drawn.max() <= 1


def test_buffers_stay_and_are_shared_with_numpy():
    stream = anyrnn.LSTM(3, 4).stream(2)
    x, y = stream.x.numpy(), stream.y.numpy()
    addresses = stream.x.data_ptr(), stream.y.data_ptr()
    x[:] = [[1, 2, 3], [4, 5, 6]]
    assert stream.step() is None
    first = y.copy()
    assert first.any()
    stream.reset()
    stream.y.zero_()
    stream.step()
    assert (y == first).all()
    stream.refresh()
    assert (stream.x.data_ptr(), stream.y.data_ptr()) == addresses
    assert not stream.y.requires_grad


def test_a_step_outlives_its_stream():
    layer, x = anyrnn.LSTM(3, 40), torch.randn(1, 1, 3)
    stream = layer.stream()
    stream.x[:] = x[0]
    step, y = stream.step, stream.y
    del stream
    gc.collect()
    others = [torch.full((n,), float("nan")) for n in range(1, 20_000, 100)]  # where something may have been freed
    step()
    assert len(others) == 200
    assert_equal(y, whole(layer, x)[0][0], 1e-6)


def test_what_is_written_into_y_is_no_state():
    layer, x = anyrnn.GRU(3, 4), torch.randn(2, 1, 3)
    stream = layer.stream()
    for row in x:
        stream.y.fill_(100.0)
        stream.x[:] = row
        stream.step()
    assert_equal(stream.y, whole(layer, x)[0][-1], 1e-6)


def test_reset_takes_some_rows_back_to_the_initial_state():
    layer = anyrnn.LSTM(3, 4, num_layers=2)
    initial = tuple(torch.randn(2, 4, 4) for _ in range(2))
    stream = layer.stream(4, state=initial)
    kept = copy.deepcopy(initial)
    for s in initial:
        s.zero_()  # the stream has its own
    stream.x.normal_()
    for rows, which in ((2, [2]), ([0, 3], [0, 3]), (torch.tensor([True, False, True, False]), [0, 2]), ([], [])):
        stream.step()
        before = stream.state
        stream.reset(rows)
        others = [k for k in range(4) if k not in which]
        for now, was, first in zip(stream.state, before, kept, strict=True):
            assert torch.equal(now[:, which], first[:, which])
            assert torch.equal(now[:, others], was[:, others])
    stream.reset()
    assert_equal(stream.state, kept, 0)
    for rows in (4, -1, [0.5], [True, False], torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(AnyRNNError, match=r"(?s)LSTM: got rows=.*expected numbers of rows from 0 to 3"):
            stream.reset(rows)


def test_the_state_is_a_copy_and_can_be_set():
    layer, x = anyrnn.GRU(3, 4, num_layers=2), torch.randn(T, 2, 3)
    _, middle = whole(layer, x[:3])
    stream = layer.stream(2)
    stream.state = middle
    state = stream.state
    state.fill_(9)
    assert_equal(stream.state, middle, 0)
    for row in x[3:]:
        stream.x[:] = row
        stream.step()
    assert_equal(stream.state, whole(layer, x)[1], 2e-6)
    with pytest.raises(AnyRNNError, match="GRU: the state has shape"):
        stream.state = middle[:1]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_weight_that_changes_is_seen_after_refresh(engine):
    layer, x = anyrnn.Recurrent(Around, 3, num_layers=2), torch.randn(1, 2, 3)
    with anyrnn.engine(engine):
        stream = layer.stream(2)
        step = stream.step
        stream.x[:] = x[0]
        step()
        before = stream.y.clone()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1.5)
        stream.reset()
        step()
        assert torch.equal(stream.y, before)
        stream.refresh()
        stream.reset()
        stream.step()
        assert_equal(stream.y, whole(layer, x)[0][0], 2e-6)
        layer.cells[0].encoder.weight = nn.Parameter(torch.zeros(6, 3))  # another object
        stream.refresh()
        stream.reset()
        stream.step()
        assert_equal(stream.y, whole(layer, x)[0][0], 2e-6)


def test_refresh_sees_attributes_and_keeps_the_state():
    class Scaled(nn.Module):
        hidden_size, scale = 4, 2.0

        def forward(self, x, h):
            return torch.tanh(self.scale * x + h)

    layer, x = anyrnn.Recurrent(Scaled(), 4), torch.randn(2, 1, 4)
    stream = layer.stream()
    stream.x[:] = x[0]
    stream.step()
    layer.cell().scale = 3.0
    stream.refresh()
    stream.x[:] = x[1]
    stream.step()
    assert_equal(stream.y, torch.tanh(3 * x[1] + torch.tanh(2 * x[0])), 1e-6)
    layer.cell().hidden_size = 5
    with pytest.raises(AnyRNNError, match="Scaled: a step"):
        stream.refresh()


def test_a_context_is_read_when_the_stream_is_made_and_by_refresh():
    class Conditioned(nn.Module):
        hidden_size = 3

        def forward(self, x, h, c, A):
            return torch.tanh(x + c + h @ A)

    layer = anyrnn.Recurrent(Conditioned(), 3)
    c, A, x = torch.randn(2, 3), torch.randn(3, 3), torch.randn(T, 2, 3)
    context = (c, anyrnn.shared(A))
    output, last, stream = streamed(layer, x, context=context)
    assert_equal((output, last), whole(layer, x, context=context), 2e-6)
    stream.reset()
    c.add_(1)
    A.mul_(0.5)
    stream.step()
    assert_equal(stream.y, torch.tanh(x[-1] + c - 1), 2e-6)
    stream.refresh()
    stream.reset()
    stream.step()
    assert_equal(stream.y, torch.tanh(x[-1] + c), 2e-6)


def test_streams_of_one_layer_run_in_several_threads():
    layer = anyrnn.LSTM(8, 32, num_layers=2)
    x = torch.randn(4, 300, 1, 8)
    want = [whole(layer, each)[0] for each in x]
    found: list = [None] * len(x)

    def run(k):
        found[k] = streamed(layer, x[k])[0]

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, each in zip(found, want, strict=True):
        assert_equal(got, each, 2e-5)


def test_what_cannot_be_streamed_is_refused_with_the_reason():
    with pytest.raises(AnyRNNError, match=r"LSTM: got stream\(\) for a bidirectional layer, whose output"):
        anyrnn.LSTM(3, 4, bidirectional=True).stream()
    with pytest.raises(AnyRNNError, match="LSTM: got batch=0, expected an int of at least 1"):
        anyrnn.LSTM(3, 4).stream(0)
    layer = anyrnn.Recurrent(nn.Identity(), step=lambda m, x, h: h + x, state_sizes=4)
    with pytest.raises(AnyRNNError, match=r"before the size of its input is known; expected input_size="):
        layer.stream()
    layer(torch.randn(2, 1, 4))
    assert layer.stream().x.shape == (1, 4)
    stream = anyrnn.LSTM(3, 4).stream()
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(AnyRNNError, match="bound to memory; expected its layer"):
            copied(stream)


def test_a_stream_made_in_inference_mode_runs_outside_of_it():
    layer, x = anyrnn.LSTM(3, 4), torch.randn(1, 1, 3)
    with torch.inference_mode():
        stream = layer.stream()
    stream.x[:] = x[0]
    stream.step()
    assert_equal(stream.y, whole(layer, x)[0][0], 1e-6)
    with torch.inference_mode():
        stream.reset()
        stream.step()
    assert_equal(stream.y, whole(layer, x)[0][0], 1e-6)


# ---- Models as one cell ----


class Tagger(nn.Module):
    """Tokens, two kinds of recurrent layers, a residual connection, a parameter of its own, an optional state."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.first, self.second = nn.LSTM(4, 8, num_layers=2, dropout=0.3), anyrnn.GRU(8, 8)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, tokens, state=None):
        y, state = self.first(self.embedding(tokens)) if state is None else self.first(self.embedding(tokens), state)
        z, _ = self.second(y)
        return self.head(torch.relu(y + z) * self.scale), state


class BatchFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.rnn, self.head = nn.Linear(3, 6), nn.GRU(6, 8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return torch.softmax(self.head(self.rnn(torch.relu(self.encoder(x)))[0]), -1)


def by_stepwise(model, x, **options):
    stream = anyrnn.stepwise(model, **options).stream(x.shape[1])
    outputs = []
    for row in x:
        stream.x[:] = row
        stream.step()
        outputs.append(stream.y.clone())
    return torch.stack(outputs), stream


def test_a_sequential_streams_as_one_program():
    model = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), anyrnn.LSTM(8, 8, num_layers=2), nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, 2)
    )
    x = torch.randn(T, 2, 3)
    output, stream = by_stepwise(model, x)
    assert model.training
    model.eval()
    want, state = model[2](model[1](model[0](x)))
    assert_equal(output, model[5](model[3](want)).detach(), 2e-6)
    assert_equal(stream.state, pytree.tree_map(torch.Tensor.detach, state), 2e-6)
    anatomy = stream.anatomy()
    assert anatomy.before == anatomy.after == ()
    assert "Sequential" in repr(stream)


def test_a_model_with_a_forward_of_its_own_streams():
    model, tokens = Tagger().double(), torch.randint(10, (T, 3))
    output, stream = by_stepwise(model, tokens)
    assert stream.x.dtype == torch.int64
    assert stream.engine == "cpu"
    assert "embedding" in " ".join(stream.anatomy().before)
    assert stream.anatomy().after == ()
    want, state = model.eval()(tokens)
    assert_equal(output, want.detach(), 1e-11)
    first, second = stream.state
    assert_equal(first, pytree.tree_map(torch.Tensor.detach, state), 1e-11)
    assert second.shape == (1, 3, 8)
    stream.state = first, second
    assert_equal(stream.state, (first, second), 0)
    with pytest.raises(AnyRNNError, match="a tuple of 2, one for each recurrent layer"):
        stream.state = first[0]


def test_a_batch_first_model_streams_rows_of_one_step():
    model, x = BatchFirst(), torch.randn(T, 2, 3)
    output, stream = by_stepwise(model, x)
    assert_equal(output, model(x.transpose(0, 1)).transpose(0, 1).detach(), 2e-6)
    assert stream.anatomy().after == ()


def test_a_layer_of_torch_streams_and_stays_what_it_is():
    layer, x = nn.LSTM(3, 4, num_layers=2), torch.randn(T, 1, 3)
    output, _ = by_stepwise(layer, x)
    assert type(layer) is nn.LSTM
    assert_equal(output, layer(x)[0].detach(), 2e-6)


def test_weights_of_a_model_are_its_own_and_seen_by_refresh():
    model, x = BatchFirst(), torch.randn(1, 2, 3)
    cell = anyrnn.stepwise(model)
    assert {id(p) for p in cell.parameters()} == {id(p) for p in model.parameters()}
    stream = cell.stream(2)
    with torch.no_grad():
        model.head.weight.mul_(2)
    model.rnn.weight_hh_l0 = nn.Parameter(torch.randn(24, 8))
    model.rnn.weight_ih_l0 = nn.Parameter(torch.randn(24, 6))
    stream.refresh()
    stream.x[:] = x[0]
    stream.step()
    assert_equal(stream.y, model(x.transpose(0, 1))[:, 0].detach(), 2e-6)


def test_a_stepwise_model_is_a_cell_as_any_other():
    model, x = BatchFirst().double(), torch.randn(T, 2, 3, dtype=torch.float64)
    cell = anyrnn.stepwise(model)
    want = model(x.transpose(0, 1)).transpose(0, 1)
    layer = anyrnn.Recurrent(copy.deepcopy(cell), 3)
    with anyrnn.engine("cpu"):
        assert_equal(layer(x)[0], want, 1e-11)
        output, _ = anyrnn.scan(cell, x)
    assert_equal(output, want, 1e-11)
    grads = [torch.autograd.grad((y**2).sum(), model.head.weight)[0] for y in (output, want)]
    assert_equal(*grads, 1e-10)


class Looks(nn.Module):
    """A layer of which something is made that is not step by step."""

    def __init__(self, function, **options):
        super().__init__()
        self.rnn, self.function = nn.LSTM(3, 4, **options), function

    def forward(self, x):
        return self.function(self.rnn, x)


REFUSED = {
    "bidirectional": (lambda: nn.Sequential(nn.LSTM(3, 4, bidirectional=True)), "0 is bidirectional: its output"),
    "no layer": (lambda: nn.Sequential(nn.Linear(3, 4)), "it has no recurrent layer"),
    "sum over time": (lambda: Looks(lambda rnn, x: rnn(torch.cumsum(x, 0))[0]), "is not that of its steps one by one"),
    "no size": (lambda: nn.Sequential(anyrnn.Recurrent(nn.Identity(), step=len, state_sizes=3)), "pass input_size="),
    "last step": (lambda: Looks(lambda rnn, x: rnn(x)[0][-1]), "is not that of its steps one by one"),
    "mean": (lambda: Looks(lambda rnn, x: rnn(x - x.mean(0))[0]), "is not that of its steps one by one"),
    "softmax": (lambda: Looks(lambda rnn, x: torch.softmax(rnn(x)[0], 0)), "is not that of its steps one by one"),
    "final state": (lambda: Looks(lambda rnn, x: rnn(x)[1][0]), "it reads the final state of rnn"),
    "given state": (lambda: Looks(lambda rnn, x: rnn(x, (x[:1], x[:1]))[0]), "rnn is given more than x"),
    "twice": (lambda: Looks(lambda rnn, x: rnn(rnn(x)[0])[0], proj_size=3), "calls a recurrent layer twice"),
    "decides": (lambda: Looks(lambda rnn, x: rnn(x)[0] if x.sum() > 0 else x), "torch.fx cannot trace it"),
    "dictionary": (lambda: Looks(lambda rnn, x: {"y": rnn(x)[0]}), "it returns a dict"),
    "dim": (lambda: Looks(lambda rnn, x: torch.softmax(rnn(x)[0], 2)), "it fails for one step: IndexError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_no_step_is_refused_with_the_reason(name):
    make, message = REFUSED[name]
    model = make()
    with pytest.raises(AnyRNNError, match=message):
        anyrnn.stepwise(model)
    assert model.training
    if name == "bidirectional":
        with pytest.raises(AnyRNNError, match="stepwise: got a int, expected a model"):
            anyrnn.stepwise(3)


MEMORY = """
import resource, torch, anyrnn
from torch import nn
layer = anyrnn.LSTM(16, 16, num_layers=2)
stream = layer.stream()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
for k in range(1000):
    stream.step()
    stream.reset([0])
before = resident()
for k in range(100_000):
    stream.step()
    if k % 1000 == 0:
        stream.reset([0])
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_steps_leave_memory_as_it_was():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=env)
    assert int(done.stdout) < 64 * 1024


def test_a_stream_frees_what_it_holds():
    layer = anyrnn.LSTM(4, 4)
    stream = layer.stream()
    gc.collect()
    count = sum(type(o) is torch.Tensor for o in gc.get_objects())
    for _ in range(3):
        stream = layer.stream()
        stream.step()
    del stream
    gc.collect()
    assert sum(type(o) is torch.Tensor for o in gc.get_objects()) <= count


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: anyrnn.LSTM(I, H, num_layers=2, **options),
        lambda **options: anyrnn.Recurrent(lambda size: nn.GRUCell(size, H), I, num_layers=2, **options),
    ],
    ids=["LSTM", "GRUCell"],
)
def test_what_acts_on_a_layer_in_evaluation_acts_in_its_streams(make):
    layer = make(
        learn_initial_state=True, zoneout=0.3, recurrent_dropout=0.2, input_dropout=0.2, weight_dropout=0.2, clip=0.2
    ).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("initial"):
                parameter.normal_(std=0.1)
    x = torch.randn(T, 2, I, dtype=torch.float64)
    layer.train()
    output, state, stream = streamed(layer, x)
    assert stream.engine == "cpu"
    layer.eval()
    assert_equal((output, state), whole(layer, x), 1e-9)
    plain = make().double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("initial")})
    assert not torch.allclose(whole(plain, x)[0], output)
    stream.reset()
    assert_equal(stream.state, layer.initial_state(2), 0)
