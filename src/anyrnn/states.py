"""States as values: cut off from gradients, set back for some rows, taken for some rows.

A state is what a layer returns and takes: a tensor, a tuple of tensors, or, where the layers of a stack differ, a tuple
with the state of each. The rows of the batch are the second dimension of every tensor in it, (L*D, B, ...).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: A state, in whatever structure a layer has it.
S = TypeVar("S")
#: Rows of the batch: which of all (B,), true or false; or their numbers. A single bool stands for all rows.
Rows: TypeAlias = "Tensor | Sequence[int] | Sequence[bool] | int | bool"


def detach(state: S) -> S:
    """Cut a state off from the graph, so that no gradient passes: between two chunks of a long sequence.

    Args:
        state: A state as a layer, a stream or `anyrnn.scan` returns it, or None, which stays None.

    Returns:
        The same numbers in the same structure. They share the memory of the state.

    Raises:
        AnyRNNError: for something else than tensors in tuples.

    Example:
        >>> import torch, anyrnn
        >>> layer, state = anyrnn.LSTM(3, 5), None
        >>> for x in torch.randn(200, 2, 3).split(50):
        ...     output, state = layer(x, anyrnn.detach(state))
        ...     output.sum().backward()  # through 50 steps
        >>> state[0].requires_grad
        True
    """
    found: S = _mapped("detach", state, lambda s: s.detach())
    return found


def reset(state: S, rows: Rows, to: S | None = None, *, dim: int = 1) -> S:
    """Set the state of some rows back, where a new sequence begins: an episode has ended, or a file.

    Args:
        state: A state as a layer returns it, or None, which stays None: it is the initial one already.
        rows: Which rows: true or false for each, (B,); or their numbers. A single bool is for all of them, and for a
            state without a batch.
        to: What they are set to: a state in the same structure, whose tensors have the state's shape or spread to it,
            such as a learned initial state (L*D, 1, ...). Zeros, if it is None.
        dim: The dimension of the batch: 1 for layers, 0 for a cell or `anyrnn.scan`.

    Returns:
        A new state. No gradient passes from the rows that were set back to the state that they had; from the others it
        does as ever. `to` has the gradient of those that were set back.

    Raises:
        AnyRNNError: for rows that do not fit the batch, and for a `to` of another structure.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.GRU(3, 5)
        >>> _, state = layer(torch.randn(7, 4, 3))
        >>> state = anyrnn.reset(state, torch.tensor([False, True, False, False]))
        >>> state[:, 1].abs().max().item(), bool((state[:, 0] != 0).all())
        (0.0, True)
    """

    def back(s: Tensor, initial: Tensor | None) -> Tensor:
        mask = _mask("reset", rows, s, dim)
        if initial is None:
            initial = s.new_zeros(())
        elif not _spreads(initial, s):
            msg = (
                f"reset: `to` has a tensor {tuple(initial.shape)} of {initial.dtype}, expected {tuple(s.shape)} of "
                f"{s.dtype} as in the state, or with 1 for the rows"
            )
            raise AnyRNNError(msg)
        return torch.where(mask, initial, s)

    found: S = _mapped("reset", state, back, to)
    return found


def select(state: S, rows: Rows, *, dim: int = 1) -> S:
    """Take the state of some rows: the sequences of a batch that go on, or the best hypotheses of a beam search.

    Args:
        state: A state as a layer returns it, or None, which stays None.
        rows: Which rows: true or false for each, (B,); or their numbers, in any order and any number of times.
        dim: The dimension of the batch: 1 for layers, 0 for a cell or `anyrnn.scan`.

    Returns:
        A new state of these rows. Gradients pass.

    Raises:
        AnyRNNError: for rows that the batch does not have.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.LSTM(3, 5)
        >>> _, state = layer(torch.randn(7, 4, 3))
        >>> h, c = anyrnn.select(state, [3, 0, 0])
        >>> h.shape, torch.equal(c[:, 0], state[1][:, 3])
        (torch.Size([1, 3, 5]), True)
    """
    found: S = _mapped("select", state, lambda s: s.index_select(dim, _numbers("select", rows, s, dim)))
    return found


def _mapped(name: str, state: Any, function: Callable[..., Tensor], other: Any = None) -> Any:
    """A state of what a function makes of each tensor, and of that in its place in another state, if there is one."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        if other is not None and not isinstance(other, Tensor):
            msg = f"{name}: `to` has a {type(other).__name__} where the state has a tensor; expected the same structure"
            raise AnyRNNError(msg)
        return function(state) if name != "reset" else function(state, other)
    if not isinstance(state, tuple | list):
        msg = f"{name}: the state has a {type(state).__name__}, expected a tensor, or a tuple of them"
        raise AnyRNNError(msg)
    if other is not None and (not isinstance(other, tuple | list) or len(other) != len(state)):
        got = f"a {type(other).__name__}" + (f" of {len(other)}" if isinstance(other, tuple | list) else "")
        msg = f"{name}: `to` is {got}, expected a tuple of {len(state)}, as the state is"
        raise AnyRNNError(msg)
    others = [None] * len(state) if other is None else other
    parts = [_mapped(name, s, function, o) for s, o in zip(state, others, strict=True)]
    kind: Any = type(state)
    return kind(*parts) if hasattr(state, "_fields") else kind(parts)


def _spreads(initial: Tensor, s: Tensor) -> bool:
    fits = initial.dim() == s.dim() and all(a in (1, b) for a, b in zip(initial.shape, s.shape, strict=True))
    return fits and initial.dtype == s.dtype


def _as_rows(name: str, rows: Rows, s: Tensor, dim: int) -> tuple[Tensor, int]:
    """The rows as a tensor on the device of a state's tensor, true or false or numbers; and how many there are."""
    if s.dim() <= dim:
        msg = f"{name}: the state has shape {tuple(s.shape)}, which has no rows in dimension {dim}; expected a batch"
        raise AnyRNNError(msg)
    B = s.shape[dim]
    try:
        tensor = rows if isinstance(rows, Tensor) else torch.as_tensor(rows, device="cpu")
    except (TypeError, ValueError, RuntimeError) as cause:
        msg = f"{name}: rows is {rows!r}, expected true or false for each of {B} rows, or their numbers"
        raise AnyRNNError(msg) from cause
    if tensor.numel() == 0 and not isinstance(rows, Tensor):
        tensor = tensor.long()  # an empty list is float32 to torch
    if tensor.is_floating_point() or tensor.is_complex():
        msg = f"{name}: rows are {tensor.dtype}, expected bool or integers: rows.bool(), or rows.long()"
        raise AnyRNNError(msg)
    is_mask = tensor.dtype == torch.bool
    if tensor.dim() > 1 or (is_mask and tensor.dim() == 1 and len(tensor) != B):
        msg = f"{name}: rows has shape {tuple(tensor.shape)}, expected ({B},), one for each row of the batch"
        raise AnyRNNError(msg)
    if not is_mask and tensor.numel() and (int(tensor.min()) < 0 or int(tensor.max()) >= B):
        msg = f"{name}: rows are numbers from {int(tensor.min())} to {int(tensor.max())}, expected 0 to {B - 1}"
        raise AnyRNNError(msg)
    return tensor.to(s.device), B


def _mask(name: str, rows: Rows, s: Tensor, dim: int) -> Tensor:
    """Which rows, true or false, as it spreads to a tensor of the state."""
    if isinstance(rows, bool) or (isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.dim() == 0):
        return torch.as_tensor(rows, device=s.device)
    tensor, B = _as_rows(name, rows, s, dim)
    if tensor.dtype != torch.bool:
        mask = torch.zeros(B, dtype=torch.bool, device=s.device)
        tensor = mask.index_fill(0, tensor.reshape(-1).long(), True)
    return tensor.reshape(B, *[1] * (s.dim() - dim - 1))


def _numbers(name: str, rows: Rows, s: Tensor, dim: int) -> Tensor:
    """The numbers of the rows."""
    tensor, B = _as_rows(name, rows, s, dim)
    if tensor.dtype == torch.bool:
        tensor = tensor.expand(B).nonzero()
    return tensor.reshape(-1).long()
