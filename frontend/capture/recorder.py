"""The Recorder: the interpreter under which operations are captured instead of run.

It keeps one *segment* at a time: the operations since the start or the last graph break. Concrete tensors
enter a segment as inputs the first time they are read; writes to them are kept as values and reach their
memory when the segment ends. When a value is asked for, :meth:`Recorder.flush` compiles and runs the
segment, gives every live captured tensor its array and starts the next segment.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from weft.autograd.tape import Saved, reachable
from weft.capture.errors import CaptureError
from weft.capture.memory import Memory
from weft.capture.state import ScalarLog, TracedScalar, plain, recorder
from weft.capture.userland import quote, user_loc
from weft.devices import as_payload, beside, copy_of, may_share, write
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.prims.base import _NUMPY, Interpreter, Primitive
from weft.ir.record import field, record
from weft.ir.types import CPU, TensorType, f64, i64
from weft.passes.autodiff import backprop
from weft.runtime.watching import unwatched
from weft.tensor import Tensor
from weft.views import OVERLAP

Result = TypeVar("Result")
Run = Callable[[Graph, list[Any]], Sequence[np.ndarray]]


@record(slots=True)
class Before:
    """The autograd state of a concrete tensor, and of the bases it is a view of, when the capture first met
    it."""

    tensor: Tensor
    grad: Tensor | None
    edge: Any
    rg: bool
    version: int
    hooks: Any
    post_hooks: Any
    n_hooks: int
    views: list[tuple[Any, int, int, Any, bool]]  # view, its versions, the edge and flag of its base

    def restore(self) -> None:
        t = self.tensor
        t._grad, t._edge, t._rg = self.grad, self.edge, self.rg
        t._vc[0] = self.version
        for view, edge_version, value_version, edge, rg in self.views:
            view.edge_version, view.value_version = edge_version, value_version
            view.base._edge, view.base._rg = edge, rg


class GradWatch:
    """Stands in for ``Tensor._grad`` while something is traced, and tells the recorder of reads and
    writes."""

    def __init__(self) -> None:
        self.users = 0
        self.lock = threading.Lock()

    def __get__(self, t: Any, owner: Any = None) -> Any:
        if t is None:
            return None
        rec = recorder()
        if rec is not None:
            rec.saw_grad(t, "read")
        return t.__dict__.get("_grad")

    def __set__(self, t: Any, value: Any) -> None:
        rec = recorder()
        if rec is not None:
            rec.saw_grad(t, "write")
        t.__dict__["_grad"] = value

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            Tensor._grad = self  # type: ignore[assignment]

    def __exit__(self, *exc: Any) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                Tensor._grad = None


WATCH_GRADS = GradWatch()


def before(t: Tensor) -> Before:
    n_hooks = len(t._hooks or ())
    grad = t.__dict__.get("_grad")
    return Before(t, grad, t._edge, t._rg, t._vc[0], t._hooks, t._post_hooks, n_hooks, list(_views(t)))


def _views(t: Tensor) -> Iterator[tuple[Any, int, int, Any, bool]]:
    view = t._view
    while view is not None and view.differentiable:
        base = view.base
        yield view, view.edge_version, view.value_version, base._edge, base._rg
        view = base._view


@record(slots=True)
class Segment:
    """Operations that wait to be run. ``sources[i]`` says where param ``i`` comes from: a Tensor, an ndarray
    or a TracedScalar. ``current`` maps the id of a concrete tensor to its present value.
    """

    builder: GraphBuilder
    sources: list[Any] = field(default_factory=list)
    current: dict[int, Value] = field(default_factory=dict)
    lifted: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)
    known: set[Value] = field(default_factory=set)
    stale: dict[Value, Value] = field(default_factory=dict)
    scalars: dict[Any, Value] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)  # of the tensors in ``lifted`` and ``written``

    def param(self, type: TensorType, source: Any) -> Value:
        v = self.builder.param(type)
        self.sources.append(source)
        self.known.add(v)
        return v


class Recorder(Interpreter):
    """Captures operations. ``run(graph, arrays)`` executes a segment; ``fullgraph`` makes a break an error;
    with ``tracing`` even the value of an input counts as one, since a graph would not follow it. ``locate``:
    note the user's line of every operation (a tenth of the time of a capture).

    ``breaks`` lists (user's line, reason); ``states`` the autograd state that concrete tensors had before.
    """

    recording = True

    def __init__(
        self,
        run: Run,
        fullgraph: bool = False,
        name: str = "main",
        tracing: bool = False,
        locate: bool = True,
    ) -> None:
        self.run, self.fullgraph, self.name, self.tracing = run, fullgraph, name, tracing
        self._loc: Callable[[], str | None] = user_loc if locate else _nowhere
        self.log = ScalarLog()
        self.leaves: list[tuple[Any, Any]] = []  # where traced numbers come from; and what to call them
        self.labels: list[str] = []
        self._leaf_of: dict[tuple[int, Any], TracedScalar] = {}
        self.breaks: list[tuple[str | None, str]] = []
        self.states: dict[int, Before] = {}
        self.grad_seen: dict[
            int, str
        ] = {}  # by id of a tensor: what came first, a "read" or a "write" of .grad
        self.created: dict[int, weakref.ref[Tensor]] = {}
        self.done: weakref.WeakKeyDictionary[Value, np.ndarray] = weakref.WeakKeyDictionary()
        self.segment = Segment(GraphBuilder(name))

    # -- operations -----------------------------------------------------------------------------------------
    def bind(self, prim: Primitive, operands: Sequence[Any], attrs: Any, regions: Sequence[Graph]) -> Any:
        values = [self.value(x) for x in operands]
        loc, builder = self._loc(), self.segment.builder
        if any(v.type.device is not CPU for v in values):
            moved = beside(builder, prim, values, loc)
            self.segment.known.update(moved)
            values = moved
        attrs = {k: plain_attr(a) for k, a in attrs.items()}
        out = builder.add(prim, values, attrs, regions, loc)
        self.segment.known.update(out)
        return out[0] if prim.n_results == 1 and len(out) == 1 else out

    def apart(self, fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return unwatched(fn, *args, **kwargs)

    def value(self, x: Any) -> Value:
        """An operand as a Value of the present segment."""
        if type(x) is Value:
            return self._present(x)
        if isinstance(x, Tensor):
            return self.lift(x)
        if type(x) is TracedScalar:
            return self.scalar(x)
        array = np.asarray(x)
        (out,) = self.segment.builder.add(P.constant_p, (), {"value": array}, (), user_loc())
        self.segment.known.add(out)
        return out

    def _present(self, v: Value) -> Value:
        """A value of an earlier segment comes back as an input of this one."""
        seg = self.segment
        if v in seg.known:
            return v
        found = seg.stale.get(v)
        if found is None:
            array = self.done.get(v)
            if array is None:
                raise RuntimeError(
                    "a tensor of one captured function was used in another, but the first did not return it"
                )
            found = seg.stale[v] = seg.param(v.type, array)
        return found

    # -- what dispatch asks for -----------------------------------------------------------------------------
    def lift(self, t: Tensor) -> Value:
        """The current value of a tensor; a concrete one becomes an input of the segment."""
        data = t._data
        if type(data) is Value:
            return self._present(data)
        found = self.segment.current.get(id(t))
        if found is not None:
            return found
        self.meet(t)
        written = self.segment.written
        if written and any(id(u) in written and overlap(t, u) for u in self.segment.memory.near(t)):
            self.flush("a tensor is read that shares memory with one that was written")
        seg = self.segment
        value = seg.current[id(t)] = seg.param(t._ir_type, t)
        seg.lifted[id(t)] = t
        seg.memory.add(t)
        return value

    def assign(self, t: Tensor, value: Value) -> None:
        """A write to a concrete tensor: its memory changes when the segment ends."""
        self.meet(t)
        if not t._data.flags.writeable and 0 in t._data.strides:
            raise RuntimeError(OVERLAP)
        value = self._present(value)
        seg = self.segment
        seg.current[id(t)] = value
        if id(t) not in seg.lifted and id(t) not in seg.written:
            seg.memory.add(t)
        seg.written[id(t)] = t
        if any(overlap(t, u) for u in seg.memory.near(t)):
            self.flush("a tensor is written that shares memory with another one")

    def concretize(self, t: Tensor, why: str) -> np.ndarray:
        """The tensor's array: ends the segment. RuntimeError under ``fullgraph``, naming the user's line."""
        if self.tracing or type(t._data) is Value or id(t) in self.segment.written:
            self.flush(why)
        data: Any = t._data
        return data

    def scalar(self, x: TracedScalar) -> Value:
        """A traced Python number as a 0-d input (f64 or i64)."""
        if not x.is_live or x._log is not self.log:
            return self.value(np.asarray(x._weft_value))
        seg = self.segment
        found = seg.scalars.get(x._weft_expr)
        if found is None:
            dtype = f64 if type(x._weft_value) is float else i64
            found = seg.scalars[x._weft_expr] = seg.param(TensorType((), dtype, CPU), x)
        return found

    def hidden_scalar(self, owner: Any, key: Any, value: Any) -> Any:
        """``owner[key]``, read afresh at each call."""
        if type(value) is int and not -(1 << 62) < value < 1 << 62:
            return value
        found = self._leaf_of.get((id(owner), key))
        if found is None:
            self.leaves.append((owner, key))
            self.labels.append(str(key))
            found = TracedScalar(value, ("leaf", len(self.leaves) - 1), self.log)
            self._leaf_of[id(owner), key] = found
        return found

    def note_created(self, t: Tensor) -> None:
        key = id(t)
        self.created[key] = weakref.ref(t, lambda _, key=key, created=self.created: created.pop(key, None))

    def meet(self, t: Tensor) -> None:
        """Remember the autograd state of a concrete tensor before the capture changes it."""
        if id(t) not in self.states:
            self.states[id(t)] = before(t)

    def saw_grad(self, t: Tensor, what: str) -> None:
        """``t.grad`` is read or written: only what is read first depends on what it was before the
        capture."""
        if type(t._data) is not Value:
            self.meet(t)
            self.grad_seen.setdefault(id(t), what)

    # -- running --------------------------------------------------------------------------------------------
    def break_(self, why: str) -> None:
        loc = user_loc()
        self.breaks.append((loc, why))
        if self.fullgraph:
            raise CaptureError(f"fullgraph=True, but the graph breaks here: {why}\n  at {quote(loc)}")

    def flush(self, why: str | None = None) -> None:
        """Run what is pending; every live captured tensor gets its array. ``why`` counts it as a graph
        break."""
        if why is not None:
            self.break_(why)
        seg = self.segment
        self.segment = Segment(GraphBuilder(self.name))
        tensors = self.live_tensors()
        saved = self.live_saved(tensors)
        wanted = list(
            dict.fromkeys(
                [
                    *(seg.current[k] for k in seg.written),
                    *(t._data for t in tensors if t._data in seg.known),
                    *(s.data for s in saved if s.data in seg.known),
                ]
            )
        )
        if in_backward():  # the walk holds cotangents that no tensor shows
            wanted = list(dict.fromkeys([*wanted, *(r for op in seg.builder.ops for r in op.results)]))
        arrays = self._execute(seg, wanted)
        for key, t in seg.written.items():
            write(t._data, arrays[seg.current[key]])
        self._settle(seg, tensors, saved, arrays)

    def _execute(self, seg: Segment, wanted: list[Value]) -> dict[Value, np.ndarray]:
        if not wanted:
            return {}
        inputs = [source_array(s) for s in seg.sources]
        given = dict(zip(seg.builder.params, inputs, strict=True))
        computed = [v for v in wanted if v not in given]
        out = {v: copy_of(as_payload(given[v])) for v in wanted if v in given}
        if computed:
            out.update(zip(computed, self.run(seg.builder.finish(computed), inputs), strict=True))
        return out

    def _settle(
        self, seg: Segment, tensors: list[Tensor], saved: list[Saved], arrays: dict[Value, np.ndarray]
    ) -> None:
        """Give captured tensors and saved values their arrays; views become views of their base again."""
        self.done.update(arrays)
        for t in tensors:
            if t._view is None and t._data in self.done:
                t._data = self.done[t._data]
        for t in tensors:
            if t._view is not None:
                self._settle_view(t)
        for s in saved:
            s.data = self.done.get(s.data, s.data)

    def _settle_view(self, t: Tensor) -> None:
        if type(t._data) is not Value:
            return
        view = t._view
        assert view is not None
        base = view.base
        if type(base._data) is Value:
            if base._view is None:
                base._data = self.done.get(base._data, base._data)
            else:
                self._settle_view(base)
        fresh = t._data in self.done
        data: Any = base._data
        for prim, attrs in view.steps:
            data = _NUMPY.bind(prim, (data,), prim.normalize_attrs(attrs), ())
        if may_share(data, base._data) or not fresh:
            t._data = data
        else:
            t._data = self.done[t._data]
        view.value_version = t._vc[0]

    def live_tensors(self) -> list[Tensor]:
        """The captured tensors that something still refers to and that have no array yet."""
        found = [ref() for ref in list(self.created.values())]
        return [t for t in found if t is not None and type(t._data) is Value]

    def live_saved(self, tensors: Sequence[Tensor]) -> list[Saved]:
        """The values that live nodes of the tape keep for their gradients."""
        edges = [
            t._edge for t in (*tensors, *(b.tensor for b in self.states.values())) if t._edge is not None
        ]
        nodes = reachable([e[0] for e in edges])
        return [
            s for n in nodes for s in (*n.operands, *n.results) if type(s) is Saved and type(s.data) is Value
        ]


def in_backward() -> bool:
    """Whether a hook of a backward walk is running."""
    f = sys._getframe(1)
    while f is not None:
        if f.f_code is backprop.__code__:
            return True
        f = f.f_back
    return False


def _nowhere() -> None:
    return None


def plain_attr(a: Any) -> Any:
    """Attributes are constants: traced numbers in them become plain, with a guard."""
    if type(a) is TracedScalar:
        return plain(a)
    if type(a) is tuple and any(type(x) in (TracedScalar, tuple) for x in a):
        return tuple(plain_attr(x) for x in a)
    return a


def source_array(s: Any) -> Any:
    """The array that a source stands for now."""
    if type(s) is TracedScalar:
        return np.asarray(s._weft_value)
    return s._data if isinstance(s, Tensor) else s


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two concrete tensors may share memory."""
    if a is b:
        return False
    return shares(a._data, b._data)


_MAX_WORK: Any = 10_000  # candidate solutions; beyond, the answer is yes


def shares(a: Any, b: Any) -> bool:
    """Whether two arrays have an element in common; True where that is hard to tell."""
    if not may_share(a, b):
        return False
    if type(a) is not np.ndarray:
        return True
    try:
        return bool(np.shares_memory(a, b, max_work=_MAX_WORK))
    except np.exceptions.TooHardError:
        return True
