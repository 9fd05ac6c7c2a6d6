"""Products on tensor cores, on the emulated GPU: fragments, swizzled copies, pipelines, edges."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_kernels import DeviceKernel, check, normal
from test_device_attention import backward, forward
from test_device_contract import linear, matmul, operands
from test_device_conv import conv
from weft.codegen.gpu.contract import emit
from weft.codegen.gpu.contract_plan import Plan, Problem, choose
from weft.codegen.gpu.target import gpu_target
from weft.ir import prims as P
from weft.ir import types as T
from weft.runtime.cuda.assembler import assemble, find_ptxas

bfloat16: Any = ml_dtypes.bfloat16
ROUNDING = {np.float16: 2e-3, bfloat16: 1.6e-2}
HALF = pytest.mark.parametrize("dtype", ROUNDING, ids=["f16", "bf16"])


@HALF
@pytest.mark.parametrize("shape", [(64, 64, 64), (33, 70, 65), (5, 64, 24)], ids=str)
def test_transpositions(shape: tuple[int, int, int], dtype: Any) -> None:
    for ta, tb in itertools.product((False, True), repeat=2):
        arrays = operands(*shape, ta, tb, dtype)
        kernel = check(matmul(ta, tb), *arrays, form="contract", tol=ROUNDING[dtype])
        assert "mma.sync.aligned.m16n8k16" in kernel.ptx and "ldmatrix" in kernel.ptx


TILES = [
    Plan("mma.m16n8k16", 128, 256, 32, (2, 4), stages=3),
    Plan("mma.m16n8k16", 128, 128, 32, (2, 2), stages=4),
    Plan("mma.m16n8k16", 32, 128, 32, (1, 4), stages=4),
    Plan("mma.m16n8k16", 128, 16, 32, (4, 1), stages=4),
    Plan("mma.m16n8k16", 16, 128, 32, (1, 8), stages=2),
]


@pytest.mark.parametrize("plan", TILES, ids=str)
def test_tiles(plan: Plan) -> None:
    for turned in (False, True):
        arrays = operands(136, 72, 264, turned, turned, bfloat16)
        check(matmul(turned, turned), *arrays, form="contract", tol=1.6e-2, emit=emit, plan=plan)


def test_copies_run_beside_the_products() -> None:
    """Aligned operands are copied 16 bytes at a time, unaligned ones as widely as they allow."""
    arrays = operands(64, 128, 64, False, True, np.float16)
    assert DeviceKernel(matmul(False, True), arrays, "contract").ptx.count("cp.async.cg.shared.global") > 0
    arrays = operands(64, 70, 64, False, True, np.float16)
    kernel = check(matmul(False, True), *arrays, form="contract", tol=2e-3)
    assert "cp.async.ca.shared.global" in kernel.ptx and "vectors of 2 along k, async" in kernel.code.loops


def test_without_asynchronous_copies() -> None:
    for turned in (False, True):
        arrays = operands(40, 72, 24, turned, not turned, np.float16)
        kernel = check(matmul(turned, not turned), *arrays, form="contract", tol=2e-3, arch="sm_75")
        assert "m16n8k8" in kernel.ptx and "cp.async" not in kernel.ptx


def test_bf16_without_tensor_cores_for_it() -> None:
    arrays = operands(20, 30, 24, False, False, bfloat16)
    kernel = check(matmul(), *arrays, form="contract", tol=1.6e-2, arch="sm_75")
    assert "mma.sync" not in kernel.ptx


@HALF
def test_prologue_epilogue_and_parts(dtype: Any) -> None:
    m, k, n = 40, 96, 48
    arrays = [normal(*s, dtype=dtype) for s in ((m, k), (n, k), (n,), (m, n))]
    check(linear, *arrays, form="contract", tol=ROUNDING[dtype])

    def doubled(a: Any, b: Any) -> Any:
        return matmul()(P.add_p.bind(a, a), P.convert_p.bind(b, dtype=T.dtype_of_numpy(np.dtype(dtype))))

    check(doubled, normal(m, k, dtype=dtype), normal(k, n), form="contract", tol=ROUNDING[dtype])
    arrays = operands(8, 2048, 64, False, False, dtype)
    kernel = check(matmul(), *arrays, form="contract", tol=ROUNDING[dtype])
    assert len(kernel.code.launches) == 2


def test_convolutions() -> None:
    def last(x: Any, w: Any) -> Any:
        return P.permute_p.bind(conv()(P.permute_p.bind(x, perm=(0, 3, 1, 2)), w), perm=(0, 2, 3, 1))

    images = normal(2, 6, 5, 16, dtype=bfloat16), normal(16, 16, 3, 3, dtype=bfloat16)
    check(last, *images, form="conv", tol=1.6e-2)
    planes = normal(2, 32, 7, 9, dtype=bfloat16), normal(16, 32, 3, 3, dtype=bfloat16)
    check(conv(stride=2), *planes, form="conv", tol=1.6e-2)


@HALF
def test_attention(dtype: Any) -> None:
    bound = 2 * ROUNDING[dtype]
    kernel = forward((1, 4, 2, 70, 150, 64, 32), dtype=dtype, causal=True, bound=bound)
    assert "tensor" in kernel.code.loops and "mma.sync" in kernel.ptx
    forward((1, 2, 1, 20, 90, 24, 40), "bool", dtype, 0.2, heads_inside=True, bound=bound)


@HALF
def test_gradient_of_attention(dtype: Any) -> None:
    bound = 4 * ROUNDING[dtype]
    kernel = backward((1, 4, 2, 70, 90, 32, 16), dtype=dtype, causal=True, bound=bound)
    assert kernel.ptx.count(".entry") == 2 and "mma.sync" in kernel.ptx


def test_tf32_where_the_target_allows_it() -> None:
    allowed = replace(gpu_target("sm_80"), tf32=True)
    for turned in (False, True):
        arrays = operands(40, 72, 24, turned, turned)
        kernel = DeviceKernel(matmul(turned, turned), arrays, "contract", target=allowed)
        assert "m16n8k8.row.col.f32.tf32" in kernel.ptx
        x, y = (a.T if turned else a for a in arrays)
        got, exact = kernel(*arrays)[0], x.astype(np.float64) @ y
        assert 1e-5 < np.abs(got - exact).max() / np.abs(exact).max() < 2e-3


@pytest.mark.skipif(find_ptxas() is None, reason="no ptxas")
def test_registers_hold_the_sums() -> None:
    arrays = operands(512, 512, 512, False, True, bfloat16)
    for plan in TILES[:2]:
        kernel = DeviceKernel(matmul(False, True), arrays, "contract", "sm_90", emit, plan=plan)
        (resources,) = assemble(kernel.ptx, "sm_90")[1]
        assert resources.spill_bytes == 0
        blocks = plan.blocks_per_sm(Problem(1, 512, 512, 512, T.bf16), kernel.target)
        assert resources.registers * plan.threads * blocks <= kernel.target.sm_registers


def test_large_products_get_large_tiles_and_few_rows_parts_of_k() -> None:
    target = gpu_target("sm_90")
    large = choose(Problem(1, 4096, 4096, 4096, T.bf16), target)
    assert (large.m, large.n) in {(128, 256), (128, 128)} and large.stages >= 3 and large.splits == 1
    few = choose(Problem(1, 16, 4096, 4096, T.bf16), target)
    assert few.m == 16 and few.splits > 1
    assert choose(Problem(1, 4096, 4096, 4096, T.f32), target).family == "fma"


def test_memory_is_read_in_whole_sectors_and_shared_memory_without_conflicts() -> None:
    for turned in (False, True):
        arrays = operands(128, 128, 128, turned, turned, bfloat16)
        kernel = DeviceKernel(matmul(turned, turned), arrays, "contract", emit=emit, plan=TILES[1])
        kernel(*arrays)
        (launch,) = kernel.launches
        assert launch.sectors == launch.ideal_sectors
        # each thread takes 32 bytes of a finished row at once: one conflict for a load, none elsewhere
        assert launch.bank_conflicts <= 128 * 128 * 4 // 128
    assert forward((1, 1, 1, 64, 64, 64, 64), dtype=bfloat16, bound=0.04).launches[0].bank_conflicts == 0
