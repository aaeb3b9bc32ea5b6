"""One layer, one direction: the function under the layers, and the checks at its edge."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyrnn.checks import (
    check_flags,
    check_input,
    check_lengths,
    check_state,
    check_x,
    checked_extras,
    checked_interval,
    checked_names,
    checked_reset,
)
from anyrnn.controls import Control, controlled, resetting
from anyrnn.errors import AnyRNNError
from anyrnn.probing import describe, form_of, stated_sizes, untold
from anyrnn.protocol import Signature, State, placement, shape_of, size_of
from anyrnn.runtime.call import NO_REQUEST, Call, Request
from anyrnn.traced import choose, described, signature_key, signatures

if TYPE_CHECKING:
    from anyrnn.checks import Context, Extras, Lengths, Record
    from anyrnn.protocol import Extra, Size, Sizes


def scan(
    cell: nn.Module,
    x: Tensor,
    state: State | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
    *,
    inputs: Extras | None = None,
    context: Context | None = None,
    reset: Tensor | None = None,
    reset_to: State | None = None,
    record: Record = (),
    return_states: bool = False,
    checkpoint_every: int | None = None,
) -> Any:
    """Run a recurrent cell along a sequence, in one direction.

    Args:
        cell: Any `nn.Module` with ``forward(x, state, *extras)`` for one step, x (B, ...): it returns the new state, or
            ``(output, new_state)``. A state is one tensor (B, ...) or a tuple of them, an output one tensor (B, ...), a
            tuple or a dict. One with ``forward(x, *state, *extras)`` will do, too.
        x: The input (T, B, ...).
        state: The initial state in the cell's own structure; zero if None.
        lengths: The number of valid steps of each row, (B,), from 0 to T: a list or an integer tensor on any device.
        reverse: Run from each row's last valid step to its first.
        inputs: What else the cell gets at each step, (T, B, ...): a tensor, a tuple, or a dict by the cell's names.
        context: What it gets that is the same at every step, (B, ...), likewise; `anyrnn.shared` for one of no batch.
        reset: (T, B) true or false: before a step at which it is true, the row's state becomes the initial one, and no
            gradient passes. With `reverse` the pieces are the same ones.
        reset_to: The state that it becomes instead.
        record: Local variables of the cell's `forward`, or of its methods that this calls, to be returned for all
            steps, by name. Each is a tensor with a row for each of the batch.
        return_states: Return the states after every step, too.
        checkpoint_every: With k, keep the states between pieces of k steps only, and run each piece again within the
            backward pass: long sequences in little memory, the same results. It takes the forward pass once more, and a
            millisecond or two a piece.

    Returns:
        The output (T, B, ...), zero at padded steps, and the state after each row's last step (its initial state if
        it has no steps), in the cell's own structures. With `record`, then a dict of the values (T, B, ...) that each
        variable has when its method returns, zero at padded steps; with `return_states`, then the states of all steps,
        (T, B, ...). Gradients pass through all of them.

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
    if not isinstance(x, Tensor) or x.dim() < 3:
        check_x(name, x, {3: "(T, B, ...)"})
    T, B = x.shape[:2]
    like = placement(cell, x) if isinstance(cell, nn.Module) else x
    is_more = inputs is not None or context is not None
    extras = checked_extras(name, inputs, context, (T, B), x) if is_more else ()
    signature = _signature_of(cell, size_of(x.shape[2:]), state, extras, B)
    check_input(name, x, None, like)
    if state is None:
        states = tuple(like.new_zeros(B, *shape_of(size)) for size in signature.state_sizes)
    else:
        states = check_state(name, state, signature, (B,), x.device, like.dtype)
    fresh = None if state is None else states
    if reset_to is not None:
        fresh = check_state(name, reset_to, signature, (B,), x.device, like.dtype)
    check_flags(name, return_states=return_states)
    request = Request(checked_names(name, record), return_states) if record or return_states else NO_REQUEST
    lengths, every = check_lengths(name, lengths, T, B), checked_interval(name, checkpoint_every)
    call = Call(cell, signature, x, states, lengths, reverse, state is None, request, extras, every)
    if reset is not None:
        tensors = resetting(call, checked_reset(name, reset, (T, B), x), fresh)
        call = controlled(call, Control(resets=True, fresh=fresh is not None), tensors, cell)
    elif reset_to is not None:
        msg = f"{name}: got reset_to without reset, expected both"
        raise AnyRNNError(msg)
    result = choose(call).engine.run(call)
    count, names = len(signature.output_sizes), request.record
    results = [signature.wrap_outputs(result.series[:count]), signature.wrap(result.states, state)]
    if record:
        results.append(dict(zip(names, result.series[count : count + len(names)], strict=True)))
    if return_states:
        results.append(signature.wrap(tuple(result.series[count + len(names) :]), state))
    return tuple(results)


def _signature_of(
    cell: nn.Module, input_size: Size, state: State | None, extras: tuple[Extra, ...], rows: int
) -> Signature:
    sizes, form, forms = _sizes_of(cell, state), form_of(state), [e.form for e in extras]
    if torch.compiler.is_compiling():
        fixed = size_of([operator.index(n) for n in shape_of(input_size)])  # ints, not symbols
        return described(cell, fixed, sizes, form, forms)
    known = signatures.setdefault(cell, {}) if isinstance(cell, nn.Module) else {}
    key = signature_key(cell, input_size, sizes, form, forms)
    signature = known.get(key)
    if signature is None:
        signature = describe(cell, input_size, sizes, form, forms, rows)
        if not signature.settled:
            raise AnyRNNError(untold(cell, signature))
        known[key] = signature
    return signature


def _sizes_of(cell: nn.Module, state: State | None) -> Sizes | None:
    """The sizes of the state where the cell does not tell them."""
    if not isinstance(cell, nn.Module) or stated_sizes(cell) is not None:
        return None
    if isinstance(state, Tensor) and state.dim() > 1:
        return state.shape[1] if state.dim() == 2 else torch.Size(state.shape[1:])
    if isinstance(state, tuple | list) and all(isinstance(s, Tensor) and s.dim() > 1 for s in state):
        return tuple(size_of(s.shape[1:]) for s in state)
    msg = (
        f"{type(cell).__name__}: the size of its state is not known, since it has neither `state_sizes` nor "
        f"`hidden_size`; expected an initial state, one tensor (B, ...) or a tuple of them"
    )
    raise AnyRNNError(msg)
