"""Gradients across the boundary of a compiled function.

The backward walk runs once over the trace's tape, under the Recorder; the joint graph is partitioned into a
forward part, which also returns what the backward part needs, and a backward part, compiled at its first
use. At each call the outputs get one tape node whose gradient rule runs the compiled backward. A gradient of
a gradient (``create_graph``) runs the function again, eagerly, on the inputs it had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.autograd.engine import Spoiled, Walk, _run_hooks, grad
from weft.autograd.grad_mode import enable_grad, no_grad
from weft.autograd.tape import AccumulateGrad, Node, Saved, TypeStub, edge_of, reachable
from weft.capture.recorder import Recorder
from weft.capture.state import paused, recorder
from weft.devices import copy_of, put, write
from weft.dispatch import wrap, wrap_value
from weft.ir.graph import Graph, Value
from weft.ir.prims.base import current_interpreter, interpreting
from weft.ir.record import record
from weft.ir.types import TensorType
from weft.passes.autodiff import backprop, partition
from weft.tensor import Tensor


@record
class Joint:
    """The split graph. ``saved`` are the forward values that the backward graph takes, before the cotangents;
    ``used[i]`` is the position among the differentiated inputs of the ``i``-th gradient it returns.
    """

    backward: Graph
    saved: list[Value]
    used: list[int]
    feeds: list[frozenset[int]]  # for each gradient the cotangents it depends on


def joint(
    rec: Recorder,
    mark: int,
    outputs: Sequence[Any],
    wrt: Sequence[Any],
    results: Sequence[Value],
) -> tuple[Graph, Joint] | None:
    """Differentiate what the recorder holds. ``outputs``: (edge, type) of what may get a cotangent; ``wrt``:
    the edges of the inputs. None where the tape was already walked and freed.
    """
    seg = rec.segment
    nodes = [n for n in reachable([e[0] for e, _ in outputs], mark) if not isinstance(n, AccumulateGrad)]
    if any(n.freed for n in nodes):
        return None
    builder = seg.builder
    n_ops = len(builder.ops)
    cts = [Value(t, f"ct{i}") for i, (_, t) in enumerate(outputs)]
    seg.known.update(cts)
    walk = Walk(create_graph=False)
    roots = [(e, wrap_value(rec, ct)) for (e, _), ct in zip(outputs, cts, strict=True)]
    try:
        found = _walk_back(walk, nodes, roots, set(wrt))
        used = [i for i, e in enumerate(wrt) if e in found]
        grads = [rec.value(found[wrt[i]]) for i in used]
    finally:  # the segment goes on without the gradients
        forward_ops, backward_ops = builder.ops[:n_ops], builder.ops[n_ops:]
        del builder.ops[n_ops:]
        seg.known.difference_update(cts, *(op.results for op in backward_ops))
    n_params = len(builder.params)
    whole = Graph([*builder.params, *cts], [*forward_ops, *backward_ops], [*results, *grads], builder.name)
    forward, backward, n_saved = partition(whole, n_params, len(results))
    saved = list(forward.results[len(forward.results) - n_saved :])
    return forward, Joint(backward, saved, used, _feeds(whole, cts, grads))


def _feeds(graph: Graph, cts: Sequence[Value], grads: Sequence[Value]) -> list[frozenset[int]]:
    """The indices of the cotangents that each gradient depends on."""
    reach: dict[Value, frozenset[int]] = {ct: frozenset([i]) for i, ct in enumerate(cts)}
    none: frozenset[int] = frozenset()
    for op in graph.ops:
        found = none.union(*(reach.get(v, none) for v in op.operands))
        if found:
            reach.update(dict.fromkeys(op.results, found))
    return [reach.get(g, none) for g in grads]


def _walk_back(walk: Walk, nodes: Sequence[Node], roots: Sequence[Any], wanted: set[Any]) -> dict[Any, Any]:
    """As the engine's walk, but hooks on the inputs do not run: they will when the call is differentiated."""
    records = [walk.record(n) for n in nodes]
    watched = {(n, i) for n in nodes for i in (*(n.retained or ()), *(n.hooks or ()))}
    with no_grad(), interpreting(walk.interpreter()):
        cotangents: dict[Any, Any] = {}
        for edge, ct in roots:
            ct = walk.flowing(ct)
            cotangents[edge] = ct if edge not in cotangents else cotangents[edge] + ct

        def on_cotangent(edge: Any, ct: Any) -> Any:
            if isinstance(ct, Spoiled):
                if edge in wanted:
                    raise ct.error
                return None
            return None if edge in wanted else _run_hooks(walk, edge, ct)

        return backprop(records, cotangents, wanted | watched, on_cotangent)


@record
class Rerun:
    """What is needed to run the function again: itself, its arguments, and how its inputs stood."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    versions: list[int]
    before: list[tuple[Tensor, np.ndarray]]
    select: Callable[[Any], list[Tensor]]


class Backward:
    """The pseudo primitive of one call of a compiled function: ``vjp`` runs the compiled backward graph."""

    kind, needs, nondifferentiable, n_results, regions = None, "", False, 1, ()

    def __init__(self, plan: BackwardPlan, saved: list[Saved], rerun: Rerun | None) -> None:
        self.plan, self.saved, self.rerun = plan, saved, rerun
        self.name = plan.name

    def vjp(self, ct: Any, out: Any, *operands: Any, **attrs: Any) -> tuple[Any, ...]:
        cts = ct if isinstance(ct, tuple) else (ct,)
        if any(isinstance(c, Tensor) for c in cts):
            grads = self._again(cts)
        else:
            grads = self._run(cts)
        out_grads: list[Any] = [None] * len(operands)
        given = {i for i, c in enumerate(cts) if c is not None}
        for i, g, feeds in zip(self.plan.joint.used, grads, self.plan.joint.feeds, strict=True):
            out_grads[i] = g if feeds & given else None
        return tuple(out_grads)

    def _run(self, cts: Sequence[Any]) -> Sequence[Any]:
        for s in self.saved:
            if s.vc is not None and s.vc[0] != s.version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace "
                    "operation: "
                    f"a tensor of shape {list(s.data.shape)} that {self.name} kept is at version {s.vc[0]}; "
                    f"expected "
                    f"version {s.version} instead."
                )
        arrays = [s.data for s in self.saved]
        rec = recorder()
        if rec is None:
            return self.plan.executable().call([*arrays, *map(self._cotangent, cts, self.plan.types)])
        values = [rec.lift(wrap(a)) for a in arrays]
        values += [rec.value(self._cotangent(c, t)) for c, t in zip(cts, self.plan.types, strict=True)]
        return replay(self.plan.joint.backward, values)

    @staticmethod
    def _cotangent(ct: Any, type: TensorType) -> Any:
        if ct is not None:
            return ct
        return put(np.zeros(type.shape, type.dtype.np), type.device)

    def _again(self, cts: Sequence[Any]) -> Sequence[Any]:
        """The gradients as tensors with a history: runs the function again, eagerly."""
        if self.rerun is None:
            raise RuntimeError(f"the saved values of {self.name} have been freed")
        r = self.rerun
        for t, version in zip(r.inputs, r.versions, strict=True):
            if t._vc[0] != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace "
                    "operation: "
                    f"an input of {self.name} of shape {list(t.shape)} changed before its double backward"
                )
        now = [(t, copy_of(t._data)) for t, _ in r.before]
        outer = recorder()
        with paused() if outer is None else interpreting(outer), enable_grad():
            for t, data in r.before:
                write(t._data, data)
            try:
                outs = r.select(r.fn(*r.args, **r.kwargs))
            finally:
                for t, data in now:
                    write(t._data, data)
            pairs = [(o, c) for o, c in zip(outs, cts, strict=True) if c is not None and o.requires_grad]
            wrt = [r.inputs[i] for i in self.plan.joint.used]
            return grad(
                [o for o, _ in pairs], wrt, [c for _, c in pairs], create_graph=True, materialize_grads=True
            )


class CompiledNode(Node):
    """The tape node of one call of a compiled function."""

    __slots__ = ()

    def name(self) -> str:
        return "CompiledFunctionBackward"

    def free(self) -> None:
        self.freed = True
        if self.prim is not None:
            self.prim.saved = []
            self.prim.rerun = None


class BackwardPlan:
    """What all calls of an entry share: the backward graph, its executable, the types of the outputs."""

    def __init__(
        self, joint: Joint | None, types: list[TensorType], compile_graph: Callable[[Graph], Any], name: str
    ):
        self._joint, self.types, self._compile, self.name = joint, types, compile_graph, f"{name}_backward"
        self._executable: Any = None

    @property
    def joint(self) -> Joint:
        assert self._joint is not None
        return self._joint

    @property
    def is_freed(self) -> bool:
        """The function walked its own tape: a second walk is an error, as it is eagerly."""
        return self._joint is None

    def executable(self) -> Any:
        if self._executable is None:
            self._executable = self._compile(self.joint.backward)
        return self._executable

    def node(
        self, inputs: Sequence[Tensor], edges: Any, saved: list[Saved], rerun: Rerun | None
    ) -> CompiledNode:
        """The node of one call; ``edges`` of the differentiated inputs, as they were before the call."""
        prim = None if self.is_freed else Backward(self, saved, rerun)
        operands = tuple(TypeStub(t._ir_type) for t in inputs)
        results = tuple(TypeStub(t) for t in self.types)
        node = CompiledNode(prim, {}, (), edges, operands, results)
        node.freed = self.is_freed
        return node


def edges_of(inputs: Sequence[Tensor]) -> list[Any]:
    return [edge_of(t) for t in inputs]


def replay(graph: Graph, values: Sequence[Any]) -> list[Any]:
    """Run a graph through ``bind`` on values of the current interpreter."""
    env: dict[Value, Any] = dict(zip(graph.params, values, strict=True))
    interp = current_interpreter()
    for op in graph.ops:
        out = interp.bind(op.prim, [env[v] for v in op.operands], dict(op.attrs), op.regions)
        env.update(zip(op.results, out if isinstance(out, tuple) else (out,), strict=True))
    return [env[r] for r in graph.results]
