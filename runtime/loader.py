"""Loads object code without LLVM: what a warm start needs of a linker, for x86-64 ELF objects.

LLVM takes 9 ms to load, which is more than all of a first call from a full cache. Sections are copied into
one private mapping, first what is executed or only read, then what is written; relocations are applied with
numpy; calls that do not reach go through stubs. The mapping is never writable and executable at once, and is
never freed. Whatever is not known here (another machine, another kind of relocation) is left to LLVM's
linker: :func:`load` then gives None. Reference: System V ABI, AMD64 supplement, section 4.4 (relocations).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

_SECTION = np.dtype([
    ("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("addr", "<u8"), ("offset", "<u8"), ("size", "<u8"),
    ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entsize", "<u8"),
])  # fmt: skip
_SYMBOL = np.dtype([
    ("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")
])  # fmt: skip
_RELOCATION = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8
_WRITE, _ALLOC, _THREAD_LOCAL = 0x1, 0x2, 0x400
_ABS64, _PC32, _PLT32, _GOTPCREL, _GOTPCRELX, _REX_GOTPCRELX = 1, 2, 4, 9, 41, 42
_GOT = (_GOTPCREL, _GOTPCRELX, _REX_GOTPCRELX)
_KNOWN = (_ABS64, _PC32, _PLT32, *_GOT)
_KINDS = 256  # kinds of relocations are numbers below this


def _table(kinds: tuple[int, ...]) -> np.ndarray:
    """Whether each kind is one of these."""
    found = np.zeros(_KINDS, bool)
    found[list(kinds)] = True
    return found


_IS_KNOWN, _IS_GOT = _table(_KNOWN), _table(_GOT)
_UNDEFINED, _RESERVED = 0, 0xFF00
_GLOBAL = 1  # binding of a symbol
_STUB = b"\xff\x25\x00\x00\x00\x00"  # jmp [rip + 0], followed by the address
_STUB_BYTES = 16


class Unknown(Exception):
    """The object asks for something that this loader does not do."""


class Object:
    """A parsed ELF64 object: its machine, sections, symbols and their names. ValueError, IndexError
    or TypeError where the image is none."""

    def __init__(self, image: bytes) -> None:
        if image[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a little-endian ELF64 object")
        at = int.from_bytes(image[0x28:0x30], "little")
        count = int.from_bytes(image[0x3C:0x3E], "little")
        sections = np.frombuffer(image, _SECTION, count, at)
        symbols, names = np.zeros(0, _SYMBOL), []
        for s in sections[sections["type"] == _SYMTAB]:
            symbols = np.frombuffer(image, _SYMBOL, int(s["size"]) // 24, int(s["offset"]))
            table = int(sections[int(s["link"])]["offset"])
            names = [_text(image, table + n) for n in symbols["name"].tolist()]
        self.image, self.machine = image, int.from_bytes(image[0x12:0x14], "little")
        self.sections, self.symbols, self.names = sections, symbols, names

    def undefined(self) -> set[str]:
        """Names that it expects from elsewhere."""
        found = np.flatnonzero(self.symbols["section"] == _UNDEFINED).tolist()
        return {self.names[k] for k in found if self.names[k]}


    def defined(self) -> tuple[str, ...]:
        """Names that it gives to others."""
        symbols = self.symbols
        inside = (symbols["section"] != _UNDEFINED) & (symbols["section"] < _RESERVED)
        found = np.flatnonzero(inside & (symbols["info"] >> 4 == _GLOBAL))
        return tuple(self.names[k] for k in found.tolist())


def _text(image: bytes, start: int) -> str:
    return image[start : image.index(b"\0", start)].decode()


def supported() -> bool:
    """Whether objects of this machine can be loaded here."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def load(found: Object, wanted: tuple[str, ...], address_of: Callable[[str], int]) -> dict[str, int] | None:
    """Load an object; the addresses of ``wanted``, or None where that is beyond this loader.
    ``address_of`` gives the addresses of undefined symbols."""
    if not supported() or found.machine != 62:
        return None
    try:
        return _Loading(found).run(wanted, address_of)
    except (Unknown, OSError):
        return None


class _Loading:
    """Lays one object out and relocates it."""

    def __init__(self, found: Object) -> None:
        self.object = found
        self.relocations = [
            (int(s["info"]), np.frombuffer(found.image, _RELOCATION, int(s["size"]) // 24, int(s["offset"])))
            for s in found.sections[found.sections["type"] == _RELA]
            if int(found.sections[int(s["info"])]["flags"]) & _ALLOC
        ]
        self.offsets = [-1] * len(found.sections)  # of each section in the mapping
        self.end = 0

    def run(self, wanted: tuple[str, ...], address_of: Callable[[str], int]) -> dict[str, int]:
        o = self.object
        read, written = self._kinds()
        self._place(read)
        external = np.flatnonzero((o.symbols["section"] == _UNDEFINED) & (o.symbols["name"] != 0)).tolist()
        self.stub_of, self.slot_of = (np.full(len(o.symbols), -1, np.int64) for _ in range(2))
        for k in external:
            self.stub_of[k] = self._take(_STUB_BYTES, 16)
        for k in self._in_got():
            self.slot_of[k] = self._take(8, 8)
        fixed = self.end = -(-self.end // mmap.PAGESIZE) * mmap.PAGESIZE
        self._place(written)
        self.memory = mmap.mmap(-1, max(self.end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        self.base = int(self.bytes.ctypes.data)
        self._copy()
        values = self._values({k: address_of(o.names[k]) for k in external})
        for section, relocations in self.relocations:
            if self.offsets[section] >= 0:
                self._relocate(self.offsets[section], relocations, values)
        if fixed:
            _make_executable(self.base, fixed)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.memory))  # mapped until the process has gone
        known = dict(zip(o.names, values.tolist(), strict=True))
        return {name: known[name] for name in wanted}

    def _kinds(self) -> tuple[list[int], list[int]]:
        """The sections that are mapped: what is executed or only read, and what is written."""
        read, written = [], []
        for k, s in enumerate(self.object.sections):
            flags, kind = int(s["flags"]), int(s["type"])
            if not flags & _ALLOC or kind not in (_PROGBITS, _NOBITS):
                continue
            if flags & _THREAD_LOCAL:
                raise Unknown("thread-local memory")
            (written if flags & _WRITE else read).append(k)
        return read, written

    def _take(self, size: int, align: int) -> int:
        at = -(-self.end // max(align, 1)) * max(align, 1)
        self.end = at + size
        return at

    def _place(self, sections: list[int]) -> None:
        for k in sections:
            s = self.object.sections[k]
            self.offsets[k] = self._take(int(s["size"]), int(s["align"]))

    def _in_got(self) -> list[int]:
        """The symbols that are reached through a table of addresses."""
        found: set[int] = set()
        for _, r in self.relocations:
            kind = r["type"]
            if len(kind) and (int(kind.max()) >= _KINDS or not _IS_KNOWN[kind].all()):
                raise Unknown(f"relocations {sorted(set(kind.tolist()) - set(_KNOWN))}")
            found.update(r["symbol"][_IS_GOT[kind]].tolist())
        return sorted(found)

    def _copy(self) -> None:
        for s, at in zip(self.object.sections, self.offsets, strict=True):
            if at >= 0 and s["type"] == _PROGBITS:
                start, size = int(s["offset"]), int(s["size"])
                self.memory[at : at + size] = self.object.image[start : start + size]

    def _values(self, external: Mapping[int, int]) -> np.ndarray:
        """The address of every symbol; the stubs and the table are filled."""
        symbols = self.object.symbols
        bases = np.array([self.base + at if at >= 0 else 0 for at in self.offsets], np.int64)
        section = symbols["section"].astype(np.int64)
        if (section[1:] >= _RESERVED).any() and (symbols["info"][section >= _RESERVED] & 15 != 4).any():
            raise Unknown("symbols of special sections")
        values = bases[np.where(section < _RESERVED, section, 0)] + symbols["value"].astype(np.int64)
        self.known = values >= self.base  # symbols of sections that are not mapped have no address
        self.known[list(external)] = True
        for k, address in external.items():
            values[k] = address
            stub, at = _STUB + address.to_bytes(8, "little"), int(self.stub_of[k])
            self.memory[at : at + len(stub)] = stub
        used = np.flatnonzero(self.slot_of >= 0)
        self._write(self.slot_of[used], values[used], 8)
        return values

    def _relocate(self, start: int, relocations: np.ndarray, values: np.ndarray) -> None:
        kind = relocations["type"]
        symbol, at = relocations["symbol"], relocations["offset"].astype(np.int64) + start
        if not self.known[symbol].all():
            raise Unknown("an address in a section that is not mapped")
        target, got = values[symbol], _IS_GOT[kind]
        target[got] = self.base + self.slot_of[symbol[got]]
        far = (kind == _PLT32) & (np.abs(target - self.base) >= (1 << 31) - self.end)
        if (self.stub_of[symbol[far]] < 0).any():
            raise Unknown("a call out of reach")
        target[far] = self.base + self.stub_of[symbol[far]]
        value = target + relocations["addend"]
        whole = kind == _ABS64
        self._write(at[whole], value[whole], 8)
        near = value[~whole] - (self.base + at[~whole])
        if (np.abs(near) >= 1 << 31).any():
            raise Unknown("an address out of reach")
        self._write(at[~whole], near, 4)

    def _write(self, at: np.ndarray, value: np.ndarray, size: int) -> None:
        if len(at):
            columns = np.ascontiguousarray(value).view(np.uint8).reshape(len(at), 8)[:, :size]
            self.bytes[at[:, None] + np.arange(size)] = columns


def _make_executable(address: int, size: int) -> None:
    """Read and execute, no longer write. OSError where the system forbids it."""
    protect = _process().mprotect
    if protect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError("the system does not let memory become executable")


@cache
def _process() -> Any:
    return ctypes.CDLL(None)


def process_symbol(name: str) -> int:
    """The address of a symbol of this process. AttributeError where it has none."""
    return ctypes.cast(getattr(_process(), name), ctypes.c_void_p).value or 0
