"""LLVM as llvmlite carries it: the dozen functions of its library that compiling takes, called directly.

To load the library takes 8 ms; to import ``llvmlite.binding``, Python for all that LLVM can do, 18 more,
which would be half of a first call. The C functions are llvmlite's own matter, so this is done with the
releases whose functions we know; any other is used through its Python interface.

Every text is compiled in a context of its own, so that threads can compile side by side, each with its own
target machines. Long calls give up Python's lock, short ones keep it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from threading import RLock
from typing import Any, Protocol

_KNOWN = ("0.50.",)  # releases of llvmlite whose C functions are those that are called here
_NO_LSR = "--disable-lsr"  # a quarter of compile time; our loops gain nothing by it
# kernels are written in the order in which they should run; with half as many registers they would spill
_AS_WRITTEN = "--enable-misched=0"


class Library(Protocol):
    """What we ask of LLVM. Texts that it refuses and machines that it does not know raise RuntimeError."""

    def host(self) -> tuple[str, str, dict[str, bool]]:
        """The triple of this process, the name of its CPU, and the features that it has or lacks."""
        ...

    def machine(self, triple: str, cpu: str, features: str, level: int) -> Any:
        """A machine to emit for, to be used by one thread at a time; ``level`` is that of code generation."""
        ...

    def emit(self, machine: Any, text: str, assembly: bool = False) -> bytes:
        """The object code of a module, or its assembly. The module is verified first."""
        ...


_lock = RLock()  # options are given once, and targets are registered by one thread


def _renew_lock() -> None:
    """In the child of a fork: the thread that may have held the lock is gone."""
    global _lock
    _lock = RLock()


os.register_at_fork(after_in_child=_renew_lock)


def library() -> Library:
    """LLVM, loaded at the first call."""
    with _lock:
        return _loaded()


def loaded() -> bool:
    """Whether it is loaded already."""
    return _loaded.cache_info().currsize > 0


@cache
def _loaded() -> Library:
    import llvmlite

    return Direct() if llvmlite.__version__.startswith(_KNOWN) else Wrapped()


def set_options(set_option: Any, wide: bool) -> None:
    """The options that hold for the whole process; left alone where another compiler uses LLVM, too.

    ``wide``: the CPU that code is for has the 32 registers of AVX-512.
    """
    if "numba" not in sys.modules:
        set_option(_NO_LSR)
        if wide and not os.environ.get("WEFT_CPU"):
            set_option(_AS_WRITTEN)


class Direct:
    """Calls of the C functions."""

    def __init__(self) -> None:
        import llvmlite
        from llvmlite.utils import get_library_name

        path = os.path.join(os.path.dirname(llvmlite.__file__), "binding", get_library_name())
        long = ctypes.CDLL(path)
        self._short = short = ctypes.PyDLL(path, handle=long._handle)
        self._parse = _function(long, "ParseAssembly", c_void_p, c_void_p, c_char_p, c_void_p)
        self._verify = _function(long, "VerifyModule", c_int, c_void_p, c_void_p)
        emit = (c_void_p, c_void_p, c_int, c_void_p)
        self._emit = _function(long, "TargetMachineEmitToMemory", c_void_p, *emit)
        self._context = _function(short, "ContextCreate", c_void_p)
        self._drop_context = _function(short, "ContextDispose", None, c_void_p)
        self._drop_module = _function(short, "DisposeModule", None, c_void_p)
        self._drop_string = _function(short, "DisposeString", None, c_void_p)
        self._start = _function(short, "GetBufferStart", c_void_p, c_void_p)
        self._size = _function(short, "GetBufferSize", c_size_t, c_void_p)
        self._drop_buffer = _function(short, "DisposeMemoryBuffer", None, c_void_p)
        self._find = _function(short, "GetTargetFromTriple", c_void_p, c_char_p, c_void_p)
        texts, numbers = (c_char_p,) * 3, (c_int, c_char_p, c_char_p, c_int, c_int, c_char_p)
        self._create = _function(short, "CreateTargetMachine", c_void_p, c_void_p, *texts, *numbers)
        option = _function(short, "SetCommandLine", None, c_char_p, c_char_p)
        wide = self.host()[2].get("avx512vl", False)
        set_options(lambda text: option(b"", text.encode()), wide)
        self._initialize("NativeTarget", "NativeAsmPrinter")

    def _initialize(self, *parts: str) -> None:
        for part in parts:
            _function(self._short, f"Initialize{part}", None)()

    def host(self) -> tuple[str, str, dict[str, bool]]:
        triple, cpu, features = (self._asked(f) for f in ("ProcessTriple", "HostCPUName", "HostCPUFeatures"))
        return triple, cpu, {f[1:]: f[0] == "+" for f in features.split(",") if f}

    def _asked(self, name: str) -> str:
        found = c_char_p()
        _function(self._short, f"Get{name}", c_int, c_void_p)(byref(found))
        return self._text(found)

    def _text(self, found: c_char_p) -> str:
        """A string that LLVM gave us, which is given back to it."""
        text = (found.value or b"").decode("utf-8", "replace")
        if found:
            self._drop_string(found)
        return text

    def machine(self, triple: str, cpu: str, features: str, level: int) -> Any:
        name = triple.encode()
        with _lock:
            target = self._find(name, byref(c_char_p()))
            if not target:
                self._initialize("AllTargetInfos", "AllTargets", "AllTargetMCs", "AllAsmPrinters")
                why = c_char_p()
                target = self._find(name, byref(why))
                if not target:
                    raise RuntimeError(self._text(why))
            made = self._create(
                target, name, cpu.encode(), features.encode(), level, b"pic", b"small", 0, 0, b""
            )
        if not made:
            raise RuntimeError(f"LLVM makes no machine for {cpu}")
        return made

    def emit(self, machine: Any, text: str, assembly: bool = False) -> bytes:
        context = self._context()
        try:
            return self._emit_in(context, machine, text, assembly)
        finally:
            self._drop_context(context)

    def _emit_in(self, context: int, machine: Any, text: str, assembly: bool) -> bytes:
        why = c_char_p()
        module = self._parse(context, text.encode(), byref(why))
        if not module:
            raise RuntimeError(self._text(why))
        try:
            if self._verify(module, byref(why)):
                raise RuntimeError(self._text(why))
            found = self._emit(machine, module, int(not assembly), byref(why))
            if not found:
                raise RuntimeError(self._text(why))
            try:
                return ctypes.string_at(self._start(found), self._size(found))
            finally:
                self._drop_buffer(found)
        finally:
            self._drop_module(module)


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    found = library[f"LLVMPY_{name}"]  # a function object of our own: the types hold for nobody else
    found.restype, found.argtypes = result, arguments
    return found


class Wrapped:
    """The same through ``llvmlite.binding``."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        self._llvm: Any = llvm
        set_options(lambda text: llvm.set_option("", text), self.host()[2].get("avx512vl", False))
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()

    def host(self) -> tuple[str, str, dict[str, bool]]:
        llvm = self._llvm
        return llvm.get_process_triple(), llvm.get_host_cpu_name(), dict(llvm.get_host_cpu_features())

    def machine(self, triple: str, cpu: str, features: str, level: int) -> Any:
        llvm = self._llvm
        try:
            found = llvm.Target.from_triple(triple)
        except RuntimeError:
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
            found = llvm.Target.from_triple(triple)
        return found.create_target_machine(
            cpu=cpu, features=features, opt=level, reloc="pic", codemodel="small"
        )

    def emit(self, machine: Any, text: str, assembly: bool = False) -> bytes:
        module = self._llvm.parse_assembly(text, self._llvm.create_context())
        module.verify()
        return machine.emit_assembly(module).encode() if assembly else machine.emit_object(module)
