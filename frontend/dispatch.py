"""``apply``: the one door from tensors to primitives, and back.

Eager: the numpy rule of the primitive runs on the payloads. In capture (the current interpreter has
``recording``): the payloads are graph Values, and the interpreter (a Recorder) must offer, besides ``bind``:

    lift(tensor) -> Value              the tensor's current value; a concrete tensor becomes a hidden input
    assign(tensor, value)              a functionalised write of a concrete tensor (its payload is an ndarray)
    concretize(tensor, why) -> ndarray asked for a value: a graph break, or an error under fullgraph
    scalar(x) -> Value                 a traced Python number as a 0-d value
    note_created(tensor)               a tensor was made whose payload is a Value of this capture

Either way the operation goes on the tape if grad mode is on and an operand requires grad.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode
from weft.autograd.tape import record
from weft.devices import as_payload, may_share
from weft.dtypes import dtype_of_array, type_name
from weft.eager import LEAST_BYTES, kernels, switch
from weft.ir.graph import Value
from weft.ir.prims.base import _NUMPY, Interpreter, Kind, Primitive, _current
from weft.quick import quietly
from weft.tensor import Tensor

_new = object.__new__
_current_interpreter = _current.get
_MOVE = Kind.MOVE
_ndarray = np.ndarray
_asarray = np.asarray


class _Quiet:
    """numpy's floating point errors off: the cheap way if numpy has it (np.errstate costs a microsecond)."""

    def __init__(self) -> None:
        umath = getattr(getattr(np, "_core", None), "umath", None)
        var, make = getattr(umath, "_extobj_contextvar", None), getattr(umath, "_make_extobj", None)
        if var is not None and make is not None:
            ignore = make(all="ignore")
            self.enter, self.leave = partial(var.set, ignore), var.reset
        else:
            self.enter, self.leave = self._enter, self._leave

    @staticmethod
    def _enter() -> Any:
        return np.seterr(all="ignore")

    @staticmethod
    def _leave(token: Any) -> None:
        np.seterr(**token)


quiet = _Quiet()
_enter, _leave = quiet.enter, quiet.leave


class Wrapper(Interpreter):
    """An interpreter in front of another, which is the one that runs operations."""

    def __init__(self, inner: Interpreter) -> None:
        self.inner = inner
        self.recording = inner.recording


class Taping(Wrapper):
    """Runs gradient rules on Tensors, so that they are recorded again (``create_graph``)."""

    def bind(self, prim: Primitive, operands: Sequence[Any], attrs: Any, regions: Any) -> Any:
        return _apply(interpreter_below(self), prim, [as_operand(x) for x in operands], attrs, regions)


class Direct(Wrapper):
    """Runs gradient rules on arrays, where floating point errors are off for the whole walk already."""

    def bind(self, prim: Primitive, operands: Sequence[Any], attrs: Any, regions: Any) -> Any:
        if regions:
            return self.inner.bind(prim, operands, attrs, regions)
        arrays = []
        for x in operands:
            if type(x) is not _ndarray:
                if getattr(x, "on_device", False):
                    return self.inner.bind(prim, operands, attrs, regions)
                x = _asarray(x)
            arrays.append(x)
        if "device" in attrs and attrs["device"].type != "cpu":
            return self.inner.bind(prim, operands, attrs, regions)
        out = None
        for a in arrays:
            if a.nbytes >= LEAST_BYTES:
                out = kernels.run(prim, arrays, attrs) if switch.on else None
                break
        if out is None:
            out = prim.eval(*arrays, **attrs)
        if type(out) is _ndarray:
            return out
        if type(out) is not tuple:
            return _asarray(out)
        outs = tuple([_asarray(o) for o in out])
        return outs[0] if len(outs) == 1 and prim.n_results == 1 else outs


def interpreter_below(found: Any) -> Interpreter:
    """The interpreter behind all wrappers."""
    while isinstance(found, Wrapper):
        found = found.inner
    return found


def as_operand(x: Any) -> Tensor:
    """A Tensor for whatever a gradient rule mixes with tensors (a numpy index array, a Value)."""
    return x if isinstance(x, Tensor) else wrap(x if type(x) is Value else _asarray(x))


def interpreter() -> Interpreter:
    """The interpreter under which operations run now (inside ``create_graph``, the one below the tape)."""
    found = _current.get()
    return found if found is _NUMPY else interpreter_below(found)


def recording() -> bool:
    return interpreter().recording


def at_hand(t: Tensor) -> np.ndarray | None:
    """The value of a tensor where looking at it costs nothing: eager, on the CPU. None elsewhere, where
    kernels find out what is out of range."""
    d = t._data
    return d if type(d) is _ndarray and (_current_interpreter() is _NUMPY or not recording()) else None


def wrap(data: Any) -> Tensor:
    """A new tensor that owns this payload."""
    t = _new(Tensor)
    t._data = data
    t._vc = [0]
    t._view = None  # as in the class, but read faster from here
    t._rg = False
    return t


def wrap_value(interp: Any, value: Value) -> Tensor:
    """A new tensor of a value of the capture that ``interp`` makes."""
    t = wrap(value)
    interp.note_created(t)
    return t


def payload(t: Tensor, interp: Any) -> Any:
    """The current value of ``t`` for ``interp``: its array, or its Value in the capture."""
    if not interp.recording:
        return t._data if type(t._data) is not Value else _escaped(t)
    view = t._view
    return interp.lift(t) if view is None else view.value(t, interp)


def _escaped(t: Tensor) -> Any:
    if type(t._data) is Value:
        raise RuntimeError(
            "this tensor was made inside a captured function and its value was never computed; return it "
            "from the function to use it outside"
        )
    return t._data


def concrete(t: Tensor, why: str) -> np.ndarray:
    """The value of ``t`` as an array, that of the tensor. In capture the recorder is asked for it."""
    interp: Any = interpreter()
    return interp.concretize(t, why) if interp.recording else payload(t, interp)


def apply(prim: Primitive, *tensors: Tensor, regions: Any = (), **attrs: Any) -> Any:
    """Run ``prim`` on tensors that fit it. One result comes back bare, several as a tuple."""
    interp = _current.get()
    if prim.defaults:
        attrs = {**prim.defaults, **attrs}
    if interp is not _NUMPY or regions or ("device" in attrs and attrs["device"].type != "cpu"):
        return _apply(interpreter_below(interp), prim, tensors, attrs, regions)
    try:
        arrays = [t._data for t in tensors]
        for a in arrays:
            if type(a) is not _ndarray:
                return _apply(interp, prim, tensors, attrs, regions)
            if a.nbytes >= LEAST_BYTES:
                if any(type(x) is not _ndarray for x in arrays):
                    return _apply(interp, prim, tensors, attrs, regions)
                out = _large(prim, arrays, attrs)
                break
        else:
            if prim.kind is _MOVE:  # computes nothing that could overflow
                out = prim.eval(*arrays, **attrs)
            else:
                out = _quietly(prim, arrays, attrs)
    except AttributeError:
        for t in tensors:
            payload(t, interp)  # a better message where a value is missing
        raise
    if type(out) is not tuple:
        t = wrap(out if type(out) is _ndarray else _asarray(out))
        if mode.grad:
            for x in tensors:
                if x._rg or x._view is not None:
                    _maybe_record(prim, tensors, None, (t,), attrs, ())
                    break
        elif mode.inference:
            t._inference = True
        return t
    outs = tuple([wrap(_asarray(o)) for o in out])
    if mode.grad:
        _maybe_record(prim, tensors, None, outs, attrs, ())
    return outs if len(outs) != 1 or prim.n_results != 1 else outs[0]


def apply_small(prim: Primitive, *tensors: Tensor) -> Tensor:
    """``apply`` for the commonest case, where its checks would cost more than the work: small float32 arrays
    of one shape, eager, and a primitive that is a numpy function."""
    try:
        out = quietly(prim.ufunc, *[t._data for t in tensors])  # type: ignore[arg-type]
    except RuntimeError:  # another thread is there
        return apply(prim, *tensors)
    t = wrap(out if type(out) is _ndarray else _asarray(out))
    if mode.grad:
        for x in tensors:
            if x._rg or x._view is not None:
                _maybe_record(prim, tensors, None, (t,), {}, ())
                break
    elif mode.inference:
        t._inference = True
    return t


def _large(prim: Primitive, arrays: list[Any], attrs: dict[str, Any]) -> Any:
    """The results on arrays of some size: by a kernel where that pays, else by the numpy rule."""
    out = kernels.run(prim, arrays, attrs) if switch.on else None
    if out is not None:
        return out
    return _quietly(prim, arrays, attrs)


def _quietly(prim: Primitive, arrays: list[Any], attrs: dict[str, Any]) -> Any:
    """The numpy rule with floating point errors off."""
    token = _enter()
    try:
        if prim.real_only and arrays[0].dtype.kind == "c":
            _check_complex(prim, arrays[0])
        return prim.eval(*arrays, **attrs)
    finally:
        _leave(token)


def _check_complex(prim: Primitive, x: np.ndarray) -> None:
    """numpy's rules order and round complex numbers, too; the primitives do not."""
    name = type_name(dtype_of_array(x))
    raise NotImplementedError(f""""{prim.name}" not implemented for '{name}'""")


def _apply(interp: Any, prim: Primitive, tensors: Sequence[Tensor], attrs: Any, regions: Any) -> Any:
    """The general path: any interpreter, regions."""
    payloads = [payload(t, interp) for t in tensors]
    out = interp.bind(prim, payloads, attrs, regions)
    single = not isinstance(out, tuple)
    raw = (out,) if single else out
    outs = tuple([wrap_value(interp, o) if type(o) is Value else wrap(as_payload(o)) for o in raw])
    if mode.grad:
        _maybe_record(prim, tensors, payloads, outs, attrs, regions)
    return outs[0] if single else outs


def _maybe_record(
    prim: Primitive,
    tensors: Sequence[Tensor],
    payloads: Any,
    outs: Sequence[Tensor],
    attrs: Any,
    regions: Any,
) -> None:
    needed = False
    for t in tensors:
        if t._view is not None:
            t._view.refresh_edge(t)
        if t._rg:
            needed = True
    if needed and not prim.nondifferentiable:
        if any(t._inference for t in tensors):
            raise RuntimeError(
                "Inference tensors cannot be saved for backward. To work around you can make a clone to get "
                "a normal tensor and use it in autograd."
            )
        d = outs[0]._data
        if prim.kind is Kind.MOVE and type(d) is not Value and d.base is not None:
            _share_version(outs[0], tensors[0])
        record(prim, tensors, payloads or [t._data for t in tensors], outs, attrs, regions)


def _share_version(out: Tensor, x: Tensor) -> None:
    """A moved array on the memory of its operand: writing to the one changes what was saved of the other."""
    if may_share(out._data, x._data):
        out._vc = x._vc
