"""What the package's cells share: their parameters by gate, their activations, their initial values.

A cell adds its gates and one method, ``step``, which holds its equations and nothing else. Loops, layers,
backward passes and speed are none of its business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyrnn.checks import check_sizes
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from anyrnn.protocol import State

Activation: TypeAlias = Callable[[Tensor], Tensor]
Scheme: TypeAlias = "Mapping[str, Callable[[Tensor], Any]] | Callable[[Cell], None]"


#: Under this name a bound cell keeps the cell that it came from. It is no identifier: nobody's attribute has this name.
ORIGIN = "bound from"


def origin_of(cell: nn.Module) -> nn.Module:
    """The cell that a bound one came from, of which all that are bound are known; else the cell itself."""
    origin: nn.Module = cell.__dict__.get(ORIGIN, cell)
    return origin


class CellOptions(TypedDict, total=False):
    """The keyword-only options that every cell of the package takes: see `Cell`."""

    activations: Mapping[str, Activation] | None
    init: Scheme | Sequence[Scheme] | None
    forget_bias: float | None


class Cell(nn.Module):
    r"""The base of the package's cells: one step of a recurrent network, computed from gates.

    The rows of `weight_ih`, `weight_hh` and the biases are the gates in the order of `gates`, `hidden_size` rows
    each. Called as ``cell(input, hx=None)`` with `input` (B, I) or (I,), and `hx` the state, (B, H) or (H,), zero
    if None; a tuple of them for a cell with several state variables. Returns the new state.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of units.
        bias: Without it the cell has no bias parameters.
        device: Where the parameters are made.
        dtype: Their type.
        activations: Replaces activation functions, by the left side of the equation that uses them, for
            instance ``{"f": torch.nn.functional.hardsigmoid}``. Any callable from tensor to tensor of the same
            shape; an `nn.Module` with parameters is trained along.
        init: Applied after the default, U(-1/sqrt(H), 1/sqrt(H)) as in torch.nn. Either a mapping from
            "parameter" or "parameter.gate" to a function that fills a tensor in place, such as those of
            `torch.nn.init` (``{"weight_hh": torch.nn.init.orthogonal_, "bias_ih.f": torch.nn.init.ones_}``; each
            gate's block is filled by itself), or a function of the cell such as `anyrnn.init.chrono`, or a
            sequence of these.
        forget_bias: The bias of the forget gate, the sum over both biases where there are two. Set last, so that it
            holds whatever `init` does.

    Raises:
        AnyRNNError: for sizes below one, and for a gate, parameter or activation that the cell does not have.
    """

    gates: ClassVar[tuple[str, ...]]
    default_activations: ClassVar[Mapping[str, Activation]]
    bias_names: ClassVar[tuple[str, ...]] = ("bias_ih", "bias_hh")
    weight_ih: Tensor
    weight_hh: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activations: Mapping[str, Activation] | None = None,
        init: Scheme | Sequence[Scheme] | None = None,
        forget_bias: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, input_size=input_size, hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        if forget_bias is not None and not (bias and "f" in self.gates):
            got = "bias=False" if "f" in self.gates else f"the gates {', '.join(self.gates)}"
            msg = f"{type(self).__name__}: got forget_bias={forget_bias} with {got}, expected a forget gate with a bias"
            raise AnyRNNError(msg)
        self.forget_bias = forget_bias
        self.init = self._schemes(init)
        self.activations: dict[str, Activation] = dict(self.default_activations)
        for key, activation in (activations or {}).items():
            self._choose(key, self.activations, "activation")
            if not callable(activation):
                msg = (
                    f"{type(self).__name__}: got {activation!r} as activation {key!r}, "
                    f"expected a function from tensor to tensor, such as torch.sigmoid"
                )
                raise AnyRNNError(msg)
            self.activations[key] = activation
            if isinstance(activation, nn.Module):  # registered, so that its parameters are trained and moved
                self.add_module(f"activation_{key}", activation)
        for key, shape in self._shapes().items():
            if bias or not key.startswith("bias"):
                self.register_parameter(key, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def state_sizes(self) -> int | tuple[int, ...]:
        """The size of the state: an int for one tensor, a tuple for several."""
        return self.hidden_size

    @property
    def output_size(self) -> int:
        """The size of the first state variable, which is the output of a step."""
        return self.state_sizes if isinstance(self.state_sizes, int) else self.state_sizes[0]

    def step(self, x: Tensor, state: Any) -> State:
        """Compute the equations: x (B, I) and state (B, size) to the new state."""
        raise NotImplementedError

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # noqa: A002 - torch.nn's name
        """Compute one step. `input` (B, I) or (I,); `hx` the state, zero if None. Returns the new state."""
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            msg = (
                f"{type(self).__name__}: got an input of shape {tuple(input.shape)}, "
                f"expected (B, {self.input_size}) or ({self.input_size},)"
            )
            raise AnyRNNError(msg)
        sizes = self.state_sizes
        states = self._states(hx, input.shape[:-1], (sizes,) if isinstance(sizes, int) else sizes)
        batched = input.dim() == 2
        if not batched:
            input, states = input.unsqueeze(0), tuple(s.unsqueeze(0) for s in states)  # noqa: A001
        new = self.step(input, states[0] if isinstance(sizes, int) else states)
        if batched:
            return new
        return new.squeeze(0) if isinstance(new, Tensor) else tuple(s.squeeze(0) for s in new)

    def _states(self, hx: State | None, lead: Sequence[int], sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return the state as a tuple of tensors (*lead, size), zero if None."""
        shapes = [(*lead, size) for size in sizes]
        if hx is None:
            return tuple(self.weight_hh.new_zeros(shape) for shape in shapes)
        bare = isinstance(self.state_sizes, int)
        if isinstance(hx, Tensor) is bare:
            states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
            if [getattr(s, "shape", None) for s in states] == shapes:
                return states
        expected = f"one tensor {shapes[0]}" if bare else f"a tuple of tensors {', '.join(map(str, shapes))}"
        msg = f"{type(self).__name__}: got as state {_form(hx)}, expected {expected}"
        raise AnyRNNError(msg)

    def affine(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Return W x + b_W + U h + b_U, (B, H) for each gate."""
        wx = F.linear(x, self.weight_ih, self.parameter("bias_ih"))
        uh = F.linear(h, self.weight_hh, self.parameter("bias_hh"))
        return (wx + uh).chunk(len(self.gates), dim=-1)

    def parameter(self, name: str) -> Tensor | None:
        """Return a parameter that the cell may be without, such as a bias."""
        return getattr(self, name, None)

    def block(self, name: str, gate: str) -> Tensor:
        """Return the rows of a parameter that belong to a gate, as a view: ``cell.block("weight_hh", "f")``."""
        self._choose(name, self._parameters, "parameter")
        self._choose(gate, self.gates_of(name), "gate")
        names = self.gates_of(name)
        tensor: Tensor = getattr(self, name)
        return tensor.chunk(len(names))[names.index(gate)]

    def gates_of(self, name: str) -> tuple[str, ...]:
        """Return the gates whose rows make up a parameter, in order; () if it does not belong to gates."""
        return self.gates if name in ("weight_ih", "weight_hh", *self.bias_names) else ()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, in torch.nn's order, then apply `init` and `forget_bias`."""
        if self.weight_ih.is_meta:
            return  # there is nothing to fill, and a function in `init` may want to look at values
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            for scheme in self.init:
                if callable(scheme):
                    scheme(self)
                else:
                    self._fill(scheme)
            if self.forget_bias is not None:
                for k, name in enumerate(self.bias_names):
                    self.block(name, "f").fill_(0.0 if k else self.forget_bias)

    def bound(self, parameters: Mapping[str, Tensor]) -> Self:
        """Return this cell computing with other tensors as its parameters.

        The copy is shallow, takes two microseconds, and leaves this cell alone: safe from several threads.
        """
        cell = self.__new__(type(self))
        cell.__dict__.update(self.__dict__, _parameters=dict(parameters))
        cell.__dict__[ORIGIN] = self
        return cell

    def extra_repr(self) -> str:
        """Show the sizes as torch.nn's cells do."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else f", bias={self.bias}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters, in torch.nn's order."""
        rows = len(self.gates) * self.hidden_size
        return {
            "weight_ih": (rows, self.input_size),
            "weight_hh": (rows, self.output_size),
            **dict.fromkeys(self.bias_names, (rows,)),
        }

    def _schemes(self, init: Scheme | Sequence[Scheme] | None) -> tuple[Scheme, ...]:
        schemes = () if init is None else tuple(init) if isinstance(init, list | tuple) else (init,)
        for scheme in schemes:
            if not (all(map(callable, scheme.values())) if isinstance(scheme, Mapping) else callable(scheme)):
                msg = (
                    f"{type(self).__name__}: got init={scheme!r}, expected a mapping from parameters to functions, or "
                    f"a function of the cell, such as anyrnn.init.orthogonal or anyrnn.init.chrono(100)"
                )
                raise AnyRNNError(msg)
        return schemes

    def _fill(self, fillers: Mapping[str, Callable[[Tensor], Any]]) -> None:
        for key, fill in fillers.items():
            name, _, gate = key.partition(".")
            self._choose(name, self._parameters, "parameter")
            for each in (gate,) if gate else self.gates_of(name):
                fill(self.block(name, each))
            if not gate and not self.gates_of(name):
                fill(getattr(self, name))

    def _choose(self, key: str, known: Any, kind: str) -> None:
        if key not in known:
            msg = f"{type(self).__name__}: got {kind} {key!r}, expected one of {', '.join(known) or 'none'}"
            if kind == "parameter" and key.startswith("bias") and not self.bias:
                msg += " (it was made with bias=False)"
            raise AnyRNNError(msg)


def _form(state: object) -> str:
    if isinstance(state, Tensor):
        return f"one tensor {tuple(state.shape)}"
    if isinstance(state, tuple | list):
        return f"a {type(state).__name__} of {', '.join(_form(s) for s in state) or 'nothing'}"
    return f"a {type(state).__name__}"
