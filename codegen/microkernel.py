"""The inner loops of contractions: register-blocked tiles of A times B, as functions that kernels share.

Each is ``internal`` and named by everything it depends on, so kernels of one module share it. Operands and
tiles are given by addresses and byte strides at run time, which keeps the number of different functions
small.

Register blocking after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 2008.
"""

from __future__ import annotations

from weft.codegen.blocks import Code, Ix
from weft.codegen.lanes import load_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.target import Target
from weft.ir.record import record
from weft.ir.types import DType, bool_, f32, f64, i32, i64

_STREAM_ROWS = 4  # rows that the stream kernel adds to at once
_OWN_POINTERS = 8  # rows up to which each row of A has an address register


def accumulator(dtype: DType) -> DType:
    """The dtype in which products of ``dtype`` are added: f32 for half types, i32 for narrow integers."""
    if dtype.is_floating_point:
        return f64 if dtype is f64 else f32
    return i64 if dtype.bits == 64 else i32


def rows_for(target: Target, vectors: int, rows: int, limit: int = 14) -> int:
    """Rows of a tile of ``vectors`` vectors: what the registers hold beside a row of B and a broadcast of A.

    At most ``rows`` and ``limit``; fewer where that spreads them evenly over the tiles (tiles overlap at the
    lower edge, so an uneven height computes rows twice).
    """
    most = max(1, min((target.registers - 1 - vectors) // vectors, limit, rows))
    tiles = -(-rows // most)
    return most if tiles * most <= 1.06 * rows else -(-rows // tiles)


def widest(target: Target) -> int:
    """Vectors per row of the usual tile."""
    return 4 if target.registers >= 32 else 2


@record(frozen=True)
class Tile:
    """A tile of ``rows`` by ``vectors`` vectors of ``lanes`` lanes of the accumulator ``dtype``."""

    rows: int
    vectors: int
    lanes: int
    dtype: DType

    @property
    def cols(self) -> int:
        return self.vectors * self.lanes

    @property
    def row_bytes(self) -> int:
        return self.cols * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


def multiply_add(fn: Code, dtype: DType, lanes: int, x: str, y: str, z: str) -> str:
    """x * y + z; rounded once for floats, modulo 2**n for integers."""
    t = reg_type(dtype, lanes)
    if dtype.is_floating_point:
        suffix = f"v{lanes}{'f64' if dtype is f64 else 'f32'}"
        return fn.call(f"llvm.fma.{suffix}", t, f"{t} {x}, {t} {y}, {t} {z}")
    return fn.op(f"add {t} {fn.op(f'mul {t} {x}, {y}')}, {z}")


def outer_kernel(
    fn: Code,
    tile: Tile,
    *,
    step: str,
    accumulate: bool = False,
    masked: bool = False,
    strided: bool = False,
    operand: DType | None = None,
    offsets: tuple[int, ...] = (),
) -> str:
    """Declare in ``fn`` and name the kernel that broadcasts A and reads rows of B.

    Its arguments: a, bytes between rows of A, bytes between k of A, b, bytes between k of B, k (positive),
    tile, and a number: of columns if ``masked`` (then B has a single, partial vector), of bytes between rows
    of the tile if ``strided`` (else they follow each other). ``step`` says what
    is known of A: ``"k"`` if consecutive k are neighbours, ``"m"`` if consecutive rows are, ``"any"``. B
    holds elements of ``operand``, or else of the tile's dtype; its vectors lie side by side, or at
    ``offsets`` in bytes.
    """
    source = operand or tile.dtype
    plain = mem_type(source) == mem_type(tile.dtype)
    side_by_side = tuple(v * tile.lanes * source.itemsize for v in range(tile.vectors))
    offsets = offsets or side_by_side
    apart = "" if offsets == side_by_side else f"_at{'_'.join(map(str, offsets))}"
    name = (
        f"weft_outer_{tile.dtype.name}_{tile.rows}x{tile.vectors}x{tile.lanes}_{step}"
        f"{'_acc' if accumulate else ''}{'_masked' if masked else ''}{'_strided' if strided else ''}"
        f"{'' if plain else f'_{source.name}'}{apart}"
    )
    params = "ptr noalias %a, i64 %ars, i64 %aks, ptr noalias %b, i64 %bks, i64 %k, ptr noalias %t, i64 %n"
    k = Code(name, params, linkage="internal")
    t, lanes, dtype, size = reg_type(tile.dtype, tile.lanes), tile.lanes, tile.dtype, tile.dtype.itemsize
    ars = size if step == "m" else "%ars"
    aks = size if step == "k" else "%aks"
    mask = tail_mask(k, "%n", lanes) if masked else None
    slots = [(r, v, r * tile.vectors + v) for r in range(tile.rows) for v in range(tile.vectors)]
    # With few rows each keeps a register of its own and all share the index: no additions in the loop. The
    # empty assembly hides how the addresses are related: LLVM would turn it back into a chain of additions.
    bases: list[str] = []
    if step == "k" and tile.rows <= _OWN_POINTERS:
        rows = [k.at("%a", k.mul(r, "%ars")) for r in range(tile.rows)]
        bases = [k.op(f'call ptr asm "", "=r,0"(ptr {p})') for p in rows]
    carried = [("ptr", "%a"), ("ptr", "%b")]
    lines = [k.at("%t", k.mul(r, "%n" if strided else tile.row_bytes)) for r in range(tile.rows)]
    for r, v, _ in slots:
        init = load_lanes(k, k.at(lines[r], v, t), dtype, lanes) if accumulate else "zeroinitializer"
        carried.append((t, init))
    with k.range(0, "%k", 1, carried, runs=True) as turn:
        ap, bp, acc = turn.vars[0], turn.vars[1], turn.vars[2:]
        read = [load_lanes(k, k.at(bp, at), source, lanes, mask) for at in offsets]
        row = [widened(k, x, source, lanes) for x in read]
        at = ap
        for r in range(tile.rows):
            if bases:
                at = k.at(bases[r], turn.i, reg_type(dtype))
            x = k.splat(reg_type(dtype), k.load(reg_type(dtype), at, size), lanes)
            at = k.at(at, ars)  # a chain of additions: no register per row
            for v in range(tile.vectors):
                i = r * tile.vectors + v
                turn.next[2 + i] = multiply_add(k, dtype, lanes, x, row[v], acc[i])
        turn.next[0] = k.at(ap, aks)
        turn.next[1] = k.at(bp, "%bks")
    for r, v, i in slots:
        k.store(t, turn.out[2 + i], k.at(lines[r], v, t), size)
    return share(fn, k)


def stream_kernel(fn: Code, tile: Tile, turns: int, *, step: str) -> str:
    """Declare in ``fn`` and name the kernel for few rows, which reads rows of B from end to end.

    It has the arguments of :func:`outer_kernel` and, likewise, adds to the tile, which is a block in the
    first-level cache: for ``turns`` k at a time it walks along the columns. So memory is read in a few long
    streams instead of a short piece of every row.
    """
    lanes, dtype, size = tile.lanes, tile.dtype, tile.dtype.itemsize
    t = reg_type(dtype, lanes)
    k = Code(f"weft_stream_{dtype.name}_{tile.rows}x{tile.vectors}x{lanes}_{turns}_{step}",
             "ptr noalias %a, i64 %ars, i64 %aks, ptr noalias %b, i64 %bks, i64 %k, ptr noalias %t, i64 %n",
             linkage="internal")  # fmt: skip
    ars = size if step == "m" else "%ars"
    aks = size if step == "k" else "%aks"

    def scalar(base: str, row: int, turn: int) -> str:
        at = _offset(k, base, (row, ars), (turn, aks))
        return k.splat(reg_type(dtype), k.load(reg_type(dtype), at, size), lanes)

    def walk(start: Ix, count: int) -> None:
        bp = k.at("%b", k.mul(start, "%bks"))
        rows = [_offset(k, bp, (i, "%bks")) for i in range(count)]
        for first in range(0, tile.rows, _STREAM_ROWS):
            group = range(first, min(first + _STREAM_ROWS, tile.rows))
            ap = _offset(k, "%a", (first, ars), (1, k.mul(start, aks)))
            xs = {r: [scalar(ap, r - first, i) for i in range(count)] for r in group}
            with k.range(0, tile.cols * size, lanes * size) as v:
                ys = [load_lanes(k, k.at(p, v.i), dtype, lanes) for p in rows]
                for r in group:
                    at = k.at("%t", k.add(v.i, r * tile.row_bytes))
                    acc = load_lanes(k, at, dtype, lanes)
                    for x, y in zip(xs[r], ys, strict=True):
                        acc = multiply_add(k, dtype, lanes, x, y, acc)
                    k.store(t, acc, at, size)

    whole = k.sub("%k", k.mod("%k", turns))
    with k.range(0, whole, turns) as turn:
        walk(turn.i, turns)
    with k.range(whole, "%k") as turn:
        walk(turn.i, 1)
    return share(fn, k)


def _offset(k: Code, base: str, *steps: tuple[int, Ix]) -> str:
    for count, step in steps:
        base = k.at(base, k.mul(count, step))
    return base


def inner_kernel(fn: Code, rows: int, cols: int, operand: DType, lanes: int) -> str:
    """Declare in ``fn`` and name the kernel for operands that are both contiguous along k.

    Its arguments: a, bytes between rows of A, b, bytes between rows of B, k, tile, bytes between its rows.
    """
    dtype = accumulator(operand)
    k = Code(f"weft_inner_{operand.name}_{rows}x{cols}x{lanes}",
             "ptr noalias %a, i64 %ars, ptr noalias %b, i64 %brs, i64 %k, ptr noalias %t, i64 %trs",
             linkage="internal")  # fmt: skip
    t, mem = reg_type(dtype, lanes), mem_type(operand)
    count = rows * cols

    a_rows = [k.at("%a", k.mul(r, "%ars")) for r in range(rows)]
    b_rows = [k.at("%b", k.mul(c, "%brs")) for c in range(cols)]

    def step(at: str, acc: list[str], mask: str | None) -> list[str]:
        def row(base: str) -> str:
            return widened(k, load_lanes(k, k.at(base, at, mem), operand, lanes, mask), operand, lanes)

        xs = [row(p) for p in a_rows]
        out = list(acc)
        for c in range(cols):
            y = row(b_rows[c])
            for r in range(rows):
                out[r * cols + c] = multiply_add(k, dtype, lanes, xs[r], y, acc[r * cols + c])
        return out

    whole = k.op(f"and i64 %k, {-lanes}")
    with k.range(0, whole, lanes, [(t, "zeroinitializer")] * count) as turn:
        turn.next[:] = step(str(turn.i), turn.vars, None)
    rest = k.sub("%k", whole)
    # one more turn if k is no multiple of the lanes
    with k.range(0, rest, lanes, [(t, v) for v in turn.out]) as tail:
        tail.next[:] = step(whole, tail.vars, tail_mask(k, rest, lanes))
    for r in range(rows):
        _store_sums(k, tail.out[r * cols : (r + 1) * cols], k.at("%t", k.mul(r, "%trs")), dtype, lanes)
    return share(fn, k)


def _store_sums(k: Code, vectors: list[str], at: str, dtype: DType, lanes: int) -> None:
    """Store the sum of the lanes of each vector, one after the other.

    A power of two of vectors is added up together: each step halves their number, by two shuffles and a sum.
    """
    n, t, elem = len(vectors), reg_type(dtype, lanes), reg_type(dtype)
    if n & (n - 1) or n > lanes:
        for c, v in enumerate(vectors):
            k.store(elem, reduce_add(k, v, dtype, lanes), k.at(at, c, elem), dtype.itemsize)
        return

    def shuffled(x: str, y: str, pick: list[int]) -> str:
        mask = ", ".join(f"i32 {i}" for i in pick)
        return k.op(f"shufflevector {t} {x}, {t} {y}, <{len(pick)} x i32> <{mask}>")

    def plus(x: str, y: str) -> str:
        return k.op(f"{'fadd' if dtype.is_floating_point else 'add'} {t} {x}, {y}")

    d = 1
    while d < lanes:
        low = [c if not c & d else lanes + c - d for c in range(lanes)]
        high = [c + d if not c & d else lanes + c for c in range(lanes)]
        if d < n:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [plus(shuffled(x, y, low), shuffled(x, y, high)) for x, y in pairs]
        else:
            vectors = [plus(vectors[0], shuffled(vectors[0], "poison", [c ^ d for c in range(lanes)]))]
        d *= 2
    first = shuffled(vectors[0], "poison", list(range(n)))
    k.store(reg_type(dtype, n), first, at, dtype.itemsize)


def widened(fn: Code, x: str, operand: DType, lanes: int) -> str:
    """Registers of an operand dtype as its accumulator dtype."""
    have, want = reg_type(operand, lanes), reg_type(accumulator(operand), lanes)
    if have == want:
        return x
    return fn.op(f"{'sext' if operand.is_signed else 'zext'} {have} {x} to {want}")


def narrowed(fn: Code, x: str, dtype: DType, lanes: int) -> str:
    """Accumulator registers as a dtype other than half precision (which the scalar builder rounds)."""
    have, want = reg_type(accumulator(dtype), lanes), reg_type(dtype, lanes)
    if have == want:
        return x
    if dtype is bool_:
        return fn.op(f"icmp ne {have} {x}, zeroinitializer")
    return fn.op(f"trunc {have} {x} to {want}")


def reduce_add(fn: Code, x: str, dtype: DType, lanes: int) -> str:
    """The sum of the lanes (in any order)."""
    v, s = reg_type(dtype, lanes), reg_type(dtype)
    if dtype.is_floating_point:
        suffix = f"v{lanes}{'f64' if dtype is f64 else 'f32'}"
        zero = "-0.0"
        return fn.call(f"llvm.vector.reduce.fadd.{suffix}", s, f"{s} {zero}, {v} {x}", flags="reassoc ")
    return fn.call(f"llvm.vector.reduce.add.v{lanes}{s}", s, f"{v} {x}")


def share(fn: Code, k: Code) -> str:
    """Finish ``k`` and make it part of the module of ``fn``, once however many ask for it; its name."""
    fn.declares |= k.declares
    fn.declare(k.finish())
    return k.symbol
