"""Single operations of eager mode by generated kernels.

An eager operation on large arrays runs as a graph of that one operation, compiled once for the types and
layouts it meets and called through the executable's native runner. What is worth a kernel depends on the
primitive and on sizes alone, so that equal calls give equal bits; only a primitive that has met very many
layouts waits for the second use of a new one. How operands go in: :mod:`weft.runtime.layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from weft.ir.errors import CompilerError
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.prims.base import PRIMITIVES, GraphInterpreter, Kind, Primitive, interpreting
from weft.passes.dce import dce
from weft.runtime import blocks, buffers, compile_graph, stats
from weft.runtime.layouts import Layout, packed, prepared, window_of

__all__ = ["Layout", "packed", "prepared", "window_of"]

FREE_LAYOUTS = 32  # layouts of one primitive that are compiled at their first use

_ndarray = np.ndarray
Ints = tuple[int, ...]


# -- what is worth a kernel ---------------------------------------------------------------------------------

# Bytes of the largest operand from which a kernel pays for its call. Plain maps and moves are as fast in
# numpy while they stay in the cache; transcendental functions, sorts and windows are not.
_MAP, _DEAR, _REDUCE, _MOVE = 1 << 18, 1 << 15, 1 << 16, 1 << 19
_COPY = 1 << 16  # of strided arrays, element by element in numpy
_PLAIN = frozenset({
    "abs", "add", "and", "ceil", "convert", "copy", "div", "eq", "floor", "ge", "gt", "le", "lt", "maximum",
    "minimum", "mul", "ne", "neg", "not", "or", "rint", "sqrt", "sub", "trunc", "where", "xor",
})  # fmt: skip
_FAMILY = {
    Kind.REDUCE: _REDUCE, Kind.SCAN: _REDUCE, Kind.GATHER: _REDUCE, Kind.SCATTER: _DEAR,
    Kind.SORT: _DEAR, Kind.WINDOW: _DEAR,
}  # fmt: skip
_VIEWS = frozenset({"reshape", "permute", "broadcast", "slice"})  # numpy gives views of these
_CONTRACTION = 1 << 18  # multiplications from which numpy's product would start threads of its own
_NEVER = 1 << 62


def _least_bytes(prim: Primitive) -> int:
    if prim.kind is Kind.MAP:
        return _MAP if prim.name in _PLAIN else _DEAR
    if prim.kind is Kind.MOVE:
        return _NEVER if prim.name in _VIEWS else _MOVE
    if prim.kind is Kind.CONTRACT:
        return _DEAR
    return _FAMILY.get(prim.kind, _NEVER)


_least: dict[Primitive, int] = {}


def _worth(prim: Primitive, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> bool:
    """Whether an operation should run as a kernel: by the sizes of its operands."""
    least = _least.get(prim)
    if least is None:
        least = _least[prim] = _least_bytes(prim)
    largest = max(a.nbytes for a in arrays)
    if largest < least:
        if prim.name == "reshape":
            return largest >= _COPY and _reshape_copies(arrays[0], attrs["shape"])
        return prim.name == "dot_general" and _multiplications(arrays, attrs) >= _CONTRACTION
    if any(a.dtype.kind == "c" or not a.size for a in arrays):
        return False
    if prim.kind is Kind.CONTRACT:
        return prim.name != "dot_general" or _product_is_worth(arrays, attrs)
    return True


def _reshape_copies(a: np.ndarray, shape: Ints) -> bool:
    """Whether a permuted array gets another shape by a copy only."""
    if a.flags.c_contiguous or not a.size or a.dtype.kind == "c" or Layout(a).prepare is packed:
        return False
    try:
        a.reshape(shape, copy=False)
    except ValueError:
        return True
    return False


def _multiplications(arrays: Sequence[Any], attrs: Mapping[str, Any]) -> int:
    a, b = arrays
    contract, batch = attrs["contract"], attrs["batch"]
    shared = prod(b.shape[i] for i in (*contract[1], *batch[1])) or 1
    return a.size * (b.size // shared)


def _product_is_worth(arrays: Sequence[Any], attrs: Mapping[str, Any]) -> bool:
    """Products of matrices where numpy's would be threaded, and of vectors with large matrices."""
    n = _multiplications(arrays, attrs)
    return n >= _CONTRACTION or n <= 4 * max(a.size for a in arrays)


# -- compiling and running ----------------------------------------------------------------------------------


class Kernels:
    """Compiled single operations by key; None stands for one that numpy has to run."""

    def __init__(self) -> None:
        self.made: dict[Any, Callable[..., Any] | None] = {}
        self.layouts: dict[Any, int] = {}
        self.seen: set[Any] = set()
        self.uses: dict[Any, int] = {}

    def admits(self, family: Any, key: Any) -> bool:
        """Whether a new key of a family is compiled now: the first ones are, later ones when they return."""
        n = self.layouts.get(family, 0)
        if n >= FREE_LAYOUTS and key not in self.seen:
            if len(self.seen) > 1 << 16:
                self.seen.clear()
            self.seen.add(key)
            return False
        self.layouts[family] = n + 1
        return True


KERNELS = Kernels()
_NEW: Any = object()


def run(prim: Primitive, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """The results of an operation by its kernel (a tuple of several), or None: leave it to numpy."""
    if not _worth(prim, arrays, attrs):
        return None
    key = (prim, tuple(attrs.items()), *[(a.shape, a.strides, a.dtype.num) for a in arrays])
    try:
        found = KERNELS.made[key]
    except KeyError:
        found = _meet(prim, arrays, attrs, key)
    except TypeError:  # an attribute that is an array
        return None
    if found is None:
        return None
    out = found(*arrays)
    return out[0] if len(out) == 1 else tuple(out)


def _meet(prim: Primitive, arrays: Sequence[Any], attrs: Mapping[str, Any], key: Any) -> Any:
    """A runner for a new key. Maps run in blocks, by code for any size, until a size has come a few times;
    the code for that size then saves some checks and the cache, and computes the same bits."""
    if prim.kind is not Kind.MAP or not blocks.fits(arrays):
        return _compile(prim, arrays, attrs, key)
    common = (prim, tuple(attrs.items()), *[(a.dtype.num, blocks.is_scalar(a)) for a in arrays])
    uses = KERNELS.uses.get(key, 0) + 1
    if uses <= blocks.USES or not KERNELS.admits(prim, key):
        if len(KERNELS.uses) > 1 << 16:
            KERNELS.uses.clear()
        KERNELS.uses[key] = uses
        if common not in KERNELS.made:
            KERNELS.made[common] = _any_size(prim, arrays, attrs)
        return KERNELS.made[common]
    return _compile_now(prim, arrays, attrs, key)


def _any_size(prim: Primitive, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """A kernel for operands of any size."""
    layouts = [Layout(_block(a)) for a in arrays]
    return _block_runner(layouts, lambda *xs: prim.bind(*broadcast_operands(prim, xs), **attrs), prim.name)


def _block(a: np.ndarray) -> np.ndarray:
    """A stand-in for the block of an operand."""
    return np.empty(() if blocks.is_scalar(a) else (blocks.BLOCK,), a.dtype)


def _block_runner(layouts: Sequence[Layout], fn: Callable[..., Any], name: str) -> Any:
    try:
        graph = dce(graph_of(layouts, fn, name))
    except (TypeError, ValueError):
        return None
    if any(r.type.shape != (blocks.BLOCK,) for r in graph.results):
        return None
    try:
        made = executable_of(graph)
    except CompilerError:
        return None
    if made.artifact.hosts or made.artifact.arena_bytes:
        return None
    return blocks.runner(graph, made)


def _compile(prim: Primitive, arrays: Sequence[Any], attrs: Mapping[str, Any], key: Any) -> Any:
    return _compile_now(prim, arrays, attrs, key) if KERNELS.admits(prim, key) else None


def _compile_now(prim: Primitive, arrays: Sequence[Any], attrs: Mapping[str, Any], key: Any) -> Any:
    layouts = [Layout(a) for a in arrays]
    runner = compiled(layouts, lambda *xs: prim.bind(*broadcast_operands(prim, xs), **attrs), prim.name)
    KERNELS.made[key] = made = None if runner is None else prepared(runner, layouts)
    return made


def compiled(
    layouts: Sequence[Layout], fn: Callable[..., Any], name: str
) -> Callable[..., Any] | None:
    """A runner of ``fn`` over dense operands; None where it has no native code (or ``fn`` refuses)."""
    try:
        graph = graph_of(layouts, fn, name)
    except (TypeError, ValueError):  # numpy's rule finds the words
        return None
    return runner_of(graph)


def graph_of(layouts: Sequence[Layout], fn: Callable[..., Any], name: str) -> Graph:
    """The graph of ``fn`` on operands of these layouts, its params the dense arrays."""
    b = GraphBuilder(name)
    params = [b.param(x.type) for x in layouts]
    with interpreting(GraphInterpreter(b)):
        out = fn(*[x.value(p) for x, p in zip(layouts, params, strict=True)])
    return b.finish(list(out) if isinstance(out, (tuple, list)) else [out])


def runner_of(graph: Graph, donate: Mapping[int, int] | None = None) -> Callable[..., Any] | None:
    """The native runner of a graph, None if part of it would run in Python."""
    try:
        made = executable_of(graph, donate)
    except CompilerError:
        return None
    return None if made.artifact.hosts else made.runner


def executable_of(graph: Graph, donate: Mapping[int, int] | None = None) -> Any:
    """Compile a graph for eager use."""
    stats.count("eager_kernels")
    return compile_graph(graph, donate=donate, name=f"eager_{graph.name}")


def broadcast_operands(prim: Primitive, xs: Sequence[Value]) -> Sequence[Value]:
    """Operands of a map with the shape of the result: eager ones come as numpy would broadcast them."""
    if prim.kind is not Kind.MAP or len({x.type.shape for x in xs}) == 1:
        return xs
    shape = np.broadcast_shapes(*[x.type.shape for x in xs])
    broadcast = PRIMITIVES["broadcast"]
    return [
        x if x.type.shape == shape
        else broadcast.bind(x, shape=shape, axes=tuple(range(len(shape) - x.type.ndim, len(shape))))
        for x in xs
    ]  # fmt: skip


# -- random words -------------------------------------------------------------------------------------------

RANDOM_WORDS = 1 << 15  # drawn at once


def random_words(state: np.ndarray, n: int) -> np.ndarray | None:
    """The next ``n`` words of a generator's state, by one kernel, piece by piece; None: numpy draws them."""
    piece, prim = RANDOM_WORDS, PRIMITIVES["random_bits"]
    if prim not in KERNELS.made:
        KERNELS.made[prim] = compiled([Layout(state)], lambda s: prim.bind(s, shape=(piece,)), "random_bits")
    draw = KERNELS.made[prim]
    if draw is None:
        return None
    out, at = buffers.maker((n,), np.dtype(np.uint32), 4 * n)(), state.copy()
    for i in range(0, n, piece):
        out[i : i + piece] = draw(at)[0][: n - i]
        at[1:] += piece // 4  # words come in blocks of four
    return out


# -- gradients ----------------------------------------------------------------------------------------------


def vjp(
    prim: Primitive, attrs: Mapping[str, Any], ct: Any, out: Any, operands: Sequence[Any], wanted: Ints
) -> list[Any] | None:
    """The ``wanted`` gradients of one operation by a kernel, None for the others; or None: use the rule.

    ``ct`` and ``out`` are tuples for several results. What was not saved for the rule is anything with
    ``shape``, ``dtype`` and ``nbytes``.
    """
    cts, outs = (ct, out) if isinstance(ct, tuple) else ((ct,), (out,))
    slots = (*cts, *outs, *operands)
    if not _vjp_is_worth(prim, attrs, slots, operands):
        return None
    try:
        key = ("vjp", prim, wanted, tuple(attrs.items()), *map(_slot_key, slots))
        found = KERNELS.made.get(key, _NEW)
    except (TypeError, AttributeError):  # an attribute that is an array, a value that is none
        return None
    if found is _NEW:
        found = _compile_vjp(prim, attrs, cts, outs, operands, wanted, key)
    if found is None:
        return None
    return found(*[x for x in slots if type(x) is _ndarray])


def _slot_key(x: Any) -> Any:
    if type(x) is _ndarray:
        return x.shape, x.strides, x.dtype.num
    return None if x is None else (x.shape, x.dtype.num)


def _vjp_is_worth(prim: Primitive, attrs: Any, slots: Sequence[Any], operands: Sequence[Any]) -> bool:
    if prim.kind is Kind.CONTRACT:
        if any(x.dtype.kind == "c" for x in operands):
            return False
        if prim.name == "dot_general":
            return _multiplications(operands, attrs) >= _CONTRACTION
    least = min(_least_bytes(prim), _MAP)
    given = [x for x in slots if x is not None]
    if max([x.nbytes for x in given]) < least:
        return False
    return not any(x.dtype.kind == "c" or 0 in x.shape for x in given)


def _compile_vjp(
    prim: Primitive, attrs: Any, cts: Sequence[Any], outs: Sequence[Any], operands: Sequence[Any],
    wanted: Ints, key: Any,
) -> Any:  # fmt: skip
    if not KERNELS.admits(("vjp", prim), key):
        return None
    slots = (*cts, *outs, *operands)
    layouts = [Layout(x) for x in slots if type(x) is _ndarray]
    found: list[int] = []
    rule = vjp_rule(prim, attrs, slots, len(cts), wanted, _ndarray, found)
    made = _vjp_runner(layouts, rule, f"{prim.name}_vjp")
    if made is None:
        KERNELS.made[key] = None
        return None
    run = KERNELS.made[key] = placing(prepared(made, layouts), found, len(operands))
    return run


def vjp_rule(
    prim: Primitive, attrs: Mapping[str, Any], slots: Sequence[Any], n: int, wanted: Ints, given: type,
    found: list[int],
) -> Callable[..., list[Any]]:  # fmt: skip
    """The gradient rule of a primitive as a function of the values of those ``slots`` (``n`` cotangents, as
    many results, the operands) that are of type ``given``. It gives the ``wanted`` gradients that there are,
    and writes to ``found`` which these are."""

    def rule(*values: Value) -> list[Any]:
        it = iter(values)
        filled = [next(it) if type(x) is given else x for x in slots]
        ct: Any = tuple(filled[:n]) if n > 1 else filled[0]
        out: Any = tuple(filled[n : 2 * n]) if n > 1 else filled[n]
        grads = prim.vjp(ct, out, *filled[2 * n :], **attrs)  # type: ignore[misc]
        found[:] = [i for i in wanted if grads[i] is not None]
        return [grads[i] for i in found]

    return rule


def placing(runner: Callable[..., Any], found: Sequence[int], n_operands: int) -> Callable[..., list[Any]]:
    """``runner`` with its results in the places of the operands that they are gradients of."""

    def run(*arrays: Any) -> list[Any]:
        grads: list[Any] = [None] * n_operands
        for i, g in zip(found, runner(*arrays), strict=True):
            grads[i] = g
        return grads

    return run


def _vjp_runner(layouts: Sequence[Layout], rule: Callable[..., Any], name: str) -> Any:
    """None where the gradients are operands or views of them: numpy makes those for nothing."""
    try:
        graph = dce(graph_of(layouts, rule, name))
    except (TypeError, ValueError):
        return None
    if all(op.prim.name in _VIEWS for op in graph.ops) or any(r in graph.params for r in graph.results):
        return None
    return runner_of(graph)
