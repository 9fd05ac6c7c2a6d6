"""Executing the segments of a capture that has breaks: a cache from the structure of a segment to its
executable.

Two segments have one structure when the same primitives are applied to the same operands with the same
attributes, apart from the values of constants. The first constants seen are compiled in; when others come,
the structure is compiled once more with its constants as inputs, so that a number read from a tensor in one
segment and used in the next does not compile anew at each call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Value, copy_op
from weft.ir.types import CPU, TensorType
from weft.runtime.precision import switches

Key = tuple[Any, ...]


class SegmentCache:
    """Compiles segments (``compile_graph`` as the runtime's) and remembers them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fixed: dict[Key, dict[Key, Any]] = {}
        self._open: dict[Key, Any] = {}
        self.latest: deque[Any] = deque(maxlen=1000)

    def run(self, graph: Graph, arrays: Sequence[Any]) -> Sequence[np.ndarray]:
        """Run the segment on its inputs."""
        structure, constants = describe(graph)
        structure = (*structure, switches.now)
        exe = self._find(structure, tuple(map(_value_key, constants)))
        if exe is None:
            exe = self._compile(graph, structure, constants)
        executable, opened = exe
        self.latest.append(executable)
        extra = [_constant_array(op) for op in constants] if opened else []
        return executable.call([*arrays, *extra])

    def _find(self, structure: Key, values: Key) -> Any:
        known = self._fixed.get(structure)
        if known is None:
            return None
        exe = known.get(values)
        return (
            (exe, False)
            if exe is not None
            else ((self._open[structure], True) if structure in self._open else None)
        )

    def _compile(self, graph: Graph, structure: Key, constants: list[Any]) -> Any:
        from weft.runtime import compile_graph

        with self._lock:
            known = self._fixed.setdefault(structure, {})
            if not known or not constants:
                known[tuple(map(_value_key, constants))] = exe = compile_graph(graph, name=graph.name)
                return exe, False
            self._open[structure] = exe = compile_graph(_opened(graph, constants), name=graph.name)
            return exe, True


def describe(graph: Graph) -> tuple[Key, list[Any]]:
    """(structure, operations that are constants), so that equal structures differ in the constants only."""
    number: dict[Value, int] = {p: i for i, p in enumerate(graph.params)}
    parts: list[Any] = [tuple(p.type for p in graph.params)]
    constants: list[Any] = []
    for op in graph.ops:
        if _is_constant(op):
            constants.append(op)
            parts.append(("constant", op.result.type))
        else:
            parts.append(
                (
                    op.prim.name,
                    tuple(number[v] for v in op.operands),
                    _attrs_key(op.attrs),
                    tuple(map(str, op.regions)),
                )
            )
        for r in op.results:
            number[r] = len(number)
    parts.append(tuple(number[r] for r in graph.results))
    return tuple(parts), constants


def _is_constant(op: Any) -> bool:
    return op.prim.name in ("full", "constant")


def _attrs_key(attrs: Any) -> Key:
    return tuple((k, _freeze(v)) for k, v in sorted(attrs.items()))


def _freeze(v: Any) -> Any:
    if isinstance(v, np.ndarray):
        return v.shape, v.dtype.str, v.tobytes()
    return v if not isinstance(v, float) else ("float", v.hex())


def _value_key(op: Any) -> Any:
    return repr(op.attrs["value"]) if op.prim.name == "full" else _freeze(op.attrs["value"])


def _constant_array(op: Any) -> np.ndarray:
    value = op.attrs["value"]
    dtype = op.result.type.dtype.np
    return np.asarray(value, dtype) if op.prim.name == "full" else np.ascontiguousarray(value)


def _opened(graph: Graph, constants: list[Any]) -> Graph:
    """The graph with its constants as further params (of one element where the constant is uniform)."""
    b = GraphBuilder(graph.name)
    b.params = list(graph.params)
    env: dict[Value, Value] = {p: p for p in graph.params}
    for op in constants:
        t = op.result.type
        scalar = op.prim.name == "full"
        param = b.param(TensorType((), t.dtype, CPU) if scalar else t)
        env[op.result] = (
            b.add(P.broadcast_p, (param,), {"shape": t.shape, "axes": ()})[0] if scalar else param
        )
    for op in graph.ops:
        if op.result not in env if len(op.results) == 1 else True:
            env.update(zip(op.results, copy_op(b, op, [env[v] for v in op.operands]), strict=True))
    return b.finish(env[r] for r in graph.results)


SEGMENTS = SegmentCache()
