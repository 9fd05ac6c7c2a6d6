"""What hand-written kernels share: the functions of a kernel, its phases, the adding up of partial sums."""

from __future__ import annotations

from weft.codegen.blocks import Code, Ix
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.record import record
from weft.ir.types import DType

COMBINED = 8  # vectors of a row that are added up before they go through the epilogue
UNIT = "ptr %bufs, i64 %u"  # parameters of a function that runs one unit of work


class Writer:
    """Collects the functions of one kernel."""

    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        self.op, self.target, self.prefix = op, target, prefix
        self.graph = op.regions[0]
        self.functions: list[str] = []
        self.declares: set[str] = set()

    def start(self, symbol: str, params: str = UNIT) -> Code:
        """Begin a function that only this kernel calls."""
        return Code(symbol, params, linkage="internal")

    def keep(self, fn: Code) -> None:
        """Finish a function."""
        self.functions.append(fn.finish())
        self.declares |= fn.declares

    def phase(self, name: str, parts: list[tuple[str, int]], cost: float, parallel: bool = True) -> Phase:
        """A phase that runs each unit in the part (function, units) it falls into."""
        fn = Code(f"{self.prefix}_{name}")
        dispatch(fn, parts)
        self.keep(fn)
        return Phase(fn.symbol, sum(n for _, n in parts), cost, parallel)

    def scratch_of(self, fn: Code) -> str:
        return fn.arg(len(self.op.operands) + len(self.op.results))

    def status_of(self, fn: Code) -> str:
        return fn.arg(len(self.op.operands) + len(self.op.results) + 1)

    def code(
        self,
        phases: list[Phase],
        scratch: int,
        loops: str,
        flops: int = 0,
        inplace: frozenset[tuple[int, int]] = frozenset(),
    ) -> KernelCode:
        """The finished kernel."""
        nbytes = sum(v.type.nbytes for v in (*self.op.operands, *self.op.results))
        return KernelCode(
            self.prefix, "\n".join(self.functions), frozenset(self.declares), tuple(phases), scratch, loops,
            nbytes, flops, inplace,
        )  # fmt: skip


def aligned(n: int) -> int:
    return -(-n // 64) * 64


def dispatch(fn: Code, parts: list[tuple[str, int]]) -> None:
    """Run units %begin..%end, numbered through the parts (function, units)."""
    with fn.range("%begin", "%end") as u:
        base = 0
        for symbol, n in parts:
            if len(parts) == 1:
                fn.do(f"call void @{symbol}(ptr %bufs, i64 {u.i})")
                continue
            own = fn.sub(u.i, base)
            test = fn.op(f"icmp ult i64 {own}, {n}")
            with fn.when(test):
                fn.do(f"call void @{symbol}(ptr %bufs, i64 {own})")
            base += n


@record(frozen=True)
class Partial:
    """Partial sums in the scratch memory: ``count`` arrays of ``nbytes`` from byte ``at``."""

    at: int
    nbytes: int
    count: int


def emit_combine(
    fn: Code,
    scratch: str,
    partial: Partial,
    epilogue: str,
    acc: DType,
    lanes: int,
    cols: int,
    first: Ix,
    where: tuple[Ix, Ix],
    more: str = "",
) -> None:
    """Sum ``cols`` elements from number ``first`` of every partial array, by blocks, into the epilogue, to
    which ``more`` is handed over too."""
    t, size = reg_type(acc, lanes), acc.itemsize
    block = COMBINED * lanes
    stack = fn.alloca(block * size)
    base = fn.at(scratch, fn.add(partial.at, fn.mul(first, size)))
    batch, row = where
    with fn.range(0, cols, block) as c:
        count = fn.min(fn.sub(cols, c.i), block)
        with fn.range(0, count, lanes) as v:
            mask = tail_mask(fn, fn.sub(count, v.i), lanes)
            at = fn.at(base, fn.mul(fn.add(c.i, v.i), size))
            with fn.range(0, partial.count, 1, [(t, "zeroinitializer")]) as s:
                x = load_lanes(fn, fn.at(at, fn.mul(s.i, partial.nbytes)), acc, lanes, mask)
                add = "fadd" if acc.is_floating_point else "add"
                s.next[0] = fn.op(f"{add} {t} {s.vars[0]}, {x}")
            store_lanes(fn, s.out[0], fn.at(stack, fn.mul(v.i, size)), acc, lanes)
        fn.do(
            f"call void @{epilogue}(ptr %bufs, ptr {stack}, i64 {block * size}, i64 {batch}, i64 {row}, "
            f"i64 1, i64 {c.i}, i64 {count}{more})"
        )
