"""Rows for attention. Expectations are the formulas over whole arrays of scores, in f64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from opinfo import Case, Point, row
from opinfo_indexed import _philox_word
from weft.ir.types import FLOATS, f32

Arrays = tuple[np.ndarray, ...]
STATE = np.array([77, 5])


def rows_of(heads: int, keys: int, x: np.ndarray) -> np.ndarray:
    return np.repeat(x, heads // keys, axis=1)


def kept(shape: tuple[int, ...], state: np.ndarray, dropout: float) -> np.ndarray:
    words = [_philox_word(i, int(state[0]), int(state[1])) for i in range(math.prod(shape))]
    fractions = (np.array(words, np.uint64) >> np.uint64(8)).astype(np.float64) * 2.0**-24
    return (fractions >= dropout).reshape(shape) / (1 - dropout)


def scores(q: np.ndarray, k: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float) -> np.ndarray:
    x = scale * np.einsum("bhie,bhje->bhij", q, k)
    if causal:
        i, j = np.indices(x.shape[2:])
        x = np.where(j <= i, x, -np.inf)
    if mask is not None:
        x = np.where(mask, x, -np.inf) if mask.dtype == np.bool_ else x + mask
    return x


def split(rest: Arrays, dropout: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    masks = rest[:-1] if dropout else rest
    return (masks[0] if masks else None), (rest[-1] if dropout else None)


def forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, *rest: np.ndarray, causal: bool = False,
            scale: float = 1.0, dropout: float = 0.0, heads_inside: bool = False) -> Arrays:  # fmt: skip
    """out and lse in f64."""
    mask, state = split(rest, dropout)
    heads = q.shape[1]
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (rows_of(heads, k.shape[1], x) for x in (k, v))
    x = scores(q, k, mask if mask is None or mask.dtype == bool else mask.astype(np.float64), causal, scale)
    with np.errstate(divide="ignore"):
        lse = np.log(np.exp(x).sum(-1))
    p = np.exp(x - np.where(lse == -np.inf, 0, lse)[..., None])
    p = p if state is None else p * kept(p.shape, state, dropout)
    out = p @ v
    return (out.transpose(0, 2, 1, 3) if heads_inside else out), lse


def backward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, ct: np.ndarray, lse: np.ndarray, delta: np.ndarray,
    *rest: np.ndarray, causal: bool = False, scale: float = 1.0, dropout: float = 0.0,
    heads_inside: tuple[bool, bool, bool] = (False, False, False),
) -> Arrays:  # fmt: skip
    mask, state = split(rest, dropout)
    heads, kv = q.shape[1], k.shape[1]
    q, k, v, ct, lse, delta = (x.astype(np.float64) for x in (q, k, v, ct, lse, delta))
    k, v = (rows_of(heads, kv, x) for x in (k, v))
    p = np.exp(scores(q, k, mask, causal, scale) - np.where(lse == -np.inf, np.inf, lse)[..., None])
    factor = 1.0 if state is None else kept(p.shape, state, dropout)
    dp = factor * (ct @ v.swapaxes(2, 3))
    ds = p * (dp - delta[..., None])
    dk, dv = scale * (ds.swapaxes(2, 3) @ q), (p * factor).swapaxes(2, 3) @ ct
    grouped = [x.reshape(x.shape[0], kv, heads // kv, *x.shape[2:]).sum(2) for x in (dk, dv)]
    grads = (scale * (ds @ k), *grouped)
    return tuple(g.transpose(0, 2, 1, 3) if s else g for g, s in zip(grads, heads_inside, strict=True))


# (heads, key heads, queries, keys, width, value width), mask shape or None, attributes
SIZES: tuple[tuple[tuple[int, ...], Any, dict[str, Any]], ...] = (
    ((2, 2, 3, 4, 3, 2), None, {}),
    ((4, 2, 5, 5, 4, 4), None, {"causal": True, "scale": 0.5}),
    ((2, 1, 4, 3, 2, 5), "bool", {"scale": -0.7}),
    ((2, 2, 3, 20, 8, 17), (2, 1, 3, 20), {}),
    ((3, 1, 2, 7, 5, 3), (1, 3, 1, 7), {"dropout": 0.4}),
    ((1, 1, 1, 40, 16, 16), None, {"dropout": 0.25, "causal": False}),
    ((2, 2, 17, 9, 4, 4), None, {"causal": True, "heads_inside": True}),
)


def operands(dtype: Any, sizes: tuple[int, ...], mask: Any, how: dict[str, Any]) -> tuple[Arrays, Arrays]:
    heads, kv, length, keys, width, out = sizes
    r = np.random.default_rng(sum(sizes))
    q, k, v = (r.normal(size=s).astype(dtype) for s in
               ((2, heads, length, width), (2, kv, keys, width), (2, kv, keys, out)))  # fmt: skip
    rest: list[np.ndarray] = []
    if mask == "bool":
        m = r.random((2, heads, length, keys)) < 0.6
        m[0, 0, 0] = False  # a query without keys
        rest.append(m)
    elif mask is not None:
        m = r.normal(size=mask)
        m.reshape(-1)[0] = -np.inf
        rest.append(m.astype(dtype))
    return (q, k, v), (*rest, *([STATE] if how.get("dropout") else []))


def rounding(dtype: Any, size: float) -> tuple[float, float]:
    """ulp and absolute bound: what a sum of terms of that size loses in the dtype."""
    eps = float(np.finfo(np.float32).eps if dtype.itemsize <= 4 else np.finfo(np.float64).eps)
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype.name, 0.0)
    return 0, size * (40 * eps + 2 * half)


def _cases() -> Iterator[Case]:
    for dtype in FLOATS:
        for sizes, mask, how in SIZES:
            first, rest = operands(dtype.np, sizes, mask, how)
            out, lse = forward(*first, *rest, **how)
            acc = np.float64 if dtype.bits == 64 else np.float32
            ulp, atol = rounding(np.dtype(dtype.np), 8.0)
            yield Case((*first, *rest), (out.astype(dtype.np), lse.astype(acc)), how, ulp=ulp, atol=atol)
    first, _ = operands(f32.np, (2, 1, 3, 4, 2, 2), None, {})
    q, k, v = first
    none = (np.zeros((2, 2, 3, 2), np.float32), np.full((2, 2, 3), -np.inf, np.float32))
    yield Case((q, k[:, :, :0], v[:, :, :0]), none, {})
    yield Case((q[:, :, :0], k, v), (none[0][:, :, :0], none[1][:, :, :0]), {})


def _grad_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        for sizes, mask, attrs in SIZES:
            first, rest = operands(dtype.np, sizes, mask, attrs)
            how = {**attrs, "heads_inside": (True, False, True) if "heads_inside" in attrs else (False,) * 3}
            out, lse = forward(*first, *rest, **{**attrs, "heads_inside": False})
            ct = np.random.default_rng(3).normal(size=out.shape).astype(dtype.np)
            acc = np.float64 if dtype.bits == 64 else np.float32
            arrays = (*first, ct, lse.astype(acc), (out * ct.astype(np.float64)).sum(-1).astype(acc), *rest)
            want = tuple(g.astype(dtype.np) for g in backward(*arrays, **how))
            ulp, atol = rounding(np.dtype(dtype.np), 30.0)
            yield Case(arrays, want, how, ulp=ulp, atol=atol)


def _points() -> Iterator[Point]:
    r = np.random.default_rng(9)
    q, k, v = r.normal(size=(1, 2, 2, 2)), r.normal(size=(1, 1, 3, 2)), r.normal(size=(1, 1, 3, 2))
    yield Point((q, k, v), {"causal": True, "scale": 0.8}, (), 2)
    yield Point((q, k, v, r.normal(size=(1, 1, 2, 3))), {"heads_inside": True}, (), 2)
    yield Point((q, k, v, r.random((1, 2, 2, 3)) < 0.7, STATE), {"dropout": 0.3}, (), 1)


def _grad_points() -> Iterator[Point]:
    r = np.random.default_rng(10)
    q, k, v = r.normal(size=(1, 2, 2, 2)), r.normal(size=(1, 1, 3, 2)), r.normal(size=(1, 1, 3, 2))
    more = (r.normal(size=q.shape), r.normal(size=(1, 2, 2)) + 2, r.normal(size=(1, 2, 2)))
    yield Point((q, k, v, *more), {"causal": True, "scale": 0.8}, (), 2)
    yield Point((q, k, v, *more, r.normal(size=(1, 1, 1, 3)), STATE), {"dropout": 0.3}, (), 1)


row("attention", _cases, _points)
row("attention_grad", _grad_cases, _grad_points)
