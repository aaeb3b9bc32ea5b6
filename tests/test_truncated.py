"""Long streams in chunks, and backpropagation through more steps than a chunk has."""

import pytest
import torch
from torch import nn

import anyrnn


def streams_of(*lengths):
    """Streams of steps that tell where they are from: 100 times the number of the stream, and the step."""
    return [(100 * k + torch.arange(n, dtype=torch.float64)).unsqueeze(1) for k, n in enumerate(lengths)]


def read(chunks, batch_first=False):
    """What is read of each stream, and in which row."""
    found, rows = {}, {}
    for chunk in chunks:
        data = chunk.data.transpose(0, 1) if batch_first else chunk.data
        mask = chunk.mask.t() if batch_first else chunk.mask
        assert data.shape[:2] == mask.shape
        assert torch.equal(mask.sum(0), chunk.lengths)
        assert (data[~mask] == 0).all()
        for b in range(data.shape[1]):
            for value in data[mask[:, b], b, 0].tolist():
                k = int(value) // 100
                found.setdefault(k, []).append(value - 100 * k)
                assert rows.setdefault(k, b) == b
    return found


@pytest.mark.parametrize("fill", ["chunk", "step"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [(10, 10, 10), (7, 25, 3, 0, 12, 1), (4,), (5, 5, 5, 5, 5)])
def test_every_step_is_read_once_in_order_and_in_one_row(lengths, batch_first, fill):
    chunks = anyrnn.chunks(iter(streams_of(*lengths)), 5, batch=3, fill=fill, batch_first=batch_first)
    found = read(chunks, batch_first)
    assert found == {k: list(map(float, range(n))) for k, n in enumerate(lengths) if n}


def test_rows_go_on_and_are_filled_with_the_next_chunk():
    chunks = list(anyrnn.chunks(streams_of(7, 12, 4), 5, batch=2))
    assert [c.lengths.tolist() for c in chunks] == [[5, 5], [2, 5], [4, 2]]
    assert [c.starts.tolist() for c in chunks] == [[True, True], [False, False], [True, False]]
    assert [c.streams.tolist() for c in chunks] == [[0, 1], [0, 1], [2, 1]]
    assert [len(c.data) for c in chunks] == [5, 5, 4]


def test_rows_are_filled_at_once():
    chunks = list(anyrnn.chunks(streams_of(7, 12, 4), 5, batch=2, fill="step"))
    assert [c.lengths.tolist() for c in chunks] == [[5, 5], [5, 5], [1, 2]]
    assert chunks[1].reset.nonzero().tolist() == [[2, 0]]
    assert chunks[0].reset.nonzero().tolist() == [[0, 0], [0, 1]]
    assert not chunks[1].starts.any()


def test_streams_are_read_as_they_are_needed():
    taken = []

    def generate():
        for k, stream in enumerate(streams_of(5, 5, 5, 5)):
            taken.append(k)
            yield stream

    chunks = anyrnn.chunks(generate(), 5, batch=2)
    next(chunks)
    assert taken == [0, 1]


@pytest.mark.parametrize("kind", [tuple, dict])
def test_targets_alongside(kind):
    x, y = torch.randn(8, 3), torch.arange(8)
    stream = (x, y) if kind is tuple else {"x": x, "y": y}
    for chunk, first in zip(anyrnn.chunks([stream, stream], 4, batch=2), (0, 4), strict=True):
        a, b = chunk.data if kind is tuple else (chunk.data["x"], chunk.data["y"])
        assert torch.equal(a, x[first : first + 4].unsqueeze(1).expand(4, 2, 3))
        assert torch.equal(b, y[first : first + 4].unsqueeze(1).expand(4, 2))
        assert b.dtype == torch.int64


@pytest.mark.usefixtures("plainly")
def test_stateful_training_sees_each_stream_as_a_whole():
    """The outputs of streams in chunks, states set back where others begin, are those of the streams apart."""
    layer, streams = anyrnn.LSTM(2, 4).double(), [torch.randn(n, 2, dtype=torch.float64) for n in (23, 5, 11, 8, 17)]
    found, state = {}, None
    for chunk in anyrnn.chunks(streams, 6, batch=2):
        state = anyrnn.reset(anyrnn.detach(state), chunk.starts)
        output, state = layer(chunk.data, state, lengths=chunk.lengths)
        for b, k in enumerate(chunk.streams.tolist()):
            found.setdefault(k, []).append(output[: chunk.lengths[b], b])
    for k, stream in enumerate(streams):
        torch.testing.assert_close(torch.cat(found[k]), layer(stream)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: list(anyrnn.chunks([], 0, batch=2)), "chunks: got steps=0, expected an int of at least 1"),
        (lambda: anyrnn.chunks([], 5, batch=2, fill="row"), "chunks: got fill='row', expected 'chunk' or 'step'"),
        (lambda: list(anyrnn.chunks(["text"], 5, batch=2)), "chunks: stream 0 is a str, expected a tensor"),
        (
            lambda: list(anyrnn.chunks([(torch.ones(3), torch.ones(4))], 5, batch=2)),
            r"stream 0 has tensors of \[3, 4\] steps, expected equal numbers",
        ),
        (
            lambda: list(anyrnn.chunks([torch.ones(3, 2), torch.ones(3, 1)], 5, batch=2)),
            r"stream 1 has steps of shapes \[\(1,\)\], expected \[\(2,\)\] as in the first stream",
        ),
        (lambda: anyrnn.Truncated(anyrnn.GRU(2, 3), k1=5, k2=4), "got k1=5, k2=4, expected a k2 of at least k1"),
        (lambda: anyrnn.Truncated(anyrnn.GRU(2, 3, bidirectional=True), 5, 5), "expected one direction"),
        (lambda: anyrnn.Truncated(anyrnn.GRU(2, 3), 5, 5)(torch.ones(6, 1, 2)), "a chunk of 6 steps, expected at most"),
    ],
)
def test_messages(call, message):
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        call()


# ---- BPTT(k2; k1) ----


def by_hand(cell, x, weight, k1, k2):
    """The gradients of every k1-th step's update, by the definition: errors of the last k1 steps, back through k2."""
    found, states = [], [torch.zeros(x.shape[1], cell.hidden_size, dtype=x.dtype)]
    with torch.no_grad():
        for step in x:
            states.append(cell(step, states[-1]))
    for end in range(k1, len(x) + k1, k1):
        first, end = end - k1, min(end, len(x))  # noqa: PLW2901 - the last chunk may be smaller
        begin = max(0, first - (k2 - k1))
        h, loss = states[begin], 0.0
        for t in range(begin, end):
            h = cell(x[t], h)
            if t >= first:
                loss = loss + (h * weight[t]).sum()
        found.append(torch.autograd.grad(loss, [*cell.parameters()]))
    return found


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize(("k1", "k2"), [(5, 5), (5, 10), (5, 12), (5, 6), (4, 100), (1, 7), (3, 20)])
def test_gradients_are_those_of_the_definition(k1, k2):
    cell, x = nn.GRUCell(3, 4).double(), torch.randn(23, 2, 3, dtype=torch.float64)
    weight = torch.randn(23, 2, 4, dtype=torch.float64)
    model = anyrnn.Truncated(anyrnn.Recurrent(cell, input_size=3), k1, k2)
    outputs = []
    for at, expected in zip(range(0, 23, k1), by_hand(cell, x, weight, k1, k2), strict=True):
        output = model(x[at : at + k1])
        gradients = torch.autograd.grad((output * weight[at : at + k1]).sum(), [*cell.parameters()])
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
        outputs.append(output)
    whole, end = anyrnn.Recurrent(cell, input_size=3)(x)
    torch.testing.assert_close(torch.cat(outputs), whole)
    torch.testing.assert_close(model.state, end)
    assert not model.state.requires_grad


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_with_streams_of_their_own(batch_first):
    """Each row's gradients are those that its stream has alone, whenever it begins and ends."""
    cell, streams = nn.GRUCell(3, 4).double(), [torch.randn(n, 3, dtype=torch.float64) for n in (23, 4, 9, 13)]
    layer = anyrnn.Recurrent(cell, input_size=3, batch_first=batch_first)
    model, k1, k2 = anyrnn.Truncated(layer, 5, 12), 5, 12
    total = [torch.zeros_like(p) for p in cell.parameters()]
    for chunk in anyrnn.chunks(streams, k1, batch=2, batch_first=batch_first):
        output = model(chunk.data, chunk.lengths, chunk.starts)
        assert output.shape[:2] == chunk.data.shape[:2]
        assert (output[~chunk.mask] == 0).all()
        for a, b in zip(total, torch.autograd.grad(output.sum(), [*cell.parameters()]), strict=True):
            a.add_(b)
    expected = [torch.zeros_like(p) for p in cell.parameters()]
    for stream in streams:
        ones = torch.ones(len(stream), 1, 4, dtype=torch.float64)
        for gradients in by_hand(cell, stream.unsqueeze(1), ones, k1, k2):
            for a, b in zip(expected, gradients, strict=True):
                a.add_(b)
    for a, b in zip(total, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.usefixtures("plainly")
def test_weights_may_change_between_chunks():
    layer = anyrnn.LSTM(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    model = anyrnn.Truncated(layer, k1=4, k2=10)
    for x in torch.randn(20, 2, 3).split(4):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.state[0].shape == (1, 2, 4)
    model.clear()
    assert model.state is None
    torch.testing.assert_close(model(x), layer(x)[0])


@pytest.mark.usefixtures("plainly")
def test_a_learned_initial_state_has_a_gradient_as_far_as_it_is_reached():
    layer, initial = anyrnn.GRU(3, 4), torch.randn(1, 1, 4, requires_grad=True)
    model = anyrnn.Truncated(layer, k1=3, k2=6, initial=initial)
    x = torch.randn(9, 2, 3)
    reached = []
    for chunk in x.split(3):
        output = model(chunk)
        (gradient,) = torch.autograd.grad(output.sum(), initial, allow_unused=True)
        reached.append(gradient is not None and bool((gradient != 0).any()))
    assert reached == [True, True, False]
    torch.testing.assert_close(torch.cat([output]), layer(x, initial.expand(1, 2, 4))[0][6:])


@pytest.mark.usefixtures("plainly")
def test_a_model_around_the_layer():
    layer, head = anyrnn.GRU(3, 4), nn.Linear(4, 2)

    def run(x, state, lengths=None):
        x, scale = x
        output, state = layer(x * scale, state, lengths=lengths)
        return {"y": head(output), "h": output}, state

    model = anyrnn.Truncated(run, k1=4, k2=8)
    x, scale = torch.randn(10, 2, 3), torch.rand(10, 2, 1)
    found = [model((x[at : at + 4], scale[at : at + 4]))["y"] for at in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(found), head(layer(x * scale)[0]))
