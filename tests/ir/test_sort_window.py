"""Sorting and sliding windows."""

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import FLOATS, INTS, TensorType, bf16, bool_, c64, f16, f32, f64, i8, i64, u8

# sort, topk ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, bool_])
@pytest.mark.parametrize("descending", [False, True])
def test_sort_is_stable(dtype, descending, check_value):
    x = np.array([[1, 0, 1, 0, 1], [1, 1, 0, 0, 0]]).astype(dtype.np)
    order = [[0, 2, 4, 1, 3], [0, 1, 2, 3, 4]] if descending else [[1, 3, 0, 2, 4], [2, 3, 4, 0, 1]]
    want = np.take_along_axis(x, np.array(order), 1)
    check_value(P.sort_p, [x], {"axis": 1, "descending": descending}, want, np.array(order))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sort_axes(axis, rng, check_value):
    x = rng.standard_normal((3, 8, 2))[:, ::2]
    check_value(P.sort_p, [x], {"axis": axis}, np.sort(x, axis), np.argsort(x, axis))
    down = -np.sort(-x, axis)
    check_value(P.sort_p, [x], {"axis": axis, "descending": True}, down, np.argsort(-x, axis))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_the_largest(dtype):
    x = np.array([np.nan, 1, np.inf, np.nan, -np.inf]).astype(dtype.np)
    assert P.sort_p.bind(x, axis=0)[1].tolist() == [4, 1, 2, 0, 3]
    assert P.sort_p.bind(x, axis=0, descending=True)[1].tolist() == [0, 3, 2, 1, 4]
    assert P.topk_p.bind(x, k=3, axis=0)[1].tolist() == [0, 3, 2]
    assert P.topk_p.bind(x, k=2, axis=0, largest=False)[1].tolist() == [4, 1]


def test_topk(check_value):
    x = np.array([[5, 1, 9, 3], [2, 8, 0, 7]])
    check_value(P.topk_p, [x], {"k": 2, "axis": 1}, np.array([[9, 5], [8, 7]]), np.array([[2, 0], [1, 3]]))
    check_value(P.topk_p, [x], {"k": 1, "axis": 0, "largest": False},
                np.array([[2, 1, 0, 3]]), np.array([[1, 0, 1, 0]]))  # fmt: skip


def test_sort_of_nothing(check_value):
    x = np.zeros((0, 2), np.float32)
    check_value(P.sort_p, [x], {"axis": 0, "descending": True}, x, x.astype(np.int64))
    check_value(P.topk_p, [x], {"k": 0, "axis": 1}, x[:, :0], x[:, :0].astype(np.int64))


def test_gradient_of_sorts(rng, check_gradient):
    x = rng.standard_normal((2, 4))
    check_gradient(P.sort_p, [x], {"axis": 1, "descending": True})
    check_gradient(P.topk_p, [x], {"k": 2, "axis": 0})
    check_gradient(P.topk_p, [x], {"k": 3, "axis": 1, "largest": False})


def test_sorts_refused():
    for prim, dtype, attrs, error in (
        (P.sort_p, c64, {"axis": 0}, TypeError),
        (P.sort_p, f32, {"axis": 1}, ValueError),
        (P.topk_p, f32, {"axis": 0, "k": 4}, ValueError),
        (P.topk_p, f32, {"axis": 0, "k": -1}, ValueError),
    ):
        with pytest.raises(error, match=prim.name):
            trace(lambda x, prim=prim, attrs=attrs: prim.bind(x, **attrs), TensorType((3,), dtype))
    with pytest.raises(ValueError, match="out of range"):
        P.topk_p.bind(np.zeros(3), k=4, axis=0)


# windows ----------------------------------------------------------------

NAMES = ("window", "stride", "padding", "dilation")
WINDOWS = [
    ((5,), ((2,), (1,), ((0, 0),), (1,))),
    ((6,), ((3,), (2,), ((1, 1),), (1,))),
    ((7,), ((2,), (2,), ((-1, 0),), (3,))),
    ((4, 5), ((2, 3), (2, 1), ((1, 0), (0, 1)), (1, 1))),
    ((4, 4), ((1, 2), (1, 2), ((0, 0), (0, 0)), (1, 2))),
    ((2, 3, 2, 2), ((1, 1, 2, 2), (1, 1, 1, 1), ((0, 0), (0, 0), (1, 1), (0, 1)), (1, 1, 1, 1))),
]


def windows_by_index(x, window, stride, padding, dilation):
    """(position, [(index, value) ...]) for each window, padding left out."""
    sizes = [max(0, (n + lo + hi - (k - 1) * d - 1) // s + 1) for n, (lo, hi), k, d, s in
             zip(x.shape, padding, window, dilation, stride, strict=True)]  # fmt: skip
    for at in np.ndindex(*sizes):
        cell = []
        for k in np.ndindex(*window):
            p = tuple(a * s + j * d - lo for a, s, j, d, (lo, _) in
                      zip(at, stride, k, dilation, padding, strict=True))  # fmt: skip
            # a negative padding crops
            if all(max(0, -lo) <= q < n - max(0, -hi) for q, n, (lo, hi) in
                   zip(p, x.shape, padding, strict=True)):  # fmt: skip
                cell.append((np.ravel_multi_index(p, x.shape), x[p]))
        yield at, cell


def reduce_by_index(x, how, combine, dtype=None):
    found = dict(windows_by_index(x, *how))
    shape = tuple(max(d) + 1 for d in zip(*found, strict=True))
    out = np.zeros(shape, dtype or x.dtype)
    for at, cell in found.items():
        out[at] = combine(cell)
    return out


@pytest.mark.parametrize(("shape", "how"), WINDOWS)
def test_windows(shape, how, rng, check_value):
    x = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float64)
    attrs = dict(zip(NAMES, how, strict=True))
    for op, fold in (("max", max), ("min", min), ("sum", sum)):
        want = reduce_by_index(x, how, lambda cell, fold=fold: fold([v for _, v in cell]))
        check_value(P.reduce_window_p, [x], {"op": op, **attrs}, want)
    first = reduce_by_index(x, how, lambda cell: max(cell, key=lambda c: (c[1], -c[0]))[0], np.int64)
    check_value(P.window_argmax_p, [x], attrs, first)


@pytest.mark.parametrize(("shape", "how"), WINDOWS)
@pytest.mark.parametrize("op", ["max", "min", "sum"])
def test_gradient_of_windows(op, shape, how, rng, check_gradient):
    attrs = dict(zip(NAMES, how, strict=True))
    x = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float64)
    check_gradient(P.reduce_window_p, [x], {"op": op, **attrs}, order=2 if x.size < 10 else 1)


ONE_D = {"window": (2,), "stride": (2,), "padding": ((1, 1),), "dilation": (1,)}


@pytest.mark.parametrize("dtype", [f16, bf16, f32, f64, i8, u8, i64, bool_])
def test_windows_of_every_kind_of_dtype(dtype, check_value):
    x = np.array([0, 1, 1, 0]).astype(dtype.np)
    check_value(P.reduce_window_p, [x], {"op": "max", **ONE_D}, np.array([0, 1, 0]).astype(dtype.np))
    check_value(P.reduce_window_p, [x], {"op": "min", **ONE_D}, np.array([0, 1, 0]).astype(dtype.np))
    check_value(P.window_argmax_p, [x], ONE_D, np.array([0, 1, 3]))
    if dtype is not bool_:
        check_value(P.reduce_window_p, [x], {"op": "sum", **ONE_D}, np.array([0, 2, 0]).astype(dtype.np))


def test_padding_never_wins():
    low = np.array([np.iinfo(np.int8).min] * 4, np.int8)
    assert P.window_argmax_p.bind(low, **ONE_D).tolist() == [0, 1, 3]
    lowest = np.full(4, -np.inf)
    assert P.window_argmax_p.bind(lowest, **ONE_D).tolist() == [0, 1, 3]


def test_nan_wins_in_windows():
    x = np.array([1, np.nan, np.nan, 5])
    how = {**ONE_D, "window": (4,), "stride": (1,), "padding": ((0, 0),)}
    for op in ("max", "min", "sum"):
        assert np.isnan(P.reduce_window_p.bind(x, op=op, **how)).all()
    assert P.window_argmax_p.bind(x, **how).tolist() == [1]
    (grad,) = P.reduce_window_p.vjp(np.ones(1), None, x, op="max", **how)
    assert grad.tolist() == [0, 1, 0, 0]


def test_windows_of_nothing(check_value, check_gradient):
    x = np.zeros((0, 4))
    how = {"window": (1, 2), "stride": (1, 1), "padding": ((0, 0),) * 2, "dilation": (1, 1)}
    check_value(P.reduce_window_p, [x], {"op": "max", **how}, np.zeros((0, 3)))
    check_value(P.reduce_window_p, [x.T[:1]], {"op": "sum", **how}, np.zeros((1, 0)))
    check_gradient(P.reduce_window_p, [x], {"op": "max", **how})


def test_a_0d_window(check_value):
    how = {"window": (), "stride": (), "padding": (), "dilation": ()}
    check_value(P.reduce_window_p, [np.array(2.0)], {"op": "max", **how}, np.array(2.0))
    check_value(P.window_argmax_p, [np.array(2.0)], how, np.array(0))


@pytest.mark.parametrize(
    ("attrs", "error"),
    [
        ({"op": "mean"}, ValueError),
        ({"op": "max", "window": (2, 2)}, ValueError),
        ({"op": "max", "window": (0,)}, ValueError),
        ({"op": "max", "stride": (0,)}, ValueError),
    ],
)
def test_windows_refused(attrs, error):
    with pytest.raises(error, match="reduce_window"):
        trace(lambda x: P.reduce_window_p.bind(x, **{**ONE_D, **attrs}), TensorType((4,), f32))
    with pytest.raises(TypeError, match="reduce_window"):
        trace(lambda x: P.reduce_window_p.bind(x, op="max", **ONE_D), TensorType((4,), c64))
