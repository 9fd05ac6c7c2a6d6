"""Recording a function of tensors once for all calls on tensors of the same types.

The update of an optimizer is the same few dozen operations for every parameter. What it recorded for the
first of a kind is copied for the others: no Python of the frontend runs, and no type is inferred again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from weft.capture.recorder import Recorder, overlap
from weft.dispatch import payload
from weft.ir.graph import Op, Value, copy_op
from weft.ir.record import record
from weft.tensor import Tensor
from weft.views import assign_captured


@record(slots=True)
class Recording:
    """The operations of one call, the values that the tensors had before and after it, and how many writes
    each of them got."""

    ops: list[Op]
    before: list[Value]
    after: list[Value]
    writes: list[int]


class Repeats:
    """Calls of one function on lists of tensors, by the key that tells calls apart.

    The function does nothing but record operations on the tensors it is given, and on what is the same in
    all of its calls, and writes to no other tensors. Calls for which that is not enough (tensors that share
    memory, views, what ends the segment) are recorded as they are.
    """

    def __init__(self, rec: Recorder) -> None:
        self.rec = rec
        self.known: dict[Any, Recording | None] = {}

    def call(self, key: Any, fn: Callable[[], Any], tensors: Sequence[Tensor]) -> None:
        """``fn()``, which works on ``tensors``; ``key`` and their types stand for what it records."""
        seg = self.rec.segment
        values = [payload(t, self.rec) for t in tensors]
        if self.rec.segment is not seg or len(set(values)) < len(values) or self._shared(tensors):
            fn()
            return
        key = (id(seg), key, *(v.type for v in values))
        if key not in self.known:
            self.known[key] = self._record(fn, tensors, values)
        elif (recording := self.known[key]) is not None:
            self._copy(recording, tensors, values)
        else:
            fn()

    def _shared(self, tensors: Sequence[Tensor]) -> bool:
        """Whether one of the tensors cannot be written, or another that is known would change with it."""
        near = self.rec.segment.memory.near
        concrete = [t for t in tensors if type(t._data) is not Value]
        return any(t._inference for t in tensors) or any(overlap(t, u) for t in concrete for u in near(t))

    def _record(
        self, fn: Callable[[], Any], tensors: Sequence[Tensor], before: list[Value]
    ) -> Recording | None:
        seg, versions = self.rec.segment, [t._vc[0] for t in tensors]
        start = len(seg.builder.ops)
        repeatable = fn() is not False
        if self.rec.segment is not seg or not repeatable:
            return None
        writes = [t._vc[0] - v for t, v in zip(tensors, versions, strict=True)]
        if any(n and t._view is not None for n, t in zip(writes, tensors, strict=True)):
            return None
        after = [payload(t, self.rec) for t in tensors]
        return Recording(seg.builder.ops[start:], before, after, writes)

    def _copy(self, recording: Recording, tensors: Sequence[Tensor], values: list[Value]) -> None:
        seg = self.rec.segment
        env = dict(zip(recording.before, values, strict=True))
        get = env.get
        for op in recording.ops:
            results = copy_op(seg.builder, op, tuple([get(v, v) for v in op.operands]))
            if results is op.results:  # reads nothing of the tensors, so it holds for all calls
                seg.builder.ops.pop()
            else:
                env.update(zip(op.results, results, strict=True))
                seg.known.update(results)
        for t, value, writes in zip(tensors, recording.after, recording.writes, strict=True):
            if writes:
                assign_captured(self.rec, t, get(value, value))
                t._vc[0] += writes
