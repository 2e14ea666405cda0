// Linear attention on the tensor cores, for bf16 and heads of up to 64 columns; the head of linear_attention.cu says what is
// computed, and states the launches.
//
// phi(q), phi(k), and in the backward phi(q) / n, are rounded to bf16 before they are multiplied, and the same rounded values are in
// numerators and normalisers: what is computed is the average by slightly other weights. S and dS, and z and delta, in which
// differences of averages would be lost, are two bf16 each, the value rounded and what is missing. All sums are f32.
//
// z is a column of S: the values' rows have a 1 behind their D columns, and in the backward those of dy have -delta there. Rows in
// shared memory are an odd number of 16 bytes apart, d8 = D rounded up to 16, plus 8, which leaves room for these.
#pragma once
#include "common/attention_mma.cuh"

constexpr f32 LEAST = 8.673617379884035e-19f;  // 2^-60
constexpr u32 STATE_WARPS = 4;
constexpr u32 STATE_TILE = 16 * STATE_WARPS;

DEV f32 phi_approx(f32 x) { return x > 0.0f ? x + 1.0f : max_f32(exp2_approx(x * LOG2_E), LEAST); }
// From phi(x).
DEV f32 phi_slope(f32 f) { return f > LEAST ? min_f32(f, 1.0f) : 0.0f; }

// As load_rows, through phi; what does not exist becomes zero. Barriers have to follow.
DEV void load_features(bf16* to, const bf16* from, const Rows& of, u32 first, u32 rows, const Group& at, u32 thread, u32 threads) {
#pragma unroll 1
    for (u32 i = thread; i < rows * at.packs.n; i += threads) {
        u32 row = quotient(i, at.packs), c = 8 * (i - row * at.packs.n);
        u32 left = first + row < of.count && c < at.d ? at.d - c : 0;
        f32 v[8] = {};
        if (left > 0) load_wide(from + row_at(of, first + row, at) + c, left, at.wide, v);
        UNROLL for (u32 e = 0; e < 8; e++) v[e] = e < left ? phi_approx(v[e]) : 0.0f;
        store_wide(to + row * at.d8 + c, 8, true, v);
    }
}

// Two numbers behind a row's columns, the rest of the row zero.
DEV void put_behind(bf16* row, u32 steps, f32 first, f32 second) {
    Vec16<u32> words = {{bf16_pair(first, second), 0, 0, 0}};
    store16(reinterpret_cast<u32*>(row + 16 * steps), words);
}
// The remainder of rounding `value` to bf16.
DEV f32 remainder_of(f32 value) { return value - to_f32(bf16_from_f32(value)); }

// The block's shared memory: the state in two parts [D, d8], its last column in f32, two tiles of rows, and 16 rows a warp.
struct StateBlock {
    bf16 *high, *low, *x, *y, *own;
    f32* z;
};
DEV StateBlock state_block(u8* shared, const Group& at, u32 warp) {
    u32 rows = 16 * at.steps, size = rows * at.d8;
    StateBlock block;
    block.z = reinterpret_cast<f32*>(shared);
    block.high = reinterpret_cast<bf16*>(block.z + rows);
    block.low = block.high + size;
    block.x = block.low + size;
    block.y = block.x + STATE_TILE * at.d8;
    block.own = block.y + (STATE_TILE + 16 * warp) * at.d8;
    return block;
}

// A warp's part of a state's sums: 16 of its rows (`step`) by columns from 16 `first` on, `each` times 16, and what is behind
// the columns.
struct StateSums {
    u32 step, first, each;
    f32 m[4][2][4], behind[4];
};
DEV StateSums state_sums(const Group& at, u32 warp) {
    u32 parts = STATE_WARPS / at.steps;
    StateSums sums = {};
    sums.each = ceil_div(at.steps, parts);
    sums.step = warp % at.steps, sums.first = warp / at.steps * sums.each;
    return sums;
}

// sums += x^T y over `rows` rows (a multiple of 16).
DEV void add_products(StateSums& sums, const bf16* x, const bf16* y, u32 rows, const Group& at, u32 lane) {
    SharedAddress x_at = columns_start(x, at.d8, lane) + 32 * sums.step;
    SharedAddress y_at = rows_start(y, at.d8, lane);
#pragma unroll 1
    for (u32 row = 0; row < rows; row += 16) {
        if (sums.first >= at.steps) break;
        u32 a[4], b[4], behind[2];
        ldmatrix_x4_trans(a, x_at + 2 * row * at.d8);
        UNROLL for (u32 j = 0; j < 4; j++) {
            if (j >= sums.each || sums.first + j >= at.steps) continue;
            ldmatrix_x4_trans(b, y_at + 2 * row * at.d8 + 32 * (sums.first + j));
            mma_pair<bf16>(sums.m[j], a, b, true);
        }
        if (sums.first > 0) continue;
        ldmatrix_x2_trans(behind, y + (row + lane % 16) * at.d8 + 16 * at.steps);
        mma_m16n8k16(sums.behind, a, behind);
    }
}

// The block's sums as a state. A barrier has to follow.
DEV void put_state(const StateBlock& block, const StateSums& sums, const Group& at, u32 lane) {
    if (sums.first >= at.steps) return;
    UNROLL for (u32 half = 0; half < 2; half++) {
        u32 row = 16 * sums.step + lane / 4 + 8 * half;
        UNROLL for (u32 n = 0; n < 8; n++) {
            if (n / 2 >= sums.each || sums.first + n / 2 >= at.steps) continue;
            f32 left = sums.m[n / 2][n % 2][2 * half], right = sums.m[n / 2][n % 2][2 * half + 1];
            u32 place = row * at.d8 + 16 * sums.first + 8 * n + lane % 4 * 2;
            *reinterpret_cast<u32*>(block.high + place) = bf16_pair(left, right);
            *reinterpret_cast<u32*>(block.low + place) = bf16_pair(remainder_of(left), remainder_of(right));
        }
        if (sums.first > 0 || lane % 4 > 0) continue;
        f32 z = sums.behind[2 * half] + sums.behind[2 * half + 1];
        block.z[row] = z;
        put_behind(block.high + row * at.d8, at.steps, z, remainder_of(z));
    }
}

// out = 16 rows times the state, or times its transpose.
template <bool TRANSPOSED>
DEV void times_state(f32 (&out)[4][2][4], const bf16* rows, const StateBlock& block, const Group& at, u32 lane) {
    SharedAddress high = TRANSPOSED ? columns_start(block.high, at.d8, lane) : rows_start(block.high, at.d8, lane);
    u32 low = 32 * at.steps * at.d8;
    UNROLL for (u32 n = 0; n < 8; n++) {
        UNROLL for (u32 i = 0; i < 4; i++) out[n / 2][n % 2][i] = 0.0f;
    }
    UNROLL for (u32 k = 0; k < 4; k++) {
        if (k >= at.steps) continue;
        u32 a[4], b[4];
        ldmatrix_x4(a, own_start(rows, at.d8, lane) + 32 * k);
        UNROLL for (u32 step = 0; step < 4; step++) {
            if (step >= at.steps) continue;
            SharedAddress p = high + 32 * (TRANSPOSED ? step * at.d8 + k : k * at.d8 + step);
            if (TRANSPOSED) ldmatrix_x4(b, p);
            else ldmatrix_x4_trans(b, p);
            mma_pair<bf16>(out[step], a, b, true);
            if (TRANSPOSED) ldmatrix_x4(b, p + low);
            else ldmatrix_x4_trans(b, p + low);
            mma_pair<bf16>(out[step], a, b, true);
        }
    }
}

// 1 / n of a lane's two rows from `row` on: features times z; 0 where there is no row.
DEV void row_inverses(f32 (&inverse)[2], const bf16* features, const StateBlock& block, u32 row, const Group& at, u32 lane) {
    f32 n[4] = {};
    UNROLL for (u32 k = 0; k < 4; k++) {
        if (k >= at.steps) continue;
        u32 a[4], b[2];
        ldmatrix_x4(a, own_start(features, at.d8, lane) + 32 * k);
        ldmatrix_x2_trans(b, block.high + (16 * k + lane % 16) * at.d8 + 16 * at.steps);
        mma_m16n8k16(n, a, b);
    }
    UNROLL for (u32 half = 0; half < 2; half++) {
        f32 sum = __shfl_sync(FULL_MASK, n[2 * half] + n[2 * half + 1], lane / 4 * 4);
        inverse[half] = row + 8 * half < at.q.count ? 1.0f / sum : 0.0f;
    }
}

// S and z of all keys and values.
DEV void sum_state(const StateBlock& block, const bf16* qkv, const Group& at, u32 warp, u32 lane) {
    StateSums sums = state_sums(at, warp);
    for (u32 t = 0; t < at.k.count; t += STATE_TILE) {
        u32 rows = min_of(round_up(at.k.count - t, 16u), STATE_TILE);
        if (t > 0) __syncthreads();
        load_features(block.x, qkv, at.k, t, rows, at, threadIdx.x, blockDim.x);
        load_rows(block.y, at.d8, qkv, at.v, t, rows, at, threadIdx.x, blockDim.x);
        for (u32 row = threadIdx.x; row < rows; row += blockDim.x) put_behind(block.y + row * at.d8, at.steps, 1.0f, 0.0f);
        arrive_in_block();
        add_products(sums, block.x, block.y, rows, at, lane);
    }
    put_state(block, sums, at, lane);
    __syncthreads();
}

// The last two numbers are the other form's.
DEV void linear_attention_fwd_mma(bf16* __restrict__ y, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 d, u32, u32) {
    SMEM_DYN(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Group at = group_of<bf16>(blockIdx.x, tokens, heads, heads, d, aligned16(qkv) && aligned16(y));
    const StateBlock block = state_block(shared, at, warp);
    sum_state(block, qkv, at, warp, lane);
    for (u32 row = 16 * warp; row < tokens; row += STATE_TILE) {
        __syncwarp();
        load_features(block.own, qkv, at.q, row, 16, at, lane, WARP);
        __syncwarp();
        f32 out[4][2][4], inverse[2];
        times_state<false>(out, block.own, block, at, lane);
        row_inverses(inverse, block.own, block, row + lane / 4, at, lane);
        store_own<4>(y, at.out, row, block.own, at.d8, out, inverse, at, lane, false);
    }
}

// dq of 16 rows, whose phi(q) becomes phi(q) / n, and whose dy gets -delta behind it.
DEV void queries_backward(bf16* dqkv, bf16* features, bf16* dy, u32 row, const StateBlock& block, const Group& at, u32 lane,
                          bool add) {
    f32 u[4][2][4], inverse[2], delta[2] = {0.0f, 0.0f};
    times_state<true>(u, dy, block, at, lane);
    row_inverses(inverse, features, block, row + lane / 4, at, lane);
    u32 f[4][4];
    UNROLL for (u32 step = 0; step < 4; step++) {
        if (step >= at.steps) continue;
        ldmatrix_x4(f[step], own_start(features, at.d8, lane) + 32 * step);
        UNROLL for (u32 i = 0; i < 4; i++) {
            f32 low = bf16_low(f[step][i]) * u[step][i / 2][i % 2 * 2];
            delta[i % 2] = fma_f32(bf16_high(f[step][i]), u[step][i / 2][i % 2 * 2 + 1], delta[i % 2] + low);
        }
    }
    UNROLL for (u32 half = 0; half < 2; half++) delta[half] = quad_sum(delta[half]) * inverse[half];
    __syncwarp();
    UNROLL for (u32 step = 0; step < 4; step++) {
        if (step >= at.steps) continue;
        UNROLL for (u32 i = 0; i < 4; i++) {
            u32 half = i % 2, c = 16 * step + i / 2 * 8 + lane % 4 * 2;
            f32 left = bf16_low(f[step][i]), right = bf16_high(f[step][i]);
            f32(&pair)[4] = u[step][i / 2];
            pair[2 * half] = fma_f32(-delta[half], block.z[c], pair[2 * half]) * phi_slope(left);
            pair[2 * half + 1] = fma_f32(-delta[half], block.z[c + 1], pair[2 * half + 1]) * phi_slope(right);
            u32* place = reinterpret_cast<u32*>(features + (lane / 4 + 8 * half) * at.d8 + c);
            *place = bf16_pair(left * inverse[half], right * inverse[half]);
        }
    }
    UNROLL for (u32 half = 0; half < 2; half++)
        if (lane % 4 == 0) put_behind(dy + (lane / 4 + 8 * half) * at.d8, at.steps, -delta[half], -remainder_of(delta[half]));
    store_own<4>(dqkv, at.q, row, block.own, at.d8, u, inverse, at, lane, add);
}

// dk and dv of 16 rows, from dS and dz.
DEV void keys_backward(bf16* dqkv, const bf16* features, const bf16* values, u32 row, const StateBlock& block, const Group& at,
                       u32 lane, bool add) {
    f32 sums[4][2][4], one[2] = {1.0f, 1.0f};
    times_state<false>(sums, features, block, at, lane);
    store_own<4>(dqkv, at.v, row, block.own, at.d8, sums, one, at, lane, add);
    times_state<true>(sums, values, block, at, lane);
    UNROLL for (u32 step = 0; step < 4; step++) {
        if (step >= at.steps) continue;
        u32 g[4];
        ldmatrix_x4(g, own_start(features, at.d8, lane) + 32 * step);
        UNROLL for (u32 i = 0; i < 4; i++) {
            u32 half = i % 2, c = 16 * step + i / 2 * 8 + lane % 4 * 2;
            f32(&pair)[4] = sums[step][i / 2];
            pair[2 * half] = (pair[2 * half] + block.z[c]) * phi_slope(bf16_low(g[i]));
            pair[2 * half + 1] = (pair[2 * half + 1] + block.z[c + 1]) * phi_slope(bf16_high(g[i]));
        }
    }
    store_own<4>(dqkv, at.k, row, block.own, at.d8, sums, one, at, lane, add);
}

DEV void linear_attention_bwd_mma(bf16* __restrict__ dqkv, const bf16* __restrict__ dy, const bf16* __restrict__ qkv, u32 tokens,
                                  u32 heads, u32 d, u32, u32, u32 accumulate) {
    SMEM_DYN(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Group at = group_of<bf16>(blockIdx.x, tokens, heads, heads, d, aligned16(qkv) && aligned16(dy) && aligned16(dqkv));
    const StateBlock block = state_block(shared, at, warp);
    sum_state(block, qkv, at, warp, lane);

    bf16 *x = block.x + 16 * warp * at.d8, *y = block.y + 16 * warp * at.d8;
    StateSums sums = state_sums(at, warp);
    for (u32 t = 0; t < tokens; t += STATE_TILE) {
        u32 row = t + 16 * warp;
        if (t > 0) __syncthreads();
        if (row < tokens) {
            load_features(x, qkv, at.q, row, 16, at, lane, WARP);
            load_rows(y, at.d8, dy, at.out, row, 16, at, lane, WARP);
            arrive_in_warp();
            queries_backward(dqkv, x, y, row, block, at, lane, accumulate != 0);
        }
        __syncthreads();
        add_products(sums, block.x, block.y, min_of(round_up(tokens - t, 16u), STATE_TILE), at, lane);
    }
    put_state(block, sums, at, lane);
    __syncthreads();
    for (u32 row = 16 * warp; row < tokens; row += STATE_TILE) {
        __syncwarp();
        load_features(x, qkv, at.k, row, 16, at, lane, WARP);
        load_rows(y, at.d8, qkv, at.v, row, 16, at, lane, WARP);
        arrive_in_warp();
        keys_backward(dqkv, x, y, row, block, at, lane, accumulate != 0);
    }
}
