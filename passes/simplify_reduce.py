"""Rules for reductions, contractions and control flow."""

from __future__ import annotations

import math

from weft.ir.graph import Op, Value
from weft.ir.types import bf16, f16
from weft.passes.rewriting import Rewriter, Rewritten, Rules, others
from weft.passes.simplify_shape import long_axes, squeezed

REDUCING = Rules()
FOLDS = ("sum", "prod", "reduce_max", "reduce_min", "any", "all")
IDEMPOTENT = ("reduce_max", "reduce_min", "any", "all")


@REDUCING.on(*FOLDS)
def reduce_of_reduce(r: Rewriter, op: Op) -> Rewritten:
    """One reduction over both sets of axes. Sums may associate; f16 and bf16 would round one time less."""
    inner = r.producer(op.operands[0], op.prim.name)
    rounds = op.prim.name in ("sum", "prod") and op.result.type.dtype in (f16, bf16)
    if inner is None or rounds:
        return None
    x = inner.operands[0]
    left = others(inner.attrs["axes"], x.type.ndim)
    axes = tuple(sorted((*inner.attrs["axes"], *(left[a] for a in op.attrs["axes"]))))
    return r.emit(op.prim, x, axes=axes)


@REDUCING.on(*FOLDS)
def reduce_of_permute(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "permute")
    if inner is None:
        return None
    x, perm, axes = inner.operands[0], inner.attrs["perm"], op.attrs["axes"]
    out = r.emit(op.prim, x, axes=tuple(sorted(perm[a] for a in axes)))
    wanted = [perm[i] for i in others(axes, len(perm))]
    order = sorted(wanted)
    return out if wanted == order else r.emit("permute", out, perm=tuple(order.index(a) for a in wanted))


@REDUCING.on(*FOLDS)
def reduce_of_reshape(r: Rewriter, op: Op) -> Rewritten:
    """A reduction of everything, or past axes of length 1 that a reshape added or dropped."""
    inner = r.producer(op.operands[0], "reshape")
    if inner is None:
        return None
    x, axes = inner.operands[0], op.attrs["axes"]
    old, new = x.type.shape, inner.result.type.shape
    if len(axes) == len(new):
        return r.emit(op.prim, x, axes=tuple(range(len(old))))
    if squeezed(old) != squeezed(new):
        return None
    place = dict(zip(long_axes(new), long_axes(old), strict=True))
    kept = r.emit(op.prim, x, axes=tuple(place[a] for a in axes if new[a] != 1))
    return r.reshape(kept, op.result.type.shape)


@REDUCING.on("sum", *IDEMPOTENT)
def reduce_of_broadcast(r: Rewriter, op: Op) -> Rewritten:
    """Along a broadcast axis all elements are equal: a maximum is that element, a sum the element times the
    length.

    The product stands for the sum only where it is exact: for integers, and for floats by a power of two.
    """
    inner = r.producer(op.operands[0], "broadcast")
    if inner is None or op.operands[0].type.size == 0:
        return None
    x, shape, axes = inner.operands[0], inner.attrs["shape"], op.attrs["axes"]
    source = {a: i for i, a in enumerate(inner.attrs["axes"]) if x.type.shape[i] == shape[a]}
    spread = [a for a in axes if a not in source]
    n = math.prod(shape[a] for a in spread)
    if not spread or (op.prim.name == "sum" and not _exact_multiple(x, n)):
        return None
    out = r.emit(op.prim, x, axes=tuple(source[a] for a in axes if a in source))
    if op.prim.name == "sum" and n != 1:
        out = r.emit("mul", out, r.full(out.type, float(n) if out.type.dtype.is_floating_point else n))
    left = others(axes, len(shape))
    place = [left.index(a) for a in inner.attrs["axes"] if a not in axes or a not in source]
    return r.emit("broadcast", out, shape=op.result.type.shape, axes=tuple(place))


def _exact_multiple(x: Value, n: int) -> bool:
    if x.type.dtype.is_integer:
        return n < 1 << (x.type.dtype.bits - 1)
    return x.type.dtype.is_floating_point and n & (n - 1) == 0


# --- contractions
# ------------------------------------------------------------------------------------------------


@REDUCING.on("dot_general")
def product_of_permutes(r: Rewriter, op: Op) -> Rewritten:
    """A contraction reads its operands in any order of axes, as long as the free axes keep theirs."""
    sides = [_unpermuted(r, op, side) for side in (0, 1)]
    if sides == [None, None]:
        return None
    operands, contract, batch = [], [], []
    for side, found in enumerate(sides):
        x, c, b = found or (op.operands[side], op.attrs["contract"][side], op.attrs["batch"][side])
        operands.append(x)
        contract.append(c)
        batch.append(b)
    return r.emit("dot_general", *operands, contract=tuple(contract), batch=tuple(batch))


def _unpermuted(r: Rewriter, op: Op, side: int) -> tuple[Value, tuple[int, ...], tuple[int, ...]] | None:
    inner = r.producer(op.operands[side], "permute")
    if inner is None:
        return None
    perm, contract, batch = inner.attrs["perm"], op.attrs["contract"][side], op.attrs["batch"][side]
    free = [perm[a] for a in others((*contract, *batch), len(perm))]
    if free != sorted(free):
        return None
    return inner.operands[0], tuple(perm[a] for a in contract), tuple(perm[a] for a in batch)


@REDUCING.on("conv")
def conv_of_pad(r: Rewriter, op: Op) -> Rewritten:
    """Zero padding of the spatial axes is the convolution's own, and so is spreading them."""
    inner = r.producer(op.operands[0], "pad")
    if inner is None or r.uniform(inner.operands[1]) != 0:
        return None
    lo, hi, interior = (inner.attrs[k] for k in ("lo", "hi", "interior"))
    if any((*lo[:2], *hi[:2], *interior[:2])) or any(d != 1 for d in op.attrs["lhs_dilation"]):
        return None
    if 0 in inner.operands[0].type.shape:
        return None
    padding = tuple((a + p, b + q) for a, b, (p, q) in zip(lo[2:], hi[2:], op.attrs["padding"], strict=True))
    attrs = {**op.attrs, "padding": padding, "lhs_dilation": tuple(m + 1 for m in interior[2:])}
    return r.emit("conv", inner.operands[0], op.operands[1], **attrs)


# --- control flow
# ------------------------------------------------------------------------------------------------


@REDUCING.on("cond")
def cond_of_constant(r: Rewriter, op: Op) -> Rewritten:
    known = r.uniform(op.operands[0])
    if known is None:
        return None
    return r.inline(op.regions[0 if known else 1], op.operands[1:])
