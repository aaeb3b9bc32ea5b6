"""One layer, one direction: the function under the layers, and the checks at its edge."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn

from anyrnn.checks import check_input, check_lengths, check_state, check_x, checked_names
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import Signature, State, describe, form_of, placement, untold
from anyrnn.runtime.call import NO_REQUEST, Call, Request
from anyrnn.traced import choose, described, signature_key, signatures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.checks import Lengths


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
    check_x(name, x, {3: "(T, B, I)"})
    signature = _signature_of(cell, x.shape[2], state)
    like = placement(cell, x)
    T, B, _ = x.shape
    check_input(name, x, None, like)
    if state is None:
        states = tuple(like.new_zeros(B, size) for size in signature.state_sizes)
    else:
        states = check_state(name, state, signature, (B,), x.device, like.dtype)
    request = Request(checked_names(name, record)) if record else NO_REQUEST
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
