"""A table larger than a share of memory, by `anyrnn fit` itself: a million sequences of 50 steps and 10 features.

`python benchmarks/large.py` in a folder with 8 GB of room (`--folder`; TMPDIR, or /var/tmp, needs 2 GB). The table is
made, and `anyrnn fit` reads it in pieces, trains an epoch, scores, and writes its report, in a process of its own. What
is printed: the highest resident memory of that process, the share of the training time that it waited for sequences,
as the run says, and how long all took.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

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


def fit(path: Path, batch_size: int, *options: str) -> None:
    """Train by the command line, and say what it took."""
    run = path.with_name("run")
    asked = f"--id id --target side --cell gru --hidden 64 --epochs 1 --threads 1 --batch-size {batch_size}"
    start = time.perf_counter()
    command = [sys.executable, "-m", "anyrnn", "fit", str(path), *asked.split(), "--stream", "always", *options]
    subprocess.run([*command, "--out", str(run)], check=True)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    (trained,) = json.loads((run / "results.json").read_text())["models"][0]["runs"]
    print(f"{path.stat().st_size / 1e9:.2f} GB of Parquet; all of it took {took:.0f} s")
    print(f"training: {trained['seconds']:.0f} s, {100 * trained['loading'] / trained['seconds']:.1f} % of it waiting")
    print(f"highest resident memory: {peak:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where the table and the run go; removed at the end")
    arguments, options = parser.parse_known_args()  # the others are for anyrnn fit
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder, "large.parquet")
        start = time.perf_counter()
        make(path, arguments.sequences)
        print(f"{arguments.sequences:,} sequences made in {time.perf_counter() - start:.0f} s", flush=True)
        fit(path, arguments.batch_size, *options)


if __name__ == "__main__":
    main()
