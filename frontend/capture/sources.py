"""Where the inputs of a traced graph come from at a later call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.capture.entry import Guards, Hidden, Miss
from weft.capture.environment import Environment
from weft.capture.recorder import Segment
from weft.capture.signature import Given
from weft.capture.trace import Trace, environment
from weft.ir.graph import Value
from weft.ir.record import record
from weft.random import defaults
from weft.tensor import Tensor


class Unfit(Exception):
    """The trace cannot become an entry; the message says why."""


@record
class Source:
    """An input tensor of the graph in the generated code: the variables of the tensor and of its array."""

    tensor: Tensor
    var: str
    array: str
    contiguous: bool
    hidden: Hidden | None = None


class SourceFinder:
    """Finds, for tensors that the trace read, the variables that hold them in the generated code."""

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
        self.result_of: dict[int, int] = {}  # by id of an output tensor: the index of its result
        self.differentiated: list[Tensor] = []
        self.edge_targets: list[str] = []
        self.n_rebased = 0  # how many of them, at the end, are inputs that were written
        self.write_code: list[str] = []
        self.saved_code: list[str] = []

    def _reads_groups(self) -> bool:
        return "param_groups" in self.env.names

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
        if any(t is g._state for g in defaults()):
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
            f"if type({var}) is not Tensor or type({array} := {var}._data) is not "
            f"{code.const(type(d), 'nd')} or {var}.device != {code.const(g.device, 'D')} or "
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


def place_of(owner: Any, key: Any) -> tuple[int, Any]:
    """The dictionary entry that a number read afresh lives in: that of the whole tuple for an element of
    one."""
    group = getattr(owner, "group", None)
    return (id(group), owner.name) if group is not None else (id(owner), key)


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


def spell(expr: tuple[Any, ...], labels: list[str]) -> str:
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
