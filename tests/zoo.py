"""The tables that the tests run over: a new cell is one line in CASES, a new engine one line in ENGINES.

The foreign cells are written as their authors would: no base class, no option, nothing that anyrnn asks for.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import anyrnn

I, H = 2, 3  # the sizes of every cell in the table
T, B = 4, 3


class ConcatLSTM(nn.Module):
    """x and h side by side, one nn.Linear a gate, and an output layer (notebook 000)."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int = 4) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        for gate in ("input_gate", "forget_gate", "candidate", "output_gate"):
            self.add_module(gate, nn.Linear(input_size + hidden_size, hidden_size))
        self.output_layer = nn.Linear(hidden_size, output_size)

    def forward(self, x, state):
        h, c = state
        both = torch.cat((x, h), dim=1)
        kept = torch.sigmoid(self.forget_gate(both)) * c
        c = kept + torch.sigmoid(self.input_gate(both)) * torch.tanh(self.candidate(both))
        h = torch.sigmoid(self.output_gate(both)) * torch.tanh(c)
        return self.output_layer(h), (h, c)


class ConcatGRU(nn.Module):
    """A GRU that resets before the matrix product, on x and h side by side, with an output layer (notebook 000)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.reset = nn.Linear(input_size + hidden_size, hidden_size)
        self.update = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)
        self.output_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h):
        both = torch.cat((x, h), dim=1)
        r, z = torch.sigmoid(self.reset(both)), torch.sigmoid(self.update(both))
        n = torch.tanh(self.candidate(torch.cat((x, r * h), dim=1)))
        h = (1 - z) * h + z * n
        return self.output_layer(h), h


class RawLSTM(nn.Module):
    """A raw weight and bias a gate on x and h side by side; takes h, c apart and returns c first (notebook 003)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        for gate in "ifgo":
            self.register_parameter(f"W_{gate}", nn.Parameter(torch.randn(input_size + hidden_size, hidden_size) / 2))
            self.register_parameter(f"b_{gate}", nn.Parameter(torch.randn(hidden_size) / 2))

    def forward(self, x, h, c):
        both = torch.cat([x, h], 1)
        i, f, o = (torch.sigmoid(both @ getattr(self, f"W_{k}") + getattr(self, f"b_{k}")) for k in "ifo")
        c = f * c + i * torch.tanh(both @ self.W_g + self.b_g)
        return c, o * torch.tanh(c)


class InOrder(RawLSTM):
    """The wrapper of two lines that such a cell needs."""

    def forward(self, x, state):
        c, h = super().forward(x, *state)
        return h, c


class SeparateLSTM(nn.Module):
    """W_x*, W_h* and b_* for each gate (notebook 004), the weights as parameters."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        for k in "ifoc":
            setattr(self, f"W_x{k}", nn.Parameter(torch.randn(input_size, hidden_size) / 2))
            setattr(self, f"W_h{k}", nn.Parameter(torch.randn(hidden_size, hidden_size) / 2))
            setattr(self, f"b_{k}", nn.Parameter(torch.randn(hidden_size) / 2))

    def forward(self, x, state):
        h, c = state
        i = torch.sigmoid(x @ self.W_xi + h @ self.W_hi + self.b_i)
        f = torch.sigmoid(x @ self.W_xf + h @ self.W_hf + self.b_f)
        o = torch.sigmoid(x @ self.W_xo + h @ self.W_ho + self.b_o)
        c = f * c + i * torch.tanh(x @ self.W_xc + h @ self.W_hc + self.b_c)
        return o * torch.tanh(c), c


class IndRNN(nn.Module):
    """No matrix product with the state: every unit sees only itself."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, hidden_size)
        self.u = nn.Parameter(torch.rand(hidden_size))

    def forward(self, x, h):
        return torch.tanh(self.input(x) + self.u * h)


class MixedSizes(nn.Module):
    """Two states of different sizes, an output of a third, and no hidden_size."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.state_sizes = (hidden_size + 2, hidden_size)
        self.slow = nn.Linear(input_size + hidden_size, hidden_size + 2)
        self.fast = nn.Linear(input_size + hidden_size + 2, hidden_size)
        self.out = nn.Linear(2 * hidden_size + 2, 1)

    def forward(self, x, state):
        slow, fast = state
        slow = 0.9 * slow + 0.1 * torch.tanh(self.slow(torch.cat((x, fast), -1)))
        fast = torch.tanh(self.fast(torch.cat((x, slow), -1)))
        return self.out(torch.cat((slow, fast), -1)), (slow, fast)


class ThreeStates(nn.Module):
    """Three states, found from hidden_size alone; they come back as a list."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gates = nn.Linear(input_size + 2 * hidden_size, 3 * hidden_size)

    def forward(self, x, state):
        h, c, m = state
        a, b, g = self.gates(torch.cat((x, h, m), 1)).chunk(3, 1)
        c = torch.sigmoid(a) * c + (1 - torch.sigmoid(a)) * torch.tanh(g)
        m = torch.maximum(m, c)
        return [torch.sigmoid(b) * c, c, m]


class OneTuple(nn.Module):
    """A tuple of one state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cell = nn.RNNCell(input_size, hidden_size)

    def forward(self, x, state):
        (h,) = state
        return (self.cell(x, h),)


class Buffered(nn.Module):
    """A reservoir: its weights are a buffer, only the input is learnt."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, hidden_size)
        self.register_buffer("U", torch.randn(hidden_size, hidden_size) / 2)

    def forward(self, x, h):
        return torch.tanh(self.input(x) + h @ self.U)


class NormLSTM(nn.Module):
    """LayerNorm on the gates and on the cell state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.W = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.U = nn.Linear(hidden_size, 4 * hidden_size)
        self.norm_x, self.norm_h = nn.LayerNorm(4 * hidden_size), nn.LayerNorm(4 * hidden_size)
        self.norm_c = nn.LayerNorm(hidden_size)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.norm_x(self.W(x)) + self.norm_h(self.U(h))).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c


class LowRank(nn.Module):
    """Recurrent weights that are a function of parameters: a product of two thin ones, less its transpose."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, hidden_size)
        self.left, self.right = nn.Parameter(torch.randn(hidden_size, 2)), nn.Parameter(torch.randn(2, hidden_size))

    def forward(self, x, h):
        U = self.left @ self.right
        return h + 0.3 * torch.tanh(self.input(x) + F.linear(h, U - U.T - 0.1 * torch.eye(len(U), dtype=U.dtype)))


def hard_sigmoid(a: Tensor) -> Tensor:
    """As in Keras. (PyTorch's own rounds 1/6 to float32 even in float64, and has no second derivative.)"""
    return (0.2 * a + 0.5).clamp(0, 1)


def weight_normed(input_size: int, hidden_size: int) -> nn.Module:
    return parametrizations.weight_norm(nn.GRUCell(input_size, hidden_size), "weight_hh")


@dataclass(frozen=True)
class Case:
    """A cell and what is to be expected of it.

    Attributes:
        name: Its name in the names of the tests.
        make: From the input and hidden sizes to the cell.
        kernel: PyTorch has a kernel that computes it, so the engine "torch" runs it.
        twice: PyTorch has the second derivatives of its operations.
    """

    name: str
    make: Callable[[int, int], nn.Module]
    kernel: bool = False
    twice: bool = True

    def cell(self, input_size: int = I, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(1)
        return self.make(input_size, H).to(dtype)

    def layer(self, **options) -> anyrnn.Recurrent:
        torch.manual_seed(1)
        return anyrnn.Recurrent(lambda size: self.make(size, H), input_size=I, **options).double()


CASES = (
    Case("RNN", anyrnn.RNNCell, kernel=True),
    Case("RNN-relu", lambda i, h: anyrnn.RNNCell(i, h, nonlinearity="relu"), kernel=True),
    Case("LSTM", anyrnn.LSTMCell, kernel=True),
    Case("LSTM-no-bias", lambda i, h: anyrnn.LSTMCell(i, h, bias=False), kernel=True),
    Case("LSTM-projected", lambda i, h: anyrnn.LSTMCell(i, h, proj_size=h - 1), kernel=True),
    Case("LSTM-hard", lambda i, h: anyrnn.LSTMCell(i, h, activations={"f": hard_sigmoid, "g": F.softsign})),
    Case("GRU", anyrnn.GRUCell, kernel=True),
    Case("GRU-reset-before", lambda i, h: anyrnn.GRUCell(i, h, reset_after=False)),
    Case("GRU-reset-before-no-bias", lambda i, h: anyrnn.GRUCell(i, h, bias=False, reset_after=False)),
    Case("Peephole", anyrnn.PeepholeLSTMCell),
    Case("Peephole-old-cell", lambda i, h: anyrnn.PeepholeLSTMCell(i, h, output_sees_new_cell=False)),
    Case("Peephole-no-bias", lambda i, h: anyrnn.PeepholeLSTMCell(i, h, bias=False)),
    Case("nn.RNNCell", nn.RNNCell, kernel=True),
    Case("nn.RNNCell-relu", lambda i, h: nn.RNNCell(i, h, nonlinearity="relu"), kernel=True),
    Case("nn.LSTMCell", nn.LSTMCell, kernel=True),
    Case("nn.GRUCell", nn.GRUCell, kernel=True),
    Case("nn.GRUCell-no-bias", lambda i, h: nn.GRUCell(i, h, bias=False), kernel=True),
    # torch._weight_norm fails gradgradcheck by itself in torch 2.13.
    Case("weight-normed", weight_normed, kernel=True, twice=False),
    Case("ConcatLSTM", ConcatLSTM),
    Case("ConcatGRU", ConcatGRU),
    Case("RawLSTM", InOrder),
    Case("SeparateLSTM", SeparateLSTM),
    Case("IndRNN", IndRNN),
    Case("MixedSizes", MixedSizes),
    Case("ThreeStates", ThreeStates),
    Case("OneTuple", OneTuple),
    Case("Buffered", Buffered),
    Case("NormLSTM", NormLSTM),
    Case("LowRank", LowRank),
)

#: Which cases an engine runs when it is asked for by name.
ENGINES: dict[str, Callable[[Case], bool]] = {
    "reference": lambda case: True,
    "torch": lambda case: case.kernel,
    "cpu": lambda case: True,
}

PAIRS = [(case, engine) for case in CASES for engine, runs in ENGINES.items() if runs(case)]

# An engine sees one layer and direction at a time, so for stacks a few cells are enough where each has to be compiled.
FEW = ("LSTM", "GRU-reset-before", "ConcatLSTM", "MixedSizes", "nn.RNNCell")
LAYER_PAIRS = [(case, engine) for case, engine in PAIRS if engine != "cpu" or case.name in FEW]


def ids(rows: Iterable) -> list[str]:
    """Names of tests from the rows of a table."""
    return ["-".join(str(getattr(part, "name", part)) for part in row) for row in rows]


def state_of(cell: nn.Module, batch: int = B, seed: int = 3, like: Tensor | None = None):
    """A state that is not zero, in the structure of the cell."""
    signature = anyrnn.probing.describe(cell, I)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if like is None else like.dtype
    states = [torch.randn(batch, n, generator=generator, dtype=torch.float64).to(dtype) for n in signature.state_sizes]
    return states[0] if signature.bare else tuple(states)


def x_of(T: int = T, B: int = B, seed: int = 2, size: int = I) -> Tensor:
    return torch.randn(T, B, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(state) -> tuple[Tensor, ...]:
    """The tensors of a state, or of anything nested."""
    return (state,) if isinstance(state, Tensor) else tuple(t for part in state for t in flat(part))


def loss_of(*tensors: Tensor) -> Tensor:
    """A sum in which every element has another weight, so that no mix-up of elements goes unseen."""
    return sum(
        (t * torch.cos(torch.arange(t.numel(), dtype=t.dtype) + k).view(t.shape)).sum() for k, t in enumerate(tensors)
    )


def plain(cell: nn.Module, x: Tensor, state, lengths=None, reverse: bool = False):
    """What a scan means: each row by itself, one valid step after another. The output (T, B, O) and the state.

    Independent of the library but for the sizes, and of batches altogether.
    """
    signature = anyrnn.probing.describe(cell, x.shape[2])
    T, B, _ = x.shape
    output = [[x.new_zeros(signature.output_size) for _ in range(B)] for _ in range(T)]
    finals = []
    for b in range(B):
        n = T if lengths is None else int(lengths[b])
        row = state[b : b + 1] if isinstance(state, Tensor) else tuple(s[b : b + 1] for s in state)
        for t in reversed(range(n)) if reverse else range(n):
            result = cell(x[t, b : b + 1], row)
            if signature.has_output:
                out, row = result
            else:
                out, row = (result if isinstance(result, Tensor) else result[0]), result
            output[t][b] = out[0]
        finals.append(flat(row))
    final = tuple(torch.cat(rows) for rows in zip(*finals, strict=True))
    return torch.stack([torch.stack(rows) for rows in output]), final


def plain_layer(layer, x: Tensor, state, lengths=None):
    """What a layer means, in canonical form (T, B, I): `plain` for each layer and direction. Output and states."""
    finals, k = [], 0
    for number in range(layer.num_layers):
        outputs = []
        for reverse in (False, True)[: layer.num_directions]:
            row = state[k] if isinstance(state, Tensor) else tuple(s[k] for s in state)
            output, final = plain(layer.cell(number, reverse), x, row, lengths, reverse)
            outputs.append(output)
            finals.append(final)
            k += 1
        x = torch.cat(outputs, dim=2)
    return x, tuple(torch.stack(rows) for rows in zip(*finals, strict=True))


def layer_state(layer, batch: int = B, seed: int = 4):
    """A stacked state that is not zero, in the structure of the layer's cells."""
    parts = [flat(state_of(layer.cell(), batch, seed + k)) for k in range(layer.num_layers * layer.num_directions)]
    stacked = tuple(torch.stack(rows) for rows in zip(*parts, strict=True))
    return stacked[0] if anyrnn.probing.describe(layer.cell(), I).bare else stacked


def gradients(tensors: Iterable[Tensor], loss: Tensor) -> list[Tensor]:
    """Gradients of the loss, zero where it does not depend on a tensor."""
    tensors = list(tensors)
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


def close(got: Iterable[Tensor], want: Iterable[Tensor], atol: float = 1e-10) -> None:
    """Compare tensors one by one, shape and type included, NaN equal to nothing."""
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda text, k=k: f"tensor {k}: {text}")
