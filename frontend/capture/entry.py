"""One compiled version of a function: its guards, its executables, and the generated code that checks and
calls.

The generated function reads: check the arguments; check what the trace read elsewhere (by identity; anything
that is not identical goes to :meth:`Entry.refresh`, which compares slowly and adopts what is equal or
compatible); collect the arrays and numbers; call; wrap the results and do what the function did to tensors.
A check that fails returns a :class:`Miss`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.capture.environment import CALL, MISSING, TRACE, Environment, Place, same
from weft.capture.recorder import shares
from weft.capture.signature import Code
from weft.capture.state import EPOCH
from weft.devices import home
from weft.tensor import Tensor


class Miss:
    """A guard that failed; ``reason(args, kwargs)`` says which, in one line. ``index``: its place among
    the guards."""

    __slots__ = ("_reason", "index")

    def __init__(self, reason: Any, index: int = 2000) -> None:
        self._reason, self.index = reason, index

    def reason(self, args: Any, kwargs: Any) -> str:
        return self._reason if isinstance(self._reason, str) else self._reason(args, kwargs)


class Hidden:
    """A tensor that the function reaches by itself: an input, read afresh. ``name`` stands for it in the
    code."""

    __slots__ = ("array", "array_name", "contiguous", "leaf", "name", "path", "rg", "tensor", "writes",
                 "written")  # fmt: skip

    def __init__(self, tensor: Tensor, path: str, name: str, array_name: str) -> None:
        self.tensor, self.path, self.name, self.array_name = tensor, path, name, array_name
        self.array = tensor._data
        self.contiguous = bool(self.array.flags.c_contiguous)
        self.rg, self.leaf = tensor.requires_grad, tensor.is_leaf
        self.written, self.writes = False, 0

    def mismatch(self, t: Any) -> str | None:
        """Why ``t`` cannot stand in for the tensor of the trace."""
        if type(t) is not type(self.tensor):
            return f"{self.path} changed from {type(self.tensor).__name__} to {type(t).__name__}"
        d = t._data
        if type(d) is not type(self.array) or t.device != home(self.array):
            return f"device of {self.path} changed from {home(self.array)} to {t.device}"
        if d.dtype != self.array.dtype:
            return f"dtype of {self.path} changed from {self.array.dtype} to {t.dtype}"
        if d.shape != self.array.shape:
            return f"shape of {self.path} changed from {list(self.array.shape)} to {list(d.shape)}"
        if t.requires_grad is not self.rg:
            return f"requires_grad of {self.path} changed from {self.rg} to {t.requires_grad}"
        if t.is_leaf is not self.leaf:
            return f"{self.path} is {'no longer' if self.leaf else 'now'} a leaf of the autograd graph"
        if bool(d.flags.c_contiguous) is not self.contiguous:
            return f"{self.path} is {'no longer' if self.contiguous else 'now'} contiguous"
        return None


def root_of(a: Any) -> Any:
    """The object that owns the memory of an array."""
    if type(a) is not np.ndarray:
        return a if a.base is None else a.base
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a if a.base is None else a.base


def clashes(a: np.ndarray, roots: set[int], written: Sequence[np.ndarray]) -> bool:
    """Whether an argument shares memory with a written input; ``roots``: the ids of the owners of those."""
    root = root_of(a)
    whole = type(root) is np.ndarray or type(root).__name__ == "Lease" or getattr(root, "on_device", False)
    if id(root) not in roots and whole:
        return False
    return any(shares(a, w) for w in written)


class Guards:
    """The checks of places and hidden tensors, as code with identity tests and as a slow comparison."""

    def __init__(self, code: Code, env: Environment, skip: set[tuple[int, Any]]) -> None:
        self.code, self.env = code, env
        self.namespace: dict[str, Any] = {}
        self.places = [p for p in _split_places(env.places, skip) if p.when != TRACE]
        self.names: list[str | None] = []
        self.hidden: dict[int, Hidden] = {}
        self.checks: list[str] = []
        self._apart: list[int] = []
        for p in self.places:
            self.names.append(self._condition(p) if p.when == CALL else None)

    def _condition(self, p: Place) -> str:
        """Add the identity test of one place; the name of the constant it compares with."""
        v, h = self.code.fresh("V"), self.code.const(p.holder, "P")
        self.namespace[v] = guard_value(p)
        self.checks.append(_TESTS[p.kind](p, h, v, self.code))
        return v

    def hide(self, t: Tensor) -> Hidden:
        """A hidden input for a tensor found in the environment."""
        found = self.hidden.get(id(t))
        if found is None:
            n = len(self.hidden)
            found = self.hidden[id(t)] = Hidden(t, self.env.tensors[id(t)][1], f"H{n}", f"A{n}")
            self.namespace[found.name], self.namespace[found.array_name] = t, found.array
        return found

    def refresh(self, namespace: dict[str, Any]) -> str | None:
        """Compare everything by value. None, with the namespace brought up to date, if the entry still
        applies."""
        moved: dict[int, Any] = {}
        now: list[Any] = []
        for p in self.places:
            value = p.read()
            if not _adopt(p, value, moved, self.hidden):
                return _describe(p, value, self.hidden)
            now.append(value)
        for h in self.hidden.values():
            why = h.mismatch(moved.get(id(h.tensor), h.tensor))
            if why is not None:
                return why
        for p, value, name in zip(self.places, now, self.names, strict=True):
            p.value = value
            if name is not None:
                namespace[name] = guard_value(p)
        for h in self.hidden.values():
            h.tensor = moved.get(id(h.tensor), h.tensor)
            h.array = h.tensor._data
            namespace[h.name], namespace[h.array_name] = h.tensor, h.array
        self.hidden = {id(h.tensor): h for h in self.hidden.values()}
        namespace["e0"] = EPOCH[0]
        namespace |= self.written()
        return self._clash()

    def written(self) -> dict[str, Any]:
        """Constants of the generated code about the hidden inputs that are written: the owners of their
        memory, their arrays, and how many versions each of them goes on by."""
        found = [h for h in self.hidden.values() if h.written]
        return {
            "roots": {id(root_of(h.array)) for h in found},
            "written": tuple(h.array for h in found),
            "writes": tuple((h.tensor, h.writes) for h in found),
        }

    def _clash(self) -> str | None:
        """Written hidden inputs must not share memory with others: the trace took them apart."""
        arrays = list(self.hidden.values())
        if [id(h.array) for h in arrays] == self._apart:
            return None
        self._apart = [id(h.array) for h in arrays]
        for h in arrays:
            if h.written and any(o is not h and shares(h.array, o.array) for o in arrays):
                return f"{h.path} now shares memory with another input"
        return None


def _split_places(places: Sequence[Place], skip: set[tuple[int, Any]]) -> list[Place]:
    """Dictionaries with entries that are read afresh become one place per other entry, and one for the
    keys."""
    owners = {owner for owner, _ in skip}
    out: list[Place] = []
    for p in places:
        if p.kind == "dict" and id(p.holder) in owners:
            out.append(Place("keys", p.holder, None, list(p.holder), p.path, p.when))
            out += [
                Place("item", p.holder, k, v, f"{p.path}[{k!r}]", p.when)
                for k, v in p.value
                if (id(p.holder), k) not in skip
            ]
        elif p.kind != "item" or (id(p.holder), p.key) not in skip:
            out.append(p)
    return out


def guard_value(p: Place) -> Any:
    """What the generated test compares with."""
    if p.kind == "dict":
        return [k for k, _ in p.value], [v for _, v in p.value]
    return p.value.tobytes() if p.kind == "array" else p.value


def _test_item(p: Place, h: str, v: str, code: Code) -> str:
    key = code.const(p.key, "k") if not isinstance(p.key, str) else repr(p.key)
    if p.value is MISSING:
        return f"{key} in {h}"
    return f"{h}[{key}] is not {v}"


def _test_list(p: Place, h: str, v: str) -> str:
    return f"len({h}) != {len(p.value)} or not all(map(is_, {h}, {v}))" if p.value else h


def _test_dict(p: Place, h: str, v: str) -> str:
    if not p.value:
        return h
    entries = f"all(map(is_, {h}.values(), {v}[1])) and all(map(is_, {h}, {v}[0]))"
    return f"len({h}) != {len(p.value)} or not ({entries})"


_TESTS: dict[str, Callable[[Place, str, str, Code], str]] = {
    "item": _test_item,
    "cell": lambda p, h, v, c: (
        f"{h}.cell_contents is not {v}" if p.value is not MISSING else f"cell_is_full({h})"
    ),
    "attr": lambda p, h, v, c: f"getattr({h}, {p.key!r}, MISSING) is not {v}",
    "list": lambda p, h, v, c: _test_list(p, h, v),
    "dict": lambda p, h, v, c: _test_dict(p, h, v),
    "keys": lambda p, h, v, c: f"list({h}) != {v}",
    "set": lambda p, h, v, c: f"{h} != {v}",
    "size": lambda p, h, v, c: f"len({h}) != {len(p.holder)}",
    "array": lambda p, h, v, c: f"{h}.tobytes() != {v}",
}


def cell_is_full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _adopt(p: Place, now: Any, moved: dict[int, Any], hidden: dict[int, Hidden]) -> bool:
    """Whether the present value of a place will do; notes tensors that took the place of others."""
    if p.kind in ("list", "dict"):
        if len(now) != len(p.value):
            return False
        pairs = zip(now, p.value, strict=True)
        if p.kind == "dict":
            return all(same(a[0], b[0]) and _adopt_one(a[1], b[1], moved, hidden) for a, b in pairs)
        return all(_adopt_one(a, b, moved, hidden) for a, b in pairs)
    return _adopt_one(now, p.value, moved, hidden)


def _adopt_one(now: Any, old: Any, moved: dict[int, Any], hidden: dict[int, Hidden]) -> bool:
    if isinstance(old, Tensor):
        if id(old) in hidden:
            return moved.setdefault(id(old), now) is now and isinstance(now, Tensor)
        return now is old
    return same(now, old)


def _describe(p: Place, now: Any, hidden: dict[int, Hidden]) -> str:
    if p.kind in ("item", "cell", "attr"):
        old = p.value
        if isinstance(old, Tensor) and isinstance(now, Tensor) and id(old) in hidden:
            return hidden[id(old)].mismatch(now) or f"{p.path} is another tensor"
        return f"{p.path} changed from {brief(old)} to {brief(now)}"
    return f"the contents of {p.path} changed"


def brief(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {list(x.shape)}"
    text = repr(x)
    return text if len(text) <= 60 else f"{text[:57]}..."


HELPERS = {"is_": operator.is_, "MISSING": MISSING, "EPOCH": EPOCH, "cell_is_full": cell_is_full}
