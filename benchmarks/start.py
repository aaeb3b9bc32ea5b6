"""What it takes to begin: importing anyrnn, and the first training step of a cell. Fresh processes, medians of several.

`python benchmarks/start.py`. The disk cache is in a temporary folder of its own, empty for a cold start. Only batches
too small to take time themselves are run, but at the end, where the shape changes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent

#: Seconds at most: (row, column) to target.
TARGETS = {
    ("import anyrnn, after import torch", "cold"): 0.3,
    ("first cell of a process", "cold"): 1.0,
    ("first cell of a process", "from the disk cache"): 0.4,
    ("a new cell in a running process", "cold"): 0.6,
}
FIRST, LATER = ("LSTM", "peephole LSTM", "LayerNorm LSTM"), ("GRU", "reset-before GRU", "notebook LSTM")


def child(name: str) -> dict[str, float]:
    """Import, train the first cell for a step, then others, then the first one on other shapes."""
    start = time.perf_counter()
    import torch  # noqa: PLC0415 - this is what is measured

    imported = time.perf_counter()
    import anyrnn  # noqa: PLC0415

    found = {"import torch": imported - start, "import anyrnn, after import torch": time.perf_counter() - imported}
    import cells  # noqa: PLC0415

    torch.set_num_threads(1)
    # PyTorch's own first backward pass is not ours.
    w = torch.ones(8, 8, requires_grad=True)
    torch.autograd.grad((w @ w).tanh().sum(), w)
    makers: dict[str, Callable[[int, int], torch.nn.Module]] = {
        "LSTM": anyrnn.LSTM,
        "GRU": anyrnn.GRU,
        "peephole LSTM": anyrnn.PeepholeLSTM,
        "reset-before GRU": lambda i, h: anyrnn.GRU(i, h, reset_after=False),
        "LayerNorm LSTM": lambda i, h: anyrnn.Recurrent(cells.LayerNormLSTM(i, h), input_size=i),
        "notebook LSTM": lambda i, h: anyrnn.Recurrent(cells.NotebookLSTM(i, h), input_size=i),
    }

    def step(layer: torch.nn.Module, T: int, B: int, lengths: list[int] | None = None) -> float:
        x = torch.ones(T, B, 16, requires_grad=True)
        start = time.perf_counter()
        output, _ = layer(x, lengths=lengths)
        torch.autograd.grad(output.sum(), [x, *layer.parameters()])
        return time.perf_counter() - start

    layer = makers[name](16, 32)
    found[f"first cell of a process: {name}"] = step(layer, 5, 2)
    for other in LATER:
        found[f"a new cell in a running process: {other}"] = step(makers[other](16, 32), 5, 2)
    found["the first cell again, T=50 for 5"] = step(layer, 50, 2)
    found["the first cell again, B=9 for 2"] = step(layer, 5, 9)
    found["the first cell again, with lengths"] = step(layer, 5, 3, [1, 5, 2])
    found["the first cell again, as before"] = step(layer, 5, 2)
    return found


def in_process(name: str, cache: str) -> dict[str, float]:
    environment = {**os.environ, "ANYRNN_CACHE": cache, "ANYRNN_ENGINE": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", name]
    found: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes of each kind (default: 5)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        json.dump(child(arguments.child), sys.stdout)
        return
    import record  # noqa: PLC0415 - a child has to start with nothing but Python

    seconds: dict[str, dict[str, list[float]]] = {"cold": {}, "from the disk cache": {}}
    for _ in range(arguments.repeats):
        for name in FIRST:
            with tempfile.TemporaryDirectory() as cache:
                for found in seconds.values():  # the second finds what the first has left
                    for what, value in in_process(name, cache).items():
                        found.setdefault(what, []).append(value)
    medians = {column: {what: median(values) for what, values in found.items()} for column, found in seconds.items()}
    record.write("start", {"repeats": arguments.repeats, "seconds": medians})


def text(data: dict[str, Any]) -> Iterator[str]:
    """Make the section of results.md."""
    from record import Claim, claims_table, verdict  # noqa: PLC0415

    claims = []
    for column, found in data["seconds"].items():
        for name, value in found.items():
            what, _, cell = name.partition(": ")
            claims.append(Claim(what, cell, column, value, TARGETS.get((what, column)), at_most=True, unit=" s"))
    yield "## Start"
    yield f"`python benchmarks/start.py --repeats {data['repeats']}`: medians. {verdict(claims)}"
    yield claims_table(claims, ("seconds", "cell"))


if __name__ == "__main__":
    main()
