"""Rewrites of nests: merge axes that memory sees as one, split the last axis of a flat nest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.codegen.loop_body import mark
from weft.codegen.loop_transpose import STRIDED
from weft.codegen.lower import Lowering
from weft.codegen.target import Target, current_target
from weft.ir.loops import (
    Accumulate,
    Affine,
    Check,
    Compute,
    Fold,
    Index,
    Load,
    Loop,
    Nest,
    Number,
    Store,
    statements,
)
from weft.ir.types import i64

LINE = 64  # bytes of a cache line, where no target says
PIECE = 512  # bytes of each row of a transposed operand read together: neighbours in one page of memory
SPREAD = 64  # units of work that pieces should leave, where they can
JAMMED = (8, 4, 2)  # rows that are walked side by side where their number allows it,
WAYS = 8  # and so many lines: those of rows whose length is a power of two share one set of the first cache
NARROW = 64  # elements of a row up to which rows are rather walked one after the other,
NARROW_ROWS = 64  # so many before their sums are written
LIGHT = 8  # most computations of such a row
STRIP = 4096  # elements of a block when a flat axis is split


def indices(body: list[Any]) -> list[Index]:
    """Every index in a body."""
    out = []
    for s in statements(body):
        if isinstance(s, (Load, Store, Affine, Accumulate)):
            out.append(s.index)
        elif isinstance(s, Loop) and s.limit is not None:
            out.append(s.limit[0])
    return out


def substitute(body: list[Any], change: Callable[[Index], Index]) -> None:
    """Apply ``change`` to every index in a body."""
    for s in statements(body):
        if isinstance(s, (Load, Store, Affine, Accumulate)):
            s.index = change(s.index)
        elif isinstance(s, Loop) and s.limit is not None:
            s.limit = (change(s.limit[0]), s.limit[1])


def coalesce(nest: Nest, low: Lowering) -> None:
    """Merge neighbouring axes, of the nest and of each loop, whose combined walk is one affine walk."""
    nest.axes = _merge(nest.axes, nest.body, low)
    for s in list(statements(nest.body)):
        if isinstance(s, Loop) and s.limit is None:
            s.axes = _merge(s.axes, s.body, low)


def _merge(axes: list[tuple[str, int]], body: list[Any], low: Lowering) -> list[tuple[str, int]]:
    out: list[tuple[str, int]] = []
    for name, extent in axes:
        if out and _one_walk(out[-1][0], name, extent, body):
            gone, before = out.pop()
            substitute(body, lambda i, gone=gone: i.without(gone))
            extent *= before
            low.ranges[name] = extent
        out.append((name, extent))
    return out


def _one_walk(outer: str, inner: str, extent: int, body: list[Any]) -> bool:
    return all(i.coefficient(outer) == i.coefficient(inner) * extent for i in indices(body))


def split_last(nest: Nest, low: Lowering) -> None:
    """Move the last axis of a nest of points into a vector loop; a long one leaves its blocks outside.

    Partial results that do not depend on the axis become folds of that loop.
    """
    var, extent = nest.axes[-1]
    inner = low.fresh("q")
    if extent > 2 * STRIP:
        loop = Loop([(inner, STRIP)], "vector", limit=(Index.var(var) * STRIP, extent))
        nest.axes[-1] = (var, -(-extent // STRIP))

        def change(i: Index) -> Index:
            c = i.coefficient(var)
            return i.without(var) + Index.var(var) * (c * STRIP) + Index.var(inner) * c if c else i
    else:
        loop = Loop([(inner, extent)], "vector")
        nest.axes.pop()

        def change(i: Index) -> Index:
            c = i.coefficient(var)
            return i.without(var) + Index.var(inner) * c if c else i

    low.ranges[inner] = loop.axes[0][1]
    low.dtypes[inner] = i64
    outside: list[Any] = []
    for s in nest.body:
        if isinstance(s, Accumulate) and not s.index.coefficient(var):
            fold = Fold(low.fresh("f"), s.op, s.source, low.dtypes[s.source])
            loop.folds.append(fold)
            outside.append(Accumulate(s.buffer, s.index, s.op, fold.name))
        else:
            loop.body.append(s)
    substitute(loop.body, change)
    nest.body = [loop, *outside]


def block_transposed(nest: Nest, low: Lowering) -> None:
    """Walk transposed operands of a lanes nest in blocks, so that each cache line is used while it is near.

    Where a load strides along the lanes but is contiguous along another axis, a block of that axis moves
    inside.
    """
    if nest.kind != "lanes" or any(isinstance(s, Loop) for s in nest.body):
        return
    lane = nest.axes[-1][0]
    for k, (var, extent) in enumerate(nest.axes[:-1]):
        sizes = [
            low.dtypes[s.name].itemsize
            for s in nest.body
            if isinstance(s, Load)
            and abs(s.index.coefficient(lane)) >= STRIDED
            and s.index.coefficient(var) == 1
        ]
        if sizes and extent > 1:
            _block(nest, low, k, _piece(nest, extent, min(sizes)))
            return


def _piece(nest: Nest, extent: int, size: int) -> int:
    """Elements of a block of an axis: a cache line at least, more where enough blocks are left."""
    target = current_target()
    nbytes = target.line_bytes if isinstance(target, Target) else LINE
    line = max(1, nbytes // size)
    spare = nest.points // nest.axes[-1][1] // SPREAD // line
    return min(extent, line * min(max(1, PIECE // nbytes), max(1, spare)))


def _block(nest: Nest, low: Lowering, k: int, size: int) -> None:
    """Split axis k into blocks of ``size`` and move the walk inside a block into the body."""
    var, extent = nest.axes[k]
    inner = low.fresh("k")
    low.ranges[inner], low.dtypes[inner] = size, i64
    limit = (Index.var(var) * size, extent) if extent % size else None

    def change(i: Index) -> Index:
        c = i.coefficient(var)
        return i.without(var) + Index.var(var) * (c * size) + Index.var(inner) * c if c else i

    substitute(nest.body, change)
    nest.axes[k] = (var, -(-extent // size))
    nest.body = [Loop([(inner, size)], "serial", nest.body, [], limit)]


def jam_rows(nest: Nest, low: Lowering) -> None:
    """Add several rows at once to column sums, so that the sums are read and written once for all of them.

    For a nest whose body is one walk over the row without folds. A block of rows of light work is walked side
    by side, folded in registers; narrow rows one after the other, many to a block.
    """
    loops = [s for s in nest.body if isinstance(s, Loop)]
    if not nest.partials or nest.kind != "rows" or len(loops) != 1 or loops[0].folds or loops[0].limit:
        return
    walk, (var, extent) = loops[0], nest.axes[-1]
    sums = [s for s in walk.body if isinstance(s, Accumulate)]
    known = (Number, Affine, Load, Compute, Check)
    plain = all(isinstance(s, known) for s in nest.body if s is not walk)
    plain &= all(isinstance(s, (*known, Store, Accumulate)) for s in walk.body)
    if not sums or not plain or any(s.index.coefficient(var) for s in sums):
        return
    light = sum(isinstance(s, Compute) for s in statements(nest.body)) <= LIGHT
    streams = sum(isinstance(s, (Load, Store)) and bool(s.index.coefficient(var)) for s in walk.body)
    fitting = (k for k in JAMMED if extent % k == 0 and k * streams <= WAYS)
    abreast = next(fitting, 1) if light else 1
    if walk.axes[-1][1] <= NARROW and len(walk.axes) == 1 and extent >= 2 * NARROW_ROWS:
        _jam(nest, low, walk, sums, NARROW_ROWS, "serial")
    elif abreast > 1:
        _jam(nest, low, walk, sums, abreast, "unroll")


def _jam(nest: Nest, low: Lowering, walk: Loop, sums: list[Accumulate], size: int, kind: str) -> None:
    var, extent = nest.axes[-1]
    inner = low.fresh("k")
    low.ranges[inner], low.dtypes[inner] = size, i64
    body = [*(s for s in nest.body if s is not walk), *(s for s in walk.body if s not in sums)]
    moving = {var}
    for s in body:
        mark(s, moving)
    block = Loop([(inner, size)], kind, [s for s in body if isinstance(s, Store) or s.name in moving])
    if extent % size:
        block.limit = (Index.var(var) * size, extent)

    def change(i: Index) -> Index:
        c = i.coefficient(var)
        return i.without(var) + Index.var(var) * (c * size) + Index.var(inner) * c if c else i

    substitute(block.body, change)
    walk.body = [*(s for s in body if not isinstance(s, Store) and s.name not in moving), block]
    for s in sums:
        fold = Fold(low.fresh("f"), s.op, s.source, low.dtypes[s.source])
        block.folds.append(fold)
        walk.body.append(Accumulate(s.buffer, s.index, s.op, fold.name))
    nest.axes[-1] = (var, -(-extent // size))
    nest.body = [walk]
