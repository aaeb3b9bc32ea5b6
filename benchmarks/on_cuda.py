"""What a layer costs on a CUDA device beside torch.nn's: there LSTM, GRU and RNN run on PyTorch's kernels (cuDNN).

    python benchmarks/on_cuda.py [--rounds 30]

Forward and backward, float32, x with a gradient, medians of turns. A cell of one's own runs as the plain loop there.
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import anyrnn

SHAPES = ((100, 32, 64, 128), (100, 256, 256, 512), (1000, 32, 64, 128))  # T, B, I, H


class Packed(nn.Module):
    """A layer of torch.nn for ragged batches, as its users write it."""

    def __init__(self, layer: nn.Module, lengths: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.lengths = layer, lengths

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pack, run, and pad."""
        packed = pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], total_length=len(x))


def step(layer: nn.Module, x: torch.Tensor, **options: object) -> float:
    """The seconds of a forward and a backward pass."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    output = layer(x, **options)[0]
    output.backward(torch.ones_like(output))
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(pairs: dict[str, tuple[nn.Module, dict[str, object]]], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """The median milliseconds of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in pairs}
    for turn in range(rounds + 3):
        for name, (layer, options) in pairs.items():
            seconds = step(layer, x, **options)
            if turn >= 3:
                times[name].append(1000 * seconds)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    print("| T, B, I, H | layer | milliseconds | times torch.nn's |\n| --- | --- | --- | --- |")
    for shape in SHAPES:
        T, B, I, H = shape
        x = torch.randn(T, B, I, device="cuda", requires_grad=True)
        lengths = torch.randint(1, T + 1, (B,))
        reset = torch.rand(T, B, device="cuda") < 0.01
        for kind in ("LSTM", "GRU"):
            theirs, ours = getattr(nn, kind)(I, H).cuda(), getattr(anyrnn, kind)(I, H).cuda()
            pairs = {
                f"nn.{kind}": (theirs, {}),
                f"anyrnn.{kind}": (ours, {}),
                f"nn.{kind}, packed": (Packed(theirs, lengths), {}),
                f"anyrnn.{kind}, ragged": (ours, {"lengths": lengths}),
            }
            if T <= 100:
                own = anyrnn.Recurrent(getattr(nn, f"{kind}Cell")(I, H)).cuda()
                pairs[f"anyrnn.{kind}, 1 % resets (plain loop)"] = (ours, {"reset": reset})
                pairs[f"Recurrent(nn.{kind}Cell)"] = (own, {})
            found = measure(pairs, x, rounds)
            for name, milliseconds in found.items():
                ratio = milliseconds / found[f"nn.{kind}"]
                print(f"| {', '.join(map(str, shape))} | {name} | {milliseconds:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
