"""What a compiled function returns: expressions that make the outputs afresh at each call."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from weft.autograd.tape import edge_of
from weft.capture.signature import is_data
from weft.capture.sources import SourceFinder, Unfit
from weft.capture.state import TracedScalar
from weft.devices import to_host
from weft.dispatch import payload
from weft.ir import prims as P
from weft.ir.graph import Op, Value, devices_of
from weft.ir.prims.base import _NUMPY
from weft.ir.types import CPU, Device, DType
from weft.tensor import Tensor
from weft.views import View, views

CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type, range, slice),
    *(np.generic, np.dtype, types.ModuleType, types.BuiltinFunctionType, DType, Device),
)


class OutputWriter(SourceFinder):
    """Writes the expression of the outputs, and the statements that wrap results in tensors."""

    @cached_property
    def on_device(self) -> bool:
        """Whether the graph runs on a GPU."""
        return any(d.type == "cuda" for d in devices_of(self.seg.builder))

    @cached_property
    def _broadcasts(self) -> dict[Value, Op]:
        """The broadcasts of the trace by their results."""
        return {op.results[0]: op for op in self.seg.builder.ops if op.prim is P.broadcast_p}

    def _output(self, o: Any) -> str:
        """An expression that makes the output afresh (statements it needs go to ``after``)."""
        if isinstance(o, Tensor):
            return self._tensor_out(o)
        if type(o) is TracedScalar:
            return self.number(o._weft_expr)
        if id(o) in self.sig.containers and not isinstance(o, tuple):
            return self.sig.containers[id(o)]
        kind: Any = type(o)
        if kind in (list, tuple, set) or (isinstance(o, tuple) and hasattr(o, "_fields")):
            return self._sequence_out(o)
        if isinstance(o, dict) and kind in (dict, OrderedDict):
            pairs = ", ".join(f"{self.code.const(k, 'k')}: {self._output(v)}" for k, v in o.items())
            return "{" + pairs + "}" if kind is dict else f"{self.code.const(kind, 'T')}({{{pairs}}})"
        if isinstance(o, CONSTANTS) or o == ():
            return self.code.const(o, "o") if o is not None else "None"
        if any(x is o for x in (*self.sig.keep, *self.env.keep)):
            return self.code.const(o, "o")
        if is_data(o) and hasattr(o, "__dict__"):
            return self._dataclass_out(o)
        raise Unfit(f"it returns an object of type {kind.__name__}")

    def _sequence_out(self, o: Any) -> str:
        items = [self._output(x) for x in o]
        if type(o) is list:
            return "[" + ", ".join(items) + "]"
        if type(o) is tuple:
            return "(" + "".join(i + ", " for i in items) + ")"
        cls = self.code.const(type(o), "T")
        if type(o) is set:
            return f"{cls}([{', '.join(items)}])"
        return f"{cls}({', '.join(items)})"

    def _dataclass_out(self, o: Any) -> str:
        fields = ", ".join(f"{k!r}: {self._output(v)}" for k, v in vars(o).items())
        make = self.code.const(_rebuild, "rebuild")
        return f"{make}({self.code.const(type(o), 'T')}, {{{fields}}})"

    def _tensor_out(self, t: Tensor) -> str:
        if id(t) in self.outs:
            return self.outs[id(t)]
        if type(t._data) is not Value:
            self.outs[id(t)] = self._concrete_out(t)
            return self.outs[id(t)]
        view = t._view
        if view is not None and self._shares(view):
            self.outs[id(t)] = self._view_out(t, view)
            return self.outs[id(t)]
        if type(t) is not Tensor:
            raise Unfit(f"it returns a new tensor of class {type(t).__name__}")
        return self._fresh_out(t)

    def _fresh_out(self, t: Tensor) -> str:
        var = self.outs[id(t)] = f"t{len(self.outs)}"
        value = payload(t, self.rec)
        spread = self._spread(t, value)
        i = self.result_of[id(t)] = self._result(spread.operands[0] if spread else value)
        data = f"r[{i}]"
        if spread:
            make, attrs = self.code.const(_broadcast, "spread"), self.code.const(spread.attrs, "attrs")
            data = f"{make}({data}, {attrs})"
        if value.type.device is CPU and self.on_device:
            data = f"{self.code.const(to_host, 'host')}({data})"
        self.after += [f"{var} = new(Tensor)", f"{var}._data = {data}", f"{var}._vc = [0]"]
        if self.made.modes[1]:
            self.after.append(f"{var}._inference = True")
        self.out_tensors.append(t)
        return var

    def _spread(self, t: Tensor, value: Value) -> Op | None:
        """The broadcast that makes ``value``, where its operand is returned and spread without a copy.

        As eagerly, the elements then share memory. Not so a gradient that a parameter keeps, which is written
        to, nor what a gradient flows through, whose cotangent has the shape of the result."""
        op = self._broadcasts.get(value)
        if op is None or not value.type.nbytes:
            return None
        kept = any(b.tensor._grad is t for b in self.rec.states.values())
        return None if kept or edge_of(t) is not None or value in self.results else op

    def _result(self, v: Value) -> int:
        """The index of a new result; a value that is an input or a result already is copied."""
        if v in self.seg.builder.params or v in self.results:
            (v,) = self.seg.builder.add(P.copy_p, (v,))
            self.seg.known.add(v)
        self.results.append(v)
        return len(self.results) - 1

    def _concrete_out(self, t: Tensor) -> str:
        if self._is_reachable(t) or id(t) in self.sources:
            return self.source(t).var
        raise Unfit("it returns a tensor that was reached in a way that cannot be followed")

    def _shares(self, view: View) -> bool:
        """Whether the memory that a view output shows is also visible elsewhere."""
        base = _root(view)
        if type(base._data) is not Value or id(base) in self.outs or base in _tensors(self.made.out, base):
            return True
        outs = {id(t): t for _, t in tensor_paths(self.made.out)}.values()
        return sum(t._view is not None and _root(t._view) is base for t in outs) > 1

    def _view_out(self, t: Tensor, view: View) -> str:
        base = view.base
        b = self._tensor_out(base) if type(base._data) is Value else self._concrete_out(base)
        var = f"t{len(self.outs)}"
        make = self.code.const(view_again, "view")
        steps = self.code.const(view.steps, "steps")
        self.after.append(f"VIEW {var} = {make}({b}, {steps}, {view.differentiable}, {t._rg})")
        return var


def _broadcast(x: Any, attrs: Mapping[str, Any]) -> Any:
    return _NUMPY.bind(P.broadcast_p, (x,), attrs, ())


def tensor_paths(o: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Tensor]]:
    """The tensors in nested outputs, with the way to each."""
    if isinstance(o, Tensor):
        return [(path, o)]
    if isinstance(o, dict):
        pairs = [((*path, ("item", k)), v) for k, v in o.items()]
    elif isinstance(o, (list, tuple)):
        pairs = [((*path, ("item", i)), v) for i, v in enumerate(o)]
    elif is_data(o):
        pairs = [((*path, ("attr", k)), v) for k, v in vars(o).items()]
    else:
        return []
    return [found for where, v in pairs for found in tensor_paths(v, where)]


def follow(o: Any, path: tuple[Any, ...]) -> Any:
    for kind, key in path:
        o = o[key] if kind == "item" else getattr(o, key)
    return o


def _root(view: View) -> Tensor:
    base = view.base
    while base._view is not None and type(base._data) is Value:
        base = base._view.base
    return base


def _tensors(o: Any, besides: Tensor) -> list[Tensor]:
    """The captured tensors among the outputs (nested) that show the same memory as ``besides``."""
    found: list[Tensor] = []
    if isinstance(o, Tensor):
        return [o] if o is besides else []
    items = o.values() if isinstance(o, dict) else o if isinstance(o, (list, tuple)) else ()
    for x in items:
        found += _tensors(x, besides)
    return found


def view_again(base: Tensor, steps: Any, differentiable: bool, rg: bool) -> Tensor:
    """A view output, made eagerly from its base."""
    if not differentiable and not steps:
        return base.detach()
    source = base if differentiable else base.detach()
    return views(source, steps)


def _rebuild(cls: type, fields: dict[str, Any]) -> Any:
    out = object.__new__(cls)
    out.__dict__.update(fields)
    return out
