"""What grows how when the workbench trains a network: with T, B, H, sequences, processes; and a checkpoint's cost.

`python benchmarks/scale.py`, some minutes. Each row of a table is a fresh process that trains an LSTM for three epochs;
an epoch is the faster of the last two. Time is that of the processor, one thread, so that a busy machine changes it
little; of several processes it is the wall clock's. Memory is the highest resident memory of the process, less that
before the data were made.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

BASE = {"T": 100, "B": 32, "H": 64, "sequences": 512}
FEATURES, EPOCHS = 8, 3


def data(T: int, sequences: int):
    """Random sequences of half to all of T steps."""
    import torch  # noqa: PLC0415 - the parent needs none of it

    from anyrnn.workbench import Dataset, Sequences  # noqa: PLC0415

    draw = torch.Generator().manual_seed(0)

    def part(count: int) -> Sequences:
        x = tuple(torch.randn(T - k % (T // 2), FEATURES, generator=draw) for k in range(count))
        return Sequences(x, torch.arange(count) % 2, tuple(map(str, range(count))))

    names = tuple(f"f{k}" for k in range(FEATURES))
    return Dataset("random", names, ("a", "b"), "y", part(sequences), part(8), "made")


def one(T: int, B: int, H: int, sequences: int) -> dict[str, float]:
    """Train, and measure."""
    from anyrnn.workbench import Settings  # noqa: PLC0415
    from anyrnn.workbench.models import NETWORKS  # noqa: PLC0415
    from anyrnn.workbench.processes import joined  # noqa: PLC0415
    from anyrnn.workbench.train import train  # noqa: PLC0415

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = data(T, sequences)
    settings = Settings(hidden_size=H, batch_size=B, epochs=EPOCHS, threads=1)
    cpu, wall = [], []

    def tell(_: object) -> None:
        cpu.append(time.process_time())
        wall.append(time.perf_counter())

    with joined():
        train(NETWORKS["lstm"], made, settings, 0, tell)
    epochs = {name: min(b - a for a, b in pairwise(t)) for name, t in (("cpu", cpu), ("wall", wall))}
    return {**epochs, "MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def checkpoint(H: int) -> dict[str, float]:
    """Write the checkpoint of a training run, and measure."""
    import torch  # noqa: PLC0415

    from anyrnn.workbench import Settings  # noqa: PLC0415
    from anyrnn.workbench.checkpoint import Checkpoints  # noqa: PLC0415
    from anyrnn.workbench.models import NETWORKS  # noqa: PLC0415
    from anyrnn.workbench.train import SequenceLesson  # noqa: PLC0415

    torch.manual_seed(0)
    made = data(10, 64)
    settings = Settings(hidden_size=H, epochs=EPOCHS, threads=1).resolved(made)
    training = SequenceLesson(made, settings).training(NETWORKS["lstm"], 0)
    training._epoch()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoints, times = Checkpoints(Path(folder), {}), []
        for _ in range(9):
            start = time.perf_counter()
            checkpoints.save(training._state())
            times.append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"ms": sorted(times)[4] * 1e3, "MB": size / 1e6}


def child(*arguments: object, processes: int = 1) -> list[dict[str, float]]:
    """What a fresh process measures, or several."""
    start = [sys.executable, __file__]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        start = [sys.executable, *torchrun, __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *map(str, arguments)], capture_output=True, text=True, check=True, env=environment, timeout=600
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def table(head: str, rows: Iterator[tuple[object, ...]]) -> None:
    print(f"\n| {head} |\n|{' --- |' * (head.count('|') + 1)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def sizes() -> Iterator[tuple[object, ...]]:
    for changed in ({}, *({name: 4 * BASE[name]} for name in BASE)):
        size = {**BASE, **changed}
        (found,) = child("--one", *size.values())
        yield (*size.values(), f"{found['cpu']:.2f}", f"{found['MB']:.0f}")


def shared() -> Iterator[tuple[object, ...]]:
    for processes in (1, 2):
        size = 200, 64 // processes, 256, 512
        found = child("--one", *size, processes=processes)
        wall, cpu, memory = (max(each[name] for each in found) for name in ("wall", "cpu", "MB"))
        yield processes, size[1], f"{wall:.2f}", f"{cpu:.2f}", f"{memory:.0f}"


def checkpoints() -> Iterator[tuple[object, ...]]:
    for H in (64, 256, 1024):
        (found,) = child("--checkpoint", H)
        yield H, f"{found['ms']:.0f}", f"{found['MB']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, type=int, help="T B H sequences, in this process")
    parser.add_argument("--checkpoint", type=int, help="H, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    if given.checkpoint:
        print(json.dumps(checkpoint(given.checkpoint)))
        return
    table("T | B | H | sequences | seconds an epoch | MB", sizes())
    table("processes | batch of each | seconds an epoch | of the processor, each | MB, each", shared())
    table("H | a checkpoint, ms | MB", checkpoints())


if __name__ == "__main__":
    main()
