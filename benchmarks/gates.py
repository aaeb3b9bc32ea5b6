"""LSTM and GRU on three tasks, with several seeds and learning rates: the numbers of chapter 2, "Gates".

    python benchmarks/gates.py

Writes gates.json beside itself after each training run, and goes on where it was interrupted. All networks get the same
data, in the same order, for the same seed. It takes some ten minutes in one thread.

* adding: T=50 steps of a number and a mark; the sum of the two marked numbers is asked for (Hochreiter and Schmidhuber,
  1997, in the form of Arjovsky, Shah and Bengio, 2016). Scored: the mean squared error on new sequences, and
  after how many updates the mean of 50 of them was below 0.01. Guessing the mean gives 1/6.
* counting: words of n times a and n times b (Gers and Schmidhuber, 2001; Weiss, Goldberg and Yahav, 2018), n up to 40
  in training. At each b the network says whether the word is complete. Scored: for how many n of 1 to 256 it makes no
  mistake ("right"), and up to which n ("score").
* vowels: japanese-vowels, as the workbench trains it. Scored: the accuracy on the test part.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anyrnn
from anyrnn.layers import Layer
from anyrnn.workbench import Settings, load
from anyrnn.workbench.doctor import machine
from anyrnn.workbench.models import Network
from anyrnn.workbench.train import train

PATH = Path(__file__).with_suffix(".json")
UPDATES = {"adding": 1500, "counting": 2000}
RATES = {"adding": (0.003, 0.01), "counting": (0.003, 0.01), "vowels": (0.005,)}
HIDDEN = {"adding": 32, "counting": 12, "vowels": 100}
BATCH, STEPS, LONGEST, LONGEST_TESTED = 32, 50, 40, 256
SOLVED = 0.01

lstm_open = partial(anyrnn.LSTM, forget_bias=1.0)


@dataclass(frozen=True)
class Contender:
    """A layer by name, and how many units it has where the LSTM has `hidden`."""

    name: str
    make: Callable[[int, int], Layer]
    wide: bool = False

    def hidden(self, task: str) -> int:
        """The number of units: that of the LSTM, or as many as take its number of parameters."""
        units, inputs = HIDDEN[task], 12 if task == "vowels" else 2
        if not self.wide:
            return units
        most = count(anyrnn.LSTM(inputs, units))
        return max(h for h in range(1, 2 * units) if count(self.make(inputs, h)) <= most)


CONTENDERS = (
    Contender("LSTM", anyrnn.LSTM),
    Contender("LSTM, forget bias 1", lstm_open),
    Contender("GRU", anyrnn.GRU),
    Contender("GRU, as many parameters", anyrnn.GRU, wide=True),
    Contender("RNN", anyrnn.RNN),
)


def count(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(weight.numel() for weight in module.parameters())


def sums(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and marks x (T, B, 2), one mark in each half, and the sum of the marked numbers (B,)."""
    numbers = torch.rand(STEPS, batch, generator=generator)
    marks = torch.zeros(STEPS, batch)
    for start in (0, STEPS // 2):
        marks[torch.randint(start, start + STEPS // 2, (batch,), generator=generator), torch.arange(batch)] = 1
    return torch.stack((numbers, marks), dim=2), (numbers * marks).sum(0)


def words(n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Words a^n b^n as x (T, B, 2); whether a word is complete after each step (T, B); and where that is asked."""
    step = torch.arange(2 * int(n.max())).unsqueeze(1)  # (T, 1)
    is_a, is_b = step < n, (step >= n) & (step < 2 * n)
    return torch.stack((is_a, is_b), dim=2).float(), (step == 2 * n - 1).float(), is_b


class Tagger(nn.Module):
    """A layer and one number made of each output."""

    def __init__(self, layer: Layer, units: int) -> None:
        super().__init__()
        self.layer, self.linear = layer, nn.Linear(units, 1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return (T, B)."""
        return self.linear(self.layer(x, lengths=lengths)[0]).squeeze(2)


def fit(model: Tagger, loss_of: Callable[[], Tensor], updates: int, rate: float) -> Iterator[float]:
    """Train by Adam with a one-cycle rate and clipped gradients; the loss of each update."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=updates, pct_start=0.1)
    for _ in range(updates):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def adding(contender: Contender, rate: float, seed: int) -> dict[str, Any]:
    """Train on sums."""
    torch.manual_seed(seed)
    model = Tagger(contender.make(2, contender.hidden("adding")), contender.hidden("adding"))
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss() -> Tensor:
        x, target = sums(BATCH, generator)
        return F.mse_loss(model(x)[-1], target)

    losses = list(fit(model, loss, UPDATES["adding"], rate))
    curve = [statistics.mean(losses[k : k + 50]) for k in range(0, len(losses), 50)]
    x, target = sums(2000, torch.Generator().manual_seed(7))
    with torch.no_grad():
        error = F.mse_loss(model(x)[-1], target).item()
    solved = next((50 * (k + 1) for k, value in enumerate(curve) if value < SOLVED), None)
    return {"score": error, "solved_after": solved, "curve": curve}


def counting(contender: Contender, rate: float, seed: int) -> dict[str, Any]:
    """Train on words."""
    torch.manual_seed(seed)
    model = Tagger(contender.make(2, contender.hidden("counting")), contender.hidden("counting"))
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss() -> Tensor:
        n = torch.randint(1, LONGEST + 1, (BATCH,), generator=generator)
        x, target, asked = words(n)
        return F.binary_cross_entropy_with_logits(model(x, lengths=2 * n)[asked], target[asked])

    losses = list(fit(model, loss, UPDATES["counting"], rate))
    right: list[bool] = []
    with torch.no_grad():
        for first in range(1, LONGEST_TESTED, 32):
            n = torch.arange(first, first + 32)
            x, target, asked = words(n)
            right += (((model(x, lengths=2 * n) > 0) == (target > 0)) | ~asked).all(0).tolist()
    reach = next((n for n, ok in enumerate(right) if not ok), len(right))
    curve = [statistics.mean(losses[k : k + 50]) for k in range(0, len(losses), 50)]
    return {"score": reach, "right": sum(right), "curve": curve}


def vowels(contender: Contender, rate: float, seed: int) -> dict[str, Any]:
    """Train on japanese-vowels."""
    settings = Settings(hidden_size=contender.hidden("vowels"), learning_rate=rate, threads=1)
    run = train(
        Network("gates", contender.name, contender.make), load("japanese-vowels", validation=0), settings, seed
    )[1]
    return {"score": run.score, "curve": [epoch.train_loss for epoch in run.history]}


TASKS = {"adding": adding, "counting": counting, "vowels": vowels}


def save(data: dict[str, Any]) -> None:
    """Write all that is known, so that nothing is lost by an interruption."""
    PATH.write_text(json.dumps(data, indent=1) + "\n")


def summary(runs: list[dict[str, Any]]) -> None:
    """Print the runs of each task, network and rate in a line."""
    for task in TASKS:
        for contender in CONTENDERS:
            for rate in RATES[task]:
                found = [r for r in runs if (r["task"], r["network"], r["rate"]) == (task, contender.name, rate)]
                if found:
                    scores = ", ".join(f"{r['score']:.3g}" for r in found)
                    print(f"{task:9s} {contender.name:24s} H={found[0]['hidden']:3d} rate {rate}: {scores}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"python": platform.python_version(), "anyrnn": anyrnn.__version__, "torch": version("torch")}
    data = json.loads(PATH.read_text()) if PATH.exists() else {"runs": []}
    data |= {"machine": machine(), "versions": versions}
    print(data["machine"], versions)
    done = {(r["task"], r["network"], r["rate"], r["seed"]) for r in data["runs"]}
    for seed in range(arguments.seeds):  # seed by seed, so that what is there at any time can be compared
        for task in arguments.tasks:
            for contender in CONTENDERS:
                for rate in RATES[task]:
                    if (task, contender.name, rate, seed) in done:
                        continue
                    start = time.process_time()
                    found = TASKS[task](contender, rate, seed)
                    hidden = contender.hidden(task)
                    run = {"task": task, "network": contender.name, "rate": rate, "seed": seed, "hidden": hidden}
                    run["parameters"] = count(contender.make(12 if task == "vowels" else 2, hidden))
                    found["curve"] = [round(value, 5) for value in found["curve"]]
                    data["runs"].append(run | found | {"seconds": round(time.process_time() - start, 1)})
                    save(data)
                    print(f"{task} {contender.name} rate {rate} seed {seed}: {found['score']:.3g}", flush=True)
    summary(data["runs"])


if __name__ == "__main__":
    main()
