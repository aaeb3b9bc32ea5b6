"""Swap the recurrent layers of torch.nn inside a model for this package's, and back.

A layer stays the object that it was, and only its class changes, the way `torch.nn.utils.parametrize` changes it. So
there is nothing to carry over that could be forgotten: parameters, hooks and the handles that remove them, flags, and
every reference to the layer, from several places of the model or from outside it, are what they were. The two classes
keep their parameters under the same names; what remains is to take away torch's list of flat weights, to add the
templates of the cells, and on the way back the reverse.

The new class is a subclass of both, so that `isinstance` goes on saying what it said. It stands between torch's class
and those derived from it: where these call `super().forward(...)`, this package computes. In a file a swapped layer is
the one that it was, which any process can read.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.nn.utils import parametrize

from anyrnn import zoo
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_OURS: Mapping[type[nn.Module], type[zoo.CellLayer]] = {nn.RNN: zoo.RNN, nn.LSTM: zoo.LSTM, nn.GRU: zoo.GRU}

#: What `nn.RNNBase` keeps to find its weights sooner. Kept in a swapped layer it would hold on to outdated weights.
_FLAT = ("_flat_weights", "_flat_weight_refs")

#: The attribute that marks a swapped layer. Its value is the names of the attributes that it did not have before.
_MARK = "_added_by_accelerate"

#: What the layers of this package keep for themselves, in the place of torch's list of flat weights.
_OWN = ("_templates", "_signatures", "_bound", _MARK)

#: What torch's `forward` calls, and this package's does not: a class that has its own means something by it.
_CALLED = ("check_forward_args", "check_input", "check_hidden_size", "get_expected_hidden_size",
           "get_expected_cell_size", "permute_hidden")  # fmt: skip


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


class _Swapped:
    """What a swapped layer does in another way than both of its classes."""

    _torchs: type[nn.Module]

    # Where nn.RNNBase would look after its list of flat weights.
    _apply = nn.Module._apply
    __setattr__ = nn.Module.__setattr__
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __copy__(self) -> Self:
        return self._twin({**vars(self), "_bound": {}})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = self._twin({})
        vars(twin).update(copy.deepcopy({**vars(self), "_bound": {}}, memo))
        return twin

    def _twin(self, attributes: Mapping[str, Any]) -> Self:
        twin = object.__new__(type(self))
        vars(twin).update(attributes)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Go into a file as the layer of before: whoever reads it needs nothing of this package."""
        before = object.__new__(_parametrized_alike(self, self._torchs))
        added = vars(self)[_MARK]
        vars(before).update((key, value) for key, value in vars(self).items() if key not in (*added, _MARK))
        weights = [getattr(self, name, None) for name in vars(self)["_flat_weights_names"]]
        refs = [None if w is None else weakref.ref(w) for w in weights]
        vars(before).update(_flat_weights=weights, _flat_weight_refs=refs)
        return before.__reduce_ex__(min(protocol, 1))  # later ones insist on the class of what is written

    def __prepare_scriptable__(self) -> nn.Module:
        """Be torch's layer again, which TorchScript can compile."""
        restore(self)  # type: ignore[arg-type]
        return self  # type: ignore[return-value]


def accelerate(model: nn.Module, *, classes: Collection[type[nn.Module]] = ()) -> Acceleration:
    """Make every `torch.nn.RNN`, `LSTM` and `GRU` of a model run on this package's engines, in place.

    Results and training go on as before, faster on a CPU. (On a GPU the engine is the same cuDNN kernel, called once
    a layer and direction, so that there is nothing to gain.) Each layer stays the same object, and only its class
    changes, from `nn.LSTM` to `anyrnn.LSTM`; so the model may itself be such a layer. Its `Parameter` objects,
    hooks, flags, buffers, attributes, `state_dict` and parametrizations stay, and so do optimisers and references to
    it. A layer that is used in several places is swapped, and named, once.

    The calls of torch.nn go on working, with packed sequences, ``hx=`` and `flatten_parameters()`, and the new class is
    a subclass of torch's, so that ``isinstance(layer, nn.LSTM)`` is True as before. What differs:

    * ``type(layer) is nn.LSTM`` is False. Quantization asks so and passes the layer by: call `restore` before it.
    * `torch.save(model)` and pickle write the layer of torch.nn: it can be loaded without this package, and is to be
      accelerated again after loading. `copy.deepcopy` keeps it swapped. Who loads with ``weights_only=True`` and a list
      of safe globals has two more to allow, ``object`` and ``copyreg._reconstructor``; not so after `restore`.
    * `torch.jit.script(model)` restores the layers, and compiles torch's.
    * `torch.compile` breaks its graph at the layer, as at each `nn.LSTM`; ``torch._dynamo.config.allow_rnn = True``
      keeps it whole.
    * A call with wrong shapes raises an `AnyRNNError`.
    * A method taken from the layer before (``run = model.rnn.forward``) has to be taken again.
    * A parametrization is computed once a call, by torch.nn several times: one that draws or counts, as
      `spectral_norm` does in training, goes on with other numbers.

    Left as they are, with the reason in the report: subclasses of torch's layers, which may compute something else,
    unless `classes` names them; layers with another `forward` set on the object, or another attribute that the two
    classes read differently; layers of torch.jit and of torch.ao (quantization).

    Args:
        model: Any module: it is searched as `model.modules()` goes through it, wrappers and containers included.
        classes: Subclasses of torch's layers to be swapped, too. Their own methods go on running, and what they call
            by `super()` is this package's; you vouch for it that they compute nothing by torch's inner functions.

    Returns:
        What was swapped and what was left, a value object; printing it gives the text.

    Raises:
        AnyRNNError: for something that is not an `nn.Module`, and for `classes` that are not subclasses of torch's.

    Example:
        >>> import torch, anyrnn
        >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(12, 64, num_layers=2), "head": torch.nn.Linear(64, 9)})
        >>> print(anyrnn.accelerate(model))
        swapped: 1
          rnn: LSTM(12, 64, num_layers=2)
        >>> anyrnn.restore(model)
        ('rnn',)
    """
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, tuple(_OURS))):
            msg = f"accelerate: got {each!r} among classes, expected subclasses of nn.RNN, nn.LSTM or nn.GRU"
            raise AnyRNNError(msg)
    swapped: list[Found] = []
    left: list[Found] = []
    for name, layer in _checked("accelerate", model).named_modules():
        if not _is_recurrent(layer):
            continue
        shown, reason = f"{type(layer).__name__}({layer.extra_repr()})", _why_not(layer, classes)
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
            layer.__class__ = _parametrized_alike(layer, type(layer)._torchs)
            with torch.no_grad():  # what a parametrization computes with gradients could not be copied
                layer._init_flat_weights()
            restored.append(name)
    return tuple(restored)


def as_layer(layer: nn.Module) -> Layer:
    """A layer of this package with the tensors of a layer of torch.nn, which stays what it is; or the layer itself.

    Raises:
        AnyRNNError: if it is no such layer, or one that may compute something else. The message is the reason.
    """
    if isinstance(layer, Layer):
        return layer
    reason = _why_not(layer, ())
    if reason:
        raise AnyRNNError(reason)
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    _swap(twin)
    assert isinstance(twin, Layer)
    return twin


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


def _why_not(layer: nn.Module, classes: Collection[type[nn.Module]]) -> str:
    """Say why a recurrent layer is left as it is; "" if it can be swapped."""
    if isinstance(layer, Layer):
        return "it was swapped before" if isinstance(layer, _Swapped) else "it is a layer of anyrnn already"
    if isinstance(layer, torch.jit.ScriptModule):
        return "torch.jit has compiled it"
    if _is_quantized(layer):
        return "it is made for quantization"
    theirs = _class_of(layer)
    if theirs not in (*_OURS, *classes):
        return f"it is of another class, {theirs.__name__}, which may compute something else"
    torchs = _torchs_class(theirs)
    # What was set on the object hides what its class has, or replaces it where only torch's class asks for it.
    for key in (*vars(layer), *layer._parameters, *layer._buffers, *layer._modules):
        if key == "forward" or key in _OWN or _reads_otherwise(key, torchs):
            return f"it has a {key!r} of its own, set on the object, which the swap would break"
    for key in dict.fromkeys(key for cls in theirs.__mro__[: theirs.__mro__.index(torchs)] for key in vars(cls)):
        if key in _CALLED or (_reads_otherwise(key, torchs) and hasattr(_OURS[torchs], key)):
            return f"its class {theirs.__name__} has a {key!r} of its own, which the swap would break"
    try:
        _swapped_class(theirs)
    except TypeError as cause:
        return f"its class {theirs.__name__} cannot be derived from: {cause}"
    return ""


def _reads_otherwise(key: str, torchs: type[Any]) -> bool:
    """Whether a name means something to one of the two classes and nothing to the other."""
    if key not in _CALLED and hasattr(torchs, key) == hasattr(_OURS[torchs], key):
        return False
    return key not in _names_of(torchs)


def _names_of(torchs: type[Any]) -> Mapping[str, object]:
    """The attributes that every layer of torch's has."""
    return dict(vars(torchs(1, 1, device="meta")))


def _torchs_class(theirs: type[Any]) -> type[Any]:
    return next(cls for cls in theirs.__mro__ if cls in _OURS)


_classes: dict[type, type] = {}


def _swapped_class(theirs: type[Any]) -> type[Any]:
    """The class of a swapped layer: derived from this one, and in front of torch's, from this package's."""
    if theirs not in _classes:
        bases: tuple[type, ...] = (_Swapped, _OURS[theirs], theirs) if theirs in _OURS else ()
        about = {"__module__": theirs.__module__, "__qualname__": theirs.__qualname__, "_torchs": theirs}
        _classes[theirs] = type(theirs.__name__, bases or (theirs, _swapped_class(_torchs_class(theirs))), about)
    return _classes[theirs]


def _swap(layer: Any) -> None:
    theirs = _class_of(layer)
    torchs = _torchs_class(theirs)
    options = {nn.LSTM: ("proj_size",), nn.RNN: ("nonlinearity",)}.get(torchs, ())
    # On the meta device nothing is allocated, and no random number is drawn.
    like = _OURS[torchs](
        layer.input_size, layer.hidden_size, layer.num_layers, bias=layer.bias, bidirectional=layer.bidirectional,
        device="meta", **{key: getattr(layer, key) for key in options},
    )  # fmt: skip
    added = {key: value for key, value in vars(like).items() if key not in vars(layer)}
    for key in _FLAT:
        delattr(layer, key)
    vars(layer).update(added, **{_MARK: tuple(added)})
    layer.__class__ = _parametrized_alike(layer, _swapped_class(theirs))


def _class_of(layer: nn.Module) -> type[Any]:
    """The class of a layer, without the one that a parametrization puts in front of it."""
    return type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)


def _parametrized_alike(layer: Any, base: type[nn.Module]) -> type[nn.Module]:
    """Return `base`, with a class in front of it that has the properties by which the layer's weights are computed."""
    if not parametrize.is_parametrized(layer):
        return base
    own = dict(vars(type(layer)))
    if not hasattr(base, "__deepcopy__"):  # a class of a parametrization has one
        own.setdefault("__deepcopy__", _deepcopied)
    return type(type(layer).__name__, (base,), own)


def _deepcopied(layer: Any, memo: dict[int, Any]) -> Any:
    memo[id(layer)] = twin = object.__new__(type(layer))
    vars(twin).update(copy.deepcopy(vars(layer), memo))
    return twin
