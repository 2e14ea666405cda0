// The emulator's state: threads as fibers, memory regions with their shadow, the block that runs.
#pragma once
#include <sys/mman.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "device.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

namespace emulator {

// Time. A launch runs its blocks one after another, and a block is divided by its barriers, so one counter orders
// everything that barriers order: each block and each barrier starts a new *era*. Within an era only __syncwarp orders:
// each of a warp's __syncwarps advances the warp's *stamp*, and `Warp::seen[t][r]` is the stamp up to which lane r's
// accesses come before lane t's next one.
//
// A memory cell remembers its last write and a summary of its reads since, each packed into a word:
//   era 32 | thread 10 | stamp 18 | several 2 | other_blocks 1 | atomic 1
struct Access {
    u64 word;
    static Access of(u32 era, u32 thread, u32 stamp, u32 several, bool other_blocks, bool atomic) {
        return {u64(era) << 32 | u64(thread) << 22 | u64(stamp) << 4 | several << 2 | u64(other_blocks) << 1 |
                u64(atomic)};
    }
    u32 era() const { return u32(word >> 32); }
    u32 thread() const { return u32(word >> 22) & 1023; }
    u32 stamp() const { return u32(word >> 4) & MAX_STAMP; }
    u32 several() const { return u32(word >> 2) & 3; }
    bool other_blocks() const { return word >> 1 & 1; }
    bool atomic() const { return word & 1; }
    static constexpr u32 MAX_STAMP = (1 << 18) - 1;
};
// Of a read summary: one thread, several lanes of one warp, several warps.
enum : u32 { ONE_THREAD = 0, ONE_WARP = 1, SEVERAL_WARPS = 2 };

struct Cell {
    Access write, read;
    u32 lanes;      // that read, if `several` is ONE_WARP
    u32 in_flight;  // the era in which a block started an asynchronous copy to here that has not landed; 0 if none
};

// A tensor argument or a shared array. Each has a slot of the address space of its own, so that an index which is wrong
// by up to a gigabyte still tells which array was meant.
constexpr u64 SLOT = 1ull << 32, SLOT_DATA = 1ull << 30;
constexpr u32 ARGUMENT_SLOTS = 48, DYNAMIC_SLOT = 48, FIRST_STATIC_SLOT = 49, SLOTS = 64;
enum class Space : u8 { None, Argument, Shared };

struct Region {
    u64 begin = 0, bytes = 0;  // the exact extent
    bool writable = false;
    Space space = Space::None;
    u32 shift = 0;  // a shadow cell covers 1 << shift bytes
    Cell* cells = nullptr;
    u64 cell_capacity = 0;
    u64 mapped = 0;  // bytes from the slot's data address that may be touched
    const char* name = "";
    u32 element_bytes = 1;
    const void* identity = nullptr;  // of a static shared array
};

struct AsyncCopy {
    u64 shared, global;
    u32 source_bytes;
};

enum class Wait : u8 { Ready, Barrier, SyncWarp, Shuffle, Vote, Mma, LdMatrix, Done };

// Where a thread is: the return addresses of the functions that were not inlined, outermost first, and of the call into
// the emulator. Deeper ones than there is room for are left out.
struct Site {
    static constexpr u32 MOST = 24;
    u32 count = 0;
    const void* calls[MOST];
};

// A warp collective that lanes wait for: what they bring, and how many have yet to take the result away.
struct Meeting {
    alignas(16) u8 data[32][48];
    float product[16][8];
    Wait kind;
    u32 mask, arrived;
    u32 participants, to_leave;
    const Site* site;  // of the first to come to an mma or ldmatrix, which all lanes have to come to at one place
};

struct Thread {
    void* stack_pointer;
    u64 stack_low, stack_high;
    u32 index, lane;
    EmulatorIndex position;
    Wait wait;
    u32 mask;
    const char* file;
    int line;
    u32 depth;                         // of `callers`, which may be more than there is room for
    const void* callers[Site::MOST];   // return addresses of the functions that it is in
    Site site;                         // of the barrier, mma or ldmatrix that it waits at
    bool unfenced;       // wrote to global memory since its last __threadfence
    u32 fence_era;       // era of its last __threadfence
    std::vector<std::vector<AsyncCopy>> groups;  // committed, oldest first
    std::vector<AsyncCopy> open_group;
};

struct Warp {
    u32 first, lanes;  // thread index of lane 0; how many lanes there are
    u32 live, ready;   // masks
    u32 stamp;
    u32 open_count;
    Meeting* open[32];  // that wait for lanes
    bool synced;  // `seen` is not all zero
    u32 seen[32][32];
};

// An atomic's cell in global memory: the blocks that have released what they wrote, in order.
struct Release {
    u32 block, until_era, thread;
};
struct Acquire {
    const std::vector<Release>* releases;
    size_t count;
    u32 thread, era;  // of the atomic, then of the fence behind it
    bool fenced;
};

struct Context {
    u64 base;  // of the slots
    Region regions[SLOTS];
    Thread* thread;  // that runs
    // Eras: 0 is before everything.
    u32 era = 0, launch_era = 0, block_era = 0;
    bool atomics = false;  // some thread of the launch has done an atomic
    u64 accesses = 0, barriers = 0;

    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<std::unique_ptr<Meeting>> meetings;
    std::vector<Meeting*> free_meetings;
    u64 stacks = 0;
    u32 stacks_ready = 0;
    void* scheduler_stack_pointer;
    u32 statics = 0;

    const EmulatorKernel* kernel;
    EmulatorConfig config;
    EmulatorIndex block;
    u32 block_ordinal;
    u32 thread_count;
    std::vector<u64> values;
    std::vector<u32> block_eras;    // the first era of each block that has started
    std::vector<u32> block_linear;  // and its place in the grid
    std::unordered_map<u64, std::vector<Release>> releases;
    std::vector<Acquire> acquires;
    bool era_unfenced;  // a thread left an earlier era of this block with unfenced writes
    u64 random;
    int vote[3];  // of a barrier with a predicate, by era
    bool failed;
    std::string message;
    void* failed_at;

    Context();
    Warp& warp() { return warps[thread->index / 32]; }
    u32 next_random(u32 below) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return u32((random >> 11) % below);
    }
};

// Only the fibers of one launch run on an operating-system thread at a time.
extern thread_local Context* current;

// After so many steps of a block, pieces of straight code that its threads have begun, a kernel counts as endless.
constexpr long long MOST_STEPS = 1ll << 28;
extern thread_local long long steps_left;

constexpr u64 STACK = 256 << 10, STACK_MARGIN = 96 << 10;

// Ends the launch with a message; a thread's own error names it and, if `at` is a return address, the source line.
[[noreturn]] void fail(void* at, const char* format, ...) __attribute__((format(printf, 2, 3)));

// access.cpp
enum class Kind { Read, Write, Atomic };
template <Kind KIND>
void access(u64 address, u64 bytes, void* at);
void map_region(Context& c, Region& r, u64 bytes, u64 offset);
void reserve_cells(Region& r);
std::string describe(const Region& r, u64 address);

// fibers.cpp
void leave_to_scheduler();
bool run_block(Context& c);
std::string where(const Context& c, u32 thread);

// launch.cpp
std::string source_line(const void* at);

// collectives.cpp
void note_site(Thread& t, const void* at);
bool same_site(const Site& a, const Site& b);
void end_async_copies(Thread& t);
void lane_has_ended(Context& c, Warp& w);

}  // namespace emulator
