"""The choice of loops for contractions, the loops of every plan, and the machines they are built for."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from weft.codegen.contract_kernel import Contract
from weft.codegen.contract_plan import Plan, choose, chunk_of, cost, fused_rows, plans
from weft.codegen.kernel import emit_kernel
from weft.codegen.llvm import module_text
from weft.codegen.standalone import Standalone, kernel_op
from weft.codegen.target import Target, emitting_for, host_target, named_target
from weft.ir import prims as P
from weft.ir.graph import Op
from weft.ir.prims.base import trace, type_of
from weft.ir.types import TensorType, f32, f64
from weft.runtime import jit

HASWELL, AVX512, NEON = (named_target(n) for n in ("haswell", "skylake-avx512", "neoverse-n1"))
RUN = [t for t in (host_target(), HASWELL) if t.triple.startswith("x86_64")] or [host_target()]
rng = np.random.default_rng(0)


def kernel(m: int, k: int, n: int, ta: bool = False, tb: bool = False, batch: int = 0, dtype=f32) -> Op:
    """relu(a @ b + bias) as a contraction kernel."""
    lead, at = ((batch,), 1) if batch else ((), 0)

    def fn(a, b, bias):
        contract = ((at + (not ta),), (at + tb,))
        y = P.dot_general_p.bind(a, b, contract=contract, batch=((0,), (0,)) if batch else ((), ()))
        y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=type_of(y).shape, axes=(at + 1,)))
        return P.maximum_p.bind(y, P.neg_p.bind(y))

    shapes = (*lead, *((k, m) if ta else (m, k))), (*lead, *((n, k) if tb else (k, n))), (n,)
    return kernel_op(trace(fn, *(TensorType(s, dtype) for s in shapes)), "contract")


def chosen(op: Op, target: Target = AVX512) -> Plan:
    return Contract(op, target, "k").plan


def run(op: Op, target: Target, plan: Plan) -> None:
    """Build a kernel with this plan and compare with float64; cutting the units elsewhere changes no bit."""

    def emit(op, target, prefix):
        with emitting_for(target):
            return Contract(op, target, prefix, plan).emit()

    built = Standalone(op, target, "k", emit)
    arrays = [rng.standard_normal(v.type.shape).astype(v.type.dtype.np) for v in op.operands]
    (got,) = built(*arrays, chunks=1)
    (again,) = built(*arrays, chunks=7)
    np.testing.assert_array_equal(got, again)
    dot = op.regions[0].ops[0]
    a, b, bias = (x.astype(np.float64) for x in arrays)
    (ca,), (cb,) = dot.attrs["contract"]
    want = np.abs(np.moveaxis(a, ca, -1) @ np.moveaxis(b, cb, -2) + bias)
    tolerance = 1e-13 if got.dtype == np.float64 else 3e-5
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), plan


EVERY = {
    "square": {"m": 70, "k": 90, "n": 70},
    "transposed": {"m": 29, "k": 300, "n": 50, "tb": True},
    "both transposed": {"m": 50, "k": 130, "n": 33, "ta": True, "tb": True},
    "few rows": {"m": 9, "k": 77, "n": 200},
    "few columns": {"m": 60, "k": 150, "n": 5},
    "batch": {"m": 20, "k": 40, "n": 24, "batch": 3},
}


@pytest.mark.parametrize("target", RUN, ids=lambda t: t.cpu)
@pytest.mark.parametrize("case", EVERY)
def test_every_plan_computes_the_product(case, target):
    op = kernel(**EVERY[case])
    found = list(plans(Contract(op, target, "k").problem, target))
    assert len({p.kind for p in found}) >= 2 and len(found) == len(set(found))
    usual = sorted(
        found, key=lambda p: (p.kind, p.fused, p.pack_a, p.pack_b, -p.rows * max(p.vectors, p.cols))
    )
    seen = {}
    for plan in usual:  # the largest tile of each kind and way to pack
        seen.setdefault((plan.kind, plan.fused, plan.pack_a, plan.pack_b), plan)
    for plan in seen.values():
        run(op, target, plan)


@pytest.mark.parametrize("target", RUN, ids=lambda t: t.cpu)
def test_plans_that_cut_k(target):
    """Blocks of k, with panels packed block by block, and a last block that is no whole vector."""
    op = kernel(20, 3001, 70, tb=True)
    problem = Contract(op, target, "k").problem
    for plan in plans(problem, target):
        if plan.kind == "outer" and plan.fused:
            assert chunk_of(problem, plan) < 3001
            run(op, target, plan)


def test_doubles_have_the_same_plans():
    op = kernel(17, 100, 40, dtype=f64)
    for plan in {p.kind: p for p in plans(Contract(op, RUN[0], "k").problem, RUN[0])}.values():
        run(op, RUN[0], plan)


def test_few_rows_stream_through_b_and_few_columns_are_inner_products():
    for m in (1, 2, 4, 8, 16):
        assert chosen(kernel(m, 1024, 4096)).kind == "stream"
        assert chosen(kernel(m, 1024, 4096), HASWELL).kind == "stream"
    for n in (2, 4, 8, 10):
        assert chosen(kernel(1024, 1024, n)).kind == "inner"
    for m in (1, 2, 4, 8):
        plan = chosen(kernel(m, 2048, 2048, tb=True))
        assert plan.kind == "inner" and not plan.pack_b


def test_large_products_pack_and_small_ones_do_not():
    assert chosen(kernel(1024, 1024, 1024)).pack_b
    assert chosen(kernel(1024, 1024, 4096, tb=True)).fused
    for n in (8, 32, 64, 128):
        plan = chosen(kernel(n, n, n))
        assert not plan.pack_a and not plan.pack_b


def test_tiles_do_not_crowd_one_set_of_the_cache():
    """Rows of A that lie a multiple of 4096 bytes apart fall into the same set, which holds eight lines."""
    crowded, spread = chosen(kernel(4096, 4096, 16)), chosen(kernel(4096, 4096 + 16, 16))
    assert crowded.pack_a or crowded.rows <= 6
    assert spread.rows >= crowded.rows


def test_the_choice_is_the_cheapest_estimate():
    problem = Contract(kernel(100, 200, 300), AVX512, "k").problem
    best = choose(problem, AVX512)
    assert all(cost(problem, best, AVX512) <= cost(problem, p, AVX512) for p in plans(problem, AVX512))


def test_rows_per_packed_panel_are_even():
    for m in (1, 500, 1024, 1025, 2048, 5000):
        rows = fused_rows(m)
        assert rows * -(-m // rows) < m + rows and rows <= 1024


@pytest.mark.parametrize(
    "op",
    [kernel(100, 90, 70), kernel(8, 100, 600), kernel(70, 128, 5), kernel(40, 2000, 100, tb=True),
     kernel(64, 64, 64, ta=True, dtype=f64)],
    ids=["square", "stream", "inner", "transposed", "double"],
)  # fmt: skip
def test_kernels_assemble_for_arm(op):
    with emitting_for(NEON):
        code = emit_kernel(op, NEON, "k0")
    text = module_text(NEON, [code.llvm], code.declares)
    image = jit.compile_object(text, NEON)
    assert image[:4] == b"\x7fELF" and int.from_bytes(image[18:20], "little") == 183  # EM_AARCH64
    asm = jit.assembly(text, NEON)
    lanes = "2d" if op.results[0].type.dtype is f64 else "4s"
    assert len(re.findall(rf"fmla\s+v\d+\.{lanes}", asm)) >= 8
    assert not re.search(r"\bbl\s+(fma|fmaf)\b", asm)


PROGRAM = """
import numpy as np, weft
a, b = np.random.default_rng(0).standard_normal((2, 96, 96)).astype("f")
f = weft.compile(lambda x, y: x @ y)
got = f(weft.tensor(a), weft.tensor(b)).numpy()
assert np.abs(got - a.astype("d") @ b).max() < 1e-4
asm = f.asm()
print("ymm" in asm, "zmm" in asm)
"""


@pytest.mark.skipif(not host_target().triple.startswith("x86_64"), reason="runs code for an x86 CPU")
def test_a_process_can_build_for_another_cpu():
    env = {**os.environ, "WEFT_CPU": "haswell", "WEFT_CACHE": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_tiles_that_divide_the_rows_where_others_would_overlap_much():
    assert 64 % chosen(kernel(64, 64, 64)).rows == 0
    assert 128 % chosen(kernel(128, 128, 128)).rows == 0
    assert chosen(kernel(1024, 1024, 1024)).rows == 6  # 1026 rows: two in a thousand are computed twice


@pytest.mark.parametrize(
    ("m", "k", "n", "lines"), [(1024, 256, 1024, 24), (1024, 16, 1024, 0), (96, 256, 96, 0)]
)
def test_lines_of_large_results_are_fetched_while_a_tile_is_computed(m, k, n, lines):
    """One prefetch for each line of the tile; none where the result stays in the caches, or k is short."""
    with emitting_for(AVX512):
        text = Contract(kernel(m, k, n), AVX512, "k").emit().llvm
    assert len(re.findall(r"@llvm\.prefetch\.p0\(ptr [^,]+, i32 1,", text)) == lines


@pytest.mark.parametrize(("m", "rows"), [(8, 8), (12, 12), (16, 8), (17, 6), (24, 12), (40, 10), (64, 8)])
def test_tiles_of_inner_products_overlap_as_little_as_they_can(m: int, rows: int) -> None:
    built = Contract(kernel(m, 768, 512, tb=True), AVX512, "k", Plan("inner", 2, 1, cols=8))
    (grid,) = built.grids
    assert grid.tile.rows == rows and grid.tiles == -(-m // rows)
