"""What machine this is and what it can do: fma peak and copy bandwidth, measured by kernels of our own."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_PEAK_IR = """
define void @fma_peak(ptr %out, i64 %n) #0 {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
{phis}
{fmas}
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
{stores}
  ret void
}}
declare <{w} x float> @llvm.fma.v{w}f32(<{w} x float>, <{w} x float>, <{w} x float>)
attributes #0 = {{ "prefer-vector-width"="{bits}" "target-cpu"="{cpu}" "target-features"="{features}" }}
"""

_kept: list[Any] = []  # what must live as long as the code that it holds


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def _peak_loop() -> tuple[Any, float]:
    """A function (address, turns) that runs twelve independent chains of the host's widest fma in registers,
    and its flops a turn.
    """
    import ctypes

    from llvmlite import binding as llvm
    from weft.codegen.target import host_target

    target = host_target()
    w = target.vector_bits // 32
    chains = range(12)
    vec = f"<{w} x float>"
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    fma = f"call {vec} @llvm.fma.v{w}f32"
    text = _PEAK_IR.format(
        w=w, bits=target.vector_bits, cpu=cpu, features=features,
        phis="\n".join(f"  %a{c} = phi {vec} [zeroinitializer, %entry], [%b{c}, %loop]" for c in chains),
        fmas="\n".join(
            f"  %b{c} = {fma}({vec} %a{c}, {vec} %a{c}, {vec} %a{(c + 1) % 12})" for c in chains
        ),
        stores="\n".join(
            f"  %p{c} = getelementptr {vec}, ptr %out, i64 {c}\n  store {vec} %b{c}, ptr %p{c}, align 4"
            for c in chains
        ),
    )  # fmt: skip
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=1, codemodel="small", reloc="pic"
    )  # fmt: skip
    jit = llvm.create_lljit_compiler(machine)
    tracker = llvm.JITLibraryBuilder().add_ir(text).export_symbol("fma_peak").link(jit, "peak")
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(tracker["fma_peak"])
    _kept.append((jit, tracker))
    return run, 2.0 * w * len(chains)


def fma_peak(threads: int = 1, turns: int = 4_000_000, rounds: int = 40) -> float:
    """Flop/s of some threads that all compute at once: less than so many times one where they share power.

    The best of some rounds, half a second of them: the kernel may start the threads on one core.
    """
    run, flops = _peak_loop()
    outs = [np.zeros(16 * 64, np.float32) for _ in range(threads)]
    together = threading.Barrier(threads)
    times: list[list[tuple[float, float]]] = [[] for _ in outs]

    def work(out: np.ndarray, times: list[tuple[float, float]]) -> None:
        for _ in range(rounds):
            together.wait()
            start = time.perf_counter()
            run(out.ctypes.data, turns)  # gives up the interpreter lock
            times.append((start, time.perf_counter()))

    workers = [threading.Thread(target=work, args=pair) for pair in zip(outs, times, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    best = min(max(e for _, e in turn) - min(s for s, _ in turn) for turn in zip(*times, strict=True))
    return threads * flops * turns / best


def cores_apart() -> bool:
    """Whether this process's CPUs compute at once as fast as alone.

    A host may run two CPUs of a virtual machine on the two hyperthreads of one core for seconds at a time:
    each then computes at half its speed, and nothing inside the machine can see or change that but by timing.
    """
    threads = len(os.sched_getaffinity(0))
    for pause in (0.0, 0.1):  # another library's threads may spin for a while after their last work
        time.sleep(pause)
        if threads == 1 or fma_peak(threads, 400_000, 12) > 0.75 * threads * fma_peak(1, 400_000, 12):
            return True
    return False


def undisturbed(run: Callable[[], T], tries: int = 5) -> T:
    """The result of ``run``, again where the CPUs were not apart before or after it (the last, if never)."""
    for _ in range(tries - 1):
        before = cores_apart()
        result = run()
        if before and cores_apart():
            return result
    return run()


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a compiled copy of 256 MB on all threads."""
    import weft

    x = weft.ones(64 * 2**20)
    copy = weft.compile(lambda x: x + 1.0)
    copy(x)
    return 2.0 * 4 * x.numel() / min(_seconds(lambda: copy(x)) for _ in range(7))


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def describe() -> dict[str, Any]:
    """The machine's description that stands with every committed result."""
    import llvmlite
    import weft
    from llvmlite import binding as llvm

    threads = weft.get_num_threads()
    return {
        "cpu": cpu_name(),
        "llvm cpu": llvm.get_host_cpu_name(),
        "threads": threads,
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "fma peak Gflop/s per thread": round(fma_peak() / 1e9),
        "fma peak Gflop/s of all threads at once": round(fma_peak(threads) / 1e9),
        "copy GB/s": round(copy_bandwidth() / 1e9, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "llvmlite": llvmlite.__version__,
        "weft": weft.__version__,
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", "unset"),
    }
