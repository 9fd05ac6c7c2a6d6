"""Planted faults, each of which must be found, and their repaired versions, which must not be accused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from ptx_samples import device, entry, run
from weft.runtime.emulate import EmulationError, Finding

_TILE = ".shared .align 16 .b8 tile[1024];"
_X = np.arange(128, dtype=np.float32)


def _findings(ptx: str, arrays: list[np.ndarray], grid: int = 1, block: int = 64, **options) -> list[Finding]:
    machine = device()
    run(ptx, "k", arrays, grid, block, machine=machine, **options)
    return machine.findings


def _line(ptx: str, text: str) -> int:
    return 1 + next(i for i, line in enumerate(ptx.split("\n")) if text in line)


_REVERSE = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r90, 4, %r1; mov.u32 %r3, 63; sub.u32 %r3, %r3, %r90;
    mad.lo.u32 %r4, %r3, 4, %r1;
    ld.global.b32 %r5, [%rd10];
    st.shared.b32 [%r2], %r5;
    BARRIER
    ld.shared.b32 %r6, [%r4];
    st.global.b32 [%rd11], %r6;
"""


def test_a_missing_barrier_is_a_race():
    ptx = entry(_REVERSE.replace("BARRIER", ""), declarations=_TILE)
    (found,) = _findings(ptx, [_X, _X], 2)
    assert found.kind == "race" and found.line == _line(ptx, "ld.shared") and found.count == 128
    with pytest.raises(EmulationError, match="race"):
        run(ptx, "k", [_X, _X], 2, 64)
    ptx = entry(_REVERSE.replace("BARRIER", "bar.sync 0;"), declarations=_TILE)
    assert _findings(ptx, [_X, _X], 2) == []


def test_a_barrier_of_the_warp_orders_only_the_warp():
    within = _REVERSE.replace("mov.u32 %r3, 63; sub.u32 %r3, %r3, %r90;", "xor.b32 %r3, %r90, 31;")
    for barrier in ("bar.warp.sync 0xffffffff;", "shfl.sync.idx.b32 %r7, %r0, 0, 31, -1;"):
        assert _findings(entry(within.replace("BARRIER", barrier), declarations=_TILE), [_X, _X], 2) == []
        across = _findings(entry(_REVERSE.replace("BARRIER", barrier), declarations=_TILE), [_X, _X], 2)
        assert [f.kind for f in across] == ["race"]
    assert [
        f.kind for f in _findings(entry(within.replace("BARRIER", ""), declarations=_TILE), [_X, _X])
    ] == ["race"]


def test_overwriting_what_others_still_read_is_a_race():
    loop = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r90, 4, %r1; mov.u32 %r9, 0;
    xor.b32 %r3, %r90, 32; mad.lo.u32 %r4, %r3, 4, %r1; ld.global.b32 %r5, [%rd10];
LOOP:
    st.shared.b32 [%r2], %r5;
    bar.sync 0;
    ld.shared.b32 %r5, [%r4];
    SECOND
    add.u32 %r9, %r9, 1; setp.lt.u32 %p1, %r9, 4; @%p1 bra LOOP;
    st.global.b32 [%rd11], %r5;
    """
    ptx = entry(loop.replace("SECOND", ""), declarations=_TILE)
    (found,) = _findings(ptx, [_X, _X])
    assert found.kind == "race" and found.line == _line(ptx, "st.shared") and found.count == 3 * 64
    assert _findings(entry(loop.replace("SECOND", "bar.sync 0;"), declarations=_TILE), [_X, _X]) == []


def test_many_readers_before_a_writer():
    """All threads read one word that the last then writes: only a barrier makes that right."""
    body = """
    mov.u32 %r1, tile; setp.eq.u32 %p1, %r90, WRITER;
    @%p1 st.shared.b32 [%r1], %r0;
    bar.sync 0;
    ld.shared.b32 %r2, [%r1];
    BARRIER
    @%p1 st.shared.b32 [%r1], %r92;
    st.global.b32 [%rd10], %r2;
    """
    for writer in (0, 31, 63):
        for barrier, wanted in (("", ["race"]), ("bar.warp.sync -1;", ["race"]), ("bar.sync 0;", [])):
            text = body.replace("WRITER", str(writer)).replace("BARRIER", barrier)
            found = _findings(entry(text, params=1, declarations=_TILE), [_X], 1)
            assert [f.kind for f in found] == wanted


def test_neighbouring_bytes_do_not_race():
    body = """
    mov.u32 %r1, tile; add.u32 %r2, %r1, %r90; st.shared.b8 [%r2], %r0;
    ld.shared.u8 %r3, [%r2]; st.global.b32 [%rd10], %r3;
    cvt.u64.u32 %rd20, %r0; add.u64 %rd20, %rd20, %rd1; st.global.b8 [%rd20], %r3;
    """
    arrays = [_X, np.zeros(128, np.uint8)]
    assert _findings(entry(body, declarations=_TILE), arrays, 2) == []
    words = body.replace("ld.shared.u8 %r3, [%r2]", "and.b32 %r2, %r2, -4; ld.shared.b32 %r3, [%r2]")
    assert {f.kind for f in _findings(entry(words, declarations=_TILE), arrays, 2)} == {"race"}


def test_races_in_global_memory():
    same = "mov.u32 %r1, 5; st.global.b32 [%rd1], %r1; st.global.b32 [%rd10], %r1;"
    assert _findings(entry(same), [_X, _X], 2) == []  # all store the same: harmless
    ptx = entry("st.global.b32 [%rd1], %r0;")
    (found,) = _findings(ptx, [_X, _X], 2)
    assert found.kind == "race"
    shifted = entry("ld.global.b32 %r1, [%rd10+4];\nst.global.b32 [%rd10], %r1;", params=1)
    found = _findings(shifted, [np.arange(129, dtype=np.float32)], 2)
    assert {(f.kind, f.line) for f in found} == {("race", _line(shifted, "st.global"))}
    # within a block a barrier orders it, but between blocks none does
    ordered = entry("ld.global.b32 %r1, [%rd10+4];\nbar.sync 0;\nst.global.b32 [%rd10], %r1;", params=1)
    assert _findings(ordered, [np.arange(65, dtype=np.float32)], 1) == []
    (found,) = _findings(ordered, [np.arange(129, dtype=np.float32)], 2)
    assert found.kind == "race" and found.count == 1


_LAST_BLOCK = """
    mad.wide.u32 %rd20, %r91, 4, %rd0; setp.ne.u32 %p1, %r90, 0; @%p1 bra WAIT;
    add.u32 %r1, %r91, 1; st.global.b32 [%rd20], %r1;
    FENCE
    atom.global.add.u32 %r2, [%rd1], 1; mov.u32 %r3, tile; st.shared.b32 [%r3], %r2;
WAIT:
    bar.sync 0;
    ld.shared.b32 %r4, [tile]; setp.ne.u32 %p2, %r4, 3; @%p2 bra END;
    setp.ge.u32 %p3, %r90, 4; @%p3 bra END;
    mad.wide.u32 %rd21, %r90, 4, %rd0; ld.global.b32 %r5, [%rd21]; red.global.add.u32 [%rd1+4], %r5;
END:
"""


def test_the_last_block_may_read_what_the_others_published():
    arrays = [np.zeros(4, np.uint32), np.zeros(2, np.uint32)]
    ptx = entry(_LAST_BLOCK.replace("FENCE", "membar.gl;"), declarations=_TILE)
    np.testing.assert_array_equal(run(ptx, "k", arrays, 4, 64)[1], [4, 10])
    found = _findings(entry(_LAST_BLOCK.replace("FENCE", ""), declarations=_TILE), arrays, 4)
    assert {f.kind for f in found} == {"race"}


_COUNTER = """
    mov.u32 %r1, tile; setp.eq.u32 %p1, %r90, 0; mov.u32 %r4, 1;
    @%p1 st.shared.b32 [%r1], %r91;
    FIRST
    red.shared.add.u32 [%r1], %r4;
    SECOND
    ld.shared.b32 %r2, [%r1]; st.global.b32 [%rd10], %r2;
"""


def test_atomics_race_with_plain_accesses_and_not_with_each_other():
    for first, second, wrong in (
        ("bar.sync 0;", "bar.sync 0;", ""), ("", "bar.sync 0;", "red.shared"),
        ("bar.sync 0;", "", "ld.shared"), ("bar.warp.sync -1;", "bar.sync 0;", "red.shared"),
    ):  # fmt: skip
        body = _COUNTER.replace("FIRST", first + "\n").replace("SECOND", second + "\n")
        ptx = entry(body, params=1, declarations=_TILE)
        lines = [(f.kind, f.line) for f in _findings(ptx, [_X], 2)]
        assert lines == ([("race", _line(ptx, wrong))] if wrong else [])


def test_atomics_race_with_plain_accesses_in_global_memory():
    """Also between blocks, of bytes within a word, and where the plain access comes first."""
    atomic, load, store = (
        "red.global.add.u32 [%rd0], %r4;", "ld.global.u8 %r2, [%rd0+1];", "st.global.b32 [%rd0], %r0;"
    )  # fmt: skip
    for block in (64, 32):
        for lines, kinds in (
            ((atomic, "red.global.max.u32 [%rd0], %r4;"), []),
            ((atomic, "ld.relaxed.gpu.global.u32 %r2, [%rd0]; st.relaxed.gpu.global.u32 [%rd0], %r4;"), []),
            ((atomic, load), ["race"]),
            ((load, atomic), ["race"]),
            ((atomic, "setp.eq.u32 %p1, %r0, 77; @%p1 " + store), ["race"]),
            (("setp.eq.u32 %p1, %r0, 13; @%p1 " + store, atomic), ["race"]),
        ):
            ptx = entry("mov.u32 %r4, 1;\n" + "\n".join(lines), params=1)
            assert [f.kind for f in _findings(ptx, [_X], 128 // block, block)] == kinds, lines


def test_strong_accesses_race_with_plain_ones():
    body = """
    setp.ge.u32 %p1, %r90, 32; @%p1 bra OTHER;
    WRITE bra END;
OTHER: READ st.global.b32 [%rd11], %r2;
END:
    """
    for write, read, kinds in (
        ("st.volatile.global.u32 [%rd0], %r0;", "ld.volatile.global.u32 %r2, [%rd0];", []),
        ("st.global.u32 [%rd0], %r0;", "ld.volatile.global.u32 %r2, [%rd0];", ["race"]),
        ("st.volatile.global.u32 [%rd0], %r0;", "ld.global.u32 %r2, [%rd0];", ["race"]),
    ):
        write = "setp.eq.u32 %p2, %r90, 5; @%p2 " + write
        ptx = entry(body.replace("WRITE", write).replace("READ", read))
        assert sorted({f.kind for f in _findings(ptx, [_X, _X], 1)}) == kinds


def test_blocks_of_a_launch_do_not_see_each_other():
    """Many blocks, not all side by side, each reading what its neighbour writes, or writing it."""
    arrays = [np.zeros(64 * 300 + 64, np.float32), np.zeros(64 * 300, np.float32)]
    for first, second in (
        ("st.global.b32 [%rd10+256], %r0;", "ld.global.b32 %r1, [%rd10];"),  # of the block before
        ("st.global.b32 [%rd10], %r0;", "ld.global.b32 %r1, [%rd10+256];"),  # of the block behind
        ("ld.global.b32 %r1, [%rd10+256];", "st.global.b32 [%rd10], %r0;"),
    ):
        ptx = entry(f"{first} bar.sync 0; membar.gl;\n{second} st.global.b32 [%rd11], %r1;")
        assert {f.kind for f in _findings(ptx, arrays, 300)} == {"race"}
    twice = entry("and.b32 %r1, %r0, 8191; mad.wide.u32 %rd20, %r1, 4, %rd0;\nst.global.b32 [%rd20], %r0;")
    (found,) = [f for f in _findings(twice, arrays, 300) if f.kind == "race"]
    assert found.count == 64 * 300 - 8192 and found.line == _line(twice, "st.global")
    same = twice.replace("[%rd20], %r0", "[%rd20], %r1")
    assert _findings(same, arrays, 300) == []


def test_a_shuffle_takes_values_of_participants_only():
    """Half a warp goes another way; the others name themselves, and reach beyond themselves or not."""
    body = """
    and.b32 %r1, %r90, 31; setp.ge.u32 %p1, %r1, 16; @%p1 bra END;
    shfl.sync.bfly.b32 %r2, %r0, DISTANCE, 31, MASK;
    st.global.b32 [%rd10], %r2;
END:
    """
    for distance, wanted in ((8, []), (16, ["undefined"])):
        text = body.replace("DISTANCE", str(distance))
        ptx = entry(text.replace("MASK", "0xffff"), params=1)
        assert [f.kind for f in _findings(ptx, [_X])] == wanted
    for mask in ("-1", "0xff"):  # the others never come; some leave themselves out
        late = body.replace("DISTANCE", "1").replace("MASK", mask).replace("END:", "END: bar.warp.sync -1;")
        with pytest.raises(EmulationError, match="named in its mask"):
            run(entry(late, params=1), "k", [_X], 1, 64)
    exited = "setp.ge.u32 %p1, %r90, 40; @%p1 exit; shfl.sync.bfly.b32 %r2, %r0, 16, 31, -1;"
    assert [f.kind for f in _findings(entry(exited, params=1), [_X])] == ["undefined"]


def test_out_of_bounds():
    machine = device()
    with pytest.raises(EmulationError, match="not allocated") as caught:
        run(entry("ld.global.b32 %r1, [%rd10+4];", params=1), "k", [_X], 2, 64, machine=machine)
    assert caught.value.thread == ((1, 0, 0), (63, 0, 0)) and caught.value.kernel == "k"
    with pytest.raises(EmulationError, match="out of bounds"):
        run(entry("mov.u64 %rd20, 4096; st.global.b32 [%rd20], %r0;"), "k", [_X, _X])
    with pytest.raises(EmulationError, match=r"shared address .* out of bounds") as caught:
        body = "mov.u32 %r1, tile; mad.lo.u32 %r2, %r90, 32, %r1;\nst.shared.b32 [%r2], %r0;"
        ptx = entry(body, declarations=_TILE)
        run(ptx, "k", [_X, _X], 2, 64)
    assert caught.value.line == _line(ptx, "st.shared") and caught.value.thread == ((0, 0, 0), (32, 0, 0))
    with pytest.raises(EmulationError, match="local address"):
        body = "mov.u64 %rd20, mine; st.local.b32 [%rd20+8], %r0;"
        run(entry(body, declarations=".local .align 8 .b8 mine[8];"), "k", [_X, _X])
    with pytest.raises(EmulationError, match="in no state space"):
        run(entry("ld.b32 %r1, [%rd20];", params=1), "k", [_X])


def test_host_addresses_and_freed_memory_are_not_followed():
    machine = device()
    function = machine.load(entry("ld.global.b32 %r1, [%rd10];", params=1)).function("k")
    with pytest.raises(EmulationError):
        machine.launch(function, (1, 1, 1), (32, 1, 1), 0, struct.pack("<Q", _X.ctypes.data))
    address = machine.malloc(512)
    machine.memset(address, 0, 512)
    machine.launch(function, (1, 1, 1), (32, 1, 1), 0, struct.pack("<Q", address))
    machine.free(address)
    with pytest.raises(EmulationError, match="not allocated"):
        machine.launch(function, (1, 1, 1), (32, 1, 1), 0, struct.pack("<Q", address))


def test_misaligned_accesses():
    with pytest.raises(EmulationError, match="not aligned to 16 bytes"):
        run(entry("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd10];", params=1), "k", [_X])
    with pytest.raises(EmulationError, match="not aligned to 4 bytes"):
        run(entry("st.global.b32 [%rd10+2], %r0;", params=1), "k", [_X])


def test_memory_that_nothing_wrote():
    machine = device()
    source, target = machine.malloc(256), machine.malloc(256)
    machine.memset(source, 0, 128)
    ptx = entry("ld.global.b32 %r1, [%rd10];\nst.global.b32 [%rd11], %r1;")
    function = machine.load(ptx).function("k")
    params = struct.pack("<QQ", source, target)
    machine.launch(function, (1, 1, 1), (64, 1, 1), 0, params)
    (found,) = machine.findings
    assert (found.kind, found.line, found.count) == ("unwritten", _line(ptx, "ld.global"), 32)
    assert found.thread == ((0, 0, 0), (32, 0, 0))
    got = np.empty(64, np.uint32)
    machine.dtoh(got, target)
    assert (got[32:] == 0xFFFFFFFF).all()  # and it shows as NaN
    shared = entry("ld.shared.b32 %r1, [tile];", declarations=_TILE)
    assert [f.kind for f in _findings(shared, [_X, _X])] == ["unwritten"]


def test_an_unwritten_element_of_a_result_is_found_by_its_reader():
    writer = entry("setp.lt.u32 %p1, %r0, 63; @%p1 st.global.b32 [%rd11], %r0;")
    reader = entry("ld.global.b32 %r1, [%rd11]; st.global.b32 [%rd10], %r1;")
    machine = device(strict=True)
    a, b = machine.malloc(256), machine.malloc(256)
    params = struct.pack("<QQ", a, b)
    machine.launch(machine.load(writer).function("k"), (1, 1, 1), (64, 1, 1), 0, params)
    with pytest.raises(EmulationError, match="nothing wrote"):
        machine.launch(machine.load(reader).function("k"), (1, 1, 1), (64, 1, 1), 0, params)


def test_a_barrier_in_divergent_code():
    body = "setp.lt.u32 %p1, %r90, 16; @%p1 bra SKIP;\nbar.sync 0;\nSKIP:"
    ptx = entry(body, params=1)
    with pytest.raises(EmulationError, match="divergent") as caught:
        run(ptx, "k", [_X], 1, 64)
    assert caught.value.line == _line(ptx, "bar.sync")
    assert caught.value.thread == ((0, 0, 0), (16, 0, 0))


def test_a_barrier_that_some_warps_never_reach():
    body = "setp.lt.u32 %p1, %r90, 32; @%p1 bra OTHER; bar.sync 1; bra END;\nOTHER: bar.sync 2;\nEND:"
    with pytest.raises(EmulationError, match="never come"):
        run(entry(body, params=1), "k", [_X], 1, 64)
    exited = "setp.lt.u32 %p1, %r90, 32; @%p1 exit; bar.sync 0; st.global.b32 [%rd10], %r0;"
    run(entry(exited, params=1), "k", [_X], 1, 64)  # threads that have exited are not waited for


_ASYNC = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r90, 4, %r1;
    cp.async.ca.shared.global [%r2], [%rd10], 4; cp.async.commit_group;
    WAIT
    ld.shared.b32 %r3, [%r2]; st.global.b32 [%rd11], %r3;
"""


def test_a_missing_wait_for_a_copy():
    ptx = entry(_ASYNC.replace("WAIT", ""), declarations=_TILE)
    machine = device()
    got = run(ptx, "k", [_X, 0 * _X], 1, 64, machine=machine)[1]
    assert [f.kind for f in machine.findings] == ["unwritten"]
    assert np.isnan(got[:64]).all()
    ptx = entry(_ASYNC.replace("WAIT", "cp.async.wait_group 0;"), declarations=_TILE)
    assert _findings(ptx, [_X, _X]) == []


def test_a_copy_is_visible_to_others_after_a_barrier_only():
    other = _ASYNC.replace("ld.shared", "xor.b32 %r2, %r2, 128; ld.shared")
    ptx = entry(other.replace("WAIT", "cp.async.wait_all;"), declarations=_TILE)
    assert [f.kind for f in _findings(ptx, [_X, _X])] == ["race"]
    ptx = entry(other.replace("WAIT", "cp.async.wait_all; bar.sync 0;"), declarations=_TILE)
    assert _findings(ptx, [_X, _X]) == []


_PIPELINE = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r90, 4, %r1; mov.u32 %r9, 0; mov.u32 %r10, 0; mov.u64 %rd20, %rd10;
    cp.async.ca.shared.global [%r2], [%rd20], 4; cp.async.commit_group;
LOOP:
    add.u64 %rd20, %rd20, 256; xor.b32 %r3, %r2, 256;
    cp.async.ca.shared.global [%r3], [%rd20], 4; cp.async.commit_group;
    cp.async.wait_group PENDING;
    bar.sync 0;
    xor.b32 %r4, %r2, 128; ld.shared.b32 %r5, [%r4]; add.u32 %r10, %r10, %r5;
    SECOND
    mov.u32 %r2, %r3; add.u32 %r9, %r9, 1; setp.lt.u32 %p1, %r9, 3; @%p1 bra LOOP;
    st.global.b32 [%rd11], %r10; cp.async.wait_all;
"""


def test_a_pipeline_of_copies():
    """Waiting for too few groups, or copying into what others still read, is found; the right one is not."""
    source, target = np.arange(256, dtype=np.uint32), np.zeros(64, np.uint32)
    for pending, second, kinds in (("1", "bar.sync 0;", []), ("1", "", ["race"]),
                                   ("2", "bar.sync 0;", ["race", "unwritten"])):  # fmt: skip
        ptx = entry(_PIPELINE.replace("PENDING", pending).replace("SECOND", second), declarations=_TILE)
        machine = device()
        got = run(ptx, "k", [source, target], 1, 64, machine=machine)[1]
        assert sorted({f.kind for f in machine.findings}) == kinds
        if not kinds:
            turned = np.arange(64) ^ 32
            np.testing.assert_array_equal(got, sum(source[64 * i + turned] for i in range(3)))


def test_nothing_is_stored_where_a_copy_is_under_way():
    body = """
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r90, 4, %r1;
    cp.async.ca.shared.global [%r2], [%rd10], 4; cp.async.commit_group;
    FIRST
    st.shared.b32 [%r2], %r0;
    SECOND
    ld.shared.b32 %r3, [%r2]; st.global.b32 [%rd11], %r3;
    """
    for first, second, kinds in (("", "cp.async.wait_all;", ["race"]), ("cp.async.wait_all;", "", [])):
        ptx = entry(body.replace("FIRST", first).replace("SECOND", second), declarations=_TILE)
        assert [f.kind for f in _findings(ptx, [_X, _X])] == kinds


def test_unknown_instructions_and_operands_are_named():
    for body, pattern in (
        ("frobnicate.b32 %r1, %r0;", "unknown instruction frobnicate"),
        ("add.u32 %r1, %rd0, 1;", "used as .u32"),
        ("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32 {%r1}, {%r1}, {%r1}, {%r1};", "mma"),
        ("ld.global.b32 %r1, [%nothing];", "undeclared register"),
        ("bra NOWHERE;", "no such label"),
        ("call foo;", "unknown function"),
        ("trap;", "trap"),
        ("mov.u32 %r1, nowhere;", "unknown name"),
    ):
        with pytest.raises(EmulationError, match=pattern):
            run(entry(body, params=1), "k", [_X])


def test_malformed_text_is_an_error_with_its_line():
    for text in (
        "garbage",
        ".version 8.0\n.visible .entry k(",
        "\x01",
        ".entry k() {",
    ):
        with pytest.raises(EmulationError):
            device().load(text)
    with pytest.raises(EmulationError) as caught:
        device().load(entry("\n\nadd.u32 %r1 %r2;"))
    assert "expected ','" in str(caught.value)


def test_endless_loops_end():
    machine = device(budget=3000)
    with pytest.raises(EmulationError, match="no end"):
        run(entry("L: bra L;", params=1), "k", [_X], machine=machine)


def test_impossible_launches():
    machine = device()
    module = machine.load(
        entry("", params=1).replace("(.param .u64 p0)", "(.param .u64 p0) .maxntid 128, 1, 1")
    )
    function, params = module.function("k"), bytes(8)
    for grid, block, shared, given in (
        ((0, 1, 1), (32, 1, 1), 0, params),
        ((1, 1, 1), (256, 1, 1), 0, params),
        ((1, 70000, 1), (32, 1, 1), 0, params),
        ((1, 1, 1), (32, 1, 65), 0, params),
        ((1, 1, 1), (32, 1, 1), 1 << 20, params),
        ((1, 1, 1), (32, 1, 1), 0, bytes(4)),
    ):
        with pytest.raises(ValueError):
            machine.launch(function, grid, block, shared, given)
    with pytest.raises(KeyError):
        module.function("other")


def test_uncoalesced_accesses_show_in_the_statistics():
    machine = device()
    body = "shl.b32 %r1, %r0, 3; mad.wide.u32 %rd20, %r1, 4, %rd0; ld.global.b32 %r2, [%rd20];"
    run(
        entry(body + "\nst.global.b32 [%rd11], %r2;"),
        "k",
        [np.zeros(512, np.float32), _X],
        1,
        64,
        machine=machine,
    )
    load, store = machine.launches[-1].lines.values()
    assert (load.requests, load.sectors, load.ideal) == (2, 64, 8)
    assert (store.requests, store.sectors, store.ideal) == (2, 8, 8)
    assert [f.kind for f in machine.findings] == ["uncoalesced"]


def test_bank_conflicts_are_counted():
    for stride, wanted in ((1, 0), (2, 2), (32, 62), (33, 0)):
        body = f"""
        mov.u32 %r1, tile; mul.lo.u32 %r2, %r90, {stride}; rem.u32 %r2, %r2, 2048;
        mad.lo.u32 %r2, %r2, 4, %r1;
        st.shared.b32 [%r2], %r1;
        """
        machine = device()
        ptx = entry(body, params=1, declarations=".shared .align 4 .b8 tile[8192];")
        run(ptx, "k", [_X], 1, 64, machine=machine)
        assert machine.launches[-1].bank_conflicts == wanted
