"""``weft.autocast`` on a GPU: PyTorch's lists for CUDA, and scaled gradients."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import weft
from weft import nn
from weft.amp import GradScaler
from weft.nn import functional as F

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not weft.cuda.is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", os.environ.get("WEFT_CUDA_DEVICES", "2"))


def test_the_lists_of_cuda() -> None:
    a, v = weft.ones(4, 4, device="cuda"), weft.ones(4, device="cuda")
    with weft.autocast("cuda"):
        low = a @ a
        assert low.dtype is weft.float16 and weft.mv(a, v).dtype is weft.float16
        for found in (low.exp(), low.log(), low.pow(2), low.sum(), F.softmax(low, -1), low.cumsum(0),
                      F.layer_norm(low, (4,)), F.mse_loss(low, low)):  # fmt: skip
            assert found.dtype is weft.float32
        assert low.tanh().dtype is weft.float16 and weft.cat([low, a]).dtype is weft.float32
        assert (weft.ones(2, 2) @ weft.ones(2, 2)).dtype is weft.float32  # of the CPU
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            F.binary_cross_entropy(low, low)
    with weft.autocast("cuda", dtype=weft.bfloat16):
        assert (a @ a).dtype is weft.bfloat16


def test_a_compiled_step_with_scaled_gradients_is_that_of_eager() -> None:
    def train(compile: bool) -> list[float]:
        weft.manual_seed(0)
        model = nn.Linear(4, 2).to("cuda")
        optimizer = weft.optim.SGD(model.parameters(), lr=0.1)
        scaler = GradScaler("cuda", init_scale=128.0)
        x = weft.from_numpy(np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)).cuda()

        def backward(x: Any) -> Any:
            optimizer.zero_grad()
            with weft.autocast("cuda"):
                loss = (model(x) - 1).square().mean()
            scaler.scale(loss).backward()
            return loss.detach()

        run = weft.compile(backward) if compile else backward
        losses = []
        for _ in range(2):
            losses.append(run(x).item())
            scaler.step(optimizer)
            scaler.update()
        return losses

    eager, compiled = train(False), train(True)
    assert compiled[1] < compiled[0]
    np.testing.assert_allclose(compiled, eager, rtol=0.02)
