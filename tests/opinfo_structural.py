"""Rows for sources, reductions, contractions and moves. Expectations are loops over indices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from opinfo import COMPLEXES, NAN, ORDERED, Case, Point, pool, rng, row
from weft.ir.types import (
    CPU,
    DTYPES,
    NUMERIC,
    DType,
    bf16,
    bool_,
    c128,
    f16,
    f32,
    f64,
    i32,
    i64,
)

Arrays = tuple[np.ndarray, ...]
FEW = (f32, f64, bf16, i32, bool_)


def sample(dtype: DType, shape: Sequence[int]) -> np.ndarray:
    """Ordinary distinct-ish values of a dtype."""
    r = rng()
    if dtype is bool_:
        return r.integers(0, 2, shape).astype(np.bool_)
    if dtype.is_integer:
        return r.integers(0 if not dtype.is_signed else -9, 10, shape).astype(dtype.np)
    if dtype.is_complex:
        return (r.normal(size=shape) + 1j * r.normal(size=shape)).astype(dtype.np)
    return np.asarray(r.normal(size=shape)).astype(dtype.np)


def wide(x: np.ndarray) -> np.ndarray:
    """For references: halves and f32 in f64."""
    return x.astype(np.float64) if x.dtype.itemsize <= 4 and x.dtype.kind in "fV" else x


def point(*arrays: np.ndarray, order: int = 2, **attrs: Any) -> Point:
    return Point(arrays, attrs, (), order)


def reals(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape) + 5).normal(size=shape)


def complexes(*shape: int) -> np.ndarray:
    return reals(*shape) + 1j * reals(*shape, 1)[..., 0]


# --- sources -------------------------------------------------------------------------------------


def _full_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        value = {"bool": True, "float": -2.5, "complex": 1 - 2j}.get(dtype.category, 7)
        for shape in ((3, 2), (), (0, 2)):
            want = np.empty(shape, dtype.np)
            want[...] = value
            yield Case((), (want,), {"shape": shape, "dtype": dtype, "value": value})
    for value in (math.inf, -math.inf, NAN, -0.0):
        yield Case((), (np.array([value] * 3, np.float32),), {"shape": (3,), "dtype": f32, "value": value})


def _iota_cases() -> Iterator[Case]:
    for dtype in NUMERIC:
        want = np.array([[0, 0, 0], [1, 1, 1]], dtype.np)
        yield Case((), (want,), {"shape": (2, 3), "dtype": dtype, "axis": 0})
    yield Case((), (np.array([[0, 1, 2]] * 2),), {"shape": (2, 3), "dtype": i64, "axis": 1})
    yield Case((), (np.empty((2, 0), np.float32),), {"shape": (2, 0), "dtype": f32, "axis": 1})


def _constant_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case((), (pool(dtype),), {"value": pool(dtype)})
    yield Case((), (np.array(3.0),), {"value": np.array(3.0)})
    yield Case((), (np.empty((0, 2)),), {"value": np.empty((0, 2))})


row("full", _full_cases)
row("iota", _iota_cases)
row("constant", _constant_cases)

# --- reductions ----------------------------------------------------------------------------------


def fold(x: np.ndarray, axes: tuple[int, ...], fn: Callable[[list[Any]], Any], dtype: Any) -> np.ndarray:
    """``fn`` of the list of elements along ``axes`` at each place of the others."""
    kept = [i for i in range(x.ndim) if i not in axes]
    out = np.empty([x.shape[i] for i in kept], dtype)
    for place in np.ndindex(*out.shape):
        key: list[Any] = [slice(None)] * x.ndim
        for i, p in zip(kept, place, strict=True):
            key[i] = p
        out[place] = fn(list(x[tuple(key)].ravel()))
    return out


def _shaped(dtype: DType) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Operands and axes for a reduction."""
    x = sample(dtype, (3, 4, 5))
    yield x, (1,)
    if dtype not in (f32, bf16, i32):
        return
    for axes in ((), (0,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)):
        yield x, axes
    yield sample(dtype, ()), ()
    yield sample(dtype, (7, 300)), (1,)
    yield sample(dtype, (300, 7)), (0,)
    yield sample(dtype, (5, 4, 3)).transpose(2, 0, 1)[:, ::2], (0, 1)
    yield sample(dtype, (2, 0, 3)), (0,)


def close(dtype: DType) -> dict[str, float]:
    """How far a sum in another order may be."""
    if not dtype.is_inexact:
        return {}
    size = {f16: 2e-3, bf16: 2e-2, f64: 1e-13, c128: 1e-13}.get(dtype, 5e-5)
    return {"ulp": 2, "drift": 2, "atol": size}


def _python_sum(values: list[Any]) -> Any:
    return math.fsum(float(v) for v in values)


def _sum_cases() -> Iterator[Case]:
    for dtype in NUMERIC:
        for x, axes in (*_shaped(dtype), (sample(dtype, (2, 0, 3)), (1,))):
            total = x.astype(
                np.complex128 if dtype.is_complex else object if dtype.is_integer else np.float64
            )
            with np.errstate(over="ignore"):
                want = np.asarray(np.sum(total, axis=axes)).astype(dtype.np)
            yield Case((x,), (want,), {"axes": axes}, **close(dtype))
    for special in ([1.0, NAN], [math.inf, 1.0], [math.inf, -math.inf], [3e38, 3e38]):
        x = np.array([special, special[::-1]], np.float32)
        with np.errstate(all="ignore"):
            yield Case((x,), (x[:, 0] + x[:, 1],), {"axes": (1,)})


def _prod_cases() -> Iterator[Case]:
    for dtype in NUMERIC:
        for x, axes in (
            (sample(dtype, (3, 4)), (1,)),
            (sample(dtype, (3, 4)), (0, 1)),
            (sample(dtype, (2, 0)), (1,)),
        ):
            total = x.astype(
                np.complex128 if dtype.is_complex else object if dtype.is_integer else np.float64
            )
            want = np.asarray(np.prod(total, axis=axes))
            if dtype.is_integer:
                want = np.array([int(v) % 2**dtype.bits for v in want.ravel()], object).reshape(want.shape)
                want = want.astype(f"u{dtype.itemsize}").view(dtype.np)
            yield Case((x,), (want.astype(dtype.np),), {"axes": axes}, **close(dtype))
    x = np.array([[0.0, 2.0], [NAN, 0.0], [math.inf, 0.0]], np.float32)
    yield Case((x,), (np.array([0.0, NAN, NAN], np.float32),), {"axes": (1,)})


def best(better: Callable[[Any, Any], bool]) -> Callable[[list[Any]], Any]:
    def choose(values: list[Any]) -> Any:
        out = values[0]
        for v in values:
            if v != v:
                return v
            if better(v, out):
                out = v
        return out

    return choose


def _extreme_cases(better: Callable[[Any, Any], bool]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for dtype in ORDERED:
            for x, axes in _shaped(dtype):
                if not any(x.shape[a] == 0 for a in axes):
                    yield Case((x,), (fold(x, axes, best(better), x.dtype),), {"axes": axes})
        for dtype in (f32, bf16):
            x = pool(dtype).reshape(-1)[:48].reshape(6, 8)
            yield Case((x,), (fold(x, (1,), best(better), x.dtype),), {"axes": (1,)})
            yield Case((x,), (fold(x, (0,), best(better), x.dtype),), {"axes": (0,)})

    return cases


def _logic_cases(fn: Callable[[list[Any]], Any]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for x, axes in (*_shaped(bool_), (sample(bool_, (2, 0)), (1,)), (sample(bool_, (40,)), (0,))):
            yield Case((x,), (fold(x, axes, fn, np.bool_),), {"axes": axes})

    return cases


def _arg_cases(better: Callable[[Any, Any], bool]) -> Callable[[], Iterator[Case]]:
    def place(values: list[Any]) -> int:
        found = best(better)(values)
        return next(i for i, v in enumerate(values) if v == found or v != v)

    def cases() -> Iterator[Case]:
        for dtype in ORDERED:
            x = sample(dtype, (3, 7))
            yield Case((x,), (fold(x, (1,), place, np.int64),), {"axis": 1})
        for dtype in (f32, bf16):
            x = pool(dtype)[:48].reshape(6, 8)
            yield Case((x,), (fold(x, (0,), place, np.int64),), {"axis": 0})
            yield Case((x.T,), (fold(x.T, (0,), place, np.int64),), {"axis": 0})

    return cases


def _fold_points() -> Iterator[Point]:
    yield point(reals(3, 4), axes=(1,))
    yield point(reals(2, 3, 2), axes=(0, 2))
    yield point(reals(4), axes=(0,))


def _sum_points() -> Iterator[Point]:
    yield from _fold_points()
    yield point(complexes(2, 3), axes=(1,))


def _prod_points() -> Iterator[Point]:
    yield from _fold_points()
    yield point(np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]), axes=(1,))
    yield point(complexes(2, 3), axes=(1,))


row("sum", _sum_cases, _sum_points)
row("prod", _prod_cases, _prod_points)
row("reduce_max", _extreme_cases(lambda a, b: a > b), _fold_points)
row("reduce_min", _extreme_cases(lambda a, b: a < b), _fold_points)
row("any", _logic_cases(lambda vs: any(bool(v) for v in vs)))
row("all", _logic_cases(lambda vs: all(bool(v) for v in vs)))
row("argmax", _arg_cases(lambda a, b: a > b))
row("argmin", _arg_cases(lambda a, b: a < b))

# --- running reductions --------------------------------------------------------------------------


def _running(x: np.ndarray, axis: int, reverse: bool, fn: Callable[[list[Any]], Any]) -> np.ndarray:
    out = np.empty(x.shape, x.dtype)
    for place in np.ndindex(*x.shape):
        key: list[Any] = list(place)
        key[axis] = slice(place[axis], None) if reverse else slice(0, place[axis] + 1)
        values = list(x[tuple(key)])
        out[place] = fn(values[::-1] if reverse else values)
    return out


def _float_or_int(fn: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Exact on integers (wrapped), f64 on the others."""

    def apply(values: list[Any]) -> Any:
        dtype = values[0].dtype
        if dtype.kind in "iu":
            bits = 8 * dtype.itemsize
            return np.array(int(fn([int(v) for v in values])) % 2**bits, f"u{bits // 8}").view(dtype)
        return fn([complex(v) if dtype.kind == "c" else float(v) for v in values])

    return apply


def _scan_cases(dtypes: Sequence[DType], fn: Callable[[list[Any]], Any]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for dtype in dtypes:
            x = sample(dtype, (3, 5))
            for axis, reverse in (
                ((0, False), (1, False), (1, True)) if dtype in (f32, i32) else ((1, False),)
            ):
                want = _running(x, axis, reverse, fn)
                yield Case((x,), (want,), {"axis": axis, "reverse": reverse}, **close(dtype))
        x = sample(f32, (5, 3)).T[::2]
        yield Case((x,), (_running(x, 1, False, fn),), {"axis": 1}, **close(f32))
        empty = np.empty((2, 0), np.float32)
        yield Case((empty,), (empty,), {"axis": 1})
        x = np.array([1.0, NAN, 2.0, -1.0], np.float32)
        yield Case((x,), (_running(x, 0, False, fn),), {"axis": 0})

    return cases


def _scan_points() -> Iterator[Point]:
    yield point(reals(2, 4), axis=1, reverse=False)
    yield point(reals(3, 2), axis=0, reverse=True)


def _cumprod_points() -> Iterator[Point]:
    yield from _scan_points()
    yield point(np.array([2.0, 0.0, 3.0, 0.0, 1.5]), axis=0, reverse=False)


row("cumsum", _scan_cases(NUMERIC, _float_or_int(sum)), _scan_points)
row("cumprod", _scan_cases(NUMERIC, _float_or_int(math.prod)), _cumprod_points)
row("cummax", _scan_cases(ORDERED, best(lambda a, b: a > b)), _scan_points)
row("cummin", _scan_cases(ORDERED, best(lambda a, b: a < b)), _scan_points)

# --- contractions --------------------------------------------------------------------------------


def _einsum(spec: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iu":
        return np.einsum(spec, x.astype(np.int64), y.astype(np.int64)).astype(x.dtype)
    kind = np.complex128 if x.dtype.kind == "c" else np.float64
    return np.asarray(np.einsum(spec, x.astype(kind), y.astype(kind))).astype(x.dtype)


def dot(
    spec: str, a: Sequence[int], b: Sequence[int], contract: Any, batch: Any = ((), ())
) -> tuple[Any, ...]:
    return spec, tuple(a), tuple(b), {"contract": contract, "batch": batch}


DOTS = (
    dot("ik,kj->ij", (3, 4), (4, 5), ((1,), (0,))),
    dot("ki,jk->ij", (4, 3), (5, 4), ((0,), (1,))),
    dot("k,k->", (6,), (6,), ((0,), (0,))),
    dot("ik,k->i", (7, 33), (33,), ((1,), (0,))),
    dot("k,kj->j", (33,), (33, 7), ((0,), (0,))),
    dot("i,j->ij", (3,), (4,), ((), ())),
    dot("bik,bkj->bij", (2, 3, 4), (2, 4, 5), ((2,), (1,)), ((0,), (0,))),
    dot("ibk,kbj->bij", (3, 2, 4), (4, 2, 5), ((2,), (0,)), ((1,), (1,))),
    dot("ikl,lkj->ij", (3, 2, 4), (4, 2, 5), ((1, 2), (1, 0))),
    dot("ik,kj->ij", (37, 65), (65, 43), ((1,), (0,))),
    dot("ik,kj->ij", (3, 0), (0, 2), ((1,), (0,))),
    dot("ik,kj->ij", (0, 3), (3, 2), ((1,), (0,))),
)


def _dot_cases() -> Iterator[Case]:
    for dtype in NUMERIC:
        for spec, a, b, attrs in DOTS if dtype in (f32, f64, bf16) else DOTS[:2]:
            x, y = sample(dtype, a), sample(dtype, b)
            yield Case((x, y), (_einsum(spec, x, y),), attrs, **close(dtype))
    x, y = sample(f32, (8, 6)).T[:, ::2], sample(f32, (5, 4)).T
    yield Case((x, y), (_einsum("ik,kj->ij", x, y),), DOTS[0][3], **close(f32))
    x = np.array([[1.0, math.inf], [NAN, 0.0]], np.float32)
    y = np.array([[1.0, 0.0], [2.0, 1.0]], np.float32)
    yield Case((x, y), (np.array([[math.inf, math.inf], [NAN, NAN]], np.float32),), DOTS[0][3])


def _dot_points() -> Iterator[Point]:
    for _, a, b, attrs in (DOTS[0], DOTS[1], DOTS[2], DOTS[3], DOTS[5], DOTS[7], DOTS[8]):
        small = [tuple(min(d, 5) for d in s) for s in (a, b)]
        yield Point((reals(*small[0]), reals(*small[1]) + 0.5), attrs)
    yield Point((complexes(2, 3), complexes(3, 2)), DOTS[0][3])


def _conv_want(
    x: np.ndarray,
    w: np.ndarray,
    *,
    stride: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    groups: int,
) -> np.ndarray:
    """A loop over the results, indexing x by its virtual (padded, dilated) places."""
    rank = x.ndim - 2
    kind = np.complex128 if x.dtype.kind == "c" else np.int64 if x.dtype.kind in "iu" else np.float64
    xs, ws = x.astype(kind), w.astype(kind)
    sizes = []
    for i in range(rank):
        n = (x.shape[2 + i] - 1) * lhs_dilation[i] + 1 if x.shape[2 + i] else 0
        k = (w.shape[2 + i] - 1) * rhs_dilation[i] + 1
        room = n + sum(padding[i]) - k
        sizes.append(room // stride[i] + 1 if room >= 0 else 0)
    out = np.zeros((x.shape[0], w.shape[0], *sizes), kind)
    per, wide_c = w.shape[0] // groups, w.shape[1]
    for place in np.ndindex(*sizes):
        for tap in np.ndindex(*w.shape[2:]):
            at = [
                p * s + t * r - lo
                for p, s, t, r, (lo, _) in zip(place, stride, tap, rhs_dilation, padding, strict=True)
            ]
            if any(
                a % d or not 0 <= a // d < n for a, d, n in zip(at, lhs_dilation, x.shape[2:], strict=True)
            ):
                continue
            src = xs[(slice(None), slice(None), *(a // d for a, d in zip(at, lhs_dilation, strict=True)))]
            for o in range(w.shape[0]):
                c = o // per * wide_c
                out[(slice(None), o, *place)] += src[:, c : c + wide_c] @ ws[(o, slice(None), *tap)]
    return out.astype(x.dtype)


def conv(
    rank: int, stride: Any = None, padding: Any = None, lhs: Any = None, rhs: Any = None, groups: int = 1
) -> Any:
    one = (1,) * rank
    return {
        "stride": stride or one,
        "padding": padding or ((0, 0),) * rank,
        "lhs_dilation": lhs or one,
        "rhs_dilation": rhs or one,
        "groups": groups,
    }


CONVS: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 3, 6, 5), (4, 3, 3, 3), conv(2, padding=((1, 1), (1, 1)))),
    ((2, 3, 7, 8), (4, 3, 3, 2), conv(2, stride=(2, 3), padding=((1, 0), (0, 2)))),
    ((1, 4, 6), (6, 2, 3), conv(1, padding=((2, 2),), rhs=(2,), groups=2)),
    ((2, 2, 5), (3, 2, 3), conv(1, padding=((2, 1),), lhs=(3,))),
    ((1, 2, 4, 3, 4), (3, 2, 2, 2, 2), conv(3, stride=(1, 2, 1), padding=((0, 1), (1, 1), (0, 0)))),
    ((1, 2, 6, 6), (2, 2, 2, 2), conv(2, padding=((-1, 0), (-1, -2)))),
    ((2, 4, 5, 5), (4, 1, 3, 3), conv(2, padding=((1, 1), (1, 1)), groups=4)),
    ((1, 3, 9, 9), (8, 3, 1, 1), conv(2, stride=(2, 2))),
    ((0, 3, 4, 4), (2, 3, 3, 3), conv(2)),
    ((2, 3, 2, 2), (2, 3, 3, 3), conv(2)),
)


def _conv_cases() -> Iterator[Case]:
    for dtype in (f32, f64, bf16, f16, i32, i64, *COMPLEXES):
        for a, b, attrs in CONVS if dtype is f32 else CONVS[:2]:
            x, w = sample(dtype, a), sample(dtype, b)
            yield Case((x, w), (_conv_want(x, w, **attrs),), attrs, **close(dtype))
    x, w = sample(f32, (5, 6, 3, 2)).transpose(3, 2, 1, 0), sample(f32, (4, 3, 3, 3))[:, :, ::-1]
    yield Case((x, w), (_conv_want(x, w, **CONVS[0][2]),), CONVS[0][2], **close(f32))


def _conv_points() -> Iterator[Point]:
    for i in (1, 2, 3, 5):
        a, b, attrs = CONVS[i]
        small = ((1, *a[1:]), b)
        yield Point((reals(*small[0]), reals(*small[1])), attrs, (), 1 if i == 1 else 2)


row("dot_general", _dot_cases, _dot_points)
row("conv", _conv_cases, _conv_points)

# --- moves ---------------------------------------------------------------------------------------


def gathered(shape: Sequence[int], dtype: Any, at: Callable[[tuple[int, ...]], Any]) -> np.ndarray:
    out = np.empty(shape, dtype)
    for place in np.ndindex(*shape):
        out[place] = at(place)
    return out


def moves(attrs_of: Sequence[tuple[tuple[int, ...], dict[str, Any], Callable[..., np.ndarray]]]) -> Any:
    """Cases of a one-operand move: every dtype on the first, layouts of the operand too."""

    def cases() -> Iterator[Case]:
        for i, (shape, attrs, want) in enumerate(attrs_of):
            for dtype in DTYPES if i == 0 else (f32, i64):
                x = sample(dtype, shape)
                yield Case((x,), (want(x),), attrs)
            if shape and min(shape) > 0:
                x = np.asfortranarray(sample(f32, shape))
                yield Case((x,), (want(x),), attrs)
                x = sample(f32, [2 * d for d in shape])[tuple(slice(None, None, 2) for _ in shape)]
                yield Case((x,), (want(x),), attrs)

    def points() -> Iterator[Point]:
        for shape, attrs, _ in attrs_of:
            if min(shape, default=1) > 0:
                yield Point((reals(*shape),), attrs)
        shape, attrs, _ = attrs_of[0]
        yield Point((complexes(*shape),), attrs)

    return cases, points


def linear(shape: Sequence[int], place: tuple[int, ...]) -> int:
    out = 0
    for d, p in zip(shape, place, strict=True):
        out = out * d + p
    return out


def _reshape(shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
    return lambda x: gathered(shape, x.dtype, lambda p: list(x.flat)[linear(shape, p)])


row(
    "reshape",
    *moves(
        [
            (a, {"shape": b}, _reshape(b))
            for a, b in (((3, 4), (2, 6)), ((2, 3), (6,)), ((1, 1), ()), ((), (1,)), ((2, 0), (0, 5)))
        ]
    ),
)


def _permute(perm: tuple[int, ...]) -> Callable[..., np.ndarray]:
    def want(x: np.ndarray) -> np.ndarray:
        def at(place: tuple[int, ...]) -> Any:
            source = [0] * x.ndim
            for o, i in enumerate(perm):
                source[i] = place[o]
            return x[tuple(source)]

        return gathered([x.shape[i] for i in perm], x.dtype, at)

    return want


row(
    "permute",
    *moves(
        [
            (s, {"perm": p}, _permute(p))
            for s, p in (
                ((3, 4), (1, 0)),
                ((2, 3, 4), (2, 0, 1)),
                ((2, 3, 4), (0, 2, 1)),
                ((), ()),
                ((2, 0, 3), (1, 2, 0)),
                ((20, 33), (1, 0)),
            )
        ]
    ),
)


def _broadcast(shape: tuple[int, ...], axes: tuple[int, ...]) -> Callable[..., np.ndarray]:
    return lambda x: gathered(
        shape, x.dtype, lambda p: x[tuple(p[a] if d > 1 else 0 for a, d in zip(axes, x.shape, strict=True))]
    )


row(
    "broadcast",
    *moves(
        [
            (s, {"shape": t, "axes": a}, _broadcast(t, a))
            for s, t, a in (
                ((3,), (2, 3), (1,)),
                ((3, 1), (3, 4), (0, 1)),
                ((), (2, 2), ()),
                ((2,), (2, 3), (0,)),
                ((1,), (0, 2), (1,)),
                ((3, 2), (3, 2), (0, 1)),
            )
        ]
    ),
)


def _slice(start: Any, stop: Any, step: Any) -> tuple[dict[str, Any], Callable[..., np.ndarray]]:
    places = [list(range(a, b, s)) for a, b, s in zip(start, stop, step, strict=True)]
    return {"start": start, "stop": stop, "step": step}, lambda x: gathered(
        [len(p) for p in places], x.dtype, lambda p: x[tuple(q[i] for q, i in zip(places, p, strict=True))]
    )


row(
    "slice",
    *moves(
        [
            (s, *_slice(*how))
            for s, how in (
                ((5, 6), ((1, 0), (4, 6), (1, 2))),
                ((7,), ((6,), (7,), (3,))),
                ((4, 3), ((0, 1), (4, 2), (3, 1))),
                ((5,), ((2,), (2,), (1,))),
                ((), ((), (), ())),
                ((40,), ((1,), (40,), (3,))),
            )
        ]
    ),
)


def _flip(axes: tuple[int, ...]) -> Callable[..., np.ndarray]:
    return lambda x: gathered(
        x.shape,
        x.dtype,
        lambda p: x[tuple(x.shape[i] - 1 - v if i in axes else v for i, v in enumerate(p))],
    )


row(
    "flip",
    *moves(
        [
            (s, {"axes": a}, _flip(a))
            for s, a in (((3, 4), (0,)), ((3, 4), (0, 1)), ((33,), (0,)), ((), ()), ((2, 0), (1,)))
        ]
    ),
)
row(
    "diagonal",
    *moves(
        [
            (s, {"offset": k}, lambda x, k=k: np.array(np.diagonal(x, k, -2, -1)))
            for s, k in (((3, 4), 0), ((3, 4), 2), ((2, 5, 3), -2), ((3, 3), 7), ((3, 3), -7), ((0, 2), 0))
        ]
    ),
)
row("copy", *moves([((3, 4), {}, np.array), ((), {}, np.array), ((0, 2), {}, np.array)]))
row("transfer", *moves([(s, {"device": CPU}, np.array) for s in ((3, 4), (), (0, 2))]))

PADS = (
    ((2, 3), (1, 0), (0, 2), (0, 0)),
    ((3, 4), (2, 1), (1, 0), (1, 2)),
    ((4, 5), (-1, -2), (0, -1), (0, 0)),
    ((4,), (-1,), (3,), (2,)),
    ((3,), (-2,), (-1,), (0,)),
    ((), (), (), ()),
    ((0, 2), (1, 0), (1, 0), (1, 0)),
)


def _pad(x: np.ndarray, value: np.ndarray, lo: Any, hi: Any, interior: Any) -> np.ndarray:
    sizes = [max((d - 1) * (m + 1) + 1, 0) if d else 0 for d, m in zip(x.shape, interior, strict=True)]

    def at(place: tuple[int, ...]) -> Any:
        source = []
        for p, a, m, d in zip(place, lo, interior, x.shape, strict=True):
            q, rest = divmod(p - a, m + 1)
            if rest or not 0 <= q < d:
                return value[()]
            source.append(q)
        return x[tuple(source)]

    return gathered([n + a + b for n, a, b in zip(sizes, lo, hi, strict=True)], x.dtype, at)


def _pad_cases() -> Iterator[Case]:
    for i, (shape, lo, hi, interior) in enumerate(PADS):
        for dtype in DTYPES if i == 1 else (f32,):
            x, v = sample(dtype, shape), sample(dtype, (1,))[0]
            value = np.array(v)
            attrs = {"lo": lo, "hi": hi, "interior": interior}
            yield Case((x, value), (_pad(x, value, **attrs),), attrs)
    x, value = sample(f32, (4, 3)).T, np.array(-math.inf, np.float32)
    attrs = {"lo": (1, 1), "hi": (0, 1), "interior": (0, 0)}
    yield Case((x, value), (_pad(x, value, **attrs),), attrs)


def _pad_points() -> Iterator[Point]:
    for shape, lo, hi, interior in PADS[:5]:
        yield point(reals(*shape), reals(), lo=lo, hi=hi, interior=interior)
    yield point(complexes(2, 3), np.array(1 + 1j), lo=(1, 0), hi=(0, 2), interior=(0, 0))


row("pad", _pad_cases, _pad_points)


def _concatenate(xs: Sequence[np.ndarray], axis: int) -> np.ndarray:
    rows = [np.moveaxis(x, axis, 0)[i] for x in xs for i in range(x.shape[axis])]
    shape = [sum(x.shape[axis] for x in xs) if i == axis else d for i, d in enumerate(xs[0].shape)]
    if not rows:
        return np.empty(shape, xs[0].dtype)
    out = np.empty(shape, xs[0].dtype)
    for i, r in enumerate(rows):
        np.moveaxis(out, axis, 0)[i] = r
    return out


def _concatenate_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        xs = (sample(dtype, (2, 3)), sample(dtype, (2, 1)), sample(dtype, (2, 4)))
        yield Case(xs, (_concatenate(xs, 1),), {"axis": 1})
    for xs, axis in (
        ((sample(f32, (3, 2)), sample(f32, (0, 2)), sample(f32, (2, 2))), 0),
        ((sample(f32, (4,)),), 0),
        ((sample(f32, (3, 2)).T, sample(f32, (2, 6))[:, ::2]), 1),
        ((np.empty((0,), np.float32), np.empty((0,), np.float32)), 0),
    ):
        yield Case(xs, (_concatenate(xs, axis),), {"axis": axis})


def _concatenate_points() -> Iterator[Point]:
    yield point(reals(2, 3), reals(2, 1), axis=1)
    yield point(reals(2), reals(3), reals(1), axis=0)


row("concatenate", _concatenate_cases, _concatenate_points)

UPDATES = (
    ((5, 6), (2, 3), (1, 0), (2, 2)),
    ((4,), (2,), (1,), (1,)),
    ((3, 3), (3, 3), (0, 0), (1, 1)),
    ((4,), (0,), (2,), (1,)),
    ((), (), (), ()),
)


def _update(x: np.ndarray, upd: np.ndarray, start: Any, step: Any) -> np.ndarray:
    out = np.array(x)
    for place in np.ndindex(*upd.shape):
        out[tuple(a + p * s for a, p, s in zip(start, place, step, strict=True))] = upd[place]
    return out


def _update_cases() -> Iterator[Case]:
    for i, (a, b, start, step) in enumerate(UPDATES):
        for dtype in DTYPES if i == 0 else (f32,):
            x, upd = sample(dtype, a), sample(dtype, b)
            attrs = {"start": start, "step": step}
            yield Case((x, upd), (_update(x, upd, start, step),), attrs)
    x, upd = sample(f32, (6, 5)).T, sample(f32, (4, 6))[::2, ::2]
    yield Case((x, upd), (_update(x, upd, (1, 0), (2, 2)),), {"start": (1, 0), "step": (2, 2)})


def _update_points() -> Iterator[Point]:
    for a, b, start, step in UPDATES[:3]:
        yield point(reals(*a), reals(*b), start=start, step=step)


row("update_slice", _update_cases, _update_points)
