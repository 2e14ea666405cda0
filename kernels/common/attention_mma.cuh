// Attention on the tensor cores, for bf16; the head of attention.cu says what is computed, and states the launches. Here: what
// all passes share, the forward pass and dQ; attention_keys.cuh has dK and dV.
//
// The queries of a group's heads, which meet the same keys and values, are stacked: row r of a group is token r % T of its
// head r / T, and a warp owns 16 of them (an A fragment's), whichever heads they are of. What goes through shared memory lies
// there as bf16, rows an odd number of 16 bytes apart: ldmatrix without bank conflicts. Weights and dS are rounded to bf16 before
// they are multiplied; scores, softmax and accumulators are f32. Powers are of 2, with the scale in the factor of their exponent.
// STEPS steps of 16 columns are a head's most.
#pragma once
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/mma.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

constexpr f32 LOG2_E = 1.4426950408889634f;

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

// A sample's key head with the queries that read it. Columns: `steps` of 16, d8 elements from row to row in shared memory,
// pieces of 8 (`packs`), which are accessed at once where `wide`.
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

DEV Group group_of(u32 slice, u32 tokens, u32 heads, u32 kv_heads, u32 d, bool aligned) {
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 sample = slice / kv_heads, group = slice % kv_heads, size = heads / kv_heads, steps = ceil_div(d, 16u);
    u32 width = (heads + 2 * kv_heads) * d;
    Group g;
    g.d = d, g.steps = steps, g.d8 = 16 * steps + 8, g.wide = aligned && d % 8 == 0;
    g.packs = divisor(2 * steps), g.tokens = divisor(tokens);
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
DEV void load_rows(bf16* to, u32 to_stride, const bf16* from, const Rows& of, u32 first, u32 rows, const Group& at,
                   u32 thread, u32 threads) {
#pragma unroll 1
    for (u32 i = thread; i < rows * at.packs.n; i += threads) {
        u32 row = quotient(i, at.packs), c = 8 * (i - row * at.packs.n);
        bool there = first + row < of.count && c < at.d;
        const bf16* p = from + (there ? row_at(of, first + row, at) + c : 0);
        bf16* place = to + row * to_stride + c;
        if (at.wide) {
            async_copy16_zero_fill(place, p, there ? 16 : 0);
            continue;
        }
        Vec16<bf16> pack;
#pragma unroll
        for (u32 e = 0; e < 8; e++) pack.v[e] = there && c + e < at.d ? p[e] : bf16{0};
        store16(place, pack);
    }
}

// The counterpart: rows that exist, out of shared memory.
DEV void store_rows(bf16* to, const Rows& of, u32 first, u32 rows, const bf16* from, u32 from_stride, const Group& at,
                    u32 thread, u32 threads) {
#pragma unroll 1
    for (u32 i = thread; i < rows * at.packs.n; i += threads) {
        u32 row = quotient(i, at.packs), c = 8 * (i - row * at.packs.n);
        if (first + row >= of.count || c >= at.d) continue;
        bf16* p = to + row_at(of, first + row, at) + c;
        Vec16<bf16> pack = load16(from + row * from_stride + c);
        if (at.wide) {
            store16(p, pack);
            continue;
        }
#pragma unroll
        for (u32 e = 0; e < 8; e++)
            if (c + e < at.d) p[e] = pack.v[e];
    }
}

// The warp waits until this thread's copies have landed.
DEV void arrive_in_warp() {
    async_commit();
    async_wait<0>();
    __syncwarp();
}
// As above, for the block.
DEV void arrive_in_block() {
    async_commit();
    async_wait<0>();
    __syncthreads();
}

// 16 rows in shared memory as A fragments: in registers where they are used often and the accumulators leave room, else
// loaded from there for each use.
template <u32 STEPS, bool IN_SHARED>
struct Own {
    u32 words[STEPS][4];
};
template <u32 STEPS>
struct Own<STEPS, true> {
    SharedAddress at;
};

// A lane's address of rows as A, `stride` elements apart; a step of 16 columns is 32 bytes further on.
DEV SharedAddress own_start(const bf16* rows, u32 stride, u32 lane) {
    return shared_address(const_cast<bf16*>(rows)) + 2 * (lane % 16 * stride + lane / 16 * 8);
}
template <u32 STEPS>
DEV void take_own(Own<STEPS, false>& own, const bf16* rows, const Group& at, u32 lane) {
#pragma unroll
    for (u32 step = 0; step < STEPS; step++)
        if (step < at.steps) ldmatrix_x4(own.words[step], own_start(rows, at.d8, lane) + 32 * step);
}
template <u32 STEPS>
DEV void take_own(Own<STEPS, true>& own, const bf16* rows, const Group& at, u32 lane) {
    own.at = own_start(rows, at.d8, lane);
}

template <u32 STEPS>
DEV void own_fragment(u32 (&words)[4], const Own<STEPS, false>& own, u32 step) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) words[i] = own.words[step][i];
}
template <u32 STEPS>
DEV void own_fragment(u32 (&words)[4], const Own<STEPS, true>& own, u32 step) {
    ldmatrix_x4(words, own.at + 32 * step);
}

// A lane's address of B: with B's columns as the rows of shared memory, and with its rows (transposed loads).
DEV SharedAddress columns_start(const bf16* tile, u32 stride, u32 lane) {
    return shared_address(const_cast<bf16*>(tile)) + 2 * ((lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
}
DEV SharedAddress rows_start(const bf16* tile, u32 stride, u32 lane) { return own_start(tile, stride, lane); }

// c[0] and c[1] += A B, for B's 16 columns; `second`: whether those from the eighth on count.
DEV void mma_pair(f32 (&c)[2][4], const u32 (&a)[4], const u32 (&b)[4], bool second) {
    u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
    mma_m16n8k16(c[0], a, left);
    if (second) mma_m16n8k16(c[1], a, right);
}

// acc += A B, with A [16, 16] and B 16 rows of shared memory.
template <u32 STEPS>
DEV void fragment_accumulate(f32 (&acc)[STEPS][2][4], const u32 (&a)[4], const bf16* rows, u32 d8, u32 steps, u32 lane) {
    SharedAddress b_at = rows_start(rows, d8, lane);
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        if (step >= steps) continue;
        u32 b[4];
        ldmatrix_x4_trans(b, b_at + 32 * step);
        mma_pair(acc[step], a, b, true);
    }
}

// Writes accumulators, row `half` (0: group, 1: group + 8) times factor[half], to 16 rows of shared memory, or adds them to
// what is there.
template <u32 STEPS>
DEV void put_fragments(bf16* rows, u32 stride, const f32 (&acc)[STEPS][2][4], const f32 (&factor)[2], u32 steps,
                       u32 lane, bool add) {
#pragma unroll
    for (u32 n = 0; n < 2 * STEPS; n++) {
        if (n / 2 >= steps) continue;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32* p = reinterpret_cast<u32*>(rows + (lane / 4 + 8 * half) * stride + 8 * n + lane % 4 * 2);
            f32 low = acc[n / 2][n % 2][2 * half] * factor[half], high = acc[n / 2][n % 2][2 * half + 1] * factor[half];
            if (add) low += bf16_low(*p), high += bf16_high(*p);
            *p = bf16_pair(low, high);
        }
    }
}

// A warp's 16 rows of dQ or of the output, by way of its 16 rows of shared memory.
template <u32 STEPS>
DEV void store_own(bf16* to, const Rows& of, u32 first, bf16* rows, u32 stride, const f32 (&acc)[STEPS][2][4],
                   const f32 (&factor)[2], const Group& at, u32 lane, bool add) {
    __syncwarp();
    if (add) {
        load_rows(rows, stride, to, of, first, 16, at, lane, WARP);
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
DEV void row_deltas(f32 (&delta)[2], const Own<STEPS, IN_SHARED>& dy, const bf16* out, u32 stride, const Group& at,
                    u32 lane) {
    f32 c[2][4] = {};
    SharedAddress b_at = columns_start(out, stride, lane);
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        if (step >= at.steps) continue;
        u32 a[4], b[4];
        own_fragment(a, dy, step);
        ldmatrix_x4(b, b_at + 32 * step);
        mma_pair(c, a, b, true);
    }
    bool odd = lane / 4 % 2 == 1;
    u32 from = lane / 4 * 4 + lane / 8;
    delta[0] = __shfl_sync(FULL_MASK, odd ? c[0][1] : c[0][0], from);
    delta[1] = __shfl_sync(FULL_MASK, odd ? c[1][3] : c[1][2], from);
}

// Statistics of a lane's two rows, from row `row` on, from which their weights are recomputed.
struct Statistics {
    f32 lse2[2], delta[2];
};
DEV void load_statistics(f32 (&values)[2], const f32* from, const Group& at, u32 row, f32 factor) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 r = row + 8 * half;
        values[half] = r < at.q.count ? from[at.statistics + r] * factor : 0.0f;
    }
}

// P and dS of 16 queries and 16 keys, the first eight of them if not SECOND, as an A fragment's words. Of the last eight
// `count` exist; P and dS are zero for the others.
template <u32 STEPS, bool IN_SHARED, bool SECOND>
DEV void weights_of(u32 (&p)[4], u32 (&ds)[4], const Own<STEPS, IN_SHARED>& q, const Own<STEPS, IN_SHARED>& dy, const bf16* k,
                    const bf16* v, const Statistics& rows, u32 count, const Group& at, u32 lane) {
    f32 s[2][4] = {}, dp[2][4];
#pragma unroll
    for (u32 i = 0; i < 8; i++) dp[i / 4][i % 4] = -rows.delta[i / 2 % 2];
    SharedAddress k_at = columns_start(k, at.d8, lane);
    SharedAddress v_at = columns_start(v, at.d8, lane);
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        if (step >= at.steps) continue;
        u32 a[4], b[4];
        own_fragment(a, q, step);
        ldmatrix_x4(b, k_at + 32 * step);
        mma_pair(s, a, b, SECOND);
        own_fragment(a, dy, step);
        ldmatrix_x4(b, v_at + 32 * step);
        mma_pair(dp, a, b, SECOND);
    }
    constexpr u32 LAST = SECOND ? 1 : 0;
    if (count < 8) {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (lane % 4 * 2 + i % 2 >= count) s[LAST][i] = -infinity_f32();
    }
#pragma unroll
    for (u32 i = 0; i < 4 + 4 * LAST; i++) {
        f32& weight = s[i / 4][i % 4];
        weight = exp2_approx(fma_f32(weight, at.scale2, -rows.lse2[i / 2 % 2]));
        dp[i / 4][i % 4] *= weight;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        bool exists = SECOND || i < 2;
        p[i] = exists ? bf16_pair(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]) : 0;
        ds[i] = exists ? bf16_pair(dp[i / 2][i % 2 * 2], dp[i / 2][i % 2 * 2 + 1]) : 0;
    }
}

// For `count` keys of 16.
template <u32 STEPS, bool IN_SHARED>
DEV void weights_again(u32 (&p)[4], u32 (&ds)[4], const Own<STEPS, IN_SHARED>& q, const Own<STEPS, IN_SHARED>& dy, const bf16* k,
                       const bf16* v, const Statistics& rows, u32 count, const Group& at, u32 lane) {
    if (count > 8) weights_of<STEPS, IN_SHARED, true>(p, ds, q, dy, k, v, rows, count - 8, at, lane);
    else weights_of<STEPS, IN_SHARED, false>(p, ds, q, dy, k, v, rows, count, at, lane);
}

// A tile's scores become weights exp(s - m), m each row's largest so far; what was summed up before is brought down to it.
template <u32 TILES, u32 STEPS>
DEV void softmax_tile(f32 (&s)[(TILES + 1) / 2][2][4], f32 (&m)[2], f32 (&l)[2], f32 (&acc)[STEPS][2][4], u32 count,
                      f32 scale2, u32 lane) {
    f32 most[2] = {m[0], m[1]};
#pragma unroll
    for (u32 j = 0; j < TILES; j++) {
        f32(&tile)[4] = s[j / 2][j % 2];
        if (8 * j + 8 > count) {
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (8 * j + lane % 4 * 2 + i % 2 >= count) tile[i] = -infinity_f32();
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) most[i / 2] = max_f32(most[i / 2], tile[i]);
    }
    f32 keep[2], minus[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        most[half] = quad_max(most[half]);
        keep[half] = exp2_approx((m[half] - most[half]) * scale2);
        m[half] = most[half];
        minus[half] = -most[half] * scale2;
        l[half] *= keep[half];
    }
#pragma unroll
    for (u32 j = 0; j < TILES; j++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            f32 weight = exp2_approx(fma_f32(s[j / 2][j % 2][i], scale2, minus[i / 2]));
            s[j / 2][j % 2][i] = weight;
            l[i / 2] += weight;
        }
    }
#pragma unroll
    for (u32 n = 0; n < 2 * STEPS; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) acc[n / 2][n % 2][i] *= keep[i / 2];
    }
}

// Scores of a warp's 16 queries and a tile's keys.
template <u32 STEPS, u32 TILES>
DEV void score_tile(f32 (&s)[(TILES + 1) / 2][2][4], const bf16* q, const bf16* k, u32 pairs, const Group& at, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < (TILES + 1) / 2 * 8; i++) s[i / 8][i / 4 % 2][i % 4] = 0.0f;
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        if (step >= at.steps) continue;
        u32 a[4], b[4];
        ldmatrix_x4(a, own_start(q, at.d8, lane) + 32 * step);
        SharedAddress k_at = columns_start(k, at.d8, lane) + 32 * step;
#pragma unroll
        for (u32 j = 0; j < (TILES + 1) / 2; j++) {
            if (j >= pairs) continue;
            ldmatrix_x4(b, k_at);
            mma_pair(s[j], a, b, 2 * j + 1 < TILES);
            k_at += 32 * at.d8;
        }
    }
}

// Blocks in y share a group's tiles of 16 stacked queries, and a block's warps the block's; keys come in tiles of at most 8 TILES. One
// tile of keys stays for all of a block's queries, of several each is loaded again.
template <u32 STEPS, u32 TILES>
DEV void attention_fwd_mma(bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens,
                           u32 heads, u32 kv_heads, u32 d) {
    SMEM_DYN(shared);
    constexpr u32 PAIRS = (TILES + 1) / 2;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const Group at = group_of(blockIdx.x, tokens, heads, kv_heads, d, aligned16(qkv) && aligned16(out));
    u32 keys = keys_of_tile(tokens, 8 * TILES), d8 = at.d8, tiles = ceil_div(at.q.count, 16u);
    bf16* own = reinterpret_cast<bf16*>(shared) + 16 * warp * d8;
    bf16* k = reinterpret_cast<bf16*>(shared) + 16 * warps * d8;
    bf16* v = k + round_up(keys, 16u) * d8;
    bool again = keys < tokens, begun = false;
    for (u32 tile = blockIdx.y * warps; tile < tiles; tile += gridDim.y * warps) {
        u32 first = 16 * (tile + warp);
        bool active = first < at.q.count;
        __syncwarp();
        if (active) load_rows(own, d8, qkv, at.q, first, 16, at, lane, WARP);
        if (begun) arrive_in_warp();
        f32 acc[STEPS][2][4] = {}, m[2] = {-infinity_f32(), -infinity_f32()}, l[2] = {0.0f, 0.0f};
        for (u32 key = 0; key < tokens; key += keys) {
            u32 count = min_of(tokens - key, keys), pairs = ceil_div(count, 16u);
            if (again || !begun) {
                if (begun) __syncthreads();
                load_rows(k, d8, qkv, at.k, key, 16 * pairs, at, threadIdx.x, blockDim.x);
                load_rows(v, d8, qkv, at.v, key, 16 * pairs, at, threadIdx.x, blockDim.x);
                arrive_in_block();
                begun = true;
            }
            if (!active) continue;
            f32 s[PAIRS][2][4];
            score_tile<STEPS, TILES>(s, own, k, pairs, at, lane);
            softmax_tile<TILES>(s, m, l, acc, count, at.scale2, lane);
#pragma unroll
            for (u32 j = 0; j < PAIRS; j++) {
                if (j >= pairs) continue;
                u32 a[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) a[i] = bf16_pair(s[j][i / 2][i % 2 * 2], s[j][i / 2][i % 2 * 2 + 1]);
                fragment_accumulate<STEPS>(acc, a, v + 16 * j * d8, d8, at.steps, lane);
            }
        }
        if (!active) continue;
        f32 inverse[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
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
template <u32 STEPS, u32 PAIRS, bool IN_SHARED>
DEV void attention_bwd_q_mma(bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout,
                             const bf16* __restrict__ out, const f32* __restrict__ lse, const bf16* __restrict__ qkv,
                             u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, rows = blockDim.x / WARP * 16;
    u32 blocks = ceil_div(heads / kv_heads * tokens, rows), first = blockIdx.x % blocks * rows + 16 * warp;
    bool aligned = aligned16(qkv) && aligned16(out) && aligned16(dout) && aligned16(dqkv);
    const Group at = group_of(blockIdx.x / blocks, tokens, heads, kv_heads, d, aligned);
    u32 keys = keys_of_tile(tokens, 16 * PAIRS), d8 = at.d8;
    bf16* own = reinterpret_cast<bf16*>(shared) + 32 * warp * d8;
    bf16* k = reinterpret_cast<bf16*>(shared) + 2 * rows * d8;
    bf16* v = k + round_up(keys, 16u) * d8;
    bool active = first < at.q.count;

    Own<STEPS, IN_SHARED> q, dy;
    Statistics mine;
    if (active) {
        load_rows(own, d8, out, at.out, first, 16, at, lane, WARP);
        load_rows(own + 16 * d8, d8, dout, at.out, first, 16, at, lane, WARP);
        arrive_in_warp();
        take_own(dy, own + 16 * d8, at, lane);
        row_deltas(mine.delta, dy, own, d8, at, lane);
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
        arrive_in_block();
        if (!active) continue;
        if (key == 0) take_own(q, own, at, lane);
#pragma unroll 1
        for (u32 j = 0; j < pairs; j++) {
            u32 p[4], ds[4], offset = 16 * j * d8;
            weights_again<STEPS, IN_SHARED>(p, ds, q, dy, k + offset, v + offset, mine, count - 16 * j, at, lane);
            fragment_accumulate<STEPS>(acc, ds, k + offset, d8, at.steps, lane);
        }
    }
    if (!active) return;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 r = first + lane / 4 + 8 * half;
        if (lane % 4 == 0 && r < at.q.count) delta[at.statistics + r] = mine.delta[half];
    }
    f32 factor[2] = {at.scale, at.scale};
    store_own<STEPS>(dqkv, at.q, first, own, d8, acc, factor, at, lane, accumulate != 0);
}
