"""What fusion knows of a group that is one nest, so that most operations join it without a new analysis."""

from __future__ import annotations

from collections.abc import Sequence

from weft.ir.graph import Op, Value
from weft.ir.nest import Classes, NestPlan
from weft.ir.prims.base import Kind


class Growing:
    """The loops along which the values of a group run; ``ops`` are its operations, transparent ones too.

    ``read`` are the values from outside that reach the group through movements: another path to one of them
    might tie loops together, which only a whole analysis can tell.
    """

    def __init__(self, plan: NestPlan) -> None:
        self.ops: set[Op] = set(plan.ops)
        self.classes: dict[Value, Classes] = dict(plan.classes)
        self.read: set[Value] = set()
        self.sums: set[Value] = set()  # single values that need a whole walk before them
        for op in plan.ops:
            if op.prim.kind is Kind.REDUCE or any(x in self.sums for x in op.operands):
                self.sums.update(r for r in op.results if r.type.size == 1)

    def grow(self, before: Sequence[Op], op: Op) -> bool:
        """Take in ``op`` and the transparent operations ``before`` it, if the loops stay as they are.

        They do where a map continues one value of the group, element by element: it runs where that value
        runs, and is an output in its place. All else that it reads must be new to the group, and read once.
        """
        if op.prim.kind is not Kind.MAP:
            return False
        fresh, read = self._fresh(before)
        if read is None or any(x in self.read for x in op.operands):
            return False
        mine = {self.classes[x] for x in op.operands if x in self.classes and x.type.size > 1}
        new = {x for x in op.operands if x not in self.classes and x not in fresh and x.type.size > 1}
        if len(mine) != 1 or new & read:
            return False
        (run,) = mine
        taken = {x for x in op.operands if x in fresh}
        self.classes |= dict.fromkeys((op.result, *new, *taken), run)
        self.read |= read | (fresh - taken)
        self.ops.update(before, (op,))
        return True

    def _fresh(self, before: Sequence[Op]) -> tuple[set[Value], set[Value] | None]:
        """The values that ``before`` makes, and those from outside that it moves; None where it moves what
        the group knows already, or one value along two paths."""
        fresh: set[Value] = set()
        read: set[Value] = set()
        for op in before:
            for x in op.operands:
                if x in fresh or (x.type.size == 1 and x not in self.sums):
                    continue
                if x in self.sums or x in self.classes or x in self.read or x in read:
                    return fresh, None
                read.add(x)
            if op.prim.name == "reshape" and op.result.type.size > 1:
                return fresh, None
            fresh.update(r for r in op.results if r.type.size > 1)
        return fresh, read
