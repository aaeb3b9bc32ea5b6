"""Lists as indices, ``h[:, [2, 0, 1]]``, while a step is traced.

PyTorch makes a tensor of such a list without telling anybody. Here it is one that is made in the step's code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Indexing(TorchFunctionMode):
    """A mode that replaces lists, ranges and arrays of NumPy's within brackets by tensors."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call a function."""
        if func is Tensor.__getitem__:
            tensor, index = args
            args = tensor, tuple(map(_as_tensor, index)) if isinstance(index, tuple) else _as_tensor(index)
        return func(*args, **(kwargs or {}))


def _as_tensor(index: Any) -> Any:
    if isinstance(index, Tensor | torch.Size) or not (isinstance(index, list | range) or hasattr(index, "tolist")):
        return index
    numbers = index.tolist() if hasattr(index, "tolist") else [*index]
    return torch.tensor(numbers, device="cpu") if numbers and isinstance(numbers, list) else index
