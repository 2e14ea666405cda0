// Embedding: y[b] = table[index[b]]; backwards, dtable[v] = sum of dy[b] over b with index[b] = v, in ascending b.
//
//   y [batch, width] T, table [rows, width] f32, indices [batch] i32, dtable [rows, width] f32.
//
// Floor: batch * width elements read and written forward; backward reads dy once per table row that L2 serves, which for
// the few labels of these models (11 rows) costs less than sorting would.
#include "common/entry.cuh"
#include "common/types.cuh"

// One thread per element of y.
KERNELS(embedding_fwd, (128), (Out<T> y, In<f32> table, In<i32> indices, u32 batch, u32 rows, u32 width), (y, table, indices, batch, rows, width)) {
    u32 element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= batch * width) return;
    i32 row = indices[element / width];
    bool inside = row >= 0 && (u32)row < rows;
    y[element] = from_f32<T>(inside ? table[(u32)row * width + element % width] : 0.0f);
}

// One thread per element of the table: no two threads share a sum.
KERNELS(embedding_bwd, (128), (Out<f32> dtable, In<T> dy, In<i32> indices, u32 batch, u32 rows, u32 width, u32 accumulate),
        (dtable, dy, indices, batch, rows, width, accumulate)) {
    u32 element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= rows * width) return;
    i32 row = (i32)(element / width);
    f32 sum = accumulate ? dtable[element] : 0.0f;
    for (u32 b = 0; b < batch; ++b) {
        if (indices[b] == row) sum += to_f32(dy[b * width + element % width]);
    }
    dtable[element] = sum;
}
