"""Gradient rules as the backward walk calls them: values that were spoiled since, single gradients by
kernels, and the walk over arrays that nobody watches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from weft.autograd.tape import AccumulateGrad, ArrayType, Edge, Node, Saved
from weft.devices import cuda
from weft.dispatch import Wrapper
from weft.eager import LEAST_BYTES, kernels, switch
from weft.ir.graph import Graph
from weft.ir.interp import run as run_graph
from weft.ir.prims import add_p
from weft.ir.prims.base import Kind, Primitive, trace, type_of
from weft.passes.autodiff import gradient_graph

_ndarray = np.ndarray


class Spoiled:
    """Stands for a saved value that was modified in place since: harmless until a wanted gradient depends on
    it.
    """

    __array_ufunc__ = None

    def __init__(self, type: Any, error: Exception) -> None:
        self._ir_type, self.error = type, error

    def _same(self, *_: Any) -> Spoiled:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = (
        _same
    )


class SpoilAware(Wrapper):
    """Passes spoiled operands through to the results; everything else as ``inner``."""

    def bind(self, prim: Any, operands: Sequence[Any], attrs: Any, regions: Any) -> Any:
        for x in operands:
            if type(x) is Spoiled:
                types = prim.infer_types([type_of(o) for o in operands], attrs, regions)
                outs = tuple(Spoiled(t, x.error) for t in types)
                return outs[0] if len(outs) == 1 else outs
        return self.inner.bind(prim, operands, attrs, regions)


def is_large(operands: Sequence[Any], results: Sequence[Any]) -> bool:
    """Whether a gradient may be worth a kernel; on a GPU it always is."""
    values = (*results, *operands)
    return any(getattr(x, "nbytes", 0) >= LEAST_BYTES or getattr(x, "on_device", False) for x in values)


class Gradient:
    """The gradient rule of a primitive for the ``wanted`` operands alone, by a kernel where that pays.

    Without one, a contraction of which some operand needs no gradient has its rule's graph cut down to what
    is wanted and run by the reference interpreter: products are dear.
    """

    kind, nondifferentiable = None, False

    def __init__(self, prim: Any, wanted: tuple[int, ...]) -> None:
        self.prim, self.name, self.wanted = prim, prim.name, wanted
        self.nondifferentiable = prim.nondifferentiable

    def vjp(self, ct: Any, out: Any, *operands: Any, **attrs: Any) -> Sequence[Any]:
        prim = self.prim
        if type(ct) is Spoiled or type(out) is Spoiled or any(type(x) is Spoiled for x in operands):
            return prim.vjp(ct, out, *operands, **attrs)
        first = ct[0] if type(ct) is tuple else ct
        if getattr(first, "on_device", False):
            found = cuda.eager.vjp(prim, attrs, ct, out, operands, self.wanted)
            return prim.vjp(ct, out, *operands, **attrs) if found is None else found
        if switch.on:
            found = kernels.vjp(prim, attrs, ct, out, operands, self.wanted)
            if found is not None:
                return found
        if prim.kind is not Kind.CONTRACT or len(self.wanted) == len(operands):
            return prim.vjp(ct, out, *operands, **attrs)
        if not all(type(x) is np.ndarray for x in (ct, *operands)):
            return prim.vjp(ct, out, *operands, **attrs)
        types = tuple(type_of(x) for x in operands)
        graph = _pruned_gradient(prim, types, tuple(sorted(attrs.items())), self.wanted)
        arrays: list[Any] = [*operands, ct]
        grads = iter(run_graph(graph, arrays))
        return [next(grads) if i in self.wanted else None for i in range(len(operands))]


@lru_cache(256)
def _pruned_gradient(prim: Any, types: Any, attrs: Any, wanted: tuple[int, ...]) -> Graph:
    one_op = trace(lambda *xs: prim.bind(*xs, **dict(attrs)), *types)
    return gradient_graph(one_op, wanted, (0,))


# -- the walk over arrays -----------------------------------------------------------------------------------


def is_plain(nodes: Sequence[Node], leaves: Sequence[AccumulateGrad]) -> bool:
    """Whether the walk needs no more than :func:`walk_arrays`: no hooks, and nothing saved was changed."""
    for n in leaves:
        if n.variable._hooks:
            return False
    for n in nodes:
        prim = n.prim
        if n.hooks or n.retained or prim.kind is Kind.CONTROL or getattr(prim, "vjp", None) is None:
            return False
        for s in (*n.operands, *n.results):
            if type(s) is not Saved:
                continue
            if type(s.data) is not _ndarray or (s.vc is not None and s.vc[0] != s.version):
                return False
    return True


def walk_arrays(
    nodes: Sequence[Node], pending: dict[Edge, Any], leaves: Sequence[AccumulateGrad]
) -> dict[Edge, Any]:
    """The gradients of ``leaves``, given the cotangents of some results of ``nodes`` (in program order).

    What :func:`weft.passes.autodiff.backprop` does, for a plain tape: values are read when their turn comes.
    """
    take, add = pending.pop, add_p.bind
    for node in reversed(nodes):
        prim, single = node.prim, len(node.results) == 1
        if single:
            ct: Any = take((node, 0), None)
            none = ct is None
        else:
            ct = tuple([take((node, i), None) for i in range(len(node.results))])
            none = all(c is None for c in ct)
        if none or prim.nondifferentiable:
            continue
        operands, large = _read(node.operands)
        results, long = _read(node.results)
        out = results[0] if single else tuple(results)
        if type(prim) is Primitive and (large or long or prim.kind is Kind.CONTRACT):
            prim = Gradient(prim, tuple([i for i, e in enumerate(node.edges) if e is not None]))
        vjp: Any = prim.vjp
        grads = vjp(ct, out, *operands, **node.attrs)
        for edge, g in zip(node.edges, grads, strict=True):
            if g is not None and edge is not None:
                old = pending.get(edge)
                pending[edge] = g if old is None else add(old, g)
    return {(n, 0): pending[n, 0] for n in leaves if (n, 0) in pending}


def _read(saved: Sequence[Any]) -> tuple[list[Any], bool]:
    """Saved values, or what is known of their types; and whether one is large."""
    out, large = [], False
    for s in saved:
        if type(s) is Saved:
            x = s.data
            large = large or x.nbytes >= LEAST_BYTES
        elif type(s) is tuple:
            x = ArrayType(*s)
            large = large or prod(s[0]) * s[1].itemsize >= LEAST_BYTES
        else:
            x = s
        out.append(x)
    return out, large
