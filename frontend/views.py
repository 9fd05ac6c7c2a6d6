"""Views that alias, and ``write_``, the one way a tensor's value changes.

Eager: a view is a numpy view of its base's memory, and a write copies into that memory. In capture values are
immutable: a view remembers its base and the MOVE steps that lead to it; a write through a view becomes a new
value of the base (by the inverse of each step), and a view whose base changed since is derived again. A
concrete tensor that is a view keeps being its own root in capture; a Recorder can tell tensors that share
storage by the identity of their version counter ``_vc``.

Autograd follows the same steps: an in-place operation on a view gives the base a new history (base with the
written part replaced), and the views of that base get theirs from it when next looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.autograd.grad_mode import inference, mode
from weft.autograd.tape import Edge, Node, TypeStub, edge_of, keep_old_value, record, record_types
from weft.devices import may_share, to_host
from weft.devices import write as write_array
from weft.dispatch import apply, interpreter, wrap, wrap_value
from weft.eager import LEAST_BYTES, is_whole
from weft.ir import prims as P
from weft.ir.graph import Value
from weft.ir.prims.base import _NUMPY, Primitive, _current, full_like
from weft.ir.prims.move import diagonal_slice
from weft.ir.types import DType
from weft.tensor import Tensor, contiguous_strides

_ndarray = np.ndarray
Step = tuple[Primitive, dict[str, Any]]
Apply = Callable[..., Tensor]

# How a write to the result of a step becomes a write to its operand: (apply, old operand, new result, attrs)
# -> new operand. A step is a view only if it stands here.
INVERSE: dict[Primitive, Callable[[Apply, Tensor, Tensor, Any], Tensor]] = {}


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t._data._ir_type.shape) if type(t._data) is TypeStub else tuple(t.shape)


def _inverse_perm(perm: Sequence[int]) -> tuple[int, ...]:
    out = [0] * len(perm)
    for i, p in enumerate(perm):
        out[p] = i
    return tuple(out)


def _write_broadcast(apply: Apply, old: Tensor, new: Tensor, attrs: Any) -> Tensor:
    if _shape(old) != _shape(new) and int(np.prod(_shape(old))) != int(np.prod(_shape(new))):
        raise RuntimeError(OVERLAP)
    return apply(P.reshape_p, new, shape=_shape(old))


def _write_diagonal(apply: Apply, old: Tensor, new: Tensor, attrs: Any) -> Tensor:
    *lead, rows, cols = shape = _shape(old)
    start, _, step = diagonal_slice(rows, cols, attrs["offset"])
    flat = apply(P.reshape_p, old, shape=(*lead, rows * cols))
    at, every = (*(0 for _ in lead), start), (*(1 for _ in lead), step)
    return apply(P.reshape_p, apply(P.update_slice_p, flat, new, start=at, step=every), shape=shape)


_MULTI = (
    "This view is the output of a function that returns multiple views. Such functions do not allow the "
    "output views to be modified inplace. You should replace the inplace operation by an out-of-place one."
)
OVERLAP = (
    "unsupported operation: more than one element of the written-to tensor refers to a single memory "
    "location. Please clone() the tensor before performing the operation."
)

INVERSE[P.reshape_p] = lambda apply, old, new, a: apply(P.reshape_p, new, shape=_shape(old))
INVERSE[P.permute_p] = lambda apply, old, new, a: apply(P.permute_p, new, perm=_inverse_perm(a["perm"]))
INVERSE[P.slice_p] = lambda apply, old, new, a: apply(
    P.update_slice_p, old, new, start=a["start"], step=a["step"]
)
INVERSE[P.broadcast_p] = _write_broadcast
INVERSE[P.diagonal_p] = _write_diagonal
INVERSE[P.real_p] = lambda apply, old, new, a: apply(P.complex_p, new, apply(P.imag_p, old))
INVERSE[P.imag_p] = lambda apply, old, new, a: apply(P.complex_p, apply(P.real_p, old), new)
INVERSE[P.bitcast_p] = lambda apply, old, new, a: apply(P.bitcast_p, new, dtype=_dtype(old))


def _dtype(t: Tensor) -> DType:
    return t._data._ir_type.dtype if type(t._data) is TypeStub else t.dtype


class View:
    """What a tensor is a view of: ``steps`` from ``base``.

    ``differentiable`` is False for ``detach()`` and ``.data``, which share memory and nothing else.
    ``edge_version`` and ``value_version`` are the base's versions that the edge and (in capture) the value
    are of.
    ``origin`` names the function where it gave several views, which torch does not let autograd follow in
    place.
    """

    __slots__ = ("base", "before", "differentiable", "edge_version", "last", "origin", "value_version")

    def __init__(
        self, base: Tensor, steps: Sequence[Step], version: int, differentiable: bool = True
    ) -> None:
        self.base, self.differentiable = base, differentiable
        self.before: View | None = None  # the view of which this is one: its steps come first
        self.last: Any = tuple(steps)  # the steps, or (function, *arguments) that gives them
        self.edge_version = self.value_version = version
        self.origin: str | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """What leads from the base to the view; worked out when it is first asked for."""
        last = self.last
        if last and callable(last[0]):
            last = self.last = last[0](*last[1:])
        if self.before is not None:
            last = self.last = (*self.before.steps, *last)
            self.before = None
        return last

    def detached(self) -> View:
        return View(self.base, self.steps, self.value_version, differentiable=False)

    def base_requires_grad(self, t: Tensor) -> bool:
        self.refresh_edge(t)
        return t._rg

    def refresh_edge(self, t: Tensor) -> None:
        """Derive the history of ``t`` from its base's again if the base was written since."""
        version = t._vc[0]
        if version == self.edge_version or not self.differentiable:
            return
        edge = edge_of(self.base)
        if edge is None or not t.dtype.is_inexact:
            self.edge_version = version
            t._edge, t._rg = None, False
            return
        if self.origin is not None and mode.grad:
            raise RuntimeError(
                f"{self.origin} is a view and its base or another view of its base has been modified "
                f"inplace. {_MULTI}"
            )
        self.edge_version = version
        source = wrap(TypeStub(self.base._ir_type))
        source._edge, source._rg = edge, True
        for prim, attrs in self.steps:
            source = record_types(prim, [source], attrs)
        t._edge, t._rg = source._edge, True

    def value(self, t: Tensor, interp: Any) -> Value:
        """The current Value of ``t`` in the capture of ``interp``."""
        if t._vc[0] == self.value_version or type(t._data) is not Value:
            return interp.lift(t)
        base = self.base
        value = interp.lift(base) if base._view is None else base._view.value(base, interp)
        for prim, attrs in self.steps:
            value = interp.bind(prim, (value,), prim.normalize_attrs(attrs), ())
        t._data = value
        self.value_version = t._vc[0]
        return value


def view(x: Tensor, prim: Primitive, data: Any = None, **attrs: Any) -> Tensor:
    """``prim`` applied to ``x`` as a view: shares memory (eager) or follows its base (capture).

    ``data`` is the numpy view where the numpy rule would not alias. A numpy result that does not share memory
    is not a view, just the result.
    """
    d = x._data
    if type(d) is _ndarray and d.nbytes < LEAST_BYTES and _current.get() is _NUMPY and not x._inference:
        return _small_view(x, prim, data, attrs)
    interp: Any = interpreter()
    if interp.recording:
        out = apply(prim, x, **attrs)
        if prim is P.reshape_p and _reshaped(phantom(x), attrs["shape"]) is None:
            return out
    else:
        out = _eager_view(x, prim, data, attrs)
        if not _aliases(out._data, x._data):
            return out
    root: Tensor = x
    steps: tuple[Step, ...] = ((prim, attrs),)
    v = x._view
    if v is not None and (not interp.recording or type(x._data) is Value):
        root, steps = v.base, (*v.steps, *steps)
        if not v.differentiable:  # a view of a detached tensor: the detached one is the root of the history
            root, steps = x, ((prim, attrs),)
    out._vc = x._vc
    if out._inference or x._inference:
        out._inference = x._inference  # a view is what its base is, whatever the mode
    out._view = View(root, steps, x._vc[0])
    if v is not None:
        out._view.origin = v.origin
    return out


def _small_view(x: Tensor, prim: Primitive, data: Any, attrs: dict[str, Any]) -> Tensor:
    """:func:`view` of few elements, eager: straight to numpy's view."""
    a = x._data
    if prim.defaults:
        attrs = {**prim.defaults, **attrs}
    out = wrap(prim.eval(a, **attrs) if data is None else data)
    v, d = x._view, out._data
    if d is a or d.base is a or _aliases(d, a):
        out._vc = x._vc
        root, steps = (x, ((prim, attrs),))
        if v is not None and v.differentiable:
            root, steps = v.base, (*v.steps, *steps)
        made = out._view = View(root, steps, x._vc[0])
        if v is not None:
            made.origin = v.origin
    elif inference.used and mode.inference:
        out._inference = True
    if mode.grad:
        if v is not None:
            v.refresh_edge(x)
        if x._rg and not prim.nondifferentiable:
            record(prim, (x,), (a,), (out,), attrs, ())
    return out


def siblings(parts: Sequence[Tensor], function: str) -> tuple[Tensor, ...]:
    """Mark the results of a function that gives several views of one tensor."""
    for i, p in enumerate(parts):
        if p._view is not None:
            p._view.origin = f"Output {i} of {function}"
    return tuple(parts)


def phantom(x: Tensor) -> np.ndarray:
    """An array with the strides that ``x`` would have eagerly; for a captured tensor without memory behind
    it.
    """
    d = x._data
    if type(d) is np.ndarray:
        return d
    v = x._view
    if v is None or type(d) is not Value:
        t = x._ir_type
        strides = d.strides if type(d) is not Value else [
            s * t.dtype.itemsize for s in contiguous_strides(t.shape)
        ]  # fmt: skip
        return np.lib.stride_tricks.as_strided(np.empty(1, t.dtype.np), t.shape, strides)
    a = phantom(v.base)
    for prim, attrs in v.steps:
        if prim is P.reshape_p:
            a = _reshaped(a, attrs["shape"])
            if a is None:
                return np.empty(x._ir_type.shape, bool)
        else:
            a = prim.eval(a, **prim.normalize_attrs(attrs))
    return a


def _reshaped(a: np.ndarray, shape: Any) -> np.ndarray | None:
    """A view of ``a`` in another shape; None where its strides allow none."""
    try:
        return np.reshape(a, shape, copy=False)
    except ValueError:
        return None


def _eager_view(x: Tensor, prim: Primitive, data: Any, attrs: dict[str, Any]) -> Tensor:
    """The result with the right array, recorded if need be without running the numpy rule twice."""
    if data is None:
        return apply(prim, x, **attrs)
    out = wrap(data)
    if mode.grad and edge_of(x) is not None:
        typed = record_types(prim, [x], attrs)
        out._edge, out._rg = typed._edge, True
    return out


def _aliases(a: Any, b: Any) -> bool:
    if a is b or a.base is b:
        return True
    if a.base is None:
        return False
    return a.base is b.base or may_share(a, b)


def views(x: Tensor, steps: Sequence[Step], data: Any = None) -> Tensor:
    """Several steps at once; ``data`` is the numpy view that they amount to (eager)."""
    if data is None or interpreter().recording:
        for prim, attrs in steps:
            x = view(x, prim, **attrs)
        return x
    out = wrap(data)
    out._vc = x._vc
    v = x._view
    root, before = (x, ()) if v is None or not v.differentiable else (v.base, v.steps)
    made = out._view = View(root, (*before, *steps), x._vc[0])
    if v is not None:
        made.origin = v.origin
    if mode.grad and (x._rg or v is not None) and edge_of(x) is not None:
        typed = x
        for prim, attrs in steps:
            typed = record_types(prim, [typed], attrs)
        out._edge, out._rg = typed._edge, typed._rg
    return out


def own(t: Tensor, *sources: Tensor) -> Tensor:
    """``t`` with memory of its own: for functions whose result may alias an operand but must not."""
    d = t._data
    if type(d) is np.ndarray and (
        not is_whole(d) or not d.flags.writeable or any(d is s._data for s in sources)
    ):
        t._data, t._vc = np.array(d), [0]
    elif getattr(d, "on_device", False) and (d.base is not None or any(d is s._data for s in sources)):
        t._data, t._vc = d.copy(), [0]
    return t


def alias(x: Tensor, share_version: bool = True) -> Tensor:
    """A tensor on the same storage without history (``detach``, ``.data``)."""
    if type(x._data) is _ndarray and _current.get() is _NUMPY:
        out = wrap(x._data)
        if share_version:
            out._vc = x._vc
        out._view = View(x, (), x._vc[0], differentiable=False)
        return out
    interp: Any = interpreter()
    if interp.recording:
        from weft.dispatch import payload

        out = wrap_value(interp, payload(x, interp))
    else:
        out = wrap(x._data)
    if share_version or interp.recording:
        out._vc = x._vc
    out._view = View(x, (), x._vc[0], differentiable=False)
    return out


def view_of_whole(x: Tensor) -> Tensor:
    """Another tensor on the storage of ``x``, outside its history."""
    return alias(x)


# -- writing ------------------------------------------------------------------------------------------------


def check_inplace(t: Tensor, *others: Any) -> None:
    """The errors that torch raises before it writes to ``t``."""
    if t._inference and not mode.inference:
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed.You can make a clone "
            "to get a normal tensor before doing inplace update.See https://github.com/pytorch/rfcs/pull/17 "
            "for more details."
        )
    if not mode.grad:
        return
    v = t._view
    if v is not None and v.differentiable:
        base = v.base
        if base._rg and v.origin is not None:
            raise RuntimeError(f"{v.origin} is a view and is being modified inplace. {_MULTI}")
        while base._view is not None and base._view.differentiable:  # a captured view of a view made outside
            base = base._view.base
        if base._rg and base._edge is None:
            raise RuntimeError(
                "a view of a leaf Variable that requires grad is being used in an in-place operation."
            )
    elif t._rg and t._edge is None:
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")


def write_(t: Tensor, new: Tensor, mark: int | None = None, replaces: bool = False) -> Tensor:
    """Change the value of ``t`` to that of ``new`` (same shape and dtype); bumps the version, rebases the
    history.

    ``mark`` (see ``tape.sequence_mark``) tells which nodes of ``new`` belong to this very operation: what
    they saved of the old value is kept for them. ``replaces``: ``new`` does not depend on ``t``, whose old
    value then has the gradient zero. Raises torch's RuntimeErrors for leaves and for overlapping memory.
    """
    if not mode.grad and not t._inference and _current.get() is _NUMPY:
        _write_array(t, new)
        t._vc[0] += 1
        return t
    check_inplace(t)
    if new.device != t.device and (mode.grad or interpreter().recording):
        new = apply(P.transfer_p, new, device=t.device)
    tracked = mode.grad and (t.requires_grad or new._rg)
    old_edge = edge_of(t) if tracked else None
    base = t._view.base if t._view is not None and t._view.differentiable else None
    base_edge = edge_of(base) if tracked and base is not None else None
    interp: Any = interpreter()
    if tracked and mark is not None:
        keep_old_value(new, t, mark)
    if interp.recording:
        _write_captured(interp, t, new)
    else:
        _write_array(t, new)
    t._vc[0] += 1
    if interp.recording and t._view is not None and type(t._data) is Value:
        t._view.value_version = t._vc[0]
    if tracked:
        _rebase(t, new, old_edge, base, base_edge, replaces)
    return t


def _write_array(t: Tensor, new: Tensor) -> None:
    d = t._data
    if type(d) is not np.ndarray:
        if any(n > 1 and s == 0 for n, s in zip(d.shape, d.strides, strict=True)):
            raise RuntimeError(OVERLAP)
        write_array(d, new._data)
        return
    if not d.flags.writeable:
        if t._view is not None:
            if any(n > 1 and s == 0 for n, s in zip(d.shape, d.strides, strict=True)):
                raise RuntimeError(OVERLAP)
            d.flags.writeable = True
            write_array(d, new._data)
            return
        if not is_whole(d) and type(d.base) is not np.ndarray:
            raise RuntimeError("the memory of this tensor is read-only")
        t._data = np.array(to_host(new._data))
        return
    if type(new._data) is np.ndarray:
        np.copyto(d, new._data)
    else:
        write_array(d, new._data)


def _write_captured(interp: Any, t: Tensor, new: Tensor) -> None:
    from weft.dispatch import payload

    assign_captured(interp, t, payload(new, interp))


def assign_captured(interp: Any, t: Tensor, value: Value) -> None:
    """Give ``t`` another value in the capture; through its steps if it is a view made in this capture."""
    if type(t._data) is not Value:
        interp.assign(t, value)
        return
    v = t._view
    if v is not None:
        old = interp.lift(v.base) if v.base._view is None else v.base._view.value(v.base, interp)
        run = _value_apply(interp)
        new = write_through(run, wrap(old), wrap(value), v.steps)
        assign_captured(interp, v.base, new._data)
    t._data = value


def _value_apply(interp: Any) -> Apply:
    def run(prim: Primitive, *tensors: Tensor, **attrs: Any) -> Tensor:
        return wrap(interp.bind(prim, [t._data for t in tensors], prim.normalize_attrs(attrs), ()))

    return run


def write_through(apply: Apply, base: Tensor, new: Tensor, steps: Sequence[Step]) -> Tensor:
    """The new base, when the end of ``steps`` is replaced by ``new``."""
    olds = [base]
    for prim, attrs in steps[:-1]:
        olds.append(apply(prim, olds[-1], **attrs))
    for old, (prim, attrs) in zip(reversed(olds), reversed(steps), strict=False):
        new = INVERSE[prim](apply, old, new, attrs)
    return new


def _types_apply(prim: Primitive, *tensors: Tensor, **attrs: Any) -> Tensor:
    return record_types(prim, tensors, attrs)


def _typed(t: Tensor, edge: Any) -> Tensor:
    out = wrap(TypeStub(t._ir_type))
    out._edge, out._rg = edge, edge is not None
    return out


def _rebase(
    t: Tensor, new: Tensor, old_edge: Any, base: Tensor | None, base_edge: Any, replaces: bool
) -> None:
    """The history after a write: that of ``new``; for a view the base is rewritten and the view follows."""
    edge = edge_of(new)
    if edge is None or (replaces and old_edge is not None):
        edge = (overwritten(old_edge, edge, t), 0)
    if base is None:
        t._edge, t._rg = edge, True
        return
    _rebase_base(t, edge, base, base_edge)


def take_history(t: Tensor, edge: Any) -> None:
    """``t`` was written by what ``edge`` leads to: its history, or that of the base it is a view of."""
    view = t._view
    if view is None or not view.differentiable:
        t._edge, t._rg = edge, True
        return
    _rebase_base(t, edge, view.base, edge_of(view.base))


def _rebase_base(t: Tensor, edge: Any, base: Tensor, base_edge: Any) -> None:
    """Rewrite the history of what ``t`` is a view of; in capture that may be a view of a tensor outside."""
    assert t._view is not None
    source = write_through(_types_apply, _typed(base, base_edge), _typed(t, edge), t._view.steps)
    v = base._view
    if v is not None:
        v.edge_version = base._vc[0]
        if v.differentiable:
            _rebase_base(base, source._edge, v.base, edge_of(v.base))
    base._edge, base._rg = source._edge, True


class _Overwrite:
    """The pseudo primitive of a value that was replaced: the gradient of the old one is zero."""

    name, needs, kind, nondifferentiable, n_results = "overwrite", "", None, False, 1

    @staticmethod
    def vjp(ct: Any, out: Any, old: Any, new: Any, **attrs: Any) -> tuple[Any, ...]:
        return full_like(ct, 0), ct


def overwritten(old: Edge | None, new: Edge | None, t: Tensor) -> Node:
    """The node of a value that took the place of another."""
    meta = TypeStub(t._ir_type)
    return Node(_Overwrite, {}, (), (old, new), (meta, meta), (meta,))


def set_data(t: Tensor, value: Tensor) -> None:
    """``t.data = value``: other storage for the same tensor."""
    if value.dtype is not t.dtype and t._rg and not value.dtype.is_inexact:
        raise RuntimeError(
            "data set to a tensor that requires gradients must be floating point or complex dtype"
        )
    interp: Any = interpreter()
    if interp.recording:
        if t.shape == value.shape and t.dtype is value.dtype:
            _write_captured(interp, t, value)
            return
        interp.concretize(t, "the assignment of .data with another shape or dtype")
        value = wrap(interp.concretize(value, "the assignment of .data"))
    t._data = value._data
