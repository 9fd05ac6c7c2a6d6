"""Sources and data movement."""

import itertools

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import DTYPES, Device, TensorType, bf16, bool_, c64, f16, f32, f64, i32, i64, u8

ALL = [d for d in DTYPES if d is not bool_]


def some(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    if dtype.is_complex:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.np)
    return np.asarray(rng.integers(0, 7, shape)).astype(dtype.np)


# sources ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "want"),
    [(f32, 1.5, 1.5), (bf16, -2.0, -2.0), (u8, -1, 255), (u8, 300, 44), (i32, 2.9, 2), (bool_, 2, True),
     (c64, 1 + 2j, 1 + 2j), (f64, True, 1.0), (i64, 2**62, 2**62), (f16, 1e9, np.inf)],
)  # fmt: skip
def test_full(dtype, value, want):
    with np.errstate(over="ignore"):
        out = P.full_p.bind(shape=(2, 3), dtype=dtype, value=value)
    assert out.shape == (2, 3) and out.dtype == dtype.np and (out == want).all()
    assert not out.flags.writeable and out.strides == (0, 0)


def test_full_keeps_the_bits_of_negative_zero_and_nan():
    assert np.signbit(P.full_p.bind(shape=(), dtype=f32, value=-0.0))
    assert np.isnan(P.full_p.bind(shape=(1,), dtype=bf16, value=float("nan")))


def test_full_of_no_elements():
    assert P.full_p.bind(shape=(0, 3), dtype=f32, value=1.0).shape == (0, 3)


def test_full_lives_on_its_device():
    graph = trace(lambda: P.full_p.bind(shape=(), dtype=f32, value=1.0, device=Device("cuda", 0)))
    assert str(graph.results[0].type) == "f32[]@cuda:0"


def test_full_wants_a_number():
    with pytest.raises(TypeError, match="Python number"):
        trace(lambda: P.full_p.bind(shape=(), dtype=f32, value="1"))


@pytest.mark.parametrize("dtype", [i64, u8, f32, f16, bf16, f64])
def test_iota(dtype, check_value):
    want = np.array([[0, 0], [1, 1], [2, 2]]).astype(dtype.np)
    check_value(P.iota_p, [], {"shape": (3, 2), "dtype": dtype, "axis": 0}, want)
    check_value(P.iota_p, [], {"shape": (4,), "dtype": dtype, "axis": 0}, np.arange(4).astype(dtype.np))


def test_iota_checks_its_axis():
    with pytest.raises(ValueError, match="axis 2"):
        trace(lambda: P.iota_p.bind(shape=(3, 2), dtype=i64, axis=2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant(dtype, check_value):
    value = some(dtype, (2, 2))
    check_value(P.constant_p, [], {"value": value}, value)


def test_a_constant_cannot_be_written():
    value = np.ones(3)
    out = P.constant_p.bind(value=value)
    with pytest.raises(ValueError, match="read-only"):
        out[0] = 2
    assert value.flags.writeable


# moves: values ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_moves_of_every_dtype(dtype, check_value):
    x = some(dtype, (4, 6))[::2, 1:]  # not contiguous
    check_value(P.reshape_p, [x], {"shape": (5, 2)}, x.reshape(5, 2))
    check_value(P.permute_p, [x], {"perm": (1, 0)}, x.T)
    check_value(P.broadcast_p, [x], {"shape": (2, 3, 5), "axes": (0, 2)},
                np.broadcast_to(x[:, None], (2, 3, 5)))  # fmt: skip
    check_value(P.slice_p, [x], {"start": (1, 0), "stop": (2, 5), "step": (1, 2)}, x[1:2, 0:5:2])
    check_value(P.flip_p, [x], {"axes": (1,)}, x[:, ::-1])
    check_value(P.diagonal_p, [x], {"offset": 1}, np.diagonal(x, 1))
    check_value(P.concatenate_p, [x, x[:1]], {"axis": 0}, np.concatenate([x, x[:1]]))
    check_value(P.copy_p, [x], {}, x)
    one = some(dtype, ())
    padded = np.full((5, 5), one)
    padded[0:4:3] = x
    check_value(P.pad_p, [x, one], {"lo": (0, 0), "hi": (1, 0), "interior": (2, 0)}, padded)
    written = x.copy()
    written[:, 1:4:2] = one
    upd = np.full((2, 2), one)
    check_value(P.update_slice_p, [x, upd], {"start": (0, 1), "step": (1, 2)}, written)


@pytest.mark.parametrize(
    ("prim", "attrs"),
    [(P.reshape_p, {"shape": (1, 1)}), (P.permute_p, {"perm": ()}),
     (P.broadcast_p, {"shape": (2,), "axes": ()}),
     (P.slice_p, {"start": (), "stop": (), "step": ()}), (P.flip_p, {"axes": ()}), (P.copy_p, {})],
)  # fmt: skip
def test_moves_of_a_0d_value(prim, attrs, check_value):
    x = np.float32(3).reshape(())
    want = {"reshape": x.reshape(1, 1), "broadcast": np.float32([3, 3])}.get(prim.name, x)
    check_value(prim, [x], attrs, want)


def test_moves_of_no_elements(check_value):
    x = np.zeros((0, 3), np.float32)
    check_value(P.reshape_p, [x], {"shape": (3, 0, 2)}, x.reshape(3, 0, 2))
    check_value(P.broadcast_p, [x], {"shape": (0, 2, 3), "axes": (0, 2)}, np.zeros((0, 2, 3), np.float32))
    check_value(P.slice_p, [x], {"start": (0, 1), "stop": (0, 1), "step": (1, 1)}, x[:, :0])
    one = np.ones((), np.float32)
    want = np.ones((2, 4), np.float32)
    check_value(P.pad_p, [x, one], {"lo": (2, 0), "hi": (0, 1), "interior": (3, 0)}, want)
    check_value(P.concatenate_p, [x, x], {"axis": 1}, np.zeros((0, 6), np.float32))


def pad_by_index(x, value, lo, hi, interior):
    """Every element put where the definition says, one dimension."""
    n = x.shape[0]
    out = np.full(lo + hi + n + max(n - 1, 0) * interior, value)
    for i in range(n):
        j = lo + i * (interior + 1)
        if 0 <= j < out.size:
            out[j] = x[i]
    return out


def test_pad_of_every_small_amount(check_value):
    for n, lo, hi, interior in itertools.product((0, 1, 4), (-3, -1, 0, 2), (-3, -1, 0, 2), (0, 1, 2)):
        x = np.arange(1.0, n + 1)
        if n + max(n - 1, 0) * interior + lo + hi >= 0:
            want = pad_by_index(x, 9.0, lo, hi, interior)
            out = P.pad_p.bind(x, np.float64(9), lo=(lo,), hi=(hi,), interior=(interior,))
            np.testing.assert_array_equal(out, want, err_msg=str((n, lo, hi, interior)))


def test_views_are_free_and_the_others_are_fresh():
    x = np.arange(12.0).reshape(3, 4)
    for view in (
        P.reshape_p.bind(x, shape=(12,)),
        P.permute_p.bind(x, perm=(1, 0)),
        P.broadcast_p.bind(x, shape=(2, 3, 4), axes=(1, 2)),
        P.slice_p.bind(x, start=(0, 0), stop=(3, 4), step=(2, 1)),
        P.diagonal_p.bind(x, offset=-1),
    ):
        assert np.shares_memory(view, x)
    for fresh in (
        P.flip_p.bind(x, axes=()),
        P.concatenate_p.bind(x, axis=0),
        P.copy_p.bind(x),
        P.pad_p.bind(x, np.float64(0), lo=(0, 0), hi=(0, 0), interior=(0, 0)),
        P.update_slice_p.bind(x, x[:1], start=(0, 0), step=(1, 1)),
    ):
        assert not np.shares_memory(fresh, x) and fresh.flags.c_contiguous


# moves: gradients ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("prim", "attrs"),
    [(P.reshape_p, {"shape": (6,)}), (P.permute_p, {"perm": (1, 0)}),
     (P.broadcast_p, {"shape": (4, 2, 3), "axes": (1, 2)}), (P.flip_p, {"axes": (0, 1)}),
     (P.diagonal_p, {"offset": 0}), (P.diagonal_p, {"offset": -1}), (P.diagonal_p, {"offset": 5}),
     (P.slice_p, {"start": (0, 0), "stop": (2, 2), "step": (1, 1)}),
     (P.slice_p, {"start": (1, 0), "stop": (2, 3), "step": (1, 2)}),
     (P.slice_p, {"start": (0, 2), "stop": (2, 2), "step": (1, 2)}), (P.copy_p, {})],
)  # fmt: skip
def test_gradient_of_moves(prim, attrs, rng, check_gradient):
    check_gradient(prim, [rng.standard_normal((2, 3))], attrs)


def test_gradient_of_a_broadcast_of_ones(rng, check_gradient):
    x = rng.standard_normal((1, 2, 1))
    check_gradient(P.broadcast_p, [x], {"shape": (3, 2, 4, 1), "axes": (0, 1, 2)})
    check_gradient(P.broadcast_p, [np.array(1.5)], {"shape": (2,), "axes": ()})


@pytest.mark.parametrize(
    "how",
    [
        ((1, 0), (0, 2), (0, 0)),
        ((-1, 1), (0, -1), (2, 1)),
        ((-2, 0), (2, 0), (0, 0)),
        ((0, 0), (0, 0), (0, 3)),
    ],
)
def test_gradient_of_pad(how, rng, check_gradient):
    lo, hi, interior = how
    x = [rng.standard_normal((2, 3)), np.array(0.5)]
    check_gradient(P.pad_p, x, {"lo": lo, "hi": hi, "interior": interior})


def test_gradient_of_concatenate_and_update_slice(rng, check_gradient):
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 2))
    check_gradient(P.concatenate_p, [a, b, a], {"axis": 1})
    check_gradient(P.update_slice_p, [a, b], {"start": (0, 0), "step": (1, 2)})


# moves: errors ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("prim", "shapes", "attrs", "error"),
    [
        (P.reshape_p, [(2, 3)], {"shape": (5,)}, ValueError),
        (P.reshape_p, [(2, 3)], {"shape": (-2, -3)}, ValueError),
        (P.permute_p, [(2, 3)], {"perm": (0, 0)}, ValueError),
        (P.permute_p, [(2, 3)], {"perm": (0,)}, ValueError),
        (P.broadcast_p, [(2,)], {"shape": (3,), "axes": (0,)}, ValueError),
        (P.broadcast_p, [(2, 3)], {"shape": (2, 3), "axes": (1, 0)}, ValueError),
        (P.slice_p, [(4,)], {"start": (0,), "stop": (5,), "step": (1,)}, ValueError),
        (P.slice_p, [(4,)], {"start": (0,), "stop": (4,), "step": (0,)}, ValueError),
        (P.flip_p, [(4,)], {"axes": (1,)}, ValueError),
        (P.diagonal_p, [(4,)], {"offset": 0}, ValueError),
        (P.concatenate_p, [(2, 3), (3, 2)], {"axis": 0}, ValueError),
        (P.concatenate_p, [], {"axis": 0}, ValueError),
        (P.pad_p, [(2,), (1,)], {"lo": (0,), "hi": (0,), "interior": (0,)}, ValueError),
        (P.pad_p, [(2,), ()], {"lo": (-2,), "hi": (-1,), "interior": (0,)}, ValueError),
        (P.update_slice_p, [(4,), (2,)], {"start": (3,), "step": (1,)}, ValueError),
        (P.update_slice_p, [(4,), (2,)], {"start": (1,), "step": (3,)}, ValueError),
    ],
)
def test_refused(prim, shapes, attrs, error):
    with pytest.raises(error, match=prim.name):
        trace(lambda *xs: prim.bind(*xs, **attrs), *(TensorType(s, f32) for s in shapes))


def test_one_dtype_is_wanted():
    types = [TensorType((2,), f32), TensorType((2,), f64)]
    with pytest.raises(TypeError, match="one dtype"):
        trace(lambda a, b: P.concatenate_p.bind(a, b, axis=0), *types)
