"""What LLVM's NVPTX backend can do with a module, asked before LLVM sees it.

LLVM ends the process where a target has no instruction for an intrinsic ("no libcall available"), which
nothing can catch. So every external function of a module must be on a list, and ``frem`` must not occur.
"""

from __future__ import annotations

import re

from weft.codegen.gpu.target import GpuTarget
from weft.ir.errors import CompilerError

_DECLARED = re.compile(r"^declare [^\n]*?@([\w.]+)\(", re.MULTILINE)
_DEFINED = re.compile(r"^define [^\n]*?@([\w.]+)\(", re.MULTILINE)
_CALLED = re.compile(r"\bcall\b[^\n@]*@([\w.]+)\(")
_REMAINDER = re.compile(r"= frem\b")

# generic intrinsics, without the suffix of their types
GENERIC = frozenset({
    "fma", "fmuladd", "sqrt", "fabs", "copysign", "floor", "ceil", "trunc", "roundeven", "rint", "nearbyint",
    "abs", "smin", "smax", "umin", "umax", "ctpop", "ctlz", "cttz", "bswap", "bitreverse", "fshl", "fshr",
    "fptosi.sat", "fptoui.sat", "minnum", "maxnum", "is.fpclass", "assume", "expect",
    "sadd.with.overflow", "uadd.with.overflow", "ssub.with.overflow", "usub.with.overflow",
    "umul.with.overflow", "smul.with.overflow", "uadd.sat", "usub.sat", "sadd.sat", "ssub.sat",
    "vector.reduce.add", "vector.reduce.or", "vector.reduce.and", "vector.reduce.xor", "vector.reduce.fadd",
    "vector.reduce.smax", "vector.reduce.smin", "vector.reduce.umax", "vector.reduce.umin",
    "memcpy", "memset", "lifetime.start", "lifetime.end", "prefetch", "masked.load", "masked.store",
})  # fmt: skip
FROM_SM80 = frozenset({"maximum", "minimum"})  # max.NaN
SUFFIX = re.compile(r"(\.(v\d+)?(i\d+|f16|bf16|f32|f64|p\d+))+$")


def refusals(module: str, target: GpuTarget) -> list[str]:
    """Why LLVM must not compile a module for a target; empty where it may."""
    names = dict.fromkeys([*_DECLARED.findall(module), *_CALLED.findall(module)])
    defined = set(_DEFINED.findall(module))
    out = [f"no instruction for @{n}" for n in names if n not in defined and not _allowed(n, target)]
    if _REMAINDER.search(module):
        out.append("no instruction for frem")
    return out


def verify_for(module: str, target: GpuTarget) -> None:
    """CompilerError for a module with something that the target lacks."""
    found = refusals(module, target)
    if found:
        raise CompilerError(f"cannot be compiled for {target.name}: " + "; ".join(found))


def _allowed(name: str, target: GpuTarget) -> bool:
    if name.startswith("llvm.nvvm."):
        return True
    if not name.startswith("llvm."):
        return False
    generic = SUFFIX.sub("", name[len("llvm.") :])
    return generic in GENERIC or (generic in FROM_SM80 and target.capability >= (8, 0))
