"""What is one kernel on the CPU is one on a GPU, with the same results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

import test_fusion_counts as cpu
import weft
from weft.nn import functional as F

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    weft.backends.cudnn.allow_tf32 = False  # results are compared with those of exact convolutions
    if not weft.cuda.is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", "2")  # the driver that other tests use, too


def chain_of_ten(x: weft.Tensor) -> weft.Tensor:
    y = x.exp() + 1.0
    y = (y * 2.0).sqrt().tanh()
    y = (y - 0.5).abs()
    return -(y.sin() * y.cos())


def layer_norm(x: weft.Tensor, r: weft.Tensor, w: weft.Tensor, b: weft.Tensor) -> weft.Tensor:
    return F.layer_norm(x + r, (20,), w, b)


def attention(q: weft.Tensor, k: weft.Tensor, v: weft.Tensor) -> weft.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def rand(*shape: int) -> weft.Tensor:
    return weft.randn(*shape)


# by name: the function, its arguments, the kernels that it becomes on the CPU
ONE_KERNEL: dict[str, tuple[Callable[..., Any], Callable[[], list[weft.Tensor]]]] = {
    "elementwise": (chain_of_ten, lambda: [rand(7, 5)]),
    "softmax": (lambda x: F.softmax(x, -1), lambda: [rand(4, 70)]),
    "softmax of columns": (lambda x: F.softmax(x, 0), lambda: [rand(6, 10)]),
    "layer norm": (layer_norm, lambda: [rand(3, 20), rand(3, 20), rand(20), rand(20)]),
    "cross entropy": (F.cross_entropy, lambda: [rand(6, 10), weft.randint(0, 10, (6,))]),
    "linear, bias, GELU": (
        lambda x, w, b: F.gelu(F.linear(x, w, b)), lambda: [rand(5, 9), rand(7, 9), rand(7)]
    ),
    "linear, residual": (lambda x, w, r: F.linear(x, w) + r, lambda: [rand(5, 9), rand(7, 9), rand(5, 7)]),
    "convolution, bias, ReLU": (
        lambda x, w, b: F.relu(F.conv2d(x, w, b, padding=1)),
        lambda: [rand(1, 3, 6, 6), rand(4, 3, 3, 3), rand(4)],
    ),
    "linear, largest logit": (
        lambda x, w, b: F.linear(x, w, b).amax(-1), lambda: [rand(9, 8), rand(20, 8), rand(20)]
    ),
    "loss of a linear layer": (
        lambda x, w, y: F.mse_loss(F.linear(x, w), y), lambda: [rand(9, 8), rand(20, 8), rand(9, 20)]
    ),
    "attention": (attention, lambda: [rand(1, 2, 5, 8) for _ in range(3)]),
    "sum of squares": (lambda x: (x * x).sum(), lambda: [rand(9, 11)]),
    "embedding": (lambda i, w: F.embedding(i, w) * 2.0, lambda: [weft.randint(0, 5, (6,)), rand(5, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_one_kernel_and_the_same_values(name: str) -> None:
    fn, make = ONE_KERNEL[name]
    args = make()
    here, there = weft.compile(fn, fullgraph=True), weft.compile(lambda *xs: fn(*xs), fullgraph=True)
    want, got = here(*args), there(*[x.cuda() for x in args])
    assert len(there.kernels()) <= len(here.kernels()) == 1
    assert np.allclose(got.cpu().numpy(), want.numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [n for n in ONE_KERNEL if n != "embedding"])
def test_gradients_with_no_more_kernels(name: str) -> None:
    fn, make = ONE_KERNEL[name]
    args = make()

    def loss(*xs: weft.Tensor) -> tuple[weft.Tensor, ...]:
        real = [x for x in xs if x.is_floating_point()]
        return weft.autograd.grad(fn(*xs).square().sum(), real)

    counts, grads = [], []
    for device in ("cpu", "cuda"):
        moved = [x.detach().to(device) for x in args]
        xs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in moved]
        compiled = weft.compile(lambda *xs: loss(*xs), fullgraph=True)
        grads.append(compiled(*xs))
        counts.append(len(compiled.kernels()))
    assert counts[1] <= counts[0]
    for want, got in zip(*grads, strict=True):
        assert np.allclose(got.cpu().numpy(), want.numpy(), rtol=1e-4, atol=1e-5)


# --- what the CPU's tests assert -----------------------------------------------------------------


CPU_ALONE = {"test_reduced_products_do_not_depend_on_the_threads": "threads are the CPU's; it counts nothing"}


def cases_of_the_cpu() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every test of kernel counts of the CPU, with each of its parameters: none can be missing here."""
    for name, test in vars(cpu).items():
        if name.startswith("test_") and name not in CPU_ALONE:
            marks = [m.args for m in getattr(test, "pytestmark", []) if m.name == "parametrize"]
            (argument, values) = marks[0] if marks else ("", [None])
            assert len(marks) <= 1 and "," not in argument
            yield from ((name, {argument: v} if argument else {}) for v in values)


CASES = list(cases_of_the_cpu())


def test_what_the_cpu_has_alone_is_there() -> None:
    assert CPU_ALONE.keys() <= vars(cpu).keys() and len(CASES) >= 20


def on_both(fn: Callable[..., Any], *args: weft.Tensor) -> int:
    """The kernels of a function on a GPU, whose results are those of the CPU."""
    there = weft.compile(fn, fullgraph=True)
    assert all(x.is_cuda for x in args)
    got, want = there(*args), fn(*[x.cpu() for x in args])
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
        assert np.allclose(a.cpu().numpy(), b.numpy(), rtol=1e-4, atol=1e-5)
    return len(there.kernels())


@pytest.mark.parametrize(("name", "given"), CASES, ids=map(str, range(len(CASES))))
def test_the_counts_of_the_cpu_hold_on_a_gpu(
    name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's tests as they stand, with tensors made on a GPU."""
    monkeypatch.setattr(cpu, "kernel_count", on_both)
    weft.set_default_device("cuda")
    try:
        getattr(cpu, name)(**given)
    finally:
        weft.set_default_device(None)
