"""``weft.compile(..., options={"freezing": True})``: when the prologue runs, and that results are right."""

from __future__ import annotations

import numpy as np
import pytest
import weft


def network() -> weft.nn.Module:
    weft.manual_seed(0)
    nn = weft.nn
    first = [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(32, 16, 1)).eval()


def frozen(net: weft.nn.Module) -> weft.nn.Module:
    return weft.compile(net, options={"freezing": True})


def same(fn, net, x) -> None:
    np.testing.assert_allclose(fn(x).numpy(), net(x).numpy(), rtol=1e-4, atol=1e-5)


def test_the_prologue_runs_once_per_version() -> None:
    net, x = network(), weft.randn(2, 16, 6, 6)
    fn = frozen(net)
    with weft.no_grad():
        same(fn, net, x)
        same(fn, net, x * 2)
        exe = fn.entries[0].executable
        assert exe.prologue_runs == 1 and len(fn.entries) == 1
        assert all("w: in blocks" in k.loops for k in fn.kernels() if k.form == "conv")
        net[0].weight.mul_(2)
        same(fn, net, x)
        same(fn, net, x)
        assert exe.prologue_runs == 2
        net[1].running_var[3] = 5.0  # through a view
        same(fn, net, x)
        assert exe.prologue_runs == 3
        net.load_state_dict({k: v * 0.5 for k, v in net.state_dict().items()})
        same(fn, net, x)
        assert exe.prologue_runs == 4


def perceptron() -> weft.nn.Module:
    weft.manual_seed(1)
    nn = weft.nn
    first = [nn.Linear(96, 256), nn.GELU(), nn.Linear(256, 200), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(200, 80)).eval()


def test_products_read_panels_that_the_prologue_wrote() -> None:
    net, x = perceptron(), weft.randn(48, 96)
    fn = frozen(net)
    with weft.no_grad():
        for k in (1, 2, 3):
            same(fn, net, x * k)
        exe = fn.entries[0].executable
        assert exe.prologue_runs == 1
        assert [k.form for k in fn.kernels()] == ["contract"] * 3
        assert all("b: in panels" in k.loops and "packed none" in k.loops for k in fn.kernels())
        # three weights and nothing else, each once; a call has memory for what it computes, none to pack into
        made = [r.type.shape for r in exe.prologue.graph.results]
        for (panels, _, width), n in zip(made, (256, 200, 80), strict=True):
            assert panels == -(-n // width)
        assert exe.main.artifact.arena_bytes == 48 * (256 + 200) * 4
        net[2].weight[3:5].zero_()
        same(fn, net, x)
        same(fn, net, x)
        assert exe.prologue_runs == 2


def test_weights_on_the_left_are_left_alone() -> None:
    net = weft.nn.Linear(96, 256, bias=False).eval()
    fn = weft.compile(lambda x: net(x).transpose(0, 1), options={"freezing": True})
    x = weft.randn(48, 96)
    with weft.no_grad():
        np.testing.assert_allclose(fn(x).numpy(), net(x).numpy().T, rtol=1e-4, atol=1e-5)
    assert [k.form for k in fn.kernels()] == ["contract"]


def test_a_replaced_parameter_is_seen() -> None:
    net, x = network(), weft.randn(1, 16, 5, 5)
    fn = frozen(net)
    with weft.no_grad():
        same(fn, net, x)
        net[3].weight = weft.nn.Parameter(weft.randn(16, 32, 1, 1))
        for _ in range(2):
            same(fn, net, x)
        net[3].weight.add_(1)
        same(fn, net, x)


def test_calls_that_record_gradients_are_not_frozen() -> None:
    net, x = network(), weft.randn(1, 16, 5, 5)
    fn = frozen(net)
    fn(x).sum().backward()
    assert not hasattr(fn.entries[0].executable, "prologue_runs")
    assert net[0].weight.grad is not None
    with weft.no_grad():
        same(fn, net, x)
        assert fn.entries[0].executable.prologue_runs == 1


def test_arguments_are_never_frozen() -> None:
    fn = weft.compile(lambda x, w: weft.nn.functional.conv2d(x, w), options={"freezing": True})
    x, w = weft.randn(1, 16, 5, 5), weft.randn(32, 16, 3, 3)
    with weft.no_grad():
        for k in (1, 2):
            want = weft.nn.functional.conv2d(x, w * k).numpy()
            np.testing.assert_allclose(fn(x, w * k).numpy(), want, rtol=1e-4, atol=1e-5)
    assert not hasattr(fn.entries[0].executable, "prologue_runs")


def test_options_are_checked() -> None:
    with pytest.raises(RuntimeError, match="Unexpected optimization option freze, known options are"):
        weft.compile(lambda x: x, options={"freze": True})
    with pytest.raises(RuntimeError, match="Unexpected type of attr freezing"):
        weft.compile(lambda x: x, options={"freezing": 1})
    assert weft.compile(lambda x: x + 1, options={"max_autotune": True})(weft.zeros(1)).item() == 1
