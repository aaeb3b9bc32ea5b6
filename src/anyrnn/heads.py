"""Many-to-one: from the outputs of a recurrent layer to one prediction a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from anyrnn.checks import check_choice, check_lengths
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer, is_proxy, node_of
from anyrnn.protocol import placement

if TYPE_CHECKING:
    from anyrnn.checks import Lengths
    from anyrnn.protocol import State

_POOLS = ("last", "mean", "max")


def output_at(
    output: Tensor, lengths: Lengths | None = None, *, bidirectional: bool = False, batch_first: bool = False
) -> Tensor:
    """Take the output of each row at its last valid step: what the network says after the whole sequence.

    For a bidirectional layer that is the forward half at the last valid step and the backward half at the first,
    where each direction has seen the whole sequence. (`output[-1]` is wrong for both ragged and bidirectional output.)

    Args:
        output: The output of a layer, (T, B, O), or (B, T, O) with `batch_first`.
        lengths: The number of valid steps of each row, (B,); T if None. A row of length 0 gives zeros.
        bidirectional: The second half of the features is the backward direction's.
        batch_first: As in the layer.

    Returns:
        A tensor (B, O).

    Raises:
        AnyRNNError: for an output that is not of three dimensions, and for lengths of another form.

    Example:
        >>> import torch, anyrnn
        >>> output, h = anyrnn.GRU(3, 5)(torch.randn(10, 2, 3), lengths=[10, 4])
        >>> bool((anyrnn.output_at(output, [10, 4]) == h[0]).all())
        True
    """
    if output.dim() != 3:
        msg = f"output_at: the output has shape {tuple(output.shape)}, expected (T, B, O)"
        raise AnyRNNError(msg)
    if batch_first:
        output = output.transpose(0, 1)
    T, B, features = output.shape
    if bidirectional and features % 2:
        msg = f"output_at: the output has {features} features, expected two equal halves with bidirectional=True"
        raise AnyRNNError(msg)
    valid = _valid("output_at", output, lengths)
    if T == 0:
        return output.new_zeros(B, features)
    forward = features // 2 if bidirectional else features
    last = (valid - 1).clamp(min=0)
    at_last = output[last, torch.arange(B, device=output.device)]  # (B, O)
    picked = torch.cat([at_last[:, :forward], output[0, :, forward:]], dim=1)
    return torch.where((valid > 0).unsqueeze(1), picked, 0.0)


def _valid(name: str, output: Tensor, lengths: Lengths | None) -> Tensor:
    """Return the number of valid steps of each row of an output (T, B, O)."""
    T, B, _ = output.shape
    checked = check_lengths(name, lengths, T, B)
    return torch.full((B,), T, device=output.device) if checked is None else checked.to(output.device)


class ManyToOne(nn.Module):
    """One prediction for a whole sequence: a recurrent layer, a pool over its valid steps, and a linear layer.

    Called as ``head(x, state=None, lengths=None)``; returns the prediction (B, out_features) and the layer's final
    state, from which the next part of the sequence can go on. Right for ragged and bidirectional input: padding
    never counts, and "last" is `output_at`. A row of length 0 is pooled to zeros, so it gets the bias.

    Args:
        layer: Any layer of this package, with a known input size.
        out_features: The number of classes, or of numbers to predict.
        pool: "last" takes the forward output at the last valid step and the backward output at the first; "mean" and
            "max" go over the valid steps.

    Raises:
        AnyRNNError: for an unknown pool, and what the layer raises.

    Example:
        >>> import torch, anyrnn
        >>> model = anyrnn.ManyToOne(anyrnn.LSTM(12, 100, bidirectional=True), out_features=9)
        >>> logits, state = model(torch.randn(29, 4, 12), lengths=[29, 7, 12, 20])
        >>> logits.shape
        torch.Size([4, 9])
    """

    def __init__(self, layer: Layer, out_features: int, pool: str = "last") -> None:
        super().__init__()
        check_choice("ManyToOne", "pool", pool, _POOLS)
        if not isinstance(layer, Layer):
            msg = f"ManyToOne: got {type(layer).__name__}, expected a layer of anyrnn, such as anyrnn.LSTM"
            raise AnyRNNError(msg)
        merge = layer._wiring.merge
        if pool == "last" and layer.bidirectional and merge != "concat":
            msg = (
                f"ManyToOne: got pool='last' for a bidirectional layer with merge={merge!r}, in whose output the "
                f"directions cannot be told apart; expected merge='concat', or pool='mean' or 'max'"
            )
            raise AnyRNNError(msg)
        self.layer = layer
        self.pool = pool
        size, like = layer.output_size, placement(layer)
        if not isinstance(size, int):
            msg = (
                f"ManyToOne: got a layer with an output of shape (T, B, {', '.join(map(str, size))}), expected features"
            )
            raise AnyRNNError(msg)
        self.linear = nn.Linear(size, out_features, device=like.device, dtype=like.dtype)

    def forward(
        self, x: Tensor | PackedSequence, state: State | None = None, *, lengths: Lengths | None = None
    ) -> tuple[Tensor, State]:
        """Return the prediction (B, out_features), or (out_features,) if x is unbatched, and the final state."""
        if is_proxy(x):
            return node_of(self, x, state, lengths=lengths)  # type: ignore[no-any-return]
        output, state = self.layer(x, state, lengths=lengths)
        batch_first = self.layer.batch_first
        if isinstance(output, PackedSequence):
            output, lengths = pad_packed_sequence(output)  # (T, B, O)
            batch_first = False
        batched = output.dim() == 3
        if not batched:
            output = output.unsqueeze(0 if batch_first else 1)
            lengths = None if lengths is None else torch.as_tensor(lengths, device="cpu").reshape(-1)
        y: Tensor = self.linear(self._pooled(output, lengths, batch_first))
        return (y if batched else y.squeeze(0)), state

    def extra_repr(self) -> str:
        """Show how the steps are pooled."""
        return f"pool={self.pool!r}"

    def _pooled(self, output: Tensor, lengths: Lengths | None, batch_first: bool) -> Tensor:
        if self.pool == "last":
            return output_at(output, lengths, bidirectional=self.layer.bidirectional, batch_first=batch_first)
        if batch_first:
            output = output.transpose(0, 1)
        T, B, _ = output.shape
        valid = _valid("ManyToOne", output, lengths)
        if self.pool == "mean":
            return output.sum(0) / valid.clamp(min=1).unsqueeze(1)  # padded steps are zero
        if T == 0:
            return output.new_zeros(B, output.shape[2])
        padding = torch.arange(T, device=output.device).unsqueeze(1) >= valid  # (T, B)
        highest = output.masked_fill(padding.unsqueeze(2), -torch.inf).amax(0)
        return torch.where((valid > 0).unsqueeze(1), highest, 0.0)
