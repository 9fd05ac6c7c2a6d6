"""Rounding to the half types: by instructions of the device where it has them, the same bits anywhere."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import weft

pytestmark = pytest.mark.gpu

_HALF = {weft.bfloat16: ml_dtypes.bfloat16, weft.float16: np.float16}


def _hard() -> np.ndarray:
    """Ties, neighbours of ties, subnormals of both types, overflow, infinities and NaN."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 4096, dtype=np.uint32)
    bits[:1024] = bits[:1024] & 0xFFFF0000 | 0x8000
    bits[1024:1536] = bits[1024:1536] & 0xFFFF0000 | 0x7FFF
    bits[1536:2048] = bits[1536:2048] & 0x807FFFFF
    bits[2048:2560] = bits[2048:2560] & 0x81FFFFFF | 0x33000000
    some = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 3.4e38], np.float32)
    bits[-some.size :] = some.view(np.uint32)
    return bits.view(np.float32)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80"])
@pytest.mark.parametrize("dtype", list(_HALF), ids=str)
def test_every_value_rounds_as_on_the_host(dtype, architecture, monkeypatch):
    monkeypatch.setenv("WEFT_CUDA", "emulate")
    monkeypatch.setenv("WEFT_CUDA_ARCH", architecture)
    values = _hard()
    with np.errstate(over="ignore", invalid="ignore"):
        want = values.astype(_HALF[dtype])
    got = weft.tensor(values).cuda().to(dtype).cpu()
    bits, expected = got.view(weft.int16).numpy(), want.view(np.int16)
    nan = np.isnan(want)
    np.testing.assert_array_equal(bits[~nan], expected[~nan])
    assert got.float().isnan().numpy()[nan].all()
