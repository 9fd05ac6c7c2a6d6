"""The tape: a node for every recorded operation, edges to where its operands came from.

A node keeps the operand and result values that its gradient rule reads (``Primitive.needs``), with the
version at which it saw them; of the others only the type. Nodes are numbered in program order, so the order
of a backward walk is a sort.
"""

from __future__ import annotations

import itertools
import math
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from weft.devices import copy_of, may_share
from weft.ir.graph import Value
from weft.ir.prims.base import Primitive
from weft.ir.types import CPU, TensorType, dtype_of_numpy

if TYPE_CHECKING:
    from weft.tensor import Tensor

_sequence = itertools.count(1)
_by_sequence = operator.attrgetter("seq")


class TypeStub:
    """Stands for a value of which only the type was kept."""

    __slots__ = ("_ir_type",)

    def __init__(self, type: TensorType) -> None:
        self._ir_type = type

    @property
    def shape(self) -> tuple[int, ...]:
        return self._ir_type.shape

    @property
    def ndim(self) -> int:
        return len(self._ir_type.shape)

    @property
    def dtype(self) -> Any:
        return self._ir_type.dtype.np

    @property
    def nbytes(self) -> int:
        return self._ir_type.nbytes


class ArrayType:
    """Stands for an array of which only shape and dtype were kept; its type is made when asked for."""

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype

    @property
    def _ir_type(self) -> TensorType:
        return TensorType(self.shape, dtype_of_numpy(self.dtype), CPU)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Saved:
    """A value kept for the gradient rule, and the version at which it was read."""

    __slots__ = ("data", "vc", "version")

    def __init__(self, data: Any, vc: list[int] | None) -> None:
        self.data, self.vc = data, vc
        self.version = 0 if vc is None else vc[0]


Edge = tuple["Node", int]

_needs: dict[Primitive, tuple[frozenset[int] | None, bool]] = {}


def needs_of(prim: Primitive, attrs: Any) -> tuple[frozenset[int] | None, bool]:
    """Which operands (None: all) and whether the results are read by the gradient rule of ``prim``."""
    spec = prim.needs_with(attrs)
    which = None if "*" in spec else frozenset(int(c) for c in spec if c.isdigit())
    found = (which, "o" in spec or "*" in spec)
    if prim.needs_for is None:
        _needs[prim] = found
    return found


class Node:
    """One recorded operation; ``tensor.grad_fn`` shows it.

    ``edges``: for each operand its edge, or None where no gradient goes. ``operands`` and ``results``: for
    each a :class:`Saved`, or what is known of its type: a graph Value or ``(shape, numpy dtype)``.
    """

    __slots__ = (
        "__weakref__",
        "attrs",
        "edges",
        "freed",
        "hooks",
        "operands",
        "prehooks",
        "prim",
        "regions",
        "results",
        "retained",
        "seq",
    )

    def __init__(self, prim: Any, attrs: Any, regions: Any, edges: Any, operands: Any, results: Any) -> None:
        self.prim, self.attrs, self.regions = prim, attrs, regions
        self.edges, self.operands, self.results = edges, operands, results
        self.seq = next(_sequence)
        self.hooks: dict[int, dict[int, Any]] | None = None  # by index of the result: tensor hooks
        self.prehooks: dict[int, Any] | None = None
        self.retained: dict[int, Any] | None = (
            None  # by index: weak reference to the tensor that keeps its grad
        )
        self.freed = False

    def name(self) -> str:
        """PyTorch's way of naming: ``MulBackward0``."""
        return "".join(p.capitalize() for p in self.prim.name.split("_")) + "Backward0"

    def __repr__(self) -> str:
        return f"<{self.name()} object at {hex(id(self))}>"

    @property
    def next_functions(self) -> tuple[tuple[Node | None, int], ...]:
        return tuple((None, 0) if e is None else e for e in self.edges)

    @property
    def metadata(self) -> dict[str, Any]:
        return {}

    def free(self) -> None:
        """Drop the saved values: the graph cannot be walked again."""
        self.freed = True
        self.operands = self.results = ()


class AccumulateGrad(Node):
    """Where gradients of a leaf arrive."""

    __slots__ = ("variable",)

    def __init__(self, variable: Tensor) -> None:
        self.prim, self.attrs, self.regions = None, _NO_ATTRS, ()
        self.edges = self.operands = self.results = ()
        self.hooks = self.prehooks = self.retained = None
        self.freed = False
        self.seq = next(_sequence)
        self.variable = variable

    def name(self) -> str:
        return "AccumulateGrad"

    def free(self) -> None:
        pass


def accumulator(leaf: Tensor) -> AccumulateGrad:
    """The AccumulateGrad node of a leaf; one as long as anything refers to it."""
    found = None if leaf._acc is None else leaf._acc()
    if found is None or found.variable is not leaf:
        found = AccumulateGrad(leaf)
        leaf._acc = weakref.ref(found)
    return found


def edge_of(t: Tensor) -> Edge | None:
    """The edge along which a gradient of ``t`` flows, None if it requires none."""
    if t._view is not None:
        t._view.refresh_edge(t)
    if not t._rg:
        return None
    return t._edge or (accumulator(t), 0)


def record(
    prim: Any,
    tensors: Sequence[Tensor],
    payloads: Sequence[Any],
    outs: Sequence[Tensor],
    attrs: Any,
    regions: Any,
) -> None:
    """Put an operation on the tape: its inexact results require grad and point to the new node."""
    which, outputs = _needs.get(prim) or needs_of(prim, attrs)
    edges, operands = [], []
    for i, (t, d) in enumerate(zip(tensors, payloads, strict=True)):
        edges.append((t._edge or (accumulator(t), 0)) if t._rg else None)
        if which is None or i in which:
            operands.append(_saved(d, t._vc))
        else:
            operands.append(_meta(d))
    results = [_saved(o._data, o._vc) if outputs else _meta(o._data) for o in outs]
    node = Node(prim, attrs, regions, edges, operands, results)
    for i, o in enumerate(outs):
        d = o._data
        if d.dtype.kind in _INEXACT_KINDS if type(d) is np.ndarray else o.dtype.is_inexact:
            o._edge, o._rg = (node, i), True


_INEXACT_KINDS = "fcV"  # bfloat16 is of kind V
_new = object.__new__
_NO_ATTRS: dict[str, Any] = {}


def record_map(prim: Any, tensors: Sequence[Tensor | None], arrays: Sequence[Any], out: Tensor) -> None:
    """:func:`record` for an elementwise operation of arrays of one type, that of its result, without
    attributes; None stands for the tensor of a number. On small operands this is most of the cost."""
    which, outputs = _needs.get(prim) or needs_of(prim, _NO_ATTRS)
    data = out._data
    meta = data.shape, data.dtype
    node = _new(Node)
    edges, operands = [], []
    for t in tensors:
        edges.append(None if t is None or not t._rg else t._edge or (accumulator(t), 0))
    if which is None or which:
        for i, t in enumerate(tensors):
            if which is None or i in which:
                operands.append(_saved(arrays[i], None if t is None else t._vc))
            else:
                operands.append(meta)
    else:
        operands = [meta] * len(edges)
    node.edges, node.operands = edges, operands
    node.results = [_saved(data, out._vc) if outputs else meta]
    node.prim, node.attrs, node.regions = prim, _NO_ATTRS, ()
    node.hooks = node.prehooks = node.retained = None
    node.freed = False
    node.seq = next(_sequence)
    out._edge, out._rg = (node, 0), True


def _saved(data: Any, vc: list[int] | None) -> Saved:
    """``Saved(data, vc)``, at half the cost."""
    s = _new(Saved)
    s.data, s.vc = data, vc
    s.version = 0 if vc is None else vc[0]
    return s


def record_types(prim: Primitive, tensors: Sequence[Tensor], attrs: Any) -> Tensor:
    """Record an operation without running it, for gradient rules that read types only; a tensor without
    value.
    """
    from weft.dispatch import wrap

    types = [t._data._ir_type if type(t._data) is TypeStub else t._ir_type for t in tensors]
    attrs = prim.normalize_attrs(attrs)
    (result,) = prim.infer_types(types, attrs)
    out = wrap(TypeStub(result))
    edges = [edge_of(t) for t in tensors]
    if any(e is not None for e in edges):
        out._edge, out._rg = (
            (Node(prim, attrs, (), edges, [TypeStub(t) for t in types], [TypeStub(result)]), 0),
            True,
        )
    return out


def shaped(shape: tuple[int, ...], dtype: Any, steps: Sequence[Any]) -> list[Any]:
    """Steps from an array of this shape as :func:`record_steps` takes them: with what each makes."""
    out, meta = [], (shape, dtype)
    for prim, attrs in steps:
        attrs = prim.normalize_attrs(attrs)
        (found,) = prim.infer_types([type_stub(meta)._ir_type], attrs)
        meta = found.shape, found.dtype.np
        out.append((prim, attrs, meta))
    return out


def record_steps(x: Tensor, a: np.ndarray, out: Tensor, steps: Sequence[Any]) -> None:
    """Record the steps that lead from ``x``, whose array is ``a``, to ``out``, a view of it."""
    edge: Edge = x._edge or (accumulator(x), 0)
    meta: Any = a.shape, a.dtype
    for prim, attrs, after in steps:
        edge = Node(prim, attrs, (), [edge], [meta], [after]), 0
        meta = after
    out._edge, out._rg = edge, True


def _meta(d: Any) -> Any:
    if type(d) is np.ndarray:
        return d.shape, d.dtype
    return d if type(d) is Value or type(d) is TypeStub else TypeStub(d.type)


def type_stub(meta: Any) -> Any:
    """Something with a type, for what was not saved."""
    return ArrayType(*meta) if type(meta) is tuple else meta


def reachable(roots: Iterable[Node], stop_before: int = 0) -> list[Node]:
    """The nodes from which ``roots`` were computed (roots included), in program order."""
    stack = [n for n in roots if n.seq >= stop_before]
    seen: set[Node] = set(stack)
    while stack:
        for e in stack.pop().edges:
            if e is not None:
                n = e[0]
                if n not in seen and n.seq >= stop_before:
                    seen.add(n)
                    stack.append(n)
    return sorted(seen, key=_by_sequence)


def sequence_mark() -> int:
    """Nodes made from now on have at least this number."""
    return next(_sequence)


def keep_old_value(new: Tensor, target: Tensor, mark: int) -> None:
    """Before ``target`` is overwritten by ``new``: nodes of ``new`` made since ``mark`` that saved target's
    memory get a copy of it, so that an in-place operation never spoils its own gradient.
    """
    if new._edge is None:
        return
    copies: dict[int, Any] = {}
    for node in reachable([new._edge[0]], mark):
        for s in node.operands:
            if type(s) is not Saved or s.vc is None:
                continue
            if type(s.data) is Value and s.vc is target._vc:  # captured values never change
                s.vc = None
            elif may_share(s.data, target._data):
                s.data = copies.setdefault(id(s.data), copy_of(s.data))
                s.vc = None


def version_error(s: Saved, node: Node, shape: Any, dtype: Any, index: int) -> RuntimeError:
    legacy = {
        "float32": "FloatTensor",
        "float64": "DoubleTensor",
        "float16": "HalfTensor",
        "int64": "LongTensor",
        "bfloat16": "BFloat16Tensor",
        "complex64": "ComplexFloatTensor",
        "bool": "BoolTensor",
    }
    where = ""
    edge = node.edges[index] if index < len(node.edges) else None
    if edge is not None and not isinstance(edge[0], AccumulateGrad):
        where = f", which is output {edge[1]} of {edge[0].name()},"
    elif index >= len(node.edges):
        where = f", which is output {index - len(node.edges)} of {node.name()},"
    assert s.vc is not None
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"[weft.{legacy.get(dtype.long_name, dtype.long_name)} {list(shape)}]{where} is at version "
        f"{s.vc[0]}; expected version {s.version} instead. Hint: enable anomaly detection to find the "
        "operation that failed to compute its gradient, with torch.autograd.set_detect_anomaly(True)."
    )


Hook = Callable[[Any], Any]
