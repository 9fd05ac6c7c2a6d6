"""Reductions and running reductions."""

import itertools

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import FLOATS, INTS, NUMERIC, TensorType, bf16, bool_, c64, c128, f16, f32, i8, i64, u8

SUMS = [(P.sum_p, np.add), (P.prod_p, np.multiply)]
EXTREMES = [(P.reduce_max_p, np.maximum), (P.reduce_min_p, np.minimum)]
RUNNING = [
    (P.cumsum_p, np.add),
    (P.cumprod_p, np.multiply),
    (P.cummax_p, np.maximum),
    (P.cummin_p, np.minimum),
]


def some(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, shape) if dtype.category in ("bool", "uint") else rng.integers(-2, 3, shape)
    return np.asarray(x).astype(dtype.np)


def fold(ufunc, x, axes):
    """A reduction written as Python loops, in f64 (or exactly, for integers)."""
    wide = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    kept = [i for i in range(x.ndim) if i not in axes]
    out = np.zeros([x.shape[i] for i in kept], wide.dtype)
    for j in np.ndindex(out.shape):
        cell = wide[tuple(j[kept.index(i)] if i in kept else slice(None) for i in range(x.ndim))].ravel()
        total = cell[0] if cell.size else ufunc.identity
        for v in cell[1:]:
            total = ufunc(total, v)
        out[j] = total
    return out.astype(x.dtype)


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize(("prim", "ufunc"), SUMS + EXTREMES)
def test_axes(prim, ufunc, axes, check_value):
    x = some(f32, (3, 2, 8)).transpose(2, 0, 1)[::2]
    check_value(prim, [x], {"axes": axes}, fold(ufunc, x, axes))


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize(("prim", "ufunc"), SUMS)
def test_sums_of_every_dtype(prim, ufunc, dtype, check_value):
    x = some(dtype, (3, 4))
    check_value(prim, [x], {"axes": (0,)}, fold(ufunc, x, (0,)))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, bool_])
@pytest.mark.parametrize(("prim", "ufunc"), EXTREMES)
def test_extremes_of_every_dtype(prim, ufunc, dtype, check_value):
    x = some(dtype, (3, 4))
    check_value(prim, [x], {"axes": (1,)}, fold(ufunc, x, (1,)))


@pytest.mark.parametrize("dtype", [f16, bf16])
def test_half_precision_accumulates_in_f32(dtype):
    x = np.full(5000, 1, dtype.np)
    assert P.sum_p.bind(x, axes=(0,)) == np.asarray(5000).astype(dtype.np)
    assert P.cumsum_p.bind(x, axis=0)[-1] == np.asarray(5000).astype(dtype.np)


def test_integer_sums_wrap():
    assert P.sum_p.bind(np.full(3, 100, np.int8), axes=(0,)) == np.int8(300 - 256)
    assert P.cumsum_p.bind(np.full(3, 100, np.uint8), axis=0)[-1] == 300 - 256


def test_reductions_of_nothing(check_value):
    x = np.zeros((0, 3), np.float32)
    check_value(P.sum_p, [x], {"axes": (0,)}, np.zeros(3, np.float32))
    check_value(P.prod_p, [x], {"axes": (0,)}, np.ones(3, np.float32))
    check_value(P.reduce_max_p, [x], {"axes": (1,)}, np.zeros(0, np.float32))
    check_value(P.all_p, [x > 0], {"axes": (0,)}, np.ones(3, bool))
    check_value(P.any_p, [x > 0], {"axes": (0, 1)}, np.zeros((), bool))
    for prim, attrs in ((P.reduce_max_p, {"axes": (0,)}), (P.reduce_min_p, {"axes": (0, 1)}),
                        (P.argmax_p, {"axis": 0})):  # fmt: skip
        with pytest.raises(ValueError, match="no elements"):
            trace(lambda v, prim=prim, attrs=attrs: prim.bind(v, **attrs), TensorType((0, 3), f32))
        with pytest.raises(ValueError, match=r"empty|zero-size"):
            prim.bind(x, **attrs)


def test_reductions_of_a_0d_value(check_value):
    x = np.float32(2).reshape(())
    for prim in (P.sum_p, P.prod_p, P.reduce_max_p):
        check_value(prim, [x], {"axes": ()}, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_wins(dtype):
    x = np.array([[1, np.nan, 3], [4, 5, 6]]).astype(dtype.np)
    for prim in (P.reduce_max_p, P.reduce_min_p, P.sum_p):
        out = prim.bind(x, axes=(1,)).astype(np.float64)
        assert np.isnan(out[0]) and not np.isnan(out[1])
    for prim in (P.argmax_p, P.argmin_p):
        assert prim.bind(np.array([1, np.nan, 9, np.nan, -9]).astype(dtype.np), axis=0) == 1
    for prim in (P.cummax_p, P.cummin_p):
        out = prim.bind(x[0], axis=0).astype(np.float64)
        assert np.isnan(out).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, bool_])
def test_arg_extremes_give_the_first(dtype, check_value):
    x = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype.np)
    check_value(P.argmax_p, [x], {"axis": 1}, np.array([1, 0]))
    check_value(P.argmin_p, [x], {"axis": 1}, np.array([0, 1]))
    check_value(P.argmax_p, [x], {"axis": 0}, np.array([1, 0, 0]))


def test_any_and_all(check_value):
    x = np.array([[True, False], [True, True]])
    check_value(P.any_p, [x], {"axes": (0,)}, np.array([True, True]))
    check_value(P.all_p, [x], {"axes": (0,)}, np.array([True, False]))


@pytest.mark.parametrize(
    ("prim", "dtype", "attrs", "error"),
    [
        (P.sum_p, bool_, {"axes": (0,)}, TypeError),
        (P.reduce_max_p, c64, {"axes": (0,)}, TypeError),
        (P.any_p, f32, {"axes": (0,)}, TypeError),
        (P.sum_p, f32, {"axes": (2,)}, ValueError),
        (P.sum_p, f32, {"axes": (1, 0)}, ValueError),
        (P.sum_p, f32, {"axes": (0, 0)}, ValueError),
        (P.argmax_p, f32, {"axis": -1}, ValueError),
        (P.cumsum_p, f32, {"axis": 2}, ValueError),
        (P.cummax_p, c64, {"axis": 0}, TypeError),
    ],
)
def test_refused(prim, dtype, attrs, error):
    with pytest.raises(error, match=prim.name):
        trace(lambda x: prim.bind(x, **attrs), TensorType((2, 3), dtype))


# gradients ----------------------------------------------------------------


@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("prim", [P.sum_p, P.prod_p, P.reduce_max_p, P.reduce_min_p])
def test_gradients(prim, axes, rng, check_gradient):
    check_gradient(prim, [rng.standard_normal((2, 3, 2))], {"axes": axes})


@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_gradient_of_a_product_with_zeros(zeros, rng, check_gradient):
    x = rng.standard_normal((2, 4))
    x[0, :zeros] = 0
    check_gradient(P.prod_p, [x], {"axes": (1,)}, tol=1e-4)
    check_gradient(P.cumprod_p, [x], {"axis": 1}, tol=1e-4)


def test_gradient_of_an_empty_product(check_gradient):
    check_gradient(P.prod_p, [np.zeros((0, 2))], {"axes": (0,)})
    check_gradient(P.cumprod_p, [np.zeros((2, 0))], {"axis": 1})


def test_the_gradient_of_an_extreme_is_shared_among_ties():
    x, ct = np.array([[3.0, 1.0, 3.0]]), np.array([1.0])
    for prim, sign in ((P.reduce_max_p, 1), (P.reduce_min_p, -1)):
        out = prim.bind(sign * x, axes=(1,))
        (grad,) = prim.vjp(ct, out, sign * x, axes=(1,))
        assert grad.tolist() == [[0.5, 0.0, 0.5]]


def test_complex_products_differentiate_as_torch_does():
    x = np.array([1 + 2j, -1j, 3 + 0j])
    (grad,) = P.prod_p.vjp(np.complex128(1), None, x, axes=(0,))
    want = np.conj([x[1] * x[2], x[0] * x[2], x[0] * x[1]])
    np.testing.assert_allclose(grad, want)
    (grad,) = P.cumprod_p.vjp(np.ones(3, complex), None, x, axis=0, reverse=False)
    want = np.conj([1 + x[1] + x[1] * x[2], x[0] + x[0] * x[2], x[0] * x[1]])
    np.testing.assert_allclose(grad, want)


# running reductions ----------------------------------------------------------------


@pytest.mark.parametrize(("axis", "reverse"), list(itertools.product((0, 1), (False, True))))
@pytest.mark.parametrize(("prim", "ufunc"), RUNNING)
def test_running(prim, ufunc, axis, reverse, check_value):
    x = some(f32, (6, 5))[::2]
    want = np.zeros_like(x)
    for i in range(x.shape[axis]):
        part = slice(i, None) if reverse else slice(None, i + 1)
        cell = x[part] if axis == 0 else x[:, part]
        want[(i, slice(None)) if axis == 0 else (slice(None), i)] = fold(ufunc, cell, (axis,))
    check_value(prim, [x], {"axis": axis, "reverse": reverse}, want)


@pytest.mark.parametrize("dtype", [f16, bf16, i8, u8, i64, c128])
def test_running_sum_of_every_kind_of_dtype(dtype, check_value):
    x = some(dtype, (4,))
    want = np.array([fold(np.add, x[: i + 1], (0,)) for i in range(4)], dtype.np)
    check_value(P.cumsum_p, [x], {"axis": 0}, want)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("prim", [p for p, _ in RUNNING])
def test_gradients_of_running_reductions(prim, reverse, rng, check_gradient):
    check_gradient(prim, [rng.standard_normal((2, 5))], {"axis": 1, "reverse": reverse})


def test_the_gradient_of_a_running_maximum_goes_to_the_latest_of_ties_and_to_nan():
    x = np.array([1.0, 2.0, 2.0, 0.0, np.nan, 5.0])
    ct = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    for prim, sign in ((P.cummax_p, 1), (P.cummin_p, -1)):
        out = prim.bind(sign * x, axis=0)
        (grad,) = prim.vjp(ct, out, sign * x, axis=0, reverse=False)
        assert grad.tolist() == [1.0, 2.0, 12.0, 0.0, 48.0, 0.0]
