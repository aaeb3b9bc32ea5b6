"""What each operation of the loop program is in LLVM, on vectors of float or double of any length: the table `EMIT`.

Most operations are an instruction. The elementary functions are polynomials and bit arithmetic, no call of libm, few
branches. Each becomes an internal function of the module, marked always to be inlined, so that the IR stays short and
readable: ``call <16 x float> @"tanh.v16f32"(...)``. `ULP` has their largest errors. A function that is computed by an
identity has it in its docstring.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llvmlite import ir

from anyrnn.engines.cpu.vectors import FLOAT, Format, Vector, clamp, declared, intrinsic, muladd, polynomial, select

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def _reduce(x: Vector, step: Sequence[float], offset: int = 0) -> tuple[Vector, Vector]:
    """Find the integer n nearest to x / step, and r = x - n step; return n + offset, in the lowest bits, and r.

    The step is the sum of its parts; n times each part but the last has to be exact.
    """
    shift = x.format.integral + offset
    code = muladd(x, 1 / sum(step), shift)
    n = code - shift
    for part in step:
        x = muladd(n, -part, x)
    return code.bits(), x


def _power_of_two(code: Vector, form: Format) -> Vector:
    """2^n from n + bias in the lowest bits; what stands above them is shifted out."""
    return (code << form.mantissa).real()


def _times_power_of_two(x: Vector, code: Vector) -> Vector:
    """Multiply by 2^n, from n + 2 bias, in two steps: 2^n itself may be infinite or subnormal where x 2^n is not."""
    half = code >> 1
    return x * _power_of_two(half, x.format) * _power_of_two(code - half, x.format)


_LN2 = math.log(2.0)
# 33, 33, 33 and 53 bits: the remainder of the double nearest to a multiple of pi/2 is as small as 1e-16.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21, 8.4784276603689e-32)


def _exp(x: Vector) -> Vector:
    """By exp(n ln2 + r) = 2^n exp(r)."""
    form = x.format
    code, r = _reduce(clamp(x, form.lowest, form.highest), form.ln2, 2 * form.bias)
    return _times_power_of_two(polynomial(form.exp, r), code)


def _exp2(x: Vector, rest: Vector | None = None) -> Vector:
    """By 2^(n + r) = 2^n exp(r ln2); `rest`, if there is one, is a small number that belongs to x."""
    form = x.format
    code, r = _reduce(clamp(x, form.lowest / _LN2, form.highest / _LN2), (1.0,), 2 * form.bias)
    r = r if rest is None else r + rest
    return _times_power_of_two(polynomial(form.exp, r * _LN2), code)


def _expm1(x: Vector) -> Vector:
    """By 2^n (exp(r) - 1) + (2^n - 1), halved and doubled again, so that 2^n is finite up to the largest result."""
    form = x.format
    code, r = _reduce(clamp(x, -40.0, form.highest), form.ln2, form.bias - 1)
    half = _power_of_two(code, form)
    less = muladd(polynomial(form.exp[2:], r) * r, r, r)
    return select(abs(x) < form.tiny, x, 2.0 * muladd(half, less, half - 0.5))


def _sigmoid(x: Vector) -> Vector:
    """By exp(r) / (exp(r) + 2^-n), both scaled down by 2^64, so that 2^-n is finite down to the smallest result."""
    form = x.format
    code, r = _reduce(clamp(x, form.lowest, 40.0), [-part for part in form.ln2], form.bias - 64)
    power = polynomial([c * 2.0**-64 for c in form.exp], r)
    return power / (power + _power_of_two(code, form))


def _tanh(x: Vector) -> Vector:
    """By (t (2^n + 1) + 2^n - 1) / (t (2^n - 1) + 2^n + 1), x = n ln2 / 2 + r, t = tanh(r)."""
    form = x.format
    # One part is enough: where n is not 0, the slope of tanh makes up for what it lacks.
    code, r = _reduce(clamp(x, -20.0, 20.0), (_LN2 / 2,), form.bias)
    t = r * polynomial([1.0, *form.tanh], r * r)
    power = _power_of_two(code, form)
    below, above = 1.0 - power, power + 1.0  # `below` is +0 at n = 0, and subtracting that keeps the sign of -0
    return muladd(t, above, -below) / muladd(-t, below, above)


def _half_exp(x: Vector) -> Vector:
    """By 2^(n - 1) exp(r): finite up to where sinh and cosh are."""
    form = x.format
    code, r = _reduce(clamp(x, form.lowest, form.highest + 1.0), form.ln2, 2 * form.bias - 1)
    return _times_power_of_two(polynomial(form.exp, r), code)


def _sinh(x: Vector) -> Vector:
    """By (e + e / (e + 1)) / 2, e = exp(|x|) - 1; from 20 on, it is half of exp(|x|)."""
    size = abs(x)
    less = _expm1(clamp(size, 0.0, 20.0))
    y = select(size > 20.0, _half_exp(size), 0.5 * (less + less / (less + 1.0)))
    return intrinsic("copysign", y, x)


def _cosh(x: Vector) -> Vector:
    half = _half_exp(abs(x))
    return half + 0.25 / half


def _split(x: Vector) -> tuple[Vector, Vector]:
    """Find n and f so that x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for a positive finite x."""
    form = x.format
    lowest = form.bits_of(math.sqrt(0.5))
    subnormal = x < 2.0 ** (1 - form.bias)
    x = select(subnormal, x * 2.0**form.mantissa, x)
    code = x.bits() + (form.bits_of(1.0) - lowest)
    # An integer below 2^mantissa, put into the bits of that power of two, is added to it.
    n = ((code >> form.mantissa) | form.bits_of(2.0**form.mantissa)).real() - (2.0**form.mantissa + form.bias)
    n = select(subnormal, n - float(form.mantissa), n)
    return n, ((code & (2**form.mantissa - 1)) + lowest).real() - 1.0


def _log_tail(f: Vector) -> Vector:
    """What log(1 + f) is less than f, by log(1 + f) = 2 atanh(s), s = f / (2 + f)."""
    s = f / (f + 2.0)
    half = 0.5 * f * f
    square = s * s
    return half - s * muladd(square, polynomial(f.format.log, square), half)


def _on_positive(x: Vector, log: Vector) -> Vector:
    """What a logarithm of x is: -infinity at 0, infinity at infinity, NaN below 0 and at NaN."""
    other = select(x.equals(0.0), -math.inf, select(x < 0.0, math.nan, x))
    return select((x > 0.0) & (x < math.inf), log, other)


def _log_from(n: Vector, f: Vector) -> Vector:
    high, low = n.format.ln2
    return muladd(n, high, f - muladd(n, -low, _log_tail(f)))


def _log(x: Vector) -> Vector:
    return _on_positive(x, _log_from(*_split(x)))


def _log2(x: Vector) -> Vector:
    """Exact at powers of two."""
    n, f = _split(x)
    return _on_positive(x, muladd(f - _log_tail(f), 1 / _LN2, n))


def _log1p(x: Vector) -> Vector:
    """By log(2^n (1 + f + 2^-n e)), where e is what rounding 1 + x has lost."""
    form = x.format
    total, lost = _two_sum(x, x.like(1.0))
    n, f = _split(total)
    f = select(x < 4 / form.tiny, muladd(_power_of_two((form.integral + form.bias - n).bits(), form), lost, f), f)
    return select(abs(x) < form.tiny, x, _on_positive(total, _log_from(n, f)))


#: From here on, sqrt(1 + x^2) and sqrt(x^2 - 1) are x.
_VAST = 2.0**30


def _log_of_twice(x: Vector) -> Vector:
    n, f = _split(x)
    return _on_positive(x, _log_from(n + 1.0, f))


def _asinh(x: Vector) -> Vector:
    """By log(1 + x + x^2 / (1 + sqrt(1 + x^2)))."""
    size = abs(x)
    near = select(size > _VAST, 1.0, size)
    square = near * near
    y = _log1p(near + square / (1.0 + intrinsic("sqrt", 1.0 + square)))
    return intrinsic("copysign", select(size > _VAST, _log_of_twice(size), y), x)


def _acosh(x: Vector) -> Vector:
    """By log(1 + t + sqrt(2 t + t^2)), t = x - 1."""
    t = select(x > _VAST, 1.0, x - 1.0)
    y = _log1p(t + intrinsic("sqrt", t * (t + 2.0)))
    return select(x < 1.0, math.nan, select(x > _VAST, _log_of_twice(x), y))


def _atanh(x: Vector) -> Vector:
    """By log(1 + 2 x / (1 - x)) / 2."""
    size = abs(x)
    return intrinsic("copysign", 0.5 * _log1p((size + size) / (1.0 - size)), x)


def _quadrant(x: Vector) -> tuple[Vector, Vector]:
    """Reduce by multiples of pi/2, in double precision; return the multiple in the lowest bits, and the remainder."""
    wide = x.cast("fpext", ir.DoubleType()) if x.format is FLOAT else x
    code, r = _reduce(wide, _HALF_PI)
    r = clamp(r, -0.8, 0.8)  # of the largest numbers not even the remainder is known
    if x.format is FLOAT:
        return code.cast("trunc", ir.IntType(32)), r.cast("fptrunc", ir.FloatType())
    return code, r


def _sine(code: Vector, r: Vector) -> Vector:
    """The sine of n pi/2 + r, n in the lowest bits of `code`."""
    form, square = r.format, r * r
    sine = r * polynomial([1.0, *form.sin], square)
    cosine = polynomial([1.0, -0.5, *form.cos], square)
    value = select((code & 1).equals(0), sine, cosine)
    return (value.bits() ^ ((code & 2) << (form.bits - 2))).real()


def _sin(x: Vector) -> Vector:
    """To within `ULP` up to 1.6e6, to within 2^-52 |x| up to 1e12, and never outside [-1, 1]."""
    return _sine(*_quadrant(x))


def _cos(x: Vector) -> Vector:
    """As `sin`."""
    code, r = _quadrant(x)
    return _sine(code + 1, r)


def _erf(x: Vector) -> Vector:
    """By 1 - exp(-s(x)): s is smooth, and its relative error becomes no larger in the result."""
    numerator, denominator = x.format.erf
    t = select(abs(x) > x.format.erf_one, x.format.erf_one, abs(x))
    return intrinsic("copysign", _expm1(-t * (polynomial(numerator, t) / polynomial(denominator, t))), x)


def _octant(y: Vector, x: Vector) -> tuple[Vector, Vector]:
    """Find n and t so that the angle of (x, y), both positive, is n pi/4 + atan(t), |t| <= 1/2.

    A quotient of 1/2 goes to the side that has no sum of the two, so each comparison is exact, and so is y - x.
    """
    flat, steep = y + y < x, x + x < y
    t = select(steep, -x, select(flat, y, y - x)) / select(steep, y, select(flat, x, y + x))
    return select(steep, 2.0, select(flat, t.like(0.0), 1.0)), t


def _angle(n: Vector, t: Vector) -> Vector:
    """The angle n pi/4 + atan(t)."""
    high, low = t.format.quarter_pi
    square = t * t
    return muladd(n, high, muladd(n, low, muladd(t * square, polynomial(t.format.atan, square), t)))


def _atan(x: Vector) -> Vector:
    return intrinsic("copysign", _angle(*_octant(abs(x), x.like(1.0))), x)


def _atan2(y: Vector, x: Vector) -> Vector:
    """C's atan2: of zeros and infinities by their signs."""
    long, high = abs(x), abs(y)
    equal = long.equals(high)  # also of zeros and infinities
    long, high = select(equal, 1.0, long), select(equal & (high > 0.0), 1.0, high)
    largest = 2.0**x.format.bias  # twice as much is infinite
    scale = select((long > largest / 2) | (high > largest / 2), long.like(0.25), 1.0)
    n, t = _octant(high * scale, long * scale)
    left = intrinsic("copysign", x.like(1.0), x) < 0.0
    return intrinsic("copysign", _angle(select(left, 4.0 - n, n), select(left, -t, t)), y)


def _round(x: Vector) -> Vector:
    """Half to even. LLVM's own would call libm on a processor without SSE 4.1."""
    size, unit = abs(x), 2.0**x.format.mantissa
    return select(size < unit, intrinsic("copysign", (size + unit) - unit, x), x)


def _floor(x: Vector) -> Vector:
    nearest = _round(x)
    return select(nearest > x, nearest - 1.0, nearest)


_Pair = tuple[Vector, Vector]  # an unevaluated sum, the second far smaller than the first


def _two_sum(a: Vector, b: Vector) -> _Pair:
    """The sum, and what rounding has lost of it (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Vector, b: Vector) -> _Pair:
    """The product, and what rounding has lost of it (Dekker), in double precision, without fused multiply-add."""
    a_high, b_high = ((v.bits() & -(2**27)).real() for v in (a, b))
    a_low, b_low = a - a_high, b - b_high
    product = a * b
    return product, (a_high * b_high - product) + a_high * b_low + a_low * b_high + a_low * b_low


def _times(a: _Pair, b: _Pair) -> _Pair:
    product, lost = _two_product(a[0], b[0])
    lost = lost + (a[0] * b[1] + a[1] * b[0])
    total = product + lost
    return total, lost - (total - product)


def _log2_pair(x: Vector) -> _Pair:
    """By log2(2^n (1 + f)) = n + 2/ln2 s (1 + s^2 (1/3 + ...)), s = f / (2 + f), to 2^-65.

    The two small constants are what 1/3 and 2/ln2 lose as doubles.
    """
    n, f = _split(x)
    d = f + 2.0
    s = f / d
    product, lost = _two_product(s, d)
    s_pair = s, (f - product - lost - s * (f - (d - 2.0))) / d
    square = _times(s_pair, s_pair)
    rest = square[0] * polynomial([c / 2 for c in x.format.log[1:]], square[0])
    third = rest + 1 / 3
    series = _times(square, (third, (1 / 3 - third) + rest + 1.850371707708594e-17))
    total, lost = _two_sum(x.like(1.0), series[0])
    log = _times(_times(s_pair, (total, lost + series[1])), (x.like(2 / _LN2), x.like(4.0710547481862066e-17)))
    total, lost = _two_sum(n, log[0])
    return total, lost + log[1]


def _positive_power(x: Vector, exponent: Vector) -> Vector:
    """The power of a positive finite x."""
    if x.format is FLOAT:
        wide = [v.cast("fpext", ir.DoubleType()) for v in (x, exponent)]
        return _exp2(_log2(wide[0]) * wide[1]).cast("fptrunc", ir.FloatType())
    bounded = clamp(exponent, -(2.0**70), 2.0**70)  # where every power but that of 1 is 0 or infinite
    total, rest = _times(_log2_pair(x), (bounded, x.like(0.0)))
    return _exp2(total, clamp(rest, -1e-12, 1e-12))


def _pow(x: Vector, exponent: Vector) -> Vector:
    """C's pow: 1 where the exponent is 0 or x is 1, NaN where x < 0 and the exponent is no integer."""
    size, half = abs(x), 0.5 * exponent
    odd = _round(exponent).equals(exponent) & _round(half).differs(half)
    power = _positive_power(size, exponent)
    vast = size.equals(math.inf)
    limit = select((exponent < 0.0) ^ vast, math.inf, size.like(0.0))
    power = select((size.equals(0.0) | vast) & exponent.equals(exponent), limit, power)
    power = select(size.equals(size), power, size)
    power = intrinsic("copysign", power, select(odd, x, 0.0))
    power = select((x < 0.0) & (size < math.inf) & _round(exponent).differs(exponent), math.nan, power)
    one = exponent.equals(0.0) | x.equals(1.0) | (x.equals(-1.0) & abs(exponent).equals(math.inf))
    return select(one, 1.0, power)


def _repeated(start: Sequence[Vector], step: Callable[..., tuple[Sequence[Vector], Vector]]) -> list[Vector]:
    """Apply a step to vectors, at least once, as long as it says so for any of the lanes."""
    b = start[0].builder
    before, body, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(body)
    b.position_at_end(body)
    phis = [b.phi(vector.value.type) for vector in start]
    results, again = step(*(Vector(b, phi) for phi in phis))
    for phi, first, following in zip(phis, start, results, strict=True):
        phi.add_incoming(first.value, before)
        phi.add_incoming(following.value, b.block)
    lanes = ir.IntType(again.value.type.count)
    b.cbranch(b.icmp_unsigned("!=", b.bitcast(again.value, lanes), lanes(0)), body, after)
    b.position_at_end(after)
    return list(results)


def _fmod(x: Vector, y: Vector) -> Vector:
    """By long division: y is doubled as often as it fits, then taken off and halved again. Each step is exact."""
    known = (abs(x) < math.inf) & (abs(y) > 0.0)
    rest, size = select(known, abs(x), 0.0), select(known, abs(y), math.inf)

    def double(part: Vector) -> tuple[Sequence[Vector], Vector]:
        fits = (part + part < rest) | (part + part).equals(rest)
        return [select(fits, part + part, part)], fits

    def take(rest: Vector, part: Vector) -> tuple[Sequence[Vector], Vector]:
        rest = select(rest < part, rest, select(part < size, rest, rest - part))
        part = select(size < part, part * 0.5, part)
        return [rest, part], (size < part) | (size < rest) | size.equals(rest)

    (part,) = _repeated([size], double)
    rest, _ = _repeated([rest, part], take)
    rest = select(known, rest, select(x.equals(x), math.nan, x))
    return intrinsic("copysign", select(y.equals(y), rest, y), x)


def _remainder(x: Vector, y: Vector) -> Vector:
    """What is left of x / y rounded down: of the sign of y."""
    rest = _fmod(x, y)
    return select(rest.differs(0.0) & ((rest < 0.0) ^ (y < 0.0)), rest + y, rest)


@dataclass(frozen=True)
class _Function:
    """An operation that is a function of the module.

    Attributes:
        body: What it computes.
        single, double: Its largest error for float and for double, in units in the last place of the true result.
    """

    body: Callable[..., Vector]
    single: float = 0
    double: float = 0


_CONTRACT = ("contract",)  # a product and a sum may become one instruction

# From one number to the next, tanh may step back by 4 units in the last place, sinh and erf by 3, sigmoid, asinh
# and atan by 2, the other growing functions by 1.
_TABLE: Mapping[str, Callable[..., ir.Value] | _Function] = {
    "positive": lambda b, x: x,
    "detach": lambda b, x: x,
    "neg": _Function(lambda x: -x),
    "abs": _Function(abs),
    "sign": _Function(lambda x: select(x > 0.0, 1.0, select(x < 0.0, x.like(-1.0), 0.0))),  # 0 for NaN, as in PyTorch
    "floor": _Function(_floor),
    "ceil": _Function(lambda x: -_floor(-x)),
    "round": _Function(_round),
    "trunc": _Function(lambda x: intrinsic("copysign", _floor(abs(x)), x)),
    "exp": _Function(_exp, 1.5, 1.5),
    "exp2": _Function(_exp2, 1.5, 1.5),
    "expm1": _Function(_expm1, 2, 2.5),
    "log": _Function(_log, 1, 1),
    "log2": _Function(_log2, 2, 2),
    "log1p": _Function(_log1p, 1.5, 1.5),
    "sinh": _Function(_sinh, 3, 3),
    "cosh": _Function(_cosh, 2, 2),
    "tanh": _Function(_tanh, 3, 3),
    "asinh": _Function(_asinh, 2, 2),
    "acosh": _Function(_acosh, 3, 3),
    "atanh": _Function(_atanh, 2.5, 2.5),
    "sigmoid": _Function(_sigmoid, 2.5, 2.5),
    "sqrt": _Function(lambda x: intrinsic("sqrt", x), 0.5, 0.5),
    "rsqrt": _Function(lambda x: 1.0 / intrinsic("sqrt", x), 1.5, 1.5),
    "reciprocal": _Function(lambda x: 1.0 / x, 0.5, 0.5),
    "sin": _Function(_sin, 2.5, 2.5),
    "cos": _Function(_cos, 2.5, 2.5),
    "erf": _Function(_erf, 4, 4),
    "atan": _Function(_atan, 2, 2),
    "add": lambda b, x, y: b.fadd(x, y, flags=_CONTRACT),
    "sub": lambda b, x, y: b.fsub(x, y, flags=_CONTRACT),
    "mul": lambda b, x, y: b.fmul(x, y, flags=_CONTRACT),
    "div": lambda b, x, y: b.fdiv(x, y, flags=_CONTRACT),
    "pow": _Function(_pow, 1, 1.5),
    "fmod": _Function(_fmod),
    "remainder": _Function(_remainder, 0.5, 0.5),
    "atan2": _Function(_atan2, 2, 2),
    "maximum": _Function(lambda x, y: select(x.equals(x), select(x > y, x, y), x)),  # NaN if either is
    "minimum": _Function(lambda x, y: select(x.equals(x), select(x < y, x, y), x)),
    "lt": lambda b, x, y: b.fcmp_ordered("<", x, y),
    "le": lambda b, x, y: b.fcmp_ordered("<=", x, y),
    "gt": lambda b, x, y: b.fcmp_ordered(">", x, y),
    "ge": lambda b, x, y: b.fcmp_ordered(">=", x, y),
    "eq": lambda b, x, y: b.fcmp_ordered("==", x, y),
    "ne": lambda b, x, y: b.fcmp_unordered("!=", x, y),
    "logical_and": lambda b, x, y: b.and_(x, y),
    "logical_or": lambda b, x, y: b.or_(x, y),
    "logical_not": lambda b, x: b.not_(x),
    "where": lambda b, mask, x, y: b.select(mask, x, y),
    "surrogate": lambda b, value, x, slope: value,
    **dict.fromkeys(("clip_gradient", "clip_gradient_norm"), lambda b, x, bound: x),
}


def _call(name: str, body: Callable[..., Vector], builder: ir.IRBuilder, *arguments: ir.Value) -> ir.Value:
    function = declared(name, *(Vector(builder, argument) for argument in arguments))
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("alwaysinline")
        inner = ir.IRBuilder(function.append_basic_block())
        inner.ret(body(*(Vector(inner, argument) for argument in function.args)).value)
    return builder.call(function, arguments)


#: How to write each operation: from a builder and the arguments to the result.
EMIT: Mapping[str, Callable[..., ir.Value]] = {
    name: functools.partial(_call, name, entry.body) if isinstance(entry, _Function) else entry
    for name, entry in _TABLE.items()
}

#: The largest errors of those that are functions.
ULP: Mapping[str, tuple[float, float]] = {
    name: (entry.single, entry.double) for name, entry in _TABLE.items() if isinstance(entry, _Function)
}
