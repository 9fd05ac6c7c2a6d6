"""Graphs that compute on a GPU and, with small values, on the CPU: a counter of steps, a learning rate.

``transfer`` alone takes a value from one device to the other, so the graph falls into two: what is computed
on the CPU, from the CPU's params, and what is computed on the GPU, to which values of the CPU are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import record
from weft.ir.types import CPU, Device, TensorType
from weft.runtime.cuda.array import DeviceArray

_AGAIN = frozenset({Kind.MAP, Kind.MOVE, Kind.SOURCE})  # what is cheap to compute on both sides


@record
class Split:
    """The graphs of the two sides. ``host_params`` and ``device_params`` say where their arguments come from:
    ``("param", i)`` of the whole graph or ``("host", i)``, a result of the host's graph. ``results`` says the
    same of the results of the whole: ``("host", i)``, ``("device", i)``, or ``("fetched", i)`` for a result
    of the device that is wanted on the host."""

    host: Graph
    device: Graph
    host_params: list[tuple[str, int]]
    device_params: list[tuple[str, int]]
    results: list[tuple[str, int]]


def is_mixed(graph: Graph) -> bool:
    """Whether some values of a GPU's graph live on the CPU."""
    values = (*graph.params, *(r for op in graph.ops for r in op.results))
    return any(v.type.device == CPU for v in values)


def split(graph: Graph) -> Split:
    """Cut a graph in two. RuntimeError where the CPU goes on with what the GPU computed: that takes two
    graphs."""
    return _Splitter(graph).run()


class _Splitter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.host_ops: list[Op] = []
        self.device_ops: list[Op] = []
        self.producers = graph.producers()
        self.moved: dict[Value, Value] = {}  # a value of the CPU, and what it is on the GPU
        self.crossing: dict[Value, Value] = {}  # those of them that come as arguments
        self.fetched: dict[Value, Value] = {}  # a value on the CPU, and what it is a copy of

    def run(self) -> Split:
        g = self.graph
        for op in g.ops:
            self._place(op)
        made = {r for op in self.host_ops for r in op.results}
        of_host = [r for r in g.results if r.type.device == CPU and r not in self.fetched]
        wanted = list(dict.fromkeys([*of_host, *(v for v in self.crossing if v in made)]))
        ins = [p for p in g.params if p.type.device == CPU]
        host = Graph(ins, self.host_ops, wanted, f"{g.name}_host")
        device_ins = [p for p in g.params if p.type.device != CPU]
        outs = [self.fetched.get(r, r) for r in g.results if r.type.device != CPU or r in self.fetched]
        device = Graph([*device_ins, *self.crossing.values()], self.device_ops, outs, g.name)
        number = {p: ("param", i) for i, p in enumerate(g.params)}
        number |= {r: ("host", i) for i, r in enumerate(wanted) if r in made}
        return Split(host, device, [number[p] for p in ins],
                     [number[v] for v in (*device_ins, *self.crossing)], self._results(wanted))  # fmt: skip

    def _place(self, op: Op) -> None:
        if op.prim.name == "transfer" and op.operands[0].type.device != op.result.type.device:
            (x,) = op.operands
            if x.type.device == CPU:
                self._cross(op, x)
            else:
                self.fetched[op.result] = x
            return
        if any(v in self.fetched for v in op.operands):
            raise RuntimeError(f"{op.prim.name} on the CPU reads what the same graph computes on a GPU")
        ours = all(r.type.device == CPU for r in op.results)
        (self.host_ops if ours else self.device_ops).append(op)

    def _cross(self, op: Op, x: Value) -> None:
        """A value of the CPU on the GPU."""
        if x in self.fetched:
            raise RuntimeError("a value goes from a GPU to the CPU and back inside one graph")
        here = self._move(x, op.result.type.device)
        self.device_ops.append(Op(op.prim, (here,), op.attrs, op.results, (), op.loc))

    def _move(self, x: Value, device: Device) -> Value:
        """What is computed by element from little is computed again on the GPU, so that a number that was
        broadcast crosses as a number; the rest becomes an argument of the GPU's graph."""
        known = self.moved.get(x)
        if known is not None:
            return known
        op, new = self.producers.get(x), Value(TensorType(x.type.shape, x.type.dtype, device))
        self.moved[x] = new
        if op is None or op.prim.kind not in _AGAIN or len(op.results) > 1:
            self.crossing[x] = new
            return new
        operands = [self._move(v, device) for v in op.operands]
        attrs = {k: device if k == "device" else v for k, v in op.attrs.items()}
        self.device_ops.append(Op(op.prim, operands, attrs, (new,), (), op.loc))
        return new

    def _results(self, wanted: list[Value]) -> list[tuple[str, int]]:
        out, k = [], 0
        for r in self.graph.results:
            if r.type.device == CPU and r not in self.fetched:
                out.append(("host", wanted.index(r)))
            else:
                out.append(("fetched" if r in self.fetched else "device", k))
                k += 1
        return out


class MixedExecutable:
    """A graph of two devices, with the interface of the executable of its GPU's part, whose code it shows."""

    def __init__(
        self, graph: Graph, donate: Mapping[int, int], name: str, compiled: Callable[..., Any]
    ) -> None:
        self.graph, self.name, self.donate = graph, name, dict(donate)
        self.in_types = tuple(p.type for p in graph.params)
        self.out_types = tuple(r.type for r in graph.results)
        self._split = s = split(graph)
        of_host = self._donated("host", s.host_params)
        self._host = compiled(s.host, donate=of_host, name=f"{name}_host") if s.host.results else None
        written = {s.host_params[j][1] for j in of_host.values()}
        self._kept = [i for where, i in s.device_params if where == "param" and i in written]
        self._device = compiled(s.device, donate=self._donated("device", s.device_params), name=name)
        alone = [("param", i) for i in range(len(self.in_types))] == list(s.device_params)
        alone &= [("device", i) for i in range(len(self.out_types))] == list(s.results)
        self.runner: Callable[..., list[Any]] = self._device.runner if alone else self._run
        self._alone = alone  # the CPU has no part but to hold numbers, which go with the call

    def _donated(self, side: str, params: Sequence[tuple[str, int]]) -> dict[int, int]:
        """What of the donations concerns one side."""
        out = {}
        for i, j in self.donate.items():
            where, k = self._split.results[i]
            if where == side:
                out[k] = params.index(("param", j))
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_device"], name)

    def call(self, arrays: Sequence[Any]) -> list[Any]:
        """As ``runner``, on a sequence."""
        return self._run(*arrays)

    def native_runner(self, slow: Callable[..., Any]) -> Callable[..., Any]:
        """The runner, which turns to ``slow(*arrays)`` where an array is not as expected."""
        if self._alone:
            return self._device.native_runner(slow)
        types = self.in_types

        def checked(*arrays: Any) -> Any:
            fit = all(map(_fits, arrays, types))
            return self.runner(*arrays) if fit else slow(*arrays)

        return checked

    def argument(self, i: int, a: Any) -> Any:
        """Argument ``i`` as the runner takes it."""
        return a

    def kernel_seconds(self, arrays: Sequence[Any], repeats: int = 5) -> list[float]:
        """The time of each of ``kernels``, those of the GPU, within a call on these arrays."""
        copies = [np.array(a) if type(a) is np.ndarray else a for a in arrays]  # the CPU's part may write
        return self._device.kernel_seconds(self._halves(copies)[1], repeats)

    def _halves(self, arrays: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The results of the CPU's part, and the arguments of the GPU's."""
        s = self._split
        kept = {i: np.array(arrays[i]) for i in self._kept}  # as they were before the CPU writes to them
        of_host = self._host.call([arrays[i] for _, i in s.host_params]) if self._host else []
        return of_host, [
            kept.get(i, arrays[i]) if where == "param" else of_host[i] for where, i in s.device_params
        ]

    def _run(self, *arrays: Any) -> list[Any]:
        if len(arrays) != len(self.in_types):
            raise TypeError(f"{self.name} takes {len(self.in_types)} arrays, but got {len(arrays)}")
        s = self._split
        of_host, given = self._halves(arrays)
        of_device = self._device.call(given)
        return [of_host[i] if where == "host" else _fetch(of_device[i], where) for where, i in s.results]


def _fits(a: Any, t: TensorType) -> bool:
    """Whether an array is of a parameter's type; numbers are looked at later."""
    if type(a) is DeviceArray:
        return a.device == t.device and a.shape == t.shape and a.dtype == t.dtype.np
    if type(a) is np.ndarray:
        return t.device == CPU and a.shape == t.shape and a.dtype == t.dtype.np
    return True


def _fetch(out: DeviceArray, where: str) -> Any:
    return out.copy_to_host() if where == "fetched" else out
