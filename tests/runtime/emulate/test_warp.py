"""Exchanges within warps, and divergent control flow, against loops over lanes."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_samples import apply, device, entry, run
from weft.runtime.emulate import EmulationError

_N = 128


def _numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, _N).astype(np.uint32)


def _shuffled(x: np.ndarray, mode: str, b: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """The pseudocode of the PTX ISA."""
    out, valid = x.copy(), np.zeros(x.size, bool)
    mask, clamp = c >> 8 & 31, c & 31
    for thread in range(x.size):
        lane = thread % 32
        highest = (lane & mask) | (clamp & ~mask)
        lowest = lane & mask
        j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~mask)}[mode]
        valid[thread] = j >= highest if mode == "up" else j <= highest
        out[thread] = x[thread - lane + j] if valid[thread] else x[thread]
    return out, valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles_with_every_clamp(mode):
    x = _numbers(1)
    for width in (32, 16, 4):
        segment = (32 - width) << 8
        clamp = segment if mode == "up" else segment | 31
        for b in (0, 1, 5, 16, 31):
            value, valid = _shuffled(x, mode, b, clamp)
            body = f"shfl.sync.{mode}.b32 %d, %a, {b}, {clamp}, 0xffffffff;"
            np.testing.assert_array_equal(apply(body, [x], np.uint32), value)
            body = f"shfl.sync.{mode}.b32 %x1|%q1, %a, {b}, {clamp}, -1; selp.b32 %d, 1, 0, %q1;"
            np.testing.assert_array_equal(apply(body, [x], np.uint32), valid)


def test_shuffle_with_a_lane_of_each_thread():
    x, b = _numbers(1), _numbers(2) & 31
    got = apply("shfl.sync.idx.b32 %d, %a, %b, 31, -1;", [x, b], np.uint32)
    np.testing.assert_array_equal(got, x.reshape(-1, 32)[np.arange(_N) // 32, b])


def test_votes():
    x = _numbers(3) % 3
    x[:32], x[32:64] = 1, 0
    warps = (x != 0).reshape(-1, 32)
    for mode, wanted in (("all", warps.all(1)), ("any", warps.any(1)), ("uni", warps.all(1) | ~warps.any(1))):
        body = f"setp.ne.u32 %q1, %a, 0; vote.sync.{mode}.pred %q2, %q1, -1; selp.b32 %d, 1, 0, %q2;"
        np.testing.assert_array_equal(apply(body, [x], np.uint32), np.repeat(wanted, 32))
    body = "setp.ne.u32 %q1, %a, 0; vote.sync.ballot.b32 %d, !%q1, -1;"
    ballots = (~warps * 2 ** np.arange(32)).sum(axis=1)
    np.testing.assert_array_equal(apply(body, [x], np.uint32), np.repeat(ballots, 32))


def test_reductions_of_warps():
    x = np.random.default_rng(4).integers(0, 2**32, _N).astype(np.uint32)
    for name, fn in {
        "add.u32": np.add, "min.u32": np.minimum, "max.u32": np.maximum, "and.b32": np.bitwise_and,
        "or.b32": np.bitwise_or, "xor.b32": np.bitwise_xor,
    }.items():  # fmt: skip
        got = apply(f"redux.sync.{name} %d, %a, -1;", [x], np.uint32)
        np.testing.assert_array_equal(got, np.repeat(fn.reduce(x.reshape(-1, 32), axis=1, dtype=x.dtype), 32))
    got = apply("redux.sync.min.s32 %d, %a, -1;", [x], np.int32)
    np.testing.assert_array_equal(got, np.repeat(x.view(np.int32).reshape(-1, 32).min(axis=1), 32))


def test_matches():
    x = _numbers(5) % 4
    x[:32] = 7
    rows = x.reshape(-1, 32)
    same = (rows[:, :, None] == rows[:, None, :]) @ (1 << np.arange(32, dtype=np.uint64))
    got = apply("match.any.sync.b32 %d, %a, -1;", [x], np.uint32)
    np.testing.assert_array_equal(got, same.astype(np.uint32).reshape(-1))
    body = "match.all.sync.b32 %d|%q1, %a, -1; @!%q1 or.b32 %d, %d, 5;"
    wanted = np.where((rows == rows[:, :1]).all(axis=1), 0xFFFFFFFF, 5)
    np.testing.assert_array_equal(apply(body, [x], np.uint32), np.repeat(wanted, 32))


def test_special_registers():
    body = "mov.u32 %x1, %laneid; mov.u32 %x2, %warpid; mad.lo.u32 %x3, %x2, 100, %x1; mov.u32 %d, %x3;"
    got = apply(body, [_numbers(1)], np.uint32)
    np.testing.assert_array_equal(got, np.arange(_N) // 32 * 100 + np.arange(_N) % 32)
    lanes = np.arange(_N, dtype=np.uint64) % 32
    bit = np.uint64(1) << lanes
    for name, wanted in {
        "eq": bit, "lt": bit - 1, "le": bit * 2 - 1, "gt": 2**32 - bit * 2, "ge": 2**32 - bit,
    }.items():  # fmt: skip
        got = apply(f"mov.u32 %d, %lanemask_{name};", [_numbers(1)], np.uint32)
        np.testing.assert_array_equal(got, wanted.astype(np.uint32))


def test_grids_and_blocks_of_three_dimensions():
    body = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
    mov.u32 %r4, %ctaid.x; mov.u32 %r5, %ctaid.y; mov.u32 %r6, %ctaid.z;
    mov.u32 %r7, %ntid.x; mov.u32 %r8, %ntid.y; mov.u32 %r9, %nctaid.x; mov.u32 %r10, %nctaid.y;
    mad.lo.u32 %r11, %r6, %r10, %r5; mad.lo.u32 %r11, %r11, %r9, %r4;
    mad.lo.u32 %r12, %r3, %r8, %r2; mad.lo.u32 %r12, %r12, %r7, %r1;
    mad.lo.u32 %r13, %r11, 30, %r12;
    mad.wide.u32 %rd20, %r13, 4, %rd0;
    mad.lo.u32 %r14, %r5, 100, %r3; st.global.b32 [%rd20], %r14;
    """
    machine = device(strict=True)
    address = machine.malloc(4 * 30 * 24)
    function = machine.load(entry(body, params=1)).function("k")
    machine.launch(function, (4, 3, 2), (5, 3, 2), 0, address.to_bytes(8, "little"))
    got = np.empty((2, 3, 4, 2, 3, 5), np.int32)
    machine.dtoh(got, address)
    y, z = np.arange(3).reshape(1, 3, 1, 1, 1, 1), np.arange(2).reshape(1, 1, 1, 2, 1, 1)
    np.testing.assert_array_equal(got, np.broadcast_to(100 * y + z, got.shape))


_COLLATZ = """
    ld.global.b32 %r1, [%rd10]; mov.u32 %r2, 0;
LOOP:
    setp.le.u32 %p1, %r1, 1; @%p1 bra DONE;
    and.b32 %r3, %r1, 1; setp.eq.u32 %p2, %r3, 0; @%p2 bra EVEN;
    mad.lo.u32 %r1, %r1, 3, 1; bra NEXT;
EVEN:
    shr.u32 %r1, %r1, 1;
NEXT:
    add.u32 %r2, %r2, 1; bra LOOP;
DONE:
    st.global.b32 [%rd11], %r2;
"""


def test_divergent_loops_join_again():
    x = np.arange(128, dtype=np.uint32)

    def steps(n: int) -> int:
        count = 0
        while n > 1:
            n, count = (3 * n + 1 if n % 2 else n // 2), count + 1
        return count

    joined = _COLLATZ + "activemask.b32 %r4; mad.wide.u32 %rd22, %r0, 4, %rd2; st.global.b32 [%rd22], %r4;"
    got = run(entry(joined, params=3), "k", [x, 0 * x, 0 * x], 2, 64)
    np.testing.assert_array_equal(got[1], [steps(int(n)) for n in x])
    assert (got[2] == 0xFFFFFFFF).all()


def test_nested_divergence_and_early_exits():
    body = """
    ld.global.b32 %r1, [%rd10];
    setp.eq.u32 %p1, %r1, 3; @%p1 exit;
    mov.u32 %r2, 0; mov.u32 %r3, 0;
    setp.gt.u32 %p2, %r1, 8; @!%p2 bra SMALL;
OUTER:
    mov.u32 %r4, 0;
INNER:
    add.u32 %r2, %r2, %r4; add.u32 %r4, %r4, 1; setp.lt.u32 %p3, %r4, %r3; @%p3 bra INNER;
    add.u32 %r3, %r3, 1; setp.lt.u32 %p4, %r3, %r1; @%p4 bra OUTER;
    bra.uni END;
SMALL:
    setp.eq.u32 %p5, %r1, 5; @%p5 ret;
    mov.u32 %r2, 77;
END:
    st.global.b32 [%rd11], %r2;
    """
    x = (np.arange(64, dtype=np.uint32) * 7) % 20

    def wanted(n: int) -> int:
        if n in (3, 5):
            return 0
        return 77 if n <= 8 else sum(j for i in range(n) for j in range(max(i, 1)))

    got = run(entry(body), "k", [x, 0 * x], 1, 64)[1]
    np.testing.assert_array_equal(got, [wanted(int(n)) for n in x])


def test_irreducible_flow():
    body = """
    ld.global.b32 %r1, [%rd10]; mov.u32 %r2, 0;
    and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 1; @%p1 bra B;
A:
    add.u32 %r2, %r2, 1;
B:
    add.u32 %r2, %r2, 100; setp.lt.u32 %p2, %r2, 500; @%p2 bra A;
    st.global.b32 [%rd11], %r2;
    """
    x = np.arange(32, dtype=np.uint32)
    got = run(entry(body), "k", [x, 0 * x])[1]
    np.testing.assert_array_equal(got, np.where(x % 2, 504, 505))


def test_branch_tables():
    body = """
    and.b32 %r1, %r0, 3;
    table: .branchtargets L0, L1, L2, L1;
    brx.idx %r1, table;
L0: mov.u32 %r2, 10; bra END;
L1: mov.u32 %r2, 20; bra END;
L2: mov.u32 %r2, 30;
END: st.global.b32 [%rd10], %r2;
    """
    got = run(entry(body, params=1), "k", [np.zeros(32, np.uint32)])[0]
    np.testing.assert_array_equal(got, np.array([10, 20, 30, 20])[np.arange(32) % 4])


def test_a_shuffle_that_named_threads_do_not_reach_is_a_fault():
    body = """
    setp.lt.u32 %p1, %r0, 16; @!%p1 bra END;
    shfl.sync.idx.b32 %r1, %r0, 0, 31, 0xffffffff;
END:
    """
    with pytest.raises(EmulationError, match="named in its mask"):
        run(entry(body, params=1), "k", [np.zeros(32, np.uint32)])
    run(entry(body.replace("0xffffffff", "0xffff"), params=1), "k", [np.zeros(32, np.uint32)])


def test_named_barriers_pass_values_between_warps():
    """Warp 0 produces and arrives, warp 1 waits, at different instructions."""
    body = """
    mov.u32 %r1, shared; and.b32 %r2, %r90, 31; mad.lo.u32 %r3, %r2, 4, %r1;
    setp.ge.u32 %p1, %r90, 32; @%p1 bra CONSUMER;
    mul.lo.u32 %r4, %r2, 3; st.shared.b32 [%r3], %r4;
    bar.arrive 1, 64; bra END;
CONSUMER:
    bar.sync 1, 64;
    ld.shared.b32 %r5, [%r3]; mad.wide.u32 %rd20, %r2, 4, %rd0; st.global.b32 [%rd20], %r5;
END:
    """
    ptx = entry(body, params=1, declarations=".shared .align 4 .b8 shared[128];")
    np.testing.assert_array_equal(run(ptx, "k", [np.zeros(32, np.uint32)], 1, 64)[0], 3 * np.arange(32))


def test_barrier_reductions():
    body = """
    and.b32 %r1, %r90, 3; setp.eq.u32 %p1, %r1, %r91;
    bar.red.popc.u32 %r2, 0, %p1;
    bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, !%p1;
    selp.b32 %r3, 1000, 0, %p2; selp.b32 %r4, 2000, 0, %p3; add.u32 %r2, %r2, %r3; add.u32 %r2, %r2, %r4;
    st.global.b32 [%rd10], %r2;
    """
    got = run(entry(body, params=1), "k", [np.zeros(5 * 64, np.uint32)], 5, 64)[0]
    np.testing.assert_array_equal(got, np.repeat([2016] * 4 + [2000], 64))


def test_blocks_wait_for_flags_of_other_blocks():
    """Block b adds to what block b - 1 published: a chain, with spinning."""
    body = """
    setp.ne.u32 %p1, %r90, 0; @%p1 bra END;
    mov.u32 %r1, 0; setp.eq.u32 %p2, %r91, 0; @%p2 bra PUBLISH;
    sub.u32 %r2, %r91, 1; mad.wide.u32 %rd20, %r2, 4, %rd0;
SPIN:
    ld.acquire.gpu.global.b32 %r1, [%rd20]; setp.eq.u32 %p3, %r1, 0; @%p3 bra SPIN;
PUBLISH:
    add.u32 %r1, %r1, 5; mad.wide.u32 %rd21, %r91, 4, %rd0;
    st.release.gpu.global.b32 [%rd21], %r1;
END:
    """
    got = run(entry(body, params=1), "k", [np.zeros(6, np.uint32)], 6, 64)[0]
    np.testing.assert_array_equal(got, 5 * np.arange(1, 7))
