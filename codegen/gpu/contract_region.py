"""Values of a region at places, on a GPU: what prologues and epilogues are evaluated by."""

from __future__ import annotations

from collections.abc import Mapping

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg
from weft.codegen.gpu.builder import DeviceBuilder
from weft.codegen.gpu.contract_code import BlockCode, power_of_two
from weft.codegen.lanes import to_memory, to_register
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.places import Coord, Place, Region
from weft.codegen.uniforms import uniform_values
from weft.ir.graph import Graph, Op, Value
from weft.ir.types import DType

_VECTOR_BYTES = 16


class DeviceRegion(Region):
    """A region whose accesses are as wide as is known to be aligned."""

    fn: BlockCode
    make_builder = DeviceBuilder

    def load(self, base: str, dtype: DType, linear: Coord, size: int) -> Reg:
        if linear.vec is None and linear.step == 0:
            return self.builder.reg(load_aligned(self.fn, base, linear.base, dtype, 0), dtype)
        if linear.vec is None and linear.step == 1 and self.mask is None:
            text = load_aligned(self.fn, base, linear.base, dtype, self.lanes)
        else:
            text = self._gather(base, dtype, linear)
        return self.builder.reg(text, dtype, self.lanes)

    def _gather(self, base: str, dtype: DType, linear: Coord) -> str:
        """Elements one by one; lanes that the mask leaves out read element 0, and are zero."""
        fn, mem, parts = self.fn, mem_type(dtype), []
        for i in range(self.lanes):
            if linear.vec is None:
                index = fn.add(linear.base, i * linear.step)
            else:
                index = fn.op(f"extractelement <{self.lanes} x i64> {linear.vec}, i32 {i}")
            if self.mask is None:
                parts.append(load_elements(fn, base, index, dtype, 0))
                continue
            on = fn.op(f"extractelement <{self.lanes} x i1> {self.mask}, i32 {i}")
            x = load_elements(fn, base, fn.select(on, index, 0), dtype, 0)
            zero = "0.0" if mem in ("float", "double", "half") else "0"
            parts.append(fn.op(f"select i1 {on}, {mem} {x}, {mem} {zero}"))
        return to_register(fn, vector_of(fn, parts, mem), dtype, self.lanes)


def alignment(fn: BlockCode, index: Ix, dtype: DType, lanes: int) -> int:
    """Bytes to which elements ``index`` .. of an array that begins at a multiple of 16 bytes are aligned."""
    return min(
        _VECTOR_BYTES, power_of_two(dtype.itemsize * max(lanes, 1)), fn.divisor(index) * dtype.itemsize
    )


def load_aligned(fn: BlockCode, base: str, index: Ix, dtype: DType, lanes: int) -> str:
    """``lanes`` consecutive elements (0: a scalar) in registers."""
    return to_register(fn, load_elements(fn, base, index, dtype, lanes), dtype, lanes)


def load_elements(fn: BlockCode, base: str, index: Ix, dtype: DType, lanes: int) -> str:
    """``lanes`` consecutive elements as they lie in memory."""
    at = fn.at(base, index, mem_type(dtype))
    return fn.load(mem_type(dtype, lanes), at, alignment(fn, index, dtype, lanes))


def store_aligned(fn: BlockCode, value: str, base: str, index: Ix, dtype: DType, lanes: int) -> None:
    """Store what registers hold to ``lanes`` consecutive elements."""
    store_elements(fn, to_memory(fn, value, dtype, lanes), base, index, dtype, lanes)


def store_elements(fn: BlockCode, raw: str, base: str, index: Ix, dtype: DType, lanes: int) -> None:
    """Store elements as they lie in memory."""
    at = fn.at(base, index, mem_type(dtype))
    fn.store(mem_type(dtype, lanes), raw, at, alignment(fn, index, dtype, lanes))


def elements(fn: BlockCode, vector: str, ty: str, lanes: int) -> list[str]:
    """The elements of a vector; of a scalar (lanes 0) itself."""
    if not lanes:
        return [vector]
    return [fn.op(f"extractelement <{lanes} x {ty}> {vector}, i32 {i}") for i in range(lanes)]


def vector_of(fn: BlockCode, parts: list[str], ty: str) -> str:
    """A vector of elements."""
    out = "poison"
    for i, x in enumerate(parts):
        out = fn.op(f"insertelement <{len(parts)} x {ty}> {out}, {ty} {x}, i32 {i}")
    return out


def uniforms(fn: BlockCode, op: Op, main: Op, pointers: Mapping[Value, str]) -> dict[Value, Reg]:
    """Single values computed beside the contraction, once per thread."""
    graph: Graph = op.regions[0]
    region = DeviceRegion(fn, graph, 1, pointers)
    out: dict[Value, Reg] = {}
    for v in uniform_values(graph, main):
        at = Place(v.type.shape, lambda n=v.type.ndim: (Coord(),) * n, Coord)
        got = region.value(v, at)
        text = elements(fn, got.text, reg_type(v.type.dtype), got.lanes)[0]
        out[v] = region.builder.reg(text, v.type.dtype) if got.value is None else got
    return out


def lanes_within(dims: tuple[int, ...], most: int) -> int:
    """The largest power of two up to ``most`` that divides the last dimension, so that no vector is cut."""
    sizes = [d for d in dims if d != 1]
    return min(most, power_of_two(sizes[-1])) if sizes else 1
