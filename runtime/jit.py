"""From LLVM IR text to callable machine code: parse, verify, compile to an object, link the object.

Compiling and linking are apart, so that an object can come from the disk cache. Nothing here can abort the
process: text is parsed and verified first, and an object that asks for a symbol we do not provide is
refused before the linker sees it. Linked code is never unloaded: other threads, or arrays at interpreter
exit, may still need it."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from weft.codegen.target import Target
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


def _renew_lock() -> None:
    """In the child of a fork: the thread that may have held the lock is gone."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


@cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    if "numba" not in sys.modules:  # the option holds for the whole process
        llvm.set_option("", "--disable-lsr")  # a quarter of compile time; our loops gain nothing by it
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@cache
def _all_targets() -> None:
    _llvm().initialize_all_targets()
    _llvm().initialize_all_asmprinters()


@cache
def machine(target: Target, level: int = 1) -> Any:
    """The target machine of a target. Code generation level 1 is as fast as 3; 0 is useless."""
    llvm = _llvm()
    try:
        found = llvm.Target.from_triple(target.triple)
    except RuntimeError:
        _all_targets()
        found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic", codemodel="small"
    )


def parse(text: str) -> Any:
    """A verified module; CompilerError with the offending text where LLVM refuses it."""
    llvm = _llvm()
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as e:
        raise CompilerError(f"LLVM refused the generated code: {e}", text) from None
    return module


def compile_object(text: str, target: Target, level: int = 1) -> bytes:
    """The object code of a module. Level 0 takes a quarter of the time: for code that runs once a call."""
    stats.count("objects_compiled")
    with _lock:
        return machine(target, level).emit_object(parse(text))


def assembly(text: str, target: Target) -> str:
    """The assembly listing of a module."""
    with _lock:
        return machine(target).emit_assembly(parse(text))


@cache
def _lljit() -> Any:
    from weft.codegen.target import host_target

    llvm = _llvm()
    target = host_target()
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
    llvm = _llvm()
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


def undefined_symbols(image: bytes) -> set[str]:
    """Names an ELF64 object expects from elsewhere. CompilerError where the image is no such object."""
    return parse_object(image).undefined()
