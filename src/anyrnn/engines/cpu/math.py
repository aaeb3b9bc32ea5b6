"""Elementary functions on vectors, emitted as LLVM IR: polynomials and bit arithmetic; no call of libm, few branches.

`FUNCTIONS` has them by PyTorch's names, each ``(builder, *arguments) -> value``, on vectors of float or double of any
length. Each becomes an internal function of the module, marked always to be inlined, so that the IR stays short and
readable: ``call <16 x float> @"tanh.v16f32"(...)``. `ULP` has their largest errors.

The arithmetic is right with and without fused multiply-add: `_muladd` is fused where the processor can, and where a
product has to be exact it is so either way. No fast-math flag is used, so NaN, infinities, signed zeros and subnormals
are what IEEE 754 and PyTorch make of them. A function that is computed by an identity has it in its docstring.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class _Format:
    """A floating-point format, and the polynomials that suit it, lowest power first.

    The polynomials are minimax: Remez's exchange algorithm in 200-bit arithmetic (the tests have it), the coefficients
    rounded one after the other, the lowest power first, and the remaining ones fitted again after each. The errors
    given are relative to the function that is wanted, for float and for double.

    Attributes:
        bits: The size of the format.
        mantissa: The number of stored mantissa bits.
        lowest: exp of it, and of all below, rounds to 0.
        highest: exp of it, and of all above, rounds to infinity.
        ln2: ln 2 in two parts, the first so short that its product with an exponent is exact.
        exp: exp(r), |r| <= ln(2) / 2, to 3.5e-9 and 6e-18; the first two coefficients are 1.
        tanh: (tanh(r) / r - 1) / r^2 in r^2, |r| <= ln(2) / 4, to 5.6e-8 and 4.5e-18.
        log: (2 atanh(s) / s - 2) / s^2 in s^2, |s| <= 0.1716 = (sqrt(2) - 1) / (sqrt(2) + 1), to 8.5e-10 and 6e-19.
        sin: (sin(r) / r - 1) / r^2 in r^2, |r| <= pi / 4, to 4e-9 and 6.5e-18.
        cos: ((cos(r) - 1) / r^2 + 1/2) / r^2 in r^2, |r| <= pi / 4, to 1.2e-10 and 6e-20.
        erf: Numerator and denominator of -log(1 - erf(x)) / x, 0 <= x <= erf_one, to 3e-9 and 2e-17.
        erf_one: erf of it, and of all above, rounds to 1.
    """

    bits: int
    mantissa: int
    lowest: float
    highest: float
    ln2: tuple[float, float]
    exp: tuple[float, ...]
    tanh: tuple[float, ...]
    log: tuple[float, ...]
    sin: tuple[float, ...]
    cos: tuple[float, ...]
    erf: tuple[tuple[float, ...], tuple[float, ...]]
    erf_one: float

    @property
    def bias(self) -> int:
        """The exponent field of 1."""
        return (1 << (self.bits - self.mantissa - 2)) - 1

    @property
    def integral(self) -> float:
        """A number so large that adding it rounds to an integer, which then stands in the lowest bits of the sum."""
        return 1.5 * 2.0**self.mantissa

    @property
    def tiny(self) -> float:
        """Below it, a function that is 0 at 0 with slope 1 equals its argument."""
        return 2.0 ** -(self.mantissa + 2)

    def bits_of(self, number: float) -> int:
        return int(np.array(number, f"f{self.bits // 8}").view(f"i{self.bits // 8}"))


# fmt: off
_FLOAT = _Format(
    bits=32, mantissa=23, lowest=-104.0, highest=89.0, ln2=(0.693359375, -2.12194440e-4),
    exp=(1.0, 1.0, 0.4999999403953552, 0.16666516661643982, 0.04166828468441963, 0.008369149640202522,
         0.0013817104045301676),
    tanh=(-0.3333127200603485, 0.13110610842704773),
    log=(0.6666677594184875, 0.3997758626937866, 0.29870691895484924),
    sin=(-0.16666655242443085, 0.008332189172506332, -0.0001951828453456983),
    cos=(0.04166664555668831, -0.0013887309469282627, 2.4432367354165763e-05),
    erf=((1.3593368530273438, 1.8280797004699707, 1.1014071702957153, 0.3380141258239746, 0.044857125729322433),
         (1.2046809196472168, 0.9404250383377075, 0.33579593896865845, 0.04487724229693413)),
    erf_one=3.93,
)
_DOUBLE = _Format(
    bits=64, mantissa=52, lowest=-746.0, highest=710.0, ln2=(0.6931471803691238, 1.9082149292705877e-10),
    exp=(1.0, 1.0, 0.5, 0.16666666666666433, 0.04166666666660388, 0.008333333333500599, 0.0013888888926830933,
         0.00019841269464896188, 2.4801508634595893e-05, 2.755764210506337e-06, 2.7625207553756095e-07,
         2.4977977152033745e-08),
    tanh=(-0.3333333333333248, 0.13333333332782188, -0.05396825277932244, 0.021869370514795542,
          -0.008857302100894466, 0.0034447557035984762),
    log=(0.6666666666666666, 0.40000000000002256, 0.2857142857009958, 0.22222222519929297, 0.1818178436595261,
         0.15386757409657023, 0.13256815110756215, 0.1319636523744484),
    sin=(-0.1666666666666663, 0.00833333333332184, -0.00019841269829370023, 2.755731354672025e-06,
         -2.5050735571805194e-08, 1.5895449193574568e-10),
    cos=(0.041666666666666595, -0.0013888888888873338, 2.4801587288996926e-05, -2.755731421493572e-07,
         2.0875705037561476e-09, -1.1358727383196699e-11),
    erf=((1.1283791670955126, 2.5229252462907334, 2.6694725501294663, 1.7139149208789912, 0.7201468129529724,
          0.1997971193576991, 0.03495449686839547, 0.0033664079505675106, 0.0001182525744308923),
         (1.0, 1.671694700619622, 1.331525865475178, 0.6323789724288392, 0.18868089758550177, 0.03439572677915135,
          0.0033639674434998447, 0.00011827360988208393)),
    erf_one=5.95,
)
# fmt: on


class _Splat(ir.Constant):  # type: ignore[misc]  # llvmlite has no types
    """A vector constant written once: ir.Constant would spell it out for every lane."""

    def _get_reference(self) -> str:
        return f"splat ({self.type.element} {self.constant[0].get_reference()})"


def _operator(instruction: str, *, reflected: bool = False) -> Callable[[_Vector, _Vector | float], _Vector]:
    def apply(self: _Vector, other: _Vector | float) -> _Vector:
        left, right = (self.like(other), self) if reflected else (self, self.like(other))
        emit = getattr(self.builder, instruction if self.integer else "f" + instruction)
        return _Vector(self.builder, emit(left.value, right.value))

    return apply


def _comparison(operator: str) -> Callable[[_Vector, _Vector | float], _Vector]:  # false where either is NaN
    def compare(self: _Vector, other: _Vector | float) -> _Vector:
        emit = self.builder.icmp_signed if self.integer else self.builder.fcmp_ordered
        return _Vector(self.builder, emit(operator, self.value, self.like(other).value))

    return compare


class _Vector:
    """An LLVM vector of floats, integers or truth values with Python's operators; a number is spread over the lanes."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def integer(self) -> bool:
        return isinstance(self.value.type.element, ir.IntType)

    @property
    def format(self) -> _Format:
        return _FLOAT if self.value.type.element == ir.FloatType() else _DOUBLE

    def like(self, other: _Vector | float) -> _Vector:
        return other if isinstance(other, _Vector) else _Vector(self.builder, _Splat(self.value.type, other))

    def cast(self, instruction: str, element: ir.Type) -> _Vector:
        to = ir.VectorType(element, self.value.type.count)
        return _Vector(self.builder, getattr(self.builder, instruction)(self.value, to))

    def bits(self) -> _Vector:
        return self.cast("bitcast", ir.IntType(self.format.bits))

    def real(self) -> _Vector:
        return self.cast("bitcast", {32: ir.FloatType(), 64: ir.DoubleType()}[self.value.type.element.width])

    __add__, __radd__ = _operator("add"), _operator("add", reflected=True)
    __sub__, __rsub__ = _operator("sub"), _operator("sub", reflected=True)
    __mul__, __rmul__ = _operator("mul"), _operator("mul", reflected=True)
    __truediv__, __rtruediv__ = _operator("div"), _operator("div", reflected=True)
    __and__, __or__, __xor__ = _operator("and_"), _operator("or_"), _operator("xor")
    __lshift__, __rshift__ = _operator("shl"), _operator("lshr")
    __lt__, __gt__ = _comparison("<"), _comparison(">")
    equals, differs = _comparison("=="), _comparison("!=")

    def __neg__(self) -> _Vector:
        return _Vector(self.builder, self.builder.fneg(self.value))

    def __abs__(self) -> _Vector:
        return _intrinsic("fabs", self)


def _intrinsic(name: str, *arguments: _Vector) -> _Vector:
    function = _declared(f"llvm.{name}", *arguments)  # llvmlite's own declare_intrinsic knows no vectors
    return _Vector(arguments[0].builder, arguments[0].builder.call(function, [a.value for a in arguments]))


def _declared(name: str, *arguments: _Vector) -> ir.Function:
    """Find or declare a function of these arguments in the module; the result is of their common type."""
    first, module = arguments[0], arguments[0].builder.module
    kind = first.value.type
    symbol = f"{name}.v{kind.count}f{first.format.bits}"
    return module.globals.get(symbol) or ir.Function(module, ir.FunctionType(kind, [kind] * len(arguments)), symbol)


def _muladd(a: _Vector, b: _Vector | float, c: _Vector | float) -> _Vector:
    return _intrinsic("fmuladd", a, a.like(b), a.like(c))


def _select(condition: _Vector, yes: _Vector | float, no: _Vector | float) -> _Vector:
    kind = yes if isinstance(yes, _Vector) else no
    assert isinstance(kind, _Vector)  # one of the two says of what type the result is
    return _Vector(kind.builder, kind.builder.select(condition.value, kind.like(yes).value, kind.like(no).value))


def _clamp(x: _Vector, low: float, high: float) -> _Vector:
    """One instruction a side, and NaN stays NaN."""
    x = _select(x > high, high, x)
    return _select(x < low, low, x)


def _polynomial(coefficients: Sequence[float], x: _Vector) -> _Vector:
    """Horner's rule: the fewest instructions, and neighbouring evaluations fill the latency."""
    value = x.like(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = _muladd(value, x, coefficient)
    return value


def _reduce(x: _Vector, step: Sequence[float], offset: int = 0) -> tuple[_Vector, _Vector]:
    """Find the integer n nearest to x / step, and r = x - n step; return n + offset, in the lowest bits, and r.

    The step is the sum of its parts; n times each part but the last has to be exact.
    """
    shift = x.format.integral + offset
    code = _muladd(x, 1 / sum(step), shift)
    n = code - shift
    for part in step:
        x = _muladd(n, -part, x)
    return code.bits(), x


def _power_of_two(code: _Vector, form: _Format) -> _Vector:
    """2^n from n + bias in the lowest bits; what stands above them is shifted out."""
    return (code << form.mantissa).real()


def _times_power_of_two(x: _Vector, code: _Vector) -> _Vector:
    """Multiply by 2^n, from n + 2 bias, in two steps: 2^n itself may be infinite or subnormal where x 2^n is not."""
    half = code >> 1
    return x * _power_of_two(half, x.format) * _power_of_two(code - half, x.format)


_LN2 = math.log(2.0)
# 33, 33, 33 and 53 bits: the remainder of the double nearest to a multiple of pi/2 is as small as 1e-16.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21, 8.4784276603689e-32)


def _exp(x: _Vector) -> _Vector:
    """By exp(n ln2 + r) = 2^n exp(r)."""
    form = x.format
    code, r = _reduce(_clamp(x, form.lowest, form.highest), form.ln2, 2 * form.bias)
    return _times_power_of_two(_polynomial(form.exp, r), code)


def _exp2(x: _Vector, rest: _Vector | None = None) -> _Vector:
    """By 2^(n + r) = 2^n exp(r ln2); `rest`, if there is one, is a small number that belongs to x."""
    form = x.format
    code, r = _reduce(_clamp(x, form.lowest / _LN2, form.highest / _LN2), (1.0,), 2 * form.bias)
    r = r if rest is None else r + rest
    return _times_power_of_two(_polynomial(form.exp, r * _LN2), code)


def _expm1(x: _Vector) -> _Vector:
    """By 2^n (exp(r) - 1) + (2^n - 1), halved and doubled again, so that 2^n is finite up to the largest result."""
    form = x.format
    code, r = _reduce(_clamp(x, -40.0, form.highest), form.ln2, form.bias - 1)
    half = _power_of_two(code, form)
    less = _muladd(_polynomial(form.exp[2:], r) * r, r, r)
    return _select(abs(x) < form.tiny, x, 2.0 * _muladd(half, less, half - 0.5))


def _sigmoid(x: _Vector) -> _Vector:
    """By exp(r) / (exp(r) + 2^-n), both scaled down by 2^64, so that 2^-n is finite down to the smallest result."""
    form = x.format
    code, r = _reduce(_clamp(x, form.lowest, 40.0), [-part for part in form.ln2], form.bias - 64)
    power = _polynomial([c * 2.0**-64 for c in form.exp], r)
    return power / (power + _power_of_two(code, form))


def _tanh(x: _Vector) -> _Vector:
    """By (t (2^n + 1) + 2^n - 1) / (t (2^n - 1) + 2^n + 1), x = n ln2 / 2 + r, t = tanh(r)."""
    form = x.format
    # One part is enough: where n is not 0, the slope of tanh makes up for what it lacks.
    code, r = _reduce(_clamp(x, -20.0, 20.0), (_LN2 / 2,), form.bias)
    t = r * _polynomial([1.0, *form.tanh], r * r)
    power = _power_of_two(code, form)
    below, above = 1.0 - power, power + 1.0  # `below` is +0 at n = 0, and subtracting that keeps the sign of -0
    return _muladd(t, above, -below) / _muladd(-t, below, above)


def _split(x: _Vector) -> tuple[_Vector, _Vector]:
    """Find n and f so that x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for a positive finite x."""
    form = x.format
    lowest = form.bits_of(math.sqrt(0.5))
    subnormal = x < 2.0 ** (1 - form.bias)
    x = _select(subnormal, x * 2.0**form.mantissa, x)
    code = x.bits() + (form.bits_of(1.0) - lowest)
    # An integer below 2^mantissa, put into the bits of that power of two, is added to it.
    n = ((code >> form.mantissa) | form.bits_of(2.0**form.mantissa)).real() - (2.0**form.mantissa + form.bias)
    n = _select(subnormal, n - float(form.mantissa), n)
    return n, ((code & (2**form.mantissa - 1)) + lowest).real() - 1.0


def _log_tail(f: _Vector) -> _Vector:
    """What log(1 + f) is less than f, by log(1 + f) = 2 atanh(s), s = f / (2 + f)."""
    s = f / (f + 2.0)
    half = 0.5 * f * f
    square = s * s
    return half - s * _muladd(square, _polynomial(f.format.log, square), half)


def _on_positive(x: _Vector, log: _Vector) -> _Vector:
    """What a logarithm of x is: -infinity at 0, infinity at infinity, NaN below 0 and at NaN."""
    other = _select(x.equals(0.0), -math.inf, _select(x < 0.0, math.nan, x))
    return _select((x > 0.0) & (x < math.inf), log, other)


def _log_from(n: _Vector, f: _Vector) -> _Vector:
    high, low = n.format.ln2
    return _muladd(n, high, f - _muladd(n, -low, _log_tail(f)))


def _log(x: _Vector) -> _Vector:
    return _on_positive(x, _log_from(*_split(x)))


def _log2(x: _Vector) -> _Vector:
    """Exact at powers of two."""
    n, f = _split(x)
    return _on_positive(x, _muladd(f - _log_tail(f), 1 / _LN2, n))


def _log1p(x: _Vector) -> _Vector:
    """By log(2^n (1 + f + 2^-n e)), where e is what rounding 1 + x has lost."""
    form = x.format
    total, lost = _two_sum(x, x.like(1.0))
    n, f = _split(total)
    f = _select(x < 4 / form.tiny, _muladd(_power_of_two((form.integral + form.bias - n).bits(), form), lost, f), f)
    return _select(abs(x) < form.tiny, x, _on_positive(total, _log_from(n, f)))


def _quadrant(x: _Vector) -> tuple[_Vector, _Vector]:
    """Reduce by multiples of pi/2, in double precision; return the multiple in the lowest bits, and the remainder."""
    wide = x.cast("fpext", ir.DoubleType()) if x.format is _FLOAT else x
    code, r = _reduce(wide, _HALF_PI)
    r = _clamp(r, -0.8, 0.8)  # of the largest numbers not even the remainder is known
    if x.format is _FLOAT:
        return code.cast("trunc", ir.IntType(32)), r.cast("fptrunc", ir.FloatType())
    return code, r


def _sine(code: _Vector, r: _Vector) -> _Vector:
    """The sine of n pi/2 + r, n in the lowest bits of `code`."""
    form, square = r.format, r * r
    sine = r * _polynomial([1.0, *form.sin], square)
    cosine = _polynomial([1.0, -0.5, *form.cos], square)
    value = _select((code & 1).equals(0), sine, cosine)
    return (value.bits() ^ ((code & 2) << (form.bits - 2))).real()


def _sin(x: _Vector) -> _Vector:
    """To within `ULP` up to 1.6e6, to within 2^-52 |x| up to 1e12, and never outside [-1, 1]."""
    return _sine(*_quadrant(x))


def _cos(x: _Vector) -> _Vector:
    """As `sin`."""
    code, r = _quadrant(x)
    return _sine(code + 1, r)


def _erf(x: _Vector) -> _Vector:
    """By 1 - exp(-s(x)): s is smooth, and its relative error becomes no larger in the result."""
    numerator, denominator = x.format.erf
    t = _select(abs(x) > x.format.erf_one, x.format.erf_one, abs(x))
    return _intrinsic("copysign", _expm1(-t * (_polynomial(numerator, t) / _polynomial(denominator, t))), x)


def _round(x: _Vector) -> _Vector:
    """Half to even. LLVM's own would call libm on a processor without SSE 4.1."""
    size, unit = abs(x), 2.0**x.format.mantissa
    return _select(size < unit, _intrinsic("copysign", (size + unit) - unit, x), x)


def _floor(x: _Vector) -> _Vector:
    nearest = _round(x)
    return _select(nearest > x, nearest - 1.0, nearest)


_Pair = tuple[_Vector, _Vector]  # an unevaluated sum, the second far smaller than the first


def _two_sum(a: _Vector, b: _Vector) -> _Pair:
    """The sum, and what rounding has lost of it (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: _Vector, b: _Vector) -> _Pair:
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


def _log2_pair(x: _Vector) -> _Pair:
    """By log2(2^n (1 + f)) = n + 2/ln2 s (1 + s^2 (1/3 + ...)), s = f / (2 + f), to 2^-65.

    The two small constants are what 1/3 and 2/ln2 lose as doubles.
    """
    n, f = _split(x)
    d = f + 2.0
    s = f / d
    product, lost = _two_product(s, d)
    s_pair = s, (f - product - lost - s * (f - (d - 2.0))) / d
    square = _times(s_pair, s_pair)
    rest = square[0] * _polynomial([c / 2 for c in x.format.log[1:]], square[0])
    third = rest + 1 / 3
    series = _times(square, (third, (1 / 3 - third) + rest + 1.850371707708594e-17))
    total, lost = _two_sum(x.like(1.0), series[0])
    log = _times(_times(s_pair, (total, lost + series[1])), (x.like(2 / _LN2), x.like(4.0710547481862066e-17)))
    total, lost = _two_sum(n, log[0])
    return total, lost + log[1]


def _positive_power(x: _Vector, exponent: _Vector) -> _Vector:
    """The power of a positive finite x."""
    if x.format is _FLOAT:
        wide = [v.cast("fpext", ir.DoubleType()) for v in (x, exponent)]
        return _exp2(_log2(wide[0]) * wide[1]).cast("fptrunc", ir.FloatType())
    bounded = _clamp(exponent, -(2.0**70), 2.0**70)  # where every power but that of 1 is 0 or infinite
    total, rest = _times(_log2_pair(x), (bounded, x.like(0.0)))
    return _exp2(total, _clamp(rest, -1e-12, 1e-12))


def _pow(x: _Vector, exponent: _Vector) -> _Vector:
    """C's pow: 1 where the exponent is 0 or x is 1, NaN where x < 0 and the exponent is no integer."""
    size, half = abs(x), 0.5 * exponent
    odd = _round(exponent).equals(exponent) & _round(half).differs(half)
    power = _positive_power(size, exponent)
    vast = size.equals(math.inf)
    limit = _select((exponent < 0.0) ^ vast, math.inf, size.like(0.0))
    power = _select((size.equals(0.0) | vast) & exponent.equals(exponent), limit, power)
    power = _select(size.equals(size), power, size)
    power = _intrinsic("copysign", power, _select(odd, x, 0.0))
    power = _select((x < 0.0) & (size < math.inf) & _round(exponent).differs(exponent), math.nan, power)
    one = exponent.equals(0.0) | x.equals(1.0) | (x.equals(-1.0) & abs(exponent).equals(math.inf))
    return _select(one, 1.0, power)


def _repeated(start: Sequence[_Vector], step: Callable[..., tuple[Sequence[_Vector], _Vector]]) -> list[_Vector]:
    """Apply a step to vectors, at least once, as long as it says so for any of the lanes."""
    b = start[0].builder
    before, body, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(body)
    b.position_at_end(body)
    phis = [b.phi(vector.value.type) for vector in start]
    results, again = step(*(_Vector(b, phi) for phi in phis))
    for phi, first, following in zip(phis, start, results, strict=True):
        phi.add_incoming(first.value, before)
        phi.add_incoming(following.value, b.block)
    lanes = ir.IntType(again.value.type.count)
    b.cbranch(b.icmp_unsigned("!=", b.bitcast(again.value, lanes), lanes(0)), body, after)
    b.position_at_end(after)
    return list(results)


def _fmod(x: _Vector, y: _Vector) -> _Vector:
    """By long division: y is doubled as often as it fits, then taken off and halved again. Each step is exact."""
    known = (abs(x) < math.inf) & (abs(y) > 0.0)
    rest, size = _select(known, abs(x), 0.0), _select(known, abs(y), math.inf)

    def double(part: _Vector) -> tuple[Sequence[_Vector], _Vector]:
        fits = (part + part < rest) | (part + part).equals(rest)
        return [_select(fits, part + part, part)], fits

    def take(rest: _Vector, part: _Vector) -> tuple[Sequence[_Vector], _Vector]:
        rest = _select(rest < part, rest, _select(part < size, rest, rest - part))
        part = _select(size < part, part * 0.5, part)
        return [rest, part], (size < part) | (size < rest) | size.equals(rest)

    (part,) = _repeated([size], double)
    rest, _ = _repeated([rest, part], take)
    rest = _select(known, rest, _select(x.equals(x), math.nan, x))
    return _intrinsic("copysign", _select(y.equals(y), rest, y), x)


# The functions, and their largest errors for float and for double, in units in the last place of the true result. From
# one number to the next, tanh may step back by 4 units, erf by 3, sigmoid by 2, the other growing ones by 1.
_TABLE: Mapping[str, tuple[Callable[..., _Vector], float, float]] = {
    "neg": (lambda x: -x, 0, 0),
    "abs": (abs, 0, 0),
    "exp": (_exp, 1.5, 1.5),
    "exp2": (_exp2, 1.5, 1.5),
    "expm1": (_expm1, 2, 2.5),
    "log": (_log, 1, 1),
    "log2": (_log2, 2, 2),
    "log1p": (_log1p, 1.5, 1.5),
    "tanh": (_tanh, 3, 3),
    "sigmoid": (_sigmoid, 2.5, 2.5),
    "sqrt": (lambda x: _intrinsic("sqrt", x), 0.5, 0.5),
    "rsqrt": (lambda x: 1.0 / _intrinsic("sqrt", x), 1.5, 1.5),
    "reciprocal": (lambda x: 1.0 / x, 0.5, 0.5),
    "sin": (_sin, 2.5, 2.5),
    "cos": (_cos, 2.5, 2.5),
    "erf": (_erf, 4, 4),
    "floor": (_floor, 0, 0),
    "ceil": (lambda x: -_floor(-x), 0, 0),
    "round": (_round, 0, 0),
    "trunc": (lambda x: _intrinsic("copysign", _floor(abs(x)), x), 0, 0),
    "sign": (lambda x: _select(x > 0.0, 1.0, _select(x < 0.0, x.like(-1.0), 0.0)), 0, 0),  # 0 for NaN, as in PyTorch
    "pow": (_pow, 1, 1.5),
    "fmod": (_fmod, 0, 0),
    "maximum": (lambda x, y: _select(x.equals(x), _select(x > y, x, y), x), 0, 0),  # NaN if either is
    "minimum": (lambda x, y: _select(x.equals(x), _select(x < y, x, y), x), 0, 0),
}


def _call(name: str, builder: ir.IRBuilder, *arguments: ir.Value) -> ir.Value:
    function = _declared(name, *(_Vector(builder, argument) for argument in arguments))
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("alwaysinline")
        inner = ir.IRBuilder(function.append_basic_block())
        inner.ret(_TABLE[name][0](*(_Vector(inner, argument) for argument in function.args)).value)
    return builder.call(function, arguments)


FUNCTIONS: Mapping[str, Callable[..., ir.Value]] = {name: functools.partial(_call, name) for name in _TABLE}
ULP: Mapping[str, tuple[float, float]] = {name: (single, double) for name, (_, single, double) in _TABLE.items()}
