"""Which of many concrete tensors lie in the same memory as another, without comparing all pairs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from weft.devices import span
from weft.tensor import Tensor


class Memory:
    """Tensors by the range of addresses they span. Ranges that overlap are kept as one, so the ranges are
    disjoint and sorted; whether two tensors of one range really share an element is left to the caller."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._tensors: list[list[Tensor]] = []

    def near(self, t: Tensor) -> list[Tensor]:
        """The tensors, ``t`` itself included, whose ranges may overlap that of ``t``."""
        start, end = span(t._data)
        first, last = self._span(start, end)
        return [u for k in range(first, last) for u in self._tensors[k]]

    def add(self, t: Tensor) -> None:
        start, end = span(t._data)
        if start == end:
            return
        first, last = self._span(start, end)
        tensors = [u for k in range(first, last) for u in self._tensors[k]]
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]
        self._tensors[first:last] = [[*tensors, t]]

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """The indices [first, last) of the ranges that overlap [start, end)."""
        if start == end:
            return 0, 0
        return bisect_right(self._ends, start), bisect_left(self._starts, end)
