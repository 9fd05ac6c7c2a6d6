"""The thread pool as LLVM IR.

One job at a time. ``@state`` packs a generation (bits 32..63), an open flag (bit 16) and the number of
workers inside (bits 0..15). A worker joins an open job by compare-and-swap; the caller takes chunks too,
closes the job when none is left and waits for those inside, so a worker that is still asleep never delays
it. A worker spins for about a millisecond after its last job and then sleeps on the futex ``@seq``. Waking
it costs the caller tens of microseconds, a spinning one joins for less than one: a caller adds up the
nanoseconds (``%ns``, an estimate of its whole work on one thread) for which it found workers asleep, and
wakes them when the sum is worth it; until then it works with those that are awake. Whoever spins, waiting for
work or for its end, yields now and then: beside other processes, or where the scheduler keeps two threads on
one core, the thread that is waited for may need that very core. A caller that finds the pool busy runs its
work itself. Which thread gets which chunk varies; what a chunk computes does not.
"""

from __future__ import annotations

MAX_WORKERS = 255
SPINS = 20_000
TURN = 256  # pauses, about ten microseconds, after which a thread that spins offers its core to others
WAKE_NS = 50_000  # work, of one call or added up over several, for which sleeping workers are woken
EXPORTS = ("weft_parallel_for", "weft_pool_stop", "weft_pool_resize", "weft_pool_reset")
LIBC = frozenset({"memset", "pthread_create", "pthread_join", "pthread_sigmask", "sched_yield", "syscall"})

_FUTEX = {"x86_64": 202, "aarch64": 98}
_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    # there the hint "yield" costs nothing and so waits for nothing; a barrier takes about as long as a pause
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}


def supported(triple: str) -> bool:
    """Whether the pool can be had on this system: Linux on x86-64 or AArch64."""
    return "linux" in triple and triple.split("-")[0] in _FUTEX


def module(triple: str) -> str:
    """The text of the pool; on other systems a ``weft_parallel_for`` that runs everything in the caller."""
    if not supported(triple):
        return f'target triple = "{triple}"\n{_SERIAL}'
    arch = triple.split("-")[0]
    declare, pause = _PAUSE[arch]
    text = _POOL.replace("PAUSE", pause).replace("FUTEX", str(_FUTEX[arch])).replace("SPINS", str(SPINS))
    text = text.replace("TURN", str(TURN)).replace("WAKE_NS", str(WAKE_NS))
    return f'target triple = "{triple}"\n{declare}\n{text}'


_SERIAL = """
define void @weft_parallel_for(ptr %fn, ptr %bufs, i64 %units, i64 %grain, i64 %ns) {
  call void %fn(ptr %bufs, i64 0, i64 %units, i64 0)
  ret void
}
define void @weft_pool_stop() {
  ret void
}
define void @weft_pool_resize(i64 %workers) {
  ret void
}
define void @weft_pool_reset() {
  ret void
}
"""

_POOL = """
@state = internal global i64 0, align 128
@next = internal global i64 0, align 128
@seq = internal global i32 0, align 128
@sleepers = internal global i32 0, align 128
@lock = internal global i32 0, align 128
@stop = internal global i32 0, align 128
@fn = internal global ptr null, align 128
@bufs = internal global ptr null
@units = internal global i64 0
@grain = internal global i64 0
@parts = internal global i64 0
@wanted = internal global i64 0
@started = internal global i64 0
@missed = internal global i64 0
@threads = internal global [256 x i64] zeroinitializer

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @sched_yield()
declare i64 @syscall(i64, ...)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; take chunks of the current job until none is left: a share of what remains, but no less than the grain
; (guided self-scheduling, Polychronopoulos and Kuck 1987), so that threads of unequal speed end together
define internal void @run(i64 %me) {
start:
  %fn = load ptr, ptr @fn
  %bufs = load ptr, ptr @bufs
  %units = load i64, ptr @units
  %grain = load i64, ptr @grain
  %parts = load i64, ptr @parts
  %first = load atomic i64, ptr @next monotonic, align 8
  br label %take
take:
  %begin = phi i64 [ %first, %start ], [ %seen, %claim ], [ %later, %work ]
  %remain = sub i64 %units, %begin
  %none = icmp sle i64 %remain, 0
  br i1 %none, label %done, label %claim
claim:
  %share = udiv i64 %remain, %parts
  %small = icmp slt i64 %share, %grain
  %most = select i1 %small, i64 %grain, i64 %share
  %over = icmp sgt i64 %most, %remain
  %count = select i1 %over, i64 %remain, i64 %most
  %end = add i64 %begin, %count
  %pair = cmpxchg ptr @next, i64 %begin, i64 %end monotonic monotonic
  %seen = extractvalue { i64, i1 } %pair, 0
  %mine = extractvalue { i64, i1 } %pair, 1
  br i1 %mine, label %work, label %take
work:
  call void %fn(ptr %bufs, i64 %begin, i64 %end, i64 %me)
  %later = load atomic i64, ptr @next monotonic, align 8
  br label %take
done:
  ret void
}

define internal ptr @worker(ptr %arg) {
start:
  %me = ptrtoint ptr %arg to i64
  br label %look
look:
  %last = phi i64 [ 0, %start ], [ %last, %again ], [ %last, %awake ], [ %gen, %work ], [ %last, %join ]
  %spins = phi i64 [ 0, %start ], [ %more, %again ], [ 0, %awake ], [ 0, %work ], [ %spins, %join ]
  %stop = load atomic i32, ptr @stop acquire, align 4
  %stopped = icmp ne i32 %stop, 0
  br i1 %stopped, label %leave, label %check
check:
  %s = load atomic i64, ptr @state acquire, align 8
  %flag = and i64 %s, 65536
  %open = icmp ne i64 %flag, 0
  %gen = lshr i64 %s, 32
  %new = icmp ne i64 %gen, %last
  %go = and i1 %open, %new
  br i1 %go, label %join, label %idle
join:
  %s1 = add i64 %s, 1
  %pair = cmpxchg ptr @state, i64 %s, i64 %s1 acq_rel acquire
  %ok = extractvalue { i64, i1 } %pair, 1
  br i1 %ok, label %work, label %look
work:
  call void @run(i64 %me)
  %left = atomicrmw sub ptr @state, i64 1 release
  br label %look
idle:
  %tired = icmp uge i64 %spins, SPINS
  br i1 %tired, label %sleep, label %spin
spin:
  PAUSE
  %more = add i64 %spins, 1
  %turns = urem i64 %more, TURN
  %offer = icmp eq i64 %turns, 0
  br i1 %offer, label %give, label %again
give:
  %y = call i32 @sched_yield()
  br label %again
again:
  br label %look
sleep:
  %seen = load atomic i32, ptr @seq seq_cst, align 4
  %before = atomicrmw add ptr @sleepers, i32 1 seq_cst
  %stop2 = load atomic i32, ptr @stop seq_cst, align 4
  %s2 = load atomic i64, ptr @state seq_cst, align 8
  %stopped2 = icmp ne i32 %stop2, 0
  %flag2 = and i64 %s2, 65536
  %open2 = icmp ne i64 %flag2, 0
  %gen2 = lshr i64 %s2, 32
  %new2 = icmp ne i64 %gen2, %last
  %go2 = and i1 %open2, %new2
  %wake = or i1 %go2, %stopped2
  br i1 %wake, label %awake, label %wait
wait:
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr @seq, i32 128, i32 %seen, ptr null, ptr null, i32 0)
  br label %awake
awake:
  %after = atomicrmw sub ptr @sleepers, i32 1 seq_cst
  br label %look
leave:
  ret ptr null
}

; start the workers that are wanted; called under the lock, signals stay with Python's threads
define internal void @start_workers() noinline optnone {
start:
  %all = alloca [128 x i8], align 8
  %old = alloca [128 x i8], align 8
  call void @llvm.memset.p0.i64(ptr %all, i8 -1, i64 128, i1 false)
  store i8 7, ptr %all ; but not ILL, TRAP, ABRT, BUS, FPE: a fault must be seen where it happens
  %second = getelementptr i8, ptr %all, i64 1
  store i8 -5, ptr %second ; nor SEGV
  %m = call i32 @pthread_sigmask(i32 0, ptr %all, ptr %old)
  %wanted = load i64, ptr @wanted
  br label %loop
loop:
  %n = load i64, ptr @started
  %enough = icmp sge i64 %n, %wanted
  br i1 %enough, label %done, label %one
one:
  %me = add i64 %n, 1
  %arg = inttoptr i64 %me to ptr
  %slot = getelementptr [256 x i64], ptr @threads, i64 0, i64 %n
  %err = call i32 @pthread_create(ptr %slot, ptr null, ptr @worker, ptr %arg)
  %bad = icmp ne i32 %err, 0
  br i1 %bad, label %fail, label %made
made:
  store i64 %me, ptr @started
  br label %loop
fail:
  store i64 %n, ptr @wanted
  br label %done
done:
  %m2 = call i32 @pthread_sigmask(i32 2, ptr %old, ptr null)
  ret void
}

define void @weft_parallel_for(ptr %fn, ptr %bufs, i64 %units, i64 %grain, i64 %ns) {
start:
  %wanted0 = load i64, ptr @wanted
  %alone = icmp sle i64 %wanted0, 0
  br i1 %alone, label %inline, label %try
try:
  %pair = cmpxchg ptr @lock, i32 0, i32 1 acquire monotonic
  %ok = extractvalue { i32, i1 } %pair, 1
  br i1 %ok, label %locked, label %inline
inline:
  call void %fn(ptr %bufs, i64 0, i64 %units, i64 0)
  ret void
locked:
  %wanted1 = load i64, ptr @wanted
  %started = load i64, ptr @started
  %few = icmp slt i64 %started, %wanted1
  br i1 %few, label %more, label %ready
more:
  call void @start_workers()
  br label %ready
ready:
  %wanted = load i64, ptr @wanted
  %n = add i64 %wanted, 1
  %parts = shl i64 %n, 1
  store ptr %fn, ptr @fn
  store ptr %bufs, ptr @bufs
  store i64 %units, ptr @units
  store i64 %grain, ptr @grain
  store i64 %parts, ptr @parts
  store atomic i64 0, ptr @next monotonic, align 8
  %s = load atomic i64, ptr @state monotonic, align 8
  %gen = lshr i64 %s, 32
  %gen1 = add i64 %gen, 1
  %high = shl i64 %gen1, 32
  %new = or i64 %high, 65536
  store atomic i64 %new, ptr @state seq_cst, align 8
  %old = atomicrmw add ptr @seq, i32 1 seq_cst
  %asleep = load atomic i32, ptr @sleepers seq_cst, align 4
  %some = icmp sgt i32 %asleep, 0
  br i1 %some, label %weigh, label %mine
weigh:
  %missed0 = load i64, ptr @missed
  %missed = add i64 %missed0, %ns
  %worth = icmp sge i64 %missed, WAKE_NS
  %rest = select i1 %worth, i64 0, i64 %missed
  store i64 %rest, ptr @missed
  br i1 %worth, label %wake, label %mine
wake:
  %g1 = sub i64 %grain, 1
  %u1 = add i64 %units, %g1
  %pieces = udiv i64 %u1, %grain
  %need = sub i64 %pieces, 1
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr @seq, i32 129, i64 %need, ptr null, ptr null, i32 0)
  br label %mine
mine:
  call void @run(i64 0)
  %closed = atomicrmw and ptr @state, i64 -65537 acq_rel
  br label %wait
wait:
  %spins = phi i64 [ 0, %mine ], [ %spins1, %busy ], [ %spins1, %yield ]
  %now = load atomic i64, ptr @state acquire, align 8
  %inside = and i64 %now, 65535
  %empty = icmp eq i64 %inside, 0
  br i1 %empty, label %done, label %busy
busy:
  PAUSE
  %spins1 = add i64 %spins, 1
  %turns = urem i64 %spins1, TURN
  %offer = icmp eq i64 %turns, 0
  br i1 %offer, label %yield, label %wait
yield:
  %y = call i32 @sched_yield()
  br label %wait
done:
  store atomic i32 0, ptr @lock release, align 4
  ret void
}

; join all workers and use %workers from now on
define void @weft_pool_resize(i64 %workers) noinline optnone {
start:
  br label %acquire
acquire:
  %pair = cmpxchg ptr @lock, i32 0, i32 1 acquire monotonic
  %ok = extractvalue { i32, i1 } %pair, 1
  br i1 %ok, label %locked, label %again
again:
  %y = call i32 @sched_yield()
  br label %acquire
locked:
  store atomic i32 1, ptr @stop seq_cst, align 4
  %old = atomicrmw add ptr @seq, i32 1 seq_cst
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr @seq, i32 129, i64 1000, ptr null, ptr null, i32 0)
  %n = load i64, ptr @started
  br label %loop
loop:
  %k = phi i64 [ 0, %locked ], [ %k1, %one ]
  %all = icmp sge i64 %k, %n
  br i1 %all, label %done, label %one
one:
  %slot = getelementptr [256 x i64], ptr @threads, i64 0, i64 %k
  %thread = load i64, ptr %slot
  %j = call i32 @pthread_join(i64 %thread, ptr null)
  %k1 = add i64 %k, 1
  br label %loop
done:
  store i64 0, ptr @started
  store i64 %workers, ptr @wanted
  store atomic i32 0, ptr @stop release, align 4
  store atomic i32 0, ptr @lock release, align 4
  ret void
}

define void @weft_pool_stop() noinline optnone {
  call void @weft_pool_resize(i64 0)
  ret void
}

; in the child of a fork: the workers are gone
define void @weft_pool_reset() noinline optnone {
  store i64 0, ptr @state
  store i32 0, ptr @sleepers
  store i32 0, ptr @lock
  store i32 0, ptr @stop
  store i64 0, ptr @started
  ret void
}
"""
