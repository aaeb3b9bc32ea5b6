"""The checks of what a user passes: at the edge, once, with what was got, what was expected, and a cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.protocol import LEADING, Extra, Shared, Size, shape_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from anyrnn.protocol import Signature, State

#: Further arguments of a step: one, several by position, or several by keyword.
Extras: TypeAlias = "Tensor | Sequence[Tensor] | Mapping[str, Tensor]"
#: The same, of which some are one for all rows.
Context: TypeAlias = "Tensor | Shared | Sequence[Tensor | Shared] | Mapping[str, Tensor | Shared]"
Lengths: TypeAlias = "Tensor | Sequence[int]"
Record: TypeAlias = "str | Sequence[str]"


def check_sizes(name: str, **sizes: object) -> None:
    """Check numbers of features, units or layers."""
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            msg = f"{name}: got {key}={value!r}, expected an int of at least 1"
            raise AnyRNNError(msg)


def check_limits(name: str, **limits: float | None) -> None:
    """Check limits of numbers: above zero, or None."""
    for key, value in limits.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            msg = f"{name}: got {key}={value!r}, expected a number above 0, or None"
            raise AnyRNNError(msg)


def checked_interval(name: str, checkpoint_every: int | None) -> int | None:
    """Check of how many steps the pieces are between which states are kept."""
    if checkpoint_every is not None:
        check_sizes(name, checkpoint_every=checkpoint_every)
    return checkpoint_every


def check_flags(name: str, **flags: object) -> None:
    """Check options that are on or off."""
    for key, flag in flags.items():
        if not isinstance(flag, bool):
            msg = f"{name}: got {key}={flag!r}, expected True or False"
            raise AnyRNNError(msg)


def check_probability(name: str, **values: object) -> None:
    """Check probabilities."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            msg = f"{name}: got {key}={value!r}, expected a probability from 0 to 1"
            raise AnyRNNError(msg)


def check_choice(name: str, key: str, value: object, choices: Collection[str], more: str = "") -> None:
    """Check an option that has a name."""
    if value not in choices:
        expected = " or ".join(map(repr, choices)) if len(choices) < 3 else f"one of {', '.join(choices)}"
        msg = f"{name}: got {key}={value!r}, expected {expected}{more}"
        raise AnyRNNError(msg)


def check_x(name: str, x: object, forms: Mapping[int, str]) -> None:
    """Check that x is a tensor with a number of dimensions that is among `forms`."""
    if not isinstance(x, Tensor) or x.dim() not in forms:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        msg = f"{name}: x has {got}, expected {' or '.join(forms.values())}"
        raise AnyRNNError(msg)


def check_input(name: str, x: Tensor, input_size: Size | None, like: Tensor) -> None:
    """Check the features, dtype and device of x (T, B, ...) against a layer whose parameters are like `like`."""
    if isinstance(input_size, int) and x.shape[-1] != input_size:
        msg = f"{name}: x has {x.shape[-1]} features, expected input_size={input_size}"
        raise AnyRNNError(msg)
    if isinstance(input_size, tuple) and x.shape[-len(input_size) :] != input_size:
        msg = f"{name}: x has shape {tuple(x.shape)}, expected {input_size} behind T and B"
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
    """Check a state in the cell's own structure, each tensor (*lead, ...), and return it as a tuple."""
    sizes = [shape_of(size) for size in signature.state_sizes]
    expected = (
        f"one tensor {(*lead, *sizes[0])}"
        if signature.bare
        else f"a tuple of {len(sizes)} tensors {', '.join(str((*lead, *size)) for size in sizes)}"
    )
    fits = isinstance(state, Tensor) if signature.bare else isinstance(state, tuple | list)
    states: tuple[Tensor, ...] = (state,) if isinstance(state, Tensor) else tuple(state) if fits else ()
    if not fits or len(states) != len(sizes) or not all(isinstance(s, Tensor) for s in states):
        got = type(state).__name__ + (f" of {len(state)}" if isinstance(state, tuple | list) else "")
        msg = f"{name}: the state is a {got}, expected {expected}"
        raise AnyRNNError(msg)
    if any(s.shape != (*lead, *size) for s, size in zip(states, sizes, strict=True)):
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


def valid_lengths(name: str, lengths: Tensor, T: int) -> Tensor | None:
    """Check the values of lengths and return them as int64 (B,) on the CPU; None if every row has T steps."""
    numbers = lengths.to("cpu", torch.int64, copy=True)
    values = numbers.tolist()
    shortest, longest = min(values, default=T), max(values, default=T)
    if shortest < 0 or longest > T:
        row = next(row for row, value in enumerate(values) if not 0 <= value <= T)
        msg = f"{name}: lengths[{row}] is {values[row]}, expected 0 to T={T}"
        raise AnyRNNError(msg)
    return None if shortest == T else numbers


def checked_reset(name: str, reset: Tensor, lead: tuple[int, ...], like: Tensor, letters: str = "T, B") -> Tensor:
    """Check which rows start anew before which steps."""
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool or tuple(reset.shape) != lead:
        got = f"{reset.dtype} {tuple(reset.shape)}" if isinstance(reset, Tensor) else f"a {type(reset).__name__}"
        cure = ": reset.bool()" if isinstance(reset, Tensor) and tuple(reset.shape) == lead else ""
        msg = f"{name}: reset is {got}, expected true or false, torch.bool ({letters}) with {letters} = {lead}{cure}"
        raise AnyRNNError(msg)
    if reset.device != like.device:
        msg = f"{name}: reset is on {reset.device}, expected {like.device}: reset.to('{like.device}')"
        raise AnyRNNError(msg)
    return reset


def checked_names(name: str, record: Record) -> tuple[str, ...]:
    """Check what a layer is asked to record, and return it as a tuple."""
    names = (record,) if isinstance(record, str) else tuple(record)
    if not all(isinstance(key, str) for key in names):
        msg = f"{name}: got record={record!r}, expected names of local variables of the cell's step"
        raise AnyRNNError(msg)
    return tuple(dict.fromkeys(names))


def checked_extras(
    name: str, inputs: Extras | None, context: Context | None, lead: tuple[int, int], like: Tensor
) -> tuple[Extra, ...]:
    """Check further arguments of a step, and return them in the order in which a cell gets them.

    Args:
        name: The layer.
        inputs: Those with one for each step: (T, B, ...) each.
        context: Those with one for each sequence: (B, ...) each, or for all, if they are `Shared`.
        lead: T and B.
        like: A tensor of the layer's type, on its device.
    """
    found: list[Extra] = []
    for kind, given in (("input", inputs), ("context", context)):
        position = sum(isinstance(e.key, int) for e in found)
        for key, value in _by_key(name, kind, given, position):
            is_shared = isinstance(value, Shared) and kind == "context"
            tensor = value.tensor if isinstance(value, Shared) and is_shared else value
            extra = Extra(key, "shared" if is_shared else kind, tensor)  # type: ignore[arg-type]
            _check_extra(name, extra, lead, like)
            found.append(extra)
    keys = [e.key for e in found]
    if len(set(keys)) < len(keys):
        msg = f"{name}: got {next(k for k in keys if keys.count(k) > 1)!r} in inputs and in context, expected it once"
        raise AnyRNNError(msg)
    return tuple(found)


def _by_key(name: str, kind: str, given: object, position: int) -> Iterator[tuple[int | str, object]]:
    """Further arguments, each with its keyword or its position."""
    if given is None:
        return
    if isinstance(given, Tensor | Shared):
        yield position, given
    elif isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(key, str):
                msg = f"{name}: got the key {key!r} in {_OPTION[kind]}, expected keywords of the cell's forward"
                raise AnyRNNError(msg)
            yield key, value
    elif isinstance(given, tuple | list):
        yield from enumerate(given, position)
    else:
        msg = (
            f"{name}: got {_OPTION[kind]} of type {type(given).__name__}, expected a tensor, a tuple of tensors, or a "
            f"dict of them by keyword"
        )
        raise AnyRNNError(msg)


_OPTION = {"input": "inputs", "context": "context", "shared": "context"}


def _check_extra(name: str, extra: Extra, lead: tuple[int, int], like: Tensor) -> None:
    key, kind, tensor = extra
    sizes = lead[len(lead) - LEADING[kind] :]
    if not isinstance(tensor, Tensor) or tuple(tensor.shape[: len(sizes)]) != sizes:
        got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"type {type(tensor).__name__}"
        letters = {"input": "T, B", "context": "B", "shared": ""}[kind]
        cure = "; what is one for all rows is anyrnn.shared(tensor)" if kind == "context" else ""
        msg = (
            f"{name}: {_OPTION[kind]}[{key!r}] has {got}, expected ({letters}, ...) with {letters} = "
            f"{', '.join(map(str, sizes))}{cure}"
        )
        raise AnyRNNError(msg)
    wrong_type = tensor.is_floating_point() and tensor.dtype != like.dtype
    if tensor.device != like.device or (wrong_type and not torch.is_autocast_enabled(like.device.type)):
        msg = (
            f"{name}: {_OPTION[kind]}[{key!r}] is {tensor.dtype} on {tensor.device}, expected {like.dtype} on "
            f"{like.device}: .to('{like.device}', {like.dtype})"
        )
        raise AnyRNNError(msg)
