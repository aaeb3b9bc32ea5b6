"""Limits within a recurrence: of states, and of the gradient between two steps, beside a loop with hooks."""

import pytest
import torch
from torch import nn

import anyrnn
from zoo import MixedSizes, close

T, B, I, H = 6, 4, 3, 5
LENGTHS = [6, 0, 2, 5]
ENGINES = ("reference", "cpu")
SMALL = 0.05


class Parts(nn.Module):
    """Reads its state as a whole, and parts of it that overlap."""

    def __init__(self, size):
        super().__init__()
        self.hidden_size = H
        self.W, self.U = nn.Linear(size, H), nn.Linear(H, H)

    def forward(self, x, h):
        gate = torch.sigmoid(h[:, 1:3]).sum(1, keepdim=True) - h[:, :2].prod(1, keepdim=True)
        return 0.5 * h + torch.tanh(self.W(x) + gate * self.U(h))


CELLS = {
    "Parts": Parts,
    "LSTM": lambda size: anyrnn.LSTMCell(size, H),
    "nn.GRUCell": lambda size: nn.GRUCell(size, H),
    "MixedSizes": lambda size: MixedSizes(size, H),
}
LIMITS = {
    "value": {"clip_gradient": SMALL},
    "norm": {"clip_gradient_norm": SMALL},
    "states": {"clip": SMALL},
    "all": {"clip": 2 * SMALL, "clip_gradient": SMALL, "clip_gradient_norm": 1.2 * SMALL},
}


def limited(gradient, clip_gradient=None, clip_gradient_norm=None, clip=None):
    if clip_gradient_norm is not None:
        norm = gradient.flatten(1).norm(dim=1).clamp_min(clip_gradient_norm)
        gradient = gradient * (clip_gradient_norm / norm).reshape(-1, *[1] * (gradient.dim() - 1))
    return gradient if clip_gradient is None else gradient.clamp(-clip_gradient, clip_gradient)


def by_hand(cell, signature, x, lengths, reverse, limits):
    """A loop over each row's own steps, with a hook on the state before each."""
    rows, finals = [], []
    for b, n in enumerate(lengths):
        states = tuple(x.new_zeros(1, s) for s in signature.state_sizes)
        outputs = {}
        for t in range(n)[:: -1 if reverse else 1]:
            read = [s * 1 for s in states]
            for s in read:
                if s.requires_grad:
                    s.register_hook(lambda gradient: limited(gradient, **limits))
            (output,), new = signature.step(cell, x[t, b : b + 1], tuple(read))
            limit = limits.get("clip")
            if limit is not None:
                is_state = output is new[0]
                new = tuple(s.clamp(-limit, limit) for s in new)
                output = new[0] if is_state else output
            states, outputs[t] = new, output
        zero = x.new_zeros(1, signature.output_size)
        rows.append(torch.stack([outputs.get(t, zero) for t in range(T)]))
        finals.append(states)
    return torch.cat(rows, 1), tuple(map(torch.cat, zip(*finals, strict=True)))


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("two", [False, True])
def test_limits_are_those_of_a_loop_with_hooks(name, limits, two):
    options = LIMITS[limits]
    layer = anyrnn.Recurrent(CELLS[name], I, bidirectional=two, **options).double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    want = [by_hand(layer.cell(0, d), layer._signature(0), x, LENGTHS, d, options) for d in (False, True)[: 1 + two]]
    whole = torch.cat([output for output, _ in want], -1)
    gradients = torch.autograd.grad(whole.sum(), leaves, materialize_grads=True)
    for engine in ENGINES:
        with anyrnn.engine(engine):
            output, _ = layer(x, lengths=LENGTHS)
        close(output, whole)
        close(torch.autograd.grad(output.sum(), leaves, materialize_grads=True), gradients)
    plain = anyrnn.Recurrent(lambda _: layer.cell(0), I)
    if limits != "states":  # the limits are met, or nothing would have been tested
        mine, other = gradients[0], torch.autograd.grad(plain(x, lengths=LENGTHS)[0].sum(), x)[0]
        assert not torch.allclose(mine, other)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("make", [anyrnn.LSTM, anyrnn.GRU], ids=lambda make: make.__name__)
def test_limits_where_part_of_the_output_is_the_next_x(make, limits):
    """The compiler computes that part as it does the whole, and the limit is on the gradient of both together."""
    layer = make(I, H, **LIMITS[limits]).double()
    x, found = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True), []
    for engine in ENGINES:
        with anyrnn.engine(engine):
            output, _ = layer(x, feedback=lambda y: y[:, 1 : 1 + I], forced=2)
        found.append([output, *torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])])
    close(*found)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_of_two_dimensions_is_limited_as_a_whole(engine):
    class Matrix(nn.Module):
        state_sizes = torch.Size([2, 3])

        def __init__(self):
            super().__init__()
            self.W = nn.Linear(I, 6)

        def forward(self, x, A):
            return torch.tanh(2 * A + self.W(x).unflatten(1, (2, 3)))

    layer = anyrnn.Recurrent(Matrix(), I, clip_gradient_norm=SMALL).double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    state = torch.zeros(1, B, 2, 3, dtype=torch.float64, requires_grad=True)
    with anyrnn.engine(engine):
        output, _ = layer(x, state)
    (gradient,) = torch.autograd.grad(output.sum(), state)
    close(gradient[0].flatten(1).norm(dim=1), torch.full((B,), SMALL, dtype=torch.float64))


@pytest.mark.parametrize("engine", ENGINES)
def test_limits_and_resets_together(engine):
    layer = anyrnn.LSTM(I, H, clip=0.1, clip_gradient=SMALL).double()
    x = torch.randn(T, 1, I, dtype=torch.float64, requires_grad=True)
    reset = torch.zeros(T, 1, dtype=torch.bool)
    reset[3] = True
    with anyrnn.engine(engine):
        output, state = layer(x, reset=reset)
        first, _ = layer(x[:3])
        second, last = layer(x[3:])
    close(output, torch.cat([first, second]))
    close(state, last)
    close(torch.autograd.grad(output.sum(), x), torch.autograd.grad((first.sum() + second.sum()), x))


def test_named_layers_have_limits_for_short_sequences_too():
    layer = anyrnn.RNN(I, H, clip=0.01)
    assert "clip=0.01" in repr(layer)
    output, state = layer(torch.randn(2, B, I))
    assert output.abs().max() <= 0.01
    assert state.abs().max() <= 0.01
    for wrong in (0, -1.0, True, "x", float("nan")):
        with pytest.raises(anyrnn.AnyRNNError, match=r"clip_gradient=.*expected a number above 0"):
            anyrnn.RNN(I, H, clip_gradient=wrong)
