// Collective operations of a warp, atomics with their fences, and asynchronous copies.
#include <algorithm>
#include <mutex>

#include "machine.h"

namespace emulator {

static float bf16_to_f32(u32 bits) {
    bits <<= 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// What a lane brings to an mma: fragments, and the elements of a word (2: bf16, 1: TF32).
struct Fragments {
    u32 a[4], b[2];
    float c[4];
    u32 of_word;
};
static_assert(sizeof(Fragments) <= sizeof Meeting::data[0], "a lane's room in a meeting");

static float element(const Fragments& f, u32 word, u32 i) {
    if (f.of_word == 2) return bf16_to_f32(word >> i * 16 & 0xffff);
    float x;
    memcpy(&x, &word, 4);
    return x;
}

// mma.m16n8k16 of bf16 and mma.m16n8k8 of TF32: the matrices are taken from the lanes' fragments by the layouts of the PTX manual ("Matrix
// fragments for mma.m16n8k16 with floating point type" and "for mma.m16n8k8"), where a word has its place along k and one or two elements;
// the sum over k runs in f32 from the accumulator on.
static void multiply(Meeting& m) {
    float a[16][16], b[16][8], c[16][8];
    u32 depth = 16;
    for (u32 lane = 0; lane < 32; lane++) {
        const u32 group = lane / 4, in_group = lane % 4;
        Fragments f;
        memcpy(&f, m.data[lane], sizeof f);
        depth = 8 * f.of_word;
        for (u32 i = 0; i < f.of_word; i++) {
            for (u32 w = 0; w < 4; w++) a[group + w % 2 * 8][(in_group + w / 2 * 4) * f.of_word + i] = element(f, f.a[w], i);
            for (u32 w = 0; w < 2; w++) b[(in_group + w * 4) * f.of_word + i][group] = element(f, f.b[w], i);
        }
        for (u32 i = 0; i < 4; i++) c[group + (i >= 2 ? 8 : 0)][in_group * 2 + (i & 1)] = f.c[i];
    }
    for (u32 row = 0; row < 16; row++) {
        for (u32 col = 0; col < 8; col++) m.product[row][col] = c[row][col];
        for (u32 k = 0; k < depth; k++)
            for (u32 col = 0; col < 8; col++) m.product[row][col] += a[row][k] * b[k][col];
    }
}

// Orders the lanes of `mask`: what each of them, or anyone it knows of, did so far comes before what they do next.
static void order_lanes(Warp& w, u32 mask) {
    u32 joined[32] = {};
    for (u32 m = mask; m; m &= m - 1) {
        u32 lane = u32(__builtin_ctz(m));
        for (u32 other = 0; other < 32; other++) joined[other] = std::max(joined[other], w.seen[lane][other]);
    }
    for (u32 m = mask; m; m &= m - 1) joined[__builtin_ctz(m)] = w.stamp;
    for (u32 m = mask; m; m &= m - 1) memcpy(w.seen[__builtin_ctz(m)], joined, sizeof joined);
    w.synced = true;
    if (++w.stamp > Access::MAX_STAMP)
        fail(nullptr, "more than %u __syncwarps of a warp between two __syncthreads", Access::MAX_STAMP - 1);
}

// Notes where a thread is that calls from `at`.
void note_site(Thread& t, const void* at) {
    Site& s = t.site;
    s.count = std::min(t.depth, Site::MOST - 1);
    for (u32 k = 0; k < s.count; k++) s.calls[k] = t.callers[k];
    s.calls[s.count++] = at;
}

// The lines of the source behind a place. Asked for once an address: a process is started for each.
static const std::string& lines_of(const void* at) {
    static std::mutex lock;
    static std::unordered_map<const void*, std::string> known;
    std::lock_guard<std::mutex> hold(lock);
    auto found = known.find(at);
    if (found == known.end()) found = known.emplace(at, source_line(at)).first;
    return found->second;
}

// Whether two threads are at one instruction. The host's compiler may have made several of one, so that places which differ
// are compared by their lines.
bool same_site(const Site& a, const Site& b) {
    if (a.count == b.count && std::equal(a.calls, a.calls + a.count, b.calls)) return true;
    std::string lines[2];
    const Site* sites[] = {&a, &b};
    for (int i = 0; i < 2; i++)
        for (u32 k = sites[i]->count; k-- > 0;) lines[i] += lines_of(sites[i]->calls[k]);
    return lines[0] == lines[1];
}

static Meeting* new_meeting(Context& c, Wait kind, u32 mask) {
    if (c.free_meetings.empty()) {
        c.meetings.push_back(std::make_unique<Meeting>());
        c.free_meetings.push_back(c.meetings.back().get());
    }
    Meeting* m = c.free_meetings.back();
    c.free_meetings.pop_back();
    m->kind = kind;
    m->mask = mask;
    m->arrived = 0;
    return m;
}

// If all live lanes of an open meeting have come, lets them go on.
static bool complete(Context& c, Warp& w, u32 place) {
    Meeting& m = *w.open[place];
    u32 expected = m.mask & w.live;
    if (m.arrived != expected) return false;
    w.open[place] = w.open[--w.open_count];
    if (m.kind == Wait::SyncWarp) order_lanes(w, expected);
    if (m.kind == Wait::Mma) multiply(m);
    m.participants = expected;
    m.to_leave = u32(__builtin_popcount(expected));
    for (u32 l = expected; l; l &= l - 1) c.threads[w.first + u32(__builtin_ctz(l))].wait = Wait::Ready;
    w.ready |= expected;
    return true;
}

void lane_has_ended(Context& c, Warp& w) {
    for (u32 place = w.open_count; place-- > 0;) complete(c, w, place);
}

// Waits for the lanes of `mask`; what each brought is in the meeting that is returned, which `left` gives back.
static inline Meeting* meet(Wait kind, u32 mask, const void* data, u32 bytes, const char* file, int line, void* at) {
    Context& c = *current;
    Thread& t = *c.thread;
    Warp& w = c.warp();
    if (!(mask >> t.lane & 1))
        fail(at, "calls a warp collective with mask 0x%08x, which does not name its own lane %u", mask, t.lane);
    t.wait = kind;
    t.mask = mask;
    t.file = file;
    t.line = line;
    // Those two are `.aligned`: the whole warp comes to one instruction.
    const bool aligned = kind == Wait::Mma || kind == Wait::LdMatrix;
    if (aligned) note_site(t, at);
    u32 place = 0;
    while (place < w.open_count && (w.open[place]->kind != kind || w.open[place]->mask != mask ||
                                    (aligned && !same_site(*w.open[place]->site, t.site))))
        place++;
    if (place == w.open_count) {
        w.open[w.open_count++] = new_meeting(c, kind, mask);
        if (aligned) w.open[place]->site = &t.site;
    }
    Meeting* m = w.open[place];
    memcpy(m->data[t.lane], data, bytes);
    m->arrived |= 1u << t.lane;
    if (complete(c, w, place))
        w.ready &= ~(1u << t.lane);  // the last to come goes straight on
    else
        leave_to_scheduler();
    return m;
}

static void left(Meeting* m) {
    if (--m->to_leave == 0) current->free_meetings.push_back(m);
}

static void land(Thread& t, std::vector<AsyncCopy>& group, bool copy, void* at) {
    Context& c = *current;
    for (const AsyncCopy& a : group) {
        Region& r = c.regions[(a.shared - c.base) / SLOT];
        u64 first = (a.shared - r.begin) >> r.shift, last = (a.shared - r.begin + 15) >> r.shift;
        for (u64 i = first; i <= last; i++) r.cells[i].in_flight = 0;
        if (!copy) continue;
        access<Kind::Write>(a.shared, 16, at);
        memcpy(reinterpret_cast<void*>(a.shared), reinterpret_cast<void*>(a.global), a.source_bytes);
        memset(reinterpret_cast<u8*>(a.shared) + a.source_bytes, 0, 16 - a.source_bytes);
    }
    group.clear();
    (void)t;
}

// A thread that ends leaves its copies unfinished: nobody may count on them.
void end_async_copies(Thread& t) {
    for (auto& group : t.groups) land(t, group, false, nullptr);
    land(t, t.open_group, false, nullptr);
    t.groups.clear();
}

}  // namespace emulator

using namespace emulator;

#define API extern "C" __attribute__((visibility("default")))
#define HERE __builtin_return_address(0)

API void emulator_sync_warp(u32 mask, const char* file, int line) {
    left(meet(Wait::SyncWarp, mask, "", 0, file, line, HERE));
}

API u32 emulator_shuffle(int kind, u32 mask, u32 value, u32 argument, u32 width, const char* file, int line) {
    if (width == 0 || width > 32 || (width & (width - 1))) fail(HERE, "shuffles with width %u, no power of two", width);
    u32 lane = current->thread->lane, first = lane & ~(width - 1), source = lane;
    switch (kind) {
        case 0: source = first + (argument & (width - 1)); break;
        case 1: source = argument <= lane - first ? lane - argument : lane; break;
        case 2: source = argument < width - (lane - first) ? lane + argument : lane; break;
        default: source = (lane ^ argument) < first + width ? lane ^ argument : lane; break;
    }
    Meeting* m = meet(Wait::Shuffle, mask, &value, 4, file, line, HERE);
    if (source > 31 || !(m->participants >> source & 1))
        fail(HERE, "shuffles from lane %u, which does not take part", source);
    u32 result;
    memcpy(&result, m->data[source], 4);
    left(m);
    return result;
}

API u32 emulator_vote(int kind, u32 mask, int predicate, const char* file, int line) {
    u8 value = predicate != 0;
    Meeting* m = meet(Wait::Vote, mask, &value, 1, file, line, HERE);
    u32 ballot = 0;
    for (u32 lane = 0; lane < 32; lane++)
        if ((m->participants >> lane & 1) && m->data[lane][0]) ballot |= 1u << lane;
    u32 participants = m->participants;
    left(m);
    return kind == 0 ? ballot : kind == 1 ? ballot != 0 : ballot == participants;
}

static void product(float* d, const u32* a, const u32* b, const float* c, u32 of_word, const char* file, int line, void* at) {
    Fragments f;
    memcpy(f.a, a, sizeof f.a);
    memcpy(f.b, b, sizeof f.b);
    memcpy(f.c, c, sizeof f.c);
    f.of_word = of_word;
    Meeting* m = meet(Wait::Mma, ~0u, &f, sizeof f, file, line, at);
    if (m->participants != ~0u) fail(at, "mma needs all 32 lanes of the warp");
    u32 lane = current->thread->lane;
    for (u32 i = 0; i < 4; i++) d[i] = m->product[lane / 4 + (i >= 2 ? 8 : 0)][lane % 4 * 2 + (i & 1)];
    left(m);
}

API void emulator_mma_bf16(float* d, const u32* a, const u32* b, const float* c, const char* file, int line) {
    product(d, a, b, c, 2, file, line, HERE);
}

// A GPU looks at the upper 19 bits alone: what was not rounded to them would be cut off there.
API void emulator_mma_tf32(float* d, const u32* a, const u32* b, const float* c, const char* file, int line) {
    for (u32 w = 0; w < 6; w++) {
        u32 word = w < 4 ? a[w] : b[w - 4];
        if (word & 0x1fff) fail(HERE, "mma of TF32 gets 0x%08x, which was not rounded to TF32", word);
    }
    product(d, a, b, c, 1, file, line, HERE);
}

API void emulator_ldmatrix(u32* fragments, const void* row, u32 count, int transposed, const char* file, int line) {
    Context& c = *current;
    u32 lane = c.thread->lane;
    u8 data[16] = {};
    if (lane < count * 8) {  // the lanes behind these bring an address that is not looked at
        u64 address = u64(row), slot = (address - c.base) / SLOT;
        if (slot >= SLOTS || c.regions[slot].space != Space::Shared) fail(HERE, "ldmatrix reads from outside shared memory");
        if (address % 16) fail(HERE, "ldmatrix reads %s, not aligned to 16 bytes", describe(c.regions[slot], address).c_str());
        access<Kind::Read>(address, 16, HERE);
        memcpy(data, row, 16);
    }
    Meeting* m = meet(Wait::LdMatrix, ~0u, data, 16, file, line, HERE);
    if (m->participants != ~0u) fail(HERE, "ldmatrix needs all 32 lanes of the warp");
    for (u32 i = 0; i < count; i++) {
        if (transposed) {
            u16 low, high;
            memcpy(&low, m->data[8 * i + lane % 4 * 2] + lane / 4 * 2, 2);
            memcpy(&high, m->data[8 * i + lane % 4 * 2 + 1] + lane / 4 * 2, 2);
            fragments[i] = u32(high) << 16 | low;
        } else {
            memcpy(&fragments[i], m->data[8 * i + lane / 4] + lane % 4 * 4, 4);
        }
    }
    left(m);
}

// Reads at the start, writes to shared memory at the wait: until then nobody may touch the destination.
API void emulator_async_copy(void* shared, const void* global, u32 source_bytes) {
    Context& c = *current;
    u64 to = u64(shared), from = u64(global);
    u64 slot = (to - c.base) / SLOT;
    if (slot >= SLOTS || c.regions[slot].space != Space::Shared) fail(HERE, "cp.async writes outside shared memory");
    if (source_bytes > 16) fail(HERE, "cp.async reads %u bytes, more than 16", source_bytes);
    if (to % 16) fail(HERE, "cp.async writes %s, not aligned to 16 bytes", describe(c.regions[slot], to).c_str());
    if (source_bytes) {
        u64 source_slot = (from - c.base) / SLOT;
        if (source_slot < SLOTS && c.regions[source_slot].space == Space::Shared)
            fail(HERE, "cp.async reads from shared memory");
        if (from % 16) {
            std::string text = source_slot < SLOTS ? describe(c.regions[source_slot], from) : "an address";
            fail(HERE, "cp.async reads %s, not aligned to 16 bytes", text.c_str());
        }
        access<Kind::Read>(from, source_bytes, HERE);
    }
    access<Kind::Write>(to, 16, HERE);
    Region& r = c.regions[slot];
    u64 first = (to - r.begin) >> r.shift, last = (to - r.begin + 15) >> r.shift;
    for (u64 i = first; i <= last; i++) r.cells[i].in_flight = c.era;
    c.thread->open_group.push_back({to, from, source_bytes});
}

API void emulator_async_commit() {
    Thread& t = *current->thread;
    t.groups.push_back(std::move(t.open_group));
    t.open_group.clear();
}

API void emulator_async_wait(u32 groups_left) {
    Thread& t = *current->thread;
    while (t.groups.size() > groups_left) {
        land(t, t.groups.front(), true, HERE);
        t.groups.erase(t.groups.begin());
    }
}

API void emulator_fence() {
    Context& c = *current;
    Thread& t = *c.thread;
    t.unfenced = false;
    t.fence_era = c.era;
    for (Acquire& a : c.acquires) {
        if (a.fenced || !(a.thread == t.index || a.era < c.era)) continue;
        a.fenced = true;
        a.thread = t.index;
        a.era = c.era;
    }
}

API unsigned long long emulator_atomic(int kind, void* address, u32 bytes, unsigned long long value,
                                       unsigned long long compare) {
    Context& c = *current;
    Thread& t = *c.thread;
    if (u64(address) % bytes) fail(HERE, "an atomic at an address that is not aligned to %u bytes", bytes);
    bool unfenced = t.unfenced;
    access<Kind::Atomic>(u64(address), bytes, HERE);
    t.unfenced = unfenced;  // the atomic itself needs no fence
    u64 slot = (u64(address) - c.base) / SLOT;
    if (slot < SLOTS && c.regions[slot].space == Space::Argument) {
        std::vector<Release>& releases = c.releases[u64(address)];
        // Writes that earlier blocks released here become visible to this block behind a fence.
        c.acquires.push_back({&releases, releases.size(), t.index, c.era, false});
        // Writes of this block before its last barrier, and of this thread since, are released if a fence came between.
        bool fenced = !t.unfenced && (!c.era_unfenced || t.fence_era == c.era);
        if (fenced) releases.push_back({c.block_ordinal, c.era, t.index});
    }
    u64 old = 0, result;
    memcpy(&old, address, bytes);
    switch (kind) {
        case 0: result = old + value; break;
        case 1: result = old >= value ? 0 : old + 1; break;
        case 2: result = value; break;
        case 3: result = std::max<u64>(old, value); break;
        case 4: result = std::min<u64>(old, value); break;
        case 5: result = old | value; break;
        case 6: result = old & value; break;
        default: result = old == compare ? value : old; break;
    }
    memcpy(address, &result, bytes);
    return old;
}
