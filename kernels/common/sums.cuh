// A gradient's destination; and the sums over rows of part of a matrix, in fixed order, which gradient_sums.cu puts together.
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
        UNROLL for (u32 i = 0; i < N; i++) v[i] += old[i];
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

// Column sums of rows `first` to `last` to partial [cols]; a block takes 32 pieces of 16 bytes in y, eight warps share the rows.
template <typename T>
DEV void sum_columns(f32* __restrict__ partial, const T* __restrict__ dy, u32 first, u32 last, u32 cols) {
    constexpr u32 N = Vec16<T>::COUNT, WARPS = 8;
    SHARED(f32, column_parts, [WARPS][WARP * N]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 col0 = blockIdx.y * WARP * N, col = col0 + lane * N;
    bool wide = cols % N == 0 && aligned16(dy);
    f32 sums[N];
    UNROLL for (u32 i = 0; i < N; i++) sums[i] = 0.0f;
    if (col < cols) {
        u32 left = cols - col;
        for (u32 row = first + warp; row < last; row += WARPS) {
            f32 d[N];
            load_wide(dy + (u64)row * cols + col, left, wide, d);
            UNROLL for (u32 i = 0; i < N; i++) sums[i] += d[i];
        }
    }
    store_wide(&column_parts[warp][lane * N], N, true, sums);
    __syncthreads();
    u32 c = threadIdx.x;
    if (c >= WARP * N || col0 + c >= cols) return;
    f32 sum = 0.0f;
    UNROLL for (u32 w = 0; w < WARPS; w++) sum += column_parts[w][c];
    partial[col0 + c] = sum;
}
