"""What histories keep of a trace stays inside it; what user code keeps is found."""

from __future__ import annotations

from typing import Any

import pytest
import weft
from weft.autograd.function import Function


class Square(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        ctx.extra = {"doubles": [x * 2]}
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * g


def test_what_a_function_saves_of_a_computed_input() -> None:
    def f(x: Any) -> Any:
        y = x * 2
        return Square.apply(Square.apply(y) + y.view(-1)), y[:1]

    grads = []
    for fn in (f, weft.compile(f, fullgraph=True)):
        x = weft.ones(3, requires_grad=True)
        a, b = fn(x)
        (a.sum() + b.sum()).backward()
        grads.append(x.grad)
    assert weft.equal(grads[0], grads[1])


def test_a_leaf_made_and_differentiated_inside() -> None:
    def f(x: Any) -> Any:
        x = (x * 2).requires_grad_()
        loss = (x**2).sum()
        loss.backward()
        return loss

    assert float(weft.compile(f, fullgraph=True)(weft.ones(3))) == 12.0


class Holder:
    """Keeps things where the environment of a function does not look."""

    __slots__ = ("kept",)


def test_what_user_code_keeps_of_a_history_is_found() -> None:
    holders: dict[str, Holder] = {"a": Holder()}

    def f(x: Any) -> Any:
        y = x * 2
        out = Square.apply(y)
        holders["a"].kept = [y]
        return out

    with pytest.raises(RuntimeError, match="cannot be one graph"):
        weft.compile(f, fullgraph=True)(weft.ones(3, requires_grad=True))
    compiled = weft.compile(f)
    for k in (1.0, 2.0):
        compiled(weft.full((3,), k, requires_grad=True))
        assert holders["a"].kept[0].tolist() == [2 * k] * 3


def test_outputs_that_are_views_of_one_value_share_memory() -> None:
    def f(x: Any) -> Any:
        y = x * 2
        return y[1:], y.detach().view(2, 2), y + 1

    for fn in (f, weft.compile(f, fullgraph=True)):
        x = weft.ones(4, requires_grad=True)
        a, b, c = fn(x)
        with weft.no_grad():
            b[1] = 7
        assert a.tolist() == [2.0, 7.0, 7.0] and c.tolist() == [3.0] * 4
        a.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [0.0, 2.0, 2.0, 2.0]
