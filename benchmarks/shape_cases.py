"""The shapes of the second table: none of them was tuned for.

A case's ``run`` is called with a torch-shaped namespace ``T``, its ``run_jax`` with jax; the arrays are
described by shape, so that every peer makes its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import jax_models as models

Shape = tuple[int, ...]
Run = Callable[..., Any]


@dataclass(frozen=True)
class Arg:
    """An argument: normal floats, or integers below ``below``, or booleans that are mostly true."""

    shape: Shape
    dtype: str = "float32"
    below: int = 0


@dataclass(frozen=True)
class Case:
    """``grad``: whether the backward direction is measured too; gradients go to the float arguments."""

    family: str
    name: str
    args: tuple[Arg, ...]
    run: Run
    run_jax: Run
    grad: bool = True


CASES: list[Case] = []


def add(family: str, name: str, args: list[Arg], run: Run, run_jax: Run, grad: bool = True) -> None:
    CASES.append(Case(family, name, tuple(args), run, run_jax, grad))


# Contractions ---------------------------------------------------------------------------------------------


def _product(T: Any, a: Any, b: Any, ta: bool, tb: bool) -> Any:
    return (a.mT if ta else a) @ (b.mT if tb else b)


def _product_jax(jax: Any, a: Any, b: Any, ta: bool, tb: bool) -> Any:
    return (a.mT if ta else a) @ (b.mT if tb else b)


def contraction(m: int, k: int, n: int, form: str = "nn", batch: Shape = (), dtype: str = "float32") -> None:
    ta, tb = form[0] == "t", form[1] == "t"
    a = Arg((*batch, k, m) if ta else (*batch, m, k), dtype)
    b = Arg((*batch, n, k) if tb else (*batch, k, n), dtype)
    lead = "x".join(map(str, batch)) + " of " if batch else ""
    name = f"{lead}{m}x{k}x{n} {form}" + (" f64" if dtype == "float64" else "")
    add("contraction", name, [a, b], partial(_product, ta=ta, tb=tb), partial(_product_jax, ta=ta, tb=tb))


for size in (32, 64, 128, 256, 384, 768, 2048):
    contraction(size, size, size)
for m, k, n in ((1, 4096, 4096), (2, 2048, 2048), (4, 1024, 4096), (8, 4096, 1024), (16, 768, 3072),
                (17, 1000, 1000), (33, 512, 2048), (4096, 1024, 8), (4096, 256, 1), (10000, 64, 10),
                (64, 20000, 64), (16, 100000, 16)):  # fmt: skip
    contraction(m, k, n)
for m, k, n in ((127, 131, 257), (509, 521, 503), (1021, 1031, 1033), (13, 997, 11)):
    contraction(m, k, n)
for m, k, n, form in ((512, 512, 512, "tn"), (512, 512, 512, "nt"), (512, 512, 512, "tt"),
                      (1000, 784, 128, "nt"), (1, 784, 128, "nt"), (784, 64, 128, "tn")):  # fmt: skip
    contraction(m, k, n, form)
for m, k, n, form, batch in (
    (64, 64, 64, "nn", (64,)), (1024, 64, 1024, "nt", (12,)), (16, 16, 16, "nn", (256,)),
    (128, 32, 128, "nt", (8, 6)), (1, 128, 1024, "nt", (32,)), (3, 3, 3, "nn", (4096,)),
):  # fmt: skip
    contraction(m, k, n, form, batch)
for m, k, n in ((2, 3, 4), (8, 8, 8)):
    contraction(m, k, n)
for m, k, n in ((256, 256, 256), (500, 500, 500), (1, 1024, 1024)):
    contraction(m, k, n, dtype="float64")


# Convolutions ---------------------------------------------------------------------------------------------


def _conv(T: Any, x: Any, w: Any, transposed: bool, **options: Any) -> Any:
    rank = x.ndim - 2
    fn = getattr(T.nn.functional, f"conv_transpose{rank}d" if transposed else f"conv{rank}d")
    return fn(x, w, None, **options)


def _conv_jax(jax: Any, x: Any, w: Any, transposed: bool, stride: int, padding: int,
              dilation: int = 1, groups: int = 1) -> Any:  # fmt: skip
    rank = x.ndim - 2
    if transposed:
        flipped = jax.numpy.flip(w, tuple(range(2, w.ndim))).swapaxes(0, 1)
        pads = [(w.shape[2 + i] - 1 - padding,) * 2 for i in range(rank)]
        return jax.lax.conv_general_dilated(x, flipped, (1,) * rank, pads, lhs_dilation=(stride,) * rank)
    return jax.lax.conv_general_dilated(
        x, w, (stride,) * rank, [(padding, padding)] * rank,
        rhs_dilation=(dilation,) * rank, feature_group_count=groups,
    )  # fmt: skip


def convolution(n: int, c_in: int, size: Shape, c_out: int, kernel: int, stride: int = 1, padding: int = 0,
                dilation: int = 1, groups: int = 1, transposed: bool = False) -> None:  # fmt: skip
    options = {"stride": stride, "padding": padding}
    options |= {} if transposed else {"dilation": dilation, "groups": groups}
    weight = (c_in, c_out) if transposed else (c_out, c_in // groups)
    extras = "".join(f" {k[0]}{v}" for k, v in options.items() if v != (0 if k == "padding" else 1))
    name = f"{n}x{c_in}x{'x'.join(map(str, size))} to {c_out} k{kernel}{extras}{' transposed' * transposed}"
    args = [Arg((n, c_in, *size)), Arg((*weight, *(kernel,) * len(size)))]
    add("convolution", name, args, partial(_conv, transposed=transposed, **options),
        partial(_conv_jax, transposed=transposed, **options))  # fmt: skip


for n, c, s, o, k, st, p in (  # ResNet-50 and VGG
    (1, 3, 224, 64, 7, 2, 3), (1, 64, 56, 256, 1, 1, 0), (1, 256, 56, 64, 1, 1, 0),
    (1, 128, 28, 128, 3, 1, 1), (1, 256, 28, 512, 1, 2, 0), (1, 256, 14, 256, 3, 1, 1),
    (1, 512, 7, 2048, 1, 1, 0), (8, 64, 56, 64, 3, 1, 1), (8, 512, 7, 512, 3, 1, 1),
    (1, 64, 112, 128, 3, 1, 1), (8, 128, 28, 128, 3, 2, 1), (8, 3, 64, 32, 5, 1, 2),
):  # fmt: skip
    convolution(n, c, (s, s), o, k, st, p)
for n, c, s, st, k in (
    (1, 32, 112, 1, 3),
    (1, 96, 112, 2, 3),
    (8, 144, 56, 1, 3),
    (1, 576, 14, 1, 5),
):  # MobileNet
    convolution(n, c, (s, s), c, k, st, k // 2, groups=c)
for n, c, s, o in ((1, 32, 112, 16), (8, 96, 14, 576)):
    convolution(n, c, (s, s), o, 1)
for n, c, s, o in ((1, 64, 128, 64), (1, 128, 64, 64)):  # U-Net
    convolution(n, c, (s, s), o, 3, 1, 1)
convolution(1, 128, (32, 32), 64, 2, 2, 0, transposed=True)
convolution(4, 64, (16, 16), 32, 4, 2, 1, transposed=True)
convolution(1, 1, (16000,), 64, 80, 4, 38)  # audio
convolution(4, 64, (4000,), 64, 3, 1, 2, dilation=2)
convolution(4, 128, (1000,), 256, 7, 2, 3)
convolution(8, 256, (500,), 256, 5, 1, 8, dilation=4)
convolution(1, 1, (8, 64, 64), 16, 3, 1, 1)  # volumes
convolution(2, 16, (8, 28, 28), 32, 3, 1, 1)
convolution(1, 128, (28, 28), 128, 3, 1, 1, groups=32)  # ResNeXt
convolution(4, 64, (33, 47), 48, 3, 1, 2, dilation=2)

# Reductions, norms and their kin --------------------------------------------------------------------------


def reduction(name: str, args: list[Arg], run: Run, run_jax: Run, grad: bool = True) -> None:
    add("reduction", name, args, run, run_jax, grad)


def axis_sum(shape: Shape, axes: Shape) -> None:
    size = "x".join(map(str, shape))
    reduction(f"sum {size} over {axes}", [Arg(shape)], lambda T, x: x.sum(axes), lambda jax, x: x.sum(axes))


axis_sum((10, 10), (0,))
axis_sum((7, 1000003), (1,))
axis_sum((1000003, 7), (0,))
axis_sum((128, 64, 509), (1,))
axis_sum((16, 256, 56, 56), (0, 2, 3))
axis_sum((4096, 4096), (0, 1))
reduction("max 2048x2048 over 0", [Arg((2048, 2048))],
          lambda T, x: x.amax(0), lambda jax, x: x.max(0))  # fmt: skip
reduction("argmax 64x50257", [Arg((64, 50257))],
          lambda T, x: x.argmax(1), lambda jax, x: x.argmax(1), grad=False)  # fmt: skip
reduction("var 1021x1021 over 1", [Arg((1021, 1021))],
          lambda T, x: x.var(1), lambda jax, x: x.var(1, ddof=1))  # fmt: skip
reduction("logsumexp 512x8192", [Arg((512, 8192))],
          lambda T, x: T.logsumexp(x, 1), lambda jax, x: jax.nn.logsumexp(x, 1))  # fmt: skip
reduction("softmax 2048x1000 over 0", [Arg((2048, 1000))],
          lambda T, x: T.softmax(x, 0), lambda jax, x: jax.nn.softmax(x, 0))  # fmt: skip
reduction("log_softmax 8x128x1000 over 2", [Arg((8, 128, 1000))],
          lambda T, x: T.log_softmax(x, 2), lambda jax, x: jax.nn.log_softmax(x, 2))  # fmt: skip


def _jax_norm(x: Any, axes: Any, w: Any, b: Any, mean: Any = None) -> Any:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) * (x.var(axes, keepdims=True) + 1e-5) ** -0.5 * w + b


reduction("layer norm 2048x768", [Arg((2048, 768)), Arg((768,)), Arg((768,))],
          lambda T, x, w, b: T.nn.functional.layer_norm(x, (768,), w, b),
          lambda jax, x, w, b: _jax_norm(x, -1, w, b))  # fmt: skip
reduction("group norm 8x64x32x32 by 8", [Arg((8, 64, 32, 32)), Arg((64,)), Arg((64,))],
          lambda T, x, w, b: T.nn.functional.group_norm(x, 8, w, b),
          lambda jax, x, w, b: _jax_norm(x.reshape(8, 8, 8, 32, 32), (2, 3, 4), w.reshape(8, 8, 1, 1),
                                         b.reshape(8, 8, 1, 1)).reshape(x.shape))  # fmt: skip
reduction("batch norm 32x64x28x28", [Arg((32, 64, 28, 28)), Arg((64,)), Arg((64,))],
          lambda T, x, w, b: T.nn.functional.batch_norm(x, None, None, w, b, True),
          lambda jax, x, w, b: _jax_norm(x, (0, 2, 3), w[:, None, None], b[:, None, None]))  # fmt: skip
reduction("cross entropy 256x50257", [Arg((256, 50257)), Arg((256,), "int64", 50257)],
          lambda T, x, y: T.nn.functional.cross_entropy(x, y),
          lambda jax, x, y: models.cross_entropy(x, y))  # fmt: skip
reduction("cumsum 1000x5000", [Arg((1000, 5000))],
          lambda T, x: x.cumsum(1), lambda jax, x: x.cumsum(1))  # fmt: skip
reduction("top 10 of 128x10000", [Arg((128, 10000))],
          lambda T, x: T.topk(x, 10, 1)[0], lambda jax, x: jax.lax.top_k(x, 10)[0])  # fmt: skip
reduction("sort 256x4096", [Arg((256, 4096))],
          lambda T, x: T.sort(x, 1)[0], lambda jax, x: jax.numpy.sort(x, 1))  # fmt: skip
reduction("embedding 30000x256, 16x128 words", [Arg((30000, 256)), Arg((16, 128), "int64", 30000)],
          lambda T, w, i: T.nn.functional.embedding(i, w), lambda jax, w, i: w[i])  # fmt: skip

# Attention ------------------------------------------------------------------------------------------------


def _attention(
    T: Any, q: Any, k: Any, v: Any, mask: Any = None, causal: bool = False, gqa: bool = False
) -> Any:
    return T.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=gqa)


def _attention_jax(
    jax: Any, q: Any, k: Any, v: Any, mask: Any = None, causal: bool = False, gqa: bool = False
) -> Any:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    masks = {} if mask is None else {"mask" if mask.dtype == bool else "bias": mask}
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, **masks).swapaxes(1, 2)


def attention(b: int, h: int, tq: int, d: int, tk: int = 0, causal: bool = False, kv_heads: int = 0,
              mask: str = "", grad: bool = True) -> None:  # fmt: skip
    tk, kv = tk or tq, kv_heads or h
    args = [Arg((b, h, tq, d)), Arg((b, kv, tk, d)), Arg((b, kv, tk, d))]
    if mask:
        args.append(Arg((b, 1, tq, tk), mask))
    name = f"{b}x{h}x{tq}x{d}" + (f" keys {tk}" if tk != tq else "") + " causal" * causal
    name += (f" {kv} key heads" if kv != h else "") + (f" {mask} mask" if mask else "")
    options = {"causal": causal, "gqa": kv != h}
    add("attention", name, args, partial(_attention, **options), partial(_attention_jax, **options), grad)


attention(1, 8, 197, 64)
attention(4, 12, 512, 64)
attention(2, 16, 1024, 128, causal=True)
attention(8, 4, 64, 32)
attention(1, 32, 1, 128, tk=4096, kv_heads=8, grad=False)
attention(2, 6, 300, 48, mask="bool")
attention(1, 8, 1024, 40, tk=77)
attention(2, 8, 256, 64, mask="float32")
attention(1, 16, 640, 80, causal=True, kv_heads=4)
attention(1, 4, 2003, 64, causal=True)

FAMILIES = tuple(dict.fromkeys(c.family for c in CASES))
