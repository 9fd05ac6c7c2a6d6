"""Capture pitfalls: aliasing, in-place operations, gradients across the boundary.

Whatever a function does, compiled it gives what it gives eagerly.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import weft
from weft.testing import assert_close, assert_equivalent
from weft.testing import assert_same_story as check


def x3() -> weft.Tensor:
    return weft.tensor([1.0, -2.0, 3.0])


# -- aliasing and in-place


def test_input_aliasing_another_input() -> None:
    def scenario(decorate: Any) -> Any:
        @decorate
        def f(a: weft.Tensor, b: weft.Tensor) -> weft.Tensor:
            a.mul_(2)
            return a + b

        x, y, base = x3(), x3(), weft.arange(6.0)
        return [f(x, y), f(x, x), f(base[:3], base[2:5]), f(base[:3], base[3:]), base, x, f(x, y), x]

    check(scenario)


def test_the_same_tensor_twice() -> None:
    g = weft.compile(lambda a, b: (a * b).sum())
    x = x3().requires_grad_(True)
    g(x3(), x3())
    g(x, x).backward()
    assert_close(x.grad, 2 * x3())


def test_in_place_on_an_input_and_a_view() -> None:
    def f(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        x.add_(y)
        x[0] = 7.0
        x[1:].mul_(2)
        return x.sum()

    assert_equivalent(f, x3(), x3(), fullgraph=True)
    assert_equivalent(f, weft.randn(3, 4), weft.randn(3, 4), fullgraph=True)
    assert_equivalent(f, weft.randn(4, 3).t(), weft.randn(3, 4))


def test_in_place_keeps_the_memory() -> None:
    f = weft.compile(lambda x: x.mul_(2), fullgraph=True)
    x = x3()
    pointer, version = x.data_ptr(), x._version
    for _ in range(3):
        assert f(x) is x
    assert x.data_ptr() == pointer and x._version == version + 3
    assert_close(x, x3() * 8)


def test_a_view_made_outside_sees_writes() -> None:
    x = weft.zeros(4)
    v = x[1:3]
    f = weft.compile(lambda x: x.add_(1), fullgraph=True)
    for _ in range(2):
        f(x)
    assert_close(v, weft.tensor([2.0, 2.0]))


def test_writing_a_view_given_as_argument() -> None:
    def scenario(decorate: Any) -> Any:
        x = weft.zeros(4, 4)
        f = decorate(lambda v: v.add_(1))
        for v in (x[1:3], x[:, 0], x.t(), x[1:3]):
            f(v)
        return x

    check(scenario)


def test_base_and_view_as_hidden_inputs() -> None:
    def scenario(decorate: Any) -> Any:
        base = weft.zeros(4)
        view = base[:2]

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            base.add_(x)
            return view * 1

        return [f(weft.ones(4)), f(weft.ones(4)), base, view]

    check(scenario)


def test_returning_inputs_and_views() -> None:
    f = weft.compile(lambda x: (x, x[1], x.t(), x.detach(), x + 1), fullgraph=True)
    for _ in range(2):
        x = weft.randn(2, 3)
        same, row, transposed, detached, fresh = f(x)
        assert same is x
        row.fill_(5.0)
        assert_close(x[1], weft.full((3,), 5.0))
        transposed[0, 0] = 9.0
        assert x[0, 0].item() == 9.0
        detached.zero_()
        assert x.sum().item() == 0
        fresh.add_(1)
        assert x.sum().item() == 0


def test_in_place_on_a_returned_view_of_an_output() -> None:
    def scenario(decorate: Any) -> Any:
        def f(x: weft.Tensor) -> Any:
            y = x * 2
            return y, y[0]

        y, v = decorate(f)(weft.ones(2, 2))
        v.add_(10)
        return [y, v]

    check(scenario)


def test_outputs_are_fresh_memory() -> None:
    f = weft.compile(lambda x: (x + 1, x.clone(), x.contiguous()), fullgraph=True)
    x = x3()
    a, b, c = f(x)
    a2, b2, _ = f(x)
    a.zero_()
    b.zero_()
    assert c is x
    assert_close(a2, x3() + 1)
    assert_close(b2, x3())
    assert_close(x, x3())


def test_resized_and_replaced_data() -> None:
    def scenario(decorate: Any) -> Any:
        w = weft.ones(3)

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * w

        out = [f(x3())]
        w.data = weft.full((3,), 4.0)
        out.append(f(x3()))
        w.data = weft.full((1,), 5.0)
        return [*out, f(x3())]

    check(scenario)


def test_views_of_one_buffer_that_do_not_overlap() -> None:
    def scenario(decorate: Any) -> Any:
        flat = weft.zeros(8)
        a, b, even, odd = flat[:2], flat[2:4], flat[4::2], flat[5::2]

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            a.add_(x)
            b.add_(a)
            even.add_(b)
            odd.sub_(even)
            return a + odd

        return [f(weft.ones(2)) for _ in range(3)], flat, getattr(f, "breaks", [])

    check(scenario)


# -- gradients across the boundary


def test_gradients_of_hidden_and_explicit_inputs() -> None:
    def scenario(decorate: Any) -> Any:
        w = weft.tensor([1.0, 2.0, 3.0], requires_grad=True)

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return (x * w).exp()

        x = x3().requires_grad_(True)
        for _ in range(2):
            f(x * 0.1).sum().backward()  # the argument is not a leaf
        return [w.grad, x.grad]

    check(scenario)


def test_double_backward() -> None:
    def scenario(decorate: Any) -> Any:
        f = decorate(lambda x, y: (x**3 * y).sum() + (x * x.detach()).sum())
        x, y = x3().requires_grad_(True), x3().requires_grad_(True)
        (g,) = weft.autograd.grad(f(x, y), x, create_graph=True)
        (g * g).sum().backward()
        return [g, x.grad, y.grad]

    check(scenario)


def test_backward_twice_is_an_error_and_retain_graph_helps() -> None:
    f = weft.compile(lambda x: (x * x).sum())
    x = x3().requires_grad_(True)
    y = f(x)
    y.backward(retain_graph=True)
    y.backward()
    assert_close(x.grad, 4 * x3())
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_saved_values_modified_in_place_are_an_error() -> None:
    f = weft.compile(lambda x, w: (x * w).sum())
    x, w = x3().requires_grad_(True), x3()
    y = f(x, w)
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_backward_inside() -> None:
    def f(x: weft.Tensor, w: weft.Tensor) -> weft.Tensor:
        loss = ((x * w) ** 2).sum()
        loss.backward()
        return loss.detach()

    assert_equivalent(f, x3(), x3().requires_grad_(True), fullgraph=True)


def test_gradients_accumulate_over_calls() -> None:
    def scenario(decorate: Any) -> Any:
        w = x3().requires_grad_(True)

        @decorate
        def f(x: weft.Tensor) -> None:
            (x * w).sum().backward()

        grads = []
        for k in range(4):
            f(x3() * k)
            grads.append(w.grad.clone())
        w.grad = None
        f(x3())
        return [*grads, w.grad]

    check(scenario)


def test_loss_returned_after_backward_cannot_be_walked_again() -> None:
    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        loss = (x * x).sum()
        loss.backward()
        return loss

    x = x3().requires_grad_(True)
    for _ in range(2):
        loss = f(x)
        assert loss.requires_grad
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_autograd_grad_and_functions_inside() -> None:
    class Double(weft.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: weft.Tensor) -> weft.Tensor:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: weft.Tensor) -> weft.Tensor:
            (x,) = ctx.saved_tensors
            return g * 100 + x * 0

    def f(x: weft.Tensor) -> Any:
        (g,) = weft.autograd.grad((x**3).sum(), x, create_graph=True)
        return g, Double.apply(x)

    assert_equivalent(f, x3().requires_grad_(True))


def test_in_place_on_a_non_leaf_argument() -> None:
    def scenario(decorate: Any) -> Any:
        f = decorate(lambda h: h.mul_(3))
        x = x3().requires_grad_(True)
        h = x * 2
        f(h)
        h.sum().backward()
        return [h, x.grad]

    check(scenario)


def test_leaf_in_place_error_is_the_same() -> None:
    assert_equivalent(lambda x: x.add_(1), x3().requires_grad_(True))


def test_hook_inside_and_outside() -> None:
    def scenario(decorate: Any) -> Any:
        f = decorate(lambda x: (x * x).sum())
        x = x3().requires_grad_(True)
        x.register_hook(lambda g: g * 10)
        f(x).backward()
        return x.grad

    check(scenario)


def test_hooks_inside_that_ask_for_values() -> None:
    def scenario(decorate: Any) -> Any:
        seen = []

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            h = x * 2
            h.register_hook(lambda g: seen.append(g.sum().item()))
            y = (h * h).sum()
            y.backward()
            return y.detach()

        xs = [(x3() * k).requires_grad_(True) for k in range(1, 5)]
        return [f(x) for x in xs], [x.grad for x in xs], seen

    check(scenario)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_keeps_the_arguments(requires_grad: bool) -> None:
    w = weft.ones(3, requires_grad=True)
    f = weft.compile(lambda x: (x * w).exp() if requires_grad else (x * 2).exp())
    for _ in range(2):
        x = x3().requires_grad_(requires_grad)
        y = f(x)
        gone = weakref.ref(x), weakref.ref(y)
        if requires_grad:
            y.sum().backward()
        del x, y
        gc.collect()
        assert [r() for r in gone] == [None, None]
