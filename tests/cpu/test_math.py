"""The elementary functions: how far from the truth, on which numbers, with and without fused multiply-add."""

from __future__ import annotations

import ctypes
import functools
import itertools
import platform
import re
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from llvmlite import ir
from mpmath import mp

from anyrnn.compiler.ops import OPERATIONS
from anyrnn.engines.cpu.math import EMIT, ULP
from anyrnn.engines.cpu.vectors import DOUBLE as DOUBLE_FORMAT
from anyrnn.engines.cpu.vectors import FLOAT as SINGLE_FORMAT

pytestmark = pytest.mark.grid(2)

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, np.dtype[Any]]

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
HOST = llvm.get_host_cpu_features()
X86 = platform.machine().lower() in {"x86_64", "amd64"}

# name -> LLVM's cpu and features, bytes of a vector
PROCESSORS = {"host": (llvm.get_host_cpu_name(), HOST.flatten(), 64 if HOST.get("avx512f") else 32)}
if X86:
    PROCESSORS["x86-64"] = ("x86-64", "", 16)
    if HOST.get("avx2") and HOST.get("fma"):
        PROCESSORS["haswell"] = ("haswell", "", 32)

UNARY, BINARY = (tuple(name for name in ULP if OPERATIONS[name].arity == arity) for arity in (1, 2))
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
FORMATS = {SINGLE: SINGLE_FORMAT, DOUBLE: DOUBLE_FORMAT}
PADDING = 64  # elements; a multiple of every vector length

every_processor = pytest.mark.parametrize("processor", PROCESSORS)
both_formats = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
needs_long_double = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no 80-bit long double here")


def test_every_operation_of_the_loop_program_has_a_line() -> None:
    assert set(EMIT) == set(OPERATIONS)


# The harness: void f(T *x, ..., T *result, i64 n)


def module(name: str, dtype: np.dtype[Any], lanes: int) -> ir.Module:
    element = ir.FloatType() if dtype == SINGLE else ir.DoubleType()
    arity, vector, size = 1 + (name in BINARY), ir.VectorType(element, lanes), ir.IntType(64)
    result = ir.Module()
    function = ir.Function(result, ir.FunctionType(ir.VoidType(), [ir.PointerType()] * (arity + 1) + [size]), "f")
    *arrays, n = function.args
    before, body, end = (function.append_basic_block() for _ in range(3))
    b = ir.IRBuilder(before)
    b.branch(body)
    b.position_at_end(body)
    i = b.phi(size)
    pointers = [b.gep(array, [i], source_etype=element) for array in arrays]
    x = [b.load(pointer, typ=vector, align=dtype.itemsize) for pointer in pointers[:-1]]
    b.store(EMIT[name](b, *x), pointers[-1], align=dtype.itemsize)
    following = b.add(i, size(lanes))
    i.add_incoming(size(0), before)
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, n), body, end)
    b.position_at_end(end)
    b.ret_void()
    return result


def optimised(name: str, dtype: np.dtype[Any], processor: str, lanes: int | None) -> tuple[Any, Any]:
    cpu, features, width = PROCESSORS[processor]
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="small"
    )
    parsed = llvm.parse_assembly(str(module(name, dtype, lanes or width // dtype.itemsize)))
    parsed.triple = target.triple
    parsed.verify()
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    return parsed, target


def assembly(name: str, dtype: np.dtype[Any], processor: str) -> str:
    parsed, target = optimised(name, dtype, processor, None)
    return str(target.emit_assembly(parsed))


@functools.cache
def compiled(name: str, dtype: np.dtype[Any], processor: str, lanes: int | None = None) -> Callable[..., Array]:
    engine = llvm.create_mcjit_compiler(*optimised(name, dtype, processor, lanes))
    engine.finalize_object()
    pointers = [ctypes.c_void_p] * (2 + (name in BINARY))
    function = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64)(engine.get_function_address("f"))

    def run(*x: Array, _owner: Any = engine) -> Array:
        padded = [np.concatenate([a, np.ones(-len(a) % PADDING, dtype)]) for a in x]
        result = np.full_like(padded[0], np.nan)
        function(*(a.ctypes.data for a in (*padded, result)), len(result))
        return result[: len(x[0])]

    return run


def ulps(got: Array, true: Array) -> Array:
    """The error in units in the last place of the true result; an infinity counts as the first number out of range."""
    info, wide = np.finfo(got.dtype), true.dtype.type
    beyond = np.ldexp(wide(1), info.maxexp)
    a, b = (np.clip(values.astype(wide), -beyond, beyond) for values in (got, true))
    exponent = np.clip(np.frexp(b)[1] - 1, info.minexp, info.maxexp - 1)
    errors = np.abs(a - b) / np.ldexp(wide(1), exponent - info.nmant)
    errors[np.isnan(a) & np.isnan(b)] = 0
    errors[np.isnan(a) != np.isnan(b)] = np.inf
    return np.asarray(errors)


# What is true: numpy in a wider format

TRUE: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "round": np.rint,
    "sign": lambda x: np.where(np.isnan(x), 0, np.sign(x)),
    "erf": lambda x: torch.erf(torch.from_numpy(x)).numpy(),
    "pow": np.power,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "atan2": np.arctan2,
}


def truth(name: str, *x: Array) -> Array:
    with np.errstate(all="ignore"):
        wide = [a.astype(np.float64 if a.dtype == SINGLE else np.longdouble) for a in x]
        return np.asarray(TRUE.get(name, getattr(np, name, None))(*wide))


@functools.cache
def sample(dtype: np.dtype[Any]) -> Array:
    """Every exponent and sign, infinities and NaN by bit patterns; and the places where functions do something."""
    random = np.random.default_rng(0)
    if dtype == SINGLE:
        patterns = np.arange(0, 2**32, 2053, dtype=np.uint32).view(dtype)  # 2 million; 2053 is prime
    else:
        patterns = np.arange(0, 2**64, 2**64 // 150_001, dtype=np.uint64).view(dtype)
    count = len(patterns) // 10
    parts = [random.uniform(-25, 25, count), random.uniform(-760, 760, count), random.normal(1, 0.1, count)]
    parts.append(random.choice([-1, 1], count) * 2.0 ** random.uniform(-30, 20, count))
    patterns = np.where(np.isnan(patterns), dtype.type(np.nan), patterns)  # numpy warns of the ones that signal
    return np.concatenate([patterns, *(part.astype(dtype) for part in parts)])


def argument(name: str, dtype: np.dtype[Any]) -> Array:
    x = sample(dtype)
    if name not in {"sin", "cos"}:
        return x
    zeros = (np.pi / 2 * np.arange(1_000_000)).astype(dtype)  # the nearest numbers, where little is left of them
    return np.concatenate([x[np.abs(x) < 1.6e6], zeros])


@functools.cache
def pairs(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Bases and exponents: any, near 1 with a vast exponent, negative with an integer one; and points around zero."""
    random, count = np.random.default_rng(0), 60_000
    largest = 120 if dtype == SINGLE else 1000
    near = random.normal(0, 1, count) * 2.0 ** -random.uniform(0, np.finfo(dtype).nmant, count)
    parts = [
        (sample(dtype)[:: len(sample(dtype)) // count], random.normal(0, 4, count)),
        (10 ** random.uniform(-3, 3, count), random.uniform(-largest / 3, largest / 3, count)),
        (np.exp2(near), random.uniform(-largest, largest, count) / near),
        (-random.uniform(0, 4, count), random.integers(-60, 60, count)),
        random.normal(0, 1, (2, count)) * 10.0 ** random.uniform(-30, 30, count),
    ]
    rows = [(x[:count].astype(dtype), y[:count].astype(dtype)) for x, y in parts]
    return np.concatenate([x for x, _ in rows]), np.concatenate([y for _, y in rows])


def check(name: str, errors: Array, bound: float, *x: Array) -> None:
    worst = int(np.argmax(errors))
    assert errors[worst] <= bound, f"{name}({', '.join(repr(a[worst]) for a in x)}): {errors[worst]:.3f} ulp"


@pytest.mark.parametrize("name", UNARY)
def test_single_precision_is_as_near_the_truth_as_stated(name: str) -> None:
    x = argument(name, SINGLE)
    true = truth(name, x)
    for processor in PROCESSORS:
        check(f"{processor}: {name}", ulps(compiled(name, SINGLE, processor)(x), true), ULP[name][0], x)


@needs_long_double
@pytest.mark.parametrize("name", [name for name in UNARY if name != "erf"])
def test_double_precision_is_as_near_the_truth_as_stated(name: str) -> None:
    x = argument(name, DOUBLE)
    true = truth(name, x)
    for processor in PROCESSORS:
        check(f"{processor}: {name}", ulps(compiled(name, DOUBLE, processor)(x), true), ULP[name][1], x)


@needs_long_double
@every_processor
def test_double_erf_is_as_near_the_truth_as_stated(processor: str) -> None:
    x = np.concatenate([np.linspace(-6.5, 6.5, 2000), 2.0 ** np.linspace(-1070, 2, 500)])
    with mp.workprec(120):
        true = np.array([np.longdouble(mp.nstr(mp.erf(mp.mpf(float(v))), 25)) for v in x])
    check("erf", ulps(compiled("erf", DOUBLE, processor)(x), true), ULP["erf"][1], x)


@pytest.mark.parametrize("dtype", [SINGLE, pytest.param(DOUBLE, marks=needs_long_double)], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers_are_as_near_the_truth_as_stated(name: str, dtype: np.dtype[Any]) -> None:
    x = pairs(dtype)
    true = truth(name, *x)
    for processor in PROCESSORS:
        check(f"{processor}: {name}", ulps(compiled(name, dtype, processor)(*x), true), ULP[name][dtype == DOUBLE], *x)


@every_processor
@both_formats
def test_sine_and_cosine_of_vast_numbers_lose_accuracy_gradually_and_stay_in_range(
    processor: str, dtype: np.dtype[Any]
) -> None:
    x = sample(dtype)
    x = x[np.isfinite(x)]
    known = np.abs(x) < 2.0**40
    for name in ("sin", "cos"):
        y = compiled(name, dtype, processor)(x)
        assert np.abs(y).max() <= 1
        slack = 2 * np.finfo(dtype).eps + 2.0**-52 * np.abs(x[known].astype(np.float64))
        assert (np.abs(y[known] - truth(name, x[known])) <= slack).all()


# Special values: PyTorch in double precision says what they are


def specials(dtype: np.dtype[Any]) -> Array:
    info = np.finfo(dtype)
    # Not the smallest subnormal, which PyTorch's own log1p turns into 0.
    sizes = [0.0, 1, 0.5, 2, 2.5, 3, 7, 1e3, 41 * info.smallest_subnormal, info.tiny, info.max]
    return np.array([sign * size for size in [*sizes, np.inf, np.nan] for sign in (1, -1)], dtype)


def assert_same(name: str, got: Array, want: Array, *x: Array) -> None:
    with np.errstate(over="ignore"):
        want = want.astype(got.dtype)
    plain = np.isfinite(want) & (want != 0)
    np.testing.assert_array_equal(got[~plain], want[~plain])
    wrong = (np.signbit(got) != np.signbit(want)) & ~np.isnan(want)
    bound, info = ULP[name][got.dtype == DOUBLE], np.finfo(got.dtype)
    slack = (bound + 0.5) * info.eps * np.abs(want[plain]) + bound * info.smallest_subnormal  # `want` is rounded too
    wrong[plain] |= ~(np.abs(got[plain] - want[plain]) <= slack)
    assert not wrong.any(), [a[wrong] for a in (*x, got, want)]


@every_processor
@both_formats
@pytest.mark.parametrize("name", [name for name in UNARY if name not in {"sin", "cos"}])
def test_special_values_are_pytorchs(name: str, dtype: np.dtype[Any], processor: str) -> None:
    x = specials(dtype)
    want = getattr(torch, name)(torch.from_numpy(x.astype(np.float64))).numpy()
    assert_same(name, compiled(name, dtype, processor)(x), want, x)


@every_processor
@both_formats
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_and_cosine_of_zero_subnormals_and_infinity(name: str, dtype: np.dtype[Any], processor: str) -> None:
    x = specials(dtype)
    x = x[(np.abs(x) <= 1e3) | ~np.isfinite(x)]
    want = getattr(torch, name)(torch.from_numpy(x.astype(np.float64))).numpy()
    assert_same(name, compiled(name, dtype, processor)(x), want, x)


@every_processor
@both_formats
@pytest.mark.parametrize("name", BINARY)
def test_special_pairs_are_pytorchs(name: str, dtype: np.dtype[Any], processor: str) -> None:
    x, y = (grid.ravel() for grid in np.meshgrid(specials(dtype), specials(dtype)))
    if name in ("maximum", "minimum"):
        keep = (x != 0) | (y != 0)  # which of two zeros is larger is nobody's business
        x, y = x[keep], y[keep]
    function, wide = getattr(torch, name), [torch.from_numpy(v.astype(np.float64)) for v in (x, y)]
    if name in ("fmod", "remainder"):  # PyTorch's are NaN where the quotient is vast, if they take numbers as vectors
        want = torch.stack([function(a, b) for a, b in zip(*wide, strict=True)]).numpy()
    else:
        want = function(*wide).numpy()
    assert_same(name, compiled(name, dtype, processor)(x, y), want, x, y)


@every_processor
@both_formats
def test_what_is_exact_is_exact(dtype: np.dtype[Any], processor: str) -> None:
    info = np.finfo(dtype)
    n = np.arange(info.minexp - info.nmant, info.maxexp, dtype=dtype)
    powers = np.ldexp(dtype.type(1), n.astype(np.int32))
    assert (compiled("exp2", dtype, processor)(n) == powers).all()
    assert (compiled("log2", dtype, processor)(powers) == n).all()
    x = sample(dtype)
    for name in ("tanh", "erf", "sin", "atan", "sinh", "asinh", "atanh"):
        run, odd = compiled(name, dtype, processor), x[np.abs(x) < 1e6]
        np.testing.assert_array_equal(run(-odd), -run(odd))
    for name, low in (("tanh", -1), ("erf", -1), ("sigmoid", 0)):
        y = compiled(name, dtype, processor)(x)
        assert np.nanmin(y) == low
        assert np.nanmax(y) == 1


STEPS_BACK = {"exp": 1, "exp2": 1, "expm1": 1, "log": 1, "log2": 1, "log1p": 1, "tanh": 4, "sigmoid": 2, "erf": 3,
              "atan": 2, "sinh": 3, "asinh": 2}  # fmt: skip


@pytest.mark.grid(2)
@every_processor
@pytest.mark.parametrize("name", STEPS_BACK)
def test_growing_functions_hardly_step_back(name: str, processor: str) -> None:
    """On runs of neighbouring numbers, above all where the range reduction changes from one n to the next."""
    for start in (0.1, 0.17, 0.34, 0.49, 0.495, 0.51, 0.69, 1.03, 1.49, 1.72, 1.99, 2.42, 5.1, 8.6):
        for sign in (1, -1) if "log" not in name else (1,):
            x = np.sort(sign * (np.float32(start).view(np.int32) + np.arange(300_000, dtype=np.int32)).view(SINGLE))
            y = compiled(name, SINGLE, processor)(x)
            assert (np.diff(y) >= -STEPS_BACK[name] * np.spacing(np.abs(y[1:]))).all(), (start, sign)


# The code


@every_processor
@both_formats
@pytest.mark.parametrize("name", ULP)
def test_nothing_is_called(name: str, dtype: np.dtype[Any], processor: str) -> None:
    assert not re.search(r"\bcall|@PLT|\bbl\b", assembly(name, dtype, processor))


@both_formats
@pytest.mark.parametrize(
    "name, divisions", [("exp", 0), ("tanh", 1), ("sigmoid", 1), ("log", 1), ("sin", 0), ("atan", 1)]
)
def test_divisions_are_few(name: str, divisions: int, dtype: np.dtype[Any]) -> None:
    assert len(re.findall(r"\bv?f?div[ps]?[sd]?\b", assembly(name, dtype, "host"))) == divisions


@pytest.mark.parametrize("name", ULP)
def test_the_length_of_the_vector_changes_nothing(name: str) -> None:
    x = pairs(SINGLE)[: 1 + (name in BINARY)]
    runs = [compiled(name, SINGLE, "host", lanes)(*x) for lanes in (4, 8, 16)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_a_function_is_defined_once_and_its_constants_are_short() -> None:
    result = module("tanh", SINGLE, 16)
    b = ir.IRBuilder(result.get_global("f").append_basic_block())
    one = ir.Constant(ir.VectorType(ir.FloatType(), 16), 1.0)
    EMIT["tanh"](b, EMIT["tanh"](b, one))
    b.ret_void()
    text = str(result)
    assert text.count("define internal") == 1
    assert text.count("declare") == 1
    assert len(text) < 6000


# The polynomials: what they approximate, with what weight, where, and to what error; the same as `Format` says

root = mp.sqrt
POLYNOMIALS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Any, Any, tuple[float, float]]] = {
    "exp": (
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: r**2 / mp.exp(r),
        -mp.ln2 / 2,
        mp.ln2 / 2,
        (3.5e-9, 6e-18),
    ),
    "tanh": (
        lambda z: (mp.tanh(root(z)) / root(z) - 1) / z,
        lambda z: z * root(z) / mp.tanh(root(z)),
        0,
        (mp.ln2 / 4) ** 2,
        (5.6e-8, 4.5e-18),
    ),
    "log": (
        lambda z: (2 * mp.atanh(root(z)) / root(z) - 2) / z,
        lambda z: z * root(z) / (2 * mp.atanh(root(z))),
        0,
        ((root(2) - 1) / (root(2) + 1)) ** 2,
        (8.5e-10, 6e-19),
    ),
    "sin": (
        lambda z: (mp.sin(root(z)) / root(z) - 1) / z,
        lambda z: z * root(z) / mp.sin(root(z)),
        0,
        (mp.pi / 4) ** 2,
        (4e-9, 6.5e-18),
    ),
    "cos": (
        lambda z: ((mp.cos(root(z)) - 1) / z + 0.5) / z,
        lambda z: z**2 / mp.cos(root(z)),
        0,
        (mp.pi / 4) ** 2,
        (1.2e-10, 6e-20),
    ),
    "atan": (
        lambda z: (mp.atan(root(z)) / root(z) - 1) / z,
        lambda z: z * root(z) / mp.atan(root(z)),
        0,
        mp.mpf(1) / 4,
        (5.5e-9, 1.1e-17),
    ),
}


def remez(values: list[Any], weights: list[Any], grid: list[Any], count: int) -> Any:
    """The least possible largest weighted error on a grid of a polynomial with so many coefficients.

    Exchange: the polynomial whose error alternates, equally large, on count + 1 numbers, moved to where it is largest.
    """
    nodes = [round(i * (len(grid) - 1) / count) for i in range(count + 1)]
    for _ in range(8):
        rows = [[*(grid[i] ** k for k in range(count)), (-1) ** j / weights[i]] for j, i in enumerate(nodes)]
        coefficients = list(mp.lu_solve(mp.matrix(rows), mp.matrix([values[i] for i in nodes])))[:-1]
        errors = [w * (v - mp.polyval(coefficients[::-1], x)) for v, w, x in zip(values, weights, grid, strict=True)]
        runs = itertools.groupby(range(len(grid)), key=lambda i: errors[i] > 0)
        nodes = [max(run, key=lambda i: abs(errors[i])) for _, run in runs]
        if len(nodes) != count + 1:  # level to the last digit
            break
    return max(map(abs, errors))


@both_formats
@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_have_the_stated_error_and_hardly_any_other_has_less(name: str, dtype: np.dtype[Any]) -> None:
    function, weight, low, high, stated = POLYNOMIALS[name]
    table = getattr(FORMATS[dtype], name)[2 if name == "exp" else 0 :]
    with mp.workprec(200):
        points = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (i + 0.5) / 160) for i in range(160)]
        values, weights = [function(x) for x in points], [weight(x) for x in points]
        fits = (abs(w * (v - mp.polyval(table[::-1], x))) for v, w, x in zip(values, weights, points, strict=True))
        error = max(fits)
        assert error <= stated[dtype == DOUBLE]
        negligible = np.finfo(dtype).eps / 200
        assert error <= max(3 * remez(values, weights, points, len(table)), negligible)


@both_formats
def test_the_rational_approximation_of_erf_has_the_stated_error(dtype: np.dtype[Any]) -> None:
    form = FORMATS[dtype]
    with mp.workprec(200):
        for i in range(1, 300):
            x = mp.mpf(form.erf_one) * i / 300
            numerator, denominator = (mp.polyval(part[::-1], x) for part in form.erf)
            error = mp.exp(-x * numerator / denominator) - mp.erfc(x)
            assert abs(error) <= {SINGLE: 3e-9, DOUBLE: 2e-17}[dtype] * mp.erf(x)
