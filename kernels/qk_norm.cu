// Root mean square norm of each query and key head (Zhang and Sennrich 2019, arXiv 1910.07467; as QK-norm in Dehghani et
// al. 2023, arXiv 2302.05442).
//
// x, y [rows, (H + 2 G) D], columns [q heads | k heads | v heads]. For each q and k slice of D columns:
//
//   r = 1 / sqrt(sum x^2 / D + eps), n = x r, y = n w          w: q_weight or k_weight [D], f32 masters
//   dx = r (g - n sum(g n) / D), g = w dy; dw = sum(dy n) over rows and heads
//
// and v slices are copied. r is saved as rstd [rows, H + G]. `accumulate` != 0 adds to the destination.
//
// Eight lanes share a slice, 4 columns each at a time: neighbouring slices are neighbours in memory, so a warp's accesses
// are too. _bwd_partial reads dy and x once for dx and the weights' gradients: a block takes rows_per_part rows, each
// lane sums over its slices, then the block over its 32 teams, in order; _bwd_final adds the blocks' sums in order. The
// parts depend on the number of rows alone.
//
// Floor: x and y (forward), x, dy and dx (backward) over the bandwidth.
//
// D <= 128. Launches: _fwd: blocks of 256, ceil(rows (H + 2 G) / 32) of them. _bwd_partial: blocks of exactly 256, one per
// part, partial [parts, 2, D]. _bwd_final: blocks of exactly 256, ceil(2 D / 32) of them; a null destination is skipped.
#include "common/entry.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"
#include "common/vec.cuh"

constexpr u32 TEAM = 8;
constexpr u32 TEAMS = 32;
constexpr u32 CHUNKS = 4;

// The sum over a team's eight lanes, in every lane. All lanes of the warp call.
DEV f32 team_sum(f32 v) {
    UNROLL for (u32 distance = TEAM / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(FULL_MASK, v, distance);
    return v;
}

KERNELS(qk_norm_fwd, (256), (Out<T> y, Out<f32> rstd, In<T> x, In<f32> q_weight, In<f32> k_weight, u32 rows, u32 heads, u32 kv_heads, u32 d, f32 eps),
        (y, rstd, x, q_weight, k_weight, rows, heads, kv_heads, d, eps)) {
    u32 slices = heads + 2 * kv_heads, normed = heads + kv_heads, lane = threadIdx.x % TEAM;
    u64 all = (u64)rows * slices, mine = (u64)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    // A team beyond the end repeats the last slice up to the shuffles, which need the whole warp.
    bool exists = mine < all;
    u64 slice = exists ? mine : all - 1, row = slice / slices;
    u32 head = (u32)(slice % slices);
    bool wide = d % 4 == 0 && aligned4(x) && aligned4(y);
    const f32* weight = head < heads ? q_weight : k_weight;
    f32 v[CHUNKS][4], sum = 0.0f;
    UNROLL for (u32 j = 0; j < CHUNKS; j++) {
        u32 c = 4 * lane + 4 * TEAM * j;
        if (c >= d) continue;
        load4(x + slice * d + c, d - c, wide, v[j]);
        UNROLL for (u32 i = 0; i < 4; i++) sum = fma_f32(v[j][i], v[j][i], sum);
    }
    f32 r = 1.0f / sqrt_f32(team_sum(sum) / (f32)d + eps);
    if (!exists) return;
    if (head < normed && lane == 0) rstd[row * normed + head] = r;
    UNROLL for (u32 j = 0; j < CHUNKS; j++) {
        u32 c = 4 * lane + 4 * TEAM * j;
        if (c >= d) continue;
        if (head < normed) {
            UNROLL for (u32 i = 0; i < 4; i++)
                if (c + i < d) v[j][i] = v[j][i] * r * weight[c + i];
        }
        store4(y + slice * d + c, d - c, wide, v[j]);
    }
}

KERNELS(qk_norm_bwd_partial, (256), (Out<T> dx, Out<f32> partial, In<T> dy, In<T> x, In<f32> rstd, In<f32> q_weight, In<f32> k_weight, u32 rows,
        u32 heads, u32 kv_heads, u32 d, u32 rows_per_part, u32 accumulate),
        (dx, partial, dy, x, rstd, q_weight, k_weight, rows, heads, kv_heads, d, rows_per_part, accumulate)) {
    SHARED(f32, sums, [TEAMS][4 * TEAM * CHUNKS]);
    u32 slices = heads + 2 * kv_heads, normed = heads + kv_heads, lane = threadIdx.x % TEAM, team = threadIdx.x / TEAM;
    u32 first = blockIdx.x * rows_per_part, count = min_of(rows_per_part, rows - first) * slices;
    bool wide = d % 4 == 0 && aligned4(x) && aligned4(dy) && aligned4(dx);
    f32 dw[2][CHUNKS][4] = {};
    for (u32 start = 0; start < count; start += TEAMS) {
        bool exists = start + team < count;
        u32 local = exists ? start + team : count - 1, head = local % slices;
        u64 row = first + local / slices, at = (row * slices + head) * d;
        bool norm = head < normed, query = head < heads;
        const f32* weight = query ? q_weight : k_weight;
        f32 r = norm ? rstd[row * normed + head] : 1.0f;
        f32 g[CHUNKS][4], n[CHUNKS][4], sum = 0.0f;
        UNROLL for (u32 j = 0; j < CHUNKS; j++) {
            u32 c = 4 * lane + 4 * TEAM * j;
            if (c >= d) continue;
            load4(dy + at + c, d - c, wide, g[j]);
            if (!norm) continue;
            load4(x + at + c, d - c, wide, n[j]);
            UNROLL for (u32 i = 0; i < 4; i++) {
                n[j][i] *= r;
                f32 product = exists ? g[j][i] * n[j][i] : 0.0f;
                dw[0][j][i] += query ? product : 0.0f;
                dw[1][j][i] += query ? 0.0f : product;
                g[j][i] *= c + i < d ? weight[c + i] : 0.0f;
                sum = fma_f32(g[j][i], n[j][i], sum);
            }
        }
        f32 mean = team_sum(sum) / (f32)d;
        if (!exists) continue;
        UNROLL for (u32 j = 0; j < CHUNKS; j++) {
            u32 c = 4 * lane + 4 * TEAM * j;
            if (c >= d) continue;
            f32 old[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (accumulate != 0) load4(dx + at + c, d - c, wide, old);
            UNROLL for (u32 i = 0; i < 4; i++) g[j][i] = old[i] + (norm ? r * (g[j][i] - n[j][i] * mean) : g[j][i]);
            store4(dx + at + c, d - c, wide, g[j]);
        }
    }
    UNROLL for (u32 which = 0; which < 2; which++) {
        __syncthreads();
        UNROLL for (u32 j = 0; j < CHUNKS; j++)
            UNROLL for (u32 i = 0; i < 4; i++) sums[team][4 * lane + 4 * TEAM * j + i] = dw[which][j][i];
        __syncthreads();
        if (threadIdx.x < d) {
            f32 total = 0.0f;
            for (u32 t = 0; t < TEAMS; t++) total += sums[t][threadIdx.x];
            partial[((u64)blockIdx.x * 2 + which) * d + threadIdx.x] = total;
        }
    }
}

// A block sums 32 of the 2 D columns: warp w takes parts w, w + 8, ..; then the first warp adds the eight sums in order.
KERNEL(qk_norm_bwd_final, (256), (Out<f32> dq_weight, Out<f32> dk_weight, In<f32> partial, u32 parts, u32 d, u32 accumulate_q, u32 accumulate_k),
       (dq_weight, dk_weight, partial, parts, d, accumulate_q, accumulate_k)) {
    constexpr u32 STRIPS = 8;
    SHARED(f32, tile, [STRIPS][WARP]);
    u32 lane = threadIdx.x % WARP, strip = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    f32 sum = 0.0f;
    if (c < 2 * d)
        for (u32 part = strip; part < parts; part += STRIPS) sum += partial[(u64)part * 2 * d + c];
    tile[strip][lane] = sum;
    __syncthreads();
    if (strip > 0 || c >= 2 * d) return;
    f32 total = 0.0f;
    for (u32 s = 0; s < STRIPS; s++) total += tile[s][lane];
    f32* to = c < d ? dq_weight : dk_weight;
    if (to == nullptr) return;
    to += c < d ? c : c - d;
    *to = (c < d ? accumulate_q : accumulate_k) != 0 ? *to + total : total;
}
