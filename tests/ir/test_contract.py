"""Contractions against einsum and against a convolution written as loops."""

import itertools

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims import contract
from weft.ir.prims.base import trace
from weft.ir.types import NUMERIC, TensorType, bf16, bool_, c64, c128, f16, f32, f64

DOTS = [
    # a shape, b shape, contract, batch, einsum
    ((2, 3), (3, 4), ((1,), (0,)), ((), ()), "ab,bc->ac"),
    ((2, 3), (4, 3), ((1,), (1,)), ((), ()), "ab,cb->ac"),
    ((3, 2), (3, 4), ((0,), (0,)), ((), ()), "ba,bc->ac"),
    ((3,), (3,), ((0,), (0,)), ((), ()), "a,a->"),
    ((2,), (3,), ((), ()), ((), ()), "a,b->ab"),
    ((2, 3), (3,), ((1,), (0,)), ((), ()), "ab,b->a"),
    ((3,), (2, 3), ((0,), (1,)), ((), ()), "b,ab->a"),
    ((2, 4, 3), (2, 3, 5), ((2,), (1,)), ((0,), (0,)), "zab,zbc->zac"),
    ((4, 2, 3), (3, 2), ((2,), (0,)), ((1,), (1,)), "azb,bz->za"),
    ((2, 3, 4, 5), (5, 3, 2), ((1, 3), (1, 0)), ((0,), (2,)), "zbac,cbz->za"),
    ((2, 3, 4), (4, 6, 3), ((2, 1), (0, 2)), ((), ()), "abc,cdb->ad"),
    ((2, 3), (2, 3), ((0, 1), (0, 1)), ((), ()), "ab,ab->"),
    ((2, 3), (3, 2), ((), ()), ((1, 0), (0, 1)), "ab,ba->ba"),
    ((2, 2, 2, 3), (4, 3, 2, 2), ((3,), (1,)), ((0, 1), (2, 3)), "yzab,cbyz->yzac"),
]


@pytest.mark.parametrize(("a", "b", "dims", "batch", "spec"), DOTS)
def test_dot_general(a, b, dims, batch, spec, rng, check_value, check_gradient):
    x, y = np.asarray(rng.standard_normal(a)), np.asarray(rng.standard_normal(b))
    attrs = {"contract": dims, "batch": batch}
    check_value(P.dot_general_p, [x, y], attrs, np.asarray(np.einsum(spec, x, y)), rtol=1e-12)
    check_gradient(P.dot_general_p, [x, y], attrs, order=2 if x.size * y.size < 80 else 1)


@pytest.mark.parametrize("dtype", NUMERIC)
def test_dot_of_every_dtype(dtype, rng, check_value):
    x = rng.integers(0, 4, (3, 5)).astype(dtype.np)
    y = rng.integers(0, 4, (10, 2)).astype(dtype.np)[::2]
    want = (x.astype(np.int64 if dtype.is_integer else complex) @ y.astype(complex)).real.astype(dtype.np)
    check_value(P.dot_general_p, [x, y], {"contract": ((1,), (0,))}, want)


@pytest.mark.parametrize("dtype", [f16, bf16])
def test_half_precision_products_accumulate_in_f32(dtype):
    x = np.ones((1, 4097), dtype.np)
    x[0, 0] = 64
    out = P.dot_general_p.bind(x, x, contract=((1,), (1,)), batch=((), ()))
    assert out.dtype == dtype.np and out[0, 0] == np.float32(64 * 64 + 4096).astype(dtype.np)


def test_dot_of_nothing(check_value):
    x, y = np.zeros((2, 0), np.float32), np.zeros((0, 3), np.float32)
    check_value(P.dot_general_p, [x, y], {"contract": ((1,), (0,))}, np.zeros((2, 3), np.float32))
    check_value(P.dot_general_p, [y, y], {"contract": ((1,), (1,))}, np.zeros((0, 0), np.float32))
    check_value(P.dot_general_p, [x, y], {"contract": ((), ())}, np.zeros((2, 0, 0, 3), np.float32))


def test_complex_gradients_are_conjugated(rng):
    x, y, ct = (rng.standard_normal((2, 2)) + 1j * rng.standard_normal((2, 2)) for _ in range(3))
    dx, dy = P.dot_general_p.vjp(ct, None, x, y, contract=((1,), (0,)), batch=((), ()))
    np.testing.assert_allclose(dx, ct @ y.conj().T)
    np.testing.assert_allclose(dy, x.conj().T @ ct)


@pytest.mark.parametrize(
    ("a", "b", "dims", "batch", "error"),
    [
        (((2, 3), f32), ((4, 3), f32), ((1,), (0,)), ((), ()), ValueError),
        (((2, 3), f32), ((2, 3), f64), ((1,), (1,)), ((), ()), TypeError),
        (((2, 3), bool_), ((2, 3), bool_), ((1,), (1,)), ((), ()), TypeError),
        (((2, 3), f32), ((4, 3), f32), ((1,), (1,)), ((0,), (0,)), ValueError),
        (((2, 3), f32), ((2, 3), f32), ((1,), (1,)), ((1,), (1,)), ValueError),
        (((2, 3), f32), ((2, 3), f32), ((2,), (1,)), ((), ()), ValueError),
    ],
)
def test_dot_refused(a, b, dims, batch, error):
    attrs = {"contract": dims, "batch": batch}
    with pytest.raises(error, match="dot_general"):
        trace(lambda x, y: P.dot_general_p.bind(x, y, **attrs), TensorType(*a), TensorType(*b))


# convolution ----------------------------------------------------------------


def conv_loops(x, w, stride, padding, lhs_dilation, rhs_dilation, groups):
    """Every product of the definition, one by one."""
    n, _, *size = x.shape
    o, cg, *kernel = w.shape
    grown = [(s - 1) * d + 1 if s else 0 for s, d in zip(size, lhs_dilation, strict=True)]
    reach = [(k - 1) * d + 1 if k else 0 for k, d in zip(kernel, rhs_dilation, strict=True)]
    out_size = [max(0, (g + lo + hi - r) // s + 1) for g, r, (lo, hi), s in
                zip(grown, reach, padding, stride, strict=True)]  # fmt: skip
    out = np.zeros((n, o, *out_size), x.dtype)
    for i, f, ch in itertools.product(range(n), range(o), range(cg)):
        source = x[i, f // (o // groups) * cg + ch]
        for at in np.ndindex(*out_size):
            for k in np.ndindex(*kernel):
                p = [a * s + j * d - lo for a, s, j, d, (lo, _) in
                     zip(at, stride, k, rhs_dilation, padding, strict=True)]  # fmt: skip
                reached = zip(p, grown, lhs_dilation, strict=True)
                if all(0 <= q < g and q % d == 0 for q, g, d in reached):
                    place = tuple(q // d for q, d in zip(p, lhs_dilation, strict=True))
                    out[(i, f, *at)] += source[place] * w[(f, ch, *k)]
    return out


CONVS = [
    # x, w, stride, padding, lhs dilation, rhs dilation, groups
    ((2, 3, 5), (4, 3, 3), (1,), ((0, 0),), (1,), (1,), 1),
    ((1, 2, 6), (2, 2, 3), (2,), ((1, 2),), (1,), (1,), 1),
    ((2, 4, 5), (6, 2, 2), (1,), ((1, 0),), (1,), (2,), 2),
    ((1, 2, 4), (2, 1, 3), (2,), ((2, 1),), (3,), (1,), 2),
    ((1, 1, 7), (1, 1, 2), (2,), ((-1, -2),), (1,), (1,), 1),
    ((1, 1, 4), (1, 1, 3), (2,), ((-2, 3),), (2,), (2,), 1),
    ((2, 2, 4, 5), (3, 2, 2, 3), (1, 2), ((1, 1), (0, 1)), (1, 1), (1, 1), 1),
    ((1, 2, 3, 4), (2, 1, 2, 2), (2, 1), ((0, 2), (1, -1)), (2, 1), (1, 2), 2),
    ((2, 3, 2, 2), (4, 3, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    ((1, 1, 3, 3, 2), (2, 1, 2, 2, 2), (1, 2, 1), ((1, 0), (0, 1), (0, 0)), (1, 1, 2), (1, 1, 1), 1),
]
NAMES = ("stride", "padding", "lhs_dilation", "rhs_dilation", "groups")


@pytest.mark.parametrize("case", CONVS)
def test_conv(case, rng, check_value):
    x, w = (rng.standard_normal(s) for s in case[:2])
    want = conv_loops(x, w, *case[2:])
    check_value(P.conv_p, [x, w], dict(zip(NAMES, case[2:], strict=True)), want, rtol=1e-12)


@pytest.mark.parametrize("case", CONVS)
def test_gradient_of_conv(case, rng, check_gradient):
    x, w = (rng.standard_normal(s) for s in case[:2])
    order = 2 if x.size + w.size < 25 else 1
    check_gradient(P.conv_p, [x, w], dict(zip(NAMES, case[2:], strict=True)), order=order)


def test_conv_of_many_small_attributes_at_random(rng):
    for _ in range(60):
        groups, cg, og = rng.integers(1, 3, 3)
        n, size, kernel = rng.integers(1, 3), rng.integers(1, 6), rng.integers(1, 4)
        attrs = ((int(rng.integers(1, 4)),), (tuple(int(v) for v in rng.integers(-2, 4, 2)),),
                 (int(rng.integers(1, 3)),), (int(rng.integers(1, 3)),), int(groups))  # fmt: skip
        x = rng.standard_normal((n, groups * cg, size))
        w = rng.standard_normal((groups * og, cg, kernel))
        how = dict(zip(NAMES, attrs, strict=True))
        if (size - 1) * attrs[2][0] + 1 + sum(attrs[1][0]) >= 0:
            want = conv_loops(x, w, *attrs)
            out = P.conv_p.bind(x, w, **how)
            np.testing.assert_allclose(out, want, atol=1e-12, err_msg=str(how))
            ct = rng.standard_normal(out.shape)
            dx, dw = P.conv_p.vjp(ct, out, x, w, **how)
            # the map is linear in each operand: <ct, conv(u, w)> = <dx, u>
            u, v = rng.standard_normal(x.shape), rng.standard_normal(w.shape)
            np.testing.assert_allclose((ct * P.conv_p.bind(u, w, **how)).sum(), (dx * u).sum(), atol=1e-10)
            np.testing.assert_allclose((ct * P.conv_p.bind(x, v, **how)).sum(), (dw * v).sum(), atol=1e-10)


@pytest.mark.parametrize("dtype", NUMERIC)
def test_conv_of_every_dtype(dtype, rng, check_value):
    x = rng.integers(0, 3, (2, 2, 5, 4)).astype(dtype.np)[..., ::-1]
    w = rng.integers(0, 3, (3, 2, 2, 2)).astype(dtype.np)
    how = ((1, 1), ((1, 1), (0, 0)), (1, 1), (1, 1), 1)
    want = conv_loops(x.astype(complex), w.astype(complex), *how).real.astype(dtype.np)
    check_value(P.conv_p, [x, w], dict(zip(NAMES, how, strict=True)), want)


def test_conv_of_nothing(check_value, check_gradient):
    how = {"stride": (1,), "padding": ((0, 0),), "lhs_dilation": (1,), "rhs_dilation": (1,)}
    for xs, ws, out in (((0, 2, 4), (3, 2, 2), (0, 3, 3)), ((2, 0, 4), (3, 0, 2), (2, 3, 3)),
                        ((2, 2, 4), (0, 2, 2), (2, 0, 3)), ((1, 2, 1), (3, 2, 3), (1, 3, 0))):  # fmt: skip
        check_value(P.conv_p, [np.ones(xs), np.ones(ws)], how, np.zeros(out))
        check_gradient(P.conv_p, [np.ones(xs), np.ones(ws)], how)


def test_conv_in_chunks_of_samples(rng, monkeypatch):
    x, w = rng.standard_normal((5, 2, 12, 12)), rng.standard_normal((3, 2, 3, 3))
    how = {"stride": (1, 1), "padding": ((1, 1),) * 2, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    whole = P.conv_p.bind(x, w, **how)
    monkeypatch.setattr(contract, "_CONV_CHUNK", 2 * 18 * 144)
    np.testing.assert_allclose(P.conv_p.bind(x, w, **how), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "w", "groups", "error"),
    [
        ((1, 2, 4), (2, 3, 2), 1, ValueError),
        ((1, 4, 4), (3, 2, 2), 2, ValueError),
        ((1, 2), (2, 2), 1, ValueError),
        ((1, 2, 4), (2, 2, 2, 2), 1, ValueError),
    ],
)
def test_conv_refused(x, w, groups, error):
    how = {"stride": (1,), "padding": ((0, 0),), "lhs_dilation": (1,), "rhs_dilation": (1,), "groups": groups}
    with pytest.raises(error, match="conv"):
        trace(lambda a, b: P.conv_p.bind(a, b, **how), TensorType(x, f32), TensorType(w, f32))


def test_conv_wants_an_entry_per_dimension():
    how = {"stride": (1, 1), "padding": ((0, 0),), "lhs_dilation": (1,), "rhs_dilation": (1,)}
    with pytest.raises(ValueError, match="stride"):
        trace(lambda a: P.conv_p.bind(a, a, **how), TensorType((1, 1, 3), f32))


def test_complex_conv_gradients_are_conjugated(rng):
    shapes = ((1, 1, 3), (1, 1, 3), (1, 1, 1))
    x, w, ct = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in shapes)
    how = {"stride": (1,), "padding": ((0, 0),), "lhs_dilation": (1,), "rhs_dilation": (1,), "groups": 1}
    dx, dw = P.conv_p.vjp(ct, None, x, w, **how)
    np.testing.assert_allclose(dx, ct * w.conj())
    np.testing.assert_allclose(dw, ct * x.conj())
    assert c64 in P.conv_p.dtypes and c128 in P.conv_p.dtypes
