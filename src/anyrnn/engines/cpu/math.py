"""Elementary functions on vectors, emitted as LLVM IR: polynomials and bit arithmetic, no branch, no call of libm.

Each is ``(builder, *arguments) -> value`` on vectors of float or double of any length. It becomes an internal function
of the module that is always inlined, so the IR stays short and readable: ``call <16 x float> @"tanh.v16f32"(...)``.

The arithmetic is right with and without fused multiply-add: `_muladd` is fused where the processor can, and no result
leans on the product being exact unless it is exact either way. No fast-math flag is used anywhere, so NaN, infinities,
signed zeros and subnormals are IEEE's. Where a function is defined by an identity, the identity is in its docstring,
with `n` for an integer and `r` for a small remainder.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class _Format:
    """A floating-point format, and the polynomials that suit it, lowest power first.

    Minimax (Remez's exchange algorithm in 200-bit arithmetic), each coefficient rounded in turn, from the lowest power
    up, and the remaining ones fitted again. `APPROXIMATIONS` in the tests has the function, the interval and the error
    of each.

    Attributes:
        bits: The size of the format.
        mantissa: The number of stored mantissa bits.
        lowest: exp of it, and of all below, rounds to 0.
        highest: exp of it, and of all above, rounds to infinity.
        ln2: ln 2 in two parts, the first so short that its product with an exponent is exact.
        erf_one: erf of it, and of all above, rounds to 1.
        exp: exp(r), |r| <= ln(2) / 2; its first two coefficients are 1.
        tanh: (tanh(r) / r - 1) / r^2 in r^2, |r| <= ln(2) / 4.
        log: (2 atanh(s) / s - 2) / s^2 in s^2, |s| <= 0.1716 = (sqrt(2) - 1) / (sqrt(2) + 1).
        sin: (sin(r) / r - 1) / r^2 in r^2, |r| <= pi / 4.
        cos: ((cos(r) - 1) / r^2 + 1/2) / r^2 in r^2, |r| <= pi / 4.
        erf: Numerator and denominator of erf(x) / x in x^2, |x| <= erf_one.
        atan: Numerator and denominator of (atan(x) / x - 1) / x^2 in x^2, |x| <= 1.
    """

    bits: int
    mantissa: int
    lowest: float
    highest: float
    ln2: tuple[float, float]
    erf_one: float
    exp: tuple[float, ...]
    tanh: tuple[float, ...]
    log: tuple[float, ...]
    sin: tuple[float, ...]
    cos: tuple[float, ...]
    erf: tuple[tuple[float, ...], tuple[float, ...]]
    atan: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def bias(self) -> int:
        """The exponent field of 1."""
        return 2 ** (self.bits - self.mantissa - 2) - 1

    @property
    def integral(self) -> float:
        """A number so large that adding it rounds to an integer, which then stands in the lowest bits of the sum."""
        return 1.5 * 2.0**self.mantissa

    @property
    def tiny(self) -> float:
        """Below it, an odd function with slope 1 at 0 equals its argument."""
        return 2.0 ** -(self.mantissa + 2)

    def field(self, number: float) -> int:
        """The bits of a number."""
        code = {32: "<fi", 64: "<dq"}[self.bits]
        return int(struct.unpack("<" + code[2], struct.pack(code[:2], number))[0])


# fmt: off
_FLOAT = _Format(
    bits=32, mantissa=23, lowest=-104.0, highest=89.0, ln2=(0.693359375, -2.12194440e-4), erf_one=3.93,
    exp=(1.0, 1.0, 0.4999999403953552, 0.16666516661643982, 0.04166828468441963, 0.008369149640202522,
         0.0013817104045301676),
    tanh=(-0.33333322405815125, 0.1333114206790924, -0.05271529778838158),
    log=(0.6666677594184875, 0.3997758626937866, 0.29870691895484924),
    sin=(-0.16666655242443085, 0.008332189172506332, -0.0001951828453456983),
    cos=(0.04166664555668831, -0.0013887309469282627, 2.4432367354165763e-05),
    erf=((1.1283791453552359, 0.19078392097327548, 0.05279029273014502, 0.0037796123145254767, 0.00028480852874961544,
          2.0419678873841224e-06),
         (1.0, 0.5024105672447295, 0.11425755502815908, 0.014997442838125308, 0.0011652132430791601,
          3.800404157120357e-05)),
    atan=((-0.33333314737835157, -0.22358424147768508, -0.007179843168761568, 0.0004929074635244903),
          (1.0, 1.2707381705608038, 0.3555409796713746)),
)
_DOUBLE = _Format(
    bits=64, mantissa=52, lowest=-746.0, highest=710.0, ln2=(0.6931471803691238, 1.9082149292705877e-10), erf_one=5.95,
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
    erf=((1.1283791670955126, 0.22050996960498098, 0.06618079211286726, 0.006907876926972115, 0.0008572973000836088,
          5.7149229738773854e-05, 3.911318789885367e-06, 1.7019139271281881e-07, 6.7794937515053745e-09,
          1.7258603454334805e-10, 3.332373026063382e-12, 2.2108475521059522e-14, 1.553081699228089e-17),
         (1.0, 0.528755205728034, 0.13490293516092924, 0.022023594820566674, 0.002570444738981727,
          0.00022671225318278545, 1.554779247463091e-05, 8.379433151832162e-07, 3.528193521718486e-08,
          1.128201102029154e-09, 2.5542528062980082e-11, 3.3044443859027463e-13, 8.766544270762524e-16)),
    atan=((-0.3333333333333315, -0.7466382918244656, -0.585413948339281, -0.19086152971936798, -0.02369983175294426,
           -0.0007486892202964726),
          (1.0, 2.8399148754728625, 3.0316193417478, 1.5077831520423906, 0.3504149763513365, 0.033089027162537164,
           0.0008297402039242405)),
)
# fmt: on


class _Splat(ir.Constant):  # type: ignore[misc]  # llvmlite has no types
    """A vector constant written once: ir.Constant would spell it out for every lane."""

    def _get_reference(self) -> str:
        element = self.type.element
        return f"splat ({element} {ir.Constant(element, self.constant[0].constant).get_reference()})"


class _Vector:
    """A vector of floats, integers or truth values with Python's operators; numbers beside it are spread over it."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def format(self) -> _Format:
        return _FLOAT if self.value.type.element == ir.FloatType() else _DOUBLE

    @property
    def real(self) -> bool:
        return not isinstance(self.value.type.element, ir.IntType)

    def wrap(self, other: _Vector | float) -> _Vector:
        return other if isinstance(other, _Vector) else _Vector(self.builder, _Splat(self.value.type, other))

    def cast(self, how: str, element: ir.Type) -> _Vector:
        """Convert by one of LLVM's cast instructions."""
        value = getattr(self.builder, how)(self.value, ir.VectorType(element, self.value.type.count))
        return _Vector(self.builder, value)

    def as_bits(self) -> _Vector:
        return self.cast("bitcast", ir.IntType(self.format.bits))

    def as_real(self) -> _Vector:
        return self.cast("bitcast", {32: ir.FloatType(), 64: ir.DoubleType()}[self.value.type.element.width])

    def _apply(self, operation: str, other: _Vector | float) -> _Vector:
        operation = "f" + operation if self.real else operation
        return _Vector(self.builder, getattr(self.builder, operation)(self.value, self.wrap(other).value))

    def _compare(self, operator: str, other: _Vector | float) -> _Vector:
        return _Vector(self.builder, self.builder.fcmp_ordered(operator, self.value, self.wrap(other).value))

    def equals(self, other: _Vector | float) -> _Vector:
        if self.real:
            return self._compare("==", other)
        return _Vector(self.builder, self.builder.icmp_signed("==", self.value, self.wrap(other).value))

    def __add__(self, other: _Vector | float) -> _Vector:
        return self._apply("add", other)

    def __sub__(self, other: _Vector | float) -> _Vector:
        return self._apply("sub", other)

    def __mul__(self, other: _Vector | float) -> _Vector:
        return self._apply("mul", other)

    def __truediv__(self, other: _Vector | float) -> _Vector:
        return self._apply("div", other)

    def __radd__(self, other: float) -> _Vector:
        return self.wrap(other) + self

    def __rsub__(self, other: float) -> _Vector:
        return self.wrap(other) - self

    def __rmul__(self, other: float) -> _Vector:
        return self.wrap(other) * self

    def __rtruediv__(self, other: float) -> _Vector:
        return self.wrap(other) / self

    def __neg__(self) -> _Vector:
        return _Vector(self.builder, self.builder.fneg(self.value))

    def __abs__(self) -> _Vector:
        return _intrinsic("fabs", self)

    def __lt__(self, other: _Vector | float) -> _Vector:
        return self._compare("<", other)

    def __gt__(self, other: _Vector | float) -> _Vector:
        return self._compare(">", other)

    def __and__(self, other: _Vector | int) -> _Vector:
        return self._apply("and_", other)

    def __or__(self, other: _Vector | int) -> _Vector:
        return self._apply("or_", other)

    def __xor__(self, other: _Vector | int) -> _Vector:
        return self._apply("xor", other)

    def __lshift__(self, other: int) -> _Vector:
        return self._apply("shl", other)

    def __rshift__(self, other: int) -> _Vector:
        return self._apply("lshr", other)
