"""A cell's graph in four parts: once, before, loop, after.

once    depends on the weights only: run once a call, in PyTorch
(rows)  on a context, too, which is the same at every step: likewise run once a call, for all rows of the batch
before  depends on the input too, not on the state: run for all time steps at once, in PyTorch
loop    depends on the state, and the next state depends on it: becomes a loop program
after   depends on the state, and no state depends on it: run for all time steps at once, in PyTorch

PyTorch runs and differentiates the parts around the loop, so they may hold any operation. Products of the input with a
weight matrix are part of the loop program.

For a single step there is nothing to gain by computing all time steps at once: `split(graph, as_step=True)` has in the
loop what is otherwise before and after it, but for what no loop program can hold.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from anyrnn.compiler.draws import drawn_apart
from anyrnn.compiler.dtypes import Types
from anyrnn.compiler.graph import Graph, Op, Ref
from anyrnn.compiler.lower import MOST_SEGMENTS, Lowered, Lowering
from anyrnn.compiler.node import Builder, Node, ordered
from anyrnn.compiler.passes import PASSES
from anyrnn.compiler.program import ROLES, Array, Program, free_name
from anyrnn.compiler.rules import INDEX_ARGUMENTS, RULES, lower
from anyrnn.compiler.torch_ops import PRODUCTS, Ops, mixes_rows
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

_ONCE, _ROW, _BEFORE, _LOOP = range(4)

_LONG = 100  # operations of a step

#: Operations on the input that the loop program computes, since they lead to or from products. A norm behind a product
#: costs less there than as passes over the memory of all steps.
_ABSORBED = frozenset({"addmm", "mm", "add", "cat", "slice", "split", "split_with_sizes", "unsafe_split", "unbind"}) | {
    *("select", "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "chunk", "detach", "alias", "clone"),
    *("native_layer_norm", "native_group_norm"),
}
#: Operations that fill a tensor with one number: which of their arguments it is.
_FACTORIES: Mapping[str, Callable[[Sequence[Any]], float]] = {
    **dict.fromkeys(("zeros", "new_zeros", "empty", "new_empty", "empty_like"), lambda args: 0.0),
    **dict.fromkeys(("ones", "new_ones"), lambda args: 1.0),
    "scalar_tensor": lambda args: float(args[0]),
    "full": lambda args: float(args[1]),
    "new_full": lambda args: float(args[2]),
}


@dataclass(frozen=True)
class Split:
    """The four parts of a cell.

    Attributes:
        graph: The whole step, random numbers drawn apart from the state.
        once, rows, before, after: The operations that PyTorch runs: `once` and `rows` once a call, `before` and `after`
            for the rows of all time steps.
        lowered: The loop as it is lowered, before any pass.
        program: The loop, after `PASSES`.
        tensors: For each stream, row, vector, matrix and output of the program, by name, the tensor of the graph.
        of_rows: The tensors of the graph with one for each row, the same at every step.
    """

    graph: Graph
    once: tuple[Op, ...]
    rows: tuple[Op, ...]
    before: tuple[Op, ...]
    after: tuple[Op, ...]
    lowered: Program
    program: Program
    tensors: Mapping[str, Ref]
    of_rows: tuple[Ref, ...]

    @property
    def series(self) -> tuple[Ref, ...]:
        """What there is for every step."""
        return self.graph.series


def split(graph: Graph, most_segments: int = MOST_SEGMENTS, as_step: bool = False) -> Split:
    """Split a graph; features that lie in more segments than so many are moved together first.

    Args:
        graph: The graph.
        most_segments: See `Lowering`.
        as_step: It is to run one step at a time: as much as can be is in the loop.

    Raises:
        AnyRNNError: if the loop holds an operation that the loop program lacks. The message names it.
    """
    graph = drawn_apart(graph)
    graph = replace(graph, shapes=dict(graph.shapes), dtypes=dict(graph.dtypes))  # `_hoist` adds tensors to the graph
    part = _part_of(graph)
    if as_step:
        part = _moved_inside(graph, part)
    after = _after(graph, part, as_step)
    computed_after = {r for op in after for r in op.outputs}
    read_after = [*graph.series, *(r for op in after for r in op.inputs)]  # returned, or read by `after`
    outputs = tuple(dict.fromkeys(r for r in read_after if part[r] == _LOOP and r not in computed_after))
    _check_rows(graph, part, read_after)

    loop = _LoopLowering(graph, part, most_segments)
    pieces = {array: loop.pieces(ref) for array, ref in zip(loop.states, graph.new_states, strict=True)}
    for ref in outputs:
        nodes = loop.pieces(ref)
        pieces[loop.array("output", ref, sum(n.width for n in nodes))] = nodes
    program = lowered = Program(loop.arrays(pieces), pieces, loop.names())
    for transform in PASSES:
        program = transform(program)
    tensors = {a.name: loop.tensors[a.name] for a in program.of("stream", "row", "vector", "matrix", "output")}
    graph = replace(graph, ops=(*graph.ops, *loop.hoisted))
    read = _ancestors(graph.ops, (r for r in (*tensors.values(), *read_after) if part[r] != _LOOP))
    once, rows, before = (
        tuple(op for op in graph.ops if part[op.outputs[0]] == which and read.intersection(op.outputs))
        for which in (_ONCE, _ROW, _BEFORE)
    )
    of_rows = tuple(r for r, p in part.items() if p == _ROW)
    return Split(graph, once, _with_spread(rows, once, graph), before, after, lowered, program, tensors, of_rows)


def _after(graph: Graph, part: Mapping[Ref, int], as_step: bool) -> tuple[Op, ...]:
    """The operations after the loop: they depend on the state, a result needs them, and no new state does."""
    for_states, for_results = _ancestors(graph.ops, graph.new_states), _ancestors(graph.ops, graph.series)
    ops = [op for op in graph.ops if part[op.outputs[0]] == _LOOP and for_states.isdisjoint(op.outputs)]
    if as_step:  # only those that no loop program can hold, and what reads them
        ops = _behind(ops, [op for op in ops if not _is_lowerable(op)])
    return tuple(op for op in ops if for_results.intersection(op.outputs))


def _with_spread(rows: tuple[Op, ...], once: tuple[Op, ...], graph: Graph) -> tuple[Op, ...]:
    """The operations for rows, after those that spread weights over them: they are as many as the batch here."""
    if not rows:
        return rows
    needed = _ancestors(once, (r for s in rows for r in s.inputs))
    spread = (s for s in once if any(graph.shapes[r][:1] == (graph.batch,) for r in s.outputs))
    return *(s for s in spread if needed.intersection(s.outputs)), *rows


def _check_rows(graph: Graph, part: Mapping[Ref, int], read_after: Iterable[Ref]) -> None:
    """Check that tensors that are read after the loop, and weights spread over rows, can be computed for all steps."""
    for ref in read_after:
        if part[ref] == _BEFORE and graph.shapes[ref][:1] != (graph.batch,):
            msg = f"a tensor {graph.shapes[ref]} without a batch is computed from x"
            raise AnyRNNError(msg)
    for op in graph.ops:
        spread = any(graph.shapes[r][:1] == (graph.batch,) for r in op.inputs)
        if spread and part[op.outputs[0]] == _ONCE and mixes_rows(op, graph):
            msg = f"`{op.overload}` of weights along the batch"
            raise AnyRNNError(msg)


def _part_of(graph: Graph) -> dict[Ref, int]:
    """The part that each tensor belongs to: that of the last of its inputs."""
    part = dict.fromkeys(graph.weights.values(), _ONCE) | dict.fromkeys(graph.states, _LOOP)
    part |= dict.fromkeys(graph.inputs, _BEFORE) | dict.fromkeys(graph.extras_of("context"), _ROW)
    part |= dict.fromkeys(graph.extras_of("shared"), _ONCE)
    for op in graph.ops:
        last = max((part[r] for r in op.inputs), default=_ONCE)
        if last == _ROW and mixes_rows(op, graph):
            last = _BEFORE  # which rows there are differs from step to step
        if torch.Tag.nondeterministic_seeded in op.overload.tags:
            last = max(last, _BEFORE)  # drawn anew at every step
        part.update(dict.fromkeys(op.outputs, last))
    return part


def _is_lowerable(op: Op) -> bool:
    """Whether a loop program has the operation, as far as its name tells."""
    known = op.short_name in RULES or op.short_name in PRODUCTS or op.short_name in _FACTORIES
    return known and torch.Tag.nondeterministic_seeded not in op.overload.tags


def _moved_inside(graph: Graph, part: Mapping[Ref, int]) -> dict[Ref, int]:
    """The parts, where operations on x are in the loop unless they lead to one that has to be before it."""
    before = [op for op in graph.ops if part[op.outputs[0]] == _BEFORE]
    kept = _ancestors(before, (r for op in before if not _is_lowerable(op) for r in op.outputs))
    moved = {r for op in before for r in op.outputs} - kept
    return {ref: _LOOP if ref in moved else which for ref, which in part.items()}


def _behind(ops: Iterable[Op], first: Sequence[Op]) -> list[Op]:
    """The operations that read, at any distance, what the first ones compute; and these."""
    computed = {r for op in first for r in op.outputs}
    found = []
    for op in ops:
        if not computed.isdisjoint((*op.inputs, *op.outputs)):
            computed.update(op.outputs)
            found.append(op)
    return found


def _ancestors(ops: Sequence[Op], refs: Iterable[Ref]) -> set[Ref]:
    """Tensors, and all that they are computed from."""
    ancestors = set(refs)
    for op in reversed(ops):
        if ancestors.intersection(op.outputs):
            ancestors.update(op.inputs)
    return ancestors


class _LoopLowering:
    """Lowers the tensors that the loop needs, from the new states back to those that it reads as arrays.

    ::

        e = exp(x)              before  a stream: PyTorch computes it for all steps
        A = sub(M, M_t)         once    a matrix, as it is multiplied with; else a vector
        p = mm(e, W_t)          before  lowered nevertheless, as it is a product (`_is_absorbed`)
        q = mm(h, A)            loop    lowered: dot(h[0:8] @ A[0:8, 0:8])
        new = tanh(add(p, q))   loop    lowered: where `lowered` begins, for `new` is the new state
    """

    def __init__(self, graph: Graph, part: dict[Ref, int], most_segments: int) -> None:
        self.graph = graph
        self.part = part
        self.producers = {ref: op for op in graph.ops for ref in op.outputs}
        self.types = Types(graph)
        self.builder = Builder()
        self.lowering = Lowering(self.builder, most_segments)
        self.tensors: dict[str, Ref] = {}  # by the name of an array, the tensor of the graph that it has
        self._arrays: dict[tuple[str, Ref], Array] = {}
        self.done: dict[Ref, Lowered] = {}  # the tensors that are lowered
        self.hoisted: list[Op] = []  # operations that were added to the graph: see `_hoist`
        self.states = [self.array("state", ref, self._width(ref)) for ref in graph.states]
        for name, ref in zip(self.states, graph.states, strict=True):
            leaf = self._leaf("state", name, self._width(ref))
            self.done[ref] = self.lowering.of_nodes([leaf], graph.shapes[ref][1:])

    def arrays(self, results: Mapping[str, tuple[Node, ...]]) -> tuple[Array, ...]:
        """The arrays of a program with these results, by role; rows that only products read are not needed any more."""
        read = {node.attr[0] for node in ordered(p for pieces in results.values() for p in pieces) if node.is_leaf}
        needed = [a for a in self._arrays.values() if a.role != "row" or a.name in read]
        return tuple(sorted(needed, key=lambda a: ROLES.index(a.role)))

    def array(self, role: str, ref: Ref, width: int, rows: int = 0) -> str:
        """Return the name of the array that a tensor is in a role; there is a new one at the first time."""
        if (role, ref) not in self._arrays:
            number = sum(other == role for other, _ in self._arrays)
            wanted = None if role == "output" else self._name_of(ref)  # the value keeps its name
            name = free_name(wanted or f"{role}{number}", self.tensors)
            place = {"stream": "padded" if ref in self.graph.inputs else "packed"}.get(role, "")
            self._arrays[role, ref] = Array(name, role, width, rows, place)
            self.tensors[name] = ref
        return self._arrays[role, ref].name

    def _name_of(self, ref: Ref) -> str | None:
        """What the cell's code calls a tensor."""
        if ref == self.graph.x:
            return "x"
        weights = {r: name for name, r in self.graph.weights.items()}
        if ref in weights:
            return weights[ref]
        op = self.producers.get(ref)
        if op is not None and op.name == "t.default" and op.args[0] in weights:
            return f"{weights[op.args[0]]}_t"
        return self.graph.names.get(ref)

    def _leaf(self, role: str, name: str, width: int) -> Node:
        return self.builder.node(role, (), width, (name, 0))

    def pieces(self, ref: Ref) -> tuple[Node, ...]:
        """Return the nodes that make up a tensor, side by side; it is lowered, if it was not."""
        return self.lowering.pieces(self.lowered(ref))

    def names(self) -> dict[Node, str]:
        """Return the cell's own names of values."""
        names: dict[Node, str] = {}
        for ref, name in self.graph.names.items():
            if ref in self.done:
                pieces = self.lowering.pieces(self.done[ref])
                if len(pieces) == 1 and pieces[0].args:
                    names.setdefault(pieces[0], name)
        return names

    def lowered(self, ref: Ref) -> Lowered:
        """Lower a tensor."""
        waiting = [ref] if len(self.graph.ops) > _LONG else []
        while waiting:  # what it is computed from is lowered first, since Python does not recurse so deep
            before = [r for r in self._lowered_before(waiting[-1]) if r not in self.done]
            if before:
                waiting += before
            else:
                self._lower_tensor(waiting.pop())
        return self._lower_tensor(ref)

    def _lowered_before(self, ref: Ref) -> list[Ref]:
        """The tensors from which one is lowered, if it is."""
        op = self.producers.get(ref)
        if op is None or op.short_name in _FACTORIES or self.part[ref] == _ONCE:
            return []
        if self.part[ref] == _BEFORE and not self._is_absorbed(ref):
            return []
        return [r for r in (_addend_rows_matrix(op)[:2] if op.short_name in PRODUCTS else op.inputs) if r is not None]

    def _lower_tensor(self, ref: Ref) -> Lowered:
        if ref not in self.done:
            part, op = self.part[ref], self.producers.get(ref)
            if op is not None and op.short_name in _FACTORIES:
                self.done[ref] = self._constant(ref, op)
            elif part == _ONCE:
                self.done[ref] = self._vector(ref)
            elif part == _ROW:
                self.done[ref] = self._rows(ref, "row")
            elif part == _BEFORE and not self._is_absorbed(ref):
                self.done[ref] = self._rows(ref, "stream")
            else:
                assert op is not None  # only inputs and weights are no operation's output
                results = dict(zip(op.outputs, self._lower(op), strict=False))
                if ref not in results:
                    msg = f"`{op.overload}` in the loop, which of equal numbers gives any: take the indices of `sort`"
                    raise AnyRNNError(msg)
                self.done.update((r, tensor) for r, tensor in results.items() if self._is_of_its_shape(r, tensor))
                if ref not in self.done:
                    msg = f"`{op.overload}` in the loop in this form, with a result {self.graph.shapes[ref]}"
                    raise AnyRNNError(msg)
        return self.done[ref]

    def _is_of_its_shape(self, ref: Ref, tensor: Lowered) -> bool:
        """Whether a rule has given what PyTorch did: one row for all is not a row of each, say."""
        expected = tuple(self.graph.shapes[ref])
        shape = (self.graph.batch, *tensor.codes.shape) if tensor.batched else tensor.codes.shape
        if tensor.batched and expected[:1] != shape[:1]:  # rows side by side, as in x.view(2 * B, -1), are rows
            return bool(math.prod(expected) == math.prod(shape))
        return shape == expected

    def _is_absorbed(self, ref: Ref) -> bool:
        """Whether a tensor computed from the input is lowered rather than computed by PyTorch."""
        op = self.producers.get(ref)
        if op is None or op.short_name not in _ABSORBED:
            return False
        inputs = [r for r in op.inputs if self.part[r] == _BEFORE]
        if op.short_name in ("addmm", "mm"):
            _, rows, matrix = _addend_rows_matrix(op)
            whole = self.graph.shapes[rows][0] == self.graph.batch  # a Linear on (B, S, K) multiplies B S rows
            return whole and self.part[matrix] == _ONCE and self.part[rows] == _BEFORE
        return all(r in self.graph.inputs or self._is_absorbed(r) for r in inputs) and bool(inputs)

    def _rows(self, ref: Ref, role: str) -> Lowered:
        """Read a tensor that PyTorch has computed for each row, and for each step if it is a stream."""
        shape = self.graph.shapes[ref]
        if not shape or shape[0] != self.graph.batch:
            msg = f"a tensor {shape} without a batch is computed from {'x' if role == 'stream' else 'a context'}"
            raise AnyRNNError(msg)
        width = self._width(ref)
        node = self._leaf(role, self.array(role, ref, width), width)
        return self._mask_if_bool(ref, self.lowering.of_nodes([node], shape[1:]))

    def _width(self, ref: Ref) -> int:
        """The numbers of a row of a tensor."""
        return int(torch.Size(self.graph.shapes[ref][1:]).numel())

    def _vector(self, ref: Ref) -> Lowered:
        shape = self.graph.shapes[ref]
        op = self.producers.get(ref)
        if shape and shape[0] == self.graph.batch and op:
            return self._one_row(self._lower(op)[op.outputs.index(ref)])
        width = int(torch.Size(shape).numel())
        node = self._leaf("vector", self.array("vector", ref, width), width)
        return self._mask_if_bool(ref, self.lowering.of_nodes([node], shape, batched=False))

    def _constant(self, ref: Ref, op: Op) -> Lowered:
        shape = self.graph.shapes[ref]
        batched = shape[:1] == (self.graph.batch,)
        number = self.types.constant(ref, _FACTORIES[op.short_name](op.args))
        return self._mask_if_bool(ref, self.lowering.constant(number, shape[1:] if batched else shape, batched))

    def _one_row(self, tensor: Lowered) -> Lowered:
        """Each row of a weight that was expanded to the rows of the batch."""
        if tensor.batched:
            return tensor
        if (tensor.codes != tensor.codes[:1]).any():
            msg = "a weight with numbers of its own for each row of the batch"
            raise AnyRNNError(msg)
        return Lowered(tensor.codes[0], batched=True)

    def _mask_if_bool(self, ref: Ref, tensor: Lowered) -> Lowered:
        """A boolean tensor as a mask: arrays hold numbers, and so do constants."""
        return self.lowering.mask(tensor) if self.graph.dtypes[ref] == torch.bool else tensor

    def _lower(self, op: Op) -> list[Lowered]:
        if op.short_name in PRODUCTS:
            return [self._product(op)]
        if op.short_name in INDEX_ARGUMENTS:
            at = INDEX_ARGUMENTS[op.short_name]
            indices = pytree.tree_map_only(Ref, lambda ref: self._index(op, ref), op.args[at])
            op = replace(op, args=(*op.args[:at], indices, *op.args[at + 1 :]))
        args, kwargs = pytree.tree_map_only(Ref, self.lowered, (op.args, dict(op.kwargs)))
        if op.short_name in RULES:  # else `lower` says that there is no rule
            self.types.check(op)
        results = lower(self.lowering, op, args, kwargs)
        return [self._mask_if_bool(ref, tensor) for ref, tensor in zip(op.outputs, results, strict=False)]

    def _index(self, op: Op, ref: Ref) -> NDArray[Any]:
        """The numbers of a tensor that are the same in every call, since they are in the cell's code."""
        ancestors = _ancestors(self.graph.ops, [ref])
        ops = [op for op in self.graph.ops if ancestors.intersection(op.outputs)]
        made = {r for op in ops for r in op.outputs}
        if ancestors - made or any(torch.Tag.nondeterministic_seeded in op.overload.tags for op in ops):
            names = [name for name, r in self.graph.weights.items() if r in ancestors]
            msg = (
                f"`{op.overload}` in the loop takes features by numbers of "
                f"{f'`{names[0]}`' if names else 'x or the state'}, which may be others in the next call: write them "
                f"as a list, h[:, [2, 0, 1]], or take one that is an attribute"
            )
            raise AnyRNNError(msg)
        tensors: dict[Ref, Tensor] = {}
        Ops(ops, self.graph).run(tensors, self.graph.batch)
        return tensors[ref].numpy()

    def _product(self, op: Op) -> Lowered:
        addend, rows, matrix = _addend_rows_matrix(op)
        shape = self.graph.shapes[matrix]
        if self.part[matrix] != _ONCE or len(shape) != 2 or shape[0] == self.graph.batch:
            msg = f"`{op.overload}` in the loop with a matrix that is not a weight"
            raise AnyRNNError(msg)
        if set(op.kwargs.values()) - {1}:
            msg = f"`{op.overload}` in the loop with scale factors"
            raise AnyRNNError(msg)
        name = self.array("matrix", matrix, shape[1], shape[0])
        terms = self.lowering.terms(self._operand(rows))
        fixed = [(piece, row) for piece, row in terms if piece.op == "row"]
        others = [term for term in terms if term not in fixed]
        results = [self.lowering.dot(others, name, shape[1])] if others else []
        results += [self._hoist(fixed, matrix)] if fixed else []
        results += [] if addend is None else [self.lowered(addend)]
        return functools.reduce(functools.partial(self.lowering.pointwise, "add"), results)

    def _hoist(self, terms: Sequence[tuple[Node, int]], matrix: Ref) -> Lowered:
        """Leave products of rows that are the same at every step to PyTorch, which computes them once.

        In the graph they are within products that depend on the step, too; so operations are added for them.
        """
        aten, batch, columns = torch.ops.aten, self.graph.batch, self.graph.shapes[matrix][1]
        products = []
        for piece, row in terms:
            name, first = piece.attr
            ref = self.tensors[name]
            rows = self._add(_ROW, aten.reshape.default, (ref, [batch, self._width(ref)]), (batch, self._width(ref)))
            part = self._add(_ROW, aten.slice.Tensor, (rows, 1, first, first + piece.width), (batch, piece.width))
            weight = self._add(_ONCE, aten.slice.Tensor, (matrix, 0, row, row + piece.width), (piece.width, columns))
            products.append(self._add(_ROW, aten.mm.default, (part, weight), (batch, columns)))
        total = products[0]
        for product in products[1:]:
            total = self._add(_ROW, aten.add.Tensor, (total, product), (batch, columns))
        return self._rows(total, "row")

    def _add(self, part: int, overload: Any, args: tuple[Any, ...], shape: tuple[int, ...]) -> Ref:
        """Add an operation to `hoisted`, and its result to the graph's tensors; returns it."""
        ref = Ref(max(self.graph.shapes) + 1)
        self.graph.shapes[ref], self.graph.dtypes[ref] = shape, self.graph.dtypes[args[0]]  # type: ignore[index]
        self.part[ref] = part
        self.hoisted.append(Op(overload, args, {}, (ref,), many=False))
        return ref

    def _operand(self, ref: Ref) -> Lowered:
        """Lower the operand of a product: if it is computed from x alone, PyTorch computes it."""
        tensor = self.lowered(ref)
        if self.part[ref] == _BEFORE and not all(p.is_leaf for p in self.lowering.pieces(tensor)):
            return self._rows(ref, "stream")
        return tensor


def _addend_rows_matrix(op: Op) -> tuple[Any, Ref, Ref]:
    """The arguments of addmm, or of mm, which has no addend."""
    addend, rows, matrix = (None, *op.args) if len(op.args) == 2 else op.args
    return addend, rows, matrix
