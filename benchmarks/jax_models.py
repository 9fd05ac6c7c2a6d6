"""The networks of the table for JAX: plain functions over dictionaries of arrays, and Adam written by hand.

A framework's own layers are used where it has them; JAX has none, so these are what its users write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

Tree = Any


def random_arrays() -> Callable[..., Any]:
    """``randn(*shape, scale=1)`` with a new key at every call."""
    import jax

    keys = count()

    def randn(*shape: int, scale: float = 1.0) -> Any:
        return jax.random.normal(jax.random.PRNGKey(next(keys)), shape) * scale

    return randn


def adam_training(loss_fn: Callable[..., Any], params: Tree, *batch: Any) -> Callable[[], Any]:
    """A call that makes one step of Adam on ``loss_fn(params, *batch)``; parameters and state are donated."""
    import jax
    import jax.numpy as jnp

    def step(params: Tree, m: Tree, v: Tree, t: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        t = t + 1
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, grads)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g * g, v, grads)

        def update(p: Any, a: Any, b: Any) -> Any:
            return p - 1e-3 * (a / (1 - 0.9**t)) / (jnp.sqrt(b / (1 - 0.999**t)) + 1e-8)

        return loss, jax.tree.map(update, params, m, v), m, v, t

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    state = [(params, zeros(), zeros(), jnp.float32(0))]

    def call() -> Any:
        loss, *rest = compiled(*state[0])
        state[0] = tuple(rest)
        return jax.block_until_ready((loss, rest[0]))

    return call


def cross_entropy(logits: Any, targets: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1).mean()


def causal_attention(q: Any, k: Any, v: Any) -> Any:
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, -1), v)


def layer_norm(x: Any, w: Any, b: Any) -> Any:
    import jax

    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * w + b


def block_params(randn: Callable[..., Any], width: int) -> Tree:
    import jax.numpy as jnp

    def linear(n_in: int, n_out: int) -> Any:
        return randn(n_out, n_in, scale=n_in**-0.5), jnp.zeros(n_out)

    norm = lambda: (jnp.ones(width), jnp.zeros(width))  # noqa: E731
    return {
        "norm1": norm(), "norm2": norm(), "qkv": linear(width, 3 * width), "proj": linear(width, width),
        "up": linear(width, 4 * width), "down": linear(4 * width, width),
    }  # fmt: skip


def block(p: Tree, x: Any, heads: int) -> Any:
    import jax

    def linear(x: Any, wb: Any) -> Any:
        return x @ wb[0].T + wb[1]

    b, t, c = x.shape
    qkv = linear(layer_norm(x, *p["norm1"]), p["qkv"]).reshape(b, t, 3, heads, c // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    x = x + linear(causal_attention(q, k, v).transpose(0, 2, 1, 3).reshape(b, t, c), p["proj"])
    return x + linear(jax.nn.gelu(linear(layer_norm(x, *p["norm2"]), p["up"]), approximate=False), p["down"])


def gpt_training(vocabulary: int, context: int, width: int, heads: int, layers: int, batch: int) -> Any:
    import jax
    import jax.numpy as jnp

    randn = random_arrays()
    params = {
        "tokens": randn(vocabulary, width), "positions": randn(context, width),
        "blocks": [block_params(randn, width) for _ in range(layers)],
        "norm": (jnp.ones(width), jnp.zeros(width)), "head": randn(vocabulary, width, scale=width**-0.5),
    }  # fmt: skip
    ids, targets = jax.random.randint(jax.random.PRNGKey(0), (2, batch, context), 0, vocabulary)

    def loss_fn(p: Tree, ids: Any, targets: Any) -> Any:
        x = p["tokens"][ids] + p["positions"]
        for q in p["blocks"]:
            x = block(q, x, heads)
        logits = layer_norm(x, *p["norm"]) @ p["head"].T
        return cross_entropy(logits.reshape(-1, vocabulary), targets.reshape(-1))

    return adam_training(loss_fn, params, ids, targets)


def conv(x: Any, w: Any, stride: int = 1, padding: int = 0) -> Any:
    import jax

    return jax.lax.conv_general_dilated(x, w, (stride, stride), [(padding, padding)] * 2)


def max_pool(x: Any, size: int, stride: int, padding: int = 0) -> Any:
    import jax
    import jax.numpy as jnp

    pads = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, size, size), (1, 1, stride, stride), pads)


def cnn_training(batch: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    randn = random_arrays()
    params = {
        "conv1": (randn(32, 1, 3, 3, scale=0.3), jnp.zeros(32)),
        "conv2": (randn(64, 32, 3, 3, scale=0.06), jnp.zeros(64)),
        "fc1": (randn(128, 64 * 7 * 7, scale=0.02), jnp.zeros(128)),
        "fc2": (randn(10, 128, scale=0.09), jnp.zeros(10)),
    }

    def loss_fn(p: Tree, x: Any, y: Any) -> Any:
        for name in ("conv1", "conv2"):
            w, b = p[name]
            x = max_pool(jax.nn.relu(conv(x, w, padding=1) + b[:, None, None]), 2, 2)
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ p["fc1"][0].T + p["fc1"][1])
        return cross_entropy(x @ p["fc2"][0].T + p["fc2"][1], y)

    y = jax.random.randint(jax.random.PRNGKey(0), (batch,), 0, 10)
    return adam_training(loss_fn, params, randn(batch, 1, 28, 28), y)


RESNET_BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def resnet18() -> Callable[[], Any]:
    """Inference of ResNet-18 on one image; batch norm with its running statistics."""
    import jax
    import jax.numpy as jnp

    randn = random_arrays()

    def conv_bn(c_in: int, c_out: int, size: int) -> Tree:
        w = randn(c_out, c_in, size, size, scale=(2 / (c_in * size * size)) ** 0.5)
        return w, jnp.ones(c_out), jnp.zeros(c_out), jnp.zeros(c_out), jnp.ones(c_out)

    def apply(p: Tree, x: Any, stride: int, padding: int) -> Any:
        w, gain, bias, mean, var = p
        y = conv(x, w, stride, padding)
        scale = gain * jax.lax.rsqrt(var + 1e-5)
        return y * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    blocks, c = [], 64
    for c_out, stride in RESNET_BLOCKS:
        down = conv_bn(c, c_out, 1) if stride != 1 or c != c_out else None
        blocks.append((conv_bn(c, c_out, 3), conv_bn(c_out, c_out, 3), down))
        c = c_out
    params = {
        "stem": conv_bn(3, 64, 7),
        "blocks": blocks,
        "head": (randn(1000, 512, scale=0.04), jnp.zeros(1000)),
    }

    def forward(p: Tree, x: Any) -> Any:
        x = max_pool(jax.nn.relu(apply(p["stem"], x, 2, 3)), 3, 2, 1)
        for (conv1, conv2, down), (_, stride) in zip(p["blocks"], RESNET_BLOCKS, strict=True):
            y = apply(conv2, jax.nn.relu(apply(conv1, x, stride, 1)), 1, 1)
            x = jax.nn.relu(y + (x if down is None else apply(down, x, stride, 0)))
        return x.mean((2, 3)) @ p["head"][0].T + p["head"][1]

    compiled, image = jax.jit(forward), randn(1, 3, 224, 224)
    return lambda: jax.block_until_ready(compiled(params, image))


def lstm(inputs: int, hidden: int, steps: int, batch: int) -> Callable[[], Any]:
    """All outputs of a one-layer LSTM; the products with the inputs are done for all steps at once."""
    import jax
    import jax.numpy as jnp

    randn = random_arrays()
    scale = hidden**-0.5
    params = (
        randn(4 * hidden, inputs, scale=scale),
        randn(4 * hidden, hidden, scale=scale),
        randn(4 * hidden),
    )
    x = randn(steps, batch, inputs)

    def forward(p: Tree, x: Any) -> Any:
        w_x, w_h, bias = p

        def step(state: Any, projected: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(projected + h @ w_h.T, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((batch, hidden))
        return jax.lax.scan(step, (zeros, zeros), x @ w_x.T + bias)[1]

    compiled = jax.jit(forward)
    return lambda: jax.block_until_ready(compiled(params, x))


def transformer_block(batch: int, steps: int, width: int, heads: int) -> Callable[[], Any]:
    import jax

    randn = random_arrays()
    params, x = block_params(randn, width), randn(batch, steps, width)
    compiled = jax.jit(lambda p, x: block(p, x, heads))
    return lambda: jax.block_until_ready(compiled(params, x))


def mlp_training(batch: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    randn = random_arrays()
    params = [randn(784, 128, scale=0.03), jnp.zeros(128), randn(128, 10, scale=0.08), jnp.zeros(10)]

    def loss_fn(p: Tree, x: Any, y: Any) -> Any:
        return cross_entropy(jnp.maximum(x @ p[0] + p[1], 0) @ p[2] + p[3], y)

    y = jax.random.randint(jax.random.PRNGKey(0), (batch,), 0, 10)
    return adam_training(loss_fn, params, randn(batch, 784), y)
