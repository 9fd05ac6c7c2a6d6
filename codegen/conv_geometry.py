"""The numbers of a convolution, in three spatial dimensions, and which of its outputs meet which taps."""

from __future__ import annotations

from weft.ir.graph import Op
from weft.ir.record import record

Ints = tuple[int, ...]


@record(frozen=True)
class Geometry:
    """A convolution in three spatial dimensions (leading ones added).

    ``size`` is the input, ``spread`` the input with dilation and padding, ``out`` the result.
    """

    samples: int
    channels: int
    outputs: int
    groups: int
    size: Ints
    spread: Ints
    kernel: Ints
    out: Ints
    stride: Ints
    lo: Ints
    gap: Ints  # lhs_dilation
    step: Ints  # rhs_dilation

    @property
    def as_is(self) -> bool:
        """True where the input needs neither padding nor dilation."""
        # equal sizes are not enough: padding, dilation and cropping may cancel
        return self.spread == self.size and not any(self.lo) and max(self.gap) == 1


def geometry(conv: Op) -> Geometry:
    """The numbers of a conv op."""
    x, w, a = conv.operands[0].type.shape, conv.operands[1].type.shape, conv.attrs
    lead = 3 - (len(x) - 2)

    def full(values: Ints, fill: int = 1) -> Ints:
        return (fill,) * lead + tuple(values)

    size, kernel, out = full(x[2:]), full(w[2:]), full(conv.result.type.shape[2:])
    padding = ((0, 0),) * lead + tuple(tuple(p) for p in a["padding"])
    gap = full(a["lhs_dilation"])
    spread = tuple((d - 1) * g + 1 + lo + hi for d, g, (lo, hi) in zip(size, gap, padding, strict=True))
    stride, step = full(a["stride"]), full(a["rhs_dilation"])
    return Geometry(x[0], x[1], w[0], a["groups"], size, spread, kernel, out, stride,
                    tuple(lo for lo, _ in padding), gap, step)  # fmt: skip


@record(frozen=True)
class Line:
    """One dimension of a class of output positions that meet the same taps of the kernel.

    Position ``q`` of ``count`` is output ``first + gap * q``; its tap ``j`` of ``taps`` is kernel position
    ``tap + j * tap_step`` and reads input ``q * stride + index + j * index_step``, if there is such an input.
    """

    first: int
    gap: int
    count: int
    taps: int
    tap: int
    tap_step: int
    stride: int
    index: int
    index_step: int
    size: int

    @property
    def inside(self) -> bool:
        """True where every tap of every position is an input."""
        ends = (self.index, self.index + (self.count - 1) * self.stride)
        reach = (self.taps - 1) * self.index_step
        return min(ends) >= 0 and max(ends) + reach < self.size


def lines_of(g: Geometry, dim: int) -> list[Line]:
    """The classes of output positions along a dimension: one, or as many as the input is dilated by."""
    out, kernel, lo, step = g.out[dim], g.kernel[dim], g.lo[dim], g.step[dim]
    gap, stride, size = g.gap[dim], g.stride[dim], g.size[dim]
    if gap == 1:
        return [Line(0, 1, out, kernel, 0, 1, stride, -lo, step, size)]
    lines = []
    for first in range(min(gap, out)):
        meets = [k for k in range(kernel) if (first - lo + k * step) % gap == 0]
        tap = meets[0] if meets else 0
        tap_step = meets[1] - tap if len(meets) > 1 else 1
        count = -(-(out - first) // gap)
        index = (first - lo + tap * step) // gap
        across = tap_step * step // gap
        lines.append(Line(first, gap, count, len(meets), tap, tap_step, 1, index, across, size))
    return lines
