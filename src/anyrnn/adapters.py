"""Modules that make one cell of others: a function as a step, a stack as a cell, and a cell that reads its own output.

None of them owns a parameter: a layer makes them for a call from the cells that it has, and remembers them. So names in
a `state_dict` are those of the cells.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyrnn.errors import AnyRNNError
from anyrnn.protocol import Signature, size_of, structure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyrnn.stacks import Wiring


class Stepped(nn.Module):
    """A module with a function that computes its step: ``step(module, x, state, *extras)``.

    Args:
        module: The module.
        step: The function; it returns what the `forward` of a cell does.
    """

    inner_name = "module"

    def __init__(self, module: nn.Module, step: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.step = step

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments of the function behind the module: `inspect.signature` asks for it."""
        return inspect.signature(partial(self.step, self.module))

    @property
    def hidden_size(self) -> int | None:
        """What the module says of the size of its state."""
        return getattr(self.module, "hidden_size", None)

    @property
    def state_sizes(self) -> Any:
        """What the module says of the sizes of its state."""
        return getattr(self.module, "state_sizes", None)

    def forward(self, x: Tensor, state: Any, *extras: Tensor, **named: Tensor) -> Any:
        """Run the function."""
        return self.step(self.module, x, state, *extras, **named)


class Stacked(nn.Module):
    """The cells of a stack in one direction as one cell, whose states are those of all cells.

    Args:
        cells: The cells, each of which reads the output of the one before.
        signatures: Their signatures.
        wiring: What is between them.
        dropout: The probability of dropping a feature between two of them while training.
    """

    def __init__(
        self, cells: Sequence[nn.Module], signatures: Sequence[Signature], wiring: Wiring, dropout: float
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.signatures = tuple(signatures)
        self.wiring = wiring
        self.dropout = dropout

    def forward(self, x: Tensor, states: tuple[Tensor, ...], *extras: Tensor, **named: Tensor) -> Any:
        """Run a step of all cells: the outputs of the last one, as a tuple, and all new states."""
        arguments = [*enumerate(extras), *named.items()]
        found: list[Tensor] = []
        inputs = [x]
        for k, (cell, signature) in enumerate(zip(self.cells, self.signatures, strict=True)):
            own = states[len(found) : len(found) + len(signature.state_sizes)]
            x = self.wiring.joined(inputs, lead=1)
            (output, *others), new = signature.step(cell, x, tuple(own), arguments)  # type: ignore[arg-type]
            output = self.wiring.bridged(k, x, output)
            if self.dropout and k < len(self.signatures) - 1:
                output = F.dropout(output, self.dropout, self.training)
            found += new
            inputs.append(output)
        return (output, *others), tuple(found)


class Fed(nn.Module):
    """A cell that reads x where it is told to, and else what a function makes of its last output.

    Its states are those of the cell and, last, the x that it would read next.

    Args:
        cell: The cell.
        signature: Its signature.
        shown: The signature with the structure of the outputs that the function is given.
        feedback: The function, from the output of a step to the x of the next one; it may be a module.
    """

    def __init__(
        self, cell: nn.Module, signature: Signature, shown: Signature, feedback: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.cell = cell
        self.signature = signature
        self.shown = shown
        self.feedback = feedback

    def forward(
        self, x: Tensor, states: tuple[Tensor, ...], is_given: Tensor, *extras: Tensor, **named: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run a step; `is_given` (B,) says which rows read x."""
        *own, following = states
        here = is_given.reshape(-1, *[1] * (x.dim() - 1))
        arguments = [*enumerate(extras), *named.items()]
        x = torch.where(here, x, following)
        outputs, new = self.signature.step(self.cell, x, tuple(own), arguments)  # type: ignore[arg-type]
        shown = self.shown.wrap_outputs(outputs)
        following = self.feedback(shown)
        if not isinstance(following, Tensor) or following.shape != x.shape:
            rows = x.shape[0]
            msg = (
                f"feedback: got {structure_of(following, rows)} for the output, {structure_of(shown, rows)}; expected "
                f"the next x, {structure_of(x, rows)}, of the function that makes it (`feedback`, `feed` of generate)"
            )
            raise AnyRNNError(msg)
        return outputs, (*new, following.to(x.dtype))

    def described(self, x_shape: tuple[int, ...]) -> Signature:
        """The signature of this cell."""
        inner = self.signature
        return Signature.of_tuples((*inner.state_sizes, size_of(x_shape)), inner.output_sizes)


def stacked_signature(signatures: Sequence[Signature]) -> Signature:
    """The signature of a `Stacked`: it returns the outputs of the last cell as a tuple."""
    return Signature.of_tuples(tuple(size for s in signatures for size in s.state_sizes), signatures[-1].output_sizes)
