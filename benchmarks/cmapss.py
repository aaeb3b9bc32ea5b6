"""Remaining life of NASA's turbofans (C-MAPSS FD001): tables of windows for the workbench, and its score on them.

    python benchmarks/cmapss.py DATA            # the folder with train_FD001.txt, test_FD001.txt and RUL_FD001.txt
    python benchmarks/cmapss.py DATA --batch-size 256 --cells lstm,gru

A window is 30 cycles of one engine; its target the cycles that are left, at most 125. To train on: all windows of the
training engines; to test on: the last window of each test engine. Published for an LSTM on these: a root mean squared
error of 16.14 (Zheng, Ristovski, Farahat and Gupta 2017) and 14.93 (arXiv:2604.27234).

It writes the two tables and then runs what this line does:

    anyrnn compare FD001_train.parquet --test FD001_test.parquet --id window --time cycle --target remaining --group engine
"""  # noqa: E501 - a command is one line

import argparse
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyrnn.workbench import Settings, compare, load
from anyrnn.workbench.progress import Progress

STEPS, MOST = 30, 125
COLUMNS = ("setting_1", "setting_2", "setting_3", *(f"sensor_{k}" for k in range(1, 22)))
# Of the settings that are left open by default.
KINDS = {"epochs": int, "threads": int, "patience": int, "metric": str, "clip_gradient": float}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tables", type=Path, help="where to write the tables, to keep them")
    parser.add_argument("--cells", default="lstm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validation", type=float, default=0.2)
    for field in fields(Settings):
        option, kind = f"--{field.name.replace('_', '-')}", KINDS.get(field.name, type(field.default))
        if kind is bool:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=kind, default=field.default)
    given = parser.parse_args()
    settings = Settings(**{field.name: getattr(given, field.name) for field in fields(Settings)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.tables or Path(temporary)
        train, test = write_tables(given.data, folder)
        data = load(
            train,
            test=test,
            id_column="window",
            time_column="cycle",
            target_column="remaining",
            group_column="engine",
            validation=given.validation,
        )
    print(f"Split: {data.split}", *data.notes, sep="\n", flush=True)
    start = time.perf_counter()
    results = compare(data, given.cells.split(","), seeds=given.seeds, settings=settings, on_epoch=show)
    print(results)
    for entry in results.entries:
        for run in entry.runs:
            print(
                f"{entry.model.network.title}, seed {run.seed}: rmse {run.score:.2f}, the weights of epoch {run.epoch}"
            )
    print(results.verdict, *results.remarks, sep="\n")
    print(f"{time.perf_counter() - start:.0f} s in all")


def show(now: Progress) -> None:
    """Print a point of a learning curve."""
    point = now.epoch
    scores = (point.train_loss, point.validation_score, point.test_score)
    words = " ".join("-" if score is None else f"{score:.4g}" for score in scores)
    print(
        f"{now.network.name} seed {now.seed} epoch {point.epoch}: train loss, validation and test rmse {words}",
        flush=True,
    )


def write_tables(data: Path, folder: Path) -> tuple[Path, Path]:
    """Write the training and the test windows as long tables; return their paths."""
    life = np.loadtxt(data / "RUL_FD001.txt")  # of each test engine, after its last cycle
    parts = {name: np.loadtxt(data / f"{name}_FD001.txt") for name in ("train", "test")}
    paths = {name: folder / f"FD001_{name}.parquet" for name in parts}
    for name, rows in parts.items():
        windows: list[NDArray[np.float64]] = []
        for engine in np.unique(rows[:, 0]):
            cycles = rows[rows[:, 0] == engine]  # (cycles of the engine, 26)
            after = 0.0 if name == "train" else life[int(engine) - 1]
            ends = range(STEPS, len(cycles) + 1) if name == "train" else [len(cycles)]
            windows += [window(cycles, end, len(cycles) - end + after) for end in ends]
        table = pl.DataFrame(np.concatenate(windows), schema=["end", "remaining", "engine", "cycle", *COLUMNS])
        whole = table.with_columns(pl.col("end", "engine").cast(pl.Int64))
        # The first training engine and the first test engine are two.
        named = whole.with_columns(engine=pl.format("{} {}", pl.lit(name), "engine"))
        named = named.with_columns(window=pl.format("{}_{}", "engine", "end")).drop("end")
        named.write_parquet(paths[name])
    return paths["train"], paths["test"]


def window(cycles: NDArray[np.float64], end: int, remaining: float) -> NDArray[np.float64]:
    """The rows of one window, the cycles up to the `end`-th, behind its number and its target: (30, 28)."""
    rows = cycles[end - STEPS : end]
    return np.column_stack((np.full(STEPS, end), np.full(STEPS, min(remaining, MOST)), rows))


if __name__ == "__main__":
    main()
