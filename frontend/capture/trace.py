"""Running a function once under the Recorder, and judging whether what was recorded stands for the
function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from weft.autograd.grad_mode import mode
from weft.autograd.tape import edge_of, sequence_mark
from weft.capture.environment import MISSING, Environment, Place, same
from weft.capture.errors import CaptureError
from weft.capture.recorder import WATCH_GRADS, Recorder, Run
from weft.capture.signature import Code, Signature, is_data
from weft.capture.state import TracedScalar
from weft.capture.userland import quote
from weft.capture.watch import Watch
from weft.ir.prims.base import interpreting
from weft.ir.record import record
from weft.tensor import Tensor


def is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


@record
class Trace:
    """What one run recorded. ``problem`` says why one graph cannot stand for the function (None: it can)."""

    recorder: Recorder
    signature: Signature
    env: Environment
    out: Any
    mark: int
    modes: tuple[bool, bool]
    problem: str | None = None


def environment(fn: Callable[..., Any], signature: Signature, name: str) -> Environment:
    """The places that ``fn`` and the objects among its arguments lead to."""
    env = Environment(is_tensor)
    env.add(fn, name)
    for obj, label in signature.objects:
        env.add(obj, label)
    return env.finish()


def _argument_places(signature: Signature) -> list[Place]:
    """The containers among the arguments, as places to compare after the trace."""
    out: list[Place] = []
    for obj in signature.keep:
        if isinstance(obj, dict):
            out.append(Place("dict", obj, None, list(obj.items()), "an argument"))
        elif isinstance(obj, list):
            out.append(Place("list", obj, None, list(obj), "an argument"))
        elif is_data(obj) and hasattr(obj, "__dict__"):
            out.append(Place("dict", obj.__dict__, None, list(obj.__dict__.items()), "an argument"))
    return out


def trace(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    run: Run,
    name: str,
    names: list[str],
    dynamic: set[str],
    fullgraph: bool,
) -> Trace:
    """Record one call of ``fn``. Where one graph cannot stand for it (``problem``), everything recorded has
    been run by the time this returns, and ``out`` is the result of the call; else nothing has been run yet.

    What ``fn`` raises comes through, after the writes it made before.
    """
    rec = Recorder(run, fullgraph, name, tracing=True)
    code = Code()

    def number(x: float, var: str, label: str) -> TracedScalar:
        rec.leaves.append(("argument", var))
        rec.labels.append(label)
        return TracedScalar(x, ("leaf", len(rec.leaves) - 1), rec.log)

    env = Environment(is_tensor)
    env.add(fn, name)
    env.finish()
    traced = None if _reads_types(env) else number
    signature = Signature(code, names, dynamic, traced)
    new_args, new_kwargs = signature.read(args, kwargs)
    for obj, label in signature.objects:
        env.add(obj, label)
    env.finish()
    arguments = _argument_places(signature)
    for t in [*(g.tensor for g in signature.given.values()), *(t for t, _ in env.tensors.values())]:
        edge_of(t)  # brings the history of views up to date
        rec.meet(t)
    watch = Watch(env.codes)
    made = Trace(rec, signature, env, None, sequence_mark(), (mode.grad, mode.inference))
    try:
        with WATCH_GRADS, interpreting(rec), watch.on():
            made.out = fn(*new_args, **new_kwargs)
        changed = _changes([*env.places, *arguments], rec)
        made.problem = _problem(made, watch, changed)
        if made.problem is not None and fullgraph:
            raise CaptureError(f"fullgraph=True, but {name} cannot be one graph: {made.problem}")
    except BaseException:
        with nullcontext() if not fullgraph else _lenient(rec):
            settle(made)
        raise
    if made.problem is not None:
        settle(made)
    return made


class _lenient:
    """While an error is on its way out, pending writes still run under ``fullgraph``."""

    def __init__(self, rec: Recorder) -> None:
        self.rec = rec

    def __enter__(self) -> None:
        self.rec.fullgraph = False

    def __exit__(self, *exc: Any) -> None:
        self.rec.fullgraph = True


def settle(made: Trace) -> None:
    """Run all that is pending; captured tensors become concrete, traced numbers plain."""
    made.recorder.flush()
    made.recorder.log.closed = True
    made.out = settled(made.out)


def settled(x: Any) -> Any:
    """The outputs with plain numbers for traced ones."""
    if type(x) is TracedScalar:
        return x._weft_value
    if type(x) in (list, tuple) and any(type(i) in (TracedScalar, list, tuple, dict) for i in x):
        items = [settled(i) for i in x]
        if type(x) is tuple:
            return tuple(items)
        x[:] = items
    elif type(x) is dict:
        for k, v in x.items():
            x[k] = settled(v)
    return x


def _reads_types(env: Environment) -> bool:
    """Whether the user's code looks at ``type(x)``: it would then see that a traced number is none."""
    return "type" in env.names or "json" in env.names or "dumps" in env.names


def _problem(made: Trace, watch: Watch, changed: str | None) -> str | None:
    """Why one graph cannot stand for the call."""
    rec, env = made.recorder, made.env
    if rec.breaks:
        loc, why = rec.breaks[0]
        return f"{why}, at {quote(loc)}"
    if watch.impure is not None:
        reason, loc = watch.impure
        return f"it {reason}" + (f", at {quote(loc)}" if loc else "")
    for key in watch.executed & set(env.impure):
        code = env.codes[key]
        return f"it {env.impure[key]}, in {code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
    if changed is not None:
        return changed
    opaque = [*env.opaque, *made.signature.opaque]
    return f"it can read {opaque[0]}" if opaque else None


def _changes(places: list[Place], rec: Recorder) -> str | None:
    """The first place that the trace changed, in words. Traced numbers left behind become plain."""
    found = None
    for p in places:
        now = p.read()
        if _unchanged(p, now):
            continue
        _plain_in_place(p, now)
        if found is None and not p.lazily_made:
            found = f"it changes {p.path}" + ("" if now is not MISSING else " (deletes it)")
    return found


def _unchanged(p: Place, now: Any) -> bool:
    if p.kind == "set" or p.kind == "array":
        return same(now, p.value)
    if p.kind in ("list", "dict"):
        return len(now) == len(p.value) and all(map(_same_entry, now, p.value))
    return same(now, p.value)


def _same_entry(a: Any, b: Any) -> bool:
    if type(a) is tuple and type(b) is tuple and len(a) == 2 and len(b) == 2:  # an item of a dictionary
        return same(a[0], b[0]) and same(a[1], b[1])
    return same(a, b)


def _plain_in_place(p: Place, now: Any) -> None:
    if p.kind == "item" and type(now) is TracedScalar:
        p.holder[p.key] = now._weft_value
    elif p.kind == "cell" and type(now) is TracedScalar:
        p.holder.cell_contents = now._weft_value
    elif p.kind == "list":
        for i, x in enumerate(now):
            if type(x) is TracedScalar:
                p.holder[i] = x._weft_value
    elif p.kind == "dict":
        for k, x in now:
            if type(x) is TracedScalar:
                p.holder[k] = x._weft_value
