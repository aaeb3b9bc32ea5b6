"""`einsum` of rows and a matrix as `matmul`, while a step is traced.

PyTorch computes ``einsum("bi,ij->bj", h, W)`` by `bmm`, with the batch in another dimension. Here it is ``h @ W``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Contractions(TorchFunctionMode):
    """A mode that replaces `einsum` of rows and a matrix by `matmul`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call a function."""
        if func is torch.einsum and not kwargs:
            product = _product(*args)
            if product is not None:
                return product
        return func(*args, **(kwargs or {}))


def _product(equation: Any, *operands: Any) -> Tensor | None:
    """The result of `einsum` as a product of rows and a matrix; None if it is another contraction."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    inputs, arrow, output = str(equation).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not isinstance(equation, str) or not arrow or len(terms) != 2 or len(operands) != 2:
        return None
    rows, matrix = sorted(zip(terms, operands, strict=True), key=lambda pair: len(pair[0].replace("...", "")) == 2)
    for (a, x), (b, w) in ((rows, matrix), (matrix, rows)):
        inner = a[-1:]
        if len(b) != 2 or "." in b or w.dim() != 2 or x.dim() < 2 or inner not in b:
            continue
        outer = b.replace(inner, "", 1)
        if inner != outer and outer not in a and inner not in a[:-1] and output == a[:-1] + outer:
            return torch.matmul(x, w if b[0] == inner else w.t())
    return None
