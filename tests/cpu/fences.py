"""Buffers between fences: what is not written, or is written or read outside, shows."""

import torch

FENCE = 256  # numbers on either side of a buffer: more than a tile of vectors
POST = 0x7FF8ABCD  # what a fence is made of: in every float type a NaN, and one that no arithmetic makes


def fenced(n: int, dtype: torch.dtype, fill: float = float("nan")) -> torch.Tensor:
    """Numbers between fences."""
    whole = torch.empty(n + 2 * FENCE, dtype=dtype)
    whole.view(torch.int32).fill_(POST)
    return whole[FENCE : FENCE + n].fill_(fill)


def within(tensor: torch.Tensor) -> torch.Tensor:
    """A copy between fences, with the same strides."""
    n = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    middle = fenced(n if tensor.numel() else 0, tensor.dtype)
    copied = middle.as_strided(tensor.shape, tensor.stride(), middle.storage_offset())
    return copied.copy_(tensor.detach()) if 0 not in tensor.stride() else tensor


def assert_whole(tensor: torch.Tensor) -> None:
    """Nothing was written outside of a fenced tensor."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).view(torch.int32)
    edge = FENCE * tensor.dtype.itemsize // 4
    assert (whole[:edge] == POST).all(), "written in front of a buffer"
    assert (whole[-edge:] == POST).all(), "written behind a buffer"
