"""mma.sync against numpy, with the fragments as the PTX ISA writes them, element by element."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from ptx_samples import device, entry, run

Place = tuple[int, int]
BF16, F8A, F8B = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def _a16(i: int, g: int, t: int) -> Place:
    """A of m16n8k16, .f16 and .bf16; the first four elements are those of m16n8k8."""
    return (g if i in (0, 1, 4, 5) else g + 8), t * 2 + (i & 1) + (8 if i >= 4 else 0)


def _b16(i: int, g: int, t: int) -> Place:
    return t * 2 + (i & 1) + (8 if i >= 2 else 0), g


def _a32(i: int, g: int, t: int) -> Place:
    """A of m16n8k8, .tf32; the first two elements are those of m16n8k4."""
    return (g if i in (0, 2) else g + 8), (t if i in (0, 1) else t + 4)


def _b32(i: int, g: int, t: int) -> Place:
    return (t if i == 0 else t + 4), g


def _a8(i: int, g: int, t: int) -> Place:
    """A of m16n8k32, .s8; the first eight elements are those of m16n8k16."""
    row = g if i < 4 or 8 <= i < 12 else g + 8
    return row, t * 4 + (i & 3) + (0 if i < 8 else 16)


def _b8(i: int, g: int, t: int) -> Place:
    return t * 4 + (i & 3) + (0 if i < 4 else 16), g


def _c(i: int, g: int, t: int) -> Place:
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def _pack(matrix: np.ndarray, place, count: int) -> np.ndarray:
    """The registers of the 32 threads that hold a matrix: (lane, 32-bit words)."""
    rows = [[matrix[place(i, lane >> 2, lane % 4)] for i in range(count)] for lane in range(32)]
    return np.array(rows, matrix.dtype).view(np.uint8).view(np.uint32)


def _unpack(words: np.ndarray, place, shape: tuple[int, int], dtype) -> np.ndarray:
    values = words.view(np.uint8).view(dtype).reshape(32, -1)
    out = np.zeros(shape, dtype)
    for lane in range(32):
        for i in range(values.shape[1]):
            out[place(i, lane >> 2, lane % 4)] = values[lane, i]
    return out


def _kernel(op: str, a: int, b: int, c: int, arch: str) -> str:
    def vector(base: int, n: int) -> str:
        return "{" + ", ".join(f"%r{base + i}" for i in range(n)) + "}"

    loads = []
    for p, (base, n) in enumerate(((10, a), (20, b), (30, c))):
        loads.append(f"mad.wide.u32 %rd2{p}, %r90, {4 * n}, %rd{p};")
        loads += [f"ld.global.b32 %r{base + i}, [%rd2{p} + {4 * i}];" for i in range(n)]
    stores = [f"mad.wide.u32 %rd23, %r90, {4 * c}, %rd3;"]
    stores += [f"st.global.b32 [%rd23 + {4 * i}], %r{40 + i};" for i in range(c)]
    product = f"{op} {vector(40, c)}, {vector(10, a)}, {vector(20, b)}, {vector(30, c)};"
    return entry("\n".join([*loads, product, *stores]), params=4, arch=arch)


_CASES = [
    ("m16n8k16", "f16", np.float16, "f32", np.float32, _a16, _b16, "sm_80"),
    ("m16n8k8", "f16", np.float16, "f32", np.float32, _a16, _b16, "sm_80"),
    ("m16n8k16", "f16", np.float16, "f16", np.float16, _a16, _b16, "sm_80"),
    ("m16n8k8", "f16", np.float16, "f16", np.float16, _a16, _b16, "sm_75"),
    ("m16n8k16", "bf16", BF16, "f32", np.float32, _a16, _b16, "sm_80"),
    ("m16n8k8", "bf16", BF16, "f32", np.float32, _a16, _b16, "sm_80"),
    ("m16n8k8", "tf32", np.float32, "f32", np.float32, _a32, _b32, "sm_80"),
    ("m16n8k4", "tf32", np.float32, "f32", np.float32, _a32, _b32, "sm_80"),
    ("m16n8k32", "s8", np.int8, "s32", np.int32, _a8, _b8, "sm_80"),
    ("m16n8k16", "u8", np.uint8, "s32", np.int32, _a8, _b8, "sm_80"),
    ("m16n8k32", "e4m3", F8A, "f32", np.float32, _a8, _b8, "sm_89"),
    ("m16n8k32", "e5m2", F8B, "f32", np.float32, _a8, _b8, "sm_89"),
]


@pytest.mark.parametrize(("shape", "kind", "dtype", "sums", "out", "place_a", "place_b", "arch"), _CASES)
def test_products_with_the_documented_fragments(shape, kind, dtype, sums, out, place_a, place_b, arch):
    depth = int(shape.partition("k")[2])
    rng = np.random.default_rng(depth)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        a, b = (rng.integers(info.min, info.max, s).astype(dtype) for s in ((16, depth), (depth, 8)))
        c = rng.integers(-1000, 1000, (16, 8)).astype(out)
    else:
        # quarters: every product and sum is exact in every type
        a, b, c = (rng.integers(-6, 6, s) / 4 for s in ((16, depth), (depth, 8), (16, 8)))
        a, b, c = a.astype(dtype), b.astype(dtype), c.astype(out)
    count_a, count_b = 16 * depth // 32, 8 * depth // 32
    words = [_pack(a, place_a, count_a), _pack(b, place_b, count_b), _pack(c, _c, 4)]
    op = f"mma.sync.aligned.{shape}.row.col.{sums}.{kind}.{kind}.{sums}"
    ptx = _kernel(op, words[0].shape[1], words[1].shape[1], words[2].shape[1], arch)
    got = run(ptx, "k", [*words, np.zeros_like(words[2])], machine=device(arch, strict=True))[3]
    wide = np.float64 if np.dtype(out).kind == "f" else np.int64
    wanted = a.astype(wide) @ b.astype(wide) + c.astype(wide)
    np.testing.assert_array_equal(_unpack(got, _c, (16, 8), out), wanted.astype(out))


def test_f64_product():
    rng = np.random.default_rng(1)
    a, b, c = rng.standard_normal((8, 4)), rng.standard_normal((4, 8)), rng.standard_normal((8, 8))
    body = """
    mad.wide.u32 %rd20, %r90, 8, %rd0; ld.global.b64 %rd30, [%rd20];
    mad.wide.u32 %rd21, %r90, 8, %rd1; ld.global.b64 %rd31, [%rd21];
    mad.wide.u32 %rd22, %r90, 16, %rd2; ld.global.v2.b64 {%rd32, %rd33}, [%rd22];
    mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd34, %rd35}, {%rd30}, {%rd31}, {%rd32, %rd33};
    mad.wide.u32 %rd23, %r90, 16, %rd3; st.global.v2.b64 [%rd23], {%rd34, %rd35};
    """
    # a is at (lane / 4, lane % 4), b at (lane % 4, lane / 4), c at (lane / 4, 2 (lane % 4) + i)
    got = run(entry(body, params=4), "k", [a, np.ascontiguousarray(b.T), c, 0 * c])[3]
    np.testing.assert_allclose(got, a @ b + c, rtol=1e-14)


def test_tf32_inputs_lose_their_low_bits():
    a = np.full((16, 8), 1 + 2.0**-12, np.float32)
    words = [_pack(a, _a32, 4), _pack(np.ones((8, 8), np.float32), _b32, 2), np.zeros((32, 4), np.uint32)]
    ptx = _kernel("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 4, 2, 4, "sm_80")
    got = run(ptx, "k", [*words, words[2]])[3]
    np.testing.assert_array_equal(_unpack(got, _c, (16, 8), np.float32), 8)


_LDMATRIX = """
.shared .align 16 .b8 tile[512];
"""


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count, transposed):
    x = np.arange(count * 64, dtype=np.uint16)
    trans = ".trans" if transposed else ""
    registers = ", ".join(f"%r{10 + i}" for i in range(count))
    stores = "\n".join(f"st.global.b32 [%rd21 + {4 * i}], %r{10 + i};" for i in range(count))
    body = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 4, %r1;
    """
    for i in range(count):
        body += f"ld.global.b32 %r3, [%rd10 + {128 * i}]; st.shared.b32 [%r2 + {128 * i}], %r3;\n"
    body += f"""
    bar.sync 0;
    mad.lo.u32 %r4, %r0, 16, %r1;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r4];
    mad.wide.u32 %rd21, %r0, {4 * count}, %rd1;
    {stores}
    """
    got = run(entry(body, declarations=_LDMATRIX), "k", [x, np.zeros_like(x)])[1].reshape(32, count, 2)
    matrices = x.reshape(count, 8, 8)
    for lane in range(32):
        for j in range(count):
            for i in range(2):
                row, column = lane // 4, 2 * (lane % 4) + i
                wanted = matrices[j, column, row] if transposed else matrices[j, row, column]
                assert got[lane, j, i] == wanted


def test_stmatrix_inverts_ldmatrix():
    x = np.arange(256, dtype=np.uint16)
    body = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 16, %r1;
    mad.wide.u32 %rd20, %r0, 16, %rd0; ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd20];
    st.shared.v4.b32 [%r2], {%r10, %r11, %r12, %r13};
    bar.warp.sync 0xffffffff;
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r20, %r21, %r22, %r23}, [%r2];
    bar.warp.sync 0xffffffff;
    stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r2], {%r20, %r21, %r22, %r23};
    bar.warp.sync 0xffffffff;
    ld.shared.v4.b32 {%r30, %r31, %r32, %r33}, [%r2];
    mad.wide.u32 %rd21, %r0, 16, %rd1; st.global.v4.b32 [%rd21], {%r30, %r31, %r32, %r33};
    """
    ptx = entry(body, declarations=_LDMATRIX, arch="sm_90")
    got = run(ptx, "k", [x, np.zeros_like(x)], machine=device("sm_90", strict=True))[1]
    np.testing.assert_array_equal(got, x)


def test_cp_async_arrives_at_the_wait():
    x = np.arange(128, dtype=np.float32)
    body = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 16, %r1;
    mad.wide.u32 %rd20, %r0, 16, %rd0; mad.wide.u32 %rd21, %r0, 16, %rd1;
    setp.lt.u32 %p1, %r0, 24; selp.b32 %r3, 16, 0, %p1;
    setp.eq.u32 %p2, %r0, 24; selp.b32 %r3, 6, %r3, %p2;
    cp.async.cg.shared.global [%r2], [%rd20], 16, %r3;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.v4.b32 {%r30, %r31, %r32, %r33}, [%r2];
    st.global.v4.b32 [%rd21], {%r30, %r31, %r32, %r33};
    """
    got = run(entry(body, declarations=_LDMATRIX), "k", [x, 0 * x])[1]
    wanted = x.copy()
    wanted.view(np.uint8)[24 * 16 + 6 :] = 0
    np.testing.assert_array_equal(got, wanted)


def test_cp_async_waits_for_all_but_the_last_groups():
    x = np.arange(64, dtype=np.float32)
    body = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 4, %r1;
    cp.async.ca.shared.global [%r2], [%rd10], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r2 + 128], [%rd10 + 128], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.b32 %r30, [%r2]; st.global.b32 [%rd11], %r30;
    cp.async.wait_all;
    ld.shared.b32 %r31, [%r2 + 128]; st.global.b32 [%rd11 + 128], %r31;
    """
    np.testing.assert_array_equal(run(entry(body, declarations=_LDMATRIX), "k", [x, 0 * x])[1], x)
    early = device()
    run(
        entry(body.replace("wait_group 1", "wait_group 2"), declarations=_LDMATRIX),
        "k",
        [x, x],
        machine=early,
    )
    assert {(f.kind, f.count) for f in early.findings} == {("unwritten", 32)}
