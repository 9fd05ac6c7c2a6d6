"""Small functions of the tensor API that are one or two calls of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from weft.casting import exact_on_gpu
from weft.creation import arange
from weft.dtypes import Size, get_default_dtype
from weft.ops.common import broadcast_shapes as _broadcast_shapes
from weft.ops.common import shape_of, wrap_dim
from weft.ops.index import scatter_add
from weft.ops.inplace import inplace
from weft.ops.math import where
from weft.ops.reduce import norm
from weft.ops.reduce import sum as _sum
from weft.ops.shape import diag_embed, flip, matrix_transpose, tensor_split
from weft.tensor import Tensor


def broadcast_shapes(*shapes: Any) -> Size:
    """The shape that all the shapes broadcast to.

    >>> broadcast_shapes((2, 1), (3,))
    weft.Size([2, 3])
    """
    return Size(_broadcast_shapes(*((s,) if isinstance(s, int) else tuple(s) for s in shapes)))


def detach(input: Tensor) -> Tensor:
    """A tensor on the same storage without history."""
    return input.detach()


def is_signed(input: Tensor) -> bool:
    return input.is_signed()


def is_same_size(input: Tensor, other: Tensor) -> bool:
    return shape_of(input) == shape_of(other)


def is_inference(input: Tensor) -> bool:
    return input.is_inference()


def resolve_conj(input: Tensor) -> Tensor:
    """The tensor itself: conjugates are computed at once here."""
    return input


resolve_neg = resolve_conj


def is_conj(input: Tensor) -> bool:
    return False


def adjoint(input: Tensor) -> Tensor:
    """The conjugate transpose of the last two dimensions."""
    return matrix_transpose(input).conj()


def fill(input: Tensor, value: Any) -> Tensor:
    """A tensor like ``input`` of one value."""
    return input.clone().fill_(value)


def hsplit(input: Tensor, indices_or_sections: Any) -> tuple[Tensor, ...]:
    """``tensor_split`` along dimension 1 (0 for vectors)."""
    return tensor_split(input, indices_or_sections, 0 if input.ndim == 1 else 1)


def vsplit(input: Tensor, indices_or_sections: Any) -> tuple[Tensor, ...]:
    """``tensor_split`` along dimension 0."""
    return tensor_split(input, indices_or_sections, 0)


def dsplit(input: Tensor, indices_or_sections: Any) -> tuple[Tensor, ...]:
    """``tensor_split`` along dimension 2."""
    return tensor_split(input, indices_or_sections, 2)


def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """The matrix with the elements on its diagonal."""
    return diag_embed(input.reshape(-1), offset)


def sum_to_size(input: Tensor, *size: Any) -> Tensor:
    """Summed over the dimensions that broadcasting ``size`` to this shape would expand."""
    target = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
    s = shape_of(input)
    lead = len(s) - len(target)
    if lead < 0 or _broadcast_shapes(target, s) != s:
        raise RuntimeError(f"size {{{list(target)}}} is not expandable to size {{{list(s)}}}.")
    dims = [*range(lead), *(i + lead for i, n in enumerate(target) if n == 1 and s[i + lead] != 1)]
    return (_sum(input, dims, True) if dims else input).reshape(target)


def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """input * 2 ** other."""
    return input * other.to(get_default_dtype()).exp2()


def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """A copy with ``source`` written (or added) at flat indices."""
    n = input.numel()
    flat, at = input.reshape(-1), index.reshape(-1)
    at = where(at < 0, at + n, at)
    src = source.reshape(-1)
    out = scatter_add(flat, 0, at, src) if accumulate else flat.index_copy(0, at, src)
    return out.reshape(shape_of(input))


@exact_on_gpu
def renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Slices along ``dim`` scaled down to a p-norm of at most ``maxnorm``."""
    d = wrap_dim(dim, input.ndim)
    others = tuple(i for i in range(input.ndim) if i != d)
    n = norm(input, p, others, True)
    return input * where(n > maxnorm, maxnorm / (n + 1e-7), 1.0)


def unravel_index(indices: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Flat indices as one index per dimension."""
    out = []
    rest = indices
    for n in reversed(tuple(shape)):
        out.append(rest % n)
        rest = rest.div(n, rounding_mode="floor")
    return tuple(reversed(out))


def reversed_(input: Tensor) -> Tensor:
    """``reversed(tensor)``: flipped along the first dimension."""
    return flip(input, 0) if input.ndim else input


def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """The matrix of powers of a vector."""
    powers = arange(shape_of(x)[0] if N is None else N, device=x.device)
    return x.unsqueeze(-1) ** (powers if increasing else powers.flip(0)).to(x.dtype)


def _cosine_window(n: int, periodic: bool, dtype: Any, coefficients: Sequence[float]) -> Tensor:
    if n == 1:
        return (arange(1) + 1).to(dtype or get_default_dtype())
    angle = arange(n).double() * (2 * math.pi / (n if periodic else n - 1))
    total = angle * 0
    for k, c in enumerate(coefficients):
        total = total + (-1) ** k * c * (angle * k).cos()
    return total.to(dtype or get_default_dtype())


def hann_window(window_length: int, periodic: bool = True, *, dtype: Any = None, **kw: Any) -> Tensor:
    """The Hann window."""
    return _cosine_window(window_length, periodic, dtype, (0.5, 0.5))


def hamming_window(
    window_length: int, periodic: bool = True, alpha: float = 0.54, beta: float = 0.46, *, dtype: Any = None
) -> Tensor:
    """The Hamming window."""
    return _cosine_window(window_length, periodic, dtype, (alpha, beta))


def blackman_window(window_length: int, periodic: bool = True, *, dtype: Any = None, **kw: Any) -> Tensor:
    """The Blackman window."""
    return _cosine_window(window_length, periodic, dtype, (0.42, 0.5, 0.08))


IN_PLACE = {"put_": inplace(put), "renorm_": inplace(renorm), "ldexp_": inplace(ldexp)}
