"""Cells as one writes them by hand, for the loops that anyrnn is compared with. None of them knows of anyrnn.

They are written to be fast in a loop: one product with x and one with h for all gates, as in torch.nn's own cells. Only
`NotebookLSTM` is not: it is the form of countless notebooks.
"""

import torch
from torch import Tensor, nn


class PeepholeLSTM(nn.Module):
    """Gers' LSTM: the gates see the cell state, the output gate the new one."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.p_i, self.p_f, self.p_o = (nn.Parameter(torch.rand(hidden_size) - 0.5) for _ in "ifo")

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute h and c (B, H) from x (B, I) and the h and c before."""
        h, c = state
        i, f, g, o = (self.input(x) + self.hidden(h)).chunk(4, dim=1)
        i, f = torch.sigmoid(i + self.p_i * c), torch.sigmoid(f + self.p_f * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.p_o * c) * torch.tanh(c), c


class LayerNormLSTM(nn.Module):
    """Ba's LSTM: both products are normalised, and the cell state on its way to the output."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.norm_x, self.norm_h = nn.LayerNorm(4 * hidden_size), nn.LayerNorm(4 * hidden_size)
        self.norm_c = nn.LayerNorm(hidden_size)
        for norm in (self.norm_x, self.norm_h):  # with 1 the dynamics are chaotic, and no two programs agree for long
            nn.init.constant_(norm.weight, 0.1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute h and c (B, H) from x (B, I) and the h and c before."""
        h, c = state
        i, f, g, o = (self.norm_x(self.input(x)) + self.norm_h(self.hidden(h))).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c


class ResetBeforeGRU(nn.Module):
    """Cho's GRU: the reset gate comes before the matrix product."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, 3 * hidden_size)
        self.hidden_rz = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.hidden_n = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute h (B, H) from x (B, I) and the h before."""
        H = self.hidden_size
        rz, n = self.input(x).split((2 * H, H), dim=1)
        r, z = torch.sigmoid(rz + self.hidden_rz(h)).chunk(2, dim=1)
        n = torch.tanh(n + self.hidden_n(r * h))
        return n + z * (h - n)


class NotebookLSTM(nn.Module):
    """A linear layer for each gate, on x and h side by side."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.forget_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.input_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)
        self.output_gate = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute h and c (B, H) from x (B, I) and the h and c before."""
        h, c = state
        both = torch.cat((x, h), dim=1)
        f = torch.sigmoid(self.forget_gate(both))
        i = torch.sigmoid(self.input_gate(both))
        c = f * c + i * torch.tanh(self.candidate(both))
        return torch.sigmoid(self.output_gate(both)) * torch.tanh(c), c


class ConcatLSTM(nn.Module):
    """One linear layer for all gates, on x and h side by side: the form of other notebooks."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gates = nn.Linear(input_size + hidden_size, 4 * hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute h and c (B, H) from x (B, I) and the h and c before."""
        h, c = state
        i, f, g, o = self.gates(torch.cat((x, h), dim=1)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
