"""Rules for moves: chains composed, moves pushed towards the source. Exact to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from weft.ir.graph import Op, Value
from weft.passes.rewriting import Rewriter, Rewritten, Rules
from weft.passes.simplify_fold import same_number

SHAPE = Rules()


def long_axes(shape: Sequence[int]) -> list[int]:
    """The axes that are not of length 1."""
    return [i for i, d in enumerate(shape) if d != 1]


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(d for d in shape if d != 1)


def extent(n: int, step: int) -> int:
    """What ``n`` elements ``step`` apart span."""
    return n and (n - 1) * step + 1


@SHAPE.on("reshape")
def reshape_of_reshape(r: Rewriter, op: Op) -> Rewritten:
    x = r.operand_of(op.operands[0], "reshape")
    return None if x is None else r.reshape(x, op.attrs["shape"])


@SHAPE.on("reshape")
def reshape_of_broadcast(r: Rewriter, op: Op) -> Rewritten:
    """Where only axes of length 1 come or go, or one element is spread."""
    inner = r.producer(op.operands[0], "broadcast")
    if inner is None:
        return None
    x, shape = inner.operands[0], op.attrs["shape"]
    if x.type.size == 1:
        return r.emit("broadcast", r.reshape(x, ()), shape=shape, axes=())
    old = inner.attrs["shape"]
    if squeezed(old) != squeezed(shape):
        return None
    place = dict(zip(long_axes(old), long_axes(shape), strict=True))
    axes = tuple(place[a] for d, a in zip(x.type.shape, inner.attrs["axes"], strict=True) if d != 1)
    return r.emit("broadcast", r.reshape(x, squeezed(x.type.shape)), shape=shape, axes=axes)


@SHAPE.on("permute")
def permute_of_permute(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "permute")
    if inner is None:
        return None
    return r.emit("permute", inner.operands[0], perm=tuple(inner.attrs["perm"][p] for p in op.attrs["perm"]))


@SHAPE.on("permute")
def permute_of_broadcast(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "broadcast")
    if inner is None:
        return None
    perm = op.attrs["perm"]
    place = [perm.index(a) for a in inner.attrs["axes"]]
    order = sorted(range(len(place)), key=place.__getitem__)
    x = r.emit("permute", inner.operands[0], perm=tuple(order))
    return r.emit("broadcast", x, shape=op.result.type.shape, axes=tuple(sorted(place)))


@SHAPE.on("permute")
def permute_without_units(r: Rewriter, op: Op) -> Rewritten:
    """Axes of length 1 go into reshapes around a permutation of the others."""
    x, perm = op.operands[0], op.attrs["perm"]
    long = long_axes(x.type.shape)
    if len(long) == x.type.ndim:
        return None
    order = tuple(long.index(p) for p in perm if x.type.shape[p] != 1)
    moved = r.emit("permute", r.reshape(x, squeezed(x.type.shape)), perm=order)
    return r.reshape(moved, op.result.type.shape)


@SHAPE.on("permute")
def permute_of_product(r: Rewriter, op: Op) -> Rewritten:
    """A transposed contraction is the contraction of the operands the other way round."""
    dot = r.producer(op.operands[0], "dot_general")
    if dot is None:
        return None
    (a, b), contract, batch = dot.operands, dot.attrs["contract"], dot.attrs["batch"]
    nb = len(batch[0])
    na = a.type.ndim - nb - len(contract[0])
    n = dot.result.type.ndim
    if tuple(op.attrs["perm"]) != (*range(nb), *range(nb + na, n), *range(nb, nb + na)):
        return None
    return r.emit("dot_general", b, a, contract=contract[::-1], batch=batch[::-1])


@SHAPE.on("broadcast")
def broadcast_of_broadcast(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "broadcast")
    if inner is None:
        return None
    axes = tuple(op.attrs["axes"][a] for a in inner.attrs["axes"])
    return r.emit("broadcast", inner.operands[0], shape=op.attrs["shape"], axes=axes)


@SHAPE.on("slice")
def slice_of_slice(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "slice")
    if inner is None:
        return None
    first, steps = inner.attrs["start"], inner.attrs["step"]
    sizes = op.result.type.shape
    start = tuple(a + s * b if n else 0 for a, s, b, n in _each(first, steps, op.attrs["start"], sizes))
    step = tuple(a * b for a, b in _each(steps, op.attrs["step"]))
    stop = tuple(a + extent(n, s) for a, s, n in _each(start, step, sizes))
    return r.emit("slice", inner.operands[0], start=start, stop=stop, step=step)


@SHAPE.on("slice")
def slice_of_permute(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "permute")
    if inner is None:
        return None
    perm = inner.attrs["perm"]
    back = [perm.index(i) for i in range(len(perm))]
    start, stop, step = (tuple(op.attrs[k][i] for i in back) for k in ("start", "stop", "step"))
    kept = r.emit("slice", inner.operands[0], start=start, stop=stop, step=step)
    return r.emit("permute", kept, perm=perm)


@SHAPE.on("slice")
def slice_of_reshape(r: Rewriter, op: Op) -> Rewritten:
    """Where each axis of the operand stays one, or is split and cut along the first part only."""
    inner = r.producer(op.operands[0], "reshape")
    if inner is None or op.result.type.size == 0:
        return None
    x, new = inner.operands[0], inner.result.type.shape
    groups = _splits(x.type.shape, new)
    if groups is None:
        return None
    start, stop, step = [], [], []
    for d, group in zip(x.type.shape, groups, strict=True):
        cut = [i for i in group if op.result.type.shape[i] != new[i]]
        if not cut:
            start, stop, step = [*start, 0], [*stop, d], [*step, 1]
            continue
        i, rest = cut[0], prod(new[j] for j in group if j > cut[0])
        before = prod(new[j] for j in group if j < cut[0])
        if len(cut) > 1 or before != 1 or (rest != 1 and op.attrs["step"][i] != 1):
            return None
        start, stop = [*start, op.attrs["start"][i] * rest], [*stop, op.attrs["stop"][i] * rest]
        step.append(op.attrs["step"][i])
    kept = r.emit("slice", x, start=tuple(start), stop=tuple(stop), step=tuple(step))
    return r.reshape(kept, op.result.type.shape)


def _splits(old: Sequence[int], new: Sequence[int]) -> list[list[int]] | None:
    """For each axis of ``old`` the axes of ``new`` that it was split into; None where axes were merged."""
    groups: list[list[int]] = []
    i = 0
    for d in old:
        group: list[int] = []
        size = 1
        while i < len(new) and size < d:
            group.append(i)
            size *= new[i]
            i += 1
        if size != d:
            return None
        groups.append(group)
    if any(new[j] != 1 for j in range(i, len(new))):
        return None
    return groups


def _each(*sequences: Sequence[int]):
    return zip(*sequences, strict=True)


@SHAPE.on("slice")
def slice_of_broadcast(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "broadcast")
    if inner is None:
        return None
    x, axes = inner.operands[0], inner.attrs["axes"]
    start, stop, step = [0] * x.type.ndim, list(x.type.shape), [1] * x.type.ndim
    for i, (d, a) in enumerate(zip(x.type.shape, axes, strict=True)):
        if d != 1 or inner.attrs["shape"][a] == 1:
            start[i], stop[i], step[i] = (op.attrs[k][a] for k in ("start", "stop", "step"))
    kept = r.emit("slice", x, start=tuple(start), stop=tuple(stop), step=tuple(step))
    return r.emit("broadcast", kept, shape=op.result.type.shape, axes=axes)


@SHAPE.on("slice")
def slice_of_concatenate(r: Rewriter, op: Op) -> Rewritten:
    """Where it reads one of the operands only."""
    inner = r.producer(op.operands[0], "concatenate")
    if inner is None or op.result.type.size == 0:
        return None
    axis, at = inner.attrs["axis"], 0
    start, step = op.attrs["start"], op.attrs["step"]
    last = start[axis] + extent(op.result.type.shape[axis], step[axis])
    for x in inner.operands:
        n = x.type.shape[axis]
        if at <= start[axis] and last <= at + n:
            return r.emit("slice", x, start=_set(start, axis, start[axis] - at), step=step,
                          stop=_set(op.attrs["stop"], axis, last - at))  # fmt: skip
        at += n
    return None


def _set(values: Sequence[int], i: int, value: int) -> tuple[int, ...]:
    return (*values[:i], value, *values[i + 1 :])


@SHAPE.on("slice")
def slice_of_pad(r: Rewriter, op: Op) -> Rewritten:
    """Where no padding is read: the edges are cut off again, or the elements between."""
    inner = r.producer(op.operands[0], "pad")
    if inner is None:
        return None
    x = inner.operands[0]
    start, stop, steps = [], [], []
    sizes = zip(x.type.shape, op.result.type.shape, strict=True)
    for i, (d, n) in enumerate(sizes):
        step, gap = op.attrs["step"][i], inner.attrs["interior"][i] + 1
        first = op.attrs["start"][i] - inner.attrs["lo"][i]
        if first < 0 or first % gap or (n > 1 and step % gap):
            return None
        step = step // gap if n > 1 else 1
        last = first // gap + extent(n, step)
        if last > d:
            return None
        start.append(first // gap)
        stop.append(last)
        steps.append(step)
    if op.result.type.size == 0:
        return None
    return r.emit("slice", x, start=tuple(start), stop=tuple(stop), step=tuple(steps))


@SHAPE.on("slice")
def slice_of_update(r: Rewriter, op: Op) -> Rewritten:
    """Reading back exactly what was written, or something that was not touched."""
    inner = r.producer(op.operands[0], "update_slice")
    if inner is None:
        return None
    x, upd = inner.operands
    if _same_region(op, inner):
        return upd
    start, shape, step = op.attrs["start"], op.result.type.shape, op.attrs["step"]
    for i, n in enumerate(upd.type.shape):
        low, high = inner.attrs["start"][i], inner.attrs["start"][i] + extent(n, inner.attrs["step"][i])
        if start[i] + extent(shape[i], step[i]) <= low or high <= start[i]:
            return r.emit("slice", x, **op.attrs)
    return None


def _same_region(read: Op, written: Op) -> bool:
    """Whether a slice reads what an update_slice wrote."""
    shape = written.operands[1].type.shape
    if read.result.type.shape != shape or read.attrs["start"] != written.attrs["start"]:
        return False
    return all(
        a == b or n <= 1 for a, b, n in zip(read.attrs["step"], written.attrs["step"], shape, strict=True)
    )


@SHAPE.on("update_slice")
def update_of_everything(r: Rewriter, op: Op) -> Rewritten:
    x, upd = op.operands
    if upd.type.size == 0:
        return x
    return upd if upd.type == x.type else None


@SHAPE.on("update_slice")
def update_written_over(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "update_slice")
    if inner is None or inner.operands[1].type != op.operands[1].type or inner.attrs != op.attrs:
        return None
    return r.emit("update_slice", inner.operands[0], op.operands[1], **op.attrs)


@SHAPE.on("update_slice")
def update_with_what_was_there(r: Rewriter, op: Op) -> Rewritten:
    x, upd = op.operands
    read = r.producer(upd, "slice")
    return x if read is not None and read.operands[0] is x and _same_region(read, op) else None


@SHAPE.on("pad")
def pad_of_pad(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "pad")
    if inner is None or any(op.attrs["interior"]) or not _same_value(r, inner.operands[1], op.operands[1]):
        return None
    lo, hi = (tuple(a + b for a, b in _each(inner.attrs[k], op.attrs[k])) for k in ("lo", "hi"))
    return r.emit("pad", inner.operands[0], op.operands[1], lo=lo, hi=hi, interior=inner.attrs["interior"])


def _same_value(r: Rewriter, a: Value, b: Value) -> bool:
    if a is b:
        return True
    x, y = r.uniform(a), r.uniform(b)
    return x is not None and y is not None and same_number(x, y)


@SHAPE.on("flip")
def flip_of_flip(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "flip")
    if inner is None:
        return None
    axes = tuple(sorted(set(inner.attrs["axes"]) ^ set(op.attrs["axes"])))
    return r.emit("flip", inner.operands[0], axes=axes) if axes else inner.operands[0]


@SHAPE.on("scatter", "scatter_along")
def scatter_of_nothing(r: Rewriter, op: Op) -> Rewritten:
    return op.operands[0] if op.operands[2].type.size == 0 and op.operands[1].type.size == 0 else None


@SHAPE.on("gather")
def gather_of_one_row(r: Rewriter, op: Op) -> Rewritten:
    """A uniform constant index that is in range reads one slice."""
    (x, index), axes = op.operands, op.attrs["axes"]
    i = r.uniform(index)
    if i is None or not axes or prod(index.type.shape[:-1]) != 1:
        return None
    shape = x.type.shape
    if not all(0 <= i < shape[a] for a in axes):
        return None
    start = tuple(i if a in axes else 0 for a in range(x.type.ndim))
    stop = tuple(i + 1 if a in axes else d for a, d in enumerate(shape))
    row = r.emit("slice", x, start=start, stop=stop, step=(1,) * x.type.ndim)
    return r.reshape(row, op.result.type.shape)


def counts_rows(r: Rewriter, index: Value) -> bool:
    """Whether an index [n, 1] is 0, 1 ... n - 1."""
    made = r.producer(index)
    if made is not None and made.prim.name == "reshape":
        made = r.producer(made.operands[0])
    shape = index.type.shape
    if made is None or made.prim.name != "iota" or len(shape) != 2 or shape[1] != 1:
        return False
    counted = made.result.type.shape
    return counted[made.attrs["axis"]] == shape[0]


@SHAPE.on("gather")
def gather_in_order(r: Rewriter, op: Op) -> Rewritten:
    """The first n rows are a slice."""
    (x, index), axes = op.operands, op.attrs["axes"]
    if axes != (0,) or not counts_rows(r, index) or index.type.shape[0] > x.type.shape[0]:
        return None
    stop = (index.type.shape[0], *x.type.shape[1:])
    return r.emit("slice", x, start=(0,) * x.type.ndim, stop=stop, step=(1,) * x.type.ndim)


@SHAPE.on("scatter")
def scatter_in_order(r: Rewriter, op: Op) -> Rewritten:
    """Writing or adding to the first n rows is a static write."""
    (x, index, update), axes, mode = op.operands, op.attrs["axes"], op.attrs["mode"]
    if axes != (0,) or mode not in ("set", "add") or not counts_rows(r, index):
        return None
    if index.type.shape[0] > x.type.shape[0]:
        return None
    start, step = (0,) * x.type.ndim, (1,) * x.type.ndim
    if mode == "add":
        update = r.emit("add", r.emit("slice", x, start=start, stop=update.type.shape, step=step), update)
    return r.emit("update_slice", x, update, start=start, step=step)
