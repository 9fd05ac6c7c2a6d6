"""LLVM called directly and through llvmlite's Python layer: the same machine, code and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from weft.codegen import libllvm

GOOD = "define i64 @f(i64 %x) {\n  %y = mul i64 %x, 3\n  ret i64 %y\n}\n"
BAD = "define i32 @f() {\nstart:\n  %x = add i32 %y, 1\n  %y = add i32 %x, 1\n  ret i32 %x\n}\n"

BOTH = """
import json, sys
import llvmlite
llvmlite.__version__ = sys.argv[1] or llvmlite.__version__
from weft.codegen.libllvm import library
found = library()
host = found.host()
kinds = [host[0], "aarch64-unknown-linux-gnu", "nowhere-at-all"]
out = [type(found).__name__, host]
for triple, cpu in zip(kinds, (host[1], "neoverse-n1", "")):
    try:
        machine = found.machine(triple, cpu, "", 1)
        out.append([found.emit(machine, f'target triple = "{triple}"\\n' + text, form).hex()
                    for text in json.loads(sys.argv[2]) for form in (False, True)])
        found.emit(machine, "define nonsense")
    except RuntimeError as e:
        out.append(str(e).splitlines()[-1])
print(json.dumps([out, "llvmlite.binding" in sys.modules]))
"""


def run(version: str) -> list:
    command = [sys.executable, "-c", BOTH, version, json.dumps([GOOD])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_both_ways_are_the_same() -> None:
    (direct, heavy), (wrapped, _) = run(""), run("1000.0")
    assert (direct[0], heavy, wrapped[0]) == ("Direct", False, "Wrapped")
    assert direct[1:] == wrapped[1:] and len(direct) == 7
    assert bytes.fromhex(direct[2][0]).startswith(b"\x7fELF") and b"f:" in bytes.fromhex(direct[2][1])


@pytest.mark.parametrize("text", ["define nonsense", BAD])
def test_what_llvm_refuses(text: str) -> None:
    llvm = libllvm.library()
    triple, cpu, _ = llvm.host()
    machine = llvm.machine(triple, cpu, "", 1)
    with pytest.raises(RuntimeError, match=r"expected|dominate"):
        llvm.emit(machine, text)
    assert llvm.emit(machine, GOOD) == llvm.emit(machine, GOOD)


def test_threads_compile_side_by_side() -> None:
    llvm = libllvm.library()
    triple, cpu, _ = llvm.host()
    texts = [GOOD.replace("3", str(k)) for k in range(3, 40)]
    one = [llvm.emit(llvm.machine(triple, cpu, "", 1), t) for t in texts]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda t: llvm.emit(llvm.machine(triple, cpu, "", 1), t), texts))
    assert many == one and len(set(one)) == len(one)
