"""What acts on the recurrence: its cost over the plain layer, and over how users do it today, in training.

    python benchmarks/controls.py --threads 1

A row a feature, at T=100, B=32, I=64, H=128. All contenders of a row take turns in one process, and medians are
compared; a turn is a forward and a backward pass, the gradient of x included.
"""

import argparse
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
    ]


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
