"""Products of matrices and tensors: everything is one ``dot_general``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from weft.casting import exact, exact_on_cpu, lower, lower_on_cpu, lower_on_gpu, widest, widest_on_gpu
from weft.dispatch import apply
from weft.ir import prims as P
from weft.ops.common import broadcast_shapes, broadcast_to, check_tensor, shape_of, wrap_dim
from weft.prepared import prepared
from weft.tensor import Tensor


def _same_dtype(a: Tensor, b: Tensor) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(
            f"expected m1 and m2 to have the same dtype, but got: {_c_name(a)} != {_c_name(b)}"
        )


def _c_name(t: Tensor) -> str:
    names: dict[str, str] = {
        "float32": "float",
        "float64": "double",
        "int64": "long int",
        "int32": "int",
        "float16": "c10::Half",
        "bfloat16": "c10::BFloat16",
        "int16": "short",
        "int8": "signed char",
        "uint8": "unsigned char",
        "bool": "bool",
    }
    return names.get(t.dtype.long_name) or str(t.dtype.long_name)


def _dot(a: Tensor, b: Tensor, ca: Sequence[int], cb: Sequence[int], ba: Any = (), bb: Any = ()) -> Tensor:
    return apply(P.dot_general_p, a, b, contract=(tuple(ca), tuple(cb)), batch=(tuple(ba), tuple(bb)))


@widest
@prepared
def dot(input: Tensor, other: Tensor) -> Tensor:
    """The inner product of two vectors."""
    if input.ndim != 1 or other.ndim != 1:
        raise RuntimeError(f"1D tensors expected, but got {input.ndim}D and {other.ndim}D tensors")
    if shape_of(input) != shape_of(other):
        raise RuntimeError(
            f"inconsistent tensor size, expected tensor [{input.numel()}] and src [{other.numel()}] to have "
            f"the same number of elements, but got {input.numel()} and {other.numel()} elements respectively"
        )
    _same_dtype(input, other)
    return _dot(input, other, (0,), (0,))


inner_product = dot


@prepared
def inner(input: Tensor, other: Tensor) -> Tensor:
    """The products along the last dimensions."""
    if input.ndim == 0 or other.ndim == 0:
        return input * other
    return _dot(input, other, (input.ndim - 1,), (other.ndim - 1,))


@widest
def vdot(input: Tensor, other: Tensor) -> Tensor:
    return dot(input.conj(), other)


@lower_on_gpu
@prepared
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """Matrix times vector."""
    if input.ndim != 2 or vec.ndim != 1:
        raise RuntimeError(f"vector + matrix @ vector expected, got {vec.ndim}, {input.ndim}, {vec.ndim}")
    if input.shape[1] != vec.shape[0]:
        raise RuntimeError(
            f"size mismatch, got input ({input.shape[0]}), mat ({input.shape[0]}x{input.shape[1]}), vec "
            f"({vec.shape[0]})"
        )
    _same_dtype(input, vec)
    return _dot(input, vec, (1,), (0,))


@lower
@prepared
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    if input.ndim != 2:
        raise RuntimeError("self must be a matrix")
    if mat2.ndim != 2:
        raise RuntimeError("mat2 must be a matrix")
    _check_inner(input, mat2)
    return _dot(input, mat2, (1,), (0,))


def _check_inner(a: Tensor, b: Tensor) -> None:
    left, right = shape_of(a), shape_of(b)
    if left[-1] != right[-2]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({prod(left[:-1])}x{left[-1]} and "
            f"{right[-2]}x{right[-1]})"
        )
    _same_dtype(a, b)


@lower
@prepared
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two batches of matrices."""
    if input.ndim != 3 or mat2.ndim != 3:
        raise RuntimeError("batch1 must be a 3D tensor" if input.ndim != 3 else "batch2 must be a 3D tensor")
    if input.shape[0] != mat2.shape[0] or input.shape[2] != mat2.shape[1]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to be: [{input.shape[0]}, "
            f"{input.shape[2]}] but got: [{mat2.shape[0]}, {mat2.shape[1]}]."
        )
    _same_dtype(input, mat2)
    return _dot(input, mat2, (2,), (1,), (0,), (0,))


@lower
@prepared
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product: vectors, matrices and batches (broadcast), as ``@``.

    >>> import weft
    >>> (weft.ones(2, 3) @ weft.ones(3)).shape
    weft.Size([2])
    """
    check_tensor(input, "matmul")
    check_tensor(other, "matmul", "other")
    a, b = input.ndim, other.ndim
    if a == 0 or b == 0:
        raise RuntimeError(f"both arguments to matmul need to be at least 1D, but they are {a}D and {b}D")
    if b == 1:
        return _times_vector(input, other) if a > 1 else dot(input, other)
    if a == 1:
        out = matmul(input.reshape(1, -1), other)
        return apply(P.reshape_p, out, shape=shape_of(out)[:-2] + shape_of(out)[-1:])
    if b == 2:
        _check_inner(input, other)
        return _dot(input, other, (a - 1,), (0,))
    return _batched(input, other)


def _times_vector(m: Tensor, v: Tensor) -> Tensor:
    if m.ndim == 2:
        return mv(m, v)
    if m.shape[-1] != v.shape[0]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({prod(m.shape[:-1])}x{m.shape[-1]} and "
            f"{v.shape[0]}x1)"
        )
    _same_dtype(m, v)
    return _dot(m, v, (m.ndim - 1,), (0,))


def _batched(x: Tensor, y: Tensor) -> Tensor:
    _same_dtype(x, y)
    sx, sy = shape_of(x), shape_of(y)
    if sx[-1] != sy[-2]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to be: [{prod(sx[:-2])}, {sx[-1]}] but "
            f"got: [{prod(sy[:-2])}, {sy[-2]}]."
        )
    batch = broadcast_shapes(sx[:-2], sy[:-2])
    x, y = broadcast_to(x, batch + sx[-2:]), broadcast_to(y, batch + sy[-2:])
    n = len(batch)
    lead = tuple(range(n))
    return _dot(x, y, (n + 1,), (n,), lead, lead)


@prepared
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """The outer product of two vectors."""
    if input.ndim != 1 or vec2.ndim != 1:
        raise RuntimeError(
            f"outer: Expected 1-D argument {'self' if input.ndim != 1 else 'vec2'}, but got "
            f"{(input if input.ndim != 1 else vec2).ndim}-D"
        )
    return input.reshape(-1, 1) * vec2


ger = outer


def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product."""
    n = max(input.ndim, other.ndim)
    a = (1,) * (n - input.ndim) + shape_of(input)
    b = (1,) * (n - other.ndim) + shape_of(other)
    x = input.reshape([v for d in a for v in (d, 1)])
    y = other.reshape([v for d in b for v in (1, d)])
    return (x * y).reshape([p * q for p, q in zip(a, b, strict=True)])


def _combine(input: Tensor, product: Tensor, beta: Any, alpha: Any) -> Tensor:
    if alpha != 1:
        product = product * alpha
    if beta == 0 and not isinstance(beta, Tensor):
        return product
    return product + (input if beta == 1 else input * beta)


@lower
@prepared
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """beta * input + alpha * (mat1 @ mat2)."""
    return _combine(input, mm(mat1, mat2), beta, alpha)


@lower_on_gpu
@prepared
def addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _combine(input, mv(mat, vec), beta, alpha)


@lower_on_gpu
@prepared
def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _combine(input, outer(vec1, vec2), beta, alpha)


@lower
@prepared
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """beta * input + alpha * (batch1 @ batch2), by batch."""
    return _combine(input, bmm(batch1, batch2), beta, alpha)


@lower
@prepared
def addbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _combine(input, bmm(batch1, batch2).sum(0), beta, alpha)


@lower
def chain_matmul(*matrices: Tensor) -> Tensor:
    out = matrices[0]
    for m in matrices[1:]:
        out = mm(out, m)
    return out


@lower_on_cpu
@widest_on_gpu
@prepared
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """Contraction over ``dims`` trailing/leading dimensions, or over two lists of dimensions."""
    if isinstance(dims, int):
        da, db = tuple(range(a.ndim - dims, a.ndim)), tuple(range(dims))
    else:
        da, db = (
            tuple(wrap_dim(d, x.ndim) for d in (ds if isinstance(ds, (list, tuple)) else (ds,)))
            for ds, x in zip(dims, (a, b), strict=True)
        )
    for i, j in zip(da, db, strict=True):
        if a.shape[i] != b.shape[j]:
            raise RuntimeError(
                f"contracted dimensions need to match, but first has size {a.shape[i]} in dim {i} and second "
                f"has size {b.shape[j]} in dim {j}"
            )
    return _dot(a, b, da, db)


@exact_on_cpu
@prepared
def trace(input: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix."""
    if input.ndim != 2:
        raise RuntimeError(f"trace: expected a matrix, but got tensor with dim {input.ndim}")
    return input.diagonal().sum()


def matrix_power(input: Tensor, n: int) -> Tensor:
    """The n-th power of square matrices, n >= 0."""
    if n < 0:
        raise RuntimeError("matrix_power: negative powers need an inverse, which this function does not take")
    from weft.creation import eye

    out = eye(input.shape[-1], dtype=input.dtype, device=input.device).expand(*shape_of(input)).clone()
    base = input
    while n:
        if n & 1:
            out = matmul(out, base)
        base, n = (matmul(base, base), n >> 1) if n > 1 else (base, 0)
    return out


@widest
@prepared
def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The cross product of vectors of three along ``dim`` (the first of extent 3)."""
    d = wrap_dim(shape_of(input).index(3) if dim is None else dim, input.ndim)
    a, b = (x.unbind(d) for x in (input, other))
    from weft.ops.shape import stack

    return stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], d)


@exact
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0) -> Tensor:
    """The p-norm distances of all pairs of rows."""
    from weft.ops.reduce import norm

    return norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


@lower
def einsum(equation: str, *operands: Any) -> Tensor:
    """The Einstein sum ``"bij,bjk->bik"``; ellipses and repeated letters (diagonals) are understood.

    Operands are contracted pairwise from the left.
    """
    from weft.ops.einsum import run

    ops = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    return run(equation, list(ops))
