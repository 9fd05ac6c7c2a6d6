"""How elementwise (MAP) primitives are defined: operands of one shape, one rule per element.

Half precision is treated in one place: ``eval`` and ``scalar`` of a float operation see f16 and bf16 operands
converted to f32, and the result is rounded once. A scalar rule therefore never computes in f16 or bf16, and a
builder needs only ``const``, ``select``, ``convert`` and ``bitcast`` for these types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.ir.prims.base import PRIMITIVES, Kind, Primitive, type_of
from weft.ir.types import DType, TensorType, bf16, c64, f16, f32, f64

HALVES = (f16, bf16)
_HALF_NP = (f16.np, bf16.np)


def check_dtype(name: str, dtype: DType, domain: Sequence[DType]) -> None:
    """TypeError unless ``dtype`` is in the domain of the primitive ``name``."""
    if domain and dtype not in domain:
        raise TypeError(f"{name} is not defined for {dtype.long_name}; it takes "
                        + ", ".join(d.long_name for d in domain))


def real_dtype(t: TensorType) -> DType:
    """The dtype of the parts of a complex type."""
    return f32 if t.dtype is c64 else f64


def same_type(name: str, types: Sequence[TensorType], domain: Sequence[DType]) -> TensorType:
    """The common type of the operands; TypeError for dtypes or devices, ValueError for shapes that differ."""
    first = types[0]
    check_dtype(name, first.dtype, domain)
    for t in types[1:]:
        if t.dtype is not first.dtype:
            raise TypeError(f"{name}: operands of different dtypes, {first} and {t}")
        if t.shape != first.shape:
            raise ValueError(f"{name}: operands of different shapes, {first} and {t}")
        if t.device != first.device:
            raise TypeError(f"{name}: operands on different devices, {first} and {t}")
    return first


def widened_eval(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` on numpy arrays, with half precision computed in f32 and rounded once."""

    def evaluate(*xs: np.ndarray, **attrs: Any) -> Any:
        dtype = xs[0].dtype
        if dtype.itemsize != 2 or dtype not in _HALF_NP:  # a hash costs more than the comparison
            return fn(*xs, **attrs)
        out = fn(*(x.astype(np.float32) for x in xs), **attrs)
        return out.astype(dtype) if out.dtype == np.float32 else out

    return evaluate


def widened_scalar(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a scalar rule."""

    def scalar(b: Any, *xs: Any, **attrs: Any) -> Any:
        dtype = b.dtype(xs[0])
        if dtype not in HALVES:
            return rule(b, *xs, **attrs)
        out = rule(b, *(b.convert(x, f32) for x in xs), **attrs)
        return b.convert(out, dtype) if b.dtype(out) is f32 else out

    return scalar


def elementwise(
    name: str,
    *,
    domain: Sequence[DType],
    eval: Callable[..., Any],
    scalar: Callable[..., Any],
    vjp: Callable[..., Any] | None = None,
    needs: str = "",
    infer: Callable[..., TensorType] | None = None,
    ufunc: np.ufunc | None = None,
    **tags: Any,
) -> Primitive:
    """Define a MAP primitive whose operands (and, without ``infer``, whose result) have one type.

    Without ``vjp`` it is nondifferentiable. ``ufunc``: what ``eval`` is on float32 and float64, where it does
    more on others.
    """

    arity = scalar.__code__.co_argcount - 1  # type: ignore[attr-defined]

    def same(*types: TensorType) -> TensorType:
        if len(types) != arity:
            raise TypeError(f"{name} takes {arity} operands, got {len(types)}")
        return same_type(name, types, domain)

    return Primitive(
        name,
        Kind.MAP,
        infer=infer or same,
        eval=widened_eval(eval),
        scalar=widened_scalar(scalar),
        vjp=vjp,
        needs=needs,
        nondifferentiable=vjp is None,
        dtypes=domain,
        arity=arity,
        ufunc=eval if isinstance(eval, np.ufunc) else ufunc,
        plain_ufunc=isinstance(eval, np.ufunc),
        **tags,
    )


def conj(x: Any) -> Any:
    """The complex conjugate, for gradient rules: real values pass unchanged."""
    if type(x) is np.ndarray:  # the commonest case; a type costs more than the rule
        return x if x.dtype.kind != "c" else PRIMITIVES["conj"].bind(x)
    return PRIMITIVES["conj"].bind(x) if type_of(x).dtype.is_complex else x


def where(c: Any, x: Any, y: Any) -> Any:
    return PRIMITIVES["where"].bind(c, x, y)
