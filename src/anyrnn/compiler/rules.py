"""What each ATen operation is to the loop program: the table `RULES`.

Operations in `COMPOSITE` stay PyTorch's own until the program is derived; then `elementary` applies their rules. Those
of PyTorch's backward operations compute what its kernels do, so that they are right where these are: of two branches,
each is computed for all arguments and one selected.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anyrnn.compiler.lower import Lowered, Lowering
from anyrnn.compiler.node import TooManyValuesError
from anyrnn.compiler.ops import OPERATIONS, Operation
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anyrnn.compiler.graph import Op

Rule = Callable[..., "Lowered | list[Lowered]"]

#: As many features may be taken one by one. What is computed from them is in as many pieces then, and so are products:
#: with `cumsum` of 16, a cell comes near to `MOST_VALUES`.
MOST_COLUMNS = 32
#: As many pairs of features may be compared, and swapped, to sort them: 10 features, or the largest 2 of 26.
MOST_SWAPS = 50

#: Operations that take features by number: which argument the numbers are. These are arrays of NumPy's, not `Lowered`.
INDEX_ARGUMENTS: Mapping[str, int] = MappingProxyType({"index": 1, "index_select": 2, "gather": 2})


def lower(
    lowering: Lowering, op: Op, args: Sequence[Any], kwargs: Mapping[str, Any], composite: bool = True
) -> list[Lowered]:
    """Lower one operation, whose tensors are `Lowered` already; `composite` leaves those in `COMPOSITE` as they are.

    Raises:
        AnyRNNError: if the loop program has no such operation. The message names it.
    """
    rule = RULES.get(op.short_name)
    if rule is None:
        raise AnyRNNError(unsupported(op))
    try:
        kept = composite and (op.short_name in COMPOSITE or op.name in COMPOSITE)
        result = lowering.composite(str(op.overload), args, kwargs) if kept else rule(lowering, *args, **kwargs)
    except TooManyValuesError:
        raise  # of the whole step, not of this operation
    except (TypeError, ValueError, IndexError, KeyError, ArithmeticError) as cause:
        form = f"{op.name} with {len(args)} arguments {[*kwargs]}" if isinstance(cause, TypeError) else cause
        msg = f"{unsupported(op, is_known=True)} in this form ({form})"
        raise AnyRNNError(msg) from cause
    return result if isinstance(result, list) else [result]


def unsupported(op: Op, *, is_known: bool = False) -> str:
    """Say which operation the loop program lacks, and what may help."""
    name, hint = op.short_name, ""
    if torch.Tag.nondeterministic_seeded in op.overload.tags:
        hint = ", which reads numbers of the state to draw others; draw them apart, by torch.rand_like or randn_like"
    elif name in ("bmm", "baddbmm", "mv", "dot"):
        hint = ", a product in which rows of the batch meet; matmul and einsum of (B, ...) are followed"
    elif "conv" in name:
        hint = "; convolve x before the loop, or write it as a product with a matrix (torch.einsum)"
    elif not is_known:
        hint = ", which has no such operation: do it to x or weights alone, or write it with others"
    return f"`aten.{name}` in the loop{hint}"


_ACROSS = "along the batch, whose rows are apart in the loop"


def _axis(value: Lowered, dim: int, added: int = 0) -> int:
    """Turn a dimension of the tensor, to which so many are added, into one of its codes."""
    rank = value.codes.ndim + value.batched + added
    axis = (dim + rank if dim < 0 else dim) - value.batched
    if axis < 0:
        msg = _ACROSS
        raise ValueError(msg)
    return axis


def _elementary(operation: Operation) -> Rule:
    def rule(lo: Lowering, *args: Lowered | float) -> Lowered:
        if len(args) != operation.arity:
            msg = f"{operation.name} takes {operation.arity} arguments"
            raise TypeError(msg)
        return lo.pointwise(operation.name, *args)

    return rule


def _add(lo: Lowering, a: Lowered | float, b: Lowered | float, alpha: float = 1) -> Lowered:
    """Of true and false, one or the other."""
    if all(isinstance(v, Lowered) and lo.is_mask(v) for v in (a, b)):
        return lo.pointwise("logical_or", a, b)
    return lo.pointwise("add", a, b if alpha == 1 else lo.pointwise("mul", b, alpha))


def _mul(lo: Lowering, a: Lowered | float, b: Lowered | float) -> Lowered:
    """Of true and false, both."""
    masks = all(isinstance(v, Lowered) and lo.is_mask(v) for v in (a, b))
    return lo.pointwise("logical_and" if masks else "mul", a, b)


def _sub(lo: Lowering, a: Lowered | float, b: Lowered | float, alpha: float = 1) -> Lowered:
    return lo.pointwise("sub", a, b if alpha == 1 else lo.pointwise("mul", b, alpha))


def _div(lo: Lowering, a: Lowered, b: Lowered | float, rounding_mode: str | None = None) -> Lowered:
    """Rounded down it is not the quotient rounded: 1 // 0.1 is 9."""
    quotient = lo.pointwise("div", a, b)
    if rounding_mode != "floor":
        return quotient if rounding_mode is None else lo.pointwise(rounding_mode, quotient)
    rest = lo.pointwise("fmod", a, b)
    whole = lo.pointwise("div", lo.pointwise("sub", a, rest), b)
    whole = _where(lo, _turned(lo, rest, b), lo.pointwise("sub", whole, 1), whole)
    down = lo.pointwise("floor", whole)
    down = _choose(lo, "gt", lo.pointwise("sub", whole, down), 0.5, lo.pointwise("add", down, 1), down)
    near_zero = lo.pointwise("mul", quotient, 0)
    return _choose(lo, "eq", b, 0, quotient, _choose(lo, "eq", whole, 0, near_zero, down))


def _turned(lo: Lowering, rest: Lowered, b: Lowered | float) -> Lowered:
    """Whether what is left of a division is not 0 and has not the sign of the divisor."""
    below = lo.pointwise("ne", lo.pointwise("lt", rest, 0), lo.pointwise("lt", b, 0))
    return lo.pointwise("logical_and", lo.pointwise("ne", rest, 0), below)


def _pow(lo: Lowering, a: Lowered | float, b: Lowered | float) -> Lowered:
    if isinstance(b, int | float) and b in (1, 2, 3, 0.5, -0.5, -1, -2):
        assert isinstance(a, Lowered)
        square = lo.pointwise("mul", a, a)
        forms: dict[float, Callable[[], Lowered]] = {
            1: lambda: a,
            2: lambda: square,
            3: lambda: lo.pointwise("mul", square, a),
            0.5: lambda: lo.pointwise("sqrt", a),
            -0.5: lambda: lo.pointwise("rsqrt", a),
            -1: lambda: lo.pointwise("reciprocal", a),
            -2: lambda: lo.pointwise("reciprocal", square),
        }
        return forms[b]()
    return lo.pointwise("pow", a, b)


def _clamp(lo: Lowering, x: Lowered, min: Lowered | float | None = None, max: Lowered | float | None = None) -> Lowered:  # noqa: A002
    """Where the lower bound is above the upper one, that is the upper one; NaN stays, and so does a bound of NaN."""
    y = x if min is None else lo.pointwise("maximum", x, min)
    return y if max is None else lo.pointwise("minimum", y, max)


def _where(lo: Lowering, mask: Lowered, a: Lowered | float, b: Lowered | float) -> Lowered:
    return lo.pointwise("where", mask, a, b)


def _heaviside(lo: Lowering, x: Lowered, at_zero: Lowered) -> Lowered:
    return _choose(lo, "eq", x, 0, at_zero, _choose(lo, "gt", x, 0, 1, 0))


def _choose(lo: Lowering, op: str, x: Lowered | float, edge: float, a: Lowered | float, b: Lowered | float) -> Lowered:
    return _where(lo, lo.pointwise(op, x, edge), a, b)


def _softplus(lo: Lowering, x: Lowered, beta: float = 1, threshold: float = 20) -> Lowered:
    scaled = lo.pointwise("mul", x, beta)
    soft = lo.pointwise("div", lo.pointwise("log1p", lo.pointwise("exp", scaled)), beta)
    return _choose(lo, "gt", scaled, threshold, x, soft)


def _elu(lo: Lowering, x: Lowered, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Lowered:
    low = lo.pointwise("mul", lo.pointwise("expm1", lo.pointwise("mul", x, input_scale)), alpha * scale)
    return _choose(lo, "gt", x, 0, lo.pointwise("mul", x, scale), low)


def _celu(lo: Lowering, x: Lowered, alpha: float = 1) -> Lowered:
    return _elu(lo, x, alpha, 1, 1 / alpha)


def _mish(lo: Lowering, x: Lowered) -> Lowered:
    return lo.pointwise("mul", x, lo.pointwise("tanh", _softplus(lo, x)))


def _softshrink(lo: Lowering, x: Lowered, edge: float = 0.5) -> Lowered:
    nearer = _choose(lo, "gt", x, 0, lo.pointwise("sub", x, edge), lo.pointwise("add", x, edge))
    return _choose(lo, "le", lo.pointwise("abs", x), edge, 0, nearer)


def _hardtanh(lo: Lowering, x: Lowered, low: float = -1, high: float = 1) -> Lowered:
    return _clamp(lo, x, low, high)


def _hardsigmoid(lo: Lowering, x: Lowered) -> Lowered:
    return lo.pointwise("div", _hardtanh(lo, lo.pointwise("add", x, 3), 0, 6), 6)


def _hardswish(lo: Lowering, x: Lowered) -> Lowered:
    return lo.pointwise("div", lo.pointwise("mul", x, _hardtanh(lo, lo.pointwise("add", x, 3), 0, 6)), 6)


def _silu(lo: Lowering, x: Lowered) -> Lowered:
    return lo.pointwise("mul", x, lo.pointwise("sigmoid", x))


def _gelu(lo: Lowering, x: Lowered, approximate: str = "none") -> Lowered:
    if approximate == "tanh":
        cube = lo.pointwise("mul", lo.pointwise("mul", x, x), x)
        inner = lo.pointwise("add", x, lo.pointwise("mul", cube, 0.044715))
        bell = lo.pointwise("tanh", lo.pointwise("mul", inner, math.sqrt(2 / math.pi)))
    else:
        bell = lo.pointwise("erf", lo.pointwise("mul", x, math.sqrt(0.5)))
    return lo.pointwise("mul", lo.pointwise("mul", x, 0.5), lo.pointwise("add", bell, 1))


def _log_sigmoid(lo: Lowering, x: Lowered) -> list[Lowered]:
    small = lo.pointwise("minimum", x, 0)
    away = lo.pointwise("exp", lo.pointwise("neg", lo.pointwise("abs", x)))
    return [lo.pointwise("sub", small, lo.pointwise("log1p", away)), lo.constant(0)]


def _asin(lo: Lowering, x: Lowered) -> Lowered:
    return lo.pointwise("atan2", x, _other_side(lo, x))


def _acos(lo: Lowering, x: Lowered) -> Lowered:
    return lo.pointwise("atan2", _other_side(lo, x), x)


def _other_side(lo: Lowering, x: Lowered) -> Lowered:
    """The cosine of an angle from its sine: sqrt(1 - x^2), without loss near 1."""
    return lo.pointwise("sqrt", lo.pointwise("mul", lo.pointwise("sub", 1, x), lo.pointwise("add", x, 1)))


def _log_add_exp(lo: Lowering, a: Lowered, b: Lowered) -> Lowered:
    away = lo.pointwise("exp", lo.pointwise("neg", lo.pointwise("abs", lo.pointwise("sub", a, b))))
    total = lo.pointwise("add", lo.pointwise("maximum", a, b), lo.pointwise("log1p", away))
    return _where(lo, lo.pointwise("eq", a, b), lo.pointwise("add", a, math.log(2)), total)  # of infinities, too


def _lerp(lo: Lowering, a: Lowered, b: Lowered, weight: Lowered | float) -> Lowered:
    """From the nearer end, so that it is exact at both."""
    way = lo.pointwise("sub", b, a)
    near = lo.pointwise("add", a, lo.pointwise("mul", way, weight))
    far = lo.pointwise("sub", b, lo.pointwise("mul", way, lo.pointwise("sub", 1, weight)))
    if isinstance(weight, int | float):
        return near if abs(weight) < 0.5 else far
    return _choose(lo, "lt", lo.pointwise("abs", weight), 0.5, near, far)


def _product(lo: Lowering, *factors: Lowered | float) -> Lowered:
    """From left to right."""
    first, *others = factors
    for factor in others:
        first = lo.pointwise("mul", first, factor)
    assert isinstance(first, Lowered)
    return first


def _tanh_backward(lo: Lowering, grad: Lowered, y: Lowered) -> Lowered:
    return lo.pointwise("mul", grad, lo.pointwise("sub", 1, lo.pointwise("mul", y, y)))


def _sigmoid_backward(lo: Lowering, grad: Lowered, y: Lowered) -> Lowered:
    return lo.pointwise("mul", grad, lo.pointwise("mul", y, lo.pointwise("sub", 1, y)))


def _elu_backward(
    lo: Lowering, grad: Lowered, alpha: float, scale: float, input_scale: float, is_result: bool, x: Lowered
) -> Lowered:
    """Of the argument, or of the result."""
    low = (
        lo.pointwise("add", x, alpha * scale) if is_result else lo.pointwise("exp", lo.pointwise("mul", x, input_scale))
    )
    slope = _product(lo, grad, input_scale) if is_result else _product(lo, grad, input_scale, alpha * scale)
    return _choose(lo, "gt", x, 0, lo.pointwise("mul", grad, scale), lo.pointwise("mul", slope, low))


def _softplus_backward(lo: Lowering, grad: Lowered, x: Lowered, beta: float, threshold: float) -> Lowered:
    scaled = lo.pointwise("mul", x, beta)
    power = lo.pointwise("exp", scaled)
    soft = lo.pointwise("div", lo.pointwise("mul", grad, power), lo.pointwise("add", power, 1))
    return _choose(lo, "gt", scaled, threshold, grad, soft)


def _log_sigmoid_backward(lo: Lowering, grad: Lowered, x: Lowered, buffer: Lowered) -> Lowered:
    away = lo.pointwise("exp", lo.pointwise("neg", lo.pointwise("abs", x)))  # what `buffer` is, if it is anything
    part = lo.pointwise("div", away, lo.pointwise("add", away, 1))
    return lo.pointwise("mul", _choose(lo, "lt", x, 0, lo.pointwise("sub", 1, part), part), grad)


def _silu_backward(lo: Lowering, grad: Lowered, x: Lowered) -> Lowered:
    gate = lo.pointwise("sigmoid", x)
    slope = lo.pointwise("add", lo.pointwise("mul", x, lo.pointwise("sub", 1, gate)), 1)
    return _product(lo, grad, gate, slope)


def _mish_backward(lo: Lowering, grad: Lowered, x: Lowered) -> Lowered:
    soft = lo.pointwise("tanh", lo.pointwise("log1p", lo.pointwise("exp", x)))
    curve = _product(lo, lo.pointwise("sigmoid", x), x, lo.pointwise("sub", 1, lo.pointwise("mul", soft, soft)))
    return lo.pointwise("mul", grad, lo.pointwise("add", soft, curve))


def _gelu_backward(lo: Lowering, grad: Lowered, x: Lowered, approximate: str = "none") -> Lowered:
    square = lo.pointwise("mul", x, x)
    if approximate == "tanh":
        root = math.sqrt(2 / math.pi)
        cubic = lo.pointwise("add", x, _product(lo, square, x, 0.044715))
        bell = lo.pointwise("tanh", lo.pointwise("mul", cubic, root))
        inner = lo.pointwise("mul", lo.pointwise("add", lo.pointwise("mul", square, 3 * 0.044715), 1), root)
        curve = _product(lo, x, 0.5, lo.pointwise("sub", 1, lo.pointwise("mul", bell, bell)), inner)
    else:
        bell = lo.pointwise("erf", lo.pointwise("mul", x, math.sqrt(0.5)))
        density = lo.pointwise("exp", lo.pointwise("mul", square, -0.5))
        curve = lo.pointwise("mul", x, lo.pointwise("mul", density, 1 / math.sqrt(2 * math.pi)))
    half = lo.pointwise("mul", lo.pointwise("add", bell, 1), 0.5)
    return lo.pointwise("mul", grad, lo.pointwise("add", half, curve))


def _shrink_backward(lo: Lowering, grad: Lowered, x: Lowered, edge: float) -> Lowered:
    return _choose(lo, "gt", lo.pointwise("abs", x), edge, grad, 0)


def _hardtanh_backward(lo: Lowering, grad: Lowered, x: Lowered, low: float, high: float) -> Lowered:
    return _choose(lo, "gt", x, low, _choose(lo, "lt", x, high, grad, 0), 0)


def _hardsigmoid_backward(lo: Lowering, grad: Lowered, x: Lowered) -> Lowered:
    # In PyTorch's kernel a sixth is rounded to float32, in float64 too: its own slope is what counts.
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    sixth: float = torch.ops.aten.hardsigmoid_backward(one, zero).item()
    return _hardtanh_backward(lo, lo.pointwise("mul", grad, sixth), x, -3, 3)


def _hardswish_backward(lo: Lowering, grad: Lowered, x: Lowered) -> Lowered:
    slope = lo.pointwise("add", lo.pointwise("div", x, 3), 0.5)
    return _choose(lo, "le", x, -3, 0, _choose(lo, "ge", x, 3, grad, lo.pointwise("mul", grad, slope)))


def _leaky_relu_backward(lo: Lowering, grad: Lowered, x: Lowered, slope: float, is_result: bool = False) -> Lowered:
    return _choose(lo, "gt", x, 0, grad, lo.pointwise("mul", grad, slope))


def _prelu_backward(lo: Lowering, grad: Lowered, x: Lowered, slope: Lowered) -> list[Lowered]:
    own = _choose(lo, "gt", x, 0, grad, lo.pointwise("mul", slope, grad))
    return [own, _choose(lo, "gt", x, 0, 0, lo.pointwise("mul", x, grad))]


def _cast(lo: Lowering, x: Lowered, dtype: Any = None, **_: Any) -> Lowered:
    """Take a mask or another number as a number of the program's type, as conversions in a cell mean."""
    if dtype == torch.bool:
        return lo.mask(x)
    if dtype is not None and not dtype.is_floating_point and not lo.is_mask(x):
        msg = f"to {dtype}"
        raise ValueError(msg)
    return lo.number(x)


def _bitwise(op: str) -> Rule:
    def rule(lo: Lowering, *args: Lowered) -> Lowered:
        if not all(isinstance(a, Lowered) and lo.is_mask(a) for a in args):
            msg = "of integers"
            raise ValueError(msg)
        return lo.pointwise(op, *args)

    return rule


def _any(lo: Lowering, x: Lowered, dims: Sequence[int] | int | None = None, keepdim: bool = False) -> Lowered:
    return lo.mask(_sum(lo, lo.mask(x), dims, keepdim))


def _all(lo: Lowering, x: Lowered, dims: Sequence[int] | int | None = None, keepdim: bool = False) -> Lowered:
    return lo.pointwise("logical_not", _any(lo, lo.pointwise("logical_not", x), dims, keepdim))


def _sum(lo: Lowering, x: Lowered, dims: Sequence[int] | int | None = None, keepdim: bool = False, **_: Any) -> Lowered:
    return _reduced(lo, "sum", x, dims, keepdim)


def _amin(lo: Lowering, x: Lowered, dims: Sequence[int] = (), keepdim: bool = False) -> Lowered:
    return lo.pointwise("neg", _amax(lo, lo.pointwise("neg", x), dims, keepdim))


def _amax(lo: Lowering, x: Lowered, dims: Sequence[int] = (), keepdim: bool = False) -> Lowered:
    return _reduced(lo, "max", x, dims, keepdim)


def _reduced(lo: Lowering, op: str, x: Lowered, dims: Sequence[int] | int | None, keepdim: bool) -> Lowered:
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.codes.ndim + x.batched))
    axes = sorted(_axis(x, d) for d in dims)
    for axis in axes:
        x = lo.reduce(op, x, axis)
    return x if keepdim else Lowered(x.codes.squeeze(tuple(axes)), x.batched)


def _einsum(lo: Lowering, equation: str, values: Sequence[Lowered], path: None = None) -> Lowered:
    """As a trace records it: the batch is the first letter of what has one."""
    inputs, _, output = equation.partition("->")
    terms = []
    for value, term in zip(values, inputs.split(","), strict=True):
        if value.batched != (term[:1] == output[:1]) or output[0] in term[1:]:
            msg = _ACROSS
            raise ValueError(msg)
        terms.append(term[int(value.batched) :])
    return lo.contract(values, terms, output[1:])


def _columns(x: Lowered, dim: int, cure: str = "") -> tuple[list[Lowered], int]:
    """What lies along a dimension, one by one, and which axis that is."""
    axis = _axis(x, dim)
    moved = np.moveaxis(x.codes, axis, 0)
    if len(moved) > MOST_COLUMNS:
        msg = f"along {len(moved)} features, which are taken one by one: {MOST_COLUMNS} at most{cure}"
        raise ValueError(msg)
    return [Lowered(np.asarray(codes), x.batched) for codes in moved], axis


def _extreme(lo: Lowering, no_better: str, x: Lowered, dim: int, keepdim: bool) -> list[Lowered]:
    """The first of the best, which is NaN if any is, and where it is."""
    (value, *others), axis = _columns(x, dim, "; amax and amin take any number")
    index = lo.constant(0, value.codes.shape, value.batched)
    for k, other in enumerate(others, 1):
        stays = lo.pointwise("logical_or", lo.pointwise(no_better, other, value), lo.pointwise("ne", value, value))
        value, index = _where(lo, stays, value, other), _where(lo, stays, index, k)
    return [Lowered(np.expand_dims(v.codes, axis), v.batched) if keepdim else v for v in (value, index)]


def _max(lo: Lowering, x: Lowered, dim: int | None = None, keepdim: bool = False) -> Lowered | list[Lowered]:
    return _amax(lo, x) if dim is None else _extreme(lo, "le", x, dim, keepdim)


def _min(lo: Lowering, x: Lowered, dim: int | None = None, keepdim: bool = False) -> Lowered | list[Lowered]:
    return _amin(lo, x) if dim is None else _extreme(lo, "ge", x, dim, keepdim)


_Item = tuple[Lowered, Lowered]  # a value, and which of the features it was


def _exchanged(lo: Lowering, a: _Item, b: _Item, comes_first: str) -> tuple[_Item, _Item]:
    """Two values, each with its index, in order; those that are equal stay. NaN is the largest number."""
    swaps = lo.pointwise(comes_first, b[0], a[0])
    nan, other = (b[0], a[0]) if comes_first == "gt" else (a[0], b[0])
    beyond = lo.pointwise("logical_and", lo.pointwise("ne", nan, nan), lo.pointwise("eq", other, other))
    swaps = lo.pointwise("logical_or", swaps, beyond)
    first = _where(lo, swaps, b[0], a[0]), _where(lo, swaps, b[1], a[1])
    return first, (_where(lo, swaps, a[0], b[0]), _where(lo, swaps, a[1], b[1]))


def _ordered(lo: Lowering, x: Lowered, dim: int, count: int, descending: bool) -> list[Lowered]:
    """The first so many of the features in order, and which they were: each in turn is brought to the front."""
    columns, axis = _columns(x, dim)
    swaps = sum(len(columns) - 1 - place for place in range(min(count, len(columns) - 1)))
    if swaps > MOST_SWAPS:
        msg = f"{count} of {len(columns)} features, by {swaps} comparisons: {MOST_SWAPS} at most; amax takes any number"
        raise ValueError(msg)
    items = [(column, lo.constant(k, column.codes.shape, column.batched)) for k, column in enumerate(columns)]
    for place in range(count):
        for k in range(len(items) - 1, place, -1):
            items[k - 1 : k + 1] = _exchanged(lo, items[k - 1], items[k], "gt" if descending else "lt")
    return [Lowered(np.stack([item[part].codes for item in items[:count]], axis), x.batched) for part in (0, 1)]


def _sort(
    lo: Lowering, x: Lowered, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> list[Lowered]:
    return _ordered(lo, x, dim, x.codes.shape[_axis(x, dim)], descending)


def _topk(lo: Lowering, x: Lowered, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> list[Lowered]:  # noqa: A002
    """The values alone: which of equal ones it took, PyTorch leaves open."""
    return _ordered(lo, x, dim, k, largest)[:1]


def _cumulative(combine: Callable[[Lowering, Lowered, Lowered], Lowered]) -> Rule:
    def rule(lo: Lowering, x: Lowered, dim: int, **_: Any) -> Lowered:
        columns, axis = _columns(x, dim)
        totals = itertools.accumulate(columns, functools.partial(combine, lo))
        return Lowered(np.stack([v.codes for v in totals], axis), x.batched)

    return rule


def _prod(lo: Lowering, x: Lowered, dim: int | None = None, keepdim: bool = False, **_: Any) -> Lowered:
    """One factor after the other, so that the gradient of one does not divide by it."""
    columns, axis = _columns(x, 0 if dim is None else dim)
    product = lo.number(columns[0])
    for factor in columns[1:]:
        product = lo.pointwise("mul", product, factor)
    return Lowered(np.expand_dims(product.codes, axis), product.batched) if keepdim else product


def _mean(
    lo: Lowering, x: Lowered, dims: Sequence[int] | int | None = None, keepdim: bool = False, **_: Any
) -> Lowered:
    total = _sum(lo, x, dims, keepdim)
    return lo.pointwise("mul", total, total.codes.size / x.codes.size)


def _var(lo: Lowering, x: Lowered, dims: Any = None, *, correction: float | None = 1, keepdim: bool = False) -> Lowered:
    if isinstance(dims, bool):
        msg = "with `unbiased`"
        raise ValueError(msg)  # noqa: TRY004 - it is caught and told as a form that is not known
    off = lo.pointwise("sub", x, _mean(lo, x, dims, keepdim=True))
    total = _sum(lo, lo.pointwise("mul", off, off), dims, keepdim)
    count = x.codes.size / max(total.codes.size, 1) - (1 if correction is None else correction)
    if count <= 0:
        msg = "of so few features that it is no number"
        raise ValueError(msg)
    return lo.pointwise("mul", total, 1 / count)


def _std(lo: Lowering, x: Lowered, dims: Any = None, **options: Any) -> Lowered:
    return _root(lo, _var(lo, x, dims, **options))


def _var_mean(
    lo: Lowering, x: Lowered, dims: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> list[Lowered]:
    return [_var(lo, x, dims, correction=correction, keepdim=keepdim), _mean(lo, x, dims, keepdim)]


def _layer_norm(
    lo: Lowering, x: Lowered, shape: Sequence[int], weight: Lowered | None, bias: Lowered | None, eps: float
) -> list[Lowered]:
    dims = [x.codes.ndim + x.batched - 1 - k for k in range(len(shape))]
    mean = _mean(lo, x, dims, keepdim=True)
    off = lo.pointwise("sub", x, mean)
    variance = _mean(lo, lo.pointwise("mul", off, off), dims, keepdim=True)
    scale = lo.pointwise("rsqrt", lo.pointwise("add", variance, eps))
    y = lo.pointwise("mul", off, scale)
    if weight is not None:
        y = lo.pointwise("mul", y, weight)
    if bias is not None:
        y = lo.pointwise("add", y, bias)
    return [y, mean, scale]


def _group_norm(
    lo: Lowering, x: Lowered, weight: Lowered | None, bias: Lowered | None, n: int, channels: int, places: int,
    groups: int, eps: float,
) -> list[Lowered]:  # fmt: skip
    if not x.batched or x.codes.shape[0] != channels:
        msg = _ACROSS
        raise ValueError(msg)
    grouped = Lowered(x.codes.reshape(groups, -1), batched=True)
    y, mean, scale = _layer_norm(lo, grouped, grouped.codes.shape[1:], None, None, eps)
    y = Lowered(y.codes.reshape(channels, -1), batched=True)
    for op, value in (("mul", weight), ("add", bias)):
        if value is not None:
            y = lo.pointwise(op, y, Lowered(value.codes[:, None], value.batched))
    mean, scale = (Lowered(v.codes.reshape(groups), batched=True) for v in (mean, scale))
    return [Lowered(y.codes.reshape(x.codes.shape), batched=True), mean, scale]


def _log_softmax(lo: Lowering, x: Lowered, dim: int, half_to_float: bool = False) -> Lowered:
    off = lo.pointwise("sub", x, _amax(lo, x, [dim], keepdim=True))
    return lo.pointwise("sub", off, lo.pointwise("log", _sum(lo, lo.pointwise("exp", off), [dim], keepdim=True)))


def _log_sum_exp(lo: Lowering, x: Lowered, dims: Sequence[int], keepdim: bool = False) -> Lowered:
    top = _amax(lo, x, dims, keepdim=True)
    top = _choose(lo, "eq", lo.pointwise("abs", top), math.inf, 0, top)
    total = _sum(lo, lo.pointwise("exp", lo.pointwise("sub", x, top)), dims, keepdim=True)
    y = lo.pointwise("add", lo.pointwise("log", total), top)
    return y if keepdim else Lowered(y.codes.squeeze(tuple(_axis(x, d) for d in dims)), y.batched)


def _softmax(lo: Lowering, x: Lowered, dim: int, half_to_float: bool = False) -> Lowered:
    top = lo.pointwise("exp", lo.pointwise("sub", x, _amax(lo, x, [dim], keepdim=True)))
    return lo.pointwise("div", top, _sum(lo, top, [dim], keepdim=True))


def _norm(
    lo: Lowering, x: Lowered, order: float | None = 2, dims: Any = None, keepdim: bool = False, **_: Any
) -> Lowered:
    if order in (2, None):
        return _root(lo, _sum(lo, lo.pointwise("mul", x, x), dims, keepdim))
    assert order is not None
    size = lo.pointwise("abs", x)
    if abs(order) == math.inf:
        return (_amax if order > 0 else _amin)(lo, size, dims or (), keepdim)
    if order == 1:
        return _sum(lo, size, dims, keepdim)
    if order <= 0:
        msg = f"of order {order}"
        raise ValueError(msg)
    return _power(lo, _sum(lo, _power(lo, size, order), dims, keepdim), 1 / order)


def _clip_norm(lo: Lowering, x: Lowered, bound: Lowered) -> Lowered:
    if len(lo.pieces(x)) > 1:
        msg = "of numbers that lie apart"
        raise ValueError(msg)
    return lo.pointwise("clip_gradient_norm", x, bound)


def _power(lo: Lowering, x: Lowered, exponent: float) -> Lowered:
    """A power of numbers that are not negative: where one is zero, its gradient is zero too, as that of a norm is."""
    power = lo.composite("aten.pow.Tensor_Scalar", (_choose(lo, "eq", x, 0, 1, x), exponent), {})
    return _choose(lo, "eq", x, 0, 0, power)


def _root(lo: Lowering, square: Lowered) -> Lowered:
    """The root of a sum of squares: where that is zero, its gradient is zero too, as PyTorch's is."""
    root = lo.pointwise("sqrt", _choose(lo, "eq", square, 0, 1, square))
    return _choose(lo, "eq", square, 0, 0, root)


def _index(lo: Lowering, x: Lowered, indices: Sequence[NDArray[Any] | None]) -> Lowered:
    places = [k for k, index in enumerate(indices) if index is not None]
    if x.batched and (not places or places[0] == 0):
        msg = _ACROSS
        raise ValueError(msg)
    if places[-1] - places[0] >= len(places):
        msg = "of dimensions that are not side by side"
        raise ValueError(msg)
    inner = indices[1:] if x.batched else indices
    return Lowered(x.codes[tuple(slice(None) if index is None else index for index in inner)], x.batched)


def _gather(lo: Lowering, x: Lowered, dim: int, index: NDArray[Any], **_: Any) -> Lowered:
    axis = _axis(x, dim)
    if x.batched:
        if len(index) == 0 or (index != index[:1]).any():
            msg = "with an index of its own for each row"
            raise ValueError(msg)
        index = index[0]
    part = tuple(slice(None) if k == axis else slice(n) for k, n in enumerate(index.shape))
    return Lowered(np.take_along_axis(x.codes[part], index, axis), x.batched)


def _pad(lo: Lowering, x: Lowered, pad: Sequence[int], value: float = 0) -> Lowered:
    """Numbers beside the features; of the last dimension first, and taken away where there are less than none."""
    if len(pad) // 2 > x.codes.ndim:
        msg = _ACROSS
        raise ValueError(msg)
    codes, filler = x.codes, lo.constant(value).codes
    for k, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = codes.ndim - 1 - k
        codes = codes[(slice(None),) * axis + (slice(max(-before, 0), codes.shape[axis] - max(-after, 0)),)]
        shapes = [(*codes.shape[:axis], max(n, 0), *codes.shape[axis + 1 :]) for n in (before, after)]
        codes = np.concatenate([np.broadcast_to(filler, shapes[0]), codes, np.broadcast_to(filler, shapes[1])], axis)
    return Lowered(codes, x.batched)


def _layout(move: Callable[..., NDArray[np.int64]]) -> Rule:
    """Make the rule of an operation that moves codes along one dimension, given after the tensor."""
    return lambda lo, x, dim=0, *args: Lowered(move(x.codes, _axis(x, dim), *args), x.batched)


def _slice(
    lo: Lowering, x: Lowered, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Lowered:
    rank = x.codes.ndim + x.batched
    if x.batched and dim % rank == 0:
        if start in (None, 0) and step == 1 and (end is None or end > 10**9):
            return x
        msg = _ACROSS
        raise ValueError(msg)
    axis = _axis(x, dim)
    return Lowered(x.codes[(slice(None),) * axis + (slice(start, end, step),)], x.batched)


def _split(lo: Lowering, x: Lowered, size: int | Sequence[int], dim: int = 0) -> list[Lowered]:
    axis = _axis(x, dim)
    total = x.codes.shape[axis]
    sizes = [size] * math.ceil(total / size) if isinstance(size, int) else size
    parts = np.split(x.codes, np.cumsum(sizes)[:-1], axis)
    return [Lowered(p, x.batched) for p in parts]


def _unbind(lo: Lowering, x: Lowered, dim: int = 0) -> list[Lowered]:
    axis = _axis(x, dim)
    return [Lowered(np.asarray(x.codes.take(k, axis)), x.batched) for k in range(x.codes.shape[axis])]


def _cat(lo: Lowering, values: Sequence[Lowered], dim: int = 0) -> Lowered:
    return Lowered(np.concatenate([v.codes for v in _alike(values)], _axis(values[0], dim)), values[0].batched)


def _stack(lo: Lowering, values: Sequence[Lowered], dim: int = 0) -> Lowered:
    axis = _axis(values[0], dim, added=1)
    return Lowered(np.stack([v.codes for v in _alike(values)], axis), values[0].batched)


def _glu(lo: Lowering, x: Lowered, dim: int = -1) -> Lowered:
    axis = _axis(x, dim)
    half = x.codes.shape[axis] // 2
    a, b = (Lowered(codes, x.batched) for codes in np.split(x.codes, [half], axis))
    return lo.pointwise("mul", a, lo.pointwise("sigmoid", b))


def _roll(lo: Lowering, x: Lowered, shifts: Sequence[int], dims: Sequence[int] = ()) -> Lowered:
    if not dims:
        msg = "across the batch"
        raise ValueError(msg)
    return Lowered(np.roll(x.codes, tuple(shifts), tuple(_axis(x, d) for d in dims)), x.batched)


def _flip(lo: Lowering, x: Lowered, dims: Sequence[int]) -> Lowered:
    return Lowered(np.flip(x.codes, tuple(_axis(x, d) for d in dims)), x.batched)


def _alike(values: Sequence[Lowered]) -> Sequence[Lowered]:
    if len({v.batched for v in values}) > 1:
        msg = "of tensors with and without a batch"
        raise ValueError(msg)
    return values


def _view(lo: Lowering, x: Lowered, size: Sequence[int]) -> Lowered:
    inner = list(size[1:]) if x.batched else list(size)
    if x.batched and math.prod(s for s in inner if s != -1) not in (x.codes.size, 0) and -1 not in inner:
        msg = "across the batch; keep it as the first dimension"
        raise ValueError(msg)
    return Lowered(x.codes.reshape(inner), x.batched)


def _expand(lo: Lowering, x: Lowered, size: Sequence[int], implicit: bool = False) -> Lowered:
    inner = list(size[1:]) if x.batched else list(size)
    offset = len(inner) - x.codes.ndim
    shape = [x.codes.shape[k - offset] if s == -1 else s for k, s in enumerate(inner)]
    return Lowered(np.broadcast_to(x.codes, shape), x.batched)


def _repeat(lo: Lowering, x: Lowered, repeats: Sequence[int]) -> Lowered:
    if x.batched and (len(repeats) != x.codes.ndim + 1 or repeats[0] != 1):
        msg = _ACROSS
        raise ValueError(msg)
    return Lowered(np.tile(x.codes, repeats[int(x.batched) :]), x.batched)


def _unsqueeze(lo: Lowering, x: Lowered, dim: int) -> Lowered:
    rank = x.codes.ndim + x.batched + 1
    axis = (dim + rank if dim < 0 else dim) - x.batched
    if axis < 0:
        msg = "before the batch"
        raise ValueError(msg)
    return Lowered(np.expand_dims(x.codes, axis), x.batched)


def _squeeze(lo: Lowering, x: Lowered, dims: int | Sequence[int] | None = None) -> Lowered:
    wanted = range(x.batched, x.codes.ndim + x.batched) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = tuple(a for a in (_axis(x, d) for d in wanted) if x.codes.shape[a] == 1)
    return Lowered(x.codes.squeeze(axes), x.batched)


def _transpose(lo: Lowering, x: Lowered, a: int, b: int) -> Lowered:
    return Lowered(x.codes.swapaxes(_axis(x, a), _axis(x, b)), x.batched)


def _permute(lo: Lowering, x: Lowered, dims: Sequence[int]) -> Lowered:
    if x.batched and dims[0] != 0:
        msg = "of the batch"
        raise ValueError(msg)
    return Lowered(x.codes.transpose([_axis(x, d) for d in dims[int(x.batched) :]]), x.batched)


def _same(lo: Lowering, x: Lowered, *_: Any, **__: Any) -> Lowered:
    return x


def _like(number: float) -> Rule:
    return lambda lo, x, *_, **__: lo.constant(number, x.codes.shape, x.batched)


def _full_like(lo: Lowering, x: Lowered, number: float, **_: Any) -> Lowered:
    return lo.constant(number, x.codes.shape, x.batched)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **{name: _elementary(operation) for name, operation in OPERATIONS.items() if operation.is_aten},
        "sgn": _elementary(OPERATIONS["sign"]),
        **{"bitwise_and": _bitwise("logical_and"), "bitwise_or": _bitwise("logical_or")},
        **{"bitwise_not": _bitwise("logical_not"), "bitwise_xor": _bitwise("ne")},
        "logical_xor": lambda lo, a, b: lo.pointwise("ne", lo.mask(a), lo.mask(b)),
        **{"any": _any, "all": _all},
        **{"add": _add, "sub": _sub, "rsub": lambda lo, a, b, alpha=1: _sub(lo, b, a, alpha)},
        **{"mul": _mul, "div": _div, "pow": _pow, "clamp": _clamp},
        "masked_fill": lambda lo, x, mask, number: _where(lo, mask, number, x),
        "clamp_min": _clamp,
        "clamp_max": lambda lo, x, high: _clamp(lo, x, None, high),
        "relu": lambda lo, x: lo.pointwise("maximum", x, 0),
        "leaky_relu": lambda lo, x, slope=0.01: _choose(lo, "gt", x, 0, x, lo.pointwise("mul", x, slope)),
        "_prelu_kernel": lambda lo, x, slope: _choose(lo, "gt", x, 0, x, lo.pointwise("mul", x, slope)),
        **{"celu": _celu, "mish": _mish, "softshrink": _softshrink, "glu": _glu},
        **{"asin": _asin, "acos": _acos, "logaddexp": _log_add_exp, "heaviside": _heaviside},
        "log10": lambda lo, x: lo.pointwise("mul", lo.pointwise("log", x), 1 / math.log(10)),
        "isnan": lambda lo, x: lo.pointwise("ne", x, x),
        "anyrnn::surrogate": lambda lo, value, x, slope: lo.pointwise("surrogate", value, x, slope),
        "anyrnn::clip_gradient": lambda lo, x, bound: lo.pointwise("clip_gradient", x, bound),
        "anyrnn::clip_gradient_norm": _clip_norm,
        "hardshrink": lambda lo, x, edge=0.5: _choose(lo, "le", lo.pointwise("abs", x), edge, 0, x),
        "tan": lambda lo, x: lo.pointwise("div", lo.pointwise("sin", x), lo.pointwise("cos", x)),
        "threshold": lambda lo, x, edge, number: _choose(lo, "le", x, edge, number, x),
        **{"softplus": _softplus, "elu": _elu, "hardtanh": _hardtanh},
        **{"hardsigmoid": _hardsigmoid, "silu": _silu, "gelu": _gelu, "log_sigmoid_forward": _log_sigmoid},
        "hardswish": _hardswish,
        "addcmul": lambda lo, x, a, b, value=1: _add(lo, x, _product(lo, a, value, b)),
        "addcdiv": lambda lo, x, a, b, value=1: _add(lo, x, lo.pointwise("div", _product(lo, a, value), b)),
        "lerp": _lerp,
        **{"tanh_backward": _tanh_backward, "sigmoid_backward": _sigmoid_backward, "elu_backward": _elu_backward},
        **{"softplus_backward": _softplus_backward, "log_sigmoid_backward": _log_sigmoid_backward},
        **{"silu_backward": _silu_backward, "mish_backward": _mish_backward, "gelu_backward": _gelu_backward},
        **dict.fromkeys(("softshrink_backward", "hardshrink_backward"), _shrink_backward),
        **{"hardtanh_backward": _hardtanh_backward, "hardsigmoid_backward": _hardsigmoid_backward},
        **{"hardswish_backward": _hardswish_backward, "leaky_relu_backward": _leaky_relu_backward},
        "_prelu_kernel_backward": _prelu_backward,
        "threshold_backward": lambda lo, grad, x, edge: _choose(lo, "le", x, edge, 0, grad),
        **{"sum": _sum, "mean": _mean, "amax": _amax, "amin": _amin, "var": _var, "std": _std, "var_mean": _var_mean},
        **{"max": _max, "min": _min, "sort": _sort, "topk": _topk, "prod": _prod, "einsum": _einsum},
        "cumsum": _cumulative(lambda lo, a, b: lo.pointwise("add", a, b)),
        "cumprod": _cumulative(lambda lo, a, b: lo.pointwise("mul", a, b)),
        "logcumsumexp": _cumulative(lambda lo, a, b: lo.composite("aten.logaddexp.default", (a, b), {})),
        "argmax": lambda lo, x, dim, keepdim=False: _extreme(lo, "le", x, dim, keepdim)[1],
        "argmin": lambda lo, x, dim, keepdim=False: _extreme(lo, "ge", x, dim, keepdim)[1],
        **{"native_layer_norm": _layer_norm, "native_group_norm": _group_norm, "linalg_vector_norm": _norm},
        **{"_softmax": _softmax, "_log_softmax": _log_softmax, "logsumexp": _log_sum_exp},
        **{"slice": _slice, "split": _split, "split_with_sizes": _split, "unsafe_split": _split},
        **{"unbind": _unbind, "cat": _cat, "stack": _stack, "select": _layout(lambda c, axis, k: c.take(k, axis))},
        **{"view": _view, "_unsafe_view": _view, "expand": _expand, "unsqueeze": _unsqueeze},
        **{"repeat": _repeat, "roll": _roll, "flip": _flip, "constant_pad_nd": _pad},
        **{"index": _index, "gather": _gather},
        "index_select": _layout(lambda codes, axis, index: codes.take(index, axis)),
        **{"squeeze": _squeeze, "transpose": _transpose, "permute": _permute, "_to_copy": _cast},
        **{"fill": _full_like, "new_empty_strided": _like(math.nan)},
        "scalar_tensor": lambda lo, number, **_: lo.constant(number),
        **dict.fromkeys(("clone", "alias"), _same),
        **{"zeros_like": _like(0), "empty_like": _like(math.nan), "ones_like": _like(1), "full_like": _full_like},
    }
)

#: Operations on each number whose derivative is PyTorch's own: they are more than one elementary operation.
COMPOSITE = frozenset(
    {"clamp", "clamp_min", "clamp_max", "relu", "leaky_relu", "_prelu_kernel", "celu", "elu", "mish"}
) | {
    *("softshrink", "hardshrink", "tan", "threshold", "softplus", "hardtanh", "hardsigmoid", "hardswish", "silu"),
    *("gelu", "log_sigmoid_forward", "lerp", "pow", "addcmul", "addcdiv", "asin", "acos", "logaddexp"),
    *("div.Tensor_mode", "div.Scalar_mode"),
}
