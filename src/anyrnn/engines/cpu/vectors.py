"""Vectors of LLVM's with Python's operators, and the formats of their numbers, with the polynomials that suit them.

The arithmetic is right with and without fused multiply-add: `muladd` is fused where the processor can, and where a
product has to be exact it is so either way. No fast-math flag is used, so NaN, infinities, signed zeros and subnormals
are what IEEE 754 and PyTorch make of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Format:
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
        quarter_pi: pi / 4 in two parts, the first so short that its product with 3 is exact.
        atan: (atan(t) / t - 1) / t^2 in t^2, |t| <= 1/2, to 5.5e-9 and 1.1e-17.
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
    quarter_pi: tuple[float, float]
    atan: tuple[float, ...]
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
        """The bits of a number, as an integer."""
        return int(np.array(number, f"f{self.bits // 8}").view(f"i{self.bits // 8}"))


# fmt: off
FLOAT = Format(
    bits=32, mantissa=23, lowest=-104.0, highest=89.0, ln2=(0.693359375, -2.12194440e-4),
    exp=(1.0, 1.0, 0.4999999403953552, 0.16666516661643982, 0.04166828468441963, 0.008369149640202522,
         0.0013817104045301676),
    tanh=(-0.3333127200603485, 0.13110610842704773),
    log=(0.6666677594184875, 0.3997758626937866, 0.29870691895484924),
    sin=(-0.16666655242443085, 0.008332189172506332, -0.0001951828453456983),
    cos=(0.04166664555668831, -0.0013887309469282627, 2.4432367354165763e-05),
    quarter_pi=(0.785398006439209, 1.5695823663008923e-07),
    atan=(-0.3333323299884796, 0.19994167983531952, -0.14174212515354156, 0.10155829787254333, -0.051251739263534546),
    erf=((1.3593368530273438, 1.8280797004699707, 1.1014071702957153, 0.3380141258239746, 0.044857125729322433),
         (1.2046809196472168, 0.9404250383377075, 0.33579593896865845, 0.04487724229693413)),
    erf_one=3.93,
)
DOUBLE = Format(
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
    quarter_pi=(0.7853981633974483, 3.061616997868383e-17),
    atan=(-0.3333333333333298, 0.19999999999903104, -0.14285714276384964, 0.1111111065959353, -0.09090896244776057,
          0.0769207394365112, -0.06663811309941647, 0.05858306965334807, -0.05122063816927732, 0.04186759657545574,
          -0.027441114001687278, 0.010123035277968947),
    erf=((1.1283791670955126, 2.5229252462907334, 2.6694725501294663, 1.7139149208789912, 0.7201468129529724,
          0.1997971193576991, 0.03495449686839547, 0.0033664079505675106, 0.0001182525744308923),
         (1.0, 1.671694700619622, 1.331525865475178, 0.6323789724288392, 0.18868089758550177, 0.03439572677915135,
          0.0033639674434998447, 0.00011827360988208393)),
    erf_one=5.95,
)
# fmt: on


class Splat(ir.Constant):  # type: ignore[misc]  # llvmlite has no types
    """A vector constant written once: ir.Constant would spell it out for every lane."""

    def _get_reference(self) -> str:
        return f"splat ({self.type.element} {self.constant[0].get_reference()})"


def _operator(instruction: str, *, reflected: bool = False) -> Callable[[Vector, Vector | float], Vector]:
    def apply(self: Vector, other: Vector | float) -> Vector:
        left, right = (self.like(other), self) if reflected else (self, self.like(other))
        emit = getattr(self.builder, instruction if self.integer else "f" + instruction)
        return Vector(self.builder, emit(left.value, right.value))

    return apply


def _comparison(operator: str) -> Callable[[Vector, Vector | float], Vector]:  # false where either is NaN
    def compare(self: Vector, other: Vector | float) -> Vector:
        emit = self.builder.icmp_signed if self.integer else self.builder.fcmp_ordered
        return Vector(self.builder, emit(operator, self.value, self.like(other).value))

    return compare


class Vector:
    """An LLVM vector of floats, integers or truth values with Python's operators; a number is spread over the lanes."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def integer(self) -> bool:
        """Its elements are integers or truth values."""
        return isinstance(self.value.type.element, ir.IntType)

    @property
    def format(self) -> Format:
        """The format of its elements."""
        return FLOAT if self.value.type.element == ir.FloatType() else DOUBLE

    def like(self, other: Vector | float) -> Vector:
        """Spread a number over as many lanes, in the same type."""
        return other if isinstance(other, Vector) else Vector(self.builder, Splat(self.value.type, other))

    def cast(self, instruction: str, element: ir.Type) -> Vector:
        """Convert its elements by an instruction of LLVM's."""
        to = ir.VectorType(element, self.value.type.count)
        return Vector(self.builder, getattr(self.builder, instruction)(self.value, to))

    def bits(self) -> Vector:
        """Take its numbers as integers of the same bits."""
        return self.cast("bitcast", ir.IntType(self.format.bits))

    def real(self) -> Vector:
        """Take its integers as numbers of the same bits."""
        return self.cast("bitcast", {32: ir.FloatType(), 64: ir.DoubleType()}[self.value.type.element.width])

    __add__, __radd__ = _operator("add"), _operator("add", reflected=True)
    __sub__, __rsub__ = _operator("sub"), _operator("sub", reflected=True)
    __mul__, __rmul__ = _operator("mul"), _operator("mul", reflected=True)
    __truediv__, __rtruediv__ = _operator("div"), _operator("div", reflected=True)
    __and__, __or__, __xor__ = _operator("and_"), _operator("or_"), _operator("xor")
    __lshift__, __rshift__ = _operator("shl"), _operator("lshr")
    __lt__, __gt__ = _comparison("<"), _comparison(">")
    equals, differs = _comparison("=="), _comparison("!=")

    def __neg__(self) -> Vector:
        return Vector(self.builder, self.builder.fneg(self.value))

    def __abs__(self) -> Vector:
        return intrinsic("fabs", self)


def intrinsic(name: str, *arguments: Vector) -> Vector:
    """Call an intrinsic of LLVM's, whose arguments and result are of one type."""
    function = declared(f"llvm.{name}", *arguments)  # llvmlite's own declare_intrinsic knows no vectors
    return Vector(arguments[0].builder, arguments[0].builder.call(function, [a.value for a in arguments]))


def declared(name: str, *arguments: Vector) -> ir.Function:
    """Find or declare a function of these arguments in the module; the result is of their common type."""
    first, module = arguments[0], arguments[0].builder.module
    kind = first.value.type
    symbol = f"{name}.v{kind.count}f{first.format.bits}"
    return module.globals.get(symbol) or ir.Function(module, ir.FunctionType(kind, [kind] * len(arguments)), symbol)


def muladd(a: Vector, b: Vector | float, c: Vector | float) -> Vector:
    """A b + c, fused where the processor can."""
    return intrinsic("fmuladd", a, a.like(b), a.like(c))


def select(condition: Vector, yes: Vector | float, no: Vector | float) -> Vector:
    """Choose between two for each lane."""
    kind = yes if isinstance(yes, Vector) else no
    assert isinstance(kind, Vector)  # one of the two says of what type the result is
    return Vector(kind.builder, kind.builder.select(condition.value, kind.like(yes).value, kind.like(no).value))


def clamp(x: Vector, low: float, high: float) -> Vector:
    """One instruction a side, and NaN stays NaN."""
    x = select(x > high, high, x)
    return select(x < low, low, x)


def polynomial(coefficients: Sequence[float], x: Vector) -> Vector:
    """Horner's rule: the fewest instructions, and neighbouring evaluations fill the latency."""
    value = x.like(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = muladd(value, x, coefficient)
    return value
