"""The workloads of the table, written once for any torch-shaped namespace ``T``: torch itself, or weft.

Each builder returns a function without arguments that runs one call; ``compile`` is the identity for eager.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import models

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
MB = 1e6


@dataclass(frozen=True)
class Workload:
    """``build(T, compile)`` gives the call; the least bytes and operations give the machine's limit."""

    name: str
    build: Callable[[Any, Compile], Callable[[], Any]]
    bytes: float = 0.0
    flops: float = 0.0
    unit: str = "ms"


ROWS: dict[str, Workload] = {}


def row(name: str, bytes: float = 0.0, flops: float = 0.0, unit: str = "ms") -> Callable[..., Any]:
    def register(build: Callable[[Any, Compile], Callable[[], Any]]) -> Callable[..., Any]:
        ROWS[name] = Workload(name, build, bytes, flops, unit)
        return build

    return register


def without_grad(T: Any, fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    def call() -> Any:
        with T.no_grad():
            return fn(*args)

    return call


@row("gelu(x*w+b)*0.5+x 4096x4096", bytes=2 * 4 * 4096**2)
def gelu_chain(T: Any, compile: Compile) -> Callable[[], Any]:
    x, w, b = T.randn(4096, 4096), T.randn(4096), T.randn(4096)
    fn = compile(lambda x, w, b: T.nn.functional.gelu(x * w + b) * 0.5 + x)
    return lambda: fn(x, w, b)


@row("softmax 4096x4096", bytes=2 * 4 * 4096**2)
def softmax(T: Any, compile: Compile) -> Callable[[], Any]:
    x = T.randn(4096, 4096)
    fn = compile(lambda x: T.softmax(x, -1))
    return lambda: fn(x)


@row("layer norm of x+r 8192x1024", bytes=3 * 4 * 8192 * 1024)
def layer_norm(T: Any, compile: Compile) -> Callable[[], Any]:
    x, r, w, b = T.randn(8192, 1024), T.randn(8192, 1024), T.randn(1024), T.randn(1024)
    fn = compile(lambda x, r, w, b: T.nn.functional.layer_norm(x + r, (1024,), w, b))
    return lambda: fn(x, r, w, b)


@row("Black-Scholes 4M", bytes=5 * 4 * 4 * 2**20)
def black_scholes(T: Any, compile: Compile) -> Callable[[], Any]:
    n = 4 * 2**20
    spot, strike, years = T.rand(n) * 100 + 10, T.rand(n) * 100 + 10, T.rand(n) + 0.1

    def price(s: Any, k: Any, t: Any) -> Any:
        rate, vol = 0.02, 0.3
        root = vol * T.sqrt(t)
        d1 = (T.log(s / k) + (rate + 0.5 * vol * vol) * t) / root
        d2 = d1 - root
        n1 = 0.5 + 0.5 * T.erf(d1 * (1 / math.sqrt(2)))
        n2 = 0.5 + 0.5 * T.erf(d2 * (1 / math.sqrt(2)))
        discounted = k * T.exp(-rate * t)
        call = s * n1 - discounted * n2
        return call, call - s + discounted

    fn = compile(price)
    return lambda: fn(spot, strike, years)


@row("pairwise exp(-d2) row sums 1500x1500x3")
def pairwise(T: Any, compile: Compile) -> Callable[[], Any]:
    x = T.randn(1500, 3)
    fn = compile(lambda x: T.exp(-((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)).sum(1))
    return lambda: fn(x)


@row("matmul 1024", flops=2 * 1024**3)
def matmul(T: Any, compile: Compile) -> Callable[[], Any]:
    a, b = T.randn(1024, 1024), T.randn(1024, 1024)
    fn = compile(lambda a, b: a @ b)
    return lambda: fn(a, b)


@row("gelu(x W' + b) 1024x1024 to 4096", flops=2 * 1024 * 1024 * 4096)
def linear_gelu(T: Any, compile: Compile) -> Callable[[], Any]:
    x, w, b = T.randn(1024, 1024), T.randn(4096, 1024), T.randn(4096)
    fn = compile(lambda x, w, b: T.nn.functional.gelu(T.nn.functional.linear(x, w, b)))
    return lambda: fn(x, w, b)


@row("causal attention 1x12x1024x64", flops=4 * 12 * 1024 * 1024 * 64 / 2)
def attention(T: Any, compile: Compile) -> Callable[[], Any]:
    q, k, v = (T.randn(1, 12, 1024, 64) for _ in range(3))
    fn = compile(lambda q, k, v: T.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    return lambda: fn(q, k, v)


@row("transformer block 4x256x768", flops=2 * 4 * 256 * 768 * 768 * 12 + 4 * 4 * 256 * 256 * 768)
def transformer_block(T: Any, compile: Compile) -> Callable[[], Any]:
    block, x = models.block(T, 768, 12), T.randn(4, 256, 768)
    return without_grad(T, compile(lambda x: block(x)), x)


@row("ResNet-18 batch 1", flops=2 * 1.82e9)
def resnet18(T: Any, compile: Compile) -> Callable[[], Any]:
    model, x = models.resnet18(T), T.randn(1, 3, 224, 224)
    model.eval()
    return without_grad(T, compile(lambda x: model(x)), x)


@row("LSTM 128 to 256, 32x64", flops=2 * 32 * 64 * 4 * 256 * (128 + 256))
def lstm(T: Any, compile: Compile) -> Callable[[], Any]:
    layer, x = T.nn.LSTM(128, 256), T.randn(64, 32, 128)
    return without_grad(T, compile(lambda x: layer(x)), x)


@row("MLP 784-128-10 batch 1", unit="us")
def mlp_inference(T: Any, compile: Compile) -> Callable[[], Any]:
    model, x = models.mlp(T), T.randn(1, 784)
    return without_grad(T, compile(lambda x: model(x)), x)


@row("tanh(x+y)*y on 8 floats", unit="us")
def tiny(T: Any, compile: Compile) -> Callable[[], Any]:
    x, y = T.randn(8), T.randn(8)
    fn = compile(lambda x, y: T.tanh(x + y) * y)
    return lambda: fn(x, y)


def training(T: Any, compile: Compile, model: Any, x: Any, y: Any, flat: bool = False) -> Callable[[], Any]:
    """One step of Adam on cross entropy, the whole step compiled."""
    optimizer = T.optim.Adam(model.parameters(), lr=1e-3)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        out = model(x)
        loss = T.nn.functional.cross_entropy(out.flatten(0, 1) if flat else out, y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    fn = compile(step)
    return lambda: fn(x, y)


@row("MLP training step, batch 64, Adam", flops=2 * 64 * (2 * 784 * 128 + 3 * 128 * 10))
def mlp_training(T: Any, compile: Compile) -> Callable[[], Any]:
    return training(T, compile, models.mlp(T), T.randn(64, 784), T.randint(0, 10, (64,)))


CNN_FLOPS = 2 * 64 * (2 * 28 * 28 * 32 * 9 + 3 * (14 * 14 * 64 * 32 * 9 + 3136 * 128 + 128 * 10))


@row("CNN training step, batch 64", flops=CNN_FLOPS)
def cnn_training(T: Any, compile: Compile) -> Callable[[], Any]:
    return training(T, compile, models.cnn(T), T.randn(64, 1, 28, 28), T.randint(0, 10, (64,)))


# the products with the weights, and those of causal attention; each once forward and twice backward
GPT_FLOPS = 3 * 2 * 1024 * (4 * 12 * 192**2 + 192 * 256) + 3 * 4 * 4 * 8 * 128 * 128 * 192 / 2


@row("small GPT training step 4x192, 8x128", flops=GPT_FLOPS)
def gpt_training(T: Any, compile: Compile) -> Callable[[], Any]:
    model = models.gpt(T, vocabulary=256, context=128, width=192, heads=6, layers=4)
    ids, targets = T.randint(0, 256, (8, 128)), T.randint(0, 256, (8 * 128,))
    return training(T, compile, model, ids, targets, flat=True)
