"""Random convolutions of sequences as features for a linear model, after ROCKET, in torch's conv1d.

Dempster, Petitjean and Webb 2020, arXiv:1910.13051. Deviations: fewer kernels; dilations are powers of two; a kernel
sees random channels, by zeros in its weights; series are scaled as for the networks, not each by itself. The paper's
two features of a kernel stay: the largest value of the convolution, and the share of its values above zero.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

KERNELS = 400
_LENGTHS = (7, 9, 11)
_CHUNK = 256  # sequences a call: bounds the memory, changes no result


class Convolutions:
    """Kernels drawn once, for sequences of one length.

    Args:
        steps: T.
        channels: I.
        kernels: How many.
        seed: Of the drawing.
    """

    def __init__(self, steps: int, channels: int, kernels: int = KERNELS, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        lengths = [length for length in _LENGTHS if length <= steps] or [max(1, steps)]
        groups: dict[tuple[int, int, int], list[tuple[Tensor, Tensor]]] = {}  # by length, dilation and padding
        for _ in range(kernels):
            length = lengths[int(torch.randint(len(lengths), (), generator=draw))]
            most = math.log2(max(1.0, (steps - 1) / max(1, length - 1)))
            dilation = 2 ** int(torch.rand((), generator=draw) * (math.floor(most) + 1))
            padding = int(torch.randint(2, (), generator=draw)) * (((length - 1) * dilation) // 2)
            weights = torch.randn(channels, length, generator=draw)
            weights = weights - weights.mean(1, keepdim=True)
            seen = int(2 ** (torch.rand((), generator=draw) * math.log2(min(channels, length) + 1)))
            unseen = torch.randperm(channels, generator=draw)[seen:]
            weights[unseen] = 0.0
            bias = torch.rand((), generator=draw) * 2 - 1
            groups.setdefault((length, dilation, padding), []).append((weights, bias))
        self._groups = {
            key: (torch.stack([w for w, _ in pairs]), torch.stack([b for _, b in pairs]))
            for key, pairs in groups.items()
        }

    def __call__(self, x: Tensor) -> Tensor:
        """The features of sequences (N, T, I): (N, 2 kernels)."""
        return torch.cat([self._features(chunk.transpose(1, 2)) for chunk in x.split(_CHUNK)])

    def _features(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for (_, dilation, padding), (weights, bias) in self._groups.items():
            y = F.conv1d(x, weights, bias, padding=padding, dilation=dilation)  # (N, kernels, steps)
            found += [y.amax(2), (y > 0).float().mean(2)]
        return torch.cat(found, 1)
