"""Where tensors live: the default device, and what eager operations on a GPU go through.

The payload of a tensor on a GPU is a :class:`weft.runtime.cuda.array.DeviceArray`. Primitives that meet one,
or that make something on a GPU, run under the interpreter of that device, which this module registers and
which is loaded when it is first needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.prims.base import INTERPRETERS, PRIMITIVES, Interpreter, Primitive
from weft.ir.types import CPU, Device

_ndarray = np.ndarray


class _Cuda:
    """Stands for the modules of :mod:`weft.runtime.cuda`, of which importing weft loads none."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = self.__dict__[name] = importlib.import_module(f"weft.runtime.cuda.{name}")
        return found


cuda: Any = _Cuda()


def resolved(found: Device) -> Device:
    """A device with its index. RuntimeError for one that this machine cannot hold tensors on."""
    if found.type == "cpu":
        return CPU
    if found.type != "cuda":
        raise RuntimeError(f"weft cannot hold tensors on device {found}; it compiles for it only")
    index = cuda.device.current_device() if found.index is None else found.index
    return cuda.device.device_state(index).device


def usable(payload: Any) -> bool:
    """Whether this process can still write to an array: not to one of a GPU in the child of a fork."""
    return type(payload) is _ndarray or payload.state.usable


def put(array: np.ndarray, device: Device, non_blocking: bool = False) -> Any:
    """A numpy array as a payload on a device: itself on the CPU, else a copy."""
    return array if device.type == "cpu" else cuda.array.from_host(array, device.index, non_blocking)


def home(payload: Any) -> Device:
    """The device of a payload: an array, or a graph Value."""
    return CPU if type(payload) is _ndarray else payload.type.device


def to_host(payload: Any) -> np.ndarray:
    """A payload as a numpy array: itself, or a copy of what is on a GPU (which is waited for)."""
    return payload if type(payload) is _ndarray else payload.copy_to_host()


def transfer(payload: Any, device: Device, non_blocking: bool = False) -> Any:
    """A payload copied to another device; without waiting, where one side is pinned memory."""
    if device.type == "cpu":
        out = None
        if non_blocking:
            out = cuda.array.pinned_empty(payload.shape, payload.dtype, payload.device.index)
        return payload.copy_to_host(out, non_blocking)
    if type(payload) is _ndarray:
        return put(payload, device, non_blocking)
    return cuda.eager.transfer(payload, device)


def as_payload(x: Any) -> Any:
    """A result of a primitive as a payload: an array of a GPU as it is, all else as a numpy array."""
    return x if type(x) is _ndarray or getattr(x, "on_device", False) else np.asarray(x)


def copy_of(payload: Any) -> Any:
    """A contiguous copy of an array, where it is."""
    return np.array(payload, order="C") if type(payload) is _ndarray else payload.copy()


def may_share(a: Any, b: Any) -> bool:
    """Whether two payloads may lie in the same memory (graph Values do not)."""
    if type(a) is _ndarray:
        return type(b) is _ndarray and np.may_share_memory(a, b)
    if not getattr(a, "on_device", False) or not getattr(b, "on_device", False):
        return False
    return a.owner is not None and a.owner is b.owner and _spans_meet(span(a), span(b))


def _spans_meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def span(a: Any) -> tuple[int, int]:
    """The addresses of the first byte of an array and of that after its last; equal where it is empty."""
    start = a.__array_interface__["data"][0] if type(a) is _ndarray else a.address
    if a.flags.c_contiguous or not a.size:
        return start, start + a.nbytes
    steps = [(n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)]
    return start + sum(s for s in steps if s < 0), start + sum(s for s in steps if s > 0) + a.itemsize


def write(target: Any, source: Any) -> None:
    """Copy the elements of one array into another of the same shape and dtype, wherever they are."""
    if type(target) is _ndarray:
        np.copyto(target, to_host(source))
    elif type(source) is _ndarray:
        number = _number(source)
        if number.ndim or not source.ndim:
            target.copy_from_host(np.ascontiguousarray(source).reshape(source.shape))
        else:
            target.copy_from(put(number, target.device).broadcast(target.shape, ()))
    else:
        target.copy_from(source)


def pinned(array: np.ndarray) -> np.ndarray:
    """A copy of an array in pinned memory. RuntimeError where there is no GPU."""
    out = cuda.array.pinned_empty(array.shape, array.dtype)
    np.copyto(out, array)
    return out


def is_pinned(payload: Any) -> bool:
    """Whether an array lies in pinned memory."""
    if type(payload) is not _ndarray or "array" not in cuda.__dict__:
        return False
    return cuda.device.is_pinned(payload)


# The names of operands by primitive, as users know them; others go by their number.
_NAMES = {
    "dot_general": ("input", "other"),
    "where": ("condition", "input", "other"),
    "gather": ("input", "index"),
    "take_along": ("input", "index"),
    "conv": ("input", "weight"),
    "attention": ("query", "key", "value", "attn_mask"),
}


def mixed(prim: Primitive, places: Sequence[Device]) -> RuntimeError:
    """The error for operands on several devices, which names those that differ from the first on a GPU."""
    main = next(d for d in places if d.type == "cuda")
    names = _NAMES.get(prim.name, ("input", "other"))
    found = [
        f"argument '{names[i]}'" if i < len(names) else f"argument {i}"
        for i, d in enumerate(places) if d != main
    ]  # fmt: skip
    other = next(d for d in places if d != main)
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {main} and {other}! "
        f"(when checking {' and '.join(found)} of {prim.name})"
    )


def _number(x: Any) -> np.ndarray:
    """What is not on a GPU as a numpy array, 0-d where it repeats a single number."""
    x = np.asarray(x)
    return x if any(x.strides) or not x.size else np.asarray(x[(0,) * x.ndim])


class OnDevice(Interpreter):
    """Runs primitives at once on a GPU. Numbers from the CPU go with the call; arrays do not."""

    def bind(
        self, prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph]
    ) -> Any:
        if prim.name == "transfer":
            return transfer(operands[0], attrs["device"])
        given: list[Any] = [x if getattr(x, "on_device", False) else _number(x) for x in operands]
        states = {x.state for x in given if type(x) is not _ndarray}
        near = len(states) == 1 and all(type(x) is not _ndarray or not x.ndim for x in given)
        main: Any = next((x.device for x in given if type(x) is not _ndarray), None) if not near else None
        if main is not None:
            places: list[Any] = [
                x.device if type(x) is not _ndarray else CPU if x.ndim else main for x in given
            ]
            if any(d != main for d in places):
                raise mixed(prim, places)
        return cuda.eager.run(prim, given, attrs, regions)


INTERPRETERS["cuda"] = OnDevice()


def beside(
    builder: GraphBuilder, prim: Primitive, values: list[Value], loc: str | None = None
) -> list[Value]:
    """The operands of an operation that is being recorded, numbers of the CPU moved to where the others are.
    RuntimeError, as eagerly, for tensors on several devices."""
    places = [v.type.device for v in values]
    main = next((d for d in places if d.type != "cpu"), CPU)
    if main is CPU or prim.name == "transfer" or all(d == main for d in places):
        return values
    places = [main if _repeats_number(builder, v) else v.type.device for v in values]
    if any(d != main for d in places):
        raise mixed(prim, places)
    move = PRIMITIVES["transfer"]
    return [
        v if v.type.device == main else builder.add(move, (v,), {"device": main}, (), loc)[0] for v in values
    ]


def _repeats_number(builder: GraphBuilder, v: Value) -> bool:
    """Whether a value of the CPU is 0-d, or repeats one that is."""
    if v.type.device.type != "cpu":
        return False
    while v.type.shape:
        op = next((op for op in reversed(builder.ops) if v in op.results), None)
        if op is None or op.prim.name not in ("broadcast", "convert", "reshape"):
            return False
        v = op.operands[0]
    return True
