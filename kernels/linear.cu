// The linear layer: y = act(x W^T + b) + residual, or y = g (x W^T + b) + residual with a gate g, and their gradients.
//
// x [m, k], W [n, k], y, z, residual [m, n], b [n] in f32. g [n] is columns `column` .. of the row's sample in `modulation`
// [m / rows_per_sample, modulation_stride] (adaLN-zero; Peebles and Xie 2023, arXiv 2212.09748). With z = x W^T + b, and dz = dy act'(z) or g dy:
//
//   dx = dz W [m, k]      dW = dz^T x [n, k] in f32      db = column sums of dz in f32      dresidual = dy
//   dg = sum over the sample's rows of dy z
//
// On tensor cores, where x = act(z') is an activation that nothing else uses, _bwd_input multiplies by act'(z') as it writes, over z':
// the result is the dz of the layer before.
//
// All three products are C[i, j] = sum over r of A[i, r] B[j, r]; they differ in which index of an operand is contiguous:
//
//             i   j   r    A                      B
//   forward   m   n   k    x: r contiguous        W: r contiguous
//   dx        m   k   n    dz: r contiguous       W: j contiguous
//   dW        n   k   m    dz: i contiguous       x: j contiguous
//
// They run on the tiles of common/product.cuh: bf16 on the tensor cores, f32 with plain FMA, or there too (_tf32).
//
// dW's sum over m is cut into splits of `rows_per_split` (by shapes alone) where the tiles alone would not fill a GPU; each
// split writes its own part of scratch, [n, k] and behind it db's [n] where it is wanted, and gradient_sums.cu adds the parts in
// order. db, the sum over m of dW's other operand, is a product with ones in the blocks of dW's first columns.
//
// Floor: 2 m n k FLOPs over the tensor rate, or (m k + n k + m n) elements over the bandwidth. At m = 16640 (256 samples of
// 65 tokens), n = k = 384, bf16, that is 4.9 GFLOP and 26 MB: memory and tensor cores nearly in balance on an H100.
//
// Launches: products as in common/product.cuh, on WideTile, LargeTile, EightTile or SmallTile, splits in z; _bwd_bias (db without dW) as a
// small one of one column of tiles. _bwd_activation: 16 bytes a thread, 256 threads. _bwd_gate: a thread per 16 bytes of a sample's columns, at most
// 128 threads, grid [samples, ceil(n / (elements in 16 bytes * threads))]; it goes down the rows, so that dg is one sum in order.
#include "common/activation.cuh"
#include "common/entry.cuh"
#include "common/product.cuh"
#include "common/sums.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// In place of an activation: layers without either pay for no test of a gate. (A bit, for compilers make a jump through a table of equalities.)
constexpr u32 GATED = 1u << 31;

// The sample of a row, exact for all rows: `scale` is 2^64 - 1 over the rows of a sample, rounded down. A division takes three times as long.
DEV u32 sample_of(u32 row, u64 scale) {
    u64 next = (u64)row + 1, low = next * (u32)scale, high = next * (scale >> 32);
    return (u32)((high + (low >> 32)) >> 32);
}

// The epilogue of neighbouring sums of a row: bias, activation or gate, residual.
template <typename T>
struct Finish {
    static constexpr u32 N = 4;
    static constexpr bool SUMS = false;
    struct Columns {
        f32 bias[4];
    };

    T* y;
    T* z;
    const f32* bias;
    const T* residual;
    const T* gate;
    u64 sample_scale;
    u32 gate_stride;
    u32 cols;
    // GATED with a gate.
    u32 activation;
    // Bits for z and residual.
    u32 has;
    bool wide;

    DEV Finish make(T* y, T* z, const f32* bias, const T* residual, const T* gate, u64 sample_scale, u32 gate_stride, u32 cols,
                    u32 activation) {
        bool wide = cols % N == 0 && aligned16(y) && aligned16(z) && aligned16(bias) && aligned16(residual);
        wide = wide && gate_stride % N == 0 && aligned16(gate);
        u32 has = (z != nullptr ? 1 : 0) | (residual != nullptr ? 2 : 0);
        if (gate != nullptr) activation = GATED;
        return Finish{y, z, bias, residual, gate, sample_scale, gate_stride, cols, activation, has, wide};
    }
};
template <typename T>
DEV void columns_of(const Finish<T>& to, u32 col, bool wide, typename Finish<T>::Columns& columns) {
    if (to.bias != nullptr) {
        load_wide(to.bias + col, to.cols - col, wide, columns.bias);
    } else {
        UNROLL for (u32 i = 0; i < 4; i++) columns.bias[i] = 0.0f;
    }
}
template <typename T>
DEV void finish(const Finish<T>& to, const typename Finish<T>::Columns& columns, u32 row, u32 col, f32 (&v)[4], bool wide) {
    u64 at = (u64)row * to.cols + col;
    u32 left = to.cols - col, has = opaque(to.has), activation = opaque(to.activation);
    UNROLL for (u32 i = 0; i < 4; i++) v[i] += columns.bias[i];
    if ((has & 1) != 0) store_wide(to.z + at, left, wide, v);
    f32 other[4];
    if (activation != ACTIVATION_NONE) {
        if ((activation & GATED) != 0) {
            load_wide(to.gate + (u64)sample_of(row, to.sample_scale) * to.gate_stride + col, left, wide, other);
            UNROLL for (u32 i = 0; i < 4; i++) v[i] *= other[i];
        } else {
            UNROLL for (u32 i = 0; i < 4; i++) v[i] = activate<T>(v[i], activation);
        }
    }
    if ((has & 2) != 0) {
        load_wide(to.residual + at, left, wide, other);
        UNROLL for (u32 i = 0; i < 4; i++) v[i] += other[i];
    }
    store_wide(to.y + at, left, wide, v);
}

// --- the three products ---

// z (null: backward wants none) before activation or gate; modulation null: no gate.
WIDE_TILED_KERNELS(linear_fwd, (Out<T> y, Out<T> z, In<T> x, In<T> weight, In<f32> bias, In<T> residual, In<T> modulation, u32 m, u32 n, u32 k,
                   u32 activation, u64 sample_scale, u32 modulation_stride, u32 column),
                   (y, z, x, weight, bias, residual, modulation, m, n, k, activation, sample_scale, modulation_stride, column)) {
    const T* gate = modulation == nullptr ? nullptr : modulation + column;
    Finish<T> to = Finish<T>::make(y, z, bias, residual, gate, sample_scale, modulation_stride, n, activation);
    product<Tile, true, true>(Stored<T>::make(x, k, m), Stored<T>::make(weight, k, n), 0, k, to);
}

// dx, or on tensor cores the dz of the layer before, over its z: 1 + activation in `accumulate` says that x = activation(z). (f32 with tiles of
// 128 has no registers left for it.)
template <typename T, bool ON_CORES>
struct InputGradient : Gradient<T, 4> {
    u32 activation;

    DEV InputGradient make(T* dx, u32 cols, u32 accumulate) {
        return InputGradient{Gradient<T, 4>::make(dx, cols, accumulate == 1), accumulate > 1 ? accumulate - 1 : ACTIVATION_NONE};
    }
};
template <typename T, bool ON_CORES>
DEV void finish(const InputGradient<T, ON_CORES>& to, const typename Gradient<T, 4>::Columns& columns, u32 row, u32 col, f32 (&v)[4],
                bool wide) {
    if constexpr (ON_CORES) {
        u32 activation = opaque(to.activation);
        if (activation != ACTIVATION_NONE) {
            f32 z[4];
            load_wide(to.to + (u64)row * to.cols + col, to.cols - col, wide, z);
            UNROLL for (u32 i = 0; i < 4; i++) v[i] *= activation_derivative<T>(z[i], activation);
        }
    }
    finish(static_cast<const Gradient<T, 4>&>(to), columns, row, col, v, wide);
}

WIDE_TILED_KERNELS(linear_bwd_input, (Out<T> dx, In<T> dz, In<T> weight, u32 m, u32 n, u32 k, u32 accumulate),
                   (dx, dz, weight, m, n, k, accumulate)) {
    typedef InputGradient<T, ON_TENSOR_CORES<Tile, T>> To;
    To to = To::make(dx, k, accumulate);
    product<Tile, true, false>(Stored<T>::make(dz, n, m), Stored<T>::make(weight, k, k), 0, n, to);
}

// dw [n, k] and db [n] (null: not wanted); or, where split_len != 0, a split's part of split_len elements in dw, with db behind
// dw where there is room for it.
WIDE_TILED_KERNELS(linear_bwd_weight, (Out<f32> dw, Out<f32> db, In<T> dz, In<T> x, u32 m, u32 n, u32 k, u32 rows_per_split, u32 split_len,
                   u32 accumulate, u32 accumulate_bias), (dw, db, dz, x, m, n, k, rows_per_split, split_len, accumulate, accumulate_bias)) {
    constexpr u32 N = WEIGHT_NEIGHBOURS<Tile, T>;
    u32 r = blockIdx.z * rows_per_split, r_end = min_of(m - r, rows_per_split) + r;
    dw += (u64)blockIdx.z * split_len;
    if (split_len > n * k) db = dw + (u64)n * k;
    WeightGradient<N> to = {Gradient<f32, N>::make(dw, k, accumulate), db, accumulate_bias != 0};
    product<Tile, false, false>(Stored<T>::make(dz, n, n), Stored<T>::make(x, k, k), r, r_end, to);
}

// db alone, by the same sums: the products that they come with are nobody's, and are those of dz's first columns.
struct Dropped {
    static constexpr u32 N = 2;
    static constexpr bool SUMS = true, wide = true;
    struct Columns {};

    f32* sums;
    bool accumulate_sums;
};
DEV void columns_of(const Dropped&, u32, bool, Dropped::Columns&) {}
template <u32 N>
DEV void finish(const Dropped&, const Dropped::Columns&, u32, u32, f32 (&)[N], bool) {}

// db [n], or scratch [splits, n] with accumulate = 0.
template <typename Tile, typename T>
DEV void linear_bwd_bias(f32* db, const T* dz, u32 m, u32 n, u32 rows_per_split, u32 accumulate) {
    u32 r = blockIdx.z * rows_per_split, r_end = min_of(m - r, rows_per_split) + r;
    Stored<T> first = Stored<T>::make(dz, n, min_of(n, 64u));
    product<Tile, false, false>(Stored<T>::make(dz, n, n), first, r, r_end,
                                Dropped{db + (u64)blockIdx.z * n, accumulate != 0});
}

#define BIAS (Out<f32> db, In<T> dz, u32 m, u32 n, u32 rows_per_split, u32 accumulate)
ENTRY(linear_bwd_bias_f32, (256), f32, BIAS, linear_bwd_bias<SmallTile>(db, dz, m, n, rows_per_split, accumulate))
ENTRY(linear_bwd_bias_bf16, (128), bf16, BIAS, linear_bwd_bias<SmallTile>(db, dz, m, n, rows_per_split, accumulate))
ENTRY(linear_bwd_bias_tf32, (128), f32, BIAS, linear_bwd_bias<SmallTf32Tile>(db, dz, m, n, rows_per_split, accumulate))

// Replaces z by dz = dy act'(z), 16 bytes a thread.
KERNELS(linear_bwd_activation, (256), (Out<T> dz, In<T> dy, u64 len, u32 activation), (dz, dy, len, activation)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= len) return;
    u32 left = (u32)min_of<u64>(len - at, N);
    bool wide = left == N && aligned16(dy) && aligned16(dz);
    f32 d[N], z[N];
    load_wide(dy + at, left, wide, d);
    load_wide(dz + at, left, wide, z);
    UNROLL for (u32 i = 0; i < N; i++) d[i] *= activation_derivative<T>(z[i], activation);
    store_wide(dz + at, left, wide, d);
}

// dz and dmodulation behind a gate (null: not wanted); dmodulation is added to, in the gate's columns, and z is there where it is.
KERNELS(linear_bwd_gate, (128), (Out<T> dz, Out<T> dmodulation, In<T> dy, In<T> z, In<T> modulation, u32 n, u32 rows_per_sample,
        u32 modulation_stride, u32 column), (dz, dmodulation, dy, z, modulation, n, rows_per_sample, modulation_stride, column)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 col = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (col >= n) return;
    u32 left = n - col;
    u64 columns = (u64)blockIdx.x * modulation_stride + column + col;
    bool wide = left >= N && n % N == 0 && aligned16(dz) && aligned16(dy) && aligned16(z);
    bool wide_columns = left >= N && aligned16(modulation + columns);
    if (dmodulation != nullptr) wide_columns = wide_columns && aligned16(dmodulation + columns);
    f32 g[N], sums[N];
    load_wide(modulation + columns, left, wide_columns, g);
    UNROLL for (u32 i = 0; i < N; i++) sums[i] = 0.0f;
    for (u32 row = blockIdx.x * rows_per_sample, last = row + rows_per_sample; row < last; row++) {
        u64 at = (u64)row * n + col;
        f32 d[N], v[N];
        load_wide(dy + at, left, wide, d);
        if (dmodulation != nullptr) {
            load_wide(z + at, left, wide, v);
            UNROLL for (u32 i = 0; i < N; i++) sums[i] = fma_f32(d[i], v[i], sums[i]);
        }
        if (dz != nullptr) {
            UNROLL for (u32 i = 0; i < N; i++) d[i] *= g[i];
            store_wide(dz + at, left, wide, d);
        }
    }
    if (dmodulation == nullptr) return;
    load_wide(dmodulation + columns, left, wide_columns, g);
    UNROLL for (u32 i = 0; i < N; i++) sums[i] += g[i];
    store_wide(dmodulation + columns, left, wide_columns, sums);
}
