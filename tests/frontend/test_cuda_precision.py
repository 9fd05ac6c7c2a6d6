"""The switches for float32 products on GPUs: torch's names and defaults, and what they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import weft
from weft.nn import functional as F
from weft.runtime.precision import switches

pytestmark = pytest.mark.gpu
matmul, cudnn = weft.backends.cuda.matmul, weft.backends.cudnn


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not weft.cuda.is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", os.environ.get("WEFT_CUDA_DEVICES", "2"))
    weft.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True
    yield
    weft.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False


def operands() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(16, 16)).astype(np.float32) for _ in range(2))
    return a, b


def rounded(a: np.ndarray) -> np.ndarray:
    """Float32 rounded to 10 bits of mantissa, ties away from zero."""
    bits = a.view(np.uint32) + np.uint32(1 << 12)
    return (bits & ~np.uint32((1 << 13) - 1)).view(np.float32)


def is_rounded(found: Any, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a product is that of rounded factors, rather than the exact one."""
    exact, tf32 = (x.astype(np.float64) @ y for x, y in ((a, b), (rounded(a), rounded(b).astype(np.float64))))
    got = np.asarray(found.cpu().numpy(), np.float64)
    assert min(np.abs(got - exact).max(), np.abs(got - tf32).max()) < 1e-5
    return bool(np.abs(got - tf32).max() < np.abs(got - exact).max())


def test_the_defaults_are_those_of_torch() -> None:
    assert weft.get_float32_matmul_precision() == "highest"
    assert not matmul.allow_tf32 and matmul.fp32_precision == "ieee" and cudnn.allow_tf32
    assert cudnn.enabled and not cudnn.benchmark and not cudnn.deterministic
    assert matmul.allow_fp16_reduced_precision_reduction and matmul.allow_bf16_reduced_precision_reduction


def test_the_switch_and_the_precision_are_one() -> None:
    for name, allowed in (("high", True), ("medium", True), ("highest", False)):
        weft.set_float32_matmul_precision(name)
        assert matmul.allow_tf32 is allowed and weft.get_float32_matmul_precision() == name
    matmul.allow_tf32 = True
    assert weft.get_float32_matmul_precision() == "high" and matmul.fp32_precision == "tf32"
    matmul.fp32_precision = "ieee"
    assert not matmul.allow_tf32
    with pytest.raises(RuntimeError, match="is not one of 'highest', 'high', or 'medium'"):
        weft.set_float32_matmul_precision("low")
    with pytest.raises(RuntimeError, match="expects a bool"):
        matmul.allow_tf32 = 1


def test_deterministic_algorithms_are_asked_for_and_told() -> None:
    assert not weft.are_deterministic_algorithms_enabled() and weft.get_deterministic_debug_mode() == 0
    weft.use_deterministic_algorithms(True, warn_only=True)
    assert weft.are_deterministic_algorithms_enabled() and weft.get_deterministic_debug_mode() == 1
    assert weft.is_deterministic_algorithms_warn_only_enabled()
    weft.set_deterministic_debug_mode("error")
    assert weft.get_deterministic_debug_mode() == 2
    weft.use_deterministic_algorithms(False)
    assert not weft.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="invalid value of debug_mode"):
        weft.set_deterministic_debug_mode("never")


def test_eager_products_follow_the_switch_both_ways() -> None:
    a, b = operands()
    x, y = weft.from_numpy(a).cuda(), weft.from_numpy(b).cuda()
    seen = []
    for allowed in (False, True, False):
        matmul.allow_tf32 = allowed
        seen.append(is_rounded(x @ y, a, b))
    assert seen == [False, weft.cuda.get_device_capability() >= (8, 0), False]


def test_a_compiled_function_is_compiled_again_and_says_why() -> None:
    a, b = operands()
    x, y = weft.from_numpy(a).cuda(), weft.from_numpy(b).cuda()
    product = weft.compile(lambda x, y: x @ y)
    assert not is_rounded(product(x, y), a, b)
    matmul.allow_tf32 = True
    assert is_rounded(product(x, y), a, b) == (weft.cuda.get_device_capability() >= (8, 0))
    assert len(product.recompiles) == 1 and "allow_tf32 is True for products" in product.recompiles[0]
    matmul.allow_tf32 = False
    assert not is_rounded(product(x, y), a, b)
    assert product.traces == 2  # the first version applies again


def test_convolutions_have_a_switch_of_their_own() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(1, 16, 4, 4)).astype(np.float32)
    w = rng.normal(size=(16, 16, 1, 1)).astype(np.float32)
    x, k = weft.from_numpy(a).cuda(), weft.from_numpy(w).cuda()
    flat, weights = a[0].reshape(16, 16).T.copy(), w[:, :, 0, 0].T.copy()
    seen = []
    for allowed in (True, False):
        cudnn.allow_tf32 = allowed
        found = F.conv2d(x, k)[0].reshape(16, 16).t()
        seen.append(is_rounded(found, flat, weights))
    assert seen == [weft.cuda.get_device_capability() >= (8, 0), False]


def test_functions_on_the_cpu_do_not_ask() -> None:
    double = weft.compile(lambda x: x * 2)
    double(weft.ones(3))
    matmul.allow_tf32 = True
    double(weft.ones(3))
    assert double.traces == 1 and double.recompiles == []


def test_equal_switches_are_one_object() -> None:
    before = switches.now
    matmul.allow_tf32 = True
    assert switches.now is not before
    matmul.allow_tf32 = False
    assert switches.now is before
