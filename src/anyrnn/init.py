"""Named ways to initialise a cell, for the option `init` of the package's cells and layers.

They apply to every layer and direction, and can be combined: ``init=[orthogonal, chrono(784)]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from anyrnn.cells import Cell

#: Each gate's recurrent matrix is drawn orthogonal, which keeps the norm of the state: A. M. Saxe, J. L. McClelland
#: and S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", ICLR 2014.
orthogonal: Mapping[str, Callable[[Tensor], Any]] = {"weight_hh": torch.nn.init.orthogonal_}


def chrono(max_length: int) -> Callable[[Cell], None]:
    r"""Set the forget and input biases so that the memory of the units spreads over up to `max_length` steps.

    .. math:: b_f \sim \log \mathcal{U}(1, T_{max} - 1), \qquad b_i = -b_f

    Where the cell has two biases, the second is zero at these gates. For cells with the gates i and f.

    Source: C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", ICLR 2018, section 2,
    the equation for LSTM. No deviations.

    Args:
        max_length: T_max, the longest dependency expected, in steps; above 2.

    Raises:
        AnyRNNError: for a `max_length` that is not above 2, and for a cell without such gates or biases.

    Example:
        >>> import anyrnn
        >>> layer = anyrnn.LSTM(3, 5, init=anyrnn.init.chrono(100))
        >>> bool((layer.cell().block("bias_ih", "f") >= 0).all())
        True
    """
    if max_length <= 2:
        msg = f"chrono: got max_length={max_length}, expected more than 2 steps"
        raise AnyRNNError(msg)

    def scheme(cell: Cell) -> None:
        if not {"i", "f"} <= set(cell.gates) or not cell.bias:
            got = f"gates {', '.join(cell.gates)} and bias={cell.bias}"
            msg = f"chrono: got a {type(cell).__name__} with {got}, expected the gates i and f, and biases"
            raise AnyRNNError(msg)
        first, *others = cell.bias_names
        forget = cell.block(first, "f").uniform_(1, max_length - 1).log_()
        cell.block(first, "i").copy_(-forget)
        for name in others:
            cell.block(name, "f").zero_()
            cell.block(name, "i").zero_()

    return scheme
