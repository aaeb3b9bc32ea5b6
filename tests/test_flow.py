"""The gradient at every state, beside a loop that keeps each."""

import pytest
import torch
from torch import nn

import anyrnn
from zoo import MixedSizes, close

T, B, I, H = 7, 3, 2, 4
ENGINES = ("reference", "cpu")


def kept(cell, signature, x, row, n):
    """The gradients of the states of a row by a loop: [state][lag]."""
    states = tuple(x.new_zeros(1, size) for size in signature.state_sizes)
    steps = []
    for t in range(n):
        _, states = signature.step(cell, x[t, row : row + 1], states)
        states = tuple(s * 1 for s in states)
        steps.append(states)
    leaves = [s for each in steps for s in each]
    found = iter(torch.autograd.grad(steps[-1][0].sum(), leaves, materialize_grads=True))
    return [[next(found).norm() for _ in each] for each in steps][::-1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "cell",
    [lambda: anyrnn.LSTMCell(I, H), lambda: nn.GRUCell(I, H), lambda: MixedSizes(I, H)],
    ids=["LSTM", "GRU", "mixed"],
)
def test_it_is_the_gradient_of_every_state(engine, cell):
    layer = anyrnn.Recurrent(cell(), I).double()
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), [7, 2, 5]
    with anyrnn.engine(engine):
        flow = anyrnn.gradient_flow(layer, x, lengths=lengths)
    flow = (flow,) if isinstance(flow, torch.Tensor) else flow
    rows = [kept(layer.cell(), layer._signature(0), x, row, n) for row, n in enumerate(lengths)]
    for k, found in enumerate(flow):
        assert found.shape == (1, T)
        for lag in range(T):
            there = [row[lag][k] for row in rows if lag < len(row)]
            torch.testing.assert_close(found[0, lag], torch.stack(there).mean())
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_each_layer_and_direction_counts_from_its_own_end(engine):
    layer = anyrnn.GRU(I, H, num_layers=2, bidirectional=True, batch_first=True).double()
    x = torch.randn(B, T, I, dtype=torch.float64)
    with anyrnn.engine(engine), torch.no_grad():
        flow = anyrnn.gradient_flow(layer, x)
        turned = anyrnn.gradient_flow(layer, x, loss=lambda output, h: h[2:].sum())
        one = anyrnn.gradient_flow(layer, x[0])
    assert flow.shape == (4, T)
    close(flow, turned)
    assert one.shape == (4, T)
    twin = anyrnn.GRU(2 * H, H).double()
    twin.load_state_dict({f"{k}_l0": p for k, p in layer.cell(1, True).named_parameters()})
    below = (
        anyrnn.scan(layer.cell(0), x.transpose(0, 1))[0],
        anyrnn.scan(layer.cell(0, True), x.transpose(0, 1), reverse=True)[0],
    )
    close(flow[3], anyrnn.gradient_flow(twin, torch.cat(below, -1).flip(0))[0])


def test_limits_are_seen_and_no_rows_are_told():
    layer = anyrnn.RNN(I, H, clip_gradient_norm=0.01)
    flow = anyrnn.gradient_flow(layer, torch.randn(T, B, I), lengths=[3, 3, 0])
    assert flow[0, 1] <= 0.0101
    assert flow[0, 3:].isnan().all()
    with pytest.raises(anyrnn.AnyRNNError, match="expected one number with a gradient"):
        anyrnn.gradient_flow(layer, torch.randn(T, B, I), loss=lambda output, h: output)
    with pytest.raises(anyrnn.AnyRNNError, match="at least one step"):
        anyrnn.gradient_flow(layer, torch.randn(0, B, I))
