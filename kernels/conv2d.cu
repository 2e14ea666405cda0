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
// Walks through patches: common/patches.cuh. A piece of 16 bytes lies within a tap where channels come in eights (bf16) or fours (f32);
// else elements are copied one by one. That a pixel of an enlarged image is used by each of its copies is part of dx's sum, so that
// there is neither scratch nor a second kernel for it. Of centred 3x3 windows where one side has at most four channels and the other 16 or
// more, an even number, dW is no product but sums in registers (common/thin.cuh); so are y, with a bias alone, and dx where the side that is
// summed over has so few.
//
// dW's sum is cut into splits of `rows_per_split` pixels by shapes alone; each writes its own part of scratch, [Cout, k l Cin] and behind it
// dbias's [Cout] where it comes with dW (a product with ones, as in linear.cu), and gradient_sums.cu adds the parts in order. Where
// dchannel_add is wanted too, and beside _bwd_weight_thin: _bwd_columns over `rows_per_part` pixels of a sample, then _bwd_channel
// over a sample's parts and gradient_sums.cu over all.
//
// Floor: 2 B Ho Wo k l Cin Cout FLOPs each over the tensor rate, or x, y and W once over the bandwidth. B = 128, 32x32,
// 128 -> 128 channels, bf16: 38.7 GFLOP and 67 MB, 39 us at 990 TFLOP/s against 20 us at 3.35 TB/s. dx with stride 2
// is made by parity on tensor cores (four in z; where sides are even, channels whole pieces, and windows of 2 to 32 taps, two at least each way); else
// it multiplies zeros, four times the floor.
//
// Launches: products as in common/product.cuh, on LargeTile, TallTile (but dW), EightTile or SmallTile, splits in z. _bwd_columns:
// 256 threads, grid [B * parts of a sample, ceil(Cout / (32 * elements in 16 bytes))]. _bwd_channel: one element a thread. _thin and
// _bwd_weight_thin as in common/thin.cuh, the latter's splits added by gradient_sums.cu.
#include "common/entry.cuh"
#include "common/parity.cuh"
#include "common/patches.cuh"
#include "common/sums.cuh"
#include "common/thin.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// The terms added to neighbouring sums of an output pixel.
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
        UNROLL for (u32 i = 0; i < 4; i++) columns.bias[i] = 0.0f;
    }
}
template <typename T>
DEV void finish(const Added<T>& to, const typename Added<T>::Columns& columns, u32 row, u32 col, f32 (&v)[4], bool wide) {
    constexpr u32 N = 4;
    u64 at = (u64)row * to.cols + col;
    u32 left = to.cols - col;
    f32 other[N];
    UNROLL for (u32 i = 0; i < N; i++) v[i] += columns.bias[i];
    if (to.channel_add != nullptr) {
        load_wide(to.channel_add + (u64)(row / to.image) * to.cols + col, left, wide, other);
        UNROLL for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    if (to.residual != nullptr) {
        load_wide(to.residual + at, left, wide, other);
        UNROLL for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    store_wide(to.y + at, left, wide, v);
}

TALL_TILED_KERNELS(conv2d_fwd, (Out<T> y, In<T> x, In<T> weight, In<f32> bias, In<T> channel_add, In<T> residual, u32 pixels, u32 source_height,
              u32 source_width, u32 height, u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height, u32 kernel_width,
              u32 stride, u32 pad_height, u32 pad_width, u64 row_scale, u64 col_scale),
              (y, x, weight, bias, channel_add, residual, pixels, source_height, source_width, height, width, out_height, out_width, cin, cout,
               kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 depth = kernel_height * kernel_width * cin;
    PatchSizes<T> sizes = {x,     pixels, cin % N == 0 && aligned16(x), source_height, source_width, height, width, out_height,
                          out_width, cin, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale};
    bool wide = cout % N == 0 && aligned16(y) && aligned16(bias) && aligned16(channel_add) && aligned16(residual);
    Added<T> to = {y, bias, channel_add, residual, cout, out_height * out_width, wide};
    Stored<T> w = Stored<T>::make(weight, depth, cout);
    if constexpr (ON_TENSOR_CORES<Tile, T>) {
        if (patches_follow(sizes)) return product<Tile, true, true>(PatchRows<T>{sizes}, w, 0, depth, to);
    }
    product<Tile, true, true>(Patches<T>{sizes}, w, 0, depth, to);
}

TALL_TILED_KERNELS(conv2d_bwd_input, (Out<T> dx, In<T> dy, In<T> weight, u32 pixels, u32 source_height, u32 source_width, u32 height, u32 width,
              u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height, u32 kernel_width, u32 stride, u32 pad_height, u32 pad_width,
              u32 accumulate),
              (dx, dy, weight, pixels, source_height, source_width, height, width, out_height, out_width, cin, cout, kernel_height, kernel_width,
               stride, pad_height, pad_width, accumulate)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 copies = ceil_div(height, source_height) * ceil_div(width, source_width);
    Uses<T> uses = {dy,     pixels, cout % N == 0 && aligned16(dy), source_height, source_width, height, width, out_height,
                    out_width, cout, kernel_height, kernel_width, stride, pad_height, pad_width};
    Taps<T> taps = {weight, cin, cin % N == 0 && aligned16(weight), kernel_height * kernel_width, cout};
    Gradient<T, 4> to = Gradient<T, 4>::make(dx, cin, accumulate);
    if constexpr (ON_TENSOR_CORES<Tile, T>) {
        if (gridDim.z == 4) {
            // The parity with most taps of a window of 3 that is centred comes first.
            Parity parity = parity_of(3 - blockIdx.z, pad_height, pad_width);
            UseRows<T> some = uses_of(uses, parity);
            ParityGradient<T> places = {to, some.height, some.width, parity.y, parity.x};
            u32 depth = some.kernel_height * some.kernel_width * cout;
            return product<Tile, true, false>(some, taps_of(taps, parity, kernel_width), 0, depth, places);
        }
        if (uses_follow(uses)) return product<Tile, true, false>(UseRows<T>{uses}, taps, 0, kernel_height * kernel_width * cout, to);
    }
    product<Tile, true, false>(uses, taps, 0, copies * kernel_height * kernel_width * cout, to);
}

// dw [Cout, k l Cin] and db [Cout] (null: not wanted); or, where split_len != 0, a split's part of split_len elements in dw, with db
// behind dw where there is room for it.
TILED_KERNELS(conv2d_bwd_weight, (Out<f32> dw, Out<f32> db, In<T> dy, In<T> x, u32 pixels, u32 source_height, u32 source_width, u32 height,
              u32 width, u32 out_height, u32 out_width, u32 cin, u32 cout, u32 kernel_height, u32 kernel_width, u32 stride, u32 pad_height,
              u32 pad_width, u64 row_scale, u64 col_scale, u32 rows_per_split, u32 split_len, u32 accumulate, u32 accumulate_bias),
              (dw, db, dy, x, pixels, source_height, source_width, height, width, out_height, out_width, cin, cout, kernel_height, kernel_width,
               stride, pad_height, pad_width, row_scale, col_scale, rows_per_split, split_len, accumulate, accumulate_bias)) {
    constexpr u32 N = Vec16<T>::COUNT, NEIGHBOURS = WEIGHT_NEIGHBOURS<Tile, T>;
    u32 depth = kernel_height * kernel_width * cin, r = blockIdx.z * rows_per_split;
    u32 r_end = min_of(pixels - r, rows_per_split) + r;
    PatchSizes<T> sizes = {x,     depth, cin % N == 0 && aligned16(x), source_height, source_width, height, width, out_height,
                           out_width, cin, kernel_height, kernel_width, stride, pad_height, pad_width, row_scale, col_scale};
    dw += (u64)blockIdx.z * split_len;
    if (split_len > cout * depth) db = dw + (u64)cout * depth;
    WeightGradient<NEIGHBOURS> to = {Gradient<f32, NEIGHBOURS>::make(dw, depth, accumulate), db, accumulate_bias != 0};
    Stored<T> gradient = Stored<T>::make(dy, cout, cout);
    if constexpr (ON_TENSOR_CORES<Tile, T>) {
        if (strips_period<MMA_DEPTH<T>>(sizes) != 0) return product<Tile, false, false>(gradient, PatchStrips<T>{sizes}, r, r_end, to);
    }
    product<Tile, false, false>(gradient, PatchesDown<T>{sizes}, r, r_end, to);
}

// partial [B, parts, Cout]: sums over `rows_per_part` of a sample's `image` pixels.
KERNELS(conv2d_bwd_columns, (256), (Out<f32> partial, In<T> dy, u32 image, u32 cols, u32 parts, u32 rows_per_part),
        (partial, dy, image, cols, parts, rows_per_part)) {
    u32 sample = blockIdx.x / parts, row = blockIdx.x % parts * rows_per_part;
    u32 first = sample * image + row, last = first + min_of(image - row, rows_per_part);
    sum_columns(partial + (u64)blockIdx.x * cols, dy, first, last, cols);
}

// to [B, Cout]: the sum of a sample's parts.
KERNELS(conv2d_bwd_channel, (256), (Out<T> to, In<f32> partial, u32 batch, u32 cols, u32 parts, u32 accumulate),
        (to, partial, batch, cols, parts, accumulate)) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * cols) return;
    const f32* from = partial + (u64)(i / cols) * parts * cols + i % cols;
    f32 sum = from[0];
    for (u32 part = 1; part < parts; part++) sum += from[(u64)part * cols];
    store_f32(to + i, accumulate != 0 ? to_f32(to[i]) + sum : sum);
}

// partial [splits, Cout, 9, Cin].
KERNELS(conv2d_bwd_weight_thin, (128), (Out<f32> partial, In<T> wide, In<T> thin, u32 height, u32 width, u32 wide_channels, u32 thin_channels,
        u32 patches, u32 of_split, u32 flipped), (partial, wide, thin, height, width, wide_channels, thin_channels, patches, of_split, flipped)) {
    ThinSizes<T> sizes = {wide, thin, (u64)wide % 4 == 0, height, width, wide_channels, thin_channels, patches, of_split};
    thin_weight(partial, sizes, flipped);
}

// y or dx [B, height, width, wide channels].
KERNELS(conv2d_thin, (128), (Out<T> to, In<T> thin, In<T> weight, In<f32> bias, u32 height, u32 width, u32 wide_channels, u32 thin_channels,
        u32 flipped, u32 accumulate), (to, thin, weight, bias, height, width, wide_channels, thin_channels, flipped, accumulate)) {
    ThinSizes<T> sizes = {to, thin, (u64)to % 4 == 0, height, width, wide_channels, thin_channels, 0, 0};
    thin_product(to, weight, bias, sizes, flipped, accumulate);
}
