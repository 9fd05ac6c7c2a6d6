"""Attention in graphs: recognised where it is written out, views read in place, no array of scores."""

from __future__ import annotations

import numpy as np
import pytest
import weft
from weft.ir.prims.base import Kind
from weft.nn import functional as F
from weft.passes.autodiff import forward_backward

B, H, L, D = 2, 3, 48, 8


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE", "0")


def qkv(*shape: int) -> list[weft.Tensor]:
    weft.manual_seed(3)
    return [weft.randn(*(shape or (B, H, L, D))) for _ in range(3)]


def kernels(fn) -> list[str]:
    return [op.attrs["form"] for op in fn.stages()[-1][1].ops if op.prim.kind is Kind.KERNEL]


def largest(graph) -> int:
    """Elements of the largest value that the plan places."""
    return max(v.type.size for v in (*graph.params, *(r for op in graph.ops for r in op.results)))


def written_out(q, k, v, mask=None, scale=0.3):
    scores = q @ k.transpose(-2, -1) * scale
    return weft.softmax(scores if mask is None else scores + mask, -1) @ v


def filled(q, k, v, mask):
    scores = (q @ k.transpose(-2, -1) / 2.0).masked_fill(mask == 0, float("-inf"))
    return weft.softmax(scores, -1) @ v


def scaled_before(q, k, v):
    return weft.softmax((q * 0.5) @ k.transpose(-2, -1), -1) @ v


def by_einsum(q, k, v):
    weights = weft.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
    return weft.einsum("bhij,bhjd->bhid", weights, v)


SHAPES = [(B, H, L, D), (H, L, D), (L, D), (2, B, H, L, D)]
WAYS = [(fn, s) for fn in (written_out, scaled_before) for s in SHAPES] + [(by_einsum, SHAPES[0])]


@pytest.mark.parametrize(("fn", "shape"), WAYS)
def test_attention_written_out_is_recognised(fn, shape):
    compiled, args = weft.compile(fn), qkv(*shape)
    np.testing.assert_allclose(compiled(*args).numpy(), fn(*args).numpy(), rtol=0, atol=2e-6)
    assert kernels(compiled) == ["attention"]
    assert largest(compiled.stages()[-1][1]) == max(x.numel() for x in args)


def test_masks_of_written_attention():
    args = qkv()
    triangle = weft.ones(L, L).tril()
    compiled = weft.compile(filled)
    np.testing.assert_allclose(compiled(*args, triangle).numpy(), filled(*args, triangle).numpy(), atol=2e-6)
    assert kernels(compiled) == ["loop", "attention"]
    for bias in (weft.randn(L, L), weft.randn(H, 1, L), weft.randn(B, H, L, L)):
        compiled = weft.compile(written_out)
        want = written_out(*args, bias)
        np.testing.assert_allclose(compiled(*args, bias).numpy(), want.numpy(), rtol=0, atol=2e-6)
        assert kernels(compiled) == ["attention"]


def test_a_row_without_keys_stays_nan_where_softmax_gives_nan():
    args, mask = qkv(), weft.ones(L, L)
    mask[5] = 0.0
    got, want = weft.compile(filled)(*args, mask).numpy(), filled(*args, mask).numpy()
    assert np.isnan(want[:, :, 5]).all()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


def test_weights_that_are_read_elsewhere_are_no_attention():
    def fn(q, k, v):
        weights = weft.softmax(q @ k.transpose(-2, -1), -1)
        return weights @ v, weights

    def wrong_axis(q, k, v):
        return weft.softmax(q @ k.transpose(-2, -1), -2) @ v

    for f in (fn, wrong_axis):
        compiled = weft.compile(f)
        compiled(*qkv())
        assert "attention" not in kernels(compiled)


class Block(weft.nn.Module):
    """Causal self-attention over a joint projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = weft.nn.Linear(H * D, 3 * H * D), weft.nn.Linear(H * D, H * D)

    def forward(self, x):
        parts = self.qkv(x).view(B, L, 3, H, D).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, L, H * D))


def test_views_are_not_copied_in_a_block():
    block = Block()
    compiled = weft.compile(lambda x: block(x))
    with weft.no_grad():
        compiled(weft.randn(B, L, H * D))
    assert kernels(compiled) == ["contract", "attention", "contract"]


def test_a_training_step_has_no_scores():
    block = Block()

    def step(x):
        loss = (block(x) ** 2).sum()
        loss.backward()
        return loss

    compiled = weft.compile(step)
    compiled(weft.randn(B, L, H * D))
    graph = compiled.stages()[-1][1]
    assert kernels(compiled).count("attention") == 2
    assert largest(graph) < B * H * L * L
    assert all(v.type.shape[-2:] != (L, L) for op in graph.ops for v in op.results)


def test_what_is_saved_for_the_gradient():
    def fn(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    compiled = weft.compile(fn)
    compiled(*qkv())
    split = forward_backward(compiled.graph, (0, 1, 2), (0,))
    saved = [v.type.shape for v in split.forward.results[len(split.forward.results) - split.n_saved :]]
    whole, rows = (B, H, L, D), (B, H, L)
    assert sorted(saved, key=len) == [rows, whole, whole, whole, whole]


@pytest.mark.parametrize("how", ["plain", "causal", "mask", "bool", "grouped", "broadcast"])
def test_compiled_gradients_are_eager_ones(how):
    q, k, v = (x.requires_grad_() for x in qkv())
    kwargs = {}
    if how == "causal":
        kwargs["is_causal"] = True
    elif how == "mask":
        kwargs["attn_mask"] = weft.randn(H, L, L).requires_grad_()
    elif how == "bool":
        mask = weft.rand(B, 1, L, L) < 0.5
        mask[0, 0, 3] = False
        kwargs["attn_mask"] = mask
    elif how == "grouped":
        k, v = (x[:, :1].detach().requires_grad_() for x in (k, v))
        kwargs["enable_gqa"] = True
    elif how == "broadcast":
        k = k[:1].detach().requires_grad_()
    wrt = [q, k, v, *([kwargs["attn_mask"]] if how == "mask" else [])]

    def loss():
        return (F.scaled_dot_product_attention(q, k, v, **kwargs) ** 2).sum()

    want = weft.autograd.grad(loss(), wrt)
    got = weft.autograd.grad(weft.compile(loss)(), wrt)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=5e-5)


def test_dropout_draws_the_same_bits_eager_and_compiled():
    args = qkv()
    fn = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)  # noqa: E731
    weft.manual_seed(11)
    want, after = fn(*args), weft.rand(3)
    weft.manual_seed(11)
    got, again = weft.compile(fn)(*args), weft.rand(3)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(after.numpy(), again.numpy())


def test_second_derivatives_compiled():
    q, k, v = (x[:1, :1, :5].double().requires_grad_() for x in qkv())

    def second():
        (g,) = weft.autograd.grad(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).pow(3).sum(), [q], create_graph=True
        )
        return weft.autograd.grad(g.pow(2).sum(), [q, k, v])

    for a, b in zip(weft.compile(second)(), second(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-10)
