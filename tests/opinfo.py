"""One row per primitive: sample inputs with what independent code makes of them, and points for gradients.

test_primitives.py makes the matrix of checks from these rows. This module has the elementwise primitives and
what all rows share; the others are in opinfo_structural.py and opinfo_indexed.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from references import each, erfinv, reference
from weft.ir.graph import Graph
from weft.ir.types import (
    BITS,
    COMPLEXES,
    DTYPES,
    FLOATS,
    INTS,
    NUMERIC,
    REALS,
    DType,
    bf16,
    bool_,
    c64,
    c128,
    dtype_of_numpy,
    f16,
    f32,
    f64,
    i32,
    i64,
    u32,
)

INF, NAN = math.inf, math.nan


@dataclass
class Case:
    """Operands, attributes and the expected results.

    ``ulp`` and ``atol`` bound how far eval may be from ``want``; ``drift`` (in ULP, beside ``atol``) how far
    compiled code may be from eval. 0 means equal bits, but for the payload of NaNs.
    """

    arrays: tuple[np.ndarray, ...]
    want: tuple[np.ndarray, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    regions: tuple[Graph, ...] = ()
    ulp: float = 0
    drift: float = 0
    atol: float = 0

    def __str__(self) -> str:
        shown = ", ".join(f"{dtype_of_numpy(a.dtype).name}{list(a.shape)}" for a in self.arrays)
        return f"({shown}; {self.attrs})"


@dataclass
class Point:
    """Operands at which the gradient is checked: f64 and complex128 ones are varied, others are not."""

    arrays: tuple[np.ndarray, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    regions: tuple[Graph, ...] = ()
    order: int = 2


@dataclass
class Row:
    name: str
    cases: Callable[[], Iterator[Case]]
    points: Callable[[], Iterator[Point]]


ROWS: dict[str, Row] = {}


def no_points() -> Iterator[Point]:
    return iter(())


def row(
    name: str, cases: Callable[[], Iterator[Case]], points: Callable[[], Iterator[Point]] = no_points
) -> None:
    """Add a row to the table."""
    assert name not in ROWS, name
    ROWS[name] = Row(name, cases, points)


def rng() -> np.random.Generator:
    return np.random.default_rng(20)


# --- sample values -------------------------------------------------------------------------------


def pool(dtype: DType) -> np.ndarray:
    """A few dozen values of a dtype: the special ones and ordinary ones."""
    r = rng()
    if dtype is bool_:
        return r.integers(0, 2, 24).astype(np.bool_)
    if dtype.is_integer:
        info = np.iinfo(dtype.np)
        edges = [0, 1, 2, 3, 7, 10, info.max, info.max - 1, info.min, info.min + 1]
        if dtype.is_signed:
            edges += [-1, -2, -3, -7, -10]
        return np.array(edges + list(r.integers(0, 100, 9)), dtype.np)
    if dtype.is_complex:
        return (r.normal(size=24) + 1j * r.normal(size=24)).astype(dtype.np)
    limits = {f16: (6e-8, 65504.0), bf16: (1e-40, 3e38), f32: (1e-45, 3.4e38), f64: (5e-324, 1.7e308)}
    low, high = limits[dtype]
    specials = [0.0, 1.0, 0.5, 1.5, 2.5, 2.0, 3.0, 0.1, 100.0, 1000.0, INF, low, high]
    values = np.array(specials + [-v for v in specials] + [NAN])
    with np.errstate(over="ignore"):
        return np.concatenate([values, r.normal(size=12), r.uniform(-1, 1, 9)]).astype(dtype.np)


def layouts(dtype: DType, values: np.ndarray) -> Iterator[np.ndarray]:
    """The values; for f32 and i64 also 0-d, empty, transposed, strided, reversed and broadcast arrays."""
    yield values
    if dtype not in (f32, i64):
        return
    yield values[5].reshape(())
    yield np.empty((2, 0, 3), dtype.np)
    yield values[:12].reshape(3, 4).T
    yield values[::3]
    yield values[::-1]
    yield np.broadcast_to(values[:3], (2, 3))


def pairs(dtype: DType) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every value with every other, and the layouts."""
    values = pool(dtype)
    x, y = np.meshgrid(values, values)
    yield x.ravel(), y.ravel()
    if dtype in (f32, i64):
        yield from zip(layouts(dtype, values), layouts(dtype, values[::-1]), strict=True)


# --- expectations --------------------------------------------------------------------------------


def wrap(values: Any, dtype: DType) -> np.ndarray:
    """Python integers as an array of an integer dtype, modulo its width."""
    mask = 2**dtype.bits - 1
    flat = [int(v) & mask for v in np.ravel(values)]
    return np.array(flat, f"u{dtype.itemsize}").view(dtype.np).reshape(np.shape(values))


def on_ints(fn: Callable[..., int]) -> Callable[..., np.ndarray]:
    """A function of Python integers over arrays, exact and then wrapped."""

    def apply(*xs: np.ndarray) -> np.ndarray:
        out = np.empty(xs[0].shape, object)
        for i in np.ndindex(xs[0].shape):
            out[i] = fn(*(int(x[i]) for x in xs))
        return wrap(out, dtype_of_numpy(xs[0].dtype))

    return apply


def in_f64(fn: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A float function computed in f64 (f64 in long double) and rounded once."""

    def apply(*xs: np.ndarray) -> np.ndarray:
        wide = np.longdouble if xs[0].dtype == np.float64 else np.float64
        with np.errstate(all="ignore"):
            out = np.asarray(fn(*(x.astype(wide) for x in xs)))
            return out.astype(xs[0].dtype) if out.dtype.kind == "f" else out

    return apply


def as_complex(fn: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def apply(*xs: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(fn(*(x.astype(np.complex128) for x in xs))).astype(xs[0].dtype)

    return apply


# --- rows of one operand -------------------------------------------------------------------------

EXACT = (0.0, 0.0)
LIBRARY = (4.0, 8.0)  # ULP: numpy's f32 functions, and those against ours


def unary(
    name: str,
    floats: Callable[..., Any] | None,
    *,
    ints: Callable[..., Any] | None = None,
    complexes: Callable[..., Any] | None = None,
    dtypes: Sequence[DType] = FLOATS,
    at: tuple[float, float] | None = None,
    error: tuple[float, float] = EXACT,
    attrs: dict[str, Any] | None = None,
    atol: float = 0,
    order: int = 2,
) -> None:
    """A row for an elementwise primitive of one operand; ``at`` bounds the points for gradients."""

    def expectation(dtype: DType) -> Callable[..., np.ndarray]:
        if dtype.is_complex:
            assert complexes is not None
            return as_complex(complexes)
        if dtype.is_floating_point:
            assert floats is not None
            return in_f64(floats)
        assert ints is not None
        return ints

    def cases() -> Iterator[Case]:
        for dtype in dtypes:
            fn = expectation(dtype)
            ulp, drift = error if dtype.is_inexact else EXACT
            if dtype.is_complex:
                ulp, drift = 16.0, 0.0  # run by numpy either way
            for x in layouts(dtype, pool(dtype)):
                yield Case((x,), (fn(x),), dict(attrs or {}), (), ulp, drift, atol)

    def points() -> Iterator[Point]:
        if at is None:
            return
        r = rng()
        yield Point((r.uniform(*at, 6),), dict(attrs or {}), (), order)
        yield Point((r.uniform(*at, (2, 3)).T,), dict(attrs or {}), (), order)
        if c128 in dtypes:
            z = r.normal(size=4) * 0.4 + 0.2j + 1j * r.uniform(0.1, 0.5, 4)
            yield Point((z,), dict(attrs or {}), (), order)

    row(name, cases, points)


FC = (*FLOATS, *COMPLEXES)
LIB: dict[str, Any] = {"error": LIBRARY, "dtypes": FC}

for _name, _fn, _at in (
    ("exp", np.exp, (-2, 2)),
    ("exp2", np.exp2, (-2, 2)),
    ("expm1", np.expm1, (-2, 2)),
    ("log", np.log, (0.2, 4)),
    ("log2", np.log2, (0.2, 4)),
    ("log1p", np.log1p, (-0.7, 4)),
    ("sin", np.sin, (-3, 3)),
    ("cos", np.cos, (-3, 3)),
    ("tan", np.tan, (-1.2, 1.2)),
    ("asin", np.arcsin, (-0.8, 0.8)),
    ("acos", np.arccos, (-0.8, 0.8)),
    ("atan", np.arctan, (-2, 2)),
    ("sinh", np.sinh, (-2, 2)),
    ("cosh", np.cosh, (-2, 2)),
    ("tanh", np.tanh, (-2, 2)),
    ("asinh", np.arcsinh, (-2, 2)),
    ("acosh", np.arccosh, (1.3, 4)),
    ("atanh", np.arctanh, (-0.8, 0.8)),
):
    unary(_name, _fn, complexes=_fn, at=_at, **LIB)

unary("sqrt", np.sqrt, complexes=np.sqrt, at=(0.2, 4), error=(0, 0), dtypes=FC)
unary("rsqrt", lambda x: 1 / np.sqrt(x), complexes=lambda x: 1 / np.sqrt(x), at=(0.2, 4), **LIB)


def _polygamma(n: int) -> Callable[..., np.ndarray]:
    """digamma (n = 0) and its derivative, for real x: the recurrence up to 60 and Stirling's series."""

    def fn(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.longdouble)
        low = x < 0
        y = np.where(low, 1 - x, x)
        sign, factorial = (-1.0) ** (n + 1), math.factorial(max(n, 0))
        total = np.zeros_like(y)
        for _ in range(60):
            near = y < 60
            total = total + np.where(near, sign * factorial / y ** (n + 1), 0)
            y = np.where(near, y + 1, y)
        if n == 0:
            z = 1 / (y * y)
            out = np.log(y) - 0.5 / y - z * (1 / 12 - z * (1 / 120 - z / 252)) + total
            r = np.longdouble(np.pi) * (x - np.rint(x))
            out = np.where(low, out - np.longdouble(np.pi) / np.tan(r), out)
            out = np.where(low & (x == np.floor(x)), NAN, out)
            return np.where(x == 0, np.copysign(INF, -x), np.where(x == INF, INF, out))
        assert n == 1
        z = 1 / y
        out = total + z + z**2 / 2 + z**3 / 6 - z**5 / 30 + z**7 / 42 - z**9 / 30
        s = np.sin(np.longdouble(np.pi) * (x - np.rint(x)))
        out = np.where(low, np.longdouble(np.pi) ** 2 / s**2 - out, out)
        return np.where((x <= 0) & (x == np.floor(x)), INF, np.where(x == INF, 0, out))

    return fn


unary("erf", each(math.erf), at=(-2, 2), error=(2, 4))
unary("erfc", each(math.erfc), at=(-2, 2), error=(2, 8))
unary("erfinv", lambda x: erfinv(x.astype(np.float64)), at=(-0.8, 0.8), error=(4, 4))
unary("lgamma", reference("lgamma"), at=(0.5, 4), error=(8, 8), atol=4e-15)
unary("digamma", _polygamma(0), at=(0.5, 4), error=(64, 8), atol=1e-13)
unary("polygamma", _polygamma(1), at=(0.5, 4), error=(64, 64), attrs={"n": 1}, atol=1e-13)

unary("neg", np.negative, ints=on_ints(lambda x: -x), complexes=np.negative, dtypes=NUMERIC, at=(-2, 2))
unary("sign", lambda x: np.where(x > 0, 1.0, np.where(x < 0, -1.0, 0.0)),
      ints=on_ints(lambda x: (x > 0) - (x < 0)), dtypes=REALS, at=(0.5, 2))  # fmt: skip
unary("floor", np.floor, ints=on_ints(int), dtypes=REALS, at=(0.2, 0.8))
unary("ceil", np.ceil, ints=on_ints(int), dtypes=REALS, at=(0.2, 0.8))
unary("rint", np.rint, ints=on_ints(int), dtypes=REALS, at=(0.6, 0.9))
unary("trunc", np.trunc, ints=on_ints(int), dtypes=REALS, at=(0.2, 0.8))


def _abs_cases() -> Iterator[Case]:
    for dtype in REALS:
        fn = in_f64(np.abs) if dtype.is_floating_point else on_ints(abs)
        for x in layouts(dtype, pool(dtype)):
            yield Case((x,), (fn(x),))
    for dtype in COMPLEXES:
        z = pool(dtype)
        size = np.sqrt(z.real.astype(np.float64) ** 2 + z.imag.astype(np.float64) ** 2)
        yield Case((z,), (size.astype(z.real.dtype),), ulp=2)


def _abs_points() -> Iterator[Point]:
    yield Point((np.array([-2.0, -0.3, 0.4, 1.7]),))
    yield Point((np.array([1 + 2j, -0.5 + 0.3j, 2 - 1j]),))


row("abs", _abs_cases, _abs_points)


def _not_cases() -> Iterator[Case]:
    for dtype in BITS:
        for x in layouts(dtype, pool(dtype)):
            yield Case((x,), (on_ints(lambda v: ~v)(x) if dtype is not bool_ else x == 0,))


row("bit_not", _not_cases)

# --- rows of two operands ------------------------------------------------------------------------


def binary(
    name: str,
    floats: Callable[..., Any] | None = None,
    *,
    ints: Callable[..., Any] | None = None,
    bools: Callable[..., Any] | None = None,
    complexes: Callable[..., Any] | None = None,
    dtypes: Sequence[DType] = FLOATS,
    points: Callable[[], Iterator[Point]] = no_points,
    error: tuple[float, float] = EXACT,
    divides: bool = False,
) -> None:
    """A row for an elementwise primitive of two operands. ``divides``: an integer 0 on the right is an error,
    and no case.
    """

    def cases() -> Iterator[Case]:
        for dtype in dtypes:
            kind = "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "int"
            fn = {"complex": complexes and as_complex(complexes), "float": floats and in_f64(floats),
                  "int": ints}[kind] if dtype is not bool_ else bools  # fmt: skip
            assert fn is not None, (name, dtype)
            ulp, drift = error if dtype.is_inexact else EXACT
            ulp, drift = (64.0, 0.0) if dtype.is_complex else (ulp, drift)  # run by numpy either way
            for x, y in pairs(dtype):
                if divides and dtype.is_integer:
                    y = np.where(y == 0, np.ones_like(y), y)
                yield Case((x, y), (fn(x, y),), {}, (), ulp, drift)

    row(name, cases, points)


def two(
    x: tuple[float, float], y: tuple[float, float], complexes: bool = False
) -> Callable[[], Iterator[Point]]:
    """Points with the operands between these bounds."""

    def points() -> Iterator[Point]:
        r = rng()
        yield Point((r.uniform(*x, 5), r.uniform(*y, 5)))
        yield Point((r.uniform(*x, ()), r.uniform(*y, ())))
        if complexes:
            z = r.normal(size=(2, 3)) + 1j * r.uniform(0.2, 1, (2, 3))
            yield Point((z[0] + 1, z[1]))

    return points


EVERY = DTYPES
binary("add", np.add, ints=on_ints(lambda x, y: x + y), bools=lambda x, y: x | y, complexes=np.add,
       dtypes=EVERY, points=two((-2, 2), (-2, 2), True))  # fmt: skip
binary("sub", np.subtract, ints=on_ints(lambda x, y: x - y), complexes=np.subtract, dtypes=NUMERIC,
       points=two((-2, 2), (-2, 2), True))  # fmt: skip
binary("mul", np.multiply, ints=on_ints(lambda x, y: x * y), bools=lambda x, y: x & y, complexes=np.multiply,
       dtypes=EVERY, points=two((-2, 2), (-2, 2), True))  # fmt: skip


def _c_div(x: int, y: int) -> int:
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def _division(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """C's quotient; 0 where it is undefined: the lowest number by -1."""
    out = on_ints(_c_div)(x, y)
    if x.dtype.kind == "i":
        out = np.where((x == np.iinfo(x.dtype).min) & (y == -1), np.zeros_like(out), out)
    return out


def _c_rem(x: int, y: int) -> int:
    return x - _c_div(x, y) * y


def _mod_points() -> Iterator[Point]:
    yield Point((np.array([2.3, -2.3, 5.1, -0.4]), np.array([0.7, 0.7, -1.5, 2.0])))


def _int_power(x: int, y: int) -> int:
    if y < 0:
        return x ** (y % 2) if x in (1, -1) else 0
    return pow(x, y, 2**64)


binary("div", np.divide, ints=_division, complexes=np.divide, dtypes=NUMERIC,
       points=two((-2, 2), (0.5, 2), True), divides=True)  # fmt: skip
binary("rem", np.fmod, ints=on_ints(_c_rem), dtypes=REALS, points=_mod_points, divides=True)
binary("pow", np.power, ints=on_ints(_int_power), complexes=np.power, dtypes=NUMERIC,
       points=two((0.3, 2), (-2, 2), True), error=(4, 8))  # fmt: skip


def _box_muller_cases() -> Iterator[Case]:
    """Uniform numbers, the first never 0; far from the zeros of the cosine, where errors are relative."""
    u = np.append(rng().uniform(0, 1, 62), [1.0, 2.0**-53])
    v = np.append(rng().uniform(-0.2, 0.2, 62), [0.0, 0.5])
    for x, y in ((u, v), (u.reshape(8, 8), v.reshape(8, 8)), (u[3], v[3]), (u[:0], v[:0])):
        out = np.sqrt(np.log(x) * -2) * np.cos(y * (2 * np.pi))
        yield Case((np.asarray(x), np.asarray(y)), (np.asarray(out),), {}, (), 16.0, 16.0)


row("box_muller", _box_muller_cases)
binary("atan2", np.arctan2, points=two((-2, 2), (0.5, 2)), error=LIBRARY)


def _maximum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where((x != x) | (y != y), NAN, np.where(x > y, x, y))


def _minimum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where((x != x) | (y != y), NAN, np.where(x < y, x, y))


def _extreme_points() -> Iterator[Point]:
    yield Point((np.array([1.0, -2.0, 0.3]), np.array([0.5, 1.0, 0.4])))


ORDERED = (*REALS, bool_)
binary(
    "maximum", _maximum, ints=on_ints(max), bools=lambda x, y: x | y, dtypes=ORDERED, points=_extreme_points
)
binary(
    "minimum", _minimum, ints=on_ints(min), bools=lambda x, y: x & y, dtypes=ORDERED, points=_extreme_points
)
binary(
    "copysign",
    lambda x, y: np.where(np.signbit(y), -np.abs(x), np.abs(x)),
    points=two((0.5, 2), (-2, -0.5)),
)
binary("bit_and", ints=on_ints(lambda x, y: x & y), bools=lambda x, y: x * y, dtypes=BITS)
binary("bit_or", ints=on_ints(lambda x, y: x | y), bools=lambda x, y: x + y, dtypes=BITS)
binary("bit_xor", ints=on_ints(lambda x, y: x ^ y), bools=lambda x, y: x != y, dtypes=BITS)


def _shift(fn: Callable[[int, int, int], int]) -> Callable[..., np.ndarray]:
    def apply(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        bits = 8 * x.dtype.itemsize
        return on_ints(lambda v, k: fn(v, min(k, bits) if k >= 0 else bits, bits))(x, n)

    return apply


binary("shl", ints=_shift(lambda x, n, bits: x << n), dtypes=INTS)
binary("shr", ints=_shift(lambda x, n, bits: x >> n), dtypes=INTS)


def _comparison(name: str, fn: Callable[..., Any], dtypes: Sequence[DType]) -> None:
    """Compared as Python numbers, one by one."""

    def cases() -> Iterator[Case]:
        for dtype in dtypes:
            for x, y in pairs(dtype):
                out = np.empty(x.shape, np.bool_)
                for i in np.ndindex(x.shape):
                    out[i] = fn(x[i].astype(object), y[i].astype(object))
                yield Case((x, y), (out,))

    row(name, cases)


_comparison("eq", lambda x, y: x == y, DTYPES)
_comparison("ne", lambda x, y: x != y, DTYPES)
_comparison("lt", lambda x, y: x < y, ORDERED)
_comparison("le", lambda x, y: x <= y, ORDERED)
_comparison("gt", lambda x, y: x > y, ORDERED)
_comparison("ge", lambda x, y: x >= y, ORDERED)

# --- selection, conversion, complex parts --------------------------------------------------------


def _where_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for x, y in zip(layouts(dtype, pool(dtype)), layouts(dtype, pool(dtype)[::-1]), strict=True):
            c = rng().integers(0, 2, x.shape).astype(np.bool_)
            out = np.empty(x.shape, x.dtype)
            for i in np.ndindex(x.shape):
                out[i] = x[i] if c[i] else y[i]
            yield Case((c, x, y), (out,))


def _where_points() -> Iterator[Point]:
    c = np.array([True, False, True])
    yield Point((c, np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])))
    yield Point((c, np.array([1.0 + 1j, 2.0, 3.0]), np.array([4.0, 5.0j, 6.0])))


row("where", _where_cases, _where_points)


def _to_int(v: float, dtype: DType) -> int:
    info = np.iinfo(dtype.np)
    if v != v:
        return 0
    return int(info.max if v >= info.max else info.min if v <= info.min else math.trunc(v))


def converted(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Conversion by Python numbers: to int truncates and saturates, to half rounds by way of f32."""
    src = dtype_of_numpy(x.dtype)
    if dtype is bool_:
        return np.array([bool(v != 0) for v in x.ravel()], np.bool_).reshape(x.shape)
    if src.is_complex and not dtype.is_complex:
        x, src = x.real, f32
    if dtype.is_integer:
        if src.is_inexact:
            return wrap(np.array([_to_int(float(v), dtype) for v in x.ravel()], object), dtype).reshape(
                x.shape
            )
        return wrap(np.array([int(v) for v in x.ravel()], object), dtype).reshape(x.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        return (x.astype(np.float32) if dtype in (f16, bf16) else x).astype(dtype.np)


def _convert_cases() -> Iterator[Case]:
    for src in DTYPES:
        for dst in DTYPES:
            x = pool(src)
            yield Case((x,), (converted(x, dst),), {"dtype": dst})
    for x in layouts(f32, pool(f32)):
        yield Case((x,), (converted(x, i32),), {"dtype": i32})


def _convert_points() -> Iterator[Point]:
    yield Point((np.array([1.5, -2.25]),), {"dtype": f64})
    yield Point((np.array([1.5, -2.25]),), {"dtype": c128})
    yield Point((np.array([1.5 + 1j, -2.25 - 3j]),), {"dtype": f64})


row("convert", _convert_cases, _convert_points)


def _bitcast_cases() -> Iterator[Case]:
    same = [[d for d in (*INTS, *FLOATS) if d.bits == bits] for bits in (8, 16, 32, 64)]
    for group in same:
        for src in group:
            for dst in group:
                x = pool(src)
                yield Case((x,), (np.frombuffer(x.tobytes(), dst.np),), {"dtype": dst})
    for x in layouts(f32, pool(f32)):
        yield Case((x,), (np.frombuffer(x.tobytes(), np.uint32).reshape(x.shape),), {"dtype": u32})


row("bitcast", _bitcast_cases)


def _complex_cases() -> Iterator[Case]:
    for dtype in (f32, f64):
        for x, y in pairs(dtype):
            out = np.empty((*x.shape, 2), dtype.np)
            out[..., 0], out[..., 1] = x, y
            yield Case((x, y), (out.view((c64 if dtype is f32 else c128).np)[..., 0],))


def _part_cases(part: Callable[[complex], complex], real: bool) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for dtype in COMPLEXES:
            z = pool(dtype)
            want = np.array([part(complex(v)) for v in z])
            kind = want.real.astype(z.real.dtype) if real else want.astype(z.dtype)
            yield Case((z,), (kind,))
            yield Case((z[:12].reshape(3, 4).T,), (kind[:12].reshape(3, 4).T,))
            yield Case((z[3].reshape(()),), (kind[3].reshape(()),))

    return cases


def _part_points() -> Iterator[Point]:
    yield Point((np.array([1 + 2j, -0.5 + 0.3j]),))


row("complex", _complex_cases, two((-1, 1), (-1, 1)))
row("real", _part_cases(lambda v: v.real, True), _part_points)
row("imag", _part_cases(lambda v: v.imag, True), _part_points)
row("conj", _part_cases(lambda v: v.conjugate(), False), _part_points)
