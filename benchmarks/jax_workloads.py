"""The workloads that JAX runs: those of the table that need no neural-network library, and the MLPs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


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
        y = x + r
        mean = y.mean(-1, keepdims=True)
        return (y - mean) * jax.lax.rsqrt(((y - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * w + b

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

    def attention(q: Any, k: Any, v: Any) -> Any:
        s = jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
        s = jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, -jnp.inf)
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(s, -1), v)

    def mlp_params() -> tuple[Any, ...]:
        return randn(784, 128) * 0.03, jnp.zeros(128), randn(128, 10) * 0.08, jnp.zeros(10)

    def mlp(p: Any, x: Any) -> Any:
        return jnp.maximum(x @ p[0] + p[1], 0) @ p[2] + p[3]

    def mlp_training() -> Callable[[], Any]:
        params = mlp_params()
        state = (
            params,
            [jnp.zeros_like(p) for p in params],
            [jnp.zeros_like(p) for p in params],
            jnp.float32(0),
        )
        x, y = randn(64, 784), jax.random.randint(key, (64,), 0, 10)

        def loss_fn(p: Any) -> Any:
            return -jnp.take_along_axis(jax.nn.log_softmax(mlp(p, x)), y[:, None], 1).mean()

        @jax.jit
        def step(params: Any, m: Any, v: Any, t: Any) -> Any:
            loss, grads = jax.value_and_grad(loss_fn)(params)
            t = t + 1
            m = [0.9 * a + 0.1 * g for a, g in zip(m, grads, strict=True)]
            v = [0.999 * a + 0.001 * g * g for a, g in zip(v, grads, strict=True)]
            params = [
                p - 1e-3 * (a / (1 - 0.9**t)) / (jnp.sqrt(b / (1 - 0.999**t)) + 1e-8)
                for p, a, b in zip(params, m, v, strict=True)
            ]
            return loss, params, m, v, t

        box = [state]

        def call() -> Any:
            loss, *rest = step(*box[0])
            box[0] = tuple(rest)
            return jax.block_until_ready(loss)

        return call

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
        "causal attention 1x12x1024x64": lambda: jit(attention, *[randn(1, 12, 1024, 64) for _ in range(3)]),
        "MLP 784-128-10 batch 1": lambda: jit(mlp, mlp_params(), randn(1, 784)),
        "tanh(x+y)*y on 8 floats": lambda: jit(lambda x, y: jnp.tanh(x + y) * y, randn(8), randn(8) + 1),
        "MLP training step, batch 64, Adam": mlp_training,
    }
