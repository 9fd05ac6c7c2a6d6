"""The workloads of the GPU table, written once for any torch-shaped namespace ``T``.

``build(T, compile, scale)`` makes a call without arguments; ``scale`` divides the extents of large tensors,
so that the emulated device can run the command, too. Bytes and operations are of scale 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import models
from benchmarks.workloads import GPT_FLOPS, training

DEVICE = "cuda"
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
N = 16384  # a square float32 matrix of this side has a gigabyte


@dataclass(frozen=True)
class GpuWorkload:
    """Least bytes moved and least operations of the matrix units; ``goal`` is the share of the limit (or of
    the rate of torch's own products) to reach."""

    build: Callable[[Any, Compile, int], Callable[[], Any]]
    bytes: float = 0.0
    flops: float = 0.0
    goal: float | None = None


ROWS: dict[str, GpuWorkload] = {}


def row(name: str, bytes: float = 0.0, flops: float = 0.0, goal: float | None = None) -> Callable[..., Any]:
    def register(build: Any) -> Any:
        ROWS[name] = GpuWorkload(build, bytes, flops, goal)
        return build

    return register


@row("gelu(x*w+b)*0.5+x, 1 GB", bytes=2 * 4 * N * N, goal=0.9)
def gelu_chain(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
    n = N // scale
    x, w, b = T.randn(n, n, device=DEVICE), T.randn(n, device=DEVICE), T.randn(n, device=DEVICE)
    fn = compile(lambda x, w, b: T.nn.functional.gelu(x * w + b) * 0.5 + x)
    return lambda: fn(x, w, b)


@row("softmax, 1 GB", bytes=2 * 4 * N * N, goal=0.9)
def softmax(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
    x = T.randn(4 * N // scale, max(N // 4 // scale, 8), device=DEVICE)
    fn = compile(lambda x: T.softmax(x, -1))
    return lambda: fn(x)


@row("layer norm of x+r, 1 GB", bytes=3 * 4 * N * N, goal=0.9)
def layer_norm(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
    rows, n = 16 * N // scale, max(N // 16 // scale, 8)
    x, r = T.randn(rows, n, device=DEVICE), T.randn(rows, n, device=DEVICE)
    w, b = T.randn(n, device=DEVICE), T.randn(n, device=DEVICE)
    fn = compile(lambda x, r, w, b: T.nn.functional.layer_norm(x + r, (n,), w, b))
    return lambda: fn(x, r, w, b)


@row("cross entropy, 8192 rows of 32768 words, 1 GB", bytes=4 * N * N, goal=0.9)
def cross_entropy(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
    rows, words = N // 2 // scale, 2 * N // scale
    x, y = T.randn(rows, words, device=DEVICE), T.randint(0, words, (rows,), device=DEVICE)
    fn = compile(lambda x, y: T.nn.functional.cross_entropy(x, y))
    return lambda: fn(x, y)


def product(size: int) -> Any:
    def build(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
        n, kind = max(size // scale, 16), {"device": DEVICE, "dtype": T.bfloat16}
        x, w, b = T.randn(n, n, **kind), T.randn(n, n, **kind), T.randn(n, **kind)
        fn = compile(lambda x, w, b: T.nn.functional.gelu(T.nn.functional.linear(x, w, b)))
        return lambda: fn(x, w, b)

    return build


for size in (4096, 8192):
    row(f"gelu(x W' + b) in bf16, {size}", flops=2.0 * size**3, goal=0.5)(product(size))


@row("causal attention in bf16, 4x16x4096x64", flops=4 * 4 * 16 * 4096.0**2 * 64 / 2)
def attention(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
    shape = (4, 16, max(4096 // scale, 16), 64)
    q, k, v = (T.randn(*shape, device=DEVICE, dtype=T.bfloat16) for _ in range(3))
    fn = compile(lambda q, k, v: T.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    return lambda: fn(q, k, v)


@row("small GPT training step in bf16, 4x192, 8x128", flops=GPT_FLOPS)
def gpt_training(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
    layers, batch, length = (4, 8, 128) if scale == 1 else (1, 1, 8)
    model = models.gpt(T, vocabulary=256, context=length, width=192, heads=6, layers=layers)
    model = model.to(device=DEVICE, dtype=T.bfloat16)
    ids = T.randint(0, 256, (batch, length), device=DEVICE)
    targets = T.randint(0, 256, (batch * length,), device=DEVICE)
    return training(T, compile, model, ids, targets, flat=True)


@row("MLP training step, batch 64, Adam")
def mlp_training(T: Any, compile: Compile, scale: int) -> Callable[[], Any]:
    model, rows = models.mlp(T).to(DEVICE), max(64 // scale, 2)
    x, y = T.randn(rows, 784, device=DEVICE), T.randint(0, 10, (rows,), device=DEVICE)
    return training(T, compile, model, x, y)
