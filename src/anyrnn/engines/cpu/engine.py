"""The cpu engine: a cell's loop as machine code, and PyTorch for what is around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from anyrnn.engines.cpu.anatomy import Anatomy, anatomy_of
from anyrnn.engines.cpu.layout import Layout, layout
from anyrnn.engines.cpu.operation import run, without_autocast
from anyrnn.engines.cpu.plans import Plan, plan_of
from anyrnn.graph import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.engines.call import Call
    from anyrnn.graph import Ref
    from anyrnn.split import Steps


class CpuEngine:
    """Runs any cell whose loop the loop program can hold, compiled for this processor.

    It computes in float64 if x is float64, else in float32: lower precision, also under autocast, is converted at the
    edge, and the output has the type of x.
    """

    name = "cpu"

    def refusal(self, call: Call) -> str | None:
        """Say why machine code cannot run the call; None if it can."""
        reason = watched() or _not_plain((call.x, *call.states))
        if reason is not None:
            return reason
        if 0 in call.x.shape or any(s.shape[1] == 0 for s in call.states):
            return "there is nothing to compute"
        plan = call.memo["cpu"] = _plan(call)
        return plan if isinstance(plan, str) else None

    def anatomy(self, call: Call) -> Anatomy:
        """Show the four parts, the cost of a step, and the products of the compiler."""
        plan = _plan(call)
        assert isinstance(plan, Plan)  # else it was refused
        return anatomy_of(plan, call.x.dtype == torch.float64)

    def run(self, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output (T, B, O) and the final state variables (B, size)."""
        plan = call.memo.get("cpu") or _plan(call)
        assert isinstance(plan, Plan)  # else it was refused
        T, B, _ = call.x.shape
        order = layout(T, B, call.lengths, call.reverse)
        if order.total == 0:
            return call.without_steps()
        given = call.x.dtype
        dtype = torch.float64 if given == torch.float64 else torch.float32
        x, states = call.x, call.states
        if given != dtype or states[0].dtype != dtype:
            x, states = x.to(dtype), tuple(s.to(dtype) for s in states)
        with without_autocast():
            output, finals = _run(plan, call.cell, order, x, states, call.from_zero)
        if given != dtype or call.states[0].dtype != dtype:
            output, finals = output.to(given), [f.to(s.dtype) for f, s in zip(finals, call.states, strict=True)]
        return output, tuple(finals)


def watched() -> str | None:
    """Say who has to see the operations of a call one by one; None if nobody does.

    Machine code is no operation: a tracer would take what it wrote for a constant, and hand in tensors without numbers.
    """
    if torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives go through PyTorch"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit traces the operations of this call"
    if torch._C._len_torch_dispatch_stack():
        mode = torch._C._get_dispatch_stack_at(torch._C._len_torch_dispatch_stack() - 1)
        return f"a {type(mode).__name__} watches the operations of this call"
    for k in range(torch._C._len_torch_function_stack()):
        mode = torch._C._get_function_stack_at(k)
        if not isinstance(mode, DeviceContext):  # a default device is part of what a plan is for
            return f"a {type(mode).__name__} watches the functions of this call"
    return None


def _not_plain(tensors: Sequence[Tensor]) -> str | None:
    """Say which tensor is something else than numbers in this computer's memory, one after the other; None if none."""
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"a tensor is on {tensor.device}"
        if tensor.__class__ not in PLAIN or tensor.layout is not torch.strided:
            return f"a tensor is a {type(tensor).__name__} of layout {tensor.layout}, no plain array of numbers"
    return None


def _plan(call: Call) -> Plan | str:
    return plan_of(call.cell, call.signature, call.x.shape[2], call.x.dtype)


def _run(
    plan: Plan, cell: nn.Module, order: Layout, x: Tensor, states: Sequence[Tensor], from_zero: bool
) -> tuple[Tensor, list[Tensor]]:
    """Run the four parts. Those around the loop see packed rows, so that padding never meets a weight."""
    part, graph, dtype = plan.split, plan.split.graph, x.dtype
    tensors: dict[Ref, Tensor] = {}
    for path, attribute, ref in plan.weights:
        weight = _weight(cell, path, attribute)
        if isinstance(weight, float):  # it was another one in an earlier call
            weight = torch.tensor(weight, dtype=dtype, device="cpu")
        tensors[ref] = weight if weight.dtype == dtype or not weight.is_floating_point() else weight.to(dtype)
    plan.once.run(tensors, order.total)
    if plan.reads_x:
        tensors[graph.x] = _packed(x, order)
    _run_rows(plan.before, tensors, order)
    outputs, finals = run(
        plan.loop,
        order,
        [_array(x if r == graph.x else tensors[r], dtype) for r in part.streams],
        [_array(s, dtype) for s in states],
        [_array(tensors[r], dtype) for r in part.vectors],
        [_matrix(tensors[r], dtype) for r, _ in plan.matrices],
        from_zero,
    )
    if plan.direct is not None:
        return outputs[plan.direct], finals
    for ref, output in zip(part.outputs, outputs, strict=True):
        shaped = _packed(output, order).reshape(order.total, *graph.shapes[ref][1:])
        tensors[ref] = shaped if graph.dtypes[ref].is_floating_point else shaped.to(graph.dtypes[ref])
    _run_rows(plan.after, tensors, order)
    result = tensors[plan.result]
    if order.is_ragged:
        whole = result.new_zeros(order.T * order.B, result.shape[1])
        return whole.index_copy_(0, order.packed_index, result).view(order.T, order.B, -1), finals
    sources = [ref for *_, ref in plan.weights] + [graph.x] * plan.reads_x
    given = {tensors[r].untyped_storage()._cdata for r in sources}
    if result.untyped_storage()._cdata in given or 0 in result.stride():
        result = result.clone(memory_format=torch.contiguous_format)
    return result.view(order.T, order.B, -1), finals


def _packed(tensor: Tensor, order: Layout) -> Tensor:
    """The packed rows of a padded tensor."""
    rows = tensor.reshape(order.T * order.B, -1)
    return rows.index_select(0, order.packed_index) if order.is_ragged else rows


def _array(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as machine code reads it."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if tensor.is_neg():  # its numbers have the other sign in memory
        tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _matrix(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as machine code reads a matrix, by both of its strides."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def _weight(cell: nn.Module, path: tuple[str, ...], attribute: str) -> Tensor | float:
    """The present tensor of a name: a parameter, a buffer or another attribute."""
    module = cell
    for name in path:
        module = module._modules.get(name) or getattr(module, name)
    found = module._parameters.get(attribute)
    return found if found is not None else getattr(module, attribute)


def _run_rows(steps: Steps, tensors: dict[Ref, Tensor], order: Layout) -> None:
    """Run operations for the rows of all time steps at once; one step after the other if rows meet in them."""
    if not steps.mixing:
        steps.run(tensors, order.total)
        return
    shapes, batch = steps.graph.shapes, steps.graph.batch
    batched = {r for r in tensors if shapes[r] and shapes[r][0] == batch}
    made: dict[Ref, list[Tensor]] = {}
    for first, n in sorted(zip(order.offset.tolist(), order.rows.tolist(), strict=True)):
        here = {r: t[first : first + n] if r in batched else t for r, t in tensors.items()}
        steps.run(here, n)
        for ref in (r for s in steps.steps for r in s.outputs):
            made.setdefault(ref, []).append(here[ref])
    for ref, parts in made.items():
        tensors[ref] = torch.cat(parts) if shapes[ref] and shapes[ref][0] == batch else parts[-1]
