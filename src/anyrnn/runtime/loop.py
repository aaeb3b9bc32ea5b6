"""A loop program with the kernels of its passes, and the forward pass."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from anyrnn.compiler.derive import Derivative, Term, derive
from anyrnn.compiler.gradient_paths import GradientPaths
from anyrnn.compiler.node import ordered
from anyrnn.compiler.passes import elementary, placed, without
from anyrnn.runtime.kernel import Precision
from anyrnn.runtime.layout import padded_rows
from anyrnn.runtime.memory import empty

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from anyrnn.compiler.program import Program
    from anyrnn.runtime.kernel import Backend, Kernel
    from anyrnn.runtime.layout import Layout


class Loop:
    """A loop program, ready to run.

    Attributes:
        program: The program.
        transposed: Of which matrices it is given the transposed ones.
        inputs: The arrays that it is given: streams, rows, initial states, vectors, matrices.
        outputs: What it gives at every step.
        states: The state variables.
        aliases: The outputs that are a state after the step, which need no array of their own.
    """

    def __init__(self, program: Program, transposed: Collection[str] = ()) -> None:
        self.program = program
        self.transposed = frozenset(transposed)
        self.inputs = tuple(a.name for a in program.of("stream", "row", "state", "vector", "matrix"))
        self.outputs = tuple(a.name for a in program.of("output"))
        self.states = tuple(a.name for a in program.of("state"))
        of_states = {program.results[name]: name for name in reversed(self.states)}
        pieces = {name: program.results[name] for name in self.outputs}
        self.aliases = {name: of_states[p] for name, p in pieces.items() if p in of_states}
        self._kernels: dict[tuple[str, frozenset[str], Precision, Backend], Kernel] = {}

    @functools.cached_property
    def derivative(self) -> Derivative:
        """The backward program and what it needs."""
        return derive(self.program)

    @functools.cached_property
    def paths(self) -> GradientPaths:
        """Which of its tensors have a gradient."""
        return GradientPaths(self.program)

    def settled(self, kind: str) -> Program:
        """The program of a pass with all its arrays in their places, as a backend compiles it.

        The passes are "inference", "training" and "backward"; and "step", one step at a time, which a stream runs.
        """
        if kind == "backward":
            return self.derivative.backward
        if kind == "step":  # one at a time: no memory for all steps, and an output is not the state that goes on
            places = {**dict.fromkeys(self.states, "carried"), **dict.fromkeys(self.outputs, "padded")}
            return placed(elementary(self.program), places)
        program = self.derivative.forward
        if kind == "training":
            kept, left = set(self.states), set(self.aliases)
        else:  # no state is kept that is no output, and nothing for a backward pass
            kept = set(self.aliases.values())
            left = {*self.aliases, *(a.name for a in program.of("residual"))}
        places = {name: "kept" if name in kept else "carried" for name in self.states}
        return placed(without(program, left), {**places, **dict.fromkeys(self.outputs, "padded")})

    @functools.cached_property
    def apart(self) -> frozenset[Term]:
        """The terms that share a part of their matrix with an earlier one: their gradient is summed up for itself."""
        found: list[Term] = []
        earlier: list[Term] = []
        for term in (t for group in self.derivative.terms for t in group):
            (found if any(map(term.overlaps, earlier)) else earlier).append(term)
        return frozenset(found)

    @functools.cached_property
    def incoming(self) -> tuple[tuple[str, str, str, int], ...]:
        """What the backward program is given of outputs and states: role, name, gradient, numbers of a row."""
        gradients = self.derivative.gradients
        return tuple((a.role, a.name, gradients[a.name], a.width) for a in self.program.of("output", "state"))

    @functools.cached_property
    def accumulated(self) -> tuple[tuple[str, int], ...]:
        """The gradients that the backward program sums over the steps: name, numbers of a row."""
        gradients = self.derivative.gradients
        return tuple((gradients[a.name], a.width) for a in self.program.of("row") if a.name in gradients)

    @functools.cached_property
    def outgoing(self) -> tuple[tuple[str, str, int], ...]:
        """What the backward program writes at every step: name, where it is, numbers of a row."""
        return tuple((a.name, a.place, a.width) for a in self.derivative.backward.of("output"))

    def kernel(self, kind: str, like: Tensor, backend: Backend, unwanted: frozenset[str] = frozenset()) -> Kernel:
        """The kernel of a pass (see `settled`); that of "backward" may leave out some arrays."""
        key = kind, unwanted, Precision.of(like.dtype), backend
        found = self._kernels.get(key)
        if found is None:
            program = self.settled(kind)
            found = self._kernels[key] = backend.compile(without(program, unwanted) if unwanted else program, key[2])
        return found

    @functools.cached_property
    def contracted(self) -> Mapping[str, str]:
        """Of the vectors whose gradients are contractions, the names of those gradients.

        They are as much work as products with a matrix: a backward pass leaves out those that nobody wants.
        """
        derivative = self.derivative
        pairs = ((a.name, derivative.gradients[a.name]) for a in self.program.of("vector"))
        nodes = {name: derivative.backward.results[gradient] for name, gradient in pairs}
        found = (name for name, pieces in nodes.items() if any(n.op == "contract" for n in ordered(pieces)))
        return {name: derivative.gradients[name] for name in found}

    @functools.cached_property
    def writes(self) -> Mapping[str, tuple[tuple[str, str, int], ...]]:
        """For each kind of forward pass the arrays that it writes: name, where it is, numbers of a row."""
        kinds = {kind: self.settled(kind).of("state", "output", "residual") for kind in ("inference", "training")}
        return {kind: tuple((a.name, a.place, a.width) for a in arrays) for kind, arrays in kinds.items()}


def forward(
    loop: Loop, layout: Layout, backend: Backend, inputs: Mapping[str, Tensor], training: bool, roomy: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run a loop.

    Args:
        loop: The loop.
        layout: The rows of the batch.
        backend: What compiles and runs it.
        inputs: Its streams, rows, initial states, vectors and matrices, by name.
        training: Keep what a backward pass needs.
        roomy: What is kept has memory for T B rows, zero where there is nothing to keep.

    Returns:
        The outputs (T, B, width) and final states (B, width), by name; and what a backward pass reads: the states of
        all steps and the residuals.
    """
    kind = "training" if training else "inference"
    like = inputs[loop.states[0]]
    kernel = loop.kernel(kind, like, backend)
    aliased = loop.aliases.values()
    arrays: dict[str, Tensor] = {}
    for name, place, width in loop.writes[kind]:
        if place == "carried":
            arrays[name] = inputs[name].clone(memory_format=torch.contiguous_format)
        elif place == "kept" and layout.is_continued:
            arrays[name] = layout.continued_states(inputs[name])
        elif place == "kept" and name not in aliased and not roomy:
            arrays[name] = empty(like, layout.T, layout.B, width)
        elif place == "packed":
            arrays[name] = padded_rows(layout, like, width).flatten(0, 1) if roomy else empty(like, layout.total, width)
        else:
            arrays[name] = padded_rows(layout, like, width)
    kernel.bind(layout, {**inputs, **arrays}, inputs, loop.transposed).launch()
    results = {name: arrays[loop.aliases.get(name, name)] for name in loop.outputs}
    for name, place, _ in loop.writes[kind]:
        if place == "carried":
            results[name] = arrays[name]
        elif place == "kept":
            results[name] = layout.final(arrays[name], inputs[name])
    # Outputs that are no state are not read again, so whoever has one may write into it. One that is a state is the
    # very tensor that is saved: autograd notices when somebody writes into that.
    return results, {name: arrays[name] for name in arrays if name not in loop.outputs}
