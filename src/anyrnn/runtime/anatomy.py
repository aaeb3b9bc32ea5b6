"""What became of a cell: its four parts, what a step of the loop costs, and every product of the compiler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from anyrnn.compiler.ops import OPERATIONS, REDUCTIONS
from anyrnn.compiler.passes import PASSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from anyrnn.compiler.graph import Op
    from anyrnn.runtime.kernel import Backend, Kernel
    from anyrnn.runtime.plans import Plan


@dataclass(frozen=True)
class Anatomy:
    """A cell taken apart.

    Attributes:
        once: The operations on weights alone, run once a call by PyTorch.
        rows: Those on what is one for a row, `context=`, run once a call for all rows by PyTorch.
        before: Those on the input, run for all steps at once by PyTorch. (Products of the input with a weight matrix
            are computed within the loop.)
        products: The products of the loop, with a weight matrix each.
        loop: The other operations of the loop, on each number or along the features.
        after: The operations that no state depends on, run for all steps at once by PyTorch.
        stages: In how many stages a step runs: each begins when all units of the one before are computed.
        flops: Floating-point operations of the loop, a row and step; an elementary function counts as one.
        weight_bytes: Weights that the loop reads in a step, whatever the batch.
        row_bytes: What it reads and writes a row and step.
        graph: The recorded step.
        program: The loop program.
        passes: The loop program after each pass, from what is lowered to what is compiled for inference.
        backward: The loop program of the backward pass.
        kernel: The compiled forward pass.
    """

    once: tuple[str, ...]
    rows: tuple[str, ...]
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
    passes: str
    backward: str
    kernel: Kernel = field(repr=False, compare=False)

    @property
    def ir(self) -> str:
        """What the compiler was given for the forward pass: LLVM's IR."""
        return self.kernel.source

    @property
    def asm(self) -> str:
        """What it made: assembly."""
        return self.kernel.assembly

    def __str__(self) -> str:
        """The parts, one a line."""
        loop = ", ".join([f"{self.products} product{'s' if self.products != 1 else ''} with a matrix", *self.loop])
        lines = [
            f"once    {', '.join(self.once) or '-'}",
            *([f"rows    {', '.join(self.rows)}"] if self.rows else ()),
            f"before  {', '.join(self.before) or '-'}",
            f"loop    {loop}; {self.stages} stage{'s' if self.stages > 1 else ''}",
            f"after   {', '.join(self.after) or '-'}",
            f"a step  {self.flops:,} operations and {self.row_bytes:,} bytes a row, "
            f"{self.weight_bytes:,} bytes of weights",
        ]
        return "\n".join(lines)


def anatomy_of(plan: Plan, backend: Backend, like: Tensor, kind: str) -> Anatomy:
    """Take a plan's cell apart for showing, as it would run on a backend with tensors like this one.

    The kind is "inference", or "step" for one step at a time.
    """
    size = 8 if like.dtype == torch.float64 else 4
    kernel = plan.loop.kernel(kind, like.new_empty((), dtype=torch.float64 if size == 8 else torch.float32), backend)
    program = plan.loop.settled(kind)
    nodes = program.nodes
    dots = [n for n in nodes if n.op == "dot"]
    counted: dict[str, int] = {}
    for node in nodes:
        if node.op in OPERATIONS or node.op in REDUCTIONS:
            counted[node.op] = counted.get(node.op, 0) + 1
    multiplied = sum(a.width * d.width for d in dots for a in d.args)
    read = sum(n.width for n in nodes if n.op in ("stream", "row", "state"))
    written = sum(a.width for a in program.of("state", "output"))
    return Anatomy(
        _listed(plan.split.once, plan),
        _listed(plan.split.rows, plan),
        _listed(plan.split.before, plan),
        len(dots),
        tuple(f"{count} {op}" for op, count in counted.items()),
        _listed(plan.split.after, plan),
        kernel.stages,
        2 * multiplied + sum(n.width for n in nodes if n.op in OPERATIONS or n.op in REDUCTIONS),
        multiplied * size,
        (read + written) * size,
        str(plan.split.graph),
        str(plan.split.program),
        _passes(plan, kind),
        "(a stream has no backward pass)" if kind == "step" else str(plan.loop.derivative.backward),
        kernel,
    )


def _passes(plan: Plan, kind: str) -> str:
    """The program after each pass."""
    program = plan.split.lowered
    stages = [("lowered", program)]
    for transform in PASSES:
        program = transform(program)
        stages.append((f"after {transform.__name__}", program))
    if kind == "step":
        stages.append(("after elementary and placed, for a step", plan.loop.settled(kind)))
    else:
        stages.append(("after elementary, with a residual for the backward pass", plan.loop.derivative.forward))
        stages.append(("after without and placed, for inference", plan.loop.settled(kind)))
    return "\n\n".join(f"# {title}\n{text}" for title, text in stages)


def _listed(steps: Sequence[Op], plan: Plan) -> tuple[str, ...]:
    names = plan.split.graph.names
    found = []
    for op in steps:
        results = [names[r] for r in op.outputs if r in names]
        found.append((f"{', '.join(results)} = " if results else "") + op.name.partition(".")[0])
    return tuple(found)
