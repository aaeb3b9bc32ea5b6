"""What a fall-back costs: `python benchmarks/fallback.py`, one thread, a table in Markdown.

A cell that cannot be compiled (its step has a convolution) runs as a plain loop, step by step. That loop and its user's
own take turns; the time of the processor counts, for on a machine that others use, too, the clock says little.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import anyrnn

B, I, H = 8, 16, 32

#: What a call is for: its name, whether it trains, and whether x has a gradient, as behind another layer.
KINDS = (("forward", False, False), ("forward + backward", True, False), ("the same, x with a gradient", True, True))


class Smoothing(nn.Module):
    """A leaky unit whose state is smoothed along its features."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.new, self.rate = nn.Linear(I + H, H), nn.Parameter(torch.zeros(H))
        self.smooth = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute the next state."""
        rate = torch.sigmoid(self.rate)
        new = torch.tanh(self.new(torch.cat((x, h), 1)))
        return (1 - rate) * h + rate * new + self.smooth(h.unsqueeze(1)).squeeze(1)


def own(cell: nn.Module, x: Tensor) -> Tensor:
    """The loop that everybody writes."""
    h, outputs = x.new_zeros(x.shape[1], H), []
    for t in range(len(x)):
        h = cell(x[t], h)
        outputs.append(h)
    return torch.stack(outputs)


def microseconds(run: Callable[[], Tensor], trains: bool) -> float:
    """The processor's time of a call, with its backward pass if it trains."""
    start = time.process_time_ns()
    with torch.set_grad_enabled(trains):
        output = run()
    if trains:
        output.sum().backward()
    return (time.process_time_ns() - start) / 1000


def main() -> None:
    """Measure, and print the table."""
    torch.set_num_threads(1)
    cell = Smoothing()
    layer = anyrnn.Recurrent(cell, I)
    print("| T | | own loop, µs a step | layer, µs a step | more |\n| --- | --- | --- | --- | --- |")
    for T in (1, 8, 100, 400):
        for what, trains, of_x in KINDS:
            x = torch.randn(T, B, I, requires_grad=of_x)
            assert anyrnn.explain(layer, x).parts[0].engine == "reference"
            pairs = [
                (microseconds(lambda: own(cell, x), trains), microseconds(lambda: layer(x)[0], trains))  # noqa: B023
                for _ in range(max(20, 4000 // T))
            ]
            loop, ours = (median(times) / T for times in zip(*pairs, strict=True))
            print(f"| {T} | {what} | {loop:.1f} | {ours:.1f} | {100 * (ours / loop - 1):.1f} % |")


if __name__ == "__main__":
    main()
