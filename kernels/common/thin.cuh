// A 3x3 convolution one side of which has few channels, N = 1 to 4 (an image's): no product on tiles, but sums in registers. The wide side's
// channels have a lane each for two of them, and the N by nine weights, or their gradients, of these stay in registers.
//
//   flipped = 0: y[i, j, c] = bias[c] + sum over (ky, kx, n) of W[c, ky, kx, n] thin[i + ky - 1, j + kx - 1, n]
//                dW[c, ky, kx, n] = sum over pixels (i, j) of wide[i, j, c] thin[i + ky - 1, j + kx - 1, n]     wide is dy, thin is x
//   flipped = 1: dx[i, j, c] = sum over (ky, kx, n) of W[n, ky, kx, c] thin[i + 1 - ky, j + 1 - kx, n]
//                dW[n, ky, kx, c] = sum over pixels (i, j) of wide[i, j, c] thin[i + 1 - ky, j + 1 - kx, n]     wide is x, thin is dy
//
// A block of four warps takes 64 wide channels and one patch (of dW some) of 8 rows by 32 columns, of which it has the thin channels and a
// border in shared memory; a warp two rows of each. Sums over taps go from the first neighbour, above left, to the last. The sums of dW are
// those of a warp's pixels in order, then of the warps in order, then of the blocks.
//
// Floor of y and dx: the wide side written once; 27 multiply-adds an element of it with N = 3 take about 1.5 times that on an H100.
//
// Launch: 128 threads, y and dx: grid [patches, ceil(wide channels / 64)]. dW: grid [splits, ceil(wide channels / 64)]; split s takes
// `of_split` patches, of image after image.
#pragma once
#include "common/types.cuh"
#include "common/wide.cuh"

constexpr u32 THIN_ROWS = 8, THIN_COLS = 32, THIN_WARPS = 4, THIN_AHEAD = 4;

template <typename T>
struct ThinSizes {
    const T* wide;
    const T* thin;
    bool even;
    u32 height, width, wide_channels, thin_channels, patches, of_split;
};

// Two neighbouring channels; `even` where their address is a multiple of 4.
DEV void load_pair(const f32* p, bool, f32 (&v)[2]) {
    v[0] = p[0];
    v[1] = p[1];
}
DEV void load_pair(const bf16* p, bool even, f32 (&v)[2]) {
    u32 word = even ? *reinterpret_cast<const u32*>(p) : (u32)p[0].bits | (u32)p[1].bits << 16;
    v[0] = bf16_low(word);
    v[1] = bf16_high(word);
}

// Writes them, rounded, or adds them.
DEV void put_pair(f32* p, bool, bool add, const f32 (&v)[2]) {
    p[0] = add ? p[0] + v[0] : v[0];
    p[1] = add ? p[1] + v[1] : v[1];
}
DEV void put_pair(bf16* p, bool even, bool add, const f32 (&v)[2]) {
    f32 old[2] = {0.0f, 0.0f};
    if (add) load_pair(p, even, old);
    u32 pair = bf16_pair(v[0] + old[0], v[1] + old[1]);
    if (even) {
        *reinterpret_cast<u32*>(p) = pair;
    } else {
        p[0].bits = (u16)pair;
        p[1].bits = (u16)(pair >> 16);
    }
}

// The thin channels of the patch at (row0, col0) of a sample and its border, zeros outside of the image and from channel N on.
template <u32 N, typename T>
DEV void thin_tile(f32 (&tile)[THIN_ROWS + 2][THIN_COLS + 2][4], const ThinSizes<T>& sizes, u32 sample, u32 row0, u32 col0) {
    for (u32 i = threadIdx.x; i < (THIN_ROWS + 2) * (THIN_COLS + 2); i += THIN_WARPS * WARP) {
        u32 row = i / (THIN_COLS + 2), col = i % (THIN_COLS + 2);
        // Before the first row or column these wrap around, and are too large as well.
        u32 y = row0 + row - 1, x = col0 + col - 1;
        bool inside = y < sizes.height && x < sizes.width;
        f32 v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const T* from = sizes.thin + (((u64)sample * sizes.height + y) * sizes.width + x) * N;
        UNROLL for (u32 n = 0; n < N; n++)
            if (inside) v[n] = to_f32(from[n]);
        store_wide(&tile[row][col][0], 4, true, v);
    }
}

// Two channels of a row of y or dx, from the tile's row above it on.
template <u32 N, typename T>
DEV void thin_row(T* to, const f32 (&tile)[THIN_ROWS + 2][THIN_COLS + 2][4], const f32 (&w)[9][N][2], const f32 (&bias)[2], u32 row, u32 cols,
                  u32 stride, bool even, bool add) {
    // With all four channels more would not fit in registers.
    constexpr u32 AHEAD = N == 4 ? 2 : THIN_AHEAD;
#pragma unroll 1
    for (u32 col = 0; col < cols; col += AHEAD) {
        f32 sums[AHEAD][2] = {};
        UNROLL for (u32 ky = 0; ky < 3; ky++) {
            f32 around[AHEAD + 2][4];
            UNROLL for (u32 i = 0; i < AHEAD + 2; i++) load_wide(&tile[row + ky][col + i][0], 4, true, around[i]);
            UNROLL for (u32 kx = 0; kx < 3; kx++)
                UNROLL for (u32 n = 0; n < N; n++)
                    UNROLL for (u32 i = 0; i < AHEAD; i++)
                        UNROLL for (u32 j = 0; j < 2; j++)
                            sums[i][j] = fma_f32(w[3 * ky + kx][n][j], around[i + kx][n], sums[i][j]);
        }
        UNROLL for (u32 i = 0; i < AHEAD; i++) {
            if (col + i >= cols) continue;
            f32 v[2] = {sums[i][0] + bias[0], sums[i][1] + bias[1]};
            put_pair(to + (u64)(col + i) * stride, even, add, v);
        }
    }
}

// The block's weights [64 wide channels, 9 neighbours, N] in w, which has room for N = 4, zeros beyond the last channel: rows of W or, flipped,
// columns, the last tap first.
template <u32 N, typename T>
DEV void thin_weights(f32 (&w)[2 * WARP * 9 * 4], const T* weight, u32 channels, u32 flipped) {
    u32 first = blockIdx.y * 2 * WARP;
    for (u32 i = threadIdx.x; i < 2 * WARP * 9 * N; i += THIN_WARPS * WARP) {
        u32 c = flipped != 0 ? i % (2 * WARP) : i / (9 * N), k = flipped != 0 ? i / (2 * WARP) : i % (9 * N);
        u64 at = flipped != 0 ? (u64)k * channels + first + c : (u64)(first + c) * 9 * N + k;
        f32 v = first + c < channels ? to_f32(weight[at]) : 0.0f;
        w[c * 9 * N + (flipped != 0 ? (8 - k % 9) * N + k / 9 : k)] = v;
    }
}

// A patch of y or dx.
template <u32 N, typename T>
DEV void thin_product(T* to, const T* weight, const f32* bias, const ThinSizes<T>& sizes, f32 (&tile)[THIN_ROWS + 2][THIN_COLS + 2][4],
                      f32 (&weights)[2 * WARP * 9 * 4], u32 flipped, u32 accumulate) {
    u32 within = 2 * (threadIdx.x % WARP), c = blockIdx.y * 2 * WARP + within, channels = sizes.wide_channels;
    u32 across = ceil_div(sizes.width, THIN_COLS), down = ceil_div(sizes.height, THIN_ROWS), patch = blockIdx.x;
    u32 col0 = patch % across * THIN_COLS, row0 = patch / across % down * THIN_ROWS, sample = patch / across / down;
    thin_tile<N>(tile, sizes, sample, row0, col0);
    thin_weights<N>(weights, weight, channels, flipped);
    __syncthreads();
    if (c >= channels) return;
    f32 w[9][N][2], own_bias[2];
    UNROLL for (u32 j = 0; j < 2; j++) {
        own_bias[j] = bias != nullptr ? bias[c + j] : 0.0f;
        UNROLL for (u32 k = 0; k < 9 * N; k++) w[k / N][k % N][j] = weights[(within + j) * 9 * N + k];
    }
    u32 cols = min_of(THIN_COLS, sizes.width - col0);
#pragma unroll 1
    for (u32 row = threadIdx.x / WARP; row < THIN_ROWS && row0 + row < sizes.height; row += THIN_WARPS) {
        T* at = to + (((u64)sample * sizes.height + row0 + row) * sizes.width + col0) * channels + c;
        thin_row<N>(at, tile, w, own_bias, row, cols, channels, sizes.even, accumulate != 0);
    }
}

template <typename T>
DEV void thin_product(T* to, const T* weight, const f32* bias, const ThinSizes<T>& sizes, u32 flipped, u32 accumulate) {
    SHARED(f32, tile, [THIN_ROWS + 2][THIN_COLS + 2][4]);
    SHARED(f32, weights, [2 * WARP * 9 * 4]);
    if (sizes.thin_channels == 1) thin_product<1>(to, weight, bias, sizes, tile, weights, flipped, accumulate);
    else if (sizes.thin_channels == 2) thin_product<2>(to, weight, bias, sizes, tile, weights, flipped, accumulate);
    else if (sizes.thin_channels == 3) thin_product<3>(to, weight, bias, sizes, tile, weights, flipped, accumulate);
    else thin_product<4>(to, weight, bias, sizes, tile, weights, flipped, accumulate);
}

// Adds a patch's pixels to the thread's sums.
template <u32 N, typename T>
DEV void thin_patch(f32 (&sums)[9][N][2], const f32 (&tile)[THIN_ROWS + 2][THIN_COLS + 2][4], const ThinSizes<T>& sizes, u32 sample, u32 row0,
                    u32 col0, u32 c) {
#pragma unroll 1
    for (u32 row = threadIdx.x / WARP; row < THIN_ROWS && row0 + row < sizes.height; row += THIN_WARPS) {
        const T* from = sizes.wide + (((u64)sample * sizes.height + row0 + row) * sizes.width + col0) * sizes.wide_channels + c;
#pragma unroll 1
        for (u32 col = 0; col < THIN_COLS && col0 + col < sizes.width; col += THIN_AHEAD) {
            f32 v[THIN_AHEAD][2];
            UNROLL for (u32 i = 0; i < THIN_AHEAD; i++) {
                v[i][0] = v[i][1] = 0.0f;
                if (c < sizes.wide_channels && col0 + col + i < sizes.width) load_pair(from + (u64)(col + i) * sizes.wide_channels, sizes.even, v[i]);
            }
            UNROLL for (u32 ky = 0; ky < 3; ky++) {
                f32 around[THIN_AHEAD + 2][4];
                UNROLL for (u32 i = 0; i < THIN_AHEAD + 2; i++) load_wide(&tile[row + ky][col + i][0], 4, true, around[i]);
                UNROLL for (u32 i = 0; i < THIN_AHEAD; i++)
                    UNROLL for (u32 kx = 0; kx < 3; kx++)
                        UNROLL for (u32 n = 0; n < N; n++)
                            UNROLL for (u32 j = 0; j < 2; j++)
                                sums[3 * ky + kx][n][j] = fma_f32(v[i][j], around[i + kx][n], sums[3 * ky + kx][n][j]);
            }
        }
    }
}

// partial [splits, Cout, 9, Cin].
template <u32 N, typename T>
DEV void thin_weight(f32* partial, const ThinSizes<T>& sizes, f32 (&tile)[THIN_ROWS + 2][THIN_COLS + 2][4], f32 (&all)[9 * 4 * 2][WARP],
                     u32 flipped) {
    u32 lane = threadIdx.x % WARP, c = blockIdx.y * 2 * WARP + 2 * lane;
    u32 across = ceil_div(sizes.width, THIN_COLS), down = ceil_div(sizes.height, THIN_ROWS);
    f32 sums[9][N][2];
    UNROLL for (u32 tap = 0; tap < 9; tap++)
        UNROLL for (u32 n = 0; n < N; n++) sums[tap][n][0] = sums[tap][n][1] = 0.0f;
    u32 first = blockIdx.x * sizes.of_split, last = min_of(first + sizes.of_split, sizes.patches);
#pragma unroll 1
    for (u32 patch = first; patch < last; patch++) {
        u32 col0 = patch % across * THIN_COLS, row0 = patch / across % down * THIN_ROWS, sample = patch / across / down;
        __syncthreads();
        thin_tile<N>(tile, sizes, sample, row0, col0);
        __syncthreads();
        thin_patch<N>(sums, tile, sizes, sample, row0, col0, c);
    }
    for (u32 warp = 0; warp < THIN_WARPS; warp++) {
        __syncthreads();
        if (threadIdx.x / WARP != warp) continue;
        UNROLL for (u32 i = 0; i < 9 * N * 2; i++) {
            f32 own = sums[i / 2 / N][i / 2 % N][i % 2];
            all[i][lane] = warp == 0 ? own : all[i][lane] + own;
        }
    }
    __syncthreads();
    f32* to = partial + (u64)blockIdx.x * 9 * N * sizes.wide_channels;
    for (u32 i = threadIdx.x / WARP; i < 9 * N * 2; i += THIN_WARPS) {
        u32 tap = i / 2 / N, n = i / 2 % N, channel = c + i % 2;
        if (channel >= sizes.wide_channels) continue;
        u64 at = flipped != 0 ? (u64)(n * 9 + 8 - tap) * sizes.wide_channels + channel : (u64)(channel * 9 + tap) * N + n;
        to[at] = all[i][lane];
    }
}

template <typename T>
DEV void thin_weight(f32* partial, const ThinSizes<T>& sizes, u32 flipped) {
    SHARED(f32, tile, [THIN_ROWS + 2][THIN_COLS + 2][4]);
    SHARED(f32, all, [9 * 4 * 2][WARP]);
    if (sizes.thin_channels == 1) thin_weight<1>(partial, sizes, tile, all, flipped);
    else if (sizes.thin_channels == 2) thin_weight<2>(partial, sizes, tile, all, flipped);
    else if (sizes.thin_channels == 3) thin_weight<3>(partial, sizes, tile, all, flipped);
    else thin_weight<4>(partial, sizes, tile, all, flipped);
}
