"""``weft.autocast`` and ``weft.amp.GradScaler``: what runs in which dtype, eager and compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft import nn
from weft.amp import GradScaler, custom_bwd, custom_fwd
from weft.autograd.grad_mode import mode
from weft.casting import opened
from weft.nn import functional as F


def values(*shape: int) -> weft.Tensor:
    rng = np.random.default_rng(sum(shape))
    return weft.from_numpy(rng.normal(size=shape).astype(np.float32))


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Any:
    yield
    assert opened.blocks == 0 and mode.autocast is None and mode.casts is None


def test_products_run_in_the_lower_precision_and_sums_of_dtypes_promote() -> None:
    a = values(4, 4)
    with weft.autocast("cpu", dtype=weft.bfloat16):
        low = a @ a
        assert low.dtype is weft.bfloat16 and F.linear(a, a).dtype is weft.bfloat16
        assert F.conv2d(a[None, None], a[None, None]).dtype is weft.bfloat16
        assert (low + a).dtype is weft.float32 and (low + low).dtype is weft.bfloat16
        assert F.mse_loss(low, low).dtype is weft.float32
        assert weft.cat([low, a]).dtype is weft.float32 and weft.cat([low, low]).dtype is weft.bfloat16
    assert (a @ a).dtype is weft.float32
    np.testing.assert_allclose(
        low.float().numpy(), (a.bfloat16() @ a.bfloat16()).float().numpy(), rtol=0, atol=0
    )


def test_float64_integers_and_other_dtypes_are_left_alone() -> None:
    a = values(3, 3)
    with weft.autocast("cpu"):
        assert (a.double() @ a.double()).dtype is weft.float64
        n = weft.arange(9).reshape(3, 3)
        assert (n @ n).dtype is weft.int64


def test_float16_on_the_cpu() -> None:
    a = values(3, 3)
    with weft.autocast("cpu", dtype=weft.float16):
        assert (a @ a).dtype is weft.float16 and weft.get_autocast_dtype("cpu") is weft.float16


def test_a_block_inside_a_block_can_turn_it_off() -> None:
    a = values(3, 3)
    with weft.autocast("cpu"):
        assert weft.is_autocast_enabled("cpu") and not weft.is_autocast_enabled("cuda")
        with weft.autocast("cpu", enabled=False):
            assert (a @ a).dtype is weft.float32 and not weft.is_autocast_enabled("cpu")
        with weft.autocast("cpu", dtype=weft.float16):
            assert (a @ a).dtype is weft.float16
        assert (a @ a).dtype is weft.bfloat16
    with weft.autocast("cpu", enabled=False):
        assert (a @ a).dtype is weft.float32


def test_autocast_of_another_device_changes_nothing() -> None:
    a = values(3, 3)
    with weft.autocast("cuda"):
        assert (a @ a).dtype is weft.float32


def test_as_a_decorator_and_of_several_calls() -> None:
    @weft.autocast("cpu")
    def product(x: Any) -> Any:
        """A product."""
        return x @ x

    a = values(3, 3)
    assert product(a).dtype is weft.bfloat16 and product(a).dtype is weft.bfloat16
    assert product.__name__ == "product" and product.__doc__ == "A product."


def test_one_object_entered_twice() -> None:
    a, block = values(3, 3), weft.autocast("cpu")
    with block, block:
        assert (a @ a).dtype is weft.bfloat16


def test_an_error_leaves_the_block() -> None:
    with pytest.raises(ZeroDivisionError), weft.autocast("cpu"):
        _ = 1 / 0
    assert not weft.is_autocast_enabled("cpu")


def test_other_threads_are_not_concerned() -> None:
    a, seen = values(3, 3), []
    with weft.autocast("cpu"):
        thread = threading.Thread(target=lambda: seen.append((a @ a).dtype))
        thread.start()
        thread.join()
    assert seen == [weft.float32]


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(RuntimeError, match="unsupported autocast device_type 'mps'"):
        weft.autocast("mps")
    with pytest.raises(ValueError, match="Expected `device_type` of type `str`"):
        weft.autocast(weft.device("cpu"))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="target dtype is not supported. Disabling autocast"):
        block = weft.autocast("cpu", dtype=weft.float64)
    with block:
        assert not weft.is_autocast_enabled("cpu")


def test_gradients_are_of_the_dtype_of_the_parameters() -> None:
    layer, x = nn.Linear(4, 3), values(5, 4).requires_grad_()
    with weft.autocast("cpu"):
        loss = layer(x).square().mean()
    loss.backward()
    assert layer.weight.grad is not None and x.grad is not None
    assert layer.weight.grad.dtype is weft.float32 and x.grad.dtype is weft.float32
    exact = nn.Linear(4, 3)
    exact.load_state_dict(layer.state_dict())
    exact(x.detach()).square().mean().backward()
    assert exact.weight.grad is not None
    np.testing.assert_allclose(layer.weight.grad.numpy(), exact.weight.grad.numpy(), rtol=0.05, atol=0.02)


def test_a_parameter_is_converted_once_in_a_block_and_again_when_it_was_written() -> None:
    w = nn.Parameter(values(3, 3))
    x = values(2, 3)
    with weft.autocast("cpu"):
        first = (x @ w)._edge
        kept = [t for _, _, t in mode.casts.known.values()]
        _ = x @ w
        assert len(kept) == 1 and next(t for _, _, t in mode.casts.known.values()) is kept[0]
        with weft.no_grad():
            w.add_(1.0)
        changed = x @ w
        assert next(t for _, _, t in mode.casts.known.values()) is not kept[0]
    assert first is not None
    np.testing.assert_allclose(
        changed.detach().float().numpy(), (x @ w).detach().numpy(), rtol=0.05, atol=0.05
    )
    with weft.autocast("cpu", cache_enabled=False):
        _ = x @ w
        assert mode.casts is None


# -- compiled -----------------------------------------------------------------------------------------------


def both(fn: Callable[..., Any], *args: Any) -> Any:
    """The compiled function, which gives what eager gives, to the dtype."""
    compiled = weft.compile(fn, fullgraph=True)
    a, b = fn(*args), compiled(*args)
    assert a.dtype is b.dtype
    np.testing.assert_allclose(b.detach().float().numpy(), a.detach().float().numpy(), rtol=0.02, atol=0.02)
    return compiled


def test_a_block_inside_a_compiled_function() -> None:
    layer = nn.Linear(8, 8)

    def forward(x: Any) -> Any:
        with weft.autocast("cpu"):
            y = layer(x).relu()
            with weft.autocast("cpu", enabled=False):
                z = layer(x)
            return y @ y.t() + z.sum()

    compiled = both(forward, values(4, 8))
    dots = [op.results[0].type.dtype.name for op in compiled.graph.ops if op.prim.name == "dot_general"]
    assert sorted(dots) == ["bf16", "bf16", "f32"]


def test_a_compiled_function_under_a_block_is_compiled_for_it_and_says_why() -> None:
    layer, x = nn.Linear(8, 8), values(4, 8)
    compiled = weft.compile(lambda x: layer(x))
    assert compiled(x).dtype is weft.float32
    with weft.autocast("cpu"):
        assert compiled(x).dtype is weft.bfloat16
        assert compiled(x).dtype is weft.bfloat16
        with weft.autocast("cpu", dtype=weft.float16):
            assert compiled(x).dtype is weft.float16
    assert compiled(x).dtype is weft.float32
    assert compiled.traces == 3
    assert compiled.recompiles[0] == "autocast changed from off"
    assert "autocast changed from bfloat16 on cpu" in compiled.recompiles[1]


def test_a_compiled_training_step_under_autocast_learns() -> None:
    def train(compile: bool) -> list[float]:
        weft.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
        optimizer = weft.optim.Adam(model.parameters(), lr=1e-2)
        x, y = values(32, 8), weft.arange(32) % 4

        def step() -> Any:
            optimizer.zero_grad()
            with weft.autocast("cpu"):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = weft.compile(step, fullgraph=True) if compile else step
        return [run().item() for _ in range(8)]

    eager, compiled = train(False), train(True)
    assert compiled[-1] < compiled[0]
    np.testing.assert_allclose(compiled, eager, rtol=0.02)


# -- custom functions ---------------------------------------------------------------------------------------


class Product(weft.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=weft.float32)
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, g: Any) -> Any:  # type: ignore[override]
        a, b = ctx.saved_tensors
        return g @ b.t(), a.t() @ g


def test_a_function_that_wants_float32() -> None:
    a = values(3, 3).requires_grad_()
    with weft.autocast("cpu"):
        y = Product.apply(a.bfloat16(), a)
    assert y.dtype is weft.float32
    y.sum().backward()
    assert a.grad is not None and a.grad.dtype is weft.float32


# -- scaling of gradients -----------------------------------------------------------------------------------


def test_a_step_with_gradients_that_are_not_finite_is_skipped_and_the_scale_falls() -> None:
    p = nn.Parameter(weft.ones(2))
    optimizer = weft.optim.SGD([p], lr=0.5)
    scaler = GradScaler("cpu", init_scale=8.0, growth_interval=2)
    scaler.scale((p * p).sum()).backward()
    assert p.grad is not None and p.grad.tolist() == [16.0, 16.0]
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == [0.0, 0.0] and scaler.get_scale() == 8.0
    p.grad = weft.tensor([float("inf"), 1.0])
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == [0.0, 0.0] and scaler.get_scale() == 4.0
    for _ in range(2):
        p.grad = weft.zeros(2)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 8.0


def test_gradients_are_unscaled_once() -> None:
    p = nn.Parameter(weft.ones(2))
    optimizer, scaler = weft.optim.SGD([p], lr=0.5), GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(optimizer)
    assert p.grad is not None and p.grad.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="already been called on this optimizer"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"after step\(\)"):
        scaler.unscale_(optimizer)
    scaler.update()
    assert p.tolist() == [0.5, 0.5]
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.update()


def test_a_scaler_that_is_not_enabled_does_nothing() -> None:
    p = nn.Parameter(weft.ones(2))
    optimizer, scaler = weft.optim.SGD([p], lr=0.5), GradScaler("cpu", enabled=False)
    loss = p.sum()
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0 and scaler.state_dict() == {}
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == [0.5, 0.5]


def test_the_state_of_a_scaler() -> None:
    a, b = GradScaler("cpu", init_scale=4.0, growth_interval=7), GradScaler("cpu")
    b.load_state_dict(a.state_dict())
    assert b.get_scale() == 4.0 and b.get_growth_interval() == 7
    with pytest.raises(RuntimeError, match="state dict is empty"):
        b.load_state_dict({})
    assert [x.shape for x in b.scale([weft.ones(1), weft.ones(2)])] == [(1,), (2,)]
