// Every memory access of a kernel comes here, through the callbacks of -fsanitize=thread: is it inside an array that the
// thread may touch, and is it ordered after every conflicting access?
#include <dlfcn.h>
#include <link.h>

#include "machine.h"

namespace emulator {

thread_local Context* current = nullptr;
thread_local long long steps_left = MOST_STEPS;

void fail(void* at, const char* format, ...) {
    Context& c = *current;
    char text[1200];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    c.failed = true;
    c.failed_at = at;
    c.message = where(c, c.thread->index) + ": " + text;
    leave_to_scheduler();
    __builtin_unreachable();
}

static void* reserve(u64 bytes, int protection) {
    void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "kernel emulator: cannot reserve %llu bytes of address space; raise `ulimit -v`\n",
                (unsigned long long)bytes);
        abort();
    }
    return p;
}

Context::Context() {
    base = u64(reserve(SLOTS * SLOT, PROT_NONE));
}

// Gives a region `bytes` at `offset` (below 256) behind its slot's aligned data address.
void map_region(Context& c, Region& r, u64 bytes, u64 offset) {
    u64 data = c.base + (&r - c.regions) * SLOT + SLOT_DATA;
    u64 needed = (offset + bytes + 4095) & ~u64(4095);
    if (needed > r.mapped) {
        if (mprotect(reinterpret_cast<void*>(data), needed, PROT_READ | PROT_WRITE) != 0) {
            fprintf(stderr, "kernel emulator: cannot map %llu bytes for an argument\n", (unsigned long long)needed);
            abort();
        }
        r.mapped = needed;
    }
    r.begin = data + offset;
    r.bytes = bytes;
}

void reserve_cells(Region& r) {
    u64 needed = (r.bytes >> r.shift) + 1;
    if (needed <= r.cell_capacity) return;
    if (r.cells) munmap(r.cells, r.cell_capacity * sizeof(Cell));
    u64 bytes = (needed * sizeof(Cell) + 4095) & ~u64(4095);
    r.cells = static_cast<Cell*>(reserve(bytes, PROT_READ | PROT_WRITE));
    r.cell_capacity = bytes / sizeof(Cell);
}

// Splits a region's cells because something smaller than a cell was accessed.
static void refine(Region& r, u32 shift) {
    Cell* coarse = r.cells;
    u64 count = (r.bytes + (1u << r.shift) - 1) >> r.shift, capacity = r.cell_capacity;
    u32 ratio = 1u << (r.shift - shift);
    r.cells = nullptr;
    r.cell_capacity = 0;
    r.shift = shift;
    reserve_cells(r);
    u64 fine = r.bytes >> shift;
    for (u64 i = 0; i < count; i++)
        for (u64 j = i * ratio; j < (i + 1) * ratio && j <= fine; j++) r.cells[j] = coarse[i];
    munmap(coarse, capacity * sizeof(Cell));
}

std::string describe(const Region& r, u64 address) {
    char text[200];
    long long offset = (long long)(address - r.begin);
    long long element = offset >= 0 ? offset / r.element_bytes : -((-offset + r.element_bytes - 1) / r.element_bytes);
    if (&r - current->regions == DYNAMIC_SLOT)
        snprintf(text, sizeof text, "dynamic shared memory at byte %lld", offset);
    else if (element * r.element_bytes == offset)
        snprintf(text, sizeof text, "%s[%lld]", r.name, element);
    else
        snprintf(text, sizeof text, "%s[%lld] + %lld bytes", r.name, element, offset - element * r.element_bytes);
    return text;
}

static const char* verb(Kind kind) {
    return kind == Kind::Read ? "reads" : kind == Kind::Write ? "writes" : "updates atomically";
}

// Slow paths: everything below explains, or decides what is rare.

static u32 block_of(const Context& c, u32 era) {
    size_t low = 0, high = c.block_eras.size();
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        (c.block_eras[middle] <= era ? low : high) = middle;
    }
    return u32(low);
}

// Whether what another block did in `era` was released and then acquired by this thread: the other block's
// __threadfence and atomic, then this block's atomic on the same cell and its __threadfence.
static bool acquired(const Context& c, Access other) {
    u32 block = block_of(c, other.era());
    for (const Acquire& a : c.acquires) {
        if (!a.fenced || (a.thread != c.thread->index && a.era >= c.era)) continue;
        for (size_t i = 0; i < a.count; i++) {
            const Release& r = (*a.releases)[i];
            if (r.block == block &&
                (other.era() < r.until_era || (other.era() == r.until_era && other.thread() == r.thread)))
                return true;
        }
    }
    return false;
}

static bool acquired_all(const Context& c) {
    std::vector<bool> seen(c.block_ordinal);
    u32 count = 0;
    for (const Acquire& a : c.acquires) {
        if (!a.fenced || (a.thread != c.thread->index && a.era >= c.era)) continue;
        for (size_t i = 0; i < a.count; i++) {
            u32 block = (*a.releases)[i].block;
            if (block < c.block_ordinal && !seen[block]) seen[block] = true, count++;
        }
    }
    return count == c.block_ordinal;
}

[[noreturn]] static void fail_race(const Region& r, u64 cell, Kind kind, Access other, const char* did, void* at) {
    Context& c = *current;
    u64 address = r.begin + (cell << r.shift);
    bool same_block = other.era() >= c.block_era;
    std::string who;
    if (same_block) {
        EmulatorIndex p = c.threads[other.thread()].position;
        char text[160];
        bool same_warp = other.thread() / 32 == c.thread->index / 32;
        snprintf(text, sizeof text, "thread (%u,%u,%u) of its %s %s with no %s between", p.x, p.y, p.z,
                 same_warp ? "warp" : "block", did, same_warp ? "__syncwarp or __syncthreads" : "__syncthreads");
        who = text;
    } else {
        char text[160];
        u32 b = c.block_linear[block_of(c, other.era())];
        snprintf(text, sizeof text,
                 "block (%u,%u,%u) %s in the same launch (blocks are ordered only through __threadfence and an atomic)",
                 b % c.config.grid[0], b / c.config.grid[0] % c.config.grid[1],
                 b / c.config.grid[0] / c.config.grid[1], did);
        who = text;
    }
    fail(at, "race: %s %s, which %s", verb(kind), describe(r, address).c_str(), who.c_str());
}

[[noreturn, gnu::noinline]] static void fail_extent(const Region& r, u64 address, u64 bytes, Kind kind, void* at) {
    if (r.space == Space::None)
        fail(at, "%s %llu bytes at a wild address (behind every argument)", verb(kind), (unsigned long long)bytes);
    bool dynamic = &r - current->regions == DYNAMIC_SLOT;
    fail(at, "%s %s (%llu bytes), outside its %llu %s", verb(kind), describe(r, address).c_str(),
         (unsigned long long)bytes, (unsigned long long)(dynamic ? r.bytes : r.bytes / r.element_bytes),
         dynamic ? "bytes" : "elements");
}

// Memory that is neither an argument nor shared: the thread's own stack, and constants to read.
static int constant_segment(struct dl_phdr_info* info, size_t, void* data) {
    u64 address = *static_cast<u64*>(data);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr)& p = info->dlpi_phdr[i];
        u64 begin = info->dlpi_addr + p.p_vaddr, end = begin + p.p_memsz;
        if ((p.p_type == PT_LOAD && !(p.p_flags & PF_W)) || p.p_type == PT_GNU_RELRO)
            if (address >= begin && address < end) return 1;
    }
    return 0;
}

[[gnu::noinline]] static void access_elsewhere(Context& c, u64 address, u64 bytes, Kind kind, void* at) {
    if (kind == Kind::Read && address >= 4096) {
        static thread_local u64 page;
        if (page == address >> 6) return;
        if (dl_iterate_phdr(constant_segment, &address)) {
            page = address >> 6;
            return;
        }
    }
    if (address < 4096) fail(at, "%s %llu bytes through a null pointer", verb(kind), (unsigned long long)bytes);
    u64 stacks_end = c.stacks + u64(c.stacks_ready) * STACK;
    if (address >= c.stacks && address < stacks_end)
        fail(at, "%s a local variable of another thread", verb(kind));
    fail(at, "%s %llu bytes at %p, which is no argument, no shared memory and no local variable", verb(kind),
         (unsigned long long)bytes, reinterpret_cast<void*>(address));
}

static inline bool ordered_in_era(Context& c, const Access& other) {
    u32 me = c.thread->index;
    if (other.thread() / 32 != me / 32) return false;
    return other.stamp() <= c.warps[me / 32].seen[me % 32][other.thread() % 32];
}

[[gnu::noinline]] static void check_write_cell(Context& c, Region& r, u64 i, Kind kind, bool atomic_too, void* at) {
    Cell& cell = r.cells[i];
    Access w = cell.write, rd = cell.read;
    u32 me = c.thread->index;
    u32 scope = r.space == Space::Shared ? c.block_era : c.launch_era;
    if (w.era() >= scope && !(atomic_too && w.atomic())) {
        if (w.era() == c.era) {
            if (w.thread() != me && !ordered_in_era(c, w)) fail_race(r, i, kind, w, "wrote", at);
        } else if (w.era() < c.block_era && !acquired(c, w)) {
            fail_race(r, i, kind, w, "wrote", at);
        }
    }
    if (rd.era() >= scope) {
        if (rd.other_blocks()) {
            if (!acquired_all(c)) fail(at, "race: %s %s, which other blocks read in the same launch", verb(kind),
                                       describe(r, r.begin + (i << r.shift)).c_str());
        } else if (rd.era() < c.block_era && !acquired(c, rd)) {
            fail_race(r, i, kind, rd, "read", at);
        }
        if (rd.era() == c.era) {
            if (rd.several() == SEVERAL_WARPS) {
                fail(at, "race: %s %s, which threads of other warps read with no __syncthreads between", verb(kind),
                     describe(r, r.begin + (i << r.shift)).c_str());
            } else if (rd.thread() / 32 != me / 32) {
                fail_race(r, i, kind, rd, "read", at);
            } else {
                u32 others = (rd.several() == ONE_WARP ? cell.lanes : 1u << rd.thread() % 32) & ~(1u << me % 32);
                for (; others; others &= others - 1) {
                    u32 lane = u32(__builtin_ctz(others));
                    Access one = Access::of(c.era, me / 32 * 32 + lane, rd.stamp(), 0, false, false);
                    if (!ordered_in_era(c, one)) fail_race(r, i, kind, one, "read", at);
                }
            }
        }
    }
}

template <Kind KIND>
static inline void touch_cell(Context& c, Region& r, u64 i, void* at) {
    Cell& cell = r.cells[i];
    const u32 me = c.thread->index, warp = me / 32, stamp = c.warps[warp].stamp;
    const bool shared = r.space == Space::Shared;
    const u32 scope = shared ? c.block_era : c.launch_era;
    if (__builtin_expect(cell.in_flight != 0, 0) && cell.in_flight >= c.block_era)
        fail(at, "%s %s while an asynchronous copy to it is in flight: async_wait is missing", verb(KIND),
             describe(r, r.begin + (i << r.shift)).c_str());
    Access w = cell.write;
    if (KIND == Kind::Read) {
        if (w.era() == c.era) {
            if (w.thread() != me && !ordered_in_era(c, w)) fail_race(r, i, KIND, w, "wrote", at);
        } else if (w.era() < c.block_era) {
            if (shared)
                fail(at, "reads %s, which no thread of the block has written",
                     describe(r, r.begin + (i << r.shift)).c_str());
            if (w.era() >= scope && !acquired(c, w)) fail_race(r, i, KIND, w, "wrote", at);
        }
        Access rd = cell.read;
        if (rd.era() != c.era) {
            bool others = rd.era() >= scope && (rd.other_blocks() || rd.era() < c.block_era);
            cell.read = Access::of(c.era, me, stamp, ONE_THREAD, others, false);
        } else if (rd.several() != SEVERAL_WARPS) {
            if (rd.thread() / 32 != warp) {
                cell.read = Access::of(c.era, me, stamp, SEVERAL_WARPS, rd.other_blocks(), false);
            } else if (rd.thread() != me || rd.stamp() != stamp) {
                // Readers that a __syncwarp has put before this one need no memory of their own.
                u32 lanes = rd.several() == ONE_WARP ? cell.lanes : 1u << rd.thread() % 32, kept = 1u << me % 32;
                if (rd.stamp() == stamp) {
                    kept |= lanes;
                } else {
                    for (; lanes; lanes &= lanes - 1) {
                        u32 lane = u32(__builtin_ctz(lanes));
                        if (rd.stamp() > c.warps[warp].seen[me % 32][lane]) kept |= 1u << lane;
                    }
                }
                cell.lanes = kept;
                cell.read = Access::of(c.era, me, stamp, kept & (kept - 1) ? ONE_WARP : ONE_THREAD,
                                       rd.other_blocks(), false);
            }
        }
    } else {
        const bool fresh = w.era() < scope || (w.era() >= c.block_era && w.era() < c.era);
        const bool own = w.era() == c.era && w.thread() == me;
        if ((!fresh && !own) || cell.read.era() >= scope)
            check_write_cell(c, r, i, KIND, KIND == Kind::Atomic, at);
        cell.write = Access::of(c.era, me, stamp, 0, false, KIND == Kind::Atomic);
        cell.read.word = 0;
    }
}

template <Kind KIND>
void access(u64 address, u64 bytes, void* at) {
    Context& c = *current;
    c.accesses++;
    u64 offset = address - c.base;
    if (__builtin_expect(offset < SLOTS * SLOT, 1)) {
        Region& r = c.regions[offset / SLOT];
        u64 place = address - r.begin;
        if (__builtin_expect(place >= r.bytes || bytes > r.bytes - place, 0)) fail_extent(r, address, bytes, KIND, at);
        if (KIND == Kind::Read) {
            if (!r.writable) return;
        } else {
            if (__builtin_expect(!r.writable, 0))
                fail(at, "%s %s, an argument that it may only read", verb(KIND), describe(r, address).c_str());
            if (r.space == Space::Argument) c.thread->unfenced = true;
        }
        u32 cell_mask = (1u << r.shift) - 1;
        if (__builtin_expect((place | bytes) & cell_mask, 0))
            refine(r, ((place | bytes) & 1) ? 0 : ((place | bytes) & 2) ? 1 : 2);
        u64 first = place >> r.shift, last = (place + bytes - 1) >> r.shift;
        for (u64 i = first; i <= last; i++) touch_cell<KIND>(c, r, i, at);
        return;
    }
    if (__builtin_expect(address - c.thread->stack_low < STACK, 1)) return;
    access_elsewhere(c, address, bytes, KIND, at);
}
template void access<Kind::Read>(u64, u64, void*);
template void access<Kind::Write>(u64, u64, void*);
template void access<Kind::Atomic>(u64, u64, void*);

}  // namespace emulator

// The callbacks of -fsanitize=thread.
using emulator::access;
using emulator::Kind;

#define CALLBACK extern "C" __attribute__((visibility("default"))) void
#define ACCESS(bytes)                                                                                            \
    CALLBACK __tsan_read##bytes(void* p) { access<Kind::Read>(u64(p), bytes, __builtin_return_address(0)); }     \
    CALLBACK __tsan_write##bytes(void* p) { access<Kind::Write>(u64(p), bytes, __builtin_return_address(0)); }
#define UNALIGNED(bytes)                                                                                            \
    CALLBACK __tsan_unaligned_read##bytes(void* p) { access<Kind::Read>(u64(p), bytes, __builtin_return_address(0)); } \
    CALLBACK __tsan_unaligned_write##bytes(void* p) { access<Kind::Write>(u64(p), bytes, __builtin_return_address(0)); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
CALLBACK __tsan_read_range(void* p, unsigned long n) {
    if (n) access<Kind::Read>(u64(p), n, __builtin_return_address(0));
}
CALLBACK __tsan_write_range(void* p, unsigned long n) {
    if (n) access<Kind::Write>(u64(p), n, __builtin_return_address(0));
}
CALLBACK __tsan_init() {}
CALLBACK __tsan_func_exit() {
    if (emulator::Context* c = emulator::current) c->thread->depth--;
}
CALLBACK __tsan_func_entry(void* caller) {
    emulator::Context* c = emulator::current;
    if (!c) return;
    emulator::Thread& t = *c->thread;
    if (t.depth < emulator::Site::MOST) t.callers[t.depth] = caller;
    t.depth++;
    if (u64(__builtin_frame_address(0)) - c->thread->stack_low < emulator::STACK_MARGIN)
        emulator::fail(__builtin_return_address(0), "uses more than %llu bytes of stack (does it recurse?)",
                       (unsigned long long)(emulator::STACK - emulator::STACK_MARGIN));
}
CALLBACK __tsan_vptr_read(void* p) { access<Kind::Read>(u64(p), 8, __builtin_return_address(0)); }
CALLBACK __tsan_vptr_update(void* p, void*) { access<Kind::Write>(u64(p), 8, __builtin_return_address(0)); }

// The callback of -fsanitize-coverage=trace-pc: each piece of straight code begins with it.
CALLBACK __sanitizer_cov_trace_pc() {
    if (__builtin_expect(--emulator::steps_left < 0, 0) && emulator::current)
        emulator::fail(__builtin_return_address(0), "does not end: %lld steps in one block", emulator::MOST_STEPS);
}
