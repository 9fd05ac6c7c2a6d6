"""Attention: softmax(q k' * scale + mask) v, whose scores are never an array, and its gradient.

q [B, H, L, E], k [B, K, S, E] and v [B, K, S, V], where K divides H: a key head serves H / K neighbouring
query heads. ``mask`` (bool: True takes part; or a number to add) is [B, H, L, S], where a dimension may be 1:
what the mask does not depend on. ``state`` is that of ``random_bits``, an operand only where ``dropout`` is
not 0: weight number i of [B, H, L, S] is dropped where the upper 24 bits of word i, read as a fraction, are
below ``dropout``. ``causal``: query i sees the keys 0..i. A row that sees no key gives zeros; with
``nan_rows`` NaN, as the softmax of nothing but -inf.

Results: out [B, H, L, V], or [B, L, H, V] with ``heads_inside``; and lse [B, H, L], the logarithm of the sum
of the exponentials of each row (-inf where it sees no key), from which the gradient computes the weights
again.

Source: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023; online
softmax: Milakov and Gimelshein, 2018.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from weft.ir.prims import attention_numpy
from weft.ir.prims.base import Kind, Primitive, full_like, type_of
from weft.ir.prims.base import scale as scaled
from weft.ir.prims.rules import apply, as_dtype, check_dtype, check_rank, check_same_dtype, zeros
from weft.ir.record import record
from weft.ir.types import FLOATS, DType, TensorType, bf16, bool_, f16, f32, i64, u32

__all__ = ["attention_grad_p", "attention_p"]

Layouts = tuple[bool, bool, bool]
_SWAP = (0, 2, 1, 3)


def accumulator(dtype: DType) -> DType:
    """The dtype in which scores are computed."""
    return f32 if dtype in (f16, bf16) else dtype


def split_optional(rest: tuple[Any, ...], dropout: float) -> tuple[Any, Any]:
    """mask and state (None where there is none) of the operands behind the others."""
    state = rest[-1] if dropout else None
    return (rest[0] if len(rest) > (1 if dropout else 0) else None), state


def _check(prim: str, q: TensorType, k: TensorType, v: TensorType, rest: tuple[TensorType, ...],
           dropout: float) -> None:  # fmt: skip
    check_same_dtype(prim, q, k, v)
    check_dtype(prim, q, FLOATS)
    if not 0 <= dropout < 1:
        raise ValueError(f"{prim}: dropout must be in [0, 1), got {dropout}")
    for t in (q, k, v):
        check_rank(prim, "shape", t.shape, 4)
    (n, heads, length, width), (keys_n, kv, keys, keys_width) = q.shape, k.shape
    if (n, width) != (keys_n, keys_width) or k.shape[:3] != v.shape[:3] or (heads % kv if kv else heads):
        raise ValueError(f"{prim}: {q}, {k} and {v} do not go together")
    if len(rest) > 1 + (dropout > 0) or (dropout and not rest):
        raise ValueError(f"{prim}: {len(rest)} operands too many, or a state that is missing")
    mask, state = split_optional(rest, dropout)
    if state is not None and (state.dtype is not i64 or state.shape != (2,)):
        raise TypeError(f"{prim}: the state must be i64[2] (seed, offset), got {state}")
    if mask is not None:
        check_dtype(prim, mask, (*FLOATS, bool_), "mask")
        check_rank(prim, "mask", mask.shape, 4)
        if any(d not in (1, e) for d, e in zip(mask.shape, (n, heads, length, keys), strict=True)):
            raise ValueError(f"{prim}: a mask of {mask} for scores [{n}, {heads}, {length}, {keys}]")


def _swapped(shape: tuple[Any, ...], swap: bool) -> tuple[Any, ...]:
    return tuple(shape[i] for i in _SWAP) if swap else tuple(shape)


def _swap(x: Any, swap: bool) -> Any:
    return apply("permute", x, perm=_SWAP) if swap else x


def _infer(
    q: TensorType, k: TensorType, v: TensorType, *rest: TensorType, causal: bool, scale: float,
    dropout: float, mask_grad: bool, heads_inside: bool, nan_rows: bool,
) -> tuple[TensorType, TensorType]:  # fmt: skip
    _check("attention", q, k, v, rest, dropout)
    out = _swapped((*q.shape[:3], v.shape[3]), heads_inside)
    return q.with_(shape=out), q.with_(shape=q.shape[:3], dtype=accumulator(q.dtype))


def _eval(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *rest: np.ndarray, causal: bool, scale: float,
    dropout: float, mask_grad: bool, heads_inside: bool, nan_rows: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    mask, state = split_optional(rest, dropout)
    with np.errstate(all="ignore"):
        out, lse = attention_numpy.forward(q, k, v, mask, state, causal=causal, scale=scale, dropout=dropout)
    if nan_rows:
        out[lse == -np.inf] = np.nan
    out = out.transpose(_SWAP) if heads_inside else out
    return np.ascontiguousarray(out.astype(q.dtype, copy=False)), lse


def _vjp(
    cts: Any, outs: Any, q: Any, k: Any, v: Any, *rest: Any, causal: bool, scale: float, dropout: float,
    mask_grad: bool, heads_inside: bool, nan_rows: bool,
) -> tuple[Any, ...]:  # fmt: skip
    (ct, ct_lse), (out, lse) = cts, outs
    mask, state = split_optional(rest, dropout)
    acc = type_of(lse).dtype
    if nan_rows:
        none = apply("eq", lse, full_like(lse, -math.inf))
        lse = apply("where", none, full_like(lse, math.nan), lse)
    if ct is None:
        ct, delta = full_like(out, 0), None
    else:
        product = apply("mul", as_dtype(ct, acc), as_dtype(out, acc))
        delta = apply("sum", product, axes=(3,))
        delta = apply("permute", delta, perm=(0, 2, 1)) if heads_inside else delta
    if ct_lse is not None:
        delta = apply("neg", ct_lse) if delta is None else apply("sub", delta, ct_lse)
    ct = _swap(ct, heads_inside)
    how = {"causal": causal, "scale": scale, "dropout": dropout}
    grads = apply("attention_grad", q, k, v, ct, lse, delta, *rest, **how)
    others_ = []
    if mask is not None:
        wanted = mask_grad and type_of(mask).dtype is not bool_
        parts = _Parts(q, k, v, ct, lse, delta, mask, state, **how) if wanted else None
        others_.append(None if parts is None else parts.to_mask(parts.ds))
    return (*grads, *others_, *([None] if dropout else []))


attention_p = Primitive(
    "attention", Kind.ATTENTION, infer=_infer, eval=_eval, vjp=_vjp, needs="01234o", n_results=2,
    dtypes=FLOATS,
    defaults={
        "causal": False, "scale": 1.0, "dropout": 0.0, "mask_grad": True, "heads_inside": False,
        "nan_rows": False,
    },
)  # fmt: skip


# the gradient ----------------------------------------------------------------


def _grad_infer(
    q: TensorType, k: TensorType, v: TensorType, ct: TensorType, lse: TensorType, delta: TensorType,
    *rest: TensorType, causal: bool, scale: float, dropout: float, heads_inside: Layouts,
) -> tuple[TensorType, ...]:  # fmt: skip
    _check("attention_grad", q, k, v, rest, dropout)
    check_same_dtype("attention_grad", q, ct)
    rows = q.with_(shape=q.shape[:3], dtype=accumulator(q.dtype))
    if ct.shape != (*q.shape[:3], v.shape[3]) or lse != rows or delta != rows:
        raise ValueError(
            f"attention_grad: {ct}, {lse}, {delta} are no cotangent, sums and products of {rows}"
        )
    return tuple(t.with_(shape=_swapped(t.shape, s)) for t, s in zip((q, k, v), heads_inside, strict=True))


def _grad_eval(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, ct: np.ndarray, lse: np.ndarray, delta: np.ndarray,
    *rest: np.ndarray, causal: bool, scale: float, dropout: float, heads_inside: Layouts,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    mask, state = split_optional(rest, dropout)
    with np.errstate(all="ignore"):
        grads = attention_numpy.backward(
            q, k, v, ct, lse, delta, mask, state, causal=causal, scale=scale, dropout=dropout
        )
    swapped = (g.transpose(_SWAP) if s else g for g, s in zip(grads, heads_inside, strict=True))
    return tuple(np.ascontiguousarray(g.astype(q.dtype, copy=False)) for g in swapped)


def _grad_vjp(
    cts: Any, outs: Any, q: Any, k: Any, v: Any, ct: Any, lse: Any, delta: Any, *rest: Any, causal: bool,
    scale: float, dropout: float, heads_inside: Layouts,
) -> tuple[Any, ...]:  # fmt: skip
    """The second derivative, composed: there the scores are arrays."""
    mask, state = split_optional(rest, dropout)
    p = _Parts(q, k, v, ct, lse, delta, mask, state, causal=causal, scale=scale, dropout=dropout)
    a, b, c = (None if x is None else _swap(x, s) for x, s in zip(cts, heads_inside, strict=True))
    grads = p.second(a, b, c)
    masks = [] if mask is None else [None if type_of(mask).dtype is bool_ else p.to_mask(p.ct_scores)]
    return (*grads, *masks, *([None] if dropout else []))


attention_grad_p = Primitive(
    "attention_grad", Kind.ATTENTION, infer=_grad_infer, eval=_grad_eval, vjp=_grad_vjp, needs="01234567",
    n_results=3, dtypes=FLOATS,
    defaults={"causal": False, "scale": 1.0, "dropout": 0.0, "heads_inside": (False, False, False)},
)  # fmt: skip


# in other primitives ----------------------------------------------------------------


@record
class _Heads:
    """The sizes; heads as [B, K, G]: batch, key heads, queries per key head."""

    n: int
    kv: int
    groups: int
    rows: int
    keys: int

    @property
    def scores(self) -> tuple[int, ...]:
        return (self.n, self.kv, self.groups, self.rows, self.keys)


class _Parts:
    """The arrays [B, K, G, L, S] behind an ``attention_grad``, in primitives: weights p, and ds."""

    def __init__(
        self, q: Any, k: Any, v: Any, ct: Any, lse: Any, delta: Any, mask: Any, state: Any,
        *, causal: bool, scale: float, dropout: float,
    ) -> None:  # fmt: skip
        t, kv = type_of(q), type_of(k).shape[1]
        self.heads = h = _Heads(t.shape[0], kv, t.shape[1] // kv, t.shape[2], type_of(k).shape[2])
        self.dtype, self.acc, self.scale, self.mask = t.dtype, accumulator(t.dtype), scale, mask
        self.q, self.ct = self.by_group(q), self.by_group(ct)
        self.k, self.v = as_dtype(k, self.acc), as_dtype(v, self.acc)
        scores = scaled(self.left(self.q, self.k), scale)
        if causal:
            i, j = (apply("iota", shape=h.scores, dtype=i64, axis=a, device=t.device) for a in (3, 4))
            scores = apply("where", apply("le", j, i), scores, full_like(scores, -math.inf))
        scores = scores if mask is None else self.masked(scores)
        none = apply("eq", lse, full_like(lse, -math.inf))
        lse = apply("where", none, full_like(lse, math.inf), lse)  # a row without keys has no weights
        self.p = apply("exp", apply("sub", scores, self.across(lse)))
        self.factor = None if state is None else self.kept(state, dropout)
        self.dp = self.drop(self.left(self.ct, self.v))
        self.less = apply("sub", self.dp, self.across(delta))
        self.ds = apply("mul", self.p, self.less)

    def by_group(self, x: Any) -> Any:
        h, shape = self.heads, type_of(x).shape
        x = apply("reshape", x, shape=(h.n, h.kv, h.groups, *shape[2:]))
        return as_dtype(x, self.acc)

    def masked(self, scores: Any) -> Any:
        mask = apply("broadcast", self.mask, shape=self._flat(), axes=(0, 1, 2, 3))
        mask = apply("reshape", mask, shape=self.heads.scores)
        if type_of(mask).dtype is bool_:
            return apply("where", mask, scores, full_like(scores, -math.inf))
        return apply("add", scores, as_dtype(mask, self.acc))

    def _flat(self) -> tuple[int, ...]:
        h = self.heads
        return (h.n, h.kv * h.groups, h.rows, h.keys)

    def across(self, x: Any) -> Any:
        """A number per row [B, H, L] at each of its scores."""
        x = apply("reshape", x, shape=self.heads.scores[:4])
        return apply("broadcast", x, shape=self.heads.scores, axes=(0, 1, 2, 3))

    def kept(self, state: Any, dropout: float) -> Any:
        words = apply("random_bits", state, shape=self.heads.scores)
        t = type_of(words)
        level = attention_numpy.threshold(dropout) << 8
        least = apply("full", shape=t.shape, dtype=u32, value=level, device=t.device)
        kept = apply("convert", apply("ge", words, least), dtype=self.acc)
        return scaled(kept, 1 / (1 - dropout))

    def drop(self, x: Any) -> Any:
        return x if self.factor is None else apply("mul", x, self.factor)

    def left(self, x: Any, y: Any) -> Any:
        """Rows of x times rows of y: [B, K, G, L, S]."""
        return apply("dot_general", x, y, contract=((4,), (3,)), batch=((0, 1), (0, 1)))

    def right(self, w: Any, y: Any) -> Any:
        """Scores times rows of keys: [B, K, G, L, ·]."""
        return apply("dot_general", w, y, contract=((4,), (2,)), batch=((0, 1), (0, 1)))

    def down(self, w: Any, x: Any) -> Any:
        """Transposed scores times rows of queries, over all queries of a key head: [B, K, S, ·]."""
        return apply("dot_general", w, x, contract=((2, 3), (2, 3)), batch=((0, 1), (0, 1)))

    def to_mask(self, x: Any) -> Any:
        """The cotangent of the mask from that of the scores."""
        shape, t = type_of(self.mask).shape, type_of(self.mask)
        x = apply("reshape", x, shape=self._flat())
        axes = tuple(i for i, (d, e) in enumerate(zip(shape, self._flat(), strict=True)) if d != e)
        x = apply("sum", x, axes=axes) if axes else x
        return as_dtype(apply("reshape", x, shape=shape), t.dtype)

    def rows_of(self, x: Any) -> Any:
        h = self.heads
        return apply("reshape", apply("sum", x, axes=(4,)), shape=(h.n, h.kv * h.groups, h.rows))

    def second(self, a: Any, b: Any, c: Any) -> tuple[Any, ...]:
        """Cotangents of q, k, v, ct, lse and delta from those of dq (a), dk (b) and dv (c)."""
        none = zeros(self.p, self.heads.scores)
        a = None if a is None else self.by_group(a)
        b, c = (None if x is None else as_dtype(x, self.acc) for x in (b, c))
        terms = [] if a is None else [self.left(a, self.k)]
        terms += [] if b is None else [self.left(self.q, b)]
        ct_ds = scaled(_sum(terms), self.scale) if terms else none
        ct_p = apply("mul", ct_ds, self.less)
        if c is not None:
            ct_p = apply("add", ct_p, self.drop(self.left(self.ct, c)))
        self.ct_scores = ct_scores = apply("mul", ct_p, self.p)
        inner = apply("mul", ct_ds, self.p)
        ct_dp = self.drop(inner)
        to_q = [self.right(ct_scores, self.k)] + ([] if b is None else [self.right(self.ds, b)])
        to_k = [self.down(ct_scores, self.q)] + ([] if a is None else [self.down(self.ds, a)])
        to_ct = [self.right(ct_dp, self.v)] + ([] if c is None else [self.right(self.drop(self.p), c)])
        heads = self.heads.kv * self.heads.groups

        def ungrouped(x: Any) -> Any:
            shape = type_of(x).shape
            return as_dtype(apply("reshape", x, shape=(shape[0], heads, *shape[3:])), self.dtype)

        return (
            ungrouped(scaled(_sum(to_q), self.scale)),
            as_dtype(scaled(_sum(to_k), self.scale), self.dtype),
            as_dtype(self.down(ct_dp, self.ct), self.dtype),
            ungrouped(_sum(to_ct)),
            apply("neg", self.rows_of(ct_scores)),
            apply("neg", self.rows_of(inner)),
        )


def _sum(terms: list[Any]) -> Any:
    total = terms[0]
    for x in terms[1:]:
        total = apply("add", total, x)
    return total
