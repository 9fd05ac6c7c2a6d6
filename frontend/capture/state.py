"""What the rest of weft needs to know about capture, and nothing heavy: the tensor, modules and optimizers
import it.

A :class:`TracedScalar` stands for a Python number that is read afresh at each call of a compiled function.
Arithmetic on it builds an expression that the call path evaluates in Python (so its rounding, overflow and
errors are Python's); where tensor code uses it, the number becomes a 0-d input of the graph. Asking for its
value (an index, ``float()``, formatting) makes it a constant with a guard; comparisons guard on their
outcome only, so that ``if lr > 0`` does not tie the compiled code to one learning rate.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from weft.ir.prims.base import _NUMPY, current_interpreter, interpreting

EPOCH = [0]  # a list, so that generated code reads the live value through one constant


def bump_epoch() -> None:
    """Say that some module flag or attribute changed: guards on modules look again at their next call."""
    EPOCH[0] += 1


def is_capturing() -> bool:
    """True while operations are being recorded in this thread."""
    return recorder() is not None


def recorder() -> Any:
    """The Recorder of this thread's capture, or None."""
    interp: Any = current_interpreter()
    if not interp.recording:
        interp = getattr(interp, "inner", interp)  # the taping interpreter of create_graph stands on another
    return interp if interp.recording else None


@contextmanager
def paused() -> Iterator[None]:
    """Run the block eagerly even inside a capture; what it makes are ordinary tensors."""
    with interpreting(_NUMPY):
        yield


def hidden_scalar(owner: Any, key: Any) -> Any:
    """``owner[key]`` as a plain number, or inside a capture as a number that later calls read afresh.

    Values that are not floats or ints come back as they are. ``owner`` must be the live object (a param
    group, say): later calls look the key up in it.
    """
    value = owner[key]
    interp = recorder()
    if interp is None or type(value) not in (float, int):
        return value
    return interp.hidden_scalar(owner, key, value)


class ScalarLog:
    """Collects, in program order, what a trace learned about its traced numbers.

    ``guards`` maps expressions to values: the compiled code is right only while each expression has its
    value.
    """

    def __init__(self) -> None:
        self.guards: dict[tuple[Any, ...], Any] = {}
        self.closed = False

    def guard(self, expr: tuple[Any, ...], value: Any) -> None:
        if not self.closed:
            self.guards.setdefault(expr, value)


class TracedScalar:
    """A Python float or int under capture. Passes ``isinstance(x, float)`` (or int) as the number would.

    Its expression is ``("leaf", n)``, ``("const", type name, number)`` or ``(operator name, *expressions)``.
    """

    __slots__ = ("_log", "_weft_expr", "_weft_value")
    _weft_scalar = True
    __array_priority__ = -1

    def __init__(self, value: float, expr: tuple[Any, ...], log: ScalarLog) -> None:
        self._weft_value, self._weft_expr, self._log = value, expr, log

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type(self._weft_value)

    @property
    def is_live(self) -> bool:
        """False once the trace it belongs to has ended: it then acts as the plain number."""
        return not self._log.closed

    def concrete(self) -> Any:
        """The number itself; the trace is from here on tied to it."""
        self._log.guard(self._weft_expr, self._weft_value)
        return self._weft_value

    def __float__(self) -> float:
        return float(self.concrete())

    def __int__(self) -> int:
        return int(self.concrete())

    def __index__(self) -> int:
        return operator.index(self.concrete())

    def __bool__(self) -> bool:
        return compare(operator.ne, "ne", self, 0)

    def __complex__(self) -> complex:
        return complex(self.concrete())

    def __hash__(self) -> int:
        return hash(self.concrete())

    def __repr__(self) -> str:
        return repr(self.concrete())

    def __str__(self) -> str:
        return str(self.concrete())

    def __format__(self, spec: str) -> str:
        return format(self.concrete(), spec)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.concrete(), digits) if digits is not None else round(self.concrete())

    def __trunc__(self) -> int:
        return int(self.concrete())

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        import numpy as np

        return np.array(self.concrete(), dtype=dtype)

    def __reduce__(self) -> Any:
        return type(self._weft_value), (self.concrete(),)

    def __copy__(self) -> TracedScalar:
        return self

    def __deepcopy__(self, memo: Any) -> TracedScalar:
        return self

    def __getattr__(self, name: str) -> Any:  # is_integer, bit_length, real, imag, hex ...
        if name.startswith("_") or not hasattr(type(self._weft_value), name):
            raise AttributeError(f"'{type(self._weft_value).__name__}' object has no attribute '{name}'")
        return getattr(self.concrete(), name)


def plain(x: Any) -> Any:
    """A traced number as the plain number (guarding on it); anything else as it is."""
    return x.concrete() if type(x) is TracedScalar else x


def _expr(x: Any) -> tuple[Any, ...]:
    return x._weft_expr if type(x) is TracedScalar else ("const", type(x).__name__, x)


def _value(x: Any) -> Any:
    return x._weft_value if type(x) is TracedScalar else x


def _is_number(x: Any) -> bool:
    return type(x) in (float, int, bool, TracedScalar)


def arithmetic(fn: Callable[..., Any], name: str, *operands: Any) -> Any:
    """Apply a numeric operator to traced and plain numbers; NotImplemented for tensors and sequences."""
    if not all(map(_is_number, operands)):
        return _with_foreign(fn, operands)
    traced = next(x for x in operands if type(x) is TracedScalar)
    value = fn(*map(_value, operands))
    if not traced.is_live:
        return value
    expr = (name, *map(_expr, operands))
    if type(value) not in (float, int):
        traced._log.guard(expr, value)
        return value
    if name == "pow":  # int or float or complex, depending on the values
        traced._log.guard(("type_is", type(value).__name__, expr), True)
    return TracedScalar(value, expr, traced._log)


def compare(fn: Callable[..., Any], name: str, *operands: Any) -> Any:
    """Compare; the trace is tied to the outcome, not to the numbers."""
    if not all(map(_is_number, operands)):
        return _with_foreign(fn, operands)
    traced = next(x for x in operands if type(x) is TracedScalar)
    outcome = fn(*map(_value, operands))
    traced._log.guard((name, *map(_expr, operands)), outcome)
    return outcome


def _with_foreign(fn: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """Tensors and sequences take a traced number by their own methods; the rest gets the plain number."""
    for x in operands:
        if hasattr(type(x), "_ir_type") or isinstance(x, (list, tuple, str, bytes)):
            return NotImplemented
    return fn(*map(plain, operands))


def _install(name: str, fn: Callable[..., Any], build: Callable[..., Any]) -> None:
    def forward(self: Any, other: Any) -> Any:
        return build(fn, name, self, other)

    def reflected(self: Any, other: Any) -> Any:
        return build(fn, name, other, self)

    setattr(TracedScalar, f"__{name}__", forward)
    if build is arithmetic:
        setattr(TracedScalar, f"__r{name}__", reflected)


BINARY = {n: getattr(operator, n) for n in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
BINARY |= {
    n: getattr(operator, n + "_" if n in ("and", "or") else n)
    for n in ("and", "or", "xor", "lshift", "rshift")
}
COMPARES = {n: getattr(operator, n) for n in ("eq", "ne", "lt", "le", "gt", "ge")}
UNARY = {n: getattr(operator, n) for n in ("neg", "pos", "abs")}


def _install_all() -> None:
    for name, fn in BINARY.items():
        _install(name, fn, arithmetic)
    for name, fn in COMPARES.items():
        _install(name, fn, compare)
    for name, fn in UNARY.items():
        setattr(TracedScalar, f"__{name}__", lambda self, fn=fn, name=name: arithmetic(fn, name, self))


_install_all()
