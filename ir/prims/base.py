"""What a primitive is, the registry of them, and ``bind``, the one door for every operation."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
from weft.ir.graph import Graph, GraphBuilder
from weft.ir.types import CPU, DType, TensorType, dtype_of_numpy

Result = TypeVar("Result")


class Kind(enum.Enum):
    """The structure of a primitive. Fusion and code generation dispatch on this, never on a name."""

    MAP = "map"  # out[i] = f(a[i], b[i], ...)
    SOURCE = "source"  # no operands: full, iota, constant
    REDUCE = "reduce"  # folds some axes away
    SCAN = "scan"  # running reduction along one axis
    CONTRACT = "contract"  # dot_general, conv
    ATTENTION = "attention"  # a contraction, a softmax of its rows and a second contraction, as one
    MOVE = "move"  # out[i] = in[affine(i)] or a pad value
    GATHER = "gather"
    SCATTER = "scatter"
    SORT = "sort"
    RANDOM = "random"
    WINDOW = "window"
    HOST = "host"
    CONTROL = "control"
    KERNEL = "kernel"  # a fused group, its body in a region
    COLLECTIVE = "collective"


PRIMITIVES: dict[str, Primitive] = {}


class Primitive:
    """An operation of the IR with all of its rules.

    name            IR name; unique.
    kind            see :class:`Kind`.
    infer           ``infer(*types, **attrs) -> TensorType | tuple[TensorType, ...]``; raises TypeError or
                    ValueError on operands that do not fit. Operands neither broadcast nor promote.
    eval            ``eval(*arrays, **attrs) -> ndarray | tuple``: numpy reference and eager CPU path.
    scalar          for MAP: ``scalar(b, *xs, **attrs)`` over a :class:`weft.ir.scalar.ScalarBuilder`.
    vjp             ``vjp(ct, out, *operands, **attrs) -> tuple`` of one cotangent (or None) per operand. With
                    several results ``ct`` and ``out`` are tuples (a missing cotangent is None).
    needs           which *values* the vjp reads: a string of operand digits and ``o`` for the outputs, as
                    ``"1o"`` (``*`` for all). Of the rest it may read only the type (:func:`type_of`).
    needs_for       ``needs_for(attrs) -> needs`` where the attributes decide; ``needs`` is then the most.
    nondifferentiable   True where the derivative is zero or undefined everywhere.
    defaults        attribute defaults, filled in by ``bind``.
    dtypes          the dtypes of the first operand that the primitive takes (for tests and error messages).
    call            ``call(attrs, *types)``: ``eval`` with these attributes on such operands as a bare numpy
                    call, or None (a tag; see :mod:`weft.ir.calls`).
    lowering        a free tag for code generation of non-MAP kinds (dispatch stays by kind).
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        infer: Callable[..., Any],
        eval: Callable[..., Any],
        scalar: Callable[..., Any] | None = None,
        vjp: Callable[..., Any] | None = None,
        needs: str = "*",
        needs_for: Callable[[Mapping[str, Any]], str] | None = None,
        nondifferentiable: bool = False,
        n_results: int = 1,
        defaults: Mapping[str, Any] | None = None,
        dtypes: Sequence[DType] = (),
        **tags: Any,
    ) -> None:
        if name in PRIMITIVES:
            raise ValueError(f"primitive {name!r} is defined twice")
        self.name, self.kind = name, kind
        self.infer, self.eval, self.scalar, self.vjp = infer, eval, scalar, vjp
        self.needs, self.nondifferentiable, self.n_results = needs, nondifferentiable, n_results
        self.needs_for = needs_for
        self.defaults = dict(defaults or {})
        self.dtypes = tuple(dtypes)
        self.real_only = bool(dtypes) and not any(d.is_complex for d in dtypes)
        self.tags = tags
        self.ufunc: Callable[..., Any] | None = tags.get("ufunc")  # ``eval`` on float32 and float64
        self.plain_ufunc: bool = tags.get("plain_ufunc", False)  # ... and on integers and bools
        PRIMITIVES[name] = self

    def __repr__(self) -> str:
        return f"<primitive {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return primitive_named, (self.name,)

    def bind(self, *operands: Any, regions: Sequence[Graph] = (), **attrs: Any) -> Any:
        """Apply under the current interpreter. One result comes back bare, several as a tuple."""
        if self.defaults:
            attrs = {**self.defaults, **attrs}
        return current_interpreter().bind(self, operands, attrs, regions)

    __call__ = bind

    def needs_with(self, attrs: Mapping[str, Any]) -> str:
        """Which values the gradient rule reads under these attributes."""
        return self.needs if self.needs_for is None else self.needs_for(attrs)

    def normalize_attrs(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.defaults, **attrs} if self.defaults else dict(attrs)

    def infer_types(
        self, types: Sequence[TensorType], attrs: Mapping[str, Any], regions: Sequence[Graph] = ()
    ) -> tuple[TensorType, ...]:
        out = self.infer(*types, **attrs, regions=regions) if regions else self.infer(*types, **attrs)
        return (out,) if isinstance(out, TensorType) else tuple(out)

    def evaluate(
        self, arrays: Sequence[np.ndarray], attrs: Mapping[str, Any], regions: Sequence[Graph] = ()
    ) -> tuple[np.ndarray, ...]:
        """Run the numpy reference; always a tuple of arrays (numpy scalars become 0-d arrays)."""
        out = self.eval(*arrays, **attrs, regions=regions) if regions else self.eval(*arrays, **attrs)
        return tuple(np.asarray(o) for o in out) if isinstance(out, tuple) else (np.asarray(out),)


def primitive_named(name: str) -> Primitive:
    return PRIMITIVES[name]


class Interpreter:
    """Gives meaning to ``bind``: numpy (below), the Recorder, the taping interpreter of the frontend."""

    recording = False  # True where values are symbolic (capture)

    def bind(
        self, prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph]
    ) -> Any:
        raise RuntimeError("abstract")

    def apart(self, fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """``fn(*args, **kwargs)``, which calls nothing of the user's: who watches for that may look away."""
        return fn(*args, **kwargs)


INTERPRETERS: dict[str, Interpreter] = {}
"""By device type, who runs operations on arrays that live there; the frontend fills it."""


class NumpyInterpreter(Interpreter):
    """Runs primitives at once on numpy arrays. Where an operand lives on another device (its ``on_device``
    is true), or the result shall, that device's interpreter does."""

    def bind(
        self, prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph]
    ) -> Any:
        elsewhere = _elsewhere(operands, attrs) if INTERPRETERS else None
        if elsewhere is not None:
            return INTERPRETERS[elsewhere].bind(prim, operands, attrs, regions)
        with np.errstate(all="ignore"):
            out = prim.evaluate([np.asarray(x) for x in operands], attrs, regions)
        return out[0] if prim.n_results == 1 and len(out) == 1 else out


def _elsewhere(operands: Sequence[Any], attrs: Mapping[str, Any]) -> str | None:
    """The type of the device that an operation belongs to; None for numpy's."""
    for x in operands:
        if getattr(x, "on_device", False):
            return x.device.type
    device = attrs.get("device", CPU)
    return device.type if device.type in INTERPRETERS else None


class GraphInterpreter(Interpreter):
    """Appends to a :class:`GraphBuilder`; operands are Values. ``loc`` marks the ops with a source line."""

    def __init__(self, builder: GraphBuilder, loc: str | None = None) -> None:
        self.builder = builder
        self.loc = loc

    def bind(
        self, prim: Primitive, operands: Sequence[Any], attrs: Mapping[str, Any], regions: Sequence[Graph]
    ) -> Any:
        out = self.builder.add(prim, operands, attrs, regions, self.loc)
        return out[0] if prim.n_results == 1 and len(out) == 1 else out


_NUMPY = NumpyInterpreter()
_current: ContextVar[Interpreter] = ContextVar("weft_interpreter", default=_NUMPY)


def current_interpreter() -> Interpreter:
    return _current.get()


@contextmanager
def interpreting(interpreter: Interpreter):
    """Make ``interpreter`` current in this context (thread or task) for the block."""
    token = _current.set(interpreter)
    try:
        yield interpreter
    finally:
        _current.reset(token)


def type_of(x: Any) -> TensorType:
    """The type of a value of any interpreter: an ndarray, a graph Value, or anything with ``.type``."""
    if isinstance(x, (np.ndarray, np.generic)):
        return TensorType(x.shape, dtype_of_numpy(x.dtype), CPU)
    t = getattr(x, "_ir_type", None)  # a frontend Tensor
    return t if t is not None else x.type


def lift_scalar(x: Any, like: Any) -> Any:
    """A Python number as a constant of the type of ``like``; anything else as it is."""
    if isinstance(x, (bool, int, float, complex)):
        return full_like(like, x)
    return x


def full_like(like: Any, value: complex) -> Any:
    """A constant of the shape, dtype and device of ``like``."""
    t = type_of(like)
    return PRIMITIVES["full"].bind(shape=t.shape, dtype=t.dtype, value=value, device=t.device)


def scale(x: Any, factor: float) -> Any:
    """``x * factor`` in the dtype of ``x``; in a rule a bare ``x * 2.0`` would promote a bfloat16 array."""
    return PRIMITIVES["mul"].bind(x, full_like(x, factor))


def trace(fn: Callable[..., Any], *types: TensorType, name: str = "main") -> Graph:
    """The graph of ``fn`` called on Values of these types; ``fn`` returns one value or a sequence of values.

    >>> from weft.ir.types import TensorType, f32
    >>> from weft.ir import prims as P
    >>> g = trace(lambda x: P.exp_p.bind(x * 2.0), TensorType((4,), f32))
    >>> [op.prim.name for op in g.ops]
    ['full', 'mul', 'exp']
    """
    b = GraphBuilder(name)
    params = [b.param(t) for t in types]
    with interpreting(GraphInterpreter(b)):
        out = fn(*params)
    return b.finish(out if isinstance(out, (tuple, list)) else [out])
