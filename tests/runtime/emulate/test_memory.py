"""Loads, stores and atomics of all state spaces."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_samples import apply, device, entry, run


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_narrow_loads_extend(dtype):
    x = np.arange(-64, 64).astype(dtype)
    kind = ("s" if np.dtype(dtype).kind == "i" else "u") + str(8 * x.itemsize)
    body = f"mad.wide.u32 %rd20, %r0, {x.itemsize}, %rd0; ld.global.{kind} %r1, [%rd20];"
    body += "st.global.b32 [%rd11], %r1;"
    got = run(entry(body), "k", [x, np.zeros(128, np.int32)], 2, 64)[1]
    np.testing.assert_array_equal(got, x.astype(np.int32))


@pytest.mark.parametrize(("count", "size"), [(2, 1), (4, 1), (2, 2), (4, 2), (2, 4), (4, 4), (2, 8)])
def test_vectors(count, size):
    n = count * size
    x = np.random.default_rng(0).integers(0, 256, 64 * n).astype(np.uint8)
    letter = {1: "r", 2: "rs", 4: "r", 8: "rd"}[size]
    names = [f"%{letter}{30 + i}" for i in range(count)]
    body = f"""
    mad.wide.u32 %rd20, %r0, {n}, %rd0; mad.wide.u32 %rd21, %r0, {n}, %rd1;
    ld.global.nc.v{count}.b{8 * size} {{{", ".join(names)}}}, [%rd20];
    st.global.cs.v{count}.b{8 * size} [%rd21], {{{", ".join(reversed(names))}}};
    """
    got = run(entry(body), "k", [x, 0 * x], 2, 32)[1]
    np.testing.assert_array_equal(got.reshape(64, count, size), x.reshape(64, count, size)[:, ::-1])


def test_module_variables_and_their_addresses():
    head = """
    .const .align 4 .b32 table[4] = {10, -20, 0x1e, 40};
    .global .align 8 .u64 pointer = generic(values)+4;
    .global .align 4 .f32 values[3] = {0f3F800000, 0f40000000, 1.5};
    """
    head = "\n".join([head.split("\n")[3], *head.split("\n")[:3]])
    body = """
    mov.u64 %rd20, table; and.b32 %r1, %r0, 3; mad.wide.u32 %rd21, %r1, 4, %rd20;
    ld.const.b32 %r2, [%rd21]; st.global.b32 [%rd10], %r2;
    ld.global.u64 %rd22, [pointer]; ld.f32 %f1, [%rd22+4]; st.global.f32 [%rd11], %f1;
    """
    zeros = np.zeros(32, np.int32)
    got = run(entry(body, head=head), "k", [zeros, zeros.view(np.float32)])
    np.testing.assert_array_equal(got[0], np.array([10, -20, 30, 40])[np.arange(32) % 4])
    assert (got[1] == 1.5).all()


def test_generic_addresses_of_each_space():
    declarations = ".shared .align 8 .b8 block[512]; .local .align 8 .b8 mine[16];"
    body = """
    mov.u64 %rd20, block; mad.wide.u32 %rd20, %r90, 4, %rd20; cvta.shared.u64 %rd21, %rd20;
    mov.u64 %rd22, mine; cvta.local.u64 %rd23, %rd22;
    st.b32 [%rd21], %r0; st.b32 [%rd23+4], %r0;
    and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; selp.b64 %rd24, %rd21, %rd23, %p1;
    isspacep.shared %p2, %rd24; isspacep.local %p3, %rd24; isspacep.global %p4, %rd0;
    selp.b32 %r2, 100, 0, %p2; selp.b32 %r3, 200, 0, %p3; selp.b32 %r4, 400, 0, %p4;
    @%p3 add.u64 %rd24, %rd24, 4;
    ld.b32 %r5, [%rd24]; add.u32 %r5, %r5, %r2; add.u32 %r5, %r5, %r3; add.u32 %r5, %r5, %r4;
    st.b32 [%rd10], %r5;
    ld.shared.b32 %r6, [%rd20]; ld.local.b32 %r7, [mine+4]; sub.u32 %r8, %r6, %r7; st.b32 [%rd11], %r8;
    """
    zeros = np.zeros(256, np.int32)
    got = run(entry(body, declarations=declarations), "k", [zeros, zeros - 1], 2, 128)
    i = np.arange(256)
    np.testing.assert_array_equal(got[0], i + np.where(i % 2, 600, 500))
    assert (got[1] == 0).all()


def test_dynamic_shared_memory_lies_behind_the_static():
    head = ".extern .shared .align 16 .b8 dynamic[];"
    body = """
    mov.u32 %r1, fixed; mov.u32 %r2, dynamic; sub.u32 %r3, %r2, %r1; st.global.b32 [%rd10], %r3;
    mad.lo.u32 %r4, %r0, 4, %r2; st.shared.b32 [%r4], %r0;
    ld.shared.b32 %r5, [%r4]; st.global.b32 [%rd11], %r5;
    """
    zeros = np.zeros(32, np.int32)
    ptx = entry(body, head=head, declarations=".shared .align 4 .b8 fixed[20];")
    got = run(ptx, "k", [zeros, zeros], shared=128)
    assert (got[0] == 32).all()
    np.testing.assert_array_equal(got[1], np.arange(32))


def test_structures_as_parameters():
    ptx = entry("", params=1).replace(
        ".param .u64 p0", ".param .u64 p0, .param .align 8 .b8 s[24], .param .u8 c"
    )
    body = """
    ld.param.b32 %r1, [s+4]; ld.param.v2.b64 {%rd20, %rd21}, [s+8]; ld.param.u8 %r2, [c];
    add.u32 %r1, %r1, %r2; cvt.u32.u64 %r3, %rd21; add.u32 %r1, %r1, %r3; st.global.b32 [%rd10], %r1;
    """
    body = body.replace("ld.param.v2.b64 {%rd20, %rd21}, [s+8]", "ld.param.b64 %rd21, [s+16]")
    ptx = ptx.replace("\nret;", body + "\nret;")
    extra = np.array([1, 20, 3, 0, 4000, 0], np.int32).tobytes() + bytes([100])
    assert (run(ptx, "k", [np.zeros(32, np.int32)], extra=extra)[0] == 4120).all()


_ATOMICS = {
    "add.u32": np.add, "min.s32": np.minimum, "max.s32": np.maximum, "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or, "xor.b32": np.bitwise_xor,
}  # fmt: skip


@pytest.mark.parametrize("name", _ATOMICS)
def test_atomics_see_one_another_in_order(name):
    rng = np.random.default_rng(1)
    x = rng.integers(-1000, 1000, 256).astype(np.int32)
    place = rng.integers(0, 5, 256).astype(np.int32)
    body = f"""
    ld.global.b32 %r1, [%rd10]; ld.global.b32 %r2, [%rd11]; mad.wide.u32 %rd20, %r2, 4, %rd2;
    atom.global.{name} %r3, [%rd20], %r1; mad.wide.u32 %rd21, %r0, 4, %rd3; st.global.b32 [%rd21], %r3;
    """
    start = np.arange(5, dtype=np.int32) * 100
    got = run(entry(body, params=4), "k", [x, place, start, 0 * x], 2, 128)
    total, found = start.copy(), np.zeros_like(x)
    for i in range(256):
        found[i] = total[place[i]]
        total[place[i]] = _ATOMICS[name](total[place[i]], x[i])
    np.testing.assert_array_equal(got[2], total)
    np.testing.assert_array_equal(got[3], found)
    red = body.replace("atom", "red").replace("%r3, [", "[").replace("st.global.b32 [%rd21], %r3;", "")
    np.testing.assert_array_equal(run(entry(red, params=4), "k", [x, place, start, x], 2, 128)[2], total)


def test_atomic_floats():
    x = np.random.default_rng(2).standard_normal(128).astype(np.float32)
    body = "ld.global.f32 %f1, [%rd10]; red.global.add.f32 [%rd1], %f1;"
    total = np.float32(0)
    for v in x:
        total += v
    assert run(entry(body), "k", [x, np.zeros(1, np.float32)], 2, 64)[1][0] == total
    body = "ld.global.f32 %f1, [%rd10]; cvt.f64.f32 %fd1, %f1; atom.global.add.f64 %fd2, [%rd1], %fd1;"
    np.testing.assert_allclose(run(entry(body), "k", [x, np.zeros(1)], 2, 64)[1][0], x.astype(float).sum())
    pairs = np.ones(128, np.float16)
    body = "and.b32 %r1, %r0, 1; mad.wide.u32 %rd20, %r0, 4, %rd0; ld.global.b32 %r2, [%rd20]; "
    body += "atom.global.add.noftz.f16x2 %r3, [%rd1], %r2;"
    got = run(entry(body), "k", [pairs, np.zeros(2, np.float16)], 1, 64)[1]
    np.testing.assert_array_equal(got, [64, 64])


def test_counters_and_exchanges():
    body = """
    atom.global.inc.u32 %r1, [%rd1], 4; st.global.b32 [%rd10], %r1;
    atom.global.dec.u32 %r2, [%rd1+4], 2;
    atom.global.exch.b32 %r3, [%rd1+8], %r0;
    atom.global.cas.b32 %r4, [%rd1+12], %r0, 1000;
    """
    got = run(entry(body), "k", [np.zeros(32, np.uint32), np.array([0, 1, 9, 20], np.uint32)])
    np.testing.assert_array_equal(got[0], np.arange(32) % 5)
    dec = 1
    for _ in range(32):
        dec = 2 if dec == 0 or dec > 2 else dec - 1
    np.testing.assert_array_equal(got[1], [32 % 5, dec, 31, 1000])


def test_shared_atomics_build_a_histogram():
    x = np.random.default_rng(3).integers(0, 32, 256).astype(np.uint32)
    body = """
    mov.u32 %r1, bins; mad.lo.u32 %r2, %r90, 4, %r1; mov.u32 %r3, 0;
    setp.lt.u32 %p1, %r90, 32; @%p1 st.shared.b32 [%r2], %r3;
    bar.sync 0;
    ld.global.b32 %r4, [%rd10]; mad.lo.u32 %r5, %r4, 4, %r1; red.shared.add.u32 [%r5], 1;
    bar.sync 0;
    @!%p1 bra END;
    ld.shared.b32 %r6, [%r2]; mad.wide.u32 %rd20, %r90, 4, %rd1; red.global.add.u32 [%rd20], %r6;
END:
    """
    ptx = entry(body, declarations=".shared .align 4 .b8 bins[128];")
    got = run(ptx, "k", [x, np.zeros(32, np.uint32)], 2, 128)[1]
    np.testing.assert_array_equal(got, np.bincount(x, minlength=32))


def test_predicated_instructions_leave_other_threads_alone():
    a = np.arange(64, dtype=np.uint32)
    body = "mov.b32 %d, 7; setp.gt.u32 %q1, %a, 40; @%q1 add.u32 %d, %a, 1; @!%q1 mul.lo.u32 %d, %a, 2;"
    np.testing.assert_array_equal(apply(body, [a], np.uint32), np.where(a > 40, a + 1, 2 * a))


def test_allocations_are_reused_and_apart():
    machine = device()
    first, second = machine.malloc(1000), machine.malloc(10)
    assert first % 256 == second % 256 == 0 and second >= first + 1000
    machine.free(first)
    machine.free(second)
    for _ in range(100):
        address = machine.malloc(1 << 20)
        machine.memset(address, 3, 1 << 20)
        machine.free(address)
    with pytest.raises(ValueError, match="not an allocation"):
        machine.free(first)
    kept = [machine.malloc(1 << 19) for _ in range(3)]
    for _ in range(20):
        machine.free(kept.pop(0))
        kept.append(machine.malloc(1 << 19))
        assert max(kept) <= min(kept) + 3 * (1 << 19) and len(set(kept)) == 3
    machine.free(kept.pop())
    assert all(abs(machine.malloc(1 << 20) - address) >= 1 << 19 for address in kept)
    with pytest.raises(MemoryError):
        machine.malloc(1 << 30)


def test_copies():
    machine = device()
    x = np.arange(100, dtype=np.float32)
    a, b = machine.malloc(400), machine.malloc(400)
    machine.htod(a, x)
    machine.dtod(b, a, 400)
    machine.memset(b + 40, 0, 40)
    got = np.empty(100, np.float32)
    machine.dtoh(got, b)
    np.testing.assert_array_equal(got, np.where((np.arange(100) >= 10) & (np.arange(100) < 20), 0, x))
    with pytest.raises(ValueError, match="not within"):
        machine.htod(a + 4, x)
    with pytest.raises(ValueError, match="not within"):
        machine.dtoh(got, 12345)
