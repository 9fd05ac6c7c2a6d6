"""Control flow: cond, while_loop and scan.

Their bodies are regions: closed graphs that take all they read as parameters. The gradient rules get the
regions and a callback ``differentiate(graph, wrt, outputs)``, which gives the graph ``(params..., cotangents
of outputs...) -> gradients of the params wrt...`` (:func:`weft.passes.autodiff.gradient_graph`).

* ``cond(pred, *xs)``, regions (then, otherwise): each ``(*xs) -> results``.
* ``while_loop(*carry)``, regions (test, body): ``(*carry) -> bool[]`` and ``(*carry) -> carry``.
* ``scan(*consts, *init, *xs)``, region ``(*consts, *carry, *x) -> (*carry, *y)``, run ``length`` times with
  x a slice along the first axis of each of xs; gives the last carry and the stacked ys. With ``reverse`` from
  the last slice to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from weft.ir.graph import Graph, GraphBuilder, Op, Value
from weft.ir.prims.base import GraphInterpreter, Kind, Primitive, interpreting, type_of
from weft.ir.prims.regions import (
    as_tuple,
    check_regions,
    check_signature,
    inline,
    own,
    result_types,
    run_region,
)
from weft.ir.prims.rules import apply, zeros_like
from weft.ir.types import DTYPES, TensorType, bool_

__all__ = ["cond_p", "scan_p", "while_loop_p"]

Differentiate = Callable[[Graph, Sequence[int], Sequence[int]], Graph]
Regions = Sequence[Graph]


def _inexact(values: Sequence[Any]) -> list[int]:
    """The positions that a gradient can flow through."""
    return [i for i, v in enumerate(values) if type_of(v).dtype.is_inexact]


def _check_predicate(prim: str, t: TensorType) -> None:
    if t.dtype is not bool_ or t.shape != ():
        raise TypeError(f"{prim}: the predicate must be bool[], got {t}")


# cond ----------------------------------------------------------------


def _cond_infer(pred: TensorType, *xs: TensorType, regions: Regions = ()) -> tuple[TensorType, ...]:
    check_regions("cond", regions, 2)
    _check_predicate("cond", pred)
    types = result_types(regions[0])
    for region in regions:
        check_signature("cond", region, xs, types)
    return types


def _cond_eval(pred: np.ndarray, *xs: np.ndarray, regions: Regions) -> tuple[np.ndarray, ...]:
    return own(run_region(regions[0] if pred else regions[1], xs), xs)


def _cond_vjp(
    ct: Any, out: Any, pred: Any, *xs: Any, regions: Regions, differentiate: Differentiate
) -> tuple[Any, ...]:
    """cond of the gradients of the branches, which compute what they need of the forward branch again."""
    cts = as_tuple(ct, len(regions[0].results))
    outputs = [i for i, c in enumerate(cts) if c is not None]
    wrt = _inexact(xs)
    if not wrt:
        return (None,) * (1 + len(xs))
    branches = tuple(differentiate(r, wrt, outputs) for r in regions)
    found = apply("cond", pred, *xs, *(cts[i] for i in outputs), regions=branches)
    grads = dict(zip(wrt, as_tuple(found, len(wrt)), strict=True))
    return None, *(grads.get(i) for i in range(len(xs)))


cond_p = Primitive("cond", Kind.CONTROL, infer=_cond_infer, eval=_cond_eval, vjp=_cond_vjp, dtypes=(bool_,))


# while_loop ----------------------------------------------------------------


def _while_infer(*carry: TensorType, regions: Regions = ()) -> tuple[TensorType, ...]:
    check_regions("while_loop", regions, 2)
    test, body = regions
    check_signature("while_loop", test, carry)
    check_signature("while_loop", body, carry, carry)
    if len(test.results) != 1:
        raise TypeError(f"while_loop: the condition must return one value, got {len(test.results)}")
    _check_predicate("while_loop", test.results[0].type)
    return tuple(carry)


def _while_eval(*carry: np.ndarray, regions: Regions) -> tuple[np.ndarray, ...]:
    test, body = regions
    values: Sequence[np.ndarray] = carry
    while run_region(test, values)[0]:
        values = run_region(body, values)
    return own(values, carry)


def _while_vjp(ct: Any, out: Any, *carry: Any, **attrs: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "reverse-mode differentiation does not work for while_loop: the number of steps is not known, so the"
        " values of each step cannot be kept. Use scan, or a loop with a fixed number of steps."
    )


while_loop_p = Primitive(
    "while_loop", Kind.CONTROL, infer=_while_infer, eval=_while_eval, vjp=_while_vjp, needs="", dtypes=DTYPES
)


# scan ----------------------------------------------------------------


def _split(values: Sequence[Any], *counts: int) -> list[Sequence[Any]]:
    """Consecutive parts of these lengths, and the rest."""
    out, at = [], 0
    for n in counts:
        out.append(values[at : at + n])
        at += n
    return [*out, values[at:]]


def _scan_infer(
    *operands: TensorType, n_carry: int, length: int, n_consts: int = 0, reverse: bool = False,
    regions: Regions = (),
) -> tuple[TensorType, ...]:  # fmt: skip
    check_regions("scan", regions, 1)
    region = regions[0]
    consts, carry, xs = _split(operands, n_consts, n_carry)
    for x in xs:
        if x.ndim == 0 or x.shape[0] != length:
            raise ValueError(f"scan: {x} does not have {length} elements along its first axis")
    check_signature("scan", region, [*consts, *carry, *(x.with_(shape=x.shape[1:]) for x in xs)])
    types = result_types(region)
    if types[:n_carry] != tuple(carry):
        raise TypeError(f"scan: the carry is ({', '.join(map(str, carry))}) but region {region.name} returns "
                        f"({', '.join(map(str, types[:n_carry]))})")  # fmt: skip
    return *carry, *(t.with_(shape=(length, *t.shape)) for t in types[n_carry:])


def _scan_eval(
    *operands: np.ndarray, n_carry: int, length: int, n_consts: int = 0, reverse: bool = False,
    regions: Regions,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    region = regions[0]
    consts, carry, xs = _split(operands, n_consts, n_carry)
    ys = [np.empty((length, *t.shape), t.dtype.np) for t in result_types(region)[n_carry:]]
    for i in reversed(range(length)) if reverse else range(length):
        out = run_region(region, [*consts, *carry, *(x[i] for x in xs)])
        carry = out[:n_carry]
        for y, value in zip(ys, out[n_carry:], strict=True):
            y[i] = value
    return *own(carry, operands), *ys


def _keeping_carries(region: Graph, n_consts: int, n_carry: int) -> Graph:
    """The step that also gives out the carry that came in, and of its results only the carry."""
    kept = region.params[n_consts : n_consts + n_carry]
    return Graph(region.params, region.ops, (*region.results[:n_carry], *kept), f"{region.name}_carries")


class _Product(NamedTuple):
    """A gradient that is a product in every step: its sum is one product over all steps, after the loop.

    ``operands`` are values of the step; ``perms`` are transpositions of the product, the last one first.
    """

    operands: tuple[Value, Value]
    attrs: Mapping[str, Any]
    perms: tuple[tuple[int, ...], ...]

    def over_steps(self, a: Any, b: Any) -> Any:
        """The sum for the stacked operands."""
        contract = tuple((0, *(i + 1 for i in axes)) for axes in self.attrs["contract"])
        batch = tuple(tuple(i + 1 for i in axes) for axes in self.attrs["batch"])
        out = apply("dot_general", a, b, contract=contract, batch=batch)
        for perm in reversed(self.perms):
            out = apply("permute", out, perm=perm)
        return out


def _product_of(value: Value, producers: Mapping[Value, Op], consts: Collection[Value]) -> _Product | None:
    """``value`` as a product to be made after the loop, where that moves less memory than a running sum."""
    perms: list[tuple[int, ...]] = []
    op = producers.get(value)
    while op is not None and op.prim.name == "permute":
        perms.append(op.attrs["perm"])
        op = producers.get(op.operands[0])
    if op is None or op.prim.name != "dot_general" or any(v in consts for v in op.operands):
        return None
    a, b = op.operands
    if a.type.nbytes + b.type.nbytes > 2 * value.type.nbytes:
        return None
    return _Product((a, b), op.attrs, tuple(perms))


def _late_products(gradient: Graph, consts: Sequence[Value], wrt: Sequence[int]) -> dict[int, _Product]:
    """The gradients of consts ``wrt``, the first results, that are made after the loop, by operand."""
    producers = gradient.producers()
    found = {i: _product_of(r, producers, consts) for i, r in zip(wrt, gradient.results, strict=False)}
    return {i: p for i, p in found.items() if p is not None}


def _only(graph: Graph, results: Sequence[Value]) -> Graph:
    """The graph with these results, and the operations that they need."""
    needed, ops = set(results), []
    for op in reversed(graph.ops):
        if not needed.isdisjoint(op.results):
            needed.update(op.operands)
            ops.append(op)
    return Graph(graph.params, ops[::-1], results, graph.name)


def _backward_step(
    region: Graph, gradient: Graph, n_consts: int, n_carry: int, summed: Sequence[TensorType],
    outputs: Sequence[int],
) -> Graph:  # fmt: skip
    """One step backward: ``(consts, cotangents of the carry, sums for the consts, carry, x, cotangents of
    y) -> (cotangents of the carry that came in, sums, the other results of ``gradient``)``.
    """
    b = GraphBuilder(gradient.name)
    consts, carry, xs = _split([p.type for p in region.params], n_consts, n_carry)
    carried_out = [region.results[i].type for i in outputs if i < n_carry]
    p_consts = [b.param(t) for t in consts]
    p_ct_carry = [b.param(t) for t in carried_out]
    p_sums = [b.param(t) for t in summed]
    p_carry = [b.param(t) for t in carry]
    p_xs = [b.param(t) for t in xs]
    p_ct_ys = [b.param(region.results[i].type) for i in outputs if i >= n_carry]
    grads = inline(b, gradient, [*p_consts, *p_carry, *p_xs, *p_ct_carry, *p_ct_ys])
    to_consts, to_carry, others = _split(grads, len(summed), len(carried_out))
    with interpreting(GraphInterpreter(b)):
        sums = [apply("add", s, g) for s, g in zip(p_sums, to_consts, strict=True)]
    return b.finish([*to_carry, *sums, *others])


def _scan_vjp(
    ct: Any, out: Any, *operands: Any, n_carry: int, length: int, n_consts: int, reverse: bool,
    regions: Regions, differentiate: Differentiate,
) -> tuple[Any, ...]:  # fmt: skip
    """A scan in the other direction over the carries of each step, which a forward scan computes again.

    Gradients of consts are summed in its carry, but for products, which are made after it for all steps."""
    region = regions[0]
    consts, carry, xs = _split(operands, n_consts, n_carry)
    wrt = _inexact(operands)
    if not wrt:
        return (None,) * len(operands)
    cts = as_tuple(ct, len(region.results))
    # every inexact carry takes part: cotangents reach it from later steps, if not from outside
    outputs = _inexact(carry) + [i for i, c in enumerate(cts) if i >= n_carry and c is not None]
    gradient = differentiate(region, wrt, outputs)
    how = {"n_consts": n_consts, "length": length}
    kept: tuple[Any, ...] = ()
    if n_carry:
        again = _keeping_carries(region, n_consts, n_carry)
        kept = apply("scan", *operands, n_carry=n_carry, reverse=reverse, regions=(again,), **how)[n_carry:]
    ct_carry = [zeros_like(carry[i]) if cts[i] is None else cts[i] for i in outputs if i < n_carry]
    ct_ys = [cts[i] for i in outputs if i >= n_carry]
    late = _late_products(gradient, gradient.params[:n_consts], [i for i in wrt if i < n_consts])
    summed = [i for i in wrt if i < n_consts and i not in late]
    stack_of = _stacks(gradient, n_consts, [*kept, *xs], ct_ys)
    fresh = list(dict.fromkeys(v for p in late.values() for v in p.operands if v not in stack_of))
    carried = [r for i, r in zip(wrt, gradient.results, strict=True) if i not in late]
    types = [type_of(operands[i]) for i in summed]
    step = _backward_step(region, _only(gradient, [*carried, *fresh]), n_consts, n_carry, types, outputs)
    sums = [zeros_like(operands[i]) for i in summed]
    found = apply("scan", *consts, *ct_carry, *sums, *kept, *xs, *ct_ys, n_carry=len(ct_carry) + len(sums),
                  reverse=not reverse, regions=(step,), **how)  # fmt: skip
    n_xs = len(carried) - len(ct_carry) - len(sums)
    to_carry, total, to_xs, stacks = _split(
        as_tuple(found, len(step.results)), len(ct_carry), len(sums), n_xs
    )  # fmt: skip
    stack_of |= zip(fresh, stacks, strict=True)
    grads = dict(zip((*summed, *(i for i in wrt if i >= n_consts)), (*total, *to_carry, *to_xs), strict=True))
    grads |= {i: p.over_steps(*(stack_of[v] for v in p.operands)) for i, p in late.items()}
    return tuple(grads.get(i) for i in range(len(operands)))


def _stacks(gradient: Graph, n_consts: int, forward: Sequence[Any], ct_ys: Sequence[Any]) -> dict[Value, Any]:
    """Values of a step backward that are slices of arrays that exist: what came in, cotangents of ys."""
    params = gradient.params[n_consts:]
    by_step = [*params[: len(forward)], *params[len(params) - len(ct_ys) :]]
    return dict(zip(by_step, [*forward, *ct_ys], strict=True))


scan_p = Primitive(
    "scan", Kind.CONTROL, infer=_scan_infer, eval=_scan_eval, vjp=_scan_vjp, dtypes=DTYPES,
    defaults={"n_consts": 0, "reverse": False},
)  # fmt: skip
