"""Updates of optimizers in a capture: recorded once for parameters of one type, with eager's results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import weft
from weft import nn
from weft.capture.repeat import Repeats
from weft.optim import SGD, Adam, RMSprop

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda ps: SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "dampened": lambda ps: SGD(ps, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda ps: Adam(ps, lr=0.1, weight_decay=0.01, amsgrad=True),
    "maximize": lambda ps: Adam(ps, lr=0.1, maximize=True),
    "rmsprop": lambda ps: RMSprop(ps, lr=0.01, centered=True, momentum=0.5),
}


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    rng = np.random.default_rng(3)
    return [nn.Parameter(weft.from_numpy(rng.normal(size=s).astype(np.float32))) for s in shapes]


def loss_of(ps: list[nn.Parameter]) -> weft.Tensor:
    return sum(((k + 1.5) * p * p).sin().sum() for k, p in enumerate(ps))  # type: ignore[return-value]


def step_of(ps: list[Any], optimizer: Any, loss: Callable[[Any], Any] = loss_of) -> Callable[[], Any]:
    def step() -> weft.Tensor:
        optimizer.zero_grad()
        value = loss(ps)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def same_after(make: Callable[[], list[Any]], optimizer: Callable[[Any], Any], loss: Any = loss_of) -> Any:
    """Two steps, eager and compiled, leave the same; the compiled function."""
    eager, traced = make(), make()
    a, b = step_of(eager, optimizer(eager), loss), weft.compile(step_of(traced, optimizer(traced), loss))
    for _ in range(2):
        np.testing.assert_allclose(b().numpy(), a().numpy(), rtol=1e-5)
    for p, q in zip(eager, traced, strict=True):
        np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=1e-5, atol=1e-6)
    return b


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_of_the_same_types_end_where_eager_leaves_them(name: str) -> None:
    same_after(lambda: parameters((3, 4), (4,), (3, 4), (4,), (3, 4)), OPTIMIZERS[name])


def test_the_update_is_recorded_once_for_each_type(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    plain = Repeats._record

    def counting(self: Repeats, fn: Any, tensors: Any, before: Any) -> Any:
        recorded.append(tensors[0].numel())
        return plain(self, fn, tensors, before)

    monkeypatch.setattr(Repeats, "_record", counting)
    ps = parameters((3, 4), (4,), (3, 4), (4,), (3, 4))
    step = weft.compile(step_of(ps, Adam(ps)), fullgraph=True)
    step()
    assert recorded == [12, 4]
    roots = [op.results[0].type.shape for op in step.graph.ops if op.prim.name == "sqrt"]
    assert [shape for shape in roots if shape] == [(3, 4), (4,), (3, 4), (4,), (3, 4)]


def test_parameters_in_one_memory_are_updated_like_eagerly() -> None:
    def halves() -> list[Any]:
        whole = weft.arange(8, dtype=weft.float32) / 8
        return [whole[:4].detach().requires_grad_(), whole[4:].detach().requires_grad_()]

    same_after(halves, OPTIMIZERS["adam"])


def test_parameters_that_overlap_are_updated_like_eagerly() -> None:
    def overlapping() -> list[Any]:
        whole = weft.arange(8, dtype=weft.float32) / 8
        return [whole[:6].detach().requires_grad_(), whole[2:].detach().requires_grad_()]

    same_after(overlapping, OPTIMIZERS["sgd"])


def test_a_gradient_that_two_parameters_share() -> None:
    def loss(ps: Any) -> Any:
        return (ps[0] + ps[1]).sin().sum()

    same_after(lambda: parameters((5,), (5,)), OPTIMIZERS["adam"], loss)


def test_a_gradient_that_is_the_parameter_itself() -> None:
    def loss(ps: Any) -> Any:
        return sum(p.detach().mul(p).sum() for p in ps)

    same_after(lambda: parameters((5,), (5,), (5,)), OPTIMIZERS["sgd"], loss)


def test_state_that_an_update_makes_is_made_for_each_parameter() -> None:
    ps = parameters((5,), (5,))
    optimizer = OPTIMIZERS["dampened"](ps)
    weft.compile(step_of(ps, optimizer))()
    buffers = [optimizer.state[p]["momentum_buffer"] for p in ps]
    assert buffers[0] is not buffers[1] and all(isinstance(b, weft.Tensor) for b in buffers)


class Talking(Adam):
    """An update with a side effect, which is not marked as plain arithmetic."""

    seen: ClassVar[list[int]] = []

    def update(self, p: Any, *args: Any) -> None:
        self.seen.append(p.numel())
        super().update(p, *args)


def test_an_update_of_the_users_runs_for_every_parameter() -> None:
    Talking.seen.clear()
    ps = parameters((5,), (5,), (5,))
    step = weft.compile(step_of(ps, Talking(ps)))
    step()
    step()
    assert Talking.seen == [5] * 6


def test_what_a_hook_prints_is_printed_at_every_call(capsys: pytest.CaptureFixture[str]) -> None:
    ps = parameters((5,), (5,))
    ps[0].register_hook(lambda g: print("hook"))
    step = weft.compile(step_of(ps, OPTIMIZERS["adam"](ps)))
    for _ in range(3):
        step()
    assert capsys.readouterr().out.split() == ["hook"] * 3


class Loud(weft.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:  # type: ignore[override]
        print("backward")
        return g * 2


def test_what_a_function_of_the_users_prints_in_the_walk_is_printed_at_every_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ps = parameters((5,))
    step = weft.compile(step_of(ps, OPTIMIZERS["adam"](ps), lambda ps: Loud.apply(ps[0]).sum()))
    for _ in range(3):
        step()
    assert capsys.readouterr().out.split() == ["backward"] * 3
