"""The fast path for short sequences: a stack of torch.nn's RNN, LSTM or GRU by one call of PyTorch's kernel.

For a few steps the time of a call is that of its preparations: machine code reads every weight once to pack it, and
around it is Python. PyTorch's kernel does neither, so it is faster, up to a number of steps that depends on how much
work a step is. That number was chosen from measurements with one and two threads, with AVX-512 and without
(`benchmarks/short.py` measures again and prints the numbers that follow), and never by timing while a program runs: the
same program gives the same numbers again. (To cache packed weights would be no cure: a later call could not see a
change through ``weight.data``.)

Here is the rule, and a path past `Layer._apply_layer` for the layers whose inputs are as the kernel takes them. What is
not plainly the same computation, on plain tensors, is left to the engines.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks

from anyrnn import cells
from anyrnn.engines.vendor import kernel_of, weights_of
from anyrnn.runtime.call import NO_REQUEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch.nn.utils.rnn import PackedSequence

    from anyrnn.protocol import Size, State
    from anyrnn.runtime.call import Call


class Stack(Protocol):
    """The attributes of a layer that the path reads: torch.nn's options, cells, names and shapes of weights."""

    input_size: Size | None
    hidden_size: int
    batch_first: bool
    bidirectional: bool
    dropout: float
    training: bool
    _parameters: dict[str, nn.Parameter | None]
    _templates: tuple[cells.Cell, ...]
    _shapes: dict[str, torch.Size]


_DTYPE = torch.float32  # the type of the measurements
_MEASURED = frozenset({_DTYPE})
_TENSORS = frozenset({Tensor, nn.Parameter})
_is_autocast, _tracing_state = torch.is_autocast_enabled, torch._C._get_tracing_state
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_functorch_level = torch._C._functorch.maybe_current_level
_CELLS = frozenset({cells.RNNCell, cells.LSTMCell, cells.GRUCell, nn.RNNCell, nn.LSTMCell, nn.GRUCell})

#: Up to how many steps PyTorch's kernel is faster, and then up to how many units of all rows together (B H): by kind
#: and whether there will be a backward pass. A thousand units more are some microseconds a step, of which machine code
#: needs fewer. Where both are within 5 % it is PyTorch's turn.
_UNITS: Mapping[tuple[str, bool], tuple[tuple[int, float], ...]] = {
    ("rnn", False): ((1, math.inf), (2, 8192), (3, 4096), (4, 2048), (6, 1024), (8, 512), (12, 128)),
    ("rnn", True): ((1, math.inf), (2, 8192), (4, 2048), (6, 256)),
    ("gru", False): ((1, math.inf), (2, 2048), (3, 512), (4, 128)),
    ("gru", True): ((1, 16384), (2, 1024)),
    ("lstm", False): ((1, 2048), (4, 256), (16, 32)),
    ("lstm", True): ((4, 256), (12, 64), (16, 32)),
}

#: Up to how many steps it is faster for one row with weights beyond the second cache: to put these in order is then
#: most of the work, and PyTorch reads them where they are.
_WIDE = 384
_STEPS_OF_WIDE: Mapping[tuple[str, bool], int] = {
    ("rnn", False): 16, ("rnn", True): 4, ("gru", False): 8, ("gru", True): 3, ("lstm", False): 0, ("lstm", True): 0
}  # fmt: skip

_MOST_STEPS = 16

_KINDS = {"rnn_tanh": "rnn", "rnn_relu": "rnn", "lstm": "lstm", "gru": "gru"}
_FUNCTIONS = {kernel: getattr(torch._VF, kernel) for kernel in _KINDS}


def is_faster(kernel: str, T: int, B: int, H: int, training: bool) -> bool:
    """The rule: whether PyTorch's kernel ("rnn_tanh", "rnn_relu", "lstm", "gru") is faster than machine code."""
    key = kernel.partition("_")[0], training
    if B == 1 and H >= _WIDE and _STEPS_OF_WIDE[key] >= T:
        return True
    return next((units >= B * H for steps, units in _UNITS[key] if steps >= T), False)


def preference(call: Call) -> str | None:
    """Say why PyTorch's kernel is to run a call that machine code could run as well; None if it is not."""
    T, B, *features = call.x.shape
    if not 0 < T <= _MOST_STEPS or not B or type(call.cell) not in _CELLS or len(features) != 1:
        return None
    if call.lengths is not None or call.request != NO_REQUEST or call.extras:
        return None
    kind = kernel_of(call.cell)
    if kind is None or not is_plain_context() or _has_hooks(call.cell):
        return None
    weights = weights_of(call.cell)
    H, rows = call.states[0].shape[1], weights[0].shape[0]
    if [w.shape for w in weights] not in (
        [(rows, *features), (rows, H)],
        [(rows, *features), (rows, H), (rows,), (rows,)],
    ):
        return None
    tensors = (call.x, *call.states, *weights)
    if not all(map(is_plain, tensors)) or not is_faster(kind, T, B, H, _is_training(tensors)):
        return None
    return f"PyTorch's kernel is faster for so few steps (T={T})"


def run_cell(cell: nn.Module, x: Tensor, hx: State | None, batch_first: bool) -> tuple[Tensor, State] | None:
    """Run a layer of one cell in one direction as `preference` says: its results; None where that is None.

    Args:
        cell: The cell.
        x: The input, plain, (T, B, I), or (B, T, I) with batch_first; what surrounds the call is plain, too.
        hx: The initial state in the layer's form, (1, B, H) or a pair of these; None for zeros.
        batch_first: See x.
    """
    first, second, features = x.shape
    T, B = (second, first) if batch_first else (first, second)
    if T > _MOST_STEPS or type(cell) not in _CELLS or x.dtype is not _DTYPE:
        return None
    kernel = kernel_of(cell)
    if kernel is None or _has_hooks(cell):
        return None
    weights = [w for w in cell._parameters.values() if w is not None]
    if len(weights) not in (2, 4) or not all(map(is_plain, weights)):
        return None
    (rows, width), (gates, H), *biases = (w.shape for w in weights)
    if width != features or gates != rows or any(shape != (rows,) for shape in biases):
        return None
    states = _states(kernel, hx, x, (1, B, H), True)
    if states is None or not is_faster(kernel, T, B, H, _is_training((x, *states, *weights))):
        return None
    output, *new = _FUNCTIONS[kernel](
        x, states if kernel == "lstm" else states[0], weights, bool(biases), 1, 0.0, True, False, batch_first
    )
    return output, tuple(new) if kernel == "lstm" else new[0]


def run(layer: Stack, x: Tensor | PackedSequence, hx: State | None) -> tuple[Tensor, State] | None:
    """Run a layer by one call of PyTorch's kernel: its results; None where `preference` would be None.

    Args:
        layer: The layer; it is not called below torch.compile, and with the engine "auto".
        x: The input of the call: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or anything else.
        hx: The initial state of the call; None for zeros.
    """
    if not isinstance(x, Tensor) or not is_plain_context() or not is_plain(x):
        return None
    batched, batch_first = x.dim() == 3, layer.batch_first
    if not batched:
        if x.dim() != 2:
            return None
        x, batch_first = x.unsqueeze(1), False
    first, second, features = x.shape
    T, B = (second, first) if batch_first else (first, second)
    if not 0 < T <= _MOST_STEPS or not B or layer.input_size != features:
        return None
    templates, D = layer._templates, 2 if layer.bidirectional else 1
    kernel, H = kernel_of(templates[0]), layer.hidden_size
    if kernel is None or _has_hooks(templates[0]):
        return None
    for template in templates[1:]:
        if kernel_of(template) != kernel or _has_hooks(template):
            return None
    parameters, weights, training = layer._parameters, [], x.requires_grad
    for key, shape in layer._shapes.items():
        weight: Any = parameters.get(key)
        # `is_plain`, written out: this is most of what a call costs.
        if type(weight) not in _TENSORS or weight.shape != shape or weight.dtype is not _DTYPE:
            return None
        if not weight.is_cpu or weight.layout is not torch.strided:
            return None
        training = training or weight.requires_grad
        weights.append(weight)
    count = len(weights) // (len(templates) * D)
    if count not in (2, 4):  # a projection
        return None
    states = _states(kernel, hx, x, (len(templates) * D, B, H), batched)
    if states is None:
        return None
    if hx is not None:
        training = training or any(s.requires_grad for s in states)
    if not is_faster(kernel, T, B, H, training and torch.is_grad_enabled()):
        return None
    result = _FUNCTIONS[kernel](
        x, states if kernel == "lstm" else states[0], weights, count == 4, len(templates), layer.dropout,
        layer.training, layer.bidirectional, batch_first,
    )  # fmt: skip
    output, *new = result if batched else (result[0].squeeze(1), *(s.squeeze(1) for s in result[1:]))
    return output, tuple(new) if kernel == "lstm" else new[0]


def _states(
    kind: str, hx: State | None, x: Tensor, shape: tuple[int, int, int], batched: bool
) -> tuple[Tensor, ...] | None:
    """The initial states as the kernel takes them; None if they are not of that form."""
    count = 2 if kind == "lstm" else 1
    if hx is None:
        return (x.new_zeros(shape),) * count
    states: Any = (hx,) if count == 1 else hx
    if type(states) is not tuple or len(states) != count or not all(map(is_plain, states)):
        return None
    if not batched:
        states = tuple(s.unsqueeze(1) for s in states)
    return states if all(s.shape == shape for s in states) else None


def _is_training(tensors: Iterable[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def is_plain(t: object, types: frozenset[torch.dtype] = _MEASURED) -> bool:
    """Whether a value is a tensor with numbers in the memory of this machine, of one of these types."""
    return (
        type(t) in _TENSORS
        and t.dtype in types  # type: ignore[attr-defined]
        and t.is_cpu  # type: ignore[attr-defined]
        and t.layout is torch.strided  # type: ignore[attr-defined]
        and not t.is_nested  # type: ignore[attr-defined]
    )


def is_plain_context() -> bool:
    """Whether nothing is active around a call that changes what operations do, or wants to see every step of a cell."""
    return not (
        _is_autocast("cpu")
        or _dispatch_modes()
        or _function_modes()
        or _functorch_level() is not None
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
        or hooks._has_any_global_hook()
    )


def _has_hooks(cell: nn.Module) -> bool:
    return bool(cell._forward_hooks or cell._forward_pre_hooks or cell._backward_hooks or cell._backward_pre_hooks)
