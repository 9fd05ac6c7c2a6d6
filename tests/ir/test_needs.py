"""Gradient rules of structural primitives read only the values that ``needs`` names."""

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import PRIMITIVES, Kind, type_of
from weft.ir.types import CPU

X, IDX = np.arange(1.0, 7.0).reshape(2, 3), np.array([[1, 0, 1]])
ONE_D = {"window": (1, 2), "stride": (1, 1), "padding": ((0, 0), (1, 0)), "dilation": (1, 1)}
CONV = {"stride": (1,), "padding": ((1, 0),), "lhs_dilation": (1,), "rhs_dilation": (1,)}
Q, MASK = np.arange(12.0).reshape(1, 2, 3, 2) / 12, np.arange(3.0).reshape(1, 1, 1, 3)
ROW = np.arange(6.0).reshape(1, 2, 3) + 3
STATE = np.array([1, 2])
KINDS = (
    Kind.REDUCE, Kind.SCAN, Kind.CONTRACT, Kind.ATTENTION, Kind.MOVE, Kind.GATHER, Kind.SCATTER, Kind.SORT,
    Kind.WINDOW,
)  # fmt: skip
REDUCTIONS = ("max", "min", "mul")
CASES = {
    "sum": [((X,), {"axes": (0,)})],
    "prod": [((X,), {"axes": (0,)}), ((X[:0],), {"axes": (0,)})],
    "reduce_max": [((X,), {"axes": (0,)})],
    "reduce_min": [((X,), {"axes": (0,)})],
    "cumsum": [((X,), {"axis": 1})],
    "cumprod": [((X,), {"axis": 1})],
    "cummax": [((X,), {"axis": 1})],
    "cummin": [((X,), {"axis": 1})],
    "dot_general": [((X, X), {"contract": ((1,), (1,))})],
    "conv": [((X[None], X[None]), CONV), ((X[None], X[None][..., :0]), CONV)],
    "attention": [((Q, Q, Q), {}), ((Q, Q[:, :1], Q[:, :1], MASK, STATE), {"dropout": 0.2, "causal": True})],
    "attention_grad": [((Q, Q, Q, Q, ROW, ROW), {}), ((Q, Q, Q, Q, ROW, ROW, MASK, STATE), {"dropout": 0.2})],
    "reshape": [((X,), {"shape": (6,)})],
    "permute": [((X,), {"perm": (1, 0)})],
    "broadcast": [((X[:, :1],), {"shape": (4, 2, 3), "axes": (1, 2)})],
    "slice": [((X,), {"start": (0, 1), "stop": (2, 3), "step": (1, 2)})],
    "pad": [((X, np.array(2.0)), {"lo": (1, -1), "hi": (0, 2), "interior": (1, 0)})],
    "flip": [((X,), {"axes": (1,)})],
    "diagonal": [((X,), {"offset": 1})],
    "concatenate": [((X, X), {"axis": 0})],
    "update_slice": [((X, X[:1]), {"start": (1, 0), "step": (1, 1)})],
    "copy": [((X,), {})],
    "transfer": [((X,), {"device": CPU})],
    "gather": [((X, IDX.T), {"axes": (0,)})],
    "take_along": [((X, IDX), {"axis": 0})],
    "scatter": [((X, IDX.T, np.ones((3, 3))), {"axes": (0,), "mode": m}) for m in ("set", "add")],
    "scatter_along": [((X, IDX, X[:1]), {"axis": 0, "mode": m}) for m in ("set", "add")],
    "scatter_reduce": [((X, IDX.T, np.ones((3, 3))), {"axes": (0,), "mode": m}) for m in REDUCTIONS],
    "scatter_reduce_along": [((X, IDX, X[:1]), {"axis": 0, "mode": m}) for m in REDUCTIONS],
    "sort": [((X,), {"axis": 1, "descending": True})],
    "topk": [((X,), {"axis": 1, "k": 2})],
    "reduce_window": [((X,), {"op": op, **ONE_D}) for op in ("max", "min", "sum")],
    "window_scatter": [((X + 1, X), ONE_D)],
}


class TypeOnly:
    """Stands for a value that was not kept."""

    def __init__(self, x):
        self.type = type_of(x)


def test_every_differentiable_structural_primitive_is_here():
    expected = {n for n, p in PRIMITIVES.items() if p.kind in KINDS and not p.nondifferentiable}
    assert set(CASES) == expected


@pytest.mark.parametrize("name", CASES)
def test_needs_is_the_truth(name):
    prim = getattr(P, f"{name}_p")
    for arrays, attrs in CASES[name]:
        attrs = prim.normalize_attrs(attrs)
        out = prim.bind(*arrays, **attrs)
        ct = tuple(map(np.ones_like, out)) if isinstance(out, tuple) else np.ones_like(out)
        whole = prim.vjp(ct, out, *arrays, **attrs)
        needs = prim.needs_with(attrs)
        kept = [x if str(i) in needs else TypeOnly(x) for i, x in enumerate(arrays)]
        stubs = tuple(map(TypeOnly, out)) if isinstance(out, tuple) else TypeOnly(out)
        again = prim.vjp(ct, out if "o" in needs else stubs, *kept, **attrs)
        assert len(whole) == len(arrays)
        for a, b, x in zip(whole, again, arrays, strict=True):
            assert (a is None) == (b is None) == (x.dtype.kind == "i")
            if a is not None:
                assert a.shape == x.shape and a.dtype == x.dtype
                np.testing.assert_array_equal(a, b)


def test_what_is_read_may_depend_on_the_attributes():
    assert P.reduce_window_p.needs_with({"op": "sum"}) == ""
    assert P.reduce_window_p.needs_with({"op": "max"}) == "0"
