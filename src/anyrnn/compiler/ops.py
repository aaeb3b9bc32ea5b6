"""The operations of the loop program, one record each: what the compiler and its backends have to know of them.

A record is all that the compiler's front needs. Beside it, each backend has one line for each operation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from anyrnn.compiler.clipping import clip_gradient, clip_gradient_norm
from anyrnn.compiler.surrogate import surrogate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """An operation on each number. An argument one number wide serves all.

    Attributes:
        name: What programs call it.
        function: What defines it, in PyTorch.
        arity: How many arguments it has.
        masks: Which of them are true or false; the others are numbers.
        gives_mask: Whether the result is true or false.
        expensive: Whether a backward pass keeps the result rather than computing it again.
        neutral: For each argument, the number that makes the result the other argument.
        folds: Whether of constants it is a constant.
        is_aten: Whether ATen's operation of that name is the same, with arguments in the same order and no others.
    """

    name: str
    function: Callable[..., Tensor]
    arity: int = 1
    masks: tuple[int, ...] = ()
    gives_mask: bool = False
    expensive: bool = False
    neutral: tuple[float | None, ...] = ()
    folds: bool = True
    is_aten: bool = True


@dataclass(frozen=True)
class Reduction:
    """An operation of all features of all arguments; the result is one number wide.

    Attributes:
        name: What programs call it.
        pairwise: The operation of two numbers that it repeats.
        empty: What it is of no numbers.
    """

    name: str
    pairwise: str
    empty: float


_OPERATIONS = (
    Operation("neg", torch.neg),
    Operation("abs", torch.abs),
    Operation("sign", torch.sign),
    Operation("floor", torch.floor),
    Operation("ceil", torch.ceil),
    Operation("round", torch.round),
    Operation("trunc", torch.trunc),
    Operation("exp", torch.exp, expensive=True),
    Operation("exp2", torch.exp2, expensive=True),
    Operation("expm1", torch.expm1, expensive=True),
    Operation("log", torch.log, expensive=True),
    Operation("log2", torch.log2, expensive=True),
    Operation("log1p", torch.log1p, expensive=True),
    Operation("sinh", torch.sinh, expensive=True),
    Operation("cosh", torch.cosh, expensive=True),
    Operation("tanh", torch.tanh, expensive=True),
    Operation("asinh", torch.asinh, expensive=True),
    Operation("acosh", torch.acosh, expensive=True),
    Operation("atanh", torch.atanh, expensive=True),
    Operation("sigmoid", torch.sigmoid, expensive=True),
    Operation("sqrt", torch.sqrt, expensive=True),
    Operation("rsqrt", torch.rsqrt, expensive=True),
    Operation("reciprocal", torch.reciprocal, expensive=True),
    Operation("sin", torch.sin, expensive=True),
    Operation("cos", torch.cos, expensive=True),
    Operation("erf", torch.erf, expensive=True),
    Operation("atan", torch.atan, expensive=True),
    Operation("positive", torch.positive, folds=False, is_aten=False),  # of a constant: it is written out for each row
    Operation("detach", torch.detach),
    Operation("add", torch.add, 2, neutral=(-0.0, -0.0), is_aten=False),  # adding 0 makes 0 of -0
    Operation("sub", torch.sub, 2, neutral=(None, 0.0), is_aten=False),
    Operation("mul", torch.mul, 2, neutral=(1.0, 1.0), is_aten=False),
    Operation("div", torch.div, 2, neutral=(None, 1.0), expensive=True, is_aten=False),
    Operation("pow", torch.pow, 2, expensive=True, is_aten=False),
    Operation("fmod", torch.fmod, 2, expensive=True),
    Operation("remainder", torch.remainder, 2, expensive=True),
    Operation("atan2", torch.atan2, 2, expensive=True),
    Operation("maximum", torch.maximum, 2),
    Operation("minimum", torch.minimum, 2),
    Operation("lt", torch.lt, 2, gives_mask=True),
    Operation("le", torch.le, 2, gives_mask=True),
    Operation("gt", torch.gt, 2, gives_mask=True),
    Operation("ge", torch.ge, 2, gives_mask=True),
    Operation("eq", torch.eq, 2, gives_mask=True),
    Operation("ne", torch.ne, 2, gives_mask=True),
    Operation("logical_and", torch.logical_and, 2, masks=(0, 1), gives_mask=True),
    Operation("logical_or", torch.logical_or, 2, masks=(0, 1), gives_mask=True),
    Operation("logical_not", torch.logical_not, masks=(0,), gives_mask=True),
    Operation("where", torch.where, 3, masks=(0,)),
    Operation("surrogate", surrogate, 3, is_aten=False),
    Operation("clip_gradient", clip_gradient, 2, is_aten=False),
    Operation("clip_gradient_norm", clip_gradient_norm, 2, is_aten=False),
)

#: Those that are their first argument but for what is differentiated: how many arguments have a part in its gradient.
STAND_INS: Mapping[str, int] = MappingProxyType({"surrogate": 2, "clip_gradient": 1, "clip_gradient_norm": 1})

_REDUCTIONS = (
    Reduction("sum", "add", 0.0),
    Reduction("max", "maximum", -math.inf),
)

#: The operations on each number, by their names.
OPERATIONS: Mapping[str, Operation] = MappingProxyType({o.name: o for o in _OPERATIONS})

#: The operations along the features, by their names.
REDUCTIONS: Mapping[str, Reduction] = MappingProxyType({r.name: r for r in _REDUCTIONS})
