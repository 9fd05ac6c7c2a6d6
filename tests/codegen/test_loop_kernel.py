"""Loop kernels against the reference interpreter: as kernel IR in numpy, as machine code for two targets, and
as PTX on the emulated GPU."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from weft.codegen.gpu.target import gpu_target
from weft.codegen.kernel import KernelCode, emit_kernel
from weft.codegen.schedule import schedule
from weft.codegen.standalone import Standalone
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.interp import run
from weft.ir.loops_interp import run_kernel
from weft.ir.loops_text import parse_kernel, print_kernel
from weft.ir.prims.base import PRIMITIVES, trace, type_of
from weft.ir.types import (
    BITS,
    FLOATS,
    INTS,
    TensorType,
    bf16,
    bool_,
    dtype_of_numpy,
    f16,
    f32,
    f64,
    i32,
    i64,
    u8,
)
from weft.passes.pipeline import lower
from weft.runtime.cuda.standalone import run_region

TARGETS = {"host": host_target, "haswell": lambda: named_target("haswell")}
SHAPES = [(), (1,), (7,), (64,), (1000,), (3, 5), (130, 17), (2, 3, 4, 5), (70, 640)]


def rng():
    return np.random.default_rng(7)


def sample(shape, dtype):
    r = rng()
    if dtype is bool_:
        return r.random(shape) < 0.5
    if dtype.is_floating_point:
        return np.asarray(r.standard_normal(shape)).astype(dtype.np)
    low = 0 if not dtype.is_signed else -50
    return np.asarray(r.integers(low, 50, shape)).astype(dtype.np)


def spread(x, shape, axes):
    return P.broadcast_p.bind(x, shape=shape, axes=axes)


def kept(x, axes):
    return tuple(i for i in range(type_of(x).ndim) if i not in axes)


def loop_kernels(graph):
    return [op for op in graph.ops if op.prim.name == "kernel" and op.attrs["form"] == "loop"]


def run_fused(graph, arrays, execute):
    """Run a fused graph, its loop kernels by ``execute(op, arrays)``."""
    env = dict(zip(graph.params, arrays, strict=True))
    for op in graph.ops:
        xs = [np.asarray(env[v]) for v in op.operands]
        fused = op.prim.name == "kernel" and op.attrs["form"] == "loop"
        outs = execute(op, xs) if fused else op.prim.evaluate(xs, op.attrs, op.regions)
        env.update(zip(op.results, outs, strict=True))
    return [env[r] for r in graph.results]


def by_machine(target):
    def execute(op, xs):
        kernel = Standalone(op, target)
        out = kernel(*xs, chunks=3)
        assert kernel.status == 0
        return out

    return execute


def by_numpy(op, xs):
    kernel = schedule(op.regions[0], "k")
    text = print_kernel(kernel)
    again = parse_kernel(text)
    assert print_kernel(again) == text
    outs = run_kernel(again, xs)
    return [o.reshape(r.type.shape) for o, r in zip(outs, op.results, strict=True)]


def by_device(op, xs):
    """On the emulated GPU, where a race is an error."""
    return run_region(op, xs, gpu_target("sm_80"))


EXECUTORS = {"numpy": lambda: by_numpy, "sm_80": lambda: by_device}
EXECUTORS |= {n: (lambda t=t: by_machine(t())) for n, t in TARGETS.items()}


@pytest.fixture(params=list(EXECUTORS))
def execute(request):
    return EXECUTORS[request.param]()


def compare(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.dtype.kind in "biu":
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(
                a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance
            )


def check(execute, fn, *arrays, tolerance=2e-5, kernels=1):
    graph = trace(fn, *[TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in map(np.asarray, arrays)])
    fused = lower(graph).graph
    assert len(loop_kernels(fused)) == kernels
    compare(run_fused(fused, arrays, execute), run(graph, arrays), tolerance)


# maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_map_chain(execute, shape):
    check(execute, lambda x, y: (P.tanh_p.bind(x * y) + x, x - y), sample(shape, f32), sample(shape, f32) + 1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_arithmetic_is_exact(execute, dtype):
    def f(x, y):
        return (
            x + y,
            x * y,
            x / y,
            P.maximum_p.bind(x, y),
            P.minimum_p.bind(x, y),
            P.sqrt_p.bind(P.abs_p.bind(x)),
        )

    x, y = sample((77,), dtype), sample((77,), dtype)[::-1].copy()
    x[:4], y[2:6] = np.nan, np.inf
    check(execute, f, x, y, tolerance=0)


@pytest.mark.parametrize("dtype", INTS)
def test_integer_arithmetic(execute, dtype):
    def f(x, y):
        div, rem = P.div_p.bind(x, y), P.rem_p.bind(x, y)
        return (
            x + y,
            x * y,
            x - y,
            div,
            rem,
            P.bit_and_p.bind(x, y),
            P.minimum_p.bind(x, y),
            P.lt_p.bind(x, y),
        )

    x, y = sample((77,), dtype), sample((77,), dtype)[::-1].copy()
    y[y == 0] = 1  # an error elsewhere
    check(execute, f, x, y)


@pytest.mark.parametrize("dtype", BITS + FLOATS)
def test_where_and_conversions(execute, dtype):
    def f(c, x):
        halves = [P.convert_p.bind(x, dtype=d) for d in (f32, f16, bf16, f64, i64, i32, u8, bool_)]
        return [P.where_p.bind(c, x, x), *halves]

    x = sample((41,), dtype)
    x = np.abs(x) if dtype.is_floating_point else x
    check(execute, f, sample((41,), bool_), x, tolerance=0)


def test_bfloat16_rounds_to_nearest_even(execute):
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001, 0xFF800000, 0x00000001, 0x3F808001], np.uint32
    )
    check(execute, lambda x: P.convert_p.bind(x, dtype=bf16), np.tile(bits.view(np.float32), 5), tolerance=0)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("divisor", [3.0, -0.7, 1e-3, 1.9999999, np.inf, 0.0, np.nan, 1e-42, 3e38])
def test_division_by_one_number_is_as_exact_as_division(execute, dtype, divisor):
    r = rng()
    x = (r.standard_normal(1000) * np.exp2(r.integers(-20, 100, 1000))).astype(dtype.np)
    x[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 3e38]
    d = np.asarray(divisor, dtype.np)
    graph = trace(
        lambda a, b: a / spread(b, (1000,), ()), TensorType((1000,), dtype), TensorType((), dtype)
    )
    (got,) = run_fused(lower(graph).graph, [x, d], execute)
    with np.errstate(all="ignore"):
        want = x / d
    normal = ~(np.abs(want) < np.finfo(dtype.np).tiny) | (want == 0)
    np.testing.assert_array_equal(got[normal], want[normal])
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-45 if dtype is f32 else 0)


def test_broadcast_operands(execute):
    def f(x, row, column, scalar):
        s = type_of(x).shape
        return x * spread(row, s, (1,)) + spread(column, s, (0, 1)) - spread(scalar, s, ())

    arrays = [sample(s, f32) for s in ((33, 70), (70,), (33, 1), ())]
    check(execute, f, *arrays)


# movement --------------------------------------------------------------------------------------------


def pad(x, lo, hi, interior):
    zero = P.full_p.bind(shape=(), dtype=type_of(x).dtype, value=3.0)
    return P.pad_p.bind(x, zero, lo=lo, hi=hi, interior=interior)


MOVES = {
    "permute": lambda x: P.permute_p.bind(x, perm=(1, 0)) * 2.0,
    "slice": lambda x: P.slice_p.bind(x, start=(1, 2), stop=(30, 60), step=(2, 3)) * 2.0,
    "flip": lambda x: P.flip_p.bind(x, axes=(0, 1)) * 2.0,
    "pad": lambda x: pad(x * 2.0, (1, 3), (2, 70), (0, 0)),
    "crop and dilate": lambda x: pad(x, (-1, 2), (3, -4), (1, 2)) * 2.0,
    "concatenate": lambda x: P.concatenate_p.bind(x * 2.0, x, x - 1.0, axis=1),
    "concatenate rows": lambda x: P.concatenate_p.bind(x * 2.0, x, axis=0) * 3.0,
    "update": lambda x: P.update_slice_p.bind(
        x, P.slice_p.bind(x, start=(0, 0), stop=(9, 20), step=(1, 1)) * 2.0, start=(2, 3), step=(3, 2)
    ),
    "split": lambda x: P.sqrt_p.bind(P.reshape_p.bind(P.abs_p.bind(x), shape=(33, 7, 10))),
    "split and permute": lambda x: (
        P.permute_p.bind(P.reshape_p.bind(P.abs_p.bind(x), shape=(33, 7, 10)), perm=(1, 0, 2)) * 2.0
    ),
    "iota": lambda x: x + P.iota_p.bind(shape=type_of(x).shape, dtype=f32, axis=1),
}


@pytest.mark.parametrize("name", MOVES)
def test_movement(execute, name):
    check(execute, MOVES[name], sample((33, 70), f32))


def test_large_transpose(execute):
    check(execute, lambda x: P.permute_p.bind(x, perm=(1, 0)) + 1.0, sample((130, 272), f32))
    check(execute, lambda x: P.permute_p.bind(x, perm=(0, 2, 1)) + 1.0, sample((3, 64, 96), f32))


def test_random_bits(execute):
    state = np.array([1234567, 5], np.int64)
    check(execute, lambda s: P.random_bits_p.bind(s, shape=(7, 33)), state)


def test_random_bits_of_every_length(execute):
    state = np.array([-3, 1 << 40], np.int64)
    for n in (1, 64, 257):
        check(execute, lambda s, n=n: P.random_bits_p.bind(s, shape=(n,)), state)


def test_gather(execute):
    def rows(table, index):
        return P.gather_p.bind(table, P.reshape_p.bind(index, shape=(9, 1)), axes=(0,)) * 2.0

    def points(table, index):
        return P.take_along_p.bind(table, index, axis=1) * 2.0

    check(execute, rows, sample((50, 33), f32), rng().integers(0, 50, 9))
    check(execute, points, sample((5, 40), f32), rng().integers(0, 40, (5, 33)).astype(np.int32))


@pytest.mark.parametrize("target", TARGETS)
def test_an_index_out_of_range_sets_the_status(target):
    def f(table, index):
        return P.gather_p.bind(table, index, axes=(0,)) * 2.0

    index = np.array([[3], [50], [-1]])
    graph = lower(trace(f, TensorType((50, 8), f32), TensorType((3, 1), i64))).graph
    kernel = Standalone(loop_kernels(graph)[0], TARGETS[target]())
    kernel(sample((50, 8), f32), index)
    assert kernel.status == 1
    with pytest.raises(IndexError):
        by_numpy(loop_kernels(graph)[0], [sample((50, 8), f32), index])


# reductions ------------------------------------------------------------------------------------------

REDUCTIONS = [
    ((300, 40), (0,)), ((300, 40), (1,)), ((300, 40), (0, 1)), ((5, 70, 33), (0,)), ((5, 70, 33), (1,)),
    ((5, 70, 33), (2,)), ((5, 70, 33), (0, 2)), ((5, 70, 33), (0, 1, 2)), ((4, 3, 8, 9), (0, 2, 3)),
    ((3, 20000), (1,)), ((3, 20000), (0, 1)), ((20000, 3), (1,)), ((20000, 3), (0,)), ((30011,), (0,)),
    ((5,), (0,)), ((1, 1), (0, 1)), ((16, 70000), (0,)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axes"), REDUCTIONS)
def test_sum_and_max(execute, shape, axes):
    def f(x):
        return P.sum_p.bind(x * x, axes=axes) * 2.0, P.reduce_max_p.bind(x, axes=axes)

    graph = trace(f, TensorType(shape, f64))
    fused = lower(graph).graph
    x = sample(shape, f64)
    compare(run_fused(fused, [x], execute), run(graph, [x]), 1e-10)


@pytest.mark.parametrize(
    "name", ["sum", "prod", "reduce_max", "reduce_min", "any", "all", "argmax", "argmin"]
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [f32, f16, bf16, i32, i64, u8, bool_])
def test_every_fold(execute, name, axis, dtype):
    prim = PRIMITIVES[name]
    if dtype not in prim.dtypes:
        with pytest.raises(TypeError):
            trace(lambda x: prim.bind(x, axes=(axis,)), TensorType((3, 3), dtype))
        return
    attrs = {"axis": axis} if name.startswith("arg") else {"axes": (axis,)}
    x = sample((37, 45), dtype)
    if name == "prod" and dtype.is_floating_point:
        x = (x * 0.1 + 1).astype(dtype.np)
    tolerance = {f16: 2e-3, bf16: 1e-2}.get(dtype, 1e-5)
    check(execute, lambda v: prim.bind(v, **attrs), x, tolerance=tolerance)


@pytest.mark.parametrize("name", ["sum", "prod", "reduce_max", "reduce_min", "argmax", "argmin"])
@pytest.mark.parametrize("dtype", [i32, i64, u8])
@pytest.mark.parametrize("columns", [64, 70, 130])
def test_folds_of_integers_over_several_vectors(execute, name, dtype, columns):
    attrs = {"axis": 1} if name.startswith("arg") else {"axes": (1,)}
    x = np.random.default_rng(3).integers(0, 120, (50, columns)).astype(dtype.np)
    check(execute, lambda v: PRIMITIVES[name].bind(v, **attrs), x)


@pytest.mark.parametrize("name", ["reduce_max", "reduce_min", "argmax", "argmin"])
def test_nan_wins(execute, name):
    x = sample((6, 70), f32)
    x[1, 5] = x[2, 69] = x[3, 0] = x[4, 33] = x[4, 34] = np.nan
    x[5] = -np.inf
    attrs = {"axis": 1} if name.startswith("arg") else {"axes": (1,)}
    check(execute, lambda v: PRIMITIVES[name].bind(v, **attrs), x)


def test_first_extreme_wins(execute):
    x = np.zeros((5, 100), np.float32)
    x[:, [20, 37, 68]] = 1
    check(execute, lambda v: (P.argmax_p.bind(v, axis=1), P.argmin_p.bind(v, axis=1)), x)


def test_partial_results_do_not_depend_on_the_pieces():
    graph = lower(trace(lambda x: P.sum_p.bind(x, axes=(0, 1)), TensorType((700, 301), f32))).graph
    kernel = Standalone(loop_kernels(graph)[0])
    x = sample((700, 301), f32)
    results = {kernel(x, chunks=n)[0].tobytes() for n in (1, 2, 3, 7)}
    assert len(results) == 1


# rows ------------------------------------------------------------------------------------------------


def softmax(x, axis):
    s = type_of(x).shape
    e = P.exp_p.bind(x - spread(P.reduce_max_p.bind(x, axes=(axis,)), s, kept(x, (axis,))))
    return e / spread(P.sum_p.bind(e, axes=(axis,)), s, kept(x, (axis,)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 64), (100, 100), (64, 10), (300, 4), (4, 1000)])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax(execute, shape, axis):
    check(execute, lambda x: softmax(x, axis), sample(shape, f32))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_of_three_axes(execute, axis):
    check(execute, lambda x: softmax(x, axis), sample((5, 33, 18), f32))


def mean(x, axes):
    n = prod(type_of(x).shape[a] for a in axes)
    return P.sum_p.bind(x, axes=axes) * (1.0 / n)


def normalise(x, axes):
    s, k = type_of(x).shape, kept(x, axes)
    c = x - spread(mean(x, axes), s, k)
    scale = P.rsqrt_p.bind(mean(c * c, axes) + 1e-5)
    return c * spread(scale, s, k), scale


@pytest.mark.parametrize("dtype", FLOATS)
def test_layer_norm(execute, dtype):
    tolerance = {f16: 5e-3, bf16: 4e-2}.get(dtype, 2e-5)

    def f(x, r, w):
        y, scale = normalise(x + r, (1,))
        return y * spread(w, type_of(x).shape, (1,)), scale

    check(
        execute,
        f,
        sample((20, 129), dtype),
        sample((20, 129), dtype),
        sample((129,), dtype),
        tolerance=tolerance,
    )


@pytest.mark.parametrize("axes", [(0, 2, 3), (1, 2, 3), (2, 3)])
def test_statistics_over_several_axes(execute, axes):
    check(execute, lambda x: normalise(x, axes)[0], sample((6, 5, 4, 9), f32))


def test_layer_norm_gradients(execute):
    """Row reductions and sums over rows in one walk."""

    def f(ct, x, w):
        s = type_of(x).shape
        y, scale = normalise(x, (1,))
        g = ct * spread(w, s, (1,))
        inner = g - spread(mean(g, (1,)), s, (0,)) - y * spread(mean(g * y, (1,)), s, (0,))
        return inner * spread(scale, s, (0,)), P.sum_p.bind(ct * y, axes=(0,)), P.sum_p.bind(ct, axes=(0,))

    check(
        execute,
        f,
        sample((200, 65), f32),
        sample((200, 65), f32)[::-1].copy(),
        sample((65,), f32),
        tolerance=1e-4,
    )


def test_pairwise(execute):
    def f(x, y):
        s = (50, 61, 3)
        d = spread(x, s, (0, 2)) - spread(y, s, (1, 2))
        return P.sum_p.bind(P.exp_p.bind(-P.sum_p.bind(d * d, axes=(2,))), axes=(1,))

    check(execute, f, sample((50, 3), f32), sample((61, 3), f32)[::-1].copy())


def test_one_operand_read_along_two_axes(execute):
    def f(x):
        s = (40, 40, 3)
        d = spread(x, s, (0, 2)) - spread(x, s, (1, 2))
        return P.sum_p.bind(P.abs_p.bind(d), axes=(2,))

    check(execute, f, sample((40, 3), f32))


def test_a_matrix_and_its_transpose(execute):
    check(execute, lambda x: x + P.permute_p.bind(x, perm=(1, 0)), sample((33, 33), f32))


# the code --------------------------------------------------------------------------------------------


def code_of(fn, *types, target=None) -> KernelCode:
    (op,) = loop_kernels(lower(trace(fn, *types)).graph)
    return emit_kernel(op, target or host_target(), "k")


def test_in_place_pairs_are_read_before_they_are_written():
    t = TensorType((64, 64), f32)
    assert code_of(lambda x, y: x + y * 2.0, t, t).inplace == {(0, 0), (1, 0)}
    assert code_of(lambda x: x + P.permute_p.bind(x, perm=(1, 0)), t).inplace == set()
    assert code_of(lambda x: P.flip_p.bind(x, axes=(0,)) * 2.0, t).inplace == set()


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf", "sin", "cos", "sqrt", "pow", "atan2", "rem"])
@pytest.mark.parametrize("target", ["haswell", "skylake-avx512"])
def test_no_calls_into_libm(name, target):
    t = TensorType((1000,), f32)
    prim = PRIMITIVES[name]
    n = 2 if name in ("pow", "atan2", "rem") else 1
    graph = lower(trace(lambda *x: prim.bind(*x), *[t] * n)).graph
    kernel = Standalone(loop_kernels(graph)[0], named_target("haswell" if target == "haswell" else target))
    calls = [line.split()[1] for line in kernel.asm().splitlines() if line.strip().startswith("call")]
    assert all(called.startswith("weft_") for called in calls)


def test_bytes_and_phases():
    code = code_of(lambda x: P.sum_p.bind(x, axes=(0,)), TensorType((4096, 64), f32))
    assert code.bytes_moved == 4 * (4096 * 64 + 64)
    assert len(code.phases) == 2
    assert code.phases[0].units > 1
    assert code.scratch_bytes == 4 * 64 * code.phases[0].units


def test_alike_nests_share_their_code(execute):
    def f(*xs):
        return [P.exp_p.bind(x) * 2.0 for x in xs]

    arrays = [sample(s, f32) for s in ((33,), (33,), (33,), (50,))]
    check(execute, f, *arrays)
    code = code_of(f, *[TensorType(a.shape, f32) for a in arrays])
    assert code.llvm.count("define internal") == 2
    assert code.loops.count("lanes [") == 4


def test_large_results_are_streamed_where_they_are_aligned():
    t = TensorType((1 << 22,), f32)
    graph = lower(trace(lambda x: x * 2.0, t)).graph
    kernel = Standalone(loop_kernels(graph)[0])
    x = sample((1 << 22,), f32)
    for offset in (0, 4):
        raw = np.zeros((1 << 22) + 64, np.float32)
        start = -raw.ctypes.data % 64 // 4 + offset
        out = raw[start : start + (1 << 22)]
        block = kernel.block([x], [out], np.zeros(1, np.int64))
        for fn, units in kernel._phases:
            fn(block, 0, units, 0)
        np.testing.assert_array_equal(out, x * 2)
    assert "nontemporal" in kernel.llvm
