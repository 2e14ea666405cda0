// Pooling, channels last: the largest and the mean of a window, and the mean of an image.
//
//   x, dx [batch, height, width, channels] T; y, dy [batch, rows, cols, channels] T (max, mean) or [batch, channels] T (average);
//   winners [batch, rows, cols, channels] u8: which pixel of its window, ky * kernel + kx, was the largest; the first of equals.
//
// Window (oy, ox) begins at pixel (oy * stride - padding, ox * stride - padding); pixels outside the image are not there, and
// no mean counts them. Backwards a pixel gathers from the windows that hold it, in their order: no two threads share a sum.
//
// Floor: x read once and y and winners written; backward reads dy and winners and writes dx. A window's pixels are neighbours'
// too: they come from L1 and L2. Average: x read once; dx written once.
#include "common/entry.cuh"
#include "common/sums.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

struct Sizes {
    u32 height, width, channels, rows, cols, kernel, stride, padding;
};

// N bytes, four at a time where `wide`.
template <u32 N>
DEV void load_bytes(const u8* p, u32 left, bool wide, u32 (&v)[N]) {
    if (wide) {
        UNROLL for (u32 i = 0; i < N; i += 4) {
            u32 word = *reinterpret_cast<const u32*>(p + i);
            UNROLL for (u32 j = 0; j < 4; j++) v[i + j] = word >> (8 * j) & 0xffu;
        }
    } else {
        UNROLL for (u32 i = 0; i < N; i++) v[i] = i < left ? p[i] : 0;
    }
}
template <u32 N>
DEV void store_bytes(u8* p, u32 left, bool wide, const u32 (&v)[N]) {
    if (wide) {
        UNROLL for (u32 i = 0; i < N; i += 4)
            *reinterpret_cast<u32*>(p + i) = v[i] | v[i + 1] << 8 | v[i + 2] << 16 | v[i + 3] << 24;
    } else {
        UNROLL for (u32 i = 0; i < N; i++)
            if (i < left) p[i] = (u8)v[i];
    }
}

// A piece of N channels of a pixel of an image, pieces in the order of memory.
struct Piece {
    u32 image, row, col, c;
};
template <u32 N>
DEV Piece piece_of(u32 at, u32 rows, u32 cols, u32 channels) {
    u32 pieces = ceil_div(channels, N), pixel = at / pieces;
    return Piece{pixel / (rows * cols), pixel / cols % rows, pixel % cols, at % pieces * N};
}

// One thread per piece of y.
KERNELS(pool_fwd_max, (128, 8), (Out<T> y, Out<u8> winners, In<T> x, u32 batch, u32 height, u32 width, u32 channels, u32 rows, u32 cols, u32 kernel,
        u32 stride, u32 padding), (y, winners, x, batch, height, width, channels, rows, cols, kernel, stride, padding)) {
    Sizes z{height, width, channels, rows, cols, kernel, stride, padding};
    constexpr u32 N = Vec16<T>::COUNT;
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * z.rows * z.cols * ceil_div(z.channels, N)) return;
    Piece p = piece_of<N>(at, z.rows, z.cols, z.channels);
    u32 left = z.channels - p.c;
    bool whole = z.channels % N == 0, wide = whole && aligned16(x);
    f32 best[N];
    u32 winner[N];
    UNROLL for (u32 i = 0; i < N; i++) {
        best[i] = -infinity_f32();
        winner[i] = 0;
    }
    bool first = true;
    for (u32 ky = 0; ky < z.kernel; ky++) {
        u32 iy = p.row * z.stride + ky - z.padding;
        if (iy >= z.height) continue;
        for (u32 kx = 0; kx < z.kernel; kx++) {
            u32 ix = p.col * z.stride + kx - z.padding;
            if (ix >= z.width) continue;
            f32 v[N];
            load_wide(x + ((u64)(p.image * z.height + iy) * z.width + ix) * z.channels + p.c, left, wide, v);
            UNROLL for (u32 i = 0; i < N; i++) {
                // A NaN wins and stays.
                if (first || v[i] > best[i] || v[i] != v[i]) {
                    best[i] = v[i];
                    winner[i] = ky * z.kernel + kx;
                }
            }
            first = false;
        }
    }
    u64 to = ((u64)(p.image * z.rows + p.row) * z.cols + p.col) * z.channels + p.c;
    store_wide(y + to, left, whole && aligned16(y), best);
    store_bytes(winners + to, left, whole && aligned16(winners), winner);
}

// One thread per piece of dx.
KERNELS(pool_bwd_max, (128), (Out<T> dx, In<T> dy, In<u8> winners, u32 batch, u32 height, u32 width, u32 channels, u32 rows, u32 cols, u32 kernel,
        u32 stride, u32 padding, u32 accumulate),
        (dx, dy, winners, batch, height, width, channels, rows, cols, kernel, stride, padding, accumulate)) {
    Sizes z{height, width, channels, rows, cols, kernel, stride, padding};
    constexpr u32 N = Vec16<T>::COUNT;
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * z.height * z.width * ceil_div(z.channels, N)) return;
    Piece p = piece_of<N>(at, z.height, z.width, z.channels);
    u32 left = z.channels - p.c;
    bool whole = z.channels % N == 0, wide = whole && aligned16(dy), wide_winners = whole && aligned16(winners);
    // Windows that hold the pixel: from the first that ends behind it to the last that begins no later.
    u32 y = p.row + z.padding, x = p.col + z.padding;
    u32 y0 = y < z.kernel ? 0 : (y - z.kernel) / z.stride + 1, y1 = min_of(y / z.stride + 1, z.rows);
    u32 x0 = x < z.kernel ? 0 : (x - z.kernel) / z.stride + 1, x1 = min_of(x / z.stride + 1, z.cols);
    f32 sum[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = 0.0f;
    for (u32 oy = y0; oy < y1; oy++) {
        for (u32 ox = x0; ox < x1; ox++) {
            u32 position = (y - oy * z.stride) * z.kernel + x - ox * z.stride;
            u64 from = ((u64)(p.image * z.rows + oy) * z.cols + ox) * z.channels + p.c;
            f32 d[N];
            u32 winner[N];
            load_wide(dy + from, left, wide, d);
            load_bytes(winners + from, left, wide_winners, winner);
            UNROLL for (u32 i = 0; i < N; i++)
                if (winner[i] == position) sum[i] += d[i];
        }
    }
    Gradient<T, N> gradient = Gradient<T, N>::make(dx, z.channels, accumulate);
    finish(gradient, (p.image * z.height + p.row) * z.width + p.col, p.c, sum);
}

// Pixels of window `at` along a side of `length`.
DEV u32 inside(u32 at, u32 length, u32 kernel, u32 stride, u32 padding) {
    u32 first = at * stride;
    u32 last = min_of(first + kernel, length + padding);
    return last - max_of(first, padding);
}

// One thread per piece of y.
KERNELS(pool_fwd_mean, (128, 8), (Out<T> y, In<T> x, u32 batch, u32 height, u32 width, u32 channels, u32 rows, u32 cols, u32 kernel, u32 stride,
        u32 padding), (y, x, batch, height, width, channels, rows, cols, kernel, stride, padding)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * rows * cols * ceil_div(channels, N)) return;
    Piece p = piece_of<N>(at, rows, cols, channels);
    u32 left = channels - p.c;
    bool whole = channels % N == 0, wide = whole && aligned16(x);
    f32 sum[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = 0.0f;
    for (u32 ky = 0; ky < kernel; ky++) {
        u32 iy = p.row * stride + ky - padding;
        if (iy >= height) continue;
        for (u32 kx = 0; kx < kernel; kx++) {
            u32 ix = p.col * stride + kx - padding;
            if (ix >= width) continue;
            f32 v[N];
            load_wide(x + ((u64)(p.image * height + iy) * width + ix) * channels + p.c, left, wide, v);
            UNROLL for (u32 i = 0; i < N; i++) sum[i] += v[i];
        }
    }
    f32 count = (f32)(inside(p.row, height, kernel, stride, padding) * inside(p.col, width, kernel, stride, padding));
    UNROLL for (u32 i = 0; i < N; i++) sum[i] /= count;
    store_wide(y + ((u64)(p.image * rows + p.row) * cols + p.col) * channels + p.c, left, whole && aligned16(y), sum);
}

// One thread per piece of dx.
KERNELS(pool_bwd_mean, (128), (Out<T> dx, In<T> dy, u32 batch, u32 height, u32 width, u32 channels, u32 rows, u32 cols, u32 kernel, u32 stride,
        u32 padding, u32 accumulate), (dx, dy, batch, height, width, channels, rows, cols, kernel, stride, padding, accumulate)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * height * width * ceil_div(channels, N)) return;
    Piece p = piece_of<N>(at, height, width, channels);
    u32 left = channels - p.c;
    bool wide = channels % N == 0 && aligned16(dy);
    u32 y = p.row + padding, x = p.col + padding;
    u32 y0 = y < kernel ? 0 : (y - kernel) / stride + 1, y1 = min_of(y / stride + 1, rows);
    u32 x0 = x < kernel ? 0 : (x - kernel) / stride + 1, x1 = min_of(x / stride + 1, cols);
    f32 sum[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = 0.0f;
    for (u32 oy = y0; oy < y1; oy++) {
        u32 tall = inside(oy, height, kernel, stride, padding);
        for (u32 ox = x0; ox < x1; ox++) {
            f32 count = (f32)(tall * inside(ox, width, kernel, stride, padding));
            f32 d[N];
            load_wide(dy + ((u64)(p.image * rows + oy) * cols + ox) * channels + p.c, left, wide, d);
            UNROLL for (u32 i = 0; i < N; i++) sum[i] += d[i] / count;
        }
    }
    Gradient<T, N> gradient = Gradient<T, N>::make(dx, channels, accumulate);
    finish(gradient, (p.image * height + p.row) * width + p.col, p.c, sum);
}

// Block [image, 32 pieces of channels]: eight warps share the pixels, then their sums are added in order.
KERNELS(pool_fwd_average, (256), (Out<T> y, In<T> x, u32 pixels, u32 channels), (y, x, pixels, channels)) {
    constexpr u32 N = Vec16<T>::COUNT, WARPS = 8;
    SHARED(f32, average_parts, [WARPS][WARP * N]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c0 = blockIdx.y * WARP * N, c = c0 + lane * N;
    bool wide = channels % N == 0 && aligned16(x);
    f32 sum[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = 0.0f;
    if (c < channels) {
#pragma unroll 4
        for (u32 pixel = warp; pixel < pixels; pixel += WARPS) {
            f32 v[N];
            load_wide(x + ((u64)blockIdx.x * pixels + pixel) * channels + c, channels - c, wide, v);
            UNROLL for (u32 i = 0; i < N; i++) sum[i] += v[i];
        }
    }
    store_wide(&average_parts[warp][lane * N], N, true, sum);
    __syncthreads();
    if (threadIdx.x >= WARP * N || c0 + threadIdx.x >= channels) return;
    f32 total = 0.0f;
    UNROLL for (u32 w = 0; w < WARPS; w++) total += average_parts[w][threadIdx.x];
    store_f32(y + (u64)blockIdx.x * channels + c0 + threadIdx.x, total / (f32)pixels);
}

// One thread per piece of dx.
KERNELS(pool_bwd_average, (128), (Out<T> dx, In<T> dy, u32 batch, u32 pixels, u32 channels, u32 accumulate),
        (dx, dy, batch, pixels, channels, accumulate)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 pieces = ceil_div(channels, N), at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * pixels * pieces) return;
    u32 row = at / pieces, c = at % pieces * N;
    f32 d[N];
    load_wide(dy + (u64)(row / pixels) * channels + c, channels - c, channels % N == 0 && aligned16(dy), d);
    UNROLL for (u32 i = 0; i < N; i++) d[i] /= (f32)pixels;
    Gradient<T, N> gradient = Gradient<T, N>::make(dx, channels, accumulate);
    finish(gradient, row, c, d);
}
