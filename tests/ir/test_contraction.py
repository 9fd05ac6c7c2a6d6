"""What fusion may put before and after a contraction."""

from __future__ import annotations

import pytest
from weft.ir import prims as P
from weft.ir.contraction import epilogue_refusal, form_of, prologue_refusal, side_refusal, unsupported
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, c64, f16, f32, i64


def ops(fn, *types):
    return {op.prim.name: op for op in trace(fn, *types).ops}


def linear(x, w):
    y = P.dot_general_p.bind(P.exp_p.bind(x), P.permute_p.bind(w, perm=(1, 0)), contract=((1,), (0,)))
    half = P.convert_p.bind(P.tanh_p.bind(y), dtype=f16)
    return [half, P.sum_p.bind(y, axes=(0,)), P.reshape_p.bind(y, shape=(12,))]


LINEAR = ops(linear, TensorType((3, 5), f32), TensorType((4, 5), f32))


def test_maps_and_moves_go_before_a_contraction():
    dot = LINEAR["dot_general"]
    assert form_of(dot) == "contract" and unsupported(dot) is None
    assert prologue_refusal(dot, LINEAR["exp"]) is None
    assert prologue_refusal(dot, LINEAR["permute"], 1) is None
    assert "reduce" in str(prologue_refusal(dot, LINEAR["sum"]))


def test_maps_of_the_same_shape_go_after_it():
    dot = LINEAR["dot_general"]
    assert epilogue_refusal(dot, LINEAR["tanh"]) is None
    assert epilogue_refusal(dot, LINEAR["convert"]) is None
    assert "reduce" in str(epilogue_refusal(dot, LINEAR["sum"]))
    assert "move" in str(epilogue_refusal(dot, LINEAR["reshape"]))


def test_side_values_may_be_broadcast_and_random():
    def fn(b, state, x):
        wide = P.broadcast_p.bind(b, shape=(3, 4), axes=(1,))
        return [wide, P.random_bits_p.bind(state, shape=(3, 4)), P.concatenate_p.bind(x, x, axis=0)]

    side = ops(fn, TensorType((4,), f32), TensorType((2,), i64), TensorType((3, 4), f32))
    dot = LINEAR["dot_general"]
    assert side_refusal(dot, side["broadcast"]) is None
    assert side_refusal(dot, side["random_bits"]) is None
    assert "concatenate" in str(side_refusal(dot, side["concatenate"]))


def test_a_convolution_takes_only_casts_and_moves_on_its_data():
    def fn(x, w):
        x = P.exp_p.bind(P.convert_p.bind(x, dtype=f32))
        return P.conv_p.bind(
            x, P.neg_p.bind(w), stride=(1,), padding=((0, 0),), lhs_dilation=(1,), rhs_dilation=(1,)
        )

    found = ops(fn, TensorType((1, 2, 9), f16), TensorType((3, 2, 3), f32))
    conv = found["conv"]
    assert form_of(conv) == "conv"
    assert prologue_refusal(conv, found["convert"]) is None
    assert "packed several times" in str(prologue_refusal(conv, found["exp"]))
    assert prologue_refusal(conv, found["neg"], 1) is None


def test_complex_and_empty_values_stay_outside():
    def dot(a, b):
        return P.dot_general_p.bind(P.neg_p.bind(a), b, contract=((1,), (0,)))

    complexes = ops(dot, TensorType((3, 5), c64), TensorType((5, 4), c64))
    assert "complex" in str(unsupported(complexes["dot_general"]))
    assert "complex" in str(prologue_refusal(complexes["dot_general"], complexes["neg"]))
    empty = ops(dot, TensorType((0, 5), f32), TensorType((5, 4), f32))
    assert "empty" in str(unsupported(empty["dot_general"]))
    with pytest.raises(ValueError, match="not a contraction"):
        form_of(empty["neg"])
