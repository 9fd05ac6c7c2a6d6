"""Whole training steps, compiled: eager's numbers, one compilation over a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft import nn
from weft.nn import functional as F
from weft.optim import SGD, Adagrad, Adam, AdamW, RMSprop, lr_scheduler

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda ps: SGD(ps, lr=0.1),
    "momentum": lambda ps: SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda ps: Adam(ps, lr=1e-2, weight_decay=1e-3),
    "amsgrad": lambda ps: Adam(ps, lr=1e-2, amsgrad=True),
    "adamw": lambda ps: AdamW(ps, lr=1e-2),
    "rmsprop": lambda ps: RMSprop(ps, lr=1e-3, centered=True, momentum=0.5),
    "adagrad": lambda ps: Adagrad(ps, lr=1e-2, lr_decay=0.1),
}


def model() -> nn.Module:
    weft.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def batches(n: int, rows: int = 12) -> list[tuple[weft.Tensor, weft.Tensor]]:
    rng = np.random.default_rng(0)
    return [
        (
            weft.from_numpy(rng.normal(size=(rows, 6)).astype(np.float32)),
            weft.from_numpy(rng.integers(0, 4, rows)),
        )
        for _ in range(n)
    ]


def train(make: Callable[[Any], Any], compiled: bool, steps: int = 10) -> tuple[list[float], Any, Any, Any]:
    net = model()
    optimizer = make(net.parameters())
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = weft.compile(step, fullgraph=True) if compiled else step
    losses = []
    for x, y in batches(steps):
        losses.append(run(x, y).item())
        scheduler.step()
    return losses, net, optimizer, run


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_gives_the_losses_and_the_state_of_eager(name: str) -> None:
    eager, net, optimizer, _ = train(OPTIMIZERS[name], compiled=False)
    losses, other, compiled_optimizer, _ = train(OPTIMIZERS[name], compiled=True)
    np.testing.assert_allclose(losses, eager, rtol=1e-4)
    for key, value in net.state_dict().items():
        np.testing.assert_allclose(other.state_dict()[key].numpy(), value.numpy(), rtol=5e-3, atol=1e-4)
    a, b = optimizer.state_dict(), compiled_optimizer.state_dict()
    assert {k: list(v) for k, v in a["state"].items()} == {k: list(v) for k, v in b["state"].items()}
    assert all(v["step"].item() == 10 for v in b["state"].values() if "step" in v)


def test_one_compilation_over_a_schedule() -> None:
    *_, run = train(OPTIMIZERS["adam"], compiled=True, steps=20)
    assert (run.traces, run.recompiles) == (1, [])


def test_a_state_dict_of_a_compiled_run_goes_on_eagerly() -> None:
    _, net, optimizer, _ = train(OPTIMIZERS["adam"], compiled=True, steps=5)
    again = model()
    again.load_state_dict(net.state_dict())
    resumed = Adam(again.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    for m, o in ((net, optimizer), (again, resumed)):
        x, y = batches(1)[0]
        o.zero_grad()
        F.cross_entropy(m(x), y).backward()
        o.step()
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert weft.equal(p, q)


def test_other_options_take_effect() -> None:
    """Numbers are read afresh; a switched flag is guarded."""
    p = nn.Parameter(weft.ones(3))
    optimizer = SGD([p], lr=1.0)
    p.grad = weft.ones(3)
    step = weft.compile(lambda: optimizer.step(), fullgraph=True)
    step()
    assert p.tolist() == [0.0, 0.0, 0.0]
    optimizer.param_groups[0]["lr"] = 2.0
    step()
    assert p.tolist() == [-2.0, -2.0, -2.0]
    assert step.traces == 1
    optimizer.param_groups[0]["maximize"] = True
    step()
    assert p.tolist() == [0.0, 0.0, 0.0]
    assert step.traces == 2
