"""Members of records are loaded as whole vectors, never past the end of the buffer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_tables import targets
from weft.codegen.standalone import Standalone, kernel_op
from weft.codegen.target import Target
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, dtype_of_numpy, f32


def column(shape: tuple[int, int], member: int, dtype: type, target: Target) -> Standalone:
    """The negation of a column of an array of records, as a kernel."""

    def fn(x):  # type: ignore[no-untyped-def]
        part = P.slice_p.bind(x, start=(0, member), stop=(shape[0], member + 1), step=(1, 1))
        return P.neg_p.bind(part)

    graph = trace(fn, TensorType(shape, dtype_of_numpy(np.dtype(dtype))))
    return Standalone(kernel_op(graph, "loop"), target)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int8])
@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_columns_of_records(width: int, dtype: type) -> None:
    x = (np.arange(133 * width).reshape(133, width) % 100).astype(dtype)
    for target in targets():
        for member in range(width):
            got = column(x.shape, member, dtype, target)(x)[0]
            np.testing.assert_array_equal(got, -x[:, member : member + 1])


def test_whole_vectors_instead_of_gathers() -> None:
    for target in targets():
        for width, gathers in ((3, False), (5, True)):
            text = column((1024, width), 1, np.float32, target).llvm
            assert ("masked.gather" in text) == gathers
            assert ("shufflevector" in text) == (not gathers)


def strided(n: int, start: int, size: int, target: Target) -> Standalone:
    def fn(x):  # type: ignore[no-untyped-def]
        return P.neg_p.bind(P.slice_p.bind(x, start=(start,), stop=(start + 3 * (n - 1) + 1,), step=(3,)))

    return Standalone(kernel_op(trace(fn, TensorType((size,), f32)), "loop"), target)


def test_no_element_behind_the_buffer_is_read() -> None:
    for target in targets():
        inside, outside = strided(64, 1, 192, target), strided(64, 1, 191, target)
        assert "masked.gather" not in inside.llvm and "masked.gather" in outside.llvm
        for run, size in ((inside, 192), (outside, 191)):
            x = np.arange(size, dtype=np.float32)
            np.testing.assert_array_equal(run(x)[0], -x[1::3])
