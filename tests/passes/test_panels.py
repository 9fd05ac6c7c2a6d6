"""Frozen weights of products in panels: written once, read where they lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.contract_kernel import panel_width
from weft.codegen.standalone import Standalone
from weft.codegen.target import emitting_for, host_target, named_target
from weft.ir import prims as P
from weft.ir.contraction import axes_of, in_panels
from weft.ir.graph import Graph, GraphBuilder
from weft.ir.interp import run
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, dtype_of_numpy, f32
from weft.ir.verify import verify
from weft.passes.freeze import PanelWidth, Split, split_frozen
from weft.passes.panels import from_panels, pack_constants, to_panels
from weft.passes.pipeline import lower
from weft.runtime import compile_graph, compile_only

HASWELL, NEON = named_target("haswell"), named_target("neoverse-n1")
rng = np.random.default_rng(4)


def layer(x, w, b, transposed: bool, batch: int = 0):
    """tanh(x @ w + b), of a batch if it has a length."""
    at, lead = (1, (0,)) if batch else (0, ())
    contract = ((at + 1,), (at + transposed,))
    y = P.dot_general_p.bind(x, w, contract=contract, batch=(lead, lead))
    return P.tanh_p.bind(y + P.broadcast_p.bind(b, shape=y.type.shape, axes=(at + 1,)))


def example(
    m: int, n: int, k: int, transposed: bool = True, batch: int = 0, dtype=np.float32
) -> tuple[Graph, list[np.ndarray]]:
    lead = (batch,) if batch else ()
    shapes = (*lead, m, k), (*lead, *((n, k) if transposed else (k, n))), (n,)
    arrays = [(rng.standard_normal(s) / 4).astype(dtype) for s in shapes]
    types = [TensorType(s, dtype_of_numpy(np.dtype(dtype))) for s in shapes]
    return trace(lambda x, w, b: layer(x, w, b, transposed, batch), *types), arrays


def always(width: int) -> PanelWidth:
    return lambda graph, dot: width


def split_of(graph: Graph, panel: PanelWidth) -> Split:
    split = split_frozen(graph, {1}, panel)
    assert split is not None
    verify(split.prologue)
    verify(split.main)
    return split


def check(graph: Graph, arrays: list[np.ndarray], panel: PanelWidth, tol: float = 2e-5) -> list[str]:
    """Both parts against the whole, interpreted and compiled; the kernels of the main one."""
    split = split_of(graph, panel)
    given, rest = [arrays[i] for i in split.frozen], [arrays[i] for i in split.kept]
    (want,) = run(graph, arrays)
    main = compile_graph(split.main)
    made = compile_graph(split.prologue).call(given)
    for mine, reference in zip(made, run(split.prologue, given), strict=True):
        np.testing.assert_array_equal(mine, reference)
    for (got,) in run(split.main, [*rest, *made]), main.call([*rest, *made]):
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), atol=tol, rtol=0)
    return [k.loops for k in main.kernels]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("cols", [3, 8, 19])
def test_panels_and_back_is_the_identity(axes: tuple[int, ...], cols: int) -> None:
    batch, col, k = axes
    shape = tuple({batch: 2, col: cols, k: 5}[i] for i in range(3))
    b = GraphBuilder("there_and_back")
    w, where = b.param(TensorType(shape, f32)), ((batch,), (col,), (k,))
    panels = to_panels(b, w, where, 8)
    graph = b.finish([panels, from_panels(b, panels, w.type, where)])
    verify(graph)
    x = rng.random(shape).astype(np.float32)
    got, back = run(graph, [x])
    width = min(8, cols)
    assert got.shape == (2, -(-cols // width), 5, width)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("m", [1, 5, 33])
@pytest.mark.parametrize("n", [64, 100, 128, 200])
def test_products_read_panels_where_they_lie(m: int, n: int) -> None:
    for transposed, batch in itertools.product((False, True), (0, 3)):
        (loops,) = check(*example(m, n, 70, transposed, batch), always(64))
        assert "packed none" in loops and (n == 64 or "b: in panels" in loops)


@pytest.mark.parametrize(
    ("dtype", "tol"),
    [(np.float64, 1e-12), (np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2)],
    ids=["f64", "f16", "bf16"],
)
def test_narrow_weights_are_widened_as_they_are_read(dtype, tol: float) -> None:
    for m in (1, 20):
        (loops,) = check(*example(m, 150, 90, dtype=dtype), always(64), tol)
        assert "b: in panels" in loops


def test_integers() -> None:
    types = [TensorType(s, dtype_of_numpy(np.dtype(np.int8))) for s in ((9, 40), (130, 40))]
    graph = trace(lambda x, w: P.dot_general_p.bind(x, w, contract=((1,), (1,)), batch=((), ())), *types)
    arrays = [rng.integers(-9, 9, t.shape).astype(np.int8) for t in types]
    (loops,) = check(graph, arrays, always(64), 0)
    assert "b: in panels" in loops


def test_a_cast_of_the_other_operand() -> None:
    def fn(x, w):
        return P.dot_general_p.bind(P.convert_p.bind(x, dtype=f32), w, contract=((1,), (1,)), batch=((), ()))

    types = TensorType((12, 80), dtype_of_numpy(np.dtype(np.int32))), TensorType((130, 80), f32)
    arrays = [rng.integers(-9, 9, (12, 80)).astype(np.int32), rng.random((130, 80)).astype(np.float32)]
    assert "b: in panels" in check(trace(fn, *types), arrays, always(64), 1e-3)[-1]


def test_weights_that_are_not_finite_stay_in_their_columns() -> None:
    graph, arrays = example(4, 70, 30)
    arrays[1][69, 3] = np.nan
    arrays[1][5, 0] = np.inf
    split = split_of(graph, always(64))
    made = compile_graph(split.prologue).call([arrays[1]])
    (got,) = compile_graph(split.main).call([arrays[0], arrays[2], *made])
    np.testing.assert_allclose(got, run(graph, arrays)[0], atol=2e-5)
    assert np.isnan(got[:, 69]).all() and not np.isnan(got[:, :69]).any()


def test_two_products_share_the_panels_of_their_weights() -> None:
    def fn(x, y, w):
        dots = [P.dot_general_p.bind(a, w, contract=((1,), (1,)), batch=((), ())) for a in (x, y)]
        return tuple(dots)

    graph = trace(fn, TensorType((8, 40), f32), TensorType((9, 40), f32), TensorType((128, 40), f32))
    split = split_frozen(graph, {2}, always(64))
    assert split is not None and [r.type.shape for r in split.prologue.results] == [(2, 40, 64)]


def test_weights_of_several_axes_stay_as_they_are() -> None:
    graph = trace(
        lambda x, w: P.dot_general_p.bind(x, w, contract=((1,), (2,)), batch=((), ())),
        TensorType((8, 40), f32), TensorType((4, 32, 40), f32),
    )  # fmt: skip
    assert split_frozen(graph, {1}, always(64)) is None


def choice(target) -> Callable[..., int]:
    def width(m: int, n: int, k: int, transposed: bool = True) -> int:
        graph = example(m, n, k, transposed)[0]
        return panel_width(graph, next(op for op in graph.ops if op.prim.name == "dot_general"), target)

    return width


def test_what_the_cost_model_packs() -> None:
    avx512, avx2, neon = (choice(t) for t in (named_target("skylake-avx512"), HASWELL, NEON))
    assert avx512(16, 3072, 768) == avx512(64, 3072, 768, False) == 64  # four vectors
    assert avx2(64, 512, 512) == neon(64, 512, 512) == 16  # two of eight, four of four
    assert avx512(1, 128, 784) == avx512(4, 10, 128) == 0  # too little to gain
    assert avx512(256, 1, 784) == 0  # a vector


@pytest.mark.parametrize("target", [HASWELL, NEON], ids=["haswell", "neon"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=["f32", "f64", "bf16"])
def test_other_processors(target, dtype) -> None:
    for m, n in (1, 200), (33, 200):
        graph, arrays = example(m, n, 96, dtype=dtype)
        width = 2 * target.lanes(max(32, arrays[0].itemsize * 8))
        compiled = compile_only(split_of(graph, always(width)).main, target)
        (kernel,) = compiled.kernels
        assert kernel.form == "contract" and "b: in panels" in kernel.loops


@pytest.mark.skipif(not host_target().triple.startswith("x86_64"), reason="runs AVX2 code")
def test_avx2_values() -> None:
    graph, arrays = example(13, 200, 96)
    split = split_of(graph, always(16))
    made = run(split.prologue, [arrays[1]])
    lowered = lower(split.main).graph
    given = dict(zip(lowered.params, [arrays[0], arrays[2], *made], strict=True))
    with emitting_for(HASWELL):
        kernel = Standalone(lowered.ops[-1], HASWELL)
    (got,) = kernel(*[given[v] for v in kernel.op.operands])
    np.testing.assert_allclose(got, run(graph, arrays)[0], atol=2e-5)


def test_what_the_cost_model_takes_for_memory() -> None:
    def width(fn: Callable[..., object]) -> int:
        graph = trace(fn, TensorType((1, 512), f32), TensorType((256, 512), f32))
        (dot,) = [op for op in graph.ops if op.prim.name == "dot_general"]
        return panel_width(graph, dot, named_target("skylake-avx512"))

    def product(x, w):
        return P.dot_general_p.bind(x, w, contract=((1,), (1,)), batch=((), ()))

    assert width(product) == width(lambda x, w: product(P.tanh_p.bind(x), w)) == 0


def test_only_whole_panels_count_as_such() -> None:
    def dot_of(stop: int, start: int = 0):
        b = GraphBuilder("view")
        x, blocks = b.param(TensorType((4, 40), f32)), b.param(TensorType((3, 40, 16), f32))
        (v,) = b.add(P.permute_p, (blocks,), {"perm": (0, 2, 1)})
        (v,) = b.add(P.reshape_p, (v,), {"shape": (48, 40)})
        (v,) = b.add(P.slice_p, (v,), {"start": (start, 0), "stop": (stop, 40), "step": (1, 1)})
        (y,) = b.add(P.dot_general_p, (x, v), {"contract": ((1,), (1,)), "batch": ((), ())})
        graph = b.finish([y])
        return graph, graph.ops[-1]

    graph, dot = dot_of(45)
    assert in_panels(graph, dot, 1) and not in_panels(graph, dot, 0)
    assert axes_of(dot, 1) == ((), (0,), (1,))
    graph, dot = dot_of(45, start=5)  # tiles would begin inside
    assert not in_panels(graph, dot, 1)


# --- constants of loops


def loop(length: int, rows: int = 4, k: int = 100, transposed: bool = False, also: bool = False) -> Graph:
    """h = tanh(h @ w + x), ``length`` times; ``also`` returns a row of w from every step, too."""
    t = {n: TensorType(s, f32) for n, s in (("w", (k, k)), ("h", (rows, k)), ("x", (length, rows, k)))}

    def step(w, h, x):
        h = P.tanh_p.bind(P.dot_general_p.bind(h, w, contract=((1,), (int(transposed),)), batch=((), ())) + x)
        row = [P.slice_p.bind(w, start=(0, 0), stop=(1, k), step=(1, 1))] if also else []
        return h, h, *row

    body = trace(step, t["w"], t["h"], TensorType((rows, k), f32))
    how = {"n_consts": 1, "n_carry": 1, "length": length, "reverse": False}
    b = GraphBuilder("loop")
    return b.finish(list(b.add(P.scan_p, [b.param(v) for v in t.values()], how, [body])))


@pytest.mark.parametrize("transposed", [False, True])
def test_what_every_step_multiplies_by_is_packed_once(transposed: bool) -> None:
    graph = loop(5, transposed=transposed)
    arrays = [(rng.standard_normal(p.type.shape) / 8).astype(np.float32) for p in graph.params]
    packed = pack_constants(graph, "cpu")
    verify(packed)
    scan = next(op for op in packed.ops if op.prim.name == "scan")
    assert scan.operands[0].type.shape == (7, 100, 16)  # 112 columns, 12 of them zero
    compiled = compile_graph(graph)
    inside = [k.loops for k in compiled.kernels if k.form == "contract"]
    assert len(inside) == 1 and "packed none" in inside[0] and "b: in panels" in inside[0]
    want = run(graph, arrays)
    for results in run(packed, arrays), compiled.call(arrays):
        for got, w in zip(results, want, strict=True):
            np.testing.assert_allclose(got, w, atol=1e-5)


def test_what_is_not_worth_packing_or_read_otherwise_stays() -> None:
    for graph in loop(3), loop(5, k=40), loop(5, also=True):  # few steps; small; read by itself
        assert pack_constants(graph, "cpu") is not graph
        scan = next(op for op in pack_constants(graph, "cpu").ops if op.prim.name == "scan")
        assert scan.operands[0].type.shape == graph.params[0].type.shape
    graph = loop(5)
    assert pack_constants(graph, "cuda") is graph


@pytest.mark.parametrize("target", [HASWELL, NEON], ids=["haswell", "neon"])
def test_loops_on_other_processors(target) -> None:
    loops = [k.loops for k in compile_only(loop(5), target).kernels if k.form == "contract"]
    assert len(loops) == 1 and "b: in panels" in loops[0]
