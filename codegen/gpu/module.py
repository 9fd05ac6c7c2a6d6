"""Modules for the NVPTX backend: the text of several kernels put together."""

from __future__ import annotations

from collections.abc import Iterable

from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget

LAYOUT = "e-p6:32:32-i64:64-i128:128-i256:256-v16:16-v32:32-n16:32:64"


def device_module(target: GpuTarget, codes: Iterable[DeviceCode]) -> str:
    """The LLVM module of several kernels: their functions, the lines they share once."""
    codes = list(codes)
    lines = sorted(set().union(*(c.declares for c in codes)) | {target.attributes})
    head = f'target datalayout = "{LAYOUT}"\ntarget triple = "{target.triple}"\n\n'
    return head + "".join(c.llvm for c in codes) + "\n" + "\n".join(lines) + "\n"
