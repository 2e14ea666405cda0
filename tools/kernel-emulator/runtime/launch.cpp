// One launch: arguments are copied between guard gaps, the blocks run one after another, results are copied back.
#include <dlfcn.h>

#include <algorithm>
#include <mutex>

#include "machine.h"

namespace emulator {

constexpr u64 KEEP = 64 << 20;  // memory of a slot that is kept between launches

static std::mutex contexts_lock;
static std::vector<std::unique_ptr<Context>> idle_contexts;

// The source line of a return address, by addr2line if there is one.
std::string source_line(const void* at) {
    Dl_info info;
    if (!at || !dladdr(at, &info) || !info.dli_fname) return "";
    char command[4600];
    // The address is behind the call: one byte less is within it. Inlined callers follow the innermost line.
    snprintf(command, sizeof command, "addr2line -i -e '%s' %#lx 2>/dev/null", info.dli_fname,
             (unsigned long)(u64(at) - u64(info.dli_fbase) - 1));
    FILE* pipe = popen(command, "r");
    if (!pipe) return "";
    std::string text;
    char line[1000];
    for (int n = 0; fgets(line, sizeof line, pipe);) {
        line[strcspn(line, "\n")] = 0;
        if (char* note = strstr(line, " (discriminator")) *note = 0;
        if (line[0] == '?' || n == 4 || strstr(line, "/runtime/device.h:")) continue;
        const char* name = strncmp(line, "./", 2) ? line : line + 2;
        text += (n++ == 0 ? " at " : ", called at ") + std::string(name);
    }
    pclose(pipe);
    return text;
}

struct Launch {
    Context& c;
    EmulatorArgument* arguments;
    u32 count;

    bool refuse(const std::string& why) {
        c.message = why;
        return false;
    }

    bool check_configuration() {
        const EmulatorConfig& f = c.config;
        u64 threads = 1, blocks = 1;
        for (int i = 0; i < 3; i++) {
            threads *= f.block[i];
            blocks *= f.grid[i];
            if (f.block[i] == 0 || f.grid[i] == 0) return refuse("a launch with an empty grid or block");
        }
        u64 most = std::min<u64>(c.kernel->max_threads, 1024);
        if (threads > most)
            return refuse("a block of " + std::to_string(threads) + " threads, but __launch_bounds__ allows " +
                          std::to_string(most));
        if (f.block[2] > 64 || f.grid[1] > 65535 || f.grid[2] > 65535 || f.grid[0] > 0x7fffffffu || blocks > 1u << 30)
            return refuse("a grid or block larger than CUDA allows");
        if (f.shared_bytes > 227 * 1024)
            return refuse(std::to_string(f.shared_bytes) + " bytes of dynamic shared memory, but 232448 is the most");
        if (count != c.kernel->parameter_count)
            return refuse("takes " + std::to_string(c.kernel->parameter_count) + " arguments, got " +
                          std::to_string(count));
        c.thread_count = u32(threads);
        return true;
    }

    bool check_arguments() {
        if (count > ARGUMENT_SLOTS) return refuse("more than 48 arguments");
        for (u32 i = 0; i < count; i++) {
            const EmulatorParameter& p = c.kernel->parameters[i];
            const EmulatorArgument& a = arguments[i];
            std::string name = std::string("argument ") + p.name;
            if ((p.element_bytes != 0) != (a.kind == EMULATOR_BUFFER)) return refuse(name + ": is a " + p.type);
            if (a.kind != EMULATOR_BUFFER) {
                const char* kinds[] = {"", "i32", "u32", "u64", "f32"};
                if (a.kind > EMULATOR_F32 || strcmp(kinds[a.kind], p.type) != 0) return refuse(name + ": is a " + p.type);
                continue;
            }
            if (a.value == 0 && a.bytes != 0) return refuse(name + ": null, but not empty");
            if (a.value % p.element_bytes) return refuse(name + ": not aligned to its elements");
            if (a.bytes % p.element_bytes) return refuse(name + ": a part of an element");
            if (a.bytes > SLOT - SLOT_DATA - 4096) return refuse(name + ": larger than 3 GiB");
            if (p.writable && !a.writable) return refuse(name + ": the kernel writes to it, but it was lent for reading");
            for (u32 j = 0; j < i; j++) {
                const EmulatorArgument& b = arguments[j];
                const EmulatorParameter& q = c.kernel->parameters[j];
                bool written = (p.writable || q.writable) && a.bytes && b.bytes;
                if (b.kind == EMULATOR_BUFFER && written && a.value < b.value + b.bytes && b.value < a.value + a.bytes)
                    return refuse(name + " overlaps argument " + q.name + ", but both are __restrict__ and one is written");
            }
        }
        return true;
    }

    void copy_in() {
        c.values.assign(count, 0);
        for (u32 i = 0; i < count; i++) {
            const EmulatorParameter& p = c.kernel->parameters[i];
            EmulatorArgument& a = arguments[i];
            Region& r = c.regions[i];
            a.unwritten = a.first_unwritten = 0;
            if (a.kind != EMULATOR_BUFFER) {
                c.values[i] = a.value;
                continue;
            }
            r.space = Space::Argument;
            r.name = p.name;
            r.element_bytes = p.element_bytes;
            r.writable = p.writable;
            r.shift = u32(__builtin_ctz(p.element_bytes));
            // The caller's alignment, so that a vector access that needs more is seen.
            map_region(c, r, a.bytes, a.value & 255);
            if (r.writable) reserve_cells(r);
            if (a.bytes) memcpy(reinterpret_cast<void*>(r.begin), reinterpret_cast<void*>(a.value), a.bytes);
            c.values[i] = a.value ? r.begin : 0;
        }
    }

    void copy_out() {
        for (u32 i = 0; i < count; i++) {
            EmulatorArgument& a = arguments[i];
            Region& r = c.regions[i];
            if (a.kind != EMULATOR_BUFFER || !r.writable || !a.bytes) continue;
            memcpy(reinterpret_cast<void*>(a.value), reinterpret_cast<void*>(r.begin), a.bytes);
            if (!c.config.find_unwritten) continue;
            u64 size = r.element_bytes;
            for (u64 e = a.bytes / size; e-- > 0;) {
                bool written = true;
                for (u64 k = e * size >> r.shift; k <= (e * size + size - 1) >> r.shift; k++)
                    written &= r.cells[k].write.era() >= c.launch_era;
                if (!written) a.unwritten++, a.first_unwritten = e;
            }
        }
    }

    bool run() {
        Region& dynamic = c.regions[DYNAMIC_SLOT];
        dynamic.space = Space::Shared;
        dynamic.name = "dynamic shared memory";
        dynamic.writable = true;
        dynamic.shift = 2;
        map_region(c, dynamic, c.config.shared_bytes, 0);
        reserve_cells(dynamic);
        c.statics = 0;
        if (c.era > 0xf0000000u) {
            for (Region& r : c.regions)
                if (r.cells) memset(static_cast<void*>(r.cells), 0, r.cell_capacity * sizeof(Cell));
            c.era = 0;
        }
        c.launch_era = c.era + 1;
        c.accesses = c.barriers = 0;
        c.releases.clear();
        c.block_eras.clear();
        c.random = c.config.seed * 0x9e3779b97f4a7c15ull ^ 0xd1b54a32d192ed03ull;
        if (c.random == 0) c.random = 1;
        c.free_meetings.clear();
        for (auto& m : c.meetings) c.free_meetings.push_back(m.get());
        u64 blocks = u64(c.config.grid[0]) * c.config.grid[1] * c.config.grid[2];
        std::vector<u32> order(blocks);
        for (u64 i = 0; i < blocks; i++) order[i] = u32(c.config.order == EMULATOR_REVERSE ? blocks - 1 - i : i);
        if (c.config.order == EMULATOR_RANDOM)
            for (u64 i = blocks; i > 1; i--) std::swap(order[i - 1], order[c.next_random(u32(i))]);
        c.block_linear.clear();
        for (u32 linear : order) {
            const u32* g = c.config.grid;
            c.block = {linear % g[0], linear / g[0] % g[1], linear / g[0] / g[1]};
            c.block_ordinal = u32(c.block_eras.size());
            c.block_era = ++c.era;
            c.block_eras.push_back(c.era);
            c.block_linear.push_back(linear);
            c.acquires.clear();
            c.era_unfenced = false;
            c.vote[0] = c.vote[1] = c.vote[2] = 0;
            memset(reinterpret_cast<void*>(dynamic.begin), 0xff, dynamic.bytes);
            for (u32 i = 0; i < c.statics; i++) {
                Region& r = c.regions[FIRST_STATIC_SLOT + i];
                memset(reinterpret_cast<void*>(r.begin), 0xff, r.bytes);
            }
            if (!run_block(c)) return false;
        }
        return true;
    }

    void release() {
        for (Region& r : c.regions) {
            r.space = Space::None;
            r.bytes = 0;
            r.name = "";
            r.identity = nullptr;
            if (r.mapped > KEEP) {
                u64 data = c.base + (&r - c.regions) * SLOT + SLOT_DATA;
                madvise(reinterpret_cast<void*>(data), r.mapped, MADV_DONTNEED);
            }
            if (r.cell_capacity * sizeof(Cell) > KEEP) {
                munmap(r.cells, r.cell_capacity * sizeof(Cell));
                r.cells = nullptr;
                r.cell_capacity = 0;
            }
        }
    }
};

}  // namespace emulator

using namespace emulator;

#define API extern "C" __attribute__((visibility("default")))

API int emulator_launch(const EmulatorKernel* kernel, const EmulatorConfig* config, EmulatorArgument* arguments,
                        unsigned int count, EmulatorReport* report) {
    std::unique_ptr<Context> context;
    {
        std::lock_guard<std::mutex> hold(contexts_lock);
        if (!idle_contexts.empty()) {
            context = std::move(idle_contexts.back());
            idle_contexts.pop_back();
        }
    }
    if (!context) context = std::make_unique<Context>();
    Context& c = *context;
    c.kernel = kernel;
    c.config = *config;
    c.failed = false;
    c.failed_at = nullptr;
    c.message.clear();
    current = &c;
    Launch launch{c, arguments, count};
    bool good = launch.check_configuration() && launch.check_arguments();
    if (good) {
        launch.copy_in();
        good = launch.run();
        if (good) launch.copy_out();
    }
    current = nullptr;
    report->accesses = c.accesses;
    report->barriers = c.barriers;
    std::string message = good ? "" : c.message + source_line(c.failed_at);
    snprintf(report->message, sizeof report->message, "%s", message.c_str());
    launch.release();
    std::lock_guard<std::mutex> hold(contexts_lock);
    idle_contexts.push_back(std::move(context));
    return good ? 0 : 1;
}

API void* emulator_dynamic_shared() { return reinterpret_cast<void*>(current->regions[DYNAMIC_SLOT].begin); }

API void* emulator_static_shared(const void* identity, unsigned long bytes, unsigned long element_bytes, const char* name) {
    Context& c = *current;
    for (u32 i = 0; i < c.statics; i++)
        if (c.regions[FIRST_STATIC_SLOT + i].identity == identity)
            return reinterpret_cast<void*>(c.regions[FIRST_STATIC_SLOT + i].begin);
    if (FIRST_STATIC_SLOT + c.statics >= SLOTS)
        fail(__builtin_return_address(0), "more than %u static shared arrays", SLOTS - FIRST_STATIC_SLOT);
    Region& r = c.regions[FIRST_STATIC_SLOT + c.statics++];
    r.space = Space::Shared;
    r.identity = identity;
    r.name = name;
    r.writable = true;
    r.element_bytes = u32(element_bytes);
    r.shift = std::min(2u, u32(__builtin_ctzl(element_bytes)));
    map_region(c, r, bytes, 0);
    reserve_cells(r);
    memset(reinterpret_cast<void*>(r.begin), 0xff, r.bytes);
    u64 total = 0;
    for (u32 i = 0; i < c.statics; i++) total += c.regions[FIRST_STATIC_SLOT + i].bytes;
    if (total > 48 * 1024)
        fail(__builtin_return_address(0), "%llu bytes of static shared memory, but 49152 is the most",
             (unsigned long long)total);
    return reinterpret_cast<void*>(r.begin);
}
