"""``weft.explain``."""

from __future__ import annotations

import weft
from weft.capture.report import machine_limits


def test_report_of_one_graph() -> None:
    factor = 2.0
    report = weft.explain(lambda x: (x * factor).tanh().sum())(weft.ones(1000))
    text = str(report)
    assert report.graph_count == 1 and report.graph_break_count == 0 and report.ops >= 3
    (kernel,) = report.kernels
    assert kernel.bytes_moved >= 4000 and kernel.seconds is not None and kernel.seconds > 0
    assert kernel.share is not None and kernel.share > 0 and kernel.bound in ("memory", "arithmetic")
    assert "1 graph of" in text and "closure variable `factor` is 2.0" in text and "graph breaks: 0" in text
    assert "% of the" in text and "machine limits (measured)" in text


def test_report_of_breaks_and_recompiles() -> None:
    def broken(x: weft.Tensor) -> weft.Tensor:
        y = x * 2
        if y.sum() > 0:
            y = y + 1
        return y.exp()

    report = weft.explain(broken)(weft.ones(8))
    assert report.graph_count == 2
    assert report.graph_break_count >= 1 and "if y.sum() > 0:" in report.breaks[0]
    assert "if y.sum() > 0:" in str(report)
    compiled = weft.compile(lambda x: x + 1)
    compiled(weft.ones(3))
    report = weft.explain(compiled)(weft.ones(4))
    assert report.recompiles == ["shape of x changed from [3] to [4]"]


def test_refused_fusions_are_told() -> None:
    report = weft.explain(lambda a, b: (a @ b).exp().softmax(-1))(weft.randn(16, 16), weft.randn(16, 16))
    assert report.refusals and all(":" in line for line in report.refusals)


def test_limits_are_measured_once() -> None:
    limits = machine_limits()
    assert limits["bytes"] > 0 and limits["flops"] > 0 and machine_limits() == limits


def test_reports_of_modules() -> None:
    model = weft.nn.Sequential(weft.nn.Linear(4, 8), weft.nn.ReLU())
    compiled = weft.compile(model)
    assert weft.compile(compiled) is compiled
    for target in (model, compiled):
        report = weft.explain(target)(weft.ones(2, 4))
        assert report.graph_count == 1 and report.name == "Sequential"
        assert any("training is True" in g for g in report.guards)
    assert len(compiled.entries) == 1
