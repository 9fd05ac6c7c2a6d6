"""Elementwise kernels for any size: compiled for one block of elements, run over all blocks in parallel.

A map of contiguous operands needs no shape: its graph is compiled for ``BLOCK`` elements, and a native loop
calls that code with the pointers moved from block to block. The last block ends where the operands end and
may overlap the one before: what it writes again is the same, as results never share memory with operands.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from math import prod

import numpy as np
from weft.codegen.entry import CHUNK_NS, INLINE_NS
from weft.codegen.target import host_target
from weft.ir.graph import Graph
from weft.runtime import buffers, jit, stats, threads
from weft.runtime import cache as disk
from weft.runtime.executable import Executable

BLOCK = 2048  # elements; a multiple of every vector
USES = 2  # of one size before it is worth code of its own
MOST = 16  # operands and results

_HEAD = 6  # words of a job before its pointers
_TEXT = """
declare void @weft_parallel_for(ptr, ptr, i64, i64)

; job: entry, pointers, elements, elements of a block, blocks, grain, then pointers and bytes per element
define void @weft_blocks(ptr %job) {
  %units.at = getelementptr i64, ptr %job, i64 4
  %units = load i64, ptr %units.at
  %grain.at = getelementptr i64, ptr %job, i64 5
  %grain = load i64, ptr %grain.at
  call void @weft_parallel_for(ptr @body, ptr %job, i64 %units, i64 %grain)
  ret void
}

define internal void @body(ptr %job, i64 %begin, i64 %end, i64 %thread) {
start:
  %block = alloca [24 x ptr], align 16
  %status = alloca i64, align 8
  store i64 0, ptr %status
  %entry = load ptr, ptr %job
  %n.at = getelementptr i64, ptr %job, i64 1
  %n = load i64, ptr %n.at
  %total.at = getelementptr i64, ptr %job, i64 2
  %total = load i64, ptr %total.at
  %size.at = getelementptr i64, ptr %job, i64 3
  %size = load i64, ptr %size.at
  %last = sub i64 %total, %size
  %arena.at = getelementptr ptr, ptr %block, i64 %n
  store ptr null, ptr %arena.at
  %n1 = add i64 %n, 1
  %status.at = getelementptr ptr, ptr %block, i64 %n1
  store ptr %status, ptr %status.at
  %n2 = add i64 %n, 2
  %context.at = getelementptr ptr, ptr %block, i64 %n2
  store ptr null, ptr %context.at
  br label %unit
unit:
  %u = phi i64 [ %begin, %start ], [ %u1, %run ]
  %more = icmp slt i64 %u, %end
  br i1 %more, label %place, label %done
place:
  %o0 = mul i64 %u, %size
  %over = icmp sgt i64 %o0, %last
  %o = select i1 %over, i64 %last, i64 %o0
  br label %fill
fill:
  %k = phi i64 [ 0, %place ], [ %k1, %fill ]
  %pk = add i64 %k, 6
  %p.at = getelementptr ptr, ptr %job, i64 %pk
  %p = load ptr, ptr %p.at
  %sk = add i64 %pk, %n
  %s.at = getelementptr i64, ptr %job, i64 %sk
  %s = load i64, ptr %s.at
  %bytes = mul i64 %o, %s
  %q = getelementptr i8, ptr %p, i64 %bytes
  %q.at = getelementptr ptr, ptr %block, i64 %k
  store ptr %q, ptr %q.at
  %k1 = add i64 %k, 1
  %rest = icmp slt i64 %k1, %n
  br i1 %rest, label %fill, label %run
run:
  call void %entry(ptr %block)
  %u1 = add i64 %u, 1
  br label %unit
done:
  ret void
}
"""


@cache
def _driver() -> Callable[[int], None]:
    target = host_target()
    image = disk.object_for(f'target triple = "{target.triple}"\n{_TEXT}', target)
    imports = {"weft_parallel_for": threads.parallel_for_address()}
    found = jit.link(image, ("weft_blocks",), imports)["weft_blocks"]
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(found)


def fits(arrays: Sequence[np.ndarray]) -> bool:
    """Whether these operands of a map can be run in blocks: contiguous ones of one shape, and scalars."""
    shape = None
    for a in arrays:
        if not any(a.strides):  # a scalar, or one repeated
            continue
        if not a.flags.c_contiguous or not a.flags.aligned or (shape is not None and a.shape != shape):
            return False
        shape = a.shape
    return shape is not None and len(arrays) < MOST and prod(shape) >= BLOCK


def is_scalar(a: np.ndarray) -> bool:
    """Whether all elements are one in memory."""
    return not any(a.strides)


def runner(graph: Graph, executable: Executable) -> Callable[..., list[np.ndarray]]:
    """Runs ``executable``, made of ``graph`` over one block, on whole operands."""
    entry, cost = executable.address, max(executable.artifact.cost_ns, 1.0)
    sizes = [0 if not p.type.shape else p.type.dtype.itemsize for p in graph.params]
    sizes += [r.type.dtype.itemsize for r in graph.results]
    dtypes = [r.type.dtype.np for r in graph.results]
    n, launched = len(sizes), executable.artifact.n_native
    call, grain = _driver(), max(1, round(CHUNK_NS / cost))
    job_type = ctypes.c_int64 * (_HEAD + 2 * n)

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        shape = next(a.shape for a, s in zip(arrays, sizes, strict=False) if s)
        total = prod(shape)
        units = -(-total // BLOCK)
        pointers, outs = [a.__array_interface__["data"][0] for a in arrays], []
        for t in dtypes:
            held, address = buffers.lease(total * t.itemsize)
            outs.append(np.ndarray(shape, t, held))
            pointers.append(address)
        chunk = units if units * cost < INLINE_NS else grain
        job = job_type(entry, n, total, BLOCK, units, chunk, *pointers, *sizes)
        stats.count("kernels_launched", launched)
        call(ctypes.addressof(job))
        return outs

    return run
