"""The values of a loop program: a graph of nodes, each `width` numbers wide.

A program is one step of the loop part of a cell, for one row of the batch. Rows never meet, and features meet only in
products with a matrix (`dot`), in reductions (`sum`, `max`), and in the operations of tensors with inner dimensions
(`STRIDED`). Everything about layout (cat, chunk, slice, view) is already resolved: a leaf says which numbers of an
array it is. Only where that would make too many values are numbers moved, by `arrange`.

An activation such as `elu` or `clamp` is one operation, PyTorch's own, until the program is differentiated: its
derivative is then the one that the running PyTorch has for it. Only programs that are compiled consist of elementary
operations alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anyrnn.compiler.ops import OPERATIONS
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from anyrnn.compiler.ops import Operation

#: Operations that read a range of an array; `attr` is (name of the array, first number). They are called as the role of
#: the array; of a history, `previous` reads the state before the step, `current` that after it.
LEAVES = ("stream", "row", "state", "vector", "previous", "current")

#: Operations that read their arguments in another order than they lie in memory, with loops over inner dimensions.
#: Where an argument is read, and a result written, is a number `first` and a stride for each dimension.
#:
#: contract: sums of products: result[i] = sum over j of a[first + i strides + j strides] (b[...] ...), for one argument
#:     or two, where i runs through the dimensions of the result and j through those that are summed. `attr` is (sizes
#:     of the result, sizes that are summed, then for each argument (first, strides)).
#: largest: the maximum over the middle dimension of a value; `attr` are its three sizes.
#: arrange: numbers moved to other places; those that nothing is moved to are zero. `attr` are boxes: (index of the
#:     argument, sizes, first, strides, first in the result, strides in the result).
STRIDED = ("contract", "largest", "arrange")

#: Stands for a value among the arguments of an operation of PyTorch's.
HERE = "%"

_NONE: Mapping[str, Tensor] = MappingProxyType({})

#: As many values as LLVM compiles in some seconds. An LSTM has 120 with its backward program, a norm adds 50.
MOST_VALUES = 1500


class TooManyValuesError(AnyRNNError):
    """A step falls into more values than can be compiled in reasonable time."""


@dataclass(frozen=True, eq=False)
class Node:
    """A value of the program. Equal values are the same object: see `Builder`.

    Attributes:
        op: A leaf, "constant", "dot", a reduction, a pointwise operation, one of `STRIDED`, "part" (some of the numbers
            of a value, read from memory), or an operation of PyTorch's such as "aten.elu.default".
        args: The values it is computed from.
        width: How many numbers it is.
        attr: leaf: (name of the array, first number); constant: (number,); dot: for each argument (name of the
            matrix, first row, first column, transposed); one of `STRIDED`: see there; part: (first number,); an
            operation of PyTorch's: its arguments, with `HERE` where a value belongs.
    """

    op: str
    args: tuple[Node, ...]
    width: int
    attr: tuple[Any, ...] = ()

    @property
    def is_leaf(self) -> bool:
        """It is read from an array."""
        return self.op in LEAVES

    @property
    def is_strided(self) -> bool:
        """It is computed by loops over inner dimensions, from memory to memory."""
        return self.op in STRIDED

    @property
    def is_composite(self) -> bool:
        """It is an operation of PyTorch's on each number, which the pass `elementary` replaces."""
        return self.op.startswith("aten.")

    @property
    def is_mask(self) -> bool:
        """It is true or false for each number."""
        return self.op in OPERATIONS and OPERATIONS[self.op].gives_mask

    def __repr__(self) -> str:
        return f"{self.op}{list(self.attr) if self.attr else ''}:{self.width}"


#: What they limit is the gradient of a value from all who read it, whole or in parts: so they are not cut.
_LIMITING = frozenset({"clip_gradient", "clip_gradient_norm"})


@dataclass
class Builder:
    """Makes nodes: equal ones once (hash-consing), constants folded, ranges pushed down to leaves and products."""

    known: dict[object, Node] = field(default_factory=dict)
    _cuts: dict[tuple[Node, int, int], Node] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Builder:
        """A builder that knows the nodes of a program."""
        return cls({_key(n.op, n.args, n.width, n.attr): n for n in nodes})

    def node(self, op: str, args: tuple[Node, ...], width: int, attr: tuple[Any, ...] = ()) -> Node:
        """Return the node with these parts."""
        key = _key(op, args, width, attr)
        node = self.known.get(key)
        if node is None:
            if len(self.known) > MOST_VALUES:
                msg = (
                    f"it falls into more than {MOST_VALUES:,} values, which would take minutes to compile: compute "
                    f"features together, not one by one, and repeat less in a step"
                )
                raise TooManyValuesError(msg)
            node = self.known[key] = Node(op, args, width, attr)
        return node

    def constant(self, value: float) -> Node:
        """Return a constant of width one."""
        return self.node("constant", (), 1, (float(value),))

    def composite(self, op: str, args: tuple[Node, ...], attr: tuple[Any, ...]) -> Node:
        """Apply an operation of PyTorch's to each number; `attr` are its arguments, see `Node`."""
        return self.node(op, args, max(a.width for a in args), attr)

    def alike(self, node: Node, args: tuple[Node, ...]) -> Node:
        """Apply a node's operation to other values, which may be of another width if it works on each number."""
        if node.is_composite:
            return self.composite(node.op, args, node.attr)
        if node.is_strided:
            return self.strided(node.op, args, node.width, node.attr)
        if node.op == "part":
            return self.part(args[0], node.attr[0], node.width)
        return (
            self.pointwise(node.op, *args) if node.op in OPERATIONS else self.node(node.op, args, node.width, node.attr)
        )

    def pointwise(self, op: str, *args: Node) -> Node:
        """Apply an elementary operation to each number."""
        operation = OPERATIONS.get(op)
        if operation is None:
            msg = f"`{op}` is not an operation of the loop program"
            raise AnyRNNError(msg)
        numbers = [a.attr[0] if a.op == "constant" and a.width == 1 else None for a in args]
        if None not in numbers and operation.folds and not operation.gives_mask:
            folded = _folded(operation, numbers)
            if folded is not None:
                return self.constant(folded)
        if op == "ne" and args[0].is_mask and numbers[1] == 0:
            return args[0]
        for position, neutral in enumerate(operation.neutral):
            if neutral is not None and str(numbers[position]) == str(neutral):  # 0 is not -0
                return args[1 - position]
        return self.node(op, args, max(a.width for a in args))

    def widened(self, node: Node, width: int) -> Node:
        """Return a value of width one, expanded to another width."""
        if node.op == "constant":
            return self.node("constant", (), width, node.attr)
        return self.node("mul", (node, self.node("constant", (), width, (1.0,))), width)

    def reduction(self, op: str, args: tuple[Node, ...]) -> Node:
        """Reduce the features of all arguments to one number."""
        return self.node(op, args, 1)

    def strided(self, op: str, args: tuple[Node, ...], width: int, attr: tuple[Any, ...]) -> Node:
        """Apply one of `STRIDED`. Its arguments are read from memory, where constants and masks have to be put."""
        zero = [a.op == "constant" and a.attr[0] == 0 for a in args]
        if (op == "contract" and any(zero)) or (op == "arrange" and all(zero)):
            return self.node("constant", (), width, (0.0,))
        return self.node(op, tuple(map(self.stored, args)), width, attr)

    def stored(self, node: Node) -> Node:
        """A value as it can be read from memory: as numbers, and not a constant."""
        if node.is_mask:
            node = self.pointwise("where", node, self.constant(1), self.constant(0))
        return self.pointwise("positive", node) if node.op == "constant" else node

    def part(self, node: Node, start: int, width: int) -> Node:
        """Return a range of a value that is in memory as a whole: it is read from there, not computed."""
        if node.op == "part":
            node, start = node.args[0], node.attr[0] + start
        if node.width == width or not node.args:
            return self.cut(node, start, width)
        return self.node("part", (self.stored(node),), width, (start,))

    def cut(self, node: Node, start: int, width: int) -> Node:
        """Return a range of a value. Only leaves and products are cut; other values are computed from ranges."""
        if node.width == 1 or (start == 0 and width == node.width):
            return node
        if node.is_strided or node.op == "part" or node.op in _LIMITING:
            return self.part(node, start, width)
        if node.op == "constant":
            return self.node("constant", (), width, node.attr)
        if not node.args:
            array, first, *kind = node.attr
            return self.node(node.op, (), width, (array, first + start, *kind))
        if node.op == "dot":
            columns = tuple((m, row, col + start, transposed) for m, row, col, transposed in node.attr)
            return self.node("dot", node.args, width, columns)
        key = node, start, width  # what is used twice is cut once, else cutting a long chain would take for ever
        if key not in self._cuts:
            self._cuts[key] = self.alike(node, tuple(self.cut(a, start, width) for a in node.args))
        return self._cuts[key]

    def dot(self, terms: Iterable[tuple[Node, tuple[str, int, int, bool]]], width: int) -> Node:
        """Return the sum over the terms of value @ matrix[rows from row, columns from column]."""
        terms = sorted(terms, key=lambda term: str((term[0].op, term[0].attr, term[1])))
        return self.node("dot", tuple(t[0] for t in terms), width, tuple(t[1] for t in terms))

    def rebuild(
        self, roots: Iterable[Node], replace: Callable[[Node, tuple[Node, ...]], Node | None]
    ) -> dict[Node, Node]:
        """Rebuild graphs from the leaves up; `replace` may return another node, given the new arguments."""
        rebuilt: dict[Node, Node] = {}
        for node in ordered(roots):
            args = tuple(rebuilt[a] for a in node.args)
            new = replace(node, args)
            rebuilt[node] = self.alike(node, args) if new is None else new
        return rebuilt


def _key(op: str, args: tuple[Node, ...], width: int, attr: tuple[Any, ...]) -> object:
    """The key of equal nodes. Constants are equal if their texts are: 0 is not -0, and NaN is NaN."""
    return op, args, width, repr(attr) if op == "constant" or op.startswith("aten.") else attr


def _folded(operation: Operation, numbers: Sequence[Any]) -> float | None:
    """The result of an operation on constants; None if it differs where each is rounded to float32."""
    double, single = (
        operation.function(*(torch.tensor(n, dtype=dtype) for n in numbers)) for dtype in (torch.float64, torch.float32)
    )
    return double.item() if str(double.float().item()) == str(single.item()) else None


def ordered(roots: Iterable[Node], is_input: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """Return the nodes that the roots need, in topological order: arguments before users; inputs need no arguments."""
    done: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done[node] = None
        else:
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args) if a not in done and not is_input(node))
    return list(done)


def count_uses(roots: Iterable[Node]) -> dict[Node, int]:
    """Return how often each node is used, as an argument or as a root."""
    roots = list(roots)
    uses = dict.fromkeys(ordered(roots), 0)
    for node in [*roots, *(a for n in uses for a in n.args)]:
        uses[node] += 1
    return uses


def evaluate(nodes: Iterable[Node], known: dict[Node, Tensor], matrices: Mapping[str, Tensor] = _NONE) -> None:
    """Compute nodes in PyTorch, (B, width) each, adding them to `known`, which holds the leaves."""
    for node in nodes:
        if node in known:
            continue
        args = [known[a] for a in node.args]
        if node.op == "constant":
            like = next(iter(known.values()))
            known[node] = like.new_full(() if node.width == 1 else (node.width,), node.attr[0])
        elif node.op == "dot":
            products = []
            for arg, (m, row, col, transposed) in zip(node.args, node.attr, strict=True):
                matrix = matrices[m].t() if transposed else matrices[m]
                value = known[arg].expand(*known[arg].shape[:-1], arg.width)
                products.append(value @ matrix[row : row + arg.width, col : col + node.width])
            known[node] = sum(products[1:], products[0])
        elif node.is_strided:
            known[node] = _strided(
                node, [t.expand(*t.shape[:-1], a.width) for t, a in zip(args, node.args, strict=True)]
            )
        elif node.op == "part":
            known[node] = args[0][..., node.attr[0] : node.attr[0] + node.width]
        elif node.op == "sum":
            totals = [a.sum(-1, keepdim=True) for a in args]
            known[node] = sum(totals[1:], totals[0])
        elif node.op == "max":
            known[node] = torch.cat(args, -1).amax(-1, keepdim=True)
        elif node.is_composite:
            _, name, overload = node.op.split(".")
            positional, named = filled(node.attr, args)
            result = getattr(getattr(torch.ops.aten, name), overload)(*positional, **named)
            known[node] = result if isinstance(result, Tensor) else result[0]
        else:
            known[node] = OPERATIONS[node.op].function(*args)


def offsets(sizes: Sequence[int], first: int, strides: Sequence[int]) -> NDArray[np.int64]:
    """Where the numbers of a box are: an array of its sizes."""
    places = np.full(tuple(sizes), first, dtype=np.int64)
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        places += (np.arange(size) * stride).reshape(-1, *[1] * (len(sizes) - 1 - axis))
    return places


def contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    """The strides of a box whose numbers lie side by side."""
    return tuple(math.prod(sizes[k + 1 :]) for k in range(len(sizes)))


def _strided(node: Node, args: list[Tensor]) -> Tensor:
    """One of `STRIDED` of values (..., width)."""
    if node.op == "largest":
        return args[0].unflatten(-1, node.attr).amax(-2).flatten(-2)  # type: ignore[no-any-return]
    if node.op == "arrange":
        places = np.full(node.width, -1)
        for k, sizes, first, strides, to, to_strides in node.attr:
            places[offsets(sizes, to, to_strides)] = offsets(sizes, first, strides) + sum(
                a.width for a in node.args[:k]
            )
        return torch.cat([*args, args[0].new_zeros(*args[0].shape[:-1], 1)], -1)[..., torch.from_numpy(places)]
    sizes, summed, *reads = node.attr
    letters = "abcdefghijklmnopqrstuvwxyz"[: len(sizes) + len(summed)]
    terms, inputs = [], []
    for arg, (first, strides) in zip(args, reads, strict=True):
        axes = [(n, stride, a) for n, stride, a in zip((*sizes, *summed), strides, letters, strict=True) if stride]
        places = offsets([n for n, *_ in axes], first, [stride for _, stride, _ in axes])
        inputs.append(arg[..., torch.from_numpy(places)])
        terms.append("..." + "".join(a for *_, a in axes))
    # A dimension that no argument has: the sum of as many equal numbers, or the number repeated.
    present = set("".join(terms)) - {"."}
    scale = math.prod(n for n, a in zip(summed, letters[len(sizes) :], strict=True) if a not in present)
    result = torch.einsum(f"{','.join(terms)}->...{''.join(a for a in letters[: len(sizes)] if a in present)}", *inputs)
    shape = [n if a in present else 1 for n, a in zip(sizes, letters, strict=False)]
    lead = result.shape[: result.dim() - sum(a in present for a in letters[: len(sizes)])]
    whole: Tensor = result.reshape(*lead, *shape).expand(*lead, *sizes) * scale
    return whole.reshape(*lead, node.width)


def filled(attr: tuple[Any, ...], values: Iterable[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of an operation of PyTorch's, with values in the places of `HERE`."""
    positional, named = attr
    following = iter(values)
    return [next(following) if a == HERE else a for a in positional], {
        k: next(following) if a == HERE else a for k, a in named
    }
