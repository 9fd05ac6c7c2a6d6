"""From LLVM IR text to callable machine code: verify and compile to an object, link the object.

Compiling and linking are apart, so that an object can come from the disk cache. Nothing here can abort the
process: text is parsed and verified first, and an object that asks for a symbol we do not provide is
refused before the linker sees it. Linked code is never unloaded: other threads, or arrays at interpreter
exit, may still need it."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol

from weft.codegen.libllvm import library
from weft.ir.errors import CompilerError
from weft.runtime import loader, stats

ENTRY = "weft_entry"  # the symbol by which the module of every graph is entered
_DAMAGE = (
    IndexError,
    ValueError,
    OverflowError,
    TypeError,
)  # what reading something else as an object raises
# what an object may take from the process
LIBC = frozenset({"memcpy", "memset", "memmove"})
Address = int | Callable[[], int]
_lock = threading.RLock()
_serial = itertools.count()
_kept: list[Any] = []


class AnyTarget(Protocol):
    """What LLVM wants to know of a machine."""

    @property
    def triple(self) -> str: ...
    @property
    def cpu(self) -> str: ...
    @property
    def features(self) -> str: ...


def _renew_lock() -> None:
    """In the child of a fork: the thread that may have held the lock is gone."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


# Target machines that nobody uses now: one is used by one thread at a time.
_idle: dict[tuple[AnyTarget, int], list[Any]] = {}


def _emit(text: str, target: AnyTarget, level: int, assembly: bool) -> bytes:
    """CompilerError with the offending text where LLVM refuses it."""
    llvm, idle = library(), _idle.setdefault((target, level), [])
    try:
        machine = idle.pop()
    except IndexError:
        machine = llvm.machine(target.triple, target.cpu, target.features, level)
    try:
        return llvm.emit(machine, text, assembly)
    except RuntimeError as e:
        raise CompilerError(f"LLVM refused the generated code: {e}", text) from None
    finally:
        idle.append(machine)


def compile_object(text: str, target: AnyTarget, level: int = 1) -> bytes:
    """The object code of a module, which is verified first. Code generation level 1 is as fast as 3, 0 takes
    a quarter of the time: for code that runs once a call. Threads may compile side by side."""
    stats.count("objects_compiled")
    return _emit(text, target, level, False)


def assembly(text: str, target: AnyTarget) -> str:
    """The assembly listing of a module."""
    return _emit(text, target, 1, True).decode()


@cache
def _lljit() -> Any:
    import llvmlite.binding as llvm
    from weft.codegen.target import host_target

    target = host_target()
    library()
    own = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1, reloc="pic", codemodel="small"
    )
    engine = llvm.create_lljit_compiler(own, use_jit_link=False, suppress_errors=True)
    _keep(engine)
    return engine


def _keep(thing: Any) -> None:
    """Make an object outlive the interpreter: it is never finalised."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _kept.append(thing)


def link(
    image: bytes, symbols: tuple[str, ...], imports: Mapping[str, Address], libc: frozenset[str] = LIBC
) -> dict[str, int]:
    """Load object code; the addresses of ``symbols``. ``imports`` gives addresses of ours that it calls, or
    functions that find them, which are only asked where they are needed; ``libc`` what it may take from the
    process. CompilerError where it needs anything else.
    """
    found = parse_object(image)
    undefined = found.undefined()
    missing = undefined - libc - imports.keys() - {"_GLOBAL_OFFSET_TABLE_"}
    if missing:
        raise CompilerError("generated code calls what weft does not provide: " + ", ".join(sorted(missing)))

    ours = {n: a if isinstance(a, int) else a() for n, a in imports.items() if n in undefined}

    def address_of(name: str) -> int:
        return ours[name] if name in ours else loader.process_symbol(name)

    try:
        return loader.load(found, symbols, address_of) or _link_with_llvm(image, symbols, ours)
    except (KeyError, AttributeError, *_DAMAGE) as e:
        raise CompilerError(f"linking generated code failed: {e}") from None


def _link_with_llvm(image: bytes, symbols: tuple[str, ...], imports: Mapping[str, int]) -> dict[str, int]:
    import llvmlite.binding as llvm

    with _lock:
        builder = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
        for name, address in imports.items():
            builder.import_symbol(name, address)
        for name in symbols:
            builder.export_symbol(name)
        try:
            tracker = builder.link(_lljit(), f"weft{next(_serial)}")
        except RuntimeError as e:
            raise CompilerError(f"linking generated code failed: {e}") from None
    _keep(tracker)
    return {name: tracker[name] for name in symbols}


def parse_object(image: bytes) -> loader.Object:
    """The sections and symbols of an ELF64 object. CompilerError where the image is no such object."""
    try:
        return loader.Object(image)
    except _DAMAGE as e:
        raise CompilerError(f"damaged object code: {e}") from None


def defined_symbols(image: bytes) -> tuple[str, ...]:
    """Names that an ELF64 object gives to others. CompilerError where the image is no such object."""
    return parse_object(image).defined()


def undefined_symbols(image: bytes) -> set[str]:
    """Names an ELF64 object expects from elsewhere. CompilerError where the image is no such object."""
    return parse_object(image).undefined()
