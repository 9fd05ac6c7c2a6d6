"""Few long rows: a kernel that would leave most of the machine idle, computed in waves over all of it.

A nest of rows gives each row a block at most. Where there are few rows, and they are long, what fusion joined
is cut again at the reductions: each becomes partial results of all multiprocessors and a second launch, as
the sum of a whole array is, and what follows reads the operands again. The place of an extreme is that of the
extremes of parts of the row: the first part that has it (or NaN) wins.
"""

from __future__ import annotations

from math import prod
from typing import Any

from weft.codegen.gpu.target import WARP, GpuTarget
from weft.codegen.schedule import Scheduler
from weft.codegen.shape import Shape
from weft.ir import prims as P
from weft.ir.graph import Graph, Op, Value
from weft.ir.loops import Buffer, Kernel, Loop, Nest, statements
from weft.ir.prims.base import Kind, trace
from weft.ir.types import DType, bool_, i64

LONG = 1 << 15  # elements of a row from which one block for it takes longer than some more launches
_PART = 1 << 10  # least elements of a part of a row
_SPREAD = 16  # parts of all rows for each multiprocessor
_ARGUMENTS = ("argmax", "argmin")


def starved(kernel: Kernel, target: GpuTarget) -> bool:
    """True where a nest has rows for less than half the multiprocessors, and long ones."""
    few = target.multiprocessors // 2
    return any(
        nest.points <= few * (1 if nest.kind == "rows" else WARP) and _row(nest) >= LONG
        for nests in kernel.phases
        for nest in nests
        if not nest.partials
    )


def _row(nest: Nest) -> int:
    loops = [s for s in statements(nest.body) if isinstance(s, Loop)]
    return max((prod(n for _, n in loop.axes) for loop in loops), default=1)


def schedule_waves(region: Graph, name: str, shape: Shape, target: GpuTarget) -> Kernel:
    """The same kernel in waves. Raises Unsupported."""
    return _Waves(_split_arguments(region, target), name, shape).build()


# -- waves


def _cuts(op: Op) -> bool:
    """True for reductions that are launches of their own."""
    if op.prim.kind is not Kind.REDUCE:
        return False
    size = op.operands[0].type.size
    return size >= LONG and size >= _PART // 4 * op.result.type.size


class _Waves(Scheduler):
    """Schedules the reductions that need nothing of others, then those that need the first, and so on."""

    def build(self) -> Kernel:
        whole, results = self.region, dict(self.stores)
        phases: list[list[Nest]] = []
        for outputs in _outputs(whole):
            self.stores = {v: [*results.get(v, []), *self._kept(whole, v)] for v in outputs}
            self.region = Graph(whole.params, _needed(whole, outputs, self.named), outputs)
            self.first, self.second = [], []
            for group in self._groups():
                self._nest(group)
            phases += [nests for nests in (self.first, self.second) if nests]
            for v in outputs:
                kept = [n for n in self.stores[v] if n.startswith("kept")]
                if kept:
                    self.named[v] = kept[0]
                    self.producers = {x: op for x, op in self.producers.items() if x is not v}
        return Kernel(self.name, self.buffers, phases)

    def _kept(self, whole: Graph, v: Value) -> list[str]:
        """Scratch memory for a value that later waves read."""
        if not any(v in op.operands for op in whole.ops):
            return []
        name = f"kept{len(self.buffers)}"
        self.buffers.append(Buffer(name, v.type.dtype, v.type.size, "scratch"))
        return [name]


def _outputs(graph: Graph) -> list[list[Value]]:
    """By wave what is stored: reductions of long rows, and results when what they need is known.

    Results of the size of a reduction's come before all that could have them computed by row.
    """
    wave: dict[Value, int] = {}
    found: dict[tuple[int, bool], list[Value]] = {}
    for op in graph.ops:
        before = max((wave.get(x, 0) for x in op.operands), default=0)
        cuts = _cuts(op)
        for r in op.results:
            wave[r] = before + cuts
            if cuts or r in graph.results:
                found.setdefault((before, cuts or r.type.size >= LONG), []).append(r)
    return [found[k] for k in sorted(found)]


def _needed(graph: Graph, outputs: list[Value], known: dict[Value, str]) -> list[Op]:
    """What computes ``outputs`` from what is known, in program order."""
    makers = graph.producers()
    found: set[Op] = set()
    stack = list(outputs)
    while stack:
        v = stack.pop()
        op = makers.get(v)
        if op is not None and op not in found and v not in known:
            found.add(op)
            stack += op.operands
    return [op for op in graph.ops if op in found]


# -- places of extremes


def _splits(op: Op) -> bool:
    """True for places of extremes in long rows."""
    return op.prim.name in _ARGUMENTS and op.operands[0].type.size >= LONG * op.result.type.size


def _split_arguments(region: Graph, target: GpuTarget) -> Graph:
    """The region with every argmax and argmin of long rows computed by parts of the rows."""
    if not any(_splits(op) for op in region.ops):
        return region

    def again(*xs: Any) -> list[Any]:
        env = dict(zip(region.params, xs, strict=True))
        for op in region.ops:
            operands = [env[x] for x in op.operands]
            if _splits(op):
                out = _argument(operands[0], op, target)
            else:
                out = op.prim.bind(*operands, **op.attrs)
            env.update(zip(op.results, out if isinstance(out, (tuple, list)) else [out], strict=True))
        return [env[r] for r in region.results]

    return trace(again, *[p.type for p in region.params])


def _argument(x: Any, op: Op, target: GpuTarget) -> Any:
    largest = op.prim.name == "argmax"
    t, axis = op.operands[0].type, op.attrs["axis"]
    extreme = P.reduce_max_p if largest else P.reduce_min_p
    n = t.shape[axis]
    inner = prod(t.shape[axis + 1 :])
    parts = _parts(n, t.size // (n * inner) * -(-inner // WARP), target)
    length = -(-n // parts)
    if parts * length > n:
        x = _padded(x, t.shape, axis, parts * length - n, _worst(t.dtype, largest), t.dtype)
    split = (*t.shape[:axis], parts, length, *t.shape[axis + 1 :])
    small = (*split[: axis + 1], *split[axis + 2 :])
    x = P.reshape_p.bind(x, shape=split)
    best = extreme.bind(x, axes=(axis + 1,))
    place = op.prim.bind(x, axis=axis + 1)
    first = P.iota_p.bind(shape=small, dtype=i64, axis=axis)
    place = P.add_p.bind(place, P.mul_p.bind(first, P.full_p.bind(shape=small, dtype=i64, value=length)))
    kept = tuple(i for i in range(len(small)) if i != axis)
    top = P.broadcast_p.bind(extreme.bind(best, axes=(axis,)), axes=kept, shape=small)
    chosen = P.eq_p.bind(best, top)
    if t.dtype.is_floating_point:  # where there is NaN, nothing equals the largest
        chosen = P.bit_or_p.bind(chosen, P.ne_p.bind(best, best))
    none = P.full_p.bind(shape=small, dtype=i64, value=n)
    return P.reduce_min_p.bind(P.where_p.bind(chosen, place, none), axes=(axis,))


def _parts(n: int, rows: int, target: GpuTarget) -> int:
    """Into how many parts rows are cut: near what fills the machine, equal ones where there are such."""
    wanted = max(2, min(-(-target.multiprocessors * _SPREAD // max(rows, 1)), n // _PART))
    near = [p for p in range(max(2, wanted // 2), 2 * wanted) if n % p == 0]
    return min(near, key=lambda p: abs(p - wanted)) if near else wanted


def _padded(x: Any, shape: tuple[int, ...], axis: int, count: int, value: Any, dtype: DType) -> Any:
    none = (0,) * len(shape)
    hi = tuple(count if i == axis else 0 for i in range(len(shape)))
    fill = P.full_p.bind(shape=(), dtype=dtype, value=value)
    return P.pad_p.bind(x, fill, lo=none, hi=hi, interior=none)


def _worst(dtype: DType, largest: bool) -> Any:
    """What no element loses to: an earlier one that is equal wins."""
    if dtype is bool_:
        return not largest
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    bits = dtype.bits - (dtype.category == "int")
    low = -(1 << bits) if dtype.category == "int" else 0
    return low if largest else (1 << bits) - 1
