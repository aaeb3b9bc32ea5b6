"""Speed of the layers beside other ways to compute them: `make bench`, or `python benchmarks/layers.py --help`.

A fresh process for each number of threads measures one shape after the other. On each shape all contenders take turns,
forward and then forward with backward; `anyrnn.workbench.bench.alternate` is the clock.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import anyrnn
import cells
import record
from anyrnn.layers import Layer
from anyrnn.workbench import bench, peers
from anyrnn.workbench.peers import Arrange, Contender, Problem

Shape = tuple[int, int, int, int]  # B, T, I, H
Row = dict[str, Any]  # level, case, B, T, I, H, steps, threads, kind, cell, by, first, and a bench.Timing

SHAPES: tuple[Shape, ...] = (
    (1, 100, 16, 32),
    (1, 100, 64, 128),
    (8, 1000, 32, 64),
    (32, 100, 16, 32),
    (32, 100, 64, 128),
    (32, 100, 256, 256),
    (64, 50, 512, 512),
    (32, 20, 1024, 1024),
    (256, 50, 64, 64),
)
SHORT: tuple[Shape, ...] = ((1, 5, 16, 32), (32, 5, 64, 128), (32, 5, 256, 256))
PRODUCT_SHAPE: Shape = (32, 100, 256, 256)  # where the rate of training is compared with that of a matrix product
COMPILE_SHAPE: Shape = (32, 100, 64, 128)  # torch.compile of a loop takes minutes on each


def contenders(shape: Shape, problem: Problem, threads: int, compile_loops: bool) -> list[list[Contender]]:
    """Make a group for each network: anyrnn first, then its peers. Their names are "network | by"."""
    _, _, I, H = shape
    ragged = problem.lengths is not None
    torch.manual_seed(0)
    groups = []
    for name in ("LSTM", "GRU") if ragged else ("RNN", "LSTM", "GRU"):
        layer, twin = getattr(anyrnn, name)(I, H), getattr(nn, name)(I, H)
        group = [peers.ours(layer, problem, f"{name} | anyrnn")]
        if ragged:
            group.append(peers.torch_layer(twin, layer, problem, f"{name} | torch.nn, packed"))
            group.append(peers.contender(f"{name} | torch.nn, padded", twin, problem, partial(padded, problem=problem)))
        else:
            group.append(peers.torch_layer(twin, layer, problem, f"{name} | torch.nn"))
            if name != "RNN" and find_spec("jax"):
                group.append(peers.xla_scan(name.lower(), layer, problem, threads, f"{name} | XLA scan"))
            if name != "RNN" and find_spec("onnx") and find_spec("onnxruntime"):
                group.append(peers.onnx_runtime(name.lower(), layer, problem, threads, f"{name} | ONNX Runtime"))
        groups.append(group)
    if not ragged:
        groups += [own_cell(name, problem, H, compile_loops and shape == COMPILE_SHAPE) for name in OWN]
    return groups


def padded(module: nn.Module, problem: Problem) -> peers.Run:
    """Let torch.nn compute the padding too, then mask the output and look up the last valid h: no packing."""
    lengths = problem.lengths
    assert lengths is not None
    last, rows = lengths - 1, torch.arange(len(lengths))

    def run(x: Tensor) -> tuple[Any, ...]:
        output, _ = module(x)
        return output * peers.valid_steps(lengths, len(x)), output[last, rows]

    return run


def own_cell(name: str, problem: Problem, H: int, compile_loop: bool) -> list[Contender]:
    """Make the group of a cell that PyTorch has no kernel for: our layer, and the same cell in a loop."""
    make, adopt = OWN[name]
    layers = 2 if name.endswith("2 layers") else 1
    by_hand = anyrnn.Recurrent(lambda size: make(size, H), input_size=problem.x.shape[2], num_layers=layers)
    layer, arrange = (by_hand, list) if adopt is None else adopt(by_hand.cell())
    group = [
        peers.ours(layer, problem, f"{name} | anyrnn"),
        peers.python_loop(by_hand, problem, f"{name} | Python loop", arrange),
    ]
    if compile_loop:
        group.append(peers.compiled_loop(by_hand, problem, f"{name} | torch.compile of the loop", arrange))
    return group


def adopt_peephole(cell: cells.PeepholeLSTM) -> tuple[Layer, Arrange]:
    """Give anyrnn's layer the weights of the cell, and say how they correspond."""

    def arrange(tensors: list[Tensor]) -> list[Tensor]:
        p_i, p_f, p_o, W, b, U = tensors
        return [W, U, b, torch.cat((p_i, p_f, p_o))]

    layer = anyrnn.PeepholeLSTM(cell.input.in_features, cell.hidden_size)
    fill(layer, arrange(list(cell.parameters())))
    return layer, arrange


def adopt_reset_before(cell: cells.ResetBeforeGRU) -> tuple[Layer, Arrange]:
    """Do the same for the GRU, whose layer has a second bias: it is 0, and its gradient that of the first."""

    def arrange(tensors: list[Tensor]) -> list[Tensor]:
        W, b, U_rz, U_n = tensors
        return [W, torch.cat((U_rz, U_n)), b, b]

    layer = anyrnn.GRU(cell.input.in_features, cell.hidden_size, reset_after=False)
    fill(layer, arrange(list(cell.parameters())))
    nn.init.zeros_(layer.get_parameter("bias_hh_l0"))
    return layer, arrange


def fill(layer: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.copy_(value)


#: The cells written by hand; and anyrnn's own layer for two of them, where the others are run by `anyrnn.Recurrent`.
OWN: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[Any], tuple[Layer, Arrange]] | None]] = {
    "peephole LSTM": (cells.PeepholeLSTM, adopt_peephole),
    "LayerNorm LSTM": (cells.LayerNormLSTM, None),
    "reset-before GRU": (cells.ResetBeforeGRU, adopt_reset_before),
    "notebook LSTM": (cells.NotebookLSTM, None),
    "concat LSTM": (cells.ConcatLSTM, None),
    "concat LSTM, 2 layers": (cells.ConcatLSTM, None),
}


def products(shape: Shape) -> list[list[Contender]]:
    """Make the matrix products that training is compared with: one of the layer's own size, and a large square one."""
    B, T, I, H = shape
    groups = []
    for rows, inner, columns in ((T * B, I, 4 * H), (1024, 1024, 1024)):
        x, w, b = torch.randn(rows, inner), torch.randn(columns, inner), torch.randn(columns)
        packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
        for by, call in {
            "oneDNN": partial(torch.ops.mkldnn._linear_pointwise, x, w, b, "none", [], ""),
            "oneDNN, weights packed before": partial(torch.ops.mkldnn._linear_pointwise, x, packed, b, "none", [], ""),
            "torch.addmm": partial(torch.addmm, b, x, w.t()),
        }.items():
            # It stands among the calls for training because it is compared with those.
            groups.append([Contender(f"product {rows}x{inner}x{columns} | {by}", {"training": call}, lambda *_: [])])
    return groups


# ---- A process for each number of threads ----


def measure(level: str, threads: int, seconds: float, rounds: int, compile_loops: bool) -> list[Row]:
    """Measure everything in this process, with a number of threads."""
    rows: list[Row] = []
    cases = [("full", s) for s in SHAPES] + [("ragged", s) for s in SHAPES if s[0] > 1] + [("short", s) for s in SHORT]
    with bench.using(threads):
        for number, (case, shape) in enumerate(cases, 1):
            start = time.monotonic()
            B, T, I, H = shape
            problem = Problem.draw(T, B, I, H, ragged=case == "ragged")
            steps = T * B if problem.lengths is None else int(problem.lengths.sum())  # of all rows together
            groups = contenders(shape, problem, threads, compile_loops and case == "full")
            if (case, shape) == ("full", PRODUCT_SHAPE) and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
                groups += products(shape)
            for each in bench.measure(groups, seconds, threads, rounds):
                cell, _, by = each.name.partition(" | ")
                where = {
                    "level": level,
                    "case": case,
                    **dict(zip("BTIH", shape, strict=True)),
                    "steps": steps,
                    "threads": threads,
                }
                rows += [
                    {**where, "kind": kind, "cell": cell, "by": by, "first": each.first[kind], **asdict(timing)}
                    for kind, timing in each.timing.items()
                ]
            took = time.monotonic() - start
            print(
                f"vectors {level}, threads {threads}, {number}/{len(cases)}: {case} {shape}, {took:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return rows


def in_process(level: str, threads: int, arguments: argparse.Namespace) -> list[Row]:
    """Start the process; every library in it finds that number of threads where it looks for one."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads))  # NPROC is XLA's
    environment = {**os.environ, **record.LEVELS[level], **counts, "JAX_PLATFORMS": "cpu", "ANYRNN_ENGINE": "auto"}
    command = [sys.executable, __file__, "--child", level, str(threads), "--seconds", str(arguments.seconds)]
    command += ["--rounds", str(arguments.rounds), *(["--compile"] if arguments.compile else [])]
    found: list[Row] = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="a run for each (default: 1 2)")
    parser.add_argument("--seconds", type=float, default=0.15, help="for each contender and kind of call, about")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender, at least 2")
    parser.add_argument("--compile", action="store_true", help=f"torch.compile of the loops too, at {COMPILE_SHAPE}")
    parser.add_argument("--levels", nargs="+", default=list(record.LEVELS), choices=record.LEVELS, help="vectors")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        level, threads = arguments.child
        json.dump(measure(level, int(threads), arguments.seconds, arguments.rounds, arguments.compile), sys.stdout)
        return
    start = time.monotonic()
    runs = [(level, threads) for level in arguments.levels for threads in arguments.threads]
    rows = [row for level, threads in runs for row in in_process(level, threads, arguments)]
    took = round(time.monotonic() - start)
    record.write("layers", {"seconds": arguments.seconds, "rounds": arguments.rounds, "took": took, "rows": rows})


if __name__ == "__main__":
    main()
