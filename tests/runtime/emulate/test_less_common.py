"""Instructions that compilers seldom emit, and odd corners of the language."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_samples import apply, device, entry, run
from weft.runtime.emulate import EmulationError
from weft.runtime.emulate.cfg import ranks


def _numbers(seed: int, high: int = 2**32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, 64).astype(np.uint32)


def test_masks_and_extensions_of_bits():
    position, width, x = _numbers(1, 40), _numbers(2, 40), _numbers(3)

    def mask(p: int, n: int) -> int:
        return ((1 << min(n, 32)) - 1 << p if p < 32 else 0) & 0xFFFFFFFF

    rows = list(zip(map(int, position), map(int, width), map(int, x), strict=True))
    got = apply("bmsk.clamp.b32 %d, %a, %b;", [position, width], np.uint32)
    np.testing.assert_array_equal(got, [mask(p, n) for p, n, _ in rows])
    got = apply("bmsk.wrap.b32 %d, %a, %b;", [position, width], np.uint32)
    np.testing.assert_array_equal(got, [mask(p & 31, n & 31) for p, n, _ in rows])

    def extend(v: int, n: int) -> int:
        if n == 0:
            return 0
        v &= (1 << n) - 1
        return (v - (1 << n) if v >> (n - 1) else v) & 0xFFFFFFFF

    got = apply("szext.clamp.s32 %d, %a, %b;", [x, width], np.uint32)
    np.testing.assert_array_equal(got, [extend(v, min(n, 32)) for _, n, v in rows])
    got = apply("szext.wrap.u32 %d, %a, %b;", [x, width], np.uint32)
    np.testing.assert_array_equal(got, [v & (1 << (n & 31)) - 1 for _, n, v in rows])


def test_the_nth_bit_that_is_set():
    x, base = _numbers(1) | 1, _numbers(2, 32)
    for offset in (0, 1, 3, -2):
        wanted = []
        for v, b in zip(map(int, x), map(int, base), strict=True):
            places = [i for i in range(32) if v >> i & 1]
            if offset > 0:
                found = [i for i in places if i >= b][offset - 1 : offset]
            elif offset < 0:
                found = [i for i in reversed(places) if i <= b][-offset - 1 : -offset]
            else:
                found = [b] if v >> b & 1 else []
            wanted.append(found[0] if found else 0xFFFFFFFF)
        got = apply(f"fns.b32 %d, %a, %b, {offset};", [x, base], np.uint32)
        np.testing.assert_array_equal(got, wanted)


def test_comparisons_of_pairs():
    a = np.array([1, 5, np.nan, 2], np.float16).repeat(32)
    b = np.array([2, 5, 1, 1], np.float16).repeat(32)
    low, high = a.reshape(4, 32)[:2].T, b.reshape(4, 32)[:2].T
    pairs = [np.ascontiguousarray(x).view(np.uint32).reshape(-1) for x in (low, high)]
    body = "setp.lt.f16x2 %q1|%q2, %a, %b; selp.b32 %x1, 1, 0, %q1; selp.b32 %x2, 2, 0, %q2;"
    body += "or.b32 %d, %x1, %x2;"
    np.testing.assert_array_equal(apply(body, pairs, np.uint32), np.full(32, 1))
    got = apply("set.ge.f32.f32 %d, %a, %b;", [a.astype(np.float32), b.astype(np.float32)], np.float32)
    np.testing.assert_array_equal(got, (a >= b).astype(np.float32))


def test_extremes_of_three_and_by_sign():
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    got = apply("max.f32 %d, %a, %b, %c;", list(x), np.float32, "sm_100")
    np.testing.assert_array_equal(got, x.max(axis=0))
    got = apply("min.xorsign.abs.f32 %d, %a, %b;", list(x[:2]), np.float32, "sm_86")
    sign = np.sign(x[0]) * np.sign(x[1])
    np.testing.assert_array_equal(got, sign * np.abs(x[:2]).min(axis=0))


def test_pairs_of_integers():
    x = _numbers(1), _numbers(2)
    halves = [v.view(np.int16) for v in x]
    got = apply("max.s16x2 %d, %a, %b;", list(x), np.uint32, "sm_90")
    np.testing.assert_array_equal(got.view(np.int16), np.maximum(*halves))
    got = apply("max.relu.s16x2 %d, %a, %b;", list(x), np.uint32, "sm_90")
    np.testing.assert_array_equal(got.view(np.int16), np.maximum(np.maximum(*halves), 0))


def test_packing_with_saturation():
    a, b = _numbers(1).view(np.int32) >> 14, _numbers(2).view(np.int32) >> 14
    got = apply("cvt.pack.sat.s16.s32 %d, %a, %b;", [a, b], np.uint32).view(np.int16).reshape(-1, 2)
    np.testing.assert_array_equal(got[:, 1], np.clip(a, -(2**15), 2**15 - 1))
    np.testing.assert_array_equal(got[:, 0], np.clip(b, -(2**15), 2**15 - 1))


def test_half_approximations():
    x = np.linspace(-4, 4, 64).astype(np.float16)
    got = apply("ex2.approx.f16 %d, %a;", [x], np.float16)
    np.testing.assert_allclose(got, np.exp2(x.astype(np.float64)), rtol=2.0**-9.9)
    got = apply("tanh.approx.f16x2 %d, %a;", [x.view(np.uint32)], np.uint32).view(np.float16)
    np.testing.assert_allclose(got, np.tanh(x.astype(np.float64)), atol=2.0**-10.9)


def test_a_leader_is_elected():
    body = """
    setp.ge.u32 %p1, %r0, 5; @!%p1 bra END;
    elect.sync %r1|%p2, 0xffffffe0;
    selp.b32 %r2, 100, 0, %p2; add.u32 %r2, %r2, %r1; st.global.b32 [%rd10], %r2;
END:
    """
    machine = device("sm_90", strict=True)
    got = run(entry(body, params=1, arch="sm_90"), "k", [np.zeros(32, np.uint32)], machine=machine)[0]
    np.testing.assert_array_equal(got, np.r_[[0] * 5, 105, [5] * 26])


def test_scopes_hide_names():
    body = """
    mov.u32 %r1, 1;
    {
        .reg .b32 %r<3>; .reg .b32 inner;
        mov.u32 %r1, 50; mov.u32 inner, 7; add.u32 inner, inner, %r1;
        setp.eq.u32 %p1, inner, 57; @%p1 bra SKIP;
        mov.u32 inner, 0;
    SKIP:
        st.global.b32 [%rd10], inner;
    }
    { bra SKIP; SKIP: add.u32 %r1, %r1, 1; }
    st.global.b32 [%rd11], %r1;
    """
    got = run(entry(body), "k", [np.zeros(32, np.uint32), np.zeros(32, np.uint32)])
    assert (got[0] == 57).all() and (got[1] == 2).all()


def test_comments_directives_and_literals():
    body = """
    /* a comment
       of two lines */ .pragma "nounroll"; // another
    .loc 1 2 3
    mov.u32 %r1, 0x10; add.u32 %r1, %r1, 010; add.u32 %r1, %r1, 0b11; add.u32 %r1, %r1, WARP_SZ;
    mov.f32 %f1, 1.5; add.f32 %f1, %f1, 0fC0000000; cvt.rzi.s32.f32 %r2, %f1;
    mov.f64 %fd1, 0d4000000000000000; cvt.rni.s32.f64 %r3, %fd1;
    add.u32 %r1, %r1, %r3; st.global.b32 [%rd10+-0], %r1;
    """
    got = run(entry(body, params=1), "k", [np.zeros(32, np.uint32)])[0]
    assert (got == 16 + 8 + 3 + 32 + 2).all()


def test_recursion_is_refused():
    head = """
    .func f();
    .func f() { call f; ret; }
    """
    with pytest.raises(EmulationError, match="nested too deep"):
        run(entry("call f;", params=1, head=head), "k", [np.zeros(32, np.uint32)])


def test_ranks_keep_loops_together():
    # 0 -> loop (1 2 3, left from 2) -> 4, with an inner loop (2 3)
    successors = [[1, 4], [2], [4, 3], [2, 1], []]
    place = ranks(successors)
    assert place[0] == 0 and place[4] == 4 and place[1] == 1
    # the arms of a branch come before the block where they join
    assert ranks([[2, 1], [3], [3], []])[3] == 3
