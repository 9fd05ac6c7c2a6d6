"""Code for processors that are not here: every primitive, and every form of kernel that programs become.

LLVM verifies it, makes an object of it, and leaves no call to a library. What AVX2 code computes is compared,
where this processor can run it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import weft
from weft.codegen.kernel import FORMS
from weft.codegen.target import Target, host_target, named_target
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import PRIMITIVES, trace
from weft.ir.types import TensorType, f32
from weft.nn import functional as F
from weft.runtime import compile_graph, compile_only, jit

sys.path.insert(0, str(Path(__file__).parent))

from test_primitives import NAMES, ROWS, batch, hostless

AVX2, NEON = named_target("haswell"), named_target("neoverse-n1")
OURS = {"weft_parallel_for", "weft_host", "_GLOBAL_OFFSET_TABLE_", *jit.LIBC}


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE", "0")


def assert_complete(graph: Graph, target: Target) -> list[str]:
    """Nothing of the graph is left to Python or to a library; the forms of its kernels."""
    executable = compile_only(graph, target)
    artifact = executable.artifact
    assert [str(getattr(h, "why", h)) for h in artifact.hosts] == []
    assert jit.undefined_symbols(artifact.image) <= OURS | set(artifact.shared)
    return [k.form for k in executable.kernels]


@pytest.mark.parametrize("name", NAMES)
def test_every_primitive_on_neon(name: str) -> None:
    prim = PRIMITIVES[name]
    cases = [c for c in ROWS[name].cases() if hostless(prim, c)]
    if cases:
        assert_complete(batch(prim, cases), NEON)


# --- forms of kernels ----------------------------------------------------------------------------

Program = tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]


def step(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The value of ``fn`` and the gradients by all of its arguments."""

    def both(*args: Any) -> Any:
        out = fn(*args)
        return out, *weft.autograd.grad(out.sum() + (out * out).sum(), args)

    return both


def conv(**options: Any) -> Callable[..., Any]:
    return step(lambda x, w: F.conv2d(x, w, **options))


PROGRAMS: dict[str, Program] = {
    "elementwise with tables": (
        step(lambda x, y: F.gelu(x) * weft.tanh(y) + (x.exp() + y.abs().log1p()).sin()), ((70, 33),) * 2),
    "rows": (step(lambda x: F.softmax(x, -1) + F.layer_norm(x, (100,))), ((17, 100),)),
    "columns": (step(lambda x: x.softmax(0) + x.sum(0) + x.var(0)), ((90, 40),)),
    "whole": (step(lambda x: (x.logsumexp((0, 1)) + x.max() + x.norm()).reshape(1)), ((130, 70),)),
    "transposed": (step(lambda x, y: (x.t() * y).flip(0).cumsum(1)), ((37, 50), (50, 37))),
    "linear": (step(lambda x, w, b: F.gelu(F.linear(x, w, b))), ((33, 70), (50, 70), (50,))),
    "few rows": (step(lambda x, w: F.relu(x @ w)), ((3, 200), (200, 130))),
    "few columns": (step(lambda x, w: x @ w), ((100, 64), (64, 5))),
    "vector": (step(lambda x, w: x @ w), ((100, 64), (64,))),
    "reduced product": (lambda x, w, y: (F.linear(x, w).exp().sum(1), F.linear(x, w).relu().amax(0),
                                         F.mse_loss(F.linear(x, w), y), (F.linear(x, w) > 2).any(1)),
                        ((33, 20), (50, 20), (33, 50))),
    "batch of products": (step(lambda x, y: x @ y), ((4, 30, 17), (4, 17, 21))),
    "image, few channels": (conv(stride=2, padding=3), ((2, 3, 32, 32), (8, 3, 7, 7))),
    "image, channels": (conv(padding=1), ((2, 32, 14, 14), (48, 32, 3, 3))),
    "image, channels and stride": (conv(stride=2, padding=1), ((2, 32, 14, 14), (48, 32, 3, 3))),
    "image, pointwise": (conv(), ((2, 64, 9, 9), (32, 64, 1, 1))),
    "image, depthwise": (conv(padding=1, groups=16), ((2, 16, 13, 13), (16, 1, 3, 3))),
    "image, depthwise and stride": (conv(stride=2, padding=1, groups=16), ((2, 16, 13, 13), (16, 1, 3, 3))),
    "image, groups": (conv(padding=1, groups=2), ((2, 32, 9, 9), (32, 16, 3, 3))),
    "signal": (step(lambda x, w: F.conv1d(x, w, stride=2, padding=2)), ((2, 8, 50), (12, 8, 5))),
    "windows": (step(lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)), ((2, 16, 12, 12),)),
    "attention": (step(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
                  ((1, 2, 70, 32),) * 3),
    "attention, one row": (step(F.scaled_dot_product_attention),
                           ((1, 4, 1, 32), (1, 4, 300, 32), (1, 4, 300, 32))),
    "indices": (step(lambda x: x[weft.tensor([3, 0, 3])].take_along_dim(weft.tensor([[1, 2]]), 1)),
                ((9, 40),)),
    "sorted": (step(lambda x: x.sort(1).values + x.topk(40, 1).values), ((7, 40),)),
    "running": (step(lambda x: x.cumsum(0) + x.cumprod(1) + x.cummax(1).values), ((20, 30),)),
    "embedding": (step(lambda w: F.embedding(weft.tensor([[1, 5], [5, 0]]), w)), ((8, 24),)),
    "norms": (step(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True)),
              ((4, 8, 5, 5), (8,), (8,))),
}  # fmt: skip


def captured(name: str) -> tuple[Graph, list[np.ndarray]]:
    """The graph of a program, and arguments for it."""
    fn, shapes = PROGRAMS[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    compiled = weft.compile(fn, fullgraph=True)
    compiled(*(weft.tensor(a).requires_grad_() for a in arrays))
    assert len(compiled.graph.params) == len(arrays)
    return compiled.graph, arrays


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_on_neon(name: str) -> None:
    graph, _ = captured(name)
    assert assert_complete(graph, NEON)


def test_the_programs_use_every_form() -> None:
    found = {k.form for name in PROGRAMS for k in compile_graph(captured(name)[0]).kernels}
    assert found | {"gather"} >= set(FORMS)  # a gather alone is a loop to fusion; see the primitives


@pytest.mark.skipif(not host_target().triple.startswith("x86_64"), reason="needs an x86-64 processor")
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_on_avx2(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, arrays = captured(name)
    assert_complete(graph, AVX2)
    monkeypatch.setattr("weft.runtime.compile.host_target", lambda: AVX2)
    for got, want in zip(compile_graph(graph).call(arrays), run(graph, arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1.0, np.abs(want).max()))


def test_large_results_elsewhere() -> None:
    """Results of a size that is streamed past the caches: the fence that x86 needs is not asked of others."""
    large = TensorType((1 << 11, 1 << 12), f32)
    for fn in (lambda x: P.mul_p.bind(x, x), lambda x: P.cumsum_p.bind(x, axis=0)):
        assert len(assert_complete(trace(fn, large), NEON)) == 1
