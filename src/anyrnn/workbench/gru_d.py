"""GRU-D, the recurrent cell for values with gaps; it reads what `gaps.GapFeatures` of the kind "since" writes."""

import torch
from torch import Tensor, nn


class GRUDCell(nn.Module):
    """A GRU in which what was seen long ago counts less (Che and others 2018, https://arxiv.org/abs/1606.01865).

    ::

        γx = exp(-max(0, wx δ + bx))          a value that is missing goes from the last one to the mean
        γh = exp(-max(0, Wh δ + bh))          and the state is forgotten
        x̂  = m x + (1 - m) γx x               x: the last value where there is none now; the mean is 0
        h' = γh h
        z  = σ(Wz (x̂, h', m) + bz)
        r  = σ(Wr (x̂, h', m) + br)
        h  = (1 - z) h' + z tanh(W (x̂, r h', m) + b)

    That a missing value is the last one already, and that the mean is 0, is the scaler's work. The authors' code starts
    the decays at 0, where the maximum has no gradient in PyTorch; here they are drawn as other weights are.

    Args:
        input_size: 3 I: the values, the mask and the time since each value was seen, I each.
        hidden_size: H.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        features = input_size // 3
        self.hidden_size = hidden_size
        self.decay_x = nn.Parameter(torch.rand(features))
        self.decay_x_bias = nn.Parameter(torch.zeros(features))
        self.decay_h = nn.Linear(features, hidden_size)
        self.gates = nn.Linear(2 * features + hidden_size, 2 * hidden_size)
        self.new = nn.Linear(2 * features + hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute the state: x (B, 3 I), h (B, H)."""
        value, seen, since = x.chunk(3, 1)  # (B, I) each
        kept = torch.exp(-torch.relu(self.decay_x * since + self.decay_x_bias))
        value = seen * value + (1 - seen) * kept * value
        h = torch.exp(-torch.relu(self.decay_h(since))) * h
        z, r = torch.sigmoid(self.gates(torch.cat((value, h, seen), 1))).chunk(2, 1)
        return (1 - z) * h + z * torch.tanh(self.new(torch.cat((value, r * h, seen), 1)))
