"""The graph of a cell's step: ATen operations in order, on numbered tensors. `trace` makes it, `split` reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

#: The names of arguments of ATen operations that are shapes, or sizes of the batch.
SHAPE_ARGUMENTS = ("size", "shape", "repeats", "N")


#: The classes of plain tensors, without a `__torch_dispatch__` or `__torch_function__` of their own.
PLAIN = (Tensor, nn.Parameter, nn.Buffer)


class Ref(int):
    """A tensor in a graph, by number."""


def leaves(value: Any) -> list[Any]:
    """What is in tuples, lists and dicts, however deep. PyTorch's `tree_leaves` takes ten times as long."""
    if isinstance(value, tuple | list):
        return [leaf for part in value for leaf in leaves(part)]
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    return [value]


def replaced(kind: type, other: Callable[[Any], Any], value: Any) -> Any:
    """The same tuples, lists and dicts with another object in the place of each that is of a kind."""
    if isinstance(value, kind):
        return other(value)
    if type(value) in (tuple, list):
        return type(value)([replaced(kind, other, part) for part in value])
    if type(value) is dict:
        return {key: replaced(kind, other, part) for key, part in value.items()}
    return value


@dataclass(frozen=True)
class Op:
    """One ATen operation: arguments with a Ref for each tensor, and its outputs; if `many`, it returns a sequence."""

    overload: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]
    many: bool

    @property
    def inputs(self) -> Iterator[Ref]:
        """The tensors it reads."""
        for value in leaves((self.args, dict(self.kwargs))):
            if isinstance(value, Ref):
                yield value

    @property
    def short_name(self) -> str:
        """The operation without its namespace and overload, such as "add"."""
        return self.overload._schema.name.removeprefix("aten::")

    @property
    def name(self) -> str:
        """The operation without its namespace, such as "add.Tensor"."""
        return str(self.overload).removeprefix("aten.")


class GraphExtra(NamedTuple):
    """A further argument of a step: its tensor, and its kind as in `anyrnn.protocol.ExtraForm`."""

    ref: Ref
    kind: str


@dataclass(frozen=True)
class Graph:
    """The graph of a step of a cell.

    Attributes:
        x: The input.
        states: The state variables before the step.
        extras: The further arguments.
        weights: Parameters, buffers and tensor attributes, by dotted name.
        ops: The operations, in order.
        outputs: What the step gives beside the new states; nothing if its output is the first of these.
        new_states: The state variables after the step.
        batch: The batch size of the trace.
        shapes: The shape of every tensor.
        dtypes: The type of every tensor.
        names: For tensors that a local variable of the user's code holds, its name.
        locals: The tensors that the local variables of the cell's methods hold when these return, by name.
    """

    x: Ref
    states: tuple[Ref, ...]
    extras: tuple[GraphExtra, ...]
    weights: Mapping[str, Ref]
    ops: tuple[Op, ...]
    outputs: tuple[Ref, ...]
    new_states: tuple[Ref, ...]
    batch: int
    shapes: Mapping[Ref, tuple[int, ...]]
    dtypes: Mapping[Ref, torch.dtype]
    names: Mapping[Ref, str]
    locals: Mapping[str, Ref]

    @property
    def series(self) -> tuple[Ref, ...]:
        """What a call returns for every step (the `ys` of `jax.lax.scan`): the outputs, and what else was asked for."""
        return self.outputs or self.new_states[:1]

    @property
    def inputs(self) -> tuple[Ref, ...]:
        """The tensors of which there is one for every step: x first."""
        return self.x, *self.extras_of("input")

    def extras_of(self, kind: str) -> tuple[Ref, ...]:
        """The further arguments of a kind."""
        return tuple(e.ref for e in self.extras if e.kind == kind)

    def asked(self, record: Iterable[str] = (), states: bool = False) -> Graph:
        """The graph that gives local variables of the cell's step, by name, and its new states for every step as well.

        Raises:
            AnyRNNError: if there is no such variable.
        """
        if not record and not states:
            return self
        found = tuple(self._local(name) for name in record)
        return replace(self, outputs=(*self.series, *found, *(self.new_states if states else ())))

    def _local(self, name: str) -> Ref:
        """The tensor that a local variable of the cell's step holds."""
        ref = self.locals.get(name)
        if ref is None or self.shapes[ref][:1] != (self.batch,):
            msg = (
                f"`{name}`, which is to be recorded, is no local variable of its step with a row for each of the batch"
            )
            raise AnyRNNError(msg)
        return ref

    def __str__(self) -> str:
        """One operation a line."""

        def show(value: Any) -> str:
            if isinstance(value, Ref):
                return self.names.get(value, f"t{int(value)}")
            if isinstance(value, list | tuple):
                return f"[{', '.join(show(v) for v in value)}]"
            return str(value)

        lines = []
        for op in self.ops:
            shapes = ", ".join(str(self.shapes[r]).replace(str(self.batch), "B") for r in op.outputs)
            args = ", ".join([*map(show, op.args), *(f"{k}={show(v)}" for k, v in op.kwargs.items())])
            lines.append(f"{', '.join(map(show, op.outputs))} = {op.name}({args})  # {shapes}")
        return "\n".join(lines)


def scaled(value: Any, batch: int, rows: int) -> Any:
    """A shape or a size, with another number of rows in the place of the batch; anything else as it is."""
    if isinstance(value, list | tuple):
        return [scaled(n, batch, rows) for n in value]
    return value // batch * rows if type(value) is int and value % batch == 0 < value else value


def run_ops(graph: Graph, tensors: dict[Ref, Tensor], rows: int) -> None:
    """Run a graph once on so many rows, adding its results to `tensors`, which has its inputs.

    For running a part often, there is `torch_ops.Ops`.
    """
    for op in graph.ops:
        args = [
            scaled(value, graph.batch, rows) if argument.name in SHAPE_ARGUMENTS else value
            for value, argument in zip(op.args, op.overload._schema.arguments, strict=False)
        ]
        args, kwargs = replaced(Ref, tensors.__getitem__, (args, dict(op.kwargs)))
        result = op.overload(*args, **kwargs)
        tensors.update(zip(op.outputs, result if op.many else (result,), strict=True))
