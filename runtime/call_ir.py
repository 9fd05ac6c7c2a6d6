"""The call path as LLVM IR: a C function that Python calls directly (METH_FASTCALL), one for all executables.

It checks each argument against its spec (an exact ndarray of the dtype and shape, C-contiguous and aligned;
or a Python number for a scalar), makes the results with numpy's C API, takes an arena, calls the entry and
returns the list of results. Whatever is out of the ordinary goes to the executable's general path, written
in Python. The C structures it reads are part of the ABI that every numpy extension module is compiled
against; ``callpath`` checks them once before it uses this.

    descriptor: n_in, n_out, entry, arena_bytes, context, release_gil, n_kernels, in_specs, out_specs, slow,
                globals, n_donated, last (addresses of the arguments that were last found not to overlap)
    in spec:    scalar kind (0 none, 1 f64, 2 i64, 3 bool), ndim, dims, dtype, required array flags, bytes
    out spec:   -1 new, -2 from the allocator, else the donated parameter; ndim, dims, dtype, allocator
    globals:    PyArray_Empty, ndarray, float, int, True, False, slots, n_slots, raise, grow, launched
    slot:       busy, bytes, address (an arena)
"""

from __future__ import annotations

from weft.runtime import watch_ir

EXPORTS = ("weft_call", *watch_ir.EXPORTS)
PYTHON = frozenset({
    "PyCapsule_GetPointer", "PyErr_Occurred", "PyEval_RestoreThread", "PyEval_SaveThread",
    "PyFloat_AsDouble", "PyFrame_GetCode", "PyList_New",
    "PyList_SetItem", "PyLong_AsLongLongAndOverflow", "PyLong_FromLongLong",
    "PyObject_CallFunctionObjArgs", "PyObject_Call", "PyTuple_New", "PyTuple_SetItem", "Py_DecRef",
    "Py_IncRef", "memcpy",
})  # fmt: skip
IN_SPEC, OUT_SPEC = 6, 5


def module(triple: str) -> str:
    """The text of the call path."""
    text = _TEXT
    for name, (base, index) in _FIELDS.items():
        load = f"%{name} = load {_TYPES.get(name, 'i64')}, ptr %{name}.at"
        text = text.replace(f"LOAD({name})", f"getelementptr i64, ptr %{base}, i64 {index}\n  {load}")
    return f'target triple = "{triple}"\n{text}{watch_ir.TEXT}'


_FIELDS = {
    "n_in": ("d", 0), "n_out": ("d", 1), "entry": ("d", 2), "arena_bytes": ("d", 3), "context": ("d", 4),
    "release": ("d", 5), "n_kernels": ("d", 6), "in_specs": ("d", 7), "out_specs": ("d", 8), "slow": ("d", 9),
    "g": ("d", 10), "n_donated": ("d", 11), "last": ("d", 12),
    "np_empty": ("g", 0), "ndarray": ("g", 1), "float": ("g", 2), "int": ("g", 3), "true": ("g", 4),
    "false": ("g", 5), "slots": ("g", 6), "n_slots": ("g", 7), "raise": ("g", 8), "grow": ("g", 9),
    "kind": ("in", 0), "nd": ("in", 1), "dims": ("in", 2), "descr": ("in", 3), "mask": ("in", 4),
    "okind": ("out", 0), "ond": ("out", 1), "odims": ("out", 2), "odescr": ("out", 3), "oalloc": ("out", 4),
}  # fmt: skip
_TYPES: dict[str, str] = dict.fromkeys(
    ("entry", "context", "in_specs", "out_specs", "slow", "g", "last", "np_empty", "ndarray", "float", "int",
     "true", "false", "slots", "raise", "grow", "dims", "descr", "odims", "odescr", "oalloc"), "ptr",
)  # fmt: skip

_TEXT = """
declare ptr @PyCapsule_GetPointer(ptr, ptr)
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyEval_SaveThread()
declare double @PyFloat_AsDouble(ptr)
declare ptr @PyList_New(i64)
declare i32 @PyList_SetItem(ptr, i64, ptr)
declare i64 @PyLong_AsLongLongAndOverflow(ptr, ptr)
declare ptr @PyLong_FromLongLong(i64)
declare ptr @PyObject_CallFunctionObjArgs(ptr, ...)
declare ptr @PyObject_Call(ptr, ptr, ptr)
declare ptr @PyTuple_New(i64)
declare i32 @PyTuple_SetItem(ptr, i64, ptr)
declare void @Py_DecRef(ptr)
declare void @Py_IncRef(ptr)

; the executable's general path, on the same arguments
define internal ptr @general(ptr %slow, ptr %args, i64 %n) noinline optnone {
start:
  %t = call ptr @PyTuple_New(i64 %n)
  %none = icmp eq ptr %t, null
  br i1 %none, label %fail, label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %i1, %one ]
  %all = icmp sge i64 %i, %n
  br i1 %all, label %call, label %one
one:
  %a.at = getelementptr ptr, ptr %args, i64 %i
  %a = load ptr, ptr %a.at
  call void @Py_IncRef(ptr %a)
  %r0 = call i32 @PyTuple_SetItem(ptr %t, i64 %i, ptr %a)
  %i1 = add i64 %i, 1
  br label %loop
call:
  %out = call ptr @PyObject_Call(ptr %slow, ptr %t, ptr null)
  call void @Py_DecRef(ptr %t)
  ret ptr %out
fail:
  ret ptr null
}

; a free arena of at least %need bytes, marked busy; null where there is none
define internal ptr @take(ptr %slots, i64 %n, i64 %need) {
start:
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %i1, %next ]
  %all = icmp sge i64 %i, %n
  br i1 %all, label %none, label %look
look:
  %o = mul i64 %i, 3
  %slot = getelementptr i64, ptr %slots, i64 %o
  %size.at = getelementptr i64, ptr %slot, i64 1
  %busy = load i64, ptr %slot
  %size = load i64, ptr %size.at
  %free = icmp eq i64 %busy, 0
  %fits = icmp sge i64 %size, %need
  %ok = and i1 %free, %fits
  br i1 %ok, label %found, label %next
next:
  %i1 = add i64 %i, 1
  br label %loop
found:
  store i64 1, ptr %slot
  ret ptr %slot
none:
  ret ptr null
}

; the same, growing one where needed; null with no exception set means: use the general path
define internal ptr @arena(ptr %g, i64 %need) noinline optnone {
start:
  %slots.at = LOAD(slots)
  %n_slots.at = LOAD(n_slots)
  %s = call ptr @take(ptr %slots, i64 %n_slots, i64 %need)
  %have = icmp ne ptr %s, null
  br i1 %have, label %ok, label %more
ok:
  ret ptr %s
more:
  %grow.at = LOAD(grow)
  %size = call ptr @PyLong_FromLongLong(i64 %need)
  %r = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(ptr %grow, ptr %size, ptr null)
  call void @Py_DecRef(ptr %size)
  %failed = icmp eq ptr %r, null
  br i1 %failed, label %none, label %again
again:
  call void @Py_DecRef(ptr %r)
  %s2 = call ptr @take(ptr %slots, i64 %n_slots, i64 %need)
  ret ptr %s2
none:
  ret ptr null
}

; raise what the status word stands for
define internal void @complain(ptr %g, i64 %status, ptr %at) noinline optnone {
  %raise.at = LOAD(raise)
  %address = ptrtoint ptr %at to i64
  %a = call ptr @PyLong_FromLongLong(i64 %status)
  %b = call ptr @PyLong_FromLongLong(i64 %address)
  %r = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(ptr %raise, ptr %a, ptr %b, ptr null)
  call void @Py_DecRef(ptr %a)
  call void @Py_DecRef(ptr %b)
  ret void
}

; the value of a Python number for a scalar parameter; false where it is none
define internal i1 @number(ptr %g, ptr %a, ptr %type, i64 %kind, ptr %to) {
start:
  switch i64 %kind, label %no [ i64 1, label %f64 i64 2, label %i64 i64 3, label %bool ]
f64:
  %float.at = LOAD(float)
  %is_float = icmp eq ptr %type, %float
  br i1 %is_float, label %f64_float, label %f64_else
f64_float:
  %x = call double @PyFloat_AsDouble(ptr %a)
  store double %x, ptr %to
  ret i1 true
f64_else:
  ret i1 false
i64:
  %int.at = LOAD(int)
  %is_int = icmp eq ptr %type, %int
  br i1 %is_int, label %i64_int, label %no
i64_int:
  %over = alloca i32
  store i32 0, ptr %over
  %n = call i64 @PyLong_AsLongLongAndOverflow(ptr %a, ptr %over)
  %o = load i32, ptr %over
  store i64 %n, ptr %to
  %fine = icmp eq i32 %o, 0
  ret i1 %fine
bool:
  %true.at = LOAD(true)
  %false.at = LOAD(false)
  %is_true = icmp eq ptr %a, %true
  %is_false = icmp eq ptr %a, %false
  %byte = zext i1 %is_true to i64
  store i64 %byte, ptr %to
  %either = or i1 %is_true, %is_false
  ret i1 %either
no:
  ret i1 false
}

; whether %a is an array as the spec wants it
define internal i1 @fits(ptr %g, ptr %a, ptr %in) {
start:
  %type.at = getelementptr i8, ptr %a, i64 8
  %type = load ptr, ptr %type.at
  %ndarray.at = LOAD(ndarray)
  %is_array = icmp eq ptr %type, %ndarray
  br i1 %is_array, label %array, label %no
array:
  %nd.at = LOAD(nd)
  %dims.at = LOAD(dims)
  %descr.at = LOAD(descr)
  %mask.at = LOAD(mask)
  %and.at = getelementptr i8, ptr %a, i64 24
  %and32 = load i32, ptr %and.at
  %and64 = sext i32 %and32 to i64
  %adescr.at = getelementptr i8, ptr %a, i64 56
  %adescr = load ptr, ptr %adescr.at
  %aflags.at = getelementptr i8, ptr %a, i64 64
  %aflags32 = load i32, ptr %aflags.at
  %aflags = zext i32 %aflags32 to i64
  %have = and i64 %aflags, %mask
  %c1 = icmp eq i64 %and64, %nd
  %c2 = icmp eq ptr %adescr, %descr
  %c3 = icmp eq i64 %have, %mask
  %c12 = and i1 %c1, %c2
  %c123 = and i1 %c12, %c3
  br i1 %c123, label %shape, label %no
shape:
  %adims.at = getelementptr i8, ptr %a, i64 32
  %adims = load ptr, ptr %adims.at
  br label %loop
loop:
  %i = phi i64 [ 0, %shape ], [ %i1, %same ]
  %all = icmp sge i64 %i, %nd
  br i1 %all, label %yes, label %dim
dim:
  %x.at = getelementptr i64, ptr %adims, i64 %i
  %y.at = getelementptr i64, ptr %dims, i64 %i
  %x = load i64, ptr %x.at
  %y = load i64, ptr %y.at
  %eq = icmp eq i64 %x, %y
  br i1 %eq, label %same, label %no
same:
  %i1 = add i64 %i, 1
  br label %loop
yes:
  ret i1 true
no:
  ret i1 false
}

; one result, a new reference
define internal ptr @result(ptr %g, ptr %out, ptr %args) {
start:
  %okind.at = LOAD(okind)
  switch i64 %okind, label %donated [ i64 -1, label %new i64 -2, label %large ]
new:
  %ond.at = LOAD(ond)
  %odims.at = LOAD(odims)
  %odescr.at = LOAD(odescr)
  %np_empty.at = LOAD(np_empty)
  %ond32 = trunc i64 %ond to i32
  call void @Py_IncRef(ptr %odescr)
  %r1 = call ptr %np_empty(i32 %ond32, ptr %odims, ptr %odescr, i32 0)
  ret ptr %r1
large:
  %oalloc.at = LOAD(oalloc)
  %r2 = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(ptr %oalloc, ptr null)
  ret ptr %r2
donated:
  %a.at = getelementptr ptr, ptr %args, i64 %okind
  %a = load ptr, ptr %a.at
  call void @Py_IncRef(ptr %a)
  ret ptr %a
}

; whether %i and %j, one of them donated, overlap
define internal i1 @overlap(ptr %in_specs, ptr %block, i64 %i, i64 %j) {
start:
  %i.off = mul i64 %i, 6
  %j.off = mul i64 %j, 6
  %i.spec = getelementptr i64, ptr %in_specs, i64 %i.off
  %j.spec = getelementptr i64, ptr %in_specs, i64 %j.off
  %i.mask.at = getelementptr i64, ptr %i.spec, i64 4
  %j.mask.at = getelementptr i64, ptr %j.spec, i64 4
  %i.mask = load i64, ptr %i.mask.at
  %j.mask = load i64, ptr %j.mask.at
  %masks = or i64 %i.mask, %j.mask
  %writes = and i64 %masks, 1024
  %some = icmp ne i64 %writes, 0
  %i.bytes.at = getelementptr i64, ptr %i.spec, i64 5
  %j.bytes.at = getelementptr i64, ptr %j.spec, i64 5
  %i.bytes = load i64, ptr %i.bytes.at
  %j.bytes = load i64, ptr %j.bytes.at
  %i.at = getelementptr i64, ptr %block, i64 %i
  %j.at = getelementptr i64, ptr %block, i64 %j
  %a = load i64, ptr %i.at
  %b = load i64, ptr %j.at
  %a.end = add i64 %a, %i.bytes
  %b.end = add i64 %b, %j.bytes
  %c1 = icmp ult i64 %a, %b.end
  %c2 = icmp ult i64 %b, %a.end
  %differ = icmp ne i64 %i, %j
  %c12 = and i1 %c1, %c2
  %c123 = and i1 %c12, %some
  %c1234 = and i1 %c123, %differ
  ret i1 %c1234
}

; whether an argument overlaps a donated one; only those that moved since the last call are looked at
define internal i1 @clash(ptr %d, ptr %block) {
start:
  %n_in.at = LOAD(n_in)
  %in_specs.at = LOAD(in_specs)
  %last.at = LOAD(last)
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %i1, %next ]
  %moved = phi i64 [ 0, %start ], [ %moved1, %next ]
  %all = icmp sge i64 %i, %n_in
  br i1 %all, label %done, label %one
one:
  %a.at = getelementptr i64, ptr %block, i64 %i
  %a = load i64, ptr %a.at
  %l.at = getelementptr i64, ptr %last, i64 %i
  %l = load i64, ptr %l.at
  %same = icmp eq i64 %a, %l
  br i1 %same, label %next, label %inner
inner:
  %j = phi i64 [ 0, %one ], [ %j1, %apart ]
  %j.all = icmp sge i64 %j, %n_in
  br i1 %j.all, label %next, label %pair
pair:
  %bad = call i1 @overlap(ptr %in_specs, ptr %block, i64 %i, i64 %j)
  br i1 %bad, label %yes, label %apart
apart:
  %j1 = add i64 %j, 1
  br label %inner
next:
  %moved1 = phi i64 [ %moved, %one ], [ 1, %inner ]
  %i1 = add i64 %i, 1
  br label %loop
done:
  %any = icmp ne i64 %moved, 0
  br i1 %any, label %keep, label %no
keep:
  %bytes = shl i64 %n_in, 3
  call void @llvm.memcpy.p0.p0.i64(ptr %last, ptr %block, i64 %bytes, i1 false)
  br label %no
no:
  ret i1 false
yes:
  ret i1 true
}

define ptr @weft_call(ptr %self, ptr %args, i64 %nargs) {
start:
  %d = call ptr @PyCapsule_GetPointer(ptr %self, ptr null)
  %n_in.at = LOAD(n_in)
  %n_out.at = LOAD(n_out)
  %slow.at = LOAD(slow)
  %g.at = LOAD(g)
  %in_specs.at = LOAD(in_specs)
  %out_specs.at = LOAD(out_specs)
  %count_ok = icmp eq i64 %nargs, %n_in
  br i1 %count_ok, label %frame, label %general
general:
  %slow_out = call ptr @general(ptr %slow, ptr %args, i64 %nargs)
  ret ptr %slow_out
frame:
  %n = add i64 %n_in, %n_out
  %n3 = add i64 %n, 3
  %block = alloca ptr, i64 %n3, align 16
  %n_in1 = add i64 %n_in, 1
  %numbers = alloca i64, i64 %n_in1, align 16
  %status = alloca i64, align 8
  store i64 0, ptr %status
  br label %in_loop
in_loop:
  %i = phi i64 [ 0, %frame ], [ %i1, %in_next ]
  %in_all = icmp sge i64 %i, %n_in
  br i1 %in_all, label %in_done, label %in_one
in_one:
  %in.off = mul i64 %i, 6
  %in = getelementptr i64, ptr %in_specs, i64 %in.off
  %a.at = getelementptr ptr, ptr %args, i64 %i
  %a = load ptr, ptr %a.at
  %good = call i1 @fits(ptr %g, ptr %a, ptr %in)
  br i1 %good, label %in_array, label %in_number
in_array:
  %data.at = getelementptr i8, ptr %a, i64 16
  %data = load ptr, ptr %data.at
  br label %in_next
in_number:
  %kind.at = LOAD(kind)
  %type.at = getelementptr i8, ptr %a, i64 8
  %type = load ptr, ptr %type.at
  %slot = getelementptr i64, ptr %numbers, i64 %i
  %is_number = call i1 @number(ptr %g, ptr %a, ptr %type, i64 %kind, ptr %slot)
  br i1 %is_number, label %in_next, label %general
in_next:
  %pointer = phi ptr [ %data, %in_array ], [ %slot, %in_number ]
  %b.at = getelementptr ptr, ptr %block, i64 %i
  store ptr %pointer, ptr %b.at
  %i1 = add i64 %i, 1
  br label %in_loop
in_done:
  %n_donated.at = LOAD(n_donated)
  %donates = icmp ne i64 %n_donated, 0
  br i1 %donates, label %check, label %checked
check:
  %clash = call i1 @clash(ptr %d, ptr %block)
  br i1 %clash, label %general, label %checked
checked:
  %arena_bytes.at = LOAD(arena_bytes)
  %wants = icmp sgt i64 %arena_bytes, 0
  br i1 %wants, label %lend, label %ready
lend:
  %lent = call ptr @arena(ptr %g, i64 %arena_bytes)
  %no_arena = icmp eq ptr %lent, null
  br i1 %no_arena, label %without, label %with
without:
  %err = call ptr @PyErr_Occurred()
  %quiet = icmp eq ptr %err, null
  br i1 %quiet, label %general, label %nothing
nothing:
  ret ptr null
with:
  %memory.at = getelementptr i64, ptr %lent, i64 2
  %memory = load ptr, ptr %memory.at
  br label %ready
ready:
  %arena_slot = phi ptr [ null, %checked ], [ %lent, %with ]
  %arena_at = phi ptr [ null, %checked ], [ %memory, %with ]
  %list = call ptr @PyList_New(i64 %n_out)
  %no_list = icmp eq ptr %list, null
  br i1 %no_list, label %finish, label %out_loop
out_loop:
  %k = phi i64 [ 0, %ready ], [ %k1, %out_next ]
  %out_all = icmp sge i64 %k, %n_out
  br i1 %out_all, label %go, label %out_one
out_one:
  %out.off = mul i64 %k, 5
  %out = getelementptr i64, ptr %out_specs, i64 %out.off
  %r = call ptr @result(ptr %g, ptr %out, ptr %args)
  %no_r = icmp eq ptr %r, null
  br i1 %no_r, label %drop, label %out_next
out_next:
  %r.data.at = getelementptr i8, ptr %r, i64 16
  %r.data = load ptr, ptr %r.data.at
  %r.slot = add i64 %n_in, %k
  %r.at = getelementptr ptr, ptr %block, i64 %r.slot
  store ptr %r.data, ptr %r.at
  %set = call i32 @PyList_SetItem(ptr %list, i64 %k, ptr %r)
  %k1 = add i64 %k, 1
  br label %out_loop
go:
  %entry.at = LOAD(entry)
  %context.at = LOAD(context)
  %release.at = LOAD(release)
  %n_kernels.at = LOAD(n_kernels)
  %arena.at = getelementptr ptr, ptr %block, i64 %n
  store ptr %arena_at, ptr %arena.at
  %n1 = add i64 %n, 1
  %status.at = getelementptr ptr, ptr %block, i64 %n1
  store ptr %status, ptr %status.at
  %n2 = add i64 %n, 2
  %context.to = getelementptr ptr, ptr %block, i64 %n2
  store ptr %context, ptr %context.to
  %launched.at = getelementptr i64, ptr %g, i64 10
  %launched = load i64, ptr %launched.at
  %launched1 = add i64 %launched, %n_kernels
  store i64 %launched1, ptr %launched.at
  %held = icmp eq i64 %release, 0
  br i1 %held, label %go_held, label %go_free
go_held:
  call void %entry(ptr %block)
  br label %ran
go_free:
  %ts = call ptr @PyEval_SaveThread()
  call void %entry(ptr %block)
  call void @PyEval_RestoreThread(ptr %ts)
  br label %ran
ran:
  %s = load i64, ptr %status
  %fine = icmp eq i64 %s, 0
  br i1 %fine, label %finish, label %failed
failed:
  call void @complain(ptr %g, i64 %s, ptr %status)
  br label %drop
drop:
  call void @Py_DecRef(ptr %list)
  br label %finish
finish:
  %give = phi ptr [ null, %ready ], [ %list, %ran ], [ null, %drop ]
  %lent_any = icmp ne ptr %arena_slot, null
  br i1 %lent_any, label %return_arena, label %end
return_arena:
  store i64 0, ptr %arena_slot
  br label %end
end:
  ret ptr %give
}
declare ptr @PyErr_Occurred()
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
