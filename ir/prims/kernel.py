"""The fused group: its body is a region, and its meaning is the meaning of the region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph
from weft.ir.prims.base import Kind, Primitive
from weft.ir.prims.regions import check_regions, check_signature, own, result_types, run_region
from weft.ir.types import DTYPES, TensorType

__all__ = ["kernel_p"]


def _kernel_infer(*xs: TensorType, regions: Sequence[Graph] = (), **attrs: Any) -> tuple[TensorType, ...]:
    check_regions("kernel", regions, 1)
    check_signature("kernel", regions[0], xs)
    return result_types(regions[0])


def _kernel_eval(*xs: np.ndarray, regions: Sequence[Graph], **attrs: Any) -> tuple[np.ndarray, ...]:
    return own(run_region(regions[0], xs), xs)


def _kernel_vjp(ct: Any, out: Any, *xs: Any, **attrs: Any) -> tuple[Any, ...]:
    raise RuntimeError("a kernel cannot be differentiated: differentiate the graph before it is fused")


kernel_p = Primitive(
    "kernel", Kind.KERNEL, infer=_kernel_infer, eval=_kernel_eval, vjp=_kernel_vjp, needs="", dtypes=DTYPES
)
