"""Library functions that run eagerly as one compiled graph instead of operation by operation.

A function under :func:`composite` is an ordinary function over Tensors. In capture it is traced through like
any other. Eagerly, on large operands, its graph is recorded once for each combination of types, layouts and
options, compiled, and from then on called as a whole; if a gradient is wanted the tape gets one node, whose
gradient is compiled too. On small operands the same happens at the ``PATIENCE``-th call with one combination,
so that a training loop on small tensors gains and a script that runs once compiles nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from weft.autograd import engine
from weft.autograd.engine import Spoiled, Walk
from weft.autograd.grad_mode import enable_grad, inference, mode
from weft.autograd.tape import AccumulateGrad, Node, _saved, accumulator, edge_of, reachable, version_error
from weft.devices import beside
from weft.dispatch import wrap
from weft.eager import LEAST_BYTES, kernels, switch
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.prims.base import (
    _NUMPY,
    GraphInterpreter,
    Interpreter,
    Primitive,
    _current,
    current_interpreter,
    interpreting,
)
from weft.passes.autodiff import backprop, partition
from weft.tensor import Tensor

if TYPE_CHECKING:
    from weft.runtime.oneop import Layout

MOST_BACKWARD = 8  # versions of one backward graph, for cotangents that lie differently
PATIENCE = 16  # calls with one combination before small operands are worth a compilation

_ndarray = np.ndarray
Fn = TypeVar("Fn", bound=Callable[..., Any])


class Refused(Exception):
    """The function does what one graph of its operands cannot hold."""


class Sketch(Interpreter):
    """Records a library function: values are those of its operands, and nothing may be asked for."""

    recording = True
    gradients = True  # whether a gradient may be taken of what is recorded

    def __init__(self, name: str) -> None:
        self.builder = GraphBuilder(name)

    def bind(self, prim: Primitive, operands: Sequence[Any], attrs: Any, regions: Any) -> Any:
        values = beside(self.builder, prim, [self.value(x) for x in operands])
        out = self.builder.add(prim, values, attrs, regions)
        return out[0] if prim.n_results == 1 and len(out) == 1 else out

    def value(self, x: Any) -> Value:
        if type(x) is Value:
            return x
        if isinstance(x, Tensor):
            return self.lift(x)
        return self.builder.add(P.constant_p, (), {"value": np.asarray(x)})[0]

    def lift(self, t: Tensor) -> Value:
        if type(t._data) is not Value:
            raise Refused("a tensor that is no operand")
        return t._data

    def refuse(self, *args: Any) -> Any:
        raise Refused("a value or a write")

    assign = concretize = scalar = hidden_scalar = refuse

    def note_created(self, t: Tensor) -> None:
        pass

    def saw_grad(self, t: Tensor, what: str) -> None:
        raise Refused("a gradient")


def _replayed(interp: Interpreter, graph: Graph, values: Sequence[Any]) -> list[Any]:
    """The results of ``graph`` on these values, under another interpreter."""
    env: dict[Value, Any] = dict(zip(graph.params, values, strict=True))
    for op in graph.ops:
        out = interp.bind(op.prim, [env[v] for v in op.operands], dict(op.attrs), op.regions)
        env.update(zip(op.results, out if isinstance(out, tuple) else (out,), strict=True))
    return [env[r] for r in graph.results]


# -- plans --------------------------------------------------------------------------------------------------


_HOLE = object()  # where a tensor goes


def spread(args: Sequence[Any]) -> list[Any]:
    """Arguments, and what lists among them hold."""
    return [y for x in args for y in (x if isinstance(x, (list, tuple)) else (x,))]


def _emptied(x: Any) -> Any:
    """An argument with holes for its tensors."""
    if isinstance(x, (list, tuple)) and any(isinstance(y, Tensor) for y in x):
        return _Holes(_HOLE if isinstance(y, Tensor) else y for y in x)
    return _HOLE if isinstance(x, Tensor) else x


def _filled(x: Any, tensors: Iterator[Tensor]) -> Any:
    if type(x) is _Holes:
        return [next(tensors) if y is _HOLE else y for y in x]
    return next(tensors) if x is _HOLE else x


class _Holes(list[Any]):
    """A sequence with holes."""


class _Dense:
    """The layout of what goes in as it is."""

    prepare = None


_DENSE = _Dense()


class Plan:
    """One function compiled for one combination: ``forward`` gives the results, then what is kept.

    ``wrt``: the operands that get gradients, in the order in which the backward graph gives them. ``saved``:
    for each of the first params of that graph ("operand", i), ("result", i) or ("kept", i).
    """

    def __init__(
        self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], layouts: Sequence[Layout],
    ) -> None:  # fmt: skip
        self.fn, self.name = fn, fn.__name__.strip("_")
        self.args = [_emptied(x) for x in args]
        self.kwargs = {k: _emptied(x) for k, x in kwargs.items()}
        self.finish: Callable[[Sequence[Tensor]], Any] = tuple  # the results as the function gives them
        self.layouts, self.n_results, self.single = layouts, 1, True
        self.forward: Callable[..., Any] = self._missing
        self.backward_graph: Graph | None = None
        self.saved: list[tuple[str, int]] = []
        self.wrt: list[int] = []
        self.differentiable: list[bool] = []
        self.operands_read: set[int] = set()
        self.results_read: set[int] = set()
        self.metas: tuple[list[Any], list[Any]] | None = None  # shapes and dtypes of operands and results
        self._backward: dict[Any, Callable[..., Any]] = {}

    def _missing(self, *arrays: Any) -> Any:
        raise RuntimeError("not compiled")

    def call(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The function itself on these operands and the options of this combination."""
        it = iter(tensors)
        args = [_filled(x, it) for x in self.args]
        out = self.fn(*args, **{k: _filled(x, it) for k, x in self.kwargs.items()})
        self.single = isinstance(out, Tensor)
        if hasattr(out, "_make"):  # a named tuple
            self.finish = out._make
        outs = [out] if self.single else list(out)
        self.n_results = len(outs)
        return outs

    def backward(self, cotangents: Sequence[np.ndarray]) -> Callable[..., Any]:
        """The runner of the backward graph for cotangents that lie so, compiled when first asked for."""
        lie: Any = tuple([None if c.flags.c_contiguous else (c.shape, c.strides) for c in cotangents])
        found = self._backward.get(lie)
        if found is None:
            if any(lie) and len(self._backward) >= MOST_BACKWARD:
                return self.backward([np.empty(c.shape, c.dtype) for c in cotangents])  # which copies them
            found = self._backward[lie] = self._compile_backward(cotangents)
        return found

    def _compile_backward(self, cotangents: Sequence[np.ndarray]) -> Callable[..., Any]:
        graph = self.backward_graph
        assert graph is not None
        given = graph.params[: len(graph.params) - len(cotangents)]
        layouts = [kernels.Layout(c) for c in cotangents]
        b = GraphBuilder(graph.name)
        params = [b.param(p.type) for p in (*given, *layouts)]
        interp = GraphInterpreter(b)
        with interpreting(interp):
            values = [x.value(p) for x, p in zip(layouts, params[len(given) :], strict=True)]
        results = _replayed(interp, graph, [*params[: len(given)], *values])
        runner = kernels.executable_of(b.finish(results)).runner
        return kernels.prepared(runner, [*[_DENSE] * len(given), *layouts])


def _plan(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Plan | None:
    """Record and compile; None where the function has to run operation by operation."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    windows = [None if t._view is None else kernels.window_of(t._data) for t in tensors]
    layouts = [kernels.Layout(t._data, window=w) for t, w in zip(tensors, windows, strict=True)]
    plan = Plan(fn, args, kwargs, layouts)
    sketch = Sketch(plan.name)
    params = [sketch.builder.param(x.type) for x in layouts]
    grads = [mode.grad and t._rg for t in tensors]
    with interpreting(sketch):
        values = [x.value(p) for x, p in zip(layouts, params, strict=True)]
    found = sketched(plan, sketch, values, grads)
    if found is None or set(found[0].results) & set(params):
        return None
    graph, outs, stand_ins = found
    if fn in _several and sum(_is_work(op) for op in graph.ops) < 2:
        return None
    if any(grads):
        graph = _differentiate(plan, sketch, graph, outs, stand_ins, grads)
    runner = kernels.runner_of(graph)
    if runner is None:
        return None
    plan.forward = kernels.prepared(runner, layouts)
    return plan


def _is_work(op: Any) -> bool:
    return bool(op.operands) and op.prim.name not in ("reshape", "permute", "broadcast", "slice")


def sketched(
    plan: Plan, sketch: Sketch, values: Sequence[Value], grads: Sequence[bool]
) -> tuple[Graph, Sequence[Tensor], list[Tensor]] | None:
    """The graph of the plan's function on these values, its results, and the tensors that stood for its
    operands; None where one graph cannot hold what it does."""
    try:
        with interpreting(sketch):
            stand_ins = [_stand_in(v, rg) for v, rg in zip(values, grads, strict=True)]
            outs = plan.call(stand_ins)
            results = [o._data if o._view is None else o._view.value(o, sketch) for o in outs]
    except (Refused, RuntimeError, TypeError, ValueError, IndexError, OverflowError, NotImplementedError):
        return None  # what is wrong is said by the function itself, run on the operands
    if any(t._vc[0] for t in stand_ins) or set(results) & set(values) or not sketch.builder.ops:
        return None
    return sketch.builder.finish(results), outs, stand_ins


def _stand_in(value: Value, requires_grad: bool) -> Tensor:
    t = wrap(value)
    t._rg = requires_grad
    return t


def _differentiate(
    plan: Plan,
    sketch: Sketch,
    graph: Graph,
    outs: Sequence[Tensor],
    stand_ins: list[Tensor],
    grads: list[bool],
) -> Graph:
    """Add the backward part to the plan; the forward graph with what it keeps as further results."""
    plan.differentiable = [o._rg for o in outs]
    roots = [o for o in outs if o._rg]
    wanted = [(i, edge_of(t)) for i, (t, g) in enumerate(zip(stand_ins, grads, strict=True)) if g]
    nodes = reachable([o._edge[0] for o in roots if o._edge])
    nodes = [n for n in nodes if not isinstance(n, AccumulateGrad)]
    cts = [Value(o._ir_type, f"ct{i}") for i, o in enumerate(roots)]
    b = sketch.builder
    with interpreting(sketch):
        walk = Walk(create_graph=False)
        before, mode.grad = mode.grad, False
        try:
            seeds: dict[Any, Any] = {}
            for o, ct in zip(roots, cts, strict=True):
                edge = edge_of(o)
                seeds[edge] = ct if edge not in seeds else P.add_p.bind(seeds[edge], ct)
            found = backprop([walk.record(n) for n in nodes], seeds, {e for _, e in wanted})
            plan.wrt = [i for i, e in wanted if e in found]
            gradients = [sketch.value(found[e]) for _, e in wanted if e in found]
        finally:
            mode.grad = before
    whole = Graph([*graph.params, *cts], b.ops, [*graph.results, *gradients], graph.name)
    unsaved = graph.params[:1] if plan.fn in _reads_no_input else ()
    forward, backward, n_saved = partition(whole, len(graph.params), len(graph.results), unsaved)
    return _split_saved(plan, forward, backward, n_saved)


def _split_saved(plan: Plan, forward: Graph, backward: Graph, n_saved: int) -> Graph:
    """Of the saved values, operands and results need not be kept apart."""
    n = plan.n_results
    params, results = list(forward.params), list(forward.results[:n])
    kept: list[Value] = []
    for v in forward.results[len(forward.results) - n_saved :]:
        if v in params:
            plan.saved.append(("operand", params.index(v)))
            plan.operands_read.add(params.index(v))
        elif v in results:
            plan.saved.append(("result", results.index(v)))
            plan.results_read.add(results.index(v))
        else:
            plan.saved.append(("kept", len(kept)))
            kept.append(v)
    plan.backward_graph = backward
    return Graph(forward.params, forward.ops, [*results, *kept], forward.name)


# -- calls --------------------------------------------------------------------------------------------------

_plans: dict[Any, Plan | None] = {}
_calls: dict[Any, int] = {}


def composite(fn: Fn) -> Fn:
    """Run ``fn`` eagerly as one compiled graph where that pays. Its tensors must be arguments, its other
    arguments hashable; it gives one tensor or several, none of them an operand or a view of one. The gradient
    may read all operands."""
    return _composite(fn)


def composite_of_results(fn: Fn) -> Fn:
    """A :func:`composite` whose gradient does not read the first operand: that may be overwritten after."""
    _reads_no_input.add(fn)
    return _composite(fn)


_reads_no_input: set[Any] = set()


def fused(fn: Any, general: Any) -> Any:
    """``fn`` on large operands that no gradient is wanted of: one graph where it is several operations, once
    a combination has come a few times; ``general`` elsewhere."""
    call = _composite(fn, general)
    _several.add(fn)

    def large(*args: Any, **kwargs: Any) -> Any:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                if mode.grad and x.requires_grad:
                    return general(*args, **kwargs)
            elif isinstance(x, (list, tuple)) and any(isinstance(y, Tensor) for y in x):
                return general(*args, **kwargs)
        return call(*args, **kwargs)

    return large


_several: set[Any] = set()
LARGE_PATIENCE = 4  # calls with one combination before several operations on large operands are one graph


def _composite(fn: Any, general: Any = None) -> Any:
    general = general or fn

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        interp = _current.get()
        if interp is not _NUMPY or not switch.on:
            if interp.recording and all(map(_is_plain, (*args, *kwargs.values()))):
                return interp.apart(fn, *args, **kwargs)
            return general(*args, **kwargs)
        tensors: list[Tensor] = []
        key: list[Any] = [fn, mode.grad, mode.autocast]
        for x in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(x, Tensor):
                d = x._data
                if type(d) is not _ndarray:
                    return general(*args, **kwargs)
                if x._view is not None:
                    x._view.refresh_edge(x)
                    if d.nbytes >= LEAST_BYTES:
                        key.append(kernels.window_of(d))
                key += d.shape, d.strides, d.dtype.num, x._rg
                tensors.append(x)
            elif type(x) is float:
                key += float, x, math.copysign(1.0, x)
            else:
                key += type(x), x
        if kwargs:
            key.append(tuple(kwargs))
        try:
            plan = _plans[tuple(key)]
        except KeyError:
            plan = _meet(fn, args, kwargs, tuple(key), tensors)
        except TypeError:  # an argument that is not hashable
            plan = None
        if plan is None or (plan.backward_graph is not None and any(t._inference for t in tensors)):
            return general(*args, **kwargs)
        return _call(plan, tensors)

    return call


_PLAIN = frozenset((Tensor, float, int, bool, str, type(None)))


def _is_plain(x: Any) -> bool:
    """Whether what a function does with this argument runs no code of the user's."""
    if type(x) in _PLAIN:
        return True
    if type(x) is tuple:
        return all(map(_is_plain, x))
    return isinstance(x, Tensor) and type(x).__module__.startswith("weft.")


def _meet(
    fn: Any, args: Sequence[Any], kwargs: dict[str, Any], key: Any, tensors: Sequence[Tensor]
) -> Plan | None:
    """The plan of a new combination, if it is worth one by now."""
    largest = max([t._data.nbytes for t in tensors], default=0)
    if any(t._data.dtype.kind == "c" or t._inference for t in tensors):
        return None
    if largest < LEAST_BYTES or fn in _several:
        n = _calls[key] = _calls.get(key, 0) + 1
        if n < (PATIENCE if largest < LEAST_BYTES else LARGE_PATIENCE):
            if len(_calls) > 1 << 14:
                _calls.clear()
            return None
        _calls.pop(key, None)
    if largest == 0 or not kernels.KERNELS.admits(fn, key):
        return None
    made = _plans[key] = _plan(fn, args, kwargs)
    return made


def _call(plan: Plan, tensors: Sequence[Tensor]) -> Any:
    out = plan.forward(*[t._data for t in tensors])
    if plan.backward_graph is not None:
        n = plan.n_results
        results = [wrap(a) for a in out[:n]]
        _record(plan, tensors, results, out[n:])
    else:
        results = [wrap(a) for a in out]
        if inference.used and mode.inference:
            for r in results:
                r._inference = True
    return results[0] if plan.single else plan.finish(results)


# -- the tape -----------------------------------------------------------------------------------------------


def _record(plan: Plan, tensors: Sequence[Tensor], results: Sequence[Tensor], kept: Sequence[Any]) -> None:
    inputs = [_saved(t._data, t._vc) for t in tensors]
    edges = [(t._edge or (accumulator(t), 0)) if t._rg else None for t in tensors]  # views are up to date
    if plan.metas is None:
        plan.metas = [_meta(s.data) for s in inputs], [_meta(r._data) for r in results]
    operands, outs = plan.metas[0].copy(), plan.metas[1].copy()
    for i in plan.operands_read:
        operands[i] = inputs[i]
    for i in plan.results_read:
        outs[i] = _saved(results[i]._data, results[i]._vc)
    rule = Gradient(plan, inputs, outs, kept, edges)
    node = rule.node = CompositeNode(rule, {}, (), edges, operands, outs)
    for i, r in enumerate(results):
        if plan.differentiable[i]:
            r._edge, r._rg = (node, i), True


def _meta(a: np.ndarray) -> tuple[Any, Any]:
    return a.shape, a.dtype


class CompositeNode(Node):
    """The tape node of one call."""

    __slots__ = ()

    def free(self) -> None:
        super().free()
        self.prim.inputs = self.prim.outs = self.prim.kept = ()
        self.prim.node = None


class Gradient:
    """The pseudo primitive of one call: ``vjp`` runs the compiled backward graph."""

    kind, needs, nondifferentiable, n_results, regions = None, "", False, 1, ()

    def __init__(self, plan: Plan, inputs: Any, outs: Any, kept: Any, edges: Any) -> None:
        self.plan, self.name = plan, plan.name
        self.inputs, self.outs, self.kept, self.edges = inputs, outs, kept, edges
        self.node: Any = None

    def vjp(self, ct: Any, out: Any, *operands: Any, **attrs: Any) -> Sequence[Any]:
        plan = self.plan
        all_cts = ct if type(ct) is tuple else (ct,)
        spoiled = [x for x in (*all_cts, *operands, *(out if type(out) is tuple else (out,)))
                   if type(x) is Spoiled]  # fmt: skip
        grads: list[Any] = [None] * len(operands)
        if spoiled:
            for i in plan.wrt:
                grads[i] = Spoiled(operands[i]._ir_type if not isinstance(operands[i], _ndarray)
                                   else engine.type_of(operands[i]), spoiled[0].error)  # fmt: skip
            return grads
        cts = [c for c, d in zip(all_cts, plan.differentiable, strict=True) if d]
        if any(isinstance(c, Tensor) for c in cts):
            return self._again(cts)
        given = self._given()
        interp: Any = current_interpreter()
        types = [v.type for v in plan.backward_graph.params[len(given) :]]  # type: ignore[union-attr]
        cts = [np.zeros(t.shape, t.dtype.np) if c is None else c for c, t in zip(cts, types, strict=True)]
        if interp.recording:
            found = self._replay(interp, [*given, *cts])
        else:
            found = plan.backward(cts)(*given, *cts)
        for i, g in zip(plan.wrt, found, strict=True):
            grads[i] = g
        return grads

    def _given(self) -> list[Any]:
        """The saved values, dense as the backward graph takes them."""
        out = []
        for where, i in self.plan.saved:
            if where == "operand":
                prepare = self.plan.layouts[i].prepare
                a = self.inputs[i].data
                out.append(a if prepare is None else prepare(a))
            else:
                out.append(self.outs[i].data if where == "result" else self.kept[i])
        return out

    def _replay(self, interp: Any, values: Sequence[Any]) -> list[Any]:
        """The backward graph under a recorder."""
        graph = self.plan.backward_graph
        assert graph is not None
        recorder = interp
        while not hasattr(recorder, "lift"):
            recorder = recorder.inner
        lifted = [v if type(v) is Value else recorder.lift(wrap(v)) for v in values]
        return _replayed(interp, graph, lifted)

    def _again(self, cts: Sequence[Any]) -> list[Any]:
        """The gradients as tensors with a history: runs the function again, operation by operation."""
        from weft.capture.state import paused, recorder

        for i, s in enumerate(self.inputs):
            if s.vc is not None and s.vc[0] != s.version:
                raise version_error(s, self.node, s.data.shape, engine.type_of(s.data).dtype, i)
        tensors = [_linked(s.data, e) for s, e in zip(self.inputs, self.edges, strict=True)]
        outer = recorder()
        with paused() if outer is None else interpreting(outer), enable_grad():
            out = self.plan.call(tensors)
            outs = [o for o, d in zip(out, self.plan.differentiable, strict=True) if d]
            pairs = [(o, c) for o, c in zip(outs, cts, strict=True) if c is not None]
            wrt = [tensors[i] for i in self.plan.wrt]
            found = engine.grad([o for o, _ in pairs], wrt, [c for _, c in pairs], create_graph=True,
                                allow_unused=True)  # fmt: skip
        for t, e in zip(tensors, self.edges, strict=True):
            _connect(t, e)
        grads: list[Any] = [None] * len(tensors)
        for i, g in zip(self.plan.wrt, found, strict=True):
            grads[i] = g
        return grads


def _linked(data: Any, edge: Any) -> Tensor:
    """A tensor on saved data, which gets the history that it had by :func:`_connect`: until then a walk ends
    here, and passes no hooks that belong to the walk that asks for it."""
    t = wrap(data)
    if edge is not None:
        meta = _meta(data)
        t._edge = Node(P.reshape_p, {"shape": data.shape}, (), [None], [meta], [meta]), 0
        t._rg = True
    return t


def _connect(t: Tensor, edge: Any) -> None:
    if edge is not None and t._edge is not None:
        t._edge[0].edges = [edge]
