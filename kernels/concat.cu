// Concatenation along the last axis: one part at a time.
//
//   y, dy [rows, width] T, of which the part has columns `column` .. `column` + `part`; x, dx [rows, part] T.
//
// Forward copies the part to its columns, backward its gradient from them. Floor: the part read and written once.
//
// Launches: a thread per 16 bytes of a row of the part, in blocks of 256.
#include "common/sums.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// The piece of a thread: row and column of the part.
template <u32 N>
DEV bool piece_of(u32 rows, u32 part, u32& row, u32& col) {
    u32 pieces = ceil_div(part, N), at = blockIdx.x * blockDim.x + threadIdx.x;
    row = at / pieces;
    col = at % pieces * N;
    return row < rows;
}

template <typename T>
DEV void concat_fwd(T* y, const T* x, u32 rows, u32 part, u32 width, u32 column) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 row, col;
    if (!piece_of<N>(rows, part, row, col)) return;
    bool whole = part % N == 0 && width % N == 0 && column % N == 0;
    f32 v[N];
    load_wide(x + (u64)row * part + col, part - col, whole && aligned16(x), v);
    store_wide(y + (u64)row * width + column + col, part - col, whole && aligned16(y), v);
}

template <typename T>
DEV void concat_bwd(T* dx, const T* dy, u32 rows, u32 part, u32 width, u32 column, u32 accumulate) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 row, col;
    if (!piece_of<N>(rows, part, row, col)) return;
    bool whole = part % N == 0 && width % N == 0 && column % N == 0;
    f32 v[N];
    load_wide(dy + (u64)row * width + column + col, part - col, whole && aligned16(dy), v);
    Gradient<T, N> gradient = Gradient<T, N>::make(dx, part, accumulate);
    finish(gradient, row, col, v);
}

extern "C" __global__ void __launch_bounds__(256) concat_fwd_f32(
    f32* __restrict__ y, const f32* __restrict__ x, u32 rows, u32 part, u32 width, u32 column) {
    concat_fwd<f32>(y, x, rows, part, width, column);
}
extern "C" __global__ void __launch_bounds__(256) concat_fwd_bf16(
    bf16* __restrict__ y, const bf16* __restrict__ x, u32 rows, u32 part, u32 width, u32 column) {
    concat_fwd<bf16>(y, x, rows, part, width, column);
}
extern "C" __global__ void __launch_bounds__(256) concat_bwd_f32(
    f32* __restrict__ dx, const f32* __restrict__ dy, u32 rows, u32 part, u32 width, u32 column, u32 accumulate) {
    concat_bwd<f32>(dx, dy, rows, part, width, column, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) concat_bwd_bf16(
    bf16* __restrict__ dx, const bf16* __restrict__ dy, u32 rows, u32 part, u32 width, u32 column, u32 accumulate) {
    concat_bwd<bf16>(dx, dy, rows, part, width, column, accumulate);
}
