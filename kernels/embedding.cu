// Embedding: y[b] = table[index[b]]; backwards, dtable[v] = sum of dy[b] over b with index[b] = v, in ascending b.
//
//   y [batch, width] T, table [rows, width] f32, indices [batch] i32, dtable [rows, width] f32.
//
// Floor: batch * width elements read and written forward; backward reads dy once per table row that L2 serves, which for
// the few labels of these models (11 rows) costs less than sorting would.
#include "common/types.cuh"

// One thread per element of y.
template <typename T>
DEV void embedding_fwd(T* y, const f32* table, const i32* indices, u32 batch, u32 rows, u32 width) {
    u32 element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= batch * width) return;
    i32 row = indices[element / width];
    bool inside = row >= 0 && (u32)row < rows;
    y[element] = from_f32<T>(inside ? table[(u32)row * width + element % width] : 0.0f);
}

// One thread per element of the table: no two threads share a sum.
template <typename T>
DEV void embedding_bwd(f32* dtable, const T* dy, const i32* indices, u32 batch, u32 rows, u32 width, u32 accumulate) {
    u32 element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= rows * width) return;
    i32 row = (i32)(element / width);
    f32 sum = accumulate ? dtable[element] : 0.0f;
    for (u32 b = 0; b < batch; ++b) {
        if (indices[b] == row) sum += to_f32(dy[b * width + element % width]);
    }
    dtable[element] = sum;
}

extern "C" __global__ void __launch_bounds__(128) embedding_fwd_f32(
    f32* __restrict__ y, const f32* __restrict__ table, const i32* __restrict__ indices, u32 batch, u32 rows,
    u32 width) {
    embedding_fwd<f32>(y, table, indices, batch, rows, width);
}
extern "C" __global__ void __launch_bounds__(128) embedding_fwd_bf16(
    bf16* __restrict__ y, const f32* __restrict__ table, const i32* __restrict__ indices, u32 batch, u32 rows,
    u32 width) {
    embedding_fwd<bf16>(y, table, indices, batch, rows, width);
}
extern "C" __global__ void __launch_bounds__(128) embedding_bwd_f32(
    f32* __restrict__ dtable, const f32* __restrict__ dy, const i32* __restrict__ indices, u32 batch, u32 rows,
    u32 width, u32 accumulate) {
    embedding_bwd<f32>(dtable, dy, indices, batch, rows, width, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) embedding_bwd_bf16(
    f32* __restrict__ dtable, const bf16* __restrict__ dy, const i32* __restrict__ indices, u32 batch, u32 rows,
    u32 width, u32 accumulate) {
    embedding_bwd<bf16>(dtable, dy, indices, batch, rows, width, accumulate);
}
