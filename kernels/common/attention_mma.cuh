// Attention on the tensor cores, for bf16; the head of attention.cu says what is computed, and states the launches.
//
// A warp owns 16 rows (an A fragment's); what streams past comes in tiles of 16 PAIRS rows, as bf16, rows d8 elements apart
// (an odd number of 16 bytes: ldmatrix without bank conflicts). Weights and dS are rounded to bf16 before they are
// multiplied; scores, softmax and accumulators are f32. STEPS steps of 16 columns are a head's most.
#pragma once
#include "common/attention.cuh"
#include "common/mma.cuh"
#include "common/types.cuh"

struct __align__(16) Words4 {
    u32 w[4];
};

// The words of A fragments at rows `row` and `row + 8` (zeros from row `rows` on), for a step of 16 columns.
DEV void load_fragment(u32 (&words)[4], const bf16* from, u64 stride, u32 row, u32 rows, u32 d, u32 t, u32 step) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 r = row + i % 2 * 8, c = 16 * step + i / 2 * 8 + 2 * t;
        const bf16* p = from + r * stride + c;
        u32 low = r < rows && c < d ? p[0].bits : 0, high = r < rows && c + 1 < d ? p[1].bits : 0;
        words[i] = low | high << 16;
    }
}

// `rows` rows into shared memory, d8 elements apart; zeros beyond `count` rows and d columns, up to d16 columns.
DEV void load_bf16_tile(bf16* to, u32 d8, const bf16* from, u64 stride, u32 rows, u32 count, u32 d, u32 d16) {
    bool wide = d % 8 == 0 && (u64)from % 16 == 0 && stride % 8 == 0;
    u32 packs = d16 / 8;
    for (u32 i = threadIdx.x; i < rows * packs; i += blockDim.x) {
        u32 row = i / packs, c = 8 * (i % packs);
        Words4 words = {{0, 0, 0, 0}};
        const bf16* p = from + row * stride + c;
        if (row < count && c < d) {
            if (wide) {
                words = *reinterpret_cast<const Words4*>(p);
            } else {
#pragma unroll
                for (u32 e = 0; e < 8; e++)
                    if (c + e < d) words.w[e / 2] |= (u32)p[e].bits << (e % 2 * 16);
            }
        }
        *reinterpret_cast<Words4*>(to + row * d8 + c) = words;
    }
}

// The warp's own 16 rows: as fragments in registers, straight from global memory, where the accumulators leave room for
// them; else in shared memory.
template <u32 STEPS, bool IN_SHARED>
struct Own {
    u32 words[STEPS][4];
};
template <u32 STEPS>
struct Own<STEPS, true> {
    const bf16* rows;
    u32 d8;
};

// Rows `block_first` and on, 16 for each warp. What shared memory they take, `shared` moves past; a barrier must follow.
template <u32 STEPS>
DEV void load_own(Own<STEPS, false>& own, bf16*&, const bf16* from, u64 stride, u32 block_first, u32 tokens, u32 d) {
    u32 row = block_first + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
#pragma unroll
    for (u32 step = 0; step < STEPS; step++)
        load_fragment(own.words[step], from, stride, row, tokens, d, threadIdx.x % 4, step);
}
template <u32 STEPS>
DEV void load_own(Own<STEPS, true>& own, bf16*& shared, const bf16* from, u64 stride, u32 block_first, u32 tokens, u32 d) {
    u32 d16 = round_up(d, 16u), rows = blockDim.x / WARP * 16;
    own.d8 = d16 + 8;
    own.rows = shared + threadIdx.x / WARP * 16 * own.d8;
    load_bf16_tile(shared, own.d8, from + block_first * stride, stride, rows, min_of(tokens - block_first, rows), d, d16);
    shared += rows * own.d8;
}

template <u32 STEPS>
DEV void own_fragment(u32 (&words)[4], const Own<STEPS, false>& own, u32 step, u32) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) words[i] = own.words[step][i];
}
template <u32 STEPS>
DEV void own_fragment(u32 (&words)[4], const Own<STEPS, true>& own, u32 step, u32 lane) {
    ldmatrix_x4(words, own.rows + lane % 16 * own.d8 + lane / 16 * 8 + 16 * step);
}

// s[j] = the products of the warp's rows with the tile's rows 8 j .. 8 j + 8; the first `pairs` pairs of j only.
template <u32 STEPS, u32 PAIRS, bool IN_SHARED>
DEV void fragment_dots(f32 (&s)[2 * PAIRS][4], const Own<STEPS, IN_SHARED>& own, const bf16* tile, u32 d8, u32 steps,
                       u32 pairs, u32 lane) {
    const bf16* at = tile + (lane / 16 * 8 + lane % 8) * d8 + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 j = 0; j < 2 * PAIRS; j++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) s[j][i] = 0.0f;
    }
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        if (step >= steps) continue;
        u32 a[4];
        own_fragment(a, own, step, lane);
#pragma unroll
        for (u32 j = 0; j < PAIRS; j++) {
            if (j >= pairs) continue;
            u32 words[4];
            ldmatrix_x4(words, at + 16 * j * d8 + 16 * step);
            u32 first[2] = {words[0], words[1]}, second[2] = {words[2], words[3]};
            mma_m16n8k16(s[2 * j], a, first);
            mma_m16n8k16(s[2 * j + 1], a, second);
        }
    }
}

// acc += P B with P [16, 16 PAIRS] in the layout of `fragment_dots`' result, rounded to bf16, and B the tile's rows.
template <u32 STEPS, u32 PAIRS>
DEV void fragment_accumulate(f32 (&acc)[2 * STEPS][4], const f32 (&p)[2 * PAIRS][4], const bf16* tile, u32 d8,
                             u32 steps, u32 pairs, u32 lane) {
    const bf16* at = tile + lane % 16 * d8 + lane / 16 * 8;
#pragma unroll
    for (u32 j = 0; j < PAIRS; j++) {
        if (j >= pairs) continue;
        u32 a[4] = {bf16_pair(p[2 * j][0], p[2 * j][1]), bf16_pair(p[2 * j][2], p[2 * j][3]),
                    bf16_pair(p[2 * j + 1][0], p[2 * j + 1][1]), bf16_pair(p[2 * j + 1][2], p[2 * j + 1][3])};
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            if (step >= steps) continue;
            u32 words[4];
            ldmatrix_x4_trans(words, at + 16 * j * d8 + 16 * step);
            u32 first[2] = {words[0], words[1]}, second[2] = {words[2], words[3]};
            mma_m16n8k16(acc[2 * step], a, first);
            mma_m16n8k16(acc[2 * step + 1], a, second);
        }
    }
}

// Writes or adds accumulators, row `half` (0: group, 1: group + 8) times factor[half].
template <u32 STEPS>
DEV void store_fragments(bf16* to, u64 stride, u32 row, u32 rows, u32 d, const f32 (&acc)[2 * STEPS][4],
                         const f32 (&factor)[2], u32 t, u32 accumulate) {
#pragma unroll
    for (u32 n = 0; n < 2 * STEPS; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 r = row + i / 2 * 8, c = 8 * n + 2 * t + i % 2;
            if (r >= rows || c >= d) continue;
            bf16* p = to + r * stride + c;
            f32 value = acc[n][i] * factor[i / 2];
            store_f32(p, accumulate != 0 ? to_f32(*p) + value : value);
        }
    }
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

template <u32 STEPS, u32 PAIRS, bool IN_SHARED>
DEV void attention_fwd_mma(bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens,
                           u32 heads, u32 kv_heads, u32 d) {
    SMEM_DYN(shared);
    constexpr u32 KEYS = 16 * PAIRS;
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 steps = ceil_div(d, 16u), d16 = 16 * steps, d8 = d16 + 8;
    u32 lane = threadIdx.x % WARP, t = lane % 4, rows = blockDim.x / WARP * 16, tiles = ceil_div(tokens, rows);
    u32 block_first = blockIdx.x % tiles * rows, first = block_first + threadIdx.x / WARP * 16, row = first + lane / 4;
    u32 slice = blockIdx.x / tiles;
    u32 sample = slice / heads, head = slice % heads, group = head / (heads / kv_heads);
    const bf16* k_rows = qkv + k_start(at, sample, group);
    const bf16* v_rows = qkv + v_start(at, sample, group);
    bf16* memory = reinterpret_cast<bf16*>(shared);
    Own<STEPS, IN_SHARED> q;
    load_own(q, memory, qkv + q_start(at, sample, head), at.width, block_first, tokens, d);
    bf16* k = memory;
    bf16* v = k + KEYS * d8;

    f32 acc[2 * STEPS][4] = {}, m[2] = {-infinity_f32(), -infinity_f32()}, l[2] = {0.0f, 0.0f};
    for (u32 key = 0; key < tokens; key += KEYS) {
        u32 count = min_of(tokens - key, KEYS), pairs = ceil_div(count, 16u);
        __syncthreads();
        load_bf16_tile(k, d8, k_rows + key * at.width, at.width, 16 * pairs, count, d, d16);
        load_bf16_tile(v, d8, v_rows + key * at.width, at.width, 16 * pairs, count, d, d16);
        __syncthreads();
        if (first >= tokens) continue;
        f32 s[2 * PAIRS][4];
        fragment_dots<STEPS, PAIRS, IN_SHARED>(s, q, k, d8, steps, pairs, lane);
        f32 most[2] = {m[0], m[1]};
#pragma unroll
        for (u32 j = 0; j < 2 * PAIRS; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                s[j][i] = 8 * j + 2 * t + i % 2 < count ? s[j][i] * at.scale : -infinity_f32();
                most[i / 2] = max_f32(most[i / 2], s[j][i]);
            }
        }
        f32 keep[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            most[half] = quad_max(most[half]);
            keep[half] = exp_f32(m[half] - most[half]);
            m[half] = most[half];
            l[half] *= keep[half];
        }
#pragma unroll
        for (u32 j = 0; j < 2 * PAIRS; j++) {
            if (j >= 2 * pairs) continue;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                s[j][i] = exp_f32(s[j][i] - m[i / 2]);
                l[i / 2] += s[j][i];
            }
        }
#pragma unroll
        for (u32 n = 0; n < 2 * STEPS; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) acc[n][i] *= keep[i / 2];
        }
        fragment_accumulate<STEPS, PAIRS>(acc, s, v, d8, steps, pairs, lane);
    }
    if (first >= tokens) return;
    f32 inverse[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        f32 sum = quad_sum(l[half]);
        inverse[half] = 1.0f / sum;
        u32 r = row + 8 * half;
        if (t == 0 && r < tokens) lse[(u64)slice * tokens + r] = m[half] + log_f32(sum);
    }
    store_fragments<STEPS>(out + out_start(at, sample, head), (u64)heads * d, row, tokens, d, acc, inverse, t, 0);
}

template <u32 STEPS, u32 PAIRS, bool IN_SHARED>
DEV void attention_bwd_q_mma(bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout,
                             const bf16* __restrict__ out, const f32* __restrict__ lse, const bf16* __restrict__ qkv,
                             u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    constexpr u32 KEYS = 16 * PAIRS;
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 steps = ceil_div(d, 16u), d16 = 16 * steps, d8 = d16 + 8;
    u32 lane = threadIdx.x % WARP, t = lane % 4, rows = blockDim.x / WARP * 16, tiles = ceil_div(tokens, rows);
    u32 block_first = blockIdx.x % tiles * rows, first = block_first + threadIdx.x / WARP * 16, row = first + lane / 4;
    u32 slice = blockIdx.x / tiles;
    u32 sample = slice / heads, head = slice % heads, group = head / (heads / kv_heads);
    const bf16* k_rows = qkv + k_start(at, sample, group);
    const bf16* v_rows = qkv + v_start(at, sample, group);
    u64 stride = (u64)heads * d, out_rows = out_start(at, sample, head);
    bf16* memory = reinterpret_cast<bf16*>(shared);
    Own<STEPS, IN_SHARED> q, dy;
    load_own(q, memory, qkv + q_start(at, sample, head), at.width, block_first, tokens, d);
    load_own(dy, memory, dout + out_rows, stride, block_first, tokens, d);
    bf16* k = memory;
    bf16* v = k + KEYS * d8;
    if (IN_SHARED) __syncthreads();

    f32 lse_of[2], delta_of[2] = {0.0f, 0.0f};
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        if (step >= steps) continue;
        u32 y[4], with[4];
        load_fragment(y, out + out_rows, stride, row, tokens, d, t, step);
        own_fragment(with, dy, step, lane);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            f32 low = f32_from_bits(y[i] << 16) * f32_from_bits(with[i] << 16);
            f32 high = f32_from_bits(y[i] & 0xffff0000u) * f32_from_bits(with[i] & 0xffff0000u);
            delta_of[i % 2] += low + high;
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 r = row + 8 * half;
        delta_of[half] = quad_sum(delta_of[half]);
        lse_of[half] = lse[(u64)slice * tokens + min_of(r, tokens - 1)];
        if (t == 0 && r < tokens) delta[(u64)slice * tokens + r] = delta_of[half];
    }
    f32 acc[2 * STEPS][4] = {};
    for (u32 key = 0; key < tokens; key += KEYS) {
        u32 count = min_of(tokens - key, KEYS), pairs = ceil_div(count, 16u);
        __syncthreads();
        load_bf16_tile(k, d8, k_rows + key * at.width, at.width, 16 * pairs, count, d, d16);
        load_bf16_tile(v, d8, v_rows + key * at.width, at.width, 16 * pairs, count, d, d16);
        __syncthreads();
        if (first >= tokens) continue;
        f32 s[2 * PAIRS][4], dp[2 * PAIRS][4];
        fragment_dots<STEPS, PAIRS, IN_SHARED>(s, q, k, d8, steps, pairs, lane);
        fragment_dots<STEPS, PAIRS, IN_SHARED>(dp, dy, v, d8, steps, pairs, lane);
#pragma unroll
        for (u32 j = 0; j < 2 * PAIRS; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                f32 weight = 8 * j + 2 * t + i % 2 < count ? exp_f32(s[j][i] * at.scale - lse_of[i / 2]) : 0.0f;
                s[j][i] = weight * (dp[j][i] - delta_of[i / 2]);
            }
        }
        fragment_accumulate<STEPS, PAIRS>(acc, s, k, d8, steps, pairs, lane);
    }
    if (first >= tokens) return;
    f32 factor[2] = {at.scale, at.scale};
    store_fragments<STEPS>(dqkv + q_start(at, sample, head), at.width, row, tokens, d, acc, factor, t, accumulate);
}

// Blocks in y share the columns of dK and dV: each adds up 16 SUMMED of them, from all the columns' scores.
template <u32 STEPS, u32 SUMMED, u32 PAIRS, bool IN_SHARED>
DEV void attention_bwd_kv_mma(bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const f32* __restrict__ lse,
                              const f32* __restrict__ delta, const bf16* __restrict__ qkv, u32 tokens, u32 heads,
                              u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    constexpr u32 QUERIES = 16 * PAIRS;
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 steps = ceil_div(d, 16u), d16 = 16 * steps, d8 = d16 + 8;
    u32 lane = threadIdx.x % WARP, t = lane % 4, rows = blockDim.x / WARP * 16, tiles = ceil_div(tokens, rows);
    u32 block_first = blockIdx.x % tiles * rows, first = block_first + threadIdx.x / WARP * 16, row = first + lane / 4;
    u32 slice = blockIdx.x / tiles;
    u32 sample = slice / kv_heads, group = slice % kv_heads, size = heads / kv_heads;
    u64 k_rows = k_start(at, sample, group), v_rows = v_start(at, sample, group), stride = (u64)heads * d;
    bf16* memory = reinterpret_cast<bf16*>(shared);
    Own<STEPS, IN_SHARED> k, v;
    load_own(k, memory, qkv + k_rows, at.width, block_first, tokens, d);
    load_own(v, memory, qkv + v_rows, at.width, block_first, tokens, d);
    bf16* q = memory;
    bf16* dy = q + QUERIES * d8;
    u32 summed_first = blockIdx.y * SUMMED, col = 16 * summed_first;

    f32 dk[2 * SUMMED][4] = {}, dv[2 * SUMMED][4] = {};
    for (u32 head = group * size; head < (group + 1) * size; head++) {
        const bf16* q_rows = qkv + q_start(at, sample, head);
        const bf16* dy_rows = dout + out_start(at, sample, head);
        u64 statistics = ((u64)sample * heads + head) * tokens;
        for (u32 query = 0; query < tokens; query += QUERIES) {
            u32 count = min_of(tokens - query, QUERIES), pairs = ceil_div(count, 16u);
            __syncthreads();
            load_bf16_tile(q, d8, q_rows + query * at.width, at.width, 16 * pairs, count, d, d16);
            load_bf16_tile(dy, d8, dy_rows + query * stride, stride, 16 * pairs, count, d, d16);
            __syncthreads();
            if (first >= tokens) continue;
            f32 s[2 * PAIRS][4], dp[2 * PAIRS][4];
            fragment_dots<STEPS, PAIRS, IN_SHARED>(s, k, q, d8, steps, pairs, lane);
            fragment_dots<STEPS, PAIRS, IN_SHARED>(dp, v, dy, d8, steps, pairs, lane);
#pragma unroll
            for (u32 j = 0; j < 2 * PAIRS; j++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 column = 8 * j + 2 * t + i % 2;
                    u64 mine = statistics + query + min_of(column, count - 1);
                    f32 weight = column < count ? exp_f32(s[j][i] * at.scale - lse[mine]) : 0.0f;
                    s[j][i] = weight;
                    dp[j][i] = weight * (dp[j][i] - delta[mine]);
                }
            }
            fragment_accumulate<SUMMED, PAIRS>(dv, s, dy + col, d8, steps - summed_first, pairs, lane);
            fragment_accumulate<SUMMED, PAIRS>(dk, dp, q + col, d8, steps - summed_first, pairs, lane);
        }
    }
    if (first >= tokens) return;
    f32 factor[2] = {at.scale, at.scale}, one[2] = {1.0f, 1.0f};
    store_fragments<SUMMED>(dqkv + k_rows + col, at.width, row, tokens, d - col, dk, factor, t, accumulate);
    store_fragments<SUMMED>(dqkv + v_rows + col, at.width, row, tokens, d - col, dv, one, t, accumulate);
}
