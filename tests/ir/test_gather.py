"""Indexed reads and writes against loops."""

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import DTYPES, TensorType, bool_, c64, f32, f64, i32, i64

COMBINE = {
    "set": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": np.maximum,
    "min": np.minimum,
}


def writer(mode, along=False):
    name = "scatter" if mode in ("set", "add") else "scatter_reduce"
    return P.__dict__[f"{name}_along_p" if along else f"{name}_p"]


def scatter_loops(x, idx, upd, axes, mode):
    out = x.copy()
    rest = [i for i in range(x.ndim) if i not in axes]
    for i in np.ndindex(idx.shape[:-1]):
        for j in np.ndindex(*(x.shape[a] for a in rest)):
            at = [0] * x.ndim
            for a, v in zip(axes, idx[i], strict=True):
                at[a] = int(v)
            for a, v in zip(rest, j, strict=True):
                at[a] = v
            out[tuple(at)] = COMBINE[mode](out[tuple(at)], upd[(*i, *j)])
    return out


def scatter_along_loops(x, idx, upd, axis, mode):
    out = x.copy()
    for i in np.ndindex(idx.shape):
        at = tuple(int(idx[i]) if d == axis else v for d, v in enumerate(i))
        out[at] = COMBINE[mode](out[at], upd[i])
    return out


# reads ----------------------------------------------------------------


@pytest.mark.parametrize("index_dtype", [np.int64, np.int32])
@pytest.mark.parametrize(
    ("axes", "shape", "read"),
    [
        ((0,), (4, 1), lambda x, i: x[i[:, 0]]),
        ((1,), (2, 2, 1), lambda x, i: np.moveaxis(x[:, i[..., 0]], 0, 2)),
        ((0, 2), (5, 2), lambda x, i: x[i[:, 0], :, i[:, 1]]),
        ((2, 0), (5, 2), lambda x, i: x[i[:, 1], :, i[:, 0]]),
        ((0, 1, 2), (3,), lambda x, i: x[tuple(i)]),
        ((0,), (0, 1), lambda x, i: x[:0]),
        ((), (2, 0), lambda x, i: np.stack([x, x])),
    ],
)
def test_gather(axes, shape, read, index_dtype, rng, check_value):
    x = rng.standard_normal((3, 8, 3))[:, ::2]
    idx = rng.integers(0, 3, shape).astype(index_dtype)
    check_value(P.gather_p, [x, idx], {"axes": axes}, np.asarray(read(x, idx)))


def test_a_gather_is_fresh(rng):
    x = rng.standard_normal((3, 4))
    for axes, k in (((0, 1), 2), ((0,), 1), ((), 0)):
        out = P.gather_p.bind(x, np.zeros((2, k), np.int64), axes=axes)
        assert out.flags.c_contiguous and out.flags.writeable and not np.shares_memory(out, x)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_take_along(axis, rng, check_value):
    x = rng.standard_normal((3, 4, 2))
    idx = rng.integers(0, x.shape[axis], (2, 3, 2)).astype(np.int32)
    want = np.zeros(idx.shape)
    for i in np.ndindex(idx.shape):
        want[i] = x[tuple(int(idx[i]) if d == axis else v for d, v in enumerate(i))]
    check_value(P.take_along_p, [x, idx], {"axis": axis}, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_and_writes_of_every_dtype(dtype, check_value):
    x = np.array([0, 1, 1, 0]).astype(dtype.np)
    upd = np.array([1, 1, 0]).astype(dtype.np)
    idx = np.array([3, 3, 1])
    check_value(P.gather_p, [x, idx[:, None]], {"axes": (0,)}, x[idx])
    check_value(P.take_along_p, [x, idx], {"axis": 0}, x[idx])
    for mode in COMBINE if not dtype.is_complex else ("set", "add", "mul"):
        want = scatter_along_loops(x, idx, upd, 0, mode)
        check_value(writer(mode), [x, idx[:, None], upd], {"axes": (0,), "mode": mode}, want)
        check_value(writer(mode, True), [x, idx, upd], {"axis": 0, "mode": mode}, want)


# writes ----------------------------------------------------------------


@pytest.mark.parametrize("mode", COMBINE)
@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((0,), (5, 1)),
        ((1,), (2, 2, 1)),
        ((0, 2), (6, 2)),
        ((2, 0), (6, 2)),
        ((0, 1, 2), (3,)),
        ((0,), (0, 1)),
        ((), (2, 0)),
    ],
)
def test_scatter(axes, shape, mode, rng, check_value):
    x = rng.standard_normal((3, 8, 3))[:, ::2]
    idx = rng.integers(0, 3, shape)
    rest = [x.shape[i] for i in range(3) if i not in axes]
    upd = rng.standard_normal((*shape[:-1], *rest))
    before = x.copy()
    want = scatter_loops(x, idx, upd, axes, mode)
    check_value(writer(mode), [x, idx, upd], {"axes": axes, "mode": mode}, want, rtol=1e-12)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("mode", COMBINE)
@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_along(axis, mode, rng, check_value):
    x = rng.standard_normal((3, 4))
    idx = rng.integers(0, x.shape[axis], (2, 3))
    upd = rng.standard_normal((2, 3))
    want = scatter_along_loops(x, idx, upd, axis, mode)
    check_value(writer(mode, True), [x, idx, upd], {"axis": axis, "mode": mode}, want, rtol=1e-12)


def test_nan_wins_in_scattered_extremes():
    x = np.array([1.0, 2.0])
    for mode in ("max", "min"):
        out = P.scatter_reduce_p.bind(x, np.array([[0]]), np.array([np.nan]), axes=(0,), mode=mode)
        assert np.isnan(out[0]) and out[1] == 2


# gradients ----------------------------------------------------------------


def test_gradient_of_reads(rng, check_gradient):
    x = rng.standard_normal((3, 4))
    check_gradient(P.gather_p, [x, np.array([[1], [1], [0]])], {"axes": (0,)})
    check_gradient(P.gather_p, [x, np.array([[1, 2], [1, 2], [0, 0]])], {"axes": (0, 1)})
    check_gradient(P.take_along_p, [x, np.array([[1, 1], [0, 3]])], {"axis": 1})


@pytest.mark.parametrize("mode", COMBINE)
def test_gradient_of_writes(mode, rng, check_gradient):
    x, upd = rng.standard_normal((3, 2)), rng.standard_normal((4, 2))
    # set is differentiated as if no index occurred twice
    rows = np.array([[2], [0], [1], [0]] if mode != "set" else [[2], [0], [1]])
    upd = upd[: len(rows)]
    check_gradient(writer(mode), [x, rows, upd], {"axes": (0,), "mode": mode})
    idx = np.array([[0, 1], [1, 0]]) if mode == "set" else np.array([[0, 0], [1, 0]])
    check_gradient(writer(mode, True), [x, idx, upd[:2]], {"axis": 1, "mode": mode})


@pytest.mark.parametrize("zeros", [1, 2])
def test_gradient_of_a_scattered_product_with_zeros(zeros, rng, check_gradient):
    upd = rng.standard_normal(4)
    upd[:zeros] = 0
    idx = np.array([[1], [1], [1], [0]])
    arrays = [rng.standard_normal(2), idx, upd]
    check_gradient(P.scatter_reduce_p, arrays, {"axes": (0,), "mode": "mul"}, order=1)


def test_the_gradient_of_a_scattered_extreme_is_shared_among_ties():
    x, upd, idx = np.array([2.0, 5.0]), np.array([2.0, 2.0, 1.0]), np.array([[0], [0], [0]])
    how = {"axes": (0,), "mode": "max"}
    out = P.scatter_reduce_p.bind(x, idx, upd, **how)
    dx, _, dupd = P.scatter_reduce_p.vjp(np.array([3.0, 7.0]), out, x, idx, upd, **how)
    assert dx.tolist() == [1.0, 7.0] and dupd.tolist() == [1.0, 1.0, 0.0]


# errors ----------------------------------------------------------------


@pytest.mark.parametrize("bad", [3, -1])
def test_an_index_out_of_range(bad):
    x, idx, upd = np.zeros((3, 2)), np.array([[0], [bad]]), np.zeros((2, 2))
    for run in (
        lambda: P.gather_p.bind(x, idx, axes=(0,)),
        lambda: P.scatter_p.bind(x, idx, upd, axes=(0,), mode="add"),
        lambda: P.take_along_p.bind(x, idx, axis=0),
        lambda: P.scatter_along_p.bind(x, idx, upd[:, :1], axis=0, mode="set"),
    ):
        with pytest.raises(IndexError, match=f"index {bad} is out of bounds for dimension 0 with size 3"):
            run()


SET, MIN = {"axes": (0,), "mode": "set"}, {"axis": 0, "mode": "min"}


@pytest.mark.parametrize(
    ("prim", "types", "attrs", "error"),
    [
        (P.gather_p, [((3,), f32), ((2, 1), f32)], {"axes": (0,)}, TypeError),
        (P.gather_p, [((3,), f32), ((2,), i64)], {"axes": (0,)}, ValueError),
        (P.gather_p, [((3,), f32), ((), i64)], {"axes": ()}, ValueError),
        (P.gather_p, [((3,), f32), ((2, 1), i64)], {"axes": (1,)}, ValueError),
        (P.gather_p, [((3,), f32), ((2, 2), i64)], {"axes": (0, 0)}, ValueError),
        (P.take_along_p, [((3, 2), f32), ((2,), i64)], {"axis": 0}, ValueError),
        (P.take_along_p, [((3, 2), f32), ((2, 3), i64)], {"axis": 0}, ValueError),
        (P.take_along_p, [((3, 2), f32), ((2, 2), bool_)], {"axis": 0}, TypeError),
        (P.scatter_p, [((3,), f32), ((2, 1), i32), ((3,), f32)], {"axes": (0,)}, ValueError),
        (P.scatter_p, [((3,), f32), ((2, 1), i32), ((2,), f64)], {"axes": (0,)}, TypeError),
        (P.scatter_p, [((3,), f32), ((2, 1), i32), ((2,), f32)], {"axes": (0,), "mode": "max"}, ValueError),
        (P.scatter_reduce_p, [((3,), f32), ((1, 1), i32), ((1,), f32)], SET, ValueError),
        (P.scatter_reduce_along_p, [((3,), c64), ((2,), i32), ((2,), c64)], MIN, TypeError),
        (P.scatter_along_p, [((3,), f32), ((2,), i32), ((3,), f32)], {"axis": 0}, ValueError),
    ],
)
def test_refused(prim, types, attrs, error):
    with pytest.raises(error, match=prim.name):
        trace(lambda *xs: prim.bind(*xs, **attrs), *(TensorType(*t) for t in types))
