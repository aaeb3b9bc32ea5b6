"""Two versions of anyrnn in turns: `python benchmarks/turns.py OLD/src NEW/src`, before and after a change of engines.

Each turn is a fresh process of one version, with all calls; versions alternate, and medians are compared. On a shared
machine only a row that is slower in all settings says something.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import anyrnn

LEVELS = {"all": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ANYRNN_CPU": "x86-64-v3"}}


class NormLSTM(nn.Module):
    """A LSTM with layer normalisation of its gates and its cell state (Ba et al. 2016, eq. 20 to 22)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.state_sizes = hidden_size, hidden_size
        self.W, self.U = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.of_x, self.of_h = nn.LayerNorm(4 * hidden_size), nn.LayerNorm(4 * hidden_size)
        self.of_c = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One step."""
        h, c = state
        i, f, g, o = (self.of_x(self.W(x)) + self.of_h(self.U(h))).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.of_c(c)), c


class Leaky(nn.Module):
    """The README's cell, which multiplies x and h side by side."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.rate = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One step."""
        rate = torch.sigmoid(self.rate)
        return (1 - rate) * h + rate * torch.tanh(self.new(torch.cat((x, h), dim=1)))


#: Layer, T, B, I, lengths.
CALLS = {
    "LSTM, B=1": (lambda: anyrnn.LSTM(64, 128), 100, 1, 64, None),
    "LSTM": (lambda: anyrnn.LSTM(64, 128), 100, 32, 64, None),
    "LSTM, 256 units": (lambda: anyrnn.LSTM(256, 256), 100, 32, 256, None),
    "LSTM, ragged": (lambda: anyrnn.LSTM(64, 128), 100, 32, 64, [100 - 3 * k for k in range(32)]),
    "GRU": (lambda: anyrnn.GRU(64, 128), 100, 32, 64, None),
    "GRU, short": (lambda: anyrnn.GRU(32, 64), 12, 8, 32, None),
    "GRU, a single step": (lambda: anyrnn.GRU(32, 64), 1, 1, 32, None),
    "LSTM, 2 layers": (lambda: anyrnn.LSTM(64, 64, num_layers=2), 50, 16, 64, None),
    "peephole LSTM": (lambda: anyrnn.PeepholeLSTM(64, 128), 100, 32, 64, None),
    "LayerNorm LSTM": (lambda: anyrnn.Recurrent(NormLSTM(64, 64), input_size=64), 50, 32, 64, None),
    "leaky, 2 layers, 2 directions": (
        lambda: anyrnn.Recurrent(lambda n: Leaky(n, 64), input_size=12, num_layers=2, bidirectional=True),
        50, 32, 12, None,
    ),
}  # fmt: skip


def measure(threads: int, seconds: float) -> dict[str, float]:
    """Seconds of each call in this process, forward and with backward; x has a gradient."""
    torch.set_num_threads(threads)
    times = {}
    for name, (make, T, B, I, lengths) in CALLS.items():
        layer, x = make(), torch.randn(T, B, I)

        def forward(layer: nn.Module = layer, x: Tensor = x, lengths: list[int] | None = lengths) -> None:
            with torch.no_grad():
                layer(x, lengths=lengths)

        def training(layer: nn.Module = layer, x: Tensor = x, lengths: list[int] | None = lengths) -> None:
            layer(x.requires_grad_(), lengths=lengths)[0].sum().backward()

        for kind, call in (("forward", forward), ("training", training)):
            call()
            turns, end = [], time.perf_counter() + seconds
            while time.perf_counter() < end or len(turns) < 5:
                start = time.perf_counter()
                call()
                turns.append(time.perf_counter() - start)
            times[f"{name}: {kind}"] = statistics.median(turns)
    return times


def in_process(source: str, number: int, level: str, threads: int, seconds: float) -> dict[str, float]:
    environment = {**os.environ, **LEVELS[level], "ANYRNN_ENGINE": "cpu", "OMP_NUM_THREADS": str(threads)}
    environment |= {
        "PYTHONPATH": source,
        "ANYRNN_CACHE": str(Path(tempfile.gettempdir()) / f"anyrnn-turns{number}"),
    }
    command = [sys.executable, __file__, "--child", str(threads), "--seconds", str(seconds)]
    found: dict[str, float] = json.loads(subprocess.run(command, env=environment, stdout=-1, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="the src folders of the older and the newer version")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each version")
    parser.add_argument("--seconds", type=float, default=0.35, help="for each call and turn, about")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS, help="vector instructions")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        json.dump(measure(arguments.child, arguments.seconds), sys.stdout)
        return
    for level in arguments.levels:
        for threads in arguments.threads:
            times: list[list[dict[str, float]]] = [[], []]
            for turn in range(arguments.rounds):
                for number in (0, 1) if turn % 2 == 0 else (1, 0):
                    source = str(Path(arguments.sources[number]).resolve())
                    times[number].append(in_process(source, number, level, threads, arguments.seconds))
            print(f"vector instructions: {level}, threads: {threads}; older / newer")
            for name in times[0][0]:
                older, newer = (statistics.median(turn[name] for turn in turns) for turns in times)
                print(f"  {name:45s} {older / newer:.3f}   ({newer * 1e3:.2f} ms)")


if __name__ == "__main__":
    main()
