"""Scalar rules in line, or, for long ones on single values, as functions that all kernels share.

A step count, a learning rate or a scale is one element; that each kernel of an optimizer's step has the whole
of ``pow`` in line, for a single call, would cost far more time to compile than it takes to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from weft.codegen.blocks import Code
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.llvm import reg_type
from weft.codegen.target import Machine
from weft.ir.prims.base import PRIMITIVES, Primitive
from weft.ir.scalarcost import CostCounter, cost_for
from weft.ir.types import DType

LONG = 60.0  # simple operations from which a rule on single values is a function of its own


def apply_rule(b: VectorBuilder, prim: Primitive, args: Sequence[Reg], attrs: Mapping[str, Any]) -> Reg:
    """The result of a primitive's scalar rule on values in registers."""
    assert prim.scalar is not None
    single = bool(args) and not attrs and all(not a.lanes for a in args)
    if single and any(a.value is None for a in args):
        dtypes = tuple(a.dtype for a in args)
        if cost_for(prim.name, dtypes) >= LONG:
            return _call(b, prim.name, dtypes, args)
    return prim.scalar(b, *args, **attrs)


def _call(b: VectorBuilder, name: str, dtypes: tuple[DType, ...], args: Sequence[Reg]) -> Reg:
    symbol, declares, result = _function(name, dtypes, b.target)
    b.fn.declares |= declares
    passed = ", ".join(f"{reg_type(a.dtype)} {a.text}" for a in args)
    depth = max(a.depth for a in args)
    return b.emit(f"call {reg_type(result)} @{symbol}({passed})", result, 0, depth)


@cache
def _function(
    name: str, dtypes: tuple[DType, ...], target: Machine | None
) -> tuple[str, frozenset[str], DType]:
    """The symbol of a rule's function, the module-level lines it needs (itself among them), its result."""
    symbol = "_".join(["weft", name, *(d.name for d in dtypes)])
    rule: Any = PRIMITIVES[name].scalar
    result = reg_type(rule(CostCounter(), *dtypes))
    params = ", ".join(f"{reg_type(d)} %x{i}" for i, d in enumerate(dtypes))
    fn = Code(symbol, params, result, linkage="internal")
    b = VectorBuilder(fn, 0, target)
    out = rule(b, *(b.reg(f"%x{i}", d) for i, d in enumerate(dtypes)))
    fn.ret(f"{result} {out.text}")
    return symbol, frozenset({*fn.declares, fn.text()}), out.dtype
