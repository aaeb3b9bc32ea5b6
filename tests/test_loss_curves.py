"""A real training run takes the same course on machine code as on the loop that defines every result."""

import math

import pytest
import torch
from torch import nn

import anyrnn
from anyrnn.workbench import data
from anyrnn.workbench.models import Network
from anyrnn.workbench.train import Settings, train


class NormGRUCell(nn.Module):
    """A cell that nobody has a kernel for: the gates are normalised, as in Ba et al. (2016), arXiv 1607.06450."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.from_x, self.from_h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)
        self.norm_x, self.norm_h = nn.LayerNorm(2 * hidden_size), nn.LayerNorm(2 * hidden_size)

    def forward(self, x, h):
        H = self.hidden_size
        a, b = self.from_x(x), self.from_h(h)
        z, r = torch.sigmoid(self.norm_x(a[:, : 2 * H]) + self.norm_h(b[:, : 2 * H])).chunk(2, 1)
        return z * h + (1 - z) * torch.tanh(a[:, 2 * H :] + r * b[:, 2 * H :])


NETWORKS = (
    Network("lstm", "LSTM", anyrnn.LSTM),
    Network("gru", "GRU", anyrnn.GRU),
    Network("own", "NormGRU", lambda i, h: anyrnn.Recurrent(NormGRUCell(i, h))),
)

# As `anyrnn compare` trains, but for fewer units: the Python loop, too, is to take seconds.
SETTINGS = Settings(hidden_size=32, threads=1)


@pytest.fixture(scope="module")
def vowels():
    return data.load("japanese-vowels", validation=0)  # rounding shall not choose an epoch


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_loss_curve_on_japanese_vowels_is_the_references(network, vowels):
    runs = {}
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            _, runs[engine] = train(network, vowels, SETTINGS, seed=0)
    curves = {engine: [epoch.train_loss for epoch in run.history] for engine, run in runs.items()}
    # Relative, in float32: rounding alone gives 1e-6 after this many updates, and a wrong gradient far more than 1e-4.
    assert curves["cpu"] == pytest.approx(curves["reference"], rel=1e-4, abs=0)
    assert runs["cpu"].predictions == runs["reference"].predictions
    assert curves["cpu"][-1] < 0.2 * math.log(9), "it learns: nine classes by chance have a loss of log 9"
