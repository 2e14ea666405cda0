// The sums over rows and over splits that gradients of layers end in, in fixed order; and a gradient's destination.
#pragma once
#include "common/types.cuh"
#include "common/wide.cuh"

// A gradient's destination: written, or added to.
template <typename T, u32 N_>
struct Gradient {
    static constexpr u32 N = N_;
    static constexpr bool SUMS = false;
    struct Columns {};

    T* to;
    u32 cols;
    bool accumulate;
    bool wide;

    DEV Gradient make(T* to, u32 cols, u32 accumulate) {
        return Gradient{to, cols, accumulate != 0, cols % N == 0 && aligned16(to)};
    }
};
template <typename T, u32 N>
DEV void columns_of(const Gradient<T, N>&, u32, bool, typename Gradient<T, N>::Columns&) {}
template <typename T, u32 N>
DEV void finish(const Gradient<T, N>& gradient, const typename Gradient<T, N>::Columns&, u32 row, u32 col, f32 (&v)[N],
                bool wide) {
    T* to = gradient.to + (u64)row * gradient.cols + col;
    u32 left = gradient.cols - col;
    if (gradient.accumulate) {
        f32 old[N];
        load_wide(to, left, wide, old);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += old[i];
    }
    store_wide(to, left, wide, v);
}
template <typename T, u32 N>
DEV void finish(const Gradient<T, N>& gradient, u32 row, u32 col, f32 (&v)[N]) {
    finish(gradient, {}, row, col, v, gradient.wide);
}

// The gradients of weight and bias: `sums` (null: not wanted) takes the sum over r of dW's other operand.
template <u32 N_>
struct WeightGradient : Gradient<f32, N_> {
    static constexpr bool SUMS = true;

    f32* sums;
    bool accumulate_sums;
};
template <typename To>
DEV void finish_sum(const To& to, u32 row, f32 sum) {
    to.sums[row] = to.accumulate_sums ? to.sums[row] + sum : sum;
}

// The elements 4 `piece` to 4 `piece` + 3 of to [len] = the sum of the splits' [splits, stride], in order.
DEV void sum_piece(f32* __restrict__ to, const f32* __restrict__ partial, u32 piece, u32 splits, u32 len, u32 stride,
                   u32 accumulate) {
    u32 at = piece * 4;
    if (at >= len) return;
    bool wide = len % 4 == 0 && stride % 4 == 0 && aligned16(to) && aligned16(partial);
    f32 sum[4], v[4];
    load_wide(partial + at, len - at, wide, sum);
#pragma unroll 4
    for (u32 split = 1; split < splits; split++) {
        load_wide(partial + (u64)split * stride + at, len - at, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] += v[i];
    }
    if (accumulate != 0) {
        load_wide(to + at, len - at, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] += v[i];
    }
    store_wide(to + at, len - at, wide, sum);
}

// dw [len] and db [bias_len] = the sums of the splits' parts [splits, len + bias_len], in order; four elements a thread, those of db in
// threads of their own.
DEV void sum_weight(f32* __restrict__ dw, f32* __restrict__ db, const f32* __restrict__ partial, u32 splits, u32 len,
                    u32 bias_len, u32 accumulate, u32 accumulate_bias) {
    u32 piece = blockIdx.x * blockDim.x + threadIdx.x, pieces = ceil_div(len, 4u), stride = len + bias_len;
    if (piece < pieces) sum_piece(dw, partial, piece, splits, len, stride, accumulate);
    else sum_piece(db, partial + len, piece - pieces, splits, bias_len, stride, accumulate_bias);
}

// Column sums of rows `first` to `last` to partial [cols]; a block takes 32 pieces of 16 bytes in y, eight warps share the rows.
template <typename T>
DEV void sum_columns(f32* __restrict__ partial, const T* __restrict__ dy, u32 first, u32 last, u32 cols) {
    constexpr u32 N = Vec16<T>::COUNT, WARPS = 8;
    SHARED(f32, column_parts, [WARPS][WARP * N]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 col0 = blockIdx.y * WARP * N, col = col0 + lane * N;
    bool wide = cols % N == 0 && aligned16(dy);
    f32 sums[N];
#pragma unroll
    for (u32 i = 0; i < N; i++) sums[i] = 0.0f;
    if (col < cols) {
        u32 left = cols - col;
        for (u32 row = first + warp; row < last; row += WARPS) {
            f32 d[N];
            load_wide(dy + (u64)row * cols + col, left, wide, d);
#pragma unroll
            for (u32 i = 0; i < N; i++) sums[i] += d[i];
        }
    }
    store_wide(&column_parts[warp][lane * N], N, true, sums);
    __syncthreads();
    u32 c = threadIdx.x;
    if (c >= WARP * N || col0 + c >= cols) return;
    f32 sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) sum += column_parts[w][c];
    partial[col0 + c] = sum;
}

// db = the sum of the parts. A block takes 32 columns: warp w adds parts w, w + 8, .., then the first warp the eight sums.
DEV void sum_parts(f32* __restrict__ db, const f32* __restrict__ partial, u32 parts, u32 cols, u32 accumulate) {
    constexpr u32 WARPS = 8;
    SHARED(f32, bias_parts, [WARPS][WARP]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    f32 sum = 0.0f;
    if (c < cols) {
#pragma unroll 4
        for (u32 part = warp; part < parts; part += WARPS) sum += partial[(u64)part * cols + c];
    }
    bias_parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= cols) return;
    f32 total = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) total += bias_parts[w][lane];
    db[c] = accumulate != 0 ? db[c] + total : total;
}
