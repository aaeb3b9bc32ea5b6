"""Speed of the layers beside other ways to compute them: `make bench`, or `python benchmarks/layers.py --help`.

A fresh process for each number of threads measures one shape after the other. On each shape all contenders take turns,
forward and then forward with backward; `anyrnn.workbench.bench.alternate` is the clock.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

import cells
import record
import torch
from record import Claim
from torch import Tensor, nn

import anyrnn
from anyrnn.workbench import bench, peers
from anyrnn.workbench.peers import Contender, Problem

#: B, T, I, H
SHAPES = (
    (1, 100, 16, 32),
    (1, 100, 64, 128),
    (8, 1000, 32, 64),
    (32, 100, 16, 32),
    (32, 100, 64, 128),
    (32, 100, 256, 256),
    (64, 50, 512, 512),
    (256, 50, 64, 64),
)
SHORT = ((1, 5, 16, 32), (32, 5, 64, 128), (32, 5, 256, 256))
PRODUCT_SHAPE = (32, 100, 256, 256)  # where the rate of training is compared with that of a matrix product
COMPILE_SHAPE = (32, 100, 64, 128)  # torch.compile takes minutes on each

LOOPS = ("peephole LSTM", "LayerNorm LSTM", "reset-before GRU", "notebook LSTM")

#: ours, against, which rows, then for forward with backward and for forward: mean at least, worst at least.
TARGETS: tuple[tuple[str, str, str, tuple[float | None, float | None], tuple[float | None, float | None]], ...] = (
    ("GRU", "torch.nn", "full", (4, 1.8), (3, 1.5)),
    ("RNN", "torch.nn", "full", (3, 1.5), (2, 1.2)),
    ("LSTM", "torch.nn", "full", (1.2, 0.9), (1.2, 0.9)),
    ("LSTM", "torch.nn, packed", "ragged", (5, 2.5), (3, 1.8)),
    ("GRU", "torch.nn, packed", "ragged", (5, 2.5), (3, 1.8)),
    ("LSTM", "XLA scan", "full", (1.5, 1.0), (1.3, 1.0)),
    ("GRU", "XLA scan", "full", (1.5, 1.0), (1.3, 1.0)),
    ("LSTM", "ONNX Runtime", "full", (None, None), (1.0, 0.8)),
    ("GRU", "ONNX Runtime", "full", (None, None), (1.0, 0.8)),
    *((cell, "Python loop", "B=1", (15, None), (15, None)) for cell in LOOPS),
    *((cell, "Python loop", "B=32", (3, None), (3, None)) for cell in LOOPS),
)

Row = dict[str, Any]  # threads, B, T, I, H, ragged, kind, cell, by, and a bench.Timing


def contenders(shape: tuple[int, int, int, int], ragged: bool, threads: int, compile_loops: bool) -> list[list[Contender]]:
    """Make a group for each network: anyrnn first, then its peers. Their names are "network | by"."""
    B, T, I, H = shape
    problem = Problem.draw(T, B, I, H, ragged=ragged)
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
        groups += [own_cell(name, problem, H, compile_loops and shape == COMPILE_SHAPE) for name in LOOPS]
    return groups


def padded(module: nn.Module, problem: Problem) -> peers.Run:
    """Let torch.nn compute the padding too, mask its output, and look up the last valid h: what one does without packing."""
    assert problem.lengths is not None
    last, rows = problem.lengths - 1, torch.arange(len(problem.lengths))

    def run(x: Tensor) -> tuple[Any, ...]:
        output, _ = module(x)
        return output * peers.valid_steps(problem.lengths, len(x)), output[last, rows]

    return run


def own_cell(name: str, problem: Problem, H: int, compile_loop: bool) -> list[Contender]:
    """Make the group of a cell that PyTorch has no kernel for: our layer, and the same cell in a loop."""
    I = problem.x.shape[2]  # noqa: E741
    cell = {
        "peephole LSTM": cells.PeepholeLSTM,
        "LayerNorm LSTM": cells.LayerNormLSTM,
        "reset-before GRU": cells.ResetBeforeGRU,
        "notebook LSTM": cells.NotebookLSTM,
    }[name](I, H)
    by_hand = anyrnn.Recurrent(cell, input_size=I)
    ours, arrange = {"peephole LSTM": peephole, "reset-before GRU": reset_before}.get(name, lambda cell: (by_hand, list))(cell)
    group = [
        peers.ours(ours, problem, f"{name} | anyrnn"),
        peers.python_loop(by_hand, problem, f"{name} | Python loop", arrange),
    ]
    if compile_loop:
        group.append(peers.compiled_loop(by_hand, problem, f"{name} | torch.compile of the loop", arrange))
    return group


def peephole(cell: cells.PeepholeLSTM) -> tuple[anyrnn.PeepholeLSTM, Callable[[list[Tensor]], list[Tensor]]]:
    """Give anyrnn's layer the weights of the cell; and bring the gradients of the cell into the layer's order."""

    def arrange(tensors: list[Tensor]) -> list[Tensor]:
        p_i, p_f, p_o, W, b, U = tensors
        return [W, U, b, torch.cat((p_i, p_f, p_o))]

    return loaded(anyrnn.PeepholeLSTM(cell.input.in_features, cell.hidden_size), arrange(list(cell.parameters()))), arrange


def reset_before(cell: cells.ResetBeforeGRU) -> tuple[anyrnn.GRU, Callable[[list[Tensor]], list[Tensor]]]:
    """Do the same for the GRU, whose layer has a second bias: here it is 0, and its gradient that of the first."""

    def arrange(tensors: list[Tensor]) -> list[Tensor]:
        W, b, U_rz, U_n = tensors
        return [W, torch.cat((U_rz, U_n)), b, b]

    layer = loaded(anyrnn.GRU(cell.input.in_features, cell.hidden_size, reset_after=False), arrange(list(cell.parameters())))
    nn.init.zeros_(layer.bias_hh_l0)
    return layer, arrange


def loaded[L: nn.Module](layer: L, values: list[Tensor]) -> L:
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.copy_(value)
    return layer
