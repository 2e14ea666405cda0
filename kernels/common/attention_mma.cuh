// Attention on the tensor cores, for bf16 and for f32 by TF32; the head of attention.cu says what is computed, and states the
// launches. Here: what all passes share, the forward pass and dQ; attention_keys.cuh has dK and dV.
//
// The queries of a group's heads, which meet the same keys and values, are stacked: row r of a group is token r % T of its
// head r / T, and a warp owns 16 of them (an A fragment's), whichever heads they are of. What goes through shared memory lies
// there as it is stored, rows an odd number of 16 bytes apart: ldmatrix without bank conflicts. Weights and dS are rounded (to bf16, to
// TF32) before they are multiplied; scores, softmax and accumulators are f32. Powers are of 2, with the scale in the factor of their
// exponent. STEPS steps of 16 columns are a head's most.
//
// In TF32 (T = f32) a product takes 8 of 16 factors' pairs at a time, PARTS = 2 times; factors are rounded in shared memory, once. Where a
// sum goes over keys or queries, these are taken in another order: of eight the even ones, then the odd ones. A fragment of scores is
// then one of weights without a move between lanes, and words of rows that lie below each other come without bank conflicts.
#pragma once
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/mma.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

constexpr f32 LOG2_E = 1.4426950408889634f;

// Elements of 16 bytes, and the products that 16 columns take.
template <typename T>
constexpr u32 PACK = 16 / sizeof(T);
template <typename T>
constexpr u32 PARTS = sizeof(T) / sizeof(bf16);

// Quotients by the same number, without a division each: the product with 2^32 / n is at most one too small.
struct Divisor {
    u32 n, inverse;
};
DEV Divisor divisor(u32 n) { return Divisor{n, 0xffffffffu / n}; }
DEV u32 quotient(u32 x, const Divisor& by) {
    u32 q = (u32)((u64)x * by.inverse >> 32);
    return x - q * by.n >= by.n ? q + 1 : q;
}

// Rows of a tensor: row r is token r % tokens of head r / tokens. `count` exist, `stride` elements from token to token.
struct Rows {
    u64 first;
    u32 stride, count;
};

// A sample's key head with the queries that read it. Columns: `steps` of 16, d8 elements from row to row in shared memory (a piece more),
// pieces of 16 bytes (`packs`), which are accessed at once where `wide`.
struct Group {
    u32 d, steps, d8;
    bool wide;
    Divisor packs, tokens;
    Rows q, k, v, out;
    // Where the stacked rows' statistics begin.
    u64 statistics;
    // 1 / sqrt(D), and that times log2(e).
    f32 scale, scale2;
};

template <typename T>
DEV Group group_of(u32 slice, u32 tokens, u32 heads, u32 kv_heads, u32 d, bool aligned) {
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 sample = slice / kv_heads, group = slice % kv_heads, size = heads / kv_heads, steps = ceil_div(d, 16u);
    u32 width = (heads + 2 * kv_heads) * d;
    Group g;
    g.d = d, g.steps = steps, g.d8 = 16 * steps + PACK<T>, g.wide = aligned && d % PACK<T> == 0;
    g.packs = divisor(2 * PARTS<T> * steps), g.tokens = divisor(tokens);
    g.q = Rows{q_start(at, sample, group * size), width, size * tokens};
    g.k = Rows{k_start(at, sample, group), width, tokens};
    g.v = Rows{v_start(at, sample, group), width, tokens};
    g.out = Rows{out_start(at, sample, group * size), heads * d, size * tokens};
    g.statistics = ((u64)sample * heads + group * size) * tokens;
    g.scale = rsqrt_f32((f32)d), g.scale2 = g.scale * LOG2_E;
    return g;
}

DEV u64 row_at(const Rows& rows, u32 r, const Group& at) {
    u32 head = quotient(r, at.tokens);
    return rows.first + head * at.d + (u64)(r - head * at.tokens.n) * rows.stride;
}

// Keys of a tile: as many in each, rounded up to 8, of as few tiles as `most` keys each allow.
DEV u32 keys_of_tile(u32 tokens, u32 most) { return round_up(ceil_div(tokens, ceil_div(tokens, most)), 8u); }

// `rows` rows from `first` on into shared memory, `to_stride` elements apart; zeros beyond those that exist and beyond d
// columns. Thread `thread` of `threads` does its part; async_commit, async_wait and a barrier have to follow.
template <typename T>
DEV void load_rows(T* to, u32 to_stride, const T* from, const Rows& of, u32 first, u32 rows, const Group& at,
                   u32 thread, u32 threads) {
#pragma unroll 1
    for (u32 i = thread; i < rows * at.packs.n; i += threads) {
        u32 row = quotient(i, at.packs), c = PACK<T> * (i - row * at.packs.n);
        bool there = first + row < of.count && c < at.d;
        const T* p = from + (there ? row_at(of, first + row, at) + c : 0);
        T* place = to + row * to_stride + c;
        if (at.wide) {
            async_copy16_zero_fill(place, p, there ? 16 : 0);
            continue;
        }
        Vec16<T> pack;
        UNROLL for (u32 e = 0; e < PACK<T>; e++) pack.v[e] = there && c + e < at.d ? p[e] : T{0};
        store16(place, pack);
    }
}

// Rows that this thread's part of load_rows, with the same numbers, has brought become factors: TF32 is rounded.
template <typename T>
DEV void round_rows(T* rows, u32 stride, u32 count, const Group& at, u32 thread, u32 threads) {
    if constexpr (PARTS<T> > 1) {
#pragma unroll 1
        for (u32 i = thread; i < count * at.packs.n; i += threads) {
            u32 row = quotient(i, at.packs);
            T* place = rows + row * stride + PACK<T> * (i - row * at.packs.n);
            Vec16<T> pack = load16(place);
            UNROLL for (u32 e = 0; e < PACK<T>; e++) store_f32(&pack.v[e], f32_from_bits(tf32_bits(pack.v[e])));
            store16(place, pack);
        }
    }
}

// The counterpart: rows that exist, out of shared memory.
template <typename T>
DEV void store_rows(T* to, const Rows& of, u32 first, u32 rows, const T* from, u32 from_stride, const Group& at,
                    u32 thread, u32 threads) {
#pragma unroll 1
    for (u32 i = thread; i < rows * at.packs.n; i += threads) {
        u32 row = quotient(i, at.packs), c = PACK<T> * (i - row * at.packs.n);
        if (first + row >= of.count || c >= at.d) continue;
        T* p = to + row_at(of, first + row, at) + c;
        Vec16<T> pack = load16(from + row * from_stride + c);
        if (at.wide) {
            store16(p, pack);
            continue;
        }
        UNROLL for (u32 e = 0; e < PACK<T>; e++)
            if (c + e < at.d) p[e] = pack.v[e];
    }
}

// This thread's copies have landed.
DEV void land() {
    async_commit();
    async_wait<0>();
}
// And the warp's, and the block's.
DEV void arrive_in_warp() {
    land();
    __syncwarp();
}
DEV void arrive_in_block() {
    land();
    __syncthreads();
}

// 16 rows in shared memory as A fragments: in registers where they are used often and the accumulators leave room, else
// loaded from there for each use. In both, STEPS steps of 32 bytes.
template <u32 STEPS, bool IN_SHARED>
struct Own {
    u32 words[STEPS][4];
};
template <u32 STEPS>
struct Own<STEPS, true> {
    SharedAddress at;
};

// A lane's address of rows as A, `stride` elements apart; a step is 32 bytes further on.
template <typename T>
DEV SharedAddress own_start(const T* rows, u32 stride, u32 lane) {
    return shared_address(const_cast<T*>(rows)) + (u32)sizeof(T) * (lane % 16 * stride + lane / 16 * PACK<T>);
}
template <u32 STEPS, typename T>
DEV void take_own(Own<STEPS, false>& own, const T* rows, const Group& at, u32 lane) {
    UNROLL for (u32 step = 0; step < STEPS; step++)
        if (step < at.steps * PARTS<T>) ldmatrix_x4(own.words[step], own_start(rows, at.d8, lane) + 32 * step);
}
template <u32 STEPS, typename T>
DEV void take_own(Own<STEPS, true>& own, const T* rows, const Group& at, u32 lane) {
    own.at = own_start(rows, at.d8, lane);
}

template <u32 STEPS>
DEV void own_fragment(u32 (&words)[4], const Own<STEPS, false>& own, u32 step) {
    UNROLL for (u32 i = 0; i < 4; i++) words[i] = own.words[step][i];
}
template <u32 STEPS>
DEV void own_fragment(u32 (&words)[4], const Own<STEPS, true>& own, u32 step) {
    ldmatrix_x4(words, own.at + 32 * step);
}

// A lane's address of B: with B's columns as the rows of shared memory; and with its rows, to be loaded by load_below.
template <typename T>
DEV SharedAddress columns_start(const T* tile, u32 stride, u32 lane) {
    return shared_address(const_cast<T*>(tile)) + (u32)sizeof(T) * ((lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * PACK<T>);
}
DEV SharedAddress rows_start(const bf16* tile, u32 stride, u32 lane) { return own_start(tile, stride, lane); }
DEV SharedAddress rows_start(const f32* tile, u32 stride, u32 lane) {
    return shared_address(const_cast<f32*>(tile)) + 4 * (lane % 4 * 2 * stride + lane / 4);
}

// Of rows below each other, `stride` elements apart, 16 columns as B: two of eight columns each. bf16: 16 rows; TF32: eight, the even ones
// before the odd ones.
DEV void load_below(u32 (&b)[4], SharedAddress at, const bf16*, u32) { ldmatrix_x4_trans(b, at); }
DEV void load_below(u32 (&b)[4], SharedAddress at, const f32*, u32 stride) {
    UNROLL for (u32 i = 0; i < 4; i++) b[i] = load_shared(at + 32 * (i / 2) + 4 * (i % 2) * stride);
}

// c[0] and c[1] += A B, for B's 16 columns; `second`: whether those from the eighth on count.
template <typename T>
DEV void mma_pair(f32 (&c)[2][4], const u32 (&a)[4], const u32 (&b)[4], bool second) {
    u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
    mma_of<T>(c[0], a, left);
    if (second) mma_of<T>(c[1], a, right);
}

// Scores' fragments, 16 rows by 16 columns (zeros from the eighth on if not `second`), as A of a product that sums over the columns. TF32:
// in the order of load_below.
DEV void as_factors(u32 (&a)[1][4], const f32 (&c)[2][4], bool second) {
    UNROLL for (u32 i = 0; i < 4; i++) a[0][i] = second || i < 2 ? bf16_pair(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]) : 0;
}
DEV void as_factors(u32 (&a)[2][4], const f32 (&c)[2][4], bool second) {
    UNROLL for (u32 i = 0; i < 8; i++) a[i / 4][i % 4] = second || i < 4 ? tf32_bits(c[i / 4][i % 2 * 2 + i / 2 % 2]) : 0;
}

// acc += A B, with A [16, 16] and B 16 rows of shared memory, the first eight if not `second` (TF32 alone: else A's others are zeros).
template <u32 STEPS, typename T>
DEV void fragment_accumulate(f32 (&acc)[STEPS][2][4], const u32 (&a)[PARTS<T>][4], const T* rows, u32 d8, u32 steps, u32 lane,
                             bool second) {
    SharedAddress b_at = rows_start(rows, d8, lane);
    UNROLL for (u32 part = 0; part < PARTS<T>; part++) {
        if (part > 0 && !second) continue;
        UNROLL for (u32 step = 0; step < STEPS; step++) {
            if (step >= steps) continue;
            u32 b[4];
            load_below(b, b_at + 32 * (PARTS<T> * step) + 32 * part * d8, rows, d8);
            mma_pair<T>(acc[step], a[part], b, true);
        }
    }
}

// Writes accumulators, row `half` (0: group, 1: group + 8) times factor[half], to 16 rows of shared memory, or adds them to
// what is there.
DEV void put_pair(bf16* to, f32 low, f32 high, bool add) {
    u32* p = reinterpret_cast<u32*>(to);
    if (add) low += bf16_low(*p), high += bf16_high(*p);
    *p = bf16_pair(low, high);
}
DEV void put_pair(f32* to, f32 low, f32 high, bool add) {
    to[0] = add ? to[0] + low : low;
    to[1] = add ? to[1] + high : high;
}
template <u32 STEPS, typename T>
DEV void put_fragments(T* rows, u32 stride, const f32 (&acc)[STEPS][2][4], const f32 (&factor)[2], u32 steps,
                       u32 lane, bool add) {
    UNROLL for (u32 n = 0; n < 2 * STEPS; n++) {
        if (n / 2 >= steps) continue;
        UNROLL for (u32 half = 0; half < 2; half++) {
            const f32* two = &acc[n / 2][n % 2][2 * half];
            put_pair(rows + (lane / 4 + 8 * half) * stride + 8 * n + lane % 4 * 2, two[0] * factor[half], two[1] * factor[half], add);
        }
    }
}

// A warp's 16 rows of dQ or of the output, by way of its 16 rows of shared memory.
template <u32 STEPS, typename T>
DEV void store_own(T* to, const Rows& of, u32 first, T* rows, u32 stride, const f32 (&acc)[STEPS][2][4],
                   const f32 (&factor)[2], const Group& at, u32 lane, bool add) {
    __syncwarp();
    if (add) {
        load_rows<T>(rows, stride, to, of, first, 16, at, lane, WARP);
        arrive_in_warp();
    }
    put_fragments<STEPS>(rows, stride, acc, factor, at.steps, lane, add);
    __syncwarp();
    store_rows(to, of, first, 16, rows, stride, at, lane, WARP);
}

// Over the four lanes that share a fragment's row.
DEV f32 quad_sum(f32 v) {
    v += __shfl_xor_sync(FULL_MASK, v, 1);
    return v + __shfl_xor_sync(FULL_MASK, v, 2);
}
DEV f32 quad_max(f32 v) {
    v = max_f32(v, __shfl_xor_sync(FULL_MASK, v, 1));
    return max_f32(v, __shfl_xor_sync(FULL_MASK, v, 2));
}

// delta of a lane's two rows: the diagonal of dout out^T, 16 rows of each. A row's lies with one lane of its four.
template <u32 STEPS, bool IN_SHARED>
DEV void row_deltas(f32 (&delta)[2], const Own<STEPS, IN_SHARED>& dy, const bf16*, const bf16* out, u32 stride, const Group& at,
                    u32 lane) {
    f32 c[2][4] = {};
    SharedAddress b_at = columns_start(out, stride, lane);
    UNROLL for (u32 step = 0; step < STEPS; step++) {
        if (step >= at.steps) continue;
        u32 a[4], b[4];
        own_fragment(a, dy, step);
        ldmatrix_x4(b, b_at + 32 * step);
        mma_pair<bf16>(c, a, b, true);
    }
    bool odd = lane / 4 % 2 == 1;
    u32 from = lane / 4 * 4 + lane / 8;
    delta[0] = __shfl_sync(FULL_MASK, odd ? c[0][1] : c[0][0], from);
    delta[1] = __shfl_sync(FULL_MASK, odd ? c[1][3] : c[1][2], from);
}
// The output is no factor: it is not rounded.
template <u32 STEPS, bool IN_SHARED>
DEV void row_deltas(f32 (&delta)[2], const Own<STEPS, IN_SHARED>&, const f32* dy, const f32* out, u32 stride, const Group& at,
                    u32 lane) {
    UNROLL for (u32 half = 0; half < 2; half++) {
        u32 row = lane / 4 + 8 * half;
        f32 sum = 0.0f;
#pragma unroll 2
        for (u32 c = lane % 4; c < at.d; c += 4) sum = fma_f32(dy[row * at.d8 + c], out[row * stride + c], sum);
        delta[half] = quad_sum(sum);
    }
}

// Statistics of a lane's two rows, from row `row` on, from which their weights are recomputed.
struct Statistics {
    f32 lse2[2], delta[2];
};
DEV void load_statistics(f32 (&values)[2], const f32* from, const Group& at, u32 row, f32 factor) {
    UNROLL for (u32 half = 0; half < 2; half++) {
        u32 r = row + 8 * half;
        values[half] = r < at.q.count ? from[at.statistics + r] * factor : 0.0f;
    }
}

// P and dS of 16 queries and 16 keys, the first eight of them if not SECOND, as A fragments' words. Of the last eight
// `count` exist; P and dS are zero for the others.
template <bool SECOND, u32 STEPS, bool IN_SHARED, typename T>
DEV void weights_of(u32 (&p)[PARTS<T>][4], u32 (&ds)[PARTS<T>][4], const Own<STEPS, IN_SHARED>& q, const Own<STEPS, IN_SHARED>& dy,
                    const T* k, const T* v, const Statistics& rows, u32 count, const Group& at, u32 lane) {
    f32 s[2][4] = {}, dp[2][4];
    UNROLL for (u32 i = 0; i < 8; i++) dp[i / 4][i % 4] = -rows.delta[i / 2 % 2];
    SharedAddress k_at = columns_start(k, at.d8, lane);
    SharedAddress v_at = columns_start(v, at.d8, lane);
    constexpr u32 AT_ONCE = PARTS<T> == 1 ? STEPS : 2;
#pragma unroll AT_ONCE
    for (u32 step = 0; step < STEPS; step++) {
        if (step >= at.steps * PARTS<T>) continue;
        u32 a[4], b[4];
        own_fragment(a, q, step);
        ldmatrix_x4(b, k_at + 32 * step);
        mma_pair<T>(s, a, b, SECOND);
        own_fragment(a, dy, step);
        ldmatrix_x4(b, v_at + 32 * step);
        mma_pair<T>(dp, a, b, SECOND);
    }
    constexpr u32 LAST = SECOND ? 1 : 0;
    if (count < 8) {
        UNROLL for (u32 i = 0; i < 4; i++)
            if (lane % 4 * 2 + i % 2 >= count) s[LAST][i] = -infinity_f32();
    }
    UNROLL for (u32 i = 0; i < 4 + 4 * LAST; i++) {
        f32& weight = s[i / 4][i % 4];
        weight = exp2_approx(fma_f32(weight, at.scale2, -rows.lse2[i / 2 % 2]));
        dp[i / 4][i % 4] *= weight;
    }
    as_factors(p, s, SECOND);
    as_factors(ds, dp, SECOND);
}

// For `count` keys of 16.
template <u32 STEPS, bool IN_SHARED, typename T>
DEV void weights_again(u32 (&p)[PARTS<T>][4], u32 (&ds)[PARTS<T>][4], const Own<STEPS, IN_SHARED>& q, const Own<STEPS, IN_SHARED>& dy,
                       const T* k, const T* v, const Statistics& rows, u32 count, const Group& at, u32 lane) {
    if (count > 8) weights_of<true>(p, ds, q, dy, k, v, rows, count - 8, at, lane);
    else weights_of<false>(p, ds, q, dy, k, v, rows, count, at, lane);
}

// A tile's scores become weights exp(s - m), m each row's largest so far; what was summed up before is brought down to it.
template <u32 TILES, u32 STEPS>
DEV void softmax_tile(f32 (&s)[(TILES + 1) / 2][2][4], f32 (&m)[2], f32 (&l)[2], f32 (&acc)[STEPS][2][4], u32 count,
                      f32 scale2, u32 lane) {
    f32 most[2] = {m[0], m[1]};
    UNROLL for (u32 j = 0; j < TILES; j++) {
        f32(&tile)[4] = s[j / 2][j % 2];
        if (8 * j + 8 > count) {
            UNROLL for (u32 i = 0; i < 4; i++)
                if (8 * j + lane % 4 * 2 + i % 2 >= count) tile[i] = -infinity_f32();
        }
        UNROLL for (u32 i = 0; i < 4; i++) most[i / 2] = max_f32(most[i / 2], tile[i]);
    }
    f32 keep[2], minus[2];
    UNROLL for (u32 half = 0; half < 2; half++) {
        most[half] = quad_max(most[half]);
        keep[half] = exp2_approx((m[half] - most[half]) * scale2);
        m[half] = most[half];
        minus[half] = -most[half] * scale2;
        l[half] *= keep[half];
    }
    UNROLL for (u32 j = 0; j < TILES; j++) {
        UNROLL for (u32 i = 0; i < 4; i++) {
            f32 weight = exp2_approx(fma_f32(s[j / 2][j % 2][i], scale2, minus[i / 2]));
            s[j / 2][j % 2][i] = weight;
            l[i / 2] += weight;
        }
    }
    UNROLL for (u32 n = 0; n < 2 * STEPS; n++) {
        UNROLL for (u32 i = 0; i < 4; i++) acc[n / 2][n % 2][i] *= keep[i / 2];
    }
}

// Scores of a warp's 16 queries and a tile's keys.
template <u32 STEPS, u32 TILES, typename T>
DEV void score_tile(f32 (&s)[(TILES + 1) / 2][2][4], const T* q, const T* k, u32 pairs, const Group& at, u32 lane) {
    UNROLL for (u32 i = 0; i < (TILES + 1) / 2 * 8; i++) s[i / 8][i / 4 % 2][i % 4] = 0.0f;
    UNROLL for (u32 step = 0; step < STEPS * PARTS<T>; step++) {
        if (step >= at.steps * PARTS<T>) continue;
        u32 a[4], b[4];
        ldmatrix_x4(a, own_start(q, at.d8, lane) + 32 * step);
        SharedAddress k_at = columns_start(k, at.d8, lane) + 32 * step;
        UNROLL for (u32 j = 0; j < (TILES + 1) / 2; j++) {
            if (j >= pairs) continue;
            ldmatrix_x4(b, k_at);
            mma_pair<T>(s[j], a, b, 2 * j + 1 < TILES);
            k_at += 16 * (u32)sizeof(T) * at.d8;
        }
    }
}

// Blocks in y share a group's tiles of 16 stacked queries, and a block's warps the block's; keys come in tiles of at most 8 TILES. One
// tile of keys stays for all of a block's queries, of several each is loaded again.
template <typename T, u32 STEPS, u32 TILES>
DEV void attention_fwd_mma(T* __restrict__ out, f32* __restrict__ lse, const T* __restrict__ qkv, u32 tokens,
                           u32 heads, u32 kv_heads, u32 d) {
    SMEM_DYN(shared);
    constexpr u32 PAIRS = (TILES + 1) / 2;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const Group at = group_of<T>(blockIdx.x, tokens, heads, kv_heads, d, aligned16(qkv) && aligned16(out));
    u32 keys = keys_of_tile(tokens, 8 * TILES), d8 = at.d8, tiles = ceil_div(at.q.count, 16u);
    T* own = reinterpret_cast<T*>(shared) + 16 * warp * d8;
    T* k = reinterpret_cast<T*>(shared) + 16 * warps * d8;
    T* v = k + round_up(keys, 16u) * d8;
    bool again = keys < tokens, begun = false;
    for (u32 tile = blockIdx.y * warps; tile < tiles; tile += gridDim.y * warps) {
        u32 first = 16 * (tile + warp);
        bool active = first < at.q.count;
        __syncwarp();
        if (active) load_rows(own, d8, qkv, at.q, first, 16, at, lane, WARP);
        if (begun) {
            land();
            if (active) round_rows(own, d8, 16, at, lane, WARP);
            __syncwarp();
        }
        f32 acc[STEPS][2][4] = {}, m[2] = {-infinity_f32(), -infinity_f32()}, l[2] = {0.0f, 0.0f};
        for (u32 key = 0; key < tokens; key += keys) {
            u32 count = min_of(tokens - key, keys), pairs = ceil_div(count, 16u);
            if (again || !begun) {
                if (begun) __syncthreads();
                load_rows(k, d8, qkv, at.k, key, 16 * pairs, at, threadIdx.x, blockDim.x);
                load_rows(v, d8, qkv, at.v, key, 16 * pairs, at, threadIdx.x, blockDim.x);
                land();
                if (!begun && active) round_rows(own, d8, 16, at, lane, WARP);
                round_rows(k, d8, 16 * pairs, at, threadIdx.x, blockDim.x);
                round_rows(v, d8, 16 * pairs, at, threadIdx.x, blockDim.x);
                __syncthreads();
                begun = true;
            }
            if (!active) continue;
            f32 s[PAIRS][2][4];
            score_tile<STEPS, TILES>(s, own, k, pairs, at, lane);
            softmax_tile<TILES>(s, m, l, acc, count, at.scale2, lane);
            UNROLL for (u32 j = 0; j < PAIRS; j++) {
                if (j >= pairs) continue;
                u32 a[PARTS<T>][4];
                as_factors(a, s[j], true);
                fragment_accumulate<STEPS>(acc, a, v + 16 * j * d8, d8, at.steps, lane, 2 * j + 1 < TILES);
            }
        }
        if (!active) continue;
        f32 inverse[2];
        UNROLL for (u32 half = 0; half < 2; half++) {
            f32 sum = quad_sum(l[half]);
            inverse[half] = 1.0f / sum;
            u32 r = first + lane / 4 + 8 * half;
            if (lane % 4 == 0 && r < at.q.count) lse[at.statistics + r] = m[half] * at.scale + log_f32(sum);
        }
        store_own<STEPS>(out, at.out, first, own, d8, acc, inverse, at, lane, false);
    }
}

// A block's warps own 16 stacked queries each; keys come in tiles of at most 16 PAIRS. What a warp's rows of the output lay in
// has its queries afterwards, and its rows of dQ in the end.
template <typename T, u32 STEPS, u32 PAIRS, bool IN_SHARED>
DEV void attention_bwd_q_mma(T* __restrict__ dqkv, f32* __restrict__ delta, const T* __restrict__ dout,
                             const T* __restrict__ out, const f32* __restrict__ lse, const T* __restrict__ qkv,
                             u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, rows = blockDim.x / WARP * 16;
    u32 blocks = ceil_div(heads / kv_heads * tokens, rows), first = blockIdx.x % blocks * rows + 16 * warp;
    bool aligned = aligned16(qkv) && aligned16(out) && aligned16(dout) && aligned16(dqkv);
    const Group at = group_of<T>(blockIdx.x / blocks, tokens, heads, kv_heads, d, aligned);
    u32 keys = keys_of_tile(tokens, 16 * PAIRS), d8 = at.d8;
    T* own = reinterpret_cast<T*>(shared) + 32 * warp * d8;
    T* k = reinterpret_cast<T*>(shared) + 2 * rows * d8;
    T* v = k + round_up(keys, 16u) * d8;
    bool active = first < at.q.count;

    Own<STEPS * PARTS<T>, IN_SHARED> q, dy;
    Statistics mine;
    if (active) {
        load_rows(own, d8, out, at.out, first, 16, at, lane, WARP);
        load_rows(own + 16 * d8, d8, dout, at.out, first, 16, at, lane, WARP);
        land();
        round_rows(own + 16 * d8, d8, 16, at, lane, WARP);
        __syncwarp();
        take_own(dy, own + 16 * d8, at, lane);
        row_deltas(mine.delta, dy, own + 16 * d8, own, d8, at, lane);
        load_statistics(mine.lse2, lse, at, first + lane / 4, LOG2_E);
        __syncwarp();
        load_rows(own, d8, qkv, at.q, first, 16, at, lane, WARP);
    }
    f32 acc[STEPS][2][4] = {};
    for (u32 key = 0; key < tokens; key += keys) {
        u32 count = min_of(tokens - key, keys), pairs = ceil_div(count, 16u);
        if (key > 0) __syncthreads();
        load_rows(k, d8, qkv, at.k, key, 16 * pairs, at, threadIdx.x, blockDim.x);
        load_rows(v, d8, qkv, at.v, key, 16 * pairs, at, threadIdx.x, blockDim.x);
        land();
        if (key == 0 && active) round_rows(own, d8, 16, at, lane, WARP);
        round_rows(k, d8, 16 * pairs, at, threadIdx.x, blockDim.x);
        round_rows(v, d8, 16 * pairs, at, threadIdx.x, blockDim.x);
        __syncthreads();
        if (!active) continue;
        if (key == 0) take_own(q, own, at, lane);
#pragma unroll 1
        for (u32 j = 0; j < pairs; j++) {
            u32 p[PARTS<T>][4], ds[PARTS<T>][4], offset = 16 * j * d8;
            weights_again(p, ds, q, dy, k + offset, v + offset, mine, count - 16 * j, at, lane);
            fragment_accumulate<STEPS>(acc, ds, k + offset, d8, at.steps, lane, count - 16 * j > 8);
        }
    }
    if (!active) return;
    UNROLL for (u32 half = 0; half < 2; half++) {
        u32 r = first + lane / 4 + 8 * half;
        if (lane % 4 == 0 && r < at.q.count) delta[at.statistics + r] = mine.delta[half];
    }
    f32 factor[2] = {at.scale, at.scale};
    store_own<STEPS>(dqkv, at.q, first, own, d8, acc, factor, at, lane, accumulate != 0);
}
