"""Walks against the grain of memory: transposed blocks, strips of columns, reductions of transposes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_loop_kernel import EXECUTORS, check, loop_kernels, sample, spread
from weft.codegen.loop_memory import PREFETCHED
from weft.codegen.reshape_nest import _piece
from weft.codegen.schedule import schedule
from weft.codegen.standalone import Standalone
from weft.codegen.target import emitting_for, host_target, named_target
from weft.ir import prims as P
from weft.ir.loops import Load, Loop, Nest, Tile, statements
from weft.ir.prims.base import trace
from weft.ir.record import replace
from weft.ir.types import TensorType, bf16, bool_, f16, f32, f64, i64, u8
from weft.passes.pipeline import lower


@pytest.fixture(params=list(EXECUTORS))
def execute(request):
    return EXECUTORS[request.param]()


def scheduled(fn, *types):
    """The kernel IR of the one loop kernel of a function."""
    (op,) = loop_kernels(lower(trace(fn, *types)).graph)
    return schedule(op.regions[0], "k")


def tiles_of(kernel):
    return [s for phase in kernel.phases for n in phase for s in statements(n.body) if isinstance(s, Tile)]


# strips that are read ahead ---------------------------------------------------------------------------


def column_softmax(x):
    """Softmax down the columns, or down the middle axis of three."""
    shape = x.type.shape if hasattr(x, "type") else x.shape
    axis = len(shape) - 2
    axes = tuple(a for a in range(len(shape)) if a != axis)
    top = P.broadcast_p.bind(P.reduce_max_p.bind(x, axes=(axis,)), shape=shape, axes=axes)
    e = P.exp_p.bind(P.sub_p.bind(x, top))
    return P.div_p.bind(e, P.broadcast_p.bind(P.sum_p.bind(e, axes=(axis,)), shape=shape, axes=axes))


@pytest.mark.parametrize("dtype", [f32, f64, bf16])
@pytest.mark.parametrize("shape", [(700, 512), (300, 1000), (2500, 130), (2, 600, 330)], ids=str)
def test_softmax_down_long_columns(execute, shape, dtype):
    x = sample(shape, dtype)
    assert x.nbytes >= PREFETCHED or dtype is bf16  # what is smaller is not read ahead
    check(execute, column_softmax, x, tolerance={f32: 2e-6, f64: 1e-14, bf16: 1e-2}[dtype])


@pytest.mark.parametrize("target", [host_target(), named_target("haswell")], ids=["host", "haswell"])
def test_strips_read_ahead_are_those_read_in_their_turn(target, monkeypatch):
    """Neither the number of strips in one call nor reading them ahead changes a bit."""
    x = sample((700, 500), f32)
    x[3, 7], x[5, 100], x[:, 200] = np.nan, np.inf, -np.inf
    (op,) = loop_kernels(lower(trace(column_softmax, TensorType(x.shape, f32))).graph)
    ahead = Standalone(op, target, "ahead")
    monkeypatch.setattr("weft.codegen.loop_loops.strip_of", lambda e, body, lane: None)
    plain = Standalone(op, target, "plain")
    assert len(ahead.llvm) > 1.3 * len(plain.llvm)
    (want,) = plain(x, chunks=1)
    for chunks in (1, 2, 3, 8):
        np.testing.assert_array_equal(ahead(x, chunks=chunks)[0], want)


# transposed blocks ------------------------------------------------------------------------------------


def turned(x):
    return P.permute_p.bind(x, perm=(1, 0))


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (33, 70), (5, 300), (300, 5), (129, 257), (16, 2000)])
def test_transpose(execute, shape):
    check(execute, lambda x: P.copy_p.bind(turned(x)), sample(shape, f32), tolerance=0)


@pytest.mark.parametrize("dtype", [f64, f16, bf16, i64, u8, bool_])
def test_transpose_of_other_widths(execute, dtype):
    check(execute, lambda x: P.copy_p.bind(turned(x)), sample((71, 150), dtype), tolerance=0)


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_permutations(execute, perm):
    check(
        execute,
        lambda x: P.copy_p.bind(P.permute_p.bind(x, perm=perm)),
        sample((7, 40, 65), f32),
        tolerance=0,
    )


def test_sum_with_a_transpose(execute):
    check(execute, lambda x, y: x + turned(y) * 2.0, sample((100, 77), f32), sample((77, 100), f32))


def test_two_transposes(execute):
    x, y = sample((90, 50), f32), sample((90, 50), f32)
    check(
        execute, lambda x, y, b: turned(x) * turned(y) + spread(b, (50, 90), (1,)), x, y, sample((90,), f32)
    )


def test_transpose_gathers_nothing():
    """Whole vectors are read along the rows and turned by shuffles."""
    (op,) = loop_kernels(lower(trace(lambda x: P.copy_p.bind(turned(x)), TensorType((256, 256), f32))).graph)
    if host_target().masked:
        assert "masked.gather" not in Standalone(op).llvm


# reductions of transposed values ----------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_reduction_of_a_transpose(execute, axes):
    check(execute, lambda x: P.sum_p.bind(turned(x) * 2.0, axes=axes), sample((90, 130), f32), tolerance=2e-4)


def test_reduction_of_a_transpose_reads_along_memory():
    kernel = scheduled(lambda x: P.sum_p.bind(turned(x) * 2.0, axes=(1,)), TensorType((512, 512), f32))
    for nest in kernel.phases[0]:
        for loop in (s for s in nest.body if isinstance(s, Loop) and s.kind == "vector"):
            loads = [s for s in statements(loop.body) if isinstance(s, Load)]
            assert [s.index.coefficient(loop.axes[-1][0]) for s in loads] == [1]


# strips of columns ------------------------------------------------------------------------------------


def softmax(x, axis):
    shape = x.type.shape if hasattr(x, "type") else x.shape
    kept = tuple(i for i in range(len(shape)) if i != axis)
    e = P.exp_p.bind(x - spread(P.reduce_max_p.bind(x, axes=(axis,)), shape, kept))
    return e / spread(P.sum_p.bind(e, axes=(axis,)), shape, kept)


@pytest.mark.parametrize("shape", [(70, 5), (100, 64), (129, 200), (3, 90, 37), (2, 300, 130)])
def test_softmax_down_columns(execute, shape):
    check(execute, lambda x: softmax(x, len(shape) - 2), sample(shape, f32))


@pytest.mark.parametrize("dtype", [f64, f16, bf16])
def test_softmax_down_columns_of_other_dtypes(execute, dtype):
    tolerance = {f64: 1e-12, f16: 2e-3, bf16: 2e-2}[dtype]
    check(execute, lambda x: softmax(x, 0), sample((90, 75), dtype), tolerance=tolerance)


def test_strip_of_columns_is_read_once():
    """One tile: the copy of the strip gives up its place to the exponentials."""
    kernel = scheduled(lambda x: softmax(x, 0), TensorType((512, 512), f32))
    assert len(tiles_of(kernel)) == 1
    (nest,) = kernel.phases[0]
    loads = [s for s in statements(nest.body) if isinstance(s, Load) and s.buffer == "x0"]
    assert len(loads) == 1


def test_short_columns_and_rows_copy_nothing():
    short = scheduled(lambda x: softmax(x, 0), TensorType((8, 512), f32))
    rows = scheduled(lambda x: softmax(x, 1), TensorType((512, 512), f32))
    assert [len(tiles_of(k)) for k in (short, rows)] == [1, 1]  # of the exponentials alone
    for k in (short, rows):
        loads = [s for s in statements(k.phases[0][0].body) if isinstance(s, Load) and s.buffer == "x0"]
        assert len(loads) == 2


@pytest.mark.parametrize("axis", [0, 1])
def test_kept_value_read_in_another_row(execute, axis):
    """Exponentials are kept for their own row; where the mirrored row is wanted they are computed."""

    def f(x):
        e = P.exp_p.bind(x)
        kept = (1 - axis,)
        total = spread(P.sum_p.bind(e, axes=(axis,)), (80, 80), kept)
        return e / total + P.flip_p.bind(e, axes=kept)

    graph = trace(f, TensorType((80, 80), f32))
    count = len(loop_kernels(lower(graph).graph))
    check(execute, f, sample((80, 80), f32), kernels=count)


def test_kept_value_read_at_another_place_of_the_row(execute):
    def f(x):
        e = P.exp_p.bind(x)
        total = spread(P.sum_p.bind(e, axes=(0,)), (80, 75), (1,))
        return e / total + P.flip_p.bind(x, axes=(0,))

    check(execute, f, sample((80, 75), f32))


def test_many_units_for_one_walk_down_columns():
    kernel = scheduled(lambda x: P.argmax_p.bind(x, axis=0), TensorType((4096, 4096), f32))
    assert kernel.phases[0][0].units == 64
    assert np.prod([n.units for n in kernel.phases[0]]) > 1


# narrow columns, pieces -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1009, 7), (128, 5), (200, 64), (130, 1), (4096, 3)])
def test_narrow_columns(execute, shape):
    x = sample(shape, f32)
    check(execute, lambda x: P.sum_p.bind(x * 2.0, axes=(0,)), x, tolerance=2e-4)
    check(execute, lambda x: P.reduce_max_p.bind(x, axes=(0,)), x)


def test_narrow_columns_with_values_of_their_own(execute):
    """What belongs to a column is read once for a block of rows; what is stored, for every element."""

    def f(x, b):
        y = P.exp_p.bind(x - spread(b, (1009, 7), (1,)))
        return P.sum_p.bind(y, axes=(0,)), y

    check(execute, f, sample((1009, 7), f32), sample((7,), f32), tolerance=1e-3)


def test_narrow_rows_are_added_up_in_registers():
    kernel = scheduled(lambda x: P.sum_p.bind(x, axes=(0,)), TensorType((100_003, 7), f32))
    (nest,) = kernel.phases[0]
    (walk,) = [s for s in nest.body if isinstance(s, Loop)]
    (block,) = [s for s in walk.body if isinstance(s, Loop)]
    assert (block.kind, block.axes[0][1], nest.units > 1) == ("serial", 64, True)


def test_pieces_of_a_large_array_are_walked_in_order():
    """The mean of channels: every unit adds up its own, as memory comes."""
    kernel = scheduled(lambda x: P.sum_p.bind(x, axes=(0, 2, 3)), TensorType((64, 64, 56, 56), f32))
    (nest,) = kernel.phases[0]
    assert len(nest.axes) == 2
    assert [p.size for p in nest.partials] == [64]


def test_sum_of_pieces(execute, monkeypatch):
    monkeypatch.setattr("weft.ir.nest.LARGE", 1 << 10)
    check(execute, lambda x: P.sum_p.bind(x, axes=(0, 2)), sample((20, 6, 300), f32), tolerance=2e-4)


def test_strips_of_long_columns_stay_in_the_second_cache():
    def softmax(x):
        top = spread(P.reduce_max_p.bind(x, axes=(0,)), (4096, 256), (1,))
        e = P.exp_p.bind(P.sub_p.bind(x, top))
        return P.div_p.bind(e, spread(P.sum_p.bind(e, axes=(0,)), (4096, 256), (1,)))

    (op,) = loop_kernels(lower(trace(softmax, TensorType((4096, 256), f32))).graph)
    kernel = Standalone(op)
    arrays = [int(n) for n in re.findall(r"alloca \[(\d+) x i8\]", kernel.llvm)]
    assert max(arrays) >= 4096 * 4 * kernel.target.lanes(32)  # the strip is kept
    assert max(arrays) <= max(kernel.target.l2_bytes // 2, 4096 * 4 * kernel.target.lanes(32)) + 64
    x = sample((4096, 256), f32)
    np.testing.assert_allclose(kernel(x)[0], softmax(x), rtol=1e-5)


def test_pieces_of_transposed_operands_are_whole_lines():
    sizes = {}
    for line in (64, 128):
        with emitting_for(replace(host_target(), line_bytes=line)):
            nest = Nest([("p", 1024), ("q", 4096)], "lanes", 1)
            sizes[line] = _piece(nest, 1000, 4)
    assert sizes == {64: 16, 128: 32}


def spread_over_columns(x):
    mean = P.sum_p.bind(x, axes=(0,))
    apart = P.sub_p.bind(x, P.broadcast_p.bind(mean, shape=x.type.shape, axes=(1,)))
    return P.sum_p.bind(P.mul_p.bind(apart, apart), axes=(0,))


def test_columns_beyond_the_caches_are_read_by_a_kernel_for_each_reduction():
    for rows, kernels in ((512, 1), (8192, 2)):
        graph = lower(trace(spread_over_columns, TensorType((rows, 1024), f32))).graph
        assert len(loop_kernels(graph)) == kernels


def test_rows_side_by_side_fit_one_set_of_the_first_cache():
    def sums(*xs):
        return P.sum_p.bind(sum(xs[1:], xs[0]), axes=(0,))

    for operands, abreast in ((1, 8), (2, 4), (3, 2)):
        kernel = scheduled(sums, *[TensorType((4096, 1024), f32)] * operands)
        (nest,) = kernel.phases[0]
        unrolled = [s for s in statements(nest.body) if isinstance(s, Loop) and s.kind == "unroll"]
        assert [s.axes[0][1] for s in unrolled] == [abreast]
