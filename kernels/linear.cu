// The linear layer: y = act(x W^T + b) + residual, and its gradients.
//
// x [m, k], W [n, k], y, z, residual [m, n], b [n] in f32. With z = x W^T + b before the activation and dz = dy act'(z):
//
//   dx = dz W [m, k]      dW = dz^T x [n, k] in f32      db = column sums of dz in f32      dresidual = dy
//
// All three products are C[i, j] = sum over r of A[i, r] B[j, r]; they differ in which index of an operand is contiguous:
//
//             i   j   r    A                      B
//   forward   m   n   k    x: r contiguous        W: r contiguous
//   dx        m   k   n    dz: r contiguous       W: j contiguous
//   dW        n   k   m    dz: i contiguous       x: j contiguous
//
// They run on the tiles of common/product.cuh: bf16 on the tensor cores, f32 with plain FMA.
//
// dW's sum over m is cut into splits of `rows_per_split` (by shapes alone) where the tiles alone would not fill a GPU; each
// split writes its own [n, k] of scratch, and _bwd_weight_sum adds them in order.
//
// Floor: 2 m n k FLOPs over the tensor rate, or (m k + n k + m n) elements over the bandwidth. At m = 16640 (256 samples of
// 65 tokens), n = k = 384, bf16, that is 4.9 GFLOP and 26 MB: memory and tensor cores nearly in balance on an H100.
//
// Launches: products: as in common/product.cuh, SIDE = 128 (large) or 64 (small), splits in z. _bwd_activation: 256 threads,
// grid [ceil(rows / rows_per_part), ceil(cols / (32 * elements in 16 bytes))]. _bwd_bias_final: 256 threads, a block per 32
// columns. _bwd_weight_sum: 4 elements a thread.
#include "common/activation.cuh"
#include "common/product.cuh"
#include "common/sums.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// What happens to N neighbouring sums of a row: bias, activation, residual.
template <typename T, u32 N>
struct Finish {
    T* y;
    T* z;
    const f32* bias;
    const T* residual;
    u32 cols;
    u32 activation;
    bool wide;

    DEV Finish make(T* y, T* z, const f32* bias, const T* residual, u32 cols, u32 activation) {
        bool wide = cols % N == 0 && aligned16(y) && aligned16(z) && aligned16(bias) && aligned16(residual);
        return Finish{y, z, bias, residual, cols, activation, wide};
    }
};
template <typename T, u32 N>
DEV void finish(const Finish<T, N>& to, u32 row, u32 col, f32 (&v)[N]) {
    u64 at = (u64)row * to.cols + col;
    u32 left = to.cols - col;
    f32 other[N];
    if (to.bias != nullptr) {
        load_wide(to.bias + col, left, to.wide, other);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    if (to.z != nullptr) store_wide(to.z + at, left, to.wide, v);
    if (to.activation != ACTIVATION_NONE) {
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] = activate<T>(v[i], to.activation);
    }
    if (to.residual != nullptr) {
        load_wide(to.residual + at, left, to.wide, other);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    store_wide(to.y + at, left, to.wide, v);
}

// --- the three products ---

template <u32 SIDE, typename T>
DEV void linear_fwd(T* y, T* z, const T* x, const T* weight, const f32* bias, const T* residual, u32 m, u32 n, u32 k,
                    u32 activation) {
    constexpr u32 N = Vec16<T>::COUNT;
    Finish<T, N> to = Finish<T, N>::make(y, z, bias, residual, n, activation);
    product<SIDE, true, true>(Stored<T>::make(x, k, m), Stored<T>::make(weight, k, n), 0, k, to);
}

template <u32 SIDE, typename T>
DEV void linear_bwd_input(T* dx, const T* dz, const T* weight, u32 m, u32 n, u32 k, u32 accumulate) {
    Gradient<T, Vec16<T>::COUNT> to = Gradient<T, Vec16<T>::COUNT>::make(dx, k, accumulate);
    product<SIDE, true, false>(Stored<T>::make(dz, n, m), Stored<T>::make(weight, k, k), 0, n, to);
}

// dw [n, k], or scratch [splits, n, k] with accumulate = 0.
template <u32 SIDE, typename T>
DEV void linear_bwd_weight(f32* dw, const T* dz, const T* x, u32 m, u32 n, u32 k, u32 rows_per_split, u32 accumulate) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 r = blockIdx.z * rows_per_split, r_end = min_of(m - r, rows_per_split) + r;
    Gradient<f32, N> to = Gradient<f32, N>::make(dw + (u64)blockIdx.z * n * k, k, accumulate);
    product<SIDE, false, false>(Stored<T>::make(dz, n, n), Stored<T>::make(x, k, k), r, r_end, to);
}

// --- dz and the bias's gradient ---

// Replaces z by dz = dy act'(z) (null: without an activation, dz is dy) and writes column sums of dz over rows_per_part rows
// each to partial [parts, cols] (null: not wanted). A warp reads 32 pieces of 16 bytes of a row; eight warps share the rows.
template <typename T>
DEV void linear_bwd_activation(T* __restrict__ dz, f32* __restrict__ partial, const T* __restrict__ dy, u32 rows, u32 cols,
                               u32 rows_per_part, u32 activation) {
    u32 first = blockIdx.x * rows_per_part, last = first + min_of(rows - first, rows_per_part);
    if (partial != nullptr) partial += (u64)blockIdx.x * cols;
    sum_columns(dz, partial, dy, first, last, cols, activation);
}

extern "C" __global__ void __launch_bounds__(256) linear_fwd_large_f32(
    f32* __restrict__ y, f32* __restrict__ z, const f32* __restrict__ x, const f32* __restrict__ weight,
    const f32* __restrict__ bias, const f32* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) {
    linear_fwd<128>(y, z, x, weight, bias, residual, m, n, k, activation);
}
extern "C" __global__ void __launch_bounds__(256) linear_fwd_large_bf16(
    bf16* __restrict__ y, bf16* __restrict__ z, const bf16* __restrict__ x, const bf16* __restrict__ weight,
    const f32* __restrict__ bias, const bf16* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) {
    linear_fwd<128>(y, z, x, weight, bias, residual, m, n, k, activation);
}
extern "C" __global__ void __launch_bounds__(256) linear_fwd_small_f32(
    f32* __restrict__ y, f32* __restrict__ z, const f32* __restrict__ x, const f32* __restrict__ weight,
    const f32* __restrict__ bias, const f32* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) {
    linear_fwd<64>(y, z, x, weight, bias, residual, m, n, k, activation);
}
extern "C" __global__ void __launch_bounds__(128) linear_fwd_small_bf16(
    bf16* __restrict__ y, bf16* __restrict__ z, const bf16* __restrict__ x, const bf16* __restrict__ weight,
    const f32* __restrict__ bias, const bf16* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) {
    linear_fwd<64>(y, z, x, weight, bias, residual, m, n, k, activation);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_input_large_f32(
    f32* __restrict__ dx, const f32* __restrict__ dz, const f32* __restrict__ weight, u32 m, u32 n, u32 k,
    u32 accumulate) {
    linear_bwd_input<128>(dx, dz, weight, m, n, k, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_input_large_bf16(
    bf16* __restrict__ dx, const bf16* __restrict__ dz, const bf16* __restrict__ weight, u32 m, u32 n, u32 k,
    u32 accumulate) {
    linear_bwd_input<128>(dx, dz, weight, m, n, k, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_input_small_f32(
    f32* __restrict__ dx, const f32* __restrict__ dz, const f32* __restrict__ weight, u32 m, u32 n, u32 k,
    u32 accumulate) {
    linear_bwd_input<64>(dx, dz, weight, m, n, k, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) linear_bwd_input_small_bf16(
    bf16* __restrict__ dx, const bf16* __restrict__ dz, const bf16* __restrict__ weight, u32 m, u32 n, u32 k,
    u32 accumulate) {
    linear_bwd_input<64>(dx, dz, weight, m, n, k, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_large_f32(
    f32* __restrict__ dw, const f32* __restrict__ dz, const f32* __restrict__ x, u32 m, u32 n, u32 k,
    u32 rows_per_split, u32 accumulate) {
    linear_bwd_weight<128>(dw, dz, x, m, n, k, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_large_bf16(
    f32* __restrict__ dw, const bf16* __restrict__ dz, const bf16* __restrict__ x, u32 m, u32 n, u32 k,
    u32 rows_per_split, u32 accumulate) {
    linear_bwd_weight<128>(dw, dz, x, m, n, k, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_small_f32(
    f32* __restrict__ dw, const f32* __restrict__ dz, const f32* __restrict__ x, u32 m, u32 n, u32 k,
    u32 rows_per_split, u32 accumulate) {
    linear_bwd_weight<64>(dw, dz, x, m, n, k, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) linear_bwd_weight_small_bf16(
    f32* __restrict__ dw, const bf16* __restrict__ dz, const bf16* __restrict__ x, u32 m, u32 n, u32 k,
    u32 rows_per_split, u32 accumulate) {
    linear_bwd_weight<64>(dw, dz, x, m, n, k, rows_per_split, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_sum(
    f32* __restrict__ dw, const f32* __restrict__ partial, u32 splits, u32 len, u32 accumulate) {
    sum_splits(dw, partial, splits, len, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_activation_f32(
    f32* __restrict__ dz, f32* __restrict__ partial, const f32* __restrict__ dy, u32 rows, u32 cols, u32 rows_per_part,
    u32 activation) {
    linear_bwd_activation<f32>(dz, partial, dy, rows, cols, rows_per_part, activation);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_activation_bf16(
    bf16* __restrict__ dz, f32* __restrict__ partial, const bf16* __restrict__ dy, u32 rows, u32 cols,
    u32 rows_per_part, u32 activation) {
    linear_bwd_activation<bf16>(dz, partial, dy, rows, cols, rows_per_part, activation);
}
extern "C" __global__ void __launch_bounds__(256) linear_bwd_bias_final(
    f32* __restrict__ db, const f32* __restrict__ partial, u32 parts, u32 cols, u32 accumulate) {
    sum_parts(db, partial, parts, cols, accumulate);
}
