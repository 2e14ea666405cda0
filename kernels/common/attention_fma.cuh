// Attention in f32 from shared memory; the head of attention.cu says what is computed, and states the launches.
//
// A warp owns R rows (queries; keys in _bwd_kv) and meets 32 columns at a time, one per lane; the accumulators hold R rows
// by C columns of 32 lanes.
#pragma once
#include "common/attention.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"
#include "common/vec.cuh"

constexpr u32 WARPS = 4;

// `rows` rows from global memory, `stride` apart, into shared memory, `to_stride` apart, times `factor`. What lies
// beyond `count` rows or d columns becomes zero.
DEV void load_tile(f32* to, u32 to_stride, const f32* from, u64 stride, u32 rows, u32 count, const Layout& at,
                   f32 factor) {
    bool wide = at.d % 4 == 0 && aligned4(from) && aligned4(from + stride);
    u32 packs = at.d4 / 4;
    for (u32 i = threadIdx.x; i < rows * packs; i += blockDim.x) {
        u32 row = i / packs, c = 4 * (i % packs);
        f32 v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (row < count) load4(from + row * stride + c, at.d - c, wide, v);
        Pack4<f32> pack = {{v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor}};
        *reinterpret_cast<Pack4<f32>*>(to + row * to_stride + c) = pack;
    }
}

// s[r] = the product of row r of `a` with the lane's row `b`.
template <u32 R>
DEV void tile_dots(f32 (&s)[R], const f32* a, const f32* b, const Layout& at) {
    UNROLL for (u32 r = 0; r < R; r++) s[r] = 0.0f;
#pragma unroll 2
    for (u32 c = 0; c < at.d4; c += 4) {
        Pack4<f32> y = *reinterpret_cast<const Pack4<f32>*>(b + c);
        UNROLL for (u32 r = 0; r < R; r++) {
            Pack4<f32> x = *reinterpret_cast<const Pack4<f32>*>(a + r * at.d4 + c);
            UNROLL for (u32 i = 0; i < 4; i++) s[r] = fma_f32(x.v[i], y.v[i], s[r]);
        }
    }
}

// acc[r][j] += the sum over the tile's rows k of p[r][k] * b[k][lane + 32 j]; `count` rows are not zero.
template <u32 R, u32 C>
DEV void tile_accumulate(f32 (&acc)[R][C], const f32* p, const f32* b, u32 stride, u32 count, u32 lane,
                         const Layout& at) {
#pragma unroll 2
    for (u32 k = 0; k < count; k += 4) {
        Pack4<f32> x[R];
        UNROLL for (u32 r = 0; r < R; r++) x[r] = *reinterpret_cast<const Pack4<f32>*>(p + r * WARP + k);
        UNROLL for (u32 i = 0; i < 4; i++) {
            UNROLL for (u32 j = 0; j < C; j++) {
                u32 c = lane + WARP * j;
                f32 y = c < at.d4 ? b[(k + i) * stride + c] : 0.0f;
                UNROLL for (u32 r = 0; r < R; r++) acc[r][j] = fma_f32(x[r].v[i], y, acc[r][j]);
            }
        }
    }
}

// Writes or adds R rows of accumulators, times `factor`, to rows `stride` apart; `count` of them exist.
template <u32 R, u32 C>
DEV void store_rows(f32* to, u64 stride, u32 count, const f32 (&acc)[R][C], f32 factor, u32 lane, u32 accumulate,
                    const Layout& at) {
    UNROLL for (u32 r = 0; r < R; r++) {
        UNROLL for (u32 j = 0; j < C; j++) {
            u32 c = lane + WARP * j;
            if (r >= count || c >= at.d) continue;
            f32* p = to + r * stride + c;
            f32 value = acc[r][j] * factor;
            *p = accumulate != 0 ? *p + value : value;
        }
    }
}

template <u32 C, u32 R>
DEV void attention_fwd(f32* __restrict__ out, f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens,
                       u32 heads, u32 kv_heads, u32 d) {
    SMEM_DYN(shared);
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    constexpr u32 ROWS = WARPS * R;
    f32* q = reinterpret_cast<f32*>(shared);
    f32* k = q + ROWS * at.d4;
    f32* v = k + WARP * at.k4;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    f32* p = v + WARP * at.d4 + warp * R * WARP;
    u32 tiles = ceil_div(at.tokens, ROWS), first = blockIdx.x % tiles * ROWS, slice = blockIdx.x / tiles;
    u32 sample = slice / at.heads, head = slice % at.heads, group = head / (at.heads / at.kv_heads);
    const f32* k_rows = qkv + k_start(at, sample, group);
    const f32* v_rows = qkv + v_start(at, sample, group);
    load_tile(q, at.d4, qkv + q_start(at, sample, head) + first * at.width, at.width, ROWS, at.tokens - first, at,
              at.scale);
    u32 row = first + warp * R;

    f32 acc[R][C] = {}, m[R], l[R];
    UNROLL for (u32 r = 0; r < R; r++) {
        m[r] = -infinity_f32();
        l[r] = 0.0f;
    }
    for (u32 key = 0; key < at.tokens; key += WARP) {
        u32 count = min_of(at.tokens - key, WARP);
        __syncthreads();
        load_tile(k, at.k4, k_rows + key * at.width, at.width, WARP, count, at, 1.0f);
        load_tile(v, at.d4, v_rows + key * at.width, at.width, WARP, count, at, 1.0f);
        __syncthreads();
        if (row >= at.tokens) continue;
        f32 s[R];
        tile_dots(s, q + warp * R * at.d4, k + lane * at.k4, at);
        UNROLL for (u32 r = 0; r < R; r++) {
            f32 score = lane < count ? s[r] : -infinity_f32();
            f32 largest = max_f32(m[r], warp_max(score));
            f32 weight = exp_f32(score - largest), keep = exp_f32(m[r] - largest);
            m[r] = largest;
            l[r] = l[r] * keep + warp_sum(weight);
            UNROLL for (u32 j = 0; j < C; j++) acc[r][j] *= keep;
            p[r * WARP + lane] = weight;
        }
        __syncwarp();
        tile_accumulate(acc, p, v, at.d4, count, lane, at);
    }
    if (row >= at.tokens) return;
    UNROLL for (u32 r = 0; r < R; r++) {
        UNROLL for (u32 j = 0; j < C; j++) acc[r][j] /= l[r];
        if (lane == r && row + r < at.tokens) lse[(u64)slice * at.tokens + row + r] = m[r] + log_f32(l[r]);
    }
    u64 stride = (u64)at.heads * at.d;
    store_rows(out + out_start(at, sample, head) + row * stride, stride, at.tokens - row, acc, 1.0f, lane, 0, at);
}

template <u32 C, u32 R>
DEV void attention_bwd_q(f32* __restrict__ dqkv, f32* __restrict__ delta, const f32* __restrict__ dout,
                         const f32* __restrict__ out, const f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens,
                         u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    constexpr u32 ROWS = WARPS * R;
    f32* q = reinterpret_cast<f32*>(shared);
    f32* dy = q + ROWS * at.d4;
    f32* k = dy + ROWS * at.d4;
    f32* v = k + WARP * at.k4;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    f32* ds = v + WARP * at.k4 + warp * R * WARP;
    u32 tiles = ceil_div(at.tokens, ROWS), first = blockIdx.x % tiles * ROWS, slice = blockIdx.x / tiles;
    u32 sample = slice / at.heads, head = slice % at.heads, group = head / (at.heads / at.kv_heads);
    const f32* k_rows = qkv + k_start(at, sample, group);
    const f32* v_rows = qkv + v_start(at, sample, group);
    u64 q_rows = q_start(at, sample, head), stride = (u64)at.heads * at.d, rows = out_start(at, sample, head);
    load_tile(q, at.d4, qkv + q_rows + first * at.width, at.width, ROWS, at.tokens - first, at, at.scale);
    load_tile(dy, at.d4, dout + rows + first * stride, stride, ROWS, at.tokens - first, at, 1.0f);
    __syncthreads();

    u32 row = first + warp * R;
    f32 acc[R][C] = {}, lse_of[R], delta_of[R];
    UNROLL for (u32 r = 0; r < R; r++) {
        u32 mine = min_of(row + r, at.tokens - 1);
        f32 sum = 0.0f;
        for (u32 c = lane; c < at.d; c += WARP)
            sum = fma_f32(dy[(warp * R + r) * at.d4 + c], out[rows + mine * stride + c], sum);
        delta_of[r] = warp_sum(sum);
        lse_of[r] = lse[(u64)slice * at.tokens + mine];
        if (lane == r && row + r < at.tokens) delta[(u64)slice * at.tokens + row + r] = delta_of[r];
    }
    for (u32 key = 0; key < at.tokens; key += WARP) {
        u32 count = min_of(at.tokens - key, WARP);
        __syncthreads();
        load_tile(k, at.k4, k_rows + key * at.width, at.width, WARP, count, at, 1.0f);
        load_tile(v, at.k4, v_rows + key * at.width, at.width, WARP, count, at, 1.0f);
        __syncthreads();
        if (row >= at.tokens) continue;
        f32 s[R], dp[R];
        tile_dots(s, q + warp * R * at.d4, k + lane * at.k4, at);
        tile_dots(dp, dy + warp * R * at.d4, v + lane * at.k4, at);
        UNROLL for (u32 r = 0; r < R; r++)
            ds[r * WARP + lane] = lane < count ? exp_f32(s[r] - lse_of[r]) * (dp[r] - delta_of[r]) : 0.0f;
        __syncwarp();
        tile_accumulate(acc, ds, k, at.k4, count, lane, at);
    }
    if (row >= at.tokens) return;
    store_rows(dqkv + q_rows + row * at.width, at.width, at.tokens - row, acc, at.scale, lane, accumulate, at);
}

template <u32 C, u32 R>
DEV void attention_bwd_kv(f32* __restrict__ dqkv, const f32* __restrict__ dout, const f32* __restrict__ lse,
                          const f32* __restrict__ delta, const f32* __restrict__ qkv, u32 tokens,
                          u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    constexpr u32 ROWS = WARPS * R;
    f32* k = reinterpret_cast<f32*>(shared);
    f32* v = k + ROWS * at.d4;
    f32* q = v + ROWS * at.d4;
    f32* dy = q + WARP * at.k4;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    f32* p = dy + WARP * at.k4 + warp * 2 * R * WARP;
    f32* ds = p + R * WARP;
    u32 tiles = ceil_div(at.tokens, ROWS), first = blockIdx.x % tiles * ROWS, slice = blockIdx.x / tiles;
    u32 sample = slice / at.kv_heads, group = slice % at.kv_heads, size = at.heads / at.kv_heads;
    u64 k_rows = k_start(at, sample, group), v_rows = v_start(at, sample, group), stride = (u64)at.heads * at.d;
    load_tile(k, at.d4, qkv + k_rows + first * at.width, at.width, ROWS, at.tokens - first, at, at.scale);
    load_tile(v, at.d4, qkv + v_rows + first * at.width, at.width, ROWS, at.tokens - first, at, 1.0f);
    u32 row = first + warp * R;

    f32 dk[R][C] = {}, dv[R][C] = {};
    for (u32 head = group * size; head < (group + 1) * size; head++) {
        const f32* q_rows = qkv + q_start(at, sample, head);
        const f32* dy_rows = dout + out_start(at, sample, head);
        u64 statistics = ((u64)sample * at.heads + head) * at.tokens;
        for (u32 query = 0; query < at.tokens; query += WARP) {
            u32 count = min_of(at.tokens - query, WARP), mine = min_of(query + lane, at.tokens - 1);
            __syncthreads();
            load_tile(q, at.k4, q_rows + query * at.width, at.width, WARP, count, at, 1.0f);
            load_tile(dy, at.k4, dy_rows + query * stride, stride, WARP, count, at, 1.0f);
            __syncthreads();
            if (row >= at.tokens) continue;
            f32 lse_of = lse[statistics + mine], delta_of = delta[statistics + mine];
            f32 s[R], dp[R];
            tile_dots(s, k + warp * R * at.d4, q + lane * at.k4, at);
            tile_dots(dp, v + warp * R * at.d4, dy + lane * at.k4, at);
            UNROLL for (u32 r = 0; r < R; r++) {
                f32 weight = lane < count ? exp_f32(s[r] - lse_of) : 0.0f;
                p[r * WARP + lane] = weight;
                ds[r * WARP + lane] = weight * (dp[r] - delta_of);
            }
            __syncwarp();
            tile_accumulate(dv, p, dy, at.k4, count, lane, at);
            tile_accumulate(dk, ds, q, at.k4, count, lane, at);
        }
    }
    if (row >= at.tokens) return;
    store_rows(dqkv + k_rows + row * at.width, at.width, at.tokens - row, dk, at.scale, lane, accumulate, at);
    store_rows(dqkv + v_rows + row * at.width, at.width, at.tokens - row, dv, 1.0f, lane, accumulate, at);
}
