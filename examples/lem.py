"""LEM, Long Expressive Memory (Rusch et al. 2022, arXiv:2110.04744), learns the FitzHugh-Nagumo system (section 5).

`python examples/lem.py` trains as the authors do. What differs: the sequences are computed far more precisely than
with SciPy's default tolerance, and the error reported is that of all 1,024 test sequences, not of the last 128.
"""

import argparse
import time

import torch
from torch import Tensor, nn

import anyrnn


class LEMCell(nn.Module):
    """One step of LEM, equation 3 of the paper: two states, each of which moves by a time step of its own.

    With s the sigmoid, * by elements, and a width of the step dt:

        dt_z = dt s(W1 y + V1 u + b1)       z' = (1 - dt_z) * z + dt_z * tanh(Wz y + Vz u + bz)
        dt_y = dt s(W2 y + V2 u + b2)       y' = (1 - dt_y) * y + dt_y * tanh(Wy z' + Vy u + by)
    """

    def __init__(self, input_size: int, hidden_size: int, dt: float = 1.0) -> None:
        super().__init__()
        self.hidden_size, self.dt = hidden_size, dt
        self.V = nn.Linear(input_size, 4 * hidden_size)  # V1, V2, Vz, Vy
        self.W = nn.Linear(hidden_size, 3 * hidden_size)  # W1, W2, Wz
        self.Wy = nn.Linear(hidden_size, hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the new y and z from u (B, I), y and z (B, H)."""
        y, z = state
        u1, u2, uz, uy = self.V(u).chunk(4, 1)
        y1, y2, yz = self.W(y).chunk(3, 1)
        dt_z, dt_y = self.dt * torch.sigmoid(u1 + y1), self.dt * torch.sigmoid(u2 + y2)
        z = (1 - dt_z) * z + dt_z * torch.tanh(uz + yz)
        y = (1 - dt_y) * y + dt_y * torch.tanh(self.Wy(z) + uy)
        return y, z


def fitzhugh_nagumo(sequences: int, points: int = 1001, substeps: int = 8) -> Tensor:
    """Solve dv/dt = v - v^3/3 - w + 0.5, dw/dt = 0.02 (v + 0.7 - 0.8 w) by Runge-Kutta 4; return v (points, B, 1)."""

    def slope(p: Tensor) -> Tensor:
        v, w = p
        return torch.stack((v - v**3 / 3 - w + 0.5, 0.02 * (v + 0.7 - 0.8 * w)))

    p = torch.stack((torch.rand(sequences, dtype=torch.float64) * 2 - 1, torch.zeros(sequences, dtype=torch.float64)))
    h, v = 0.4 / substeps, [p[0]]
    for step in range(1, (points - 1) * substeps + 1):
        a = slope(p)
        b = slope(p + h / 2 * a)
        c = slope(p + h / 2 * b)
        p = p + h / 6 * (a + 2 * b + 2 * c + slope(p + h * c))
        if step % substeps == 0:
            v.append(p[0])
    return torch.stack(v).float().unsqueeze(2)
