"""The native entry of a graph on a GPU: host code that issues every launch and copy through the driver API.

It is the entry of :mod:`weft.codegen.entry` with other hands: ``void @entry(ptr %block)``, where block =
inputs, outputs, arena, status, context, constants. All but the context are addresses of the device, which the
host only hands on. The context is the call's frame, in memory of the host:

    CUDA context, stream, error (CUresult, or -1 for an exception in Python), operations of the host, table of
    function handles, scalars (host) and their number of bytes, where they go (device), byte for a flag,
    address of two counters: launches, times that the host waited; marks of a profile: their number, how many
    there is room for, then pairs (kernel, event)

The functions of the driver API are called by name; the linker is given their addresses.
"""

from __future__ import annotations

from weft.codegen.entry import EntryEmitter
from weft.codegen.gpu.kernel import DeviceLaunch
from weft.codegen.steps import STATUS, Host, Loc, Program, Scan
from weft.codegen.target import Target
from weft.ir.record import record

FRAME = ("cuda", "stream", "error", "hosts", "functions", "scalars", "scalar_bytes", "scalars_at", "flag",
         "counters", "marks")  # fmt: skip
IMPORTS = ("cuCtxSetCurrent", "cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2",
           "cuMemcpyDtoDAsync_v2", "cuStreamSynchronize", "cuEventRecord")  # fmt: skip
HOST = "weft_device_host"  # void (frame, index, addresses of operands and results)


@record(frozen=True)
class Run:
    """The launches of one kernel, each a function by its number in the table of handles."""

    launches: tuple[tuple[int, DeviceLaunch], ...]
    operands: tuple[Loc, ...]
    results: tuple[Loc, ...]
    scratch: Loc | None = None
    kernel: int = 0  # its number, under which a profile counts its time


def emit_device_entry(program: Program, offsets: list[int], first: bool) -> str:
    """The LLVM functions of one program. Its constants stand at ``offsets`` of the constants' memory; the
    ``first`` program of a module is the one that Python enters."""
    return DeviceEntryEmitter(program, offsets, first).run()


def device_entry_module(target: Target, parts: list[str]) -> str:
    """The module with these programs, for the host ``target``."""
    head = f'target triple = "{target.triple}"'
    return "\n".join([head, _PRELUDE, *parts, target.attributes, ""])


class DeviceEntryEmitter(EntryEmitter):
    """Overrides what differs from an entry on the CPU."""

    tail = (*EntryEmitter.tail, "constants")

    def __init__(self, program: Program, offsets: list[int], first: bool) -> None:
        super().__init__(program)
        self.offsets, self.first, self.records = offsets, first, 0
        self.steps[Run] = self._run

    def prologue(self) -> list[str]:
        if self.first:
            self.line(f"call void @weft_begin(ptr {self.context})")
        return self.lines

    def constants(self) -> list[str]:
        return []  # they are in the memory of the device

    def constant(self, index: int) -> str:
        reg = self.name()
        self.line(f"{reg} = getelementptr i8, ptr {self.held['constants']}, i64 {self.offsets[index]}")
        return reg

    def constant_entries(self) -> list[str]:
        return []

    def slot_of(self, loc: Loc) -> tuple[int, int]:
        if loc.kind == "const":
            at = self.program.n_in + self.program.n_out + self.tail.index("constants")
            return at, self.offsets[loc.index]
        return super().slot_of(loc)

    def _run(self, step: Run) -> None:
        slots = [*step.operands, *step.results, step.scratch or STATUS, STATUS]
        self._mark(step)
        for number, launch in step.launches:
            bufs = self.reserve([slots[i] for i in launch.buffers])
            record = self._record(number, launch)
            self.line(f"call void @weft_launch(ptr {self.context}, ptr {record}, ptr {bufs})")
        self._mark(step)

    def _mark(self, step: Run) -> None:
        """Record an event, where the program is profiled."""
        if self.program.profile:
            self.line(f"call void @weft_mark(ptr {self.context}, i64 {step.kernel})")

    def _record(self, number: int, launch: DeviceLaunch) -> str:
        """A constant with what is static about a launch."""
        name = f"@{self.program.symbol}.l{self.records}"
        self.records += 1
        shape = (*launch.grid, *launch.block, launch.shared_bytes, number, 8 * len(launch.buffers), 0)
        data = ", ".join(f"i32 {v}" for v in shape)
        self.globals.append(f"{name} = internal constant [{len(shape)} x i32] [{data}]")
        return name

    def host(self, step: Host) -> None:
        bufs = self.reserve([*step.operands, *step.results])
        self.line(f"call void @{HOST}(ptr {self.context}, i64 {step.index}, ptr {bufs})")
        self.stop_if(self.failed())

    def failed(self) -> str:
        at, error, bad = self.name(), self.name(), self.name()
        self.line(f"{at} = getelementptr i64, ptr {self.context}, i64 {FRAME.index('error')}")
        self.line(f"{error} = load i64, ptr {at}")
        self.line(f"{bad} = icmp ne i64 {error}, 0")
        return bad

    def copy(self, target: str, source: str, nbytes: int) -> None:
        if nbytes and target != source:
            self.line(f"call void @weft_copy(ptr {self.context}, ptr {target}, ptr {source}, i64 {nbytes})")

    def read_flag(self, pointer: str) -> str:
        raw = self.name()
        self.line(f"{raw} = call i8 @weft_flag(ptr {self.context}, ptr {pointer})")
        return raw

    def scan_body(
        self, step: Scan, ins: list[str], inputs: list[str], outs: list[str], outputs: list[str], arena: str
    ) -> None:
        """Slices that do not lie as kernels want them go through memory that does."""
        n, sizes = len(inputs), (*step.in_strides, *step.out_strides)
        places = [s if loc is None else self.pointer(loc)
                  for s, loc in zip((*inputs, *outputs), step.staging, strict=True)]  # fmt: skip
        for k in range(n):
            self.copy(places[k], inputs[k], sizes[k])
        self.call(step.body, [*ins, *places[:n]], [*outs, *places[n:]], arena)
        for k, slice_ in enumerate(outputs):
            self.copy(slice_, places[n + k], sizes[n + k])


def _field(name: str) -> str:
    return f"getelementptr i64, ptr %f, i64 {FRAME.index(name)}"


_PRELUDE = f"""
declare i32 @cuCtxSetCurrent(ptr)
declare i32 @cuLaunchKernel(i64, i32, i32, i32, i32, i32, i32, i32, i64, ptr, ptr)
declare i32 @cuMemcpyHtoDAsync_v2(ptr, ptr, i64, i64)
declare i32 @cuMemcpyDtoHAsync_v2(ptr, ptr, i64, i64)
declare i32 @cuMemcpyDtoDAsync_v2(ptr, ptr, i64, i64)
declare i32 @cuStreamSynchronize(i64)
declare i32 @cuEventRecord(i64, i64)
declare void @{HOST}(ptr, i64, ptr)

; keep the first error of a call
define internal void @weft_note(ptr %f, i32 %code) noinline optnone #0 {{
start:
  %bad = icmp ne i32 %code, 0
  br i1 %bad, label %look, label %done
look:
  %at = {_field("error")}
  %old = load i64, ptr %at
  %first = icmp eq i64 %old, 0
  br i1 %first, label %keep, label %done
keep:
  %wide = sext i32 %code to i64
  store i64 %wide, ptr %at
  br label %done
done:
  ret void
}}

; the context of the device for this thread, and the scalars of the call onto the device
define internal void @weft_begin(ptr %f) noinline optnone #0 {{
start:
  %cuda = load ptr, ptr %f
  %r0 = call i32 @cuCtxSetCurrent(ptr %cuda)
  call void @weft_note(ptr %f, i32 %r0)
  %n.at = {_field("scalar_bytes")}
  %n = load i64, ptr %n.at
  %some = icmp ne i64 %n, 0
  br i1 %some, label %copy, label %done
copy:
  %stream.at = {_field("stream")}
  %stream = load i64, ptr %stream.at
  %from.at = {_field("scalars")}
  %from = load ptr, ptr %from.at
  %to.at = {_field("scalars_at")}
  %to = load ptr, ptr %to.at
  %r1 = call i32 @cuMemcpyHtoDAsync_v2(ptr %to, ptr %from, i64 %n, i64 %stream)
  call void @weft_note(ptr %f, i32 %r1)
  br label %done
done:
  ret void
}}

; %l: grid, block, shared bytes, number of the function, bytes of parameters
define internal void @weft_launch(ptr %f, ptr %l, ptr %bufs) noinline optnone #0 {{
start:
  %extra = alloca [5 x ptr], align 16
  %size = alloca i64, align 8
""" + "".join(
    f"  %l{k}.at = getelementptr i32, ptr %l, i64 {k}\n  %l{k} = load i32, ptr %l{k}.at\n" for k in range(9)
) + f"""
  %bytes = zext i32 %l8 to i64
  store i64 %bytes, ptr %size
  %e1 = getelementptr ptr, ptr %extra, i64 1
  %e2 = getelementptr ptr, ptr %extra, i64 2
  %e3 = getelementptr ptr, ptr %extra, i64 3
  %e4 = getelementptr ptr, ptr %extra, i64 4
  store ptr inttoptr (i64 1 to ptr), ptr %extra
  store ptr %bufs, ptr %e1
  store ptr inttoptr (i64 2 to ptr), ptr %e2
  store ptr %size, ptr %e3
  store ptr null, ptr %e4
  %stream.at = {_field("stream")}
  %stream = load i64, ptr %stream.at
  %table.at = {_field("functions")}
  %table = load ptr, ptr %table.at
  %number = zext i32 %l7 to i64
  %function.at = getelementptr i64, ptr %table, i64 %number
  %function = load i64, ptr %function.at
  %r = call i32 @cuLaunchKernel(i64 %function, i32 %l0, i32 %l1, i32 %l2, i32 %l3, i32 %l4, i32 %l5, i32 %l6, i64 %stream, ptr null, ptr %extra)
  call void @weft_note(ptr %f, i32 %r)
  %counters.at = {_field("counters")}
  %counters = load ptr, ptr %counters.at
  %before = atomicrmw add ptr %counters, i64 1 monotonic
  ret void
}}

; the next event of a profile on the stream; where there is no room they are only counted
define internal void @weft_mark(ptr %f, i64 %kernel) noinline optnone #0 {{
start:
  %marks.at = {_field("marks")}
  %marks = load ptr, ptr %marks.at
  %count = load i64, ptr %marks
  %count1 = add i64 %count, 1
  store i64 %count1, ptr %marks
  %room.at = getelementptr i64, ptr %marks, i64 1
  %room = load i64, ptr %room.at
  %fits = icmp slt i64 %count, %room
  br i1 %fits, label %record, label %done
record:
  %at = shl i64 %count1, 1
  %kernel.at = getelementptr i64, ptr %marks, i64 %at
  store i64 %kernel, ptr %kernel.at
  %event.at = getelementptr i64, ptr %kernel.at, i64 1
  %event = load i64, ptr %event.at
  %stream.at = {_field("stream")}
  %stream = load i64, ptr %stream.at
  %r = call i32 @cuEventRecord(i64 %event, i64 %stream)
  call void @weft_note(ptr %f, i32 %r)
  br label %done
done:
  ret void
}}

define internal void @weft_copy(ptr %f, ptr %to, ptr %from, i64 %n) noinline optnone #0 {{
start:
  %same = icmp eq ptr %to, %from
  br i1 %same, label %done, label %copy
copy:
  %stream.at = {_field("stream")}
  %stream = load i64, ptr %stream.at
  %r = call i32 @cuMemcpyDtoDAsync_v2(ptr %to, ptr %from, i64 %n, i64 %stream)
  call void @weft_note(ptr %f, i32 %r)
  br label %done
done:
  ret void
}}

; a bool of the device, for which the host has to wait; false after an error
define internal i8 @weft_flag(ptr %f, ptr %from) noinline optnone #0 {{
start:
  %stream.at = {_field("stream")}
  %stream = load i64, ptr %stream.at
  %flag.at = {_field("flag")}
  %flag = load ptr, ptr %flag.at
  store i8 0, ptr %flag
  %r0 = call i32 @cuMemcpyDtoHAsync_v2(ptr %flag, ptr %from, i64 1, i64 %stream)
  call void @weft_note(ptr %f, i32 %r0)
  %r1 = call i32 @cuStreamSynchronize(i64 %stream)
  call void @weft_note(ptr %f, i32 %r1)
  %counters.at = {_field("counters")}
  %counters = load ptr, ptr %counters.at
  %waits.at = getelementptr i64, ptr %counters, i64 1
  %before = atomicrmw add ptr %waits.at, i64 1 monotonic
  %value = load volatile i8, ptr %flag
  ret i8 %value
}}
"""  # noqa: E501
