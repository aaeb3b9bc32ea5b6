"""What is computed from x alone, of one dimension or many, is a matrix for the machine code and its gradients."""

import pytest
import torch
from compare import CALLS, DOUBLE, SINGLE, H, I, assert_exact
from torch import nn

pytestmark = pytest.mark.usefixtures("runs")


class Cell(nn.Module):
    """A cell whose step is a function of it, x and h; its product takes `width` numbers."""

    def __init__(self, step, width):
        super().__init__()
        self.hidden_size, self.step = H, step
        self.encoder, self.W = nn.Linear(I, 2 * H), nn.Linear(width, H)
        self.v = nn.Parameter(torch.randn(2, H))

    def forward(self, x, h):
        return self.step(self, x, h)


def encoded(c, x):
    return torch.tanh(c.encoder(x)).view(-1, 2, H)


STREAMS = {
    "three dimensions in a product": (
        lambda c, x, h: torch.tanh(c.W(torch.cat([encoded(c, x), h.unsqueeze(1)], 1).flatten(1))),
        3 * H,
    ),
    "three dimensions, number by number": (
        lambda c, x, h: torch.tanh(c.W((encoded(c, x) * h.unsqueeze(1) * c.v).flatten(1))),
        2 * H,
    ),
    "three dimensions, one of them summed": (
        lambda c, x, h: torch.tanh(c.W((encoded(c, x) * h.unsqueeze(1)).sum(1))),
        H,
    ),
    "four dimensions": (
        lambda c, x, h: torch.tanh(c.W(torch.cat([encoded(c, x).unsqueeze(1), h.view(-1, 1, 1, H)], 2).flatten(1))),
        3 * H,
    ),
    "one dimension in a product": (lambda c, x, h: torch.tanh(c.W(torch.stack([x.mean(1), h[:, 0]], 1))), 2),
    "one dimension, number by number": (lambda c, x, h: torch.tanh(c.W(h) * x.mean(1).unsqueeze(1)), H),
    "x itself beside a stream": (
        lambda c, x, h: torch.tanh(c.W(torch.cat([x, torch.atan(x).unsqueeze(2).expand(-1, -1, 2).flatten(1), h], 1))),
        3 * I + H,
    ),
}


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=["double", "single"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_any_shape_has_its_gradient(name, dtype, runs):
    torch.manual_seed(1)
    cell = Cell(*STREAMS[name])
    for call in CALLS:
        assert_exact(cell, call, dtype)
    assert runs
