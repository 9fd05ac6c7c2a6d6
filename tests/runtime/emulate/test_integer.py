"""Integer instructions against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ptx_samples import apply

_N = 256


def _values(kind: str, seed: int) -> np.ndarray:
    """Random numbers of all magnitudes, and the corners of the type."""
    dtype = np.dtype({"u": "u", "s": "i", "b": "u"}[kind[0]] + str(int(kind[1:]) // 8))
    info, rng = np.iinfo(dtype), np.random.default_rng(seed)
    wide = [int(rng.integers(0, 1 << 63)) >> int(rng.integers(0, 64)) for _ in range(_N)]
    x = np.array([v * (-1) ** (v & 1) & (2**64 - 1) for v in wide], np.uint64).astype(dtype)
    corners = [0, 1, info.max, info.min, info.max - 1, 2, 3, 7]
    x[: len(corners)] = np.roll(np.array(corners, object), seed).astype(dtype)
    return x


def _wrap(value: int, dtype: np.dtype) -> int:
    bits = dtype.itemsize * 8
    value &= (1 << bits) - 1
    return value - (1 << bits) if dtype.kind == "i" and value >> (bits - 1) else value


def _check(instruction: str, kinds: list[str], out: str, fn: Callable[..., int]) -> None:
    inputs = [_values(kind, seed) for seed, kind in enumerate(kinds)]
    result = np.dtype({"u": "u", "s": "i", "b": "u"}[out[0]] + str(int(out[1:]) // 8))
    operands = ", ".join(["%d", *[f"%{c}" for c in "abc"[: len(kinds)]]])
    got = apply(f"{instruction} {operands};", inputs, result)
    wanted = [_wrap(fn(*map(int, row)), result) for row in zip(*inputs, strict=True)]
    np.testing.assert_array_equal(got, np.array(wanted, result))


def _quotient(a: int, b: int) -> int:
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int:
    return a if b == 0 else a - _quotient(a, b) * b


_TYPES = ("u16", "s16", "u32", "s32", "u64", "s64")


@pytest.mark.parametrize("kind", _TYPES)
def test_arithmetic(kind):
    bits = int(kind[1:])
    _check(f"add.{kind}", [kind] * 2, kind, lambda a, b: a + b)
    _check(f"sub.{kind}", [kind] * 2, kind, lambda a, b: a - b)
    _check(f"mul.lo.{kind}", [kind] * 2, kind, lambda a, b: a * b)
    _check(f"mul.hi.{kind}", [kind] * 2, kind, lambda a, b: a * b >> bits)
    _check(f"mad.lo.{kind}", [kind] * 3, kind, lambda a, b, c: a * b + c)
    _check(f"mad.hi.{kind}", [kind] * 3, kind, lambda a, b, c: (a * b >> bits) + c)
    _check(f"div.{kind}", [kind] * 2, kind, _quotient)
    _check(f"rem.{kind}", [kind] * 2, kind, _remainder)
    _check(f"min.{kind}", [kind] * 2, kind, min)
    _check(f"max.{kind}", [kind] * 2, kind, max)
    _check(f"sad.{kind}", [kind] * 3, kind, lambda a, b, c: c + abs(a - b))


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind):
    wide = kind[0] + str(2 * int(kind[1:]))
    _check(f"mul.wide.{kind}", [kind] * 2, wide, lambda a, b: a * b)
    _check(f"mad.wide.{kind}", [kind, kind, wide], wide, lambda a, b, c: a * b + c)


def test_saturating_addition():
    def clamp(v: int) -> int:
        return max(-(2**31), min(2**31 - 1, v))

    _check("add.sat.s32", ["s32"] * 2, "s32", lambda a, b: clamp(a + b))
    _check("sub.sat.s32", ["s32"] * 2, "s32", lambda a, b: clamp(a - b))


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_signs(kind):
    _check(f"neg.{kind}", [kind], kind, lambda a: -a)
    _check(f"abs.{kind}", [kind], kind, abs)


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_24_bit_products(kind):
    def part(v: int) -> int:
        v &= 0xFFFFFF
        return v - (1 << 24) if kind == "s32" and v >> 23 else v

    _check(f"mul24.lo.{kind}", [kind] * 2, kind, lambda a, b: part(a) * part(b))
    _check(f"mul24.hi.{kind}", [kind] * 2, kind, lambda a, b: part(a) * part(b) >> 16)
    _check(f"mad24.lo.{kind}", [kind] * 3, kind, lambda a, b, c: part(a) * part(b) + c)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(kind):
    _check(f"and.{kind}", [kind] * 2, kind, lambda a, b: a & b)
    _check(f"or.{kind}", [kind] * 2, kind, lambda a, b: a | b)
    _check(f"xor.{kind}", [kind] * 2, kind, lambda a, b: a ^ b)
    _check(f"not.{kind}", [kind], kind, lambda a: ~a)
    _check(f"cnot.{kind}", [kind], kind, lambda a: int(a == 0))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_clamp(bits):
    shifts = np.r_[np.arange(2 * bits), 255, 2**31, 2**32 - 1].astype(np.uint32)
    for kind, op in (("u", "shl.b"), ("u", "shr.u"), ("i", "shr.s")):
        x = np.resize(_values(f"{'s' if kind == 'i' else 'u'}{bits}", 3), shifts.size)
        n = shifts.size // 32 * 32
        got = apply(f"{op}{bits} %d, %a, %b;", [x[:n], shifts[:n]], x.dtype)
        fn = (lambda a, s: a << min(s, bits)) if op == "shl.b" else (lambda a, s: a >> min(s, bits))
        wanted = [_wrap(fn(int(a), int(s)), x.dtype) for a, s in zip(x[:n], shifts[:n], strict=True)]
        np.testing.assert_array_equal(got, np.array(wanted, x.dtype))


def test_funnel_shifts():
    def both(low: int, high: int) -> int:
        return high << 32 | low

    kinds = ["u32"] * 3
    _check("shf.l.wrap.b32", kinds, "u32", lambda a, b, c: both(a, b) << (c & 31) >> 32)
    _check("shf.l.clamp.b32", kinds, "u32", lambda a, b, c: both(a, b) << min(c, 32) >> 32)
    _check("shf.r.wrap.b32", kinds, "u32", lambda a, b, c: both(a, b) >> (c & 31))
    _check("shf.r.clamp.b32", kinds, "u32", lambda a, b, c: both(a, b) >> min(c, 32))


@pytest.mark.parametrize("bits", [32, 64])
def test_counts(bits):
    kind, signed = f"u{bits}", f"s{bits}"
    _check(f"popc.b{bits}", [kind], "u32", lambda a: a.bit_count())
    _check(f"clz.b{bits}", [kind], "u32", lambda a: bits - a.bit_length())
    _check(f"brev.b{bits}", [kind], kind, lambda a: int(f"{a:0{bits}b}"[::-1], 2))
    _check(f"bfind.u{bits}", [kind], "u32", lambda a: a.bit_length() - 1)
    _check(f"bfind.s{bits}", [signed], "u32", lambda a: (a if a >= 0 else ~a).bit_length() - 1)
    _check(f"bfind.shiftamt.u{bits}", [kind], "u32", lambda a: bits - a.bit_length() if a else -1)


def _extract(a: int, position: int, length: int, bits: int, signed: bool) -> int:
    """As the PTX ISA has it: bit by bit, the sign repeated."""
    position, length = position & 255, length & 255
    a &= (1 << bits) - 1
    sign = (a >> min(position + length - 1, bits - 1)) & 1 if signed and length else 0
    out = 0
    for i in range(bits):
        inside = i < length and position + i < bits
        out |= ((a >> (position + i)) & 1 if inside else sign) << i
    return out


@pytest.mark.parametrize("bits", [32, 64])
def test_fields(bits):
    rng = np.random.default_rng(5)
    a, b = _values(f"u{bits}", 1), _values(f"u{bits}", 2)
    position = rng.integers(0, bits + 4, _N).astype(np.uint32)
    length = rng.integers(0, bits + 4, _N).astype(np.uint32)
    rows = list(zip(map(int, a), map(int, b), map(int, position), map(int, length), strict=True))
    for kind, signed in (("u", False), ("s", True)):
        got = apply(f"bfe.{kind}{bits} %d, %a, %b, %c;", [a, position, length], a.dtype)
        np.testing.assert_array_equal(
            got, np.array([_extract(x, p, n, bits, signed) for x, _, p, n in rows], a.dtype)
        )
    # the length of bfi is in the upper half of the third operand here
    packed = position | length << 16
    body = f"and.b32 %x1, %c, 0xffff; shr.u32 %x2, %c, 16; bfi.b{bits} %d, %a, %b, %x1, %x2;"
    got = apply(body, [a, b, packed], a.dtype)

    def insert(x: int, y: int, p: int, n: int) -> int:
        for i in range(n):
            if p + i < bits:
                y = y & ~(1 << p + i) | (x >> i & 1) << p + i
        return y

    np.testing.assert_array_equal(got, np.array([insert(*row) for row in rows], a.dtype))


def test_lop3_with_every_table():
    a, b, c = (_values("u32", s) for s in range(3))
    for table in (0x80, 0xFE, 0x96, 0xE8, 0x1B, 0xFF):
        got = apply(f"lop3.b32 %d, %a, %b, %c, {table};", [a, b, c], np.uint32)
        rows = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32))
        wanted = sum((table >> row.astype(np.int64) & 1) << i for i, row in enumerate(rows))
        np.testing.assert_array_equal(got, wanted.astype(np.uint32))


def test_byte_permutation():
    def permute(a: int, b: int, c: int) -> int:
        both, out = b << 32 | a, 0
        for i in range(4):
            pick = c >> 4 * i & 15
            byte = both >> 8 * (pick & 7) & 255
            out |= (byte if pick < 8 else 255 * (byte >> 7)) << 8 * i
        return out

    _check("prmt.b32", ["u32"] * 3, "u32", permute)
    a, b = np.full(32, 0x03020100, np.uint32), np.full(32, 0x07060504, np.uint32)
    control = np.arange(32, dtype=np.uint32)
    # the table of the PTX ISA, the lowest byte last
    tables = {
        "f4e": ["3210", "4321", "5432", "6543"],
        "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"],
        "rc16": ["1010", "3232", "1010", "3232"],
    }
    for mode, rows in tables.items():
        got = apply(f"prmt.b32.{mode} %d, %a, %b, %c;", [a, b, control], np.uint32)
        wanted = [int("".join(f"0{digit}" for digit in rows[c & 3]), 16) for c in range(32)]
        np.testing.assert_array_equal(got, np.array(wanted, np.uint32))


def test_carries_make_a_128_bit_sum():
    a, b = _values("u64", 1), _values("u64", 2)
    halves = """
    mov.b64 {%x0, %x1}, %a; mov.b64 {%x2, %x3}, %b;
    add.cc.u32 %x4, %x0, %x2; addc.u32 %x5, %x1, %x3;
    mov.b64 %d, {%x4, %x5};
    """
    np.testing.assert_array_equal(apply(halves, [a, b], np.uint64), a + b)
    halves = halves.replace("addc", "subc").replace("add.cc", "sub.cc")
    np.testing.assert_array_equal(apply(halves, [a, b], np.uint64), a - b)
    carry = "add.cc.u64 %y1, %a, %b; addc.u64 %d, 0, 0;"
    wanted = [(int(x) + int(y)) >> 64 for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(apply(carry, [a, b], np.uint64), np.array(wanted, np.uint64))
    product = "mad.lo.cc.u64 %y1, %a, %b, %c; madc.hi.u64 %d, %a, %b, 0;"
    c = _values("u64", 3)
    wanted = [(int(x) * int(y) + int(z)) >> 64 for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(apply(product, [a, b, c], np.uint64), np.array(wanted, np.uint64))


def test_dot_products_of_bytes():
    a, b, c = (_values("u32", s) for s in range(3))
    bytes_a = a.view(np.int8).reshape(-1, 4).astype(np.int64)
    bytes_b = b.view(np.uint8).reshape(-1, 4).astype(np.int64)
    got = apply("dp4a.s32.u32 %d, %a, %b, %c;", [a, b, c], np.uint32)
    np.testing.assert_array_equal(got, ((bytes_a * bytes_b).sum(axis=1) + c).astype(np.uint32))
    words = a.view(np.int16).reshape(-1, 2).astype(np.int64)
    got = apply("dp2a.hi.s32.u32 %d, %a, %b, %c;", [a, b, c], np.uint32)
    np.testing.assert_array_equal(got, ((words * bytes_b[:, 2:]).sum(axis=1) + c).astype(np.uint32))


_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("kind", _TYPES)
def test_comparisons_and_selection(kind):
    a, b = _values(kind, 1), _values(kind, 2)
    b[::3] = a[::3]
    for name, fn in _RELATIONS.items():
        wanted = fn(a, b)
        body = f"setp.{name}.{kind} %q1, %a, %b; selp.b32 %d, 7, 9, %q1;"
        np.testing.assert_array_equal(apply(body, [a, b], np.uint32), np.where(wanted, 7, 9))
        got = apply(f"set.{name}.u32.{kind} %d, %a, %b;", [a, b], np.uint32)
        np.testing.assert_array_equal(got, np.where(wanted, 0xFFFFFFFF, 0))


def test_comparisons_combine_with_a_predicate():
    a, b = _values("s32", 1), _values("s32", 2)
    for name, fn in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        body = f"""
        setp.gt.s32 %q1, %a, 0;
        setp.lt.{name}.s32 %q2|%q3, %a, %b, !%q1;
        selp.b32 %x1, 1, 0, %q2; selp.b32 %x2, 2, 0, %q3; or.b32 %d, %x1, %x2;
        """
        holds, other = a < b, ~(a > 0)
        wanted = fn(holds, other) + 2 * fn(~holds, other)
        np.testing.assert_array_equal(apply(body, [a, b], np.int32), wanted)


def test_slct_by_sign():
    a, b = _values("u32", 1), _values("u32", 2)
    c = np.resize(np.array([1, -1, 0, -0.0, np.nan, np.inf, -np.inf, 3], np.float32), _N)
    got = apply("slct.b32.f32 %d, %a, %b, %c;", [a, b, c], np.uint32)
    np.testing.assert_array_equal(got, np.where(c >= 0, a, b))


def test_packing():
    a = _values("u64", 1)
    body = "mov.b64 {%x0, %x1}, %a; mov.b64 %d, {%x1, %x0};"
    np.testing.assert_array_equal(apply(body, [a], np.uint64), a >> np.uint64(32) | a << np.uint64(32))
    body = "{ .reg .b16 l, h; mov.b32 {l, h}, %a; mov.b32 %d, {h, l}; }"
    low = _values("u32", 2)
    np.testing.assert_array_equal(apply(body, [low], np.uint32), low >> 16 | low << 16)
