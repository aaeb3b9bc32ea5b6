"""Dropout within the recurrence, zoneout and DropConnect, as options of every layer.

A layer draws masks for a call, from one seed, and gives them to its cells as further arguments (`controls`). Each layer
and direction has its own; `masks` says how they are drawn. In evaluation mode nothing acts but the mean of zoneout.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

import anyrnn.engines.cpu.masks  # noqa: F401 - it registers the machine code of masks
from anyrnn.arguments import RegularisationOptions
from anyrnn.checks import check_probability
from anyrnn.errors import AnyRNNError
from anyrnn.masks import mask
from anyrnn.protocol import Extra
from anyrnn.state_products import Region, recurrent_weights, takes_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyrnn.arguments import Rates, WeightRates
    from anyrnn.controls import Control
    from anyrnn.runtime.call import Call

OPTIONS = tuple(RegularisationOptions.__annotations__)
_MASKS = 1 << 16  # room for so many of a kind


class Regularised(nn.Module):
    """The options of a layer for it, as `anyrnn.Recurrent` describes them; they may be changed between two calls."""

    # For layers from files of earlier versions, too.
    input_dropout: float = 0.0
    recurrent_dropout: Rates = 0.0
    zoneout: Rates = 0.0
    weight_dropout: WeightRates = 0.0

    def _regularise(self, options: RegularisationOptions) -> None:
        """Take the options."""
        for key, value in options.items():
            _check(type(self).__name__, key, value)
            given = tuple(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value
            setattr(self, key, float(given) if isinstance(given, int) else given)

    def _is_regularised(self) -> bool:
        """Whether a call in the present mode is another one than without these options."""
        if not self.training:
            return bool(self.zoneout)
        return bool(self.zoneout or self.recurrent_dropout or self.input_dropout or self.weight_dropout)


def _check(name: str, key: str, value: Any) -> None:
    if key == "weight_dropout" and isinstance(value, dict):
        check_probability(name, **{f"{key}[{k!r}]": v for k, v in value.items()})
    elif key in ("recurrent_dropout", "zoneout") and isinstance(value, tuple | list):
        check_probability(name, **{f"{key}[{k}]": v for k, v in enumerate(value)})
    else:
        check_probability(name, **{key: value})


class Draws:
    """The masks of a call of a cell: drawn from the seed of the layer's call, in streams of this layer and direction.

    A stream has a number for the kind of mask and one for which of them, so that no mask depends on what else is drawn.
    """

    def __init__(self, seed: Tensor, place: int) -> None:
        self.seed = seed
        self.place = place

    def __call__(self, kind: str, k: int, sizes: tuple[int, int, int], p: float, like: Tensor, **more: bool) -> Tensor:
        """Draw a mask (T, B, width)."""
        stream = (self.place * len(OPTIONS) + OPTIONS.index(kind)) * _MASKS + k
        return mask(self.seed, stream, sizes, p, like.dtype, **more)


def regularised(
    layer: Regularised, call: Call, draws: Draws, control: Control, others: Sequence[Extra]
) -> tuple[Control, list[Extra]]:
    """What acts on a cell in a call of its layer while training; dropout on the call's input is done here.

    Args:
        layer: The layer.
        call: The call.
        draws: What draws its masks.
        control: What acts on the cell beside.
        others: The tensors for that.

    Returns:
        All that acts, with the tensors for it.

    Raises:
        AnyRNNError: for options that do not fit the cell.
    """
    zoneout = zoneout_of(layer, len(call.states))
    recurrent = _rates(layer, "recurrent_dropout", layer.recurrent_dropout, len(call.states), bare=1)
    weights = _dropped(layer, call) if layer.weight_dropout else []
    tensors = [*others]
    for kind, tensor in (
        *(("context", t) for t in _on_states(draws, call, recurrent)),
        *(("shared", _on_weight(draws, k, *each)) for k, each in enumerate(weights)),
        *(("input", t) for t in _taking(draws, call, zoneout)),
    ):
        tensors.append(Extra(len(tensors), kind, tensor))
    if layer.input_dropout:
        B, *shape = call.x.shape[1:]
        drawn = draws("input_dropout", 0, (1, B, _numel(shape)), layer.input_dropout, call.x)
        call.x = call.x * drawn.reshape(B, *shape)
    if any(recurrent):
        _check_acts(layer, call, recurrent)
    control = control._replace(
        masked=tuple([p > 0 for p in recurrent]) if any(recurrent) else (),
        dropped=tuple([region.name for region, *_ in weights]),
        held=tuple([p > 0 for p in zoneout]) if any(zoneout) else (),
    )
    return control, tensors


def _on_states(draws: Draws, call: Call, rates: Sequence[float]) -> list[Tensor]:
    """The masks (B, ...) on the states, for the whole sequence."""
    drawn = [
        (draws("recurrent_dropout", k, (1, s.shape[0], _numel(s.shape[1:])), p, s), s)
        for k, (s, p) in enumerate(zip(call.states, rates, strict=True))
        if p
    ]
    return [t.reshape(s.shape) for t, s in drawn]


def _taking(draws: Draws, call: Call, rates: Sequence[float]) -> list[Tensor]:
    """The masks (T, B, ...) of zoneout: 1 where the new state is taken."""
    T = call.x.shape[0]
    drawn = [
        (draws("zoneout", k, (T, s.shape[0], _numel(s.shape[1:])), p, s, scaled=False), s)
        for k, (s, p) in enumerate(zip(call.states, rates, strict=True))
        if p
    ]
    return [t.reshape(T, *s.shape) for t, s in drawn]


def zoneout_of(layer: Regularised, count: int) -> tuple[float, ...]:
    """The probability of zoneout for each of so many states."""
    return _rates(layer, "zoneout", layer.zoneout, count, bare=count)


def _numel(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _rates(layer: Regularised, key: str, value: Rates, count: int, bare: int) -> tuple[float, ...]:
    """A probability for each state; a number is for so many of the first ones."""
    name = type(layer).__name__
    _check(name, key, value)
    if not isinstance(value, tuple | list):
        return (float(value),) * bare + (0.0,) * (count - bare)
    if len(value) != count:
        msg = f"{name}: got {key}={value!r} for a cell of {count} states, expected a number, or one for each state"
        raise AnyRNNError(msg)
    return tuple([float(p) for p in value])


def _dropped(layer: Regularised, call: Call) -> list[tuple[Region, Tensor, float]]:
    """The parts of weights that are dropped, each with its weight and its probability."""
    name, rate = type(layer).__name__, layer.weight_dropout
    _check(name, "weight_dropout", rate)
    there = dict(call.cell.named_parameters())
    if not isinstance(rate, float | int):
        inner = getattr(type(call.cell), "inner_name", None)  # the cell may be a module with a function as its step
        prefix = "" if inner is None else f"{inner}."
        if missing := [key for key in rate if prefix + key not in there]:
            known = ", ".join(key.removeprefix(prefix) for key in there)
            msg = f"{name}: got weight_dropout for {missing[0]!r}, expected parameters of a cell: {known}"
            raise AnyRNNError(msg)
        return [(Region(prefix + key), there[prefix + key], float(p)) for key, p in rate.items() if p]
    try:
        found = recurrent_weights(call)
    except AnyRNNError as cause:
        msg = (
            f"{name}: got weight_dropout={rate!r}, but which weights of {type(call.cell).__name__} multiply its state "
            f"cannot be seen ({cause}); expected their names: weight_dropout={{'weight_hh': {rate!r}}}"
        )
        raise AnyRNNError(msg) from cause
    if not found:
        _warn(layer, f"weight_dropout={rate!r} does nothing: no product takes the state and a weight")
    return [(region, there[region.name], rate) for region in found]


def _on_weight(draws: Draws, k: int, region: Region, weight: Tensor, p: float) -> Tensor:
    """A mask of the shape of a weight, with ones beside the region."""
    shape = list(weight.shape)
    lengths = [stop - start for start, stop in region.ranges]
    if lengths:
        shape[region.dim] = sum(lengths)
    drawn = draws("weight_dropout", k, (1, shape[0], _numel(shape[1:])), p, weight).reshape(shape)
    if not lengths:
        return drawn
    parts: list[Tensor] = []
    at = 0
    for piece, (start, stop) in zip(drawn.split(lengths, region.dim), region.ranges, strict=True):
        parts += [_ones(weight, region.dim, start - at), piece]
        at = stop
    return torch.cat([*parts, _ones(weight, region.dim, weight.shape[region.dim] - at)], region.dim)


def _ones(weight: Tensor, dim: int, count: int) -> Tensor:
    shape = [*weight.shape]
    shape[dim] = count
    return torch.ones(shape, dtype=weight.dtype, device=weight.device)


_functorch_level = torch._C._functorch.maybe_current_level

#: Layers of which it was checked whether their options do something.
_checked: WeakSet[nn.Module] = WeakSet()


def _check_acts(layer: Regularised, call: Call, rates: tuple[float, ...]) -> None:
    """Warn once if no product takes a state that is to be dropped."""
    if torch.compiler.is_compiling() or layer in _checked or _functorch_level() is not None:
        return
    _checked.add(layer)
    for k, (p, takes) in enumerate(zip(rates, takes_states(call), strict=True)):
        if p and not takes:
            which = f"state {k}" if len(rates) > 1 else "its state"
            _warn(layer, f"recurrent_dropout={layer.recurrent_dropout!r} does nothing to {which}: no product takes it")


def _warn(layer: Regularised, message: str) -> None:
    if not torch.compiler.is_compiling():
        warnings.warn(f"{type(layer).__name__}: {message}", stacklevel=5)
