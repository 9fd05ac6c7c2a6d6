"""Attention on the emulated GPU, forward and backward, against the numpy evaluation in f64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_kernels import DeviceKernel, rng
from weft.ir import prims as P

Sizes = tuple[int, ...]  # batch, heads, key heads, queries, keys, width, width of values


def mask_of(kind: str, sizes: Sizes, dtype: Any) -> list[np.ndarray]:
    b, h, _, length, keys = sizes[:5]
    if kind == "bool":
        m = rng.random((b, h, length, keys)) < 0.6
        m[0, 0, 0] = False
        return [m]
    if kind == "broadcast":
        return [rng.standard_normal((1, h, 1, keys)).astype(dtype)]
    if kind == "infinite":
        m = np.where(rng.random((1, 1, length, keys)) < 0.4, -np.inf, 0).astype(dtype)
        m[0, 0, length // 2] = -np.inf
        return [m]
    return []


def operands(sizes: Sizes, mask: str, dropout: float, dtype: Any) -> list[np.ndarray]:
    b, h, kv, length, keys, width, out = sizes
    shapes = ((b, h, length, width), (b, kv, keys, width), (b, kv, keys, out))
    arrays = [rng.standard_normal(s).astype(dtype) for s in shapes]
    return [*arrays, *mask_of(mask, sizes, dtype), *([np.array([3, 4])] if dropout else [])]


def exact(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [a if a.dtype in (np.bool_, np.int64) else a.astype(np.float64) for a in arrays]


def compare(got: list[np.ndarray], want: Any, bound: float) -> None:
    for g, w in zip(got, want, strict=True):
        atol = bound * max(1.0, np.abs(np.where(np.isfinite(w), w, 0)).max())
        np.testing.assert_allclose(g.astype(np.float64), w, rtol=0, atol=atol)


def forward(
    sizes: Sizes, mask: str = "none", dtype: Any = np.float32, dropout: float = 0.0, arch: str = "sm_80",
    bound: float = 3e-6, **how: Any,
) -> DeviceKernel:  # fmt: skip
    arrays = operands(sizes, mask, dropout, dtype)
    how = {"scale": sizes[5] ** -0.5, "dropout": dropout, **how}
    kernel = DeviceKernel(lambda *xs: P.attention_p.bind(*xs, **how), arrays, "attention", arch)
    compare(kernel(*arrays), P.attention_p.bind(*exact(arrays), **how), bound)
    return kernel


def backward(
    sizes: Sizes, mask: str = "none", dtype: Any = np.float32, dropout: float = 0.0, causal: bool = False,
    inside: tuple[bool, bool, bool] = (False,) * 3, bound: float = 6e-6, arch: str = "sm_80",
) -> DeviceKernel:  # fmt: skip
    arrays = operands(sizes, mask, dropout, dtype)
    how: dict[str, Any] = {"scale": sizes[5] ** -0.5, "dropout": dropout, "causal": causal}
    out, lse = P.attention_p.bind(*exact(arrays), **how)
    ct = rng.standard_normal(out.shape).astype(dtype)
    acc = np.float64 if dtype is np.float64 else np.float32
    delta = (ct.astype(np.float64) * out).sum(-1)
    arrays = [*arrays[:3], ct, lse.astype(acc), delta.astype(acc), *arrays[3:]]
    how["heads_inside"] = inside
    kernel = DeviceKernel(lambda *xs: P.attention_grad_p.bind(*xs, **how), arrays, "attention", arch)
    compare(kernel(*arrays), P.attention_grad_p.bind(*exact(arrays), **how), bound)
    return kernel


def test_forward() -> None:
    kernel = forward((1, 2, 2, 40, 70, 16, 64))
    assert "simt" in kernel.code.loops


def test_forward_causal_and_grouped() -> None:
    forward((1, 4, 2, 40, 50, 16, 16), causal=True)


@pytest.mark.parametrize("mask", ["bool", "infinite"])
def test_forward_masks(mask: str) -> None:
    forward((2, 2, 1, 7, 77, 5, 3), mask, heads_inside=True)


def test_rows_without_keys_are_nan_where_asked() -> None:
    forward((1, 1, 1, 5, 20, 8, 8), "infinite", nan_rows=True)


def test_forward_dropout_draws_the_same_bits() -> None:
    forward((1, 2, 2, 20, 70, 16, 16), "broadcast", dropout=0.3)


def test_few_queries_cut_the_keys_into_parts() -> None:
    kernel = forward((1, 4, 2, 1, 1200, 16, 24), heads_inside=True)
    assert [x.symbol for x in kernel.code.launches] == ["k0_attention", "k0_combine"]
    assert "4 parts" in kernel.code.loops
    forward((1, 2, 2, 3, 600, 16, 16), "infinite", dropout=0.2, nan_rows=True)
    causal = forward((1, 1, 1, 20, 600, 16, 16), causal=True)  # parts that see nothing
    assert len(causal.code.launches) == 2


def test_forward_f64() -> None:
    forward((1, 2, 1, 20, 30, 16, 16), dtype=np.float64, bound=1e-14)


def test_backward_causal_and_grouped() -> None:
    backward((1, 4, 2, 40, 50, 16, 16), causal=True)


def test_backward_masks_and_layouts() -> None:
    backward((2, 2, 1, 7, 77, 5, 3), "bool", inside=(True, False, True))


def test_backward_dropout() -> None:
    backward((1, 2, 2, 20, 70, 16, 16), "infinite", dropout=0.3)


def test_backward_f64() -> None:
    backward((1, 2, 1, 20, 30, 16, 16), dtype=np.float64, bound=1e-13)


@pytest.mark.parametrize(("dtype", "arch", "widths", "bound"), [
    (np.float32, "sm_86", (270, 531), 3e-6), (np.float64, "sm_75", (170, 200), 1e-13),
    (ml_dtypes.bfloat16, "sm_90", (544, 640), 2e-2), (np.float16, "sm_75", (280, 408), 4e-3),
])  # fmt: skip
def test_wide_heads_are_split(dtype: Any, arch: str, widths: tuple[int, int], bound: float) -> None:
    """What neither registers nor shared memory hold: chunks of the scores, slices of the sums."""
    kernel = forward((1, 2, 1, 9, 20, *widths), "bool", dtype, arch=arch, bound=bound)
    assert " 1 slices" not in kernel.code.loops
    grad = backward((1, 2, 1, 9, 20, *widths), "bool", dtype, arch=arch, bound=2 * bound, inside=(True,) * 3)
    for k in (kernel, grad):
        assert all(launch.shared_bytes <= k.target.shared_bytes for launch in k.code.launches)


def test_wide_heads_and_few_queries() -> None:
    kernel = forward((1, 2, 1, 2, 700, 304, 640), dtype=ml_dtypes.bfloat16, dropout=0.2, bound=2e-2)
    assert "3 slices, 2 parts" in kernel.code.loops


def test_heads_of_256_stay_whole_on_tensor_cores() -> None:
    kernel = forward((1, 1, 1, 40, 40, 256, 256), dtype=ml_dtypes.bfloat16, causal=True, bound=2e-2)
    assert "tensor" in kernel.code.loops and "1 slices" in kernel.code.loops


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_results_are_stored_coalesced(dtype: Any) -> None:
    """Each row of a result is whole sectors, and no sector is written twice."""
    sizes = (1, 2, 2, 40, 40, 64, 64)
    for kernel in (forward(sizes, dtype=dtype, bound=2e-2), backward(sizes, dtype=dtype, bound=4e-2)):
        for launch in kernel.launches:
            stores = [x for x in launch.lines.values() if x.instruction.startswith("st.global")]
            assert sum(x.sectors for x in stores) == sum(x.ideal for x in stores)
            assert dtype is np.float32 or launch.bank_conflicts == 0
