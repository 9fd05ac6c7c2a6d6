"""Library functions on small operands: worked out once for each signature, from then on a few numpy calls.

What a function does before it reaches numpy (promotion, broadcasting, shapes, the choice between forms) is
decided by the types of its tensors and by its other arguments alone. At the second call with one combination,
the function is recorded as a graph (as a :func:`weft.composite.composite` is), which becomes one Python
function of numpy calls (:mod:`weft.ir.calls`). Where a gradient is wanted the tape gets one node for the
call, whose gradient is another such function. Whatever is out of the ordinary (capture, devices, views to be
returned, values that are asked for) is run by the function itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
from weft import composite as C
from weft.autograd.grad_mode import inference, mode
from weft.casting import opened
from weft.dispatch import wrap
from weft.dtypes import _defaults, changed
from weft.eager import switch
from weft.ir.calls import as_function, prepared_call
from weft.ir.graph import Graph, Op
from weft.ir.prims.base import _NUMPY, Kind, _current
from weft.ir.types import CPU, TensorType, dtype_of_numpy
from weft.quick import SMALL, quietly
from weft.tensor import Tensor

MOST = 2048  # combinations that one function keeps
PATIENCE = 48  # calls of a plan after which it is worth a compilation
_PRODUCT = 1 << 18  # multiplications that a kernel does better

_new = object.__new__
_ndarray = np.ndarray
_ONLY = {np.ndarray}
_asarray = np.asarray
_current_interpreter = _current.get
Fn = TypeVar("Fn", bound=Callable[..., Any])


class Plan(C.Plan):
    """One function for one combination, run by numpy."""

    taped = False

    def _compile_backward(self, cotangents: Sequence[np.ndarray]) -> Callable[..., Any]:
        graph = self.backward_graph
        assert graph is not None
        return _listing(graph)

    def backward(self, cotangents: Sequence[np.ndarray]) -> Callable[..., Any]:
        found = self._backward.get(None)
        if found is None:
            found = self._backward[None] = self._compile_backward(cotangents)
        return found


def _listing(graph: Graph) -> Callable[..., Sequence[np.ndarray]]:
    """A graph as a function that gives a sequence of arrays."""
    call, single = as_function(graph), len(graph.results) == 1

    def run(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        try:
            out = quietly(call, *arrays)
        except RuntimeError:  # another thread is there
            with np.errstate(all="ignore"):
                out = call(*arrays)
        return (_asarray(out),) if single else [_asarray(a) for a in out]

    return run


def _plan(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Plan | None:
    """Record the function; None where it has to run operation by operation."""
    tensors = [x for x in C.spread((*args, *kwargs.values())) if isinstance(x, Tensor)]
    plan = Plan(fn, args, kwargs, [C._DENSE] * len(tensors))  # type: ignore[list-item]
    grads = [mode.grad and t._rg for t in tensors]
    sketch = C.Sketch(plan.name)
    sketch.gradients = any(grads)
    types = [TensorType(t._data.shape, dtype_of_numpy(t._data.dtype), CPU) for t in tensors]
    found = C.sketched(plan, sketch, [sketch.builder.param(t) for t in types], grads)
    if found is None:
        return None
    graph, outs, stand_ins = found
    if not all(_is_small(op) for op in graph.ops):
        return None
    plan.taped = any(o._rg for o in outs)
    if plan.taped:
        graph = C._differentiate(plan, sketch, graph, outs, stand_ins, grads)
        plan.forward = _listing(_pruned(graph))
        return plan
    graph = _pruned(graph)
    try:
        plan.forward = as_function(graph)
    except (TypeError, ValueError, OverflowError):  # an operation with regions; a number out of range
        return None
    if sum(map(_nanoseconds, graph.ops)) >= _DEAR and _exact_enough(graph):
        plan.forward = _Compiled(graph, plan.forward).first
    return plan


# Rough times in nanoseconds: of a call of numpy's, of a rule in Python, of each element.
_CALL, _RULE = 500, 3500
_EACH = {Kind.MAP: 0.5, Kind.REDUCE: 1.0, Kind.SCAN: 3.5, Kind.SORT: 12.0, Kind.WINDOW: 20.0}
_DEAR = 3000  # what a compiled plan must be able to save


def _nanoseconds(op: Op) -> float:
    """About what numpy takes for an operation."""
    if not op.operands or op.prim.name in ("reshape", "permute", "broadcast", "slice"):
        return 0
    n = max(v.type.size for v in (*op.operands, *op.results))
    if prepared_call(op) is None:  # a rule in Python takes several calls
        return _RULE + 2 * n * _EACH.get(op.prim.kind, 1.0)
    return _CALL + n * _EACH.get(op.prim.kind, 1.0)


def _exact_enough(graph: Graph) -> bool:
    """Whether the compiled graph may take over in the middle of a program: a bare sum or product of numbers
    would round differently from then on, and gains little."""
    work = [op for op in graph.ops if op.operands]
    if any(op.prim.kind is Kind.CONTRACT and op.prim.name == "dot_general" for op in work):
        return False
    return len(work) > 2 or not any(op.prim.name in ("sum", "prod") for op in work)


class _Compiled:
    """A plan that is dear for numpy: after some calls its graph is compiled."""

    def __init__(self, graph: Graph, by_numpy: Callable[..., Any]) -> None:
        self.graph, self.by_numpy, self.calls = graph, by_numpy, 0
        self.runner: Any = None

    def first(self, *arrays: np.ndarray) -> Any:
        """The results; those of contiguous operands by compiled code once there is any."""
        runner = self.runner
        if runner is None:
            self.calls += 1
            if self.calls != PATIENCE or not switch.on:
                return self.by_numpy(*arrays)
            runner = self.runner = C.kernels.runner_of(self.graph)
            if runner is None:
                return self.by_numpy(*arrays)
        for a in arrays:
            if not a.flags.c_contiguous:
                return self.by_numpy(*arrays)
        out = runner(*arrays)
        return out[0] if len(out) == 1 else tuple(out)


def _pruned(graph: Graph) -> Graph:
    """Without the operations that no result needs."""
    needed, ops = set(graph.results), []
    for op in reversed(graph.ops):
        if not needed.isdisjoint(op.results):
            needed.update(op.operands)
            ops.append(op)
    return Graph(graph.params, ops[::-1], graph.results, graph.name)


def _is_small(op: Any) -> bool:
    """Whether an operation is no work for a kernel."""
    if op.regions or any(v.type.size > 2 * SMALL for v in op.results):
        return False
    if op.prim.kind is Kind.CONTRACT:
        a, b = (v.type for v in op.operands)
        if op.prim.name == "conv":
            return True
        shared = prod(b.shape[i] for side in ("contract", "batch") for i in op.attrs[side][1]) or 1
        return a.size * (b.size // shared) < _PRODUCT
    return op.prim.kind not in (Kind.ATTENTION, Kind.CONTROL, Kind.HOST)


def prepared(fn: Fn) -> Fn:
    """Run ``fn`` on small tensors by a plan for each signature. Its tensors must be arguments (or stand in
    a list that is one), its other arguments hashable; it gives fresh tensors."""
    return _before(fn, fn)


class _Table:
    """The plans of one function.

    ``quick`` holds those for one to three tensors, or a list of them, and plain arguments without a gradient,
    by shapes, dtypes and arguments; ``plans`` all, by signature.
    """

    __slots__ = ("fn", "plans", "quick", "seen")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        # the call, what tells its plain arguments apart, how several results are given
        self.quick: dict[Any, tuple[Any, Any, Any]] = {}
        self.plans: dict[Any, Plan | None] = {}
        self.seen: set[Any] = set()

    def find(self, signature: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Plan | None:
        """The plan of a signature that has come before; None: run the function."""
        try:
            return self.plans[signature]
        except TypeError:  # an argument that is not hashable
            return None
        except KeyError:
            pass
        if signature not in self.seen:
            if len(self.seen) >= MOST:
                self.seen.clear()
            self.seen.add(signature)
            return None
        if len(self.plans) >= MOST:
            self.plans.clear()
            self.quick.clear()
        plan = None
        if not any(t._inference or t._data.dtype.kind == "c" for t in tensors):
            plan = _plan(self.fn, args, kwargs)
        self.plans[signature] = plan
        if plan is not None and not plan.taped:
            self.keep(plan, args, kwargs)
        return plan

    def keep(self, plan: Plan, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Make a plan one of the quick ones: its tensors come first, and of one kind."""
        first = args[0] if args else None
        several = type(first) is list or type(first) is tuple
        n = 1 if several else next((i for i, x in enumerate(args) if not isinstance(x, Tensor)), len(args))
        parts: Any = first if several else args[:n]
        rest = (*args[n:], *kwargs, *kwargs.values())
        if not 0 < n <= 3 or not all(isinstance(t, Tensor) for t in parts):
            return
        if any(isinstance(x, (Tensor, list)) for x in rest):
            return
        key = tuple([k for t in parts for k in (t._data.shape, t._data.dtype)])
        found = plan.forward, _kinds(rest) if rest else None, None if plan.single else plan.finish
        self.quick[(key, *rest) if several else (*key, *rest)] = found


def _kinds(rest: Sequence[Any]) -> Any:
    """What tells plain arguments apart that are equal: their types, and the signs of zeros."""
    if len(rest) == 1:
        x = rest[0]
        return type(x) if x else (type(x), str(x))
    return [type(x) if x else (type(x), str(x)) for x in rest]


def _before(fn: Any, general: Any) -> Any:
    table, large = _Table(fn), C.fused(fn, general)
    find = table.quick.get

    # As long as it is because a further Python call costs as much as a third of a small operation.
    def call(first: Any = None, /, *rest: Any, **kwargs: Any) -> Any:
        if changed.used or opened.blocks or _current_interpreter() is not _NUMPY:
            return slowly(first, rest, kwargs)
        plain: Any = (*rest, *kwargs, *kwargs.values()) if kwargs else rest
        try:
            if isinstance(first, Tensor):
                a = first._data
                if type(a) is not _ndarray or first._view is not None or (first._rg and mode.grad):
                    return slowly(first, rest, kwargs)
                if plain and isinstance(plain[0], Tensor):
                    t = plain[0]
                    b = t._data
                    if type(b) is not _ndarray or t._view is not None or (t._rg and mode.grad):
                        return slowly(first, rest, kwargs)
                    if len(plain) > 1 and isinstance(plain[1], Tensor):
                        t, plain = plain[1], plain[2:]
                        c = t._data
                        if type(c) is not _ndarray or t._view is not None or (t._rg and mode.grad):
                            return slowly(first, rest, kwargs)
                        arrays: Any = a, b, c
                        found = find((a.shape, a.dtype, b.shape, b.dtype, c.shape, c.dtype, *plain))
                    else:
                        arrays, plain = (a, b), plain[1:]
                        found = find((a.shape, a.dtype, b.shape, b.dtype, *plain))
                else:
                    arrays = (a,)
                    found = find((a.shape, a.dtype, *plain))
            elif type(first) is list or type(first) is tuple:
                arrays = [t._data for t in first if t._view is None and not (t._rg and mode.grad)]
                found = find((tuple([k for a in arrays for k in (a.shape, a.dtype)]), *plain))
                if len(arrays) != len(first) or {*map(type, arrays)} != _ONLY:
                    return slowly(first, rest, kwargs)
            else:
                return slowly(first, rest, kwargs)
            if found is None or (plain and _kinds(plain) != found[1]):
                return slowly(first, rest, kwargs)
        except (TypeError, AttributeError):  # an argument that is not hashable, an array of another kind
            return slowly(first, rest, kwargs)
        try:
            out = quietly(found[0], *arrays)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return slowly(first, rest, kwargs)
        if found[2] is not None:
            return _several(out, found[2])
        t = _new(Tensor)
        t._data = out if type(out) is _ndarray else _asarray(out)
        t._vc = [0]
        t._view = None
        t._rg = False
        if inference.used and mode.inference:
            t._inference = True
        return t

    def slowly(first: Any, rest: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        args = (first, *rest)
        if first is None and not rest:
            args = ()
        if _current_interpreter() is not _NUMPY:
            return general(*args, **kwargs)
        key: list[Any] = [mode.grad, _defaults.dtype, mode.autocast]
        arrays: list[Any] = []
        tensors: list[Tensor] = []
        if not _signature((*args, *kwargs.items()) if kwargs else args, key, arrays, tensors):
            return large(*args, **kwargs)
        plan = table.find(tuple(key), args, kwargs, tensors)
        if plan is None or (plan.taped and any(t._inference for t in tensors)):
            return general(*args, **kwargs)
        try:
            if plan.taped:
                return C._call(plan, tensors)
            out = quietly(plan.forward, *arrays)
        except (RuntimeError, IndexError, ValueError):  # in the words of the function itself
            return general(*args, **kwargs)
        outs = _several(out, list)
        return outs[0] if plan.single else plan.finish(outs)

    made: Any = functools.wraps(general)(call)
    made.shorten = functools.partial(_before, fn)
    return made


def _several(out: Any, finish: Callable[[Sequence[Tensor]], Any]) -> Any:
    """The results of a plan as the function gives them."""
    arrays = out if type(out) is tuple else (out,)
    outs = [wrap(a if type(a) is _ndarray else _asarray(a)) for a in arrays]
    if inference.used and mode.inference:
        for t in outs:
            t._inference = True
    return finish(outs)


def _signature(args: Any, key: list[Any], arrays: list[Any], tensors: list[Tensor], depth: int = 0) -> bool:
    """Add what decides about a call to the key; False where an argument is out of the ordinary."""
    for x in args:
        if isinstance(x, Tensor):
            a, view = x._data, x._view
            if type(a) is not _ndarray or a.size >= SMALL:
                return False
            if view is not None and view.edge_version != x._vc[0]:
                view.refresh_edge(x)
            key += a.shape, a.dtype, x._rg
            arrays.append(a)
            tensors.append(x)
            continue
        kind = type(x)
        if kind is float:
            key += float, x or str(x)  # 0.0 and -0.0 would be one key
        elif kind is list or kind is tuple:
            key += kind, len(x)
            if depth > 2 or not _signature(x, key, arrays, tensors, depth + 1):
                return False
        else:
            key += kind, x
    return True
