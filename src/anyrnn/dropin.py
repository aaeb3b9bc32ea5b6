"""What code that inspects `torch.nn.RNN`, `LSTM` and `GRU` finds on them, for the layers that replace them.

Nothing in this package uses any of it: the flat list of weights is made when somebody asks for it, and the checks are
torch's own functions, for those who call them.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from anyrnn import cells


class TorchNames:
    """The names that `nn.RNNBase` has beyond a call, the options and the parameters."""

    _templates: tuple[cells.Cell, ...]
    num_directions: int
    proj_size: int = 0

    check_input = nn.RNNBase.check_input
    check_hidden_size = nn.RNNBase.check_hidden_size
    check_forward_args = nn.RNNBase.check_forward_args
    get_expected_hidden_size = nn.RNNBase.get_expected_hidden_size
    permute_hidden = nn.RNNBase.permute_hidden

    @property
    def mode(self) -> str:
        """The kind of network: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU"."""
        nonlinearity = getattr(self, "nonlinearity", None)
        name = type(self._templates[0]).__name__.removesuffix("Cell")
        return name if nonlinearity is None else f"{name}_{nonlinearity.upper()}"

    @property
    def _all_weights(self) -> list[list[str]]:
        suffixes = [
            f"_l{k}{way}" for k in range(len(self._templates)) for way in ("", "_reverse")[: self.num_directions]
        ]
        return [[key + suffix for key in self._templates[0]._parameters] for suffix in suffixes]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        """The weights of now. What is assigned here is not kept: the attributes are the weights."""
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, _: Any) -> None:
        pass

    @property
    def _flat_weight_refs(self) -> list[weakref.ref[Tensor] | None]:
        return [None if w is None else weakref.ref(w) for w in self._flat_weights]

    @_flat_weight_refs.setter
    def _flat_weight_refs(self, _: Any) -> None:
        pass


class TorchLSTMNames(TorchNames):
    """The same for an LSTM, which has a second state."""

    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]
