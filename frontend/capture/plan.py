"""From a trace to an entry: where inputs come from, what is written, what comes out, and the code for all of
it."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from weft.autograd.tape import accumulator, edge_of
from weft.capture.backward import BackwardPlan, Joint, joint
from weft.capture.callcode import CallWriter
from weft.capture.entry import Guards
from weft.capture.recorder import Before
from weft.capture.sources import Source, Unfit, spell
from weft.ir import prims as P
from weft.ir.graph import Graph, Value
from weft.ir.prims.base import interpreting
from weft.ir.record import record
from weft.tensor import Tensor


@record
class Plan:
    """The finished product: graph, donated buffers, source text of the call function and its constants."""

    graph: Graph
    donate: dict[int, int]
    backward: BackwardPlan | None
    joint: Joint | None
    guards: Guards
    source: str
    namespace: dict[str, Any]
    reasons: list[Any]
    guard_texts: Callable[[], list[str]]
    fixed: list[tuple[int, Tensor]]  # hidden inputs by number, where no gradient and no write is in sight


class Planner(CallWriter):
    """Builds the plan of one trace. Raises :class:`Unfit`, with everything left as the trace left it."""

    def build(self) -> Plan:
        made, seg = self.made, self.seg
        inputs = [s for s in seg.sources if isinstance(s, Tensor)]
        for s in seg.sources:
            if isinstance(s, np.ndarray) or getattr(s, "on_device", False):
                raise Unfit("it uses a value of an earlier capture")
        for t in inputs:
            self.source(t)
        self._check_states()
        writes = self._writes()
        expression = self._output(made.out)
        self._grad_effects()
        forward, split, inexact = self._differentiate(inputs)
        graph, donate = self._finish(forward, split, writes)
        backward = None
        if inexact is not None:
            types_ = [t for _, t in inexact]
            backward = BackwardPlan(
                split, types_, partial(self.compile_graph, name=f"{self.name}_backward"), self.name
            )
        source, namespace = self._source(writes, donate, expression, backward, split)
        fixed = [] if self.made.modes[0] or writes or backward is not None else self._fixed(len(graph.params))
        return Plan(
            graph, donate, backward, split, self.guards, source, namespace, self.code.reasons, self.texts(),
            fixed,
        )  # fmt: skip

    def _fixed(self, n: int) -> list[tuple[int, Tensor]]:
        """Hidden inputs among the first ``n`` params that hold real numbers."""
        found = ((i, self.sources.get(id(t))) for i, t in enumerate(self.seg.sources[:n]))
        hidden = [(i, s.tensor) for i, s in found if s is not None and s.hidden is not None]
        return [(i, t) for i, t in hidden if t._ir_type.dtype.is_floating_point]

    def texts(self) -> Callable[[], list[str]]:
        """Gives the guards in words. What the walk over the environment found is described when asked for."""
        head = [
            f"{g.label}: {type(g.tensor).__name__} {g.tensor._ir_type}"
            + (", requires grad" if g.tensor.requires_grad else "")
            for g in self.sig.given.values()
        ]
        head.append(f"grad mode is {'on' if self.made.modes[0] else 'off'}")
        numbers = [f"{spell(e, self.rec.labels)} is {v!r}" for e, v in self.rec.log.guards.items()]
        guards = self.guards
        return lambda: list(dict.fromkeys([*head, *_hidden_texts(guards), *numbers, *_place_texts(guards)]))

    def _check_states(self) -> None:
        for b in self.rec.states.values():
            t = b.tensor
            edge_of(t)  # a view that was written, and not read since, takes the history of its base now
            if t._rg is not b.rg and not self._rebased(b):
                raise Unfit(f"it changes requires_grad of {self._label(t)}")
            if (t._hooks, t._post_hooks) != (b.hooks, b.post_hooks) or len(t._hooks or ()) != b.n_hooks:
                raise Unfit(f"it registers a hook on {self._label(t)}")

    def _rebased(self, b: Before) -> bool:
        e = b.tensor._edge
        return e is not None and e is not b.edge and e[0].seq >= self.made.mark

    def _writes(self) -> list[tuple[Source, Value]]:
        out = []
        for key, t in self.seg.written.items():
            s = self.source(t)
            if s.hidden is not None:
                s.hidden.written = True
            if not t._data.flags.writeable:
                raise Unfit(f"it writes to {self._label(t)}, whose memory is read-only")
            v = self.seg.current[key]
            if v in self.seg.builder.params:
                (v,) = self.seg.builder.add(P.copy_p, (v,))
                self.seg.known.add(v)
            out.append((s, v))
        return out

    def _grad_effects(self) -> None:
        for b in list(self.rec.states.values()):
            t = b.tensor
            if not (self._is_reachable(t) or id(t) in self.sources):
                if t._grad is not b.grad:
                    raise Unfit("it sets the gradient of a tensor that cannot be followed")
                continue
            seen = self.rec.grad_seen.get(id(t))
            if seen == "read" and (b.grad is None or id(b.grad) not in self.sources):
                test = "is not None" if b.grad is None else "is None"
                self.body.append(
                    f"if {self.source(t).var}._grad {test}: return "
                    + self._miss(
                        f"the gradient of {self._label(t)} is {'now set' if b.grad is None else 'now None'}"
                    )
                )
            if t._grad is not b.grad or seen == "write":
                g = "None" if t._grad is None else self._tensor_out(t._grad)
                self.after.append(f"{self.source(t).var}._grad = {g}")

    def _differentiate(self, inputs: Sequence[Tensor]) -> tuple[Graph, Joint | None, list[Any] | None]:
        """The forward graph, and how gradients flow through the call if any may."""
        plain = Graph(self.seg.builder.params, self.seg.builder.ops, self.results, self.name)
        tracked = [t for t in self.out_tensors if edge_of(t) is not None]
        rebased = [b for b in self.rec.states.values() if self._rebased(b)]
        if not tracked and not rebased:
            return plain, None, None
        outputs = [(t._edge, t._ir_type) for t in tracked] + [
            (b.tensor._edge, b.tensor._ir_type) for b in rebased
        ]
        self.differentiated = [t for t in inputs if self.rec.states[id(t)].rg and t.dtype.is_inexact]
        wrt = [self.rec.states[id(t)].edge or (accumulator(t), 0) for t in self.differentiated]
        self.edge_targets = [self.outs[id(t)] for t in tracked] + [self.source(b.tensor).var for b in rebased]
        self.n_rebased = len(rebased)
        with interpreting(self.rec):
            try:
                made = joint(self.rec, self.made.mark, outputs, wrt, self.results)
            except RuntimeError as error:  # raised eagerly, too, but only when something is differentiated
                raise Unfit(f"its gradient is an error: {error}") from error
        for t in self.seg.sources:
            if isinstance(t, Tensor) and id(t) not in self.sources:
                self.source(t)
        if made is None:
            return plain, None, outputs
        return made[0], made[1], outputs

    def _finish(
        self, forward: Graph, split: Joint | None, writes: list[tuple[Source, Value]]
    ) -> tuple[Graph, dict[int, int]]:
        """The final graph: outputs, then writes, then saved values that are not inputs; and what is
        donated."""
        params, results = list(forward.params), list(forward.results[: len(self.results)])
        position = {id(s): i for i, s in enumerate(self.seg.sources)}
        written = {params[position[id(s.tensor)]] for s, _ in writes if id(s.tensor) in position}
        donate: dict[int, int] = {}
        for s, v in writes:
            i = len(results)
            results.append(v)
            if s.contiguous and v.type == s.tensor._ir_type:
                donate[i] = self._donated(s.tensor, position, params)
            else:
                self.write_code.append(f"copyto({s.array}, r[{i}])")
        for v in split.saved if split is not None else ():
            self.saved_code.append(self._saved(v, forward.params, written, results))
        complete = set(results) <= set(forward.results) | set(params)
        ops = list(forward.ops) if complete else self._with_writes(forward, results)
        return Graph(params, ops, results, self.name), donate

    def _donated(self, t: Tensor, position: dict[int, int], params: list[Value]) -> int:
        """The index of the param whose buffer takes the new value of ``t``; one more where ``t`` is only
        written."""
        at = position.get(id(t))
        if at is None:
            at = len(params)
            params.append(Value(t._ir_type))
            self.seg.sources.append(t)
        return at

    def _saved(self, v: Value, params: Sequence[Value], written: set[Value], results: list[Value]) -> str:
        """Code that keeps a value for the backward graph: an input's array, an output's, or a result of
        its own."""
        if v in params and v not in written:
            s = self.seg.sources[list(params).index(v)]
            if isinstance(s, Tensor):
                return f"Saved({self.source(s).array}, {self.source(s).var}._vc)"
            return f"Saved(asarray({self.number(s._weft_expr)}, {self.code.const(v.type.dtype.np)}), None)"
        shown = next((k for k, r in enumerate(self.results) if r is v), None)
        if shown is not None:
            owners = [self.outs[id(t)] for t in self.out_tensors if self.results[self.result_of[id(t)]] is v]
            return f"Saved(r[{shown}], {f'{owners[0]}._vc' if owners else None})"
        results.append(v)
        return f"Saved(r[{len(results) - 1}], None)"

    def _with_writes(self, forward: Graph, results: list[Value]) -> list[Any]:
        """All recorded forward operations: the partition kept only what outputs and saved values need."""
        by_result = {r: op for op in forward.ops for r in op.results}
        recorded = self.seg.builder.ops
        known = {r for op in recorded for r in op.results}
        ops = [by_result.get(op.results[0], op) if op.results else op for op in recorded]
        # what the backward walk computed from forward values alone, to be saved
        ops += [op for op in forward.ops if not any(r in known for r in op.results)]
        wanted = set(results)
        kept: list[Any] = []
        for op in reversed(ops):
            if any(r in wanted for r in op.results):
                kept.append(op)
                wanted.update(op.operands)
        return kept[::-1]


def _hidden_texts(guards: Guards) -> list[str]:
    return [
        f"{h.path}: {h.tensor._ir_type}" + (", requires grad" if h.rg else "") for h in guards.hidden.values()
    ]


def _place_texts(guards: Guards) -> list[str]:
    out = []
    for p in guards.places:
        if p.kind in ("item", "cell", "attr") and not isinstance(p.value, (types.ModuleType, Tensor)):
            out.append(f"{p.path} is {_short(p.value)}")
        elif p.kind not in ("item", "cell", "attr"):
            out.append(f"contents of {p.path}")
    return out


def _short(x: Any) -> str:
    if isinstance(x, (types.FunctionType, type)):
        return x.__name__
    text = repr(x)
    return text if len(text) <= 60 else f"{type(x).__name__}"
