"""Long short-term memory: the standard cell with an optional projection, and the one with peepholes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Unpack

import torch
from torch.nn import functional as F

from anyrnn.cells.base import Cell, CellOptions
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from torch import Tensor

_ACTIVATIONS = MappingProxyType(
    {"i": torch.sigmoid, "f": torch.sigmoid, "g": torch.tanh, "o": torch.sigmoid, "h": torch.tanh}
)


class LSTMCell(Cell):
    r"""One step of a long short-term memory (LSTM); a drop-in `torch.nn.LSTMCell`.

    .. math::
        i_t &= \sigma(W_i x_t + U_i h_{t-1} + b_i) \\
        f_t &= \sigma(W_f x_t + U_f h_{t-1} + b_f) \\
        g_t &= \tanh(W_g x_t + U_g h_{t-1} + b_g) \\
        o_t &= \sigma(W_o x_t + U_o h_{t-1} + b_o) \\
        c_t &= f_t \circ c_{t-1} + i_t \circ g_t \\
        h_t &= o_t \circ \tanh(c_t)

    With `proj_size` P, :math:`h_t = R\,(o_t \circ \tanh(c_t))` is a projection and has P features.

    Parameters, named and shaped as in torch.nn, with the gates in the order **i, f, g, o**: `weight_ih` (4H, I) is
    :math:`W`, `weight_hh` (4H, H or P) is :math:`U`, `bias_ih` and `bias_hh` (4H,) add up to :math:`b`, `weight_hr`
    (P, H) is :math:`R`. The state is the tuple (h, c), h (B, H or P) and c (B, H); the output is h. ONNX orders the
    gates i, o, f, c; Keras i, f, c, o.

    Source: S. Hochreiter and J. Schmidhuber, Neural Computation 9 (1997), with the forget gate of F. A. Gers,
    J. Schmidhuber and F. Cummins, "Learning to forget", Neural Computation 12 (2000); the projection is H. Sak,
    A. Senior and F. Beaufays, Interspeech 2014, without their peepholes and their non-recurrent projection.
    Deviations: tanh where the first two papers scale the logistic function to (-2, 2) and (-1, 1), and two biases
    where one would do (they keep torch checkpoints loadable).

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        bias: Without it the cell has no biases.
        device: Where the parameters are made.
        dtype: Their type.
        proj_size: P, the size of the projection; 0 for none.
        **options: `activations` (keys "i", "f", "g", "o", and "h" for the tanh in the last equation), `init`,
            `forget_bias`, see `anyrnn.cells.Cell`.

    Raises:
        AnyRNNError: for sizes below one, `proj_size` not below `hidden_size`, or an option the cell does not have.

    Example:
        >>> import torch, anyrnn
        >>> cell = anyrnn.LSTMCell(3, 5, forget_bias=1.0)
        >>> state = torch.zeros(2, 5), torch.zeros(2, 5)
        >>> for x in torch.randn(10, 2, 3):  # the loop that anyrnn.LSTM stands for
        ...     state = cell(x, state)
        >>> h, c = state
        >>> h.shape
        torch.Size([2, 5])
    """

    gates = ("i", "f", "g", "o")
    default_activations = _ACTIVATIONS
    weight_hr: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        **options: Unpack[CellOptions],
    ) -> None:
        if proj_size != 0 and not (isinstance(proj_size, int) and 0 < proj_size < hidden_size):
            msg = f"LSTMCell: got proj_size={proj_size!r}, expected 0 (none) or less than hidden_size={hidden_size}"
            raise AnyRNNError(msg)
        self.proj_size = proj_size
        super().__init__(input_size, hidden_size, bias, device, dtype, **options)

    @property
    def state_sizes(self) -> tuple[int, int]:
        """The sizes of h and c."""
        return self.proj_size or self.hidden_size, self.hidden_size

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute (h_t, c_t) from x_t (B, I) and (h_{t-1}, c_{t-1})."""
        act = self.activations
        h, c = state
        i, f, g, o = self.affine(x, h)  # (B, H) each
        i, f, g, o = act["i"](i), act["f"](f), act["g"](g), act["o"](o)
        c = f * c + i * g
        h = o * act["h"](c)
        return (F.linear(h, self.weight_hr) if self.proj_size else h), c

    def extra_repr(self) -> str:
        """Show the sizes as torch.nn's cell does."""
        return super().extra_repr() + (f", proj_size={self.proj_size}" if self.proj_size else "")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        projection = {"weight_hr": (self.proj_size, self.hidden_size)} if self.proj_size else {}
        return {**super()._shapes(), **projection}


class PeepholeLSTMCell(Cell):
    r"""One step of a peephole LSTM, whose gates also see the cell state.

    .. math::
        i_t &= \sigma(W_i x_t + U_i h_{t-1} + p_i \circ c_{t-1} + b_i) \\
        f_t &= \sigma(W_f x_t + U_f h_{t-1} + p_f \circ c_{t-1} + b_f) \\
        g_t &= \tanh(W_g x_t + U_g h_{t-1} + b_g) \\
        c_t &= f_t \circ c_{t-1} + i_t \circ g_t \\
        o_t &= \sigma(W_o x_t + U_o h_{t-1} + p_o \circ c_t + b_o) \\
        h_t &= o_t \circ \tanh(c_t)

    Parameters, with the gates in the order **i, f, g, o**: `weight_ih` (4H, I) is :math:`W`, `weight_hh` (4H, H) is
    :math:`U`, `bias_ih` (4H,) is :math:`b`, `weight_ch` (3H,) is :math:`p`, in the order **i, f, o**. The state is
    the tuple (h, c) of (B, H) tensors; the output is h. A `torch.nn.LSTMCell` maps to this cell by
    ``bias_ih = bias_ih + bias_hh`` and ``weight_ch = 0``. ONNX's `P` has the order i, o, f.

    Source: F. A. Gers, N. N. Schraudolph and J. Schmidhuber, "Learning precise timing with LSTM recurrent
    networks", JMLR 3 (2002); equations as in K. Greff et al., "LSTM: a search space odyssey", arXiv:1503.04069,
    section II. Deviations from the first: tanh in the last equation, where it has the identity
    (``activations={"h": torch.nn.Identity()}``), and gradients that are exact rather than truncated.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        bias: Without it the cell has no bias.
        device: Where the parameters are made.
        dtype: Their type.
        output_sees_new_cell: True is the papers' equation, in which the output gate sees :math:`c_t`. False is the
            form of some tutorials, in which it sees :math:`c_{t-1}` as the other gates do.
        **options: `activations` (keys "i", "f", "g", "o", and "h" for the tanh in the last equation), `init`,
            `forget_bias`, see `anyrnn.cells.Cell`.

    Raises:
        AnyRNNError: for sizes below one, or an option the cell does not have.

    Example:
        >>> import torch, anyrnn
        >>> cell = anyrnn.PeepholeLSTMCell(3, 5)
        >>> state = torch.zeros(2, 5), torch.zeros(2, 5)
        >>> for x in torch.randn(10, 2, 3):  # the loop that anyrnn.PeepholeLSTM stands for
        ...     state = cell(x, state)
        >>> h, c = state
        >>> h.shape
        torch.Size([2, 5])
    """

    gates = ("i", "f", "g", "o")
    default_activations = _ACTIVATIONS
    bias_names = ("bias_ih",)
    weight_ch: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        output_sees_new_cell: bool = True,
        **options: Unpack[CellOptions],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, **options)
        self.output_sees_new_cell = output_sees_new_cell

    @property
    def state_sizes(self) -> tuple[int, int]:
        """The sizes of h and c."""
        return self.hidden_size, self.hidden_size

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute (h_t, c_t) from x_t (B, I) and (h_{t-1}, c_{t-1})."""
        act = self.activations
        h, c_old = state
        i, f, g, o = self.affine(x, h)  # (B, H) each
        p_i, p_f, p_o = self.weight_ch.chunk(3)  # (H,) each
        i, f, g = act["i"](i + p_i * c_old), act["f"](f + p_f * c_old), act["g"](g)
        c = f * c_old + i * g
        o = act["o"](o + p_o * (c if self.output_sees_new_cell else c_old))
        return o * act["h"](c), c

    def gates_of(self, name: str) -> tuple[str, ...]:
        """Return the gates whose rows make up a parameter: i, f, o for the peepholes."""
        return ("i", "f", "o") if name == "weight_ch" else super().gates_of(name)

    def extra_repr(self) -> str:
        """Show the sizes as torch.nn's cells do."""
        return super().extra_repr() + ("" if self.output_sees_new_cell else ", output_sees_new_cell=False")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._shapes(), "weight_ch": (3 * self.hidden_size,)}
