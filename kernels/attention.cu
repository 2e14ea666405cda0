// Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), not causal, without materialising the scores: online
// softmax and recomputation in the backward (Dao 2023, FlashAttention-2, arXiv 2307.08691).
//
// qkv [B, T, (H + 2 G) D], columns [q heads | k heads | v heads]; out [B, T, H D]; lse [B, H, T] f32. Query head h reads
// kv head h / (H / G). With S = Q K^T / sqrt(D), row by row:
//
//   P = exp(S - m), l = sum P, out = P V / l, lse = m + log l
//   Delta = sum(dout out), P = exp(S - lse), dS = P (dout V^T - Delta)
//   dQ = dS K / sqrt(D), dK = sum over the group's heads of dS^T Q / sqrt(D), dV = sum over the group's heads of P^T dout
//
// Two forms. FMA (f32; bf16 backward where D > 64): computed in f32 from shared memory. A warp owns R rows (queries; keys in
// _bwd_kv) and meets 32 columns at a time, one per lane; the accumulators hold R rows by C columns of 32 lanes. Tensor cores
// (the other bf16 entries): a warp owns 16 rows; P and dS are rounded to bf16 before they are multiplied. In both, what
// streams past (keys and values; in _bwd_kv the group's queries and output gradients) comes in tiles through shared memory,
// and the order of every sum depends on T, H, G and D alone: never on the batch.
//
// Floor: 4 B H T^2 D operations forward and 14 B H T^2 D backward (scores and dP are computed in both of its kernels) at
// the FMA or tensor rate; qkv and out are read and written once each as long as a head's K and V stay in L2.
//
// D <= 128: the entries _narrow are for D <= 64, _wide for more. _bwd_q writes delta [B, H, T], which _bwd_kv reads.
// Launches: _fwd and _bwd_q: grid B H ceil(T / rows of a block), _bwd_kv: grid B G ceil(T / rows of a block).
//
// FMA: blocks of 128 threads, 4 R rows each: R = 8 if narrow, else 4 (_fwd) or 2 (_bwd_*). With d4 = D rounded up to 4 and
// k4 = 4 (d4 / 4 | 1) (rows apart by an odd number of 16 bytes: no bank conflicts), dynamic shared memory in floats: _fwd
// 4 R (d4 + 32) + 32 (k4 + d4), _bwd_q 4 R (2 d4 + 32) + 64 k4, _bwd_kv 4 R (2 d4 + 64) + 64 k4.
//
// Tensor cores: blocks of any number of warps up to 8, 16 rows each. With d8 = D rounded up to 16, plus 8, dynamic shared
// memory in bf16: 2 tile d8, tile = 64 rows for _fwd_narrow, else 32.
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"
#include "common/vec.cuh"

constexpr u32 WARPS = 4;

// Sizes, and where a head's rows begin: row t of q, k and v is `t * width` further on, of out `t * heads * d`.
struct Layout {
    u32 tokens, heads, kv_heads, d, d4, k4;
    u64 width;
    f32 scale;
};

DEV Layout layout_of(u32 tokens, u32 heads, u32 kv_heads, u32 d) {
    u32 d4 = round_up(d, 4u);
    return Layout{tokens, heads, kv_heads, d, d4, 4 * (d4 / 4 | 1), (u64)(heads + 2 * kv_heads) * d,
                  1.0f / sqrt_f32((f32)d)};
}
DEV u64 q_start(const Layout& at, u32 sample, u32 head) {
    return (u64)sample * at.tokens * at.width + (u64)head * at.d;
}
DEV u64 k_start(const Layout& at, u32 sample, u32 group) { return q_start(at, sample, at.heads + group); }
DEV u64 v_start(const Layout& at, u32 sample, u32 group) { return q_start(at, sample, at.heads + at.kv_heads + group); }
DEV u64 out_start(const Layout& at, u32 sample, u32 head) {
    return ((u64)sample * at.tokens * at.heads + head) * at.d;
}

// `rows` rows from global memory, `stride` apart, into shared memory as f32, `to_stride` apart, times `factor`. What lies
// beyond `count` rows or d columns becomes zero.
template <typename T>
DEV void load_tile(f32* to, u32 to_stride, const T* from, u64 stride, u32 rows, u32 count, const Layout& at,
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
#pragma unroll
    for (u32 r = 0; r < R; r++) s[r] = 0.0f;
#pragma unroll 2
    for (u32 c = 0; c < at.d4; c += 4) {
        Pack4<f32> y = *reinterpret_cast<const Pack4<f32>*>(b + c);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            Pack4<f32> x = *reinterpret_cast<const Pack4<f32>*>(a + r * at.d4 + c);
#pragma unroll
            for (u32 i = 0; i < 4; i++) s[r] = fma_f32(x.v[i], y.v[i], s[r]);
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
#pragma unroll
        for (u32 r = 0; r < R; r++) x[r] = *reinterpret_cast<const Pack4<f32>*>(p + r * WARP + k);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 j = 0; j < C; j++) {
                u32 c = lane + WARP * j;
                f32 y = c < at.d4 ? b[(k + i) * stride + c] : 0.0f;
#pragma unroll
                for (u32 r = 0; r < R; r++) acc[r][j] = fma_f32(x[r].v[i], y, acc[r][j]);
            }
        }
    }
}

// Writes or adds R rows of accumulators, times `factor`, to rows `stride` apart; `count` of them exist.
template <typename T, u32 R, u32 C>
DEV void store_rows(T* to, u64 stride, u32 count, const f32 (&acc)[R][C], f32 factor, u32 lane, u32 accumulate,
                    const Layout& at) {
#pragma unroll
    for (u32 r = 0; r < R; r++) {
#pragma unroll
        for (u32 j = 0; j < C; j++) {
            u32 c = lane + WARP * j;
            if (r >= count || c >= at.d) continue;
            T* p = to + r * stride + c;
            f32 value = acc[r][j] * factor;
            store_f32(p, accumulate != 0 ? to_f32(*p) + value : value);
        }
    }
}

template <typename T, u32 C, u32 R>
DEV void attention_fwd(T* __restrict__ out, f32* __restrict__ lse, const T* __restrict__ qkv, u32 tokens,
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
    const T* k_rows = qkv + k_start(at, sample, group);
    const T* v_rows = qkv + v_start(at, sample, group);
    load_tile(q, at.d4, qkv + q_start(at, sample, head) + first * at.width, at.width, ROWS, at.tokens - first, at,
              at.scale);
    u32 row = first + warp * R;

    f32 acc[R][C] = {}, m[R], l[R];
#pragma unroll
    for (u32 r = 0; r < R; r++) {
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
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            f32 score = lane < count ? s[r] : -infinity_f32();
            f32 largest = max_f32(m[r], warp_max(score));
            f32 weight = exp_f32(score - largest), keep = exp_f32(m[r] - largest);
            m[r] = largest;
            l[r] = l[r] * keep + warp_sum(weight);
#pragma unroll
            for (u32 j = 0; j < C; j++) acc[r][j] *= keep;
            p[r * WARP + lane] = weight;
        }
        __syncwarp();
        tile_accumulate(acc, p, v, at.d4, count, lane, at);
    }
    if (row >= at.tokens) return;
#pragma unroll
    for (u32 r = 0; r < R; r++) {
#pragma unroll
        for (u32 j = 0; j < C; j++) acc[r][j] /= l[r];
        if (lane == r && row + r < at.tokens) lse[(u64)slice * at.tokens + row + r] = m[r] + log_f32(l[r]);
    }
    u64 stride = (u64)at.heads * at.d;
    store_rows(out + out_start(at, sample, head) + row * stride, stride, at.tokens - row, acc, 1.0f, lane, 0, at);
}

template <typename T, u32 C, u32 R>
DEV void attention_bwd_q(T* __restrict__ dqkv, f32* __restrict__ delta, const T* __restrict__ dout,
                         const T* __restrict__ out, const f32* __restrict__ lse, const T* __restrict__ qkv, u32 tokens,
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
    const T* k_rows = qkv + k_start(at, sample, group);
    const T* v_rows = qkv + v_start(at, sample, group);
    u64 q_rows = q_start(at, sample, head), stride = (u64)at.heads * at.d, rows = out_start(at, sample, head);
    load_tile(q, at.d4, qkv + q_rows + first * at.width, at.width, ROWS, at.tokens - first, at, at.scale);
    load_tile(dy, at.d4, dout + rows + first * stride, stride, ROWS, at.tokens - first, at, 1.0f);
    __syncthreads();

    u32 row = first + warp * R;
    f32 acc[R][C] = {}, lse_of[R], delta_of[R];
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        u32 mine = min_of(row + r, at.tokens - 1);
        f32 sum = 0.0f;
        for (u32 c = lane; c < at.d; c += WARP)
            sum = fma_f32(dy[(warp * R + r) * at.d4 + c], to_f32(out[rows + mine * stride + c]), sum);
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
#pragma unroll
        for (u32 r = 0; r < R; r++)
            ds[r * WARP + lane] = lane < count ? exp_f32(s[r] - lse_of[r]) * (dp[r] - delta_of[r]) : 0.0f;
        __syncwarp();
        tile_accumulate(acc, ds, k, at.k4, count, lane, at);
    }
    if (row >= at.tokens) return;
    store_rows(dqkv + q_rows + row * at.width, at.width, at.tokens - row, acc, at.scale, lane, accumulate, at);
}

template <typename T, u32 C, u32 R>
DEV void attention_bwd_kv(T* __restrict__ dqkv, const T* __restrict__ dout, const f32* __restrict__ lse,
                          const f32* __restrict__ delta, const T* __restrict__ qkv, u32 tokens,
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
        const T* q_rows = qkv + q_start(at, sample, head);
        const T* dy_rows = dout + out_start(at, sample, head);
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
#pragma unroll
            for (u32 r = 0; r < R; r++) {
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

// The same on the tensor cores, for bf16. A warp owns 16 rows (an A fragment's); what streams past comes in tiles of KEYS
// rows, as bf16, rows d8 elements apart (an odd number of 16 bytes: ldmatrix without bank conflicts). Weights and dS are
// rounded to bf16 before they are multiplied; scores, softmax and accumulators are f32. The first operand's fragments
// come straight from global memory, once.

struct __align__(16) Words4 {
    u32 w[4];
};

DEV u32 pack_bf16(f32 low, f32 high) {
    return (u32)bf16_from_f32(low).bits | (u32)bf16_from_f32(high).bits << 16;
}

// The words of A fragments at rows `row` and `row + 8` (zeros from row `rows` on), for steps of 16 columns.
template <u32 STEPS>
DEV void load_fragments(u32 (&a)[STEPS][4], const bf16* from, u64 stride, u32 row, u32 rows, u32 d, u32 t) {
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 r = row + i % 2 * 8, c = 16 * step + i / 2 * 8 + 2 * t;
            const bf16* p = from + r * stride + c;
            u32 low = r < rows && c < d ? p[0].bits : 0, high = r < rows && c + 1 < d ? p[1].bits : 0;
            a[step][i] = low | high << 16;
        }
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

// s[j] = the products of the warp's 16 rows with the tile's rows 8 j .. 8 j + 8; the first `pairs` pairs of j only.
template <u32 STEPS, u32 PAIRS>
DEV void fragment_dots(f32 (&s)[2 * PAIRS][4], const u32 (&a)[STEPS][4], const bf16* tile, u32 d8, u32 steps,
                       u32 pairs, u32 lane) {
    const bf16* at = tile + (lane / 16 * 8 + lane % 8) * d8 + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 j = 0; j < PAIRS; j++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) s[2 * j][i] = s[2 * j + 1][i] = 0.0f;
        if (j >= pairs) continue;
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            if (step >= steps) continue;
            u32 words[4];
            ldmatrix_x4(words, at + 16 * j * d8 + 16 * step);
            u32 first[2] = {words[0], words[1]}, second[2] = {words[2], words[3]};
            mma_m16n8k16(s[2 * j], a[step], first);
            mma_m16n8k16(s[2 * j + 1], a[step], second);
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
        u32 a[4] = {pack_bf16(p[2 * j][0], p[2 * j][1]), pack_bf16(p[2 * j][2], p[2 * j][3]),
                    pack_bf16(p[2 * j + 1][0], p[2 * j + 1][1]), pack_bf16(p[2 * j + 1][2], p[2 * j + 1][3])};
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

template <u32 STEPS, u32 PAIRS>
DEV void attention_fwd_mma(bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens,
                           u32 heads, u32 kv_heads, u32 d) {
    SMEM_DYN(shared);
    constexpr u32 KEYS = 16 * PAIRS;
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 steps = ceil_div(d, 16u), d16 = 16 * steps, d8 = d16 + 8;
    bf16* k = reinterpret_cast<bf16*>(shared);
    bf16* v = k + KEYS * d8;
    u32 lane = threadIdx.x % WARP, t = lane % 4, rows = blockDim.x / WARP * 16, tiles = ceil_div(tokens, rows);
    u32 first = blockIdx.x % tiles * rows + threadIdx.x / WARP * 16, row = first + lane / 4, slice = blockIdx.x / tiles;
    u32 sample = slice / heads, head = slice % heads, group = head / (heads / kv_heads);
    const bf16* k_rows = qkv + k_start(at, sample, group);
    const bf16* v_rows = qkv + v_start(at, sample, group);
    u32 q[STEPS][4];
    load_fragments(q, qkv + q_start(at, sample, head), at.width, row, tokens, d, t);

    f32 acc[2 * STEPS][4] = {}, m[2] = {-infinity_f32(), -infinity_f32()}, l[2] = {0.0f, 0.0f};
    for (u32 key = 0; key < tokens; key += KEYS) {
        u32 count = min_of(tokens - key, KEYS), pairs = ceil_div(count, 16u);
        __syncthreads();
        load_bf16_tile(k, d8, k_rows + key * at.width, at.width, 16 * pairs, count, d, d16);
        load_bf16_tile(v, d8, v_rows + key * at.width, at.width, 16 * pairs, count, d, d16);
        __syncthreads();
        if (first >= tokens) continue;
        f32 s[2 * PAIRS][4];
        fragment_dots<STEPS, PAIRS>(s, q, k, d8, steps, pairs, lane);
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

template <u32 STEPS, u32 PAIRS>
DEV void attention_bwd_q_mma(bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout,
                             const bf16* __restrict__ out, const f32* __restrict__ lse, const bf16* __restrict__ qkv,
                             u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    constexpr u32 KEYS = 16 * PAIRS;
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 steps = ceil_div(d, 16u), d16 = 16 * steps, d8 = d16 + 8;
    bf16* k = reinterpret_cast<bf16*>(shared);
    bf16* v = k + KEYS * d8;
    u32 lane = threadIdx.x % WARP, t = lane % 4, rows = blockDim.x / WARP * 16, tiles = ceil_div(tokens, rows);
    u32 first = blockIdx.x % tiles * rows + threadIdx.x / WARP * 16, row = first + lane / 4, slice = blockIdx.x / tiles;
    u32 sample = slice / heads, head = slice % heads, group = head / (heads / kv_heads);
    const bf16* k_rows = qkv + k_start(at, sample, group);
    const bf16* v_rows = qkv + v_start(at, sample, group);
    u64 stride = (u64)heads * d, out_rows = out_start(at, sample, head);
    u32 q[STEPS][4], dy[STEPS][4];
    load_fragments(q, qkv + q_start(at, sample, head), at.width, row, tokens, d, t);
    load_fragments(dy, dout + out_rows, stride, row, tokens, d, t);

    f32 lse_of[2], delta_of[2] = {0.0f, 0.0f};
    {
        u32 y[STEPS][4];
        load_fragments(y, out + out_rows, stride, row, tokens, d, t);
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                f32 low = f32_from_bits(y[step][i] << 16) * f32_from_bits(dy[step][i] << 16);
                f32 high = f32_from_bits(y[step][i] & 0xffff0000u) * f32_from_bits(dy[step][i] & 0xffff0000u);
                delta_of[i % 2] += low + high;
            }
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
        fragment_dots<STEPS, PAIRS>(s, q, k, d8, steps, pairs, lane);
        fragment_dots<STEPS, PAIRS>(dp, dy, v, d8, steps, pairs, lane);
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

template <u32 STEPS, u32 PAIRS>
DEV void attention_bwd_kv_mma(bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const f32* __restrict__ lse,
                              const f32* __restrict__ delta, const bf16* __restrict__ qkv, u32 tokens, u32 heads,
                              u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    constexpr u32 QUERIES = 16 * PAIRS;
    const Layout at = layout_of(tokens, heads, kv_heads, d);
    u32 steps = ceil_div(d, 16u), d16 = 16 * steps, d8 = d16 + 8;
    bf16* q = reinterpret_cast<bf16*>(shared);
    bf16* dy = q + QUERIES * d8;
    u32 lane = threadIdx.x % WARP, t = lane % 4, rows = blockDim.x / WARP * 16, tiles = ceil_div(tokens, rows);
    u32 first = blockIdx.x % tiles * rows + threadIdx.x / WARP * 16, row = first + lane / 4, slice = blockIdx.x / tiles;
    u32 sample = slice / kv_heads, group = slice % kv_heads, size = heads / kv_heads;
    u64 k_rows = k_start(at, sample, group), v_rows = v_start(at, sample, group), stride = (u64)heads * d;
    u32 k[STEPS][4], v[STEPS][4];
    load_fragments(k, qkv + k_rows, at.width, row, tokens, d, t);
    load_fragments(v, qkv + v_rows, at.width, row, tokens, d, t);

    f32 dk[2 * STEPS][4] = {}, dv[2 * STEPS][4] = {};
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
            fragment_dots<STEPS, PAIRS>(s, k, q, d8, steps, pairs, lane);
            fragment_dots<STEPS, PAIRS>(dp, v, dy, d8, steps, pairs, lane);
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
            fragment_accumulate<STEPS, PAIRS>(dv, s, dy, d8, steps, pairs, lane);
            fragment_accumulate<STEPS, PAIRS>(dk, dp, q, d8, steps, pairs, lane);
        }
    }
    if (first >= tokens) return;
    f32 factor[2] = {at.scale, at.scale}, one[2] = {1.0f, 1.0f};
    store_fragments<STEPS>(dqkv + k_rows, at.width, row, tokens, d, dk, factor, t, accumulate);
    store_fragments<STEPS>(dqkv + v_rows, at.width, row, tokens, d, dv, one, t, accumulate);
}

extern "C" __global__ void __launch_bounds__(256) attention_fwd_narrow_bf16(bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d) { attention_fwd_mma<4, 4>(out, lse, qkv, tokens, heads, kv_heads, d); }
extern "C" __global__ void __launch_bounds__(128) attention_fwd_narrow_f32(f32* __restrict__ out, f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d) { attention_fwd<f32, 2, 8>(out, lse, qkv, tokens, heads, kv_heads, d); }
extern "C" __global__ void __launch_bounds__(256) attention_fwd_wide_bf16(bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d) { attention_fwd_mma<8, 2>(out, lse, qkv, tokens, heads, kv_heads, d); }
extern "C" __global__ void __launch_bounds__(128) attention_fwd_wide_f32(f32* __restrict__ out, f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d) { attention_fwd<f32, 4, 4>(out, lse, qkv, tokens, heads, kv_heads, d); }
extern "C" __global__ void __launch_bounds__(256) attention_bwd_kv_narrow_bf16(bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_kv_mma<4, 2>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate); }
extern "C" __global__ void __launch_bounds__(128) attention_bwd_kv_narrow_f32(f32* __restrict__ dqkv, const f32* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_kv<f32, 2, 8>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate); }
extern "C" __global__ void __launch_bounds__(128) attention_bwd_kv_wide_bf16(bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_kv<bf16, 4, 2>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate); }
extern "C" __global__ void __launch_bounds__(128) attention_bwd_kv_wide_f32(f32* __restrict__ dqkv, const f32* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_kv<f32, 4, 2>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate); }
extern "C" __global__ void __launch_bounds__(256) attention_bwd_q_narrow_bf16(bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out, const f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_q_mma<4, 2>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate); }
extern "C" __global__ void __launch_bounds__(128) attention_bwd_q_narrow_f32(f32* __restrict__ dqkv, f32* __restrict__ delta, const f32* __restrict__ dout, const f32* __restrict__ out, const f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_q<f32, 2, 8>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate); }
extern "C" __global__ void __launch_bounds__(128) attention_bwd_q_wide_bf16(bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out, const f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_q<bf16, 4, 2>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate); }
extern "C" __global__ void __launch_bounds__(128) attention_bwd_q_wide_f32(f32* __restrict__ dqkv, f32* __restrict__ delta, const f32* __restrict__ dout, const f32* __restrict__ out, const f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) { attention_bwd_q<f32, 4, 2>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate); }
