"""Stacks: how the directions of a layer are merged, and what each layer reads of those before it.

A `Wiring` is the definition: it computes with tensors where a layer is run, and with widths where it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyrnn.checks import check_choice
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import shape_of, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.protocol import Size

_MERGES = ("concat", "sum", "mean")
_CONNECTIONS = ("plain", "residual", "dense")


@dataclass(frozen=True)
class Wiring:
    """What is between the directions and the layers of a stack.

    Attributes:
        merge: The output of a layer from those of its directions: "concat", side by side; "sum"; or "mean".
        connect: What a layer reads and gives: "plain", the output of the layer before; "residual", the same, and each
            layer after the first adds what it read to its output; "dense", x and the outputs of all layers before,
            side by side.
    """

    merge: str = "concat"
    connect: str = "plain"

    def check(self, name: str) -> None:
        """Check the names."""
        check_choice(name, "merge", self.merge, _MERGES)
        check_choice(name, "connect", self.connect, _CONNECTIONS)

    def merged(self, outputs: Sequence[Tensor]) -> Tensor:
        """The output of a layer from those of its directions."""
        if len(outputs) == 1:
            return outputs[0]
        if self.merge == "concat":
            return _beside(outputs, lead=2)
        forward, backward = outputs
        return forward + backward if self.merge == "sum" else (forward + backward) / 2

    def joined(self, inputs: Sequence[Tensor], lead: int = 2) -> Tensor:
        """What the next layer reads, of x and the outputs of the layers so far, behind so many dimensions."""
        return _beside(inputs, lead) if self.connect == "dense" and len(inputs) > 1 else inputs[-1]

    def bridged(self, layer: int, x: Tensor, output: Tensor) -> Tensor:
        """The output of a layer that read x."""
        return output + x if self.connect == "residual" and layer else output

    def merged_size(self, name: str, layer: int, sizes: Sequence[Size]) -> Size:
        """The size of `merged`.

        Raises:
            AnyRNNError: if directions are added that differ in size.
        """
        if self.merge == "concat":
            return _size_beside(sizes)
        if len(set(sizes)) > 1:
            msg = (
                f"{name}: got merge={self.merge!r} for directions of {' and '.join(map(str, sizes))} features in "
                f"layer {layer}, expected equal ones, since they are added; merge='concat' puts them side by side"
            )
            raise AnyRNNError(msg)
        return sizes[0]

    def joined_size(self, sizes: Sequence[Size]) -> Size:
        """The size of `joined`."""
        return _size_beside(sizes) if self.connect == "dense" else sizes[-1]

    def check_bridge(self, name: str, layer: int, read: Size, size: Size) -> None:
        """Check that a layer's output is of the size of what it reads, if both are added."""
        if self.connect == "residual" and layer and read != size:
            msg = (
                f"{name}: got connect='residual' for layer {layer}, which reads {read} features and gives {size}, "
                f"expected equal, since they are added: give the layers equal sizes, bring the output to that width by "
                f"anyrnn.Projected(cell, {read}), or use connect='dense'"
            )
            raise AnyRNNError(msg)


def _beside(tensors: Sequence[Tensor], lead: int) -> Tensor:
    """Tensors side by side behind so many dimensions: their features, or the channels of images; or numbers."""
    if tensors[0].dim() == lead:
        return torch.stack([*tensors], dim=-1)
    return torch.cat([*tensors], dim=lead if tensors[0].dim() - lead > 2 else -1)


def _size_beside(sizes: Sequence[Size]) -> Size:
    """The size of `_beside`."""
    shapes = [list(shape_of(size)) or [1] for size in sizes]
    dim = 0 if len(shapes[0]) > 2 else -1
    shapes[0][dim] = sum(shape[dim] for shape in shapes)
    return size_of(shapes[0])


#: The wiring of torch.nn's layers.
PLAIN = Wiring()


def parts_of(name: str, state: Any, count: int) -> Sequence[Any]:
    """The states of each layer, where these differ in form.

    Raises:
        AnyRNNError: if it is not one state for each layer.
    """
    if not isinstance(state, tuple | list) or len(state) != count:
        got = f"a {type(state).__name__}" + (f" of {len(state)}" if isinstance(state, tuple | list) else "")
        msg = f"{name}: the state is {got}, expected a tuple of {count} states, one for each layer, since they differ"
        raise AnyRNNError(msg)
    return state
