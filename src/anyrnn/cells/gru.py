"""The gated recurrent unit, with the reset before or after the matrix product."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Unpack

import torch
from torch.nn import functional as F

from anyrnn.cells.base import Cell, CellOptions

if TYPE_CHECKING:
    from torch import Tensor


class GRUCell(Cell):
    r"""One step of a gated recurrent unit (GRU); a drop-in `torch.nn.GRUCell`.

    .. math::
        r_t &= \sigma(W_r x_t + b_{Wr} + U_r h_{t-1} + b_{Ur}) \\
        z_t &= \sigma(W_z x_t + b_{Wz} + U_z h_{t-1} + b_{Uz}) \\
        n_t &= \tanh(W_n x_t + b_{Wn} + r_t \circ (U_n h_{t-1} + b_{Un})) \\
        h_t &= (1 - z_t) \circ n_t + z_t \circ h_{t-1}

    With ``reset_after=False`` the reset gate comes before the matrix product, and the bias leaves the bracket:

    .. math:: n_t = \tanh(W_n x_t + b_{Wn} + U_n (r_t \circ h_{t-1}) + b_{Un})

    Parameters, named and shaped as in torch.nn, with the gates in the order **r, z, n**: `weight_ih` (3H, I) is
    :math:`W`, `weight_hh` (3H, H) is :math:`U`, `bias_ih` and `bias_hh` (3H,) are :math:`b_W, b_U`. The state and
    the output are h (B, H). ONNX and Keras order the gates z, r, h.

    Source: K. Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014, eqs. 5-8, is
    ``reset_after=False``; the reset after the product is cuDNN's and torch.nn's form. Deviations: the paper has no
    biases. Here, as in that paper, z keeps the old state; J. Chung et al., arXiv:1412.3555, and many texts write
    :math:`h_t = (1 - z_t) h_{t-1} + z_t n_t`, which is the same network with the sign of the parameters of z turned.
    In the ``reset_after=False`` form only the sum of the two biases matters; both are kept so that the names do not
    depend on the option.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        bias: Without it the cell has no biases.
        device: Where the parameters are made.
        dtype: Their type.
        reset_after: True is torch.nn's form, False is the paper's.
        **options: `activations` (keys "r", "z", "n") and `init`, see `anyrnn.cells.Cell`. There is no forget gate.

    Raises:
        AnyRNNError: for sizes below one, or an option the cell does not have.

    Example:
        >>> import torch, anyrnn
        >>> cell = anyrnn.GRUCell(3, 5, reset_after=False)
        >>> h = torch.zeros(2, 5)
        >>> for x in torch.randn(10, 2, 3):  # the loop that anyrnn.GRU(reset_after=False) stands for
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([2, 5])
    """

    gates = ("r", "z", "n")
    default_activations = MappingProxyType({"r": torch.sigmoid, "z": torch.sigmoid, "n": torch.tanh})
    bias_hh: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        **options: Unpack[CellOptions],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, **options)
        self.reset_after = reset_after

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute h_t from x_t (B, I) and h_{t-1} (B, H)."""
        act = self.activations
        W_r, W_z, W_n = F.linear(x, self.weight_ih, self.parameter("bias_ih")).chunk(3, dim=-1)  # (B, H) each
        if self.reset_after:
            U_r, U_z, U_n = F.linear(h, self.weight_hh, self.parameter("bias_hh")).chunk(3, dim=-1)
            r, z = act["r"](W_r + U_r), act["z"](W_z + U_z)
            n = act["n"](W_n + r * U_n)
        else:
            sizes = [2 * self.hidden_size, self.hidden_size]
            U_rz, U_n = torch.split(self.weight_hh, sizes)
            b_rz, b_n = torch.split(self.bias_hh, sizes) if self.bias else (None, None)
            U_r, U_z = F.linear(h, U_rz, b_rz).chunk(2, dim=-1)
            r, z = act["r"](W_r + U_r), act["z"](W_z + U_z)
            n = act["n"](W_n + F.linear(r * h, U_n, b_n))
        return (1 - z) * n + z * h

    def extra_repr(self) -> str:
        """Show the sizes as torch.nn's cell does."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")
