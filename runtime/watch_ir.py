"""A profile function as LLVM IR, part of the module of the call path: it tells Python only of what matters.

A profile function written in Python costs a quarter of a microsecond at every call, return and call of a C
function. This one passes returns over, and calls made by code objects that stand in a table with a flag for
that kind of event; for everything else it calls ``callback(frame, event, arg)``.

    weft_watch_data: the strings "call" and "c_call", None, then SLOTS pairs (code object, flags)
"""

from __future__ import annotations

EXPORTS = ("weft_watch", "weft_watch_data")
SLOTS = 4096
CALLS, C_CALLS = 1, 2  # flags: which events of a code object are passed over
HEAD = 3


def slot_of(code: int) -> int:
    """Where the search for the code object at this address starts."""
    return (code >> 5) % SLOTS


TEXT = f"""
@weft_watch_data = global [{HEAD + 2 * SLOTS} x i64] zeroinitializer, align 64
declare ptr @PyFrame_GetCode(ptr)

define i32 @weft_watch(ptr %callback, ptr %frame, i32 %what, ptr %arg) {{
start:
  %c_call = icmp eq i32 %what, 4
  %call = icmp eq i32 %what, 0
  %kind = zext i1 %c_call to i64
  %either = or i1 %call, %c_call
  br i1 %either, label %look, label %pass
look:
  %code = call ptr @PyFrame_GetCode(ptr %frame)
  call void @Py_DecRef(ptr %code)
  %bits = ptrtoint ptr %code to i64
  %high = lshr i64 %bits, 5
  br label %probe
probe:
  %k = phi i64 [ %high, %look ], [ %k1, %next ]
  %slot = and i64 %k, {SLOTS - 1}
  %pair = shl i64 %slot, 1
  %word = add i64 %pair, {HEAD}
  %key.at = getelementptr i64, ptr @weft_watch_data, i64 %word
  %key = load i64, ptr %key.at
  %same = icmp eq i64 %key, %bits
  br i1 %same, label %found, label %other
other:
  %empty = icmp eq i64 %key, 0
  br i1 %empty, label %tell, label %next
next:
  %k1 = add i64 %k, 1
  br label %probe
found:
  %flags.at = getelementptr i64, ptr %key.at, i64 1
  %flags = load i64, ptr %flags.at
  %flag = lshr i64 %flags, %kind
  %bit = and i64 %flag, 1
  %known = icmp ne i64 %bit, 0
  br i1 %known, label %pass, label %tell
tell:
  %name.at = getelementptr ptr, ptr @weft_watch_data, i64 %kind
  %name = load ptr, ptr %name.at
  %none.at = getelementptr ptr, ptr @weft_watch_data, i64 2
  %none = load ptr, ptr %none.at
  %without = icmp eq ptr %arg, null
  %given = select i1 %without, ptr %none, ptr %arg
  %r = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(
    ptr %callback, ptr %frame, ptr %name, ptr %given, ptr null)
  %failed = icmp eq ptr %r, null
  br i1 %failed, label %fail, label %told
told:
  call void @Py_DecRef(ptr %r)
  br label %pass
pass:
  ret i32 0
fail:
  ret i32 -1
}}
"""
