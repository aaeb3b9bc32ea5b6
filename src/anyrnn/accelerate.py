"""Swap the recurrent layers of torch.nn inside a model for this package's, and back.

A layer stays the object that it was, and only its class changes, the way `torch.nn.utils.parametrize` changes it. So
there is nothing to carry over that could be forgotten: parameters, hooks and the handles that remove them, flags, and
every reference to the layer, from several places of the model or from outside it, are what they were. The two classes
keep their parameters under the same names; what remains is to take away torch's list of flat weights, to add the
templates of the cells, and on the way back the reverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from anyrnn import zoo
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

_OURS: Mapping[type[nn.Module], type[zoo.CellLayer]] = {nn.RNN: zoo.RNN, nn.LSTM: zoo.LSTM, nn.GRU: zoo.GRU}

#: What `nn.RNNBase` keeps to find its weights sooner. Kept in a swapped layer it would hold on to outdated weights.
_FLAT = ("_flat_weights", "_flat_weight_refs")

#: The attribute that marks a swapped layer. Its value is the names of the attributes that it did not have before.
_MARK = "_added_by_accelerate"


@dataclass(frozen=True)
class Found:
    """A recurrent layer of a model.

    Attributes:
        name: Its name in the model, as in `named_modules()`: "" for the model itself.
        layer: Its class before the swap, and its options.
        reason: Why it was left as it is; "" for a layer that was swapped.
    """

    name: str
    layer: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name or '(the model itself)'}: {self.layer}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` did to a model; printing it gives the text.

    Attributes:
        swapped: The layers that are this package's now.
        left: The recurrent layers that were left as they are.
    """

    swapped: tuple[Found, ...]
    left: tuple[Found, ...]

    def __str__(self) -> str:
        lines = []
        for title, layers in (("swapped", self.swapped), ("left as they are", self.left)):
            if layers:
                lines += [f"{title}: {len(layers)}", *(f"  {layer}" for layer in layers)]
        return "\n".join(lines) or "the model has no nn.RNN, nn.LSTM or nn.GRU"


def accelerate(model: nn.Module) -> Acceleration:
    """Make every `torch.nn.RNN`, `LSTM` and `GRU` of a model run on this package's engines, in place.

    Results and training go on as before, faster on a CPU. (On a GPU the engine is the same cuDNN kernel, called once
    a layer and direction, so that there is nothing to gain.) Each layer stays the same object, and only its class
    changes, from `nn.LSTM` to `anyrnn.LSTM`; so the model may itself be such a layer. Its `Parameter` objects,
    hooks, flags, buffers, attributes, `state_dict` and parametrizations stay, and so do optimisers and references to
    it. A layer that is used in several places is swapped, and named, once.

    The calls of torch.nn go on working, with packed sequences, ``hx=`` and `flatten_parameters()`. What differs:

    * ``isinstance(layer, nn.LSTM)`` is False from here on, for your code and for tools that ask so: call `restore`
      before torch.jit or quantization.
    * A call with wrong shapes raises an `AnyRNNError`.
    * A method taken from the layer before (``run = model.rnn.forward``) has to be taken again.
    * A parametrization is computed once a call, by torch.nn several times: one that draws or counts, as
      `spectral_norm` does in training, goes on with other numbers.

    Left as they are, with the reason in the report: subclasses of torch's layers, which may compute something else,
    also those without a `forward` of their own; layers with another `forward` set on the object, or another attribute
    that the two classes read differently; layers of torch.jit and of torch.ao (quantization).

    Args:
        model: Any module: it is searched as `model.modules()` goes through it, wrappers and containers included.

    Returns:
        What was swapped and what was left, a value object; printing it gives the text.

    Raises:
        AnyRNNError: for something that is not an `nn.Module`.

    Example:
        >>> import torch, anyrnn
        >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(12, 64, num_layers=2), "head": torch.nn.Linear(64, 9)})
        >>> print(anyrnn.accelerate(model))
        swapped: 1
          rnn: LSTM(12, 64, num_layers=2)
        >>> anyrnn.restore(model)
        ('rnn',)
    """
    swapped: list[Found] = []
    left: list[Found] = []
    for name, layer in _checked("accelerate", model).named_modules():
        if not _is_recurrent(layer):
            continue
        shown, reason = f"{type(layer).__name__}({layer.extra_repr()})", _why_not(layer)
        if not reason:
            _swap(layer)
        (left if reason else swapped).append(Found(name, shown, reason))
    return Acceleration(tuple(swapped), tuple(left))


def restore(model: nn.Module) -> tuple[str, ...]:
    """Undo `accelerate`: the layers that it swapped are torch.nn's again, the same objects with their present weights.

    Whatever happened to them in between stays: training, `to(...)`, other parameters, hooks added or removed. It
    works on copies of an accelerated model, too. Layers that were made as this package's own stay as they are.

    Args:
        model: A module that `accelerate` was given, or a part or a copy of it, or a larger one that holds it.

    Returns:
        The names of the layers, as in `named_modules()`.

    Raises:
        AnyRNNError: for something that is not an `nn.Module`.
    """
    restored = []
    for name, layer in _checked("restore", model).named_modules():
        if _MARK in vars(layer):
            for key in (*vars(layer)[_MARK], _MARK):
                delattr(layer, key)
            theirs = next(theirs for theirs, ours in _OURS.items() if isinstance(layer, ours))
            layer.__class__ = _parametrized_alike(layer, theirs)
            layer._init_flat_weights()
            restored.append(name)
    return tuple(restored)


def _checked(function: str, model: nn.Module) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    msg = f"{function}: got {got}, expected an nn.Module, the model whose recurrent layers are meant"
    raise AnyRNNError(msg)


def _is_recurrent(layer: nn.Module) -> bool:
    """Whether a layer is to be swapped, or to be named among those that are not."""
    if isinstance(layer, nn.RNNBase | Layer):
        return True
    # Neither of these is an nn.RNNBase.
    name = layer.original_name if isinstance(layer, torch.jit.ScriptModule) else type(layer).__name__
    return name in ("RNN", "LSTM", "GRU") and (isinstance(layer, torch.jit.ScriptModule) or _is_quantized(layer))


def _is_quantized(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.ao.nn.")  # by name: to import them takes time, and warns


def _why_not(layer: nn.Module) -> str:
    """Say why a recurrent layer is left as it is; "" if it can be swapped."""
    if isinstance(layer, Layer):
        return "it was swapped before" if _MARK in vars(layer) else "it is a layer of anyrnn already"
    if isinstance(layer, torch.jit.ScriptModule):
        return "torch.jit has compiled it"
    if _is_quantized(layer):
        return "it is made for quantization"
    theirs = _class_of(layer)
    if theirs not in _OURS:
        return f"it is of another class, {theirs.__name__}, which may compute something else"
    # What was set on the object hides what its class has, or replaces it where only torch's class asks for it.
    for key in (*vars(layer), *layer._parameters, *layer._buffers, *layer._modules):
        if key == "forward" or hasattr(theirs, key) != hasattr(_OURS[theirs], key):
            return f"it has a {key!r} of its own, set on the object, which the swap would break"
    return ""


def _swap(layer: Any) -> None:
    theirs = _class_of(layer)
    options = {nn.LSTM: ("proj_size",), nn.RNN: ("nonlinearity",)}.get(theirs, ())
    # On the meta device nothing is allocated, and no random number is drawn.
    like = _OURS[theirs](
        layer.input_size, layer.hidden_size, layer.num_layers, bias=layer.bias, bidirectional=layer.bidirectional,
        device="meta", **{key: getattr(layer, key) for key in options},
    )  # fmt: skip
    added = {key: value for key, value in vars(like).items() if key not in vars(layer)}
    for key in _FLAT:
        delattr(layer, key)
    vars(layer).update(added, **{_MARK: tuple(added)})
    layer.__class__ = _parametrized_alike(layer, _OURS[theirs])


def _class_of(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer, without the one that a parametrization puts in front of it."""
    return type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)


def _parametrized_alike(layer: nn.Module, base: type[nn.Module]) -> type[nn.Module]:
    """Return `base`, with a class in front of it that has the properties by which the layer's weights are computed."""
    if not parametrize.is_parametrized(layer):
        return base
    return type(type(layer).__name__, (base,), dict(vars(type(layer))))
