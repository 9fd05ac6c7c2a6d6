"""The numpy evaluation of attention and of its gradient, by blocks of query rows.

Heads are kept as [batch, key heads, queries per key head]: ``b``, ``k``, ``g``. No more than ``_CELLS``
scores exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from weft.ir.prims.random import bits_between
from weft.ir.prims.rules import wide

_CELLS = 1 << 18
Block = tuple[slice, slice, slice]  # of batch, key heads, rows


def forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, state: np.ndarray | None,
    *, causal: bool, scale: float, dropout: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """out [B, H, L, V] and the logarithm of each row's sum [B, H, L], in the dtype of accumulation."""
    s = _Scores(q, k, mask, state, causal, scale, dropout)
    v = wide(v)
    out = np.zeros((*s.q.shape[:4], v.shape[-1]), s.q.dtype)
    lse = np.full(s.q.shape[:4], -np.inf, s.q.dtype)
    if k.shape[2]:
        for b, h, rows in s.blocks():
            x, cols = s.scores((b, h, rows))
            top = x.max(-1, keepdims=True)
            top[top == -np.inf] = 0
            np.exp(np.subtract(x, top, out=x), out=x)
            total = x.sum(-1, keepdims=True)
            lse[b, h, :, rows] = (np.log(total) + top)[..., 0]
            x /= np.where(total == 0, 1, total)  # a row without keys has no weights
            factor = s.kept((b, h, rows), cols)
            out[b, h, :, rows] = (x if factor is None else x * factor) @ v[b, h, None, cols]
    shape = q.shape[:3]
    return out.reshape(*shape, v.shape[-1]), lse.reshape(shape)


def backward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, ct: np.ndarray, lse: np.ndarray, delta: np.ndarray,
    mask: np.ndarray | None, state: np.ndarray | None, *, causal: bool, scale: float, dropout: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The cotangents of q, k and v, in the dtype of accumulation."""
    s = _Scores(q, k, mask, state, causal, scale, dropout)
    v, shape = wide(v), s.q.shape[:4]
    ct, lse, delta = wide(ct).reshape(*shape, -1), lse.reshape(shape), delta.reshape(shape)
    lse = np.where(lse == -np.inf, np.inf, lse)  # a row without keys has no weights
    dq, dk, dv = np.zeros_like(s.q, order="C"), np.zeros(k.shape, s.q.dtype), np.zeros(v.shape, s.q.dtype)
    if not k.shape[2]:
        return dq.reshape(q.shape), dk, dv
    for b, h, rows in s.blocks():
        p, cols = s.scores((b, h, rows))
        np.exp(np.subtract(p, lse[b, h, :, rows, None], out=p), out=p)
        factor = s.kept((b, h, rows), cols)
        c = ct[b, h, :, rows]
        dp = c @ v[b, h, None, cols].swapaxes(-1, -2)
        weights = p
        if factor is not None:
            dp, weights = dp * factor, p * factor
        dv[b, h, cols] += (weights.swapaxes(-1, -2) @ c).sum(2)
        ds = p * (dp - delta[b, h, :, rows, None])
        dq[b, h, :, rows] = (ds @ s.k[b, h, None, cols]) * s.scale
        dk[b, h, cols] += (ds.swapaxes(-1, -2) @ s.q[b, h, :, rows]).sum(2) * s.scale
    return dq.reshape(q.shape), dk, dv


class _Scores:
    """The masked scores of a block, and which of its weights dropout keeps."""

    def __init__(
        self, q: np.ndarray, k: np.ndarray, mask: np.ndarray | None, state: np.ndarray | None,
        causal: bool, scale: float, dropout: float,
    ) -> None:  # fmt: skip
        n, heads, length, width = q.shape
        self.heads, self.groups = heads, heads // max(k.shape[1], 1)
        self.q, self.k = wide(q).reshape(n, k.shape[1], self.groups, length, width), wide(k)
        self.mask = None if mask is None else self._by_group(mask)
        self.state, self.causal, self.dropout = state, causal, dropout
        self.scale = self.q.dtype.type(scale)

    def _by_group(self, mask: np.ndarray) -> np.ndarray:
        n, heads, *rest = mask.shape
        return mask.reshape(n, *((1, 1) if heads == 1 else self.q.shape[1:3]), *rest)

    def blocks(self) -> Iterator[Block]:
        n, kv, groups, length, _ = self.q.shape
        if n * kv * groups * length * self.k.shape[2] <= _CELLS:
            yield slice(0, n), slice(0, kv), slice(0, length)
            return
        step = max(1, _CELLS // (groups * self.k.shape[2]))
        for b in range(n):
            for h in range(kv):
                for i in range(0, length, step):
                    yield slice(b, b + 1), slice(h, h + 1), slice(i, min(i + step, length))

    def scores(self, block: Block) -> tuple[np.ndarray, slice]:
        """The scores of a block and their columns: what lies above the diagonal is left out."""
        b, h, rows = block
        keys = self.k.shape[2]
        cols = slice(0, min(keys, rows.stop) if self.causal else keys)
        x = (self.q[b, h, :, rows] * self.scale) @ self.k[b, h, None, cols].swapaxes(-1, -2)
        if self.causal:
            i, j = np.arange(rows.start, rows.stop), np.arange(cols.stop)
            x[..., i[:, None] < j] = -np.inf
        if self.mask is not None:
            m = self.mask[tuple(_cut(self.mask.shape, (b, h, None, rows, cols)))]
            if m.dtype == np.bool_:
                np.copyto(x, -np.inf, where=~m)
            else:
                x += m.astype(x.dtype, copy=False)
        return x, cols

    def kept(self, block: Block, cols: slice) -> np.ndarray | None:
        """0 or 1 / (1 - dropout) for each weight of a block; None without dropout."""
        if self.state is None:
            return None
        _, kv, groups, length, _ = self.q.shape
        keys = self.k.shape[2]
        b, h, rows = block
        shape = (b.stop - b.start, h.stop - h.start, groups, rows.stop - rows.start, keys)
        out = np.empty(shape, self.q.dtype)
        for i, j, g in np.ndindex(*shape[:3]):
            head = ((b.start + i) * kv + h.start + j) * groups + g
            first = (head * length + rows.start) * keys
            words = bits_between(self.state, first, first + shape[3] * keys).reshape(shape[3:])
            out[i, j, g] = words >> 8 >= threshold(self.dropout)
        return (out * out.dtype.type(1 / (1 - self.dropout)))[..., cols]


def threshold(dropout: float) -> int:
    """What the upper 24 of 32 random bits must reach for a weight to be kept."""
    return -int(-dropout * 2**24 // 1)


def _cut(shape: tuple[int, ...], cuts: tuple[Any, ...]) -> Iterator[slice]:
    """Slices of an array some of whose dimensions are 1 and stand for all."""
    for d, cut in zip(shape, cuts, strict=True):
        yield slice(None) if cut is None or d == 1 else cut
