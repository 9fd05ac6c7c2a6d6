"""From a trace to an entry: where inputs come from, what is written, what comes out, and the code for all of
it."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode
from weft.autograd.tape import Saved, accumulator
from weft.capture.backward import BackwardPlan, Joint, Rerun, edges_of, joint
from weft.capture.entry import HELPERS, Guards, Hidden, Miss, clashes, root_of
from weft.capture.environment import Environment, same
from weft.capture.recorder import Before, Segment, overlap
from weft.capture.signature import NATIVE, Code, Given
from weft.capture.state import EPOCH, TracedScalar
from weft.capture.trace import Trace, environment
from weft.ir import prims as P
from weft.ir.graph import Graph, Value
from weft.ir.prims.base import _NUMPY, _current, interpreting
from weft.random import default_generator
from weft.tensor import Tensor
from weft.views import View, views

SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "pow": "**",
    "and": "&",
    "or": "|",
    "xor": "^",
    "lshift": "<<",
    "rshift": ">>",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}


class Unfit(Exception):
    """The trace cannot become an entry; the message says why."""


@dataclasses.dataclass
class Source:
    """An input tensor of the graph in the generated code: the variables of the tensor and of its array."""

    tensor: Tensor
    var: str
    array: str
    contiguous: bool
    hidden: Hidden | None = None


@dataclasses.dataclass
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
    guard_texts: list[str]


class Planner:
    """Builds the plan of one trace. Raises :class:`Unfit`, with everything left as the trace left it."""

    def __init__(self, made: Trace, fn: Callable[..., Any], name: str, compile_graph: Any) -> None:
        self.made, self.fn, self.name, self.compile_graph = made, fn, name, compile_graph
        self.rec, self.sig = made.recorder, made.signature
        self.code = self.sig.code
        self.seg: Segment = self.rec.segment
        self.env: Environment = environment(fn, self.sig, name)
        owners = set() if self._reads_groups() else {place_of(o, k) for o, k in self.rec.leaves}
        self.guards = Guards(self.code, self.env, owners)
        self.sources: dict[int, Source] = {}
        self.results: list[Value] = []
        self.body: list[str] = []
        self.after: list[str] = []
        self.outs: dict[int, str] = {}
        self.out_tensors: list[Tensor] = []
        self._sourced: dict[int, str] = {}

    def _reads_groups(self) -> bool:
        return "param_groups" in self.env.names

    # -- where inputs come from ---
    def source(self, t: Tensor) -> Source:
        found = self.sources.get(id(t))
        if found is None:
            found = self.sources[id(t)] = self._find_source(t)
        return found

    def _find_source(self, t: Tensor) -> Source:
        given: Given | None = self.sig.given.get(id(t))
        if given is not None:
            return Source(t, given.var, given.array, given.contiguous)
        if id(t) in self.env.tensors:
            h = self.guards.hide(t)
            return Source(t, h.name, h.array_name, h.contiguous, h)
        for owner in (b.tensor for b in self.rec.states.values() if b.grad is t):
            if self._is_reachable(owner):
                return self._grad_source(owner, t)
        if t is default_generator._state:
            n = len(self.guards.hidden)
            h = self.guards.hidden[id(t)] = Hidden(t, "the state of the random generator", f"H{n}", f"A{n}")
            self.guards.namespace |= {h.name: t, h.array_name: t._data}
            return Source(t, h.name, h.array_name, h.contiguous, h)
        raise Unfit(
            f"it reads a tensor of shape {list(t.shape)} that was reached in a way that cannot be followed"
        )

    def _is_reachable(self, t: Tensor) -> bool:
        return id(t) in self.sig.given or id(t) in self.env.tensors

    def _grad_source(self, owner: Tensor, g: Tensor) -> Source:
        """``owner.grad``: another tensor at each call."""
        code, o = self.code, self.source(owner)
        var, array, d = code.fresh("g"), code.fresh("ga"), g._data
        self.body.append(f"{var} = {o.var}._grad")
        miss = self._miss(f"the gradient of {self._label(owner)} is no longer a tensor of the same kind")
        contiguous = bool(d.flags.c_contiguous)
        self.body.append(
            f"if type({var}) is not Tensor or type({array} := {var}._data) is not ndarray or "
            f"{array}.dtype is not {code.const(d.dtype, 'dt')} or {array}.shape != {d.shape!r} or "
            f"{array}.flags.c_contiguous is not {contiguous} or {var}.requires_grad is not "
            f"{g.requires_grad}: return {miss}"
        )
        return Source(g, var, array, contiguous)

    def _label(self, t: Tensor) -> str:
        if id(t) in self.sig.given:
            return self.sig.given[id(t)].label
        return self.env.tensors[id(t)][1] if id(t) in self.env.tensors else "a tensor"

    def _miss(self, reason: Any) -> str:
        return self.code.const(Miss(reason), "M")

    # -- the parts ---
    def build(self) -> Plan:
        made, seg = self.made, self.seg
        inputs = [s for s in seg.sources if isinstance(s, Tensor)]
        for s in seg.sources:
            if isinstance(s, np.ndarray):
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
                split, types_, lambda g: self.compile_graph(g, name=f"{self.name}_backward"), self.name
            )
        source, namespace = self._source(graph, writes, donate, expression, backward, split)
        return Plan(
            graph, donate, backward, split, self.guards, source, namespace, self.code.reasons, self.texts()
        )

    def texts(self) -> list[str]:
        """The guards in words."""
        out = [
            f"{g.label}: {type(g.tensor).__name__} {g.tensor._ir_type}"
            + (", requires grad" if g.tensor.requires_grad else "")
            for g in self.sig.given.values()
        ]
        out.append(f"grad mode is {'on' if self.made.modes[0] else 'off'}")
        out += [
            f"{h.path}: {h.tensor._ir_type}" + (", requires grad" if h.rg else "")
            for h in self.guards.hidden.values()
        ]
        out += [f"{spell(e, self.rec.labels)} is {v!r}" for e, v in self.rec.log.guards.items()]
        for p in self.guards.places:
            if p.kind in ("item", "cell", "attr") and not isinstance(p.value, (types.ModuleType, Tensor)):
                out.append(f"{p.path} is {_short(p.value)}")
            elif p.kind not in ("item", "cell", "attr"):
                out.append(f"contents of {p.path}")
        return list(dict.fromkeys(out))

    def _check_states(self) -> None:
        for b in self.rec.states.values():
            t = b.tensor
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

    # -- outputs ---
    def _output(self, o: Any) -> str:
        """An expression that makes the output afresh (statements it needs go to ``after``)."""
        if isinstance(o, Tensor):
            return self._tensor_out(o)
        if type(o) is TracedScalar:
            return self.number(o._weft_expr)
        if id(o) in self.sig.containers and not isinstance(o, tuple):
            return self.sig.containers[id(o)]
        kind = type(o)
        if kind in (list, tuple, set) or (isinstance(o, tuple) and hasattr(o, "_fields")):
            return self._sequence_out(o)
        if kind is dict:
            pairs = ", ".join(f"{self.code.const(k, 'k')}: {self._output(v)}" for k, v in o.items())
            return "{" + pairs + "}"
        if isinstance(
            o,
            (
                bool,
                int,
                float,
                complex,
                str,
                bytes,
                type(None),
                type,
                np.generic,
                types.ModuleType,
                types.BuiltinFunctionType,
                range,
                slice,
            ),
        ) or _is_constant(o):
            return self.code.const(o, "o") if o is not None else "None"
        if any(x is o for x in (*self.sig.keep, *self.env.keep)):
            return self.code.const(o, "o")
        if dataclasses.is_dataclass(o) and hasattr(o, "__dict__"):
            return self._dataclass_out(o)
        raise Unfit(f"it returns an object of type {kind.__name__}")

    def _sequence_out(self, o: Any) -> str:
        items = [self._output(x) for x in o]
        if type(o) is list:
            return "[" + ", ".join(items) + "]"
        if type(o) is tuple:
            return "(" + "".join(i + ", " for i in items) + ")"
        cls = self.code.const(type(o), "T")
        if type(o) is set:
            return f"{cls}([{', '.join(items)}])"
        return f"{cls}({', '.join(items)})"

    def _dataclass_out(self, o: Any) -> str:
        fields = ", ".join(f"{k!r}: {self._output(v)}" for k, v in vars(o).items())
        make = self.code.const(_rebuild, "rebuild")
        return f"{make}({self.code.const(type(o), 'T')}, {{{fields}}})"

    def _tensor_out(self, t: Tensor) -> str:
        if id(t) in self.outs:
            return self.outs[id(t)]
        if type(t._data) is not Value:
            self.outs[id(t)] = self._concrete_out(t)
            return self.outs[id(t)]
        view = t._view
        if view is not None and self._shares(view):
            self.outs[id(t)] = self._view_out(t, view)
            return self.outs[id(t)]
        if type(t) is not Tensor:
            raise Unfit(f"it returns a new tensor of class {type(t).__name__}")
        return self._fresh_out(t)

    def _fresh_out(self, t: Tensor) -> str:
        var = self.outs[id(t)] = f"t{len(self.outs)}"
        i = self._result(self.rec.value(t._data))
        self.after += [f"{var} = new(Tensor)", f"{var}._data = r[{i}]", f"{var}._vc = [0]"]
        if self.made.modes[1]:
            self.after.append(f"{var}._inference = True")
        self.out_tensors.append(t)
        return var

    def _result(self, v: Value) -> int:
        """The index of a new result; a value that is an input or a result already is copied."""
        if v in self.seg.builder.params or v in self.results:
            (v,) = self.seg.builder.add(P.copy_p, (v,))
            self.seg.known.add(v)
        self.results.append(v)
        return len(self.results) - 1

    def _concrete_out(self, t: Tensor) -> str:
        if self._is_reachable(t) or id(t) in self.sources:
            return self.source(t).var
        raise Unfit("it returns a tensor that was reached in a way that cannot be followed")

    def _shares(self, view: View) -> bool:
        """Whether the memory that a view output shows is also visible elsewhere."""
        base = _root(view)
        return type(base._data) is not Value or id(base) in self.outs or base in _tensors(self.made.out, base)

    def _view_out(self, t: Tensor, view: View) -> str:
        base = view.base
        b = self._tensor_out(base) if type(base._data) is Value else self._concrete_out(base)
        var = f"t{len(self.outs)}"
        make = self.code.const(view_again, "view")
        steps = self.code.const(view.steps, "steps")
        self.after.append(f"VIEW {var} = {make}({b}, {steps}, {view.differentiable}, {t._rg})")
        return var

    # -- gradients ---
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
        tracked = [t for t in self.out_tensors if t._edge is not None and t._rg]
        rebased = [b for b in self.rec.states.values() if self._rebased(b)]
        if not tracked and not rebased:
            return plain, None, None
        outputs = [(t._edge, t._ir_type) for t in tracked] + [
            (b.tensor._edge, b.tensor._ir_type) for b in rebased
        ]
        self.differentiated = [t for t in inputs if self.rec.states[id(t)].rg and t.dtype.is_inexact]
        wrt = [self.rec.states[id(t)].edge or (accumulator(t), 0) for t in self.differentiated]
        self.edge_targets = [self.outs[id(t)] for t in tracked] + [self.source(b.tensor).var for b in rebased]
        with interpreting(self.rec):
            made = joint(self.rec, self.made.mark, outputs, wrt, self.results)
        for t in self.seg.sources:
            if isinstance(t, Tensor) and id(t) not in self.sources:
                self.source(t)
        if made is None:
            return plain, None, outputs
        return made[0], made[1], outputs

    # -- the graph and the code ---
    def _finish(
        self, forward: Graph, split: Joint | None, writes: list[tuple[Source, Value]]
    ) -> tuple[Graph, dict[int, int]]:
        """The final graph: outputs, then writes, then saved values that are not inputs; and what is
        donated."""
        params = list(forward.params)
        results = list(forward.results[: len(self.results)])
        donate: dict[int, int] = {}
        self.write_code: list[str] = []
        position = {id(s): i for i, s in enumerate(self.seg.sources)}
        for s, v in writes:
            i = len(results)
            results.append(v)
            at = position.get(id(s.tensor))
            if s.contiguous and v.type == s.tensor._ir_type:
                if at is None:
                    at = len(params)
                    params.append(Value(v.type))
                    self.seg.sources.append(s.tensor)
                donate[i] = at
            else:
                self.write_code.append(f"copyto({s.array}, r[{i}])")
        written_params = {params[position[id(s.tensor)]] for s, _ in writes if id(s.tensor) in position}
        ops = list(forward.ops)
        self.saved_code: list[str] = []
        for v in split.saved if split is not None else ():
            if v in forward.params and v not in written_params:
                s = self.seg.sources[forward.params.index(v)]
                src = self.source(s) if isinstance(s, Tensor) else None
                self.saved_code.append(
                    f"Saved({src.array}, {src.var}._vc)"
                    if src is not None
                    else f"Saved(asarray({self.number(s._weft_expr)}, {self.code.const(v.type.dtype.np)}), None)"
                )
                continue
            shown = next((k for k, r in enumerate(self.results) if r is v), None)
            if shown is not None:
                owner = next(
                    (self.outs[id(t)] for t in self.out_tensors if self.rec.value(t._data) is v), None
                )
                self.saved_code.append(
                    f"Saved(r[{shown}], {owner}._vc)" if owner else f"Saved(r[{shown}], None)"
                )
                continue
            self.saved_code.append(f"Saved(r[{len(results)}], None)")
            results.append(v)
        need = set(results) - set(forward.results) - set(params)
        if need:  # writes that the differentiated part does not compute
            ops = self._with_writes(forward, results)
        return Graph(params, ops, results, self.name), donate

    def _with_writes(self, forward: Graph, results: list[Value]) -> list[Any]:
        """All recorded forward operations: the partition kept only what outputs and saved values need."""
        have = {id(op) for op in forward.ops}
        defined = {r for op in forward.ops for r in op.results}
        ops = [op for op in self.seg.builder.ops if id(op) in have or not (set(op.results) & defined)]
        wanted = set(results)
        kept: list[Any] = []
        for op in reversed(ops):
            if any(r in wanted for r in op.results):
                kept.append(op)
                wanted.update(op.operands)
        return kept[::-1]

    def number(self, expr: tuple[Any, ...]) -> str:
        """Python source of a traced number's expression."""
        head = expr[0]
        if head == "leaf":
            return self._leaf(expr[1])
        if head == "const":
            return self.code.const(expr[2], "k") if expr[1] != "int" else f"({expr[2]!r})"
        if head == "type_is":
            return f"(type({self.number(expr[2])}).__name__ == {expr[1]!r})"
        parts = [self.number(e) for e in expr[1:]]
        if head in SYMBOLS:
            return f"({parts[0]} {SYMBOLS[head]} {parts[1]})"
        return {"neg": "(-{})", "pos": "(+{})", "abs": "abs({})"}[head].format(*parts)

    def _leaf(self, n: int) -> str:
        owner, key = self.rec.leaves[n]
        if owner == "argument":
            return key
        return f"s{n}"

    def _scalar_lines(self) -> list[str]:
        out: list[str] = []
        for n, (owner, key) in enumerate(self.rec.leaves):
            if owner == "argument":
                continue
            kind = type(owner[key]).__name__
            fetch = f"s{n} = {self.code.const(owner, 'O')}[{self.code.const(key, 'k')}]"
            gone = self._miss(f"{key} is no longer there")
            out += ["try:", f"    {fetch}", f"except (LookupError, TypeError): return {gone}"]
            out.append(
                f"if type(s{n}) is not {kind}: return " + self._miss(f"{key} is no longer of type {kind}")
            )
        guards = list(self.rec.log.guards.items())
        if guards:
            out.append("try:")
            for expr, value in guards:
                text = f"{spell(expr, self.rec.labels)} is no longer {value!r}"
                test = (
                    f"{self.number(expr)} is not {value}"
                    if type(value) is bool
                    else (f"not same({self.number(expr)}, {self.code.const(value, 'k')})")
                )
                out.append(f"    if {test}: return {self._miss(text)}")
            out.append(
                f"except ArithmeticError: return {self._miss('a number cannot be computed as in the trace')}"
            )
        return out

    def _array_expression(self, s: Any, donated: bool) -> str:
        if not isinstance(s, Tensor):
            return self.number(s._weft_expr)
        src = self.source(s)
        if src.contiguous or donated:
            return src.array
        return (
            f"ascontiguous({src.array}).reshape({s._data.shape!r})"
            if s._data.ndim == 0
            else f"ascontiguous({src.array})"
        )

    def _source(
        self,
        graph: Graph,
        writes: list[tuple[Source, Value]],
        donate: dict[int, int],
        expression: str,
        backward: BackwardPlan | None,
        split: Joint | None,
    ) -> tuple[str, dict[str, Any]]:
        code = self.code
        donated = set(donate.values())
        numbers = self._scalar_lines()
        call = ", ".join(self._array_expression(s, i in donated) for i, s in enumerate(self.seg.sources))
        lines = [f"if current() is not EAGER: return {self._miss('called inside another capture')}"]
        lines += code.lines
        lines.append(
            f"if mode.grad is not {self.made.modes[0]} or mode.inference is not {self.made.modes[1]}: return "
            + self._miss(f"grad mode changed from {'on' if self.made.modes[0] else 'off'}")
        )
        lines += self._guard_lines()
        lines += self.body
        lines += self._alias_lines(writes)
        lines += numbers
        rerun = "None"
        if split is not None:
            rerun = self._rerun_lines(lines, writes)
        if backward is not None:
            lines.append(f"ins = ({''.join(self.source(t).var + ', ' for t in self.differentiated)})")
            lines.append("edges = edges_of(ins)")
        lines.append(f"r = run({call})")
        lines += self.write_code
        plain = [a for a in self.after if not a.startswith("VIEW ")]
        made_first = [a for a in plain if "._grad = " not in a]
        lines += made_first
        lines += self._version_lines(writes)
        if backward is not None:
            lines.append(f"node = make_node(ins, edges, [{', '.join(self.saved_code)}], {rerun})")
            for i, target in enumerate(self.edge_targets):
                lines += [f"{target}._edge = (node, {i})", f"{target}._rg = True"]
        lines += [a[5:] for a in self.after if a.startswith("VIEW ")]
        lines += [a for a in plain if "._grad = " in a]
        lines.append(f"return {expression}")
        source = both_versions([_as_miss(line, code) for line in lines])
        namespace = {
            **HELPERS,
            **code.consts,
            **self.guards.namespace,
            "Tensor": Tensor,
            "ndarray": np.ndarray,
            "new": object.__new__,
            "copyto": np.copyto,
            "ascontiguous": np.ascontiguousarray,
            "mode": mode,
            "Saved": Saved,
            "edges_of": edges_of,
            "root_of": root_of,
            "e0": EPOCH[0],
            "asarray": np.asarray,
            "clash": np.may_share_memory,
            "clashes": clashes,
            "Rerun": Rerun,
            "fn": self.fn,
            "current": _current.get,
            "EAGER": _NUMPY,
        }
        namespace |= {f"M_{i}": Miss(r, i) for i, r in enumerate(code.reasons)}
        namespace["same"] = same
        namespace["roots"] = {id(root_of(h.array)) for h in self.guards.hidden.values() if h.written}
        if backward is not None:
            namespace |= {
                "make_node": backward.node,
                "select": self._selector() if split is not None else None,
            }
        return source, namespace

    def _guard_lines(self) -> list[str]:
        """Identity tests; the slow comparison where one of them fails."""
        tests = ["EPOCH[0] != e0", *self.guards.checks]
        tests += [
            f"{h.name}._data is not {h.array_name} or {h.name}._rg is not {h.tensor._rg}"
            for h in self.guards.hidden.values()
        ]
        lines = ["try:"]
        for i in range(0, len(tests), 40):
            part = " or ".join(tests[i : i + 40])
            lines.append(f"    stale = {part}" if i == 0 else f"    stale = stale or {part}")
        lines += [
            "except (KeyError, ValueError, AttributeError): stale = True",
            "if stale:",
            "    why = refresh()",
            "    if why is not None: return why",
        ]
        return lines

    def _alias_lines(self, writes: list[tuple[Source, Value]]) -> list[str]:
        """Arguments must not share memory with what is written: the trace took them apart."""
        out: list[str] = []
        given = [s for s in self.sources.values() if s.tensor is not None and id(s.tensor) in self.sig.given]
        written = [s for s, _ in writes]
        for g in given:
            others = [w for w in written if w.tensor is not g.tensor]
            hidden = [w for w in others if w.hidden is not None]
            explicit = [w for w in others if w.hidden is None]
            reason = self._miss(f"{self._label(g.tensor)} now shares memory with a tensor that is written")
            if hidden:
                names = ", ".join(w.array for w in hidden)
                out.append(f"if clashes({g.array}, roots, ({names},)): return {reason}")
            out += [
                f"if clash({g.array}, {w.array}): return {reason}"
                for w in explicit
                if not overlap(g.tensor, w.tensor)
            ]
        return out

    def _version_lines(self, writes: list[tuple[Source, Value]]) -> list[str]:
        out = []
        for s, _ in writes:
            n = s.tensor._vc[0] - self.rec.states[id(s.tensor)].version
            out.append(f"{s.var}._vc[0] += {max(n, 1)}")
        return out

    def _rerun_lines(self, lines: list[str], writes: list[tuple[Source, Value]]) -> str:
        """What a double backward will need: versions of the inputs, copies of small ones that are written."""
        pre = ", ".join(f"({s.var}, {s.array}.copy())" for s, _ in writes if s.tensor._data.size <= 4096)
        lines.append(f"pre = [{pre}]")
        inputs = ", ".join(self.source(t).var for t in self.differentiated)
        versions = ", ".join(f"{self.source(t).var}._vc[0]" for t in self.differentiated)
        lines.append(f"vers = [{versions}]")
        if self._selector() is None:
            return "None"
        return f"Rerun(fn, args, kwargs, [{inputs}], vers, pre, select)"

    def _selector(self) -> Callable[[Any], list[Tensor]] | None:
        """Finds the differentiable outputs in what another run returns; None where some are inputs."""
        places = {id(t): path for path, t in tensor_paths(self.made.out)}
        tracked = [t for t in self.out_tensors if t._edge is not None and t._rg]
        if len(tracked) != len(self.edge_targets) or any(id(t) not in places for t in tracked):
            return None
        paths = [places[id(t)] for t in tracked]
        return lambda out: [follow(out, path) for path in paths]


def both_versions(lines: list[str]) -> str:
    """Source of ``call``, which leaves to the native code what that checks itself, and of ``full``, to
    which it turns when the native code refuses the arrays."""
    fast = [line for line in lines if NATIVE not in line]
    at = next(i for i, line in enumerate(fast) if line.startswith("r = run("))
    fast.insert(at + 1, "if r is REFUSED: return full(args, kwargs)")
    full = [line.replace(NATIVE, "").replace("r = run(", "r = run_checked(") for line in lines]
    parts = (("call", fast), ("full", full))
    return "\n".join(f"def {n}(args, kwargs):\n" + "".join(f"    {x}\n" for x in body) for n, body in parts)


def _as_miss(line: str, code: Code) -> str:
    """Failing checks of the arguments return the index of their reason: make that a Miss."""
    head, sep, tail = line.rpartition(": return ")
    return f"{head}: return M_{tail}" if sep and tail.isdigit() else line


def place_of(owner: Any, key: Any) -> tuple[int, Any]:
    """The dictionary entry that a number read afresh lives in: that of the whole tuple for an element of
    one."""
    group = getattr(owner, "group", None)
    return (id(group), owner.name) if group is not None else (id(owner), key)


def tensor_paths(o: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Tensor]]:
    """The tensors in nested outputs, with the way to each."""
    if isinstance(o, Tensor):
        return [(path, o)]
    if isinstance(o, dict):
        pairs = [((*path, ("item", k)), v) for k, v in o.items()]
    elif isinstance(o, (list, tuple)):
        pairs = [((*path, ("item", i)), v) for i, v in enumerate(o)]
    elif dataclasses.is_dataclass(o) and not isinstance(o, type):
        pairs = [((*path, ("attr", k)), v) for k, v in vars(o).items()]
    else:
        return []
    return [found for where, v in pairs for found in tensor_paths(v, where)]


def follow(o: Any, path: tuple[Any, ...]) -> Any:
    for kind, key in path:
        o = o[key] if kind == "item" else getattr(o, key)
    return o


def _root(view: View) -> Tensor:
    base = view.base
    while base._view is not None and type(base._data) is Value:
        base = base._view.base
    return base


def _tensors(o: Any, besides: Tensor) -> list[Tensor]:
    """The captured tensors among the outputs (nested) that show the same memory as ``besides``."""
    found: list[Tensor] = []
    if isinstance(o, Tensor):
        return [o] if o is besides else []
    items = o.values() if isinstance(o, dict) else o if isinstance(o, (list, tuple)) else ()
    for x in items:
        found += _tensors(x, besides)
    return found


def view_again(base: Tensor, steps: Any, differentiable: bool, rg: bool) -> Tensor:
    """A view output, made eagerly from its base."""
    if not differentiable and not steps:
        return base.detach()
    source = base if differentiable else base.detach()
    return views(source, steps)


def _rebuild(cls: type, fields: dict[str, Any]) -> Any:
    out = object.__new__(cls)
    out.__dict__.update(fields)
    return out


def _is_constant(o: Any) -> bool:
    from weft.ir.types import Device, DType

    return isinstance(o, (DType, Device, np.dtype)) or (isinstance(o, tuple) and not o)


def _short(x: Any) -> str:
    if isinstance(x, (types.FunctionType, type)):
        return x.__name__
    text = repr(x)
    return text if len(text) <= 60 else f"{type(x).__name__}"


def spell(expr: tuple[Any, ...], labels: Sequence[str]) -> str:
    """A traced number's expression in words."""
    head = expr[0]
    if head == "leaf":
        return labels[expr[1]]
    if head == "const":
        return repr(expr[2])
    if head == "type_is":
        return f"(type of {spell(expr[2], labels)} is {expr[1]})"
    parts = [spell(e, labels) for e in expr[1:]]
    return f"({f' {SYMBOLS[head]} '.join(parts)})" if head in SYMBOLS else f"{head}({parts[0]})"
