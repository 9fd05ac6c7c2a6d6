"""``weft.compile``: functions and modules whose tensor operations run as one compiled graph."""

from __future__ import annotations

import builtins
import functools
import gc
import inspect
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from weft import runtime
from weft.capture.backward import BackwardPlan
from weft.capture.callcode import fast_version, full_version
from weft.capture.entry import Guards, Miss
from weft.capture.errors import CaptureError
from weft.capture.outputs import tensor_paths
from weft.capture.plan import Plan, Planner
from weft.capture.recorder import before
from weft.capture.regions import run_lazily
from weft.capture.segments import SEGMENTS
from weft.capture.sources import Unfit
from weft.capture.state import paused, recorder
from weft.capture.trace import settle, trace
from weft.runtime import compile as _loaded  # noqa: F401  (here, since every first call needs it)
from weft.runtime.pause import collection_paused
from weft.tensor import Tensor

RECOMPILE_LIMIT = 8  # versions of one function; beyond, calls that fit none run in segments
FAILURE_LIMIT = 3  # traces of one function that did not become one graph
_ALL: weakref.WeakSet[Any] = weakref.WeakSet()
PATIENCE = 10.0  # seconds that a call waits for another thread's compile of the same function


def _log(text: str) -> None:
    import logging  # most programs have nothing to log

    logging.getLogger("weft.recompiles").info("%s", text)


def compile_graph(graph: Any, *, donate: Any = None, name: str | None = None) -> Any:
    return runtime.compile_graph(graph, donate=donate, name=name)


class Entry:
    """One compiled version: ``call(args, kwargs)`` gives the result, or a Miss if a guard fails."""

    __slots__ = ("backward", "call", "check", "executable", "guard_texts", "guards", "plan")

    def __init__(self, plan: Plan, name: str, freezing: bool = False) -> None:
        self.plan, self.guards, self.guard_texts = plan, plan.guards, plan.guard_texts
        frozen = _frozen(plan, name) if freezing and plan.fixed else None
        self.executable = frozen or compile_graph(plan.graph, donate=plan.donate, name=name)
        self.backward: BackwardPlan | None = plan.backward
        namespace = plan.namespace
        namespace["run"], namespace["REFUSED"] = refusing_runner(self.executable), REFUSED
        namespace["run_checked"] = self.executable.runner
        namespace["refresh"] = _refresher(plan.guards, namespace)
        self.check: Callable[..., Miss | None] = _full(plan.source, name, namespace)
        self.call: Callable[[Any, Any], Any] = _defined("call", fast_version(plan.source), name, namespace)


def _defined(function: str, source: str, name: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    exec(builtins.compile(source, f"<weft call of {name}>", "exec"), namespace)
    return namespace[function]


def _full(source: str, name: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    """The call with all checks, compiled when it is first needed, which for most entries is never."""

    def full(args: Any, kwargs: Any, dry: bool = False) -> Any:
        if namespace["full"] is full:
            _defined("full", full_version(source), name, namespace)
        return namespace["full"](args, kwargs, dry)

    namespace["full"] = full
    return full


def _frozen(plan: Plan, name: str) -> Any:
    """The graph in two parts, one of which runs when a parameter has changed; None if nothing is gained."""
    from weft.runtime import freeze_graph

    numbers, tensors = zip(*plan.fixed, strict=True)

    def stamp() -> tuple[list[Any], Callable[[], bool]]:
        arrays = [t._data for t in tensors]
        return arrays, unchanged(tensors)

    return freeze_graph(plan.graph, numbers, stamp, name)


def unchanged(tensors: Sequence[Tensor]) -> Callable[[], bool]:
    """A function that tells whether the tensors have the payloads and versions that they have now."""
    names: dict[str, Any] = {}
    for i, t in enumerate(tensors):
        names |= {f"t{i}": t, f"a{i}": t._data, f"v{i}": t._vc[0]}
    same = " and ".join(f"t{i}._data is a{i} and t{i}._vc[0] == v{i}" for i in range(len(tensors)))
    return eval(f"lambda: {same}", names)


def _refresher(guards: Guards, namespace: dict[str, Any]) -> Callable[[], Miss | None]:
    def refresh() -> Miss | None:
        why = guards.refresh(namespace)
        return None if why is None else Miss(why, 1000)

    return refresh


REFUSED: Any = object()  # what the native call gives for arrays that are not of the expected types
_NO_VERSION = Miss("it was not called yet", 0)


def _no_version(args: Any, kwargs: Any) -> Miss:
    return _NO_VERSION


def refusing_runner(executable: Any) -> Callable[..., Any]:
    """The executable's native call, giving REFUSED for unfit arrays; where there is none, always."""
    make = getattr(executable, "native_runner", None)
    runner = make(lambda *arrays: REFUSED) if make is not None else None
    return runner or (lambda *arrays: REFUSED)


class Compiled:
    """A function under ``weft.compile``. Call it as the function.

    ``entries`` are its compiled versions, most recently used first; ``recompiles`` the reasons why a version
    after the first was made; ``breaks`` why calls could not become one graph, as (reason) lines.
    """

    def __init__(
        self, fn: Callable[..., Any], fullgraph: bool, dynamic: bool | None, options: dict[str, Any]
    ) -> None:
        self.fn, self.fullgraph, self.dynamic, self.options = fn, fullgraph, dynamic, options
        self.name = getattr(fn, "__name__", type(fn).__name__)
        self._set_entries([])
        self.recompiles: list[str] = []
        self.breaks: list[str] = []
        self.traces = 0
        self.lazy_calls = 0
        self._names = _parameter_names(fn)
        self._dynamic: set[str] = set(self._names) if dynamic else set()
        self._ints: dict[str, set[int]] = {}
        self._lock = threading.RLock()
        functools.update_wrapper(self, fn, updated=())
        _ALL.add(self)

    def _weft_follow(self) -> Any:
        """What a walk over the environment looks at in place of this object."""
        return self.fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self._call(args, kwargs)
        return out if type(out) is not Miss else self._slow(out, args, kwargs)

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        """As a method: one compiled function per instance, so that each has its own versions."""
        if obj is None:
            return self
        try:
            store = obj.__dict__.setdefault("_weft_compiled", {})
        except AttributeError:  # slots alone
            return self.fn.__get__(obj, owner)
        bound = store.get(self.name)
        if bound is None or bound.fn.__func__ is not self.fn:
            bound = store[self.name] = Compiled(
                self.fn.__get__(obj, owner), self.fullgraph, self.dynamic, self.options
            )
        return bound

    def __reduce__(self) -> Any:
        """Copies and pickles start without versions."""
        return Compiled, (self.fn, self.fullgraph, self.dynamic, self.options)

    # -- the slow path ---
    def _slow(self, miss: Miss, args: Any, kwargs: Any) -> Any:
        """The version in front does not apply, or there is none. In another capture the call becomes part
        of it."""
        if recorder() is not None or self.options.get("disable"):
            return self.fn(*args, **kwargs)
        misses = [(e, miss) for e in self.entries[:1]]
        for entry in self.entries[1:]:
            out = entry.call(args, kwargs)
            if type(out) is not Miss:
                self._set_entries([entry, *(e for e in self.entries if e is not entry)])
                return out
            misses.append((entry, out))
        return self._make(args, kwargs, misses)

    def _set_entries(self, entries: list[Entry]) -> None:
        self.entries = entries
        self._call = entries[0].call if entries else _no_version

    def _make(self, args: Any, kwargs: Any, misses: list[tuple[Entry, Miss]]) -> Any:
        """Make a version for this call, one thread at a time; or run it in segments."""
        if not self._lock.acquire(timeout=PATIENCE):  # its holder may wait for this very thread
            return self._lazily(args, kwargs)
        try:
            for entry in self.entries:  # another thread may have made it
                if not any(entry is tried for tried, _ in misses):
                    out = entry.call(args, kwargs)
                    if type(out) is not Miss:
                        return out
                    misses.append((entry, out))
            if self._may_trace(misses, args, kwargs):
                return self._trace(args, kwargs)
        finally:
            self._lock.release()
        return self._lazily(args, kwargs)

    def _may_trace(self, misses: list[tuple[Entry, Miss]], args: Any, kwargs: Any) -> bool:
        if misses and not self._may_recompile(misses, args, kwargs):
            return False
        return len(self.breaks) < FAILURE_LIMIT or self.fullgraph

    def _may_recompile(self, misses: list[tuple[Entry, Miss]], args: Any, kwargs: Any) -> bool:
        reason = _nearest(misses, args, kwargs)
        if len(self.entries) >= RECOMPILE_LIMIT:
            if len(self.recompiles) < RECOMPILE_LIMIT:
                self.recompiles.append(
                    f"{reason} (not compiled again: the limit of {RECOMPILE_LIMIT} is reached)"
                )
                warnings.warn(
                    f"{self.name} was compiled {RECOMPILE_LIMIT} times; calls that fit no version now run "
                    f"in segments. "
                    f"The last reason: {reason}",
                    stacklevel=5,
                )
            return False
        if len(self.breaks) < FAILURE_LIMIT:
            self.recompiles.append(reason)
            self._say(reason)
        return True

    def _say(self, reason: str) -> None:
        text = f"recompiling {self.name}: {reason}"
        _log(text)
        if "recompiles" in os.environ.get("WEFT_LOG", "").split(","):
            print(f"weft: {text}", file=sys.stderr)

    def _broke(self, why: str) -> None:
        """This call could not become one graph."""
        self.breaks.append(why)
        text = f"{self.name} is not one graph: {why}"
        _log(text)
        if "breaks" in os.environ.get("WEFT_LOG", "").split(","):
            print(f"weft: {text}", file=sys.stderr)

    def _lazily(self, args: Any, kwargs: Any) -> Any:
        if self.fullgraph:
            raise CaptureError(f"{self.name} cannot be one graph: {(self.breaks or self.recompiles)[-1]}")
        self.lazy_calls += 1
        return run_lazily(self.fn, args, kwargs, self.name)[0]

    def _trace(self, args: Any, kwargs: Any) -> Any:
        self._learn_ints(args, kwargs)
        self.traces += 1
        made = trace(
            self.fn,
            args,
            kwargs,
            run=SEGMENTS.run,
            name=self.name,
            names=self._names,
            dynamic=self._dynamic,
            fullgraph=self.fullgraph,
        )
        if made.problem is not None:
            self._broke(made.problem)
            return made.out
        entry = None
        planner = None
        try:
            with collection_paused():
                planner = Planner(made, self.fn, self.name, compile_graph)
                plan = planner.build()
                made.recorder.log.closed = True
                entry = self._checked_entry(made, plan)
        except Unfit as why:
            return self._unfit(made, str(why))
        if entry is None:
            return self._unfit(made, "a tensor made in it is kept somewhere outside")
        del planner, plan
        self._set_entries([entry, *self.entries])
        out = entry.call(args, kwargs)
        if type(out) is Miss:
            self._set_entries([e for e in self.entries if e is not entry])
            self._broke(f"its own guards do not hold: {out.reason(args, kwargs)}")
            return run_lazily(self.fn, args, kwargs, self.name)[0]
        return out

    def _checked_entry(self, made: Any, plan: Plan) -> Entry | None:
        """The entry, with the tensors the trace touched as they were before; None if a captured tensor
        escaped."""
        out, made.out = made.out, None
        after = [before(b.tensor) for b in made.recorder.states.values()]
        for b in reversed(made.recorder.states.values()):  # what two share was first met by the first
            b.restore()
        mine = _inner_tensors(out, [a.grad for a in after if a.grad is not None])
        if any(id(t) not in mine for t in made.recorder.live_tensors()):
            from weft.capture.escape import escaped

            gc.collect()
            suspects = {id(t) for t in made.recorder.live_tensors()} - mine.keys()
            if escaped(suspects, [*mine.values(), *(a.edge for a in after)], made.mark):
                for a in after:
                    a.restore()
                made.out = out
                return None
        return Entry(plan, self.name, bool(self.options.get("freezing")))

    def _unfit(self, made: Any, why: str) -> Any:
        if self.fullgraph:
            settle(made)
            raise CaptureError(f"fullgraph=True, but {self.name} cannot be one graph: {why}")
        self._broke(why)
        settle(made)
        return made.out

    def _learn_ints(self, args: Any, kwargs: Any) -> None:
        """Ints given with several values become traced numbers."""
        named = {
            **{self._names[i] if i < len(self._names) else f"argument {i}": x for i, x in enumerate(args)},
            **kwargs,
        }
        for name, x in named.items():
            if type(x) is int:
                seen = self._ints.setdefault(name, set())
                seen.add(x)
                if len(seen) > 1 and self.dynamic is not False:
                    self._dynamic.add(name)

    # -- looking inside ---
    def _entry(self, args: Any, kwargs: Any) -> Entry:
        """The version for these arguments (the latest where none are given); calls the function if need
        be."""
        if args or kwargs:
            self(*args, **kwargs)
        if not self.entries:
            why = f": {self.breaks[-1]}" if self.breaks else ", since it was not called yet"
            raise RuntimeError(f"{self.name} has no compiled graph{why}")
        return self.entries[0]

    @property
    def graph(self) -> Any:
        """The captured graph of the latest version."""
        return self._entry((), {}).executable.graph

    def stages(self, *args: Any, **kwargs: Any) -> list[tuple[str, Any]]:
        """(name, graph) after each pass."""
        return self._entry(args, kwargs).executable.stages

    def kernels(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The kernels, with their text, loops, bytes moved and operations."""
        return self._entry(args, kwargs).executable.kernels

    def plan(self, *args: Any, **kwargs: Any) -> Any:
        """The memory plan."""
        return self._entry(args, kwargs).executable.plan

    def llvm(self, *args: Any, **kwargs: Any) -> str:
        """The LLVM IR."""
        return self._entry(args, kwargs).executable.llvm()

    def asm(self, *args: Any, **kwargs: Any) -> str:
        """The assembly; of a GPU the PTX."""
        return self._entry(args, kwargs).executable.asm()

    def backward_graph(self) -> Any:
        """The graph of the gradients across the boundary; None where no output can get a gradient."""
        b = self._entry((), {}).backward
        return None if b is None or b.is_freed else b.joint.backward

    def guards(self) -> list[str]:
        """The guards of the latest version, one line each."""
        return self._entry((), {}).guard_texts()

    def call_source(self) -> str:
        """The generated function that checks the guards and calls the code."""
        source = self._entry((), {}).plan.source
        return fast_version(source) + full_version(source)

    def reset(self) -> None:
        """Forget all versions."""
        with self._lock:
            self._set_entries([])
            self.recompiles, self.breaks = [], []
            self._ints, self._dynamic = {}, set(self._names) if self.dynamic else set()
            self.traces = self.lazy_calls = 0

    def __repr__(self) -> str:
        return f"<weft.compile of {self.name}: {len(self.entries)} versions>"


# properties of a tensor in the order in which the guards look at them
_ORDER = ("dtype of", "shape of", "requires_grad of", "contiguous", "leaf")


def _nearest(misses: list[tuple[Entry, Miss]], args: Any, kwargs: Any) -> str:
    """The reason of the version that came nearest: whose failing guard stands last."""
    checked = [(entry.check(args, kwargs, dry=True) or miss) for entry, miss in misses]
    reasons = [(m.index, m.reason(args, kwargs)) for m in checked]
    return max(reasons, key=lambda r: (r[0], next((i for i, w in enumerate(_ORDER) if w in r[1]), -1)))[1]


def _inner_tensors(out: Any, grads: list[Any]) -> dict[int, Any]:
    """By id, the tensors that may outlive the trace: outputs, gradients, and the bases of both."""
    found: dict[int, Any] = {}
    todo = [*(t for _, t in tensor_paths(out)), *grads]
    while todo:
        t = todo.pop()
        if id(t) not in found:
            found[id(t)] = t
            if t._view is not None:
                todo.append(t._view.base)
            if t._grad is not None:
                todo.append(t._grad)
    return found


def _parameter_names(fn: Callable[..., Any]) -> list[str]:
    """Names of the positional parameters, for messages."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def compile(
    fn: Callable[..., Any] | None = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: Any = "weft",
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    disable: bool = False,
) -> Any:
    """Compile a function or a module: the same results, from one graph of fused native kernels.

    ``fn`` is traced at its first call, and again when something it depends on changes in a way that the
    compiled code does not cover (shapes, dtypes, Python values that steer it); :meth:`Compiled.recompiles`
    says why. Where one graph cannot stand for the function (it prints, asks for a value, changes Python
    objects), it runs in compiled segments; with ``fullgraph=True`` that is a :class:`CaptureError` that
    names the line. ``dynamic=True`` reads int arguments afresh at each call from the start (by default from
    their first change on; ``False``: never). ``backend`` is ``"weft"`` or ``"eager"`` (captures nothing);
    ``mode`` is taken for compatibility. Can be used as a decorator, with or without arguments.

    ``options={"freezing": True}`` lets what depends on parameters alone run once per version of them, in
    calls without gradients: weights are then packed beforehand. Changes by in-place operations, assignments
    and ``load_state_dict`` are seen; those through memory shared with numpy, DLPack or ``.data`` are not
    (:func:`weft.reset` the function, or make an in-place change, after such writes). Other options of torch's
    default backend are accepted and have no effect; RuntimeError for unknown ones.

    >>> import weft
    >>> @weft.compile
    ... def f(x, y):
    ...     return weft.tanh(x + y) * y
    >>> f(weft.zeros(3), weft.ones(3))
    tensor([0.7616, 0.7616, 0.7616])
    >>> len(f.kernels())
    1
    """
    if mode not in (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"):
        raise RuntimeError(
            f"Unrecognized mode={mode}, should be one of: default, reduce-overhead, max-autotune"
        )
    if backend not in ("weft", "inductor", "eager"):
        raise RuntimeError(f"Invalid backend: {backend!r}; weft has 'weft' and 'eager'")
    if fn is None:
        return functools.partial(
            compile,
            fullgraph=fullgraph,
            dynamic=dynamic,
            backend=backend,
            mode=mode,
            options=options,
            disable=disable,
        )
    if not callable(fn):
        raise RuntimeError(f"weft.compile takes a function or a module, but got {type(fn).__name__}")
    if isinstance(fn, Compiled) or hasattr(type(fn), "_weft_follow"):  # compiled already
        return fn
    _check_options(options or {})
    settings = {"disable": disable or backend == "eager", "mode": mode, **(options or {})}
    if not settings["disable"]:
        runtime.prepare()
    if hasattr(fn, "named_parameters") and not inspect.isfunction(fn):
        from weft.capture.module import OptimizedModule

        module: Any = fn
        return OptimizedModule(module, fullgraph, dynamic, settings)
    return Compiled(fn, fullgraph, dynamic, settings)


# of torch's default backend; those beside "freezing" choose among kernels of its own
_OPTIONS = ("freezing", "max_autotune", "epilogue_fusion", "fallback_random", "shape_padding",
            "triton.cudagraphs", "trace.enabled", "trace.graph_diagram")  # fmt: skip


def _check_options(options: dict[str, Any]) -> None:
    for key, value in options.items():
        if key not in _OPTIONS:
            raise RuntimeError(f"Unexpected optimization option {key}, known options are {list(_OPTIONS)}")
        if not isinstance(value, bool):
            raise RuntimeError(f"Unexpected type of attr {key}, got {type(value)} should be bool")


def is_compiling() -> bool:
    """True inside a function that is being captured."""
    return recorder() is not None


def disable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that always runs eagerly: in a capture it is a graph break around the call."""

    @functools.wraps(fn)
    def eager(*args: Any, **kwargs: Any) -> Any:
        rec = recorder()
        if rec is None:
            return fn(*args, **kwargs)
        rec.flush(f"{getattr(fn, '__name__', 'a function')} is disabled for capture")
        with paused():
            return fn(*args, **kwargs)

    return eager


def reset() -> None:
    """Forget every compiled version of every function."""
    for compiled in list(_ALL):
        compiled.reset()
