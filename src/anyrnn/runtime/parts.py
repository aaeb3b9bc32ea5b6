"""The four parts of a cell, run one after the other: PyTorch's, and the loop between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyrnn.compiler.trace import member_of
from anyrnn.runtime import autograd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyrnn.compiler.graph import Ref
    from anyrnn.compiler.torch_ops import Ops
    from anyrnn.runtime.kernel import Backend
    from anyrnn.runtime.layout import Layout
    from anyrnn.runtime.plans import Plan


@dataclass(frozen=True)
class Given:
    """What the steps of a call read beside the states.

    Attributes:
        inputs: x and the further arguments with one for each step, (T, B, ...).
        constants: What the loop reads that is the same at every step: its rows, vectors and matrices, by name.
        tensors: The weights, and what is computed of them.
        rows: The tensors with one for each row, the same at every step.
    """

    inputs: dict[Ref, Tensor]
    constants: dict[str, Tensor]
    tensors: dict[Ref, Tensor]
    rows: dict[Ref, Tensor]


def run_parts(
    plan: Plan, backend: Backend, cell: nn.Module, batch: Layout, x: Tensor, states: Sequence[Tensor],
    extras: Sequence[Tensor], from_zero: bool,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Run the four parts of a cell. Those around the loop see packed rows, so that padding never meets a weight.

    Args:
        plan: The cell, taken apart.
        backend: What runs the loop.
        cell: The cell, with the weights of this call.
        batch: The rows of the batch and their lengths.
        x: The input (T, B, ...), float32 or float64.
        states: The initial states (B, ...), of the same type.
        extras: The further arguments of the step.
        from_zero: The initial states are zero.

    Returns:
        What there is for every step, (T, B, ...) each, zero at padded steps; and the final states (B, ...).
    """
    given = prepare(plan, cell, batch, x, extras, batch.total)

    def run_loop(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return autograd.run_loop(plan.loop, batch, backend, inputs, from_zero)

    return run_steps(plan, given, batch, states, run_loop)


def prepare(
    plan: Plan, cell: nn.Module, batch: Layout, x: Tensor, extras: Sequence[Tensor], count: int
) -> Given:  # fmt: skip
    """Compute what the steps read that is computed once a call; weights spread over rows for so many packed rows."""
    graph, dtype = plan.split.graph, x.dtype
    tensors = weights_of(plan, cell, dtype)
    inputs = {graph.x: x}
    rows: dict[Ref, Tensor] = {}
    for extra, tensor in zip(graph.extras, extras, strict=True) if extras else ():
        if extra.kind == "context":
            rows[extra.ref] = batch.with_steps(tensor)
        else:
            (inputs if extra.kind == "input" else tensors)[extra.ref] = tensor
    plan.once.run(tensors, count)
    if rows:
        rows.update(tensors)
        plan.rows.run(rows, batch.B)
    constants = {}
    for name, ref, role in plan.arrays:
        if role == "matrix":
            constants[name] = as_matrix(tensors[ref], dtype)
        elif role == "row":
            constants[name] = flat(as_array(rows[ref], dtype))
        elif role == "vector":
            constants[name] = as_array(tensors[ref], dtype)
    return Given(inputs, constants, tensors, rows)


def run_steps(
    plan: Plan, given: Given, batch: Layout, states: Sequence[Tensor],
    run_loop: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Run what is before the loop, the loop, by a function from its inputs to its results, and what is after it."""
    graph, tensors, padded, rows = plan.split.graph, {**given.tensors}, given.inputs, given.rows
    dtype = padded[graph.x].dtype
    for ref in plan.inputs_read:
        tensors[ref] = _packed(padded[ref], batch)
    for ref in plan.rows_read:
        tensors[ref] = batch.at_every_step(rows[ref])
    if plan.before.ops:
        _run_rows(plan.before, tensors, batch)
    inputs = {name: as_array(s, dtype) for name, s in zip(plan.loop.states, states, strict=True)}
    if not plan.has_flat_states:
        inputs = {name: flat(s) for name, s in inputs.items()}
    inputs.update(given.constants)
    for name, ref, role in plan.arrays:
        if role == "stream":  # rows of numbers, whatever shape they have in the cell
            inputs[name] = as_array(padded[ref], dtype) if ref in padded else flat(as_array(tensors[ref], dtype))
    results = run_loop(inputs)
    finals = [results[name] for name in plan.loop.states]
    if not plan.has_flat_states:
        finals = [f.view(s.shape) for f, s in zip(finals, states, strict=True)]
    if plan.direct is not None:
        shape = graph.shapes[plan.series[0]]
        output = results[plan.direct]
        return [output if len(shape) == 2 else output.view(batch.T, batch.B, *shape[1:])], finals
    for name in plan.loop.outputs:
        ref = plan.split.tensors[name]
        shaped = _packed(results[name], batch).reshape(batch.total, *graph.shapes[ref][1:])
        tensors[ref] = shaped if graph.dtypes[ref].is_floating_point else shaped.to(graph.dtypes[ref])
    _run_rows(plan.after, tensors, batch)
    sources = [ref for *_, ref in plan.weights] + [*plan.inputs_read]
    taken = {tensors[r].untyped_storage()._cdata for r in sources}

    def unpacked(ref: Ref) -> Tensor:
        """The rows of a tensor as in the batch, in memory of their own."""
        rows = tensors[ref]
        shape = rows.shape[1:]
        if batch.is_ragged:
            padded = rows.new_zeros(batch.T * batch.B, *shape)
            return padded.index_copy_(0, batch.packed_index, rows).view(batch.T, batch.B, *shape)
        memory = rows.untyped_storage()._cdata
        if memory in taken or 0 in rows.stride():
            rows = rows.clone(memory_format=torch.contiguous_format)
        taken.add(memory)
        return rows.view(batch.T, batch.B, *shape)

    return [unpacked(ref) for ref in plan.series], finals


def weights_of(plan: Plan, cell: nn.Module, dtype: torch.dtype) -> dict[Ref, Tensor]:
    """The present weights of a cell, as it computes with them."""
    tensors: dict[Ref, Tensor] = {}
    for path, attribute, ref in plan.weights:
        weight = _weight(cell, path, attribute)
        if isinstance(weight, float):  # it was another one in an earlier call
            weight = torch.tensor(weight, dtype=dtype, device="cpu")
        tensors[ref] = as_precise(weight, dtype)
    return tensors


def as_precise(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a type of floating-point numbers; what is float64, whole numbers or masks stays what it is."""
    is_lower = tensor.dtype not in (dtype, torch.float64) and tensor.is_floating_point()
    return tensor.to(dtype) if is_lower else tensor


def _packed(tensor: Tensor, batch: Layout) -> Tensor:
    """The packed rows of a padded tensor."""
    rows = tensor.reshape(batch.T * batch.B, *tensor.shape[2:])
    return rows.index_select(0, batch.packed_index) if batch.is_ragged else rows


def flat(tensor: Tensor) -> Tensor:
    """A tensor with one dimension behind its rows."""
    return tensor if tensor.dim() == 2 else tensor.reshape(len(tensor), -1)


def as_array(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as machine code reads it."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if tensor.is_neg():  # its numbers have the other sign in memory
        tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def as_matrix(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as machine code reads a matrix, by both of its strides."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def _weight(cell: nn.Module, path: tuple[str, ...], attribute: str) -> Tensor | float:
    """The present tensor of a name: a parameter, a buffer or another attribute."""
    module: Any = cell
    for name in path:
        module = (module._modules.get(name) if isinstance(module, nn.Module) else None) or member_of(module, name)
    found: Tensor | float | None = module._parameters.get(attribute) if isinstance(module, nn.Module) else None
    return found if found is not None else member_of(module, attribute)


def _run_rows(ops: Ops, tensors: dict[Ref, Tensor], batch: Layout) -> None:
    """Run operations for the rows of all time steps at once; one step after the other if rows meet in them."""
    if not ops.mixing:
        ops.run(tensors, batch.total)
        return
    shapes, rows = ops.graph.shapes, ops.graph.batch
    batched = {r for r in tensors if shapes[r] and shapes[r][0] == rows}
    made: dict[Ref, list[Tensor]] = {}
    for first, n in sorted(zip(batch.packed.tolist(), batch.rows.tolist(), strict=True)):
        here = {r: t[first : first + n] if r in batched else t for r, t in tensors.items()}
        ops.run(here, n)
        for ref in (r for s in ops.ops for r in s.outputs):
            made.setdefault(ref, []).append(here[ref])
    for ref, parts in made.items():
        tensors[ref] = torch.cat(parts) if shapes[ref] and shapes[ref][0] == rows else parts[-1]
