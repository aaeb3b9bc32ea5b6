"""What became of a cell: its four parts, what a step of the loop costs, and every product of the compiler."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyrnn.engines.cpu import jit
from anyrnn.engines.cpu.machine import Machine
from anyrnn.engines.cpu.schedule import Schedule, schedule
from anyrnn.ops import OPERATIONS, REDUCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.engines.cpu.plans import Plan
    from anyrnn.graph import Step


@dataclass(frozen=True)
class Anatomy:
    """A cell taken apart.

    Attributes:
        once: The operations on weights alone, run once a call by PyTorch.
        before: Those on the input, run for all steps at once by PyTorch. (Products of the input with a weight matrix
            are computed within the loop.)
        products: The products of the loop, with a weight matrix each.
        loop: The other operations of the loop, on each number or along the features.
        after: The operations that no state depends on, run for all steps at once by PyTorch.
        stages: How often within a step all units have to be there before it goes on.
        flops: Floating-point operations of the loop, a row and step; an elementary function counts as one.
        weight_bytes: Weights that the loop reads in a step, whatever the batch.
        row_bytes: What it reads and writes a row and step.
        graph: The recorded step.
        program: The loop program.
        backward: The loop program of the backward pass.
        double: Whether it computes in float64.
    """

    once: tuple[str, ...]
    before: tuple[str, ...]
    products: int
    loop: tuple[str, ...]
    after: tuple[str, ...]
    stages: int
    flops: int
    weight_bytes: int
    row_bytes: int
    graph: str
    program: str
    backward: str
    double: bool
    _schedule: Schedule = field(repr=False, compare=False)

    @functools.cached_property
    def ir(self) -> str:
        """The LLVM IR of the forward pass."""
        from anyrnn.engines.cpu.emit import emit  # noqa: PLC0415 - LLVM is loaded when it is asked for

        return emit(self._schedule, Machine.host(), self.double)

    @functools.cached_property
    def asm(self) -> str:
        """The machine code of the forward pass, as assembly."""
        return jit.assembly(self.ir, Machine.host())

    def __str__(self) -> str:
        """The parts, one a line."""
        loop = ", ".join([f"{self.products} product{'s' if self.products != 1 else ''} with a matrix", *self.loop])
        lines = [
            f"once    {', '.join(self.once) or '-'}",
            f"before  {', '.join(self.before) or '-'}",
            f"loop    {loop}; {self.stages} stage{'s' if self.stages > 1 else ''}",
            f"after   {', '.join(self.after) or '-'}",
            f"a step  {self.flops:,} operations and {self.row_bytes:,} bytes a row, "
            f"{self.weight_bytes:,} bytes of weights",
        ]
        return "\n".join(lines)


def anatomy_of(plan: Plan, double: bool) -> Anatomy:
    """Take a plan's cell apart for showing."""
    machine = Machine.host()
    size = 8 if double else 4
    program = plan.loop.stored(training=False)
    order = schedule(program, plan.loop.storage("inference"), machine.vector_bytes // size)
    nodes = program.nodes
    dots = [n for n in nodes if n.op == "dot"]
    counted: dict[str, int] = {}
    for node in nodes:
        if node.op in OPERATIONS or node.op in REDUCTIONS:
            counted[node.op] = counted.get(node.op, 0) + 1
    multiplied = sum(a.width * d.width for d in dots for a in d.args)
    streams = sum(n.width for n in nodes if n.op in ("stream", "state"))
    written = sum(p.width for group in (*program.new_states, *program.outputs) for p in group)
    return Anatomy(
        _listed(plan.split.once, plan),
        _listed(plan.split.before, plan),
        len(dots),
        tuple(f"{count} {op}" for op, count in counted.items()),
        _listed(plan.split.after, plan),
        1 + max((g.stage for g in order.groups), default=0),
        2 * multiplied + sum(n.width for n in nodes if n.op in OPERATIONS or n.op in REDUCTIONS),
        multiplied * size,
        (streams + written) * size,
        str(plan.split.graph),
        str(plan.split.program),
        str(plan.loop.derivative.backward),
        double,
        order,
    )


def _listed(steps: Sequence[Step], plan: Plan) -> tuple[str, ...]:
    names = plan.split.graph.names
    found = []
    for step in steps:
        results = [names[r] for r in step.outputs if r in names]
        found.append((f"{', '.join(results)} = " if results else "") + step.name.partition(".")[0])
    return tuple(found)
