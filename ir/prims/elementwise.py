"""Arithmetic, rounding, comparison and selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.ir.prims.base import PRIMITIVES, Kind, Primitive, full_like, scale, type_of
from weft.ir.prims.mapping import conj, elementwise, real_dtype, same_type, where
from weft.ir.types import DTYPES, FLOATS, NUMERIC, REALS, TensorType, bool_, u8

# --- one operand --------------------------------------------------------------------------------------------


def _scalar_unary(op: str) -> Callable[..., Any]:
    return lambda b, x: b.unary(op, x)


neg_p = elementwise(
    "neg", domain=NUMERIC, eval=np.negative, scalar=_scalar_unary("neg"), vjp=lambda ct, out, x: (-ct,)
)


def _abs_infer(x: TensorType) -> TensorType:
    t = same_type("abs", (x,), NUMERIC)
    return t.with_(dtype=real_dtype(t)) if t.dtype.is_complex else t


def _abs_vjp(ct: Any, out: Any, x: Any) -> tuple[Any]:
    if not type_of(x).dtype.is_complex:
        return (ct * sign_p.bind(x),)
    zero = full_like(out, 0)
    k = where(eq_p.bind(out, zero), zero, div_p.bind(ct, out))
    re, im = PRIMITIVES["real"].bind(x), PRIMITIVES["imag"].bind(x)
    return (PRIMITIVES["complex"].bind(k * re, k * im),)


def _abs_scalar(b: Any, x: Any) -> Any:
    return b.unary("abs", x) if b.dtype(x).is_signed else x


def _abs_eval(x: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(x):
        return np.hypot(np.real(x), np.imag(x))
    return np.abs(x)


abs_p = elementwise(
    "abs",
    domain=NUMERIC,
    infer=_abs_infer,
    eval=_abs_eval,
    scalar=_abs_scalar,
    vjp=_abs_vjp,
    needs="0o",
    ufunc=np.absolute,
)


def _sign_scalar(b: Any, x: Any) -> Any:
    dt = b.dtype(x)
    zero, one = b.const(0, dt), b.const(1, dt)
    positive = b.select(b.compare("gt", x, zero), one, zero)
    if not dt.is_signed:
        return positive
    return b.select(b.compare("lt", x, zero), b.const(-1, dt), positive)


def _sign_eval(x: np.ndarray) -> np.ndarray:
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)  # NaN gives 0, as in torch


def _zero_vjp(ct: Any, out: Any, x: Any) -> tuple[Any]:
    return (full_like(ct, 0),)


sign_p = elementwise("sign", domain=REALS, eval=_sign_eval, scalar=_sign_scalar, vjp=_zero_vjp)


def _rounding(name: str, fn: np.ufunc) -> Primitive:
    def scalar(b: Any, x: Any) -> Any:
        return b.unary(name, x) if b.dtype(x).is_floating_point else x

    def evaluate(x: np.ndarray) -> np.ndarray:
        return fn(x) if x.dtype.kind == "f" else x

    return elementwise(name, domain=REALS, eval=evaluate, scalar=scalar, vjp=_zero_vjp, ufunc=fn)


floor_p = _rounding("floor", np.floor)
ceil_p = _rounding("ceil", np.ceil)
rint_p = _rounding("rint", np.rint)  # half to even
trunc_p = _rounding("trunc", np.trunc)

# --- two operands -------------------------------------------------------------------------------------------


def _scalar_binary(op: str, on_bool: str | None = None) -> Callable[..., Any]:
    def scalar(b: Any, x: Any, y: Any) -> Any:
        return b.binary(on_bool if on_bool and b.dtype(x) is bool_ else op, x, y)

    return scalar


add_p = elementwise(
    "add",
    domain=DTYPES,
    eval=np.add,
    scalar=_scalar_binary("add", "or"),
    vjp=lambda ct, out, x, y: (ct, ct),
)
sub_p = elementwise(
    "sub", domain=NUMERIC, eval=np.subtract, scalar=_scalar_binary("sub"), vjp=lambda ct, out, x, y: (ct, -ct)
)
mul_p = elementwise(
    "mul",
    domain=DTYPES,
    eval=np.multiply,
    scalar=_scalar_binary("mul", "and"),
    vjp=lambda ct, out, x, y: (ct * conj(y), ct * conj(x)),
    needs="01",
)


def _divisor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """RuntimeError for an integer zero, as in torch. Kernels set their status."""
    if x.size and not y.all():
        raise RuntimeError("ZeroDivisionError")
    return y


def _div_eval(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.divide(x, y) if x.dtype.kind in "fc" else int_quotient(x, _divisor(x, y))


def int_quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The quotient rounded toward zero; 0 where it is undefined."""
    safe = y != 0
    if x.dtype.kind == "i":
        safe &= (y != -1) | (x != np.iinfo(x.dtype).min)
    d = np.where(safe, y, np.ones_like(y))
    q = np.floor_divide(x, d)
    if x.dtype.kind == "i":
        q += ((q * d != x) & ((x < 0) != (d < 0))).astype(x.dtype)
    return np.where(safe, q, np.zeros_like(q))


def _div_scalar(b: Any, x: Any, y: Any) -> Any:
    return b.binary("div" if b.dtype(x).is_floating_point else "idiv", x, y)


def _div_vjp(ct: Any, out: Any, x: Any, y: Any) -> tuple[Any, Any]:
    # The quotient is computed again: a program may overwrite its own, as in PyTorch.
    dx = div_p.bind(ct, conj(y))
    return dx, -(dx * conj(div_p.bind(x, y)))


div_p = elementwise(
    "div",
    domain=NUMERIC,
    eval=_div_eval,
    scalar=_div_scalar,
    vjp=_div_vjp,
    needs="01",
    ufunc=np.divide,
)


def _rem_eval(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.fmod(x, y) if x.dtype.kind == "f" else int_remainder(x, _divisor(x, y))


def int_remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The remainder with the sign of x; 0 where it is undefined."""
    zero = y == 0
    return np.where(zero, np.zeros_like(x), np.fmod(x, np.where(zero, np.ones_like(y), y)))


def _rem_scalar(b: Any, x: Any, y: Any) -> Any:
    return b.fmod(x, y) if b.dtype(x).is_floating_point else b.binary("irem", x, y)


rem_p = elementwise(
    "rem",
    domain=REALS,
    eval=_rem_eval,
    ufunc=np.fmod,
    scalar=_rem_scalar,
    vjp=lambda ct, out, x, y: (ct, -(ct * trunc_p.bind(div_p.bind(x, y)))),
    needs="01",
)


def _extremum(name: str, fn: Callable[..., Any], op: str, on_bool: str, wins: str) -> Primitive:
    def vjp(ct: Any, out: Any, x: Any, y: Any) -> tuple[Any, Any]:
        half, zero = scale(ct, 0.5), full_like(ct, 0)
        tie, won = eq_p.bind(x, y), compare_named(wins).bind(x, y)
        # on a NaN both comparisons fail; torch then sends the whole cotangent to both operands
        dx = where(tie, half, where(compare_named(wins).bind(y, x), zero, ct))
        return dx, where(tie, half, where(won, zero, ct))

    return elementwise(
        name, domain=REALS + (bool_,), eval=fn, scalar=_scalar_binary(op, on_bool), vjp=vjp, needs="01"
    )


def compare_named(name: str) -> Primitive:
    return COMPARISONS[name]


maximum_p = _extremum("maximum", np.maximum, "max", "or", "gt")
minimum_p = _extremum("minimum", np.minimum, "min", "and", "lt")


def _copysign_vjp(ct: Any, out: Any, x: Any, y: Any) -> tuple[Any, Any]:
    return ct * (sign_p.bind(x) * copysign_p.bind(full_like(x, 1), y)), full_like(ct, 0)


copysign_p = elementwise(
    "copysign",
    domain=FLOATS,
    eval=np.copysign,
    scalar=_scalar_binary("copysign"),
    vjp=_copysign_vjp,
    needs="01",
)

# --- comparison and selection -------------------------------------------------------------------------------


def _comparison(name: str, fn: Callable[..., Any], domain: Any) -> Primitive:
    def infer(x: TensorType, y: TensorType) -> TensorType:
        return same_type(name, (x, y), domain).with_(dtype=bool_)

    def scalar(b: Any, x: Any, y: Any) -> Any:
        if b.dtype(x) is bool_:
            x, y = b.convert(x, u8), b.convert(y, u8)
        return b.compare(name, x, y)

    return elementwise(name, domain=domain, infer=infer, eval=fn, scalar=scalar)


eq_p = _comparison("eq", np.equal, DTYPES)
ne_p = _comparison("ne", np.not_equal, DTYPES)
lt_p = _comparison("lt", np.less, REALS + (bool_,))
le_p = _comparison("le", np.less_equal, REALS + (bool_,))
gt_p = _comparison("gt", np.greater, REALS + (bool_,))
ge_p = _comparison("ge", np.greater_equal, REALS + (bool_,))
COMPARISONS = {p.name: p for p in (eq_p, ne_p, lt_p, le_p, gt_p, ge_p)}


def _where_infer(c: TensorType, x: TensorType, y: TensorType) -> TensorType:
    if c.dtype is not bool_:
        raise TypeError(f"where: the condition must be bool, not {c.dtype.long_name}")
    out = same_type("where", (x, y), ())
    if c.shape != out.shape or c.device != out.device:
        raise ValueError(f"where: condition {c} does not fit operands {out}")
    return out


_LARGE, _CHUNK = 1 << 12, 1 << 14  # elements


def _as_bits(x: np.ndarray, integers: np.dtype[Any]) -> np.ndarray:
    """The elements in a row as integers; a constant (all strides 0) as one of them."""
    if not any(x.strides):
        x = x[(0,) * x.ndim]
    return np.ascontiguousarray(x).reshape(-1).view(integers)


def _where_eval(c: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """np.where branches on each element: with irregular conditions six times slower than blending bits."""
    if c.size < _LARGE or x.itemsize > 8 or x.dtype != y.dtype:
        return np.where(c, x, y)
    integers = np.dtype(f"i{x.itemsize}")
    a, b = _as_bits(x, integers), _as_bits(y, integers)
    flags = np.ascontiguousarray(c).reshape(-1).view(np.int8)
    out = np.empty(c.size, integers)
    for start in range(0, c.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        left, right = a if a.size == 1 else a[part], b if b.size == 1 else b[part]
        blend = np.negative(flags[part]).astype(integers)  # all ones where true
        blend &= left ^ right
        np.bitwise_xor(blend, right, out=out[part])
    return out.view(x.dtype).reshape(c.shape)


def _where_vjp(ct: Any, out: Any, c: Any, x: Any, y: Any) -> tuple[None, Any, Any]:
    zero = full_like(ct, 0)
    return None, where_p.bind(c, ct, zero), where_p.bind(c, zero, ct)


where_p = Primitive(
    "where",
    Kind.MAP,
    infer=_where_infer,
    eval=_where_eval,
    call=lambda attrs, c, x, y: np.where if c.size < _LARGE else None,
    scalar=lambda b, c, x, y: b.select(c, x, y),
    vjp=_where_vjp,
    needs="0",
    dtypes=(bool_,),
)
