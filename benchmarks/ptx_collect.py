"""A plugin of pytest that keeps every GPU kernel that the tests make, once, for ``ptx_report --suite``.

``WEFT_KERNELS=FOLDER WEFT_CACHE=0 python -m pytest -p benchmarks.ptx_collect``. What goes through
``emit_device_kernel`` is kept as the text of the operation, from which it can be emitted for any
architecture; functions that come to LLVM another way (with a plan of the test's own, copies between layouts)
as the PTX of their module.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import weft.codegen.gpu.kernel as kernel
import weft.runtime.cuda.ptx as ptx
from weft.capture import userland
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget
from weft.ir.graph import Op
from weft.ir.text import canonical_text

_FUNCTION = re.compile(r"^define .*?^}", re.MULTILINE | re.DOTALL)
_known: set[str] = set()  # functions that a kernel kept as an operation has


def keep(kind: str, **what: Any) -> None:
    """Write a record under the name of its content, unless it is there."""
    text = json.dumps(what, sort_keys=True)
    folder = Path(os.environ["WEFT_KERNELS"], kind)
    folder.mkdir(parents=True, exist_ok=True)
    at = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    if not at.exists():
        mine = at.with_suffix(f".{os.getpid()}")
        mine.write_text(text)
        mine.replace(at)


def emitting(emit: Callable[..., DeviceCode]) -> Callable[..., DeviceCode]:
    def emit_device_kernel(op: Op, target: GpuTarget, symbol_prefix: str) -> DeviceCode:
        code = emit(op, target, symbol_prefix)
        keep("kernels", form=op.attrs["form"], text=canonical_text(op.regions[0]), name=op.attrs["form"])
        _known.update(_FUNCTION.findall(code.llvm))
        return code

    return emit_device_kernel


def compiling(compile: Callable[[str, GpuTarget], str]) -> Callable[[str, GpuTarget], str]:
    def compile_ptx(text: str, target: GpuTarget) -> str:
        out = compile(text, target)
        if not _known.issuperset(_FUNCTION.findall(text)):
            keep("modules", target=target.name, ptx=out)
        return out

    return compile_ptx


if "WEFT_KERNELS" in os.environ:  # before the modules that take these functions by name are imported
    userland._kinds[__file__] = "weft"  # so that captures do not take what is here for the user's code
    kernel.emit_device_kernel = emitting(kernel.emit_device_kernel)
    ptx.compile_ptx = compiling(ptx.compile_ptx)
