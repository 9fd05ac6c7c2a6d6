"""The loader of object code: relocations, and what is left to LLVM's linker."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from weft.codegen import target
from weft.runtime import cache, host, jit, loader

pytestmark = pytest.mark.skipif(not loader.supported(), reason="objects of this machine go to LLVM's linker")

EVERYTHING = """
@table = internal constant [4 x i64] [i64 1, i64 20, i64 300, i64 4000], align 32
@chosen = global ptr getelementptr (i64, ptr @table, i64 2)
@count = internal global i64 7
@zeros = global [1000 x i64] zeroinitializer
declare i64 @given(i64)
declare i64 @elsewhere(i64)
declare ptr @memcpy(ptr, ptr, i64)
define double @constant(double %x) {
  %y = fmul double %x, 3.25
  ret double %y
}
define i64 @f(i64 %x) {
  %k = alloca i64
  %r = call ptr @memcpy(ptr %k, ptr @table, i64 8)
  %a = load i64, ptr %k
  %p = load ptr, ptr @chosen
  %b = load i64, ptr %p
  %old = load i64, ptr @count
  %new = add i64 %old, 1
  store i64 %new, ptr @count
  %c = call i64 @given(i64 %x)
  %fp = load ptr, ptr @pointer
  %d = call i64 %fp(i64 %x)
  %z = load i64, ptr @zeros
  %s1 = add i64 %a, %b
  %s2 = add i64 %s1, %old
  %s3 = add i64 %s2, %c
  %s4 = add i64 %s3, %d
  %s5 = add i64 %s4, %z
  ret i64 %s5
}
@pointer = global ptr @elsewhere
"""


def object_of(text: str) -> bytes:
    return jit.compile_object(text, host.host_target())


def test_constants_variables_calls_and_addresses_are_relocated() -> None:
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    twice, negative = kind(lambda x: 2 * x), kind(lambda x: -x)
    addresses = {"given": ctypes.cast(twice, ctypes.c_void_p).value or 0,
                 "elsewhere": ctypes.cast(negative, ctypes.c_void_p).value or 0}  # fmt: skip
    image = object_of(EVERYTHING)
    both = [
        loader.load(jit.parse_object(image), ("f", "constant"),
                    lambda n: addresses.get(n) or loader.process_symbol(n)),
        jit._link_with_llvm(image, ("f", "constant"), addresses),
    ]  # fmt: skip
    for found in both:
        assert found is not None
        f = kind(found["f"])
        assert [f(5), f(5)] == [1 + 300 + 7 + 10 - 5, 1 + 300 + 8 + 10 - 5]
        assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(found["constant"])(2.0) == 6.5


def test_two_objects_of_one_image_have_variables_of_their_own() -> None:
    image = object_of("@n = internal global i64 0\ndefine i64 @next() {\n  %a = load i64, ptr @n\n"
                      "  %b = add i64 %a, 1\n  store i64 %b, ptr @n\n  ret i64 %b\n}\n")  # fmt: skip
    first, second = (ctypes.CFUNCTYPE(ctypes.c_int64)(jit.link(image, ("next",), {})["next"]) for _ in "ab")
    assert [first(), first(), second()] == [1, 2, 1]


def test_thread_local_memory_is_left_to_llvm() -> None:
    image = object_of("@n = internal thread_local global i64 3\ndefine i64 @get() {\n"
                      "  %a = load i64, ptr @n\n  ret i64 %a\n}\n")  # fmt: skip
    assert loader.load(jit.parse_object(image), ("get",), loader.process_symbol) is None


def test_code_is_never_writable_and_executable() -> None:
    found = jit.link(object_of("define i64 @one() {\n  ret i64 1\n}\n"), ("one",), {})["one"]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        low, high = (int(x, 16) for x in span.split("-"))
        if low <= found < high:
            assert rights == "r-xp"
            return
    raise AssertionError("the code is not mapped")


WARM = """
import json, sys
import weft
from weft.runtime import stats
f = weft.compile(lambda x, y: weft.tanh(x + y) * y, fullgraph=True)
out = f(weft.ones(8), weft.ones(8)).tolist()
print(json.dumps({"out": out, "llvm": "libllvmlite" in open("/proc/self/maps").read(),
                  "python": "llvmlite.binding" in sys.modules,
                  "passes": "weft.passes.pipeline" in sys.modules, **stats.snapshot()}))
"""


@pytest.mark.skipif(not loader.supported(), reason="LLVM links the objects here")
def test_a_warm_start_loads_neither_llvm_nor_the_passes(tmp_path: Path) -> None:
    env = {**os.environ, "WEFT_CACHE_DIR": str(tmp_path / "cache")}
    env.pop("WEFT_CACHE", None)
    run = [sys.executable, "-c", WARM]
    cold, warm = (json.loads(subprocess.run(run, capture_output=True, text=True, env=env, check=True).stdout)
                  for _ in range(2))  # fmt: skip
    assert cold["llvm"] and not cold["python"] and cold["passes"] and cold["compiles"] == 1
    assert not warm["llvm"] and not warm["passes"] and warm["objects_compiled"] == 0
    assert warm["out"] == cold["out"]


def test_the_host_is_remembered_as_llvm_describes_it() -> None:
    assert host._from_text(host._to_text(target.host_target())) == target.host_target() == host.host_target()
    assert host._from_text(b"") is None and host._from_text(b"a\nb\nc\nd\ne\nf\ng\nh") is None


def test_the_library_is_named_by_its_file() -> None:
    import llvmlite

    folder = os.path.dirname(llvmlite.__file__)
    assert ":" in cache._library(folder)
    assert cache._library("/nowhere").count(".") >= 1
