"""Scaled dot-product attention of ``weft.nn.functional``."""

from __future__ import annotations

import math
from typing import NamedTuple

from weft.casting import lower
from weft.composite import composite
from weft.dispatch import apply
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops.common import broadcast_shapes, broadcast_to, check_tensor, shape_of
from weft.random import drawn
from weft.tensor import Tensor


@lower
@composite
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K' * scale + mask) V. query [..., L, E], key [..., S, E], value [..., S, V] -> [..., L, V].

    ``attn_mask`` (broadcast to [..., L, S]): bool (True takes part) or a number to add; a query that sees no
    key gives zeros. ``is_causal``: query i sees the keys 0..i. ``scale`` is 1 / sqrt(E) unless given.
    ``enable_gqa``: neighbouring query heads (dimension -3) share a key head. Compiled, the scores are never
    stored, forward or backward. RuntimeError for a mask together with ``is_causal``, for shapes and dtypes
    that do not go together. Source: Vaswani et al. 2017; Dao 2023 (FlashAttention-2).

    >>> import weft
    >>> q, k, v = weft.ones(2, 3, 4), weft.ones(2, 5, 4), weft.ones(2, 5, 6)
    >>> scaled_dot_product_attention(q, k, v).shape
    weft.Size([2, 3, 6])
    """
    for x, name in ((query, "query"), (key, "key"), (value, "value")):
        check_tensor(x, "scaled_dot_product_attention", name)
    _check(query, key, value, attn_mask, is_causal)
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")
    heads = _heads(query, key, value, enable_gqa)
    if scale is None:
        scale = 1.0 / math.sqrt(shape_of(query)[-1]) if shape_of(query)[-1] else 1.0
    if type(scale) is not float and type(scale) is not int:  # a number that is data: an input of the graph
        query, scale = query * scale, 1.0
    operands = [heads.four(query, heads.heads), heads.four(key, heads.kv), heads.four(value, heads.kv)]
    if attn_mask is not None:
        operands.append(heads.mask(attn_mask, shape_of(query)[-2], shape_of(key)[-2]))
    dropped = dropout_p if dropout_p < 1 else 0.0
    if dropped:
        n = math.prod((*heads.lead, shape_of(query)[-2], shape_of(key)[-2]))
        operands.append(drawn(n, query.device))
    wanted = attn_mask is not None and attn_mask.requires_grad
    how = {"causal": bool(is_causal), "scale": float(scale), "dropout": float(dropped), "mask_grad": wanted}
    out = apply(P.attention_p, *operands, **how)[0]
    out = _reshaped(out, (*heads.lead, *shape_of(out)[-2:]))
    return out if dropout_p < 1 else out * 0.0


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> None:
    if mask is not None and causal:
        raise RuntimeError(
            "_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True"
        )
    if not (query.dtype is key.dtype is value.dtype):
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got "
            f"query.dtype: {query.dtype}, key.dtype: {key.dtype}, and value.dtype: {value.dtype}"
        )
    if not query.dtype.is_floating_point:
        raise RuntimeError(f"scaled_dot_product_attention: not implemented for {query.dtype}")
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise RuntimeError("scaled_dot_product_attention: query, key and value need at least 2 dimensions")
    (length, width), (keys, key_width) = shape_of(query)[-2:], shape_of(key)[-2:]
    if width != key_width or keys != shape_of(value)[-2]:
        raise RuntimeError(
            f"scaled_dot_product_attention: query {[length, width]}, key {[keys, key_width]} and value "
            f"{list(shape_of(value)[-2:])} do not go together"
        )
    if mask is not None and mask.dtype is not T.bool_ and not mask.dtype.is_floating_point:
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got "
            f"attn_mask.dtype: {mask.dtype} and query.dtype: {query.dtype}"
        )


class _Heads(NamedTuple):
    """The dimensions before the last two: what the result has, and the heads of query and key."""

    lead: tuple[int, ...]
    heads: int
    kv: int

    def four(self, x: Tensor, heads: int) -> Tensor:
        """``x`` as [batch, heads, rows, columns]."""
        shape = shape_of(x)
        lead = (*self.lead[:-1], heads) if self.lead else ()
        x = broadcast_to(x, (*lead, *shape[-2:]))
        return _reshaped(x, (math.prod(self.lead[:-1]), heads, *shape[-2:]))

    def mask(self, mask: Tensor, length: int, keys: int) -> Tensor:
        """A mask in four dimensions, 1 where it is the same for all."""
        whole = (*self.lead, length, keys)
        if broadcast_shapes(shape_of(mask), whole) != whole:
            raise RuntimeError(
                f"attn_mask of shape {list(shape_of(mask))} does not broadcast to {list(whole)}"
            )
        shape = (1,) * (len(whole) - mask.ndim) + shape_of(mask)
        lead, inner = shape[: len(self.lead)][:-1], shape[max(len(self.lead) - 1, 0) :]
        if any(d != 1 for d in lead):
            mask = broadcast_to(mask, (*self.lead[:-1], *inner))
            lead = self.lead[:-1]
        return _reshaped(mask, (math.prod(lead), *((1,) * (3 - len(inner))), *inner))


def _heads(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> _Heads:
    """How the leading dimensions go together. RuntimeError where they do not."""
    q, k, v = (shape_of(x)[:-2] for x in (query, key, value))
    if not grouped:
        lead = broadcast_shapes(q, k, v)
        heads = lead[-1] if lead else 1
        shared = all(not s or s[-1] == 1 for s in (k, v))
        return _Heads(lead, heads, 1 if shared else heads)
    if not (q and k and v) or k[-1] != v[-1] or not k[-1] or q[-1] % k[-1]:
        raise RuntimeError(
            "scaled_dot_product_attention: with enable_gqa the heads of key and value must be equal and "
            f"divide those of query, but got {list(q)}, {list(k)} and {list(v)}"
        )
    lead = (*broadcast_shapes(q[:-1], k[:-1], v[:-1]), q[-1])
    return _Heads(lead, q[-1], k[-1])


def _reshaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x if shape_of(x) == shape else x.reshape(shape)
