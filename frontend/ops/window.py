"""Convolution, pooling and resampling over the trailing one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.casting import lower
from weft.creation import constant
from weft.dispatch import apply
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops.common import convert, shape_of
from weft.ops.shape import constant_pad
from weft.prepared import prepared
from weft.tensor import Tensor

Ints = tuple[int, ...]


def _tuple(v: Any, n: int, name: str = "argument") -> Ints:
    """A number for all dimensions, or one per dimension."""
    if hasattr(v, "__index__"):
        return (v.__index__(),) * n
    out = tuple(int(i) for i in v)
    if len(out) == 1:
        return out * n
    if len(out) != n:
        raise RuntimeError(f"{name} must have {n} elements, got {list(out)}")
    return out


# -- convolution --------------------------------------------------------------------------------------------


def _conv(
    rank: int, input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    batched = input.ndim == rank + 2
    if not batched and input.ndim != rank + 1:
        raise RuntimeError(
            f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to conv{rank}d, but got input "
            f"of size: {list(input.shape)}"
        )
    x = input if batched else input.unsqueeze(0)
    stride, dilation = _tuple(stride, rank, "stride"), _tuple(dilation, rank, "dilation")
    if any(s <= 0 for s in stride):
        raise RuntimeError("non-positive stride is not supported")
    pads = _conv_padding(padding, shape_of(weight)[2:], stride, dilation, rank)
    _check_conv(x, weight, bias, groups, pads, dilation)
    out = apply(
        P.conv_p,
        x,
        weight,
        stride=stride,
        padding=pads,
        lhs_dilation=(1,) * rank,
        rhs_dilation=dilation,
        groups=groups,
    )
    return _finish(out, bias, rank, batched)


def _finish(out: Tensor, bias: Any, rank: int, batched: bool) -> Tensor:
    if bias is not None:
        out = out + bias.reshape((1, -1) + (1,) * rank)
    return out if batched else out.squeeze(0)


def _conv_padding(padding: Any, kernel: Ints, stride: Ints, dilation: Ints, rank: int) -> tuple[Ints, ...]:
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * rank
        if padding != "same":
            raise RuntimeError(f"Invalid padding string: '{padding}', should be one of 'valid', 'same'")
        if any(s != 1 for s in stride):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    p = _tuple(padding, rank, "padding")
    if any(v < 0 for v in p):
        raise RuntimeError("negative padding is not supported")
    return tuple((v, v) for v in p)


def _check_conv(x: Tensor, w: Tensor, bias: Any, groups: int, pads: Any, dilation: Ints) -> None:
    sx, sw = shape_of(x), shape_of(w)
    if len(sw) != len(sx):
        raise RuntimeError(f"expected {len(sx)}-dimensional weight, but got weight of size {list(sw)}")
    if sw[0] % groups or sw[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got "
            f"weight of size {list(sw)} instead"
        )
    if sx[1] != sw[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(sw)}, expected input{list(sx)} to have "
            f"{sw[1] * groups} channels, but got {sx[1]} channels instead"
        )
    if bias is not None and shape_of(bias) != (sw[0],):
        raise RuntimeError(
            f"Given weight of size {list(sw)}, expected bias to be 1-dimensional with {sw[0]} elements, but "
            f"got bias of size {list(shape_of(bias))} instead"
        )
    if x.dtype is not w.dtype:
        raise RuntimeError(
            f"Input type ({x.dtype.long_name}) and weight type ({w.dtype.long_name}) should be the same"
        )
    room = [n + lo + hi for n, (lo, hi) in zip(sx[2:], pads, strict=True)]
    span = [d * (k - 1) + 1 for d, k in zip(dilation, sw[2:], strict=True)]
    if any(s > r for s, r in zip(span, room, strict=True)):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({' x '.join(map(str, room))}). Kernel size: "
            f"({' x '.join(map(str, span))}). Kernel size can't be greater than actual input size"
        )


@lower
@prepared
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation. input [N, C, L], weight [O, C / groups, K], bias [O]."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


@lower
@prepared
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation. input [N, C, H, W], weight [O, C / groups, KH, KW], bias [O]; or padding "same"."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


@lower
@prepared
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation over three dimensions."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Tensor:
    """The gradient of a convolution with respect to its input: a convolution of the dilated input with the
    kernel turned round.
    """
    batched = input.ndim == rank + 2
    x = input if batched else input.unsqueeze(0)
    stride, padding = _tuple(stride, rank, "stride"), _tuple(padding, rank, "padding")
    extra, dilation = _tuple(output_padding, rank, "output_padding"), _tuple(dilation, rank, "dilation")
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise RuntimeError(
            "output padding must be smaller than either stride or dilation, but got output_padding "
            f"{list(extra)}, stride {list(stride)}, dilation {list(dilation)}"
        )
    cin, cout, *kernel = shape_of(weight)
    if shape_of(x)[1] != cin:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have "
            f"{cin} channels, but got {shape_of(x)[1]} channels instead"
        )
    w = apply(P.reshape_p, weight, shape=(groups, cin // groups, cout, *kernel))
    w = apply(P.permute_p, w, perm=(0, 2, 1, *range(3, 3 + rank)))
    w = apply(P.reshape_p, w, shape=(groups * cout, cin // groups, *kernel))
    w = apply(P.flip_p, w, axes=tuple(range(2, 2 + rank)))
    pads = tuple(
        (d * (k - 1) - p, d * (k - 1) - p + e)
        for d, k, p, e in zip(dilation, kernel, padding, extra, strict=True)
    )
    out = apply(
        P.conv_p,
        x,
        w,
        stride=(1,) * rank,
        padding=pads,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        groups=groups,
    )
    return _finish(out, bias, rank, batched)


@lower
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Transposed convolution. input [N, C, L], weight [C, O / groups, K]."""
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


@lower
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Transposed convolution. input [N, C, H, W], weight [C, O / groups, KH, KW]."""
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


@lower
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Transposed convolution over three dimensions."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


# -- pooling ------------------------------------------------------------------------------------------------


def _pool_layout(
    x: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Any:
    """Kernel, stride, (lo, hi) padding and dilation of the pooled dimensions; hi covers a last partial
    window.
    """
    kernel = _tuple(kernel, rank, "kernel_size")
    stride = kernel if stride is None or stride == [] else _tuple(stride, rank, "stride")
    padding, dilation = _tuple(padding, rank, "padding"), _tuple(dilation, rank, "dilation")
    if any(p > k // 2 for p, k in zip(padding, kernel, strict=True)):
        raise RuntimeError(
            f"pad should be at most half of effective kernel size, but got pad={max(padding)}, "
            f"kernel_size={max(kernel)} and dilation={max(dilation)}"
        )
    pads = []
    sizes = shape_of(x)[x.ndim - rank :]
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        room = n + 2 * p - span
        if room < 0:
            raise RuntimeError(
                f"Given input size: ({'x'.join(map(str, shape_of(x)[-rank - 1 :]))}). Calculated output size "
                "is too small"
            )
        count = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        pads.append((p, (count - 1) * s + span - n - p))
    return kernel, stride, tuple(pads), dilation


def _window(x: Tensor, rank: int, layout: Any) -> dict[str, Any]:
    """Attributes of reduce_window: the leading dimensions are left alone."""
    kernel, stride, pads, dilation = layout
    lead = x.ndim - rank
    one = (1,) * lead
    return {
        "window": one + kernel,
        "stride": one + stride,
        "padding": ((0, 0),) * lead + pads,
        "dilation": one + dilation,
    }


def _check_pool(x: Tensor, rank: int, name: str) -> None:
    if x.ndim not in (rank + 1, rank + 2):
        raise RuntimeError(f"{name}: Expected {rank + 1}D or {rank + 2}D input, but got {list(x.shape)}")


def _max_pool(
    rank: int,
    input: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    _check_pool(input, rank, f"max_pool{rank}d")
    layout = _pool_layout(input, rank, kernel, stride, padding, dilation, ceil_mode)
    attrs = _window(input, rank, layout)
    if not return_indices:
        return apply(P.reduce_window_p, input, op="max", **attrs)
    flat = apply(P.window_argmax_p, input.detach(), **attrs)
    values = apply(
        P.gather_p,
        apply(P.reshape_p, input, shape=(input.numel(),)),
        apply(P.reshape_p, flat, shape=(*shape_of(flat), 1)),
        axes=(0,),
    )
    return values, flat % math.prod(shape_of(input)[input.ndim - rank :])


@prepared
def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window. input [N, C, L]."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@prepared
def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window. input [N, C, H, W]."""
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@prepared
def max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window. input [N, C, D, H, W]."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _counts(x: Tensor, rank: int, layout: Any, include_pad: bool) -> np.ndarray:
    """How many elements each window has: its own ones, or with padding."""
    kernel, stride, pads, _ = layout
    lead = x.ndim - rank
    per_axis = []
    for n, k, s, (lo, hi) in zip(shape_of(x)[lead:], kernel, stride, pads, strict=True):
        start = np.arange(0, n + lo + hi - k + 1, s) - lo
        end = start + k
        if include_pad:
            per_axis.append(
                np.minimum(end, n + lo) - start
            )  # the padding of a partial last window does not count
        else:
            per_axis.append(np.minimum(end, n) - np.maximum(start, 0))
    out = np.ones((), np.int64)
    for c in per_axis:
        out = out[..., None] * c
    return out


def _avg_pool(
    rank: int,
    input: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> Tensor:
    _check_pool(input, rank, f"avg_pool{rank}d")
    layout = _pool_layout(input, rank, kernel, stride, padding, 1, ceil_mode)
    total = apply(P.reduce_window_p, input, op="sum", **_window(input, rank, layout))
    if divisor is not None:
        if divisor == 0:
            raise RuntimeError("divisor must be not zero")
        return total / divisor
    counts = _counts(input, rank, layout, include_pad)
    first = int(counts.flat[0]) if counts.size else 1
    if (counts == first).all():
        return total / first
    return total / constant(counts.astype(input.dtype.np), input.device)


@prepared
def avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window. input [N, C, L]."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@prepared
def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window. input [N, C, H, W]."""
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@prepared
def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window. input [N, C, D, H, W]."""
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def lp_pool2d(
    input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm of each window."""
    k = _tuple(kernel_size, 2)
    mean = avg_pool2d(input.abs() ** norm_type, k, stride, 0, ceil_mode)
    return (mean * math.prod(k)) ** (1.0 / norm_type)


def lp_pool1d(
    input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm of each window."""
    k = _tuple(kernel_size, 1)
    return (avg_pool1d(input.abs() ** norm_type, k, stride, 0, ceil_mode) * k[0]) ** (1.0 / norm_type)


def _targets(x: Tensor, rank: int, output_size: Any) -> Ints:
    sizes = shape_of(x)[x.ndim - rank :]
    given = (
        (output_size,) * rank
        if output_size is None or hasattr(output_size, "__index__")
        else tuple(output_size)
    )
    return tuple(n if o is None else int(o) for n, o in zip(sizes, given, strict=True))


def _adaptive_bounds(n: int, out: int) -> list[tuple[int, int]]:
    return [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]


def _adaptive_avg(rank: int, input: Tensor, output_size: Any) -> Tensor:
    _check_pool(input, rank, f"adaptive_avg_pool{rank}d")
    target = _targets(input, rank, output_size)
    sizes = shape_of(input)[input.ndim - rank :]
    if all(o == 1 for o in target):
        return input.mean(tuple(range(input.ndim - rank, input.ndim)), keepdim=True)
    if all(o and n % o == 0 for n, o in zip(sizes, target, strict=True)):
        kernel = tuple(n // o for n, o in zip(sizes, target, strict=True))
        return _avg_pool(rank, input, kernel, None, 0, False, True, None)
    return _pooled_by_matrices(input, rank, [_averaging(n, o) for n, o in zip(sizes, target, strict=True)])


def _averaging(n: int, out: int) -> np.ndarray:
    """The matrix [n, out] whose columns average the parts of an adaptive pool."""
    m = np.zeros((n, out))
    for j, (a, b) in enumerate(_adaptive_bounds(n, out)):
        m[a:b, j] = 1.0 / (b - a)
    return m


def _pooled_by_matrices(x: Tensor, rank: int, matrices: Sequence[np.ndarray]) -> Tensor:
    """Each trailing dimension multiplied by its matrix; the contracted dimension comes back at the end each
    time.
    """
    lead = x.ndim - rank
    for m in matrices:
        m = constant(m.astype(x.dtype.np), x.device)
        x = apply(P.dot_general_p, x, m, contract=((lead,), (0,)), batch=((), ()))
    return x


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Means over as even parts as possible, to the size given."""
    return _adaptive_avg(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Means over as even parts as possible, to the size given."""
    return _adaptive_avg(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Means over as even parts as possible, to the size given."""
    return _adaptive_avg(3, input, output_size)


def _adaptive_max(rank: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    target = _targets(input, rank, output_size)
    sizes = shape_of(input)[input.ndim - rank :]
    if all(o and n % o == 0 for n, o in zip(sizes, target, strict=True)):
        kernel = tuple(n // o for n, o in zip(sizes, target, strict=True))
        return _max_pool(rank, input, kernel, None, 0, 1, False, return_indices)
    if return_indices:
        raise RuntimeError("adaptive_max_pool with indices needs sizes that divide the input's")
    from weft.ops.shape import stack

    x = input
    for i, (n, o) in enumerate(zip(sizes, target, strict=True)):
        d = input.ndim - rank + i
        x = stack([x.narrow(d, a, b - a).amax(d) for a, b in _adaptive_bounds(n, o)], d)
    return x


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over as even parts as possible, to the size given."""
    return _adaptive_max(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over as even parts as possible, to the size given."""
    return _adaptive_max(2, input, output_size, return_indices)


# -- patches and resampling ---------------------------------------------------------------------------------


def _patch_layout(
    kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[Ints, Ints, Ints, Ints]:
    return (_tuple(kernel_size, 2), _tuple(dilation, 2), _tuple(padding, 2), _tuple(stride, 2))


def _patch_index(size: Sequence[int], k: Ints, d: Ints, s: Ints) -> tuple[np.ndarray, int]:
    """Flat positions [KH*KW, number of patches] in an image of the (padded) size."""
    rows = [
        np.arange((n - dd * (kk - 1) - 1) // ss + 1) * ss for n, kk, dd, ss in zip(size, k, d, s, strict=True)
    ]
    offs = [np.arange(kk) * dd for kk, dd in zip(k, d, strict=True)]
    y = offs[0][:, None, None, None] + rows[0][None, None, :, None]
    x = offs[1][None, :, None, None] + rows[1][None, None, None, :]
    flat = (y * size[1] + x).reshape(k[0] * k[1], -1)
    return flat, flat.shape[1]


def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """Patches as columns: [N, C, H, W] -> [N, C * KH * KW, L]."""
    k, d, p, s = _patch_layout(kernel_size, dilation, padding, stride)
    x = constant_pad(input, [0] * (input.ndim - 2) + list(p), [0] * (input.ndim - 2) + list(p))
    index, count = _patch_index(shape_of(x)[-2:], k, d, s)
    lead = shape_of(x)[:-2]
    flat = apply(P.reshape_p, x, shape=(*lead, math.prod(shape_of(x)[-2:])))
    n = len(lead)
    got = apply(P.gather_p, flat, constant(index.reshape(-1, 1), flat.device), axes=(n,))
    got = apply(P.permute_p, got, perm=(*range(1, n + 1), 0))
    return apply(P.reshape_p, got, shape=(*lead[:-1], lead[-1] * k[0] * k[1], count))


def fold(
    input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """The sum of patches at their places: the transpose of :func:`unfold`."""
    k, d, p, s = _patch_layout(kernel_size, dilation, padding, stride)
    size = tuple(n + 2 * q for n, q in zip(_tuple(output_size, 2), p, strict=True))
    index, count = _patch_index(size, k, d, s)
    *lead, rows, columns = shape_of(input)
    c = rows // (k[0] * k[1])
    if columns != count:
        raise RuntimeError(
            f"Given output_size={list(_tuple(output_size, 2))}, expected size of input's dimension 2 to "
            f"match the calculated number of sliding blocks {count}, but got {columns}"
        )
    src = apply(P.reshape_p, input, shape=(math.prod(lead) * c, k[0] * k[1] * count))
    src = apply(P.permute_p, src, perm=(1, 0))
    shape = (size[0] * size[1], shape_of(src)[1])
    zero = apply(P.full_p, shape=shape, dtype=input.dtype, value=0, device=src.device)
    out = apply(P.scatter_p, zero, constant(index.reshape(-1, 1), src.device), src, axes=(0,), mode="add")
    out = apply(P.reshape_p, apply(P.permute_p, out, perm=(1, 0)), shape=(*lead, c, *size))
    return constant_pad(out, [0] * (len(lead) + 1) + [-q for q in p], [0] * (len(lead) + 1) + [-q for q in p])


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """[..., C r², H, W] -> [..., C, H r, W r]."""
    *lead, c, h, w = shape_of(input)
    r = upscale_factor
    if c % (r * r):
        raise RuntimeError(
            "pixel_shuffle expects its input's 'channel' dimension to be divisible by the square of "
            f"upscale_factor, but input.size(-3)={c} is not divisible by {r * r}"
        )
    x = input.reshape(*lead, c // (r * r), r, r, h, w)
    n = len(lead)
    return x.permute(*range(n + 1), n + 3, n + 1, n + 4, n + 2).reshape(*lead, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """[..., C, H r, W r] -> [..., C r², H, W]."""
    *lead, c, h, w = shape_of(input)
    r = downscale_factor
    x = input.reshape(*lead, c, h // r, r, w // r, r)
    n = len(lead)
    return x.permute(*range(n + 1), n + 2, n + 4, n + 1, n + 3).reshape(*lead, c * r * r, h // r, w // r)


def _source_positions(n: int, out: int, scale: float | None, align: bool) -> np.ndarray:
    """Where each output element lies between input elements (continuous)."""
    i = np.arange(out)
    if align:
        return i * ((n - 1) / (out - 1)) if out > 1 else np.zeros(out)
    step = n / out if scale is None else 1.0 / scale
    return (i + 0.5) * step - 0.5


def _cubic(t: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75."""
    a, t = -0.75, np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _resampling(n: int, out: int, mode: str, align: bool, scale: float | None) -> np.ndarray:
    """The matrix [n, out] that interpolates along one dimension."""
    m = np.zeros((n, out))
    columns = np.arange(out)
    if mode in ("nearest", "nearest-exact"):
        step = n / out if scale is None else 1.0 / scale
        offset = 0.5 if mode == "nearest-exact" else 0.0
        m[np.minimum(((columns + offset) * step).astype(np.int64), n - 1), columns] = 1.0
        return m
    x = _source_positions(n, out, scale, align)
    if mode == "cubic":
        base = np.floor(x).astype(np.int64)
        for k in range(-1, 3):
            np.add.at(m, (np.clip(base + k, 0, n - 1), columns), _cubic(x - (base + k)))
        return m
    x = np.clip(x, 0, None)
    low = np.minimum(x.astype(np.int64), n - 1)
    frac = x - low
    np.add.at(m, (low, columns), 1 - frac)
    np.add.at(m, (np.minimum(low + 1, n - 1), columns), frac)
    return m


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resampled to ``size`` or by ``scale_factor``: nearest, nearest-exact, linear, bilinear, bicubic,
    trilinear, area.
    """
    rank = input.ndim - 2
    sizes = shape_of(input)[2:]
    if (size is None) == (scale_factor is None):
        raise ValueError(
            "only one of size or scale_factor should be defined"
            if size is not None
            else "either size or scale_factor should be defined"
        )
    scales: Sequence[float | None] = (None,) * rank
    if size is not None:
        target = _tuple(size, rank, "size")
    else:
        factors = (scale_factor,) * rank if isinstance(scale_factor, (int, float)) else tuple(scale_factor)
        target = tuple(int(n * f) for n, f in zip(sizes, factors, strict=True))
        scales = (None,) * rank if recompute_scale_factor else factors
    if mode == "area":
        return _adaptive_avg(rank, input, target)
    kind = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}.get(
        mode, mode
    )
    if kind not in ("nearest", "nearest-exact", "linear", "cubic"):
        raise NotImplementedError(
            f"interpolation mode {mode!r} is not one of nearest, nearest-exact, linear, bilinear, bicubic, "
            "trilinear, area"
        )
    matrices = [
        _resampling(n, o, kind, bool(align_corners), s) for n, o, s in zip(sizes, target, scales, strict=True)
    ]
    x = input if input.dtype.is_inexact else convert(input, T.f32)
    return convert(_pooled_by_matrices(x, rank, matrices), input.dtype)
