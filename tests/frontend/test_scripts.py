"""Behaviour that scripts written for PyTorch rely on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import weft


def test_copy_shares_storage() -> None:
    t = weft.arange(3.0)
    copy.copy(t)[0] = 5
    assert t.tolist() == [5.0, 1.0, 2.0]
    p = copy.copy(weft.nn.Parameter(t))
    assert type(p) is weft.nn.Parameter and p.requires_grad and p.is_leaf
    p.detach()[1] = 7
    assert t.tolist() == [5.0, 7.0, 2.0]


def test_retained_gradients_accumulate() -> None:
    x = weft.tensor(1.0, requires_grad=True)
    b = x * 2
    b.retain_grad()
    loss = b**2
    loss.backward(retain_graph=True)
    loss.backward()
    assert b.grad is not None and b.grad.item() == 8.0


def test_error_types() -> None:
    x = weft.ones(2)
    with pytest.raises(IndexError, match="only integers"):
        x[1.5]
    with pytest.raises(IndexError, match="no dimensions"):
        weft.tensor(1).unbind()
    with pytest.raises(RuntimeError, match="Could not infer dtype of NoneType"):
        weft.tensor([None])


def test_a_view_made_a_leaf() -> None:
    base = weft.ones(4)
    a = base[1:].requires_grad_()
    for write in (lambda: a.fill_(2), lambda: a[1:].fill_(2)):
        with pytest.raises(RuntimeError, match="leaf Variable"):
            write()
    base.mul_(3)
    assert a.requires_grad and a.is_leaf and a.tolist() == [3.0, 3.0, 3.0]
    (a[1:] * 2).sum().backward()
    assert a.grad is not None and a.grad.tolist() == [0.0, 2.0, 2.0]

    def step(x: weft.Tensor) -> weft.Tensor:
        return (x[1:] * x[:-1]).sum()

    assert weft.compile(step)(a).item() == step(a).item() == 18.0


def test_overwriting_results() -> None:
    """Quotients may be; a result kept for the gradient may not, not even through its reshaped self."""

    def gradient(fn: Any) -> list[float]:
        x = weft.tensor([0.5, 2.0, 3.0], requires_grad=True)
        y = fn(x)
        y.add_(1)
        y.sum().backward()
        assert x.grad is not None
        return x.grad.tolist()

    assert gradient(lambda x: x / (x + 1)) == pytest.approx([4 / 9, 1 / 9, 1 / 16])
    assert gradient(lambda x: 1 / x) == pytest.approx([-4, -1 / 4, -1 / 9])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(lambda x: x.amax(0, keepdim=True))
