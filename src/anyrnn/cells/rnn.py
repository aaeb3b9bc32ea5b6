"""The simple (Elman) recurrent network."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Unpack

import torch

from anyrnn.cells.base import Cell, CellOptions
from anyrnn.checks import check_choice

if TYPE_CHECKING:
    from torch import Tensor


class RNNCell(Cell):
    r"""One step of a simple recurrent network (Elman RNN); a drop-in `torch.nn.RNNCell`.

    .. math:: h_t = \tanh(W x_t + b_W + U h_{t-1} + b_U)

    Parameters, named and shaped as in torch.nn: `weight_ih` (H, I) is :math:`W`, `weight_hh` (H, H) is :math:`U`,
    `bias_ih` and `bias_hh` (H,) are :math:`b_W, b_U`. The state and the output are h (B, H).

    Source: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990). Deviations: two biases where one
    would do (they keep torch checkpoints loadable), tanh or ReLU in the place of the logistic function, and no
    output layer.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        bias: Without it the cell has no biases.
        nonlinearity: "tanh" or "relu", as in torch.nn; `activations` with the key "h" takes any other function.
        device: Where the parameters are made.
        dtype: Their type.
        **options: `activations` (key "h") and `init`, see `anyrnn.cells.Cell`. There is no forget gate.

    Raises:
        AnyRNNError: for sizes below one, an unknown nonlinearity, or an option the cell does not have.

    Example:
        >>> import torch, anyrnn
        >>> cell = anyrnn.RNNCell(3, 5)
        >>> h = torch.zeros(2, 5)
        >>> for x in torch.randn(10, 2, 3):  # the loop that anyrnn.RNN stands for
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([2, 5])
    """

    gates = ("h",)
    default_activations = MappingProxyType({"h": torch.tanh})

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[CellOptions],
    ) -> None:
        functions = {"tanh": torch.tanh, "relu": torch.relu}
        check_choice("RNNCell", "nonlinearity", nonlinearity, functions, "; for others use activations=")
        self.nonlinearity = nonlinearity
        options["activations"] = {"h": functions[nonlinearity], **(options.get("activations") or {})}
        super().__init__(input_size, hidden_size, bias, device, dtype, **options)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute h_t from x_t (B, I) and h_{t-1} (B, H)."""
        (a,) = self.affine(x, h)
        return self.activations["h"](a)

    def extra_repr(self) -> str:
        """Show the sizes as torch.nn's cell does."""
        shown = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + shown
