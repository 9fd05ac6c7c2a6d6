"""The functions that the hardware approximates: ex2, lg2, rsqrt, sin, cos, tanh.

Their documented errors are small multiples of an ulp, or 2^-20.9 and the like in absolute terms; here they
are computed in f64 and rounded to a neighbour, which is within all of them but not always the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate import half
from weft.runtime.emulate.floating import modified
from weft.runtime.emulate.program import Decoder, Step, instruction
from weft.runtime.emulate.ptx_ast import Instruction
from weft.runtime.emulate.rounding import either
from weft.runtime.emulate.steps import elementwise

Array = Any


def _through_f64(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: either(fn(x.astype(np.float64)), x)


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "ex2": _through_f64(np.exp2),
    "lg2": _through_f64(np.log2),
    "rsqrt": _through_f64(lambda x: 1.0 / np.sqrt(x)),
    "sin": _through_f64(np.sin),
    "cos": _through_f64(np.cos),
    "tanh": _through_f64(np.tanh),
}


@instruction(*_FUNCTIONS)
def _approximate(d: Decoder, ins: Instruction) -> Step:
    kind, fn = ins.mods[-1], _FUNCTIONS[ins.base]
    dst, source = ins.operands
    if kind in half.KINDS:
        return half.elementwise_half(d, ins, fn, kind, dst, [source])
    return elementwise(d, modified(fn, ins), kind, dst, (source, kind))
