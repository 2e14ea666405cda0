// Concatenation along the last axis: one part at a time.
//
//   y, dy [rows, width] T, of which the part has columns `column` .. `column` + `part`; x, dx [rows, part] T.
//
// Forward copies the part to its columns, backward its gradient from them. Floor: the part read and written once.
//
// Launches: a thread per 16 bytes of a row of the part, in blocks of 256.
#include "common/entry.cuh"
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

KERNELS(concat_fwd, (256), (Out<T> y, In<T> x, u32 rows, u32 part, u32 width, u32 column), (y, x, rows, part, width, column)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 row, col;
    if (!piece_of<N>(rows, part, row, col)) return;
    bool whole = part % N == 0 && width % N == 0 && column % N == 0;
    f32 v[N];
    load_wide(x + (u64)row * part + col, part - col, whole && aligned16(x), v);
    store_wide(y + (u64)row * width + column + col, part - col, whole && aligned16(y), v);
}

KERNELS(concat_bwd, (256), (Out<T> dx, In<T> dy, u32 rows, u32 part, u32 width, u32 column, u32 accumulate),
        (dx, dy, rows, part, width, column, accumulate)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u32 row, col;
    if (!piece_of<N>(rows, part, row, col)) return;
    bool whole = part % N == 0 && width % N == 0 && column % N == 0;
    f32 v[N];
    load_wide(dy + (u64)row * width + column + col, part - col, whole && aligned16(dy), v);
    Gradient<T, N> gradient = Gradient<T, N>::make(dx, part, accumulate);
    finish(gradient, row, col, v);
}
