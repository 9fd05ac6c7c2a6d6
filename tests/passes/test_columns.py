"""Groups of columns of one product that maps read side by side: gates of recurrent layers, gated units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from weft.codegen.contract_kernel import Contract
from weft.codegen.contract_plan import plans
from weft.codegen.standalone import Standalone
from weft.codegen.target import emitting_for, host_target, named_target
from weft.ir import prims as P
from weft.ir.contraction import Columns, columns_in, columns_of
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, dtype_of_numpy, f32
from weft.passes.pipeline import lower
from weft.runtime import compile_graph, compile_only

HASWELL, NEON = named_target("haswell"), named_target("neoverse-n1")
RUN = [host_target(), *([HASWELL] if host_target().triple.startswith("x86_64") else [])]
rng = np.random.default_rng(6)


def parts(x: Any, n: int) -> list[Any]:
    *lead, whole = x.type.shape
    size, zero = whole // n, (0,) * len(lead)
    return [
        P.slice_p.bind(x, start=(*zero, j * size), stop=(*lead, (j + 1) * size), step=(1,) * (len(lead) + 1))
        for j in range(n)
    ]


def product(x: Any, w: Any, transposed: bool = False) -> Any:
    last = x.type.ndim - 1
    return P.dot_general_p.bind(x, w, contract=((last,), (int(transposed),)), batch=((), ()))


def lstm(x, w, c, inputs):
    i, f, g, o = parts(product(x, w) + inputs, 4)
    c = P.tanh_p.bind(f) * c + P.tanh_p.bind(i) * P.tanh_p.bind(g)
    return P.tanh_p.bind(o) * P.tanh_p.bind(c), c


def gru(x, w, h, inputs):
    (r, z, n), (hr, hz, hn) = parts(inputs, 3), parts(product(x, w), 3)
    z = P.tanh_p.bind(z + hz)
    new = P.tanh_p.bind(n + P.tanh_p.bind(r + hr) * hn)
    return new + z * (h - new)


def gated(x, w, b, inputs):
    y = product(x, w, transposed=True)
    a, g = parts(y + P.broadcast_p.bind(b, shape=y.type.shape, axes=(y.type.ndim - 1,)), 2)
    return a * P.tanh_p.bind(g)


def example(
    fn: Callable[..., Any], groups: int, rows: int, k: int, width: int, dtype=np.float32
) -> tuple[Graph, list[np.ndarray]]:
    w = (groups * width, k) if fn is gated else (k, groups * width)
    third = (groups * width,) if fn is gated else (rows, width)
    shapes: Sequence[tuple[int, ...]] = ((rows, k), w, third, (rows, groups * width))
    arrays = [rng.standard_normal(s) for s in shapes]
    arrays[1] /= k**0.5
    arrays = [x.astype(dtype) for x in arrays]
    return trace(fn, *(TensorType(s, dtype_of_numpy(np.dtype(dtype))) for s in shapes)), arrays


CELLS = [(lstm, 4), (gru, 3), (gated, 2)]
SIZES = [(1, 30, 64), (6, 50, 16), (17, 100, 50), (33, 2000, 96), (300, 64, 40)]


@pytest.mark.parametrize(("fn", "groups"), CELLS, ids=["lstm", "gru", "gated"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_kernel_computes_the_product_and_what_reads_its_parts(fn, groups, size) -> None:
    graph, arrays = example(fn, groups, *size)
    compiled = compile_graph(graph)
    assert [k.form for k in compiled.kernels] == ["contract"]
    for got, want in zip(compiled.call(arrays), run(graph, arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("target", RUN, ids=lambda t: t.cpu)
@pytest.mark.parametrize(("fn", "groups"), CELLS, ids=["lstm", "gru", "gated"])
def test_every_plan(fn, groups, target) -> None:
    graph, arrays = example(fn, groups, 13, 50, 36)
    lowered = lower(graph).graph
    (op,) = [o for o in lowered.ops if o.prim.name == "kernel"]
    given = dict(zip(lowered.params, arrays, strict=True))
    want = dict(zip(lowered.results, run(graph, arrays), strict=True))
    contract = Contract(op, target, "k")
    assert contract.columns == Columns(groups, 36)
    for plan in plans(contract.problem, target):

        def emit(op, t, prefix, plan=plan):
            with emitting_for(t):
                return Contract(op, t, prefix, plan).emit()

        got = Standalone(op, target, "k", emit)(*[given[v] for v in op.operands], chunks=3)
        for value, x in zip(op.results, got, strict=True):
            np.testing.assert_allclose(x, want[value], atol=1e-4, err_msg=str(plan))


@pytest.mark.parametrize("target", [HASWELL, NEON], ids=["haswell", "neon"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=["f32", "f64", "f16"])
def test_other_processors(target, dtype) -> None:
    for fn, groups in CELLS:
        (kernel,) = compile_only(example(fn, groups, 9, 20, 40, dtype)[0], target).kernels
        assert kernel.form == "contract" and f"{groups} groups" in kernel.loops


def test_values_that_are_not_finite_stay_where_they_are() -> None:
    graph, arrays = example(lstm, 4, 5, 30, 32)
    arrays[3][2, 40] = np.nan  # of the second gate
    h, c = compile_graph(graph).call(arrays)
    assert np.isnan(c).sum() == np.isnan(h).sum() == 1 and np.isnan(c[2, 8])


def test_gates_that_are_wanted_too_are_results_of_the_same_kernel() -> None:
    def fn(x, w):
        a, b = parts(product(x, w), 2)
        g = P.tanh_p.bind(b)
        return a * g, g

    types = TensorType((8, 30), f32), TensorType((30, 64), f32)
    arrays = [rng.standard_normal(t.shape).astype(np.float32) for t in types]
    graph = trace(fn, *types)
    compiled = compile_graph(graph)
    assert len(compiled.kernels) == 1
    for got, want in zip(compiled.call(arrays), run(graph, arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def counts(fn: Callable[..., Any], *shapes: tuple[int, ...]) -> list[str]:
    graph = trace(fn, *(TensorType(s, f32) for s in shapes))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    compiled = compile_graph(graph)
    for got, want in zip(compiled.call(arrays), run(graph, arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    return [k.form for k in compiled.kernels]


def test_what_is_not_read_by_equal_parts_stays_a_kernel_of_its_own() -> None:
    def uneven(x, w):
        y = product(x, w)
        return P.tanh_p.bind(P.slice_p.bind(y, start=(0, 0), stop=(8, 40), step=(1, 1)))

    def whole_too(x, w):
        y = product(x, w)
        a, b = parts(y, 2)
        return a * b, P.sum_p.bind(y, axes=(0,))

    def one_part(x, w):
        return P.tanh_p.bind(parts(product(x, w), 2)[0])

    def narrow(x, w):
        a, b = parts(product(x, w), 8)[:2]
        return a * b

    for fn in (uneven, whole_too, one_part, narrow):
        assert counts(fn, (8, 30), (30, 64))[:2] == ["contract", "loop"]


def test_which_slices_are_parts() -> None:
    def cut(start, stop, step=1):
        attrs = {"start": (0, start), "stop": (4, stop), "step": (1, step)}
        return columns_of(trace(lambda x: P.slice_p.bind(x, **attrs), TensorType((4, 96), f32)).ops[0])

    assert cut(32, 64) == Columns(3, 32) and cut(0, 48) == Columns(2, 48)
    assert cut(16, 64) is None  # not at a multiple
    assert cut(0, 64) is None and cut(0, 96, 2) is None and cut(0, 8) is None
    graph = example(lstm, 4, 5, 30, 32)[0]
    dot = next(op for op in graph.ops if op.prim.name == "dot_general")
    assert columns_in(graph, dot) == Columns(4, 32)


def test_devices_keep_gates_apart() -> None:
    ops = lower(example(lstm, 4, 5, 30, 32)[0], "cuda").graph.ops
    assert [op.attrs["form"] for op in ops if op.prim.name == "kernel"] == ["contract", "loop"]


def test_few_rows_are_multiplied_by_large_weights_without_tiles() -> None:
    def fn(x, w):
        a, b = parts(product(x, w), 2)
        return a * b

    assert counts(fn, (2, 100), (100, 256)) == ["contract", "loop"]
    assert counts(fn, (2, 30), (30, 256)) == counts(fn, (16, 100), (100, 256)) == ["contract"]
