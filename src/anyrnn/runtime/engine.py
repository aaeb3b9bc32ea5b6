"""An engine for each backend: a cell's loop by a kernel of the backend, and PyTorch for what is around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from anyrnn.compiler.graph import PLAIN
from anyrnn.runtime import pieces
from anyrnn.runtime.anatomy import Anatomy, anatomy_of
from anyrnn.runtime.autograd import without_autocast
from anyrnn.runtime.call import Result
from anyrnn.runtime.layout import layout
from anyrnn.runtime.parts import run_parts
from anyrnn.runtime.plans import Plan, plan_of
from anyrnn.runtime.stepping import CompiledSteps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyrnn.runtime.call import Call
    from anyrnn.runtime.kernel import Backend
    from anyrnn.runtime.stepping import Steps


class Engine(Protocol):
    """A way to run a call."""

    name: str

    def refusal(self, call: Call) -> str | None:
        """Say why this engine cannot run the call; None if it can.

        What it has found out on the way may be left in `call.memo` for `run`: a compiled engine has to take the cell
        apart to answer.
        """

    def run(self, call: Call) -> Result:
        """Run the call; what it gives are tensors of their own."""

    def anatomy(self, call: Call) -> Anatomy | None:
        """Show what the engine made of the cell; None if it takes it as it is."""


class Stepper(Protocol):
    """A way to run single steps."""

    name: str

    def steps(self, call: Call, before: Steps | None = None) -> Steps:
        """Prepare to run a call of one step again and again.

        Args:
            call: The call; its states are copied, x and what else there is for each step is read at every step.
            before: Steps whose buffers are to be written.
        """


class CompiledEngine:
    """Runs any cell whose loop the loop program can hold, compiled by a backend for the memory of this computer.

    It computes in float64 if x is float64, else in float32: lower precision, also under autocast, is converted at the
    edge, and the output has the type of x.
    """

    def __init__(self, name: str, backend: Callable[[], Backend]) -> None:
        """Make an engine of a name; `backend` gives the backend of the moment."""
        self.name, self._backend = name, backend

    def refusal(self, call: Call) -> str | None:
        """Say why a kernel cannot run the call; None if it can."""
        reason = watched() or _not_plain(call.tensors)
        if reason is not None:
            return reason
        if 0 in call.x.shape or any(0 in s.shape for s in call.states):
            return "there is nothing to compute"
        plan = call.memo[self.name] = _plan(call)
        return plan if isinstance(plan, str) else None

    def anatomy(self, call: Call) -> Anatomy:
        """Show the four parts, the cost of a step, and the products of the compiler."""
        plan = _plan(call)
        assert isinstance(plan, Plan)  # else it was refused
        return anatomy_of(plan, self._backend(), call.x, "inference")

    def steps(self, call: Call, before: Steps | None = None) -> Steps:
        """Prepare to run a call of one step again and again; with the buffers of steps of an earlier plan."""
        plan = call.memo.get(self.name) or _plan(call)
        assert isinstance(plan, Plan)  # else it was refused
        if isinstance(before, CompiledSteps) and before.plan is plan:
            before.prepare(call.cell)
            return before
        return CompiledSteps(plan, self._backend(), call, before)

    def run(self, call: Call) -> Result:
        """Run the four parts of the cell."""
        plan = call.memo.get(self.name) or _plan(call)
        assert isinstance(plan, Plan)  # else it was refused
        T, B = call.x.shape[:2]
        batch = layout(T, B, call.lengths, call.reverse)
        if batch.total == 0:
            return call.without_steps(plan.forms(call.x.dtype))
        own = call.x.dtype
        dtype = torch.float64 if own == torch.float64 else torch.float32
        x, states, extras = call.x, call.states, list[Tensor]()
        if own != dtype or states[0].dtype != dtype:
            x, states = x.to(dtype), tuple(s.to(dtype) for s in states)
        if call.extras:
            tensors = (e.tensor for e in call.extras)
            extras = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
        with without_autocast():
            parts = plan, self._backend(), call.cell, batch, x, states, extras, call.from_zero
            every = call.checkpoint_every
            if every is None or every >= len(batch.rows):
                series, finals = run_parts(*parts)
            else:
                series, finals = pieces.run(*parts, every)
        if own != dtype or call.states[0].dtype != dtype:
            finals = [f.to(s.dtype) for f, s in zip(finals, call.states, strict=True)]
            series = [t.to(own) if t.dtype == dtype else t for t in series]
        return Result(series, tuple(finals))


def watched() -> str | None:
    """Say who has to see the operations of a call one by one; None if nobody does.

    A kernel is no operation: a tracer would take what it wrote for a constant, and hand in tensors without numbers.
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
    return plan_of(call.cell, call.form)
