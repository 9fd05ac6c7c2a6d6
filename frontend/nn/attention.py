"""Multi-head attention."""

from __future__ import annotations

from typing import Any

from weft.creation import empty
from weft.nn import functional as F
from weft.nn import init
from weft.nn.linear import Linear
from weft.nn.module import Module
from weft.nn.parameter import Parameter
from weft.tensor import Tensor


class MultiheadAttention(Module):
    """Attention of ``num_heads`` heads over joint projections (Vaswani et al. 2017).

    query [L, N, E], key and value [S, N, E] ([N, L, E] with ``batch_first``, or without N); returns the
    output and, with ``need_weights``, the weights [N, L, S] (per head unless averaged), else None. A bool
    mask is True where attention is not allowed; a float mask is added to the scores.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                f"embed_dim and num_heads must be greater than 0, got embed_dim={embed_dim} and "
                f"num_heads={num_heads}"
            )
        if embed_dim % num_heads:
            raise AssertionError("embed_dim must be divisible by num_heads")
        if add_bias_kv or add_zero_attn or kdim not in (None, embed_dim) or vdim not in (None, embed_dim):
            raise ValueError(
                "MultiheadAttention: add_bias_kv, add_zero_attn, kdim and vdim are not supported"
            )
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.head_dim, self.batch_first = embed_dim // num_heads, batch_first
        self.in_proj_weight = Parameter(empty(3 * embed_dim, embed_dim, device=device, dtype=dtype))
        in_bias = Parameter(empty(3 * embed_dim, device=device, dtype=dtype)) if bias else None
        self.register_parameter("in_proj_bias", in_bias)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        init.xavier_uniform_(self.in_proj_weight)
        if bias:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.ndim == 3
        q, k, v = (self._batch_first(x) for x in (query, key, value))
        n, length, _ = q.shape
        q, k, v = (self._heads(x, i) for i, x in enumerate((q, k, v)))
        mask = self._mask(attn_mask, key_padding_mask, n, q)
        causal = is_causal and attn_mask is None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            if causal:
                raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            out = F.dropout(weights, dropout, True) @ v if dropout else weights @ v
        else:
            weights = None
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        out = self.out_proj(out.transpose(1, 2).reshape(n, length, self.embed_dim))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Tensor, i: int) -> Tensor:
        """[N, L, E] projected by the i-th third of the joint weight, as [N, heads, L, head_dim]."""
        part = slice(i * self.embed_dim, (i + 1) * self.embed_dim)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[part]
        y = F.linear(x, self.in_proj_weight[part], bias)
        return y.reshape(y.shape[0], y.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, attn: Tensor | None, padding: Tensor | None, n: int, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to scores [N, heads, L, S]."""
        total = None
        if attn is not None:
            added = self._added(attn, q)
            if added.ndim == 3:
                added = added.reshape(n, self.num_heads, *added.shape[1:])
            total = added
        if padding is not None:
            added = self._added(padding, q).reshape(n, 1, 1, padding.shape[-1])
            total = added if total is None else total + added
        return total

    @staticmethod
    def _added(mask: Tensor, q: Tensor) -> Tensor:
        if mask.is_floating_point():
            return mask.to(q.dtype)
        zero = q.new_zeros(mask.shape)
        return zero.masked_fill(mask, float("-inf"))
