"""The whole path in a few seconds: an own cell becomes a layer, is trained, saved, loaded, and asked again."""

import pytest
import torch
from torch import nn

import anyrnn


class Leaky(nn.Module):
    """A cell that a user might write."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.rate = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x, h):
        rate = torch.sigmoid(self.rate)
        return (1 - rate) * h + rate * torch.tanh(self.new(torch.cat((x, h), dim=1)))


def batch(size: int, generator: torch.Generator):
    """Which of two signs came more often in a sequence of 5 to 12 steps, whatever the padding holds."""
    lengths = torch.randint(5, 13, (size,), generator=generator)
    x = torch.randint(0, 2, (12, size, 1), generator=generator).float() * 2 - 1
    valid = (torch.arange(12).unsqueeze(1) < lengths).unsqueeze(2)
    y = ((x * valid).sum((0, 2)) > 0).long()
    return x.masked_fill(~valid, torch.nan), lengths, y


def make():
    layer = anyrnn.Recurrent(lambda size: Leaky(size, 16), input_size=1, num_layers=2, bidirectional=True)
    return anyrnn.ManyToOne(layer, out_features=2)


@pytest.mark.smoke
def test_an_own_cell_is_trained_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        x, lengths, y = batch(32, generator)
        logits, _ = model(x, lengths=lengths)
        loss = nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5]), losses
    x, lengths, y = batch(200, generator)
    model.eval()
    logits, state = model(x, lengths=lengths)
    assert (logits.argmax(1) == y).double().mean() > 0.9

    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = make().eval()
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    again, state_again = loaded(x, lengths=lengths)
    assert torch.equal(again, logits)
    assert torch.equal(state_again, state)
    # Step by step, as when it is used live, and with the plain loop: the same answer.
    one, _ = loaded(x[: lengths[0], :1])
    torch.testing.assert_close(one[0], logits[0], rtol=0, atol=1e-5)
    with anyrnn.engine("reference"):
        torch.testing.assert_close(loaded(x, lengths=lengths)[0], logits, rtol=0, atol=1e-5)
    assert all(part.cell == "Leaky" for part in anyrnn.explain(loaded.layer, x, lengths=lengths).parts)
