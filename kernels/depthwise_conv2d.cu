// Depthwise convolution, channels last: each channel by a window of its own (Howard et al. 2017, MobileNets).
//
//   x, dx [batch, height, width, channels] T; w, dw [kernel, kernel, channels] f32; bias [channels] f32; y, dy [batch, rows, cols,
//   channels] T, rows = ceil(height / stride):
//
//   y[b, i, j, c] = bias[c] + sum over (ky, kx) of w[ky, kx, c] x[b, s i + ky - p, s j + kx - p, c], x zero outside
//   dx[b, i, j, c] = sum over (ky, kx) of w[ky, kx, c] dy[b, (i + p - ky) / s, (j + p - kx) / s, c] where that is whole
//   dw[ky, kx, c] = sum over output pixels of dy x          dbias[c] = sum of dy
//
// A channel is one multiply-add a tap: the op is bound by memory, its floor is x, y and w once (a window's pixels come from L1 and
// L2). dw and dbias are summed in parts of `rows_per_part` output rows (of all images), partial [parts, (kernel kernel + 1) channels],
// the bias behind the taps; gradient_sums.cu adds the parts in order.
//
// Launches: _fwd, _bwd_input: a thread per 16 bytes, blocks of 128. _bwd_weight: block [part, 128 channels], 128 threads.
#include "common/entry.cuh"
#include "common/sums.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// One thread per piece of y.
KERNELS(depthwise_conv2d_fwd, (128), (Out<T> y, In<T> x, In<f32> w, In<f32> bias, u32 batch, u32 height, u32 width, u32 channels, u32 rows, u32 cols,
        u32 kernel, u32 stride, u32 padding), (y, x, w, bias, batch, height, width, channels, rows, cols, kernel, stride, padding)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 pieces = ceil_div(channels, N), at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * rows * cols * pieces) return;
    u32 pixel = at / pieces, c = at % pieces * N, left = channels - c;
    u32 image = pixel / (rows * cols), row = pixel / cols % rows, col = pixel % cols;
    bool whole = channels % N == 0, wide = whole && aligned16(x), wide_w = whole && aligned16(w);
    f32 sum[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = 0.0f;
    if (bias != nullptr) load_wide(bias + c, left, whole && aligned16(bias), sum);
    for (u32 ky = 0; ky < kernel; ky++) {
        u32 iy = row * stride + ky - padding;
        if (iy >= height) continue;
        for (u32 kx = 0; kx < kernel; kx++) {
            u32 ix = col * stride + kx - padding;
            if (ix >= width) continue;
            f32 v[N], tap[N];
            load_wide(x + ((u64)(image * height + iy) * width + ix) * channels + c, left, wide, v);
            load_wide(w + (ky * kernel + kx) * channels + c, left, wide_w, tap);
            UNROLL for (u32 i = 0; i < N; i++) sum[i] = fma_f32(v[i], tap[i], sum[i]);
        }
    }
    store_wide(y + (u64)pixel * channels + c, left, whole && aligned16(y), sum);
}

// One thread per piece of dx.
KERNELS(depthwise_conv2d_bwd_input, (128), (Out<T> dx, In<T> dy, In<f32> w, u32 batch, u32 height, u32 width, u32 channels, u32 rows, u32 cols,
        u32 kernel, u32 stride, u32 padding, u32 accumulate),
        (dx, dy, w, batch, height, width, channels, rows, cols, kernel, stride, padding, accumulate)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 pieces = ceil_div(channels, N), at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * height * width * pieces) return;
    u32 pixel = at / pieces, c = at % pieces * N, left = channels - c;
    u32 image = pixel / (height * width), row = pixel / width % height, col = pixel % width;
    bool whole = channels % N == 0, wide = whole && aligned16(dy), wide_w = whole && aligned16(w);
    f32 sum[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = 0.0f;
    for (u32 ky = 0; ky < kernel; ky++) {
        // Before the first row these wrap around, and are too large as well.
        u32 oy = row + padding - ky;
        if (oy % stride != 0 || oy / stride >= rows) continue;
        for (u32 kx = 0; kx < kernel; kx++) {
            u32 ox = col + padding - kx;
            if (ox % stride != 0 || ox / stride >= cols) continue;
            f32 d[N], tap[N];
            load_wide(dy + ((u64)(image * rows + oy / stride) * cols + ox / stride) * channels + c, left, wide, d);
            load_wide(w + (ky * kernel + kx) * channels + c, left, wide_w, tap);
            UNROLL for (u32 i = 0; i < N; i++) sum[i] = fma_f32(d[i], tap[i], sum[i]);
        }
    }
    Gradient<T, N> gradient = Gradient<T, N>::make(dx, channels, accumulate);
    finish(gradient, pixel, c, sum);
}

// A thread per channel goes over the part's pixels once for each tap: the pixels stay in L1 and L2.
KERNELS(depthwise_conv2d_bwd_weight, (128), (Out<f32> partial, In<T> dy, In<T> x, u32 batch, u32 height, u32 width, u32 channels, u32 rows, u32 cols,
        u32 kernel, u32 stride, u32 padding, u32 rows_per_part),
        (partial, dy, x, batch, height, width, channels, rows, cols, kernel, stride, padding, rows_per_part)) {
    u32 c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    u32 taps = kernel * kernel, first = blockIdx.x * rows_per_part, last = min_of(first + rows_per_part, batch * rows);
    f32* to = partial + (u64)blockIdx.x * (taps + 1) * channels + c;
    for (u32 tap = 0; tap <= taps; tap++) {
        f32 sum = 0.0f;
        for (u32 at = first; at < last; at++) {
            u32 image = at / rows, iy = at % rows * stride + tap / kernel - padding;
            if (tap < taps && iy >= height) continue;
            for (u32 col = 0; col < cols; col++) {
                f32 d = to_f32(dy[((u64)at * cols + col) * channels + c]);
                if (tap == taps) {
                    sum += d;
                    continue;
                }
                u32 ix = col * stride + tap % kernel - padding;
                if (ix >= width) continue;
                sum = fma_f32(d, to_f32(x[((u64)(image * height + iy) * width + ix) * channels + c]), sum);
            }
        }
        to[(u64)tap * channels] = sum;
    }
}
