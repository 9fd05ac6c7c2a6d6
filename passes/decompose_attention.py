"""Attention: recognised where it is written out, and its results in the order in which they are read."""

from __future__ import annotations

import math

from weft.ir.graph import Op, Value
from weft.ir.record import record, replace
from weft.ir.types import FLOATS
from weft.passes.rewriting import Rewriter, Rewritten, Rules

ATTENTION = Rules()
_HEADS_INSIDE = (0, 2, 1, 3)


# -- the order of results ----------------------------------------------------------------------------------


def _read_permuted(r: Rewriter, v: Value) -> bool:
    """Whether a reader of a result of the old graph swaps its heads and rows."""
    return any(op.prim.name == "permute" and op.attrs["perm"] == _HEADS_INSIDE for op in r.readers.get(v, ()))


def _stands_for_current(r: Rewriter, op: Op) -> bool:
    """Whether the first result of ``op`` is that of the operation of the old graph that is being copied."""
    return r.current is not None and r.current.results[0].type == op.results[0].type


@ATTENTION.on("attention")
def heads_where_read(r: Rewriter, op: Op) -> Rewritten:
    """Write the result in the order in which it is read."""
    if op.attrs["heads_inside"] or r.current is None or not _stands_for_current(r, op):
        return None
    if not _read_permuted(r, r.current.results[0]):
        return None
    out, lse = r.emit_all("attention", *op.operands, **{**op.attrs, "heads_inside": True})
    return r.emit("permute", out, perm=_HEADS_INSIDE), lse


@ATTENTION.on("attention_grad")
def gradient_heads_where_read(r: Rewriter, op: Op) -> Rewritten:
    """Write the cotangents in the order in which they are read."""
    if any(op.attrs["heads_inside"]) or r.current is None or r.current.prim is not op.prim:
        return None
    inside = tuple([_read_permuted(r, v) for v in r.current.results])
    if not any(inside):
        return None
    made = r.emit_all("attention_grad", *op.operands, **{**op.attrs, "heads_inside": inside})
    pairs = zip(made, inside, strict=True)
    return tuple([r.emit("permute", v, perm=_HEADS_INSIDE) if s else v for v, s in pairs])


# -- recognition -------------------------------------------------------------------------------------------


@record(frozen=True)
class _Scores:
    """softmax's argument: a product, times ``scale``, and what masks it (``hides``: True hides)."""

    product: Op
    scale: float = 1.0
    mask: Value | None = None
    hides: bool = False


@ATTENTION.on("dot_general")
def softmax_between_contractions(r: Rewriter, op: Op) -> Rewritten:
    """softmax(q k' * scale + mask) v, where nobody else reads the weights."""
    weights = op.operands[0]
    if r.current is None or r.current.prim is not op.prim or op.result.type.dtype not in FLOATS:
        return None
    old = r.current.operands[0]
    if old in r.results or len(r.readers[old]) != 1:
        return None
    x = _softmax_of(r, weights)
    scores = None if x is None else _scores(r, x)
    if scores is None:
        return None
    n = weights.type.ndim - 2
    lead = tuple(range(n))
    product = scores.product
    (left, a), (right, b) = (_unscaled(r, v) for v in product.operands)
    q, k = _rows(r, product, 0, left, lead), _rows(r, product, 1, right, lead)
    v = _rows(r, op, 1, op.operands[1], lead, transposed=True)
    mask = _mask(r, scores, n)
    whole = op.attrs["contract"][0] == (n + 1,) and op.attrs["batch"][0] == lead
    if q is None or k is None or v is None or not whole or (scores.mask is not None and mask is None):
        return None
    rest = [] if mask is None else [mask]
    how = {"scale": scores.scale * a * b, "mask_grad": False, "nan_rows": True}
    out, _ = r.emit_all("attention", q, k, v, *rest, **how)
    return r.reshape(out, op.result.type.shape)


def _softmax_of(r: Rewriter, v: Value) -> Value | None:
    """``x`` where ``v`` is its softmax along the last axis."""
    division = r.producer(v, "div")
    if division is None:
        return None
    top, bottom = division.operands
    power, total = r.producer(top, "exp"), _per_row(r, bottom, "sum")
    if power is None or total is not top:
        return None
    less = r.producer(power.operands[0], "sub")
    if less is None or _per_row(r, less.operands[1], "reduce_max") is not less.operands[0]:
        return None
    return less.operands[0]


def _per_row(r: Rewriter, v: Value, fold: str) -> Value | None:
    """``x`` where ``v`` is its fold along the last axis, spread over it again."""
    spread = r.producer(v, "broadcast")
    if spread is None:
        return None
    n = v.type.ndim - 1
    folded = r.producer(spread.operands[0], fold)
    if folded is None or spread.attrs["axes"] != tuple(range(n)) or folded.attrs["axes"] != (n,):
        return None
    x = folded.operands[0]
    return x if x.type.shape == v.type.shape else None


def _scores(r: Rewriter, x: Value) -> _Scores | None:
    op = r.producer(x)
    if op is None:
        return None
    name = op.prim.name
    if name == "dot_general":
        return _Scores(op)
    if name in ("mul", "div"):
        factor, product = r.uniform(op.operands[1]), r.producer(op.operands[0], "dot_general")
        if factor is None or product is None or (name == "div" and not factor):
            return None
        return _Scores(product, float(factor) if name == "mul" else 1.0 / float(factor))
    if name == "add":
        return _masked(r, op.operands[0], op.operands[1]) or _masked(r, op.operands[1], op.operands[0])
    if name == "where":
        seen, yes, no = op.operands
        if r.uniform(no) == -math.inf:
            return _masked(r, yes, seen)
        if r.uniform(yes) == -math.inf:
            return _masked(r, no, seen, hides=True)
    return None


def _masked(r: Rewriter, x: Value, mask: Value, hides: bool = False) -> _Scores | None:
    inner = _scores(r, x)
    return None if inner is None or inner.mask is not None else replace(inner, mask=mask, hides=hides)


def _unscaled(r: Rewriter, v: Value) -> tuple[Value, float]:
    """An operand of the product without a constant factor, and the factor."""
    op = r.producer(v, "mul")
    factor = None if op is None else r.uniform(op.operands[1])
    return (v, 1.0) if op is None or factor is None else (op.operands[0], float(factor))


def _rows(
    r: Rewriter, op: Op, side: int, v: Value, lead: tuple[int, ...], transposed: bool = False
) -> Value | None:
    """``v``, an operand of a contraction, as [B, H, rows, columns]: its batch, the free axis and the
    contracted one (``transposed``: the contracted and the free one).
    """
    contract, batch = op.attrs["contract"][side], op.attrs["batch"][side]
    free = [i for i in range(v.type.ndim) if i not in (*contract, *batch)]
    if len(contract) != 1 or len(free) != 1 or len(batch) != len(lead):
        return None
    last = (*contract, *free) if transposed else (*free, *contract)
    perm = (*batch, *last)
    v = v if perm == tuple(range(v.type.ndim)) else r.emit("permute", v, perm=perm)
    return r.reshape(v, _four(v.type.shape))


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    lead = shape[:-2]
    return (math.prod(lead[:-1]), lead[-1] if lead else 1, *shape[-2:])


def _mask(r: Rewriter, scores: _Scores, n: int) -> Value | None:
    """The mask of scores with ``n`` batch axes in four dimensions, 1 where it is spread."""
    mask = scores.mask
    if mask is None:
        return None
    spread = r.producer(mask, "broadcast")
    if spread is None:
        shape = mask.type.shape
    else:
        source = spread.operands[0]
        sizes = dict(zip(spread.attrs["axes"], source.type.shape, strict=True))
        shape = tuple(sizes.get(i, 1) for i in range(n + 2))
        mask = source
    if n > 2 and any(d != 1 for d in shape[: n - 1]) and spread is not None:
        return None
    mask = r.emit("bit_not", mask) if scores.hides else mask
    return r.reshape(mask, _four(shape))
