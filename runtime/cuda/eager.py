"""Operations of eager mode on a GPU: graphs of one operation, through the ordinary caches.

Moves that only change shape and strides are views and run nothing. Operands that are broadcast or permuted
views go in as the dense array behind the view, as on the CPU (``weft.runtime.oneop``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Value
from weft.ir.prims.base import Interpreter, NumpyInterpreter, Primitive, type_of
from weft.ir.types import Device
from weft.passes.dce import dce
from weft.runtime import compile_graph, stats
from weft.runtime.cuda.array import DeviceArray, empty, from_host
from weft.runtime.cuda.device import index_of
from weft.runtime.cuda.driver import driver
from weft.runtime.oneop import Layout, broadcast_operands, graph_of, placing, prepared, vjp_rule
from weft.runtime.precision import switches

_LIMIT = 1 << 14  # runners kept; the executables behind them have a cache of their own
_runners: dict[Any, Callable[..., list[Any]]] = {}
_dense_runners: dict[Any, Callable[..., list[Any]]] = {}  # the same by what _kinds says
_gradients: dict[Any, Callable[..., list[Any]] | None] = {}


@switches.listeners.append
def _forget() -> None:
    """Drop what was compiled for another precision."""
    for known in (_runners, _dense_runners, _gradients):
        known.clear()


# -- views --------------------------------------------------------------------------------------------------


_VIEWS: dict[str, Callable[..., DeviceArray | None]] = {
    "reshape": lambda x, shape: x.reshape_view(shape),
    "permute": lambda x, perm: x.transpose(perm),
    "broadcast": lambda x, shape, axes: x.broadcast(shape, axes),
    "slice": lambda x, start, stop, step: x.slice(start, stop, step),
    "diagonal": lambda x, offset: x.diagonal(offset, x.ndim - 2, x.ndim - 1),
}


# -- operations ---------------------------------------------------------------------------------------------


def run(
    prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph] = ()
) -> Any:
    """The result of a primitive on DeviceArrays of one device and numbers (a tuple for several results).

    Numbers and small numpy arrays go with the call. RuntimeError for arrays of several devices; what the
    primitive's type rule raises.
    """
    if prim.name in _VIEWS and type(operands[0]) is DeviceArray:
        found = _VIEWS[prim.name](operands[0], **attrs)
        if found is not None:
            return found
    kinds = None if regions else _kinds(prim, operands, attrs)
    runner = _dense_runners.get(kinds) if kinds is not None else None
    if runner is None:
        return _run(prim, operands, attrs, regions, kinds)
    out = runner(*operands)
    return out[0] if len(out) == 1 and prim.n_results == 1 else tuple(out)


def _kinds(prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """What tells apart operations on dense arrays and numbers; None for others."""
    key: list[Any] = [prim]
    on_device = False
    for x in operands:
        if type(x) is DeviceArray:
            on_device = True
            key.append(x.dense)
            if x.dense is None:
                return None
        elif type(x) is np.ndarray and not x.shape:
            key.append(x.dtype.num)
        else:
            return None
    if not on_device:  # the device is that of this moment
        return None
    if attrs:
        key += attrs.items()
        try:
            hash(tuple(key))
        except TypeError:  # an attribute that is an array
            return None
    return tuple(key)


def _run(
    prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph], kinds: Any
) -> Any:
    """``run``, where the runner is not known by the ``kinds`` of the operands."""
    device = _device(operands, attrs)
    if prim.name == "transfer":
        return transfer(operands[0], attrs["device"])
    given = [x if type(x) is DeviceArray else np.asarray(x) for x in operands]
    try:
        key = (prim, driver(), device, tuple(attrs.items()), tuple(regions), *map(_key, given))
        runner = _runners.get(key)
    except TypeError:  # an attribute that is an array
        key, runner = None, None
    if runner is None:
        runner = _compile(prim, given, attrs, regions, device)
        if key is not None and len(_runners) < _LIMIT:
            _runners[key] = runner
    if kinds is not None and len(_dense_runners) < _LIMIT:
        _dense_runners[kinds] = runner
    out = runner(*given)
    return out[0] if len(out) == 1 and prim.n_results == 1 else tuple(out)


def _key(a: Any) -> Any:
    if type(a) is DeviceArray:
        return a.shape, None if a.contiguous else a.strides, a.dtype.num
    return a.shape, "host", a.dtype.num


def _device(operands: Sequence[Any], attrs: Mapping[str, Any]) -> Device:
    """The device of an operation."""
    found = {x.state.index for x in operands if type(x) is DeviceArray}
    if len(found) > 1:
        names = " and ".join(f"cuda:{i}" for i in sorted(found))
        raise RuntimeError(f"expected all tensors to be on the same device, but found at least two, {names}")
    if found:
        return Device("cuda", found.pop())
    return Device("cuda", index_of(attrs["device"]))


def _compile(
    prim: Primitive, given: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph], device: Device
) -> Callable[..., list[Any]]:
    layouts = [Layout(_dense(a), device, DeviceArray.packed) for a in given]
    attrs = {k: device if k == "device" else v for k, v in attrs.items()}

    def body(*xs: Value) -> Any:
        return prim.bind(*broadcast_operands(prim, xs), regions=regions, **attrs)

    return prepared(runner_of(dce(graph_of(layouts, body, prim.name))), layouts)


def vjp(
    prim: Primitive, attrs: Mapping[str, Any], ct: Any, out: Any, operands: Sequence[Any],
    wanted: tuple[int, ...],
) -> list[Any] | None:  # fmt: skip
    """The ``wanted`` gradients of one operation as one graph, None for the others; or None: use the rule,
    which only moves what is there.

    ``ct`` and ``out`` are tuples for several results. What was not saved for the rule is anything with the
    type of a value, or None.
    """
    cts, outs = (ct, out) if isinstance(ct, tuple) else ((ct,), (out,))
    slots = (*cts, *outs, *operands)
    given = [x for x in slots if type(x) is DeviceArray]
    if any(isinstance(x, np.ndarray) for x in slots):  # numbers of the CPU go with calls, not into graphs
        return None
    device = _device(given, attrs)
    try:
        key = ("vjp", prim, driver(), device, wanted, tuple(attrs.items()), *map(_slot_key, slots))
        known = key in _gradients
    except TypeError:  # an attribute that is an array
        return None
    if not known:
        _gradients[key] = _compile_vjp(prim, attrs, slots, len(cts), wanted, device)
    runner = _gradients[key]
    return None if runner is None else runner(*given)


def _slot_key(x: Any) -> Any:
    if type(x) is DeviceArray:
        return _key(x)
    return None if x is None else (type_of(x), id(type(x)))


def _compile_vjp(
    prim: Primitive, attrs: Mapping[str, Any], slots: Sequence[Any], n: int, wanted: tuple[int, ...],
    device: Device,
) -> Callable[..., list[Any]] | None:  # fmt: skip
    layouts = [Layout(x, device, DeviceArray.packed) for x in slots if type(x) is DeviceArray]
    found: list[int] = []
    rule = vjp_rule(prim, attrs, slots, n, wanted, DeviceArray, found)
    graph = dce(graph_of(layouts, rule, f"{prim.name}_vjp"))
    n_operands = len(slots) - 2 * n
    moves = all(op.prim.name in _VIEWS for op in graph.ops)
    if moves or any(r in graph.params for r in graph.results):
        return None
    return placing(prepared(runner_of(graph), layouts), found, n_operands)


def _dense(a: Any) -> Any:
    """A numpy array that goes with the call is packed then."""
    return a if type(a) is DeviceArray else np.empty(a.shape, a.dtype)


def runner_of(graph: Graph, donate: Mapping[int, int] | None = None) -> Callable[..., list[Any]]:
    """The runner of a graph compiled for eager use."""
    stats.count("eager_kernels")
    return compile_graph(graph, donate=donate, name=f"eager_{graph.name}").runner


def transfer(x: Any, device: Device) -> Any:
    """An array on another device: a DeviceArray, or a numpy array for the CPU."""
    if device.type == "cpu":
        return x.copy_to_host() if type(x) is DeviceArray else np.array(x)
    index = index_of(device)
    if type(x) is not DeviceArray:
        return from_host(np.asarray(x), index)
    if x.state.index == index:
        return x
    out = empty(x.shape, x.dtype, index)
    out.copy_from(x)
    return out


class DeviceInterpreter(Interpreter):
    """Runs primitives at once, on a GPU where an operand lives there or the result shall."""

    def __init__(self) -> None:
        self._host = NumpyInterpreter()

    def bind(
        self, prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph]
    ) -> Any:
        there = attrs.get("device")
        if any(type(x) is DeviceArray for x in operands) or (there is not None and there.type == "cuda"):
            return run(prim, operands, attrs, regions)
        return self._host.bind(prim, operands, attrs, regions)


DEVICE = DeviceInterpreter()
