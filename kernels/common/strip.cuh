// Strips of an image: what a block of 256 threads holds of one sample in registers, and sums of it by channel (group_norm_silu.cu says
// which strip a block takes).
#pragma once
#include "common/wide.cuh"

constexpr u32 THREADS = 256;
// Vectors that a thread holds (`HELD` in src/core/ops/group_norm_silu/cut.rs).
constexpr u32 HELD = 8;
// Rows of threads that are summed at once, and floats of a plane of four values a thread: the next plane is 16 banks on.
constexpr u32 SHARES = 16;
constexpr u32 PLANE = 4 * THREADS + 16;

struct Sizes {
    u32 pixels, ca, cb, groups, width, strips, strip_groups, strip, columns, tiles, over_columns, over_strip, over_width;
};

// Shared memory of a block: values by thread, their sums by share of the rows, and values by channel of the strip.
enum ByChannel : u32 { MEAN, RSTD, FACTOR, OFFSET, FIRST_SUM, SECOND_SUM, SLOPE, CONSTANT, BY_CHANNEL };
struct Memory {
    f32 (*lanes)[PLANE];
    f32 (*shares)[THREADS];
    f32 (*channel)[THREADS];
};
DEV Memory memory() {
    SHARED(f32, lanes, [4][PLANE]);
    SHARED(f32, shares, [2][THREADS]);
    SHARED(f32, channel, [BY_CHANNEL][THREADS]);
    return Memory{lanes, shares, channel};
}

// A block's share: `channels` channels from `first` on, those of `groups` groups from `group` on, `width` of each; and a thread's: the
// channels from the strip's `within` on, and HELD pixels: `pixel`, then every `rows`-th, those below `end` (0: none).
struct Share {
    u32 sample, chunk, group, groups, first, channels, width, rows, within, pixel, end;
    // The block's elements of a group.
    f32 count;
};

// Pixels from a chunk's first on.
DEV u32 chunk_of(const Sizes& sizes) {
    return HELD * (THREADS * sizes.over_columns >> 16);
}

// The first channel within the strip of the group of channel `threadIdx.x`.
DEV u32 group_first(const Sizes& sizes) {
    return sizes.tiles > 1 ? 0 : (threadIdx.x * sizes.over_width >> 16) * sizes.width;
}

template <u32 V>
DEV Share share_of(const Sizes& sizes) {
    Share s;
    u32 tile = 0, row = threadIdx.x * sizes.over_columns >> 16;
    s.sample = blockIdx.x / sizes.strips;
    s.chunk = blockIdx.y;
    if (sizes.tiles > 1) {
        tile = blockIdx.y % sizes.tiles;
        s.chunk = blockIdx.y / sizes.tiles;
    }
    s.group = (blockIdx.x - s.sample * sizes.strips) * sizes.strip_groups;
    s.groups = min_of(sizes.strip_groups, sizes.groups - s.group);
    s.first = s.group * sizes.width + tile * sizes.strip;
    s.channels = min_of(sizes.strip, (s.group + s.groups) * sizes.width - s.first);
    s.width = min_of(sizes.width, s.channels);
    s.rows = THREADS * sizes.over_columns >> 16;
    u32 within = (threadIdx.x - row * sizes.columns) * V;
    bool active = row < s.rows && within < s.channels;
    s.within = active ? within : 0;
    u32 start = s.chunk * HELD * s.rows, end = min_of(start + HELD * s.rows, sizes.pixels);
    s.pixel = start + row;
    s.end = active ? end : 0;
    s.count = (f32)((end - start) * s.width);
    return s;
}

// 16 bytes of channels as they are stored, or one channel as f32; worked on in PIECES of PIECE channels, so that what is known of them by
// channel does not fill the registers.
template <u32 V>
constexpr u32 WORDS = V == 1 ? 1 : 4;
template <u32 V>
constexpr u32 PIECE = V > 4 ? 4 : V;
template <u32 V>
constexpr u32 PIECES = V / PIECE<V>;

template <typename T>
DEV void read(const T* p, u32 (&words)[1]) {
    words[0] = f32_bits(to_f32(*p));
}
template <typename T>
DEV void read(const T* p, u32 (&words)[4]) {
    Vec16<u32> at_once = load16(reinterpret_cast<const u32*>(p));
    UNROLL for (u32 i = 0; i < 4; i++) words[i] = at_once.v[i];
}
// For an address that is no multiple of 16.
DEV u32 word_at(const f32* p, u32 i) { return f32_bits(p[i]); }
DEV u32 word_at(const bf16* p, u32 i) { return (u32)p[2 * i].bits | (u32)p[2 * i + 1].bits << 16; }
template <typename T>
DEV void read_narrow(const T* p, u32 (&words)[1]) {
    read(p, words);
}
template <typename T>
DEV void read_narrow(const T* p, u32 (&words)[4]) {
    UNROLL for (u32 i = 0; i < 4; i++) words[i] = word_at(p, i);
}
template <typename T>
DEV void write(T* p, bool, const u32 (&words)[1]) {
    store_f32(p, f32_from_bits(words[0]));
}
DEV void write(f32* p, bool wide, const u32 (&words)[4]) {
    f32 v[4] = {f32_from_bits(words[0]), f32_from_bits(words[1]), f32_from_bits(words[2]), f32_from_bits(words[3])};
    store_wide(p, 4, wide, v);
}
DEV void write(bf16* p, bool wide, const u32 (&words)[4]) {
    if (wide) {
        store16(reinterpret_cast<u32*>(p), Vec16<u32>{words[0], words[1], words[2], words[3]});
        return;
    }
    UNROLL for (u32 i = 0; i < 8; i++) p[i] = bf16{(u16)(words[i / 2] >> (i % 2 * 16))};
}

// A piece's values, and back.
template <u32 V>
DEV void values_of(const u32 (&words)[WORDS<V>], u32 piece, f32 (&v)[PIECE<V>]) {
    UNROLL for (u32 i = 0; i < PIECE<V>; i++) {
        if constexpr (V == 8) v[i] = i % 2 == 0 ? bf16_low(words[2 * piece + i / 2]) : bf16_high(words[2 * piece + i / 2]);
        else v[i] = f32_from_bits(words[i]);
    }
}
template <u32 V>
DEV void put_values(u32 (&words)[WORDS<V>], u32 piece, const f32 (&v)[PIECE<V>]) {
    if constexpr (V == 8) {
        words[2 * piece] = bf16_pair(v[0], v[1]);
        words[2 * piece + 1] = bf16_pair(v[2], v[3]);
    } else {
        UNROLL for (u32 i = 0; i < PIECE<V>; i++) words[i] = f32_bits(v[i]);
    }
}

// The thread's channels of a tensor at its first pixel, and the elements from one of its pixels to the next. With vectors of 16 bytes
// all pixels are aligned as the first is.
template <typename T>
struct Source {
    T* at;
    u32 step;
    bool wide;
};
// `c` is the channel in x, of `channels`.
template <typename T>
DEV Source<T> source_of(T* x, u32 channels, u32 c, const Sizes& sizes, const Share& s) {
    T* at = x + ((u64)s.sample * sizes.pixels + s.pixel) * channels + c;
    return Source<T>{at, s.rows * channels, aligned16(at)};
}
// Of one of two tensors.
template <typename T>
DEV Source<T> source_of(T* x, T* skip, const Sizes& sizes, const Share& s) {
    u32 c = s.first + s.within;
    bool first = c < sizes.ca;
    return source_of(first ? x : skip, first ? sizes.ca : sizes.cb, first ? c : c - sizes.ca, sizes, s);
}
// Of all channels.
template <typename T>
DEV Source<T> source_of(T* y, const Sizes& sizes, const Share& s) {
    return source_of(y, sizes.ca + sizes.cb, s.first + s.within, sizes, s);
}

// The thread's share in registers, zeros where there is none.
template <u32 W, typename T>
DEV void hold(const Source<T>& from, const Share& s, u32 (&held)[HELD][W]) {
    UNROLL for (u32 i = 0; i < HELD; i++)
        UNROLL for (u32 j = 0; j < W; j++) held[i][j] = 0;
    if (W == 1 || from.wide) {
        UNROLL for (u32 i = 0; i < HELD; i++)
            if (s.pixel + i * s.rows < s.end) read(from.at + (u64)(i * from.step), held[i]);
    } else {
        UNROLL for (u32 i = 0; i < HELD; i++)
            if (s.pixel + i * s.rows < s.end) read_narrow(from.at + (u64)(i * from.step), held[i]);
    }
}

// Puts the N-th kind of sums of a thread's piece where `sum_rows` finds them.
template <u32 V>
DEV void put_sums(const Memory& m, u32 n, u32 piece, const f32 (&v)[PIECE<V>]) {
    if constexpr (V == 1) m.lanes[2 * n][threadIdx.x] = v[0];
    else store_wide(&m.lanes[2 * n + piece][4 * threadIdx.x], 4, true, v);
}

// N kinds of sums of the threads' pieces over the block's rows: those of channel `threadIdx.x` of the strip.
template <u32 V, u32 N>
DEV void sum_rows(const Memory& m, const Sizes& sizes, const Share& s, f32 (&totals)[N]) {
    __syncthreads();
    u32 share = threadIdx.x * sizes.over_strip >> 16, shares = min_of(THREADS * sizes.over_strip >> 16, SHARES);
    u32 c = threadIdx.x - share * sizes.strip, at = c / V * PIECE<V> + c % PIECE<V>, plane = c % V / PIECE<V>;
    if (share < shares) {
        f32 sums[N];
        UNROLL for (u32 n = 0; n < N; n++) sums[n] = 0.0f;
#pragma unroll 4
        for (u32 row = share; row < s.rows; row += shares) {
            UNROLL for (u32 n = 0; n < N; n++) sums[n] += m.lanes[2 * n + plane][row * sizes.columns * PIECE<V> + at];
        }
        UNROLL for (u32 n = 0; n < N; n++) m.shares[n][threadIdx.x] = sums[n];
    }
    __syncthreads();
    if (threadIdx.x >= s.channels) return;
    UNROLL for (u32 n = 0; n < N; n++) totals[n] = 0.0f;
#pragma unroll 4
    for (u32 i = 0; i < shares; i++) {
        UNROLL for (u32 n = 0; n < N; n++) totals[n] += m.shares[n][i * sizes.strip + threadIdx.x];
    }
}

// The sum of `width` values of shared memory.
DEV f32 sum_group(const f32* of, u32 width) {
    f32 sum = 0.0f;
#pragma unroll 4
    for (u32 i = 0; i < width; i++) sum += of[i];
    return sum;
}

// Values of the block by channel of a thread's piece.
template <u32 V>
DEV void channels_of(const f32* of, const Share& s, u32 piece, f32 (&v)[PIECE<V>]) {
    if constexpr (V == 1) v[0] = of[s.within];
    else load_wide(of + s.within + piece * PIECE<V>, 4, true, v);
}
