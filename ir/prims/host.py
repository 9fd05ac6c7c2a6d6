"""Calls of Python functions on arrays: what numpy does well and we do not generate (LAPACK, FFT ...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.ir.prims.base import Kind, Primitive
from weft.ir.record import record
from weft.ir.types import DTYPES, TensorType

__all__ = ["HOST_FUNCTIONS", "HostFunction", "host_call_p", "register_host"]


@record(frozen=True)
class HostFunction:
    """A function that ``host_call`` can name: its rules are those of a primitive (see :class:`Primitive`)."""

    name: str
    infer: Callable[..., TensorType | tuple[TensorType, ...]]
    eval: Callable[..., Any]
    vjp: Callable[..., tuple[Any, ...]] | None = None


HOST_FUNCTIONS: dict[str, HostFunction] = {}


def register_host(
    name: str,
    *,
    infer: Callable[..., TensorType | tuple[TensorType, ...]],
    eval: Callable[..., Any],
    vjp: Callable[..., tuple[Any, ...]] | None = None,
) -> HostFunction:
    """Make ``host_call(*xs, fn=name, **attrs)`` call ``eval(*arrays, **attrs)``.

    ``infer(*types, **attrs)`` gives the result type or types; ``vjp(ct, out, *operands, **attrs)`` the
    cotangents of the operands, in primitives. ``eval`` must be pure: its arguments may be read-only and its
    results are owned by the caller. Raises ValueError for a name that is taken.
    """
    if name in HOST_FUNCTIONS:
        raise ValueError(f"host function {name!r} is defined twice")
    HOST_FUNCTIONS[name] = found = HostFunction(name, infer, eval, vjp)
    return found


def _function(fn: str) -> HostFunction:
    if fn not in HOST_FUNCTIONS:
        raise ValueError(f"host_call: no host function is registered as {fn!r}")
    return HOST_FUNCTIONS[fn]


def _host_vjp(ct: Any, out: Any, *operands: Any, fn: str, **attrs: Any) -> tuple[Any, ...]:
    rule = _function(fn).vjp
    if rule is None:
        raise RuntimeError(f"derivative for {fn} is not implemented")
    return rule(ct, out, *operands, **attrs)


host_call_p = Primitive(
    "host_call", Kind.HOST, vjp=_host_vjp, dtypes=DTYPES,
    infer=lambda *types, fn, **attrs: _function(fn).infer(*types, **attrs),
    eval=lambda *xs, fn, **attrs: _function(fn).eval(*xs, **attrs),
)  # fmt: skip
