"""What a kernel of form ``sort`` is asked for, and the keys that it compares, on any target."""

from __future__ import annotations

from math import prod

from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.indexing import only_op
from weft.codegen.kernel import Unsupported
from weft.ir.graph import Graph
from weft.ir.types import DType, bool_, f32, f64, i32, i64, u8, u16, u32, u64

_UNSIGNED = {8: u8, 16: u16, 32: u32, 64: u64}


class SortedLines:
    """Mixed into writers: lines along an axis of ``x``, of ``n`` elements each, ``inner`` elements apart,
    of which ``kept`` stay. Compared are unsigned ``key`` words of the same order, made by way of ``wide``:
    half precision is compared as f32."""

    def read_sort(self, graph: Graph) -> None:
        """Take it from the graph of a kernel. Unsupported where positions would not fit 32 bits."""
        self.sort = only_op(graph, some=True)
        a = self.sort.attrs
        self.x, axis = self.sort.operands[0].type, a["axis"]
        self.n, self.inner = self.x.shape[axis], prod(self.x.shape[axis + 1 :])
        self.kept = self.sort.results[0].type.shape[axis]
        self.descending = bool(a.get("descending", a.get("largest", False)))
        self.lines = self.x.size // self.n
        if self.n >= 1 << 31:
            raise Unsupported("lines longer than 2**31")
        d = self.x.dtype
        half = d.is_floating_point and d.bits == 16
        self.wide: DType = f32 if half else u8 if d is bool_ else d
        self.key = _UNSIGNED[self.wide.bits]

    def key_of(self, b: VectorBuilder, x: Reg) -> Reg:
        """An element (or a vector) as an unsigned integer of the same order: NaN above all, zeros equal."""
        wide, key = self.wide, self.key
        if wide.is_floating_point:
            x = b.binary("add", b.convert(x, wide), b.const(0.0, wide))  # -0.0 becomes 0.0
            signed = i64 if wide is f64 else i32
            bits = b.bitcast(x, signed)
            sign = b.binary("shr", bits, b.const(wide.bits - 1, signed))
            flips = b.binary("or", b.bitcast(sign, key), b.const(1 << (wide.bits - 1), key))
            ordered = b.binary("xor", b.bitcast(bits, key), flips)
            got = b.select(b.compare("ne", x, x), b.const((1 << wide.bits) - 1, key), ordered)
        else:
            got = b.convert(x, key) if x.dtype is bool_ else b.bitcast(x, key)
            if wide.is_signed:
                got = b.binary("xor", got, b.const(1 << (wide.bits - 1), key))
        return b.unary("not", got) if self.descending else got
