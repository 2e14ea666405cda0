// The sums over rows and over splits that gradients of layers end in, in fixed order; and a gradient's destination.
#pragma once
#include "common/activation.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// A gradient's destination: written, or added to.
template <typename T, u32 N>
struct Gradient {
    T* to;
    u32 cols;
    bool accumulate;
    bool wide;

    DEV Gradient make(T* to, u32 cols, u32 accumulate) {
        return Gradient{to, cols, accumulate != 0, cols % N == 0 && aligned16(to)};
    }
};
template <typename T, u32 N>
DEV void finish(const Gradient<T, N>& gradient, u32 row, u32 col, f32 (&v)[N]) {
    T* to = gradient.to + (u64)row * gradient.cols + col;
    u32 left = gradient.cols - col;
    if (gradient.accumulate) {
        f32 old[N];
        load_wide(to, left, gradient.wide, old);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += old[i];
    }
    store_wide(to, left, gradient.wide, v);
}

// dw = the sum of the splits' products, in order.
DEV void sum_splits(f32* __restrict__ dw, const f32* __restrict__ partial, u32 splits, u32 len, u32 accumulate) {
    u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= len) return;
    bool wide = len % 4 == 0 && aligned16(dw) && aligned16(partial);
    f32 sum[4], v[4];
    load_wide(partial + at, len - at, wide, sum);
#pragma unroll 4
    for (u32 split = 1; split < splits; split++) {
        load_wide(partial + (u64)split * len + at, len - at, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] += v[i];
    }
    if (accumulate != 0) {
        load_wide(dw + at, len - at, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] += v[i];
    }
    store_wide(dw + at, len - at, wide, sum);
}

// Column sums of rows `first` to `last` to partial [cols] (null: not wanted); a block takes 32 pieces of 16 bytes in y, eight
// warps share the rows. Where dz is given it holds z, and dy act'(z) takes its place and is what is summed.
template <typename T>
DEV void sum_columns(T* __restrict__ dz, f32* __restrict__ partial, const T* __restrict__ dy, u32 first, u32 last, u32 cols,
                     u32 activation) {
    constexpr u32 N = Vec16<T>::COUNT, WARPS = 8;
    SHARED(f32, column_parts, [WARPS][WARP * N]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 col0 = blockIdx.y * WARP * N, col = col0 + lane * N;
    bool wide = cols % N == 0 && aligned16(dy) && aligned16(dz);
    f32 sums[N];
#pragma unroll
    for (u32 i = 0; i < N; i++) sums[i] = 0.0f;
    if (col < cols) {
        u32 left = cols - col;
        for (u32 row = first + warp; row < last; row += WARPS) {
            u64 at = (u64)row * cols + col;
            f32 d[N];
            load_wide(dy + at, left, wide, d);
            if (dz != nullptr) {
                f32 z[N];
                load_wide(dz + at, left, wide, z);
#pragma unroll
                for (u32 i = 0; i < N; i++) d[i] *= activation_derivative<T>(z[i], activation);
                store_wide(dz + at, left, wide, d);
            }
#pragma unroll
            for (u32 i = 0; i < N; i++) sums[i] += d[i];
        }
    }
    if (partial == nullptr) return;
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
