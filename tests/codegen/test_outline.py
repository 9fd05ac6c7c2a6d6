"""Long scalar rules on single values are functions that kernels share."""

from __future__ import annotations

import numpy as np
from weft.codegen.standalone import compile_function
from weft.ir import prims as P
from weft.ir.types import TensorType, f32, f64

SHAPE = (40, 24)


def powers(x, base, k):
    """x times base to the k-th and to the 2k-th power: single values."""
    for exponent in (k, k + k):
        factor = P.convert_p.bind(P.pow_p.bind(base, exponent), dtype=f32)
        x = x * P.broadcast_p.bind(factor, shape=SHAPE, axes=())
    return x


def test_a_power_of_single_values_is_called():
    types = [TensorType(SHAPE, f32), TensorType((), f64), TensorType((), f64)]
    kernel = compile_function(powers, *types, form="loop")
    lines = kernel.code.llvm.splitlines()
    assert sum("@weft_pow_f64_f64(" in line for line in lines if "call" in line) == 2
    assert len(lines) < 150
    assert sum("define" in line and "@weft_pow_f64_f64(" in line for line in kernel.code.declares) == 1
    x = np.ones(SHAPE, np.float32)
    (got,) = kernel(x, np.float64(0.999), np.float64(7.0))
    np.testing.assert_allclose(got, np.full(SHAPE, 0.999**21), rtol=3e-7)


def test_the_function_gives_what_the_rule_gives_in_line():
    one, many = TensorType((), f64), TensorType((64,), f64)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 4, 64), rng.uniform(-20, 20, 64)
    x[:6], y[:6] = [0.0, np.inf, np.nan, 1.0, 0.0, 2.0], [0.0, -1.0, 1.0, np.nan, -3.0, np.inf]
    single = compile_function(lambda a, b: P.pow_p.bind(a, b), one, one, form="loop")
    inline = compile_function(lambda a, b: P.pow_p.bind(a, b), many, many, form="loop")
    (want,) = inline(x, y)
    got = [single(np.array(a), np.array(b))[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_array_equal(np.array(got).reshape(-1), want)
