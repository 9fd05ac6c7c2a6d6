"""Gradients against finite differences, first and second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.autograd.engine import grad
from weft.autograd.grad_mode import enable_grad, no_grad
from weft.tensor import Tensor


class GradcheckError(RuntimeError):
    """The analytical and numerical gradients differ."""


def _outputs(fn: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    out = fn(*inputs)
    outs = [out] if isinstance(out, Tensor) else list(out)
    return [o for o in outs if isinstance(o, Tensor) and o.dtype.is_inexact]


def _directions(t: Tensor) -> list[complex]:
    return [1.0, 1j] if t.dtype.is_complex else [1.0]


def _numerical(
    fn: Callable[..., Any], inputs: Sequence[Any], x: Tensor, eps: float
) -> list[list[np.ndarray]]:
    """For each element of ``x`` (and, if complex, each of its two directions) the change of each output."""
    data = x.detach().numpy()
    flat = data.reshape(-1) if data.flags.c_contiguous else None
    rows: list[list[np.ndarray]] = []
    for i in range(data.size):
        where: Any = i if flat is not None else np.unravel_index(i, data.shape)
        target = flat if flat is not None else data
        for direction in _directions(x):
            old = target[where].copy()
            values = []
            for s in (1, -1):
                target[where] = old + s * eps * direction
                with no_grad():
                    values.append([np.array(o.detach().numpy()) for o in _outputs(fn, inputs)])
            target[where] = old
            rows.append([(a - b) / (2 * eps) for a, b in zip(*values, strict=True)])
    return rows


def _compare(analytic: np.ndarray, numeric: np.ndarray, atol: float, rtol: float, what: str) -> None:
    if not np.allclose(analytic, numeric, rtol=rtol, atol=atol, equal_nan=False):
        raise GradcheckError(f"Jacobian mismatch for {what}\nnumerical: {numeric}\nanalytical: {analytic}")


def _check_output(
    outs: list[Tensor], j: int, xs: list[Tensor], numeric: dict[int, Any], atol: float, rtol: float
) -> None:
    """Every element of output ``j``, in each direction, pulled back to every input."""
    o = outs[j]
    for k in range(o.numel()):
        for direction in _directions(o):
            v = np.zeros(tuple(o.shape), o.dtype.np)
            v.reshape(-1)[k] = direction
            from weft.creation import from_numpy

            grads = grad([o], xs, [from_numpy(v)], retain_graph=True, allow_unused=True)
            for i, (x, g) in enumerate(zip(xs, grads, strict=True)):
                found = np.zeros(tuple(x.shape), x.dtype.np) if g is None else g.detach().numpy()
                want = _pulled_back(numeric[i], j, k, direction, x)
                _compare(found, want, atol, rtol, f"output {j} (element {k}) with respect to input {i}")


def _pulled_back(rows: Any, j: int, k: int, direction: complex, x: Tensor) -> np.ndarray:
    """The gradient by finite differences: d Re(conj(direction) * out) by each real direction of ``x``."""
    change = np.array([np.real(np.conj(direction) * r[j].reshape(-1)[k]) for r in rows], dtype=np.float64)
    if x.dtype.is_complex:
        change = change.reshape(-1, 2)
        return (change[:, 0] + 1j * change[:, 1]).reshape(tuple(x.shape))
    return change.reshape(tuple(x.shape))


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    check_undefined_grad: bool = True,
    nondet_tol: float = 0.0,
    fast_mode: bool = False,
    **kw: Any,
) -> bool:
    """Compare the gradients of ``func`` with central differences; inputs should be float64 (or complex128).

    Raises GradcheckError (or returns False with ``raise_exception=False``) where they differ.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    xs = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if not xs:
        raise ValueError(
            "gradcheck expects at least one input tensor to require gradient, but none of the them have "
            "requires_grad=True."
        )
    try:
        with enable_grad():
            outs = _outputs(func, inputs)
        numeric = {i: _numerical(func, inputs, x, eps) for i, x in enumerate(xs)}
        for j, o in enumerate(outs):
            if o.requires_grad:
                _check_output(outs, j, xs, numeric, atol, rtol)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    gen_non_contig_grad_outputs: bool = False,
    nondet_tol: float = 0.0,
    **kw: Any,
) -> bool:
    """As :func:`gradcheck`, of the gradient of ``func``: second derivatives."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    outs = [o for o in _outputs(func, inputs) if o.requires_grad]
    if grad_outputs is None:
        from weft.random import Generator, randn

        g = Generator().manual_seed(0)
        grad_outputs = [randn(tuple(o.shape), dtype=o.dtype, generator=g).requires_grad_() for o in outs]
    grad_outputs = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    n = len(inputs)

    def gradient(*args: Any) -> tuple[Tensor, ...]:
        xs = [x for x in args[:n] if isinstance(x, Tensor) and x.requires_grad]
        with enable_grad():
            results = [o for o in _outputs(func, args[:n]) if o.requires_grad]
            got = grad(results, xs, list(args[n:]), create_graph=True, allow_unused=True)
        return tuple(g for g in got if g is not None and g.requires_grad)

    return gradcheck(
        gradient, (*inputs, *grad_outputs), eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception
    )
