"""The caching allocator: reuse by stream, splitting, merging, events, running out."""

from __future__ import annotations

import itertools

import pytest
from weft.runtime import stats
from weft.runtime.cuda import api
from weft.runtime.cuda.driver import CudaError
from weft.runtime.cuda.memory import ALIGN, Allocator, OutOfMemoryError, round_size

MIB = 1 << 20


class FakeDriver:
    """Counts what the allocator asks for; its events are done when the test says so."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity, self.next, self.live = capacity, 1 << 20, {}
        self.done, self.events = True, 0

    def activate(self, context: int) -> None:
        pass

    def malloc(self, nbytes: int) -> int:
        if sum(self.live.values()) + nbytes > self.capacity:
            raise CudaError("full", api.OUT_OF_MEMORY)
        at, self.next = self.next, self.next + nbytes
        self.live[at] = nbytes
        return at

    def free(self, address: int) -> None:
        del self.live[address]

    def memory_info(self) -> tuple[int, int]:
        return self.capacity - sum(self.live.values()), self.capacity

    def event_create(self, timing: bool) -> int:
        self.events += 1
        return self.events

    def call(self, name: str, *args: int) -> None:
        assert name in ("cuEventRecord", "cuEventDestroy_v2", "cuEventSynchronize")

    def is_ready(self, name: str, handle: int) -> bool:
        return self.done


def made(capacity: int = 1 << 40) -> tuple[FakeDriver, Allocator]:
    driver = FakeDriver(capacity)
    return driver, Allocator(driver, 1, "GPU 0")  # type: ignore[arg-type]


def give(allocator: Allocator, block: object) -> None:
    allocator.freed.append(block)  # type: ignore[arg-type]


def test_blocks_are_aligned_and_do_not_overlap():
    driver, a = made()
    blocks = [a.take(n, 0) for n in (1, 512, 513, 3 * MIB, 30 * MIB)]
    spans = sorted((b.address, b.address + b.size) for b in blocks)
    assert all(s[0] % ALIGN == 0 for s in spans)
    assert all(x[1] <= y[0] for x, y in itertools.pairwise(spans))
    assert sorted(driver.live.values()) == [2 * MIB, 20 * MIB, 30 * MIB]


def test_a_block_is_used_again_by_its_stream_at_once():
    driver, a = made()
    stats.reset()
    at = a.take(1000, 7)
    give(a, at)
    assert a.take(900, 7).address == at.address
    assert stats.snapshot()["device_allocations"] == 1
    assert driver.events == 0


def test_other_streams_have_blocks_of_their_own():
    _, a = made()
    first = a.take(1000, 7)
    give(a, first)
    assert a.take(1000, 8).address != first.address


def test_neighbours_merge():
    driver, a = made()
    blocks = [a.take(MIB // 2, 0) for _ in range(4)]  # one segment
    assert len(driver.live) == 1
    for k in (1, 3, 0, 2):
        give(a, blocks[k])
    assert a.allocated() == 0
    a.empty_cache()
    assert not driver.live and a.reserved() == 0


def test_a_segment_in_use_stays():
    driver, a = made()
    kept, other = a.take(1000, 0), a.take(1000, 0)
    give(a, other)
    a.empty_cache()
    assert len(driver.live) == 1 and a.allocated() == kept.size


def test_large_blocks_are_split_only_where_much_is_left():
    _, a = made()
    big = a.take(12 * MIB, 0)
    give(a, big)
    near = a.take(11 * MIB + 512 * 1024, 0)
    assert (near.address, near.size) == (big.address, 12 * MIB)
    give(a, near)
    assert a.take(4 * MIB, 0).size == 4 * MIB


def test_the_best_fit_is_taken():
    _, a = made()
    small, keep, large = a.take(2048, 0), a.take(512, 0), a.take(8192, 0)
    guard = a.take(512, 0)
    give(a, large)
    give(a, small)
    assert a.take(2048, 0).address == small.address
    assert a.take(4096, 0).address == large.address
    del keep, guard


def test_what_another_stream_uses_waits_for_its_event():
    driver, a = made()
    block = a.take(1000, 1)
    a.record_stream(block, 2)
    driver.done = False
    give(a, block)
    assert a.take(1000, 1).address != block.address
    assert driver.events == 1
    driver.done = True
    assert a.take(1000, 1).address == block.address


def test_running_out_gives_back_what_is_cached_first():
    driver, a = made(64 * MIB)
    give(a, a.take(40 * MIB, 0))
    assert a.take(50 * MIB, 1).size == 50 * MIB
    assert list(driver.live.values()) == [50 * MIB]


def test_out_of_memory_tells_the_sizes():
    _, a = made(64 * MIB)
    a.take(40 * MIB, 0)
    said = (
        r"Tried to allocate 30\.00 MiB\. GPU 0 has a total capacity of 64\.00 MiB of which "
        r"24\.00 MiB is free\. 40\.00 MiB is allocated"
    )
    with pytest.raises(OutOfMemoryError, match=said):
        a.take(30 * MIB, 0)
    assert issubclass(OutOfMemoryError, RuntimeError)


def test_a_segment_may_be_smaller_where_memory_is_short():
    driver, a = made(5 * MIB)
    a.take(4 * MIB, 0)  # a segment of 20 MB does not fit
    assert list(driver.live.values()) == [4 * MIB]


def test_peaks():
    _, a = made()
    x, y = a.take(1000, 0), a.take(5000, 0)
    give(a, x)
    give(a, y)
    assert (a.allocated(), a.max_allocated()) == (0, round_size(1000) + round_size(5000))
    a.reset_peak()
    assert a.max_allocated() == 0 and a.max_reserved() == a.reserved()


def test_a_lease_gives_its_block_back():
    _, a = made()
    lease = a.lease(1000, 0)
    assert a.allocated() == 1024
    del lease
    assert a.allocated() == 0


def test_what_a_captured_graph_uses_is_kept_until_its_end():
    _, a = made()
    a.private.add(7)
    block = a.take(1000, 1)
    a.record_stream(block, 7)
    give(a, block)
    assert a.take(1000, 1).address != block.address
    assert a.allocated() == 2 * block.size  # a replay may run at any time
    a.end_private(7)
    assert a.take(1000, 1).address == block.address
