"""`einsum` of rows and a matrix as the product that it is.

PyTorch computes ``einsum("bi,ij->bj", h, W)`` as a product of batches of matrices, with the batch moved elsewhere.
While a step is recorded, it is ``h @ W``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Contractions(TorchFunctionMode):
    """Runs functions of PyTorch's as they are, but for `einsum` of rows and a matrix."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call a function."""
        if func is torch.einsum and not kwargs:
            product = _product(*args)
            if product is not None:
                return product
        return func(*args, **(kwargs or {}))


def _product(equation: Any, *operands: Any) -> Tensor | None:
    """The product of rows and a matrix; None if it is another contraction."""
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
