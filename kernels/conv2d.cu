// Convolution in two dimensions, channels last, as implicit products: no patch is ever stored.
//
// x [B, h, w, Cin], seen as x^ [B, H, W, Cin] (nearest neighbour: row i of x^ is row floor(i h / H) of x; zero outside),
// W [Cout, k, l, Cin], y [B, Ho, Wo, Cout] with Ho = ceil(H / s), or less where windows stay inside; stride s 1 or 2, p rows and q
// columns of zeros before:
//
//   y[b, i, j] = sum over (ky, kx, c) of W[:, ky, kx, c] x^[b, s i + ky - p, s j + kx - q, c] + bias + channel_add[b] + residual
//   dx = sum over the copies (cy, cx) of a pixel in x^, and (ky, kx, o), of W[o, ky, kx] dy[b, (i + p - ky) / s, .., o]
//   dW = sum over output pixels of dy x^      dchannel_add[b] = sum over b's pixels of dy      dbias = sum over all of them
//
// bias in f32, channel_add [B, Cout], residual as y. As products C[i, j] = sum over r of A[i, r] B[j, r] (common/product.cuh):
//
//            i              j              r                   A               B
//   forward  output pixel   o              (ky, kx, c)         patches of x    W
//   dx       source pixel   c              (cy, cx, ky, kx, o) patches of dy   W, row (ky, kx, o)
//   dW       o              (ky, kx, c)    output pixel        dy, down        patches of x, down
//
// Each thread knows the pixels of the pieces that it copies and walks through the taps (or, for dW, knows its tap and walks
// through the pixels) by adding and carrying: no division but at the start. A piece of 16 bytes lies within a tap where
// channels come in eights (bf16) or fours (f32); else elements are copied one by one. That a pixel of an enlarged image is
// used by each of its copies is part of dx's sum, so that there is neither scratch nor a second kernel for it.
//
// dW's sum is cut into splits of `rows_per_split` pixels by shapes alone; each writes its own [Cout, k l Cin] of scratch, and
// _bwd_weight_sum adds them in order. The other sums: _bwd_columns over `rows_per_part` pixels of a sample, then
// _bwd_channel over a sample's parts and _bwd_bias over all.
//
// Floor: 2 B Ho Wo k l Cin Cout FLOPs each over the tensor rate, or x, y and W once over the bandwidth. B = 128, 32x32,
// 128 -> 128 channels, bf16: 38.7 GFLOP and 67 MB, 39 us at 990 TFLOP/s against 20 us at 3.35 TB/s. dx with stride 2
// multiplies zeros: four times the floor.
//
// Launches: products as in common/product.cuh, on LargeTile or SmallTile, splits in z. _bwd_columns: 256 threads,
// grid [B * parts of a sample, ceil(Cout / (32 * elements in 16 bytes))]. _bwd_bias: 256 threads, a block per 32 columns.
// _bwd_channel: one element a thread. _bwd_weight_sum: 4 elements a thread.
#include "common/product.cuh"
#include "common/sums.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// Where a column is in its patch.
struct Tap {
    u32 channel, x, y;
};
DEV Tap tap_of(u32 col, u32 channels, u32 kernel_width) {
    u32 tap = col / channels;
    return Tap{col % channels, tap % kernel_width, tap / kernel_width};
}
// One tap further; true where ky begins anew.
DEV bool tap_next(Tap& tap, u32 kernel_height, u32 kernel_width) {
    if (++tap.x < kernel_width) return false;
    tap.x = 0;
    if (++tap.y < kernel_height) return false;
    tap.y = 0;
    return true;
}

// Pixels of P rows, and how far one step down goes.
template <u32 P>
struct PatchWalk {
    Tap tap;
    u32 sample[P], y[P], x[P];
    u32 step_samples, step_y, step_x;
};

// x's patches: a row per output pixel, a column per (ky, kx, c). The scales are h / H and w / W times 2^32, rounded up, with which
// (i * scale) >> 32 is floor(i h / H) for i and H below 2^16.
template <typename T>
struct Patches {
    const T* data;
    u32 outer;
    bool wide;
    u32 source_height, source_width, height, width, out_height, out_width, channels, kernel_height, kernel_width, stride,
        pad_height, pad_width;
    u64 row_scale, col_scale;

    static constexpr bool DENSE = false;
    template <u32 P>
    using Walk = PatchWalk<P>;
};
template <typename S, typename T, u32 P>
DEV void walk_from(const Patches<T>& at, PatchWalk<P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one tap");
    walk.tap = tap_of(share_col<S>(at, first, r, 0), at.channels, at.kernel_width);
#pragma unroll
    for (u32 p = 0; p < P; p++) {
        u32 pixel = share_row<S>(at, first, r, p);
        walk.x[p] = pixel % at.out_width;
        walk.y[p] = pixel / at.out_width % at.out_height;
        walk.sample[p] = pixel / at.out_width / at.out_height;
    }
    walk.step_x = S::DEPTH % at.out_width;
    walk.step_y = S::DEPTH / at.out_width % at.out_height;
    walk.step_samples = S::DEPTH / at.out_width / at.out_height;
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const Patches<T>& at, PatchWalk<P>& walk) {
    walk.tap.channel += N;
    while (walk.tap.channel >= at.channels) {
        walk.tap.channel -= at.channels;
        tap_next(walk.tap, at.kernel_height, at.kernel_width);
    }
}
template <u32 DEPTH, typename T, u32 P>
DEV void walk_rows(const Patches<T>& at, PatchWalk<P>& walk) {
#pragma unroll
    for (u32 p = 0; p < P; p++) {
        u32 x = walk.x[p] + walk.step_x, carry = x >= at.out_width;
        walk.x[p] = carry ? x - at.out_width : x;
        u32 y = walk.y[p] + walk.step_y + carry;
        carry = y >= at.out_height;
        walk.y[p] = carry ? y - at.out_height : y;
        walk.sample[p] += walk.step_samples + carry;
    }
}
template <typename T, u32 P>
DEV const T* walk_place(const Patches<T>& at, const PatchWalk<P>& walk, u32 p) {
    // Before the first row or column these wrap around, and are too large as well.
    u32 y = walk.y[p] * at.stride + walk.tap.y - at.pad_height, x = walk.x[p] * at.stride + walk.tap.x - at.pad_width;
    if (y >= at.height || x >= at.width) return nullptr;
    u32 row = (u32)(y * at.row_scale >> 32), col = (u32)(x * at.col_scale >> 32);
    u32 pixel = (walk.sample[p] * at.source_height + row) * at.source_width + col;
    return at.data + (u64)pixel * at.channels + walk.tap.channel;
}

// dy's patches: a row per source pixel, a column per (cy, cx, ky, kx, o): copy (cy, cx) of the pixel in x^, under tap (ky, kx).
template <u32 P>
struct UseWalk {
    Tap tap;
    u32 copy_y, copy_x;
    u32 sample[P], y[P], x[P], copies_y[P], copies_x[P];
};
template <typename T>
struct Uses {
    const T* data;
    u32 outer;
    bool wide;
    u32 source_height, source_width, height, width, out_height, out_width, channels, kernel_height, kernel_width, stride,
        pad_height, pad_width;

    static constexpr bool DENSE = false;
    template <u32 P>
    using Walk = UseWalk<P>;
};
template <typename S, typename T, u32 P>
DEV void walk_from(const Uses<T>& at, UseWalk<P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one tap");
    u32 of_copy = at.kernel_height * at.kernel_width * at.channels, col = share_col<S>(at, first, r, 0), copy = col / of_copy;
    u32 across = ceil_div(at.width, at.source_width);
    walk.tap = tap_of(col % of_copy, at.channels, at.kernel_width);
    walk.copy_y = copy / across;
    walk.copy_x = copy % across;
#pragma unroll
    for (u32 p = 0; p < P; p++) {
        u32 pixel = share_row<S>(at, first, r, p), x = pixel % at.source_width, y = pixel / at.source_width % at.source_height;
        walk.sample[p] = pixel / at.source_width / at.source_height;
        walk.y[p] = ceil_div(y * at.height, at.source_height);
        walk.x[p] = ceil_div(x * at.width, at.source_width);
        walk.copies_y[p] = ceil_div((y + 1) * at.height, at.source_height) - walk.y[p];
        walk.copies_x[p] = ceil_div((x + 1) * at.width, at.source_width) - walk.x[p];
    }
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const Uses<T>& at, UseWalk<P>& walk) {
    walk.tap.channel += N;
    while (walk.tap.channel >= at.channels) {
        walk.tap.channel -= at.channels;
        if (!tap_next(walk.tap, at.kernel_height, at.kernel_width)) continue;
        if (++walk.copy_x * at.source_width < at.width) continue;
        walk.copy_x = 0;
        walk.copy_y++;
    }
}
template <typename T, u32 P>
DEV const T* walk_place(const Uses<T>& at, const UseWalk<P>& walk, u32 p) {
    if (walk.copy_y >= walk.copies_y[p] || walk.copy_x >= walk.copies_x[p]) return nullptr;
    u32 y = walk.y[p] + walk.copy_y + at.pad_height - walk.tap.y;
    u32 x = walk.x[p] + walk.copy_x + at.pad_width - walk.tap.x;
    // Stride 2: windows begin at even places.
    u32 odd = at.stride - 1;
    if (((y | x) & odd) != 0) return nullptr;
    y >>= odd, x >>= odd;
    if (y >= at.out_height || x >= at.out_width) return nullptr;
    u32 pixel = (walk.sample[p] * at.out_height + y) * at.out_width + x;
    return at.data + (u64)pixel * at.channels + walk.tap.channel;
}

// W [Cout, k l, Cin] with a row per (cy, cx, ky, kx, o) and a column per c: the same for each copy.
template <u32 P>
struct TapWalk {
    u32 output[P], tap[P], col;
};
template <typename T>
struct Taps {
    const T* data;
    u32 outer;
    bool wide;
    u32 taps, outputs;

    static constexpr bool DENSE = true;
    template <u32 P>
    using Walk = TapWalk<P>;
};
template <typename S, typename T, u32 P>
DEV void walk_from(const Taps<T>& at, TapWalk<P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one column");
    walk.col = share_col<S>(at, first, r, 0);
#pragma unroll
    for (u32 p = 0; p < P; p++) {
        u32 row = share_row<S>(at, first, r, p);
        walk.output[p] = row % at.outputs;
        walk.tap[p] = row / at.outputs % at.taps;
    }
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const Taps<T>&, TapWalk<P>& walk) {
    walk.col += N;
}
template <u32 DEPTH, typename T, u32 P>
DEV void walk_rows(const Taps<T>& at, TapWalk<P>& walk) {
#pragma unroll
    for (u32 p = 0; p < P; p++) {
        walk.output[p] += DEPTH;
        while (walk.output[p] >= at.outputs) {
            walk.output[p] -= at.outputs;
            walk.tap[p] = walk.tap[p] + 1 == at.taps ? 0 : walk.tap[p] + 1;
        }
    }
}
template <typename T, u32 P>
DEV const T* walk_place(const Taps<T>& at, const TapWalk<P>& walk, u32 p) {
    return at.data + ((u64)walk.output[p] * at.taps + walk.tap[p]) * at.outer + walk.col;
}

// What is added to neighbouring sums of an output pixel.
template <typename T>
struct Added {
    static constexpr u32 N = 4;
    static constexpr bool SUMS = false;
    struct Columns {
        f32 bias[4];
    };

    T* y;
    const f32* bias;
    const T* channel_add;
    const T* residual;
    u32 cols, image;
    bool wide;
};
template <typename T>
DEV void columns_of(const Added<T>& to, u32 col, bool wide, typename Added<T>::Columns& columns) {
    if (to.bias != nullptr) {
        load_wide(to.bias + col, to.cols - col, wide, columns.bias);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) columns.bias[i] = 0.0f;
    }
}
template <typename T>
DEV void finish(const Added<T>& to, const typename Added<T>::Columns& columns, u32 row, u32 col, f32 (&v)[4], bool wide) {
    constexpr u32 N = 4;
    u64 at = (u64)row * to.cols + col;
    u32 left = to.cols - col;
    f32 other[N];
#pragma unroll
    for (u32 i = 0; i < N; i++) v[i] += columns.bias[i];
    if (to.channel_add != nullptr) {
        load_wide(to.channel_add + (u64)(row / to.image) * to.cols + col, left, wide, other);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    if (to.residual != nullptr) {
        load_wide(to.residual + at, left, wide, other);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    store_wide(to.y + at, left, wide, v);
}

template <typename Tile, typename T>
DEV void conv2d_fwd(T* y, const T* x, const T* weight, const f32* bias, const T* channel_add, const T* residual, u32 pixels,
                    u32 source_height, u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin,
                    u32 cout, u32 kernel_height, u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale,
                    u64 col_scale) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 depth = kernel_height * kernel_width * cin;
    Patches<T> patches = {x,     pixels, cin % N == 0 && aligned16(x), source_height, source_width, height, width, out_height,
                          out_width, cin, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale};
    bool wide = cout % N == 0 && aligned16(y) && aligned16(bias) && aligned16(channel_add) && aligned16(residual);
    Added<T> to = {y, bias, channel_add, residual, cout, out_height * out_width, wide};
    product<Tile, true, true>(patches, Stored<T>::make(weight, depth, cout), 0, depth, to);
}

template <typename Tile, typename T>
DEV void conv2d_bwd_input(T* dx, const T* dy, const T* weight, u32 pixels, u32 source_height, u32 source_width, u32 height,
                          u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height, u32 kernel_width,
                          u32 stride, u32 pad_height, u32 pad_width, u32 accumulate) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 copies = ceil_div(height, source_height) * ceil_div(width, source_width);
    Uses<T> uses = {dy,     pixels, cout % N == 0 && aligned16(dy), source_height, source_width, height, width, out_height,
                    out_width, cout, kernel_height, kernel_width, stride, pad_height, pad_width};
    Taps<T> taps = {weight, cin, cin % N == 0 && aligned16(weight), kernel_height * kernel_width, cout};
    Gradient<T, 4> to = Gradient<T, 4>::make(dx, cin, accumulate);
    product<Tile, true, false>(uses, taps, 0, copies * kernel_height * kernel_width * cout, to);
}

// dw [Cout, k l Cin], or scratch [splits, Cout, k l Cin] with accumulate = 0.
template <typename Tile, typename T>
DEV void conv2d_bwd_weight(f32* dw, const T* dy, const T* x, u32 pixels, u32 source_height, u32 source_width, u32 height,
                           u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height, u32 kernel_width,
                           u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale, u32 rows_per_split, u32 accumulate) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 depth = kernel_height * kernel_width * cin, r = blockIdx.z * rows_per_split;
    u32 r_end = min_of(pixels - r, rows_per_split) + r;
    Patches<T> patches = {x,     depth, cin % N == 0 && aligned16(x), source_height, source_width, height, width, out_height,
                          out_width, cin, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale};
    typedef Gradient<f32, WEIGHT_NEIGHBOURS<T>> To;
    To to = To::make(dw + (u64)blockIdx.z * cout * depth, depth, accumulate);
    product<Tile, false, false>(Stored<T>::make(dy, cout, cout), patches, r, r_end, to);
}

// partial [B, parts, Cout]: sums over `rows_per_part` of a sample's `image` pixels.
template <typename T>
DEV void conv2d_bwd_columns(f32* __restrict__ partial, const T* __restrict__ dy, u32 image, u32 cols, u32 parts,
                            u32 rows_per_part) {
    u32 sample = blockIdx.x / parts, row = blockIdx.x % parts * rows_per_part;
    u32 first = sample * image + row, last = first + min_of(image - row, rows_per_part);
    sum_columns(partial + (u64)blockIdx.x * cols, dy, first, last, cols);
}

// to [B, Cout]: the sum of a sample's parts.
template <typename T>
DEV void conv2d_bwd_channel(T* __restrict__ to, const f32* __restrict__ partial, u32 batch, u32 cols, u32 parts,
                            u32 accumulate) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * cols) return;
    const f32* from = partial + (u64)(i / cols) * parts * cols + i % cols;
    f32 sum = from[0];
    for (u32 part = 1; part < parts; part++) sum += from[(u64)part * cols];
    store_f32(to + i, accumulate != 0 ? to_f32(to[i]) + sum : sum);
}

extern "C" __global__ void __launch_bounds__(256) conv2d_fwd_large_f32(
    f32* __restrict__ y, const f32* __restrict__ x, const f32* __restrict__ weight, const f32* __restrict__ bias,
    const f32* __restrict__ channel_add, const f32* __restrict__ residual, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale) {
    conv2d_fwd<LargeTile>(y, x, weight, bias, channel_add, residual, pixels, source_height, source_width, height, width,
        out_height, out_width, cin, cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale);
}
extern "C" __global__ void __launch_bounds__(128) conv2d_fwd_large_bf16(
    bf16* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight, const f32* __restrict__ bias,
    const bf16* __restrict__ channel_add, const bf16* __restrict__ residual, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale) {
    conv2d_fwd<LargeTile>(y, x, weight, bias, channel_add, residual, pixels, source_height, source_width, height, width,
        out_height, out_width, cin, cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_fwd_small_f32(
    f32* __restrict__ y, const f32* __restrict__ x, const f32* __restrict__ weight, const f32* __restrict__ bias,
    const f32* __restrict__ channel_add, const f32* __restrict__ residual, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale) {
    conv2d_fwd<SmallTile>(y, x, weight, bias, channel_add, residual, pixels, source_height, source_width, height, width,
        out_height, out_width, cin, cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale);
}
extern "C" __global__ void __launch_bounds__(128) conv2d_fwd_small_bf16(
    bf16* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight, const f32* __restrict__ bias,
    const bf16* __restrict__ channel_add, const bf16* __restrict__ residual, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale) {
    conv2d_fwd<SmallTile>(y, x, weight, bias, channel_add, residual, pixels, source_height, source_width, height, width,
        out_height, out_width, cin, cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_input_large_f32(
    f32* __restrict__ dx, const f32* __restrict__ dy, const f32* __restrict__ weight, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u32 accumulate) {
    conv2d_bwd_input<LargeTile>(dx, dy, weight, pixels, source_height, source_width, height, width, out_height, out_width,
        cin, cout, kernel_height, kernel_width, stride, pad_height, pad_width, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) conv2d_bwd_input_large_bf16(
    bf16* __restrict__ dx, const bf16* __restrict__ dy, const bf16* __restrict__ weight, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u32 accumulate) {
    conv2d_bwd_input<LargeTile>(dx, dy, weight, pixels, source_height, source_width, height, width, out_height, out_width,
        cin, cout, kernel_height, kernel_width, stride, pad_height, pad_width, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_input_small_f32(
    f32* __restrict__ dx, const f32* __restrict__ dy, const f32* __restrict__ weight, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u32 accumulate) {
    conv2d_bwd_input<SmallTile>(dx, dy, weight, pixels, source_height, source_width, height, width, out_height, out_width, cin,
        cout, kernel_height, kernel_width, stride, pad_height, pad_width, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) conv2d_bwd_input_small_bf16(
    bf16* __restrict__ dx, const bf16* __restrict__ dy, const bf16* __restrict__ weight, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u32 accumulate) {
    conv2d_bwd_input<SmallTile>(dx, dy, weight, pixels, source_height, source_width, height, width, out_height, out_width, cin,
        cout, kernel_height, kernel_width, stride, pad_height, pad_width, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_weight_large_f32(
    f32* __restrict__ dw, const f32* __restrict__ dy, const f32* __restrict__ x, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale, u32 rows_per_split, u32 accumulate) {
    conv2d_bwd_weight<LargeTile>(dw, dy, x, pixels, source_height, source_width, height, width, out_height, out_width, cin,
        cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) conv2d_bwd_weight_large_bf16(
    f32* __restrict__ dw, const bf16* __restrict__ dy, const bf16* __restrict__ x, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale, u32 rows_per_split, u32 accumulate) {
    conv2d_bwd_weight<LargeTile>(dw, dy, x, pixels, source_height, source_width, height, width, out_height, out_width, cin,
        cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_weight_small_f32(
    f32* __restrict__ dw, const f32* __restrict__ dy, const f32* __restrict__ x, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale, u32 rows_per_split, u32 accumulate) {
    conv2d_bwd_weight<SmallTile>(dw, dy, x, pixels, source_height, source_width, height, width, out_height, out_width, cin,
        cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) conv2d_bwd_weight_small_bf16(
    f32* __restrict__ dw, const bf16* __restrict__ dy, const bf16* __restrict__ x, u32 pixels, u32 source_height,
    u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height,
    u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale, u32 rows_per_split, u32 accumulate) {
    conv2d_bwd_weight<SmallTile>(dw, dy, x, pixels, source_height, source_width, height, width, out_height, out_width, cin,
        cout, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_weight_sum(
    f32* __restrict__ dw, const f32* __restrict__ partial, u32 splits, u32 len, u32 accumulate) {
    sum_splits(dw, partial, splits, len, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_columns_f32(
    f32* __restrict__ partial, const f32* __restrict__ dy, u32 image, u32 cols, u32 parts, u32 rows_per_part) {
    conv2d_bwd_columns<f32>(partial, dy, image, cols, parts, rows_per_part);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_columns_bf16(
    f32* __restrict__ partial, const bf16* __restrict__ dy, u32 image, u32 cols, u32 parts, u32 rows_per_part) {
    conv2d_bwd_columns<bf16>(partial, dy, image, cols, parts, rows_per_part);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_channel_f32(
    f32* __restrict__ to, const f32* __restrict__ partial, u32 batch, u32 cols, u32 parts, u32 accumulate) {
    conv2d_bwd_channel<f32>(to, partial, batch, cols, parts, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_channel_bf16(
    bf16* __restrict__ to, const f32* __restrict__ partial, u32 batch, u32 cols, u32 parts, u32 accumulate) {
    conv2d_bwd_channel<bf16>(to, partial, batch, cols, parts, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) conv2d_bwd_bias(
    f32* __restrict__ db, const f32* __restrict__ partial, u32 parts, u32 cols, u32 accumulate) {
    sum_parts(db, partial, parts, cols, accumulate);
}
