"""Backward, grad, modes, hooks, user functions, double backward."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft as torch
from weft.autograd import Function, gradcheck, gradgradcheck
from weft.autograd.tape import Saved
from weft.ir.prims.base import PRIMITIVES


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True, dtype=torch.float64)


def test_backward_accumulates() -> None:
    x = leaf(1, 2, 3)
    (x * x).sum().backward()
    (x * x).sum().backward()
    assert x.grad.tolist() == [4, 8, 12]


def test_chain_and_broadcast() -> None:
    w = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    b = leaf(1, 2, 3)
    ((w * b + b).exp()).sum().backward()
    np.testing.assert_allclose(b.grad.numpy(), 4 * np.exp([2.0, 4.0, 6.0]))


def test_backward_of_non_scalar_needs_a_gradient() -> None:
    y = leaf(1, 2) * 2
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        y.backward()
    x = leaf(1, 2)
    (x * 2).backward(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert x.grad.tolist() == [2, 6]
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        (x * 2).backward(torch.ones(3, dtype=torch.float64))


def test_backward_twice() -> None:
    x = leaf(1, 2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 8]
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        y.backward()


def test_nothing_requires_grad() -> None:
    with pytest.raises(RuntimeError, match="does not require grad and does not have a grad_fn"):
        torch.ones(1).sum().backward()


def test_grad_leaves_dot_grad_alone() -> None:
    x, z = leaf(1, 2), leaf(1, 1)
    (g,) = torch.autograd.grad((x**3).sum(), x)
    assert g.tolist() == [3, 12] and x.grad is None
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        torch.autograd.grad((x * 2).sum(), [x, z])
    assert torch.autograd.grad((x * 2).sum(), [x, z], allow_unused=True)[1] is None
    assert torch.autograd.grad((x * 2).sum(), z, materialize_grads=True)[0].tolist() == [0, 0]


def test_grad_of_intermediate() -> None:
    x = leaf(1, 2)
    y = x * 3
    (g,) = torch.autograd.grad((y * y).sum(), y)
    assert g.tolist() == [6, 12]


def test_backward_with_inputs() -> None:
    x, z = leaf(1, 2), leaf(3, 4)
    (x * z).sum().backward(inputs=[x])
    assert x.grad.tolist() == [3, 4] and z.grad is None


def test_double_backward() -> None:
    x = leaf(1, 2)
    (g,) = torch.autograd.grad((x**4).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    (k,) = torch.autograd.grad(h.sum(), x)
    assert (g.tolist(), h.tolist(), k.tolist()) == ([4, 32], [12, 48], [24, 48])


def test_gradient_penalty_accumulates_in_leaf() -> None:
    w = leaf(2, 3)
    x = leaf(1, 1)
    (g,) = torch.autograd.grad(((w * x) ** 2).sum(), x, create_graph=True)
    (g * g).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 16 * np.array([8.0, 27.0]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes(mode: Any) -> None:
    x = leaf(1)

    @mode()
    def decorated() -> Any:
        return x * 2

    with mode():
        y = x * 2
        assert not torch.is_grad_enabled()
    assert not y.requires_grad and not decorated().requires_grad and torch.is_grad_enabled()


def test_mode_nesting_and_generators() -> None:
    x = leaf(1)
    with torch.no_grad():
        with torch.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad

    @torch.no_grad
    def numbers() -> Any:
        yield (x * 2).requires_grad
        yield (x * 2).requires_grad

    seen = []
    for inside in numbers():
        seen.append((inside, (x * 2).requires_grad))
    assert seen == [(False, True), (False, True)]
    torch.set_grad_enabled(False)
    assert not (x * 2).requires_grad
    torch.set_grad_enabled(True)
    with torch.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_inference_tensors_cannot_be_saved() -> None:
    with torch.inference_mode():
        a = torch.ones(2) * 2
    assert a.is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        a * torch.ones(2, requires_grad=True)


def test_leaf_errors() -> None:
    x = leaf(1, 2)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
        x.add_(1)
    with pytest.raises(RuntimeError, match="a view of a leaf Variable that requires grad"):
        x[0] = 3
    with pytest.raises(RuntimeError, match="only Tensors of floating point and complex dtype can require"):
        torch.ones(2, dtype=torch.int64).requires_grad_()
    with pytest.raises(RuntimeError, match="you can only change requires_grad flags of leaf variables"):
        (x * 2).requires_grad = False
    with torch.no_grad():
        x.add_(1)
    assert x.tolist() == [2, 3] and x.is_leaf


def test_saved_value_modified() -> None:
    x = leaf(1, 2)
    y = x.exp()
    y.add_(1)
    with pytest.raises(
        RuntimeError, match=r"modified by an inplace operation.*is at version 1; expected version 0"
    ):
        y.sum().backward()


def test_modified_but_not_needed() -> None:
    x, z = leaf(1, 2), torch.ones(2, dtype=torch.float64)
    y = x * 1
    w = y * z
    y.add_(1)  # only the gradient of z would need the old y
    w.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_in_place_keeps_what_it_needs() -> None:
    x = leaf(1, -2)
    y = x * 2
    y.mul_(y.sum())
    y.relu_()
    y.pow_(2)
    y.sum().backward()
    z = leaf(1, -2)
    w = z * 2
    ((w * w.sum()).relu() ** 2).sum().backward()
    assert x.grad.tolist() == z.grad.tolist()


def test_in_place_on_views_rebases_history() -> None:
    x = leaf(1, 2, 3, 4)
    y = x * 1
    v = y.view(2, 2)
    v[0].mul_(3)
    assert v.grad_fn is not None and y.tolist() == [3, 6, 3, 4]
    (y * y).sum().backward()
    assert x.grad.tolist() == [18, 36, 6, 8]


def test_assignment_of_a_tracked_value() -> None:
    base = torch.zeros(3, dtype=torch.float64)
    early = base[1:]
    w = leaf(5)
    base[1] = w[0]
    assert base.requires_grad and early.requires_grad
    (early * early).sum().backward()
    assert w.grad.tolist() == [10]


def test_zeroed_value_has_zero_gradient() -> None:
    x = leaf(1, 2)
    y = x * 1
    y.zero_()
    y.sum().backward()
    assert x.grad.tolist() == [0, 0]


def test_detach_shares_memory_and_version() -> None:
    x = leaf(1, 2)
    y = x * 1
    d = y.detach()
    d[0] = 7
    assert y.tolist() == [7, 2] and y._version == d._version == 1 and not d.requires_grad
    y.detach_()
    assert y.is_leaf
    with pytest.raises(RuntimeError, match="Can't detach views in-place"):
        (x * 1)[0].detach_()


def test_hooks() -> None:
    x = leaf(1, 2)
    y = x * 2
    seen: list[Any] = []
    handle = y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    posted: list[Any] = []
    x.register_post_accumulate_grad_hook(lambda p: posted.append(p.grad.tolist()))
    (y * y).sum().backward()
    assert seen == [[4, 8]] and x.grad.tolist() == [81, 161] and posted == [[81, 161]]
    handle.remove()
    (x * 2).sum().backward()
    assert len(seen) == 1
    with pytest.raises(
        RuntimeError, match="cannot register a hook on a tensor that doesn't require gradient"
    ):
        torch.ones(1).register_hook(print)


def test_retain_grad() -> None:
    x = leaf(1, 2)
    y = x * 2
    y.retain_grad()
    (y * y).sum().backward()
    assert y.grad.tolist() == [4, 8] and y.retains_grad
    with pytest.raises(RuntimeError, match="can't retain_grad"):
        torch.ones(1).retain_grad()


def test_grad_setter_checks() -> None:
    x = leaf(1, 2)
    x.grad = torch.ones(2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="different size"):
        x.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="different type"):
        x.grad = torch.ones(2)
    with pytest.raises(TypeError):
        x.grad = 3
    x.grad = None
    assert x.grad is None


class Cube(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, scale: float) -> Any:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x**3 * scale

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * 3 * x**2 * ctx.scale, None


def test_function() -> None:
    x = leaf(1, 2)
    y = Cube.apply(x, 2.0)
    assert y.grad_fn.name() == "CubeBackward0" or "Cube" in y.grad_fn.name()
    y.sum().backward()
    assert x.grad.tolist() == [6, 24]
    assert gradcheck(lambda x: Cube.apply(x, 2.0), x)
    assert gradgradcheck(lambda x: Cube.apply(x, 2.0), x)


def test_function_with_several_outputs() -> None:
    class Split(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.set_materialize_grads(False)
            index = (x > 1).to(torch.int64)
            ctx.mark_non_differentiable(index)
            return x * 2, x * 3, index

        @staticmethod
        def backward(ctx: Any, a: Any, b: Any, c: Any) -> Any:
            assert b is None and c is None
            return a * 2

    x = leaf(1, 2)
    a, b, i = Split.apply(x)
    assert a.requires_grad and b.requires_grad and not i.requires_grad
    a.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_function_needs_input_grad_and_mark_dirty() -> None:
    needed: list[Any] = []

    class AddInPlace(Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            x.add_(y)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            needed.append(ctx.needs_input_grad)
            return g, g

    x = leaf(1, 2)
    y = x * 1
    out = AddInPlace.apply(y, torch.ones(2, dtype=torch.float64))
    assert out is y
    (y * y).sum().backward()
    assert x.grad.tolist() == [4, 6] and needed == [(True, False)]


def test_function_with_wrong_number_of_gradients() -> None:
    class Wrong(Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            return x * y

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g

    x, y = leaf(1, 2), leaf(3, 4)
    with pytest.raises(RuntimeError, match="returned an incorrect number of gradients"):
        Wrong.apply(x, y).sum().backward()


def test_function_setup_context() -> None:
    class Square(Function):
        @staticmethod
        def forward(x: Any) -> Any:
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(inputs[0], output)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            x, out = ctx.saved_tensors
            assert torch.equal(out, x * x)
            return 2 * g * x

    x = leaf(1, 3)
    Square.apply(x).sum().backward()
    assert x.grad.tolist() == [2, 6]


GRADCHECKS = {
    "exp": lambda x: x.exp(),
    "sigmoid": lambda x: x.sigmoid(),
    "softmax": lambda x: torch.softmax(x, -1),
    "logsumexp": lambda x: x.logsumexp(0),
    "var": lambda x: x.var(1),
    "norm": lambda x: x.norm(),
    "prod": lambda x: x.prod(1),
    "cumprod": lambda x: x.cumprod(0),
    "matmul": lambda x: x @ x.t(),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x * x),
    "index": lambda x: x[[0, 0, 1]][:, ::2],
    "gather": lambda x: x.gather(1, torch.tensor([[0, 0], [2, 1]])),
    "cat": lambda x: torch.cat([x, x * x], 1),
    "roll": lambda x: x.roll(1, 0),
    "tril": lambda x: x.tril() * x,
    "where": lambda x: torch.where(x > 0, x * x, x.exp()),
    "pow": lambda x: (x.abs() + 1) ** x,
    "atan2": lambda x: torch.atan2(x, x * x + 1),
    "topk": lambda x: x.topk(2).values,
    "sort": lambda x: x.sort().values * torch.arange(3.0, dtype=torch.float64),
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (3,)),
    "gelu": lambda x: torch.nn.functional.gelu(x),
    "cross_entropy": lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([0, 2])),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(
        x[None], x[None], x[None], is_causal=True
    ),
    "conv1d": lambda x: torch.nn.functional.conv1d(x[None], x[:, None, :2].expand(2, 2, 2) * 1.0, padding=1),
    "avg_pool": lambda x: torch.nn.functional.avg_pool1d(x[None], 2),
    "max_pool": lambda x: torch.nn.functional.max_pool1d(x[None], 2),
    "diagonal": lambda x: x.diagonal() * 2,
    "scatter_add": lambda x: torch.zeros(2, 3, dtype=torch.float64).scatter_add(
        1, torch.tensor([[0, 0, 1], [2, 1, 1]]), x
    ),
    "lgamma": lambda x: (x.abs() + 1).lgamma(),
}


@pytest.mark.parametrize("name", GRADCHECKS)
def test_gradcheck(name: str) -> None:
    x = torch.tensor([[0.3, -1.2, 0.7], [1.4, 0.2, -0.9]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(GRADCHECKS[name], x)
    assert gradgradcheck(GRADCHECKS[name], x)


def test_gradcheck_finds_a_wrong_gradient() -> None:
    class Wrong(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * 3

    x = leaf(1, 2)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(Wrong.apply, x)
    assert not gradcheck(Wrong.apply, x, raise_exception=False)


def test_complex_gradients() -> None:
    z = torch.tensor([1 + 2j, -0.5 + 0.3j], dtype=torch.complex128, requires_grad=True)
    assert gradcheck(lambda z: (z * z.conj()).real, z)
    assert gradcheck(lambda z: z * z, z)
    assert gradcheck(lambda z: z.abs(), z)
    (z * z.conj()).real.sum().backward()
    np.testing.assert_allclose(z.grad.numpy(), 2 * z.detach().numpy())


def test_tape_is_freed() -> None:
    """What the gradient rules do not name is not kept; nothing is after backward."""
    x = leaf(1, 2)
    y = x * 2
    z = y + 1  # adding reads no values
    mark = weakref.ref(y)
    array = weakref.ref(y._data)
    del y
    gc.collect()
    assert mark() is None and array() is None
    z.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_no_cycles_through_results() -> None:
    x = leaf(1, 2)
    gc.disable()
    try:
        y = x.exp()  # keeps its own result for the gradient
        mark = weakref.ref(y)
        del y
        assert mark() is None
    finally:
        gc.enable()


def test_next_functions() -> None:
    x = leaf(1, 2)
    y = (x * 2).exp()
    assert y.grad_fn.name() == "ExpBackward0"
    (mul, _), *_ = y.grad_fn.next_functions
    assert mul.name() == "MulBackward0"
    assert mul.next_functions[0][0].variable is x


def test_contractions_skip_gradients_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.ir import prims as P

    runs: list[int] = []
    plain = P.conv_p.eval
    monkeypatch.setattr(P.conv_p, "eval", lambda *a, **k: runs.append(1) or plain(*a, **k))
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
    grads = []
    for needs_input in (False, True):
        runs.clear()
        x.requires_grad_(needs_input)
        (g,) = torch.autograd.grad(torch.nn.functional.conv2d(x, w).square().sum(), w)
        grads.append(g)
        assert needs_input or len(runs) == 2
    torch.nn.functional.conv2d(x, w).square().sum().backward()
    assert torch.allclose(grads[0], grads[1]) and torch.allclose(grads[0], w.grad)


def test_an_average_pool_does_not_keep_its_operand() -> None:
    """Its gradient needs a shape alone, that of a maximum the values."""
    x = torch.ones(1, 1, 4, 4, requires_grad=True)

    def saved(pool: Callable[..., torch.Tensor]) -> bool:
        seen, stack = set(), [pool(x, 2)._edge[0]]
        while stack:
            node = stack.pop()
            if getattr(node, "prim", None) is PRIMITIVES["reduce_window"]:
                return isinstance(node.operands[0], Saved)
            seen.add(node)
            stack += [e[0] for e in node.edges if e is not None and e[0] not in seen]
        raise AssertionError("no window on the tape")

    assert not saved(torch.nn.functional.avg_pool2d)
    assert saved(torch.nn.functional.max_pool2d)
