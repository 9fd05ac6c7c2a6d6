"""``weft.explain`` on a GPU: kernels with bytes, operations, time by events, and the share of the limit."""

from __future__ import annotations

import os
from typing import Any

import pytest
import weft
from weft.nn import functional as F

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not weft.cuda.is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", os.environ.get("WEFT_CUDA_DEVICES", "2"))


def test_a_report_has_the_time_of_each_kernel_and_its_share_of_the_limit() -> None:
    def fn(x: Any, w: Any) -> Any:
        return F.softmax(x @ w, -1)

    x = weft.ones(8, 16, device="cuda")
    report = weft.explain(fn)(x, weft.ones(16, 8, device="cuda"))
    assert (report.graph_count, report.graph_break_count, len(report.kernels)) == (1, 0, 2)
    for kernel in report.kernels:
        assert kernel.bytes_moved > 0 and kernel.flops > 0
        assert kernel.seconds is not None and kernel.seconds > 0
        assert kernel.share is not None and kernel.share > 0 and kernel.bound in ("memory", "arithmetic")
    assert set(report.limits) == {"bytes", "flops"} and all(v > 0 for v in report.limits.values())
    assert "% of the" in str(report)


def test_a_number_among_the_arguments_goes_with_the_measured_calls() -> None:
    report = weft.explain(lambda x, k: (x * k).tanh())(weft.ones(64, device="cuda"), 2.0)
    assert len(report.kernels) == 1 and report.kernels[0].seconds


def test_a_training_step_is_reported() -> None:
    model = weft.nn.Linear(4, 2).to("cuda")
    optimizer = weft.optim.SGD(model.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    report = weft.explain(step)(weft.ones(3, 4, device="cuda"))
    assert report.kernels and all(k.seconds for k in report.kernels)
