"""A table larger than memory: a million sequences of 50 steps and 10 features, made, spooled, and learned from.

`python benchmarks/large.py` in a folder with 8 GB of room (`--folder`). It prints the highest resident memory of the
process that spools and trains, and the share of the training time that it waited for batches. An epoch of a million
sequences is long, so the loop ends after `--updates`; each update's batch comes from all over the file all the same.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

STEPS, FEATURES, PIECE = 50, 10, 20_000


def make(path: Path, count: int) -> None:
    """Write the table: the class is the sign of the mean of a feature. Lengths are 30 to 70, 50 on average."""
    draw = np.random.default_rng(0)
    parts = path.with_suffix("")
    parts.mkdir()
    for first in range(0, count, PIECE):
        ids = np.arange(first, min(first + PIECE, count))
        rows = np.repeat(np.arange(len(ids)), draw.integers(STEPS - 20, STEPS + 21, len(ids)))
        side = draw.integers(0, 2, len(ids))
        x = draw.normal(size=(len(rows), FEATURES)).astype(np.float32)
        x[:, 0] += np.where(side, 0.2, -0.2)[rows]
        columns = {"id": ids[rows], **{f"x{k}": x[:, k] for k in range(FEATURES)}, "side": side[rows]}
        pl.DataFrame(columns).write_parquet(parts / f"{first:09}.parquet")
    pl.scan_parquet(sorted(parts.glob("*.parquet"))).sink_parquet(path, row_group_size=1 << 18)
    for part in parts.glob("*"):
        part.unlink()
    parts.rmdir()


def learn(path: Path, batch_size: int, updates: int) -> None:
    """Spool and train, in a process of its own, whose memory is that of nothing else."""
    import anyrnn  # noqa: PLC0415 - the process that makes the table needs none of it
    from anyrnn.workbench.large import spool  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    data = spool(path, path.parent, id_column="id", target_column="side")
    print(f"{data!r}, {path.stat().st_size / 1e9:.2f} GB of Parquet, spooled in {time.perf_counter() - start:.0f} s")
    print(f"highest resident memory so far: {highest():.2f} GB")
    model = anyrnn.ManyToOne(anyrnn.GRU(data.scaler.width, 64), len(data.classes or (0,)))
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    waited = padding = 0.0
    right = seen = 0
    batches = data.batches(batch_size, seed=0)
    start = mark = time.perf_counter()
    for update, (x, lengths, y) in enumerate(batches, start=1):
        waited += time.perf_counter() - mark
        padding += 1 - lengths.sum().item() / (x.shape[0] * x.shape[1])
        logits = model(x, lengths=lengths)[0]
        loss = nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right, seen = right + int((logits.argmax(1) == y).sum()), seen + len(y)
        if update == updates:
            break
        mark = time.perf_counter()
    total = time.perf_counter() - start
    batches.close()
    epoch = total / update * np.ceil(len(data) / batch_size)
    print(f"{update} updates of {batch_size}, GRU of 64 units, in {total:.1f} s: an epoch takes {epoch / 60:.1f} min")
    print(f"waiting for batches: {100 * waited / total:.1f} % of the time")
    print(f"padding: {100 * padding / update:.1f} % of the steps")
    print(f"right: {100 * right / seen:.1f} % of the sequences so far")
    print(f"highest resident memory: {highest():.2f} GB")


def highest() -> float:
    """The highest resident memory of this process, GB, the pages of mapped files among it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--folder", type=Path, help="where the table and the spooled steps go; removed at the end")
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.learn is not None:
        learn(arguments.learn, arguments.batch_size, arguments.updates)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder, "large.parquet")
        start = time.perf_counter()
        make(path, arguments.sequences)
        print(f"{arguments.sequences:,} sequences made in {time.perf_counter() - start:.0f} s", flush=True)
        command = [sys.executable, __file__, "--learn", str(path), "--batch-size", str(arguments.batch_size)]
        subprocess.run([*command, "--updates", str(arguments.updates)], check=True)


if __name__ == "__main__":
    main()
