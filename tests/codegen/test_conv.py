"""Convolution kernels against the numpy evaluation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.conv_direct import Direct
from weft.codegen.conv_kernel import Conv, chosen, ways
from weft.codegen.conv_planes import Planes
from weft.codegen.conv_taps import Taps
from weft.codegen.costs import sharing
from weft.codegen.kernel import Unsupported
from weft.codegen.standalone import Standalone, compile_function, kernel_op
from weft.codegen.target import emitting_for, host_target, named_target
from weft.ir import prims as P
from weft.ir.prims.base import trace, type_of
from weft.ir.types import TensorType, c64, dtype_of_numpy, f32

TARGETS = [host_target(), named_target("haswell")]
TARGET_IDS = ["host", "haswell"]
rng = np.random.default_rng(1)


def normal(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def double(x):
    return np.asarray(x).astype(np.float64)


def check(fn, *arrays, target=None, tol=2e-5, way=None, plan=None) -> Standalone:
    """Against numpy; computed as the model chooses, or in one ``way``, by its own choice or a given plan."""

    def emit(op, target, prefix):
        with emitting_for(target):
            return (chosen(op, target, prefix) if way is None else way(op, target, prefix, plan)).emit()

    graph = trace(fn, *[TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays])
    kernel = Standalone(kernel_op(graph, "conv"), target, emit=emit)
    want = fn(*arrays)
    for got, w in zip(kernel(*arrays), want if isinstance(want, (list, tuple)) else [want], strict=True):
        assert got.dtype == w.dtype and got.shape == w.shape
        scale = np.abs(double(w)).max() or 1.0
        np.testing.assert_allclose(double(got) / scale, double(w) / scale, atol=tol, rtol=0)
    return kernel


def conv(stride, padding, lhs=None, rhs=None, groups=1):
    ones = (1,) * len(stride)
    return lambda x, w: P.conv_p.bind(
        x,
        w,
        stride=stride,
        padding=padding,
        lhs_dilation=lhs or ones,
        rhs_dilation=rhs or ones,
        groups=groups,
    )


NONE, ONE, SAME = ((0, 0), (0, 0)), (1, 1), ((1, 1), (1, 1))
CASES = {
    "same": (conv(ONE, SAME), (2, 3, 8, 8), (16, 3, 3, 3)),
    "valid": (conv(ONE, NONE), (3, 5, 9, 7), (6, 5, 3, 2)),
    "one element": (conv(ONE, SAME), (1, 1, 3, 3), (1, 1, 3, 3)),
    "stem": (conv((2, 2), ((3, 3), (3, 3))), (2, 3, 32, 32), (20, 3, 7, 7)),
    "pointwise": (conv(ONE, NONE), (2, 70, 8, 8), (40, 70, 1, 1)),
    "pointwise with stride": (conv((2, 2), NONE), (2, 70, 8, 8), (40, 70, 1, 1)),
    "both dilations, cropping": (conv(ONE, ((2, 1), (-1, 2)), (2, 3), (1, 2)), (2, 4, 6, 5), (8, 4, 3, 3)),
    "groups": (conv(ONE, SAME, groups=4), (2, 8, 12, 12), (12, 2, 3, 3)),
    "depthwise": (conv(ONE, SAME, groups=8), (2, 8, 20, 20), (8, 1, 3, 3)),
    "1d": (conv((3,), ((2, 2),)), (2, 4, 50), (8, 4, 5)),
    "1d, long kernel": (conv((1,), ((0, 0),)), (2, 4, 1500), (8, 4, 1400)),
    "3d": (conv((1, 2, 1), ((1, 1), (0, 1), (1, 0))), (2, 3, 5, 6, 7), (4, 3, 2, 3, 2)),
    "more k than a block": (conv(ONE, SAME), (1, 120, 7, 7), (130, 120, 3, 3)),
    "wide rows": (conv(ONE, SAME), (1, 4, 5, 150), (7, 4, 3, 3)),
    "as a weight gradient": (conv(ONE, SAME), (16, 32, 14, 14), (24, 32, 14, 14)),
    "as a weight gradient of stride 2": (conv(ONE, SAME, rhs=(2, 2)), (16, 32, 14, 14), (24, 32, 7, 7)),
    "transposed, one tap a phase": (conv(ONE, SAME, lhs=(2, 2)), (2, 4, 3, 5), (4, 4, 2, 2)),
    "as an input gradient of stride 2": (conv(ONE, ((2, 1), (2, 1)), lhs=(2, 2)), (2, 9, 7, 7), (5, 9, 3, 3)),
}


def grouped(groups, stride=ONE, padding=SAME, lhs=None, rhs=None):
    return conv(stride, padding, lhs, rhs, groups)


PLANES = {
    "same": (grouped(8), (2, 8, 20, 20), (8, 1, 3, 3)),
    "stride 2": (grouped(12, (2, 2)), (2, 12, 21, 35), (12, 1, 3, 3)),
    "stride 3": (grouped(12, (3, 3), ((2, 0), (3, 1))), (1, 12, 40, 61), (12, 1, 5, 4)),
    "dilated": (grouped(8, ONE, ((4, 4), (4, 4)), rhs=(2, 2)), (1, 8, 20, 33), (8, 1, 5, 5)),
    "stride and dilation": (grouped(8, (2, 2), ((4, 4), (4, 4)), rhs=(3, 3)), (1, 8, 20, 33), (8, 1, 3, 3)),
    "many taps": (grouped(8, ONE, ((3, 3), (3, 3))), (2, 8, 50, 50), (8, 1, 7, 7)),
    "cropped": (grouped(8, ONE, ((-1, 2), (-2, 3))), (2, 8, 25, 30), (8, 1, 3, 3)),
    "lines": (grouped(9, (2,), ((2, 2),)), (3, 9, 200), (9, 1, 5)),
    "gradient": (grouped(10), (1, 30, 30, 30), (10, 3, 30, 30)),
    "gradient of stride 2": (
        grouped(16, ONE, ((1, 0), (1, 0)), rhs=(2, 2)), (1, 32, 56, 56), (16, 2, 28, 28)),
    "gradient of many taps": (grouped(16, ONE, ((2, 2), (2, 2))), (1, 32, 37, 41), (16, 2, 37, 41)),
    "gradient of stride 3": (grouped(8, ONE, SAME, rhs=(3, 3)), (1, 8, 60, 60), (8, 1, 20, 20)),
    "gradient without padding": (grouped(8, ONE, NONE), (1, 8, 23, 29), (8, 1, 21, 27)),
    "gradient of dilated": (grouped(8, (2, 2), ((2, 2), (2, 2))), (1, 16, 40, 40), (8, 2, 40, 40)),
    "gradient of lines": (grouped(9, (1,), ((2, 2),), rhs=(2,)), (1, 27, 200), (9, 3, 100)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("case", PLANES)
def test_channels_by_themselves(case, target, dtype):
    """Read where they lie, a line at a time; also units of a part of an image, and bands that overlap."""
    fn, x, w = PLANES[case]
    arrays = [(4 * normal(*s)).astype(dtype) for s in (x, w)]
    kernel = check(fn, *arrays, target=target, tol=1e-12 if dtype == np.float64 else 1e-5, way=Planes)
    assert "by planes" in kernel.code.loops


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("case", [c for c in PLANES if c.startswith("gradient") and "lines" not in c])
@pytest.mark.parametrize("turned", ["image", "cotangent", "both"])
def test_gradients_of_images_that_lie_channels_last(turned, case, target):
    """They are turned to lines first, by blocks."""
    fn, x, w = PLANES[case]

    def run(x, w):
        if turned != "cotangent":
            x = P.permute_p.bind(x, perm=(0, 3, 1, 2))
        if turned != "image":
            w = P.permute_p.bind(w, perm=(3, 0, 1, 2))
        return fn(x, w)

    x = x if turned == "cotangent" else (x[0], x[2], x[3], x[1])
    w = w if turned == "image" else (w[1], w[2], w[3], w[0])
    kernel = check(run, normal(*x), normal(*w), target=target, tol=1e-4, way=Planes)
    assert "by planes" in kernel.code.loops
    assert sum("turn" in p.symbol for p in kernel.code.phases) == 1


@pytest.mark.parametrize("case", ["same", "stride 2", "gradient of many taps"])
def test_planes_with_an_epilogue(case):
    conv, x, w = PLANES[case]
    kernel = check(lambda x, w: P.exp_p.bind(P.neg_p.bind(P.abs_p.bind(conv(x, w)))), normal(*x), normal(*w),
                   tol=1e-4, way=Planes)
    assert "by planes" in kernel.code.loops


def test_what_lies_beside_an_image_is_not_multiplied():
    """Vectors reach past the end of a line: what they meet there counts as nothing."""
    fn, x, w = PLANES["gradient without padding"]
    image, ct = normal(*x), normal(*w)
    image[:, :, :, -1] = np.inf
    got = compile_function(fn, *(TensorType(a.shape, f32) for a in (image, ct)), form="conv")(image, ct)[0]
    assert np.isfinite(got[..., :-1]).all() and not np.isfinite(got[..., -1]).any()


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("case", CASES)
def test_forms(case, target):
    fn, x, w = CASES[case]
    check(fn, normal(*x), normal(*w), target=target, tol=1e-4)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize(
    ("dtype", "tol"), [(np.float64, 1e-13), (np.float16, 2e-3), (ml_dtypes.bfloat16, 1.6e-2)], ids=str
)
def test_float_dtypes(dtype, tol, target):
    for stride in ((1, 1), (2, 2)):
        check(conv(stride, SAME), normal(2, 5, 9, 9, dtype=dtype), normal(16, 5, 3, 3, dtype=dtype),
              target=target, tol=tol)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64], ids=str)
def test_integers(dtype):
    x, w = (
        rng.integers(-50, 50, (2, 5, 9, 9)).astype(dtype),
        rng.integers(-50, 50, (7, 5, 3, 3)).astype(dtype),
    )
    check(conv(ONE, SAME), x, w, tol=0)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
def test_epilogue_and_moved_operands(target):
    def fn(x, w, bias, residual):
        y = conv(ONE, SAME)(P.permute_p.bind(x, perm=(1, 0, 2, 3)), P.permute_p.bind(w, perm=(1, 0, 2, 3)))
        y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=type_of(y).shape, axes=(1,)))
        return [y, P.add_p.bind(P.maximum_p.bind(y, P.neg_p.bind(y)), residual)]

    check(fn, normal(5, 3, 11, 12), normal(5, 9, 3, 3), normal(9), normal(3, 9, 11, 12), target=target)


def test_casts_and_pads_before_the_convolution():
    def fn(x, w):
        zero = P.full_p.bind(shape=(), dtype=f32, value=0.0)
        x = P.pad_p.bind(
            P.convert_p.bind(x, dtype=f32), zero, lo=(0, 0, 1, 1), hi=(0, 0, 1, 2), interior=(0,) * 4
        )
        return conv(ONE, NONE)(x, P.neg_p.bind(w))

    check(fn, normal(2, 3, 8, 9, dtype=np.float16), normal(4, 3, 3, 3))


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("gap", [(2, 2), (3, 2), (1, 3)])
def test_zeros_of_a_dilated_input_are_not_multiplied(gap, target):
    """Phases of the output that see no tap, too; with an epilogue, groups and an odd size."""

    def fn(x, w, bias):
        y = conv(ONE, ((3, 2), (2, 4)), lhs=gap, groups=2)(x, w)
        y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=type_of(y).shape, axes=(1,)))
        return [y, P.maximum_p.bind(y, P.neg_p.bind(y))]

    for kernel in ((4, 5), (2, 2), (3, 3)):
        made = check(fn, normal(2, 6, 5, 7), normal(4, 3, *kernel), normal(4), target=target)
        taps = made.code.flops / (2 * 2 * 4 * 3 * np.prod(made.op.results[0].type.shape[2:]))
        assert taps <= np.prod(kernel) * 1.8


def test_parts_of_k_are_added_in_order():
    fn = conv(ONE, ((1, 1), (1, 1)))
    kernel = check(fn, normal(4, 40, 30, 30), normal(8, 40, 30, 30), tol=1e-4)
    x, w = normal(4, 40, 30, 30), normal(8, 40, 30, 30)
    np.testing.assert_array_equal(kernel(x, w, chunks=1)[0], kernel(x, w, chunks=7)[0])
    assert kernel.code.phases[-1].symbol.endswith("combine"), kernel.code.loops


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_special_values_reach_their_windows_only(value):
    x, w = np.ones((1, 2, 9, 9), np.float32), np.ones((3, 2, 3, 3), np.float32)
    x[0, 1, 4, 4] = value
    kernel = compile_function(
        conv(ONE, SAME), TensorType(x.shape, f32), TensorType(w.shape, f32), form="conv"
    )
    (got,) = kernel(x, w)
    touched = np.zeros((9, 9), bool)
    touched[3:6, 3:6] = True
    assert (~np.isfinite(got) == touched).all()


def test_no_unrolled_copy_of_the_input():
    kernel = compile_function(
        conv(ONE, SAME), TensorType((8, 16, 32, 32), f32), TensorType((16, 16, 3, 3), f32), form="conv"
    )
    assert kernel.code.scratch_bytes < 1.3 * 4 * 8 * 16 * 34 * 34


def test_what_is_not_compiled_says_why():
    with pytest.raises(Unsupported, match="complex"):
        compile_function(
            conv(ONE, NONE), TensorType((1, 1, 3, 3), c64), TensorType((1, 1, 2, 2), c64), form="conv"
        )
    with pytest.raises(Unsupported, match="nothing is contracted"):
        compile_function(
            conv(ONE, NONE), TensorType((1, 0, 3, 3), f32), TensorType((1, 0, 2, 2), f32), form="conv"
        )


DIRECT = {
    "depthwise": (conv(ONE, SAME, groups=24), (2, 24, 7, 9), (24, 1, 3, 3), 1),
    "depthwise, stride": (conv((2, 2), ((0, 1), (2, 1)), groups=96), (1, 96, 8, 9), (96, 1, 3, 5), 1),
    "depthwise, spread": (conv(ONE, ((1, 2), (1, 1)), lhs=(2, 2), groups=32),
                          (2, 32, 5, 4), (32, 1, 3, 3), 4),
    "padded": (conv(ONE, SAME), (2, 9, 8, 8), (16, 9, 3, 3), 1),
    "large k": (conv(ONE, SAME), (1, 600, 5, 5), (40, 600, 3, 3), 1),
    "stride": (conv((2, 3), ((1, 0), (2, 2))), (2, 17, 11, 9), (35, 17, 3, 2), 1),
    "dilated": (conv(ONE, ((2, 2), (1, 3)), rhs=(2, 3)), (1, 8, 9, 9), (64, 8, 3, 2), 1),
    "groups": (conv(ONE, SAME, groups=3), (2, 24, 6, 6), (48, 8, 3, 3), 1),
    "transposed": (conv(ONE, ((1, 2), (0, 1)), lhs=(2, 3)), (2, 16, 5, 4), (16, 16, 3, 4), 6),
    "transposed, few taps": (conv(ONE, NONE, lhs=(3, 3)), (1, 8, 4, 4), (12, 8, 2, 2), 9),
    "cropped": (conv(ONE, ((-1, 0), (0, -2))), (1, 8, 9, 9), (14, 8, 3, 3), 1),
    "point": (conv(ONE, NONE), (2, 33, 7, 7), (70, 33, 1, 1), 1),
    "one dimension": (conv((2,), ((3, 3),)), (2, 8, 40), (30, 8, 7), 1),
    "three dimensions": (conv((1, 1, 2), ((1, 1), (0, 1), (1, 1))), (1, 8, 4, 5, 6), (16, 8, 3, 2, 3), 1),
}


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("last", [False, True])
def test_rows_of_pixels(name, last, target):
    fn, x, w, classes = DIRECT[name]

    def run(x, w):
        if not last:
            return fn(x, w)
        n = type_of(x).ndim
        there, back = (0, n - 1, *range(1, n - 1)), (0, *range(2, n), 1)
        return P.permute_p.bind(fn(P.permute_p.bind(x, perm=there), w), perm=back)

    shape = (x[0], *x[2:], x[1]) if last else x
    kernel = check(run, normal(*shape), normal(*w), target=target, way=Direct)
    assert kernel.code.loops.startswith("direct") and f"{classes} classes" in kernel.code.loops
    whole = w[0] % 16 == 0 or "depthwise" not in name  # vectors do not read past the last channel
    assert ("in place" in kernel.code.loops) >= (last and whole)
    assert ("y: channels-last" in kernel.code.loops) == last


def test_weights_of_the_input_gradient_are_packed_backwards():
    def run(ct, w):
        turned = P.flip_p.bind(P.permute_p.bind(w, perm=(1, 0, 2, 3)), axes=(2, 3))
        return conv(ONE, SAME)(ct, turned)

    kernel = check(run, normal(2, 24, 6, 6), normal(24, 40, 3, 3), way=Direct)
    assert "direct conv" in kernel.code.loops


def weight_gradient(stride, padding, groups=1, turn=True, lhs=None, last=False):
    """As differentiation writes it: samples and channels exchanged, the stride as a dilation."""

    def run(x, ct):
        if last:
            n = type_of(x).ndim
            back = (0, n - 1, *range(1, n - 1))
            x, ct = P.permute_p.bind(x, perm=back), P.permute_p.bind(ct, perm=back)
        n, c, *size = type_of(x).shape
        space = tuple(range(3, 3 + len(size)))
        x = P.reshape_p.bind(x, shape=(n, groups, c // groups, *size))
        x = P.permute_p.bind(x, perm=(2, 1, 0, *space))
        x = P.reshape_p.bind(x, shape=(c // groups, groups * n, *size))
        swap = (1, 0, *range(2, 2 + len(size)))
        out = conv((1,) * len(size), padding, lhs, stride, groups)(x, P.permute_p.bind(ct, perm=swap))
        return P.permute_p.bind(out, perm=swap) if turn else out

    return run


TAPS = {
    "same": (weight_gradient(ONE, SAME), (2, 5, 8, 9), (2, 16, 8, 9)),
    "in order": (weight_gradient(ONE, SAME, turn=False), (2, 5, 8, 9), (2, 16, 8, 9)),
    "stride": (weight_gradient((2, 3), ((1, 0), (2, 2))), (3, 7, 21, 25), (3, 40, 10, 9)),
    "cropped": (weight_gradient(ONE, ((1, -2), (-1, 0))), (3, 3, 15, 15), (3, 16, 12, 12)),
    "groups": (weight_gradient(ONE, SAME, groups=3), (8, 6, 6, 6), (8, 36, 6, 6)),
    "point": (weight_gradient(ONE, NONE), (2, 33, 7, 7), (2, 70, 7, 7)),
    "channels last": (weight_gradient(ONE, NONE, last=True), (2, 7, 7, 32), (2, 7, 7, 64)),
    "one channel": (weight_gradient((1,), ((3, 3),)), (2, 1, 700), (2, 16, 700)),
    "many samples": (weight_gradient(ONE, SAME), (600, 4, 9, 9), (600, 16, 9, 9)),
    "three dimensions": (weight_gradient((1, 1, 2), ((1, 1), (0, 1), (1, 1))),
                         (3, 8, 6, 7, 6), (3, 16, 6, 6, 3)),
    "transposed": (weight_gradient(ONE, ((1, 1), (1, 1)), lhs=(2, 2)), (2, 16, 6, 6), (2, 8, 11, 11)),
    "transposed, in order": (weight_gradient(ONE, ((2, 1), (0, 1)), turn=False, lhs=(2, 2), groups=2),
                             (2, 32, 6, 6), (2, 8, 10, 10)),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("name", TAPS)
def test_sums_over_taps(name, target):
    fn, x, ct = TAPS[name]
    text = check(fn, normal(*x), normal(*ct), target=target, tol=5e-5, way=Taps).code.loops
    assert "conv over taps" in text
    assert ("output channels first" in text) == ("in order" not in name)
    assert ("a: in place, b: in place" in text) == (name == "channels last")
    if name == "many samples":
        assert "1 parts" not in text


# the choice ---------------------------------------------------------------------------------------

EACH = {
    Direct: DIRECT["large k"][:3],
    Taps: TAPS["same"],
    Planes: PLANES["same"],
    Conv: CASES["more k than a block"],
}


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("way", EACH, ids=lambda w: w.__name__)
def test_plans_compute_the_same(way, target):
    """Whatever tiles and units of work a plan has."""
    fn, x, w = EACH[way]
    arrays = [normal(*x), normal(*w)]
    graph = trace(fn, *[TensorType(a.shape, f32) for a in arrays])
    with emitting_for(target):
        plans = list(dict.fromkeys(way(kernel_op(graph, "conv"), target, "k").plans()))
    assert len(plans) >= 3
    for plan in plans[:: max(1, len(plans) // 5)]:
        check(fn, *arrays, target=target, tol=5e-5, way=way, plan=plan)


@pytest.mark.parametrize("name", PLANES)
def test_the_cheapest_way_is_taken(name):
    fn, x, w = PLANES[name]
    op = kernel_op(trace(fn, TensorType(x, f32), TensorType(w, f32)), "conv")
    target = TARGETS[0]
    with emitting_for(target):
        found = list(ways(op, target, "k"))
        assert len(found) >= 2
        assert chosen(op, target, "k").cost_ns == min(f.cost_ns for f in found)
        for f in found:
            assert f.cost_ns == min(map(f.estimate, f.plans())) * target.slot_ns > 0


def test_work_is_cut_for_several_threads():
    assert sharing(1) > sharing(2) > sharing(8) > sharing(800) > 1
    assert sharing(8) < sharing(9)
