"""A cell one step at a time, on buffers that stay where they are: what a stream runs.

Weights are read when the steps are made, and again by `prepare`, never by `launch`. Where the whole step is in the loop
program and the buffers are of the type in which it computes, `launch` is the machine code itself. Else it is a function
that also runs, in PyTorch, what is before and after the loop, and converts types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from anyrnn.protocol import outside_inference_mode
from anyrnn.runtime.anatomy import Anatomy, anatomy_of
from anyrnn.runtime.layout import layout
from anyrnn.runtime.parts import as_array, as_matrix, flat, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from anyrnn.compiler.graph import Ref
    from anyrnn.runtime.call import Call
    from anyrnn.runtime.kernel import Backend
    from anyrnn.runtime.plans import Plan


class Steps(Protocol):
    """The steps of a cell.

    Attributes:
        states: The state variables (B, ...): what a step reads and replaces.
        outputs: What a step writes: the outputs of the cell (B, ...).
    """

    states: list[Tensor]
    outputs: list[Tensor]

    @property
    def launch(self) -> Callable[[], object]:
        """Runs a step."""

    def anatomy(self) -> Anatomy | None:
        """Show what was made of the cell; None if it is taken as it is."""


class CompiledSteps:
    """The steps of a cell by a kernel; see `Steps`."""

    launch: Callable[[], object]

    def __init__(self, plan: Plan, backend: Backend, call: Call, before: Steps | None = None) -> None:
        """Bind a plan to buffers.

        Args:
            plan: The plan of the call, whose `as_step` is run.
            backend: What runs the loop.
            call: A call of one step: its x (1, B, ...) and its further arguments are read at every step, but for
                contexts, which are read here. Its states are copied.
            before: Steps whose outputs are to be written, too.
        """
        step = plan.as_step
        self.plan, self._step, self._backend = plan, step, backend
        self._graph, self._rows = step.split.graph, call.x.shape[1]
        graph, B = self._graph, self._rows
        self._dtype = dtype = torch.float64 if call.states[0].dtype == torch.float64 else torch.float32
        self._call = call
        with outside_inference_mode(), torch.no_grad():
            self.states = [s.to(dtype, memory_format=torch.contiguous_format, copy=True) for s in call.states]
            self.outputs = self._new_outputs(call) if before is None else before.outputs
            self._tensors: dict[Ref, Tensor] = {}  # what PyTorch reads outside of the loop
            self._converted: list[tuple[Tensor, Tensor]] = []  # a copy of another type, and what it is copied from
            self._arrays = {n: flat(s) for n, s in zip(step.loop.states, self.states, strict=True)}
            self._bind_inputs(call)
            self._computed = self._bind_streams()
            self._shown, self._copied = self._bind_outputs()
            kernel = step.loop.kernel("step", call.x.new_empty((), dtype=dtype), backend)
            self._repeated = kernel.repeated(
                layout(1, B, None, False), {**self._arrays, **self._constants(call.cell)}, step.loop.transposed
            )
        around = step.before.ops, step.after.ops, self._converted, self._copied
        self.launch = self._launch if any(around) else self._repeated.launch
        self._shapes = {ref: (B, *graph.shapes[ref][1:]) for ref, _ in self._shown}

    def anatomy(self) -> Anatomy:
        """Show the parts of a step, and the products of the compiler."""
        return anatomy_of(self._step, self._backend, self.states[0], "step")

    def prepare(self, cell: nn.Module) -> None:
        """Read the weights and contexts anew: those of a cell with the same plan."""
        with outside_inference_mode(), torch.no_grad():
            self._repeated.prepare({**self._arrays, **self._constants(cell)}, self._step.loop.transposed)

    def _new_outputs(self, call: Call) -> list[Tensor]:
        """Memory for what there is for every step."""
        forms = self._step.forms(call.states[0].dtype)
        return [call.x.new_zeros(self._rows, *form.shape, dtype=form.dtype) for form in forms]

    def _bind_inputs(self, call: Call) -> None:
        """Take x and what else there is for each step, in the type of the loop."""
        inputs = [call.x, *(e.tensor for e in call.extras if e.kind == "input")]
        for ref, tensor in zip(self._graph.inputs, inputs, strict=True):
            self._tensors[ref] = self._as_type(tensor[0]) if tensor.is_floating_point() else tensor[0]

    def _as_type(self, tensor: Tensor) -> Tensor:
        """A buffer in the type of the loop: itself, or a copy that is made anew at every step."""
        if tensor.dtype == self._dtype:
            return tensor
        copy = torch.zeros_like(tensor, dtype=self._dtype)
        self._converted.append((copy, tensor))
        return copy

    def _bind_streams(self) -> list[tuple[Tensor, Ref]]:
        """Give the loop what there is for each step; returns the arrays that PyTorch computes before it."""
        computed = []
        for name, ref, role in self._step.arrays:
            if role != "stream":
                continue
            if ref in self._tensors:
                self._arrays[name] = flat(self._as_type(self._tensors[ref]))
            else:
                shape = self._rows, *self._graph.shapes[ref][1:]
                array = torch.zeros(shape, dtype=self._dtype)
                self._arrays[name] = flat(array)
                computed.append((array, ref))
        return computed

    def _bind_outputs(self) -> tuple[list[tuple[Ref, Tensor]], list[tuple[Tensor, Ref]]]:
        """Give the loop memory for what it writes.

        Returns:
            Of each output of the loop that PyTorch reads, the tensor of the graph and the array; and the buffers that
            are copied from a tensor of the graph after each step.
        """
        step = self._step
        places: dict[Ref, Tensor] = {}
        for ref, buffer in zip(step.series, self.outputs, strict=True):
            if buffer.dtype == self._dtype:
                places.setdefault(ref, buffer)
        read = {r for op in step.after.ops for r in op.inputs}
        shown = []
        written = set()
        for name in step.loop.outputs:
            ref = step.split.tensors[name]
            if ref not in places:
                places[ref] = torch.zeros(self._rows, *self._graph.shapes[ref][1:], dtype=self._dtype)
            buffer = places[ref]
            written.add(id(buffer))
            self._arrays[name] = flat(buffer)
            if ref in read or ref in step.series:
                shown.append((ref, self._arrays[name]))
        pairs = zip(self.outputs, step.series, strict=True)
        return shown, [(buffer, ref) for buffer, ref in pairs if id(buffer) not in written]

    def _constants(self, cell: nn.Module) -> dict[str, Tensor]:
        """The arrays that are the same at every step: copies, but for the matrices, which a kernel copies itself."""
        step, dtype, graph = self._step, self._dtype, self._graph
        read = {r for op in (*step.before.ops, *step.after.ops) for r in op.inputs}
        weights = weights_of(step, cell, dtype)
        tensors = {ref: t.detach().clone() if ref in read else t.detach() for ref, t in weights.items()}
        rows: dict[Ref, Tensor] = {}
        for extra, given in zip(graph.extras, self._call.extras, strict=True):
            tensor = given.tensor.detach()
            tensor = tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()
            if extra.kind != "input":
                (rows if extra.kind == "context" else tensors)[extra.ref] = tensor
        step.once.run(tensors, self._rows)
        if rows:
            rows.update(tensors)
            step.rows.run(rows, self._rows)
        self._tensors.update(tensors)
        self._tensors.update((ref, rows[ref]) for ref in step.rows_read)
        arrays = {}
        for name, ref, role in step.arrays:
            if role == "matrix":
                arrays[name] = as_matrix(tensors[ref], dtype)
            elif role == "row":
                arrays[name] = flat(as_array(rows[ref], dtype)).clone(memory_format=torch.contiguous_format)
            elif role == "vector":
                arrays[name] = as_array(tensors[ref], dtype).clone(memory_format=torch.contiguous_format)
        return arrays

    def _launch(self) -> None:
        """A step with what is around the loop."""
        step, tensors, graph = self._step, self._tensors, self._graph
        with torch.no_grad():
            for copy, buffer in self._converted:
                copy.copy_(buffer)
            step.before.run(tensors, self._rows)
            for array, ref in self._computed:
                array.copy_(tensors[ref])
            self._repeated.launch()
            for ref, array in self._shown:
                shaped, kind = array.view(self._shapes[ref]), graph.dtypes[ref]
                tensors[ref] = shaped if kind.is_floating_point else shaped.to(kind)
            step.after.run(tensors, self._rows)
            for buffer, ref in self._copied:
                buffer.copy_(tensors[ref])
