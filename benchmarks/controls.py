"""What acts on the recurrence: its cost over the plain layer, and over how users do it today, in training.

    python benchmarks/controls.py --threads 1

A row a feature, at T=100, B=32, I=64, H=128. All contenders of a row take turns in one process, and medians are
compared; a turn is a forward and a backward pass, the gradient of x included.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anyrnn

T, B, I, H = 100, 32, 64, 128


class Row(NamedTuple):
    """A feature: a layer with it, the layer without it, and what users run for it today, if there is such a thing."""

    name: str
    layer: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    today: Callable[[], nn.Module] | None = None


class Loop(nn.Module):
    """A loop over torch.nn's cell, as recurrent dropout and zoneout are written today, with masks drawn by PyTorch."""

    def __init__(self, cell: nn.Module, recurrent_dropout: float = 0.0, zoneout: float = 0.0) -> None:
        super().__init__()
        self.cell, self.recurrent_dropout, self.zoneout = cell, recurrent_dropout, zoneout

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """Run all steps."""
        states: tuple[Tensor, ...] = (x.new_zeros(x.shape[1], H),) * (2 if isinstance(self.cell, nn.LSTMCell) else 1)
        mask = F.dropout(torch.ones_like(states[0]), self.recurrent_dropout) if self.recurrent_dropout else None
        outputs = []
        for x_t in x.unbind(0):
            h = states[0] if mask is None else states[0] * mask
            new = self.cell(x_t, (h, *states[1:]) if len(states) > 1 else h)
            new = new if isinstance(new, tuple) else (new,)
            if self.zoneout:
                new = tuple(
                    torch.where(torch.rand_like(s) < self.zoneout, s, n) for s, n in zip(states, new, strict=True)
                )
            states = new
            outputs.append(states[0])
        return torch.stack(outputs), states


class WeightDrop(nn.Module):
    """DropConnect on torch.nn's layer, whose weights are replaced for each call."""

    def __init__(self, layer: nn.Module, p: float) -> None:
        super().__init__()
        self.layer, self.p = layer, p

    def forward(self, x: Tensor) -> Any:
        """Run the layer."""
        dropped = F.dropout(self.layer.weight_hh_l0, self.p)
        return torch.func.functional_call(self.layer, {"weight_hh_l0": dropped}, (x,))


class InputDrop(nn.Module):
    """Dropout of the same features at each step, in front of torch.nn's layer."""

    def __init__(self, layer: nn.Module, p: float) -> None:
        super().__init__()
        self.layer, self.p = layer, p

    def forward(self, x: Tensor) -> Any:
        """Run the layer."""
        return self.layer(x * F.dropout(x.new_ones(1, *x.shape[1:]), self.p))


class Called(nn.Module):
    """A layer called with options."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, x: Tensor) -> Any:
        """Run the layer."""
        return self.layer(x, **self.options)


class Recorded(Called):
    """A layer whose records are part of what is learned from."""

    def forward(self, x: Tensor) -> Any:
        """Run the layer."""
        output, _, records = super().forward(x)
        return output + records["f" if "f" in records else "z"], records


class Episodes(nn.Module):
    """Resets as they are written today: torch.nn's layer on pieces between the steps at which any row starts anew."""

    def __init__(self, layer: nn.Module, reset: Tensor) -> None:
        super().__init__()
        self.layer, self.reset = layer, reset

    def forward(self, x: Tensor) -> Any:
        """Run the pieces, with the state of rows that start anew set to zero before each."""
        cuts = [0, *(t for t in range(1, T) if self.reset[t].any()), T]
        states: tuple[Tensor, ...] = tuple(x.new_zeros(1, B, H) for _ in range(1 + isinstance(self.layer, nn.LSTM)))
        outputs = []
        for first, last in itertools.pairwise(cuts):
            kept = (~self.reset[first]).to(x.dtype).unsqueeze(1)
            states = tuple(s * kept for s in states)
            output, new = self.layer(x[first:last], states if len(states) > 1 else states[0])
            states = new if isinstance(new, tuple) else (new,)
            outputs.append(output)
        return torch.cat(outputs), states


class Gates(nn.Module):
    """Records as they are written today: the cell's equations in PyTorch, and a list of what they compute."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Any:
        """Run all steps."""
        cell = self.cell
        h = c = x.new_zeros(B, H)
        outputs, gates = [], []
        for x_t in x.unbind(0):
            a, b = F.linear(x_t, cell.weight_ih, cell.bias_ih), F.linear(h, cell.weight_hh, cell.bias_hh)
            if isinstance(cell, nn.LSTMCell):
                i, gate, g, o = (a + b).chunk(4, 1)
                gate = torch.sigmoid(gate)
                c = gate * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (r, z, n), (u, v, w) = a.chunk(3, 1), b.chunk(3, 1)
                gate = torch.sigmoid(z + v)
                h = gate * h + (1 - gate) * torch.tanh(n + torch.sigmoid(r + u) * w)
            outputs.append(h)
            gates.append(gate)
        return torch.stack(outputs) + torch.stack(gates), gates


class Hooked(nn.Module):
    """The gradient limited between steps, as it is written today: a hook on the state of each step of a loop."""

    def __init__(self, cell: nn.Module, bound: float) -> None:
        super().__init__()
        self.cell, self.bound = cell, bound

    def forward(self, x: Tensor) -> Any:
        """Run all steps."""
        states: tuple[Tensor, ...] = (x.new_zeros(B, H),) * (1 + isinstance(self.cell, nn.LSTMCell))
        outputs = []
        for x_t in x.unbind(0):
            states = tuple(s * 1 for s in states)
            for s in states:
                if s.requires_grad:
                    s.register_hook(lambda gradient: gradient.clamp(-self.bound, self.bound))
            new = self.cell(x_t, states if len(states) > 1 else states[0])
            states = new if isinstance(new, tuple) else (new,)
            outputs.append(states[0])
        return torch.stack(outputs), states


def rows_of(kind: str) -> list[Row]:
    """The rows for a kind of layer."""
    ours, theirs, cell = getattr(anyrnn, kind), getattr(nn, kind), getattr(nn, f"{kind}Cell")

    def plain() -> nn.Module:
        return ours(I, H)

    return [
        Row(
            f"{kind}, recurrent dropout",
            lambda: ours(I, H, recurrent_dropout=0.3),
            plain,
            lambda: Loop(cell(I, H), recurrent_dropout=0.3),
        ),
        Row(f"{kind}, zoneout", lambda: ours(I, H, zoneout=0.1), plain, lambda: Loop(cell(I, H), zoneout=0.1)),
        Row(
            f"{kind}, DropConnect",
            lambda: ours(I, H, weight_dropout=0.3),
            plain,
            lambda: WeightDrop(theirs(I, H), 0.3),
        ),
        Row(
            f"{kind}, input dropout",
            lambda: ours(I, H, input_dropout=0.3),
            plain,
            lambda: InputDrop(theirs(I, H), 0.3),
        ),
        *(
            Row(
                f"{kind}, resets at {share:.0%}",
                lambda share=share: Called(ours(I, H), reset=resets(share)),
                plain,
                lambda share=share: Episodes(theirs(I, H), resets(share)),
            )
            for share in (0.01, 0.2)
        ),
        Row(f"{kind}, learned initial state", lambda: ours(I, H, learn_initial_state=True), plain),
        Row(f"{kind}, states limited", lambda: ours(I, H, clip=1.0), plain),
        Row(
            f"{kind}, gradient limited",
            lambda: ours(I, H, clip_gradient=1.0),
            plain,
            lambda: Hooked(cell(I, H), 1.0),
        ),
        Row(f"{kind}, its norm limited", lambda: ours(I, H, clip_gradient_norm=1.0), plain),
        Row(
            f"{kind}, a gate recorded",
            lambda: Recorded(ours(I, H), record="f" if kind == "LSTM" else "z"),
            plain,
            lambda: Gates(cell(I, H)),
        ),
    ]


def resets(share: float) -> Tensor:
    """Which rows start anew, the same for all contenders."""
    return torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < share


def training(layer: nn.Module, x: Tensor) -> None:
    """A forward and a backward pass."""
    layer(x)[0].sum().backward()


def measure(row: Row, rounds: int) -> dict[str, float]:
    """The median seconds of each contender, in turns."""
    contenders = {"with": row.layer(), "plain": row.plain()}
    if row.today is not None:
        contenders["today"] = row.today()
    x = torch.randn(T, B, I, requires_grad=True)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 3):
        order = list(contenders.items())
        for name, layer in order if turn % 2 == 0 else order[::-1]:
            start = time.perf_counter()
            training(layer, x)
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", default="", help="rows whose names have this in them")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"T={T}, B={B}, I={I}, H={H}, forward + backward, {arguments.threads} thread(s), torch {torch.__version__}")
    for row in [row for kind in ("LSTM", "GRU") for row in rows_of(kind)]:
        if arguments.only in row.name:
            found = measure(row, arguments.rounds)
            text = (
                f"{row.name:28s} {found['with'] * 1e3:7.2f} ms, {found['with'] / found['plain'] - 1:+6.1%} over plain"
            )
            if "today" in found:
                text += f", {found['today'] / found['with']:5.1f} times as fast as today's way"
            print(text, flush=True)


if __name__ == "__main__":
    main()
