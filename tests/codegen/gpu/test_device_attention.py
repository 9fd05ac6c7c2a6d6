"""Attention on the emulated GPU, forward and backward, against the numpy evaluation in f64."""

from __future__ import annotations

from typing import Any

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
    inside: tuple[bool, bool, bool] = (False,) * 3, bound: float = 6e-6,
) -> DeviceKernel:  # fmt: skip
    arrays = operands(sizes, mask, dropout, dtype)
    how: dict[str, Any] = {"scale": sizes[5] ** -0.5, "dropout": dropout, "causal": causal}
    out, lse = P.attention_p.bind(*exact(arrays), **how)
    ct = rng.standard_normal(out.shape).astype(dtype)
    acc = np.float64 if dtype is np.float64 else np.float32
    delta = (ct.astype(np.float64) * out).sum(-1)
    arrays = [*arrays[:3], ct, lse.astype(acc), delta.astype(acc), *arrays[3:]]
    how["heads_inside"] = inside
    kernel = DeviceKernel(lambda *xs: P.attention_grad_p.bind(*xs, **how), arrays, "attention")
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
