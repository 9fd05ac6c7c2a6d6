"""Reductions, norms and running sums against float64, within what theory allows each algorithm.

u is the unit roundoff. A sum of n terms that passes each term through at most d additions is off by at most
d u sum |x| (Higham, "Accuracy and Stability of Numerical Algorithms", 4.2); sums are added up in blocks, so
that d grows much more slowly than n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import weft
from weft.nn import functional as F

U = {np.float32: 2.0**-24, np.float64: 2.0**-53}
rng = np.random.default_rng(11)


def depth(n: int) -> int:
    """Additions that a term of a sum of n goes through at most: blocks of 128, partial results, lanes."""
    return 512 + (n >> 16)


def run(fn: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """The result of a compiled function in float64."""
    out = weft.compile(fn)(*[weft.from_numpy(a) for a in arrays])
    return out.to(weft.float64).numpy()


def within(got: np.ndarray, want: np.ndarray, bound: Any) -> None:
    error = np.abs(got - want)
    assert np.all(error <= bound), f"off by {error.max()}, {(error / bound).max():.3g} times the bound"


# sums -------------------------------------------------------------------------------------------------

SUMMED = {
    "all": ((1 << 22,), (0,)),
    "long rows": ((3, 1_000_003), (1,)),
    "long columns": ((1_000_003, 7), (0,)),
    "many columns": ((20_011, 96), (0,)),
    "middle": ((5, 4099, 33), (1,)),
    "outer and inner": ((64, 17, 3001), (0, 2)),
    "transposed": ((300, 5000), (0,)),
}


def terms(kind: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if kind == "tenths":  # every addition to a large total rounds the same way
        return np.full(shape, 0.1, dtype)
    if kind == "alternating":
        x = rng.standard_normal(shape).astype(dtype) + 1
        return x * np.where(np.arange(x.size).reshape(shape) % 2, -1, 1).astype(dtype)
    return (rng.standard_normal(shape) * np.exp(rng.uniform(-8, 8, shape))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("kind", ["tenths", "alternating", "wide"])
@pytest.mark.parametrize("case", SUMMED)
def test_sum(case: str, kind: str, dtype: Any) -> None:
    shape, axes = SUMMED[case]
    x = terms(kind, shape, dtype)
    n = int(np.prod([shape[a] for a in axes]))
    if case == "transposed":
        got, x = run(lambda x: (x.t() * 1.0).sum(1), x), x
    else:
        got = run(lambda x: x.sum(axes), x)
    wide = x.astype(np.longdouble)
    want, size = wide.sum(axes).astype(np.float64), np.abs(wide).sum(axes).astype(np.float64)
    within(got, want, depth(n) * U[dtype] * size)


def test_sum_of_many_tenths() -> None:
    n = 1 << 26
    got = run(lambda x: x.sum(), np.full(n, 0.1, np.float32))
    want = n * np.float64(np.float32(0.1))
    within(got, want, depth(n) * U[np.float32] * want)
    assert abs(got / want - 1) < 2e-5


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_halves_are_added_up_in_f32(dtype: Any, axis: int) -> None:
    """One rounding to the half type at the end; it would be thousands."""
    x = rng.uniform(0, 1, (3001, 4001)).astype(dtype)
    wide = x.astype(np.float64)
    unit = 2.0**-11 if dtype is np.float16 else 2.0**-8
    for fn, want in ((weft.sum, wide.sum(axis)), (weft.mean, wide.mean(axis))):
        got = run(lambda x, fn=fn: fn(x, axis), x)
        within(got, want, want * (unit + depth(4001) * U[np.float32]))


@pytest.mark.parametrize("shape, axis", [((4, 100_003), 1), ((100_003, 4), 0)])
def test_norm(shape: tuple[int, int], axis: int) -> None:
    x = terms("wide", shape, np.float32)
    want = np.sqrt((x.astype(np.float64) ** 2).sum(axis))
    within(run(lambda x: weft.linalg.norm(x, dim=axis), x), want, depth(100_003) * U[np.float32] * want)


def test_mean_of_halves_does_not_overflow() -> None:
    x = np.full((3, 5000), 100.0, np.float16)
    np.testing.assert_array_equal(run(lambda x: weft.mean(x, 1), x), np.full(3, 100.0))


# moments ----------------------------------------------------------------------------------------------

FAR = 1e4  # a mean so many standard deviations from zero that a difference of squares would lose all digits


def far(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return (FAR + rng.standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize(
    "shape, axis", [((5, 50_021), 1), ((50_021, 5), 0), ((6, 3001, 70), 1), ((4000, 900), 0)]
)
def test_variance_of_a_distant_mean(shape: tuple[int, ...], axis: int) -> None:
    """Two passes: d u relative, and the square of what the mean is off, (d u mean)^2 / var."""
    x = far(shape)
    d, u = depth(shape[axis]), U[np.float32]
    want = x.astype(np.float64).var(axis, ddof=1)
    bound = d * u * want + (2 * d * u * FAR) ** 2
    within(run(lambda x: weft.var(x, axis), x), want, bound)
    within(run(lambda x: weft.std(x, axis), x), np.sqrt(want), bound)
    assert np.abs(run(lambda x: weft.var(x, axis), x) / want - 1).max() < 1e-4


NORMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[[Any], Any]]] = {
    "layer": ((64, 4096), (1,), lambda x: F.layer_norm(x, (4096,))),
    "group": ((4, 32, 20, 20), (2, 3, 4), lambda x: F.group_norm(x, 8)),
    "instance": ((4, 8, 40, 41), (2, 3), lambda x: F.instance_norm(x)),
    "batch": ((16, 24, 13, 14), (0, 2, 3), lambda x: F.batch_norm(x, None, None, training=True)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_a_distant_mean(name: str) -> None:
    """The mean is off by a rounding of its own, and by those of a sum of differences of one sign or other."""
    shape, axes, fn = NORMS[name]
    x = far(shape)
    wide = x.astype(np.float64)
    if name == "group":
        wide = wide.reshape(4, 8, 4, 20, 20)
    centred = wide - wide.mean(axes, keepdims=True)
    want = (centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)).reshape(shape)
    within(run(fn, x), want, 32 * U[np.float32] * FAR)


def test_norms_of_halves_are_computed_in_f32() -> None:
    x = (rng.standard_normal((32, 2000)) * 3 + 5).astype(np.float16)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    within(run(lambda x: F.layer_norm(x, (2000,)), x), want, 2.0**-11 * np.abs(want) + 1e-5)


# softmax ----------------------------------------------------------------------------------------------


def logits(shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize(
    "shape, axis", [((4, 50_257), 1), ((50_257, 3), 0), ((3000, 130), 0), ((3, 700, 50), 1)]
)
def test_softmax(shape: tuple[int, ...], axis: int, scale: float) -> None:
    """Relative: the rounding of x - max moves the exponential by |x - max| u, the sum adds d u."""
    x = logits(shape, scale)
    u, logs = U[np.float32], log_softmax(x, axis)
    distance = x.max(axis, keepdims=True).astype(np.float64) - x
    relative = (distance + depth(shape[axis]) + 8) * u
    want = np.exp(logs)
    within(run(lambda x: F.softmax(x, axis), x), want, want * relative + 2.0**-126)
    bound = u * (8 + depth(shape[axis]) + np.abs(logs) + distance)
    within(run(lambda x: F.log_softmax(x, axis), x), logs, bound)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_logsumexp_and_cross_entropy(scale: float) -> None:
    x, i = logits((5, 50_257), scale), rng.integers(0, 50_257, 5)
    logs, u = log_softmax(x, 1), U[np.float32]
    want = (x.astype(np.float64) - logs)[:, 0]
    got = run(lambda x: weft.logsumexp(x, 1), x)
    within(got, want, u * (depth(50_257) + 4 * np.abs(x).max()))
    picked = -logs[np.arange(5), i]
    loss = run(lambda x, i: F.cross_entropy(x, i, reduction="none"), x, i)
    within(loss, picked, u * (depth(50_257) + 4 * np.abs(x).max()))


def test_softmax_of_infinities_and_nan() -> None:
    x = np.zeros((4, 300), np.float32)
    x[0, 3], x[1, 5], x[2] = -np.inf, np.nan, -np.inf
    for axis, given in ((1, x), (0, np.ascontiguousarray(x.T))):
        got = run(lambda x, axis=axis: F.softmax(x, axis), given)
        got = got if axis == 1 else got.T
        assert got[0, 3] == 0 and np.isnan(got[1]).all() and np.isnan(got[2]).all()
        np.testing.assert_allclose(got[3], 1 / 300, rtol=1e-6)


# running sums and products ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("shape, axis", [((3, 20_011), 1), ((5003, 70), 0), ((20_011,), 0), ((70, 501), 1)])
def test_running_sums(shape: tuple[int, ...], axis: int, dtype: Any) -> None:
    """Term k has gone through k additions at most: k u times the running sum of |x|."""
    for kind in ("tenths", "wide", "alternating"):
        x = terms(kind, shape, dtype)
        wide = x.astype(np.longdouble)
        want, size = wide.cumsum(axis), np.abs(wide).cumsum(axis)
        steps = np.arange(1, shape[axis] + 1).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        bound = (steps * U[dtype] * size).astype(np.float64)
        within(run(lambda x: weft.cumsum(x, axis), x), want.astype(np.float64), bound)


def test_running_products() -> None:
    x = rng.uniform(0.9, 1.1, (4, 2001)).astype(np.float32)
    want = x.astype(np.float64).cumprod(1)
    within(run(lambda x: weft.cumprod(x, 1), x), want, np.arange(1, 2002) * U[np.float32] * want)


# gradients --------------------------------------------------------------------------------------------


def test_embedding_gradient_of_one_much_used_row() -> None:
    """Updates of one row are added in their order: n u sum |g|."""
    n, dim = 3000, 24
    i, g = np.where(rng.random(n) < 0.9, 5, rng.integers(0, 50, n)), terms("wide", (n, dim), np.float32)

    def gradient(w: Any, i: Any, g: Any) -> Any:
        w = w.detach().requires_grad_(True)
        return weft.autograd.grad(F.embedding(i, w), (w,), g)[0]

    got = run(gradient, np.zeros((50, dim), np.float32), i, g)
    want, size = np.zeros((50, dim)), np.zeros((50, dim))
    np.add.at(want, i, g.astype(np.float64))
    np.add.at(size, i, np.abs(g.astype(np.float64)))
    within(got, want, n * U[np.float32] * size)
