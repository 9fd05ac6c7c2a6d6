"""Copies between arrays of any strides, by one generated kernel for each number of axes and size of element.

Shapes and strides are parameters of the kernel, so that a new layout compiles nothing. Axes that lie as one
on both sides are merged first.
"""

from __future__ import annotations

import struct
from typing import Any

from weft.codegen.gpu.target import GpuTarget
from weft.ir.record import record
from weft.runtime import stats
from weft.runtime.cache import disk_cache, key_of
from weft.runtime.cuda.stream import stream_of

_BLOCK = 256
_NAME = "weft_strided_copy"


@record(frozen=True)
class Axes:
    """Extents and strides (target, source) of a copy, the outermost axis first; the size of an element."""

    shape: tuple[int, ...]
    to: tuple[int, ...]
    of: tuple[int, ...]
    itemsize: int


def merged_axes(shape: tuple[int, ...], to: tuple[int, ...], of: tuple[int, ...], itemsize: int) -> Axes:
    """The axes of a copy in the order of the target's memory, neighbours that lie as one merged."""
    if itemsize == 16:  # as two words
        shape, to, of, itemsize = (*shape, 2), (*to, 8), (*of, 8), 8
    axes = [a for a in zip(shape, to, of, strict=True) if a[0] != 1]
    axes.sort(key=lambda a: -abs(a[1]))
    out: list[tuple[int, int, int]] = []
    for n, t, s in axes:
        if out and out[-1][1] == n * t and out[-1][2] == n * s:
            out[-1] = (out[-1][0] * n, t, s)
        else:
            out.append((n, t, s))
    columns = list(zip(*out, strict=True)) or [(), (), ()]
    return Axes(columns[0], columns[1], columns[2], itemsize)


def kernel_text(ndim: int, itemsize: int, wide: bool, target: GpuTarget) -> str:
    """The LLVM module of the kernel; ``wide`` counts elements in 64 bits.

    ``@weft_strided_copy(ptr to, ptr of, i64 n, then an extent, a stride of the target and one of the source
    for each axis)``; each thread copies one element.
    """
    t = "i64" if wide else "i32"
    axes = "".join(f", i64 %n{k}, i64 %t{k}, i64 %s{k}" for k in range(ndim))
    lines = [
        f'target triple = "{target.triple}"',
        f"define ptx_kernel void @{_NAME}(ptr %to, ptr %of, i64 %n{axes}) #0 {{",
        "  %b = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()",
        "  %w = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()",
        "  %b64 = zext i32 %b to i64",
        "  %w64 = zext i32 %w to i64",
        f"  %first = mul i64 %b64, {_BLOCK}",
        "  %i = add i64 %first, %w64",
        "  %inside = icmp slt i64 %i, %n",
        "  br i1 %inside, label %copy, label %done",
        "copy:",
        f"  %r{ndim} = {'add i64 %i, 0' if wide else 'trunc i64 %i to i32'}",
        f"  %to{ndim} = getelementptr i8, ptr %to, i64 0",
        f"  %of{ndim} = getelementptr i8, ptr %of, i64 0",
    ]
    for k in reversed(range(ndim)):
        lines += [
            f"  %m{k} = {f'add i64 %n{k}, 0' if wide else f'trunc i64 %n{k} to i32'}",
            f"  %r{k} = udiv {t} %r{k + 1}, %m{k}",
            f"  %p{k} = mul {t} %r{k}, %m{k}",
            f"  %q{k} = sub {t} %r{k + 1}, %p{k}",
            f"  %c{k} = {f'add i64 %q{k}, 0' if wide else f'zext i32 %q{k} to i64'}",
            f"  %x{k} = mul i64 %c{k}, %t{k}",
            f"  %y{k} = mul i64 %c{k}, %s{k}",
            f"  %to{k} = getelementptr i8, ptr %to{k + 1}, i64 %x{k}",
            f"  %of{k} = getelementptr i8, ptr %of{k + 1}, i64 %y{k}",
        ]
    bits = f"i{8 * itemsize}"
    lines += [
        f"  %v = load {bits}, ptr %of0, align {itemsize}",
        f"  store {bits} %v, ptr %to0, align {itemsize}",
        "  br label %done",
        "done:",
        "  ret void",
        "}",
        "declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()",
        "declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()",
        target.attributes,
        "",
    ]
    return "\n".join(lines)


def _ptx(ndim: int, itemsize: int, wide: bool, target: GpuTarget) -> str:
    """The PTX of the kernel, from the disk cache where it is there."""
    text, store = kernel_text(ndim, itemsize, wide, target), disk_cache()
    key = key_of("gpu module", repr(target), text)
    found = store.load(key) if store else None
    if found is not None:
        return found.decode()
    from weft.runtime.cuda.ptx import compile_ptx

    ptx = compile_ptx(text, target)
    if store:
        store.store(key, ptx.encode())
    return ptx


def _function(state: Any, axes: Axes, wide: bool) -> int:
    key = ("strided", len(axes.shape), axes.itemsize, wide)
    found = state.functions.get(key)
    if found is None:
        module = state.driver.load(_ptx(len(axes.shape), axes.itemsize, wide, state.target).encode())
        found = state.functions[key] = state.driver.function(module, _NAME)
    return found


def strided_copy(target: Any, source: Any) -> None:
    """Copy the elements of one DeviceArray into another of the same device, shape and dtype, on the current
    stream. Elements that lie on one another in the target get one of the values."""
    axes = merged_axes(target.shape, target.strides, source.strides, target.itemsize)
    n = target.size * (target.itemsize // axes.itemsize)
    state = target.state
    state.activate()
    function = _function(state, axes, n >= 1 << 31)
    words = [target.address, source.address, n]
    for column in zip(axes.shape, axes.to, axes.of, strict=True):
        words += column
    stats.count("device_launches")
    data = struct.pack(f"{len(words)}q", *words)
    stream = stream_of(state).cuda_stream
    state.driver.launch(function, (-(-n // _BLOCK), 1, 1), (_BLOCK, 1, 1), 0, stream, data)
