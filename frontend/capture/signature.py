"""The arguments of a call: what in them is an input, what is a constant with a guard, and the code that
checks it.

Tensors anywhere in nested lists, tuples, dictionaries and dataclasses are inputs. Python floats given
directly as arguments (and ints that were seen to change) are traced numbers. Everything else is a constant
that later calls must give again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from weft.capture.environment import same
from weft.capture.state import TracedScalar
from weft.ir.record import record
from weft.ir.types import CPU, Device
from weft.tensor import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None))


NATIVE = " #native"  # marks the conditions that the native call checks, too


class Code:
    """Source lines of a check function, the constants they use, and a reason for each way to fail.

    A failing check returns the index of its reason.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.consts: dict[str, Any] = {}
        self.reasons: list[Any] = []
        self._names: dict[int, str] = {}
        self._fresh = 0

    def const(self, value: Any, prefix: str = "c") -> str:
        """A name for a constant object; one per object."""
        name = self._names.get(id(value))
        if name is None:
            name = f"{prefix}{len(self.consts)}"
            self.consts[name] = value
            self._names[id(value)] = name
        return name

    def fresh(self, prefix: str) -> str:
        self._fresh += 1
        return f"{prefix}{self._fresh}"

    def emit(self, line: str) -> None:
        self.lines.append(line)

    def fail_if(self, condition: str, reason: Any) -> None:
        """``reason``: a text, or a function of (args, kwargs) that gives one."""
        self.lines.append(f"if {condition}: return {self.reason(reason)}")

    def reason(self, reason: Any) -> int:
        self.reasons.append(reason)
        return len(self.reasons) - 1


@record
class Given:
    """An explicit tensor: the object, its variable in the generated code, and its array's variable."""

    tensor: Tensor
    var: str
    array: str
    label: str
    contiguous: bool


class Signature:
    """Reads the arguments of one call (``label`` names them as the user does).

    ``args`` and ``kwargs`` are what the traced function gets: the given objects, with traced numbers for
    floats.
    """

    def __init__(self, code: Code, names: list[str], dynamic: set[str], traced: Any) -> None:
        self.code, self.names, self.dynamic, self.traced = code, names, dynamic, traced
        self.given: dict[int, Given] = {}
        self.containers: dict[int, str] = {}
        self.numbers: dict[str, Any] = {}
        self.keep: list[Any] = []
        self.objects: list[tuple[Any, str]] = []
        self.opaque: list[str] = []
        self._paths: dict[str, str] = {}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Emit the checks of all arguments; the arguments for the trace."""
        code = self.code
        n, m = len(args), len(kwargs)
        code.fail_if(
            f"len(args) != {n} or {f'len(kwargs) != {m}' if m else 'kwargs'}",
            lambda a, k: (
                f"called with {len(a)} positional and {len(k)} keyword arguments, expected {n} and {m}"
            ),
        )
        new_args = [self._top(x, f"args[{i}]", self._name(i)) for i, x in enumerate(args)]
        for key in kwargs:
            code.fail_if(f"{key!r} not in kwargs", f"keyword argument {key} is missing")
        new_kwargs = {k: self._top(x, f"kwargs[{k!r}]", k) for k, x in kwargs.items()}
        return tuple(new_args), new_kwargs

    def _name(self, i: int) -> str:
        return self.names[i] if i < len(self.names) else f"argument {i}"

    def _top(self, x: Any, access: str, label: str) -> Any:
        kind = type(x)
        if self.traced is not None and (kind is float or (kind is int and label in self.dynamic)):
            return self._number(x, access, label)
        self._any(x, access, label)
        return x

    def _number(self, x: float, access: str, label: str) -> Any:
        var = self.code.fresh("n")
        kind = self.code.const(type(x), "K")
        self.code.emit(f"{var} = {access}")
        self.code.fail_if(f"type({var}) is not {kind}", f"{label} is no longer of type {type(x).__name__}")
        if type(x) is int:
            self.code.fail_if(
                f"not -4611686018427387904 < {var} < 4611686018427387904", f"{label} is a very large int"
            )
        self.numbers[var] = x
        return self.traced(x, var, label)

    def _any(self, x: Any, access: str, label: str) -> None:
        self.keep.append(x)
        kind = type(x)
        if isinstance(x, Tensor):
            self._tensor(x, access, label)
        elif kind is list or (isinstance(x, tuple)):
            self._sequence(x, access, label)
        elif kind is dict:
            self._dict(x, access, label)
        elif is_data(x):
            self._dataclass(x, access, label)
        else:
            self._constant(x, access, label)

    def _tensor(self, x: Tensor, access: str, label: str) -> None:
        code = self.code
        if id(x) in self.given:
            first = self.given[id(x)]
            code.fail_if(
                f"{access} is not {first.var}", f"{label} is no longer the same tensor as {first.label}"
            )
            return
        d = x._data
        var, array = code.fresh("x"), code.fresh("d")
        code.emit(f"{var} = {access}")
        full, rg = self._full(access), x.requires_grad
        contiguous = bool(d.flags.c_contiguous)
        known = {
            "cls": type(x),
            "dtype": d.dtype,
            "shape": d.shape,
            "rg": rg,
            "leaf": x.is_leaf,
            "c": contiguous,
            "device": x.device,
        }
        text = lambda a, k: _tensor_change(label, full, known, a, k)  # noqa: E731
        cls, nd = code.const(type(x), "T"), code.const(type(d), "nd")
        rg_test = f"{var}._rg is not {rg} or {var}._view is not None and {var}.requires_grad is not {rg}"
        if x._view is not None:
            rg_test = f"{var}.requires_grad is not {rg}"
        leaf = f" or ({var}._edge is None) is not {x.is_leaf}" if rg else ""
        code.fail_if(f"type({var}) is not {cls} or {rg_test}{leaf}", text)
        code.emit(f"{array} = {var}._data")
        # The native call looks at these itself: they are left out of the fast version of the check.
        native = NATIVE if contiguous else ""
        elsewhere = "" if x.device is CPU else f" or {array}.device != {code.const(x.device, 'D')}"
        code.fail_if(
            f"type({array}) is not {nd}{elsewhere} or {array}.dtype is not {code.const(d.dtype, 'dt')} "
            f"or {array}.shape != {d.shape!r} or {array}.flags.c_contiguous is not {contiguous}{native}",
            text,
        )
        self.given[id(x)] = Given(x, var, array, label, contiguous)

    def _open(self, x: Any, access: str, label: str, what: str, size: int) -> str:
        code = self.code
        var = code.fresh("v")
        self._paths[var] = self._full(access)
        code.emit(f"{var} = {access}")
        code.fail_if(
            f"type({var}) is not {code.const(type(x), 'T')} or len({var}) != {size}",
            f"{label} is no longer a {what} of length {size}",
        )
        self.containers[id(x)] = var
        return var

    def _sequence(self, x: Any, access: str, label: str) -> None:
        var = self._open(x, access, label, type(x).__name__, len(x))
        for i, item in enumerate(x):
            self._any(item, f"{var}[{i}]", f"{label}[{i}]")

    def _dict(self, x: Mapping[Any, Any], access: str, label: str) -> None:
        var = self._open(x, access, label, "dict", len(x))
        if all(isinstance(k, (str, int, float, bool, tuple)) for k in x):
            keys = self.code.const(list(x))
            self.code.fail_if(f"list({var}) != {keys}", f"the keys of {label} changed")
            for key, item in x.items():
                self._any(item, f"{var}[{self.code.const(key, 'k')}]", f"{label}[{key!r}]")
        else:
            self._identity(x, access, label)

    def _dataclass(self, x: Any, access: str, label: str) -> None:
        var = self.code.fresh("v")
        self._paths[var] = self._full(access)
        self.code.emit(f"{var} = {access}")
        self.code.fail_if(
            f"type({var}) is not {self.code.const(type(x), 'T')}", f"the type of {label} changed"
        )
        self.containers[id(x)] = var
        self.objects.append((type(x), label))
        from dataclasses import fields

        for f in fields(x):
            self._any(getattr(x, f.name), f"{var}.{f.name}", f"{label}.{f.name}")

    def _constant(self, x: Any, access: str, label: str) -> None:
        if isinstance(x, PLAIN) and type(x) in PLAIN:
            c, full = self.code.const([x]), self._full(access)
            shown = lambda a, k: f"{label} changed from {x!r} to {look(full, a, k)}"  # noqa: E731
            if x is None or type(x) is bool:
                self.code.fail_if(f"{access} is not {x}", shown)
            else:
                same_ = self.code.const(same, "same")
                self.code.fail_if(f"{access} is not {c}[0] and not {same_}({access}, {c}[0])", shown)
            return
        if isinstance(x, (np.generic, np.dtype, slice, range, Device)):
            same_ = self.code.const(same, "same")
            self.code.fail_if(f"not {same_}({access}, {self.code.const(x)})", f"{label} changed")
            return
        self._identity(x, access, label)

    def _full(self, access: str) -> str:
        """An access path from a variable as one from args or kwargs."""
        rest = access[1:].lstrip("0123456789")
        known = self._paths.get(access[: len(access) - len(rest)]) if access.startswith("v") else None
        return access if known is None else known + rest

    def _identity(self, x: Any, access: str, label: str) -> None:
        if isinstance(x, np.ndarray):
            self.opaque.append(f"the numpy array in {label}, whose contents may change between calls")
        self.code.fail_if(
            f"{access} is not {self.code.const(x, 'o')}",
            f"{label} is another object of type {type(x).__name__}",
        )
        self.objects.append((x, label))


def is_data(x: Any) -> bool:
    """Whether ``x`` is an instance of a dataclass; asked so that a start does without the module."""
    return hasattr(type(x), "__dataclass_fields__")


def look(access: str, args: Any, kwargs: Any) -> str:
    """The present value at an access path that starts from args or kwargs; '...' where it cannot be read."""
    try:
        return repr(eval(access, {"args": args, "kwargs": kwargs}))
    except Exception:
        return "another value"


def _tensor_change(label: str, access: str, known: dict[str, Any], args: Any, kwargs: Any) -> str:
    """Which property of a tensor argument differs from what the compiled code expects."""
    try:
        x = eval(access, {"args": args, "kwargs": kwargs})
    except Exception:
        return f"{label} changed"
    if type(x) is not known["cls"]:
        return f"{label} changed from {known['cls'].__name__} to {type(x).__name__}"
    if x.device != known["device"]:
        return f"device of {label} changed from {known['device']} to {x.device}"
    if x._data.dtype != known["dtype"]:
        return f"dtype of {label} changed from {known['dtype']} to {x._data.dtype}"
    if x._data.shape != known["shape"]:
        return f"shape of {label} changed from {list(known['shape'])} to {list(x._data.shape)}"
    if x.requires_grad is not known["rg"]:
        return f"requires_grad of {label} changed from {known['rg']} to {x.requires_grad}"
    if x._data.flags.c_contiguous is not known["c"]:
        return f"{label} is {'no longer' if known['c'] else 'now'} contiguous"
    return f"{label} is {'now a leaf' if x.is_leaf else 'no longer a leaf'} of the autograd graph"


def is_live_number(x: Any) -> bool:
    return type(x) is TracedScalar
