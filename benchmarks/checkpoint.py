"""What `checkpoint_every` saves and costs: memory and time of a training step over a long sequence, with and without.

`python benchmarks/checkpoint.py`. Memory is resident memory, as in memory.py: the highest during a forward and backward
pass in a fresh process, less that just before. x and the gradient of the output are there by then. Of what the step
takes, the output and the gradient of x are the caller's, of whatever a layer keeps: they are told apart, and what is
compared is the rest. Time is that of the same step in one process, with and without in turns, medians. Whether the
gradients have the same bits is checked as well.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

THREADS = 2
T, EVERY = 10_000, 100
SHAPES = ((1, 32, 64), (8, 32, 64), (8, 64, 128))  # B, I, H
LAYERS = ("LSTM", "GRU", "PeepholeLSTM")


def step(name: str, shape: list[int]):
    """A function that runs a training step, with states kept every so many steps; and the bytes of its results."""
    import torch  # noqa: PLC0415 - the parent needs none of it

    import anyrnn  # noqa: PLC0415

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    B, I, H = shape
    layer = getattr(anyrnn, name)(I, H)
    x, upstream = torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)
    tensors = [x, *layer.parameters()]

    def run(every: int | None, steps: int = T):
        output = layer(x[:steps], checkpoint_every=every)[0]
        return [output.detach(), *torch.autograd.grad(output, tensors, upstream[:steps])]

    return run, 4 * T * B * (I + H)


def memory_child(name: str, shape: list[int], every: int | None) -> int:
    """Return how many bytes a training step takes at its peak, without its results."""
    from memory import status  # noqa: PLC0415

    run, results = step(name, shape)
    run(every, steps=5 * EVERY)  # loads and compiles what has to be, oneDNN's product of many rows as well
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    kept = run(every)
    peak = status("VmHWM")
    del kept
    return peak - before - results


def time_child(name: str, shape: list[int], repeats: int) -> tuple[float, float, bool]:
    """Return the seconds of a step without and with, in turns, and whether all results have the same bits."""
    import torch  # noqa: PLC0415

    run, _ = step(name, shape)
    same = all(torch.equal(a, b) for a, b in zip(run(None), run(EVERY), strict=True))
    times: dict[int | None, list[float]] = {None: [], EVERY: []}
    for turn in range(repeats):
        for every in (None, EVERY) if turn % 2 else (EVERY, None):
            start = time.perf_counter()
            run(every)
            times[every].append(time.perf_counter() - start)
    return median(times[None]), median(times[EVERY]), same


def in_process(what: str, *arguments: object) -> list[str]:
    give_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    environment = {
        **os.environ,
        **(give_back if what == "memory" else {}),
        "OMP_NUM_THREADS": str(THREADS),
        "ANYRNN_ENGINE": "auto",
    }
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each kind (default: 5)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, number, name, *shape = arguments.child
        sizes = list(map(int, shape))
        if what == "memory":
            print(memory_child(name, sizes, int(number) or None))
        else:
            print(*time_child(name, sizes, int(number)))
        return
    print(f"T={T:,}, checkpoint_every={EVERY}, {THREADS} threads; MiB beside the output and the gradient of x, and ms")
    print(f"{'':<14}{'B,I,H':<10}{'MiB':>8}{'with':>8}{'':>8}{'ms':>9}{'with':>8}{'':>7}  same bits")
    for name in LAYERS:
        for shape in SHAPES:
            whole, pieces = (int(in_process("memory", every, name, *shape)[0]) / 2**20 for every in (0, EVERY))
            plain, checked, same = in_process("time", arguments.repeats, name, *shape)
            ms = [float(seconds) * 1e3 for seconds in (plain, checked)]
            print(
                f"{name:<14}{','.join(map(str, shape)):<10}{whole:>8.1f}{pieces:>8.1f}{whole / pieces:>7.1f}x"
                f"{ms[0]:>9.1f}{ms[1]:>8.1f}{ms[1] / ms[0]:>6.2f}x  {same}"
            )


if __name__ == "__main__":
    main()
