"""Mistakes of published code, each against a straightforward computation in the test itself.

Every test says what the right result is, and that the mistake would have been seen: the wrong result is another one.
"""

import pytest
import torch
from torch import nn

import anyrnn
from zoo import ConcatGRU, ConcatLSTM, InOrder, SeparateLSTM, close

pytestmark = pytest.mark.usefixtures("plainly")

T, B, I, H = 5, 3, 2, 4
each = pytest.mark.parametrize(
    "make", [ConcatLSTM, InOrder, SeparateLSTM, nn.LSTMCell, anyrnn.LSTMCell], ids=lambda m: m.__name__
)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def step(cell, x, h, c):
    """One step of any of these LSTM cells: what comes out, and the new (h, c)."""
    result = cell(x, (h, c))
    return (
        (result[0], *result)
        if isinstance(result[0], torch.Tensor) and isinstance(result[1], torch.Tensor)
        else (result[0], *result[1])
    )


def far(a, b):
    return (a - b).abs().max() > 1e-3


@each
def test_h_and_c_keep_their_places(make):
    """Notebook 003 returns c, h and unpacks it as h, c: each step then takes the one for the other."""
    cell = make(I, H)
    x, h, c = torch.randn(T, B, I), torch.randn(B, H), torch.randn(B, H)
    swapped = h, c
    outputs = []
    for t in range(T):
        out, h_new, c_new = step(cell, x[t], h, c)
        _, *swapped = step(cell, x[t], *swapped[::-1])
        outputs.append(out)
        if t == 0:
            h0, c0 = h, c
        h, c = h_new, c_new
    output, (h_n, c_n) = anyrnn.Recurrent(cell, I)(x, (h0[None], c0[None]))
    close([output, h_n[0], c_n[0]], [torch.stack(outputs), h, c])
    assert far(h_n[0], c_n[0])
    assert far(h_n[0], swapped[0])


def test_a_cell_that_returns_c_first_gives_c_as_its_output_unless_it_is_wrapped():
    class AsItIs(InOrder):
        def forward(self, x, state):
            h, c = super().forward(x, state)
            return c, h

    x = torch.randn(T, B, I)
    torch.manual_seed(1)
    wrapped = anyrnn.Recurrent(InOrder(I, H), I)
    torch.manual_seed(1)
    unwrapped = anyrnn.Recurrent(AsItIs(I, H), I)
    assert far(wrapped(x)[0], unwrapped(x)[0])
    assert (wrapped(x)[0].abs() < 1).all()  # h is bounded by its tanh and its gate, c is not


@each
def test_the_returned_state_is_the_new_one(make):
    """Returning the state from before the step."""
    cell = make(I, H)
    x, h, c = torch.randn(1, B, I), torch.randn(1, B, H), torch.randn(1, B, H)
    _, (h_n, c_n) = anyrnn.Recurrent(cell, I)(x, (h, c))
    _, want_h, want_c = step(cell, x[0], h[0], c[0])
    close([h_n[0], c_n[0]], [want_h, want_c])
    assert far(h_n, h)
    assert far(c_n, c)


@each
def test_the_backward_half_holds_the_backward_directions_own_results(make):
    """Notebook 003 appends a state of another loop to its backward half; others leave it in the order it ran."""
    layer = anyrnn.Recurrent(lambda size: make(size, H), I, bidirectional=True)
    x = torch.randn(T, B, I)
    forward, backward = layer.cells
    h, c, ran = torch.zeros(B, H), torch.zeros(B, H), {}
    for t in reversed(range(T)):
        ran[t], h, c = step(backward, x[t], h, c)
    output, (h_n, c_n) = layer(x)
    width = output.shape[2] // 2
    close([output[t, :, width:] for t in range(T)], [ran[t] for t in range(T)])
    close([h_n[1], c_n[1]], [h, c])
    assert far(output[:, :, width:], torch.stack([ran[t] for t in reversed(range(T))]))
    assert far(output[:, :, width:], output[:, :, :width])
    h, c = torch.zeros(B, H), torch.zeros(B, H)
    for t in range(T):
        out, h, c = step(forward, x[t], h, c)
        close([output[t, :, :width]], [out])
    close([h_n[0], c_n[0]], [h, c])


def test_the_last_output_is_not_the_final_state_of_a_bidirectional_or_ragged_batch():
    """Notebook 003 returns outputs[-1], with the batch first even the last row of the batch."""
    layer = anyrnn.LSTM(I, H, bidirectional=True, batch_first=True)
    x, lengths = torch.randn(B, T, I), [2, 5, 3]
    output, (h_n, _) = layer(x, lengths=lengths)
    assert output[-1].shape == (T, 2 * H)  # not even a batch
    forward = torch.stack([output[b, n - 1, :H] for b, n in enumerate(lengths)])
    backward = output[:, 0, H:]
    close([h_n[0], h_n[1]], [forward, backward])
    close([anyrnn.output_at(output, lengths, bidirectional=True, batch_first=True)], [torch.cat((*h_n,), 1)])
    assert far(output[:, -1], torch.cat((*h_n,), 1))
    assert (output[0, -1] == 0).all()


def test_the_state_is_indexed_by_layer_then_direction_and_rows_stay_rows():
    """h_n.view(B, -1) mixes the rows of a batch; the two directions of the last layer are h_n[-2] and h_n[-1]."""
    layer = anyrnn.GRU(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    output, h_n = layer(x)
    close([h_n[-2], h_n[-1]], [output[-1, :, :H], output[0, :, H:]])
    right = h_n[-2:].transpose(0, 1).reshape(B, -1)
    changed = x.clone()
    changed[:, 0] += 1
    _, other = layer(changed)
    again = other[-2:].transpose(0, 1).reshape(B, -1)
    assert far(right[0], again[0])
    close([right[1:]], [again[1:]], atol=1e-14)
    wrong, wrong_again = h_n[-2:].reshape(B, -1), other[-2:].reshape(B, -1)
    assert far(wrong[1:], wrong_again[1:])  # the trap: row 0 shows up in the others


@pytest.mark.parametrize(("steps", "layers"), [(2, 4), (4, 2), (1, 3), (3, 1), (3, 3)])
def test_the_state_has_an_entry_for_each_layer_however_long_the_sequence(steps, layers):
    """Notebook 003 sizes its lists of states by the length of the sequence, notebook 000 by the layers."""
    for make in (ConcatLSTM, InOrder):
        layer = anyrnn.Recurrent(lambda size, make=make: make(size, H), I, num_layers=layers)
        x = torch.randn(steps, B, I)
        h = [torch.randn(B, H) for _ in range(layers)]
        c = [torch.randn(B, H) for _ in range(layers)]
        output, (h_n, c_n) = layer(x, (torch.stack(h), torch.stack(c)))
        assert h_n.shape == c_n.shape == (layers, B, H)
        for t in range(steps):  # through all the layers at each step, as the notebooks do
            value = x[t]
            for k in range(layers):
                value, h[k], c[k] = step(layer.cell(k), value, h[k], c[k])
            close([output[t]], [value])
        close([h_n, c_n], [torch.stack(h), torch.stack(c)])


def test_the_notebooks_stack_of_grus_with_its_head():
    """Notebook 000: cells with an output layer, stacked, the last step into a linear layer, the state in and out."""
    layer = anyrnn.Recurrent(lambda size: ConcatGRU(size, H), I, num_layers=2, batch_first=True)
    model = anyrnn.ManyToOne(layer, 5)
    x, state = torch.randn(B, T, I), torch.randn(2, B, H)
    h = list(state)
    for t in range(T):
        value = x[:, t]
        for k in range(2):
            value, h[k] = layer.cell(k)(value, h[k])
    y, final = model(x, state)
    close([y, final], [model.linear(value), torch.stack(h)])
    again, _ = model(x, final)
    assert far(again, y)  # the returned state, passed in again, goes on


@pytest.mark.parametrize("gate", "ifco")
def test_each_gate_has_weights_of_its_own(gate):
    """Notebook 004 computes the input gate with the forget gate's recurrent weights."""
    cell = SeparateLSTM(I, H)
    layer = anyrnn.Recurrent(cell, I)
    x, state = torch.randn(T, B, I), (torch.randn(1, B, H), torch.randn(1, B, H))
    before, _ = layer(x, state)
    for name in (f"W_x{gate}", f"W_h{gate}", f"b_{gate}"):
        parameter = getattr(cell, name)
        layer.zero_grad()
        layer(x, state)[0].sum().backward()
        assert all((p.grad.abs() > 0).all() for p in layer.parameters())
        with torch.no_grad():
            parameter.add_(0.5)
        assert far(layer(x, state)[0], before)
        with torch.no_grad():
            parameter.sub_(0.5)
    for own in (anyrnn.LSTM(I, H), anyrnn.PeepholeLSTM(I, H)):
        names = ["i", "f", "g", "o"]
        k = names.index({"c": "g"}.get(gate, gate))
        own.weight_hh_l0.requires_grad_(True)
        own(x, state)[0].sum().backward()
        assert (own.weight_hh_l0.grad[k * H : (k + 1) * H].abs() > 0).all()


def test_the_output_at_a_length_is_that_of_the_last_valid_step_not_the_one_after():
    """Notebook 004 indexes the outputs with src_len: one step too far, and out of range at full length."""
    layer = anyrnn.LSTM(I, H, batch_first=True)
    x, lengths = torch.randn(B, T, I), torch.tensor([1, 5, 3])
    picked = []
    for b, n in enumerate(lengths.tolist()):
        h, c = torch.zeros(1, H), torch.zeros(1, H)
        for t in range(n):
            h, c = layer.cell()(x[b : b + 1, t], (h, c))
        picked.append(h[0])
    full, _ = layer(x)  # no lengths given: every step is run, as there
    got = anyrnn.output_at(full, lengths, batch_first=True)
    close([got], [torch.stack(picked)])
    output, (h_n, _) = layer(x, lengths=lengths)
    close([anyrnn.output_at(output, lengths, batch_first=True), h_n[0]], [torch.stack(picked)] * 2)
    assert far(full[0, 1], got[0])  # the step after


def test_plain_tensors_as_weights_are_named_as_what_they_are_by_having_no_parameters():
    """Notebook 004 keeps its weights as plain tensors: they run, but nothing in them is trained or saved."""

    class Plain(nn.Module):
        hidden_size = H

        def __init__(self):
            super().__init__()
            self.W, self.U = torch.randn(I, H), torch.randn(H, H)

        def forward(self, x, h):
            return torch.tanh(x @ self.W + h @ self.U)

    layer = anyrnn.Recurrent(Plain(), I)
    assert layer(torch.randn(T, B, I))[0].shape == (T, B, H)
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("make", [anyrnn.RNN, anyrnn.LSTM, anyrnn.GRU, anyrnn.PeepholeLSTM], ids=lambda m: m.__name__)
def test_every_parameter_of_every_layer_and_direction_is_trained(make):
    """Cells kept in a plain list are never trained."""
    model = anyrnn.ManyToOne(make(I, H, 3, bidirectional=True), 2)
    y, _ = model(torch.randn(T, B, I), lengths=[5, 4, 2])
    y.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert (p.grad != 0).any(), name
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("make", [anyrnn.RNN, anyrnn.LSTM, anyrnn.GRU, anyrnn.PeepholeLSTM], ids=lambda m: m.__name__)
def test_the_state_has_the_type_and_place_of_the_weights(make):
    """A state made on the CPU, or in the default type."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        layer = make(I, H, dtype=dtype)
        _, final = layer(torch.randn(T, B, I).to(dtype))
        assert {s.dtype for s in (final if isinstance(final, tuple) else (final,))} == {dtype}
    meta = make(I, H, device="meta")
    _, final = meta(torch.randn(T, B, I, device="meta"))
    assert all(s.is_meta for s in (final if isinstance(final, tuple) else (final,)))


def test_a_new_batch_starts_from_zero_and_not_where_the_last_one_ended():
    """State kept on the module across calls."""
    for make in (anyrnn.LSTM, anyrnn.PeepholeLSTM):
        layer = make(I, H)
        x = torch.randn(T, B, I)
        first, _ = layer(x)
        layer(torch.randn(T, B, I))
        layer(torch.randn(T, 2 * B, I))  # a batch of another size
        assert torch.equal(layer(x)[0], first)


def test_detached_state_cuts_the_gradient_and_carried_state_does_not():
    layer = anyrnn.LSTM(I, H)
    first, second = torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, I)
    _, state = layer(first)
    layer(second, state)[0].sum().backward()
    assert far(first.grad, torch.zeros(()))
    first.grad = None
    _, (h, c) = layer(first)
    layer(second, (h.detach(), c.detach()))[0].sum().backward()
    assert first.grad is None


def test_a_mean_over_valid_steps_is_not_the_mean_over_the_padding():
    layer = anyrnn.GRU(I, H)
    x, lengths = torch.randn(T, B, I), [2, 5, 3]
    model = anyrnn.ManyToOne(layer, 1, pool="mean")
    output, _ = layer(x, lengths=lengths)
    means = torch.stack([output[:n, b].mean(0) for b, n in enumerate(lengths)])
    close([model(x, lengths=lengths)[0]], [model.linear(means)])
    assert far(model(x, lengths=lengths)[0], model.linear(output.mean(0)))


def test_a_max_over_valid_steps_may_be_negative():
    layer = anyrnn.GRU(I, H)
    x, lengths = torch.randn(T, B, I), [1, 5, 3]
    model = anyrnn.ManyToOne(layer, 1, pool="max")
    output, _ = layer(x, lengths=lengths)
    highest = torch.stack([output[:n, b].amax(0) for b, n in enumerate(lengths)])
    assert (highest < 0).any()
    close([model(x, lengths=lengths)[0]], [model.linear(highest)])
    assert far(model(x, lengths=lengths)[0], model.linear(output.amax(0)))


def test_dropout_between_layers_is_a_new_draw_at_every_step():
    """It is called dropout, not "variational": one mask for all steps would be another thing."""
    layer = anyrnn.RNN(I, 50, num_layers=2, dropout=0.5)
    seen = {}
    layer.cell(1)
    with torch.no_grad():
        layer.weight_ih_l1.copy_(torch.eye(50))
        layer.weight_hh_l1.zero_()
        layer.bias_ih_l1.zero_()
        layer.bias_hh_l1.zero_()
    output, _ = layer(torch.randn(T, 1, I))
    masks = output[:, 0] == 0
    seen = {tuple(m.tolist()) for m in masks}
    assert len(seen) == T
    assert 0.3 < masks.double().mean() < 0.7


def test_a_stacked_layer_is_not_one_cell_used_twice():
    layer = anyrnn.Recurrent(lambda size: nn.GRUCell(size, I), I, num_layers=2)
    first, second = layer.cells
    assert first is not second
    assert far(first.weight_ih, second.weight_ih)
