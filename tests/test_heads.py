"""Many to one: each row's prediction is what the loop over that row alone gives."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import anyrnn
from zoo import CASES, B, H, I, T, close, flat, gradients, layer_state, loss_of, x_of

pytestmark = pytest.mark.usefixtures("plainly")

POOLS = ("last", "mean", "max")
LENGTHS = [3, 0, 4]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
pools = pytest.mark.parametrize("pool", POOLS)
directions = pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])


def pooled(output, lengths, pool, bidirectional):
    """Row by row: output (T, B, O) to (B, O)."""
    rows = []
    for b, n in enumerate(lengths):
        valid = output[:n, b]
        half = output.shape[2] // 2
        if n == 0:
            rows.append(torch.zeros_like(output[0, b]))
        elif pool == "last":
            rows.append(torch.cat((valid[-1, :half], valid[0, half:])) if bidirectional else valid[-1])
        else:
            rows.append(valid.mean(0) if pool == "mean" else valid.amax(0))
    return torch.stack(rows)


@each
@pools
@directions
def test_a_prediction_for_each_row_from_its_valid_steps(case, pool, bidirectional):
    layer = case.layer(num_layers=2, bidirectional=bidirectional)
    model = anyrnn.ManyToOne(layer, 5, pool=pool)
    assert model.linear.weight.dtype == torch.float64
    x, state = x_of(), layer_state(layer)
    for lengths in (None, LENGTHS):
        output, final = layer(x, state, lengths=lengths)
        want = model.linear(pooled(output, lengths or [T] * B, pool, bidirectional))
        y, got = model(x, state, lengths=lengths)
        close([y, *flat(got)], [want, *flat(final)])
        layer.batch_first = True
        y, got = model(x.transpose(0, 1), state, lengths=lengths)
        close([y, *flat(got)], [want, *flat(final)])
        layer.batch_first = False


@pools
@directions
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_and_unbatched_input(pool, bidirectional, batch_first):
    layer = anyrnn.LSTM(I, H, 2, bidirectional=bidirectional, batch_first=batch_first, dtype=torch.float64)
    model = anyrnn.ManyToOne(layer, 5, pool)
    x, lengths = x_of(), [2, 4, 3]
    want, final = model(x.transpose(0, 1) if batch_first else x, lengths=lengths)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    y, got = model(packed)
    close([y, *flat(got)], [want, *flat(final)])
    for row, n in enumerate(lengths):
        for given in (
            {"x": x[:n, row]},
            {"x": x[:, row], "lengths": n},
            {"x": x[:, row], "lengths": torch.tensor([n])},
        ):
            y, got = model(**given)
            close([y, *flat(got)], [want[row], *(s[:, row] for s in flat(final))])


@pools
@directions
def test_padding_has_no_part_in_a_prediction_or_its_gradients(pool, bidirectional):
    layer = anyrnn.GRU(I, H, bidirectional=bidirectional, dtype=torch.float64)
    model = anyrnn.ManyToOne(layer, 5, pool)
    found = []
    padding = torch.arange(T).unsqueeze(1) >= torch.tensor(LENGTHS)
    for filler in (0.0, torch.nan, torch.inf):
        x = x_of().masked_fill(padding.unsqueeze(2), filler).requires_grad_()
        y, _ = model(x, lengths=LENGTHS)
        found.append([y, *gradients([x, *model.parameters()], loss_of(y))])
        assert (y[1] == model.linear.bias).all(), "a row of length 0 gets the bias"
        assert (found[-1][1][padding] == 0).all()
    close(found[1], found[0], atol=0)
    close(found[2], found[0], atol=0)


@pools
def test_no_rows_or_no_steps(pool):
    model = anyrnn.ManyToOne(anyrnn.GRU(I, H), 5, pool)
    assert model(torch.randn(T, 0, I))[0].shape == (0, 5)
    y, _ = model(torch.randn(0, B, I))
    assert torch.equal(y, model.linear.bias.expand(B, 5))


def test_last_of_a_projected_bidirectional_lstm_is_its_final_state():
    layer = anyrnn.LSTM(I, H, proj_size=2, bidirectional=True)
    x = torch.randn(T, B, I)
    output, (h, _) = layer(x, lengths=LENGTHS)
    got = anyrnn.output_at(output, LENGTHS, bidirectional=True)
    keep = [0, 2]
    close([got[keep]], [torch.cat((h[0], h[1]), 1)[keep]], atol=0)


def test_output_at_leaves_nothing_to_the_padding_of_a_foreign_layer():
    """torch.nn's own output, or one that was run past the ends of its rows, can be given too."""
    output = x_of(size=H)
    output[3:, 0] = torch.nan
    output[:, 1] = torch.nan
    got = anyrnn.output_at(output, LENGTHS)
    close([got], [torch.stack((output[2, 0], torch.zeros(H, dtype=torch.float64), output[3, 2]))], atol=0)


def test_a_head_takes_parameters_from_the_layer_s_place_and_shows_its_pool():
    model = anyrnn.ManyToOne(anyrnn.GRU(I, H, device="meta", dtype=torch.bfloat16), 5, pool="max")
    assert model.linear.weight.is_meta
    assert model.linear.weight.dtype == torch.bfloat16
    assert "pool='max'" in repr(model)
    model = anyrnn.ManyToOne(anyrnn.Recurrent(lambda i: nn.GRUCell(i, H), I), 5)
    assert [name for name, _ in model.named_parameters()][-2:] == ["linear.weight", "linear.bias"]
