"""From ATen operations to values of the loop program.

A tensor of the cell's step, (B, ...) or without a batch, is here an array of codes, one for each number of a row: which
number of which value it is. Layout operations (cat, chunk, view, expand) only move codes about, which numpy does.
Arithmetic finds the runs of neighbouring numbers in its operands and makes one value of each.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.program import MASKS, Builder, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anyrnn.trace import Step

#: Which arguments of operations are masks.
_MASK_ARGUMENTS = {"where": (0,), "logical_and": (0, 1), "logical_or": (0, 1), "logical_not": (0,)}

_SHIFT = 32  # a code is the number of a value, shifted, plus the position in it


@dataclass(frozen=True)
class Value:
    """A tensor of the step.

    Attributes:
        codes: For each number of a row, or of the whole tensor if it has no batch, which number of which node it is.
        batched: The tensor has a batch dimension in front of those of `codes`.
    """

    codes: NDArray[np.int64]
    batched: bool


class Lowering:
    """Turns operations into nodes; knows nothing of where the leaves come from."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._nodes: list[Node] = []
        self._numbers: dict[Node, int] = {}

    def value(self, nodes: Sequence[Node], shape: Sequence[int] | None = None, batched: bool = True) -> Value:
        """Return nodes side by side as a tensor, of a shape (without the batch) if given."""
        parts = [np.arange(n.width, dtype=np.int64) + (self._number(n) << _SHIFT) for n in nodes]
        codes = np.concatenate(parts)
        return Value(codes if shape is None else codes.reshape(shape), batched)

    def constant(self, number: float, shape: Sequence[int] = (), batched: bool = False) -> Value:
        """Return a tensor full of one number."""
        code = self._number(self.builder.constant(number)) << _SHIFT
        return Value(np.full(tuple(shape), code, dtype=np.int64), batched)

    def pieces(self, value: Value) -> tuple[Node, ...]:
        """Return the nodes that make up a tensor, side by side, in the order of its numbers."""
        return tuple(
            node if node.width == count else self.builder.widened(self._typed("mul", 0, node), count)
            for node, count in self._parts(value.codes)
        )

    def is_mask(self, value: Value) -> bool:
        """Whether a tensor holds true and false."""
        return all(node.op in MASKS for node, _ in self._parts(value.codes))

    def apply(self, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Value]:
        """Lower one operation, whose tensor arguments are Values.

        Raises:
            AnyRNNError: if the loop program has no such operation. The message names it.
        """
        name = step.short_name
        rule = RULES.get(name)
        if rule is None:
            raise AnyRNNError(unsupported(step))
        try:
            result = rule(self, *args, **kwargs)
        except (TypeError, ValueError, IndexError, KeyError) as cause:
            msg = f"{unsupported(step)} in this form ({cause})"
            raise AnyRNNError(msg) from cause
        return result if isinstance(result, list) else [result]

    def pointwise(self, op: str, *operands: Value | float) -> Value:
        """Apply an operation of the loop program, with PyTorch's broadcasting."""
        values = [o if isinstance(o, Value) else self.constant(float(o)) for o in operands]
        batched = any(v.batched for v in values)
        rank = max(v.codes.ndim for v in values if v.batched) if batched else 0
        arrays = []
        for v in values:
            codes = v.codes
            if batched and not v.batched and codes.ndim > rank:
                if codes.shape[0] != 1 or codes.ndim != rank + 1:
                    msg = "a tensor without a batch is broadcast along the batch"
                    raise ValueError(msg)
                codes = codes[0]
            if v.batched and codes.ndim != rank:
                msg = "the batch dimensions do not meet"
                raise ValueError(msg)
            arrays.append(codes)
        arrays = list(np.broadcast_arrays(*arrays))
        flats = [a.ravel() for a in arrays]
        edges = sorted({e for flat in flats for a, b, _ in _runs(flat) for e in (a, b)})
        made = []
        for a, b in itertools.pairwise(edges):
            nodes = [self._node(f[a], b - a, int(f[a + 1] - f[a]) if b - a > 1 else 1) for f in flats]
            node = self.builder.pointwise(op, *(self._typed(op, k, n) for k, n in enumerate(nodes)))
            codes = np.arange(b - a, dtype=np.int64) if node.width > 1 else np.zeros(b - a, dtype=np.int64)
            made.append(codes + (self._number(node) << _SHIFT))
        codes = np.concatenate(made) if made else flats[0]
        return Value(codes.reshape(arrays[0].shape), batched)

    def reduce(self, op: str, value: Value, axis: int) -> Value:
        """Sum or maximise over one of the feature dimensions, which is kept with size one."""
        moved = np.moveaxis(value.codes, axis, -1)
        both = "add" if op == "sum" else "maximum"
        count = moved.shape[-1]
        if count == 1 or (count < moved.size // count and (op == "sum" or count == 2)):  # a few values, wide ones
            total = self.pointwise("add", Value(moved[..., 0], value.batched), 0)
            for k in range(1, count):
                total = self.pointwise(both, total, Value(moved[..., k], value.batched))
            return Value(np.expand_dims(total.codes, axis), value.batched)
        out = np.empty(moved.shape[:-1], dtype=np.int64)
        for index in np.ndindex(out.shape):
            parts: list[Node] = []
            numbers: list[Node] = []
            for node, repeated in self._parts(moved[index]):
                number = self._typed(op, 0, node)
                if op == "sum" and node.width == 1 < repeated:
                    number = self.builder.pointwise("mul", number, self.builder.constant(repeated))
                (numbers if number.op == "constant" else parts).append(number)
            made = [self.builder.reduction(op, tuple(parts))] if parts else []
            result = functools.reduce(functools.partial(self.builder.pointwise, both), made + numbers)
            out[index] = self._number(result) << _SHIFT
        return Value(np.expand_dims(out, axis), value.batched)

    def product(self, value: Value, matrix: int, shape: tuple[int, int]) -> Value:
        """Multiply rows (B, rows) with a matrix of the program (rows, columns)."""
        if value.codes.ndim != 1:
            msg = f"a product of {value.codes.ndim + 1} dimensions"
            raise ValueError(msg)
        terms = []
        row = 0
        for piece in self.pieces(value):
            # What a product takes differs by row; what does not is written out for each.
            taken = self.builder.pointwise("positive", piece) if piece.op in ("vector", "constant") else piece
            terms.append((taken, (matrix, row, 0, False)))
            row += piece.width
        return self.value([self.builder.dot(terms, shape[1])])

    def _typed(self, op: str, position: int, node: Node) -> Node:
        """Make a mask of a number or a number of a mask, as the operation wants its argument."""
        wants_mask = position in _MASK_ARGUMENTS.get(op, ())
        if wants_mask == (node.op in MASKS):
            return node
        one, zero = self.builder.constant(1), self.builder.constant(0)
        return self.builder.pointwise(*(("ne", node, zero) if wants_mask else ("where", node, one, zero)))

    def _parts(self, codes: NDArray[np.int64]) -> list[tuple[Node, int]]:
        """The nodes of neighbouring numbers, and how many numbers each is: more than its width if it is repeated."""
        flat = codes.ravel()
        return [(self._node(flat[a], b - a, step), b - a) for a, b, step in _runs(flat)]

    def _number(self, node: Node) -> int:
        if node not in self._numbers:
            self._numbers[node] = len(self._nodes)
            self._nodes.append(node)
        return self._numbers[node]

    def _node(self, code: np.int64, width: int, step: int) -> Node:
        node = self._nodes[int(code) >> _SHIFT]
        return self.builder.cut(node, int(code) & ((1 << _SHIFT) - 1), width if step == 1 else 1)


def _runs(flat: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Split codes into runs (start, stop, step): neighbours (step 1) or one number repeated (step 0)."""
    n = len(flat)
    if n == 0:
        return []
    steps = np.diff(flat)
    runs = []
    start = 0
    while start < n:
        step = int(steps[start]) if start < n - 1 else 1
        if step not in (0, 1):
            runs.append((start, start + 1, 1))
            start += 1
            continue
        breaks = np.flatnonzero(steps[start:] != step)
        stop = start + (int(breaks[0]) if len(breaks) else n - 1 - start) + 1
        runs.append((start, stop, step))
        start = stop
    return runs


def unsupported(step: Step) -> str:
    """Say which operation the loop program lacks, and what may help."""
    name, hint = step.short_name, ""
    if "dropout" in name or "bernoulli" in name:
        hint = "; move dropout out of the cell, or draw its mask in the shape of x, not of the state"
    elif torch.Tag.nondeterministic_seeded in step.op.tags:
        hint = "; draw random numbers in the shape of x, not of the state"
    return f"`aten.{name}` in the loop{hint}"


# ---- The table: what each ATen operation is in terms of the above ----------------------------------------------------

Rule = Callable[..., "Value | list[Value]"]


def _axis(value: Value, dim: int) -> int:
    """Turn a dimension of the tensor into one of its codes."""
    rank = value.codes.ndim + value.batched
    axis = (dim + rank if dim < 0 else dim) - value.batched
    if axis < 0:
        msg = "along the batch"
        raise ValueError(msg)
    return axis


def _unary(op: str) -> Rule:
    return lambda lo, x: lo.pointwise(op, x)


def _binary(op: str) -> Rule:
    return lambda lo, a, b: lo.pointwise(op, a, b)


def _add(lo: Lowering, a: Value | float, b: Value | float, alpha: float = 1) -> Value:
    return lo.pointwise("add", a, b if alpha == 1 else lo.pointwise("mul", b, alpha))


def _sub(lo: Lowering, a: Value | float, b: Value | float, alpha: float = 1) -> Value:
    return lo.pointwise("sub", a, b if alpha == 1 else lo.pointwise("mul", b, alpha))


def _div(lo: Lowering, a: Value, b: Value | float, rounding_mode: str | None = None) -> Value:
    quotient = lo.pointwise("div", a, b)
    return quotient if rounding_mode is None else lo.pointwise(rounding_mode, quotient)


def _pow(lo: Lowering, a: Value | float, b: Value | float) -> Value:
    if isinstance(b, int | float) and b in (1, 2, 3, 0.5, -1, -2):
        assert isinstance(a, Value)
        square = lo.pointwise("mul", a, a)
        forms: dict[float, Callable[[], Value]] = {
            1: lambda: a,
            2: lambda: square,
            3: lambda: lo.pointwise("mul", square, a),
            0.5: lambda: lo.pointwise("sqrt", a),
            -1: lambda: lo.pointwise("reciprocal", a),
            -2: lambda: lo.pointwise("reciprocal", square),
        }
        return forms[b]()
    return lo.pointwise("pow", a, b)


def _clamp(lo: Lowering, x: Value, min: Value | float | None = None, max: Value | float | None = None) -> Value:  # noqa: A002
    """By comparison, so that the gradient passes at the edges themselves, and NaN stays."""
    y = x
    if max is not None:
        y = _where(lo, lo.pointwise("gt", x, max), max, y)
    return y if min is None else _where(lo, lo.pointwise("lt", x, min), min, y)


def _where(lo: Lowering, mask: Value, a: Value | float, b: Value | float) -> Value:
    return lo.pointwise("where", mask, a, b)


def _choose(lo: Lowering, op: str, x: Value, edge: float, a: Value | float, b: Value | float) -> Value:
    return _where(lo, lo.pointwise(op, x, edge), a, b)


def _softplus(lo: Lowering, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    scaled = lo.pointwise("mul", x, beta)
    soft = lo.pointwise("mul", lo.pointwise("log1p", lo.pointwise("exp", scaled)), 1 / beta)
    return _choose(lo, "gt", scaled, threshold, x, soft)


def _elu(lo: Lowering, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    low = lo.pointwise("mul", lo.pointwise("expm1", lo.pointwise("mul", x, input_scale)), alpha * scale)
    return _choose(lo, "gt", x, 0, lo.pointwise("mul", x, scale), low)


def _hardtanh(lo: Lowering, x: Value, low: float = -1, high: float = 1) -> Value:
    """Unlike a clamp, without a gradient at the edges."""
    return _choose(lo, "le", x, low, low, _choose(lo, "ge", x, high, high, x))


def _hardsigmoid(lo: Lowering, x: Value) -> Value:
    return lo.pointwise("div", _hardtanh(lo, lo.pointwise("add", x, 3), 0, 6), 6)


def _silu(lo: Lowering, x: Value) -> Value:
    return lo.pointwise("mul", x, lo.pointwise("sigmoid", x))


def _gelu(lo: Lowering, x: Value, approximate: str = "none") -> Value:
    if approximate == "tanh":
        cube = lo.pointwise("mul", lo.pointwise("mul", x, x), x)
        inner = lo.pointwise("add", x, lo.pointwise("mul", cube, 0.044715))
        bell = lo.pointwise("tanh", lo.pointwise("mul", inner, math.sqrt(2 / math.pi)))
    else:
        bell = lo.pointwise("erf", lo.pointwise("mul", x, math.sqrt(0.5)))
    return lo.pointwise("mul", lo.pointwise("mul", x, 0.5), lo.pointwise("add", bell, 1))


def _log_sigmoid(lo: Lowering, x: Value) -> list[Value]:
    small = lo.pointwise("minimum", x, 0)
    away = lo.pointwise("exp", lo.pointwise("neg", lo.pointwise("abs", x)))
    return [lo.pointwise("sub", small, lo.pointwise("log1p", away)), lo.constant(0)]


def _tanh_backward(lo: Lowering, g: Value, y: Value) -> Value:
    return lo.pointwise("mul", g, lo.pointwise("sub", 1, lo.pointwise("mul", y, y)))


def _sigmoid_backward(lo: Lowering, g: Value, y: Value) -> Value:
    return lo.pointwise("mul", g, lo.pointwise("mul", y, lo.pointwise("sub", 1, y)))


def _cast(lo: Lowering, x: Value, dtype: Any = None, **_: Any) -> Value:
    """Take a mask or another number as a number of the program's type, as conversions in a cell mean."""
    if dtype == torch.bool:
        return lo.pointwise("ne", x, 0)
    if dtype is not None and not dtype.is_floating_point and not lo.is_mask(x):
        msg = f"to {dtype}"
        raise ValueError(msg)
    return lo.pointwise("add", x, 0)


def _bitwise(op: str) -> Rule:
    def rule(lo: Lowering, *args: Value) -> Value:
        if not all(isinstance(a, Value) and lo.is_mask(a) for a in args):
            msg = "of integers"
            raise ValueError(msg)
        return lo.pointwise(op, *args)

    return rule


def _sum(lo: Lowering, x: Value, dims: Sequence[int] | int | None = None, keepdim: bool = False, **_: Any) -> Value:
    return _reduced(lo, "sum", x, dims, keepdim)


def _amax(lo: Lowering, x: Value, dims: Sequence[int] = (), keepdim: bool = False) -> Value:
    return _reduced(lo, "max", x, dims, keepdim)


def _reduced(lo: Lowering, op: str, x: Value, dims: Sequence[int] | int | None, keepdim: bool) -> Value:
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.codes.ndim + x.batched))
    axes = sorted(_axis(x, d) for d in dims)
    for axis in axes:
        x = lo.reduce(op, x, axis)
    return x if keepdim else Value(x.codes.squeeze(tuple(axes)), x.batched)


def _mean(lo: Lowering, x: Value, dims: Sequence[int] | int | None = None, keepdim: bool = False, **_: Any) -> Value:
    total = _sum(lo, x, dims, keepdim)
    return lo.pointwise("mul", total, total.codes.size / x.codes.size)


def _var(lo: Lowering, x: Value, dims: Any = None, *, correction: float | None = 1, keepdim: bool = False) -> Value:
    if isinstance(dims, bool):
        msg = "with `unbiased`"
        raise ValueError(msg)  # noqa: TRY004 - it is caught and told as a form that is not known
    off = lo.pointwise("sub", x, _mean(lo, x, dims, keepdim=True))
    total = _sum(lo, lo.pointwise("mul", off, off), dims, keepdim)
    count = x.codes.size / max(total.codes.size, 1)
    return lo.pointwise("mul", total, 1 / (count - (1 if correction is None else correction)))


def _std(lo: Lowering, x: Value, dims: Any = None, **options: Any) -> Value:
    return _root(lo, _var(lo, x, dims, **options))


def _var_mean(
    lo: Lowering, x: Value, dims: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> list[Value]:
    return [_var(lo, x, dims, correction=correction, keepdim=keepdim), _mean(lo, x, dims, keepdim)]


def _layer_norm(
    lo: Lowering, x: Value, shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> list[Value]:
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


def _softmax(lo: Lowering, x: Value, dim: int, half_to_float: bool = False) -> Value:
    top = lo.pointwise("exp", lo.pointwise("sub", x, _amax(lo, x, [dim], keepdim=True)))
    return lo.pointwise("div", top, _sum(lo, top, [dim], keepdim=True))


def _norm(lo: Lowering, x: Value, order: float | None = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    if order not in (2, None):
        msg = f"of order {order}"
        raise ValueError(msg)
    return _root(lo, _sum(lo, lo.pointwise("mul", x, x), dims, keepdim))


def _root(lo: Lowering, square: Value) -> Value:
    """The root of a sum of squares: where that is zero, its gradient is zero too, as PyTorch's is."""
    root = lo.pointwise("sqrt", _choose(lo, "eq", square, 0, 1, square))
    return _choose(lo, "eq", square, 0, 0, root)


def _layout(move: Callable[..., NDArray[np.int64]]) -> Rule:
    """Make the rule of an operation that moves codes along one dimension, given after the tensor."""
    return lambda lo, x, dim=0, *args: Value(move(x.codes, _axis(x, dim), *args), x.batched)


def _slice(
    lo: Lowering, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    rank = x.codes.ndim + x.batched
    if x.batched and dim % rank == 0:
        if start in (None, 0) and step == 1 and (end is None or end > 10**9):
            return x
        msg = "along the batch"
        raise ValueError(msg)
    axis = _axis(x, dim)
    return Value(x.codes[(slice(None),) * axis + (slice(start, end, step),)], x.batched)


def _split(lo: Lowering, x: Value, size: int | Sequence[int], dim: int = 0) -> list[Value]:
    axis = _axis(x, dim)
    total = x.codes.shape[axis]
    sizes = [size] * math.ceil(total / size) if isinstance(size, int) else size
    parts = np.split(x.codes, np.cumsum(sizes)[:-1], axis)
    return [Value(p, x.batched) for p in parts]


def _unbind(lo: Lowering, x: Value, dim: int = 0) -> list[Value]:
    axis = _axis(x, dim)
    return [Value(np.asarray(x.codes.take(k, axis)), x.batched) for k in range(x.codes.shape[axis])]


def _cat(lo: Lowering, values: Sequence[Value], dim: int = 0) -> Value:
    return Value(np.concatenate([v.codes for v in _alike(values)], _axis(values[0], dim)), values[0].batched)


def _stack(lo: Lowering, values: Sequence[Value], dim: int = 0) -> Value:
    first = values[0]
    rank = first.codes.ndim + first.batched + 1
    axis = (dim + rank if dim < 0 else dim) - first.batched
    if axis < 0:
        msg = "along the batch"
        raise ValueError(msg)
    return Value(np.stack([v.codes for v in _alike(values)], axis), first.batched)


def _alike(values: Sequence[Value]) -> Sequence[Value]:
    if len({v.batched for v in values}) > 1:
        msg = "of tensors with and without a batch"
        raise ValueError(msg)
    return values


def _view(lo: Lowering, x: Value, size: Sequence[int]) -> Value:
    inner = list(size[1:]) if x.batched else list(size)
    if x.batched and math.prod(s for s in inner if s != -1) not in (x.codes.size, 0) and -1 not in inner:
        msg = "across the batch"
        raise ValueError(msg)
    return Value(x.codes.reshape(inner), x.batched)


def _expand(lo: Lowering, x: Value, size: Sequence[int], implicit: bool = False) -> Value:
    inner = list(size[1:]) if x.batched else list(size)
    offset = len(inner) - x.codes.ndim
    shape = [x.codes.shape[k - offset] if s == -1 else s for k, s in enumerate(inner)]
    return Value(np.broadcast_to(x.codes, shape), x.batched)


def _repeat(lo: Lowering, x: Value, repeats: Sequence[int]) -> Value:
    if x.batched and (len(repeats) != x.codes.ndim + 1 or repeats[0] != 1):
        msg = "along the batch"
        raise ValueError(msg)
    return Value(np.tile(x.codes, repeats[int(x.batched) :]), x.batched)


def _unsqueeze(lo: Lowering, x: Value, dim: int) -> Value:
    rank = x.codes.ndim + x.batched + 1
    axis = (dim + rank if dim < 0 else dim) - x.batched
    if axis < 0:
        msg = "before the batch"
        raise ValueError(msg)
    return Value(np.expand_dims(x.codes, axis), x.batched)


def _squeeze(lo: Lowering, x: Value, dims: int | Sequence[int] | None = None) -> Value:
    wanted = range(x.batched, x.codes.ndim + x.batched) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = tuple(a for a in (_axis(x, d) for d in wanted) if x.codes.shape[a] == 1)
    return Value(x.codes.squeeze(axes), x.batched)


def _transpose(lo: Lowering, x: Value, a: int, b: int) -> Value:
    return Value(x.codes.swapaxes(_axis(x, a), _axis(x, b)), x.batched)


def _permute(lo: Lowering, x: Value, dims: Sequence[int]) -> Value:
    if x.batched and dims[0] != 0:
        msg = "of the batch"
        raise ValueError(msg)
    return Value(x.codes.transpose([_axis(x, d) for d in dims[int(x.batched) :]]), x.batched)


def _same(lo: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _like(number: float) -> Rule:
    return lambda lo, x, *_, **__: lo.constant(number, x.codes.shape, x.batched)


def _full_like(lo: Lowering, x: Value, number: float, **_: Any) -> Value:
    return lo.constant(number, x.codes.shape, x.batched)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **{op: _unary(op) for op in ("neg", "abs", "exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "sigmoid")},
        **{op: _unary(op) for op in ("sqrt", "rsqrt", "reciprocal", "sin", "cos", "erf", "floor", "ceil", "trunc")},
        **{op: _unary(op) for op in ("round", "sign", "logical_not")},
        **{op: _binary(op) for op in ("mul", "maximum", "minimum", "lt", "le", "gt", "ge", "eq", "ne")},
        **{op: _binary(op) for op in ("logical_and", "logical_or")},
        **{"bitwise_and": _bitwise("logical_and"), "bitwise_or": _bitwise("logical_or")},
        **{"bitwise_not": _bitwise("logical_not"), "sgn": _unary("sign")},
        **{"add": _add, "sub": _sub, "rsub": lambda lo, a, b, alpha=1: _sub(lo, b, a, alpha)},
        **{"div": _div, "pow": _pow, "clamp": _clamp, "where": _where},
        "masked_fill": lambda lo, x, mask, number: _where(lo, mask, number, x),
        "clamp_min": _clamp,
        "clamp_max": lambda lo, x, high: _clamp(lo, x, None, high),
        "relu": lambda lo, x: _choose(lo, "le", x, 0, 0, x),
        "leaky_relu": lambda lo, x, slope=0.01: _choose(lo, "gt", x, 0, x, lo.pointwise("mul", x, slope)),
        "threshold": lambda lo, x, edge, number: _choose(lo, "le", x, edge, number, x),
        **{"softplus": _softplus, "elu": _elu, "hardtanh": _hardtanh},
        **{"hardsigmoid": _hardsigmoid, "silu": _silu, "gelu": _gelu, "log_sigmoid_forward": _log_sigmoid},
        "hardswish": lambda lo, x: lo.pointwise("mul", x, _hardsigmoid(lo, x)),
        "addcmul": lambda lo, x, a, b, value=1: _add(lo, x, lo.pointwise("mul", a, b), value),
        "addcdiv": lambda lo, x, a, b, value=1: _add(lo, x, lo.pointwise("div", a, b), value),
        "lerp": lambda lo, a, b, w: lo.pointwise("add", a, lo.pointwise("mul", w, lo.pointwise("sub", b, a))),
        **{"tanh_backward": _tanh_backward, "sigmoid_backward": _sigmoid_backward},
        **{"sum": _sum, "mean": _mean, "amax": _amax, "var": _var, "std": _std, "var_mean": _var_mean},
        **{"native_layer_norm": _layer_norm, "_softmax": _softmax, "linalg_vector_norm": _norm},
        **{"slice": _slice, "split": _split, "split_with_sizes": _split, "unsafe_split": _split},
        **{"unbind": _unbind, "cat": _cat, "stack": _stack, "select": _layout(lambda c, axis, k: c.take(k, axis))},
        **{"view": _view, "_unsafe_view": _view, "expand": _expand, "unsqueeze": _unsqueeze},
        "repeat": _repeat,
        **{"squeeze": _squeeze, "transpose": _transpose, "permute": _permute, "_to_copy": _cast},
        "detach": _unary("detach"),
        "scalar_tensor": lambda lo, number, **_: lo.constant(number),
        **dict.fromkeys(("clone", "alias"), _same),
        **{"zeros_like": _like(0), "ones_like": _like(1), "full_like": _full_like},
    }
)
