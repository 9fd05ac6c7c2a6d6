"""How a value lies in the memory of another: index moves as an offset and strides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from weft.ir.graph import Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import record, replace

Ints = tuple[int, ...]


@record(frozen=True)
class Access:
    """Element number ``offset + sum(coordinate * stride)`` of the kernel parameter ``param``.

    ``pure`` is False where maps are applied on the way: then it tells only which way memory runs.
    """

    param: Value
    offset: int
    strides: Ints
    pure: bool = True


def row_major(shape: Sequence[int]) -> Ints:
    """Element strides of a contiguous array."""
    out, n = [], 1
    for d in reversed(shape):
        out.append(n)
        n *= d
    return tuple(reversed(out))


def access_of(v: Value, producers: Mapping[Value, Op]) -> Access | None:
    """The access of a value through index moves (and, impurely, through maps); None where none is affine."""
    return _access(v, producers, {})


def _access(v: Value, producers: Mapping[Value, Op], known: dict[Value, Access | None]) -> Access | None:
    """``access_of``; the values of ``known`` were looked at before: each is, once."""
    if v not in known:
        known[v] = _through(v, producers.get(v), producers, known)
    return known[v]


def _through(
    v: Value, op: Op | None, producers: Mapping[Value, Op], known: dict[Value, Access | None]
) -> Access | None:
    if op is None:
        return Access(v, 0, row_major(v.type.shape))
    if op.prim.kind is Kind.MAP:
        found = [a for a in (_access(x, producers, known) for x in op.operands) if a is not None]
        return replace(max(found, key=lambda a: a.param.type.size), pure=False) if found else None
    if op.prim.kind is Kind.MOVE and op.prim.name in _STEPS:
        inner = _access(op.operands[0], producers, known)
        return None if inner is None else _STEPS[op.prim.name](inner, op)
    return None


def _permute(a: Access, op: Op) -> Access:
    return replace(a, strides=tuple(a.strides[p] for p in op.attrs["perm"]))


def _broadcast(a: Access, op: Op) -> Access:
    strides = [0] * len(op.attrs["shape"])
    for d, s, axis in zip(op.operands[0].type.shape, a.strides, op.attrs["axes"], strict=True):
        strides[axis] = 0 if d == 1 else s
    return replace(a, strides=tuple(strides))


def _slice(a: Access, op: Op) -> Access:
    start, step = op.attrs["start"], op.attrs["step"]
    offset = a.offset + sum(s * b for s, b in zip(a.strides, start, strict=True))
    return replace(a, offset=offset, strides=tuple(s * k for s, k in zip(a.strides, step, strict=True)))


def _flip(a: Access, op: Op) -> Access:
    shape, axes = op.result.type.shape, op.attrs["axes"]
    offset = a.offset + sum((shape[i] - 1) * a.strides[i] for i in axes)
    return replace(a, offset=offset, strides=tuple(-s if i in axes else s for i, s in enumerate(a.strides)))


def _reshape(a: Access, op: Op) -> Access | None:
    strides = reshaped_strides(op.operands[0].type.shape, a.strides, op.result.type.shape)
    return None if strides is None else replace(a, strides=strides)


def reshaped_strides(old: Ints, strides: Ints, new: Ints) -> Ints | None:
    """The strides of a view of another shape, or None where a copy is needed.

    >>> reshaped_strides((2, 3, 4), (12, 4, 1), (6, 4))
    (4, 1)
    >>> reshaped_strides((3, 2), (1, 3), (6,)) is None
    True
    """
    kept = [(d, s) for d, s in zip(old, strides, strict=True) if d != 1]
    out: list[int] = []
    i = j = 0
    while j < len(new):
        if new[j] == 1:
            out.append(0)
            j += 1
            continue
        i0, j0, a, b = i, j, kept[i][0], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * kept[i][0], i + 1
            else:
                b, j = b * new[j], j + 1
        group = collapse([d for d, _ in kept[i0:i]], [s for _, s in kept[i0:i]])
        if group is None:
            return None
        out.extend(s * group for s in row_major(new[j0:j]))
    return tuple(out)


_STEPS: dict[str, Callable[[Access, Op], Access | None]] = {
    "permute": _permute, "broadcast": _broadcast, "slice": _slice, "flip": _flip, "reshape": _reshape,
    "copy": lambda a, op: a,
}  # fmt: skip


def collapse(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride with which several dimensions run as one, or None where they do not."""
    found: int | None = None
    extent = 1
    for d, s in zip(reversed(sizes), reversed(strides), strict=True):
        if d == 1:
            continue
        if found is None:
            found = s
        elif s != found * extent:
            return None
        extent *= d
    return 0 if found is None else found


def merge(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """The fewest (size, stride) pairs that walk the same elements; none for a single element."""
    out: list[tuple[int, int]] = []
    for d, s in zip(sizes, strides, strict=True):
        if d == 1:
            continue
        if out and out[-1][1] == s * d:
            out[-1] = (out[-1][0] * d, s)
        else:
            out.append((d, s))
    return out
