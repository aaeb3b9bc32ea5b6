"""Peak memory of a training step, beside torch.nn's. Fresh processes, medians of several; Linux only.

`python benchmarks/memory.py`. What counts is resident memory: the highest during a forward and backward pass, less that
just before. The layer, x and the gradient of the output are there by then, and a step on a tiny batch has loaded and
compiled whatever has to be. The C library is told to give freed memory back at once, and the kernel to forget the
highest mark so far, so that nothing from before hides what the step takes: buffers of oneDNN, ours, of every thread.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

LAYERS = ("RNN", "LSTM", "GRU")
SHAPES = ((8, 1000, 32, 64), (32, 100, 64, 128), (32, 100, 256, 256), (64, 50, 512, 512))  # B, T, I, H
THREADS = 2


def child(package: str, name: str, shape: list[int]) -> int:
    """Return how many bytes a training step takes at its peak."""
    import torch  # noqa: PLC0415 - the parent needs none of it

    import anyrnn  # noqa: PLC0415

    torch.set_num_threads(THREADS)
    B, T, I, H = shape
    layer = getattr({"anyrnn": anyrnn, "torch.nn": torch.nn}[package], name)(I, H)
    parameters = list(layer.parameters())
    x, upstream = torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)
    small = torch.randn(2, 2, I, requires_grad=True)
    torch.autograd.grad(layer(small)[0], [small, *parameters], upstream[:2, :2])
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    output = layer(x)[0]
    gradients = torch.autograd.grad(output, [x, *parameters], upstream)
    peak = status("VmHWM")
    del output, gradients
    return peak - before


def status(key: str) -> int:
    """Read a number of bytes from the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def in_process(package: str, name: str, shape: tuple[int, ...]) -> int:
    give_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **give_back, "OMP_NUM_THREADS": str(THREADS), "ANYRNN_ENGINE": "auto"}
    command = [sys.executable, __file__, "--child", package, name, *map(str, shape)]
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each kind (default: 3)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        package, name, *shape = arguments.child
        print(child(package, name, list(map(int, shape))))
        return
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("memory.py: it reads /proc, as Linux has it")
    import record  # noqa: PLC0415 - a child has to start with nothing but Python

    rows = [
        {
            "layer": name, "shape": list(shape),
            **{p: median(in_process(p, name, shape) for _ in range(arguments.repeats)) for p in ("anyrnn", "torch.nn")},
        }
        for name in LAYERS for shape in SHAPES
    ]  # fmt: skip
    record.write("memory", {"repeats": arguments.repeats, "threads": THREADS, "rows": rows})


def text(data: dict[str, Any]) -> Iterator[str]:
    """Make the section of results.md."""
    from record import Claim, claims_table, verdict  # noqa: PLC0415

    claims = []
    for row in data["rows"]:
        at = ",".join(map(str, row["shape"]))
        claims += [Claim(row["layer"], at, f"{p}, MiB", row[p] / 2**20, None) for p in ("anyrnn", "torch.nn")]
        limit = 1.0 if row["layer"] == "LSTM" else None  # the target is one of the LSTM
        claims.append(
            Claim(row["layer"], at, "anyrnn / torch.nn", row["anyrnn"] / row["torch.nn"], limit, at_most=True)
        )
    yield "## Memory"
    yield (
        f"`python benchmarks/memory.py --repeats {data['repeats']}`, {data['threads']} threads: what a training step "
        f"adds at its peak. {verdict(claims)}"
    )
    yield claims_table(claims, ("", "B,T,I,H"))


if __name__ == "__main__":
    main()
