"""Kernels for the emulated device: emitted by LLVM, and written as PTX."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from weft.codegen.gpu.target import gpu_target
from weft.runtime.emulate import Machine

SREG = "\n".join(
    f"declare i32 @llvm.nvvm.read.ptx.sreg.{name}.x()" for name in ("tid", "ctaid", "ntid", "nctaid")
)
BARRIER = "declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)"


@cache
def llvm_ptx(source: str, arch: str = "sm_80") -> str:
    """PTX of a module in LLVM's language, optimised."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = gpu_target(arch)
    module = llvm.parse_assembly(f'target triple = "{target.triple}"\n{SREG}\n{BARRIER}\n{source}')
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3
    )
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module)


def device(arch: str = "sm_80", **options: Any) -> Machine:
    return Machine(gpu_target(arch), 1 << 22, **options)


def run(
    ptx: str,
    name: str,
    arrays: list[np.ndarray],
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
    extra: bytes = b"",
    machine: Machine | None = None,
) -> list[np.ndarray]:
    """Launch with a pointer to a copy of each array, then ``extra``; what is in the copies afterwards."""
    machine = machine or device(strict=True)
    pointers = []
    for array in arrays:
        pointers.append(machine.malloc(array.nbytes))
        machine.htod(pointers[-1], np.ascontiguousarray(array))
    params = struct.pack(f"<{len(pointers)}Q", *pointers) + extra
    function = machine.load(ptx).function(name)
    machine.launch(function, (grid, 1, 1), (block, 1, 1), shared, params)
    results = []
    for array, pointer in zip(arrays, pointers, strict=True):
        results.append(np.empty_like(np.ascontiguousarray(array)))
        machine.dtoh(results[-1], pointer)
    return results


def entry(body: str, params: int = 2, declarations: str = "", head: str = "", arch: str = "sm_80") -> str:
    """A kernel ``k`` of pointers %rd0..; %r0 is the thread's number, %rd10.. its 4-byte places there."""
    target = gpu_target(arch)
    names = ", ".join(f".param .u64 p{i}" for i in range(params))
    loads = "\n".join(
        f"ld.param.u64 %rd{i}, [p{i}]; mad.wide.u32 %rd1{i}, %r0, 4, %rd{i};" for i in range(params)
    )
    version = f"{target.ptx // 10}.{target.ptx % 10}"
    return f"""
.version {version}
.target {arch}
.address_size 64
{head}
.visible .entry k({names}) {{
.reg .pred %p<20>; .reg .b16 %rs<40>; .reg .b32 %r<100>; .reg .b64 %rd<60>;
.reg .f32 %f<40>; .reg .f64 %fd<40>;
{declarations}
mov.u32 %r90, %tid.x; mov.u32 %r91, %ctaid.x; mov.u32 %r92, %ntid.x;
mad.lo.u32 %r0, %r91, %r92, %r90;
{loads}
{body}
ret;
}}
"""


def apply(body: str, inputs: list[np.ndarray], out: Any, arch: str = "sm_80") -> np.ndarray:
    """Instructions for each element: inputs in %a, %b and %c, the result (of dtype ``out``) in %d."""
    n, out = inputs[0].size, np.dtype(out)
    names = "abc"[: len(inputs)] + "d"
    dtypes = [*[x.dtype for x in inputs], out]
    registers = [f".reg .b{max(t.itemsize, 2) * 8} %{name};" for name, t in zip(names, dtypes, strict=True)]
    places = [f"mad.wide.u32 %rd2{i}, %r0, {t.itemsize}, %rd{i};" for i, t in enumerate(dtypes)]
    loads = [f"ld.global.b{t.itemsize * 8} %{names[i]}, [%rd2{i}];" for i, t in enumerate(dtypes[:-1])]
    store = f"st.global.b{out.itemsize * 8} [%rd2{len(inputs)}], %d;"
    text = "\n".join([*places, *loads, body, store])
    declarations = "\n".join([*registers, ".reg .b32 %x<9>; .reg .b64 %y<9>; .reg .pred %q<9>;"])
    ptx = entry(text, params=len(dtypes), declarations=declarations, arch=arch)
    machine = device(arch, strict=True)
    return run(ptx, "k", [*inputs, np.zeros(n, out)], -(-n // 128), min(n, 128), machine=machine)[-1]
