"""Which types of numbers a loop program can hold: it computes in one floating-point type, and with true and false.

In PyTorch every tensor has a type of its own: integers wrap around, true plus true is true, and what was half precision
for a moment stays rounded. In a loop program all are numbers of the one type. So a tensor of any other type is let in
only where that makes no difference: as long as all of it are whole numbers that are small enough to be exact, such as
masks that are counted. The rest is refused, by the name of the operation and the type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anyrnn.compiler.graph import Graph, Op, Ref
from anyrnn.compiler.ops import OPERATIONS
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: A range of whole numbers; None if it is not known.
Range = tuple[int, int] | None

_EXACT = {torch.float64: 2**53, torch.float32: 2**24, torch.float16: 2**11, torch.bfloat16: 2**8}

#: Operations that move numbers about, or leave them as they are.
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
    *("index", "index_select", "gather"),
    *("transpose", "repeat", "roll", "flip", "maximum", "minimum", "amax", "amin", "copy", "zeros_like", "ones_like"),
}
#: What arithmetic makes of two ranges.
_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: b - a,
    "mul": lambda a, b: a * b,
}
#: What gives true and false as a mask, whatever it is given.
_OF_MASKS = _MOVING | {
    *(name for name, operation in OPERATIONS.items() if operation.gives_mask),
    *("constant_pad_nd", "isnan"),
    *("add", "mul", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "any", "all"),
}
#: Operations that return indices: which of their results these are.
_INDEX_RESULTS = {"max": 1, "min": 1, "sort": 1, "topk": 1, "argmax": 0, "argmin": 0}


class Types:
    """The types of the tensors that a loop holds."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.real = graph.dtypes[graph.states[0]]
        self._ranges: dict[Ref, Range] = {}

    def check(self, op: Op) -> None:
        """Check that an operation means the same in the type of the loop.

        Raises:
            AnyRNNError: if it does not. The message names it.
        """
        inputs = list(op.inputs)
        for ref in op.outputs:
            dtype = self.graph.dtypes[ref]
            if dtype not in (self.real, torch.bool):
                is_index = _INDEX_RESULTS.get(op.short_name) == op.outputs.index(ref)
                self._ranges[ref] = found = self._places(op) if is_index else self._range(op)
                if not self._fits(dtype, found) and not (found is None and self._only_moves(op, inputs)):
                    self._refuse(op, dtype)
            elif dtype == torch.bool and op.short_name not in _OF_MASKS:
                self._refuse(op, dtype)
        mixed = all(self.graph.dtypes[ref] != self.real for ref in inputs)
        for ref in inputs:
            dtype = self.graph.dtypes[ref]
            exact = dtype in (self.real, torch.bool) or self._fits(dtype, self._ranges.get(ref))
            if exact or not self.graph.shapes[ref] or self._only_moves(op, inputs):
                continue
            narrower = torch.promote_types(dtype, self.real) == self.real
            if not narrower or (mixed and self.graph.dtypes[op.outputs[0]] == torch.bool):
                self._refuse(op, dtype)

    def constant(self, ref: Ref, number: float) -> float:
        """A number as a tensor of its type holds it."""
        dtype = self.graph.dtypes[ref]
        held: float = torch.tensor(number, dtype=torch.float64).to(dtype).item()
        if float(held).is_integer():
            self._ranges[ref] = int(held), int(held)
        return float(held)

    def _only_moves(self, op: Op, inputs: Sequence[Ref]) -> bool:
        """Whether numbers from outside the loop pass through, as they are."""
        types = {self.graph.dtypes[r] for r in (*inputs, *op.outputs)} - {torch.bool}
        return op.short_name in _MOVING and len(types) == 1

    def _fits(self, dtype: torch.dtype, found: Range) -> bool:
        """Whether all numbers of a range are exact, in their own type and in that of the loop."""
        if found is None or dtype.is_complex:
            return False
        low, high = found
        own = _EXACT.get(dtype)
        limits = (-own, own) if own is not None else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        most = min(_EXACT.get(self.real, 0), _EXACT[torch.float32])
        return max(low, limits[0], -most) == low and min(high, limits[1], most) == high

    def _range(self, op: Op) -> Range:
        """The range of what an operation gives, if all it is given are whole numbers of known ranges."""
        given: list[tuple[int, int]] = []
        for value in op.args:
            for part in value if isinstance(value, list | tuple) and op.short_name in ("cat", "stack") else [value]:
                if isinstance(part, Ref):
                    is_mask = self.graph.dtypes[part] == torch.bool
                    found = (0, 1) if is_mask else self._ranges.get(part)
                    if found is None:
                        return None
                    given.append(found)
                elif op.short_name in _ARITHMETIC and isinstance(part, int):
                    given.append((int(part), int(part)))
                elif op.short_name in _ARITHMETIC:
                    return None
        name = op.short_name
        if name in _ARITHMETIC and len(given) == 2 and op.kwargs.get("alpha", 1) == 1:
            ends = [_ARITHMETIC[name](a, b) for a in given[0] for b in given[1]]
            return min(ends), max(ends)
        if name == "neg":
            return -given[0][1], -given[0][0]
        if name == "sum":
            count = self._numbers(op.args[0]) // max(self._numbers(op.outputs[0]), 1)
            return min(given[0][0] * count, 0), max(given[0][1] * count, 0)
        if name in _MOVING and given:
            return min(low for low, _ in given), max(high for _, high in given)
        return None

    def _places(self, op: Op) -> Range:
        """The range of the indices that an operation gives."""
        return 0, max(n for n in (1, *self.graph.shapes[op.args[0]]) if n != self.graph.batch) - 1

    def _numbers(self, ref: Ref) -> int:
        return int(torch.Size(self.graph.shapes[ref]).numel())

    def _refuse(self, op: Op, dtype: torch.dtype) -> None:
        msg = (
            f"`{op.overload}` in the loop with {dtype}: a loop computes in {self.real} and with true and false; "
            f"convert with .to(h.dtype) first, or compute it from x or weights alone"
        )
        raise AnyRNNError(msg)
