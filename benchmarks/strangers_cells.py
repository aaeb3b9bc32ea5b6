"""Cells as public projects write them, each with the loop that its users write; none of them knows of anyrnn.

They are written anew from the papers, in the projects' signatures and structures: states by argument, dicts and named
tuples, masks and time gaps, memories to attend to, matrices made at every step. `strangers.py` says how they
are run and measures them, and `tests/test_strangers.py` proves that they run unchanged.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

Pair = tuple[Tensor, Tensor]

# ---- Hydrology ----


class CustomLSTM(nn.Module):
    """As neuralhydrology's transparent LSTM: a step returns all gates."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.of_x, self.of_h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        """Compute the new h and c, and the gates."""
        i, f, g, o = (self.of_x(x) + self.of_h(h)).chunk(4, 1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        c = f * c + i * g
        return {"h_n": o * torch.tanh(c), "c_n": c, "i": i, "f": f, "g": g, "o": o}


def custom_lstm(model: CustomLSTM, x: Tensor, state: Pair) -> tuple[dict[str, Tensor], Pair]:
    h, c = state
    records = []
    for x_t in x:
        step = model(x_t, h, c)
        h, c = step["h_n"], step["c_n"]
        records.append(step)
    return {key: torch.stack([step[key] for step in records]) for key in records[0]}, (h, c)


class EALSTM(nn.Module):
    """Entity-aware LSTM (Kratzert et al. 2019, eq. 7 to 12): a model with a head, one of whose methods is the step."""

    def __init__(self, input_size: int, hidden_size: int, static_size: int) -> None:
        super().__init__()
        self.input_gate = nn.Linear(static_size, hidden_size)
        self.weight_ih = nn.Parameter(torch.randn(input_size, 3 * hidden_size) / input_size**0.5)
        self.weight_hh = nn.Parameter(torch.randn(hidden_size, 3 * hidden_size) / hidden_size**0.5)
        self.bias = nn.Parameter(torch.zeros(3 * hidden_size))
        self.head = nn.Linear(hidden_size, 1)

    def recurrence(self, x: Tensor, h: Tensor, c: Tensor, i: Tensor) -> Pair:
        """Compute the new h and c of an input gate that stays as it is."""
        f, o, g = (torch.addmm(self.bias, h, self.weight_hh) + torch.mm(x, self.weight_ih)).chunk(3, 1)
        c = torch.sigmoid(f) * c + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def ealstm(model: EALSTM, x: Tensor, state: Pair, static: Tensor) -> tuple[Tensor, Pair]:
    (h, c), outputs = state, []
    i = torch.sigmoid(model.input_gate(static))
    for x_t in x:
        h, c = model.recurrence(x_t, h, c, i)
        outputs.append(h)
    return torch.stack(outputs), (h, c)


class MCLSTM(nn.Module):
    """Mass-conserving LSTM (Hoedt et al. 2021, eq. 2 to 8): what comes in is stored, moved by a matrix, or goes out."""

    def __init__(self, mass_size: int, auxiliary_size: int, hidden_size: int) -> None:
        super().__init__()
        self.mass_size, self.hidden_size = mass_size, hidden_size
        seen = auxiliary_size + hidden_size
        self.output_gate = nn.Linear(seen, hidden_size)
        self.junction = nn.Linear(seen, mass_size * hidden_size)
        self.redistribution = nn.Linear(seen, hidden_size * hidden_size)

    def forward(self, mass: Tensor, c: Tensor, auxiliary: Tensor) -> Pair:
        """Compute what goes out and what is stored, (B, H)."""
        features = torch.cat([auxiliary, c / (c.norm(1, dim=-1, keepdim=True) + 1e-5)], dim=-1)
        o = torch.sigmoid(self.output_gate(features))
        i = torch.softmax(self.junction(features).view(-1, self.mass_size, self.hidden_size), dim=-1)
        r = F.relu(self.redistribution(features)).view(-1, self.hidden_size, self.hidden_size)
        r = F.normalize(r, p=1, dim=-1)
        inside = torch.matmul(mass.unsqueeze(-2), i).squeeze(-2) + torch.matmul(c.unsqueeze(-2), r).squeeze(-2)
        return o * inside, (1 - o) * inside


def mclstm(model: MCLSTM, x: Tensor, c: Tensor, auxiliary: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for mass, a in zip(x, auxiliary, strict=True):
        out, c = model(mass, c, a)
        outputs.append(out)
    return torch.stack(outputs), c


# ---- Irregular time ----


class ODELSTM(nn.Module):
    """LSTM whose h follows an equation between observations (Lechner and Hasani 2020), by Runge and Kutta's method."""

    def __init__(self, input_size: int, hidden_size: int, unfolds: int = 3) -> None:
        super().__init__()
        self.hidden_size, self.unfolds = hidden_size, unfolds
        self.lstm = nn.LSTMCell(input_size, hidden_size)
        self.slope = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor, state: Pair, elapsed: Tensor) -> Pair:
        """Compute the new h and c after a time (B,)."""
        h, c = self.lstm(x, state)
        dt = elapsed.view(-1, 1) / self.unfolds
        for _ in range(self.unfolds):
            k1 = self.slope(h)
            k2 = self.slope(h + dt * k1 * 0.5)
            k3 = self.slope(h + dt * k2 * 0.5)
            k4 = self.slope(h + dt * k3)
            h = h + dt * (k1 + 2 * k2 + 2 * k3 + k4) / 6.0
        return h, c


def odelstm(model: ODELSTM, x: Tensor, state: Pair, elapsed: Tensor) -> tuple[Tensor, Pair]:
    outputs = []
    for t in range(x.size(0)):
        state = model(x[t], state, elapsed[t])
        outputs.append(state[0])
    return torch.stack(outputs), state


class CfC(nn.Module):
    """Closed-form continuous-time cell (Hasani et al. 2022, eq. 10) with a backbone, as in ncps."""

    def __init__(self, input_size: int, hidden_size: int, backbone: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.backbone = nn.Linear(input_size + hidden_size, backbone)
        self.ff1, self.ff2 = nn.Linear(backbone, hidden_size), nn.Linear(backbone, hidden_size)
        self.time_a, self.time_b = nn.Linear(backbone, hidden_size), nn.Linear(backbone, hidden_size)

    def forward(self, x: Tensor, hx: Tensor, ts: Tensor) -> Pair:
        """Compute the output and the new state, which are the same."""
        seen = 1.7159 * torch.tanh(0.666 * self.backbone(torch.cat([x, hx], 1)))
        ff1, ff2 = torch.tanh(self.ff1(seen)), torch.tanh(self.ff2(seen))
        gate = torch.sigmoid(self.time_a(seen) * ts.unsqueeze(1) + self.time_b(seen))
        new = ff1 * (1.0 - gate) + gate * ff2
        return new, new


def cfc(model: CfC, x: Tensor, h: Tensor, ts: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(x.size(0)):
        out, h = model(x[t], h, ts[t])
        outputs.append(out)
    return torch.stack(outputs), h


class GRUD(nn.Module):
    """GRU with decays for missing values (Che et al. 2018, eq. 10 to 14); it remembers the last value that it saw."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.decay_x, self.decay_h = nn.Parameter(torch.rand(input_size)), nn.Linear(input_size, hidden_size)
        self.register_buffer("mean", torch.randn(input_size))
        self.zr = nn.Linear(2 * input_size + hidden_size, 2 * hidden_size)
        self.new = nn.Linear(2 * input_size + hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor, last: Tensor, mask: Tensor, delta: Tensor) -> Pair:
        """Compute h and the value last seen, of x where the mask is 1 and of the time since, (B, I) each."""
        gamma_x = torch.exp(-torch.relu(self.decay_x * delta))
        gamma_h = torch.exp(-torch.relu(self.decay_h(delta)))
        last = mask * x + (1 - mask) * last
        x = mask * x + (1 - mask) * (gamma_x * last + (1 - gamma_x) * self.mean)
        h = gamma_h * h
        z, r = torch.sigmoid(self.zr(torch.cat((x, h, mask), 1))).chunk(2, 1)
        return (1 - z) * h + z * torch.tanh(self.new(torch.cat((x, r * h, mask), 1))), last


def grud(model: GRUD, x: Tensor, state: Pair, mask: Tensor, delta: Tensor) -> tuple[Tensor, Pair]:
    h, last = state
    outputs = []
    for step in zip(x, mask, delta, strict=True):
        h, last = model(step[0], h, last, step[1], step[2])
        outputs.append(h)
    return torch.stack(outputs), (h, last)


class TimeAwareLSTM(nn.Module):
    """T-LSTM (Baytas et al. 2017): short-term memory is discounted by the time since the last visit."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.decompose = nn.Linear(hidden_size, hidden_size)
        self.W, self.U = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, t: Tensor) -> Pair:
        """Compute h and c after a time (B, 1)."""
        short = torch.tanh(self.decompose(c))
        c = c - short + short / torch.log(math.e + t)
        f, i, o, new = torch.chunk(self.W(x) + self.U(h), 4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(new)
        return torch.sigmoid(o) * torch.tanh(c), c


class PhasedLSTM(nn.Module):
    """Phased LSTM (Neil et al. 2016, eq. 6 to 10): each unit is open for a part of its own period."""

    def __init__(self, input_size: int, hidden_size: int, leak: float = 1e-3) -> None:
        super().__init__()
        self.hidden_size, self.leak = hidden_size, leak
        self.cell = nn.LSTMCell(input_size, hidden_size)
        self.tau = nn.Parameter(torch.exp(3 * torch.rand(hidden_size)))
        self.shift = nn.Parameter(self.tau.detach() * torch.rand(hidden_size))
        self.r_on = nn.Parameter(torch.full((hidden_size,), 0.3))

    def forward(self, x: Tensor, state: Pair, t: Tensor) -> Pair:
        """Compute h and c at a time (B, 1)."""
        phi = torch.remainder(t - self.shift, self.tau) / self.tau
        up, down = 2 * phi / self.r_on, 2 - 2 * phi / self.r_on
        k = torch.where(phi < 0.5 * self.r_on, up, torch.where(phi < self.r_on, down, self.leak * phi))
        h, c = self.cell(x, state)
        return k * h + (1 - k) * state[0], k * c + (1 - k) * state[1]


def at_times(model: nn.Module, x: Tensor, state: Pair, times: Tensor) -> tuple[Tensor, Pair]:
    """Loop over observations with their times, for a cell that takes h and c apart or not."""
    outputs = []
    for t in range(len(x)):
        state = model(x[t], *state, times[t]) if isinstance(model, TimeAwareLSTM) else model(x[t], state, times[t])
        outputs.append(state[0])
    return torch.stack(outputs), state


# ---- Speech and language ----


class LiGRU(nn.Module):
    """Light GRU (Ravanelli et al. 2018) as in speechbrain: x comes through a product and a BatchNorm, all at once."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.w, self.norm = nn.Linear(input_size, 2 * hidden_size, bias=False), nn.BatchNorm1d(2 * hidden_size)
        self.u = nn.Linear(hidden_size, 2 * hidden_size, bias=False)

    def gates(self, x: Tensor) -> Tensor:
        """Compute the gates of x (T, B, 2 H), normalised over all of it."""
        w = self.w(x)
        normed: Tensor = self.norm(w.flatten(0, 1)).view_as(w)
        return normed

    def step(self, w: Tensor, h: Tensor, drop: Tensor) -> Tensor:
        """Compute h, with a mask for the whole sequence."""
        a, z = (w + self.u(h)).chunk(2, 1)
        z = torch.sigmoid(z)
        return z * h + (1 - z) * (torch.relu(a) * drop)


def ligru(model: LiGRU, w: Tensor, h: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
    hiddens = []
    for k in range(w.shape[0]):
        h = model.step(w[k], h, drop)
        hiddens.append(h)
    return torch.stack(hiddens), h


class LSTMwRecDropout(nn.Module):
    """As stanza's: an `nn.LSTMCell` whose h is dropped by one mask for a whole sequence."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x: Tensor, state: Pair, mask: Tensor) -> Pair:
        """Compute h and c."""
        h, c = state
        new: Pair = self.cell(x, (h * mask, c))
        return new


def lstm_with_dropout(
    model: LSTMwRecDropout, x: PackedSequence, state: Pair, mask: Tensor, reverse: bool = False
) -> tuple[PackedSequence, Pair]:
    """Loop over a packed batch that is sorted by length, so that a step has the first rows only."""
    h, c = state
    parts = x.data.split(x.batch_sizes.tolist())
    outputs: list[Tensor] = []
    for part in reversed(parts) if reverse else parts:
        n = len(part)
        new_h, new_c = model(part, (h[:n], c[:n]), mask[:n])
        h, c = torch.cat([new_h, h[n:]]), torch.cat([new_c, c[n:]])
        outputs.append(new_h)
    return x._replace(data=torch.cat(outputs[::-1] if reverse else outputs)), (h, c)


class LayerNormLSTM(nn.Module):
    """As haste's: three norms without a shift (Ba et al. 2016), and zoneout (Krueger et al. 2017) by a mask."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(input_size, 4 * hidden_size) / input_size**0.5)
        self.recurrent = nn.Parameter(torch.randn(hidden_size, 4 * hidden_size) / hidden_size**0.5)
        self.bias = nn.Parameter(torch.zeros(4 * hidden_size))
        self.gamma = nn.Parameter(torch.full((2, 4 * hidden_size), 0.5))
        self.gamma_c, self.beta_c = nn.Parameter(torch.ones(hidden_size)), nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, state: Pair, zoneout: Tensor) -> Pair:
        """Compute h and c; h stays where the mask is 0."""
        h, c = state
        of_x = F.layer_norm(x @ self.kernel, (self.kernel.shape[1],), weight=self.gamma[0])
        of_h = F.layer_norm(h @ self.recurrent, (self.kernel.shape[1],), weight=self.gamma[1])
        i, g, f, o = torch.chunk(of_x + of_h + self.bias, 4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        new = torch.sigmoid(o) * torch.tanh(F.layer_norm(c, (c.shape[1],), self.gamma_c, self.beta_c))
        return (new - h) * zoneout + h, c


class SLSTM(nn.Module):
    """sLSTM with heads (Beck et al. 2024, eq. 8 to 17): exponential gates with a stabiliser, one matrix a head."""

    def __init__(self, input_size: int, hidden_size: int, heads: int = 4) -> None:
        super().__init__()
        self.hidden_size, self.heads, width = hidden_size, heads, hidden_size // heads
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.R = nn.Parameter(torch.randn(heads, width, 4 * width) / width**0.5)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute h and the new h, c, n and m."""
        h, c, n, m = state
        B = x.shape[0]
        recurrent = torch.bmm(h.view(B, self.heads, -1).transpose(0, 1), self.R).transpose(0, 1)  # (B, heads, 4 width)
        raw = self.W(x).view(B, self.heads, 4, -1) + recurrent.reshape(B, self.heads, 4, -1)
        i, f, z, o = (gate.reshape(B, -1) for gate in raw.unbind(2))
        log_f = m + F.logsigmoid(f)
        new_m = torch.where(n == 0.0, i, torch.maximum(i, log_f))
        i, f = torch.exp(i - new_m), torch.exp(log_f - new_m)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * (c / n)
        return h, (h, c, n, new_m)


def with_states(model: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loop over a cell that returns an output and a tuple of states."""
    outputs = []
    for x_t in x:
        out, state = model(x_t, state)
        outputs.append(out)
    return torch.stack(outputs), state


# ---- Dynamical systems ----


class LTC(nn.Module):
    """Liquid time-constant cell (Hasani et al. 2021, algorithm 1): a synapse for any two neurons, several unfolds."""

    def __init__(self, input_size: int, neurons: int, motor: int, unfolds: int = 4) -> None:
        super().__init__()
        self.state_size = self.hidden_size = neurons
        self.motor, self.unfolds = motor, unfolds
        self._params: dict[str, Tensor] = {}
        for name, rows in (("", neurons), ("sensory_", input_size)):
            self.add_weight(f"{name}w", torch.empty(rows, neurons).uniform_(0.01, 1.0))
            self.add_weight(f"{name}sigma", torch.empty(rows, neurons).uniform_(3.0, 8.0))
            self.add_weight(f"{name}mu", torch.empty(rows, neurons).uniform_(0.3, 0.8))
            self.add_weight(f"{name}erev", torch.randint(0, 2, (rows, neurons)) * 2.0 - 1)
        self.add_weight("gleak", torch.rand(neurons))
        self.add_weight("vleak", torch.randn(neurons) * 0.2)
        self.add_weight("cm", torch.rand(neurons) * 0.2 + 0.4)
        self.add_weight("output_w", torch.ones(motor))
        self.add_weight("output_b", torch.zeros(motor))

    def add_weight(self, name: str, value: Tensor) -> None:
        """Make a parameter that is an attribute and an item of a dict."""
        parameter = nn.Parameter(value)
        self.register_parameter(name, parameter)
        self._params[name] = parameter

    def activation(self, v: Tensor, prefix: str = "") -> Tensor:
        """Compute how far each synapse is open, (B, from, to)."""
        w, mu, sigma = (self._params[prefix + part] for part in ("w", "mu", "sigma"))
        return F.softplus(w) * torch.sigmoid(sigma * (v.unsqueeze(-1) - mu))

    def forward(self, inputs: Tensor, states: Tensor, elapsed: Tensor | None = None) -> Pair:
        """Compute the output (B, motor) and the potentials (B, neurons) after a time (B, 1)."""
        time = 1.0 if elapsed is None else elapsed
        v = states
        sensory = self.activation(inputs, "sensory_")
        numerator = torch.sum(sensory * self._params["sensory_erev"], dim=1)
        denominator = torch.sum(sensory, dim=1)
        cm_t = F.softplus(self._params["cm"]) / (time / self.unfolds)
        gleak = F.softplus(self._params["gleak"])
        for _ in range(self.unfolds):
            active = self.activation(v)
            inwards = torch.sum(active * self._params["erev"], dim=1) + numerator
            above = cm_t * v + gleak * self._params["vleak"] + inwards
            v = above / (cm_t + gleak + torch.sum(active, dim=1) + denominator + 1e-8)
        return v[:, : self.motor] * self._params["output_w"] + self._params["output_b"], v


def ltc(model: LTC, x: Tensor, h: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(x.size(0)):
        out, h = model.forward(x[t], h, times[t])
        outputs.append(out)
    return torch.stack(outputs), h


class LMU(nn.Module):
    """Legendre memory unit (Voelker et al. 2019, eq. 1 to 8): its matrices follow from a window that is learnt."""

    def __init__(self, input_size: int, hidden_size: int, memory_size: int, theta: float = 20.0) -> None:
        super().__init__()
        order = torch.arange(memory_size, dtype=torch.get_default_dtype())
        n, m = order.unsqueeze(1), order.unsqueeze(0)
        self.register_buffer("A", (2 * n + 1) * torch.where(n < m, -1.0, (-1.0) ** (n - m + 1)))
        self.register_buffer("B", (2 * n + 1) * (-1.0) ** n)
        self.theta = nn.Parameter(torch.tensor(theta))
        self.e_x, self.e_h = nn.Linear(input_size, 1, bias=False), nn.Linear(hidden_size, 1, bias=False)
        self.e_m = nn.Linear(memory_size, 1, bias=False)
        self.W_x, self.W_h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)
        self.W_m = nn.Linear(memory_size, hidden_size, bias=False)

    def forward(self, x: Tensor, state: Pair) -> tuple[Tensor, Pair]:
        """Compute h, and the new h and memory."""
        h, m = state
        A = torch.matrix_exp(self.A / self.theta)
        B = torch.linalg.solve(self.A, (A - torch.eye(len(A), dtype=A.dtype, device=A.device)) @ self.B)
        u = self.e_x(x) + self.e_h(h) + self.e_m(m)
        m = F.linear(m, A) + F.linear(u, B)
        h = torch.tanh(self.W_x(x) + self.W_h(h) + self.W_m(m))
        return h, (h, m)


class CoRNN(nn.Module):
    """Coupled oscillators (Rusch and Mishra 2021, eq. 3): positions and velocities."""

    def __init__(self, input_size: int, hidden_size: int, dt: float = 0.05, gamma: float = 2.0) -> None:
        super().__init__()
        self.dt, self.gamma, self.epsilon = dt, gamma, 3.0
        self.i2h = nn.Linear(input_size + 2 * hidden_size, hidden_size)

    def forward(self, x: Tensor, hy: Tensor, hz: Tensor) -> Pair:
        """Compute positions and velocities."""
        force = torch.tanh(self.i2h(torch.cat((x, hz, hy), 1))) - self.gamma * hy - self.epsilon * hz
        hz = hz + self.dt * force
        hy = hy + self.dt * hz
        return hy, hz


class LEM(nn.Module):
    """Long expressive memory (Rusch et al. 2022, eq. 3): two states with time steps that are learnt."""

    def __init__(self, input_size: int, hidden_size: int, dt: float = 1.0) -> None:
        super().__init__()
        self.dt = dt
        self.inp2hid = nn.Linear(input_size, 4 * hidden_size)
        self.hid2hid, self.transform = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Pair:
        """Compute y and z."""
        i1, i2, i_z, i_y = self.inp2hid(x).chunk(4, 1)
        h1, h2, h_y = self.hid2hid(y).chunk(3, 1)
        slow, fast = self.dt * torch.sigmoid(i1 + h1), self.dt * torch.sigmoid(i2 + h2)
        z = (1.0 - slow) * z + slow * torch.tanh(i_y + h_y)
        y = (1.0 - fast) * y + fast * torch.tanh(self.transform(z) + i_z)
        return y, z


def two_states(model: nn.Module, x: Tensor, state: Pair) -> tuple[Tensor, Pair]:
    """Loop over a cell that takes its two states apart."""
    y, z = state
    all_y = []
    for x_t in x:
        y, z = model(x_t, y, z)
        all_y.append(y)
    return torch.stack(all_y), (y, z)


class ExpRNN(nn.Module):
    """Orthogonal weights by the exponential of a skew matrix (Lezcano-Casado and Martinez-Rubio 2019), and modReLU."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.log = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)
        self.input_kernel = nn.Linear(input_size, hidden_size, bias=False)
        self.b = nn.Parameter(torch.empty(hidden_size).uniform_(-0.01, 0.01))

    @property
    def weight(self) -> Tensor:
        """The orthogonal matrix."""
        upper = self.log.triu(1)
        return torch.matrix_exp(upper - upper.T)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Compute the new state."""
        z = self.input_kernel(x) + torch.matmul(hidden, self.weight.T)
        return torch.sign(z) * F.relu(torch.abs(z) + self.b)


def exprnn(model: ExpRNN, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Loop with the weight made once, as its users' cache does."""
    weight, outputs = model.weight, []
    for x_t in x:
        z = model.input_kernel(x_t) + torch.matmul(h, weight.T)
        h = torch.sign(z) * F.relu(torch.abs(z) + model.b)
        outputs.append(h)
    return torch.stack(outputs), h


# ---- Spiking neurons ----


class ATan(torch.autograd.Function):
    """A spike above 0, with the gradient of an arctangent (Fang et al. 2021)."""

    @staticmethod
    def forward(ctx, v: Tensor, alpha: float = 2.0) -> Tensor:  # type: ignore[no-untyped-def]
        """Fire."""
        ctx.save_for_backward(v)
        ctx.alpha = alpha
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Compute the gradient of the arctangent."""
        (v,) = ctx.saved_tensors
        return ctx.alpha / 2 / (1 + (math.pi / 2 * ctx.alpha * v).pow(2)) * grad, None


class Leaky(nn.Module):
    """A leaky neuron that integrates and fires, reset by subtraction, as in snntorch."""

    def __init__(self, beta: float, threshold: float = 1.0) -> None:
        super().__init__()
        self.beta, self.threshold = nn.Parameter(torch.tensor(beta)), threshold
        self.spike = ATan.apply

    def forward(self, current: Tensor, mem: Tensor) -> Pair:
        """Compute the spikes and the new potentials."""
        reset = self.spike(mem - self.threshold).detach()
        mem = self.beta.clamp(0, 1) * mem + current - reset * self.threshold
        return self.spike(mem - self.threshold), mem


class SpikingNet(nn.Module):
    """A network of snntorch's tutorials: two linear layers, each with neurons behind it."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(input_size, hidden_size), Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(hidden_size, hidden_size), Leaky(0.8)

    def forward(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Pair, Pair]:
        """Compute the spikes and potentials of the last layer, and all potentials."""
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return (spk2, mem2), (mem1, mem2)


def spiking_net(model: SpikingNet, x: Tensor, state: Pair) -> tuple[Pair, Pair]:
    mem1, mem2 = state
    spk_rec, mem_rec = [], []
    for step in range(x.size(0)):
        (spk2, _), (mem1, mem2) = model(x[step], mem1, mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem2)
    return (torch.stack(spk_rec), torch.stack(mem_rec)), (mem1, mem2)


class SuperSpike(torch.autograd.Function):
    """A spike above 0, with the gradient of a fast sigmoid (Zenke and Ganguli 2018)."""

    @staticmethod
    def forward(ctx, v: Tensor, alpha: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """Fire."""
        ctx.save_for_backward(v)
        ctx.alpha = alpha
        return torch.gt(v, torch.as_tensor(0.0)).to(v.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Compute the gradient of the fast sigmoid."""
        (v,) = ctx.saved_tensors
        return grad.clone() / (ctx.alpha * torch.abs(v) + 1.0).pow(2), None


class LIFParameters(NamedTuple):
    """What norse keeps of a neuron, in numbers that are tensors."""

    tau_syn_inv: Tensor
    tau_mem_inv: Tensor
    v_leak: Tensor
    v_th: Tensor
    v_reset: Tensor
    alpha: Tensor


class LIFState(NamedTuple):
    """Spikes, potentials and currents."""

    z: Tensor
    v: Tensor
    i: Tensor


class LIFRecurrentCell(nn.Module):
    """Leaky neurons with recurrent synapses, a named tuple as the state and another for the parameters, as in norse."""

    def __init__(self, input_size: int, hidden_size: int, dt: float = 1e-3) -> None:
        super().__init__()
        self.hidden_size, self.dt = hidden_size, dt
        self.p = LIFParameters(*map(torch.as_tensor, (1 / 5e-3, 1 / 1e-2, 0.0, 1.0, 0.0, 100.0)))
        self.input_weights = nn.Parameter(torch.randn(hidden_size, input_size) * 2 / input_size**0.5)
        self.recurrent_weights = nn.Parameter(torch.randn(hidden_size, hidden_size) * 2 / hidden_size**0.5)

    def forward(self, x: Tensor, state: LIFState) -> tuple[Tensor, LIFState]:
        """Compute the spikes and the new state."""
        p = self.p
        v = state.v + self.dt * p.tau_mem_inv * ((p.v_leak - state.v) + state.i)
        i = state.i - self.dt * p.tau_syn_inv * state.i
        z = SuperSpike.apply(v - p.v_th, p.alpha)
        v = (1 - z.detach()) * v + z.detach() * p.v_reset
        i = i + F.linear(x, self.input_weights) + F.linear(state.z, self.recurrent_weights)
        return z, LIFState(z, v, i)


def lif(model: LIFRecurrentCell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    neurons, spikes = LIFState(*state), []
    for x_t in x:
        z, neurons = model(x_t, neurons)
        spikes.append(z)
    return torch.stack(spikes), neurons


# ---- Graphs and images ----


class GConvGRU(nn.Module):
    """GRU on the nodes of a graph (Seo et al. 2018, eq. 6): Chebyshev polynomials of a Laplacian that is a buffer."""

    def __init__(self, laplacian: Tensor, features: int, hidden_size: int, order: int = 3) -> None:
        super().__init__()
        self.register_buffer("laplacian", laplacian)
        self.order = order
        for gate in "zrh":
            self.add_module(f"x_{gate}", nn.Linear(order * features, hidden_size))
            self.add_module(f"h_{gate}", nn.Linear(order * hidden_size, hidden_size))

    def spread(self, x: Tensor) -> Tensor:
        """Put the Chebyshev polynomials of x (B, N, F) side by side."""
        parts = [x, self.laplacian @ x]
        while len(parts) < self.order:
            parts.append(2 * self.laplacian @ parts[-1] - parts[-2])
        return torch.cat(parts, -1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute the new state (B, N, H)."""
        of_x, of_h = self.spread(x), self.spread(h)
        z, r = torch.sigmoid(self.x_z(of_x) + self.h_z(of_h)), torch.sigmoid(self.x_r(of_x) + self.h_r(of_h))
        return z * h + (1 - z) * torch.tanh(self.x_h(of_x) + self.h_h(self.spread(r * h)))


class DCRNN(nn.Module):
    """Diffusion convolutional GRU (Li et al. 2018, eq. 2 and 3): random walks along a graph, there and back."""

    def __init__(self, features: int, hidden_size: int, steps: int = 2) -> None:
        super().__init__()
        self.steps, seen = steps, (2 * steps + 1) * (features + hidden_size)
        self.gates, self.candidate = nn.Linear(seen, 2 * hidden_size), nn.Linear(seen, hidden_size)

    def diffuse(self, x: Tensor, A: Tensor) -> Tensor:
        """Put x (B, N, F) beside what it is after steps along both directions."""
        found = [x]
        for walk in (A / A.sum(1, keepdim=True), A.T / A.T.sum(1, keepdim=True)):
            moved = x
            for _ in range(self.steps):
                moved = torch.matmul(walk, moved)
                found.append(moved)
        return torch.cat(found, dim=2)

    def forward(self, x: Tensor, h: Tensor, adjacency: Tensor) -> Tensor:
        """Compute the new state (B, N, H)."""
        r, u = torch.sigmoid(self.gates(self.diffuse(torch.cat([x, h], 2), adjacency))).chunk(2, 2)
        c = torch.tanh(self.candidate(self.diffuse(torch.cat([x, r * h], 2), adjacency)))
        return u * h + (1.0 - u) * c


def on_graph(model: nn.Module, x: Tensor, h: Tensor, *adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """Loop over snapshots of a graph."""
    outputs = []
    for t in range(len(x)):
        h = model(x[t], h, *adjacency)
        outputs.append(h)
    return torch.stack(outputs), h


class ConvLSTM(nn.Module):
    """ConvLSTM (Shi et al. 2015) without peepholes, on images (B, C, height, width)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, state: Pair) -> Pair:
        """Compute h and c."""
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), h.shape[1], dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def at_images(model: ConvLSTM, x: Tensor, state: Pair) -> tuple[Tensor, Pair]:
    h, c = state
    output_inner = []
    for t in range(x.size(0)):
        h, c = model(x[t], (h, c))
        output_inner.append(h)
    return torch.stack(output_inner), (h, c)


# ---- Decoders with attention ----


class LocationAttention(nn.Module):
    """Additive attention that sees where it has looked (Chorowski et al. 2015, eq. 8), by a convolution or not."""

    def __init__(self, hidden_size: int, memory_size: int, size: int, filters: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, size, bias=False)
        self.memory = nn.Linear(memory_size, size, bias=False)
        self.conv = nn.Conv1d(2, filters, 5, padding=2, bias=False) if filters else None
        self.location = nn.Linear(filters or 2, size, bias=False)
        self.v = nn.Linear(size, 1, bias=False)

    def forward(self, h: Tensor, memory: Tensor, keys: Tensor, looked: Tensor) -> Pair:
        """Compute the context (B, M) and the weights (B, S), of weights (B, 2, S): the last ones, and all so far."""
        location = looked if self.conv is None else self.conv(looked)
        seen = self.query(h.unsqueeze(1)) + keys + self.location(location.transpose(1, 2))
        weights = F.softmax(self.v(torch.tanh(seen)).squeeze(-1), dim=1)
        return torch.bmm(weights.unsqueeze(1), memory).squeeze(1), weights


class TacotronDecoder(nn.Module):
    """The decoder of Tacotron 2 (Shen et al. 2018): two LSTM cells around an attention, seven states."""

    def __init__(self, input_size: int, hidden_size: int, memory_size: int, filters: int = 0) -> None:
        super().__init__()
        self.attention_rnn = nn.LSTMCell(input_size + memory_size, hidden_size)
        self.attention = LocationAttention(hidden_size, memory_size, hidden_size // 2, filters)
        self.decoder_rnn = nn.LSTMCell(hidden_size + memory_size, hidden_size)
        self.projection, self.gate = nn.Linear(hidden_size + memory_size, 5), nn.Linear(hidden_size + memory_size, 1)

    def decode(
        self, x: Tensor, state: tuple[Tensor, ...], memory: Tensor, keys: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Compute (frame, stop, attention weights) and the new state."""
        h, c, attended_h, attended_c, weights, total, context = state
        attended_h, attended_c = self.attention_rnn(torch.cat((x, context), -1), (attended_h, attended_c))
        looked = torch.cat((weights.unsqueeze(1), total.unsqueeze(1)), dim=1)
        context, weights = self.attention(attended_h, memory, keys, looked)
        total = total + weights
        h, c = self.decoder_rnn(torch.cat((attended_h, context), -1), (h, c))
        both = torch.cat((h, context), dim=1)
        state = h, c, attended_h, attended_c, weights, total, context
        return (self.projection(both), self.gate(both), weights), state


def tacotron(
    model: TacotronDecoder, x: Tensor, state: tuple[Tensor, ...], memory: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    frames, stops, alignments = [], [], []
    keys = model.attention.memory(memory)
    for x_t in x:
        (frame, stop, weights), state = model.decode(x_t, state, memory, keys)
        frames.append(frame)
        stops.append(stop)
        alignments.append(weights)
    return (torch.stack(frames), torch.stack(stops), torch.stack(alignments)), state


class InputFeedDecoder(nn.Module):
    """Luong's decoder with input feeding (2015) as in OpenNMT: stacked LSTM cells, their states in one tensor each."""

    def __init__(self, input_size: int, hidden_size: int, layers: int = 2) -> None:
        super().__init__()
        sizes = [input_size + hidden_size] + [hidden_size] * (layers - 1)
        self.layers = nn.ModuleList(nn.LSTMCell(size, hidden_size) for size in sizes)
        self.linear_in = nn.Linear(hidden_size, hidden_size, bias=False)
        self.linear_out = nn.Linear(2 * hidden_size, hidden_size, bias=False)

    def forward(self, emb: Tensor, state: tuple[Tensor, Tensor, Tensor], memory: Tensor) -> tuple[Pair, tuple]:
        """Compute (output, attention weights), and the new h, c (B, layers, H) and output to feed."""
        hidden, cell, feed = state
        x, new_h, new_c = torch.cat([emb, feed], 1), [], []
        for k, layer in enumerate(self.layers):
            h, c = layer(x, (hidden[:, k], cell[:, k]))
            new_h.append(h)
            new_c.append(c)
            x = h
        scores = torch.bmm(self.linear_in(x).unsqueeze(1), memory.transpose(1, 2))  # (B, 1, S)
        weights = torch.softmax(scores, dim=-1)
        context = torch.bmm(weights, memory).squeeze(1)
        out = torch.tanh(self.linear_out(torch.cat([context, x], 1)))
        return (out, weights.squeeze(1)), (torch.stack(new_h, 1), torch.stack(new_c, 1), out)


def input_feed(
    model: InputFeedDecoder, x: Tensor, state: tuple[Tensor, ...], memory: Tensor
) -> tuple[Pair, tuple[Tensor, ...]]:
    outputs, attentions = [], []
    for emb in x.split(1):
        (out, attention), state = model(emb.squeeze(0), state, memory)
        outputs.append(out)
        attentions.append(attention)
    return (torch.stack(outputs), torch.stack(attentions)), state
