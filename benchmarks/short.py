"""Short sequences beside torch.nn: where machine code is faster than PyTorch's kernels, and that "auto" knows.

A fresh process for each number of threads and each set of vector instructions times `nn.RNN`, `nn.LSTM` and `nn.GRU`,
anyrnn's layers as they are, and these on the engine "cpu". The rule in `anyrnn/engines/short.py` is written from the
last of these numbers; `python benchmarks/short.py --rule` prints them as the greatest T at which torch.nn is faster.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import anyrnn
import record
from anyrnn.workbench import bench
from record import Claim, claims_table, table, verdict

Row = dict[str, Any]  # level, threads, kind, H, B, T, call, and seconds of "torch.nn", "anyrnn", "cpu"

KINDS, SIZES, BATCHES = ("RNN", "LSTM", "GRU"), (32, 64, 128, 256, 512), (1, 8, 64)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
LIMIT = 0.95  # of torch.nn's speed, at least


def forward(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def training(layer: nn.Module, x: Tensor) -> None:
    for parameter in layer.parameters():
        parameter.grad = None
    layer(x)[0].sum().backward()


def on_cpu(call: Callable[[], None]) -> None:
    with anyrnn.engine("cpu"):
        call()


def measure(level: str, threads: int, kinds: list[str], seconds: float, rounds: int, far: float) -> Iterator[Row]:
    """Measure in this process. Of longer sequences than one where "cpu" is `far` times as fast nothing is learnt."""
    with bench.using(threads):
        for kind in kinds:
            for H in SIZES:
                twin, layer = getattr(nn, kind)(H, H), getattr(anyrnn, kind)(H, H)
                layer.load_state_dict(twin.state_dict())
                for B in BATCHES:
                    for call in (forward, training):
                        for T in STEPS:
                            x = torch.randn(T, B, H)
                            ours = partial(call, layer, x)
                            calls = {"torch.nn": partial(call, twin, x), "anyrnn": ours, "cpu": partial(on_cpu, ours)}
                            for each in calls.values():
                                each()
                            # Both sides run on one pool of threads, which has not to come to rest between turns.
                            timing = bench.alternate(calls, seconds, 1, rounds)
                            found = {name: t.median for name, t in timing.items()}
                            where = {"kind": kind, "H": H, "B": B, "T": T, "call": call.__name__}
                            yield {"level": level, "threads": threads, **where, **found}
                            if found["torch.nn"] > far * found["cpu"]:
                                break


def in_process(level: str, threads: int, arguments: argparse.Namespace) -> list[Row]:
    environment = {**os.environ, **record.LEVELS[level], "OMP_NUM_THREADS": str(threads), "ANYRNN_ENGINE": "auto"}
    command = [sys.executable, __file__, "--child", level, str(threads), "--seconds", str(arguments.seconds)]
    command += ["--rounds", str(arguments.rounds), "--far", str(arguments.far), "--kinds", *arguments.kinds]
    found: list[Row] = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    return found


# ---- What the numbers say ----


def claims(rows: list[Row]) -> Iterator[Claim]:
    """Ours beside torch.nn: geometric mean over all sizes and lengths, and the worst."""
    for level, threads in dict.fromkeys((r["level"], r["threads"]) for r in rows):
        for kind in KINDS:
            for call in ("forward", "training"):
                key = level, threads, kind, call
                found = {
                    f"T={r['T']}, B={r['B']}, H={r['H']}": r["torch.nn"] / r["anyrnn"]
                    for r in rows
                    if (r["level"], r["threads"], r["kind"], r["call"]) == key
                }
                if found:
                    what, where = f"{kind}, vector instructions: {level}", str(threads)
                    worst = min(found, key=found.__getitem__)
                    mean = math.exp(math.fsum(map(math.log, found.values())) / len(found))
                    yield Claim(what, where, f"{call}: mean", mean, None, unit="x")
                    yield Claim(what, where, f"{call}: worst", found[worst], LIMIT, unit="x", at=worst)


def greatest(rows: list[Row], least: float = 1.0) -> str:
    """The greatest T at which torch.nn is faster than the engine "cpu": what the rule is written from."""
    found: dict[tuple[str, ...], dict[str, int]] = {}
    columns = [f"B={B}, H={H}" for B in BATCHES for H in SIZES]
    for r in rows:
        line = found.setdefault((r["kind"], r["call"], r["level"], str(r["threads"])), dict.fromkeys(columns, 0))
        if r["cpu"] > least * r["torch.nn"]:
            line[f"B={r['B']}, H={r['H']}"] = r["T"]
    lines = [(*key, *(str(line[c]) for c in columns)) for key, line in found.items()]
    return table(("", "", "vectors", "threads", *columns), lines)


def text(data: dict[str, Any]) -> Iterator[str]:
    """Make the section of results.md."""
    found = list(claims(data["rows"]))
    yield "## Short sequences"
    yield f"`python benchmarks/short.py` took {data['took']} s. {verdict(found)}"
    yield "### Times as long as anyrnn's layer: torch.nn, T in 1..16"
    yield claims_table(found, ("", "threads"))
    yield "### The greatest T at which torch.nn is faster than machine code"
    yield greatest(data["rows"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="a run for each (default: 1 2)")
    parser.add_argument(
        "--levels", nargs="+", default=list(record.LEVELS), choices=record.LEVELS, help="a run for each"
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seconds", type=float, default=0.03, help="for each contender and kind of call, about")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender, at least 2")
    parser.add_argument("--far", type=float, default=1.3, help="longer sequences are left out from there on")
    parser.add_argument("--rule", action="store_true", help="print the numbers that the rule is written from, only")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options = arguments.kinds, arguments.seconds, arguments.rounds, arguments.far
    if arguments.child is not None:
        level, threads = arguments.child
        json.dump(list(measure(level, int(threads), *options)), sys.stdout)
        return
    start = time.monotonic()
    runs = [(level, threads) for level in arguments.levels for threads in arguments.threads]
    rows = [row for level, threads in runs for row in in_process(level, threads, arguments)]
    if arguments.rule:
        print(greatest(rows))
        print(claims_table(claims(rows), ("", "threads")))
        return
    record.write("short", {"took": round(time.monotonic() - start), "rows": rows})


if __name__ == "__main__":
    main()
