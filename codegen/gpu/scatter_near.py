"""A scatter whose items go into the windows that they stand for, as the gradient of max-pooling.

Nothing is sorted and nothing added in memory: a thread for each element asks the few windows that cover it
whether their item goes there, in program order, so that results are the same in every run.
"""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.writer import DeviceWriter, load_value, store_value
from weft.ir import types as T
from weft.ir.graph import Op
from weft.ir.types import f32, i64

Near = tuple[tuple[int, ...], ...]
_MOST = 64  # windows that a thread asks


def emit_near(w: DeviceWriter, scatter: Op, fill: float | None) -> str:
    """One launch for a ``scatter`` with ``near`` into its first operand, or into elements ``fill``."""
    near, mode = scatter.attrs["near"], scatter.attrs["mode"]
    x, index, updates = scatter.operands
    dtype = x.type.dtype
    carried = f32 if dtype.is_floating_point and dtype.bits == 16 else dtype
    slots = (w.operand(index), w.operand(updates), w.result(0))
    slots = slots if fill is not None else (*slots, w.operand(x))
    with w.each(slots, x.type.size) as (fn, number):
        b = w.builder(fn)
        old = b.const(fill, dtype) if fill is not None else load_value(fn, b, "%a3", number, dtype)
        total = b.convert(old, carried)
        last = _last_windows(fn, number, near)
        for back in _covering(near):
            window, ok = _window(fn, last, back, near)
            at = fn.op(f"select i1 {ok}, i64 {window}, i64 0")
            goes = b.convert(load_value(fn, b, "%a0", at, index.type.dtype), i64)
            mine = fn.op(f"and i1 {ok}, {fn.op(f'icmp eq i64 {goes.text}, {number}')}")
            update = b.convert(load_value(fn, b, "%a1", at, dtype), carried)
            new = update if mode == "set" else b.binary(mode, total, update)
            new = b.convert(b.convert(new, dtype), carried)  # halves are rounded at every step
            total = b.select(Reg(mine, T.bool_, 0, fn.depth), new, total)
        store_value(fn, b.convert(total, dtype), "%a2", number, dtype)
    return f"a thread asks {len(_covering(near))} windows"


def _last_windows(fn: DeviceFunction, number: Ix, near: Near) -> list[Ix]:
    """By dimension the last window that may cover an element (or one behind the last)."""
    coords = fn.split(number, [n for n, *_ in near])
    return [fn.div(fn.add(c, lo), s) for c, (_, _, _, s, lo, _) in zip(coords, near, strict=True)]


def _covering(near: Near) -> list[tuple[int, ...]]:
    """How many windows before the last ones those that may cover an element are, in program order."""
    counts = [min(m, (k - 1) * d // s + 1) for _, m, k, s, _, d in near]
    out: list[tuple[int, ...]] = [()]
    for count in counts:
        out = [(*before, back) for before in out for back in reversed(range(count))]
    return out


def _window(
    fn: DeviceFunction, last: list[Ix], back: tuple[int, ...], near: Near
) -> tuple[Ix, str]:
    """The number of a window, and the i1 that there is one."""
    flat: Ix = 0
    ok = "true"
    for at, before, (n, m, _, s, lo, _) in zip(last, back, near, strict=True):
        place = fn.sub(at, before)
        flat = fn.add(fn.mul(flat, m), place)
        if before or (n - 1 + lo) // s >= m:
            inside = fn.op(f"icmp ult i64 {place}, {m}")
            ok = inside if ok == "true" else fn.op(f"and i1 {ok}, {inside}")
    return flat, ok


def suits(near: Near) -> bool:
    """True where few windows cover an element, and none reaches before the first by a negative offset."""
    return bool(near) and len(_covering(near)) <= _MOST and all(lo >= 0 for _, _, _, _, lo, _ in near)
