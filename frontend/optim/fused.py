"""The step of a whole parameter group as one compiled graph, for eager training loops.

The optimizer's ``update`` is recorded for all parameters of a group at once, its writes as new values that
are stored into the memory of the parameters and of the state. The learning rate is an input; other options
are part of what a plan was made for. The first step of a group, or for small groups the first steps, run
parameter by parameter: a script that steps once compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from weft.autograd.grad_mode import no_grad
from weft.composite import PATIENCE, Refused, Sketch
from weft.devices import home, span, write
from weft.dispatch import interpreter, wrap
from weft.eager import kernels, switch
from weft.ir.graph import Value
from weft.ir.prims.base import _NUMPY, interpreting
from weft.ir.types import CPU, TensorType, f64
from weft.tensor import Tensor

LARGE = 1 << 16  # bytes of parameters from which the second step is compiled

Item = tuple[Tensor, Tensor, dict[str, Any]]  # a parameter, its gradient, its state
Update = TypeVar("Update", bound=Callable[..., None])
_plans: dict[Any, Any] = {}
_steps: dict[Any, int] = {}


def pure(update: Update) -> Update:
    """Mark an ``update`` that does nothing but tensor arithmetic, and writes to the parameter and its state
    alone: it may be recorded once for many steps, and for many parameters."""
    update.pure = True  # type: ignore[attr-defined]
    return update


def _repeatable(optimizer: Any, group: dict[str, Any]) -> bool:
    return getattr(type(optimizer).update, "pure", False) and not group.get("differentiable")


def runs_own_code(optimizer: Any) -> bool:
    """Whether no method of a step is the user's."""
    from weft.capture.userland import kind_of

    names = ("_step_group", "options", "state_of", "new_state", "update")
    methods = [getattr(getattr(type(optimizer), name), "__code__", None) for name in names]
    own = all(code is not None and kind_of(code) == "weft" for code in methods)
    return own and not vars(optimizer).keys() & set(names)


def repeated_update(optimizer: Any, group: dict[str, Any]) -> Callable[..., None] | None:
    """In a capture, an ``update`` that records once for all parameters of the same types; None where each has
    to be recorded."""
    rec: Any = interpreter()
    if not rec.recording or not _repeatable(optimizer, group):
        return None
    from weft.capture.recorder import Recorder
    from weft.capture.repeat import Repeats

    if type(rec) is not Recorder:
        return None
    repeats = Repeats(rec)

    def update(p: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> None:
        def run() -> bool:
            before = dict(state)
            optimizer.update(p, grad, state, options)
            return state.keys() == before.keys() and all(state[k] is v for k, v in before.items())

        tensors = [p, grad, *(x for x in state.values() if isinstance(x, Tensor))]
        key = tuple((k, isinstance(x, Tensor) or (type(x), x)) for k, x in state.items())
        repeats.call(key, run, tensors)

    return update


def step_group(optimizer: Any, group: dict[str, Any], items: Sequence[Item]) -> bool:
    """Update all ``items`` in one call; False where they have to be updated one by one."""
    if not switch.on or not items or interpreter() is not _NUMPY or not _repeatable(optimizer, group):
        return False
    lr = group["lr"]
    if type(lr) is not float and type(lr) is not int:
        return False
    key: list[Any] = [type(optimizer).update]
    key += [(k, type(v), v) for k, v in group.items() if k not in ("params", "lr")]
    tensors = _tensors(items, key)
    if tensors is None:
        return False
    try:
        plan = _plans[tuple(key)]
    except KeyError:
        plan = _meet(tuple(key), optimizer, group, items, tensors)
    except TypeError:  # an option that is not hashable
        return False
    if plan is None:
        return False
    _run(plan, float(lr), tensors)
    return True


def _tensors(items: Sequence[Item], key: list[Any]) -> list[Tensor] | None:
    """All tensors of a step in order, their types added to ``key``; None if some memory is out of the
    ordinary."""
    out: list[Tensor] = []
    for p, grad, state in items:
        out += (p, grad)
        for name, x in state.items():
            key.append(name)
            if isinstance(x, Tensor):
                out.append(x)
            else:
                key.append((type(x), x))
    for t in out:
        d = t._data
        if type(d) is Value or t._inference or not d.flags.c_contiguous or not d.flags.writeable:
            return None
        key.append((d.shape, d.dtype.num, home(d)))
    return out


def _meet(key: Any, optimizer: Any, group: Any, items: Sequence[Item], tensors: list[Tensor]) -> Any:
    """The plan of a new combination, once it is worth one."""
    n = _steps[key] = _steps.get(key, 0) + 1
    if n < (2 if sum(p.nbytes for p, _, _ in items) >= LARGE else PATIENCE):
        return None
    _steps.pop(key)
    made = _plans[key] = _plan(optimizer, group, items, tensors)
    return made


def _plan(
    optimizer: Any, group: dict[str, Any], items: Sequence[Item], tensors: Sequence[Tensor]
) -> tuple[Any, list[int]] | None:
    """(runner, positions of the tensors that it writes); None where the update is no plain arithmetic."""
    if _overlap([t._data for t in tensors]):
        return None
    sketch = Sketch(f"{type(optimizer).__name__.lower()}_step")
    rate = wrap(sketch.builder.param(TensorType((), f64, CPU)))
    params = [sketch.builder.param(t._ir_type) for t in tensors]
    stand_ins = [wrap(v) for v in params]
    options = {k: v for k, v in group.items() if k != "params"} | {"lr": rate}
    it = iter(stand_ins)
    try:
        with no_grad(), interpreting(sketch):
            for _, _, state in items:
                p, grad = next(it), next(it)
                kept = {k: next(it) if isinstance(x, Tensor) else x for k, x in state.items()}
                before = dict(kept)
                optimizer.update(p, -grad if group.get("maximize") else grad, kept, options)
                if kept.keys() != before.keys() or any(kept[k] is not v for k, v in before.items()):
                    return None
    except (Refused, RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    written = [i for i, (t, v) in enumerate(zip(stand_ins, params, strict=True)) if t._data is not v]
    results: list[Value] = [stand_ins[i]._data for i in written]
    if len(set(results)) < len(results) or set(results) & set(params):
        return None
    graph = sketch.builder.finish(results)
    runner = kernels.runner_of(graph, {k: i + 1 for k, i in enumerate(written)})
    return None if runner is None else (runner, written)


def _overlap(arrays: Sequence[Any]) -> bool:
    """Whether any two of the contiguous arrays share memory."""
    spans = sorted(span(a) for a in arrays if a.size)
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def _run(plan: tuple[Any, list[int]], lr: float, tensors: Sequence[Tensor]) -> None:
    runner, written = plan
    out = runner(lr, *[t._data for t in tensors])
    for i, a in zip(written, out, strict=True):
        t = tensors[i]
        if a is not t._data:  # the general path ran on a copy
            write(t._data, a)
        t._vc[0] += 1
