"""Rows for indexed reads and writes, sorting, random bits, windows, host calls and control flow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from opinfo import NAN, ORDERED, Case, Point, layouts, no_points, pool, rng, row
from opinfo_structural import best, close, gathered, linear, point, reals, sample
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import trace, type_of
from weft.ir.prims.host import HOST_FUNCTIONS, register_host
from weft.ir.types import DTYPES, DType, TensorType, bf16, f32, f64, i32, i64, u8

Arrays = tuple[np.ndarray, ...]

# --- indexed reads and writes --------------------------------------------------------------------

INDEXED = (
    ((5, 4), (3, 1), (0,)),
    ((5, 7), (2, 3, 1), (1,)),
    ((3, 4, 5), (4, 2), (2, 0)),
    ((7,), (4, 1), (0,)),
    ((7,), (1,), (0,)),
    ((3, 4), (0, 1), (0,)),
    ((3, 4), (5, 2), (0, 1)),
)


def _index(
    shape: Sequence[int], like: Sequence[int], axes: Sequence[int], dtype: Any, distinct: bool
) -> np.ndarray:
    r = rng()
    idx = np.empty(like, dtype)
    for j, a in enumerate(axes):
        n = math.prod(like[:-1])
        drawn = (
            r.permutation(shape[a])[:n]
            if distinct and j == 0 and n <= shape[a]
            else r.integers(0, shape[a], n)
        )
        idx[..., j] = drawn.reshape(like[:-1])
    return idx


def _places(x: np.ndarray, idx: np.ndarray, axes: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """(key of x, key of the updates) for each index vector."""
    for at in np.ndindex(*idx.shape[:-1]):
        key: list[Any] = [slice(None)] * x.ndim
        for j, a in enumerate(axes):
            key[a] = int(idx[at][j])
        yield tuple(key), at


def _take(x: np.ndarray, idx: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    rest = [d for i, d in enumerate(x.shape) if i not in axes]
    out = np.empty((*idx.shape[:-1], *rest), x.dtype)
    for key, at in _places(x, idx, axes):
        out[at] = x[key]
    return out


COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "set": lambda a, b: b,
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "max": np.maximum,
    "min": np.minimum,
}


def _combine(mode: str, old: Any, new: Any) -> Any:
    if old.dtype == np.bool_:
        return {"set": new, "add": old | new, "mul": old & new, "max": old | new, "min": old & new}[mode]
    with np.errstate(all="ignore"):
        return COMBINE[mode](old, new)


def _put(x: np.ndarray, idx: np.ndarray, upd: np.ndarray, axes: Sequence[int], mode: str) -> np.ndarray:
    out = np.array(x)
    for key, at in _places(x, idx, axes):
        out[key] = _combine(mode, out[key], upd[at])
    return out


def _gather_cases() -> Iterator[Case]:
    for i, (shape, like, axes) in enumerate(INDEXED):
        for dtype in DTYPES if i == 0 else (f32,):
            for kind in (np.int64, np.int32):
                x, idx = sample(dtype, shape), _index(shape, like, axes, kind, False)
                yield Case((x, idx), (_take(x, idx, axes),), {"axes": axes})
    x, idx = sample(f32, (4, 5)).T[:, ::2], _index((5, 2), (6, 1), (0,), np.int64, False)[::-1]
    yield Case((x, idx), (_take(x, idx, (0,)),), {"axes": (0,)})


def _gather_points() -> Iterator[Point]:
    for shape, like, axes in INDEXED[:4]:
        yield point(reals(*shape), _index(shape, like, axes, np.int64, False), axes=axes)


def _scatter_cases(modes: Sequence[str]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for mode, (i, (shape, like, axes)) in itertools.product(modes, enumerate(INDEXED)):
            for dtype in DTYPES if i == 0 else (f32, i32):
                if dtype.is_complex and mode in ("max", "min"):
                    continue
                x, idx = sample(dtype, shape), _index(shape, like, axes, np.int64, False)
                upd = sample(dtype, _take(x, idx, axes).shape)
                loose = {} if mode in ("set", "max", "min") else close(dtype)
                yield Case(
                    (x, idx, upd), (_put(x, idx, upd, axes, mode),), {"axes": axes, "mode": mode}, **loose
                )

    return cases


def _scatter_points(modes: Sequence[str]) -> Callable[[], Iterator[Point]]:
    def points() -> Iterator[Point]:
        for mode, (shape, like, axes) in itertools.product(modes, INDEXED[:4]):
            idx = _index(shape, like, axes, np.int64, mode == "set")
            x = reals(*shape)
            yield point(
                x,
                idx,
                reals(*_take(x, idx, axes).shape) + 0.1,
                axes=axes,
                mode=mode,
                order=1 if mode == "mul" else 2,
            )

    return points


row("gather", _gather_cases, _gather_points)
row("scatter", _scatter_cases(("set", "add")), _scatter_points(("set", "add")))
row("scatter_reduce", _scatter_cases(("max", "min", "mul")), _scatter_points(("max", "min", "mul")))

ALONG = (
    ((4, 5), (3, 5), 0),
    ((4, 5), (4, 7), 1),
    ((3, 2, 4), (2, 2, 6), 2),
    ((6,), (4,), 0),
    ((3, 4), (0, 4), 0),
)


def _along(idx: np.ndarray, axis: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for at in np.ndindex(*idx.shape):
        key = list(at)
        key[axis] = int(idx[at])
        yield tuple(key), at


def _along_index(shape: Sequence[int], like: Sequence[int], axis: int, distinct: bool) -> np.ndarray:
    r = rng()
    if distinct and like[axis] <= shape[axis]:
        return np.argsort(
            r.random([shape[axis] if i == axis else d for i, d in enumerate(like)]), axis
        ).take(range(like[axis]), axis)
    return r.integers(0, shape[axis], like)


def _take_along(x: np.ndarray, idx: np.ndarray, axis: int) -> np.ndarray:
    out = np.empty(idx.shape, x.dtype)
    for key, at in _along(idx, axis):
        out[at] = x[key]
    return out


def _put_along(x: np.ndarray, idx: np.ndarray, upd: np.ndarray, axis: int, mode: str) -> np.ndarray:
    out = np.array(x)
    for key, at in _along(idx, axis):
        out[key] = _combine(mode, out[key], upd[at])
    return out


def _take_along_cases() -> Iterator[Case]:
    for i, (shape, like, axis) in enumerate(ALONG):
        for dtype in DTYPES if i == 0 else (f32,):
            x, idx = sample(dtype, shape), _along_index(shape, like, axis, False)
            yield Case((x, idx), (_take_along(x, idx, axis),), {"axis": axis})
            yield Case((x, idx.astype(np.int32)), (_take_along(x, idx, axis),), {"axis": axis})


def _take_along_points() -> Iterator[Point]:
    for shape, like, axis in ALONG[:4]:
        yield point(reals(*shape), _along_index(shape, like, axis, False), axis=axis)


def _put_along_cases(modes: Sequence[str]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for mode, (i, (shape, like, axis)) in itertools.product(modes, enumerate(ALONG)):
            for dtype in DTYPES if i == 0 else (f32, i32):
                if dtype.is_complex and mode in ("max", "min"):
                    continue
                x, idx = sample(dtype, shape), _along_index(shape, like, axis, False)
                upd = sample(dtype, like)
                loose = {} if mode in ("set", "max", "min") else close(dtype)
                yield Case(
                    (x, idx, upd),
                    (_put_along(x, idx, upd, axis, mode),),
                    {"axis": axis, "mode": mode},
                    **loose,
                )

    return cases


def _put_along_points(modes: Sequence[str]) -> Callable[[], Iterator[Point]]:
    def points() -> Iterator[Point]:
        for mode, (shape, like, axis) in itertools.product(modes, (ALONG[0], ALONG[3])):
            idx = _along_index(shape, like, axis, mode == "set")
            yield point(
                reals(*shape),
                idx,
                reals(*like) + 0.1,
                axis=axis,
                mode=mode,
                order=1 if mode == "mul" else 2,
            )

    return points


row("take_along", _take_along_cases, _take_along_points)
row("scatter_along", _put_along_cases(("set", "add")), _put_along_points(("set", "add")))
row(
    "scatter_reduce_along",
    _put_along_cases(("max", "min", "mul")),
    _put_along_points(("max", "min", "mul")),
)

# --- sorting -------------------------------------------------------------------------------------


def _sorted(x: np.ndarray, axis: int, descending: bool) -> Arrays:
    """Python's stable sort, lane by lane; NaN is the largest."""
    values, places = np.empty(x.shape, x.dtype), np.empty(x.shape, np.int64)
    for lane in np.ndindex(*(1 if i == axis else d for i, d in enumerate(x.shape))):
        key = tuple(slice(None) if i == axis else p for i, p in enumerate(lane))
        found = [
            (1, 0.0) if v != v else (0, float(v) if x.dtype.kind not in "iu" else int(v)) for v in x[key]
        ]
        order = sorted(range(len(found)), key=found.__getitem__)
        if descending:  # equals keep their order
            order = sorted(range(len(found)), key=lambda i: (-found[i][0], -found[i][1]))
        values[key], places[key] = x[key][order], order
    return values, places


def _sort_cases() -> Iterator[Case]:
    for dtype in ORDERED:
        x = sample(dtype, (3, 9))
        yield Case((x,), _sorted(x, 1, False), {"axis": 1, "descending": False})
    for x, axis in (
        (pool(f32)[:48].reshape(6, 8), 1),
        (pool(bf16)[:48].reshape(6, 8), 0),
        (pool(i64)[:12], 0),
        (sample(f32, (2, 0)), 1),
        (sample(f32, (5, 40)).T, 0),
        (sample(f32, (1,)), 0),
    ):
        for descending in (False, True):
            yield Case((x,), _sorted(x, axis, descending), {"axis": axis, "descending": descending})


def _sort_points() -> Iterator[Point]:
    yield point(reals(3, 5), axis=1, descending=False)
    yield point(reals(4, 2), axis=0, descending=True)


def _topk_cases() -> Iterator[Case]:
    for x, k, axis, largest in (
        (sample(f32, (3, 9)), 4, 1, True),
        (sample(f32, (9, 3)), 2, 0, False),
        (sample(i32, (7,)), 7, 0, True),
        (sample(f32, (2, 5)), 0, 1, True),
        (pool(f32)[:48].reshape(6, 8), 3, 1, True),
        (sample(bf16, (2, 6)), 3, 1, False),
        (sample(f32, (6, 4)).T, 2, 1, True),
    ):
        first = tuple(slice(k) if i == axis else slice(None) for i in range(x.ndim))
        want = tuple(np.ascontiguousarray(a[first]) for a in _sorted(x, axis, largest))
        yield Case((x,), want, {"k": k, "axis": axis, "largest": largest})


def _topk_points() -> Iterator[Point]:
    yield point(reals(3, 5), k=2, axis=1, largest=True)
    yield point(reals(4, 2), k=3, axis=0, largest=False)


row("sort", _sort_cases, _sort_points)
row("topk", _topk_cases, _topk_points)

# --- random bits ---------------------------------------------------------------------------------


def _philox_word(i: int, seed: int, offset: int) -> int:
    """One word of Philox4x32-10 in Python integers."""
    mask, block = 0xFFFFFFFF, (offset + i // 4) % 2**64
    c, k = [block & mask, block >> 32, 0, 0], [seed % 2**64 & mask, seed % 2**64 >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & mask, (p >> 32) ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c[i % 4]


def _random_cases() -> Iterator[Case]:
    for seed, offset, shape in (
        (0, 0, (4,)),
        (1234567890123, 7, (3, 5)),
        (-1, 2**32 - 2, (21,)),
        (5, 0, ()),
        (5, 3, (0, 2)),
        (42, 2**40, (100,)),
    ):
        words = [_philox_word(i, seed, offset) for i in range(math.prod(shape))]
        yield Case(
            (np.array([seed, offset]),), (np.array(words, np.uint32).reshape(shape),), {"shape": shape}
        )


row("random_bits", _random_cases)

# --- windows -------------------------------------------------------------------------------------


def windows(window: Any, stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    return {"window": window, "stride": stride, "padding": padding, "dilation": dilation}


WINDOWS = (
    ((2, 3, 6, 6), windows((1, 1, 2, 2), (1, 1, 2, 2), ((0, 0),) * 4, (1,) * 4)),
    ((1, 2, 7, 6), windows((1, 1, 3, 3), (1, 1, 2, 1), ((0, 0), (0, 0), (1, 1), (1, 1)), (1, 1, 1, 2))),
    ((9,), windows((3,), (1,), ((2, 0),), (2,))),
    ((5, 4), windows((2, 2), (1, 2), ((0, 0), (-1, 1)), (1, 1))),
    ((4, 4), windows((5, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))),
)


def _each_window(
    x: np.ndarray, how: dict[str, Any], fn: Callable[[list[tuple[int, ...]]], Any], dtype: Any
) -> np.ndarray:
    """``fn`` of the list of places of x that each window touches."""
    window, stride, padding, dilation = (how[k] for k in ("window", "stride", "padding", "dilation"))
    sizes = []
    for n, w, s, (lo, hi), d in zip(x.shape, window, stride, padding, dilation, strict=True):
        room = n + lo + hi - ((w - 1) * d + 1)
        sizes.append(room // s + 1 if room >= 0 else 0)

    def at(place: tuple[int, ...]) -> Any:
        touched = []
        for tap in np.ndindex(*window):
            p = tuple(
                a * s + t * d - lo
                for a, s, t, d, (lo, _) in zip(place, stride, tap, dilation, padding, strict=True)
            )
            if all(0 <= q < n for q, n in zip(p, x.shape, strict=True)):
                touched.append(p)
        return fn(touched)

    return gathered(sizes, dtype, at)


def _window_fold(x: np.ndarray, op: str) -> Callable[[list[tuple[int, ...]]], Any]:
    """The fold of the elements of x at a list of places."""
    if op == "sum":
        y = x.astype(x.dtype if x.dtype.kind in "iu" else np.float64)
        return lambda places: sum((y[p] for p in places), y.dtype.type(0))
    better = best((lambda a, b: a > b) if op == "max" else (lambda a, b: a < b))
    return lambda places: better([x[p] for p in places])


def _window_cases() -> Iterator[Case]:
    for (i, (shape, how)), op in itertools.product(enumerate(WINDOWS), ("max", "min", "sum")):
        for dtype in (f32, f64, bf16, i32, u8) if i == 0 else (f32,):
            x = sample(dtype, shape)
            want = _each_window(x, how, _window_fold(x, op), x.dtype)
            loose = close(dtype) if op == "sum" else {}
            yield Case((x,), (want,), {"op": op, **how}, **loose)
    x = np.array([1.0, NAN, 3.0, -math.inf, 2.0, 5.0], np.float32)
    how = windows((2,), (1,), ((0, 0),), (1,))
    yield Case((x,), (np.array([NAN, NAN, 3, 2, 5], np.float32),), {"op": "max", **how})


def _window_points() -> Iterator[Point]:
    for op, (shape, how) in itertools.product(("max", "min", "sum"), WINDOWS[1:4]):
        yield point(reals(*shape), op=op, order=2, **how)


def _argmax_cases() -> Iterator[Case]:
    for shape, how in WINDOWS:
        for dtype in (f32, i32):
            x = sample(dtype, shape)

            def fn(ps: list[tuple[int, ...]], x: np.ndarray = x) -> int:
                best = ps[0]
                for p in ps:
                    if x[p] > x[best]:
                        best = p
                return linear(x.shape, best)

            yield Case((x,), (_each_window(x, how, fn, np.int64),), how)
    x = np.array([1.0, NAN, 3.0, -math.inf, 2.0, NAN], np.float32)
    yield Case((x,), (np.array([1, 1, 2, 4, 5]),), windows((2,), (1,), ((0, 0),), (1,)))


row("reduce_window", _window_cases, _window_points)
row("window_argmax", _argmax_cases)


def _scattered_windows(x: np.ndarray, ct: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """Each number of ct added where the first maximum of its window is."""
    out = np.zeros(x.shape, np.float64)

    def first(places: list[tuple[int, ...]]) -> int:
        return linear(x.shape, max(places, key=lambda p: (x[p], -linear(x.shape, p))))

    best = _each_window(x, how, first, np.int64)
    for place, at in np.ndenumerate(best):
        out[np.unravel_index(at, x.shape)] += float(ct[place])
    return out.astype(x.dtype)


def _window_scatter_cases() -> Iterator[Case]:
    for i, (shape, how) in enumerate(WINDOWS):
        for dtype in (f32, f64, bf16) if i < 2 else (f32,):
            x = sample(dtype, shape)
            ct = sample(dtype, P.reduce_window_p.infer_types((type_of(x),), {"op": "max", **how})[0].shape)
            yield Case((ct, x), (_scattered_windows(x, ct, how),), how, **close(dtype))
    x = np.array([1.0, NAN, 3.0, -math.inf, 2.0, NAN], np.float32)
    ct = np.array([1, 2, 4, 8, 16], np.float32)
    want = np.array([0, 3, 4, 0, 8, 16], np.float32)
    yield Case((ct, x), (want,), windows((2,), (1,), ((0, 0),), (1,)))


def _window_scatter_points() -> Iterator[Point]:
    for shape, how in WINDOWS[1:4]:
        x = reals(*shape)
        ct = reals(*P.reduce_window_p.infer_types((type_of(x),), {"op": "max", **how})[0].shape)
        yield point(ct, x, order=2, **how)


row("window_scatter", _window_scatter_cases, _window_scatter_points)

# --- host calls, control flow, kernels -----------------------------------------------------------

if "test_cube" not in HOST_FUNCTIONS:
    register_host(
        "test_cube",
        infer=lambda x, *, by: x,
        eval=lambda x, *, by: x**3 * np.asarray(by, x.dtype),
        vjp=lambda ct, out, x, *, by: (ct * x * x * (3.0 * by),),
    )


def _host_cases() -> Iterator[Case]:
    for dtype in (f32, f64):
        for x in layouts(dtype, sample(dtype, (20,))):
            yield Case((x,), ((x * x * x * x.dtype.type(2.0)),), {"fn": "test_cube", "by": 2.0}, ulp=2)


def _host_points() -> Iterator[Point]:
    yield point(reals(4), fn="test_cube", by=2.0)


row("host_call", _host_cases, _host_points)


def graph_of(fn: Callable[..., Any], *types: TensorType, name: str) -> Graph:
    return trace(fn, *types, name=name)


def _vector(dtype: DType = f64, n: int = 3) -> TensorType:
    return TensorType((n,), dtype)


def _branches(dtype: DType) -> tuple[Graph, ...]:
    t = _vector(dtype)
    return (
        graph_of(lambda x, y: [x * y, x], t, t, name="then"),
        graph_of(lambda x, y: [P.exp_p.bind(x) + y, y], t, t, name="otherwise"),
    )


def _cond_cases() -> Iterator[Case]:
    for dtype, flag in itertools.product((f32, f64), (True, False)):
        x, y = sample(dtype, (3,)), sample(dtype, (3,))[::-1]
        want = (x * y, x) if flag else (np.exp(x) + y, y)
        yield Case((np.array(flag), x, y), want, {}, _branches(dtype), ulp=2, drift=8)


def _cond_points() -> Iterator[Point]:
    for flag in (True, False):
        yield Point((np.array(flag), reals(3), reals(3) + 1), {}, _branches(f64))


def five() -> Any:
    return P.full_p.bind(shape=(), dtype=i64, value=5)


def _loop(dtype: DType) -> tuple[Graph, ...]:
    n, t = TensorType((), i64), _vector(dtype)
    return (
        graph_of(lambda i, x: P.lt_p.bind(i, five()), n, t, name="test"),
        graph_of(lambda i, x: [i + 1, x * x - x], n, t, name="body"),
    )


def _while_cases() -> Iterator[Case]:
    for dtype, start in itertools.product((f32, f64), (0, 4, 9)):
        x = want = (sample(dtype, (3,)) * dtype.np.type(0.3)).astype(dtype.np)
        for _ in range(start, 5):
            want = want * want - want
        yield Case((np.array(start), x), (np.array(max(start, 5)), want), {}, _loop(dtype), drift=8)


def _step(dtype: DType) -> tuple[Graph, ...]:
    t = _vector(dtype)
    return (graph_of(lambda w, h, x: [P.tanh_p.bind(w * h + x), h * x], t, t, t, name="step"),)


def _scan_loop_cases() -> Iterator[Case]:
    for dtype, reverse, length in itertools.product((f32, f64), (False, True), (4, 0)):
        w, h, xs = sample(dtype, (3,)), sample(dtype, (3,))[::-1], sample(dtype, (length, 3))
        carry, ys = h.astype(np.float64), np.empty((length, 3), dtype.np)
        for i in reversed(range(length)) if reverse else range(length):
            ys[i] = carry * xs[i]
            carry = np.tanh(w * carry + xs[i])
        attrs = {"n_carry": 1, "n_consts": 1, "length": length, "reverse": reverse}
        yield Case((w, h, xs), (carry.astype(dtype.np), ys), attrs, _step(dtype), **close(dtype))


def _scan_loop_points() -> Iterator[Point]:
    for reverse in (False, True):
        attrs = {"n_carry": 1, "n_consts": 1, "length": 3, "reverse": reverse}
        yield Point((reals(3), reals(3) + 0.2, reals(3, 3)), attrs, _step(f64))


row("cond", _cond_cases, _cond_points)
row("while_loop", _while_cases)
row("scan", _scan_loop_cases, _scan_loop_points)


def _kernel_cases() -> Iterator[Case]:
    t = _vector(f32, 20)
    body = graph_of(lambda x, y: [P.abs_p.bind(x) * y, x + y], t, t, name="body")
    x, y = sample(f32, (20,)), sample(f32, (20,))[::-1]
    yield Case((x, y), (abs(x) * y, x + y), {"form": "loop", "name": "k"}, (body,))


row("kernel", _kernel_cases, no_points)
