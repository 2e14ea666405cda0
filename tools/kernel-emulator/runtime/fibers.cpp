// A block's threads are fibers on stacks of their own. They run one at a time until they meet at a barrier or a warp
// collective; who runs next is chosen by the launch's order.
#include "machine.h"

// Saves the callee-saved registers on the running stack, stores its pointer, and goes on with the other stack.
extern "C" void emulator_switch(void** save, void* resume);
#if defined(__x86_64__)
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
#else
#error "the kernel emulator switches stacks in assembly for x86-64 and aarch64"
#endif

namespace emulator {

std::string where(const Context& c, u32 thread) {
    EmulatorIndex t = c.threads[thread].position;
    char text[120];
    snprintf(text, sizeof text, "block (%u,%u,%u), thread (%u,%u,%u)", c.block.x, c.block.y, c.block.z, t.x, t.y, t.z);
    return text;
}

void leave_to_scheduler() {
    Context& c = *current;
    emulator_switch(&c.thread->stack_pointer, c.scheduler_stack_pointer);
}

static void run_thread() {
    Context& c = *current;
    c.kernel->invoke(reinterpret_cast<const unsigned long long*>(c.values.data()));
    end_async_copies(*c.thread);
    c.thread->wait = Wait::Done;
    leave_to_scheduler();
    __builtin_trap();
}

static void prepare_stacks(Context& c, u32 count) {
    constexpr u32 MOST = 1024;
    if (!c.stacks) {
        void* p = mmap(nullptr, MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            fprintf(stderr, "kernel emulator: cannot reserve stacks; raise `ulimit -v`\n");
            abort();
        }
        c.stacks = u64(p);
    }
    for (; c.stacks_ready < count; c.stacks_ready++)  // a guard page at the low end of each
        mprotect(reinterpret_cast<void*>(c.stacks + c.stacks_ready * STACK), 4096, PROT_NONE);
}

static void prepare_thread(Context& c, u32 index) {
    Thread& t = c.threads[index];
    const u32* size = c.config.block;
    t.index = index;
    t.lane = index % 32;
    t.position = {index % size[0], index / size[0] % size[1], index / size[0] / size[1]};
    t.stack_low = c.stacks + index * STACK;
    // Staggered, so that the fibers' busiest lines do not fall into the same sets of the cache.
    t.stack_high = t.stack_low + STACK - (index % 61) * 64;
    t.wait = Wait::Ready;
    t.depth = 0;
    t.unfenced = false;
    t.fence_era = 0;
    t.groups.clear();
    t.open_group.clear();
#if defined(__x86_64__)
    u64* sp = reinterpret_cast<u64*>(t.stack_high & ~u64(63)) - 2;  // `ret` leaves the stack as a call would
    *sp = u64(&run_thread);
    for (int i = 0; i < 6; i++) *--sp = 0;
#else
    u64* sp = reinterpret_cast<u64*>(t.stack_high & ~u64(63)) - 20;
    memset(sp, 0, 160);
    sp[11] = u64(&run_thread);
#endif
    t.stack_pointer = sp;
}

static void shuffle(Context& c, std::vector<u32>& order) {
    for (u32 i = u32(order.size()); i > 1; i--) std::swap(order[i - 1], order[c.next_random(i)]);
}

// Runs a warp until each of its lanes waits for others or has ended. False on an error.
static bool run_warp(Context& c, Warp& w, std::vector<u32>& order) {
    while (w.ready) {
        if (c.config.order == EMULATOR_RANDOM) shuffle(c, order);
        for (u32 lane : order) {
            if (!(w.ready >> lane & 1)) continue;
            w.ready &= ~(1u << lane);
            Thread& t = c.threads[w.first + lane];
            c.thread = &t;
            emulator_switch(&c.scheduler_stack_pointer, t.stack_pointer);
            if (c.failed) return false;
            if (t.wait == Wait::Done) {
                w.live &= ~(1u << lane);
                // Those who wait for this lane may now be complete.
                lane_has_ended(c, w);
            }
        }
    }
    return true;
}

static const char* waits_at(Wait wait) {
    switch (wait) {
        case Wait::Barrier: return "__syncthreads";
        case Wait::SyncWarp: return "__syncwarp";
        case Wait::Shuffle: return "a shuffle";
        case Wait::Vote: return "a warp vote";
        case Wait::Mma: return "mma";
        case Wait::LdMatrix: return "ldmatrix";
        default: return "nothing";
    }
}

// Barriers and what is `.aligned` stand in functions of several callers, which tell them apart; without addr2line the line alone.
static std::string place_of(const Thread& t) {
    std::string place;
    if (t.wait == Wait::Barrier || t.wait == Wait::Mma || t.wait == Wait::LdMatrix)
        for (u32 k = t.site.count; k-- > 1;) {  // the outermost is the emulator's own call of the kernel
            std::string lines = source_line(t.site.calls[k]);
            if (lines.compare(0, 4, " at ") == 0) place += (place.empty() ? "" : ", called at ") + lines.substr(4);
        }
    if (!place.empty()) return place;
    return std::string(strncmp(t.file, "./", 2) ? t.file : t.file + 2) + ":" + std::to_string(t.line);
}

static std::string waiting(const Thread& t) {
    if (t.wait == Wait::Done) return "has returned";
    char mask[32] = "";
    if (t.wait != Wait::Barrier) snprintf(mask, sizeof mask, " with mask 0x%08x", t.mask);
    return std::string("waits at ") + waits_at(t.wait) + mask + " (" + place_of(t) + ")";
}

static bool stuck(Context& c, const char* what, u32 first, u32 second) {
    c.failed = true;
    c.failed_at = nullptr;
    c.message = std::string(what) + ": " + where(c, first) + " " + waiting(c.threads[first]) + ", but " +
                where(c, second).substr(where(c, second).find("thread")) + " " + waiting(c.threads[second]);
    return false;
}

// Of two that wait for the same: an mma or ldmatrix only at one instruction.
static bool same_place(const Thread& a, const Thread& b) {
    return (a.wait != Wait::Mma && a.wait != Wait::LdMatrix) || same_site(a.site, b.site);
}

// All threads wait or have ended: opens the barrier, or says why nobody can go on. `ended` tells that all have ended.
static bool pass_barrier(Context& c, bool& ended) {
    u32 at_barrier = ~0u, elsewhere = ~0u, done = ~0u;
    for (u32 i = 0; i < c.thread_count; i++) {
        Wait w = c.threads[i].wait;
        u32& which = w == Wait::Barrier ? at_barrier : w == Wait::Done ? done : elsewhere;
        if (which == ~0u) which = i;
    }
    ended = at_barrier == ~0u && elsewhere == ~0u;
    if (ended) return true;
    if (elsewhere != ~0u) {
        // Whom does it wait for? A live lane of its mask that waits for something else.
        const Thread& t = c.threads[elsewhere];
        u32 other = done != ~0u ? done : at_barrier != ~0u ? at_barrier : elsewhere;
        for (u32 i = 0; i < c.thread_count; i++) {
            const Thread& o = c.threads[i];
            bool together = o.wait == t.wait && o.mask == t.mask && same_place(o, t);
            if (i / 32 == elsewhere / 32 && (t.mask >> o.lane & 1) && !together) {
                other = i;
                if (o.wait != Wait::Done) break;
            }
        }
        return stuck(c, "divergent warp collective", elsewhere, other);
    }
    if (done != ~0u) return stuck(c, "divergent barrier", at_barrier, done);
    for (u32 i = 1; i < c.thread_count; i++) {
        const Thread &a = c.threads[0], &b = c.threads[i];
        if (a.line != b.line || strcmp(a.file, b.file) != 0) return stuck(c, "divergent barrier", 0, i);
    }
    // Warps may come to one barrier by several instructions, the threads of a warp may not.
    for (u32 i = 1; i < c.thread_count; i++)
        if (i % 32 && !same_site(c.threads[i - i % 32].site, c.threads[i].site))
            return stuck(c, "divergent barrier", i - i % 32, i);
    c.barriers++;
    c.era++;
    for (u32 i = 0; i < c.thread_count; i++) {
        Thread& t = c.threads[i];
        t.wait = Wait::Ready;
        c.era_unfenced |= t.unfenced;
    }
    for (Warp& w : c.warps) {
        w.ready = w.live;
        w.stamp = 1;
        if (w.synced) memset(w.seen, 0, sizeof w.seen);
        w.synced = false;
    }
    return true;
}

bool run_block(Context& c) {
    steps_left = MOST_STEPS;
    prepare_stacks(c, c.thread_count);
    u32 warp_count = (c.thread_count + 31) / 32;
    c.threads.resize(c.thread_count);
    c.warps.resize(warp_count);
    for (u32 i = 0; i < c.thread_count; i++) prepare_thread(c, i);
    std::vector<u32> warp_order(warp_count), lane_order(32);
    for (u32 i = 0; i < warp_count; i++) {
        Warp& w = c.warps[i];
        w.first = i * 32;
        w.lanes = c.thread_count - w.first < 32 ? c.thread_count - w.first : 32;
        w.live = w.ready = w.lanes == 32 ? ~0u : (1u << w.lanes) - 1;
        w.stamp = 1;
        w.open_count = 0;
        memset(w.seen, 0, sizeof w.seen);
        w.synced = false;
    }
    bool reverse = c.config.order == EMULATOR_REVERSE;
    for (u32 i = 0; i < warp_count; i++) warp_order[i] = reverse ? warp_count - 1 - i : i;
    for (u32 i = 0; i < 32; i++) lane_order[i] = reverse ? 31 - i : i;
    for (;;) {
        if (c.config.order == EMULATOR_RANDOM) shuffle(c, warp_order);
        for (u32 i : warp_order)
            if (!run_warp(c, c.warps[i], lane_order)) return false;
        bool ended;
        if (!pass_barrier(c, ended)) return false;
        if (ended) return true;
    }
}

}  // namespace emulator

using namespace emulator;

#define API extern "C" __attribute__((visibility("default")))

API EmulatorIndex emulator_thread_index() { return current->thread->position; }
API EmulatorIndex emulator_block_index() { return current->block; }
API EmulatorIndex emulator_block_size() {
    const u32* s = current->config.block;
    return {s[0], s[1], s[2]};
}
API EmulatorIndex emulator_grid_size() {
    const u32* s = current->config.grid;
    return {s[0], s[1], s[2]};
}

API int emulator_sync_block(int kind, int predicate, const char* file, int line) {
    Context& c = *current;
    Thread& t = *c.thread;
    // Three counters in turn: everybody clears the next barrier's before anybody can count in it, and after everybody
    // has read the one before.
    u32 turn = c.era % 3;
    c.vote[(turn + 1) % 3] = 0;
    c.vote[turn] += predicate;
    t.wait = Wait::Barrier;
    t.file = file;
    t.line = line;
    note_site(t, __builtin_return_address(0));
    leave_to_scheduler();
    return kind == 0 ? 0 : c.vote[turn];
}

API void emulator_trap() { fail(__builtin_return_address(0), "reached __trap"); }
