"""The rows of the table for JAX; its networks are in ``jax_models``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks import jax_models as models


def builders() -> dict[str, Callable[[], Callable[[], Any]]]:
    import jax
    import jax.numpy as jnp

    key = jax.random.PRNGKey(0)

    def randn(*shape: int) -> Any:
        return jax.random.normal(key, shape, jnp.float32)

    def jit(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        compiled = jax.jit(fn)
        return lambda: jax.block_until_ready(compiled(*args))

    def gelu(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=False)

    def layer_norm(x: Any, r: Any, w: Any, b: Any) -> Any:
        return models.layer_norm(x + r, w, b)

    def black_scholes(s: Any, k: Any, t: Any) -> Any:
        rate, vol = 0.02, 0.3
        root = vol * jnp.sqrt(t)
        d1 = (jnp.log(s / k) + (rate + 0.5 * vol * vol) * t) / root
        d2 = d1 - root
        cdf = lambda d: 0.5 + 0.5 * jax.lax.erf(d * (1 / math.sqrt(2)))  # noqa: E731
        discounted = k * jnp.exp(-rate * t)
        call = s * cdf(d1) - discounted * cdf(d2)
        return call, call - s + discounted

    def options() -> tuple[Any, Any, Any]:
        n = 4 * 2**20
        return tuple(jax.random.uniform(key, (n,)) * a + b for a, b in ((100, 10), (100, 11), (1, 0.1)))  # type: ignore

    def mlp_params() -> tuple[Any, ...]:
        return randn(784, 128) * 0.03, jnp.zeros(128), randn(128, 10) * 0.08, jnp.zeros(10)

    def mlp(p: Any, x: Any) -> Any:
        return jnp.maximum(x @ p[0] + p[1], 0) @ p[2] + p[3]

    return {
        "gelu(x*w+b)*0.5+x 4096x4096": lambda: jit(
            lambda x, w, b: gelu(x * w + b) * 0.5 + x, randn(4096, 4096), randn(4096), randn(4096)
        ),
        "softmax 4096x4096": lambda: jit(lambda x: jax.nn.softmax(x, -1), randn(4096, 4096)),
        "layer norm of x+r 8192x1024": lambda: jit(
            layer_norm, randn(8192, 1024), randn(8192, 1024), randn(1024), randn(1024)
        ),
        "Black-Scholes 4M": lambda: jit(black_scholes, *options()),
        "pairwise exp(-d2) row sums 1500x1500x3": lambda: jit(
            lambda x: jnp.exp(-((x[:, None] - x[None]) ** 2).sum(-1)).sum(1), randn(1500, 3)
        ),
        "matmul 1024": lambda: jit(lambda a, b: a @ b, randn(1024, 1024), randn(1024, 1024)),
        "gelu(x W' + b) 1024x1024 to 4096": lambda: jit(
            lambda x, w, b: gelu(x @ w.T + b), randn(1024, 1024), randn(4096, 1024), randn(4096)
        ),
        "causal attention 1x12x1024x64": lambda: jit(
            models.causal_attention, *[randn(1, 12, 1024, 64) for _ in range(3)]
        ),
        "MLP 784-128-10 batch 1": lambda: jit(mlp, mlp_params(), randn(1, 784)),
        "tanh(x+y)*y on 8 floats": lambda: jit(lambda x, y: jnp.tanh(x + y) * y, randn(8), randn(8) + 1),
        "transformer block 4x256x768": lambda: models.transformer_block(4, 256, 768, 12),
        "ResNet-18 batch 1": models.resnet18,
        "LSTM 128 to 256, 32x64": lambda: models.lstm(128, 256, steps=64, batch=32),
        "MLP training step, batch 64, Adam": lambda: models.mlp_training(64),
        "CNN training step, batch 64": lambda: models.cnn_training(64),
        "small GPT training step 4x192, 8x128": lambda: models.gpt_training(256, 128, 192, 6, 4, batch=8),
    }
