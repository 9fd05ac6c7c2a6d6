"""``assert_equivalent``: a function eager, compiled, and through the reference interpreter."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from weft.autograd.engine import grad
from weft.capture.compiled import Compiled
from weft.capture.outputs import tensor_paths
from weft.creation import ones_like
from weft.ir.interp import run as interpret
from weft.tensor import Tensor
from weft.testing.compare import difference

# Compiled kernels sum in another order and fuse multiply-adds: wider than assert_close's defaults.
TOLERANCES = {
    "f16": (4e-3, 4e-3),
    "bf16": (3e-2, 3e-2),
    "f32": (1e-4, 1e-5),
    "f64": (1e-9, 1e-11),
    "c64": (1e-4, 1e-5),
    "c128": (1e-9, 1e-11),
}


@dataclasses.dataclass
class Outcome:
    """What one way of running gave: the output or the error, gradients of the inputs, the inputs
    afterwards."""

    out: Any = None
    error: BaseException | None = None
    grads: dict[str, Any] = dataclasses.field(default_factory=dict)
    after: dict[str, Any] = dataclasses.field(default_factory=dict)
    requires: dict[str, bool] = dataclasses.field(default_factory=dict)


def assert_equivalent(
    fn: Callable[..., Any],
    *args: Any,
    grad: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    calls: int = 2,
    fullgraph: bool = False,
    **kwargs: Any,
) -> None:
    """Raise AssertionError unless ``fn`` gives the same eagerly, compiled and in the reference interpreter.

    Compared, for each of ``calls`` calls on copies of the arguments: values, shapes, dtypes and
    ``requires_grad`` of the outputs; gradients of the floating-point outputs with respect to the arguments
    that require them (``grad``); the arguments afterwards (in-place operations); and the type of an
    exception. The message names the way, the output and the first element that differ. Random numbers start
    from one seed each time.

    >>> import weft
    >>> assert_equivalent(lambda x: (x.sin() * 2).sum(), weft.ones(3, requires_grad=True))
    """
    from weft.random import get_rng_state, set_rng_state

    seed = get_rng_state()
    tolerance = {"rtol": rtol, "atol": atol}
    eager = [_outcome(fn, args, kwargs, grad)]
    eager += [_outcome(fn, args, kwargs, grad) for _ in range(calls - 1)]
    for way in ("compiled", "reference interpreter"):
        set_rng_state(seed)
        target = Compiled(fn, fullgraph, None, {})
        with _interpreted() if way != "compiled" else _as_is():
            for i in range(calls):
                got = _outcome(target, args, kwargs, grad)
                _compare(got, eager[i], f"{way}, call {i + 1}", tolerance)


class _as_is:
    def __enter__(self) -> None: ...

    def __exit__(self, *exc: Any) -> None: ...


class _interpreted:
    """Executables made in the block run their graph in the reference interpreter."""

    def __enter__(self) -> None:
        from weft import runtime

        self._compile = runtime.compile_graph

        def interpreted(
            graph: Any, *, donate: Any = None, target: Any = None, name: str | None = None
        ) -> Any:
            return ReferenceExecutable(graph, dict(donate or {}))

        runtime.compile_graph = interpreted  # type: ignore[assignment]

    def __exit__(self, *exc: Any) -> None:
        from weft import runtime

        runtime.compile_graph = self._compile  # type: ignore[assignment]


class ReferenceExecutable:
    """Stands for an Executable; interprets the captured graph in numpy."""

    def __init__(self, graph: Any, donate: dict[int, int]) -> None:
        self.graph, self.donate = graph, donate
        self.stages = [("captured", graph)]
        self.kernels: list[Any] = []

    def runner(self, *arrays: Any) -> list[np.ndarray]:
        given = [np.asarray(a, p.type.dtype.np) for a, p in zip(arrays, self.graph.params, strict=True)]
        outs = [np.array(o) for o in interpret(self.graph, given)]
        for i, j in self.donate.items():
            np.copyto(given[j], outs[i])
            outs[i] = given[j]
        return outs

    def call(self, arrays: Any) -> list[np.ndarray]:
        return self.runner(*arrays)


def _clone(x: Any, memo: dict[int, Any]) -> Any:
    """Copies of the tensors (leaves, as the originals require grad), in copies of their containers."""
    if id(x) in memo:
        return memo[id(x)]
    if isinstance(x, Tensor):
        out: Any = x.detach().clone().requires_grad_(x.requires_grad)
        if not x._data.flags.c_contiguous:
            out = _strided_copy(x)
    elif type(x) in (list, tuple, set):
        out = type(x)(_clone(i, memo) for i in x)
    elif isinstance(x, tuple):
        out = type(x)(*(_clone(i, memo) for i in x))
    elif type(x) is dict:
        out = {k: _clone(v, memo) for k, v in x.items()}
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        out = copy.copy(x)
        for f in dataclasses.fields(x):
            object.__setattr__(out, f.name, _clone(getattr(x, f.name), memo))
    else:
        return x
    memo[id(x)] = out
    return out


def _strided_copy(x: Tensor) -> Tensor:
    """A leaf with the strides of ``x``."""
    from weft.creation import from_numpy

    order = sorted(range(x.ndim), key=lambda i: -abs(x._data.strides[i]))
    packed = np.array(x._data.transpose(order), order="C")
    array = packed.transpose(np.argsort(order))
    if array.flags.c_contiguous:  # a slice with steps
        wide = np.repeat(array, 2, axis=-1)
        array = wide[..., ::2]
    return from_numpy(array).requires_grad_(x.requires_grad)


def _outcome(fn: Any, args: Any, kwargs: Any, want_grad: bool) -> Outcome:
    memo: dict[int, Any] = {}
    args, kwargs = _clone(args, memo), _clone(kwargs, memo)
    inputs = {_spell(p): t for p, t in tensor_paths((args, kwargs))}
    leaves = {k: t for k, t in inputs.items() if t.requires_grad and t.is_leaf}
    try:
        out = fn(*args, **kwargs)
    except Exception as error:
        return Outcome(error=error, after={k: t.detach().clone() for k, t in inputs.items()})
    found = Outcome(out, requires={_spell(p): t.requires_grad for p, t in tensor_paths(out)})
    roots = [t for _, t in tensor_paths(out) if t.requires_grad and t.dtype.is_inexact]
    found.grads = {f"{k}.grad": t.grad for k, t in inputs.items() if t.is_leaf and t.grad is not None}
    if want_grad and roots and leaves and not _walked(roots):
        grads = grad(roots, list(leaves.values()), [_cotangent(t) for t in roots], allow_unused=True)
        found.grads |= dict(zip(leaves, grads, strict=True))
    found.after = {k: t.detach().clone() for k, t in inputs.items()}
    return found


def _walked(roots: list[Tensor]) -> bool:
    return any(t.grad_fn is not None and t.grad_fn.freed for t in roots)


def _cotangent(t: Tensor) -> Tensor:
    """Weights that differ between elements, so that a transposed gradient does not look right."""
    weights = np.linspace(0.5, 1.5, max(t.numel(), 1))[: t.numel()].reshape(tuple(t.shape))
    out = ones_like(t.detach())
    out._data[...] = weights.astype(t._data.dtype)
    return out


def _spell(path: Any) -> str:
    """``args[0]['x'].weight``"""
    text = "".join(f"[{key!r}]" if kind == "item" else f".{key}" for kind, key in path)
    for start, name in (("[0]", "args"), ("[1]", "kwargs")):
        if text.startswith(start + "["):
            return name + text[len(start) :]
    return f"output{text}"


def _compare(got: Outcome, want: Outcome, way: str, tolerance: dict[str, Any]) -> None:
    if (got.error is None) != (want.error is None) or (
        got.error is not None and type(got.error) is not type(want.error)
    ):
        raise AssertionError(f"{way}: raised {got.error!r}, eager raised {want.error!r}") from got.error
    for what, a, b in (
        ("output", got.out, want.out),
        ("gradient", got.grads, want.grads),
        ("inputs afterwards", got.after, want.after),
    ):
        why = _difference(a, b, tolerance, f"{way}: {what}")
        if why is not None:
            raise AssertionError(why)
    if got.requires != want.requires:
        raise AssertionError(f"{way}: requires_grad of the outputs is {got.requires}, eager {want.requires}")


def _difference(a: Any, b: Any, tolerance: dict[str, Any], where: str) -> str | None:
    rtol, atol = tolerance["rtol"], tolerance["atol"]
    if isinstance(b, Tensor):
        if not isinstance(a, Tensor):
            return f"{where}: {a!r} is not a tensor"
        r, t = TOLERANCES.get(b.dtype.name, (0.0, 0.0))
        return difference(a, b, r if rtol is None else rtol, t if atol is None else atol, True, True, where)
    if isinstance(b, dict) and isinstance(a, dict) and set(a) == set(b):
        return next((d for k in b if (d := _difference(a[k], b[k], tolerance, f"{where} {k}"))), None)
    if isinstance(b, (list, tuple)) and isinstance(a, (list, tuple)) and len(a) == len(b):
        return next(
            (d for i in range(len(b)) if (d := _difference(a[i], b[i], tolerance, f"{where}[{i}]"))), None
        )
    if dataclasses.is_dataclass(b) and type(a) is type(b) and not isinstance(b, type):
        return _difference(vars(a), vars(b), tolerance, where)
    if isinstance(b, float) and isinstance(a, float):
        r, t = TOLERANCES["f32"]
        return difference(a, b, r if rtol is None else rtol, t if atol is None else atol, True, True, where)
    return difference(a, b, 0.0, 0.0, True, True, where)
