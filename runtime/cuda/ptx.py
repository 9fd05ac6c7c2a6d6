"""From LLVM IR to PTX, by LLVM's NVPTX backend."""

from __future__ import annotations

from functools import cache
from typing import Any

from weft.codegen.gpu.check import verify_for
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.libllvm import library
from weft.ir.errors import CompilerError


@cache
def _machine(target: GpuTarget) -> Any:
    import llvmlite.binding as llvm

    library()  # sets LLVM's options, so that PTX is the same whether or not code for the CPU came first
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(cpu=target.cpu, features=target.features, opt=2)


def compile_ptx(text: str, target: GpuTarget) -> str:
    """The PTX of an LLVM module (text). CompilerError where NVPTX lacks something or LLVM finds a fault.

    >>> from weft.codegen.gpu.target import gpu_target
    >>> module = 'target triple = "nvptx64-nvidia-cuda"\\ndefine ptx_kernel void @k() {\\n ret void\\n}'
    >>> ".entry k" in compile_ptx(module, gpu_target("sm_80"))
    True
    """
    import llvmlite.binding as llvm

    verify_for(text, target)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
        return _machine(target).emit_assembly(module)
    except RuntimeError as error:
        raise CompilerError(f"LLVM does not take the module for {target.name}: {error}") from error
