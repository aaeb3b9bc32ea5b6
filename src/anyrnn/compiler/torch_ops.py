"""What PyTorch runs around the loop: a part's operations, prepared to be run often, and whether they keep rows apart.

A step sees the rows of a batch at one time step. Operations before and after the loop see those of all steps at once,
which gives the same if each row is computed by itself; `mixes_rows` tells.
"""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from anyrnn.compiler.graph import SHAPE_ARGUMENTS, Graph, Op, Ref, scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

#: Products of rows (B, n) and a matrix.
PRODUCTS = frozenset({"addmm", "mm"})


class Ops:
    """The operations of a part that PyTorch runs, prepared for running often."""

    def __init__(self, ops: Sequence[Op], graph: Graph) -> None:
        self.ops = ops
        self.graph = graph
        self.mixing = any(mixes_rows(op, graph) for op in ops)
        self._prepared = [
            (op, [_argument(op, k, graph.batch) for k in range(len(op.args))], _keywords(op)) for op in ops
        ]

    def run(self, tensors: dict[Ref, Tensor], rows: int) -> None:
        """Run them on so many rows in the place of the traced batch size, adding their results to `tensors`."""
        for op, arguments, keywords in self._prepared:
            args = [
                tensors[a] if type(a) is Ref else a(tensors, rows) if type(a) is FunctionType else a for a in arguments
            ]
            result = op.overload(*args, **(op.kwargs if keywords is None else keywords(tensors)))
            if op.many:
                tensors.update(zip(op.outputs, result, strict=True))
            else:
                tensors[op.outputs[0]] = result


def _argument(op: Op, k: int, batch: int) -> Any:
    """Prepare an argument: a Ref for a tensor, a function for what depends on the call, or the value itself."""
    value = op.args[k]
    is_size = type(value) is int or isinstance(value, list | tuple)  # a Ref is a tensor: how often to repeat
    if is_size and op.overload._schema.arguments[k].name in SHAPE_ARGUMENTS:
        return lambda _, rows: scaled(value, batch, rows)
    if isinstance(value, list | tuple) and any(isinstance(v, Ref) for v in value):
        return lambda tensors, _: [tensors[v] if isinstance(v, Ref) else v for v in value]
    return value


def _keywords(op: Op) -> Callable[[dict[Ref, Tensor]], dict[str, Any]] | None:
    if not any(isinstance(v, Ref) for v in pytree.tree_leaves(dict(op.kwargs))):
        return None
    return lambda tensors: pytree.tree_map_only(Ref, tensors.__getitem__, dict(op.kwargs))


def mixes_rows(op: Op, graph: Graph) -> bool:
    """Whether a row of an operation's result may depend on other rows, or on chance.

    Such an operation must see one time step at a time, as in the cell. One that is not in `_ROW_WISE` counts as such.
    """

    def is_batched(ref: Ref) -> bool:
        shape = graph.shapes[ref]
        return bool(shape) and shape[0] == graph.batch

    refs = list(op.inputs)
    batched = [r for r in refs if is_batched(r)]
    if not batched or not all(is_batched(r) for r in op.outputs):
        return bool(batched) or torch.Tag.nondeterministic_seeded in op.overload.tags
    if torch.Tag.nondeterministic_seeded in op.overload.tags:
        return True
    name = op.short_name
    rank = max(len(graph.shapes[r]) for r in op.outputs)
    if torch.Tag.pointwise in op.overload.tags:
        lead = [graph.shapes[r] for r in refs if len(graph.shapes[r]) == rank]
        return any(s[0] not in (1, graph.batch) for s in lead) or any(len(graph.shapes[r]) != rank for r in batched)
    if name in PRODUCTS:
        return any(is_batched(r) for r in refs[-1:]) or len(batched) != 1
    check = _ROW_WISE.get(name)
    return check is None or not check(op, graph)


def _along_features(op: Op, graph: Graph) -> bool:
    """The dimensions that an operation works along do not include the batch."""
    shape = graph.shapes[next(iter(op.inputs))]
    rank = len(shape) + (op.short_name in ("stack", "unsqueeze"))
    dims: list[Any] = []
    for k, argument in enumerate(op.overload._schema.arguments):
        if argument.name in _DIMENSIONS:
            value = op.args[k] if k < len(op.args) else op.kwargs.get(argument.name, argument.default_value)
            dims += value if isinstance(value, list | tuple) and value else [value]
    return shape[:1] == (graph.batch,) and bool(dims) and all(isinstance(d, int) and d % rank != 0 for d in dims)


#: How ATen calls arguments that are dimensions.
_DIMENSIONS = ("dim", "dims", "dim0", "dim1", "dim2")


def _keeps_batch(op: Op, graph: Graph) -> bool:
    return all(graph.shapes[r][0] == graph.batch for r in (*op.inputs, *op.outputs) if graph.shapes[r])


def _reads_rows(op: Op, graph: Graph) -> bool:
    """The first argument has the rows, and the others are the same for all of them."""
    first, *others = op.inputs
    return _keeps_batch(replace(op, args=(first,), kwargs={}), graph) and not any(
        graph.shapes[r][:1] == (graph.batch,) for r in others
    )


def _takes_features(op: Op, graph: Graph) -> bool:
    """Features are taken by numbers, and the rows as they are."""
    indices: Sequence[Any] = op.args[1]
    return indices[0] is None and _reads_rows(op, graph)


def _takes_along_features(op: Op, graph: Graph) -> bool:
    return _along_features(op, graph) and _reads_rows(op, graph)


def _keeps_the_first(op: Op, graph: Graph) -> bool:
    """The dimensions in their new order begin with the batch."""
    order: Sequence[int] = op.args[1]
    return order[0] % len(order) == 0


def _repeats_features(op: Op, graph: Graph) -> bool:
    repeats: Sequence[int] = op.args[1]
    return len(repeats) == len(graph.shapes[op.args[0]]) and repeats[0] == 1


def _pads_features(op: Op, graph: Graph) -> bool:
    return len(op.args[1]) // 2 < len(graph.shapes[op.args[0]])


def _normalises_features(op: Op, graph: Graph) -> bool:
    return len(op.args[1]) < len(graph.shapes[op.args[0]])


def _has_batch_first(op: Op, graph: Graph) -> bool:
    """The batch is the first letter of all that has one, and of the result."""
    inputs, _, output = op.args[0].partition("->")
    batched = [term for term, r in zip(inputs.split(","), op.args[1], strict=True) if graph.shapes[r][0] == graph.batch]
    return all(term[0] == output[0] and output[0] not in term[1:] for term in batched)


_ROW_WISE: Mapping[str, Callable[[Op, Graph], bool]] = {
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "std", "_softmax", "_log_softmax", "cat"), _along_features),
    **dict.fromkeys(
        ("slice", "split", "split_with_sizes", "unsafe_split", "unbind", "select", "stack"), _along_features
    ),
    **dict.fromkeys(("squeeze", "unsqueeze", "transpose", "linalg_vector_norm", "cumsum"), _along_features),
    **dict.fromkeys(
        ("max", "min", "argmax", "argmin", "sort", "topk", "prod", "cumprod", "any", "all"), _along_features
    ),
    **dict.fromkeys(("logsumexp", "logcumsumexp", "var_mean", "std_mean", "flip", "roll", "glu"), _along_features),
    **dict.fromkeys(("cummax", "cummin", "gather", "diagonal"), _along_features),
    "index": _takes_features,
    "index_select": _takes_along_features,
    "permute": _keeps_the_first,
    "repeat": _repeats_features,
    "constant_pad_nd": _pads_features,
    "convolution": _reads_rows,
    **dict.fromkeys(("bmm", "zeros_like", "ones_like", "full_like"), _keeps_batch),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "expand", "clone", "detach", "alias", "_to_copy"), _keeps_batch
    ),
    "einsum": _has_batch_first,
    "native_layer_norm": _normalises_features,
    "native_group_norm": _keeps_batch,
}
