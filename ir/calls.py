"""A small graph as one Python function of numpy calls, for eager operations whose arithmetic costs nothing.

What depends on types and attributes alone is done once: constants are folded, attributes become arguments of
prepared calls (a primitive's ``call`` gives one, else its ``eval`` with the attributes), and operands of
elementwise operations stay as they are where numpy broadcasts them itself. The results are those of
:mod:`weft.ir.interp` (products may be rounded in another order), in memory of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind

Function = Callable[..., Any]
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_VIEWS = frozenset({"reshape", "permute", "broadcast", "slice", "diagonal"})  # share their operand's memory


def as_function(graph: Graph) -> Function:
    """A function of the arrays of ``graph.params`` that gives the results (a tuple of several).

    It runs with floating point errors as its caller has set them. TypeError for regions.
    """
    return _Writer(graph).function()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names: dict[Value, str] = {p: f"a{i}" for i, p in enumerate(graph.params)}
        self.lines: list[str] = []
        self.globals: dict[str, Any] = {"copy": _owned}
        self.constants: dict[Value, np.ndarray] = {}
        self.numbers: dict[Value, str] = {}  # of constants that have one value
        self.shapes: dict[Value, tuple[int, ...]] = {}  # of what numpy may still have to broadcast
        self.roots: dict[Value, Value] = {}  # of views: whose memory they may share
        self.owned: set[Value] = set()  # values whose memory a result has

    def function(self) -> Function:
        for op in self.graph.ops:
            self.write(op)
        results = [self.result(v) for v in self.graph.results]
        if len(self.lines) == 1 and len(results) == 1 and self.lines[0].startswith(f"{results[0]} = "):
            self.lines = [f"return {self.lines[0].split(' = ', 1)[1]}"]
        else:
            self.lines.append(f"return {results[0] if len(results) == 1 else '(' + ', '.join(results) + ')'}")
        params = ", ".join(self.names[p] for p in self.graph.params)
        text = "\n    ".join([f"def call({params}):", *self.lines])
        exec(compile(text, f"<eager {self.graph.name}>", "exec"), self.globals)
        return self.globals["call"]

    def constant(self, x: Any) -> str:
        name = f"c{len(self.globals)}"
        self.globals[name] = x
        return name

    def name(self, v: Value, *, whole: bool = True) -> str:
        """The expression of a value; ``whole``: in its full shape."""
        if not whole and v in self.constants and self.narrow(v) == ():
            if v not in self.numbers:
                self.numbers[v] = self.constant(np.array(self.constants[v][(0,) * v.type.ndim]))
            return self.numbers[v]
        if v not in self.names:
            self.names[v] = self.constant(self.constants[v])
        if whole and v in self.shapes:
            spread = partial(np.broadcast_to, shape=v.type.shape)
            self.lines.append(f"{self.names[v]} = {self.constant(spread)}({self.names[v]})")
            del self.shapes[v]
        return self.names[v]

    def result(self, v: Value) -> str:
        """The expression of a result, copied where its memory belongs to an operand, a constant or another
        result."""
        name, root = self.name(v), self.roots.get(v, v)
        if root in self.graph.params or root in self.constants or root in self.owned:
            return f"copy({name})"
        self.owned.add(root)
        return name

    def write(self, op: Op) -> None:
        if op.regions:
            raise TypeError(f"{op.prim.name} has regions")
        if all(v in self.constants for v in op.operands):
            self.fold(op)
        elif op.prim.name == "broadcast":
            self.stretch(op)
        else:
            self.call(op)

    def fold(self, op: Op) -> None:
        if op.prim.name == "full":
            one = op.prim.eval(**{**op.attrs, "shape": ()})
            found: Sequence[Any] = (np.broadcast_to(one, op.results[0].type.shape),)
        else:
            found = op.prim.evaluate([self.constants[v] for v in op.operands], op.attrs)
        self.constants.update(zip(op.results, found, strict=True))

    def stretch(self, op: Op) -> None:
        """A broadcast is left to numpy: extents of 1 for its new dimensions, if they do not come first."""
        (x,), (out,) = op.operands, op.results
        axes, n = op.attrs["axes"], len(op.attrs["shape"])
        narrow = [1] * n
        for a, d in zip(axes, x.type.shape, strict=True):
            narrow[a] = d
        name = self.name(x)
        if tuple(axes) != tuple(range(n - len(axes), n)):
            self.names[out] = f"v{len(self.names)}"
            self.lines.append(f"{self.names[out]} = {name}.reshape({tuple(narrow)})")
        else:
            self.names[out] = f"v{len(self.names)}"
            self.lines.append(f"{self.names[out]} = {name}")
        self.shapes[out] = tuple(narrow)
        self.roots[out] = self.roots.get(x, x)

    def call(self, op: Op) -> None:
        stretchable = op.prim.kind is Kind.MAP and self.covers(op)
        operands = [self.name(v, whole=not stretchable) for v in op.operands]
        outs = []
        for v in op.results:
            self.names[v] = f"v{len(self.names)}"
            outs.append(self.names[v])
        target = outs[0] if len(outs) == 1 else ", ".join(outs)
        self.lines.append(f"{target} = {self.constant(prepared(op))}({', '.join(operands)})")
        if op.prim.name in _VIEWS:
            self.roots[op.results[0]] = self.roots.get(op.operands[0], op.operands[0])

    def covers(self, op: Op) -> bool:
        """Whether operands as they are broadcast to the shape of the result."""
        found = np.broadcast_shapes(*[self.narrow(v) for v in op.operands])
        return found == op.results[0].type.shape

    def narrow(self, v: Value) -> tuple[int, ...]:
        """The shape that numpy broadcasts: for a constant of one value none."""
        a = self.constants.get(v)
        if a is not None and a.size and not any(a.strides):
            return ()
        return self.shapes.get(v, v.type.shape)


def _owned(a: np.ndarray) -> np.ndarray:
    return np.array(a)


def prepared(op: Op) -> Function:
    """An operation as a function of its operands alone."""
    found = prepared_call(op)
    if found is not None:
        return found
    return partial(op.prim.eval, **op.attrs) if op.attrs else op.prim.eval


def prepared_call(op: Op) -> Function | None:
    """The one numpy call that an operation is; None where its rule does more."""
    prim, types = op.prim, [v.type for v in op.operands]
    make = prim.tags.get("call")
    if make is not None:
        return make(op.attrs, *types)
    if prim.kind is Kind.MAP and not op.attrs and prim.ufunc is not None:
        dtypes = {t.dtype.np for t in types}
        if dtypes <= set(_FLOATS) or (prim.plain_ufunc and all(d.kind in "biu" for d in dtypes)):
            return prim.ufunc
    return None
