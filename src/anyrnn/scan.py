"""One layer, one direction: the function under the layers, and the checks at its edge."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, TypeAlias, overload

import torch
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError
from anyrnn.opaque import choose, described, signature_key, signatures, valid_lengths
from anyrnn.protocol import Signature, State, describe, form_of, placement, untold
from anyrnn.records import checked_names
from anyrnn.runtime.call import PLAIN, Call, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

Lengths: TypeAlias = "Tensor | Sequence[int]"


@overload
def scan(
    cell: nn.Module,
    x: Tensor,
    state: State | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]: ...
@overload
def scan(
    cell: nn.Module,
    x: Tensor,
    state: State | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
    *,
    record: str | Sequence[str],
) -> tuple[Tensor, State, dict[str, Tensor]]: ...
def scan(
    cell: nn.Module,
    x: Tensor,
    state: State | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
    *,
    record: str | Sequence[str] = (),
) -> tuple[Tensor, State] | tuple[Tensor, State, dict[str, Tensor]]:
    """Run a recurrent cell along a sequence, in one direction.

    Args:
        cell: Any `nn.Module` with ``forward(x, state)`` for one step, x (B, I): it returns the new state, or
            ``(output, new_state)``. A state is one tensor (B, size) or a tuple of them.
        x: The input (T, B, I).
        state: The initial state in the cell's own structure; zero if None.
        lengths: The number of valid steps of each row, (B,), from 0 to T: a list or an integer tensor on any device.
        reverse: Run from each row's last valid step to its first.
        record: Local variables of the cell's `forward`, or of its methods that this calls, to be returned for all
            steps, by name. Each is a tensor with a row for each of the batch.

    Returns:
        The output (T, B, O), zero at padded steps, and the state after each row's last step (its initial state if
        it has no steps), in the cell's own structure. With `record`, then a dict of the values (T, B, ...) that each
        variable has when its method returns, zero at padded steps; gradients pass through them.

    Raises:
        AnyRNNError: for a cell outside the protocol, and for arguments of another form than described.

    Example:
        Equivalent to this loop, where all lengths are T:

        >>> import torch, anyrnn
        >>> cell, x, h = torch.nn.GRUCell(3, 5), torch.randn(10, 2, 3), torch.zeros(2, 5)
        >>> output, state = anyrnn.scan(cell, x, h)
        >>> for t in range(10):
        ...     h = cell(x[t], h)
        ...     assert torch.allclose(output[t], h, atol=1e-6)
        >>> torch.allclose(state, h, atol=1e-6)
        True
    """
    name = type(cell).__name__
    if not isinstance(x, Tensor) or x.dim() != 3:
        msg = f"{name}: x has {_shape_of(x)}, expected (T, B, I)"
        raise AnyRNNError(msg)
    signature = _signature_of(cell, x.shape[2], state)
    like = placement(cell, x)
    T, B, _ = x.shape
    check_input(name, x, None, like)
    if state is None:
        states = tuple(like.new_zeros(B, size) for size in signature.state_sizes)
    else:
        states = check_state(name, state, signature, (B,), x.device, like.dtype)
    request = Request(checked_names(name, record)) if record else PLAIN
    call = Call(cell, signature, x, states, check_lengths(name, lengths, T, B), reverse, state is None, request)
    result = choose(call).engine.run(call)
    output, states_after = result.output, signature.wrap(result.states, state)
    return (output, states_after, dict(result.records)) if record else (output, states_after)


def _signature_of(cell: nn.Module, input_size: int, state: State | None) -> Signature:
    sizes, form = _sizes_of(cell, state), form_of(state)
    if torch.compiler.is_compiling():
        return described(cell, operator.index(input_size), sizes, form)  # an int, not a symbol
    known = signatures.setdefault(cell, {}) if isinstance(cell, nn.Module) else {}
    key = signature_key(cell, input_size, sizes, form)
    signature = known.get(key)
    if signature is None:
        signature = describe(cell, input_size, sizes, form)
        if not signature.settled:
            raise AnyRNNError(untold(cell, signature))
        known[key] = signature
    return signature


def _sizes_of(cell: nn.Module, state: State | None) -> int | tuple[int, ...] | None:
    """The sizes of the state where the cell does not tell them."""
    if not isinstance(cell, nn.Module) or hasattr(cell, "state_sizes") or hasattr(cell, "hidden_size"):
        return None
    if isinstance(state, Tensor) and state.dim() == 2:
        return state.shape[1]
    if isinstance(state, tuple | list) and all(isinstance(s, Tensor) and s.dim() == 2 for s in state):
        return tuple(s.shape[1] for s in state)
    msg = (
        f"{type(cell).__name__}: the size of its state is not known, since it has neither `state_sizes` nor "
        f"`hidden_size`; expected an initial state, one tensor (B, size) or a tuple of them"
    )
    raise AnyRNNError(msg)


def check_input(name: str, x: Tensor, input_size: int | None, like: Tensor) -> None:
    """Check the features, dtype and device of x (T, B, I) against a layer whose parameters are like `like`."""
    if input_size is not None and x.shape[-1] != input_size:
        msg = f"{name}: x has {x.shape[-1]} features, expected input_size={input_size}"
        raise AnyRNNError(msg)
    if not x.is_floating_point():
        msg = f"{name}: x is {x.dtype}, expected a floating point type: x.to({like.dtype})"
        raise AnyRNNError(msg)
    if x.device != like.device:
        msg = f"{name}: x is on {x.device}, expected {like.device}, where the parameters are: x.to('{like.device}')"
        raise AnyRNNError(msg)
    dtypes = {x.dtype, like.dtype}  # autocast converts what is not float64
    if len(dtypes) == 2 and (torch.float64 in dtypes or not torch.is_autocast_enabled(x.device.type)):
        msg = (
            f"{name}: x is {x.dtype}, expected {like.dtype}, as the parameters are: "
            f"x.to({like.dtype}), or convert the layer with .to({x.dtype})"
        )
        raise AnyRNNError(msg)


def check_state(
    name: str,
    state: State,
    signature: Signature,
    lead: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """Check a state in the cell's own structure, each tensor (*lead, size), and return it as a tuple."""
    sizes = signature.state_sizes
    expected = (
        f"one tensor {(*lead, sizes[0])}"
        if signature.bare
        else f"a tuple of {len(sizes)} tensors {', '.join(str((*lead, size)) for size in sizes)}"
    )
    fits = isinstance(state, Tensor) if signature.bare else isinstance(state, tuple | list)
    states: tuple[Tensor, ...] = (state,) if isinstance(state, Tensor) else tuple(state) if fits else ()
    if not fits or len(states) != len(sizes) or not all(isinstance(s, Tensor) for s in states):
        got = type(state).__name__ + (f" of {len(state)}" if isinstance(state, tuple | list) else "")
        msg = f"{name}: the state is a {got}, expected {expected}"
        raise AnyRNNError(msg)
    if any(s.shape != (*lead, size) for s, size in zip(states, sizes, strict=True)):
        msg = f"{name}: the state has shape {', '.join(str(tuple(s.shape)) for s in states)}, expected {expected}"
        raise AnyRNNError(msg)
    for s in states:
        if s.dtype != dtype or s.device != device:
            msg = (
                f"{name}: the state is {s.dtype} on {s.device}, expected {dtype} on {device}: .to('{device}', {dtype})"
            )
            raise AnyRNNError(msg)
    return states


def check_lengths(name: str, lengths: Lengths | None, T: int, B: int) -> Tensor | None:
    """Check lengths and return them as int64 (B,) on the CPU; None if every row has T steps.

    On the CPU, since the number of steps to run has to be known there: a device is waited for once, here.
    """
    if lengths is None:
        return None
    if isinstance(lengths, Tensor) and lengths.is_meta:
        msg = f"{name}: lengths are on meta, where they have no values; expected {B} integers from 0 to {T}"
        raise AnyRNNError(msg)
    try:  # on the CPU, whatever torch.set_default_device says
        tensor = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError) as cause:
        msg = f"{name}: lengths is {lengths!r}, expected {B} integers from 0 to {T}"
        raise AnyRNNError(msg) from cause
    if tensor.numel() == 0 and not isinstance(lengths, Tensor):
        tensor = tensor.long()  # an empty list is float32 to torch
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        msg = f"{name}: lengths are {tensor.dtype}, expected integers: torch.as_tensor(lengths).long()"
        raise AnyRNNError(msg)
    if tensor.shape != (B,):
        msg = f"{name}: lengths has shape {tuple(tensor.shape)}, expected ({B},), one length for each row of the batch"
        raise AnyRNNError(msg)
    # Where PyTorch traces there are no values yet: the operator checks them.
    return tensor if torch.compiler.is_compiling() else valid_lengths(name, tensor, T)


def _shape_of(x: object) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
