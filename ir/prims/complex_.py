"""Complex numbers from and to their parts. Complex values are evaluated by numpy, never fused.

Cotangents follow PyTorch: the gradient of a real loss with respect to ``z`` is ``dL/dre + i dL/dim``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, full_like
from weft.ir.prims.mapping import check_dtype, real_dtype, same_type
from weft.ir.types import COMPLEXES, TensorType, c64, c128, f32, f64


def _complex_infer(re: TensorType, im: TensorType) -> TensorType:
    t = same_type("complex", (re, im), (f32, f64))
    return t.with_(dtype=c64 if t.dtype is f32 else c128)


def _complex_eval(re: np.ndarray, im: np.ndarray) -> np.ndarray:
    # not re + 1j * im, which makes NaN of infinities
    both = np.stack([re, im], axis=-1)
    return both.view(np.complex64 if re.dtype == np.float32 else np.complex128)[..., 0]


def _part_infer(name: str) -> Any:
    def infer(x: TensorType) -> TensorType:
        check_dtype(name, x.dtype, COMPLEXES)
        return x.with_(dtype=real_dtype(x))

    return infer



complex_p = Primitive(
    "complex",
    Kind.MAP,
    infer=_complex_infer,
    eval=_complex_eval,
    vjp=lambda ct, out, re, im: (real_p.bind(ct), imag_p.bind(ct)),
    needs="",
    dtypes=(f32, f64),
    host=True,
)
real_p = Primitive(
    "real",
    Kind.MAP,
    infer=_part_infer("real"),
    eval=lambda x: np.real(x).copy(),
    vjp=lambda ct, out, x: (complex_p.bind(ct, full_like(ct, 0)),),
    needs="",
    dtypes=COMPLEXES,
    host=True,
)
imag_p = Primitive(
    "imag",
    Kind.MAP,
    infer=_part_infer("imag"),
    eval=lambda x: np.imag(x).copy(),
    vjp=lambda ct, out, x: (complex_p.bind(full_like(ct, 0), ct),),
    needs="",
    dtypes=COMPLEXES,
    host=True,
)
conj_p = Primitive(
    "conj",
    Kind.MAP,
    infer=lambda x: same_type("conj", (x,), COMPLEXES),
    eval=np.conj,
    vjp=lambda ct, out, x: (conj_p.bind(ct),),
    needs="",
    dtypes=COMPLEXES,
    host=True,
)
