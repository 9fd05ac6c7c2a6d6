"""The backward walk over the tape: ``Tensor.backward`` and ``autograd.grad``.

The nodes that the roots were computed from, in program order, become the records of
:func:`weft.passes.autodiff.backprop`, which runs under the eager interpreter (on arrays), under the Recorder
(on graph Values) or, for ``create_graph``, on Tensors that are taped again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode, no_grad
from weft.autograd.rules import Gradient, SpoilAware, Spoiled, is_large, is_plain, walk_arrays
from weft.autograd.tape import (
    AccumulateGrad,
    ArrayType,
    Edge,
    Node,
    Saved,
    edge_of,
    reachable,
    type_stub,
    version_error,
)
from weft.devices import as_payload, copy_of
from weft.dispatch import Direct, Taping, interpreter, payload, quiet, wrap, wrap_value
from weft.eager import is_whole
from weft.ir.graph import Value
from weft.ir.prims.base import (
    _NUMPY,
    Interpreter,
    Kind,
    Primitive,
    _current,
    interpreting,
    type_of,
)
from weft.passes.autodiff import OpRecord, backprop
from weft.tensor import Tensor


class Walk:
    """One backward walk: how values are unpacked and what flows."""

    def __init__(self, create_graph: bool) -> None:
        self.create_graph = create_graph
        self.outer: Any = interpreter()
        self.direct = not create_graph and self.outer is _NUMPY
        self.spoiled = False

    def flowing(self, t: Tensor) -> Any:
        """What a tensor is in this walk: itself, or its payload."""
        return t if self.create_graph else payload(t, self.outer)

    def tensor(self, x: Any) -> Tensor:
        """A tensor of something that flows."""
        if isinstance(x, Tensor):
            return x
        return wrap_value(self.outer, x) if type(x) is Value else wrap(as_payload(x))

    def unpack(self, s: Any, edge: Edge | None, node: Node, index: int) -> Any:
        """A saved operand or result as it flows."""
        if type(s) is not Saved:
            return type_stub(s)
        if s.vc is not None and s.vc[0] != s.version:
            t = type_of(s.data)
            self.spoiled = True
            return Spoiled(t, version_error(s, node, t.shape, t.dtype, index))
        data = s.data
        if not self.create_graph:
            return data if type(data) is Value or not self.outer.recording else self.outer.lift(wrap(data))
        t = wrap(data)
        if edge is not None:
            t._edge, t._rg = edge, True
        return t

    def record(self, node: Node) -> OpRecord:
        if self.direct:
            operands = [self._read(s, node, i) for i, s in enumerate(node.operands)]
            results = [self._read(s, node, len(operands) + i) for i, s in enumerate(node.results)]
        else:
            pairs = zip(node.operands, node.edges, strict=True)
            operands = [self.unpack(s, e, node, i) for i, (s, e) in enumerate(pairs)]
            n = len(operands)
            results = [self.unpack(s, (node, i), node, n + i) for i, s in enumerate(node.results)]
        keys = [(node, i) for i in range(len(results))]
        prim: Any = node.prim
        if (
            self.direct
            and type(prim) is Primitive
            and prim.kind is not Kind.CONTROL
            and (prim.kind is Kind.CONTRACT or is_large(operands, results))
        ):
            prim = Gradient(prim, tuple([i for i, e in enumerate(node.edges) if e is not None]))
        return OpRecord(prim, operands, results, node.attrs, node.regions, node.edges, keys)

    def _read(self, s: Any, node: Node, index: int) -> Any:
        """``unpack`` where arrays flow: the common case first."""
        if type(s) is tuple:
            return ArrayType(*s)
        if type(s) is not Saved:
            return s
        if s.vc is None or s.vc[0] == s.version:
            return s.data
        return self.unpack(s, None, node, index)

    def interpreter(self) -> Interpreter:
        base: Interpreter = self.outer
        if self.direct:
            base = Direct(base)
        elif self.create_graph:
            base = Taping(base)
        return SpoilAware(base) if self.spoiled else base


def run_backward(
    roots: Sequence[tuple[Edge, Any]],
    wanted: Sequence[Edge] | None,
    *,
    retain_graph: bool,
    create_graph: bool,
    accumulate: bool,
) -> dict[Edge, Tensor]:
    """Walk back from ``roots`` (edge and cotangent tensor). Gradients of the ``wanted`` edges are returned,
    or, with
    ``accumulate``, added to ``.grad`` (``wanted`` None: of all leaves)."""
    walk = Walk(create_graph)
    nodes = reachable([e[0] for e, _ in roots])
    leaves = [n for n in nodes if isinstance(n, AccumulateGrad)]
    inner = [n for n in nodes if not isinstance(n, AccumulateGrad)]
    needed: set[Edge] = {(n, 0) for n in leaves} if wanted is None else set(wanted)
    if any(n.freed for n in inner):
        raise RuntimeError(
            "Trying to backward through the graph a second time (or directly access saved tensors after "
            "they have already been freed). Saved intermediate values of the graph are freed when you call "
            ".backward() or autograd.grad(). Specify retain_graph=True if you need to backward through the "
            "graph a second time or if you need to access saved tensors after calling backward."
        )
    found = _propagate(walk, inner, roots, needed, wanted is None)
    if not retain_graph:
        for n in inner:
            n.free()
    grads = {e: walk.tensor(g) for e, g in found.items()}
    if accumulate:
        held = {id(ct._data) for _, ct in roots if isinstance(ct, Tensor)}
        _accumulate_all(leaves, grads, create_graph, held)
    return grads


def _propagate(
    walk: Walk, nodes: Sequence[Node], roots: Any, needed: set[Edge], everything: bool
) -> dict[Edge, Any]:
    """The cotangents of the ``needed`` edges; ``everything``: those are all leaves."""
    leaves = [n for n, _ in needed if isinstance(n, AccumulateGrad)]
    on_arrays = walk.direct and all(type(ct._data) is np.ndarray for _, ct in roots)
    if everything and on_arrays and is_plain(nodes, leaves):
        return _propagate_arrays(walk, nodes, roots, leaves)
    records = [walk.record(n) for n in nodes]
    watched = {(n, i) for n in nodes if n.retained for i in n.retained}
    watched.update((n, i) for n in nodes if n.hooks for i in n.hooks)

    def on_cotangent(edge: Any, ct: Any) -> Any:
        if type(ct) is not Spoiled:
            return _run_hooks(walk, edge, ct)
        if edge in needed or edge in watched:
            raise ct.error
        return None

    plain = not (walk.spoiled or watched or any(_has_hooks(n) for n, _ in needed))
    before, interp_token = mode.grad, _current.set(walk.interpreter())
    mode.grad = walk.create_graph
    token = quiet.enter()
    try:
        hooks = None if plain else on_cotangent
        cotangents: dict[Any, Any] = {**_cotangents(walk, roots)}
        walked = (records, cotangents, needed | watched, hooks)
        own = plain and all(type(n.prim) is Primitive for n in nodes)  # no function of the user's runs
        found: dict[Any, Any] = walk.outer.apart(backprop, *walked) if own else backprop(*walked)
    finally:
        quiet.leave(token)
        mode.grad = before
        _current.reset(interp_token)
    return {e: g for e, g in found.items() if e in needed} if watched else found


def _propagate_arrays(
    walk: Walk, nodes: Sequence[Node], roots: Any, leaves: Sequence[AccumulateGrad]
) -> dict[Edge, Any]:
    before, interp_token = mode.grad, _current.set(walk.interpreter())
    mode.grad = False
    token = quiet.enter()
    try:
        return walk_arrays(nodes, _cotangents(walk, roots), leaves)
    finally:
        quiet.leave(token)
        mode.grad = before
        _current.reset(interp_token)


def _cotangents(walk: Walk, roots: Any) -> dict[Edge, Any]:
    out: dict[Edge, Any] = {}
    for edge, ct in roots:
        ct = walk.flowing(ct)
        old = out.get(edge)
        out[edge] = ct if old is None else old + ct
    return out


def _has_hooks(node: Node) -> bool:
    return isinstance(node, AccumulateGrad) and bool(node.variable._hooks)


def _run_hooks(walk: Walk, edge: Edge, ct: Any) -> Any:
    """Tensor hooks in order of registration; then what ``retain_grad`` asked for."""
    node, i = edge
    changed = None
    hooks = node.variable._hooks if isinstance(node, AccumulateGrad) else (node.hooks or {}).get(i)
    if hooks:
        t = walk.tensor(ct)
        for hook in list(hooks.values()):
            got = _outside(walk, hook, t)
            if got is not None:
                if not isinstance(got, Tensor):
                    raise TypeError("hooks on tensors must return None or a Tensor")
                t = got
        changed = walk.flowing(t)
    if node.retained and i in node.retained:
        kept = node.retained[i]()
        if kept is not None:
            new = walk.tensor(ct if changed is None else changed)
            kept._grad = new if kept._grad is None else kept._grad + new
    return changed


def _outside(walk: Walk, fn: Any, *args: Any) -> Any:
    """Call user code under the interpreter that was current before the walk."""
    with interpreting(walk.outer):
        return fn(*args)


def _accumulate_all(
    leaves: Sequence[AccumulateGrad], grads: dict[Edge, Tensor], create_graph: bool, held: set[int]
) -> None:
    """Add to the leaves; ``held``: the ids of arrays that somebody else holds, and no leaf may keep."""
    for n in leaves:
        g = grads.get((n, 0))
        if g is None:
            continue
        if n.variable._grad is None and not create_graph and type(g._data) is not Value:
            if id(g._data) in held:
                g = wrap(copy_of(g._data))
            held.add(id(g._data))
        accumulate_grad(n.variable, g, create_graph)


def accumulate_grad(leaf: Tensor, g: Tensor, create_graph: bool) -> None:
    """Add ``g`` to ``leaf.grad``: in place unless a graph of the gradient is wanted."""
    old = leaf._grad
    if old is None:
        leaf._grad = g if create_graph else _own_grad(g)
    elif create_graph:
        leaf._grad = old + g
    elif not old._rg and interpreter() is _NUMPY and type(old._data) is np.ndarray:
        token = quiet.enter()
        try:
            np.add(old._data, g._data, out=old._data)
        finally:
            quiet.leave(token)
        old._vc[0] += 1
    else:
        with no_grad():
            if old.requires_grad:
                leaf._grad = old + g
            else:
                old.add_(g)
    if leaf._post_hooks:
        for hook in list(leaf._post_hooks.values()):
            hook(leaf)


def _own_grad(g: Tensor) -> Tensor:
    """A gradient that nobody else holds the memory of."""
    d = g._data
    if type(d) is np.ndarray:
        if not is_whole(d) or not d.flags.writeable or not d.flags.c_contiguous:
            d = np.array(d, order="C")
        else:
            return wrap(d) if g._edge is not None else g
        return wrap(d)
    if type(d) is not Value and (d.base is not None or not d.contiguous):
        return wrap(d.copy())
    return g


def _root_gradient(t: Tensor, gradient: Tensor | None) -> Tensor:
    from weft.creation import ones_like

    if gradient is None:
        if t.numel() != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        if t.dtype.is_complex:
            raise RuntimeError(
                f"grad can be implicitly created only for real scalar outputs but got {t.dtype}"
            )
        if interpreter() is _NUMPY and type(t._data) is np.ndarray:
            return wrap(np.ones(t._data.shape, t._data.dtype))
        return ones_like(t.detach())
    if not isinstance(gradient, Tensor):
        raise TypeError(f"gradients can be either Tensors or None, but got {type(gradient).__name__}")
    if gradient.shape != t.shape:
        raise RuntimeError(
            f"Mismatch in shape: grad_output[0] has a shape of {gradient.shape} and output[0] has a shape of "
            f"{t.shape}."
        )
    if t.dtype.is_complex != gradient.dtype.is_complex:
        raise RuntimeError(
            "For complex Tensors, both grad_output and output are required to have the same dtype. Mismatch "
            f"in dtype: grad_output[0] has a dtype of {gradient.dtype} and output[0] has a dtype of "
            f"{t.dtype}."
        )
    return gradient if gradient.dtype is t.dtype else gradient.to(t.dtype)


def _roots(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[tuple[Edge, Any]]:
    roots: list[tuple[Edge, Any]] = []
    for i, (t, g) in enumerate(zip(tensors, gradients, strict=True)):
        edge = edge_of(t)
        if edge is None:
            raise RuntimeError(f"element {i} of tensors does not require grad and does not have a grad_fn")
        roots.append((edge, _root_gradient(t, g)))
    return roots


def _as_list(x: Any) -> list[Any]:
    return [x] if isinstance(x, Tensor) else list(x)


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Add the gradients of ``tensors`` to ``.grad`` of the leaves (of ``inputs`` alone if given).

    ``grad_tensors``: one cotangent per tensor, of its shape; None for scalars. Raises RuntimeError where
    nothing requires grad, on a wrong shape, on a second walk through a freed graph, and for values modified
    in place.
    """
    tensors = _as_list(tensors)
    gradients = [None] * len(tensors) if grad_tensors is None else _as_list(grad_tensors)
    targets = None if inputs is None else _as_list(inputs)
    if targets == []:
        raise RuntimeError("'inputs' argument to 'backward' cannot be empty.")
    wanted = None if targets is None else [_wanted_edge(t) for t in targets]
    roots = _roots(tensors, gradients)
    retain = create_graph if retain_graph is None else retain_graph
    grads = run_backward(
        roots, wanted, retain_graph=retain, create_graph=create_graph, accumulate=wanted is None
    )
    if wanted is not None and targets is not None:
        for t, e in zip(targets, wanted, strict=True):
            if e in grads:
                accumulate_grad(t, grads[e], create_graph)


def _wanted_edge(t: Tensor) -> Edge:
    edge = edge_of(t)
    if edge is None:
        raise RuntimeError("One of the differentiated Tensors does not require grad")
    return edge


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``outputs`` with respect to ``inputs``, as a tuple; ``.grad`` is left alone.

    >>> import weft
    >>> x = weft.tensor(3.0, requires_grad=True)
    >>> weft.autograd.grad(x ** 2, x)
    (tensor(6.),)
    """
    if is_grads_batched:
        raise ValueError("is_grads_batched=True is not supported: call grad once per gradient")
    outputs, inputs = _as_list(outputs), _as_list(inputs)
    gradients = [None] * len(outputs) if grad_outputs is None else _as_list(grad_outputs)
    if len(gradients) != len(outputs):
        raise RuntimeError(f"got {len(outputs)} tensors and {len(gradients)} gradients")
    roots = _roots(outputs, gradients)
    wanted = [_wanted_edge(t) for t in inputs]
    retain = create_graph if retain_graph is None else retain_graph
    grads = run_backward(roots, wanted, retain_graph=retain, create_graph=create_graph, accumulate=False)
    return tuple(
        _one_grad(t, grads.get(e), allow_unused, materialize_grads)
        for t, e in zip(inputs, wanted, strict=True)
    )


def _one_grad(t: Tensor, g: Tensor | None, allow_unused: bool | None, materialize: bool) -> Tensor | None:
    if g is None:
        if materialize:
            from weft.creation import zeros_like

            return zeros_like(t.detach())
        if not allow_unused:
            raise RuntimeError(
                "One of the differentiated Tensors appears to not have been used in the graph. Set "
                "allow_unused=True if this is the desired behavior."
            )
        return None
    d = g._data
    if type(d) is np.ndarray and g._edge is None and (not is_whole(d) or not d.flags.writeable):
        return _own_grad(g)
    return g
