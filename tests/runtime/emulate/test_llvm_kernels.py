"""Kernels that LLVM emitted, on the emulated device."""

from __future__ import annotations

import struct

import numpy as np
from ptx_samples import device, llvm_ptx, run

_INDEX = """
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %c = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %d = call i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
  %cd = mul i32 %c, %d
  %i = add i32 %cd, %t
  %i64 = zext i32 %i to i64
"""

_SAXPY = f"""
declare float @llvm.fma.f32(float, float, float)
define ptx_kernel void @saxpy(ptr %x, ptr %y, i32 %n, float %a) {{
{_INDEX}
  %in = icmp ult i32 %i, %n
  br i1 %in, label %body, label %end
body:
  %px = getelementptr float, ptr %x, i64 %i64
  %py = getelementptr float, ptr %y, i64 %i64
  %vx = load float, ptr %px
  %vy = load float, ptr %py
  %r = call float @llvm.fma.f32(float %a, float %vx, float %vy)
  store float %r, ptr %py
  br label %end
end:
  ret void
}}
"""


def test_saxpy_with_a_partial_last_block():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1000), np.float32)
    machine = device(strict=True)
    extra = struct.pack("<if", 1000, 0.3)
    got = run(llvm_ptx(_SAXPY), "saxpy", [x, y], 8, 128, extra=extra, machine=machine)[1]
    a = np.float64(np.float32(0.3))
    np.testing.assert_array_equal(got, (a * x.astype(np.float64) + y).astype(np.float32))
    statistics = machine.launches[-1]
    assert statistics.global_read == 8000 and statistics.global_written == 4000
    assert statistics.sectors == statistics.ideal_sectors == 3 * 125
    assert machine.findings == []


_REDUCTION = f"""
@s = internal addrspace(3) global [128 x float] undef
define ptx_kernel void @total(ptr %x, ptr %y) {{
entry:
{_INDEX}
  %px = getelementptr float, ptr %x, i64 %i64
  %v = load float, ptr %px
  %ps = getelementptr [128 x float], ptr addrspace(3) @s, i32 0, i32 %t
  store float %v, ptr addrspace(3) %ps
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  br label %loop
loop:
  %k = phi i32 [ 64, %entry ], [ %half, %next ]
  %active = icmp ult i32 %t, %k
  br i1 %active, label %add, label %next
add:
  %o = add i32 %t, %k
  %po = getelementptr [128 x float], ptr addrspace(3) @s, i32 0, i32 %o
  %vo = load float, ptr addrspace(3) %po
  %vs = load float, ptr addrspace(3) %ps
  %sum = fadd float %vo, %vs
  store float %sum, ptr addrspace(3) %ps
  br label %next
next:
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  %half = lshr i32 %k, 1
  %more = icmp ne i32 %half, 0
  br i1 %more, label %loop, label %done
done:
  %first = icmp eq i32 %t, 0
  br i1 %first, label %write, label %end
write:
  %r = load float, ptr addrspace(3) @s
  %c64 = zext i32 %c to i64
  %py = getelementptr float, ptr %y, i64 %c64
  store float %r, ptr %py
  br label %end
end:
  ret void
}}
"""


def test_block_reduction_through_shared_memory():
    x = np.arange(512, dtype=np.float32)
    got = run(llvm_ptx(_REDUCTION), "total", [x, np.zeros(4, np.float32)], 4, 128)[1]
    np.testing.assert_array_equal(got, x.reshape(4, 128).sum(axis=1))


_SHUFFLES = "\n".join(
    f"""  %s{k} = call float @llvm.nvvm.shfl.sync.down.f32(i32 -1, float %a{i}, i32 {k}, i32 31)
  %a{i + 1} = fadd float %a{i}, %s{k}"""
    for i, k in enumerate((16, 8, 4, 2, 1))
)
_WARP_SUM = f"""
declare float @llvm.nvvm.shfl.sync.down.f32(i32, float, i32, i32)
define ptx_kernel void @warps(ptr %x, ptr %y) {{
{_INDEX}
  %px = getelementptr float, ptr %x, i64 %i64
  %a0 = load float, ptr %px
{_SHUFFLES}
  %lane = and i32 %t, 31
  %first = icmp eq i32 %lane, 0
  br i1 %first, label %write, label %end
write:
  %w = lshr i32 %i, 5
  %w64 = zext i32 %w to i64
  %py = getelementptr float, ptr %y, i64 %w64
  store float %a5, ptr %py
  br label %end
end:
  ret void
}}
"""


def test_warp_reduction_through_shuffles():
    x = np.arange(256, dtype=np.float32)
    got = run(llvm_ptx(_WARP_SUM), "warps", [x, np.zeros(8, np.float32)], 2, 128)[1]
    np.testing.assert_array_equal(got, x.reshape(8, 32).sum(axis=1))


_TRANSPOSE = """
@tile = internal addrspace(3) global [PITCH x float] undef
define ptx_kernel void @transpose(ptr %x, ptr %y) {
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %row = lshr i32 %t, 5
  %col = and i32 %t, 31
  %rp = mul i32 %row, STRIDE
  %in = add i32 %rp, %col
  %t64 = zext i32 %t to i64
  %px = getelementptr float, ptr %x, i64 %t64
  %v = load float, ptr %px
  %ps = getelementptr float, ptr addrspace(3) @tile, i32 %in
  store float %v, ptr addrspace(3) %ps
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  %cp = mul i32 %col, STRIDE
  %out = add i32 %cp, %row
  %pt = getelementptr float, ptr addrspace(3) @tile, i32 %out
  %w = load float, ptr addrspace(3) %pt
  %py = getelementptr float, ptr %y, i64 %t64
  store float %w, ptr %py
  ret void
}
"""


def test_transposition_and_its_bank_conflicts():
    x = np.arange(1024, dtype=np.float32)
    conflicts = []
    for stride in (32, 33):
        machine = device(strict=True)
        source = _TRANSPOSE.replace("PITCH", str(32 * stride)).replace("STRIDE", str(stride))
        got = run(llvm_ptx(source), "transpose", [x, 0 * x], 1, 1024, machine=machine)[1]
        np.testing.assert_array_equal(got.reshape(32, 32), x.reshape(32, 32).T)
        conflicts.append(machine.launches[-1].bank_conflicts)
    assert conflicts == [32 * 31, 0]


_CALL = """
define internal i32 @twice(i32 %x) noinline {
  %c = icmp sgt i32 %x, 9
  br i1 %c, label %big, label %small
big:
  %y = mul i32 %x, %x
  ret i32 %y
small:
  %z = add i32 %x, 1
  ret i32 %z
}
define ptx_kernel void @calls(ptr %x) {
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %t64 = zext i32 %t to i64
  %p = getelementptr i32, ptr %x, i64 %t64
  %v = load i32, ptr %p
  %a = call i32 @twice(i32 %v)
  %b = call i32 @twice(i32 %a)
  store i32 %b, ptr %p
  ret void
}
"""


def test_device_functions_are_called():
    x = np.arange(32, dtype=np.int32)

    def twice(v: np.ndarray) -> np.ndarray:
        return np.where(v > 9, v * v, v + 1)

    ptx = llvm_ptx(_CALL)
    assert "call.uni" in ptx
    np.testing.assert_array_equal(run(ptx, "calls", [x])[0], twice(twice(x)))
