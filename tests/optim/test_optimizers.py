"""Optimizers against their formulas in numpy; groups, state dicts, schedules."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft import nn
from weft.optim import SGD, Adagrad, Adam, AdamW, RMSprop, lr_scheduler

STEPS = 8


def gradients(p: np.ndarray, step: int) -> np.ndarray:
    return np.sin(p * 3 + step)


def run(make: Callable[..., Any], **options: Any) -> np.ndarray:
    """A parameter after some steps of gradients that depend on it."""
    p = nn.Parameter(weft.from_numpy(np.linspace(-1, 2, 12).reshape(3, 4)))
    optimizer = make([p], **options)
    for i in range(STEPS):
        p.grad = weft.from_numpy(gradients(p.detach().numpy(), i))
        optimizer.step()
    return p.detach().numpy()


def reference(update: Callable[..., np.ndarray]) -> np.ndarray:
    p, state = np.linspace(-1, 2, 12).reshape(3, 4), {}
    for i in range(STEPS):
        p = update(p, gradients(p, i), state, i + 1)
    return p


def sgd(
    lr: float, momentum: float = 0, dampening: float = 0, nesterov: bool = False, decay: float = 0
) -> Any:
    def update(p: np.ndarray, g: np.ndarray, state: dict[str, Any], t: int) -> np.ndarray:
        g = g + decay * p
        if momentum:
            state["v"] = momentum * state["v"] + (1 - dampening) * g if "v" in state else g
            g = g + momentum * state["v"] if nesterov else state["v"]
        return p - lr * g

    return update


def adam(lr: float, betas: Any = (0.9, 0.999), eps: float = 1e-8, decay: float = 0, decoupled: bool = False,
         amsgrad: bool = False) -> Any:  # fmt: skip
    b1, b2 = betas

    def update(p: np.ndarray, g: np.ndarray, s: dict[str, Any], t: int) -> np.ndarray:
        p, g = (p * (1 - lr * decay), g) if decoupled else (p, g + decay * p)
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
        s["top"] = np.maximum(s.get("top", 0), s["v"])
        v = s["top"] if amsgrad else s["v"]
        return p - lr * (s["m"] / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return update


def rmsprop(
    lr: float, alpha: float = 0.99, momentum: float = 0, centered: bool = False, decay: float = 0
) -> Any:
    def update(p: np.ndarray, g: np.ndarray, s: dict[str, Any], t: int) -> np.ndarray:
        g = g + decay * p
        s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
        s["g"] = alpha * s.get("g", 0) + (1 - alpha) * g
        change = g / (np.sqrt(s["v"] - s["g"] ** 2 if centered else s["v"]) + 1e-8)
        s["b"] = momentum * s.get("b", 0) + change
        return p - lr * (s["b"] if momentum else change)

    return update


CASES = {
    "sgd": (SGD, {"lr": 0.1}, sgd(0.1)),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}, sgd(0.1, 0.9, decay=0.05)),
    "dampened": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, sgd(0.1, 0.9, 0.3)),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}, sgd(0.1, 0.8, nesterov=True)),
    "adam": (Adam, {"lr": 0.02}, adam(0.02)),
    "adam decay": (
        Adam,
        {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.9)},
        adam(0.02, (0.8, 0.9), decay=0.1),
    ),
    "amsgrad": (Adam, {"lr": 0.02, "amsgrad": True, "eps": 1e-3}, adam(0.02, eps=1e-3, amsgrad=True)),
    "adamw": (AdamW, {"lr": 0.02, "weight_decay": 0.2}, adam(0.02, decay=0.2, decoupled=True)),
    "rmsprop": (RMSprop, {"lr": 0.01, "weight_decay": 0.1}, rmsprop(0.01, decay=0.1)),
    "centered": (
        RMSprop,
        {"lr": 0.01, "momentum": 0.5, "centered": True},
        rmsprop(0.01, momentum=0.5, centered=True),
    ),
    "adagrad": (
        Adagrad,
        {"lr": 0.1, "lr_decay": 0.1},
        lambda p, g, s, t: (
            s.update(v=s.get("v", 0) + g * g) or p - 0.1 / (1 + (t - 1) * 0.1) * g / (np.sqrt(s["v"]) + 1e-10)
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_follow_the_formula(name: str) -> None:
    make, options, update = CASES[name]
    np.testing.assert_allclose(run(make, **options), reference(update), rtol=1e-10, atol=1e-12)


def test_maximize_goes_up() -> None:
    np.testing.assert_allclose(run(SGD, lr=0.1, maximize=True), reference(sgd(-0.1)))


@pytest.mark.parametrize("name", CASES)
def test_going_on_from_a_state_dict(name: str) -> None:
    make, options, _ = CASES[name]

    def steps(p: nn.Parameter, optimizer: Any, n: int) -> None:
        for i in range(n):
            p.grad = weft.sin(p.detach() * 3 + i)
            optimizer.step()

    p = nn.Parameter(weft.linspace(-1, 2, 6))
    first = make([p], **options)
    steps(p, first, 3)
    q = nn.Parameter(p.detach().clone())
    second = make([q], lr=9.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(p, first, 3)
    steps(q, second, 3)
    assert weft.equal(p, q)
    assert second.param_groups[0]["lr"] == options["lr"]


def test_the_layout_of_a_state_dict() -> None:
    a, b = nn.Parameter(weft.ones(2)), nn.Parameter(weft.ones(3))
    optimizer = Adam([{"params": [a]}, {"params": b, "lr": 0.5}], lr=0.1)
    assert optimizer.state_dict()["state"] == {}
    a.grad, b.grad = weft.ones(2), weft.ones(3)
    optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved["state"]) == [0, 1]
    assert list(saved["state"][0]) == ["step", "exp_avg", "exp_avg_sq"]
    assert [g["params"] for g in saved["param_groups"]] == [[0], [1]]
    assert [g["lr"] for g in saved["param_groups"]] == [0.1, 0.5]
    assert saved["state"][0]["step"].item() == 1.0
    with pytest.raises(ValueError, match="different number of parameter groups"):
        Adam([a]).load_state_dict(saved)
    with pytest.raises(ValueError, match="doesn't match the size"):
        Adam([{"params": [a, b]}, {"params": [nn.Parameter(weft.ones(1))]}]).load_state_dict(saved)


def test_groups_and_what_is_refused() -> None:
    a, b = nn.Parameter(weft.ones(2)), nn.Parameter(weft.ones(2))
    with pytest.raises(ValueError, match="empty parameter list"):
        SGD([])
    with pytest.raises(TypeError, match="should be an iterable of Tensors or dicts"):
        SGD(a)
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        SGD([1])
    with pytest.raises(ValueError, match="non-leaf"):
        SGD([a * 2])
    with pytest.raises(ValueError, match="more than one parameter group"):
        SGD([{"params": [a]}, {"params": [a]}])
    with pytest.raises(ValueError, match="duplicate parameters"):
        SGD([a, a])
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        SGD([a], lr=-1)
    with pytest.raises(ValueError, match="Invalid beta parameter at index 1: 2"):
        Adam([a], betas=(0.9, 2))
    with pytest.raises(ValueError, match="Nesterov momentum requires"):
        SGD([a], nesterov=True)
    optimizer = SGD([a], lr=0.1)
    optimizer.add_param_group({"params": [b], "lr": 1.0})
    a.grad, b.grad = weft.ones(2), weft.ones(2)
    optimizer.step()
    assert weft.allclose(a, weft.full((2,), 0.9)) and b.tolist() == [0.0, 0.0]


def test_parameters_without_gradients_stay() -> None:
    a, b = nn.Parameter(weft.ones(2)), nn.Parameter(weft.ones(2))
    optimizer = Adam([a, b])
    a.grad = weft.ones(2)
    optimizer.step()
    assert b.tolist() == [1.0, 1.0] and list(optimizer.state_dict()["state"]) == [0]


def test_clearing_gradients() -> None:
    p = nn.Parameter(weft.ones(2))
    optimizer = SGD([p])
    p.grad = weft.ones(2)
    kept = p.grad
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is kept and kept.tolist() == [0.0, 0.0]
    optimizer.zero_grad()
    assert p.grad is None


def test_a_closure_is_called_with_gradients_on() -> None:
    p = nn.Parameter(weft.ones(2))
    optimizer = SGD([p], lr=0.5)

    def closure() -> weft.Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with weft.no_grad():
        assert optimizer.step(closure).item() == 2.0
    assert p.tolist() == [0.0, 0.0]


def test_hooks_around_a_step() -> None:
    p, seen = nn.Parameter(weft.ones(1)), []
    optimizer = SGD([p])
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    handle = optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == ["before", "after", "before"]


def rates(make: Callable[[Any], Any], n: int = 7, lr: float = 1.0) -> list[float]:
    optimizer = SGD([nn.Parameter(weft.ones(1))], lr=lr)
    scheduler = make(optimizer)
    out = []
    for _ in range(n):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
    return out


def test_schedules() -> None:
    assert rates(lambda o: lr_scheduler.StepLR(o, 3, 0.5)) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert rates(lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5)) == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert rates(lambda o: lr_scheduler.ExponentialLR(o, 0.5), 4) == [1, 0.5, 0.25, 0.125]
    assert rates(lambda o: lr_scheduler.LambdaLR(o, lambda e: 1 / (1 + e)), 3) == [1, 1 / 2, 1 / 3]
    assert rates(lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=2), 4) == [0.5, 0.75, 1, 1]
    cosine = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 4, 0.1), 6)
    wanted = [0.1 + 0.9 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(6)]
    np.testing.assert_allclose(cosine, wanted, rtol=1e-12)


def test_schedules_resume_and_refuse() -> None:
    optimizer = SGD([nn.Parameter(weft.ones(1))], lr=1.0)
    a = lr_scheduler.StepLR(optimizer, 2)
    a.step()
    b = lr_scheduler.StepLR(SGD([nn.Parameter(weft.ones(1))], lr=1.0), 99)
    b.load_state_dict(a.state_dict())
    assert (b.last_epoch, b.step_size) == (1, 2)
    with pytest.raises(TypeError, match="is not an Optimizer"):
        lr_scheduler.StepLR(3, 2)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(SGD([nn.Parameter(weft.ones(1))]), 2, last_epoch=3)


def test_reducing_on_a_plateau() -> None:
    optimizer = SGD([nn.Parameter(weft.ones(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    seen = []
    for loss in (3.0, 2.0, 2.0, 2.0, 2.0, 1.0):
        scheduler.step(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
