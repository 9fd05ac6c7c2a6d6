"""Arrays on a device: views are numpy's, copies between any strides are a kernel, other libraries can take
them."""

from __future__ import annotations

import gc
import itertools

import ml_dtypes
import numpy as np
import pytest
from weft.runtime import stats
from weft.runtime.cuda import dlpack
from weft.runtime.cuda.array import DeviceArray, empty, from_host, pinned_empty, reshaped_strides
from weft.runtime.cuda.device import device_state
from weft.runtime.cuda.strided import merged_axes

pytestmark = pytest.mark.gpu
BASE = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
VIEWS = {
    "slice": lambda x: x[1:, ::2, 1:4],
    "backwards": lambda x: x[::-1, :, ::-2],
    "integer": lambda x: x[-1, 2],
    "new axis": lambda x: x[:, None, ..., 3],
    "transpose": lambda x: x.transpose((2, 0, 1)),
    "twice": lambda x: x.transpose((1, 2, 0))[1:3, 0],
    "whole": lambda x: x[...],
    "nothing": lambda x: x[3:],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_numpys(name):
    view, want = VIEWS[name](from_host(BASE)), VIEWS[name](BASE)
    assert (view.shape, view.size, view.nbytes, view.ndim) == (want.shape, want.size, want.nbytes, want.ndim)
    assert view.flags.c_contiguous == want.flags.c_contiguous
    if want.size:
        assert [s for s, n in zip(view.strides, view.shape, strict=True) if n > 1] == [
            s for s, n in zip(want.strides, want.shape, strict=True) if n > 1
        ]
    np.testing.assert_array_equal(view.copy_to_host(), want)


def test_broadcast_and_diagonal():
    x = from_host(BASE[0])
    np.testing.assert_array_equal(x.broadcast((2, 4, 5), (1, 2)).copy_to_host(), np.stack([BASE[0]] * 2))
    for offset in (-3, 0, 2, 9):
        want = np.diagonal(BASE[0], offset) if abs(offset) < 5 else np.empty(0, np.float32)
        np.testing.assert_array_equal(x.diagonal(offset, 0, 1).copy_to_host(), want)


SIZES = [np.bool_, np.int16, ml_dtypes.bfloat16, np.float64, np.complex64, np.complex128]


@pytest.mark.parametrize("dtype", SIZES)
def test_copies_of_every_size_of_element(dtype):
    base = (BASE % 3).astype(dtype)
    got = from_host(base).transpose((2, 1, 0)).copy()
    assert got.contiguous
    np.testing.assert_array_equal(got.copy_to_host(), base.transpose(2, 1, 0))


def test_writing_into_a_view():
    x = from_host(BASE)
    x[:, 1:3, ::2].copy_from(from_host(np.full((3, 2, 3), -1, np.float32)))
    want = BASE.copy()
    want[:, 1:3, ::2] = -1
    np.testing.assert_array_equal(x.copy_to_host(), want)
    x[0].transpose((1, 0)).copy_from_host(np.zeros((5, 4), np.float32))
    want[0] = 0
    np.testing.assert_array_equal(x.copy_to_host(), want)


def test_one_kernel_serves_all_shapes_of_a_rank():
    state = device_state(0)
    from_host(np.zeros((4, 6))).transpose((1, 0)).copy()
    kernels = len(state.functions)
    from_host(np.zeros((7, 5))).transpose((1, 0)).copy()
    assert len(state.functions) == kernels


def test_axes_that_lie_as_one_are_merged():
    axes = merged_axes((2, 3, 4), (48, 16, 4), (96, 16, 4), 4)
    assert (axes.shape, axes.to, axes.of) == ((2, 12), (48, 4), (96, 4))
    assert merged_axes((1, 1), (4, 4), (9, 9), 4).shape == ()


def test_reshape_is_a_view_where_numpy_makes_one():
    shapes = [(12,), (3, 4), (4, 3), (2, 6), (2, 2, 3), (1, 12, 1), (6, 1, 2)]
    layouts = [np.zeros((3, 4)), np.zeros((4, 3)).T, np.zeros((3, 8))[:, ::2], np.zeros((6, 4))[::2],
               np.zeros((2, 3, 2)).transpose(1, 0, 2), np.broadcast_to(np.zeros(4), (3, 4))]  # fmt: skip
    for a, shape in itertools.product(layouts, shapes):
        got = reshaped_strides(a.shape, a.strides, shape)
        try:
            want = a.view()
            want.shape = shape
        except AttributeError:
            assert got is None, (a.shape, a.strides, shape)
        else:
            assert got is not None, (a.shape, a.strides, shape)
            assert all(g == w for g, w, n in zip(got, want.strides, shape, strict=True) if n > 1)


def test_reshape_copies_where_it_must():
    x = from_host(BASE[0])
    out = x.transpose((1, 0)).reshape((20,))
    np.testing.assert_array_equal(out.copy_to_host(), BASE[0].T.reshape(20))
    assert x.reshape((2, 10)).address == x.address


def test_bits_under_another_dtype():
    x = from_host(BASE)
    np.testing.assert_array_equal(x.view(np.int32).copy_to_host(), BASE.view(np.int32))
    with pytest.raises(ValueError, match="sizes of the elements differ"):
        x.view(np.float64)


def test_a_view_keeps_the_memory():
    gc.collect()  # what other tests left behind
    state = device_state(0)
    x = from_host(BASE)
    view = x[1]
    assert view.base is x and view.owner is x.owner
    used = state.allocator.allocated()
    del x
    gc.collect()
    assert state.allocator.allocated() == used
    np.testing.assert_array_equal(view.copy_to_host(), BASE[1])
    del view
    assert state.allocator.allocated() < used


def test_numpy_does_not_take_it_silently():
    with pytest.raises(TypeError, match="copy it to the host first"):
        np.asarray(from_host(BASE))
    with pytest.raises(IndexError, match="index 3 is out of bounds for axis 0 with size 3"):
        from_host(BASE)[3]
    with pytest.raises(ValueError, match="cannot copy"):
        from_host(BASE).copy_from(from_host(BASE[0]))


def test_pinned_memory_does_not_wait():
    pinned = pinned_empty((100,), np.dtype(np.float32))
    pinned[:] = np.arange(100)
    stats.reset()
    x = from_host(pinned, non_blocking=True)
    out = x.copy_to_host(pinned_empty((100,), np.dtype(np.float32)), non_blocking=True)
    assert stats.snapshot()["device_synchronisations"] == 0
    x.state.synchronize(0)
    np.testing.assert_array_equal(out, np.arange(100))
    assert x.state.pinned.contains(pinned) and not x.state.pinned.contains(BASE)


def test_pinned_buffers_are_used_again():
    at = pinned_empty((5000,), np.dtype(np.float32)).ctypes.data
    assert pinned_empty((4500,), np.dtype(np.float32)).ctypes.data == at


def test_between_devices():
    x = from_host(BASE, 0)
    other = empty(BASE.shape, BASE.dtype, 1)
    other.copy_from(x)
    np.testing.assert_array_equal(other.copy_to_host(), BASE)
    other.transpose((2, 1, 0)).copy_from(x[...].transpose((2, 1, 0)))
    np.testing.assert_array_equal(other.copy_to_host(), BASE)


def test_cuda_array_interface():
    x = from_host(BASE)
    found = x.__cuda_array_interface__
    assert found["shape"] == (3, 4, 5) and found["typestr"] == "<f4" and found["strides"] is None
    assert found["data"] == (x.address, False) and found["version"] == 3 and found["stream"] == 1
    view = x[:, 1]
    assert view.__cuda_array_interface__["strides"] == view.strides
    back = dlpack.from_interface(view, 0)
    assert back.owner is view
    np.testing.assert_array_equal(back.copy_to_host(), BASE[:, 1])
    with pytest.raises(TypeError, match="no name for bfloat16"):
        _ = from_host(BASE.astype(ml_dtypes.bfloat16)).__cuda_array_interface__


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, *SIZES])
def test_dlpack_there_and_back(dtype):
    base = (BASE % 2).astype(dtype)
    x = from_host(base)
    got = dlpack.take(x[:, ::2])
    assert isinstance(got, DeviceArray) and got.dtype == base.dtype
    assert got.address == x.address and got.strides == x[:, ::2].strides
    np.testing.assert_array_equal(got.copy_to_host(), base[:, ::2])
    assert x.__dlpack_device__() == (2, 0)


def test_dlpack_keeps_and_frees():
    gc.collect()  # what other tests left behind
    state = device_state(0)
    used, alive = state.allocator.allocated(), len(dlpack._alive)
    x = from_host(BASE)
    taken = dlpack.take(x)
    del x
    gc.collect()
    np.testing.assert_array_equal(taken.copy_to_host(), BASE)
    del taken
    gc.collect()
    assert (state.allocator.allocated(), len(dlpack._alive)) == (used, alive)
    capsule = from_host(BASE).__dlpack__()
    assert len(dlpack._alive) == alive + 1
    del capsule  # nobody took it
    gc.collect()
    assert len(dlpack._alive) == alive


def test_dlpack_capsules_are_used_once():
    capsule = from_host(BASE).__dlpack__(stream=-1)
    dlpack.take(capsule)
    with pytest.raises(RuntimeError, match="once only"):
        dlpack.take(capsule)
