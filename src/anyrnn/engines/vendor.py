"""PyTorch's own kernels (oneDNN, native or cuDNN) for the cells that are torch.nn's RNN, LSTM or GRU."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from anyrnn import cells
from anyrnn.engines.checkpoint import run_checkpointed
from anyrnn.engines.low_precision import LowPrecision, failure
from anyrnn.runtime.call import NO_REQUEST, Result, SeriesForm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyrnn.runtime.call import Call

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")

#: The methods that compute a step. A cell that has one of these set on the object computes something else.
_METHODS = frozenset({"forward", "step", "affine", "parameter"})


class TorchEngine:
    """Runs torch.nn's three networks, one layer and direction a call."""

    name = "torch"

    def refusal(self, call: Call) -> str | None:
        """Say why PyTorch's kernels cannot run the call; None if they can."""
        cell = call.cell
        if call.request != NO_REQUEST:
            return "PyTorch's kernels record nothing on their way"
        if call.extras:
            return "PyTorch's kernels take nothing but x and the state"
        if kernel_of(cell) is None:
            return f"PyTorch has kernels for RNN, LSTM and GRU only, and {type(cell).__name__} is none of them"
        if cell._forward_hooks or cell._forward_pre_hooks or cell._backward_hooks or cell._backward_pre_hooks:
            return "the cell has hooks, which a kernel for the whole sequence would not call"
        if 0 in call.x.shape:
            return "PyTorch's kernels take no empty sequences or batches"
        if call.x.is_meta and call.lengths is not None:
            return "PyTorch cannot pack a ragged batch on the meta device"
        if torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0:
            return "PyTorch's kernels have no rule for torch.func transforms or forward-mode derivatives"
        dtypes = {t.dtype for t in (call.x, *call.states, *weights_of(cell))}
        if len(dtypes) > 1 and not torch.is_autocast_enabled(call.x.device.type):
            return f"x, state and weights differ in dtype ({', '.join(sorted(map(str, dtypes)))})"
        if call.x.device.type == "cpu":
            return _unable_here(call)
        return None

    def anatomy(self, call: Call) -> None:
        """Take the cell as it is."""

    def run(self, call: Call) -> Result:
        """Run the call by a kernel for the whole sequence."""
        return _run(call) if call.checkpoint_every is None else run_checkpointed(call, _run)


def _run(call: Call) -> Result:
    if call.lengths is None:
        x = call.x.flip(0) if call.reverse else call.x
        output, states = _kernel(call.cell, x, None, call.states)
        output = call.in_type_of_x(output)
        return Result([output.flip(0) if call.reverse else output], states)
    return _run_ragged(call, call.lengths.cpu())


def kernel_of(cell: nn.Module) -> str | None:
    """Name the kernel of `torch._VF` that computes this very cell; None if there is none."""
    # By its methods, not by its class: a subclass may compute something else, and a parametrized cell is one, too.
    if not _METHODS.isdisjoint(vars(cell)):
        return None
    if isinstance(cell, cells.Cell):
        cls, base = type(cell), cells.Cell
        if cls.forward is not base.forward or cls.affine is not base.affine or cls.parameter is not base.parameter:
            return None
        step = cls.step
        if step is cells.RNNCell.step:
            functions: dict[object, str] = {torch.tanh: "rnn_tanh", torch.relu: "rnn_relu"}
            return functions.get(cell.activations["h"])
        if cell.activations != cell.default_activations:
            return None
        if step is cells.LSTMCell.step:
            return "lstm"
        return "gru" if step is cells.GRUCell.step and cell.reset_after else None
    forward = getattr(type(cell), "forward", None)  # a traced module of TorchScript has none
    if forward is nn.RNNCell.forward:
        return f"rnn_{cell.nonlinearity}"
    known: dict[object, str] = {nn.LSTMCell.forward: "lstm", nn.GRUCell.forward: "gru"}
    return known.get(forward)


def _unable_here(call: Call) -> str | None:
    """Say why the kernel does not work in the precision of a call on this processor; None if it does."""
    low = torch.is_autocast_enabled("cpu") or call.x.dtype not in (torch.float32, torch.float64)
    if not low:  # works on every processor
        return None
    names = {n: w for n in _NAMES if isinstance(w := getattr(call.cell, n, None), Tensor)}
    message = failure(LowPrecision.of(str(kernel_of(call.cell)), call.x, call.states, names))
    return None if message is None else f"PyTorch's kernel does not work in this precision on this processor: {message}"


def weights_of(cell: nn.Module) -> list[Tensor]:
    """The weights of a cell in the order in which the kernels take them."""
    return [w for w in (getattr(cell, name, None) for name in _NAMES) if isinstance(w, Tensor)]


def _kernel(
    cell: nn.Module, x: Tensor, batch_sizes: Tensor | None, states: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    kernel = kernel_of(cell)
    hx = [s.unsqueeze(0) for s in states]
    has_biases = getattr(cell, "bias_ih", None) is not None
    # Always in training mode: cuDNN refuses a backward pass in the other, and without dropout they do not differ.
    settings = (weights_of(cell), has_biases, 1, 0.0, True, False)
    layout = (False,) if batch_sizes is None else ()
    data = (x,) if batch_sizes is None else (x, batch_sizes)
    function = getattr(torch._VF, str(kernel))
    with _without_advice() if x.is_cuda else nullcontext():
        output, *new = function(*data, hx if kernel == "lstm" else hx[0], *settings, *layout)
    # The state stays in its own precision where autocast lowers that of the results.
    return output, tuple(n.squeeze(0).to(s.dtype) for n, s in zip(new, states, strict=True))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Leave out cuDNN's advice to put the weights side by side: that would be a second copy of them, or move them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield


def _run_ragged(call: Call, lengths: Tensor) -> Result:
    """Run the kernel on the packed rows; `lengths` is on the CPU, where packing wants it."""
    T, B = call.x.shape[:2]
    valid = lengths.nonzero().squeeze(1)  # the kernels take no empty rows
    if len(valid) == 0:
        return call.without_steps([SeriesForm((call.signature.output_size,), call.x.dtype)])  # type: ignore[arg-type]
    lengths = lengths[valid]
    rows = valid.to(call.x.device)
    x = call.x.index_select(1, rows)
    if call.reverse:
        x = _flip_valid(x, lengths)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None
    assert back is not None
    states = tuple(s.index_select(0, rows).index_select(0, order) for s in call.states)
    data, states = _kernel(call.cell, packed.data, packed.batch_sizes, states)
    output, _ = pad_packed_sequence(packed._replace(data=call.in_type_of_x(data)), total_length=T)
    if call.reverse:
        output = _flip_valid(output, lengths)
    states = tuple(s.index_select(0, back) for s in states)
    if len(rows) == B:
        return Result([output], states)
    whole = output.new_zeros(T, B, output.shape[2]).index_copy(1, rows, output)
    return Result([whole], tuple(old.index_copy(0, rows, new) for old, new in zip(call.states, states, strict=True)))


def _flip_valid(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each row (T, B, :) within its valid steps."""
    t = torch.arange(len(x), device="cpu").unsqueeze(1)
    index = torch.where(t < lengths, lengths - 1 - t, t).to(x.device)  # (T, B)
    return x.gather(0, index.unsqueeze(2).expand_as(x))
