"""``autograd.Function``: gradients given by the user."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from weft.autograd.grad_mode import enable_grad, mode, no_grad
from weft.autograd.tape import Node, Saved, TypeStub, edge_of, version_error
from weft.dispatch import Taping, interpreter, wrap, wrap_value
from weft.ir.graph import Value
from weft.ir.prims.base import _current, interpreting, type_of
from weft.tensor import Tensor
from weft.views import view_of_whole


class FunctionCtx:
    """What ``forward`` leaves for ``backward``; free attributes, saved tensors, and the marks below."""

    def __init__(self) -> None:
        self._saved: tuple[Any, ...] = ()
        self._dirty: tuple[Tensor, ...] = ()
        self._non_differentiable: tuple[Tensor, ...] = ()
        self._materialize = True
        self.needs_input_grad: tuple[bool, ...] = ()
        self._node: Node | None = None

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs or outputs for ``backward`` (see ``saved_tensors``), and guard them."""
        self._to_save = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Accepted for compatibility; forward mode has its own module."""

    def mark_dirty(self, *args: Tensor) -> None:
        """Name the inputs that ``forward`` modified in place."""
        self._dirty = args

    def mark_non_differentiable(self, *args: Tensor) -> None:
        """Name the outputs that have no gradient."""
        self._non_differentiable = args

    def set_materialize_grads(self, value: bool) -> None:
        """Whether missing gradients of outputs come as zeros (True) or None."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """The tensors of ``save_for_backward``. RuntimeError after the graph was freed."""
        node = self._node
        if node is not None and node.freed:
            raise RuntimeError(
                "Trying to backward through the graph a second time (or directly access saved tensors after "
                "they have already been freed). Saved intermediate values of the graph are freed when you "
                "call .backward() or autograd.grad(). Specify retain_graph=True if you need to backward "
                "through the graph a second time or if you need to access saved tensors after calling "
                "backward."
            )
        return tuple(self._unpack(s) for s in self._saved)

    def _unpack(self, s: Any) -> Tensor | None:
        if s is None:
            return None
        kind, value, saved = s
        node = self._node
        if saved.vc[0] != saved.version and node is not None:
            t = type_of(saved.data)
            raise version_error(saved, node, t.shape, t.dtype, len(node.edges) + 1)
        if kind == "tensor":
            return value
        t = wrap(saved.data)
        if node is not None and value >= 0:
            t._edge, t._rg = (node, value), True
        return t

    saved_variables = saved_tensors

    def _keep(self, outputs: Sequence[Any]) -> None:
        """Saved outputs are kept as values, so that no cycle through the node keeps everything alive."""
        kept = []
        for t in getattr(self, "_to_save", ()):
            if t is None:
                kept.append(None)
                continue
            if not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward can only save variables, but argument is of type {type(t).__name__}"
                )
            position = next((i for i, o in enumerate(outputs) if o is t), None)
            saved = Saved(t._data, t._vc)
            kept.append(("tensor", t, saved) if position is None else ("output", position, saved))
        self._saved = tuple(kept)


class _FunctionPrimitive:
    """Stands where a primitive stands on the tape: its gradient rule is the user's ``backward``."""

    needs, kind, nondifferentiable = "", None, False

    def __init__(self, cls: Any, ctx: Any, positions: Sequence[int], n_args: int) -> None:
        self.cls, self.ctx, self.positions, self.n_args = cls, ctx, positions, n_args
        self.name = cls.__name__

    def vjp(self, cts: Any, outs: Any, *operands: Any, **attrs: Any) -> Sequence[Any]:
        outs = outs if isinstance(outs, tuple) else (outs,)
        cts = cts if isinstance(cts, tuple) else (cts,)
        inner = _current.get()
        taped = _taping(inner)
        outer = interpreter()
        grads = [self._incoming(ct, o, outer) for ct, o in zip(cts, outs, strict=True)]
        with enable_grad() if taped else no_grad(), interpreting(outer):
            got = self.cls.backward(self.ctx, *grads)
        got = got if isinstance(got, tuple) else (got,)
        if len(got) < self.n_args or any(g is not None for g in got[self.n_args :]):
            raise RuntimeError(
                f"function {self.cls.__name__}Backward returned an incorrect number of gradients (expected "
                f"{self.n_args}, got {len(got)})"
            )
        return [
            self._outgoing(got[p], o, taped, i)
            for i, (p, o) in enumerate(zip(self.positions, operands, strict=True))
        ]

    def _incoming(self, ct: Any, out: Any, outer: Any) -> Any:
        if ct is None:
            if not self.ctx._materialize:
                return None
            from weft.creation import zeros

            t = type_of(out)
            return zeros(t.shape, dtype=t.dtype, device=t.device)
        if isinstance(ct, Tensor):
            return ct
        return wrap_value(outer, ct) if type(ct) is Value else wrap(ct)

    def _outgoing(self, g: Any, operand: Any, taped: bool, i: int) -> Any:
        if g is None:
            return None
        t = type_of(operand)
        if tuple(g.shape) != tuple(t.shape):
            g = _reduce_to(g, t.shape, f"{self.cls.__name__}Backward", i)
        if g.dtype is not t.dtype:
            g = g.to(t.dtype)
        from weft.dispatch import payload

        return g if taped else payload(g, interpreter())


def _taping(interp: Any) -> bool:
    while interp is not None:
        if type(interp) is Taping:
            return True
        interp = getattr(interp, "inner", None)
    return False


def _reduce_to(g: Tensor, shape: Sequence[int], name: str, i: int) -> Tensor:
    """A gradient that was broadcast is summed back; RuntimeError where it does not fit."""
    from weft.ops.common import broadcast_shapes

    try:
        fits = broadcast_shapes(shape, g.shape) == tuple(g.shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise RuntimeError(
            f"Function {name} returned an invalid gradient at index {i} - got {list(g.shape)} but expected "
            f"shape compatible with {list(shape)}"
        )
    lead = g.ndim - len(shape)
    dims = [*range(lead), *(j + lead for j, n in enumerate(shape) if n == 1 and g.shape[j + lead] != 1)]
    return (g.sum(dims, keepdim=True) if dims else g).reshape(tuple(shape))


class Function:
    """Base class of operations with their own gradient.

    Subclasses give static methods ``forward(ctx, *args)`` and ``backward(ctx, *grad_outputs)`` (one gradient
    per argument, None for those without), or ``forward(*args)`` with ``setup_context(ctx, inputs, output)``.

    >>> import weft
    >>> class Double(Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return x * 2
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return g * 2
    >>> x = weft.ones(1, requires_grad=True)
    >>> Double.apply(x).backward()
    >>> x.grad
    tensor([2.])
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> Any:
        raise RuntimeError("setup_context is not defined")

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run ``forward`` without recording; record ``backward`` as its gradient."""
        ctx: Any = FunctionCtx()
        tensors = [(i, a) for i, a in enumerate(args) if isinstance(a, Tensor)]
        edges = [edge_of(a) for _, a in tensors]
        by_position = dict(zip((i for i, _ in tensors), edges, strict=True))
        ctx.needs_input_grad = tuple(by_position.get(i) is not None for i in range(len(args)))
        record = mode.grad and any(e is not None for e in edges)
        with no_grad():
            if cls.setup_context is Function.setup_context:
                out = cls.forward(ctx, *args, **kwargs)
            else:
                out = cls.forward(*args, **kwargs)
                cls.setup_context(ctx, args, out)
        single = not isinstance(out, (tuple, list))
        raw = [out] if single else list(out)
        outputs = [_fresh_output(o, args, ctx) for o in raw]
        if record:
            _record(cls, ctx, tensors, edges, outputs, raw, len(args))
        ctx._keep(outputs if record else raw)
        return outputs[0] if single else tuple(outputs)


def _fresh_output(o: Any, args: Sequence[Any], ctx: Any) -> Any:
    """An input that comes back unchanged is another tensor on the same storage."""
    if isinstance(o, Tensor) and any(o is a for a in args) and not any(o is d for d in ctx._dirty):
        return view_of_whole(o)
    return o


def _record(cls: Any, ctx: Any, tensors: Any, edges: Any, outputs: list[Any], raw: list[Any], n: int) -> None:
    prim = _FunctionPrimitive(cls, ctx, [i for i, _ in tensors], n)
    outs = [o for o in outputs if isinstance(o, Tensor)]
    node = Node(
        prim, {}, (), edges, [TypeStub(t._ir_type) for _, t in tensors], [TypeStub(o._ir_type) for o in outs]
    )
    ctx._node = node
    for i, (o, r) in enumerate(zip(outputs, raw, strict=True)):
        skip = any(r is m or o is m for m in ctx._non_differentiable)
        if isinstance(o, Tensor) and o.dtype.is_inexact and not skip:
            if any(o is d for d in ctx._dirty):
                o._vc[0] += 1
            o._edge, o._rg = (node, i), True


def once_differentiable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a ``backward`` that cannot be differentiated again: its gradients have no history."""

    @functools.wraps(fn)
    def wrapped(ctx: Any, *args: Any) -> Any:
        with no_grad():
            return fn(ctx, *args)

    return wrapped
