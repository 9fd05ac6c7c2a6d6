"""Special registers: %tid, %ctaid, %laneid and the like."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate.chunk import Chunk
from weft.runtime.emulate.masks import WARP

Array = Any


def special_value(chunk: Chunk, key: str) -> Array:
    """The value in each thread; ``key`` is the name and the register's size, as the decoder writes them."""
    name, _, size = key.partition("/")
    kind = np.dtype(f"u{size}")
    return _value(chunk, name).astype(np.uint64).astype(kind)


def _value(chunk: Chunk, name: str) -> Array:
    base, _, axis = name.partition(".")
    launch = chunk.launch
    if base in ("tid", "ntid", "ctaid", "nctaid"):
        return _position(chunk, base, "xyz".index(axis or "x"))
    lane = chunk.everyone % WARP
    block = chunk.first + chunk.everyone // chunk.padded
    one = np.uint64(1)
    bit = one << lane.astype(np.uint64)
    low, every = bit - one, np.uint64(0xFFFFFFFF)
    values: dict[str, Any] = {
        "laneid": lane,
        "warpid": chunk.everyone % chunk.padded // WARP,
        "nwarpid": [chunk.padded // WARP],
        "smid": block % launch.multiprocessors,
        "nsmid": [launch.multiprocessors],
        "gridid": [0],
        "lanemask_eq": bit,
        "lanemask_lt": low,
        "lanemask_le": low | bit,
        "lanemask_gt": every & ~(low | bit),
        "lanemask_ge": every & ~low,
        "dynamic_smem_size": [launch.dynamic_bytes],
        "total_smem_size": [launch.shared_bytes],
    }
    return np.asarray(values.get(base, [0]))


def _position(chunk: Chunk, base: str, axis: int) -> Array:
    launch = chunk.launch
    if base == "ntid":
        return np.array([launch.block[axis]])
    if base == "nctaid":
        return np.array([launch.grid[axis]])
    if base == "tid":
        shape, number = launch.block, chunk.everyone % chunk.padded
    else:
        shape, number = launch.grid, chunk.first + chunk.everyone // chunk.padded
    if shape[axis] == 1 and (base == "ctaid" or launch.threads == launch.padded):
        return np.zeros(1, np.int64)
    value = number // int(np.prod(shape[:axis])) % shape[axis]
    return value[:1] if base == "ctaid" and chunk.blocks == 1 else value
