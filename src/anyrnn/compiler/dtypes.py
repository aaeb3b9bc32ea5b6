"""Type checks: a loop program computes in one floating-point dtype and with booleans, whatever dtypes a step has.

In PyTorch each tensor has its dtype: integers wrap around, true plus true is true, and what was half precision for a
moment stays rounded. In a loop program all are numbers of one dtype. So a tensor of another dtype is accepted only
where that makes no difference: if range analysis shows that it holds whole numbers which are small enough to be exact,
such as the count of a mask. Else the operation is refused, with its name and the dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anyrnn.compiler.graph import Graph, Ref, Step
from anyrnn.compiler.ops import OPERATIONS
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: A range of whole numbers; None if it is not known.
Range = tuple[int, int] | None

_EXACT = {torch.float64: 2**53, torch.float32: 2**24, torch.float16: 2**11, torch.bfloat16: 2**8}

#: Operations whose results are numbers of their arguments: layout, copies, selection.
_MOVING = frozenset({"_to_copy", "clone", "alias", "detach", "where", "cat", "stack", "select", "slice", "split"}) | {
    *(
        "split_with_sizes",
        "unsafe_split",
        "unbind",
        "view",
        "_unsafe_view",
        "expand",
        "unsqueeze",
        "squeeze",
        "permute",
    ),
    *("transpose", "repeat", "roll", "flip", "maximum", "minimum", "amax", "amin", "copy", "zeros_like", "ones_like"),
}
#: Operations on numbers that map ranges to ranges.
_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: b - a,
    "mul": lambda a, b: a * b,
}
#: Operations whose boolean results are masks, whatever their arguments are.
_MASKS = _MOVING | {
    *(name for name, operation in OPERATIONS.items() if operation.gives_mask),
    *("add", "mul", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "any", "all"),
}


class Types:
    """Checks the dtypes of a graph, operation by operation, and keeps the ranges of whole numbers."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.real = graph.dtypes[graph.states[0]]
        self._ranges: dict[Ref, Range] = {}

    def check(self, step: Step) -> None:
        """Check that an operation has the same result in the dtype of the loop.

        Raises:
            AnyRNNError: if it does not. The message names it.
        """
        inputs = list(step.inputs)
        for ref in step.outputs:
            dtype = self.graph.dtypes[ref]
            if dtype not in (self.real, torch.bool):
                self._ranges[ref] = result = self._range_of_result(step)
                if not self._is_exact(dtype, result) and not (result is None and self._only_moves(step, inputs)):
                    self._refuse(step, dtype)
            elif dtype == torch.bool and step.short_name not in _MASKS:
                self._refuse(step, dtype)
        mixed = all(self.graph.dtypes[ref] != self.real for ref in inputs)
        for ref in inputs:
            dtype = self.graph.dtypes[ref]
            is_exact = dtype in (self.real, torch.bool) or self._is_exact(dtype, self._ranges.get(ref))
            if is_exact or not self.graph.shapes[ref] or self._only_moves(step, inputs):
                continue
            narrower = torch.promote_types(dtype, self.real) == self.real
            if not narrower or (mixed and self.graph.dtypes[step.outputs[0]] == torch.bool):
                self._refuse(step, dtype)

    def constant(self, ref: Ref, number: float) -> float:
        """A number, rounded to the dtype of a tensor that is full of it."""
        dtype = self.graph.dtypes[ref]
        rounded: float = torch.tensor(number, dtype=torch.float64).to(dtype).item()
        if float(rounded).is_integer():
            self._ranges[ref] = int(rounded), int(rounded)
        return float(rounded)

    def _only_moves(self, step: Step, inputs: Sequence[Ref]) -> bool:
        """Whether an operation moves numbers and does not convert them."""
        types = {self.graph.dtypes[r] for r in (*inputs, *step.outputs)} - {torch.bool}
        return step.short_name in _MOVING and len(types) == 1

    def _is_exact(self, dtype: torch.dtype, numbers: Range) -> bool:
        """Whether all numbers of a range are exact, in a dtype and in that of the loop."""
        if numbers is None or dtype.is_complex:
            return False
        low, high = numbers
        exact = _EXACT.get(dtype)
        limits = (-exact, exact) if exact is not None else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        most = min(_EXACT.get(self.real, 0), _EXACT[torch.float32])
        return max(low, limits[0], -most) == low and min(high, limits[1], most) == high

    def _range_of_result(self, step: Step) -> Range:
        """The range of an operation's result, if all its arguments are whole numbers of known ranges."""
        ranges: list[tuple[int, int]] = []
        for value in step.args:
            for part in value if isinstance(value, list | tuple) and step.short_name in ("cat", "stack") else [value]:
                if isinstance(part, Ref):
                    is_mask = self.graph.dtypes[part] == torch.bool
                    numbers = (0, 1) if is_mask else self._ranges.get(part)
                    if numbers is None:
                        return None
                    ranges.append(numbers)
                elif step.short_name in _ARITHMETIC and isinstance(part, int):
                    ranges.append((int(part), int(part)))
                elif step.short_name in _ARITHMETIC:
                    return None
        name = step.short_name
        if name in _ARITHMETIC and len(ranges) == 2 and step.kwargs.get("alpha", 1) == 1:
            ends = [_ARITHMETIC[name](a, b) for a in ranges[0] for b in ranges[1]]
            return min(ends), max(ends)
        if name == "neg":
            return -ranges[0][1], -ranges[0][0]
        if name == "sum":
            count = self._numel(step.args[0]) // max(self._numel(step.outputs[0]), 1)
            return min(ranges[0][0] * count, 0), max(ranges[0][1] * count, 0)
        if name in _MOVING and ranges:
            return min(low for low, _ in ranges), max(high for _, high in ranges)
        return None

    def _numel(self, ref: Ref) -> int:
        return int(torch.Size(self.graph.shapes[ref]).numel())

    def _refuse(self, step: Step, dtype: torch.dtype) -> None:
        msg = (
            f"`{step.op}` in the loop with {dtype}: a loop computes in {self.real} and with true and false; convert "
            f"with .to(h.dtype) first, or compute it from x or weights alone"
        )
        raise AnyRNNError(msg)
