"""Random programs of views and in-place operations, and printing, against installed PyTorch."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

VIEWS: list[Callable[[Any], Any]] = [
    lambda t: t[0] if t.ndim and t.shape[0] > 0 else t.view(-1),
    lambda t: t.view(-1) if t.is_contiguous() else t.transpose(0, -1),
    lambda t: t.t() if t.ndim == 2 else t.unsqueeze(0),
    lambda t: t[..., 1:] if t.ndim and t.shape[-1] > 1 else t.unsqueeze(-1),
    lambda t: t[..., ::2] if t.ndim else t.unsqueeze(0),
    lambda t: t.squeeze(),
    lambda t: t.diagonal() if t.ndim == 2 else t.unsqueeze(0),
    lambda t: t.flatten() if t.is_contiguous() else t.unsqueeze(0),
    lambda t: t.narrow(0, 0, 1) if t.ndim else t.unsqueeze(0),
    lambda t: t.unbind(0)[-1] if t.ndim else t.unsqueeze(0),
    lambda t: t.chunk(2, 0)[0] if t.ndim else t.unsqueeze(0),
    lambda t: t.detach(),
]
WRITES: list[Callable[[Any, Any], Any]] = [
    lambda t, o: t.mul_(2.0),
    lambda t, o: t.add_(1.5),
    lambda t, o: t.exp_(),
    lambda t, o: t.sin_(),
    lambda t, o: t.zero_(),
    lambda t, o: t.copy_(o.sum()),
    lambda t, o: t.mul_(o.sum() * 0.1),
    lambda t, o: t.tanh_(),
    lambda t, o: t.fill_(0.3),
    lambda t, o: t.clamp_(-1, 1),
    lambda t, o: t.sub_(o.mean()),
    lambda t, o: t.pow_(2),
    lambda t, o: t.relu_(),
]
PURE: list[Callable[[Any, Any], Any]] = [
    lambda t, o: t * o.mean(),
    lambda t, o: t + 1,
    lambda t, o: t * t,
    lambda t, o: t.exp(),
]


def program(lib: Any, seed: int) -> Any:
    """(values and gradients, flags) or the error of the program with this seed."""
    rng = random.Random(seed)
    x = lib.from_numpy(np.random.RandomState(seed).randn(3, 4)).requires_grad_()
    y = lib.from_numpy(np.random.RandomState(seed + 1).randn(2)).requires_grad_()
    ts = [x * 1, y * 1]
    try:
        for _ in range(rng.randint(2, 9)):
            t, kind, o = ts[rng.randrange(len(ts))], rng.random(), ts[rng.randrange(len(ts))]
            if kind < 0.4:
                ts.append(rng.choice(VIEWS)(t))
            elif kind < 0.8:
                rng.choice(WRITES)(t, o)
            else:
                ts.append(rng.choice(PURE)(t, o))
        sum((t * t).sum() for t in ts).backward()
    except RuntimeError as e:
        return e
    grads = [None if g is None else g.numpy() for g in (x.grad, y.grad)]
    return [t.detach().numpy() for t in ts], grads, [(t.requires_grad, t.is_leaf, t._is_view()) for t in ts]


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_programs(start: int) -> None:
    for seed in range(start, start + 50):
        want, got = program(torch, seed), program(weft, seed)
        if isinstance(want, Exception):
            # weft keeps old values where that makes a gradient right: it need not refuse all that torch does
            assert isinstance(got, type(want)) or "needed for gradient computation" in str(want), seed
            continue
        assert not isinstance(got, Exception), (seed, got)
        assert got[2] == want[2], seed
        for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True):
            assert (a is None) == (b is None), seed
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12, err_msg=str(seed))


SHAPES = [(), (1,), (5,), (30,), (3, 4), (2, 3, 4), (0,), (0, 3), (1001,), (40, 40), (12, 10, 11)]


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "int64", "int32", "bool", "float16", "complex64", "uint8"]
)
def test_printing(dtype: str) -> None:
    rs = np.random.RandomState(0)
    for shape in SHAPES:
        for scale in (1, 1e-6, 1e6, 1e10):
            with np.errstate(all="ignore"):
                a = np.asarray(rs.randn(*shape) * scale + (0 if dtype != "complex64" else 1j * scale)).astype(
                    dtype
                )
            assert _text(weft.from_numpy(a)) == _text(torch.from_numpy(a)), (shape, scale)


@pytest.mark.parametrize("values", [
    [1.0, float("nan"), 3], [float("inf"), -1], [1e-8, 1], [1e5, 1.0], [0.0, 0.0], [1e10], [-0.0],
    [1.5, 1e-5],
    [float("nan")], [float("inf")], [123456789.0], [0.1, 1000.5],
])  # fmt: skip
def test_printing_of_special_values(values: list[float]) -> None:
    assert _text(weft.tensor(values)) == _text(torch.tensor(values))
    a, b = weft.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    assert _text(a) == _text(b) and _text(a * 2) == _text(b * 2)


def _text(t: Any) -> str:
    return re.sub(r"grad_fn=<\w+>", "grad_fn=<F>", repr(t).replace("weft.", "torch."))


def test_exchange_by_dlpack() -> None:
    ours = weft.arange(6.0).reshape(2, 3)
    theirs = torch.from_dlpack(ours)
    theirs[0, 0] = 9
    assert ours[0, 0].item() == 9
    back = weft.from_dlpack(torch.zeros(3))
    back[1] = 2
    assert back.tolist() == [0, 2, 0]


def test_streams_of_nested_functions_agree() -> None:
    """Gradient hooks, retained gradients and double backward in one program."""

    def run(lib: Any) -> list[Any]:
        seen: list[Any] = []
        x = lib.tensor([1.0, 2.0, 3.0], requires_grad=True)
        y = x * x
        y.retain_grad()
        y.register_hook(lambda g: seen.append(g.tolist()))
        (g,) = lib.autograd.grad(y.exp().sum(), x, create_graph=True)
        (g * y).sum().backward()
        return [seen, x.grad.tolist(), y.grad.tolist()]

    ours, theirs = run(weft), run(torch)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
